"""Paths that a cut must leave, against networkx."""

import networkx as nx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import dags

from sparse_dnm import Topology
from sparse_dnm.train.paths import needed, widest


def connects(topology, edges, output):
    """Whether those edges lead from an input to ``output``."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(topology.n_neurons))
    graph.add_edges_from(topology.edges()[edges].tolist())
    return any(nx.has_path(graph, source, output) for source in topology.inputs.tolist())


@given(drawn=dags(), seed=st.integers(0, 2**32))
def test_each_output_that_is_reached_keeps_the_path_of_the_largest_least_value(drawn, seed):
    edges, n = drawn
    rng = np.random.default_rng(seed)
    inputs, outputs = np.setdiff1d(np.arange(n), edges[:, 1]), rng.permutation(n)[: rng.integers(1, n + 1)]
    inputs = rng.permutation(inputs)[: rng.integers(1, len(inputs) + 1)]  # the others are constants
    topology = Topology.from_edges(edges, n, np.sort(inputs).tolist(), outputs.tolist())
    values = rng.integers(0, 5, topology.n_edges).astype(np.float64)  # with ties
    reached, kept = widest(topology, values)
    everything = np.arange(topology.n_edges)
    assert (np.diff(kept) > 0).all()
    for output, found in zip(topology.outputs.tolist(), reached.tolist(), strict=True):
        assert found == connects(topology, everything, output)
        if found:
            least = max(v for v in [*values.tolist(), np.inf] if connects(topology, everything[values >= v], output))
            assert connects(topology, kept[values[kept] >= least], output)


@given(drawn=dags(), seed=st.integers(0, 2**32))
def test_what_is_needed_of_the_edges_that_go_is_on_paths_and_is_enough(drawn, seed):
    edges, n = drawn
    rng = np.random.default_rng(seed)
    inputs, outputs = np.setdiff1d(np.arange(n), edges[:, 1]), rng.permutation(n)[: rng.integers(1, n + 1)]
    topology = Topology.from_edges(edges, n, inputs.tolist(), outputs.tolist())
    gone = np.flatnonzero(rng.random(topology.n_edges) < rng.random())
    found = needed(topology, gone, rng.normal(size=topology.n_edges))
    stays = np.setdiff1d(np.arange(topology.n_edges), np.setdiff1d(gone, found))
    assert np.isin(found, gone).all()
    for output in topology.outputs.tolist():
        assert connects(topology, stays, output) == connects(topology, np.arange(topology.n_edges), output)
    kept = np.setdiff1d(np.arange(topology.n_edges), gone)
    if all(connects(topology, kept, output) for output in topology.outputs.tolist()):
        assert len(found) == 0
