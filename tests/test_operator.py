"""SparseDAG as one operator of torch: compile, export and trace; the topology's tensors, and what is kept of them."""

import copy
import gc
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from strategies import rng_input
from test_sparse_dag import DIAMOND, arguments_of, diamond, generator, networks, normal
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG, Topology
from sparse_dnm.model import operator

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # torch's, of torch.jit
ELSEWHERE = """
import sys, torch
from sparse_dnm import SparseDAG
assert not hasattr(torch.ops.sparse_dnm, "propagate"), "importing the package has registered the operator"
import sparse_dnm.model.operator
program, traced, x, out = sys.argv[1:]
models = torch.export.load(program).module(), torch.jit.load(traced)
torch.save([model(torch.load(x)).detach() for model in models], out)
"""


def arguments(model, x):
    """Those of the operator for a model."""
    return x, *arguments_of(model)


def gradients(run, model, x):
    """Outputs, and gradients of x and the parameters."""
    x = x.clone().requires_grad_()
    out = run(x)
    leaves = [x, *model.parameters()]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True)]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@given(networks(max_neurons=7))
@settings(max_examples=20)
def test_traced_and_made_graphs_give_the_numbers_and_gradients_of_a_plain_call(model):
    x, other = normal(3, model.n_inputs), normal(1, model.n_inputs, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model, x)
    for y in (x, other):
        assert_same(gradients(traced, model, y), gradients(model, model, y))
    graph = make_fx(model)(x)
    torch.testing.assert_close(graph(other), model(other))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_one_graph_with_the_same_numbers_and_gradients(backend):
    torch._dynamo.reset()
    model = diamond(weight=1.5, output="square", dtype=torch.float64)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for batch in (3, 1, 4):
        x = normal(batch, 2)
        assert_same(gradients(compiled, model, x), gradients(model, model, x))
    x = normal(1, 3, 2)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x.bfloat16()), model(x.bfloat16()))
    batched = torch.compile(torch.func.vmap(model), backend=backend, fullgraph=True)
    torch.testing.assert_close(batched(x[0]), model(x[0]))


def test_a_frozen_manifold_exports_and_the_file_runs_elsewhere_at_any_batch_size(tmp_path):
    config = ManifoldConfig.preset("toy", output="square", weight=(1, 0.3), bias=(0, 0.3))
    model = DynamicManifold(config, generator(), threads=1)
    dag, x, other = model.to_dag(), rng_input(model, 3), rng_input(model, 4, seed=1)
    for strict in (False, True):
        program = export(dag, (x,), dynamic_shapes={"x": {0: Dim("batch")}}, strict=strict)
        torch.testing.assert_close(program.module()(other), model(other))
    files = [str(tmp_path / name) for name in ("program.pt2", "traced.pt", "x.pt", "out.pt")]
    torch.export.save(program, files[0])
    torch.jit.trace(dag, x).save(files[1])
    torch.save(other, files[2])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ELSEWHERE, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for out in torch.load(files[3], weights_only=True):
        torch.testing.assert_close(out, model(other).detach())


@pytest.mark.parametrize("weight", [None, 1.5])
def test_torch_finds_no_fault_with_the_operators(weight):
    model = diamond(weight=weight, dtype=torch.float64)
    every = arguments(model, normal(3, 2).requires_grad_())
    torch.library.opcheck(operator.propagate, every)
    torch.library.opcheck(operator.propagate, tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in every))
    plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in every]
    for by_input in (False, True):
        torch.library.opcheck(operator.propagate_backward, (normal(3, 1), *plain, by_input))


def test_the_operator_may_be_batched_over_any_of_its_tensors():
    model = diamond(weight=1.5, dtype=torch.float64)
    x, weights = normal(2, 3, 2), normal(2, 4, seed=1)
    _, _, *rest = arguments(model, x)
    found = torch.func.vmap(lambda x, w: operator.propagate(x, w, *rest))(x, weights)
    assert_same(found, [operator.propagate(x[k], weights[k], *rest) for k in range(2)])


def test_second_derivatives_of_the_operator_are_refused():
    model, x = diamond(dtype=torch.float64), normal(3, 2).requires_grad_()
    (by_x,) = torch.autograd.grad(operator.propagate(*arguments(model, x)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        by_x.sum().backward()


def test_an_empty_batch_and_wrong_tensors():
    model = diamond(dtype=torch.float64)
    every = arguments(model, normal(0, 2).requires_grad_())
    out = operator.propagate(*every)
    assert out.shape == (0, 1)
    assert [t.shape for t in torch.autograd.grad(out.sum(), [every[0], model.bias])] == [(0, 2), (2,)]
    for place, wrong, words in (
        (0, normal(3, 5), "n_inputs=2"),
        (0, normal(2), r"x has shape \(2,\), but must be"),
        (0, normal(3, 2).float(), "the model has torch.float64"),
        (1, normal(3), r"edge_weight has shape \(3,\), but must be \(4,\)"),
        (1, normal(4).float(), "edge_weight has dtype torch.float32"),
        (3, normal(9), r"bias has shape \(9,\), but must be \(2,\)"),
        (5, model.indices + 9, "out of range"),
    ):
        changed = list(every)
        changed[0], changed[place] = (normal(3, 2), wrong) if place else (wrong, wrong)
        with pytest.raises(ValueError, match=words):
            operator.propagate(*changed)


def test_a_structure_is_made_once_and_forgotten_with_its_tensors():
    gc.collect()
    operator._made.clear()
    model, x = diamond(dtype=torch.float64), normal(3, 2)
    for _ in range(3):
        operator.propagate(*arguments(model, x))
    assert len(operator._made) == 1
    ((_, _, structure),) = operator._made.values()
    operator.propagate(*arguments(model, x))
    assert next(iter(operator._made.values()))[2] is structure
    other = SparseDAG(Topology.from_edges([(0, 2), (1, 2), (2, 3), (1, 3)]), dtype=torch.float64, threads=1)
    torch.testing.assert_close(operator.propagate(*arguments(other, x)), other(x))
    assert len(operator._made) == 2
    del model
    gc.collect()
    third = copy.deepcopy(other)
    operator.propagate(*arguments(third, x))
    assert len(operator._made) == 2  # that of `other`, and the new one
    third.indices.copy_(SparseDAG(Topology.from_edges(DIAMOND)).indices)
    torch.testing.assert_close(operator.propagate(*arguments(third, x)), diamond_with(third, x))


def diamond_with(model, x):
    """Outputs of the diamond with a model's weights."""
    return SparseDAG(Topology.from_edges(DIAMOND), model.edge_weight, model.bias, dtype=torch.float64)(x)
