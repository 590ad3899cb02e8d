"""Executor `blocks`: its covering is valid, its passes are those of tests/naive.py and of `columns`."""

import dataclasses
import itertools
from types import SimpleNamespace

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dags, manifolds, rng_input

from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG, Topology, TrainConfig, Trainer
from sparse_dnm.config import ACTIVATIONS
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine.autotune import MOST_BLOCK_COLUMNS, Executor, fastest_of
from sparse_dnm.engine.base import Neurons
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.engine.cpu_blocks import LANES, Covering
from sparse_dnm.engine.device import ACTIVATION_CODES, kernels
from sparse_dnm.engine.schedule import Schedule
from sparse_dnm.timing import probes, structures
from sparse_dnm.timing.cost_model import FEATURES
from sparse_dnm.train import trim
from sparse_dnm.train.fused import FusedSteps

STRIP = kernels(torch.device("cpu")).blocks.STRIP
BATCHES = [1, 3, MOST_BLOCK_COLUMNS, MOST_BLOCK_COLUMNS + 1]


@st.composite
def wide_dags(draw):
    """A topology of up to 70 inputs, read in runs, with empty rows, and some neurons that reach no output."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_inputs, n_hidden, n_outputs = draw(st.integers(1, 70)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    n, edges = n_inputs + n_hidden + n_outputs, set()
    for i in range(n_inputs, n):
        for _ in range(draw(st.integers(0, 3))):
            highest = min(i, n - n_outputs)
            first, run = int(rng.integers(highest)), int(rng.integers(1, 20))
            edges |= {(j, i) for j in range(first, min(first + run, highest))}
    edges = np.array(sorted(edges), np.int64).reshape(-1, 2)
    return Topology.from_edges(edges, n, np.arange(n_inputs), np.arange(n - n_outputs, n))


def neurons(topology, first_linear=None):
    """All of one activation; from ``first_linear`` on they read z."""
    n = topology.n_neurons
    return Neurons(np.zeros(n, np.int8), np.full(n, 0.2), n if first_linear is None else first_linear, slice(0, n))


def run_and_back(model, x):
    """Outputs of a model with a graph and without, and its gradients."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    with torch.no_grad():
        again = model(x.detach()).clone()
    return {"out": out.detach(), "infer": again, "x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def assert_close(found, expected, tolerance):
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()) if value.numel() else 1.0)
        torch.testing.assert_close(found[name] / scale, value / scale, rtol=tolerance, atol=tolerance, msg=name)


# -- the covering ----------------------------------------------------------------------------------------------


@given(st.one_of(wide_dags(), dags().map(lambda dag: Topology.from_edges(*dag))))
def test_every_executed_edge_is_in_one_block_and_every_executed_input_in_one_strip_or_alone(topology):
    schedule = Schedule(topology)
    covering = Covering(schedule, neurons(topology))
    graph = covering.graph.values
    n, readers = topology.n_neurons, np.repeat(np.arange(topology.n_neurons), np.diff(topology.indptr))
    executed = np.isin(readers, schedule.order)
    places = covering.place[executed]
    assert (covering.place[~executed] == -1).all()
    assert len(set(places.tolist())) == len(places)
    blocks, lanes = places // LANES, places % LANES
    assert covering.n_blocks == len(set(blocks.tolist())) <= len(places)
    assert (graph["starts"][blocks] + lanes == topology.indices[executed]).all()
    assert not len(places) or 0 <= graph["starts"].min() <= graph["starts"].max() < n
    row = np.repeat(graph["order"], np.diff(graph["row_blocks"]))
    assert (row[blocks] == readers[executed]).all()
    strips, lone = graph["strips"], graph["lone"]
    in_strips = (strips[:, None] + np.arange(STRIP)).ravel()
    columns = (graph["strip_columns"][:, None] + np.arange(STRIP)).ravel()
    assert len(set(in_strips.tolist())) == len(in_strips)
    assert (topology.inputs[columns] == in_strips).all()
    assert (topology.inputs[graph["lone_columns"]] == lone).all()
    assert set(schedule.inputs.tolist()) <= {*in_strips.tolist(), *lone.tolist()}
    assert not np.isin(lone, in_strips).any()
    counts = dict(zip(FEATURES["blocks"], covering.counts(schedule).tolist(), strict=True))
    assert counts["block"] == covering.n_blocks
    assert counts["edge"] == len(places)
    assert counts["neuron"] == len(graph["order"])
    assert counts["input"] == len(in_strips) + len(lone)
    assert counts["lone input"] == len(lone)
    assert counts["group"] == graph["n_read"] <= counts["neuron"]


