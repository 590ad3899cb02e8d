"""The integers that a program in int8 computes with: codes of cells, multipliers of a byte, tables of curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.lowering import network
from sparse_dnm.lowering.network import LEAKY
from sparse_dnm.lowering.rows import Function

LOW, HIGH = -128, 127
SLOPE_BITS = 14
LEAST_MANTISSA = 8
MOST_RATIO, LEAST_RATIO = 15.0, LEAST_MANTISSA * 2.0**-31  # of multipliers
PIECES = 256  # of a curve, each as wide as a code of t
FLIPPED = -1  # kind of -act(-t) of a leaky ReLU: its slope is that above 0

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def narrow(t: Any, bits: int, zero: Any) -> Any:
    """Codes of int8 from numbers with ``bits`` bits after the point, rounded: the half up."""
    return np.clip(((t + (1 << (bits - 1))) >> bits) + zero, LOW, HIGH)


def slope_code(slope: float) -> int:
    """A slope in units of 2**-SLOPE_BITS."""
    return round(slope * (1 << SLOPE_BITS))


def scaled(total: Any, multiplier: Any) -> Any:
    """total * mantissa / 2**shift, cut, of a multiplier 8 * shift + mantissa - 8, with mantissas 8 .. 15."""
    return (total * (LEAST_MANTISSA + (multiplier & 7))) >> (multiplier >> 3)


def ratio_of(multiplier: int) -> float:
    """What a multiplier multiplies by."""
    return float((LEAST_MANTISSA + (multiplier & 7)) * 2.0 ** -(multiplier >> 3))


def multiplier_below(ratio: float) -> int:
    """The multiplier with the largest ratio that is no larger, between those that there are."""
    mantissa, exponent = np.frexp(min(max(ratio, LEAST_RATIO), MOST_RATIO))  # mantissa in 1/2 .. 1
    return int(8 * (4 - exponent) + int(mantissa * 16) - LEAST_MANTISSA)


def multiplier_above(ratio: float) -> int:
    """The multiplier with the smallest ratio that is no smaller, between those that there are."""
    found = multiplier_below(ratio)
    if ratio_of(found) >= min(ratio, MOST_RATIO):
        return found
    return found + 1 if found & 7 < 7 else found - 15  # 15 / 2**shift, then 8 / 2**(shift - 1)


def ranged(low: Any, high: Any) -> Any:
    """The scale of cells between low and high, and 0."""
    return np.maximum((np.maximum(high, 0.0) - np.minimum(low, 0.0)) / (HIGH - LOW), 1e-12)


def zero_of(low: Any, scale: Any) -> Any:
    """The code of 0 where that of the lowest, ``low`` or 0, is LOW: a cell with code q is scale * (q - zero)."""
    return np.rint(LOW - np.minimum(low, 0.0) / scale).astype(np.int64)


def down_to(scale: Any, unit: Any) -> Any:
    """By how many bits units are shifted at least to be no smaller than a scale."""
    return np.maximum(np.ceil(np.log2(scale / unit)), 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Curve:
    """A table of an activation at z = -128 .. 128 widths: int16 (257,), in units, and linear between."""

    table: Ints
    unit: float
    width: float

    @classmethod
    def of(cls, kind: int, width: float) -> Curve:
        """That of an activation."""
        places: Any = np.arange(-PIECES // 2, PIECES // 2 + 1) * width
        values = network.activated(places[:, None], np.array([kind], np.int8), np.zeros(1))[:, 0]
        unit = float(np.abs(values).max() / ((1 << 15) - 1))
        return cls(np.rint(values / unit).astype(np.int64), unit, width)

    def at(self, t: Ints, bits: int) -> Ints:
        """act(t) in units, of widths t; both have ``bits`` bits after the point."""
        most = PIECES // 2 << bits
        code = np.clip(t, -most, most - 1) + most
        place, rest = code >> bits, code & ((1 << bits) - 1)
        return (self.table[place] << bits) + (self.table[place + 1] - self.table[place]) * rest


def bent(t: Any, function: Function) -> Any:
    """act(t) of a leaky ReLU with a slope between 0 and 1, or of a FLIPPED one, rounded to whole numbers."""
    kind, slope = function
    other = (t * slope_code(slope) + (1 << (SLOPE_BITS - 1))) >> SLOPE_BITS
    return np.maximum(t, other) if kind == LEAKY else np.minimum(t, other)


def activated(t: Any, function: Function, curves: dict[Function, Curve], bits: int) -> Any:
    """act(t), both with ``bits`` bits after the point."""
    if function in curves:
        return curves[function].at(t, bits)
    return np.where(t < 0, (t * slope_code(function[1])) >> SLOPE_BITS, t)
