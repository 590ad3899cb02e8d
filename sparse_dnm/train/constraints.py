"""Constraints: what a network must not exceed at the end of its training, seconds of a step or a number of edges.

A constraint steers the terms of the loss until the trim (schedules.trimmed_after says when).  Then it gives the network
its size, and keeps the structure, or the size, while the remaining steps fine-tune the network.
"""

from __future__ import annotations

import math

from sparse_dnm.loss.term import TimeTerm
from sparse_dnm.train.descent import Descent
from sparse_dnm.train.fitting import BUDGET_MARGIN, Fitting, confirmed
from sparse_dnm.train.schedules import trimmed_after
from sparse_dnm.train.state import CutTooDeep, Record, Run, TrainingError
from sparse_dnm.train.trim import Frozen
from sparse_dnm.train.validation import Validation
from sparse_dnm.wording import words

APPROACH = 0.7  # share of the steps before the trim in which the size falls to the wanted one


class Constraint:
    """Called before and after each step.  In the base class the loss alone decides how small the network becomes.

    frozen   the structure, once it is kept
    trimmed  the network was cut to its size, or a checkpoint of a later step was resumed
    """

    has_goal = False

    def __init__(self, run: Run):
        self.run = run
        self.last = trimmed_after(run.config)
        self.frozen: Frozen | None = None
        self.trimmed = False

    def start(self, saved: Record) -> None:
        """Called before the first step, with the costs made; ``saved``: their state in a checkpoint."""

    def pace(self) -> None:
        """Set the progress of the controller, if there is one."""

    def before_step(self) -> None:
        """Trim the network if that is due, and update the progress of the controller."""
        if self.run.step >= self.last and not self.trimmed:
            self.trim()
        self.pace()

    def after_backward(self) -> None:
        """Remove the gradients of what must not change."""
        if self.frozen is not None:
            self.frozen.clear_gradients()

    def after_step(self, number: int) -> None:
        """Called after update ``number``."""

    def fits(self, step: int) -> bool:
        """Whether the network after update ``step`` is of the size that is asked for."""
        return not self.has_goal or step > self.last

    def steps_ahead(self, step: int) -> int:
        """How many updates may follow ``step`` before this is to be asked again, and before one that it looks at the
        model after: the last before the trim."""
        return self.last - 1 - step if step < self.last else self.run.config.steps

    def trim(self) -> None:
        """Cut the network to its size, and keep its structure from here on."""
        assert self.run.costs is not None
        self.run.settle()
        if self.run.step == self.last:  # else a checkpoint of a later step was resumed
            self.cut()
            self.run.seen = None  # it is of the network before
        self.trimmed = True
        if self.has_goal or self.run.model.config.edges != "closeness":
            self.run.costs.rest()
            self.keep()

    def cut(self) -> None:
        """Make the network fit."""

    def keep(self) -> None:
        """Keep its structure."""
        self.frozen = Frozen(self.run.model)

    def finish(self) -> Record:
        """After the last step: what the summary says of the constraint."""
        return {}

    def state(self) -> Record | None:
        """What a checkpoint holds, as JSON values."""
        return None


