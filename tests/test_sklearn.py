"""The scikit-learn estimators: scikit-learn's own checks, and what they do not cover."""

import re

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.sklearn import ManifoldClassifier, ManifoldRegressor
from sparse_dnm.sklearn.settings import FULL_BATCH, configs_for

X, Y = load_iris(return_X_y=True)
QUICK = {"max_iter": 30, "random_state": 0}
GOOD = {"random_state": 0}


@parametrize_with_checks([ManifoldClassifier(), ManifoldRegressor()])
def test_scikit_learns_checks_pass(estimator, check):
    check(estimator)


# -- accuracy and settings -----------------------------------------------------------------------------------


def test_the_defaults_learn_iris_and_a_line():
    assert ManifoldClassifier(**GOOD).fit(X[::2], Y[::2]).score(X[1::2], Y[1::2]) > 0.9
    x, y = make_regression(200, 5, noise=1.0, random_state=0)
    assert ManifoldRegressor(**GOOD).fit(x[::2], y[::2]).score(x[1::2], y[1::2]) > 0.9


def test_predictions_are_those_of_the_network_by_hand():
    model = ManifoldClassifier(**QUICK).fit(X, Y)
    inputs = torch.from_numpy((X - X.mean(0)) / X.std(0))
    with torch.no_grad():
        outputs = model.model_(inputs)
    np.testing.assert_array_equal(model.predict(X), outputs.argmax(1).numpy())
    np.testing.assert_allclose(model.predict_proba(X), outputs.softmax(1).numpy(), rtol=1e-9)
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(model.predict_proba(X)), rtol=1e-9)

    y = np.stack([3.0 * X[:, 0] + 100.0, X[:, 1] * X[:, 2]], 1)
    model = ManifoldRegressor(**QUICK).fit(X, y)
    with torch.no_grad():
        outputs = model.model_(inputs).numpy()
    np.testing.assert_allclose(model.predict(X), outputs * y.std(0) + y.mean(0), rtol=1e-9)


def test_labels_come_back_in_their_own_type():
    for labels in (["a", "b", "c"], [-1, 5, 7], [0.5 * 2, 2.0, 3.0]):
        y = np.array(labels)[Y]
        model = ManifoldClassifier(max_iter=1).fit(X, y)
        assert model.predict(X).dtype == y.dtype
        assert list(model.classes_) == labels
    model = ManifoldClassifier(max_iter=1).fit(X, Y == 0)
    assert model.predict(X).dtype == np.bool_


def test_a_number_of_edges_and_fields_of_the_configurations_are_kept_to():
    model = ManifoldClassifier(edges=40, random_state=0, manifold_params={"activation": "tanh"}).fit(X, Y)
    assert model.model_.n_edges == 40
    assert model.model_.config.activation == "tanh"
    model.partial_fit(X, Y)
    assert model.model_.n_edges == 40
    model = ManifoldClassifier(train_params={"steps": 7, "lr": 0.03}, n_jobs=1).fit(X, Y)
    assert model.summary_["steps"] == model.n_iter_ == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"edges": 0}, "The 'edges' parameter of ManifoldClassifier must be an integer >= 1, or None. Got 0 instead"),
        ({"edges": 5, "budget_us": 3.0}, "both say how small the network becomes"),
        ({"batch_size": "some"}, "an integer >= 1, 'auto' or 'full'"),
        ({"n_jobs": 0}, "an integer other than 0"),
        ({"class_weight": "weighted"}, "'balanced', a dict of a weight for each class, or None"),
        ({"manifold_params": {"neurons": 5}}, "'neurons', which is no field of ManifoldConfig"),
        ({"train_params": {"lr": -1}}, "lr=-1"),
        ({"random_state": -1}, "random_state=-1 cannot be used to seed"),
        ({"random_state": "x"}, "random_state='x' cannot be used to seed"),
        ({"edges": 1}, "edges=1 cannot be met: each of the 3 outputs needs an edge; give edges=3 or more"),
        ({"edges": 10**9}, "more than the"),
    ],
)
def test_parameters_that_cannot_be_followed_are_named(changes, words):
    model = ManifoldClassifier(**changes)
    with pytest.raises(ValueError, match=re.escape(words)):
        model.fit(X, Y)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_large_tables_are_trained_in_batches_and_small_ones_as_a_whole():
    x, y = np.tile(X, (7, 1)), np.tile(Y, 7)
    assert len(x) > FULL_BATCH
    large, small = (ManifoldClassifier(max_iter=2, random_state=0).fit(*each) for each in ((x, y), (X, Y)))
    assert large.model_.alpha.dtype == torch.float32
    assert large.summary_["steps"] > large.n_iter_ == 2
    assert small.model_.alpha.dtype == torch.float64
    assert small.summary_["steps"] == small.n_iter_ == 2
    whole = ManifoldClassifier(max_iter=2, batch_size="full", random_state=0).fit(x, y)
    assert whole.summary_["steps"] == 2
    weighted = ManifoldClassifier(max_iter=2, random_state=0).fit(X, Y, np.full(len(X), 7.0))
    assert weighted.model_.alpha.dtype == torch.float32  # as if each sample were there seven times


