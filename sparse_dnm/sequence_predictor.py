"""Predictions of a recurrent network for new sequences."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.data.errors import DataError
from sparse_dnm.data.new_samples import read_lengths
from sparse_dnm.data.new_sequences import NewSequences, of_array, of_column, of_windows
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.model.recurrent_dag import RecurrentDAG
from sparse_dnm.sample_predictor import LEAST, MOST, Predictor
from sparse_dnm.train.metrics import one_torch_thread


@dataclass(frozen=True)
class Steps:
    """What the training's sequences were.

    per_step  each time step has a prediction; else a sequence has one, that of its last step
    column    of a table whose equal values make one sequence of their rows; None: it had none
    window    rows of a table in the order of time that tell the row ``horizon`` rows after the last; None: it had none
    """

    per_step: bool = False
    column: str | None = None
    window: int | None = None
    horizon: int = 1


class SequencePredictor(Predictor):
    """A trained recurrent network and how samples become its inputs; made by `load`.

    As a `Predictor`, with sequences as samples: an array or tensor (n, time, features) and perhaps ``lengths``, (n,)
    integers; the path of a .npz with both, or of a .npy; or a table (a DataFrame, a list of dicts, a file), whose rows
    become sequences as in the training, by a column or as windows.

    model  RecurrentDAG: the network, on inputs (n, time, n_inputs) that `inputs` makes
    steps  what the training's sequences were
    """

    model: Any

    def __init__(
        self, model: RecurrentDAG, preprocessing: Preprocessing, notes: tuple[str, ...] = (), header: str | None = None,
        steps: Steps = Steps(),
    ) -> None:  # fmt: skip
        super().__init__(model, preprocessing, notes, header)  # type: ignore[arg-type]
        self.steps, self.sequence = steps, steps.column

    def predict(self, X: Any, lengths: Any = None) -> Any:
        """Classes (n,) in their own dtype, or numbers (n,) or (n, targets) in the target's own units; where each time
        step has a prediction (n, time) or (n, time, targets), with 0, NaN or an empty text beyond a sequence's length.

        Of a table a Series, or a DataFrame of several targets: for each row where each has a prediction, with the
        table's index; else for each sequence, with the values of its column as index; or for each window, with the
        number (from 1) of the row that is told.
        Raises DataError naming columns that are missing, the row and column of a bad value, or lengths that do not fit.
        """
        return self._answers(X, lengths, self.preprocessing.predictions)

    def predict_proba(self, X: Any, lengths: Any = None) -> Any:
        """The probability of each class, float64 (n, classes) or (n, time, classes); of a table a DataFrame with the
        classes as columns, and rows as of `predict`.

        Raises DataError for a regression.
        """
        self.check_has_probabilities()
        return self._answers(X, lengths, self.preprocessing.probabilities, self.classes)

    def inputs(self, X: Any, lengths: Any = None) -> Tensor:
        """Inputs of the network, (n, time, n_inputs) of its dtype; 0 beyond a sequence's length."""
        return self._warned(self.sequences(X, lengths))

    def outputs(self, X: Any, lengths: Any = None) -> Tensor:
        """Outputs of the network on the CPU: (n, n_outputs), or (rows, n_outputs) of all time steps that belong to
        sequences, in the order of the rows of `sequences`."""
        found = self.sequences(X, lengths)
        return self.run(found, self._warned(found))

    def sequences(self, X: Any, lengths: Any = None, where: str = "X") -> NewSequences:
        """Raw sequences of what `predict` takes."""
        if isinstance(X, (str, Path)) and lengths is None:
            lengths = read_lengths(X)
        X = self.samples(X)
        if not hasattr(X, "columns"):
            lengths = lengths.detach().cpu().numpy() if isinstance(lengths, Tensor) else lengths
            features = len(self.feature_names) or self.preprocessing.n_inputs
            return of_array(X, lengths, features, self.steps.per_step, where)
        if lengths is not None:
            raise DataError("lengths are for sequences in an array (n, time, features); a table has them itself")
        if self.steps.column is not None:
            return of_column(X, self.steps.column, self.steps.per_step, where)
        if self.steps.window is not None:
            return of_windows(X, self.steps.window, self.steps.horizon, where)
        raise DataError(
            f"{where} is a table, and the training had no table whose rows make sequences; give an array (n, time, "
            "features), with lengths where sequences differ in them"
        )

    def filled(self, found: NewSequences, rows: Tensor) -> Tensor:
        """Inputs (n, time, n_inputs) of sequences, whose rows have the inputs ``rows``."""
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[torch.from_numpy(found.at)]

    def run(self, found: NewSequences, x: Tensor) -> Tensor:
        """Outputs as of `outputs` for inputs ``x``.  Raises DataError where they are not finite."""
        lengths, parts = torch.from_numpy(found.lengths), []
        with one_torch_thread():
            for part, steps in zip(x.split(MOST), lengths.split(MOST), strict=True):
                parts.append(self._run_part(part, steps))
            out = torch.cat(parts)
            if self.steps.per_step:
                used = torch.from_numpy(found.used)
                rows = out.new_zeros(int(used.sum()), out.shape[2])
                rows[torch.from_numpy(found.at)[used]] = out[used]
                out = rows
            finite = torch.isfinite(out).all(1)
        if not bool(finite.all()):
            what, place = "row" if self.steps.per_step else "sequence", int(torch.nonzero(~finite)[0])
            raise DataError(
                f"the network's outputs for {found.said(f'{what} {place} (from 0)')} are not finite: its "
                "values lie far from those of the training; correct or remove it"
            )
        return out

    def _run_part(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Outputs for up to MOST sequences: see `Predictor._run`."""
        n, device = len(x), self.model.bias.device
        if 0 < n < LEAST:
            x = torch.cat([x, x[:1].expand(LEAST - n, -1, -1)])
            lengths = torch.cat([lengths, lengths[:1].expand(LEAST - n)])
        with torch.no_grad():
            out: Tensor = self.model(x.to(device), lengths, last=not self.steps.per_step)
        return out[:n].cpu()

    def _warned(self, found: NewSequences) -> Tensor:
        """Inputs of sequences, with warnings."""
        inputs, warned = self.read_sequences(found)
        for text in warned:
            warnings.warn(text, stacklevel=3)
        return inputs

    def read_sequences(self, found: NewSequences, where: str = "X") -> tuple[Tensor, list[str]]:
        """Inputs as of `inputs`, and the warnings about single columns as texts; errors call the samples ``where``."""
        try:
            rows, warned = self.read(found.rows, where)
        except DataError as error:
            raise DataError(found.said(str(error))) from None
        return self.filled(found, rows), [found.said(text) for text in warned]

    def _answers(self, X: Any, lengths: Any, answer: Any, columns: Any = None) -> Any:
        """What ``answer`` makes of outputs, in the shape of X; ``columns`` of a table of them."""
        found = self.sequences(X, lengths)
        values = answer(self.run(found, self._warned(found)))
        if hasattr(found.rows, "columns"):
            return self._as_table(found, values, columns)
        if not self.steps.per_step:
            return values
        whole = np.full((*found.at.shape, *values.shape[1:]), np.nan if values.dtype.kind == "f" else 0, values.dtype)
        if values.dtype.kind == "U":
            whole[:] = ""
        whole[found.used] = values
        return whole

    def _as_table(self, found: NewSequences, values: Any, columns: Any) -> Any:
        import pandas as pd

        (name, index), *_ = found.names.items()
        index = found.rows.index if self.steps.per_step else pd.Index(index, name=name)
        if values.ndim == 1:
            return pd.Series(values, index=index, name=self.target_names[0] if self.target_names else None)
        return pd.DataFrame(values, index=index, columns=list(self.target_names) if columns is None else columns)


def steps_of(source: Any, description: dict[str, Any]) -> Steps:
    """The sequences of a run, by its source (None: it was trained from Python) and the description of its data."""
    if source is None:
        return Steps(bool(description.get("per_step", False)))
    reading = source.reading
    per_step = bool(description.get("per_step", reading.per_step))
    return Steps(per_step, reading.sequence, reading.window, reading.horizon or 1)
