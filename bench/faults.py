"""A disk that fails, a machine that loses its power, processes that are killed: for the tests and `bench.reliability`.

`Disk` stands in for `os` in `sparse_dnm.io`, through which all files of the product are written: it counts the
operations below a folder, keeps them, and makes the n-th fail, or all from the n-th on as when a process is killed.
`power_cuts` makes the folders that a crash may leave behind from what `Disk` has kept.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_dnm import io

FULL = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
KINDS = ("create", "write", "fsync", "rename", "sync folder")
TORN = 40  # torn states of the writes that are not synced
MOST_PENDING = 6  # operations on names, not yet durable, of which every combination is tried


class Killed(BaseException):
    """What a process that is killed does not live to see."""


@dataclass(frozen=True)
class Operation:
    """One of the disk: ``inode`` is a number for a file, however it is called."""

    kind: str  # of KINDS, or truncate, remove, known (a file that was there is opened)
    name: str  # relative to the folder
    inode: int = -1
    target: str = ""  # of a rename
    offset: int = 0
    data: bytes = b""


@dataclass
class Disk:
    """``os`` with a fault in what happens below ``folder``.

    fail_at     number of the operation that fails, from 0; None: none does
    error       errno of the failure; None: the process is killed there, and does nothing afterwards
    for_good    the later operations of its kind fail as well, as on a full disk
    kinds       that are counted
    most        bytes that one call writes; the rest is for the next call
    """

    folder: Path
    fail_at: int | None = None
    error: int | None = errno.ENOSPC
    for_good: bool = False
    kinds: Sequence[str] = KINDS
    most: int = 1 << 30
    done: list[Operation] = field(default_factory=list)
    count: int = 0
    failed: list[str] = field(default_factory=list)  # what was refused
    killed: bool = False
    _open: dict[int, tuple[str, int, bool]] = field(default_factory=dict)  # name, inode, is a folder; by descriptor
    _inodes: dict[str, int] = field(default_factory=dict)  # by name
    _new: Iterator[int] = field(default_factory=itertools.count)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _name(self, path: Any) -> str | None:
        """The name below the folder; None for what lies elsewhere."""
        place = os.path.abspath(os.fspath(path))
        root = os.path.abspath(self.folder)
        return os.path.relpath(place, root) if place == root or place.startswith(root + os.sep) else None

    def _may(self, kind: str, name: str) -> None:
        """Count an operation, and fail if its turn has come."""
        if self.killed:
            raise Killed
        if kind not in self.kinds:
            return
        number, self.count = self.count, self.count + 1
        if self.fail_at is None or number < self.fail_at or (number > self.fail_at and not self.for_good):
            return
        if self.error is None:
            self.killed = True
            raise Killed
        if number == self.fail_at or kind in ("write", "create"):
            self.failed.append(f"{kind} {name}")
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        name = self._name(path)
        if name is None:
            return os.open(path, flags, mode)
        if self.killed:
            raise Killed
        new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        if new:
            self._may("create", name)
        file = os.open(path, flags, mode)
        folder = os.path.isdir(path)
        if not folder and (new or name not in self._inodes):
            self._inodes[name] = next(self._new)
            data = b"" if new else Path(path).read_bytes()
            self.done.append(Operation("create" if new else "known", name, self._inodes[name], data=data))
        self._open[file] = name, self._inodes.get(name, -1), folder
        return file

    def write(self, file: int, data: Any) -> int:
        known = self._open.get(file)
        if known is None:
            return os.write(file, data)
        self._may("write", known[0])
        offset = os.fstat(file).st_size
        part = bytes(data[: self.most])
        written = os.write(file, part)
        self.done.append(Operation("write", known[0], known[1], offset=offset, data=part[:written]))
        return written

    def ftruncate(self, file: int, size: int) -> None:
        known = self._open.get(file)
        if known is not None and self.killed:
            raise Killed
        os.ftruncate(file, size)
        if known is not None:
            self.done.append(Operation("truncate", known[0], known[1], offset=size))

    def fsync(self, file: int) -> None:
        known = self._open.get(file)
        if known is None:
            os.fsync(file)
            return
        kind = "sync folder" if known[2] else "fsync"
        self._may(kind, known[0])
        self.done.append(Operation(kind, known[0], known[1]))

    def replace(self, source: Any, target: Any) -> None:
        name, to = self._name(source), self._name(target)
        if name is None or to is None:
            os.replace(source, target)
            return
        self._may("rename", to)
        os.replace(source, target)
        inode = self._inodes.pop(name, -1)
        self._inodes[to] = inode
        self.done.append(Operation("rename", name, inode, target=to))

    def unlink(self, path: Any) -> None:
        name = self._name(path)
        if name is not None and self.killed:
            raise Killed
        os.unlink(path)
        if name is not None:
            self.done.append(Operation("remove", name, self._inodes.pop(name, -1)))

    def close(self, file: int) -> None:
        self._open.pop(file, None)
        os.close(file)


@contextlib.contextmanager
def writing_to(disk: Disk) -> Iterator[Disk]:
    """Inside ``with``, the product writes to ``disk``."""
    before, io.os = io.os, disk  # type: ignore[assignment]
    try:
        yield disk
    finally:
        io.os = before


# -- power cuts ---------------------------------------------------------------------------------------------------


def power_cuts(
    done: Sequence[Operation], before: dict[str, bytes], rng: random.Random, most: int = 1000
) -> Iterator[dict[str, bytes]]:
    """The folders, as contents by name, that a power cut after the operations ``done`` may leave of ``before``.

    What was synced is there.  Of the rest, names (made, moved, removed) may have reached the disk in any combination,
    whatever their order was, and of every write nothing, a part, all, or its length alone, as zeros.
    most  folders at most, none twice; where there may be more, combinations are drawn at random
    """
    names = [k for k, one in enumerate(done) if one.kind in ("create", "rename", "remove")]
    safe = {k for k in names if any(_syncs(late, done[k]) for late in done[k + 1 :])}
    pending = [k for k in names if k not in safe]
    if len(pending) <= MOST_PENDING:
        chosen = [set(some) for n in range(len(pending) + 1) for some in itertools.combinations(pending, n)]
    else:
        chosen = [set(), set(pending), *({k for k in pending if rng.random() < 0.5} for _ in range(most))]
    contents, seen = [_contents(done, part, rng) for part in (*PARTS, *[_torn] * TORN)], set()
    states = list(itertools.product(chosen, contents))
    rng.shuffle(states)
    for some, held in states:
        folder = _folder(done, before, safe | some, held)
        found = hash(tuple(sorted(folder.items())))
        if found not in seen and len(seen) < most:
            seen.add(found)
            yield folder


def _syncs(late: Operation, early: Operation) -> bool:
    """It is a sync of the folder in which the name lies."""
    return late.kind == "sync folder" and late.name == (os.path.dirname(early.target or early.name) or ".")


PARTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (  # of a write that reach the disk
    lambda data, rng: b"",
    lambda data, rng: data,
    lambda data, rng: bytes(len(data)),
    lambda data, rng: data[: len(data) // 2],
    lambda data, rng: data[:-1],
    lambda data, rng: bytes(len(data) // 2) + data[len(data) // 2 :],
)


def _torn(data: bytes, rng: random.Random) -> bytes:
    """Some blocks of a write, the others as zeros, up to some length."""
    blocks = [data[k : k + 512] if rng.random() < 0.7 else bytes(512) for k in range(0, len(data), 512)]
    return b"".join(blocks)[: rng.randrange(1 + len(data))]


def _contents(
    done: Sequence[Operation], part: Callable[[bytes, random.Random], bytes], rng: random.Random
) -> dict[int, bytes]:
    """What the files hold, by inode, where only a ``part`` of what was not synced has reached the disk."""
    held: dict[int, bytes] = {}
    for k, one in enumerate(done):
        old = held.get(one.inode, b"")
        if one.kind in ("create", "known"):
            held[one.inode] = one.data
        elif one.kind == "truncate":
            held[one.inode] = old[: one.offset].ljust(one.offset, b"\0")
        elif one.kind == "write":
            synced = any(late.kind == "fsync" and late.inode == one.inode for late in done[k + 1 :])
            data = one.data if synced else part(one.data, rng)
            held[one.inode] = old[: one.offset].ljust(one.offset, b"\0") + data if data else old
    return held


def _folder(
    done: Sequence[Operation], before: dict[str, bytes], kept: set[int], contents: dict[int, bytes]
) -> dict[str, bytes]:
    """The folder in which the operations ``kept`` on names have reached the disk."""
    names: dict[str, bytes | int] = dict(before)
    for k, one in enumerate(done):
        if one.kind == "known" and isinstance(names.get(one.name), bytes):
            names[one.name] = one.inode
        elif k in kept:
            names.pop(one.name, None)
            if one.kind != "remove":
                names[one.target or one.name] = one.inode
    return {name: contents[held] if isinstance(held, int) else held for name, held in names.items()}


def lay_out(contents: dict[str, bytes], folder: Path) -> Path:
    """Write a folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def contents_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