def test_the_same_seed_gives_the_same_network_on_any_number_of_threads():
    found = [ManifoldClassifier(n_jobs=n, **QUICK).fit(X, Y).predict_proba(X) for n in (None, 1, -1)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    other = ManifoldClassifier(max_iter=30, random_state=1).fit(X, Y).predict_proba(X)
    assert not np.array_equal(found[0], other)
    drawn = [ManifoldClassifier(max_iter=5, random_state=np.random.RandomState(3)).fit(X, Y) for _ in range(2)]
    np.testing.assert_array_equal(*(model.predict_proba(X) for model in drawn))


def test_passes_are_counted_in_samples_that_are_trained_on(tmp_path):
    x, y = np.tile(X, (7, 1)), np.tile(Y, 7)
    model = ManifoldClassifier(max_iter=10, early_stopping=True, edges=150, random_state=0).fit(x, y)
    assert model.summary_["steps"] == 10 * -(-945 // 128)  # a tenth of 1,050 is held out
    assert model.n_iter_ == 10
    assert model.model_.n_edges == 150
    model.save(tmp_path / "run")
    assert ManifoldClassifier.load(tmp_path / "run").n_iter_ == 10
    model = ManifoldRegressor(max_iter=4, early_stopping=True, validation_fraction=0.5, random_state=0).fit(x, y)
    assert (model.n_iter_, model.summary_["steps"]) == (4, 4 * -(-525 // 128))


def test_a_cut_to_a_budget_may_lose_two_samples_in_any_case():
    values = ManifoldClassifier(budget_us=50.0).get_params()
    targets = np.array(Y), np.repeat(Y, 40)
    for y, expected in zip(targets, (100 * 2 / 15, 2.0), strict=True):
        x = torch.zeros(len(y), 4, dtype=torch.float64)
        made = Dataset("X", "classification", x, torch.from_numpy(y), x[:0], torch.from_numpy(y[:0]), 4.0, tuple("abc"))
        assert configs_for(values, made, 0, None)[1].max_loss == pytest.approx(expected)
    values["train_params"] = {"max_loss": 1.0}
    assert configs_for(values, made, 0, None)[1].max_loss == 1.0
    values.update(train_params=None, validation_fraction=0.0)
    assert configs_for(values, made, 0, None)[1].max_loss == TrainConfig().max_loss


@pytest.mark.slow
def test_budgets_are_kept_for_large_tables_and_regressions():
    x, y = make_regression(1200, 8, noise=5.0, random_state=0)
    model = ManifoldRegressor(budget_us=1e4, max_iter=20, random_state=0).fit(x, y)
    assert 1e6 * model.summary_["fresh_seconds"] <= 1e4
    assert model.n_iter_ == 20
    assert model.score(x, y) > 0.9
    with pytest.raises(ValueError, match=r"^budget_us=0.01 cannot be met.*give budget_us=[\d.]+ or more"):
        model.set_params(budget_us=0.01).fit(x, y)
    assert model.score(x, y) > 0.9


def test_an_edges_network_is_trained_further_to_another_number():
    model = ManifoldClassifier(edges=60, warm_start=True, random_state=0).fit(X, Y)
    for edges in (30, 120):
        assert model.set_params(edges=edges, max_iter=200).fit(X, Y).model_.n_edges == edges
        assert model.score(X, Y) > 0.9
    new = clone(model)
    assert new.get_params() == model.get_params()
    assert not hasattr(new, "classes_")
    weights = np.linspace(0.0, 3.0, len(X))
    model.partial_fit(X, Y, sample_weight=weights)
    assert model.model_.n_edges == 120
    one, other = (ManifoldClassifier(random_state=0) for _ in range(2))
    one.partial_fit(X, Y, classes=[0, 1, 2], sample_weight=weights)
    other.partial_fit(X[1:], Y[1:], classes=[0, 1, 2], sample_weight=5.0 * weights[1:])  # the first weighs nothing
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))


# -- weights -------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=8)
def test_a_weight_is_as_many_samples(seed, classes):
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(20, 3)), rng.integers(0, 4, 20)
    y = rng.integers(0, 3, 20) if classes else rng.normal(size=(20, 2))
    kind = ManifoldClassifier if classes else ManifoldRegressor
    more = {"class_weight": "balanced"} if classes else {}
    made = kind(max_iter=60, random_state=0, **more)
    repeated = clone(made).fit(x.repeat(weights, 0), y.repeat(weights, 0))
    weighted = clone(made).fit(x, y, weights)
    method = "predict_proba" if classes else "predict"
    np.testing.assert_allclose(getattr(weighted, method)(x), getattr(repeated, method)(x), rtol=1e-6, atol=1e-9)
    halves = clone(made).fit(x.repeat(2, 0), y.repeat(2, 0), weights.repeat(2) / 2)
    if weights.sum() >= 40:  # else the number of samples counts, not the sum of their weights
        np.testing.assert_allclose(getattr(halves, method)(x), getattr(repeated, method)(x), rtol=1e-6, atol=1e-9)


def test_class_weights_are_sample_weights():
    factors = {0: 1.0, 1: 2.0, 2: 5.0}
    by_class = ManifoldClassifier(class_weight=factors, **QUICK).fit(X, Y)
    by_sample = ManifoldClassifier(**QUICK).fit(X, Y, np.array([1.0, 2.0, 5.0])[Y] * 3 / 8)  # of mean 1
    np.testing.assert_allclose(by_class.predict_proba(X), by_sample.predict_proba(X), rtol=1e-9)
    kept = np.r_[0:50, 50:60]
    plain, balanced = (
        ManifoldClassifier(class_weight=how, **QUICK).fit(X[kept], Y[kept]) for how in (None, "balanced")
    )
    weights = np.where(Y[kept] == 0, 60 / 100, 60 / 20)
    same = ManifoldClassifier(**QUICK).fit(X[kept], Y[kept], weights)
    np.testing.assert_allclose(balanced.predict_proba(X), same.predict_proba(X), rtol=1e-9)
    assert not np.allclose(plain.predict_proba(X), same.predict_proba(X))


@pytest.mark.parametrize(
    ("labels", "given", "words"),
    [
        (["p", "q", "r"], {"P": 9}, "class_weight has the key 'P', which is no class; the classes are 'p', 'q', 'r'"),
        ([1, 2, 3], {1: 2, "2": 9}, "class_weight has the key '2', which is no class; the classes are 1, 2, 3"),
        ([False, True, True], {"True": 9}, "has the key 'True', which is no class; the classes are False, True"),
        (["p", "q", "r"], {"p": None}, "must hold finite weights >= 0, and one above zero. Got None instead"),
        (["p", "q", "r"], {"p": "x"}, "Got 'x' instead"),
        (["p", "q", "r"], {"p": -1.0}, "Got -1.0 instead"),
        (["p", "q", "r"], {"p": 0, "q": 0, "r": 0}, "must hold finite weights >= 0, and one above zero"),
    ],
)
def test_weights_of_what_is_no_class_are_refused(labels, given, words):
    y = np.array(labels)[Y]
    with pytest.raises(ValueError, match=re.escape(words)):
        ManifoldClassifier(class_weight=given, **QUICK).fit(X, y)
    with pytest.raises(ValueError, match=re.escape(words)):
        ManifoldClassifier(class_weight=given, **QUICK).partial_fit(X, y, classes=np.unique(y))


def test_samples_may_lack_a_class_where_all_others_have_a_weight():
    weights = {0: 1.0, 1: 2.0, 2: 3.0}
    assert list(ManifoldClassifier(max_iter=1, class_weight=weights).fit(X[Y < 2], Y[Y < 2]).classes_) == [0, 1]


def test_a_class_of_weight_zero_is_not_there():
    model = ManifoldClassifier(**QUICK).fit(X, Y, (Y != 1).astype(float))
    assert list(model.classes_) == [0, 2]
    assert model.predict_proba(X).shape == (150, 2)
    with pytest.raises(ValueError, match="y holds one class, 2"):
        model.fit(X, Y, Y == 2)


@pytest.mark.parametrize("weights", [np.ones((150, 1)), np.ones(3), -np.ones(150), np.zeros(150), np.full(150, np.nan)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="sample_weight"):
        ManifoldClassifier(**QUICK).fit(X, Y, weights)


def test_what_is_no_number_is_named_with_a_way_out():
    model = ManifoldClassifier(**QUICK)
    with pytest.raises(ValueError, match=r"^sample_weight='a' must be None or a number for each sample"):
        model.fit(X, Y, "a")
    texts = X.astype(object)
    texts[3, 1] = "z"
    with pytest.raises(ValueError, match=r"'z' in row 3, column 1 \(from 0\) .* give words as a DataFrame of pandas"):
        model.fit(texts, Y)
    with pytest.raises(ValueError, match=r"'z' in row 3, column 1 \(from 0\)"):
        model.fit(X, Y).predict(texts)
    for frame in (pd.DataFrame(X, columns=list("abca")), pd.DataFrame(texts, columns=list("abca"))):
        with pytest.raises(ValueError, match="X has 'a' twice, as columns 1, 4; rename or remove one of them"):
            model.fit(frame, Y)


def test_cells_of_tables_that_do_not_fit_are_shown_as_they_are_written():
    frame = pd.DataFrame({"day": ["2020-01-01", "2020-02-03"] * 20, "size": ["1.5", "2.5"] * 20})
    y = np.arange(40) % 2
    model = ManifoldClassifier(**QUICK).fit(frame, y)
    expected = r"'03.03.2020' is no date of the format ISO8601, .* write it as 2020-01-31"
    with pytest.raises(ValueError, match=expected):
        model.predict(frame.assign(day="03.03.2020"))
    for call in (model.predict, lambda x: model.fit(x, y)):
        with pytest.raises(ValueError, match=r"column 'size': '1e400' is not finite in float64"):
            call(frame.assign(size="1e400"))


def test_the_score_is_weighted():
    model = ManifoldClassifier(**QUICK).fit(X, Y)
    right = model.predict(X) == Y
    assert model.score(X, Y, sample_weight=right + 1e-9) == pytest.approx(1.0, abs=1e-6)
