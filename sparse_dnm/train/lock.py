"""One training in a run directory at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sparse_dnm.io import NO_FOLLOW, doing, is_at, lock, make_directory
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.state import TrainingError

LOCK = ".lock"  # in the run directory, while it is trained; says by whom


@contextlib.contextmanager
def alone(out: Path, saved: int | None = None) -> Iterator[None]:
    """Inside ``with``, no other process, and no other trainer of this one, trains in ``out``, which is made if missing.

    saved  step of the checkpoint in ``out``, as it was read; None: there must be no run yet
    The lock is one on a file, which ends with its process, whatever ends that.  Where the file system has no such
    locks, nobody is refused.  Raises TrainingError naming the process that trains, and what `check_free` and
    `check_unchanged` raise.
    """
    if saved is None:
        with doing("create the directory", out):
            files.check_free(out)
    make_directory(out)
    file = _taken(out, out / LOCK)
    try:
        if saved is None:
            files.check_free(out)  # another process may have been faster
        else:
            files.check_unchanged(out, saved)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(out / LOCK)
        os.close(file)


def _taken(out: Path, path: Path) -> int:
    """The open file of the lock, with the name of this process in it."""
    while True:
        with doing("write", path):
            file = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        try:
            if not lock(file):
                raise TrainingError(
                    f"{out} is being trained by {_holder(file)}: wait until that ends, or stop it; a run directory "
                    "holds one training at a time"
                )
            if is_at(file, path):
                with doing("write", path):
                    os.ftruncate(file, 0)
                    os.pwrite(file, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the training that had it has ended meanwhile


def _holder(file: int) -> str:
    """The process that holds the lock, in words."""
    try:
        found = json.loads(os.pread(file, 1000, 0))
        process, host = int(found["process"]), str(found["host"])
    except (OSError, ValueError, TypeError, KeyError):  # it is just about to write it
        return "another process"
    here = host == socket.gethostname()
    if here and process == os.getpid():
        return "another trainer of this process"
    return f"process {process}" + ("" if here else f" on {host!r}")
