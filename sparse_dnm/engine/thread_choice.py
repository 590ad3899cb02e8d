"""How many threads are fastest now: found by measurement, again and again (`threads=0`)."""

from __future__ import annotations

import statistics
from collections import deque

SAMPLES = 5  # the latest, whose median counts
EXPLORE_EVERY = 16  # measured calls between those on another number of threads
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
        self._calls = 0

    def next(self) -> int:
        """Threads of the next measured call."""
        self._calls += 1
        if len(self._seconds[self.best]) < SAMPLES:
            return self.best
        near = self._neighbours()
        missing = [threads for threads in near if len(self._seconds[threads]) < SAMPLES]
        if missing:
            return missing[0]
        if near and self._calls % EXPLORE_EVERY == 0:
            return near[self._calls // EXPLORE_EVERY % len(near)]
        return self.best

    def record(self, threads: int, seconds: float) -> None:
        """Seconds of a call, or of a step, on so many threads."""
        self._seconds[threads].append(seconds)
        now = self._median(self.best)
        for other in self._neighbours():
            if self._median(other) < GAIN * now:
                self.best, now = other, self._median(other)

    def _neighbours(self) -> list[int]:
        """The next smaller and the next larger number."""
        at = self._options.index(self.best)
        return self._options[max(at - 1, 0) : at] + self._options[at + 1 : at + 2]

    def _median(self, threads: int) -> float:
        """Infinity while there are too few samples."""
        found = self._seconds[threads]
        return statistics.median(found) if len(found) == SAMPLES else float("inf")
