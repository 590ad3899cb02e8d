"""The parameters of an estimator as the configurations of a network and its training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

import joblib
import numba
import numpy as np
import torch
from sklearn.utils import check_random_state

from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.presets import Preset, preset_for
from sparse_dnm.train.validation import n_held_out

FULL_BATCH = 1000
"""Most samples, and sum of their weights, of which every step takes all (``batch_size="auto"``)."""
SMALL: dict[str, Any] = {"steps": 600, "input_dropout": 0.0, "shift": 0}
"""Settings of a training on so few samples; none depends on their number, and nothing is drawn per sample."""
DECAYS = 1.0, 0.1, 0.0
"""Shares of the decay that are tried one after the other, as long as it cuts the network in two."""
FEWEST_LOST = 2
"""Held out samples that the cut to a budget may lose in any case: of 15 samples, one is 7 points of accuracy."""
LINES = 20  # of a training's log
Rule = tuple[str, Any]  # what a value must be, and the test

RULES: dict[str, Rule] = {
    "edges": ("an integer >= 1, or None", lambda v: v is None or _whole(v, 1)),
    "budget_us": ("a number of µs > 0, or None", lambda v: v is None or (_real(v) and v > 0)),
    "max_iter": ("an integer >= 1, or None", lambda v: v is None or _whole(v, 1)),
    "learning_rate_init": ("a number > 0, or None", lambda v: v is None or (_real(v) and v > 0)),
    "batch_size": ("an integer >= 1, 'auto' or 'full'", lambda v: v in ("auto", "full") if _text(v) else _whole(v, 1)),
    "early_stopping": ("True, False or 'auto'", lambda v: isinstance(v, bool) or (_text(v) and v == "auto")),
    "validation_fraction": ("a number in [0, 1), or None", lambda v: v is None or (_real(v) and 0 <= v < 1)),
    "n_iter_no_change": ("an integer >= 1, or None", lambda v: v is None or _whole(v, 1)),
    "warm_start": ("True or False", lambda v: isinstance(v, bool)),
    "n_jobs": ("an integer other than 0, or None", lambda v: v is None or (_whole(v, -math.inf) and v != 0)),
    "verbose": ("True, False or an integer >= 0", lambda v: isinstance(v, bool) or _whole(v, 0)),
    "manifold_params": ("a dict of fields of ManifoldConfig, or None", lambda v: v is None or isinstance(v, Mapping)),
    "train_params": ("a dict of fields of TrainConfig, or None", lambda v: v is None or isinstance(v, Mapping)),
    "class_weight": (
        "'balanced', a dict of a weight for each class, or None",
        lambda v: v is None or isinstance(v, Mapping) or (_text(v) and v == "balanced"),
    ),
}


def _whole(value: Any, least: float) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def check_parameters(name: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter of estimator ``name`` whose value is illegal, or at odds with another's."""
    for key, value in values.items():
        if key in RULES and not RULES[key][1](value):
            raise ValueError(f"The {key!r} parameter of {name} must be {RULES[key][0]}. Got {value!r} instead.")
    for key, config in (("manifold_params", ManifoldConfig), ("train_params", TrainConfig)):
        legal = [field.name for field in dataclasses.fields(config)]
        unknown = [field for field in values[key] or {} if field not in legal]
        if unknown:
            raise ValueError(
                f"{key} has {unknown[0]!r}, which is no field of {config.__name__}; choose from {', '.join(legal)}"
            )
    if values["edges"] is not None and values["budget_us"] is not None:
        raise ValueError(
            f"edges={values['edges']} and budget_us={values['budget_us']:g} both say how small the network becomes: "
            "give one of them"
        )


def seed_of(random_state: Any) -> int:
    """An integer as it is, else a number that the generator draws: with None another one each time."""
    try:
        generator = check_random_state(random_state)
    except ValueError:
        raise ValueError(
            f"random_state={random_state!r} cannot be used to seed a numpy.random.RandomState instance: Seed must be "
            "between 0 and 2**32 - 1, or give a RandomState or None"
        ) from None
    return int(random_state) if isinstance(random_state, Integral) else int(generator.randint(2**31 - 1))


def takes_all(batch_size: Any, n_samples: int, sum_of_weights: float) -> bool:
    """Whether every step takes all samples, in float64.

    A sample of weight 3 counts as three, so that both are trained in the same way.  Weights that sum up to less than
    the number of samples do not make a large table small.
    """
    if batch_size == "auto":
        return max(n_samples, sum_of_weights) <= FULL_BATCH
    return bool(batch_size == "full")


def threads_of(n_jobs: int | None) -> int:
    """Threads of the engine: 0 (as many as are fastest) for None, otherwise at most those that Numba may start."""
    if n_jobs is None:
        return 0
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return max(1, min(joblib.effective_n_jobs(n_jobs), most))


def small(data: Dataset, sum_of_weights: float) -> Preset:
    """The preset of a training in which every step takes all samples.

    Where `presets.preset_for` looks at the number of samples it gets the sum of their weights, if that is larger.
    """
    preset = preset_for(data, n_samples=max(len(data.x_train), sum_of_weights))
    return Preset(preset.manifold, dataclasses.replace(preset.train, batch_size=0, early_stopping=False, **SMALL))


