"""Options of reading data: which columns, which task, which split."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sparse_dnm.data.errors import DataError

TASKS = ("classification", "regression")
CHANNELS = ("first", "last")
SEQUENCES = ("sequence", "per_step", "window", "horizon")
TABLE_ONLY = ("target", "drop", "keep", "categories", "header", "group", "drop_unlabelled", *SEQUENCES)
ARRAYS_ONLY = ("channels",)
RULES = 2  # by which data are read: those of this version


@dataclass(frozen=True)
class Reading:
    """How data are read; each is an option of the command line, too (``drop_unlabelled`` is --drop-unlabelled).

    target           label columns of a table (several for a regression of several numbers); default: the last column
    drop             columns to leave out
    keep             columns to keep although they look like an index or an ID
    categories       columns whose numbers are names, such as codes: an input for each
    task             "classification" or "regression"; default: as the labels are
    header           "none": the first line of the file holds data; "first": names; default: names, checked
    test_size        share of the rows to test on (0.2), or a number of rows (50); with ``group`` about that share
    stratify         the split keeps the shares of the classes; default: where it can
    group            column of a table whose equal values stay on one side of the split; it is no feature
    channels         of images in arrays: "first" or "last"; default: as their sizes say
    drop_unlabelled  leave rows out that lack a label
    sequence         column of a table whose equal values make one sequence of their rows, in the file's order; it is no
                     feature, and a sequence stays on one side of the split
    per_step         each row of a sequence has a label; default: a sequence has one, that of its last row
    window           rows of a sequence, of a table in the order of time: each so many in a row are one, whose label is
                     that of a later row; the test is the end of the table
    horizon          how many rows after the window's last that is; default 1
    earlier          read as earlier versions did, for their runs: no column is refused, one-hot rows are numbers, and
                     images have their channels last; no option of the command line
    rules            1 in runs of earlier versions: inputs that did not vary in training may vary later, and zeros
                     before numbers are passed over; no option of the command line
    """

    target: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    task: str | None = None
    header: str | None = None
    test_size: float | None = None
    stratify: bool | None = None
    group: str | None = None
    channels: str | None = None
    drop_unlabelled: bool = False
    sequence: str | None = None
    per_step: bool = False
    window: int | None = None
    horizon: int | None = None
    earlier: bool = False
    rules: int = RULES

    def __post_init__(self) -> None:
        for name in ("target", "drop", "keep", "categories"):
            object.__setattr__(self, name, names_in(getattr(self, name)))
        for name in ("group", "sequence"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        object.__setattr__(self, "test_size", _size(self.test_size))
        for name, legal in (("task", TASKS), ("header", ("first", "none")), ("channels", CHANNELS)):
            if getattr(self, name) not in (None, *legal):
                raise DataError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(legal)}")
        size = self.test_size
        if size is not None and not (0 < size < 1 or (1 <= size < math.inf and size == int(size))):
            raise DataError(f"test_size={size:g} must be a share in 0 .. 1 of the rows, or a whole number of rows")
        if self.group is not None and self.stratify:
            raise DataError(f"stratify and group={self.group!r} are two rules for one split; give one of them")
        self._check_sequences()

    def _check_sequences(self) -> None:
        """Raise DataError for options of sequences that do not go together."""
        for name in ("window", "horizon"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise DataError(f"{name}={value!r} must be a whole number of rows, 1 or more")
        if self.horizon is not None and self.window is None:
            raise DataError(f"horizon={self.horizon} is how far a window looks ahead; give window as well")
        if self.per_step and self.sequence is None:
            raise DataError("per_step is about the rows of a sequence; give sequence, a column, as well")
        chosen = next((name for name in ("sequence", "window") if getattr(self, name) is not None), None)
        if chosen is None:
            return
        others = {
            "window": chosen == "sequence" and "makes sequences of a table that has none",
            "group": "keeps rows on one side of the split, which they are with it anyway",
            "stratify": "keeps the shares of classes in a split by rows",
            "drop_unlabelled": "leaves rows out, and time would have gaps (give all rows of a sequence its label)",
        }
        for name, reason in others.items():
            if reason and getattr(self, name) not in (None, False):
                raise DataError(f"{name} {reason}: {chosen}={getattr(self, chosen)!r} does not go with it")

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: value for name, value in found.items() if name not in ("earlier", "rules")}

    def check_for(self, name: str, unfit: Sequence[str], what: str) -> None:
        """Raise DataError if one of the options ``unfit`` is given, which are for ``what`` only."""
        for option in unfit:
            if option in self.given:
                value = getattr(self, option)
                shown = value[0] if isinstance(value, tuple) and len(value) == 1 else value
                raise DataError(f"{option}={shown!r} is for {what}, and {name} is none; leave it out")


def names_in(value: Any) -> tuple[str, ...]:
    """Names of columns: one, or several; a name that is a number, as pandas gives it, is its text."""
    if value is None:
        return ()
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    return tuple(map(str, value)) if several else (str(value),)


def _size(value: Any) -> float | None:
    """A size of the test as a number.  Raises DataError for what is none."""
    try:
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise DataError(
            f"test_size={value!r} must be a share in 0 .. 1 of the rows, or a whole number of rows"
        ) from None


def find(option: str, wanted: Sequence[str], names: Sequence[str], where: str) -> list[str]:
    """The columns that an option names; one name may hold several with commas between them.

    Raises DataError for a name that no column has, with those that are alike.
    """
    found = []
    for text in wanted:
        parts = [text] if text in names else [part.strip() for part in text.split(",")]
        for part in parts:
            if part not in names:
                near = difflib.get_close_matches(part, names, 3, 0.6)
                hint = f"; do you mean {' or '.join(map(repr, near))}?" if near else ""
                raise DataError(
                    f"{option}={part!r} names 0 columns of {where}; choose one of {', '.join(names[:50])}"
                    f"{', ...' * (len(names) > 50)}{hint}"
                )
            found.append(part)
    return found
