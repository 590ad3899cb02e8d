"""Pictures as arrays, against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import manifolds
from test_snapshots import structure_of

from sparse_dnm.config import ManifoldConfig
from sparse_dnm.report import views
from sparse_dnm.report.views import Fields, Grid, Image


@settings(max_examples=60, deadline=None)
@given(manifolds(dtype=torch.float32), st.integers(1, 40))
def test_cells_hold_the_strongest_edge(model, side):
    config, structure = model.config, structure_of(model)
    grid = Grid.of(config, side)
    assert max(grid.rows, grid.columns) <= side
    expected = np.zeros((grid.rows, grid.columns), np.float32)
    topology = structure.topology
    for i in range(config.n_neurons):
        for e in range(topology.indptr[i], topology.indptr[i + 1]):
            cell = (i - config.n_inputs) // grid.step, topology.indices[e] // grid.step
            if abs(structure.strengths[e]) > abs(expected[cell]):
                expected[cell] = structure.strengths[e]
    found = grid.cells(structure, config)
    assert np.array_equal(np.abs(found), np.abs(expected))  # of two as strong, either may be shown
    if grid.step == 1:
        assert np.array_equal(found, expected)


def test_a_grid_is_bounded_whatever_the_network():
    config = ManifoldConfig(n_neurons=1_000_000, n_inputs=1000, n_outputs=10, period=1.0)
    grid = Grid.of(config)
    assert grid.rows <= 512 >= grid.columns
    assert grid.step == 1954


@settings(max_examples=60, deadline=None)
@given(manifolds(dtype=torch.float32), st.integers(0, 5))
def test_receptive_fields_are_sums_over_paths(model, most):
    config, topology = model.config, model.topology
    strengths = model.strengths.detach().numpy().astype(float)
    weight = model.weight.detach().double().numpy()
    answer = np.zeros((config.n_neurons, config.n_inputs))  # of every neuron's sum to the inputs, in order
    for i in range(config.n_neurons):
        if i < config.n_inputs:
            answer[i, i] = 1
        for e in range(topology.indptr[i], topology.indptr[i + 1]):
            j = topology.indices[e]
            answer[i] += strengths[e] * weight[j] * answer[j]
    hidden, outputs = views.receptive_fields(model, most)
    assert np.array_equal(outputs.neurons, np.arange(config.n_sources, config.n_neurons))
    assert len(hidden.neurons) <= most
    assert topology.live[hidden.neurons].all()
    for fields in (hidden, outputs):
        np.testing.assert_allclose(fields.values, answer[fields.neurons], rtol=1e-5, atol=1e-6)


def test_strongest_and_saturation():
    model_strengths = np.array([0.1, -5.0, 2.0, -0.3, 2.5], np.float32)
    structure = views.Snapshot(0, None, model_strengths)
    assert views.strongest(structure, 3).tolist() == [1, 2, 4]
    assert views.strongest(structure, 9).tolist() == [0, 1, 2, 3, 4]
    assert views.saturation(structure) == pytest.approx(np.quantile(np.abs(model_strengths), 0.95))
    for empty in (np.zeros(0, np.float32), np.zeros(3, np.float32)):
        assert views.saturation(views.Snapshot(0, None, empty)) == 1.0


def test_heights_are_a_place_of_its_own_for_every_neuron():
    config = ManifoldConfig(n_neurons=300, n_inputs=40, n_outputs=7, period=1.0)
    found = views.heights(config)
    assert found.shape == (300,)
    assert ((found > 0) & (found < 1)).all()
    for part in (found[:40], found[40:-7], found[-7:]):
        assert np.diff(np.sort(part)).min() > 0.2 / len(part)


@pytest.mark.parametrize(
    ("n_inputs", "period", "channels", "expected"),
    [
        *((784, 28.0, 1, (28, 28, 1)), (64, 8.0, 1, (8, 8, 1)), (96, 12.0, 3, (8, 4, 3)), (6, 1.0, 1, None)),
        *((5, 5.0, 1, None), (10, 4.0, 1, None), (12, 4.5, 1, None), (12, 3.0, 3, None), (96, 12.0, 5, None)),
    ],
)
def test_only_images_have_a_shape(n_inputs, period, channels, expected):
    config = ManifoldConfig(n_neurons=n_inputs + 9, n_inputs=n_inputs, n_outputs=2, period=period)
    assert views.image_shape(config, channels) == expected


def test_mosaic():
    fields = Fields(np.array([4, 7, 9]), np.array([[1, 2, 3, -4], [0, 0, 0, 0], [2, 0, 0, 0]], np.float32))
    picture, tiles = views.mosaic(fields, Image(2, 2, 1), 2)
    nan = np.nan
    expected = [
        [0.25, 0.5, nan, 0, 0],
        [0.75, -1, nan, 0, 0],
        [nan, nan, nan, nan, nan],
        [1, 0, nan, nan, nan],
        [0, 0, nan, nan, nan],
    ]
    np.testing.assert_array_equal(picture, np.array(expected, np.float32))
    assert tiles.tolist() == [[4, 7], [9, -1]]
    overflown = Fields(np.array([1]), np.array([[1, np.inf, 0, 0]], np.float32))
    assert np.isnan(views.mosaic(overflown, Image(2, 2, 1), 1)[0]).all()
    assert np.isnan(views.mosaic(Fields(np.empty(0, int), np.empty((0, 4), np.float32)), Image(2, 2, 1), 2)[0]).all()


def test_channels_are_summed():
    fields = Fields(np.array([3]), np.array([[1, 2, 3, 0, -2, -10]], np.float32))  # one pixel and its right neighbour
    picture, _ = views.mosaic(fields, Image(1, 2, 3), 1)
    assert picture.tolist() == [[0.5, -1.0]]
