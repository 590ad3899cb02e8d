"""python -m bench.noise: competitors are real processes, results are kept, tables say what was found."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench import noise, noise_budgets, noise_runs
from bench.competitors import CONDITIONS, IDLE, Condition, competing, cores, describe, limited
from bench.noise_budgets import Ended, accuracy_at, budgets_of, budgets_table
from bench.noise_runs import Bench
from sparse_dnm.study.fastest import Fastest
from sparse_dnm.study.verdict import Result

ROOT = Path(__file__).resolve().parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children():
    """Processes of this one that compete."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text().split("\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if "bench.competitors" in words and parent == os.getpid():
            found[int(path.name)] = words
    return found


@LINUX
def test_a_competitor_computes_on_its_core_while_the_block_runs_and_is_gone_after_it():
    condition = CONDITIONS["always-arithmetic-other-core"]
    with competing(condition):
        ((pid, words),) = children().items()
        assert words[-3:-1] == ["arithmetic", "1.0"]
        bound = cores("other")
        if bound is not None:
            assert os.sched_getaffinity(pid) == bound[1]
        before, deadline = cpu_seconds(pid), time.monotonic() + 60
        while cpu_seconds(pid) < before + 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not children()


def test_an_idle_condition_starts_nothing():
    with competing(IDLE):
        pass
    assert not IDLE.share


def test_conditions_are_every_kind_share_and_core():
    assert len(CONDITIONS) == 1 + 2 * 2 * 2 + 1
    assert {(c.share, c.kind, c.core) for c in CONDITIONS.values() if c.share} == {
        (share, kind, core) for share in (0.5, 1.0) for kind in ("arithmetic", "memory") for core in ("same", "other")
    }
    assert "core" in " ".join(describe())


@LINUX
def test_a_quota_leaves_the_program_running_at_its_end(monkeypatch):
    monkeypatch.setattr("bench.competitors._own_cgroup", lambda: None)  # stopped and continued
    command = [sys.executable, "-c", "while True: pass"]
    stopped = False
    with subprocess.Popen(command, text=True) as process:
        try:
            with limited(Condition("quota", quota=True), process):
                deadline = time.monotonic() + 60
                while not stopped:
                    stopped = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
                    assert time.monotonic() < deadline
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            assert state not in "Tt"
        finally:
            process.send_signal(signal.SIGKILL)


def bench(out):
    counts = {"repeats": 2, "runs": 4, "seeds": 3, "jobs": 1}
    return Bench(out, None, quick=True, conditions=("half-memory-other-core",), mode="infer", **counts)


def summary(**changes):
    how = {"executor": "columns", "mode": "infer", "batch": 1, "threads": 1, "clock": "process_time"}
    return {"edges": 100, "depth": 3, "live": 9, "test_accuracy": 0.9, "measured": how, **changes}


@pytest.fixture
def fake(monkeypatch):
    """The product, and what times its networks, replaced: time in µs is the number of edges over 100."""
    ran = []

    def product(condition, arguments):
        run = Path(arguments[arguments.index("--out") + 1])
        run.mkdir(parents=True)
        ran.append(run.name)
        named = dict(itertools.pairwise(arguments))
        seed, infer = int(named["--seed"]), "time_mode=infer" in arguments
        if "--budget-us" in named:
            assert infer
            edges, better = round(100 * float(named["--budget-us"])), 0.01
        else:
            edges, better = int(named.get("--edges", 1000 + 100 * len(ran))), 0.0
        found = summary(edges=edges, test_accuracy=0.5 + 0.05 * math.log(edges) + better + 1e-4 * seed)
        (run / "summary.json").write_text(json.dumps(found))
        return {"command": list(arguments), "rc": 0, "seconds": 1.0, "said": ""}

    class Network:
        def __init__(self, run):
            self.us = json.loads((run / "summary.json").read_text())["edges"] / 100
            self.indices = []

    def fastest(networks, settings, executors):
        return {name: Fastest("columns", np.full(3, 1e-6 * n.us)) for name, n in networks.items()}

    monkeypatch.setattr(noise_runs, "product", product)
    monkeypatch.setattr(noise_budgets, "network", Network)
    monkeypatch.setattr(noise_budgets, "time_fastest", fastest)
    monkeypatch.setattr(
        noise_budgets, "time_in_subprocess", lambda n, settings: {"it": np.full((3, 5), 1e-6 * n["it"].us)}
    )
    return ran


def test_the_same_command_again_and_again_is_a_row_a_condition(tmp_path, fake):
    lines = noise.edges(bench(tmp_path))
    assert lines[-2] == "| idle | 2 of 2 | 1,150 (1,100 to 1,200) | 1.091 | 85.23 (85.02 to 85.45) | 1 (1 to 1) |"
    assert lines[-1].startswith("| half-memory-other-core | 2 of 2 | 1,350 (1,300 to 1,400) | 1.077")
    assert noise.edges(bench(tmp_path)) == lines
    assert len(fake) == 4  # they are kept


