"""scikit-learn estimators: `ManifoldClassifier` and `ManifoldRegressor` (docs/scikit-learn.md)."""

from sparse_dnm.sklearn.classifier import ManifoldClassifier
from sparse_dnm.sklearn.regressor import ManifoldRegressor

__all__ = ["ManifoldClassifier", "ManifoldRegressor"]