@given(st.one_of(wide_dags(), dags().map(lambda dag: Topology.from_edges(*dag))), st.booleans())
def test_rows_are_computed_after_their_sources_and_side_by_side_only_if_they_do_not_read_each_other(topology, linear):
    n, schedule = topology.n_neurons, Schedule(topology)
    last = n - len(topology.outputs)
    unread = topology.outputs.min() >= last and not np.isin(topology.outputs, topology.indices).any()
    first_linear = last if linear and unread and not np.isin(topology.outputs, topology.inputs).any() else n
    graph = Covering(schedule, neurons(topology, first_linear)).graph.values
    order, groups = graph["order"], graph["groups"]
    assert len(set(order.tolist())) == len(order)
    assert set(schedule.order.tolist()) == set(order.tolist())
    assert (np.diff(groups) > 0).all()
    assert groups[0] == 0
    assert groups[-1] == len(order)
    assert (order[: groups[graph["n_read"]]] < first_linear).all()
    assert (order[groups[graph["n_read"]] :] >= first_linear).all()
    done = set(topology.inputs.tolist())
    for a, b in itertools.pairwise(groups):
        assert b - a <= LANES
        assert (np.diff(order[a:b]) > 0).all()
        for i in order[a:b].tolist():
            assert set(topology.indices[topology.indptr[i] : topology.indptr[i + 1]].tolist()) <= done
        done |= set(order[a:b].tolist())
    by_level = np.bincount(topology.levels[order[: groups[graph["n_read"]]]])
    assert graph["n_read"] <= (-(-by_level // LANES)).sum()


def test_groups_are_of_one_activation():
    n = 40
    topology = Topology.from_edges([(0, i) for i in range(1, n - 1)] + [(i, n - 1) for i in range(1, n - 1)], n)
    made = neurons(topology)
    made.kind[1:8] = made.kind[20:23] = ACTIVATION_CODES["tanh"][0]
    graph = Covering(Schedule(topology), made).graph.values
    sizes = np.diff(graph["groups"])
    for a, b in itertools.pairwise(graph["groups"]):
        assert len(set(made.kind[graph["order"][a:b]].tolist())) == 1
    assert sorted(sizes.tolist()) == [1, 2, 4, 8, 8, 8, 8]  # an output; 10 of tanh and 28 others


@given(st.lists(st.integers(0, 90), unique=True, min_size=1, max_size=40))
def test_no_covering_by_blocks_that_start_anywhere_has_fewer_of_them(sources):
    sources = np.sort(sources)
    topology = Topology.from_edges(np.stack([sources, np.full(len(sources), 91)], axis=1), 92, np.arange(91), [91])
    least, at = 0, 1000  # from the right: the last source must be in a block, which ends there at the earliest
    for j in sources[::-1]:
        if j < at:
            least, at = least + 1, j - LANES + 1
    assert Covering(Schedule(topology), neurons(topology)).n_blocks == least


# -- passes ------------------------------------------------------------------------------------------------------


@given(wide_dags(), st.sampled_from(BATCHES), st.sampled_from(ACTIVATIONS), st.booleans())
@settings(max_examples=30)
def test_outputs_and_gradients_are_those_of_columns_and_of_the_oracle(topology, batch, activation, input_neurons):
    generator = torch.Generator().manual_seed(batch)
    about = {"activation": activation, "input_neurons": input_neurons, "dtype": torch.float64}
    models = [SparseDAG(topology, executor=name, generator=generator, **about) for name in ("columns", "blocks")]
    with torch.no_grad():
        models[0].bias.uniform_(-1, 1, generator=generator)
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(batch, len(topology.inputs), dtype=torch.float64, generator=generator)
    expected, found = (run_and_back(model, x) for model in models)
    assert_close(found, expected, 1e-12)
    if not input_neurons:
        weights = topology.to_scipy(models[0].edge_weight).toarray()
        bias = np.zeros(topology.n_neurons)
        bias[np.setdiff1d(np.arange(topology.n_neurons), topology.inputs)] = models[0].bias.detach().numpy()
        oracle = naive.forward_dag(x.numpy(), weights, bias, topology.inputs, topology.outputs, activation)
        np.testing.assert_allclose(found["out"].numpy(), oracle, rtol=1e-10, atol=1e-10)


@given(manifolds(torch.float32), st.sampled_from([1, 3]))
@settings(max_examples=15)
def test_a_manifold_in_float32_has_the_outputs_of_columns(model, batch):
    x = rng_input(model, batch)
    found = {}
    for name in ("columns", "blocks"):
        model.executor.name = name
        found[name] = {k: v for k, v in run_and_back(model, x).items() if k in ("out", "infer", "x")}
    assert_close(found["blocks"], found["columns"], 1e-4)


@given(wide_dags(), st.sampled_from(ACTIVATIONS))
@settings(max_examples=15)
def test_gradcheck(topology, activation):
    generator = torch.Generator().manual_seed(0)
    model = SparseDAG(topology, activation=activation, dtype=torch.float64, generator=generator, executor="blocks")
    with torch.no_grad():
        model.bias.uniform_(-1, 1, generator=generator)  # off the kink at 0
    names, values = zip(*model.named_parameters(), strict=True)
    x = torch.randn(2, len(topology.inputs), dtype=torch.float64, generator=generator).requires_grad_()

    def outputs(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (x, *(v.detach().clone().requires_grad_() for v in values)))


UNREAD = Topology.from_edges([(0, 4), (2, 4), (3, 5), (4, 6), (5, 6), (1, 7)], 8, [0, 1, 2, 3], [6, 7])


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_message_that_is_not_finite_reaches_only_those_that_read_it(bad, batch):
    """Input 1 lies in the block of sources 0 and 2 of neuron 4, which does not read it."""
    models = [SparseDAG(UNREAD, executor=name, dtype=torch.float64) for name in ("columns", "blocks")]
    models[1].load_state_dict(models[0].state_dict())
    good = torch.randn(batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spoilt = good.clone()
    spoilt[:, 1] = bad
    for x in (good, spoilt, good):  # nothing stays behind
        expected, found = (run_and_back(model, x) for model in models)
        for name, value in expected.items():
            assert torch.equal(found[name].isfinite(), value.isfinite()), name
            torch.testing.assert_close(found[name], value, equal_nan=True, msg=name)
        assert found["infer"][:, 0].isfinite().all()


def test_a_gradient_that_is_not_finite_reaches_only_the_sources_of_its_neuron():
    found = []
    for name in ("columns", "blocks"):
        model = SparseDAG(UNREAD, values=1.0, executor=name, dtype=torch.float64)
        x = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
        model(x).backward(torch.tensor([[float("inf"), 1.0]], dtype=torch.float64))
        found.append((x.grad, model.edge_weight.grad))
    assert found[0][0][0, 1].isfinite()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_changed_numbers_are_packed_again():
    model = SparseDAG(UNREAD, values=1.0, executor="blocks")
    x = torch.ones(1, 4)
    with torch.no_grad():
        before = model(x).clone()
        model.edge_weight.mul_(2.0)
        model.edge_weight.data[0] = 3.0  # which torch does not count
        changed = model(x).clone()
    model.executor.name = "columns"
    with torch.no_grad():
        torch.testing.assert_close(changed, model(x))
    assert not torch.equal(before, changed)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_are_the_same_in_every_call_and_for_any_threads(threads):
    config = ManifoldConfig.preset("toy", edges="free")
    found = []
    for n in (1, threads):
        model = DynamicManifold(config, torch.Generator().manual_seed(3), executor="blocks", threads=n)
        found += [run_and_back(model, rng_input(model, 3)) for _ in range(2)]
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name


def test_larger_batches_run_as_columns_and_the_executor_says_so():
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0), executor="blocks")
    x = rng_input(model, MOST_BLOCK_COLUMNS + 1)
    found = run_and_back(model, x)
    model.executor.name = "columns"
    for name, value in run_and_back(model, x).items():
        assert torch.equal(value, found[name]), name
    assert Executor("blocks").chosen() == f"blocks up to batch {MOST_BLOCK_COLUMNS}, columns above"


def test_blocks_are_refused_on_cuda(monkeypatch):
    monkeypatch.setattr("sparse_dnm.engine.device.kernels", lambda device: None)
    with pytest.raises(ValueError, match="executor blocks runs on the CPU only"):
        engine_for(Executor("blocks"), torch.device("cuda"))


@pytest.mark.parametrize("grad", [True, False])
def test_fastest_compares_once_and_again_when_the_structure_has_changed(grad, monkeypatch):
    raced = []
    monkeypatch.setattr("sparse_dnm.engine.cpu.fastest_of", lambda watches: raced.append(len(watches)) or 0)
    engine, mode = CpuEngine(Executor("fastest", 1)), "train" if grad else "infer"
    x = torch.randn(2, 4)
    for edges in (6, 6, 4):
        topology = Topology.from_edges(UNREAD.edges()[:edges], 8, [0, 1, 2, 3], [6, 7])
        model = SparseDAG(topology, executor="fastest")
        model.executor, model._engine = engine.executor, engine
        model._structures = {}
        with torch.set_grad_enabled(grad):
            model(x)
        assert engine.executor.takes_blocks(mode, 2)
        assert not engine.executor.takes_blocks(mode, 1)
    assert raced == [2, 2]
    assert engine.executor.chosen() == f"fastest: {mode} blocks (batch 2)"


class Paced:
    """A stopwatch of a machine that is twice as slow during the first ``slow`` measurements."""

    def __init__(self, seconds, slow):
        self.seconds, self.slow = seconds, slow

    def __call__(self, clock):
        return self.seconds

    def warm(self, clock):
        self.slow -= 1
        return self.seconds * (2 if self.slow >= 0 else 1)


@pytest.mark.parametrize("costs", [(1.0, 1.1), (1.1, 1.0), (1.3, 1.1, 1.2)])
def test_a_race_compares_what_ran_side_by_side(costs):
    """The pace changes in the middle of round 8: medians over all rounds would say that the first to run is slower."""
    best = costs.index(min(costs))
    watches = [Paced(cost, 8 if k == best else 7) for k, cost in enumerate(costs)]
    assert fastest_of(watches) == best


def test_fastest_runs_what_won(monkeypatch):
    monkeypatch.setattr("sparse_dnm.engine.cpu.fastest_of", lambda watches: 1)
    model = SparseDAG(UNREAD, executor="fastest", threads=1)
    with torch.no_grad():
        model(torch.randn(1, 4))
    assert model.executor.to_race("infer", 1, model._structure(model.engine, torch.float32)) == ()
    assert not model.executor.takes_blocks("infer", 1)


# -- trainings -----------------------------------------------------------------------------------------------------


def samples(n=60):
    """A data set of 40 inputs and 3 classes."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 40, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    return Dataset("made", "classification", x, y, x[:10], y[:10], 8.0, ("a", "b", "c"))


MANIFOLD = ManifoldConfig(
    n_neurons=60, n_inputs=40, n_outputs=3, period=8.0, sigma=(12.0, 1.0), cutoff=-2.0, edges="free"
)
CONFIG = TrainConfig(
    fine_tune=0.0,
    steps=24,
    batch_size=3,
    schedule="constant",
    speed="proxy",
    kappa=1.0,
    log_every=8,
    checkpoint_every=8,
    threads=1,
)


def trained(config, out=None, steps=None):
    """A trained model, and its trainer."""
    model = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(0), executor=config.executor, threads=1)
    trainer = Trainer(model, samples(), dataclasses.replace(config, steps=steps or config.steps), out)
    trainer.run(lambda line: None)
    return model, trainer


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def test_a_training_of_few_samples_is_that_of_columns(monkeypatch):
    fused, run = [], FusedSteps.run
    monkeypatch.setattr(FusedSteps, "run", lambda self, *given: fused.append(self) or run(self, *given))
    blocks = dataclasses.replace(CONFIG, executor="blocks")
    model, _ = trained(blocks)
    assert not fused  # the compiled steps do not know blocks
    expected, _ = trained(dataclasses.replace(CONFIG, executor="columns"))
    assert fused
    assert_close(parameters(model), parameters(expected), 1e-3)


def test_a_training_that_is_resumed_goes_on_with_the_same_bits(tmp_path):
    config = dataclasses.replace(CONFIG, executor="blocks", kappa=0.0)  # kappa falls by the number of all steps
    model, _ = trained(config)
    trained(config, tmp_path / "run", steps=16)
    resumed = Trainer.resume(tmp_path / "run", samples(), 24)
    resumed.run(lambda line: None)
    for name, value in parameters(model).items():
        assert torch.equal(parameters(resumed.model)[name], value), name


def test_a_training_of_many_samples_has_the_bits_of_columns():
    found = [
        parameters(trained(dataclasses.replace(CONFIG, batch_size=20, executor=name))[0])
        for name in ("blocks", "columns")
    ]
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_a_network_is_trained_for_the_time_of_one_sample_by_blocks():
    config = dataclasses.replace(
        CONFIG, speed="time", time_mode="infer", time_batch=1, clock="perf_counter", executor="blocks", batch_size=20
    )
    model, trainer = trained(config)
    term = trainer._run.costs.speed
    assert term.executor.name == "blocks"
    assert set(term.seconds_per()) >= {"block", "neuron"}
    prices = term.prices(model.find())._replace(block=1e-9, edge=0.0)
    assert model.find().expected_cost(0.3, prices).value > 0


def test_the_executor_of_measured_time_may_be_blocks_where_batches_are_small(monkeypatch):
    model = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(0), threads=1)
    seen = []

    def times(watches, settings):
        seen.append([watch.engine.executor.name for watch in watches])
        return SimpleNamespace(seconds=np.array([[2.0], [1.0]][: len(watches)]))

    monkeypatch.setattr(probes, "time_steps", times)
    for batch, expected in ((1, "blocks"), (MOST_BLOCK_COLUMNS + 1, "columns")):
        bench = probes.Bench(model.find(), "infer", batch, "perf_counter", 0)
        assert bench.settle("auto", [1]).name == expected
    assert seen == [["columns", "blocks"]]


def test_the_trim_removes_the_edges_of_a_block_together():
    model = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(0), executor="blocks", threads=1)
    evaluation = model.find()
    prices = Prices(0.0, 0.0, 0.0, 0.0, 8.0)
    term = SimpleNamespace(prices=lambda evaluation: prices, settings=SimpleNamespace(tau=0.1))
    saved, together = trim._saved(evaluation, term)
    covering = Covering.of(evaluation.host)
    live = covering.blocks >= 0
    assert saved.sum() == pytest.approx(8.0 * covering.n_blocks)
    for block in np.unique(together[live]):
        assert saved[together == block].sum() == pytest.approx(8.0)
    assert (together[live] == covering.blocks[live]).all()
    prices = prices._replace(block=0.0, edge=2.0)
    saved, together = trim._saved(evaluation, term)
    assert len(set(together.tolist())) == len(together)
    assert saved[live].min() >= 2.0


@given(wide_dags(), st.integers(0, 2**20))
def test_probes_with_runs_are_dags_whose_rows_read_neighbours(topology, seed):
    part = structures.cut(topology, "runs", 1.0, np.random.default_rng(seed))
    assert part.n_edges <= topology.n_edges
    assert (np.diff(part.indptr) <= np.diff(topology.indptr)).all()
    assert not np.isin(part.indices, topology.outputs).any()


@pytest.mark.parametrize("outputs", [[0, 1, 2], [1]])
def test_neurons_without_any_edge_have_their_bias(outputs):
    topology = Topology.from_edges([], 3, [0], outputs)
    model = SparseDAG(topology, bias=[1.5, 2.5], weight=[2.0, 3.0], executor="blocks", threads=1, dtype=torch.float64)
    x, expected = torch.tensor([[7.0]], dtype=torch.float64), torch.tensor([[7.0, 1.5, 2.5]], dtype=torch.float64)
    model(x).sum().backward()
    assert model.bias.grad.tolist() == [1.0, float(2 in outputs)]
    for _ in range(2):
        assert torch.equal(model(x), expected[:, outputs])
        with torch.no_grad():
            assert torch.equal(model(x), expected[:, outputs])
