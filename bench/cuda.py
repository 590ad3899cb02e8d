"""CUDA kernels against their floors and peers, on a GPU: python -m bench.tables --device cuda [--quick].

The graph is the seed graph of original-mnist, float32.  Kernels are timed by CUDA events, each after others of its
kind; everything else by the wall clock, CALLS calls and then a wait for the device, launches from Python included:
that is what a user waits for.  Peers are checked against our outputs first.

    forward    bytes = 128 · edges · tiles          each edge reads one row of 32 float32 messages of each tile
    backward   bytes = 384 · edges · tiles          the same of gradients, and two rows for the gradient of its value
    floor      bytes / bandwidth(footprint)         footprint = 128 · neurons · tiles, read again and again: L2 or HBM
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numba import cuda
from torch import Tensor

from bench.levelwise import LevelWise
from bench.peers import WIDTHS, Cases, Masked, check, passes, torch_csr
from sparse_dnm import DenseManifold, DynamicManifold, ManifoldConfig, SparseDAG
from sparse_dnm.config import CUDA_CLOCK
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.study.sweeps import DenseStack, layered
from sparse_dnm.timing.clock import Clock, Timing, interleave

CALLS = 10  # of a case, then a wait
ROW = 128  # bytes of a neuron in a tile
EXECUTORS = ("columns", "wavefront")
BOTH = "forward + backward"


@cuda.jit
def read(buffer, passes, out):
    """Sum ``buffer``, of a power of two, as often as ``passes``, every thread elsewhere in each: out of L2 or HBM."""
    at, step, mask = cuda.grid(1), cuda.gridsize(1), buffer.size - 1
    a, b, c, d = out[at], out[at], out[at], out[at]
    for k in range(passes):
        first = at + k * 32 * 1021  # whole warps, and no multiple of a block's share
        for e in range(first, first + buffer.size, 4 * step):
            a += buffer[e & mask]
            b += buffer[(e + step) & mask]
            c += buffer[(e + 2 * step) & mask]
            d += buffer[(e + 3 * step) & mask]
    out[at] = a + b + c + d


def bandwidth(footprint: int, device: torch.device, clock: Clock) -> float:
    """Bytes per second read from a buffer of the power of two that is next to ``footprint`` bytes."""
    least = 2**6 if backend.SIMULATED else 2**14
    size = max(least, 2 ** round(math.log2(footprint / 4)))
    threads = 8 if backend.SIMULATED else 256
    blocks = min(2 ** int(math.log2(8 * backend.resident(device))), size // (4 * threads))
    buffer, out = torch.ones(size, device=device), torch.zeros(blocks * threads, device=device)
    passes = 1 if backend.SIMULATED else min(10_000, max(1, round(5e8 / size)))
    times = []
    for _ in range(5):
        backend.keep_busy(device)
        start = backend.mark(device)
        backend.launch(read, blocks, threads, buffer, passes, out)
        times.append(backend.between(start, backend.mark(device)) - clock.overhead)
    return 4 * size * passes / min(times[1:])


def kernel_section(
    model: DynamicManifold, batches: tuple[int, ...], repeats: int, device: torch.device, budget_s: float = math.inf
) -> list[str]:
    """Forward and backward kernels by executor and batch, against their floors.

    ``budget_s``: seconds of a batch after which no further round begins; three are made in any case.
    """
    clock, found = Clock.of(CUDA_CLOCK), model.to(device).find()
    structure, strengths = found.structure, found.values.strengths
    engines = {name: engine_for(Executor(name), device, model.config) for name in EXECUTORS}
    rows = ["| | median, µs | quartiles, µs | floor, µs | floor / time |", "|---|---|---|---|---|"]
    for batch in batches:
        x = torch.randn(batch, model.config.n_inputs, generator=torch.Generator().manual_seed(1)).to(device)
        tiles = -(-batch // 32)
        footprint = ROW * len(structure.neurons.kind) * tiles
        floor = ROW * structure.n_live_edges * tiles / bandwidth(footprint, device, clock)
        watches: dict[str, tuple[Stopwatch, float]] = {}
        for (name, engine), train in itertools.product(engines.items(), (False, True)):
            watch = engine.stopwatch(structure, strengths, x, train)
            watch(clock)  # compiles
            what = BOTH if train else "forward"
            watches[f"{name}, {what}, batch {batch}"] = watch, floor * (4 if train else 1)
        seconds: dict[str, list[float]] = {name: [] for name in watches}
        began = time.perf_counter()
        for turn in range(repeats):
            if turn >= 3 and time.perf_counter() - began > budget_s:
                break
            for name, (watch, _) in watches.items():
                seconds[name].append(watch.warm(clock))
        rows += [row(name, Timing.of(times, CUDA_CLOCK), watches[name][1]) for name, times in seconds.items()]
    return rows


def row(name: str, timing: Timing, floor: float) -> str:
    """A line of a table in microseconds."""
    quartiles = f"{1e6 * timing.low:,.1f}–{1e6 * timing.high:,.1f}"
    return f"| {name} | {1e6 * timing.median:,.1f} | {quartiles} | {1e6 * floor:.1f} | {floor / timing.median:.0%} |"


def waited(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """CALLS calls, and a wait for the device."""

    def block() -> None:
        for _ in range(CALLS):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return block


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` as a CUDA graph: its launches cost Python nothing."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


GRAPHED = ("SparseDAG", "torch.sparse CSR level by level")  # cases that are also recorded as CUDA graphs


def graphs(cases: Cases, absent: dict[str, str]) -> Cases:
    """Cases as CUDA graphs; ``absent`` gets those that cannot be recorded, with the reason."""
    found: Cases = {}
    for case, run in cases.items():
        if case.startswith(GRAPHED):
            title = case.replace(", forward", ", as a CUDA graph, forward")
            try:
                found[title] = graphed(run)
            except Exception as error:  # of torch, of numba or of the driver
                absent[title] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return found


def peer_cases(model: DynamicManifold, x: Tensor, device: torch.device) -> tuple[Cases, dict[str, str]]:
    """Ours, torch.sparse and dense on the same graph; and who is absent, with the reason."""
    topology, values = model.topology, model.strengths.detach()
    columns, cases, absent = x.t().contiguous(), Cases(), dict[str, str]()
    expected = None
    for name in EXECUTORS:
        dag = SparseDAG(topology, values, executor=name).to(device)
        expected = dag(x).detach() if expected is None else expected
        check(f"SparseDAG {name}", dag(x), expected)
        cases |= passes(f"SparseDAG, {name},", dag, x, 1)
    assert expected is not None
    whole = DynamicManifold(model.config, torch.Generator().manual_seed(0), executor="columns").to(device)
    cases |= passes("DynamicManifold, structure and all,", whole, x, 1)
    try:
        levels = LevelWise(topology, values.to(device), torch_csr, torch.mm)
        check("torch.sparse CSR level by level", levels.forward(columns), expected.t())
        cases["torch.sparse CSR level by level, forward"] = lambda: levels.forward(columns)
        cases["torch.sparse CSR level by level, forward + backward"] = lambda: levels.both(columns)
    except RuntimeError as error:
        absent["torch.sparse CSR level by level"] = str(error).splitlines()[0]
    matrix = topology.to_scipy(values)
    csr = torch_csr(*(torch.from_numpy(a).to(device) for a in (topology.indptr, topology.indices.astype(np.int64))),
                    values.to(device), matrix.shape)  # fmt: skip
    m = torch.randn(topology.n_neurons, len(x), device=device)
    cases["torch.sparse CSR, one SpMM (computes no network)"] = lambda: csr @ m
    dense = DenseManifold.from_manifold(model, "levels").to(device)
    check("DenseManifold levels", dense(x), whole(x))
    cases |= passes("DenseManifold levels,", dense, x, 1)
    if device.type == "cuda":
        cases |= graphs(cases, absent)
    return cases, absent


def mlp_cases(edges: int, widths: list[int], x: Tensor, device: torch.device) -> Cases:
    """An MLP with as many edges as the graph: ours, masked dense, and dense with all weights."""
    density = edges / sum(a * b for a, b in itertools.pairwise(widths))
    layers = layered(widths, min(density, 1.0), np.random.default_rng(0))
    dag = SparseDAG.from_linear(layers, executor="columns").to(device)
    masked, dense = Masked(layers), DenseStack(layers).to(device)
    masked.masks = [mask.to(device) for mask in masked.masks]
    masked.to(device)
    check("masked nn.Linear", masked(x), dag(x))
    cases = passes("MLP, SparseDAG.from_linear,", dag, x, 1) | passes("MLP, masked nn.Linear,", masked, x, 1)
    return cases | passes("MLP, dense nn.Linear, all weights,", dense, x, 1)


def table(cases: Cases, repeats: int, device: torch.device, reference: str, budget_s: float | None = None) -> list[str]:
    """Microseconds of a call, and how many times those of ``reference``; then whatever took less than that.

    ``reference``: the name of a case, or what the names of our forward, and of our forward + backward, begin with.
    """
    found = interleave({name: waited(run, device) for name, run in cases.items()}, repeats, "perf_counter", budget_s,
                       shortest_s=0.0)  # fmt: skip
    lines, faster = ["| | median, µs | quartiles, µs | times ours |", "|---|---|---|---|"], []
    for name, t in found.items():
        kind = BOTH if name.endswith(BOTH) else "forward"
        ratio = t.median / (found.get(reference) or found[f"{reference} {kind}"]).median
        low, middle, high = (1e6 * seconds / CALLS for seconds in (t.low, t.median, t.high))
        lines.append(f"| {name} | {middle:,.1f} | {low:,.1f}–{high:,.1f} | {ratio:.2f} |")
        faster += [f"{name} ({ratio:.2f})"] if ratio < 1 else []
    said = f"Faster than {reference.rstrip(',')}: {'; '.join(faster) or 'none of the others'}."
    return [*lines, "", f"{min(t.n for t in found.values())} rounds of {CALLS} calls.  {said}"]


def lines(quick: bool, device: torch.device, config: ManifoldConfig | None = None, **small: Any) -> list[str]:
    """All of it, as Markdown; ``config`` and ``small`` (batches, widths, repeats) are for tests."""
    config = config or ManifoldConfig.preset("original-mnist")
    batches = small.get("batches") or ((64,) if quick else (8, 64, 256, 1024))
    widths = small.get("widths") or WIDTHS
    repeats = small.get("repeats") or (10 if quick else 50)
    model = DynamicManifold(config, torch.Generator().manual_seed(0), executor="columns")
    with torch.no_grad():
        model(torch.zeros(1, config.n_inputs))
    text = [f"{model.topology}", "", "## Kernels against their floors, by CUDA events", ""]
    text += [*kernel_section(model, batches, repeats, device), ""]
    config_linear = replace(config, output="linear")  # peers know no squares
    model = DynamicManifold(config_linear, torch.Generator().manual_seed(0), executor="columns")
    for batch in batches:
        x = torch.randn(batch, config.n_inputs, generator=torch.Generator().manual_seed(1)).to(device)
        cases, absent = peer_cases(model, x, device)
        text += [f"## Peers on the same graph, batch {batch}", ""]
        text += table(cases, repeats, device, f"SparseDAG, {EXECUTORS[0]},")
        text += ["", *(f"- {name}: {why}" for name, why in absent.items()), ""]
    x = torch.randn(batches[-1], widths[0], generator=torch.Generator().manual_seed(1)).to(device)
    text += [f"## An MLP with as many edges, batch {batches[-1]}", ""]
    cases = mlp_cases(model.topology.n_edges, widths, x, device)
    return [*text, *table(cases, repeats, device, "MLP, SparseDAG.from_linear,")]
