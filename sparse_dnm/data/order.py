"""The order of the samples in the batches of a training."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dnm.data.errors import DataError


class BatchOrder:
    """Rows of every batch: shuffled epochs, one after the other, each batch full.

    A batch that reaches the end of an epoch continues into the next permutation.  Only ``next`` draws from
    the generator, so ``state`` and the generator's state together continue to the same bits.
    """

    def __init__(self, n_samples: int, batch_size: int, generator: torch.Generator) -> None:
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise DataError(f"{name}={value} must be >= 1")
        self._n, self._batch_size = n_samples, batch_size
        self._generator = generator
        self._order = torch.arange(n_samples)
        self._position = (
            n_samples  # of the next row in the order; at its end, so that the first batch draws a permutation
        )

    def next(self) -> Tensor:
        """int64 (batch_size,) row indices of the next batch."""
        first, last = self._position, self._position + self._batch_size
        if last <= self._n:
            self._position = last
            return self._order[first:last]
        parts, missing = [], self._batch_size
        while missing:
            if self._position == len(self._order):
                self._order = torch.randperm(len(self._order), generator=self._generator)
                self._position = 0
            part = self._order[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def state(self) -> dict[str, Tensor]:
        """The current permutation int64 (n_samples,) and the position in it, int64 ()."""
        return {"order": self._order.clone(), "position": torch.tensor(self._position)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``.  Raises DataError unless it is for the same number of samples."""
        if state.keys() != {"order", "position"}:
            raise DataError(f"a state of the data order holds order and position, not {', '.join(state)}")
        order, position, n = state["order"], state["position"], len(self._order)
        rows = torch.arange(n)
        if order.shape != rows.shape or order.dtype != rows.dtype or not order.sort().values.equal(rows):
            raise DataError(
                f"the data order, {order.dtype} {tuple(order.shape)}, is no permutation of the {n} training "
                "samples; resume with the data that the run began with"
            )
        if position.shape != () or position.dtype != rows.dtype or not 0 <= position <= n:
            raise DataError(f"position={position.tolist()} in the data order must be an integer in 0 .. {n}")
        self._order, self._position = order.clone(), int(position)
