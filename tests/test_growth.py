"""Growth: the gradient of edges that do not exist, against finite differences of a network that has them."""

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dnm import DynamicManifold, ManifoldConfig
from sparse_dnm.config import EDGE_MODES
from sparse_dnm.model.growth import FREE, LANES, _best_blocks, grow_edges


def of_ring(edges, activation, output, batch, seed, kappa=1.0, threads=1):
    """A model, its inputs, the gradient of closeness after a backward with ``kappa``, and one without."""
    changes = {"cutoff": -0.6, "activation": activation, "output": output, "weight": (1.0, 0.3), "bias": (0.0, 0.3)}
    config = ManifoldConfig.preset("toy", edges=edges, skin=0.2, **changes)
    model = DynamicManifold(config, torch.Generator().manual_seed(seed), torch.float64, threads=threads)
    x = torch.randn(batch, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = []
    for value in (kappa, 0.0):
        model.kappa = value
        out = model(x)
        model.closeness.retain_grad()
        (out * torch.linspace(0.5, 1.5, 4)).sum().backward()
        gradient = model.closeness.grad
        found.append(np.zeros(len(model.closeness)) if gradient is None else gradient.numpy().copy())
    return model, x, found


@settings(max_examples=40)
@given(st.sampled_from(EDGE_MODES), st.sampled_from(["leaky_relu", "silu"]),
       st.sampled_from(["linear", "square"]), st.sampled_from([1, 3, 4, 7, 40]), st.integers(0, 1000))  # fmt: skip
def test_the_ring_gets_the_gradient_that_edges_in_its_place_would_have(edges, activation, output, batch, seed):
    model, x, (grown, exact) = of_ring(edges, activation, output, batch, seed)
    evaluation, candidates, n, first = model.evaluation.values, model.candidates, 25, 5
    dense = np.zeros((n, n))
    topology = model.topology
    readers = np.repeat(np.arange(n), np.diff(topology.indptr))
    dense[readers, topology.indices] = evaluation.strengths
    weight, bias = (model.get_parameter(name).detach().numpy() for name in ("weight", "bias"))

    def loss(strengths):
        y = naive.forward_manifold(x[:8].numpy(), strengths, weight, bias, first, 4, activation, output)
        return (y * np.linspace(0.5, 1.5, 4)).sum()

    rows = np.repeat(np.arange(first, n), np.diff(candidates.indptr))
    size = np.abs(evaluation.d)
    ring = (size > evaluation.threshold) & (size <= evaluation.c) & topology.live[rows]
    assert (grown[~ring] == exact[~ring]).all()
    if batch > 8:  # the oracle is slow: more columns are only compared with the same columns in another order
        model.kappa = 1.0
        parts = 0.0
        for part in x.split(8):
            out = model(part)
            model.closeness.retain_grad()
            (out * torch.linspace(0.5, 1.5, 4)).sum().backward()
            parts = parts + model.closeness.grad.numpy()
        np.testing.assert_allclose(grown, parts, rtol=1e-9, atol=1e-9)
        return
    omega = evaluation.omega if edges == "weighted" else np.ones(len(ring))
    chosen = np.flatnonzero(ring)
    for e in {*chosen[:3], *chosen[-3:]}:  # of hidden readers, and of outputs, which read otherwise
        high, low = dense.copy(), dense.copy()
        high[rows[e], candidates.indices[e]] += 1e-6
        low[rows[e], candidates.indices[e]] -= 1e-6
        expected = omega[e] * (loss(high) - loss(low)) / 2e-6 / (1 - evaluation.c)
        np.testing.assert_allclose(grown[e], expected, rtol=1e-5, atol=1e-6)


def test_some_rings_reach_neurons_that_nobody_reads():
    """Their messages are not computed in a walk, and must be for the ring."""
    seen = 0
    for seed in range(20):
        model, _, (grown, _) = of_ring("free", "leaky_relu", "linear", 4, seed)
        dead = ~model.topology.live[model.candidates.indices]
        seen += int((grown[dead] != 0).sum())
    assert seen > 0


def test_kappa_scales_and_threads_do_not_change_a_bit():
    one = of_ring("free", "silu", "linear", 40, 3)[2][0]
    half = of_ring("free", "silu", "linear", 40, 3, kappa=0.5)[2][0]
    assert np.array_equal(half, 0.5 * one)
    assert np.array_equal(one, of_ring("free", "silu", "linear", 40, 3, threads=2)[2][0])
    assert np.any(one)


def test_an_edge_that_would_help_grows():
    """Without the ring an omega below the cutoff never moves; with it, the edge appears."""
    for kappa, appears in ((0.0, False), (1.0, True)):
        config = ManifoldConfig(n_neurons=3, n_inputs=1, n_outputs=1, period=1.0, edges="free", sigma=(100.0, 0.0),
                                mu=(0.0, 0.0), weight=(1.0, 0.0), bias=(0.0, 0.0), cutoff=0.0)  # fmt: skip
        model = DynamicManifold(config, torch.Generator().manual_seed(0))
        state = {name: value.detach() for name, value in model.named_parameters()}
        edge = {"candidate_indices": torch.tensor([0], dtype=torch.int32), "edge_weight": torch.tensor([0.45])}
        rows = {"candidate_indptr": torch.tensor([0, 0, 1]), "alpha": torch.full((2,), 20.0)}
        model.load_state_dict({**state, **edge, **rows})
        model.kappa = kappa
        x = torch.ones(4, 1)
        assert model.topology.n_edges == 0
        for _ in range(50):
            loss = (model(x) - 1.0).square().mean()
            model.edge_weight.grad = None
            loss.backward()
            with torch.no_grad():
                model.edge_weight -= 0.02 * model.edge_weight.grad
        assert (model.topology.n_edges == 1) == appears


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shifted_images_are_those_of_a_roll_over_a_black_frame(dtype):
    from sparse_dnm.engine import device as backend

    kernels = backend.kernels(torch.device("cpu"))
    rng = np.random.default_rng(0)
    images = rng.random((20, 6 * 5)).astype(dtype)
    down, right = rng.integers(-3, 4, (2, 20))
    out = np.empty_like(images)
    kernels.shifted(images, 5, down, right, out)
    for k in range(20):
        framed = np.pad(images[k].reshape(6, 5), 3)
        expected = np.roll(framed, (down[k], right[k]), (0, 1))[3:-3, 3:-3]
        assert np.array_equal(out[k].reshape(6, 5), expected)


@given(
    st.integers(1, 5), st.integers(8, 20), st.integers(0, 2**32), st.sampled_from([(1.0, 3.0), (2.0, 2.0), (1.0, 99.0)])
)
def test_the_best_block_of_a_row_has_the_largest_gradients_for_what_it_costs_more(n_rows, n, seed, prices):
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random((n_rows, n)) < 0.5, rng.normal(size=(n_rows, n)), 0.0)
    active = rng.random((n_rows, n)) < 0.3
    scores[active] = 0.0  # these are edges already
    found = _best_blocks(torch.from_numpy(scores), torch.from_numpy(active), prices).numpy()
    (lone, block), worths = prices, []
    for row, reads in zip(scores, active, strict=True):
        of = {}
        for first in range(n - LANES + 1):
            inside = slice(first, first + LANES)
            more = max(block - min(lone * reads[inside].sum(), block), FREE * block)
            of[first] = np.abs(row[inside]).sum() / more
        worths.append(of)
    for row, of, given_ in zip(scores, worths, found, strict=True):
        best = max(of.values())
        taken = np.flatnonzero(given_)
        if best == 0.0:
            assert not len(taken)
            continue
        firsts = [first for first, worth in of.items() if worth == pytest.approx(best)]
        kept = [set(np.flatnonzero(row[first : first + LANES]) + first) for first in firsts]
        assert set(taken) in kept  # all pairs of a best block, no others
        assert (np.sign(given_[taken]) == np.sign(row[taken])).all()
        np.testing.assert_allclose(np.abs(given_[taken]), best, rtol=1e-4)


def test_a_search_by_prices_makes_whole_blocks():
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0), threads=1)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    before = {tuple(e) for e in model.find().topology.edges().tolist()}
    count = grow_edges(model, x, lambda y: y.square().mean(), 200, prices=(1.0, 3.0))
    new = {tuple(e) for e in model.find().topology.edges().tolist()} - before
    assert 0 < len(new) <= count <= 200
    by_reader = {}
    for source, reader in new:
        by_reader.setdefault(reader, []).append(source)
    assert all(max(sources) - min(sources) < LANES for sources in by_reader.values())  # one block a row
    assert np.mean([len(sources) for sources in by_reader.values()]) > 3


def test_a_network_of_fewer_sources_than_a_block_has_single_edges_searched():
    config = ManifoldConfig(n_neurons=7, n_inputs=3, n_outputs=2, period=3.0, edges="free", cutoff=3.0)
    model = DynamicManifold(config, torch.Generator().manual_seed(0), threads=1)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    assert grow_edges(model, x, lambda y: y.square().mean() + y.sum(), 3, prices=(1.0, 3.0)) >= 0
