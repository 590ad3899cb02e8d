"""What lies beside the network: a program that reads a CSV, a check against known outputs, and a Makefile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sparse_dnm.data.cells import MISSING
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
static int is_missing(const char *text)
{
    const char *const *known;
    for (known = missing; *known; known++)
        if (!strcmp(text, *known))
            return 1;
    return 0;
}

/* A number, or a date YYYY-MM-DD as days since 1970; NaN for a missing cell.  Returns 0 for other texts. */
static int number(const char *text, float *value)
{
    char *end;
    int y, m, d, n = 0;
    if (is_missing(text)) {
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
    return end != text && !*end && *value == *value;
}
"""

# Both functions return 1 for a first line of names, 0 for a sample, -1 after an error.
NAMED = r"""
/* Whether line 1, of n cells, has the names of the columns; they must be those of the training, in that order. */
static int is_names(unsigned n)
{
    unsigned k, first = 0, alike = 0;
    float value;
    while (first < n && first < COLUMNS && !strcmp(cells[first], names[first]))
        first++;
    if (first == n && n == COLUMNS)
        return 1;
    for (k = 0; k < n && k <= COLUMNS; k++) {
        unsigned j;
        const int is_value = k < COLUMNS && IS_VALUE;
        if (is_value && IS_NUMBER)
            return 0;
        for (j = 0; j < COLUMNS; j++)
            alike += !is_value && !strcmp(cells[k], names[j]);
    }
    if (!alike)
        return 0;
    if (first < n)
        fprintf(stderr, "line 1: column %u is '%s', where ", first + 1, cells[first]);
    else
        fprintf(stderr, "line 1: column %u is missing, where ", first + 1);
    if (first < COLUMNS)
        fprintf(stderr, "'%s' belongs; the columns must be ", names[first]);
    else
        fprintf(stderr, "none belongs; the columns must be ");
    for (k = 0; k < COLUMNS; k++)
        fprintf(stderr, "%s'%s'", k ? ", " : "", names[k]);
    fputc('\n', stderr);
    return -1;
}
"""

UNNAMED = r"""
/* Whether line 1, of n cells, has names: no cell is missing, is a number or begins like one. */
static int is_names(unsigned n)
{
    unsigned k;
    for (k = 0; k < n && k <= COLUMNS; k++) {
        char *end;
        strtod(cells[k], &end);
        if (is_missing(cells[k]) || !*end || strchr("+-.0123456789", *cells[k]))
            return 0;
    }
    if (n != COLUMNS)
        fprintf(stderr, "line 1 has %u columns; it must have %d\n", n, COLUMNS);
    return n == COLUMNS ? 1 : -1;
}
"""

READ = r"""
/* Read the values of a line.  Returns 1; 0 for names; -1 after an error. */
static int read_line(long row, float *x)
{
    char *rest = line + (row == 1 && !strncmp(line, "\xef\xbb\xbf", 3) ? 3 : 0), *cell;
    unsigned n = 0, k;
    while ((cell = next_cell(&rest)) != NULL) {
        if (n <= COLUMNS)
            cells[n] = cell;
        n++;
    }
    if (row == 1) {
        const int named = is_names(n);
        if (named)
            return named < 0 ? -1 : 0;
    }
    for (k = 0; k < n && k < COLUMNS; k++) {
        if (!READ_CELL) {
            fprintf(stderr, "line %ld, column %u: %s is no number\n", row, k + 1, cells[k]);
            return -1;
        }
        if (NOT_ALLOWED(x[k])) {
            fprintf(stderr, "line %ld, column %u: %s is not finite in float32\n", row, k + 1,
                    *cells[k] ? cells[k] : "a missing cell");
            return -1;
        }
    }
    if (n != COLUMNS) {
        fprintf(stderr, "line %ld has %u columns; it must have %d\n", row, n, COLUMNS);
        return -1;
    }
    return 1;
}
"""


def main(mark: str, name: str, features: Features | None, coded: bool, recurrent: bool = False) -> Iterable[str]:
    """main.c: samples from a CSV on standard input, a line of output for each; ``coded``: the network takes int8;
    ``recurrent``: a sample is a time step, and an empty line begins a new sequence."""
    upper = name.upper()
    count = f"{upper}_{'FEATURES' if features else 'INPUTS'}"
    classes = features.classes if features else []
    names = features.preprocessing.feature_names if features else ()
    yield f"/* {mark}."
    yield "   Reads samples from standard input, a line each, with commas between the numbers; a first line of names is"
    yield f"   {'compared with those of the training' if names else 'skipped'}."
    yield f"   Prints {'the class' if classes else 'the outputs'} of each.{' */' * (not recurrent)}"
    if recurrent:
        yield "   A line is a time step; an empty line begins a new sequence. */"
    yield from (f'#include "{name}.h"', "")
    yield from ("#include <math.h>", "#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>")
    yield from _reading(count, features.columns if features else (), names)
    yield from ("", "int main(void)", "{", "    long row = 0;")
    yield from (f"    {name}_state state;", f"    {name}_reset(&state);") * recurrent
    yield "    while (fgets(line, sizeof line, stdin)) {"
    raw, whole = coded and features is None, coded and (classes or features is None)
    yield f"        float x[{count}];"
    yield f"        {'int32_t' if whole else 'float'} y[{upper}_OUTPUTS];"
    if raw:
        yield f"        int8_t codes[{count}];"
    yield from (*("        unsigned k;",) * (not classes), "        int found;", "        row++;")
    yield from (
        '        if (line[strspn(line, " \\t\\r\\n")] == 0) {', *(f"            {name}_reset(&state);",) * recurrent,
        "            continue;", "        }", "        found = read_line(row, x);", "        if (found < 0)",
        "            return 1;", "        if (!found)", "            continue;",
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


def _reading(count: str, columns: Any, names: tuple[str, ...]) -> Iterable[str]:
    """The functions that read a line of ``count`` cells: of columns that have kinds, or of numbers; ``names`` are those
    of the columns, if they are known."""
    yield from MAIN.splitlines()
    yield from ("", f"static char *cells[{count} + 1];")
    yield from ("", "static const char *const missing[] = {", *(f"    {string(text)}," for text in sorted(MISSING)))
    yield from ("    NULL", "};")
    if names:
        yield from ("", f"static const char *const names[{count}] = {{", *(f"    {string(each)}," for each in names))
        yield "};"
    yield from NUMBER.splitlines()
    yield ""
    yield from _texts(columns)
    read = "read_cell(k, cells[k], &" if columns else "number(cells[k], &"
    is_value = f"{read}value)" + " && !(is_category[k] && value < 0)" * bool(columns)
    text = (NAMED if names else UNNAMED) + READ
    text = text.replace("IS_NUMBER", "!is_category[k] && value == value" if columns else "value == value")
    text = text.replace("IS_VALUE", is_value).replace("READ_CELL", f"{read}x[k])")
    text = text.replace("NOT_ALLOWED", "isinf" if columns else "!isfinite").replace("COLUMNS", count)
    yield from text.strip().splitlines()


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
