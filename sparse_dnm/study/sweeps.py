"""How sparsity and wall time relate on this machine: sweeps over density, edges, depth, batch and threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.topology import Topology
from sparse_dnm.machine import machine, versions
from sparse_dnm.model.sparse_dag import SparseDAG
from sparse_dnm.timing.clock import Timing, interleave, load

CLOCK = "perf_counter"  # wall seconds
SLOPE = 0.2  # of the leaky ReLU below zero, in both kinds of network
SETTLED = 14  # calls after which the executor "auto" has chosen


@dataclass(frozen=True)
class Settings:
    """The points of the sweeps, and the time they take."""

    neurons: tuple[int, ...] = (300, 1000, 3000)  # of the networks of the density sweep
    densities: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # edges / possible edges
    edges: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    depths: tuple[int, ...] = (2, 8, 32, 128, 512)  # levels
    batches: tuple[int, ...] = (1, 8, 64, 256, 1024)  # samples
    batch: int = 64  # samples, where the batch is fixed
    point_s: float = 1.2  # seconds per point after warm-up
    repeats: int = 40  # most rounds per point
    threads: int = 0  # of the kernels and of torch; 0: all

    @staticmethod
    def quick(threads: int = 0) -> Settings:
        """Fewer points, shorter."""
        return Settings(
            neurons=(300, 1000),
            densities=(0.001, 0.01, 0.1, 1.0),
            edges=(1_000, 10_000, 100_000),
            depths=(2, 16, 128),
            batches=(64, 256, 512),
            point_s=0.25,
            repeats=12,
            threads=threads,
        )


@dataclass(frozen=True)
class Point:
    """One measured point of a sweep: ``x``, its ``panel``, what was run, and seconds by series."""

    x: float
    panel: str
    about: dict[str, int]
    timings: dict[str, Timing]


@dataclass
class Sweep:
    """Points along one quantity."""

    name: str
    title: str
    x_label: str
    points: list[Point] = field(default_factory=list)


def layered(widths: list[int], density: float, rng: np.random.Generator) -> list[nn.Linear]:
    """A stack of nn.Linear of these widths; a weight exists with probability ``density``, at least one per layer."""
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layer = nn.Linear(n_in, n_out)
        weight = rng.normal(0, math.sqrt(2 / max(1.0, density * n_in)), (n_out, n_in))
        count = max(1, round(density * weight.size))
        mask = np.zeros(weight.size, np.bool_)
        mask[rng.choice(weight.size, count, replace=False)] = True
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight * mask.reshape(weight.shape)))
        layers.append(layer)
    return layers


def random_dag(n_neurons: int, depth: int, n_edges: int, rng: np.random.Generator) -> Topology:
    """A random DAG of exactly this depth: depth + 1 levels of about equal size, and ``n_edges`` edges.

    Every neuron above level 0 reads one neuron of the level before it; other edges come from any level before.
    The last level holds the outputs.  The DAG has more edges if its depth needs more, fewer if no more are possible.
    Raises ValueError if there are fewer neurons than levels.
    """
    if n_neurons < depth + 1:
        raise ValueError(f"n_neurons={n_neurons} must be at least depth + 1 = {depth + 1}")
    bounds = np.linspace(0, n_neurons, depth + 2).astype(np.int64)
    level = np.repeat(np.arange(depth + 1), np.diff(bounds))
    readers = np.arange(bounds[1], n_neurons)
    before = level[readers] - 1
    choices = bounds[level[readers]]  # sources that a reader may have
    ends = np.cumsum(choices)
    first = ends - choices  # cells are numbered reader by reader
    tree = first + rng.integers(bounds[before], bounds[before + 1])
    cells = np.concatenate([tree, _draw(int(ends[-1]), max(0, n_edges - len(tree)), tree, rng)])
    which = np.searchsorted(ends, cells, side="right")
    edges = np.stack([cells - first[which], readers[which]], axis=1)
    return Topology.from_edges(edges, n_neurons, np.arange(bounds[1]), np.arange(bounds[-2], n_neurons))


def _draw(cells: int, count: int, taken: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` different numbers below ``cells`` that are not ``taken``, or all that are left if there are fewer."""
    count = min(count, cells - len(taken))
    if 2 * (count + len(taken)) > cells:
        return rng.permutation(np.setdiff1d(np.arange(cells), taken))[:count]
    found = np.empty(0, np.int64)
    while len(found) < count:
        more = rng.integers(0, cells, count - len(found) + 100)
        found = np.setdiff1d(np.union1d(found, more), taken)
    return rng.permutation(found)[:count]


