"""A manifold is a torch module like any other: averages, optimisers, functional calls, wrappers, threads."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparse_dnm import DynamicManifold, ManifoldConfig, SparsityProxy

TOY = ManifoldConfig.preset("toy")
X = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
Y = torch.stack([X[:, 1] + X[:, 4], X[:, 4] - X[:, 3], X[:, 0], X[:, 2]], 1)
OPTIMIZERS = {
    "Adam": dict(lr=0.02),
    "AdamW": dict(lr=0.02),
    "Adamax": dict(lr=0.02),
    "NAdam": dict(lr=0.02),
    "RAdam": dict(lr=0.02),
    "Adadelta": dict(lr=1.0),
    "Adagrad": dict(lr=0.05),
    "Adafactor": dict(lr=0.02),
    "ASGD": dict(lr=0.02),
    "LBFGS": dict(lr=0.05, max_iter=3),
    "RMSprop": dict(lr=0.01),
    "Rprop": dict(lr=0.01),
    "SGD": dict(lr=0.02, momentum=0.9),
}


def toy(seed=0, **changes):
    config = ManifoldConfig.preset("toy", **changes)
    return DynamicManifold(config, torch.Generator().manual_seed(seed), threads=1)


def loss_of(model, call=None):
    return ((call or model)(X) - Y).square().mean() + 0.3 * SparsityProxy()(model)


def shake(model, generator, size=1.0):
    """Move the rows, so that candidates come and go."""
    with torch.no_grad():
        model.mu += size * torch.randn(model.mu.shape, generator=generator)
        model.edge_weight += 0.1 * torch.randn(model.edge_weight.shape, generator=generator)
        model.sigma.clamp_(1.0, 30.0)


def pairs_of(model):
    """(row, source) -> weight of the candidates."""
    held = model.candidates
    rows = np.repeat(np.arange(model.config.n_rows), np.diff(held.indptr))
    weights = model.edge_weight.detach().numpy()[held.slots].tolist()
    return dict(zip(zip(rows.tolist(), held.indices.tolist(), strict=True), weights, strict=True))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.filterwarnings("ignore:a slot of edge_weight")
def test_an_average_is_that_of_each_edge_since_its_birth(when):
    model, generator = toy(sigma=(4.0, 0.0), skin=0.05), torch.Generator().manual_seed(2)
    if when == "after":
        model(X)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected, changes = {}, 0
    for _ in range(150):
        shake(model, generator)
        model(X)
        averaged.update_parameters(model)
        now = pairs_of(model)
        changes += now.keys() != expected.keys()
        expected = {p: 0.9 * expected[p] + 0.1 * w if p in expected else w for p, w in now.items()}
    assert changes > 100
    found = pairs_of(averaged.module)
    assert found.keys() == expected.keys()
    assert [found[p] for p in expected] == pytest.approx(list(expected.values()), abs=1e-5)
    assert model.slot_births.max() > 10  # slots were used again
    assert torch.isfinite(averaged(X)).all()


@pytest.mark.filterwarnings("ignore:a slot of edge_weight")
def test_averaged_buffers_are_refused():
    model, generator = toy(sigma=(4.0, 0.0)), torch.Generator().manual_seed(2)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(5):
        shake(model, generator)
        model(X)
        averaged.update_parameters(model)
    with pytest.raises(ValueError, match="use_buffers=False"):
        averaged(X)


def step(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:a slot of edge_weight")
def test_a_loop_of_ones_own_goes_on_from_every_step_to_the_same_bits(name):
    def fresh():
        model = toy(skin=0.02)
        return model, getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name])

    model, optimizer = fresh()
    states = []
    for _ in range(12):
        step(model, optimizer)
        states.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
    for k, saved in enumerate(states[:-1]):
        other, its = fresh()
        other.load_state_dict(saved[0])
        its.load_state_dict(copy.deepcopy(saved[1]))
        step(other, its)
        expected = states[k + 1][0]
        found = other.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[n], expected[n]) for n in expected), f"resumed from step {k}"


def test_functional_call_leaves_the_model_as_it_was():
    model = toy()
    before, state = model(X).detach(), copy.deepcopy(model.state_dict())
    moved = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    with torch.no_grad():
        moved["cutoff"] -= 1.5
        moved["mu"] += 1.0
    kept = {n: p.detach().clone() for n, p in moved.items()}
    out = torch.func.functional_call(model, moved, (X,))
    out.sum().backward()
    assert all(torch.equal(moved[n], kept[n]) for n in kept)
    assert moved["mu"].grad.abs().sum() > 0
    assert all(torch.equal(model.state_dict()[n], state[n]) for n in state)
    assert torch.equal(model(X), before)
    plain = toy()  # the same numbers, in a model of their own
    with torch.no_grad():
        for n, p in plain.named_parameters():
            if n != "edge_weight":
                p.copy_(kept[n])
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(model, moved, (X,)), plain(X))
    torch.testing.assert_close(out, plain(X))


def test_gradients_by_torch_func_are_those_of_backward():
    model = toy().double()
    x = X.double()
    params = {n: p.detach() for n, p in model.named_parameters()}

    def loss(params, x):
        return torch.func.functional_call(model, params, (x,)).square().sum()

    found = torch.func.grad(loss)(params, x)
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, msg=name)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x[:3, None])
    for k in range(3):
        one = torch.func.grad(loss)(params, x[k : k + 1])
        for name in params:
            torch.testing.assert_close(each[name][k], one[name], msg=name)
    torch.testing.assert_close(torch.func.vmap(model)(x[:4]), model(x[:4]))
    jacobian = torch.func.jacrev(model)(x[0])
    expected = torch.autograd.functional.jacobian(model, x[0])
    torch.testing.assert_close(jacobian, expected)
    many = {n: torch.stack([p, p]) for n, p in params.items()}
    with pytest.raises(RuntimeError, match="loop over them"):
        torch.func.vmap(loss, in_dims=(0, None))(many, x)


def test_second_derivatives_are_refused():
    model = toy()
    (gradient,) = torch.autograd.grad(model(X).square().sum(), model.alpha, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        gradient.sum().backward()


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


@pytest.mark.filterwarnings("ignore:a slot of edge_weight")
def test_parametrised_and_pruned_parameters_run_and_learn():
    model, plain = toy(), toy()
    parametrize.register_parametrization(model, "alpha", Doubled())
    torch.testing.assert_close(model(X), plain(X))
    loss_of(model).backward()
    loss_of(plain).backward()
    torch.testing.assert_close(model.parametrizations.alpha.original.grad, 2 * plain.alpha.grad)
    pruned = toy()
    prune.random_unstructured(pruned, "weight", amount=0.5)
    by_hand = toy()
    with torch.no_grad():
        by_hand.weight *= pruned.weight_mask
    torch.testing.assert_close(pruned(X), by_hand(X))
    pruned(X).sum().backward()
    assert (pruned.weight_orig.grad[pruned.weight_mask == 0] == 0).all()


def test_a_parametrised_edge_weight_is_refused_where_it_would_need_a_slot():
    model = toy(sigma=(4.0, 0.0))
    parametrize.register_parametrization(model, "edge_weight", Doubled())
    assert torch.isfinite(model(X)).all()
    with torch.no_grad():
        model.mu += 3.0
    with pytest.raises(ValueError, match="parametrised or pruned"):
        model(X)


def test_frozen_parts_get_no_gradient_and_the_rest_learns():
    model = toy()
    model.mu.requires_grad_(False)
    model.weight.requires_grad_(False)
    loss_of(model).backward()
    assert model.mu.grad is None
    assert model.weight.grad is None
    assert model.alpha.grad.abs().sum() > 0
    for p in model.parameters():
        p.requires_grad_(False)
    assert not model(X).requires_grad


@pytest.mark.filterwarnings("ignore:a slot of edge_weight")
def test_data_parallel_in_one_process_takes_the_steps_of_the_plain_loop(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        models = [toy(skin=0.02), toy(skin=0.02)]
        calls = [models[0], nn.parallel.DistributedDataParallel(models[1])]
        for model, call in zip(models, calls, strict=True):
            optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
            for _ in range(30):
                optimizer.zero_grad()
                (call(X) - Y).square().mean().backward()
                optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32_inside(dtype):
    model, first = toy(), nn.Linear(5, 5)
    with torch.autocast("cpu", dtype=dtype):
        hidden = first(X)
        assert hidden.dtype == dtype
        out = model(hidden)
        assert out.dtype == torch.float32
        out.float().square().mean().backward()
    torch.testing.assert_close(out, model(hidden.detach().float()))
    assert first.weight.grad.abs().sum() > 0


def test_torch_compile_calls_it_and_computes_the_same():
    model = nn.Sequential(nn.Linear(5, 5), toy())
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(X), model(X))
    compiled(X).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(X).square().sum().backward()
    for p, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, p.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tracing_and_export_name_the_way_out():
    model = toy()
    with pytest.raises(RuntimeError, match="to_dag"):
        torch.jit.trace(model, X)
    with pytest.raises(Exception, match="to_dag"):
        torch.export.export(model, (X,))


def test_inputs_may_have_any_leading_dimensions():
    model = toy()
    wide = torch.randn(2, 3, 4, 5)
    out = model(wide)
    assert out.shape == (2, 3, 4, 4)
    torch.testing.assert_close(out.reshape(-1, 4), model(wide.reshape(-1, 5)))
    assert model(X[0]).shape == (4,)
    empty = torch.empty(0, 5, requires_grad=True)
    nothing = model(empty)
    assert nothing.shape == (0, 4)
    nothing.sum().backward()
    assert empty.grad.shape == (0, 5)
    assert (model.alpha.grad == 0).all()
    with torch.no_grad():
        assert model(torch.empty(2, 0, 5)).shape == (2, 0, 4)
    with pytest.raises(ValueError, match="n_inputs=5"):
        model(torch.ones(3, 4))


def test_default_dtype_and_device_are_those_of_torch():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert toy().alpha.dtype == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert DynamicManifold(TOY, dtype=torch.float64, device="cpu").alpha.dtype == torch.float64
    with torch.device("meta"):
        assert DynamicManifold(TOY).alpha.is_meta
    with pytest.raises(ValueError, match="float16"):
        DynamicManifold(TOY, dtype=torch.float16)


def test_it_says_its_sizes():
    text = repr(nn.Sequential(toy()))
    assert "5 inputs, 16 hidden, 4 outputs" in text
    assert "capacity=284" in text


@pytest.mark.filterwarnings("ignore:a slot of edge_weight")
def test_copies_and_pickles_go_on_as_the_original():
    model, generator = toy(sigma=(4.0, 0.0)), torch.Generator().manual_seed(0)
    shake(model, generator)
    expected = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    shaken = []
    for one in (model, *copies):
        torch.testing.assert_close(one(X), expected)
        shake(one, torch.Generator().manual_seed(5), 3.0)
        shaken.append(one(X))
    for other in shaken[1:]:
        assert torch.equal(other, shaken[0])
    with torch.no_grad():
        copies[0].edge_weight.zero_()
    assert model.edge_weight.abs().sum() > 0


def test_the_first_reuse_of_a_slot_warns_if_no_optimiser_is_followed():
    generator = torch.Generator().manual_seed(2)
    model = toy(sigma=(4.0, 0.0))

    def reuse():
        for _ in range(10):
            shake(model, generator)
            model(X)

    with pytest.warns(UserWarning, match=r"model\.follow\(optimizer\)") as seen:
        reuse()
    assert len(seen) == 1
    model = toy(sigma=(4.0, 0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.follow(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            shake(model, generator)
            births = model.slot_births.clone()
            model(X)
            filled = (model.slot_births - births).bool().nonzero().squeeze(1)
            moments = optimizer.state.get(model.edge_weight, {})
            assert all((moments[n][filled] == 0).all() for n in ("exp_avg", "exp_avg_sq") if moments)
            loss_of(model).backward()
            optimizer.step()
    with pytest.raises(ValueError, match="LBFGS"):
        model.follow(torch.optim.LBFGS(model.parameters()))


def test_importing_and_training_leave_no_hook_on_optimisers():
    from torch.optim import optimizer

    step(toy(), torch.optim.SGD(toy().parameters(), lr=0.1))
    assert not optimizer._global_optimizer_pre_hooks
    assert not optimizer._global_optimizer_post_hooks
