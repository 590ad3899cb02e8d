"""Simulated against measured speed: the judgement on results that are known, and the command as a real process."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from sparse_dnm.cli.app import app
from sparse_dnm.report import comparison as compare_report
from sparse_dnm.study import verdict as verdicts
from sparse_dnm.study.compare import Plan
from sparse_dnm.study.verdict import Result, judge
from sparse_dnm.timing.calibration import Settings

pytestmark = pytest.mark.slow


def results(term, log_saving=0.0, seeds=8, noise=0.002, seed=0, figure=lambda f: 0.98 - 0.01 * f):
    """Networks whose time falls with the factor, at figures that do too; ``log_saving`` less time at every figure."""
    rng = np.random.default_rng(seed)
    found = []
    for s in range(seeds):
        for factor in (0.3, 1.0, 3.0):
            good = figure(factor) + rng.normal(0, noise)
            seconds = 1e-5 * np.exp(30 * (figure(factor) - 0.98) - log_saving) * rng.lognormal(0, 0.01)
            found.append(Result(term, factor, s, good, 100, 3, 50, seconds, seconds, seconds))
    return found


def test_a_term_that_saves_time_at_equal_figures_wins():
    verdict = judge([*results("proxy"), *results("time", 0.3, seed=1)], "classification")
    assert verdict.saving.value == pytest.approx(1 - np.exp(-0.3), abs=0.03)
    assert verdict.saving.low > 0.15
    assert verdict.hypervolume.low > 1.0
    assert verdict.words.startswith("time wins: at equal figures its networks take 2")


def test_a_term_that_costs_time_loses():
    verdict = judge([*results("proxy"), *results("time", -0.3, seed=1)], "classification")
    assert verdict.saving.high < 0
    assert verdict.words.startswith("time loses")
    assert "8 seeds) more measured time than proxy's" in verdict.words


def test_the_same_twice_is_a_tie_most_of_the_time():
    words = [
        judge([*results("proxy", seed=k), *results("time", seed=100 + k)], "classification").words for k in range(20)
    ]
    assert sum(w.startswith("a tie") for w in words) >= 16


def test_other_coefficients_do_not_make_a_difference():
    """Points elsewhere on the same curve: what counts is the time at equal figures."""
    other = [dataclasses.replace(r, factor=10 * r.factor) for r in results("time", figure=lambda f: 0.975 - 0.008 * f)]
    verdict = judge([*results("proxy"), *other], "classification")
    assert abs(verdict.saving.value) < 0.03


def test_figures_without_overlap_are_reported():
    far = [dataclasses.replace(r, figure=0.5) for r in results("time")]
    verdict = judge([*results("proxy"), *far], "classification")
    assert verdict.saving is None
    assert "reach no common figure" in verdict.words


def test_better_and_faster_without_a_common_figure_is_a_win():
    far = [dataclasses.replace(r, figure=r.figure - 0.2, seconds=1.25 * r.seconds) for r in results("proxy")]
    for rival, found in (("proxy", [*far, *results("time")]), ("time", [*results("time"), *far])):
        verdict = judge(found, "classification", "time" if rival == "proxy" else "proxy", rival)
        assert verdict.saving is None
        assert verdict.words.startswith("time wins: it and proxy reach no common figure")
        least = float(verdict.words.split("at least ")[1].split("%")[0])
        assert least == pytest.approx(20, abs=1)  # each of the rival's is beaten by 1 - 1 / 1.25 in time and more


def test_a_plan_names_each_factor_once():
    with pytest.raises(ValueError, match=r"factors=\(1.0, 1.0\) must name each factor once"):
        Plan(factors=(1.0, 1.0))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seed=3", "use --seeds"),
        ("speed=proxy", "use --terms"),
        ("clock=x", "use --clock"),
        ("budget_us=5", "leave it out"),
    ],
)
def test_what_compare_sets_itself_is_refused(tmp_path, setting, said):
    found = CliRunner().invoke(app, ["compare", "toy", "--set", setting, "--out", str(tmp_path / "c")])
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.split())


def test_two_seeds_decide_nothing():
    verdict = judge([*results("proxy", seeds=2), *results("time", 0.3, seeds=2)], "classification")
    assert verdict.words.startswith("undecided between time and proxy: 2 seeds")
    assert verdict.hypervolume is None


def test_a_regression_is_better_where_its_error_is_smaller():
    proxy = [dataclasses.replace(r, figure=10 ** (-100 * r.figure)) for r in results("proxy", noise=0.0)]
    time = [dataclasses.replace(r, figure=10 ** (-100 * r.figure)) for r in results("time", 0.3, noise=0.0)]
    assert judge([*proxy, *time], "regression").saving.value == pytest.approx(1 - np.exp(-0.3), abs=0.02)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([(1.0, 0.0)], 2.0),  # from (goodness 0, log time 2)
        ([(1.0, 0.0), (0.5, 1.0)], 2.0),  # the second one is dominated
        ([(1.0, 1.0), (0.5, 0.0)], 1.5),
        ([(0.0, 0.0)], 0.0),
    ],
)
def test_hypervolume_is_the_area_that_is_dominated(points, area):
    good, times = np.array(points).T
    assert verdicts._hypervolume(good, times, (0.0, 2.0)) == pytest.approx(area)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"terms": ("time", "luck")}, "terms='luck' is unknown; choose one of none, proxy-flat, proxy, time"),
        ({"terms": ()}, "must name one term or more"),
        ({"terms": ("time", "time")}, "each once"),
        ({"factors": (0.0,)}, "must be finite numbers > 0"),
        ({"factors": ()}, "must be finite"),
        ({"seeds": 0}, "seeds=0 must be >= 1"),
    ],
)
def test_a_wrong_plan_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        Plan(**change)


def test_terms_without_effect_are_trained_once_a_seed():
    runs = Plan(seeds=2, factors=(1.0, 2.0)).runs()
    assert len(runs) == len(set(runs)) == 2 * (1 + 1 + 2 + 2)
    assert [r for r in runs if r[0] == "none"] == [("none", 1.0, 0), ("none", 1.0, 1)]


def test_tables_name_median_and_range():
    lines = compare_report.table([*results("proxy", seeds=3), *results("none", seeds=1)], "classification")
    assert len(lines) == 2 + 3 + 3
    assert " to " in lines[2]
    assert "classification" not in "".join(lines)
    about = {"machine": {"processor": "P", "cores": 2}}
    text = compare_report.describe(about, Settings(mode="infer", batch=1, threads=0))
    assert text == ("P, 2 cores; forward, batch 1, executor columns, all threads, clock process_time, float32")


def command(*arguments, cwd):
    full = [sys.executable, "-m", "sparse_dnm.cli", "compare", *map(str, arguments)]
    return subprocess.run(full, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=os.environ)


def test_the_command_writes_everything_and_takes_finished_runs_again(tmp_path, monkeypatch):
    arguments = ("toy", "--steps", 40, "--seeds", 1, "--factors", "1,3", "--threads", 1, "--out", "c")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "c"
    names = {"compare.json", "compare.md", "pareto.png", "pareto.svg", "along.png", "along.svg", "runs"}
    assert set(os.listdir(out)) == names
    assert len(os.listdir(out / "runs")) == 6
    found = json.loads((out / "compare.json").read_text())
    assert {r["term"] for r in found["results"]} == {"none", "proxy-flat", "proxy", "time"}
    assert all(r["low"] <= r["seconds"] <= r["high"] for r in found["results"])
    assert found["timing"]["batch"] == 1
    assert found["along"][0]["step"] == 0
    assert all(s["dense"]["median"] > 0 for s in found["along"])
    assert "undecided between time and proxy: 1 seeds" in done.stdout
    none, flat = (next(r for r in found["results"] if r["term"] == t) for t in ("none", "proxy-flat"))
    assert (none["figure"], none["edges"]) == (flat["figure"], flat["edges"])  # it is counted, never optimised

    stamps = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("checkpoint.safetensors")}
    monkeypatch.chdir(tmp_path)

    def invoke(*given):
        return CliRunner().invoke(app, ["compare", *map(str, given)])

    again = invoke(*arguments)
    assert again.exit_code == 0, again.output
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert invoke(*arguments[:-2], "--lr", 1).exit_code == 2
    other = invoke(*arguments, "--set", "lr=0.5")
    assert other.exit_code == 2
    assert "holds a run of other settings than this comparison's" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--terms", "luck"), "terms='luck' is unknown"),
        (("--factors", "1,x"), "--factors '1,x' must be numbers"),
        (("--executor", "luck"), "executor='luck' is unknown; choose one of columns, wavefront"),
        (("--mode", "fly"), "'fly' is unknown"),
        (("--clock", "sundial"), "clock='sundial'"),
        (("--batch-size", "0"), "time_batch=0 must be"),
        (("--device", "tpu"), "device='tpu' has no kernels"),
    ],
)
def test_wrong_requests_end_in_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", "toy", *arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
