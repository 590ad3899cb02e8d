"""How many threads of the CPU the kernels use: Numba's, which start when a kernel with parallel loops is first needed.

If Numba shares OpenMP with torch, starting Numba's threads resets the number of threads that the user gave torch; this
module restores it.  Numba's layer ``workqueue`` kills a process when two Python threads use it at once: with that layer
kernels run one at a time.

Threads do not survive a fork, and GNU's OpenMP waits for its own forever, whether Numba or torch had started them.  So
a forked process runs the kernels, and torch from then on, on one thread, whatever number is asked for, with the same
bits.  If Numba's threads ran before the fork, the kernels are compiled again, without parallel loops (once: they are
cached on disk like the others).  Start a process that needs threads by ``spawn``.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from pathlib import Path

import numba
import torch
from numba.np.ufunc import parallel

from sparse_dnm.kernels import jit

_lock = threading.Lock()
_ready = False  # this process has its threads
_forked = False
_get, _set = numba.get_num_threads, numba.set_num_threads


def start() -> None:
    """Start the threads of this process, if they have not been started."""
    global _ready
    if _ready:
        return
    with _lock:
        before = 1 if _forked else torch.get_num_threads()
        if jit.mode() != jit.SEQUENTIAL and not _ready:
            _start_numba()
        torch.set_num_threads(before)
        _find_setters()
        _ready = True


def _start_numba() -> None:
    if _forked:
        numba.set_num_threads(1)
    else:
        numba.get_num_threads()
    if numba.threading_layer() == "workqueue":
        jit.set_mode(jit.ONE_BY_ONE)


def _find_setters() -> None:
    """Numba's functions take two locks at every call, and with their checks a few microseconds; what they end in is
    called directly where it has the name that it has today."""
    global _get, _set
    _get = getattr(parallel, "_get_num_threads", numba.get_num_threads)
    _set = getattr(parallel, "_set_num_threads", numba.set_num_threads)


def _after_fork() -> None:
    """Runs in a forked process, at its start."""
    global _ready, _forked, _lock
    _ready, _forked, _lock = False, True, threading.Lock()
    try:
        numba.threading_layer()
    except ValueError:  # Numba's threads had not been started
        return
    jit.set_mode(jit.SEQUENTIAL)
    start()


jit.before_first_call.append(start)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def quota(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """How many CPUs' time the control groups of this process allow it, as a container's limit does; else infinity.

    cpu.max of version 2 of Linux's control groups, cpu.cfs_quota_us of version 1, of the group and those above it.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return math.inf
    found = math.inf
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            found = min(found, _quota_of(folder))
            if folder == top:
                break
    return found


def _quota_of(folder: Path) -> float:
    """CPUs that one group allows."""
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError):
        return math.inf


@functools.cache
def _all() -> int:
    """Threads that are of use: those that Numba starts, which keeps to the CPUs of the process's affinity, and no more
    than the quota pays for."""
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return max(1, min(most, math.ceil(min(quota(), most))))


def threads_here(threads: int) -> int:
    """``threads``, or fewer where this process may not use so many: those of a run from a larger machine."""
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return min(threads, most)


def check_threads(threads: int) -> int:
    """``threads`` if this process may use so many, for 0 as many as are of use; 1 in a forked process.

    Raises ValueError otherwise.
    """
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    if not 0 <= threads <= most:
        raise ValueError(
            f"threads={threads} must be 0 (chosen by measurement) or 1 .. {most}; NUMBA_NUM_THREADS sets the limit"
        )
    return 1 if _forked else threads or _all()


class use_threads:
    """Inside ``with``, kernels run on ``threads`` threads."""

    __slots__ = "outside", "threads"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.outside = _exchange(self.threads)

    def __exit__(self, *_: object) -> None:
        if self.outside != self.threads:
            _exchange(self.outside)


def _exchange(threads: int) -> int:
    """Set the number of threads of this thread's kernels; returns that before."""
    if not _ready:
        start()
    if not _forked:
        before = _get()
        if before != threads:
            _set(threads)
        return before
    if jit.mode() != jit.SEQUENTIAL:
        numba.set_num_threads(1)
    return 1
