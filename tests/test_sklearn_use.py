"""The scikit-learn estimators in use: tables, files, other processes, interrupts, and with the rest of scikit-learn."""

import copy
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from typer.testing import CliRunner

import sparse_dnm
from sparse_dnm.cli.app import app
from sparse_dnm.io import CheckpointError
from sparse_dnm.sklearn import ManifoldClassifier, ManifoldRegressor
from sparse_dnm.train.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
X, Y = load_iris(return_X_y=True)
QUICK = {"max_iter": 30, "random_state": 0}


@pytest.fixture(scope="module")
def fitted():
    return ManifoldClassifier(class_weight={0: 1.0, 1: 2.0}, **QUICK).fit(X, Y)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 120
    frame = pd.DataFrame({
        "size": rng.normal(size=n),
        "colour": rng.choice(["red", "green", "blue"], n),
        "grade": pd.Categorical(rng.choice(list("xyz"), n)),
        "used": rng.random(n) < 0.5,
        "age": np.where(np.arange(n) % 7, rng.normal(size=n), np.nan),
    })  # fmt: skip
    frame.loc[::11, "colour"] = None
    return frame, pd.Series(np.where(frame["colour"] == "red", "yes", "no"), name="sold")


def test_numbers_of_any_size_give_the_same_bits():
    y, quick = X @ [1.0, 2.0, -1.0, 0.5], {"max_iter": 5, "random_state": 0}
    expected = ManifoldRegressor(**quick).fit(X, y).predict(X)
    for of_x, of_y in ((0, 900), (1000, 1010), (-900, -900)):
        x = X * 2.0**of_x
        found = ManifoldRegressor(**quick).fit(x, y * 2.0**of_y).predict(x)
        assert np.array_equal(found, expected * 2.0**of_y)


def test_the_unit_of_the_weights_changes_no_mean(table):
    weights = np.random.default_rng(0).integers(1, 9, len(X))
    quick = {"max_iter": 1, "random_state": 0}
    expected = ManifoldRegressor(**quick).fit(X * 2.0**300, Y, weights).preprocessing_.features
    found = ManifoldRegressor(**quick).fit(X * 2.0**300, Y, weights * 2.0**1000).preprocessing_.features
    assert np.array_equal([found.mean, found.std], [expected.mean, expected.std])
    frame, y = table
    weights = np.random.default_rng(0).integers(1, 9, len(frame))
    columns = [
        ManifoldClassifier(**quick).fit(frame, y, weights * unit).preprocessing_.features.columns
        for unit in (1.0, 2.0**1000)
    ]
    assert columns[0] == columns[1]
    with pytest.raises(ValueError, match=r"sample_weight holds 1e\+307, and the sum of all is beyond float64; divide"):
        ManifoldRegressor(**quick).fit(X, Y, np.full(len(X), 1e307))


def test_a_regression_in_huge_units_is_saved(tmp_path):
    model = ManifoldRegressor(early_stopping=True, **QUICK).fit(X, 1e305 * X[:, 0])
    model.save(tmp_path / "run")
    assert np.array_equal(ManifoldRegressor.load(tmp_path / "run").predict(X), model.predict(X))
    assert "Infinity" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_the_score_is_right_where_squares_are_beyond_float64():
    targets = np.stack([X[:, 0], X[:, 2] * X[:, 3]], 1)
    for y in (targets, targets[:, 0]):
        expected = ManifoldRegressor(**QUICK).fit(X, y)
        r2 = super(ManifoldRegressor, expected).score(X, y, sample_weight=1 + X[:, 1])
        assert expected.score(X, y, sample_weight=1 + X[:, 1]) == r2
        for unit in (2.0**550, 2.0**-600):
            model = ManifoldRegressor(**QUICK).fit(X, y * unit)
            assert model.score(X, y * unit, sample_weight=1 + X[:, 1]) == r2