def test_budgets_are_judged_by_their_networks_measured_later(tmp_path, fake):
    lines = noise_budgets.budgets(bench(tmp_path))
    (all_runs,) = (line for line in lines if line.startswith("| all"))
    assert all_runs.startswith("| all | 4 | 4, 0, 0 | 4 of 4 | 0.0 |")
    assert all_runs.endswith("| 0 |")
    assert sum("half-memory-other-core" in name for name in fake) == 2  # half of them
    assert noise_budgets.budgets(bench(tmp_path)) == lines
    assert len(fake) == 2 * 3 + 4


def test_accuracy_at_equal_time_is_less_that_of_the_edges(tmp_path, fake):
    lines = noise_budgets.accuracy(bench(tmp_path))
    cells = lines[-1].split(" | ")
    assert float(cells[3]) == pytest.approx(1.0, abs=0.02)
    assert cells[-1] == "budget wins |"


def test_a_seed_in_which_a_run_failed_is_left_out_aloud(tmp_path, fake, monkeypatch):
    made = noise_runs.product

    def product(condition, arguments):
        found = made(condition, arguments)
        lost = "--budget-us" in arguments and arguments[arguments.index("--seed") + 1] == "1"
        return {**found, "rc": 3, "said": "error: lost\nmuch"} if lost else found

    monkeypatch.setattr(noise_runs, "product", product)
    lines = noise_budgets.accuracy(bench(tmp_path))
    (row,) = (line for line in lines if line.startswith("| digits |"))
    assert row.split(" | ")[2] == "2"  # seeds
    assert lines[-1].endswith("seed 1: exit status 3, error: lost much; its seed is left out")


def references():
    return [Result("edges", e, s, 0.9 + 0.01 * k, 1, 1, 1, t, t, t) for s in (0, 1)
            for k, (e, t) in enumerate(((100.0, 1e-6), (200.0, 1e-4)))]  # fmt: skip


def test_reference_accuracy_is_interpolated_on_log_time_and_budgets_lie_inside():
    assert accuracy_at(references(), 1e-5) == pytest.approx(0.905)
    assert accuracy_at(references(), 1.0) == pytest.approx(0.91)
    assert budgets_of(references(), 3) == [3.16, 10.0, 31.6]


def test_a_ruined_network_is_one_that_was_handed_over_as_good():
    ended = [
        Ended("digits", "idle", 0, 10.0, 1.02e-5, 0.95, 0.94),
        Ended("digits", "busy", 0, 10.0, 1.05e-5, 0.90, 0.94),
        Ended("mnist", "busy", 3, 10.0, math.nan, math.nan, math.nan),
    ]
    assert [e.ruined for e in ended] == [False, True, False]
    lines = budgets_table(ended)
    (row,) = (line for line in lines if line.startswith("| all"))
    assert row == "| all | 3 | 2, 1, 0 | 1 of 2 | 3.5 | +3.5 (+2.0 to +5.0) | -1.50 (-4.00 to +1.00) | 1 |"
    assert lines[-2].startswith("- digits, 10 µs, beside busy: exit status 0, +5.0% of the budget")
    assert lines[-1] == "- mnist, 10 µs, beside busy: exit status 3"


def test_calibrations_are_judged_by_the_times_of_the_idle_machine():
    counts = np.array([[1.0, k] for k in range(1, 21)])

    def profile(edge, own):
        seconds = counts @ np.array([1e-6, 1e-9 * 1000])
        return {"rc": 0, "seconds": 9.0, "profile": {
            "seconds_per": {"call": 1e-6, "edge": edge}, "counts": counts.tolist(), "seconds": seconds.tolist(),
            "held_out": {"n": 10, "within_10": own}, "pace": {"quiet_date": "2026-01-02"}}}  # fmt: skip

    lines = noise.calibration_table(
        {"idle": [profile(1e-6, 1.0)], "busy": [profile(1.5e-6, 0.9), {"rc": 2, "seconds": 1.0}]}
    )
    assert lines[-1].endswith("calibrations: 2026-01-02.")
    assert lines[-4].startswith("| idle | 1 of 1 | 100 (100 to 100) | 100 (100 to 100) | 1.00")
    assert lines[-3].startswith(
        "| busy | 1 of 2 | 90 (90 to 90) | 0 (0 to 0) | 1.25 (1.25 to 1.25) | 1.00 (0.80 to 1.20)"
    )


@pytest.mark.parametrize("arguments", [["--only", "luck"], ["--conditions", "luck"], ["--runs", "0"]])
def test_wrong_options_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        noise.options(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]


def test_results_of_other_options_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["noise", "--out", str(tmp_path), "--only", "edges"])
    (tmp_path / "options.json").write_text('{"quick": true, "mode": "infer"}')
    with pytest.raises(SystemExit, match=r"holds results of .*: choose another --out"):
        noise.main()


@pytest.mark.slow
def test_the_command_runs_the_product_and_continues(tmp_path):
    command = [sys.executable, "-m", "bench.noise", "--quick", "--only", "edges", "--out", str(tmp_path / "n")]
    said = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done)
    rows = [line for line in said[0].stdout.splitlines() if line.startswith(("| idle", "| half-arithmetic-same-core"))]
    assert [row.split(" | ")[1] for row in rows] == ["2 of 2", "2 of 2"]
    assert said[1].stdout.splitlines()[-2:] == rows
    assert not [line for line in said[1].stderr.splitlines() if "train/" in line]
    assert len(list((tmp_path / "n" / "train").iterdir())) == 4
