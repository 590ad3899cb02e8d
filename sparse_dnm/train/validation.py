"""Validation: samples that are held out of training, by which the cut to a budget is judged."""

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

MOST = 2000  # samples that are held out


@dataclass(frozen=True, eq=False)
class Validation:
    """Samples that are not trained on."""

    x: Tensor  # float32 (n, n_inputs)
    y: Tensor  # as y_train of the data
    task: str  # of the data

    @property
    def figure(self) -> str:
        """What `points` are a hundredth of."""
        return "accuracy" if self.task == "classification" else "R²"

    def points(self, model: DynamicManifold) -> float:
        """Accuracy of a classifier, or R² of a regression (the share of the variance that is explained), in percent."""
        from sklearn.metrics import accuracy_score, r2_score  # slow to import, and only needed here

        outputs = outputs_of(model, self.x)
        if self.task == "classification":
            return 100.0 * float(accuracy_score(self.y, outputs.argmax(1)))
        return 100.0 * float(r2_score(self.y, outputs, multioutput="variance_weighted"))


def hold_out(data: Dataset, config: TrainConfig) -> tuple[Dataset, Validation | None]:
    """``data`` without the samples that judge the cut of a run with a budget, and those; drawn by the seed.

    A run without a budget, or with ``validation=0``, holds out none.
    """
    n = len(data.x_train)
    count = min(MOST, math.ceil(config.validation * n)) if config.budget_us else 0
    if count == 0:
        return data, None
    if n - count < config.batch_size or count < 2:
        raise ValueError(
            f"validation={config.validation:g} holds out {count} of {n} training samples: at least 2 must be held out, "
            f"and a batch of {config.batch_size} be left; give another --set validation=, 0 for none"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed))
    held, kept = order[:count].sort().values, order[count:].sort().values
    left = dataclasses.replace(data, x_train=data.x_train[kept], y_train=data.y_train[kept])
    return left, Validation(data.x_train[held], data.y_train[held], data.task)
