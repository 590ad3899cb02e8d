"""Estimators of scikit-learn on sequences: arrays (n, time, features) of which the shorter ones end with NaN."""

import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

import sparse_dnm
from sparse_dnm.io import CheckpointError
from sparse_dnm.sklearn import ManifoldClassifier, ManifoldRegressor

pytestmark = pytest.mark.slow  # kernels of sequences, in two dtypes, are compiled

SMALL = {"max_iter": 3, "random_state": 0, "n_jobs": 1}
CTRNN = {"manifold_params": {"neuron": "ctrnn"}}


def marked_bits(n=60, time=6, seed=0):
    """Bits and another feature; shorter sequences end with NaN, and the label is the last bit."""
    rng = np.random.default_rng(seed)
    x, lengths = rng.normal(3.0, 2.0, (n, time, 2)), rng.integers(2, time + 1, n)
    x[:, :, 0] = rng.integers(0, 2, (n, time))
    y = np.where(x[np.arange(n), lengths - 1, 0] > 0, "one", "zero")
    x[np.arange(time) >= lengths[:, None]] = np.nan
    return x, y, lengths


@pytest.fixture(scope="module")
def fitted():
    x, y, lengths = marked_bits()
    return ManifoldClassifier(**SMALL, **CTRNN).fit(x, y), x, y, lengths


def test_predictions_are_the_outputs_at_the_end_of_each_standardised_sequence(fitted):
    model, x, _, lengths = fitted
    rows = np.concatenate([one[:steps] for one, steps in zip(x, lengths, strict=True)])
    mean, std = rows.mean(0), rows.std(0)
    for k in range(8):
        state, steps = None, torch.from_numpy((x[k, : lengths[k]] - mean) / std).to(model.model_.alpha.dtype)
        with torch.no_grad():
            for step in steps:
                output, state = model.model_.step(step[None], state)
        np.testing.assert_allclose(model.predict_proba(x[k : k + 1])[0], output[0].double().softmax(0), rtol=1e-9)
    assert model.n_features_in_ == 2
    assert set(model.predict(x)) <= {"one", "zero"}


def test_lists_and_tensors_are_arrays_too(fitted):
    model, x, *_ = fitted
    expected = model.predict_proba(x)
    for same in (x.tolist(), list(x), torch.from_numpy(x)):
        np.testing.assert_array_equal(model.predict_proba(same), expected)


def test_more_steps_of_nan_at_the_end_change_nothing(fitted):
    model, x, *_ = fitted
    longer = np.pad(x, ((0, 0), (0, 4), (0, 0)), constant_values=np.nan)
    np.testing.assert_array_equal(model.predict_proba(longer), model.predict_proba(x))


def test_files_pickles_and_copies_predict_the_same(fitted, tmp_path):
    model, x, *_ = fitted
    model.save(tmp_path / "run")
    expected = model.predict_proba(x)
    for same in (ManifoldClassifier.load(tmp_path / "run"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(same.predict_proba(x), expected)


def test_a_run_directory_is_read_as_one_of_sequences_and_one_with_a_target_per_step_is_refused(fitted, tmp_path):
    model, x, _, lengths = fitted
    model.save(tmp_path / "run")
    predictor = sparse_dnm.load(tmp_path / "run", threads=1)
    found = predictor.predict_proba(np.nan_to_num(x), lengths)
    np.testing.assert_allclose(found, model.predict_proba(x), rtol=1e-9)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["per_step"] = True
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="a target for each time step"):
        ManifoldClassifier.load(tmp_path / "run")


def test_a_sequence_of_weight_three_counts_as_three():
    x, y, _ = marked_bits(12)
    weights = np.ones(12)
    weights[[1, 5]] = 3.0, 0.0
    repeated = np.concatenate([np.arange(12)[weights > 0], [1, 1]])
    a = ManifoldClassifier(**SMALL, **CTRNN).fit(x, y, weights).predict_proba(x)
    b = ManifoldClassifier(**SMALL, **CTRNN).fit(x[repeated], y[repeated]).predict_proba(x)
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_regression_of_sequences_learns_what_was_far_back():
    rng = np.random.default_rng(0)
    x = rng.random((120, 4, 1))
    y = 10.0 + 5.0 * x[:, 1, 0]
    model = ManifoldRegressor(random_state=0, n_jobs=1, manifold_params={"neuron": "gru"})
    assert model.fit(x[:80], y[:80]).score(x[80:], y[80:]) > 0.9
    assert model.model_.config.neuron == "gru"


def test_training_goes_on_with_other_sequences(fitted):
    model, x, y, _ = fitted
    went_on = pickle.loads(pickle.dumps(model)).set_params(warm_start=True)
    assert went_on.fit(x[:, :4], np.where(np.isnan(x[:, 3, 0]), "one", y)).predict(x).shape == (60,)
    stream = ManifoldClassifier(**SMALL, **CTRNN)
    for k in range(0, 60, 20):
        stream.partial_fit(x[k : k + 20], y[k : k + 20], classes=["one", "zero"])
    assert stream.predict(x).shape == (60,)


def test_scores_of_folds():
    x, y, _ = marked_bits(30)
    assert cross_val_score(clone(ManifoldClassifier(**SMALL, **CTRNN)), x, y, cv=2).shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, :1], "X has 1 features, but ManifoldClassifier is expecting 2"),
        (lambda x: x[0], r"X has shape \(6, 2\).*give one of them as X\[None\]"),
        (lambda x: np.where(np.arange(6)[:, None] == 0, np.nan, x), "sequence 0, time step 0, feature 0"),
        (lambda x: np.full_like(x, np.nan), r"sequence 0 \(from 0\) holds NaN only"),
        (lambda x: np.where(np.isnan(x), x, np.inf), "infinity"),
        (lambda x: x[:, :0], "at least one time step"),
    ],
)
def test_bad_sequences_are_refused_by_name(fitted, change, message):
    model, x, *_ = fitted
    with pytest.raises(ValueError, match=message):
        model.predict(change(x))


def test_sequences_are_for_estimators_that_were_fitted_with_them_and_for_neurons_with_a_memory():
    rng = np.random.default_rng(0)
    flat = ManifoldClassifier(**SMALL).fit(rng.random((20, 2)), np.arange(20) % 2)
    with pytest.raises(ValueError, match="dim 3"):
        flat.predict(rng.random((4, 3, 2)))
    with pytest.raises(ValueError, match=r"shape \(4, 3, 2, 2\).*sequences as \(n, time, features\)"):
        ManifoldClassifier(**SMALL).fit(rng.random((4, 3, 2, 2)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"sequences of 8, 3, \.\.\. time steps: .*end with time steps of NaN"):
        ManifoldClassifier(**SMALL).fit([rng.random((8, 2)), rng.random((3, 2))], [0, 1])
    with pytest.raises(ValueError, match="neuron='memoryless' without n_memory"):
        ManifoldClassifier(**SMALL, manifold_params={"neuron": "memoryless"}).fit(*marked_bits()[:2])
    with pytest.raises(ValueError, match="neuron='ctrnn' and n_memory=0, a recurrent network"):
        ManifoldClassifier(**SMALL, **CTRNN).fit(rng.random((20, 2)), np.arange(20) % 2)
