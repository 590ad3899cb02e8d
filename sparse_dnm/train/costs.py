"""Terms of the loss that ask for a smaller network, with their coefficients, and the loss that they add up to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparse_dnm.config import TrainConfig
from sparse_dnm.loss.controller import Controller
from sparse_dnm.loss.memory import MeasuredMemory
from sparse_dnm.loss.proxy import SparsityProxy
from sparse_dnm.loss.time import MeasuredTime, TimeSettings
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.calibration import read_profile


class Terms(NamedTuple):
    """The loss, and its terms before their coefficients; None: not wanted."""

    total: float
    objective: float
    flow: float | None
    speed: float | None
    memory: float | None


class Costs:
    """The terms that ask for a smaller network: speed and memory, where wanted, with their coefficients."""

    def __init__(
        self,
        config: TrainConfig,
        speed: SparsityProxy | MeasuredTime | None = None,
        memory: MeasuredMemory | None = None,
        edges: Controller | None = None,
    ):
        self.speed, self.memory, self.edges = speed, memory, edges
        self._resting = False
        self.paused = False  # for some steps
        self._speed_coefficient, self._memory_coefficient = config.speed_coefficient, config.memory_coefficient

    def coefficients(self) -> tuple[float, float]:
        """Of speed, as the multiplier of the budget or of the edges has it now, and of memory."""
        if self._resting or self.paused:
            return 0.0, 0.0
        multiplier = self.speed.multiplier if isinstance(self.speed, MeasuredTime) else 1.0
        if self.edges is not None:
            multiplier = self.edges.multiplier
        return self._speed_coefficient * multiplier, self._memory_coefficient

    def rest(self) -> None:
        """From here on they are reported only."""
        self._resting = True

    def terms(self) -> tuple[SparsityProxy | MeasuredTime | None, MeasuredMemory | None]:
        """In the order of `coefficients`."""
        return self.speed, self.memory


def total_of(config: TrainConfig, costs: Costs, objective: float, *terms: float | None) -> Terms:
    """The loss of these terms (flow, speed, memory), by their coefficients."""
    coefficients = config.flow, *costs.coefficients()
    total = config.objective * objective
    total += sum(c * value for c, value in zip(coefficients, terms, strict=True) if value is not None)
    return Terms(total, objective, *terms)


def make_costs(config: TrainConfig, model: DynamicManifold, saved: dict[str, Any]) -> tuple[Costs, list[str]]:
    """Speed and memory as the configuration wants them, calibrated or as the checkpoint has them (``saved``); and what
    the calibration found, a line each."""
    speed: SparsityProxy | MeasuredTime | None = None
    notes: list[str] = []
    if config.speed == "proxy":
        speed = SparsityProxy(config.tau, config.speed_power, config.proxy_gradient)
    elif config.speed == "time":
        before = saved.get("time")
        if before and _goes_on(model, before):
            speed = MeasuredTime(model, time_settings(config), state=before)
        else:
            profile = read_profile(Path(config.profile)) if config.profile else None
            speed = MeasuredTime(model, time_settings(config), profile)
            notes = speed.describe()
    memory = None
    if config.memory_coefficient:
        memory = MeasuredMemory(model, "train", config.batch_size, config.tau)
        memory.reference = saved.get("memory_reference") or memory.reference
    return Costs(config, speed, memory), notes


def time_settings(config: TrainConfig) -> TimeSettings:
    """How a training measures time."""
    return TimeSettings(
        mode=config.time_mode,
        batch=config.batch_size if config.time_mode == "train" else config.time_batch,
        clock=config.clock,
        every=config.time_every,
        tau=config.tau,
        budget=1e-6 * config.budget_us or None,
        estimator=config.time_estimator,
        ablation=config.time_ablation,
        seed=config.seed,
    )


def _goes_on(model: DynamicManifold, before: dict[str, Any]) -> bool:
    """What a checkpoint knows of the time was measured by the same executor on the same kind of device."""
    now, device = model.executor, torch.device(model.alpha.device)
    return (
        now.name in ("auto", before["executor"])
        and now.threads == before["threads"]
        and before.get("device", "cpu") == device.type
    )
