"""The commands once, as real processes; test_cli.py has the rest."""

import json
import subprocess
import sys

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
