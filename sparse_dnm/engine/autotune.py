"""Executor: how a DAG is run, and the choice of the faster way by measurement."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sparse_dnm.checks import require_torch_sparse
from sparse_dnm.config import EXECUTORS, check_choice
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.engine.schedule import tiles_of
from sparse_dnm.engine.thread_choice import ThreadChoice

MOST_BLOCK_COLUMNS = 4
"""Columns up to which `blocks` runs them one by one."""
RACE_ROUNDS, RACE_SECONDS = 15, 0.3  # of a race, which ends after one of them


class Sized(Protocol):
    """What a choice depends on."""

    @property
    def n_edges(self) -> int: ...
    @property
    def depth(self) -> int: ...


def fastest_of(watches: Sequence[Stopwatch]) -> int:
    """The place of the stopwatch with the fewest seconds, measured in turns, forwards and backwards: by the medians of
    the ratios to the first one in the same round, since a machine changes its pace between rounds."""
    clock = _WallClock()
    for watch in watches:
        watch(clock)
    seconds: list[list[float]] = [[] for _ in watches]
    end, places = time.perf_counter() + RACE_SECONDS, list(range(len(watches)))
    for turn in range(RACE_ROUNDS):
        for k in places if turn % 2 else reversed(places):
            seconds[k].append(watches[k].warm(clock))
        if turn >= 2 and time.perf_counter() > end:
            break
    ratios = [statistics.median(a / b for a, b in zip(found, seconds[0], strict=True)) for found in seconds]
    return ratios.index(min(ratios))


class _WallClock:
    """What a stopwatch reads."""

    overhead = 0.0
    read = staticmethod(time.perf_counter)


@dataclass
class _Trial:
    """Timings of one phase at one batch size, until a choice is made."""

    edges: int
    depth: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"columns": [], "wavefront": []})
    choice: str | None = None

    def stale(self, structure: Sized) -> bool:
        """The structure has changed by more than a fifth since the choice."""
        return (
            abs(structure.n_edges - self.edges) > 0.2 * self.edges
            or abs(structure.depth - self.depth) > 0.2 * self.depth
        )


class Executor:
    """Chooses how to run the DAG: ``columns`` is batch-parallel, a thread per tile of columns, ``wavefront``
    level-parallel, all threads on one level; ``auto``, the one measured to be faster of these two, whose bits are the
    same.  ``blocks`` runs up to MOST_BLOCK_COLUMNS columns over blocks of neighbouring sources, larger batches as
    ``columns``; ``fastest`` is ``auto`` where also ``blocks`` may be chosen.

    ``auto`` needs no extra runs: the first calls of a phase (forward, backward) at a batch size alternate between
    the two, one unmeasured call each and then ``samples``; the smaller median is kept until edges or depth have
    changed by a fifth.  If every thread gets a tile of its own (always so on one thread), ``columns`` runs without a
    trial: it needs no barrier.  With ``threads=0`` their number is chosen by measurement, up to all that this process
    may use, and one is compared with another again and again.
    """

    samples = 5

    def __init__(self, name: str = "auto", threads: int = 0):
        check_choice("executor", name, EXECUTORS)
        if name == "torch-sparse":
            require_torch_sparse()
        self.name = name
        self.asked = threads  # 0: chosen by measurement
        self.threads = self.most = backend.check_threads(threads)  # of the next call, and at most
        self._thread_choices: dict[tuple[str, int], ThreadChoice] | None = None
        if threads == 0 and self.most > 1 and name != "torch-sparse":
            self._thread_choices = {}
        self.paced = False  # whole steps are measured, not passes
        self._trials: dict[tuple[str, int], _Trial] = {}
        self._races: dict[tuple[str, int], _Trial] = {}  # of ``fastest``, by mode and batch

    def choose(self, phase: str, batch: int, structure: Sized) -> str:
        """The executor of the next call of ``phase`` on the CPU."""
        if self._untried(batch):
            return "columns"
        return self.choose_by_trial(phase, batch, structure)

    def choose_by_trial(self, phase: str, batch: int, structure: Sized) -> str:
        """The same without regard to the threads of the CPU."""
        if not self._open:
            return "columns" if self.name == "blocks" else self.name
        trial = self._trials.get((phase, batch))
        if trial is None or trial.stale(structure):
            trial = self._trials[phase, batch] = _Trial(structure.n_edges, structure.depth)
        if trial.choice is not None:
            return trial.choice
        return min(trial.seconds, key=lambda name: len(trial.seconds[name]))

    @property
    def _open(self) -> bool:
        """Whether `columns` or `wavefront` is chosen by measurement."""
        return self.name in ("auto", "fastest")

    def takes_blocks(self, mode: str, batch: int) -> bool:
        """Whether passes of a mode (train, infer) at this batch size run by blocks on the CPU."""
        if self.name == "blocks":
            return 0 < batch <= MOST_BLOCK_COLUMNS
        race = self._races.get((mode, batch))
        return race is not None and race.choice == "blocks"

    def to_race(self, mode: str, batch: int, structure: Sized) -> tuple[str, ...]:
        """The executors that ``fastest`` has to compare before the next such pass; empty where there is nothing to."""
        if self.name != "fastest" or not 0 < batch <= MOST_BLOCK_COLUMNS:
            return ()
        race = self._races.get((mode, batch))
        if race is not None and not race.stale(structure):
            return ()
        return ("blocks", "columns") if self.most <= tiles_of(batch) else ("blocks", "columns", "wavefront")

    def settle_race(self, mode: str, batch: int, structure: Sized, name: str) -> None:
        """Such passes run by ``name`` until the structure has changed."""
        self._races[mode, batch] = _Trial(structure.n_edges, structure.depth, choice=name)

    def tries(self, phase: str, batch: int) -> bool:
        """Will the time of the next call of this phase count in the choice?"""
        if not self._trials:
            return False
        trial = self._trials.get((phase, batch))
        return trial is not None and trial.choice is None and not self._untried(batch)

    def _untried(self, batch: int) -> bool:
        """`columns` runs without a trial on the CPU."""
        return self._open and self.threads <= tiles_of(batch)

    def choose_threads(self, what: str, batch: int) -> ThreadChoice | None:
        """Choose the number of threads of the next call, where that is open: its seconds are to be recorded then."""
        if self._thread_choices is None:
            return None
        choice = self._thread_choices.get((what, batch))
        if choice is None:
            choice = self._thread_choices[what, batch] = ThreadChoice(self.most)
        self.threads = choice.next()
        return choice

    def record(self, phase: str, batch: int, name: str, seconds: float) -> None:
        """Record the seconds that the kernel of a call of ``phase`` took."""
        trial = self._trials.get((phase, batch))
        if trial is None or trial.choice is not None:
            return
        trial.seconds[name].append(seconds)
        if all(len(times) > self.samples for times in trial.seconds.values()):
            medians = {name: statistics.median(times[1:]) for name, times in trial.seconds.items()}
            trial.choice = min(medians, key=lambda name: medians[name])

    def threads_of(self, name: str, batch: int) -> contextlib.AbstractContextManager[None]:
        """Sets the threads of a pass: ``columns`` uses as many as there are tiles."""
        if name != "columns":
            return backend.use_threads(self.threads)
        tiles = tiles_of(batch)
        return backend.use_threads(min(self.threads, tiles)) if tiles > 1 else contextlib.nullcontext()

    def parts_for(self, name: str) -> int:
        """Parts that a level of neurons is cut into: `columns` knows no levels."""
        return self.threads if name == "wavefront" else 1

    def chosen(self) -> str:
        """What ran, for reports: the fixed name, or the choices of ``auto`` per phase and batch."""
        if self.name == "blocks":
            return f"blocks up to batch {MOST_BLOCK_COLUMNS}, columns above"
        if not self._open:
            return self.name
        trials = [*self._races.items(), *self._trials.items()]
        if self.threads == 1 and not trials:
            return "columns"
        made = [f"{phase} {t.choice} (batch {batch})" for (phase, batch), t in trials if t.choice]
        return f"{self.name}: " + (", ".join(made) or ("no choice yet" if self._trials else "columns"))
