"""Trainer: figures, the same bits after a resume, and what stops a training."""

import dataclasses
import json
import math
import os
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch

from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.io import CheckpointError
from sparse_dnm.loss.memory import MeasuredMemory
from sparse_dnm.loss.proxy import SparsityProxy
from sparse_dnm.loss.time import MeasuredTime, TimeSettings
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.adam import Adam
from sparse_dnm.train.metrics import further_figures
from sparse_dnm.train.schedules import learning_rate
from sparse_dnm.train.step import KERNELS, AutogradStep, Costs, KernelStep, step_for
from sparse_dnm.train.trainer import StopSignals, Trainer, TrainingError, evaluate

LINE = {"step", "loss", "objective", "flow", "speed", "edges", "density", "depth", "live", "lr", "step_seconds"}
SUMMARY = {
    *("edges", "density", "depth", "live", "steps", "train_seconds", "step_seconds", "clock", "threads", "device"),
    *("executor", "versions", "machine"),
}
CONFIG = TrainConfig(
    steps=60, batch_size=16, lr=0.02, flow=1e-4, fine_tune=0.0, speed="proxy", log_every=10, checkpoint_every=20
)  # no clock in the loss: the same bits every time


def dataset(task: str) -> Dataset:
    """192 samples of 6 features: which of three features is the largest, or two sums of features."""
    x = torch.randn(192, 6, generator=torch.Generator().manual_seed(5))
    if task == "classification":
        y, extra = x[:, :3].argmax(1), {"classes": ("a", "b", "c")}
    else:
        y = torch.stack([x[:, 0] + x[:, 1], x[:, 2] - x[:, 3]], 1)
        extra = {"target_mean": torch.tensor([5.0, 0.0]), "target_std": torch.tensor([10.0, 1.0])}
    return Dataset("synthetic", task, x[:128], y[:128], x[128:], y[128:], 6.0, **extra)


def trainer(
    out=None, config=CONFIG, task="classification", threads=0, executor="columns", dtype=torch.float32, **changes
) -> Trainer:
    data = dataset(task)
    data = dataclasses.replace(data, x_train=data.x_train.to(dtype), x_test=data.x_test.to(dtype))
    manifold = ManifoldConfig.for_data(data.n_inputs, data.n_outputs, **changes)
    generator = torch.Generator().manual_seed(1)
    return Trainer(
        DynamicManifold(manifold, generator, dtype=dtype, executor=executor, threads=threads), data, config, out
    )


def tensors(out):
    return files.load(out / files.CHECKPOINT).tensors


def assert_same_bits(first, second):
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), name


def lines(out):
    """Lines of metrics.jsonl, but for their times."""
    records = [json.loads(line) for line in (out / files.METRICS).read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "step_seconds"} for record in records]


class Stop(Exception):
    """Raised in the middle of a training, as a crash would."""


