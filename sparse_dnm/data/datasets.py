"""Data sets: toy, digits, mnist and the user's own .npz or .csv, as tensors with a train/test split."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.data.readers import DATA_VARIABLE, FLOAT32_MAX, DataError, fetch_mnist, read_csv, read_mnist, read_npz

__all__ = ["NAMES", "BatchOrder", "DataError", "Dataset", "load"]

NAMES = ("toy", "digits", "mnist")
DIGITS = tuple("0123456789")  # the classes of digits and mnist


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples ready for training; x is scaled or standardised, and so are the targets of a regression."""

    name: str  # name or path, as given to load
    task: str  # "classification" or "regression"
    x_train: Tensor  # float32 (n_train, n_inputs)
    y_train: Tensor  # int64 (n_train,) indices into classes, or float32 (n_train, n_outputs)
    x_test: Tensor  # float32 (n_test, n_inputs)
    y_test: Tensor  # as y_train
    period: float  # of the data, in inputs: image width x channels, or n_inputs
    classes: tuple[str, ...] = ()  # names of the classes; empty for a regression
    feature_mean: Tensor | None = None  # float64 (n_inputs,), of the training split, in the file's units
    feature_std: Tensor | None = None  # float64 (n_inputs,); 1 where a column is constant
    target_mean: Tensor | None = None  # float64 (n_outputs,), regression only
    target_std: Tensor | None = None  # float64 (n_outputs,); 1 where a column is constant
    channels: int = 1  # of images

    @property
    def n_inputs(self) -> int:
        """Features of a sample."""
        return self.x_train.shape[1]

    @property
    def n_outputs(self) -> int:
        """Classes, or target columns of a regression."""
        return len(self.classes) or self.y_train.shape[1]

    def mse(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean squared error over samples and columns, in the units of the data rather than standardised."""
        error = outputs.double() - targets.double()
        if self.target_std is not None:
            error = error * self.target_std
        return error.square().mean().item()

    def describe(self) -> dict[str, Any]:
        """The facts of this data set as JSON values."""
        return {
            "name": self.name,
            "task": self.task,
            "n_train": len(self.x_train),
            "n_test": len(self.x_test),
            "n_inputs": self.n_inputs,
            "n_outputs": self.n_outputs,
            "classes": list(self.classes),
            "period": self.period,
            "standardised": self.feature_mean is not None,
            **({"channels": self.channels} if self.channels > 1 else {}),
        }


def load(name_or_path: str | Path, data_dir: Path | None = None, target: str | None = None, seed: int = 0) -> Dataset:
    """The data set ``name_or_path``: toy, digits, mnist, or a file .npz or .csv.

    data_dir  folder of MNIST's IDX files; default $SPARSE_DNM_DATA, else scikit-learn's fetch_openml
    target    name of a .csv file's label column; default the last column
    seed      of the toy's samples and of the derived train/test splits (mnist has its own)

    A .npz holds x (n, features) or images (n, h, w) or (n, h, w, channels), y (n,) or (n, columns), and
    perhaps x_test and y_test; a .csv has a header and one label column.  The task is a classification where
    the labels are text, bool, or integers of at most max(20, sqrt(n)) distinct values, otherwise a regression.
    Raises DataError naming the value, the rule and the way out.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if target is not None and suffix != ".csv":
        raise DataError(f"target={target!r} names a column of a .csv file, and {name} is none; leave it out")
    if name == "toy":
        return _toy(seed)
    if name == "digits":
        return _digits(seed)
    if name == "mnist":
        folder = data_dir or os.environ.get(DATA_VARIABLE)
        return _mnist(read_mnist(Path(folder).expanduser()) if folder else fetch_mnist())
    if suffix not in (".npz", ".csv"):
        raise DataError(
            f"data set {name!r} is unknown; choose one of {', '.join(NAMES)}, or give the path of a file "
            "that ends in .npz or .csv"
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; check the path")
    if suffix == ".npz":
        return _tables(name, read_npz(path), seed)
    x, y = read_csv(path, target)
    return _tables(name, {"x": x, "y": y}, seed)


def _toy(seed: int) -> Dataset:
    """a..e ~ N(0, 1), targets b+e, e-d, b+e+d, e-d-c; no target depends on a."""
    n_train, n_test = 20_000, 2_000
    x = torch.randn(n_train + n_test, 5, generator=torch.Generator().manual_seed(seed))
    _, b, c, d, e = x.unbind(1)
    y = torch.stack([b + e, e - d, b + e + d, e - d - c], 1)
    return Dataset("toy", "regression", x[:n_train], y[:n_train], x[n_train:], y[n_train:], period=5.0)


def _digits(seed: int) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels 0..16, a stratified 20 % held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels).long()
    train, test = _split("digits", labels, seed, stratify=True)
    return Dataset("digits", "classification", x[train], y[train], x[test], y[test], 8.0, DIGITS)


def _mnist(arrays: list[np.ndarray]) -> Dataset:
    """MNIST from images (n, 784) of 0..255 and labels: training images and labels, test images and labels."""
    x_train, x_test = (torch.from_numpy(images.astype(np.float32)) / 255 for images in arrays[0::2])
    y_train, y_test = (torch.from_numpy(labels.astype(np.int64)) for labels in arrays[1::2])
    return Dataset("mnist", "classification", x_train, y_train, x_test, y_test, 28.0, DIGITS)


def _tables(name: str, arrays: dict[str, np.ndarray], seed: int) -> Dataset:
    """A data set from arrays x, y and perhaps x_test, y_test; derives the task, the split and the standardisation.

    Mean and deviation are those of the training split, per column, or per channel for images (whose pixels near the
    border are almost constant), and per target column of a regression.
    """
    x, labels = _samples(name, arrays, "")
    classes = _classes(f"{name}: y", labels)
    y = _encode(f"{name}: y", labels, classes)
    if "x_test" in arrays:
        x_test, labels = _samples(name, arrays, "_test")
        y_test = _encode(f"{name}: y_test", labels, classes)
        for key, one, other in (("x", x, x_test), ("y", y, y_test)):
            if one.shape[1:] != other.shape[1:]:
                raise DataError(
                    f"{name}: {key} has shape {one.shape} and {key}_test {other.shape}; they may differ in "
                    "the number of samples only"
                )
    else:
        train, test = _split(name, y, seed, stratify=classes is not None)
        x, x_test, y, y_test = x[train], x[test], y[train], y[test]

    shape = x.shape[1:]  # (features,), (height, width) or (height, width, channels)
    mean, std = _moments(x, axes=(0,) if len(shape) == 1 else (0, 1, 2))
    period = shape[0] if len(shape) == 1 else math.prod(shape[1:])
    values: dict[str, Any] = {
        "name": name,
        "x_train": _standardise(f"{name}: x", x, mean, std),
        "x_test": _standardise(f"{name}: x_test", x_test, mean, std),
        "period": float(period),
        "channels": shape[2] if len(shape) == 3 else 1,
        "feature_mean": torch.tensor(np.broadcast_to(mean, shape).ravel()),
        "feature_std": torch.tensor(np.broadcast_to(std, shape).ravel()),
    }
    if classes is None:
        mean, std = _moments(y, axes=(0,))
        values["y_train"] = _standardise(f"{name}: y", y, mean, std)
        values["y_test"] = _standardise(f"{name}: y_test", y_test, mean, std)
        return Dataset(
            task="regression", target_mean=torch.from_numpy(mean), target_std=torch.from_numpy(std), **values
        )
    values["y_train"], values["y_test"] = torch.from_numpy(y), torch.from_numpy(y_test)
    return Dataset(task="classification", classes=tuple(map(str, classes.tolist())), **values)


def _samples(name: str, arrays: dict[str, np.ndarray], suffix: str) -> tuple[np.ndarray, np.ndarray]:
    """x, finite, (n, features), (n, h, w) or (n, h, w, channels), and y, (n,) or (n, columns)."""
    x, y = arrays["x" + suffix], arrays["y" + suffix]
    at_x, at_y = f"{name}: x{suffix}", f"{name}: y{suffix}"
    if x.dtype.kind not in "biuf":
        raise DataError(f"{at_x} has dtype {x.dtype}; features must be real numbers: convert or encode them")
    if x.ndim not in (2, 3, 4):
        raise DataError(
            f"{at_x} has shape {x.shape}; it must be (n, features), (n, height, width) or (n, height, "
            "width, channels): reshape it"
        )
    if y.dtype.kind not in "biufUS":
        raise DataError(f"{at_y} has dtype {y.dtype}; it must hold real numbers, bool or text: convert it")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "backslashreplace")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2) or (y.ndim == 2 and y.dtype.kind in "bU"):
        raise DataError(
            f"{at_y} has shape {y.shape} and dtype {y.dtype}; it must be (n,) labels, or (n, columns) "
            "numbers of a regression: reshape or convert it"
        )
    if x.size == 0 or y.size == 0:
        raise DataError(f"{at_x} {x.shape} or y{suffix} {y.shape} is empty; give samples with features")
    if len(x) != len(y):
        raise DataError(f"{at_x} has {len(x)} samples but y{suffix} {len(y)}; give one y per sample of x")
    _check_finite(at_x, x)
    return x, y


