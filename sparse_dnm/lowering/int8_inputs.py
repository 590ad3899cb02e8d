"""Input cells of a program in int8: from the codes of inputs to those of the cells that lie in v."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from sparse_dnm.lowering.codes import (
    FLIPPED,
    HIGH,
    LOW,
    Curve,
    Floats,
    Ints,
    activated,
    bent,
    down_to,
    narrow,
    ranged,
    zero_of,
)
from sparse_dnm.lowering.network import LEAKY
from sparse_dnm.lowering.rows import IDENTITY, Function

UNIT = 256  # of offsets
MOST = 1 << 29  # of factor * x + UNIT * offset
MOST_FACTOR = (1 << 15) - 1


@dataclass(frozen=True, eq=False)
class InputCells:
    """Input cells: int64 and float64 (n_computed,).

    by_knee    t = x - zero, and the code is act(t) + zero: a leaky ReLU has a knee, all else is in scale and origin.
               Otherwise t = (factor * x + UNIT * offset) / 2**shift, with bits after the point, and the code is
               act(t) / 2**down + zero
    functions  of the cells
    scale, origin  a cell with code q is scale * q + origin
    """

    by_knee: bool
    functions: list[Function]
    zero: Ints
    scale: Floats
    origin: Floats
    factor: Ints
    offset: Ints
    down: Ints
    shift: int = 1

    def codes(self, x: Ints, curves: dict[Function, Curve], bits: int) -> Ints:
        """Codes (n, n_computed) of the cells for codes x (n, n_computed) of their inputs."""
        t = x - self.zero if self.by_knee else (self.factor * x + UNIT * self.offset) >> self.shift
        out = np.zeros_like(t)
        for function in sorted(set(self.functions)):
            here = np.array([one == function for one in self.functions])
            out[:, here] = bent(t[:, here], function) if self.by_knee else activated(t[:, here], function, curves, bits)
        codes: Ints = out + self.zero if self.by_knee else narrow(out >> self.down, bits, self.zero)
        return codes

    @property
    def most(self) -> int:
        """The largest t of an activation that is no knee, at most."""
        largest = 128 * np.abs(self.factor) + UNIT * np.abs(self.offset)
        return int(largest.max(initial=0)) >> self.shift

    def shorter(self, by: int) -> InputCells:
        """The same with fewer bits after the point."""
        return replace(self, shift=self.shift + by)


def by_knees(functions: list[Function], factor: Floats, shift: Floats) -> InputCells:
    """Cells act(factor * x + shift) of codes x, for leaky ReLUs with slopes between 0 and 1.

    Where the knee is not among the codes, the cell is its input, and the slope is in its scale.
    """
    slope = np.array([slope for _, slope in functions])
    with np.errstate(divide="ignore", invalid="ignore"):
        knee = -shift / factor
    bends = (knee > LOW) & (knee < HIGH)
    found = [(FLIPPED if factor[c] < 0 else LEAKY, float(slope[c])) for c in range(len(slope))]
    common = Counter(found[c] for c in np.flatnonzero(bends)).most_common(1)
    straight = common[0][0] if common else IDENTITY
    used = [function if bends[c] else straight for c, function in enumerate(found)]
    zero = np.where(bends, np.rint(np.where(bends, knee, 0.0)), LOW if straight[0] == LEAKY else HIGH)
    side = np.where(bends | (shift >= 0), 1.0, slope)
    none = np.zeros(len(zero), np.int64)
    return InputCells(True, used, zero.astype(np.int64), factor * side, shift * side, none, none, none)


def by_factors(
    functions: list[Function], factor: Floats, shift: Floats, low: Floats, high: Floats,
    curves: dict[Function, Curve], bits: int,
) -> InputCells:  # fmt: skip
    """Cells act(factor * x + shift) of codes x, between low and high."""
    scale, of = ranged(low, high), [curves.get(function) for function in functions]
    least = (128 * np.abs(factor) + np.abs(shift)) / (1 << 15)  # of leaky ReLUs: so that t fits
    width = np.array([curve.width if curve else max(scale[c], least[c]) for c, curve in enumerate(of)])
    unit = np.array([curve.unit if curve else width[c] for c, curve in enumerate(of)])
    ratio, offset = factor / width * (1 << bits), shift / width * (1 << bits)
    room = min(MOST_FACTOR / max(np.abs(ratio).max(), 1e-9), MOST / max(np.abs(offset).max(), 1e-9))
    shifts = int(np.clip(np.floor(np.log2(room)), 1, 24))
    factors = np.clip(np.rint(ratio * (1 << shifts)), -MOST_FACTOR, MOST_FACTOR).astype(np.int64)
    offsets = np.clip(np.rint(offset * ((1 << shifts) / UNIT)), -MOST // UNIT, MOST // UNIT).astype(np.int64)
    down = down_to(scale, unit)
    scale = unit * 2.0**down
    zero = zero_of(low, scale)
    return InputCells(False, functions, zero, scale, -scale * zero, factors, offsets, down, shifts)
