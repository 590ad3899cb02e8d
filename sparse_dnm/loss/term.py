"""A time as a term of the loss: what `MeasuredTime` and `TargetTime` have in common (DESIGN, 3).

A time has no useful gradient.  The value is the measured one, the gradient that of an expected cost (straight-through,
Bengio et al. 2013): every candidate exists with a probability, its gate; the costs of an edge, a neuron and a level are
fitted to measurements and updated during training.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sparse_dnm.config import ABLATIONS, CLOCKS, ESTIMATORS, check_choice
from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.loss.controller import Controller
from sparse_dnm.loss.proxy import Gradient
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.calibration import Calibration
from sparse_dnm.timing.clock import Timing
from sparse_dnm.timing.cost_model import FEATURES, Refit
from sparse_dnm.timing.pace import Sample
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.timed_steps import TimedSteps

UNEXPECTED = 1.5  # times as long, or as short, as predicted, that a first step may take
MAX_MODEL_ERROR = 0.15  # largest median relative error of recent predictions of a cost model that fits


@dataclass(frozen=True)
class TimeSettings:
    """How `MeasuredTime` measures."""

    mode: str = "train"  # one of config.TIME_MODES
    batch: int = 50  # samples; in mode "train" those of the training step
    clock: str = "process_time"  # one of config.CLOCKS
    every: int = 50  # calls between timed steps
    tau: float = 0.3  # width of a gate, in closeness
    budget: float | None = None  # s; None: no constraint
    estimator: str = "cost-model"  # one of config.ESTIMATORS
    ablation: str = "none"  # one of config.ABLATIONS
    probes: int = 20  # structures to fit, and half as many to judge the fit
    repeats: int = 5  # measurements of each
    seed: int = 0
    time_steps: int = 0  # of the sequences of a recurrent network; 0: it has no memory
    tbptt: int = 0  # of sequences, as of TrainConfig
    recompute_every: int = 0

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


class Confirmed(NamedTuple):
    """A network's time as it is promised: seconds of several measurements, and how many times its quiet seconds the
    machine needed for the reference."""

    seconds: Floats
    factor: float

    @property
    def microseconds(self) -> float:
        """Their median."""
        return 1e6 * float(np.median(self.seconds))


class TimeTerm:
    """Seconds of a step of a network, relative to the budget or, without one, to the start.

    Subclasses say where and how a step is timed.
    """

    where = ""  # a promised time is taken there, as in "in new processes"
    here = "here"  # and a training runs, or its network will
    what = "the machine"  # that is to be quiet
    depends_on: tuple[str, ...] = ()  # settings that its time depends on beside the network
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()  # about the pace of a profile
    pace: Any  # with ``unit`` and ``factor``, as of `timing.pace.Pace`
    refit: Refit
    start: float  # s, of a step of the network at the calibration
    _predicted: float  # s, the same by the prices
    reference: float  # s, the unit of the value
    controller: Controller | None
    _measuring: Settings

    def __init__(self, settings: TimeSettings):
        self.settings = settings
        self._recent: deque[float] = deque(maxlen=50)  # s, for the placebo
        self._rng = np.random.default_rng(settings.seed)
        self.seconds = math.nan  # of the present structure: a median over the last timed steps
        self.timing: Timing | None = None  # the same with its quartiles
        self.told: tuple[Timing, float] | None = None  # that of the last `value`, and what the clock had shown last
        self.steps = TimedSteps()
        self.calls = self.timed = 0
        self._prices: Prices | None = None

    def _begin(self, start: float) -> None:
        budget = self.settings.budget
        self.start = start
        self.reference = budget or start
        self.controller = None if budget is None else Controller(budget, start)

    # -- what subclasses say ---------------------------------------------------------------------------------

    def counts(self, evaluation: Evaluation) -> Floats:
        """Features of the structure."""
        raise NotImplementedError

    def sample(self, evaluation: Evaluation, repeats: int = 15) -> Sample:
        """Median seconds of a step of this structure, run only for timing, and what the clock showed."""
        raise NotImplementedError

    def value(self, evaluation: Evaluation, own: bool = False) -> float:
        """Seconds of a step, relative to the reference; some calls time one.

        own   the caller times the model's own step, see `begin_step`
        """
        raise NotImplementedError

    @property
    def untimed_calls(self) -> int:
        """Number of calls of `value` before the next that does more than to say what is known."""
        raise NotImplementedError

    @property
    def promises(self) -> bool:
        """Whether a time can be promised: networks run where it counts."""
        return True

    def confirming(self) -> AbstractContextManager[Callable[[DynamicManifold], Confirmed]]:
        """A function that times a network as it is promised."""
        raise NotImplementedError

    def describe(self) -> list[str]:
        """The results of the calibration, as lines."""
        raise NotImplementedError

    # -- value -----------------------------------------------------------------------------------------------

    def measure(self, evaluation: Evaluation, repeats: int = 15) -> float:
        """The seconds of `sample`."""
        return self.sample(evaluation, repeats).seconds

    def promise(self) -> Settings:
        """How a promised time is taken, for the summary."""
        return self._measuring

    def seconds_per(self) -> dict[str, float]:
        """Seconds per feature in the present cost model."""
        return dict(zip(FEATURES[self._measuring.priced], self.refit.model.coefficients, strict=True))

    def begin_step(self) -> bool:
        """Call before the model's own step.  Where it returns True, that step is to be timed: read `clock` around its
        passes, say ``own`` to `value`, and hand the seconds to `end_step`."""
        return False

    def pass_calls(self, count: int) -> None:
        """Count ``count`` calls of `value` as made, whose results the caller knows."""
        self.calls += count

    def _take(self, counts: Floats, found: Sample) -> None:
        """A step of a structure with these ``counts`` was timed: update the prices."""
        self.timed += 1
        seconds = found.seconds
        self.steps.add(counts, seconds, found.raw)
        if self.settings.ablation == "shuffled":
            self._recent.append(seconds)
            seconds = float(self._rng.choice(self._recent))
        if self.settings.ablation != "no-refit":
            self.refit.add(counts, seconds)

    def _know(self, counts: Floats, steps: int) -> None:
        """Say what a structure with these ``counts`` takes now, and update prices and multiplier, ``steps`` after the
        last time."""
        self.timing = self._now(counts)
        self.seconds = self.timing.median
        self._prices = self.refit.model.prices(counts)
        if self.controller is not None:
            self.controller.update(self.seconds, steps)

    def _now(self, counts: Floats) -> Timing:
        """What a structure with these ``counts`` takes, by the last timed steps."""
        return self.steps.of(counts, self.refit.model, self._measuring.clock)

    @property
    def as_predicted(self) -> bool:
        """Whether the network at the calibration took about what the prices say."""
        return 1 < UNEXPECTED * self.start / self._predicted < UNEXPECTED**2

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

    def __call__(self, model: DynamicManifold) -> Tensor:
        """The term, a scalar tensor with its gradient; call the model first."""
        evaluation = model.evaluation
        return evaluation.straight_through(self.value(evaluation), *self.gradient(evaluation))

    # -- state ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, as JSON values."""
        return {
            "executor": self._measuring.executor,
            "threads": self._measuring.threads,
            "device": self._measuring.device,
            "clock": self._measuring.clock,
            "start": self.start,
            "seconds": None if math.isnan(self.seconds) else self.seconds,
            "steps": self.steps.state(),
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
        self.steps = TimedSteps.from_state(state.get("steps", []))
        if state["seconds"] is not None:
            self.seconds = state["seconds"]
        if self.controller is not None:
            self.controller.integral = state["integral"]
