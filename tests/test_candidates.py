"""The candidate list: exact at every step, without n²."""

from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_dnm.kernels import cpu_edges, formulas
from strategies import MANY, candidate_pairs, dense_omega, free_slots, manifolds, raw_scalars

from sparse_dnm import DynamicManifold, ManifoldConfig
from sparse_dnm.config import EDGE_MODES, OMEGA_IN_CLOSENESS
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.candidates import OverCapacity
from sparse_dnm.engine.cpu import CpuEngine


def dense_closeness(model, omega=None):
    """d (n, n) of the oracle, 0 where no edge is possible; ``omega`` (n, n) for free edges."""
    config = model.config
    head = (config.n_neurons, config.n_inputs, config.n_outputs)
    return np.nan_to_num(naive.closeness_of(config.edges, *head, config.period, raw_scalars(model), omega))


def fresh_omega(config):
    """omega that every pair would be born with, written out with Python's integers."""
    n = config.n_neurons
    omega = np.zeros((n, n))
    for i, j in zip(*np.nonzero(naive.possible(n, config.n_inputs, config.n_outputs)), strict=True):
        words = formulas.philox(int(i), int(j), config.seed & 0xFFFFFFFF, config.seed >> 32)
        z = min(np.sqrt(-2 * np.log((words[0] + 0.5) / 2**32)), 4.0) * np.cos(2 * np.pi * words[1] / 2**32)
        omega[i, j] = config.omega[0] + config.omega[1] * z
    return omega


def active_matrix(model):
    return model.topology.to_scipy().toarray() != 0


def candidate_matrix(model):
    found = np.zeros((model.config.n_neurons, model.config.n_neurons), bool)
    found[candidate_pairs(model)] = True
    return found


@torch.no_grad()
def disturb(model, generator, size):
    """Move every parameter, fast ones far, as training might."""
    for name, p in model.named_parameters():
        scale = {"mu": 4.0, "sigma": 2.0, "cutoff": 0.2, "alpha": 0.7}.get(name, 0.15)
        p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=size * scale)


def test_philox_matches_the_known_answers():
    """Random123's kat_vectors: philox4x32 10, zero counter and key, then the digits of pi with words 2, 3 zero."""
    assert formulas.philox(0, 0, 0, 0) == (0x6627E8D5, 0xE169C58D)


def test_fresh_omega_is_standard_normal_in_mean_and_spread():
    config = ManifoldConfig.preset("digits", omega=(0.5, 2.0))
    values = fresh_omega(config)
    values = (values[values != 0] - 0.5) / 2.0
    assert abs(values.mean()) < 4 / np.sqrt(len(values))
    assert abs(values.std() - 1) < 4 / np.sqrt(2 * len(values))
    assert abs(values).max() <= cpu_edges.OMEGA_LIMIT


@given(
    st.sampled_from(["closeness", "weighted"]).flatmap(lambda mode: manifolds(edges=mode)),
    st.integers(0, 2**20),
    st.sampled_from([0.003, 0.05, 0.6]),
)
@settings(max_examples=30)
def test_closeness_structure_is_exact_while_parameters_move(model, seed, size):
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, model.config.n_inputs, dtype=torch.float64)
    for _ in range(6):
        model(x)
        d, c = dense_closeness(model), naive.sigmoid(model.cutoff.item())
        unsure = np.abs(np.abs(d) - c) < 1e-12
        assert ((active_matrix(model) == (np.abs(d) > c)) | unsure).all()
        disturb(model, generator, size)


