"""Peers on the same graph, same batch, same run, interleaved: python -m bench.peers [--quick].

The graph is the seed graph of original-mnist (topology and strengths of seed 0), batch 64, float32, wall clock.
``kernels`` are the engine's kernel calls alone, ``Propagate`` the same through autograd (a SparseDAG of the same
topology), ``model`` the whole DynamicManifold: closeness, structure, propagation.  Level by level means one
sparse product per level of the DAG; ``one SpMM`` multiplies by the whole matrix once, which computes no network but
is what a library's product costs at best.  connex runs in a process of its own right after.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from bench import external_peers
from bench.levelwise import LevelWise
from bench.replay import Call, recording, replay
from bench.targets import Found
from sparse_dnm import DenseManifold, DynamicManifold, ManifoldConfig, SparseDAG
from sparse_dnm.study.sweeps import SETTLED, DenseStack, layered
from sparse_dnm.timing.clock import Timing, interleave

BATCH = 64
WIDTHS = [784, 512, 512, 10]  # of the MLP with as many edges
BLOCK = 2e-3  # seconds that each case runs in a row, so that every one works from the caches it has filled
Cases = dict[str, Callable[[], object]]

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


@dataclass
class Peers:
    """What was measured: seconds by case, of the DAG and of the MLP, and who is absent, with the reason."""

    edges: int
    neurons: int
    depth: int
    graph: dict[str, Timing] = field(default_factory=dict)
    mlp: dict[str, Timing] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def seed_model(threads: int) -> DynamicManifold:
    """The untrained original-mnist model of seed 0."""
    config = ManifoldConfig.preset("original-mnist")
    return DynamicManifold(config, torch.Generator().manual_seed(0), executor="columns", threads=threads)


def on(threads: int, run: Callable[[], object]) -> Callable[[], object]:
    """``run`` with that many threads of torch."""

    def with_threads() -> object:
        torch.set_num_threads(threads)
        return run()

    return with_threads


def passes(name: str, model: nn.Module, x: Tensor, threads: int) -> Cases:
    """Forward without a graph, and forward + backward, of a module."""

    def forward() -> object:
        with torch.no_grad():
            return model(x)

    def both() -> None:
        model.zero_grad(set_to_none=True)
        model(x).sum().backward()

    return {f"{name} forward": on(threads, forward), f"{name} forward + backward": on(threads, both)}


def propagate_calls(model: nn.Module, x: Tensor) -> dict[str, list[Call]]:
    """Kernel calls of Propagate alone, of the given model: forward, and forward + backward."""
    model(x).sum().backward()  # compiles, settles
    with recording() as calls:
        out = model(x)
        ahead = len([c for c in calls if c.name.startswith("forward")])
        out.sum().backward()
    wanted = [c for c in calls if c.name.startswith(("forward", "backward", "add_tiles"))]
    return {"forward": wanted[:ahead], "forward + backward": wanted}


def our_cases(batch: int = BATCH) -> tuple[Cases, DynamicManifold, SparseDAG, Tensor]:
    """Kernels alone, Propagate, and the whole model, on one and two threads."""
    cases: Cases = {}
    x = torch.randn(batch, 784, generator=torch.Generator().manual_seed(1))
    for threads in (1, 2):
        executor = "columns" if threads == 1 else "auto"
        model = seed_model(threads)
        dag = SparseDAG(model.topology, model.strengths, executor=executor, threads=threads)
        whole = DynamicManifold(model.config, torch.Generator().manual_seed(0), executor=executor, threads=threads)
        for _ in range(SETTLED):
            dag(x).sum().backward()
            whole(x).sum().backward()
        for name, calls in propagate_calls(dag, x).items():
            cases[f"kernels, {threads} threads, {name}"] = replay(calls)
        cases.update(passes(f"Propagate, {threads} threads,", dag, x, 1))
        cases.update(passes(f"model, {threads} threads,", whole, x, 1))
    return cases, model, dag, x


def product_cases(dag: SparseDAG, x: Tensor) -> tuple[Cases, Tensor]:
    """torch.sparse's product of the whole matrix on one and two threads, and what the matrix is multiplied by."""
    topology, values = dag.topology, dag.edge_weight.detach()
    m = torch.randn(topology.n_neurons, len(x), generator=torch.Generator().manual_seed(2))
    shape = (topology.n_neurons, topology.n_neurons)
    csr = torch_csr(torch.from_numpy(topology.indptr), torch.from_numpy(topology.indices).long(), values, shape)
    return {f"torch.sparse CSR, one SpMM, {n} threads": on(n, lambda: csr @ m) for n in (1, 2)}, m


