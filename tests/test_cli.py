"""The command line: real processes that train, are stopped and resumed, and errors that a user can cause."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import typer
from safetensors.numpy import load_file
from typer.testing import CliRunner

from sparse_dnm import config
from sparse_dnm.cli import app as cli
from sparse_dnm.cli import options
from sparse_dnm.cli.app import app
from sparse_dnm.cli.console import errors_reported
from sparse_dnm.cli.study import CompareOptions
from sparse_dnm.cli.train import TrainOptions
from sparse_dnm.data.source import DataSource

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "sparse_dnm.cli"]
CHECKPOINT = "checkpoint.safetensors"
EVERY = 50  # steps between checkpoints of the runs that are stopped
LONG = [
    *("train", "toy", "--steps", "1500", "--batch-size", "16", "--executor", "columns", "--seed", "3"),
    *("--speed", "proxy"),
    *("--set", f"checkpoint_every={EVERY}", "--set", "log_every=10"),
]
SUMMARY = {
    *("edges", "density", "depth", "live", "steps", "train_seconds", "step_seconds", "clock", "threads", "device"),
    *("executor", "versions", "machine"),
}
BESIDE = {"test_balanced_accuracy", "test_f1_macro"}


def run(*arguments, cwd, code=0):
    """Run sparse-dnm to its end; expect the exit code."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def invoke(*arguments, code=2):
    """The same within this process, for errors; returns its one line."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stderr


@pytest.fixture(scope="session")
def csv_run(tmp_path_factory):
    """A classification from a .csv file, in the default run directory; and what the command printed."""
    folder = tmp_path_factory.mktemp("csv")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4))
    label = np.where(x[:, 0] + x[:, 1] > 0, "up", "down")
    rows = [f"{a},{b},{name},{c},{d}" for (a, b, c, d), name in zip(x.round(4), label, strict=True)]
    (folder / "table.csv").write_text("\n".join(["a,b,kind,c,d", *rows]) + "\n")
    options = ("--steps", 60, "--batch-size", 16, "--seed", 7, "--set", "log_every=20", "--executor", "columns")
    done = run("train", "table.csv", "--target", "kind", *options, cwd=folder)
    return folder, folder / "runs" / "table-7-1", done.stdout


@pytest.fixture(scope="session")
def npz_run(tmp_path_factory):
    """A regression from a .npz file."""
    folder = tmp_path_factory.mktemp("npz")
    x = np.random.default_rng(1).normal(size=(160, 4))
    np.savez(folder / "data.npz", x=x, y=3.0 + 10 * x[:, :2])
    run("train", "data.npz", "--steps", 60, "--batch-size", 16, "--out", "fit", "--speed", "none", cwd=folder)
    return folder, folder / "fit"


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """The long training without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run(*LONG, "--out", "whole", cwd=folder)
    return folder / "whole"


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_csv_end_to_end(csv_run):
    folder, out, printed = csv_run
    assert "\x1b" not in printed  # no control codes without a terminal
    assert "step 40/60" in printed
    assert str(out.relative_to(folder)) in printed
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == SUMMARY | BESIDE | {"test_accuracy", "measured_seconds", "measured"}
    assert summary["steps"] == 60
    config = json.loads((out / "config.json").read_text())
    assert DataSource(**config["source"]) == DataSource(str(folder / "table.csv"), None, "kind")
    assert (config["data"]["classes"], config["manifold"]["seed"], config["train"]["seed"]) == (["down", "up"], 7, 7)
    assert [line["step"] for line in lines(out)] == [0, 20, 40, 60]


def test_npz_end_to_end(npz_run):
    folder, out = npz_run
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == SUMMARY | {"test_mse", "test_r2"}
    assert 1 < summary["test_mse"] < 200  # the variance of the targets is 100 in their own units
    assert lines(out)[-1]["speed"] == 0
    assert "reproduced" in run("evaluate", "fit", cwd=folder).stdout


