"""What the command line writes: in any encoding, to readers that go, on a terminal that is closed."""

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numba
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn
from rich.table import Table

from sparse_dnm.cli import streams
from sparse_dnm.cli.console import progress, runs_progress
from sparse_dnm.cli.streams import PIPE, Guarded, OutputClosed, guarded, plain
from sparse_dnm.train.signals import StopSignals

COMMAND = [sys.executable, "-m", "sparse_dnm.cli"]
ENDLESS = [
    *("train", "digits", "--steps", "1000000", "--speed", "none", "--threads", "1", "--out", "run"),
    *("--set", "log_every=20", "--set", "checkpoint_every=1000000"),
]


def written(encoding, write):
    """What ``write`` prints to a guarded stream of this encoding."""
    held = io.BytesIO()
    stream = Guarded(io.TextIOWrapper(held, encoding=encoding), output=True)
    write(stream)
    stream.flush()
    return held.getvalue().decode(encoding)


def test_every_sign_that_the_package_contains_has_a_likeness_in_ascii():
    package = Path(streams.__file__).parent.parent
    signs = {c for path in package.rglob("*.py") for c in path.read_text(encoding="utf-8") if not c.isascii()}
    assert {"µ", "²", "–", "…"} <= signs
    assert {c for c in signs if plain(c) == "?" or plain(c).startswith("\\")} == set()
    assert "".join(map(plain, "µ²–…→é━┏│█⠋")) == "u2-...->e-+|#*"
    assert plain("中") == "\\u4e2d"


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp932", "latin-1", "cp437", "utf-8"])
@given(text=st.text())
def test_any_text_can_be_written_in_any_encoding(encoding, text):
    printed = written(encoding, lambda stream: stream.write(text))
    if encoding == "ascii":
        assert len(printed) >= len([c for c in text if c.isascii()])
        assert printed.isascii()


def test_a_file_name_that_is_no_text_is_printed_as_it_is():
    held = io.BytesIO()
    stream = Guarded(io.TextIOWrapper(held, encoding="utf-8"), output=True)
    stream.write(b"r\xe9sum\xe9".decode("utf-8", "surrogateescape"))
    stream.flush()
    assert held.getvalue() == b"r\xe9sum\xe9"


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp932"])
def test_tables_and_bars_are_written_without_control_characters(encoding):
    def write(stream):
        console = Console(file=stream, width=60)
        table = Table(title="µs² – …")
        table.add_column("µ")
        table.add_row("1 µs")
        console.print(table)
        with Progress(SpinnerColumn(), BarColumn(), console=console) as bar:
            bar.update(bar.add_task("", total=2), advance=1)

    printed = written(encoding, write)
    assert "1 us" in printed or "1 µs" in printed
    assert all(c == "\n" or c.isprintable() for c in printed)


