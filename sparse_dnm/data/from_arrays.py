"""From arrays of samples and labels to a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sparse_dnm.data.arrays import channels_first, pair
from sparse_dnm.data.errors import DataError
from sparse_dnm.data.labels import check_varies, classes_of, encode, split, task_note
from sparse_dnm.data.options import Reading
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing, Target
from sparse_dnm.data.samples import Dataset
from sparse_dnm.data.scales import UNITS, has_squares, moments, unvaried
from sparse_dnm.data.suspicions import rare_classes


def array_dataset(name: str, arrays: Mapping[str, Any], seed: int, reading: Reading) -> Dataset:
    """A data set from arrays x, y and perhaps x_test, y_test; derives the task, the split and the standardisation.

    Mean and deviation are those of the training split, per column, or per channel for images (whose pixels near the
    border are almost constant), and per target column of a regression.
    """
    x, labels, notes = pair(name, arrays, "", reading)
    classes = classes_of(f"{name}: y", labels, reading.task)
    y = encode(f"{name}: y", labels, classes)
    first, note = (False, "") if reading.earlier else channels_first(name, x.shape[1:], reading.channels)
    doubt = task_note(labels, classes, reading.task)
    notes += [text for text in (note, f"{name}: y: {doubt}" if doubt and not notes else "") if text]
    if "x_test" in arrays:
        if reading.test_size is not None or reading.stratify:
            raise DataError(
                f"{name} has x_test and y_test: test_size and stratify are for a split that is derived; leave them out"
            )
        x_test, labels, _ = pair(name, arrays, "_test", reading)
        y_test = encode(f"{name}: y_test", labels, classes)
        for key, one, other in (("x", x, x_test), ("y", y, y_test)):
            if one.shape[1:] != other.shape[1:]:
                raise DataError(
                    f"{name}: {key} has shape {one.shape} and {key}_test {other.shape}; they may differ in "
                    "the number of samples only"
                )
    else:
        train, test = split(name, y, seed, classes, reading)
        if classes is not None:
            notes += rare_classes(y, train, classes)
        x, x_test, y, y_test = x[train], x[test], y[train], y[test]

    if classes is None and not reading.earlier:
        check_varies(name, np.concatenate([y, y_test]))
    last = np.moveaxis(x, 1, -1) if first else x
    shape = last.shape[1:]  # (features,), (height, width) or (height, width, channels)
    found = moments(last, axes=(0,) if len(shape) == 1 else (0, 1, 2))
    constant = unvaried(last, axes=(0,) if len(shape) == 1 else (0, 1, 2)) if reading.rules > 1 else None
    inputs = ArrayInputs(shape, *found, channels_first=first, constant=constant)
    mean, std = inputs.moments()
    values: dict[str, Any] = {
        "name": name,
        "x_train": inputs.transform(x, f"{name}: x"),
        "x_test": inputs.transform(x_test, f"{name}: x_test"),
        "period": float(shape[0] if len(shape) == 1 else math.prod(shape[1:])),
        "channels": shape[2] if len(shape) == 3 else 1,
        "feature_mean": torch.from_numpy(mean),
        "feature_std": torch.from_numpy(std),
        "notes": tuple(notes),
    }
    return Dataset(**values, **targets(name, inputs, (), classes, y, y_test))


def targets(
    name: str, inputs: Any, names: tuple[str, ...], classes: np.ndarray | None, y: np.ndarray, y_test: np.ndarray
) -> dict[str, Any]:
    """The fields of a data set about its labels; those of a regression are standardised."""
    if classes is not None:
        return {
            "task": "classification",
            "classes": tuple(map(str, classes.tolist())),
            "y_train": torch.from_numpy(y),
            "y_test": torch.from_numpy(y_test),
            "preprocessing": Preprocessing(inputs, Target(names, classes)),
        }
    mean, std = moments(y, axes=(0,))
    _check_units(name, names, std)
    units = ArrayInputs(y.shape[1:], mean, std)
    return {
        "task": "regression",
        "target_mean": torch.from_numpy(mean),
        "target_std": torch.from_numpy(std),
        "y_train": units.transform(y, f"{name}: y"),
        "y_test": units.transform(y_test, f"{name}: y_test"),
        "preprocessing": Preprocessing(inputs, Target(names, mean=mean, std=std)),
    }


def _check_units(name: str, names: tuple[str, ...], std: np.ndarray) -> None:
    """Raise DataError for targets whose mean squared error is beyond float64 in their units."""
    for k, value in enumerate(std.tolist()):
        if not has_squares(std[k]):
            what = f"column {names[k]!r}" if names else f"y, column {k} (from 0),"
            raise DataError(
                f"{name}: {what} has the standard deviation {value:.3g}; that of a regression's target must be in "
                f"{UNITS[0]:g} .. {UNITS[1]:g}, as float64 does not hold the square of its errors: give it in other "
                f"units, divided by {value:.0e}"
            )
