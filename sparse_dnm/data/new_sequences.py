"""Sequences to predict for, from the rows of a table or from an array."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.data.cells import DECIMAL, cells_of
from sparse_dnm.data.errors import DataError, counted
from sparse_dnm.data.labels import groups_of
from sparse_dnm.data.plain import plain
from sparse_dnm.data.rows import sequences_of
from sparse_dnm.data.spelling import as_codes

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NewSequences:
    """Raw rows, and which of them are the time steps of each sequence.

    rows   a DataFrame, or an array (rows, features)
    at     int64 (n, time)  row of each time step; -1 after a sequence's last one
    names  columns that say what each prediction is of, by their names: of a row where each step has one
    """

    rows: Any
    at: Ints
    names: dict[str, NDArray[Any]]

    @property
    def used(self) -> NDArray[np.bool_]:
        """bool (n, time): the time step belongs to the sequence."""
        found: NDArray[np.bool_] = self.at >= 0
        return found

    @property
    def lengths(self) -> Ints:
        """int64 (n,): time steps of each sequence."""
        found: Ints = self.used.sum(1)
        return found

    @property
    def last(self) -> Ints:
        """int64 (n,): row of each sequence's last time step."""
        found: Ints = self.at[np.arange(len(self.at)), self.lengths - 1]
        return found

    def said(self, text: str) -> str:
        """A message about ``rows`` of an array, about the sequence and the time step of each row instead."""
        if hasattr(self.rows, "columns"):
            return text
        text = re.sub(r"\brow (\d+)(?:, column (\d+))? \(from 0\)", self._place, text)
        return text.replace("remove the row", "remove the sequence")

    def _place(self, found: re.Match[str]) -> str:
        sequence, step = np.argwhere(self.at == int(found[1]))[0].tolist()
        feature = "" if found[2] is None else f", feature {found[2]}"
        return f"sequence {sequence}, time step {step}{feature} (from 0)"


def of_column(frame: Any, name: str, per_step: bool, where: str = "X") -> NewSequences:
    """The rows of a DataFrame with the same value in the column ``name``, in the order of their first rows.

    Raises DataError where there is no such column, or a row has no value in it.
    """
    places = [k for k, column in enumerate(frame.columns) if str(column).strip() == name]
    if len(places) != 1:
        raise DataError(
            f"{where} has {counted(len(places), 'column')} named {name!r}, which in the training said what sequence a "
            f"row belongs to; it must have one (it has: {', '.join(map(str, frame.columns))})"
        )
    column = frame.iloc[:, places[0]]
    cells = cells_of(name, column)
    if cells.missing.any():
        row = int(np.flatnonzero(cells.missing)[0])
        raise DataError(f"{where}: column {name!r} has no value in row {row} (from 0), which is in no sequence")
    groups, _ = groups_of(as_codes(cells, frame.attrs.get(DECIMAL, ".")))
    rows, of_sequence, steps, lengths = sequences_of(groups)
    at = np.full((len(lengths), int(lengths.max(initial=1))), -1, np.int64)
    at[of_sequence, steps] = rows
    values = column.to_numpy()
    return NewSequences(frame, at, {name: values if per_step else values[at[:, 0]]})


def of_windows(frame: Any, window: int, horizon: int, where: str = "X") -> NewSequences:
    """Each ``window`` rows in a row; named by the number (from 1) of the row that they tell, ``horizon`` rows later."""
    n = len(frame) - window + 1
    if n < 1:
        raise DataError(
            f"{where} has {counted(len(frame), 'row')}; the network tells a row by the {window:,} before it: give as "
            "many or more, in the order of time"
        )
    at = np.arange(n)[:, None] + np.arange(window)
    return NewSequences(frame, at, {"row": at[:, -1] + horizon + 1})


def of_array(x: Any, lengths: Any, features: int, per_step: bool, where: str = "X") -> NewSequences:
    """The sequences of an array (n, time, features); ``lengths``, integers (n,): their time steps, None: all.

    What is beyond them is not read.  Raises DataError for other shapes.
    """
    x = plain(where, x)
    if x.ndim != 3 or 0 in x.shape[:2] or x.shape[2] != features:
        more = "; give one sequence as x[None]" if x.ndim == 2 and x.shape[1] == features else ""
        raise DataError(
            f"{where} has shape {x.shape}; sequences are (n >= 1, time >= 1, features), and the training had "
            f"{counted(features, 'feature')}{more}"
        )
    n, time = x.shape[:2]
    if lengths is None:
        lengths = np.full(n, time)
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu" or lengths.shape != (n,):
        raise DataError(
            f"lengths is {lengths.dtype} {lengths.shape}; it must be integers ({n},): time steps of each sequence"
        )
    wrong = np.flatnonzero((lengths < 1) | (lengths > time))
    if len(wrong):
        raise DataError(f"lengths[{wrong[0]}]={lengths[wrong[0]]} must be in 1 .. {time}, the time steps of {where}")
    used = np.arange(time) < lengths[:, None]
    at = np.full((n, time), -1, np.int64)
    at[used] = np.arange(used.sum())
    places = np.argwhere(used) + 1
    return NewSequences(x[used], at, {"sequence": places[:, 0], "step": places[:, 1]} if per_step else {})
