"""A controller that brings seconds or edges down to a budget."""

from __future__ import annotations

import math


class Controller:
    """PI controller of a multiplier from log(size / goal), in logarithms; with bounds and anti-windup.

    ``size`` is the limited quantity: seconds of a step, or edges.
    The multiplier grows while the size is above the goal and shrinks below; at its bounds the integral does not change.
    The goal falls from the size at the start to the budget while `progress` goes from 0 to 1: a removed edge rarely
    returns, so the network must not shrink faster than necessary.
    """

    KP, KI = 5.0, 0.005  # KI per step of training
    LOW, HIGH = math.log(1e-3), math.log(1e2)
    FIRST = math.log(0.1)  # integral at the start

    def __init__(self, budget: float, start: float, integral: float = FIRST):
        self.budget, self.start, self.integral = budget, max(start, budget), integral
        self.multiplier = math.exp(integral)
        self.progress = 1.0

    @property
    def goal(self) -> float:
        """The wanted size at this progress."""
        return self.start * (self.budget / self.start) ** min(self.progress, 1.0)

    def update(self, size: float, steps: int) -> float:
        """Update with the present size, ``steps`` after the last one; returns the new multiplier."""
        error = math.log(max(size, 1e-300) / self.goal)
        more = self.KI * steps * error
        wanted = self.KP * error + self.integral + more
        if self.LOW <= wanted <= self.HIGH or (wanted > self.HIGH) == (error < 0):
            self.integral += more
        self.multiplier = math.exp(min(max(self.KP * error + self.integral, self.LOW), self.HIGH))
        return self.multiplier