def test_dates_are_no_targets():
    days = np.datetime64("2020-01-01") + np.arange(len(X)) % 3
    for y in (days, pd.Series(days), pd.DataFrame({"t": days}), days - days[0]):
        for model in (ManifoldRegressor(**QUICK), ManifoldClassifier(**QUICK)):
            with pytest.raises(
                ValueError, match=r"^y holds (dates|spans of time) .* give numbers, as of days, or texts"
            ):
                model.fit(X, y)


# -- tables --------------------------------------------------------------------------------------------------


def test_means_of_tables_follow_the_weights_of_samples(table):
    frame, y = table
    weights = np.arange(len(frame)) % 3
    repeated = frame.loc[frame.index.repeat(weights)]
    quick = {"max_iter": 2, "random_state": 0}
    weighted = ManifoldClassifier(**quick).fit(frame, y, weights).preprocessing_.features.columns
    expected = ManifoldClassifier(**quick).fit(repeated, y.repeat(weights)).preprocessing_.features.columns
    assert weighted[1].levels != ManifoldClassifier(**quick).fit(frame, y).preprocessing_.features.columns[1].levels
    for one, other in zip(weighted, expected, strict=True):
        assert (one.levels, one.missing) == (other.levels, other.missing)
        np.testing.assert_allclose([one.mean, one.std], [other.mean, other.std], rtol=1e-12)


def test_tables_with_columns_of_any_kind_are_read(table):
    frame, y = table
    model = ManifoldClassifier(random_state=0).fit(frame, y)
    assert model.score(frame, y) > 0.95  # the colour says it
    assert list(model.feature_names_in_) == list(frame.columns)
    assert model.n_features_in_ == 5
    assert model.preprocessing_.target_names == ("sold",)
    assert isinstance(model.predict(frame), np.ndarray)
    other = frame.head(3).assign(colour=["violet", None, "red"], age=np.nan)
    assert model.predict_proba(other).shape == (3, 2)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.drop(columns="age"))
    numbers = pd.DataFrame(X, columns=list("abcd"))
    np.testing.assert_array_equal(
        ManifoldClassifier(**QUICK).fit(numbers, Y).predict_proba(numbers),
        ManifoldClassifier(**QUICK).fit(X, Y).predict_proba(X),
    )


def warned_by(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        call()
    assert {each.filename for each in caught} <= {__file__}  # the line of the user
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (
            range(120),
            r"column 'k' counts the rows: .* learns the rows by heart: leave it out with X.drop\(columns='k'\)$",
        ),
        ([f"ticket {k}" for k in range(120)], "column 'k' has a text of its own in all rows, such as 'ticket 0'"),
        (["5%", "7%"] * 60, "column 'k' is taken as words, such as '5%' .numbers are written without signs"),
        (["01/02/2020", "03/04/2020"] * 60, "dates of column 'k' are read with the month first"),
        (pd.Categorical([f"c{k}" for k in range(120)]), None),
        ([1e200 * (k % 11 + k / 7) for k in range(120)], None),  # whole, as all numbers from 2**53 on are
    ],
)
def test_fit_warns_of_columns_that_train_refuses_or_warns_of(table, column, words):
    frame, y = table
    model, quick = ManifoldClassifier(max_iter=1, random_state=0), frame[["colour"]].assign(k=column)
    for call in (model.fit, ManifoldClassifier(random_state=0).partial_fit):
        more = {} if call == model.fit else {"classes": ["no", "yes"]}
        said = warned_by(lambda call=call, more=more: call(quick, y, **more))
        assert [bool(re.search(words, text)) for text in said] == [True] if words else said == []


def test_an_index_among_plain_numbers_is_warned_of_by_its_name():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(row=range(len(X)))
    (said,) = warned_by(lambda: ManifoldClassifier(max_iter=1).fit(frame, Y))
    assert said.startswith("column 'row' counts the rows")
    assert warned_by(lambda: ManifoldClassifier(max_iter=1).fit(frame.to_numpy(), Y)) == []


