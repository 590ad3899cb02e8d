"""What was decided about the columns of a table, as a short table of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sparse_dnm.data.cells import Cells, both_orders
from sparse_dnm.data.columns import Column
from sparse_dnm.data.labels import listed, task_note
from sparse_dnm.data.options import Reading
from sparse_dnm.data.scales import moments
from sparse_dnm.data.spelling import sign_notes

MOST = 30  # lines about columns that are not plain numbers
WIDEST = 24  # characters of a name before which others are aligned


def table_notes(
    columns: Sequence[Column], train: Sequence[Cells], left_out: Mapping[str, str], names: Sequence[str],
    labels: np.ndarray, classes: np.ndarray | None, reading: Reading,
) -> list[str]:  # fmt: skip
    """A line for all plain numbers, one for each other column, and one for the label."""
    plain, lines = [], []
    for column, cells in zip(columns, train, strict=True):
        text = _about(column, cells)
        if text:
            lines.append((column.name, text))
        else:
            plain.append(column.name)
    lines += list(left_out.items())
    more = len(lines) - MOST
    if more > 0:
        lines = [*lines[:MOST], ("...", f"and {more} more")]
    n_inputs = sum(column.n_inputs for column in columns)
    first = f"columns: {len(columns)} of features, {n_inputs} inputs"
    if plain:
        first += f"; numbers: {listed(plain)}"
    lines += [
        (name, _label(labels if labels.ndim == 1 else labels[:, k], classes, reading)) for k, name in enumerate(names)
    ]
    width = min(WIDEST, max(len(name) for name, _ in lines))
    return [first, *(f"  {name:{width}}  {text}" for name, text in lines)]


def _about(column: Column, cells: Cells) -> str:
    """What is worth saying about a column; empty for plain numbers."""
    n_missing = int(cells.missing.sum())
    if column.kind == "category":
        text = f"{len(column.levels)} levels: {listed(column.levels, 6)}" if column.levels else "text, no level twice"
        if column.others:
            text += "; all others in one input"
    else:
        text = column.kind
        if column.kind == "boolean" and column.form:
            text += f" ({column.form.replace('/', ', ')} as 0, 1)"
        elif column.kind == "date":
            text += f" in days{f' ({column.form})' if column.form else ''}"
        elif column.form == ",":
            text += " with a decimal comma"
        if cells.values is not None and len(cells) and np.unique(cells.values[~cells.missing]).size < 2:
            text += ", the same in all training rows"
    if n_missing:
        filled = (
            "an input of their own"
            if column.kind == "category"
            else f"filled by the mean {column.mean:.4g}, and an input"
        )
        text += f"; {n_missing / len(cells):.1%} missing: {filled}"
    return "" if text == "number" else text


def written_notes(cells: Cells, part: Cells, separator: str = "") -> list[str]:
    """Where the texts of a column could have been meant otherwise than they were read as ``part``."""
    if part.kind == "date" and part.form == "%m/%d/%Y" and both_orders(cells):
        return [f"warning: dates of column {part.name!r} are read with the month first; write 2020-01-31 to be sure"]
    return sign_notes(cells, part.form, separator) if part.kind == "number" and part.grouped else []


def _label(labels: np.ndarray, classes: np.ndarray | None, reading: Reading) -> str:
    """What is said about a column of labels."""
    note = task_note(labels, classes, reading.task)
    more = f" ({note})" if note else ""
    if classes is None:
        mean, std = moments(labels, (0,))
        return f"label: a number, mean {mean:.4g}, deviation {std:.4g}{more}"
    return f"label: {len(classes)} classes: {listed(classes, 6)}{more}"
