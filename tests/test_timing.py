"""Clocks and paired timing: their logic, on clocks and cases whose seconds are known."""

import math
import time

import numpy as np
import pytest

from sparse_dnm.config import CLOCKS
from sparse_dnm.timing import clock as timing
from sparse_dnm.timing.clock import READ, Clock, Pair, compare, interleave


class Fake:
    """A clock that moves only where it is told to, by whole ticks, and costs ``overhead`` a reading."""

    def __init__(self, tick=1e-9, overhead=0.0):
        self.now, self.tick, self.overhead = 0.0, tick, overhead

    def read(self):
        self.now += self.overhead
        return math.floor(self.now / self.tick) * self.tick

    def spend(self, seconds):
        self.now += seconds


@pytest.fixture
def fake(monkeypatch):
    """Stands in for perf_counter."""
    clock = Fake(overhead=2e-7)
    found = Clock("perf_counter", clock.read, 2e-7, 1e-9)
    monkeypatch.setattr(Clock, "of", staticmethod(lambda name: found))
    monkeypatch.setattr(timing, "preemptions", lambda: 0)
    return clock


@pytest.mark.parametrize("name", CLOCKS)
def test_a_clock_is_measured_once_and_tells_what_it_costs(name):
    clock = Clock.of(name)
    assert clock is Clock.of(name)
    assert 0 <= clock.overhead < 1e-3
    assert 0 < clock.resolution < 1e-2
    assert clock.read is READ[name]


def test_an_unknown_clock_is_named():
    with pytest.raises(ValueError, match="clock='sundial' is unknown; choose one of process_time"):
        Clock.of("sundial")
    with pytest.raises(ValueError, match="sundial"):
        interleave({}, clock="sundial")


def test_resolution_is_the_tick_of_a_coarse_clock(monkeypatch):
    monkeypatch.setitem(READ, "coarse", lambda: math.floor(time.perf_counter() / 0.002) * 0.002)
    monkeypatch.setattr(timing, "CLOCKS", (*CLOCKS, "coarse"))
    assert Clock.of.__wrapped__("coarse").resolution == pytest.approx(0.002, rel=1e-3)


def test_a_clock_too_coarse_for_what_it_times_is_refused():
    clock = Clock("slow", time.perf_counter, 0.0, 1e-3)
    clock.check(0.1)
    with pytest.raises(ValueError, match=r"steps of 1e\+03 µs, too coarse for 5e\+04 µs: choose another clock"):
        clock.check(0.05)
    with pytest.raises(ValueError, match="too coarse"):
        Clock("stopped", time.perf_counter, 0.0, math.inf).check(1.0)


def test_overhead_is_taken_off(fake):
    found = interleave({"a": lambda: fake.spend(3e-6)}, repeats=5, shortest_s=0)
    assert found["a"].median == pytest.approx(3e-6, rel=1e-3)


def test_a_ratio_survives_a_drift(fake):
    def case(seconds):
        def run():
            fake.spend(seconds * (1 + 100 * fake.now))  # everything becomes slower

        return run

    found = compare(case(2e-4), case(1e-4), pairs=20, shortest_s=0)
    assert found.ratio == pytest.approx(2.0, rel=1e-2)
    assert found.low <= found.ratio <= found.high
    assert found.differs
    assert found.n == 20


def test_the_same_case_twice_does_not_differ(fake):
    noise = np.random.default_rng(3)

    def run():
        fake.spend(1e-4 * noise.lognormal(0, 0.1))

    found = [compare(run, run, pairs=20, shortest_s=0, seed=seed) for seed in range(40)]
    assert sum(pair.differs for pair in found) <= 6  # 2 of 40 are expected
    assert not Pair(1.05, 0.99, 1.1, 20).differs


def test_pairs_that_the_system_interrupted_are_measured_again(fake, monkeypatch):
    calls = iter(range(10**6))
    monkeypatch.setattr(timing, "preemptions", lambda: next(calls) // 3)  # every now and then
    count = []
    found = compare(lambda: (count.append(1), fake.spend(1e-4)), lambda: fake.spend(1e-4), pairs=10, shortest_s=0)
    assert found.n == 10
    assert len(count) > 2 + 2 * 10


def test_too_few_pairs_or_too_short_cases_are_refused(fake):
    with pytest.raises(ValueError, match="pairs=4 must be >= 5"):
        compare(lambda: None, lambda: None, pairs=4)
    with pytest.raises(ValueError, match="too coarse"):
        compare(lambda: None, lambda: fake.spend(1e-4), pairs=5, shortest_s=0)
