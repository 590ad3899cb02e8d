"""The DAG of a manifold run level by level through other people's sparse products: peers of our kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from sparse_dnm import Topology

Multiply = Callable[[Any, Tensor], Tensor]


class LevelWise:
    """One sparse product per level: neurons renumbered by level, level k reads the rows of all levels before it.

    build(indptr, indices, values, shape) makes the matrix of a level from CSR arrays (torch tensors; values may
    carry a gradient), multiply(matrix, x) is its product.  Inputs hand on their value, others leaky_relu(sum).
    """

    def __init__(self, topology: Topology, values: Tensor, build: Callable[..., Any], multiply: Multiply):
        order = topology.order
        is_input = np.zeros(topology.n_neurons, np.bool_)
        is_input[topology.inputs] = True
        keep = topology.live & ~is_input
        order = np.concatenate([topology.inputs, order[keep[order]]])
        place = np.full(topology.n_neurons, -1, np.int64)
        place[order] = np.arange(len(order))
        levels = topology.levels[order]
        levels[: len(topology.inputs)] = -1
        cuts = np.flatnonzero(np.diff(levels)) + 1
        bounds = [*cuts.tolist(), len(order)]
        matrix = topology.to_scipy(np.arange(topology.n_edges, dtype=np.int64) + 1)[order][:, order].tocsr()
        matrix.sort_indices()
        self.outputs = torch.from_numpy(place[topology.outputs]).to(values.device)
        self.n, self.bounds = len(order), list(itertools.pairwise(bounds))
        self.first = bounds[0]
        self._build, self._multiply = build, multiply
        self._csr: list[tuple[Tensor, Tensor, Tensor, tuple[int, int]]] = []
        for start, stop in self.bounds:
            rows = matrix[start:stop, :start]
            indptr, indices, edges = (
                torch.from_numpy(np.asarray(a, np.int64)).to(values.device)
                for a in (rows.indptr, rows.indices, rows.data - 1)
            )
            self._csr.append((indptr, indices, edges, (stop - start, start)))
        self.values = values.detach().clone()
        self._fixed = list(self._matrices(self.values))

    def _matrices(self, values: Tensor) -> Iterator[Any]:
        for indptr, indices, edges, shape in self._csr:
            yield self._build(indptr, indices, values[edges], shape)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(n_inputs, batch) -> (n_outputs, batch), every level written into its place, matrices built before."""
        z = x.new_empty(self.n, x.shape[1])
        m = torch.empty_like(z)
        m[: self.first] = x
        for (start, stop), matrix in zip(self.bounds, self._fixed, strict=True):
            z[start:stop] = self._multiply(matrix, m[:start])
            m[start:stop] = leaky_relu(z[start:stop], 0.2)
        return z[self.outputs]

    def both(self, x: Tensor) -> Tensor:
        """Forward and autograd's backward; returns the gradient of the values (n_edges,)."""
        values = self.values.requires_grad_()
        values.grad = None
        m = z = x
        sums = [x]
        for matrix in self._matrices(values):
            z = self._multiply(matrix, m)
            sums.append(z)
            m = torch.cat([m, leaky_relu(z, 0.2)])
        torch.cat(sums)[self.outputs].sum().backward()
        assert values.grad is not None
        return values.grad
