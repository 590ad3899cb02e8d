"""Readers of data files into plain numpy arrays: IDX (MNIST's own format), fetch_openml, .npz and .csv."""

from __future__ import annotations

import csv
import gzip
import math
import re
import socket
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

DATA_VARIABLE = "SPARSE_DNM_DATA"  # environment variable: folder of the IDX files
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
NPZ_ARRAYS = ("x", "y", "x_test", "y_test")
BAD_ZIP = (zipfile.BadZipFile, zlib.error, RuntimeError)  # what zipfile raises for a damaged archive
FLOAT32_MAX = float(np.finfo(np.float32).max)
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)  # fits int64


class DataError(ValueError):
    """Data that cannot be used; the message names the value, the rule and the way out."""


def find_idx(folder: Path) -> list[Path]:
    """The MNIST_FILES of ``folder``, plain or .gz.  Raises DataError naming all that are missing."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; --data-dir or ${DATA_VARIABLE} must name one with the IDX files")
    found = [next((p for p in (folder / n, folder / f"{n}.gz") if p.is_file()), None) for n in MNIST_FILES]
    missing = [f"{n} (or {n}.gz)" for n, path in zip(MNIST_FILES, found, strict=True) if path is None]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}; put them there or give another --data-dir")
    return [path for path in found if path is not None]


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of ``ndim`` axes in an IDX file, gzipped or not (recognised by its first bytes, not its name).

    Layout: magic number 0x00000800 + ndim, one big-endian uint32 per axis, then the cells, last axis fastest.
    Raises DataError for a truncated file or another format.
    """
    way_out = "copy or download the file again"
    try:
        raw = path.read_bytes()
        n_stored = len(raw)
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except EOFError:
        raise DataError(f"{path} is a truncated gzip, {n_stored:,} bytes without an end; {way_out}") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; {way_out}") from error
    magic, header = 0x0800 + ndim, 4 + 4 * ndim
    if len(raw) >= 4 and raw[:4] != magic.to_bytes(4, "big"):
        raise DataError(
            f"{path} starts with the magic number 0x{raw[:4].hex()}; uint8 cells on {ndim} axes have "
            f"0x{magic:08x}; {way_out}"
        )
    if len(raw) < header:
        raise DataError(f"{path} is truncated: expected a header of {header} bytes, found {len(raw)}; {way_out}")
    shape = [int(size) for size in np.frombuffer(raw, ">u4", ndim, 4)]
    expected = header + math.prod(shape)
    if len(raw) != expected:
        what = "is truncated" if len(raw) < expected else "is too long"
        raise DataError(f"{path} {what}: expected {expected:,} bytes, found {len(raw):,}; {way_out}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_mnist(folder: Path) -> list[np.ndarray]:
    """Train images (n, 784) uint8, train labels (n,), test images and test labels, from IDX files."""
    paths = find_idx(folder)
    arrays = []
    for image_path, label_path in (paths[:2], paths[2:]):
        images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
        n, height, width = images.shape
        if n == 0 or (height, width) != (28, 28):
            raise DataError(
                f"{image_path} holds {n:,} images of {height} x {width}; mnist has some, of 28 x 28: "
                "save other images as .npz (arrays x and y)"
            )
        if n != len(labels):
            raise DataError(
                f"{image_path} holds {n:,} images but {label_path} {len(labels):,} labels; there must be one "
                "label per image: take both files from one source"
            )
        if labels.max() > 9:
            row = int(np.argmax(labels > 9))
            raise DataError(
                f"{label_path}: label {labels[row]} in row {row} (from 0) is not one of the classes 0..9; "
                "save data of other classes as .npz (arrays x and y)"
            )
        arrays += [images.reshape(n, -1), labels]
    return arrays


def fetch_mnist() -> list[np.ndarray]:
    """The same arrays through scikit-learn's fetch_openml and its cache; the first 60,000 samples are for training."""
    from sklearn.datasets import fetch_openml

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30.0)  # s; fetch_openml sets none, and a dead connection would block for minutes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Retrying...": the error below is enough
            images, labels = fetch_openml(
                "mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff", n_retries=1
            )
    except Exception as error:  # of network, cache or parser: the advice is the same
        raise DataError(
            f"fetch_openml('mnist_784') found no sound copy in scikit-learn's cache and failed: {error}; "
            f"give the folder of MNIST's IDX files by --data-dir or ${DATA_VARIABLE}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    if images.shape != (70_000, 784):
        raise DataError(
            f"fetch_openml('mnist_784') gave an array {images.shape}; MNIST is (70000, 784): clear the cache "
            f"of scikit-learn, or give the folder of MNIST's IDX files by --data-dir or ${DATA_VARIABLE}"
        )
    return [images[:60_000], labels[:60_000], images[60_000:], labels[60_000:]]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays x and y of a .npz file, and x_test and y_test if it has them; pickles are refused."""
    try:
        with zipfile.ZipFile(path):  # np.load would treat any other file as a pickle
            pass
        with np.load(path, allow_pickle=False) as archive:
            found = archive.files
            arrays = {name: archive[name] for name in NPZ_ARRAYS if name in found}
    except (*BAD_ZIP, ValueError, OSError, EOFError, MemoryError) as error:
        raise DataError(
            f"{path} is truncated, or no .npz archive of plain arrays ({error}); save numbers, or text "
            "labels, by numpy.savez"
        ) from error
    if not {"x", "y"} <= arrays.keys() or ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(
            f"{path} holds the arrays: {', '.join(found) or 'none'}; it must hold x and y, and both or "
            "neither of x_test and y_test"
        )
    for name, values in arrays.items():
        if not isinstance(values, np.ndarray):
            raise DataError(f"{path}: {name} is no numpy array; save it by numpy.savez(path, x=x, y=y)")
    return arrays


def read_csv(path: Path, target: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features float64 (n, m) and labels (n,) of a comma-separated table with a header.

    The labels are the column ``target`` (default: the last): int64 where every cell is written as an integer,
    float64 where every cell is a number, text otherwise.  Raises DataError naming row, line and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _read_table(path, file, target)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; check the file and its permissions") from error


def _read_table(path: Path, file: Iterable[str], target: str | None) -> tuple[np.ndarray, np.ndarray]:
    reader = csv.reader(file, strict=True, skipinitialspace=True)
    values = array("d")  # of the features, row by row
    labels: list[str] = []
    places: list[str] = []  # of the labels, for errors
    try:
        header = [name.strip() for name in next(reader, [])]
        column = _label_column(path, header, target)
        for cells in reader:
            if not cells:  # an empty line
                continue
            place = f"{path}, row {len(labels) + 1} (line {reader.line_num})"
            if len(cells) != len(header):
                raise DataError(
                    f"{place} has {len(cells)} cells under a header of {len(header)}; complete or remove it"
                )
            for k, cell in enumerate(cells):
                if k != column:
                    values.append(_number(cell, place, header[k]))
            labels.append(cells[column].strip())
            places.append(place)
            if not labels[-1]:
                raise DataError(f"{place}, column {header[column]!r}: the label is missing; remove the row")
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; close the quotes, or replace a truncated file"
        ) from error
    if not labels:
        raise DataError(f"{path} has no row under its header; give one sample per line")
    x = np.frombuffer(values, np.float64).reshape(len(labels), -1)
    return x, _labels(labels, places, header[column])


def _label_column(path: Path, header: list[str], target: str | None) -> int:
    """Index of the label's column.  Raises DataError for a header that cannot be one."""
    if len(header) < 2:
        raise DataError(
            f"{path} has the header {header}; it needs two or more columns separated by commas: features and a label"
        )
    if all(map(_NUMBER.fullmatch, header)):
        raise DataError(f"{path}: the first line {header[:4]} holds numbers only; put column names above it")
    if target is None:
        return len(header) - 1
    if header.count(target) != 1:
        raise DataError(
            f"target={target!r} names {header.count(target)} columns of {path}; choose one of {', '.join(header)}"
        )
    return header.index(target)


def _number(cell: str, place: str, column: str) -> float:
    """The number in a cell.  Raises DataError if it is missing, not a number, or not finite in float32."""
    text = cell.strip()
    if _NUMBER.fullmatch(text):
        value = float(text)
        if abs(value) <= FLOAT32_MAX:
            return value
        problem = f"{text!r} is not finite in float32"
    else:
        problem = f"{text!r} is not a number" if text else "the cell is empty"
    raise DataError(
        f"{place}, column {column!r}: {problem}; features and regression targets must be finite numbers: "
        "correct or remove the row"
    )


def _labels(texts: list[str], places: list[str], column: str) -> np.ndarray:
    """Labels as int64, float64 or text; a column that mixes decimals and words is refused as a mistake."""
    if all(map(_INTEGER.fullmatch, texts)):
        return np.array(texts).astype(np.int64)
    numeric = [_NUMBER.fullmatch(text) is not None for text in texts]
    if all(numeric):
        return np.array([_number(text, place, column) for text, place in zip(texts, places, strict=True)])
    word = numeric.index(False)
    for row, text in enumerate(texts):
        if numeric[row] and not _INTEGER.fullmatch(text):
            raise DataError(
                f"{places[word]}, column {column!r}: {texts[word]!r} is not a number, but {text!r} in row "
                f"{row + 1} is; labels must be all numbers or all words: correct or remove the row"
            )
    return np.array(texts)
