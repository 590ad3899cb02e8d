"""DynamicManifold and SparseDAG against tests/naive.py, DenseManifold, finite differences and torch."""

import copy
import io
import warnings

import naive
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.linalg import spsolve_triangular
from strategies import MANY, candidate_pairs, dags, dense_omega, free_slots, manifolds, omega_of, raw_scalars, rng_input
from torch.nn.utils import prune

from sparse_dnm import DenseManifold, DynamicManifold, ManifoldConfig, SparseDAG, Topology
from sparse_dnm.config import ACTIVATIONS, EDGE_MODES
from sparse_dnm.engine.schedule import tile_width

BATCHES = (1, 3, 50, 65)  # tiles of 1 and 4 columns, two of 32 and two of 48


def naive_closeness(model):
    config = model.config
    head = (config.n_neurons, config.n_inputs, config.n_outputs)
    return naive.closeness_of(config.edges, *head, config.period, raw_scalars(model), dense_omega(model))


def naive_outputs(model, x):
    config = model.config
    D = naive.strength_of(config.edges, naive_closeness(model), model.cutoff.item(), dense_omega(model))
    numbers = (v.detach().double().numpy() for v in (x, model.weight, model.bias))
    x, weight, bias = numbers
    return naive.forward_manifold(
        x, D, weight, bias, config.n_inputs, config.n_outputs, config.activation, config.output
    )


