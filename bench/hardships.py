"""Trainings that are killed, stopped, starved of memory, of room on the disk or of a steady clock.

Each is then resumed, and must end in the bits of one that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench import processes
from bench.trials import Problem, data_file, same_run
from sparse_dnm.train import checkpoint as files

SETTINGS = (
    *("--speed", "proxy", "--threads", "1", "--executor", "columns", "--batch-size", "16", "--snapshot-every", "20"),
    *("--set", "checkpoint_every=30", "--set", "log_every=10", "--set", "flow=1e-4", "--set", "kappa=0.3"),
    *("--set", "scan_every=17"),
)
START, LENGTH = 0.2, 2.0  # s: when a kill comes, about: before the first step, or while it trains


class Training:
    """A training of so many steps, undisturbed in ``folder``/whole; its structure changes all the time."""

    def __init__(self, folder: Path, steps: int = 1500):
        self.folder, self.said = folder, folder / "said.txt"
        self._begin = ["train", str(data_file(folder)), "--steps", str(steps), *SETTINGS]
        self.whole = folder / "whole"
        self.must_end(self.whole)

    def command(self, out: Path) -> list[str]:
        """The command that begins the run, or goes on with it."""
        if (out / files.CONFIG).exists():
            return ["train", "--resume", str(out), "--threads", "1"]
        return [*self._begin, "--out", str(out)]

    def start(self, out: Path, before: Callable[[], None] = lambda: None) -> int:
        """The process of that command."""
        return processes.start(self.command(out), self.said, before)

    def must_end(self, out: Path) -> None:
        """Run it to its end."""
        code = processes.end_of(self.start(out))
        if code:
            raise Problem(f"exit code {code}: {self.last_line()}")

    def last_line(self) -> str:
        """What the command said last."""
        return (self.said.read_text(errors="replace").strip().splitlines() or [""])[-1]

    def check(self, out: Path) -> None:
        """The run is that of an undisturbed training; it is removed."""
        if not same_run(self.whole, out):
            raise Problem(f"{out} is not the run in {self.whole}")
        shutil.rmtree(out)


def kills(training: Training, wanted: int, rng: random.Random) -> int:
    """Kill it at random moments and resume it, ``wanted`` times, in as many runs as that takes; how many runs."""
    done, runs, out = 0, 0, training.folder / "killed"
    while done < wanted:
        seconds = rng.uniform(0, START) if rng.random() < 0.2 else rng.uniform(START, LENGTH)
        code = processes.killed_after(training.start(out), seconds)
        if code not in (0, -signal.SIGKILL):
            raise Problem(f"after {done} kills, exit code {code}: {training.last_line()}")
        done += code != 0
        if code == 0:
            training.check(out)
            runs += 1
    training.must_end(out)
    training.check(out)
    return runs + 1


def stops(training: Training, runs: int, rng: random.Random) -> int:
    """Stop it and let it go on at random moments, in so many runs; how often."""
    times, out = 0, training.folder / "stopped"
    for _ in range(runs):
        code, stopped = processes.stopped_at_times(training.start(out), rng, 0.05)
        if code:
            raise Problem(f"stopped {stopped} times, exit code {code}: {training.last_line()}")
        training.check(out)
        times += stopped
    return times


def clocks(training: Training, runs: int) -> None:
    """Let its clocks jump, in so many runs."""
    out = training.folder / "jumped"
    for seed in range(runs):
        code = processes.end_of(training.start(out, lambda seed=seed: processes.jumping_clocks(seed)))
        if code:
            raise Problem(f"with jumping clocks, exit code {code}: {training.last_line()}")
        training.check(out)


def starvation(training: Training, times: int, rng: random.Random) -> Counter[str]:
    """Take its memory away at random moments and resume it; how it ended, each time."""
    ends: Counter[str] = Counter()
    for _ in range(times):
        out, after, more = (
            training.folder / "starved",
            rng.uniform(0.01, LENGTH / 3),
            rng.choice((0, 0, 1 << 20, 4 << 20)),
        )

        def before(after: float = after, more: int = more) -> None:
            signal.signal(signal.SIGALRM, lambda *_: processes.with_memory(more))
            signal.setitimer(signal.ITIMER_REAL, after)

        code = processes.end_of(training.start(out, before))
        ends[_how(training, code)] += 1
        training.must_end(out)
        training.check(out)
    return ends


def _how(training: Training, code: int) -> str:
    if code == 0:
        return "with enough"
    if code == 2 and "not enough memory" in training.last_line():
        return "with a line that says so"
    return "by an abort of a library" if code < 0 else "with an error of a library"


def small_files(training: Training, sizes: list[int]) -> int:
    """Let it write only files of so many bytes, a limit of the system; how often it ended by that."""
    ended = 0
    for size in sizes:
        out = training.folder / "small"
        code = processes.end_of(training.start(out, lambda size=size: processes.with_files_of(size)))
        if code not in (0, 2) or (code == 2 and "File too large" not in training.last_line()):
            raise Problem(f"with files of {size} bytes, exit code {code}: {training.last_line()}")
        ended += code == 2
        if any(path.name.endswith(".tmp") for path in out.rglob("*")):
            raise Problem(f"with files of {size} bytes, a temporary file is left")
        training.must_end(out)
        training.check(out)
    return ended


def full_disk(training: Training, sizes: list[int]) -> int | None:
    """Train on file systems of so many bytes, and go on when they have room; None where they cannot be made here."""
    place = Path(tempfile.mkdtemp(dir=training.folder))
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False).returncode
    ):
        return None
    ended = 0
    try:
        for size in sizes:
            subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
            code = processes.end_of(training.start(place / "run"))
            if code not in (0, 2) or (code == 2 and "No space left on device" not in training.last_line()):
                raise Problem(f"on a disk of {size} bytes, exit code {code}: {training.last_line()}")
            ended += code == 2
            subprocess.run(["mount", "-o", "remount,size=100m", place], check=True)
            training.must_end(place / "run")
            training.check(place / "run")
    finally:
        subprocess.run(["umount", place], check=False)
    return ended
