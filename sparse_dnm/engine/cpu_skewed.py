"""Passes of a recurrent network through a few long sequences on the CPU, neurons of all levels side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.engine.buffers import BufferPool
from sparse_dnm.engine.cpu_recurrent import KERNELS, Part, Plan, SequencePass, Sums
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.recurrence import Network, Way

LANES: int = KERNELS.cells.COUNT
COUNT = 8  # numbers of a neuron in a block
MOST_COLUMNS, LEAST_BLOCKS = 4, 2  # of those that run this way


def may_skew(batch: int, steps: int, n_memory: int, truncate: int) -> bool:
    """Whether sequences are few, of several blocks, and only states are handed on, along the whole of them."""
    few = batch <= MOST_COLUMNS and batch * steps >= COUNT * LEAST_BLOCKS
    return few and not n_memory and not truncate


def is_skewed(network: Network, way: Way, batch: int, steps: int) -> bool:
    """Whether sequences run this way: `may_skew`, and some executed neurons have a state."""
    if not may_skew(batch, steps, network.recurrence.n_memory, way.truncate):
        return False
    return len(Plan.of(network.structure, network.recurrence, way.ring is not None).cells) > 0


class Groups:
    """The cells of a plan in groups of so many as have lanes for ``columns``, ascending by level.

    members  int32 (groups * slots,): neurons of the plan, -1 where there are no more
    ranks    int64 (cells,): place in ``members`` of each executed cell, in the order of `Plan.cells`
    level    int64 of each neuron; lowest, highest int64 (groups,): of the groups; depth: the highest of all
    states, gates  int64 (groups, numbers * LANES): for each lane the places of its numbers in a state of one tile, and
                   in the gates; -1: none
    """

    def __init__(self, plan: Plan, levels: NDArray[np.int32], columns: int):
        self.level = levels[plan.kept].astype(np.int64)
        cells, slots = np.flatnonzero(plan.cell_of >= 0), LANES // columns
        order = np.argsort(self.level[cells], kind="stable")
        self.n = -(-len(cells) // slots)
        self.members = np.full(self.n * slots, -1, np.int32)
        self.members[: len(cells)] = cells[order]
        self.ranks = np.empty(len(cells), np.int64)
        self.ranks[order] = np.arange(len(cells))
        of_group = self.level[cells[order]]
        self.lowest = of_group[::slots].copy()
        self.highest = of_group[np.minimum(np.arange(1, self.n + 1) * slots, len(cells)) - 1]
        self.depth = int(self.level.max(initial=0))
        which = np.where(self.members >= 0, plan.cell_of[self.members], -1).repeat(columns)  # of each lane
        column, n, recurrence = (
            np.tile(np.arange(columns), len(self.members)),
            len(plan.recurrence.cells),
            plan.recurrence,
        )

        def by_group(parts: list[Any]) -> NDArray[np.int64]:
            places = np.stack([np.where(which >= 0, part, -1) for part in parts]).reshape(-1, self.n, LANES)
            return np.ascontiguousarray(places.transpose(1, 0, 2)).reshape(self.n, -1)

        self.states = by_group([(k * n + which) * columns + column for k in range(recurrence.n_state // n)])
        self.gates = by_group([k * n + which for k in range(recurrence.n_gates)])
        self.there = self.states >= 0
        self.to = self.states[self.there]
        self._rows: dict[int, tuple[NDArray[np.int64], int]] = {}

    def rows(self, blocks: int) -> tuple[NDArray[np.int64], int]:
        """Where the rows of each group begin that are kept, one for each stage in which a neuron of it runs; and how
        many there are."""
        if blocks not in self._rows:
            ends = np.cumsum(self.highest - self.lowest + blocks)
            self._rows = {blocks: (np.concatenate([np.zeros(1, np.int64), ends[:-1]]), int(ends[-1]))}
        return self._rows[blocks]

    @staticmethod
    def of(plan: Plan, levels: NDArray[np.int32], columns: int) -> Groups:
        """Those of a plan; made once."""
        found: Groups | None = plan.groups.get(columns)
        if found is None:
            plan.groups[columns] = found = Groups(plan, levels, columns)
        return found


class SkewedPass(SequencePass):
    """A `SequencePass` whose levels run one block of steps behind each other."""

    def __init__(self, pool: BufferPool, threads: int, network: Network, x: Floats, way: Way, clock: Any = None):
        super().__init__(pool, threads, network, x, way, clock)
        self.count = COUNT
        self.run, self.run_back = KERNELS.skewed.make(COUNT)
        self.groups = groups = Groups.of(self.plan, network.structure.topology.levels, self.columns)
        self.numbers += 1  # the values
        self.lane_gates = self._packed(self.gates, groups.gates)
        self.lane_lengths = np.zeros(LANES, np.int32)
        self.block = COUNT // self.columns  # steps

    @staticmethod
    def _packed(numbers: Floats, places: NDArray[np.int64]) -> Floats:
        """Numbers by their ``places``, 0 where there are none."""
        flat = np.zeros(numbers.size + 1, numbers.dtype)
        flat[:-1] = numbers.ravel()
        return flat[places]

    def _unpacked(self, packed: Floats, state: Floats) -> None:
        """The numbers of groups, into a ``state`` of one tile."""
        state[0, self.groups.to] = packed[self.groups.there]

    def forward(self, part: Part, state: Floats) -> Floats:
        """See `SequencePass.forward`."""
        plan, groups, steps = self.plan, self.groups, part.table.shape[1]
        blocks = -(-steps // self.block)
        n, (rows, all_rows) = blocks * COUNT * plan.n, groups.rows(blocks)
        memory = self.pool.aligned(2 * n + all_rows * self.numbers * self.block * LANES, self.dtype)
        part.x, part.m, part.saved = memory[:n], memory[n : 2 * n], memory[2 * n :]
        out, packed = np.zeros((self.batch, steps, self.n_outputs), self.dtype), self._packed(state, groups.states)
        self.timed(
            *(
                self.run,
                self.code,
                self.columns,
                plan.inputs,
                plan.column,
                part.table,
                part.lengths,
                plan.order,
                plan.indptr,
            ),
            *(plan.indices, self.values, plan.first_linear, self.weight, self.bias, plan.kind, plan.slope),
            *(plan.cell_of, groups.members, groups.level, groups.lowest, groups.highest, rows, groups.depth),
            *(self.numbers, self.lane_gates, plan.outputs, packed, part.x, part.m, part.saved, self.lane_lengths),
            out,
        )
        self._unpacked(packed, state)
        return out

    def backward(self, part: Part, by_out: Floats, carry: Floats, sums: Sums) -> Floats:
        """See `SequencePass.backward`."""
        plan, groups, by_x = self.plan, self.groups, sums.x
        if by_x.size and by_x.shape != part.table.shape:
            by_x = np.zeros_like(part.table)
        g, scratch = self.pool.aligned(part.x.size, self.dtype), np.empty(self.block * LANES, self.dtype)
        rows, _ = groups.rows(-(-part.table.shape[1] // self.block))
        packed, found = self._packed(carry, groups.states), np.zeros_like(self.lane_gates)
        self.timed(
            *(
                self.run_back,
                self.code,
                self.columns,
                plan.inputs,
                plan.column,
                part.table,
                part.lengths,
                plan.order,
                plan.t_indptr,
            ),
            *(plan.readers, self.network.strengths[plan.t_edge], plan.first_linear, self.weight, self.bias, plan.kind),
            *(plan.slope, groups.members, groups.level, groups.lowest, groups.highest, rows, groups.depth),
            *(self.numbers, self.lane_gates, plan.column_of, self._packed(part.state, groups.states)),
            *(part.x, part.m, part.saved),
            *(self.lane_lengths, by_out, g, scratch, packed, sums.edges[0], sums.weight[0], sums.bias[0], found, by_x),
        )
        self._unpacked(packed, carry)
        lanes = found.reshape(groups.n, -1, LANES // self.columns, self.columns).transpose(0, 2, 1, 3)
        lanes = lanes.reshape(len(groups.members), -1, self.columns)[groups.ranks]  # (cells, rows, columns)
        sums.gates.reshape(self.n_saved, -1, LANES)[:, :, : self.columns] += lanes
        if by_x is not sums.x:
            sums.x[:, part.first : part.first + part.table.shape[1]] = by_x
        return g
