"""What ships, exported C: python -m bench.ship [RUN ...] [--data-dir DATA_DIR] [--cache FOLDER].

Without RUN on two random networks of the size of mnist's, all lone edges and all blocks of eight.  C, the kernels of
`columns` and `blocks` on one thread, and model(x) take turns, one sample at a time.  C runs through many samples, the
others, and onnxruntime, repeat one.

With RUN and --data-dir, the folder of its data (mnist's IDX files), also the accuracy of the C and its bytes of flash,
and the smallest dense network of at least that test accuracy (bench.ship_rivals; trained here, which takes minutes,
--cache keeps it), in onnxruntime and in C by emlearn.  What counts is the test accuracy of the last step, ours and
theirs, one training for each size.

Then the prices of a lone edge and of a block (bench.ship_prices).  A figure is a median, with quartiles in brackets; a
ratio that of neighbours.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sparse_dnm.kernels.machine import VECTOR_BYTES

import sparse_dnm
from bench import ship_prices, ship_rivals
from bench.blocks import network
from bench.ship_c import Library, Source, in_turns, spread
from bench.ship_rivals import Rival, Session
from sparse_dnm import SparseDAG, interop
from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.export import Folded, code_bytes, to_c
from sparse_dnm.lowering.int8 import Quantized
from sparse_dnm.lowering.layout import Layout
from sparse_dnm.machine import machine, versions
from sparse_dnm.model.sparse_dag import structure_of
from sparse_dnm.timing.clock import Clock, load
from sparse_dnm.timing.probes import edge_values
from sparse_dnm.train import checkpoint

DTYPES = ("float32", "int8")
OURS = "C, float32"  # that ratios are over
SAMPLES = 1000  # that int8 takes the ranges of its numbers from
IMAGES = 200  # that C runs through, so that no jump can be learnt by heart
SIZE_FLAGS = "-std=c99 -Os"  # for bytes of flash, ours and emlearn's
AVX2 = "-std=c99 -O3 -mavx2 -mfma"
REORDERED = "-fassociative-math -fno-signed-zeros -fno-trapping-math"  # what -ffast-math gives a sum
CALL, LESS = "an empty model in onnxruntime", "onnxruntime, less an empty model"
LEAST_TIMES, MOST_BYTES = 3.0, 1 / 3  # the aims: rivals' time over ours, our bytes over theirs
Timers = dict[str, Callable[[], float]]


class Program(NamedTuple):
    """A network in C, compiled; its bytes of constants, flash and RAM; and what it takes for inputs."""

    library: Library
    constants: int
    flash: int
    ram: int
    inputs: Callable[[Any], Any]


def size_command(cc: str) -> str:
    """The command whose object files are weighed."""
    return f"{shlex.split(cc)[0]} {SIZE_FLAGS}"


def programs(dag: SparseDAG, samples: np.ndarray, cc: str) -> dict[str, Program]:
    """The C of a network by dtype; int8 by the ranges of ``samples``."""
    folded, made = Folded.of(dag), {}
    for dtype in DTYPES:
        program = to_c(dag, dtype=dtype, samples=samples)
        source = Source.of(program, dag.n_outputs, dtype)
        codes = Quantized(folded, Layout.of(folded, "int8"), samples.astype(np.float64)).codes
        made[dtype] = Program(
            Library(source, cc), program.constant_bytes, source.flash_bytes(size_command(cc)),
            program.ram_bytes, codes if dtype == "int8" else np.asarray,
        )  # fmt: skip
    return made


def own_timers(dag: SparseDAG, made: Mapping[str, Program], x: np.ndarray) -> Timers:
    """C on samples x (n, n_inputs), kernels and model(x) on the first."""
    clock, sample = Clock.of("perf_counter"), torch.from_numpy(x[:1])
    calls = {f"C, {dtype}": one.library.timer(one.inputs(x)) for dtype, one in made.items()}
    for name in ("columns", "blocks"):
        engine, functions = CpuEngine(Executor(name, 1)), (dag.activation, dag.input_neurons, dag.linear_outputs)
        structure = structure_of(engine, dag.topology, torch.float32, *functions)
        watch = engine.stopwatch(structure, edge_values(dag.topology, np.float32), x[:1], False)
        watch(clock)
        calls[f"kernel of {name}"] = functools.partial(watch.warm, clock)

    def forward() -> float:
        before = time.perf_counter()
        with torch.no_grad():
            dag(sample)
        return time.perf_counter() - before

    return {**calls, "model(x)": forward}


def over_kernels(dag: SparseDAG, made: Mapping[str, Program], x: np.ndarray, repeats: int) -> list[str]:
    """Times of a network and the ratio of C in float32 to each."""
    found = in_turns(own_timers(dag, made, x), repeats)
    lines = ["| | µs | C, float32 / this |", "|---|---|---|"]
    fastest = min((name for name in found if name.startswith("kernel")), key=lambda name: np.median(found[name]))
    for name, seconds in found.items():
        told = f"{name}, the fastest executor" if name == fastest else name
        lines.append(f"| {told} | {spread(1e6 * seconds)} | {spread(found[OURS] / seconds)} |")
    return lines


def flash(made: Mapping[str, Program], cc: str, data: Dataset | None) -> list[str]:
    """Bytes, and the accuracy of the C on the test samples."""
    lines = [f"| `{size_command(cc)}` | constants, bytes | flash, bytes | RAM, bytes | test accuracy of the C |"]
    lines.append("|---|---|---|---|---|")
    for dtype, one in made.items():
        said = "" if data is None else f"{accuracy(one, data):.2%}"
        lines.append(f"| C, {dtype} | {one.constants:,} | {one.flash:,} | {one.ram:,} | {said} |")
    return lines


def small_flash(dag: SparseDAG, x: np.ndarray, cc: str) -> list[str]:
    """Bytes by another compiler, that of a microcontroller."""
    lines = [f"| `{cc}` | constants, bytes | code, bytes | flash, bytes | RAM, bytes |", "|---|---|---|---|---|"]
    for dtype in DTYPES:
        program = to_c(dag, dtype=dtype, samples=x)
        compiled = code_bytes(program, cc)
        if compiled is None:
            raise SystemExit(f"error: --small {cc}: there is no such compiler here, or no program `size`")
        total = program.constant_bytes + compiled[1]
        lines.append(
            f"| C, {dtype} | {program.constant_bytes:,} | {compiled[1]:,} | {total:,} | {program.ram_bytes:,} |"
        )
    return lines


def accuracy(one: Program, data: Dataset) -> float:
    """Share of the test samples that a program knows."""
    y = one.library.outputs(one.inputs(data.x_test.numpy()))
    return float((y.argmax(1) == data.y_test.numpy()).mean())


def rival_cases(rival: Rival, data: Dataset, cc: str) -> tuple[Timers, dict[str, int]]:
    """Timers and bytes of a rival by what runs it, its outputs compared with torch's."""
    x = rival.inputs(data.x_test[:IMAGES])
    n_inputs, _, n_outputs = rival.sizes
    timers: Timers = {}
    n_bytes: dict[str, int] = {}
    try:
        session = Session(ship_rivals.onnx_model(rival), n_inputs, n_outputs)
        empty = Session(ship_rivals.onnx_model(None, n_outputs), n_outputs, n_outputs)
    except ModuleNotFoundError as error:
        print(f"{ship_rivals.missing(error)}\n")
    else:
        rival.check(session.outputs, x, "onnxruntime")
        timers |= {"onnxruntime": session.timer(x), CALL: empty.timer(x[:, :n_outputs])}
        n_bytes["onnxruntime"] = rival.constant_bytes
    sources: dict[str, Source] = {}
    try:
        sources |= {f"emlearn, {method}": source for method, source in ship_rivals.emlearn_sources(rival).items()}
    except ModuleNotFoundError as error:
        print(f"{ship_rivals.missing(error)}\n")
    dense = to_c(interop.from_module(rival.module(), threads=1))
    own = {"the dense network by our export": Source.of(dense, n_outputs, "float32")}
    reordered = {f"{name}, sums reordered": source for name, source in sources.items()}
    for command, group in ((cc, sources), (f"{cc} {REORDERED}", reordered), (cc, own)):
        for name, source in group.items():
            library = Library(source, command)
            rival.check(library.outputs, x, name)
            timers[name], n_bytes[name] = library.timer(x), source.flash_bytes(size_command(cc))
    return timers, n_bytes


