"""A data set: samples with labels, ready for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparse_dnm.data.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples ready for training; x is scaled or standardised, and so are the targets of a regression.

    Sequences, for recurrent networks: x (n, time, n_inputs), and y for each sequence, as below, or for each time step,
    (n, time) or (n, time, n_outputs).  Where sequences have lengths, what x and y hold beyond them counts nowhere; it
    is filled up, by zeros for example.  Training and test may differ in time.
    """

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
    preprocessing: Preprocessing | None = None  # how raw samples become inputs, and outputs become predictions
    weights: Tensor | None = None  # float (n_train,), mean 1: of the training samples in the loss; None: all 1
    notes: tuple[str, ...] = ()  # decisions of reading, a line each, shown once at the start of a training
    x_val: Tensor | None = None  # float32 (n_val, n_inputs), for early stopping and budgets; None: a share of x_train
    y_val: Tensor | None = None  # as y_train
    lengths_train: Tensor | None = None  # int64 (n_train,), time steps of each sequence, 1 .. time; None: all of x
    lengths_test: Tensor | None = None  # int64 (n_test,)
    lengths_val: Tensor | None = None  # int64 (n_val,)

    @property
    def n_inputs(self) -> int:
        """Features of a sample."""
        return self.x_train.shape[-1]

    @property
    def n_outputs(self) -> int:
        """Classes, or target columns of a regression."""
        return len(self.classes) or self.y_train.shape[-1]

    @property
    def per_step(self) -> bool:
        """Every time step has a target of its own."""
        return self.y_train.ndim > (1 if self.task == "classification" else 2)

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
            **({"n_val": len(self.x_val)} if self.x_val is not None else {}),
            **({"time_steps": self.x_train.shape[1]} if self.x_train.ndim == 3 else {}),
            **({"per_step": True} if self.per_step else {}),
            **({"shortest": int(self.lengths_train.min())} if self.lengths_train is not None else {}),
        }
