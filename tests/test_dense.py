"""DenseManifold against the oracle: outputs, gradients, state and errors."""

import math

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dnm.config import ACTIVATIONS, EDGE_MODES, OMEGA_IN_CLOSENESS, OUTPUTS, ManifoldConfig
from sparse_dnm.model.dense import ACTIVATION_FUNCTIONS, METHODS, DenseManifold, wavefronts
from sparse_dnm.model.init import initial_scalars
from sparse_dnm.model.manifold import DynamicManifold


def small(**changes):
    values = {
        "n_neurons": 14,
        "n_inputs": 4,
        "n_outputs": 3,
        "period": 4.0,
        "alpha": (1.0, 3.0),
        "beta": (0.0, 0.3),
        "sigma": (4.0, 2.0),
        "mu": (0.0, 3.0),
        "omega": (0.0, 1.0),
        "cutoff": -3.0,
    }
    return ManifoldConfig(**{**values, **changes})


def hand_made_state(config, seed, dtype=torch.float64, share=0.6, chosen=None):
    """A DynamicManifold's state, its candidates (if any) drawn at random or those for which chosen(i, j)."""
    generator = torch.Generator().manual_seed(seed)
    state = initial_scalars(config, generator, dtype)
    n, a, o = config.n_neurons, config.n_inputs, config.n_outputs
    rng = np.random.default_rng(seed)
    chosen = chosen or (lambda i, j: rng.random() < share)
    rows = [[j for j in range(min(i, n - o)) if chosen(i, j)] for i in range(a, n)]
    state["candidate_indptr"] = torch.tensor(np.cumsum([0, *map(len, rows)]), dtype=torch.int64)
    state["candidate_indices"] = torch.tensor([j for row in rows for j in row], dtype=torch.int32)
    if config.edges != "closeness":
        mean, std = config.omega
        state["edge_weight"] = mean + std * torch.randn(sum(map(len, rows)), generator=generator, dtype=dtype)
    return state


def build(config, seed=0, method="levels", dtype=torch.float64):
    return DenseManifold(config, dtype=dtype, method=method, state=hand_made_state(config, seed, dtype))


def arrays(model):
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def oracle_closeness(config, values):
    n, a, o = config.n_neurons, config.n_inputs, config.n_outputs
    return naive.closeness_of(config.edges, n, a, o, config.period, values, oracle_omega(config, values))


def oracle_omega(config, values):
    n, a = config.n_neurons, config.n_inputs
    omega = np.zeros((n, n))
    indptr, indices = values["candidate_indptr"].astype(int), values["candidate_indices"].astype(int)
    for r in range(n - a if config.edges != "closeness" else 0):
        for k in range(indptr[r], indptr[r + 1]):
            omega[a + r, indices[k]] = values["edge_weight"][k]
    return omega


def oracle_strength(config, values):
    d, omega = oracle_closeness(config, values), oracle_omega(config, values)
    return naive.strength_of(config.edges, d, values["cutoff"], omega)


def oracle(config, values, x):
    D = oracle_strength(config, values)
    a, o = config.n_inputs, config.n_outputs
    return naive.forward_manifold(x, D, values["weight"], values["bias"], a, o, config.activation, config.output)


def assert_close(actual, expected, relative):
    """Equal to ``relative`` of the largest expected magnitude (at least 1)."""
    actual = actual.detach().double().numpy()
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=relative * np.abs(expected).max(initial=1.0))