def against(made: Mapping[str, Program], rival: Rival, data: Dataset, cc: str, repeats: int) -> list[str]:
    """Ours beside a rival of at least its accuracy, and the aims."""
    x = data.x_test[:IMAGES].numpy()
    timers, n_bytes = rival_cases(rival, data, cc)
    ours: Timers = {f"C, {dtype}": one.library.timer(one.inputs(x)) for dtype, one in made.items()}
    found = in_turns({**ours, **timers}, repeats)
    shares = {f"C, {dtype}": accuracy(one, data) for dtype, one in made.items()}
    n_bytes |= {f"C, {dtype}": one.flash for dtype, one in made.items()}
    if CALL in found:
        n_bytes[LESS] = n_bytes["onnxruntime"]
    less = {CALL: (LESS, found["onnxruntime"] - found[CALL])} if CALL in found else {}
    rows: dict[str, np.ndarray] = dict(less.get(name, (name, seconds)) for name, seconds in found.items())
    lines = ["| | test accuracy | µs | time / ours | bytes | bytes / ours |", "|---|---|---|---|---|---|"]
    for name, seconds in rows.items():
        lines.append(
            f"| {name} | {shares.get(name, rival.accuracy):.2%} | {spread(1e6 * seconds)} | "
            f"{spread(seconds / found[OURS])} | {n_bytes[name]:,} | {n_bytes[name] / n_bytes[OURS]:.2f} |"
        )
    if CALL in found:
        lines += [
            "",
            f"{CALL[0].upper()}{CALL[1:]}, which is what a call costs, takes {spread(1e6 * found[CALL])} µs.",
        ]
    return [*lines, "", *aims(rows, n_bytes)]


