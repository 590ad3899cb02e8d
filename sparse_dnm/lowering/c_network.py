"""The network as C: constant tables and the loops that read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sparse_dnm.lowering.c_math import activation, functions
from sparse_dnm.lowering.layout import LANES, Layout, Part, Stage
from sparse_dnm.lowering.network import Folded, unscaled
from sparse_dnm.lowering.rows import Function
from sparse_dnm.lowering.tables import Tables


class Float32:
    """How a program in float32 computes: what `Network` asks for."""

    weight, cell, sum, weight_bytes, cell_bytes = "float", "float", "float", 4, 4
    name, output = "float32", "float"

    def __init__(self, folded: Folded) -> None:
        self.folded = folded = unscaled(folded)
        for what, values in (("weight", folded.weights), ("bias", folded.bias), ("scale", folded.scale)):
            if np.abs(values).max(initial=0) > np.finfo(np.float32).max:
                raise ValueError(
                    f"a {what} of the network is {values[np.abs(values).argmax()]:.3g}, which float32 cannot hold; "
                    "train in float32, or with weight decay"
                )

    def weights(self, tables: Tables, name: str, edges: Any) -> None:
        """Add the weights of edges, 0 for those numbered -1."""
        tables.reals(name, np.where(edges >= 0, np.append(self.folded.weights, 0.0)[edges], 0.0))

    def biases(self, layout: Layout, tables: Tables) -> None:
        """Add the table ``bias`` of all rows."""
        tables.reals("bias", self.folded.bias[layout.row])

    def start(self, first: int) -> str:
        """What the sum of a row begins with; ``first`` is the row of r = 0."""
        return f"tables.bias[{_plus(first)}r]"

    def _acts(self, cells: Any, table: str, tables: Tables) -> list[Function]:
        """The activations of cells, -1 for any; if there are several, a table says which cell has which."""
        kinds, slopes = self.folded.kind[cells].tolist(), self.folded.slope[cells].tolist()
        of = [(kind, float(np.float32(slope))) if cell >= 0 else None
              for cell, kind, slope in zip(cells.tolist(), kinds, slopes, strict=True)]  # fmt: skip
        functions = sorted({function for function in of if function})
        if len(functions) > 1:
            tables.unsigned(table, [functions.index(function) if function else 0 for function in of])
        return functions

    def further(self, name: str) -> Iterator[str]:
        """Functions after `run`: none."""
        return iter(())

    def helpers(self, layout: Layout, tables: Tables) -> Iterator[str]:
        """Functions before `run`; adds the tables that say which cell has which activation."""
        cells = {"input_act": layout.input_cell, "act": layout.cell_v}
        found = {table: self._acts(of, table, tables) for table, of in cells.items() if len(of)}
        yield from functions({kind for of in found.values() for kind, _ in of}).splitlines()
        self.calls: dict[str, tuple[str, bool]] = {}
        for table, of in found.items():
            if of:
                same = table == "act" and of == found.get("input_act")
                self.calls[table] = "input_act" if same else table, len(of) > 1
                yield from () if same else _function(table, of)

    def _act(self, table: str, z: str, index: str) -> str:
        """The call of the activation of a cell."""
        if table not in self.calls:
            return z
        function, many = self.calls[table]
        return f"{function}({z}{f', tables.{table}[{index}]' if many else ''})"

    def input_loop(self, layout: Layout, tables: Tables) -> Iterator[str]:
        """Lines that compute input cell c + k of v from x[column], inside a loop over n columns of a run."""
        cells = layout.input_cell
        there = cells >= 0
        scale = np.where(there, self.folded.scale[cells], 1.0)
        tables.reals("shift", np.where(there, self.folded.shift[cells], 0.0))
        z = "from[k] + tables.shift[c + k]"
        if (scale != 1).any():
            z = f"tables.scale[c + k] * {z}"
            if np.isin(scale, (-1, 1)).all():
                tables.narrowest("scale", scale)
            else:
                tables.reals("scale", scale)
        yield f"v[c + k] = {self._act('input_act', z, 'c + k')};"

    def hidden(self, layout: Layout, first: int, tables: Tables) -> Iterator[str]:
        """Lines that end a hidden row: from its sum s to its cells; ``first`` is the row of r = 0."""
        if layout.has_z:
            yield f"z[{_plus(first)}r] = s;"
        yield f"v[{_plus(layout.n_computed + first)}r] = {self._act('act', 's', f'{_plus(first)}r')};"

    def last(self, layout: Layout, tables: Tables) -> Iterator[str]:
        """Lines that end an output."""
        yield "y[r] = s * s;" if self.folded.squared else "y[r] = s;"


def _function(name: str, functions: list[Function]) -> Iterator[str]:
    """Lines of a function that is one of the activations, or chooses among them."""
    many = len(functions) > 1
    yield from (f"static float {name}(float z{', unsigned kind' * many})", "{")
    if many:
        yield "    switch (kind) {"
        for k, function in enumerate(functions[1:], 1):
            yield f"    case {k}: return {activation(function)};"
        yield from (f"    default: return {activation(functions[0])};", "    }")
    else:
        yield f"    return {activation(functions[0])};"
    yield from ("}", "")


def _plus(first: int) -> str:
    return f"{first} + " if first else ""


class Network:
    """The tables and the text of the function ``NAME_run``."""

    def __init__(self, layout: Layout, arithmetic: Any, name: str) -> None:
        self.layout, self.arithmetic, self.name = layout, arithmetic, name
        self.tables = Tables()
        self.ended: list[Part] = []  # whose lone edges are in one table, in the order in which the program needs them
        arithmetic.biases(layout, self.tables)
        self.helper_lines = list(arithmetic.helpers(layout, self.tables))
        self.lines = [*self._inputs()]
        for k, stage in enumerate(layout.stages):
            self.lines += self._stage(k, stage)
        if self.ended:
            self.helper_lines += arithmetic.lone(self._stream(), self.tables)

    @property
    def ram_bytes(self) -> int:
        """Bytes of the cells that are computed."""
        return (self.layout.size + self.layout.hidden * self.layout.has_z) * int(self.arithmetic.cell_bytes)

    def text(self) -> Iterator[str]:
        """Lines of the tables and functions."""
        a, size = self.arithmetic, self.layout.size
        has_blocks = any(len(part.block_at) for stage in self.layout.stages for part in stage.parts)
        if has_blocks or (self.layout.strip > 1 and len(self.layout.runs) > 1):
            yield from (
                "#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 8",
                '#define VECTOR_LOOP _Pragma("GCC unroll 1") /* or it unrolls the loop before it looks for vectors */',
                "#else", "#define VECTOR_LOOP", "#endif", "",
            )  # fmt: skip
        yield from self.tables.text()
        yield ""
        yield from self.helper_lines
        upper = self.name.upper()
        yield f"void {self.name}_run(const {a.cell} x[{upper}_INPUTS], {a.output} y[{upper}_OUTPUTS])"
        yield "{"
        n_sums = self.layout.hidden * self.layout.has_z
        if size:
            yield from (f"#ifdef {upper}_STATIC", "    static", "#endif", f"    {a.cell} v[{size + n_sums}];")
        if n_sums:
            yield f"    {a.cell} *const z = v + {size};"
        yield "    unsigned r;"
        if self.layout.n_computed and len(self.layout.runs) > 1:
            yield "    int c = 0;"
        if self.ended:
            yield f"    const {a.weight} *edge = tables.edges;"
        if not any("x +" in line or "x[" in line for line in self.lines):
            yield "    (void)x;"
        yield from ("    " + line if line else "" for line in self.lines)
        yield "}"
        yield from a.further(self.name)

    def _inputs(self) -> Iterator[str]:
        layout = self.layout
        if not layout.n_computed:
            return
        yield ""
        body = list(self.arithmetic.input_loop(layout, self.tables))
        runs = layout.runs
        yield f"/* {int((layout.input_cell >= 0).sum())} inputs */"
        if len(runs) == 1:
            first, n = runs[0].tolist()
            yield f"for (r = 0; r < {n}; r++) {{"
            yield from (
                "    " + line.replace("from[k]", f"x[{_plus(first)}r]").replace("[c + k]", "[r]") for line in body
            )
            yield "}"
            return
        strip = layout.strip
        self.tables.unsigned("run_first", runs[:, 0])
        self.tables.unsigned("run_count", runs[:, 1] // strip)
        if strip > 1:
            yield from (
                f"for (r = 0; r < {len(runs)}; r++) {{",
                f"    const {self.arithmetic.cell} *from = x + tables.run_first[r];", "    unsigned n;",
                f"    for (n = tables.run_count[r]; n; n--, from += {strip}, c += {strip}) {{", "        int k;",
                "        VECTOR_LOOP", f"        for (k = 0; k < {strip}; k++) {{",
                *("            " + line for line in body), "        }", "    }", "}",
            )  # fmt: skip
            return
        yield from (
            f"for (r = 0; r < {len(runs)}; r++) {{",
            f"    const {self.arithmetic.cell} *from = x + tables.run_first[r];",
            "    const unsigned n = tables.run_count[r];", "    unsigned k;",
            "    for (k = 0; k < n; k++) {", *(f"        {line}" for line in body), "    }", "    c += n;", "}",
        )  # fmt: skip

    def _stage(self, number: int, stage: Stage) -> Iterator[str]:
        a, rows, is_last = self.arithmetic, stage.rows, stage.rows.start == self.layout.hidden
        last = is_last
        yield ""
        kind = "outputs" if last else "neurons that read inputs" if number == 0 else "neurons"
        yield f"/* {len(rows)} {kind} */"
        yield "{"
        loops: list[str] = []
        for part in stage.parts:
            suffix = f"{number}{part.array}"
            yield from ("    " + line for line in self._pointers(part, suffix))
            loops += self._loops(part, suffix)
        blocks = any(len(part.block_at) for part in stage.parts)
        lone = any(len(part.edge_at) and not part.ended for part in stage.parts)
        yield f"    for (r = 0; r < {len(rows)}; r++) {{"
        zeros = ", s1 = 0, s2 = 0, s3 = 0" if lone else ""
        yield f"        {a.sum} s = {a.start(rows.start)}{zeros};"
        if blocks:
            yield f"        {a.sum} lane[{LANES}] = {{0}};"
        if blocks or lone:
            yield "        unsigned n;"
        yield from ("        " + line for line in loops)
        if lone:
            yield "        s += s1 + (s2 + s3);"
        if blocks:
            yield "        s += (lane[0] + lane[4]) + (lane[1] + lane[5]);"
            yield "        s += (lane[2] + lane[6]) + (lane[3] + lane[7]);"
        finish = a.last(self.layout, self.tables) if last else a.hidden(self.layout, rows.start, self.tables)
        yield from ("        " + line for line in finish)
        yield from ("    }", "}")

    def _pointers(self, part: Part, suffix: str) -> Iterator[str]:
        """Add the tables of a part; lines of the pointers that go through them."""
        a, tables = self.arithmetic, self.tables
        if len(part.block_at):
            tables.unsigned(f"blocks_{suffix}", part.block_count)
            at = tables.unsigned(f"block_at_{suffix}", part.block_at)
            a.weights(tables, f"block_{suffix}", part.block_edge)
            yield f"const {at} *block_at_{part.array} = tables.block_at_{suffix};"
            yield f"const {a.weight} (*block_{part.array})[{LANES}] = tables.block_{suffix};"
        if part.ended:
            self.ended.append(part)
            tables.unsigned(f"first_{suffix}", part.first)
        elif len(part.edge_at):
            tables.unsigned(f"edges_{suffix}", part.edge_count)
            if part.first is None:
                at, where = tables.unsigned(f"at_{suffix}", part.edge_at), "at"
            else:
                tables.unsigned(f"first_{suffix}", part.first)
                at, where = tables.unsigned(f"step_{suffix}", part.steps), "step"
            a.weights(tables, f"edge_{suffix}", part.edge)
            yield f"const {at} *{where}_{part.array} = tables.{where}_{suffix};"
            yield f"const {a.weight} *edge_{part.array} = tables.edge_{suffix};"

    def _loops(self, part: Part, suffix: str) -> Iterator[str]:
        a, array = self.arithmetic, part.array
        if len(part.block_at):
            yield f"for (n = tables.blocks_{suffix}[r]; n; n--, block_{array}++) {{"
            yield f"    const {a.cell} *from = {array} + *block_at_{array}++;"
            yield from ("    int k;", "    VECTOR_LOOP")
            yield f"    for (k = 0; k < {LANES}; k++)"
            yield from (f"        lane[k] += (*block_{array})[k] * from[k];", "}")
        if part.ended:
            yield f"s += lone({array} + tables.first_{suffix}[r], &edge);"
            return
        if not len(part.edge_at):
            return
        sums = ("s", "s1", "s2", "s3")
        if part.first is None:
            yield f"for (n = tables.edges_{suffix}[r]; n >= 4; n -= 4, edge_{array} += 4, at_{array} += 4) {{"
            yield from (f"    {s} += edge_{array}[{k}] * {array}[at_{array}[{k}]];" for k, s in enumerate(sums))
            yield from ("}", "switch (n) {")
            for k, s in enumerate(sums[:0:-1]):
                yield f"case {3 - k}: {s} += *edge_{array}++ * {array}[*at_{array}++];{' /* fall through */' * (k < 2)}"
            yield "}"
            return
        yield "{"
        yield f"    const {a.cell} *from = {array} + tables.first_{suffix}[r];"
        yield f"    for (n = tables.edges_{suffix}[r]; n >= 4; n -= 4, edge_{array} += 4, step_{array} += 4) {{"
        for k, s in enumerate(sums):
            yield from (f"        {s} += edge_{array}[{k}] * *from;", f"        from += step_{array}[{k}];")
        yield from ("    }", "    switch (n) {")
        for k, s in enumerate(sums[:0:-1]):
            yield from (f"    case {3 - k}: {s} += *edge_{array}++ * *from;", f"        from += *step_{array}++;")
            yield from ("        /* fall through */",) * (k < 2)
        yield from ("    }", "}")

    def _stream(self) -> tuple[Any, Any]:
        """Edges and steps of all parts whose steps end their rows, in the order in which the program needs them."""
        edges: list[Any] = []
        steps: list[Any] = []
        for stage in self.layout.stages:
            parts = [part for part in stage.parts if part.ended]
            ends = [np.cumsum(part.edge_count) for part in parts]
            for r in range(len(stage.rows)):
                for part, end in zip(parts, ends, strict=True):
                    here = slice(end[r] - part.edge_count[r], end[r])
                    edges.append(part.edge[here])
                    steps.append(part.steps[here])
        return np.concatenate(edges), np.concatenate(steps)
