"""Arrays of samples and labels, from .npz files or from Python: names, shapes and dtypes that people use."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparse_dnm.data.errors import DataError, check_finite, counted
from sparse_dnm.data.options import Reading
from sparse_dnm.data.plain import plain

BAD_ZIP = (zipfile.BadZipFile, zlib.error, RuntimeError)  # what zipfile raises for a damaged archive
# Names of arrays, without signs between the words and in lower case:
NAMES = {
    "x": ("x", "xtrain", "trainx", "images", "trainimages", "imagestrain", "data", "traindata", "features", "inputs"),
    "y": (
        "y",
        "ytrain",
        "trainy",
        "labels",
        "label",
        "trainlabels",
        "labelstrain",
        "target",
        "targets",
        "traintargets",
    ),
    "x_test": ("xtest", "testx", "testimages", "imagestest", "testdata", "datatest"),
    "y_test": ("ytest", "testy", "testlabels", "labelstest", "testtargets", "targettest", "targetstest"),
}
FEW = (1, 3, 4)  # channels that images usually have: grey, colours, colours and opacity
HOW_TO_SAVE = "numpy.savez(path, x=x, y=y)"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays x and y of a .npz file, and x_test and y_test if it has them, under any usual name.

    Pickles are refused.
    """
    try:
        with zipfile.ZipFile(path):  # np.load would treat any other file as a pickle
            pass
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            chosen = roles(names, str(path))
            arrays = {role: archive[name] for role, name in chosen.items()}
    except DataError:
        raise
    except (*BAD_ZIP, ValueError, OSError, EOFError, MemoryError) as error:
        way_out = (
            "convert them, as by x.astype(float) or y.astype(str), and save again by numpy.savez"
            if "Object arrays" in str(error)
            else "save numbers, or text labels, by numpy.savez"
        )
        raise DataError(f"{path} is truncated, or no .npz archive of plain arrays ({error}); {way_out}") from error
    for role, values in arrays.items():
        if not isinstance(values, np.ndarray):
            raise DataError(f"{path}: {chosen[role]} is no numpy array; save it by {HOW_TO_SAVE}")
    return arrays


def roles(names: list[str], where: str) -> dict[str, str]:
    """The name of x, y and perhaps x_test, y_test among ``names``.  Raises DataError if it is unclear."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[\W_]", "", name).lower()
        role = next((role for role, known in NAMES.items() if plain in known), None)
        if role is None:
            continue
        if role in found:
            raise DataError(
                f"{where} holds the arrays: {', '.join(names)}; {found[role]} and {name} could both be {role}: keep "
                "one of them"
            )
        found[role] = name
    if not {"x", "y"} <= found.keys() or ("x_test" in found) != ("y_test" in found):
        raise DataError(
            f"{where} holds the arrays: {', '.join(names) or 'none'}; it must hold x and y (or x_train and y_train, "
            "images and labels, data and target), and both or neither of x_test and y_test"
        )
    return found


def check_samples(where: str, x: Any) -> np.ndarray:
    """x as numbers (n, features), (n, h, w) or with channels (n, a, b, c), finite and not empty."""
    x = plain(where, x)
    if x.dtype.kind == "O":
        x = _numbers(where, x)
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {x.dtype}; features must be real numbers: convert or encode them")
    if x.ndim not in (2, 3, 4):
        raise DataError(
            f"{where} has shape {x.shape}; it must be (n, features), (n, height, width) or (n, height, "
            "width, channels): reshape it"
        )
    check_finite(where, x)
    return x


def check_labels(where: str, y: Any, reading: Reading) -> tuple[np.ndarray, str]:
    """y as labels (n,) or numbers (n, columns), and a note if one-hot rows have become classes."""
    y = plain(where, y)
    if y.dtype.kind == "O":
        y = _objects(where, y)
    if y.dtype.kind not in "biufUS":
        raise DataError(f"{where} has dtype {y.dtype}; it must hold real numbers, bool or text: convert it")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "backslashreplace")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if reading.task != "regression" and not reading.earlier and is_one_hot(y):
        note = f"{where} is one-hot: {y.shape[1]} columns, one of them 1 in each row; these are the classes 0 .. "
        return y.argmax(1), f"{note}{y.shape[1] - 1} (--task regression takes them as numbers)"
    if y.ndim not in (1, 2) or (y.ndim == 2 and y.dtype.kind in "bU"):
        more = "; a sample with several labels, or none, is no class" if y.ndim == 2 and y.dtype.kind == "b" else ""
        raise DataError(
            f"{where} has shape {y.shape} and dtype {y.dtype}; it must be (n,) labels, (n, classes) one-hot, or (n, "
            f"columns) numbers of a regression: reshape or convert it{more}"
        )
    return y, ""


def is_one_hot(y: np.ndarray) -> bool:
    """Every row of y (n, 2 or more) is 0 but for one 1."""
    if y.ndim != 2 or y.shape[1] < 2 or not len(y) or y.dtype.kind not in "biuf":
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all())


def pair(
    name: str, arrays: Mapping[str, Any], suffix: str, reading: Reading
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Samples and labels, checked: one label per sample; and notes."""
    at_x, at_y = f"{name}: x{suffix}", f"{name}: y{suffix}"
    x = check_samples(at_x, arrays["x" + suffix])
    y, note = check_labels(at_y, arrays["y" + suffix], reading)
    if x.size == 0 or y.size == 0:
        raise DataError(f"{at_x} {x.shape} or y{suffix} {y.shape} is empty; give samples with features")
    if len(x) != len(y):
        raise DataError(f"{at_x} has {counted(len(x), 'sample')} but y{suffix} {len(y)}; give one y per sample of x")
    return x, y, [note] if note else []


