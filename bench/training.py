"""Train the presets over several seeds and print their table: python -m bench.training --data-dir DATA_DIR.

Seeds are the outer loop, so that a slow phase of the machine affects every row.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

import torch

from sparse_dnm import DynamicManifold, Trainer, data
from sparse_dnm.machine import machine
from sparse_dnm.presets import PRESETS

ROWS = {"toy": "toy", "digits": "digits", "mnist": "mnist", "original-toy": "toy"}  # preset: data set


def spread(values: list[float], form: str) -> str:
    """Median, smallest and largest of ``values``."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Print one row per preset: median (smallest to largest) over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's IDX files; without it mnist is left out")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    rows = {name: dataset for name, dataset in ROWS.items() if options.data_dir or dataset != "mnist"}
    found: dict[str, list[dict]] = {name: [] for name in rows}
    for seed in range(options.seeds):
        for name, dataset in rows.items():
            preset = PRESETS[name]
            model = DynamicManifold(
                dataclasses.replace(preset.manifold, seed=seed), torch.Generator().manual_seed(seed)
            )
            config = dataclasses.replace(preset.train, seed=seed)
            found[name].append(Trainer(model, data.load(dataset, options.data_dir), config).run())
    print("| preset | steps | test figure | edges | density | training, s | step, ms |")
    print("|---|---|---|---|---|---|---|")
    for name, summaries in found.items():
        figure = "test_accuracy" if "test_accuracy" in summaries[0] else "test_mse"
        cells = [
            f"{name} | {summaries[0]['steps']:,}",
            f"{figure} {spread([s[figure] for s in summaries], '.4f' if figure == 'test_accuracy' else '.2g')}",
            spread([s["edges"] for s in summaries], ",.0f"),
            spread([s["density"] for s in summaries], ".1%"),
            spread([s["train_seconds"] for s in summaries], ".1f"),
            spread([1e3 * s["step_seconds"] for s in summaries], ".2f"),
        ]
        print(f"| {' | '.join(cells)} |")
    about = machine()
    print(f"\n{options.seeds} seeds; wall clock (perf_counter); {about['processor']}, {about['cores']} cores")


if __name__ == "__main__":
    main()
