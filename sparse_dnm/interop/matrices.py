"""SparseDAG from and to sparse matrices: scipy's, torch's, and torch-sparse's.

In all of them ``rows`` says what a row stands for.  "readers": [i, j] is the weight with which neuron i reads neuron j,
as in the weight of an nn.Linear; "sources": that with which neuron j reads neuron i, as in the adjacency matrices of
networkx.  A zero that is stored is an edge of weight 0; elements stored twice are summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from torch import Tensor

from sparse_dnm.checks import DTYPES, require_torch_sparse
from sparse_dnm.config import check_choice
from sparse_dnm.engine.topology import ROWS, Topology, canonical_csr
from sparse_dnm.model.sparse_dag import SparseDAG

if TYPE_CHECKING:
    from torch_sparse import SparseTensor

FORMATS = ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
LAYOUTS = {"csr": torch.sparse_csr, "csc": torch.sparse_csc, "coo": torch.sparse_coo}


def from_scipy(
    matrix: Any,
    inputs: ArrayLike | None = None,
    outputs: ArrayLike | None = None,
    *,
    rows: str = "readers",
    network: type[SparseDAG] = SparseDAG,
    **options: Any,
) -> SparseDAG:
    """The DAG of a square scipy sparse matrix of any format and real dtype.

    ``inputs`` and ``outputs`` as in `Topology.from_edges`; ``options`` are those of SparseDAG, ``network`` the class.
    """
    csr = canonical_csr(matrix, rows)
    if csr.dtype.kind not in "biuf":
        raise ValueError(f"matrix of dtype {csr.dtype} must hold real numbers")
    return network(Topology.from_scipy(csr, inputs, outputs), csr.data.astype(np.float64), **options)


def to_scipy(dag: SparseDAG, *, rows: str = "readers", format: str = "csr") -> Any:
    """The weights of the edges as a scipy sparse array (n_neurons, n_neurons) of any format, in the DAG's dtype.

    `options_of` gives what the matrix does not hold.  "dia" stores whole diagonals: up to n² numbers.
    Raises ValueError if the format loses an edge of weight 0.
    """
    check_choice("format", format, FORMATS)
    values = dag.edge_weight.detach().cpu().numpy()
    made = dag.topology.to_scipy(values, rows=rows).copy()
    if format == "bsr":
        return made.tobsr((1, 1))  # larger blocks would store zeros
    out = made.asformat(format)
    if not values.all() and format in ("dia", "dok", "lil") and out.tocoo().nnz < dag.topology.n_edges:
        raise ValueError(
            f"format={format!r} does not store the {np.count_nonzero(values == 0)} edges of weight 0; choose one of "
            "csr, csc, coo, bsr"
        )
    return out


def _of_coordinates(
    row: Tensor,
    column: Tensor,
    values: Tensor,
    n: int,
    dtype: torch.dtype,
    device: torch.device,
    options: dict[str, Any],
) -> SparseDAG:
    """The DAG of a tensor's elements; its dtype and device, where kernels exist for them, unless ``options`` differ."""
    if dtype in DTYPES:
        options = {"dtype": dtype, **options}
    options = {"device": device, **options}
    numbers = values.detach().cpu().double().numpy()  # numpy knows no bfloat16
    places = row.detach().cpu().numpy(), column.detach().cpu().numpy()
    return from_scipy(sparse.coo_array((numbers, places), shape=(n, n)), **options)


def from_torch(
    tensor: Tensor,
    inputs: ArrayLike | None = None,
    outputs: ArrayLike | None = None,
    *,
    rows: str = "readers",
    **options: Any,
) -> SparseDAG:
    """The DAG of a square torch.sparse tensor, CSR, CSC or COO, of any real dtype.

    dtype and device are the tensor's unless ``options`` name others; where its dtype has no kernels (half precision,
    integers, bool), torch's default dtype.  The parameters are copies: no gradient leads back to ``tensor``.
    ``torch.func.functional_call(dag, {"edge_weight": values}, (x,))`` runs the DAG with values that have a graph, in
    the order of ``dag.topology.edges()``.
    """
    if not isinstance(tensor, Tensor) or tensor.layout not in LAYOUTS.values():
        kind = f"tensor of layout {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(
            f"a {kind} must be a torch.sparse tensor, CSR, CSC or COO; convert it with tensor.to_sparse_csr() or, from "
            "blocks, tensor.to_sparse_coo()"
        )
    tensor, shape = tensor.detach(), tuple(tensor.shape)
    if len(shape) != 2 or shape[0] != shape[1] or tensor.dense_dim():
        raise ValueError(f"a torch.sparse tensor of shape {shape} must be square, without dense dimensions")
    if tensor.dtype.is_complex:
        raise ValueError(f"tensor of dtype {tensor.dtype} must hold real numbers")
    if tensor.layout == torch.sparse_coo:
        row, column, values = *tensor._indices(), tensor._values()
    else:
        by_row = tensor.layout == torch.sparse_csr
        starts, other = (
            (tensor.crow_indices(), tensor.col_indices()) if by_row else (tensor.ccol_indices(), tensor.row_indices())
        )
        along = torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff())
        row, column, values = (along, other, tensor.values()) if by_row else (other, along, tensor.values())
    options = {"inputs": inputs, "outputs": outputs, "rows": rows, **options}
    return _of_coordinates(row, column, values, shape[0], tensor.dtype, tensor.device, options)


