"""Augmentation: random changes of the inputs of a batch, the same for every device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine import device as backend

KERNELS = backend.kernels(torch.device("cpu"))


class Augmentation:
    """Shifts images by up to ``config.shift`` pixels, and sets inputs to 0 with probability ``config.input_dropout``.

    Raises ValueError if images are to be shifted but the data are not images: the period is not a whole number of
    pixels, or the inputs do not fill their lines.
    """

    def __init__(self, config: TrainConfig, data: Dataset, generator: torch.Generator):
        self._shift, self._dropout, self._generator = config.shift, config.input_dropout, generator
        self._width, n = int(data.period), data.n_inputs
        if self._shift and (self._width != data.period or not 1 < self._width < n or n % self._width):
            raise ValueError(
                f"shift={self._shift} moves images, but {data.name} has {n} inputs and period {data.period:g}: no "
                "image of whole lines; leave shift at 0"
            )
        if self._shift and self._shift >= min(self._width, n // self._width):
            raise ValueError(
                f"shift={self._shift} moves images of {n // self._width} x {self._width} out of sight; give less"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """The batch x (batch, n_inputs), changed; x itself if neither is configured."""
        if self._shift:
            shifts = torch.randint(-self._shift, self._shift + 1, (2, len(x)), generator=self._generator).numpy()
            out = np.empty(x.shape, x.numpy().dtype)
            KERNELS.shifted(x.contiguous().numpy(), self._width, shifts[0], shifts[1], out)
            x = torch.from_numpy(out)
        if self._dropout:
            x = x * (torch.rand(x.shape, generator=self._generator) >= self._dropout)
        return x
