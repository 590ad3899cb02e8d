"""The levels of a network as matrix products, for formats whose programs know dense arrays only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.lowering.network import Folded

DENSE = 64  # elements of a dense product for each edge, at most; see docs/ship-formats.md for the times
SPARE = 8000  # elements that a dense product may have more to be spared a gather
DROP = 64  # values that are worth a gather that drops them


@dataclass(frozen=True, eq=False)
class Product:
    """act(weights * sources + bias) of r cells of one level, whose activations are of one family.

    Dense: values[sources] is (s,), and weights is (r, s).  Gathered: values[sources] is (r, p), and weights is (r, p),
    filled up with zeros.

    cells    int64 (r,)   the cells, as `Folded` numbers them
    sources  int32, positions among the values that are held: (s,), (r, p), or None for all of them in their order
    weights  float64
    bias     float64 (r,)
    kind     of the family: LEAKY for all that are linear on either side of 0
    slope    float64 (r,) below zero, for LEAKY
    """

    cells: NDArray[np.int64]
    sources: NDArray[np.int32] | None
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    kind: int
    slope: NDArray[np.float64]

    @property
    def dense(self) -> bool:
        """Is it one product of a matrix and all sources?"""
        return self.sources is None or self.sources.ndim == 1


@dataclass(frozen=True, eq=False)
class Level:
    """A level of cells.  First the held values become values[kept] (None: they stay), then the products are computed
    from them and put behind them, in this order.  In the last level they replace them: its cells are the outputs."""

    kept: NDArray[np.int32] | None
    products: list[Product]
    last: bool


def families(kind: NDArray[np.int8]) -> list[tuple[int, NDArray[np.int64]]]:
    """The kinds among cells, and the places of the cells of each."""
    return [(int(code), np.flatnonzero(kind == code)) for code in np.unique(kind)]


def levels_of(folded: Folded, first: NDArray[np.int64]) -> Iterator[Level]:
    """The levels of a network in their order; the last are the outputs.

    first  the input cells in the order in which their values are held at the start; where the network has none, one
           value of any kind is held, which nothing depends on

    A product is dense where that takes at most DENSE elements for each edge, up to which it was faster for one sample;
    else rows of similar length are gathered, with at most as many zeros as edges.  So the arrays of all levels have
    O(neurons + edges) elements.
    """
    k, counts = len(folded.columns), np.diff(folded.indptr)
    level_of_row = np.repeat(np.arange(len(folded.levels)), np.diff(folded.level_starts))
    last_read = np.full(max(folded.n_cells, 1), -1)
    np.maximum.at(last_read, folded.indices, np.repeat(level_of_row, counts))
    held = np.asarray(first, np.int64) if k else np.zeros(1, np.int64)
    place = np.zeros(max(folded.n_cells, 1), np.int64)
    place[held] = np.arange(len(held))
    for number, level in enumerate(folded.levels):
        kept = None
        needed = last_read[held] >= number
        if len(held) - needed.sum() > max(DROP, needed.sum()) and needed.any():
            kept = np.flatnonzero(needed).astype(np.int32)
            held = held[kept]
            place[held] = np.arange(len(held))
        cells = np.arange(level.start, level.stop)
        products = []
        for code, places in families(folded.kind[cells]):
            products += _products(folded, cells[places], code, place, len(held))
        new = np.concatenate([product.cells for product in products])
        place[new] = len(held) + np.arange(len(new))
        held = np.concatenate([held, new])
        yield Level(kept, products, number == len(folded.levels) - 1)


def _products(folded: Folded, cells: Any, code: int, place: Any, n_held: int) -> list[Product]:
    """The products of some cells of a level, of one family."""
    whole = _Rows(folded, cells, place)
    if whole.dense_size() <= DENSE * whole.n_edges:
        return [whole.dense(code, n_held)]
    longest = int(whole.counts.max())
    if longest * len(cells) <= 2 * whole.n_edges:
        return [whole.gathered(code)]
    power = np.ceil(np.log2(np.maximum(whole.counts, 1))).astype(np.int64)
    products = []
    for size in np.unique(power):
        rows = _Rows(folded, cells[power == size], place)
        fits = rows.dense_size() <= DENSE * rows.n_edges
        products.append(rows.dense(code, n_held) if fits else rows.gathered(code))
    return products


class _Rows:
    """Some rows of a network, with the positions of their sources among the values that are held."""

    def __init__(self, folded: Folded, cells: Any, place: Any) -> None:
        rows = cells - len(folded.columns)
        self.cells, self.bias, self.slope = cells, folded.bias[rows], folded.slope[cells]
        starts = folded.indptr[rows]
        self.counts = folded.indptr[rows + 1] - starts
        self.row = np.repeat(np.arange(len(rows)), self.counts)
        self.rank = np.arange(len(self.row)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        edges = np.repeat(starts, self.counts) + self.rank
        self.weights, self.places = folded.weights[edges], place[folded.indices[edges]]
        self.distinct = np.unique(self.places)
        self.n_edges = len(edges) + int((self.counts == 0).sum())  # a row without edges counts as one of weight 0

    def dense_size(self) -> int:
        """Elements of the smallest dense product."""
        return len(self.cells) * max(len(self.distinct), 1)

    def dense(self, code: int, n_held: int) -> Product:
        """A dense product; over all held values where these are few more than the sources."""
        size, distinct = self.dense_size(), self.distinct if len(self.distinct) else np.zeros(1, np.int64)
        every = len(self.cells) * n_held
        if every <= min(size + SPARE, DENSE * self.n_edges):
            weights = np.zeros((len(self.cells), n_held))
            weights[self.row, self.places] = self.weights
            return Product(self.cells, None, weights, self.bias, code, self.slope)
        weights = np.zeros((len(self.cells), len(distinct)))
        weights[self.row, np.searchsorted(distinct, self.places)] = self.weights
        return Product(self.cells, distinct.astype(np.int32), weights, self.bias, code, self.slope)

    def gathered(self, code: int) -> Product:
        """A gathered product; zeros read the first source of their row again."""
        width = max(int(self.counts.max()), 1)
        first = np.zeros(len(self.cells), np.int64)
        first[self.row[self.rank == 0]] = self.places[self.rank == 0]
        sources = np.repeat(first[:, None], width, axis=1).astype(np.int32)
        weights = np.zeros((len(self.cells), width))
        sources[self.row, self.rank], weights[self.row, self.rank] = self.places, self.weights
        return Product(self.cells, sources, weights, self.bias, code, self.slope)
