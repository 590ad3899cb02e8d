"""What looks like a mistake in data: columns that tell which row it is, features that give the label away."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparse_dnm.data.cells import EXACT, NUMBER, Cells, quoted, short
from sparse_dnm.data.columns import TableInputs
from sparse_dnm.data.errors import DataError
from sparse_dnm.data.labels import listed
from sparse_dnm.data.scales import near_one
from sparse_dnm.wording import words

NO_SIGNS = "numbers are written without signs such as % and $"
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
FEWEST = 10  # rows below which nothing is suspicious
FEWEST_GIVEN_AWAY = 30  # rows below which a feature may fit the label by chance
ID_NAME = re.compile(
    r"(?i:(^|[\W_\d])(ids?|key|uuid|guid|index|idx|nr|no|num|number|code|serial|row|rowname|record)([\W_\d]|$))|[a-z](Id|ID)$"
)

MONEY = re.compile(r"[$€£¥]\s?[+-]?\d[\d.,]*|[+-]?\d[\d.,]*\s?[%$€£¥]")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(['’\u00a0\u202f\u2009 ]\d{3})+([.,]\d+)?")
DATE = re.compile(
    r"(\d{4}|\d\d?)[-/. ](\d\d?)[-/. ](\d{4}|\d\d)([ T,].*)?|(\d\d?[-/. ])?[a-z]{3,9}[-/., ]+(\d\d?, ?)?\d{2,4}( .*)?",
    re.IGNORECASE,
)
SIGNED = re.compile(r"[^\w\s]?\s?[+-]?\d[\d.,]*\s?([^\w\s]|[a-zA-Z]{1,3})?")


@dataclass
class Found:
    """What was found in the columns of features: reasons to refuse some, columns that are left out, and notes."""

    refused: dict[str, str] = field(default_factory=dict)  # why, by name
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self, where: str) -> None:
        """Raise DataError that names all refused columns at once, and the two ways out."""
        if not self.refused:
            return
        reasons = "; ".join(f"column {name!r} {why}" for name, why in self.refused.items())
        names = ",".join(self.refused)
        them, those = ("it", "it") if len(self.refused) == 1 else ("them", "those that are features")
        raise DataError(
            f"{where}: {reasons}. A network would learn the rows by heart: leave {them} out with --drop {names!r}, or "
            f"keep {those} with --keep {names!r}"
        )

    def warnings(self) -> list[str]:
        """What to warn of where nothing is refused or left out."""
        said = [
            f"column {name!r} {why}. A network learns the rows by heart: leave it out with {words().give('drop', name)}"
            for name, why in self.refused.items()
        ]
        return said + [note.removeprefix("warning: ") for note in self.notes]


def identifiers(columns: Sequence[Cells], keep: Sequence[str], leaves_out: bool = True, in_time: bool = False) -> Found:
    """Columns of features that tell which row it is: an index, an ID, a text of its own in each row.

    leaves_out  whether the caller leaves out what is found to be so
    in_time     the test is the end of the table, so that sorted dates are as they should be
    """
    found = Found()
    for k, cells in enumerate(columns):
        if len(cells) < FEWEST or cells.name in keep or (in_time and cells.kind == "date"):
            continue
        if leaves_out and k == 0 and cells.name in ("", "Unnamed: 0") and _distinct(cells) == len(cells):
            found.left_out.append(cells.name)
            found.notes.append(
                "warning: the first column has no name and a value of its own in each row, as the index that pandas "
                f"writes: it is left out (--keep {cells.name!r} keeps it)"
            )
            continue
        why = _texts(cells) if cells.codes is not None else _numbers(cells)
        if why is None:
            continue
        sure, text = why
        if sure and not (len(columns) == 1 and cells.codes is None):  # an only feature is needed, if it is a number
            found.refused[cells.name] = text
        else:
            number = cells.kind != "date" and cells.codes is None
            hint = f"; if it is an ID, leave it out with {words().give('drop', cells.name)}" if number else ""
            found.notes.append(f"warning: column {cells.name!r} {text}{hint}")
    return found


def _distinct(cells: Cells) -> int:
    """Different values, a missing one as one of them."""
    values: Any = cells.values if cells.codes is None else cells.codes
    return len(np.unique(values))


def _texts(cells: Cells) -> tuple[bool, str] | None:
    """Why a column of texts tells the row."""
    present, n = int((~cells.missing).sum()), len(cells.texts)
    hint = _meant(cells.texts)
    if not hint and SIGNED.fullmatch(cells.texts[0]):
        hint = NO_SIGNS
    more = f" ({hint})" if hint else ""
    if present >= FEWEST and n == present:
        return True, f"has a text of its own in all rows, such as {quoted(cells.texts[0])}{more}"
    if n > max(20, present // 2):
        return True, f"has {n:,} different texts in {present:,} rows, such as {quoted(cells.texts[0])}{more}"
    if hint and hint == _meant(cells.texts):
        return False, f"is taken as words, such as {quoted(cells.texts[0])} ({hint})"
    return None


def _meant(texts: Sequence[str]) -> str:
    """What texts seem to be that are not read as such, and how they are written; "" for words."""
    if all(map(MONEY.fullmatch, texts)):
        return NO_SIGNS
    parted = [THOUSANDS.fullmatch(text) is not None for text in texts]
    if any(parted) and all(p or NUMBER["."].fullmatch(text) for p, text in zip(parted, texts, strict=True)):
        return "they look like numbers, which are written without signs or spaces between thousands"
    if sum(map(_is_date, texts)) >= 0.9 * len(texts):
        return (
            "they look like dates; dates are read in one format per column, with a year of four digits: 2020-01-31, "
            "31.01.2020, 01/31/2020, 31/01/2020, 31 Jan 2020, with or without a time of day"
        )
    return ""


def _is_date(text: str) -> bool:
    """The text looks like a date in some format."""
    found = DATE.fullmatch(text)
    if found is None or found[1] is None:
        return found is not None and any(month in text.lower() for month in MONTHS)
    parts = sorted(int(part) for part in found.group(1, 2, 3) if len(part) < 4)
    return 1 <= parts[0] <= 12 and parts[1] <= 31


def _numbers(cells: Cells) -> tuple[bool, str] | None:
    """Why a column of numbers or dates tells the row, and whether that is sure."""
    values = cells.values
    assert values is not None
    if cells.missing.any() or cells.kind not in ("number", "date"):
        return None
    with np.errstate(over="ignore"):
        steps, width = np.diff(values), values.max() - values.min()
    if cells.kind == "date":
        if len(np.unique(values)) > len(values) // 2 and ((steps >= 0).all() or (steps <= 0).all()):
            return False, (
                "has dates in the order of the rows: rows are drawn at random for the test, so the test figure does "
                "not tell how well later ones are predicted"
            )
        return None
    if np.abs(values).max() > EXACT:  # from there on every number of float64 is whole
        return None
    if not np.array_equal(values, np.floor(values)) or len(np.unique(values)) < len(values):
        return None
    if (steps > 0).all() or (steps < 0).all():
        counts = "counts the rows" if (np.abs(steps) == 1).all() else "tells the order of the rows"
        return True, f"{counts}: a whole number of its own in all rows, sorted"
    if width < 2 * len(values):
        return True, "numbers the rows: a whole number of its own in all rows, without large gaps"
    if ID_NAME.search(cells.name):
        return True, "is an ID by its name, and has a whole number of its own in all rows"
    return False, "has a whole number of its own in all rows"


def names_twice(where: str, names: Sequence[str]) -> None:
    """Raise DataError if two columns have the same name."""
    if len(set(names)) == len(names):
        return
    for name in names:
        if list(names).count(name) > 1:
            places = [k + 1 for k, other in enumerate(names) if other == name]
            raise DataError(
                f"{where} has {name!r} twice, as columns {listed(places)}; rename or remove one of them"
                if name
                else f"{where}: columns {listed(places)} have no name; name them"
            )


def rare_classes(y: np.ndarray, train: np.ndarray, classes: np.ndarray) -> list[str]:
    """Warnings about classes with one sample, or without any in training."""
    counts, trained = (np.bincount(part, minlength=len(classes)) for part in (y, y[train]))
    notes = []
    single = classes[counts == 1]
    if len(single):
        many = len(single) > 1
        what = (
            f"classes {listed(single)} have one sample each"
            if many
            else f"class {short(str(single[0]))} has one sample"
        )
        notes.append(f"warning: {what}, either trained on or tested; add samples, or remove {'them' if many else 'it'}")
    unseen = classes[(trained == 0) & (counts > 1)]
    if len(unseen):
        notes.append(
            f"warning: {listed(unseen)}: no sample of this class is trained on; --stratify keeps the shares of "
            "classes, a smaller --test-size leaves more rows to train on"
        )
    return notes


def hidden(
    inputs: TableInputs, columns: Sequence[Cells], encoded: np.ndarray, where: Callable[[int], str]
) -> list[str]:
    """Warnings about columns of numbers that differ, and are equal as inputs beside one that is far larger.

    columns  of the training rows
    encoded  float32 (n, n_inputs), those of ``inputs`` for them
    """
    notes, last = [], 0
    for column, cells in zip(inputs.columns, columns, strict=True):
        first, last = last, last + column.n_inputs
        if cells.values is None:
            continue
        made = encoded[:, first]
        row = int(np.abs(made).argmax())
        if made[row] ** 2 < len(made) / 4 or len(np.unique(made)) > 2:
            continue
        if len(np.unique(cells.values[~cells.missing])) > 2:
            notes.append(
                f"warning: column {cells.name!r}: beside {cells.values[row]:g} in {where(row)} all other numbers are "
                "the same; correct or remove the row"
            )
    return notes


def given_away(
    columns: Sequence[Cells], y: np.ndarray, classes: bool, train: np.ndarray, test: np.ndarray
) -> list[str]:
    """Warnings about single features that tell the label in all rows: known before the label, or a leak?

    A category tells it where each text has one class, a number where thresholds, one per change of class, part the
    classes, or a regression's target is a linear function of it.  The rule is found in the training rows and must hold
    in the test rows.
    """
    if len(y) < FEWEST_GIVEN_AWAY or y.ndim > 1 + (not classes) or (not classes and y.shape[1] > 1) or len(columns) < 2:
        return []
    label = y.reshape(len(y))
    names = [cells.name for cells in columns if _tells(cells, label, classes, train, test)]
    return [
        f"warning: column {name!r} alone tells the label of all rows; if it is known only once the label is (a leak), "
        "leave it out with --drop"
        for name in names[:5]
    ]


def _tells(cells: Cells, y: np.ndarray, classes: bool, train: np.ndarray, test: np.ndarray) -> bool:
    few = train[:1000]
    if cells.missing.any():
        return False
    if not classes:
        x = cells.values
        return x is not None and _is_line(x[few], y[few]) and _is_line(x, y)
    values = cells.values if cells.codes is None else cells.codes.astype(float)
    assert values is not None
    n_classes = int(y.max()) + 1
    for rows in (few, train):
        low, high, of = _runs(values[rows], y[rows])
        if len(low) == 0 or (cells.codes is None and len(low) > n_classes):
            return False
        if cells.codes is not None and len(np.unique(values[rows])) * 5 > len(rows):
            return False
    if cells.codes is not None:  # texts that training has not seen say nothing
        tested = test[np.isin(values[test], values[train])]
        by_text = dict(zip(values[train].tolist(), y[train].tolist(), strict=True))
        return all(
            by_text[value] == label for value, label in zip(values[tested].tolist(), y[tested].tolist(), strict=True)
        )
    places = np.searchsorted(high, values[test]).clip(max=len(high) - 1)
    inside = (values[test] >= low[places]) & (values[test] <= high[places])
    return bool((of[places] == y[test])[inside].all())


def _runs(values: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranges of ``values`` with one class each, and their classes; empty if equal values have different classes."""
    order = np.lexsort((y, values))
    values, y = values[order], y[order]
    changes = np.flatnonzero(np.diff(y))
    if (values[changes] == values[changes + 1]).any():
        return values[:0], values[:0], y[:0]
    first, last = np.append(0, changes + 1), np.append(changes, len(y) - 1)
    return values[first], values[last], y[first]


def _is_line(x: np.ndarray, y: np.ndarray) -> bool:
    """y is a linear function of x, up to rounding, and not constant."""
    x, y = near_one(x), near_one(y)  # squares of large numbers are beyond float64
    x, y = x - x.mean(), y - y.mean()
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return bool(size > 0 and abs(x @ y) > (1 - 1e-9) * size)
