"""The network of the Sparse DNN Graph Challenge that bench.spdnn runs is the one that the papers describe."""

import math

import numpy as np

from bench.radixnet import SMALLEST, Challenge, blots, layer, topology


def test_every_neuron_of_the_challenge_has_32_edges_in_and_32_out():
    for k in range(len(SMALLEST.radices)):
        pattern = layer(SMALLEST, k) != 0
        assert pattern.shape == (1024, 1024)
        np.testing.assert_array_equal(pattern.sum(axis=0), 32)
        np.testing.assert_array_equal(pattern.sum(axis=1), 32)


def test_all_pairs_of_input_and_output_are_joined_by_equally_many_paths():
    paths = np.eye(SMALLEST.width)
    for k in range(len(SMALLEST.radices)):
        paths = (layer(SMALLEST, k) != 0).astype(np.float64) @ paths
    np.testing.assert_array_equal(paths, 16**5)


def test_radices_may_be_mixed():
    network = Challenge((2, 3, 4), 1, 3, -0.3)
    pattern = [(layer(network, k) != 0).toarray().astype(int) for k in range(3)]
    assert [set(p.sum(axis=1)) for p in pattern] == [{2}, {3}, {4}]
    np.testing.assert_array_equal(pattern[2] @ pattern[1] @ pattern[0], 1)


def test_the_dag_has_the_layers_one_after_the_other():
    network = Challenge((2, 3), 2, 5, -0.3)
    dag = topology(network)
    assert (dag.n_neurons, dag.n_edges, dag.depth) == (6 * 12, network.edges, 5)
    matrix = dag.to_scipy(np.full(dag.n_edges, 1 / 16, np.float32))
    for k in range(5):
        block = matrix[12 * (k + 1) : 12 * (k + 2), 12 * k : 12 * (k + 1)]
        np.testing.assert_array_equal(block.toarray(), layer(network, k).toarray())


def test_the_challenge_has_as_many_edges_as_published():
    assert SMALLEST.edges == 1024 * 32 * 120
    assert math.prod(SMALLEST.radices) * SMALLEST.block == SMALLEST.width


def test_images_are_of_0_and_1_and_about_a_tenth_is_1():
    images = blots(1000, 32, np.random.default_rng(0))
    assert set(np.unique(images)) == {0.0, 1.0}
    assert 0.07 < images.mean() < 0.14
