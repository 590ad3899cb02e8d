"""Accuracy with few edges, ablations, other methods: python -m bench.accuracy --data-dir DATA_DIR [--seeds N].

Settings are those of `--edges N`; whole test sets, final networks.  Two trainings run at a time, on one thread each.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from bench import rigl
from sparse_dnm import DynamicManifold, Trainer, data
from sparse_dnm.machine import machine
from sparse_dnm.presets import PRESETS
from sparse_dnm.train.trainer import one_torch_thread

SHORT = 20_000  # steps of an ablation
CLOSENESS = {"edges": "closeness", "sigma": (81.0, 0.0)}  # windows of 784 ** 0.66, as in 2018
TASKS: list[tuple[str, int, dict[str, Any], dict[str, Any], str]] = [  # data, edges, of manifold, of training, target
    ("mnist", 5_910, {}, {}, "≥ 98.0 %, aim 98.5 %"),
    ("mnist", 3_100, {}, {}, "≥ 97.7 %, aim 98.3 %"),
    ("mnist", 1_700, {}, {}, "≥ 96.5 %"),
    ("mnist", 5_910, CLOSENESS, {"lr": 0.01, "shift": 0}, "≥ 93 %"),
    ("digits", 800, {}, {}, "≥ 97.5 %"),
    ("toy", 40, {}, {}, "MSE ≤ 1e-3"),
]
ABLATIONS: dict[str, dict[str, Any]] = {
    "prunes only (kappa 0)": {"kappa": 0.0},
    "ring": {},
    "ring and searches": {"scan_every": 500},
    "random regrowth (kappa 0, searches at random)": {"kappa": 0.0, "scan_every": 500, "regrowth": "random"},
    "ring, images not moved": {"shift": 0},
}

MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of manifold, of training
    "free: omega times the gaussian": ({}, {}),
    "free-closeness: omega times the whole closeness": ({"edges": "free-closeness"}, {}),
    "weighted: omega times the strength": ({"edges": "weighted", "sigma": (81.0, 0.0), "omega": (0.0, 1.0)}, {}),
    "closeness: no omega": (CLOSENESS, {"lr": 0.01, "shift": 0}),
}
GUARDED = (("digits", 100), ("digits", 800), ("mnist", 300), ("mnist", 3100))  # data, edges: few, many
FLOWS = (0.0, 1e-6, 1e-5)  # coefficients of the flow loss; 0: recovery alone
TABLES = ("tasks", "rivals", "ablations", "modes", "guards")


def name_of(task: tuple[str, int, dict[str, Any], dict[str, Any], str]) -> str:
    """What a row is called."""
    return f"{task[0]}{', closeness only' if task[2] else ''}, {task[1]:,} edges"


def trained(
    dataset: str, edges: int, manifold: dict[str, Any], train: dict[str, Any], seed: int, folder: Path | None
) -> Any:
    """Summary of a training, with its number of trainable scalars."""
    preset = PRESETS[dataset]
    config = dataclasses.replace(preset.growing(edges), seed=seed, threads=1, **train)
    shape = dataclasses.replace(preset.manifold, seed=seed, **manifold)
    generator = torch.Generator().manual_seed(seed)
    model = DynamicManifold(shape, generator, executor="columns", threads=1)
    trainer = Trainer(model, data.load(dataset, folder), config)
    summary = {**trainer.run(), "recoveries": trainer._recovery.count}
    scalars = sum(p.numel() for name, p in model.named_parameters() if name != "edge_weight")
    return {**summary, "scalars": scalars + (summary["edges"] if shape.edges == "free" else 0)}


def job(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """One training, in a process of its own; what it was, and its figures."""
    kind, *rest = key = arguments[:-1]
    folder, seed = arguments[-1], rest[-1]
    with one_torch_thread():
        if kind == "task":
            return key, trained(*TASKS[rest[0]][:4], seed, folder)
        if kind == "ablation":
            steps = rest[1]
            return key, trained("mnist", 5_910, {}, {"steps": steps, **ABLATIONS[rest[0]]}, seed, folder)
        if kind == "guard":
            dataset, edges, flow, _ = rest
            return key, trained(dataset, edges, {}, {"flow": flow}, seed, folder)
        if kind == "mode":
            manifold, train = MODES[rest[0]]
            return key, trained("mnist", 5_910, manifold, {"steps": SHORT, **train}, seed, folder)
        method, edges, seconds, _ = rest
        return key, rigl.train(data.load("mnist", folder), edges, seconds, seed, method)


def spread(values: list[float], form: str) -> str:
    """Mean, smallest and largest."""
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def figures(summaries: list[Any]) -> str:
    """The test figure over the seeds."""
    if "test_mse" in summaries[0]:
        return spread([s["test_mse"] for s in summaries], ".1e")
    return spread([s["test_accuracy"] for s in summaries], ".2%")


def run(jobs: list[tuple[Any, ...]], folder: Path | None) -> dict[tuple[Any, ...], list[Any]]:
    """Figures by what was trained, the seeds together."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for done, (key, summary) in enumerate(pool.imap(job, [(*j, folder) for j in jobs], chunksize=1)):
            found.setdefault(key[:-1], []).append(summary)
            brief = {k: summary[k] for k in ("test_accuracy", "test_mse", "edges", "train_seconds") if k in summary}
            print(f"{done + 1}/{len(jobs)} {key} {brief}", file=sys.stderr, flush=True)
    return found


