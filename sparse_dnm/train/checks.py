"""Checks that model, data and configuration of a training fit each other; kernels do not check."""

from __future__ import annotations

import torch

from sparse_dnm.checks import check_input
from sparse_dnm.config import OMEGA_IN_CLOSENESS, TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.model.manifold import DynamicManifold


def check_fit(model: DynamicManifold, data: Dataset, config: TrainConfig) -> None:
    """Raise ValueError if model, data and configuration do not fit each other."""
    for name in ("n_inputs", "n_outputs"):
        have, need = getattr(model.config, name), getattr(data, name)
        if have != need:
            raise ValueError(f"the model has {name}={have} but data {data.name} need {name}={need}")
    if model.executor.name == "torch-sparse" and config.kappa and config.prunes:
        raise ValueError(
            f"kappa={config.kappa!r} is for the kernels, and the model's executor is torch-sparse: set kappa=0"
        )
    possible = model.config.possible_edges
    if config.target_edges > possible:
        raise ValueError(f"target_edges={config.target_edges} are more than the {possible} possible ones")
    if config.scan_every and model.config.edges not in OMEGA_IN_CLOSENESS:
        raise ValueError(
            f"scan_every={config.scan_every} needs edges in {OMEGA_IN_CLOSENESS}, not {model.config.edges!r}"
        )


def check_data(data: Dataset, model: DynamicManifold) -> None:
    """Raise ValueError unless the inputs fit the model and the targets are labels of its outputs, or one number per
    output, of its dtype: kernels do not check."""
    check_input(data.x_train[:1], model.config.n_inputs, model.alpha.dtype)
    y, n = data.y_train, model.config.n_outputs
    if data.task != "classification":
        if y.shape != (len(data.x_train), n) or y.dtype != model.alpha.dtype:
            raise ValueError(
                f"y_train is {y.dtype} {tuple(y.shape)}; it must be {model.alpha.dtype} {(len(data.x_train), n)}: "
                "a row of targets per sample"
            )
    elif y.shape != data.x_train.shape[:1] or y.dtype != torch.int64:
        raise ValueError(f"y_train is {y.dtype} {tuple(y.shape)}; it must be int64 {(len(data.x_train),)}: labels")
    elif len(y) and not (int(y.min()) >= 0 and int(y.max()) < n):
        raise ValueError(f"y_train holds labels {int(y.min())} to {int(y.max())}; they must be in 0 .. {n - 1}")


def check_known(model: DynamicManifold, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a parameter to train is none of the optimiser's."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in known:
            raise ValueError(
                f"the Trainer does not train parameter {name}, which was added or replaced since it was made; write to "
                "the parameter's data instead, or make another Trainer"
            )
