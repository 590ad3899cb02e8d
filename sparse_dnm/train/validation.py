"""Validation: samples that are held out of training, which judge the cut to a budget and when to stop early."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.train.metrics import outputs_of
from sparse_dnm.train.objective import within
from sparse_dnm.wording import words

LEAST, MOST = 2, 2000  # samples that are held out


@dataclass(frozen=True, eq=False)
class Validation:
    """Samples that are not trained on."""

    x: Tensor  # float32 (n, n_inputs)
    y: Tensor  # as y_train of the data
    task: str  # of the data
    weights: Tensor | None = None  # float (n,), of the samples; None: all 1
    lengths: Tensor | None = None  # int64 (n,), of sequences; None: all time steps

    @property
    def figure(self) -> str:
        """What `points` are a hundredth of."""
        return "accuracy" if self.task == "classification" else "R²"

    def points(self, model: DynamicManifold) -> float:
        """Accuracy of a classifier, or R² of a regression (the share of the variance that is explained), in percent; of
        targets per time step, over all steps within the sequences."""
        from sklearn.metrics import accuracy_score, r2_score  # slow to import, and only needed here

        classes, y = self.task == "classification", self.y
        per_step = y.ndim == (2 if classes else 3)
        outputs = outputs_of(model, self.x, per_step=per_step, lengths=self.lengths)
        if per_step:
            time = y.shape[1]
            inside = within(torch.full((len(y),), time) if self.lengths is None else self.lengths, time)
            outputs, y = outputs[inside], y[inside]
        if classes:
            return 100.0 * float(accuracy_score(y, outputs.argmax(1)))
        return 100.0 * float(r2_score(y, outputs, multioutput="variance_weighted"))


def n_held_out(n: int, config: TrainConfig) -> int:
    """How many of ``n`` training samples judge the cut to a budget, or when to stop early."""
    if not (config.early_stopping or (config.budget_us and config.validation)):
        return 0
    count = min(MOST, math.ceil(config.validation * n))
    return max(count, LEAST) if config.early_stopping and count else count


def hold_out(data: Dataset, config: TrainConfig) -> tuple[Dataset, Validation | None]:
    """``data`` without the samples that judge the cut to a budget, or when to stop early, and those; drawn by the seed.

    Those that ``data`` has for this are taken instead of a share of the training samples.  For early stopping each
    class has its share of them, but the first of its samples stays.
    """
    if not (config.early_stopping or (config.budget_us and config.validation)):
        return data, None
    if data.x_val is not None and data.y_val is not None:
        return data, Validation(data.x_val, data.y_val, data.task, lengths=data.lengths_val)
    rows = _rows_held(data, config)
    left = torch.ones(len(data.x_train), dtype=torch.bool)
    left[rows] = False

    def of(values: Tensor | None, chosen: Tensor) -> Tensor | None:
        return None if values is None else values[chosen]

    some = of(data.weights, rows), of(data.lengths_train, rows)
    held = Validation(data.x_train[rows], data.y_train[rows], data.task, *some)
    x, y, weights, lengths = (
        data.x_train[left],
        data.y_train[left],
        of(data.weights, left),
        of(data.lengths_train, left),
    )
    return dataclasses.replace(data, x_train=x, y_train=y, weights=weights, lengths_train=lengths), held


def _rows_held(data: Dataset, config: TrainConfig) -> Tensor:
    """The rows that are held out, int64 (count,), ascending.  Raises ValueError where there are too few."""
    n, early = len(data.x_train), config.early_stopping
    count = n_held_out(n, config)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed))
    if early:
        order = _stratified(data, order, count)
    left = 1 if early else config.batch_size or 1
    if n - count < left or not LEAST <= count <= len(order):
        rule = "a sample of each class" if early else f"a batch of {left}"
        raise ValueError(
            f"{words().stated('validation', config.validation)} holds out {count} of {n} training samples: at least "
            f"{LEAST} must be held out, and {rule} be left; give another {words().name('validation')}"
            f"{'' if early else ', 0 for none'}"
        )
    return order[:count].sort().values


def _stratified(data: Dataset, order: Tensor, count: int) -> Tensor:
    """The rows ``order``, ``count`` of them first that hold each class by its share.  Samples of weight 0 and the first
    of each class are left out."""
    if data.weights is not None:
        order = order[data.weights[order] > 0]
    if data.task != "classification" or data.per_step:
        return order
    order = order[torch.argsort(data.y_train[order], stable=True)]
    labels = data.y_train[order]
    first = torch.ones(len(labels), dtype=torch.bool)
    first[1:] = labels[1:] != labels[:-1]
    order = order[~first]
    if not 0 < count <= len(order):
        return order
    taken = torch.zeros(len(order), dtype=torch.bool)
    taken[(torch.arange(count) * 2 + 1) * len(order) // (2 * count)] = True  # every so many, through all classes
    return torch.cat([order[taken], order[~taken]])
