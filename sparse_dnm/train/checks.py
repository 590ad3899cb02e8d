"""Checks that model, data and configuration of a training fit each other; kernels do not check."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dnm.checks import check_input
from sparse_dnm.config import OMEGA_IN_CLOSENESS, TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.wording import words


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
    _check_memory(model, data, config)
    possible = model.config.possible_edges
    if config.target_edges > possible:
        raise ValueError(
            f"{words().stated('target_edges', config.target_edges)} are more than the {possible} possible ones"
        )
    if config.class_weight != "none" and data.task != "classification":
        raise ValueError(
            f"class_weight={config.class_weight!r} weighs classes, and {data.name} is a regression: leave it at 'none'"
        )
    if config.class_weight != "none" and model.recurrent and data.per_step:
        raise ValueError(
            f"class_weight={config.class_weight!r} weighs samples by their class, and {data.name} has a label for each "
            "time step: leave it at 'none'"
        )
    if config.scan_every and model.config.edges not in OMEGA_IN_CLOSENESS:
        raise ValueError(
            f"scan_every={config.scan_every} needs edges in {OMEGA_IN_CLOSENESS}, not {model.config.edges!r}"
        )


def _check_memory(model: DynamicManifold, data: Dataset, config: TrainConfig) -> None:
    """Raise ValueError for what a recurrent network does not support, and for what only such networks know."""
    if not model.recurrent:
        for name in ("tbptt", "recompute_every"):
            if getattr(config, name):
                raise ValueError(
                    f"{words().stated(name, getattr(config, name))} is for recurrent networks, and this one has no "
                    "memory: leave it at 0, or choose a neuron such as lstm"
                )
        return
    unfit = {
        "clock": (
            config.on_target and config.speed == "time",
            "reads programs in C, which take single samples: leave it out",
        ),
        "budget_bytes": (config.budget_bytes, "is about programs in C, which take single samples: leave it at 0"),
        "scan_every": (config.scan_every, "searches with single passes only: leave it at 0"),
        "shift": (config.shift, "moves images, not sequences: leave it at 0"),
    }
    for name, (given, rule) in unfit.items():
        if given:
            value = getattr(config, name)
            raise ValueError(f"{words().stated(name, value)} does not support recurrent networks yet: it {rule}")


def check_data(data: Dataset, model: DynamicManifold) -> None:
    """Raise ValueError unless the inputs of all splits fit the model and are finite, the targets are labels of its
    outputs, or one finite number per output, of its dtype, and weights are numbers >= 0, one per sample: kernels do not
    check, and nothing is broadcast."""
    _check_samples(data, model, "train", data.x_train, data.y_train)
    _check_lengths("train", data.lengths_train, data.x_train)
    _check_samples(data, model, "test", data.x_test, data.y_test)
    _check_lengths("test", data.lengths_test, data.x_test)
    if (data.x_val is None) != (data.y_val is None):
        raise ValueError("x_val and y_val are the samples that judge a training: give both, or none")
    if data.x_val is not None and data.y_val is not None:
        _check_samples(data, model, "val", data.x_val, data.y_val)
        _check_lengths("val", data.lengths_val, data.x_val)
    weights, n = data.weights, len(data.x_train)
    if weights is None:
        return
    if weights.shape != (n,) or not weights.is_floating_point():
        raise ValueError(f"weights is {weights.dtype} {tuple(weights.shape)}; it must be float {(n,)}: one per sample")
    if not bool(((weights >= 0) & torch.isfinite(weights)).all()):
        raise ValueError(
            f"weights holds {float(weights.min()):g} to {float(weights.max()):g}; each must be >= 0 and finite"
        )
    if not bool((weights > 0).any()):
        raise ValueError("weights are all 0, and nothing would be trained on: one at least must be > 0")


def _check_lengths(split: str, lengths: Tensor | None, x: Tensor) -> None:
    """Raise ValueError unless the lengths of the sequences x are numbers of its time steps."""
    if lengths is None:
        return
    name, n = f"lengths_{split}", len(x)
    if x.ndim != 3:
        raise ValueError(f"{name} is about sequences, and x_{split} has shape {tuple(x.shape)}; leave it out")
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64 or lengths.shape != (n,):
        kind = f"{lengths.dtype} {tuple(lengths.shape)}" if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ValueError(f"{name} is {kind}; it must be torch.int64 {(n,)}: the time steps of each sequence")
    wrong = ((lengths < 1) | (lengths > x.shape[1])).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{name}[{row}]={int(lengths[row])} must be in 1 .. {x.shape[1]}, the time steps of x_{split}")


def _check_samples(data: Dataset, model: DynamicManifold, split: str, x: Tensor, y: Tensor) -> None:
    """As `check_data`, of one split."""
    for name, values in ((f"x_{split}", x), (f"y_{split}", y)):
        if not isinstance(values, Tensor) or values.device.type != "cpu":
            kind = f"on {values.device}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise ValueError(f"{name} is {kind}; it must be a tensor on the CPU, from which batches are made")
    check_input(x[:1] if x.ndim else x, model.config.n_inputs, model.alpha.dtype)
    if model.recurrent and (x.ndim != 3 or x.shape[1] == 0):
        raise ValueError(
            f"x_{split} has shape {tuple(x.shape)}; a recurrent network needs sequences, (n, time >= 1, "
            f"features): rows of a table become sequences by {words().name('sequence')} or {words().name('window')}; "
            "sequences in an array are trained on from Python, by Trainer with a Dataset of them, or by the estimators "
            "of scikit-learn"
        )
    if not model.recurrent and x.ndim != 2:
        hint = "; sequences need a neuron such as lstm, or n_memory" if x.ndim == 3 else ""
        raise ValueError(f"x_{split} has shape {tuple(x.shape)}; it must be (n, {x.shape[-1]}): a row per sample{hint}")
    at, n = f"y_{split}", model.config.n_outputs
    samples: tuple[int, ...] = tuple(x.shape[:2]) if data.per_step and model.recurrent else (len(x),)
    one = "time step" if len(samples) > 1 else "sample"
    if data.task != "classification":
        if y.shape != (*samples, n) or y.dtype != model.alpha.dtype:
            raise ValueError(
                f"{at} is {y.dtype} {tuple(y.shape)}; it must be {model.alpha.dtype} {(*samples, n)}: "
                f"a row of targets per {one}"
            )
    elif y.shape != samples or y.dtype != torch.int64:
        raise ValueError(f"{at} is {y.dtype} {tuple(y.shape)}; it must be int64 {samples}: labels")
    elif len(y) and not (int(y.min()) >= 0 and int(y.max()) < n):
        raise ValueError(f"{at} holds labels {int(y.min())} to {int(y.max())}; they must be in 0 .. {n - 1}")
    for name, values in ((f"x_{split}", x), (at, y)):
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            row = int(torch.isfinite(values).flatten(1).all(1).logical_not().nonzero()[0])
            raise ValueError(f"{name} is not finite in row {row} (from 0); correct or remove the row")


def check_known(model: DynamicManifold, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a parameter to train is none of the optimiser's."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in known:
            raise ValueError(
                f"the Trainer does not train parameter {name}, which was added or replaced since it was made; write to "
                "the parameter's data instead, or make another Trainer"
            )
