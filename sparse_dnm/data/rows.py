"""Sequences from the rows of a table: those with the same value of a column, or windows of a table in order of time."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.data.errors import DataError, counted
from sparse_dnm.data.samples import Dataset


def in_sequences(data: Dataset, train: NDArray[np.int64], test: NDArray[np.int64], per_step: bool) -> Dataset:
    """The rows of ``data`` as sequences: ``train`` and ``test`` (rows,) say which one each row belongs to.

    Sequences come in the order of their first rows.  The label of a sequence is that of its last row; ``per_step``:
    each row has one.  Shorter sequences are filled up with zeros.
    """
    (x, y, lengths), (x_test, y_test, lengths_test) = (
        packed(*parts, per_step) for parts in ((data.x_train, data.y_train, train), (data.x_test, data.y_test, test))
    )
    all_lengths = torch.cat([lengths, lengths_test])
    least, most = int(all_lengths.min()), int(all_lengths.max())
    equal = least == most
    rows = f"{most}" if equal else f"{least} to {most}"
    label = "a label for each row" if per_step else "the label of the last row"
    note = f"{counted(len(all_lengths), 'sequence')} of {rows} {'row' if rows == '1' else 'rows'}, with {label}"
    return dataclasses.replace(
        data, x_train=x, y_train=y, x_test=x_test, y_test=y_test, notes=(*data.notes, note),
        lengths_train=None if equal else lengths, lengths_test=None if equal else lengths_test,
    )  # fmt: skip


def packed(x: Tensor, y: Tensor, of_row: NDArray[np.int64], per_step: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences, their labels and their lengths."""
    rows, of_sequence, steps, lengths = sequences_of(of_row)
    ends = np.cumsum(lengths)
    place = torch.from_numpy(of_sequence), torch.from_numpy(steps)
    order, shape = torch.from_numpy(rows), (len(lengths), int(lengths.max()))
    out = x.new_zeros(*shape, x.shape[1])
    out[place] = x[order]
    if per_step:
        labels = y.new_zeros(*shape, *y.shape[1:])
        labels[place] = y[order]
    else:
        labels = y[order[torch.from_numpy(ends - 1)]]
    return out, labels, torch.from_numpy(lengths)


def sequences_of(of_row: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """The rows of each sequence, one sequence after the other, in the order of their first rows; the sequence and the
    time step of each of these rows; and the time steps of each sequence.

    of_row  int64 (rows,): equal numbers are one sequence
    """
    _, first, which, counts = np.unique(of_row, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    of_sequence, lengths = rank[which.ravel()], np.empty_like(counts)
    lengths[rank] = counts
    rows = np.argsort(of_sequence, kind="stable")
    ends = np.cumsum(lengths)
    return rows, of_sequence[rows], np.arange(len(rows)) - np.repeat(ends - lengths, lengths), lengths


def n_test_rows(name: str, n: int, size: float | None) -> int:
    """Rows at the end of a table of ``n`` that are for the test; ``size``: a share or a number of them, default 0.2."""
    share = 0.2 if size is None else size
    count = math.ceil(round(share * n, 9)) if share < 1 else int(share)
    if not 0 < count < n:
        raise DataError(f"test_size={share:g} leaves {n - count:,} of {n:,} rows of {name} to train on; give less")
    return count


def in_windows(data: Dataset, window: int, horizon: int) -> Dataset:
    """The rows of ``data``, in order of time, those of the test last, as overlapping sequences of ``window`` rows.

    The label of a sequence is that of the row ``horizon`` rows after its last one; it is in the test where that row is,
    so that a sequence of the test may begin in rows of the training, which are known by then.
    """
    n_train, n = len(data.x_train), len(data.x_train) + len(data.x_test)
    reach = window + horizon - 1  # rows before the first that is a label
    if n_train <= reach:
        raise DataError(
            f"window={window} and horizon={horizon} need {reach + 1:,} training rows or more, and {data.name} has "
            f"{n_train:,}; give a smaller window, or more rows"
        )
    x, y = torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])
    x = x.unfold(0, window, 1)[: n - reach].transpose(1, 2)
    y = y[reach:]
    cut = n_train - reach
    note = (
        f"{counted(len(y), 'sequence')} of {counted(window, 'row')}, its label {counted(horizon, 'row')} later; "
        f"the test is the end of the table, {counted(n - n_train, 'row')}"
    )
    return dataclasses.replace(
        data, x_train=x[:cut].contiguous(), y_train=y[:cut], x_test=x[cut:].contiguous(), y_test=y[cut:],
        notes=(*data.notes, note),
    )  # fmt: skip