def test_words_that_training_has_not_seen_are_warned_of(table):
    frame, y = table
    model = ManifoldClassifier(warm_start=True, **QUICK).fit(frame, y)
    other = frame.assign(grade="w")
    for call in (model.predict, model.predict_proba, lambda x: model.fit(x, y), lambda x: model.partial_fit(x, y)):
        (said,) = warned_by(lambda call=call: call(other))
        assert said.startswith("column 'grade': 120 of 120 cells hold a level that has no input, such as 'w' in row 0")
    assert warned_by(lambda: model.predict(frame)) == []


@pytest.mark.parametrize(
    ("labels", "dtype", "expected"),
    [
        ([False, True, True], "boolean", np.bool_),
        ([3, 5, 9], "Int64", np.int64),
        ([3, 5, 9], "UInt8", np.uint8),
        ([0.0, 2.0, 3.0], "Float64", np.float64),
        (["b", "c", "a"], "string", np.object_),
        (["b", "c", "a"], pd.CategoricalDtype(["c", "a", "b", "unused"], ordered=True), np.object_),
        ([False, True, True], pd.CategoricalDtype([True, False]), np.bool_),
        ([30, 5, 9], pd.CategoricalDtype([30, 5, 9]), np.int64),
    ],
)
def test_targets_of_pandas_own_dtypes_come_back_as_plain_ones(labels, dtype, expected, tmp_path):
    y = pd.Series(np.array(labels, object)[Y], dtype=dtype, index=range(100, 250))
    model = ManifoldClassifier(max_iter=30, random_state=0).fit(X, y)
    plain = ManifoldClassifier(max_iter=30, random_state=0).fit(X, np.array(labels)[Y])
    assert model.classes_.dtype == model.predict(X).dtype == expected
    assert model.classes_.tolist() == sorted(set(labels))  # as scikit-learn has them, whatever a category's order
    assert model.predict(X).tolist() == plain.predict(X).tolist()
    assert model.score(X, y) == plain.score(X, np.array(labels)[Y]) > 0.6
    model.partial_fit(X, y)
    model.save(tmp_path / "run")
    assert ManifoldClassifier.load(tmp_path / "run").predict(X).tolist() == model.predict(X).tolist()
    first = ManifoldClassifier(random_state=0).partial_fit(X, y, classes=y.unique())
    assert first.classes_.dtype == expected
    whole = pd.DataFrame({"t": y})
    with pytest.warns(DataConversionWarning):
        assert ManifoldClassifier(max_iter=1).fit(X, whole).classes_.dtype == expected


@pytest.mark.parametrize("dtype", ["boolean", "Int64", "string", "category", object])
def test_a_missing_target_is_named(dtype):
    labels = ["a", "b"] if dtype in ("string", "category", object) else [0, 1]
    y = pd.Series(np.array(labels, object)[Y % 2]).astype(dtype)
    y[[7, 9]] = None if dtype is object else pd.NA
    with pytest.raises(ValueError, match=r"in row 7 \(from 0\), and 2 of 150 targets are missing: leave such rows out"):
        ManifoldClassifier().fit(X, y)
    if dtype in ("boolean", "Int64"):
        with pytest.raises(ValueError, match="in row 7"):
            ManifoldRegressor().fit(X, y)


def test_arrays_with_missing_values_are_refused():
    x = X.copy()
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ManifoldClassifier().fit(x, Y)


# -- training further ----------------------------------------------------------------------------------------


def test_partial_fit_goes_on_where_it_was_and_learns():
    model = ManifoldClassifier(random_state=0, learning_rate_init=0.01)
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, Y)
    model.partial_fit(X[:60], Y[:60], classes=[0, 1, 2])
    first = copy.deepcopy(model)
    for _ in range(60):
        model.partial_fit(X, Y)
    assert model.score(X, Y) > max(0.9, first.score(X, Y))
    again = pickle.loads(pickle.dumps(first))
    for each in (first, again):
        each.partial_fit(X, Y, sample_weight=np.ones(len(X)))
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    with pytest.raises(ValueError, match="none of the classes"):
        model.partial_fit(X[:3], ["a", "b", "c"])
    with pytest.raises(ValueError, match="needs all samples at once"):
        ManifoldClassifier(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="edges=9 makes a network smaller in the course of fit"):
        ManifoldRegressor(edges=9).partial_fit(X, Y)


