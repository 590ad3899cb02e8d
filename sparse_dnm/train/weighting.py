"""Weighting: the weights of samples that a training uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.train.validation import Validation


def weigh(data: Dataset, validation: Validation | None, config: TrainConfig) -> tuple[Dataset, Validation | None]:
    """The samples of a training, and those that judge it, with the weights that ``config`` asks for.

    Those of the training samples are float64 of mean 1.  ``class_weight="balanced"`` multiplies them by n / (number of
    classes * n of the class), where every n is a sum of weights: then each class has the same sum, and a sample of
    weight 0 counts nowhere.
    """
    weights = None if data.weights is None else data.weights.double().numpy()
    if config.class_weight == "balanced":
        of_class = _balancing(data.y_train.numpy(), weights, data.n_outputs)
        weights = of_class[data.y_train.numpy()] * (1.0 if weights is None else weights)
        if validation is not None:
            before = validation.weights
            factors = torch.from_numpy(of_class)[validation.y]
            validation = dataclasses.replace(validation, weights=factors if before is None else factors * before)
    if weights is None:
        return data, validation
    return dataclasses.replace(data, weights=torch.from_numpy(weights / weights.mean())), validation


def _balancing(labels: NDArray[Any], weights: NDArray[np.float64] | None, n_classes: int) -> NDArray[np.float64]:
    """The factor of each class; 1 for one without samples."""
    counts = np.bincount(labels, weights, n_classes).astype(np.float64)
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.where(present, counts, 1.0)), 1.0)
