"""Data sets from real files (IDX written byte by byte, .npz, .csv), good, cut and wrong; the batch order."""

import contextlib
import csv
import gzip
import hashlib
import json
import os
import pickle
import socket
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dnm.data.datasets import BatchOrder, DataError, load

IMAGES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
LABELS = ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")
real_mnist = pytest.mark.skipif(
    not os.environ.get("SPARSE_DNM_DATA"), reason="$SPARSE_DNM_DATA names no folder of MNIST's IDX files"
)


def idx_bytes(values):
    """An IDX file: two zeros, 8 for uint8, the number of axes, big-endian sizes, cells."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A folder of 12 training and 4 test images, and what is in them: (images, labels) twice."""
    rng = np.random.default_rng(0)
    content = []
    for image_name, label_name, n in zip(IMAGES, LABELS, (12, 4), strict=True):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        (tmp_path / image_name).write_bytes(idx_bytes(images))
        (tmp_path / label_name).write_bytes(idx_bytes(labels))
        content.append((images, labels))
    return tmp_path, content


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Every download goes to a proxy on a closed port; scikit-learn's cache is an empty folder, returned."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY", "SPARSE_DNM_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # it remembers the proxies of its first use
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_openml_cache(folder, x, y):
    """What fetch_openml("mnist_784") leaves in its cache after downloading pixels ``x`` and labels ``y``."""
    names = [f"pixel{k + 1}" for k in range(x.shape[1])]
    text = [str(value) for value in range(256)]
    lines = ["@RELATION mnist_784", *(f"@ATTRIBUTE {name} real" for name in names)]
    lines += ["@ATTRIBUTE class {0,1,2,3,4,5,6,7,8,9}", "@DATA"]
    lines += [",".join([*(text[v] for v in row), text[label]]) for row, label in zip(x, y, strict=True)]
    arff = ("\n".join(lines) + "\n").encode()
    url = "data/v1/download/52667/mnist_784.arff"
    description = {"id": "554", "name": "mnist_784", "version": "1", "status": "active", "format": "ARFF"}
    description |= {"url": f"https://api.openml.org/{url}", "md5_checksum": hashlib.md5(arff).hexdigest()}
    column = {"is_ignore": "false", "is_row_identifier": "false", "number_of_missing_values": "0"}
    features = [column | {"name": name, "data_type": "numeric", "is_target": "false"} for name in names]
    features.append(column | {"name": "class", "data_type": "nominal", "is_target": "true"})
    features = [feature | {"index": str(k)} for k, feature in enumerate(features)]
    api = "api/v1/json/data"
    answers = {
        f"{api}/list/data_name/mnist_784/limit/2/data_version/1": {"data": {"dataset": [{"did": 554}]}},
        f"{api}/554": {"data_set_description": description | {"description": ""}},
        f"{api}/features/554": {"data_features": {"feature": features}},
        f"{api}/qualities/554": {"data_qualities": {"quality": [{"name": "NumberOfInstances", "value": str(len(x))}]}},
    }
    files = {path: json.dumps(answer).encode() for path, answer in answers.items()} | {url: arff}
    for path, content in files.items():
        file = folder / "openml" / "openml.org" / f"{path}.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(content, 1))


def refused(path, *words, **options):
    """load must raise a DataError that contains every word; returns its text."""
    with pytest.raises(DataError) as caught:
        load(path, **options)
    message = str(caught.value)
    missing = [word for word in words if str(word) not in message]
    assert not missing, f"{missing} not in: {message}"
    return message


def saved(folder, **arrays):
    """Path of a .npz with these arrays."""
    np.savez(folder / "table.npz", **arrays)
    return folder / "table.npz"


def written(folder, text):
    """Path of a .csv with this text."""
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return folder / "table.csv"


def table(rows, header="a,b,label"):
    """Text of a .csv."""
    return "\n".join([header, *rows]) + "\n"


# Built-in sets -------------------------------------------------------------------------------------


def test_toy_has_the_targets_of_its_formula():
    data = load("toy", seed=3)
    assert (data.task, data.period, data.classes) == ("regression", 5.0, ())
    assert (data.x_train.shape, data.x_test.shape) == ((20_000, 5), (2_000, 5))
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert x.dtype == y.dtype == torch.float32
        _, b, c, d, e = x.numpy().T
        np.testing.assert_array_equal(y.numpy(), np.stack([b + e, e - d, b + e + d, e - d - c], 1))
    assert abs(data.x_train.mean()) < 0.02
    assert abs(data.x_train.std() - 1) < 0.02


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_the_seed_decides_and_repeats(name):
    one, same, other = load(name, seed=1), load(name, seed=1), load(name, seed=2)
    for field in ("x_train", "y_train", "x_test", "y_test"):
        assert getattr(one, field).equal(getattr(same, field))
    assert not one.x_test.equal(other.x_test)


