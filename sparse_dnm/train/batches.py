"""Batches: the samples of each step, on the device of a training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import BatchOrder, DataError, Dataset
from sparse_dnm.train.augment import Augmentation, Draws


class Batch(NamedTuple):
    """Inputs and targets of some samples, and their weights, float64 (batch,); None: all 1.

    ``lengths``: int64 (batch,), of sequences, on the CPU; None: all time steps.
    """

    x: Tensor
    y: Tensor
    weights: Tensor | None
    lengths: Tensor | None = None


class AllRows:
    """In the place of a `BatchOrder`: every batch is all samples, in their order; nothing is drawn."""

    def __init__(self, n_samples: int) -> None:
        self._rows = torch.arange(n_samples)

    def next(self) -> Tensor:
        """int64 (n_samples,) row indices of the next batch."""
        return self._rows

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Raises DataError unless ``state`` is that of such an order."""
        if state:
            raise DataError(
                f"a training on all samples at once has no data order, and this one holds {', '.join(state)}"
            )


class Batches:
    """The batches of ``data``, drawn from ``generator`` in the order of the steps.

    order  of the rows
    draws  what is drawn for the next steps
    """

    def __init__(self, data: Dataset, config: TrainConfig, generator: torch.Generator, device: torch.device):
        n, size = len(data.x_train), config.batch_size
        self._data, self._size, self._device = data, size or n, device
        self.order = BatchOrder(n, size, generator) if size else AllRows(n)
        self._augment = Augmentation(config, data, generator)
        self.draws = Draws(self.order, self._augment)

    def next(self) -> Batch:
        """That of the next step, augmented."""
        data, (draw,) = self._data, self.draws.take(1)
        x = self._augment.apply(data.x_train.index_select(0, draw.rows), draw)
        weights, lengths = (
            None if values is None else values.index_select(0, draw.rows)
            for values in (data.weights, data.lengths_train)
        )
        return self._on_device(x, data.y_train.index_select(0, draw.rows), weights, lengths)

    def first(self) -> Batch:
        """The first rows, without augmentation."""
        data, size = self._data, self._size
        weights, lengths = (None if values is None else values[:size] for values in (data.weights, data.lengths_train))
        return self._on_device(data.x_train[:size], data.y_train[:size], weights, lengths)

    def _on_device(self, x: Tensor, y: Tensor, weights: Tensor | None, lengths: Tensor | None) -> Batch:
        device = self._device
        if device.type == "cpu":
            return Batch(x, y, weights, lengths)
        return Batch(x.to(device), y.to(device), None if weights is None else weights.to(device), lengths)