def crash_at(step):
    def on_log(record):
        if record["step"] == step:
            raise Stop

    return on_log


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A training run without interruption, its lines and its summary."""
    out = tmp_path_factory.mktemp("finished") / "run"
    records = []
    summary = trainer(out).run(records.append)
    return out, records, summary


def test_run_directory(finished):
    out, records, summary = finished
    assert sorted(os.listdir(out)) == sorted([*files.RUN_FILES, "snapshots"])
    assert json.loads((out / files.SUMMARY).read_text()) == summary
    assert [json.loads(line) for line in (out / files.METRICS).read_text().splitlines()] == records
    manifold, config, source, about = files.read_config(out)
    assert (manifold.n_inputs, config, source, about["n_train"]) == (6, CONFIG, None, 128)


def test_lines_and_summary(finished):
    _, records, summary = finished
    assert [r["step"] for r in records] == [0, 10, 20, 30, 40, 50, 60]
    assert [r["step"] for r in records if "test_accuracy" in r] == [0, 20, 40, 60]
    for record in records:
        assert set(record) - {"test_accuracy"} == LINE | {"train_accuracy"}
        terms = record["objective"] + CONFIG.flow * record["flow"] + CONFIG.speed_coefficient * record["speed"]
        assert record["loss"] == pytest.approx(terms, rel=1e-5)
    assert set(summary) == SUMMARY | {"test_accuracy", "test_balanced_accuracy", "test_f1_macro"}
    assert summary["steps"] == 60
    assert summary["clock"] == "perf_counter"
    for name in ("edges", "density", "depth", "live", "test_accuracy"):
        assert summary[name] == records[-1][name]
    assert records[-1]["loss"] < records[0]["loss"]
    assert len({r["edges"] for r in records}) > 1  # the structure did change


def test_evaluate_is_the_figure_of_the_whole_test_set(finished):
    out, _, summary = finished
    data = dataset("classification")
    model = Trainer.resume(out, data).model
    with torch.no_grad():
        right = (model(data.x_test).argmax(1) == data.y_test).double().mean().item()
    assert evaluate(model, data) == evaluate(model, data, chunk=16) == {"test_accuracy": right}
    assert summary["test_accuracy"] == right


@pytest.mark.parametrize("shown", [3, 2, 1])
def test_figures_beside_the_accuracy_are_means_over_the_classes_of_the_test_set(shown):
    run = trainer()
    kept = run.data.y_test < shown
    data = dataclasses.replace(run.data, x_test=run.data.x_test[kept], y_test=run.data.y_test[kept])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = further_figures(run.model, data)
    with torch.no_grad():
        labels = run.model(data.x_test).argmax(1)
    recalls, scores = [], []
    for k in range(3):
        both = int(((labels == k) & (data.y_test == k)).sum())
        told, true = int((labels == k).sum()), int((data.y_test == k).sum())
        recalls += [both / true] if true else []
        scores += [2 * both / (told + true)] if told + true else []
    assert len(recalls) == shown
    expected = {"test_balanced_accuracy": np.mean(recalls), "test_f1_macro": np.mean(scores)}
    assert found == pytest.approx(expected)


def test_r2_is_the_mean_over_the_targets_that_vary_and_left_out_without_any():
    run = trainer(task="regression")
    model, data = run.model, run.data
    with torch.no_grad():
        outputs = model(data.x_test).double()

    def r2(k):
        y = data.y_test[:, k].double()
        return 1 - float(((y - outputs[:, k]) ** 2).sum() / ((y - y.mean()) ** 2).sum())

    assert further_figures(model, data) == pytest.approx({"test_r2": (r2(0) + r2(1)) / 2})
    y = data.y_test.clone()
    y[:, 0] = 0.5
    assert further_figures(model, dataclasses.replace(data, y_test=y)) == pytest.approx({"test_r2": r2(1)})
    assert further_figures(model, dataclasses.replace(data, x_test=data.x_test[:1], y_test=data.y_test[:1])) == {}


def test_data_without_test_samples_have_no_figures_of_them(tmp_path):
    run = trainer()
    none = dataclasses.replace(run.data, x_test=run.data.x_test[:0], y_test=run.data.y_test[:0])
    summary = Trainer(run.model, none, CONFIG, tmp_path / "run").run()
    assert not any(name.startswith("test_") for name in summary)
    assert Trainer.resume(tmp_path / "run", none).finished


def test_mse_is_in_the_units_of_the_data():
    run = trainer(task="regression")
    summary = run.run()
    with torch.no_grad():
        error = run.model(run.data.x_test) - run.data.y_test
    expected = (error * torch.tensor([10.0, 1.0])).square().mean().item()
    assert summary["test_mse"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("edges", ["free", "closeness", "free-closeness", "weighted"])
@pytest.mark.parametrize("step", [0, 30, 40])
def test_resume_after_a_crash_gives_the_same_bits(tmp_path, edges, step):
    changes = {"edges": edges, "skin": 0.02}  # a thin skin: candidates are rebuilt often
    trainer(tmp_path / "whole", **changes).run()
    with pytest.raises(Stop):
        trainer(tmp_path / "torn", **changes).run(crash_at(step))
    assert files.load(tmp_path / "torn" / files.CHECKPOINT).header["step"] == step // 20 * 20
    with open(tmp_path / "torn" / files.METRICS, "a") as file:
        file.write('{"step": 4')
    resumed = Trainer.resume(tmp_path / "torn", dataset("classification"))
    assert not resumed.finished
    resumed.run()
    assert resumed.finished
    assert_same_bits(tmp_path / "whole", tmp_path / "torn")
    assert lines(tmp_path / "whole") == lines(tmp_path / "torn")


def write_as_before_slots(out):
    """Make the files of a run what they were before edge_weight had slots: a number per candidate, in CSR order."""
    saved = files.load(out / files.CHECKPOINT)
    n = int(saved.tensors["model/candidate_indptr"][-1])
    slots = saved.tensors["model/candidate_slots"][:n]
    for name in ("model/edge_weight", "optimizer/edge_weight/exp_avg", "optimizer/edge_weight/exp_avg_sq"):
        saved.tensors[name] = saved.tensors[name][slots]
    saved.tensors["model/candidate_indices"] = saved.tensors["model/candidate_indices"][:n]
    for name in ("candidate_slots", "slot_births", "structure_digest"):
        del saved.tensors[f"model/{name}"]
    del saved.header["manifold"]["capacity"]
    files.save(out / files.CHECKPOINT, saved)
    about = json.loads((out / files.CONFIG).read_text())
    del about["manifold"]["capacity"]
    (out / files.CONFIG).write_text(json.dumps(about))
    return saved


def in_csr_order(out):
    """Tensors of a checkpoint, those of edge_weight as `write_as_before_slots` writes them."""
    found = dict(tensors(out))
    n = int(found["model/candidate_indptr"][-1])
    slots = found.pop("model/candidate_slots")[:n]
    for name in ("model/edge_weight", "optimizer/edge_weight/exp_avg", "optimizer/edge_weight/exp_avg_sq"):
        found[name] = found[name][slots]
    for name in ("slot_births", "structure_digest"):
        del found[f"model/{name}"]
    return found


@pytest.mark.parametrize("edges", ["free", "weighted"])
def test_a_run_from_before_there_were_slots_goes_on_to_the_same_bits(tmp_path, edges):
    run = tmp_path / "run"
    trainer(run, dataclasses.replace(CONFIG, steps=30), edges=edges, skin=0.02).run()
    old = shutil.copytree(run, tmp_path / "old")
    saved = write_as_before_slots(old)
    resumed = [Trainer.resume(out, dataset("classification"), steps=60) for out in (run, old)]
    moments = resumed[1]._optimizer.state[resumed[1].model.edge_weight]
    slots = resumed[1].model.candidates.slots
    assert len(slots) < resumed[1].model.capacity == len(moments["exp_avg"])
    assert torch.equal(moments["exp_avg_sq"][slots], saved.tensors["optimizer/edge_weight/exp_avg_sq"])
    assert evaluate(resumed[0].model, resumed[0].data) == evaluate(resumed[1].model, resumed[1].data)
    for each in resumed:
        each.run()
    first, second = in_csr_order(run), in_csr_order(old)
    for name in first.keys() | second.keys():
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name
    assert lines(run) == lines(old)


@pytest.mark.parametrize("edges", ["free", "closeness"])
def test_a_trainer_makes_room_where_edges_need_more_than_there_is(edges):
    config = dataclasses.replace(CONFIG, kappa=3.0, scan_every=7 * (edges == "free"), scan_edges=20)
    tight = trainer(config=config, edges=edges, capacity=1)
    before = tight.model.capacity
    assert before == len(tight.model.candidates.indices) < tight.model.config.possible_edges

    def widen(record):
        if record["step"] == 20:  # as a large step of the optimiser would
            tight.model.cutoff.data.sub_(2.0)

    tight.run(widen)
    assert tight.model.capacity > before
    notes = [line for line in tight.notes if "slots of edge_weight" in line]
    assert f"more than the {before:,} slots" in notes[0]
    assert len(notes) <= 2
    moments = tight._optimizer.state
    assert moments[tight.model.weight]["step"] == 60
    if edges == "free":
        assert len(moments[tight.model.edge_weight]["exp_avg"]) == tight.model.capacity


@pytest.mark.parametrize(("executor", "threads"), [("columns", 1), ("wavefront", 0), ("auto", 0)])
def test_same_bits_for_every_executor_and_thread_count(finished, tmp_path, executor, threads):
    trainer(tmp_path / "run", executor=executor, threads=threads).run()
    assert_same_bits(finished[0], tmp_path / "run")
    assert lines(finished[0]) == lines(tmp_path / "run")


def step_by_torch(self, optimizer, frozen=None):
    """What `KernelStep.update` does, by torch's own Adam."""
    own, edges = list(self.model.parameters()), self.edges
    used = list(own)
    if edges is not None:
        used[[p is self.model.edge_weight for p in own].index(True)] = compact = torch.nn.Parameter(edges.omega)
        compact.grad = self.by_omega
    reference = torch.optim.Adam(used, lr=optimizer.param_groups[0]["lr"], fused=True)
    for p, q in zip(own, used, strict=True):
        if p not in optimizer.state:
            optimizer.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p)}
            optimizer.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        here = {} if p is q else {"exp_avg": edges.first, "exp_avg_sq": edges.second}
        reference.state[q] = {**optimizer.state[p], **here}
    reference.step()


