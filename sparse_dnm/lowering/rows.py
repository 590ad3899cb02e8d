"""Rows of a network while it is folded: sums over cells that can be dissolved in the sums that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Function = tuple[int, float]  # activation: kind and slope below zero, as in ACTIVATION_CODES
Act = Callable[[float, Function], float]
IDENTITY: Function = (0, 1.0)


@dataclass
class Row:
    """cell = act(sum over weights of weight * source + bias)."""

    weights: dict[int, float]
    bias: float
    function: Function


class Rows:
    """Rows by cell, sources before readers.  Cells without a row are inputs.

    act  the activations
    """

    def __init__(self, act: Act) -> None:
        self.act = act
        self.rows: dict[int, Row] = {}

    def keep(self, outputs: Iterable[int]) -> None:
        """Drop edges of weight 0, and rows that reach none of ``outputs``."""
        for row in self.rows.values():
            row.weights = {cell: weight for cell, weight in row.weights.items() if weight != 0}
        live, waiting = set[int](), list(outputs)
        while waiting:
            cell = waiting.pop()
            if cell not in live:
                live.add(cell)
                waiting += self.rows[cell].weights if cell in self.rows else ()
        self.rows = {cell: row for cell, row in self.rows.items() if cell in live}

    def dissolve(self, outputs: Iterable[int]) -> None:
        """Put constant cells into the biases of their readers, and sums without activation into their readers' sums
        where that takes no more edges; then drop what is not read.  Until nothing changes."""
        kept = set(outputs)
        self.keep(kept)
        while self._dissolve_once(kept):
            self.keep(kept)

    def _dissolve_once(self, kept: set[int]) -> bool:
        readers: dict[int, set[int]] = {cell: set() for cell in self.rows}
        for cell, row in self.rows.items():
            for source in row.weights:
                if source in readers:
                    readers[source].add(cell)
        changed = False
        for cell in [cell for cell in self.rows if cell not in kept]:
            row, read_by = self.rows[cell], readers[cell]
            constant = not row.weights
            short = len(row.weights) * len(read_by) <= len(row.weights) + len(read_by)
            if not constant and (row.function != IDENTITY or not short):
                continue
            changed = True
            shift = self.act(row.bias, row.function)
            for reader in read_by:
                self._put_into(self.rows[reader], cell, row.weights, shift)
            for source in row.weights:
                if source in readers:
                    readers[source] = (readers[source] - {cell}) | read_by
            del self.rows[cell]
        return changed

    @staticmethod
    def _put_into(row: Row, cell: int, weights: dict[int, float], shift: float) -> None:
        """Replace ``cell`` in a row by the sum that it is."""
        factor = row.weights.pop(cell)
        row.bias += factor * shift
        for source, weight in weights.items():
            row.weights[source] = row.weights.get(source, 0.0) + factor * weight

    def levels(self) -> dict[int, int]:
        """The longest path, in edges, that ends in each cell of a row; inputs have 0."""
        found: dict[int, int] = {}
        for cell, row in self.rows.items():
            found[cell] = 1 + max((found.get(source, 0) for source in row.weights), default=0)
        return found