class TimeBudget(Constraint):
    """A step takes at most ``config.budget_us``, as a time is promised: in new processes, or on a target.  Needs the
    term of measured time.

    confirmed  µs of a step as it is promised, after the trim; inf before it
    before     validation points before the cut
    """

    has_goal = True

    def __init__(self, run: Run, validation: Validation | None):
        super().__init__(run)
        self.confirmed, self.before = math.inf, -math.inf
        self._validation = validation
        self._descent: Descent | None = None

    @property
    def term(self) -> TimeTerm:
        """The term of measured time."""
        time = self.run.time
        assert time is not None
        return time

    def start(self, saved: Record) -> None:
        """Refuse a budget below the time of the smallest network that connects inputs and outputs."""
        before = saved.get("edges") or {}
        self.confirmed = before.get("confirmed_us") or math.inf
        self.before = before.get("points_before", -math.inf)
        if self._validation is not None:
            self._descent = Descent(self.run, self._validation)
        if not self.term.promises:
            raise TrainingError(
                f"{words().stated('budget_us', self.run.config.budget_us)} is kept on the target, and a profile alone "
                f"does not say how programs run there: give {words().give('clock', 'target')} as well, with "
                f"{words().name('target_cc')}, {words().name('target_copy')} and {words().name('target_run')}. "
                f"{self.run.kept()}"
            )
        budget, least = self.run.config.budget_us, self.term.refit.model.least(self.run.data.n_outputs)
        if budget < 1e6 * least:
            raise TrainingError(
                f"{words().stated('budget_us', budget)} cannot be met: the smallest network that connects inputs and "
                f"outputs takes about {1e6 * least:.4g} µs {self.term.here}; give {_budget(1.1e6 * least)} or more. "
                f"{self.run.kept()}"
            )

    def before_step(self) -> None:
        """As in `Constraint`; on the way down also keep networks to fall back on."""
        if not self.trimmed and self._descent is not None and not math.isnan(self.term.seconds):
            self._descent.look(1e6 * self.term.seconds / self.run.config.budget_us)
        super().before_step()

    def pace(self) -> None:
        """The budget is approached during the first APPROACH of the steps before the trim."""
        controller = self.term.controller
        assert controller is not None
        controller.progress = self.run.step / (APPROACH * max(self.last, 1))

    def cut(self) -> None:
        """Give the network the time of the budget, or little less: the steps that follow train what is left.  Raises
        TrainingError if that is out of reach."""
        self.run.save()  # the last good checkpoint, should the trim fail
        if self._validation is not None and self._descent is not None:
            self.before = max(self._validation.points(self.run.model), self._descent.best)
        self.confirmed = self._fitting().fit()

    def _fitting(self) -> Fitting:
        return Fitting(self.run, self.term, self._ways_out)

    def _ways_out(self, least_us: float) -> str:
        """What the user can do about a budget that was not met."""
        run, say = self.run, words()
        return (
            f"{say.again} {_budget(1.1 * least_us)} or more, a smaller network ({say.name('n_neurons')}, now "
            f"{run.model.config.n_neurons}), another {' or '.join(map(say.name, self.term.depends_on))}. {run.kept()}"
        )

    def finish(self) -> Record:
        """The seconds of a step as they are promised, and the validation figure before and after the cut.

        Raises CutTooDeep if the cut has cost more than ``max_loss`` points of it.
        """
        run, budget = self.run, self.run.config.budget_us
        if run.config.steps and not self.trimmed:
            self.trim()
        if math.isinf(self.confirmed):  # no step was made, or the trim was that of an earlier version
            self.confirmed = self._fitting().confirm()
            self.keep()
        with self.term.confirming() as confirm:
            found = confirmed(run, confirm)
        if found > budget:
            run.notes.append(
                f"warning: a step takes {found:.4g} µs {self.term.where} now, over budget_us={budget:g}, and took "
                f"{self.confirmed:.4g} µs with the same edges after the trim: keep {self.term.what} quiet"
            )
        run.save()
        return {"budget_us": budget, "fresh_seconds": 1e-6 * min(found, self.confirmed), **self._judge()}

    def state(self) -> Record | None:
        """What was confirmed, and the validation figure before the cut."""
        if math.isinf(self.confirmed):
            return None
        points = {} if math.isinf(self.before) else {"points_before": self.before}
        return {"confirmed_us": self.confirmed, **points}

    def _judge(self) -> Record:
        """What the cut has cost, for the summary; raise CutTooDeep if that is too much."""
        validation, before, config = self._validation, self.before, self.run.config
        if validation is None or self._descent is None or math.isinf(before):
            return {}
        after = validation.points(self.run.model)
        if before - after > config.max_loss:
            raise CutTooDeep(self._too_deep(validation.figure, self._descent, after))
        self._descent.forget()
        return {"validation_before": before / 100, "validation_after": after / 100}

    def _too_deep(self, figure: str, descent: Descent, after: float) -> str:
        """The error of a run that has lost too much: what it lost, and the smallest budget that it can keep."""
        run, config, before, say = self.run, self.run.config, self.before, words()
        found = descent.least(before - config.max_loss, self.term)
        if found is None:
            keeps = "no network that it passed on the way down keeps that, fine-tuned"
            way_out = _budget(3 * config.budget_us)
        else:
            keeps = (
                f"the smallest budget that it can keep is {found.microseconds:.4g} µs: the network of step "
                f"{found.step}, fine-tuned, has {found.points:.2f} %"
            )
            way_out = _budget(found.microseconds / BUDGET_MARGIN)
        return (
            f"the cut to budget_us={config.budget_us:g} has cost {before - after:.2f} points of validation {figure}, "
            f"{before:.2f} to {after:.2f} %, more than max_loss={config.max_loss:g}; {keeps}. {say.again} {way_out} or "
            f"more, more {say.now('steps', config.steps)}, or {say.give('max_loss', math.ceil(before - after))} where "
            f"the loss is acceptable. {run.kept()}"
        )


def rounded_up(number: float) -> str:
    """A number > 0 with three digits, not below it."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return f"{math.ceil(number / unit - 1e-9) * unit:g}"


def _budget(us: float) -> str:
    """How to give a budget of about ``us``."""
    return words().give("budget_us", float(rounded_up(us)))
