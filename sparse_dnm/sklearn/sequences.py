"""Sequences as arrays (n, time, features): shorter ones end with time steps of NaN, as tslearn pads them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_array
from torch import Tensor

from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.data.rows import packed

FLOATS = (np.float64, np.float32)


class Sequences(NamedTuple):
    """Sequences one after the other.

    rows     float (time steps of all, features)
    lengths  int64 (n,)  time steps of each sequence, 1 or more
    """

    rows: np.ndarray
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    def taken(self, kept: NDArray[np.int64]) -> Sequences:
        """The sequences ``kept``, by their numbers, ascending."""
        chosen = np.zeros(len(self.lengths), np.bool_)
        chosen[kept] = True
        return Sequences(self.rows[chosen.repeat(self.lengths)], self.lengths[kept])


def in_rows(features: Any, weights: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
    """The time steps of sequences, with the weight of their sequence; other samples as they are."""
    if not isinstance(features, Sequences):
        return features, weights
    return features.rows, None if weights is None else weights.repeat(features.lengths)


def is_sequences(features: Any) -> bool:
    """Whether ``features`` is an array of three axes, or lists as deep."""
    if not isinstance(features, (list, tuple)):
        return getattr(features, "ndim", None) == 3
    depth, first = 1, features[:1]
    while first and isinstance(first[0], (list, tuple)):
        first, depth = first[0][:1], depth + 1
    return depth + np.ndim(first[0] if first else 0) == 3


def check_flat(features: Any) -> None:
    """Raise ValueError for an array of more than three axes."""
    if getattr(features, "ndim", 2) > 3:
        raise ValueError(
            f"X has shape {np.shape(features)} (found array with dim {features.ndim}); give samples as (n, features), "
            "or sequences as (n, time, features)"
        )


def read(features: Any) -> Sequences:
    """Checked sequences of an array (n, time, features).  Raises ValueError for NaN before the end of a sequence, for
    one of no time step, and what scikit-learn raises for infinity and for what are no numbers."""
    if isinstance(features, (list, tuple)) and len({len(one) for one in features}) > 1:
        some = ", ".join(str(len(one)) for one in features[:3])
        raise ValueError(
            f"X is a list of sequences of {some}, ... time steps: give one array (n, time, features) in which "
            "shorter sequences end with time steps of NaN"
        )
    values = check_array(features, dtype=FLOATS, allow_nd=True, ensure_all_finite="allow-nan", input_name="X")
    _, time, width = values.shape
    if 0 in (time, width):
        raise ValueError(f"X has shape {values.shape}; sequences have at least one time step and one feature")
    missing = np.isnan(values)
    there = ~missing.all(2)
    lengths = np.where(there.any(1), time - there[:, ::-1].argmax(1), 0)
    if not lengths.all():
        raise ValueError(
            f"X: sequence {int(lengths.argmin())} (from 0) holds NaN only; each must have at least one time step: "
            "leave it out"
        )
    inside = np.arange(time) < lengths[:, None]
    gaps = missing & inside[:, :, None]
    if gaps.any():
        sequence, step, feature = np.argwhere(gaps)[0].tolist()
        raise ValueError(
            f"X contains NaN in sequence {sequence}, time step {step}, feature {feature} (from 0): NaN in all features "
            "fills up a shorter sequence at its end; elsewhere a value must be given"
        )
    return Sequences(values[inside], lengths)


def features_of(estimator: Any, features: Any, reset: bool) -> Sequences:
    """The sequences of an array, as `read` checks them; ``reset``: their number of features is the estimator's from now
    on, else it must be that."""
    if not is_sequences(features):
        raise ValueError(
            f"X has shape {np.shape(features)}; this {type(estimator).__name__} was fitted with sequences and takes "
            "(n, time, features); give one of them as X[None]"
        )
    found = read(features)
    width = found.rows.shape[1]
    if reset:
        estimator.n_features_in_ = width
        vars(estimator).pop("feature_names_in_", None)
    elif width != estimator.n_features_in_:
        raise ValueError(
            f"X has {width} features, but {type(estimator).__name__} is expecting {estimator.n_features_in_} features "
            "as input"
        )
    return found


def inputs(
    preprocessing: Preprocessing, sequences: Sequences, dtype: torch.dtype, warned: list[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs (n, time, n_inputs) of a network, zeros after the end of a sequence, and lengths int64 (n,)."""
    rows, lengths = preprocessing.inputs(sequences.rows, dtype, warned), sequences.lengths
    of_row = np.arange(len(lengths)).repeat(lengths)
    x, _, found = packed(rows, rows[:, 0], of_row, False)
    return x, found
