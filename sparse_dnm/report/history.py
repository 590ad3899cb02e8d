"""A training as read from its run directory: metrics as columns, structures, settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.io import UNFIT, CheckpointError, read_json
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.report.views import Fields, Image, Rows, along, image_shape, receptive_fields
from sparse_dnm.timing.cost_model import ON_TARGET
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train import example, snapshots
from sparse_dnm.train.snapshots import Snapshot

LOSS = ("loss", "objective", "flow", "speed", "memory")  # columns
QUARTILES = ("measured_low", "measured_high")  # columns: of the latest timed steps; runs of older versions lack them
Column = list[float | None]


@dataclass(frozen=True)
class Panel:
    """Curves with one unit: columns of metrics.jsonl against steps; ``band``: those between which one curve spreads."""

    title: str
    unit: str
    names: tuple[str, ...]
    logarithmic: bool
    band: tuple[str, str] | None = None

    @property
    def scale(self) -> float:
        """Factor from a column, in seconds, to the unit."""
        return 1e6 if self.unit == "µs" else 1.0

    def label(self, name: str) -> str:
        """A column's name in words."""
        return "time" if self.unit == "µs" else name.replace("_", " ")


@dataclass(frozen=True)
class History:
    """A run, read from its directory alone.

    metrics  columns of metrics.jsonl, None where a line lacks that figure; all as long as ``metrics["step"]``
    summary  of a finished run; otherwise empty
    steps    of the snapshots to show
    notes    what is missing or left out
    """

    path: Path
    manifold: ManifoldConfig
    train: TrainConfig
    data: dict[str, Any]
    metrics: dict[str, Column]
    summary: dict[str, Any]
    about: dict[str, str]
    steps: list[int]
    notes: list[str]

    @staticmethod
    def read(path: Path, most: int) -> History:
        """The run in ``path``, with at most ``most`` snapshots.

        Raises CheckpointError naming the file that is missing or damaged, and ValueError if ``most`` is below 2.
        """
        if most < 2:
            raise ValueError(f"frames={most} must be >= 2: the first snapshot and the last")
        if not path.is_dir():
            raise CheckpointError(f"{path} is no directory; name that of a training, as train prints it")
        manifold, train, _, data = files.read_config(path)
        _check_data(path, data, manifold)
        metrics, torn = _columns(path / files.METRICS)
        summary = read_json(path / files.SUMMARY) if (path / files.SUMMARY).exists() else {}
        known = snapshots.steps(path)
        shown = snapshots.spread(known, most)
        notes = []
        if torn:
            notes.append(f"{torn} damaged line{'s' * (torn > 1)} of {files.METRICS} left out")
        if not summary:
            last = int(metrics["step"][-1] or 0) if metrics["step"] else 0
            notes.append(f"the training is not finished: step {last:,} of {train.steps:,}")
        if not known:
            notes.append("no snapshots: the structure is that of the checkpoint")
        elif len(shown) < len(known):
            notes.append(f"{len(shown)} of {len(known)} snapshots shown, evenly spread")
        return History(path, manifold, train, data, metrics, summary, _about(path, summary), shown, notes)

    @property
    def task(self) -> str:
        """classification or regression."""
        return str(self.data["task"])

    @property
    def image(self) -> Image | None:
        """The shape of the data if they are images."""
        channels = self.data.get("channels", 1)
        return image_shape(self.manifold, channels if isinstance(channels, int) and channels > 0 else 1)

    @property
    def title(self) -> str:
        """The data set's name, without folders, and the run's."""
        return f"{Path(str(self.data['name'])).stem}: {self.path.resolve().name}"

    def structures(self) -> Iterator[Snapshot]:
        """The structure of every step shown; that of the checkpoint if there are no snapshots."""
        if not self.steps:
            yield self.trained()[1]
        for step in self.steps:
            yield snapshots.load(self.path, step, self.manifold)

    def last(self) -> Snapshot:
        """The last of `structures`."""
        return snapshots.load(self.path, self.steps[-1], self.manifold) if self.steps else self.trained()[1]

    def trained(self) -> tuple[DynamicManifold, Snapshot]:
        """The network of the checkpoint, and its structure."""
        path = self.path / files.CHECKPOINT
        saved = files.load(path)
        model = DynamicManifold(self.manifold)
        try:
            model.load_state_dict(saved.group("model"))
        except UNFIT as error:
            raise CheckpointError(f"{path} does not fit its run: {error}") from None
        early = saved.header.get("early_stopping")
        best = early.get("best_step") if isinstance(early, dict) else None
        step = best if isinstance(best, int) and best else files.step_of(path, saved)
        return model, Snapshot(step, model.topology, model.find().host_values.strengths)

    @property
    def time_against_density(self) -> tuple[list[float], list[float], list[float]]:
        """Step, density and seconds (`time_name`) of the lines of metrics that have all three."""
        rows = zip(*(self.metrics.get(name, []) for name in ("step", "density", self.time_name)), strict=False)
        known = [(a, b, c) for a, b, c in rows if a is not None and b and c]
        return [a for a, _, _ in known], [b for _, b, _ in known], [c for _, _, c in known]

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a column, where it has values."""
        pairs = zip(self.metrics["step"], self.metrics.get(name, []), strict=False)
        known = [(s, v) for s, v in pairs if s is not None and v is not None]
        return [s for s, _ in known], [v for _, v in known]

    @cached_property
    def fields(self) -> tuple[int, Fields, Fields] | None:
        """Step of the checkpoint, and receptive fields of its hidden neurons and outputs, if the data are images."""
        if self.image is None:
            return None
        model, structure = self.trained()
        return structure.step, *receptive_fields(model)

    @cached_property
    def along(self) -> tuple[str, list[Rows]] | None:
        """Of a recurrent network: which sequence it is shown along, in words, and what it computes there."""
        kept = example.load(self.path, self.manifold.n_inputs) if self.manifold.recurrent else None
        if kept is None:
            return None
        (x, split), (model, structure) = kept, self.trained()
        words = f"step {structure.step:,}; {len(x):,} time steps of the first sequence of the {split}"
        return words, along(model, x, list(self.data.get("classes") or []))

    def promised(self, name: str) -> float | None:
        """A figure of the summary; without a summary, the last value of the column."""
        found, values = _figure(self.summary.get(name)), self.column(name)[1]
        return found if found is not None else values[-1] if values else None

    @property
    def cut(self) -> str | None:
        """Validation accuracy, or R², before and after the cut to a budget, in words; None without a cut, and in the
        summaries of older versions."""
        before, after = (_figure(self.summary.get(f"validation_{when}")) for when in ("before", "after"))
        if before is None or after is None:
            return None
        name = "accuracy" if self.task == "classification" else "R²"
        return f"{name} {before:.2%} → {after:.2%}" if name == "accuracy" else f"{name} {before:.4g} → {after:.4g}"

    @property
    def figure_names(self) -> tuple[str, str]:
        """The columns of the figure of merit, on a training batch and on the test set."""
        kind = "accuracy" if self.task == "classification" else "mse"
        return f"train_{kind}", f"test_{kind}"

    @property
    def time_name(self) -> str:
        """The column of measured time: that of the loss or, if the loss has no clock, the wall time of updates."""
        return "measured_seconds" if self.column("measured_seconds")[0] else "step_seconds"

    @property
    def panels(self) -> list[Panel]:
        """The curves to show, without empty ones."""
        classification = self.task == "classification"
        measured = self.time_name == "measured_seconds" and all(self.column(name)[0] for name in QUARTILES)
        band, spread = (QUARTILES, ", median and quartiles") if measured else (None, "")
        wanted = [
            Panel("loss and its terms, before coefficients", "", LOSS, True),
            Panel("accuracy" if classification else "mean squared error", "", self.figure_names, not classification),
            Panel("edges", "", ("edges", "edges_goal"), True),
            Panel("density", "active / possible edges", ("density",), True),
            Panel("depth and live neurons", "", ("depth", "live"), True),
            Panel(f"time: {self.describe_time()}{spread}", "µs", (self.time_name,), True, band),
        ]
        return [panel for panel in wanted if any(any(self.column(name)[1]) for name in panel.names)]

    def curves(self, panel: Panel) -> dict[str, tuple[list[float], list[float]]]:
        """Steps and values of a panel's columns, by label, in its unit; without zeros if the axis is logarithmic."""
        found = {}
        for name in panel.names:
            pairs = [
                (s, panel.scale * v) for s, v in zip(*self.column(name), strict=True) if v > 0 or not panel.logarithmic
            ]
            if pairs:
                found[panel.label(name)] = ([s for s, _ in pairs], [v for _, v in pairs])
        return found

    def band(self, panel: Panel) -> tuple[list[float], list[float], list[float]] | None:
        """Steps, lower and upper values of a panel's band, in its unit, where the lines of metrics have both."""
        if panel.band is None:
            return None
        rows = zip(self.metrics["step"], *(self.metrics[name] for name in panel.band), strict=True)
        known = [(s, a, b) for s, a, b in rows if s is not None and a and b and a > 0]
        low, high = ([panel.scale * row[k] for row in known] for k in (1, 2))
        return [s for s, _, _ in known], low, high

    def describe_time(self) -> str:
        """What `time_name` measures, in words."""
        if self.time_name == "step_seconds":
            return "a whole update, wall (perf_counter), medians"
        train = self.train
        if train.on_target or self.summary.get("measured", {}).get("executor") == ON_TARGET:
            return "one sample as a program in C, on the target"
        kind = "forward + backward" if train.time_mode == "train" else "forward"
        batch = train.batch_size or "of all samples" if train.time_mode == "train" else train.time_batch
        return f"kernels' {kind}, batch {batch}, {train.clock}"


