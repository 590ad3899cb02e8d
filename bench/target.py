"""Trainings for a target: python -m bench.target [--only SECTIONS] [--seeds N] [--jobs N] [--out FOLDER] [--quick].

terms    networks trained by the time of target A, by a count of edges with the same searches for edges, and by that
         count alone, at equal accuracy
prices   how well the prices of a target foretell the times of networks that were not fitted
homes    networks trained for target A and for target B, each timed on both, at equal accuracy
budgets  networks trained to a budget in µs on the target, timed there again afterwards

digits, by the command line; a finished run in --out is used again.  A is `gcc -O3 -march=native`, B `gcc -O1` without
vectors, or what --a, --b and --run-b say.  Loops of B are aligned: at -O1 a loop takes up to a third longer where it
happens to cross a line of the instruction cache, and no price foretells that.  Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

import sparse_dnm
from sparse_dnm.export import Folded
from sparse_dnm.machine import machine, versions
from sparse_dnm.presets import SEARCH
from sparse_dnm.study.fastest import time_exported
from sparse_dnm.study.verdict import Result, judge
from sparse_dnm.target import Target
from sparse_dnm.timing.clock import load

SECTIONS = ("terms", "prices", "homes", "budgets")
FACTORS = (2.0, 8.0, 32.0)  # of the preset's time coefficient
TERMS = {"time": (4.0, 16.0, 64.0), "proxy, searching": (4.0, 16.0, 64.0), "proxy": (2.0, 6.0, 18.0, 54.0)}
COEFFICIENTS = {"time": 2.0, "proxy": 8.0}  # of the preset
BUDGETS = (0.2, 0.3)  # µs
SETTINGS = ("--set", "activation=leaky_relu", "--threads", "1")


def command(*arguments: str) -> str:
    """Run the command line; returns what it printed.  Ends the benchmark where it fails."""
    line = [sys.executable, "-m", "sparse_dnm", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(line)} failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def options(target: Target) -> list[str]:
    """How the command line names a target."""
    return ["--cc", target.cc, "--run", target.run]


def calibrated(name: str, target: Target, out: Path) -> tuple[Path, dict[str, Any]]:
    """The profile of a target, as a file and its contents."""
    path, start = out / f"{name}.json", out / "start"
    if not (start / "summary.json").exists():
        command("train", "digits", "--speed", "none", "--steps", "0", *SETTINGS, "--out", str(start))
    if not path.exists():
        command("calibrate", str(start), "--target", "c", *options(target), "--out", str(path))
    return path, json.loads(path.read_text())


def trained(run: Path, target: Target, profile: Path, seed: int, steps: int, *more: str) -> Path:
    """A run directory of a training for a target."""
    if not (run / "summary.json").exists():
        command(
            "train", "digits", "--speed", "time", "--clock", "target", *options(target), "--profile", str(profile),
            "--seed", str(seed), "--steps", str(steps), *SETTINGS, *more, "--out", str(run),
        )  # fmt: skip
    return run


def seconds_on(target: Target, runs: list[Path]) -> dict[Path, np.ndarray]:
    """Seconds (programs,) of the exported networks of some runs, in turns."""
    networks = {str(run): Folded.of(sparse_dnm.load(run, threads=1).model) for run in runs}
    found = time_exported(networks, target)
    return {run: found[str(run)].seconds for run in runs}


def terms(target: Target, out: Path, seeds: int, steps: int, jobs: int) -> list[str]:
    """Networks trained by each of TERMS, on the target."""
    profile = calibrated("A", target, out)[0]
    wanted = [(term, factor, seed) for seed in range(seeds) for term, factors in TERMS.items() for factor in factors]

    def make(case: tuple[str, float, int]) -> Path:
        term, factor, seed = case
        speed = term.partition(",")[0]
        run = out / f"{term.replace(', ', '-')}-{factor:g}-{seed}"
        coefficient = "--set", f"{speed}_coefficient={COEFFICIENTS[speed] * factor:g}"
        if speed == "time":
            return trained(run, target, profile, seed, steps, *coefficient)
        if not (run / "summary.json").exists():
            search = [f"--set={name}={value}" for name, value in SEARCH.items()] if term != "proxy" else []
            command("train", "digits", "--speed", "proxy", *coefficient, *search, *SETTINGS, "--seed", str(seed),
                    "--steps", str(steps), "--out", str(run))  # fmt: skip
        return run

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        runs = dict(zip(wanted, pool.map(make, wanted), strict=True))
    found, results = seconds_on(target, list(runs.values())), []
    for (term, factor, seed), run in runs.items():
        s, t = json.loads((run / "summary.json").read_text()), found[run]
        size, times = (s["edges"], s["depth"], s["live"]), (float(np.median(t)), float(t.min()), float(t.max()))
        results.append(Result(term, factor, seed, s["test_accuracy"], *size, *times))
    lines = ["| trained by | coefficient, x the preset's | test accuracy | edges | µs on A |", "|---|---|---|---|---|"]
    for term, factors in TERMS.items():
        for factor in factors:
            of = [r for r in results if (r.term, r.factor) == (term, factor)]
            us, shares = [1e6 * r.seconds for r in of], [r.figure for r in of]
            lines.append(
                f"| {term} | {factor:g} | {np.mean(shares):.2%} ({min(shares):.2%} to {max(shares):.2%}) | "
                f"{np.mean([r.edges for r in of]):,.0f} | {np.mean(us):.3f} ({min(us):.3f} to {max(us):.3f}) |"
            )
    pairs = (("time", "proxy"), ("time", "proxy, searching"), ("proxy, searching", "proxy"))
    return [*lines, "", *(f"- {judge(results, 'classification', a, b).words}" for a, b in pairs)]


def prices(targets: dict[str, Target], out: Path) -> list[str]:
    """The fit of each target's prices."""
    names = ("input", "neuron", "edge", "level", "block", "loop")
    lines = ["| target | held-out probes within 10 % | R² | spread of repeats | ns: " + ", ".join(names) + " |"]
    lines.append("|---|---|---|---|---|")
    for name, target in targets.items():
        _, profile = calibrated(name, target, out)
        judged, ns = profile["held_out"], [f"{1e9 * profile['seconds_per'][one]:.2f}" for one in names]
        lines.append(
            f"| {name}: `{target.cc}`{'' if target.here else f', `{target.run}`'} | {judged['within_10']:.0%} of "
            f"{judged['n']} | {judged['r2']:.3f} | {profile['noise']:.1%} | {', '.join(ns)} |"
        )
    return lines


