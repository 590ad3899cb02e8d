"""The commands once, as real processes; test_cli.py has the rest."""

import json
import subprocess
import sys

import pytest

from sparse_dnm.cli.train import TrainOptions

COMMAND = [sys.executable, "-m", "sparse_dnm"]


def test_a_network_is_trained_evaluated_and_continued(tmp_path):
    run = tmp_path / "run"
    settings = ["--speed", "proxy", "--threads", "1"]
    subprocess.run(
        [*COMMAND, "train", "toy", "--steps", "20", *settings, "--out", run], check=True, capture_output=True
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 20
    done = subprocess.run([*COMMAND, "evaluate", run], check=True, capture_output=True, text=True)
    assert "reproduced" in done.stdout
    subprocess.run([*COMMAND, "train", "--resume", run, "--steps", "30"], check=True, capture_output=True)
    assert json.loads((run / "summary.json").read_text())["steps"] == 30


def test_help_and_version_are_printed_without_torch():
    for option in ("--help", "--version"):
        code = (
            "import sys; sys.argv = ['sparse-dnm', sys.argv[1]]\n"
            "from sparse_dnm.cli.app import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "assert not {'torch', 'numba', 'scipy'} & set(sys.modules), 'a large library was imported'\n"
        )
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "sparse-dnm" in done.stdout


def test_a_wrong_request_ends_in_one_line():
    done = subprocess.run([*COMMAND, "train", "nowhere.csv"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_recurrent_network_is_calibrated_trained_by_the_clock_and_continued(tmp_path):
    quick = ["--threads", "1", "--clock", "perf_counter"]
    sizes = ["--time-steps", "12", "--batch-size", "4", "--probes", "12", "--repeats", "3"]
    done = subprocess.run(
        [*COMMAND, "calibrate", "anbn", *quick, *sizes, "--out", tmp_path / "profile.json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "of sequences: 12 time steps of lstm neurons" in done.stdout
    assert "on 6 other structures" in done.stdout
    run, speed = tmp_path / "run", ["--speed", "time", *quick]
    subprocess.run([*COMMAND, "train", "anbn", *speed, "--steps", "20", "--out", run], check=True, capture_output=True)
    assert json.loads((run / "summary.json").read_text())["steps"] == 20
    subprocess.run([*COMMAND, "train", "--resume", run, "--steps", "30"], check=True, capture_output=True)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 30
    done = subprocess.run(
        [*COMMAND, "calibrate", run, *quick, *sizes[2:], "--out", tmp_path / "trained.json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "of sequences: 61 time steps of lstm neurons" in done.stdout  # those of its data


@pytest.mark.parametrize("given", [["--budget-us", "100"], ["--clock", "target"]])
def test_a_budget_of_time_and_the_clock_of_a_target_mean_the_term_of_time(given):
    options = TrainOptions(dataset="adding", **{given[0][2:].replace("-", "_"): given[1]})
    assert "speed=time" in options.settings()
    assert "speed=time" not in TrainOptions(dataset="adding").settings()
    own = TrainOptions(dataset="adding", budget_us=1.0, set_=["speed=proxy"]).settings()
    assert [text for text in own if text.startswith("speed=")] == ["speed=proxy"]
    own = TrainOptions(dataset="adding", budget_us=1.0, speed="none").settings()
    assert [text for text in own if text.startswith("speed=")] == ["speed=none"]


def test_a_comparison_of_recurrent_networks_is_refused_before_anything_is_done(tmp_path):
    done = subprocess.run(
        [*COMMAND, "compare", "adding", "--out", tmp_path / "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: compare does not support recurrent networks")
    assert not (tmp_path / "none").exists()
