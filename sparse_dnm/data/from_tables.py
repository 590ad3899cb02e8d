"""From a table, a file or a DataFrame, to a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sparse_dnm.data.cells import (
    DECIMAL,
    Cells,
    Place,
    cells_of,
    check_range,
    cleaned,
    decimal_of,
    usual_decimal,
)
from sparse_dnm.data.columns import TableInputs, fitted
from sparse_dnm.data.errors import DataError
from sparse_dnm.data.from_arrays import targets
from sparse_dnm.data.labels import (
    check_varies,
    classes_of,
    encode,
    groups_of,
    labels_of,
    share_note,
    split,
    unlabelled,
)
from sparse_dnm.data.notes import table_notes, written_notes
from sparse_dnm.data.options import Reading, find
from sparse_dnm.data.rows import in_sequences, in_windows, n_test_rows
from sparse_dnm.data.samples import Dataset
from sparse_dnm.data.spelling import as_codes, read_as, sign_notes
from sparse_dnm.data.suspicions import given_away, hidden, identifiers, names_twice, rare_classes
from sparse_dnm.data.table_files import read_file


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a table, from wherever."""

    name: str
    columns: list[Cells]
    usual: str  # decimal sign
    place: Place  # how an error names a row
    raw: Callable[[str, int], str]  # what is written in the cell of a column and row
    categories: tuple[str, ...] = ()  # columns that are categories by their dtype
    n_train: int | None = None  # rows to train on, the others are for the test; None: they are drawn
    separator: str = ""  # between the cells of a file of text

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [cells.name for cells in self.columns]

    def without(self, gone: np.ndarray) -> Table:
        """The same without the rows ``gone``, bool (n,)."""
        left = np.flatnonzero(~gone)
        n_train = self.n_train and int((~gone[: self.n_train]).sum())
        columns = [cells.rows(left) for cells in self.columns]
        parts = (lambda row: self.place(int(left[row]))), (lambda name, row: self.raw(name, int(left[row])))
        return Table(self.name, columns, self.usual, *parts, self.categories, n_train, self.separator)


def file_dataset(name: str, path: Path, seed: int, reading: Reading) -> Dataset:
    """A data set from a file."""
    file = read_file(path, "first" if reading.earlier else reading.header)
    columns, by_dtype = [], []
    texts: dict[str, Cells] = {}
    for each, column in zip(file.columns, file.names, strict=True):
        if isinstance(each, Cells):
            assert each.codes is not None
            texts[column] = each
            columns.append(cleaned(column, each.codes, each.texts))
        else:
            columns.append(cells_of(column, each))
            by_dtype += [column] * (str(each.dtype) == "category")

    columns = [cells for cells in columns if cells.name or not cells.missing.all()]  # lines may end with a separator
    names_twice(str(path), [cells.name for cells in columns])

    def raw(column: str, row: int) -> str:
        codes = texts[column].codes if column in texts else None
        return "" if codes is None else texts[column].texts[codes[row]].strip()

    usual = usual_decimal(columns, file.separator or ",")
    table = Table(name, columns, usual, file.place, raw, tuple(by_dtype), None, file.separator)
    return _dataset(table, str(path), seed, reading)


