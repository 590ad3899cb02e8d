"""Tasks that need memory, by kind of neuron: python -m bench.memory_tasks [--quick] [--tasks ...] [--seeds 3].

Each task of `sparse_dnm.data.sequences` is trained with its preset, with each kind of neuron and, as ``memory``, with
usual neurons and a memory of the network (with tanh, as a memory of leaky ReLU grows from step to step).  ``truncated``
is the same with tbptt=1: no gradient reaches the outputs of the memory, which no objective names, so that they stay as
they were drawn.  ``none`` is the control: a network without any memory, which sees single time steps, the last one
where a sequence has one target.  Figures are those of the test, the mean squared error of adding and the accuracy of
the others, and where steps have labels also the share of the sequences all of whose steps are right, as the median over
the seeds with the least and the greatest.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
from typing import Any

import torch
from torch import Tensor

from sparse_dnm import DynamicManifold, Trainer
from sparse_dnm.data import Dataset, sequences
from sparse_dnm.presets import Preset, preset
from sparse_dnm.train.objective import within
from sparse_dnm.train.state import TrainingError

N_MEMORY = 8
MEMORY: dict[str, Any] = {
    "neuron": "memoryless",
    "n_memory": N_MEMORY,
    "activation": "tanh",
    "omega": (0.0, 0.3),
    "weight": (1.0, 0.0),
    "bias": (0.0, 0.0),
}
KINDS: dict[str, dict[str, Any]] = {  # changes of a preset's manifold, and tbptt of its training
    "none": {"neuron": "memoryless"},
    "memory": MEMORY,
    "truncated": {**MEMORY, "tbptt": 1},
    "ctrnn": {"neuron": "ctrnn"},
    "gru": {"neuron": "gru"},
    "lstm": {"neuron": "lstm"},
}


def single_steps(data: Dataset) -> Dataset:
    """The time steps that have a target as samples of their own."""

    def of(x: Tensor, y: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        steps = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
        if not data.per_step:
            return x[torch.arange(len(x)), steps - 1], y
        counts = within(steps, x.shape[1])
        return x[counts], y[counts]

    x, y = of(data.x_train, data.y_train, data.lengths_train)
    x_test, y_test = of(data.x_test, data.y_test, data.lengths_test)
    return Dataset(data.name, data.task, x, y, x_test, y_test, data.period, data.classes)


def trained(data: Dataset, settings: Preset, kind: str, seed: int, steps: int) -> dict[str, Any]:
    """The summary of a training with the neurons ``kind``, of as many hidden neurons as the preset has.

    Raises TrainingError where it diverges.
    """
    changes = dict(KINDS[kind])
    tbptt = changes.pop("tbptt", settings.train.tbptt)
    n_neurons = settings.manifold.n_neurons + 2 * changes.get("n_memory", 0)
    manifold = dataclasses.replace(settings.manifold, n_neurons=n_neurons, **changes)
    config = dataclasses.replace(settings.train, seed=seed, steps=steps, tbptt=tbptt)
    model = DynamicManifold(manifold, torch.Generator().manual_seed(seed), threads=1)
    if model.recurrent:
        return Trainer(model, data, config).run()
    summary = Trainer(model, single_steps(data), config).run()
    return summary | ({"test_sequence_accuracy": right_throughout(model, data)} if data.per_step else {})


def right_throughout(model: DynamicManifold, data: Dataset) -> float:
    """The share of the test sequences all of whose steps a network without memory has right."""
    n, time = data.y_test.shape
    steps = torch.full((n,), time) if data.lengths_test is None else data.lengths_test
    with torch.no_grad():
        right = model(data.x_test.flatten(0, 1)).argmax(1).reshape(n, time) == data.y_test
    return float((right | ~within(steps, time)).all(1).double().mean())


def cell(data: Dataset, settings: Preset, kind: str, seeds: int, steps: int) -> str:
    """The figures and the edges, and how many trainings diverged, which count in neither."""
    summaries = []
    for seed in range(seeds):
        with contextlib.suppress(TrainingError):
            summaries.append(trained(data, settings, kind, seed, steps))
    diverged = seeds - len(summaries)
    if not summaries:
        return f"{diverged} diverged"
    parts = []
    for name in ("test_mse", "test_accuracy", "test_sequence_accuracy"):
        if name in summaries[0]:
            found = sorted(summary[name] for summary in summaries)
            parts.append(f"{statistics.median(found):.4g} ({found[0]:.4g}–{found[-1]:.4g})")
    edges = statistics.median(summary["edges"] for summary in summaries)
    return f"{', '.join(parts)}, {edges:,.0f}" + (f", {diverged} diverged" if diverged else "")


def main() -> None:
    """Print the table, a row when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the steps: whether it runs, no figures")
    parser.add_argument("--tasks", nargs="*", choices=sequences.TASKS, default=list(sequences.TASKS))
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"Test figures, median of {options.seeds} seeds (least–greatest), and edges; memory: n_memory={N_MEMORY}.\n")
    print(f"| task | figures | steps | {' | '.join(options.kinds)} |")
    print("|---" * (3 + len(options.kinds)) + "|")
    for task in options.tasks:
        data, settings = sequences.TASKS[task](0), preset(task)
        steps = max(1, settings.train.steps // 100) if options.quick else settings.train.steps
        cells = [cell(data, settings, kind, options.seeds, steps) for kind in options.kinds]
        figure = "MSE" if data.task == "regression" else "accuracy, sequences" if data.per_step else "accuracy"
        print(f"| {task} | {figure} | {steps:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
