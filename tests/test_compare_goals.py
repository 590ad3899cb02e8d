"""Budgets against numbers of edges at equal measured time, the fastest executor of each network, parallel trainings."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sparse_dnm import data
from sparse_dnm.cli.app import app
from sparse_dnm.presets import PRESETS
from sparse_dnm.report import comparison as compare_report
from sparse_dnm.study import fastest
from sparse_dnm.study.compare import Jobs, compare, jobs_of
from sparse_dnm.study.jobs import Job, train_in_parallel
from sparse_dnm.study.plan import Plan, executors, run_name, settings_of
from sparse_dnm.study.verdict import Result, judge_at_equal_time
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.subprocess import Network
from sparse_dnm.train.trainer import Interrupted, TrainingError

FEW = Plan(("proxy", "edges"), (1.0,), 1, Settings(mode="infer", batch=1, threads=1, clock="perf_counter"), edges=(60,))


def networks(term, levels, gain=0.0, seeds=8, noise=0.002, rng=None):
    """Results on one curve, accuracy 0.9 + 0.02 log(level), µs = level, ``gain`` above it."""
    rng = rng or np.random.default_rng(len(term))
    return [
        Result(term, level, s, 0.9 + 0.02 * np.log(level) + gain + rng.normal(0, noise), 100, 3, 50,
               *3 * [1e-6 * level * rng.lognormal(0, 0.01)], "columns")
        for s in range(seeds) for level in levels
    ]  # fmt: skip


@pytest.mark.parametrize(("gain", "word"), [(0.01, "budget wins"), (-0.01, "budget loses"), (0.0, "a tie")])
def test_the_verdict_at_equal_time_is_the_difference_of_accuracy_between_the_curves(gain, word):
    found = [*networks("budget", (15.0, 25.0, 40.0), gain), *networks("edges", (10.0, 20.0, 50.0))]
    verdict = judge_at_equal_time(found, "classification")
    assert verdict.gain.value == pytest.approx(gain, abs=0.001)
    assert verdict.gain.low < gain < verdict.gain.high
    assert verdict.words.startswith(word)
    assert "points of accuracy" in verdict.words


def test_without_noise_the_difference_is_interpolated_on_the_logarithm_of_the_time():
    rng = np.random.default_rng(0)
    found = [*networks("budget", (15.0,), 0.0, 3, 0.0, rng), *networks("edges", (1.0, 100.0), 0.0, 3, 0.0, rng)]
    exact = [dataclasses.replace(r, seconds=1e-6 * r.factor) for r in found]
    assert judge_at_equal_time(exact, "classification").gain.value == pytest.approx(0.0, abs=1e-12)


def test_goals_outside_the_times_of_the_other_term_are_left_out_aloud():
    edges = networks("edges", (10.0, 50.0))
    verdict = judge_at_equal_time([*networks("budget", (5.0, 20.0), 0.01), *edges], "classification")
    assert verdict.gain.value == pytest.approx(0.01, abs=0.002)
    assert verdict.words.endswith("1 of 2 levels lie outside its times")
    nowhere = judge_at_equal_time([*networks("budget", (500.0,)), *edges], "classification")
    assert nowhere.gain is None
    assert "no common time" in nowhere.words


def test_two_seeds_decide_nothing_at_equal_time():
    found = [*networks("budget", (20.0,), 0.1, 2), *networks("edges", (10.0, 50.0), 0.0, 2)]
    assert judge_at_equal_time(found, "classification").words.startswith("undecided between budget and edges: 2 seeds")


def test_a_regression_says_how_many_times_the_error_there_is():
    found = [*networks("budget", (20.0,), 0.1, noise=0.0), *networks("edges", (10.0, 50.0), noise=0.0)]
    errors = [dataclasses.replace(r, figure=10**-r.figure) for r in found]
    words = judge_at_equal_time(errors, "regression").words
    assert words.startswith("budget wins")
    assert float(words.split(" have ")[1].split(" times the MSE")[0]) == pytest.approx(10**-0.1, abs=0.002)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"terms": ("budget",)}, "the term budget needs goals"),
        ({"edges": (10,)}, "goals need the term"),
        ({"terms": ("budget",), "budgets": (0.0,)}, "budgets='0' must be finite µs > 0"),
        ({"terms": ("edges",), "edges": (1.5,)}, "must be finite whole numbers of edges > 0"),
        ({"terms": ("edges",), "edges": (5, 5)}, "must name each once"),
        ({"executors": ("luck",)}, "executors='luck' is unknown"),
        ({"executors": ("columns", "columns")}, "must name each executor once"),
    ],
)
def test_a_wrong_plan_of_goals_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        Plan(**change)


def test_goals_are_fields_of_the_training_and_parts_of_its_name():
    config = PRESETS["toy"].train
    budget, edges = settings_of(config, "budget", 40.5, 3), settings_of(config, "edges", 1_234_567.0, 3)
    assert (budget.speed, budget.budget_us, budget.target_edges, budget.seed) == ("time", 40.5, 0, 3)
    assert (edges.speed, edges.budget_us, edges.target_edges) == ("proxy", 0.0, 1_234_567)
    assert [run_name("budget", 40.5, 3), run_name("edges", 1_234_567.0, 3)] == ["budget-40.5-3", "edges-1234567-3"]
    runs = Plan(("budget", "edges"), seeds=2, budgets=(40.0,), edges=(5, 6)).runs()
    assert runs == [(t, level, s) for s in (0, 1) for t, level in (("budget", 40.0), ("edges", 5.0), ("edges", 6.0))]


def test_a_config_with_a_goal_of_its_own_is_refused(tmp_path):
    config = settings_of(PRESETS["toy"].train, "edges", 30, 0)
    with pytest.raises(ValueError, match=r"target_edges=30 steers the coefficient.*leave it out.*term edges"):
        jobs_of(PRESETS["toy"].manifold, config, FEW, tmp_path)


def test_each_network_counts_with_the_executor_that_runs_it_fastest(monkeypatch):
    seconds = {"wavefront/a": 3.0, "columns/a": 2.0, "wavefront/b": 1.0, "columns/b": 2.0}
    seen = {}

    def times(cases, settings, processes=3):
        seen.update(cases)
        return {name: np.full((processes, 5), seconds[name]) for name in cases}

    monkeypatch.setattr(fastest, "time_in_subprocess", times)
    made = {name: Network(*range(7), first_linear=3, recurrent=False) for name in "ab"}
    found = fastest.time_fastest(made, Settings(), ("columns", "wavefront"))
    assert {name: (f.executor, f.seconds.tolist()) for name, f in found.items()} == {
        "a": ("columns", [2.0] * 3), "b": ("wavefront", [1.0] * 3)
    }  # fmt: skip
    assert {case.executor for case in seen.values()} == {"columns", "wavefront"}
    assert seen["columns/a"].indices == made["a"].indices


def test_executors_are_those_whose_time_is_priced_and_that_differ_at_a_batch():
    assert executors() == ("columns", "wavefront", "blocks")
    assert executors(batch=50) == executors("cuda") == ("columns", "wavefront")
    timing = Settings(mode="infer", batch=50)
    assert Plan(timing=timing, executors=("columns", "blocks")).timed_by == ("columns",)
    assert Plan(timing=timing, executors=("blocks",)).timed_by == ("blocks",)
    assert Plan(timing=timing).timed_by == ("columns",)


def test_tables_and_figures_name_goals_and_executors():
    found = [*networks("budget", (15.0,), seeds=3), *networks("edges", (1000.0,), seeds=3)]
    found[0] = dataclasses.replace(found[0], executor="wavefront")
    lines = compare_report.table(found, "classification")
    assert "| budget | 15 µs | 3 |" in lines[2]
    assert lines[2].endswith("| wavefront 1, columns 2 |")
    assert "| edges | 1,000 edges | 3 |" in lines[3]
    assert lines[3].endswith("| columns |")
    about = {"machine": {"processor": "P", "cores": 2}}
    assert "the fastest executor of columns, wavefront" in compare_report.describe(
        about, Settings(), ("columns", "wavefront")
    )
    chart = compare_report.pareto(found, "classification", "title", "caption")
    assert [t.get_text() for t in chart.axes[0].get_legend().get_texts()] == ["budget", "edges"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budgets", "1,x"), "--budgets '1,x' must be numbers"),
        (("--edges", "10.5"), "--edges '10.5' must be whole numbers"),
        (("--terms", "budget"), "the term budget needs goals"),
        (("--jobs", "0"), "free=0 trainings at a time must be >= 1"),
        (("--timed-with", "luck"), "executors='luck' is unknown"),
        (("--set", "target_edges=5"), "target_edges=5"),
    ],
)
def test_wrong_goals_end_in_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", "toy", *arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# -- trainings in parallel --------------------------------------------------------------------------------------------


def toy(out, name="a", **changes):
    preset = PRESETS["toy"]
    values = {"steps": 40, "speed": "proxy", "threads": 1, "executor": "columns", **changes}
    return Job(name, preset.manifold, dataclasses.replace(preset.train, **values), None, Path(out) / name)


@pytest.mark.slow
def test_in_parallel_the_results_are_those_of_one_after_the_other_and_are_used_again(tmp_path, monkeypatch):
    def timed(networks, settings, executors):
        return {name: fastest.Fastest("columns", np.ones(3)) for name in networks}

    monkeypatch.setattr("sparse_dnm.study.compare.time_fastest", timed)
    toys, config = data.load("toy"), dataclasses.replace(PRESETS["toy"].train, steps=40, executor="columns", threads=2)
    manifold = PRESETS["toy"].manifold
    begun, steps = [], []

    def on_step(name, step):
        steps.append((name, step))

    found = {
        n: compare(
            toys, manifold, config, FEW, tmp_path / str(n), None, begun.append, Jobs(n), lambda *s: steps.append(s)
        )
        for n in (2, 1)
    }
    same = [[(r.term, r.figure, r.edges, r.depth, r.live, r.executor) for r in results] for results in found.values()]
    assert same[0] == same[1]
    assert begun == 2 * ["proxy-1-0", "edges-60-0", "timing in subprocesses"]
    assert {("proxy-1-0", 40), ("proxy-1-0", -1), ("edges-60-0", 40), ("edges-60-0", -1)} <= set(steps)
    for name in ("proxy-1-0", "edges-60-0"):
        one, two = (tmp_path / n / "runs" / name / "checkpoint.safetensors" for n in "12")
        assert json.loads((two.parent / "config.json").read_text())["train"]["threads"] == 1
        assert len(one.read_bytes()) > 0
        stamp = two.stat().st_mtime_ns
        compare(toys, manifold, config, FEW, tmp_path / "2")  # in this process, on another number of threads
        assert two.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_an_error_in_one_run_names_it_and_the_others_keep_what_they_have(tmp_path):
    toys = data.load("toy")
    jobs = [
        toy(tmp_path, "good", steps=10_000_000, checkpoint_every=10_000_000),
        toy(tmp_path, "bad", speed="time", budget_us=1e-3),
    ]
    with pytest.raises(TrainingError, match=r"run bad: budget_us=0.001 cannot be met"):
        train_in_parallel(toys, jobs, 2)
    assert not jobs[1].finished
    if jobs[0].started:  # the error may come first
        assert (jobs[0].out / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_a_child_that_dies_is_reported_with_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse_dnm.study.jobs.COMMAND", "import sys; sys.exit('out of luck')")
    with pytest.raises(RuntimeError, match="run a ended with exit status 1: out of luck"):
        train_in_parallel(data.load("toy"), [toy(tmp_path)], 2)


@pytest.mark.slow
def test_a_signal_stops_all_runs_which_keep_their_checkpoints(tmp_path):
    arguments = ["--terms", "proxy", "--factors", "1,2", "--seeds", "1", "--jobs", "2", "--threads", "1", "--out", "c"]
    endless = ["--steps", "100000000", "--set", "checkpoint_every=100000000", "--set", "log_every=100"]
    command = [sys.executable, "-m", "sparse_dnm.cli", "compare", "toy", *arguments, *endless]
    runs = [tmp_path / "c" / "runs" / f"proxy-{k}-0" for k in (1, 2)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not all(_steps(run) >= 100 for run in runs):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGHUP)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGHUP
    said = error.splitlines()[-1]
    assert said.startswith("stopped in proxy-")
    assert "proxy-1-0" in said
    assert "proxy-2-0" in said
    assert said.endswith("the same command again continues from what is finished or saved")
    for run in runs:
        with open(run / "checkpoint.safetensors", "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        assert json.loads(header["__metadata__"]["sparse_dnm"])["step"] >= 100
        assert not (run / "summary.json").exists()


def _steps(run):
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:  # a line that is being written
        return 0


@pytest.mark.slow
def test_after_a_signal_no_other_run_starts_and_a_second_call_continues(tmp_path):
    toys, jobs = data.load("toy"), [toy(tmp_path, "a", steps=2_000, log_every=100), toy(tmp_path, "b")]

    def stop(name, step):
        if step == 100:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="the same command again continues") as caught:
        train_in_parallel(toys, jobs, 1, on_step=stop)
    assert caught.value.signum == signal.SIGTERM
    assert not jobs[1].started
    seen = []
    train_in_parallel(toys, jobs, 2, on_step=lambda name, step: seen.append((name, step)))
    assert all(job.finished for job in jobs)
    assert ("a", 100) not in seen  # made before
