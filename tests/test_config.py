"""Configs and inputs: what is converted, and what is refused by name, value and rule."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from sparse_dnm.checks import check_input
from sparse_dnm.config import ManifoldConfig, TrainConfig, apply_settings, from_dict
from sparse_dnm.presets import PRESETS, preset_for

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
        (TrainConfig(), "lr", np.True_, "a number"),
        (TrainConfig(), "profile", 3, "a string"),
        (TrainConfig(), "lr", float("nan"), "a finite number > 0"),
        (TrainConfig(), "lr", 0.0, "a finite number > 0"),
        (TrainConfig(), "flow", -1.0, "a finite number >= 0"),
        (TrainConfig(), "input_dropout", 1.0, "a share >= 0 and < 1"),
        (TrainConfig(), "batch_size", -1, "an integer >= 0"),
        (TrainConfig(), "log_every", 0, "an integer >= 1"),
        (MANIFOLD, "cutoff", float("inf"), "a finite number"),
        (MANIFOLD, "n_neurons", 2**31, "an int32 number of neurons >= 1 and < 2147483648"),
        (MANIFOLD, "alpha", (0.0, float("nan")), "finite with a standard deviation >= 0"),
        (MANIFOLD, "alpha", (0.0, 1.0, 2.0), "a pair of numbers: mean, standard deviation"),
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


@pytest.mark.parametrize("value", ["walk", ["auto"], 3, None])
def test_an_unknown_choice_lists_the_legal_ones(value):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared whole)
        TrainConfig(executor=value)
    legal = "auto, columns, wavefront, blocks, fastest, torch-sparse"
    assert str(error.value) == f"executor={value!r} is unknown; choose one of {legal}"


@pytest.mark.parametrize("config", [MANIFOLD, TrainConfig(speed="proxy", target_edges=9)], ids=["manifold", "train"])
def test_a_config_is_a_frozen_dataclass_that_survives_json_pickle_and_copy(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    parsed = json.loads(json.dumps(dataclasses.asdict(config)))
    for twin in (from_dict(type(config), parsed), pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert twin == config
        assert hash(twin) == hash(config)
        assert dataclasses.asdict(twin) == dataclasses.asdict(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_neurons": 9}, "ManifoldConfig: missing a required argument: 'n_inputs'"),
        ({"colour": 1}, "ManifoldConfig has no field colour; it has activation, alpha"),
    ],
)
def test_a_missing_or_an_unknown_field_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(ManifoldConfig, values)


def test_text_sets_fields_of_both_configs():
    texts = ["seed=4", "mu=1,0.5", "time-batch=8", "executor=columns", "skin = 0.2"]
    manifold, train = apply_settings(MANIFOLD, TrainConfig(), texts)
    assert (manifold.seed, manifold.mu, manifold.skin) == (4, (1.0, 0.5), 0.2)
    assert (train.seed, train.time_batch, train.executor) == (4, 8, "columns")
    for text, rule in (("steps=5.5", "an integer"), ("lr=fast", "a number"), ("mu=1", "two numbers: mean,std")):
        with pytest.raises(ValueError, match=f"{text.partition('=')[2]!r} must be {rule}"):
            apply_settings(MANIFOLD, TrainConfig(), [text])


def test_presets_are_found_by_both_configs():
    for name, preset in PRESETS.items():
        assert ManifoldConfig.preset(name) == preset.manifold
        assert TrainConfig.preset(name, seed=3) == dataclasses.replace(preset.train, seed=3)


def test_a_preset_must_fit_the_data():
    class Data:
        name, n_inputs, n_outputs, period, classes, weights = "table", 5, 4, 5.0, (), None
        x_train, y_train = torch.ones(100, 5), torch.ones(100, 4)

    assert preset_for(Data, "toy") is PRESETS["toy"]
    assert preset_for(Data).manifold == ManifoldConfig.for_data(5, 4, 5.0)
    with pytest.raises(ValueError, match="digits is made for 64 inputs and 10 outputs, but table has 5 and 4"):
        preset_for(Data, "digits")


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