@pytest.mark.parametrize("edges", ["closeness", "free"])
def test_updates_are_those_of_the_optimiser(monkeypatch, edges):
    ours, by_torch = trainer(edges=edges, skin=0.02), trainer(edges=edges, skin=0.02)
    ours.run()
    monkeypatch.setattr(KernelStep, "update", step_by_torch)
    by_torch.run()
    assert ours.model.topology.edges().tobytes() == by_torch.model.topology.edges().tobytes()
    for (name, p), q in zip(ours.model.named_parameters(), by_torch.model.parameters(), strict=True):
        kept = ours.model.candidates.slots if name == "edge_weight" else ...
        assert p.detach().numpy()[kept].tobytes() == q.detach().numpy()[kept].tobytes(), name


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(
    ("train", "manifold"),
    [
        ({"flow": 0.3}, {"edges": "closeness"}),
        ({"objective": 7.0, "proxy_coefficient": 20.0, "speed": "proxy"}, {"edges": "free", "output": "square"}),
        (
            {"flow": 0.3, "proxy_coefficient": 5.0, "speed_power": 2, "speed": "proxy"},
            {"edges": "closeness", "output": "square"},
        ),
        ({"flow": 1.0, "proxy_gradient": "none", "speed": "proxy"}, {"edges": "free", "activation": "silu"}),
        ({"speed": "none"}, {"edges": "free"}),
        ({"time_coefficient": 30.0, "memory_coefficient": 7.0}, {"edges": "free"}),
        ({"flow": 1.0, "time_coefficient": 30.0}, {"edges": "closeness"}),
        ({"speed": "none", "kappa": 0.7}, {"edges": "free"}),
        ({"speed": "none", "kappa": 0.7, "flow": 1.0}, {"edges": "free-closeness"}),
        ({"speed": "proxy", "proxy_coefficient": 2.0, "kappa": 0.7, "flow": 1.0}, {"edges": "weighted"}),
        ({"speed": "proxy", "proxy_coefficient": 2.0, "kappa": 0.7}, {"edges": "closeness", "output": "square"}),
    ],
)
def test_kernels_descend_as_autograd_does(task, train, manifold):
    config, data = TrainConfig(**train), dataset(task)
    model = DynamicManifold(ManifoldConfig.for_data(6, data.n_outputs, **manifold), torch.Generator().manual_seed(1))
    costs = Costs(config)
    model.kappa = config.kappa
    if config.speed == "proxy":
        costs.speed = SparsityProxy(config.tau, config.speed_power, config.proxy_gradient)
    if config.speed == "time":  # timed once: the value stays, and with it the gradient
        costs.speed = MeasuredTime(model, TimeSettings(batch=20, every=1000, probes=10, repeats=3))
    if config.memory_coefficient:
        costs.memory = MeasuredMemory(model)
    optimizer = Adam(list(model.parameters()), 0.01)
    found = []
    for step in (KernelStep(model, task, config, costs, optimizer), AutogradStep(model, task, config, costs)):
        outputs = step.forward(data.x_train[:20]).detach().clone()
        terms = step.loss(data.y_train[:20], report=True)
        step.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        if isinstance(step, KernelStep) and step.edges is not None:
            gradients["edge_weight"] = torch.zeros_like(model.edge_weight)
            gradients["edge_weight"][step.edges.slots] = step.by_omega
        step.finish()
        found.append((outputs, terms, gradients))
    (outputs, terms, gradients), (outputs_2, terms_2, gradients_2) = found
    assert torch.equal(outputs, outputs_2)
    assert gradients.keys() == gradients_2.keys() == {name for name, _ in model.named_parameters()}
    for term, term_2 in zip(terms, terms_2, strict=True):
        assert (term is None) == (term_2 is None)
        assert term is None or term == pytest.approx(term_2, rel=1e-6)
    for name, gradient in gradients.items():
        scale = gradients_2[name].abs().max()
        torch.testing.assert_close(gradient, gradients_2[name], rtol=1e-5, atol=1e-6 * scale, msg=name)