@pytest.mark.parametrize("encoding", ["ascii", "cp932"])
def test_progress_in_a_log_is_lines_of_text(encoding, monkeypatch):
    def write(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("snapshots", 2) as advance:
            advance("1 µs")
        with runs_progress(2, 10) as (advance, on_step):
            advance("time-1 µs")
            on_step("time-1 µs", 5)
            on_step("time-1 µs", -1)

    printed = written(encoding, write)
    assert all(c == "\n" or c.isprintable() for c in printed)
    assert "time-1 " in printed


def broken_pipe():
    """A stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_a_reader_that_goes_is_told_once_and_later_output_is_dropped():
    with broken_pipe() as stream:
        output = Guarded(stream, output=True)
        output.write("a line")
        with pytest.raises(OutputClosed):
            output.flush()
        output.write("another")
        output.flush()


def test_where_something_runs_that_can_be_stopped_a_gone_reader_stops_it():
    with broken_pipe() as stream, StopSignals() as outer, StopSignals() as inner:
        output = Guarded(stream, output=True)
        output.writelines(["a\n", "b\n"])
        assert inner.received is None  # it is buffered
        output.flush()
        assert (outer.received, inner.received) == (None, PIPE)
    assert not StopSignals.request(PIPE)


def test_another_thread_leaves_it_to_the_main_thread_to_stop():
    with broken_pipe() as stream:
        output = Guarded(stream, output=True)
        other = threading.Thread(target=lambda: (output.write("a"), output.flush()))
        other.start()
        other.join()
        assert output.closed_early
        with pytest.raises(OutputClosed):
            output.write("b")


def test_standard_error_may_be_gone():
    with broken_pipe() as stream:
        errors = Guarded(stream, output=False)
        errors.write("a line")
        errors.flush()
        errors.write("another")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_an_error():
    stream = open("/dev/full", "w")  # noqa: SIM115 (closing it fails)
    output = Guarded(stream, output=True)
    output.write("a line")
    with pytest.raises(OSError, match="No space left"):
        output.flush()
    with contextlib.suppress(OSError):
        stream.close()


def test_a_command_without_streams_runs(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with guarded():
        streams.echo("nobody reads this")
    assert sys.stdout is None


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_a_hangup_stops_a_training_unless_it_was_ignored():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def saved_step(out):
    with open(out / "checkpoint.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["sparse_dnm"])["step"]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["the reader goes", "the terminal hangs up"])
def test_a_training_that_nobody_follows_any_more_is_saved(tmp_path, end):
    process = subprocess.Popen(
        [*COMMAND, *ENDLESS], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith("step 40"):
                break
        if end == "the reader goes":
            process.stdout.close()
        else:
            process.send_signal(signal.SIGHUP)
        error = process.stderr.read()
        code = process.wait(120)
    finally:
        process.kill()
    step = saved_step(tmp_path / "run")
    assert step >= 40
    assert error == f"stopped at step {step}; continue with: sparse-dnm train --resume run\n"
    assert code == 128 + (PIPE if end == "the reader goes" else signal.SIGHUP)


@pytest.mark.slow
def test_a_training_on_a_terminal_that_is_closed_is_saved(tmp_path):
    """The terminal controls the process: closing it sends SIGHUP, and all that is written fails."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execvpe(COMMAND[0], [*COMMAND, *ENDLESS], {**os.environ, "TERM": "xterm", "COLUMNS": "100"})
    printed = b""
    while not re.search(rb"[1-9]\d/1000000", printed):
        printed += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) in (128 + signal.SIGHUP, 128 + PIPE)
    assert saved_step(tmp_path / "run") >= 10


@pytest.mark.slow
def test_help_for_a_reader_that_goes_ends_in_silence(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen([*COMMAND, "train", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (process.communicate(timeout=120)[1], process.returncode) == ("", 128 + PIPE)


@pytest.mark.slow
def test_commands_write_in_the_encoding_of_the_terminal(tmp_path):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

    def run(*arguments):
        done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, timeout=300)
        printed = (done.stdout + done.stderr).decode("ascii")
        assert done.returncode == 0, printed
        assert "\x1b" not in printed
        return printed

    assert " us)" in run("train", "digits", "--steps", "10", "--threads", "1", "--out", "run")
    fast = ("--probes", "10", "--repeats", "3", "--threads", "1", "--mode", "infer")
    assert " us" in run("calibrate", "run", *fast, "--out", "profile.json")


def test_a_run_from_a_machine_with_more_cpus_goes_on_with_fewer_threads(tmp_path, monkeypatch):
    from test_training import Stop, assert_same_bits, crash_at, dataset, trainer

    from sparse_dnm.train.trainer import Trainer

    trainer(tmp_path / "whole").run()
    with pytest.raises(Stop):
        trainer(tmp_path / "torn").run(crash_at(30))
    about = json.loads((tmp_path / "torn" / "config.json").read_text())
    most = numba.config.NUMBA_NUM_THREADS
    about["train"]["threads"] = most + 2
    (tmp_path / "torn" / "config.json").write_text(json.dumps(about))
    resumed = Trainer.resume(tmp_path / "torn", dataset("classification"))
    assert resumed.notes == [
        f"{tmp_path / 'torn'} was trained on {most + 2} threads; it goes on with {most}, as many as there are CPUs here"
    ]
    resumed.run()
    assert_same_bits(tmp_path / "whole", tmp_path / "torn")
    with pytest.raises(ValueError, match=f"threads={most + 2} must be"):
        Trainer.resume(tmp_path / "torn", dataset("classification"), threads=most + 2)
