"""Arrays under their usual names, shapes and dtypes; files like MNIST's under theirs."""

import gzip
import hashlib

import numpy as np
import pytest
import torch
from scipy import sparse
from test_data import IMAGES, LABELS, idx_bytes, real_mnist, refused, saved

from sparse_dnm.data import DataError, from_arrays, load, mnist
from sparse_dnm.data.mnist import FASHION, is_fashion

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Y = np.arange(60) % 3


def same(one, other):
    """Two data sets hold the same samples."""
    return all(getattr(one, f).equal(getattr(other, f)) for f in ("x_train", "y_train", "x_test", "y_test"))


@pytest.mark.parametrize(
    "names",
    [
        "x_train y_train x_test y_test", "X_train Y_train X_test Y_test", "X y X_test y_test",
        "train_images train_labels test_images test_labels", "trainX trainY testX testY",
        "images labels test_images test_labels", "data target test_data test_targets",
    ],
)  # fmt: skip
def test_the_usual_names_of_arrays_are_known(tmp_path, names):
    x, y, x_test, y_test = names.split()
    expected = from_arrays(X, Y, X[:9], Y[:9])
    assert same(load(saved(tmp_path, **{x: X, y: Y, x_test: X[:9], y_test: Y[:9], "extra": X})), expected)
    assert same(load(saved(tmp_path, **{x: X, y: Y})), from_arrays(X, Y))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, bool])
def test_one_hot_rows_are_classes(tmp_path, dtype):
    expected = from_arrays(X, Y)
    path = saved(tmp_path, x=X, y=np.eye(3, dtype=dtype)[Y])
    made = load(path)
    assert made.task == "classification"
    assert same(made, expected)
    assert made.preprocessing.classes.tolist() == [0, 1, 2]
    assert any("y is one-hot: 3 columns" in note for note in made.notes)
    split = load(saved(tmp_path, x=X, y=np.eye(3, dtype=dtype)[Y], x_test=X[:9], y_test=np.eye(3, dtype=dtype)[Y[:9]]))
    assert split.y_test.tolist() == Y[:9].tolist()
    if dtype is not bool:
        assert load(path, task="regression").n_outputs == 3


def test_rows_with_two_labels_are_no_classes(tmp_path):
    y = np.eye(3)[Y]
    y[4, 0] = y[4, 1] = 1
    assert load(saved(tmp_path, x=X, y=y)).task == "regression"
    refused(saved(tmp_path, x=X, y=y.astype(bool)), "several labels, or none, is no class")


def test_objects_in_memory_are_converted():
    expected = from_arrays(X, Y)
    assert same(from_arrays(X.astype(object), Y.astype(object)), expected)
    assert same(from_arrays(X.tolist(), Y.tolist()), expected)
    assert same(from_arrays(torch.from_numpy(X), torch.from_numpy(Y)), expected)
    assert same(from_arrays(X, Y[:, None]), expected)
    assert same(from_arrays(sparse.csr_array(X), Y), expected)
    words = from_arrays(X, np.array(["a", "b", "c"], object)[Y])
    assert words.preprocessing.classes.tolist() == ["a", "b", "c"]
    assert from_arrays(X, np.array([True, False] * 30, object)).preprocessing.classes.dtype == bool
    assert from_arrays(X, (Y + 0.5).astype(object)).task == "regression"
    with pytest.raises(DataError, match="objects that are no numbers"):
        from_arrays(np.array([["a", 1]] * 60, object), Y)
    with pytest.raises(DataError, match="objects of different kinds"):
        from_arrays(X, np.array([1, "b"] * 30, object))


def test_objects_in_files_say_how_to_convert(tmp_path):
    refused(saved(tmp_path, x=X.astype(object), y=Y), "Object arrays", "x.astype(float)", "savez")


@pytest.mark.parametrize(
    ("shape", "first", "asked"),
    [
        ((60, 3, 8, 6), True, None), ((60, 1, 8, 8), True, None), ((60, 8, 6, 3), False, None),
        ((60, 3, 6, 3), False, None), ((60, 3, 6, 4), True, "first"), ((60, 3, 8, 6), False, "last"),
        ((60, 5, 6, 7), True, "first"),
    ],
)  # fmt: skip
def test_channels_are_recognised_by_their_sizes_or_asked_for(tmp_path, shape, first, asked):
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    made = load(saved(tmp_path, x=images, y=Y), channels=asked)
    last = np.moveaxis(images, 1, -1) if first else images
    assert (made.channels, made.period) == (last.shape[3], last.shape[2] * last.shape[3])
    expected = from_arrays(last, Y, channels="last")
    assert same(made, expected)
    assert made.preprocessing.inputs(images).equal(expected.preprocessing.inputs(last))
    assert any("--channels" in note for note in made.notes) == (asked is None and shape != (60, 8, 6, 3))


