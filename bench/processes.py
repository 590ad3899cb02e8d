"""Commands in forked processes, to be killed, stopped, starved of memory or given another clock.

A fork has Python, torch and the kernels already, so that what is hit is the training and not its imports.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from sparse_dnm.cli import main


def start(arguments: Sequence[str], said: Path, before: Callable[[], None] = lambda: None) -> int:
    """The number of a process that runs a command of sparse-dnm; its errors go to the file ``said``.

    before  is called in it first
    """
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False, buffering=1) for stream in (1, 2))  # noqa: SIM115
        faulthandler.disable()  # pytest's
        sys.argv = ["sparse-dnm", *arguments]
        before()
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end_of(process: int) -> int:
    """Wait for it; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_after(process: int, seconds: float) -> int:
    """Kill it after so long, unless it ends before."""
    late = time.monotonic() + seconds
    while time.monotonic() < late:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return end_of(process)


def stopped_at_times(process: int, rng: random.Random, longest: float) -> tuple[int, int]:
    """Stop and continue it again and again until it ends; its exit code, and how often it was stopped."""
    times = 0
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), times
        os.kill(process, signal.SIGSTOP)
        time.sleep(rng.uniform(0, longest))
        os.kill(process, signal.SIGCONT)
        times += 1
        time.sleep(rng.uniform(0, 4 * longest))


def jumping_clocks(seed: int) -> None:
    """Make the clocks of this process jump: that of the day both ways, by days; the others forwards, by up to a minute.

    What POSIX promises is kept: the others never go back.
    """
    rng, ahead = random.Random(seed), [0.0]
    for name in ("perf_counter", "monotonic", "process_time", "thread_time"):
        _replace(name, lambda real: real() + ahead[0])

    def day(real: Callable[[], float]) -> float:
        return real() + rng.choice((0, 0, 86_400, -86_400, -2_000_000_000))

    _replace("time", day)

    def jump(*_: object) -> None:
        ahead[0] += rng.choice((0.0, 0.001, 1.0, 60.0))

    signal.signal(signal.SIGALRM, jump)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)


def _replace(name: str, changed: Callable[[Callable[[], float]], float]) -> None:
    real = getattr(time, name)
    setattr(time, name, lambda: changed(real))
    if hasattr(time, f"{name}_ns"):
        setattr(time, f"{name}_ns", lambda: int(1e9 * changed(real)))


def with_memory(more: int) -> None:
    """Let this process have so many bytes of address space more than it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))


def with_files_of(size: int) -> None:
    """Let this process write files of so many bytes at most: a real error of the system."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))
