"""How the product holds beside other programs: python -m bench.noise [--only SECTIONS] [--data-dir DATA_DIR] [--quick].

calibration  prices beside each competitor, and how well they foretell the times of the idle machine
edges        `train digits` many times: most over fewest edges
budgets      budgets in µs, half of them beside a competitor, measured later on the quiet machine
accuracy     `--budget-us` less `--edges` at equal measured time

Everything is run by the command line, in processes of its own.  Results are kept as JSON in --out as they come, so that
the same command continues after an interruption.  Keep the machine quiet otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bench.competitors import CONDITIONS, IDLE, Condition, describe
from bench.noise_budgets import accuracy, budgets
from bench.noise_runs import Bench, Record, product, spread
from sparse_dnm.io import read_json
from sparse_dnm.machine import machine, versions
from sparse_dnm.timing.clock import load

SECTIONS = ("calibration", "edges", "budgets", "accuracy")
BESIDE = ("half-arithmetic-same-core", "half-memory-other-core", "always-arithmetic-same-core",
          "always-memory-other-core")  # fmt: skip


def calibration(bench: Bench) -> list[str]:
    """Prices by condition, relative to those of the idle machine, and what they foretell."""
    profiles: dict[str, list[Record]] = {}
    for condition in (CONDITIONS[name] for name in dict.fromkeys((IDLE.name, *bench.conditions))):
        for k in range(bench.repeats if not bench.quick else 1):
            profile = bench.kept(f"calibration/{condition}-{k}", partial(calibrated, bench, condition))
            if profile["rc"]:
                print(f"calibrate beside {condition}: exit status {profile['rc']}", file=sys.stderr)
            profiles.setdefault(condition.name, []).append(profile)
    return calibration_table(profiles)


def calibrated(bench: Bench, condition: Condition) -> Record:
    """The profile of a calibration in a condition."""
    path = bench.out / "profile.json"
    path.unlink(missing_ok=True)
    batch = "1" if bench.mode == "infer" else "50"
    quick = ["--probes", "12", "--repeats", "5"] if bench.quick else []
    arguments = ["--mode", bench.mode, "--batch-size", batch, "--threads", "1", *quick, "--out", str(path)]
    found = product(condition, ["calibrate", "digits", *arguments])
    return {**found, **({"profile": read_json(path)} if path.exists() else {})}


def calibration_table(profiles: dict[str, list[Record]]) -> list[str]:
    """The table of calibrations by condition, the idle one first."""
    idle = [p["profile"] for p in profiles[IDLE.name] if "profile" in p]
    if not idle:
        return ["No calibration of the idle machine has ended well: nothing to compare with."]
    usual = {name: statistics.median([p["seconds_per"][name] for p in idle]) for name in idle[0]["seconds_per"]}
    counts, seconds = (np.array(idle[0][name])[-idle[0]["held_out"]["n"] :] for name in ("counts", "seconds"))
    lines = [
        "Shares of held-out structures whose time is foretold within 10 %: in the calibration's own words, and by its "
        "prices for the times of the idle machine.  Prices are relative to those of the idle machine: all together, as "
        "their median, and each over that median.",
        "",
        "| beside | calibrations | within 10 % | of idle times | all prices | each over them | wall, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in profiles.items():
        good = [p["profile"] for p in found if "profile" in p]
        own = [100 * p["held_out"]["within_10"] for p in good]
        theirs = []
        for p in good:
            foretold = counts @ np.array(list(p["seconds_per"].values()))
            theirs.append(100 * float((np.abs(foretold / seconds - 1) <= 0.1).mean()))
        ratios = [[p["seconds_per"][k] / price for k, price in usual.items() if price > 0] for p in good]
        whole = [statistics.median(r) for r in ratios]
        each = [price / middle for r, middle in zip(ratios, whole, strict=True) if middle > 0 for price in r]
        cells = [f"{len(good)} of {len(found)}", spread(own, ".0f"), spread(theirs, ".0f")]
        cells += [spread(whole, ".2f"), spread(each, ".2f")]
        lines.append(f"| {name} | {' | '.join(cells)} | {spread([p['seconds'] for p in found], '.0f')} |")
    dates = {p["pace"]["quiet_date"] for p in idle if "pace" in p}
    said = ", ".join(sorted(date for date in dates if date)) or "none, seconds are relative to references of each run"
    return [*lines, "", f"Reference of the quiet machine in the idle calibrations: {said}."]


def edges(bench: Bench) -> list[str]:
    """Edges, accuracy and time of `train digits` with equal options, by condition."""
    lines = [
        f"`sparse-dnm train digits --threads 1`, {bench.repeats} times, the same seed.",
        "",
        "| beside | ended well | edges | most over fewest | test accuracy, % | wall, s |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys((IDLE.name, *bench.conditions)):
        found = [bench.train(f"again-{name}-{k}", CONDITIONS[name], "digits", 0) for k in range(bench.repeats)]
        lines.append(edges_row(name, found))
    return lines


def edges_row(name: str, found: Sequence[Record]) -> str:
    """A row of the table of `edges`."""
    good = [r["summary"] for r in found if r["rc"] == 0]
    counts = [s["edges"] for s in good]
    ratio = f"{max(counts) / min(counts):.3f}" if counts else ""
    accuracy = spread([100 * s["test_accuracy"] for s in good], ".2f")
    wall = spread([r["seconds"] for r in found], ".0f")
    return f"| {name} | {len(good)} of {len(found)} | {spread(counts, ',.0f')} | {ratio} | {accuracy} | {wall} |"


def head(bench: Bench) -> list[str]:
    """The machine and how it is disturbed."""
    about, busy = machine(), load()
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"{about['processor']}, {about['cores']} cores, {about['system']}; {packages}; float32; mode {bench.mode}.",
        f"Load per core before the start: {'unknown' if busy is None else f'{busy:.2f}'}.  {'  '.join(describe())}",
        "Medians (smallest to largest).",
    ]


def options(arguments: Sequence[str] | None = None) -> tuple[Bench, tuple[str, ...]]:
    """The bench and the sections that a command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, of {', '.join(SECTIONS)}")
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's IDX files; without it MNIST is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/noise"), help="folder of runs and results")
    parser.add_argument("--repeats", type=int, default=10, help="of a calibration, and of train digits")
    parser.add_argument("--runs", type=int, default=20, help="trainings with a budget")
    parser.add_argument("--seeds", type=int, default=5, help="of the reference networks, and of accuracy")
    parser.add_argument("--jobs", type=int, default=1, help="reference networks that are trained at a time")
    parser.add_argument("--mode", choices=("infer", "train"), default="infer", help="what budgets are about: a forward "
                        "of one sample, or forward + backward of a batch")  # fmt: skip
    parser.add_argument("--conditions", default=",".join(BESIDE), help=f"besides idle, of {', '.join(CONDITIONS)}")
    parser.add_argument("--quick", action="store_true", help="few steps and runs, to try all")
    given = parser.parse_args(arguments)
    sections, conditions = tuple(given.only.split(",")), tuple(given.conditions.split(","))
    for name, chosen, legal in (("--only", sections, SECTIONS), ("--conditions", conditions, CONDITIONS)):
        unknown = [one for one in chosen if one not in legal]
        if unknown:
            parser.error(f"{name} {unknown[0]!r} is unknown; choose of {', '.join(legal)}")
    if given.quick:
        given.repeats, given.runs, given.seeds, conditions = 2, 2, 1, conditions[:1]
    for name in ("repeats", "runs", "seeds", "jobs"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} {getattr(given, name)} must be >= 1")
    folder = None if given.data_dir is None else given.data_dir.resolve()
    counts = given.repeats, given.runs, given.seeds, given.jobs
    return Bench(given.out.resolve(), folder, given.quick, *counts, given.mode, conditions), sections


def main() -> None:
    """Print the tables."""
    bench, sections = options()
    bench.out.mkdir(parents=True, exist_ok=True)
    kept = bench.kept("options", lambda: {"quick": bench.quick, "mode": bench.mode})
    if kept != {"quick": bench.quick, "mode": bench.mode}:
        raise SystemExit(f"error: {bench.out} holds results of {kept}: choose another --out, or remove it")
    print("\n".join(head(bench)), flush=True)
    made = {"calibration": calibration, "edges": edges, "budgets": budgets, "accuracy": accuracy}
    for name in sections:
        print("\n".join(["", f"## {name}", "", *made[name](bench)]), flush=True)


if __name__ == "__main__":
    main()
