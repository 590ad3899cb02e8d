"""Sequences from the rows of a table: by a column, and windows in the order of time."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sparse_dnm.cli.app import app
from sparse_dnm.data import DataError, from_frame, load
from sparse_dnm.data.source import describe
from sparse_dnm.presets import preset_for


def visits():
    """Rows of 30 patients, in a mixed order; those of each are in the order of time."""
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.repeat(np.arange(30), rng.integers(2, 6, 30)))
    n = len(patient)
    frame = pd.DataFrame({"patient": [f"p{k}" for k in patient], "pulse": rng.normal(70, 9, n), "dose": rng.random(n)})
    frame["state"] = np.where(rng.random(n) < 0.5, "ill", "well")
    frame["score"] = rng.normal(3, 2, n)
    return frame


def by_hand(frame, name, label):
    """Standardised by hand: pulse and label of each patient, in the order of rows."""
    return {p: (rows.pulse.to_numpy(), rows[label].to_numpy()) for p, rows in frame.groupby(name, sort=False)}


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("label", ["state", "score"])
def test_rows_of_a_sequence_are_its_time_steps(label, per_step):
    frame = visits()
    other = "score" if label == "state" else "state"
    data = from_frame(frame, label, sequence="patient", per_step=per_step, drop=["dose", other])
    expected, found = by_hand(frame, "patient", label), {}
    mean, std = data.feature_mean[0].item(), data.feature_std[0].item()
    for split in ("train", "test"):
        x, y, lengths = (getattr(data, f"{name}_{split}") for name in ("x", "y", "lengths"))
        assert len(x) == len(y) == len(lengths)
        for row, steps in enumerate(lengths.tolist()):
            assert not x[row, steps:].any()
            pulse = x[row, :steps, 0].double().numpy() * std + mean
            name = next(
                p for p, (all_of_it, _) in expected.items() if len(all_of_it) == steps and np.allclose(all_of_it, pulse)
            )
            labels = expected[name][1] if per_step else expected[name][1][-1:]
            given = y[row, :steps] if per_step else y[row : row + 1]
            if label == "state":
                assert [data.classes[k] for k in given.tolist()] == labels.tolist()
            else:
                assert np.allclose(given[:, 0].double() * data.target_std + data.target_mean, labels, atol=1e-5)
            found[name] = split
    assert len(found) == 30
    assert data.per_step == per_step
    assert 4 <= list(found.values()).count("test") <= 8
    assert any("30 sequences of 2 to 5 rows" in note for note in data.notes)


def test_sequences_are_in_the_order_of_their_first_rows():
    frame = pd.DataFrame({"run": list("bbaaccddee"), "x": np.arange(10.0) ** 2, "y": np.arange(10) % 2})
    data = from_frame(frame, test=frame, sequence="run")
    x = data.x_test[..., 0].double() * data.feature_std[0] + data.feature_mean[0]
    assert np.allclose(x, (np.arange(10.0) ** 2).reshape(5, 2), atol=1e-4)
    assert data.y_test.tolist() == [1] * 5
    assert data.lengths_train is None  # all are equal


def series(n=60):
    return pd.DataFrame({"wind": np.sin(np.arange(n) / 3.0), "power": np.cos(np.arange(n) / 3.0) + 5.0})


@pytest.mark.parametrize("horizon", [None, 3])
def test_windows_tell_a_later_row_and_the_test_is_the_end(horizon):
    frame, ahead = series(), horizon or 1
    data = from_frame(frame, "power", window=4, horizon=horizon, test_size=10)
    assert data.x_train.shape == (50 - 4 - ahead + 1, 4, 2)
    assert data.x_test.shape == (10, 4, 2)
    x, y = torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])
    raw, label = x.double() * data.feature_std + data.feature_mean, y.double() * data.target_std + data.target_mean
    for k in range(len(x)):
        assert np.allclose(raw[k], frame.to_numpy()[k : k + 4], atol=1e-5)
        assert label[k].item() == pytest.approx(frame.power[k + 3 + ahead], abs=1e-5)
    assert data.feature_mean[1].item() == pytest.approx(frame.power[:50].mean())  # nothing of the test is in it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 2}, "horizon=2 is how far a window looks ahead; give window as well"),
        ({"window": 0}, "window=0 must be a whole number of rows, 1 or more"),
        ({"per_step": True}, "per_step is about the rows of a sequence; give sequence"),
        ({"sequence": "patient", "window": 3}, "window makes sequences of a table that has none: sequence='patient'"),
        ({"sequence": "patient", "group": "patient"}, "group keeps rows on one side of the split"),
        ({"sequence": "patient", "drop_unlabelled": True}, "leaves rows out, and time would have gaps"),
        ({"window": 3, "stratify": True}, "stratify keeps the shares of classes in a split by rows: window=3"),
        ({"sequence": "patent"}, "sequence='patent' names 0 columns of frame.*do you mean 'patient'"),
        ({"sequence": "score"}, "sequence='score' is the label column or dropped as well"),
        ({"window": 500}, "window=500 and horizon=1 need 501 training rows or more, and frame has"),
        ({"window": 3, "test_size": 5000}, "test_size=5000 leaves"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        from_frame(visits(), "score", **options)


def test_rows_of_no_sequence_and_a_single_sequence_are_refused():
    frame = visits()
    frame.loc[3, "patient"] = None
    with pytest.raises(DataError, match="frame, row 4: column 'patient' has no value, so its row is in no sequence"):
        from_frame(frame, sequence="patient")
    unlabelled = visits()
    unlabelled.loc[2, "state"] = None
    with pytest.raises(
        DataError, match="row 3, column 'state': the label is missing: complete it, as each step of a seq"
    ):
        from_frame(unlabelled, "state", sequence="patient")
    with pytest.raises(DataError, match="sequence='patient' has one value in all rows; a split needs at least two seq"):
        from_frame(frame.assign(patient="p"), sequence="patient")


@pytest.mark.parametrize(
    "options", [("--sequence", "patient", "--per-step"), ("--window", "5", "--horizon", "2", "--drop", "patient")]
)
def test_a_table_is_trained_on_and_evaluated_on_the_command_line(tmp_path, options):
    visits().to_csv(tmp_path / "visits.csv", index=False)
    small = ("--set", "n_neurons=24", "--batch-size", "8", "--steps", "2", "--threads", "1")
    path, out = str(tmp_path / "visits.csv"), str(tmp_path / "run")
    result = CliRunner().invoke(app, ["train", path, *options, *small, "--out", out])
    assert result.exit_code == 0, result.output
    assert "sequences of " in result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    chosen = (
        {"sequence": "patient", "per_step": True}
        if "--sequence" in options
        else {"window": 5, "horizon": 2, "drop": "patient"}
    )
    assert config["data"] == describe(load(path, **chosen))
    assert config["manifold"]["neuron"] == "lstm"
    result = CliRunner().invoke(app, ["evaluate", out])
    assert "reproduced" in result.output


def test_settings_of_sequences_of_a_table_remember_and_use_the_proxy():
    made = preset_for(from_frame(series(), window=4))
    assert (made.manifold.neuron, made.train.speed) == ("lstm", "proxy")
