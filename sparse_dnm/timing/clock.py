"""Clocks, and interleaved timing: compared cases run in turns, so that a slow phase of the machine affects all."""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from sparse_dnm.config import CLOCKS, CUDA_CLOCK, check_choice
from sparse_dnm.engine import device as backend

T = TypeVar("T")
READ: dict[str, Callable[[], float]] = {  # of config.CLOCKS
    "perf_counter": time.perf_counter,  # wall seconds
    "process_time": time.process_time,  # CPU seconds of all threads of this process
    "thread_time": time.thread_time,  # CPU seconds of the calling thread
}

FINEST = "perf_counter"  # what replaces a clock that is not fit
PAIR_ORDER = (0, 1, 1, 0, 1, 0, 0, 1)  # of two cases in a pair
WARMUP_CALLS = 2  # unmeasured calls before a measured one
RESAMPLES = 2000  # of the pairs of a comparison


@dataclass(frozen=True)
class Clock:
    """One of CLOCKS, or CUDA_CLOCK, with its properties on this machine."""

    name: str
    read: Callable[[], float]
    overhead: float  # s, of an empty interval
    resolution: float  # s, the smallest interval that differs from 0

    @staticmethod
    @functools.cache
    def of(name: str) -> Clock:
        """Measure the clock, once.  Raises ValueError naming an unknown one."""
        check_choice("clock", name, (*CLOCKS, CUDA_CLOCK))
        if name == CUDA_CLOCK:
            return Clock._of_events()
        read = READ[name]
        intervals = []
        for _ in range(2000):
            start = read()
            intervals.append(read() - start)
        steps = {0}  # ns: readings differ by whole ticks, not always by one
        deadline = time.perf_counter() + 0.05
        last = read()
        while len(steps) < 2000 and time.perf_counter() < deadline:
            now = read()
            steps.add(round(1e9 * (now - last)))
            last = now
        ticks = np.diff(sorted(steps))
        resolution = 1e-9 * float(ticks.min()) if len(ticks) else math.inf
        return Clock(name, read, statistics.median(intervals), resolution)

    @staticmethod
    def _of_events() -> Clock:
        """The clock of a CUDA device, between events in its stream."""
        cuda, intervals = torch.device("cuda"), []
        for _ in range(50):
            backend.keep_busy(cuda)
            start = backend.mark(cuda)
            intervals.append(backend.between(start, backend.mark(cuda)))
        ticks = np.diff(sorted({0, *(round(1e9 * seconds) for seconds in intervals)}))
        return Clock(CUDA_CLOCK, time.perf_counter, statistics.median(intervals), 1e-9 * float(ticks.min()))

    def disturbances(self) -> int:
        """Preemptions of this process so far, if this clock counts the time that they take."""
        return 0 if self.name == CUDA_CLOCK else preemptions()

    def fits(self, seconds: float) -> bool:
        """Whether this clock is fine enough for an interval of ``seconds``."""
        return self.resolution <= seconds / 100

    def check(self, seconds: float) -> None:
        """Raise ValueError if this clock is too coarse for an interval of ``seconds``."""
        if not self.fits(seconds):
            raise ValueError(
                f"clock {self.name} has steps of {1e6 * self.resolution:.3g} µs, too coarse for "
                f"{1e6 * seconds:.3g} µs: choose another clock, a larger batch or a larger network"
            )


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and quartiles of ``n`` measurements by ``clock``."""

    median: float  # s
    low: float  # s, the first quartile
    high: float  # s, the third quartile
    n: int  # measurements
    clock: str  # one of CLOCKS

    @classmethod
    def of(cls, seconds: Sequence[float], clock: str = "perf_counter") -> Timing:
        """Summary of ``seconds`` per call, at least one."""
        if not seconds:
            raise ValueError("a Timing needs at least one measurement")
        quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        return cls(statistics.median(seconds), quartiles[0], quartiles[2], len(seconds), clock)

    def as_dict(self) -> dict[str, float | int | str]:
        """Fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """How much longer one case takes than another: the median ratio with its 95 % bootstrap interval."""

    ratio: float
    low: float
    high: float
    n: int  # pairs

    @property
    def differs(self) -> bool:
        """The interval does not contain 1."""
        return not self.low <= 1.0 <= self.high


