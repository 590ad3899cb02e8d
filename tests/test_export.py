"""Networks as they are shipped: the normal form that every format is written from."""

import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import manifolds, sparse_dags

from sparse_dnm import SparseDAG, Topology
from sparse_dnm.engine.device import ACTIVATION_CODES
from sparse_dnm.export import Folded


def normal(n, columns, seed=0):
    return torch.randn(n, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_form(folded):
    """What the docstring of Folded promises."""
    k, first_output = len(folded.columns), folded.n_cells - folded.n_outputs
    rows = np.repeat(np.arange(k, folded.n_cells), np.diff(folded.indptr))
    assert (np.diff(folded.columns) >= 0).all()
    assert folded.level_starts[0] == k
    assert folded.level_starts[-2:].tolist() == [first_output, folded.n_cells]
    level = np.searchsorted(folded.level_starts, np.arange(folded.n_cells), side="right")
    assert (level[folded.indices] < level[rows]).all()
    assert set(range(first_output)) == set(folded.indices.tolist()), "a cell that nobody reads"
    assert (np.diff(folded.indptr)[: first_output - k] > 0).all(), "a constant cell"
    assert (np.diff(folded.indices)[np.diff(rows) == 0] > 0).all()
    assert (folded.weights != 0).all()
    identity = (folded.kind == ACTIVATION_CODES["identity"][0]) & (folded.slope == 1)
    assert identity[first_output:].all()
    passed = (folded.scale == 1) & (folded.shift == 0)
    assert passed[identity[:k]].all()


@given(model=sparse_dags())
def test_the_folded_network_gives_the_outputs_of_any_dag(model):
    x = normal(5, model.n_inputs)
    folded = Folded.of(model)
    check_form(folded)
    with torch.no_grad():
        np.testing.assert_allclose(folded.outputs(x.numpy()), model(x).numpy(), rtol=1e-9, atol=1e-9)


@given(model=manifolds())
def test_the_folded_network_gives_the_outputs_of_a_manifold(model):
    x = normal(5, model.config.n_inputs)
    dag = model.to_dag()
    folded = Folded.of(dag)
    check_form(folded)
    assert folded.n_edges <= dag.topology.n_edges + dag.topology.n_neurons
    with torch.no_grad():
        np.testing.assert_allclose(folded.outputs(x.numpy()), model(x).numpy(), rtol=1e-9, atol=1e-9)


def dag(edges, n, **options):
    return SparseDAG(Topology.from_edges(edges, n), **{"values": 2.0, "dtype": torch.float64, "threads": 1, **options})


def test_a_neuron_that_is_read_by_its_sum_and_by_its_message_has_two_cells():
    edges = [(0, 3), (1, 3), (2, 3), (3, 4), (3, 5), (4, 6), (5, 6), (3, 6)]
    model = dag(edges, 7, activation="tanh", linear_outputs=True)
    folded = Folded.of(model)
    assert folded.levels == [range(3, 4), range(4, 5), range(5, 6)]
    assert folded.indptr.tolist() == [0, 3, 4, 6]
    assert folded.weights.tolist() == [2, 2, 2, 1, 2, 8]  # neurons 4 and 5, which the output reads, are sums


def test_sums_without_activation_dissolve_and_constants_become_biases():
    edges = [(0, 2), (1, 2), (2, 3), (4, 3)]
    topology = Topology.from_edges(edges, 5, [0, 1], [3])
    model = SparseDAG(topology, [2.0, 3.0, 5.0, 7.0], [0.5, 0.25, 4.0], activation="identity", dtype=torch.float64)
    folded = Folded.of(model)  # neuron 4 has no source: it is its bias
    assert (folded.n_cells, folded.weights.tolist(), folded.bias.tolist()) == (
        3,
        [10.0, 15.0],
        [5 * 0.5 + 7 * 4 + 0.25],
    )


def test_what_reaches_no_output_is_left_out_with_its_columns():
    edges = [(0, 3), (1, 3), (3, 4), (2, 5), (2, 6)]
    model = SparseDAG(Topology.from_edges(edges, 7, outputs=[4, 5]), [0.0, 2.0, 3.0, 1.0, 1.0], threads=1)
    folded = Folded.of(model)
    assert folded.columns.tolist() == [1, 2]
    assert folded.n_edges == 3


def test_the_axes_before_the_inputs_stay():
    model = dag([(0, 1)], 2)
    assert Folded.of(model).outputs(np.ones((3, 4, 1))).shape == (3, 4, 1)
    with pytest.raises(ValueError, match="n_inputs=1"):
        Folded.of(model).outputs(np.ones((3, 2)))


def test_parameters_that_are_not_finite_are_refused():
    model = dag([(0, 1)], 2)
    with torch.no_grad():
        model.edge_weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"edge_weight\[0\] is nan"):
        Folded.of(model)
