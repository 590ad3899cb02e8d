"""Clocks, and interleaved timing: cases that are compared run in turns, so that a slow phase affects all of them."""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sparse_dnm.config import CLOCKS, CUDA_CLOCK, check_choice
from sparse_dnm.engine import device as backend

KERNELS = backend.kernels(torch.device("cpu"))

READ: dict[str, Callable[[], float]] = {  # of config.CLOCKS
    "perf_counter": time.perf_counter,  # wall seconds
    "process_time": time.process_time,  # CPU seconds of all threads of this process
    "thread_time": time.thread_time,  # CPU seconds of the calling thread
}


PAIR_ORDER = (0, 1, 1, 0, 1, 0, 0, 1)  # of two cases in a pair
WARMUP_CALLS = 2  # unmeasured calls before a measured one
RESAMPLES = 2000  # of the pairs of a comparison


@dataclass(frozen=True)
class Clock:
    """One of CLOCKS, or CUDA_CLOCK, as it is on this machine."""

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
        steps = {0}  # ns: readings differ by whole ticks, but not always by one
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
        """Preemptions of this process so far, if they count in what this clock reads."""
        return 0 if self.name == CUDA_CLOCK else preemptions()

    def check(self, seconds: float) -> None:
        """Raise ValueError if this clock is too coarse for an interval of ``seconds``."""
        if not self.resolution <= seconds / 100:
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
    """How much longer one case lasts than another: the median ratio with its 95 % bootstrap interval."""

    ratio: float
    low: float
    high: float
    n: int  # pairs

    @property
    def differs(self) -> bool:
        """The interval leaves out 1."""
        return not self.low <= 1.0 <= self.high


def load() -> float | None:
    """Processes that wanted to run in the last minute, on average, over the cores; None if the system does not say."""
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
    """Ticks of the clock, all cores together, that the host of a virtual machine gave to others; 0 where unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            return int(file.readline().split()[8])
    except (OSError, IndexError, ValueError):
        return 0


class Sentinel:
    """Measures the machine's pace by a fixed piece of work, some 20 µs of arithmetic in the cache."""

    def __init__(self) -> None:
        self._values = np.linspace(0.0, 1.0, 1000)
        self._kept: list[float] = []
        self._last = 0.0
        for _ in range(9):
            self.pace()
            self.keep()

    def pace(self) -> float:
        """Seconds that the work takes now, over the median of what was kept; 1 where nothing was."""
        start = time.perf_counter()
        KERNELS.reference(self._values, 5)
        self._last = time.perf_counter() - start
        return self._last / statistics.median(self._kept) if self._kept else 1.0

    def keep(self) -> None:
        """Keep the last measurement as one of the usual ones."""
        self._kept.append(self._last)

    @property
    def drift(self) -> float:
        """Largest over smallest of those kept, outermost tenths left out."""
        low, high = np.quantile(self._kept, [0.1, 0.9])
        return float(high / low)


def rounds(names: Sequence[str], repeats: int) -> Iterable[list[str]]:
    """``repeats`` orders of ``names``, each begun one place later: every case follows every other's neighbour."""
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

    cases       what to call, by name; results are dropped
    repeats     rounds at most, and at least three where the budget allows none
    budget_s    seconds after which no further round begins; None: all rounds
    shortest_s  a measurement repeats a shorter case until it lasts about this long, seconds; 0: single calls
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
    """How much longer ``a`` lasts than ``b``: measured in PAIR_ORDER, each after WARMUP_CALLS calls for the caches, so
    that a drift, and any effect of the first place or the last, cancels within a pair; which of them begins is drawn
    for every pair.

    made_anew  ``a`` and ``b`` make the cases, and do so for every pair: where a case lies in memory changes its time,
               and counts as noise then

    The ratio is the median over the pairs, its interval from RESAMPLES resamples of them (Efron 1979).  A pair during
    which the process was preempted is measured again, at most twice as many times as there are pairs.
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
        before, times, swap = preemptions(), [], int(generator.integers(2))  # so that none is always the first
        order = [k ^ swap for k in PAIR_ORDER]
        for k in order:
            for _ in range(WARMUP_CALLS):  # a case that follows itself finds its data in the caches
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
    from scipy.stats import bootstrap  # most of a second, which only comparisons need

    found = bootstrap((values,), np.median, n_resamples=RESAMPLES, method="percentile", random_state=generator)
    return found.confidence_interval.low, found.confidence_interval.high


def _make(makers: Sequence[Callable[[], object]], generator: np.random.Generator) -> list[Any]:
    """The cases, made in random order and at random places in memory."""
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
