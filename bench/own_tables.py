"""Estimators with default arguments on public tables, ours and scikit-learn's: python -m bench.own_tables
[--quick] [--seeds N].

Each table is split anew for every seed, a quarter is held out, and all methods get the same inputs: numbers
standardised, text one-hot.  MLPRegressor is also given standardised targets, which its default does not do; the better
of both counts.  In tables of at most 1,000 rows our estimators take all rows in each step; there the settings of
`sparse-dnm train`, which takes batches, are shown as well.  One thread each; CPU seconds of fit, in turns, kernels
compiled before.
Needs the packages of `pip install sparse-dnm[bench]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from bench.public_tables import REPORTED, Table, encoder
from sparse_dnm import DynamicManifold, Trainer
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.machine import machine
from sparse_dnm.presets import preset_for
from sparse_dnm.sklearn import ManifoldClassifier, ManifoldRegressor
from sparse_dnm.sklearn.settings import FULL_BATCH

FIRST_SEED = 100  # splits that nobody looked at while the settings were chosen
QUICK = ("wine", "german", "diabetes", "auto")


class Split(NamedTuple):
    """Inputs and targets of a table: text labels as numbers 0, 1, .."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class Fit(NamedTuple):
    """Score (accuracy or R²), balanced accuracy (R² again), CPU seconds, and weights or edges at the end."""

    score: float
    balanced: float
    seconds: float
    size: int


Predict = Callable[[np.ndarray], np.ndarray]


def split(table: Table, seed: int) -> Split:
    """A random quarter held out, stratified where there are classes."""
    x, y = table.load()
    classes = table.task == "classification"
    target = np.unique(y.to_numpy().astype(str), return_inverse=True)[1] if classes else y.to_numpy().astype(float)
    train, test, y_train, y_test = train_test_split(
        x, target, test_size=0.25, random_state=seed, stratify=target if classes else None
    )
    encode = encoder(train).fit(train)
    inputs = (np.asarray(encode.transform(part), dtype=np.float32) for part in (train, test))
    return Split(next(inputs), y_train, next(inputs), y_test)


def estimator(table: Table, s: Split, seed: int) -> tuple[Predict, int]:
    """Ours."""
    kind = ManifoldClassifier if table.task == "classification" else ManifoldRegressor
    found = kind(random_state=seed, n_jobs=1).fit(s.x, s.y)
    return found.predict, found.model_.n_edges


