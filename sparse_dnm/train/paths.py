"""Paths from inputs to outputs that a cut must leave: an output that nothing reaches has the same answer for all."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.engine.topology import Topology


def needed(topology: Topology, gone: NDArray[np.int64], values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Those of the edges ``gone``, places in the CSR, that must stay so that each output which an input reaches is
    reached without the others; of several ways the one whose least of ``values`` (n_edges,) is the largest."""
    ranks = np.empty(topology.n_edges)  # of those that go, below those of the others
    ranks[np.argsort(values, kind="stable")] = np.arange(topology.n_edges)
    ranks[gone] -= topology.n_edges
    return np.intersect1d(widest(topology, ranks)[1], gone)


def widest(topology: Topology, values: NDArray[np.floating]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which outputs are reached by an input, bool (n_outputs,), and the edges of one path to each of these, ascending
    places in the CSR: of the path whose least value is the largest (Pollack 1960), of ``values`` (n_edges,)."""
    sources, readers = topology.indices, topology.readers
    width, through = np.full(topology.n_neurons, -np.inf), np.full(topology.n_neurons, -1, np.int64)
    width[topology.inputs] = np.inf
    by_level = np.argsort(topology.levels[readers], kind="stable")
    ends = np.searchsorted(topology.levels[readers][by_level], np.arange(1, topology.depth + 2))
    for first, last in itertools.pairwise(ends.tolist()):
        edges = by_level[first:last]
        least = np.minimum(width[sources[edges]], values[edges])
        best_last = np.lexsort((least, readers[edges]))
        edges, least = edges[best_last], least[best_last]
        ends_of_readers = np.flatnonzero(np.diff(readers[edges], append=-1))
        edges, least = edges[ends_of_readers], least[ends_of_readers]
        width[readers[edges]] = least
        through[readers[edges]] = np.where(least > -np.inf, edges, -1)
    reached, found, now = width[topology.outputs] > -np.inf, set[int](), topology.outputs.astype(np.int64)
    while len(now := np.unique(through[now][through[now] >= 0])):
        new = [edge for edge in now.tolist() if edge not in found]
        found.update(new)
        now = sources[np.array(new, np.int64)].astype(np.int64)
    return reached, np.array(sorted(found), np.int64)
