"""How good predictions are for new rows whose table holds the target as well."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_dnm.data.cells import DECIMAL, Cells, cells_of, quoted, to_number
from sparse_dnm.data.columns import Column
from sparse_dnm.data.errors import DataError, counted
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.data.scales import standardised


def score_note(preprocessing: Preprocessing, frame: Any, found: np.ndarray) -> str:
    """A line with the accuracy and balanced accuracy, or R² and mean squared error, of predictions ``found``.

    "" where the table lacks a target, or a feature has its name.  Rows without a value are left out.
    """
    names = preprocessing.target_names
    places = [str(name).strip() for name in getattr(frame, "columns", ())]
    if not names or not set(names) <= set(places) or set(names) & set(preprocessing.feature_names):
        return ""
    try:
        twice = next((name for name in names if places.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"the table has the column {twice!r} twice")
        columns = [cells_of(name, frame.iloc[:, places.index(name)]) for name in names]
        gone = np.any([cells.missing for cells in columns], axis=0)
        if gone.all():
            raise DataError("the column is empty in all rows")
        left = np.flatnonzero(~gone)
        columns, found = [cells.rows(left) for cells in columns], found[left]
        if preprocessing.classes is None:
            text = _of_numbers(preprocessing, columns, found, frame.attrs.get(DECIMAL), left)
        else:
            text = _of_classes(preprocessing.classes, columns[0], found)
    except DataError as error:
        return f"no score on {', '.join(map(repr, names))}: {error}"
    n_gone = int(gone.sum())
    more = f"; {counted(n_gone, 'row')} without a value {'are' if n_gone > 1 else 'is'} left out" if n_gone else ""
    return f"score on {', '.join(map(repr, names))} of {counted(len(left), 'row')}: {text}{more}"


def _of_classes(classes: np.ndarray, cells: Cells, found: np.ndarray) -> str:
    """Balanced accuracy is the mean of the recalls of the classes that the rows have."""
    from sklearn.metrics import accuracy_score, recall_score  # slow to import

    cells = cells.as_text()
    assert cells.codes is not None
    by_text = {str(name): k for k, name in enumerate(classes.tolist())}
    values = {name: k for k, name in enumerate(classes.tolist())} if classes.dtype.kind in "iuf" else {}
    known = [by_text.get(text, values.get(to_number(text, "."))) for text in cells.texts]
    codes = np.array([len(classes) + k if place is None else place for k, place in enumerate(known)])
    y, places = codes[cells.codes], {name: k for k, name in enumerate(classes.tolist())}
    predicted = [places[name] for name in found.tolist()]
    balanced = recall_score(y, predicted, labels=np.unique(y), average="macro", zero_division=0)
    text = f"accuracy {accuracy_score(y, predicted):.4g}, balanced accuracy {balanced:.4g}"
    unknown = y >= len(classes)
    if unknown.any():
        shown = quoted(cells.texts[cells.codes[int(np.argmax(unknown))]])
        text += f"; {counted(int(unknown.sum()), 'row')} of a class that training did not have ({shown}): wrong"
    return text


def _of_numbers(
    preprocessing: Preprocessing, columns: list[Cells], found: np.ndarray, usual: str | None, rows: np.ndarray
) -> str:
    """R² is the mean over the targets that vary in the rows."""
    from sklearn.metrics import r2_score  # slow to import

    target = preprocessing.target
    assert target.mean is not None
    assert target.std is not None
    read = [
        Column(cells.name, "number").read(cells, lambda row: f"row {rows[row]} (from 0)", usual).values
        for cells in columns
    ]
    y, found = np.stack([part for part in read if part is not None], axis=1), found.reshape(len(found), -1)
    scaled = standardised(y, target.mean, target.std)  # squares of large numbers are beyond float64
    varies = (y != y[0]).any(0)
    ours = standardised(found, target.mean, target.std)
    text = f"R² {r2_score(scaled[:, varies], ours[:, varies]):.4g}, " if varies.any() else ""
    with np.errstate(over="ignore"):
        return f"{text}mean squared error {((found - y) ** 2).mean():.6g}"
