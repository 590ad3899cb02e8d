"""Numbers of any size that float64 holds, in standard deviations from their mean, and back.

Squares of 1e200, and the difference of two numbers near the largest, are beyond float64. Such numbers are multiplied by
a power of two before, which is exact: the results have the bits that smaller or larger units would give.
"""

from __future__ import annotations

import numpy as np

LEAST, MOST = 2.0**-400, 2.0**400  # largest number of a column, whose squares are then taken as they are
LARGE = 2.0**960  # a mean or deviation from which sums and products may be beyond float64
UNITS = (1e-150, 1e150)  # deviations of a target, whose squared errors float64 holds
TINY = float(np.finfo(np.float64).smallest_subnormal)


def moments(
    values: np.ndarray, axes: tuple[int, ...], weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over ``axes``, float64; a constant column has its value and 1.

    weights  float64 (n,), of the rows, where ``axes`` is (0,)
    """
    low, high = values.min(axes), values.max(axes)
    exponents = np.zeros(np.shape(low), np.int32)
    if values.dtype.kind == "f" and values.dtype.itemsize >= 8:
        size = np.maximum(np.abs(low), np.abs(high))
        far = (size > MOST) | ((size < LEAST) & (size > 0))
        if far.any():
            exponents = np.where(far, np.frexp(size)[1], 0)
            values = np.ldexp(values, -exponents)
    weights = None if weights is None else near_one(weights)
    if weights is None:
        mean, std = values.mean(axes, dtype=np.float64), values.std(axes, dtype=np.float64)
    else:
        mean = np.average(values, 0, weights)
        std = np.sqrt(np.average((values - mean) ** 2, 0, weights))
    constant = (low == high) | (std == 0)
    mean, std = np.ldexp(mean, exponents), np.maximum(np.ldexp(std, exponents), TINY)
    return np.where(constant, low.astype(np.float64), mean), np.where(constant, 1.0, std)


def unvaried(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """bool: all values over ``axes`` are equal."""
    equal: np.ndarray = values.min(axes) == values.max(axes)
    return equal


def has_squares(std: np.ndarray) -> bool:
    """Squared errors of targets with these deviations are numbers of float64 in the units of the targets."""
    return bool(((std >= UNITS[0]) & (std <= UNITS[1])).all())


def near_one(values: np.ndarray) -> np.ndarray:
    """Numbers (n,) times the power of two with which the largest is in 0.5 .. 1."""
    return np.ldexp(values, -np.frexp(np.abs(values).max())[1])


def standardised(values: np.ndarray, mean: np.ndarray | float, std: np.ndarray | float) -> np.ndarray:
    """(values - mean) / std, float64; infinite where that is beyond float64."""
    with np.errstate(over="ignore"):
        large = np.abs(mean) > LARGE
        if np.any(large):
            factor = np.where(large, 0.25, 1.0)
            values, mean, std = values * factor, mean * factor, std * factor
        return (values - mean) / std


def in_units(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """values * std + mean, the inverse of `standardised`; infinite where that is beyond float64."""
    with np.errstate(over="ignore"):
        large = (np.abs(mean) > LARGE) | (std > LARGE)
        if np.any(large):
            factor, back = np.where(large, 2.0**-200, 1.0), np.where(large, 2.0**200, 1.0)
            return (values * (std * factor) + mean * factor) * back
        return values * std + mean
