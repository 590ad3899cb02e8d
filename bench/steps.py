"""The seed graph's kernels against their floors, and the training step taken apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from bench.limits import Floor, bandwidth, floors, peak
from bench.peers import BLOCK, Cases, on, propagate_calls, seed_model
from bench.replay import Call, recording, replay
from bench.targets import Found
from sparse_dnm import (
    DenseManifold,
    DynamicManifold,
    ManifoldConfig,
    Schedule,
    SparseDAG,
    Topology,
    TrainConfig,
    Trainer,
)
from sparse_dnm.data.built_in import DIGITS
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine.device import kernels, use_threads
from sparse_dnm.engine.schedule import tile_width
from sparse_dnm.presets import PRESETS
from sparse_dnm.timing.clock import Timing, interleave
from sparse_dnm.train.trainer import one_torch_thread

KERNELS = kernels(torch.device("cpu"))
NEVER = 10**9  # steps
WARM = 0.05  # seconds a case runs on end: a step follows its own like, as in training, not DenseManifold's matrices
ADAM = "Adam"
SETTLED = 30  # steps after which kernels are compiled and "auto" has chosen
UPDATES = 50  # steps of training that are timed together, as many follow each other by one call of compiled code


def executed_edges(topology: Topology) -> int:
    """Edges that run: those of live readers."""
    return int(np.diff(topology.indptr)[topology.live].sum())


def row(name: str, timing: Timing, floor: Floor | None = None) -> str:
    """A line of a table in microseconds, with the percentage of the floor."""
    share = "" if floor is None else f"{1e6 * floor.seconds:.1f} ({floor.kind}) | {floor.seconds / timing.median:.0%}"
    return (
        f"| {name} | {1e6 * timing.median:,.1f} | {1e6 * timing.low:,.1f}–{1e6 * timing.high:,.1f} | {share or ' | '} |"
    )


HEAD = ["| | median, µs | quartiles, µs | floor, µs | floor / time |", "|---|---|---|---|---|"]


def floor_section(quick: bool, found: Found) -> list[str]:
    """Forward and forward + backward kernels of the seed graph, one thread, by batch."""
    out = ["One thread.  " + (limits_text()), "", *HEAD]
    for batch in (64,) if quick else (8, 64, 256):
        dag, x = seed_dag(batch, 1)
        cases: Cases = {name: replay(calls) for name, calls in propagate_calls(dag, x).items()}
        width = tile_width(batch)
        least = floors(executed_edges(dag.topology), dag.topology.n_neurons, batch, width)
        timings = interleave(cases, 30 if quick else 300, shortest_s=BLOCK)
        for name, timing in timings.items():
            out.append(row(f"{name}, batch {batch}, tiles of {width}", timing, least[name]))
            if batch == 64:
                found.floor_share[name] = least[name].seconds / timing.median
                found.floor_s[name] = least[name].seconds
    return out


def limits_text() -> str:
    """The formulas of the floors, as bench.limits has them."""
    return (
        "Floors: forward reads 4·edges·batch bytes and computes 2·edges·batch flops, backward 4·edges·batch and "
        "4·edges·batch; each is divided by the read bandwidth of a buffer of 4·neurons·width bytes "
        f"({bandwidth(4 * 1000 * 64) / 1e9:.0f} GB/s at width 64) or by the multiply-add peak "
        f"({peak() / 1e9:.0f} GFLOP/s), and the larger counts; forward + backward is the sum of the two."
    )


def seed_dag(batch: int, threads: int) -> tuple[SparseDAG, torch.Tensor]:
    """The seed graph as a SparseDAG, settled, and inputs."""
    model = seed_model(threads)
    dag = SparseDAG(model.topology, model.strengths, executor="columns", threads=threads)
    x = torch.randn(batch, 784, generator=torch.Generator().manual_seed(1))
    return dag, x


def random_digits(n: int, manifold: ManifoldConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and labels of as many inputs and outputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, manifold.n_inputs, generator=generator)
    return x, torch.randint(manifold.n_outputs, (n,), generator=generator)


def make_trainer(manifold: ManifoldConfig, train: TrainConfig, settled: int = SETTLED) -> Trainer:
    """A training on random images that has made some steps and never ends, a model of seed 0."""
    x, y = random_digits(5000, manifold)
    data = Dataset("random images", "classification", x, y, x[:10], y[:10], manifold.period,
                   DIGITS[: manifold.n_outputs])  # fmt: skip
    config = replace(train, steps=NEVER, log_every=NEVER, checkpoint_every=NEVER)
    model = DynamicManifold(
        manifold, torch.Generator().manual_seed(0), executor=config.executor, threads=config.threads
    )
    trainer = Trainer(model, data, config)
    trainer._prepare()
    trainer._choose_step()
    with one_torch_thread():
        for _ in range(settled):
            trainer._advance()
    return trainer


def dense_step(dense: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """A training step of a dense network: cross entropy, backward, Adam."""
    optimizer = torch.optim.Adam(dense.parameters(), lr=0.002, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (1e3 * cross_entropy(dense(x), y)).backward()
        optimizer.step()

    return step


def step_section(quick: bool, found: Found, dense_too: bool = True) -> list[str]:
    """The whole step against its parts and, ``dense_too``, against DenseManifold's."""
    cases: Cases = {}
    preset = PRESETS["original-mnist"]
    parts: list[Call] = []
    recorded = 0
    trainers = []
    for threads in (1, 2):
        trainer = make_trainer(preset.manifold, replace(preset.train, threads=threads))
        cases[f"whole step, {threads} threads"] = on(1, advancing(trainer, threads))
        trainers.append(trainer)
        with recording() as calls:
            trainer._advance()
        passes = [c for c in calls if c.name.startswith(("forward", "backward", "add_tiles"))]
        cases[f"its forward + backward kernels, {threads} threads"] = replay(passes)
        if threads == 1:
            parts, recorded = calls, trainer.model.topology.n_edges
            cases.update(other_parts(trainer.model))
    names = dict.fromkeys(call.name for call in parts)
    cases.update({f"kernel {name}": replay([c for c in parts if c.name == name]) for name in names})
    x, y = random_digits(50, preset.manifold)
    for method in () if not dense_too else ("levels",) if quick else ("levels", "neurons"):
        dense = DenseManifold.from_manifold(seed_model(1), method)
        cases[f"DenseManifold {method}, whole step, 2 threads"] = on(2, dense_step(dense, x, y))
    timings = interleave(cases, 10 if quick else 50, budget_s=5 if quick else 60 if dense_too else 30, shortest_s=WARM)
    for name in timings:
        if name.startswith("whole step"):
            t = timings[name]
            timings[name] = replace(t, median=t.median / UPDATES, low=t.low / UPDATES, high=t.high / UPDATES)
    edges = [trainer.model.topology.n_edges for trainer in trainers]
    found.steps = {name: timing.median for name, timing in timings.items()}
    found.parts_s = sum(seconds for name, seconds in found.steps.items() if name.startswith(("kernel ", ADAM)))
    note = (
        "Random images; the step is the trainer's own, so the structure changes as it trains "
        f"({recorded:,} edges when the parts were recorded, {edges[0]:,} and {edges[1]:,} at the end).  "
        "Parts on one thread; a kernel that is called several times counts once."
    )
    return [note, "", *HEAD, *(row(name, timing) for name, timing in timings.items())]


def other_parts(model: DynamicManifold) -> Cases:
    """Structure update after a change, and Adam: what a step takes besides its kernels."""
    t = model.topology

    def structure() -> object:
        return Schedule(Topology(t.indptr, t.indices, t.inputs, t.outputs))

    arrays = [[np.zeros(p.numel(), np.float32) for _ in range(4)] for p in model.parameters()]

    def adam() -> None:
        for each in arrays:
            KERNELS.adam(*each, 1e-6, 0.9, 0.999, 1.0, 1e-8)

    return {"structure update (Topology and Schedule)": structure, ADAM: adam}


def advancing(trainer: Trainer, threads: int) -> Callable[[], object]:
    """UPDATES updates of the trainer, as Trainer.run makes them, on as many threads."""

    def advance() -> None:
        last = trainer.step + UPDATES
        with use_threads(threads):
            while trainer.step < last:
                trainer._advance_or_say_why(False)

    return advance
