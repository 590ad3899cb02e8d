"""Constraints: what a network must not exceed at the end of its training, seconds of a step or a number of edges.

A constraint steers the terms of the loss until the trim (schedules.trimmed_after says when).  Then it gives the network
its size, and keeps the structure, or the size, while the remaining steps fine-tune the network.
"""

from __future__ import annotations

import math

from sparse_dnm.loss.controller import Controller
from sparse_dnm.loss.time import MeasuredTime
from sparse_dnm.timing.subprocess import Processes
from sparse_dnm.train.descent import Descent
from sparse_dnm.train.fitting import BUDGET_MARGIN, Fitting, in_new_processes
from sparse_dnm.train.schedules import trimmed_after
from sparse_dnm.train.state import CutTooDeep, Record, Run, TrainingError
from sparse_dnm.train.trim import Frozen, keep_edges
from sparse_dnm.train.validation import Validation

APPROACH = 0.7  # share of the steps before the trim in which the size falls to the wanted one
STEER_EVERY = 10  # steps between looks at the number of edges
JUMP = 1.5  # a trim from more than so many times the wanted number of edges is a jump
TOLERANCE = 0.02  # by which the number of edges may differ from the wanted one


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
    """A step takes at most ``config.budget_us``, also in new processes.  Needs the term of measured time.

    confirmed  µs of a step in new processes after the trim; inf before it
    before     validation points before the cut
    """

    has_goal = True

    def __init__(self, run: Run, validation: Validation | None):
        super().__init__(run)
        self.confirmed, self.before = math.inf, -math.inf
        self._validation = validation
        self._descent: Descent | None = None

    @property
    def term(self) -> MeasuredTime:
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
        prices, budget = self.term.seconds_per(), self.run.config.budget_us
        n_outputs = self.run.data.n_outputs
        least = prices["call"] + prices["input"] + n_outputs * (prices["neuron"] + prices["edge"])
        least += prices.get("level", 0.0) + prices.get("group", 0.0) + n_outputs * prices.get("block", 0.0)
        if budget < 1e6 * least:
            raise TrainingError(
                f"budget_us={budget:g} cannot be met: the smallest network that connects inputs and "
                f"outputs takes about {1e6 * least:.4g} µs here; give --budget-us {rounded_up(1.1e6 * least)} or more. "
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
        run = self.run
        return (
            f"Start a new run, with another --out or the default, and --budget-us {rounded_up(1.1 * least_us)} or "
            f"more, a smaller network (--set n_neurons=, now {run.model.config.n_neurons}), another --executor or "
            f"--set time_batch=. {run.kept()}"
        )

    def finish(self) -> Record:
        """The seconds of a step in new processes, and the validation figure before and after the cut.

        Raises CutTooDeep if the cut has cost more than ``max_loss`` points of it.
        """
        run, budget = self.run, self.run.config.budget_us
        if run.config.steps and not self.trimmed:
            self.trim()
        if math.isinf(self.confirmed):  # no step was made, or the trim was that of an earlier version
            self.confirmed = self._fitting().confirm()
            self.keep()
        with Processes() as processes:
            found = in_new_processes(run, self.term, processes)
        if found > budget:
            run.notes.append(
                f"warning: a step takes {found:.4g} µs in new processes now, over budget_us={budget:g}, and took "
                f"{self.confirmed:.4g} µs with the same edges after the trim: keep the machine quiet"
            )
        run.save()
        return {"budget_us": budget, "fresh_seconds": 1e-6 * min(found, self.confirmed), **self._judge()}

    def state(self) -> Record | None:
        """What new processes have confirmed, and the validation figure before the cut."""
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
        run, config, before = self.run, self.run.config, self.before
        found = descent.least(before - config.max_loss, self.term)
        if found is None:
            keeps = "no network that it passed on the way down keeps that, fine-tuned"
            way_out = f"--budget-us {rounded_up(3 * config.budget_us)}"
        else:
            keeps = (
                f"the smallest budget that it can keep is {found.microseconds:.4g} µs: the network of step "
                f"{found.step}, fine-tuned, has {found.points:.2f} %"
            )
            way_out = f"--budget-us {rounded_up(found.microseconds / BUDGET_MARGIN)}"
        return (
            f"the cut to budget_us={config.budget_us:g} has cost {before - after:.2f} points of validation {figure}, "
            f"{before:.2f} to {after:.2f} %, more than max_loss={config.max_loss:g}; {keeps}. Start a new run, with "
            f"another --out or the default, and {way_out} or more, more --steps (now {config.steps}), or --max-loss "
            f"{math.ceil(before - after)} where the loss is acceptable. {run.kept()}"
        )


class EdgeCount(Constraint):
    """The network has ``config.target_edges`` at the end, by the cutoff.

    Until the trim a controller steers the coefficient of the proxy.  If closeness is computed from the rows alone, no
    edge has a weight of its own to fine-tune: rows keep learning after the trim, and the cutoff holds the number.
    """

    has_goal = True

    def __init__(self, run: Run):
        super().__init__(run)
        self.controller: Controller | None = None
        self._holds_number = run.model.config.edges == "closeness"

    def start(self, saved: Record) -> None:
        """Make the controller; its goal starts at the present number of edges."""
        assert self.run.costs is not None
        before = saved.get("edges") or {"start": self.run.model.topology.n_edges, "integral": Controller.FIRST}
        made = Controller(self.run.config.target_edges, before["start"], before["integral"])
        made.multiplier = before.get("multiplier", made.multiplier)
        self.controller = self.run.costs.edges = made

    def pace(self) -> None:
        """The number is approached during the first APPROACH of the steps before the trim."""
        assert self.controller is not None
        self.controller.progress = self.run.step / (APPROACH * max(self.last, 1))

    def before_step(self) -> None:
        """As in `Constraint`; every STEER_EVERY steps also update the controller by the number of edges."""
        super().before_step()
        assert self.controller is not None
        if self.run.step % STEER_EVERY == 0:
            self.controller.update(self.run.n_edges, STEER_EVERY)

    def steps_ahead(self, step: int) -> int:
        """Up to the next look at the number of edges."""
        steps = STEER_EVERY - step % STEER_EVERY
        if self._holds_number and step >= self.last:
            steps -= 1
        return min(steps, super().steps_ahead(step))

    def after_step(self, number: int) -> None:
        """If the structure is not kept, move the cutoff so that the number of edges is."""
        config = self.run.config
        if self._holds_number and self.run.step >= self.last and (number % STEER_EVERY == 0 or number == config.steps):
            self.run.settle()
            self._keep_edges()

    def keep(self) -> None:
        """Keep the structure, if edges have weights of their own to train."""
        if not self._holds_number:
            super().keep()

    def _keep_edges(self) -> int:
        run = self.run
        return run.with_room(lambda: keep_edges(run.model, run.config.target_edges))

    def cut(self) -> None:
        """Give the network its number of edges."""
        run, config, wanted = self.run, self.run.config, self.run.config.target_edges
        before = run.model.topology.n_edges
        run.save()  # the trim may disconnect the network
        try:
            found = self._keep_edges()
        except ValueError as error:
            raise TrainingError(
                f"target_edges={wanted} was not reached: {error}. Start a new run, with another --out or the default, "
                f"and more --edges or --steps. {run.kept()}"
            ) from None
        run.notes.append(f"the cutoff was moved to {found:,} edges, from {before:,}, at step {run.step}")
        if before > JUMP * wanted:
            run.notes.append(
                f"warning: that is a jump: the proxy had not brought the edges near {wanted:,} by then, and what they "
                f"had learned is lost; give more --steps (now {config.steps}) or a larger --set "
                f"proxy_coefficient= (now {config.proxy_coefficient:g})"
            )
        if found < (1 - TOLERANCE) * wanted:
            run.notes.append(
                f"warning: {found:,} edges instead of {wanted:,}: no more candidates; give a larger --set skin= (now "
                f"{run.model.config.skin:g}) or --set kappa= (now {config.kappa:g})"
            )
        elif found > (1 + TOLERANCE) * wanted:
            run.notes.append(f"warning: {found:,} edges instead of {wanted:,}: many lie at the cutoff; lower --lr")

    def state(self) -> Record | None:
        """The controller's."""
        made = self.controller
        return None if made is None else {name: getattr(made, name) for name in ("start", "integral", "multiplier")}


def rounded_up(number: float) -> str:
    """A number > 0 with three digits, not below it."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return f"{math.ceil(number / unit - 1e-9) * unit:g}"


def constraint_of(run: Run, validation: Validation | None) -> Constraint:
    """The constraint that the configuration asks for; ``validation`` judges the cut to a budget."""
    if run.config.target_edges:
        return EdgeCount(run)
    return TimeBudget(run, validation) if run.config.budget_us else Constraint(run)
