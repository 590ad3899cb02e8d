"""Schedule: which neurons run, in which order, in tiles of how many columns, and by which executor."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.checks import require_torch_sparse
from sparse_dnm.config import EXECUTORS, check_choice
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.buffers import BufferPool
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
    sequence   int32  the others as `columns` walks them: by index where sources come before their readers, so that
                      edges are read one after the other from memory; else by level
    column_of  int32 (n,)  the output column of a neuron, or -1
    """

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
        """What is not executed: the inputs, the column of each, and the others, sources before their readers."""
        t = self.topology
        column = np.flatnonzero(~t.live[t.inputs]).astype(np.int32)
        others = ~t.live
        others[t.inputs] = False
        return t.inputs[column], column, t.order[others[t.order]]

    def walk(self, executor: str) -> NDArray[np.int32]:
        """The neurons that are no inputs, in the order of ``executor``."""
        return self.order if executor == "wavefront" else self.sequence


class Sized(Protocol):
    """What a choice depends on."""

    @property
    def n_edges(self) -> int: ...
    @property
    def depth(self) -> int: ...


@dataclass
class _Trial:
    """Timings of one phase at one batch size, until a choice is made."""

    edges: int
    depth: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"columns": [], "wavefront": []})
    choice: str | None = None

    def stale(self, topology: Sized) -> bool:
        """The structure has changed by more than a fifth since the choice."""
        return (
            abs(topology.n_edges - self.edges) > 0.2 * self.edges or abs(topology.depth - self.depth) > 0.2 * self.depth
        )


class Executor:
    """Chooses how to walk the DAG: ``columns``, ``wavefront``, or ``auto``, the one measured to be faster.

    ``auto`` spends no extra run: the first calls of a phase (forward, backward) at a batch size alternate between
    the two, one unmeasured call each and then ``samples``; the smaller median stays until edges or depth have
    changed by a fifth.  On one thread both do the same work in the same order, and where every thread has a tile of
    its own ``columns`` does it without a barrier: then that runs, untried.
    """

    samples = 5

    def __init__(self, name: str = "auto", threads: int = 0):
        check_choice("executor", name, EXECUTORS)
        if name == "torch-sparse":
            require_torch_sparse()
        self.name = name
        self.threads = backend.check_threads(threads)
        self.buffers = BufferPool()
        self.timer: Callable[[], float] = time.perf_counter
        self.seconds: dict[str, float] = {}  # of the kernel in the last call of each phase, by the timer
        self._trials: dict[tuple[str, int], _Trial] = {}

    def choose(self, phase: str, batch: int, topology: Topology) -> str:
        """The executor of the next call of ``phase``."""
        if self.name == "auto" and self.threads <= tiles_of(batch):
            return "columns"
        return self.choose_there(phase, batch, topology)

    def choose_there(self, phase: str, batch: int, topology: Sized) -> str:
        """The same on CUDA, where threads of the CPU do not count."""
        if self.name != "auto":
            return self.name
        trial = self._trials.get((phase, batch))
        if trial is None or trial.stale(topology):
            trial = self._trials[phase, batch] = _Trial(topology.n_edges, topology.depth)
        if trial.choice is not None:
            return trial.choice
        return min(trial.seconds, key=lambda name: len(trial.seconds[name]))

    def threads_of(self, name: str, batch: int) -> contextlib.AbstractContextManager[None]:
        """The threads of a walk, set: ``columns`` gives each a tile, and one tile wakes none."""
        if name != "columns":
            return backend.use_threads(self.threads)
        tiles = tiles_of(batch)
        return backend.use_threads(min(self.threads, tiles)) if tiles > 1 else contextlib.nullcontext()

    def parts_for(self, name: str) -> int:
        """Parts that a level of neurons is cut into: `columns` knows no levels."""
        return self.threads if name == "wavefront" else 1

    def start_there(self, phase: str, batch: int, device: torch.device) -> Any:
        """Before a call on CUDA: a mark where a choice depends on its time, else None."""
        trial = self._trials.get((phase, batch))
        if trial is None or trial.choice is not None:
            return None
        backend.keep_busy(device)
        return backend.mark(device)

    def record_there(self, phase: str, batch: int, name: str, start: Any, device: torch.device) -> None:
        """Take note of such a call; ``start`` is what `start_there` returned."""
        if start is not None:
            self.record(phase, batch, name, backend.between(start, backend.mark(device)))

    def record(self, phase: str, batch: int, name: str, seconds: float) -> None:
        """Take note of the time that the kernel of a call of ``phase`` took."""
        self.seconds[phase] = seconds
        trial = self._trials.get((phase, batch))
        if trial is None or trial.choice is not None:
            return
        trial.seconds[name].append(seconds)
        if all(len(times) > self.samples for times in trial.seconds.values()):
            medians = {name: statistics.median(times[1:]) for name, times in trial.seconds.items()}
            trial.choice = min(medians, key=lambda name: medians[name])

    def chosen(self) -> str:
        """What ran, for reports: the fixed name, or the choices of ``auto`` per phase and batch."""
        if self.name != "auto":
            return self.name
        if self.threads == 1 and not self._trials:
            return "columns"
        made = [f"{phase} {t.choice} (batch {batch})" for (phase, batch), t in self._trials.items() if t.choice]
        return "auto: " + (", ".join(made) or ("no choice yet" if self._trials else "columns"))
