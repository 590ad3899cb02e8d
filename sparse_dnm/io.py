"""Files: atomic writes, JSON, and errors that name the file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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
    """Replace ``path`` by ``content`` atomically: even after a crash it is either the old file or the new one."""
    with doing("write", path):
        _write_atomic(path, content)


def _write_atomic(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # a directory cannot be opened everywhere (Windows)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.  Raises CheckpointError naming the file if it is missing or not a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {path.parent} the directory of a run?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}; a run's file is an object")
    return values


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    with doing("write", path), open(path, "ab") as file:
        file.write((json.dumps(record, allow_nan=False) + "\n").encode())
