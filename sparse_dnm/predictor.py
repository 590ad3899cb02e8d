"""Predictions for new samples from a run directory alone: no training data, no pickle."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import torch

from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.implied import implied
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.data.source import DataSource
from sparse_dnm.engine import device as backend
from sparse_dnm.io import UNFIT, CheckpointError
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.sample_predictor import Predictor
from sparse_dnm.sequence_predictor import SequencePredictor, steps_of
from sparse_dnm.train import checkpoint as files

__all__ = ["Predictor", "SequencePredictor", "load", "read"]


def load(
    run: str | Path, *, data: Dataset | None = None, data_dir: str | Path | None = None,
    device: torch.device | str = "cpu", threads: int = 0,
) -> Predictor:  # fmt: skip
    """The network of the run directory ``run`` as a Predictor; a recurrent one as a SequencePredictor.

    The directory is all that is needed.  Only a run of an earlier version, which did not keep its preprocessing, needs
    its data once, where they were then, in ``data_dir``, or as ``data``; then its config.json keeps it.
    device   where the network runs
    threads  of the kernels; 0: as many as are fastest
    Warns if the training is not finished.  Raises CheckpointError naming a file that is missing or damaged.
    """
    found = read(Path(run).expanduser(), data, None if data_dir is None else Path(data_dir), device, threads)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return found


def read(
    run: Path, data: Dataset | None = None, data_dir: Path | None = None, device: torch.device | str = "cpu",
    threads: int = 0,
) -> Predictor:  # fmt: skip
    """As `load`, without warnings."""
    if run.is_file():
        raise CheckpointError(f"{run} is a file, not a run directory; name the folder that a training wrote")
    manifold, train, source, description, saved = files.read_run(run)
    preprocessing, notes = _preprocessing(run, data, source and _moved(source, data_dir), description)
    state, place = saved.group("model"), backend.device_of(str(device))
    try:
        model = DynamicManifold(manifold, dtype=state["alpha"].dtype, threads=threads)
        model.load_state_dict(state)
        dag = model.to(place).to_dag()
    except UNFIT as error:
        raise CheckpointError(f"{run / files.CHECKPOINT} does not fit its run: {error}") from None
    if not (run / files.SUMMARY).exists():
        notes.append(
            f"the training of {run} is not finished: predictions are those of its checkpoint, step "
            f"{saved.header['step']:,} of {train.steps:,}"
        )
    about = preprocessing, tuple(notes), None if source is None else source.reading.header
    if manifold.recurrent:
        return SequencePredictor(dag, *about, steps_of(source, description))
    return Predictor(dag, *about)


def _moved(source: DataSource, data_dir: Path | None) -> DataSource:
    return source if data_dir is None else source.moved(data_dir)


def _preprocessing(
    run: Path, data: Dataset | None, source: DataSource | None, description: dict[str, Any]
) -> tuple[Preprocessing, list[str]]:
    """That of a run, and notes; for a run of an earlier version it is made from its data and kept."""
    kept = files.read_preprocessing(run)
    if kept is not None:
        return kept, []
    data = _data_again(run, source) if data is None else data
    files.check_same_data(run, description, data)
    made = data.preprocessing or implied(data)
    with contextlib.suppress(OSError):  # a directory that cannot be written
        files.keep_preprocessing(run, made)
    return made, [f"{run} is of an earlier version: its preprocessing was made from the data {data.name}, and is kept"]


def _data_again(run: Path, source: DataSource | None) -> Dataset:
    """The data of a run of an earlier version."""
    earlier = f"{run} is of an earlier version and does not keep how samples become inputs, so it needs its data once"
    if source is None:
        raise CheckpointError(f"{earlier}: it was trained from Python; give them to sparse_dnm.load(run, data=...)")
    try:
        return source.load()
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{earlier}: {error}; where they have moved, name their folder (or the file) with --data-dir"
        ) from None
