"""The data sets with a name: toy, digits and mnist."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from sparse_dnm.data.labels import split
from sparse_dnm.data.mnist import DATA_VARIABLE, FASHION, fetch_mnist, is_fashion, read_mnist
from sparse_dnm.data.options import Reading
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing, Target
from sparse_dnm.data.samples import Dataset

VERSION = 2  # of the samples of toy
DIGITS = tuple("0123456789")  # the classes of digits and mnist


def toy(seed: int, version: int = VERSION) -> Dataset:
    """a..e ~ N(0, 1), targets b+e, e-d, b+e+d, e-d-c; no target depends on a.

    Version 1 drew them by torch, whose float32 normals have other bits on processors without AVX2.
    """
    n_train, n_test = 20_000, 2_000
    shape = n_train + n_test, 5
    if version == 1:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    else:
        generator = np.random.Generator(np.random.PCG64(seed % 2**64))
        x = torch.from_numpy(generator.standard_normal(shape).astype(np.float32))
    _, b, c, d, e = x.unbind(1)
    y = torch.stack([b + e, e - d, b + e + d, e - d - c], 1)
    made = Preprocessing(_scaled((5,), 1.0), Target(mean=np.zeros(4), std=np.ones(4)))
    return Dataset(
        "toy", "regression", x[:n_train], y[:n_train], x[n_train:], y[n_train:], period=5.0, preprocessing=made
    )


def digits(seed: int) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels 0..16, a stratified 20 % held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    made = Preprocessing(_scaled((8, 8), 16.0), Target(classes=np.arange(10)))
    x, y = made.inputs(pixels), torch.from_numpy(labels).long()
    train, test = split("digits", labels, seed, np.arange(10), Reading())
    return Dataset("digits", "classification", x[train], y[train], x[test], y[test], 8.0, DIGITS, preprocessing=made)


def mnist(data_dir: Path | None) -> Dataset:
    """MNIST, or what has its files in ``data_dir``: 28 x 28 pixels 0..255.

    Fashion-MNIST is recognised, and called so; its classes keep the digits as names in ``Dataset.classes``, as runs of
    earlier versions have them, and have their own in predictions.
    """
    folder = data_dir or os.environ.get(DATA_VARIABLE)
    arrays = read_mnist(Path(folder).expanduser()) if folder else fetch_mnist()
    y_train, y_test = (torch.from_numpy(labels.astype(np.int64)) for labels in arrays[1::2])
    fashion = is_fashion(arrays[1::2])
    made = Preprocessing(_scaled((28, 28), 255.0), Target(classes=np.array(FASHION) if fashion else np.arange(10)))
    x_train, x_test = (made.inputs(images) for images in arrays[0::2])
    notes = (f"{folder} holds Fashion-MNIST: pictures of clothes instead of digits",) if fashion else ()
    name = "fashion-mnist" if fashion else "mnist"
    return Dataset(
        name, "classification", x_train, y_train, x_test, y_test, 28.0, DIGITS, preprocessing=made, notes=notes
    )


def _scaled(shape: tuple[int, ...], divisor: float) -> ArrayInputs:
    """Samples divided by a number."""
    return ArrayInputs(shape, np.array(0.0), np.array(divisor))
