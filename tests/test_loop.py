"""Loops of one's own: a model that has not changed is recognised, and one that has never gives an old result."""

import copy
import threading

import numpy as np
import pytest
import torch

from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG, SparsityProxy

EDGES = ("closeness", "free", "free-closeness", "weighted")


def manifold(edges="free-closeness"):
    """A small manifold with many edges."""
    model = DynamicManifold(ManifoldConfig.preset("toy", edges=edges), torch.Generator().manual_seed(0), threads=1)
    with torch.no_grad():
        model.bias.copy_(torch.linspace(-0.2, 0.3, len(model.bias)))
    return model


def small_dag(weight=None):
    """A small SparseDAG, made of the edges of a manifold; ``weight``: that of its first neuron, others have more."""
    found = manifold().to_dag()
    if weight is not None:
        weight = torch.linspace(weight, 2.0 * weight, len(found.bias))
    options = {"input_neurons": True, "linear_outputs": True, "weight": weight, "threads": 1}
    return SparseDAG(found.topology, found.edge_weight, found.bias, **options)


def rows(batch=4):
    """Inputs of both."""
    return torch.rand(batch, 5, generator=torch.Generator().manual_seed(1))


def evaluations(model, monkeypatch):
    """A list that grows by one with every evaluation of the model's candidates."""
    made, engine = [], model.engine
    evaluate = type(engine).evaluate
    monkeypatch.setattr(engine, "evaluate", lambda *a, **k: made.append(1) or evaluate(engine, *a, **k))
    return made


def counted(parameter):
    """A write that torch counts."""
    with torch.no_grad():
        parameter.mul_(1.5)


def through_data(parameter):
    """A write that it does not count."""
    parameter.data.mul_(1.5)


def through_numpy(parameter):
    """Another one."""
    parameter.detach().numpy()[...] *= 1.5


def one_bit(parameter):
    """The least write."""
    words = parameter.detach().numpy().reshape(-1).view(np.int32)
    words[-1] ^= 1


def replaced_data(parameter):
    """Other memory in the same parameter."""
    parameter.data = parameter.data * 1.5


def strided_data(parameter):
    """The same memory, read otherwise."""
    if parameter.ndim:
        parameter.data = parameter.data[:1].expand(len(parameter))


WRITES = (counted, through_data, through_numpy, one_bit, replaced_data, strided_data)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("edges", EDGES)
def test_a_write_to_a_parameter_is_seen_by_the_next_call(edges, write, graph):
    model, x = manifold(edges), rows()
    with torch.set_grad_enabled(graph):
        for name, parameter in model.named_parameters():
            if name == "edge_weight" and write is strided_data:
                continue  # its free slots must hold 0
            for _ in range(3):
                model(x)
            write(parameter)
            fresh = copy.deepcopy(model)
            assert torch.equal(model(x), fresh(x)), name
            assert model.n_edges == fresh.n_edges, name


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("weight", [None, 1.0])
def test_a_write_to_a_dag_is_seen_by_the_next_call(weight, write, graph):
    dag, x = small_dag(weight), rows()
    with torch.set_grad_enabled(graph):
        for name, parameter in dag.named_parameters():
            before = [dag(x) for _ in range(3)][-1]
            write(parameter)
            after = dag(x)
            assert torch.equal(after, copy.deepcopy(dag)(x)), name
            assert write is one_bit or not torch.equal(after, before), name


@pytest.mark.parametrize("graph", [False, True])
def test_an_unchanged_model_is_evaluated_once(graph, monkeypatch):
    """With a graph the second call keeps the bits, the third finds them."""
    model, x = manifold(), rows()
    made = evaluations(model, monkeypatch)
    gradients = []
    for _ in range(5):
        with torch.set_grad_enabled(graph):
            out = model(x)
        if graph:
            gradients.append(torch.autograd.grad(out.sum(), [*model.parameters()]))
    assert len(made) == (2 if graph else 1)
    for found in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, gradients[0], strict=True))


@pytest.mark.parametrize("graph", [False, True])
def test_other_candidates_and_loaded_states_are_seen(graph):
    model, x = manifold("free"), rows()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.sigma.add_(0.3)
        other(x)
    with torch.set_grad_enabled(graph):
        for _ in range(3):
            model(x)
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(x), other(x))
        found = model.n_edges
        cut = set(zip(*torch.from_numpy(np.array(model.topology.edges())).T.tolist(), strict=True))
        pairs = [(r, s) for r in range(5, 8) for s in range(5) if (s, r + 5) not in cut]
        candidates = model.candidates
        known = {(r, s) for r in range(len(candidates.indptr) - 1)
                 for s in candidates.indices[candidates.indptr[r] : candidates.indptr[r + 1]]}  # fmt: skip
        r, s = next(pair for pair in pairs if pair not in known)
        model.add_candidates([r], [s], [1e6])
        model(x)
        assert model.n_edges == found + 1


