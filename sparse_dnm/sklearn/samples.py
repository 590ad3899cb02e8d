"""Samples as scikit-learn passes them: checked, with weights, as a `Dataset`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from sparse_dnm.data.cells import Cells, cells_of, check_range, quoted, short
from sparse_dnm.data.columns import TableInputs, fitted
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.notes import written_notes
from sparse_dnm.data.options import RULES
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing, Target
from sparse_dnm.data.scales import has_squares, moments, standardised, unvaried
from sparse_dnm.data.spelling import read_as
from sparse_dnm.data.suspicions import identifiers, names_twice
from sparse_dnm.sklearn import sequences
from sparse_dnm.sklearn.sequences import FLOATS, Sequences

SPARSE = ("csr", "csc", "coo")


class Samples(NamedTuple):
    """Samples of positive weight.

    features  DataFrame, float (n, columns), or Sequences
    targets   int64 (n,) places in the classes, or float64 (n, columns)
    weights   float64 (n,); None: all 1
    """

    features: Any
    targets: np.ndarray
    weights: np.ndarray | None

    @property
    def sum_of_weights(self) -> float:
        """That of all; a sample without a weight counts as one."""
        return float(len(self.targets)) if self.weights is None else float(self.weights.sum())


def is_table(features: Any) -> bool:
    """Whether ``features`` is a DataFrame of pandas with columns that are no numbers, or with missing cells."""
    if not (hasattr(features, "columns") and hasattr(features, "isna") and hasattr(features, "dtypes")):
        return False
    kinds = [getattr(dtype, "kind", "O") for dtype in features.dtypes]
    return any(kind not in "iufc" for kind in kinds) or bool(features.isna().to_numpy().any())


def has_gaps(estimator: Any, features: Any) -> bool:
    """Whether ``features`` is a DataFrame with missing cells, for an estimator of columns with names."""
    return (
        hasattr(estimator, "feature_names_in_")
        and hasattr(features, "columns")
        and hasattr(features, "isna")
        and bool(features.isna().to_numpy().any())
    )


def features_of(estimator: Any, features: Any, tables: bool, reset: bool) -> Any:
    """The features, checked as scikit-learn checks them; ``tables``: columns of any kind, which are not looked at."""
    if tables or (not reset and has_gaps(estimator, features)):
        check_names(features)
        validate_data(estimator, features, reset=reset, skip_check_array=True)
        if np.ndim(features) != 2 or 0 in np.shape(features):
            raise ValueError(f"the table has the shape {np.shape(features)}; give at least one row and one column")
        return features
    check_numbers(features)
    if sequences.is_sequences(features):
        raise ValueError(
            f"X has shape {np.shape(features)}, sequences, and this {type(estimator).__name__} was fitted with samples "
            "(n, features), of no time steps: found array with dim 3, expected 2"
        )
    return dense(validate_data(estimator, features, reset=reset, dtype=FLOATS, accept_sparse=SPARSE))


def check_names(features: Any) -> None:
    """Raise ValueError for a DataFrame with two columns of one name."""
    names_twice("X", [str(name) for name in getattr(features, "columns", ())])


def check_numbers(features: Any) -> None:
    """Raise ValueError for an array of objects or texts that holds what is no number."""
    kind = getattr(getattr(features, "dtype", None), "kind", "")
    if kind not in "OU" or not kind or np.ndim(features) != 2:
        return
    for place, value in np.ndenumerate(features):
        if isinstance(value, str) and not _is_float(value):
            raise ValueError(
                f"X: {quoted(value)} in row {place[0]}, column {place[1]} (from 0) could not be converted: it is a "
                "text in an array, which holds numbers only; give words as a DataFrame of pandas, or encode them"
            )


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def dense(features: Any) -> Any:
    """An array; a sparse matrix of scipy is written out, since every input is read."""
    return features.toarray() if hasattr(features, "toarray") else features


def plain_targets(y: Any) -> Any:
    """Targets of pandas' own dtypes as an array of booleans, numbers or texts; others as they are.

    Raises ValueError naming the row of a missing one; NaN in an array of floats is for scikit-learn's check.
    """
    if hasattr(y, "columns"):  # several columns are numbers
        return plain_targets(y.iloc[:, 0])[:, None] if y.shape[1] == 1 else y
    kind, plain = (getattr(getattr(y, "dtype", None), name, None) for name in ("kind", "numpy_dtype"))
    if not (hasattr(y, "isna") or kind == "O") or np.ndim(y) != 1:
        return y
    import pandas as pd  # slow to import

    missing = np.asarray(pd.isna(y))
    if missing.any() and kind != "f":
        row = int(missing.argmax())
        raise ValueError(
            f"y holds {np.asarray(y, object)[row]!r} in row {row} (from 0), and {int(missing.sum())} of {len(missing)} "
            "targets are missing: leave such rows out"
        )
    return np.asarray(y) if plain is None or missing.any() else y.to_numpy(plain)


def check_no_dates(targets: np.ndarray) -> None:
    """Raise ValueError for targets that are dates or spans of time."""
    if targets.dtype.kind in "mM":
        raise ValueError(
            f"y holds {'dates' if targets.dtype.kind == 'M' else 'spans of time'} ({targets.dtype}); targets are "
            "numbers or names: give numbers, as of days, or texts"
        )


def weights_of(sample_weight: Any, n_samples: int) -> np.ndarray | None:
    """float64 (n_samples,), checked; None where all are equal to 1."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Real):
        sample_weight = np.full(n_samples, sample_weight)
    try:
        values = np.asarray(sample_weight).astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"sample_weight={short(repr(sample_weight))} must be None or a number for each sample"
        ) from None
    weights = check_array(values, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if weights.shape != (n_samples,):
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected {(n_samples,)}: one weight per sample")
    if (weights < 0).any():
        raise ValueError(f"sample_weight holds {weights.min():g}; weights must not be negative: leave the sample out")
    with np.errstate(over="ignore"):
        if not np.isfinite(weights.sum()):
            raise ValueError(
                f"sample_weight holds {weights.max():g}, and the sum of all is beyond float64; divide all of them by it"
            )
    if not weights.any():
        raise ValueError("sample_weight holds zero weights only; at least one sample must have a weight above zero")
    return weights


def of_positive_weight(features: Any, targets: np.ndarray, weights: np.ndarray | None) -> Samples:
    """The samples without those of weight 0, which are as if they were not there."""
    if weights is None or weights.all():
        return Samples(features, targets, weights)
    kept = np.flatnonzero(weights)
    if isinstance(features, Sequences):
        rows: Any = features.taken(kept)
    else:
        rows = features.iloc[kept] if hasattr(features, "iloc") else features[kept]
    return Samples(rows, targets[kept], weights[kept])


def by_class(
    class_weight: Mapping[Any, float] | str, classes: np.ndarray, targets: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """The weight of each sample's class, 1 where ``class_weight`` does not name it.

    Raises ValueError for a key that is no class where a class has no weight, and for a weight that is none.

    "balanced": all classes that there are have the same sum of weights, and the sum of all stays.
    """
    if isinstance(class_weight, str):
        sums = np.bincount(targets, weights, len(classes)).astype(np.float64)
        present = sums > 0
        return (sums.sum() / (present.sum() * np.where(present, sums, 1.0)))[targets]
    known = classes.tolist()
    unknown = [key for key in class_weight if key not in known]
    if unknown and not all(label in class_weight for label in known):  # else a fold may lack a class
        raise ValueError(
            f"class_weight has the key {unknown[0]!r}, which is no class; the classes are {_shown(known)}: write keys "
            "as y has them, of the same type"
        )
    values = [class_weight.get(label, 1.0) for label in known]
    bad = [value for value in values if not (isinstance(value, Real) and math.isfinite(value) and value >= 0)]
    if bad or not any(values):
        what = f" Got {bad[0]!r} instead." if bad else ""
        raise ValueError(
            f"class_weight={dict(class_weight)!r} must hold finite weights >= 0, and one above zero.{what}"
        )
    return np.array(values, np.float64)[targets]


def _shown(labels: Sequence[Any], most: int = 20) -> str:
    """The first labels, as Python writes them."""
    return ", ".join(map(repr, labels[:most])) + ", ..." * (len(labels) > most)


def _moments(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column, float64; a constant column has its value and 1."""
    return moments(np.ascontiguousarray(values, np.float64), (0,), weights)  # the layout is not to change the last bits


def names_of(target: Any) -> tuple[str, ...]:
    """The names of the columns of a DataFrame or Series; () where they have none."""
    columns = [*target.columns] if hasattr(target, "columns") else [getattr(target, "name", None)]
    names = tuple(name for name in columns if isinstance(name, str))
    return names if len(names) == len(columns) else ()


def preprocessing_for(
    samples: Samples, names: tuple[str, ...], target_names: tuple[str, ...], classes: np.ndarray | None,
    warned: list[str],
) -> Preprocessing:  # fmt: skip
    """Standardised features, by the weights of the samples; and the classes, or standardised targets.

    A DataFrame is read by the rules for tables, as a file is.  ``warned`` gets what is doubtful in columns with names.
    """
    if classes is None:
        mean, std = _moments(samples.targets, samples.weights)
        target = Target(target_names, mean=mean, std=std)
    else:
        target = Target(target_names, classes=np.array(classes.tolist()))
    if hasattr(samples.features, "columns"):
        return Preprocessing(table_inputs(samples.features, samples.weights, warned), target)
    rows, weights = sequences.in_rows(samples.features, samples.weights)
    numbers = [Cells(name, values=rows[:, k], kind="number") for k, name in enumerate(names)]
    warned += identifiers(numbers, (), leaves_out=False).warnings()
    mean, std = _moments(rows, weights)
    return Preprocessing(ArrayInputs(rows.shape[1:], mean, std, names, constant=unvaried(rows, (0,))), target)


def table_inputs(frame: Any, weights: np.ndarray | None = None, warned: list[str] | None = None) -> TableInputs:
    """The columns of a DataFrame as inputs, fitted on its rows: texts that are numbers, dates or yes and no are read as
    such, others and categories become an input for each frequent level, missing cells have an input of their own.

    weights  float64 (n,), of the rows in means, deviations and the order of levels
    warned   gets what is doubtful in them
    """

    def where(row: int) -> str:
        return f"X, row {row} (from 0)"

    columns, notes = [], list[str]()
    for k, name in enumerate(map(str, frame.columns)):
        cells = cells_of(name, frame.iloc[:, k])
        read = read_as(cells, ".", where, str(frame.dtypes.iloc[k]) == "category", RULES, notes)
        check_range(read, where, read=cells)
        columns.append(read)
        notes += written_notes(cells, read)
    categories = [
        str(name) for name, dtype in zip(frame.columns, frame.dtypes, strict=True) if str(dtype) == "category"
    ]
    if warned is not None:
        warned += [note.removeprefix("warning: ") for note in notes if note.startswith("warning: ")]
        warned += identifiers(columns, categories, leaves_out=False).warnings()
    return TableInputs(tuple(fitted(columns, np.arange(len(frame)), weights)))


def dataset_of(
    samples: Samples, preprocessing: Preprocessing, dtype: torch.dtype, warned: list[str] | None = None
) -> Dataset:
    """The samples for a training, without a test set; ``warned`` gets warnings about their columns."""
    target, own = preprocessing.target, dict[str, Any]()
    if isinstance(samples.features, Sequences):
        x, own["lengths_train"] = sequences.inputs(preprocessing, samples.features, dtype, warned)
    else:
        x = preprocessing.inputs(samples.features, dtype, warned)
    if target.classes is None:
        assert target.mean is not None
        assert target.std is not None
        y = torch.from_numpy(standardised(samples.targets, target.mean, target.std)).to(dtype)
        if has_squares(target.std):  # else the figures of the training are in standard deviations
            own |= {"target_mean": torch.from_numpy(target.mean), "target_std": torch.from_numpy(target.std)}
    else:
        y, own["classes"] = torch.from_numpy(samples.targets), tuple(map(str, target.classes.tolist()))
    weights = samples.weights
    return Dataset(
        name="X",
        task="regression" if target.classes is None else "classification",
        x_train=x,
        y_train=y,
        x_test=x[:0],
        y_test=y[:0],
        period=float(x.shape[-1]),
        preprocessing=preprocessing,
        weights=None if weights is None else torch.from_numpy(weights / weights.mean()),
        **own,
    )
