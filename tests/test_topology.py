"""Topology and Schedule against networkx and tests/naive.py."""

import naive
import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from strategies import dags

from sparse_dnm import Schedule, Topology
from sparse_dnm.engine.schedule import tile_width


def graph_of(edges, n):
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(map(tuple, edges.tolist()))
    return graph


@given(dags())
def test_levels_are_longest_paths(dag):
    edges, n = dag
    topology, graph = Topology.from_edges(edges, n), graph_of(edges, n)
    expected = {v: k for k, layer in enumerate(nx.topological_generations(graph)) for v in layer}
    assert topology.levels.tolist() == [expected[v] for v in range(n)]
    assert topology.depth == nx.dag_longest_path_length(graph)
    assert topology.levels.tolist() == naive.levels([(v, u) for u, v in edges.tolist()], n)
    assert [sorted(layer) for layer in nx.topological_generations(graph)] == [w.tolist() for w in topology.wavefronts]


@given(dags(), st.data())
def test_live_neurons_are_the_ancestors_of_outputs(dag, data):
    edges, n = dag
    outputs = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    topology, graph = Topology.from_edges(edges, n, outputs=outputs), graph_of(edges, n)
    expected = set(outputs).union(*(nx.ancestors(graph, v) for v in outputs))
    assert set(np.flatnonzero(topology.live)) == expected
    assert expected == naive.live([(v, u) for u, v in edges.tolist()], n, outputs)
    sources = [v for v in range(n) if graph.in_degree(v) == 0]
    assert np.count_nonzero(topology.live[topology.inputs]) == len(expected & set(sources))


@given(dags())
def test_schedule_runs_every_source_first_and_transposes(dag):
    edges, n = dag
    topology = Topology.from_edges(edges, n)
    schedule = Schedule(topology)
    place = {int(v): k for k, v in enumerate(schedule.executed)}
    assert set(place) == set(np.flatnonzero(topology.live))
    for u, v in edges.tolist():
        assert v not in place or place[u] < place[v]
    for level in range(topology.depth + 1):
        wave = schedule.order[schedule.waves[level] : schedule.waves[level + 1]]
        assert set(topology.levels[wave]) <= {level}
    readers = topology.edges()[:, 1]
    for j in range(n):
        mine = slice(topology.t_indptr[j], topology.t_indptr[j + 1])
        assert (topology.indices[topology.t_edge[mine]] == j).all()
        assert (readers[topology.t_edge[mine]] == topology.t_indices[mine]).all()
    assert len(topology.t_edge) == sum(bool(topology.live[v]) for _, v in edges.tolist())


@given(dags())
def test_conversions_agree(dag):
    edges, n = dag
    topology = Topology.from_edges(edges, n)
    matrix = sparse.coo_array((np.ones(len(edges)), (edges[:, 1], edges[:, 0])), shape=(n, n))
    for other in (
        Topology.from_scipy(matrix.tocsr()),
        Topology.from_scipy(sparse.csc_matrix(matrix)),
        Topology.from_scipy(topology.to_scipy()),
        Topology.from_networkx(graph_of(edges, n)),
        Topology.from_networkx(topology.to_networkx()),
        Topology.from_edges(topology.edges(), n),
    ):
        for name in ("indptr", "indices", "inputs", "outputs", "levels", "live"):
            np.testing.assert_array_equal(getattr(topology, name), getattr(other, name))


def test_networkx_nodes_may_be_anything():
    graph = nx.DiGraph([("a", "c"), ("b", "c"), ("c", "d")])
    topology = Topology.from_networkx(graph, inputs=["b", "a"], outputs=["d"])
    assert topology.inputs.tolist() == [2, 0]
    assert topology.outputs.tolist() == [3]


@pytest.mark.parametrize(
    ("edges", "options", "words"),
    [
        ([(0, 1), (1, 2), (2, 0)], {}, "closes a cycle"),
        ([(3, 4), (1, 1)], {}, "edge 1 -> 1 closes a cycle"),
        ([(0, 1), (2, 7)], {"n_neurons": 5}, r"edge 2 -> 7 is out of range; neurons are 0 .. 4"),
        ([(0, 1), (-1, 1)], {}, r"edge -1 -> 1 is out of range"),
        ([(0, 1), (2, 3), (0, 1)], {}, "edge 0 -> 1 is there twice"),
        ([(0, 1)], {"inputs": [1]}, "input neuron 1 reads neuron 0"),
        ([(0, 1)], {"outputs": [4]}, "outputs names neuron 4"),
        ([(0, 1)], {"outputs": []}, "non-empty"),
        ([(0, 1)], {"inputs": [0, 0]}, "twice"),
        ([(0.5, 1)], {}, "integer pairs"),
        ([(0, 1, 2)], {}, r"\(1, 3\)"),
        ([(0, 1)], {"n_neurons": -3}, "n_neurons=-3"),
        ([(0, 1)], {"n_neurons": 2.0}, r"n_neurons=2\.0 must be an integer"),
        ([(0, 1), (1,)], {}, r"edges\[1\]=\(1,\) must be"),
        ([(0, 1), 2], {}, r"edges\[1\]=2 must be"),
        (np.array([[0, 2**63]], np.uint64), {"n_neurons": 2}, "edge 0 -> 9223372036854775808 is out of range"),
    ],
)
def test_bad_graphs_are_named(edges, options, words):
    with pytest.raises(ValueError, match=words):
        Topology.from_edges(edges, **options)


@given(dags(), st.data())
def test_the_edge_named_in_a_cycle_closes_one(dag, data):
    edges, n = dag
    pairs = [tuple(e) for e in edges.tolist()]
    if not pairs:
        return
    graph = graph_of(edges, n)
    u = data.draw(st.sampled_from(sorted({u for u, _ in pairs})))
    v = data.draw(st.sampled_from(sorted(nx.descendants(graph, u))))
    with pytest.raises(ValueError, match="closes a cycle") as error:
        Topology.from_edges([*pairs, (v, u)], n)
    a, b = map(int, str(error.value).split(" closes")[0].removeprefix("edge ").split(" -> "))
    graph.add_edge(v, u)
    assert graph.has_edge(a, b)
    assert nx.has_path(graph, b, a)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_edges_of_any_integer_dtype(dtype):
    topology = Topology.from_edges(np.array([[0, 1], [1, 2]], dtype))
    assert topology.edges().tolist() == [[0, 1], [1, 2]]
    assert Topology.from_edges(np.array([[0, 1]], dtype), n_neurons=np.int64(300)).n_neurons == 300


def test_wrong_objects_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\).*square"):
        Topology.from_scipy(sparse.csr_array(np.ones((2, 3))))
    with pytest.raises(ValueError, match="DiGraph"):
        Topology.from_networkx(nx.path_graph(3))
    with pytest.raises(ValueError, match=r"'z'.*not a node"):
        Topology.from_networkx(nx.DiGraph([("a", "b")]), inputs=["z"])
    with pytest.raises(ValueError, match=r"inputs='a' must be a list of nodes; one node is \['a'\]"):
        Topology.from_networkx(nx.DiGraph([("a", "b")]), inputs="a")
    with pytest.raises(ValueError, match=r"values of shape \(2,\)"):
        Topology.from_edges([(0, 1)]).to_scipy(torch.ones(2))


@given(st.integers(1, 5000))
def test_tiles_hold_the_batch_with_little_waste(batch):
    width = tile_width(batch)
    tiles = -(-batch // width)
    assert width in (1, 2, 4, 8, 16, 32, 48, 64)
    assert tiles * width - batch < 16 * tiles
