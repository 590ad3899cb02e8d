"""Simulated against measured speed: train with each speed term, time the networks, say which term is better.

Every term is trained with several coefficients and seeds for the same number of steps.  The final networks are timed in
turns, in subprocesses.  Finished runs are kept on disk; a second call uses them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.source import DataSource
from sparse_dnm.engine import device as backend
from sparse_dnm.io import write_json
from sparse_dnm.machine import machine, versions
from sparse_dnm.model.dense import DenseManifold
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.study.fastest import exported, time_exported, time_fastest
from sparse_dnm.study.jobs import Job, OnStep, train_in_parallel, train_one
from sparse_dnm.study.plan import GOALS, TERMS, Plan, has_clock, run_name, settings_of, without_target
from sparse_dnm.study.verdict import Result, Verdict, judge, judge_at_equal_time
from sparse_dnm.timing.clock import Timing, interleave
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.subprocess import Network
from sparse_dnm.train.trainer import Trainer, one_torch_thread

__all__ = ["TERMS", "Comparison", "Plan", "Snapshot", "along", "compare", "count_parts", "judge", "study"]
PAIRS = (("time", "proxy"), ("time", "none"), ("proxy", "none"))  # term and rival, judged if both are in the plan
RESULTS = "compare.json"
SNAPSHOTS = 12  # during a training, for time against density


@dataclass(frozen=True)
class Jobs:
    """How many trainings run at a time.

    Those whose loss contains a clock come last, and by default one after the other: each would change what the others
    measure, although every measurement is relative to a reference beside it.
    """

    free: int = 1  # trainings without a clock
    clocked: int = 1  # trainings whose loss contains a clock

    def __post_init__(self) -> None:
        for name in ("free", "clocked"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} trainings at a time must be >= 1")


def jobs_of(
    manifold: ManifoldConfig, config: TrainConfig, plan: Plan, out: Path, source: DataSource | None = None
) -> dict[str, Job]:
    """The trainings of a plan, by name.  Raises ValueError if ``config`` has a goal, which terms have of their own, or
    if networks are recurrent."""
    refuse_recurrent(manifold, "compare")
    if config.budget_bytes:
        raise ValueError(
            f"budget_bytes={config.budget_bytes} steers the coefficient, and compare varies it: leave it out"
        )
    for term, name in GOALS.items():
        if getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name):g} steers the coefficient, and compare varies it: leave it out, or "
                f"compare goals by the term {term}"
            )
    found = {}
    for term, level, seed in plan.runs():
        name = run_name(term, level, seed)
        trained = settings_of(config, term, level, seed)
        found[name] = Job(name, replace(manifold, seed=seed), trained, source, out / "runs" / name)
    return found


def compare(
    data: Dataset, manifold: ManifoldConfig, config: TrainConfig, plan: Plan, out: Path,
    source: DataSource | None = None, on_run: Callable[[str], None] = lambda name: None, at_once: Jobs | None = None,
    on_step: OnStep = lambda name, step: None,
) -> list[Result]:  # fmt: skip
    """Train and time every network of the plan; runs lie in ``out``/runs.

    ``on_run`` is called with the name of each, ``on_step`` with a name and the steps made, -1 at its end.
    Where several are trained at a time, each without a clock in its loss has one thread; that changes no bit.
    Raises ValueError if ``config`` has a goal, CheckpointError if ``out`` holds other runs, Interrupted after a signal,
    and what a training raises; all name the run.
    """
    jobs, at_once = jobs_of(manifold, config, plan, out, source), at_once or Jobs()
    for job in jobs.values():
        job.check()  # before anything is trained
    begun: set[str] = set()

    def begin(name: str) -> None:
        begun.add(name)
        on_run(name)

    clocked = {name: job for name, job in jobs.items() if has_clock(job.config)}
    if at_once.free > 1:
        free = [replace(job, config=replace(job.config, threads=1)) for n, job in jobs.items() if n not in clocked]
        train_in_parallel(data, free, at_once.free, begin, on_step)
    if at_once.clocked > 1:
        train_in_parallel(data, list(clocked.values()), at_once.clocked, begin, on_step)
    summaries, networks = {}, {}
    for name, job in jobs.items():
        if name not in begun:
            begin(name)
        summaries[name], networks[name] = train_one(data, job, on_step, Network.of if plan.target is None else exported)
        on_step(name, -1)
    if plan.target is None:
        on_run("timing in subprocesses")
        timed = time_fastest(networks, plan.timing, plan.timed_by)
    else:
        on_run("timing on the target")
        timed = time_exported(networks, plan.target)
    results = []
    for term, level, seed in plan.runs():
        name = run_name(term, level, seed)
        s, t = summaries[name], timed[name]
        figure = s["test_accuracy"] if "test_accuracy" in s else s["test_mse"]
        middle, low, high = (float(f(t.seconds)) for f in (np.median, np.min, np.max))
        size = s["edges"], s["depth"], s["live"]
        results.append(Result(term, level, seed, figure, *size, middle, low, high, t.executor))
    return results


def verdicts(results: list[Result], task: str, terms: tuple[str, ...]) -> list[Verdict]:
    """The verdicts on all pairs of terms that are there."""
    found = [judge(results, task, a, b) for a, b in PAIRS if {a, b} <= set(terms)]
    if set(GOALS) <= set(terms):
        found.append(judge_at_equal_time(results, task))
    return found


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
    x = data.x_train[: config.batch_size or None].to(device)
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
    executors: tuple[str, ...]  # that networks were timed with; the fastest for each counts
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
            "executors": list(self.executors),
            "results": [asdict(r) for r in self.results],
            "verdicts": [asdict(v) for v in self.verdicts],
            "along": [asdict(s) for s in self.snapshots],
        }


def count_parts(plan: Plan) -> int:
    """Number of calls of ``on_part`` by `study`."""
    return len(plan.runs()) + 2


def study(
    data: Dataset, manifold: ManifoldConfig, config: TrainConfig, plan: Plan, out: Path,
    source: DataSource | None = None, on_part: Callable[[str], None] = lambda name: None, at_once: Jobs | None = None,
    on_step: OnStep = lambda name, step: None,
) -> Comparison:  # fmt: skip
    """Train, time and judge all networks of the plan, and time a step during one training.

    Runs lie in ``out``/runs, all figures in ``out``/compare.json.  ``on_part`` is called with the name of each part
    when it begins, ``on_step`` as by `compare`, and trainings run ``at_once``.
    """
    results = compare(data, manifold, config, plan, out, source, on_part, at_once, on_step)
    on_part("time against density")
    snapshots = along(data, manifold, replace(without_target(config), budget_us=0.0, profile=""))
    found = Comparison(
        title=f"Simulated against measured speed: {Path(data.name).stem}",
        task=data.task,
        about={
            "machine": machine(backend.device_of(config.device)),
            "versions": versions(),
            "config": {"steps": config.steps, "dataset": data.name},
        },
        timing=plan.timing,
        executors=plan.timed_by,
        results=results,
        verdicts=verdicts(results, data.task, plan.terms),
        snapshots=snapshots,
    )
    write_json(out / RESULTS, found.as_dict())
    return found