def test_a_seed_beyond_32_bits_works():
    assert load("digits", seed=2**40 + 1).x_test.equal(load("digits", seed=1).x_test)


def test_digits_are_scaled_and_stratified():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert (data.n_inputs, data.n_outputs, data.period) == (64, 10, 8.0)
    assert (len(data.x_train), len(data.x_test)) == (1437, 360)
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float32, torch.int64)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert data.classes == tuple("0123456789")
    share = torch.bincount(data.y_test) / torch.bincount(torch.cat([data.y_train, data.y_test]))
    assert share.min() > 0.19
    assert share.max() < 0.21
    pixels, labels = load_digits(return_X_y=True)
    original = sorted(map(tuple, np.column_stack([pixels, labels]).tolist()))
    ours = torch.cat([torch.cat([data.x_train, data.x_test]) * 16, torch.cat([data.y_train, data.y_test])[:, None]], 1)
    assert sorted(map(tuple, ours.tolist())) == original


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_describe_is_json(name):
    facts = load(name).describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["name"] == name
    assert facts["n_outputs"] == (4 if name == "toy" else 10)


def test_an_unknown_name_lists_the_legal_ones():
    refused("minst", "'minst'", "toy, digits, mnist", ".npz", ".csv")
    refused("table.xlsx", "table.xlsx", ".npz", ".csv", ".parquet")
    refused("x.npy", "one array", "numpy.savez(path, x=x, y=y)")


def test_a_target_belongs_to_csv_only(tmp_path):
    refused("digits", "'label'", ".csv", target="label")
    refused(tmp_path / "table.npz", "'label'", ".csv", target="label")


@pytest.mark.parametrize("name", ["gone.npz", "gone.csv"])
def test_a_missing_file_is_named(tmp_path, name):
    refused(tmp_path / name, name, "does not exist")
    (tmp_path / name).mkdir()
    refused(tmp_path / name, name, "is a folder")


# MNIST ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["plain", "gz", "gz without its suffix", "plain with .gz"])
@pytest.mark.parametrize("place", ["data_dir", "variable"])
def test_mnist_reads_idx_files(mnist, monkeypatch, packed, place):
    folder, ((x_train, y_train), (x_test, y_test)) = mnist
    for name in (*IMAGES, *LABELS):
        file = folder / name
        if packed.startswith("gz"):
            file.write_bytes(gzip.compress(file.read_bytes()))
        if packed in ("gz", "plain with .gz"):
            file.rename(folder / f"{name}.gz")
    monkeypatch.delenv("SPARSE_DNM_DATA", raising=False)
    if place == "variable":
        monkeypatch.setenv("SPARSE_DNM_DATA", str(folder))
    data = load("mnist", data_dir=folder if place == "data_dir" else None)
    assert (data.n_inputs, data.n_outputs, data.period) == (784, 10, 28.0)
    assert data.classes == tuple("0123456789")
    for x, y, images, labels in (
        (data.x_train, data.y_train, x_train, y_train),
        (data.x_test, data.y_test, x_test, y_test),
    ):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        np.testing.assert_array_equal(x.numpy(), images.reshape(-1, 784).astype(np.float32) / 255)
        np.testing.assert_array_equal(y.numpy(), labels)


def test_psmnist_has_the_pixels_of_mnist_in_a_drawn_order(mnist):
    folder, _ = mnist
    pixels, found = load("mnist", folder), load("psmnist", folder, seed=5)
    order = np.random.RandomState(92916).permutation(784)
    assert sorted(order) == list(range(784))
    assert found.x_train[:, :, 0].equal(pixels.x_train[:, order])
    assert found.x_test[:, :, 0].equal(pixels.x_test[:, order])
    assert found.y_train.equal(pixels.y_train)
    assert (found.name, found.n_inputs, found.per_step) == ("psmnist", 1, False)


