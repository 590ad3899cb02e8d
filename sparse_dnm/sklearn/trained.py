"""A trained network and what belongs to it: for predictions, to train further, for pickles and for run directories."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor

from sparse_dnm.config import ManifoldConfig, TrainConfig, from_dict
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.io import UNFIT, CheckpointError, read_json, write_atomic, write_json
from sparse_dnm.machine import versions
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.sklearn import sequences
from sparse_dnm.sklearn.sequences import Sequences
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.checkpoint import Checkpoint
from sparse_dnm.train.lock import alone
from sparse_dnm.train.metrics import one_torch_thread, outputs_of

_lock = threading.RLock()  # a call keeps its evaluation in the model: one thread at a time


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass
class Trained:
    """A network, how it reads samples, and its training.

    moments      of the optimiser at the end of it, by parameter
    lines        of its log
    description  of the data that it was trained on
    """

    model: DynamicManifold
    preprocessing: Preprocessing
    train: TrainConfig
    moments: dict[str, Tensor]
    summary: dict[str, Any]
    lines: list[dict[str, Any]]
    description: dict[str, Any]

    def outputs(self, samples: Any, warned: list[str] | None = None) -> Tensor:
        """Outputs (n, n_outputs) of the network for raw samples, of `Sequences` at their ends; ``warned`` gets warnings
        about columns of them."""
        dtype, lengths = self.model.alpha.dtype, None
        if isinstance(samples, Sequences):
            inputs, lengths = sequences.inputs(self.preprocessing, samples, dtype, warned)
        else:
            inputs = self.preprocessing.inputs(samples, dtype, warned)
        with _lock, one_torch_thread():
            return outputs_of(self.model, inputs, lengths=lengths)

    def copy(self) -> DynamicManifold:
        """A network with the same parameters, slots and structure."""
        with _lock:
            return _network(self.model.config, self.model.state_dict(), self.train)

    # -- pickles ---------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Plain values and arrays, without classes of this package whose insides may change."""
        with _lock:
            state = {name: tensor.cpu().numpy().copy() for name, tensor in self.model.state_dict().items()}
        return {
            "manifold": dataclasses.asdict(self.model.config),
            "state": state,
            "preprocessing": self.preprocessing.to_json(),
            "train": dataclasses.asdict(self.train),
            "moments": {name: tensor.cpu().numpy().copy() for name, tensor in self.moments.items()},
            **{name: getattr(self, name) for name in ("summary", "lines", "description")},
        }

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.train = from_dict(TrainConfig, files.renewed(values["train"]))
        state = {name: torch.tensor(array) for name, array in values["state"].items()}
        self.model = _network(from_dict(ManifoldConfig, values["manifold"]), state, self.train)
        self.preprocessing = Preprocessing.from_json(values["preprocessing"])
        self.moments = {name: torch.tensor(array) for name, array in values["moments"].items()}
        self.summary, self.lines, self.description = (values[name] for name in ("summary", "lines", "description"))

    # -- run directories -------------------------------------------------------------------------------------

    def save(self, out: Path, estimator: dict[str, Any]) -> None:
        """Write the files of a finished run; ``estimator``: JSON values, kept beside them.

        Raises ValueError if ``out`` holds a run already.
        """
        with alone(out):
            self._write(out, estimator)

    def _write(self, out: Path, estimator: dict[str, Any]) -> None:
        model, device = self.model, self.model.alpha.device
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        about = {
            "step": self.summary["steps"],
            **{name: self.summary[name] for name in ("train_seconds", "step_seconds")},
            "manifold": dataclasses.asdict(model.config),
            "train": dataclasses.asdict(self.train),
            "data": self.description,
            "versions": versions(),
        }
        files.save(out / files.CHECKPOINT, Checkpoint({**tensors, **self.moments}, about))
        files.write_config(out, model.config, self.train, None, self.description, device, self.preprocessing)
        write_json(out / files.CONFIG, {**read_json(out / files.CONFIG), "estimator": estimator})
        write_atomic(out / files.METRICS, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        write_json(out / files.SUMMARY, self.summary)

    @classmethod
    def load(cls, run: Path) -> tuple[Trained, dict[str, Any] | None]:
        """The network of a run directory, and what `save` kept beside it; None if the run is of a command.

        Raises CheckpointError naming the file and what is wrong in it.
        """
        manifold, train, _, description = files.read_config(run)
        preprocessing = files.read_preprocessing(run)
        if preprocessing is None:
            raise CheckpointError(
                f"{run / files.CONFIG} does not say how samples become inputs: the run is of an earlier version; "
                "train again"
            )
        saved = files.load(run / files.CHECKPOINT)
        moments = {name: tensor for name, tensor in saved.tensors.items() if name.startswith("optimizer/")}
        try:
            model = _network(manifold, saved.group("model"), train)
        except UNFIT as error:
            raise CheckpointError(f"{run / files.CHECKPOINT} does not fit its run: {error}") from None
        summary: dict[str, Any] = {"steps": saved.header.get("step", 0), "train_seconds": 0.0, "step_seconds": None}
        if (run / files.SUMMARY).exists():
            summary = read_json(run / files.SUMMARY)
        made = cls(model, preprocessing, train, moments, summary, _lines_in(run / files.METRICS), description)
        return made, read_json(run / files.CONFIG).get("estimator")


def _network(manifold: ManifoldConfig, state: dict[str, Tensor], train: TrainConfig) -> DynamicManifold:
    """The network of a state, on the CPU and on no more threads than there are."""
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    dtype, threads = state["alpha"].dtype, min(train.threads, most)
    model = DynamicManifold(manifold, dtype=dtype, executor=train.executor, threads=threads, device="cpu")
    model.load_state_dict(state)
    return model


def _lines_in(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; none if there is no file."""
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # an incomplete last one
            lines.append(json.loads(line))
    return lines
