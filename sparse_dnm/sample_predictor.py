"""Predictions of a network for new samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.data.datasets import DataError
from sparse_dnm.data.new_samples import as_rows, read_samples
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.model.sparse_dag import SparseDAG
from sparse_dnm.train.metrics import one_torch_thread

ROWS = 4096  # samples of a chunk
LEAST, MOST = 32, 64  # samples that the network runs on at once: all of them in tiles of one width


class Predictor:
    """A trained network and how samples become its inputs; made by `load`.

    model          SparseDAG: the network, on inputs (n, n_inputs) that `inputs` makes
    preprocessing  how samples become inputs, and outputs predictions
    notes          for the reader, a line each
    header         of files of samples: "none" where the training had a table without names, see `data.load`
    """

    sequence: str | None = None  # column that says which sequence a row belongs to, for a recurrent network

    def __init__(
        self, model: SparseDAG, preprocessing: Preprocessing, notes: tuple[str, ...] = (), header: str | None = None
    ) -> None:
        if model.n_inputs != preprocessing.n_inputs:
            raise ValueError(
                f"the network has {model.n_inputs} inputs and the preprocessing makes {preprocessing.n_inputs}; they "
                "must be of one run"
            )
        self.model, self.preprocessing, self.notes, self.header = model, preprocessing, notes, header

    def __repr__(self) -> str:
        names = f" of {', '.join(self.target_names)}" if self.target_names else ""
        return f"Predictor({self.task}{names}, {self.model.extra_repr()})"

    @property
    def task(self) -> str:
        """classification or regression."""
        return "regression" if self.classes is None else "classification"

    @property
    def classes(self) -> np.ndarray | None:
        """The classes in their own dtype, in the order of `predict_proba`; None for a regression."""
        return self.preprocessing.classes

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns that are read; () where the training had none."""
        return self.preprocessing.feature_names

    @property
    def target_names(self) -> tuple[str, ...]:
        """The columns that are predicted; () where the training had none."""
        return self.preprocessing.target_names

    def predict(self, X: Any) -> Any:
        """Classes (n,) in their own dtype, or numbers (n,) or (n, targets) in the target's own units.

        X  a DataFrame (columns by name; others are ignored), an array or tensor (n, ...) as the training had it, a list
           of rows (lists, or dicts by name), a dict or Series by name as one row, or the path of a file as
           `sparse-dnm predict` takes it
        For a DataFrame a Series, or a DataFrame of several targets, with its index and the names of the targets.
        Raises DataError naming columns that are missing, or the row and column of a bad value.
        """
        X = self.samples(X)
        found = self.preprocessing.predictions(self.outputs(X))
        if not hasattr(X, "columns"):
            return found
        import pandas as pd

        if found.ndim == 1:
            return pd.Series(found, index=X.index, name=self.target_names[0] if self.target_names else None)
        return pd.DataFrame(found, index=X.index, columns=list(self.target_names) or None)

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class, float64 (n, classes); for a DataFrame a DataFrame with the classes as columns.

        X  as in `predict`
        Raises DataError for a regression.
        """
        X = self.samples(X)
        self.check_has_probabilities()
        found = self.preprocessing.probabilities(self.outputs(X))
        if not hasattr(X, "columns"):
            return found
        import pandas as pd

        return pd.DataFrame(found, index=X.index, columns=self.classes)

    def check_has_probabilities(self) -> None:
        """Raise DataError for a regression."""
        if self.classes is None:
            raise DataError("a regression has no probabilities: it predicts numbers; ask for predictions instead")

    def samples(self, X: Any) -> Any:
        """A DataFrame or an array of what `predict` takes; files are read."""
        if isinstance(X, (str, Path)):
            return read_samples(X, self.header, self.feature_names)
        rows = as_rows(X)
        if rows is not None:
            return rows
        return X.to_pandas() if hasattr(X, "to_pandas") else X  # polars, pyarrow

    def inputs(self, X: Any) -> Tensor:
        """Inputs of the network, (n, n_inputs) of its dtype, for samples as in `predict`.

        Warns of columns in which nearly all cells are missing, or hold words, unseen in training, and of names of
        columns where the training had none.
        """
        X = self.samples(X)
        if self.preprocessing.by_position(X):
            text = "X has feature names, but the network was fitted without feature names: columns are read by position"
            warnings.warn(text, stacklevel=2)
        inputs, warned = self.read(X)
        for text in warned:
            warnings.warn(text, stacklevel=2)
        return inputs

    def read(self, X: Any, where: str = "X") -> tuple[Tensor, list[str]]:
        """As `inputs`, with the warnings about single columns as texts; errors call the samples ``where``."""
        warned: list[str] = []
        return self.preprocessing.inputs(self.samples(X), self.model.bias.dtype, warned, where), warned

    def outputs(self, X: Any) -> Tensor:
        """Outputs of the network, (n, n_outputs) on the CPU, for samples as in `predict`."""
        inputs = self.inputs(X)
        with one_torch_thread():  # the cores are busy with the kernels
            return torch.cat(list(self.chunks(inputs)))

    def chunks(self, inputs: Tensor, rows: int = ROWS) -> Iterator[Tensor]:
        """Outputs of the network on the CPU, ``rows`` samples at a time; one chunk at least.

        Raises DataError where they are not finite.
        """
        for first in range(0, max(len(inputs), 1), rows):
            with one_torch_thread():
                found = torch.cat([self._run(part) for part in inputs[first : first + rows].split(MOST)])
                finite = torch.isfinite(found).all(1)
            if not bool(finite.all()):
                row = first + int(torch.nonzero(~finite)[0])
                raise DataError(
                    f"the network's outputs for row {row} (from 0) are not finite: its values lie far from those of "
                    "the training; correct or remove the row"
                )
            yield found

    def _run(self, inputs: Tensor) -> Tensor:
        """Outputs for up to MOST samples.  Fewer than LEAST are filled up: kernels for narrower batches add up in
        another order, and the bits of a prediction must not depend on the samples beside it."""
        n, device = len(inputs), self.model.bias.device
        if 0 < n < LEAST:
            inputs = torch.cat([inputs, inputs[:1].expand(LEAST - n, -1)])
        with torch.no_grad():
            return self.model(inputs.to(device))[:n].cpu()
