"""Two at one file or one run directory: one waits, or is refused by name."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading

import pytest
from test_training import CONFIG, assert_same_bits, dataset, trainer

from sparse_dnm import io
from sparse_dnm.io import CheckpointError, append_line, write_atomic
from sparse_dnm.train.lock import LOCK, alone
from sparse_dnm.train.trainer import Trainer, TrainingError

needs_locks = pytest.mark.skipif(io.fcntl is None, reason="no locks on files here")


def held_by_another(code, *arguments):
    """A process that says when it holds something, and holds it until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint('held', flush=True)\nimport time\ntime.sleep(600)", *arguments],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


HOLD = """
import sys, os, fcntl, json, socket
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, sys.argv[2].encode())
"""


@needs_locks
@pytest.mark.parametrize(("host", "words"), [(socket.gethostname(), ""), ("elsewhere", " on 'elsewhere'")])
def test_a_second_process_in_a_run_directory_is_refused_by_name(tmp_path, host, words):
    (tmp_path / "run").mkdir()
    about = json.dumps({"process": 4711, "host": host})
    other = held_by_another(HOLD, str(tmp_path / "run" / LOCK), about)
    try:
        with pytest.raises(TrainingError, match=f"run is being trained by process 4711{words}: wait until"):
            trainer(tmp_path / "run").run()
        assert os.listdir(tmp_path / "run") == [LOCK]
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    trainer(tmp_path / "run").run()  # its lock ended with it
    assert LOCK not in os.listdir(tmp_path / "run")


@needs_locks
def test_a_second_trainer_of_this_process_is_refused(tmp_path):
    seen = []

    def meanwhile(record):
        if record["step"] == 20:
            with pytest.raises(TrainingError, match="another trainer of this process") as error:
                Trainer.resume(tmp_path / "run", dataset("classification")).run()
            seen.append(str(error.value))

    trainer(tmp_path / "run").run(meanwhile)
    assert len(seen) == 1
    assert Trainer.resume(tmp_path / "run", dataset("classification")).finished


@needs_locks
def test_who_only_says_something_else_in_the_lock_is_another_process(tmp_path):
    with alone(tmp_path / "run"):
        (tmp_path / "run" / LOCK).write_text("not JSON")
        with pytest.raises(TrainingError, match="is being trained by another process"), alone(tmp_path / "run"):
            pass
    assert os.listdir(tmp_path / "run") == []


def test_a_trainer_that_was_read_before_another_one_went_on_does_not_go_back(tmp_path):
    trainer(tmp_path / "run", CONFIG).run()
    early = Trainer.resume(tmp_path / "run", dataset("classification"), steps=80)
    late = Trainer.resume(tmp_path / "run", dataset("classification"), steps=70)
    late.run()
    with pytest.raises(CheckpointError, match="has been trained on, from step 60 to 70"):
        early.run()


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("do not touch")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".file.tmp").symlink_to(mine)
    write_atomic(tmp_path / "run" / "file", b"new")
    assert mine.read_text() == "do not touch"
    assert (tmp_path / "run" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "run") == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    for _ in range(2):
        write_atomic(path, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
def test_a_new_file_has_the_mode_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"new")
        append_line(tmp_path / "lines", {"step": 1})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


def test_many_writers_of_one_file_leave_what_one_of_them_has_written(tmp_path):
    path, errors = tmp_path / "file", []

    def write(letter):
        try:
            for _ in range(30):
                write_atomic(path, letter.encode() * 20_000)
        except OSError as error:  # pragma: no cover
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    content = path.read_bytes()
    assert content in [letter.encode() * 20_000 for letter in "abcd"]
    assert os.listdir(tmp_path) == ["file"]


@needs_locks
def test_a_writer_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "PATIENCE", 0.05)
    other = held_by_another(HOLD, str(tmp_path / ".file.tmp"), "")
    try:
        with pytest.raises(OSError, match=r"cannot write .*file: another process is writing it"):
            write_atomic(tmp_path / "file", b"new")
    finally:
        other.kill()
        other.wait()
    write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_that_ended_while_its_directory_was_made_is_begun_again(tmp_path):
    trainer(tmp_path / "whole", CONFIG).run()
    first = trainer(tmp_path / "run", CONFIG)
    (tmp_path / "run").mkdir()
    first._save()
    with pytest.raises(CheckpointError, match="nothing was trained; begin it again, in the same directory"):
        Trainer.resume(tmp_path / "run", dataset("classification"))
    trainer(tmp_path / "run", CONFIG).run()
    assert_same_bits(tmp_path / "whole", tmp_path / "run")
