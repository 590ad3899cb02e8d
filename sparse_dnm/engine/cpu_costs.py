"""What a step costs on the CPU: the counts that its seconds depend on, and its bytes (DESIGN, section 3)."""

from __future__ import annotations

import numpy as np

from sparse_dnm.checks import CPU
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.buffers import CACHE_LINE, footprint
from sparse_dnm.engine.cpu_blocks import LANES, Covering
from sparse_dnm.engine.cpu_structure import CpuStructure, Floats
from sparse_dnm.engine.schedule import tile_width, tiles_of

KERNELS = backend.kernels(CPU)
GROUP = 8  # neighbouring inputs that are read together
FAR = 256  # edges that the backward pass may visit before an edge's neighbour in memory has left the first cache


def features(structure: CpuStructure, executor: str, parts: int) -> Floats:
    """1 call; executed inputs, and those of them that are read alone; executed neurons that are neither inputs nor
    outputs; executed edges, and those whose neighbour in memory the backward pass has left far behind; outputs;
    executed neurons that are no inputs, times thousands of them; for ``wavefront`` levels, and cache lines of the
    edges' gradients that go from a thread to another, if levels are cut into so many ``parts``.

    ``blocks``: 1 call; inputs that are computed, and those outside strips; other neurons that are; edges; levels;
    blocks; groups of neurons that are computed side by side; these neurons, and these blocks, times thousands of them.
    """
    s, t = structure.schedule, structure.topology
    if executor == "blocks":
        return Covering.of(structure).counts(s)
    n_outputs = len(t.outputs) - int(np.isin(t.outputs, t.inputs).sum())
    visit = np.empty(t.n_edges, np.int32)
    counts = [
        1,
        len(s.inputs),
        KERNELS.lone_inputs(s.inputs, s.column, GROUP),
        len(s.order) - n_outputs,
        len(t.t_edges),
        KERNELS.far_edges(s.sequence_of(executor), s.inputs, t.indptr, t.live, t.t_indptr, t.t_edges, FAR, visit),
        n_outputs,
        len(s.order) ** 2 / 1000,
    ]
    if executor == "wavefront":
        counts += [len(s.waves) - 1, _moved_lines(structure, parts)]
    return np.array(counts, float)


def _moved_lines(structure: CpuStructure, parts: int) -> int:
    """See `kernels.cpu_cost.moved_lines`."""
    s, t, per_line = structure.schedule, structure.topology, CACHE_LINE // structure.neurons.slope.dtype.itemsize
    writer, bits = np.empty(-(-t.n_edges // per_line), np.int32), per_line.bit_length() - 1
    found: int = KERNELS.moved_lines(s.order, s.waves, s.inputs, t.t_indptr, t.t_edges, parts, bits, writer)
    return found


def step_bytes(structure: CpuStructure, batch: int, train: bool, by_blocks: bool) -> int:
    """Bytes of the arrays of a step, by blocks or else by columns."""
    s, t, neurons = structure.schedule, structure.topology, structure.neurons
    size = neurons.slope.dtype.itemsize
    graph = (t.indptr, t.inputs, t.outputs, t.levels, t.order, t.live, t.t_indptr)
    order = (s.executed, s.column, s.waves, s.column_of, s.sequence if t.ascending else s.order[:0])
    scales = neurons.kind.nbytes + neurons.slope.nbytes + 2 * t.n_neurons * size
    tables = batch * (len(t.inputs) + len(t.outputs) * (2 if train else 1)) * size  # inputs, outputs, their gradients
    total: int = sum(array.nbytes for array in (*graph, *order)) + scales + tables
    if by_blocks:
        covering = Covering.of(structure)
        lanes = footprint((batch * t.n_neurons + LANES) * size, aligned=True)  # of every neuron
        total += (5 if train else 3) * lanes + (2 * footprint(t.n_neurons * size) if train else 0)
        total += 2 * footprint((len(covering.graph.values["order"]) + LANES) * size, aligned=True)  # weights and biases
        total += 0 if train else 2 * t.n_neurons * size  # and a copy of them
        total += covering.bytes_of_neurons() + _blocks_bytes(structure, covering.n_blocks, train)
    else:
        lanes = footprint(tiles_of(batch) * tile_width(batch) * t.n_neurons * size, aligned=True)
        total += (3 if train else 2) * lanes + (2 * footprint(tiles_of(batch) * t.n_neurons * size) if train else 0)
    return total + _edges_bytes(structure, t.n_edges, batch, train, by_blocks)


def edge_bytes(structure: CpuStructure, batch: int, train: bool, by_blocks: bool) -> float:
    """Its source, its strength, its place in the transpose, its gradients; by blocks also its place in them, and what
    it has of the blocks' numbers on average."""
    n = max(structure.n_edges, 1)
    total = _edges_bytes(structure, n, batch, train, by_blocks)
    if by_blocks:
        total += _blocks_bytes(structure, Covering.of(structure).n_blocks, train)
    return total / n


def _edges_bytes(structure: CpuStructure, n: int, batch: int, train: bool, by_blocks: bool) -> int:
    """Bytes of n edges."""
    size = structure.neurons.slope.dtype.itemsize
    total = footprint(4 * n) + footprint(size * n) + footprint(8 * n)
    if by_blocks:
        total += Covering.of(structure).place.itemsize * n + (0 if train else size * n)  # and a copy of the strengths
    if train:
        total += footprint((1 if by_blocks else tiles_of(batch)) * n * size, aligned=True)
    return total


def _blocks_bytes(structure: CpuStructure, n: int, train: bool) -> int:
    """Bytes of n blocks: their first sources, their strengths, the gradients of these."""
    lanes = footprint(n * LANES * structure.neurons.slope.dtype.itemsize, aligned=True)
    return 4 * n + (2 if train else 1) * lanes
