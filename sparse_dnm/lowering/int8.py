"""A network in integers: int8 weights and cells, sums in int32, a multiplier of a byte after each sum.

A cell with code q is scale * q + origin, with numbers of its own: readers have them in their weights and biases, so
that they cost nothing.  Weights have a scale for each row.  As in Jacob et al. 2018, but for scales per cell, which
also make up for multipliers of four bits, and for biases that keep the mean of a sum over the samples (Nagel et al.
2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from sparse_dnm.lowering.codes import (
    HIGH,
    LEAST_RATIO,
    LOW,
    MOST_RATIO,
    PIECES,
    Curve,
    Floats,
    Ints,
    activated,
    down_to,
    multiplier_above,
    multiplier_below,
    narrow,
    ranged,
    ratio_of,
    scaled,
    zero_of,
)
from sparse_dnm.lowering.int8_inputs import by_factors, by_knees
from sparse_dnm.lowering.layout import Layout
from sparse_dnm.lowering.network import LEAKY, LOGISTIC, TANH, Folded
from sparse_dnm.lowering.rows import IDENTITY, Function

MOST_SLOPE = 4.0  # a larger one would not fit the integers
MOST_SUMMED = 1 << 14  # edges of a row: int32 holds their sum
MOST_SUM = 1 << 26  # 15 times as much is well inside of int32
MOST_BIAS = 1 << 29
BITS = 6  # of t after the point; fewer, but at least LEAST_BITS, where biases then have 16 bits
LEAST_BITS = 2
SATURATED = {TANH: 6.0, LOGISTIC: 10.0}  # z from which on these change by less than a step
MOST_CODES = 1 << 10  # that t spans in a leaky ReLU of which next to nothing is left
OUTPUT_RANGE = 1 << 14  # codes of the largest output of the calibration
MOST_OUTPUT = 46340  # whose square int32 holds
CALIBRATION = 1000  # samples of the training set, at most, that ranges are taken from
TURNS = 8  # in which curves grow wider until weights fit


@dataclass(frozen=True, eq=False)
class Codes:
    """From act(t) to the codes of cells: act(t) / 2**down + zero; int64 (hidden,)."""

    down: Ints
    zero: Ints

    @classmethod
    def of(cls, n: int) -> Codes:
        """Zeros."""
        return cls(np.zeros(n, np.int64), np.zeros(n, np.int64))


def calibration(x: Any) -> Floats:
    """CALIBRATION samples at most, evenly from all of x (n, n_inputs), a tensor: those that ranges are taken from."""
    found: Floats = x[:: -(-len(x) // CALIBRATION)].cpu().double().numpy()
    return found


class Quantized:
    """The integers of a network, and what they compute.

    x            float64 (n, n_inputs): samples that ranges and biases are taken from
    x_scale, x_zero  of the inputs: x_scale * (code - x_zero)
    y_scale      of the outputs, integers
    bits         of t after the point, where t = bias + sum * mantissa / 2**shift for each row; none in outputs
    weights      int64 (n_edges,);  bias, multiplier  int64 (rows of the layout,)
    inputs       the input cells in v
    sums, acts   the cells in z and in v, from t and from act(t)
    shared       these two are one, and nothing is divided
    curves       of the activations that are no leaky ReLU
    """

    def __init__(self, folded: Folded, layout: Layout, x: Floats) -> None:
        self.folded, self.layout = folded, layout
        self._check()
        cells = folded.cells(x)
        z = self._sums(cells, x)
        used = x[:, folded.columns] if layout.k else np.zeros((1, 1))
        scale = ranged(used.min(), used.max())
        self.x_scale, self.x_zero = float(np.float32(scale)), int(zero_of(used.min(), scale))
        self.shared = all(_has_knee(self.function(cell)) for cell in layout.cell_v.tolist() if cell >= 0)
        wider = self._widths(z)
        for _ in range(TURNS):
            self.curves = {(kind, 0.0): Curve.of(kind, width) for kind, width in wider.items()}
            wider = self._calibrated(cells, z, self.codes(x))
            if all(wider[kind] == curve.width for (kind, _), curve in self.curves.items()):
                break
        else:
            raise ValueError(
                "large weights cancel each other where an activation is no leaky ReLU, which int8 cannot hold: export "
                "it as float32"
            )
        self._shorten()

    def _check(self) -> None:
        most = int(np.diff(self.folded.indptr).max(initial=0))
        if most > MOST_SUMMED:
            raise ValueError(f"a neuron reads {most:,} others; int8 sums up to {MOST_SUMMED:,}: export it as float32")
        slope = self.folded.slope[self.folded.kind == LEAKY]
        if np.abs(slope).max(initial=0) > MOST_SLOPE:
            raise ValueError(
                f"an activation has the slope {slope[np.abs(slope).argmax()]:g} below zero; int8 has slopes up to "
                f"{MOST_SLOPE:g}: export it as float32"
            )

    def _sums(self, cells: Floats, x: Floats) -> Floats:
        """z of all cells for the samples."""
        folded, k = self.folded, self.layout.k
        shape = len(folded.bias), folded.n_cells
        rows = sparse.csr_array((folded.weights, folded.indices, folded.indptr), shape=shape)
        z = np.empty_like(cells)
        z[:, :k] = folded.scale * x[:, folded.columns] + folded.shift
        z[:, k:] = (rows @ cells.T).T + folded.bias
        return z

    def function(self, cell: int) -> Function:
        """The activation of a cell."""
        kind, slope = int(self.folded.kind[cell]), float(np.float32(self.folded.slope[cell]))
        return kind, slope if kind == LEAKY else 0.0

    def _widths(self, z: Floats) -> dict[int, float]:
        """z of a code of t, by the kind of a curve."""
        found = {}
        for kind in sorted(set(self.folded.kind.tolist()) - {LEAKY}):
            most = max(float(np.abs(z[:, self.folded.kind == kind]).max()), 1e-3)
            found[kind] = min(most, SATURATED.get(kind, np.inf)) / (PIECES // 2)
        return found

    # -- how the numbers are chosen ----------------------------------------------------------------------------

    def _calibrated(self, cells: Floats, z: Floats, x: Ints) -> dict[int, float]:
        """Choose all numbers, row by row; the width that each curve needs, for weights that fit."""
        folded, layout = self.folded, self.layout
        self.bits = BITS
        self.scale, self.origin = np.full(folded.n_cells, self.x_scale), np.zeros(folded.n_cells)
        self.origin -= self.x_scale * self.x_zero
        self._input_cells(cells)
        self.weights, n = np.zeros(folded.n_edges, np.int64), len(layout.row)
        self.bias, self.multiplier = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.sums = Codes.of(layout.hidden)
        self.acts = self.sums if self.shared else Codes.of(layout.hidden)
        values = self._inputs(x)
        wider = {kind: curve.width for (kind, _), curve in self.curves.items()}
        for r in range(layout.hidden):
            kind, width = self._choose(r, values, cells, z)
            if kind != LEAKY:
                wider[kind] = max(wider[kind], width)
            self._hidden(r, values)
        outputs = range(layout.hidden, n)
        largest = float(np.abs(cells[:, folded.n_cells - folded.n_outputs :]).max(initial=0.0))
        self.y_scale = max(largest / OUTPUT_RANGE, 1e-12, *(self._row_scale(r) / MOST_RATIO for r in outputs))
        for r in outputs:
            self._round(r, self.y_scale, values, z)
        return wider

    def _input_cells(self, cells: Floats) -> None:
        chosen = self.layout.input_cell
        there, functions = chosen >= 0, [self.function(c) if c >= 0 else IDENTITY for c in chosen.tolist()]
        factor = np.where(there, self.folded.scale[chosen], 0.0) * self.x_scale
        shift = np.where(there, self.folded.shift[chosen], 0.0) - factor * self.x_zero
        if all(map(_has_knee, functions)):
            self.inputs = by_knees(functions, factor, shift)
        else:
            low, high = cells[:, chosen].min(0), cells[:, chosen].max(0)
            self.inputs = by_factors(functions, factor, shift, low, high, self.curves, BITS)
        self.scale[chosen[there]], self.origin[chosen[there]] = self.inputs.scale[there], self.inputs.origin[there]

    def _edges(self, r: int) -> slice:
        row = self.layout.row[r]
        return slice(*self.folded.indptr[row : row + 2].tolist())

    def _real(self, r: int) -> Floats:
        """What a code of each source adds to the sum of a row."""
        edges = self._edges(r)
        return self.folded.weights[edges] * self.scale[self.folded.indices[edges]]

    def _row_scale(self, r: int) -> float:
        """The least scale of the weights of a row."""
        real = np.abs(self._real(r))
        return max(float(real.max(initial=0.0)) / HIGH, 128 * float(real.sum()) / MOST_SUM, 1e-30)

    def _choose(self, r: int, values: Floats, cells: Floats, z: Floats) -> tuple[int, float]:
        """Choose the numbers of a hidden row and of its cells; the kind of its activation, and z of a code of t."""
        cell_z, cell_v = int(self.layout.cell_z[r]), int(self.layout.cell_v[r])
        low, high = cells.min(0), cells.max(0)
        kind, slope = self.function(cell_v) if cell_v >= 0 else IDENTITY
        there = [cell for cell in (cell_z, cell_v) if cell >= 0]
        if kind == LEAKY:
            width = min(float(ranged(low[cell], high[cell])) for cell in there[: 1 if self.shared else 2])
            width = max(width, float(np.abs(z[:, self.layout.k + self.layout.row[r]]).max()) / MOST_CODES)
            width = unit = self._round_leaky(r, width, values, z)
        else:
            width, unit = self.curves[kind, slope].width, self.curves[kind, slope].unit
            width = max(width, self._row_scale(r) * (1 << BITS) / MOST_RATIO)
            self._round(r, width / (1 << BITS), values, z)
        for cell, codes, of in ((cell_z, self.sums, width), (cell_v, self.acts, unit)):
            if cell < 0:
                continue
            if not self.shared:
                codes.down[r] = down_to(ranged(low[cell], high[cell]), of)
            self.scale[cell] = of * 2.0 ** codes.down[r]
            codes.zero[r] = zero_of(low[there[0] if self.shared else cell], self.scale[cell])
            self.origin[cell] = -self.scale[cell] * codes.zero[r]
        return kind, width

    def _round(self, r: int, unit: float, values: Floats, z: Floats) -> None:
        """Choose the numbers of a row whose t counts a given unit."""
        self.multiplier[r] = multiplier_above(self._row_scale(r) / unit)
        bias = self._rounded(r, ratio_of(int(self.multiplier[r])) * unit, values, z)
        self.bias[r] = np.clip(np.rint(bias / unit), -MOST_BIAS, MOST_BIAS)

    def _round_leaky(self, r: int, least: float, values: Floats, z: Floats) -> float:
        """Choose the numbers of a row whose t counts what fits, but no less; returns z of a code of t."""
        row_scale = max(self._row_scale(r), 1.01 * LEAST_RATIO * least / (1 << BITS))
        bias = self._rounded(r, row_scale, values, z)
        least = max(least / (1 << BITS), abs(bias) / MOST_BIAS)
        self.multiplier[r] = multiplier_below(row_scale / least)
        unit = row_scale / ratio_of(int(self.multiplier[r]))
        self.bias[r] = np.rint(bias / unit)
        return unit * (1 << BITS)

    def _rounded(self, r: int, row_scale: float, values: Floats, z: Floats) -> float:
        """Round the weights of a row; the bias with which the mean of its sum is right."""
        edges = self._edges(r)
        self.weights[edges] = np.clip(np.rint(self._real(r) / row_scale), -HIGH, HIGH)
        mean = float(values[:, self.folded.indices[edges]].mean(0) @ self.weights[edges])
        return float(z[:, self.layout.k + self.layout.row[r]].mean()) - row_scale * mean

    def _shorten(self) -> None:
        """Take as many bits after the point as let biases have 16 bits, if that leaves enough."""
        bias, multiplier = self.bias[: self.layout.hidden], self.multiplier[: self.layout.hidden]
        for by in range(BITS - LEAST_BITS + 1):
            shorter = (bias + (1 << by) - 1) >> by  # up, because sums are cut
            if np.abs(shorter).max(initial=0) < 1 << 15 and (multiplier.max(initial=0) >> 3) + by < 32:
                bias[:], self.bits, self.inputs = shorter, BITS - by, self.inputs.shorter(by)
                multiplier += 8 * by
                return

    # -- what they compute -------------------------------------------------------------------------------------

    def codes(self, x: Any) -> Ints:
        """Codes of inputs in float32, as the C program makes them."""
        rounded = np.asarray(x, np.float32) * np.float32(1 / self.x_scale)
        code = rounded + np.float32(self.x_zero + 128.5)
        return np.clip(code, 0, 255).astype(np.int64) + LOW

    def _inputs(self, codes: Ints) -> Floats:
        """Codes (n, n_cells) of cells, of those of the inputs: float64, which holds products of them, and is faster."""
        columns, chosen = self.folded.columns, self.layout.input_cell
        values = np.zeros((len(codes), self.folded.n_cells))
        values[:, : self.layout.k] = codes[:, columns]
        there = chosen >= 0
        if there.any():
            found = self.inputs.codes(codes[:, np.where(there, columns[chosen], 0)], self.curves, self.bits)
            values[:, chosen[there]] = found[:, there]
        return values

    def _t(self, r: int, values: Floats) -> Ints:
        """t of a row."""
        edges = self._edges(r)
        total = (values[:, self.folded.indices[edges]] @ self.weights[edges].astype(np.float64)).astype(np.int64)
        t: Ints = self.bias[r] + scaled(total, self.multiplier[r])
        return t

    def _hidden(self, r: int, values: Floats) -> None:
        """Compute the cells of a hidden row."""
        t, cell_z, cell_v = self._t(r, values), self.layout.cell_z[r], self.layout.cell_v[r]
        if cell_z >= 0:
            values[:, cell_z] = narrow(t >> self.sums.down[r], self.bits, self.sums.zero[r])
        if cell_v >= 0:
            t = activated(t, self.function(int(cell_v)), self.curves, self.bits)
            values[:, cell_v] = narrow(t >> self.acts.down[r], self.bits, self.acts.zero[r])

    def outputs(self, codes: Any) -> Ints:
        """Outputs (n, n_outputs) of codes (n, n_inputs) of the inputs: integers, in units of `unit`.

        To the bit what the C program gives.
        """
        layout = self.layout
        values = self._inputs(np.asarray(codes, np.int64))
        for r in range(layout.hidden):
            self._hidden(r, values)
        found = [self._t(r, values) for r in range(layout.hidden, len(layout.row))]
        y = np.clip(np.stack(found, 1), -MOST_OUTPUT, MOST_OUTPUT)
        return y * y if self.folded.squared else y

    @property
    def unit(self) -> float:
        """What an output of 1 means."""
        return self.y_scale**2 if self.folded.squared else self.y_scale

    @property
    def most(self) -> int:
        """The largest t of an activation, at most."""
        hidden = self.layout.hidden
        sums = [128 * np.abs(self.weights[self._edges(r)]).sum() for r in range(hidden)]
        t = scaled(np.array(sums, np.int64), self.multiplier[:hidden]) + 1 + np.abs(self.bias[:hidden])
        return max(int(t.max(initial=0)), self.inputs.most)


def _has_knee(function: Function) -> bool:
    """The activation is a leaky ReLU that lies between 0 and its argument, or the argument itself."""
    kind, slope = function
    return kind == LEAKY and 0 <= slope <= 1
