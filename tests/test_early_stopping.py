"""Early stopping: the best parameters on validation samples are kept and handed over, the same bits after a resume."""

import copy
import dataclasses
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_budget import given as fresh
from test_fused import CASES, CONFIG, MANIFOLD, assert_same_bits, samples, train
from test_training import trainer as make_trainer
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, TrainConfig, Trainer
from sparse_dnm.cli.app import app
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.loss.time import MeasuredTime
from sparse_dnm.report.history import History
from sparse_dnm.timing.subprocess import Processes
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.metrics import evaluate
from sparse_dnm.train.schedules import trimmed_after
from sparse_dnm.train.signals import Interrupted
from sparse_dnm.train.validation import hold_out
from sparse_dnm.train.weighting import weigh

EARLY = dataclasses.replace(
    CONFIG, early_stopping=True, validation=0.3, validate_every=5, patience=4, lr=0.03, steps=200, log_every=25,
    checkpoint_every=35, schedule="constant", fine_tune=0.0,
)  # fmt: skip
PATIENT = dataclasses.replace(EARLY, patience=1000, steps=60, log_every=5)


def model_of(threads=1, **changes):
    manifold = dataclasses.replace(MANIFOLD, **changes)
    return DynamicManifold(manifold, torch.Generator().manual_seed(1), executor="columns", threads=threads)


