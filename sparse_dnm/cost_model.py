"""Seconds of the sparse step as a non-negative linear function of its structure, fitted to measurements (DESIGN, 3).

Which features explain the time is the executor's own business: a walk by columns has no cost per level, a walk level by
level has one.  Coefficients are fitted on probes, structures cut out of a network, and judged on others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from sparse_dnm.config import check_choice
from sparse_dnm.plan import Floats, Plan
from sparse_dnm.schedule import Executor, Schedule
from sparse_dnm.timing import CLOCKS, Clock, preemptions, rounds
from sparse_dnm.topology import Topology

MODES = ("train", "infer")  # forward + backward, or forward alone
FEATURES = {  # of an executor's time
    "columns": ("call", "input", "neuron", "edge"),
    "wavefront": ("call", "input", "neuron", "edge", "level"),
}
CUTS = ("edges", "neurons", "paths")
NOISY = 0.05  # relative spread of repeats from which on a fit is doubtful


def features(schedule: Schedule, executor: str) -> Floats:
    """How often the FEATURES of ``executor`` occur in one step: 1 call, executed inputs, executed neurons that are no
    inputs, executed edges, levels."""
    counts = {
        "call": 1,
        "input": len(schedule.inputs),
        "neuron": len(schedule.order),
        "edge": len(schedule.topology.t_edges),
        "level": len(schedule.waves) - 1,
    }
    return np.array([counts[name] for name in FEATURES[executor]], float)


@dataclass(frozen=True)
class Quality:
    """How predictions compare with measurements; ``error`` is relative, |predicted / measured - 1|."""

    n: int  # structures
    r2: float  # share of the variance that is explained
    mape: float  # mean error
    within_10: float  # share of structures with an error of 10 % at most
    spearman: float  # rank correlation

    @staticmethod
    def of(predicted: Floats, measured: Floats) -> Quality:
        """Of as many predictions as measurements, at least three that differ."""
        error = np.abs(predicted / measured - 1)
        rest = ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
        ranks = float(spearmanr(predicted, measured).statistic)
        return Quality(len(measured), float(1 - rest), float(error.mean()), float((error <= 0.1).mean()), ranks)


@dataclass(frozen=True)
class CostModel:
    """Seconds of a step: the sum of coefficient times count over the features of an executor."""

    executor: str
    coefficients: tuple[float, ...]  # s each, >= 0, in the order of FEATURES[executor]

    def seconds(self, counts: Floats) -> Any:
        """Of one structure (n_features,), or of several (n, n_features)."""
        return counts @ np.array(self.coefficients)

    @staticmethod
    def fit(executor: str, counts: Floats, seconds: Floats) -> CostModel:
        """Fit (n, n_features) counts to (n,) seconds: least squares of the relative errors, no coefficient below 0
        (Lawson & Hanson 1974)."""
        solution, _ = nnls(counts / seconds[:, None], np.ones(len(seconds)))
        return CostModel(executor, tuple(float(x) for x in solution))


def cut(topology: Topology, kind: str, keep: float, rng: np.random.Generator) -> Topology:
    """A part of ``topology`` over the same neurons, by one of CUTS.

    edges    each edge is kept with probability ``keep``
    neurons  each neuron that is neither input nor output is kept with that probability, with all its edges
    paths    only neurons of the first levels, a share ``keep`` of them, read more than inputs and constants
    """
    check_choice("kind", kind, CUTS)
    edges = topology.edges()
    source, reader = edges.T
    if kind == "edges":
        kept = rng.random(len(edges)) < keep
    elif kind == "neurons":
        alive = rng.random(topology.n_neurons) < keep
        alive[topology.inputs] = alive[topology.outputs] = True
        kept = alive[source] & alive[reader]
    else:
        highest = max(1, round(keep * topology.depth))
        kept = (topology.levels[reader] <= highest) | (topology.levels[source] == 0)
    return Topology.from_edges(edges[kept], topology.n_neurons, topology.inputs, topology.outputs)


def probes(topology: Topology, count: int, rng: np.random.Generator) -> list[Topology]:
    """``count`` structures cut out of ``topology``, by two CUTS each, that keep from a tenth to all."""
    found = []
    for k in range(count):
        first, second = CUTS[k % len(CUTS)], CUTS[int(rng.integers(len(CUTS)))]
        part = cut(topology, first, rng.uniform(0.1, 1.0), rng)
        found.append(cut(part, second, rng.uniform(0.3, 1.0), rng))
    return found


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    executor: str = "columns"  # one of FEATURES
    mode: str = "train"  # one of MODES
    batch: int = 50  # samples
    threads: int = 0  # of the kernels; 0: all
    clock: str = "process_time"  # one of timing.CLOCKS
    probes: int = 60  # structures to fit, and half as many to judge
    repeats: int = 25  # rounds over all of them
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, tuple(FEATURES))
        check_choice("mode", self.mode, MODES)
        check_choice("clock", self.clock, tuple(CLOCKS))
        for name, least in (("batch", 1), ("probes", 10), ("repeats", 3), ("seed", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be >= {least}")


@dataclass(frozen=True)
class Calibration:
    """A cost model of this machine, and how far to trust it."""

    model: CostModel
    settings: Settings
    threads: int
    held_out: Quality
    noise: float  # median over structures of half the interquartile range of their repeats, relative
    rejected: int  # repeats that the system interrupted
    counts: Floats
    seconds: Floats  # medians, structures to fit first

    def as_dict(self) -> dict[str, Any]:
        """What a profile holds, as JSON values: seconds per feature, the settings and the quality."""
        names = FEATURES[self.model.executor]
        return {
            "seconds_per": dict(zip(names, self.model.coefficients, strict=True)),
            "settings": {**asdict(self.settings), "threads": self.threads},
            "held_out": asdict(self.held_out),
            "noise": self.noise,
            "rejected": self.rejected,
        }


def time_steps(
    plans: Sequence[tuple[Plan, Floats]], x: Floats, settings: Settings, on_round: Callable[[], None] = lambda: None
) -> tuple[NDArray[np.float64], int]:
    """Kernel seconds (structures, repeats) of a step of every plan with its edge values, in turns; and how many repeats
    were measured again because the system took the processor away.  Compilation is not in them."""
    clock = Clock.of(settings.clock)
    generator = np.random.default_rng(settings.seed)

    def step(plan: Plan, values: Floats) -> float:
        n = len(plan.kind)
        scales = plan.scales(np.ones(n, x.dtype)[plan.weighted], np.zeros(n, x.dtype)[plan.weighted])
        out, walk = plan.forward(x, values, scales)
        seconds = plan.executor.seconds["forward"] - clock.overhead
        if settings.mode == "train":
            plan.backward(walk, values, generator.standard_normal(out.shape).astype(x.dtype))
            seconds += plan.executor.seconds["backward"] - clock.overhead
        return seconds

    for executor in {id(plan.executor): plan.executor for plan, _ in plans}.values():
        executor.timer = clock.read
    for _ in range(2):
        for plan, values in plans:
            step(plan, values)
    found = np.empty((len(plans), settings.repeats))
    rejected, spare = 0, len(plans) * settings.repeats
    for repeat, order in enumerate(rounds([str(k) for k in range(len(plans))], settings.repeats)):
        for name in order:
            k = int(name)
            while True:
                before = preemptions()
                found[k, repeat] = step(*plans[k])
                if preemptions() == before or not spare:
                    break
                spare, rejected = spare - 1, rejected + 1
        on_round()
    return found, rejected


def calibrate(
    topology: Topology, plan_of: Callable[[Topology, Executor], Plan], x: Floats, settings: Settings,
    on_round: Callable[[], None] = lambda: None,
) -> Calibration:  # fmt: skip
    """Fit a cost model on probes cut out of ``topology``, and judge it on half as many others.

    ``plan_of`` makes the plan of a structure.  Raises ValueError where the clock is too coarse for the shortest step.
    """
    executor = Executor(settings.executor, settings.threads)
    rng = np.random.default_rng(settings.seed)
    n_held = settings.probes // 2
    cuts = probes(topology, settings.probes + n_held, rng)
    plans = [(plan_of(part, executor), edge_values(part, x.dtype)) for part in cuts]
    found, rejected = time_steps(plans, x, settings, on_round)
    seconds = np.median(found, axis=1)
    Clock.of(settings.clock).check(float(seconds.min()))
    counts = np.stack([features(plan.schedule, settings.executor) for plan, _ in plans])
    model = CostModel.fit(settings.executor, counts[:-n_held], seconds[:-n_held])
    held_out = Quality.of(model.seconds(counts[-n_held:]), seconds[-n_held:])
    low, high = np.quantile(found, [0.25, 0.75], axis=1)
    noise = statistics.median(((high - low) / 2 / seconds).tolist())
    return Calibration(model, settings, executor.threads, held_out, noise, rejected, counts, seconds)


def edge_values(topology: Topology, dtype: Any) -> Floats:
    """Values of the edges that keep sums near 1: no denormals, which slow arithmetic."""
    reads = np.diff(topology.indptr)
    return (1.0 / np.sqrt(np.maximum(reads, 1))).repeat(reads).astype(dtype)


def describe(calibration: Calibration) -> list[str]:
    """The calibration in words, a line each; what to doubt last."""
    c, s, q = calibration, calibration.settings, calibration.held_out
    what = "forward + backward" if s.mode == "train" else "forward"
    costs = zip(FEATURES[s.executor], c.model.coefficients, strict=True)
    lines = [
        f"{what}, batch {s.batch}, executor {s.executor}, {c.threads} threads, clock {s.clock}, median of {s.repeats}",
        *(f"  {1e9 * value:10.3f} ns per {name}" for name, value in costs),
        f"on {q.n} other structures, {1e6 * c.seconds.min():.1f} to {1e6 * c.seconds.max():.1f} µs: R² {q.r2:.4f}, "
        f"mean error {q.mape:.1%}, {q.within_10:.0%} within 10 %, rank correlation {q.spearman:.3f}",
        f"noise: {c.noise:.1%} of a repeat; {c.rejected} repeats measured again",
    ]
    if c.noise > NOISY:
        lines.append(
            f"warning: repeats spread by {c.noise:.1%}, more than {NOISY:.0%}: keep the machine quiet, or take more "
            "--repeats or another --clock"
        )
    if math.isnan(q.r2) or q.r2 < 0.9:
        lines.append(f"warning: the model does not fit (R² {q.r2:.3f}): do not steer training by it")
    return lines
