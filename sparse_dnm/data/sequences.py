"""Tasks with sequences, for recurrent networks: adding, copy, parity, anbn, anbncn, dyck1, rows-digits and psmnist.

All but the last two are generated, the same for the same seed.  In those about a language, anbn, anbncn and dyck1, the
class of a step is which symbols may come next, so that each step has an answer that can be known (as in Gers &
Schmidhuber 2001, who have an output per symbol).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.data.built_in import DIGITS, digits, mnist
from sparse_dnm.data.errors import DataError
from sparse_dnm.data.samples import Dataset

N_TRAIN, N_TEST = 10_000, 1_000
N_ADDING = 50_000  # sequences of training: of fewer, a network that has not learned to add learns some by heart
SYMBOLS = 8  # of copy
LONGEST, TESTED = 30, 100  # greatest n in training and in the test of languages
DYCK1 = ("( or end", "( or )")  # classes of dyck1
PSMNIST = "psmnist"
PERMUTATION_SEED = 92916  # of psmnist, that of numpy's RandomState in much of the literature


def adding(seed: int, length: int = 50) -> Dataset:
    """The sum of two marked numbers, one in each half of a sequence (Hochreiter & Schmidhuber 1997).

    x (n, length, 2) holds numbers of 0 .. 1 and a mark, 0 or 1; y (n, 1).  Always 1 has a mean squared error of 1/6.
    """
    _at_least("length", length, 2)
    generator, n = _generator(seed), N_ADDING + N_TEST
    numbers, marks = generator.random((n, length)).astype(np.float32), np.zeros((n, length), np.float32)
    half = length // 2
    for first, last in ((0, half), (half, length)):
        marks[np.arange(n), generator.integers(first, last, n)] = 1.0
    x, y = np.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdims=True)
    return _split("adding", "regression", x, y, float(length), n_train=N_ADDING)


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
    return _of_lengths("parity", (x, y, train), (x_test, y_test, test), float(longest), ("even", "odd"))


def anbn(seed: int = 0, longest: int = LONGEST, tested: int = TESTED) -> Dataset:
    """Which symbols may come next in n of a and then n of b: a class for each step.

    x (n, time, 3): a, b, and the start.  One sequence for each n of 1 .. ``longest``; those of the test are for each
    further n up to ``tested``.  Nothing is drawn.
    """
    return _counting("anbn", "ab", longest, tested)


def anbncn(seed: int = 0, longest: int = LONGEST, tested: int = TESTED) -> Dataset:
    """As `anbn`, with n of c after these: x (n, time, 4)."""
    return _counting("anbncn", "abc", longest, tested)


def dyck1(seed: int, longest: int = LONGEST, tested: int = TESTED) -> Dataset:
    """Which symbols may come next in balanced brackets of one kind: a class for each step.

    x (n, time, 2): opening and closing.  Words of n pairs, each word as probable as another, n drawn from 1 ..
    ``longest``, in the test from ``longest`` + 1 .. ``tested``.
    """
    _check_longest(longest, tested)
    generator = _generator(seed)

    def part(count: int, first: int, last: int) -> list[Tensor]:
        words = [_balanced(n, generator) for n in generator.integers(first, last + 1, count).tolist()]
        return _in_steps([(word < 0, np.cumsum(word) > 0) for word in words], 2)

    train, test = part(N_TRAIN, 1, longest), part(N_TEST, longest + 1, tested)
    return _of_lengths("dyck1", train, test, float(longest), DYCK1)


def _counting(name: str, kinds: str, longest: int, tested: int) -> Dataset:
    """n of each of the symbols ``kinds``.  Whether a further first one comes cannot be known, and is not asked."""
    _check_longest(longest, tested)

    def word(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        others = np.arange(1, len(kinds))
        x = np.concatenate([[len(kinds)], np.repeat(np.arange(len(kinds)), n)])
        y = np.concatenate([[0], np.full(n, 1), np.repeat(others + 1, n)])
        y[2 * n :: n] += 1  # the last of a kind
        return x, y

    classes = (kinds[0], f"{kinds[0]} or {kinds[1]}", *kinds[1:], "end")
    ranges = range(1, longest + 1), range(longest + 1, tested + 1)
    train, test = (_in_steps([word(n) for n in counts], len(kinds) + 1) for counts in ranges)
    return _of_lengths(name, train, test, float(longest), classes)


def _balanced(n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """A word of n opening (1) and n closing (-1) brackets, int64 (2n,), by the cycle lemma of Dvoretzky & Motzkin:
    one rotation of any n + 1 and n of them opens with a bracket, the word after which is balanced."""
    word = generator.permutation(np.repeat([1, -1], [n + 1, n]))
    sums = np.cumsum(word)
    last_least = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return np.roll(word, -last_least - 1)[1:]


def _in_steps(words: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]], n_inputs: int) -> list[Tensor]:
    """Inputs, one of ``n_inputs`` a step, classes and lengths of (symbols, classes); 0 is beyond the lengths."""
    lengths = torch.tensor([len(symbols) for symbols, _ in words])
    x, y = torch.zeros(len(words), int(lengths.max()), n_inputs), torch.zeros(len(words), int(lengths.max())).long()
    for row, (symbols, classes) in enumerate(words):
        x[row, torch.arange(len(symbols)), torch.from_numpy(symbols).long()] = 1.0
        y[row, : len(classes)] = torch.from_numpy(classes)
    return [x, y, lengths]


def _of_lengths(
    name: str, train: Sequence[Tensor], test: Sequence[Tensor], period: float, classes: tuple[str, ...]
) -> Dataset:
    """A classification of sequences: inputs, classes and lengths, for training and test."""
    (x, y, lengths), (x_test, y_test, lengths_test) = train, test
    return Dataset(
        name, "classification", x, y, x_test, y_test, period, classes, lengths_train=lengths, lengths_test=lengths_test
    )


def rows_digits(seed: int) -> Dataset:
    """scikit-learn's digits, as `built_in.digits` splits them, row by row: x (n, 8, 8), a class for each sequence."""
    data = digits(seed)
    x, x_test = (pixels.reshape(-1, 8, 8) for pixels in (data.x_train, data.x_test))
    return Dataset("rows-digits", "classification", x, data.y_train, x_test, data.y_test, 8.0, DIGITS)


