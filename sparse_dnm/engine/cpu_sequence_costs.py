"""What a step of a recurrent network costs on the CPU: counts that its seconds depend on, and its bytes (DESIGN, 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_dnm.engine.buffers import footprint
from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cpu_recurrent import KERNELS, Plan, shape_of
from sparse_dnm.engine.cpu_skewed import COUNT as SKEWED_COUNT
from sparse_dnm.engine.cpu_skewed import LANES, Groups, may_skew
from sparse_dnm.engine.cpu_structure import CpuStructure, Floats
from sparse_dnm.engine.recurrence import STATES, Unrolling
from sparse_dnm.engine.schedule import tile_width

CODES = KERNELS.cells
PART = 128  # time steps that are run at once where nothing is kept


class Shape(NamedTuple):
    """How the sequences of a batch lie in memory: ``tiles`` of ``columns``, ``numbers`` of a neuron in a block,
    ``blocks`` of a tile, as many as run at once; ``skewed``: see `cpu_skewed`."""

    tiles: int
    columns: int
    numbers: int
    blocks: int
    skewed: bool

    @staticmethod
    def of(batch: int, unrolling: Unrolling, train: bool) -> Shape:
        """That of a step."""
        u, together = unrolling, unrolling.steps
        if not train:
            together = min(together, PART)
        elif u.every:
            together = min(together, u.every)
        skewed = may_skew(batch, u.steps, u.n_memory, u.truncate) and STATES[u.neuron] > 0
        count, columns = shape_of(batch, u.steps, u.n_memory > 0)
        if skewed:
            count, columns = SKEWED_COUNT, tile_width(batch)
        return Shape(-(-batch // columns), columns, count, -(-together // (count // columns)), skewed)


def stages_of(structure: CpuStructure, unrolling: Unrolling, shape: Shape) -> tuple[int, int]:
    """Groups of neurons with a state that are computed together, and stages that they have beside one for each block,
    because their neurons are of several levels: see `cpu_skewed`; 0 and 0 where there are no such neurons."""
    plan = Plan.of(structure, unrolling.recurrence(structure), False)
    if not (shape.skewed and len(plan.cells)):
        return 0, 0
    groups = Groups.of(plan, structure.topology.levels, shape.columns)
    return groups.n, int((groups.highest - groups.lowest).sum())


def features(structure: CpuStructure, batch: int, unrolling: Unrolling) -> Floats:
    """1 call; executed inputs; executed neurons that are neither inputs nor outputs; executed edges; outputs;
    executed neurons that are no inputs, times thousands of them.

    Where levels run behind each other (`cpu_skewed`), instead of the last: levels; groups of neurons with a state that
    are computed together, those whose neurons are of several levels for the longer time that takes them.
    """
    s, t = structure.schedule, structure.topology
    n_outputs = len(t.outputs) - int(np.isin(t.outputs, t.inputs).sum())
    counts = [1.0, len(s.inputs), len(s.order) - n_outputs, len(t.t_edges), n_outputs]
    shape = Shape.of(batch, unrolling, True)
    if not shape.skewed:
        return np.array([*counts, len(s.order) ** 2 / 1000], float)
    groups, more = stages_of(structure, unrolling, shape)
    return np.array([*counts, t.depth, groups + more / shape.blocks], float)


class Counts(NamedTuple):
    """What the bytes of a step depend on: all edges and executed ones, executed inputs, other executed neurons but for
    the outputs, levels, and rows of ``saved`` that these add (`cpu_skewed`)."""

    edges: float
    live: float
    inputs: float
    hidden: float
    levels: float
    rows: float


def counts_of(structure: CpuStructure, unrolling: Unrolling, shape: Shape) -> Counts:
    """Those of a structure."""
    s, t = structure.schedule, structure.topology
    hidden = len(s.executed) - len(s.inputs) - len(t.outputs) + int(np.isin(t.outputs, t.inputs).sum())
    _, rows = stages_of(structure, unrolling, shape)
    return Counts(t.n_edges, len(t.t_edges), len(s.inputs), hidden, t.depth, rows)


def step_bytes(structure: CpuStructure, batch: int, train: bool, unrolling: Unrolling) -> int:
    """Bytes of the arrays of a step; see `Engine.sequence_bytes`."""
    shape = Shape.of(batch, unrolling, train)
    return round(_bytes(structure, counts_of(structure, unrolling, shape), shape, batch, train, unrolling))


def byte_prices(structure: CpuStructure, batch: int, train: bool, unrolling: Unrolling) -> tuple[float, Prices]:
    """Bytes of an edge, and what one that is executed, an executed input, another neuron and a level have more, each on
    average."""
    shape = Shape.of(batch, unrolling, train)
    counts = counts_of(structure, unrolling, shape)
    whole = _bytes(structure, counts, shape, batch, train, unrolling)

    def each(*names: str) -> float:
        number = max(getattr(counts, names[0]), 1)
        if getattr(counts, names[0]) == 0:
            return _bytes(structure, counts._replace(**{names[0]: 1}), shape, batch, train, unrolling) - whole
        without = counts._replace(**dict.fromkeys(names, 0))
        return (whole - _bytes(structure, without, shape, batch, train, unrolling)) / number

    return each("edges"), Prices(each("live"), each("inputs"), each("hidden"), each("levels", "rows"))


def _bytes(
    structure: CpuStructure, counts: Counts, shape: Shape, batch: int, train: bool, unrolling: Unrolling
) -> float:
    """Bytes of a step of these counts."""
    size, n_all = structure.neurons.slope.dtype.itemsize, structure.topology.n_neurons
    n_inputs, n_outputs = len(structure.topology.inputs), len(structure.topology.outputs)
    code, u = _code(unrolling.neuron), unrolling
    n, rows, cells = counts.inputs + counts.hidden + n_outputs, CODES.ROWS[code] * LANES, bool(STATES[u.neuron])
    n_cells, tables = counts.hidden * cells, batch * u.steps * size
    # the graph and its order, its executed part, and the scales of all neurons
    total: float = 31 * n_all + 4 * n_inputs + 8 * n_outputs + 2 * size * n_all
    total += (12 + size) * counts.edges + 8 * counts.levels
    total += (24 + size) * counts.live + (41 + 3 * size) * n + 4 * n_inputs + 8 * n_cells
    # inputs, outputs, and their gradients
    total += tables * (n_inputs - u.n_memory) + tables * (n_outputs - u.n_memory) * (2 if train else 1)
    parts = -(-u.steps // u.every) if train and u.every else 1  # each has its own inputs and its first state
    total += tables * (n_inputs - u.n_memory) * (parts > 1)
    state = size * (STATES[u.neuron] * (n_all - n_inputs - n_outputs) + u.n_memory)
    total += shape.tiles * shape.columns * (parts * (4 + state) + (4 if train else 3) * state)
    if shape.skewed:  # gates and states by lane
        total += n_cells * shape.columns * (8 + (3 if train else 1) * size) * (u.n_gates + STATES[u.neuron])
    total += _activations(counts, n, n_cells, shape, size, u, code, train)
    if not train:
        return total
    total += shape.tiles * size * (counts.live + 2 * n + n_cells * rows)  # sums
    total += size * (counts.live + counts.edges + 2 * n_all + n_cells * u.n_gates)
    return total


def _code(neuron: str) -> int:
    found: dict[str, int] = {"memoryless": CODES.MEMORYLESS, "lstm": CODES.LSTM, "gru": CODES.GRU, "ctrnn": CODES.CTRNN}
    return found[neuron]


def _activations(
    counts: Counts, n: float, n_cells: float, shape: Shape, size: int, u: Unrolling, code: int, train: bool
) -> float:
    """Values, messages and what cells keep, of the time steps that are kept at once; and gradients of the values."""
    block, lanes = shape.numbers * size, shape.tiles * shape.blocks * shape.numbers * size
    numbers, kept = CODES.SAVED[code], 0.0
    if shape.skewed:
        slots = LANES // shape.columns
        stages = -(-n_cells // slots) * shape.blocks + counts.rows
        kept = stages * (numbers + 1) * (shape.numbers // shape.columns) * LANES * size
    else:
        kept = lanes * n_cells * numbers
    total: Any = footprint(int(2 * lanes * n + kept), aligned=True)
    if train:
        total += footprint(int((lanes if shape.skewed else shape.tiles * block) * n), aligned=True)
    return float(total)
