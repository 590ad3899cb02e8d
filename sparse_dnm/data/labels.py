"""Labels: classes or numbers, which task they make, and the split that fits it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparse_dnm.data.cells import INTEGER, Cells, Place, check_range, decimal_of, quoted, short, signs_of, to_number
from sparse_dnm.data.errors import DataError, check_finite, counted
from sparse_dnm.data.options import Reading

SHOWN = 10  # rows or classes in a message


def labels_of(cells: Cells, usual: str, where: Place) -> np.ndarray:
    """The labels of a column without missing cells: int64, float64, bool or text.

    Text that mixes decimals and words is refused as a mistake.
    """
    if cells.codes is None:
        assert cells.values is not None
        if cells.kind == "date":
            raise DataError(f"column {cells.name!r} holds dates; labels are numbers or names: give numbers, as of days")
        check_range(cells, where)
        if cells.kind == "boolean":
            return cells.values != 0
        return cells.values.astype(np.int64) if cells.integers else cells.values
    texts = cells.texts
    integers = _integers(cells)
    if integers is not None:
        return integers
    decimal = decimal_of(cells, usual)
    if decimal is not None:
        numbers = cells.with_values([to_number(text, decimal) for text in texts], "number", decimal)
        check_range(numbers, where, read=cells)
        assert numbers.values is not None
        if all(map(INTEGER.fullmatch, texts)) and len(np.unique(numbers.values)) < len(set(map(int, texts))):
            raise DataError(
                f"column {cells.name!r} holds whole numbers beyond 64 bits, such as {max(texts, key=len)}, some "
                "are equal as float64; write classes as words, as c123 for 123"
            )
        return numbers.values
    if set(texts) <= {"True", "False"}:
        return np.array([text == "True" for text in texts])[cells.codes]
    numeric = [decimal_of(Cells(cells.name, cells.codes, (text,)), usual) is not None for text in texts]
    if all(numeric):
        points, commas = (next(text for text in texts if signs_of((text,)) == {sign}) for sign in ".,")
        raise DataError(
            f"{where(cells.first(commas))}, column {cells.name!r}: {quoted(commas)} has a decimal comma, and "
            f"{points!r} in row {cells.first(points) + 1} a decimal point; write all labels in one way"
        )
    word = numeric.index(False)
    for text, number in zip(texts, numeric, strict=True):
        if number and not INTEGER.fullmatch(text):
            raise DataError(
                f"{where(cells.first(texts[word]))}, column {cells.name!r}: {quoted(texts[word])} is not a number, "
                f"but {text!r} in row {cells.first(text) + 1} is; labels must be all numbers or all words: correct or "
                "remove the row"
            )
    return np.array(texts)[cells.codes]


def _integers(cells: Cells) -> np.ndarray | None:
    """Labels that are whole numbers of 64 bits, exactly; None for others."""
    if not all(map(INTEGER.fullmatch, cells.texts)):
        return None
    values = [int(text) for text in cells.texts]
    for dtype in (np.int64, np.uint64):
        limits = np.iinfo(dtype)
        if limits.min <= min(values, default=0) and max(values, default=0) <= limits.max:
            return np.array(values, dtype)[cells.codes]
    return None


DROPPED = "or remove the row, or leave all such rows out with --drop-unlabelled"


def unlabelled(cells: Cells, raw: Any, where: Place, drop: bool, in_time: bool = False) -> np.ndarray:
    """bool (n,): rows without a label.  Raises DataError naming them unless they are to be dropped.

    raw      gives the text of a row's cell
    in_time  rows are steps of sequences, which cannot be dropped
    """
    missing = cells.missing
    if not missing.any():
        return missing
    rows = np.flatnonzero(missing)
    if not drop:
        words = sorted({text for text in map(raw, rows.tolist()) if text})
        written = f" (written {', '.join(map(quoted, words[:5]))})" if words else ""
        count = f"; {len(rows):,} values are missing (rows {listed(rows + 1)})" if len(rows) > 1 else ""
        rename = f"; if {quoted(words[0])} is the name of a class, write it otherwise in the file" if words else ""
        raise DataError(
            f"{where(int(rows[0]))}, column {cells.name!r}: the label is missing{written}{count}: complete "
            + ("it, as each step of a sequence needs one" if in_time else DROPPED)
            + rename
        )
    if missing.all():
        raise DataError(f"column {cells.name!r} has no label in any row; name another one with --target")
    return missing


def classes_of(where: str, y: np.ndarray, task: str | None) -> np.ndarray | None:
    """The distinct labels in order, or None if y is the target of a regression.

    Integers are recognised by dtype, in a table by the missing decimal point: 3.0 is a regression target, unless the
    task says otherwise.  Several columns are a regression.
    """
    text = y.dtype.kind == "U"
    if task == "regression" or (task is None and (y.ndim == 2 or y.dtype.kind == "f")):
        if text:
            raise DataError(f"{where} holds text such as {y.flat[0]!s}; task='regression' needs numbers")
        return None
    if y.ndim == 2:
        raise DataError(f"{where} has shape {y.shape}; a classification has one column of labels: choose it, or encode")
    check_finite(where, y)
    classes = np.unique(y)
    n = len(classes)
    if task is None and not text and n > max(20, math.isqrt(len(y))):
        return None
    if n < 2:
        raise DataError(f"{where} holds the one class {short(str(classes[0]))}; a classification needs at least two")
    if n > max(20, len(y) // 2):
        what = "texts" if text else "numbers"
        raise DataError(
            f"{where} holds {n:,} different {what} in {len(y):,} samples, such as {quoted(str(classes[-1]))}; classes "
            "must repeat: write numbers as numbers, or name another label column (--target)"
        )
    return classes


def check_varies(where: str, y: np.ndarray, names: Sequence[str] = ()) -> None:
    """Raise DataError if a target of a regression, (n, columns), is the same number in all rows."""
    for k in range(y.shape[1]):
        if len(y) > 1 and (y[:, k] == y[0, k]).all():
            which = f"column {names[k]!r}" if k < len(names) else f"column {k} (from 0)" if y.shape[1] > 1 else "y"
            raise DataError(
                f"{where}: {which} holds the one number {y[0, k]:g} in all rows; a regression needs targets "
                "that differ: name another one"
            )


def groups_of(cells: Cells) -> tuple[np.ndarray, list[str]]:
    """A number for the group of each row, and notes: rows without one are each a group of their own."""
    assert cells.codes is not None
    gaps = np.flatnonzero(cells.missing)
    if not len(gaps):
        return cells.codes, []
    groups = cells.codes.copy()
    groups[gaps] = len(cells.texts) + np.arange(len(gaps))
    note = f"warning: column {cells.name!r}: {counted(len(gaps), 'row')} without a group, each taken as one of its own"
    return groups, [note]


def share_note(reading: Reading, n: int, n_test: int) -> list[str]:
    """A warning where whole groups made the test much larger or smaller than it was to be."""
    size = 0.2 if reading.test_size is None else reading.test_size
    wanted = size * n if size < 1 else size
    if 0.5 * wanted <= n_test <= 1.5 * wanted:
        return []
    return [
        f"warning: the test has {n_test:,} of {n:,} rows, {n_test / n:.0%} instead of {wanted / n:.0%}, as the rows of "
        "a group stay together and groups differ in size; change --test-size"
    ]


def encode(where: str, y: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """int64 indices into ``classes``, or finite numbers (n, columns) if there are none."""
    if classes is None:
        if y.dtype.kind == "U":
            raise DataError(f"{where} holds text, but y numbers of a regression; give numbers in both")
        check_finite(where, y)
        return (y.astype(np.int64) if y.dtype.kind == "b" else y).reshape(len(y), -1)
    if y.ndim != 1 or (y.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise DataError(f"{where} is {y.dtype} {y.shape}; it must hold labels as y does: {classes.dtype} (n,)")
    index = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    unseen = classes[index] != y
    if unseen.any():
        row = int(np.argmax(unseen))
        raise DataError(
            f"{where}: {short(str(y[row]))} in row {row} (from 0) is no class of y, which holds {listed(classes, 20)}; "
            "correct it, or add samples of it to y"
        )
    return index


def split(
    name: str, y: np.ndarray, seed: int, classes: np.ndarray | None, reading: Reading, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a seeded split, by default 80/20; y is what `encode` gives.

    It is stratified if each class has two members and both sides can hold all classes.  Equal ``groups`` stay
    together.
    """
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    n, size = len(y), reading.test_size
    n_test = -(-n // 5) if size is None else math.ceil(round(size * n, 9)) if size < 1 else int(size)
    if n < 5 and size is None:
        raise DataError(
            f"{name} has {counted(n, 'sample')}; a split 80/20 needs at least 5: add some, or give x_test and "
            "y_test in a .npz"
        )
    if not 0 < n_test < n:
        raise DataError(f"test_size={size:g} leaves {n - n_test:,} of {n:,} rows to train on; give less")
    state = seed % 2**32
    if groups is not None:
        if len(np.unique(groups)) < 2:
            what = "group" if reading.sequence is None else "sequence"
            raise DataError(
                f"{what}={getattr(reading, what)!r} has one value in all rows; a split needs at least two {what}s"
            )
        parts = GroupShuffleSplit(1, test_size=n_test / n, random_state=state).split(y, groups=groups)
        try:
            train, test = next(parts)
        except ValueError:
            raise DataError(
                f"test_size={n_test / n:g} of {len(np.unique(groups)):,} groups leaves none to train on; give less"
            ) from None
        return train, test
    able = reading.stratify
    if classes is None:
        if able:
            raise DataError("stratify keeps the shares of classes, and this is a regression; leave it out")
        able = False
    else:
        counts = np.bincount(y, minlength=len(classes))
        fits = counts.min() >= 2 and min(n_test, n - n_test) >= len(counts)
        if able and not fits:
            raise DataError(
                f"stratify: class {classes[counts.argmin()]!s} has {counted(int(counts.min()), 'sample')}, and "
                f"{counted(n_test, 'test row')} for {len(counts)} classes; each needs 2 samples and a test row: leave "
                "it out, or add samples"
            )
        able = fits if able is None else able
    train, test = train_test_split(np.arange(n), test_size=n_test, random_state=state, stratify=y if able else None)
    return train, test


def task_note(y: np.ndarray, classes: np.ndarray | None, task: str | None) -> str:
    """A note where the labels could have been meant as the other task; empty where there is no doubt."""
    if task is not None or y.ndim == 2 or y.dtype.kind in "Ub":
        return ""
    if classes is not None:
        return "integers are classes; --task regression takes them as numbers" * (len(classes) > 2)
    n = len(np.unique(y))
    if np.array_equal(y, np.floor(y)) and n <= len(y) // 5:
        return f"{n} different whole numbers are taken as numbers; --task classification makes them classes"
    return ""


def listed(values: Sequence[Any] | np.ndarray, most: int = SHOWN) -> str:
    """The first values, with commas between them."""
    return ", ".join(short(str(value)) for value in values[:most]) + (", ..." if len(values) > most else "")
