"""Terms of the loss that ask for a smaller network, with their coefficients, and the whole loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparse_dnm.config import TrainConfig
from sparse_dnm.loss.controller import Controller
from sparse_dnm.loss.memory import MeasuredMemory
from sparse_dnm.loss.proxy import SparsityProxy
from sparse_dnm.loss.target_time import TargetTime
from sparse_dnm.loss.term import TimeSettings, TimeTerm
from sparse_dnm.loss.time import MeasuredTime
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.target import Target
from sparse_dnm.timing.calibration import read_profile
from sparse_dnm.timing.cost_model import ON_TARGET


class Terms(NamedTuple):
    """The loss, and its terms without their coefficients; None: not configured."""

    total: float
    objective: float
    flow: float | None
    speed: float | None
    memory: float | None


class Costs:
    """The terms that ask for a smaller network: speed and memory, if configured, with their coefficients."""

    def __init__(
        self,
        config: TrainConfig,
        speed: SparsityProxy | TimeTerm | None = None,
        memory: MeasuredMemory | None = None,
    ):
        self.speed, self.memory = speed, memory
        self.steering: Controller | None = None  # of the coefficient, by ``steered``
        self.steered = ""
        self.resting = False  # until the end
        self.paused = False  # for some steps
        self._speed_coefficient, self._memory_coefficient = config.speed_coefficient, config.memory_coefficient

    def coefficients(self) -> tuple[float, float]:
        """The present coefficients of speed, times the multiplier of a controller, and of memory."""
        if self.resting or self.paused:
            return 0.0, 0.0
        multiplier = self.speed.multiplier if isinstance(self.speed, TimeTerm) else 1.0
        if self.steering is not None:
            multiplier = self.steering.multiplier
        return self._speed_coefficient * multiplier, self._memory_coefficient

    def rest(self) -> None:
        """From now on only report the terms."""
        self.resting = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of measured terms."""
        return {
            "time": self.speed.state() if isinstance(self.speed, TimeTerm) else None,
            "memory_reference": None if self.memory is None else self.memory.reference,
        }

    def terms(self) -> tuple[SparsityProxy | TimeTerm | None, MeasuredMemory | None]:
        """In the order of `coefficients`."""
        return self.speed, self.memory


def total_of(config: TrainConfig, costs: Costs, objective: float, *terms: float | None) -> Terms:
    """The loss of these terms (flow, speed, memory), by their coefficients."""
    coefficients = config.flow, *costs.coefficients()
    total = config.objective * objective
    total += sum(c * value for c, value in zip(coefficients, terms, strict=True) if value is not None)
    return Terms(total, objective, *terms)


def make_costs(
    config: TrainConfig, model: DynamicManifold, saved: dict[str, Any], time_steps: int = 0
) -> tuple[Costs, list[str]]:
    """Terms of speed and memory by the configuration, calibrated or from the checkpoint (``saved``); also the results
    of the calibration, as lines.  ``time_steps``: of the sequences of a recurrent network."""
    speed: SparsityProxy | TimeTerm | None = None
    notes: list[str] = []
    if config.speed == "proxy":
        speed = SparsityProxy(config.tau, config.speed_power, config.proxy_gradient)
    elif config.speed == "time":
        speed = _time(config, model, saved.get("time"), time_steps)
        notes = speed.describe()
    memory = None
    if config.memory_coefficient:
        through = time_steps, config.tbptt, config.recompute_every
        memory = MeasuredMemory(model, "train", config.batch_size, config.tau, *through)
        memory.reference = saved.get("memory_reference") or memory.reference
    return Costs(config, speed, memory), notes


def _time(config: TrainConfig, model: DynamicManifold, before: dict[str, Any] | None, time_steps: int) -> TimeTerm:
    """The term of measured time, of the kernels here or of a target; as it was ``before``, if it can go on."""
    profile = read_profile(Path(config.profile)) if config.profile else None
    settings = time_settings(config, time_steps)
    elsewhere = profile is not None and profile.settings.executor == ON_TARGET
    if elsewhere and not config.on_target and config.clock != TrainConfig.clock:
        raise ValueError(
            f"clock={config.clock!r} reads the time of kernels here, and the profile is of a target: leave it out, or "
            "give clock='target'"
        )
    if config.on_target or elsewhere:
        settings = replace(settings, mode="infer", batch=1)
        goes_on = before is not None and before["executor"] == ON_TARGET
        target = target_of(config) if config.on_target else None
        return TargetTime(model, settings, target, profile, before if goes_on else None)
    if before and _goes_on(model, before):
        return MeasuredTime(model, settings, state=before)
    return MeasuredTime(model, settings, profile)


def target_of(config: TrainConfig) -> Target:
    """The target that programs in C are compiled for and run on."""
    return Target(config.target_cc, config.target_copy, config.target_run, config.target_timeout)


def time_settings(config: TrainConfig, time_steps: int = 0) -> TimeSettings:
    """How a training measures time; ``time_steps``: of the sequences of a recurrent network."""
    return TimeSettings(
        mode=config.time_mode,
        batch=config.batch_size if config.time_mode == "train" else config.time_batch,
        clock="perf_counter" if config.on_target else config.clock,
        every=config.time_every,
        tau=config.tau,
        budget=1e-6 * config.budget_us or None,
        estimator=config.time_estimator,
        ablation=config.time_ablation,
        seed=config.seed,
        time_steps=time_steps,
        tbptt=config.tbptt,
        recompute_every=config.recompute_every,
    )


def _goes_on(model: DynamicManifold, before: dict[str, Any]) -> bool:
    """The measured time in a checkpoint is of the same executor on the same kind of device."""
    now, device = model.executor, torch.device(model.alpha.device)
    return (
        now.name in ("auto", before["executor"])
        and (before["threads"] <= now.most if now.asked == 0 else now.most == before["threads"])
        and before.get("device", "cpu") == device.type
    )
