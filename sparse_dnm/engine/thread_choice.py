"""How many threads are fastest now: found by measurement, again and again (`threads=0`)."""

from __future__ import annotations

import statistics
from collections import deque

SAMPLES = 5  # the latest, whose median counts
EXPLORE_EVERY = 16  # measured calls between those on another number of threads,
RARELY = 64  # times as many at most: as many times as that number is slower, so that exploring costs a fixed share
GAIN = 0.9  # of the seconds at present, that another number of threads must stay below to be taken


class ThreadChoice:
    """A number of threads: 1, 2, 4, .. or ``most``.

    It starts with ``most`` and compares with the next smaller and larger numbers by wall seconds, since the machine may
    become busy and the network smaller: threads that wait for a busy core make a step slower than one thread does.  The
    results have the same bits on any number of threads.
    """

    def __init__(self, most: int):
        self._options = [1 << k for k in range(most.bit_length()) if 1 << k < most] + [most]
        self._seconds = {threads: deque[float](maxlen=SAMPLES) for threads in self._options}
        self.best = most
        self._calls = 0  # since another number was tried
        self._tries = 0
        self._promising: int | None = None  # a number whose last time was better

    def next(self) -> int:
        """Threads of the next measured call."""
        if len(self._seconds[self.best]) < SAMPLES:
            return self.best
        near = self._neighbours()
        missing = [threads for threads in near if len(self._seconds[threads]) < SAMPLES]
        if missing:
            return missing[0]
        if self._promising in near:
            return self._promising
        if near:
            self._calls += 1
            other = near[self._tries % len(near)]
            slower = self._median(other) / max(self._median(self.best), 1e-9)
            if self._calls >= EXPLORE_EVERY * min(max(slower, 1.0), RARELY):
                self._calls, self._tries = 0, self._tries + 1
                return other
        return self.best

    def record(self, threads: int, seconds: float) -> None:
        """Seconds of a call, or of a step, on so many threads."""
        self._seconds[threads].append(seconds)
        now = self._median(self.best)
        self._promising = threads if threads != self.best and seconds < GAIN * now else None
        for other in self._neighbours():
            if self._median(other) < GAIN * now:
                self.best, now, self._calls = other, self._median(other), 0

    def _neighbours(self) -> list[int]:
        """The next smaller and the next larger number."""
        at = self._options.index(self.best)
        return self._options[max(at - 1, 0) : at] + self._options[at + 1 : at + 2]

    def _median(self, threads: int) -> float:
        """Infinity while there are too few samples."""
        found = self._seconds[threads]
        return statistics.median(found) if len(found) == SAMPLES else float("inf")
