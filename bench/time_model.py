"""How well the cost model predicts seconds: python -m bench.time_model [--quick].

Fitted on structures cut out of the seed graph of original-mnist, judged on others of them, on other families of
graphs, on graphs of equal edges, on what removing a part saves, and on the same network timed twice.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from bench.peers import seed_model
from sparse_dnm import Topology
from sparse_dnm.backend import ACTIVATION_CODES
from sparse_dnm.benchmark import random_dag
from sparse_dnm.checkpoint import machine
from sparse_dnm.cost_model import Calibration, Quality, Settings, calibrate, cut, edge_values, features, time_steps
from sparse_dnm.plan import Floats, Plan
from sparse_dnm.schedule import Executor, Schedule
from sparse_dnm.timing import compare

EQUAL = 10_000  # edges of the graphs that differ in depth and width alone


@dataclass
class Bench:
    """A calibration, and what measures other structures in the same way."""

    calibration: Calibration
    settings: Settings
    executor: Executor

    def plan(self, topology: Topology) -> tuple[Plan, Floats]:
        """Its plan, with values on the edges."""
        return plan_of(topology, self.executor), edge_values(topology, np.float32)

    def measure(self, graphs: Sequence[Topology]) -> tuple[Floats, Floats, float]:
        """Predicted and measured seconds, and the relative noise of a median."""
        plans = [self.plan(graph) for graph in graphs]
        x = inputs(self.settings.batch, max(len(graph.inputs) for graph in graphs))
        found, _ = time_steps(plans, x, self.settings)
        counts = np.stack([features(plan.schedule, self.settings.executor) for plan, _ in plans])
        measured = np.median(found, axis=1)
        low, high = np.quantile(found, [0.25, 0.75], axis=1)
        noise = float(np.median((high - low) / measured)) / found.shape[1] ** 0.5
        return self.calibration.model.seconds(counts), measured, noise


def plan_of(topology: Topology, executor: Executor) -> Plan:
    """Leaky ReLU in every neuron, as in original-mnist."""
    n = topology.n_neurons
    kind, slope = ACTIVATION_CODES["leaky_relu"]
    kinds, slopes = np.full(n, kind, np.int8), np.full(n, slope, np.float32)
    return Plan(Schedule(topology), executor, kinds, slopes, n, np.arange(n, dtype=np.int32))


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


def line(name: str, quality: Quality) -> str:
    """A row of the table of qualities."""
    return (
        f"| {name} | {quality.n} | {quality.r2:.4f} | {quality.mape:.1%} | {quality.within_10:.0%} | "
        f"{quality.spearman:.3f} |"
    )


def savings(bench: Bench, graph: Topology, rng: np.random.Generator, count: int) -> str:
    """What cutting a part out of ``graph`` saves, predicted and measured."""
    kinds = ("edges", "neurons")
    cuts = [cut(graph, kinds[k % 2], rng.uniform(0.7, 0.98), rng) for k in range(count)]
    predicted, measured, noise = bench.measure([graph, *cuts])
    saved, foretold = measured[0] - measured[1:], predicted[0] - predicted[1:]
    clear = np.abs(saved) > 2 * noise * measured[0]
    right = float((np.sign(saved) == np.sign(foretold))[clear].mean())
    ranks = float(spearmanr(saved, foretold).statistic)
    return f"{ranks:.3f}, sign right in {right:.0%} of the {int(clear.sum())} of {count} that exceed twice the noise"


def false_positives(bench: Bench, graph: Topology, count: int) -> str:
    """How often the forward of a network differs from that of the same network, allocated anew."""

    def run() -> Callable[[], object]:
        plan, values = bench.plan(graph)
        x = inputs(bench.settings.batch, len(graph.inputs))
        scales = plan.scales(np.ones(graph.n_neurons, np.float32), np.zeros(graph.n_neurons, np.float32))
        return lambda: plan.forward(x, values, scales)

    first, second = run(), run()
    pairs = [compare(first, second, pairs=20, clock=bench.settings.clock, seed=seed) for seed in range(count)]
    found = sum(pair.differs for pair in pairs)
    spread = statistics.median([pair.high / pair.low - 1 for pair in pairs])
    return f"{found} of {count}; the interval is {spread:.1%} wide (median)"


def section(quick: bool = False) -> list[str]:
    """All tables, as Markdown."""
    graph = seed_model(1).topology
    rng = np.random.default_rng(7)
    count, repeats = (20, 9) if quick else (60, 31)
    others, same_edges = families(rng, count), equal_edges(rng, count)
    out = [
        "Fitted on structures cut out of the seed graph; all others were not seen by the fit.  Kernel seconds alone."
    ]
    out += ["", "| structures | n | R² | mean error | within 10 % | rank correlation |", "|---|---|---|---|---|---|"]
    notes = []
    for executor, clock, threads in (("columns", "process_time", 1), ("wavefront", "perf_counter", 2)):
        for batch in (1, 50):
            name = f"{executor}, batch {batch}"
            settings = Settings(executor, "train", batch, threads, clock, 2 * count, repeats)
            found = calibrate(graph, plan_of, inputs(batch, len(graph.inputs)), settings)
            bench = Bench(found, settings, Executor(executor, threads))
            out.append(line(f"{name}: held out", found.held_out))
            out.append(line(f"{name}: other families", Quality.of(*bench.measure(others)[:2])))
            out.append(
                line(f"{name}: {EQUAL:,} edges, depth and width varied", Quality.of(*bench.measure(same_edges)[:2]))
            )
            costs = ", ".join(
                f"{1e9 * value:.3g} ns per {what}" for what, value in found.as_dict()["seconds_per"].items()
            )
            notes.append(f"- {name}, {threads} threads, {clock}: {costs}; noise {found.noise:.1%}.")
            notes.append(f"  Saved by removing edges or neurons, rank correlation {savings(bench, graph, rng, count)}.")
            notes.append(f"  The same network twice differs in {false_positives(bench, graph, 20 if quick else 100)}.")
    return [*out, "", *notes]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer structures and repeats")
    options = parser.parse_args()
    about = machine()
    print("\n".join([f"{about['processor']}, {about['cores']} cores", "", *section(options.quick)]))


if __name__ == "__main__":
    main()
