"""The last timed steps of a training, and a robust figure of the present structure from them."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.timing.clock import Timing
from sparse_dnm.timing.cost_model import CostModel

KEPT = 5  # timed steps
TRIED = 20  # the latest attempts, of which most must succeed


class TimedSteps:
    """Counts and seconds of the last KEPT timed steps, and how many of the latest attempts failed."""

    def __init__(self) -> None:
        self._steps: deque[tuple[Floats, float, float]] = deque(maxlen=KEPT)  # counts, seconds, raw seconds
        self._failed: deque[bool] = deque(maxlen=TRIED)

    def add(self, counts: Floats, seconds: float, raw: float) -> None:
        """Add a step."""
        self._steps.append((counts, seconds, raw))
        self._failed.append(False)

    def fail(self) -> None:
        """A step could not be timed: the machine was disturbed."""
        self._failed.append(True)

    @property
    def noisy(self) -> bool:
        """Most of the latest attempts failed."""
        return len(self._failed) == TRIED and 2 * sum(self._failed) > TRIED

    @property
    def raw(self) -> float:
        """Seconds of the last step as the clock showed them."""
        return self._steps[-1][2]

    def of(self, counts: Floats, model: CostModel, clock: str) -> Timing:
        """Seconds of the structure with these ``counts``: each step's, times the change since by ``model``."""
        now = float(model.seconds(counts))
        then = [float(model.seconds(before)) for before, _, _ in self._steps]
        scale = [now / t if now > 0 and t > 0 else 1.0 for t in then]
        return Timing.of([s * seconds for s, (_, seconds, _) in zip(scale, self._steps, strict=True)], clock)

    def state(self) -> list[Any]:
        """As JSON values."""
        return [[counts.tolist(), seconds, raw] for counts, seconds, raw in self._steps]

    @classmethod
    def from_state(cls, state: list[Any]) -> TimedSteps:
        """The object whose `state` this is."""
        made = cls()
        for counts, seconds, raw in state:
            made.add(np.array(counts), seconds, raw)
        return made