def test_evaluate_compares_with_the_summary(csv_run, monkeypatch, tmp_path):
    folder, out, _ = csv_run
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["evaluate", str(out)])
    assert (result.exit_code, "reproduced" in result.output) == (0, True)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", CHECKPOINT):
        (copy / name).write_bytes((out / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["evaluate", str(copy)])
    assert (result.exit_code, "nothing to compare with" in result.output) == (0, True)
    (copy / "summary.json").write_text('{"test_accuracy": 0.123}')
    assert "differs: summary.json says 0.123" in invoke("evaluate", copy, code=1)


def test_a_file_that_has_moved_is_found_by_data_dir(csv_run, tmp_path):
    folder, out, _ = csv_run
    new, copy = tmp_path / "new", tmp_path / "copy"
    shutil.copytree(out, copy)
    new.mkdir()
    config = json.loads((copy / "config.json").read_text())
    config["source"]["dataset"] = str(tmp_path / "table.csv")
    (copy / "config.json").write_text(json.dumps(config))
    assert "do not exist any more; name their folder with --data-dir" in invoke("evaluate", copy)
    assert "table.csv does not exist" in invoke("evaluate", copy, "--data-dir", new)
    text = (folder / "table.csv").read_text()
    (new / "table.csv").write_text(text)
    assert CliRunner().invoke(app, ["evaluate", str(copy), "--data-dir", str(new)]).exit_code == 0
    arguments = ["train", "--resume", str(copy), "--data-dir", str(new), "--steps", "61"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert json.loads((copy / "config.json").read_text())["source"]["dataset"] == str(new / "table.csv")
    (new / "table.csv").write_text(text.replace("up", "upper"))
    error = invoke("evaluate", copy)
    assert f"the data {new / 'table.csv'} have changed since the run in {copy} began (classes" in error


def wait_for(process, out, step):
    """Wait until the metrics of a running training have reached ``step``."""
    limit = time.monotonic() + 200
    while time.monotonic() < limit:
        assert process.poll() is None, "the training ended before it was stopped"
        if (out / "metrics.jsonl").exists():
            written = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
            if written and written[-1].endswith(b"\n") and json.loads(written[-1])["step"] >= step:
                return
        time.sleep(0.005)
    raise AssertionError("the training does not get on")


def stop(arguments, out, step, signum):
    """Start a command, send it a signal once it has reached ``step``; returns exit code, stderr and last step."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(process, out, step)
        process.send_signal(signum)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, error, saved_step(out)


def saved_step(out):
    with open(out / CHECKPOINT, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["sparse_dnm"])["step"]


def test_stopped_in_every_way_a_run_ends_in_the_same_bits(whole_run, tmp_path):
    out = tmp_path / "torn"
    resume = ["train", "--resume", "torn"]
    code, _, step = stop([*LONG, "--out", "torn"], out, 3 * EVERY, signal.SIGKILL)
    assert code == -signal.SIGKILL
    last = lines(out)[-1]["step"]
    assert step >= 2 * EVERY
    assert last - step <= EVERY  # lost: at most the steps since the last checkpoint
    for signum in (signal.SIGINT, signal.SIGTERM):
        target = lines(out)[-1]["step"] + 30
        code, error, step = stop(resume, out, target, signum)
        assert error == f"stopped at step {step}; continue with: sparse-dnm train --resume torn\n"
        assert code == 128 + signum
        assert step >= target
        assert not (out / "summary.json").exists()
    done = run(*resume, "--threads", 1, cwd=tmp_path)
    assert "\x1b" not in done.stdout
    whole, torn = load_file(whole_run / CHECKPOINT), load_file(out / CHECKPOINT)
    assert whole.keys() == torn.keys()
    for name in whole:
        assert whole[name].tobytes() == torn[name].tobytes(), name
    for a, b in zip(lines(whole_run), lines(out), strict=True):
        assert {**a, "step_seconds": 0} == {**b, "step_seconds": 0}
    assert "finished at step 1,500; a larger --steps extends it" in run(*resume, cwd=tmp_path).stdout


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_steps_are_measured_ends_it_at_once(tmp_path, signum):
    settings = ("--threads", "1", "--set", "time_mode=infer", "--set", "time_batch=100000")  # minutes
    command = [sys.executable, "-m", "sparse_dnm.cli", "train", "digits", *settings, "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(8)
            assert process.poll() is None
            process.send_signal(signum)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (128 + signum, -signum)
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is truncated or damaged"),
        (lambda path: path.write_text("weights, honestly"), "is not a safetensors file"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_unfit_checkpoint_is_refused_by_name_and_reason(csv_run, monkeypatch, tmp_path, damage, reason):
    folder, out, _ = csv_run
    monkeypatch.chdir(folder)
    for name in ("config.json", CHECKPOINT):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    damage(tmp_path / CHECKPOINT)
    for arguments in (["evaluate", tmp_path], ["train", "--resume", tmp_path]):
        error = invoke(*arguments)
        assert error.startswith(f"error: checkpoint {tmp_path / CHECKPOINT} {reason}")
        assert error.count("\n") == 1


def test_directory_of_another_run_is_refused(csv_run):
    _, out, _ = csv_run
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    error = invoke("train", "toy", "--out", out)
    assert f"error: {out} already holds a run" in error
    assert f"--resume {out}" in error
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_diverging_loss(tmp_path):
    error = invoke("train", "toy", "--lr", "1e6", "--batch-size", 16, "--out", tmp_path / "run")
    assert "lower --lr (now 1e+06)" in error
    assert f"last good checkpoint, of step 0, is kept in {tmp_path / 'run'}" in error
    assert saved_step(tmp_path / "run") == 0


def test_network_cut_in_two(tmp_path):
    error = invoke("train", "toy", "--batch-size", 16, "--set", "cutoff=20", "--out", tmp_path / "run")
    assert "no input reaches any output" in error
    for hint in ("--set cutoff= (now 20)", "--set sigma=mean,std (now 25,0)", "--set omega=0,std (now 0.3)"):
        assert hint in error


def test_a_failed_start_leaves_no_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut = ("train", "toy", "--batch-size", 16, "--set", "cutoff=20")
    invoke(*cut)
    invoke(*cut, "--out", "new")
    (tmp_path / "mine").mkdir()
    invoke(*cut, "--out", "mine")
    assert list((tmp_path / "runs").iterdir()) == []
    assert sorted(os.listdir(tmp_path)) == ["mine", "runs"]


def explained(error):
    """What the command line prints of an error, and its exit code."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(typer.Exit) as stop, errors_reported():
        raise error
    assert stop.value.exit_code == 2
    return errors.getvalue()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 15 GiB"), "not enough memory: Unable to allocate 15 GiB; use fewer neurons"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes\nframes"), "not enough memory: Default"),
        (OSError(errno.ENOSPC, "No space left", "a/b"), "a/b: No space left; free some space, or choose another --out"),
        (OSError(errno.EFBIG, "cannot write a: File too large"), "cannot write a: File too large; raise the limit"),
        (OSError(errno.EACCES, "Permission denied", "a"), "a: Permission denied; get the permission, or choose"),
    ],
)
def test_errors_of_the_system_are_one_line(error, line):
    printed = explained(error)
    assert printed.startswith(f"error: {line}")
    assert printed.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), errors_reported():
        raise RuntimeError("a bug")


