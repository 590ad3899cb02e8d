"""Preprocessing: raw samples to inputs, outputs to predictions, and its JSON, for every source of data."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparse_dnm.data import DataError, Preprocessing, from_arrays, load
from sparse_dnm.data.preprocessing import ArrayInputs, Target
from sparse_dnm.data.scales import in_units, moments, standardised
from sparse_dnm.sklearn.samples import table_inputs


def again(made):
    """The same through JSON text."""
    return Preprocessing.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))


def saved(folder, **arrays):
    """Path of a .npz with these arrays."""
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


@pytest.mark.parametrize("y", [np.arange(30) % 3, np.array(["b", "a"] * 15), np.arange(30) % 2 == 0, np.ones((30, 2))])
@pytest.mark.parametrize("shape", [(30, 4), (30, 3, 4), (30, 3, 4, 3)])
def test_inputs_of_the_test_samples_are_those_of_the_data_set(tmp_path, shape, y):
    x = np.random.default_rng(0).normal(3, 7, shape)
    data = load(saved(tmp_path, x=x, y=y + np.arange(30)[:, None] if y.ndim == 2 else y, x_test=x[:9], y_test=y[:9]))
    made = again(data.preprocessing)
    assert made.inputs(x[:9]).equal(data.x_test)
    assert made.inputs(x[:9].reshape(9, -1)).equal(data.x_test)
    assert made.inputs(torch.from_numpy(x)).equal(data.x_train)
    assert made.inputs(x, dtype=torch.float64).dtype == torch.float64
    assert made.feature_names == made.target_names == ()
    assert made.n_inputs == data.n_inputs


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_data_sets_with_a_name_have_a_preprocessing(name):
    data = load(name)
    made = again(data.preprocessing)
    if name == "toy":
        assert made.inputs(data.x_test).equal(data.x_test)
        assert np.array_equal(made.predictions(data.y_test), data.y_test.double().numpy())
        assert made.classes is None
    else:
        pixels = (data.x_test * 16).reshape(-1, 8, 8)
        assert made.inputs(pixels).equal(data.x_test)
        assert made.classes.tolist() == list(range(10))


def test_a_table_takes_the_columns_of_a_frame_by_name(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=40), "b": rng.normal(size=40), "kind": rng.choice(["x", "y"], 40)})
    frame.to_csv(tmp_path / "table.csv", index=False)
    made = again(load(tmp_path / "table.csv").preprocessing)
    assert (made.feature_names, made.target_names, made.classes.tolist()) == (("a", "b"), ("kind",), ["x", "y"])
    expected = made.inputs(frame[["a", "b"]].to_numpy())
    assert made.inputs(frame[["kind", "b", "a"]]).equal(expected)
    assert made.ignored(frame) == ["kind"]
    assert made.ignored(frame.to_numpy()) == []
    with pytest.raises(DataError, match=r"lacks the column 'b'.*it has 'a', 'kind'"):
        made.inputs(frame.drop(columns="b"))
    with pytest.raises(DataError, match="'a' twice"):
        made.inputs(frame.iloc[:, [0, 1, 0]])
    with pytest.raises(DataError, match="lacks the columns 'a', 'b'"):
        made.inputs(pd.DataFrame({"c": [1]}))


@pytest.mark.parametrize(
    "classes",
    [np.array([3, 7]), np.array([False, True]), np.array(["cat", "dög"]), np.array([0.1, 2.5])],
    ids=lambda classes: classes.dtype.name,
)
def test_predictions_are_classes_in_their_own_dtype(classes):
    made = again(Preprocessing(ArrayInputs((2,), np.zeros(2), np.ones(2)), Target(classes=classes)))
    outputs = torch.tensor([[0.0, 1.0], [2.0, -1.0]], requires_grad=True)
    found = made.predictions(outputs)
    assert found.dtype.kind == classes.dtype.kind
    assert found.tolist() == classes[[1, 0]].tolist()
    share = made.probabilities(outputs)
    assert share.dtype == np.float64
    np.testing.assert_allclose(
        share, [[1 / (1 + np.e), np.e / (1 + np.e)], [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(3))]]
    )


def test_predictions_of_a_regression_are_in_the_units_of_the_target():
    inputs = ArrayInputs((2,), np.zeros(2), np.ones(2))
    one = Preprocessing(inputs, Target(mean=np.array([10.0]), std=np.array([2.0])))
    assert one.predictions(torch.tensor([[1.0], [-0.5]])).tolist() == [12, 9]
    two = again(Preprocessing(inputs, Target(("u", "v"), mean=np.array([10.0, 0]), std=np.array([2.0, 1]))))
    assert two.predictions(torch.tensor([[1.0, 3.0]])).tolist() == [[12, 3]]
    with pytest.raises(DataError, match="a regression has no probabilities"):
        two.probabilities(torch.zeros(1, 2))


NUMBERS = st.floats(-1e30, 1e30)


@settings(max_examples=60, deadline=None)
@given(
    mean=hnp.arrays(np.float64, 3, elements=NUMBERS),
    std=hnp.arrays(np.float64, 3, elements=st.floats(1e-3, 1e30)),
    x=hnp.arrays(np.float64, (5, 3), elements=st.floats(-1e6, 1e6)),
)
def test_json_keeps_all_bits(mean, std, x):
    made = Preprocessing(ArrayInputs((3,), mean, std, ("a", "b", "c")), Target(mean=mean[:1], std=std[:1]))
    other = again(made)
    assert other.inputs(x).equal(made.inputs(x))
    outputs = torch.from_numpy(x[:, :1])
    assert np.array_equal(other.predictions(outputs), made.predictions(outputs))


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((4, 3)), r"X has shape \(4, 3\); it must be \(n, 2\)"),
        (np.array([[0, np.nan]]), "X: nan in row 0, column 1"),
        (np.array([[1e300, 0]]), "row 0, column 0 .* not finite in float32"),
        (np.array([[10**400, 0]], object), r"1000+\.\.\. in row 0, column 0 .* is not a number"),
        (np.array([["1", "b"]]), "'b' in row 0, column 1 .* is not a number"),
        (np.array([[1j, 0]]), "X has dtype complex128"),
        (3.0, r"X has shape \(\)"),
    ],
)
def test_bad_samples_are_named(samples, words):
    made = Preprocessing(ArrayInputs((2,), np.zeros(2), np.ones(2)), Target(classes=np.arange(2)))
    with pytest.raises(DataError, match=words):
        made.inputs(samples)


@pytest.mark.parametrize("values", [{}, {"version": 2}, {"version": 1, "inputs": 3}, [], {"version": 1, "inputs": {}}])
def test_other_json_is_refused(values):
    with pytest.raises(DataError, match="no preprocessing that sparse-dnm wrote"):
        Preprocessing.from_json(values)


@settings(max_examples=80, deadline=None)
@given(
    values=hnp.arrays(np.float64, (7, 2), elements=st.floats(-1000, 1000).map(lambda v: round(v, 3))),
    power=st.integers(-980, 1013),
    weights=st.none() | hnp.arrays(np.float64, 7, elements=st.floats(0.5, 3)),
)
def test_a_power_of_two_as_the_unit_changes_no_bit(values, power, weights):
    unit = np.array([1.0, 2.0**power])  # of the second column alone
    mean, std = moments(values, (0,), weights)
    other_mean, other_std = moments(values * unit, (0,), weights)
    constant = (values == values[0]).all(0)
    assert np.array_equal(other_mean, mean * unit)
    assert np.array_equal(other_std, np.where(constant, 1.0, std * unit))
    scaled = standardised(values, mean, std)
    assert np.array_equal(standardised(values * unit, other_mean, other_std), scaled)
    assert np.array_equal(
        in_units(scaled, other_mean, np.where(constant, unit, other_std)), in_units(scaled, mean, std) * unit
    )


def test_the_largest_and_smallest_numbers_of_float64_are_standardised():
    most, least = np.finfo(np.float64).max, np.finfo(np.float64).smallest_subnormal
    values = np.array([[most, 0], [-most, least], [most, 0], [most, 0]])
    mean, std = moments(values, (0,))
    made = standardised(values, mean, std)
    np.testing.assert_allclose(made[:, 0], np.array([1, -3, 1, 1]) / np.sqrt(3), rtol=1e-15)
    assert made[1, 1] > made[0, 1]
    np.testing.assert_allclose(in_units(made[:, 0], mean[0], std[0]), values[:, 0] * (1 - 1e-16), rtol=1e-15)


def test_images_of_another_order_are_refused_with_the_way_out():
    last = ArrayInputs((6, 5, 3), np.zeros(3), np.ones(3))
    first = ArrayInputs((6, 5, 3), np.zeros(3), np.ones(3), channels_first=True)
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3))
    with pytest.raises(DataError, match=r"must be \(n, 6, 5, 3\).*; move their channels by numpy.moveaxis\(x, 1, -1\)"):
        last.transform(np.moveaxis(x, -1, 1))
    with pytest.raises(DataError, match=r"must be \(n, 3, 6, 5\).*; move their channels by numpy.moveaxis\(x, -1, 1\)"):
        first.transform(x)
    with pytest.raises(DataError, match=r"; give one sample as x\[None\]"):
        last.transform(x[0])
    assert first.transform(np.moveaxis(x, -1, 1)).equal(last.transform(x))


@pytest.mark.parametrize(
    ("values", "other", "had"),
    [([5.0], 1e6, "held 5"), ([np.nan], 100.0, "missing"), (["x"], "y", "'x'"), ([5.0, np.nan], 6.0, "held 5")],
    ids=["constant", "empty", "one level", "constant or missing"],
)
def test_inputs_that_did_not_vary_in_training_never_do(values, other, had):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=40), "b": rng.choice(["x", "y"], 40), "k": values * (40 // len(values))})
    made = again(Preprocessing(table_inputs(frame), Target(classes=np.array([0, 1]))))
    new = frame.assign(k=[other] * 40)
    expected = made.inputs(frame.assign(k=5.0 if len(values) == 2 else frame.k))
    warned = []
    assert made.inputs(new, warned=warned).equal(expected)
    assert len(warned) == 1
    assert "column 'k': 40 of 40 cells are unlike those of the training" in warned[0]
    assert had in warned[0]
    assert made.inputs(frame, warned=(none := [])).equal(again(made).inputs(frame))
    assert none == []


def test_columns_of_an_array_that_did_not_vary_in_training_never_do():
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:, 1] = 5.0
    made = again(from_arrays(x, np.arange(40) % 2, x, np.arange(40) % 2).preprocessing)
    new, warned = x.copy(), []
    new[3:, 1] = 1e6
    assert made.inputs(new, warned=warned).equal(made.inputs(x))
    assert warned[0].startswith("column 1 (from 0): 37 of 40 values are unlike those of the training, such as 1e+06 in")
    kept = made.to_json()
    kept["inputs"].pop("constant")  # as earlier versions wrote it
    assert Preprocessing.from_json(kept).inputs(new)[3, 1] == np.float32(1e6 - 5)


def test_an_input_that_varies_in_a_later_part_of_the_training_is_read_from_then_on():
    rng = np.random.default_rng(0)
    first = pd.DataFrame({"a": rng.normal(size=40), "k": 5.0, "b": "x"})
    later = first.assign(k=rng.normal(7, 3, 40), b=["x", "y"] * 20)
    table = Preprocessing(table_inputs(first), Target(classes=np.array([0, 1]))).varied(later)
    assert table.inputs(later)[:, 1].std(correction=0).item() == pytest.approx(1)
    assert table.inputs(later)[:, 2].tolist() == [1, 0] * 20
    array = from_arrays(first[["a", "k"]].to_numpy(), np.arange(40) % 2, first[["a", "k"]].to_numpy(), [0, 1] * 20)
    varied = array.preprocessing.varied(later[["a", "k"]].to_numpy())
    assert varied.inputs(later[["a", "k"]].to_numpy())[:, 1].std(correction=0).item() == pytest.approx(1)
    assert varied.inputs(later[["a", "k"]].to_numpy())[:, 0].equal(array.x_train[:, 0])
