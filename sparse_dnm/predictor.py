"""Predictions for new samples from a run directory alone: no training data, no pickle."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.data.datasets import DataError, Dataset
from sparse_dnm.data.implied import implied
from sparse_dnm.data.new_samples import as_rows, read_samples
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.data.source import DataSource
from sparse_dnm.engine import device as backend
from sparse_dnm.io import UNFIT, CheckpointError
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.model.sparse_dag import SparseDAG
from sparse_dnm.train import checkpoint as files
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


def load(
    run: str | Path, *, data: Dataset | None = None, data_dir: str | Path | None = None,
    device: torch.device | str = "cpu", threads: int = 0,
) -> Predictor:  # fmt: skip
    """The network of the run directory ``run`` as a Predictor.

    The directory is all that is needed.  Only a run of an earlier version, which did not keep its preprocessing, needs
    its data once, where they were then, in ``data_dir``, or as ``data``; then its config.json keeps it.
    device   where the network runs
    threads  of the kernels; 0: as many as are fastest
    Warns if the training is not finished.  Raises CheckpointError naming a file that is missing or damaged.
    """
    found = read(Path(run).expanduser(), data, None if data_dir is None else Path(data_dir), device, threads)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return found


def read(
    run: Path, data: Dataset | None = None, data_dir: Path | None = None, device: torch.device | str = "cpu",
    threads: int = 0,
) -> Predictor:  # fmt: skip
    """As `load`, without warnings."""
    if run.is_file():
        raise CheckpointError(f"{run} is a file, not a run directory; name the folder that a training wrote")
    manifold, train, source, description, saved = files.read_run(run)
    refuse_recurrent(manifold, "load (and with it predict and export)")
    preprocessing, notes = _preprocessing(run, data, source and _moved(source, data_dir), description)
    state, place = saved.group("model"), backend.device_of(str(device))
    try:
        model = DynamicManifold(manifold, dtype=state["alpha"].dtype, threads=threads)
        model.load_state_dict(state)
        dag = model.to(place).to_dag()
    except UNFIT as error:
        raise CheckpointError(f"{run / files.CHECKPOINT} does not fit its run: {error}") from None
    if not (run / files.SUMMARY).exists():
        notes.append(
            f"the training of {run} is not finished: predictions are those of its checkpoint, step "
            f"{saved.header['step']:,} of {train.steps:,}"
        )
    return Predictor(dag, preprocessing, tuple(notes), None if source is None else source.reading.header)


def _moved(source: DataSource, data_dir: Path | None) -> DataSource:
    return source if data_dir is None else source.moved(data_dir)


def _preprocessing(
    run: Path, data: Dataset | None, source: DataSource | None, description: dict[str, Any]
) -> tuple[Preprocessing, list[str]]:
    """That of a run, and notes; for a run of an earlier version it is made from its data and kept."""
    kept = files.read_preprocessing(run)
    if kept is not None:
        return kept, []
    data = _data_again(run, source) if data is None else data
    files.check_same_data(run, description, data)
    made = data.preprocessing or implied(data)
    with contextlib.suppress(OSError):  # a directory that cannot be written
        files.keep_preprocessing(run, made)
    return made, [f"{run} is of an earlier version: its preprocessing was made from the data {data.name}, and is kept"]


def _data_again(run: Path, source: DataSource | None) -> Dataset:
    """The data of a run of an earlier version."""
    earlier = f"{run} is of an earlier version and does not keep how samples become inputs, so it needs its data once"
    if source is None:
        raise CheckpointError(f"{earlier}: it was trained from Python; give them to sparse_dnm.load(run, data=...)")
    try:
        return source.load()
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{earlier}: {error}; where they have moved, name their folder (or the file) with --data-dir"
        ) from None
