"""The optimisers whose moments of edge_weight start at zero when a slot gets a new edge."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Followed:
    """Some optimisers, by weak references."""

    def __init__(self) -> None:
        self._optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def __bool__(self) -> bool:
        return bool(self._optimizers)

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow one more.  Raises ValueError for LBFGS, which keeps no moments per parameter."""
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("LBFGS keeps no moments per parameter, there is nothing to follow; use it as it is")
        self._optimizers.add(optimizer)

    def _moments(self, parameter: Tensor, shape: torch.Size) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        """Each moment of this shape, and the state and key that hold it."""
        for optimizer in self._optimizers:
            state = optimizer.state.get(parameter, {})
            for key, value in list(state.items()):
                if isinstance(value, Tensor) and value.shape == shape:
                    yield state, key, value

    def forget(self, parameter: Tensor, places: Tensor) -> None:
        """Set moments of a parameter to 0 at some places."""
        for _, _, value in self._moments(parameter, parameter.shape):
            value[places] = 0.0

    def change(self, parameter: Tensor, before: torch.Size, change: Callable[[Tensor], Tensor]) -> None:
        """Replace moments of the shape that the parameter had ``before`` by changed ones."""
        for state, key, value in self._moments(parameter, before):
            state[key] = change(value)
