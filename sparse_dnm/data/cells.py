"""What the cells of a column hold: numbers, words for yes and no, dates, texts, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparse_dnm.data.errors import DataError
from sparse_dnm.wording import words

# A cell with one of these texts is missing: those of pandas.read_csv, and the question mark of the UCI repository
MISSING = frozenset(
    ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "<NA>", "#N/A")
) | {"#N/A N/A", "#NA", "-1.#IND", "1.#IND", "-1.#QNAN", "1.#QNAN"}
WORDS = (("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t"), ("off", "on"))
INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)  # may fit int64 or uint64
DECIMAL = "sparse_dnm.decimal"  # in the attributes of a DataFrame: the decimal sign of the file that it was read from
EXACT = 2**53  # whole numbers up to it are exact in float64
NUMBER = {
    decimal: re.compile(
        rf"[+-]?(?:(?:\d+{point}?\d*|{point}\d+)(?:e[+-]?\d+)?|\d{{1,3}}(?:{group}\d{{3}})+(?:{point}\d*)?|inf|infinity)",
        re.ASCII | re.IGNORECASE,
    )
    for decimal, point, group in ((".", r"\.", ","), (",", ",", r"\."))
}
DATES = {
    "ISO8601": r"\d{4}-\d\d-\d\d([ T].*)?",
    "%Y/%m/%d": r"\d{4}/\d\d?/\d\d?( .*)?",
    "%d.%m.%Y": r"\d\d?\.\d\d?\.\d{4}( .*)?",
    "%m/%d/%Y": r"\d\d?/\d\d?/\d{4}( .*)?",
    "%d/%m/%Y": r"\d\d?/\d\d?/\d{4}( .*)?",
    "%d-%m-%Y": r"\d\d?-\d\d?-\d{4}( .*)?",
    "%d %b %Y": r"\d\d? [a-z]{3} \d{4}",
    "%d-%b-%Y": r"\d\d?-[a-z]{3}-\d{4}",
    "%b %d, %Y": r"[a-z]{3} \d\d?, \d{4}",
}
TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")  # that may follow a date
DURATION = "days"  # the form of numbers that were durations
DAY = np.timedelta64(1, "D")
Place = Callable[[int], str]  # how an error names a row


@dataclass(frozen=True, eq=False)
class Cells:
    """A column: distinct texts and a code per row, or numbers.

    codes    int64 (n,), places in ``texts``, -1 for a missing cell; None for a column of numbers
    texts    the distinct texts
    values   float64 (n,), NaN for a missing cell; None for a column of texts
    kind     "text", "number", "boolean" or "date" (in days since 1970)
    form     how texts were read as values: the decimal sign, the two words, or the format of dates; "days" of durations
    integers whether numbers are of an integer dtype, or were before cells were missing
    grouped  whether thousands were separated in the texts of numbers
    """

    name: str
    codes: np.ndarray | None = None
    texts: tuple[str, ...] = ()
    values: np.ndarray | None = None
    kind: str = "text"
    form: str = ""
    integers: bool = False
    grouped: bool = False

    def __len__(self) -> int:
        """Rows."""
        column = self.values if self.codes is None else self.codes
        assert column is not None
        return len(column)

    @property
    def missing(self) -> np.ndarray:
        """bool (n,): the cell is missing."""
        if self.codes is not None:
            return self.codes < 0
        assert self.values is not None
        return np.isnan(self.values)

    def rows(self, chosen: np.ndarray) -> Cells:
        """The same column in some of the rows."""
        codes, values = (None if part is None else part[chosen] for part in (self.codes, self.values))
        return replace(self, codes=codes, values=values)

    def as_text(self, days: bool = False) -> Cells:
        """A column of numbers as texts: 2 and 2.0 are "2"; of dates as ISO 8601, or the number of ``days``."""
        if self.codes is not None:
            return self
        assert self.values is not None
        if self.kind == "date" and not days:
            return _coded(self.name, [None if v != v else _iso(v) for v in self.values.tolist()])
        if self.kind == "boolean":
            names = {0.0: "False", 1.0: "True"}
            return _coded(self.name, [None if v != v else names[v] for v in self.values.tolist()])
        return _coded(self.name, [None if v != v else written(v) for v in self.values.tolist()])

    def with_values(self, by_text: Sequence[float] | np.ndarray, kind: str, form: str) -> Cells:
        """Numbers in place of the texts."""
        assert self.codes is not None
        values = np.append(np.asarray(by_text, np.float64), np.nan)[self.codes]
        return Cells(self.name, values=values, kind=kind, form=form)

    def first(self, text: str) -> int:
        """The first row with this text."""
        assert self.codes is not None
        return int(np.argmax(self.codes == self.texts.index(text)))


def written(value: float) -> str:
    """A number as text; whole ones without a point."""
    return str(int(value)) if value == int(value) and abs(value) < EXACT else repr(value)


def _iso(days: float) -> str:
    """Days since 1970 as a date, with the time of day where it is not midnight."""
    import pandas as pd

    return str(pd.Timestamp(0) + pd.Timedelta(days, "D").round("us")).removesuffix(" 00:00:00")


def short(text: str, most: int = 60) -> str:
    """A text as messages show it; a long one is cut."""
    return text if len(text) <= most else text[: most - 3] + "..."


def quoted(text: str, most: int = 60) -> str:
    """The same in quotes."""
    return repr(short(text, most))


def _coded(name: str, texts: Sequence[str | None]) -> Cells:
    """Cells of texts, None where missing."""
    places: dict[str, int] = {}
    codes = np.fromiter((-1 if t is None else places.setdefault(t, len(places)) for t in texts), np.int64, len(texts))
    return Cells(name, codes, tuple(places))


def cells_of(name: str, series: Any) -> Cells:
    """The cells of a pandas Series.  Raises DataError for one that holds neither numbers, dates nor texts."""
    import pandas as pd

    kind, dtype = getattr(series.dtype, "kind", "O"), series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return cleaned(name, series.cat.codes.to_numpy(np.int64), series.cat.categories.tolist())
    if kind in "iu" and not isinstance(dtype, pd.SparseDtype) and _is_huge(series):
        codes, distinct = pd.factorize(series)  # float64 would merge some
        return cleaned(name, codes.astype(np.int64), [int(value) for value in distinct])
    if kind in "biuf" and not isinstance(dtype, pd.SparseDtype):
        values = series.to_numpy(np.float64, na_value=np.nan)
        present = values[~np.isnan(values)]  # with gaps, pandas keeps integers as floats
        whole = kind in "iu" or (len(present) < len(values) and bool((present == np.floor(present)).all()))
        whole = whole and bool((np.abs(present) <= EXACT).all())
        return Cells(name, values=values, kind="boolean" if kind == "b" else "number", integers=whole)
    if isinstance(dtype, pd.SparseDtype):
        return cells_of(name, series.sparse.to_dense())
    if kind == "M":
        return Cells(name, values=_days(series), kind="date")
    if kind == "m":
        days = (series / pd.Timedelta(1, "D")).to_numpy(np.float64, na_value=np.nan)
        return Cells(name, values=days, kind="number", form=DURATION)
    if kind == "c":
        raise DataError(f"column {name!r} has dtype {dtype}; features must be real numbers: convert or encode them")
    try:
        codes, distinct = pd.factorize(series)
        if any(not isinstance(value, str) and value in (0, 1) for value in distinct):  # True and 1 are equal
            plain = [_text(value) if isinstance(value, (bool, np.bool_)) else value for value in series.array]
            codes, distinct = pd.factorize(np.array([*plain, None], object)[:-1])
    except TypeError:
        value = next(value for value in series if not isinstance(value, (str, int, float)))
        raise DataError(
            f"column {name!r} holds a {type(value).__name__}; a cell must be a number, a date or a text: split it into "
            f"columns, or leave it out with {words().name('drop')}"
        ) from None
    return cleaned(name, codes.astype(np.int64), list(distinct))


def _is_huge(series: Any) -> bool:
    """Integers that float64 does not tell apart."""
    present = series.dropna()
    return len(present) > 0 and (int(present.max()) > EXACT or int(present.min()) < -EXACT)


def _days(dates: Any) -> np.ndarray:
    """Days since 1970 of a Series of dates, NaN where missing; those with a time zone in UTC."""
    import pandas as pd

    if getattr(dates.dtype, "tz", None) is not None:
        dates = dates.dt.tz_convert("UTC").dt.tz_localize(None)
    try:
        days = (dates - pd.Timestamp(0)) / pd.Timedelta(1, "D")
    except pd.errors.OutOfBoundsDatetime:  # nanoseconds reach from 1677 to 2262
        days = (dates.astype("datetime64[us]") - pd.Timestamp(0).as_unit("us")) / pd.Timedelta(1, "D")
    return days.to_numpy(np.float64, na_value=np.nan)


def cleaned(name: str, codes: np.ndarray, distinct: Sequence[Any]) -> Cells:
    """Cells of codes and distinct values: these become texts without spaces around them, some equal, some missing."""
    plain = dict.fromkeys([value.strip() for value in distinct if isinstance(value, str)])
    if len(plain) == len(distinct) and MISSING.isdisjoint(plain):  # nothing merges; most columns, and fast
        return Cells(name, codes, tuple(plain))
    texts: dict[str, int] = {}
    places = np.empty(len(distinct) + 1, np.int64)
    places[-1] = -1  # pandas has the code -1 for what is missing
    for k, value in enumerate(distinct):
        text = _text(value)
        places[k] = -1 if text in MISSING else texts.setdefault(text, len(texts))
    return Cells(name, places[codes], tuple(texts))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").strip()
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return written(float(value)) if np.isfinite(value) else str(float(value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


# -- what texts mean -------------------------------------------------------------------------------------------


def to_number(text: str, decimal: str) -> float:
    """The number that a text is written as; NaN if it is none.  Infinity is one."""
    if not NUMBER[decimal].fullmatch(text):
        return float("nan")
    group = "," if decimal == "." else "."
    return float(text.replace(group, "").replace(decimal, "."))


def decimal_of(cells: Cells, usual: str) -> str | None:
    """The decimal sign with which all texts are numbers; ``usual`` where both are possible, None where neither is."""
    fits = signs_of(cells.texts)
    return usual if usual in fits else min(fits, default=None)


def _plain_numbers(texts: Sequence[str], usual: str) -> np.ndarray | None:
    """The numbers that texts are written as, if they have digits, signs, points and exponents only; fast."""
    signs = set("".join(texts))
    if not signs <= set("0123456789+-.eE") or ("." in signs and usual != "."):
        return None
    try:
        return np.array(texts, object).astype(np.float64)
    except ValueError:
        return None


def usual_decimal(columns: Sequence[Cells], separator: str) -> str:
    """The decimal sign of a table: the comma if cells are separated by something else, and no column speaks against it.

    A text such as 1.234 is a number either way; columns with others, such as 0.5, decide.
    """
    if separator == ",":
        return "."
    fits = [signs_of(column.texts) for column in columns if column.texts]
    signs = {sign for found in fits if len(found) == 1 for sign in found}
    if signs:
        return "," if signs == {","} else "."
    both = (column for column in columns if column.texts and len(signs_of(column.texts)) == 2)
    return "," if any("," in text for column in both for text in column.texts) else "."


def signs_of(texts: Sequence[str]) -> set[str]:
    """The decimal signs with which all texts are numbers."""
    return {sign for sign in (".", ",") if all(map(NUMBER[sign].fullmatch, texts))}


def words_of(cells: Cells) -> tuple[str, str] | None:
    """The pair of words for no and yes that all texts are of, or None."""
    found = {text.casefold() for text in cells.texts}
    return next((pair for pair in WORDS if found and found <= set(pair)), None)


def days_in(texts: Sequence[str], form: str) -> np.ndarray | None:
    """Days since 1970 of texts that are dates of the format ``form``; None if one is not."""
    import pandas as pd

    shape = re.compile(DATES[form], re.IGNORECASE | re.ASCII)
    if not texts or not all(map(shape.fullmatch, texts)):
        return None
    parts: Any = pd.Series(list(texts), dtype=object)
    formats = [form + time for time in TIMES]
    if form == "ISO8601":
        formats = [form, *("%Y-%m-%d" + time for time in TIMES if "%p" in time)]
    for each in formats:
        found = pd.to_datetime(parts, format=each, errors="coerce", utc=True)
        if not found.isna().any():
            return _days(found)
    return None


def parsed(cells: Cells, usual: str, where: Place) -> Cells:
    """The column as numbers, booleans or dates, if its texts are; else as it is.

    Raises DataError if most cells are numbers, and the others seem to be mistakes.
    """
    if cells.codes is None or not cells.texts:
        return cells
    numbers = _plain_numbers(cells.texts, usual)
    if numbers is not None:
        return cells.with_values(numbers, "number", ".")
    decimal = decimal_of(cells, usual)
    if decimal is not None:
        found = cells.with_values([to_number(text, decimal) for text in cells.texts], "number", decimal)
        return replace(found, grouped=any(("," if decimal == "." else ".") in text for text in cells.texts))
    words = words_of(cells)
    if words is not None:
        return cells.with_values([words.index(text.casefold()) for text in cells.texts], "boolean", "/".join(words))
    for form in DATES:
        days = days_in(cells.texts, form)
        if days is not None:
            return cells.with_values(days, "date", form)
    _check_mixed(cells, usual, where)
    return cells


def durations_in(texts: Sequence[str]) -> list[float]:
    """Days of texts that are durations as pandas writes them ("61 days", "1 days 06:00:00"), or numbers of days; NaN
    for others."""
    import pandas as pd

    numbers = [to_number(text, ".") for text in texts]
    found = pd.to_timedelta(pd.Series(list(texts), dtype=object), errors="coerce") / pd.Timedelta(1, "D")
    return [day if number != number else number for number, day in zip(numbers, found.tolist(), strict=True)]


def both_orders(cells: Cells) -> bool:
    """Texts of dates can be read with the day first and with the month first."""
    return all(days_in(cells.texts, form) is not None for form in ("%m/%d/%Y", "%d/%m/%Y"))


def _check_mixed(cells: Cells, usual: str, where: Place) -> None:
    """Raise DataError if most cells are numbers and the others few different texts: mistakes, or words for a gap."""
    assert cells.codes is not None
    is_number = np.array([NUMBER[usual].fullmatch(text) is not None for text in cells.texts])
    counts = np.bincount(cells.codes[cells.codes >= 0], minlength=len(cells.texts))
    if 2 * counts[is_number].sum() <= counts.sum() or (~is_number).sum() > max(5, counts.sum() // 20):
        return
    bad = [text for text, fits in zip(cells.texts, is_number, strict=True) if not fits]
    row, n = cells.first(bad[0]), int(counts[~is_number].sum())
    others = f" (so are {n - 1:,} others: {', '.join(map(quoted, bad[:5]))})" if n > 1 else ""
    raise DataError(
        f"{where(row)}, column {cells.name!r}: {quoted(bad[0])} is not a number{others}, but most of the column are "
        "numbers; correct the cell or remove the row, write a missing one as NA, or take all as categories "
        f"with {words().give('categories', cells.name)}, or none with {words().give('drop', cells.name)}"
    )


def check_range(
    cells: Cells, where: Place, what: str = "features and regression targets", read: Cells | None = None
) -> None:
    """Raise DataError for a number that is infinite; ``read``: the cells that it was read from, to show them."""
    if cells.values is None:
        return
    bad = np.isinf(cells.values)
    if bad.any():
        row = int(np.argmax(bad))
        shown = f"{cells.values[row]:g}"
        if read is not None and read.codes is not None:
            shown = quoted(read.texts[read.codes[row]])
        raise DataError(
            f"{where(row)}, column {cells.name!r}: {shown} is not finite in float64; {what} must be finite numbers: "
            "correct or remove the row"
        )
