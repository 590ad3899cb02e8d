"""The integers of networks in int8: multipliers, knees of inputs, biases."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_dnm import SparseDAG, Topology
from sparse_dnm.export import Folded, to_c
from sparse_dnm.lowering import codes
from sparse_dnm.lowering.int8 import Quantized
from sparse_dnm.lowering.int8_inputs import by_factors, by_knees
from sparse_dnm.lowering.layout import Layout
from sparse_dnm.lowering.network import LEAKY, TANH

MULTIPLIERS = [codes.ratio_of(m) for m in range(256)]


@given(ratio=st.floats(codes.LEAST_RATIO, codes.MOST_RATIO))
def test_multipliers_below_and_above_are_the_nearest(ratio):
    below, above = codes.multiplier_below(ratio), codes.multiplier_above(ratio)
    assert codes.ratio_of(below) == max(one for one in MULTIPLIERS if one <= ratio)
    assert codes.ratio_of(above) == min(one for one in MULTIPLIERS if one >= ratio)


@given(total=st.integers(-(1 << 26), 1 << 26), multiplier=st.integers(0, 255))
def test_a_multiplier_multiplies_by_its_ratio(total, multiplier):
    exact = total * codes.ratio_of(multiplier)
    assert exact - 1 < int(codes.scaled(np.int64(total), np.int64(multiplier))) <= exact


def leaky(z, slope):
    return np.where(z > 0, z, slope * z)


@given(
    factor=st.floats(-2, 2).filter(lambda v: v == 0 or abs(v) > 1e-3),
    shift=st.floats(-300, 300),
    slope=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_a_leaky_relu_of_an_input_needs_its_knee_alone(factor, shift, slope):
    x = np.arange(-128, 128)
    beside = (0.5, 10.0)  # a cell with a knee
    functions = [(LEAKY, slope), (LEAKY, 0.2)]
    cells = by_knees(functions, np.array([factor, beside[0]]), np.array([shift, beside[1]]))
    found = cells.codes(np.stack([x, x], 1), {}, 6)
    assert (found >= -128).all()
    assert (found <= 127).all()
    values = found * cells.scale + cells.origin
    for c, (a, b, s) in enumerate([(factor, shift, slope), (*beside, 0.2)]):
        np.testing.assert_allclose(values[:, c], leaky(a * x + b, s), atol=1.01 * abs(a) + 1e-9)


def test_other_inputs_have_factors():
    x, curve = np.arange(-128, 128), codes.Curve.of(TANH, 3 / 128)
    functions, factor, shift = [(TANH, 0.0), (LEAKY, -0.5)], np.array([0.02, -0.1]), np.array([0.3, 4.0])
    z = factor * x[:, None] + shift
    expected = np.stack([np.tanh(z[:, 0]), leaky(z[:, 1], -0.5)], 1)
    cells = by_factors(functions, factor, shift, expected.min(0), expected.max(0), {(TANH, 0.0): curve}, 6)
    values = cells.codes(np.stack([x, x], 1), {(TANH, 0.0): curve}, 6) * cells.scale + cells.origin
    assert (np.abs(values - expected) <= 1.1 * cells.scale).all()


def network(activation, weight=1.0):
    """Thirty inputs, two layers of neurons, three outputs."""
    rng = np.random.default_rng(0)
    sizes = np.cumsum([0, 30, 20, 12, 3])
    edges = [
        (i, j)
        for a, b, c in zip(sizes, sizes[1:], sizes[2:], strict=False)
        for i in range(a, b)
        for j in range(b, c)
        if rng.random() < 0.6
    ]
    topology = Topology.from_edges(edges, 65, [*range(30)], [*range(62, 65)])
    options = {"weight": weight, "input_neurons": True, "generator": torch.Generator().manual_seed(0)}
    model = SparseDAG(topology, activation=activation, **options)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(rng.normal(0, 1, model.weight.shape)))
        model.bias.copy_(torch.from_numpy(rng.normal(0, 0.5, model.bias.shape)))
    return model


@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "tanh", "silu", "leaky_relu(-0.5)"])
def test_outputs_have_the_mean_of_the_network_and_are_near(activation):
    model, x = network(activation), np.random.default_rng(1).normal(size=(500, 30))
    folded = Folded.of(model)
    quantized = Quantized(folded, Layout.of(folded, "int8"), x)
    assert (quantized.inputs.by_knee, quantized.shared) == ((True, True) if activation[-4:] == "relu" else (False,) * 2)
    found, expected = quantized.outputs(quantized.codes(x)) * quantized.unit, folded.outputs(x)
    assert np.sqrt(np.square(found - expected).mean()) < 0.03 * expected.std()
    np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=0.005 * expected.std())


def test_an_input_takes_a_byte_and_a_row_six_and_the_edges_two_each():
    model, x = network("relu"), np.random.default_rng(1).normal(size=(50, 30))
    program, folded = to_c(model, dtype="int8", samples=x), Folded.of(model)
    rows = 32 * 6 + 3 * 5  # bias 2, multiplier, zero, place of the first source, which of them reads inputs
    assert program.constant_bytes <= 30 * 2 + rows + 2 * folded.n_edges + 8
    assert "int64_t" not in program.files["model.c"]


def test_large_weights_that_cancel_before_a_curve_fit():
    topology = Topology.from_edges([(0, 2), (1, 2), (2, 3)], 4, [0, 1], [3])
    x = np.ones((20, 2)) * np.linspace(-1, 1, 20)[:, None]
    for weight in (1e1, 1e3):  # x0 - x1, which is 0
        model = SparseDAG(topology, np.array([weight, -weight, 1.0]), activation="tanh", linear_outputs=True)
        folded = Folded.of(model)
        quantized = Quantized(folded, Layout.of(folded, "int8"), x)
        assert np.abs(quantized.weights).max() <= 127
        np.testing.assert_allclose(quantized.outputs(quantized.codes(x)) * quantized.unit, 0, atol=1e-2)
