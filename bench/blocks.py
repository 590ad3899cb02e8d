"""Executor `blocks` over `columns` at batch 1, by the length of runs: python -m bench.blocks [--quick].

Networks of the size of mnist's whose neurons read runs of neighbouring sources, on one thread, in this process and, on
a machine with AVX-512, in a child process that compiles for AVX2.  The executors take turns; a ratio is one of two
neighbouring measurements, given as the median with quartiles.  Then `fastest` is compared with the better of the two.

--figure FILE --data-dir DIR [--steps N]: instead, train mnist for the time of one sample with `blocks`, and by the
proxy; draw both matrices of strengths and how long the runs of sources are.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sparse_dnm.kernels.machine import VECTOR_BYTES

from bench.instructions import AVX2, ROOT, has_both
from sparse_dnm import DynamicManifold, Topology, TrainConfig, Trainer, data
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Neurons
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.engine.cpu_blocks import LANES, Covering
from sparse_dnm.presets import PRESETS
from sparse_dnm.timing.clock import Clock
from sparse_dnm.timing.probes import edge_values

RUNS = (1, 2, 4, 8, 16, 32)  # sources that follow each other
LONG = 8  # runs from which on the target holds
TARGET, MOST_OVER = 3.0, 1.05  # blocks over columns, forward; fastest over the better
N_INPUTS, N_HIDDEN, N_OUTPUTS, N_EDGES = 784, 200, 10, 4000
LIMIT_S = 1800  # seconds that a child may take, compilation included
BINS = (1, 2, 3, 5, 9, 17, 33)  # of the histogram: lengths of runs from .. to below the next


class Row(NamedTuple):
    """A network: the length of its runs, its edges and blocks; by mode the median µs of columns and of blocks, the
    quartiles of their ratio, and that of `fastest` over the better."""

    run: int
    n_edges: int
    n_blocks: int
    infer: tuple[float, ...]
    train: tuple[float, ...]


def network(run: int, rng: np.random.Generator) -> Topology:
    """Neurons that read N_EDGES in runs of ``run``, hidden ones 80 % of them from the inputs."""
    n, first_output = N_INPUTS + N_HIDDEN + N_OUTPUTS, N_INPUTS + N_HIDDEN
    edges: set[tuple[int, int]] = set()
    while len(edges) < N_EDGES:
        i = int(rng.integers(N_INPUTS, n))
        low, high = (N_INPUTS, first_output) if i >= first_output else (0, N_INPUTS)
        if i < first_output and i - N_INPUTS > run and rng.random() < 0.2:
            low, high = N_INPUTS, i
        start = int(rng.integers(low, high - run + 1))
        edges |= {(start + k, i) for k in range(run)}
    return Topology.from_edges(np.array(sorted(edges)), n, np.arange(N_INPUTS), np.arange(first_output, n))


def measure(topology: Topology, train: bool, repeats: int) -> tuple[float, ...]:
    """µs of columns and of blocks, quartiles of their ratio, and what `fastest` chose over the better."""
    n = topology.n_neurons
    neurons = Neurons(np.zeros(n, np.int8), np.full(n, 0.2, np.float32), n - N_OUTPUTS, slice(0, n - N_OUTPUTS))
    x = np.random.default_rng(0).standard_normal((1, N_INPUTS)).astype(np.float32)
    values, clock = edge_values(topology, np.float32), Clock.of("perf_counter")
    fastest = Executor("fastest", 1)
    choosing = CpuEngine(fastest)
    structure = choosing.given(topology, neurons)
    scales = choosing.scales(structure, None, np.zeros(n - N_OUTPUTS, np.float32))
    if train:
        choosing.forward(structure, values, x, scales)
    else:
        choosing.infer(structure, values, torch.from_numpy(x), scales)
    engines = [CpuEngine(Executor(name, 1)) for name in ("columns", "blocks")]
    watches = [engine.stopwatch(structure, values, x, train) for engine in engines]
    for watch in watches:
        watch(clock)
    seconds = np.array([[watch.warm(clock) for watch in watches] for _ in range(repeats)])
    ratio = seconds[:, 0] / seconds[:, 1]
    median = np.median(seconds, axis=0)
    return (
        *(1e6 * median).tolist(),
        *np.quantile(ratio, [0.25, 0.5, 0.75]).tolist(),
        float(median[1 if fastest.takes_blocks("train" if train else "infer", 1) else 0] / median.min()),
    )


def rows(quick: bool) -> Iterator[Row]:
    """A row for each length of runs; progress to standard error."""
    for run in RUNS:
        print(f"  runs of {run}", file=sys.stderr, flush=True)
        topology = network(run, np.random.default_rng(run))
        covering = Covering.of(CpuEngine(Executor("blocks", 1)).given(topology, _plain(topology)))
        infer, train = (measure(topology, mode, 40 if quick else 200) for mode in (False, True))
        yield Row(run, topology.n_edges, covering.n_blocks, infer, train)


def _plain(topology: Topology) -> Neurons:
    n = topology.n_neurons
    return Neurons(np.zeros(n, np.int8), np.zeros(n, np.float32), n, slice(0, n))


def table(found: list[Row], vector_bytes: int) -> list[str]:
    """The rows as a table, and whether the targets are met."""
    lines = [
        f"Vectors of {vector_bytes} bytes, blocks of {LANES}:",
        "",
        "| runs of | edges | blocks | forward: columns, blocks, µs | columns / blocks (quartiles) "
        "| forward + backward, µs | columns / blocks (quartiles) | fastest over the better |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [f"{m[0]:.2f}, {m[1]:.2f} | {m[3]:.2f} ({m[2]:.2f} to {m[4]:.2f})" for m in (row.infer, row.train)]
        most = f"{row.infer[5]:.2f}, {row.train[5]:.2f}"
        lines.append(f"| {row.run} | {row.n_edges:,} | {row.n_blocks:,} | {' | '.join(cells)} | {most} |")
    least = min(row.infer[3] for row in found if row.run >= LONG)
    over = max(max(row.infer[5], row.train[5]) for row in found)
    return [
        *lines,
        "",
        f"- forward, runs of {LONG} or more: at least {least:.2f} times as fast as columns, target {TARGET:g}: "
        f"{'met' if least >= TARGET else '**missed**'}",
        f"- fastest: at most {over:.2f} times the better, target {MOST_OVER:g}: "
        f"{'met' if over <= MOST_OVER else '**missed**'}",
    ]


def child(quick: bool) -> list[str]:
    """The table of a process that compiles for AVX2.  Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "bench.blocks", "--child", *(["--quick"] if quick else [])]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **AVX2}, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S
    )
    if done.returncode:
        raise RuntimeError(f"the process on AVX2 has ended with code {done.returncode}; see its errors")
    said = json.loads(done.stdout.splitlines()[-1])
    return table([Row(*row) for row in said["rows"]], said["vector_bytes"])


