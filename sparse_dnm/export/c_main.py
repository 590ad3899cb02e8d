"""What lies beside the network: a program that reads a CSV, a check against known outputs, and a Makefile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sparse_dnm.export.c_features import Features
from sparse_dnm.lowering.tables import WIDTH, real, string

TOLERANCE = 1e-5  # of outputs in float32, relative to the largest


def makefile(mark: str, name: str) -> Iterable[str]:
    """make: the program; make check: compare with known outputs."""
    yield f"# {mark}"
    yield from ("CC = cc", "CFLAGS = -std=c99 -O3 -Wall -Wextra -pedantic", "LDLIBS = -lm", "", f"all: {name}", "")
    for program, source, also in ((name, "main", ""), (f"{name}_check", "check", " test_vectors.h")):
        yield f"{program}: {source}.c {name}.c {name}.h{also}"
        yield f"\t$(CC) $(CFLAGS) $(LDFLAGS) -o $@ {source}.c {name}.c $(LDLIBS)"
        yield ""
    yield from (f"check: {name}_check", f"\t./{name}_check", "", "clean:", f"\trm -f {name} {name}_check", "")
    yield ".PHONY: all check clean"


def vectors(mark: str, samples: Any, expected: Any) -> Iterable[str]:
    """test_vectors.h: samples and what the program gives for them."""
    yield f"/* {mark} */"
    yield f"#define N_VECTORS {len(samples)}"
    for what, values in (("samples", samples), ("expected", expected)):
        yield ""
        whole = values.dtype.kind == "i"
        ctype = "float" if not whole else "int8_t" if values.dtype == np.int8 else "int32_t"
        yield f"static const {ctype} test_{what}[N_VECTORS][{values.shape[1]}] = {{"
        for row in values:
            line = "    {"
            for value in row.tolist():
                word = f"{value if whole else 'NAN' if value != value else real(value)}, "
                if len(line) + len(word) > WIDTH:
                    yield line
                    line = "     "
                line += word
            yield f"{line.rstrip(', ')}}},"
        yield "};"


def check(mark: str, name: str, classes: bool, predicts: bool, exact: bool, recurrent: bool = False) -> Iterable[str]:
    """check.c: exits with 1 if an output differs; ``exact``: outputs are integers; ``recurrent``: samples are sequences
    of N_STEPS time steps, one after the other."""
    function, upper = f"{name}_{'predict' if predicts else 'step' if recurrent else 'run'}", name.upper()
    yield f"/* {mark}: compares {function} with known outputs */"
    yield from (f'#include "{name}.h"', "", "#include <math.h>", "#include <stdio.h>", "", '#include "test_vectors.h"')
    yield from (
        "", "int main(void)", "{", "    double worst = 0, largest = 1e-30;", "    int n, k;",
        *(f"    {name}_state state;",) * recurrent,
        "    for (n = 0; n < N_VECTORS; n++) {", f"        {'int32_t' if exact else 'float'} y[{upper}_OUTPUTS];",
    )  # fmt: skip
    if recurrent:
        yield from ("        if (n % N_STEPS == 0)", f"            {name}_reset(&state);")
    given = "&state, " * recurrent + "test_samples[n]"
    yield f"        {'const unsigned best = ' if classes else ''}{function}({given}, y);"
    if classes:
        yield from (f"        if (best >= {upper}_OUTPUTS)", "            return 1;")
    yield f"        for (k = 0; k < {upper}_OUTPUTS; k++) {{"
    yield from (
        "            const double error = fabs((double)y[k] - (double)test_expected[n][k]);",
        "            if (!(error <= worst))", "                worst = error;",
        "            if (fabs((double)test_expected[n][k]) > largest)",
        "                largest = fabs((double)test_expected[n][k]);", "        }", "    }",
        '    printf("%d samples: outputs differ by up to %.2g of the largest\\n", N_VECTORS, worst / largest);',
        f"    return !(worst <= {'0' if exact else f'{TOLERANCE} * largest'});", "}",
    )  # fmt: skip


MAIN = r"""
static char line[1 << 20];

