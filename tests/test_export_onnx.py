"""Networks as ONNX models: onnx finds no fault with them, and onnxruntime gives the outputs of the network."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dags, manifolds, sparse_dags
from test_export_formats import DOC, assert_near, diamond, layered, network_for, normal, outputs_of

import sparse_dnm
from sparse_dnm import Predictor, SparseDAG, Topology
from sparse_dnm.checks import MissingPackageError
from sparse_dnm.data.columns import Column, TableInputs
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing, Target
from sparse_dnm.export import Folded, products, to_onnx, to_program
from sparse_dnm.export.files import write_file

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")


def run_onnx(model, x):
    """All outputs by name, from onnxruntime, of a model that onnx has checked."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": np.asarray(x)}), strict=True))


# -- ONNX ----------------------------------------------------------------------------------------------------


@given(model=sparse_dags(), gathered=st.booleans())
@settings(max_examples=60)
def test_onnxruntime_gives_the_outputs_of_any_dag(model, gathered):
    with pytest.MonkeyPatch.context() as patch:
        if gathered:  # products that small are dense
            patch.setattr(products, "DENSE", 2)
            patch.setattr(products, "DROP", 0)
            patch.setattr(products, "SPARE", 0)
        written = to_onnx(model)
    for batch in (1, 5):
        x = normal(batch, model.n_inputs)
        assert_near(run_onnx(written, x)["outputs"], outputs_of(model, x), 1e-9)