def aims(found: Mapping[str, np.ndarray], n_bytes: Mapping[str, int]) -> list[str]:
    """What is met: by onnxruntime with and without what a call from Python costs, and by the fastest C of emlearn."""
    lines = []
    for names in (["onnxruntime"], [LESS], [name for name in found if name.startswith("emlearn")]):
        if names := [name for name in names if name in found]:
            times, name = min((float(np.median(found[name] / found[OURS])), name) for name in names)
            share = n_bytes[OURS] / min(n_bytes[name] for name in names)
            lines.append(
                f"- {name}: {times:.2f} times our time, aim ≥ {LEAST_TIMES:g}: "
                f"{'met' if times >= LEAST_TIMES else 'missed'}; our bytes over its: {share:.2f}, aim ≤ 1/3: "
                f"{'met' if share <= MOST_BYTES else 'missed'}."
            )
    return lines


def rival_of(config: TrainConfig, data: Dataset, goal: float, cache: Path | None) -> tuple[Rival, str]:
    """The smallest dense network that reaches ``goal``, and what was trained for it."""
    tried: dict[int, Rival] = {}

    def made(hidden: int) -> Rival:
        tried[hidden] = tried.get(hidden) or ship_rivals.trained(data, hidden, config, cache, say)
        return tried[hidden]

    rival = ship_rivals.smallest(made, goal)
    text = ", ".join(f"{hidden}: {tried[hidden].accuracy:.2%}" for hidden in sorted(tried))
    k, hidden, n_outputs = rival.sizes
    lacks = "" if rival.accuracy >= goal else "; none reached ours, this is the largest"
    return rival, (
        f"The smallest dense network of at least our test accuracy, {goal:.2%}: {k}-{hidden}-{n_outputs}, ReLU "
        f"(hidden neurons tried: {text}){lacks}."
    )