def homes(targets: dict[str, Target], out: Path, seeds: int, steps: int, jobs: int) -> list[str]:
    """Networks trained for each target, on both."""
    wanted = [(name, factor, seed) for seed in range(seeds) for name in targets for factor in FACTORS]
    profiles = {name: calibrated(name, target, out)[0] for name, target in targets.items()}

    def make(case: tuple[str, float, int]) -> Path:
        name, factor, seed = case
        more = "--set", f"time_coefficient={2.0 * factor:g}"
        return trained(out / f"{name}-{factor:g}-{seed}", targets[name], profiles[name], seed, steps, *more)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        runs = dict(zip(wanted, pool.map(make, wanted), strict=True))
    summaries = {case: json.loads((run / "summary.json").read_text()) for case, run in runs.items()}
    lines = ["| trained for | coefficient | test accuracy | edges | live neurons | " +
             " | ".join(f"µs on {name}" for name in targets) + " |", "|---" * (5 + len(targets)) + "|"]  # fmt: skip
    times = {name: seconds_on(target, list(runs.values())) for name, target in targets.items()}
    for name in targets:
        for factor in FACTORS:
            cases = [case for case in wanted if case[:2] == (name, factor)]
            of = [[summaries[case][key] for case in cases] for key in ("test_accuracy", "edges", "live")]
            us = [np.mean([1e6 * np.median(found[runs[case]]) for case in cases]) for found in times.values()]
            shown = [f"{np.mean(of[0]):.2%}", *(f"{np.mean(one):.0f}" for one in of[1:]), *(f"{one:.3f}" for one in us)]
            lines.append(f"| {name} | {factor:g} | {' | '.join(shown)} |")
    lines.append("")
    for home, found in times.items():
        (other,) = [name for name in targets if name != home]
        results = []
        for (name, factor, seed), run in runs.items():
            s, t = summaries[name, factor, seed], found[run]
            size = s["edges"], s["depth"], s["live"]
            results.append(
                Result(
                    name, factor, seed, s["test_accuracy"], *size, float(np.median(t)), float(t.min()), float(t.max())
                )
            )
        lines.append(f"- on {home}: {judge(results, 'classification', home, other).words}")
    return [*lines, *_suited(wanted, runs, times)]


