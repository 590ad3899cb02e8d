"""Schedules: the phases before and after the trim, the learning rate, kappa."""

from __future__ import annotations

import math
from dataclasses import replace

from sparse_dnm.config import TrainConfig

LEAST = 0.1  # share of lr before the structure is fixed: until then edges must come and go


def trimmed_after(config: TrainConfig) -> int:
    """Updates after which a network is trimmed to its budget or its number of edges, if there is one, and its
    structure stays."""
    return config.steps - math.ceil(config.fine_tune * config.steps)


def fine_tuning(config: TrainConfig) -> TrainConfig:
    """The settings of those last steps, for a network by itself whose samples have their weights."""
    steps = config.steps - trimmed_after(config)
    return replace(
        config, steps=steps, fine_tune=1.0, speed="none", budget_us=0.0, profile="", scan_every=0,
        memory_coefficient=0.0, checkpoint_every=max(steps, 1), early_stopping=False, class_weight="none",
    )  # fmt: skip


def learning_rate(config: TrainConfig, step: int) -> float:
    """Adam's step size for update ``step`` = 0 .. steps - 1.

    The cosine falls from lr until the structure is fixed, and from lr / 2 to 0 after that; over all steps, from lr to
    0, where it is never fixed.
    """
    first, last, highest = 0, trimmed_after(config), config.lr
    searching = step < last < config.steps
    if step >= last < config.steps:
        first, last, highest = last, config.steps, 0.5 * config.lr
    if config.schedule == "constant":
        return highest
    rate = highest * 0.5 * (1 + math.cos(math.pi * min((step - first) / max(last - first, 1), 1)))
    return max(rate, LEAST * config.lr) if searching else rate


def kappa(config: TrainConfig, step: int) -> float:
    """Coefficient of the ring's gradient in update ``step``: only every ``grow_every``-th has it, times ``grow_every``.

    It is constant for the first half of the steps before the trim, then falls to 0.  It is 0 where no term of the loss
    asks for fewer edges: then all would grow.
    """
    last = trimmed_after(config)
    if step % config.grow_every or step >= last or not config.prunes:
        return 0.0
    return config.kappa * config.grow_every * min(1.0, 2.0 * (1.0 - step / last))
