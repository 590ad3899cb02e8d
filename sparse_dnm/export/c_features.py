"""Preprocessing as C: raw features to inputs of the network, and outputs to a class or to numbers in their units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.data.columns import Column, TableInputs
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing
from sparse_dnm.lowering.tables import Tables

MAX_FOLDED = 16.0  # |mean| / std up to which a mean is folded into biases: float32 would lose more digits than that


@dataclass(frozen=True, eq=False)
class Features:
    """Raw features of a sample, a float each, and the inputs that they become.

    preprocessing  of a run
    """

    preprocessing: Preprocessing

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those of a table whose columns have kinds; () for arrays of numbers."""
        features = self.preprocessing.features
        return features.columns if isinstance(features, TableInputs) else ()

    @property
    def n_features(self) -> int:
        """Floats of a sample."""
        return len(self.columns) or self.preprocessing.n_inputs

    @property
    def names(self) -> list[str]:
        """A name for each feature."""
        return list(self.preprocessing.feature_names) or [f"feature {k}" for k in range(self.n_features)]

    @property
    def classes(self) -> list[str]:
        """Names of the classes; [] for a regression."""
        found = self.preprocessing.classes
        return [] if found is None else [str(name) for name in found.tolist()]

    @property
    def order(self) -> NDArray[np.int64]:
        """The feature that each input is of, for arrays: images with channels first are read so."""
        features = self.preprocessing.features
        assert isinstance(features, ArrayInputs)
        places = np.arange(features.n_inputs)
        if features.channels_first:
            raw = features.shape[-1:] + features.shape[:-1]
            places = np.moveaxis(places.reshape(raw), 0, -1).ravel()
        return places

    @property
    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Mean and deviation of each input, if the network can take features as they are, by other factors."""
        features = self.preprocessing.features
        if not isinstance(features, ArrayInputs) or features.channels_first:
            return None
        mean, std = features.moments()
        return (mean, std) if (np.abs(mean) <= MAX_FOLDED * std).all() else None

    def inputs(self, samples: Any, dtype: Any = np.float64) -> NDArray[Any]:
        """Inputs (n, n_inputs) of samples (n, n_features) as the C program takes them, with codes of categories.

        In float32 they have the bits that the C program computes.
        """
        samples = np.asarray(samples, dtype)
        mean, std = self.preprocessing.features.moments()
        if not self.columns:
            return (samples[:, self.order] - mean.astype(dtype)) * (1 / std).astype(dtype)
        out, first = np.zeros((len(samples), self.preprocessing.n_inputs), dtype), 0
        for k, column in enumerate(self.columns):
            value, n = samples[:, k], len(column.levels)
            missing = np.isnan(value)
            if column.kind == "category":
                code = np.where(missing | (value < 0) | (value > n), n, value).astype(np.int64)
                known = ~missing | (not column.missing)
                keep = known & (code < n + column.others)
                out[keep, first + code[keep]] = 1.0
            else:
                out[:, first] = np.where(missing, 0.0, (value - dtype(column.mean)) * dtype(1 / column.std))
            first += column.n_inputs
            if column.missing:
                out[:, first - 1] = missing
        return out

    def examples(self, n: int) -> NDArray[np.float32]:
        """Samples (n, n_features) to test with: drawn by mean and deviation, with every level and missing cells."""
        rng = np.random.default_rng(0)
        if not self.columns:
            mean, std = self.preprocessing.features.moments()
            out = np.empty((n, self.n_features))
            out[:, self.order] = mean + std * rng.standard_normal((n, self.n_features))
            return out.astype(np.float32)
        drawn = []
        for column in self.columns:
            if column.kind == "category":
                values = rng.integers(0, len(column.levels) + 1, n).astype(np.float64)
            elif column.kind == "boolean":
                values = rng.integers(0, 2, n).astype(np.float64)
            else:
                values = column.mean + column.std * rng.standard_normal(n)
            drawn.append(np.where(rng.random(n) < 0.1, np.nan, values))
        return np.stack(drawn, axis=1).astype(np.float32)

    # -- C ---------------------------------------------------------------------------------------------------

    def lines(self, tables: Tables, code: str = "") -> Iterator[str]:
        """Lines that compute x from features, or the codes of x by a function ``code``; adds their tables."""
        if self.columns:
            yield from self._table_lines(tables, code)
            return
        mean, std = self.preprocessing.features.moments()
        source, place = "k", "k"
        if len(set(mean.tolist())) == 1 and len(set(std.tolist())) == 1:
            mean, std, place = mean[:1], std[:1], "0"
        tables.reals("mean", mean)
        tables.reals("per_std", 1 / std)
        if not np.array_equal(self.order, np.arange(self.n_features)):
            tables.unsigned("order", self.order)
            source = "tables.order[k]"
        yield f"for (k = 0; k < {self.n_features}; k++)"
        yield f"    x[k] = {code}((features[{source}] - tables.mean[{place}]) * tables.per_std[{place}]);"

    def _table_lines(self, tables: Tables, code: str) -> Iterator[str]:
        columns = self.columns
        tables.reals("mean", [column.mean for column in columns])
        tables.reals("per_std", [1 / column.std for column in columns])
        categories = any(column.kind == "category" for column in columns)
        missing = any(column.missing for column in columns)
        if categories:
            tables.unsigned("levels", [len(column.levels) for column in columns])
            kinds = [
                (column.kind == "category") + 2 * (column.kind == "category" and column.others) for column in columns
            ]
            tables.unsigned("category", kinds)
        if missing:
            tables.unsigned("missing", [column.missing for column in columns])
        yield from (f"for (k = 0; k < {len(columns)}; k++) {{", "    const float value = features[k];",
                    "    const int is_missing = value != value;")  # fmt: skip
        indent = "    "
        if categories:
            yield from (
                "    if (tables.category[k]) {", "        unsigned n = tables.levels[k], code = n, level;",
                "        if (value >= 0 && value < (float)n)", "            code = (unsigned)value;",
                "        n += tables.category[k] >> 1;",
                f"        if (is_missing{' && tables.missing[k]' if missing else ' && 0'})", "            code = n;",
                "        for (level = 0; level < n; level++)", f"            *to++ = {code}((float)(level == code));",
                "    } else {",
            )  # fmt: skip
            indent = "        "
        yield f"{indent}*to++ = {code}(is_missing ? 0.0f : (value - tables.mean[k]) * tables.per_std[k]);"
        if categories:
            yield "    }"
        if missing:
            yield from ("    if (tables.missing[k])", f"        *to++ = {code}((float)is_missing);")
        yield "}"
