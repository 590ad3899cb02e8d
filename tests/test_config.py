"""Configs and inputs: what is converted, and what is refused by name, value and rule."""

import dataclasses

import numpy as np
import pytest
import torch

from sparse_dnm.checks import check_input
from sparse_dnm.config import ManifoldConfig, TrainConfig

MANIFOLD = ManifoldConfig(n_neurons=60, n_inputs=6, n_outputs=3, period=6.0)


@pytest.mark.parametrize(
    ("config", "field", "value", "rule"),
    [
        (MANIFOLD, "n_neurons", 60.0, "an integer"),
        (MANIFOLD, "n_inputs", True, "an integer"),
        (MANIFOLD, "seed", 1.5, "an integer"),
        (MANIFOLD, "period", "6", "a number"),
        (MANIFOLD, "skin", None, "a number"),
        (MANIFOLD, "period", 10**400, "a number"),
        (MANIFOLD, "alpha", ("a", "b"), "a pair of numbers: mean, standard deviation"),
        (MANIFOLD, "alpha", 5.0, "a pair of numbers: mean, standard deviation"),
        (MANIFOLD, "alpha", (0.0, -1.0), "finite with a standard deviation >= 0"),
        (TrainConfig(), "seed", 1.5, "an integer"),
        (TrainConfig(), "steps", "5", "an integer"),
        (TrainConfig(), "lr", "a", "a number"),
        (TrainConfig(), "lr", True, "a number"),
    ],
)
def test_wrong_types_are_named(config, field, value, rule):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared whole)
        dataclasses.replace(config, **{field: value})
    assert str(error.value) == f"{field}={value!r} must be {rule}"


def test_numbers_of_numpy_become_plain_ones():
    changes = {"n_neurons": np.int64(60), "period": np.float32(6), "skin": 0, "alpha": [np.float64(5), 1]}
    config = dataclasses.replace(MANIFOLD, **changes)
    found = [config.n_neurons, config.period, config.skin, config.alpha]
    assert found == [60, 6.0, 0.0, (5.0, 1.0)]
    assert [type(value) for value in (*found[:3], *config.alpha)] == [int, float, float, float, float]
    assert type(TrainConfig(steps=np.int64(7)).steps) is int


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 3).to_sparse(), "x has layout torch.sparse_coo; it must be dense: convert it with x.to_dense()"),
        (torch.ones(2, 3, device="meta"), "x is on device 'meta', not on 'cpu'; move it with x.to('cpu')"),
    ],
)
def test_inputs_of_another_layout_or_device(x, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared whole)
        check_input(x, 3, torch.float32)
    assert str(error.value) == message
