"""Measured time: seconds of the sparse step on this machine, as a term of the loss (DESIGN, 3).

Measured time has no useful gradient.  The value is the measured one, the gradient that of an expected cost
(straight-through, Bengio et al. 2013): every candidate exists with a probability, its gate; the costs of an edge,
a neuron and a level are fitted to measurements and updated during training.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from sparse_dnm.config import ABLATIONS, CLOCKS, ESTIMATORS, check_choice
from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.topology import Topology
from sparse_dnm.loss.controller import Controller
from sparse_dnm.loss.proxy import Gradient
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.calibration import Calibration, calibrate, describe, fit_clock
from sparse_dnm.timing.clock import Clock
from sparse_dnm.timing.cost_model import COUNTS, FEATURES, CostModel, Refit
from sparse_dnm.timing.probes import Bench, Settings

MAX_MODEL_ERROR = 0.15  # largest median relative error of recent predictions of a cost model that fits
MAX_START_MEASUREMENTS = 3  # of the first step, if it is not as predicted
UNEXPECTED = 1.5  # a first step this many times longer than predicted is measured again
SPSA_DRAWS = 4  # pairs of structures per SPSA estimate
SPSA_ROUNDS = 3  # rounds a b b a per pair


@dataclass(frozen=True)
class TimeSettings:
    """How `MeasuredTime` measures."""

    mode: str = "train"  # one of config.TIME_MODES
    batch: int = 50  # samples; in mode "train" those of the training step
    clock: str = "process_time"  # one of config.CLOCKS
    every: int = 10  # calls between timed steps
    tau: float = 0.3  # width of a gate, in closeness
    budget: float | None = None  # s; None: no constraint
    estimator: str = "cost-model"  # one of config.ESTIMATORS
    ablation: str = "none"  # one of config.ABLATIONS
    probes: int = 20  # structures to fit, and half as many to judge the fit
    repeats: int = 5  # measurements of each
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("clock", self.clock, CLOCKS)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("ablation", self.ablation, ABLATIONS)
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise ValueError(f"tau={self.tau!r} must be a finite number > 0, in closeness")
        if self.every < 1:
            raise ValueError(f"every={self.every} must be >= 1")
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise ValueError(f"budget={self.budget!r} must be a finite number of seconds > 0")


class MeasuredTime:
    """Measured speed: seconds of the sparse step of ``model``, relative to the budget or, without one, to the start.

    Creating it calibrates: structures derived from the network are timed, unless the ``profile`` of a calibration or
    the ``state`` of an earlier object is given.  Every ``settings.every``-th call of `value` is a timed step; in
    between the value stays.  To time it, a step of ``settings.batch`` samples is run, after some unmeasured ones: its
    data are then in the caches, as in a process that does nothing else.  A caller that has timed the model's own step
    passes those seconds instead.  Compilation, the search for structure, and steps during which the process was
    preempted are not included.

    The model is not changed: ``executor`` is the one that was timed, for "auto" the faster one.
    A clock that is not fit for that is replaced, see `timing.calibration.calibrate`.
    Raises ValueError if the model runs on torch-sparse, no clock is fine enough, or the profile does not fit.
    """

    def __init__(
        self,
        model: DynamicManifold,
        settings: TimeSettings = TimeSettings(),
        profile: Calibration | None = None,
        on_round: Callable[[], None] = lambda: None,
        state: dict[str, Any] | None = None,
    ):
        if model.executor.name == "torch-sparse":
            raise ValueError("executor torch-sparse cannot be timed by --speed time; choose auto, columns or wavefront")
        self.settings = settings
        evaluation = model.find()
        self._bench = Bench(evaluation, settings.mode, settings.batch, settings.clock, settings.seed)
        asked = model.executor
        name = state["executor"] if state and asked.name == "auto" else asked.name
        threads = [asked.most]
        if asked.asked == 0 and evaluation.engine.kind == "cpu":
            known = state["threads"] if state else profile and profile.threads
            threads = [known] if known else sorted({1, asked.most})
        self.executor = self._bench.settle(name, threads)
        only = ("call", "edge") if settings.ablation == "edges-only" else COUNTS
        self._measuring = self._bench.settings(self.executor, settings.probes, settings.repeats, only)
        if state is not None:
            self._measuring = replace(self._measuring, clock=state.get("clock", self._measuring.clock))
        self.clock = Clock.of(self._measuring.clock)
        self._engine: Engine = self._bench.engine(self.executor)
        self._recent: deque[float] = deque(maxlen=50)  # s, for the placebo
        self.seconds = math.nan  # of the last timed step
        self.calls = self.timed = 0
        self._prices: Prices | None = None
        self._began = False  # a step has been timed since the calibration
        self.calibration: Calibration | None = None
        if state is None:
            self._calibrate(evaluation, profile, on_round)
        else:
            self._restore(state)

    def _calibrate(self, evaluation: Evaluation, profile: Calibration | None, on_round: Callable[[], None]) -> None:
        """Fit the cost model, and measure the first step."""
        wanted, ablation = self._measuring, self.settings.ablation
        self._rng = np.random.default_rng(self.settings.seed)
        if profile is None:
            profile = calibrate(evaluation.structure, self._engine, self._bench.x, wanted, on_round)
        else:
            fit, _ = fit_clock(wanted, self.executor.threads)
            check_profile(profile, fit if profile.settings.clock == fit.clock else wanted)
        self.calibration = profile
        self._measuring = replace(wanted, clock=profile.settings.clock)
        self.clock = Clock.of(profile.settings.clock)
        counts, seconds = profile.counts[: profile.n_fitted], profile.seconds[: profile.n_fitted]
        if ablation == "shuffled":
            seconds = self._rng.permutation(seconds)
        only = COUNTS if ablation == "shuffled" else wanted.only
        self.refit = Refit(CostModel.fit(wanted.priced, counts, seconds, only), counts, seconds)
        self._predicted = float(self.refit.model.seconds(self.counts(evaluation)))  # s, of the first step
        for _ in range(MAX_START_MEASUREMENTS):
            start = self.measure(evaluation)
            if start < UNEXPECTED * self._predicted:
                break
        self._begin(start)

    def _begin(self, start: float) -> None:
        budget = self.settings.budget
        self.start = start  # s, of a step of the network at the calibration
        self.reference = budget or start  # s, the unit of the value
        self.controller = None if budget is None else Controller(budget, start)

    # -- value -----------------------------------------------------------------------------------------------

    def _explicit(self, evaluation: Evaluation) -> float:
        """Seconds of a step that is run only for timing, after warm-up."""
        e = evaluation
        return self._engine.stopwatch(
            e.structure, e.values.strengths, self._bench.x, self.settings.mode == "train"
        ).warm(self.clock)

    def measure(self, evaluation: Evaluation, repeats: int = 15) -> float:
        """Median seconds of a step of this structure, run only for timing."""
        return statistics.median(self._explicit(evaluation) for _ in range(repeats))

    def promise(self) -> Settings:
        """Settings with which subprocesses time the network, for the summary."""
        return replace(self._measuring, repeats=101, device=str(self._engine.device))

    def seconds_per(self) -> dict[str, float]:
        """Seconds per feature in the present cost model."""
        return dict(zip(FEATURES[self._measuring.priced], self.refit.model.coefficients, strict=True))

    def counts(self, evaluation: Evaluation) -> Floats:
        """Features of the structure."""
        found: Floats = self._engine.features(evaluation.structure, self._measuring.executor)
        return found

    @property
    def takes_steps(self) -> bool:
        """Whether the model's own steps are timed: not with a budget, which is about warm steps, and not on CUDA,
        where Python launches the kernels one by one."""
        return self.settings.mode == "train" and self.settings.budget is None and self._measuring.device == "cpu"

    def value(self, evaluation: Evaluation, ran: float | None = None) -> float:
        """Measured seconds of the last timed step, relative to the reference; every ``every``-th call times one.

        ran   seconds of the model's own last forward and backward pass by `clock`, if the caller has timed them
        """
        self.calls += 1
        if self.calls % self.settings.every == 1 or self.settings.every == 1 or math.isnan(self.seconds):
            self._time(evaluation, ran if self.takes_steps and self._began else None)
        return self.seconds / self.reference

    @property
    def untimed_calls(self) -> int:
        """Number of calls of `value` before the next timed step."""
        return 0 if math.isnan(self.seconds) else -self.calls % self.settings.every

    def pass_calls(self, count: int) -> None:
        """Count ``count`` calls of `value` as made, whose results the caller knows."""
        self.calls += count

    def _time(self, evaluation: Evaluation, ran: float | None) -> None:
        """Time a step; update prices and multiplier."""
        before = self.clock.disturbances()
        seconds = self._explicit(evaluation) if ran is None else ran
        self._began = True
        if seconds <= 0.0 or (self.clock.disturbances() != before and not math.isnan(self.seconds)):
            return
        self.timed += 1
        self.seconds = seconds
        counts = self.counts(evaluation)
        if self.settings.ablation == "shuffled":
            self._recent.append(seconds)
            seconds = float(self._rng.choice(self._recent))
        if self.settings.ablation != "no-refit":
            self.refit.add(counts, seconds)
        self._prices = self.refit.model.prices(counts)
        if self.controller is not None:
            self.controller.update(self.seconds)

    @property
    def multiplier(self) -> float:
        """Factor of the term's coefficient: 1 without a budget."""
        return 1.0 if self.controller is None else self.controller.multiplier

    @property
    def fits(self) -> bool:
        """Whether the cost model predicts the last timed steps."""
        return math.isnan(self.refit.error) or self.refit.error <= MAX_MODEL_ERROR

    # -- gradient --------------------------------------------------------------------------------------------

    def prices(self, evaluation: Evaluation) -> Prices:
        """Seconds of one more of each, near this structure."""
        return self.refit.model.prices(self.counts(evaluation))

    def gradient(self, evaluation: Evaluation) -> Gradient:
        """Gradient of the value."""
        if self._prices is None:  # resumed, or the first timed step was interrupted
            self._prices = self.prices(evaluation)
        if self.settings.estimator == "spsa":
            return self._spsa(evaluation)
        cost = evaluation.expected_cost(self.settings.tau, self._relative(self._prices))
        return Gradient(cost.by_cutoff, cost.by_closeness)

    def _relative(self, p: Prices) -> Prices:
        """Prices relative to the reference."""
        r = self.reference
        return Prices(*(price / r for price in p))

    def known_prices(self) -> Prices | None:
        """The prices that `gradient` uses, relative to the reference; None if it uses none, or does not have them
        yet."""
        if self._prices is None or self.settings.estimator == "spsa":
            return None
        return self._relative(self._prices)

    def _spsa(self, evaluation: Evaluation) -> Gradient:
        """Simultaneous perturbation (Spall 1992), without a cost model: the closeness of every candidate is moved by
        tau, up or down at random, and each gets the difference in time of the two structures, with its sign."""
        e, host = evaluation.host_values, evaluation.host
        tau, rng = self.settings.tau, np.random.default_rng((self.settings.seed, self.calls))
        topology, candidates = host.topology, host.candidates
        assert candidates is not None
        rows = np.arange(topology.n_neurons - len(candidates.indptr) + 1, topology.n_neurons)
        readers = np.repeat(rows, np.diff(candidates.indptr))
        size, by_size = np.abs(e.d).astype(float), np.zeros(len(e.d))
        for _ in range(SPSA_DRAWS):
            signs = rng.choice([-1.0, 1.0], len(e.d))
            watches = []
            for direction in (1.0, -1.0):
                kept = size + direction * tau * signs > e.c
                edges = np.stack([candidates.indices[kept], readers[kept]], axis=1)
                part = Topology.from_edges(edges, topology.n_neurons, topology.inputs, topology.outputs)
                watches.append(self._bench.stopwatch(self._engine, part))
            more, less = self._pair(*watches)
            by_size += (more - less) / (2 * tau * self.reference) * signs / SPSA_DRAWS
        near = size > e.threshold  # others are candidates only since the last search
        by_size *= near
        by_cutoff = -float(by_size.sum()) * e.c * (1.0 - e.c)
        return Gradient(by_cutoff, (by_size * np.sign(e.d)).astype(e.d.dtype))

    def _pair(self, a: Any, b: Any) -> tuple[float, float]:
        """Median seconds of two stopwatches, in the order a b b a."""
        found: tuple[list[float], list[float]] = ([], [])
        for _ in range(SPSA_ROUNDS):
            for which in (0, 1, 1, 0):
                found[which].append((a, b)[which].warm(self.clock))
        return statistics.median(found[0]), statistics.median(found[1])

    def __call__(self, model: DynamicManifold) -> Tensor:
        """The term, a scalar tensor with its gradient; call the model first."""
        evaluation = model.evaluation
        return evaluation.straight_through(self.value(evaluation), *self.gradient(evaluation))

    # -- state ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, as JSON values."""
        return {
            "executor": self.executor.name,
            "threads": self.executor.threads,
            "device": self._measuring.device,
            "clock": self._measuring.clock,
            "start": self.start,
            "seconds": None if math.isnan(self.seconds) else self.seconds,
            "calls": self.calls,
            "timed": self.timed,
            "integral": None if self.controller is None else self.controller.integral,
            "refit": self.refit.state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, without a calibration."""
        self._rng = np.random.default_rng((self.settings.seed, state["calls"]))
        self._begin(state["start"])
        self.refit = Refit.from_state(state["refit"])
        self.calls, self.timed = state["calls"], state["timed"]
        if state["seconds"] is not None:
            self.seconds = state["seconds"]
        if self.controller is not None:
            self.controller.integral = state["integral"]

    def describe(self) -> list[str]:
        """The results of the calibration, as lines."""
        if self.calibration is None:
            return []
        lines = [*describe(self.calibration), f"  reference: {1e6 * self.reference:.1f} µs"]
        if self.settings.ablation == "none" and not 1 < UNEXPECTED * self.start / self._predicted < UNEXPECTED**2:
            lines.append(
                f"warning: a step of this network takes {1e6 * self.start:.4g} µs, the calibration predicts "
                f"{1e6 * self._predicted:.4g}: the profile is of another network, or threads wait for each other on a "
                "busy machine; calibrate again, keep the machine quiet, or use --threads 1"
            )
        return lines


def check_profile(profile: Calibration, wanted: Settings) -> None:
    """Raise ValueError unless ``profile`` was measured with these settings."""
    asked_as_well = profile.asked_clock and wanted.clock == profile.asked_clock
    clock = wanted.clock if asked_as_well else profile.settings.clock
    had = replace(profile.settings, threads=profile.threads, clock=clock)
    names = ("executor", "mode", "batch", "threads", "clock", "device")
    differ = [f"{name} is {getattr(had, name)} in it, {getattr(wanted, name)} here" for name in names
              if getattr(had, name) != getattr(wanted, name)]  # fmt: skip
    if differ:
        raise ValueError(
            f"the profile is of something else ({'; '.join(differ)}); write one with sparse-dnm calibrate and the "
            "same executor, mode, batch size, threads, clock and device"
        )
