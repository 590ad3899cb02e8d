"""How messages name a setting to a user of an estimator: by its parameter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.wording import Words

PARAMETERS = {  # and the fields of TrainConfig that they set
    "target_edges": "edges", "budget_us": "budget_us", "steps": "max_iter", "lr": "learning_rate_init",
    "batch_size": "batch_size", "early_stopping": "early_stopping", "validation": "validation_fraction",
    "patience": "n_iter_no_change", "threads": "n_jobs", "seed": "random_state",
}  # fmt: skip
COLUMNS = {"drop": "X.drop(columns={})", "categories": "X[{}].astype('category')"}
DICTS = {"manifold_params": ManifoldConfig, "train_params": TrainConfig}


class Parameters(Words):
    """The parameters of an estimator.

    own       fields that its dicts set: a parameter that sets the same has no effect
    per_pass  steps that take every sample once
    """

    begin = "Fit again"
    again = "Fit again, with"
    other_out = "give another directory"
    no_directory = "save needs a directory"

    def __init__(self, own: Collection[str] = (), per_pass: int = 1):
        self.own, self.per_pass = own, per_pass

    def _is_parameter(self, field: str) -> bool:
        return field in PARAMETERS and field not in self.own

    def _dict_of(self, field: str) -> str | None:
        """The parameter whose dict has the field."""
        found = [name for name, config in DICTS.items() if field in {each.name for each in dataclasses.fields(config)}]
        return found[0] if found else None

    def name(self, field: str) -> str:
        if field in COLUMNS:
            return COLUMNS[field].format("...")
        if self._is_parameter(field):
            return PARAMETERS[field]
        holder = self._dict_of(field)
        return f"{field} of sparse-dnm calibrate" if holder is None else f'{holder}["{field}"]'

    def give(self, field: str, value: Any) -> str:
        if field in COLUMNS:
            return COLUMNS[field].format(repr(value))
        if self._is_parameter(field):
            return f"{PARAMETERS[field]}={self.text(value)}"
        return f'{self._dict_of(field)}={{"{field}": {self.text(value)}}}'

    def stated(self, field: str, value: Any) -> str:
        return super().stated(PARAMETERS[field] if self._is_parameter(field) else field, value)

    def now(self, field: str, value: Any) -> str:
        if field == "steps" and self._is_parameter(field):
            value = math.ceil(value / self.per_pass)
        return super().now(field, value)

    def kept(self, step: int | None, out: Path | None) -> str:
        return "The estimator is as it was before"

    def resume(self, out: Path) -> str:
        return f"read that run with load({str(out)!r})"
