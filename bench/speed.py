"""Simulated against measured speed, over five seeds: python -m bench.speed --data-dir DATA_DIR [--seeds N].

What `sparse-dnm compare` does, for several ways of running a network.  Both terms have the same gates, the same steps
and four coefficients each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from sparse_dnm import data
from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.machine import machine
from sparse_dnm.report.comparison import describe, sentences, table
from sparse_dnm.study import compare
from sparse_dnm.timing.calibration import Settings

BOTH, FACTORS = ("proxy", "time"), (0.5, 1.0, 2.0, 4.0)
RUNS = (  # data set, steps, terms, factors, how networks are run, ablation
    ("digits", 3000, BOTH, FACTORS, Settings("columns", "infer", 1, 1, "perf_counter")),
    ("digits", 3000, BOTH, FACTORS, Settings("wavefront", "infer", 1, 2, "perf_counter")),
    ("digits", 3000, BOTH, FACTORS, Settings("columns", "train", 256, 1, "process_time")),
    ("digits", 3000, BOTH, FACTORS, Settings("columns", "train", 256, 1, "process_time"), "edges-only"),  # the control
    ("mnist", 5000, BOTH, FACTORS, Settings("columns", "infer", 1, 1, "perf_counter")),
    ("mnist", 5000, BOTH, FACTORS, Settings("wavefront", "infer", 1, 2, "perf_counter")),
    ("digits", 3000, ("none", "time"), (1.0,), Settings("columns", "train", 50, 2, "process_time")),
    ("mnist", 10_000, ("none", "time"), (1.0,), Settings("columns", "train", 100, 2, "process_time")),
)


def one(
    name: str, steps: int, terms: tuple[str, ...], factors: tuple[float, ...], timing: Settings, seeds: int,
    data_dir: Path | None, out: Path, ablation: str = "none",
) -> list[str]:  # fmt: skip
    """Title, table and verdict of one comparison."""
    found = data.load(name, data_dir if name == "mnist" else None)
    config = TrainConfig.preset(name, steps=steps, time_mode=timing.mode, clock=timing.clock)
    config = replace(config, executor=timing.executor, threads=timing.threads, time_ablation=ablation)
    if timing.mode == "infer":
        config = replace(config, time_batch=timing.batch)
    plan = compare.Plan(terms, factors, seeds, replace(timing, repeats=101))
    if timing.mode == "train":
        config = replace(config, batch_size=timing.batch)
    said = f"{name}, {steps:,} steps, {', '.join(terms)}{'' if ablation == 'none' else f' ({ablation})'}"
    results = compare.compare(
        found, ManifoldConfig.preset(name), config, plan, out, None,
        lambda run: print(f"\r{said}: {run}    ", end="", file=sys.stderr, flush=True),
    )  # fmt: skip
    verdict = compare.judge(results, found.task, terms[1], terms[0])
    about = describe({"machine": machine()}, timing)
    lines = ["", f"**{said}**; {about.partition('; ')[2]}", "", *table(results, found.task), ""]
    return [*lines, *(f"- {line}" for line in sentences(verdict))] if len(factors) > 1 else lines


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's IDX files; without it MNIST is left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", type=int, help="number of one comparison, from 0")
    options = parser.parse_args()
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, float32", flush=True)
    for k, run in enumerate(RUNS):
        if (options.only not in (None, k)) or (run[0] == "mnist" and options.data_dir is None):
            continue
        with tempfile.TemporaryDirectory() as out:
            print("\n".join(one(*run[:5], options.seeds, options.data_dir, Path(out), *run[5:])), flush=True)


if __name__ == "__main__":
    main()