def test_a_call_of_partial_fit_is_one_pass_of_the_optimiser_with_its_moments():
    model = ManifoldRegressor(random_state=0, batch_size=50).fit(X[:, :3], X[:, 3])
    before = {name: int(t) for name, t in model._trained.moments.items() if name.endswith("/step")}
    model.partial_fit(X[:, :3], X[:, 3])
    after = {name: int(t) for name, t in model._trained.moments.items() if name.endswith("/step")}
    assert {after[name] - before[name] for name in before} == {3}  # 150 samples, 50 in a step


def test_warm_start_goes_on_with_the_network():
    warm, cold = (ManifoldClassifier(warm_start=on, **QUICK).fit(X, Y) for on in (True, False))
    first = warm.loss_curve_[-1]
    warm.fit(X, Y)
    cold.fit(X, Y)
    assert warm.loss_curve_[0] == pytest.approx(first, rel=0.2)
    assert warm.loss_curve_[-1] < cold.loss_curve_[-1]
    with pytest.raises(ValueError, match="none of the classes"):
        warm.fit(X, Y + 1)


def test_early_stopping_holds_samples_out(fitted):
    model = ManifoldClassifier(early_stopping=True, n_iter_no_change=2, validation_fraction=0.2, random_state=0)
    model.fit(X, Y)
    assert model.summary_["n_validation"] == 30
    assert "n_validation" not in fitted.summary_


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_a_fit_that_is_interrupted_leaves_the_estimator_as_it_was(monkeypatch, kind, fitted):
    def interrupted(*_args):
        raise kind("stop")

    model, new = copy.deepcopy(fitted), ManifoldClassifier()
    monkeypatch.setattr(Trainer, "run", interrupted)
    for each in (model, new):
        with pytest.raises(kind):
            each.fit(X[:, :2], Y)
    np.testing.assert_array_equal(model.predict_proba(X), fitted.predict_proba(X))
    assert vars(new) == vars(ManifoldClassifier())
    with pytest.raises(NotFittedError):
        new.predict(X)


@pytest.mark.slow
def test_ctrl_c_ends_a_fit_at_once():
    code = (
        "import numpy as np\nfrom sparse_dnm.sklearn import ManifoldRegressor\n"
        "x = np.random.default_rng(0).normal(size=(500, 5))\nmodel = ManifoldRegressor(max_iter=10**7, verbose=True)\n"
        "try:\n    model.fit(x, x[:, 0])\nexcept KeyboardInterrupt:\n    print('stopped', vars(model).keys() == "
        "vars(ManifoldRegressor()).keys())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert "step 0" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert "stopped True" in process.communicate(timeout=120)[0]


# -- files and processes -------------------------------------------------------------------------------------


def test_copies_pickles_and_joblib_keep_all_bits(fitted, tmp_path):
    held = io.BytesIO()
    joblib.dump(fitted, held)
    held.seek(0)
    joblib.dump(fitted, tmp_path / "model.joblib")
    copies = [
        *(copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted)), joblib.load(held)),
        joblib.load(tmp_path / "model.joblib", mmap_mode="r"),
    ]
    for each in copies:
        np.testing.assert_array_equal(each.predict_proba(X), fitted.predict_proba(X))
        assert each.get_params() == fitted.get_params()