def test_channels_are_for_images_with_channels(tmp_path):
    refused(saved(tmp_path, x=X, y=Y), "channels='first'", "(4,)", channels="first")
    refused(saved(tmp_path, x=X, y=Y), "channels='middle' is unknown", channels="middle")


def test_options_of_the_split_are_for_a_derived_one(tmp_path):
    assert len(load(saved(tmp_path, x=X, y=Y), test_size=6).x_test) == 6
    refused(
        saved(tmp_path, x=X, y=Y, x_test=X, y_test=Y),
        "test_size and stratify are for a split that is derived",
        test_size=0.5,
    )


def test_doubtful_tasks_are_said(tmp_path):
    notes = load(saved(tmp_path, x=X, y=Y * 1.0)).notes
    assert any("3 different whole numbers are taken as numbers; --task classification" in note for note in notes)
    assert load(saved(tmp_path, x=X, y=Y * 1.0), task="classification").preprocessing.classes.tolist() == [
        0.0,
        1.0,
        2.0,
    ]
    assert not load(saved(tmp_path, x=X, y=RNG.normal(size=60))).notes


# Files like MNIST's --------------------------------------------------------------------------------


def write_mnist(folder, spell=lambda name: name, pack=False, labels=None):
    """Four files of 12 training and 4 test images under names that ``spell`` makes of the usual ones."""
    rng = np.random.default_rng(0)
    for image_name, label_name, n in zip(IMAGES, LABELS, (12, 4), strict=True):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for name, values in ((image_name, images), (label_name, rng.integers(0, 10, n, dtype=np.uint8))):
            path = folder / (spell(name) + ".gz" * pack)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(idx_bytes(values)) if pack else idx_bytes(values))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    "spell",
    [
        lambda name: name.replace("-idx", ".idx"),
        lambda name: f"MNIST/raw/{name}",
        lambda name: f"FashionMNIST/raw/{name}",
        lambda name: f"raw/{name}",
        lambda name: f"{name}/{name}",
        lambda name: f"{name}/{name.replace('-idx', '.idx')}",
        lambda name: name.replace("t10k", "test"),
    ],
)
def test_files_are_found_under_their_usual_names_and_folders(tmp_path, spell, pack):
    write_mnist(tmp_path / "plain")
    write_mnist(tmp_path / "other", spell, pack)
    assert same(load("mnist", tmp_path / "other"), load("mnist", tmp_path / "plain"))


def test_mnist_goes_before_fashion_where_both_are_there(tmp_path):
    write_mnist(tmp_path, lambda name: f"MNIST/raw/{name}")
    write_mnist(tmp_path, lambda name: f"FashionMNIST/raw/{name}")
    (tmp_path / "FashionMNIST/raw" / IMAGES[0]).write_bytes(b"not read")
    assert len(load("mnist", tmp_path).x_train) == 12


def test_the_archive_of_keras_is_read(tmp_path):
    write_mnist(tmp_path / "plain")
    arrays = mnist.read_mnist(tmp_path / "plain")
    x, y, x_test, y_test = (a.reshape(-1, 28, 28) if a.ndim == 2 else a for a in arrays)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    expected = load("mnist", tmp_path / "plain")
    assert same(load("mnist", tmp_path), expected)
    assert same(load("mnist", tmp_path / "mnist.npz"), expected)
    np.savez(tmp_path / "mnist.npz", x=x, y=y)
    refused("mnist", "mnist.npz has no x_test", data_dir=tmp_path)
    np.savez(tmp_path / "mnist.npz", x=x[:, :9], y=y, x_test=x_test, y_test=y_test)
    refused("mnist", "12 images of 9 x 28", data_dir=tmp_path)


def test_fashion_mnist_is_named_and_its_classes_are_predicted(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    assert load("mnist", tmp_path).name == "mnist"
    labels = mnist.read_mnist(tmp_path)[1::2]
    known = hashlib.sha256(labels[0].tobytes() + labels[1].tobytes()).hexdigest()
    monkeypatch.setattr(mnist, "FASHION_LABELS", known)
    made = load("mnist", tmp_path)
    assert made.name == "fashion-mnist"
    assert any("Fashion-MNIST" in note for note in made.notes)
    assert made.classes == tuple("0123456789")  # as runs of earlier versions have them
    assert made.preprocessing.predictions(torch.eye(10)).tolist() == list(FASHION)


@real_mnist
def test_real_mnist_is_no_fashion():
    made = load("mnist")
    assert not is_fashion([made.y_train.numpy(), made.y_test.numpy()])
