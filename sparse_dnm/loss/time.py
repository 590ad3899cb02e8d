"""Terms of the loss that are measured: seconds and bytes of the sparse step on this machine (DESIGN, 3).

A stopwatch is flat almost everywhere.  The value is what was measured, the gradient is that of an expected cost
(straight-through, Bengio et al. 2013): every candidate exists with a chance, its gate; what an edge, a neuron and a
level cost is fitted to measurements and kept fitted.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.config import ABLATIONS, CLOCKS, CUDA_CLOCK, ESTIMATORS, check_choice
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.buffers import footprint
from sparse_dnm.engine.candidates import Evaluation, Prices, expected_cost
from sparse_dnm.engine.cpu import Floats, Plan
from sparse_dnm.engine.cuda import Structure
from sparse_dnm.engine.schedule import Executor, Schedule, tile_width, tiles_of
from sparse_dnm.engine.topology import Topology
from sparse_dnm.loss.proxy import Gradient
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.calibration import (
    Calibration,
    DeviceStep,
    Settings,
    Step,
    calibrate,
    describe,
    plans_like,
    step_of,
    time_steps,
)
from sparse_dnm.timing.clock import Clock
from sparse_dnm.timing.cost_model import COUNTS, FEATURES, CostModel, Refit, features

UNFIT = 0.15  # median relative error of late predictions from which on the cost model does not fit
STARTS = 3  # times that the first step is measured while it is not as the calibration foretells
OTHERWISE = 1.5  # times what was foretold, from which on something is wrong
DRAWS = 4  # pairs of structures whose times make one estimate by SPSA
PAIR = 3  # a b b a rounds over such a pair


class Controller:
    """PI controller of a multiplier on log(size / goal), in logarithms; bounded, without wind-up.

    ``size`` is what has a budget: seconds of a step, or edges.
    The multiplier grows while it is over the goal and shrinks below; at its bounds the integral stands still.
    The goal falls from the size at the start to the budget while `progress` goes from 0 to 1: an edge that is gone
    hardly comes back, so that the network must not shrink faster than it has to.
    """

    KP, KI = 5.0, 0.05
    LOW, HIGH = math.log(1e-3), math.log(1e2)
    FIRST = math.log(0.1)  # integral at the start

    def __init__(self, budget: float, start: float, integral: float = FIRST):
        self.budget, self.start, self.integral = budget, max(start, budget), integral
        self.multiplier = math.exp(integral)
        self.progress = 1.0

    @property
    def goal(self) -> float:
        """The size by now."""
        return self.start * (self.budget / self.start) ** min(self.progress, 1.0)

    def update(self, size: float) -> float:
        """Take note of the size; the new multiplier."""
        error = math.log(max(size, 1e-300) / self.goal)
        wanted = self.KP * error + self.integral + self.KI * error
        if self.LOW <= wanted <= self.HIGH or (wanted > self.HIGH) == (error < 0):
            self.integral += self.KI * error
        self.multiplier = math.exp(min(max(self.KP * error + self.integral, self.LOW), self.HIGH))
        return self.multiplier


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
    probes: int = 20  # structures of the calibration, and half as many to judge it
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
    """Measured speed: seconds of the sparse step of ``model`` over the budget or, without one, over those at the start.

    It is calibrated when it is made: probes are cut out of the network and timed, unless a ``profile`` of an earlier
    calibration is given.  Every ``settings.every``-th call of `value` is a timed step, between them the value stands.
    In mode "train" that is the forward of the last call of the model and the backward before it, as they ran.  In mode
    "infer", and where a budget is to be kept, a step of ``settings.batch`` samples is run for it, some times before it
    is timed: its data are in the caches then, as in a process that does nothing else.  Neither compilation nor the
    search for structure is in it, nor a step during which the system took the processor away.

    In mode "train" the executor "auto" of the model is settled by the calibration.
    Raises ValueError where the model runs on torch-sparse, the clock is too coarse, or the profile is of other things.
    """

    def __init__(
        self,
        model: DynamicManifold,
        settings: TimeSettings = TimeSettings(),
        profile: Calibration | None = None,
        on_round: Callable[[], None] = lambda: None,
    ):
        self.settings, self._clock = settings, clock_of(model, settings)
        if model.executor.name == "torch-sparse":
            raise ValueError("executor torch-sparse cannot be timed by --speed time; choose auto, columns or wavefront")
        _, plan = model.find()
        self._x = _sample(model, settings, plan.slope.dtype)
        self.executor = self._settle(model.executor, plan)
        only = ("call", "edge") if settings.ablation == "edges-only" else COUNTS
        wanted = self._settings(self.executor, only=only)
        self._measuring = wanted
        if profile is None:
            profile = calibrate(model.topology, plans_like(plan), self._x, wanted, on_round)
        else:
            check_profile(profile, wanted)
        self.calibration: Calibration | None = profile
        counts, seconds = profile.counts[: profile.n_fitted], profile.seconds[: profile.n_fitted]
        if settings.ablation == "shuffled":
            self._rng = np.random.default_rng(settings.seed)
            seconds = self._rng.permutation(seconds)
            self.refit = Refit(CostModel.fit(wanted.priced, counts, seconds), counts, seconds)
        else:
            self.refit = Refit(CostModel.fit(wanted.priced, counts, seconds, only), counts, seconds)
        self._foretold = float(self.refit.model.seconds(self.counts(model)))  # s, of the first step
        for _ in range(STARTS):
            start = self.measure(model)
            if start < OTHERWISE * self._foretold:
                break
        self._begin(model, start)

    def _begin(self, model: DynamicManifold, start: float) -> None:
        budget = self.settings.budget
        self.start = start  # s, of a step of the network as it was calibrated on
        self.reference = budget or start  # s, what the value is relative to
        self.controller = None if budget is None else Controller(budget, start)
        self.seconds = math.nan  # of the last timed step
        self._recent: deque[float] = deque(maxlen=50)  # s, for the placebo
        self._calls = self.timed = 0
        self._prices: Prices | None = None
        self._began = False  # a step has been timed: since then the model has run its own
        if self.settings.mode == "train":
            model.executor.timer = self._clock.read

    def _settle(self, executor: Executor, plan: Plan) -> Executor:
        """The executor that is timed: the model's own in mode "train"; of "auto", the faster one."""
        settings, name = self.settings, executor.name
        if name == "auto":
            name = "columns"
            if isinstance(self._x, Tensor) or executor.threads > tiles_of(settings.batch):
                own = {name: Executor(name, executor.threads) for name in ("columns", "wavefront")}
                timing = replace(self._settings(executor, "columns"), repeats=9)
                if timing.device == "cpu":
                    timing = replace(timing, clock="perf_counter")
                steps = [step_of(replace(plan, executor=own[name]), _ones(plan), self._x, timing) for name in own]
                seconds = np.median(time_steps(steps, timing).seconds, axis=1)
                name = list(own)[int(np.argmin(seconds))]
        if settings.mode == "train":
            executor.name = name
            return executor
        return Executor(name, executor.threads)

    def _settings(self, executor: Executor, name: str = "", only: tuple[str, ...] = COUNTS) -> Settings:
        """How a step is timed here by ``executor``, or by that of this name."""
        s, device = self.settings, "cuda" if isinstance(self._x, Tensor) else "cpu"
        head = name or executor.name, s.mode, s.batch, executor.threads, self._clock.name
        return Settings(*head, s.probes, s.repeats, s.seed, only, device)

    # -- value -----------------------------------------------------------------------------------------------

    def _explicit(self, model: DynamicManifold) -> float:
        """Seconds of a step that is run for the purpose, warm."""
        if model.running is not None:
            assert isinstance(self._x, Tensor)
            structure, strengths = model.running
            return DeviceStep(structure, self.executor, strengths, self._x, self._measuring).warm(self._clock)
        evaluation, plan = model.found
        if self.executor is not model.executor:
            plan = replace(plan, executor=self.executor)
        self.executor.timer = self._clock.read
        return step_of(plan, evaluation.strengths, self._x, self._measuring).warm(self._clock)

    def measure(self, model: DynamicManifold, repeats: int = 15) -> float:
        """Median seconds of a step, run for the purpose, with the structure of the last forward."""
        return statistics.median(self._explicit(model) for _ in range(repeats))

    def promise(self) -> Settings:
        """How fresh processes measure what is promised of a network."""
        device = str(self._x.device) if isinstance(self._x, Tensor) else "cpu"
        return replace(self._measuring, repeats=101, device=device)

    def seconds_per(self) -> dict[str, float]:
        """What each feature costs by the model of the moment."""
        return dict(zip(FEATURES[self._measuring.priced], self.refit.model.coefficients, strict=True))

    def counts(self, model: DynamicManifold) -> Floats:
        """Features of the structure of the last forward."""
        if model.running is not None:
            s = model.running[0]
            return np.array([1, len(s.inputs), len(s.order), s.n_live_edges, len(s.waves) - 1], float)
        return features(model.found[1].schedule, self._measuring.priced)

    def _as_it_ran(self, model: DynamicManifold) -> float:
        """Seconds of the last forward and backward of the model."""
        ran = model.executor.seconds
        return ran["forward"] + ran["backward"] - 2 * self._clock.overhead

    def value(self, model: DynamicManifold) -> float:
        """Measured seconds of the last timed step, over the reference; every ``every``-th call is one."""
        self._calls += 1
        if self._calls % self.settings.every == 1 or self.settings.every == 1 or math.isnan(self.seconds):
            self._time(model)
        return self.seconds / self.reference

    def _time(self, model: DynamicManifold) -> None:
        """A timed step: its seconds, and what follows from them for prices and multiplier."""
        before = self._clock.disturbances()
        ran: dict[str, Any] = {}
        if self.settings.mode == "train" and self.settings.budget is None and model.running is None:
            ran = model.executor.seconds  # on CUDA, a step of the model's own waits for Python
        seconds = self._as_it_ran(model) if "backward" in ran and self._began else self._explicit(model)
        self._began = True
        if seconds <= 0.0 or (self._clock.disturbances() != before and not math.isnan(self.seconds)):
            return
        self.timed += 1
        self.seconds = seconds
        counts = self.counts(model)
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
        """What the coefficient of the term is multiplied by: 1 without a budget."""
        return 1.0 if self.controller is None else self.controller.multiplier

    @property
    def fits(self) -> bool:
        """The cost model predicts the last timed steps."""
        return math.isnan(self.refit.error) or self.refit.error <= UNFIT

    # -- gradient --------------------------------------------------------------------------------------------

    def gradient(self, model: DynamicManifold) -> Gradient:
        """Of the value, at the structure of the last forward."""
        evaluation, plan = model.found
        if self._prices is None:  # resumed, or the first timed step was interrupted
            self._prices = self.refit.model.prices(self.counts(model))
        if self.settings.estimator == "spsa":
            return self._spsa(evaluation, plan)
        p, r = self._prices, self.reference
        scaled = Prices(p.edge / r, p.input / r, p.neuron / r, p.level / r)
        cost = expected_cost(evaluation, model.config, plan.schedule.topology.live, self.settings.tau, scaled)
        return Gradient(cost.by_cutoff, cost.by_closeness)

    def _spsa(self, e: Evaluation, plan: Plan) -> Gradient:
        """Simultaneous perturbation (Spall 1992), without any model: the closeness of all candidates is moved by tau,
        up or down at random, and the difference in time of the two structures is shared out by those signs."""
        tau, rng = self.settings.tau, np.random.default_rng((self.settings.seed, self._calls))
        topology = plan.schedule.topology
        readers = np.repeat(np.arange(topology.n_neurons - len(e.candidates.indptr) + 1, topology.n_neurons),
                            np.diff(e.candidates.indptr))  # fmt: skip
        size, by_size = np.abs(e.d).astype(float), np.zeros(len(e.d))
        self.executor.timer = self._clock.read
        for _ in range(DRAWS):
            signs = rng.choice([-1.0, 1.0], len(e.d))
            steps = []
            for direction in (1.0, -1.0):
                kept = size + direction * tau * signs > e.c
                edges = np.stack([e.candidates.indices[kept], readers[kept]], axis=1)
                part = Topology.from_edges(edges, topology.n_neurons, topology.inputs, topology.outputs)
                there = replace(plan, schedule=Schedule(part), executor=self.executor)
                steps.append(step_of(there, _ones(there), self._x, self._measuring))
            more, less = self._pair(steps[0], steps[1])
            by_size += (more - less) / (2 * tau * self.reference) * signs / DRAWS
        near = size > e.threshold  # the others are candidates by accident of the last scan
        by_size *= near
        by_cutoff = -float(by_size.sum()) * e.c * (1.0 - e.c)
        return Gradient(by_cutoff, (by_size * np.sign(e.d)).astype(e.d.dtype))

    def _pair(self, a: Step | DeviceStep, b: Step | DeviceStep) -> tuple[float, float]:
        """Median seconds of two steps, in the order a b b a."""
        found: tuple[list[float], list[float]] = ([], [])
        for _ in range(PAIR):
            for which in (0, 1, 1, 0):
                found[which].append((a, b)[which].warm(self._clock))
        return statistics.median(found[0]), statistics.median(found[1])

    def __call__(self, model: DynamicManifold) -> Tensor:
        """The term, a scalar tensor with its gradient; call the model before."""
        value = self.value(model)
        return model.straight_through(value, *self.gradient(model))

    # -- keeping ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, as JSON values."""
        return {
            "executor": self.executor.name,
            "threads": self.executor.threads,
            "device": self._measuring.device,
            "start": self.start,
            "seconds": None if math.isnan(self.seconds) else self.seconds,
            "calls": self._calls,
            "timed": self.timed,
            "integral": None if self.controller is None else self.controller.integral,
            "refit": self.refit.state(),
        }

    @classmethod
    def resumed(cls, model: DynamicManifold, settings: TimeSettings, state: dict[str, Any]) -> MeasuredTime:
        """As it was when `state` was called; nothing is calibrated."""
        made = cls.__new__(cls)
        made.settings, made._clock, made.calibration = settings, clock_of(model, settings), None
        _, plan = model.find()
        made._x = _sample(model, settings, plan.slope.dtype)
        made._rng = np.random.default_rng((settings.seed, state["calls"]))
        name = state["executor"] if model.executor.name == "auto" else model.executor.name
        if settings.mode == "train":
            model.executor.name, made.executor = name, model.executor
        else:
            made.executor = Executor(name, model.executor.threads)
        made._measuring = made._settings(made.executor)
        made._begin(model, state["start"])
        made.refit = Refit.from_state(state["refit"])
        made._calls, made.timed = state["calls"], state["timed"]
        if state["seconds"] is not None:
            made.seconds = state["seconds"]
        if made.controller is not None:
            made.controller.integral = state["integral"]
        return made

    def describe(self) -> list[str]:
        """The calibration, a line each."""
        if self.calibration is None:
            return []
        lines = [*describe(self.calibration), f"  reference: {1e6 * self.reference:.1f} µs"]
        if self.settings.ablation == "none" and not 1 < OTHERWISE * self.start / self._foretold < OTHERWISE**2:
            lines.append(
                f"warning: a step of this network takes {1e6 * self.start:.4g} µs, the calibration foretells "
                f"{1e6 * self._foretold:.4g}: the profile is of another network, or threads wait for each other on a "
                "busy machine; calibrate anew, keep the machine quiet, or use --threads 1"
            )
        return lines


