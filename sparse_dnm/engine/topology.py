"""Topology: the immutable structure of a directed acyclic graph of neurons, as CSR."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from sparse_dnm.config import check_choice
from sparse_dnm.engine import device as backend

if TYPE_CHECKING:
    import networkx as nx

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
KERNELS = backend.kernels(torch.device("cpu"))
ROWS = ("readers", "sources")  # what a row of a matrix stands for


def canonical_csr(matrix: Any, rows: str = "readers") -> sparse.csr_array:
    """A square scipy sparse matrix as a new CSR matrix whose row i reads column j.

    Duplicates are summed, columns ascend in a row, stored zeros stay.  ``rows``: see `Topology.from_scipy`.
    """
    check_choice("rows", rows, ROWS)
    shape = np.shape(matrix)
    if not sparse.issparse(matrix) or len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{type(matrix).__name__} of shape {shape} must be a square scipy sparse matrix")
    csr = sparse.csr_array(matrix if rows == "readers" else matrix.T, copy=True)
    csr.sum_duplicates()
    return csr


class Topology:
    """A DAG of neurons: row i of the CSR lists the sources that neuron i reads.

    An edge leads from its source to its reader.  In matrices here, the reader is the row and the source the column; in
    the adjacency matrices of networkx it is the other way round (see `from_scipy`).

    indptr    int64 (n + 1,)
    indices   int32 (n_edges,)  sources, ascending in a row
    inputs    int32             neurons that take a column of the input each; they read no other
    outputs   int32             neurons whose value is returned
    levels    int32 (n,)        0 without sources, else 1 + max over the sources: the longest path, hence minimal
    live      bool (n,)         the neuron reaches an output; others need not be executed
    order     int32 (n,)        neurons by (level, index)
    ascending                   every source has a lower index than its readers
    t_indptr  int64 (n + 1,)    the transpose of the edges to live neurons: row j of t_edges int64 lists the readers
                                of neuron j, ascending, in the low 32 bits, and the places of those edges in the CSR
                                above (see `t_indices` and `t_edge`)

    The arrays are read by kernels without a check and must not be written to.  Build one with `from_edges`,
    `from_csr`, `from_scipy` or `from_networkx`, which check; the constructor checks for cycles only, and takes memory
    from ``empty(size, dtype)``.
    Raises ValueError naming an edge that closes a cycle.  Levels after Anderson & Saad (1989).
    """

    def __init__(
        self, indptr: Int64, indices: Int32, inputs: Int32, outputs: Int32, empty: Callable[..., Any] = np.empty
    ):
        self.indptr, self.indices, self.inputs, self.outputs = indptr, indices, inputs, outputs
        n, n_edges = len(indptr) - 1, len(indices)
        waiting, starts = np.empty(n, np.int32), np.empty(n + 2, np.int64)
        self.levels, self.order, self.live = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.bool_)
        self.t_indptr, edges = np.empty(n + 1, np.int64), empty(n_edges, np.int64)
        self.depth, self.ascending = KERNELS.analyze(
            *(indptr, indices, outputs, waiting),
            *(self.levels, starts, self.order, self.live, self.t_indptr, edges),
        )
        if self.depth < 0:
            u, v = self._closing_edge(waiting > 0)
            raise ValueError(f"edge {u} -> {v} closes a cycle; a Topology must be acyclic: remove or turn an edge")
        self.t_edges = edges[: self.t_indptr[-1]]
        self._level_starts = starts[: self.depth + 2]

    def _closing_edge(self, waiting: NDArray[np.bool_]) -> tuple[int, int]:
        """An edge source -> reader on a cycle: follow sources that wait for others until one repeats."""
        i, seen = int(np.flatnonzero(waiting)[0]), set[int]()
        while True:
            seen.add(i)
            sources = self.indices[self.indptr[i] : self.indptr[i + 1]]
            j = int(sources[waiting[sources]][0])
            if j in seen:
                return j, i
            i = j

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return len(self.indptr) - 1

    @property
    def n_edges(self) -> int:
        """Number of edges, those of dead neurons included."""
        return len(self.indices)

    @property
    def t_indices(self) -> Int32:
        """Readers of each neuron; ``t_indptr`` says where each row starts."""
        return (self.t_edges & 0xFFFFFFFF).astype(np.int32)

    @property
    def t_edge(self) -> Int32:
        """Places in the CSR of the edges to those readers."""
        return (self.t_edges >> 32).astype(np.int32)

    @property
    def wavefronts(self) -> list[Int32]:
        """Neurons of each level, ascending: none reads another of the same level."""
        return np.split(self.order, self._level_starts[1:-1])

    def edges(self) -> Int32:
        """Edges as int32 (n_edges, 2) pairs source, reader, in CSR order."""
        return np.stack([self.indices, self.readers], axis=1)

    @property
    def readers(self) -> Int32:
        """The reader of each edge, in CSR order."""
        return np.repeat(np.arange(self.n_neurons, dtype=np.int32), np.diff(self.indptr))

    def to_scipy(self, values: ArrayLike | torch.Tensor | None = None, *, rows: str = "readers") -> sparse.csr_array:
        """CSR matrix (n, n) with an element per edge: ``values`` (n_edges,), in the order of `edges`, or ones.

        ``rows="readers"``: row i reads column j, as everywhere here; ``rows="sources"``: row i is read by column j, as
        in networkx's adjacency matrices.
        """
        check_choice("rows", rows, ROWS)
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().numpy()
        data = np.ones(self.n_edges) if values is None else np.asarray(values)
        if data.shape != (self.n_edges,):
            raise ValueError(f"values of shape {data.shape} must be one per edge, ({self.n_edges},)")
        matrix = sparse.csr_array((data, self.indices, self.indptr), shape=(self.n_neurons, self.n_neurons))
        return matrix if rows == "readers" else sparse.csr_array(matrix.T)

    def to_networkx(self) -> nx.DiGraph:
        """Directed graph with an arc source -> reader per edge."""
        import networkx as nx

        graph = nx.DiGraph()
        graph.add_nodes_from(range(self.n_neurons))
        graph.add_edges_from(self.edges().tolist())
        return graph

    @classmethod
    def from_edges(
        cls,
        edges: NDArray[Any] | Iterable[tuple[int, int]],
        n_neurons: int | None = None,
        inputs: ArrayLike | None = None,
        outputs: ArrayLike | None = None,
    ) -> Topology:
        """Topology of pairs (source, reader), in any order: (u, v) means that v reads u.  CSR order is by reader, then
        source.

        Neurons are numbered from 0; n_neurons defaults to the largest number + 1.  ``inputs`` default to the neurons
        without sources, ``outputs`` to those without readers, both ascending.
        Raises ValueError naming the edge that is out of range, is listed twice, or closes a cycle.
        """
        edges = edges if isinstance(edges, (np.ndarray, list, tuple)) else list(edges)
        try:
            pairs = np.asarray(edges)
        except ValueError:  # ragged
            k = next((k for k, pair in enumerate(edges) if np.ndim(pair) == 0 or len(pair) != 2), 0)
            raise ValueError(f"edges[{k}]={edges[k]!r} must be a pair of integers: source, reader") from None
        if pairs.size == 0:
            pairs = np.empty((0, 2), np.int64)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise ValueError(
                f"edges of shape {pairs.shape} and dtype {pairs.dtype} must be integer pairs (n_edges, 2): "
                "source, reader"
            )
        largest = int(pairs.max()) if pairs.size else -1
        try:
            n = largest + 1 if n_neurons is None else operator.index(n_neurons)
        except TypeError:
            raise ValueError(f"n_neurons={n_neurons!r} must be an integer in 1 .. 2**31 - 1") from None
        if not 0 < n < 2**31:
            raise ValueError(f"n_neurons={n} must be in 1 .. 2**31 - 1")
        if len(pairs) >= 2**31:
            raise ValueError(f"{len(pairs)} edges do not fit the int32 edge lists; use fewer than 2**31")
        wrong = np.flatnonzero(((pairs < 0) | (pairs >= n)).any(axis=1))
        if len(wrong):
            u, v = pairs[wrong[0]]
            raise ValueError(f"edge {u} -> {v} is out of range; neurons are 0 .. {n - 1}")
        pairs = pairs.astype(np.int64)
        pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
        twice = np.flatnonzero((pairs[1:] == pairs[:-1]).all(axis=1))
        if len(twice):
            u, v = pairs[twice[0]]
            raise ValueError(f"edge {u} -> {v} is there twice; an edge may be listed once")
        indptr = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(pairs[:, 1], minlength=n), out=indptr[1:])
        return cls._checked(indptr, pairs[:, 0].astype(np.int32), inputs, outputs)

    @classmethod
    def from_csr(
        cls, indptr: ArrayLike, indices: ArrayLike, inputs: ArrayLike | None = None, outputs: ArrayLike | None = None
    ) -> Topology:
        """Topology of CSR arrays, row i listing the sources that neuron i reads; ``inputs`` and ``outputs`` as in
        `from_edges`.

        It takes the arrays of a Topology or of the state_dict of a SparseDAG.  Raises ValueError if they are not a CSR
        with ascending sources in each row, and in the cases of `from_edges`.
        """
        starts, sources = np.asarray(indptr), np.asarray(indices)
        fits = starts.ndim == sources.ndim == 1 and len(starts) > 1 and starts.dtype.kind in "iu"
        whole: Int64 = starts.astype(np.int64) if fits else np.zeros(1, np.int64)
        steps: Int64 = whole[1:] - whole[:-1]
        if not fits or (steps < 0).any() or starts[0] != 0 or starts[-1] != len(sources):
            raise ValueError(
                f"indptr of shape {np.shape(indptr)} must be integers that ascend from 0 to the number of indices, "
                f"here {sources.size}, one more than there are neurons"
            )
        readers = np.repeat(np.arange(len(steps)), steps)
        made = cls.from_edges(np.stack([sources, readers], axis=1), len(steps), inputs, outputs)
        if not np.array_equal(made.indices, sources):
            raise ValueError("indices must ascend in each row; sort them, together with the values of their edges")
        return made

    @classmethod
    def from_scipy(
        cls,
        matrix: Any,
        inputs: ArrayLike | None = None,
        outputs: ArrayLike | None = None,
        *,
        rows: str = "readers",
    ) -> Topology:
        """Topology of a square scipy sparse matrix of any format, with an edge wherever an element is stored, even a 0.

        ``rows="readers"``: row i reads column j, as the weight of an nn.Linear has it.  ``rows="sources"``: row i is
        read by column j, as in the adjacency matrices of networkx, which have i -> j at [i, j].
        An element stored twice is one edge.  The matrix' ``data`` may be in another order than the edges:
        `SparseDAG.from_scipy` puts the numbers in order.
        """
        csr = canonical_csr(matrix, rows)
        indptr, indices = csr.indptr.astype(np.int64), csr.indices.astype(np.int32)
        if not 0 < csr.shape[0] < 2**31 or csr.nnz >= 2**31:
            raise ValueError(
                f"matrix of shape {csr.shape} with {csr.nnz} elements must have 1 .. 2**31 - 1 rows, and fewer than "
                "2**31 elements"
            )
        return cls._checked(indptr, indices, inputs, outputs)

    @classmethod
    def from_networkx(
        cls, graph: nx.DiGraph, inputs: Iterable[Any] | None = None, outputs: Iterable[Any] | None = None
    ) -> Topology:
        """Topology of a directed graph, an arc u -> v meaning that v reads u.

        Nodes are numbered in the graph's own order; ``inputs`` and ``outputs`` are nodes.  The result is the same as
        ``from_scipy(networkx.to_scipy_sparse_array(graph), rows="sources")``.
        """
        if not graph.is_directed():
            raise ValueError("an undirected graph has no order of execution; give a networkx.DiGraph")
        number = {node: k for k, node in enumerate(graph)}

        def numbers(nodes: Iterable[Any] | None, name: str) -> list[int] | None:
            """The numbers of ``nodes``; ``name`` is for errors."""
            if nodes is None:
                return None
            if isinstance(nodes, (str, bytes)):
                raise ValueError(f"{name}={nodes!r} must be a list of nodes; one node is [{nodes!r}]")
            if not isinstance(nodes, Iterable):
                raise ValueError(f"{name}={nodes!r} must be a list of nodes")
            nodes = list(nodes)
            for node in nodes:
                if not isinstance(node, Hashable) or node not in number:
                    raise ValueError(f"{name} names {node!r}, which is not a node of the graph")
            return [number[node] for node in nodes]

        edges = [(number[u], number[v]) for u, v in graph.edges()]
        return cls.from_edges(edges, len(number), numbers(inputs, "inputs"), numbers(outputs, "outputs"))

    @classmethod
    def _checked(cls, indptr: Int64, indices: Int32, inputs: ArrayLike | None, outputs: ArrayLike | None) -> Topology:
        """Fill in inputs and outputs, and check them."""
        n = len(indptr) - 1
        reads = np.diff(indptr) > 0
        is_read = np.zeros(n, np.bool_)
        is_read[indices] = True
        chosen = {
            "inputs": np.flatnonzero(~reads) if inputs is None else np.asarray(inputs),
            "outputs": np.flatnonzero(~is_read) if outputs is None else np.asarray(outputs),
        }
        for (name, neurons), given in zip(chosen.items(), (inputs, outputs), strict=True):
            if given is None:
                continue  # none at all means a cycle, which the constructor names
            if neurons.ndim != 1 or len(neurons) == 0 or neurons.dtype.kind not in "iu":
                raise ValueError(f"{name}={neurons.tolist()} must be a non-empty list of neurons")
            outside = neurons[(neurons < 0) | (neurons >= n)]
            if len(outside):
                raise ValueError(f"{name} names neuron {outside[0]}; neurons are 0 .. {n - 1}")
            if len(np.unique(neurons)) < len(neurons):
                raise ValueError(f"{name} names a neuron twice; each may be listed once")
        fed = chosen["inputs"][reads[chosen["inputs"]]]
        if len(fed):
            j = indices[indptr[fed[0]]]
            raise ValueError(f"input neuron {fed[0]} reads neuron {j}; inputs must have no sources")
        return cls(indptr, indices, chosen["inputs"].astype(np.int32), chosen["outputs"].astype(np.int32))

    def __repr__(self) -> str:
        return (
            f"Topology({self.n_neurons} neurons, {self.n_edges} edges, depth {self.depth}, "
            f"{len(self.inputs)} inputs, {len(self.outputs)} outputs)"
        )
