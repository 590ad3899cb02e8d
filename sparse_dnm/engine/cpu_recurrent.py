"""Passes of a recurrent network through sequences on the CPU: what its kernels are given (DESIGN, 4.13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.checks import CPU
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.buffers import BufferPool
from sparse_dnm.engine.cpu_structure import CpuStructure, Floats
from sparse_dnm.engine.recurrence import Network, Recurrence, Way
from sparse_dnm.engine.schedule import tile_width

KERNELS = backend.kernels(CPU)
CODES = {"memoryless": KERNELS.cells.MEMORYLESS, "lstm": KERNELS.cells.LSTM, "gru": KERNELS.cells.GRU}
CODES["ctrnn"] = KERNELS.cells.CTRNN
NARROW, MIDDLE, WIDE = 8, 32, 64  # numbers of a neuron in a block
COLUMNS = 16  # of a tile, where the batch has as many
READER = 0xFFFFFFFF


def shape_of(batch: int, steps: int, memory: bool) -> tuple[int, int]:
    """Numbers of a neuron in a block, and columns of the batch in a tile: the first is a multiple of the second, and of
    few values, for each of which kernels are compiled.  With a ``memory`` a block is one step."""
    columns = tile_width(batch)
    if memory:
        columns = max(columns, NARROW)
        return columns, columns
    if columns >= COLUMNS:
        return (columns, columns) if steps == 1 else (WIDE, COLUMNS)
    return (NARROW if columns * steps <= NARROW else MIDDLE), columns


class Plan:
    """The executed part of a structure in the order of execution, as a graph of its own.

    kept      its neurons, and ``edges``: places of its edges in the CSR of all
    inputs    the first of its neurons; ``column`` of each, ``order``: the others, ``outputs``
    place of a neuron in it: t_indptr, readers, t_edge are the transpose, t_edge places in the CSR of all
    cell_of   int32: which of the cells a neuron is, or -1; ``saved_at``: place among the executed cells, ``cells``
    """

    def __init__(self, structure: CpuStructure, recurrence: Recurrence, everything: bool):
        s, t, neurons = structure.schedule, structure.topology, structure.neurons
        n = t.n_neurons
        self.neurons, self.recurrence = neurons, recurrence
        self.groups: dict[int, Any] = {}  # `cpu_skewed.Groups`, by columns
        if everything:  # numbers stay as they are
            self.kept = np.arange(n, dtype=np.int32)
            self.inputs, self.column = t.inputs, np.arange(len(t.inputs), dtype=np.int32)
            others = np.ones(n, np.bool_)
            others[t.inputs] = False
            self.order = t.order[others[t.order]]
        else:
            self.kept = np.concatenate([s.inputs, s.sequence])
            n_inputs, n_kept = len(s.inputs), len(self.kept)
            self.inputs, self.column = np.arange(n_inputs, dtype=np.int32), s.column
            self.order = np.arange(n_inputs, n_kept, dtype=np.int32)
        place = np.full(n, -1, np.int32)
        place[self.kept] = np.arange(len(self.kept), dtype=np.int32)
        self.outputs = place[t.outputs]
        self.indptr, self.edges = _rows(t.indptr, self.kept)
        self.indices = place[t.indices[self.edges]]
        self.t_indptr, places = _rows(t.t_indptr, self.kept)
        edges = t.t_edges[places]
        self.readers, self.t_edge = place[edges & READER], edges >> 32
        self.first_linear = (
            len(self.kept) if neurons.first_linear == n else int((self.kept < neurons.first_linear).sum())
        )
        self.kind, self.slope = neurons.kind[self.kept], neurons.slope[self.kept]
        cell_of = np.full(n, -1, np.int32)
        cell_of[recurrence.cells] = np.arange(len(recurrence.cells), dtype=np.int32)
        self.cell_of = cell_of[self.kept]
        ran = np.flatnonzero(self.cell_of >= 0)
        self.cells = self.cell_of[ran]
        self.saved_at = np.full(len(self.kept), -1, np.int32)
        self.saved_at[ran] = np.arange(len(ran), dtype=np.int32)
        self.column_of = np.full(len(self.kept), -1, np.int32)
        self.column_of[self.outputs] = np.arange(len(self.outputs), dtype=np.int32)

    @property
    def n(self) -> int:
        """Executed neurons."""
        return len(self.kept)

    @staticmethod
    def of(structure: CpuStructure, recurrence: Recurrence, everything: bool) -> Plan:
        """That of a structure; the last one is kept."""
        schedule = structure.schedule
        held: dict[bool, Plan] | None = schedule.plans
        if held is None:
            schedule.plans = held = {}
        found = held.get(everything)
        if found is None or found.neurons is not structure.neurons or found.recurrence is not recurrence:
            held[everything] = found = Plan(structure, recurrence, everything)
        return found


def _rows(indptr: NDArray[np.int64], rows: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """indptr of some rows of a CSR, and the places of their elements."""
    sizes = indptr[rows + 1] - indptr[rows]
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts, np.repeat(indptr[rows] - starts[:-1], sizes) + np.arange(starts[-1])


@dataclass(eq=False, slots=True)
class Part:
    """A forward pass through some time steps.

    first    number of the first of them
    state    before it, (tiles, n_state * columns)
    x, m, saved: see `kernels.cpu_recurrent`; None: they are to be computed again
    """

    first: int
    table: Floats
    lengths: NDArray[np.int32]
    state: Floats
    x: Any
    m: Any
    saved: Any


class SequencePass:
    """Passes of a network through sequences of one batch; ``parts`` is what the backward pass needs.

    ``clock``, a `timing.clock.Clock`, is read around the kernels; ``seconds``: what they took so far.
    """

    def __init__(self, pool: BufferPool, threads: int, network: Network, x: Floats, way: Way, clock: Any = None):
        self.pool, self.network, self.way = pool, network, way
        self.recurrence, self.gates = network.recurrence, network.gates
        self.plan = plan = Plan.of(network.structure, network.recurrence, way.ring is not None)
        self.x, self.dtype = x, network.strengths.dtype
        self.batch, self.steps, _ = x.shape
        self.count, self.columns = shape_of(self.batch, self.steps, self.recurrence.n_memory > 0)
        self.tiles = -(-self.batch // self.columns)
        self.threads = min(threads, self.tiles)
        self.values = network.strengths[plan.edges]
        self.weight, self.bias = (scale[plan.kept] for scale in network.scales)
        self.code = CODES[self.recurrence.neuron]
        self.n_saved, self.numbers = len(plan.cells), KERNELS.cells.SAVED[self.code]
        self.n_outputs = len(plan.outputs) - self.recurrence.n_memory
        self.run, self.run_back = KERNELS.recurrent.make(self.count)
        self.parts: list[Part] = []
        self.clock, self.seconds = clock, 0.0

    def timed(self, kernel: Any, *arguments: Any) -> None:
        """Run a kernel, and add its seconds."""
        clock = self.clock
        if clock is None:
            kernel(*arguments)
            return
        start = clock.read()
        kernel(*arguments)
        self.seconds += clock.read() - start - clock.overhead

    def tiled(self, state: Floats) -> Floats:
        """A state (batch, n_state) as the kernels have it."""
        if self.columns == self.batch:
            return np.array(state.T, order="C").reshape(1, -1)
        out = np.zeros((self.tiles * self.columns, self.recurrence.n_state), self.dtype)
        out[: self.batch] = state
        tiles = out.reshape(self.tiles, self.columns, -1).transpose(0, 2, 1)
        return np.ascontiguousarray(tiles).reshape(self.tiles, -1)

    def flat(self, tiled: Floats) -> Floats:
        """The reverse of `tiled`."""
        if self.columns == self.batch:
            return np.ascontiguousarray(tiled.reshape(-1, self.columns).T)
        tiles = tiled.reshape(self.tiles, -1, self.columns).transpose(0, 2, 1)
        return np.ascontiguousarray(tiles.reshape(self.tiles * self.columns, -1)[: self.batch])

    def part(self, first: int, steps: int, state: Floats) -> Part:
        """The steps from ``first`` on, before they are run."""
        table = np.ascontiguousarray(self.x[:, first : first + steps])
        lengths = np.zeros(self.tiles * self.columns, np.int32)
        given = self.way.lengths
        lengths[: self.batch] = table.shape[1] if given is None else np.clip(given - first, 0, table.shape[1])
        return Part(first, table, lengths, state.copy(), None, None, None)

    def forward(self, part: Part, state: Floats) -> Floats:
        """Run a part: its outputs (batch, steps, n_outputs); ``state`` becomes that after it."""
        plan, steps = self.plan, part.table.shape[1]
        size = self.tiles * -(-steps // (self.count // self.columns)) * self.count
        n = size * plan.n
        memory = self.pool.aligned(2 * n + size * self.n_saved * self.numbers, self.dtype)
        part.x, part.m, part.saved = memory[:n], memory[n : 2 * n], memory[2 * n :]
        out = np.zeros((self.batch, steps, self.n_outputs), self.dtype)
        with backend.use_threads(self.threads):
            self.timed(
                *(self.run, self.code, self.columns, plan.inputs, plan.column, part.table, part.lengths, plan.order),
                *(plan.indptr, plan.indices, self.values, plan.first_linear, self.weight, self.bias),
                *(plan.kind, plan.slope, plan.cell_of, plan.saved_at, self.n_saved, self.numbers, self.gates),
                *(plan.outputs, self.recurrence.n_memory, state, part.x, part.m, part.saved, out),
            )
        return out

    def backward(self, part: Part, by_out: Floats, carry: Floats, sums: Sums) -> Floats:
        """Add the gradients of a part to ``sums``; ``carry``: gradient of the state after it, then before it.  Returns
        g, see `kernels.cpu_recurrent`: of all steps where there is a ring."""
        plan, by_x = self.plan, sums.x
        if by_x.size and by_x.shape != part.table.shape:
            by_x = np.zeros_like(part.table)
        size = self.tiles * plan.n * self.count if self.way.ring is None else part.x.size
        g = self.pool.aligned(size, self.dtype)
        with backend.use_threads(self.threads):
            self.timed(
                *(self.run_back, self.code, part.first, self.way.truncate, self.columns, plan.inputs, plan.column),
                part.table,
                *(part.lengths, plan.order, plan.t_indptr, plan.readers, self.network.strengths[plan.t_edge]),
                *(plan.first_linear, self.weight, self.bias, plan.kind, plan.slope, plan.cell_of, plan.saved_at),
                *(self.n_saved, self.numbers, self.gates, plan.column_of, self.recurrence.n_memory, part.state),
                *(part.x, part.m, part.saved, by_out, g, carry, sums.edges, sums.weight, sums.bias, sums.gates, by_x),
            )
        if by_x is not sums.x:
            sums.x[:, part.first : part.first + part.table.shape[1]] = by_x
        return g


class Sums:
    """Gradients that the parts of a sequence add up, tile by tile, in the order of a plan."""

    def __init__(self, made: SequencePass, by_input: bool):
        plan, tiles, dtype = made.plan, made.tiles, made.dtype
        self.edges = np.zeros((tiles, len(plan.readers)), dtype)
        self.weight, self.bias = np.zeros((tiles, plan.n), dtype), np.zeros((tiles, plan.n), dtype)
        self.gates = np.zeros((tiles * made.n_saved, KERNELS.cells.ROWS[made.code] * KERNELS.cells.COUNT), dtype)
        self.x = np.zeros(made.x.shape if by_input else (0, 0, 0), dtype)

    def of_all(self, made: SequencePass) -> tuple[Floats, Floats, Floats, Floats]:
        """Those of the strengths (n_edges,), weights and biases (n,) and gates (rows, n_hidden) of the network."""
        plan, topology, dtype = made.plan, made.network.structure.topology, made.dtype
        found = np.zeros(topology.n_edges, dtype), *np.zeros((2, topology.n_neurons), dtype), np.zeros_like(made.gates)
        made.timed(
            *(
                KERNELS.recurrent.add_up,
                made.tiles,
                self.edges,
                plan.t_edge,
                self.weight,
                self.bias,
                plan.kept,
                self.gates,
                plan.cells,
                *found,
            )
        )
        return found
