"""Sequences from the rows of a table: by a column, and windows in the order of time."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import sparse_dnm
from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, Trainer
from sparse_dnm.cli.app import app
from sparse_dnm.data import DataError, from_frame, load
from sparse_dnm.data.options import Reading
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing, Target
from sparse_dnm.data.source import DataSource, describe
from sparse_dnm.presets import preset, preset_for
from sparse_dnm.sequence_predictor import SequencePredictor, Steps


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


def test_dates_in_order_are_no_warning_where_the_test_is_the_end():
    frame = series()
    frame.insert(0, "time", pd.date_range("2024-01-01", periods=60, freq="h").astype(str))
    in_order = "'time' has dates in the order of the rows"
    assert any(in_order in note for note in from_frame(frame, "power").notes)
    assert not any(in_order in note for note in from_frame(frame, "power", window=4).notes)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("window", [1, 4])
def test_of_windows_a_leak_is_a_column_that_tells_the_label_of_a_later_row(window, horizon):
    rng, n = np.random.default_rng(0), 200
    frame = pd.DataFrame({"power": rng.normal(size=n), "wind": rng.normal(size=n)})
    frame["ahead"] = frame.power.shift(-horizon, fill_value=1.0)  # as a forecast would, were it perfect
    frame["state"] = np.where(frame.power > 0, "up", "down")
    told = from_frame(frame, "state", window=window, horizon=horizon).notes
    assert [note.split("'")[1] for note in told if "alone tells the label" in note] == ["ahead"]
    by_row = from_frame(frame, "state").notes
    assert [note.split("'")[1] for note in by_row if "alone tells the label" in note] == ["power"]


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


# -- predictions ---------------------------------------------------------------------------------------------------


def trained(frame, out, label, **options):
    """A short training on the sequences of a table, kept in ``out``, and its data and model."""
    frame.to_csv(out.parent / "table.csv", index=False)
    reading = Reading(**options)
    source = DataSource(str(out.parent / "table.csv"), target=label, reading=reading)
    data = source.load()
    config = ManifoldConfig.for_data(data.n_inputs, data.n_outputs, neuron="gru", n_memory=1, n_neurons=30)
    model = DynamicManifold(config, torch.Generator().manual_seed(0), threads=1)
    Trainer(model, data, TrainConfig(steps=3, batch_size=4, speed="none"), out, source).run()
    return data, model


def outputs_by_hand(data, model, rows):
    """Outputs of the last step of each prefix of raw rows (time, features), one sequence alone, in the data's units."""
    x = (torch.tensor(rows) - data.feature_mean) / data.feature_std
    with torch.no_grad():
        out = model(x.float()[None])[0].double().numpy()
    return out if data.task == "classification" else out * data.target_std.numpy() + data.target_mean.numpy()


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("label", ["state", "score"])
def test_new_rows_are_predicted_sequence_by_sequence(tmp_path, label, per_step):
    frame = visits()
    other = "score" if label == "state" else "state"
    data, model = trained(frame, tmp_path / "run", label, sequence="patient", per_step=per_step, drop=other)
    predictor = sparse_dnm.load(tmp_path / "run", threads=1)
    new = frame.sample(frac=0.5, random_state=1)
    expected = {}
    for name, rows in new.groupby("patient", sort=False):
        found = outputs_by_hand(data, model, rows[["pulse", "dose"]].to_numpy())
        expected |= dict(zip(rows.index, found, strict=True)) if per_step else {name: found[-1]}
    answers = predictor.predict(new)
    assert set(answers.index) == set(expected)
    if per_step:
        assert answers.index.equals(new.index)
    else:
        assert answers.index.tolist() == new.patient.drop_duplicates().tolist()
    exact = np.stack([expected[key] for key in answers.index])
    if label == "state":
        assert answers.tolist() == [data.classes[k] for k in exact.argmax(1)]
        shares = predictor.predict_proba(new)
        np.testing.assert_allclose(shares, torch.from_numpy(exact).softmax(1), atol=1e-5)
        assert shares.index.equals(answers.index)
    else:
        np.testing.assert_allclose(answers, exact[:, 0], rtol=1e-4, atol=1e-4)
    new.to_csv(tmp_path / "new.csv", index=False)
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(tmp_path / "new.csv")])
    assert result.exit_code == 0, result.output
    said = pd.read_csv(io.StringIO(result.stdout))
    assert said.columns.tolist() == ["patient", label]
    assert said.patient.tolist() == (new.patient.tolist() if per_step else answers.index.tolist())
    assert said[label].tolist() == (answers.tolist() if label == "state" else pytest.approx(answers.tolist()))
    n = len(new) if per_step else len(answers)
    assert f"score on '{label}' of {n} rows" in result.stderr
    assert "'patient'" not in result.stderr  # which is read