# -- the figure ------------------------------------------------------------------------------------------------


def run_lengths(topology: Topology) -> np.ndarray:
    """How many sources follow each other, for each run of each row."""
    readers = topology.readers
    begins = np.ones(topology.n_edges, np.bool_)
    begins[1:] = (np.diff(topology.indices) != 1) | (np.diff(readers) != 0)
    return np.diff(np.append(np.flatnonzero(begins), topology.n_edges))


def trained(speed: str, samples: Any, steps: int, coefficient: float | None, out: Path | None) -> DynamicManifold:
    """A network of mnist, trained for the time of one sample by blocks, or by the proxy."""
    preset = PRESETS["mnist"]
    changes: dict[str, Any] = {"speed": speed, "steps": steps, "threads": 1, "executor": "columns"}
    if speed == "time":
        changes |= {"executor": "blocks", "time_mode": "infer", "time_batch": 1, "clock": "perf_counter"}
    if coefficient is not None:
        changes["time_coefficient" if speed == "time" else "proxy_coefficient"] = coefficient
    config: TrainConfig = dataclasses.replace(preset.train, **changes)
    model = DynamicManifold(
        preset.manifold, torch.Generator().manual_seed(config.seed), executor=config.executor, threads=1
    )
    Trainer(model, samples, config, out).run(lambda line: print(f"  {speed}: {line}", file=sys.stderr, flush=True))
    return model