def _ordered(dag: SparseDAG, by_source: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sources, readers and weights of the edges by source or by reader, and where each of those starts.

    The weights keep their graph.
    """
    topology, device = dag.topology, dag.edge_weight.device
    sources, readers = topology.indices, topology.readers
    values: Tensor = dag.edge_weight
    if by_source:
        order = np.argsort(sources, kind="stable")
        sources, readers, values = sources[order], readers[order], values[torch.from_numpy(order).to(device)]
    counts = np.bincount(sources if by_source else readers, minlength=topology.n_neurons)
    starts = np.concatenate([[0], np.cumsum(counts)])
    first, second, third = (torch.from_numpy(a.astype(np.int64)).to(device) for a in (sources, readers, starts))
    return first, second, values, third


def to_torch(dag: SparseDAG, layout: torch.layout = torch.sparse_csr, *, rows: str = "readers") -> Tensor:
    """The weights of the edges as a torch.sparse tensor (n_neurons, n_neurons), CSR, CSC or COO, on the DAG's device.

    It keeps the graph: gradients of what is computed with it reach ``dag.edge_weight``, unless under torch.no_grad.
    """
    check_choice("rows", rows, ROWS)
    if layout not in LAYOUTS.values():
        raise ValueError(f"layout={layout} is unknown; choose one of {', '.join(map(str, LAYOUTS.values()))}")
    by_source = (layout == torch.sparse_csc) == (rows == "readers")
    sources, readers, values, starts = _ordered(dag, by_source)
    size = (dag.topology.n_neurons,) * 2
    with torch.sparse.check_sparse_tensor_invariants(False):  # a Topology is checked
        if layout == torch.sparse_coo:
            places = torch.stack([readers, sources] if rows == "readers" else [sources, readers])
            return torch.sparse_coo_tensor(places, values, size, is_coalesced=True)
        other = readers if by_source else sources
        return torch.sparse_compressed_tensor(starts, other, values, size, layout=layout)


def from_sparse_tensor(
    matrix: SparseTensor,
    inputs: ArrayLike | None = None,
    outputs: ArrayLike | None = None,
    *,
    rows: str = "readers",
    **options: Any,
) -> SparseDAG:
    """The DAG of a square SparseTensor of torch-sparse; elements without values have the weight 1.

    dtype and device as in `from_torch`; the parameters are copies, too.  The ``adj_t`` of torch-geometric has readers
    as its rows.
    """
    require_torch_sparse("a SparseTensor")
    from torch_sparse import SparseTensor

    if not isinstance(matrix, SparseTensor):
        raise ValueError(f"a {type(matrix).__name__} must be a torch_sparse.SparseTensor")
    row, column, values = matrix.coo()
    shape = tuple(matrix.sizes())
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"a SparseTensor of shape {shape} must be square, with one number per element")
    if values is None:
        values = torch.ones(len(row), dtype=torch.get_default_dtype(), device=row.device)
    if values.dtype.is_complex:
        raise ValueError(f"a SparseTensor of dtype {values.dtype} must hold real numbers")
    options = {"inputs": inputs, "outputs": outputs, "rows": rows, **options}
    return _of_coordinates(row, column, values, shape[0], values.dtype, values.device, options)


def to_sparse_tensor(dag: SparseDAG, *, rows: str = "readers") -> SparseTensor:
    """The weights of the edges as a SparseTensor of torch-sparse (n_neurons, n_neurons); it keeps the graph."""
    check_choice("rows", rows, ROWS)
    require_torch_sparse("a SparseTensor")
    from torch_sparse import SparseTensor

    sources, readers, values, starts = _ordered(dag, rows == "sources")
    size = (dag.topology.n_neurons,) * 2
    row, column = (readers, sources) if rows == "readers" else (sources, readers)
    return SparseTensor(row=row, rowptr=starts, col=column, value=values, sparse_sizes=size, is_sorted=True)
