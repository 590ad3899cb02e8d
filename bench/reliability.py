"""What happens when something goes wrong: faults tried and survived, generated inputs, memory of a long training.

``python -m bench.reliability [--minutes M] [--cases N] [--kills K] [--only PART ...]`` prints a table in Markdown.  It
ends with an error at the first fault that is not survived.  --minutes 0 and --cases 0 leave those parts out; PART is
one of power, disk, processes, cases, long.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import contextlib
import errno
import math
import random
import resource
import signal
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench import cases, hardships, processes
from bench.faults import Disk, Killed, power_cuts, writing_to
from bench.trials import FULL, Problem, Trial, check_whole, fail_everywhere, invoke, lay_out, must, quick, trials
from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.data import from_arrays
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.checkpoint import Checkpoint
from sparse_dnm.train.trainer import Interrupted, StopSignals, Trainer

CHUNK = 10_000  # cases that one search of hypothesis makes
MB = 1 << 20
PARTS = ("power", "disk", "processes", "cases", "long")


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    tried: str
    found: str


# -- the disk -----------------------------------------------------------------------------------------------------


def power(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Every prefix and every legal order of the operations of a save, and of a training."""
    yield Row(
        "power cut in a save: every prefix of its operations, every legal order, torn writes",
        f"{save_is_cut(folder / 'save'):,} states of the disk",
        "the old checkpoint or the new one",
    )
    (trial,) = trials(folder, ["train"])
    done = recorded(trial, folder / "out")
    rng, states = random.Random(0), 0
    for n in range(len(done) + 1):
        for found in power_cuts(done[:n], {}, rng, most=options.states):
            lay_out(found, folder / "out")
            must(trial.again(folder / "out"))
            check_whole(f"power cut after operation {n}", trial, folder / "out")
            states += 1
    yield Row(
        f"power cut in a training of {len(done)} operations: every prefix, {options.states} states of each at most",
        f"{states:,} states of the disk",
        "begun again or resumed to the same bits",
    )
    n = killed_everywhere(trial, folder / "out")
    yield Row("kill at every operation of a training", f"{n} kills", "begun again or resumed to the same bits")


def save_is_cut(folder: Path) -> int:
    """Cut the power in a save of a checkpoint; how many states of the disk there may be afterwards."""
    lay_out({}, folder)
    path, states = folder / files.CHECKPOINT, 0

    def checkpoint(step: int) -> Checkpoint:
        return Checkpoint({"model/w": torch.full((2000,), float(step))}, {"step": step})

    files.save(path, checkpoint(1))
    before = {path.name: path.read_bytes()}
    with writing_to(Disk(folder)) as disk:
        files.save(path, checkpoint(2))
    for n in range(len(disk.done) + 1):
        for found in power_cuts(disk.done[:n], before, random.Random(n)):
            lay_out(found, folder)
            legal = (1, 2) if n < len(disk.done) else (2,)
            loaded = files.load(path)
            if loaded.header["step"] not in legal or set(loaded.tensors["model/w"].tolist()) != {loaded.header["step"]}:
                raise Problem(f"after a power cut at operation {n}: {loaded}")
            states += 1
    return states


def recorded(trial: Trial, out: Path) -> list:
    """The operations of the disk in a command."""
    lay_out(trial.before, out)
    with writing_to(Disk(out)) as disk:
        must(trial.arguments(out))
    return disk.done


def killed_everywhere(trial: Trial, out: Path) -> int:
    """Kill a training at each of its operations, and go on; how many there are."""
    n = 0
    while True:
        lay_out(trial.before, out)
        with writing_to(Disk(out, fail_at=n, error=None)) as disk, contextlib.suppress(Killed):
            invoke(trial.arguments(out))
        if not disk.killed:
            return n
        must(trial.again(out))
        check_whole(f"killed at operation {n}", trial, out)
        n += 1