def test_a_parameter_that_another_replaces_is_seen():
    model, dag, x = manifold(), small_dag(), rows()
    for module in (model, dag):
        with torch.no_grad():
            for _ in range(2):
                before = module(x)
            module.bias = torch.nn.Parameter(module.bias.detach() + 1.0)
            assert not torch.equal(module(x), before)
            assert torch.equal(module(x), copy.deepcopy(module)(x))


def test_functional_call_between_calls_changes_nothing():
    model, x = manifold(), rows()
    others = {name: p.detach() * 1.1 for name, p in model.named_parameters()}
    with torch.no_grad():
        before = model(x)
        there = torch.func.functional_call(model, others, (x,))
        assert torch.equal(model(x), before)
        assert torch.equal(torch.func.functional_call(model, others, (x,)), there)
        assert not torch.equal(there, before)


def test_calls_of_different_batches_take_turns():
    model, dag = manifold(), small_dag()
    with torch.no_grad():
        for module in (model, dag):
            one, four = module(rows(4)[:1]), module(rows(4))
            for _ in range(2):
                assert torch.equal(module(rows(4)[:1]), one)
                assert torch.equal(module(rows(4)), four)
                assert module(rows(4)[:0]).shape == (0, 4)


def test_threads_may_run_one_dag_at_once():
    dag, wrong = small_dag(), []
    batches = [torch.rand(size, 5, generator=torch.Generator().manual_seed(size)) for size in (1, 4, 4, 1)]
    with torch.no_grad():
        expected = [dag(x) for x in batches]

    def work(k):
        with torch.no_grad():
            wrong.extend(1 for _ in range(200) if not torch.equal(dag(batches[k]), expected[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_was_handed_out_may_be_written_to_and_gradients_stay():
    """But for strengths themselves, which the outputs were computed from: torch refuses that."""
    model, x = manifold(), rows()
    expected = torch.autograd.grad(model(x).sum(), model.alpha)[0]
    out = model(x)
    model.closeness.detach().numpy()[:] = 0.0
    model.strengths.detach().numpy()[:] = 0.0
    assert torch.equal(torch.autograd.grad(out.sum(), model.alpha)[0], expected)
    out = model(x)
    with torch.no_grad():
        model.strengths.zero_()
    with pytest.raises(RuntimeError, match="inplace operation"):
        out.sum().backward()


class Half(torch.nn.Module):
    """A parametrisation."""

    def forward(self, raw):
        """Half of it."""
        return 0.5 * raw


@pytest.mark.parametrize("name", ["cutoff", "mu"])
def test_a_parametrised_model_that_has_not_changed_has_a_graph_of_its_own(name):
    model, x, found = manifold(), rows(), []
    torch.nn.utils.parametrize.register_parametrization(model, name, Half(), unsafe=True)
    for graph in (True, False, True, True, True):
        with torch.set_grad_enabled(graph):
            loss = model(x).sum() + SparsityProxy()(model) + model.flow()
        if graph:
            model.zero_grad()
            loss.backward()
            found.append(model.parametrizations[name].original.grad.clone())
    assert found[0].abs().sum() > 0
    assert all(torch.equal(gradient, found[0]) for gradient in found)


def test_outputs_and_strengths_are_of_one_graph():
    """Gradients of both add up, and an output's gradient by the strengths is to be had after the call."""
    model, x = manifold(), rows()
    out, strengths = model(x), model.strengths
    (by_strength,) = torch.autograd.grad(out.sum(), strengths, retain_graph=True)
    assert by_strength.abs().sum() > 0
    parameters = [p for name, p in model.named_parameters() if name not in ("weight", "bias")]
    both = torch.autograd.grad(out.sum() + (strengths * strengths).sum(), parameters, retain_graph=True)
    one = torch.autograd.grad(out.sum(), parameters, retain_graph=True)
    two = torch.autograd.grad((strengths * strengths).sum(), parameters)
    for whole, a, b in zip(both, one, two, strict=True):
        torch.testing.assert_close(whole, a + b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [4, 130])
def test_gradients_keep_little_more_memory_than_their_own(batch):
    dag = small_dag(1.0)
    dag(rows(batch)).sum().backward()
    for name, parameter in dag.named_parameters():
        assert parameter.grad.untyped_storage().nbytes() <= 2 * max(parameter.nbytes, 4 * dag.topology.n_neurons), name


def test_a_result_in_place_does_not_touch_its_gradient():
    model, x = manifold(), rows()
    expected = torch.autograd.grad((2.0 * model(x)).sum(), model.bias)[0]
    out = model(x)
    out.mul_(2.0)
    assert torch.equal(torch.autograd.grad(out.sum(), model.bias)[0], expected)


def test_a_call_without_a_graph_leaves_none():
    """Whatever the calls before it left."""
    model, x = manifold(), rows()
    for _ in range(3):
        model(x)
        assert model.strengths.requires_grad
    with torch.no_grad():
        model(x)
        assert not model.strengths.requires_grad
        assert not model.closeness.requires_grad
        assert not model.flow().requires_grad
    assert model.strengths.requires_grad