def channels_first(name: str, shape: tuple[int, ...], asked: str | None) -> tuple[bool, str]:
    """Whether samples (a, b, c) have their channels first, and a note where their sizes say so."""
    if len(shape) != 3:
        if asked is not None:
            raise DataError(
                f"channels={asked!r} is for images with channels, (n, a, b, c), and {name} has samples of shape "
                f"{shape}; leave it out"
            )
        return False, ""
    if asked is not None:
        return asked == "first", ""
    if shape[0] in FEW and shape[2] not in FEW:
        return True, (
            f"{name}: images {shape} have their {shape[0]} channel{'s' * (shape[0] > 1)} first, as their sizes say "
            "(--channels last if not)"
        )
    if shape[2] in FEW and shape[0] not in FEW:
        return False, ""
    return False, (
        f"{name}: images {shape} are taken as height {shape[0]}, width {shape[1]}, {shape[2]} channels (--channels "
        "first if not)"
    )


def _numbers(where: str, values: np.ndarray) -> np.ndarray:
    """An object array of numbers as float64."""
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} holds objects that are no numbers ({error}); convert or encode them") from None


def _kind(value: Any) -> str:
    """A letter for text, bool, integer and float, as in the kind of a dtype; else the type's name."""
    kinds = {str: "U", bool: "b", np.bool_: "b", int: "i", np.integer: "i", float: "f", np.floating: "f"}
    return next((letter for kind, letter in kinds.items() if isinstance(value, kind)), type(value).__name__)


def _objects(where: str, values: np.ndarray) -> np.ndarray:
    """An object array of labels as text, bool, int64 or float64, if all are of one kind."""
    kinds = {_kind(value) for value in values.flat}
    dtype = {"U": str, "b": bool, "i": np.int64, "f": np.float64, "fi": np.float64}.get("".join(sorted(kinds)))
    if dtype is None:
        raise DataError(
            f"{where} holds objects of different kinds, or none of numbers and texts ({', '.join(sorted(kinds))}); "
            "convert them, as by y.astype(str)"
        )
    try:
        return values.astype(dtype)
    except OverflowError:
        raise DataError(
            f"{where} holds integers that do not fit int64; write them as texts, by y.astype(str)"
        ) from None