def test_a_new_process_predicts_from_a_pickle_alone(fitted, tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(fitted))
    np.save(tmp_path / "x.npy", X)
    code = (
        "import pickle, numpy as np; m = pickle.load(open('model.pkl', 'rb')); "
        "np.save('p.npy', m.predict_proba(np.load('x.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), fitted.predict_proba(X))


def test_a_run_directory_holds_the_estimator(fitted, table, tmp_path):
    fitted.save(tmp_path / "iris")
    loaded = ManifoldClassifier.load(tmp_path / "iris")
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    assert loaded.get_params() == fitted.get_params()
    assert (loaded.n_iter_, loaded.n_features_in_) == (fitted.n_iter_, fitted.n_features_in_)
    assert loaded.loss_curve_ == fitted.loss_curve_
    for each in (fitted, loaded):
        each_copy = copy.deepcopy(each).partial_fit(X, Y)
        assert each_copy.model_.n_edges > 0
    np.testing.assert_allclose(sparse_dnm.load(tmp_path / "iris").predict_proba(X), fitted.predict_proba(X), rtol=1e-9)
    with pytest.raises(ValueError, match="already holds a run"):
        fitted.save(tmp_path / "iris")
    with pytest.raises(CheckpointError, match="load it as a ManifoldClassifier"):
        ManifoldRegressor.load(tmp_path / "iris")
    frame, y = table
    model = ManifoldClassifier(**QUICK).fit(frame, y)
    model.save(tmp_path / "table")
    np.testing.assert_array_equal(ManifoldClassifier.load(tmp_path / "table").predict(frame), model.predict(frame))
    np.testing.assert_array_equal(sparse_dnm.load(tmp_path / "table").predict(frame).to_numpy(), model.predict(frame))


def test_the_command_line_predicts_with_a_saved_estimator(table, tmp_path):
    frame, y = table
    model = ManifoldClassifier(**QUICK).fit(frame, y)
    model.save(tmp_path / "run")
    frame.to_csv(tmp_path / "new.csv", index=False)
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--proba"])
    assert done.exit_code == 0, done.output
    found = pd.read_csv(io.StringIO(done.stdout))
    assert list(found.columns) == ["sold", "p(no)", "p(yes)"]
    np.testing.assert_array_equal(found["sold"], model.predict(frame))
    np.testing.assert_allclose(found.iloc[:, 1:], model.predict_proba(frame), rtol=1e-12)


def test_a_run_of_the_command_line_loads_as_an_estimator(tmp_path):
    frame = pd.DataFrame(X, columns=list("abcd")).assign(kind=np.array(["x", "y", "z"])[Y])
    frame.to_csv(tmp_path / "iris.csv", index=False)
    options = ["--steps", "60", "--speed", "none", "--out", str(tmp_path / "run")]
    made = CliRunner().invoke(app, ["train", str(tmp_path / "iris.csv"), *options])
    assert made.exit_code == 0, made.output
    model = ManifoldClassifier.load(tmp_path / "run")
    features = frame.drop(columns="kind")
    predicted = sparse_dnm.load(tmp_path / "run").predict(features)
    np.testing.assert_array_equal(model.predict(features), predicted.to_numpy())
    model.partial_fit(features, frame["kind"])


def test_importing_the_package_does_not_import_scikit_learn():
    code = "import sys, sparse_dnm; assert 'sklearn' not in sys.modules; import sparse_dnm.sklearn"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# -- with the rest of scikit-learn ---------------------------------------------------------------------------


def test_pipelines_calibration_and_importances(table):
    frame, y = table
    numbers = make_pipeline(StandardScaler(), ManifoldClassifier(**QUICK))
    assert cross_val_score(numbers, X, Y, cv=3).mean() > 0.7
    columns = ColumnTransformer([("text", OneHotEncoder(), ["colour"])], remainder="drop")
    assert make_pipeline(columns, ManifoldClassifier(**QUICK)).fit(frame, y).score(frame, y) > 0.9
    calibrated = CalibratedClassifierCV(ManifoldClassifier(**QUICK), cv=3).fit(X, Y, sample_weight=np.ones(len(X)))
    assert calibrated.predict_proba(X).shape == (150, 3)
    importance = permutation_importance(ManifoldClassifier(**QUICK).fit(X, Y), X, Y, n_repeats=2, random_state=0)
    assert importance.importances_mean.argmax() in (2, 3)  # the petals


def test_threads_may_use_one_estimator_at_once(fitted):
    expected, found = fitted.predict_proba(X), []
    threads = [threading.Thread(target=lambda: found.append(fitted.predict_proba(X))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for each in found:
        np.testing.assert_array_equal(each, expected)


SEARCH = """
import multiprocessing, sys
import joblib
import numpy as np
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sparse_dnm.sklearn import ManifoldClassifier

def main():
    x, y = load_iris(return_X_y=True)
    model = ManifoldClassifier(max_iter=20, random_state=0).fit(x, y)  # starts threads here
    search = GridSearchCV(model, {"learning_rate_init": [0.005, 0.01]}, cv=2, n_jobs=2)
    backend, method = sys.argv[1:]
    if method != "none":
        multiprocessing.set_start_method(method, force=True)
    with joblib.parallel_backend(backend, n_jobs=2):
        search.fit(x, y)
    print(search.best_score_)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "method"),
    [
        ("loky", "none"),
        ("threading", "none"),
        ("multiprocessing", "spawn"),
        ("multiprocessing", "forkserver"),
        ("multiprocessing", "fork"),
    ],
)
def test_a_search_on_two_jobs_ends_however_processes_start(backend, method, tmp_path):
    if method not in ("none", *torch.multiprocessing.get_all_start_methods()):
        pytest.skip(f"this system does not start processes by {method}")
    (tmp_path / "search.py").write_text(SEARCH)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    if method != "none":
        env["JOBLIB_START_METHOD"] = method
    command = [sys.executable, "search.py", backend, method]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    expected = GridSearchCV(
        ManifoldClassifier(max_iter=20, random_state=0), {"learning_rate_init": [0.005, 0.01]}, cv=2
    )
    assert float(run.stdout) == expected.fit(X, Y).best_score_


def test_the_examples_of_the_documentation_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "scikit-learn.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert names["search"].best_score_ > 0.9
    assert names["small"].model_.n_edges == 60
    assert names["remembers"].score(names["x"][150:], names["first"][150:]) > 0.9
    capsys.readouterr()


@pytest.mark.parametrize("gaps", [[np.nan], ["NA"]], ids=["numbers", "texts"])
def test_a_cell_that_is_missing_for_the_first_time_has_the_mean_whatever_the_other_columns_hold(gaps, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "c": rng.normal(size=60)})
    labels = np.where(frame.a > 0, "p", "q")
    model = ManifoldClassifier(**QUICK).fit(frame, labels)
    new, means = frame.astype(object), frame.copy()
    new.loc[[5, 9], "c"], means.loc[[5, 9], "c"] = np.nan, frame.c.mean()
    expected = model.predict_proba(means)
    assert np.array_equal(model.predict_proba(new.astype(float)), expected)
    with pytest.warns(UserWarning, match="column 'c': 60 of 60 cells are missing, and in training none was: .* mean"):
        assert np.array_equal(model.predict(frame.assign(c=np.nan)), model.predict(frame.assign(c=frame.c.mean())))
    with pytest.raises(ValueError, match="NaN"):
        model.predict(new.astype(float).to_numpy())
    model.save(tmp_path / "run")
    new.fillna(gaps[0]).to_csv(tmp_path / "new.csv", index=False)
    found = sparse_dnm.load(tmp_path / "run").predict_proba(tmp_path / "new.csv")
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    stream = ManifoldClassifier(**QUICK).partial_fit(frame, labels, classes=["p", "q"])
    assert stream.partial_fit(new.astype(float), labels).predict(frame).shape == (60,)
    Z = frame.copy()
    Z.loc[5, "c"] = np.nan
    assert len(cross_val_score(ManifoldClassifier(**QUICK), Z, labels, cv=3, error_score="raise")) == 3


def test_a_feature_with_the_name_of_the_target_is_not_scored_against(tmp_path):
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=40), "c": np.arange(40.0)})
    target = pd.Series(np.roll(frame.a, 1), name="a")
    ManifoldRegressor(**QUICK).fit(frame, target).save(tmp_path / "run")
    frame.to_csv(tmp_path / "new.csv", index=False)
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(tmp_path / "new.csv")])
    assert (result.exit_code, result.stderr) == (0, "")
