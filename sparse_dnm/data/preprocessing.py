"""How raw samples become inputs of the network, and its outputs predictions; kept in a run directory as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.data.cells import short
from sparse_dnm.data.columns import Column, TableInputs, chosen
from sparse_dnm.data.errors import DataError, check_finite, check_standardised
from sparse_dnm.data.plain import plain
from sparse_dnm.data.scales import in_units, moments, standardised, unvaried
from sparse_dnm.io import UNFIT

VERSION = 1  # of the JSON
CELLS = 1 << 22  # converted at a time


@dataclass(frozen=True, eq=False)
class ArrayInputs:
    """Inputs (x - mean) / std from arrays of numbers: rows of a table, or images.

    shape  of a sample: (features,), (height, width) or (height, width, channels)
    mean   float64, broadcast to ``shape``: of the training split, or 0 where samples are scaled only
    std    as mean; 1 where a column is constant
    names  of the columns, where samples are rows of a table with names
    channels_first  samples are (channels, height, width); ``shape`` has the channels last all the same
    constant  bool, as mean: the input had one value in all training samples, and is 0 in all others; None: not kept
    """

    shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    names: tuple[str, ...] = ()
    channels_first: bool = False
    constant: np.ndarray | None = None

    @property
    def n_inputs(self) -> int:
        """Inputs of the network."""
        return math.prod(self.shape)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of every input, float64 (n_inputs,)."""
        mean, std = (np.broadcast_to(values, self.shape).ravel().copy() for values in (self.mean, self.std))
        return mean, std

    def transform(
        self, samples: Any, where: str = "X", dtype: torch.dtype = torch.float32, warned: list[str] | None = None
    ) -> Tensor:
        """Inputs (n, n_inputs) of samples (n, *shape), or (n, n_inputs).  Raises DataError naming a bad value.

        ``warned`` gets warnings about columns that vary unlike in training.
        """
        if self.names and hasattr(samples, "columns"):
            samples = chosen(samples, self.names)
            if hasattr(samples, "isna") and not _are_numbers(samples):
                return self._as_table().transform(samples, where, dtype, warned)
        x = as_numbers(where, samples)
        raw = self.shape[-1:] + self.shape[:-1] if self.channels_first else self.shape
        if x.ndim == 0 or x.shape[1:] not in (raw, (self.n_inputs,)):
            sizes = ", ".join(map(str, ("n", *raw)))
            raise DataError(
                f"{where} has shape {x.shape}; it must be ({sizes}), as the samples of the training{_way_out(x, raw)}"
            )
        check_finite(where, x)
        x = np.moveaxis(x.reshape(len(x), *raw), 1, -1) if self.channels_first else x.reshape(len(x), *raw)
        inputs = np.empty(x.shape, np.float32 if dtype == torch.float32 else np.float64)
        rows = max(1, CELLS // max(1, self.n_inputs))
        for first in range(0, len(x), rows):
            with np.errstate(over="ignore"):  # infinities are reported below
                inputs[first : first + rows] = standardised(x[first : first + rows], self.mean, self.std)
        if self.constant is not None and self.constant.any():
            self._keep_constant(inputs, x, warned)
        check_standardised(where, inputs, x)
        return torch.from_numpy(inputs.reshape(len(x), -1))

    def _as_table(self) -> TableInputs:
        """The same inputs from columns that may be texts, or have missing cells, which the means stand for."""
        mean, std = (values.tolist() for values in self.moments())
        constant = np.zeros(self.shape, bool) if self.constant is None else self.constant
        places = [(0,) if each else () for each in constant.tolist()]
        found = zip(self.names, mean, std, places, strict=True)
        return TableInputs(tuple(Column(name, "number", mean=m, std=s, constant=c) for name, m, s, c in found))

    def _keep_constant(self, inputs: np.ndarray, x: np.ndarray, warned: list[str] | None) -> None:
        """Set inputs (n, *shape) to 0 that did not vary in training, and say which samples have others."""
        assert self.constant is not None
        constant = np.broadcast_to(self.constant, self.shape)
        changed = constant & (inputs != 0)
        inputs[:, constant] = 0.0
        if warned is None or not changed.any():
            return
        mean, places = np.broadcast_to(self.mean, self.shape), np.argwhere(changed.any(0))
        place = tuple(places[0].tolist())
        there, values = changed[(slice(None), *place)], x[(slice(None), *place)]
        row = int(np.argmax(there))
        name = f"column {self.names[place[0]]!r}" if self.names else f"column {', '.join(map(str, place))} (from 0)"
        more = f"; so {'are' if len(places) > 2 else 'is'} {len(places) - 1:,} more" if len(places) > 1 else ""
        warned.append(
            f"{name}: {int(there.sum()):,} of {len(x):,} values are unlike those of the training, such as "
            f"{values[row]:g} in row {row} (from 0): it was {mean[place]:.6g} in all training rows, so that nothing "
            f"was learned about others, and the column tells nothing there{more}"
        )

    def varied(self, samples: Any, weights: np.ndarray | None = None) -> ArrayInputs:
        """The same for a training that goes on with ``samples`` (n, *shape): inputs that vary in them, or from what
        they were, are constant no longer, and are standardised by these samples."""
        if self.constant is None or not self.constant.any():
            return self
        if hasattr(samples, "columns"):  # perhaps with missing cells
            columns = self._as_table().varied(samples, weights).columns
            mean, std = (np.array([getattr(column, name) for column in columns]) for name in ("mean", "std"))
            return replace(self, mean=mean, std=std, constant=np.array([bool(column.constant) for column in columns]))
        x = as_numbers("X", samples)
        changed = self.constant & (x != self.mean).any(0)
        scaled = changed & ~unvaried(x, (0,))
        mean, std = moments(np.ascontiguousarray(x, np.float64), (0,), weights)
        mean, std = np.where(scaled, mean, self.mean), np.where(scaled, std, self.std)
        return replace(self, mean=mean, std=std, constant=self.constant & ~changed)

    def to_json(self) -> dict[str, Any]:
        """This as JSON values."""
        shape, names = list(self.shape), list(self.names)
        scales = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        constant = None if self.constant is None else self.constant.tolist()
        last = {"names": names, "channels_first": self.channels_first, "constant": constant}
        return {"kind": "array", "shape": shape, **scales, **last}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ArrayInputs:
        """The inverse of `to_json`."""
        mean, std = (np.asarray(values[name], np.float64) for name in ("mean", "std"))
        shape, names = tuple(map(int, values["shape"])), tuple(map(str, values.get("names", ())))
        constant = values.get("constant")
        kept = None if constant is None else np.asarray(constant, bool)
        return cls(shape, mean, std, names, bool(values.get("channels_first", False)), kept)


@dataclass(frozen=True, eq=False)
class Target:
    """What outputs mean: the classes in the order of the outputs, or mean and deviation of a regression's targets.

    names    of the target columns; () where they have none
    classes  (n_outputs,) of int, bool, text or float; None for a regression
    mean     float64 (n_outputs,), for a regression
    std      float64 (n_outputs,); 1 where a column is constant
    """

    names: tuple[str, ...] = ()
    classes: np.ndarray | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        """This as JSON values."""
        if self.classes is not None:
            kind = "str" if self.classes.dtype.kind == "U" else self.classes.dtype.name
            return {"names": list(self.names), "classes": self.classes.tolist(), "dtype": kind}
        assert self.mean is not None
        assert self.std is not None
        return {"names": list(self.names), "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Target:
        """The inverse of `to_json`."""
        names = tuple(map(str, values["names"]))
        if "classes" in values:
            return cls(names, np.array(values["classes"], dtype=values["dtype"]))
        return cls(names, None, np.array(values["mean"], np.float64), np.array(values["std"], np.float64))


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Everything needed to predict for new rows.  It has no pickle: `to_json` and `from_json` keep all bits."""

    features: ArrayInputs | TableInputs
    target: Target

    @property
    def classes(self) -> np.ndarray | None:
        """The classes in their own dtype (int, bool, text or float), in the order of the outputs."""
        return self.target.classes

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns that are read, in their order; () for arrays without names."""
        return self.features.names

    @property
    def target_names(self) -> tuple[str, ...]:
        """The columns that are predicted; () where they have no names."""
        return self.target.names

    @property
    def n_inputs(self) -> int:
        """Inputs of the network."""
        return self.features.n_inputs

    def differences(self, other: Preprocessing) -> list[str]:
        """In what samples and predictions are not read as ``other`` reads them."""
        mine, theirs = self.features.moments(), other.features.moments()
        levels, other_levels = (
            [column.levels for column in made.features.columns] if isinstance(made.features, TableInputs) else []
            for made in (self, other)
        )
        found = {
            "names of columns": self.feature_names != other.feature_names,
            "means or deviations": not all(map(np.array_equal, mine, theirs)),
            "levels": levels != other_levels,
            "label": self.target.to_json() != other.target.to_json(),
        }
        return [what for what, changed in found.items() if changed]

    def inputs(
        self, samples: Any, dtype: torch.dtype = torch.float32, warned: list[str] | None = None, where: str = "X"
    ) -> Tensor:
        """Inputs (n, n_inputs) for the network.

        samples  a DataFrame, whose columns are taken by name, or an array (n, ...) of the shape that it was fitted on
        warned   gets warnings about columns in which nearly all cells are missing, or words, unseen in training
        where    what errors call the samples
        Raises DataError naming columns that are missing, or the row and column of a bad value.
        """
        return self.features.transform(samples, where, dtype, warned)

    def varied(self, samples: Any, weights: np.ndarray | None = None) -> Preprocessing:
        """The same for a training that goes on with ``samples``, which may vary where those before did not."""
        return replace(self, features=self.features.varied(samples, weights))

    def ignored(self, samples: Any) -> list[str]:
        """Columns of a DataFrame that are not used; [] for arrays."""
        if not self.feature_names or not hasattr(samples, "columns"):
            return []
        known = set(self.feature_names)
        return [str(name) for name in samples.columns if str(name).strip() not in known]

    def by_position(self, samples: Any) -> list[str]:
        """Names of columns of a DataFrame that are not looked at, as the training had none; [] where there are none."""
        names = [*getattr(samples, "columns", ())]
        if self.feature_names or not all(isinstance(name, str) for name in names):
            return []
        counted = ([str(k) for k in range(len(names))], [f"column {k + 1}" for k in range(len(names))])
        return [] if names in counted else names

    def predictions(self, outputs: Tensor) -> np.ndarray:
        """Classes (n,) in their own dtype, or numbers (n,) or (n, columns) in the units of the target.

        outputs  (n, n_outputs) of the network
        """
        if self.classes is not None:
            return self.classes[outputs.detach().cpu().argmax(1).numpy()]
        assert self.target.mean is not None
        assert self.target.std is not None
        values = in_units(outputs.detach().cpu().double().numpy(), self.target.mean, self.target.std)
        return values[:, 0] if values.shape[1] == 1 else values

    def probabilities(self, outputs: Tensor) -> np.ndarray:
        """The softmax of outputs (n, n_classes), float64.  Raises DataError for a regression."""
        if self.classes is None:
            raise DataError("a regression has no probabilities: it predicts numbers; use predictions instead")
        return outputs.detach().cpu().double().softmax(1).numpy()

    def to_json(self) -> dict[str, Any]:
        """This as JSON values; a float is written so that it is read with the same bits."""
        return {"version": VERSION, "inputs": self.features.to_json(), "target": self.target.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`.  Raises DataError for anything else."""
        try:
            if values["version"] != VERSION:
                raise ValueError(f"it is of version {values['version']}, and this sparse-dnm reads {VERSION}")
            kind: Any = {"array": ArrayInputs, "table": TableInputs}[values["inputs"]["kind"]]
            return cls(kind.from_json(values["inputs"]), Target.from_json(values["target"]))
        except UNFIT as error:
            raise DataError(f"this is no preprocessing that sparse-dnm wrote ({error}); train again") from None


def as_numbers(where: str, samples: Any) -> np.ndarray:
    """An array of real numbers; objects and text that are numbers are converted.  Raises DataError for others."""
    names = [str(name) for name in samples.columns] if hasattr(samples, "columns") else []
    values = plain(where, samples)
    if values.dtype.kind in "biuf":
        return values
    if values.dtype.kind not in "OU":
        raise DataError(f"{where} has dtype {values.dtype}; features must be real numbers: convert or encode them")
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        place, value = next((place, value) for place, value in np.ndenumerate(values) if not _is_number(value))
        column = f", column {', '.join(map(str, place[1:])) or '0'} (from 0)"
        if names:
            column = f" (from 0), column {names[place[1]]!r}"
        shown = short(repr(str(value)) if isinstance(value, str) else repr(value))
        raise DataError(
            f"{where}: {shown} in row {place[0]}{column} is not a number; correct or remove the row"
        ) from None


def _way_out(x: np.ndarray, shape: tuple[int, ...]) -> str:
    """What makes samples of another shape fit, where that is plain; else ""."""
    if x.shape == shape:
        return "; give one sample as x[None]"
    if len(shape) != 3 or x.ndim != 4:
        return ""
    for source, target, other in ((1, -1, (*shape[2:], *shape[:2])), (-1, 1, (*shape[1:], *shape[:1]))):
        if x.shape[1:] == other:
            return f"; move their channels by numpy.moveaxis(x, {source}, {target})"
    return ""


def _are_numbers(frame: Any) -> bool:
    """The columns of a DataFrame have types of numbers, and no cell is missing."""
    plain = all(getattr(dtype, "kind", "O") in "biufc" for dtype in frame.dtypes)
    return plain and not frame.isna().to_numpy().any()


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
