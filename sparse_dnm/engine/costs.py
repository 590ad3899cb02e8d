"""What a structure costs: values that every engine hands back."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

Array = Any  # numpy.ndarray on the CPU, torch.Tensor on CUDA


class Gates(NamedTuple):
    """Soft number of edges, its derivative by the raw cutoff, and those by the candidates' closeness."""

    total: Any
    by_cutoff: Any
    by_closeness: Array


class Prices(NamedTuple):
    """What one more of each costs: an edge, an input or another neuron that somebody reads, a level, a block; and an
    edge that is computed by itself where that costs less than its block, 0 where all edges are in blocks."""

    edge: float
    input: float
    neuron: float
    level: float
    block: float = 0.0
    lone: float = 0.0


class Cost(NamedTuple):
    """Expected cost of a structure, and its derivatives: by the raw cutoff, by the candidates' closeness, and by the
    chance that each exists, (n_candidates,) both; arrays of the CPU."""

    value: float
    by_cutoff: float
    by_closeness: Any
    by_gate: Any


class Stopwatch(Protocol):
    """Times a step of one structure: its forward pass and, for training, its backward pass."""

    def warm(self, clock: Any) -> float:
        """Seconds of a step after some unmeasured ones, which fill the caches and train the branch predictors."""

    def __call__(self, clock: Any) -> float:
        """Seconds of a step by a `timing.clock.Clock`."""

    @property
    def steps(self) -> int:
        """How many steps a measurement times together, since the first call."""
