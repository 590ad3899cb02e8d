"""Schedule: which neurons run, in which order, in tiles of how many columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.topology import Topology

KERNELS = backend.kernels(torch.device("cpu"))


def tile_width(batch: int) -> int:
    """Columns per tile: a power of two up to 16, else whole cache lines of float32, up to 64 columns.

    It depends on the batch alone: the order of sums over columns, hence their bits, must not depend on threads.  From
    33 columns on there is an even number of tiles: two tiles of 32 cost one thread a fifth more than one of 64, and
    give two threads a tile each.
    """
    tiles = 1 if batch <= 32 else 2 * -(-batch // 128)
    columns = -(-batch // tiles)
    if columns <= 16:
        return 1 << (columns - 1).bit_length()
    return -(-columns // 16) * 16


def tiles_of(batch: int) -> int:
    """Tiles that hold ``batch`` columns."""
    return -(-batch // tile_width(batch))


class Schedule:
    """Execution order of a Topology: its live neurons by wavefront.

    executed   int32  live inputs, then the other live neurons by (level, index)
    inputs     int32  the first of them, and ``column`` int32 the input column of each
    order      int32  the others; ``waves`` int64 where each level starts among them
    sequence   int32  the others as `columns` runs them: by index where sources come before their readers, so that
                      edges are read one after the other from memory; else by level
    column_of  int32 (n,)  the output column of a neuron, or -1
    """

    covering: Any = None  # `cpu_blocks.Covering` of it, where one was needed
    plans: Any = None  # `cpu_recurrent.Plan`s of it, where they were needed

    def __init__(self, topology: Topology):
        self.topology = t = topology
        executed, column = np.empty(t.n_neurons, np.int32), np.empty(len(t.inputs), np.int32)
        self.waves, self.column_of = np.empty(t.depth + 2, np.int64), np.empty(t.n_neurons, np.int32)
        sequence = np.empty(t.n_neurons if t.ascending else 0, np.int32)
        n_inputs, n_executed = KERNELS.schedule(
            *(t.inputs, t.outputs, t.levels, t.order, t.live),
            *(executed, column, self.waves, self.column_of, sequence),
        )
        self.executed, self.column = executed[:n_executed], column[:n_inputs]
        self.inputs, self.order = executed[:n_inputs], executed[n_inputs:n_executed]
        self.sequence = sequence[: n_executed - n_inputs] if t.ascending else self.order

    def rest(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """What is not executed: the inputs, the column of each, and the other neurons, sources before readers."""
        t = self.topology
        column = np.flatnonzero(~t.live[t.inputs]).astype(np.int32)
        others = ~t.live
        others[t.inputs] = False
        return t.inputs[column], column, t.order[others[t.order]]

    def sequence_of(self, executor: str) -> NDArray[np.int32]:
        """The neurons that are no inputs, in the order of ``executor``."""
        return self.order if executor == "wavefront" else self.sequence