def tasks(found: dict[tuple[Any, ...], list[Any]], seeds: range, folder: Path | None) -> None:
    """What is reached with few edges."""
    wanted = [k for k, task in enumerate(TASKS) if folder is not None or task[0] != "mnist"]
    found |= run([("task", k, seed) for seed in seeds for k in wanted], folder)
    print("| task | edges | trainable scalars | test figure | target | steps | training, s |")
    print("|---|---|---|---|---|---|---|")
    for k in wanted:
        rows = found["task", k]
        print(f"| {name_of(TASKS[k])} | {spread([r['edges'] for r in rows], ',.0f')} | "
              f"{spread([r['scalars'] for r in rows], ',.0f')} | {figures(rows)} | {TASKS[k][4]} | "
              f"{rows[0]['steps']:,} | {spread([r['train_seconds'] for r in rows], '.0f')} |", flush=True)  # fmt: skip


def rivals(found: dict[tuple[Any, ...], list[Any]], seeds: range, folder: Path) -> None:
    """Masked dense networks of equal edges, in equal seconds; after `tasks`."""
    jobs = []
    for k in (0, 1):
        seconds = statistics.mean(r["train_seconds"] for r in found["task", k])
        jobs += [(method, TASKS[k][1], seconds) for method in ("rigl", "pruning")]
    found |= run([("rival", *r, seed) for seed in seeds for r in jobs], folder)
    print("\n| equal edges, equal seconds | edges | test accuracy | steps | training, s |\n|---|---|---|---|---|")
    for k in (0, 1):
        lines = [("manifold", found["task", k])]
        lines += [(f"784-300-100-10, {m}", found["rival", m, e, s]) for m, e, s in jobs if e == TASKS[k][1]]
        for name, rows in lines:
            print(f"| {name} | {spread([r['edges'] for r in rows], ',.0f')} | {figures(rows)} | "
                  f"{spread([r['steps'] for r in rows], ',.0f')} | "
                  f"{spread([r['train_seconds'] for r in rows], '.0f')} |", flush=True)  # fmt: skip


def ablations(found: dict[tuple[Any, ...], list[Any]], seeds: range, folder: Path) -> None:
    """What growth is worth, in equal steps and in equal seconds."""
    found |= run([("ablation", name, SHORT, seed) for seed in seeds for name in ABLATIONS], folder)
    ring = statistics.mean(r["train_seconds"] for r in found["ablation", "ring", SHORT])
    equal = {
        name: round(SHORT * ring / statistics.mean(r["train_seconds"] for r in found["ablation", name, SHORT]))
        for name in ABLATIONS
        if name != "ring"
    }
    found |= run([("ablation", name, steps, seed) for seed in seeds for name, steps in equal.items()], folder)
    print("\n| mnist, 5,910 edges | steps | test accuracy | training, s | steps in equal seconds | test accuracy |")
    print("|---|---|---|---|---|---|")
    for name in ABLATIONS:
        rows, steps = found["ablation", name, SHORT], equal.get(name, SHORT)
        same = found["ablation", name, steps]
        print(f"| {name} | {SHORT:,} | {figures(rows)} | {spread([r['train_seconds'] for r in rows], '.0f')} | "
              f"{steps:,} | {figures(same)} |", flush=True)  # fmt: skip


def modes(found: dict[tuple[Any, ...], list[Any]], seeds: range, folder: Path) -> None:
    """The edge modes, by where omega is a factor."""
    found |= run([("mode", name, seed) for seed in seeds for name in MODES], folder)
    print("\n| mnist, 5,910 edges, edges= | steps | test accuracy | training, s |\n|---|---|---|---|")
    for name in MODES:
        rows = found["mode", name]
        print(f"| {name} | {SHORT:,} | {figures(rows)} | {spread([r['train_seconds'] for r in rows], '.0f')} |")


def guards(found: dict[tuple[Any, ...], list[Any]], seeds: range, folder: Path) -> None:
    """What keeps inputs and outputs connected: the flow loss, or recovery alone."""
    jobs = [(*task, flow) for task in GUARDED for flow in FLOWS]
    found |= run([("guard", *one, seed) for seed in seeds for one in jobs], folder)
    print("\n| task | flow | test accuracy | recoveries |\n|---|---|---|---|")
    for dataset, edges, flow in jobs:
        rows = found["guard", dataset, edges, flow]
        name = f"{flow:g}" if flow else "0: recovery alone"
        print(f"| {dataset}, {edges} edges | {name} | {figures(rows)} | {sum(r['recoveries'] for r in rows)} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's IDX files; without it MNIST is left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", choices=TABLES, help="one table alone (rivals: after tasks)")
    options = parser.parse_args()
    wanted = {"rivals": TABLES[:2]}.get(options.table, (options.table,)) if options.table else TABLES
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, two trainings at a time; mean (smallest to largest) of "
          f"{options.seeds} seeds; wall seconds\n", flush=True)  # fmt: skip
    found: dict[tuple[Any, ...], list[Any]] = {}
    for table in wanted if options.data_dir is not None else ("tasks",):
        globals()[table](found, range(options.seeds), options.data_dir)


if __name__ == "__main__":
    main()
