"""How well seconds are predicted, steered and compared: python -m bench.time_model [--quick | --prices].

The cost model is fitted on structures made out of the seed graph of original-mnist and judged on others of them, on
other families of graphs, on graphs of equal edges, and on what removing a part saves; all are timed in turns, in one
process.  Then: the gradient against finite differences, the same network timed twice, budgets, and what timing costs.

--prices: instead, what `sparse_dnm.timing.typical` is made of: prices fitted without typical ones.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import spearmanr

from bench.peers import seed_model
from sparse_dnm import DynamicManifold, ManifoldConfig, MeasuredTime, TimeSettings, Topology, TrainConfig, Trainer, data
from sparse_dnm.checks import CPU
from sparse_dnm.config import TIME_MODES
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Engine, Neurons
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.device import ACTIVATION_CODES
from sparse_dnm.machine import machine
from sparse_dnm.study.sweeps import random_dag
from sparse_dnm.timing.calibration import fit as fit_prices
from sparse_dnm.timing.calibration import priced
from sparse_dnm.timing.clock import compare
from sparse_dnm.timing.cost_model import FEATURES, CostModel, Quality
from sparse_dnm.timing.pace import pace_of
from sparse_dnm.timing.probes import Settings, Times, edge_values, time_steps
from sparse_dnm.timing.structures import cut, probes
from sparse_dnm.timing.subprocess import Network, time_in_subprocess
from sparse_dnm.train.constraints import BUDGET_MARGIN
from sparse_dnm.train.trim import saliency, trim

EQUAL = 10_000  # edges of the graphs that differ in depth and width alone
PRICED = (("columns", 1), ("wavefront", 2), ("blocks", 1))  # executor, threads
SETUPS = (  # executor, clock, threads, batches
    ("columns", "process_time", 1, (1, 50)),
    ("wavefront", "perf_counter", 2, (1, 50)),
    ("blocks", "perf_counter", 1, (1,)),
)


def neurons_of(topology: Topology) -> Neurons:
    """Leaky ReLU in every neuron, as in original-mnist."""
    n = topology.n_neurons
    kind, slope = ACTIVATION_CODES["leaky_relu"]
    kinds, slopes = np.full(n, kind, np.int8), np.full(n, slope, np.float32)
    return Neurons(kinds, slopes, n, np.arange(n, dtype=np.int32))


def engine_of(executor: str, threads: int) -> Engine:
    """The CPU's, with buffers of its own."""
    return engine_for(Executor(executor, threads), CPU)


def inputs(batch: int, columns: int) -> Floats:
    """Normal numbers."""
    return np.random.default_rng(1).standard_normal((batch, columns)).astype(np.float32)


def families(rng: np.random.Generator, count: int) -> list[Topology]:
    """Layered graphs of 800 to 1,580 neurons, other depths, other widths and fewer edges a neuron."""
    found = []
    for _ in range(count):
        depth = int(rng.integers(2, 40))
        least = 784 * (depth + 1) // depth
        n = int(rng.integers(least, least + 400))
        found.append(random_dag(n, depth, int(rng.integers(2_000, 30_000)), rng))
    return found


def equal_edges(rng: np.random.Generator, count: int) -> list[Topology]:
    """Graphs of EQUAL edges whose depth and width vary."""
    return [random_dag(int(rng.integers(300, 3000)), int(rng.integers(2, 64)), EQUAL, rng) for _ in range(count)]


@dataclass
class Measured:
    """Graphs by group, all timed in turns: counts (n, features), median seconds (n,), and the repeats."""

    groups: dict[str, slice]
    counts: Floats
    seconds: Floats
    times: Times
    model: CostModel

    def of(self, group: str) -> tuple[Floats, Floats]:
        """Predicted and measured seconds of a group."""
        where = self.groups[group]
        return self.model.seconds(self.counts[where]), self.seconds[where]


