"""A time step of a recurrent network as C, float32: constant tables and the loops that read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.config import GATED
from sparse_dnm.engine.recurrence import STATES
from sparse_dnm.lowering.c_math import activation, functions
from sparse_dnm.lowering.network import LEAKY, LOGISTIC, TANH, numbers_of
from sparse_dnm.lowering.rows import IDENTITY, Function
from sparse_dnm.lowering.tables import Tables
from sparse_dnm.model.recurrent_dag import RecurrentDAG, functions_of

LOGISTIC_TEXT = """\
static float logistic(float z)
{
    return 1.0f / (1.0f + exponential(-z));
}
"""
CELLS = {  # g: the cell's weights, recurrent weights and biases, gate by gate; a: the sum of its messages
    "lstm": """\
    const float i = logistic(g[0] * a + g[4] * h + g[8]), f = logistic(g[1] * a + g[5] * h + g[9]);
    const float new = tangent(g[2] * a + g[6] * h + g[10]), o = logistic(g[3] * a + g[7] * h + g[11]);
    state->c[k] = f * state->c[k] + i * new;
    return state->h[k] = o * tangent(state->c[k]);""",
    "gru": """\
    const float reset = logistic(g[0] * a + g[3] * h + g[6]), keep = logistic(g[1] * a + g[4] * h + g[7]);
    const float new = tangent(g[2] * a + g[8] + reset * (g[5] * h + g[9]));
    return state->h[k] = new + keep * (h - new);""",
    "ctrnn": """\
    return state->h[k] = h + g[0] * (a - h);""",
}


@dataclass(frozen=True, eq=False)
class Loop:
    """Neurons that a program computes in one loop, one after the other.

    kind      "x": inputs of the network, "memory": of its memory, "cell": neurons with a state, "sum": the others
    neurons   int32 (n,)  in the order in which they are computed
    function  their activation
    message   place in v of the first one's act(z), or -1: nobody reads it
    value     the same of z
    """

    kind: str
    neurons: NDArray[np.int32]
    function: Function
    message: int
    value: int


class RecurrentNetwork:
    """The tables and the text of the functions ``NAME_reset`` and ``NAME_step``.

    Neurons that reach no output are left out, and factors of sums are in the weights of their edges.
    """

    def __init__(self, dag: RecurrentDAG, name: str) -> None:
        self.dag, self.name, self.tables = dag, name, Tables()
        self.kinds, self.slopes, self.first_linear, biased = functions_of(dag)
        n = dag.topology.n_neurons
        self.factor, self.bias = np.ones(n), np.zeros(n)
        self.bias[biased] = numbers_of(dag, "bias")
        if dag.weight is not None:
            self.factor[biased] = numbers_of(dag, "weight")
        cells = dag._recurrence.cells if dag._recurrence is not None else np.zeros(0, np.int32)
        self.cell_of = np.full(n, -1, np.int64)
        self.cell_of[cells] = np.arange(len(cells))
        self.size = 0
        self.loops = [*self._loops()]
        executed = [loop.neurons for loop in self.loops if loop.kind == "cell"]
        self.cells = self.cell_of[np.concatenate(executed)] if executed else np.zeros(0, np.int64)
        self._edges()
        self._gates()
        self.lines = [*self._step()]

    @property
    def ram_bytes(self) -> int:
        """Bytes of the cells that are computed."""
        return 4 * self.size

    @property
    def state(self) -> dict[str, int]:
        """The arrays of the state, and how long they are; a struct has one at least."""
        count = STATES[self.dag.neuron]
        n = {"h": len(self.cells) * (count > 0), "c": len(self.cells) * (count > 1), "memory": self.dag.n_memory}
        return {name: size for name, size in n.items() if size} or {"memory": 1}

    # -- what is computed ------------------------------------------------------------------------------------

    def _loops(self) -> Iterator[Loop]:
        """The inputs, neurons of a kind in the order of execution, and the outputs that nobody reads."""
        dag, t = self.dag, self.dag.topology
        readers = np.repeat(np.arange(t.n_neurons), np.diff(t.indptr))
        there = t.live[readers]
        self.by_message, self.by_value = np.zeros(t.n_neurons, bool), np.zeros(t.n_neurons, bool)
        self.by_message[t.indices[there & (readers < self.first_linear)]] = True
        self.by_value[t.indices[there & (readers >= self.first_linear)]] = True
        read = self.by_message | self.by_value
        self.by_value[t.outputs] = True
        inputs = t.inputs[t.live[t.inputs]]
        memory = inputs[np.isin(inputs, t.inputs[dag.n_inputs :])]
        yield from self._loop("x", inputs[~np.isin(inputs, memory)])
        yield from self._loop("memory", memory)
        last = t.outputs[~read[t.outputs] & ~np.isin(t.outputs, t.inputs)]
        others = [i for i in t.order.tolist() if t.live[i] and i not in {*t.inputs.tolist(), *last.tolist()}]
        same: list[int] = []
        for i in [*others, None]:
            if same and (i is None or (self.cell_of[i] < 0) != (self.cell_of[same[0]] < 0)):
                yield from self._loop("sum" if self.cell_of[same[0]] < 0 else "cell", np.array(same, np.int32))
                same = []
            same += [] if i is None else [i]
        yield from self._loop("sum", last)

    def _loop(self, kind: str, neurons: NDArray[np.int32]) -> Iterator[Loop]:
        """A loop with its places, unless it is empty.  The neurons of a kind have one activation."""
        if not len(neurons):
            return
        code = int(self.kinds[neurons[0]])
        function = (code, float(self.slopes[neurons[0]]) if code == LEAKY else 0.0)
        message, value = bool(self.by_message[neurons].any()), bool(self.by_value[neurons].any())
        first = self.size
        if function == IDENTITY:
            self.size += len(neurons)
            yield Loop(kind, neurons, function, first, first)
            return
        self.size += (message + value) * len(neurons)
        second = first + message * len(neurons)
        yield Loop(kind, neurons, function, first if message else -1, second if value else -1)

    def _edges(self) -> None:
        """Tables of the edges of all rows, one row after the other, and of the outputs' places."""
        t, weights = self.dag.topology, numbers_of(self.dag, "edge_weight")
        places = np.full((2, t.n_neurons), -1, np.int64)  # of messages and values
        for loop in self.loops:
            for row, first in enumerate((loop.message, loop.value)):
                places[row, loop.neurons] = first + np.arange(len(loop.neurons)) if first >= 0 else -1
        counts: list[int] = []
        at: list[int] = []
        values: list[float] = []
        for loop in self.loops:
            for i in loop.neurons.tolist() if loop.kind in ("cell", "sum") else ():
                edges = [e for e in range(*t.indptr[i : i + 2]) if weights[e] != 0]
                counts.append(len(edges))
                at += [int(places[int(i >= self.first_linear), t.indices[e]]) for e in edges]
                scale = self.factor[i] if loop.kind == "sum" else 1.0
                values += [float(scale * weights[e]) for e in edges]
        self.n_edges = len(values)
        if values:
            self.tables.unsigned("count", counts)
            self.at_type = self.tables.unsigned("at", at)
            self._reals("edges", values)
        self.outputs = places[1, t.outputs]
        self.in_a_row = bool((np.diff(self.outputs) == 1).all())
        if not self.in_a_row:
            self.tables.unsigned("output", self.outputs)

    def _gates(self) -> None:
        """The table of the cells' numbers."""
        if not len(self.cells):
            return
        gates = self.dag._gates().detach().cpu().double().numpy()[:, self.cells].T
        if self.dag.neuron == "ctrnn":
            gates = 1 / (1 + np.exp(-gates))
        self._reals("gates", np.ascontiguousarray(gates))

    def _reals(self, name: str, values: Any) -> None:
        """Add a table of float32.  Raises ValueError where that cannot hold a number."""
        values = np.asarray(values, np.float64)
        size = np.abs(values).max(initial=0)
        if not size <= np.finfo(np.float32).max:
            raise ValueError(
                f"a number of the network ({name}) is {size:.3g}, which float32 cannot hold; train in float32, or with "
                "weight decay"
            )
        self.tables.reals(name, values)

    # -- text ------------------------------------------------------------------------------------------------

    def text(self) -> Iterator[str]:
        """Lines of the tables and functions."""
        name, upper = self.name, self.name.upper()
        if self.tables.fields:
            yield from self.tables.text()
            yield ""
        yield from self._helpers()
        yield from (f"void {name}_reset({name}_state *state)", "{", "    unsigned k;")
        for array, size in self.state.items():
            yield from (f"    for (k = 0; k < {size}; k++)", f"        state->{array}[k] = 0.0f;")
        yield from ("}", "")
        yield f"void {name}_step({name}_state *state, const float x[{upper}_INPUTS], float y[{upper}_OUTPUTS])"
        yield "{"
        yield from (f"#ifdef {upper}_STATIC", "    static", "#endif", f"    float v[{self.size}];")
        if self.n_edges:
            yield f"    const {self.at_type} *at = tables.at;"
            yield "    const float *edge = tables.edges;"
        yield "    unsigned r;"
        for argument in ("x", "state"):
            if not any(
                f"{argument}[" in line or f"{argument}->" in line or f"({argument}," in line for line in self.lines
            ):
                yield f"    (void){argument};"
        yield from ("    " + line if line else "" for line in self.lines)
        yield "}"

    def _helpers(self) -> Iterator[str]:
        """The functions that a step calls."""
        used = {loop.function for loop in self.loops if loop.function != IDENTITY and loop.message >= 0}
        gated = self.dag.neuron in GATED and len(self.cells) > 0
        kinds = {kind for kind, _ in used} | ({LOGISTIC, TANH} if gated else set())
        yield from functions(kinds).splitlines()
        if gated:
            yield from (*LOGISTIC_TEXT.splitlines(), "")
        for function in used:  # a network has one beside the identity
            yield from ("static float act(float z)", "{", f"    return {activation(function)};", "}", "")
        if len(self.cells):
            yield from (
                f"/* A time step of cell k, {self.dag.neuron}. */",
                f"static float cell({self.name}_state *state, unsigned k, float a)", "{",
                "    const float *g = tables.gates[k];", "    const float h = state->h[k];",
                *CELLS[self.dag.neuron].splitlines(), "}", "",
            )  # fmt: skip

    def _step(self) -> Iterator[str]:
        """Lines of the loops."""
        self.row = self.cell = 0
        for number, loop in enumerate(self.loops):
            yield ""
            yield f"/* {len(loop.neurons)} {WORDS[loop.kind]} */"
            yield f"for (r = 0; r < {len(loop.neurons)}; r++) {{"
            lines = self._inputs(number, loop) if loop.kind in ("x", "memory") else self._sums(number, loop)
            yield from ("    " + line for line in lines)
            yield "}"
        n_outputs, n_memory = self.dag.n_outputs, self.dag.n_memory
        squared = self.dag.output == "square"
        yield ""
        for target, first, n in (("y", 0, n_outputs), ("state->memory", n_outputs, n_memory)):
            if not n:
                continue
            place = f"{_plus(int(self.outputs[first]))}r" if self.in_a_row else f"tables.output[{_plus(first)}r]"
            value = f"v[{place}]"
            yield f"for (r = 0; r < {n}; r++)"
            yield f"    {target}[r] = {f'{value} * {value}' if squared and target == 'y' else value};"

    def _inputs(self, number: int, loop: Loop) -> Iterator[str]:
        """Lines that compute an input."""
        t = self.dag.topology
        column = np.array([int(np.flatnonzero(t.inputs == i)[0]) for i in loop.neurons])
        column = column - self.dag.n_inputs * (loop.kind == "memory")
        place = "r"
        if (column != np.arange(len(column))).any():
            self.tables.unsigned(f"column_{number}", column)
            place = f"tables.column_{number}[r]"
        given = f"{'x' if loop.kind == 'x' else 'state->memory'}[{place}]"
        yield from self._scaled(number, loop, given)

    def _scaled(self, number: int, loop: Loop, given: str) -> Iterator[str]:
        """Lines from the value ``given`` of a neuron to its z and its message."""
        factor, bias = self.factor[loop.neurons], self.bias[loop.neurons]
        if (factor != 1).any():
            self._reals(f"scale_{number}", factor)
            given = f"tables.scale_{number}[r] * {given}"
        if bias.any():
            self._reals(f"shift_{number}", bias)
            given = f"{given} + tables.shift_{number}[r]"
        yield from self._ends(loop, given)

    def _ends(self, loop: Loop, z: str) -> Iterator[str]:
        """Lines that write z and the message."""
        if loop.message in (-1, loop.value):
            yield f"v[{_plus(loop.value)}r] = {z};"
        elif loop.value < 0:
            yield f"v[{_plus(loop.message)}r] = act({z});"
        else:
            yield f"const float z = {z};"
            yield from (f"v[{_plus(loop.value)}r] = z;", f"v[{_plus(loop.message)}r] = act(z);")

    def _sums(self, number: int, loop: Loop) -> Iterator[str]:
        """Lines that compute a neuron that is no input."""
        bias = self.bias[loop.neurons]
        start = "0.0f"
        if loop.kind == "sum" and bias.any():
            self._reals(f"bias_{number}", bias)
            start = f"tables.bias_{number}[r]"
        yield f"float s = {start};"
        if self.n_edges:
            yield from (
                "unsigned n;", f"for (n = tables.count[{_plus(self.row)}r]; n; n--)", "    s += *edge++ * v[*at++];",
            )  # fmt: skip
        self.row += len(loop.neurons)
        if loop.kind == "sum":
            yield from self._ends(loop, "s")
            return
        call = f"cell(state, {_plus(self.cell)}r, s)"
        self.cell += len(loop.neurons)
        yield from self._scaled(number, loop, call)


WORDS = {"x": "inputs", "memory": "inputs from the memory", "cell": "neurons with a state", "sum": "neurons"}


def _plus(first: int) -> str:
    return f"{first} + " if first else ""
