"""The engine of executor ``torch-sparse``: a DAG level by level through torch-sparse's products and torch's autograd.

It shares no kernel and no gradient with the other engines: it is used to check them, and as a peer in benchmarks.
It runs on torch's threads.

Neurons are sorted in the order of execution, levels 0 .. D.  Level 0, mostly inputs, sends its messages to all
other levels in one product.  Before level t + 1, one product sends the messages of the low(t) levels before it to the
low(t) levels from it on, low(t) being the lowest set bit of t.  An edge from level a + 1 to level b + 1 falls into
exactly one of these products, the t <= b that has the highest bit in which a and b differ as its lowest.  So each
level costs one product over consecutive neurons, without gathering, and messages are copied log2 D times at most:
blocked substitution, as for a triangular matrix.

The weight of a neuron multiplies the values of the edges it reads, its bias is what its sum starts from: then
z = w x + b costs nothing of size (neurons, batch).
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sparse_dnm.checks import require_torch_sparse
from sparse_dnm.engine.base import Engine, Gradients, Ring
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.engine.cpu_structure import CpuStructure, Floats
from sparse_dnm.engine.device import LEAKY, LOGISTIC, SILU, TANH
from sparse_dnm.engine.schedule import Schedule

ACTIVATIONS: dict[int, Callable[[Tensor, float], Tensor]] = {
    LEAKY: lambda z, slope: z if slope == 1 else F.leaky_relu(z, slope),
    LOGISTIC: lambda z, _: torch.sigmoid(z),
    TANH: lambda z, _: torch.tanh(z),
    SILU: lambda z, _: F.silu(z),
}


@dataclass(frozen=True)
class Block:
    """Edges from one range of neurons to a later one, in the arrays that torch-sparse's product takes.

    All int64: rowptr (rows + 1,), row and col (edges,), colptr (columns + 1,), csr2csc (edges,).
    """

    row: Tensor
    rowptr: Tensor
    col: Tensor
    colptr: Tensor
    csr2csc: Tensor

    def product(self, values: Tensor, messages: Tensor) -> Tensor:
        """Sums (rows, batch) of value * message, differentiable: the operator behind ``SparseTensor @ messages``."""
        indices = (self.row, self.rowptr, self.col)
        sums: Tensor = torch.ops.torch_sparse.spmm_sum(*indices, values, self.colptr, self.csr2csc, messages)
        return sums


class Layout:
    """Index arrays of a schedule's live neurons and of their edges, in the order of execution.

    Neurons that read z (``neurons.first_linear`` on) come last: they are the outputs.  In a level, inputs come first
    and neurons of one activation are adjacent.
    """

    def __init__(self, structure: CpuStructure):
        require_torch_sparse()
        neurons = structure.neurons
        self.topology = topology = structure.topology
        n = topology.n_neurons
        live = np.flatnonzero(topology.live)
        levels = topology.levels.astype(np.int64)
        levels[neurons.first_linear :] = n  # after all others
        no_input = np.ones(n, np.bool_)
        no_input[topology.inputs] = False
        by = (neurons.slope, neurons.kind, no_input, levels)
        order = live[np.lexsort([key[live] for key in by])]
        self.depth = int(levels[order].max(initial=0, where=order < neurons.first_linear))
        self.starts = np.searchsorted(levels[order], np.arange(self.depth + 2)).tolist()
        self.n_summed = self.starts[-1]
        n_inputs, n_first = int(np.count_nonzero(~no_input[live])), self.starts[1]
        self.parts = [n_inputs, n_first - n_inputs, self.n_summed - n_first, len(order) - self.n_summed]
        self.activations: list[list[tuple[int, float, int]]] = [[] for _ in range(self.depth + 1)]
        runs = _runs(levels[order], neurons.kind[order], neurons.slope[order])
        for level, kind, slope, length in runs:
            if level <= self.depth:
                self.activations[level].append((kind, slope, length))
        position = np.full(n, -1)
        position[order] = np.arange(len(order))
        column = np.empty(n, np.int64)
        column[topology.inputs] = np.arange(len(topology.inputs))
        self.neurons = torch.from_numpy(order)
        self.columns = torch.from_numpy(column[order[:n_inputs]])
        self.outputs = torch.from_numpy(position[topology.outputs] - (self.n_summed if self.parts[-1] else 0))
        self._cut(order, position, levels)

    def _cut(self, order: NDArray[np.int64], position: NDArray[np.int64], levels: NDArray[np.int64]) -> None:
        """Sort the edges by the product they belong to, and index those of each."""
        counts = np.diff(self.topology.indptr)[order]
        readers = np.repeat(np.arange(len(order)), counts)
        edges = np.arange(len(readers)) + np.repeat(self.topology.indptr[order] - np.cumsum(counts) + counts, counts)
        sources = position[self.topology.indices[edges]]
        assert (sources < self.n_summed).all(), "no neuron may read one from first_linear on"
        assert (self.outputs >= 0).all(), "all outputs must read z, or none"
        a, b = levels[order[sources]] - 1, levels[order[readers]] - 1
        bits = np.frexp(a ^ b)[1] - 1
        last = self.depth + 1  # a product of its own for neurons that read z
        products = np.where(a < 0, 1, ((b >> bits) << bits) + 1)
        products[readers >= self.n_summed] = last
        place = np.argsort(products, kind="stable")
        edges, readers, sources, products = (v[place] for v in (edges, readers, sources, products))
        by_source = np.argsort(products * len(order) + sources, kind="stable")
        bounds = np.searchsorted(products, np.arange(last + 2)).tolist()
        self.edges, self.readers = torch.from_numpy(edges), torch.from_numpy(readers)
        self.blocks: list[Block | None] = []
        for level, (begin, end) in enumerate(itertools.pairwise(bounds)):
            if begin == end:
                self.blocks.append(None)
                continue
            low = (level - 1) & -(level - 1)
            first = self.starts[level - low] if 1 < level < last else 0
            middle = self.starts[level]
            stop = len(order) if level == last else self.starts[min(level + low, last) if low else last]
            row, col, csr2csc = readers[begin:end] - middle, sources[begin:end] - first, by_source[begin:end] - begin
            rowptr = np.searchsorted(row, np.arange(stop - middle + 1))
            colptr = np.searchsorted(col[csr2csc], np.arange(middle - first + 1))
            self.blocks.append(Block(*(torch.from_numpy(v) for v in (row, rowptr, col, colptr, csr2csc))))
        self.sizes = np.diff(bounds).tolist()


def _runs(*columns: NDArray[Any]) -> list[tuple[Any, ...]]:
    """Run-length encoding of the rows of a table: each row of a run once, with the length of the run."""
    changes = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    starts = np.flatnonzero(np.concatenate([[True], changes]))
    lengths = np.diff(starts, append=len(columns[0]))
    return list(zip(*(column[starts].tolist() for column in columns), lengths.tolist(), strict=True))


def _activate(z: Tensor, runs: list[tuple[int, float, int]]) -> Tensor:
    """Messages (neurons, batch) of a level."""
    if len(runs) == 1:
        kind, slope, _ = runs[0]
        return ACTIVATIONS[kind](z, slope)
    parts = zip(z.split([length for *_, length in runs]), runs, strict=True)
    return torch.cat([z[:0], *(ACTIVATIONS[kind](part, slope) for part, (kind, slope, _) in parts)])


_layouts: weakref.WeakKeyDictionary[Schedule, Layout] = weakref.WeakKeyDictionary()


def _layout(structure: CpuStructure) -> Layout:
    """The layout of the structure's schedule, made at its first call."""
    layout = _layouts.get(structure.schedule)
    if layout is None or layout.topology is not structure.topology:
        layout = _layouts[structure.schedule] = Layout(structure)
    return layout