def test_data_dir_goes_before_the_variable(mnist, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSE_DNM_DATA", str(tmp_path / "elsewhere"))
    assert len(load("mnist", data_dir=mnist[0]).x_train) == 12
    refused("mnist", "elsewhere", "--data-dir", "$SPARSE_DNM_DATA")


def test_all_missing_idx_files_are_named(mnist):
    (mnist[0] / IMAGES[1]).unlink()
    (mnist[0] / LABELS[0]).unlink()
    message = refused("mnist", *(f"{n} (or {n}.gz)" for n in (IMAGES[1], LABELS[0])), data_dir=mnist[0])
    assert IMAGES[0] not in message


@pytest.mark.parametrize("n_bytes", [0, 3, 4, 15, 16, 100, 16 + 12 * 784 - 1])
def test_a_truncated_idx_names_the_bytes(mnist, n_bytes):
    file = mnist[0] / IMAGES[0]
    file.write_bytes(file.read_bytes()[:n_bytes])
    rule = "header of 16 bytes" if n_bytes < 16 else f"expected {16 + 12 * 784:,} bytes"
    refused("mnist", IMAGES[0], "truncated", rule, f"found {n_bytes:,}", "again", data_dir=mnist[0])


def test_an_idx_with_too_many_bytes_is_refused(mnist):
    file = mnist[0] / LABELS[1]
    file.write_bytes(file.read_bytes() + b"x")
    refused("mnist", LABELS[1], "too long", "expected 12 bytes", "found 13", data_dir=mnist[0])


@pytest.mark.parametrize(("start", "shown"), [(b"\0\0\x08\x01", "0x00000801"), (b"\x89PNG", "0x89504e47")])
def test_a_wrong_magic_number_is_shown(mnist, start, shown):
    file = mnist[0] / IMAGES[0]
    file.write_bytes(start + file.read_bytes()[4:])
    refused("mnist", IMAGES[0], shown, "0x00000803", "again", data_dir=mnist[0])


@pytest.mark.parametrize("kept", [2, 10, 11, 200, -1])
def test_a_truncated_gzip_is_refused(mnist, kept):
    file = mnist[0] / IMAGES[0]
    packed = gzip.compress(file.read_bytes())[:kept]
    (mnist[0] / f"{IMAGES[0]}.gz").write_bytes(packed)
    file.unlink()
    refused("mnist", f"{IMAGES[0]}.gz", "truncated gzip", f"{len(packed):,} bytes", "again", data_dir=mnist[0])


def test_a_corrupt_gzip_is_refused(mnist):
    file = mnist[0] / LABELS[0]
    packed = bytearray(gzip.compress(file.read_bytes()))
    for k in (12, -6):  # the deflated data; the checksum
        broken = packed.copy()
        broken[k] ^= 0xFF
        file.write_bytes(broken)
        refused("mnist", LABELS[0], "again", data_dir=mnist[0])


def test_images_and_labels_must_agree(mnist):
    (mnist[0] / LABELS[0]).write_bytes(idx_bytes(np.zeros(11, np.uint8)))
    refused("mnist", IMAGES[0], "12 images", LABELS[0], "11 labels", data_dir=mnist[0])


def test_a_label_outside_the_classes_is_named(mnist):
    (mnist[0] / LABELS[1]).write_bytes(idx_bytes(np.array([1, 2, 26, 3], np.uint8)))
    refused("mnist", LABELS[1], "label 26", "row 2", "0..9", ".npz", data_dir=mnist[0])


@pytest.mark.parametrize("shape", [(12, 32, 32), (0, 28, 28)])
def test_images_of_another_size_are_refused(mnist, shape):
    (mnist[0] / IMAGES[0]).write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    refused("mnist", f"{shape[0]} images of {shape[1]} x {shape[2]}", "28 x 28", data_dir=mnist[0])


def test_offline_without_files_names_the_ways_out(offline):
    timeout, start = socket.getdefaulttimeout(), time.perf_counter()
    refused("mnist", "fetch_openml", "--data-dir", "$SPARSE_DNM_DATA")
    assert time.perf_counter() - start < 30
    assert socket.getdefaulttimeout() == timeout


def test_a_fetched_array_of_wrong_shape_is_refused(offline):
    write_openml_cache(offline, np.zeros((6, 3), int), range(6))
    refused("mnist", "(6, 3)", "(70000, 784)", "cache", "--data-dir", "$SPARSE_DNM_DATA")


@real_mnist
def test_real_mnist_is_the_official_split():
    data = load("mnist")
    assert (data.x_train.shape, data.x_test.shape) == ((60_000, 784), (10_000, 784))
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.x_train.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert data.x_train.std().item() == pytest.approx(0.3081, abs=1e-4)


@real_mnist
def test_the_cached_fetch_gives_the_bits_of_the_idx_files(request):
    files = load("mnist")
    x = torch.cat([files.x_train, files.x_test]).mul(255).round().int().numpy()
    write_openml_cache(request.getfixturevalue("offline"), x, torch.cat([files.y_train, files.y_test]).tolist())
    fetched = load("mnist")
    for field in ("x_train", "y_train", "x_test", "y_test"):
        assert getattr(fetched, field).equal(getattr(files, field))


# The user's own .npz -------------------------------------------------------------------------------


def numbers(*shape, seed=0):
    """Standard normal float64."""
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (np.arange(60) % 3, ("0", "1", "2")),
        (np.arange(60, dtype=np.uint8) % 2 * 7, ("0", "7")),
        (np.arange(60) % 2 * 2 - 1, ("-1", "1")),
        (np.arange(60) % 20, tuple(map(str, range(20)))),
        ((np.arange(60) % 3)[:, None], ("0", "1", "2")),
        (np.arange(60) % 2 == 0, ("False", "True")),
        (np.array(["cat", "dog"] * 30), ("cat", "dog")),
        (np.array([b"cat", "hündin".encode()] * 30), ("cat", "hündin")),
        (np.array([f"kind {k // 2:02d}" for k in range(60)]), tuple(f"kind {k:02d}" for k in range(30))),
    ],
    ids=["int", "uint8", "negative", "20 classes", "column", "bool", "text", "bytes", "30 texts"],
)
def test_npz_classification(tmp_path, y, classes):
    x = np.column_stack([np.arange(60), numbers(60, 2)])
    path = saved(tmp_path, x=x, y=y)
    data = load(path)
    assert (data.name, data.task, data.classes) == (str(path), "classification", classes)
    assert (data.n_inputs, data.n_outputs, data.period) == (3, len(classes), 3.0)
    assert (len(data.x_train), len(data.x_test)) == (48, 12)
    assert (data.y_train.dtype, data.target_mean, data.target_std) == (torch.int64, None, None)
    for xs, ys in ((data.x_train, data.y_train), (data.x_test, data.y_test)):  # rows keep their labels
        rows = (xs.double() * data.feature_std + data.feature_mean)[:, 0].round().long()
        assert [data.classes[k] for k in ys] == [
            v.decode() if isinstance(v, bytes) else str(v) for v in y.reshape(-1)[rows.numpy()].tolist()
        ]


