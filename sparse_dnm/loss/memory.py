"""Measured memory: bytes of the sparse step, counted exactly (DESIGN, 3)."""

from __future__ import annotations

from torch import Tensor

from sparse_dnm.loss.proxy import Gradient
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.timing.probes import Settings


class MeasuredMemory:
    """Bytes of the sparse step of ``model``, relative to those at its first use: an exact count of its arrays.

    Counted: CSR, transpose, levels and order of execution, strengths, values and messages of all neurons and, in mode
    "train", all gradients.  Not counted: parameters, candidates, arrays of the search for structure.  The number of
    neurons is fixed, so only edges have a price.
    """

    def __init__(self, model: DynamicManifold, mode: str = "train", batch: int = 50, tau: float = 0.3):
        refuse_recurrent(model, "MeasuredMemory")
        self._train, self.batch, self.tau = Settings(mode=mode, batch=batch).mode == "train", batch, tau
        self.reference = self.bytes(model.evaluation)

    def bytes(self, evaluation: Evaluation) -> int:
        """Bytes of a step of this structure."""
        return evaluation.engine.step_bytes(evaluation.structure, self.batch, self._train)

    def value(self, evaluation: Evaluation) -> float:
        """Bytes, relative to those at the start."""
        return self.bytes(evaluation) / self.reference

    def gradient(self, evaluation: Evaluation) -> Gradient:
        """Gradient of the value."""
        price = evaluation.engine.edge_bytes(evaluation.structure, self.batch, self._train) / self.reference
        _, by_cutoff, by_closeness = evaluation.gates(self.tau)  # memory also holds edges of dead neurons
        return Gradient(price * by_cutoff, by_closeness * price)

    def __call__(self, model: DynamicManifold) -> Tensor:
        """The term, a scalar tensor with its gradient; call the model first."""
        evaluation = model.evaluation
        return evaluation.straight_through(self.value(evaluation), *self.gradient(evaluation))
