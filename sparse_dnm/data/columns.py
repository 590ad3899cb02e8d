"""Columns of a table as inputs of a network: fitted on the training rows, kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.data.cells import DECIMAL, DURATION, Cells, Place, cells_of, check_range, days_in, durations_in, quoted
from sparse_dnm.data.errors import BEYOND, FLOAT32_MAX, DataError
from sparse_dnm.data.options import RULES
from sparse_dnm.data.plain import plain
from sparse_dnm.data.scales import LARGE, moments, near_one, standardised
from sparse_dnm.data.spelling import TEXT, numbers_in, respelled

MOST_LEVELS = 32  # of a column that get an input of their own
LEAST_SHARE = 0.002  # of the training rows, and 2 rows, that such a level has
UNSEEN = 0.9  # share of cells with levels unseen in training that is said
EXPECTED = 5  # cells with a known level that chance would give, where rare levels are not kept: fewer say nothing


@dataclass(frozen=True)
class Column:
    """A column and the inputs that it becomes.

    A number, boolean (0 and 1) or date (days) becomes (value - mean) / std, and where training rows lack it, a second
    input that is 1 if it is missing; the mean then stands for it.  A category becomes an input of 0 and 1 for each
    level, for all others together, and for a missing one, where training rows have such.
    """

    name: str
    kind: str  # number, boolean, date or category
    form: str = ""  # how texts are read; see Cells, and for a category `as_codes`
    mean: float = 0.0  # of the training rows
    std: float = 1.0
    levels: tuple[str, ...] = ()  # of a category, the most frequent first
    others: bool = False  # a category has an input for all other texts
    missing: bool = False  # there is an input for missing cells
    grouped: bool | None = None  # numbers had separated thousands in training; None where that was not kept
    rare: float | None = None  # share of the training cells whose level has no input of its own
    constant: tuple[int, ...] = ()  # places of inputs that were equal in all training rows: they stay as they were

    @property
    def n_inputs(self) -> int:
        """Inputs that it becomes."""
        own = len(self.levels) + self.others if self.kind == "category" else 1
        return own + self.missing

    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of its inputs; those of 0 and 1 are not standardised."""
        first = 0 if self.kind == "category" else 1
        rest = self.n_inputs - first
        return [self.mean] * first + [0.0] * rest, [self.std] * first + [1.0] * rest

    def read(self, cells: Cells, where: Place, usual: str | None = None) -> Cells:
        """The cells as the column's kind has them; ``usual`` is the decimal sign of the file that they are from.

        Raises DataError naming the row of a cell that does not fit.
        """
        if self.kind == "category":
            return respelled(cells.as_text(days=not self.form), self.form)
        if cells.codes is None:
            self._check_kind(cells, where)
            return cells
        if self.kind == "number" and self.form == DURATION:
            values: Any = durations_in(cells.texts)
        elif self.kind == "number":
            values = numbers_in(cells, self.form or ".", usual, self.grouped, where)
        elif self.kind == "boolean":
            values = [self._truth(text) for text in cells.texts]
        else:
            values = self._days(cells.texts)
        bad = [text for text, value in zip(cells.texts, values, strict=True) if value != value]
        if bad:
            raise self._unfit(where(cells.first(bad[0])), quoted(bad[0]))
        return cells.with_values(values, self.kind, self.form)

    def _unfit(self, place: str, shown: str) -> DataError:
        form = f" of the format {self.form or 'ISO8601'}" if self.kind == "date" else ""
        iso = ", write it as 2020-01-31" if self.kind == "date" else ""
        kind = "duration, such as '61 days'" if self.form == DURATION else f"{self.kind}{form}"
        return DataError(
            f"{place}, column {self.name!r}: {shown} is no {kind}, as the column was in training; correct the "
            f"cell{iso}, or write a missing one as NA"
        )

    def _check_kind(self, cells: Cells, where: Place) -> None:
        """Raise DataError if cells that have a type are of another kind than the column."""
        assert cells.values is not None
        if self.kind == "date" or cells.kind == "date":
            bad = ~cells.missing if cells.kind != self.kind else np.zeros(len(cells), bool)
        elif self.kind == "boolean":
            bad = ~(cells.missing | (cells.values == 0) | (cells.values == 1))
        else:
            return
        if bad.any():
            row = int(np.argmax(bad))
            text = cells.rows(np.array([row])).as_text().texts[0]
            raise self._unfit(where(row), quoted(text))

    def unseen(self, cells: Cells) -> str:
        """A warning if nearly all cells that `read` gave have levels unseen in training, or are missing unlike there;
        "" if not."""
        if self.kind != "category" and not self.missing:
            n_missing = int(cells.missing.sum())
            if not n_missing or n_missing < UNSEEN * len(cells):
                return ""
            return (
                f"column {self.name!r}: {n_missing:,} of {len(cells):,} cells are missing, and in training none was: "
                f"they are filled by the mean {self.mean:.4g}, and the column tells nothing there"
            )
        if self.kind != "category" or not self.levels or (self.others and self.rare is None):
            return ""
        assert cells.codes is not None
        n = int((cells.codes >= 0).sum())
        known = [text in self.levels for text in cells.texts]
        bad = (cells.codes >= 0) & ~np.array([*known, True])[cells.codes]
        n_bad = int(bad.sum())
        if not n_bad or n_bad < UNSEEN * n or (self.others and (1 - (self.rare or 0)) * n < EXPECTED):
            return ""
        row = int(np.argmax(bad))
        text = cells.texts[cells.codes[row]]
        levels = ", ".join(quoted(level, 20) for level in self.levels[:5]) + ", ..." * (len(self.levels) > 5)
        padded = next((level for level in self.levels if level.lstrip("0") == text != level), "")
        zeros = f"; zeros before numbers seem lost, as in {padded!r}: read the column as text" if padded else ""
        return (
            f"column {self.name!r}: {n_bad:,} of {n:,} cells hold a level that has no input, such as {quoted(text)} in "
            f"row {row} (from 0), and training had {levels}: the column tells nothing there; check how it is written"
            f"{zeros}"
        )

    def unlike(self, changed: np.ndarray, cells: Cells) -> str:
        """A warning if cells would change inputs that did not vary in training; "" if not.

        changed  bool (n,), the rows in which they would
        """
        if not changed.any():
            return ""
        row = int(np.argmax(changed))
        text = cells.rows(np.array([row])).as_text().texts
        had = "they were missing"
        if self.kind == "category" and self.levels:
            had = f"they held {quoted(self.levels[0], 20)}"
        elif self.kind != "category" and not (self.missing and self.constant[-1] == 1):
            had = f"those with a value held {self.mean:.6g}"
        return (
            f"column {self.name!r}: {int(changed.sum()):,} of {len(cells):,} cells are unlike those of the training, "
            f"such as {quoted(text[0]) if text else 'a missing one'} in row {row} (from 0): in all training rows {had}"
            ", so that nothing was learned about others, and the column tells nothing there"
        )

    def _truth(self, text: str) -> float:
        words = self.form.split("/") if self.form else ["false", "true"]
        known = (*words, "0", "1", "false", "true")
        return float(known.index(text.casefold()) % 2) if text.casefold() in known else np.nan

    def _days(self, texts: Sequence[str]) -> list[float]:
        """Days of dates in the column's format or as ISO 8601 has them; NaN for others."""
        for form in (self.form or "ISO8601", "ISO8601"):
            found = days_in(texts, form)
            if found is not None:
                return found.tolist()
        return [self._days([text])[0] for text in texts] if len(texts) > 1 else [np.nan] * len(texts)

    def inputs(self, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
        """float64 (n, n_inputs) of cells that `read` gave; and bool (n,): they would change a constant input.

        A constant input stays as in training: 0 for a value, 1 for the only level, and for a column that was empty.
        """
        out = self._varying(cells)
        places = list(self.constant)
        kept = np.array([float(k > 0 or self.kind == "category") for k in places])
        changed = (out[:, places] != kept).any(1)
        out[:, places] = kept
        return out, changed

    def _varying(self, cells: Cells) -> np.ndarray:
        """The inputs as if all of them had varied in training."""
        out = np.zeros((len(cells), self.n_inputs))
        missing = cells.missing
        if self.missing:
            out[:, -1] = missing
        if self.kind != "category":
            assert cells.values is not None
            values = np.where(missing, self.mean, cells.values)
            out[:, 0] = standardised(values, self.mean, self.std)
            return out
        assert cells.codes is not None
        places = {level: k for k, level in enumerate(self.levels)}
        none = len(self.levels)
        where = np.array([*(places.get(text, none) for text in cells.texts), none])[cells.codes]
        if not self.missing and self.others:  # a cell that is missing for the first time is like an unknown text
            missing = np.zeros(len(cells), bool)
        width = none + self.others
        rows = np.flatnonzero(~missing & (where < width))
        out[rows, where[rows]] = 1.0
        return out


def fitted(
    columns: Sequence[Cells], train: np.ndarray, weights: np.ndarray | None = None, rules: int = RULES
) -> list[Column]:
    """The columns, fitted on the rows ``train``: means, deviations and levels are those of these rows.

    weights  float64 (len(train),) of these rows in means, deviations and the order of levels; whether a level is
             frequent enough for an input is counted in rows
    rules    of `Reading`
    """
    made: list[Column] = []
    numeric = [cells.rows(train) for cells in columns if cells.codes is None]
    found = iter(zip(*_moments_of(numeric, weights), strict=True)) if numeric else iter(())
    for cells in columns:
        seen = cells.rows(train)
        missing = bool(seen.missing.any())
        if cells.codes is None:
            mean, std = next(found)
            grouped = cells.grouped if cells.kind == "number" else None
            made.append(
                Column(cells.name, cells.kind, cells.form, float(mean), float(std), missing=missing, grouped=grouped)
            )
            continue
        assert seen.codes is not None
        counts = np.bincount(seen.codes[seen.codes >= 0], minlength=len(cells.texts))
        sums = counts
        if weights is not None:
            present = seen.codes >= 0
            sums = np.bincount(seen.codes[present], near_one(weights)[present], len(cells.texts))
        order = sorted(np.flatnonzero(counts), key=lambda k, c=sums, t=cells.texts: (-c[k], t[k]))  # type: ignore[misc]
        least = max(2, round(LEAST_SHARE * len(seen)))
        kept = [k for k in order if counts[k] >= least][:MOST_LEVELS]
        others = len(kept) < len(order)
        levels = tuple(cells.texts[k] for k in kept)
        rare = 1 - counts[kept].sum() / max(counts.sum(), 1) if others else None
        form = cells.form or TEXT
        made.append(
            Column(
                cells.name, "category", form, levels=levels, others=others, missing=missing, rare=rare and float(rare)
            )
        )
    if rules < 2:
        return made
    return [
        replace(column, constant=_constant(column, cells.rows(train)))
        for column, cells in zip(made, columns, strict=True)
    ]


def _constant(column: Column, cells: Cells) -> tuple[int, ...]:
    """Places of the inputs of a column that are equal in all training rows."""
    if column.kind != "category":
        assert cells.values is not None
        present = cells.values[~cells.missing]
        varies = len(present) > 0 and present.min() < present.max()
        return (() if varies else (0,)) + ((1,) if not len(present) else ())
    return (0,) if column.n_inputs == 1 and not column.others else ()


def _moments_of(columns: Sequence[Cells], weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of columns of numbers, whose missing cells have the mean of the others (0 if all miss)."""
    values = np.stack([cells.values for cells in columns if cells.values is not None], axis=1)
    gaps = np.isnan(values)
    if gaps.any():
        weights = None if weights is None else near_one(weights)
        present = ~gaps if weights is None else weights[:, None] * ~gaps
        sums = present.sum(0)
        filled = np.where(gaps, 0.0, values)
        factor = np.where(np.abs(filled).max(0) > LARGE, 2.0**-64, 1.0)  # so that the sum is within float64
        total = (filled * factor if weights is None else filled * factor * weights[:, None]).sum(0)
        mean = total / np.where(sums > 0, sums, 1) / factor
        values[gaps] = np.broadcast_to(mean, values.shape)[gaps]
    return moments(values, (0,), weights)


@dataclass(frozen=True, eq=False)
class TableInputs:
    """Inputs from the columns of a table."""

    columns: tuple[Column, ...]
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(column.name for column in self.columns))

    @property
    def n_inputs(self) -> int:
        """Inputs of the network."""
        return sum(column.n_inputs for column in self.columns)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of every input, float64 (n_inputs,)."""
        parts = [column.moments() for column in self.columns]
        return np.concatenate([mean for mean, _ in parts]), np.concatenate([std for _, std in parts])

    def transform(
        self, samples: Any, where: str = "X", dtype: torch.dtype = torch.float32, warned: list[str] | None = None
    ) -> Tensor:
        """Inputs (n, n_inputs) of a DataFrame, whose columns are taken by name, or an array (n, columns).

        ``warned`` gets warnings about columns whose levels are unseen in training.
        Raises DataError naming columns that are missing, or the row and column of a bad value.
        """
        import pandas as pd

        if not hasattr(samples, "columns"):
            values = plain(where, samples)
            if values.ndim != 2 or values.shape[1] != len(self.names):
                raise DataError(
                    f"{where} has shape {values.shape}; it must be (n, {len(self.names)}), a row for each sample with "
                    f"the columns {', '.join(self.names[:20])}{', ...' * (len(self.names) > 20)}"
                )
            samples = pd.DataFrame(values).infer_objects()
            samples.columns = pd.Index(self.names)
        usual = getattr(samples, "attrs", {}).get(DECIMAL)
        frame = chosen(samples, self.names)
        cells = [cells_of(name, frame.iloc[:, k]) for k, name in enumerate(self.names)]
        return self.encode(cells, lambda row: f"{where}, row {row} (from 0)", dtype, usual, warned)

    def encode(
        self, cells: Sequence[Cells], where: Place, dtype: torch.dtype = torch.float32, usual: str | None = None,
        warned: list[str] | None = None,
    ) -> Tensor:  # fmt: skip
        """The same from the cells of the columns; ``usual`` is the decimal sign of the file that they are from."""
        inputs = np.empty((len(cells[0]), self.n_inputs), np.float32 if dtype == torch.float32 else np.float64)
        first = 0
        for column, each in zip(self.columns, cells, strict=True):
            read = column.read(each, where, usual)
            check_range(read, where, "features", each)
            last = first + column.n_inputs
            made, changed = column.inputs(read)
            if read.values is not None and not (np.abs(made[:, 0]) <= FLOAT32_MAX).all():
                row = int(np.argmax(~(np.abs(made[:, 0]) <= FLOAT32_MAX)))
                raise DataError(
                    f"{where(row)}, column {column.name!r}: {read.values[row]:g} is {BEYOND}; correct or remove the row"
                )
            inputs[:, first:last] = made
            first = last
            if warned is not None:
                warned += [text for text in (column.unlike(changed, read) or column.unseen(read),) if text]
        return torch.from_numpy(inputs)

    def to_json(self) -> dict[str, Any]:
        """This as JSON values."""
        return {"kind": "table", "columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TableInputs:
        """The inverse of `to_json`."""
        columns = [Column(**each) for each in values["columns"]]
        return cls(tuple(replace(each, levels=tuple(each.levels), constant=tuple(each.constant)) for each in columns))

    def varied(self, frame: Any, weights: np.ndarray | None = None) -> TableInputs:
        """The same for a training that goes on with ``frame``: inputs that vary in it are constant no longer.

        Numbers that did not vary before are standardised by those of ``frame``.
        """
        if not any(column.constant for column in self.columns):
            return self
        made = []
        for column, series in zip(self.columns, (s for _, s in chosen(frame, self.names).items()), strict=True):
            if column.constant:
                cells = column.read(cells_of(column.name, series), lambda row: f"X, row {row} (from 0)")
                _, changed = column.inputs(cells)
                if changed.any() and cells.values is not None:
                    (now,) = fitted([cells], np.arange(len(cells)), weights)
                    if not now.constant or column.missing:
                        column = replace(column, mean=now.mean, std=now.std)
                column = replace(column, constant=() if changed.any() else column.constant)
            made.append(column)
        return TableInputs(tuple(made))


def chosen(frame: Any, names: tuple[str, ...]) -> Any:
    """The columns ``names`` of a DataFrame.  Raises DataError naming those that are missing or there twice."""
    found = [str(name).strip() for name in frame.columns]
    if found and found[0] == "" and "Unnamed: 0" in names:  # as files have it
        found[0] = "Unnamed: 0"
    places = {name: k for k, name in reversed(list(enumerate(found)))}
    missing = [name for name in names if name not in places]
    if missing:
        raise DataError(
            f"the table lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}, which the training "
            f"had; it has {', '.join(map(repr, found[:20]))}{', ...' * (len(found) > 20)}"
        )
    if len(places) < len(found):
        twice = [name for name in names if found.count(name) > 1]
        if twice:
            raise DataError(f"the table has the column {twice[0]!r} twice; rename or remove one of them")
    return frame.iloc[:, [places[name] for name in names]]
