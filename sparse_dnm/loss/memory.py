"""Measured memory: bytes of the sparse step, counted exactly (DESIGN, 3)."""

from __future__ import annotations

from torch import Tensor

from sparse_dnm.engine.costs import Prices
from sparse_dnm.loss.proxy import Gradient
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import unrolling_of
from sparse_dnm.timing.probes import Settings


class MeasuredMemory:
    """Bytes of the sparse step of ``model``, relative to those at its first use: an exact count of its arrays.

    Counted: CSR, transpose, levels and order of execution, strengths, values and messages of all neurons and, in mode
    "train", all gradients.  Not counted: parameters, candidates, arrays of the search for structure.  The number of
    neurons is fixed, so only edges have a price.

    Of a recurrent network, for sequences of ``time_steps``: what is kept for every time step (or between the states
    kept every ``recompute_every`` steps) is kept for executed neurons only, so that these have a price as well.  The
    ring of candidates (kappa) is not counted.
    """

    def __init__(
        self, model: DynamicManifold, mode: str = "train", batch: int = 50, tau: float = 0.3, time_steps: int = 0,
        tbptt: int = 0, recompute_every: int = 0,
    ):  # fmt: skip
        self._unrolling = unrolling_of(model.config, time_steps, tbptt, recompute_every)
        self._train, self.batch, self.tau = Settings(mode=mode, batch=batch).mode == "train", batch, tau
        self.reference = self.bytes(model.evaluation)

    def bytes(self, evaluation: Evaluation) -> int:
        """Bytes of a step of this structure."""
        engine, structure = evaluation.engine, evaluation.structure
        if self._unrolling is not None:
            return engine.sequence_bytes(structure, self.batch, self._train, self._unrolling)
        return engine.step_bytes(structure, self.batch, self._train)

    def value(self, evaluation: Evaluation) -> float:
        """Bytes, relative to those at the start."""
        return self.bytes(evaluation) / self.reference

    def gradient(self, evaluation: Evaluation) -> Gradient:
        """Gradient of the value."""
        engine, structure = evaluation.engine, evaluation.structure
        _, by_cutoff, by_closeness = evaluation.gates(self.tau)  # memory also holds edges of dead neurons
        if self._unrolling is None:
            price = engine.edge_bytes(structure, self.batch, self._train) / self.reference
            return Gradient(price * by_cutoff, by_closeness * price)
        edge, others = engine.sequence_byte_prices(structure, self.batch, self._train, self._unrolling)
        price = edge / self.reference
        cost = evaluation.expected_cost(self.tau, Prices(*(more / self.reference for more in others)))
        return Gradient(price * by_cutoff + cost.by_cutoff, by_closeness * price + cost.by_closeness)

    def __call__(self, model: DynamicManifold) -> Tensor:
        """The term, a scalar tensor with its gradient; call the model first."""
        evaluation = model.evaluation
        return evaluation.straight_through(self.value(evaluation), *self.gradient(evaluation))
