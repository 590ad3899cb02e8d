"""Programs that compete with a measured one for the machine, and a quota of processor time.

A competitor is a real process: `python -m bench.competitors KIND SHARE`.  It computes for 10 to 100 ms, then sleeps so
long that it computes for SHARE of the time, and ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("arithmetic", "memory")
PHASE_S = (0.01, 0.1)  # of computing
PERIOD_S, QUOTA = 0.1, 0.5  # of a quota
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Condition:
    """What runs beside a measured program."""

    name: str
    share: float = 0.0  # of the time that the competitor computes
    kind: str = "arithmetic"
    core: str = "other"  # than the measured program's, or "same"
    quota: bool = False  # the measured program has QUOTA of a processor

    def __str__(self) -> str:
        return self.name


IDLE = Condition("idle")
BUSY = tuple(
    Condition(f"{how} {kind} {core} core".replace(" ", "-"), share, kind, core)
    for how, share in (("half", 0.5), ("always", 1.0))
    for kind in KINDS
    for core in ("same", "other")
)
CONDITIONS = {c.name: c for c in (IDLE, *BUSY, Condition("quota", quota=True))}


def cores(core: str) -> tuple[set[int], set[int]] | None:
    """Cores of the measured program and of the competitor; None if processes cannot be bound, or there is one core."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    known = sorted(os.sched_getaffinity(0))
    if len(known) < 2:
        return None
    return {known[0]}, {known[0] if core == "same" else known[1]}


def describe() -> list[str]:
    """How programs are bound and limited here, as lines."""
    bound = cores("other")
    if bound is None:
        where = "Processes cannot be bound to cores here, or there is one core: same and other core are the same."
    else:
        (own,), (other,) = bound
        where = f"The product is bound to core {own}, a competitor to that (same) or to core {other} (other)."
    how = "cpu.max of a cgroup" if _own_cgroup() is not None else "SIGSTOP and SIGCONT: cpu.max cannot be written here"
    return [where, f"Quota: {QUOTA:.0%} of {1e3 * PERIOD_S:.0f} ms by {how}."]


@contextlib.contextmanager
def competing(condition: Condition) -> Iterator[None]:
    """The competitor of a condition runs while the block does."""
    if not condition.share:
        yield
        return
    command = [sys.executable, "-m", "bench.competitors", condition.kind, str(condition.share)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            bound = cores(condition.core)
            if bound is not None:
                os.sched_setaffinity(process.pid, bound[1])
            assert process.stdout is not None
            if not process.stdout.readline():  # it computes now
                raise RuntimeError(f"the competitor {condition} has ended with exit status {process.wait()}")
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def limited(condition: Condition, process: subprocess.Popen[str]) -> Iterator[None]:
    """Bind a measured program to its core, and give it its quota, while the block runs."""
    bound = cores(condition.core)
    if bound is not None:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, bound[0])
    if not condition.quota:
        yield
        return
    group = _own_cgroup()
    if group is None:
        ended = threading.Event()
        thread = threading.Thread(target=_stop_and_go, args=(process.pid, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        return
    made = group / f"sparse-dnm-noise-{process.pid}"
    made.mkdir()
    try:
        (made / "cpu.max").write_text(f"{int(1e6 * QUOTA * PERIOD_S)} {int(1e6 * PERIOD_S)}")
        (made / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        process.wait()
        with contextlib.suppress(OSError):  # a process of it still ends
            made.rmdir()


def _own_cgroup() -> Path | None:
    """The cgroup (version 2) of this process if groups with a quota can be made in it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        name = next(line for line in lines if line.startswith("0::")).removeprefix("0::").lstrip("/")
        group = CGROUPS / name
        if "cpu" in (group / "cgroup.subtree_control").read_text().split() and os.access(group, os.W_OK):
            return group
    return None


def _family(pid: int) -> list[int]:
    """A process and its descendants, where the system names them."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _stop_and_go(pid: int, ended: threading.Event) -> None:
    """Stop a program and its children for a part of every period."""
    while not ended.is_set():
        family = _family(pid)
        for number, seconds in ((signal.SIGSTOP, (1 - QUOTA) * PERIOD_S), (signal.SIGCONT, QUOTA * PERIOD_S)):
            for one in family:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(one, number)
            ended.wait(seconds if number == signal.SIGCONT else 0)
            if number == signal.SIGSTOP:
                time.sleep(seconds)  # whatever happens, it goes on afterwards


def compute(kind: str, share: float, parent: int) -> None:
    """Compute for ``share`` of the time until the ``parent`` process has ended."""
    import numpy as np

    if kind not in KINDS:
        raise SystemExit(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    small = np.linspace(0.0, 1.0, 2000)  # in the first cache
    large = np.zeros(1 << 25 if kind == "memory" else 1, np.uint8)  # in none
    rng, place = random.Random(0), 0
    print("computing", flush=True)
    while os.getppid() == parent:
        seconds = rng.uniform(*PHASE_S)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if kind == "memory":  # a thirty-second of it at a time
                place = (place + (1 << 20)) % (1 << 25)
                large[place : place + (1 << 20)] += 1
            else:
                np.sin(small)
        time.sleep(seconds * (1 - share) / share)


if __name__ == "__main__":
    compute(sys.argv[1], float(sys.argv[2]), os.getppid())
