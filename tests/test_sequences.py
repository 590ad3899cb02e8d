"""Tasks with sequences, and sequences of different lengths in a training."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from test_recurrent_training import CONFIG, first_of, stop_at, trainer
from test_training import assert_same_bits, lines
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, TrainConfig, Trainer
from sparse_dnm.cli.app import app
from sparse_dnm.data import DataError, load, sequences
from sparse_dnm.data.source import describe
from sparse_dnm.presets import preset
from sparse_dnm.train.batches import Batch
from sparse_dnm.train.metrics import evaluate, further_figures, outputs_of
from sparse_dnm.train.objective import objective
from sparse_dnm.train.validation import hold_out


def unequal(task="classification", per_step=True, fill=0.0, wrong=0):
    """Sequences of 2 .. 5 steps; beyond them x holds ``fill`` and targets per step hold ``wrong``."""
    data = first_of(per_step=per_step, task=task)
    lengths = torch.randint(2, 6, (192,), generator=torch.Generator().manual_seed(5))
    changed, parts = {"lengths_train": lengths[:128], "lengths_test": lengths[128:]}, {}
    for split in ("train", "test"):
        beyond = torch.arange(5) >= changed[f"lengths_{split}"][:, None]
        x, y = getattr(data, f"x_{split}").clone(), getattr(data, f"y_{split}").clone()
        x[beyond] = fill
        if per_step:
            y[beyond] = wrong
        parts |= {f"x_{split}": x, f"y_{split}": y}
    return dataclasses.replace(data, **parts, **changed)


def by_hand(data, model, batch, outputs):
    """Loss and figure of a batch, a time step at a time, in float64."""
    losses, figures = [], []
    for row, steps in enumerate(batch.lengths.tolist()):
        alone = model(batch.x[row : row + 1, :steps])[0].detach().double()
        for t in range(steps):
            assert torch.allclose(alone[t], outputs[row, t].double(), atol=1e-6)
            y = batch.y[row, t]
            if data.task == "classification":
                losses.append(-alone[t].log_softmax(0)[y].item())
                figures.append(float(alone[t].argmax() == y))
            else:
                losses.append(((alone[t] - y) ** 2).mean().item())
                figures.append(losses[-1])
    return np.mean(losses), np.mean(figures)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_targets_beyond_a_sequence_count_neither_in_the_loss_nor_in_the_figures(task):
    data = unequal(task)
    training = trainer(data=data)
    batch = training._batches.next()
    assert batch.lengths.equal(data.lengths_train[training._batches.order._order[:32]])
    outputs, terms = training._loss(batch, True)
    loss, value = by_hand(data, training.model, batch, outputs)
    line = training._metrics.line(outputs, batch, terms, {})
    name = "accuracy" if task == "classification" else "mse"
    assert terms.objective == pytest.approx(loss, rel=1e-5)
    assert line[f"train_{name}"] == pytest.approx(value, rel=1e-5)
    whole = Batch(data.x_test, data.y_test, None, data.lengths_test)
    found = by_hand(data, training.model, whole, outputs_of(training.model, whole.x, 64, True, whole.lengths))[1]
    assert evaluate(training.model, data, chunk=10)[f"test_{name}"] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("per_step", [True, False])
def test_what_is_beyond_a_sequence_changes_no_bit_of_a_training(per_step):
    config = dataclasses.replace(CONFIG, steps=12, early_stopping=True, validation=0.2)
    one, other = (
        trainer(config=config, data=unequal(per_step=per_step, fill=fill, wrong=wrong))
        for fill, wrong in ((0.0, 0), (9.0, 1))
    )
    summaries = [{k: v for k, v in each.run().items() if "seconds" not in k} for each in (one, other)]
    assert summaries[0] == summaries[1]
    assert further_figures(one.model, one.data) == further_figures(other.model, other.data)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert a.equal(b)


def test_a_sequence_is_right_where_every_step_is():
    data = unequal()
    model = trainer(data=data).model
    outputs = outputs_of(model, data.x_test, per_step=True, lengths=data.lengths_test).argmax(2)
    y = data.y_test.clone()
    y[:40] = outputs[:40]
    y[0, 0] = 1 - y[0, 0]
    data = dataclasses.replace(data, y_test=y)
    rows = zip(outputs.tolist(), y.tolist(), data.lengths_test.tolist(), strict=True)
    right = [found[:n] == expected[:n] for found, expected, n in rows]
    assert right[:3] == [False, True, True]
    assert further_figures(model, data)["test_sequence_accuracy"] == sum(right) / 64


def test_lengths_that_are_all_the_time_steps_are_as_none():
    data = first_of(per_step=True)
    given = dataclasses.replace(data, lengths_train=torch.full((128,), 5), lengths_test=torch.full((64,), 5))
    model = trainer(data=data).model
    assert evaluate(model, data) == evaluate(model, given)
    assert further_figures(model, data) == further_figures(model, given)
    outputs, y = torch.randn(2, 5, 2), torch.randint(0, 2, (2, 5))
    for weights in (None, torch.tensor([0.5, 1.5])):
        plain = objective(outputs, y, "classification", weights).item()
        masked = objective(outputs, y, "classification", weights, torch.tensor([5, 5])).item()
        assert masked == pytest.approx(plain, rel=1e-6)


def test_a_resumed_training_of_unequal_sequences_gives_the_same_bits(tmp_path):
    config, data = dataclasses.replace(CONFIG, early_stopping=True), unequal()
    trainer(tmp_path / "whole", config, data=data).run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", config, data=data).run(on_log=stop_at(20))
    Trainer.resume(tmp_path / "parts", data).run()
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    other = dataclasses.replace(data, lengths_test=data.lengths_test.clamp(max=4))
    with pytest.raises(ValueError, match=r"the data first have changed since the run .* began \(contents\)"):
        Trainer.resume(tmp_path / "parts", other)


def test_a_share_that_is_held_out_keeps_its_lengths():
    data = unequal()
    left, held = hold_out(data, dataclasses.replace(CONFIG, early_stopping=True, validation=0.2))
    assert len(left.lengths_train) == len(left.x_train) == 128 - len(held.lengths)
    pairs = {(x.numpy().tobytes(), int(n)) for x, n in zip(data.x_train, data.lengths_train, strict=True)}
    for x, lengths in ((left.x_train, left.lengths_train), (held.x, held.lengths)):
        assert {(row.numpy().tobytes(), int(n)) for row, n in zip(x, lengths, strict=True)} <= pairs


def test_lengths_that_do_not_fit_are_refused():
    data = unequal()
    wrong = data.lengths_train.clone()
    wrong[3] = 6
    for lengths, message in (
        (wrong, r"lengths_train\[3\]=6 must be in 1 .. 5, the time steps of x_train"),
        (wrong[:5], r"lengths_train is torch.int64 \(5,\); it must be torch.int64 \(128,\)"),
        (wrong.float(), r"lengths_train is torch.float32 \(128,\)"),
        ([1], "lengths_train is list"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(data=dataclasses.replace(data, lengths_train=lengths))
    with pytest.raises(ValueError, match="weighs samples by their class, and first has a label for each time step"):
        trainer(config=dataclasses.replace(CONFIG, class_weight="balanced"), data=data)


def test_data_describe_their_lengths():
    data = unequal()
    assert describe(data)["shortest"] == 2
    none = dataclasses.replace(data, lengths_train=None, lengths_test=None)
    assert "shortest" not in describe(none)
    assert describe(none)["sha256"] != describe(data)["sha256"]


# -- the tasks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sequences.TASKS)
def test_a_task_has_a_preset_that_trains(name):
    data, settings = load(name), preset(name)
    manifold = settings.manifold
    assert (manifold.n_inputs, manifold.n_outputs, manifold.period) == (data.n_inputs, data.n_outputs, data.period)
    assert describe(load(name)) == describe(data)
    assert (describe(load(name, seed=1)) == describe(data)) == (name in ("anbn", "anbncn"))  # which are not random
    small = {"x_train": data.x_train[:20], "y_train": data.y_train[:20], "x_test": data.x_test[:9]}
    lengths = {} if data.lengths_train is None else {"lengths_train": data.lengths_train[:20]}
    lengths |= {} if data.lengths_test is None else {"lengths_test": data.lengths_test[:9]}
    data = dataclasses.replace(data, y_test=data.y_test[:9], **small, **lengths)
    model = DynamicManifold(manifold, torch.Generator().manual_seed(0), threads=1)
    summary = Trainer(model, data, dataclasses.replace(settings.train, steps=1, batch_size=4)).run()
    assert ("test_mse" if name == "adding" else "test_accuracy") in summary


def test_adding_is_the_sum_of_one_marked_number_of_each_half():
    data = sequences.adding(3, length=7)
    assert data.x_train.shape == (50_000, 7, 2)
    for x, y in zip(data.x_test.tolist(), data.y_test.tolist(), strict=True):
        marked = [t for t, (_, mark) in enumerate(x) if mark]
        assert len(marked) == 2
        assert marked[0] < 3 <= marked[1]
        assert y[0] == pytest.approx(sum(x[t][0] for t in marked))


def test_copy_repeats_symbols_after_a_delay():
    data = sequences.copy(0, delay=4, count=3)
    assert data.x_test.shape == (1_000, 10, 10)
    for x, y in zip(data.x_test.argmax(2).tolist(), data.y_test.tolist(), strict=True):
        assert x[3:7] == [8] * 4
        assert x[7:] == [9, 8, 8]
        assert y == [8] * 7 + x[:3]


def test_parity_counts_the_ones_within_a_length():
    data = sequences.parity(0, longest=6)
    assert (int(data.lengths_train.min()), int(data.lengths_train.max())) == (1, 6)
    assert (int(data.lengths_test.min()), int(data.lengths_test.max())) == (7, 12)
    for x, y, steps in zip(data.x_test, data.y_test, data.lengths_test, strict=True):
        assert int(x[:steps].sum()) % 2 == y
        assert not x[steps:].any()


def nexts(words):
    """Which symbols, or the end, may follow each beginning of some words: the end and the symbols sorted, with "or"."""
    found = {}
    for word in words:
        for at in range(len(word) + 1):
            found.setdefault(word[:at], set()).add((word + ".")[at].replace(".", "end"))
    return {beginning: " or ".join(sorted(symbols)) for beginning, symbols in found.items()}


def language(name, longest):
    """The words of up to n=``longest``."""
    if name != "dyck1":
        return ["".join(kind * n for kind in name[::2]) for n in range(1, longest + 1)]
    every = ("".join(word) for size in range(1, longest + 1) for word in itertools.product("()", repeat=2 * size))
    return [word for word in every if is_balanced(word)]


def is_balanced(word):
    """Pairs can be taken out until nothing is left."""
    while "()" in word:
        word = word.replace("()", "")
    return not word


@pytest.mark.parametrize("name", ["anbn", "anbncn", "dyck1"])
def test_a_class_is_the_symbols_that_may_come_next(name):
    data = sequences.TASKS[name](0, longest=4, tested=6)
    expected = nexts(language(name, 8))
    symbols = "()" if name == "dyck1" else f"{name[::2]}^"
    met = set()
    for split, least, most in (("train", 1, 4), ("test", 5, 6)):
        x, y, lengths = (getattr(data, f"{field}_{split}")[:300] for field in ("x", "y", "lengths"))
        for row, classes, steps in zip(x, y, lengths.tolist(), strict=True):
            assert row[:steps].sum(1).eq(1).all()
            assert not row[steps:].any()
            word = "".join(symbols[k] for k in row[:steps].argmax(1))
            for t in range(steps):
                assert data.classes[classes[t]] == expected[word[: t + 1].lstrip("^")]
            whole = word.removeprefix("^")
            assert whole in language(name, 6)
            met.add((split, len(whole) // (len(symbols) - (name != "dyck1"))))
        assert {n for where, n in met if where == split} == set(range(least, most + 1))


def test_balanced_brackets_are_drawn_with_equal_probability():
    data = sequences.dyck1(0, longest=3, tested=4)
    words = [tuple(x[:, 1].tolist()) for x in data.x_train[data.lengths_train == 6]]
    counts = np.array(list(collections.Counter(words).values()))
    assert len(counts) == 5  # the Catalan number of 3
    assert counts.min() > 0.8 * counts.mean()


def test_rows_digits_are_the_digits():
    data, pixels = load("rows-digits"), load("digits")
    assert data.x_train.flatten(1).equal(pixels.x_train)
    assert data.y_test.equal(pixels.y_test)


def test_sizes_that_a_task_cannot_have_are_refused():
    with pytest.raises(DataError, match="length=1 must be >= 2 time steps"):
        sequences.adding(0, length=1)
    with pytest.raises(DataError, match="delay=0 must be >= 1 time steps"):
        sequences.copy(0, delay=0)
    with pytest.raises(DataError, match="tested=30 must be > longest=30, as the test is of longer sequences"):
        sequences.dyck1(0, tested=30)


def test_a_network_without_memory_says_what_sequences_need():
    manifold = dataclasses.replace(preset("adding").manifold, neuron="memoryless")
    with pytest.raises(ValueError, match="a row per sample; sequences need a neuron such as lstm, or n_memory"):
        Trainer(DynamicManifold(manifold), load("adding"), TrainConfig(speed="none"))


def test_a_task_is_trained_and_evaluated_on_the_command_line(tmp_path):
    options = ("--neuron", "gru", "--n-memory", "2", "--tbptt", "4", "--steps", "2", "--threads", "1")
    result = CliRunner().invoke(app, ["train", "rows-digits", *options, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["manifold"]["neuron"], config["manifold"]["n_memory"], config["train"]["tbptt"]) == ("gru", 2, 4)
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run")])
    assert "reproduced" in result.output
    result = CliRunner().invoke(app, ["train", "toy", "--tbptt", "4", "--out", str(tmp_path / "other")])
    assert "tbptt 4 is for recurrent networks" in result.stderr.replace("=", " ")
