"""Structures derived from a network, which a calibration times."""

from __future__ import annotations

import numpy as np

from sparse_dnm.config import check_choice
from sparse_dnm.engine.topology import Topology

CUTS = ("edges", "neurons", "inputs", "paths", "layers", "sources", "runs")
PROBE_CUTS = (  # the cuts that make each kind of probe, used in turn
    ("edges",),
    ("neurons", "edges"),
    ("paths", "edges"),
    ("inputs", "neurons"),
    ("sources", "edges"),
    ("sources", "neurons", "edges"),
    ("layers", "edges"),
    ("sources", "inputs", "edges"),
    ("layers", "sources"),
    ("neurons", "paths"),
)
BLOCK_CUTS = (  # those for an executor whose time depends on how many sources of a row follow each other
    *PROBE_CUTS,
    ("runs",),
    ("runs", "edges"),
    ("runs", "neurons"),
    ("runs", "inputs"),
    ("runs", "paths"),
    ("runs", "layers"),
    ("neurons", "runs"),
    ("edges", "runs"),
)


def cut(topology: Topology, kind: str, keep: float, rng: np.random.Generator) -> Topology:
    """A part of ``topology`` over the same neurons, by one of CUTS.

    edges    each edge is kept with probability ``keep``
    neurons  each neuron that is neither input nor output is kept with that probability, with all its edges
    inputs   each input is kept with that probability; or, in half of the calls, the first ones, a share ``keep``
    paths    only neurons in the first levels (a share ``keep`` of them) read more than inputs and constants
    layers   neurons that are neither inputs nor outputs, in 1 to 30 layers, read earlier layers only
    sources  every edge gets a random source before its reader (duplicates become one): not a part of ``topology``
    runs     the same for runs of 1 to 64 edges, whose sources follow each other
    """
    check_choice("kind", kind, CUTS)
    edges, n = topology.edges(), topology.n_neurons
    source, reader = edges.T
    if kind == "edges":
        kept = rng.random(len(edges)) < keep
    elif kind in ("neurons", "inputs"):
        alive = rng.random(n) < keep
        if kind == "inputs":
            if rng.random() < 0.5:
                alive[topology.inputs] = np.arange(len(topology.inputs)) < keep * len(topology.inputs)
            chosen = alive[topology.inputs]
            alive[:] = True
            alive[topology.inputs] = chosen
        else:
            alive[topology.inputs] = alive[topology.outputs] = True
        kept = alive[source] & alive[reader]
    elif kind == "paths":
        highest = max(1, round(keep * topology.depth))
        kept = (topology.levels[reader] <= highest) | (topology.levels[source] == 0)
    elif kind == "layers":
        layer, count = np.zeros(n, np.int64), int(rng.integers(1, 31))
        inner = np.setdiff1d(topology.order, np.concatenate([topology.inputs, topology.outputs]), assume_unique=True)
        place = np.empty(n, np.int64)  # in the order of execution
        place[topology.order] = np.arange(n)
        inner = inner[np.argsort(place[inner])]
        layer[inner] = 1 + np.arange(len(inner)) * count // max(len(inner), 1)
        layer[topology.outputs] = count + 1
        kept = layer[source] < layer[reader]
    else:
        return _scatter(topology, 1 if kind == "sources" else 2 ** int(rng.integers(0, 7)), rng)
    return Topology.from_edges(edges[kept], n, topology.inputs, topology.outputs)


def _scatter(topology: Topology, run: int, rng: np.random.Generator) -> Topology:
    """``topology`` with random sources, each the first of a ``run``: any neuron before the reader in the order of
    execution, except outputs."""
    order = topology.order[~np.isin(topology.order, topology.outputs)]
    edges, n = topology.edges().astype(np.int64), topology.n_neurons
    place = np.full(n, len(order))
    place[order] = np.arange(len(order))
    if run == 1:
        edges[:, 0] = order[(rng.random(len(edges)) * place[edges[:, 1]]).astype(np.int64)]
    else:
        within = np.arange(len(edges)) - topology.indptr[edges[:, 1]]  # the edges of a reader follow each other
        first = np.arange(len(edges)) - within % run
        start = order[(rng.random(len(edges)) * place[edges[:, 1]]).astype(np.int64)][first]
        edges[:, 0] = start + within % run
        edges = edges[edges[:, 0] < n]
        edges = edges[place[edges[:, 0]] < place[edges[:, 1]]]
    return Topology.from_edges(np.unique(edges, axis=0), n, topology.inputs, topology.outputs)


def layered(topology: Topology, rng: np.random.Generator) -> Topology:
    """A random DAG that has little to do with ``topology``: a quarter to twice its neurons, a tenth to all of its
    edges, inputs and outputs of any number, levels of equal width.

    A neuron reads one of the level before it, and others of any before.
    """
    n = max(8, round(topology.n_neurons * rng.uniform(0.25, 2.0)))
    depth = int(rng.integers(1, max(2, min(n // 4, 64))))
    inner = n - min(len(topology.inputs), n // 4)
    first = np.concatenate([[0], np.linspace(n - inner, n, depth + 1).astype(np.int64)])  # of each level, inputs below
    level = np.repeat(np.arange(depth + 1), np.diff(first))
    readers = np.arange(first[1], n)
    before = level[readers] - 1
    spine = first[before] + (rng.random(len(readers)) * (first[before + 1] - first[before])).astype(np.int64)
    count = round(topology.n_edges * np.exp(rng.uniform(np.log(0.1), 0.0)))
    more = rng.choice(readers, max(count - len(readers), 0))
    sources = (rng.random(len(more)) * first[level[more]]).astype(np.int64)
    edges = np.stack([np.concatenate([spine, sources]), np.concatenate([readers, more])], axis=1)
    return Topology.from_edges(np.unique(edges, axis=0), n, np.arange(first[1]), np.arange(first[-2], n))


def probes(
    topology: Topology, count: int, rng: np.random.Generator, executor: str = "columns", families: bool = True
) -> list[Topology]:
    """``count`` structures: two of three are derived from ``topology`` by PROBE_CUTS (for ``blocks`` by BLOCK_CUTS) in
    turn, where each cut keeps from a tenth to all; every third is `layered`, so that prices hold for graphs of other
    ``families``, too, unless these are left out."""
    found, cuts = [], BLOCK_CUTS if executor == "blocks" else PROBE_CUTS
    for k in range(count):
        if families and k % 3 == 2:
            found.append(layered(topology, rng))
            continue
        part = topology
        for kind in cuts[(2 * (k // 3) + k % 3) % len(cuts)]:
            part = cut(part, kind, rng.uniform(0.1, 1.0), rng)
        found.append(part)
    return found
