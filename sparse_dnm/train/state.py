"""Run: the state that the parts of a training share, and the errors that end a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from sparse_dnm.config import OMEGA_IN_CLOSENESS, TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine.candidates import OverCapacity
from sparse_dnm.loss.term import TimeTerm
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.train.adam import Adam
from sparse_dnm.train.step import AutogradStep, Costs, KernelStep
from sparse_dnm.wording import words

SPARE = 1.25  # times the active edges: the new capacity of a model that has too few slots
Record = dict[str, Any]
T = TypeVar("T")


class TrainingError(ValueError):
    """Training cannot go on; the message says why, what is kept, and what to try."""


class CutTooDeep(TrainingError):
    """All steps were made, but the cut to the budget has cost more than ``max_loss`` points."""

    exit_code = 3


@dataclass(eq=False)
class Run:
    """One training: what it trains, its progress, and its notes.

    making     the kind of step in use
    save       writes a checkpoint
    fine_tune  trains a copy of the model whose structure stays, as after a trim
    saved      step of the checkpoint in ``out``
    edges      number of them in the last forward of a step
    fused      that step was made by `fused.FusedSteps`: the model itself knows an earlier one
    seen       `n_edges` before the next step, where the model was evaluated for a test that other runs do not make
    notes      lines for the user
    """

    model: DynamicManifold
    data: Dataset
    config: TrainConfig
    out: Path | None
    generator: torch.Generator
    optimizer: Adam
    making: KernelStep | AutogradStep
    save: Callable[[], None]
    fine_tune: Callable[[DynamicManifold], None]
    costs: Costs | None = None
    step: int = 0
    saved: int | None = None
    edges: int = 0
    fused: bool = False
    seen: int | None = None
    last_loss: float = math.nan
    notes: list[str] = field(default_factory=list)

    @property
    def time(self) -> TimeTerm | None:
        """The term of measured time, where there is one."""
        speed = self.costs and self.costs.speed
        return speed if isinstance(speed, TimeTerm) else None

    @property
    def n_edges(self) -> int:
        """Number of edges in the last forward."""
        if self.seen is not None:
            return self.seen
        return self.edges if self.fused else self.model.n_edges

    def settle(self) -> None:
        """Write back to the model what the step keeps outside it."""
        self.making.finish()

    def with_room(self, action: Callable[[], T]) -> T:
        """Call ``action``; if it finds more edges than the model has slots for, add slots and call it again."""
        try:
            return action()
        except OverCapacity as error:
            before = self.model.capacity
            self.settle()
            self.model.grow_capacity(math.ceil(SPARE * error.n_edges))
            self.notes.append(
                f"{error.n_edges:,} edges at step {self.step} needed more than the {before:,} slots of edge_weight: "
                f"there are {self.model.capacity:,} now; {words().give('capacity', self.model.capacity)} gives "
                "them from the start"
            )
        return action()

    # -- errors ----------------------------------------------------------------------------------------------

    def kept(self) -> str:
        """What an error message says about the last checkpoint."""
        return words().kept(self.saved, self.out)

    def diverged(self, what: str) -> TrainingError:
        """The error for numbers that are not finite."""
        last = "" if math.isnan(self.last_loss) else f"; the last finite loss was {self.last_loss:.6g}"
        say, batch = words(), self.config.batch_size
        larger = f"a larger {say.now('batch_size', batch)}, " if batch < len(self.data.x_train) else ""
        return TrainingError(
            f"training diverged: {what}{last}. {say.again} a lower {say.now('lr', self.config.lr)}, {larger}or lower "
            f"coefficients of the loss. {self.kept()}"
        )

    def lost_target(self, error: ValueError) -> TrainingError:
        """The error for a target that fails while training is under way."""
        on = "" if self.saved is None or self.out is None else f"; {words().resume(self.out)}"
        return TrainingError(f"{error}. {self.kept()}{on}")

    def check_parameters(self) -> None:
        """Raise TrainingError if a parameter is not finite."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self.diverged(f"parameter {name} holds NaN or infinity after step {self.step}")

    def check_connected(self) -> None:
        """Raise TrainingError if no input reaches an output."""
        if self.model.connected:
            return
        self.check_parameters()
        raise TrainingError(f"{self._why_cut()}. {self.kept()}")

    def _why_cut(self) -> str:
        """Why the network is disconnected, and what to try."""
        config, manifold, time, say = self.config, self.model.config, self.time, words()
        if self.step == 0:
            omega = (
                f", or a larger {say.give('omega', (0, 'std'))} (now {manifold.omega[1]:g})"
                if manifold.edges in OMEGA_IN_CLOSENESS
                else ""
            )
            return (
                f"no input reaches any output at the start. Try a lower {say.now('cutoff', manifold.cutoff)}, a wider "
                f"{say.give('sigma', ('mean', 'std'))} (now {say.text(manifold.sigma)}){omega}"
            )
        if config.budget_us and time is not None:
            return (
                f"budget_us={config.budget_us:g} was not reached: the network cut itself in two after step "
                f"{self.step}, the last time before was {1e6 * time.seconds:.4g} µs. {say.begin} with a larger "
                f"{say.name('budget_us')}, more steps or a lower {say.now('lr', config.lr)}"
            )
        terms = {config.coefficient_field: config.speed_coefficient, "omega_decay": config.omega_decay}
        lower = "".join(f"a lower {say.now(name, value)}, " for name, value in terms.items() if value)
        return (
            f"the network has cut itself in two after step {self.step}: no input reaches any output. "
            f"{say.again} {lower}a higher "
            f"{say.now('flow', config.flow)}, a lower {say.now('cutoff', manifold.cutoff)}, or a lower "
            f"{say.now('lr', config.lr)}"
        )