@pytest.mark.parametrize(
    ("y", "n_outputs"),
    [
        (numbers(60), 1),
        (numbers(60).astype(np.float16), 1),
        (np.arange(60) % 2 * 1.0, 1),
        (np.arange(60) % 21, 1),
        (numbers(60, 3), 3),
        (np.arange(120).reshape(60, 2), 2),
    ],
    ids=["float", "float16", "whole floats", "21 integers", "columns", "integer columns"],
)
def test_npz_regression(tmp_path, y, n_outputs):
    data = load(saved(tmp_path, x=numbers(60, 4).astype(np.float32), y=y))
    assert (data.task, data.classes, data.n_outputs) == ("regression", (), n_outputs)
    assert (data.y_train.dtype, data.y_train.shape) == (torch.float32, (48, n_outputs))
    restored = torch.cat([data.y_train, data.y_test]).double() * data.target_std + data.target_mean
    expected = np.sort(y.reshape(60, -1).astype(float), axis=0)
    np.testing.assert_allclose(np.sort(restored.numpy(), axis=0), expected, atol=1e-5)


def test_many_integers_are_classes_in_many_samples(tmp_path):
    y = np.arange(2500) % 50  # sqrt(2500) = 50
    assert load(saved(tmp_path, x=numbers(2500, 1), y=y)).task == "classification"
    assert load(saved(tmp_path, x=numbers(2499, 1), y=y[:-1])).task == "regression"


