"""What a training does when: step size, growth, the trim, and how the samples of a batch are varied."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine import device as backend

KERNELS = backend.kernels(torch.device("cpu"))
FINE_TUNE = 0.3  # share of the steps with a structure that stays, where a number of edges is asked for
LEAST = 0.1  # of lr, before such a structure stays: until then edges come and go


def trimmed_after(config: TrainConfig) -> int:
    """Updates after which a network is trimmed to its budget or its number of edges; where it has none, all."""
    if config.target_edges:
        return config.steps - math.ceil(FINE_TUNE * config.steps)
    return config.steps - (min(config.trim_steps, config.steps // 4) if config.budget_us else 0)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Adam's step size for update ``step`` = 0 .. steps - 1.

    The cosine falls from lr to 0 over all steps; with a trim up to that, and from lr / 2 to 0 after it.
    """
    first, last, highest = 0, trimmed_after(config), config.lr
    if step >= last < config.steps:
        first, last, highest = last, config.steps, 0.5 * config.lr
    if config.schedule == "constant":
        return highest
    rate = highest * 0.5 * (1 + math.cos(math.pi * min((step - first) / max(last - first, 1), 1)))
    return max(rate, LEAST * config.lr) if config.target_edges and first == 0 else rate


def kappa(config: TrainConfig, step: int) -> float:
    """Coefficient of the ring's gradient in update ``step``: every ``grow_every``-th has it, as many times as large.

    It stays for the first half of the steps before the trim, then falls to 0.
    """
    last = trimmed_after(config)
    if step % config.grow_every or step >= last:
        return 0.0
    return config.kappa * config.grow_every * min(1.0, 2.0 * (1.0 - step / last))


class Variation:
    """Varies the inputs of a batch at random: images are moved, single inputs are set to 0.

    Raises ValueError where images are to be moved and the data are none: a period that is no whole number of pixels, or
    inputs that do not fill their lines.
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
        """The batch x (batch, n_inputs), varied; x itself where nothing is wanted."""
        if self._shift:
            shifts = torch.randint(-self._shift, self._shift + 1, (2, len(x)), generator=self._generator).numpy()
            out = np.empty(x.shape, x.numpy().dtype)
            KERNELS.shifted(x.contiguous().numpy(), self._width, shifts[0], shifts[1], out)
            x = torch.from_numpy(out)
        if self._dropout:
            x = x * (torch.rand(x.shape, generator=self._generator) >= self._dropout)
        return x
