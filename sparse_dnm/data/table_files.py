"""Files of tables: text with separators, packed or not, and parquet, as a DataFrame."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import re
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_dnm.data.cells import DECIMAL, NUMBER, Cells, cleaned, quoted, usual_decimal
from sparse_dnm.data.errors import DataError, counted

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".data")
PACKED = (".gz", ".zip")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
SEPARATORS = (",", ";", "\t", "|")
HEADERS = ("first", "none")
SEP = re.compile(r'"?sep=([^\w\s"]|\t)"?[\r\n]*', re.IGNORECASE)  # the first line that Excel may write
BLOCK = 4096  # rows that are put into columns at a time
LOOKED_AT = 30  # lines by which the separator is recognised


@dataclass(frozen=True, eq=False)
class TableFile:
    """A table as it lies in a file: names, a column of cells each, and what tells a row's place.

    separator  between cells; "" for parquet, whose cells have types
    first      the first line holds the names
    """

    path: Path
    names: list[str]
    columns: list[Cells | Any]  # Cells of text, or Series of parquet
    separator: str
    first: bool = True

    def place(self, row: int) -> str:
        """How an error names a row."""
        if not self.separator:
            return f"{self.path}, row {row + 1}"
        with _opened(self.path) as file:
            reader = _reader(file, self.separator)
            found = (cells for cells in reader if cells)
            next(itertools.islice(found, row + self.first, None), None)
            return f"{self.path}, row {row + 1} (line {reader.line_num})"


def is_table(path: Path) -> bool:
    """The name is that of a table: .csv, .tsv, .txt, .data, perhaps packed as .gz or .zip, or .parquet."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        return suffixes[0] in TEXT_SUFFIXES and len(suffixes) == 2
    return bool(suffixes) and suffixes[-1] in SUFFIXES


def read_table(path: str | Path, header: str | None = None, least: int = 1) -> Any:
    """The table in a file, as a DataFrame: .csv, .tsv, .txt or .data, perhaps .gz or .zip, or .parquet.

    header  "none": the first line holds data; columns are then named "column 1" and so on
    least   columns that there must be
    Cells of text files stay texts: nothing is guessed.  Raises DataError naming row, line and column of what is wrong.
    """
    import pandas as pd

    file = read_file(Path(path).expanduser(), header, least)
    columns = {}
    for k, cells in enumerate(file.columns):
        if isinstance(cells, Cells):
            assert cells.codes is not None
            texts = np.array([*cells.texts, None], object)
            columns[k] = pd.Series(texts[cells.codes], dtype=object)
        else:
            columns[k] = cells
    frame = pd.DataFrame(columns)
    frame.columns = pd.Index(file.names)
    if file.separator:
        frame.attrs[DECIMAL] = usual_decimal(texts_of(file), file.separator)
    return frame


def texts_of(file: TableFile) -> list[Cells]:
    """The columns of a text file without spaces around cells, and with missing ones."""
    columns = []
    for each in file.columns:
        assert each.codes is not None
        columns.append(cleaned(each.name, each.codes, each.texts))
    return columns


def read_file(path: Path, header: str | None = None, least: int = 2) -> TableFile:
    """What a file of a table holds; see `read_table`."""
    if header not in (None, *HEADERS):
        raise DataError(f"header={header!r} is unknown; choose one of {', '.join(HEADERS)}")
    if path.suffix.lower() == ".parquet":
        if header is not None:
            raise DataError(f"header={header!r} is for text files, and {path} keeps names of its own; leave it out")
        return _parquet(path, least)
    try:
        with _opened(path) as file:
            lines = list(itertools.islice(file, LOOKED_AT))
        separator = _separator(lines, path)
        with _opened(path) as file:
            return _text(path, file, separator, header, least)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}; save it as UTF-8") from error
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; check the file and its permissions, or copy it again"
        ) from error


