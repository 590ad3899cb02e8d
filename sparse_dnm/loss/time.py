"""Measured time: seconds of the sparse step on this machine, as a term of the loss (DESIGN, 3)."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.topology import Topology
from sparse_dnm.loss.proxy import Gradient
from sparse_dnm.loss.term import UNEXPECTED, Confirmed, TimeSettings, TimeTerm
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import unrolling_of
from sparse_dnm.timing.calibration import Calibration, adopt, calibrate, check_profile, describe, fit, fit_clock
from sparse_dnm.timing.clock import Clock
from sparse_dnm.timing.cost_model import COUNTS, Refit
from sparse_dnm.timing.pace import Pace, Sample, pace_of, sample
from sparse_dnm.timing.probes import Bench, Settings, features_of, topology_dtype, watch_of
from sparse_dnm.timing.quiet import Quiet
from sparse_dnm.timing.subprocess import Network, Processes
from sparse_dnm.wording import words

__all__ = ["MeasuredTime", "TimeSettings"]
MAX_START_MEASUREMENTS = 3  # of the first step, if it is not as predicted
SPSA_DRAWS = 4  # pairs of structures per SPSA estimate
SPSA_ROUNDS = 3  # rounds a b b a per pair


class MeasuredTime(TimeTerm):
    """Measured speed: seconds of the sparse step of ``model``, relative to the budget or, without one, to the start.

    Creating it calibrates: structures derived from the network are timed, unless the ``profile`` of a calibration or
    the ``state`` of an earlier object is given.  Every ``settings.every``-th call of `value` is a timed step; in
    between the value stays.  To time it, a step of ``settings.batch`` samples is run, after some unmeasured ones: its
    data are then in the caches, as in a process that does nothing else.  A caller may time the model's own step
    instead, see `begin_step`.  Compilation, the search for structure, and steps during which the process was
    preempted or the pace of the machine changed are not included.

    Seconds are those of the quiet machine: a reference step runs beside every timed one (`timing.pace`).  The value is
    a median over the last timed steps.

    The model is not changed: ``executor`` is the one that was timed, for "auto" the faster one.
    A clock that is not fit for that is replaced, see `timing.calibration.calibrate`.
    Raises ValueError if the model runs on torch-sparse, no clock is fine enough, or the profile does not fit.
    """

    where, depends_on = "in new processes", ("executor", "time_batch")

    def __init__(
        self,
        model: DynamicManifold,
        settings: TimeSettings | None = None,
        profile: Calibration | None = None,
        on_round: Callable[[], None] = lambda: None,
        state: dict[str, Any] | None = None,
    ):
        if model.executor.name == "torch-sparse":
            raise ValueError(
                f"executor torch-sparse cannot be timed by {words().give('speed', 'time')}; choose auto, columns or "
                "wavefront"
            )
        settings = settings or TimeSettings()
        super().__init__(settings)
        evaluation = model.find()
        self._unrolling = unrolling_of(model.config, settings.time_steps, settings.tbptt, settings.recompute_every)
        about = settings.mode, settings.batch, settings.clock, settings.seed, self._unrolling
        self._bench = Bench(evaluation, *about)
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
        self._dtype = topology_dtype(evaluation.structure)
        self._before = 0  # disturbances before the caller's own step
        self._began = False  # a step has been timed since the calibration
        if state is None:
            self._calibrate(evaluation, profile, on_round)
        else:
            self._restore(state)

    def _calibrate(self, evaluation: Evaluation, profile: Calibration | None, on_round: Callable[[], None]) -> None:
        """Fit the cost model, and measure the first step."""
        wanted, ablation = self._measuring, self.settings.ablation
        if profile is None:
            profile = calibrate(evaluation.structure, self._engine, self._bench.x, wanted, on_round)
        else:
            fitting, _ = fit_clock(wanted, self.executor.threads)
            check_profile(profile, fitting if profile.settings.clock == fitting.clock else wanted)
        self._measuring = replace(wanted, clock=profile.settings.clock)
        self.clock = Clock.of(profile.settings.clock)
        self.pace = pace_of(self._engine, self._measuring, self._dtype)
        if isinstance(self.pace, Pace):
            profile, self.notes = adopt(profile, self.pace)
        self.calibration = profile
        counts, seconds = profile.counts, profile.seconds
        if ablation == "shuffled":
            seconds = self._rng.permutation(seconds)
        only = COUNTS if ablation == "shuffled" else wanted.only
        self.refit = Refit(fit(replace(profile.settings, only=only), counts, seconds), counts, seconds)
        self._predicted = float(self.refit.model.seconds(self.counts(evaluation)))  # s, of the first step
        for _ in range(MAX_START_MEASUREMENTS):
            start = self.measure(evaluation)
            if start < UNEXPECTED * self._predicted:
                break
        self._begin(start)

    # -- value -----------------------------------------------------------------------------------------------

    def _watch(self, evaluation: Evaluation) -> Stopwatch:
        """Of a step that is run only for timing."""
        e, train = evaluation, self.settings.mode == "train"
        return watch_of(self._engine, e.structure, e.values.strengths, self._bench.x, train, self._unrolling)

    def sample(self, evaluation: Evaluation, repeats: int = 15) -> Sample:
        """See `TimeTerm.sample`; in turns with the reference."""
        watch = self._watch(evaluation)
        samples = [sample(self.pace, lambda: watch.warm(self.clock)) for _ in range(repeats)]
        kept = [one for one in samples if not one.torn] or samples
        return Sample(*(statistics.median(values) for values in zip(*((s.seconds, s.raw) for s in kept), strict=True)))

    def promise(self) -> Settings:
        """Settings with which new processes time the network."""
        unit = self.pace.unit if isinstance(self.pace, Pace) else None
        return replace(self._measuring, repeats=101, device=str(self._engine.device), unit=unit)

    @contextlib.contextmanager
    def confirming(self) -> Iterator[Callable[[DynamicManifold], Confirmed]]:
        """See `TimeTerm.confirming`: new processes time it."""
        with Processes() as processes:

            def confirm(model: DynamicManifold) -> Confirmed:
                found = processes.time({"network": Network.of(model)}, self.promise())
                return Confirmed(found.seconds["network"], found.factor)

            yield confirm

    def counts(self, evaluation: Evaluation) -> Floats:
        """See `TimeTerm.counts`."""
        found: Floats = features_of(self._engine, evaluation.structure, self._measuring)
        return found

    @property
    def takes_steps(self) -> bool:
        """Whether the model's own steps are timed: not with a budget, which is about warm steps, and not on CUDA,
        where Python launches the kernels one by one."""
        return self.settings.mode == "train" and self.settings.budget is None and self._measuring.device == "cpu"

    def value(self, evaluation: Evaluation, own: bool = False) -> float:
        """See `TimeTerm.value`: every ``every``-th call times a step."""
        due = self.untimed_calls == 0
        self.calls += 1
        if due and not own:
            watch = self._watch(evaluation)
            before = self.clock.disturbances()
            found = sample(self.pace, lambda: watch.warm(self.clock))
            self._time(evaluation, found, self.clock.disturbances() != before)
        if self.timing is not None:
            self.told = self.timing, self.steps.raw
        return self.seconds / self.reference

    def begin_step(self) -> bool:
        """See `TimeTerm.begin_step`."""
        if not (self.takes_steps and self._began and self.untimed_calls == 0):
            return False
        self._before = self.clock.disturbances()
        return True

    def end_step(self, evaluation: Evaluation, seconds: float) -> None:
        """The model's own step took ``seconds`` by `clock`, without its overhead.  A reference step follows it; one
        before it would push its data out of the caches."""
        disturbed = self.clock.disturbances() != self._before
        now = self.pace.now()
        self._time(evaluation, sample(self.pace, lambda: seconds, now), disturbed)

    @property
    def untimed_calls(self) -> int:
        """See `TimeTerm.untimed_calls`: those before the next timed step."""
        return 0 if math.isnan(self.seconds) else -self.calls % self.settings.every

    def _time(self, evaluation: Evaluation, found: Sample, disturbed: bool) -> None:
        """A step was timed: update prices and multiplier."""
        self._began = True
        if found.seconds <= 0.0 or ((disturbed or found.torn) and not math.isnan(self.seconds)):
            self.steps.fail()
            return
        counts = self.counts(evaluation)
        self._take(counts, found)
        self._know(counts, self.settings.every)

    # -- gradient --------------------------------------------------------------------------------------------

    def gradient(self, evaluation: Evaluation) -> Gradient:
        """See `TimeTerm.gradient`; by the cost model or without it."""
        return self._spsa(evaluation) if self.settings.estimator == "spsa" else super().gradient(evaluation)

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
                watch = (a, b)[which]
                found[which].append(sample(self.pace, functools.partial(watch.warm, self.clock)).seconds)
        return statistics.median(found[0]), statistics.median(found[1])

    # -- state ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """See `TimeTerm.state`; with what seconds are relative to."""
        unit = asdict(self.pace.unit) if isinstance(self.pace, Pace) and self.pace.unit else None
        return {**super().state(), "unit": unit}

    def _restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, without a calibration."""
        unit = Quiet(**state["unit"]) if state.get("unit") else None
        self.pace = pace_of(self._engine, self._measuring, self._dtype, unit)
        self.pace.settle_now()
        super()._restore(state)

    def describe(self) -> list[str]:
        """The results of the calibration, as lines."""
        if self.calibration is None:
            return []
        lines = [*describe(self.calibration), *self.notes]
        lines += [
            *(() if self.calibration.notes else self.pace.describe()),
            f"  reference: {1e6 * self.reference:.4g} µs",
        ]
        if self.settings.ablation == "none" and not self.as_predicted:
            lines.append(
                f"warning: a step of this network takes {1e6 * self.start:.4g} µs, the calibration predicts "
                f"{1e6 * self._predicted:.4g}: the profile is of another network, or threads wait for each other on a "
                f"busy machine; calibrate again, keep the machine quiet, or use {words().give('threads', 1)}"
            )
        return lines