def test_standardisation_knows_the_training_split_only(tmp_path):
    x = numbers(40, 3) * [1, 1e6, 1e-6] + [0, 5e7, 3]
    y = numbers(40, 2, seed=1) * [3, 100] + 7
    x_test, y_test = numbers(5, 3, seed=2) * 1000, numbers(5, 2, seed=3) * 1000
    data = load(saved(tmp_path, x=x, y=y, x_test=x_test, y_test=y_test))
    np.testing.assert_allclose(data.feature_mean.numpy(), x.mean(0))
    np.testing.assert_allclose(data.feature_std.numpy(), x.std(0))
    np.testing.assert_allclose(data.x_train.numpy(), (x - x.mean(0)) / x.std(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.x_test.numpy(), (x_test - x.mean(0)) / x.std(0), rtol=1e-5)
    np.testing.assert_allclose(data.y_test.numpy(), (y_test - y.mean(0)) / y.std(0), rtol=1e-5)
    np.testing.assert_allclose(data.target_mean.numpy(), y.mean(0))
    np.testing.assert_allclose(data.target_std.numpy(), y.std(0))


def test_constant_columns_are_divided_by_one_and_stay_constant_as_inputs(tmp_path):
    x = np.column_stack([np.full(50, 0.1), numbers(50), np.full(50, 1e-200)])
    data = load(saved(tmp_path, x=x, y=np.full(50, 0.3), x_test=x[:2] + 1, y_test=np.array([0.3, 1.3])))
    assert data.feature_std[0] == data.target_std[0] == data.feature_std[2] == 1
    assert not data.x_train[:, 0].any()
    assert not data.y_train.any()
    assert data.x_test[:, 0].tolist() == [0, 0]  # nothing is learned about other values
    assert data.y_test[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(("shape", "period"), [((30, 6, 5), 5.0), ((30, 6, 5, 3), 15.0)])
def test_images_are_flattened_row_by_row(tmp_path, shape, period):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    x[:, 0, 0] = 0  # a border pixel: constant, but not its channel
    data = load(saved(tmp_path, x=x, y=np.arange(30) % 2, x_test=x[:7], y_test=np.arange(7) % 2))
    assert (data.n_inputs, data.period) == (int(np.prod(shape[1:])), period)
    axes = (0, 1, 2)
    expected = (x - x.mean(axes)) / x.std(axes)
    np.testing.assert_allclose(data.x_train.numpy(), expected.reshape(30, -1), rtol=1e-5)
    np.testing.assert_allclose(data.x_test.numpy(), expected[:7].reshape(7, -1), rtol=1e-5)
    assert data.feature_mean.shape == data.feature_std.shape == (data.n_inputs,)


def test_bool_features_are_numbers(tmp_path):
    data = load(saved(tmp_path, x=numbers(20, 3) > 0, y=np.arange(20) % 2))
    assert set(data.x_train.sign().unique().tolist()) == {-1, 1}


def test_the_split_is_stratified_where_it_can_be(tmp_path):
    data = load(saved(tmp_path, x=numbers(100, 2), y=np.repeat([0, 1, 2], [80, 15, 5])))
    assert torch.bincount(data.y_test).tolist() == [16, 3, 1]
    data = load(saved(tmp_path, x=numbers(100, 2), y=np.repeat([0, 1, 2], [84, 15, 1])))
    assert (len(data.x_train), len(data.x_test), data.n_outputs) == (80, 20, 3)
    data = load(saved(tmp_path, x=numbers(10, 2), y=np.arange(10) % 5))  # two test rows, five classes
    assert (len(data.x_train), len(data.x_test), data.n_outputs) == (8, 2, 5)


def test_the_split_follows_the_seed(tmp_path):
    path = saved(tmp_path, x=np.arange(50)[:, None], y=numbers(50))
    one, same, other = (load(path, seed=seed) for seed in (1, 1, 2))
    assert one.x_test.equal(same.x_test)
    assert not one.x_test.equal(other.x_test)


def test_mse_is_in_the_units_of_the_file(tmp_path):
    y = np.array([[0.0, 0.0], [2.0, 20.0]] * 10)
    data = load(saved(tmp_path, x=numbers(20, 2), y=y, x_test=numbers(2, 2), y_test=y[:2]))
    outputs = (torch.tensor([[1.0, 0.0], [2.0, 14.0]]) - data.target_mean) / data.target_std
    assert data.mse(outputs.float(), data.y_test) == pytest.approx((1 + 36) / 4, rel=1e-6)
    toy = load("toy")
    assert toy.mse(toy.y_test + 2, toy.y_test) == pytest.approx(4, rel=1e-6)


X, Y = numbers(20, 3), np.arange(20) % 2


def with_value(array, place, value):
    """A copy with one other cell."""
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, ["arrays: x;", "x and y"]),
        ({}, ["arrays: none", "x and y"]),
        ({"z": X, "y": Y}, ["arrays: z, y;", "x and y", "images and labels"]),
        ({"x": X, "images": X, "y": Y}, ["arrays: x, images, y;", "x and images could both be x"]),
        ({"x": X, "y": Y, "x_test": X}, ["x, y, x_test", "both or neither"]),
        ({"x": with_value(X, (3, 2), np.nan), "y": Y}, ["x: nan in row 3, column 2 ", "remove the row"]),
        ({"x": with_value(X, (0, 1), -np.inf), "y": Y}, ["x: -inf in row 0, column 1 "]),
        ({"x": with_value(X, (0, 1), 1e300), "y": Y}, ["1e+300 in row 0, column 1 ", "float32"]),
        ({"x": with_value(X.astype(np.float16), (5, 0), np.inf), "y": Y}, ["inf in row 5, column 0 "]),
        ({"x": X, "y": with_value(numbers(20), 4, np.nan)}, ["y: nan in row 4, column 0 "]),
        ({"x": X, "y": with_value(X, (4, 1), np.inf)}, ["y: inf in row 4, column 1 "]),
        ({"x": with_value(numbers(20, 4, 5), (2, 3, 4), np.nan), "y": Y}, ["nan in row 2, column 3, 4 "]),
        (
            {"x": X, "y": Y, "x_test": with_value(X, (1, 1), np.nan), "y_test": Y},
            ["x_test: nan in row 1, column 1 "],
        ),
        ({"x": X, "y": Y[:-1]}, ["x has 20 samples but y 19"]),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y[1:]}, ["x_test has 20 samples but y_test 19"]),
        ({"x": X[:0], "y": Y[:0]}, ["x (0, 3)", "empty"]),
        ({"x": X[:, :0], "y": Y}, ["x (20, 0)", "empty"]),
        ({"x": X, "y": X[:, :0]}, ["y (20, 0)", "empty"]),
        ({"x": X, "y": Y, "x_test": X[:0], "y_test": Y[:0]}, ["x_test (0, 3)", "empty"]),
        ({"x": X[:, 0], "y": Y}, ["x has shape (20,)", "(n, features)", "reshape"]),
        ({"x": X.reshape(1, 2, 2, 5, 3), "y": Y}, ["x has shape (1, 2, 2, 5, 3)"]),
        ({"x": np.float64(3), "y": Y}, ["x has shape ()"]),
        ({"x": X, "y": np.int64(3)}, ["y has shape ()"]),
        ({"x": X, "y": numbers(20, 2, 2)}, ["y has shape (20, 2, 2)"]),
        ({"x": X, "y": np.array([["a", "b"]] * 20)}, ["y has shape (20, 2)", "(n,) labels"]),
        ({"x": X, "y": X > 0}, ["y has shape (20, 3)", "bool"]),
        ({"x": X + 1j, "y": Y}, ["x has dtype complex128", "real"]),
        ({"x": X, "y": Y + 1j}, ["y has dtype complex128", "real"]),
        ({"x": X.astype(str), "y": Y}, ["x has dtype <U", "encode"]),
        ({"x": X, "y": np.array(["2020-01-01"] * 20, "datetime64[D]")}, ["y has dtype datetime64"]),
        ({"x": X.astype(object), "y": Y}, ["Object arrays", "savez"]),
        ({"x": X, "y": np.array(["a", 1] * 10, object)}, ["Object arrays", "savez"]),
        ({"x": X, "y": np.zeros(20, int)}, ["one class 0", "two"]),
        ({"x": X, "y": np.array(["cat"] * 20)}, ["one class cat", "two"]),
        ({"x": X[:4], "y": Y[:4]}, ["4 samples", "at least 5", "x_test"]),
        (
            {"x": numbers(60, 3), "y": np.array([f"word {k}" for k in range(60)])},
            ["60 different texts", "word 9"],
        ),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, ["y_test: 2 in row 1 ", "holds 0, 1"]),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y - 1}, ["y_test: -1 in row 0 "]),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 0.5}, ["y_test: 0.5 in row 0 "]),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y * np.nan}, ["y_test: nan in row 0 "]),
        ({"x": X, "y": Y.astype(str), "x_test": X, "y_test": np.array(["2"] * 20)}, ["y_test: 2 in row 0 "]),
        ({"x": X, "y": Y.astype(str), "x_test": X, "y_test": Y}, ["y_test is int64", "labels as y does: <U"]),
        ({"x": X, "y": Y, "x_test": X, "y_test": X}, ["y_test is float64 (20, 3)"]),
        ({"x": X, "y": X[:, 0], "x_test": X, "y_test": Y.astype(str)}, ["y_test holds text"]),
        ({"x": X, "y": X, "x_test": X, "y_test": X[:, :2]}, ["y has shape (20, 3) and y_test (20, 2)"]),
        ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, ["x has shape (20, 3) and x_test (20, 2)"]),
        (
            {"x": X * 1e-30, "y": Y, "x_test": X * 1e30, "y_test": Y},
            ["x_test: ", "row 0, column 0 ", "number of standard dev"],
        ),
        ({"x": X, "y": X[:, :2] * [1.0, 1e200]}, ["y, column 1 (from 0)", "e+199", "1e-150 .. 1e+150", "divided by"]),
        ({"x": X, "y": X[:, 0] * 1e-200}, ["y, column 0 (from 0)", "e-200", "square", "give it in other units"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_arrays_are_named(tmp_path, arrays, words):
    refused(saved(tmp_path, **arrays), "table.npz", *words)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path / "raw.npz", "raw.npz", "no .npz archive")
    refused(saved(tmp_path, x=X, y=np.array([Trap()] * 20)), "Object arrays")
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "table.npz"
    for content in (b"", b"x,y\n1,2\n"):
        path.write_bytes(content)
        refused(path, "table.npz", "no .npz archive", "not a zip file", "savez")
    with path.open("wb") as file:
        np.save(file, X)
    refused(path, "no .npz archive")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "text")
        archive.writestr("y", "text")
    refused(path, "x is no numpy array", "savez")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_cut_anywhere_is_refused(tmp_path, save):
    path = tmp_path / "table.npz"
    save(path, x=X[:6], y=Y[:6])
    whole = path.read_bytes()
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        refused(path, "table.npz", "savez")


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), packed=st.booleans())
def test_a_damaged_npz_is_refused_or_read(tmp_path_factory, place, change, packed):
    path = tmp_path_factory.mktemp("damaged") / "table.npz"
    (np.savez_compressed if packed else np.savez)(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        load(path)


# The user's own .csv -------------------------------------------------------------------------------

ROWS = [f"{k},{k * k / 7},{'cat' if k % 2 else 'dog'}" for k in range(20)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_classification(tmp_path, end, mark):
    path = tmp_path / "table.CSV"
    path.write_bytes((mark + table(ROWS)).replace("\n", end).encode())
    data = load(path, keep="a")
    assert (data.task, data.classes, data.n_inputs, data.period) == ("classification", ("cat", "dog"), 2, 2.0)
    assert (len(data.x_train), len(data.x_test)) == (16, 4)
    rows = (data.x_train.double() * data.feature_std + data.feature_mean)[:, 0].round().int().tolist()
    assert data.y_train.tolist() == [0 if k % 2 else 1 for k in rows]


def test_csv_target_by_name(tmp_path):
    path = written(tmp_path, table([f"{k % 2},{k},{k * k}" for k in range(20)]))
    data = load(path, target="a", keep=["b", "label"])
    assert (data.classes, data.n_inputs) == (("0", "1"), 2)
    restored = torch.cat([data.x_train, data.x_test]).double() * data.feature_std + data.feature_mean
    expected = [[k, k * k] for k in range(20)]
    np.testing.assert_allclose(sorted(restored.tolist()), expected, atol=1e-4)
    message = refused(path, "'c'", "names 0 columns", "a, b, label", target="c")
    assert "table.csv" in message
    refused(written(tmp_path, table(ROWS, header="a,a,b")), "'a' twice", "columns 1, 2", target="b")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (["1", "+2"], "classification"),
        (["1.0", "2.0"], "regression"),
        (["1", "2.5"], "regression"),
        (["1e3", "-.5"], "regression"),
        (["3", "3b"], "classification"),
        (["True", "False"], "classification"),
        (['"a, b"', '"say ""no"""'], "classification"),
        (['"two\nlines"', "one"], "classification"),
        ([" padded ", "x"], "classification"),
    ],
)
def test_csv_labels_decide_the_task(tmp_path, labels, task):
    data = load(written(tmp_path, table([f"{k},0,{labels[k % 2]}" for k in range(20)])), keep="a")
    assert data.task == task
    if task == "classification":
        plain = [next(csv.reader([label.strip()], strict=True))[0] for label in labels if "\n" not in label]
        assert {label.lstrip("+") for label in plain} <= set(data.classes)


