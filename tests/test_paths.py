"""Paths that a cut must leave, against networkx."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import MANY, dags

from sparse_dnm import DynamicManifold, ManifoldConfig, Topology
from sparse_dnm.train.paths import needed, widest
from sparse_dnm.train.trim import drop_weakest, keep_edges


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


def with_weak_outputs(edges):
    """A model of digits; the edges of its last three outputs are just above the cutoff, and so the weakest."""
    config = ManifoldConfig.preset("digits", edges=edges, **MANY[edges])
    model = DynamicManifold(config, torch.Generator().manual_seed(0), threads=1)
    values, readers = model.find().host_values, model.topology.readers
    active = np.flatnonzero(np.abs(values.d) > values.c)
    last = active[readers >= config.n_neurons - 3]
    with torch.no_grad():  # just above the cutoff
        slots = torch.from_numpy(model.candidates.slots[last])
        model.edge_weight[slots] *= torch.from_numpy(1.0001 * values.c / np.abs(values.d[last])).to(model.edge_weight)
    return model


@pytest.mark.parametrize("edges", ["free", "free-closeness"])
def test_a_number_of_edges_leaves_a_path_to_an_output_whose_edges_are_the_least_close(edges):
    model = with_weak_outputs(edges)
    before, n_edges = reached(model), model.topology.n_edges
    assert before.all()
    for share in (0.6, 0.2):
        assert keep_edges(model, int(share * n_edges)) == int(share * n_edges)
        assert reached(model).all()


def reached(model):
    """Which outputs of a model inputs reach."""
    topology = model.find().topology
    return widest(topology, np.zeros(topology.n_edges))[0]


@pytest.mark.parametrize("edges", ["free", "free-closeness"])
def test_the_weakest_edges_go_but_for_those_that_an_output_needs(edges):
    model = with_weak_outputs(edges)
    before = model.find().n_edges
    drop_weakest(model, before // 2)
    assert reached(model).all()
    assert before // 2 <= model.topology.n_edges <= before - before // 2 + 20
