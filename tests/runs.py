"""Small trainings with snapshots, for the tests of what is made of a run directory."""

import dataclasses

import torch

from sparse_dnm import data
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.presets import PRESETS
from sparse_dnm.train.trainer import Trainer


def train(out, dataset="digits", on_log=lambda record: None, on_snapshot=None, manifold=None, **changes):
    """A run of 120 steps in ``out``, 7 snapshots; without a clock in the loss."""
    preset = PRESETS[dataset]
    values = {"steps": 120, "snapshot_every": 20, "log_every": 20, "speed": "proxy", "threads": 1, **changes}
    model = DynamicManifold(
        dataclasses.replace(preset.manifold, **(manifold or {})),
        torch.Generator().manual_seed(0),
        executor="columns",
        threads=1,
    )
    trainer = Trainer(model, data.load(dataset), dataclasses.replace(preset.train, **values), out)
    trainer.run(on_log, on_snapshot)
    return out