def frame_dataset(name: str, frame: Any, test: Any, seed: int, reading: Reading) -> Dataset:
    """A data set from a DataFrame, and perhaps one of test rows."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{name} is a {type(frame).__name__}; from_frame needs a pandas DataFrame: use from_arrays")
    names = [str(column).strip() for column in frame.columns]
    names_twice(name, names)
    n_train = None
    if test is not None:
        if [str(column).strip() for column in test.columns] != names:
            raise DataError(f"the test rows have the columns {list(test.columns)}, not those of {name}: {names}")
        if reading.test_size is not None or reading.stratify or reading.group is not None:
            raise DataError("test rows are given: test_size, stratify and group are for a split; leave them out")
        n_train, frame = len(frame), pd.concat([frame, test], ignore_index=True)
    if not len(frame):
        raise DataError(f"{name} has no row; give one per sample")
    columns = [cells_of(column, frame.iloc[:, k]) for k, column in enumerate(names)]
    by_dtype = tuple(c for k, c in enumerate(names) if isinstance(frame.dtypes.iloc[k], pd.CategoricalDtype))
    parts = (lambda row: f"{name}, row {row + 1}"), (lambda column, row: "")
    usual = frame.attrs.get(DECIMAL, ".")
    return _dataset(Table(name, columns, usual, *parts, by_dtype, n_train), name, seed, reading)


def _dataset(table: Table, where: str, seed: int, reading: Reading) -> Dataset:
    """A data set from the columns of a table: chosen, parsed, split, and fitted on the training rows."""
    names = table.names
    drop, keep, categories, group, label = _roles(where, names, reading)
    sequence = reading.sequence is not None
    gone, in_time = np.zeros(len(table.columns[0]), bool), sequence or reading.window is not None
    for name in label:
        cells = table.columns[names.index(name)]
        gone |= unlabelled(
            cells, lambda row, name=name: table.raw(name, row), table.place, reading.drop_unlabelled, in_time
        )
    notes = []
    if gone.any():
        table = table.without(gone)
        n = int(gone.sum())
        notes.append(f"{n:,} rows without a label are left out" if n > 1 else "1 row without a label is left out")
    by_name = dict(zip(names, table.columns, strict=True))
    parts = [labels_of(by_name[name], table.usual, table.place) for name in label]
    for name in label:
        notes += sign_notes(by_name[name], decimal_of(by_name[name], table.usual) or ".", table.separator)
    labels = parts[0] if len(parts) == 1 else _several(label, parts, reading)
    classes = classes_of(f"{where}: column {label[0]!r}", labels, reading.task)
    y = encode(f"{where}: column {label[0]!r}", labels, classes)
    if classes is None and not reading.earlier:
        check_varies(where, y, label)

    keep = names if reading.earlier else keep
    ahead = () if reading.window else label  # which are known at a row; of windows the past of the label is
    features, left_out = _features(
        table, where, (*drop, *ahead, *group), (*categories, *table.categories), keep, notes, reading.rules,
        in_time=reading.window is not None,
    )  # fmt: skip
    of_group, more = _groups(table, by_name[group[0]], reading) if group else (None, [])
    train, test = _split(table, y, seed, classes, reading, of_group)
    notes += [*more, *share_note(reading, len(y), len(test))] if group and table.n_train is None else []
    inputs = TableInputs(tuple(fitted(features, train, rules=reading.rules)))
    notes += _leaks([each for each in features if each.name not in label], y, classes is not None, train, test, reading)
    notes += rare_classes(y, train, classes) if classes is not None else []
    left_out = {
        **dict.fromkeys(drop, "left out (--drop)"),
        **dict.fromkeys(group, "rows of one sequence" if sequence else "rows of one group stay together"),
        **left_out,
    }
    seen = [cells.rows(train) for cells in features]
    shown = table_notes(inputs.columns, seen, left_out, label, labels, classes, reading)
    mean, std = inputs.moments()
    x_train = inputs.encode(seen, lambda row: table.place(int(train[row])))
    notes += hidden(inputs, seen, x_train.numpy(), lambda row: f"row {train[row] + 1}")
    values: dict[str, Any] = {
        "name": table.name,
        "x_train": x_train,
        "x_test": inputs.encode([cells.rows(test) for cells in features], lambda row: table.place(int(test[row]))),
        "period": float(inputs.n_inputs),
        "feature_mean": torch.from_numpy(mean),
        "feature_std": torch.from_numpy(std),
        "notes": (*shown, *notes),
    }
    data = Dataset(**values, **targets(where, inputs, tuple(label), classes, y[train], y[test]))
    if reading.window is not None:
        return in_windows(data, reading.window, reading.horizon or 1)
    if sequence:
        assert of_group is not None
        return in_sequences(data, of_group[train], of_group[test], reading.per_step)
    return data


class Roles(NamedTuple):
    """The columns that options name."""

    drop: list[str]
    keep: list[str]
    categories: list[str]
    group: list[str]  # that of sequences, too
    label: list[str]


def _roles(where: str, names: list[str], reading: Reading) -> Roles:
    """What columns are for.  Raises DataError for one that is for two things."""
    together = "group" if reading.sequence is None else "sequence"
    column = getattr(reading, together)
    drop, keep, categories, group = (
        find(option, value, names, where)
        for option, value in (
            *(("drop", reading.drop), ("keep", reading.keep), ("categories", reading.categories)),
            (together, () if column is None else (column,)),
        )
    )
    label = find("target", reading.target, names, where) or [name for name in names if name not in (*drop, *group)][-1:]
    for option, chosen in (("drop", drop), (together, group)):
        both = [name for name in chosen if name in label or (option != "drop" and name in drop)]
        if both:
            raise DataError(f"{option}={both[0]!r} is the label column or dropped as well; a column has one use")
    return Roles(drop, keep, categories, group, label)


def _groups(table: Table, cells: Cells, reading: Reading) -> tuple[np.ndarray, list[str]]:
    """The group or the sequence of each row, and notes.  Raises DataError for a row that is in no sequence."""
    if reading.sequence is not None and cells.missing.any():
        row = int(np.flatnonzero(cells.missing)[0])
        raise DataError(
            f"{table.place(row)}: column {cells.name!r} has no value, so its row is in no sequence; name one"
        )
    return groups_of(as_codes(cells, table.usual))


def _split(
    table: Table, y: np.ndarray, seed: int, classes: np.ndarray | None, reading: Reading, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and those to test on; of sequences and windows in the order of the table."""
    n_train = table.n_train
    if n_train is None and reading.window is not None:
        n_train = len(y) - n_test_rows(table.name, len(y), reading.test_size)
    if n_train is not None:
        train, test = np.split(np.arange(len(y)), [n_train])
        return train, test
    train, test = split(table.name, y, seed, classes, reading, groups)
    return (train, test) if reading.sequence is None else (np.sort(train), np.sort(test))


