"""Averages of edges that come and go, as torch.optim.swa_utils.AveragedModel makes them.

AveragedModel averages parameters slot by slot and then copies the buffers.  If a slot of ``edge_weight`` has been given
to a new edge since the last update, its average would mix two different edges.  So the buffer that counts how often
each slot was filled acts when it is copied: where the count has changed, the average restarts at the new edge's weight.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn


class SlotBirths(torch.Tensor):
    """int64 (capacity,): how often each slot was filled; it knows the module that owns the slots."""

    owner: weakref.ref[nn.Module] | None

    @staticmethod
    def of(counts: Tensor, owner: nn.Module) -> SlotBirths:
        """These counts, for the slots of ``owner``."""
        births = counts.detach().as_subclass(SlotBirths)
        births.owner = weakref.ref(owner)
        return births

    @property
    def plain(self) -> Tensor:
        """The counts as an ordinary tensor that shares their memory."""
        return self.as_subclass(torch.Tensor)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.copy_ and len(args) > 1:
            restart_averages(args[0], args[1])
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func in (torch.Tensor.detach, torch.Tensor.to) and isinstance(result, SlotBirths):
            result.owner = getattr(args[0], "owner", None)
        return result


def restart_averages(target: Any, source: Any) -> None:
    """Where the counts of two manifolds differ, copy edge_weight of the second to the first."""
    owners = [getattr(births, "owner", None) for births in (target, source)]
    modules = [None if owner is None else owner() for owner in owners]
    if modules[0] is None or modules[1] is None or modules[0] is modules[1] or target.shape != source.shape:
        return
    old, new = (births.as_subclass(torch.Tensor) for births in (target, source))
    changed = old != new.to(old.device)
    with torch.no_grad():
        average, weight = (module.get_parameter("edge_weight") for module in modules)  # type: ignore[union-attr]
        average[changed] = weight.detach().to(average.device)[changed.to(weight.device)].to(average)
