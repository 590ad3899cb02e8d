"""Pace: how fast the machine is now, by a reference step that runs beside every measurement (DESIGN, 3).

A shared machine changes its speed by a factor of two for minutes.  So a measurement is a ratio to the references right
before and after it, which the same engine runs by the same clock; seconds are that ratio times the seconds of the
reference on the quiet machine.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.engine.device import ACTIVATION_CODES
from sparse_dnm.engine.topology import Topology
from sparse_dnm.timing import quiet
from sparse_dnm.timing.clock import Clock
from sparse_dnm.timing.quiet import Quiet
from sparse_dnm.wording import words

INPUTS, HIDDEN, OUTPUTS, READS = 80, 300, 20, 7  # of the reference; READS: sources of a neuron, at most
TORN = 1.5  # times as long as the reference before is one after a measurement that the pace changed in
MAX_TORN = 0.5  # share of such measurements above which they say nothing
QUIET_SPREAD = 1.12  # of the references (see Conditions) on a quiet machine, at most
QUIET_SHARE = 0.97  # CPU over wall seconds there, at least
QUIET_OTHERS = 0.1  # processors that other programs use there, at most
TICKS = 4  # of the system's count of used time that are no proof
RECENT = 200  # references that `Pace.factor` looks at


class NoisyMachine(ValueError):
    """The machine changes its speed faster than references can correct."""


class Sample(NamedTuple):
    """A measurement: seconds of the quiet machine, those that the clock showed, and whether the pace changed in it."""

    seconds: float
    raw: float
    torn: bool = False


@functools.cache
def reference_graph() -> Topology:
    """A random DAG, always the same: 400 neurons, 2,200 edges."""
    rng = np.random.default_rng(2018)
    n, edges = INPUTS + HIDDEN + OUTPUTS, []
    for i in range(INPUTS, n):
        sources = rng.choice(min(i, n - OUTPUTS), READS, replace=False)
        edges += [(int(j), i) for j in sources]
    return Topology.from_edges(np.array(edges), n, np.arange(INPUTS), np.arange(n - OUTPUTS, n))


@dataclass(frozen=True)
class Conditions:
    """How quiet the machine was while something was measured."""

    reference: float  # s of a reference step, median
    spread: float  # its 90th over its 10th percentile
    cpu_share: float  # CPU seconds of this process over wall seconds
    others: float | None  # processors that other programs used; None where the system does not say

    @property
    def quiet(self) -> bool:
        """Nothing else seems to have run."""
        return self.spread <= QUIET_SPREAD and self.cpu_share >= QUIET_SHARE and (self.others or 0.0) <= QUIET_OTHERS


def used_ticks() -> int | None:
    """Clock ticks that all programs have used so far, those of other virtual machines included; None if unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq + steal


class Surroundings:
    """What this process and others use from now on."""

    def __init__(self) -> None:
        self._ticks, self._wall, self._cpu = used_ticks(), time.perf_counter(), time.process_time()

    def conditions(self, references: Sequence[float]) -> Conditions:
        """Since then, with these references."""
        wall, own = time.perf_counter() - self._wall, time.process_time() - self._cpu
        ticks, others = used_ticks(), None
        if ticks is not None and self._ticks is not None and wall > 0:
            per_second = os.sysconf("SC_CLK_TCK")
            others = max((ticks - self._ticks - TICKS) / per_second - own, 0.0) / wall
        low, high = np.quantile(references, [0.1, 0.9])
        spread = float(high / low) if low > 0 else math.inf
        return Conditions(statistics.median(references), spread, own / max(wall, 1e-9), others)


class Steady:
    """Stands for a pace where there is no reference: seconds are those that the clock shows."""

    unit: Quiet | None = Quiet(1.0)
    factor = 1.0
    notes: tuple[str, ...] = ()

    def now(self) -> float:
        """No reference is run."""
        return 1.0

    def known(self) -> Quiet | None:
        """Nothing is kept."""
        return Quiet(1.0)

    def settle(self, found: Conditions) -> Quiet:
        """Seconds stay what they are."""
        return Quiet(1.0)

    def settle_now(self, count: int = 0) -> Quiet:
        """The same."""
        return Quiet(1.0)

    def describe(self) -> list[str]:
        """Nothing."""
        return []


