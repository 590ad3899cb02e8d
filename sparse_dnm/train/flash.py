"""A budget of flash: the exported network takes at most so many bytes."""

from __future__ import annotations

import math
from typing import Any

from sparse_dnm.lowering.int8 import calibration
from sparse_dnm.lowering.network import Folded
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.target.flash import flash_bytes, lowered
from sparse_dnm.train.costs import target_of
from sparse_dnm.train.fitting import LEAST_SHARE, Tried
from sparse_dnm.train.state import Record, Run, TrainingError
from sparse_dnm.train.steering import JUMP, STEER_EVERY, Jump, Steered, judge_of
from sparse_dnm.train.trim import drop_weakest, keep_edges
from sparse_dnm.wording import words

COUNTS = 40  # networks that are lowered on the way to the trim
MARGIN = {"float32": 1.0, "int8": 0.98}  # share of the budget at the trim: tables of int8 change as they are trained
MAX_TRIES = 16  # networks that are compiled in the trim
EDGE_BYTES = 2  # of an edge, at least
AIM = 0.995  # share of the budget that a number of edges aims at


class Flash:
    """Bytes of the network of a run as the file NAME.c of an export, without raw features."""

    def __init__(self, run: Run):
        refuse_recurrent(run.model, "a budget of bytes")
        self._run, config = run, run.config
        self._target, self._dtype = target_of(config), config.budget_dtype
        self._samples = calibration(run.data.x_train) if self._dtype == "int8" else None

    def network(self) -> Any:
        """The present network in C."""
        return lowered(Folded.of(self._run.model.to_dag()), self._dtype, self._samples)

    def bytes(self) -> int:
        """Of the present network, compiled."""
        return flash_bytes(self.network(), self._target)


