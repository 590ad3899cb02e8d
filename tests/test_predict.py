"""Predictions for new samples from a run directory alone, by `sparse_dnm.load` and on the command line."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mean_squared_error, r2_score
from typer.testing import CliRunner

import sparse_dnm
from sparse_dnm.cli.app import app
from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.data.datasets import DataError, Dataset
from sparse_dnm.data.options import Reading
from sparse_dnm.data.source import DataSource
from sparse_dnm.io import CheckpointError
from sparse_dnm.model.dense import DenseManifold
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.train.trainer import Trainer

CONFIG = TrainConfig(steps=20, batch_size=16, lr=0.02, fine_tune=0.0, speed="none")
NAMES = ['up, "very"', "naïve\nline", "下"]  # classes that a .csv must quote
FEATURES = ["area", "lot", "rooms"]


def train(source, out, data=None, config=CONFIG):
    """A short training; returns its trainer."""
    data = source.load() if data is None else data
    manifold = ManifoldConfig.for_data(data.n_inputs, data.n_outputs, seed=1)
    model = DynamicManifold(manifold, torch.Generator().manual_seed(1), executor="columns", threads=1)
    trainer = Trainer(model, data, config, out, source)
    trainer.run()
    return trainer


def frame_of_houses(n=200):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)) * [10, 100, 1] + [50, 900, 5]
    frame = pd.DataFrame(x.round(3), columns=FEATURES)
    frame["price"] = (1000 * x[:, 0] + 10 * x[:, 1]).round(2)
    frame["rent"] = (2 * x[:, 2]).round(4)
    frame["kind"] = [NAMES[k] for k in np.digitize(x[:, 0], [45, 55])]
    return frame


class Kept:
    """A run directory whose training file is gone, with what is needed to check it: the trainer and raw samples."""

    def __init__(self, folder, target, drop, dataset="houses.csv"):
        frame = frame_of_houses()
        frame.to_csv(folder / dataset, index=False)
        source = DataSource(str(folder / dataset), target=target, reading=Reading(drop=drop))
        self.out, self.frame = folder / "run", frame
        self.trainer = train(source, self.out)
        (folder / dataset).unlink()
        self.predictor = sparse_dnm.load(self.out)

    def expected(self, rows):
        """Outputs for raw rows, computed by hand: standardised in numpy, then the trained model."""
        data = self.trainer.data
        x = (rows[FEATURES].to_numpy() - data.feature_mean.numpy()) / data.feature_std.numpy()
        with torch.no_grad():
            return self.trainer.model(torch.from_numpy(x.astype(np.float32))).double().numpy()


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("regression"), "price", ("rent", "kind"))


@pytest.fixture(scope="module")
def two_targets(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("two"), ("price", "rent"), ("kind",))


@pytest.fixture(scope="module")
def classification(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("classes"), "kind", ("price", "rent"))


@pytest.fixture(scope="module")
def runs(regression, classification, two_targets):
    return {"regression": regression, "classification": classification, "two targets": two_targets}


def invoke(*arguments, code=0, stdin=None):
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


# From Python ------------------------------------------------------------------------------------------------


def test_predictions_are_in_the_units_of_the_target(regression):
    rows = regression.frame.head(70)
    data = regression.trainer.data
    by_hand = regression.expected(rows)[:, 0] * data.target_std.numpy() + data.target_mean.numpy()
    found = regression.predictor.predict(rows)
    assert isinstance(found, pd.Series)
    assert found.name == "price"
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert 20_000 < found.mean() < 100_000
    dense = DenseManifold.from_manifold(regression.trainer.model)
    with torch.no_grad():
        outputs = dense(regression.predictor.inputs(rows)).double().numpy()
    np.testing.assert_allclose(found, outputs[:, 0] * data.target_std.numpy() + data.target_mean.numpy(), rtol=1e-4)
    with pytest.raises(DataError, match="a regression has no probabilities"):
        regression.predictor.predict_proba(rows)
    assert regression.predictor.task == "regression"
    assert regression.predictor.classes is None


def test_classes_have_their_names_and_probabilities_their_columns(classification):
    rows = classification.frame.head(70).set_index(pd.Index(range(100, 170), name="id"))
    outputs = classification.expected(rows)
    predictor = classification.predictor
    classes = sorted(NAMES)
    assert predictor.classes.tolist() == classes
    found = predictor.predict(rows)
    assert found.tolist() == [classes[k] for k in outputs.argmax(1)]
    assert found.index.equals(rows.index)
    shares = predictor.predict_proba(rows)
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    np.testing.assert_allclose(shares, powers / powers.sum(1, keepdims=True), rtol=1e-5)
    assert shares.columns.tolist() == classes
    assert shares.index.equals(rows.index)
    assert (predictor.feature_names, predictor.target_names) == (tuple(FEATURES), ("kind",))
    assert repr(predictor).startswith("Predictor(classification of kind, 3 inputs, 3 outputs")


def test_several_targets_are_columns(two_targets):
    rows = two_targets.frame.head(9)
    found, data = two_targets.predictor.predict(rows), two_targets.trainer.data
    by_hand = two_targets.expected(rows) * data.target_std.numpy() + data.target_mean.numpy()
    assert found.columns.tolist() == ["price", "rent"]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    np.testing.assert_array_equal(two_targets.predictor.predict(rows[FEATURES].to_numpy()), found)


@given(
    order=st.permutations([*FEATURES, "id", "price", "kind"]),
    rows=st.lists(st.integers(0, 199), max_size=80),
    chunk=st.integers(1, 90),
)
@settings(max_examples=25)
@pytest.mark.parametrize("name", ["regression", "classification", "two targets"])
def test_order_extra_columns_and_chunks_change_no_bit(runs, name, order, rows, chunk):
    run = runs[name]
    predictor, frame = run.predictor, run.frame.assign(id="x")
    whole = predictor.outputs(run.frame).numpy()
    inputs = predictor.inputs(frame[order].iloc[rows])
    parts = torch.cat(list(predictor.chunks(inputs, chunk))).numpy()
    assert parts.tobytes() == whole[rows].tobytes()
    assert len(predictor.predict(frame[order].iloc[rows])) == len(rows)


def test_samples_may_be_anything_that_holds_rows(classification, tmp_path):
    predictor, rows = classification.predictor, classification.frame[FEATURES].head(5)
    expected = predictor.predict(rows).tolist()

    class Polars:
        columns = FEATURES

        def to_pandas(self):
            return rows

    rows.to_csv(tmp_path / "new.csv", index=False)
    rows.to_parquet(tmp_path / "new.parquet")
    np.save(tmp_path / "new.npy", rows.to_numpy())
    np.savez(tmp_path / "new.npz", X_test=rows.to_numpy(), other=np.zeros(3))
    forms = [
        *(rows.to_numpy(), rows.to_numpy().tolist(), torch.tensor(rows.to_numpy()), rows.to_dict("list"), Polars()),
        *(tmp_path / f"new{suffix}" for suffix in (".csv", ".parquet", ".npy", ".npz")),
        str(tmp_path / "new.csv"),
    ]
    for samples in forms:
        assert list(predictor.predict(samples)) == expected, samples


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns=["lot", "area"]), "lacks the columns 'area', 'lot'"),
        (lambda rows: rows.assign(lot="big"), "row 0 .*column 'lot': 'big'"),
        (lambda rows: rows.to_numpy()[:, :2], r"shape \(4, 2\); it must be \(n, 3\)"),
        (lambda rows: rows.to_numpy()[0], r"shape \(3,\)"),
        (lambda rows: rows.assign(lot=np.inf), "row 0"),
        (lambda rows: rows.iloc[:, [0, 1, 1, 2]], "'lot' twice"),
        (lambda rows: "nowhere.csv", "nowhere.csv does not exist"),
        (lambda rows: "new.docx", "are read from .npz"),
    ],
)
def test_samples_that_do_not_fit_are_refused_by_name(regression, change, words):
    with pytest.raises(DataError, match=words):
        regression.predictor.predict(change(regression.frame[FEATURES].head(4)))


def test_outputs_that_are_not_finite_are_an_error(regression):
    inputs = regression.predictor.inputs(regression.frame.head(5))
    inputs[3] = 3e38
    with pytest.raises(DataError, match=r"outputs for row 3 \(from 0\) are not finite"):
        list(regression.predictor.chunks(inputs, 2))


@pytest.mark.parametrize(
    "labels", [np.array([3, 7, 7, 12]), np.array([False, True]), np.array(["a", "b"])], ids=lambda y: y.dtype.name
)
def test_classes_keep_their_dtype(tmp_path, labels):
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = labels[np.arange(60) % len(labels)]
    np.savez(tmp_path / "data.npz", x=x, y=y)
    train(DataSource(str(tmp_path / "data.npz")), tmp_path / "run")
    (tmp_path / "data.npz").unlink()
    found = sparse_dnm.load(tmp_path / "run").predict(x)
    assert found.dtype.kind == labels.dtype.kind
    assert set(found.tolist()) <= set(labels.tolist())


@pytest.mark.parametrize("shape", [(4, 3), (5, 6, 3)])
def test_images_are_predicted_as_they_were_trained_on(tmp_path, shape):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (60, *shape), np.uint8)
    np.savez(tmp_path / "data.npz", images=x, labels=np.arange(60) % 2)
    trainer = train(DataSource(str(tmp_path / "data.npz")), tmp_path / "run")
    (tmp_path / "data.npz").unlink()
    predictor = sparse_dnm.load(tmp_path / "run")
    mean, std = trainer.data.feature_mean.numpy(), trainer.data.feature_std.numpy()
    with torch.no_grad():
        outputs = trainer.model(torch.from_numpy(((x.reshape(60, -1) - mean) / std).astype(np.float32)))
    torch.testing.assert_close(predictor.outputs(x), outputs)
    assert predictor.outputs(x.reshape(60, -1)).equal(predictor.outputs(x))
    assert predictor.predict(x).tolist() == outputs.argmax(1).tolist()


def test_data_made_in_python_are_predicted_as_they_were_given(tmp_path):
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    data = Dataset("own", "classification", x[:60], y[:60], x[60:], y[60:], 4.0, ("low", "high"))
    trainer = train(None, tmp_path / "classes", data)
    predictor = sparse_dnm.load(tmp_path / "classes")
    with torch.no_grad():
        expected = trainer.model(x)
    torch.testing.assert_close(predictor.outputs(x), expected)
    assert predictor.predict(x.numpy()).tolist() == [("low", "high")[k] for k in expected.argmax(1)]

    units = {"target_mean": torch.tensor([5.0]).double(), "target_std": torch.tensor([10.0]).double()}
    y = x[:, :1]
    data = Dataset("own", "regression", x[:60], y[:60], x[60:], y[60:], 4.0, **units)
    trainer = train(None, tmp_path / "numbers", data)
    with torch.no_grad():
        expected = trainer.model(x).double().numpy()[:, 0] * 10 + 5
    np.testing.assert_allclose(sparse_dnm.load(tmp_path / "numbers").predict(x), expected, rtol=1e-5)


def test_a_training_that_is_not_finished_is_said(classification, tmp_path):
    shutil.copytree(classification.out, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.warns(UserWarning, match="is not finished: predictions are those of its checkpoint, step 20 of 20"):
        sparse_dnm.load(tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"does not exist; is .*run the directory of a run"):
        sparse_dnm.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"config.json does not exist"):
        sparse_dnm.load(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def nameless(tmp_path_factory):
    """The run directory of arrays without names of columns."""
    folder = tmp_path_factory.mktemp("nameless")
    frame = frame_of_houses()
    np.savez(folder / "houses.npz", x=frame[FEATURES], y=frame["price"])
    train(DataSource(str(folder / "houses.npz")), folder / "run")
    return folder / "run"


def test_names_that_are_not_looked_at_are_said(nameless, regression, tmp_path):
    frame = frame_of_houses(20)[FEATURES]
    predictor = sparse_dnm.load(nameless)
    with pytest.warns(UserWarning, match="X has feature names, but the network was fitted without feature names"):
        predictor.predict(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict(frame.to_numpy())
        predictor.predict(frame.set_axis(range(3), axis=1))
    frame[FEATURES[::-1]].to_csv(tmp_path / "new.csv", index=False)
    np.save(tmp_path / "new.npy", frame)
    frame.to_csv(tmp_path / "none.csv", index=False, header=False)
    said = CliRunner().invoke(app, ["predict", str(nameless), str(tmp_path / "new.csv")]).stderr
    note = "note: read by position: the training had no names of columns, and the file has 'rooms', 'lot', 'area'\n"
    assert said == note
    said = CliRunner().invoke(app, ["predict", str(nameless), str(tmp_path / "none.csv"), "--header", "none"]).stderr
    assert said == ""
    said = CliRunner().invoke(app, ["predict", str(regression.out), str(tmp_path / "new.npy")]).stderr
    assert said == "note: read by position, as the file has no names of columns: 'area', 'lot', 'rooms'\n"


def notes_of(run, frame, tmp_path):
    """The last line that predict says of a file with the target."""
    frame.to_csv(tmp_path / "new.csv", index=False)
    result = CliRunner().invoke(app, ["predict", str(run.out), str(tmp_path / "new.csv")])
    assert result.exit_code == 0
    return result.stderr.splitlines()[-1]


def test_a_file_with_the_target_gets_a_score(regression, two_targets, classification, tmp_path):
    frame = frame_of_houses(300)[100:]
    found = regression.predictor.predict(frame)
    r2, mse = r2_score(frame.price, found), mean_squared_error(frame.price, found)
    assert notes_of(regression, frame, tmp_path) == (
        f"note: score on 'price' of 200 rows: R² {r2:.4g}, mean squared error {mse:.6g}"
    )
    both = ["price", "rent"]
    r2 = r2_score(frame[both], two_targets.predictor.predict(frame))
    assert f"score on 'price', 'rent' of 200 rows: R² {r2:.4g}, " in notes_of(two_targets, frame, tmp_path)
    assert "score" not in notes_of(two_targets, frame.drop(columns="rent"), tmp_path)
    found = classification.predictor.predict(frame)
    accuracy, balanced = accuracy_score(frame.kind, found), balanced_accuracy_score(frame.kind, found)
    assert notes_of(classification, frame, tmp_path) == (
        f"note: score on 'kind' of 200 rows: accuracy {accuracy:.4g}, balanced accuracy {balanced:.4g}"
    )


def test_rows_without_the_target_or_of_another_class_are_said_beside_the_score(classification, regression, tmp_path):
    frame = frame_of_houses(40)
    gaps = frame.assign(
        kind=[None if k in (3, 5) else "new" if k in (7, 9, 11) else v for k, v in enumerate(frame.kind)]
    )
    left = gaps.drop(index=[3, 5])
    accuracy = (left.kind == classification.predictor.predict(left)).mean()
    said = notes_of(classification, gaps, tmp_path)
    assert f"score on 'kind' of 38 rows: accuracy {accuracy:.4g}, " in said
    assert said.endswith(
        "; 3 rows of a class that training did not have ('new'): wrong; 2 rows without a value are left out"
    )
    assert "no score on 'kind': the column is empty in all rows" in notes_of(
        classification, frame.assign(kind=None), tmp_path
    )
    words = frame.assign(price=[*frame.price[:-1].astype(str), "cheap"])
    said = notes_of(regression, words, tmp_path)
    assert "no score on 'price': row 39 (from 0), column 'price': 'cheap' is no number" in said


def test_the_checkpoint_of_another_run_is_refused(classification, regression, tmp_path):
    shutil.copytree(classification.out, tmp_path / "run")
    shutil.copy(regression.out / "checkpoint.safetensors", tmp_path / "run")
    with pytest.raises(CheckpointError, match="belongs to another run"):
        sparse_dnm.load(tmp_path / "run")


def forget(out):
    """Make a run one of an earlier version, which kept no preprocessing."""
    about = json.loads((out / "config.json").read_text())
    del about["preprocessing"]
    (out / "config.json").write_text(json.dumps(about))


def test_a_run_of_an_earlier_version_needs_its_data_once(classification, tmp_path):
    out, rows = tmp_path / "run", classification.frame[FEATURES].head(9)
    shutil.copytree(classification.out, out)
    forget(out)
    with pytest.raises(CheckpointError, match=r"earlier version.*its data once.*does not exist.*--data-dir"):
        sparse_dnm.load(out)
    classification.frame.to_csv(tmp_path / "houses.csv", index=False)
    with pytest.warns(UserWarning, match="its preprocessing was made from the data .*houses.csv, and is kept"):
        predictor = sparse_dnm.load(out, data_dir=tmp_path)
    expected = classification.predictor.outputs(rows)
    assert predictor.outputs(rows).equal(expected)
    (tmp_path / "houses.csv").unlink()
    assert sparse_dnm.load(out).outputs(rows).equal(expected)  # without a warning: they are errors here
    forget(out)
    with pytest.raises(CheckpointError, match="have changed since"):
        sparse_dnm.load(out, data=sparse_dnm.data.load("digits"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.rename(columns={"area": "rooms", "rooms": "area"}), "names of columns"),
        (lambda f: f.assign(lot=f.lot * 1024), "means or deviations"),  # standardised, the bits are the same
        (lambda f: f.assign(price=f.price * 1024), "label"),
        (lambda f: f.rename(columns={"price": "cost"}), "label"),
    ],
)
def test_a_training_does_not_go_on_with_other_names_or_units(tmp_path, change, words):
    frame = frame_of_houses()[[*FEATURES, "price"]]
    source = DataSource(str(tmp_path / "data.csv"))
    change(frame).to_csv(tmp_path / "data.csv", index=False)
    changed = source.load()
    frame.to_csv(tmp_path / "data.csv", index=False)
    trainer = train(source, tmp_path / "run", config=dataclasses.replace(CONFIG, steps=2))
    assert trainer.data.x_train.equal(changed.x_train)
    with pytest.raises(CheckpointError, match=rf"have changed since the run in .*\({words}\)"):
        Trainer.resume(tmp_path / "run", changed, steps=3)
    Trainer.resume(tmp_path / "run", source.load(), steps=3)


def test_a_table_without_names_is_read_without_them(tmp_path):
    frame = frame_of_houses()[["price", *FEATURES]]
    frame.to_csv(tmp_path / "data.csv", index=False, header=False)
    source = DataSource(str(tmp_path / "data.csv"), target="column 1", reading=Reading(header="none"))
    train(source, tmp_path / "run")
    predictor = sparse_dnm.load(tmp_path / "run")
    assert predictor.feature_names == ("column 2", "column 3", "column 4")
    expected = predictor.predict(frame[FEATURES].to_numpy())
    frame[FEATURES].to_csv(tmp_path / "new.csv", index=False, header=False)
    assert np.array_equal(predictor.predict(tmp_path / "new.csv"), expected)
    assert np.array_equal(predictor.predict(tmp_path / "data.csv"), expected)  # with the target


# On the command line ------------------------------------------------------------------------------------------


def test_the_command_prints_what_python_predicts(runs, tmp_path):
    frame = frame_of_houses(30)
    frame.to_csv(tmp_path / "new.csv", index=False)
    for run in runs.values():
        found = pd.read_csv(io.StringIO(invoke(run.out, tmp_path / "new.csv")))
        expected = run.predictor.predict(frame)
        pd.testing.assert_frame_equal(found, expected.to_frame() if expected.ndim == 1 else expected, check_exact=True)


def test_probabilities_are_columns_beside_the_prediction(classification, tmp_path):
    frame = frame_of_houses(30)[FEATURES]
    frame.to_csv(tmp_path / "new.csv", index=False)
    found = pd.read_csv(io.StringIO(invoke(classification.out, "-", "--proba", stdin=frame.to_csv(index=False))))
    assert found.columns.tolist() == ["kind", *(f"p({name})" for name in sorted(NAMES))]
    assert found["kind"].tolist() == classification.predictor.predict(frame).tolist()
    np.testing.assert_array_equal(found.iloc[:, 1:], classification.predictor.predict_proba(frame))


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_predictions_are_written_to_a_file(classification, two_targets, tmp_path, suffix):
    frame = frame_of_houses(30)[FEATURES]
    frame.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / f"out{suffix}"
    out.write_text("an earlier file is replaced")
    printed = invoke(classification.out, tmp_path / "new.csv", "--proba", "--out", out)
    assert printed == f"written to {out}: predictions for 30 rows\n"
    labels, shares = classification.predictor.predict(frame), classification.predictor.predict_proba(frame)
    if suffix == ".npz":
        with np.load(out) as held:
            assert held["prediction"].tolist() == labels.tolist()
            assert held["classes"].tolist() == sorted(NAMES)
            np.testing.assert_array_equal(held["probability"], shares)
        invoke(two_targets.out, tmp_path / "new.csv", "--out", out)
        with np.load(out) as held:
            np.testing.assert_array_equal(held["prediction"], two_targets.predictor.predict(frame))
    else:
        found = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
        assert found["kind"].tolist() == labels.tolist()
        np.testing.assert_array_equal(found.iloc[:, 1:], shares)


def test_columns_that_are_not_read_are_noted(regression, tmp_path):
    frame_of_houses(3).assign(id="x").to_csv(tmp_path / "new.csv", index=False)
    said = CliRunner().invoke(app, ["predict", str(regression.out), str(tmp_path / "new.csv")]).stderr
    assert said.splitlines()[:-1] == [
        "note: not read, as it is predicted: 'price'",
        "note: not read, as the training did not use them: 'rent', 'kind', 'id'",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.csv"], "nowhere.csv does not exist"),
        (["new.csv", "--proba"], "a regression has no probabilities"),
        (["new.csv", "--out", "new.csv"], "would replace the file that is read"),
        (["new.csv", "--out", "out.txt"], "--out out.txt must end in .csv, .npz or .parquet"),
        (["new.csv", "--out", "folder/out.csv"], "the folder folder does not exist"),
        (["lacking.csv"], "lacks the column 'rooms'"),
        (["new.csv", "--header", "perhaps"], "header='perhaps' is unknown"),
    ],
)
def test_wrong_requests_are_one_line(regression, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    frame_of_houses(3)[FEATURES].to_csv("new.csv", index=False)
    frame_of_houses(3)[["area", "lot"]].to_csv("lacking.csv", index=False)
    error = invoke(regression.out, *arguments, code=2)
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_bad_cell_of_standard_input_is_named_so(regression):
    error = invoke(regression.out, "-", code=2, stdin="area,lot,rooms\n1,2\n")
    assert "standard input" in error
    assert "2 cells" in error


def test_evaluate_without_its_data_says_where_to_name_them_and_that_predict_needs_none(regression, tmp_path):
    out = CliRunner().invoke(app, ["evaluate", str(regression.out)])
    assert out.exit_code == 2
    assert "do not exist any more; name their folder with --data-dir, or the file where it has another" in out.stderr
    assert f"sparse-dnm predict {regression.out} NEW needs no data" in out.stderr
    regression.frame.to_csv(tmp_path / "renamed.csv", index=False)
    out = CliRunner().invoke(app, ["evaluate", str(regression.out), "--data-dir", str(tmp_path / "renamed.csv")])
    assert "reproduced" in out.stdout, out.output


@pytest.mark.slow
def test_a_pipe_gets_utf_8_in_any_locale_and_may_close_early(classification, tmp_path):
    frame_of_houses(9000)[FEATURES].to_csv(tmp_path / "new.csv", index=False)
    command = [sys.executable, "-m", "sparse_dnm.cli", "predict", str(classification.out), "new.csv"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    found = pd.read_csv(io.BytesIO(done.stdout))["kind"]
    assert found.tolist() == classification.predictor.predict(tmp_path / "new.csv").tolist()
    process = subprocess.Popen([*command, "--proba"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(120)) == (b"", 141)


def test_levels_unseen_in_training_are_said(tmp_path):
    frame = frame_of_houses()[[*FEATURES, "price"]].assign(zip=[f"0100{k % 3}" for k in range(200)])
    frame.to_csv(tmp_path / "houses.csv", index=False)
    source = DataSource(str(tmp_path / "houses.csv"), target="price", reading=Reading(categories="zip"))
    predictor = train(source, tmp_path / "run") and sparse_dnm.load(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"column 'zip': 200 of 200 cells.*such as '1000' in row 0.*read .* as text"):
        predictor.predict(pd.read_csv(tmp_path / "houses.csv"))
    frame.head(2).assign(zip="1001").to_csv(tmp_path / "new.csv", index=False)
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(tmp_path / "new.csv")])
    assert "note: column 'zip': 2 of 2 cells" in result.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict(frame)


def test_a_column_that_is_missing_unlike_in_training_is_said(regression, tmp_path):
    frame = frame_of_houses(20)[FEATURES]
    with pytest.warns(UserWarning, match=r"column 'lot': 20 of 20 cells are missing, and in training none was: .*mean"):
        found = regression.predictor.predict(frame.assign(lot=np.nan))
    mean = regression.trainer.data.feature_mean[1].item()
    assert found.equals(regression.predictor.predict(frame.assign(lot=mean)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regression.predictor.predict(frame.assign(lot=[np.nan] * 10 + [900.0] * 10))


def test_a_bad_cell_is_named_with_its_file(regression, tmp_path):
    frame_of_houses(3)[FEATURES].assign(lot="big").to_csv(tmp_path / "new.csv", index=False)
    said = invoke(regression.out, tmp_path / "new.csv", code=2)
    assert f"{tmp_path / 'new.csv'}, row 0 (from 0), column 'lot': 'big' is no number" in said
    assert "samples.csv is a folder" in invoke(regression.out, folder(tmp_path / "samples.csv"), code=2)
    assert "samples is a folder" in invoke(regression.out, folder(tmp_path / "samples"), code=2)


def folder(path):
    path.mkdir()
    return path


def test_a_row_may_be_a_dict(classification):
    predictor = classification.predictor
    new = classification.frame[FEATURES].head(5)
    expected = predictor.predict(new)
    for k, row in enumerate(new.to_dict("records")):
        assert predictor.predict(row).tolist() == [expected.iloc[k]]
    assert predictor.predict(new.to_dict("records")).tolist() == expected.tolist()


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CheckpointError, match=r"t\.csv is a file, not a run directory"):
        sparse_dnm.load(tmp_path / "t.csv")


def test_a_dash_is_standard_output(regression, tmp_path):
    regression.frame.head(3).to_csv(tmp_path / "new.csv", index=False)
    expected = invoke(regression.out, tmp_path / "new.csv")
    assert invoke(regression.out, tmp_path / "new.csv", "--out", "-") == expected
