"""What a configuration asks a network to end with."""

from __future__ import annotations

from sparse_dnm.train.constraints import Constraint, TimeBudget
from sparse_dnm.train.flash import FlashBudget
from sparse_dnm.train.state import Run
from sparse_dnm.train.steering import EdgeCount
from sparse_dnm.train.validation import Validation


def constraint_of(run: Run, validation: Validation | None) -> Constraint:
    """The constraint that the configuration asks for; ``validation`` judges the cut to a budget of time."""
    if run.config.target_edges:
        return EdgeCount(run)
    if run.config.budget_bytes:
        return FlashBudget(run)
    return TimeBudget(run, validation) if run.config.budget_us else Constraint(run)
