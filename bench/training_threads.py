"""Training on two threads against one, idle and beside a second program: python -m bench.training_threads [--quick].

Blocks of STEPS steps of original-mnist as Trainer.run makes them, in turns, wall clock.  The second program is a Python
process in an endless loop, which keeps one core busy.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.peers import Cases, on
from bench.steps import UPDATES, advancing, make_trainer
from bench.targets import BUSY, IDLE, Found
from sparse_dnm.presets import PRESETS
from sparse_dnm.timing.clock import interleave

BLOCKS = 4  # of UPDATES steps: a measurement must be longer than the time slices that two programs share a core by
STEPS = BLOCKS * UPDATES
THREADS = {1: "1 thread", 2: "2 threads", 0: "threads chosen by measurement (0)"}


@contextlib.contextmanager
def second_program() -> Iterator[None]:
    """A process that computes without end while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def block(batch: int, threads: int) -> Callable[[], object]:
    """STEPS steps of a training of its own."""
    preset = PRESETS["original-mnist"]
    trainer = make_trainer(preset.manifold, replace(preset.train, threads=threads, batch_size=batch))
    advance = advancing(trainer, threads or 1)  # of 0: the executor sets its own number

    def run() -> None:
        for _ in range(BLOCKS):
            advance()

    return on(1, run)


def section(quick: bool, found: Found) -> list[str]:
    """Steps per second on two threads over one, by batch, idle and beside a second program."""
    out = [
        f"original-mnist, random images, blocks of {STEPS} steps in turns; medians (quartiles), µs per step.",
        "",
        f"| machine | batch | {' | '.join(f'{name}, µs' for name in THREADS.values())} | 2 over 1 | chosen over 1 |",
        f"|---|---|{'---|' * (len(THREADS) + 2)}",
    ]
    for batch in (50, 256):
        cases: Cases = {name: block(batch, threads) for threads, name in THREADS.items()}
        for machine, beside in ((IDLE, contextlib.nullcontext), (BUSY, second_program)):
            with beside():
                t = interleave(cases, 5 if quick else 25, warmup=1, shortest_s=0, budget_s=5 if quick else 20)
            one, two, chosen = (t[name].median for name in THREADS.values())
            found.training[machine, batch] = one / two, one / chosen
            cells = [f"{1e6 * v.median / STEPS:,.0f} ({1e6 * v.low / STEPS:,.0f}–{1e6 * v.high / STEPS:,.0f})"
                     for v in t.values()]  # fmt: skip
            out.append(f"| {machine} | {batch} | {' | '.join(cells)} | {one / two:.2f} | {one / chosen:.2f} |")
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks")
    print("\n".join(section(parser.parse_args().quick, Found())))


if __name__ == "__main__":
    main()