def clock_of(model: DynamicManifold, settings: TimeSettings) -> Clock:
    """What reads the time of ``model``."""
    return Clock.of(CUDA_CLOCK if backend.on_cuda(model.alpha) else settings.clock)


def _sample(model: DynamicManifold, settings: TimeSettings, dtype: Any) -> Floats | Tensor:
    """A batch to be timed with, where the model is."""
    x = np.random.default_rng(settings.seed).standard_normal((settings.batch, model.config.n_inputs)).astype(dtype)
    return torch.from_numpy(x).to(model.alpha.device) if backend.on_cuda(model.alpha) else x


def _ones(plan: Plan) -> Floats:
    """Edge values that keep sums small."""
    topology = plan.schedule.topology
    return np.full(topology.n_edges, 0.1, plan.slope.dtype)


def check_profile(profile: Calibration, wanted: Settings) -> None:
    """Raise ValueError unless ``profile`` was made of what is to be timed."""
    had = replace(profile.settings, threads=profile.threads)
    names = ("executor", "mode", "batch", "threads", "clock", "device")
    differ = [f"{name} is {getattr(had, name)} there, {getattr(wanted, name)} here" for name in names
              if getattr(had, name) != getattr(wanted, name)]  # fmt: skip
    if differ:
        raise ValueError(
            f"the profile is of something else ({'; '.join(differ)}); write one with sparse-dnm calibrate and the "
            "same executor, mode, batch size, threads, clock and device"
        )


