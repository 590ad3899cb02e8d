"""ManifoldRegressor: a Dynamic Neural Manifold as a regressor of scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags
from sklearn.utils.validation import column_or_1d

from sparse_dnm.io import CheckpointError
from sparse_dnm.sklearn.base import BaseManifold
from sparse_dnm.sklearn.samples import Samples
from sparse_dnm.sklearn.trained import Trained


class ManifoldRegressor(RegressorMixin, BaseManifold):
    """A regressor whose network learns its own sparse wiring; of one target or several.

    Its parameters are those of `ManifoldClassifier`, without ``class_weight``; targets are standardised for training.
    """

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> ManifoldRegressor:
        """Take the network on through ``X`` and ``y`` once; the first call makes it.

        The first samples decide how features and targets are standardised.
        """
        return self._continue(X, y, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """Numbers, float64 (n,) or (n, targets), in the units of the targets."""
        outputs = self._outputs(X)
        return self._trained.preprocessing.predictions(outputs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R² of the predictions, the mean of several targets; also where squares of targets are beyond float64."""
        found, y = self.predict(X), np.asarray(y, np.float64)
        exponents = np.frexp(np.abs(y).max(0, initial=0.0))[1]  # a power of two changes no R²
        y, found = np.ldexp(y, -exponents), np.ldexp(found, -exponents)
        return float(r2_score(y, found, sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    # -- targets ---------------------------------------------------------------------------------------------

    @property
    def _target_checks(self) -> dict[str, Any]:
        return {"multi_output": True, "y_numeric": True}

    def _encoded(self, samples: Samples, again: bool, partial: bool = False, classes: Any = None) -> Samples:
        y = samples.targets
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y = y.astype(np.float64).reshape(len(y), -1)
        if again and y.shape[1] != self.model_.config.n_outputs:
            raise ValueError(f"y has {y.shape[1]} targets, and the network {self.model_.config.n_outputs}")
        return samples._replace(targets=y)

    def _take(self, trained: Trained, directory: Path) -> None:
        if trained.preprocessing.classes is not None:
            raise CheckpointError(f"{directory} holds a classification; load it as a ManifoldClassifier")
        super()._take(trained, directory)