@dataclass(eq=False, slots=True)
class SavedGraph:
    """What a forward pass saves: torch's graph from the leaves x, strengths, weight and bias to the outputs."""

    batch: int
    leaves: list[Tensor]
    out: Tensor
    seconds: float = math.nan


class TorchSparseEngine(CpuEngine):
    """The engine of the CPU, but passes over the DAG are torch-sparse's products and torch's own autograd."""

    fused = False
    infer, outputs = Engine.infer, Engine.outputs

    def serves(self, device: torch.device) -> bool:
        """See `Engine.serves`."""
        return device.type == "cpu" and self.executor.name == "torch-sparse"

    def forward(
        self, structure: CpuStructure, strengths: Floats, x: Floats, scales: tuple[Floats, Floats], clock: Any = None
    ) -> tuple[Floats, Any]:
        """See `Engine.forward`."""
        leaves = [torch.from_numpy(a).detach().requires_grad_() for a in (x, strengths, *scales)]
        with torch.enable_grad():
            out = _outputs(_layout(structure), *leaves)
        return out.detach().numpy(), SavedGraph(len(x), leaves, out)

    def backward(
        self, structure: CpuStructure, strengths: Floats, saved: Any, gradient: Floats, clock: Any = None
    ) -> Gradients:
        """See `Engine.backward`; g is the gradient of the input."""
        found = torch.autograd.grad(
            saved.out, saved.leaves, torch.from_numpy(gradient), retain_graph=True, allow_unused=True
        )
        filled = (torch.zeros_like(p) if g is None else g for g, p in zip(found, saved.leaves, strict=True))
        by_input, strengths_, weight, bias = (t.numpy() for t in filled)
        return Gradients(strengths_, weight, bias, by_input, math.nan)

    def input_gradient(self, structure: CpuStructure, saved: Any, gradients: Gradients, n_columns: int) -> Floats:
        """See `Engine.input_gradient`."""
        return gradients.g

    def ring_gradient(self, ring: Ring, saved: Any, gradients: Gradients, strengths: Floats, x: Floats) -> Floats:
        """Refused: torch-sparse's products do not compute messages of neurons that reach no output."""
        raise ValueError("kappa is for the kernels; with executor='torch-sparse' set kappa=0")


