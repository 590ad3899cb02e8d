"""Simulated against measured speed: train with each speed term, time what came out, say which is better.

Every term is trained over several coefficients and seeds, equal steps.  The final networks are timed in turns, in fresh
processes.  Finished runs are kept on disk, and taken from there by a second call.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_dnm.config import ManifoldConfig, TrainConfig, check_choice
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.source import DataSource
from sparse_dnm.engine import device as backend
from sparse_dnm.io import read_json
from sparse_dnm.model.dense import DenseManifold
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.calibration import Settings
from sparse_dnm.timing.clock import Timing, interleave
from sparse_dnm.timing.subprocess import Network, time_in_subprocess
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.trainer import Interrupted, Trainer, one_torch_thread

TERMS = {  # changes to a TrainConfig
    "none": {"speed": "none"},
    "proxy-flat": {"speed": "proxy", "proxy_gradient": "none"},  # the original's: counted, never optimised
    "proxy": {"speed": "proxy", "proxy_gradient": "straight-through"},
    "time": {"speed": "time"},
}
FLAT = ("none", "proxy-flat")  # a coefficient changes nothing
RESAMPLES = 2000
GRID = 21  # accuracies at which curves are compared
NEVER = -50.0  # difference of log seconds that stands for none
SNAPSHOTS = 12  # along a training, for time against density


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    terms: tuple[str, ...] = ("none", "proxy-flat", "proxy", "time")
    factors: tuple[float, ...] = (0.3, 1.0, 3.0)  # of the recipe's coefficients
    seeds: int = 5
    timing: Settings = field(default_factory=Settings)  # how the final networks are timed

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

    def runs(self) -> list[tuple[str, float, int]]:
        """(term, factor, seed) of every training; seeds outermost, so that what is there first is a comparison."""
        return [
            (term, factor, seed)
            for seed in range(self.seeds)
            for term in self.terms
            for factor in ((1.0,) if term in FLAT else self.factors)
        ]


@dataclass(frozen=True)
class Result:
    """One trained network: how good, how large, how fast."""

    term: str
    factor: float
    seed: int
    figure: float  # test accuracy, or test MSE
    edges: int
    depth: int
    live: int
    seconds: float  # of a step, median of fresh processes
    low: float  # s, least of the processes' medians
    high: float  # s, largest of them


def train_one(
    data: Dataset,
    manifold: ManifoldConfig,
    config: TrainConfig,
    source: DataSource | None,
    out: Path,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> tuple[dict[str, Any], Network]:
    """Summary and network of the run in ``out``, trained or taken up again where that is not finished.

    Raises CheckpointError where ``out`` holds another run.
    """
    if (out / files.CONFIG).exists():
        trainer = Trainer.resume(out, data)
        same = asdict(trainer.config) == asdict(config) and asdict(trainer.model.config) == asdict(manifold)
        if not same:
            raise files.CheckpointError(
                f"{out} holds a run of other settings than this comparison's: choose another --out, or remove it"
            )
    else:
        generator = torch.Generator().manual_seed(config.seed)
        model = DynamicManifold(manifold, generator, executor=config.executor, threads=config.threads)
        trainer = Trainer(model, data, config, out, source)
    summary = read_json(out / files.SUMMARY) if trainer.finished else trainer.run(on_log)
    return summary, Network.of(trainer.model)


def compare(
    data: Dataset, manifold: ManifoldConfig, config: TrainConfig, plan: Plan, out: Path,
    source: DataSource | None = None, on_run: Callable[[str], None] = lambda name: None,
) -> list[Result]:  # fmt: skip
    """Train and time every network of the plan; runs lie in ``out``/runs.  ``on_run`` is told each one's name.

    Raises ValueError where ``config`` has a budget: coefficients are compared.
    """
    if config.budget_us:
        raise ValueError(f"budget_us={config.budget_us:g} steers the coefficient, and compare varies it: leave it out")
    summaries, networks = {}, {}
    for term, factor, seed in plan.runs():
        name = f"{term}-{factor:g}-{seed}"
        on_run(name)
        changes: dict[str, Any] = {**TERMS[term], "seed": seed}
        if term == "time":
            changes["time_coefficient"] = config.time_coefficient * factor
        else:
            changes |= {"profile": "", "proxy_coefficient": config.proxy_coefficient * factor}
        trained = replace(config, **changes)
        try:
            summaries[name], networks[name] = train_one(
                data, replace(manifold, seed=seed), trained, source, out / "runs" / name
            )
        except Interrupted as stop:
            stop.args = (f"stopped in run {name}; the same command again goes on from there",)
            raise
    on_run("timing in fresh processes")
    seconds = time_in_subprocess(networks, plan.timing)
    results = []
    for term, factor, seed in plan.runs():
        name = f"{term}-{factor:g}-{seed}"
        s, medians = summaries[name], np.median(seconds[name], axis=1)
        figure = s["test_accuracy"] if "test_accuracy" in s else s["test_mse"]
        middle, low, high = (float(f(medians)) for f in (np.median, np.min, np.max))
        results.append(Result(term, factor, seed, figure, s["edges"], s["depth"], s["live"], middle, low, high))
    return results


# -- what it means -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval over the seeds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """How much less time the networks of one term take than another's, at equal figures."""

    term: str
    rival: str
    saving: Interval | None  # share of the rival's time, > 0: less; None: no figure that both reach
    hypervolume: Interval | None  # the term's over the rival's
    words: str


