"""Early stopping: the best parameters on validation samples are kept and handed over, and training ends without more.

What is best is decided by the objective on the validation samples, cross entropy or mean squared error, weighted: it
moves where accuracy, a share of few samples, stands still.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_dnm.engine.device import Uninterrupted
from sparse_dnm.train.checkpoint import Checkpoint
from sparse_dnm.train.constraints import Constraint
from sparse_dnm.train.metrics import figure, figure_name, outputs_of
from sparse_dnm.train.objective import objective
from sparse_dnm.train.state import Record, Run
from sparse_dnm.train.validation import Validation

LEAST_SHARE = 0.01  # of the steps, between evaluations: a training makes a hundred at most
LOSS = "validation_loss"
LATEST, MODEL = "latest", "model"  # groups of a checkpoint: parameters to go on from, and those that are handed over
UNUSED = {"edge_weight": 0, "candidate_indices": -1, "candidate_slots": -1, "slot_births": 0}  # value of a free slot

State = dict[str, Tensor]


class Best(NamedTuple):
    """The parameters and the structure after update ``step``, and their figures on the validation samples."""

    step: int
    figures: dict[str, float]
    state: State


class EarlyStopping:
    """Evaluates the network of a run every so many steps on ``validation``; does nothing where that is None.

    A network that has a goal, a budget or a number of edges, counts once its structure is fixed.

    best        the best network so far
    stopped_at  the step after which training ended, since ``config.patience`` evaluations had not improved on it
    every       steps between evaluations; 0: none
    """

    def __init__(self, run: Run, validation: Validation | None, constraint: Constraint):
        self._run, self._validation, self._constraint = run, validation, constraint
        config = run.config
        epoch, least = math.ceil(len(run.data.x_train) / config.batch_size), math.ceil(LEAST_SHARE * config.steps)
        self.every = 0 if validation is None else config.validate_every or max(epoch, least)
        self.best: Best | None = None
        self.stopped_at: int | None = None
        self.figures: dict[str, float] = {}  # of the latest evaluation
        self._waited = 0  # evaluations since the best one
        self._latest: State | None = None  # what training goes on from, while the model holds the best

    # -- while training --------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Evaluate the network if that is due after the present step; returns whether training is to end."""
        step = self._run.step
        if self.every and (step % self.every == 0 or step == self._run.config.steps) and self._constraint.fits(step):
            with Uninterrupted():
                self._evaluate()
        return self.stopped_at is not None

    def _evaluate(self) -> None:
        run, config = self._run, self._run.config
        run.settle()
        self.figures = run.with_room(self._measured)
        if self.figures and (self.best is None or self.figures[LOSS] < self.best.figures[LOSS]):
            self.best, self._waited = Best(run.step, self.figures, _copy(run.model.state_dict())), 0
            return
        self._waited += 1
        if self._waited >= config.patience and run.step < config.steps and self.best is not None:
            self.stopped_at = run.step

    def _measured(self) -> dict[str, float]:
        """Loss and accuracy, or mean squared error, on the validation samples; none where the network is no good."""
        model, data, held = self._run.model, self._run.data, self._validation
        assert held is not None
        outputs = outputs_of(model, held.x, per_step=data.per_step, lengths=held.lengths)
        if not (model.connected and bool(torch.isfinite(outputs).all())):
            return {}
        exact = held.y.double() if held.y.is_floating_point() else held.y
        weights = None if held.weights is None else held.weights.double() / held.weights.double().mean()
        loss = objective(outputs.double(), exact, held.task, weights, held.lengths).item()
        return {LOSS: loss, figure_name(data, "validation"): figure(data, outputs, held.y, held.lengths)}

    # -- what is handed over ---------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Give the model the best parameters; what it has is kept to go on from."""
        run, best = self._run, self.best
        if best is None or self._latest is not None:
            return
        run.settle()
        self._latest = _copy(run.model.state_dict())
        self._load(best.state)

    def go_on(self) -> None:
        """Give the model the latest parameters, those that the next update changes."""
        if self._latest is not None:
            self._load(self._latest)
            self._latest = None

    def _load(self, state: State) -> None:
        run = self._run
        run.model.load_state_dict(_with_slots(state, run.model.capacity))
        run.fused, run.seen = False, None
        run.model.find()

    @property
    def step(self) -> int:
        """The update after which the model had the parameters that it has now."""
        return self._run.step if self.best is None or self._latest is None else self.best.step

    def summary(self) -> Record:
        """Entries of the summary: the step of the parameters that are handed over, their figures, where training ended
        early (None: it made all steps)."""
        if self.best is None or self._validation is None:
            return {}
        samples = len(self._validation.x)
        return {
            "best_step": self.best.step,
            "stopped_at": self.stopped_at,
            **self.best.figures,
            "n_validation": samples,
        }

    # -- checkpoints -----------------------------------------------------------------------------------------

    def pack(self, tensors: State) -> State:
        """The tensors of a checkpoint with the best parameters as those of the model: whoever reads the checkpoint
        gets them.  The latest ones are a group of their own."""
        if self.best is None:
            return tensors
        latest = {name.removeprefix(f"{MODEL}/"): t for name, t in tensors.items() if name.startswith(f"{MODEL}/")}
        best = _with_slots(self.best.state, self._run.model.capacity)
        return {
            **tensors,
            **{f"{LATEST}/{name}": t for name, t in (self._latest or latest).items()},
            **{f"{MODEL}/{name}": t for name, t in best.items()},
        }

    def state(self) -> Record | None:
        """What the header of a checkpoint holds."""
        if not self.every:
            return None
        return {
            "best_step": None if self.best is None else self.best.step,
            "best": None if self.best is None else self.best.figures,
            "figures": self.figures,
            "waited": self._waited,
            "stopped_at": self.stopped_at,
            "steps": self._run.config.steps,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint whose model has been loaded: it holds the best parameters until `go_on`.

        Where training ended early, a larger number of steps continues it, with its patience anew.
        """
        found = saved.header.get("early_stopping")
        if not (self.every and found):
            return
        self.figures, self._waited, self.stopped_at = found["figures"], found["waited"], found["stopped_at"]
        if found["best"] is not None:
            self.best = Best(found["best_step"], found["best"], saved.group(MODEL))
            self._latest = saved.group(LATEST)
        if self.stopped_at is not None and self._run.config.steps > found["steps"]:
            self.stopped_at, self._waited = None, 0


def _copy(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def _with_slots(state: State, capacity: int) -> State:
    """The state of a model that has had fewer slots since, with free ones."""

    def longer(name: str, tensor: Tensor) -> Tensor:
        free = UNUSED.get(name)
        if free is None or len(tensor) >= capacity:
            return tensor
        return torch.cat([tensor, tensor.new_full((capacity - len(tensor),), free)])

    return {name: longer(name, tensor) for name, tensor in state.items()}