def train(table: Table, s: Split, seed: int) -> tuple[Predict, int]:
    """Settings of `preset_for`, without a term for speed."""
    x = torch.from_numpy(s.x)
    changes: dict[str, Any]
    if table.task == "classification":
        names, y = tuple(str(k) for k in range(int(s.y.max()) + 1)), torch.from_numpy(s.y)
        scale, changes = (0.0, 1.0), {"classes": names}
    else:
        scale = float(s.y.mean()), float(s.y.std())
        y = torch.from_numpy((s.y - scale[0]) / scale[1]).float()[:, None]
        changes = {"target_mean": torch.tensor([scale[0]]), "target_std": torch.tensor([scale[1]])}
    data = Dataset(table.name, table.task, x, y, x[:2], y[:2], float(x.shape[1]), **changes)
    preset = preset_for(data)
    config = dataclasses.replace(
        preset.train, seed=seed, speed="none", threads=1, executor="columns",
        log_every=preset.train.steps, checkpoint_every=preset.train.steps,
    )  # fmt: skip
    shape = dataclasses.replace(preset.manifold, seed=seed)
    model = DynamicManifold(shape, torch.Generator().manual_seed(seed), executor="columns", threads=1)
    Trainer(model, data, config).run()

    def predict(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            outputs = model(torch.from_numpy(rows))
        return (outputs.argmax(1) if table.task == "classification" else outputs[:, 0] * scale[1] + scale[0]).numpy()

    return predict, model.n_edges


def mlp(table: Table, s: Split, seed: int, standardised: bool = False) -> tuple[Predict, int]:
    """scikit-learn's default; ``standardised``: the targets of a regression, too."""
    if table.task == "classification":
        found: Any = MLPClassifier(random_state=seed).fit(s.x, s.y)
        net = found
    elif standardised:
        found = TransformedTargetRegressor(MLPRegressor(random_state=seed), transformer=StandardScaler()).fit(s.x, s.y)
        net = found.regressor_
    else:
        found = net = MLPRegressor(random_state=seed).fit(s.x, s.y)
    return found.predict, sum(w.size for w in net.coefs_)


def boosting(table: Table, s: Split, seed: int) -> tuple[Predict, int]:
    """scikit-learn's default."""
    kind = HistGradientBoostingClassifier if table.task == "classification" else HistGradientBoostingRegressor
    return kind(random_state=seed).fit(s.x, s.y).predict, 0


METHODS: dict[str, Callable[[Table, Split, int], tuple[Predict, int]]] = {
    "manifold": estimator,
    "train": train,
    "MLP": mlp,
    "MLP, targets standardised": lambda table, s, seed: mlp(table, s, seed, standardised=True),
    "HistGradientBoosting": boosting,
}


def fit(method: str, table: Table, s: Split, seed: int) -> Fit:
    """Fit, and score on what was held out."""
    start = time.process_time()
    predict, size = METHODS[method](table, s, seed)
    seconds = time.process_time() - start
    found = predict(s.x_test)
    if table.task == "classification":
        right = float(np.mean(found == s.y_test))
        return Fit(right, float(balanced_accuracy_score(s.y_test, found)), seconds, size)
    r2 = 1 - float(np.sum((found - s.y_test) ** 2) / np.sum((s.y_test - s.y_test.mean()) ** 2))
    return Fit(r2, r2, seconds, size)


class Row(NamedTuple):
    """A line of the table, and what the last lines count."""

    text: str
    by_mean: bool
    within_error: bool
    in_time: bool


def compared(table: Table, seeds: range) -> Row:
    """All methods on all seeds, in turns."""
    methods = [m for m in METHODS if table.task == "regression" or "targets" not in m]
    if len(split(table, seeds[0]).x) > FULL_BATCH:
        methods.remove("train")  # the same
    found: dict[str, list[Fit]] = {m: [] for m in methods}
    for seed in seeds:
        s = split(table, seed)
        for m in methods:
            found[m].append(fit(m, table, s, seed))
    rival = max((m for m in methods if m.startswith("MLP")), key=lambda m: statistics.mean(f.score for f in found[m]))
    ours, other, trees = found["manifold"], found[rival], found["HistGradientBoosting"]
    gains = [a.score - b.score for a, b in zip(ours, other, strict=True)]
    gain, error = statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    ratio = statistics.median(a.seconds / b.seconds for a, b in zip(ours, other, strict=True))
    cells = [table.name + (", R²" if table.task == "regression" else ""), f"{len(s.x):,} × {s.x.shape[1]}"]
    for fits in (ours, other, trees, found.get("train", [])):
        if not fits:
            cells.append("")
            continue
        scores = [100 * f.score for f in fits]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        cells.append(f"{statistics.mean(scores):.1f} ± {spread:.1f}")
    cells.append(f"{100 * gain:+.1f} ± {100 * error:.1f}")
    balanced = [statistics.mean(100 * f.balanced for f in fits) for fits in (ours, other, trees)]
    cells.append("" if table.task == "regression" else " / ".join(f"{b:.1f}" for b in balanced))
    tree_ratio = statistics.median(a.seconds / b.seconds for a, b in zip(trees, other, strict=True))
    cells += [f"{ratio:.2f}", f"{statistics.mean(f.seconds for f in other):.2f}", f"{tree_ratio:.2f}"]
    cells += [f"{statistics.mean(f.size for f in ours):,.0f}", f"{statistics.mean(f.size for f in other):,.0f}"]
    return Row(f"| {' | '.join(cells)} |", gain >= 0, gain >= -error, ratio <= 2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four small tables")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tables", help="names, separated by commas")
    options = parser.parse_args()
    names = options.tables.split(",") if options.tables else QUICK if options.quick else list(REPORTED)
    warnings.filterwarnings("ignore")  # of MLPs that have not converged
    torch.set_num_threads(1)
    threadpool_limits(1)
    for name in QUICK[1:3]:  # compile the kernels
        for method in ("manifold", "train"):
            fit(method, REPORTED[name], split(REPORTED[name], 0), 0)
    about = machine()
    print(f"{about['processor']}; one thread each; {options.seeds} splits a table, a quarter held out; percent, mean ± "
          "deviation over the splits; gain over the MLP ± its paired standard error; balanced accuracy: manifold / MLP "
          "/ HistGradientBoosting; CPU seconds of fit, ours over those of the MLP (median)\n", flush=True)  # fmt: skip
    head = ["table", "rows × inputs", "manifold", "MLP", "HistGradientBoosting", "sparse-dnm train", "gain"]
    head += ["balanced accuracy", "time / MLP's", "MLP, s", "HGB's time / MLP's", "edges", "MLP's weights"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    rows = []
    for name in names:
        rows.append(compared(REPORTED[name], range(FIRST_SEED, FIRST_SEED + options.seeds)))
        print(rows[-1].text, flush=True)
    n = len(rows)
    print(f"\nNot worse than the MLP by mean on {sum(r.by_mean for r in rows)} of {n} tables, within the paired "
          f"standard error on {sum(r.within_error for r in rows)} of {n}; in at most twice its time on "
          f"{sum(r.in_time for r in rows)} of {n}.")  # fmt: skip


if __name__ == "__main__":
    main()
