"""Which steps of a training are made many at a time: those after which no other code reads the model."""

from __future__ import annotations

import time
from collections import deque

from sparse_dnm.engine.device import Uninterrupted
from sparse_dnm.train.augment import Draws
from sparse_dnm.train.constraints import Constraint
from sparse_dnm.train.early_stopping import EarlyStopping
from sparse_dnm.train.fused import FusedSteps
from sparse_dnm.train.recovery import Recovery
from sparse_dnm.train.schedules import kappa, learning_rate
from sparse_dnm.train.state import Run
from sparse_dnm.train.step import KernelStep
from sparse_dnm.train.trim import Frozen

TIMED_STEPS = 4  # of a call whose seconds count in the choice of threads: of fewer, Python takes a good part
LONG_STEP = 1e-3  # s, of which Python takes little
MOST_STEPS = 64  # made by one call
LONGEST_CALL = 0.05  # s, about the most for a call: signals are handled only after it


class Ahead:
    """Makes steps many at a time where possible; appends the seconds of each to ``times``."""

    def __init__(
        self, run: Run, draws: Draws, constraint: Constraint, recovery: Recovery, early: EarlyStopping,
        times: deque[float],
    ):  # fmt: skip
        self._run, self._draws, self._constraint, self._recovery, self._times = run, draws, constraint, recovery, times
        self._early = early
        self._fused: FusedSteps | None = None
        self._alone = True  # the next step is made alone
        self._most = 1  # steps that one call makes
        self._frozen: Frozen | None = None  # in the last step
        self._asked = -1  # the step before which the constraint was asked last

    def choose(self) -> None:
        """Adapt to the present kind of single steps."""
        run = self._run
        run.model.executor.paced = isinstance(run.making, KernelStep)
        if type(run.making) is not KernelStep:  # sequences are run step by step
            self._fused = None
        elif self._fused is None or self._fused.making is not run.making:
            self._fused, self._alone = FusedSteps(run.making, run.data, run.optimizer), True

    def end(self) -> None:
        """The training ends: passes are measured again."""
        self._run.model.executor.paced = False

    def before_step(self) -> None:
        """Call the constraint, once per step, and pause the costs during a recovery."""
        run = self._run
        if self._asked != run.step:
            self._asked = run.step
            self._constraint.before_step()
        if run.costs is not None:
            run.costs.paused = self._recovery.quiet

    def advance(self, stopping: bool, snapshots: bool) -> bool:
        """Make the next steps by one call, as many as need no Python code; returns whether any was made.

        ``stopping``: only those whose batches are drawn already; ``snapshots``: stop where one is due.
        """
        if self._fused is None or self._alone:
            self._alone = False
            return False
        start = time.perf_counter()
        self.before_step()
        if self._constraint.frozen is not self._frozen:
            self._frozen = self._constraint.frozen
            return False  # the next step is a single one: there Adam begins to count for each parameter by itself
        count = self._count(stopping, snapshots)
        if count == 0 or not self._fused.ready():
            return False
        with Uninterrupted():
            return self._make(count, start)

    def _make(self, count: int, start: float) -> bool:
        """Make up to ``count`` steps, in a call that began at ``start``; returns whether any was made."""
        run, step, fused = self._run, self._run.step, self._fused
        assert fused is not None
        steps, executor = range(step, step + count), run.model.executor
        choice = executor.choose_threads("steps", run.config.batch_size)
        made = fused.run(
            self._draws.ahead(count),
            [kappa(run.config, k) for k in steps],
            [learning_rate(run.config, k) for k in steps],
            self._frozen,
        )
        self._alone = made.steps < count
        if not made.steps:
            return False
        self._draws.take(made.steps)
        run.step, run.edges, run.last_loss, run.fused = step + made.steps, made.n_edges, made.loss, True
        run.seen = None
        seconds = (time.perf_counter() - start) / made.steps
        self._times += [seconds] * made.steps
        if choice is not None and (made.steps >= TIMED_STEPS or seconds > LONG_STEP):
            choice.record(executor.threads, seconds)
        self._most = max(1, min(MOST_STEPS, int(LONGEST_CALL / seconds)))
        return True

    def _count(self, stopping: bool, snapshots: bool) -> int:
        """How many steps can be made before other code reads the model, or the results of the last step."""
        step, fused = self._run.step, self._fused
        limits = [self._most, self._constraint.steps_ahead(step)]
        untimed = None if fused is None else fused.most()
        limits += [] if untimed is None else [untimed]
        limits += [len(self._draws)] if stopping else []
        limits += [self._recovery.quiet_until - step] if self._recovery.quiet else []
        limits += [0] if self._recovery.cut_at == step else []
        limits += [left - 1 for left in self._lefts(step, snapshots)]
        return max(min(limits), 0)

    def _lefts(self, step: int, snapshots: bool) -> list[int]:
        """Numbers of updates until the end, and until the next checkpoint, log line, snapshot, search and look at the
        validation samples."""
        config, every = self._run.config, self._early.every
        periods = [config.checkpoint_every, config.log_every]
        periods += [config.steps_per_snapshot] if snapshots else []
        periods += [config.scan_every] if config.scan_every else []
        periods += [every] if every else []
        return [config.steps - step, *(every - step % every for every in periods)]