def _leaks(
    features: Sequence[Cells], y: np.ndarray, classes: bool, train: np.ndarray, test: np.ndarray, reading: Reading
) -> list[str]:
    """`given_away`; of windows their last rows are looked at, beside the labels of later ones."""
    if reading.window is None:
        return given_away(features, y, classes, train, test)
    horizon, n = reading.horizon or 1, len(y)
    first = reading.window - 1  # that is the last of a window
    n_train = len(train) - first - horizon
    if n_train < 1:
        return []
    places = np.arange(n - first - horizon)
    features = [cells.rows(first + places) for cells in features]
    return given_away(features, y[first + horizon :], classes, *np.split(places, [n_train]))


def _several(label: Sequence[str], parts: Sequence[np.ndarray], reading: Reading) -> np.ndarray:
    """The numbers of several label columns, float64 (n, columns)."""
    for name, part in zip(label, parts, strict=True):
        if part.dtype.kind == "U" or reading.task == "classification":
            raise DataError(
                f"target={name!r} is one of {len(label)} label columns, which must be numbers of a regression; train a "
                "network for each class column, or name one"
            )
    return np.stack(parts, axis=1).astype(np.float64)


def _features(
    table: Table,
    where: str,
    others: Sequence[str],
    categories: Sequence[str],
    keep: Sequence[str],
    notes: list[str],
    rules: int,
    in_time: bool,
) -> tuple[list[Cells], dict[str, str]]:
    """The columns of features, parsed; and why others are left out."""
    features, left_out = [], {}
    for cells in table.columns:
        if cells.name in others:
            continue
        if cells.missing.all():
            left_out[cells.name] = "left out: empty"
            continue
        part = read_as(cells, table.usual, table.place, cells.name in categories, rules, notes)
        check_range(part, table.place, read=cells)
        notes += written_notes(cells, part, table.separator)
        features.append(part)
    found = identifiers(features, (*keep, *categories), in_time=in_time)
    found.check(where)
    notes += found.notes
    left_out |= dict.fromkeys(found.left_out, "left out: it numbers the rows")
    features = [cells for cells in features if cells.name not in found.left_out]
    if not features:
        raise DataError(f"{where} has no column of features left; it needs one or more beside the label")
    return features, left_out
