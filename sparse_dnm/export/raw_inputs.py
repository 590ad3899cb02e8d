"""Inputs of a network from the numbers of a raw sample, for formats that standardise by themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.data.columns import Column, TableInputs
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing


class Rule(NamedTuple):
    """How an input is made of a number v: ``missing`` if v is NaN, else (v - mean) * factor.

    Where ``high`` is not infinite, v is first replaced by 1 if low <= v < high, else by 0.
    """

    column: int
    mean: float
    factor: float
    missing: float = 0.0
    low: float = 0.0
    high: float = np.inf


@dataclass(frozen=True, eq=False)
class RawInputs:
    """A `Rule` for each input of a network, as arrays.

    A sample is a row of numbers: of a table its columns, with the place of a category among its levels, 0 and 1 for
    booleans, days since 1970 for dates, and NaN for missing cells; of an image its pixels in the order of the training.

    n_columns  of a sample
    rules      float64 (6, n_inputs): column, mean, factor, missing, low, high
    may_miss   cells may be NaN
    """

    n_columns: int
    rules: NDArray[np.float64]
    may_miss: bool

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> RawInputs:
        """Those of a preprocessing."""
        features = preprocessing.features
        if isinstance(features, TableInputs):
            rules = [rule for k, column in enumerate(features.columns) for rule in _of_column(k, column)]
            return cls(len(features.columns), np.array(rules).T, may_miss=True)
        return cls(features.n_inputs, np.array(_of_array(features)).T, may_miss=False)

    def chosen(self, inputs: NDArray[Any]) -> RawInputs:
        """Those of some inputs."""
        return replace(self, rules=self.rules[:, inputs])

    def named(self) -> Rule:
        """The arrays by name."""
        return Rule(*self.rules)


def _of_array(features: ArrayInputs) -> list[Rule]:
    column = np.arange(features.n_inputs)
    if features.channels_first:
        raw = features.shape[-1:] + features.shape[:-1]
        column = np.moveaxis(column.reshape(raw), 0, -1).ravel()
    mean, std = features.moments()
    return [Rule(k, m, 1 / s) for k, m, s in zip(column.tolist(), mean.tolist(), std.tolist(), strict=True)]


def _of_column(k: int, column: Column) -> list[Rule]:
    """Those of the inputs of a column, in their order."""
    if column.kind == "category":
        n = len(column.levels)
        rules = [Rule(k, 0.0, 1.0, low=level, high=level + 1) for level in range(n)]
        if (
            column.others
        ):  # 1 minus being one of the levels; a missing cell is another text if training had none missing
            rules.append(Rule(k, 1.0, -1.0, missing=float(not column.missing), low=0, high=n))
    else:
        rules = [Rule(k, column.mean, 1 / column.std)]
    if column.missing:
        rules.append(Rule(k, 0.0, 0.0, missing=1.0))
    return rules
