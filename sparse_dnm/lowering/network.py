"""A network as it is shipped: what every format is written from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch import nn

from sparse_dnm.engine.device import ACTIVATION_CODES
from sparse_dnm.lowering.rows import IDENTITY, Function, Row, Rows
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.model.sparse_dag import SparseDAG, _neurons

LEAKY, LOGISTIC, TANH, SILU = (ACTIVATION_CODES[name][0] for name in ("leaky_relu", "sigmoid", "tanh", "silu"))
assert ACTIVATION_CODES["identity"] == IDENTITY


def activated(z: NDArray[np.float64], kind: NDArray[np.int8], slope: NDArray[np.float64]) -> NDArray[np.float64]:
    """act(z) of cells in the last axis, float64; ``kind`` and ``slope`` as in ACTIVATION_CODES."""
    out = np.where(z > 0, z, slope * z)
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and 1 / infinity is 0
        for code, function in (
            (LOGISTIC, lambda v: 1 / (1 + np.exp(-v))), (TANH, np.tanh), (SILU, lambda v: v / (1 + np.exp(-v))),
        ):  # fmt: skip
            chosen = kind == code
            out[..., chosen] = function(z[..., chosen])
    return out


def _act(z: float, function: Function) -> float:
    kind, slope = function
    return float(activated(np.array([z]), np.array([kind], np.int8), np.array([slope]))[0])


@dataclass(frozen=True, eq=False)
class Folded:
    """A network with its factors folded into edges, without what no output needs.

    Cells are what edges lead from and to.  The first k are inputs: cell = act(scale * x[column] + shift).  The others
    have a row each: cell = act(sum of weight * source + bias), in an order in which sources come before readers.  The
    last n_outputs cells are the outputs, which are read by no row and have no activation.

    n_inputs      columns of x
    n_outputs     columns of the result
    columns       int32 (k,)       column of x that input cell c reads, ascending; a column may have two cells: its
                                   value, and an activation of it
    scale, shift  float64 (k,)     1 and 0 where a cell is the value of its column
    kind, slope   int8, float64 (n_cells,)  activations, coded as in ACTIVATION_CODES; identity for outputs
    indptr        int64 (rows + 1,)  row r is that of cell k + r
    indices       int32 (n_edges,)   source cells, ascending in a row
    weights       float64 (n_edges,)
    bias          float64 (rows,)
    level_starts  int64 (levels + 1,)  cells of level l are level_starts[l] .. level_starts[l + 1] - 1, from cell k
                                   on; no cell reads one of its own level, and the last level are the outputs
    squared       results are squared
    """

    n_inputs: int
    n_outputs: int
    columns: NDArray[np.int32]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    kind: NDArray[np.int8]
    slope: NDArray[np.float64]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    level_starts: NDArray[np.int64]
    squared: bool

    @property
    def n_cells(self) -> int:
        """Input cells, cells of neurons, and outputs."""
        return len(self.kind)

    @property
    def n_edges(self) -> int:
        """Edges."""
        return len(self.indices)

    @property
    def levels(self) -> list[range]:
        """The cells of each level, inputs left out."""
        starts = self.level_starts.tolist()
        return [range(a, b) for a, b in itertools.pairwise(starts)]

    @classmethod
    def of(cls, model: SparseDAG) -> Folded:
        """The network of the present parameters of a SparseDAG on any device.

        A sum without activation dissolves in the sums that read it, where that takes no more edges; constant neurons
        become biases; edges of weight 0, and what reaches no output, are left out.
        Raises ValueError if parameters are not finite.
        """
        refuse_recurrent(model, "the normal form of exports and of prices of a target")
        return _Folding(model).folded()

    def outputs(self, x: Any) -> NDArray[np.float64]:
        """Outputs (..., n_outputs) of x (..., n_inputs) in float64, level by level."""
        x = np.asarray(x, np.float64)
        if x.ndim == 0 or x.shape[-1] != self.n_inputs:
            raise ValueError(f"x has shape {x.shape}; it must be (..., n_inputs={self.n_inputs})")
        out = self.cells(x.reshape(-1, self.n_inputs))[:, self.n_cells - self.n_outputs :]
        return (out * out if self.squared else out).reshape(*x.shape[:-1], self.n_outputs)

    def cells(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values (n, n_cells) of all cells for x (n, n_inputs), float64; outputs are not squared."""
        k, rows = len(self.columns), len(self.bias)
        matrix = sparse.csr_array((self.weights, self.indices, self.indptr), shape=(rows, self.n_cells))
        values = np.zeros((len(x), self.n_cells))
        z = self.scale * x[:, self.columns] + self.shift
        values[:, :k] = activated(z, self.kind[:k], self.slope[:k])
        for level in self.levels:
            here = slice(level.start, level.stop)
            z = (matrix[level.start - k : level.stop - k] @ values.T).T + self.bias[level.start - k : level.stop - k]
            values[:, here] = activated(z, self.kind[here], self.slope[here])
        return values


def unscaled(folded: Folded) -> Folded:
    """The same network with input cells act(x + shift), or act(shift - x), where the activation is a leaky ReLU.

    The size of a factor goes through it, into the edges.  Factors that are next to nothing stay.
    """
    k = len(folded.columns)
    size = np.abs(folded.scale)
    moved = (folded.kind[:k] == LEAKY) & (size > np.abs(folded.shift) * 1e-6) & (size > 1e-30)
    size = np.where(moved, size, 1.0)
    factor = np.ones(folded.n_cells)
    factor[:k] = size
    return replace(
        folded, scale=folded.scale / size, shift=folded.shift / size, weights=folded.weights * factor[folded.indices]
    )