def measure(groups: dict[str, list[Topology]], settings: Settings) -> Measured:
    """Time all graphs in turns; the model is fitted to the group named fit."""
    engine = engine_of(settings.executor, settings.threads)
    graphs = [graph for group in groups.values() for graph in group]
    x = inputs(settings.batch, max(len(graph.inputs) for graph in graphs))
    structures = [engine.given(graph, neurons_of(graph)) for graph in graphs]
    train = settings.mode == "train"
    pairs = zip(graphs, structures, strict=True)
    watches = [engine.stopwatch(made, edge_values(graph, np.float32), x, train) for graph, made in pairs]
    times = time_steps(watches, settings, pace=pace_of(engine, settings, np.float32))
    counts = np.stack([engine.features(made, settings.executor) for made in structures])
    seconds = np.median(times.seconds, axis=1)
    places, first = {}, 0
    for name, group in groups.items():
        places[name] = slice(first, first + len(group))
        first += len(group)
    fit = places["fit"]
    return Measured(places, counts, seconds, times, fit_prices(settings, counts[fit], seconds[fit]))


def line(name: str, quality: Quality) -> str:
    """A row of the table of qualities."""
    return (
        f"| {name} | {quality.n} | {quality.r2:.4f} | {quality.mape:.1%} | {quality.within_10:.0%} | "
        f"{quality.spearman:.3f} |"
    )


def savings(found: Measured) -> str:
    """What cutting a part out of the graph saves, predicted and measured."""
    predicted, measured = found.of("cuts")
    where = found.groups["cuts"]
    low, high = np.quantile(found.times.seconds[where], [0.25, 0.75], axis=1)
    noise = float(np.median((high - low) / measured)) / found.times.seconds.shape[1] ** 0.5
    saved, foretold = measured[0] - measured[1:], predicted[0] - predicted[1:]
    clear = np.abs(saved) > 2 * noise * measured[0]
    right = float((np.sign(saved) == np.sign(foretold))[clear].mean())
    ranks = float(spearmanr(saved, foretold).statistic)
    return f"{ranks:.3f}, sign right in {right:.1%} of the {int(clear.sum())} of {len(saved)} above twice the noise"


def gradient(executor: str, clock: str, threads: int, batch: int, count: int, repeats: int) -> str:
    """Cosine of what the term's gradient says of groups of edges and what their removal saves.

    Groups are single edges at random, or all edges of some neurons or inputs, those to them and those from them.  A
    gradient prices edges one by one: where only the edges from a neuron go, those to it are saved too, and it does not
    say so.
    """
    rng = np.random.default_rng(3)
    generator = torch.Generator().manual_seed(0)
    model = DynamicManifold(ManifoldConfig.preset("mnist", cutoff=-0.5), generator, executor=executor, threads=threads)
    chosen = TimeSettings(mode="train", batch=batch, clock=clock, probes=60, repeats=repeats)
    term = MeasuredTime(model, chosen)
    evaluation = model.find()
    topology, values = evaluation.topology, evaluation.host_values
    active = np.abs(values.d) > values.c
    by_gate = evaluation.expected_cost(chosen.tau, term.prices(evaluation)).by_gate[active]
    edges = topology.edges()
    groups, beheaded = [], []
    for k in range(count):
        share = rng.uniform(0.03, 0.3)
        if k % 3 == 0:
            gone = rng.random(topology.n_edges) < share
        else:
            first, last = (model.config.n_inputs, model.config.n_sources) if k % 3 == 1 else (0, model.config.n_inputs)
            dead = np.zeros(topology.n_neurons, np.bool_)
            dead[rng.choice(np.arange(first, last), int(share * (last - first)), replace=False)] = True
            gone = dead[edges].any(axis=1)
            beheaded.append(dead[edges[:, 0]])
        groups.append(gone)
    groups += beheaded
    parts = [Topology.from_edges(edges[~gone], topology.n_neurons, topology.inputs, topology.outputs)
             for gone in groups]  # fmt: skip
    x = inputs(batch, model.config.n_inputs)
    settings = replace(term.promise(), repeats=repeats)
    engine, neurons = engine_of(executor, threads), evaluation.host.neurons
    watches = [
        engine.stopwatch(engine.given(t, neurons), edge_values(t, np.float32), x, True) for t in (topology, *parts)
    ]
    seconds = np.median(time_steps(watches, settings, pace=term.pace).seconds, axis=1)
    saved, foretold = seconds[0] - seconds[1:], np.array([by_gate[gone].sum() for gone in groups])
    cosine, without = (
        float(saved[k] @ foretold[k] / np.linalg.norm(saved[k]) / np.linalg.norm(foretold[k]))
        for k in (slice(count), slice(count, None))
    )
    return (
        f"{cosine:.3f} over {count} groups ({topology.n_edges:,} edges, depth {topology.depth}); {without:.3f} over "
        f"{len(beheaded)} groups of only the edges from some neurons"
    )