def gradients(model, x):
    """Gradient of a fixed projection of the outputs, by parameter name, and of x."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return {"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def in_order(model, found):
    """Gradients with that of edge_weight in the order of the candidates; free slots have none."""
    if "edge_weight" not in found:
        return found
    assert not found["edge_weight"][free_slots(model)].any()
    return {**found, "edge_weight": found["edge_weight"][model.candidates.slots]}


@given(manifolds(), st.sampled_from([1, 3]))
def test_outputs_match_the_oracle(model, batch):
    x = rng_input(model, batch)
    np.testing.assert_allclose(model(x).detach().numpy(), naive_outputs(model, x), rtol=1e-10, atol=1e-10)


@given(manifolds(), st.sampled_from(BATCHES), st.sampled_from(["columns", "wavefront", "blocks"]))
@settings(max_examples=60)
def test_outputs_and_gradients_match_the_dense_model(model, batch, executor):
    model.executor.name = executor
    x = rng_input(model, batch)
    with torch.no_grad():
        model(x)
    dense = DenseManifold.from_manifold(model)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-10, atol=1e-10)
    expected = gradients(dense, x)
    for name, gradient in in_order(model, gradients(model, x)).items():
        wanted = torch.zeros_like(gradient) if expected[name] is None else expected[name]
        scale = max(1.0, *wanted.abs().flatten().tolist(), 1.0)
        torch.testing.assert_close(gradient / scale, wanted / scale, rtol=1e-10, atol=1e-10, msg=name)


WIDTHS = {1: 1, 2: 2, 3: 4, 5: 8, 9: 16, 17: 32, 65: 48, 97: 64}  # columns of a tile, by the batch


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("batch", WIDTHS)
def test_tiles_of_every_width_match_the_dense_model(batch, dtype, tolerance):
    assert tile_width(batch) == WIDTHS[batch]
    config = ManifoldConfig.preset("toy", edges="weighted", activation="silu", weight=(1.0, 0.3), bias=(0.0, 0.3))
    model = DynamicManifold(config, torch.Generator().manual_seed(0), dtype)
    x = rng_input(model, batch)
    dense = DenseManifold.from_manifold(model)
    expected = gradients(dense, x)
    for executor in ("columns", "wavefront"):
        model.executor.name = executor
        torch.testing.assert_close(model(x), dense(x), rtol=tolerance, atol=tolerance)
        for name, gradient in in_order(model, gradients(model, x)).items():
            scale = max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(
                gradient / scale, expected[name] / scale, rtol=tolerance, atol=tolerance, msg=f"{executor}, {name}"
            )
        model.zero_grad()


@pytest.mark.parametrize("edges", EDGE_MODES)
@pytest.mark.parametrize("batch", [1, 50, 65])
def test_float32_matches_float64(edges, batch):
    config = ManifoldConfig.preset(
        "original-mnist", output="linear", edges=edges, weight=(1, 0.1), bias=(0, 0.1), **MANY[edges]
    )
    double = DynamicManifold(config, torch.Generator().manual_seed(1), torch.float64)
    single = DynamicManifold(config, torch.Generator().manual_seed(1), torch.float32)
    double.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in single.state_dict().items()})
    x = rng_input(single, batch) * 0.1
    y, expected = single(x), double(x.double())
    assert single.topology.n_edges > 10_000
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(y.double() / scale, expected / scale, rtol=1e-4, atol=1e-4)
    wanted = gradients(double, x.double())
    for name, gradient in gradients(single, x).items():
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(gradient.double() / scale, wanted[name] / scale, rtol=1e-4, atol=1e-4, msg=name)


@given(manifolds(skin=0.1))
@settings(max_examples=12)
def test_gradcheck_of_every_parameter(model):
    x = rng_input(model, 3).requires_grad_()
    model(x)
    margin = (model.closeness.detach().abs() - torch.sigmoid(model.cutoff.detach())).abs()
    assume(not (margin < 1e-4).any())  # finite differences would step over the kink at the cutoff
    names = [name for name, _ in model.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def outputs(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (x, *values), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 50, 200])
@pytest.mark.parametrize("edges", EDGE_MODES)
def test_same_bits_for_any_threads_and_executor(edges, batch):
    config = ManifoldConfig.preset("original-mnist", edges=edges)
    results = []
    for executor in ("columns", "wavefront"):
        for threads in (1, 2):
            generator = torch.Generator().manual_seed(3)
            model = DynamicManifold(config, generator, executor=executor, threads=threads)
            found = gradients(model, rng_input(model, batch))
            results.append({**found, "out": model(rng_input(model, batch)).detach(), "strengths": model.strengths})
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@given(manifolds(), st.integers(0, 2**32))
@settings(max_examples=40)
def test_same_bits_wherever_arrays_lie(model, seed):
    """Vectorised loops must not take another path, with another order of sums, when buffers come to lie closer."""
    rng, x, found = np.random.default_rng(seed), rng_input(model, 3), []
    for _ in range(6):
        between = [np.empty(rng.integers(1, 400)) for _ in range(4)]  # moves what is allocated next
        model.zero_grad()
        (model(x).sum() + model.soft_edges(0.03) + model.flow()).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        del between
    for name, gradient in found[0].items():
        assert all(torch.equal(gradient, other[name]) for other in found[1:]), name


def test_auto_settles_on_an_executor_without_changing_bits():
    config = ManifoldConfig.preset("digits")
    models = [DynamicManifold(config, torch.Generator().manual_seed(0), executor=e) for e in ("auto", "columns")]
    x = rng_input(models[0], 20)
    for _ in range(14):
        assert torch.equal(*(gradients(model, x)["alpha"] for model in models))
    if models[0].executor.threads > 1:
        assert "forward" in models[0].executor.chosen()
        assert "backward" in models[0].executor.chosen()


def test_dead_neurons_are_not_executed():
    edges = [(0, 2), (2, 4), (0, 3), (1, 3)]  # 3 leads nowhere
    topology = Topology.from_edges(edges, 5, inputs=[0, 1], outputs=[4])
    assert topology.live.tolist() == [True, False, True, False, True]
    model = SparseDAG(topology, dtype=torch.float64)
    x = torch.tensor([[1.0, float("nan")]], dtype=torch.float64)
    assert torch.isfinite(model(x)).all()
    model(x).sum().backward()
    assert model.edge_weight.grad.tolist()[1:3] == [0, 0]


def test_state_dict_moves_a_structure_between_models():
    config = ManifoldConfig.preset("digits")
    first, second = (DynamicManifold(config, torch.Generator().manual_seed(s)) for s in (0, 1))
    x = rng_input(first, 7)
    expected = first(x)
    second(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), expected)
    file = io.BytesIO()
    torch.save(first, file)
    file.seek(0)
    for other in (copy.deepcopy(first), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("candidate_indices", lambda v: v + 1000, "is not possible"),
        ("candidate_indices", lambda v: -v - 1, "is not possible"),
        ("candidate_indices", lambda v: v[:-1], "must be as many"),
        ("candidate_indices", lambda v: v[:9], "must be as many"),
        ("candidate_indptr", lambda v: v.flip(0), "candidate_indptr"),
        ("candidate_indptr", lambda v: v[:-3], "does not fit"),
        ("edge_weight", lambda v: v[:-5], "edge_weight"),
        ("candidate_slots", lambda v: v + 1000, "candidate_slots must lie in"),
        ("candidate_slots", lambda v: v.clamp(max=3), "names a slot twice"),
        ("candidate_slots", lambda v: torch.cat([v[:2].flip(0), v[2:]]), "not those of one structure"),
    ],
)
def test_a_corrupt_structure_is_refused(name, change, words):
    model = DynamicManifold(ManifoldConfig.preset("toy"))
    model.topology  # noqa: B018
    state = {k: change(v) if k == name else v for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        DynamicManifold(model.config).load_state_dict(state)


def manifold(seed, **changes):
    model = DynamicManifold(ManifoldConfig.preset("toy", **changes), torch.Generator().manual_seed(seed))
    model(torch.zeros(1, 5))
    return model


def test_a_refused_state_leaves_a_model_that_works():
    x = torch.randn(3, 5)
    for change in ("candidate_indices", "candidate_indptr", "edge_weight"):
        model, other = manifold(0), manifold(1)
        indices = model.candidate_indices.clone()
        state = {k: v for k, v in other.state_dict().items() if k != change}
        with pytest.raises(RuntimeError, match=change):
            model.load_state_dict(state)
        assert torch.equal(model.candidate_indices, indices)
        assert torch.isfinite(model(x)).all()
    model = manifold(0)
    expected = model(x)
    big = DynamicManifold(ManifoldConfig.preset("digits"))
    big(torch.zeros(1, 64))
    with pytest.raises(ValueError, match="does not fit"):
        model.load_state_dict(big.state_dict())
    assert torch.equal(model(x), expected)


def test_training_goes_on_after_a_state_of_another_capacity():
    x = torch.randn(8, 5)
    model, other = manifold(0, capacity=1), manifold(1, cutoff=-3.0)
    assert model.capacity < other.capacity
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    model.follow(optimizer)
    for _ in range(3):
        loss = model(x).square().sum()
        loss.backward()
        optimizer.step()
    model.load_state_dict({k: v for k, v in other.state_dict().items()})
    assert torch.equal(model(x), other(x))
    assert model.edge_weight.grad is None
    moments = optimizer.state[model.edge_weight]["exp_avg"]
    assert moments.shape == model.edge_weight.shape == (other.capacity,)
    assert not moments.any()
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert torch.isfinite(model(x)).all()


OLD = ("candidate_indptr", "candidate_indices", "_reference")


def old_state(model, *left_out):
    """The state that this model would have had before there were slots."""
    scalars = {name: p.detach().clone() for name, p in model.named_parameters()}
    candidates = model.candidates
    buffers = (torch.from_numpy(a.copy()) for a in (candidates.indptr, candidates.indices, candidates.reference))
    state = {**scalars, **dict(zip(OLD, buffers, strict=True))}
    if "edge_weight" in state:
        state["edge_weight"] = omega_of(model)
    return {name: value for name, value in state.items() if name not in left_out}


@pytest.mark.parametrize("edges", EDGE_MODES)
@pytest.mark.parametrize("left_out", [(), ("_reference",)])
def test_a_state_from_before_there_were_slots_gives_the_same_outputs(edges, left_out):
    """Of any number of candidates, more than there is room for included; then training goes on as it would have."""
    first, x = manifold(3, edges=edges, **MANY[edges]), torch.randn(4, 5)
    with torch.no_grad():
        first.mu.add_(2.0)  # slots are no longer in the order of the candidates
        first.sigma.mul_(1.2)
    expected = first(x)
    for second in (manifold(1, edges=edges), manifold(1, edges=edges, capacity=1, cutoff=2.0)):
        second.load_state_dict(old_state(first, *left_out))
        assert torch.equal(second(x), expected)
        assert len(second.closeness) == len(first.closeness)
        assert second.capacity >= len(second.closeness)
        if edges != "closeness":
            assert not second.edge_weight[free_slots(second)].any()
        second(x).sum().backward()
        again = manifold(2, edges=edges)
        again.load_state_dict(second.state_dict())
        assert torch.equal(again(x), expected)
        assert again.capacity == second.capacity


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "NAdam", "SGD"])
def test_moments_stay_in_their_slot_and_start_at_zero_for_a_new_edge(kind):
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0))
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **options)
    model.follow(optimizer)
    x, parameter, filled = rng_input(model, 10), model.edge_weight, 0

    def moments():
        return [v.clone() for v in optimizer.state[parameter].values() if v is not None and v.shape == parameter.shape]

    def pairs_and_slots():
        readers, sources = candidate_pairs(model)
        return readers.astype(np.int64) * model.config.n_neurons + sources, model.candidates.slots

    for k in range(12):
        optimizer.zero_grad()
        (model(x).square().mean() + 5 * model.soft_edges(0.03) / 1e4).backward()
        optimizer.step()
        before, (pairs, slots) = moments(), pairs_and_slots()
        assert before
        with torch.no_grad():
            model.sigma.mul_(0.8 if k % 2 else 1.3)
        model(x)
        assert model.edge_weight is parameter
        pairs_now, slots_now = pairs_and_slots()
        _, stayed, at = np.intersect1d(pairs, pairs_now, return_indices=True)
        assert (slots[stayed] == slots_now[at]).all()
        new = torch.from_numpy(slots_now[~np.isin(pairs_now, pairs)])
        filled += len(new)
        for old, moment in zip(before, moments(), strict=True):
            old[new] = 0.0
            old[free_slots(model)] = 0.0
            assert torch.equal(moment, old)
        assert (model.edge_weight[free_slots(model)] == 0).all()
    assert filled > 10


def test_a_slot_that_is_filled_again_without_an_optimiser_that_is_followed_warns_once():
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0))
    quiet = copy.deepcopy(model)
    optimizer = torch.optim.SGD(quiet.parameters(), lr=0.1)
    quiet.follow(optimizer)
    for each, warned in ((model, 1), (quiet, 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for change in (0.5, 2.2, 0.5, 2.2):
                with torch.no_grad():
                    each.sigma.mul_(change)
                each(torch.zeros(1, 64))
        assert [str(w.message).partition(",")[0] for w in caught] == [
            "a slot of edge_weight was given to a new edge"
        ] * warned
        assert (each.slot_births > 1).any()


@pytest.mark.parametrize("edges", EDGE_MODES)
def test_capacity_grows_without_a_change_of_outputs_gradients_and_moments(edges):
    model, x = manifold(0, edges=edges, capacity=1, **MANY[edges]), torch.randn(4, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.follow(optimizer)
    model(x).square().sum().backward()
    optimizer.step()
    model(x).square().sum().backward()
    before, births = model.capacity, model._buffers.get("slot_births")
    parameters, found = dict(model.named_parameters()), {n: p.grad.clone() for n, p in model.named_parameters()}
    expected, kept = model(x).detach(), copy.deepcopy(optimizer.state_dict()["state"])
    model.grow_capacity(before + 7)
    assert model.capacity == before + 7
    assert dict(model.named_parameters()) == parameters  # the same objects
    assert torch.equal(model(x), expected)
    for name, gradient in found.items():
        grown = parameters[name].grad
        assert torch.equal(grown[:before] if name == "edge_weight" else grown, gradient)
        state = optimizer.state[parameters[name]]
        for k, value in enumerate(v for v in state.values() if v.shape == parameters[name].shape):
            was = (
                [v for v in kept[list(parameters).index(name)].values() if v.ndim == gradient.ndim and v.ndim][k]
                if gradient.ndim
                else None
            )
            assert was is None or torch.equal(value[: len(was)], was)
            assert was is None or not value[len(was) :].any()
    if births is not None:
        assert torch.equal(model.slot_births.plain[:before], births.plain)
        assert not model.edge_weight[before:].any()
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    for wrong in (before, 0):
        with pytest.raises(ValueError, match=f"capacity={wrong} must be more than the present {before + 7}"):
            model.grow_capacity(wrong)


def test_rows_that_are_forgotten_let_pairs_enter_as_at_the_start():
    """Edges that training removed do not come back by themselves; in forgotten rows, they do."""
    model, x = manifold(0), torch.zeros(1, 5)
    first = candidate_keys(model)
    with torch.no_grad():
        model.edge_weight.zero_()
    for _ in range(2):
        model(x)
        assert model.n_edges == 0
    model.forget_rows(np.array([2, 7, 19]))
    model(x)
    found = candidate_keys(model)
    assert set(key for key in found if key[0] in (2, 7, 19)) == set(key for key in first if key[0] in (2, 7, 19))
    assert model.n_edges > 0
    assert not any(
        model.edge_weight[model.candidates.slots][k] for k, key in enumerate(found) if key[0] not in (2, 7, 19)
    )


def test_added_candidates_own_free_slots_with_their_omega():
    model, x = manifold(0), torch.randn(3, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.follow(optimizer)
    model(x).sum().backward()
    optimizer.step()
    model(x)
    known = dict(zip(candidate_keys(model), model.candidates.slots.tolist(), strict=True))
    pairs = [(r, j) for r in range(20) for j in range(min(r + 5, 21)) if (r, j) not in known][::7]
    moments = optimizer.state[model.edge_weight]["exp_avg"]
    before = moments.clone()
    before[:] += 1.0
    moments.copy_(before)
    rows, sources = zip(*pairs, strict=True)
    model.add_candidates(rows, sources, np.linspace(0.5, 1.5, len(pairs)))
    now = dict(zip(candidate_keys(model), model.candidates.slots.tolist(), strict=True))
    assert now.keys() == {*known, *pairs}
    assert all(now[key] == slot for key, slot in known.items())
    added = [now[pair] for pair in pairs]
    np.testing.assert_allclose(model.edge_weight.detach()[added], np.linspace(0.5, 1.5, len(pairs)), rtol=1e-6)
    before[added] = 0.0
    before[free_slots(model)] = 0.0
    assert torch.equal(moments, before)
    assert torch.isfinite(model(x)).all()


def test_backward_through_an_outdated_structure_is_refused():
    model = manifold(0)
    x = torch.randn(3, 5)
    first = model(x).sum()
    with torch.no_grad():
        model.cutoff.sub_(1.5)
    model(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # its slots have got other edges
        first.backward()
    second = model(x).sum()
    with torch.no_grad():
        model.edge_weight.mul_(0.999)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.backward()


def test_terms_have_gradients_after_a_call_without():
    model = manifold(0)
    expected = None
    for before in (lambda: model(torch.zeros(1, 5)), lambda: None):
        model(torch.zeros(1, 5))
        with torch.no_grad():
            model(torch.zeros(3, 5))
        before()
        model.zero_grad()
        model.soft_edges(0.03).backward()
        expected = model.alpha.grad.clone() if expected is None else expected
        assert model.alpha.grad.abs().sum() > 0
        assert torch.equal(model.alpha.grad, expected)
    fresh = DynamicManifold(ManifoldConfig.preset("toy"))
    fresh.cutoff.requires_grad_(False)
    with torch.no_grad():
        fresh(torch.zeros(1, 5))
    fresh.flow().backward()
    assert fresh.alpha.grad.abs().sum() > 0


@pytest.mark.parametrize("changes", [{"sigma": (1e25, 0.0)}, {"cutoff": -1000.0}, {"mu": (0.0, 1e30)}])
@pytest.mark.parametrize("edges", EDGE_MODES)
def test_extreme_settings_find_their_edges(edges, changes):
    config = ManifoldConfig.preset("toy", edges=edges, **changes, **MANY[edges])
    model = DynamicManifold(config, torch.Generator().manual_seed(0), torch.float64)
    expected = int((DenseManifold.from_manifold(model).strengths_matrix() != 0).sum())
    assert model.topology.n_edges == expected
    assert expected > 100 or "mu" in changes


def test_the_state_of_a_dense_model_loads():
    for edges in EDGE_MODES:
        model = DynamicManifold(ManifoldConfig.preset("toy", edges=edges))
        x = rng_input(model, 3)
        expected = model(x)
        other = DynamicManifold(model.config)
        other.load_state_dict(DenseManifold.from_manifold(model).state_dict())
        assert torch.equal(other(x), expected)


def test_omega_depends_on_seed_and_edge_alone():
    config = ManifoldConfig.preset("digits")
    wide = DynamicManifold(config, torch.Generator().manual_seed(0))
    narrow = DynamicManifold(ManifoldConfig.preset("digits", sigma=(20.0, 0.0)), torch.Generator().manual_seed(5))
    wide.topology, narrow.topology  # noqa: B018 - finds the structures
    a, b = dense_omega(wide), dense_omega(narrow)
    both = (a != 0) & (b != 0)
    assert both.sum() > 300
    assert (a[both] == b[both]).all()
    other = DynamicManifold(ManifoldConfig.preset("digits", seed=1), torch.Generator().manual_seed(0))
    other.topology  # noqa: B018
    both = (a != 0) & (dense_omega(other) != 0)
    assert not (a[both] == dense_omega(other)[both]).any()
    values = a[a != 0]
    assert abs(values.mean()) < 0.05


def test_adam_moments_follow_their_edges():
    """One dictionary keyed by (i, j), kept by hand through growth, pruning and rebirth, against the optimiser."""
    config = ManifoldConfig.preset("digits", seed=4)
    model = DynamicManifold(config, torch.Generator().manual_seed(0))
    x = rng_input(model, 20)
    model(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    model.follow(optimizer)
    rng = np.random.default_rng(0)
    known, born = None, 0
    for _ in range(60):
        optimizer.zero_grad()
        (model(x).square().mean() + 2 * model.soft_edges(0.03) / config.possible_edges).backward()
        keys, slots = candidate_keys(model), model.candidates.slots
        state = optimizer.state[model.edge_weight]
        if known is not None:
            born += sum(key not in known for key in keys)
            expected = [known.get(key, (0.0, 0.0)) for key in keys]
            assert [m for m, _ in expected] == state["exp_avg"][slots].tolist()
            assert [v for _, v in expected] == state["exp_avg_sq"][slots].tolist()
        optimizer.step()
        state = optimizer.state[model.edge_weight]
        moments = (state[name][slots].tolist() for name in ("exp_avg", "exp_avg_sq"))
        known = dict(zip(keys, zip(*moments, strict=True), strict=True))
        with torch.no_grad():
            model.sigma.mul_(float(rng.uniform(0.8, 1.25)))
    assert born > 300


def candidate_keys(model):
    readers, sources = candidate_pairs(model)
    return list(zip((readers - model.config.n_inputs).tolist(), sources.tolist(), strict=True))


@given(
    dags(), st.sampled_from(BATCHES), st.sampled_from(ACTIVATIONS), st.sampled_from(["columns", "wavefront", "blocks"])
)
@settings(max_examples=60)
def test_any_dag_matches_the_oracle(dag, batch, activation, executor):
    edges, n = dag
    topology = Topology.from_edges(edges, n)
    generator = torch.Generator().manual_seed(0)
    model = SparseDAG(topology, activation=activation, dtype=torch.float64, generator=generator, executor=executor)
    with torch.no_grad():
        model.bias.uniform_(-1, 1, generator=generator)
    x = torch.randn(batch, len(topology.inputs), dtype=torch.float64, generator=generator)
    weights = topology.to_scipy(model.edge_weight).toarray()
    bias = np.zeros(n)
    bias[np.setdiff1d(np.arange(n), topology.inputs)] = model.bias.detach().numpy()
    expected = naive.forward_dag(x.numpy(), weights, bias, topology.inputs, topology.outputs, activation)
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@given(dags(max_neurons=10), st.sampled_from(ACTIVATIONS))
@settings(max_examples=20)
def test_any_dag_passes_gradcheck(dag, activation):
    topology = Topology.from_edges(*dag)
    model = SparseDAG(topology, activation=activation, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names, values = zip(*model.named_parameters(), strict=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.bias.uniform_(-1, 1, generator=generator)  # off the kink at 0
    x = torch.randn(3, len(topology.inputs), dtype=torch.float64, generator=generator).requires_grad_()

    def outputs(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (x, *(v.detach().clone().requires_grad_() for v in values)))


@given(dags())
def test_identity_activation_solves_a_triangular_system(dag):
    """x = W x + e on the inputs is (I - W) x = e: scipy's triangular solver knows nothing of levels."""
    edges, n = dag
    edges = np.sort(edges, axis=1)  # source < reader: lower triangular
    topology = Topology.from_edges(np.unique(edges, axis=0), n)
    model = SparseDAG(topology, activation="identity", dtype=torch.float64)
    x = torch.randn(1, len(topology.inputs), dtype=torch.float64)
    right = np.zeros(n)
    right[topology.inputs] = x[0].numpy()
    system = sparse.eye_array(n, format="csr") - topology.to_scipy(model.edge_weight)
    solution = spsolve_triangular(sparse.csr_array(system), right, lower=True)
    np.testing.assert_allclose(model(x)[0].detach().numpy(), solution[topology.outputs], rtol=1e-9, atol=1e-9)


