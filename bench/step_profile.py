"""Where the time of a training step goes: python -m bench.step_profile [--quick].

original-mnist, batch 50.  A round times UPDATES steps as Trainer.run makes them, then one step whose kernel calls are
recorded, and each part of that step again, alone, on the structure of that moment: structures change while training.
A part's seconds are those of its calls less those of as many calls of an empty kernel with the same arguments, since
the driver does not call kernels from Python.  Parts alone find their data in the cache.  What the parts do not explain
is the rest: the driver, batches drawn by torch, Python, and caches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba
import numpy as np
from sparse_dnm.kernels import cpu_step

from bench.replay import Call, recording
from bench.steps import UPDATES, advancing, make_trainer
from sparse_dnm import Trainer
from sparse_dnm.engine.device import use_threads
from sparse_dnm.presets import PRESETS
from sparse_dnm.timing.clock import Timing
from sparse_dnm.train.trainer import one_torch_thread

BATCH, ADAM = "batch", "Adam"
PARTS = {  # name: kernels
    BATCH: ("take_batch",),
    "closeness of all candidates": ("evaluate",),
    "structure (analyze, schedule)": ("analyze", "schedule"),
    "forward": ("forward",),
    "loss": ("cross_entropy",),
    "backward": ("backward", "add_tiles"),
    "gradient of closeness": ("strength_back",),
    ADAM: ("adam",),
}
WHOLE, REST, KERNELS = "whole step", "rest: driver and Python", ("forward", "backward")
SHORTEST = 1e-3  # s that a part is repeated for


@numba.njit
def _nothing(*_: Any) -> int:
    return 0


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of a call, of as many as last SHORTEST."""
    run()
    start = time.perf_counter()
    run()
    count = max(1, int(SHORTEST / max(time.perf_counter() - start, 1e-7)))
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def kernel_seconds(call: Call) -> float:
    """Seconds of a kernel, without its call from Python."""
    with use_threads(call.threads):
        whole = seconds_of(lambda: call.kernel(*call.arguments))
        return max(0.0, whole - seconds_of(lambda: _nothing(*call.arguments)))


def batch_call(trainer: Trainer) -> Call:
    """The driver's own kernel that takes the samples of a step; a single step leaves that to torch."""
    data, size = trainer.data, trainer.config.batch_size
    x, y = data.x_train.numpy(), data.y_train.numpy().reshape(len(data.y_train), -1)
    rows = np.random.default_rng(0).integers(len(x), size=(1, size))
    none = np.zeros((0, 0), np.int64), np.zeros((0, 0), np.bool_)
    outs = np.empty((size, x.shape[1]), x.dtype), np.empty((size, y.shape[1]), y.dtype)
    weights = np.empty(0)
    return Call("take_batch", cpu_step.take_batch, (x, y, weights, rows, 0, 0, *none, *outs, weights), 1)


def one_round(trainer: Trainer, threads: int) -> dict[str, float]:
    """Seconds of a whole step and of its parts, at the structure of now."""
    with one_torch_thread():
        start = time.perf_counter()
        advancing(trainer, threads)()
        found = {WHOLE: (time.perf_counter() - start) / UPDATES}
        with use_threads(threads), recording() as calls:
            trainer._advance()
        calls.append(batch_call(trainer))
        for name, kernels in PARTS.items():
            found[name] = sum(kernel_seconds(call) for call in calls if call.name.startswith(kernels))
    found[REST] = found[WHOLE] - sum(found[name] for name in PARTS)
    return found


def measure(threads: int, count: int) -> dict[str, Timing]:
    """Median and quartiles over rounds, by part."""
    preset = PRESETS["original-mnist"]
    trainer = make_trainer(preset.manifold, replace(preset.train, threads=threads))
    one_round(trainer, threads)  # compiles
    rounds = [one_round(trainer, threads) for _ in range(count)]
    return {name: Timing.of([found[name] for found in rounds]) for name in rounds[0]}


def section(quick: bool) -> list[str]:
    """The parts on one thread and on two, with their share of the step and their size in forward + backward kernels."""
    out = [
        "original-mnist, batch 50, random images; medians (quartiles) over rounds, each part alone on the structure "
        "that the training had then, without its call from Python; × kernels: over forward + backward of that column.",
        "",
        "| part | 1 thread, µs | share | × kernels | 2 threads, µs | share | × kernels |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = [measure(threads, 5 if quick else 40) for threads in (1, 2)]
    for name in (*PARTS, REST, WHOLE):
        cells = [name]
        for column in columns:
            kernels = sum(column[kernel].median for kernel in KERNELS)
            t = column[name]
            cells.append(f"{1e6 * t.median:,.1f} ({1e6 * t.low:,.1f}–{1e6 * t.high:,.1f})")
            cells += [f"{t.median / column[WHOLE].median:.0%}", f"{t.median / kernels:.2f}"]
        out.append(f"| {' | '.join(cells)} |")
    best = min(columns, key=lambda column: column[WHOLE].median)
    parts = (best[WHOLE].median - best[REST].median) / sum(best[name].median for name in KERNELS)
    out += ["", f"All but the rest: {parts:.2f} x the kernels, in the column of the faster step."]
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    print("\n".join(section(parser.parse_args().quick)))


if __name__ == "__main__":
    main()
