"""Runs of bench.noise: the product as a process in a condition, results kept as JSON as they come."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.competitors import ROOT, Condition, competing, limited
from sparse_dnm import DynamicManifold
from sparse_dnm.io import read_json, write_json
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.subprocess import Network
from sparse_dnm.train import checkpoint as files

LEVELS = {"digits": (250, 500, 1000, 2000), "mnist": (1000, 2000, 4000, 8000)}  # edges of the reference networks
TAIL = 500  # characters of an error that are kept
Record = dict[str, Any]


@dataclass
class Bench:
    """The options, and where results are kept."""

    out: Path
    data_dir: Path | None
    quick: bool
    repeats: int
    runs: int
    seeds: int
    jobs: int
    mode: str
    conditions: tuple[str, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets of budgets and accuracy."""
        return ("digits",) if self.data_dir is None or self.quick else ("digits", "mnist")

    def levels(self, dataset: str) -> tuple[int, ...]:
        """Edges of the reference networks."""
        return (400, 1200) if self.quick else LEVELS[dataset]

    def settings(self, dataset: str) -> Settings:
        """How networks are timed afterwards: as budgets measure them."""
        batch = 1 if self.mode == "infer" else 100 if dataset == "mnist" else 50
        return Settings("columns", self.mode, batch, 1, "process_time", repeats=15 if self.quick else 101)

    def kept(self, name: str, make: Callable[[], Record]) -> Record:
        """The result ``name``: as kept, or made and kept."""
        path = self.out / f"{name}.json"
        if not path.exists():
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            found = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        return read_json(path)

    def train(self, name: str, condition: Condition, dataset: str, seed: int, *arguments: str) -> Record:
        """Exit status and summary of ``sparse-dnm train``, in the run directory ``out``/runs/``name``."""
        run = self.out / "runs" / name
        given = ["train", dataset, "--threads", "1", "--seed", str(seed), *arguments, "--out", str(run)]
        if dataset == "mnist":
            given += ["--data-dir", str(self.data_dir)]
        if self.quick:
            given += ["--steps", "300"]

        def make() -> Record:
            shutil.rmtree(run, ignore_errors=True)  # of an interrupted bench
            found = product(condition, given)
            summary = run / files.SUMMARY
            return {**found, "summary": read_json(summary) if summary.exists() else None}

        return self.kept(f"train/{name}", make)

    def budget(
        self, name: str, condition: Condition, dataset: str, seed: int, budget_us: float, *arguments: str
    ) -> Record:
        """A training with a budget."""
        infer = ["--set", "time_mode=infer", "--set", "time_batch=1"] if self.mode == "infer" else []
        return self.train(name, condition, dataset, seed, "--budget-us", f"{budget_us:g}", *infer, *arguments)


def product(condition: Condition, arguments: Sequence[str]) -> Record:
    """Run the command line in a condition: exit status, wall seconds, the end of what it said on stderr."""
    command = [sys.executable, "-m", "sparse_dnm", *arguments]
    with competing(condition):
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
            try:
                with limited(condition, child):
                    _, said = child.communicate()
            finally:
                if child.poll() is None:
                    child.kill()
        seconds = time.perf_counter() - start
    return {"command": command[1:], "rc": child.returncode, "seconds": seconds, "said": said[-TAIL:]}


def network(run: Path) -> Network:
    """The network of a run directory."""
    manifold, *_ = files.read_config(run)
    model = DynamicManifold(manifold)
    model.load_state_dict(files.load(run / files.CHECKPOINT).group("model"))
    return Network.of(model)


def spread(values: Sequence[float], form: str) -> str:
    """Median, smallest and largest."""
    if not values:
        return "none"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