class DenseStack(nn.Module):
    """The dense computation of a layered network: one torch.addmm and a leaky ReLU per layer."""

    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n_inputs) -> (batch, n_outputs)."""
        for k, layer in enumerate(self.layers):
            if k:
                x = nn.functional.leaky_relu(x, SLOPE)
            x = torch.addmm(layer.bias, x, layer.weight.t())  # type: ignore[arg-type, operator]
        return x


def _forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def _both(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(x).sum().backward()

    return run


def _cases(name: str, model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    return {f"{name} forward": _forward(model, x), f"{name} forward + backward": _both(model, x)}


def density_points(settings: Settings, threads: int) -> Iterator[Point]:
    """Sparse against dense: three layers of weights, equal widths, at every size and density."""
    for n in settings.neurons:
        for density in settings.densities:
            layers = layered([n // 4] * 4, density, np.random.default_rng(n))
            dag = SparseDAG.from_linear(layers, threads=threads)
            x = torch.randn(settings.batch, n // 4, generator=torch.Generator().manual_seed(0))
            cases = {**_cases("sparse", dag, x), **_cases("dense", DenseStack(layers), x)}
            yield _measured(settings, density, f"{n:,} neurons", dag.topology, cases)


def _dag_point(
    settings: Settings, x: float | None, panel: str, shape: tuple[int, int, int], batch: int, threads: int
) -> Point:
    """A random DAG of ``shape`` (neurons, depth, edges) at ``x``, by default its number of edges."""
    topology = random_dag(*shape, np.random.default_rng(0))
    dag = SparseDAG(topology, generator=torch.Generator().manual_seed(0), threads=threads)
    inputs = torch.randn(batch, len(topology.inputs), generator=torch.Generator().manual_seed(0))
    return _measured(settings, x or topology.n_edges, panel, topology, _cases("sparse", dag, inputs))


def edge_points(settings: Settings, threads: int) -> Iterator[Point]:
    """More edges at fixed depth: 2,000 neurons in 9 levels."""
    for edges in settings.edges:
        yield _dag_point(settings, None, "2,000 neurons, depth 8", (2000, 8, edges), settings.batch, threads)


def depth_points(settings: Settings, threads: int) -> Iterator[Point]:
    """More levels at fixed edges: 2,000 neurons, 20,000 edges."""
    for depth in settings.depths:
        yield _dag_point(settings, depth, "2,000 neurons, 20,000 edges", (2000, depth, 20_000), settings.batch, threads)


def batch_points(settings: Settings, threads: int) -> Iterator[Point]:
    """More samples: 2,000 neurons, 20,000 edges, depth 16."""
    for batch in settings.batches:
        yield _dag_point(settings, batch, "2,000 neurons, 20,000 edges, depth 16", (2000, 16, 20_000), batch, threads)


def thread_points(settings: Settings, threads: int) -> Iterator[Point]:
    """More threads: batch 256, 2,000 neurons, 20,000 edges, depth 16."""
    for count in sorted({2**k for k in range(threads.bit_length())} | {threads}):
        yield _dag_point(settings, count, "20,000 edges, depth 16, batch 256", (2000, 16, 20_000), 256, count)


def _measured(
    settings: Settings, x: float, panel: str, topology: Topology, cases: dict[str, Callable[[], object]]
) -> Point:
    timings = interleave(cases, settings.repeats, CLOCK, settings.point_s, warmup=SETTLED)
    about = {"neurons": topology.n_neurons, "edges": topology.n_edges, "depth": topology.depth}
    return Point(x, panel, about, timings)


SWEEPS: dict[str, tuple[str, str, Callable[[Settings, int], Iterator[Point]]]] = {
    "density": ("Density: sparse against dense", "density (edges / possible edges)", density_points),
    "edges": ("Edges at fixed depth", "edges", edge_points),
    "depth": ("Depth at fixed edges", "depth (levels)", depth_points),
    "batch": ("Batch", "batch (samples)", batch_points),
    "threads": ("Threads", "threads", thread_points),
}


def count_points(settings: Settings, threads: int) -> int:
    """How many points `run` measures."""
    counts = (len(settings.edges), len(settings.depths), len(settings.batches))
    teams = len({2**k for k in range(threads.bit_length())} | {threads})
    return len(settings.neurons) * len(settings.densities) + sum(counts) + teams


def run(settings: Settings, on_point: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Measure all sweeps; ``on_point`` is called with the name of the sweep after each point.

    Returns machine, versions, threads, clock, batch, ``load_before`` (see `timing.load`), ``sweeps`` (a Sweep by name)
    and ``crossover`` (see `crossovers`).
    """
    threads = backend.check_threads(settings.threads)
    before, busy = torch.get_num_threads(), load()
    torch.set_num_threads(threads)
    try:
        sweeps = {}
        for name, (title, x_label, points) in SWEEPS.items():
            sweeps[name] = Sweep(name, title, x_label)
            for point in points(settings, threads):
                sweeps[name].points.append(point)
                on_point(name)
    finally:
        torch.set_num_threads(before)
    return {
        "machine": machine(),
        "versions": versions(),
        "threads": threads,
        "clock": CLOCK,
        "batch": settings.batch,
        "load_before": busy,
        "sweeps": sweeps,
        "crossover": crossovers(sweeps["density"]),
    }


def crossovers(sweep: Sweep) -> dict[str, dict[str, float | None]]:
    """Density below which sparse is faster, by panel and pass, interpolated between points on logarithmic scales.

    None: sparse is faster at every density of the sweep; 0: at none.
    """
    found: dict[str, dict[str, float | None]] = {}
    for panel in dict.fromkeys(point.panel for point in sweep.points):
        points = sorted((p for p in sweep.points if p.panel == panel), key=lambda p: p.x)
        found[panel] = {}
        for step in ("forward", "forward + backward"):
            ratios = [p.timings[f"sparse {step}"].median / p.timings[f"dense {step}"].median for p in points]
            found[panel][step] = _crossing([p.x for p in points], ratios)
    return found


def _crossing(x: list[float], ratios: list[float]) -> float | None:
    """Where ``ratios`` last rise through 1 along ascending ``x``; None: below 1 at the end, 0: never below."""
    if ratios[-1] < 1:
        return None
    below = [k for k, ratio in enumerate(ratios) if ratio < 1]
    if not below:
        return 0.0
    k = below[-1]
    low, high = math.log(ratios[k]), math.log(ratios[k + 1])
    return math.exp(math.log(x[k]) + (math.log(x[k + 1]) - math.log(x[k])) * low / (low - high))
