"""One spelling for each code, and signs in numbers that can be read in two ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparse_dnm.data.cells import NUMBER, Cells, Place, decimal_of, parsed, quoted, signs_of, to_number
from sparse_dnm.data.errors import DataError
from sparse_dnm.wording import words

TEXT = "text"  # the form of a category whose texts are taken as they are
WHOLE = {".": re.compile(r"[+-]?(0|[1-9]\d*)(\.0*)?", re.ASCII), ",": re.compile(r"[+-]?(0|[1-9]\d*)(,0*)?", re.ASCII)}
SHARE = {
    ".": re.compile(r"[+-]?(0|[1-9]\d*)\.\d+", re.ASCII),
    ",": re.compile(r"[+-]?(0|[1-9]\d*),\d+", re.ASCII),
}
ZEROS = re.compile(r"0\d+", re.ASCII)  # a code that is no number, such as 01005


def code_of(text: str, sign: str) -> str:
    """The spelling of a code: 5, 5.0 and +5 are "5", 2.50 is "2.5"; 01005 and what is no number stay as they are."""
    if WHOLE[sign].fullmatch(text):
        return text.partition(sign)[0].lstrip("+")
    return text.replace(sign, ".").rstrip("0").lstrip("+") if SHARE[sign].fullmatch(text) else text


def padded(cells: Cells) -> str:
    """The first text with zeros before its number, in a column of digits only; "" where there is none.

    Such numbers are codes (01005, 007): as numbers, some that differ would become equal.
    """
    if cells.codes is None or not all(text.isascii() and text.isdigit() for text in cells.texts):
        return ""
    return next((text for text in cells.texts if ZEROS.fullmatch(text)), "")


def as_codes(cells: Cells, usual: str = ".") -> Cells:
    """A column as categories: numbers have one spelling each where all texts are numbers.

    Its form is the decimal sign of these numbers, or "text" where texts are taken as they are.
    """
    cells = cells.as_text()
    for sign in (usual, *({".", ","} - {usual})):
        texts = cells.texts
        if texts and all(WHOLE[sign].fullmatch(t) or SHARE[sign].fullmatch(t) or ZEROS.fullmatch(t) for t in texts):
            shares = {text for text in texts if not WHOLE[sign].fullmatch(text)}
            if len({code_of(text, sign) for text in shares}) == len(shares):  # 1.1 and 1.10 are codes, not numbers
                return respelled(cells, sign)
    return replace(cells, form=TEXT)


def respelled(cells: Cells, form: str) -> Cells:
    """The texts of codes in the spelling of a column whose form `as_codes` gave."""
    if form not in (".", ","):
        return cells
    assert cells.codes is not None
    places: dict[str, int] = {}
    new = [places.setdefault(code_of(text, form), len(places)) for text in cells.texts]
    return Cells(cells.name, np.array([*new, -1], np.int64)[cells.codes], tuple(places), form=form)


def grouped(texts: Sequence[str], decimal: str) -> str:
    """The first text in which thousands are separated, if numbers have this decimal sign; "" where there is none."""
    group = "," if decimal == "." else "."
    return next((text for text in texts if group in text), "")


def numbers_in(cells: Cells, decimal: str, usual: str | None, known: bool | None, where: Place) -> list[float]:
    """The numbers of new texts in a column that was read with a decimal sign; NaN for a text that is none.

    decimal  the sign that the column was read with in training
    usual    the sign of the file that the texts are from, by the rule for files; None: they are from no file
    known    the training had separated thousands in the column; None: that was not kept
    Raises DataError for a text that has another value with the other sign, where nothing tells which is meant.
    """
    sign = decimal if usual is None else decimal_of(cells, usual) or usual
    text = next((text for text in cells.texts if grouped([text], sign) and len(signs_of([text])) == 2), "")
    own = known if sign == decimal else False
    if text and own is False and (usual is None or len(signs_of(cells.texts)) == 2):
        point, comma = (to_number(text, each) for each in (".", ","))
        raise DataError(
            f"{where(cells.first(text))}, column {cells.name!r}: {quoted(text)} can be {point:.10g} or {comma:.10g}, "
            "and the training had no separated thousands in this column; write decimal points, and thousands without "
            "signs"
        )
    return [to_number(text, sign) for text in cells.texts]


def read_as(cells: Cells, usual: str, where: Place, codes: bool, rules: int, notes: list[str]) -> Cells:
    """The cells of a column of features: as codes where that is asked for, or where numbers begin with zeros.

    notes  gets a warning where the zeros decided
    """
    text = padded(cells) if rules > 1 and not codes else ""
    if text:
        notes.append(
            f"warning: column {cells.name!r} is taken as categories, as numbers with zeros before them are codes, such "
            f"as {quoted(text)}: {words().give('categories', cells.name)} says so; if they are numbers, write them "
            "without these zeros"
        )
    return as_codes(cells, usual) if codes or text else parsed(cells, usual, where)


def sign_notes(cells: Cells, decimal: str, separator: str) -> list[str]:
    """Notes about a column of numbers with separated thousands; a warning where the sign may as well be a decimal one.

    separator  between the cells of the file; "" where there is none
    """
    text = grouped(cells.texts, decimal)
    if not text or not all(map(NUMBER[decimal].fullmatch, cells.texts)):
        return []
    name, why = ("comma", "") if decimal == "." else ("point", ", as commas are decimal signs")
    note = f"column {cells.name!r}: the {name} separates thousands, as in {quoted(text)}{why}"
    if len(signs_of(cells.texts)) < 2 or (separator == "," and decimal == "."):
        return [note]
    point, comma = (to_number(text, each) for each in (".", ","))
    other = "points" if decimal == "." else "commas"
    return [
        f"warning: {note}: it can be {point:.10g} or {comma:.10g}, and other columns have decimal {other}; write all "
        f"columns with decimal {other}, and thousands without signs, to be sure"
    ]
