"""The sequence along which a report shows the state of a recurrent network; kept in its run directory."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sparse_dnm.data.datasets import Dataset
from sparse_dnm.io import CheckpointError
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.checkpoint import Checkpoint

SEQUENCE = "sequence.safetensors"  # in the run directory
MOST = 1_000  # time steps


def keep(out: Path, data: Dataset) -> None:
    """Write the inputs of the first sequence of the test, or without any of the training, unless they are there."""
    if (out / SEQUENCE).exists():
        return
    tested = len(data.x_test) > 0
    x, lengths = (data.x_test, data.lengths_test) if tested else (data.x_train, data.lengths_train)
    steps = min(x.shape[1] if lengths is None else int(lengths[0]), MOST)
    files.save(out / SEQUENCE, Checkpoint({"x": x[0, :steps].clone()}, {"split": "test" if tested else "training"}))


def load(out: Path, n_inputs: int) -> tuple[Tensor, str] | None:
    """Inputs (time, n_inputs), and the split that they are from; None if the run has none, as of earlier versions.

    Raises CheckpointError naming a damaged file.
    """
    path = out / SEQUENCE
    if not path.exists():
        return None
    saved = files.load(path)
    x = saved.tensors.get("x")
    if x is None or x.ndim != 2 or x.shape[1] != n_inputs or not len(x):
        shape = None if x is None else tuple(x.shape)
        raise CheckpointError(f"{path} holds no sequence of {n_inputs} inputs, but x of shape {shape}; remove the file")
    return x, str(saved.header.get("split"))