def test_out_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    error = invoke("train", "toy", "--steps", 0, "--out", tmp_path / "file" / "run")
    assert error.startswith(f"error: cannot create the directory {tmp_path / 'file' / 'run'}: ")
    assert error.endswith("choose another --out\n")


def test_interrupt_before_a_command_begins(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, capsys.readouterr().err) == (130, "aborted\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy", "--speed", "light"], "speed='light' is unknown; choose one of none, proxy, time"),
        (["toy", "--budget-us", "0"], "--budget-us 0 must be > 0"),
        (["toy", "--budget-us", "-3"], "--budget-us -3 must be > 0"),
        (["toy", "--max-loss", "1"], "--max-loss 1 is about the cut to a budget: give --budget-us as well"),
        (["toy", "--budget-us", "5", "--max-loss", "-1"], "--max-loss -1 must be in 0 .. 100 points"),
        (["toy", "--budget-us", "5", "--set", "fine_tune=0"], "fine_tune=0 leaves no steps to train what is left"),
        (["toy", "--edges", "9", "--set", "fine_tune=1.5"], "fine_tune=1.5 must be a share >= 0 and <= 1"),
        (["toy", "--budget-us", "5", "--speed", "proxy"], "budget_us=5.0 needs speed='time'"),
        (["toy", "--clock", "sundial"], "clock='sundial' is unknown; choose one of process_time"),
        (["toy", "--executor", "torch-sparse"], "does not run the kernels that speed='time' measures"),
        (["toy", "--profile", "nowhere.json"], "nowhere.json does not exist; write one with: sparse-dnm calibrate"),
        (["toy", "--executor", "gpu"], "executor='gpu' is unknown; choose one of auto, columns, wavefront"),
        (["toy", "--preset", "cifar"], "preset='cifar' is unknown; choose one of original-toy, original-mnist, toy"),
        (["toy", "--preset", "digits"], "preset digits is made for 64 inputs and 10 outputs, but toy has 5 and 4"),
        (["toy", "--set", "colour=red"], "setting 'colour=red' names no field; choose one of activation"),
        (["toy", "--set", "tau"], "setting 'tau' must be written key=value"),
        (["toy", "--set", "n_inputs=7"], "the model has n_inputs=7 but data toy need n_inputs=5"),
        (["toy", "--set", "n_neurons=9"], "leaves no hidden neuron"),
        (["toy", "--steps", "-3"], "steps=-3 must be an integer >= 0"),
        (["toy", "--lr", "nan"], "lr=nan must be a finite number > 0"),
        (["toy", "--threads", "1000"], "threads=1000 must be"),
        (["toy", "--target", "a"], "target='a'"),
        (["nosuch"], "'nosuch'"),
        (["nosuch.csv"], "nosuch.csv"),
        (["mnist", "--data-dir", "nosuch"], "nosuch"),
        (["--resume", "nosuch"], "nosuch/config.json does not exist; is nosuch the directory of a run?"),
        (
            ["toy", "--resume", "r", "--lr", "1", "--out", "o"],
            "leave out DATASET, --lr, --out; only --cc, --copy, --run, --timeout, --steps",
        ),
    ],
)
def test_errors_are_one_clear_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    error = invoke("train", *arguments)
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_and_command():
    assert "--colour" in invoke("train", "toy", "--colour", "red")
    assert "tarin" in invoke("tarin")


