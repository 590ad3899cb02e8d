"""The training of original-mnist against commit 9d64137, and against its kernels: python -m bench.before [--quick].

Two processes, see bench.against, one on a checkout of that commit in the cache folder, take turns: blocks of STEPS
steps of Trainer.run (batches, lines of metrics and all), and the forward + backward kernels of that moment's structure,
which is the same in both, since both trainings have the same bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import external_peers
from bench.against import ORIGINAL, ROOT, STEPS, TRAINING, Ratio, Worker
from bench.checkout import of_commit
from bench.targets import Before, Found

COMMIT = "9d64137"
STEP, KERNELS = f"step, {ORIGINAL}", f"kernels, {ORIGINAL}"
SETTLED = 3  # blocks of steps before the first that is measured
CALLS = 100  # of kernels in a block


def checkout() -> Path:
    """The files of the commit.  Raises RuntimeError where they cannot be had."""
    return of_commit(COMMIT, external_peers.cache() / f"commit-{COMMIT}")


def measure(root: Path, threads: int, pairs: int, data_dir: Path | None) -> Before:
    """Steps and kernels of both in turns."""
    here, there = Worker(ROOT, data_dir, threads), Worker(root, data_dir, threads)
    seconds: dict[tuple[Worker, str], list[float]] = {(w, n): [] for w in (here, there) for n in (STEP, KERNELS)}
    try:
        for worker in (here, there):
            worker.ask(make=TRAINING)
            for _ in range(SETTLED):
                worker.ask(run=STEP, calls=STEPS)
            worker.ask(run=KERNELS, calls=CALLS)
        for k in range(pairs):
            for worker in (here, there) if k % 2 else (there, here):
                seconds[worker, STEP].append(worker.ask(run=STEP, calls=STEPS))
                seconds[worker, KERNELS].append(worker.ask(run=KERNELS, calls=CALLS))
    finally:
        here.close()
        there.close()
    per_step = STEPS / CALLS  # both blocks have as many calls, but need not
    kernels_there = [per_step * s for s in seconds[there, KERNELS]]
    return Before(
        whole=Ratio.of("whole step", seconds[here, STEP], seconds[there, STEP], STEPS),
        kernels=Ratio.of("forward + backward kernels", seconds[here, KERNELS], seconds[there, KERNELS], CALLS),
        over_kernels=Ratio.of("whole step here, kernels there", seconds[here, STEP], kernels_there, STEPS),
    )


def section(quick: bool, found: Found, data_dir: Path | None = None, threads: tuple[int, ...] = (1, 2)) -> list[str]:
    """The ratios as a table; why not, where the commit cannot be had."""
    try:
        root = checkout()
    except RuntimeError as error:
        return [f"Absent: commit {COMMIT} ({error})."]
    samples = "MNIST" if data_dir else "random images"
    out = [
        f"Commit {COMMIT} in a process of its own, in turns with this code; original-mnist, batch 50, {samples}; "
        "wall seconds on two threads, CPU seconds on one; medians over pairs of blocks with 95 % bootstrap intervals.  "
        "The last row of each is the whole step of this code over the kernels of that commit.",
        "",
        "| | threads | here, µs | there, µs | here / there | 95 % interval | pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    for n in threads:
        found.before[n] = measure(root, n, 5 if quick else 30, data_dir)
        out += [
            f"| {ratio.name} | {n} | {ratio.here_us:,.1f} | {ratio.there_us:,.1f} | {ratio.ratio:.3f} | "
            f"{ratio.low:.3f}–{ratio.high:.3f} | {ratio.pairs} |"
            for ratio in (found.before[n].whole, found.before[n].kernels, found.before[n].over_kernels)
        ]
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's IDX files; without it images are random")
    options = parser.parse_args()
    print("\n".join(section(options.quick, Found(), options.data_dir)))


if __name__ == "__main__":
    main()