def library_cases(model: DynamicManifold, dag: SparseDAG, x: Tensor, peers: Peers) -> Cases:
    """torch.sparse, scipy and torch-sparse; each checked against our outputs first."""
    topology, values = model.topology, model.strengths.detach()
    columns = x.t().contiguous()
    cases, m = product_cases(dag, x)
    matrix, dense_m = topology.to_scipy(values), m.numpy()
    cases["scipy CSR, one SpMM, 1 thread"] = lambda: matrix @ dense_m
    builders: dict[str, Callable[[], tuple[Any, Any]]] = {
        "torch.sparse CSR": lambda: (torch_csr, torch.mm),
        "torch-sparse SparseTensor": torch_sparse,
    }
    for name, builder in builders.items():
        try:
            levels = LevelWise(topology, values, *builder())
            check(name, levels.forward(columns), dag(x).t())
            (gradient,) = torch.autograd.grad(dag(x).sum(), dag.edge_weight)
            check(name, levels.both(columns), gradient)
        except (external_peers.AbsentError, RuntimeError, NotImplementedError) as error:
            peers.absent[f"{name} level by level"] = str(error).splitlines()[0]
            continue
        cases[f"{name} level by level, 2 threads, forward"] = on(2, partial(levels.forward, columns))
        cases[f"{name} level by level, 2 threads, forward + backward"] = on(2, partial(levels.both, columns))
    try:
        peer = SparseDAG(topology, values, executor="torch-sparse")
        check("executor torch-sparse", peer(x), dag(x))
        cases.update(passes("torch-sparse, as our executor, 2 threads,", peer, x, 2))
    except (ValueError, ImportError, RuntimeError) as error:
        peers.absent["torch-sparse as our executor"] = str(error).splitlines()[0]
    return cases


def torch_csr(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """CSR matrix of torch."""
    return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)


