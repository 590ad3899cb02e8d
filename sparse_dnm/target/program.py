"""A C program that times networks in turns with a reference, and what it prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.lowering.c_network import Float32, Network
from sparse_dnm.lowering.layout import Layout
from sparse_dnm.lowering.network import Folded
from sparse_dnm.target.launch import TargetError

FORMAT = "sparse-dnm times 2"
LEAST = 2e-4  # s that a measurement lasts at least
RESOLUTIONS = 200  # and in readings of the clock that differ
TRIES = 10  # of a measurement
MOST_RUNS = 1 << 26  # of a network in a measurement: a clock that shows nothing then stands still
SAMPLES = 16  # that networks run through in turns: on one alone a branch predictor would learn every jump
STEP = 4  # places in memory from one to the next
TOLERANCE = 1e-3  # of outputs, relative to the largest: compilers may reorder sums where they are allowed to

MAIN = """\
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>

#if defined(SPARSE_DNM_NOW) /* the name of a function: seconds, by a clock of the board */
double SPARSE_DNM_NOW(void);
static double now(void) { return SPARSE_DNM_NOW(); }
#elif defined(CLOCK_PROCESS_CPUTIME_ID)
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
#else
static double now(void) { return (double)clock() / CLOCKS_PER_SEC; }
#endif

typedef void (*network)(const float *, float *);
@declarations@
static const network networks[@n@] = {@names@};
static const unsigned outputs[@n@] = {@outputs@};
static float x[@most_inputs@ + @samples@ * @step@], y[@most_outputs@];
static unsigned long runs[@n@];
static double least = @least@;

static double seconds(unsigned k)
{
    unsigned long n;
    double start;
    networks[k](x, y);
    networks[k](x, y);
    start = now();
    for (n = runs[k]; n; n--)
        networks[k](x + n % @samples@ * @step@, y);
    return now() - start;
}

/* Seconds of a run.  What is shorter than a measurement was made to be is measured again: the clock of a virtual
   machine may stand still for a while, and a disturbance may have made too few runs look long. */
static double measured(unsigned k)
{
    unsigned tries;
    double found;
    for (tries = 1; (found = seconds(k)) < least / 2 && tries < @tries@; tries++)
        if (tries % 2 == 0 && runs[k] < @most_runs@ul)
            runs[k] *= 2;
    return found / (double)runs[k];
}