@given(model=manifolds(dtype=torch.float32))
@settings(max_examples=40)
def test_onnxruntime_gives_the_outputs_of_a_manifold_in_float32(model):
    written = to_onnx(model)
    for batch in (1, 5):
        x = normal(batch, model.config.n_inputs, dtype=torch.float32)
        found = run_onnx(written, x)["outputs"]
        assert found.dtype == np.float32
        assert_near(found, outputs_of(model, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_of_all_kinds_stand_side_by_side_in_a_level(dtype):
    names = ["leaky_relu", "relu", "identity", "sigmoid", "tanh", "silu", "leaky_relu(-0.5)"]
    edges = [(i, 7 + j) for i in range(7) for j in range(7)] + [(7 + j, 14) for j in range(7)]
    model = SparseDAG(
        Topology.from_edges(edges), generator=torch.Generator().manual_seed(1), dtype=dtype, threads=1,
        activation=[*names, *names, "identity"], input_neurons=True, weight=0.7, bias=0.1,
    )  # fmt: skip
    x = normal(9, 7, dtype=dtype) * 3
    assert_near(run_onnx(to_onnx(model), x)["outputs"], outputs_of(model, x), 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("name", ["leaky_relu", "relu", "sigmoid", "tanh", "silu", "leaky_relu(1.5)"])
def test_one_activation_is_one_operator_of_onnx(name):
    model = diamond(activation=name, dtype=torch.float32)
    written = to_onnx(model)
    operators = {node.op_type for node in written.graph.node}
    expected = {"leaky_relu": "LeakyRelu", "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "silu": "Sigmoid"}
    assert expected.get(name, "LeakyRelu") in operators
    x = normal(3, 2, dtype=torch.float32)
    assert_near(run_onnx(written, x)["outputs"], outputs_of(model, x))


@given(edges=dags(), output=st.sampled_from(["linear", "square"]))
@settings(max_examples=10)
def test_outputs_that_read_nothing_are_constant_for_every_sample(edges, output):
    arcs, n = edges
    topology = Topology.from_edges(arcs, n)
    model = SparseDAG(topology, 0.0, 1.5, output=output, dtype=torch.float64, threads=1)
    x = normal(3, model.n_inputs)
    assert_near(run_onnx(to_onnx(model), x)["outputs"], outputs_of(model, x), 1e-12)


def test_sparse_levels_take_memory_in_proportion_to_edges():
    model = layered([3000, 3000, 3000, 10], 2)
    n_edges, n_neurons = model.topology.n_edges, model.topology.n_neurons
    written = to_onnx(model)
    assert not written.graph.sparse_initializer
    assert sum(np.prod(c.dims) for c in written.graph.initializer) < 8 * (n_edges + n_neurons)
    x = normal(3, 3000, dtype=torch.float32)
    assert_near(run_onnx(written, x)["outputs"], outputs_of(model, x))
    assert_near(to_program(model, plain=True).module()(x).numpy(), outputs_of(model, x))


def test_values_that_nobody_reads_any_more_are_dropped():
    model = layered([300, 40, 40, 40, 2], 3)
    kept = [level.kept for level in products.levels_of(Folded.of(model), np.arange(300))]
    assert [None if k is None else len(k) for k in kept] == [None, 40, None, 40]
    x = normal(3, 300, dtype=torch.float32)
    assert_near(run_onnx(to_onnx(model), x)["outputs"], outputs_of(model, x))


# -- raw samples and predictions -----------------------------------------------------------------------------


CLASSES = [
    np.array([3, 5, 9]),
    np.array([0.5, 1.5, 2.5]),
    np.array(["up", 'naïve, "it"', "下"]),
    np.array([False, True]),
    np.array([1, 2, 3], np.uint8),
]


@pytest.mark.parametrize("classes", CLASSES, ids=lambda c: c.dtype.name)
def test_a_model_of_raw_samples_gives_classes_and_their_probabilities(classes):
    features = ArrayInputs(
        (4,), np.array([2000.0, -3.0, 0.0, 0.5]), np.array([12.0, 0.01, 1.0, 3.0]), ("a", "b", "c", "d")
    )
    made = Preprocessing(features, Target(("kind",), classes))
    model = network_for(made, len(classes))
    written = to_onnx(model, made, raw=True)
    x = normal(6, 4).numpy() * features.std + features.mean
    found = run_onnx(written, x)
    outputs = model(made.inputs(x)).detach()
    assert_near(found["outputs"], outputs.numpy())
    assert found["label"].tolist() == made.predictions(outputs).tolist()
    np.testing.assert_allclose(found["probability"], made.probabilities(outputs), atol=1e-6)
    props = {entry.key: entry.value for entry in written.metadata_props}
    assert json.loads(props["classes"]) == classes.tolist()
    assert json.loads(props["feature_names"]) == ["a", "b", "c", "d"]
    assert Preprocessing.from_json(json.loads(props["preprocessing"])).to_json() == made.to_json()
    assert (written.producer_name, props["task"]) == ("sparse-dnm", "classification")


def test_a_model_of_raw_samples_gives_a_regression_in_its_own_units():
    made = Preprocessing(
        ArrayInputs((2,), np.array([1.0, 2.0]), np.array([3.0, 4.0])),
        Target(("price", "rent"), None, np.array([1e5, 10.0]), np.array([1e4, 2.0])),
    )
    model = network_for(made, 2)
    x = normal(5, 2).numpy()
    found = run_onnx(to_onnx(model, made, raw=True), x)
    assert set(found) == {"outputs", "prediction"}
    np.testing.assert_allclose(found["prediction"], made.predictions(model(made.inputs(x))), rtol=1e-6)


TABLE = (
    Column("age", "number", mean=40.0, std=12.0, missing=True),
    Column("member", "boolean", mean=0.3, std=0.4),
    Column("town", "category", form="text", levels=("B", "A"), others=True, missing=True),
    Column("size", "number", mean=1e6, std=10.0),
    Column("sort", "category", form="text", levels=("x", "y", "z"), others=True),
    Column("day", "date", mean=20000.0, std=300.0),
    Column("shape", "category", form="text", levels=("round", "flat"), missing=True),
)
FRAME = pd.DataFrame(
    {
        "age": [30.0, np.nan, 51, 40],
        "member": [True, False, None, True],
        "town": ["A", "C", None, "B"],
        "size": [1e6, np.nan, 1e6 + 7, 1e6 - 2],
        "sort": ["z", "x", None, "w"],
        "day": ["2024-02-29", "2025-01-01", None, "2030-12-31"],
        "shape": ["flat", "round", None, "round"],
    }
)


def as_sample(frame, columns):
    """A DataFrame as rows of numbers, as the docs say."""
    raw = pd.DataFrame(index=frame.index)
    for column in columns:
        cells = frame[column.name]
        if column.kind == "category":
            places = {level: k for k, level in enumerate(column.levels)}
            raw[column.name] = [
                np.nan if cell is None else places.get(cell, -1)
                for cell in cells.astype(object).where(cells.notna(), None)
            ]
        elif column.kind == "date":
            raw[column.name] = (pd.to_datetime(cells) - pd.Timestamp(0)) / pd.Timedelta(days=1)
        else:
            raw[column.name] = cells.astype(float)
    return raw.to_numpy()


def test_the_reference_implementation_of_onnx_gives_what_onnxruntime_gives(monkeypatch):
    monkeypatch.setattr(products, "DENSE", 2)
    made = Preprocessing(TableInputs(TABLE), Target((), np.array(["no", "yes"])))
    written, sample = to_onnx(network_for(made, 2), made, raw=True), as_sample(FRAME, TABLE)
    expected = run_onnx(written, sample)
    from onnx.reference import ReferenceEvaluator

    found = ReferenceEvaluator(written).run(list(expected), {"x": sample})
    for one, other in zip(found, expected.values(), strict=True):
        assert one.tolist() == other.tolist() if one.dtype == object else np.allclose(one, other, atol=1e-6)


def test_columns_of_all_kinds_with_missing_cells_are_numbers_of_a_raw_sample():
    made = Preprocessing(TableInputs(TABLE), Target((), np.array(["no", "yes"])))
    model = network_for(made, 2)
    outputs = model(made.inputs(FRAME)).detach()
    found = run_onnx(to_onnx(model, made, raw=True), as_sample(FRAME, TABLE))
    assert_near(found["outputs"], outputs.numpy())
    assert found["label"].tolist() == made.predictions(outputs).tolist()


def test_images_with_channels_first_are_read_as_the_training_read_them():
    made = Preprocessing(
        ArrayInputs((2, 3, 2), np.array(0.5), np.array([1.0, 2.0]), channels_first=True), Target((), np.arange(2))
    )
    model = network_for(made, 2, torch.float64)
    x = normal(4, 12).numpy()
    found = run_onnx(to_onnx(model, made, raw=True), x)
    assert_near(found["outputs"], outputs_of(model, made.inputs(x.reshape(4, 2, 2, 3), torch.float64)), 1e-12)


def test_raw_samples_need_the_preprocessing():
    with pytest.raises(ValueError, match="raw=True needs the preprocessing"):
        to_onnx(diamond(), raw=True)


@pytest.mark.parametrize("preprocessing", [False, True])
def test_the_file_of_a_run_is_a_model_with_its_metadata(preprocessing, tmp_path):
    made = Preprocessing(ArrayInputs((4,), np.zeros(4), np.ones(4)), Target((), np.array(["a", "b"])))
    path = write_file(tmp_path, "model", Predictor(network_for(made, 2), made), "onnx", preprocessing)
    assert path == tmp_path / "model.onnx"
    written = onnx.load(path)
    assert [output.name for output in written.graph.output][1:] == ["label", "probability"] * preprocessing
    assert {entry.key for entry in written.metadata_props} >= {"classes", "preprocessing"}


# -- what is refused, and the docs ----------------------------------------------------------------------------


def test_a_missing_onnx_is_one_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"sparse-dnm\[onnx\]"):
        to_onnx(diamond())


def test_more_constants_than_a_file_holds_are_refused_before_it_is_written(monkeypatch):
    monkeypatch.setattr("sparse_dnm.export.onnx_file.LARGEST", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        to_onnx(diamond())


def test_the_examples_of_the_docs_run(tmp_path, monkeypatch):
    made = Preprocessing(ArrayInputs((4,), np.zeros(4), np.ones(4)), Target((), np.array(["a", "b"])))
    predictor = Predictor(network_for(made, 2), made)
    monkeypatch.setattr(sparse_dnm, "load", lambda run: predictor)
    monkeypatch.chdir(tmp_path)
    names = {"samples": np.ones((3, 4))}
    for code in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL):
        exec(code, names)
    expected = predictor.outputs(names["samples"]).numpy()
    assert_near(names["outputs"](names["net"], names["samples"]), expected)
    assert_near(names["program"].module()(predictor.inputs(names["samples"])).detach().numpy(), expected)
    assert names["label"].tolist() == predictor.predict(np.zeros((3, 4))).tolist()