class Pace:
    """Reference steps of an engine, and the seconds of the quiet machine that they stand for.

    ``unit``: those seconds, once they are known: given, kept from earlier runs, or measured by `settle`.
    """

    def __init__(self, engine: Engine, settings: Any, dtype: Any, unit: Quiet | None = None):
        graph, (kind, slope) = reference_graph(), ACTIVATION_CODES["leaky_relu"]
        n = graph.n_neurons
        neurons = engine.neurons(np.full(n, kind, np.int8), np.full(n, slope, dtype), n - OUTPUTS, np.arange(n))
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.standard_normal((settings.batch, INPUTS)).astype(dtype))
        values = torch.full((graph.n_edges,), READS**-0.5, dtype=x.dtype)
        strengths, samples = (engine.array(t.to(engine.device)) for t in (values, x))
        train = settings.mode == "train"
        self._watch: Stopwatch = engine.stopwatch(engine.given(graph, neurons), strengths, samples, train)
        self._clock = Clock.of(settings.clock)
        self.key = quiet.key_of(settings, engine.executor.threads, np.dtype(dtype))
        self.recent: deque[float] = deque(maxlen=RECENT)  # s
        self.notes: tuple[str, ...] = ()
        self.unit = unit
        self._watch(self._clock)  # compiled

    def now(self) -> float:
        """Seconds of a reference step now."""
        seconds = max(self._watch.warm(self._clock), 1e-9)
        self.recent.append(seconds)
        return seconds

    def known(self) -> Quiet | None:
        """What earlier runs have kept."""
        found, note = quiet.read(self.key)
        self.notes += (note,) if note else ()
        return found

    def settle(self, found: Conditions) -> Quiet:
        """The unit after measurements under these conditions, which are kept if they are the best so far."""
        known = self.known()
        if found.quiet or (known is not None and found.reference < known.seconds):
            known, note = quiet.keep(self.key, Quiet.today(found.reference))
            self.notes += (note,) if note else ()
        if self.unit is None:
            self.unit = known or Quiet(found.reference)
        return self.unit

    def settle_now(self, count: int = 15) -> Quiet:
        """The unit where nothing is calibrated: what is kept, else some references now."""
        if self.unit is None:
            self.unit = self.known() or Quiet(statistics.median(self.now() for _ in range(count)))
        return self.unit

    @property
    def factor(self) -> float:
        """How many times the seconds of the unit the machine needs at present."""
        if self.unit is None or not self.recent:
            return 1.0
        return statistics.median(self.recent) / self.unit.seconds

    def describe(self) -> list[str]:
        """The pace in words, as lines."""
        notes = list(dict.fromkeys(self.notes))
        if self.unit is None:
            return notes
        if self.unit.date:
            return [
                f"pace: this machine runs at {self.factor:.2f} times the seconds of its quiet reference of "
                f"{self.unit.date}",
                *notes,
            ]
        return [
            "pace: this was not calibrated on a quiet machine, and none of its quiet references is kept: seconds are "
            "those of the machine as it is now; sparse-dnm calibrate on the quiet machine keeps one",
            *notes,
        ]


def pace_of(engine: Engine, settings: Any, dtype: Any, unit: Quiet | None = None) -> Pace | Steady:
    """The pace of an engine; on a GPU, which this process has alone, there is none."""
    return Pace(engine, settings, dtype, unit) if settings.device == "cpu" else Steady()


def differ(before: float, after: float) -> bool:
    """The pace changed between two references."""
    return max(before, after) > TORN * min(before, after)


def sample(pace: Pace | Steady, run: Callable[[], float], before: float | None = None) -> Sample:
    """What ``run`` measures, with a reference before (or that one, which has just run) and one after it."""
    assert pace.unit is not None
    first = pace.now() if before is None else before
    raw = run()
    last = pace.now()
    return Sample(raw * pace.unit.seconds / math.sqrt(first * last), raw, differ(first, last))


def check_noise(torn: int, count: int, clock: str) -> None:
    """Raise NoisyMachine if the pace changed in too many of ``count`` measurements."""
    if torn > MAX_TORN * count:
        raise NoisyMachine(
            f"in {torn} of {count} measurements by clock {clock} a reference step took over {TORN:g} times as long "
            f"after as before, or the other way round; at most {MAX_TORN:.0%} may: the machine changes its speed "
            f"faster than can be corrected. Keep it quiet, or choose another {words().name('clock')}, fewer "
            f"{words().name('threads')} or {words().give('speed', 'proxy')}"
        )
