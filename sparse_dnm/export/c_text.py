"""The files NAME.h and NAME.c of a program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparse_dnm.export.c_features import Features
from sparse_dnm.lowering.tables import Tables, real, string

MARK = "Written by sparse-dnm export"


class Text:
    """The text of a program, and the tables that it defines.

    folded    a `Folded`, or a RecurrentDAG: the network
    network   what writes its tables and functions
    in_place  the network reads features as they are
    coded     inputs and cells are int8
    """

    run, state = "run", False  # the name of its function, and whether that takes a state

    def __init__(
        self, name: str, folded: Any, network: Any, arithmetic: Any, features: Features | None, in_place: bool
    ) -> None:
        self.name, self.upper, self.folded, self.features = name, name.upper(), folded, features
        self.arithmetic, self.in_place, self.coded = arithmetic, in_place, arithmetic.cell == "int8_t"
        self.network = network
        self.classes = features.classes if features else []
        self.class_width = max((len(each.encode()) for each in self.classes), default=-1) + 1
        self.feature_tables, self.target_tables = Tables(), Tables()
        code = f"{name}_code" if self.coded else ""
        self.feature_lines = list(features.lines(self.feature_tables, code)) if features and not in_place else []
        if features and not self.classes:
            target = features.preprocessing.target
            self.target_tables.reals("mean", target.mean)
            self.target_tables.reals("std", target.std)

    @property
    def constant_bytes(self) -> int:
        """Bytes of tables and names."""
        tables = (self.network.tables, self.feature_tables, self.target_tables)
        return sum(each.n_bytes for each in tables) + len(self.classes) * self.class_width

    @property
    def stack_bytes(self) -> int:
        """Bytes of the arrays of the function that takes raw features."""
        if self.features is None or self.in_place:
            return 0
        return self.arithmetic.cell_bytes * self.folded.n_inputs + 4 * self.folded.n_outputs * (
            self.coded and not self.classes
        )

    @property
    def _state(self) -> str:
        """The parameter of a function that is the state."""
        return f"{self.name}_state *state, " * self.state

    def _signature(self) -> str:
        assert self.features is not None
        output = self.arithmetic.output if self.features.classes else "float"
        takes = f"{self._state}const float features[{self.upper}_FEATURES], {output} y[{self.upper}_OUTPUTS]"
        return f"{'unsigned' if self.features.classes else 'void'} {self.name}_predict({takes})"

    def header(self) -> Iterable[str]:
        """Lines of NAME.h."""
        folded, upper = self.folded, self.upper
        yield f"/* {MARK}.  Do not edit: export again."
        yield ""
        yield self._about()
        yield f"   Constants: {self.constant_bytes} bytes of flash, besides the code."
        ram = self.network.ram_bytes + self.stack_bytes
        static = self.network.ram_bytes
        yield f"   RAM: {ram} bytes of the caller's stack; with -D{upper}_STATIC {static} are static: calls must"
        yield "   not overlap."
        if not self.coded:
            yield "   All of x must be finite numbers, columns that no neuron reads included."
        yield "   y must not overlap x. */"
        yield from (f"#ifndef {upper}_H", f"#define {upper}_H", "")
        if self.coded:
            yield from ("#include <stdint.h>", "")
        yield f"#define {upper}_INPUTS {folded.n_inputs}"
        yield f"#define {upper}_OUTPUTS {folded.n_outputs}"
        if self.features:
            yield f"#define {upper}_FEATURES {self.features.n_features}"
        yield from self._code_docs()
        yield ""
        yield from self._state_docs()
        if self.features is None or not self.in_place:
            a = self.arithmetic
            yield f"/* Outputs y of the network for its inputs x{' of the next time step' * self.state}. */"
            takes = f"{self._state}const {a.cell} x[{upper}_INPUTS], {a.output} y[{upper}_OUTPUTS]"
            yield f"void {self.name}_{self.run}({takes});"
            yield ""
        if self.features:
            yield from self._predict_docs()
            yield f"{self._signature()};"
            yield ""
        yield "#endif"

    def _about(self) -> str:
        """What the network is."""
        folded = self.folded
        return f"   A network of {folded.n_edges} edges from {len(folded.columns)} inputs, in {self.arithmetic.name}."

    def _state_docs(self) -> Iterable[str]:
        """Lines that declare the state: none."""
        return ()

    def _code_docs(self) -> Iterable[str]:
        if not self.coded:
            return
        q = self.arithmetic.quantized
        yield f"#define {self.upper}_X_SCALE {real(q.x_scale)} /* an input is X_SCALE * (x - X_ZERO) */"
        yield f"#define {self.upper}_X_ZERO {q.x_zero}"
        yield f"#define {self.upper}_Y_SCALE {real(q.unit)} /* an output is Y_SCALE * y */"
        yield ""
        yield "/* The code x of an input. */"
        yield f"int8_t {self.name}_code(float input);"

    def _predict_docs(self) -> Iterable[str]:
        assert self.features is not None
        if self.classes:
            yield "/* Names of the classes. */"
            yield f"extern const char {self.name}_classes[{self.upper}_OUTPUTS][{self.class_width}];"
            yield ""
            yield "/* The class of raw features, an index; y gets the outputs of the network, which are largest there."
        else:
            yield "/* Predictions y of raw features, in the units of the target."
        for k, column in enumerate(self.features.columns):
            yield f"   features[{k}]  {comment(column.name)}: {_values(column)}"
        if self.features.columns:
            yield "   A feature that is missing is NaN."
        yield "*/"

    def source(self) -> Iterable[str]:
        """Lines of NAME.c."""
        name, upper = self.name, self.upper
        yield from (f"/* {MARK}: see {name}.h */", f'#include "{name}.h"', "")
        yield from ("#include <stdint.h>", "")
        text = list(self.network.text())
        if self.features is not None and self.in_place:
            text = [f"static {line}" if line.startswith(f"void {name}_run") else line for line in text]
        yield from text
        if self.features is None:
            return
        yield ""
        if self.classes:
            yield f"const char {name}_classes[{upper}_OUTPUTS][{self.class_width}] = {{"
            yield from (f"    {string(each)}," for each in self.classes)
            yield from ("};", "")
        for tables, struct in ((self.feature_tables, "feature"), (self.target_tables, "target")):
            if tables.fields:
                yield from (line.replace("} tables =", f"}} {struct}_tables =") for line in tables.text())
                yield ""
        yield from self._predict()

    def _predict(self) -> Iterable[str]:
        """The function that takes raw features."""
        assert self.features is not None
        a, upper, raw = self.arithmetic, self.upper, self.coded and not self.classes
        yield from (self._signature(), "{")
        if not self.in_place:
            yield f"    {a.cell} x[{upper}_INPUTS]{', *to = x' if self.features.columns else ''};"
        if raw:
            yield f"    int32_t out[{upper}_OUTPUTS];"
        yield "    unsigned k;"
        if self.classes:
            yield "    unsigned best = 0;"
        yield from ("    " + line.replace("tables.", "feature_tables.") for line in self.feature_lines)
        given = f"{'state, ' * self.state}{'features' if self.in_place else 'x'}, {'out' if raw else 'y'}"
        yield f"    {self.name}_{self.run}({given});"
        yield f"    for (k = {int(bool(self.classes))}; k < {upper}_OUTPUTS; k++)"
        if self.classes:
            yield from ("        if (y[k] > y[best])", "            best = k;", "    return best;")
        else:
            value = f"(float)out[k] * {upper}_Y_SCALE" if raw else "y[k]"
            yield f"        y[k] = {value} * target_tables.std[k] + target_tables.mean[k];"
        yield "}"


def comment(text: str) -> str:
    """A text as it may stand in a comment."""
    text = "".join(c if c.isprintable() and c.isascii() else "?" for c in text)
    return text.replace("*/", "* /").replace("/*", "/ *")


def _values(column: Any) -> str:
    """What a feature holds, for the header."""
    if column.kind == "category":
        levels = ", ".join(f"{k} {comment(level)}" for k, level in enumerate(column.levels))
        return f"{levels}{', ' * bool(levels)}another number: any other text"
    return {"number": "a number", "boolean": "0 or 1", "date": "days since 1970-01-01"}[column.kind]


def joined(lines: Iterable[str]) -> str:
    return "\n".join(line.rstrip() for line in lines) + "\n"