class FlashBudget(Steered):
    """The exported network takes at most ``config.budget_bytes``, as the target's compiler makes it.

    Until the trim a controller steers the coefficient of the speed term by bytes: those of tables, counted now and
    then, and of edges since.
    """

    steered = "bytes"

    def __init__(self, run: Run):
        super().__init__(run)
        self.flash = Flash(run)
        self._code = 0  # bytes, of the first network
        self._known: list[tuple[int, int]] = []  # edges and bytes of tables of the last two networks that were counted
        self._due = 0  # step that counts them again

    def start(self, saved: Record) -> None:
        """Compile the first network, and make the controller."""
        run, before = self.run, saved.get("edges") or {}
        if run.model.config.edges == "closeness":
            raise TrainingError(
                f"{words().stated('budget_bytes', run.config.budget_bytes)} keeps the structure after the trim, and "
                f"edges='closeness' has no weights to train then: give {words().give('edges', 'free')}. {run.kept()}"
            )
        if "known" in before:
            self._code, self._due = before["code"], before["due"]
            self._known = [(edges, tables) for edges, tables in before["known"]]
        else:
            tables = self.flash.network().tables.n_bytes
            self._code = self.flash.bytes() - tables
            self._known = [(run.model.find().n_edges, tables)]
        if run.config.budget_bytes <= self._code:
            raise TrainingError(
                f"{words().stated('budget_bytes', run.config.budget_bytes)} cannot be met: the code alone takes "
                f"{self._code:,} bytes by {words().stated('target_cc', run.config.target_cc)}; give more, or a "
                f"compiler that makes less of it, such as one with -Os. {run.kept()}"
            )
        self._steer(run.config.budget_bytes, self._code + self._known[0][1], before)

    def before_step(self) -> None:
        """As in `Constraint`; every STEER_EVERY steps also update the controller."""
        super().before_step()
        if self.controller is not None and self.run.step % STEER_EVERY == 0 and not self.trimmed:
            if self.run.step >= self._due:
                self._count()
            self.controller.update(self._estimated(), STEER_EVERY)

    def steps_ahead(self, step: int) -> int:
        """Up to the next look at the number of edges."""
        steps = self.run.config.steps if self.trimmed else STEER_EVERY - step % STEER_EVERY
        return min(steps, super().steps_ahead(step))

    def _count(self) -> None:
        """Lower the present network, and say when that is done again: by steps, so that a run is the same each time."""
        run = self.run
        run.settle()
        run.seen = None
        found = run.model.find().n_edges, self.flash.network().tables.n_bytes
        self._known = [*self._known[-1:], found]
        self._due = run.step + max(STEER_EVERY, self.last // COUNTS)

    def _estimated(self) -> float:
        """Bytes of the present network, about."""
        edges, tables = self._known[-1]
        slope = tables / max(edges, 1)
        if len(self._known) > 1 and self._known[0][0] != edges:
            slope = (tables - self._known[0][1]) / (edges - self._known[0][0])
        return self._code + tables + max(slope, 0.0) * (self.run.n_edges - edges)

    def cut(self) -> None:
        """Move the cutoff until the compiled network takes the budget, or little less."""
        run, budget = self.run, round(MARGIN[self.run.config.budget_dtype] * self.run.config.budget_bytes)
        run.save()
        start = Tried.of(run, self.flash.bytes())
        fits, over = (start, None) if start.size <= budget else (None, start)
        least = start.size
        for _ in range(MAX_TRIES):
            wanted = _between(fits, over, budget, self._code)
            if wanted is None:
                break
            run.model.load_state_dict(start.state)
            try:
                run.with_room(lambda wanted=wanted: keep_edges(run.model, wanted))  # type: ignore[misc]
            except ValueError:  # fewer edges would not connect inputs and outputs
                break
            tried = Tried.of(run, self.flash.bytes())
            least = min(least, tried.size)
            if tried.size <= budget:
                if fits is not None and tried.edges <= fits.edges:
                    break  # there are no more candidates
                fits = tried
            else:
                over = tried
        if fits is None:
            raise TrainingError(self._out_of_reach(least))
        if start.edges > JUMP * fits.edges:
            run.model.load_state_dict(start.state)
            self.jump = Jump(run.step, start.edges, judge_of(run).points(run.model))
        run.model.load_state_dict(fits.state)
        run.notes.append(
            f"cut to {fits.size:,.0f} bytes of flash, {run.model.find().n_edges:,} edges from {start.edges:,}, at "
            f"step {run.step}"
        )

    def _out_of_reach(self, least: float) -> str:
        run, say = self.run, words()
        return (
            f"the exported network cannot be made to fit budget_bytes={run.config.budget_bytes:,}: the least that was "
            f"reached takes {least:,.0f} bytes. {say.again} {say.give('budget_bytes', math.ceil(1.02 * least))} or "
            f"more, or a smaller network ({say.name('n_neurons')}, now {run.model.config.n_neurons}). {run.kept()}"
        )

    def finish(self) -> Record:
        """What the trained network takes, for the summary.  Raises TrainingError if that is too much."""
        run = self.run
        if run.config.steps and not self.trimmed:
            self.trim()
        found, before = self.flash.bytes(), run.model.find().n_edges
        for _ in range(MAX_TRIES):  # tables of int8 may have become wider while they were trained
            if found <= run.config.budget_bytes:
                break
            drop_weakest(run.model, math.ceil((found - run.config.budget_bytes) / EDGE_BYTES))
            found = self.flash.bytes()
        if found > run.config.budget_bytes:
            raise TrainingError(self._out_of_reach(found))
        edges = run.model.find().n_edges
        if edges < before:
            run.notes.append(f"{before - edges:,} edges of the least strength were removed after the last step, to fit")
            run.save()
        if self.jump is not None:
            run.notes += self.jump.lost(run, edges, "budget_bytes")
        return {"budget_bytes": run.config.budget_bytes, "flash_bytes": found}

    def state(self) -> Record | None:
        """As in `Steered`, with what the estimate of bytes begins from."""
        steering = super().state()
        counted = {"code": self._code, "due": self._due, "known": [list(pair) for pair in self._known]}
        return None if steering is None else {**steering, **counted}


def _between(fits: Tried | None, over: Tried | None, budget: int, code: int) -> int | None:
    """The number of edges to try next, given the largest network that fits and the smallest one that does not; None
    where nothing better is between them."""
    aim = AIM * budget
    if fits is not None and (fits.size >= LEAST_SHARE * budget or (over is not None and over.edges - fits.edges <= 1)):
        return None
    if fits is None or over is None:
        known = fits or over
        assert known is not None
        wanted = round(known.edges * max(aim - code, 1.0) / max(known.size - code, 1.0))
        return max(wanted, 1) if wanted != known.edges else known.edges + (1 if fits is not None else -1)
    share = (aim - fits.size) / (over.size - fits.size)
    return min(max(fits.edges + round(share * (over.edges - fits.edges)), fits.edges + 1), over.edges - 1)
