"""Evaluation: the structure of some parameters and its values; the argument of every loss and every report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.config import ManifoldConfig
from sparse_dnm.engine.autograd import straight_through
from sparse_dnm.engine.base import Engine, Values
from sparse_dnm.engine.costs import Cost, Gates, Prices
from sparse_dnm.engine.cpu_structure import CpuStructure
from sparse_dnm.engine.topology import Topology


class Graph(NamedTuple):
    """The results of `EdgeStrength`: strengths, closeness and flow of an evaluation, with their graph."""

    strengths: Tensor
    closeness: Tensor
    flow: Tensor


@dataclass(eq=False)
class Evaluation:
    """A structure and its values, on the engine that found them.

    cutoff  the raw cutoff, (), with its graph
    graph   None until one is asked for: then there are no `strengths`, `closeness` and `flow`
    """

    config: ManifoldConfig
    engine: Engine
    structure: Any  # base.Structure
    values: Values
    cutoff: Tensor
    graph: Graph | None = None
    handed_out: bool = False  # other code has the graph's tensors, and may write to them

    def _handed(self) -> Graph:
        """The tensors for code that may write to them: from now on they do not share memory with the values."""
        assert self.graph is not None, "DynamicManifold.evaluation has a graph"
        if not self.handed_out:
            self.handed_out = True
            for tensor in self.graph[:2]:
                tensor.data = tensor.detach().clone()
        return self.graph

    @property
    def strengths(self) -> Tensor:
        """D of the active edges (n_edges,), in the order of the topology's CSR, with its graph."""
        return self._handed().strengths

    @property
    def closeness(self) -> Tensor:
        """d of the candidates (n_candidates,), with its graph."""
        return self._handed().closeness

    @property
    def flow(self) -> Tensor:
        """(sum |D| of input -> hidden edges - sum |D| of hidden -> output edges)², (), with its graph."""
        assert self.graph is not None
        return self.graph.flow

    @property
    def n_edges(self) -> int:
        """Active edges."""
        n: int = self.structure.n_edges
        return n

    @property
    def density(self) -> float:
        """Active over possible edges."""
        return self.n_edges / self.config.possible_edges

    @property
    def connected(self) -> bool:
        """Some input reaches an output."""
        return bool(self.structure.connected)

    @property
    def topology(self) -> Topology:
        """The active edges."""
        found: Topology = self.structure.topology
        return found

    @property
    def host(self) -> CpuStructure:
        """The structure in arrays of the CPU."""
        found: CpuStructure = self.structure.host
        return found

    @property
    def host_values(self) -> Values:
        """The values in arrays of the CPU."""
        return self.engine.host_values(self.structure, self.values)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the network."""
        dtype: np.dtype[Any] = self.host.neurons.slope.dtype
        return dtype

    def batch(self, samples: NDArray[np.floating]) -> Any:
        """Samples (batch, n_inputs) as an array of this engine."""
        tensor = torch.from_numpy(np.ascontiguousarray(samples, self.dtype)).to(self.engine.device)
        return self.engine.array(tensor)

    def gates(self, tau: float) -> Gates:
        """Soft number of edges and its derivatives."""
        return self.engine.gates(self.values, tau)

    def expected_cost(self, tau: float, prices: Prices) -> Cost:
        """Expected cost of the structure, and its derivatives."""
        return self.engine.expected_cost(self.structure, self.values, tau, prices)

    def straight_through(self, value: Any, by_cutoff: Any, by_closeness: Any) -> Tensor:
        """``value`` as a scalar whose gradient was found otherwise: ``by_cutoff`` is that by the raw cutoff, and
        ``by_closeness`` (n_candidates,) that by the candidates' closeness."""
        assert self.graph is not None
        out: Tensor = straight_through(value, by_cutoff, by_closeness, self.graph.closeness, self.cutoff)
        return out
