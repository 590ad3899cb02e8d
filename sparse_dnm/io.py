"""Files: atomic writes, JSON, and errors that name the file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PAUSE, PATIENCE = 0.02, 10.0  # s between two looks at a file that another process writes, and in all
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems that sync no directory
NO_FOLLOW, BINARY = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_BINARY", 0)  # not on Windows, and only there


SEAL = "sha256"  # name of the digest among JSON values
UNFIT = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RuntimeError)
# what values of other kinds, sizes or names than expected raise where they are used


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


@contextlib.contextmanager
def doing(what: str, path: Path) -> Iterator[None]:
    """Make an OSError name the action and the file: some name no file (full disk), others a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot {what} {path}: {error.strerror}") from error


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` atomically: even after a crash it is either the old file or the new one.

    A new file takes over the mode of the old one.  Where it is written by two at once, one waits for the other.
    """
    with doing("write", path):
        _write_atomic(path, content)


def _write_atomic(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with os.fdopen(_turn_at(temporary), "wb", buffering=0) as file:
        try:
            os.ftruncate(file.fileno(), 0)  # what a process that was killed has left
            _write_all(file.fileno(), content)
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            if fcntl is None:  # Windows moves no open file
                file.close()
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    sync_directory(path.parent)


def _turn_at(temporary: Path) -> int:
    """Open a temporary file that nobody else is writing: its lock, where there are such, ends with its process.

    What cannot be opened there is removed: a symbolic link, which is not followed, or a file that may not be written.
    """
    end, flags = time.monotonic() + PATIENCE, os.O_RDWR | os.O_CREAT | NO_FOLLOW | BINARY
    while True:
        try:
            file = os.open(temporary, flags, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EACCES) or not _removed(temporary):
                raise
            continue
        if not lock(file):
            os.close(file)
            if time.monotonic() > end:
                raise OSError(errno.EAGAIN, "another process is writing it, and does not end")
            time.sleep(PAUSE)
        elif is_at(file, temporary):
            return file
        else:  # its writer has ended meanwhile
            os.close(file)


def _removed(path: Path) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with doing("remove", path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def lock(file: int) -> bool:
    """Lock an open file; False where another process, or another opening in this one, has it.

    Where the file system has no such locks, everybody gets it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def is_at(file: int, path: Path) -> bool:
    """The open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _write_all(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the system can."""
    try:
        directory = os.open(path, os.O_RDONLY)
    except OSError:  # not on Windows, nor without the right to list it
        return
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(directory)


def sync(path: Path) -> None:
    """Make the content of a file durable, if it is there."""
    with doing("write", path), contextlib.suppress(FileNotFoundError):
        file = os.open(path, os.O_RDWR)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, if they are missing, durably."""
    with doing("create the directory", path):
        above = next(folder for folder in (path, *path.parents) if folder.exists())
        path.mkdir(parents=True, exist_ok=True)
        while path != above:
            path = path.parent
            sync_directory(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.  Raises CheckpointError naming the file if it is missing or not a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {path.parent} the directory of a run?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}; a run's file is an object")
    return values


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with a SHA-256 of them among them, for `check_seal`."""
    return {**values, SEAL: _digest(values)}


def check_seal(values: Mapping[str, Any]) -> None:
    """Raise ValueError if the values have a seal and are not those that were sealed."""
    if SEAL in values and values[SEAL] != _digest(values):
        raise ValueError(
            f"its values are not those that were written ({SEAL}); take a copy of the file, or remove {SEAL} from it "
            "if you have changed it yourself"
        )


def _digest(values: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in values.items() if name != SEAL}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line of JSON; after an error the file is as long as before."""
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    with doing("write", path):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY, 0o666)
        try:
            size = os.fstat(file).st_size
            try:
                _write_all(file, line)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
