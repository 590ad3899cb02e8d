"""How a program in int8 computes: the counterpart of `c_network.Float32`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sparse_dnm.lowering.codes import FLIPPED, SLOPE_BITS, slope_code
from sparse_dnm.lowering.int8 import MOST_OUTPUT, Quantized
from sparse_dnm.lowering.int8_inputs import UNIT
from sparse_dnm.lowering.layout import Layout
from sparse_dnm.lowering.rows import IDENTITY, Function
from sparse_dnm.lowering.tables import Tables, real

SCALED = """
/* sum * (8 .. 15) / 2**shift; a shift of negative integers must keep their sign, as all known compilers do */
typedef char shifts_keep_signs[(-1 >> 1) == -1 ? 1 : -1];

static int32_t scaled(int32_t sum, unsigned multiplier)
{
    return sum * (8 + (int32_t)(multiplier & 7)) >> (multiplier >> 3);
}
"""
NARROW = """
/* A code from t with {bits} bits after the point. */
static int8_t narrow(int32_t t, int zero)
{{
    t = ((t + {half}) >> {bits}) + zero;
    return (int8_t)(t < -128 ? -128 : t > 127 ? 127 : t);
}}
"""
CURVE = """
/* A table of 257 values, linear between them. */
static int32_t curve(const int16_t *table, int32_t t)
{{
    const int32_t code = (t < -{most} ? -{most} : t > {last} ? {last} : t) + {most};
    table += code >> {bits};
    return table[0] * {one} + (table[1] - table[0]) * (code & {rest});
}}
"""
OF_TWO = """
static int32_t {name}(int32_t a, int32_t b)
{{
    return a {sign} b ? a : b;
}}
"""
LONE = """
/* The sum of a row: weights, and beside each the way to the next cell, unsigned; 0 ends the row. */
static int32_t lone(const int8_t *from, const int8_t **edge)
{
    const int8_t *at = *edge;
    int32_t sum = 0;
    unsigned step;
    do {
        sum += at[0] * *from;
        step = (uint8_t)at[1];
        from += step;
        at += 2;
    } while (step);
    *edge = at;
    return sum;
}
"""


class Int8:
    """Tables and lines of the arithmetic of a `Quantized` network."""

    weight, cell, sum, weight_bytes, cell_bytes = "int8_t", "int8_t", "int32_t", 1, 1
    name, output = "int8", "int32_t"

    def __init__(self, quantized: Quantized) -> None:
        self.quantized = quantized

    def weights(self, tables: Tables, name: str, edges: Any) -> None:
        """Add the weights of edges, 0 for those numbered -1."""
        tables.signed(name, self._weights(edges), 1)

    def _weights(self, edges: Any) -> Any:
        return np.where(edges >= 0, np.append(self.quantized.weights, 0)[edges], 0)

    def lone(self, stream: tuple[Any, Any], tables: Tables) -> Iterator[str]:
        """Add the table of edges and their steps; lines of the function that goes through a row."""
        edges, steps = stream
        pairs = np.stack([self._weights(edges), np.where(steps > 127, steps - 256, steps)], 1)
        tables.signed("edges", pairs.ravel(), 1)
        yield from LONE.splitlines()[1:]
        yield ""

    def start(self, first: int) -> str:
        """What the sum of a row begins with."""
        return "0"

    def biases(self, layout: Layout, tables: Tables) -> None:
        """Add the biases of all rows, and how their sums become codes."""
        q, n = self.quantized, layout.hidden
        if n:
            tables.narrowest("bias", q.bias[:n])
        tables.narrowest("out_bias", q.bias[n:])
        tables.unsigned("multiplier", q.multiplier)
        for name, codes, there in (("act", q.acts, n), ("sum", q.sums, layout.has_z and not q.shared)):
            if there:
                tables.narrowest(f"{name}_zero", codes.zero)
            if there and codes.down.any():
                tables.unsigned(f"{name}_down", codes.down)

    def further(self, name: str) -> Iterator[str]:
        """Functions after `run`: the code of an input."""
        q = self.quantized
        yield from ("", f"int8_t {name}_code(float input);", f"int8_t {name}_code(float input)", "{")
        yield f"    const float scaled = input * {real(1 / q.x_scale)};"
        yield f"    const float code = scaled + {real(q.x_zero + 128.5)};"
        yield from ("    return (int8_t)((code < 0.0f ? 0 : code > 255.0f ? 255 : (int)code) - 128);", "}")

    def helpers(self, layout: Layout, tables: Tables) -> Iterator[str]:
        """Functions before `run`; adds their tables."""
        q = self.quantized
        yield from SCALED.splitlines()[1:]
        cells = q.inputs.functions
        self.acts = {"input_function": cells, "function": self._functions(layout)}
        for table, of in self.acts.items():
            if len(set(of)) > 1:
                tables.unsigned(table, [sorted(set(of)).index(one) for one in of])
        by_knee, curved = q.inputs.by_knee, [one for of in self.acts.values() for one in of if one in q.curves]
        if layout.hidden or (cells and not by_knee):
            yield from NARROW.format(bits=q.bits, half=1 << (q.bits - 1)).splitlines()
        if curved:
            numbers = {"bits": q.bits, "one": 1 << q.bits, "rest": (1 << q.bits) - 1, "most": 128 << q.bits}
            yield from CURVE.format(**numbers, last=(128 << q.bits) - 1).splitlines()
        for kind, _ in sorted(set(curved)):
            tables.signed(f"curve{kind}", q.curves[kind, 0.0].table, 2)
        needed = dict(larger=">", smaller="<")
        for table, name, of in (("input_function", "input_act", cells), ("function", "act", self.acts["function"])):
            functions = sorted(set(of))
            if functions and not (table == "function" and self._same()):
                expressions = [self._knee(f) if name == "input_act" and by_knee else self._act(f) for f in functions]
                for of_two in [one for one in needed if any(one in expression for expression in expressions)]:
                    yield from OF_TWO.format(name=of_two, sign=needed.pop(of_two)).splitlines()
                yield from _choice(name, expressions)

    def _same(self) -> bool:
        """One function is that of input cells and that of hidden ones."""
        return not self.quantized.inputs.by_knee and len({frozenset(of) for of in self.acts.values()}) == 1

    def _functions(self, layout: Layout) -> list[Function]:
        """Of the cells in v."""
        found = [self.quantized.function(cell) if cell >= 0 else None for cell in layout.cell_v.tolist()]
        any_one = next((one for one in found if one), IDENTITY)
        return [one or any_one for one in found]

    def _act(self, function: Function) -> str:
        """act(t) as an expression."""
        if function in self.quantized.curves:
            return f"curve(tables.curve{function[0]}, t)"
        code = slope_code(function[1])
        if code in (0, 1 << SLOPE_BITS):
            return "t" if code else "t < 0 ? 0 : t"
        wide = self.quantized.most * abs(code) >= 1 << 31
        below = f"{f'(int32_t)(((int64_t)t * {code})' if wide else f'(t * {code}'} >> {SLOPE_BITS})"
        if 0 < code < 1 << SLOPE_BITS:  # a maximum, no jump: see c_math.activation
            return f"larger(t, {below})"
        return f"t < 0 ? {below} : t"

    def _knee(self, function: Function) -> str:
        """The same for a difference between codes; compilers vectorise the larger of two numbers, but no branch."""
        code, half = slope_code(function[1]), 1 << (SLOPE_BITS - 1)
        other = f"(t * {code} + {half}) >> {SLOPE_BITS}" if code else "0"
        return "t" if code == 1 << SLOPE_BITS else f"{'smaller' if function[0] == FLIPPED else 'larger'}(t, {other})"

    def _called(self, table: str, t: str, index: str) -> str:
        """The call of the activation of a cell."""
        many = len(set(self.acts[table])) > 1
        name = "input_act" if table == "input_function" or self._same() else "act"
        return f"{name}({t}{f', tables.{table}[{index}]' * many})"

    def input_loop(self, layout: Layout, tables: Tables) -> Iterator[str]:
        """Lines that compute input cell c + k of v from x[column], inside a loop over n columns of a run."""
        cells = self.quantized.inputs
        tables.narrowest("input_zero", cells.zero)
        if cells.by_knee:
            act = self._called("input_function", "from[k] - tables.input_zero[c + k]", "c + k")
            yield f"v[c + k] = (int8_t)(tables.input_zero[c + k] + {act});"
            return
        tables.narrowest("input_factor", cells.factor)
        tables.narrowest("input_offset", cells.offset)
        yield f"const int32_t offset = tables.input_offset[c + k] * (int32_t){UNIT};"
        t = f"(tables.input_factor[c + k] * (int32_t)from[k] + offset) >> {cells.shift}"
        act = self._called("input_function", t, "c + k")
        if cells.down.any():
            tables.unsigned("input_down", cells.down)
            act += " >> tables.input_down[c + k]"
        yield f"v[c + k] = narrow({act}, tables.input_zero[c + k]);"

    def hidden(self, layout: Layout, first: int, tables: Tables) -> Iterator[str]:
        """Lines that end a hidden row: from its sum s to its cells; ``first`` is the row of r = 0."""
        at, q = f"{first} + r" if first else "r", self.quantized
        yield f"s = tables.bias[{at}] + scaled(s, tables.multiplier[{at}]);"
        if layout.has_z:
            down = f" >> tables.sum_down[{at}]" * ("sum_down" in tables.fields)
            yield f"z[{at}] = narrow(s{down}, tables.{'act' if q.shared else 'sum'}_zero[{at}]);"
        down = f" >> tables.act_down[{at}]" * ("act_down" in tables.fields)
        act, place = self._called("function", "s", at), layout.n_computed + first
        yield f"v[{f'{place} + ' if place else ''}r] = narrow({act}{down}, tables.act_zero[{at}]);"

    def last(self, layout: Layout, tables: Tables) -> Iterator[str]:
        """Lines that end an output."""
        most, at = MOST_OUTPUT, f"{layout.hidden} + r" if layout.hidden else "r"
        yield f"s = tables.out_bias[r] + scaled(s, tables.multiplier[{at}]);"
        yield f"s = s < -{most} ? -{most} : s > {most} ? {most} : s;"
        yield "y[r] = s * s;" if self.quantized.folded.squared else "y[r] = s;"


def _choice(name: str, expressions: list[str]) -> Iterator[str]:
    """Lines of a function of t that is one of some expressions, or chooses among them."""
    yield from ("", f"static int32_t {name}(int32_t t{', unsigned kind' * (len(expressions) > 1)})", "{")
    if len(expressions) == 1:
        yield f"    return {expressions[0]};"
    else:
        yield "    switch (kind) {"
        for k, expression in enumerate(expressions[1:], 1):
            yield f"    case {k}: return {expression};"
        yield from (f"    default: return {expressions[0]};", "    }")
    yield from ("}", "")
