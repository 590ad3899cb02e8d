"""Simulated against measured speed: train with each speed term, time the networks, say which term is better.

Every term is trained with several coefficients and seeds for the same number of steps.  The final networks are timed in
turns, in subprocesses.  Finished runs are kept on disk; a second call uses them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparse_dnm.config import ManifoldConfig, TrainConfig, check_choice
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.source import DataSource
from sparse_dnm.engine import device as backend
from sparse_dnm.io import read_json, write_json
from sparse_dnm.machine import machine, versions
from sparse_dnm.model.dense import DenseManifold
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.study.verdict import FLAT, Result, Verdict, judge
from sparse_dnm.timing.clock import Timing, interleave
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.subprocess import Network, time_in_subprocess
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.trainer import Interrupted, Trainer, one_torch_thread

TERMS = {  # the changes to a TrainConfig that each makes
    "none": {"speed": "none"},
    "proxy-flat": {"speed": "proxy", "proxy_gradient": "none"},  # the original's: reported, but without a gradient
    "proxy": {"speed": "proxy", "proxy_gradient": "straight-through"},
    "time": {"speed": "time"},
}
PAIRS = (("time", "proxy"), ("time", "none"), ("proxy", "none"))  # term and rival, judged if both are in the plan
RESULTS = "compare.json"
SNAPSHOTS = 12  # during a training, for time against density


@dataclass(frozen=True)
class Plan:
    """The networks to compare, and how they are timed."""

    terms: tuple[str, ...] = ("none", "proxy-flat", "proxy", "time")
    factors: tuple[float, ...] = (0.3, 1.0, 3.0)  # of the preset's coefficients
    seeds: int = 5
    timing: Settings = field(default_factory=Settings)  # how the final networks are timed

    def __post_init__(self) -> None:
        for term in self.terms:
            check_choice("terms", term, tuple(TERMS))
        if not self.terms or len(set(self.terms)) < len(self.terms):
            raise ValueError(f"terms={','.join(self.terms)!r} must name one term or more, each once")
        if not self.factors or not all(math.isfinite(f) and f > 0 for f in self.factors):
            raise ValueError(f"factors={self.factors} must be finite numbers > 0")
        if len(set(self.factors)) < len(self.factors):
            raise ValueError(f"factors={self.factors} must name each factor once")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be >= 1")

    def runs(self) -> list[tuple[str, float, int]]:
        """(term, factor, seed) of every training; seeds outermost, so that the first runs already make a comparison."""
        return [
            (term, factor, seed)
            for seed in range(self.seeds)
            for term in self.terms
            for factor in ((1.0,) if term in FLAT else self.factors)
        ]


def train_one(
    data: Dataset,
    manifold: ManifoldConfig,
    config: TrainConfig,
    source: DataSource | None,
    out: Path,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> tuple[dict[str, Any], Network]:
    """Summary and network of the run in ``out``, trained, resumed, or read if finished.

    Raises CheckpointError if ``out`` holds another run.
    """
    if (out / files.CONFIG).exists():
        trainer = Trainer.resume(out, data)
        same = asdict(trainer.config) == asdict(config) and asdict(trainer.model.config) == asdict(manifold)
        if not same:
            raise files.CheckpointError(
                f"{out} holds a run of other settings than this comparison's: choose another --out, or remove it"
            )
    else:
        generator = torch.Generator().manual_seed(config.seed)
        model = DynamicManifold(manifold, generator, executor=config.executor, threads=config.threads)
        trainer = Trainer(model, data, config, out, source)
    summary = read_json(out / files.SUMMARY) if trainer.finished else trainer.run(on_log)
    return summary, Network.of(trainer.model)


def run_name(term: str, factor: float, seed: int) -> str:
    """Name of a run, and of its directory."""
    return f"{term}-{factor:g}-{seed}"


def _settings(config: TrainConfig, term: str, factor: float, seed: int) -> TrainConfig:
    """``config`` with this speed term, ``factor`` times its coefficient, and this seed."""
    changes: dict[str, Any] = {**TERMS[term], "seed": seed}
    if term == "time":
        changes["time_coefficient"] = config.time_coefficient * factor
    else:
        changes |= {"profile": "", "proxy_coefficient": config.proxy_coefficient * factor}
    return replace(config, **changes)


def compare(
    data: Dataset, manifold: ManifoldConfig, config: TrainConfig, plan: Plan, out: Path,
    source: DataSource | None = None, on_run: Callable[[str], None] = lambda name: None,
) -> list[Result]:  # fmt: skip
    """Train and time every network of the plan; runs lie in ``out``/runs.  ``on_run`` is called with the name of each.

    Raises ValueError if ``config`` has a budget, which would steer the coefficients that are compared.
    """
    if config.budget_us:
        raise ValueError(f"budget_us={config.budget_us:g} steers the coefficient, and compare varies it: leave it out")
    summaries, networks = {}, {}
    for term, factor, seed in plan.runs():
        name = run_name(term, factor, seed)
        on_run(name)
        trained = _settings(config, term, factor, seed)
        try:
            summaries[name], networks[name] = train_one(
                data, replace(manifold, seed=seed), trained, source, out / "runs" / name
            )
        except Interrupted as stop:
            stop.args = (f"stopped in run {name}; the same command again continues from it",)
            raise
    on_run("timing in subprocesses")
    seconds = time_in_subprocess(networks, plan.timing)
    results = []
    for term, factor, seed in plan.runs():
        name = run_name(term, factor, seed)
        s, medians = summaries[name], np.median(seconds[name], axis=1)
        figure = s["test_accuracy"] if "test_accuracy" in s else s["test_mse"]
        middle, low, high = (float(f(medians)) for f in (np.median, np.min, np.max))
        results.append(Result(term, factor, seed, figure, s["edges"], s["depth"], s["live"], middle, low, high))
    return results


@dataclass(frozen=True)
class Snapshot:
    """The model after a number of steps: density, and seconds of the kernels of a training step, sparse and dense."""

    step: int
    density: float
    edges: int
    sparse: Timing
    dense: Timing


def along(
    data: Dataset, manifold: ManifoldConfig, config: TrainConfig, on_snapshot: Callable[[], None] = lambda: None
) -> list[Snapshot]:
    """Train, and at some steps time forward + backward of a batch with `DynamicManifold` and with `DenseManifold`.

    The figure of the paper of 2018.  Wall seconds; the dense network is the same one, computed as in 2018 but batched
    by level.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = DynamicManifold(manifold, generator, executor=config.executor, threads=config.threads)
    stops = np.unique(np.geomspace(1, max(config.steps, 1), SNAPSHOTS - 1).astype(int)).tolist()
    config = replace(config, log_every=1, checkpoint_every=max(config.steps, 1))
    device = backend.device_of(config.device)
    x = data.x_train[: config.batch_size].to(device)
    found: list[Snapshot] = []

    def time_both(record: dict[str, Any]) -> None:
        """Time both models at the steps in ``stops``."""
        if record["step"] not in (0, *stops):
            return
        dense = DenseManifold.from_manifold(model)
        copy = DynamicManifold(manifold, executor=config.executor, threads=config.threads)
        copy.load_state_dict(model.state_dict())

        def step(m: nn.Module) -> None:
            m(x).square().mean().backward()
            backend.wait_for(device)

        cases = {"sparse": partial(step, copy.to(device)), "dense": partial(step, dense)}
        with one_torch_thread():
            times = interleave(cases, repeats=15, budget_s=3.0)
        found.append(Snapshot(record["step"], record["density"], record["edges"], times["sparse"], times["dense"]))
        on_snapshot()

    Trainer(model, data, config).run(time_both)
    return found