def seconds_of(model: DynamicManifold, name: str, repeats: int = 101) -> float:
    """Median seconds of a forward pass of one sample on one thread."""
    evaluation, clock = model.find(), Clock.of("perf_counter")
    x = evaluation.batch(np.random.default_rng(0).standard_normal((1, model.config.n_inputs)))
    watch = CpuEngine(Executor(name, 1)).stopwatch(evaluation.host, evaluation.values.strengths, x, False)
    watch(clock)
    return float(np.median([watch.warm(clock) for _ in range(repeats)]))


def draw(axes: Any, model: DynamicManifold, samples: Any, title: str) -> str:
    """The matrix of strengths, and a histogram of edges by the length of their run; returns the title in full."""
    from sparse_dnm.report.style import BLUE, STRENGTHS, TITLE_SIZE
    from sparse_dnm.report.views import Grid, saturation
    from sparse_dnm.train.snapshots import Snapshot

    with torch.no_grad():
        correct = float((model(samples.x_test).argmax(1) == samples.y_test).double().mean())
    evaluation, config = model.find(), model.config
    topology, grid = evaluation.topology, Grid.of(config)
    structure = Snapshot(0, topology, np.asarray(evaluation.host_values.strengths, np.float32))
    times = {name: seconds_of(model, name) for name in ("columns", "blocks")}
    n_blocks = Covering.of(evaluation.host).n_blocks
    spent = ", ".join(f"{1e6 * s:.1f} µs by {name}" for name, s in times.items())
    said = f"{title}: {correct:.2%} correct\n{topology.n_edges:,} edges in {n_blocks:,} blocks; one sample {spent}"
    limit = saturation(structure)
    axes[0].imshow(
        grid.cells(structure, config), cmap=STRENGTHS, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto",
        extent=(0, grid.columns * grid.step, config.n_inputs + grid.rows * grid.step, config.n_inputs),
    )  # fmt: skip
    axes[0].set(xlabel="source neuron", ylabel="reading neuron")
    axes[0].set_title(said, fontsize=TITLE_SIZE, loc="left")
    runs = run_lengths(topology)
    of = np.digitize(runs, BINS) - 1
    share = np.bincount(of, weights=runs, minlength=len(BINS)) / max(topology.n_edges, 1)
    bounds = [*itertools.pairwise(BINS)]
    names = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in bounds] + [f"{BINS[-1]} up"]
    axes[1].bar(names, share, color=BLUE)
    axes[1].set(xlabel="sources in a row that follow each other", ylabel="share of the edges", ylim=(0, 1))
    return said


def figure(options: argparse.Namespace) -> None:
    """Train both networks, and write the figure."""
    from sparse_dnm.machine import machine
    from sparse_dnm.report.style import save, sheet

    samples = data.load("mnist", options.data_dir)
    about = machine()
    chart = sheet(
        13, 8, f"mnist, {options.steps:,} steps, one thread, vectors of {VECTOR_BYTES} bytes; {about['processor']}"
    )
    axes = chart.subplots(2, 2, width_ratios=(2, 1))
    for row, (speed, coefficient, title) in enumerate(
        (
            ("time", options.time_coefficient, "measured time of one sample, blocks"),
            ("proxy", options.proxy_coefficient, "proxy: a count of edges"),
        )
    ):
        print(draw(axes[row], trained(speed, samples, options.steps, coefficient, None), samples, title), flush=True)
    save(chart, options.figure)


def main() -> None:
    """Print the tables of both instruction sets, or write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--figure", type=Path, help="train two networks and write this .png or .svg instead")
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("--steps", type=int, default=PRESETS["mnist"].train.steps)
    parser.add_argument("--time-coefficient", type=float, help="of the measured time; default: the preset's")
    parser.add_argument("--proxy-coefficient", type=float, help="of the proxy; default: the preset's")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.figure is not None:
        figure(options)
        return
    found = list(rows(options.quick))
    if options.child:
        print(json.dumps({"vector_bytes": VECTOR_BYTES, "rows": found}))
        return
    print("\n".join(table(found, VECTOR_BYTES)), flush=True)
    if has_both():
        print("\n".join(["", *child(options.quick)]))


if __name__ == "__main__":
    main()