def disk(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """The n-th write, sync, move or new file fails, for every n, in every command, once or for good."""
    names = ", ".join(errno.errorcode[error] for error in FULL)
    for trial in trials(folder):
        every = options.every if trial.name == "compare" else 1
        tried = 0
        for error in FULL:
            for for_good in (False, True):
                first = tried % every
                tried += fail_everywhere(trial, folder / "out", error, for_good, every, first)
        spaced = "" if every == 1 else f", each {every}th"
        yield Row(
            f"`{trial.name}`: the n-th operation of the disk fails ({names}; once, or for good), for every n{spaced}",
            f"{tried:,} faults",
            "one line that names the file and the fault; no file left, modes kept, the same result afterwards",
        )


# -- processes ----------------------------------------------------------------------------------------------------


def ends(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Kills, stops, clocks, memory, room."""
    training, rng = hardships.Training(folder), random.Random(0)
    runs = hardships.kills(training, options.kills, rng)
    yield Row("SIGKILL at random moments", f"{options.kills} kills in {runs} runs", "resumed to the same bits")
    stopped = hardships.stops(training, 5, rng)
    yield Row("SIGSTOP and SIGCONT at random moments", f"{stopped} stops in 5 runs", "the same bits")
    hardships.clocks(training, 5)
    yield Row("clocks that jump, by days and by minutes", "5 runs", "the same bits")
    found = hardships.starvation(training, 20, rng)
    said = "; ".join(f"{times} ended {how}" for how, times in sorted(found.items()))
    yield Row("no more memory (RLIMIT_AS) from a random moment on", "20 runs", f"{said}; resumed to the same bits")
    sizes = [500, 2_000, 5_000, 10_000, 20_000, 30_000, 40_000, 50_000, 70_000]
    ended = hardships.small_files(training, sizes)
    yield Row(
        "files of a limited size (RLIMIT_FSIZE)", f"{len(sizes)} limits, {ended} reached", "resumed to the same bits"
    )
    sizes = [4_096, 20_000, 40_000, 60_000, 100_000, 150_000, 200_000, 300_000, 400_000]
    room = hardships.full_disk(training, sizes)
    if room is None:
        yield Row("a full file system", "none", "skipped: none can be mounted here")
    else:
        yield Row("a full file system (tmpfs)", f"{len(sizes)} sizes, {room} reached", "resumed to the same bits")


# -- inputs -------------------------------------------------------------------------------------------------------


def inputs(_: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Generated inputs of every kind."""
    for name in options.kinds:
        tried, seed, begun = 0, 0, time.monotonic()
        while tried < options.cases:
            tried += cases.run(name, min(CHUNK, options.cases - tried), seed)
            seed += 1
        spent = 1e3 * (time.monotonic() - begun) / max(tried, 1)
        yield Row(f"generated {name}", f"{tried:,} cases, {spent:.1f} ms each", "read as they are, or refused in words")


# -- a long training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Long:
    """A training whose structure changes all the time: memory (bytes) and open files after a tenth and at the end."""

    steps: int
    structures: int  # numbers of edges that differ from those before, in its lines
    memory: tuple[int, int]
    files: tuple[int, int]
    peak: int
    per_million: float  # bytes by which memory grows in a million steps, a line through the last nine tenths


def long_training(folder: Path, seconds: float, steps: float = math.inf) -> Long:
    """Train for so long, with searches for edges, growth and pruning, checkpoints and lines, or for so many steps."""
    x = np.random.default_rng(0).standard_normal((2000, 12)).astype(np.float32)
    found = from_arrays(x, x[:, :3].argmax(1))
    config = TrainConfig(
        steps=10**9, schedule="constant", speed="proxy", proxy_coefficient=0.3, kappa=0.3, scan_every=40, scan_edges=50,
        batch_size=16, log_every=100, checkpoint_every=1000, snapshot_every=10**9, threads=1, executor="columns",
    )  # fmt: skip
    model = DynamicManifold(ManifoldConfig.for_data(12, 3), torch.Generator().manual_seed(0), threads=1)
    trainer, begun, seen = Trainer(model, found, config, folder / "long"), time.monotonic(), array("d")

    def look(record: dict) -> None:
        late = time.monotonic() - begun
        seen.extend((record["step"], record["edges"], processes.memory(), processes.open_files()))
        if late > seconds or record["step"] >= steps:
            StopSignals.request(signal.SIGINT)

    with contextlib.suppress(Interrupted):
        trainer.run(look)
    steps_, edges, memory, files_ = np.array(seen).reshape(-1, 4).T
    first = 1 + len(steps_) // 10
    slope = float(np.polyfit(steps_[first:], memory[first:], 1)[0]) if len(steps_) > first + 2 else 0.0
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends_of = [(int(column[first]), int(column[-1])) for column in (memory, files_)]
    return Long(int(steps_[-1]), int((np.diff(edges) != 0).sum()), *ends_of, peak, 1e6 * slope)


def long(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """A long training in a process of its own."""
    found = long_training(folder, 60 * options.minutes)
    a, b = (f"{size / MB:,.1f}" for size in found.memory)
    yield Row(
        f"training for {options.minutes:g} minutes, structure changing",
        f"{found.steps:,} steps; {found.structures:,} lines of another number of edges",
        f"memory {a} MiB after a tenth, {b} MiB at the end ({found.per_million / MB:+.2f} MiB per million steps), "
        f"{found.peak / MB:,.1f} MiB at the peak; open files {found.files[0]} and {found.files[1]}",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--states", type=int, default=4, help="of the disk, for every prefix of a training")
    parser.add_argument("--every", type=int, default=7, help="operation of compare that fails")
    parser.add_argument("--kinds", nargs="+", choices=cases.CASES, default=list(cases.CASES), help="of cases")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[Path, argparse.Namespace], Iterator[Row]]]
    parts = {"power": power, "disk": disk, "processes": ends, "cases": inputs, "long": long}
    if not options.cases:
        del parts["cases"]
    if not options.minutes:
        del parts["long"]
    print("| what goes wrong | tried | what came of it |\n|---|---|---|", flush=True)
    for name, part in parts.items():
        if name in options.only:
            with tempfile.TemporaryDirectory() as folder, quick():
                for row in part(Path(folder), options):
                    print(f"| {row.what} | {row.tried} | {row.found} |", flush=True)


if __name__ == "__main__":
    main()
