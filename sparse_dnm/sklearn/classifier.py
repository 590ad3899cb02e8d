"""ManifoldClassifier: a Dynamic Neural Manifold as a classifier of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from sparse_dnm.io import CheckpointError
from sparse_dnm.sklearn.base import BaseManifold
from sparse_dnm.sklearn.samples import Samples, by_class, plain_targets
from sparse_dnm.sklearn.trained import Trained


class ManifoldClassifier(ClassifierMixin, BaseManifold):
    """A classifier whose network learns its own sparse wiring.  docs/scikit-learn.md describes all parameters.

    edges                edges that the network ends with; None: nothing makes it small
    budget_us            most µs that a step of the trained network may take on this machine; instead of ``edges``
    max_iter             passes through the training samples, at most; None: derived from the data
    learning_rate_init   Adam's step size at the start; None: derived
    batch_size           samples of a step; "auto": all where there are at most 1,000, in float64; "full": always all
    class_weight         "balanced", a weight for each class, or None
    early_stopping       keep the best network on samples that are held out, and stop without a better one; "auto": as
                         the default for the data says, never where a step takes all samples
    validation_fraction  share of the samples that are held out for it
    n_iter_no_change     evaluations on them without a better one before it stops
    warm_start           fit goes on with the network of the fit before
    random_state         seed of the initial values and of the order of the samples
    n_jobs               threads; None: as many as are fastest
    verbose              print the progress
    manifold_params      other fields of `ManifoldConfig`
    train_params         other fields of `TrainConfig`

    After fit: classes_, n_features_in_, feature_names_in_, n_iter_, loss_curve_, summary_, model_, preprocessing_.
    """

    classes_: np.ndarray

    def __init__(
        self,
        *,
        edges: int | None = None,
        budget_us: float | None = None,
        max_iter: int | None = None,
        learning_rate_init: float | None = None,
        batch_size: int | str = "auto",
        class_weight: str | Mapping[Any, float] | None = None,
        early_stopping: bool | str = "auto",
        validation_fraction: float | None = None,
        n_iter_no_change: int | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: bool | int = False,
        manifold_params: Mapping[str, Any] | None = None,
        train_params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            edges=edges,
            budget_us=budget_us,
            max_iter=max_iter,
            learning_rate_init=learning_rate_init,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            warm_start=warm_start,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
            manifold_params=manifold_params,
            train_params=train_params,
        )
        self.class_weight = class_weight

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> ManifoldClassifier:
        """Take the network on through ``X`` and ``y`` once; the first call makes it, and needs all ``classes``.

        The first samples decide how features are standardised.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all samples at once, and partial_fit sees some of them: give a weight "
                "for each class, as a dict"
            )
        return self._continue(X, y, sample_weight, classes)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each sample, (n,), as `fit` got them."""
        places = self._outputs(X).argmax(1).numpy()
        return np.asarray(self.classes_[places])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, float64 (n, n_classes), of the classes in the order of ``classes_``."""
        outputs = self._outputs(X)
        return self._trained.preprocessing.probabilities(outputs)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Their logarithms."""
        return self._outputs(X).double().log_softmax(1).numpy()

    # -- targets ---------------------------------------------------------------------------------------------

    @property
    def _target_checks(self) -> dict[str, Any]:
        return {}

    def _encoded(self, samples: Samples, again: bool, partial: bool = False, classes: Any = None) -> Samples:
        y = samples.targets
        check_classification_targets(y)
        if classes is not None:
            given = np.unique(column_or_1d(plain_targets(classes)))
            if again and not np.array_equal(given, self.classes_):
                raise ValueError(f"classes={given.tolist()} are not those of the call before, {self.classes_.tolist()}")
            self.classes_ = given
        elif not again:
            if partial:
                raise ValueError("classes must be passed to the first call of partial_fit: all that will ever be seen")
            self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y holds one class, {self.classes_.tolist()[0]!r}; {type(self).__name__} needs at least 2 classes"
            )
        places = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        unseen = self.classes_[places] != y
        if np.any(unseen):
            raise ValueError(
                f"y holds {y[unseen].tolist()[0]!r}, which is none of the classes {self.classes_.tolist()}"
            )
        weights = samples.weights
        if self.class_weight is not None:
            factors = by_class(self.class_weight, self.classes_, places, weights)
            weights = factors if weights is None else weights * factors
            if not weights.any():
                raise ValueError("the classes of all samples have zero weight in class_weight")
        return samples._replace(targets=places, weights=weights)

    def _take(self, trained: Trained, directory: Path) -> None:
        classes = trained.preprocessing.classes
        if classes is None:
            raise CheckpointError(f"{directory} holds a regression; load it as a ManifoldRegressor")
        self.classes_ = classes
        super()._take(trained, directory)
