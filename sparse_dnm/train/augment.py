"""Augmentation: random changes of the inputs of a batch, the same for every device."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import BatchOrder, Dataset
from sparse_dnm.engine import device as backend

if TYPE_CHECKING:
    from sparse_dnm.train.batches import AllRows

KERNELS = backend.kernels(torch.device("cpu"))


class Draw(NamedTuple):
    """The random draws of a step.

    rows    int64 (batch,)           the samples
    shifts  int64 (2, batch)         lines and columns by which each image is shifted; None: no shift
    kept    bool (batch, n_inputs)   inputs that are kept, others are set to 0; None: all are kept
    """

    rows: Tensor
    shifts: Tensor | None
    kept: Tensor | None


class Augmentation:
    """Shifts images by up to ``config.shift`` pixels, and sets inputs to 0 with probability ``config.input_dropout``.

    Raises ValueError if images are to be shifted but the data are not images: the period is not a whole number of
    pixels, or the inputs do not fill their lines.
    """

    def __init__(self, config: TrainConfig, data: Dataset, generator: torch.Generator):
        self._shift, self._dropout, self._generator = config.shift, config.input_dropout, generator
        self._width, self._n = int(data.period), data.n_inputs
        n = self._n
        if self._shift and (self._width != data.period or not 1 < self._width < n or n % self._width):
            raise ValueError(
                f"shift={self._shift} moves images, but {data.name} has {n} inputs and period {data.period:g}: no "
                "image of whole lines; leave shift at 0"
            )
        if self._shift and self._shift >= min(self._width, n // self._width):
            raise ValueError(
                f"shift={self._shift} moves images of {n // self._width} x {self._width} out of sight; give less"
            )

    def draw(self, rows: Tensor) -> Draw:
        """Draw the changes for a batch of the samples ``rows``."""
        shifts = kept = None
        if self._shift:
            shifts = torch.randint(-self._shift, self._shift + 1, (2, len(rows)), generator=self._generator)
        if self._dropout:
            kept = torch.rand((len(rows), self._n), generator=self._generator) >= self._dropout
        return Draw(rows, shifts, kept)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        """The batch x (batch, n_inputs), changed; x itself if nothing is to change."""
        if draw.shifts is not None:
            out, shifts = np.empty(x.shape, x.numpy().dtype), draw.shifts.numpy()
            KERNELS.shifted(x.contiguous().numpy(), self._width, shifts[0], shifts[1], out)
            x = torch.from_numpy(out)
        if draw.kept is None:
            return x
        return x * (draw.kept if x.ndim == 2 else draw.kept[:, None])  # of a sequence, for all of it


class Draws:
    """A queue of the draws of the next steps, in their order."""

    def __init__(self, order: BatchOrder | AllRows, augment: Augmentation):
        self._order, self._augment = order, augment
        self._waiting: deque[Draw] = deque()

    def __len__(self) -> int:
        """Number of draws in the queue."""
        return len(self._waiting)

    def ahead(self, count: int) -> list[Draw]:
        """The draws of the next ``count`` steps, which stay in the queue."""
        while len(self._waiting) < count:
            self._waiting.append(self._augment.draw(self._order.next()))
        return list(itertools.islice(self._waiting, count))

    def take(self, count: int) -> list[Draw]:
        """Remove and return the draws of the next ``count`` steps."""
        self.ahead(count)
        return [self._waiting.popleft() for _ in range(count)]
