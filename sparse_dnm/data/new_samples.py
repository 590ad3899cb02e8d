"""Files with new samples, without labels: to predict for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_dnm.data.arrays import BAD_ZIP, NAMES
from sparse_dnm.data.errors import DataError, check_file
from sparse_dnm.data.table_files import SUFFIXES, is_table, read_table

LENGTHS = "lengths"  # of sequences, beside them in a .npz


def read_samples(path: str | Path, header: str | None = None, names: Sequence[str] = ()) -> Any:
    """The samples in a file: a DataFrame of a table, an array of a .npz or .npy.

    header  as in `Reading`; "none": the columns are the features ``names`` in their order, if they are as many
    Raises DataError naming the file and what is wrong in it.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        check_file(path)
    if suffix not in (".npz", ".npy") and not is_table(path):
        raise DataError(
            f"{path}: samples to predict for are read from .npz, .npy, {', '.join(SUFFIXES)}, .csv.gz or .csv.zip; "
            "save them as one of these"
        )
    check_file(path)
    if suffix in (".npz", ".npy"):
        return _array(path)
    frame = read_table(path, header, least=1)
    if header == "none" and len(frame.columns) == len(names):
        frame.columns = list(names)
    return frame


def read_lengths(path: str | Path) -> np.ndarray | None:
    """The array ``lengths`` of a .npz, time steps of its sequences; None where there is none, or in another file.

    Raises DataError naming arrays that are neither read nor labels: one may be lengths by a wrong name.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".npz":
        return None
    with np.load(path, allow_pickle=False) as held:
        others = [name for name in _unread(path, held.files) if not _is(name, "y", "y_test")]
        if others:
            raise DataError(
                f"{path} holds the arrays: {', '.join(held.files)}; of sequences {_name(path, held.files)} and "
                f"{LENGTHS} are read: rename {others[0]} to {LENGTHS} if it holds the time steps of each sequence, or "
                f"save the file without {', '.join(others)}"
            )
        return np.asarray(held[LENGTHS]) if LENGTHS in held.files else None


def label_names(path: str | Path) -> list[str]:
    """Names of the arrays of labels in a .npz of sequences; [] for another file."""
    path = Path(path).expanduser()
    if path.suffix.lower() != ".npz":
        return []
    with np.load(path, allow_pickle=False) as held:
        return _unread(path, held.files)


def _unread(path: Path, names: list[str]) -> list[str]:
    """Those of the arrays ``names`` of a .npz of sequences that are not read."""
    return [name for name in names if name not in (LENGTHS, _name(path, names))]


def as_rows(samples: Any) -> Any:
    """Rows whose cells have names as a DataFrame: a dict or Series of cells is one row, a list of dicts has one each,
    and a dict of columns is a table; None for anything else."""
    import pandas as pd

    try:
        if isinstance(samples, pd.Series):
            texts = [name for name in samples.index if isinstance(name, str)]
            return pd.DataFrame([samples.to_dict()]) if texts else None
        if isinstance(samples, Mapping):
            one = all(np.ndim(value) == 0 for value in samples.values())
            return pd.DataFrame([dict(samples)]) if one else pd.DataFrame(dict(samples))
        if isinstance(samples, (list, tuple)) and samples and all(isinstance(row, Mapping) for row in samples):
            return pd.DataFrame([dict(row) for row in samples])
    except ValueError as error:
        raise DataError(f"the samples are no table ({error}); give a DataFrame, or a dict per row") from None
    return None


def _array(path: Path) -> np.ndarray:
    """The samples of a .npy, or of a .npz: its only array, or x under any usual name."""
    try:
        with path.open("rb") as file:
            held: Any = np.load(file, allow_pickle=False)
            return held if isinstance(held, np.ndarray) else np.asarray(held[_name(path, held.files)])
    except DataError:
        raise
    except (*BAD_ZIP, OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(
            f"{path} is truncated, or no file of plain arrays ({error}); save numbers by numpy.savez"
        ) from None


def _name(path: Path, names: list[str]) -> str:
    """The name of the samples among the arrays of a .npz."""
    names = [name for name in names if name != LENGTHS] or names
    if len(names) == 1:
        return names[0]
    for role in ("x", "x_test"):
        found = [name for name in names if _is(name, role)]
        if found:
            return found[0]
    raise DataError(
        f"{path} holds the arrays: {', '.join(names) or 'none'}; the samples must be its only array, or be called x"
    )


def _is(name: str, *roles: str) -> bool:
    """The array is called as those of one of the roles are."""
    return any(re.sub(r"[\W_]", "", name).lower() in NAMES[role] for role in roles)