def torch_sparse() -> tuple[Callable[..., Any], Callable[[Any, Tensor], Tensor]]:
    """How torch-sparse builds a matrix and multiplies.  Raises AbsentError where it is not installed."""
    library = external_peers.installed("torch_sparse")

    def build(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Any:
        return library.SparseTensor(
            rowptr=indptr, col=indices, value=values, sparse_sizes=shape, is_sorted=True, trust_data=True
        )

    return build, lambda matrix, x: matrix @ x


def check(name: str, found: Tensor, expected: Tensor) -> None:
    """Raise AssertionError unless a peer computes what we compute: a comparison of speed needs equal work."""
    found, expected = found.detach(), expected.detach()
    scale = float(expected.abs().max())
    worst = float((found - expected).abs().max())
    if not worst <= 1e-4 * scale:
        raise AssertionError(f"{name} differs from ours by {worst:.3g} at a scale of {scale:.3g}")


class Masked(nn.Module):
    """A stack of dense layers whose weights are multiplied by a mask of zeros and ones in every call."""

    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.masks = [(layer.weight != 0).float() for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n_inputs) -> (batch, n_outputs)."""
        for k, (layer, mask) in enumerate(zip(self.layers, self.masks, strict=True)):
            x = leaky_relu(x, 0.2) if k else x
            x = nn.functional.linear(x, layer.weight * mask, layer.bias)  # type: ignore[arg-type, operator]
        return x


def mlp_cases(edges: int, x: Tensor, peers: Peers) -> Cases:
    """An MLP with as many edges as the graph: ours, masked dense, plain dense, SparseLab."""
    density = edges / sum(a * b for a, b in itertools.pairwise(WIDTHS))
    layers = layered(WIDTHS, density, np.random.default_rng(0))
    cases: Cases = {}
    for threads in (1, 2):
        executor = "columns" if threads == 1 else "auto"
        dag = SparseDAG.from_linear(layers, executor=executor, threads=threads)
        cases.update(passes(f"SparseDAG.from_linear, {threads} threads,", dag, x, 1))
    check("masked nn.Linear", Masked(layers)(x), dag(x))
    cases.update(passes("masked nn.Linear, 2 threads,", Masked(layers), x, 2))
    cases.update(passes("dense nn.Linear, all weights, 2 threads,", DenseStack(layers), x, 2))
    try:
        library = external_peers.borrowed("sparselab")
        pairs = itertools.pairwise(WIDTHS)
        stack: list[nn.Module] = []
        for n_in, n_out in pairs:
            stack += [library.SparseLinear(n_in, n_out, sparsity=1 - density), nn.LeakyReLU(0.2)]
        lab = nn.Sequential(*stack[:-1])
        lab(x).sum().backward()
        found = sum(module.nnz for module in lab if isinstance(module, library.SparseLinear))
        peers.notes.append(f"SparseLab draws its own mask: {found:,} edges.")
        cases.update(passes("SparseLab SparseLinear, 2 threads,", lab, x, 2))
    except (external_peers.AbsentError, AttributeError, TypeError, RuntimeError) as error:
        peers.absent["SparseLab"] = str(error)
    return cases


def measure(quick: bool = False) -> Peers:
    """Run everything; see the module."""
    repeats, seconds = (15, 5.0) if quick else (100, 45.0)
    threads = torch.get_num_threads()
    cases, model, dag, x = our_cases()
    topology = model.topology
    peers = Peers(topology.n_edges, topology.n_neurons, topology.depth)
    cases.update(library_cases(model, dag, x, peers))
    for method in ("levels", "neurons"):
        dense = DenseManifold.from_manifold(model, method)
        check(f"DenseManifold {method}", dense(x), model(x))
        cases.update(passes(f"DenseManifold {method}, model, 2 threads,", dense, x, 2))
    peers.graph = interleave(cases, repeats, budget_s=seconds, warmup=3, shortest_s=BLOCK)
    mlp = mlp_cases(topology.n_edges, x, peers)
    peers.mlp = interleave(mlp, repeats, budget_s=seconds, warmup=3, shortest_s=BLOCK)
    torch.set_num_threads(threads)
    try:
        connex_cases(dag, x, peers, quick)
    except external_peers.AbsentError as error:
        peers.absent["connex"] = str(error)
    return peers


def connex_cases(dag: SparseDAG, x: Tensor, peers: Peers, quick: bool) -> None:
    """Add connex, checked against our outputs and gradient.  Raises AbsentError."""
    timings, about = external_peers.connex(dag, x, 30 if quick else 200)
    peers.graph.update(timings)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    differs = " and ".join(f"{what} {worst:.1e}" for what, worst in about["differs"].items())
    peers.notes.append(
        f"connex ({versions}), layout {about['layout']}, its fastest on this graph, batched, jit: "
        f"{about['build_s']:.1f} s to build and {about['compile_s']:.1f} s to compile, per structure; all cores; timed "
        f"right after the others, in its own process.  Against ours, relative to the largest: {differs}."
    )


def few_section(quick: bool, found: Found) -> list[str]:
    """Ours, one product of torch.sparse, and connex: what the targets need of each instruction set."""
    threads = torch.get_num_threads()
    cases, model, dag, x = our_cases()
    peers = Peers(model.topology.n_edges, model.topology.n_neurons, model.topology.depth)
    cases.update(product_cases(dag, x)[0])
    peers.graph = interleave(cases, 15 if quick else 100, budget_s=5 if quick else 20, warmup=3, shortest_s=BLOCK)
    torch.set_num_threads(threads)
    try:
        connex_cases(dag, x, peers, quick)
    except external_peers.AbsentError as error:
        peers.absent["connex"] = str(error)
    found.peers = {name: timing.median for name, timing in peers.graph.items()}
    return [*table(peers.graph, "kernels, 1 threads, forward"), "", *peers.notes, *peers.absent.values()]


def table(timings: dict[str, Timing], reference: str) -> list[str]:
    """Markdown: microseconds, median and quartiles, and how many times as long as ``reference``."""
    base = timings[reference].median
    rows = [f"| case | median, µs | quartiles, µs | × {reference} |", "|---|---|---|---|"]
    for name, t in timings.items():
        rows.append(
            f"| {name} | {1e6 * t.median:,.1f} | {1e6 * t.low:,.1f}–{1e6 * t.high:,.1f} | {t.median / base:.2f} |"
        )
    return rows


def lines(peers: Peers) -> list[str]:
    """The peers as Markdown."""
    out = [f"Seed graph: {peers.neurons:,} neurons, {peers.edges:,} edges, depth {peers.depth}; batch {BATCH}.", ""]
    out += table(peers.graph, "kernels, 1 threads, forward")
    out += ["", f"MLP {'-'.join(map(str, WIDTHS))} with about {peers.edges:,} weights; batch {BATCH}.", ""]
    out += table(peers.mlp, "SparseDAG.from_linear, 1 threads, forward")
    out += ["", *(f"- {note}" for note in peers.notes)]
    out += [f"- Absent: {name} ({reason})." for name, reason in peers.absent.items()]
    return out


def section(quick: bool, found: Found) -> list[str]:
    """Measure; note what the targets ask for; return the tables."""
    peers = measure(quick)
    found.peers = {name: timing.median for name, timing in peers.graph.items()}
    return lines(peers)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print("\n".join(lines(measure(parser.parse_args().quick))))


if __name__ == "__main__":
    main()
