"""sparse-dnm bench in a real process, and the logic (never the speed) of interleaved timing and crossovers."""

import json
import math
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sparse_dnm import SparseDAG
from sparse_dnm.cli.app import app
from sparse_dnm.report.sweeps import crossover_lines, warnings
from sparse_dnm.study.sweeps import DenseStack, Settings, Sweep, _crossing, count_points, layered, random_dag
from sparse_dnm.timing.clock import Timing, interleave, rounds

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "sparse_dnm.cli", "bench"]
SWEEPS = {"density", "edges", "depth", "batch", "threads"}


def bench(*arguments, cwd):
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Folder and output of a quick run."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench("--quick", "--threads", 1, "--out", "results", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results", done.stdout


def test_every_file_is_written(quick):
    out, said = quick
    figures = {f"{name}.{suffix}" for name in SWEEPS for suffix in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == {"bench.json", "bench.md", *figures}
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in out.glob("*.svg"):
        ElementTree.parse(path)
    assert "faster" in said


def test_json_is_complete_and_consistent(quick):
    found = json.loads((quick[0] / "bench.json").read_text())
    assert found["threads"] == 1
    assert found["clock"] == "perf_counter"
    assert found["machine"]["cores"] >= 1
    assert set(found["versions"]) >= {"torch", "numba"}
    assert set(found["sweeps"]) == SWEEPS
    points = [point for sweep in found["sweeps"].values() for point in sweep]
    assert len(points) == count_points(Settings.quick(1), 1)
    for point in points:
        assert point["edges"] > 0
        assert "sparse forward + backward" in point["seconds"]
        for timing in point["seconds"].values():
            assert 0 < timing["low"] <= timing["median"] <= timing["high"] < math.inf
            assert timing["n"] >= 3
            assert timing["clock"] == "perf_counter"
    for point in found["sweeps"]["density"]:
        width = point["neurons"] // 4
        assert point["edges"] == pytest.approx(point["x"] * 3 * width**2, abs=3)
        assert {"dense forward", "dense forward + backward"} < set(point["seconds"])
    assert {point["x"] for point in found["sweeps"]["edges"]} == {p["edges"] for p in found["sweeps"]["edges"]}
    assert all(point["x"] == point["depth"] for point in found["sweeps"]["depth"])
    assert set(found["crossover"]) == {"300 neurons", "1,000 neurons"}


def test_markdown_names_machine_clock_and_figures(quick):
    text = (quick[0] / "bench.md").read_text()
    assert "perf_counter" in text
    assert all(f"]({name}.svg)" in text for name in SWEEPS)


def test_errors_of_a_user_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for arguments in (("--threads", "99999"), ("--out", "file")):
        done = CliRunner().invoke(app, ["bench", "--quick", *arguments])
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_sparse_and_dense_of_the_sweep_compute_the_same():
    layers = layered([7, 9, 5, 4], 0.4, np.random.default_rng(1))
    assert [int((layer.weight != 0).sum()) for layer in layers] == [25, 18, 8]
    x = torch.randn(6, 7)
    torch.testing.assert_close(SparseDAG.from_linear(layers, threads=1)(x), DenseStack(layers)(x))


def test_a_layer_has_at_least_one_weight():
    (layer,) = layered([3, 3], 1e-6, np.random.default_rng(0))
    assert isinstance(layer, nn.Linear)
    assert int((layer.weight != 0).sum()) == 1


@pytest.mark.parametrize(
    ("neurons", "depth", "edges"), [(40, 1, 50), (40, 8, 200), (40, 39, 100), (40, 39, 780), (500, 20, 5000)]
)
def test_random_dag_has_the_depth_and_the_edges_asked_for(neurons, depth, edges):
    topology = random_dag(neurons, depth, edges, np.random.default_rng(0))
    assert topology.depth == depth
    assert topology.n_neurons == neurons
    assert topology.n_edges == edges
    assert np.count_nonzero(topology.live[topology.inputs]) > 0


def test_random_dag_refuses_more_levels_than_neurons():
    with pytest.raises(ValueError, match="depth"):
        random_dag(5, 5, 10, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("ratios", "expected"), [([0.1, 0.2, 0.5], None), ([2.0, 3.0, 4.0], 0.0), ([0.5, 0.5, 2.0], 10**-0.5)]
)
def test_crossing(ratios, expected):
    found = _crossing([0.01, 0.1, 1.0], ratios)
    assert found == (expected if not expected else pytest.approx(expected))


def test_crossover_lines_are_sentences():
    said = crossover_lines({"9 neurons": {"forward": None, "both": 0.0, "other": 0.25}})
    assert [line.partition(": ")[2] for line in said] == [
        "sparse is faster at every density measured",
        "dense is faster throughout",
        "sparse is faster below 25.00% density",
    ]


@pytest.mark.parametrize(("load", "said"), [(None, 0), (0.05, 0), (2.0, 1)])
def test_a_busy_machine_is_warned_about(load, said):
    assert len(warnings({"load_before": load})) == said


def test_rounds_rotate():
    assert list(rounds("abc", 4)) == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_interleave_runs_every_case_in_every_round():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "abc"}
    found = interleave(cases, repeats=4, warmup=2, shortest_s=0)
    assert calls == list("aabbcc" + "abc" + "bca" + "cab" + "abc")
    assert list(found) == list("abc")
    assert all(timing.n == 4 and timing.low <= timing.median <= timing.high for timing in found.values())


def test_interleave_stops_at_its_budget_after_three_rounds():
    calls = []
    found = interleave({"a": lambda: calls.append(0)}, repeats=1000, warmup=0, budget_s=0)
    assert found["a"].n == len(calls) == 3


def test_a_short_case_is_repeated_within_a_measurement():
    calls = []
    found = interleave({"a": lambda: calls.append(0)}, repeats=5, warmup=1, shortest_s=10.0)
    assert found["a"].n == 5
    assert len(calls) == 1 + 5 * 1000


def test_process_time_leaves_sleep_out_and_errors_name_the_rule():
    assert interleave({"a": int}, 3, "process_time")["a"].clock == "process_time"
    with pytest.raises(ValueError, match="clock"):
        interleave({"a": int}, clock="sundial")
    with pytest.raises(ValueError, match="repeats=0"):
        interleave({"a": int}, repeats=0)
    with pytest.raises(ValueError, match="at least one"):
        Timing.of([])


def test_timing_has_median_and_quartiles():
    assert Timing.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0, 5, "perf_counter")
    assert Timing.of([2.0]) == Timing(2.0, 2.0, 2.0, 1, "perf_counter")


def test_a_sweep_starts_empty():
    assert Sweep("a", "b", "c").points == []
