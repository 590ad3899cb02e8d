"""How noisy targets are, before any training: how much they differ between nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MOST_ROWS = 20_000  # samples among which neighbours are searched
MOST_ASKED = 1_000  # samples whose neighbour is searched


def neighbour_noise(x: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
    """Difference of targets between neighbours, over that between random samples: 0 (no noise) .. 1 (only noise).

    x        (n, n_inputs)  standardised or scaled
    y        int64 (n,) classes, which differ by 0 or 1; or numbers (n, n_outputs), whose squared difference counts
    weights  (n,)           a sample of weight 2 counts as two; one of weight 0 is not there

    Half the mean squared difference of neighbours estimates the variance of noise (Rice 1984, in one dimension); the
    distance between neighbours adds to it.  Neighbours have different inputs: equal samples count once.
    """
    weight = np.ones(len(x)) if weights is None else weights.double().numpy()
    used = np.flatnonzero(weight > 0)
    used = used[:: max(1, -(-len(used) // MOST_ROWS))]
    if not len(used):
        return 1.0
    points, group = np.unique(x.numpy()[used].astype(np.float64), axis=0, return_inverse=True)
    group, weight, targets = group.ravel(), weight[used], _columns(y.numpy()[used])
    total = np.bincount(group, weight)
    share = (weight / total[group])[:, None]
    means, squares = np.zeros((2, len(points), targets.shape[1]))
    np.add.at(means, group, share * targets)
    np.add.at(squares, group, share * targets**2)
    overall = (weight[:, None] * targets).sum(0) / weight.sum()
    spread = 2 * ((weight[:, None] * targets**2).sum(0) / weight.sum() - overall**2).sum()
    if len(points) < 2 or spread <= 0:
        return 1.0
    asked = np.unique(np.linspace(0, len(points) - 1, MOST_ASKED).astype(np.int64))
    near = _neighbours(points, asked)
    differences = (squares[asked] + squares[near] - 2 * means[asked] * means[near]).sum(1)
    return float(min(1.0, max(0.0, np.average(differences, weights=total[asked]) / spread)))


def _columns(y: NDArray[np.generic]) -> NDArray[np.float64]:
    """Numbers (n, columns); a class is a column of its own, so that two that differ have the squared difference 2."""
    if y.ndim == 2:
        return y.astype(np.float64)
    return (y[:, None] == np.unique(y)).astype(np.float64)


def _neighbours(points: NDArray[np.float64], asked: NDArray[np.int64]) -> NDArray[np.int64]:
    """The nearest other point of each that is asked for.

    By matrix products alone: scikit-learn's NearestNeighbors starts OpenMP's threads, and a process forked after that
    (a pool of joblib's) would wait for them forever.
    """
    from sklearn.metrics import pairwise_distances_chunked  # slow to import

    def nearest(distances: NDArray[np.float64], start: int) -> NDArray[np.int64]:
        rows = np.arange(len(distances))
        distances[rows, asked[start + rows]] = np.inf  # a point itself
        return distances.argmin(1)

    return np.concatenate(
        list(pairwise_distances_chunked(points[asked], points, reduce_func=nearest, working_memory=64))
    )