def goodness(results: Sequence[Result], task: str) -> NDArray[np.float64]:
    """More is better: accuracy, or for a regression -log10 of the MSE."""
    figures = np.array([r.figure for r in results])
    return figures if task == "classification" else -np.log10(np.maximum(figures, 1e-300))


def _table(results: Sequence[Result], term: str, task: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Goodness and log seconds (seeds, factors) of a term."""
    chosen = [r for r in results if r.term == term]
    seeds, factors = sorted({r.seed for r in chosen}), sorted({r.factor for r in chosen})
    good = np.full((len(seeds), len(factors)), np.nan)
    times = good.copy()
    for r, g in zip(chosen, goodness(chosen, task), strict=True):
        good[seeds.index(r.seed), factors.index(r.factor)] = g
        times[seeds.index(r.seed), factors.index(r.factor)] = math.log(r.seconds)
    return good, times


def _gap(a: tuple[Any, Any], b: tuple[Any, Any]) -> float:
    """Mean difference of log seconds, a less b, over the goodness that both mean curves reach; nan where none."""
    curves = []
    for good, times in (a, b):
        mean_good, mean_times = good.mean(axis=0), times.mean(axis=0)
        order = np.argsort(mean_good)
        curves.append((mean_good[order], np.maximum.accumulate(mean_times[order])))
    low, high = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
    if low > high:
        return math.nan
    at = np.linspace(low, high, GRID)
    return float(np.mean(np.interp(at, *curves[0]) - np.interp(at, *curves[1])))


def _ahead(a: tuple[Any, Any], b: tuple[Any, Any]) -> float:
    """Least difference of log seconds between a mean of b and the fastest as good mean of a; NEVER where none is."""
    (good, times), (other, theirs) = ((g.mean(axis=0), t.mean(axis=0)) for g, t in (a, b))
    fastest = np.where(good[:, None] >= other, times[:, None], np.inf).min(axis=0)
    return max(float((theirs - fastest).min()), NEVER)


def _hypervolume(good: Any, times: Any, worst: tuple[float, float]) -> float:
    """Area of (goodness, log seconds) that the points dominate, from the ``worst`` of all (Zitzler & Thiele 1999)."""
    area, best = 0.0, worst[0]
    points = sorted(zip(times.ravel(), good.ravel(), strict=True))
    for time, value in points:
        if value > best:
            area += (value - best) * (worst[1] - time)
            best = value
    return area


def judge(results: Sequence[Result], task: str, term: str = "time", rival: str = "proxy", seed: int = 0) -> Verdict:
    """Compare two terms over the same seeds: time at equal figures, and hypervolume, with intervals over the seeds."""
    a, b = _table(results, term, task), _table(results, rival, task)
    rng = np.random.default_rng(seed)
    n = len(a[0])
    worst = (float(min(a[0].min(), b[0].min())) - 1e-9, float(max(a[1].max(), b[1].max())) + 1e-9)

    def ratio(x: tuple[Any, Any], y: tuple[Any, Any]) -> float:
        below = _hypervolume(*y, worst)
        return _hypervolume(*x, worst) / below if below > 1e-6 else math.nan

    picks = [rng.integers(n, size=n) for _ in range(RESAMPLES)]
    again = [tuple((t[0][p], t[1][p]) for t in (a, b)) for p in picks]
    saving = _interval(-math.expm1(_gap(a, b)), [-math.expm1(_gap(x, y)) for x, y in again])
    volume = _interval(ratio(a, b), [ratio(x, y) for x, y in again]) if n >= 3 else None
    if saving is None and n >= 3:
        for first, second, x, y in ((term, rival, 0, 1), (rival, term, 1, 0)):
            ahead = [-math.expm1(-_ahead(t[x], t[y])) for t in ((a, b), *again)]
            least = _interval(ahead[0], ahead[1:])
            if least is not None and least.low > 0:
                return Verdict(term, rival, None, volume, _apart(first, second, least, n))
    return Verdict(term, rival, saving, volume, _words(term, rival, saving, n))


def _interval(value: float, resampled: Sequence[float]) -> Interval | None:
    known = [x for x in resampled if not math.isnan(x)]
    if math.isnan(value) or len(known) < 0.5 * len(resampled):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _words(term: str, rival: str, saving: Interval | None, seeds: int) -> str:
    if seeds < 3:
        found = "no figure that both reach" if saving is None else f"the difference is {saving.value:.1%}"
        return f"undecided between {term} and {rival}: {seeds} seeds give no interval; {found}"
    if saving is None:
        return f"{term} and {rival} reach no common figure: try other --factors"
    span = f"{saving.value:.1%} (95 % interval {saving.low:.1%} to {saving.high:.1%}, {seeds} seeds)"
    if saving.low > 0:
        return f"{term} wins: at equal figures its networks take {span} less measured time than {rival}'s"
    if saving.high < 0:
        less = Interval(-saving.value, -saving.high, -saving.low)
        span = f"{less.value:.1%} (95 % interval {less.low:.1%} to {less.high:.1%}, {seeds} seeds)"
        return f"{term} loses: at equal figures its networks take {span} more measured time than {rival}'s"
    return f"a tie: at equal figures the networks of {term} take {span} less measured time than {rival}'s"


def _apart(first: str, second: str, least: Interval, seeds: int) -> str:
    return (
        f"{first} wins: it and {second} reach no common figure, but for every coefficient of {second} one of {first} "
        f"gives a better figure in at least {least.value:.1%} (95 % interval {least.low:.1%} to {least.high:.1%}, "
        f"{seeds} seeds) less measured time"
    )


# -- time against density along a training --------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """The model after so many steps: its density, and seconds of a training step's kernels, sparse and dense."""

    step: int
    density: float
    edges: int
    sparse: Timing
    dense: Timing


def along(
    data: Dataset, manifold: ManifoldConfig, config: TrainConfig, on_snapshot: Callable[[], None] = lambda: None
) -> list[Snapshot]:
    """Train, and on the way time forward + backward of one batch by `DynamicManifold` and by `DenseManifold`.

    The original's own figure.  Wall seconds; the dense one is the same network, computed as in 2018 but batched by
    level.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = DynamicManifold(manifold, generator, executor=config.executor, threads=config.threads)
    stops = np.unique(np.geomspace(1, max(config.steps, 1), SNAPSHOTS - 1).astype(int)).tolist()
    config = replace(config, log_every=1, checkpoint_every=max(config.steps, 1))
    device = backend.device_of(config.device)
    x = data.x_train[: config.batch_size].to(device)
    found: list[Snapshot] = []

    def look(record: dict[str, Any]) -> None:
        """Time both at the steps that are wanted."""
        if record["step"] not in (0, *stops):
            return
        dense = DenseManifold.from_manifold(model)
        copy = DynamicManifold(manifold, executor=config.executor, threads=config.threads)
        copy.load_state_dict(model.state_dict())

        def step(m: nn.Module) -> None:
            m(x).square().mean().backward()
            if x.is_cuda:
                torch.cuda.synchronize(device)

        cases = {"sparse": partial(step, copy.to(device)), "dense": partial(step, dense)}
        with one_torch_thread():
            times = interleave(cases, repeats=15, budget_s=3.0)
        found.append(Snapshot(record["step"], record["density"], record["edges"], times["sparse"], times["dense"]))
        on_snapshot()

    Trainer(model, data, config).run(look)
    return found


def medians(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Median and range over the seeds, for every term and factor."""
    rows = []
    for term, factor in dict.fromkeys((r.term, r.factor) for r in results):
        chosen = [r for r in results if (r.term, r.factor) == (term, factor)]
        row: dict[str, Any] = {"term": term, "factor": factor, "seeds": len(chosen)}
        for name in ("figure", "edges", "depth", "live", "seconds"):
            values = [getattr(r, name) for r in chosen]
            row[name] = (statistics.median(values), min(values), max(values))
        rows.append(row)
    return rows