def load() -> float | None:
    """Average number of runnable processes in the last minute, per core; None if the system does not say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return None


def preemptions() -> int:
    """Involuntary context switches of this process so far; 0 if the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def stolen() -> int:
    """Clock ticks, over all cores, that the host gave to other virtual machines; 0 if unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            return int(file.readline().split()[8])
    except (OSError, IndexError, ValueError):
        return 0


def rounds(names: Sequence[T], repeats: int) -> Iterable[list[T]]:
    """``repeats`` orders of ``names``, each starting one place later."""
    for turn in range(repeats):
        start = turn % len(names) if names else 0
        yield [*names[start:], *names[:start]]


def interleave(
    cases: Mapping[str, Callable[[], object]],
    repeats: int = 25,
    clock: str = "perf_counter",
    budget_s: float | None = None,
    warmup: int = 2,
    shortest_s: float = 2e-4,
) -> dict[str, Timing]:
    """Time every case once per round, in rotating order, after ``warmup`` unmeasured calls each.

    cases       functions by name; their results are dropped
    repeats     most rounds; at least three are run, whatever the budget
    budget_s    seconds after which no new round starts; None: all rounds
    shortest_s  seconds; a shorter case is repeated until a measurement lasts about so long; 0: single calls
    Raises ValueError naming an unknown clock, or repeats < 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be >= 1")
    now = Clock.of(clock)
    calls = {name: _warm(case, warmup, shortest_s) for name, case in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    began = time.perf_counter()
    for turn, order in enumerate(rounds(list(cases), repeats)):
        if budget_s is not None and turn >= min(3, repeats) and time.perf_counter() - began > budget_s:
            break
        for name in order:
            seconds[name].append(_measure(cases[name], calls[name], now))
    return {name: Timing.of(values, clock) for name, values in seconds.items()}


def _measure(case: Callable[[], object], count: int, clock: Clock) -> float:
    """Seconds per call of ``count`` calls."""
    start = clock.read()
    for _ in range(count):
        case()
    return max(0.0, clock.read() - start - clock.overhead) / count


def compare(
    a: Callable[[], object],
    b: Callable[[], object],
    pairs: int = 30,
    clock: str = "perf_counter",
    seed: int = 0,
    shortest_s: float = 2e-4,
    made_anew: bool = False,
) -> Pair:
    """How much longer ``a`` takes than ``b``: measured in PAIR_ORDER, each after WARMUP_CALLS calls for the caches, so
    that drift, and any effect of being first or last, cancels within a pair.  Which of them starts is drawn for every
    pair.

    made_anew  ``a`` and ``b`` are functions that make the cases, called for every pair: the place of a case in memory
               changes its time, and then counts as noise

    The ratio is the median over the pairs, its interval comes from RESAMPLES resamples (Efron 1979).  A pair during
    which the process was preempted is measured again, up to twice the number of pairs in all.
    Raises ValueError naming an unknown clock, one too coarse for these cases, or pairs < 5.
    """
    if pairs < 5:
        raise ValueError(f"pairs={pairs} must be >= 5: fewer give no interval")
    now = Clock.of(clock)
    generator = np.random.default_rng(seed)
    cases: list[Any] = _make((a, b), generator) if made_anew else [a, b]
    counts = [_warm(case, 2, shortest_s) for case in cases]
    logs: list[float] = []
    spare = 2 * pairs
    while len(logs) < pairs:
        if made_anew:
            cases = _make((a, b), generator)
        before, times, swap = preemptions(), [], int(generator.integers(2))  # neither is always the first
        order = [k ^ swap for k in PAIR_ORDER]
        for k in order:
            for _ in range(WARMUP_CALLS):  # fills the caches with the data of the case
                cases[k]()
            times.append(_measure(cases[k], counts[k], now))
        shortest = min(times)
        if spare and (preemptions() > before or shortest <= 0.0):
            spare -= 1
            continue
        now.check(shortest)
        logs.append(sum((1 - 2 * k) * math.log(seconds) for k, seconds in zip(order, times, strict=True)) / 4)
    low, high = np.exp(_interval_of_median(logs, generator))
    return Pair(math.exp(statistics.median(logs)), float(low), float(high), pairs)


def _interval_of_median(values: Sequence[float], generator: np.random.Generator) -> tuple[float, float]:
    """The 95 % percentile interval of the median, by RESAMPLES of the bootstrap (Efron 1979)."""
    from scipy.stats import bootstrap  # slow to import, and only needed here

    found = bootstrap((values,), np.median, n_resamples=RESAMPLES, method="percentile", random_state=generator)
    return found.confidence_interval.low, found.confidence_interval.high


def _make(makers: Sequence[Callable[[], object]], generator: np.random.Generator) -> list[Any]:
    """Make the cases in random order and at random places in memory."""
    cases: list[Any] = [None, None]
    gaps = []
    for k in generator.permutation(2):
        gaps.append(np.empty(int(generator.integers(1, 4000)) * 16, np.uint8))
        cases[k] = makers[k]()
    return cases


def _warm(case: Callable[[], object], warmup: int, shortest_s: float) -> int:
    """Call ``case`` unmeasured; return how many calls make a measurement."""
    last = shortest_s
    for _ in range(warmup):
        start = time.perf_counter()
        case()
        last = time.perf_counter() - start
    return max(1, min(1000, round(shortest_s / max(last, 1e-7)))) if shortest_s and warmup else 1
