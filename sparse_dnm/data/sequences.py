"""Tasks with sequences, for recurrent networks: adding, copy, parity, anbn and rows-digits.

All but the last are generated, the same for the same seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.data.built_in import DIGITS, digits
from sparse_dnm.data.errors import DataError
from sparse_dnm.data.samples import Dataset

N_TRAIN, N_TEST = 10_000, 1_000
SYMBOLS = 8  # of copy
ANBN = ("a", "b", "end")  # classes of anbn; its inputs are a, b and the start


def adding(seed: int, length: int = 50) -> Dataset:
    """The sum of two marked numbers, one in each half of a sequence (Hochreiter & Schmidhuber 1997).

    x (n, length, 2) holds numbers of 0 .. 1 and a mark, 0 or 1; y (n, 1).  Always 1 has a mean squared error of 1/6.
    """
    _at_least("length", length, 2)
    generator, n = _generator(seed), N_TRAIN + N_TEST
    numbers, marks = generator.random((n, length)).astype(np.float32), np.zeros((n, length), np.float32)
    half = length // 2
    for first, last in ((0, half), (half, length)):
        marks[np.arange(n), generator.integers(first, last, n)] = 1.0
    x, y = np.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdims=True)
    return _split("adding", "regression", x, y, float(length))


def copy(seed: int, delay: int = 20, count: int = 5) -> Dataset:
    """Symbols that are to be repeated in their order, after a delay (Arjovsky et al. 2016): a class for each step.

    x (n, delay + 2 count, 10): ``count`` of 8 symbols, nothing, and a mark at the step at which repeating begins.  The
    class is "none" before that.  Without memory, a share of (delay + count + count / 8) / (delay + 2 count) of all
    steps is right.
    """
    _at_least("delay", delay, 1)
    _at_least("count", count, 1)
    n, time = N_TRAIN + N_TEST, delay + 2 * count
    symbols = _generator(seed).integers(0, SYMBOLS, (n, count))
    codes, y = np.full((n, time), SYMBOLS), np.full((n, time), SYMBOLS)
    codes[:, :count], codes[:, count + delay], y[:, count + delay :] = symbols, SYMBOLS + 1, symbols
    classes = (*map(str, range(SYMBOLS)), "none")
    return _split("copy", "classification", np.eye(SYMBOLS + 2, dtype=np.float32)[codes], y, float(time), classes)


def parity(seed: int, longest: int = 12) -> Dataset:
    """Whether the number of ones among bits is even or odd; a class for each sequence of 1 .. ``longest`` bits.

    x (n, longest, 1).  The sequences of the test are longer: up to twice as long.
    """
    _at_least("longest", longest, 1)
    generator = _generator(seed)
    lengths = generator.integers(1, longest + 1, N_TRAIN), generator.integers(longest + 1, 2 * longest + 1, N_TEST)
    parts: list[Tensor] = []
    for steps, time in zip(lengths, (longest, 2 * longest), strict=True):
        bits = generator.integers(0, 2, (len(steps), time)) * (np.arange(time) < steps[:, None])
        parts += [torch.from_numpy(bits[..., None].astype(np.float32)), torch.from_numpy(bits.sum(1) % 2)]
    x, y, x_test, y_test = parts
    train, test = map(torch.from_numpy, lengths)
    kinds = {"period": float(longest), "classes": ("even", "odd"), "lengths_train": train, "lengths_test": test}
    return Dataset("parity", "classification", x, y, x_test, y_test, **kinds)  # type: ignore[arg-type]


def anbn(seed: int = 0, longest: int = 30) -> Dataset:
    """The next symbol of a ... a b ... b end, n of a and n of b (Gers & Schmidhuber 2001): a class for each step.

    x (n, time, 3): a, b, and the start.  One sequence for each n of 1 .. ``longest``; those of the test are longer, up
    to twice.  Nothing tells when the first b comes: at most 2n of 2n + 1 steps are right.  Nothing is drawn.
    """
    _at_least("longest", longest, 1)
    counts = np.arange(1, longest + 1), np.arange(longest + 1, 2 * longest + 1)
    (x, y, lengths), (x_test, y_test, longer) = map(_anbn, counts)
    return Dataset(
        "anbn", "classification", x, y, x_test, y_test, float(longest), ANBN, lengths_train=lengths, lengths_test=longer
    )


def _anbn(counts: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, classes and lengths for each n of ``counts``; beyond its length an input is 0 and a class a."""
    lengths = 2 * counts + 1
    time = int(lengths.max())
    x, y = np.zeros((len(counts), time, 3), np.float32), np.zeros((len(counts), time), np.int64)
    for row, n in enumerate(counts.tolist()):
        symbols = [2, *[0] * n, *[1] * n, 2]  # the start, and the end
        x[row, np.arange(2 * n + 1), symbols[:-1]] = 1.0
        y[row, : 2 * n + 1] = symbols[1:]
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(lengths)


def rows_digits(seed: int) -> Dataset:
    """scikit-learn's digits, as `built_in.digits` splits them, row by row: x (n, 8, 8), a class for each sequence."""
    data = digits(seed)
    x, x_test = (pixels.reshape(-1, 8, 8) for pixels in (data.x_train, data.x_test))
    return Dataset("rows-digits", "classification", x, data.y_train, x_test, data.y_test, 8.0, DIGITS)


TASKS: dict[str, Callable[[int], Dataset]] = {
    "adding": adding,
    "copy": copy,
    "parity": parity,
    "anbn": anbn,
    "rows-digits": rows_digits,
}


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed % 2**64))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise DataError(f"{name}={value!r} must be >= {least} time steps")


def _split(
    name: str, task: str, x: NDArray[np.float32], y: NDArray[np.generic], period: float, classes: tuple[str, ...] = ()
) -> Dataset:
    """A data set whose last samples are for the test."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    train, test = (inputs[:N_TRAIN], targets[:N_TRAIN]), (inputs[N_TRAIN:], targets[N_TRAIN:])
    return Dataset(name, task, *train, *test, period, classes)
