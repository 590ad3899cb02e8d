"""Tasks are learned by networks that remember, through time, and not without."""

import dataclasses

import pytest
import torch

from bench.memory_tasks import right_throughout, single_steps, trained
from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, Trainer
from sparse_dnm.data import Dataset, sequences
from sparse_dnm.presets import preset


@pytest.mark.slow
def test_lstm_neurons_learn_to_add_two_marked_numbers_of_twenty_and_others_do_not():
    data, made = sequences.adding(0, length=20), preset("adding")
    settings = dataclasses.replace(made, manifold=dataclasses.replace(made.manifold, period=data.period))
    assert trained(data, settings, "lstm", 0, 3000)["test_mse"] <= 0.02
    assert trained(data, settings, "none", 0, 1000)["test_mse"] > 0.1  # always 1 has 1/6


@pytest.mark.slow
def test_a_memory_that_no_objective_names_learns_through_time_and_not_where_that_is_truncated():
    x = torch.randn(600, 6, 1, generator=torch.Generator().manual_seed(0))
    y = x.sum(1)  # of which the last step alone knows a sixth
    data = Dataset("sum", "regression", x[:500], y[:500], x[500:], y[500:], period=6.0)
    shape = {"n_neurons": 8, "n_inputs": 1, "n_outputs": 1, "period": 6.0, "n_memory": 1, "activation": "identity"}
    edges = {"edges": "free", "sigma": (8.0, 0.0), "mu": (0.0, 0.0), "omega": (0.0, 0.5), "cutoff": -4.0}
    config = ManifoldConfig(**shape, **edges, weight=(1.0, 0.0), bias=(0.0, 0.0))
    errors, moved = {}, {}
    for tbptt in (0, 1):
        model = DynamicManifold(config, torch.Generator().manual_seed(0), threads=1)
        before = model.alpha[-1].item()  # of the memory's output, the last neuron
        train = TrainConfig(steps=300, lr=0.02, speed="none", tbptt=tbptt)
        errors[tbptt] = Trainer(model, data, train).run()["test_mse"]
        moved[tbptt] = abs(model.alpha[-1].item() - before)
    assert errors[0] < 1e-6
    assert errors[1] > 0.3 * y.var()
    assert moved[0] > 0.01
    assert moved[1] == 0.0


def test_without_memory_a_sequence_is_judged_as_a_whole():
    data = sequences.anbn(longest=2, tested=4)
    config = dataclasses.replace(preset("anbn").manifold, neuron="memoryless")
    model = DynamicManifold(config, torch.Generator().manual_seed(0), threads=1)
    with torch.no_grad():
        found = [[int(model(x[None]).argmax()) for x in row[:n]] for row, n in zip(data.x_test, (7, 9), strict=True)]
    y = data.y_test.clone()
    assert right_throughout(model, data) == 0.0
    y[0, :7], y[1, :8] = torch.tensor(found[0]), torch.tensor(found[1][:8])
    y[1, 8] = (found[1][8] + 1) % 4
    assert right_throughout(model, dataclasses.replace(data, y_test=y)) == 0.5


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
