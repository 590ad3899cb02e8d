"""Free edges in the order of the candidates, beside the slots of a model's edge_weight."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dnm.engine.candidates import Candidates
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.model.manifold import DynamicManifold


class CompactEdges:
    """omega of the candidates and its two moments in CSR order, beside the slots of edge_weight and of an optimiser.

    A step reads and writes these, so that it touches candidates only and gathers nothing.  `store` writes them back;
    call it before reading edge_weight or changing the candidates, and `load` after.
    """

    def __init__(self, model: DynamicManifold, optimizer: torch.optim.Optimizer):
        self._model, self._optimizer = model, optimizer
        self.slots: Tensor | None = None  # None: edge_weight has the latest numbers
        self.omega = self.first = self.second = model.edge_weight.new_empty(0)

    def load(self) -> None:
        """Take the numbers of the model's candidates, where they are not held already."""
        if self.slots is not None:
            return
        self.slots = torch.from_numpy(self._model.candidates.slots)
        self.omega = self._model.edge_weight.detach()[self.slots]
        state = self._optimizer.state.get(self._model.edge_weight)
        self.first, self.second = (
            torch.zeros_like(self.omega) if state is None else state[name][self.slots]
            for name in ("exp_avg", "exp_avg_sq")
        )

    def hold(self, candidates: Candidates, omega: Floats, first: Floats, second: Floats) -> None:
        """Hold these, in their memory, for the model's candidates."""
        self.slots = torch.from_numpy(candidates.slots)
        self.omega, self.first, self.second = (torch.from_numpy(a) for a in (omega, first, second))

    @torch.no_grad()
    def store(self) -> None:
        """Write them to edge_weight and to the optimiser."""
        if self.slots is None:
            return
        weight, slots = self._model.edge_weight, self.slots
        weight[slots] = self.omega
        state = self._optimizer.state.get(weight)
        if state is not None:
            state["exp_avg"][slots], state["exp_avg_sq"][slots] = self.first, self.second
        self.slots = None