class _Folding:
    """A SparseDAG as rows of cells.  Neuron i has the cells 2 i, its z, and 2 i + 1, its message act(z); of an
    input 2 i is the value of its column.  Output k is cell 2 n + k."""

    def __init__(self, model: SparseDAG) -> None:
        self.model, self.topology = model, model.topology
        n = self.n = model.topology.n_neurons
        functions = model.activation, model.input_neurons, model.linear_outputs
        self.kinds, self.slopes, self.first_linear, weighted = _neurons(model.topology, *functions)
        self.factor, self.bias = np.ones(n), np.zeros(n)
        self.bias[weighted] = numbers_of(model, "bias")
        if model.weight is not None:
            self.factor[weighted] = numbers_of(model, "weight")
        self.edge_weight = numbers_of(model, "edge_weight")
        self.column = {neuron: k for k, neuron in enumerate(self.topology.inputs.tolist())}
        self.outputs = [2 * n + k for k in range(model.n_outputs)]

    def function(self, neuron: int) -> Function:
        """Activation of a neuron."""
        kind, slope = int(self.kinds[neuron]), float(self.slopes[neuron])
        return (kind, slope if kind == LEAKY else 0.0)

    def folded(self) -> Folded:
        """The network in its normal form."""
        rows = Rows(_act)
        for neuron in self.topology.order.tolist():
            if neuron not in self.column and neuron < self.first_linear:
                rows.rows[2 * neuron] = self._row(neuron)
                rows.rows[2 * neuron + 1] = Row({2 * neuron: 1.0}, 0.0, self.function(neuron))
        for output, neuron in zip(self.outputs, self.topology.outputs.tolist(), strict=True):
            if neuron >= self.first_linear:
                rows.rows[output] = self._row(neuron)
            else:
                rows.rows[output] = Row({}, 0.0, IDENTITY)
                self._add(rows.rows[output], neuron, 1.0, linear=True)
        rows.dissolve(self.outputs)
        return self._numbered(rows)

    def _row(self, neuron: int) -> Row:
        """z of a neuron that is no input."""
        row, (start, stop) = Row({}, 0.0, IDENTITY), self.topology.indptr[neuron : neuron + 2].tolist()
        factor = self.factor[neuron]
        for source, weight in zip(self.topology.indices[start:stop], self.edge_weight[start:stop], strict=True):
            self._add(row, int(source), float(factor * weight), linear=neuron >= self.first_linear)
        row.bias += float(self.bias[neuron])
        return row

    def _add(self, row: Row, source: int, weight: float, linear: bool) -> None:
        """Add weight * z of ``source`` to a row if ``linear``, else weight * act(z)."""
        linear = linear or self.function(source) == IDENTITY
        if source not in self.column or not linear:
            row.weights[2 * source + (not linear)] = weight
            return
        row.weights[2 * source] = weight * float(self.factor[source])
        row.bias += weight * float(self.bias[source])

    def _numbered(self, rows: Rows) -> Folded:
        """Rows with their cells numbered by level; input cells by column."""
        levels, first_output = rows.levels(), self.outputs[0]
        read = {source for row in rows.rows.values() for source in row.weights if source not in rows.rows}
        inputs = sorted(read, key=lambda cell: (self.column[cell // 2], cell))
        hidden = sorted((cell for cell in rows.rows if cell < first_output), key=lambda cell: (levels[cell], cell))
        ordered = [*hidden, *self.outputs]
        number = {cell: k for k, cell in enumerate([*inputs, *ordered])}
        edges = [
            sorted((number[source], weight) for source, weight in rows.rows[cell].weights.items()) for cell in ordered
        ]
        functions = [
            *(self.function(c // 2) if c % 2 else IDENTITY for c in inputs),
            *(rows.rows[c].function for c in ordered),
        ]
        scaled = [c // 2 if c % 2 else -1 for c in inputs]
        counts = np.bincount([levels[cell] for cell in hidden], minlength=1)[1:] if hidden else np.zeros(0, np.int64)
        starts = len(inputs) + np.concatenate([[0], np.cumsum([*counts, len(self.outputs)])])
        return Folded(
            self.model.n_inputs, self.model.n_outputs,
            np.array([self.column[c // 2] for c in inputs], np.int32),
            np.array([self.factor[i] if i >= 0 else 1.0 for i in scaled], np.float64),
            np.array([self.bias[i] if i >= 0 else 0.0 for i in scaled], np.float64),
            np.array([kind for kind, _ in functions], np.int8), np.array([slope for _, slope in functions], np.float64),
            np.cumsum([0, *map(len, edges)], dtype=np.int64),
            np.array([source for row in edges for source, _ in row], np.int32),
            np.array([weight for row in edges for _, weight in row], np.float64),
            np.array([rows.rows[cell].bias for cell in ordered], np.float64),
            starts.astype(np.int64), self.model.output == "square",
        )  # fmt: skip


def numbers_of(model: nn.Module, name: str) -> NDArray[np.float64]:
    """A parameter in float64.  Raises ValueError if it is not finite."""
    values: NDArray[np.float64] = getattr(model, name).detach().cpu().double().numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{name}[{bad[0]}] is {values[bad[0]]}; a network is exported with finite parameters: train it again, or "
            "load an earlier checkpoint"
        )
    return values
