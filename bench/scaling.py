"""How the kernels' time goes with threads and edges, and the latency of a single sample."""

from __future__ import annotations

import copy
import dataclasses
import functools

import numpy as np
import torch

from bench.limits import bandwidth, floors
from bench.peers import BLOCK, Cases, propagate_calls
from bench.replay import recording, replay
from bench.steps import HEAD, executed_edges, row, seed_dag
from bench.targets import Found
from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG, Topology
from sparse_dnm.engine.schedule import tile_width
from sparse_dnm.study.sweeps import SETTLED
from sparse_dnm.timing.clock import interleave

READS = 20  # sources of a neuron
BAND = 200  # neurons before a reader, among which its sources lie
COLUMNS = 16  # batch of the scaling table
EMPTY = "an empty nn.Module"


class Empty(torch.nn.Module):
    """Makes the tensor that it returns, and computes nothing: the least that a call of a module takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_inputs) -> (batch, 10)."""
        return x.new_empty(len(x), 10)


def thread_section(quick: bool, found: Found) -> list[str]:
    """Forward + backward kernels of the seed graph on one and two threads, by batch."""
    out = [
        "Kernels of the seed graph, executor columns.",
        "",
        "| batch | pass | 1 thread, µs | 2 threads, µs | ratio |",
    ]
    out.append("|---|---|---|---|---|")
    for batch in (128,) if quick else (128, 256, 512):
        cases: Cases = {}
        for threads in (1, 2):
            dag, x = seed_dag(batch, threads)
            for name, calls in propagate_calls(dag, x).items():
                cases[f"{threads} {name}"] = replay(calls)
        t = interleave(cases, 30 if quick else 200, shortest_s=BLOCK)
        for name in ("forward", "forward + backward"):
            one, two = t[f"1 {name}"].median, t[f"2 {name}"].median
            found.threads[f"{name}, batch {batch}"] = one / two
            out.append(f"| {batch} | {name} | {1e6 * one:,.1f} | {1e6 * two:,.1f} | {one / two:.2f} |")
    return out


def banded(edges: int) -> Topology:
    """A DAG whose neurons read READS of the BAND neurons before them, as a manifold's windows do."""
    n = edges // READS
    rng = np.random.default_rng(0)
    readers = np.repeat(np.arange(BAND, n + BAND), READS)
    back = rng.permuted(np.tile(np.arange(1, BAND + 1, dtype=np.int16), (n, 1)), axis=1)[:, :READS]
    sources = np.sort(readers.reshape(n, READS) - back, axis=1)
    indptr = np.concatenate([np.zeros(BAND, np.int64), np.arange(n + 1, dtype=np.int64) * READS])
    outputs = np.arange(n, n + BAND, dtype=np.int32)
    return Topology(indptr, sources.ravel().astype(np.int32), np.arange(BAND, dtype=np.int32), outputs)


def edge_section(quick: bool, found: Found) -> list[str]:
    """Nanoseconds per edge and column from 10^4 to 10^7 edges, one thread, with the DRAM floor."""
    out = [f"Banded DAGs: {READS} sources among the {BAND} neurons before; batch {COLUMNS}, one thread, kernels."]
    out += ["DRAM floor: bytes that do not fit a cache are streamed once: per edge index and value, read in each pass,"]
    out += ["the place of the edge in the backward pass and its gradient; per neuron and column x, m, g."]
    out += ["", "| edges | pass | ns per edge and column | tile footprint, MiB | floor / time | DRAM floor / time |"]
    out.append("|---|---|---|---|---|---|")
    for exponent in (4, 5, 6) if quick else (4, 5, 6, 7):
        topology = banded(10**exponent)
        values = torch.full((topology.n_edges,), 1 / READS)  # sums stay near 1: no denormals, which slow arithmetic
        dag = SparseDAG(topology, values, executor="columns", threads=1)
        calls = propagate_calls(dag, 1 + torch.rand(COLUMNS, BAND))
        timings = interleave({n: replay(c) for n, c in calls.items()}, 10 if quick else 40, budget_s=15)
        edges, n, width = executed_edges(topology), topology.n_neurons, tile_width(COLUMNS)
        least = floors(edges, n, COLUMNS, width)
        per_pass = {"forward": 8 * edges + 8 * n * width, "forward + backward": 28 * edges + 20 * n * width}
        for name, timing in timings.items():
            cost = 1e9 * timing.median / edges / COLUMNS
            dram = per_pass[name] / bandwidth(64 * 2**20)
            found.per_edge[f"10^{exponent} {name}"] = (cost, dram / timing.median)
            out.append(
                f"| {edges:,} | {name} | {cost:.3f} | {4 * n * width / 2**20:,.1f} | "
                f"{least[name].seconds / timing.median:.0%} | {dram / timing.median:.0%} |"
            )
    return out


def small_model(edges: int) -> DynamicManifold:
    """The seed model of original-mnist with the cutoff raised until about ``edges`` edges are left."""
    config = ManifoldConfig.preset("original-mnist")
    low, high = -1.0, 6.0
    for _ in range(20):
        middle = (low + high) / 2
        changed = dataclasses.replace(config, cutoff=middle)
        model = DynamicManifold(changed, torch.Generator().manual_seed(0))
        low, high = (middle, high) if model.topology.n_edges > edges else (low, middle)
    return model


@torch.no_grad()
def latency_section(quick: bool, found: Found) -> list[str]:
    """Batch 1 under no_grad: the kernel alone and the whole call."""
    model = small_model(6_000)
    topology, x = model.topology, torch.rand(1, 784)
    dag = SparseDAG(topology, model.strengths)
    for _ in range(2 * SETTLED):
        model(x), dag(x)
    with recording() as calls:
        copy.deepcopy(model)(x)  # which has no pass prepared
    (kernel,) = (call for call in calls if call.name == "forward")
    cases: Cases = {
        "kernel alone": lambda: kernel.kernel(*kernel.arguments),  # one tile: it wakes no other thread
        "model(x)": lambda: model(x),
        "SparseDAG(x), the same graph": lambda: dag(x),
        EMPTY: functools.partial(Empty(), x),
    }
    timings = interleave(cases, 50 if quick else 1000, shortest_s=BLOCK / 10)
    found.latency = {name: timing.median for name, timing in timings.items()}
    head = f"{topology.n_edges:,} edges, depth {topology.depth}, executor {model.executor.chosen()}."
    return [head, "", *HEAD, *(row(name, timing) for name, timing in timings.items())]