def test_a_stack_of_linear_layers():
    layers = [torch.nn.Linear(7, 12), torch.nn.Linear(12, 5), torch.nn.Linear(5, 3, bias=False)]
    prune.random_unstructured(layers[0], "weight", 0.5)
    stack = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    x = torch.randn(9, 7)
    model = SparseDAG.from_linear(layers, activation="relu")
    assert model.topology.n_edges == 42 + 60 + 15
    torch.testing.assert_close(model(x), stack(x))


def test_retained_graph_can_be_walked_twice():
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    out = model(rng_input(model, 4)).sum()
    out.backward(retain_graph=True)
    once = model.alpha.grad.clone()
    model(rng_input(model, 4, seed=1))  # another forward in between must not disturb the first
    out.backward()
    torch.testing.assert_close(model.alpha.grad, 2 * once)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(3, 6), r"\(3, 6\).*n_inputs=5"),
        (torch.zeros(3, 5, dtype=torch.int64), "int64"),
        (torch.zeros(3, 5, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 5, dtype=torch.float64), "float64"),
        (torch.zeros(()), r"x has shape \(\)"),
    ],
)
def test_wrong_input_is_named(x, words):
    with pytest.raises(ValueError, match=words):
        DynamicManifold(ManifoldConfig.preset("toy"))(x)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"executor='fast'.*auto, columns, wavefront"):
        DynamicManifold(ManifoldConfig.preset("toy"), executor="fast")
    with pytest.raises(ValueError, match="threads=4096"):
        DynamicManifold(ManifoldConfig.preset("toy"), threads=4096)
    with pytest.raises(ValueError, match="bfloat16"):
        DynamicManifold(ManifoldConfig.preset("toy"), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"values of shape \(2,\) must be \(1,\)"):
        SparseDAG(Topology.from_edges([(0, 1)]), values=[1.0, 2.0])
    with pytest.raises(ValueError, match="activation='gelu'"):
        SparseDAG(Topology.from_edges([(0, 1)]), activation="gelu")
    model = DynamicManifold(ManifoldConfig.preset("toy"))
    with torch.no_grad():
        model.mu[3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        model(torch.zeros(1, 5))


@pytest.mark.parametrize("edges", EDGE_MODES)
@pytest.mark.parametrize("change", ["data", "numpy", "in place", "replaced", "loaded"])
def test_without_gradients_a_structure_is_used_again_until_a_parameter_changes(edges, change):
    config = ManifoldConfig.preset("toy", edges=edges)
    model, other = (DynamicManifold(config, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x = torch.randn(3, config.n_inputs, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first = model(x)
        found = model._found
        assert torch.equal(model(x), first)
        assert model._found is found
        if change == "loaded":
            other(x)
            model.load_state_dict(other.state_dict())
        elif change == "data":
            model.mu.data.add_(1.5)
        elif change == "numpy":
            model.mu.detach().numpy()[:] += 1.5
        elif change == "in place":
            model.mu.add_(1.5)
        else:
            model.mu.data = model.mu.data + 1.5
        changed = model(x)
        assert model._found is not found
        assert not torch.equal(changed, first)
    assert torch.equal(model(x).detach(), changed)
    assert model.strengths.requires_grad


@pytest.mark.parametrize("batch", [1, 3, 8, 16, 40])
@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_inputs_in_any_order_take_their_own_columns(batch, seed):
    rng = np.random.default_rng(seed)
    order = np.arange(40)
    for k in rng.integers(0, 39, 3):  # a few swaps: long runs of neighbours stay
        order[[k, k + 1]] = order[[k + 1, k]]
    topology = Topology.from_edges([(i, 40 + k) for i in range(40) for k in range(2)], inputs=order)
    dag = SparseDAG(topology, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.from_numpy(rng.standard_normal((batch, 40)))
    weight = torch.zeros(40, 2, dtype=torch.float64)
    weight[topology.edges()[:, 0], topology.edges()[:, 1] - 40] = dag.edge_weight.detach()
    torch.testing.assert_close(dag(x), x @ weight[torch.from_numpy(order)] + dag.bias, check_dtype=True)


@pytest.mark.parametrize("edges", EDGE_MODES)
@pytest.mark.parametrize("batch", [1, 8])
def test_a_model_changes_its_dtype_after_calls(edges, batch):
    model = DynamicManifold(ManifoldConfig.preset("toy", edges=edges), torch.Generator().manual_seed(0))
    x = torch.randn(batch, 5, generator=torch.Generator().manual_seed(1))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            single = model(x)
            double = model.double()(x.double())
            torch.testing.assert_close(double, single.double(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.float()(x), single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edges", EDGE_MODES)
def test_a_first_call_in_inference_mode_leaves_a_model_that_trains(edges):
    config = ManifoldConfig.preset("toy", edges=edges)
    model, other = (DynamicManifold(config, torch.Generator().manual_seed(0)) for _ in range(2))
    with torch.inference_mode():
        model(torch.ones(3, 5))
    for each in (model, other):
        each(torch.ones(3, 5)).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, getattr(other, name).grad)


def test_parameters_may_be_strided_but_not_of_another_size():
    config = ManifoldConfig.preset("toy", edges="closeness")
    model = DynamicManifold(config, torch.Generator().manual_seed(0))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(model)
    big = torch.randn(2 * config.n_rows, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.mu.data = big[: config.n_rows]
        model(x)
        model.mu.data = big[::2]  # at the same address
        other.mu.data = big[::2].clone()
        assert torch.equal(model(x), other(x))
    dag = SparseDAG(Topology.from_edges([(i, 16 + k) for i in range(16) for k in range(4)]))
    weights = torch.randn(128, generator=torch.Generator().manual_seed(3))
    dag.edge_weight.data = weights[::2]
    y = torch.randn(8, 16, generator=torch.Generator().manual_seed(4))
    strided = dag(y)
    dag.edge_weight.data = weights[::2].clone()
    assert torch.equal(dag(y), strided)
    for whole, name, size in (
        (dag, "edge_weight", (3,)),
        (dag, "bias", (3,)),
        (model, "mu", (3,)),
        (model, "weight", ()),
    ):
        broken = copy.deepcopy(whole)
        getattr(broken, name).data = torch.zeros(size)
        with pytest.raises(ValueError, match=rf"parameter {name} has shape .* but must be \("):
            broken(y if whole is dag else x)
    free = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    free(x)
    free.edge_weight.data = torch.zeros(3)
    with pytest.raises(ValueError, match="parameter edge_weight has shape"):
        free(x)


def test_values_that_are_written_to_change_nothing_else():
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    x = torch.ones(3, 5)
    with torch.no_grad():
        before = model(x)
        model.strengths.abs_()
        model.closeness.zero_()
        assert torch.equal(model(x), before)


def test_a_model_that_was_on_meta_starts_over():
    """torch.device("meta") holds no numbers: the candidates stay those that were found before."""
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    x = torch.rand(3, 5)
    expected, saved = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    model = model.to("meta").to_empty(device="cpu")
    model.load_state_dict(saved)
    assert torch.equal(model(x), expected)
