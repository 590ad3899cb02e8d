"""Training of recurrent networks: they learn, resume to the same bits, and what does not support them says so."""

import dataclasses
import json

import pytest
import torch
from test_training import assert_same_bits, dataset, lines

from sparse_dnm import (
    DenseManifold,
    DynamicManifold,
    ManifoldConfig,
    MeasuredMemory,
    TrainConfig,
    Trainer,
)
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.loss.proxy import SparsityProxy
from sparse_dnm.model.growth import grow_edges
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.adam import Adam
from sparse_dnm.train.metrics import evaluate
from sparse_dnm.train.step import AutogradStep, Costs, SequenceStep
from sparse_dnm.train.trim import Frozen

CONFIG = TrainConfig(
    steps=40, batch_size=32, lr=0.02, flow=1e-4, fine_tune=0.0, speed="proxy", proxy_coefficient=0.1, log_every=10,
    checkpoint_every=20,
)  # fmt: skip
KINDS = [("lstm", 0, 5), ("memoryless", 3, 3)]


def first_of(count=192, time=5, per_step=False, task="classification"):
    """Whether the first of ``time`` numbers was 1 or -1, a mark beside it; of each step, what the step before was."""
    sign = torch.randint(0, 2, (count, time), generator=torch.Generator().manual_seed(3))
    mark = torch.zeros(count, time)
    mark[:, 0] = 1.0
    x = torch.stack([2.0 * sign - 1.0, mark], 2)
    y = torch.cat([sign[:, :1], sign[:, :-1]], 1) if per_step else sign[:, 0]
    classes = ("minus", "plus")
    if task == "regression":
        y, classes = y.float()[..., None], ()
    return Dataset("first", task, x[:128], y[:128], x[128:], y[128:], 4.0, classes)


def trainer(out=None, config=CONFIG, neuron="lstm", n_memory=0, data=None, **changes):
    data = first_of() if data is None else data
    n = data.n_inputs + data.n_outputs + 2 * n_memory + 16
    sizes = {"n_neurons": n, "n_inputs": data.n_inputs, "n_outputs": data.n_outputs, "period": 4.0}
    free = {"edges": "free", "omega": (0.0, 0.6), "sigma": (8.0, 1.0), "mu": (0.0, 4.0)}
    made = ManifoldConfig(**{**sizes, **free, **changes}, neuron=neuron, n_memory=n_memory)
    return Trainer(DynamicManifold(made, torch.Generator().manual_seed(1), threads=1), data, config, out)


@pytest.mark.parametrize(("neuron", "n_memory", "time"), KINDS)
def test_a_network_learns_what_the_first_of_several_steps_was(neuron, n_memory, time):
    config = dataclasses.replace(CONFIG, steps=150)
    training = trainer(config=config, neuron=neuron, n_memory=n_memory, data=first_of(time=time))
    before = training.model.n_edges
    summary = training.run()
    assert isinstance(training._run.making, SequenceStep)
    assert summary["test_accuracy"] > 0.9
    assert summary["edges"] < before
    assert summary["test_f1_macro"] > 0.9


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_targets_of_every_step(task):
    training = trainer(config=dataclasses.replace(CONFIG, steps=250), data=first_of(per_step=True, task=task))
    first = evaluate(training.model, training.data)
    summary = training.run()
    name = "test_accuracy" if task == "classification" else "test_mse"
    assert (summary[name] > first[name] + 0.2) if task == "classification" else (summary[name] < 0.7 * first[name])


@pytest.mark.parametrize(
    ("neuron", "n_memory", "changes"),
    [
        ("lstm", 0, {"tbptt": 4, "kappa": 1.0, "fine_tune": 0.3}),
        ("gru", 2, {"recompute_every": 4, "early_stopping": True, "input_dropout": 0.1}),
    ],
)
def test_a_resumed_training_gives_the_same_bits(tmp_path, neuron, n_memory, changes):
    config = dataclasses.replace(CONFIG, **changes)
    trainer(tmp_path / "whole", config, neuron, n_memory).run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", config, neuron, n_memory).run(on_log=stop_at(20))
    resumed = Trainer.resume(tmp_path / "parts", first_of())
    assert resumed.step == 20
    resumed.run()
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_runs_from_before_there_were_recurrent_networks_go_on(tmp_path):
    """Their files know none of the new fields."""
    out, data = tmp_path / "run", dataset("classification")
    made = ManifoldConfig.for_data(data.n_inputs, data.n_outputs)
    config = dataclasses.replace(CONFIG, steps=20)
    Trainer(DynamicManifold(made, torch.Generator().manual_seed(1), threads=1), data, config, out).run()
    added = {"neuron", "n_memory", "gate_weight", "gate_recurrent", "gate_bias", "rate", "tbptt", "recompute_every"}
    values, saved = json.loads((out / files.CONFIG).read_text()), files.load(out / files.CHECKPOINT)
    for record in (values, saved.header):
        for part in ("manifold", "train"):
            record[part] = {name: value for name, value in record[part].items() if name not in added}
    (out / files.CONFIG).write_text(json.dumps(values))
    header = {name: value for name, value in saved.header.items() if name not in ("format", "version")}
    files.save(out / files.CHECKPOINT, files.Checkpoint(saved.tensors, header))
    assert not Trainer.resume(out, data, steps=25).model.recurrent


