"""The adding problem is learned by neurons that remember, and not without."""

import dataclasses

import pytest
import torch

from bench.memory_tasks import single_steps, trained
from sparse_dnm.data import sequences
from sparse_dnm.presets import preset


@pytest.mark.slow
def test_lstm_neurons_learn_to_add_two_marked_numbers_of_twenty_and_others_do_not():
    data, made = sequences.adding(0, length=20), preset("adding")
    settings = dataclasses.replace(made, manifold=dataclasses.replace(made.manifold, period=data.period))
    assert trained(data, settings, "lstm", 0, 3000)["test_mse"] <= 0.02
    assert trained(data, settings, "none", 0, 1000)["test_mse"] > 0.1  # always 1 has 1/6


def test_single_steps_are_those_that_have_a_target():
    data = sequences.anbn(longest=3, tested=4)
    single = single_steps(data)
    assert len(single.x_train) == len(single.y_train) == int(data.lengths_train.sum())
    first = data.lengths_train[0]
    assert single.x_train[:first].equal(data.x_train[0, :first])
    assert single.y_train[:first].equal(data.y_train[0, :first])
    data = sequences.parity(0, longest=3)
    single = single_steps(data)
    assert single.x_test.equal(torch.stack([x[n - 1] for x, n in zip(data.x_test, data.lengths_test, strict=True)]))
    assert single.y_test.equal(data.y_test)
