"""What a comparison trains: terms, their coefficients or goals, seeds; and how the final networks are timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sparse_dnm.config import TARGET_FIELDS, TrainConfig, check_choice
from sparse_dnm.engine.autotune import MOST_BLOCK_COLUMNS
from sparse_dnm.study.verdict import FLAT
from sparse_dnm.target import Target
from sparse_dnm.timing.cost_model import FEATURES, OF_SEQUENCES, ON_TARGET
from sparse_dnm.timing.probes import Settings

ANY_LOSS = 1e9  # points
ON_CUDA = "cuda-"  # prefix of the executors of CUDA in FEATURES
TERMS: dict[str, dict[str, Any]] = {  # the changes to a TrainConfig that each makes
    "none": {"speed": "none"},
    "proxy-flat": {"speed": "proxy", "proxy_gradient": "none"},  # the original's: reported, but without a gradient
    "proxy": {"speed": "proxy", "proxy_gradient": "straight-through"},
    "time": {"speed": "time"},
    "budget": {"speed": "time", "max_loss": ANY_LOSS},  # with budget_us: what its cut costs is part of the comparison
    "edges": {"speed": "proxy", "proxy_gradient": "straight-through"},  # with target_edges
}
GOALS = {"budget": "budget_us", "edges": "target_edges"}  # terms whose level is a goal, and its field of TrainConfig


def executors(device: str = "cpu", batch: int = 1) -> tuple[str, ...]:
    """The ways to run a network that can be timed on a device: those whose time has features.

    Without `blocks` where the batch is so large that it runs as `columns`.
    """
    if device == "cpu":
        others = (ON_TARGET, *OF_SEQUENCES, *(() if batch <= MOST_BLOCK_COLUMNS else ("blocks",)))
        return tuple(name for name in FEATURES if not name.startswith(ON_CUDA) and name not in others)
    return tuple(name.removeprefix(ON_CUDA) for name in FEATURES if name.startswith(ON_CUDA))


def has_clock(config: TrainConfig) -> bool:
    """Whether the loss contains a clock: other trainings beside it change what it measures."""
    return config.speed == "time"


@dataclass(frozen=True)
class Plan:
    """The networks to compare, and how they are timed."""

    terms: tuple[str, ...] = ("none", "proxy-flat", "proxy", "time")
    factors: tuple[float, ...] = (0.3, 1.0, 3.0)  # of the preset's coefficients
    seeds: int = 5
    timing: Settings = field(default_factory=Settings)  # how the final networks are timed
    budgets: tuple[float, ...] = ()  # µs, of the term budget
    edges: tuple[int, ...] = ()  # of the term edges
    executors: tuple[str, ...] = ()  # each network is timed by the fastest of these for it; (): by that of ``timing``
    target: Target | None = None  # networks are timed there, as programs in C

    def __post_init__(self) -> None:
        for term in self.terms:
            check_choice("terms", term, tuple(TERMS))
        if not self.terms or len(set(self.terms)) < len(self.terms):
            raise ValueError(f"terms={','.join(self.terms)!r} must name one term or more, each once")
        if not self.factors or not all(math.isfinite(f) and f > 0 for f in self.factors):
            raise ValueError(f"factors={self.factors} must be finite numbers > 0")
        if len(set(self.factors)) < len(self.factors):
            raise ValueError(f"factors={self.factors} must name each factor once")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be >= 1")
        _check_levels("budget", "budgets", "µs", self.budgets, self.terms)
        _check_levels("edges", "edges", "whole numbers of edges", self.edges, self.terms)
        for name in self.executors:
            check_choice("executors", name, executors(self.timing.device))
        if len(set(self.executors)) < len(self.executors):
            raise ValueError(f"executors={','.join(self.executors)!r} must name each executor once")

    @property
    def timed_by(self) -> tuple[str, ...]:
        """The executors that final networks are timed with: of several, those that differ at this batch."""
        if self.target is not None:
            return (ON_TARGET,)
        differ = executors(self.timing.device, self.timing.batch)
        wanted = self.executors or (self.timing.executor,)
        return tuple(name for name in wanted if name in differ) or wanted

    def levels(self, term: str) -> tuple[float, ...]:
        """Coefficients of a term, as multiples of the preset's, or its goals."""
        if term in GOALS:
            return tuple(map(float, self.budgets if term == "budget" else self.edges))
        return (1.0,) if term in FLAT else self.factors

    def runs(self) -> list[tuple[str, float, int]]:
        """(term, level, seed) of every training; seeds outermost, so that the first runs already make a comparison."""
        return [(term, level, seed) for seed in range(self.seeds) for term in self.terms for level in self.levels(term)]


def _check_levels(term: str, name: str, what: str, levels: Sequence[float], terms: Sequence[str]) -> None:
    """Raise ValueError if the goals of a term are unfit, or are there without the term, or the term without them."""
    given = f"{name}={','.join(f'{level:g}' for level in levels)!r}"
    if (term in terms) != bool(levels):
        raise ValueError(f"{given} and terms={','.join(terms)!r}: the term {term} needs goals, and goals need the term")
    whole = term != "edges" or all(level == int(level) for level in levels if math.isfinite(level))
    if not whole or not all(math.isfinite(level) and level > 0 for level in levels):
        raise ValueError(f"{given} must be finite {what} > 0")
    if len(set(levels)) < len(levels):
        raise ValueError(f"{given} must name each once")


def without_target(config: TrainConfig) -> TrainConfig:
    """The same for a loss that asks no target."""
    if not config.on_target:
        return config
    names = ("clock", *TARGET_FIELDS)
    defaults: dict[str, Any] = {f.name: f.default for f in fields(TrainConfig) if f.name in names}
    return replace(config, **defaults)


def run_name(term: str, level: float, seed: int) -> str:
    """Name of a run, and of its directory."""
    return f"{term}-{level:.12g}-{seed}" if term in GOALS else f"{term}-{level:g}-{seed}"


def settings_of(config: TrainConfig, term: str, level: float, seed: int) -> TrainConfig:
    """``config`` with this speed term at this level, and this seed."""
    changes: dict[str, Any] = {**TERMS[term], "seed": seed}
    if changes["speed"] != "time":
        config = without_target(config)
    if term in GOALS:
        changes[GOALS[term]] = int(level) if term == "edges" else level
    elif term == "time":
        changes["time_coefficient"] = config.time_coefficient * level
    else:
        changes["proxy_coefficient"] = config.proxy_coefficient * level
    if changes["speed"] != "time":
        changes["profile"] = ""
    return replace(config, **changes)