def test_settings_reach_both_configs_and_options_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--set", "mu=1,0.5", "--set", "tau=0.5", "--set", "steps=9", "--steps", "0", "--seed", "4")
    for number in (1, 2):
        result = CliRunner().invoke(app, ["train", "toy", "--preset", "original-toy", *options])
        assert result.exit_code == 0, result.output
        config = json.loads((tmp_path / "runs" / f"toy-4-{number}" / "config.json").read_text())
    assert (config["manifold"]["mu"], config["manifold"]["output"]) == ([1, 0.5], "square")
    assert (config["train"]["tau"], config["train"]["steps"]) == (0.5, 0)
    assert (config["manifold"]["seed"], config["train"]["seed"]) == (4, 4)


def test_on_a_terminal_there_is_a_live_display(tmp_path):
    ours, theirs = pty.openpty()
    arguments = ["train", "toy", "--steps", "30", "--batch-size", "16", "--out", "run"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    printed = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        printed += part
    os.close(ours)
    assert process.wait(60) == 0
    assert b"\x1b[" in printed
    for text in ("compiling kernels", "30/30", "summary", "test_mse"):
        assert text.encode() in printed


def test_version_and_help(tmp_path):
    assert run("--version", cwd=tmp_path).stdout.startswith("sparse-dnm ")
    command = [sys.executable, "-m", "sparse_dnm", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("sparse-dnm ")
    printed = CliRunner().invoke(app, ["train", "--help"]).output
    for option in ("--resume", "--preset", "--set", "--data-dir"):
        assert option in printed


def test_help_imports_neither_large_libraries_nor_the_settings():
    package = os.path.dirname(os.path.dirname(cli.__file__))
    script = (
        "import sys, types; package = types.ModuleType('sparse_dnm')\n"  # without sparse_dnm/__init__.py
        f"package.__path__ = [{package!r}]; sys.modules['sparse_dnm'] = package\n"
        "from sparse_dnm.cli.app import app\n"
        "app(['train', '--help'], standalone_mode=False)\n"
        "large = {'torch', 'numpy', 'numba', 'scipy', 'matplotlib', 'plotly', 'sparse_dnm.config'}\n"
        "print(large & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("shown", "legal"),
    [
        (options.SPEEDS, config.SPEEDS),
        (options.CLOCKS, config.CLOCKS),
        (options.EXECUTORS, config.EXECUTORS),
        (options.MODES, config.TIME_MODES),
    ],
)
def test_help_shows_the_legal_values(shown, legal):
    assert tuple(shown.split("|")) == legal


def test_every_option_that_is_a_setting_names_a_field_of_the_config():
    configs = (config.TrainConfig, config.ManifoldConfig)
    fields = {field.name for one in configs for field in dataclasses.fields(one)}
    for table in (TrainOptions, CompareOptions):
        assert set(options.with_marks(table, options.SETTING)) <= fields
    assert options.with_marks(TrainOptions, options.RESUMABLE) == [
        *("cc", "copy", "run", "timeout"),
        *("steps", "executor", "threads", "device", "data_dir", "snapshot_every", "tensorboard"),
    ]


def test_options_given_as_zero_are_given():
    found = TrainOptions(steps=0, threads=0, seed=0, lr=None, tensorboard=False, set_=[])
    assert options.given(found) == {"steps": 0, "threads": 0, "seed": 0}
    assert options.given(found, options.RESUMABLE) == {"steps": 0, "threads": 0}
    assert TrainOptions(speed="none", set_=["tau=1"]).settings() == ["tau=1", "speed=none"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_from_a_gpu_that_is_not_here_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--steps", "0", "--speed", "none", "--out", "run"]
    assert CliRunner().invoke(app, ["train", "toy", *options]).exit_code == 0
    config, checkpoint = json.loads((tmp_path / "run/config.json").read_text()), tmp_path / "run/checkpoint.safetensors"
    config["train"]["device"] = "cuda"
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    before = checkpoint.read_bytes()
    done = CliRunner().invoke(app, ["train", "--resume", "run", "--steps", "1"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: run was trained on cuda; give --device cpu to go on here: device='cuda' was")
    assert checkpoint.read_bytes() == before
    done = CliRunner().invoke(app, ["train", "--resume", "run", "--steps", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run/summary.json").read_text())["device"] == "cpu"
