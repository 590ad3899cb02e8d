"""Fitting: the trim of a run with a budget, until new processes, or a target, confirm that a step takes little less.

The process that trains times the network a first time.  From there on only these count.  A network that is too
slow there and one that fits enclose the number of edges wanted, and the next one is cut from the slower of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sparse_dnm.loss.term import Confirmed, TimeTerm
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.subprocess import CALM
from sparse_dnm.train.state import Run, TrainingError
from sparse_dnm.train.trim import Disconnected, OverBudget, cut, fill, saliency, trim

BUDGET_MARGIN = 0.985  # share of the budget that a network is trimmed to at first
LEAST_SHARE, AIM = 0.98, 0.99  # shares of the budget: what a network takes at least, and what is aimed at
INNER = 0.1  # share of the edges between two networks, by which the next one differs from both
NEAR = 0.002  # share of its edges that a network which fits may lack to the next one that does not
MAX_TRIES = 8  # networks that are timed in new processes
CONFIRMATIONS = 3  # timings of a network that exceeds its budget


Confirm = Callable[[DynamicManifold], Confirmed]


class Tried(NamedTuple):
    """A network whose size is known or expected: its parameters and candidates, edges, and µs of a step or bytes."""

    state: dict[str, Tensor]
    edges: int
    size: float

    @staticmethod
    def of(run: Run, size: float) -> Tried:
        """The present network of a run."""
        state = {name: value.clone() for name, value in run.model.state_dict().items()}
        return Tried(state, run.model.find().n_edges, size)


class Fitting:
    """Gives the network of a run the number of edges whose step takes the budget, or little less.

    fits  the slowest network that new processes have confirmed
    slow  the fastest one that takes longer, or is expected to
    full  the network before the last trim, with its µs in this process; None once it is one of these
    """

    def __init__(self, run: Run, term: TimeTerm, ways_out: Callable[[float], str]):
        self._run, self._term, self._ways_out = run, term, ways_out
        self._budget = run.config.budget_us
        self._least = math.inf  # µs, of all networks that new processes have timed
        self.fits: Tried | None = None
        self.slow: Tried | None = None
        self.full: Tried | None = None
        self._here = math.nan  # µs in this process, after the last trim
        self._side = 0  # how often in a row networks were too slow (> 0), or too fast

    def fit(self) -> float:
        """Change the network; returns µs of a step in new processes, within the budget.

        Raises TrainingError, with the least time that was reached, if no network fits.
        """
        try:
            self._trim_to(BUDGET_MARGIN * self._budget)
        except OverBudget as error:
            raise TrainingError(
                f"a step cannot be made to fit budget_us={self._budget:g}: {error}. "
                f"{self._ways_out(1e6 * error.nearest)}"
            ) from None
        return self.confirm()

    def confirm(self) -> float:
        """The same for a network that was trimmed."""
        with self._term.confirming() as confirm:
            return self._confirm(confirm)

    def _confirm(self, confirm: Confirm) -> float:
        for _ in range(MAX_TRIES):
            found = confirmed(self._run, confirm)
            self._least = min(self._least, found)
            self._know(found)
            if LEAST_SHARE * self._budget <= found <= self._budget or not self._change(found):
                break
        if self.fits is None:
            raise TrainingError(
                f"a step takes {self._least:.4g} µs {self._term.where}, and budget_us={self._budget:g} was not met "
                f"after {MAX_TRIES} trims: keep {self._term.what} quiet. {self._ways_out(self._least)}"
            )
        before = self._run.model.find().n_edges
        self._restore(self.fits)
        if before != self.fits.edges:
            self._note(f"back to {self.fits.edges:,} edges, {self.fits.size:.4g} µs {self._term.where}")
        return self.fits.size

    def _know(self, found: float) -> None:
        """Take the present network, of ``found`` µs, as a bound; one that contradicts it goes."""
        tried, budget, full = Tried.of(self._run, found), self._budget, self.full
        over = found > budget
        self._side = max(self._side, 0) + 1 if over else min(self._side, 0) - 1
        if over and (self.fits is None or self.fits.edges < tried.edges):
            self.slow, self.full = tried, None
        if not over:
            if self.slow is not None and self.slow.edges <= tried.edges:
                self.slow = None
            if self.fits is None or found >= self.fits.size:
                self.fits = tried
            if self.slow is None and full is not None and full.size * found > budget * self._here:
                self.slow, self.full = full._replace(size=full.size * found / self._here), None

    def _change(self, found: float) -> bool:
        """Make the next network to try; False where there is none."""
        run, budget = self._run, self._budget
        if self.slow is not None and self.fits is not None:
            return self._between(self.slow, self.fits, found)
        before = run.model.find().n_edges
        over = found > budget
        self._note(f"{found:.4g} µs {self._term.where}, {'over' if over else 'below'} the budget: "
                   f"{'trimming further' if over else 'filling up'}")  # fmt: skip
        target = 1e6 * self._term.measure(run.model.find(), 45) * AIM * budget / found
        if self.full is not None and not over:
            self._restore(self.full)
        try:
            self._trim_to(target, filling=not over)
            if over and run.model.find().n_edges == before:  # this process has become faster meanwhile
                cut(run.model, self._term, math.ceil((1 - AIM * budget / found) * before), self._saliency)
        except Disconnected:
            return False
        except OverBudget as error:
            if self.fits is not None:
                return False
            raise TrainingError(
                f"a step takes {self._least:.4g} µs {self._term.where}, over budget_us={budget:g}, and cannot be made "
                f"to fit: trimming to {target:.4g} µs, {error}. Beside other programs it is slower: keep "
                f"{self._term.what} quiet. "
                f"{self._ways_out(max(self._least, 1e6 * error.nearest))}"
            ) from None
        return run.model.find().n_edges != before

    def _between(self, slow: Tried, fits: Tried, found: float) -> bool:
        """Cut the slow network to a number of edges between both; False where they are too close."""
        room = slow.edges - fits.edges
        if room <= max(1, NEAR * fits.edges):
            return False
        share = (AIM * self._budget - fits.size) / (slow.size - fits.size)
        if abs(self._side) > 1:  # seconds are no line between them
            share = min(share, 0.5) if self._side > 0 else max(share, 0.5)
        inner = max(1, round(INNER * room))
        wanted = min(max(fits.edges + round(share * room), fits.edges + inner), slow.edges - inner)
        self._note(
            f"{found:.4g} µs {self._term.where}, {'over' if found > self._budget else 'below'} the budget: "
            f"{wanted:,} edges are tried next"
        )
        self._restore(slow)
        try:
            cut(self._run.model, self._term, slow.edges - wanted, self._saliency)
        except Disconnected:
            return False
        return True

    def _restore(self, tried: Tried) -> None:
        self._run.model.load_state_dict(tried.state)
        self._run.model.find()

    def _trim_to(self, target_us: float, filling: bool = True) -> None:
        """Add edges to the network, if ``filling``, or remove some, until a step takes ``target_us`` in this process;
        raise OverBudget if that is out of reach."""
        run, term, target = self._run, self._term, 1e-6 * target_us
        before, capacity = run.model.topology.n_edges, run.model.capacity
        full = 1e6 * (
            run.with_room(lambda: fill(run.model, term, target)) if filling else term.measure(run.model.find())
        )
        if run.model.capacity != capacity:  # what was tried does not fit in it
            self.fits = self.slow = None
        above = Tried.of(run, full)
        found = trim(run.model, term, target, self._saliency)
        self._here, self.full = 1e6 * found, above if above.edges > run.model.topology.n_edges else None
        run.notes.append(
            f"trimmed to {1e6 * found:.4g} µs, {run.model.topology.n_edges:,} edges from {before:,}, at step {run.step}"
        )

    def _saliency(self) -> np.ndarray:
        run = self._run
        return saliency(run.model, run.data, run.config.batch_size)

    def _note(self, what: str) -> None:
        self._run.notes.append(what)


def confirmed(run: Run, confirm: Confirm) -> float:
    """Median µs of a step as it is promised.

    One above the budget is measured again, up to CONFIRMATIONS times; the least counts, of those on the machine when it
    was calm.
    """
    found: list[tuple[float, float]] = []  # factor of the machine, µs
    for _ in range(CONFIRMATIONS):
        timed = confirm(run.model)
        found.append((timed.factor, timed.microseconds))
        calm = CALM * min(factor for factor, _ in found)
        least = min(us for factor, us in found if factor <= calm)
        if least <= run.config.budget_us:
            break
    if min(factor for factor, _ in found) > CALM:
        run.notes.append(
            f"warning: the reference took {min(found)[0]:.2f} times its seconds on the quiet machine: beside other "
            "programs a network and the reference do not slow down alike, and its time may be a tenth off"
        )
    return least
