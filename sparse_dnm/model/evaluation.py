"""Evaluation: the structure of some parameters and its values; the argument of every loss and every report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.config import ManifoldConfig
from sparse_dnm.engine.autograd import straight_through
from sparse_dnm.engine.base import Cost, Engine, Gates, Prices, Values
from sparse_dnm.engine.cpu_structure import CpuStructure
from sparse_dnm.engine.topology import Topology


@dataclass(eq=False)
class Evaluation:
    """A structure and its values, on the engine that found them.

    strengths  D of the active edges (n_edges,), in the order of the topology's CSR
    closeness  d of the candidates (n_candidates,)
    flow       (sum |D| of input -> hidden edges - sum |D| of hidden -> output edges)², ()
    cutoff     the raw cutoff, ()
    The four are tensors with a graph; the first three are None until a graph is asked for.
    """

    config: ManifoldConfig
    engine: Engine
    structure: Any  # base.Structure
    values: Values
    cutoff: Tensor
    strengths: Tensor | None = None
    closeness: Tensor | None = None
    flow: Tensor | None = None

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
        """``value`` as a scalar with a given gradient: ``by_cutoff`` by the raw cutoff, ``by_closeness``
        (n_candidates,) by the candidates' closeness."""
        out: Tensor = straight_through(value, by_cutoff, by_closeness, self.closeness, self.cutoff)
        return out