def section(run: str, asked: argparse.Namespace, repeats: int) -> list[str]:
    """All about a trained network."""
    dag, data = sparse_dnm.load(run, threads=1).model, None
    if asked.data_dir is not None:
        _, config, source, description = checkpoint.read_config(Path(run))
        if source is None:
            raise SystemExit(f"error: {run} does not say on which data it was trained; leave --data-dir out")
        data = source.moved(asked.data_dir).load()
        checkpoint.check_same_data(Path(run), description, data)
        if not data.classes:
            raise SystemExit(f"error: {run} is a regression, rivals are of classifications; leave --data-dir out")
    x = random_samples(dag) if data is None else data.x_train[:: -(-len(data.x_train) // SAMPLES)].numpy()
    made = programs(dag, x, asked.cc)
    sample = x if data is None else data.x_test[:IMAGES].numpy()
    text = [f"## {Folded.of(dag).n_edges:,} edges of {Path(run).resolve().name}", ""]
    text += [*over_kernels(dag, made, sample, repeats), "", *flash(made, asked.cc, data)]
    text += ["", *small_flash(dag, x, asked.small)] if asked.small else []
    if data is None:
        return text
    rival, said = rival_of(config, data, accuracy(made["float32"], data), asked.cache)
    return [*text, "", said, "", *against(made, rival, data, asked.cc, repeats)]


def random_samples(dag: SparseDAG) -> np.ndarray:
    """Random inputs."""
    drawn = torch.randn(50, dag.n_inputs, generator=torch.Generator().manual_seed(0))
    return np.asarray(drawn.abs().numpy())


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def heading(cc: str) -> list[str]:
    """Where and how this was measured."""
    about, busy, words = machine(), load(), shlex.split(cc)
    version = subprocess.run([words[0], "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    return [
        f"{about['processor']}, {about['cores']} cores, {about['system']}, {8 * VECTOR_BYTES}-bit vectors in kernels "
        f"(512: AVX-512); {packages}; `{cc}` ({version}); one thread, one sample at a time; load per core before the "
        f"start: {'unknown' if busy is None else f'{busy:.2f}'}."
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="*", help="run directories")
    parser.add_argument("--data-dir", type=Path, help="folder of the runs' data: accuracies, and dense rivals")
    parser.add_argument("--cache", type=Path, help="folder that keeps rivals once they are trained")
    parser.add_argument("--cc", default="gcc -std=c99 -O3 -march=native")
    parser.add_argument("--small", help="another compiler whose bytes are said, such as arm-none-eabi-gcc -Os")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    asked = parser.parse_args()
    if asked.data_dir is not None and not asked.run:
        parser.error("--data-dir is about runs: name one, or leave it out")
    torch.set_num_threads(1)
    repeats = 40 if asked.quick else 200
    print(*heading(asked.cc), sep="\n")
    for run in asked.run:
        print("", *section(run, asked, repeats), sep="\n", flush=True)
    for length in () if asked.run else (1, 8):
        dag = SparseDAG(network(length, np.random.default_rng(length)), threads=1)
        x = random_samples(dag)
        made = programs(dag, x, asked.cc)
        print(f"\n## {Folded.of(dag).n_edges:,} edges in runs of {length}\n", sep="\n")
        print(*over_kernels(dag, made, x, repeats), "", *flash(made, asked.cc, None), sep="\n", flush=True)
    commands = [asked.cc]
    if "x86_64" in str(machine()["system"]):
        commands.insert(0, f"{shlex.split(asked.cc)[0]} {AVX2}")
    print("\n## Prices\n", *ship_prices.lines(list(dict.fromkeys(commands)), asked.quick), sep="\n")


if __name__ == "__main__":
    main()