def test_new_windows_tell_the_row_after_them(tmp_path):
    frame = series()
    data, model = trained(frame, tmp_path / "run", "power", window=4, horizon=2)
    predictor, new = sparse_dnm.load(tmp_path / "run", threads=1), series(30).iloc[20:]
    answers = predictor.predict(new)
    assert answers.index.tolist() == [*range(6, 13)]  # those after the table, too
    for k in range(7):
        exact = outputs_by_hand(data, model, new.to_numpy()[k : k + 4])[-1, 0]
        assert answers.iloc[k] == pytest.approx(exact, abs=1e-4)
    alone = predictor.predict(new.iloc[3:7])
    assert alone.tolist() == [answers.iloc[3]]  # to the bit
    path, out = tmp_path / "new.csv", tmp_path / "found.csv"
    new.to_csv(path, index=False)
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(path), "--out", str(out)])
    assert "predictions for 7 sequences" in result.output
    assert pd.read_csv(out).row.tolist() == answers.index.tolist()
    with pytest.raises(DataError, match="X has 3 rows; the network tells a row by the 4 before it"):
        predictor.predict(new.iloc[:3])


@pytest.mark.parametrize("per_step", [False, True])
def test_arrays_of_sequences_are_predicted_with_their_lengths(tmp_path, per_step):
    data, model = trained(visits(), tmp_path / "run", "state", sequence="patient", per_step=per_step, drop="score")
    predictor, rng = sparse_dnm.load(tmp_path / "run", threads=1), np.random.default_rng(0)
    x, lengths = rng.normal(70, 9, (70, 6, 2)), rng.integers(1, 7, 70)
    for row, steps in enumerate(lengths):
        x[row, steps:] = np.nan  # not read
    answers = predictor.predict(x, lengths)
    assert answers.shape == ((70, 6) if per_step else (70,))
    for row in (0, 33, 69):
        classes = [data.classes[k] for k in outputs_by_hand(data, model, x[row, : lengths[row]]).argmax(1)]
        if per_step:
            assert answers[row].tolist() == classes + [""] * (6 - len(classes))
        else:
            assert answers[row] == classes[-1]
    np.savez(tmp_path / "new.npz", x=x, lengths=lengths)
    assert (predictor.predict(tmp_path / "new.npz") == answers).all()
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(tmp_path / "new.npz"), "--proba"])
    assert result.exit_code == 0, result.output
    said = pd.read_csv(io.StringIO(result.stdout))
    used = np.arange(6) < lengths[:, None]
    assert said.state.tolist() == answers[used].tolist() if per_step else answers.tolist()
    assert ("step" in said.columns) == per_step
    np.save(tmp_path / "new.npy", x[:3, :1])
    assert predictor.predict(tmp_path / "new.npy").size == 3
    with pytest.raises(DataError, match=r"lengths\[1\]=9 must be in 1 .. 6"):
        predictor.predict(x[:2], [1, 9])
    with pytest.raises(DataError, match=r"lengths is float64 \(2,\)"):
        predictor.predict(x[:2], [1.0, 2.0])
    with pytest.raises(DataError, match=r"sequences are \(n >= 1, time >= 1, features\)"):
        predictor.predict(x[0])


def test_errors_of_arrays_of_sequences_name_sequence_step_and_feature(tmp_path):
    units = ArrayInputs((2,), np.zeros(2), np.ones(2)), Target(mean=np.zeros(1), std=np.ones(1))
    config = ManifoldConfig.for_data(2, 1, neuron="gru", n_memory=1, n_neurons=20)
    dag = DynamicManifold(config, torch.Generator().manual_seed(0), torch.float32, threads=1).to_dag()
    predictor, x = SequencePredictor(dag, Preprocessing(*units)), np.zeros((4, 5, 2))
    for wrong in (x[:0], x[:, :0], x[..., :1], np.zeros((4, 5, 3)), x[0]):
        with pytest.raises(DataError, match=rf"X has shape {re.escape(str(wrong.shape))}; .* training had 2 features"):
            predictor.predict(wrong)
    for value in (np.nan, 1e300):
        x[1, 2, 0] = value
        with pytest.raises(DataError, match=r"in sequence 1, time step 2, feature 0 \(from 0\).* remove the sequence"):
            predictor.predict(x, [3, 4, 5, 5])
    assert predictor.predict(x, [3, 2, 5, 5]).shape == (4,)