@dataclass(frozen=True)
class Comparison:
    """All results of `study`."""

    title: str
    task: str  # "classification" or "regression"
    about: dict[str, Any]  # machine, versions, config
    timing: Settings
    results: list[Result]
    verdicts: list[Verdict]
    snapshots: list[Snapshot]

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "title": self.title,
            "task": self.task,
            **self.about,
            "timing": {name: value for name, value in asdict(self.timing).items() if name != "only"},
            "results": [asdict(r) for r in self.results],
            "verdicts": [asdict(v) for v in self.verdicts],
            "along": [asdict(s) for s in self.snapshots],
        }


def count_parts(plan: Plan) -> int:
    """Number of calls of ``on_part`` by `study`."""
    return len(plan.runs()) + 2


def study(
    data: Dataset, manifold: ManifoldConfig, config: TrainConfig, plan: Plan, out: Path,
    source: DataSource | None = None, on_part: Callable[[str], None] = lambda name: None,
) -> Comparison:  # fmt: skip
    """Train, time and judge all networks of the plan, and time a step during one training.

    Runs lie in ``out``/runs, all figures in ``out``/compare.json.  ``on_part`` is called with the name of each part
    when it begins.
    """
    results = compare(data, manifold, config, plan, out, source, on_part)
    on_part("time against density")
    snapshots = along(data, manifold, replace(config, budget_us=0.0, profile=""))
    found = Comparison(
        title=f"Simulated against measured speed: {Path(data.name).stem}",
        task=data.task,
        about={
            "machine": machine(backend.device_of(config.device)),
            "versions": versions(),
            "config": {"steps": config.steps, "dataset": data.name},
        },
        timing=plan.timing,
        results=results,
        verdicts=[judge(results, data.task, a, b) for a, b in PAIRS if {a, b} <= set(plan.terms)],
        snapshots=snapshots,
    )
    write_json(out / RESULTS, found.as_dict())
    return found
