"""Descent: networks that a run with a budget passes on its way down, kept to fall back on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from sparse_dnm.io import make_directory
from sparse_dnm.loss.term import TimeTerm
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.checkpoint import Checkpoint
from sparse_dnm.train.state import Run
from sparse_dnm.train.validation import Validation

LEVELS = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0)  # times the budget at which a network is kept
NEAR = 1.35  # times the budget; what is lost from here on counts as lost in the cut
FOLDER = "descent"  # in the run directory


class Least(NamedTuple):
    """The fastest network on the way down that keeps what is asked for, fine-tuned and measured."""

    microseconds: float  # of a step, as it is promised
    points: float  # of validation
    step: int  # in which it was passed


class Descent:
    """Keeps a network whenever a step's time falls below one of LEVELS times the budget.

    ``best``: most validation points of the networks near the budget.
    """

    def __init__(self, run: Run, validation: Validation):
        self._run, self._validation = run, validation
        self._kept: dict[float, Checkpoint] = {}
        self._lowest = float("inf")  # level passed
        self._folder: Path | None = run.out and run.out / FOLDER
        if run.saved is not None and self._folder is not None:
            self._read(self._folder, run.step)

    def _read(self, folder: Path, step: int) -> None:
        """Take what the run had kept up to this step."""
        for path in sorted(folder.glob("*.safetensors")):
            found = files.load(path)
            if found.header["step"] <= step:
                self._kept[found.header["level"]] = found
        self._lowest = min(self._kept, default=self._lowest)

    @property
    def best(self) -> float:
        """Most validation points of the networks kept near the budget; -inf without any."""
        near = [kept.header["points"] for level, kept in self._kept.items() if level <= NEAR]
        return max(near, default=float("-inf"))

    def look(self, share: float) -> None:
        """Keep the present network if a step's time, ``share`` of the budget, has fallen below a level."""
        below = [level for level in LEVELS if share <= level < self._lowest]
        if not below:
            return
        run, level = self._run, min(below)
        self._lowest = level
        run.settle()
        header = {"level": level, "step": run.step, "points": self._validation.points(run.model)}
        tensors = {f"model/{name}": value.clone() for name, value in run.model.state_dict().items()}
        self._kept[level] = Checkpoint(tensors, header)
        if run.out is not None:
            self._folder = run.out / FOLDER
            make_directory(self._folder)
            files.save(self._folder / f"{level:g}.safetensors", self._kept[level])

    def least(self, points: float, term: TimeTerm) -> Least | None:
        """Fine-tune and measure the networks that were kept, the fastest first, until one has ``points`` of
        validation; None if none has."""
        run, model = self._run, self._run.model
        for _, kept in sorted(self._kept.items()):
            executor = model.executor
            copy = DynamicManifold(
                model.config, dtype=model.alpha.dtype, executor=executor.name, threads=executor.asked
            )
            copy.load_state_dict(kept.group("model"))
            run.fine_tune(copy.to(model.alpha.device))
            found = self._validation.points(copy)
            if found >= points:
                with term.confirming() as confirm:
                    return Least(confirm(copy).microseconds, found, kept.header["step"])
        return None

    def forget(self) -> None:
        """Remove what was kept: the run ended well."""
        self._kept.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