def test_what_listens_to_autograd_is_served_by_it():
    def kind(change, **options):
        run = trainer(**options)
        change(run.model)
        return type(step_for(run.model, run.data.task, CONFIG, Adam(list(run.model.parameters()), 0.01)))

    assert kind(lambda model: None) is KernelStep
    assert kind(lambda model: model.mu.requires_grad_(False)) is AutogradStep
    assert kind(lambda model: model.mu.register_hook(lambda g: g)) is AutogradStep
    assert kind(lambda model: model.mu.register_post_accumulate_grad_hook(lambda p: None)) is AutogradStep
    assert kind(lambda model: model.register_forward_hook(lambda *_: None)) is AutogradStep
    assert kind(lambda model: setattr(model, "forward", model.forward)) is AutogradStep
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert kind(lambda model: None) is AutogradStep
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        kind(lambda model: model.requires_grad_(False))


def test_a_parameter_frozen_on_the_way_rests_and_its_updates_are_not_counted():
    run, frozen = trainer(config=dataclasses.replace(CONFIG, schedule="constant")), []

    def freeze(record):
        if record["step"] == 20:
            run.model.mu.requires_grad_(False)
            frozen.append(run.model.mu.clone())

    run.run(freeze)
    assert torch.equal(run.model.mu, frozen[0])
    steps = {name: run._optimizer.state[p]["step"].item() for name, p in run.model.named_parameters()}
    assert steps == {name: 20 if name == "mu" else 60 for name in steps}