class MeasuredMemory:
    """Bytes of the sparse step of ``model``, over those at its first use: an exact count of its arrays.

    In them: CSR, transpose, levels and order of execution, edge values, values and messages of all neurons and, in mode
    "train", all gradients.  Left out: parameters, candidates, what the search for structure needs.  The number of
    neurons is fixed, so only edges have a price.
    """

    def __init__(self, model: DynamicManifold, mode: str = "train", batch: int = 50, tau: float = 0.3):
        self._train, self.batch, self.tau = Settings(mode=mode, batch=batch).mode == "train", batch, tau
        self.reference = self.bytes(model)

    def bytes(self, model: DynamicManifold) -> int:
        """Bytes of a step with the structure of the last forward."""
        running = model.running
        if running is not None:
            return device_bytes(running[0], self.batch, model.config.n_inputs, self._train)
        return step_bytes(model.found[1], self.batch, self._train)

    def value(self, model: DynamicManifold) -> float:
        """Bytes, over those at the start."""
        return self.bytes(model) / self.reference

    def gradient(self, model: DynamicManifold) -> Gradient:
        """Of the value, at the structure of the last forward."""
        running = model.running
        if running is not None:
            price = device_edge_bytes(running[0], self._train) / self.reference
        else:
            price = edge_bytes(model.found[1], self.batch, self._train) / self.reference
        _, by_cutoff, by_closeness = model.gates(self.tau)  # edges of dead neurons are kept too
        return Gradient(price * by_cutoff, by_closeness * price)

    def __call__(self, model: DynamicManifold) -> Tensor:
        """The term, a scalar tensor with its gradient; call the model before."""
        return model.straight_through(self.value(model), *self.gradient(model))