/* The text of the next cell, without spaces and quotes around it; NULL at the end of a line. */
static char *next_cell(char **rest)
{
    char *text = *rest, *end;
    if (!text)
        return NULL;
    while (*text == ' ' || *text == '\t')
        text++;
    if (*text == '"') {
        char *to = ++text, *from = text;
        for (; *from && !(*from == '"' && from[1] != '"'); from++) {
            from += *from == '"';
            *to++ = *from;
        }
        end = *from ? from + 1 : from;
        while (*end && *end != ',')
            end++;
        *rest = *end ? end + 1 : NULL;
        *to = 0;
        return text;
    }
    end = text + strcspn(text, ",\r\n");
    *rest = *end == ',' ? end + 1 : NULL;
    while (end > text && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    *end = 0;
    return text;
}
"""

NUMBER = r"""
/* A number, or a date YYYY-MM-DD as days since 1970; NaN for a missing cell.  Returns 0 for other texts. */
static int number(const char *text, float *value)
{
    char *end;
    int y, m, d, n = 0;
    if (!*text || !strcmp(text, "NA") || !strcmp(text, "nan") || !strcmp(text, "NaN")) {
        *value = NAN;
        return 1;
    }
    if (sscanf(text, "%4d-%2d-%2d%n", &y, &m, &d, &n) == 3 && !text[n]) {
        y -= m <= 2;
        d += (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 - 719469;
        *value = (float)(365L * y + y / 4 - y / 100 + y / 400 + d);
        return 1;
    }
    *value = (float)strtod(text, &end);
    return end != text && !*end;
}
"""


def main(mark: str, name: str, features: Features | None, coded: bool, recurrent: bool = False) -> Iterable[str]:
    """main.c: samples from a CSV on standard input, a line of output for each; ``coded``: the network takes int8;
    ``recurrent``: a sample is a time step, and an empty line begins a new sequence."""
    upper = name.upper()
    count = f"{upper}_{'FEATURES' if features else 'INPUTS'}"
    classes = features.classes if features else []
    yield f"/* {mark}."
    yield "   Reads samples from standard input, a line each, with commas between the numbers; a first line of names is"
    yield f"   skipped.  Prints {'the class' if classes else 'the outputs'} of each.{' */' * (not recurrent)}"
    if recurrent:
        yield "   A line is a time step; an empty line begins a new sequence. */"
    yield from (f'#include "{name}.h"', "")
    yield from ("#include <math.h>", "#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>")
    yield from MAIN.splitlines()
    yield from NUMBER.splitlines()
    yield ""
    columns = features.columns if features else ()
    yield from _texts(columns)
    yield from ("int main(void)", "{", "    long row = 0;")
    yield from (f"    {name}_state state;", f"    {name}_reset(&state);") * recurrent
    yield "    while (fgets(line, sizeof line, stdin)) {"
    raw, whole = coded and features is None, coded and (classes or features is None)
    yield f"        float x[{count}];"
    yield f"        {'int32_t' if whole else 'float'} y[{upper}_OUTPUTS];"
    if raw:
        yield f"        int8_t codes[{count}];"
    yield from (
        "        char *rest = line, *cell;", "        unsigned k = 0;", "        int names = 0;", "        row++;",
        '        if (line[strspn(line, " \\t\\r\\n")] == 0) {', *(f"            {name}_reset(&state);",) * recurrent,
        "            continue;", "        }",
        "        while ((cell = next_cell(&rest)) != NULL) {",
    )  # fmt: skip
    read = "read_cell(k, cell, &x[k])" if columns else "number(cell, &x[k])"
    yield f"            if (k < {count} && !{read}) {{"
    yield from (
        "                if (row == 1) {", "                    names = 1;", "                    break;",
        "                }",
        '                fprintf(stderr, "line %ld, column %u: %s is no number\\n", row, k + 1, cell);',
        "                return 1;", "            }", "            k++;", "        }",
        "        if (names)", "            continue;",
        f"        if (k != {count}) {{",
        f'            fprintf(stderr, "line %ld has %u columns; it must have %d\\n", row, k, {count});',
        "            return 1;", "        }",
    )  # fmt: skip
    if classes:
        given = "&state, " * recurrent + "x, y"
        yield f'        printf("%s\\n", {name}_classes[{name}_predict({given})]);'
    else:
        if raw:
            yield f"        for (k = 0; k < {count}; k++)"
            yield f"            codes[k] = {name}_code(x[k]);"
        function = "predict" if features else "step" if recurrent else "run"
        yield f"        {name}_{function}({'&state, ' * recurrent}{'codes' if raw else 'x'}, y);"
        yield f"        for (k = 0; k < {upper}_OUTPUTS; k++)"
        value = f"(double)y[k] * (double){upper}_Y_SCALE" if raw else "(double)y[k]"
        yield f"            printf(\"%.9g%c\", {value}, k + 1 < {upper}_OUTPUTS ? ',' : '\\n');"
    if recurrent:
        yield "        fflush(stdout);"
    yield from ("    }", "    return 0;", "}")


def _texts(columns: Any) -> Iterable[str]:
    """The texts of categories and of yes and no, and the function that looks them up."""
    if not columns:
        return
    levels: list[tuple[int, int, str]] = []  # column, value, text
    for k, column in enumerate(columns):
        if column.kind == "category":
            levels += [(k, code, level) for code, level in enumerate(column.levels)]
        elif column.kind == "boolean":
            words = column.form.split("/") if column.form else ["false", "true"]
            levels += [(k, code, word) for code, word in enumerate(words)]
    kinds = ", ".join(str(int(column.kind == "category")) for column in columns)
    yield from ("struct text {", "    unsigned column;", "    float value;", "    const char *text;", "};", "")
    yield "static const struct text texts[] = {"
    yield from (f"    {{{k}, {code}, {string(text)}}}," for k, code, text in levels)
    yield from ("    {0, 0, NULL}", "};", "")
    yield f"static const int is_category[] = {{{kinds}}};"
    yield from (
        "", "static int read_cell(unsigned column, const char *cell, float *value)", "{", "    const struct text *t;",
        "    for (t = texts; t->text; t++)", "        if (t->column == column && !strcmp(t->text, cell)) {",
        "            *value = t->value;", "            return 1;", "        }",
        "    if (number(cell, value) && (!is_category[column] || *value != *value))", "        return 1;",
        "    *value = -1;", "    return is_category[column];", "}", "",
    )  # fmt: skip