def test_a_saturated_cross_entropy_keeps_its_digits():
    outputs = torch.tensor([[40.0, 0.0, 1.0], [-3.0, 50.0, 2.0]], dtype=torch.float64, requires_grad=True)
    labels, gradient = torch.tensor([0, 1]), np.empty((2, 3))
    loss = torch.nn.functional.cross_entropy(outputs, labels)
    loss.backward()
    found = KERNELS.cross_entropy(outputs.detach().numpy(), labels.numpy(), np.empty(0), 1.0, gradient)
    assert found == pytest.approx(loss.item(), rel=1e-3, abs=1e-17)
    np.testing.assert_allclose(gradient, outputs.grad.numpy(), rtol=1e-9, atol=1e-17)


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("classification", lambda d: {"y_train": d.y_train + 1}, r"labels 1 to 3; they must be in 0 \.\. 2"),
        ("classification", lambda d: {"y_train": d.y_train - 1}, r"labels -1 to 1"),
        ("classification", lambda d: {"y_train": d.y_train.int()}, r"torch.int32 \(128,\); it must be int64 \(128,\)"),
        ("classification", lambda d: {"y_train": d.y_train[:-1]}, r"int64 \(127,\); it must be int64 \(128,\)"),
        ("regression", lambda d: {"y_train": d.y_train.double()}, r"torch.float64 .*must be torch.float32 \(128, 2\)"),
        ("regression", lambda d: {"y_train": d.y_train[:-1]}, r"\(127, 2\); it must be torch.float32 \(128, 2\)"),
        ("regression", lambda d: {"x_train": d.x_train.double()}, r"x has dtype torch.float64"),
        ("classification", lambda d: {"y_test": d.y_test[:-1]}, r"y_test is torch.int64 .*; it must be int64"),
        ("classification", lambda d: {"y_test": d.y_test + 2}, r"y_test holds labels 2 to 4; .* 0 \.\. 2"),
        ("regression", lambda d: {"y_test": d.y_test[:, :1]}, r"y_test is torch.float32 .*a row of targets per sample"),
        ("regression", lambda d: {"x_test": d.x_test[:, :1]}, r"x has shape \(1, 1\)"),
        ("regression", lambda d: {"x_test": d.x_test[0]}, r"x has shape \(1,\)"),
        ("regression", lambda d: {"x_test": d.x_test[None]}, r"x_test has shape \(1, .*a row per sample"),
        ("regression", lambda d: {"x_test": d.x_test / 0}, r"x_test is not finite in row 0"),
        ("regression", lambda d: {"y_train": d.y_train * torch.nan}, r"y_train is not finite in row 0"),
    ],
)
def test_data_that_kernels_would_misread_are_refused(task, change, words):
    run = trainer(task=task)
    with pytest.raises(ValueError, match=words):
        Trainer(run.model, dataclasses.replace(run.data, **change(run.data)), CONFIG)