def edge_bytes(plan: Plan, batch: int, train: bool) -> float:
    """Bytes that one more edge takes: its source, its value, its place in the transpose, its gradients."""
    n = max(plan.schedule.topology.n_edges, 1)
    return _edges_bytes(plan, n, batch, train) / n


def _edges_bytes(plan: Plan, n: int, batch: int, train: bool) -> int:
    """Bytes of n edges."""
    size = plan.slope.dtype.itemsize
    gradients = footprint(tiles_of(batch) * n * size, aligned=True) if train else 0
    return footprint(4 * n) + footprint(size * n) + footprint(8 * n) + gradients


def step_bytes(plan: Plan, batch: int, train: bool) -> int:
    """Bytes of the arrays of a step, see `MeasuredMemory`."""
    s, t, size = plan.schedule, plan.schedule.topology, plan.slope.dtype.itemsize
    structure = (t.indptr, t.inputs, t.outputs, t.levels, t.order, t.live, t.t_indptr)
    order = (s.executed, s.column, s.waves, s.column_of, s.sequence if t.ascending else s.order[:0])
    lanes = footprint(tiles_of(batch) * tile_width(batch) * t.n_neurons * size, aligned=True)  # a value of every neuron
    scales = plan.kind.nbytes + plan.slope.nbytes + 2 * t.n_neurons * size
    tables = batch * (len(t.inputs) + len(t.outputs)) * size  # inputs and outputs
    total = sum(array.nbytes for array in (*structure, *order)) + scales + tables + 2 * lanes
    if train:
        total += lanes + 2 * footprint(tiles_of(batch) * t.n_neurons * size) + batch * len(t.outputs) * size
    return total + _edges_bytes(plan, t.n_edges, batch, train)


def device_edge_bytes(s: Structure, train: bool) -> int:
    """Bytes that one more edge takes on CUDA: source, reader, place in the transpose, value, gradient."""
    return 4 + 4 + 8 + s.slope.element_size() * (2 if train else 1)


def device_bytes(s: Structure, batch: int, n_inputs: int, train: bool) -> int:
    """Bytes of the tensors of a step on CUDA, by `columns`, see `MeasuredMemory`."""
    size, n, n_outputs = s.slope.element_size(), len(s.kind), len(s.outputs)
    tensors = {t.data_ptr(): t.nbytes for t in vars(s).values() if isinstance(t, Tensor)}  # some serve twice
    width = backend.cuda_kernels().WIDTH
    lanes = -(-batch // width) * width * n * size  # a value of every neuron
    total = sum(tensors.values()) + s.n_edges * size + 2 * n * size + 2 * lanes
    total += batch * (n_inputs + n_outputs) * size
    if train:
        total += 2 * lanes + s.n_edges * size + 2 * n * size + batch * n_outputs * size
    return total