@st.composite
def configs(draw):
    n_inputs, n_hidden, n_outputs = draw(st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 4)))
    return small(
        n_neurons=n_inputs + n_hidden + n_outputs,
        n_inputs=n_inputs,
        n_outputs=n_outputs,
        period=draw(st.floats(1.0, 9.0)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        edges=draw(st.sampled_from(EDGE_MODES)),
        output=draw(st.sampled_from(OUTPUTS)),
        alpha=(draw(st.floats(-3, 3)), 3.0),
        sigma=(draw(st.floats(0.0, 9.0)), 2.0),
        cutoff=draw(st.floats(-4.0, 2.0)),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@settings(deadline=None, max_examples=150)
@given(config=configs(), batch=st.sampled_from([1, 3, 65]), seed=st.integers(0, 2**16))
def test_outputs_and_strengths_equal_the_oracle(method, dtype, relative, config, batch, seed):
    model = build(config, seed, method, dtype)
    x = torch.randn(batch, config.n_inputs, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    values = arrays(model)
    D = oracle_strength(config, values)
    assert_close(model.strengths_matrix(), D[config.n_inputs :, : config.n_sources], relative)
    assert_close(model(x), oracle(config, values, x.double().numpy()), relative)
    assert abs(model.density - naive.sparsity(D, config.possible_edges)) <= (dtype == torch.float32) * 0.02


@settings(deadline=None, max_examples=150)
@given(config=configs(), seed=st.integers(0, 2**16))
def test_both_methods_have_the_same_gradients(config, seed):
    x = torch.randn(5, config.n_inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = []
    for method in METHODS:
        model = build(config, seed, method)
        model(x).sin().sum().backward()
        zero = torch.zeros(())
        found.append({k: (zero.expand_as(p) if p.grad is None else p.grad) for k, p in model.named_parameters()})
    for name, expected in found[1].items():
        assert_close(found[0][name], expected.numpy(), 1e-8)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("edges", EDGE_MODES)
def test_gradients_equal_finite_differences_of_the_oracle(edges, activation, output):
    config = small(edges=edges, activation=activation, output=output)
    rng = np.random.default_rng(5)
    x, pull = rng.normal(size=(2, 4)), rng.normal(size=(2, 3))
    values = arrays(build(config, seed=1))
    models = [build(config, 1, method) for method in METHODS]
    inputs = [torch.tensor(x, requires_grad=True) for _ in METHODS]
    for model, own in zip(models, inputs, strict=True):
        (model(own) * torch.tensor(pull)).sum().backward()
    for name, _ in models[0].named_parameters():

        def loss(v, name=name):
            return (oracle(config, {**values, name: v}, x) * pull).sum()

        expected = naive.gradient(loss, values[name])
        assert np.abs(expected).max() > 0, f"{name} is not exercised"
        for model in models:
            assert_close(model.get_parameter(name).grad, expected, 1e-6)
    expected = naive.gradient(lambda v: (oracle(config, values, v) * pull).sum(), x)
    for own in inputs:
        assert_close(own.grad, expected, 1e-6)


@settings(deadline=None)
@given(n=st.integers(1, 14), n_outputs=st.integers(1, 3), share=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_wavefronts_are_the_levels_of_the_live_neurons(n, n_outputs, share, seed):
    reads = np.tril(np.random.default_rng(seed).random((n + n_outputs, n)) < share, -1)
    edges, outputs = naive.edges_of(reads), range(n, n + n_outputs)
    level, live = naive.levels(edges, n + n_outputs), naive.live(edges, n + n_outputs, outputs)
    waves = wavefronts(reads)
    assert sorted(np.concatenate([[], *waves])) == sorted(live - set(outputs))
    for k, wave in enumerate(waves):
        assert len(wave)
        assert {level[i] for i in wave} == {k}


@pytest.mark.parametrize("method", METHODS)
def test_a_chain_computes_one_neuron_per_level(method):
    config = small(edges="free", alpha=(5.0, 0.0), sigma=(50.0, 0.0), omega=(3.0, 0.0))
    state = hand_made_state(config, 0, chosen=lambda i, j: j == i - 1 or (i > 11 and j == 10))
    model = DenseManifold(config, dtype=torch.float64, method=method, state=state)
    assert model.density == 10 / config.possible_edges
    x = torch.randn(65, 4, dtype=torch.float64)
    assert_close(model(x), oracle(config, arrays(model), x.numpy()), 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_without_edges_outputs_and_gradients_are_zero(method):
    model = build(small(cutoff=20.0), method=method)
    y = model(torch.ones(2, 4, dtype=torch.float64))
    y.sum().backward()
    assert y.shape == (2, 3)
    assert not y.any()
    assert model.density == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(("preset", "low", "high"), [("original-mnist", 0.09, 0.11), ("original-toy", 0.18, 0.24)])
def test_the_originals_densities_at_start(preset, low, high):
    config = ManifoldConfig.preset(preset)
    found = [DenseManifold(config, torch.Generator().manual_seed(seed)).density for seed in range(3)]
    assert low < np.mean(found) < high, found


def test_initial_scalars_are_drawn_in_the_documented_order():
    config = small()
    drawn = initial_scalars(config, torch.Generator().manual_seed(3), torch.float64)
    generator = torch.Generator().manual_seed(3)
    for name in ("alpha", "beta", "gamma", "theta", "phi", "sigma", "mu", "weight", "bias"):
        mean, std = getattr(config, name)
        size = 11 if name in ("weight", "bias") else 10
        again = mean + std * torch.randn(size, generator=generator, dtype=torch.float64)
        assert torch.equal(drawn.pop(name), again)
    assert drawn == {"cutoff": torch.tensor(-3.0, dtype=torch.float64)}
    assert set(initial_scalars(small(edges="free"), None, torch.float32)) == {
        *("alpha", "sigma", "mu", "weight", "bias", "cutoff")
    }


class Manifold(torch.nn.Module):
    """What from_manifold asks of a DynamicManifold, private entries included."""

    topology = None  # asking for it finds the candidates; these are given

    def __init__(self, config, state):
        super().__init__()
        self.config = config
        for name, value in {**state, "_private": torch.ones(3), "reference": torch.ones(3)}.items():
            self.register_buffer(name, value)


@pytest.mark.parametrize("edges", EDGE_MODES)
def test_from_manifold_copies_values_and_leaves_the_global_generator_alone(edges):
    config = small(edges=edges)
    state = hand_made_state(config, 2)
    before = torch.get_rng_state()
    model = DenseManifold.from_manifold(Manifold(config, state), method="neurons")
    assert torch.equal(before, torch.get_rng_state())
    assert model.method == "neurons"
    assert set(model.state_dict()) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name for name, _ in model.named_parameters()} == {k for k in state if "candidate" not in k}
    model.weight.data.zero_()
    assert state["weight"].all()


@pytest.mark.parametrize("edges", EDGE_MODES)
def test_a_state_with_other_candidates_loads(edges):
    config = small(edges=edges)
    model = build(config, 1)
    x = torch.randn(2, 4, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    model(x).sum().backward()
    other = Manifold(config, hand_made_state(config, 2, share=0.9))
    model.load_state_dict(other.state_dict())
    assert dict(model.named_parameters()) == parameters  # the same objects: an optimiser keeps them
    assert torch.equal(model(x), DenseManifold.from_manifold(other)(x))
    model(x).sum().backward()


def test_a_foreign_state_is_refused():
    model = build(small(edges="free"))
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="nonsense"):
        model.load_state_dict({**state, "nonsense": torch.ones(1)})
    with pytest.raises(RuntimeError, match="the three must agree"):
        model.load_state_dict({**state, "edge_weight": torch.ones(2)})
    with pytest.raises(RuntimeError, match="size mismatch for alpha"):
        model.load_state_dict({**state, "alpha": torch.ones(2)})
    with pytest.raises(RuntimeError, match=r"Missing key.*cutoff"):
        model.load_state_dict({k: v for k, v in state.items() if k != "cutoff"})


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="from_manifold"):
        DenseManifold(small(edges="free"))
    with pytest.raises(ValueError, match=r"method='fast'.*levels, neurons"):
        DenseManifold(small(), method="fast")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 5), r"\(2, 5\).*n_inputs=4"),
        (torch.ones(()), r"x has shape \(\)"),
        (torch.ones(2, 4, 1), r"\(2, 4, 1\)"),
        (torch.ones(2, 4, dtype=torch.int64), "torch.int64.*not floating"),
        (torch.ones(2, 4, dtype=torch.bool), "torch.bool.*not floating"),
        (torch.ones(2, 4, dtype=torch.complex64), "torch.complex64.*not floating"),
        (torch.ones(2, 4, dtype=torch.float64), r"float64 but the model has torch.float32.*x\.to"),
        (np.ones((2, 4), dtype=np.float32), "ndarray.*as_tensor"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_wrong_input_is_refused(method, x, message):
    with pytest.raises(ValueError, match=message):
        DenseManifold(small(), method=method)(x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("leading", [(), (0,), (2, 3)])
def test_inputs_may_have_any_leading_dimensions(method, leading):
    model, x = build(small(), method=method), torch.randn(*leading, 4, dtype=torch.float64)
    expected = [model(row[None]) for row in x.reshape(-1, 4)]
    found = model(x)
    assert found.shape == (*leading, 3)
    if expected:
        torch.testing.assert_close(found.reshape(-1, 3), torch.cat(expected), rtol=1e-12, atol=1e-12)


def test_every_activation_is_there():
    assert set(ACTIVATION_FUNCTIONS) == set(ACTIVATIONS) == set(naive.ACTIVATIONS)
    assert naive.sigmoid(-800.0) == 0.0
    assert naive.softplus(800.0) == 800.0
    assert math.isclose(naive.softplus(0.0), math.log(2))


def test_the_oracle_of_any_dag():
    weights = np.zeros((5, 5))
    weights[1, 3], weights[0, 1], weights[0, 3], weights[2, 4] = 2.0, -1.0, 3.0, 1.0  # 3 -> 1 -> 0, 4 -> 2
    bias = np.array([0.5, -1.0, 0.0, 9.0, -10.0])
    y = naive.forward_dag(np.array([[1.0], [-1.0]]), weights, bias, [3], [0, 2, 1], "leaky_relu")
    np.testing.assert_allclose(y, [[2.5, -2.0, 1.0], [-1.9, -2.0, -3.0]])
    weights[3, 0] = 1.0
    with pytest.raises(ValueError, match="cycle"):
        naive.forward_dag(np.ones((1, 1)), weights, bias, [4], [0])


@pytest.mark.parametrize("edges", OMEGA_IN_CLOSENESS)
def test_slots_become_the_order_of_the_candidates(edges):
    config = small(edges=edges, omega=(0.0, 2.0), sigma=(0.5, 0.2))
    model = DynamicManifold(config, torch.Generator().manual_seed(0), torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        for shift in (3.0, -4.0, 2.0):
            model.mu.add_(shift)
            expected = model(x)
    slots = model.candidates.slots
    assert (np.diff(slots) < 0).any()
    dense = DenseManifold.from_manifold(model)
    assert torch.equal(dense.edge_weight, model.edge_weight[slots])
    assert torch.equal(dense.candidate_indices, torch.from_numpy(model.candidates.indices))
    torch.testing.assert_close(dense(x), expected, rtol=1e-10, atol=1e-10)