def test_longer_training_extends_a_finished_one(tmp_path):
    constant = {"batch_size": 16, "fine_tune": 0.0, "speed": "proxy", "schedule": "constant", "log_every": 10}
    trainer(tmp_path / "whole", TrainConfig(steps=50, **constant)).run()
    first = trainer(tmp_path / "extended", TrainConfig(steps=30, **constant)).run()
    resumed = Trainer.resume(tmp_path / "extended", dataset("classification"), steps=50)
    assert not resumed.finished
    summary = resumed.run()
    assert_same_bits(tmp_path / "whole", tmp_path / "extended")
    assert summary["train_seconds"] > first["train_seconds"]
    assert files.read_config(tmp_path / "extended")[1].steps == 50
    with pytest.raises(ValueError, match=r"steps=40 lies before step 50"):
        Trainer.resume(tmp_path / "extended", dataset("classification"), steps=40)


def test_schedules():
    cosine = TrainConfig(steps=100, lr=0.5, fine_tune=0.0)
    assert learning_rate(cosine, 0) == 0.5
    assert learning_rate(cosine, 50) == pytest.approx(0.25)
    assert 0 < learning_rate(cosine, 99) < 0.001
    assert learning_rate(TrainConfig(steps=100, lr=0.5, fine_tune=0.0, schedule="constant"), 99) == 0.5


def test_no_directory_and_no_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = trainer(config=TrainConfig(steps=0, batch_size=16, speed="none")).run()
    assert (summary["steps"], summary["step_seconds"]) == (0, None)
    assert os.listdir(tmp_path) == []


def test_threads_of_torch_and_signal_handlers_come_back(tmp_path):
    before, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    torch.set_num_threads(2)
    seen = []
    trainer(tmp_path / "run").run(lambda _: seen.append((torch.get_num_threads(), signal.getsignal(signal.SIGINT))))
    assert {n for n, _ in seen} == {1}
    assert all(inside is not handler for _, inside in seen)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_aborts_at_once():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_diverging_loss_keeps_the_last_good_checkpoint(tmp_path):
    config = TrainConfig(steps=60, lr=1e6, batch_size=16, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"new run.* lower lr \(now 1e\+06\).*checkpoint, of step") as error:
        trainer(tmp_path / "run", config, task="regression").run()
    saved = files.load(tmp_path / "run" / files.CHECKPOINT)
    assert f"of step {saved.header['step']}," in str(error.value)
    assert all(torch.isfinite(t).all() for t in saved.tensors.values())
    assert not (tmp_path / "run" / files.SUMMARY).exists()


def test_gradient_that_is_not_finite_is_found_before_saving(tmp_path):
    run = trainer(tmp_path / "run")
    run.model.weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(TrainingError, match=r"diverged.*last finite loss was"):
        run.run()
    assert files.load(tmp_path / "run" / files.CHECKPOINT).header["step"] == 0