def test_arrays_of_a_file_of_sequences_that_are_not_read_are_named(tmp_path):
    trained(visits(), tmp_path / "run", "state", sequence="patient", drop="score")
    path, x, run = tmp_path / "new.npz", np.full((3, 4, 2), 70.0), str(tmp_path / "run")
    np.savez(path, x=x, lenghts=[1, 2, 3])
    with pytest.raises(DataError, match="of sequences x and lengths are read: rename lenghts to lengths if it holds"):
        sparse_dnm.load(run).predict(path)
    done = CliRunner().invoke(app, ["predict", run, str(path)])
    assert done.exit_code == 2
    assert "or save the file without lenghts" in done.stderr
    np.savez(path, x=x, lengths=[1, 2, 3], y=[0, 1, 0])
    done = CliRunner().invoke(app, ["predict", run, str(path)])
    assert done.exit_code == 0, done.output
    assert "not read, as it is predicted: the array 'y'" in done.stderr


def test_words_and_missing_cells_are_read_in_arrays_as_in_tables(tmp_path):
    trained(visits(), tmp_path / "run", "score", sequence="patient", per_step=True, drop="dose")
    predictor = sparse_dnm.load(tmp_path / "run", threads=1)
    x = np.array([[[70.0, "ill"], [61.5, "well"]], [[np.nan, "well"], [None, None]]], object)
    rows = pd.DataFrame({"patient": [1, 1, 2], "pulse": [70.0, 61.5, np.nan], "state": ["ill", "well", "well"]})
    answers = predictor.predict(rows)
    np.testing.assert_array_equal(predictor.predict(x, [2, 1]), [[answers[0], answers[1]], [answers[2], np.nan]])
    assert predictor.predict(rows.to_dict("records")).tolist() == answers.tolist()
    assert len(predictor.predict(rows.iloc[:0])) == 0


def test_tables_that_have_no_sequences_are_refused(tmp_path):
    trained(visits(), tmp_path / "run", "state", sequence="patient")
    predictor, new = sparse_dnm.load(tmp_path / "run"), visits()
    with pytest.raises(DataError, match="X has 0 columns named 'patient', which in the training said what sequence"):
        predictor.predict(new.drop(columns="patient"))
    new.loc[3, "patient"] = None
    with pytest.raises(DataError, match="column 'patient' has no value in row 3"):
        predictor.predict(new)
    with pytest.raises(DataError, match="lengths are for sequences in an array"):
        predictor.predict(visits(), [1, 2])


@pytest.mark.parametrize("name", ["copy", "parity"])
def test_a_run_of_a_task_predicts_per_step_or_per_sequence_as_it_was_trained(tmp_path, name):
    data = load(name)
    model = DynamicManifold(preset(name).manifold, torch.Generator().manual_seed(0), threads=1)
    Trainer(model, data, TrainConfig(steps=1, batch_size=4, speed="none"), tmp_path / "run").run()
    predictor = sparse_dnm.load(tmp_path / "run", threads=1)
    lengths = None if data.lengths_test is None else data.lengths_test[:5]
    answers = predictor.predict(data.x_test[:5], lengths)
    with torch.no_grad():
        places = model(data.x_test[:5], lengths, last=name == "parity").argmax(-1)
    assert answers.tolist() == np.array(data.classes)[places].tolist()
    with pytest.raises(DataError, match="X is a table, and the training had no table whose rows make sequences"):
        predictor.predict(pd.DataFrame({"a": [1.0]}))


@pytest.mark.parametrize(("neuron", "n_memory"), [("lstm", 0), ("gru", 2), ("memoryless", 1)])
@pytest.mark.parametrize("per_step", [False, True])
def test_a_prediction_depends_on_no_other_sequence_to_the_bit(neuron, n_memory, per_step):
    units = ArrayInputs((2,), np.zeros(2), np.ones(2)), Target(mean=np.zeros(2), std=np.ones(2))
    config = ManifoldConfig.for_data(2, 2, neuron=neuron, n_memory=n_memory, n_neurons=40)
    dag = DynamicManifold(config, torch.Generator().manual_seed(0), torch.float32, threads=1).to_dag()
    predictor, rng = SequencePredictor(dag, Preprocessing(*units), steps=Steps(per_step)), np.random.default_rng(0)
    x, lengths = rng.normal(size=(130, 17, 2)), rng.integers(2, 18, 130)
    lengths[:2] = 1, 17
    whole = predictor.predict(x, lengths)
    assert len(np.unique(predictor.predict(x[:, :1]))) > 1
    for k in (0, 1, 63, 64, 127, 129):
        alone = predictor.predict(x[k : k + 1, : lengths[k]])
        assert np.array_equal(alone[0], whole[k, : lengths[k]] if per_step else whole[k])