def _outputs(layout: Layout, x: Tensor, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Outputs (batch, n_outputs) of x (batch, n_inputs); values of the edges, weight and bias (n,) of all neurons."""
    starts = layout.starts
    z = bias.index_select(0, layout.neurons).unsqueeze(1)
    factors = weight.index_select(0, layout.neurons)
    inputs = x.t().index_select(0, layout.columns)
    inputs = inputs * factors[: len(inputs)].unsqueeze(1)
    values = values.index_select(0, layout.edges) * factors.index_select(0, layout.readers)
    of_product = values.split(layout.sizes)
    activated = []

    def activate(level: int, sums: Tensor) -> Tensor:
        """Messages of a level, given its sums."""
        activated.append(sums)
        return _activate(sums, layout.activations[level])

    def receive(level: int, sums: Tensor, messages: Tensor) -> Tensor:
        """Sums with those of the product of ``level`` added."""
        block = layout.blocks[level]
        return sums if block is None else sums + block.product(of_product[level], messages)

    def substitute(level: int, height: int, sums: Tensor) -> list[Tensor]:
        """Messages of 2**height levels, given the sums over their sources before them."""
        if height == 0:
            return [activate(level, sums)]
        middle = level + (1 << (height - 1))
        if middle > layout.depth:
            return substitute(level, height - 1, sums)
        size = starts[middle] - starts[level]
        near, far = sums.split([size, len(sums) - size])
        parts = substitute(level, height - 1, near)
        messages = torch.cat(parts) if len(parts) > 1 else parts[0]
        return [messages, *substitute(middle, height - 1, receive(middle, far, messages))]

    fed, unfed, rest, linear = z.split(layout.parts)
    first = inputs + fed
    if len(unfed):
        first = torch.cat([first, unfed.expand(-1, len(x))])
    messages = activate(0, first)
    if layout.depth > 0:
        substitute(1, (layout.depth - 1).bit_length(), receive(1, rest, messages))
    out = torch.cat(activated)
    if layout.parts[-1]:
        out = receive(layout.depth + 1, linear, out).expand(-1, len(x))
    return out.index_select(0, layout.outputs).t().contiguous()