def test_network_cut_in_two(tmp_path):
    run = trainer(tmp_path / "run")

    def cut(record):
        if record["step"] == 30:
            run.model.cutoff.data.fill_(20.0)

    message = (
        r"cut itself in two after step 30.*lower proxy_coefficient .*higher flow .*lower cutoff .*of step 20, is kept"
    )
    with pytest.raises(TrainingError, match=message):
        run.run(cut)


def test_speed_alone_cuts_the_network(tmp_path):
    config = TrainConfig(steps=2000, batch_size=16, lr=0.1, schedule="constant", proxy_coefficient=1e6, speed="proxy")
    with pytest.raises(TrainingError, match="cut itself in two"):
        trainer(tmp_path / "run", config, cutoff=-1.0, skin=0.1, omega=(0.0, 0.3)).run()


def test_network_cut_from_the_start_leaves_no_run(tmp_path):
    with pytest.raises(
        TrainingError, match=r"at the start.*cutoff \(now 20\).*omega=\(0, std\).*Nothing was saved"
    ) as e:
        trainer(tmp_path / "run", cutoff=20.0).run()
    assert not any(word in str(e.value) for word in ("speed", "flow", "lr"))
    assert not (tmp_path / "run").exists()


def test_directory_of_another_run(finished, tmp_path):
    with pytest.raises(ValueError, match="already holds a run"):
        trainer(finished[0]).run()


def test_model_that_does_not_fit_the_data():
    model = DynamicManifold(ManifoldConfig.for_data(5, 3))
    with pytest.raises(ValueError, match="the model has n_inputs=5 but data synthetic need n_inputs=6"):
        Trainer(model, dataset("classification"), CONFIG)


def copy_of(run, tmp_path):
    out = tmp_path / "copy"
    out.mkdir()
    for name in files.RUN_FILES:
        (out / name).write_bytes((run / name).read_bytes())
    return out


@pytest.mark.parametrize(
    ("section", "field", "value", "reason"),
    [
        ("manifold", "mu", [0.0, 3.0], r"another run \(manifold: mu is"),
        ("train", "lr", 0.5, r"another run \(train: lr is 0.02 there, 0.5 here"),
        ("data", "n_train", 129, r"another run .data: n_train is 128 there, 129 here"),
    ],
)
def test_checkpoint_of_another_run(finished, tmp_path, section, field, value, reason):
    out = copy_of(finished[0], tmp_path)
    about = json.loads((out / files.CONFIG).read_text())
    about[section][field] = value
    (out / files.CONFIG).write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=reason):
        Trainer.resume(out, dataset("classification"))


def test_other_data(finished):
    data = dataset("classification")
    data.x_train[3, 2] += 1
    with pytest.raises(CheckpointError, match=r"data synthetic have changed .*\(contents\); give the original data"):
        Trainer.resume(finished[0], data)
    data = dataclasses.replace(data, x_train=data.x_train[:100], y_train=data.y_train[:100])
    with pytest.raises(CheckpointError, match=r"data synthetic have changed .*\(n_train\)"):
        Trainer.resume(finished[0], data)


def test_data_under_another_name_are_the_same(finished):
    assert Trainer.resume(finished[0], dataclasses.replace(dataset("classification"), name="moved")).finished


def test_torch_sparse_runs_on_one_thread():
    pytest.importorskip("torch_sparse")
    config = TrainConfig(steps=1, batch_size=16, speed="proxy")
    assert trainer(config=config, executor="torch-sparse", threads=2).run()["threads"] == 1


@pytest.mark.parametrize("name", ["model/mu", "optimizer/mu/exp_avg", "order/order", "model/edge_weight"])
@pytest.mark.parametrize("change", ["short", "absent"])
def test_checkpoint_whose_tensors_do_not_fit(finished, tmp_path, name, change):
    out = copy_of(finished[0], tmp_path)
    saved = files.load(out / files.CHECKPOINT)
    saved.tensors[name] = saved.tensors[name][:-1]
    if change == "absent":
        del saved.tensors[name]
    files.save(out / files.CHECKPOINT, saved)
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors does not fit its run"):
        Trainer.resume(out, dataset("classification"))
