"""Tasks that need memory, by kind of neuron: python -m bench.memory_tasks [--quick] [--tasks ...] [--seeds 3].

Each task of `sparse_dnm.data.sequences` is trained with its preset, with each kind of neuron and, as ``memory``, with
usual neurons and a memory of the network (with tanh, as a memory of leaky ReLU grows from step to step).  ``none`` is
the control: a network without any memory, which sees single time steps, the last one where a sequence has one target.
The figure is that of the test, the mean squared error of adding and the accuracy of the others, as the median over the
seeds with the least and the greatest.
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
KINDS: dict[str, dict[str, Any]] = {
    "none": {"neuron": "memoryless"},
    "memory": {
        "neuron": "memoryless",
        "n_memory": N_MEMORY,
        "activation": "tanh",
        "omega": (0.0, 0.3),
        "weight": (1.0, 0.0),
        "bias": (0.0, 0.0),
    },
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
    changes = KINDS[kind]
    n_neurons = settings.manifold.n_neurons + 2 * changes.get("n_memory", 0)
    manifold = dataclasses.replace(settings.manifold, n_neurons=n_neurons, **changes)
    config = dataclasses.replace(settings.train, seed=seed, steps=steps)
    model = DynamicManifold(manifold, torch.Generator().manual_seed(seed), threads=1)
    return Trainer(model, data if model.recurrent else single_steps(data), config).run()


def cell(data: Dataset, settings: Preset, kind: str, seeds: int, steps: int) -> str:
    """The figure and the edges, and how many trainings diverged, which count in neither."""
    summaries = []
    for seed in range(seeds):
        with contextlib.suppress(TrainingError):
            summaries.append(trained(data, settings, kind, seed, steps))
    diverged = seeds - len(summaries)
    if not summaries:
        return f"{diverged} diverged"
    name = "test_mse" if "test_mse" in summaries[0] else "test_accuracy"
    figures = sorted(summary[name] for summary in summaries)
    edges = statistics.median(summary["edges"] for summary in summaries)
    spread = f"{statistics.median(figures):.3g} ({figures[0]:.3g}–{figures[-1]:.3g}), {edges:,.0f}"
    return f"{spread}, {diverged} diverged" if diverged else spread


def main() -> None:
    """Print the table, a row when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the steps: whether it runs, no figures")
    parser.add_argument("--tasks", nargs="*", choices=sequences.TASKS, default=list(sequences.TASKS))
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"Test figure, median of {options.seeds} seeds (least–greatest), and edges; memory: n_memory={N_MEMORY}.\n")
    print(f"| task | figure | steps | {' | '.join(options.kinds)} |")
    print("|---" * (3 + len(options.kinds)) + "|")
    for task in options.tasks:
        data, settings = sequences.TASKS[task](0), preset(task)
        steps = max(1, settings.train.steps // 100) if options.quick else settings.train.steps
        cells = [cell(data, settings, kind, options.seeds, steps) for kind in options.kinds]
        figure = "MSE" if data.task == "regression" else "accuracy"
        print(f"| {task} | {figure} | {steps:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