def psmnist(data_dir: Path | None, seed: int = PERMUTATION_SEED) -> Dataset:
    """MNIST, or what has its files in ``data_dir``, pixel by pixel in an order that is drawn (Le et al. 2015): x
    (n, 784, 1), a class for each sequence.

    The order is ``np.random.RandomState(seed).permutation(784)``, the same in each run.
    """
    data, order = mnist(data_dir), np.random.RandomState(seed).permutation(784)
    x, x_test = (pixels[:, order, None] for pixels in (data.x_train, data.x_test))
    name = data.name.replace("mnist", PSMNIST)
    return dataclasses.replace(data, name=name, x_train=x, x_test=x_test, period=784.0, preprocessing=None)


TASKS: dict[str, Callable[[int], Dataset]] = {
    "adding": adding,
    "copy": copy,
    "parity": parity,
    "anbn": anbn,
    "anbncn": anbncn,
    "dyck1": dyck1,
    "rows-digits": rows_digits,
}


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed % 2**64))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise DataError(f"{name}={value!r} must be >= {least} time steps")


def _check_longest(longest: int, tested: int) -> None:
    _at_least("longest", longest, 1)
    if tested <= longest:
        raise DataError(f"tested={tested!r} must be > longest={longest!r}, as the test is of longer sequences")


def _split(
    name: str, task: str, x: NDArray[np.float32], y: NDArray[np.generic], period: float, classes: tuple[str, ...] = (),
    n_train: int = N_TRAIN,
) -> Dataset:  # fmt: skip
    """A data set whose last samples are for the test."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    train, test = (inputs[:n_train], targets[:n_train]), (inputs[n_train:], targets[n_train:])
    return Dataset(name, task, *train, *test, period, classes)
