"""Constraints for which a controller steers the coefficient of the speed term, and that of a number of edges."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparse_dnm.loss.controller import Controller
from sparse_dnm.train.constraints import APPROACH, Constraint
from sparse_dnm.train.state import Record, Run, TrainingError
from sparse_dnm.train.trim import keep_edges
from sparse_dnm.train.validation import Validation
from sparse_dnm.wording import words

STEER_EVERY = 10  # steps between looks at the number of edges
JUMP = 1.5  # a trim from more than so many times the wanted number of edges is a jump
JUDGES = 2000  # training samples, at most, that tell whether a jump has cost what was learned
TOLERANCE = 0.02  # by which the number of edges may differ from the wanted one


class Jump(NamedTuple):
    """A trim from many more edges than wanted: the network before it, with accuracy or R² in percent."""

    step: int
    edges: int
    points: float

    def lost(self, run: Run, edges: int, goal: str) -> list[str]:
        """A warning if a cut to so many ``edges``, for the field ``goal``, has cost too much; else nothing."""
        judge, config, say = judge_of(run), run.config, words()
        term = "the proxy" if config.speed == "proxy" else "the time"
        after = judge.points(run.model)
        if self.points - after <= config.max_loss:
            return []
        return [
            f"warning: the cut from {self.edges:,} edges to {edges:,} has cost {self.points - after:.2f} points "
            f"of {judge.figure} on training samples, {self.points:.2f} to {after:.2f} %: {term} had not brought "
            f"the edges near {edges:,} by step {self.step}; give more {say.name(goal)}, more "
            f"{say.now('steps', config.steps)} or a larger "
            f"{say.now(config.coefficient_field, config.speed_coefficient)}"
        ]


def judge_of(run: Run) -> Validation:
    """Training samples, all or many, that tell what a cut has cost."""
    data = run.data
    n = len(data.x_train)
    rows = torch.arange(min(n, JUDGES)) * n // min(n, JUDGES)
    return Validation(data.x_train[rows], data.y_train[rows], data.task)


class Steered(Constraint):
    """A constraint for which a controller steers the coefficient of the speed term until the trim.

    steered  what it is steered by, the beginning of the names in the log
    jump     the network before the trim, if that had many more edges
    """

    has_goal = True
    steered = ""

    def __init__(self, run: Run):
        super().__init__(run)
        self.controller: Controller | None = None
        self.jump: Jump | None = None

    def _steer(self, goal: float, start: float, saved: Record) -> None:
        """Make the controller, whose goal falls from ``start``; ``saved``: what `state` said before."""
        assert self.run.costs is not None
        made = Controller(goal, saved.get("start", start), saved.get("integral", Controller.FIRST))
        made.multiplier = saved.get("multiplier", made.multiplier)
        self.controller = self.run.costs.steering = made
        self.run.costs.steered = self.steered
        self.jump = Jump(*saved["jump"]) if "jump" in saved else None

    def pace(self) -> None:
        """The goal is approached during the first APPROACH of the steps before the trim."""
        assert self.controller is not None
        self.controller.progress = self.run.step / (APPROACH * max(self.last, 1))

    def state(self) -> Record | None:
        """The controller's, and what there was before a jump."""
        made = self.controller
        if made is None:
            return None
        state = {name: getattr(made, name) for name in ("start", "integral", "multiplier")}
        return state if self.jump is None else {**state, "jump": list(self.jump)}


class EdgeCount(Steered):
    """The network has ``config.target_edges`` at the end, by the cutoff.

    Until the trim a controller steers the coefficient of the proxy.  If closeness is computed from the rows alone, no
    edge has a weight of its own to fine-tune: rows keep learning after the trim, and the cutoff holds the number.
    """

    steered = "edges"

    def __init__(self, run: Run):
        super().__init__(run)
        self._holds_number = run.model.config.edges == "closeness"

    def start(self, saved: Record) -> None:
        """Make the controller; its goal starts at the present number of edges.  Refuse fewer edges than outputs."""
        wanted, n_outputs = self.run.config.target_edges, self.run.data.n_outputs
        if wanted < n_outputs:
            raise TrainingError(
                f"{words().stated('target_edges', wanted)} cannot be met: each of the {n_outputs} outputs needs an "
                f"edge; give {words().give('target_edges', n_outputs)} or more. {self.run.kept()}"
            )
        self._steer(wanted, self.run.model.topology.n_edges, saved.get("edges") or {})

    def before_step(self) -> None:
        """As in `Constraint`; every STEER_EVERY steps also update the controller by the number of edges."""
        super().before_step()
        assert self.controller is not None
        if self.run.step % STEER_EVERY == 0:
            self.controller.update(self.run.n_edges, STEER_EVERY)

    def fits(self, step: int) -> bool:
        """As in `Constraint`; and the cutoff has just been moved, if that is what holds the number."""
        moved = not self._holds_number or step % STEER_EVERY == 0 or step == self.run.config.steps
        return moved and super().fits(step)

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
        before, say = run.model.topology.n_edges, words()
        run.save()  # the trim may disconnect the network
        if before > JUMP * wanted:
            self.jump = Jump(run.step, before, judge_of(run).points(run.model))
        try:
            found = self._keep_edges()
        except ValueError as error:
            raise TrainingError(
                f"{say.stated('target_edges', wanted)} was not reached: {error}. {say.again} more "
                f"{say.name('target_edges')} or {say.name('steps')}. {run.kept()}"
            ) from None
        run.notes.append(f"the cutoff was moved to {found:,} edges, from {before:,}, at step {run.step}")
        if found < (1 - TOLERANCE) * wanted:
            run.notes.append(
                f"warning: {found:,} edges instead of {wanted:,}: no more candidates; give a larger "
                f"{say.now('skin', run.model.config.skin)} or {say.now('kappa', config.kappa)}"
            )
        elif found > (1 + TOLERANCE) * wanted:
            run.notes.append(
                f"warning: {found:,} edges instead of {wanted:,}: many lie at the cutoff; lower {say.name('lr')}"
            )

    def finish(self) -> Record:
        """A warning where the trim was a jump, and the steps after it have not learned again what it took."""
        if self.jump is not None:
            self.run.notes += self.jump.lost(self.run, self.run.config.target_edges, "target_edges")
        return {}
