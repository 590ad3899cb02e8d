"""Executor torch-sparse: the same outputs and gradients as our kernels have; one clear error where it is missing."""

import copy
import importlib
import io
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dags, manifolds, rng_input

from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG, Topology, TrainConfig, Trainer, data
from sparse_dnm.checks import MissingPackageError
from sparse_dnm.config import ACTIVATIONS
from sparse_dnm.engine.autograd import Network, propagate
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.choose import engine_for

pytestmark = pytest.mark.slow


def fault():
    """Why torch-sparse cannot be imported, or ''."""
    try:
        importlib.import_module("torch_sparse")
    except (ImportError, OSError, RuntimeError) as error:
        return str(error)
    return ""


FAULT = fault()
needs_torch_sparse = pytest.mark.skipif(bool(FAULT), reason=f"no torch-sparse: {FAULT}")


def results(model, x, executor):
    """Outputs, and gradients of a fixed projection of them, by name."""
    model.executor = Executor(executor)
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return {"out": out.detach(), "x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def filled(gradient, like):
    """Torch leaves out the gradient of what no output depends on; our kernels return zeros."""
    return torch.zeros_like(like) if gradient is None else gradient


def assert_same(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        value = filled(found[name], wanted) / scale
        torch.testing.assert_close(
            value, wanted / scale, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@needs_torch_sparse
@given(manifolds(), st.sampled_from([1, 3, 65]))
@settings(max_examples=150)
def test_manifolds_have_the_same_outputs_and_gradients(model, batch):
    x = rng_input(model, batch)
    assert_same(results(model, x, "torch-sparse"), results(model, x, "columns"))


@needs_torch_sparse
@given(dags(), st.sampled_from([1, 3, 65]), st.sampled_from(ACTIVATIONS))
@settings(max_examples=150)
def test_dags_have_the_same_outputs_and_gradients(dag, batch, activation):
    generator = torch.Generator().manual_seed(0)
    model = SparseDAG(Topology.from_edges(*dag), activation=activation, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        model.bias.uniform_(-1, 1, generator=generator)
    x = torch.randn(batch, len(model.topology.inputs), dtype=torch.float64, generator=generator)
    assert_same(results(model, x, "torch-sparse"), results(model, x, "columns"))


@needs_torch_sparse
@given(dags(), st.randoms(use_true_random=False))
def test_every_neuron_may_have_an_activation_of_its_own(dag, random):
    edges, n = dag
    topology = Topology.from_edges(edges, n)
    kind = np.array([random.randrange(4) for _ in range(n)], np.int8)
    slope = np.array([random.choice([0.0, 0.2, 1.0]) for _ in range(n)])
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, len(topology.inputs)), (topology.n_edges,), (n,), (n,))
    tensors = [torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes]
    found = {}
    for name in ("torch-sparse", "columns"):
        engine = engine_for(Executor(name), torch.device("cpu"))
        structure = engine.given(topology, engine.neurons(kind, slope, n, slice(0, n)))
        out = propagate(Network(engine, structure), *tensors)
        gradients = torch.autograd.grad(out.square().sum(), tensors, allow_unused=True)
        found[name] = dict(zip(("out", "x", "values", "weight", "bias"), (out.detach(), *gradients), strict=True))
    assert_same(found["torch-sparse"], found["columns"])


@needs_torch_sparse
@pytest.mark.parametrize(("preset", "depth"), [("original-mnist", 5), ("digits", 90)])
def test_large_networks_in_float32(preset, depth):
    config = ManifoldConfig.preset(preset, output="linear", weight=(1, 0.1), bias=(0, 0.1))
    model = DynamicManifold(config, torch.Generator().manual_seed(1))
    x = rng_input(model, 64) * 0.1
    assert_same(results(model, x, "torch-sparse"), results(model, x, "columns"), 1e-4)
    assert model.topology.n_edges > 10_000
    assert model.topology.depth > depth


@needs_torch_sparse
def test_dead_neurons_are_not_executed():
    topology = Topology.from_edges([(0, 2), (2, 4), (0, 3), (1, 3)], 5, inputs=[0, 1], outputs=[4])  # 3 is dead
    model = SparseDAG(topology, dtype=torch.float64, executor="torch-sparse")
    x = torch.tensor([[1.0, float("nan")]], dtype=torch.float64)
    model(x).sum().backward()
    assert torch.isfinite(model(x)).all()
    assert model.edge_weight.grad.tolist()[1:3] == [0, 0]


@needs_torch_sparse
def test_training_takes_the_same_course():
    losses, parameters, config = {}, {}, TrainConfig.preset("toy", steps=30, log_every=1, speed="proxy", kappa=0.0)
    for executor in ("torch-sparse", "columns"):
        generator = torch.Generator().manual_seed(2)
        model = DynamicManifold(ManifoldConfig.preset("toy"), generator, torch.float64, executor=executor)
        losses[executor] = []
        trainer = Trainer(model, double(data.load("toy")), config)
        summary = trainer.run(lambda record, executor=executor: losses[executor].append(record["loss"]))
        assert summary["executor"] == executor
        parameters[executor] = {name: p.detach() for name, p in model.named_parameters()}
    assert len(losses["columns"]) >= config.steps
    np.testing.assert_allclose(losses["torch-sparse"], losses["columns"], rtol=1e-8)
    assert_same(parameters["torch-sparse"], parameters["columns"], 1e-8)


def double(dataset):
    """The data set in float64."""
    changes = {k: v.double() for k, v in vars(dataset).items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    other = copy.copy(dataset)
    for name, value in changes.items():
        object.__setattr__(other, name, value)
    return other


@needs_torch_sparse
@pytest.mark.parametrize("kind", ["manifold", "squared", "dag"])
@torch.no_grad()
def test_calls_without_a_graph_see_every_change(kind):
    output = "square" if kind == "squared" else "linear"
    model = DynamicManifold(
        ManifoldConfig.preset("toy", output=output), torch.Generator().manual_seed(0), torch.float64, executor="columns"
    )
    x = rng_input(model, 7)
    model = model.to_dag() if kind == "dag" else model
    other = copy.deepcopy(model)
    other.executor = Executor("torch-sparse")
    for name, parameter in other.named_parameters():
        before = other(x)
        assert torch.equal(other(x), before)
        for changed in (model.get_parameter(name), parameter.data):  # torch does not count what is written to data
            changed[...] = 1.02 * changed + 0.01
        assert_same({"out": other(x)}, {"out": model(x)})
        assert not torch.equal(other(x), before)
    x.add_(0.5)
    for batch in (x, x[:1], x[:0]):
        assert_same({"out": other(batch)}, {"out": model(batch)})


@needs_torch_sparse
def test_copies_and_pickles_run():
    model = DynamicManifold(ManifoldConfig.preset("toy"), executor="torch-sparse")
    x = rng_input(model, 3)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), model(x))


class TestMissing:
    """Without torch-sparse, choosing the executor is refused."""

    @pytest.fixture(autouse=True)
    def _missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch_sparse", None)

    @pytest.mark.parametrize("kind", [ModuleNotFoundError, ValueError])
    def test_the_error_tells_how_to_install_it(self, kind):
        assert issubclass(MissingPackageError, kind)
        topology = Topology.from_edges([(0, 1)])
        install = r"torch_sparse; install it after torch with `pip install --no-build-isolation torch-scatter torch-spa"
        with pytest.raises(kind, match=install):
            DynamicManifold(ManifoldConfig.preset("toy"), executor="torch-sparse")
        with pytest.raises(kind, match=r"\.\[torch-sparse\].*15 to 25 minutes"):
            SparseDAG(topology, executor="torch-sparse")

    def test_the_command_line_prints_one_line(self, tmp_path):
        from typer.testing import CliRunner

        from sparse_dnm.cli.app import app

        options = ["--executor", "torch-sparse", "--speed", "none", "--set", "kappa=0"]
        options += ["--out", str(tmp_path / "run")]
        done = CliRunner().invoke(app, ["train", "toy", *options])
        assert done.exit_code == 2
        assert done.stderr.startswith("error: executor='torch-sparse' needs the package torch_sparse")
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()

    def test_the_other_executors_run(self):
        model = DynamicManifold(ManifoldConfig.preset("toy"), executor="columns")
        assert model(rng_input(model, 2)).shape == (2, 4)