@given(
    st.sampled_from(OMEGA_IN_CLOSENESS).flatmap(lambda mode: manifolds(edges=mode)),
    st.integers(0, 2**20),
    st.sampled_from([0.003, 0.05, 0.6]),
)
@settings(max_examples=30)
def test_free_structure_is_exact_while_parameters_move(model, seed, size):
    """Active are exactly the candidates above the cutoff, and no pair has crossed it from outside unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, model.config.n_inputs, dtype=torch.float64)
    fresh = fresh_omega(model.config)
    below = np.ones_like(fresh, dtype=bool)  # pairs whose fresh closeness lay below the threshold at the last rebuild
    reference = torch.full_like(model._reference, torch.nan)
    for _ in range(8):
        before, omega_before = candidate_matrix(model), dense_omega(model)
        model(x)
        c = naive.sigmoid(model.cutoff.item())
        threshold = max(c - model.config.skin, c / 2)
        inside = candidate_matrix(model)
        d = dense_closeness(model, dense_omega(model))
        d_fresh = dense_closeness(model, fresh)
        unsure = np.abs(np.abs(d) - c) < 1e-12
        assert ((active_matrix(model) == (np.abs(d) > c)) | unsure).all()
        kept = before & inside
        assert (dense_omega(model)[kept] == omega_before[kept]).all()
        assert dense_omega(model)[inside & ~before] == pytest.approx(fresh[inside & ~before], abs=1e-12)
        scanned = np.zeros(len(fresh), bool)  # neurons whose row was searched anew
        scanned[model.config.n_inputs :] = (reference != model._reference).any(1).numpy()
        reference = model._reference.clone()
        row = np.broadcast_to(scanned[:, None], below.shape)
        born = row & below & ~before & (np.abs(d_fresh) > threshold + 1e-12)
        assert inside[born].all()
        assert not (inside & ~before & (~row | (np.abs(d_fresh) < threshold - 1e-12))).any()
        assert inside[before & ~row].all()
        stay = before & row & (np.abs(dense_closeness(model, omega_before)) > threshold + 1e-12)
        assert inside[stay].all()
        below = np.where(row, np.abs(d_fresh) <= threshold, below)
        assert not (~inside & below & (np.abs(d_fresh) > c + 1e-12)).any()
        disturb(model, generator, size)


def every_pair(engine):
    """Candidates that are all possible pairs, in arrays of an engine of the CPU."""
    config = engine.config
    i, j = np.nonzero(naive.possible(config.n_neurons, config.n_inputs, config.n_outputs))
    indptr = np.searchsorted(i, np.arange(config.n_inputs, config.n_neurons + 1))
    return replace(engine.no_candidates(), indptr=indptr, indices=j.astype(np.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preset", ["original-toy", "digits"])
def test_a_long_fast_run_of_adam_stays_exact(preset, dtype):
    """300 steps of lr 0.05: rebuilds are rare, and at each step the active edges are those of all pairs, to the bit."""
    config = ManifoldConfig.preset(preset, output="linear", skin=0.1, edges="closeness")
    model = DynamicManifold(config, torch.Generator().manual_seed(0), dtype)
    engine = CpuEngine(Executor("columns", 1), config)
    everything = every_pair(engine)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    rebuilds, last, structures = 0, None, set()
    for _ in range(300):
        x = torch.randn(20, config.n_inputs, generator=generator, dtype=dtype)
        optimizer.zero_grad()
        (model(x) - x[:, : config.n_outputs]).square().mean().backward()
        full = engine.evaluate(model.arrays(), np.empty(0), everything, None, check=False)
        np.testing.assert_array_equal(model.topology.indptr, full.row_starts)
        np.testing.assert_array_equal(model.topology.indices, full.sources)
        np.testing.assert_array_equal(model.strengths.detach().numpy(), full.values.strengths)
        if dtype == torch.float64 and preset == "original-toy":
            d, c = dense_closeness(model), naive.sigmoid(model.cutoff.item())
            np.testing.assert_array_equal(active_matrix(model), np.abs(d) > c)
        structures.add(model.topology.indices.tobytes())
        rebuilds += last is None or not torch.equal(last, model._reference)
        last = model._reference.clone()
        optimizer.step()
    assert rebuilds < 300
    assert len(structures) > 10


@pytest.mark.parametrize("edges", EDGE_MODES)
def test_closeness_in_float32_is_near_that_of_float64(edges):
    """Closeness within 8 ulp of 1, gradients of a sum over it within 2e-6 of the largest."""
    config = ManifoldConfig.preset("original-mnist", edges=edges, **MANY[edges])
    single = DynamicManifold(config, torch.Generator().manual_seed(0), torch.float32)
    disturb(single, torch.Generator().manual_seed(1), 0.3)
    single(torch.zeros(1, 784))
    double = DynamicManifold(config, None, torch.float64)
    double.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in single.state_dict().items()})
    double(torch.zeros(1, 784).double())
    assert len(single.closeness) == len(double.closeness) > 10_000
    largest = max(1.0, float(double.closeness.detach().abs().max()))
    assert (single.closeness - double.closeness).abs().max() <= 8 * 2**-23 * largest
    weights = torch.linspace(0.5, 1.5, len(single.closeness), dtype=torch.float64)
    for name in single.engine.geometry.scalars:
        found, expected = (
            torch.autograd.grad((m.closeness * weights.to(m.alpha.dtype)).sum(), getattr(m, name), retain_graph=True)[0]
            for m in (single, double)
        )
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max(), name


def test_an_edge_that_died_does_not_jump_back():
    config = ManifoldConfig.preset("digits")
    model = DynamicManifold(config, torch.Generator().manual_seed(0))
    first = model.topology.n_edges
    with torch.no_grad():
        model.edge_weight.mul_(0.01)
    model(torch.zeros(1, 64))
    assert model.topology.n_edges == 0
    model(torch.zeros(1, 64))
    assert len(model.closeness) == 0
    with torch.no_grad():
        model.sigma.mul_(1.3)
    model(torch.zeros(1, 64))
    assert 0 < len(model.closeness) < 0.5 * first


def test_memory_and_time_do_not_grow_with_the_square():
    """100,000 neurons would need 40 GB as a dense matrix."""
    config = ManifoldConfig(100_000, 500, 100, period=10, sigma=(6.0, 0.5), mu=(0.0, 3.0))
    model = DynamicManifold(config, torch.Generator().manual_seed(0))
    assert 100_000 < model.topology.n_edges < 3_000_000
    assert len(model.closeness) < 3 * model.topology.n_edges


def steps_with_little_room(edges, seed, size):
    """Check steps of changed parameters, with no more slots than the first structure needs; returns how often the list
    was full."""
    config = ManifoldConfig(18, 5, 3, 3.0, skin=0.1, edges=edges, alpha=(3.0, 1.0), sigma=(6.0, 1.0), cutoff=-1.5,
                            omega=(0.0, 1.0), capacity=1)  # fmt: skip
    model = DynamicManifold(config, torch.Generator().manual_seed(seed), torch.float64)
    generator, x = torch.Generator().manual_seed(seed), torch.zeros(1, 5, dtype=torch.float64)
    assert model.capacity == len(model.closeness)
    full = 0
    for _ in range(8):
        disturb(model, generator, size)
        with torch.no_grad():
            model.sigma.add_(0.2)  # so that more pairs want to enter
            if edges != "closeness":
                model.edge_weight[free_slots(model)] = 0.0  # no optimiser moves what has no gradient
        before, omega_before = candidate_matrix(model), dense_omega(model)
        try:
            model(x)
        except OverCapacity as error:
            model.grow_capacity(error.n_edges)  # raises where that is no more than now
            model(x)
        inside, c = candidate_matrix(model), naive.sigmoid(model.cutoff.item())
        assert len(model.closeness) <= model.capacity
        full += len(model.closeness) == model.capacity
        kept = before & inside
        assert (dense_omega(model)[kept] == omega_before[kept]).all()
        d = dense_closeness(model, dense_omega(model))
        unsure = np.abs(np.abs(d) - c) < 1e-12
        assert ((active_matrix(model) == (np.abs(d) > c)) | unsure).all()
        gone = np.abs(dense_closeness(model, omega_before))[before & ~inside]
        assert not (gone > c + 1e-12).any()
        if edges != "closeness":
            assert (model.edge_weight[free_slots(model)] == 0).all()
            assert len(np.unique(model.candidates.slots)) == len(model.candidates.slots)
    return full


@pytest.mark.parametrize("edges", EDGE_MODES)
@given(seed=st.integers(0, 2**20), size=st.sampled_from([0.02, 0.2]))
@settings(max_examples=8)
def test_with_little_room_the_least_close_go_and_no_active_edge(edges, seed, size):
    steps_with_little_room(edges, seed, size)


@pytest.mark.parametrize("edges", EDGE_MODES)
def test_there_is_often_no_room(edges):
    assert sum(steps_with_little_room(edges, seed, 0.02) for seed in range(3)) > 3


def test_more_active_edges_than_slots_are_named_with_the_way_out():
    model = DynamicManifold(ManifoldConfig.preset("toy", capacity=1), torch.Generator().manual_seed(0))
    x, capacity = torch.ones(3, 5), model.capacity
    before = model(x).detach()
    with torch.no_grad():
        model.cutoff.fill_(-9.0)
        with pytest.raises(
            OverCapacity, match=rf"more than the {capacity} .*model.grow_capacity\(\d+\).* or raise cutoff"
        ):
            model(x)
        with pytest.raises(OverCapacity):
            model(x)  # nothing of it stays
        model.cutoff.fill_(model.config.cutoff)
        assert torch.equal(model(x), before)
        model.cutoff.fill_(-9.0)
        model.grow_capacity(10_000)
        model(x)
    assert model.capacity == model.config.possible_edges
    assert capacity < model.n_edges


@pytest.mark.parametrize("name", ["candidate_indptr", "candidate_indices", "candidate_slots"])
def test_a_state_whose_structure_has_another_type_is_read_in_its_own_or_refused(name):
    made = DynamicManifold(ManifoldConfig.for_data(4, 2), torch.Generator().manual_seed(0), threads=1)
    state, x = made.state_dict(), torch.ones(3, 4)
    other = DynamicManifold(made.config, torch.Generator().manual_seed(1), threads=1)
    other.load_state_dict({**state, name: state[name].double()})
    assert torch.equal(other(x), made(x))
    with pytest.raises(ValueError, match=f"{name} of type torch.float64 holds numbers that are not"):
        other.load_state_dict({**state, name: state[name].double() + 0.5})
