"""Terms of the loss that depend on structure: flow, and speed as a proxy (DESIGN, section 3)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from sparse_dnm.config import PROXY_GRADIENTS, check_choice
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold


def flow_loss(model: DynamicManifold) -> Tensor:
    """(sum |D| of input -> hidden edges - sum |D| of hidden -> output edges)², of the last forward; scalar.

    It keeps the two halves of the network in balance, so that the network does not disconnect itself.
    """
    return model.flow()


class Gradient(NamedTuple):
    """Of a term: by the raw cutoff, and by the closeness of the candidates (n_candidates,); tensors on CUDA."""

    by_cutoff: Any
    by_closeness: Any


class SparsityProxy:
    """Simulated speed: (active edges / possible edges)**power of the last forward.

    The value is the true count.  A count is flat almost everywhere, so the gradient is that of a soft count, the sum
    of sigmoid((|d| - c) / tau) over all candidates above the threshold, including those below the cutoff
    (straight-through, Bengio et al. 2013); with ``gradient="none"`` there is no gradient, as in the original.

    tau: width of a gate, in closeness.
    """

    def __init__(self, tau: float = 0.3, power: int = 1, gradient: str = "straight-through"):
        check_choice("gradient", gradient, PROXY_GRADIENTS)
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau={tau!r} must be a finite number > 0, in closeness")
        if power < 1:
            raise ValueError(f"power={power!r} must be >= 1")
        self.tau, self.power = tau, power
        self.flat = gradient == "none"  # without a gradient

    def value(self, evaluation: Evaluation) -> float:
        """The term, without gradient."""
        return evaluation.density**self.power

    def gradient(self, evaluation: Evaluation) -> Gradient | None:
        """Gradient of the term; None if it has none."""
        if self.flat:
            return None
        slope = self.power * evaluation.density ** (self.power - 1) / evaluation.config.possible_edges
        _, by_cutoff, by_closeness = evaluation.gates(self.tau)
        return Gradient(slope * by_cutoff, by_closeness * slope)

    def __call__(self, model: DynamicManifold) -> Tensor:
        """The term at the last forward of the model, a scalar."""
        evaluation = model.evaluation
        found = self.gradient(evaluation)
        if found is None:
            return evaluation.cutoff.new_full((), self.value(evaluation))
        return evaluation.straight_through(self.value(evaluation), *found)
