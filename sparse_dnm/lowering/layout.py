"""Where the cells of a network lie in the memory of a program, and which edges are read as blocks of neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.lowering.network import LEAKY, Folded

LANES = 8  # cells of a block
PRICES = {"float32": (1.0, 3.0), "int8": (1.0, 5.0)}
"""Of a lone edge and of a block: about their bytes; cheaper blocks, which are more bytes, were no faster."""
STRIP = 8  # input columns that a program in float32 computes together
BLOCK_CODE, LONE_CODE = 150, 60  # about the bytes of code of a loop over blocks, and over lone edges by their places
GAP = 4  # columns that nobody needs, between two runs of input cells, are computed as well if there are no more of them
X, V, Z = ARRAYS = ("x", "v", "z")  # the inputs; cells that are computed; sums before their activation

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """Edges of the rows of a stage from one array.

    array        "x", "v" or "z"
    block_count  (rows,)    blocks of each row: LANES neighbouring cells each
    block_at     (blocks,)  place of the first cell
    block_edge   (blocks, LANES)  which edge of the network a lane is, -1 where there is none
    edge_count   (rows,)    lone edges of each row
    edge_at      (edges,)   place of the source
    edge         (edges,)   which edge of the network it is, -1 for none, which only shortens a step
    first        (rows,)    place of the first source of a row, if sources are given by steps; else None
    ended        a step of 0 ends a row, which has an edge at least: edge_count is not needed
    """

    array: str
    block_count: Ints
    block_at: Ints
    block_edge: Ints
    edge_count: Ints
    edge_at: Ints
    edge: Ints
    first: Ints | None = None
    ended: bool = False

    @property
    def steps(self) -> Ints:
        """Places from each source to the next of its row; 0 after the last."""
        out = np.zeros(len(self.edge_at), np.int64)
        out[:-1] = np.diff(self.edge_at)
        ends = np.cumsum(self.edge_count)
        out[ends[ends > 0] - 1] = 0
        return out

    def n_bytes(self, weight_bytes: int) -> int:
        """Bytes of its tables, about."""
        rows, blocks, edges = len(self.edge_count), len(self.block_at), len(self.edge_at)
        at = unsigned_bytes(int(self.block_at.max(initial=0)))
        found = (rows + blocks * (at + LANES * weight_bytes)) * bool(blocks)
        if self.first is None:
            at = unsigned_bytes(int(self.edge_at.max(initial=0)))
            return found + (rows + edges * (at + weight_bytes)) * bool(edges)
        found += edges * (1 + weight_bytes) + rows * unsigned_bytes(int(self.first.max()))
        return found if self.ended else found + rows

    def stepped(self, ended: bool) -> Part:
        """The same with steps of a byte; edges without a source shorten longer ones, and fill rows if they must."""
        at: list[int] = []
        edge: list[int] = []
        count: list[int] = []
        first: list[int] = []
        start = 0
        for n in self.edge_count.tolist():
            row, edges = self.edge_at[start : start + n].tolist(), self.edge[start : start + n].tolist()
            start += n
            here = row[0] if row else 0
            first.append(here)
            before = len(at)
            for place, number in zip(row, edges, strict=True):
                while place - here > 255:
                    here += 255
                    at.append(here)
                    edge.append(-1)
                here = place
                at.append(place)
                edge.append(number)
            if ended and not row:
                at.append(here)
                edge.append(-1)
            count.append(len(at) - before)
        counts, places, numbers, firsts = (np.array(values, np.int64) for values in (count, at, edge, first))
        return replace(self, edge_count=counts, edge_at=places, edge=numbers, first=firsts, ended=ended)


@dataclass(frozen=True, eq=False)
class Stage:
    """Rows that a program computes in one loop."""

    rows: range
    parts: list[Part]


def unsigned_bytes(largest: int) -> int:
    """Bytes of the smallest unsigned integer that holds it."""
    return 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4


class Layout:
    """Places of cells, runs of input cells, and the edges of each stage.

    The program computes hidden rows one by one: z[r] = sum, v[n_computed + r] = act(sum).  A cell that is read
    before and after its activation is one row.  Where all hidden cells are of one kind there is no z.

    prices        of a lone edge and of a block, by which the rows are covered
    strip         input cells are computed by so many neighbouring columns; 1 where a program has no columns to waste
    weight_bytes  of a weight
    hidden        hidden rows of the program; its rows after them are the outputs
    row           int64 (rows,)    row of the network of each row of the program
    cell_v        int64 (hidden,)  cell of the network that is act(sum), or -1; what is written then is not read
    cell_z        int64 (hidden,)  cell of the network that is the sum in z, or -1
    array         int8 (n_cells,)  where a cell lies: index into ARRAYS
    place         int64 (n_cells,)  and its place there, -1 for outputs
    n_computed    input cells that lie in v, first
    runs          int64 (n, 2)  first column and number of columns of the runs that they are computed from
    input_cell    int64 (n_computed,)  their cells of the network; -1 where nobody needs it
    """

    def __init__(self, folded: Folded, prices: tuple[float, float], weight_bytes: int, strip: int = 1) -> None:
        self.folded, self.prices, self.weight_bytes = folded, prices, weight_bytes
        self.strip = strip if strip <= folded.n_inputs else 1
        k = self.k = len(folded.columns)
        identity = (folded.kind == LEAKY) & (folded.slope == 1)
        self.passed = identity[:k]  # an identity is never scaled
        self.runs, self.input_cell = self._input_runs()
        self.n_computed = len(self.input_cell)
        self.row, self.cell_v, self.cell_z = self._rows(identity)
        self.hidden = len(self.cell_v)
        self.array, self.place = np.zeros(folded.n_cells, np.int8), np.full(folded.n_cells, -1, np.int64)
        self.place[:k][self.passed] = folded.columns[self.passed]
        rows = np.arange(self.hidden)
        for array, cells, places in (
            (V, self.input_cell, np.arange(self.n_computed)), (V, self.cell_v, self.n_computed + rows),
            (Z, self.cell_z, rows),
        ):  # fmt: skip
            there = cells >= 0
            self.place[cells[there]], self.array[cells[there]] = places[there], ARRAYS.index(array)

    @classmethod
    def of(cls, folded: Folded, dtype: str) -> Layout:
        """That of a program in float32 or int8."""
        return cls(folded, PRICES[dtype], 4, STRIP) if dtype == "float32" else cls(folded, PRICES[dtype], 1)

    @property
    def size(self) -> int:
        """Cells of v."""
        return self.n_computed + self.hidden

    @property
    def has_z(self) -> bool:
        """There is an array z."""
        return bool((self.cell_z >= 0).any())

    def _rows(self, identity: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
        """``row``, ``cell_v`` and ``cell_z``."""
        folded, k = self.folded, self.k
        cells = np.arange(k, folded.n_cells - folded.n_outputs)
        starts, counts = folded.indptr[cells - k], np.diff(folded.indptr)[cells - k]
        single = (counts == 1) & (folded.bias[cells - k] == 0) & ~identity[cells]
        single[single] &= folded.weights[starts[single]] == 1
        source = np.full(len(cells), -1, np.int64)
        source[single] = folded.indices[starts[single]]
        single &= (source >= k) & identity[source]
        of = dict(zip(source[single].tolist(), cells[single].tolist(), strict=True))  # the activation of a sum
        main = cells[~single | (np.bincount(source[single], minlength=folded.n_cells)[source] > 1)]
        rest = set(main.tolist())
        split = bool(identity[cells].any() and not identity[cells].all())
        cell_v, cell_z = [], []
        for cell in main.tolist():
            twin = of.get(cell, -1)
            summed = split and bool(identity[cell])
            cell_z.append(cell if summed else -1)
            cell_v.append(twin if summed and twin not in rest else -1 if summed else cell)
        outputs = np.arange(folded.n_cells - folded.n_outputs, folded.n_cells)
        return np.concatenate([main, outputs]) - k, np.array(cell_v, np.int64), np.array(cell_z, np.int64)

    def _input_runs(self) -> tuple[Ints, Ints]:
        columns, strip = self.folded.columns, self.strip
        of = {int(columns[cell]): int(cell) for cell in np.flatnonzero(~self.passed)}
        runs: list[list[int]] = []
        cell_of: list[int] = []
        for column in list(of):
            gap = column - sum(runs[-1]) if runs else GAP + 1
            if gap < 0:
                continue  # it is in the last strip
            start = column if gap > GAP else sum(runs[-1])
            while start <= column:
                first = min(start, self.folded.n_inputs - strip)  # columns of an earlier strip are computed twice
                if not runs or first != sum(runs[-1]):
                    runs.append([first, 0])
                runs[-1][1] += strip
                cell_of += [of.pop(at, -1) for at in range(first, first + strip)]
                start = first + strip
        return np.array(runs, np.int64).reshape(-1, 2), np.array(cell_of, np.int64)

    @cached_property
    def stages(self) -> list[Stage]:
        """The rows that read inputs alone, if they read fewer arrays; the other hidden ones; the outputs."""
        first = int((self.row[: self.hidden] + self.k < self.folded.level_starts[1]).sum())
        outputs = range(self.hidden, self.hidden + self.folded.n_outputs)
        whole, one, other = (self._stage(range(*r)) for r in ((0, self.hidden), (0, first), (first, self.hidden)))
        split = [one, other] if len(one.rows) and len(one.parts) < len(whole.parts) else [whole]
        return [stage for stage in (*split, self._stage(outputs)) if len(stage.rows)]

    def _stage(self, rows: range) -> Stage:
        parts = [self._part(rows, array) for array in ARRAYS]
        return Stage(rows, [part for part in parts if len(part.block_at) or len(part.edge_at)])

    def _part(self, rows: range, array: str) -> Part:
        part = self._shorter(self._covered(rows, array, self.prices))
        if self.weight_bytes > 1 or not len(part.block_at):
            return part
        lone = self._shorter(self._covered(rows, array, (1.0, np.inf)))
        saved = lone.n_bytes(self.weight_bytes) - part.n_bytes(self.weight_bytes)
        return part if saved > BLOCK_CODE else lone

    def _covered(self, rows: range, array: str, prices: tuple[float, float]) -> Part:
        folded, here = self.folded, self.array == ARRAYS.index(array)
        counts: list[list[int]] = [[], []]
        at: list[list[int]] = [[], []]
        edges: list[Any] = [[], []]
        for row in rows:
            mine = np.arange(*folded.indptr[self.row[row] : self.row[row] + 2])
            mine = mine[here[folded.indices[mine]]]
            mine = mine[np.argsort(self.place[folded.indices[mine]], kind="stable")]
            done = min(row, self.hidden)
            there = {X: folded.n_inputs, V: self.n_computed + done, Z: done}[array]
            found = _cover(self.place[folded.indices[mine]].tolist(), mine.tolist(), there, prices)
            for k in range(2):
                counts[k].append(len(found[k]))
                at[k] += [first for first, _ in found[k]]
                edges[k] += [edge for _, edge in found[k]]
        (blocks, lone), (block_at, edge_at) = ([np.array(v, np.int64) for v in each] for each in (counts, at))
        block_edge = np.array(edges[0], np.int64).reshape(-1, LANES)
        return Part(array, blocks, block_at, block_edge, lone, edge_at, np.array(edges[1], np.int64))

    def _shorter(self, part: Part) -> Part:
        """The part, its lone edges given by places or by steps: what takes fewer bytes.

        Steps that end a row are for weights of a byte, which lie beside them, and go through one loop for all rows.
        """
        if not len(part.edge_at):
            return part
        ended = self.weight_bytes == 1
        stepped = part.stepped(ended)
        most = part.n_bytes(self.weight_bytes) + LONE_CODE * ended
        return stepped if stepped.n_bytes(self.weight_bytes) < most else part


def _cover(
    places: list[int], edges: list[int], there: int, prices: tuple[float, float]
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """Blocks and lone edges of a row, the cheapest; cells 0 .. there - 1 can be read."""
    n, (lone_price, block_price) = len(places), prices
    best, choice = [0.0] * (n + 1), [0] * n
    for k in reversed(range(n)):
        best[k], choice[k] = best[k + 1] + lone_price, k + 1
        if there >= LANES:
            first = min(places[k], there - LANES)
            end = next((j for j in range(k, n) if places[j] >= first + LANES), n)
            if end > k + 1 and best[end] + block_price < best[k]:
                best[k], choice[k] = best[end] + block_price, -end
    blocks, lone, k = [], [], 0
    while k < n:
        if choice[k] > 0:
            lone.append((places[k], edges[k]))
            k += 1
            continue
        first = min(places[k], there - LANES)
        lanes = [-1] * LANES
        for j in range(k, -choice[k]):
            lanes[places[j] - first] = edges[j]
        blocks.append((first, lanes))
        k = -choice[k]
    return blocks, lone
