"""Which speed term is better: time at equal figures, and hypervolumes, with bootstrap intervals over the seeds."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

FLAT = ("none", "proxy-flat")  # terms without a gradient: their coefficient has no effect
RESAMPLES = 2000
CONFIDENCE = 0.95
LEAST_SEEDS = 3  # for an interval
GRID = 21  # accuracies at which curves are compared
NOT_REACHED = -50.0  # difference of log seconds for an accuracy that is not reached


@dataclass(frozen=True)
class Result:
    """One trained network: figure of merit, size, seconds."""

    term: str
    factor: float  # of the preset's coefficient; of budget and edges: the goal, µs or edges
    seed: int
    figure: float  # test accuracy, or test MSE
    edges: int
    depth: int
    live: int
    seconds: float  # of a step, median of the subprocesses
    low: float  # s, least of the subprocesses' medians
    high: float  # s, largest of them
    executor: str = ""  # that it was timed with


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval over the seeds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """How much less time the networks of one term take than another's, at equal figures; or, where ``gain`` is there,
    how much better they are at equal time."""

    term: str
    rival: str
    saving: Interval | None  # share of the rival's time that is saved; None: there is no figure that both reach
    hypervolume: Interval | None  # the term's over the rival's
    words: str
    gain: Interval | None = None  # goodness (see `goodness`) less the rival's; None: not judged so, or no common time


Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # goodness and log seconds of a term, (seeds, factors)


def goodness(results: Sequence[Result], task: str) -> NDArray[np.float64]:
    """A measure of which more is better: accuracy, or for a regression -log10 of the MSE."""
    figures = np.array([r.figure for r in results])
    return figures if task == "classification" else -np.log10(np.maximum(figures, 1e-300))


def _table(results: Sequence[Result], term: str, task: str) -> Curve:
    """Goodness and log seconds (seeds, factors) of a term."""
    chosen = [r for r in results if r.term == term]
    seeds, factors = sorted({r.seed for r in chosen}), sorted({r.factor for r in chosen})
    good = np.full((len(seeds), len(factors)), np.nan)
    times = good.copy()
    for r, g in zip(chosen, goodness(chosen, task), strict=True):
        good[seeds.index(r.seed), factors.index(r.factor)] = g
        times[seeds.index(r.seed), factors.index(r.factor)] = math.log(r.seconds)
    return good, times


def _gap(a: Curve, b: Curve) -> float:
    """Mean difference of log seconds, a less b, over the goodness that both mean curves reach; nan if there is none."""
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


def _ahead(a: Curve, b: Curve) -> float:
    """Least difference of log seconds between a mean of b and the fastest mean of a that is as good; or NOT_REACHED."""
    (good, times), (other, theirs) = ((g.mean(axis=0), t.mean(axis=0)) for g, t in (a, b))
    fastest = np.where(good[:, None] >= other, times[:, None], np.inf).min(axis=0)
    return max(float((theirs - fastest).min()), NOT_REACHED)


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
    n = len(a[0])
    worst = (float(min(a[0].min(), b[0].min())) - 1e-9, float(max(a[1].max(), b[1].max())) + 1e-9)

    def ratio(x: Curve, y: Curve) -> float:
        below = _hypervolume(*y, worst)
        return _hypervolume(*x, worst) / below if below > 1e-6 else math.nan

    saving = _interval(lambda x, y: -math.expm1(_gap(x, y)), a, b, seed)
    if n < LEAST_SEEDS:
        return Verdict(term, rival, saving, None, _words(term, rival, saving, n))
    volume = _interval(ratio, a, b, seed)
    if saving is None:
        for first, second, x, y in ((term, rival, a, b), (rival, term, b, a)):
            least = _interval(lambda u, v: -math.expm1(-_ahead(u, v)), x, y, seed)
            if least is not None and least.low > 0:
                return Verdict(term, rival, None, volume, _no_overlap(first, second, least, n))
    return Verdict(term, rival, saving, volume, _words(term, rival, saving, n))


def judge_at_equal_time(
    results: Sequence[Result], task: str, term: str = "budget", rival: str = "edges", seed: int = 0
) -> Verdict:
    """Compare two terms over the same seeds: goodness of ``term`` less that of ``rival``'s mean curve, interpolated on
    log time at the mean times of ``term``, as a mean over its levels; with an interval over the seeds.

    Levels of ``term`` whose time lies outside ``rival``'s are left out, and counted in the words.
    """
    a, b = _table(results, term, task), _table(results, rival, task)
    n, at, theirs = len(a[0]), a[1].mean(axis=0), b[1].mean(axis=0)
    inside = (at >= theirs.min()) & (at <= theirs.max())
    if not inside.any():
        spans = [f"{1e6 * math.exp(t.min()):.4g} to {1e6 * math.exp(t.max()):.4g} µs" for t in (at, theirs)]
        words = f"the networks of {term} take {spans[0]}, those of {rival} {spans[1]}: no common time; try other levels"
        return Verdict(term, rival, None, None, words)

    def ahead(x: Curve, y: Curve) -> float:
        good, times = (part.mean(axis=0)[inside] for part in x)
        theirs, when = (part.mean(axis=0) for part in y)
        order = np.argsort(when)
        return float(np.mean(good - np.interp(times, when[order], theirs[order])))

    gain = _interval(ahead, a, b, seed)
    assert gain is not None  # means are finite
    left_out = "" if inside.all() else f"; {int((~inside).sum())} of {len(inside)} levels lie outside its times"
    return Verdict(term, rival, None, None, _words_of_gain(term, rival, gain, n, task) + left_out, gain)


def _interval(statistic: Callable[[Curve, Curve], float], a: Curve, b: Curve, seed: int) -> Interval | None:
    """``statistic`` of two terms with its percentile interval; None if most resamples do not define it.

    A resample draws seeds with replacement, the same ones for both terms.
    """
    value = statistic(a, b)
    if math.isnan(value):
        return None
    n = len(a[0])
    if n == 1:  # nothing to resample
        return Interval(value, value, value)

    def of(picks: NDArray[np.int64]) -> float:
        return statistic((a[0][picks], a[1][picks]), (b[0][picks], b[1][picks]))

    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of scipy's own interval, if a resample is nan
        drawn = bootstrap(
            (np.arange(n),), of, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=rng
        ).bootstrap_distribution
    known = drawn[~np.isnan(drawn)]
    if len(known) < 0.5 * RESAMPLES:
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


def _words(term: str, rival: str, saving: Interval | None, seeds: int) -> str:
    if seeds < LEAST_SEEDS:
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


def _words_of_gain(term: str, rival: str, gain: Interval, seeds: int, task: str) -> str:
    """Points of accuracy, or the share by which the MSE is smaller."""

    def said(value: float) -> str:
        return (
            f"{100 * value:+.2f} points of accuracy" if task == "classification" else f"{10**-value:.3g} times the MSE"
        )

    def bare(value: float) -> str:
        return said(value).split()[0]

    if seeds < LEAST_SEEDS:
        return f"undecided between {term} and {rival}: {seeds} seeds give no interval; {term} has {said(gain.value)}"
    low, high = sorted((gain.low, gain.high), key=lambda value: float(bare(value)))
    span = f"{said(gain.value)} (95 % interval {bare(low)} to {bare(high)}, {seeds} seeds)"
    verdict = f"{term} wins" if gain.low > 0 else f"{term} loses" if gain.high < 0 else "a tie"
    return f"{verdict}: at equal measured time the networks of {term} have {span} relative to {rival}'s"


def _no_overlap(first: str, second: str, least: Interval, seeds: int) -> str:
    return (
        f"{first} wins: it and {second} reach no common figure, but for every coefficient of {second} one of {first} "
        f"gives a better figure in at least {least.value:.1%} (95 % interval {least.low:.1%} to {least.high:.1%}, "
        f"{seeds} seeds) less measured time"
    )


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