def stop_at(step):
    def stop(record):
        if record["step"] == step:
            raise KeyboardInterrupt

    return stop


def test_truncation_and_recomputation_reach_the_kernels():
    plain, cut = trainer(config=dataclasses.replace(CONFIG, steps=3)), trainer(
        config=dataclasses.replace(CONFIG, steps=3, tbptt=2)
    )  # fmt: skip
    again = trainer(config=dataclasses.replace(CONFIG, steps=3, recompute_every=2))
    for each in (plain, cut, again):
        each.run()
    torch.testing.assert_close(again.model.gate_weight, plain.model.gate_weight, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cut.model.gate_weight, plain.model.gate_weight, rtol=1e-4, atol=1e-5)


def test_gates_are_tuned_while_the_structure_is_frozen():
    model = trainer(neuron="ctrnn").model
    frozen = Frozen(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    frozen.clear_gradients()
    kept = {name for name, p in model.named_parameters() if p.grad is not None}
    assert kept == {"weight", "bias", "edge_weight", "rate"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": "time", "clock": "target"}, "clock='target' does not support recurrent networks yet: it reads"),
        ({"budget_bytes": 9000, "fine_tune": 0.3}, "budget_bytes=9000 does not support recurrent networks yet"),
        ({"scan_every": 5}, "scan_every=5 does not support recurrent networks yet"),
        ({"shift": 1}, "shift=1 does not support recurrent networks yet: it moves images"),
    ],
)
def test_settings_that_do_not_support_recurrent_networks_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(config=dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize("executor", ["wavefront", "blocks"])
def test_executors_of_single_steps_are_refused_before_a_training(executor):
    made = ManifoldConfig(20, 2, 2, 4.0, neuron="lstm")
    model = DynamicManifold(made, torch.Generator().manual_seed(1), executor=executor, threads=1)
    with pytest.raises(
        ValueError, match=r"recurrent networks run by the kernels of the CPU only.*choose executor auto"
    ):
        Trainer(model, first_of(), CONFIG)


def test_data_of_other_shapes_are_refused():
    data = first_of()
    rows = dataclasses.replace(data, x_train=data.x_train[:, 0], x_test=data.x_test[:, 0])
    with pytest.raises(
        ValueError,
        match=r"x_train has shape \(128, 2\).* needs sequences, .* by sequence or window",
    ):
        trainer(data=rows)
    with pytest.raises(ValueError, match=r"y_train is torch.int64 \(128, 4\); it must be int64 \(128, 5\): labels"):
        trainer(data=dataclasses.replace(data, y_train=torch.zeros(128, 4, dtype=torch.int64)))
    made = ManifoldConfig(10, 2, 2, 4.0)
    with pytest.raises(ValueError, match=r"x_train has shape \(128, 5, 2\); it must be \(n, 2\): a row per sample"):
        Trainer(DynamicManifold(made), data, CONFIG)
    with pytest.raises(ValueError, match="tbptt=3 is for recurrent networks, and this one has no memory"):
        Trainer(DynamicManifold(made), rows, dataclasses.replace(CONFIG, tbptt=3))


def places(model):
    from sparse_dnm.target import Target, calibrate_target, time_on_target

    return {
        "DenseManifold": lambda: DenseManifold.from_manifold(model),
        "the clock of programs in C": lambda: calibrate_target(model, Target()),
        "the clock of programs in C of a given graph": lambda: time_on_target({"network": model.to_dag()}, Target()),
        "a search for edges": lambda: grow_edges(model, torch.zeros(1, 2), torch.sum, 1),
    }


PLACES = (
    *("DenseManifold", "the clock of programs in C", "the clock of programs in C of a given graph"),
    "a search for edges",
)


@pytest.mark.parametrize("place", PLACES)
def test_what_does_not_support_recurrent_networks_says_so(place):
    name = place.removesuffix(" of a given graph")
    with pytest.raises(ValueError, match=f"{name}.* does not support recurrent networks"):
        places(trainer().model)[place]()


def test_exports_say_so(tmp_path):
    from sparse_dnm.export import Folded, to_npz, to_onnx, to_program

    model = trainer().model
    for export in (to_npz, to_onnx, to_program, lambda each: Folded.of(each.to_dag())):
        with pytest.raises(ValueError, match="does not support recurrent networks"):
            export(model)


def test_a_page_of_a_recurrent_run(tmp_path):
    from sparse_dnm.report import page
    from sparse_dnm.report.history import History

    trainer(tmp_path / "run", dataclasses.replace(CONFIG, steps=4), n_memory=2).run()
    history = History.read(tmp_path / "run", 4)
    assert history.image is None  # a sample is a sequence, no picture
    assert history.manifold.n_memory == 2
    assert f'"n_inputs": {history.manifold.n_inputs + 2}' in page.page(history)


@pytest.mark.parametrize("edges", ["free", "closeness", "weighted"])
@pytest.mark.parametrize(
    ("neuron", "n_memory", "changes", "per_step", "task"),
    [
        ("lstm", 0, {}, False, "classification"),
        ("lstm", 0, {"tbptt": 2, "output": "square"}, True, "regression"),
        ("gru", 2, {"recompute_every": 2, "kappa": 0.5}, True, "classification"),
        ("ctrnn", 0, {"kappa": 0.5, "output": "square"}, False, "regression"),
        ("memoryless", 2, {}, True, "classification"),
    ],
)
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_kernels_and_graph_give_the_same_loss_and_gradients(
    edges, neuron, n_memory, changes, per_step, task, lengths, weighted
):
    known = {name: value for name, value in changes.items() if name in ("tbptt", "recompute_every")}
    config = dataclasses.replace(CONFIG, batch_size=7, objective=3.0, flow=0.01, memory_coefficient=0.5, **known)
    data = first_of(per_step=per_step, task=task)
    n_outputs = data.n_outputs
    sizes = {"n_neurons": 16 + 2 * n_memory + n_outputs, "n_inputs": 2, "n_outputs": n_outputs, "period": 4.0}
    made = ManifoldConfig(
        **sizes, edges=edges, neuron=neuron, n_memory=n_memory, output=changes.get("output", "linear"),
        omega=(0.3, 0.5), sigma=(8.0, 1.0), mu=(0.0, 3.0), cutoff=-2.5,
    )  # fmt: skip
    model = DynamicManifold(made, torch.Generator().manual_seed(1), torch.float64, threads=1)
    model.kappa = changes.get("kappa", 0.0)
    optimizer = Adam(list(model.parameters()), 0.01)
    x, y = data.x_train[:7].double(), data.y_train[:7]
    y = y.double() if task == "regression" else y
    of_samples = torch.rand(7, dtype=torch.float64) if weighted else None
    steps = torch.tensor([1, 5, 3, 5, 2, 4, 1]) if lengths else None
    costs = Costs(config, SparsityProxy(config.tau), MeasuredMemory(model, batch=7, time_steps=5))
    found = []
    for step in (
        SequenceStep(model, task, config, costs, optimizer, per_step),
        AutogradStep(model, task, config, costs, per_step),
    ):
        for parameter in model.parameters():
            parameter.grad = None
        outputs = step.forward(x, steps).detach()
        terms = step.loss(y, True, of_samples)
        step.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        if isinstance(step, SequenceStep) and edges != "closeness":
            gradients["edge_weight"] = torch.zeros_like(model.edge_weight)
            gradients["edge_weight"][step.edges.slots] = step.by_omega
        step.finish()
        found.append((outputs, torch.tensor([value for value in terms if value is not None]), gradients))
    (outputs, terms, gradients), (expected, other, by_graph) = found
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(terms, other)
    assert set(by_graph) <= set(gradients)
    assert {"weight", "gate_weight", "rate"} & set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, by_graph.get(name, torch.zeros_like(gradient)), msg=name)


def test_kernels_and_graph_train_the_same_network():
    """In float64, with the ring of candidates, while edges come and go."""
    data = first_of()
    data = dataclasses.replace(data, x_train=data.x_train.double(), x_test=data.x_test.double())
    config = dataclasses.replace(CONFIG, steps=60, kappa=1.0)
    found = []
    for graph in (False, True):
        sizes = {"n_neurons": 20, "n_inputs": 2, "n_outputs": 2, "period": 4.0, "sigma": (8.0, 1.0), "mu": (0.0, 4.0)}
        made = ManifoldConfig(**sizes, edges="free", omega=(0.0, 0.6), neuron="lstm")
        model = DynamicManifold(made, torch.Generator().manual_seed(1), torch.float64, threads=1)
        if graph:
            model.mu.register_post_accumulate_grad_hook(lambda p: None)
        training, losses = Trainer(model, data, config), []
        training.run(lambda record, losses=losses: losses.append(record["loss"]))
        assert isinstance(training._run.making, AutogradStep if graph else SequenceStep)
        found.append((torch.tensor(losses, dtype=torch.float64), model.n_edges))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-12)
    assert found[0][1] == found[1][1]
