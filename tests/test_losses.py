"""Flow and the sparsity proxy against tests/naive.py, values and gradients."""

import naive
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from strategies import dense_omega, manifolds, raw_scalars, rng_input

from sparse_dnm import DynamicManifold, ManifoldConfig, SparsityProxy, flow_loss

TAU = 0.04


def naive_candidates(model):
    """bool (n, n): the pairs above the threshold at the model's scalars, and among them candidates alone."""
    config = model.config
    head = (config.n_neurons, config.n_inputs, config.n_outputs)
    c, omega = naive.sigmoid(model.cutoff.item()), dense_omega(model)
    now = naive.closeness_of(config.edges, *head, config.period, raw_scalars(model), omega)
    inside = np.abs(np.nan_to_num(now)) > max(c - config.skin, c / 2)
    return inside & (omega != 0) if config.edges != "closeness" else inside


def naive_terms(config, inside, raw, omega, cutoff):
    """(flow, proxy's soft count) of the oracle for the given scalars."""
    head = (config.n_neurons, config.n_inputs, config.n_outputs)
    d = naive.closeness_of(config.edges, *head, config.period, raw, omega)
    D = naive.strength_of(config.edges, d, cutoff, omega)
    return naive.flow(D, config.n_inputs, config.n_outputs), naive.soft_edges(np.nan_to_num(d), cutoff, TAU, inside)


@given(manifolds(n_neurons=14, n_inputs=4, n_outputs=3))
@settings(max_examples=25)
def test_values_and_gradients_match_the_oracle(model):
    model(rng_input(model, 3))
    model(rng_input(model, 3))
    raw, omega, cutoff = raw_scalars(model), dense_omega(model), model.cutoff.item()
    possible, inside = model.config.possible_edges, naive_candidates(model)
    flow, soft = naive_terms(model.config, inside, raw, omega, cutoff)
    assert flow_loss(model).item() == pytest.approx(flow, rel=1e-9, abs=1e-12)
    proxy = SparsityProxy(TAU)(model)
    assert proxy.item() == pytest.approx(model.topology.n_edges / possible)
    assert model.soft_edges(TAU).item() == pytest.approx(soft, rel=1e-9, abs=1e-12)

    names = ("alpha", "mu", "sigma") + (() if model.config.edges == "free" else ("beta", "gamma", "theta", "phi"))
    parameters = [getattr(model, name) for name in names] + [model.cutoff]
    by_flow = torch.autograd.grad(flow_loss(model), parameters, retain_graph=True, allow_unused=True)
    by_proxy = torch.autograd.grad(proxy, parameters, allow_unused=True)
    for k, name in enumerate((*names, "cutoff")):
        known = {}  # both terms are asked for at the same values

        def terms(value, name=name, known=known):
            key = value.tobytes()
            if key not in known:
                changed, c = (raw, value) if name == "cutoff" else ({**raw, name: value}, cutoff)
                known[key] = naive_terms(model.config, inside, changed, omega, c)
            return known[key]

        at = raw[name] if name != "cutoff" else np.array(cutoff)
        for term, found in enumerate((by_flow[k], by_proxy[k])):
            coarse, finer = (naive.gradient(lambda v, term=term: terms(v)[term], at, eps) for eps in (1e-5, 1e-6))
            assume(np.allclose(coarse, finer, rtol=1e-3, atol=1e-3))  # else a step crosses the kink at the cutoff
            expected = finer + (finer - coarse) / 99  # without the error of order eps² (Richardson)
            found = np.zeros(expected.shape) if found is None else found.numpy() * (possible if term else 1)
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4 * max(1.0, np.abs(expected).max()))


def test_powers_and_the_original_gradient():
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0))
    model(rng_input(model, 1))
    density = model.density
    assert SparsityProxy(power=2)(model).item() == pytest.approx(density**2)
    none = SparsityProxy(gradient="none")(model)
    assert none.item() == pytest.approx(density)
    assert not none.requires_grad
    SparsityProxy(power=2)(model).backward()
    squared = model.edge_weight.grad.clone()
    model.zero_grad()
    model(rng_input(model, 1))
    SparsityProxy()(model).backward()
    torch.testing.assert_close(squared, 2 * density * model.edge_weight.grad)
    below = model.closeness.abs() < torch.sigmoid(model.cutoff)
    assert (model.edge_weight.grad[model.candidates.slots][below] != 0).any()


def test_the_proxy_prunes_and_the_original_one_does_not():
    edges = {}
    for gradient in ("straight-through", "none"):
        model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0))
        model(rng_input(model, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        model.follow(optimizer)
        for step in range(40):
            optimizer.zero_grad()
            loss = model(rng_input(model, 8, seed=step)).mean() * 0 + SparsityProxy(gradient=gradient)(model)
            loss.backward()
            optimizer.step()
        edges[gradient] = model.topology.n_edges
    assert edges["straight-through"] < 0.3 * edges["none"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"tau": 0.0}, "tau=0.0"), ({"power": 0}, "power=0"), ({"gradient": "soft"}, "straight-through, none")],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        SparsityProxy(**options)
