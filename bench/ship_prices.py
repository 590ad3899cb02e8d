"""ns of a lone edge and of a block of eight in exported C, fitted to random networks: part of `bench.ship`.

A network's time is taken as call + loops * loop + edges * edge + blocks * block, where a loop is one over the lone
edges or the blocks that a row reads from one array; what else a row costs is in it.  The networks differ in all of
these; least squares of relative errors, no price below 0.  The intervals are of networks drawn again (bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from bench.ship_c import Library, Source, in_turns
from sparse_dnm import SparseDAG, Topology
from sparse_dnm.lowering.c_network import Network
from sparse_dnm.lowering.layout import LANES
from sparse_dnm.target.measure import made
from sparse_dnm.target.program import source

N_INPUTS, N_OUTPUTS, N_READ = 784, 10, 20  # and what an output reads
HIDDEN = (100, 150, 220, 320)  # about those of mnist's networks
PER_ROW = ((4, 0), (8, 0), (14, 0), (20, 0), (0, 2), (0, 5), (4, 1), (8, 2), (14, 1))  # lone edges, blocks: means
PARTS = ("call", "loop of a row", "lone edge", "block of eight")
N_SAMPLES = 50
RESAMPLES = 1000


@dataclass(frozen=True)
class Prices:
    """ns of PARTS, their 95 % intervals, and how far the networks are off.

    ns     (parts,)
    low    (parts,)
    high   (parts,)
    off    (networks,)  measured time over that of the prices, less 1
    """

    ns: np.ndarray
    low: np.ndarray
    high: np.ndarray
    off: np.ndarray


def random_network(hidden: int, lone: float, blocks: float, rng: np.random.Generator) -> Network:
    """Hidden neurons that read lone edges and runs of eight, on average so many, from the inputs or hidden neurons."""
    first_output = N_INPUTS + hidden
    edges: set[tuple[int, int]] = set()
    for i in range(N_INPUTS, first_output):
        before = i - N_INPUTS
        for run, mean in ((1, lone), (LANES, blocks)):
            low, high = (N_INPUTS, i) if before > 2 * LANES and rng.random() < 0.2 else (0, N_INPUTS)
            for start in rng.integers(low, high - run + 1, rng.poisson(mean)).tolist():
                edges |= {(start + k, i) for k in range(run)}
        edges.add((int(rng.integers(N_INPUTS)), i))
    for i in range(first_output, first_output + N_OUTPUTS):
        edges |= {(int(k), i) for k in rng.integers(N_INPUTS, first_output, N_READ)}
    n = first_output + N_OUTPUTS
    topology = Topology.from_edges(np.array(sorted(edges)), n, np.arange(N_INPUTS), np.arange(first_output, n))
    values = rng.standard_normal(topology.n_edges) * 0.2
    return made(SparseDAG(topology, values, 0.01, threads=1))


def counts(network: Network) -> np.ndarray:
    """How often a network has each of PARTS."""
    layout = network.layout
    parts = [(len(stage.rows), part) for stage in layout.stages for part in stage.parts]
    return np.array([
        1,
        sum(rows * (bool(len(part.block_at)) + bool(len(part.edge_at))) for rows, part in parts),
        sum(len(part.edge_at) for _, part in parts),
        sum(len(part.block_at) for _, part in parts),
    ], float)  # fmt: skip


def fit(features: np.ndarray, seconds: np.ndarray, seed: int = 0) -> Prices:
    """Prices of ``features`` (networks, parts) that take ``seconds`` (networks,)."""
    rng, relative = np.random.default_rng(seed), features / seconds[:, None]

    def solved(chosen: np.ndarray) -> np.ndarray:
        scale = relative[chosen].max(axis=0) + 1e-300  # of columns: a call beside thousands of edges
        return nnls(relative[chosen] / scale, np.ones(len(chosen)))[0] / scale

    n = len(seconds)
    found = solved(np.arange(n))
    again = np.stack([solved(rng.integers(n, size=n)) for _ in range(RESAMPLES)])
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    return Prices(1e9 * found, 1e9 * low, 1e9 * high, seconds / (features @ found) - 1)


def lines(commands: Sequence[str], quick: bool) -> list[str]:
    """A table of prices by compiler command, all measured in turns."""
    rng = np.random.default_rng(0)
    shapes = [(hidden, *each) for hidden in (HIDDEN[::2] if quick else HIDDEN) for each in PER_ROW]
    networks = [random_network(*shape, rng) for shape in shapes]
    features = np.stack([counts(network) for network in networks])
    x = rng.standard_normal((N_SAMPLES, N_INPUTS)).astype(np.float32)
    numbered = [(command, k) for command in commands for k in range(len(networks))]
    cases = {(command, k): library(networks[k], command).timer(x) for command, k in numbered}
    found = in_turns(cases, 10 if quick else 100)
    least, most = features.min(axis=0), features.max(axis=0)
    of = [f"{least[k]:,.0f} to {most[k]:,.0f} {what}" for k, what in ((2, "lone edges"), (3, "blocks"), (1, "loops"))]
    text = [
        f"ns in {len(networks)} random networks of {of[0]}, {of[1]} and {of[2]}, with 95 % intervals; and how far a "
        "network's time is off from the fitted one, median and largest.",
        "",
        f"| | {' | '.join(PARTS)} | off |",
        f"|---|{'---|' * (len(PARTS) + 1)}",
    ]
    for command in commands:
        prices = fit(features, np.array([np.median(found[command, k]) for k in range(len(networks))]))
        told = [
            f"{ns:.2f} ({low:.2f}–{high:.2f})" for ns, low, high in zip(prices.ns, prices.low, prices.high, strict=True)
        ]
        off = np.abs(prices.off)
        text.append(f"| `{command}` | {' | '.join(told)} | {np.median(off):.1%}, {off.max():.1%} |")
    return text


def library(network: Network, cc: str) -> Library:
    """A network, compiled."""
    return Library(Source({"n.c": source(network, "n")}, "n.c", "n_run(x, y);", N_INPUTS, N_OUTPUTS), cc)