def _check_finite(where: str, values: np.ndarray) -> None:
    """Raise DataError naming row and column of a value that float32 cannot hold."""
    if values.dtype.kind != "f":
        return
    bad = ~(np.abs(values) <= np.float64(FLOAT32_MAX))  # a Python float would become inf next to float16
    if bad.any():
        place = tuple(int(k) for k in np.argwhere(bad)[0])
        column = ", ".join(map(str, place[1:])) or "0"
        raise DataError(
            f"{where}: {values[place]} in row {place[0]}, column {column} (from 0) is not finite in float32; "
            "correct or remove the row"
        )


def _classes(where: str, y: np.ndarray) -> np.ndarray | None:
    """The distinct labels in order, or None if y is the target of a regression.

    Integers are recognised by dtype, in a .csv by the missing decimal point: 3.0 is a regression target.
    Several columns are a regression.
    """
    if y.ndim == 2 or y.dtype.kind == "f":
        return None
    classes = np.unique(y)
    n, text = len(classes), y.dtype.kind == "U"
    if not text and n > max(20, math.isqrt(len(y))):
        return None
    if n < 2:
        raise DataError(f"{where} holds the one class {classes[0]!s}; a classification needs at least two")
    if text and n > max(20, len(y) // 2):
        raise DataError(
            f"{where} holds {n:,} different texts in {len(y):,} samples, such as {str(classes[-1])!r}; texts "
            "are classes and must repeat: write numbers as numbers, or name another label column (--target)"
        )
    return classes


def _encode(where: str, y: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """int64 indices into ``classes``, or finite numbers (n, columns) if there are none."""
    if classes is None:
        if y.dtype.kind == "U":
            raise DataError(f"{where} holds text, but y numbers of a regression; give numbers in both")
        _check_finite(where, y)
        return y.reshape(len(y), -1)
    if y.ndim != 1 or (y.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise DataError(f"{where} is {y.dtype} {y.shape}; it must hold labels as y does: {classes.dtype} (n,)")
    index = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    unseen = classes[index] != y
    if unseen.any():
        row = int(np.argmax(unseen))
        known = ", ".join(map(str, classes[:20])) + (", ..." if len(classes) > 20 else "")
        raise DataError(
            f"{where}: {y[row]!s} in row {row} (from 0) is no class of y, which holds {known}; correct it, "
            "or add samples of it to y"
        )
    return index


def _split(name: str, y: np.ndarray, seed: int, stratify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a seeded 80/20 split; stratified if each class has two members and the 20 % can hold all classes."""
    from sklearn.model_selection import train_test_split

    n, n_test = len(y), -(-len(y) // 5)
    if n < 5:
        raise DataError(
            f"{name} has {n} samples; a split 80/20 needs at least 5: add some, or give x_test and y_test in a .npz"
        )
    if stratify:
        counts = np.bincount(y)
        stratify = bool(counts.min() >= 2 and n_test >= len(counts))
    train, test = train_test_split(
        np.arange(n), test_size=n_test, random_state=seed % 2**32, stratify=y if stratify else None
    )
    return train, test


def _moments(values: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over ``axes``, float64; a constant column has its value and 1."""
    mean, std = values.mean(axes, dtype=np.float64), values.std(axes, dtype=np.float64)
    low = values.min(axes)
    constant = (low == values.max(axes)) | (std == 0)
    return np.where(constant, low.astype(np.float64), mean), np.where(constant, 1.0, std)


def _standardise(where: str, values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """(values - mean) / std as float32 (n, -1)."""
    with np.errstate(over="ignore"):  # infinities are reported below
        scaled = (values - mean) / std
    _check_finite(f"{where} in standard deviations", scaled)
    return torch.from_numpy(scaled.reshape(len(values), -1).astype(np.float32))


class BatchOrder:
    """Rows of every batch: shuffled epochs, one after the other, each batch full.

    A batch that reaches the end of an epoch continues into the next permutation.  Only ``next`` draws from
    the generator, so ``state`` and the generator's state together continue to the same bits.
    """

    def __init__(self, n_samples: int, batch_size: int, generator: torch.Generator) -> None:
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise DataError(f"{name}={value} must be >= 1")
        self._n, self._batch_size = n_samples, batch_size
        self._generator = generator
        self._order = torch.arange(n_samples)
        self._position = (
            n_samples  # of the next row in the order; at its end, so that the first batch draws a permutation
        )

    def next(self) -> Tensor:
        """int64 (batch_size,) row indices of the next batch."""
        first, last = self._position, self._position + self._batch_size
        if last <= self._n:
            self._position = last
            return self._order[first:last]
        parts, missing = [], self._batch_size
        while missing:
            if self._position == len(self._order):
                self._order = torch.randperm(len(self._order), generator=self._generator)
                self._position = 0
            part = self._order[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def state(self) -> dict[str, Tensor]:
        """The current permutation int64 (n_samples,) and the position in it, int64 ()."""
        return {"order": self._order.clone(), "position": torch.tensor(self._position)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``.  Raises DataError unless it is for the same number of samples."""
        if state.keys() != {"order", "position"}:
            raise DataError(f"a state of the data order holds order and position, not {', '.join(state)}")
        order, position, n = state["order"], state["position"], len(self._order)
        rows = torch.arange(n)
        if order.shape != rows.shape or order.dtype != rows.dtype or not order.sort().values.equal(rows):
            raise DataError(
                f"the data order, {order.dtype} {tuple(order.shape)}, is no permutation of the {n} training "
                "samples; resume with the data that the run began with"
            )
        if position.shape != () or position.dtype != rows.dtype or not 0 <= position <= n:
            raise DataError(f"position={position.tolist()} in the data order must be an integer in 0 .. {n}")
        self._order, self._position = order.clone(), int(position)
