"""The preprocessing of a Dataset that was made in Python without one."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing, Target
from sparse_dnm.data.samples import Dataset


def implied(data: Dataset) -> Preprocessing:
    """Samples are as in x_train, or in the units of feature_mean and feature_std; so are the targets of a regression.

    Classes are their names.
    """
    inputs = ArrayInputs((data.n_inputs,), *_moments(data.feature_mean, data.feature_std, data.n_inputs))
    if data.task == "classification":
        return Preprocessing(inputs, Target(classes=np.array(data.classes)))
    mean, std = _moments(data.target_mean, data.target_std, data.n_outputs)
    return Preprocessing(inputs, Target(mean=mean, std=std))


def _moments(mean: Tensor | None, std: Tensor | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    zero, one = np.zeros(n), np.ones(n)
    return zero if mean is None else mean.double().numpy(), one if std is None else std.double().numpy()
