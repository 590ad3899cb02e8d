"""Data sets by name, from files, or from arrays and frames in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_dnm.data import built_in, sequences
from sparse_dnm.data.arrays import read_npz
from sparse_dnm.data.errors import DataError, check_file, counted
from sparse_dnm.data.from_arrays import array_dataset
from sparse_dnm.data.from_tables import file_dataset, frame_dataset
from sparse_dnm.data.options import ARRAYS_ONLY, TABLE_ONLY, Reading
from sparse_dnm.data.order import BatchOrder
from sparse_dnm.data.samples import Dataset
from sparse_dnm.data.table_files import SUFFIXES, is_table

__all__ = ["NAMES", "BatchOrder", "DataError", "Dataset", "from_arrays", "from_frame", "load"]

NAMES = ("toy", "digits", "mnist", *sequences.TASKS, sequences.PSMNIST)
TABLES = f"tables ({', '.join(SUFFIXES)})"


def load(
    name_or_path: str | Path,
    data_dir: Path | None = None,
    target: str | Sequence[str] | None = None,
    seed: int = 0,
    *,
    drop: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    categories: str | Sequence[str] = (),
    task: str | None = None,
    header: str | None = None,
    test_size: float | None = None,
    stratify: bool | None = None,
    group: str | None = None,
    channels: str | None = None,
    drop_unlabelled: bool = False,
    sequence: str | None = None,
    per_step: bool = False,
    window: int | None = None,
    horizon: int | None = None,
    version: int = built_in.VERSION,
) -> Dataset:
    """The data set ``name_or_path``: toy, digits, mnist, a task of `sparse_dnm.data.sequences` (adding, copy, parity,
    anbn, anbncn, dyck1, rows-digits, psmnist), or a file .npz, .csv, .tsv, .txt, .data (.gz, .zip), .parquet.

    data_dir  folder of MNIST's IDX files; default $SPARSE_DNM_DATA, else scikit-learn's fetch_openml
    target    name of a table's label column (several: a regression of all); default the last column
    seed      of the samples of toy and of those tasks, and of the derived train/test splits (mnist, psmnist: their own)
    version   1 for the samples of toy that runs of earlier versions were trained on
    The other options are those of `Reading`.

    A .npz holds x (n, features) or images (n, h, w) or with channels, y (n,), one-hot or (n, columns), and perhaps
    x_test and y_test, under any usual name; a table has a header and a label column.  The task is a classification
    where the labels are text, bool, or integers of at most max(20, sqrt(n)) distinct values, otherwise a regression.
    ``notes`` of the data set say what was decided.  Raises DataError naming the value, the rule and the way out.
    """
    chosen: Any = {"target": target, "drop": drop, "keep": keep, "categories": categories, "task": task, "group": group}
    chosen |= {"header": header, "test_size": test_size, "stratify": stratify, "channels": channels}
    chosen |= {"sequence": sequence, "per_step": per_step, "window": window, "horizon": horizon}
    return load_as(name_or_path, data_dir, Reading(**chosen, drop_unlabelled=drop_unlabelled), seed, version)


def load_as(
    name_or_path: str | Path,
    data_dir: Path | None,
    reading: Reading,
    seed: int = 0,
    version: int = built_in.VERSION,
) -> Dataset:
    """`load` with its options as a `Reading`."""
    name = str(name_or_path)
    path = Path(name).expanduser()
    if name in NAMES:
        reading.check_for(name, TABLE_ONLY, TABLES)
        reading.check_for(name, tuple(reading.given), "files of your own")
        if name == "mnist":
            return built_in.mnist(data_dir)
        if name == sequences.PSMNIST:
            return sequences.psmnist(data_dir)
        if name in sequences.TASKS:
            return sequences.TASKS[name](seed)
        return built_in.toy(seed, version) if name == "toy" else built_in.digits(seed)
    if not is_file_name(name):
        if path.is_dir():
            check_file(path)
        hint = ": a .npy holds one array, save both by numpy.savez(path, x=x, y=y)" if path.suffix == ".npy" else ""
        if name in ("-", "/dev/stdin"):
            hint = ": standard input is read by predict only, as --resume and evaluate read the data again"
        raise DataError(
            f"data set {name!r} is unknown; choose one of {', '.join(NAMES)}, or give the path of a file "
            f"that ends in .npz or {', '.join(SUFFIXES)}, or .csv.gz, .csv.zip{hint}"
        )
    if path.suffix.lower() == ".npz":
        reading.check_for(name, TABLE_ONLY, TABLES)
    else:
        reading.check_for(name, ARRAYS_ONLY, "images in a .npz")
    check_file(path)
    if path.suffix.lower() == ".npz":
        return array_dataset(name, read_npz(path), seed, reading)
    return file_dataset(name, path, seed, reading)


def is_file_name(name: str) -> bool:
    """The name is that of a file with data, not of a data set."""
    return name not in NAMES and (Path(name).suffix.lower() == ".npz" or is_table(Path(name)))


def from_frame(
    frame: Any,
    target: str | Sequence[str] | None = None,
    *,
    test: Any = None,
    name: str = "frame",
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """A data set from a pandas DataFrame, read as a file of it would be; columns of dtype category are categories.

    target   name of the label column, or several for a regression of all; default the last column
    test     a DataFrame with the rows to test on; default: they are split off, as ``seed`` draws them
    options  of `Reading`: drop, keep, categories, task, test_size, stratify, group, drop_unlabelled,
             sequence, per_step, window, horizon
    """
    reading = Reading(target=target, **options)  # type: ignore[arg-type]
    reading.check_for(name, (*ARRAYS_ONLY, "header"), "files and images")
    return frame_dataset(name, frame, test, seed, reading)


def from_arrays(
    x: Any, y: Any, x_test: Any = None, y_test: Any = None, *, name: str = "arrays", seed: int = 0, **options: Any
) -> Dataset:
    """A data set from arrays (numpy, torch, lists), read as a .npz of them would be; or from a DataFrame and labels.

    options  of `Reading`: task, test_size, stratify, channels, and for a DataFrame those of `from_frame`
    """
    if (x_test is None) != (y_test is None):
        raise DataError("give both or neither of x_test and y_test")
    if hasattr(x, "columns"):
        frame, names = _joined(x, y)
        test = None if x_test is None else _joined(x_test, y_test)[0]
        return from_frame(frame, names, test=test, name=name, seed=seed, **options)
    reading = Reading(**options)
    reading.check_for(name, TABLE_ONLY, TABLES)
    arrays = {"x": x, "y": y} if x_test is None else {"x": x, "y": y, "x_test": x_test, "y_test": y_test}
    return array_dataset(name, arrays, seed, reading)


def _joined(x: Any, y: Any) -> tuple[Any, list[str]]:
    """A DataFrame of features and labels, and the names of the labels."""
    import numpy as np
    import pandas as pd

    if len(x) != len(y):
        raise DataError(f"x has {counted(len(x), 'sample')} but y {len(y)}; give one y per sample of x")
    labels = (
        y if hasattr(y, "columns") else pd.DataFrame(np.asarray(y) if not isinstance(y, pd.Series) else y.to_frame())
    )
    taken = [str(name) for name in x.columns]
    width = labels.shape[1]
    plain = ["target"] if width == 1 else [f"target {k}" for k in range(width)]
    own = [str(name) for name in labels.columns] if isinstance(y, pd.Series) or hasattr(y, "columns") else plain
    names = plain if any(each in taken or each in ("0", "None") for each in own) else own
    frame = pd.concat([x.reset_index(drop=True), labels.set_axis(names, axis=1).reset_index(drop=True)], axis=1)
    return frame, names
