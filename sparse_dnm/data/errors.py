"""The error of data that cannot be used, and the checks that numbers are finite, and that float32 can hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FLOAT32_MAX, FLOAT64_MAX = float(np.finfo(np.float32).max), np.finfo(np.float64).max
BEYOND = "not finite in float32 as a number of standard deviations from the mean of the training"


class DataError(ValueError):
    """Data that cannot be used; the message names the value, the rule and the way out."""


def check_file(path: Path) -> None:
    """Raise DataError if ``path`` is no file with data."""
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; name a file in it (images: read them into one array, and save it by "
            "numpy.savez(path, x=images, y=labels))"
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; check the path")


def counted(n: int, what: str) -> str:
    """A number of things: 1 sample, 2 samples; of classes: 1 class, 2 classes."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}{'es' if what.endswith('s') else 's'}"


def check_finite(where: str, values: np.ndarray) -> None:
    """Raise DataError naming row and column of a value that is NaN or infinite as float64."""
    if values.dtype.kind != "f":
        return
    bad = ~(np.abs(values) <= FLOAT64_MAX)
    if bad.any():
        place = tuple(int(k) for k in np.argwhere(bad)[0])
        raise DataError(f"{where}: {values[place]} in {_named(place)} is not finite; correct or remove the row")


def check_standardised(where: str, inputs: np.ndarray, values: np.ndarray) -> None:
    """Raise DataError naming row and column of one of ``values`` that float32 cannot hold, standardised as ``inputs``.

    Both have the same shape.
    """
    bad = ~(np.abs(inputs) <= np.float64(FLOAT32_MAX))
    if bad.any():
        place = tuple(int(k) for k in np.argwhere(bad)[0])
        raise DataError(f"{where}: {values[place]} in {_named(place)} is {BEYOND}; correct or remove the row")


def _named(place: tuple[int, ...]) -> str:
    return f"row {place[0]}, column {', '.join(map(str, place[1:])) or '0'} (from 0)"