def _opened(path: Path) -> io.TextIOWrapper:
    """The text of a file; gzip and zip are recognised by their first bytes."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"\x1f\x8b":
        raw: Any = gzip.GzipFile(path)
    elif start == b"PK\x03\x04":
        archive = zipfile.ZipFile(path)
        names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
        if len(names) != 1:
            raise DataError(f"{path} holds {len(names)} files ({', '.join(names[:5])}); it must hold one table")
        raw = archive.open(names[0])
    else:
        raw = path.open("rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _reader(file: Any, separator: str) -> Any:
    return csv.reader(_lines(file), delimiter=separator, strict=True, skipinitialspace=True)


def _lines(file: Iterable[str]) -> Iterator[str]:
    """The lines of a file; a first one that names the separator, as Excel writes it, is empty."""
    lines = iter(file)
    for first in lines:
        yield "\n" if SEP.fullmatch(first) else first
        break
    yield from lines


def _separator(lines: list[str], path: Path) -> str:
    """The sign between cells: of those that part the first lines alike, the one that makes most cells."""
    named = SEP.fullmatch(lines[0]) if lines else None
    if named:
        return named[1]
    best, found = (False, 1), "\t" if ".tsv" in [s.lower() for s in path.suffixes] else ","
    for separator in SEPARATORS:
        rows: list[list[str]] = []
        with contextlib.suppress(csv.Error):  # a cell that goes on after these lines, or a fault that reading names
            rows.extend(cells for cells in _reader(lines, separator) if cells)
        if not rows:
            continue
        width = len(rows[0])
        alike = width > 1 and all(len(cells) == width for cells in rows)
        if (alike, width) > best:
            best, found = (alike, width), separator
    if not best[0]:  # spaces may part names as well: only where nothing else parts the lines
        widths = {len(line.split()) for line in lines if line.strip()}
        if len(widths) == 1 and widths != {1}:
            return " "
    return found


def _text(path: Path, file: Any, separator: str, header: str | None, least: int) -> TableFile:
    """The table in an opened file of text."""
    reader = _reader(file, separator)
    try:
        rows = (cells for cells in reader if cells)  # without empty lines
        start: list[str] = next(rows, [])
        names = [name.strip() for name in start]
        if not start:
            raise DataError(f"{path} is empty; it needs a line of names and a line for each sample")
        if len(names) < least:
            raise DataError(
                f"{path} has the header {names}; it needs two or more columns separated by commas (or semicolons, or "
                "tabs): features and a label"
            )
        places: list[dict[str, int]] = [{} for _ in names]
        codes = [array("q") for _ in names]
        n = 0
        for block in _blocks(rows if header != "none" else itertools.chain([start], rows)):
            for row, cells in enumerate(block):
                if len(cells) != len(names):
                    raise _ragged(path, n + row, len(cells), len(names), separator, header)
            for column, known, new in zip(zip(*block, strict=True), places, codes, strict=True):
                new.extend([known.setdefault(cell, len(known)) for cell in column])
            n += len(block)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; close the quotes, or replace a truncated file"
        ) from error
    bad = [text for known in places for text in known if "\0" in text]
    if bad:
        k = next(k for k, known in enumerate(places) if bad[0] in known)
        where = TableFile(path, [], [], separator, header != "none").place(codes[k].index(places[k][bad[0]]))
        raise DataError(f"{where}, column {names[k]!r}: {quoted(bad[0])} has a NUL byte; save the table as UTF-8 text")
    if not n:
        raise DataError(f"{path} has no row under its header; give one sample per line")
    if header == "none":
        names = [f"column {k + 1}" for k in range(len(names))]
    elif names[0] == "":
        names[0] = "Unnamed: 0"  # as pandas names it
    columns = [
        Cells(name, np.frombuffer(new, np.int64), tuple(known))
        for name, known, new in zip(names, places, codes, strict=True)
    ]
    if header is None and len(columns) > 1:
        check_header(path, columns)
    return TableFile(path, names, list(columns), separator, header != "none")


def _blocks(rows: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    while block := list(itertools.islice(rows, BLOCK)):
        yield block


def _ragged(path: Path, row: int, n_cells: int, n_names: int, separator: str, header: str | None) -> DataError:
    """The error of a row with more or fewer cells than the header."""
    where = TableFile(path, [], [], separator, header != "none").place(row)
    more = "; where all rows have names, as R writes them, name that column as well" if n_cells == n_names + 1 else ""
    return DataError(f"{where} has {counted(n_cells, 'cell')} under a header of {n_names}; complete or remove it{more}")


def check_header(path: Path, columns: list[Cells]) -> None:
    """Raise DataError if the first line holds data instead of names.

    It does where half of the names are numbers, or words that are values of their columns as well.  Whole numbers that
    differ (years; the numbers that pandas gives to columns) are names beside words that are not among the values.
    """
    names = [cells.name for cells in columns]
    numbers = [NUMBER["."].fullmatch(name) is not None for name in names]
    values = [bool(cells.name) and cells.name in cells.texts for cells in columns]
    words = [value for value, number in zip(values, numbers, strict=True) if not number]
    whole = all(name.isdigit() for name, number in zip(names, numbers, strict=True) if number)
    way_out = "give --header none if it does, --header first if it holds names all the same"
    if len(names) > 2 and names == [str(k) for k in range(len(names))]:  # as pandas names columns without names
        return
    if all(numbers):
        raise DataError(
            f"{path}: the first line {names[:4]} holds numbers only; put column names above it, or {way_out}"
        )
    if any(numbers) and whole and len(set(names)) == len(names) and not any(words):
        return
    if 2 * sum(n or v for n, v in zip(numbers, values, strict=True)) >= len(names) and (
        sum(numbers) or sum(values) > 1
    ):
        raise DataError(
            f"{path}: the first line {names[:6]} seems to hold data instead of column names: it has numbers, or words "
            f"that are values of their columns; {way_out}"
        )


def _parquet(path: Path, least: int) -> TableFile:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError:
        raise DataError(
            f"{path}: parquet files are read by the package pyarrow, which is missing here; install it (the extra "
            "`sparse-dnm[parquet]`), or save the table as .csv"
        ) from None
    except Exception as error:  # pyarrow's own kinds
        raise DataError(f"{path} is no parquet file that can be read ({error}); write it again") from error
    names = [str(name) for name in frame.columns]
    if len(names) < least or not len(frame):
        raise DataError(f"{path} has {len(frame)} rows of the columns {names}; it needs features and a label")
    return TableFile(path, names, [frame.iloc[:, k] for k in range(len(names))], "")