def false_positives(executor: str, clock: str, threads: int, batch: int, count: int, anew: bool) -> str:
    """How often the forward of a network differs from that of the same network."""
    graph = seed_model(1).topology
    x = inputs(batch, len(graph.inputs))
    values = edge_values(graph, np.float32)
    structure = engine_of(executor, threads).given(graph, neurons_of(graph))

    def make() -> Callable[[], object]:
        own, n = engine_of(executor, threads), graph.n_neurons
        strengths, table = values.copy(), x.copy()
        scales = own.scales(structure, np.ones(n, np.float32), np.zeros(n, np.float32))
        return lambda: own.forward(structure, strengths, table, scales)

    first, second = (make, make) if anew else (make(), make())
    pairs = [compare(first, second, clock=clock, seed=seed, made_anew=anew) for seed in range(count)]
    found = sum(pair.differs for pair in pairs)
    spread = statistics.median([pair.high / pair.low - 1 for pair in pairs])
    return f"{found} of {count}, interval {spread:.1%} wide (median)"


def trained(**changes: object) -> Trainer:
    """A finished training of digits."""
    config = TrainConfig.preset("digits", **changes)
    generator = torch.Generator().manual_seed(config.seed)
    model = DynamicManifold(
        ManifoldConfig.preset("digits"), generator, executor=config.executor, threads=config.threads
    )
    return Trainer(model, data.load("digits"), config)


def budgets(count: int) -> str:
    """Error of the time, in subprocesses, of a network trimmed to budgets, before any second trim."""
    run = trained(speed="time", time_coefficient=0.3, time_mode="infer", clock="perf_counter", executor="columns",
                  threads=1, steps=1500)  # fmt: skip
    run.run()
    term = run._run.time
    assert term is not None
    whole, networks, wanted = term.measure(run.model.find()), {}, {}
    original = run.model
    for k, share in enumerate(np.linspace(0.55, 0.95, count)):
        run.model = copy.deepcopy(original)
        budget = share * whole
        trim(run.model, term, BUDGET_MARGIN * budget, lambda: saliency(run.model, run.data, run.config.batch_size))
        networks[str(k)], wanted[str(k)] = Network.of(run.model), budget
    found = time_in_subprocess(networks, term.promise())
    errors = np.array([np.median(found[k]) / wanted[k] - 1 for k in networks])
    return (
        f"median absolute error {np.median(np.abs(errors)):.1%}, {errors.min():+.1%} to {errors.max():+.1%} of it "
        f"({count} budgets, {1e6 * min(wanted.values()):.2f} to {1e6 * max(wanted.values()):.2f} µs)"
    )


def clocked(name: str, method: Callable[..., object], spent: dict[str, float]) -> Callable[..., object]:
    """``method``, with the wall seconds of its calls added to spent[name]."""

    def timed(*arguments: object) -> object:
        start = time.perf_counter()
        try:
            return method(*arguments)
        finally:
            spent[name] += time.perf_counter() - start

    return timed


def cost_of_timing(steps: int) -> list[str]:
    """Shares of a training: timed steps with the refit, the gradient, the calibration."""
    lines = []
    for mode in ("train", "infer"):
        spent = {"value": 0.0, "end_step": 0.0, "gradient": 0.0}
        kept = {name: getattr(MeasuredTime, name) for name in spent}
        for name in kept:
            setattr(MeasuredTime, name, clocked(name, kept[name], spent))
        try:
            start = time.perf_counter()
            run = trained(steps=steps, time_mode=mode)
            before = time.perf_counter()
            run._prepare()
            calibrating = time.perf_counter() - before
            run.run()
            whole = time.perf_counter() - start
        finally:
            for name, function in kept.items():
                setattr(MeasuredTime, name, function)
        timing = spent["value"] + spent["end_step"]
        lines.append(
            f"- digits, {steps:,} steps, time_mode {mode}: timed steps with their references, and refit "
            f"{timing / whole:.1%} of {whole:.1f} s, calibration {calibrating / whole:.1%}, gradient of the expected "
            f"cost {spent['gradient'] / whole:.1%}"
        )
    return lines