def test_integers_of_many_values_are_a_regression(tmp_path):
    data = load(written(tmp_path, table([f"{k},0,{k}" for k in range(30)])), keep="a")
    assert (data.task, data.n_outputs) == ("regression", 1)


def test_csv_cells_may_be_quoted_and_spaced(tmp_path):
    rows = [f'"{k}", {k / 3:.5e} , "x{k % 2}"' for k in range(20)]
    data = load(written(tmp_path, table([*rows[:7], "", *rows[7:], ""], header='"a, b", "c",label')), keep="a, b")
    assert (data.n_inputs, data.classes) == (2, ("x0", "x1"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty", "a line of names"]),
        ("a,b,label\n", ["no row"]),
        ("label\n1\n2\n", ["header ['label']", "two or more columns"]),
        ("a:b:label\n1:2:x\n", ["header ['a:b:label']", "commas"]),
        ("1,2,3\n4,5,6\n", ["['1', '2', '3']", "numbers only", "column names"]),
        (
            table([*ROWS[:3], "3,x9,cat"]),
            ["row 4 (line 5)", "column 'b'", "'x9' is not a number", "remove the row"],
        ),
        (table([*ROWS[:3], "", "3,x9,cat"]), ["row 4 (line 6)", "column 'b'"]),
        (table([*ROWS[:3], "3,1,"]), ["row 4 (line 5)", "column 'label'", "label is missing"]),
        (table([*ROWS[:3], "1,-inf,cat"]), ["row 4 (line 5)", "column 'b'", "'-inf' is not finite"]),
        (table([*ROWS[:3], "1,1e400,cat"]), ["row 4 (line 5)", "column 'b'", "'1e400' is not finite"]),
        (table([*ROWS[:3], "1_0,1,cat"]), ["column 'a'", "'1_0' is not a number"]),
        (table([*ROWS[:3], "٣,1,cat"]), ["column 'a'", "'٣' is not a number"]),
        (table([*ROWS[:3], "1,2"]), ["row 4 (line 5)", "2 cells", "header of 3"]),
        (table([*ROWS[:3], "1,2,cat,3"]), ["row 4 (line 5)", "4 cells", "header of 3"]),
        (table([*ROWS[:3], '1,2,"cat']), ["line 5", "unexpected end of data", "quotes"]),
        (table([*ROWS[:3], '1,2,"cat"x']), ["line 5", "quotes"]),
        (
            table(["1,2,0.5", "1,2,nan", "1,2,0.7"]),
            ["row 2 (line 3)", "column 'label'", "the label is missing (written 'nan')"],
        ),
        (
            table(["1,2,0.5", "1,2,O.6", "1,2,0.7"]),
            ["row 2 (line 3)", "'O.6' is not a number", "'0.5' in row 1"],
        ),
        (table([f"{k},0,w{k}" for k in range(30)]), ["30 different texts", "--target"]),
        (table([f"{k},0,w" for k in range(30)]), ["one class w"]),
        (table(ROWS[:4]), ["4 samples", "at least 5"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_tables_are_named(tmp_path, text, words):
    refused(written(tmp_path, text), "table.csv", *words)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_text_of_another_encoding_is_refused(tmp_path, encoding):
    path = tmp_path / "table.csv"
    path.write_bytes(table(ROWS, header="Größe,b,label").encode(encoding))
    refused(path, "table.csv", "UTF-8", "save it")


def test_binary_rubbish_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b,label\n1,2\0,cat\n")
    refused(path, "table.csv", "line 2")


def test_a_csv_cut_anywhere_is_refused_or_whole_up_to_its_last_cell(tmp_path):
    path = tmp_path / "table.csv"
    whole = table([f'{k}.5,{k},"{"cat" if k % 2 else "dog"}"' for k in range(9)]).encode()
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        n_quotes = whole[:n_bytes].count(b'"')
        if n_quotes in (10, 12, 14, 16, 18) and whole[:n_bytes].endswith((b'"', b'"\n')):
            data = load(path)
            assert len(data.x_train) + len(data.x_test) == n_quotes // 2
        else:
            refused(path, "table.csv")


# Batches -------------------------------------------------------------------------------------------


def order(n_samples, batch_size, seed=0):
    """A BatchOrder with a generator of its own."""
    return BatchOrder(n_samples, batch_size, torch.Generator().manual_seed(seed))


@given(n_samples=st.integers(1, 30), batch_size=st.integers(1, 70), n_batches=st.integers(1, 12))
def test_batches_are_full_and_epochs_are_permutations(n_samples, batch_size, n_batches):
    batches = order(n_samples, batch_size)
    drawn = [batches.next() for _ in range(n_batches)]
    assert all(batch.shape == (batch_size,) and batch.dtype == torch.int64 for batch in drawn)
    for epoch in torch.cat(drawn).split(n_samples):
        if len(epoch) == n_samples:
            assert epoch.sort().values.equal(torch.arange(n_samples))
        else:
            assert len(epoch.unique()) == len(epoch)


@given(
    n_samples=st.integers(1, 30),
    batch_size=st.integers(1, 70),
    before=st.integers(0, 9),
    after=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_a_resumed_order_continues_to_the_same_bits(n_samples, batch_size, before, after, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = BatchOrder(n_samples, batch_size, generator)
    for _ in range(before):
        batches.next()
    state, generator_state = batches.state(), generator.get_state()
    expected = [batches.next() for _ in range(after)]

    generator = torch.Generator().manual_seed(12345)
    generator.set_state(generator_state)
    resumed = BatchOrder(n_samples, batch_size, generator)  # draws nothing from the generator
    resumed.load_state(state)
    assert all(resumed.next().equal(batch) for batch in expected)
    assert resumed.state()["order"].equal(batches.state()["order"])


def test_epochs_differ_and_follow_the_seed():
    batches = order(100, 100)
    assert not batches.next().equal(batches.next())
    assert order(100, 100).next().equal(order(100, 100).next())
    assert not order(100, 100).next().equal(order(100, 100, seed=1).next())


def test_batches_and_states_are_copies():
    batches, twin = order(10, 4), order(10, 4)
    batches.next().zero_()
    batches.state()["order"].zero_()
    twin.next()
    state = batches.state()
    batches.load_state(state)
    state["order"].zero_()
    assert batches.next().equal(twin.next())


@pytest.mark.parametrize(("n_samples", "batch_size", "named"), [(0, 5, "n_samples=0"), (5, 0, "batch_size=0")])
def test_sizes_below_one_are_refused(n_samples, batch_size, named):
    with pytest.raises(DataError, match=named):
        order(n_samples, batch_size)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "order and position"),
        ({"order": torch.arange(4), "position": torch.tensor(0)}, "permutation of the 5"),
        ({"order": torch.tensor([0, 1, 2, 3, 3]), "position": torch.tensor(0)}, "permutation of the 5"),
        ({"order": torch.arange(5.0), "position": torch.tensor(0)}, "permutation of the 5"),
        ({"order": torch.arange(5), "position": torch.tensor(6)}, "position=6"),
        ({"order": torch.arange(5), "position": torch.tensor(-1)}, "position=-1"),
        ({"order": torch.arange(5), "position": torch.tensor([1, 2])}, "position=.1, 2"),
        ({"order": torch.arange(5), "position": torch.tensor(1.5)}, "position=1.5"),
    ],
)
def test_a_foreign_state_is_refused(state, words):
    batches, twin = order(5, 3), order(5, 3)
    with pytest.raises(DataError, match=words):
        batches.load_state(state)
    assert batches.next().equal(twin.next())


def test_a_folder_and_standard_input_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "table.csv").mkdir()
    refused(tmp_path / "images", "images is a folder", "numpy.savez(path, x=images, y=labels)")
    refused(tmp_path / "table.csv", "table.csv is a folder; name a file in it")
    refused("-", "'-' is unknown", "standard input is read by predict only")