int main(void)
{
    unsigned long word = 1;
    unsigned k, i, round;
    double resolution = 0;
    for (i = 0; i < @most_inputs@ + @samples@ * @step@; i++) {
        word = (word * 1664525ul + 1013904223ul) & 0xfffffffful;
        x[i] = (float)(word >> 8) / 8388608.0f - 1.0f;
    }
    printf("@format@\\n");
    for (i = 0; i < 20; i++) {
        unsigned long looks = 0;
        double start = now(), end = now();
        while (end <= start && ++looks < 100000000ul)
            end = now();
        if (end <= start) {
            printf("clock stands still\\n");
            return 0;
        }
        if (i == 0 || end - start < resolution)
            resolution = end - start;
    }
    printf("resolution %.9g\\n", resolution);
    if (resolution * @resolutions@ > least)
        least = resolution * @resolutions@;
    for (k = 0; k < @n@; k++) {
        networks[k](x, y);
        printf("outputs %u", k);
        for (i = 0; i < outputs[k]; i++)
            printf(" %.9g", (double)y[i]);
        printf("\\n");
        for (runs[k] = 1; seconds(k) < least; runs[k] *= 2)
            if (runs[k] >= @most_runs@ul) {
                printf("clock coarse\\n");
                return 0;
            }
    }
    for (round = 0; round < @rounds@; round++)
        for (i = 0; i < @n@ - 1; i++) { /* the last one is the reference */
            k = (i + round) % (@n@ - 1);
            printf("reference %.9g\\n", measured(@n@ - 1));
            printf("time %u %.9g\\n", k, measured(k));
        }
    printf("reference %.9g\\nend\\n", measured(@n@ - 1));
    return 0;
}
"""


def made(folded: Folded) -> Network:
    """The C of a network as `sparse-dnm export` writes it, named later."""
    return Network(Layout.of(folded, "float32"), Float32(folded), "NETWORK")


def source(network: Network, name: str) -> str:
    """The C file of a network."""
    folded = network.layout.folded
    lines = ["#include <stdint.h>", ""]
    lines += [f"#define {name.upper()}_INPUTS {folded.n_inputs}", f"#define {name.upper()}_OUTPUTS {folded.n_outputs}"]
    network.name = name
    signature = f"void {name}_run(const {network.arithmetic.cell} *x, {network.arithmetic.output} *y);"
    return "\n".join([*lines, signature, *network.text()]) + "\n"


def sources(networks: Sequence[Network], rounds: int) -> dict[str, str]:
    """The C files, by name, of a program that times ``networks``, the last of which is the reference."""
    names = [f"n{k}" for k in range(len(networks))]
    folded = [network.layout.folded for network in networks]
    values = {
        "declarations": "\n".join(f"void {name}_run(const float *, float *);" for name in names),
        "names": ", ".join(f"{name}_run" for name in names),
        "outputs": ", ".join(str(one.n_outputs) for one in folded),
        "n": len(networks),
        "most_inputs": max(one.n_inputs for one in folded),
        "most_outputs": max(one.n_outputs for one in folded),
        "least": LEAST, "resolutions": RESOLUTIONS, "most_runs": MOST_RUNS, "rounds": rounds, "format": FORMAT,
        "samples": SAMPLES, "step": STEP, "tries": TRIES,
    }  # fmt: skip
    text = MAIN
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return {"main.c": text, **{f"{name}.c": source(one, name) for name, one in zip(names, networks, strict=True)}}


def inputs(n: int) -> NDArray[np.float32]:
    """The first ``n`` inputs that the program gives to networks, in -1 .. 1."""
    word, found = 1, np.empty(n, np.float32)
    for k in range(n):
        word = (word * 1664525 + 1013904223) & 0xFFFFFFFF
        found[k] = np.float32(word >> 8) / np.float32(8388608) - np.float32(1)
    return found


@dataclass(frozen=True)
class Printed:
    """What a program printed: seconds of a run of each network, and of the reference before and after it."""

    seconds: NDArray[np.float64]  # (networks, rounds)
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    resolution: float  # s between readings of the clock that differ


def read(text: str, networks: Sequence[Network], rounds: int) -> Printed:
    """Read and check what a program printed.  Raises TargetError."""
    lines = text.splitlines()
    start = next((k for k, line in enumerate(lines) if line.strip() == FORMAT), None)
    if start is None:
        raise TargetError(
            f"run: the program printed no times, but {_shown(text)}; its standard output must arrive here"
        )
    words = [line.split() for line in lines[start + 1 :] if line.strip()]
    if words and words[-1][0] == "clock":
        what = "stands still" if words[-1][1] == "stands" else "is too coarse, even for millions of runs"
        raise TargetError(
            f"run: the clock of the target {what}; name a function of yours that returns seconds, such as "
            "cc='... -DSPARSE_DNM_NOW=my_clock my_clock.o'"
        )
    if not words or words[-1] != ["end"]:
        raise TargetError(f"run: the program ended before its time, after {_shown(lines[-1] if lines else '')}")
    try:
        outputs = {int(line[1]): np.array(line[2:], float) for line in words if line[0] == "outputs"}
        times = [line for line in words if line[0] in ("time", "reference")]
        resolution = float(next(line[1] for line in words if line[0] == "resolution"))
        references = np.array([line[1] for line in times if line[0] == "reference"], float)
        measured = [(int(line[1]), float(line[2])) for line in times if line[0] == "time"]
    except (IndexError, StopIteration, ValueError) as error:
        raise TargetError(f"run: the program printed something else than times ({error})") from None
    n = len(networks) - 1
    if sorted(outputs) != list(range(n + 1)) or len(measured) != n * rounds or len(references) != n * rounds + 1:
        raise TargetError(f"run: {len(measured)} of {n * rounds} times arrived; nothing else may print into them")
    found = [np.full((n, rounds), math.nan) for _ in range(3)]
    for place, (k, seconds) in enumerate(measured):
        for array, value in zip(found, (seconds, references[place], references[place + 1]), strict=True):
            array[k, place // n] = value
    if not all((array > 0).all() for array in found):
        raise TargetError("run: a time is not above 0; the clock of the target went back")
    _check(networks, outputs)
    return Printed(found[0], found[1], found[2], resolution)


def _check(networks: Sequence[Network], outputs: dict[int, NDArray[np.float64]]) -> None:
    """Raise TargetError if a network has other outputs on the target."""
    for k, network in enumerate(networks):
        folded = network.layout.folded
        expected = folded.outputs(inputs(folded.n_inputs))
        off = np.abs(outputs[k] - expected).max() if outputs[k].shape == expected.shape else math.inf
        if not off <= TOLERANCE * max(np.abs(expected).max(), 1e-3):
            raise TargetError(
                f"run: the results of the target differ: outputs {outputs[k][:3]} instead of {expected[:3]}; compile "
                "without -ffast-math, and check the target's floating point"
            )


def _shown(text: str) -> str:
    first = next(iter(_lines(text)), "")
    return repr(first[:120]) if first else "nothing"


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.strip())