def noisy(task="classification", n=90):
    """Samples whose targets are half noise, so that a network soon learns nothing that holds for others."""
    data, generator = samples(task, n=n), torch.Generator().manual_seed(7)
    other = torch.randperm(n, generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.5
    y = data.y_train.clone()
    y[wrong] = data.y_train[other][wrong]
    return dataclasses.replace(data, y_train=y)


def loss_of(model, held):
    """The oracle: the weighted loss on samples that were held out, in float64."""
    with torch.no_grad():
        outputs = model(held.x).double()
    weights = torch.ones(len(held.x)) if held.weights is None else held.weights
    if held.task == "classification":
        losses = -torch.log_softmax(outputs, 1)[torch.arange(len(held.y)), held.y]
    else:
        losses = ((outputs - held.y) ** 2).mean(1)
    return ((losses * weights).sum() / weights.sum()).item()


def state_of(run):
    return files.load(run / files.CHECKPOINT)


def assert_same_runs(one, other):
    """Checkpoints, lines and summaries agree but for their times."""
    first, second = state_of(one), state_of(other)
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    assert first.header["early_stopping"] == second.header["early_stopping"]
    summaries = [json.loads((run / files.SUMMARY).read_text()) for run in (one, other)]
    for summary in summaries:
        assert summary.pop("train_seconds")
        assert summary.pop("step_seconds")
    assert summaries[0] == summaries[1]
    lines = [[json.loads(line) for line in (run / files.METRICS).read_text().splitlines()] for run in (one, other)]
    for line in (*lines[0], *lines[1]):
        line.pop("step_seconds")
    assert lines[0] == lines[1]


def assert_same_way(one, other):
    """Two states of a model have the same scalars; their candidates may have been searched at other steps."""
    for name in ("alpha", "sigma", "mu", "cutoff", "weight", "bias"):
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped early, and its summary."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    trainer = Trainer(model_of(), noisy(), EARLY, out)
    return out, trainer.run(), trainer


@pytest.mark.parametrize(
    ("task", "class_weight", "edges"),
    [
        ("classification", "balanced", "free"),
        ("regression", "none", "closeness"),
        ("classification", "none", "closeness"),
    ],
)
def test_the_network_of_the_least_validation_loss_is_handed_over(task, class_weight, edges):
    config = dataclasses.replace(PATIENT, class_weight=class_weight)
    weights = torch.rand(90, generator=torch.Generator().manual_seed(2)) + 0.1
    data = dataclasses.replace(noisy(task), weights=weights)
    _, held = weigh(*hold_out(data, config), config)
    model, seen = model_of(edges=edges), []
    trainer = Trainer(model, data, config)

    def look(line):
        seen.append(
            (line["step"], line.get("validation_loss"), loss_of(copy.deepcopy(model), held), model.state_dict())
        )
        seen[-1] = (*seen[-1][:3], {name: t.clone() for name, t in seen[-1][3].items()})

    summary = trainer.run(look)
    for step, told, expected, _ in seen[1:]:
        assert told == pytest.approx(expected, rel=1e-6), step
    step, _, loss, state = min(seen[1:], key=lambda found: found[1])
    assert 0 < step <= 60
    assert (summary["best_step"], summary["stopped_at"], summary["n_validation"]) == (step, None, 27)
    assert summary["validation_loss"] == pytest.approx(loss, rel=1e-6)
    assert (trainer.step, trainer.model_step) == (60, step)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_training_ends_when_patience_does(stopped):
    out, summary, trainer = stopped
    assert summary["stopped_at"] == summary["steps"] == trainer.step == summary["best_step"] + 4 * 5 < 200
    assert trainer.finished
    assert trainer.model_step == summary["best_step"]
    lines = [json.loads(line) for line in (out / files.METRICS).read_text().splitlines()]
    assert lines[-1]["step"] == summary["stopped_at"]
    assert all(("validation_loss" in line) == ("validation_accuracy" in line) == (line["step"] > 0) for line in lines)
    assert evaluate(trainer.model, trainer.data)["test_accuracy"] == summary["test_accuracy"]


def test_whoever_reads_a_stopped_run_sees_the_best_network(stopped):
    out, summary, trainer = stopped
    resumed = Trainer.resume(out, noisy())
    assert resumed.finished
    assert (resumed.step, resumed.model_step) == (summary["stopped_at"], summary["best_step"])
    shown, snapshot = History.read(out, 5).trained()
    assert snapshot.step == summary["best_step"]
    for read in (resumed.model, shown):
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(tensor, read.state_dict()[name]), name
    x = noisy().x_test
    assert torch.equal(resumed.model.to_dag()(x), trainer.model.to_dag()(x))


@pytest.mark.parametrize("crash", [25, 50])
def test_a_run_taken_up_again_is_the_whole_one(stopped, crash, tmp_path):
    class Stop(Exception):
        pass

    def stop(record):
        if record["step"] == crash:
            raise Stop

    config = dataclasses.replace(EARLY, checkpoint_every=35)
    with pytest.raises(Stop):
        Trainer(model_of(), noisy(), config, tmp_path / "torn").run(stop)
    Trainer.resume(tmp_path / "torn", noisy()).run()
    assert_same_runs(stopped[0], tmp_path / "torn")


def test_a_run_stopped_by_a_signal_goes_on_from_the_latest_network(stopped, tmp_path):
    def interrupt(record):
        if record["step"] == 50:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        Trainer(model_of(), noisy(), EARLY, tmp_path / "torn").run(interrupt)
    saved = state_of(tmp_path / "torn")
    assert saved.header["early_stopping"]["best_step"] <= saved.header["step"] < stopped[1]["stopped_at"]
    Trainer.resume(tmp_path / "torn", noisy()).run()
    first, second = state_of(stopped[0]), state_of(tmp_path / "torn")
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


def test_a_crash_before_the_summary_loses_nothing(stopped, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Trainer(model_of(), noisy(), EARLY, tmp_path / "torn").run()
    resumed = Trainer.resume(tmp_path / "torn", noisy())
    assert not resumed.finished
    resumed.run()
    assert_same_runs(stopped[0], tmp_path / "torn")


def test_a_larger_total_continues_a_stopped_run_from_where_it_stopped(stopped, tmp_path):
    out = tmp_path / "copy"
    out.mkdir()
    for name in files.RUN_FILES:
        (out / name).write_bytes((stopped[0] / name).read_bytes())
    data, at = noisy(), stopped[1]["stopped_at"]
    assert Trainer.resume(out, data, steps=200).finished
    resumed = Trainer.resume(out, data, steps=201)
    assert not resumed.finished
    summary = resumed.run()
    assert at < summary["steps"] <= 201
    assert summary["best_step"] == stopped[1]["best_step"] or summary["best_step"] > at
    patient = dataclasses.replace(EARLY, patience=1000, steps=summary["steps"], checkpoint_every=10**6)
    Trainer(model_of(), data, patient, tmp_path / "whole").run()  # the same steps without an end in between
    one, other = (state_of(run).group("latest") for run in (out, tmp_path / "whole"))
    assert_same_way(one, other)


@pytest.mark.parametrize("edges", ["closeness", "free"])
def test_looking_at_the_validation_samples_does_not_change_the_way(edges, tmp_path):
    data = noisy()
    data = dataclasses.replace(data, x_val=data.x_test, y_val=data.y_test)
    ends = []
    for early in (False, True):
        out = tmp_path / str(early)
        Trainer(model_of(edges=edges), data, dataclasses.replace(PATIENT, early_stopping=early), out).run()
        saved = state_of(out)
        ends.append(saved.group("latest" if early else "model"))
        assert saved.header["data"]["n_val"] == 20
    assert_same_way(*ends)


def test_without_early_stopping_nothing_is_held_out_and_nothing_is_said(tmp_path):
    trainer, lines = Trainer(model_of(), noisy(), CONFIG, tmp_path / "run"), []
    summary = trainer.run(lines.append)
    assert len(trainer.data.x_train) == 90
    assert not any("validation" in name for found in (summary, *lines) for name in found)
    assert "best_step" not in summary
    assert not state_of(tmp_path / "run").group("latest")


@pytest.mark.parametrize("name", ["a number of edges", "a number of edges of rows"])
def test_with_a_number_of_edges_only_networks_that_have_it_are_kept(name, tmp_path):
    config = dataclasses.replace(PATIENT, **CASES[name][1], fine_tune=0.5, validate_every=3, steps=80)
    trainer = Trainer(model_of(**CASES[name][0]), noisy(), config, tmp_path / "run")
    summary = trainer.run()
    assert summary["edges"] == 60
    assert trainer.model.n_edges == 60
    assert summary["best_step"] > trimmed_after(config)
    if name == "a number of edges of rows":  # its cutoff moves every tenth step
        assert summary["best_step"] % 30 == 0 or summary["best_step"] == 80


def test_with_a_budget_only_networks_that_fit_it_are_kept_and_the_best_is_what_new_processes_time(
    monkeypatch, tmp_path
):
    timed = []
    monkeypatch.setattr(MeasuredTime, "measure", lambda self, evaluation, repeats=15: 9.8e-3)
    monkeypatch.setattr(
        Processes, "time", lambda self, networks, *rest: timed.append(networks["network"]) or fresh(networks, 9.85e-3)
    )
    config = TrainConfig(
        steps=60, batch_size=16, budget_us=1e4, clock="perf_counter", time_every=10, early_stopping=True, lr=0.1,
        validate_every=2, patience=3, validation=0.2,
    )  # fmt: skip
    run = make_trainer(tmp_path / "run", config)
    summary = run.run()
    assert trimmed_after(config) < summary["best_step"] <= summary["steps"]
    assert summary["fresh_seconds"] == pytest.approx(9.85e-3)
    assert "validation_after" in summary
    assert np.array_equal(timed[-1].indices, run.model.topology.indices)
    assert np.array_equal(timed[-1].values, run.model.find().host_values.strengths)
    for name, tensor in state_of(tmp_path / "run").group("model").items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name


@pytest.mark.parametrize("name", ["closeness", "ring and proxy"])
def test_many_steps_at_a_time_stop_early_as_single_steps_do(name, monkeypatch):
    manifold, config = (dataclasses.replace(a, **b) for a, b in zip((MANIFOLD, EARLY), CASES[name], strict=True))
    one, other = (train(manifold, config, noisy(), monkeypatch, fused) for fused in (True, False))
    assert one[3] > 8
    assert one[1].step == other[1].step
    assert one[1].model_step == other[1].model_step < one[1].step
    assert_same_bits(one, other)


def test_the_same_bits_on_any_number_of_threads():
    ends = []
    for threads in (1, 2):
        trainer = Trainer(model_of(threads), noisy(), dataclasses.replace(EARLY, threads=threads, steps=100))
        summary = trainer.run()
        ends.append(
            (summary["best_step"], summary["stopped_at"], summary["validation_loss"], trainer.model.state_dict())
        )
    assert ends[0][:3] == ends[1][:3]
    assert all(torch.equal(tensor, ends[1][3][name]) for name, tensor in ends[0][3].items())


def test_slots_that_are_added_after_the_best_network_are_free_in_it(tmp_path):
    model = model_of(edges="free", capacity=300)
    whole = model_of(edges="free", capacity=300)
    Trainer(whole, noisy(), PATIENT, tmp_path / "whole").run()

    def grow(line):
        if line["step"] == 55:
            model.grow_capacity(model.capacity + 10)

    summary = Trainer(model, noisy(), PATIENT, tmp_path / "grown").run(grow)
    assert summary["best_step"] < 55
    assert (model.capacity, whole.capacity) == (310, 300)
    assert torch.equal(model(noisy().x_test), whole(noisy().x_test))
    resumed = Trainer.resume(tmp_path / "grown", noisy(), steps=70)
    assert torch.equal(resumed.model(noisy().x_test), whole(noisy().x_test))
    assert resumed.run()["steps"] == 70


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8), share=st.floats(0.05, 0.5), seed=st.integers(0, 2**20)
)
def test_each_class_has_its_share_of_the_samples_held_out_and_stays_in_training(sizes, share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(labels)
    x, y = torch.arange(float(n))[:, None], torch.from_numpy(labels)
    data = Dataset("classes", "classification", x, y, x, y, 1.0, tuple(map(str, range(len(sizes)))))
    config = TrainConfig(early_stopping=True, validation=share, seed=seed)
    count = max(2, math.ceil(share * n))
    if count > n - len(sizes):
        with pytest.raises(ValueError, match="give another validation"):
            hold_out(data, config)
        return
    left, held = hold_out(data, config)
    again = hold_out(data, config)[1]
    assert torch.equal(held.x, again.x)
    assert len(held.x) == count
    assert sorted([*left.x_train[:, 0].tolist(), *held.x[:, 0].tolist()]) == list(range(n))
    assert torch.equal(y[held.x[:, 0].long()], held.y)
    for k, size in enumerate(sizes):
        expected = count * (size - 1) / (n - len(sizes))
        assert abs(int((held.y == k).sum()) - expected) < 1
        assert bool((left.y_train == k).any())


def test_samples_of_weight_0_judge_nothing():
    data = dataclasses.replace(samples(), weights=(torch.arange(90) % 2).float())
    _, held = hold_out(data, EARLY)
    assert bool((held.weights > 0).all())


def test_samples_for_validation_may_be_given():
    data = noisy()
    data = dataclasses.replace(data, x_val=data.x_test, y_val=data.y_test)
    left, held = hold_out(data, dataclasses.replace(EARLY, validation=0.0))
    assert left is data
    assert held.x is data.x_val
    assert held.y is data.y_val


@pytest.mark.parametrize("validation", [0.0, 0.99])
def test_early_stopping_needs_samples(validation):
    with pytest.raises(ValueError, match=rf"validation={validation:g} holds out .* of 90 training samples"):
        Trainer(model_of(), noisy(), dataclasses.replace(EARLY, validation=validation))


def test_the_distance_of_evaluations_is_about_an_epoch_but_no_less_than_a_hundredth_of_the_steps():
    def every(**changes):
        config = dataclasses.replace(EARLY, validate_every=0, **changes)
        return Trainer(model_of(), noisy(), config)._early.every

    assert every() == math.ceil(63 / 20)
    assert every(steps=5000) == 50
    assert every(batch_size=0) == 2
    assert every(early_stopping=False) == 0


def test_the_command_stops_early_and_evaluate_reproduces_it(tmp_path):
    data = noisy()
    np.savez(tmp_path / "mine.npz", x=data.x_train, y=data.y_train)
    options = (
        f"--out {tmp_path / 'run'} --steps 300 --batch-size 20 --speed none --threads 1 --executor columns --lr 0.03"
    )
    early = "--early-stopping --patience 3 --validation 0.3 --class-weight balanced --set validate_every=5"
    runner = CliRunner()
    result = runner.invoke(app, ["train", str(tmp_path / "mine.npz"), *options.split(), *early.split()])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / files.SUMMARY).read_text())
    assert summary["stopped_at"] == summary["best_step"] + 15
    assert f"best at step {summary['best_step']}, stopped at {summary['stopped_at']}" in " ".join(result.output.split())
    result = runner.invoke(app, ["evaluate", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert f"at step {summary['best_step']} of" in result.output
    result = runner.invoke(app, ["train", "--resume", str(tmp_path / "run")])
    assert f"is finished at step {summary['stopped_at']}" in result.output


def test_an_option_can_say_no():
    from sparse_dnm.cli.options import SETTING, given
    from sparse_dnm.cli.train import TrainOptions

    assert given(TrainOptions(early_stopping=False), SETTING) == {"early_stopping": False}
    assert given(TrainOptions(), SETTING) == {}
    with pytest.raises(ValueError, match=r"early_stopping='perhaps' must be true or false"):
        TrainConfig(early_stopping="perhaps")