def _check_data(path: Path, data: dict[str, Any], manifold: ManifoldConfig) -> None:
    """Raise CheckpointError if the description of the data lacks what is shown."""
    classes = data.get("classes") or []
    problems = {
        "name": not isinstance(data.get("name"), str),
        "task": data.get("task") not in ("classification", "regression"),
        "classes": not isinstance(classes, list) or len(classes) not in (0, manifold.n_outputs),
    }
    for name, wrong in problems.items():
        if wrong:
            raise CheckpointError(f"{path / files.CONFIG}: {name}={data.get(name)!r} does not describe the run's data")


def _columns(path: Path) -> tuple[dict[str, Column], int]:
    """The columns of metrics.jsonl, and how many lines could not be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {path.parent} the directory of a run?") from None
    parsed = [_record(line) for line in lines]
    records = [record for record in parsed if record is not None]
    torn = len(parsed) - len(records)
    names = dict.fromkeys(["step", *(name for record in records for name in record)])
    return {name: [_figure(record.get(name)) for record in records] for name in names}, torn


def _record(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _figure(value: Any) -> float | None:
    """A number that has its place in float64, or None."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number and abs(value) <= sys.float_info.max else None


def _about(path: Path, summary: dict[str, Any]) -> dict[str, str]:
    """Machine and versions in words, from the summary, or else from the config (which lacks them in older runs)."""
    found = summary or read_json(path / files.CONFIG)
    machine, versions = (part if isinstance(part, dict) else {} for part in map(found.get, ("machine", "versions")))
    about = {}
    if machine:
        about["machine"] = f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('system')}"
    about.update({str(name).replace("_", "-"): str(version) for name, version in versions.items()})
    return about


def settings(history: History) -> dict[str, dict[str, str]]:
    """Every setting of the run as text, by group."""
    return {
        "Network": {name: _text(value) for name, value in asdict(history.manifold).items()},
        "Training": {name: _text(value) for name, value in asdict(history.train).items()},
        "Data": {name: _text(value) for name, value in history.data.items() if name != "sha256" and value != []},
    }


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