def _suited(
    wanted: list[tuple[str, float, int]],
    runs: dict[tuple[str, float, int], Path],
    times: dict[str, dict[Path, np.ndarray]],
) -> list[str]:
    """How much better networks suit the target that they were trained for, whatever their accuracy and size."""
    a, b = times

    def share(case: tuple[str, float, int]) -> float:
        return float(np.log(np.median(times[a][runs[case]]) / np.median(times[b][runs[case]])))

    seeds = sorted({seed for _, _, seed in wanted})
    found = [
        float(np.mean([share((a, factor, seed)) - share((b, factor, seed)) for factor in FACTORS])) for seed in seeds
    ]
    words = (
        f"- time on {a} over time on {b}, of networks trained for {a} over that of networks trained for {b} with the "
    )
    words += f"same coefficient and seed: {np.exp(np.mean(found)):.3f}"
    if len(found) > 1:
        interval = bootstrap((found,), np.mean, random_state=0).confidence_interval
        words += f" (95 % interval {np.exp(interval.low):.3f} to {np.exp(interval.high):.3f}, {len(found)} seeds)"
    return [f"{words}; below 1 where each suits its home"]


def budgets(target: Target, out: Path, runs: int, steps: int) -> list[str]:
    """Trainings to a budget, timed again afterwards, one after the other."""
    profile = calibrated("A", target, out)[0]
    lines = ["| budget, µs | seed | timed afterwards, µs | off | edges | test accuracy |", "|---|---|---|---|---|---|"]
    over = 0
    for k in range(runs):
        budget, seed = BUDGETS[k % len(BUDGETS)], k // len(BUDGETS)
        run = trained(
            out / f"budget-{budget:g}-{seed}", target, profile, seed, steps,
            "--budget-us", str(budget), "--max-loss", "100", "--set", "time_coefficient=8",
        )  # fmt: skip
        summary = json.loads((run / "summary.json").read_text())
        us = 1e6 * float(np.median(seconds_on(target, [run])[run]))
        over += us > 1.02 * budget
        lines.append(
            f"| {budget:g} | {seed} | {us:.4f} | {us / budget - 1:+.1%} | {summary['edges']:,} | "
            f"{summary['test_accuracy']:.2%} |"
        )
    return [*lines, "", f"- {runs - over} of {runs} are within + 2 % of their budget"]


def main() -> None:
    """Print the sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, but for budgets")
    parser.add_argument("--a", default="gcc -O3 -march=native", help="compiler of target A")
    parser.add_argument(
        "--b", default="gcc -O1 -fno-tree-vectorize -falign-loops=64 -falign-functions=64", help="compiler of target B"
    )
    parser.add_argument("--run-b", default="{program}", help="runs programs of target B")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-target"))
    parser.add_argument("--quick", action="store_true", help="one seed, 1,000 steps, two budgets")
    asked = parser.parse_args()
    for name in asked.only.split(","):
        if name not in SECTIONS:
            parser.error(f"--only {name}: choose of {', '.join(SECTIONS)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    targets = {"A": Target(asked.a), "B": Target(asked.b, run=asked.run_b)}
    seeds, steps, runs = (1, 1000, 2) if asked.quick else (asked.seeds, 20_000, 10)
    about, busy = machine(), load()
    print(f"{about['processor']}, {about['cores']} cores; {', '.join(f'{k} {v}' for k, v in versions().items())}; "
          f"load per core before the start {'unknown' if busy is None else f'{busy:.2f}'}; digits, leaky ReLU, "
          f"{steps:,} steps, {seeds} seeds.")  # fmt: skip
    if "terms" in asked.only:
        print(
            "\n## By time and by a count\n",
            *terms(targets["A"], asked.out, seeds, steps, asked.jobs),
            sep="\n",
            flush=True,
        )
    if "prices" in asked.only:
        print("\n## Prices\n", *prices(targets, asked.out), sep="\n", flush=True)
    if "homes" in asked.only:
        print("\n## Each at home\n", *homes(targets, asked.out, seeds, steps, asked.jobs), sep="\n", flush=True)
    if "budgets" in asked.only:
        print("\n## Budgets\n", *budgets(targets["A"], asked.out, runs, steps), sep="\n", flush=True)


if __name__ == "__main__":
    main()