def configs_for(
    values: Mapping[str, Any], data: Dataset, seed: int, all_of_weight: float | None = None
) -> tuple[ManifoldConfig, TrainConfig]:
    """Network and training for ``data`` with the parameters ``values``.

    What these leave open is that of `presets.preset_for`; of `small`, if every step takes all samples, which then weigh
    ``all_of_weight`` together.
    """
    full = all_of_weight is not None
    preset = preset_for(data) if all_of_weight is None else small(data, all_of_weight)
    manifold = dataclasses.replace(preset.manifold, **{"seed": seed, **(values["manifold_params"] or {})})
    _check_recurrent(manifold, data.x_train.ndim == 3)
    train = _sized(preset, values)
    if full and (train.target_edges or train.budget_us or train.budget_bytes):
        train = dataclasses.replace(train, steps=2 * train.steps)
    changes: dict[str, Any] = {"batch_size": min(train.batch_size, len(data.x_train))}
    if not full and values["batch_size"] not in ("auto", "full"):
        changes = {"batch_size": int(values["batch_size"])}
    changes |= {"seed": seed, "threads": threads_of(values["n_jobs"])}
    changes |= _stopping(values)
    if values["learning_rate_init"] is not None:
        changes["lr"] = float(values["learning_rate_init"])
    own = dict(values["train_params"] or {})
    train = dataclasses.replace(train, **{**changes, **own})
    held = n_held_out(len(data.x_train), train)
    if train.budget_us and held and data.classes and "max_loss" not in own:
        train = dataclasses.replace(train, max_loss=max(train.max_loss, 100 * FEWEST_LOST / held))
    if values["max_iter"] is not None and "steps" not in own:
        passes = steps_per_epoch(train, max(1, len(data.x_train) - held))
        train = dataclasses.replace(train, steps=int(values["max_iter"]) * passes)
    often = {"log_every": max(1, math.ceil(train.steps / LINES)), "checkpoint_every": max(1, train.steps)}
    return manifold, dataclasses.replace(train, **{**often, **own})


def _check_recurrent(manifold: ManifoldConfig, sequences: bool) -> None:
    """Raise ValueError where samples are sequences and the network has no memory, or the other way round."""
    if sequences and not manifold.recurrent:
        raise ValueError(
            "X holds sequences (n, time, features), and manifold_params ask for neuron='memoryless' without n_memory: "
            "choose a neuron such as 'lstm', or n_memory > 0"
        )
    if manifold.recurrent and not sequences:
        raise ValueError(
            f"manifold_params ask for neuron={manifold.neuron!r} and n_memory={manifold.n_memory}, a recurrent "
            "network, which takes sequences: give X as (n, time, features)"
        )


def _stopping(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of early stopping; "auto" leaves them to the preset."""
    given = {"validation": values["validation_fraction"], "patience": values["n_iter_no_change"]}
    changes = {key: value for key, value in given.items() if value is not None}
    return changes if values["early_stopping"] == "auto" else {**changes, "early_stopping": values["early_stopping"]}


def steps_per_epoch(train: TrainConfig, n_samples: int) -> int:
    """Steps that take every sample once."""
    return math.ceil(n_samples / (train.batch_size or n_samples))


def one_pass(train: TrainConfig, n_samples: int, number: int) -> TrainConfig:
    """The training of call ``number`` of partial_fit: every sample once, in an order of its own, at a constant rate.

    The structure of a network that fit has made small stays.
    """
    small = bool(train.target_edges or train.budget_us or train.budget_bytes)
    steps = steps_per_epoch(train, n_samples)
    return dataclasses.replace(
        train, steps=steps, schedule="constant", fine_tune=float(small), speed="none", target_edges=0, budget_us=0.0,
        budget_bytes=0, profile="", early_stopping=False, seed=train.seed + number, log_every=steps,
        checkpoint_every=steps,
    )  # fmt: skip


def network_of(manifold: ManifoldConfig, train: TrainConfig, dtype: torch.dtype) -> DynamicManifold:
    """A new network; its initial values are drawn by the seed of the training."""
    drawn = torch.Generator().manual_seed(train.seed)
    return DynamicManifold(manifold, drawn, dtype, train.executor, train.threads, "cpu")


def to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values; a generator of random numbers is left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {"pairs": [[plain(key), plain(each)] for key, each in value.items()]}
        return value.item() if hasattr(value, "item") else list(value) if isinstance(value, tuple) else value

    found = {key: value for key, value in values.items() if not isinstance(value, np.random.RandomState)}
    return {key: plain(value) for key, value in found.items()}


def from_json(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The inverse of `to_json`, of the parameters that this version has."""

    def parsed(value: Any) -> Any:
        return {key: parsed(each) for key, each in value["pairs"]} if isinstance(value, dict) else value

    return {key: parsed(value) for key, value in values.items() if key in known}


def _sized(preset: Preset, values: Mapping[str, Any]) -> TrainConfig:
    """Training settings for a network of so many edges or µs, or for one that nothing makes smaller."""
    if values["edges"] is not None:
        return preset.growing(int(values["edges"]))
    if values["budget_us"] is not None:
        return dataclasses.replace(preset.train, speed="time", budget_us=float(values["budget_us"]))
    return dataclasses.replace(preset.train, speed="none")
