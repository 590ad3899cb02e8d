"""The time of a network as a C program on a target, as a term of the loss (DESIGN, 3)."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparse_dnm.config import TARGET_CLOCK
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.topology import Topology
from sparse_dnm.loss.term import Confirmed, TimeSettings, TimeTerm
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.target import Target, calibrate_target, time_on_target
from sparse_dnm.target.measure import key_of
from sparse_dnm.target.prices import counts, probe
from sparse_dnm.timing.calibration import Calibration, describe, fit
from sparse_dnm.timing.clock import Timing
from sparse_dnm.timing.cost_model import ON_TARGET, Refit
from sparse_dnm.timing.pace import Sample
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.quiet import Quiet

PROBES, ROUNDS = 40, 15  # of a calibration before a training: structures to fit, measurements of each
LIVE = 0.1  # share of a training's seconds, at most, in which networks are compiled and run on the target
LOOKS = 0.1  # share, about, in which the features of the present network are counted
PROMISES = 3  # programs that time a network whose time is promised
PROMISED = 101  # measurements in each


@dataclass
class OnTarget:
    """The pace of a target: seconds of the reference when it was quiet, and how many times as many it needed last."""

    unit: Quiet
    factor: float = 1.0


class TargetTime(TimeTerm):
    """Seconds of ``model`` as a C program on ``target``, one sample, relative to the budget or to the start.

    Creating it calibrates by programs of probes that run there, unless the ``profile`` of a calibration or the
    ``state`` of an earlier object is given.  Calls of `value` look at the present structure as often as takes a share
    LOOKS of the time: its seconds are those of the last networks that ran on the target, times what the prices say of
    the change since.  In a share LIVE of the time the present network is compiled, run and timed.

    target  None: nothing runs, and the ``profile`` predicts all seconds.
    Raises TargetError where the target fails, ValueError if the profile is of no target.
    """

    where, here, what, depends_on = "on the target", "on the target", "the target", ("target_cc",)

    def __init__(
        self,
        model: DynamicManifold,
        settings: TimeSettings,
        target: Target | None,
        profile: Calibration | None = None,
        state: dict[str, Any] | None = None,
    ):
        super().__init__(settings)
        self.target = target
        self._measuring = Settings(ON_TARGET, "infer", 1, 1, TARGET_CLOCK, PROBES, ROUNDS, settings.seed)
        self._like = model.to_dag()
        self._counted: tuple[Topology | None, Floats] = None, np.empty(0)
        self._due = self._looked = 0  # calls: that looks next, that looked last
        self._live = self._last_live = 0.0  # s, in which the target was used since the start, and the last time
        evaluation = model.find()
        if state is not None:
            self.pace = OnTarget(Quiet(**state["unit"]))
            self._restore(state)
        else:
            self._calibrate(model, evaluation, profile)
        self._began = self._idle_since = time.perf_counter()

    def _calibrate(self, model: DynamicManifold, evaluation: Evaluation, profile: Calibration | None) -> None:
        own = self.counts(evaluation)
        if profile is None:
            assert self.target is not None
            profile, _, _ = calibrate_target(model, self.target, PROBES, ROUNDS, self.settings.seed)
        if profile.settings.executor != ON_TARGET:
            raise ValueError(
                f"the profile is of executor {profile.settings.executor} on a machine that trains, not of a target; "
                "write one with sparse-dnm calibrate --target c"
            )
        if self.target is not None:
            _check_same_target(profile, self.target)
        self.calibration = profile
        self.pace = OnTarget(profile.unit or Quiet(1.0))
        model_of = fit(profile.settings, profile.counts, profile.seconds)
        self.refit = Refit(model_of, profile.counts, profile.seconds)
        self._predicted = float(self.refit.model.seconds(own))
        start = self._predicted
        if self.target is not None:
            found = self.sample(evaluation)
            self._take(own, found)
            start = found.seconds
        self._begin(start)

    # -- value -----------------------------------------------------------------------------------------------

    def counts(self, evaluation: Evaluation) -> Floats:
        """See `TimeTerm.counts`; of the network as it would be exported, but for factors that happen to be 0 or 1."""
        topology = evaluation.topology
        if self._counted[0] is not topology:
            self._counted = topology, counts(probe(topology, self._like))
        return self._counted[1]

    def sample(self, evaluation: Evaluation, repeats: int = 15) -> Sample:
        """See `TimeTerm.sample`; predicted where there is no target."""
        if self.target is None:
            seconds = float(self.refit.model.seconds(self.counts(evaluation)))
            return Sample(seconds, seconds)
        found = self._timed(probe(evaluation.topology, self._like), repeats)
        return Sample(float(np.median(found[0])), float(np.median(found[1])))

    def _timed(self, network: Any, repeats: int) -> tuple[Floats, Floats]:
        """Seconds (repeats,) of a network, relative to the unit and as the clock showed them."""
        assert self.target is not None
        found = time_on_target({"network": network}, self.target, repeats)
        self.pace.factor = float(found.reference / self.pace.unit.seconds)
        return found.seconds["network"] * (self.pace.unit.seconds / found.unit.seconds), found.raw["network"]

    @property
    def promises(self) -> bool:
        """See `TimeTerm.promises`."""
        return self.target is not None

    @contextlib.contextmanager
    def confirming(self) -> Iterator[Callable[[DynamicManifold], Confirmed]]:
        """See `TimeTerm.confirming`: it is exported, and PROMISES programs time it."""

        def confirm(model: DynamicManifold) -> Confirmed:
            found = [self._timed(model, PROMISED) for _ in range(PROMISES)]
            return Confirmed(np.stack([seconds for seconds, _ in found]), self.pace.factor)

        yield confirm

    def value(self, evaluation: Evaluation, own: bool = False) -> float:
        """See `TimeTerm.value`."""
        due = self.untimed_calls == 0
        self.calls += 1
        if due:
            self._look(evaluation)
        if self.timing is not None and self.target is not None:
            self.told = self.timing, self.steps.raw
        return self.seconds / self.reference

    @property
    def untimed_calls(self) -> int:
        """See `TimeTerm.untimed_calls`."""
        return 0 if math.isnan(self.seconds) else max(self._due - self.calls, 0)

    def _look(self, evaluation: Evaluation) -> None:
        """Say what the present structure takes; if that is due, by the target."""
        start = time.perf_counter()
        per_call = (start - self._idle_since) / max(self.calls - self._looked, 1)
        found = self.counts(evaluation)
        counted = time.perf_counter()
        if self.target is not None and self._live + self._last_live <= LIVE * (counted - self._began):
            self._take(found, self.sample(evaluation))
            self._last_live = time.perf_counter() - counted
            self._live += self._last_live
        self._know(found, max(self.calls - self._looked, 1))
        self._looked = self.calls
        wait = math.ceil((counted - start) / (LOOKS * max(per_call, 1e-9)))
        self._due = self.calls + max(wait, self.settings.every)
        self._idle_since = time.perf_counter()

    def _now(self, counts: Floats) -> Timing:
        """See `TimeTerm._now`; without a timed network the prices say it."""
        if self.timed:
            return super()._now(counts)
        return Timing.of([float(self.refit.model.seconds(counts))], TARGET_CLOCK)

    # -- state ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """See `TimeTerm.state`; with what seconds are relative to."""
        return {**super().state(), "unit": asdict(self.pace.unit)}

    def describe(self) -> list[str]:
        """See `TimeTerm.describe`."""
        if self.calibration is None:
            return []
        lines = [*describe(self.calibration), f"  reference: {1e6 * self.reference:.4g} µs"]
        if self.target is None:
            return [*lines, "nothing runs on the target: its seconds are those that the profile predicts"]
        both = f"{1e6 * self.start:.4g} µs on the target, {1e6 * self._predicted:.4g} by its prices"
        lines.append(f"  the network now: {both}")
        if not self.as_predicted:
            lines.append(
                f"warning: the network takes {both}: the profile is of another network, activation or "
                "compiler; calibrate again"
            )
        return lines


def _check_same_target(profile: Calibration, target: Target) -> None:
    """Raise ValueError if a profile was measured by other commands, or here on another machine."""
    had, wanted = profile.pace.get("key") or {}, key_of(target)
    names = ["cc", "copy", "run", *sorted(set(had) & set(wanted) - {"cc", "copy", "run", "program"})]
    differ = [
        f"{name} is {had[name]!r} in it, {wanted[name]!r} here"
        for name in names
        if name in had and had[name] != wanted[name]
    ]
    if differ:
        raise ValueError(
            f"the profile is of another target ({'; '.join(differ)}): give the same commands, another profile of "
            "sparse-dnm calibrate --target c, or none"
        )