def prices(executor: str, threads: int, mode: str, batches: Sequence[int]) -> Iterator[str]:
    """Prices at some batch sizes, fitted without typical ones to structures made out of two seed graphs."""
    rng = np.random.default_rng(5)
    seeds = [ManifoldConfig.preset(name) for name in ("digits", "original-mnist")]
    models = [DynamicManifold(config, torch.Generator().manual_seed(0)) for config in seeds]
    graphs = [graph for model in models for graph in probes(model.topology, 60, rng, executor)]
    for batch in batches:
        found = measure({"fit": graphs}, Settings(executor, mode, batch, threads, "perf_counter", repeats=15))
        model = CostModel.fit(executor, found.counts, found.seconds, priced(Settings(executor, mode)))
        costs = zip(FEATURES[executor], model.coefficients, strict=True)
        quality = Quality.of(model.seconds(found.counts), found.seconds)
        listed = ", ".join(f"{1e9 * value:.3g} {what}" for what, value in costs)
        yield f"- {executor}, {mode}, batch {batch}: ns {listed}; {quality.within_10:.0%} within 10 %"


def section(quick: bool = False) -> list[str]:
    """All tables, as Markdown."""
    graph = seed_model(1).topology
    rng = np.random.default_rng(7)
    count, repeats = (20, 7) if quick else (60, 31)
    kinds = ("edges", "neurons")
    cuts = [cut(graph, kinds[k % 2], rng.uniform(0.7, 0.98), rng) for k in range(count)]
    others = {
        "other families": families(rng, count),
        f"{EQUAL:,} edges, depth and width varied": equal_edges(rng, count),
        "cuts": [graph, *cuts],
    }
    out = [f"Fitted on {2 * count} structures, all timed in turns, {repeats} repeats.  Kernel seconds alone."]
    out += ["", "| structures | n | R² | mean error | within 10 % | rank correlation |", "|---|---|---|---|---|---|"]
    notes = []
    for executor, clock, threads, batches in SETUPS:
        made = probes(graph, 3 * count, rng, executor)
        groups = {"fit": made[: 2 * count], "held out": made[2 * count :], **others}
        for batch in batches:
            name = f"{executor}, batch {batch}"
            found = measure(groups, Settings(executor, "train", batch, threads, clock, repeats=repeats))
            out += [line(f"{name}: {group}", Quality.of(*found.of(group))) for group in list(groups)[1:-1]]
            costs = zip(FEATURES[executor], found.model.coefficients, strict=True)
            notes.append(
                f"- {name}, {threads} threads, {clock}: "
                + ", ".join(f"{1e9 * value:.3g} ns per {what}" for what, value in costs)
                + "."
            )
            notes.append(f"  Saved by removing edges or neurons: rank correlation {savings(found)}.")
            cosine = gradient(executor, clock, threads, batch, 12 if quick else 45, repeats)
            notes.append(f"  Gradient against what removing groups of edges saves: cosine {cosine}.")
            pairs = 20 if quick else 100
            notes.append(
                "  The same network twice differs in "
                f"{false_positives(executor, clock, threads, batch, pairs, True)}, where memory is allocated anew for "
                f"every pair; {false_positives(executor, clock, threads, batch, pairs // 4, False)} where it stays."
            )
    notes.append(f"- Budgets: {budgets(4 if quick else 10)}.")
    return [*out, "", *notes, *cost_of_timing(500 if quick else 3000)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer structures and repeats")
    parser.add_argument("--prices", action="store_true", help="prices that are fitted without typical ones")
    options = parser.parse_args()
    about = machine()
    if options.prices:
        for (executor, threads), mode in itertools.product(PRICED, TIME_MODES):
            batches = (1, 2, 4) if executor == "blocks" else (1, 16, 64, 256)
            for said in prices(executor, threads, mode, batches):
                print(said, flush=True)
        return
    print("\n".join([f"{about['processor']}, {about['cores']} cores", "", *section(options.quick)]))


if __name__ == "__main__":
    main()
