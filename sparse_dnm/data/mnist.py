"""MNIST and files like it: IDX under their usual names and in their usual folders, Keras' .npz, or fetch_openml."""

from __future__ import annotations

import gzip
import hashlib
import math
import socket
import warnings
import zlib
from pathlib import Path

import numpy as np

from sparse_dnm.data.arrays import read_npz
from sparse_dnm.data.errors import DataError

DATA_VARIABLE = "SPARSE_DNM_DATA"  # environment variable: folder of the IDX files
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FOLDERS = (".", "MNIST/raw", "raw", "mnist", "MNIST", "FashionMNIST/raw", "fashion-mnist", "FashionMNIST")
ARCHIVE = "mnist.npz"  # as Keras keeps it
# SHA-256 of the labels of training and test, a byte each:
FASHION_LABELS = "8ab940a680640f36c0bf1d2549cb2f3b3d4068c12547116cc7b1161b1d26663d"
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)  # the classes of Fashion-MNIST


def find_idx(folder: Path) -> list[Path]:
    """The MNIST_FILES in ``folder``, or where torchvision and others put them in it, plain or .gz.

    A dot may stand for the last dash of a name, as in train-images.idx3-ubyte.  Raises DataError naming all that are
    missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; --data-dir or ${DATA_VARIABLE} must name one with the IDX files")
    found = max((_files_in(folder / name) for name in FOLDERS), key=lambda paths: sum(p is not None for p in paths))
    missing = [f"{n} (or {n}.gz)" for n, path in zip(MNIST_FILES, found, strict=True) if path is None]
    if missing:
        place = next((path.parent for path in found if path is not None), folder)
        raise DataError(f"{place} lacks {', '.join(missing)}; put them there or give another --data-dir")
    return [path for path in found if path is not None]


def _files_in(folder: Path) -> list[Path | None]:
    return [next((path for path in _spellings(folder, name) if path.is_file()), None) for name in MNIST_FILES]


def _spellings(folder: Path, name: str) -> list[Path]:
    """Paths under which a file is found, the plain ones first; some archives unpack into a folder of its name."""
    dotted = name.replace("-idx", ".idx")
    names = [name, dotted, name.replace("t10k", "test"), dotted.replace("t10k", "test")]
    plain = [folder / each for each in dict.fromkeys(names)]
    nested = [path / path.name for path in plain] + [folder / dotted / name, folder / name / dotted]
    return [packed for path in (*plain, *nested) for packed in (path, path.with_name(f"{path.name}.gz"))]


def is_fashion(labels: list[np.ndarray]) -> bool:
    """Whether training and test labels are those of Fashion-MNIST."""
    return hashlib.sha256(b"".join(part.astype(np.uint8).tobytes() for part in labels)).hexdigest() == FASHION_LABELS


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of ``ndim`` axes in an IDX file, gzipped or not (recognised by its first bytes, not its name).

    Layout: magic number 0x00000800 + ndim, one big-endian uint32 per axis, then the cells, last axis fastest.
    Raises DataError for a truncated file or another format.
    """
    way_out = "copy or download the file again"
    try:
        raw = path.read_bytes()
        n_stored = len(raw)
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except EOFError:
        raise DataError(f"{path} is a truncated gzip, {n_stored:,} bytes without an end; {way_out}") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; {way_out}") from error
    magic, header = 0x0800 + ndim, 4 + 4 * ndim
    if len(raw) >= 4 and raw[:4] != magic.to_bytes(4, "big"):
        raise DataError(
            f"{path} starts with the magic number 0x{raw[:4].hex()}; uint8 cells on {ndim} axes have "
            f"0x{magic:08x}; {way_out}"
        )
    if len(raw) < header:
        raise DataError(f"{path} is truncated: expected a header of {header} bytes, found {len(raw)}; {way_out}")
    shape = [int(size) for size in np.frombuffer(raw, ">u4", ndim, 4)]
    expected = header + math.prod(shape)
    if len(raw) != expected:
        what = "is truncated" if len(raw) < expected else "is too long"
        raise DataError(f"{path} {what}: expected {expected:,} bytes, found {len(raw):,}; {way_out}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_mnist(folder: Path) -> list[np.ndarray]:
    """Train images (n, 784) uint8, train labels (n,), test images and test labels, from IDX files or mnist.npz.

    folder  with the IDX files, or with Keras' mnist.npz, or that file
    """
    archive = folder if folder.suffix == ".npz" else folder / ARCHIVE
    if archive.is_file():
        found = read_npz(archive)
        if "x_test" not in found:
            raise DataError(f"{archive} has no x_test and y_test, which mnist has; give another --data-dir")
        parts = [
            (f"{archive}, x{end}", f"{archive}, y{end}", found[f"x{end}"], found[f"y{end}"]) for end in ("", "_test")
        ]
    else:
        paths = find_idx(folder)
        parts = [(str(i), str(j), read_idx(i, 3), read_idx(j, 1)) for i, j in (paths[:2], paths[2:])]
    arrays = []
    for at_images, at_labels, images, labels in parts:
        if images.ndim != 3 or images.shape[0] == 0 or images.shape[1:] != (28, 28):
            sizes = " x ".join(map(str, images.shape[1:]))
            raise DataError(
                f"{at_images} holds {len(images):,} images of {sizes}; mnist has some, of 28 x 28: "
                "save other images as .npz (arrays x and y)"
            )
        if labels.shape != (len(images),):
            raise DataError(
                f"{at_images} holds {len(images):,} images but {at_labels} {len(labels):,} labels; there must be one "
                "label per image: take both files from one source"
            )
        wrong = (labels < 0) | (labels > 9)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{at_labels}: label {labels[row]} in row {row} (from 0) is not one of the classes 0..9; "
                "save data of other classes as .npz (arrays x and y)"
            )
        arrays += [images.reshape(len(images), -1), labels]
    return arrays


def fetch_mnist() -> list[np.ndarray]:
    """The same arrays through scikit-learn's fetch_openml and its cache; the first 60,000 samples are for training."""
    from sklearn.datasets import fetch_openml

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30.0)  # s; fetch_openml sets none, and a dead connection would block for minutes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Retrying...": the error below is enough
            images, labels = fetch_openml(
                "mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff", n_retries=1
            )
    except Exception as error:  # of network, cache or parser: the advice is the same
        raise DataError(
            f"fetch_openml('mnist_784') found no sound copy in scikit-learn's cache and failed: {error}; "
            f"give the folder of MNIST's IDX files by --data-dir or ${DATA_VARIABLE}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    if images.shape != (70_000, 784):
        raise DataError(
            f"fetch_openml('mnist_784') gave an array {images.shape}; MNIST is (70000, 784): clear the cache "
            f"of scikit-learn, or give the folder of MNIST's IDX files by --data-dir or ${DATA_VARIABLE}"
        )
    return [images[:60_000], labels[:60_000], images[60_000:], labels[60_000:]]
