"""Interleaved timing: cases that are compared run in turns, so that a slow phase of the machine hits them alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from sparse_dnm.config import check_choice

CLOCKS: dict[str, Callable[[], float]] = {
    "perf_counter": time.perf_counter,  # wall seconds
    "process_time": time.process_time,  # CPU seconds of all threads of this process
}


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


def load() -> float | None:
    """Processes that wanted to run in the last minute, on average, over the cores; None where the system has none."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return None


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
    check_choice("clock", clock, tuple(CLOCKS))
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be >= 1")
    now = CLOCKS[clock]
    calls = {name: _warm(case, warmup, shortest_s) for name, case in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    began = time.perf_counter()
    for turn, order in enumerate(rounds(list(cases), repeats)):
        if budget_s is not None and turn >= min(3, repeats) and time.perf_counter() - began > budget_s:
            break
        for name in order:
            case, count = cases[name], calls[name]
            start = now()
            for _ in range(count):
                case()
            seconds[name].append((now() - start) / count)
    return {name: Timing.of(values, clock) for name, values in seconds.items()}


def _warm(case: Callable[[], object], warmup: int, shortest_s: float) -> int:
    """Call ``case`` unmeasured; return how many calls make a measurement."""
    last = shortest_s
    for _ in range(warmup):
        start = time.perf_counter()
        case()
        last = time.perf_counter() - start
    return max(1, min(1000, round(shortest_s / max(last, 1e-7)))) if shortest_s and warmup else 1
