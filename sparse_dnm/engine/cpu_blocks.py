"""Passes of executor `blocks` on the CPU: the covering of a structure, and what its kernels are given (DESIGN, 4.5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.checks import CPU
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.base import Clock, Gradients, Neurons
from sparse_dnm.engine.buffers import BufferPool
from sparse_dnm.engine.cpu_structure import Bits, CpuStructure, Floats
from sparse_dnm.engine.schedule import Schedule
from sparse_dnm.kernels.blocks import Block

KERNELS = backend.kernels(CPU).blocks
LANES: int = KERNELS.LANES
ROOM = LANES if KERNELS.SIDE_BY_SIDE else 1  # neurons of a group, at most


class Covering:
    """The edges of a structure in blocks, its executed inputs in strips.

    graph    what the kernels are given of it
    place    int (n_edges,): block * LANES + lane of each edge in CSR order, -1 where it is not executed
    n_edges  executed ones; n_blocks, n_strips, n_lone: blocks, strips of inputs, and inputs outside them; n_groups:
             groups of neurons that are computed side by side, linear outputs apart
    """

    def __init__(self, schedule: Schedule, neurons: Neurons):
        s, t = schedule, schedule.topology
        self.neurons, self.n_edges = neurons, len(t.t_edges)
        n_edges, n_inputs = t.n_edges, len(s.inputs)
        n_rows = len(s.sequence)
        turns, order, groups = (np.empty(size, np.int32) for size in (t.n_neurons, n_rows, n_rows + 1))
        free, filled = np.empty((2, KERNELS.KINDS, n_rows + 1), np.int32)
        n_groups, n_read = KERNELS.arrange(
            *(s.sequence, t.indptr, t.indices, neurons.kind, neurons.first_linear, turns, free, filled, order, groups)
        )
        self.n_groups, row_blocks = int(n_read), np.empty(n_rows + 1, np.int32)
        starts = np.empty(n_edges, np.int32)
        self.place = np.empty(n_edges, np.int32 if n_edges * LANES < 2**31 else np.int64)
        self.n_blocks: int = KERNELS.cover(order, t.live, t.indptr, t.indices, row_blocks, starts, self.place)
        strips, strip_columns, lone, lone_columns = (np.empty(n_inputs, np.int32) for _ in range(4))
        self.n_strips, self.n_lone = KERNELS.cover_inputs(
            *(s.inputs, s.column, t.inputs, neurons.kind, np.empty(t.n_neurons, np.int32)),
            *(strips, strip_columns, lone, lone_columns),
        )
        self.graph = Block(
            n=t.n_neurons,
            first_linear=neurons.first_linear,
            strips=strips[: self.n_strips].copy(),
            strip_columns=strip_columns[: self.n_strips].copy(),
            lone=lone[: self.n_lone].copy(),
            lone_columns=lone_columns[: self.n_lone].copy(),
            order=order,
            groups=groups[: n_groups + 1].copy(),
            n_read=n_read,
            indptr=t.indptr,
            row_blocks=row_blocks,
            starts=starts[: self.n_blocks].copy(),
            place=self.place,
            kind=neurons.kind,
            slope=neurons.slope,
            row_slope=np.concatenate([neurons.slope[order], np.zeros(LANES, neurons.slope.dtype)]),
            outputs=t.outputs,
        )

    @property
    def blocks(self) -> NDArray[np.int64]:
        """The block of each edge in CSR order, -1 where it is not executed."""
        return np.floor_divide(self.place, LANES, dtype=np.int64)

    def bytes_of_neurons(self) -> int:
        """Bytes of the arrays that this makes of neurons and inputs."""
        names = ("strips", "strip_columns", "lone", "lone_columns", "order", "groups", "row_blocks", "row_slope")
        return sum(self.graph.values[name].nbytes for name in names)

    def counts(self, schedule: Schedule) -> Floats:
        """What the time of a pass depends on, in the order of timing.cost_model.FEATURES["blocks"]."""
        t, n_inputs = schedule.topology, KERNELS.STRIP * self.n_strips + self.n_lone
        rows, blocks = len(self.graph.values["order"]), self.n_blocks
        neurons = rows, len(t.t_edges), len(schedule.waves) - 1, blocks, self.n_groups
        return np.array((1, n_inputs, self.n_lone, *neurons, rows**2 / 1000, blocks**2 / 1000), float)

    @staticmethod
    def of(structure: CpuStructure) -> Covering:
        """That of a structure; made once."""
        schedule, neurons = structure.schedule, structure.neurons
        found: Covering | None = schedule.covering
        if found is None or found.neurons is not neurons:
            schedule.covering = found = Covering(schedule, neurons)
        return found


class BlockPass:
    """A forward pass of a structure by blocks, with the memory that it works in: x, m and z of every neuron."""

    def __init__(
        self, pool: BufferPool, structure: CpuStructure, strengths: Floats, scales: tuple[Floats, Floats], batch: int
    ):
        self.covering, self.batch = Covering.of(structure), batch
        n, dtype = structure.topology.n_neurons, strengths.dtype
        self.size = batch * n  # of x and m; more follows, which a block near the end reads
        x, m, z = (pool.aligned(self.size + LANES, dtype) for _ in range(3))
        values = pool.aligned(self.covering.n_blocks * LANES, dtype)
        n_rows = len(self.covering.graph.values["order"])
        rows = {name: pool.aligned(n_rows + LANES, dtype) for name in ("row_weight", "row_bias")}
        self.memory = {"values": values, "weight": scales[0], "bias": scales[1], **rows, "x": x, "m": m, "z": z}
        if len(strengths) == 0:  # none at all would mean that they are packed
            strengths = np.zeros(1, dtype)
        self.data = Block(strengths=strengths, **self.memory)
        self.graph = self.covering.graph.address
        self.run, self.run_back = KERNELS.make(self.covering.graph.kind, self.data.kind)
        self.n_outputs = len(structure.topology.outputs)

    def forward(self, table: Floats, out: Floats) -> bool:
        """Write outputs of ``table`` (batch, n_inputs); returns whether all numbers were finite: else they are of no
        use."""
        finite: bool = self.run(1, self.graph, self.data.address, table, out)
        return finite

    @property
    def x(self) -> Floats:
        """Values of the neurons, (batch * n,)."""
        return self.memory["x"][: self.size]

    @property
    def m(self) -> Floats:
        """Their messages."""
        return self.memory["m"][: self.size]


class PreparedPass(BlockPass):
    """A pass for inference, whose strengths stay packed while their numbers are the same."""

    def __init__(
        self, pool: BufferPool, structure: CpuStructure, strengths: Floats, scales: tuple[Floats, Floats], batch: int
    ):
        super().__init__(pool, structure, strengths, scales, batch)
        self._packing = self.data
        self._numbers = {"strengths": strengths, "weight": scales[0], "bias": scales[1]}
        self._packed = Block(strengths=strengths[:0], **self.memory)
        self._bits: Bits | None = None

    def refresh(self) -> None:
        """Pack strengths, weights and biases in the next call if their numbers have changed."""
        if self._bits is None or not self._bits.same(self._numbers):
            self.data, self._bits = self._packing, Bits(self._numbers)

    def forward(self, table: Floats, out: Floats, times: int = 1) -> bool:
        """See `BlockPass.forward`; done as many ``times``, where it is timed."""
        finite: bool = self.run(times, self.graph, self.data.address, table, out)
        self.data = self._packed if finite else self._packing  # which also clears what is not finite
        return finite


def backward(
    pool: BufferPool, made: BlockPass, gradient: Floats, n_edges: int, clock: Clock | None
) -> Gradients | None:
    """Gradients from that of the outputs, after ``made``; None where a number is not finite."""
    covering, bias = made.covering, made.memory["bias"]
    g, by_z = (pool.aligned(made.size + LANES, bias.dtype) for _ in range(2))
    by_values, by_strength = (pool.aligned(size, bias.dtype) for size in (covering.n_blocks * LANES, n_edges))
    by_weight, by_bias = (pool.empty(len(bias), bias.dtype) for _ in range(2))
    if covering.n_edges < n_edges:  # the others are of neurons that reach no output
        by_strength.fill(0)
    start = clock() if clock else 0.0
    finite = made.run_back(
        *(made.graph, made.data.address, gradient, g, by_z, by_values, by_weight, by_bias, by_strength)
    )
    seconds = clock() - start if clock else float("nan")
    return Gradients(by_strength, by_weight, by_bias, g[: made.size], seconds) if finite else None
