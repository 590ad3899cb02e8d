"""Budgets: what is trimmed first, a structure that stays, new processes, and whole runs."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from strategies import MANY
from test_training import dataset
from test_training import trainer as make_trainer
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, data
from sparse_dnm.cli.app import app
from sparse_dnm.config import from_dict
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.loss.time import MeasuredTime, TimeSettings
from sparse_dnm.timing.cost_model import FEATURES
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.quiet import Quiet
from sparse_dnm.timing.subprocess import Fresh, Network, Processes, time_in_subprocess
from sparse_dnm.train.checkpoint import renewed
from sparse_dnm.train.constraints import rounded_up
from sparse_dnm.train.paths import widest
from sparse_dnm.train.schedules import learning_rate, trimmed_after
from sparse_dnm.train.state import CutTooDeep
from sparse_dnm.train.trainer import Trainer, TrainingError
from sparse_dnm.train.trim import Frozen, OverBudget, fill, trim
from sparse_dnm.train.validation import Validation, hold_out

pytestmark = pytest.mark.slow

QUICK = {"probes": 10, "repeats": 3, "clock": "perf_counter"}
EDGE, UNIT, CALL = 1e-6, 3e-6, 10e-6


class Charged(MeasuredTime):
    """A machine that charges for edges and executed neurons, exactly."""

    def measure(self, evaluation, repeats=15):
        """Seconds by the price list."""
        s = evaluation.host.schedule
        return CALL + EDGE * len(s.topology.t_edges) + UNIT * len(s.executed)


def charged(model):
    term = Charged(model, TimeSettings(mode="infer", batch=1, **QUICK))
    prices = {"call": CALL, "input": UNIT, "neuron": UNIT, "output": UNIT, "edge": EDGE}
    names = FEATURES["columns"]
    term.refit.model = dataclasses.replace(
        term.refit.model, coefficients=tuple(prices.get(name, 0.0) for name in names)
    )
    return term


def model_of(preset="digits", **changes):
    return DynamicManifold(
        ManifoldConfig.preset(preset, **changes), torch.Generator().manual_seed(0), executor="columns", threads=1
    )


def test_trim_reaches_the_target_and_takes_what_matters_least():
    model = model_of()
    term = charged(model)
    start = term.measure(model.find())
    before = {(int(i), int(j)) for j, i in model.topology.edges()}
    merit = dict(zip(sorted(before), np.random.default_rng(0).lognormal(0, 3, len(before)), strict=True))

    def saliency():
        return np.array([merit[int(i), int(j)] for j, i in model.topology.edges()])

    found = trim(model, term, 0.6 * start, saliency)
    after = {(int(i), int(j)) for j, i in model.topology.edges()}
    assert found <= 0.6 * start
    assert found > 0.57 * start  # no more than needed
    assert after < before
    gone = before - after
    assert np.median([merit[e] for e in gone]) < np.median([merit[e] for e in after])
    assert model.connected


@pytest.mark.parametrize("edges", ["free", "weighted", "free-closeness", "closeness"])
def test_outputs_that_seem_to_matter_little_are_still_reached_after_a_trim(edges):
    """A network that makes no errors has no gradient: a trim to a budget once took all edges of a class."""
    model = model_of(edges=edges, **MANY[edges])
    term, config = charged(model), model.config

    def saliency():
        return (model.topology.readers < config.n_neurons - 5).astype(float)  # none of the last five outputs

    start = term.measure(model.find())
    before, _ = widest(model.topology, saliency())
    assert before.all()
    for share in (0.95, 0.6):
        trim(model, term, share * start, saliency)
        assert widest(model.topology, saliency())[0].all()
    with pytest.raises(OverBudget):
        trim(model, term, 0.1 * CALL, saliency)
    assert widest(model.topology, saliency())[0].all()


def test_trim_raises_the_cutoff_where_edges_have_no_weight_of_their_own():
    model = model_of(edges="closeness")
    term = charged(model)
    start, cutoff = term.measure(model.find()), model.cutoff.item()
    found = trim(model, term, 0.9 * start, lambda: np.ones(model.topology.n_edges))
    assert found <= 0.9 * start
    assert model.cutoff.item() > cutoff


def test_a_target_out_of_reach_ends_with_the_nearest_still_connected():
    model = model_of()
    term = charged(model)
    with pytest.raises(OverBudget, match="the least that could be reached is") as error:
        trim(model, term, 0.5 * CALL, lambda: np.ones(model.topology.n_edges))
    model.find()
    assert model.connected
    assert error.value.nearest > CALL


@pytest.mark.parametrize("edges", ["free", "closeness"])
def test_a_network_is_filled_up_to_the_target_by_its_closest_candidates(edges):
    model = model_of(edges=edges)
    term = charged(model)
    start = term.measure(model.find())
    before = {tuple(e) for e in model.topology.edges().tolist()}
    evaluation = model.find()
    size, c = np.abs(evaluation.host_values.d), evaluation.host_values.c
    found = fill(model, term, 1.2 * start)
    assert 1.18 * start <= found <= 1.25 * start
    after = {tuple(e) for e in model.topology.edges().tolist()}
    assert before < after
    candidates = evaluation.host.candidates
    readers = np.repeat(np.arange(model.config.n_rows), np.diff(candidates.indptr)) + model.config.n_inputs
    sizes = {(int(j), int(i)): float(s) for j, i, s in zip(candidates.indices, readers, size, strict=True)}
    if edges == "free":
        assert min(sizes[e] for e in after - before) > 0.8 * c
        assert trim(model, term, start, lambda: np.ones(model.topology.n_edges)) <= start


def test_filling_ends_where_there_is_nothing_to_add():
    model = model_of(skin=0.0)
    term = charged(model)
    before = model.find().n_edges
    fill(model, term, 1.0)
    assert model.find().n_edges == before


def test_candidates_far_below_the_cutoff_fill_nothing_up():
    model = model_of()
    values = model.find().host_values
    weak = torch.from_numpy(model.candidates.slots[np.abs(values.d) <= values.c][::2].copy())
    with torch.no_grad():
        model.edge_weight[weak] = 1e-42  # to be an edge, each would need an omega above all finite numbers
    fill(model, charged(model), 1.0)
    assert torch.isfinite(model.edge_weight).all()
    assert (model.edge_weight[weak] == torch.tensor(1e-42)).all()


def test_samples_are_held_out_by_the_seed_and_only_for_a_budget():
    whole = dataset("classification")
    config = TrainConfig(budget_us=10.0, batch_size=16, seed=3)
    left, held = hold_out(whole, config)
    again, _ = hold_out(whole, config)
    assert torch.equal(left.x_train, again.x_train)
    n = len(whole.x_train)
    assert (len(left.x_train), len(held.x)) == (n - math.ceil(0.1 * n), math.ceil(0.1 * n))
    rows = torch.cat([left.x_train, held.x])
    assert torch.equal(rows.sort(0).values, whole.x_train.sort(0).values)
    assert not torch.equal(held.x, hold_out(whole, dataclasses.replace(config, seed=4))[1].x)
    for other in (TrainConfig(), TrainConfig(budget_us=10.0, validation=0.0)):
        assert hold_out(whole, other) == (whole, None)
    with pytest.raises(ValueError, match=r"validation=0.9 holds out 116 of 128 training samples: at least 2 must be"):
        hold_out(whole, dataclasses.replace(config, validation=0.9))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_validation_points_are_those_of_scikit_learn(task):
    run = make_trainer(config=TrainConfig(steps=30, batch_size=16, budget_us=1e6, clock="perf_counter"), task=task)
    held, model = run._constraint._validation, run.model
    with torch.no_grad():
        outputs = model(held.x)
    if task == "classification":
        expected = accuracy_score(held.y, outputs.argmax(1))
    else:
        expected = 1 - ((outputs - held.y) ** 2).sum() / ((held.y - held.y.mean(0)) ** 2).sum()
        if held.y.shape[1] == 1:
            expected = r2_score(held.y, outputs)
    assert held.points(model) == pytest.approx(100 * float(expected), rel=1e-5)


def run_with_losses(monkeypatch, points, out=None, steps=40, dtype=torch.float32):
    """A run with a budget whose time falls from 20 to 9.8 ms while it trains, and whose validation points are, in
    turn, ``points``; what new processes measure is within the budget."""
    taken = iter(points)
    monkeypatch.setattr(Validation, "points", lambda self, model: next(taken))
    run = budget_run(monkeypatch, [9.82e-3] * 9, steps=steps, out=out, dtype=dtype)

    def passing(self, evaluation, found, disturbed):
        self.timed += 1
        self.seconds = max(20e-3 - 1e-3 * run.step, 9.8e-3)
        self._prices = self.prices(evaluation)

    monkeypatch.setattr(MeasuredTime, "_time", passing)
    run.config = dataclasses.replace(run.config)
    return run


def test_a_summary_says_what_the_cut_has_cost(monkeypatch, tmp_path):
    run = run_with_losses(monkeypatch, [97.0, 97.5, 96.0, 95.9], tmp_path / "run")
    summary = run.run()
    assert summary["validation_before"] == pytest.approx(0.975)  # the best near the budget
    assert summary["validation_after"] == pytest.approx(0.959)
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_dir()) == ["snapshots"]


def test_a_run_that_lost_too_much_fails_and_names_the_smallest_budget_that_it_can_keep(monkeypatch, tmp_path):
    # at the start 2 times the budget, at step 10 1 times; at the trim, at the end, then two networks fine-tuned
    run = run_with_losses(monkeypatch, [97.0, 96.5, 96.6, 90.0, 94.0, 95.5], tmp_path / "run")
    with pytest.raises(CutTooDeep) as error:
        run.run()
    assert error.value.exit_code == 3
    assert re.search(
        r"the cut to budget_us=10000 has cost 6\.60 points of validation accuracy, 96\.60 to 90\.00 %, more than "
        r"max_loss=2; the smallest budget that it can keep is 9820 µs: the network of step 0, fine-tuned, has "
        r"95\.50 %\. Start a new run, .*budget_us=9970 or more, .* or max_loss=7 where .* The last good "
        r"checkpoint, of step 40, is kept",
        str(error.value),
    )
    assert not (tmp_path / "run" / "summary.json").exists()
    again = Trainer.resume(tmp_path / "run", dataset("classification"))
    assert again.step == 40


def test_a_run_none_of_whose_networks_keeps_enough_says_so(monkeypatch):
    run = run_with_losses(monkeypatch, [97.0, 96.5, 96.6, 90.0, 91.0, 92.0])
    with pytest.raises(CutTooDeep, match="no network that it passed on the way down keeps that, fine-tuned"):
        run.run()


def test_networks_on_the_way_down_are_fine_tuned_and_timed_in_the_dtype_of_the_model(monkeypatch):
    timed = []

    def timing(self, networks, *rest):
        timed.extend(network.values.dtype.name for network in networks.values())
        return time(self, networks, *rest)

    run = run_with_losses(monkeypatch, [97.0, 96.5, 96.6, 90.0, 95.5], dtype=torch.float64)
    time = Processes.time
    monkeypatch.setattr(Processes, "time", timing)
    with pytest.raises(CutTooDeep, match="the smallest budget that it can keep is 9820 µs"):
        run.run()
    assert set(timed) == {"float64"}


@pytest.mark.parametrize(
    ("number", "text"), [(2.448, "2.45"), (2.45, "2.45"), (22000.0, "22000"), (9848.0, "9850"), (0.0123456, "0.0124")]
)
def test_a_budget_to_give_is_rounded_up(number, text):
    assert rounded_up(number) == text


def test_runs_of_earlier_versions_keep_their_phases():
    old = {"steps": 1000, "budget_us": 5.0, "trim_steps": 100, "target_edges": 0}
    for steps, trimmed, after in ((1000, 100, 900), (100, 500, 75), (7, 500, 6)):
        config = from_dict(TrainConfig, renewed({**old, "steps": steps, "trim_steps": trimmed}))
        assert trimmed_after(config) == after
        assert config.validation == config.kappa == 0.0
    plain = {"steps": 1000, "trim_steps": 500, "speed": "proxy"}
    assert trimmed_after(from_dict(TrainConfig, renewed(plain))) == 1000
    assert trimmed_after(from_dict(TrainConfig, renewed({**plain, "target_edges": 10}))) == 700
    new = dataclasses.asdict(TrainConfig())
    assert renewed(new) == new


@pytest.mark.parametrize("edges", ["free", "closeness", "free-closeness", "weighted"])
def test_a_frozen_structure_stays_while_weights_are_trained(edges):
    model = model_of("toy", edges=edges, **MANY[edges])
    frozen = Frozen(model)
    before = model.topology.edges().tobytes()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    x, y = torch.randn(32, 5), torch.randn(32, 4)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        frozen.clear_gradients()
        optimizer.step()
        if edges != "closeness":
            frozen.hold(model.edge_weight)
        model.find()
        assert model.topology.edges().tobytes() == before
        losses.append(loss.item())
    assert min(losses) < 0.9 * losses[0]


def test_new_processes_time_what_they_are_given():
    small, large = model_of("toy"), model_of("digits")
    networks = {"small": Network.of(small), "large": Network.of(large)}
    found = time_in_subprocess(networks, Settings(batch=20, threads=1, repeats=5), processes=2)
    assert found["small"].shape == found["large"].shape == (2, 5)
    assert (found["small"] > 0).all()
    assert (found["large"] > 0).all()


def test_what_a_process_is_given_is_the_network(monkeypatch):
    model = model_of("toy")
    network = Network.of(model)
    run = []
    monkeypatch.setattr(CpuEngine, "stopwatch", lambda *arguments: run.append(arguments))
    network.stopwatch(Settings(batch=7, threads=1))
    engine, structure, strengths, x, train = run[0]
    with torch.no_grad():
        neutral = (model.weight, np.ones(4)), (model.bias, np.zeros(4))  # outputs have neither
        scales = engine.scales(structure, *(np.append(p.numpy(), rest).astype(np.float32) for p, rest in neutral))
        outputs = engine.forward(structure, strengths, x, scales)[0]
        assert train
        torch.testing.assert_close(model(torch.from_numpy(x)), torch.from_numpy(outputs), rtol=0, atol=0)
    assert x.shape == (7, 5)


def test_the_error_of_a_process_is_raised_with_its_output(monkeypatch):
    network = dataclasses.replace(Network.of(model_of("toy")), indices=np.array([10**6], np.int32))
    monkeypatch.setattr(Settings, "__post_init__", lambda self: None)
    with pytest.raises(RuntimeError, match=r"(?s)timing in a new process failed, exit status 1: .*clock='sundial'"):
        time_in_subprocess({"broken": network}, Settings(clock="sundial"), processes=1)


def test_the_step_size_starts_again_after_the_trim():
    config = TrainConfig(steps=1000, lr=0.1, budget_us=5.0, fine_tune=0.1)
    assert trimmed_after(config) == 900
    assert learning_rate(config, 0) == 0.1
    assert learning_rate(config, 899) == pytest.approx(0.01)  # until the trim edges must come and go
    assert learning_rate(config, 900) == 0.05
    assert learning_rate(config, 999) < 1e-4
    assert trimmed_after(dataclasses.replace(config, fine_tune=0.3)) == 700
    assert trimmed_after(dataclasses.replace(config, budget_us=0.0)) == 900
    assert trimmed_after(dataclasses.replace(config, budget_us=0.0, fine_tune=0.0)) == 1000


def command(*arguments, cwd):
    full = [sys.executable, "-m", "sparse_dnm.cli", "train", *map(str, arguments)]
    return subprocess.run(full, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=os.environ)


@pytest.mark.alone
def test_a_run_ends_within_its_budget_or_says_what_it_could_reach(tmp_path):
    rest = ("--steps", 400, "--threads", 1, "--clock", "perf_counter", "--set", "time_mode=infer")
    run = tmp_path / "free"
    done = command("digits", *rest, "--set", "lr=0.01", "--budget-us", 1e5, "--out", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = json.loads((run / "summary.json").read_text())["fresh_seconds"]

    run, budget = tmp_path / "run", round(0.75e6 * whole, 3)
    done = command("digits", *rest, "--set", "lr=0.01", "--budget-us", budget, "--out", run, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["fresh_seconds"] <= 1e-6 * budget
    assert summary["budget_us"] == budget
    assert f"of {budget:g} µs, timed in subprocesses" in done.stdout.replace("\n", " ")
    evaluated = CliRunner().invoke(app, ["evaluate", str(run)])
    assert "reproduced" in evaluated.output  # what was handed over is what was measured

    done = CliRunner().invoke(
        app, ["train", "digits", *map(str, rest), "--budget-us", "0.01", "--out", str(tmp_path / "no")]
    )
    assert done.exit_code == 2
    assert "budget_us=0.01 cannot be met: the smallest network" in done.stderr
    assert done.stderr.count("\n") == 1


def given(networks, seconds, factor=1.0):
    """What new processes find: these seconds for each network, on a machine so many times slower than when quiet."""
    found = {name: np.full((3, 5), seconds) for name in networks}
    return Fresh(found, found, Quiet(1.0), factor)


def budget_run(monkeypatch, fresh, steps=40, charge=None, out=None, dtype=torch.float32):
    """A trained run with a budget of 10 ms, on a machine where a step takes 9.8 ms here and, in new processes, the
    seconds of ``fresh`` in turn."""
    seconds = iter(fresh)
    monkeypatch.setattr(MeasuredTime, "measure", charge or (lambda self, evaluation, repeats=15: 9.8e-3))
    monkeypatch.setattr(Processes, "time", lambda self, networks, *rest: given(networks, next(seconds)))
    config = TrainConfig(steps=steps, batch_size=16, budget_us=1e4, clock="perf_counter", log_every=10, time_every=10)
    return make_trainer(out, config, dtype=dtype)


def by_edges(start=9.8e-3):
    """The seconds of this process: in proportion to the edges, ``start`` for the first network."""
    edges = []

    def charge(self, evaluation, repeats=15):
        edges.append(evaluation.n_edges)
        return start * evaluation.n_edges / edges[0]

    return charge, edges


def test_one_slow_timing_in_new_processes_cuts_nothing(monkeypatch):
    run = budget_run(monkeypatch, [14e-3, 9.85e-3, 9.9e-3])
    summary = run.run()
    assert summary["fresh_seconds"] == pytest.approx(9.85e-3)
    assert not any("trimming further" in line for line in run.notes)


def test_a_network_that_is_slow_in_new_processes_is_trimmed_to_less_before_it_is_trained_on(monkeypatch):
    charge, edges = by_edges()
    run = budget_run(monkeypatch, [11e-3, 12e-3, 11.5e-3, 9.85e-3, 9.8e-3], charge=charge)
    summary = run.run()
    assert summary["fresh_seconds"] == pytest.approx(9.8e-3)
    assert "1.1e+04 µs in new processes, over the budget: trimming further" in run.notes
    assert [line.endswith("at step 28") for line in run.notes if line.startswith("trimmed to")] == [True, True]
    assert 9.8 * run.model.n_edges / edges[0] <= 0.99 * 9.8 * 10 / 11


def test_a_network_below_its_budget_gets_more_edges(monkeypatch):
    run = budget_run(monkeypatch, [9.4e-3, 9.85e-3, 9.8e-3], charge=by_edges()[0])
    found, timed = Processes.time, []
    monkeypatch.setattr(
        Processes, "time", lambda *given: timed.append(len(given[1]["network"].indices)) or found(*given)
    )
    summary = run.run()
    assert summary["fresh_seconds"] == pytest.approx(9.8e-3)
    assert any(line.startswith("9400 µs in new processes, below the budget: ") for line in run.notes)
    first, second, last = timed
    assert 1 < second / first <= 1.03 * 0.99 / 0.94  # an edge is 2 % of this network
    assert last == second == run.model.n_edges


def test_a_machine_that_is_slower_at_the_end_cuts_nothing_and_is_reported(monkeypatch):
    run = budget_run(monkeypatch, [9.85e-3, 12e-3, 13e-3, 14e-3])
    summary = run.run()
    assert summary["fresh_seconds"] == pytest.approx(9.85e-3)
    assert sum(line.startswith("trimmed to") for line in run.notes) == 1
    (line,) = (line for line in run.notes if "in new processes now" in line)
    assert line.startswith("warning: a step takes 1.2e+04 µs in new processes now, over budget_us=10000, and took 9850")


def test_a_run_resumed_after_its_trim_knows_what_was_confirmed(monkeypatch, tmp_path):
    run = budget_run(monkeypatch, [9.85e-3, 9.9e-3], out=tmp_path / "run")
    run.run()
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed before the end
    monkeypatch.setattr(Processes, "time", lambda self, networks, settings: given(networks, 9.95e-3))
    again = Trainer.resume(tmp_path / "run", dataset("classification"))
    assert again.run()["fresh_seconds"] == pytest.approx(9.85e-3)


def test_the_error_of_a_budget_that_new_processes_exceed_names_both_times(monkeypatch):
    run = budget_run(monkeypatch, [20e-3] * 3)
    with pytest.raises(
        TrainingError,
        match=r"takes 2e\+04 µs in new processes, over budget_us=10000, and cannot be made to fit: trimming to 4851 "
        r"µs, the least that could be reached is 9800 µs\. .*budget_us=22000 or more",
    ):
        run.run()


def test_a_run_stopped_after_its_trim_keeps_the_structure(tmp_path):
    config = TrainConfig(
        steps=120, batch_size=16, lr=0.02, fine_tune=0.25, budget_us=1e5, clock="perf_counter", log_every=10,
        checkpoint_every=100, max_loss=100.0,
    )  # fmt: skip

    def stop(record):
        if record["step"] == 110:
            raise RuntimeError("killed")

    run = make_trainer(tmp_path / "run", config)
    with pytest.raises(RuntimeError, match="killed"):
        run.run(stop)
    again = Trainer.resume(tmp_path / "run", dataset("classification"))
    assert again.step == 100
    edges = again.model.topology.edges().tobytes()
    records = []
    again.run(records.append)
    assert again.model.topology.edges().tobytes() == edges
    assert again._run.time.start > 0
    assert {r["edges"] for r in records} == {len(edges) // 8}
    assert [r["time_multiplier"] > 0 for r in records]


def test_resume_under_another_executor_calibrates_again(tmp_path):
    config = TrainConfig(steps=20, batch_size=16, lr=0.02, clock="perf_counter", checkpoint_every=10)
    make_trainer(tmp_path / "run", config).run()
    again = Trainer.resume(tmp_path / "run", dataset("classification"), 30)
    again.run()
    assert again.notes == []
    other = Trainer.resume(tmp_path / "run", dataset("classification"), 40, "wavefront")
    summary = other.run()
    assert any("ns per level" in line for line in other.notes)
    assert summary["measured"]["executor"] == "wavefront"


def test_what_cannot_be_measured_leaves_no_run(tmp_path):
    config = TrainConfig(steps=20, batch_size=16, profile=str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="does not exist"):
        make_trainer(tmp_path / "run", config).run()
    assert not (tmp_path / "run").exists()


def test_a_cost_model_that_does_not_fit_is_reported_once(monkeypatch):
    monkeypatch.setattr("sparse_dnm.loss.term.MAX_MODEL_ERROR", -1.0)
    run = make_trainer(
        None, TrainConfig(steps=200, batch_size=16, lr=0.02, clock="perf_counter", log_every=10, time_every=1)
    )  # steps that are preempted are not timed
    run.run()
    assert sum("the model of the time is off by" in line for line in run.notes) == 1


def test_metrics_and_summary_of_a_measured_run(tmp_path):
    config = TrainConfig(
        steps=40,
        batch_size=16,
        lr=0.02,
        fine_tune=0.0,
        clock="perf_counter",
        log_every=10,
        memory_coefficient=0.1,
        flow=1e-4,
    )
    records = []
    run = make_trainer(tmp_path / "run", config)
    summary = run.run(records.append)
    for r in records:
        terms = r["objective"] + 1e-4 * r["flow"] + config.time_coefficient * r["speed"] + 0.1 * r["memory"]
        assert r["loss"] == pytest.approx(terms, rel=1e-5)
        assert r["speed"] == pytest.approx(r["measured_seconds"] / run._run.time.reference)
    assert summary["measured"]["clock"] == "perf_counter"
    assert summary["measured"]["batch"] == 16
    assert summary["measured_seconds"] > 0
    assert list(summary["measured"]["seconds_per"]) == list(FEATURES["columns"])


def test_the_error_of_a_network_cut_in_two_names_its_budget(monkeypatch):
    config = TrainConfig(steps=50, batch_size=16, budget_us=1e5, clock="perf_counter", log_every=10)
    run = make_trainer(None, config)

    def cut(record):
        if record["step"] == 20:
            with torch.no_grad():
                run.model.cutoff.fill_(20.0)

    with pytest.raises(TrainingError, match=r"budget_us=100000 was not reached: .* the last time before was"):
        run.run(cut)


def test_presets_of_known_data_sets_measure_time():
    for name in ("toy", "digits", "mnist"):
        assert TrainConfig.preset(name).speed == "time"
    for name in ("original-toy", "original-mnist"):
        assert TrainConfig.preset(name).speed == "proxy"
        assert TrainConfig.preset(name).proxy_gradient == "none"
    assert TrainConfig().speed == "time"
    sequences = {*data.sequences.TASKS, data.sequences.PSMNIST}
    assert set(data.NAMES) == {"toy", "digits", "mnist", *sequences}
    for name in sequences:  # measured time does not support recurrent networks yet
        assert TrainConfig.preset(name).speed == "proxy"
