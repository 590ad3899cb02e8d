"""The parameters of a manifold at one moment, and whether they have changed since."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sparse_dnm.engine.autograd import unwrapped
from sparse_dnm.engine.base import Engine, Memory
from sparse_dnm.engine.candidates import Candidates
from sparse_dnm.model.evaluation import Evaluation

if TYPE_CHECKING:
    from sparse_dnm.model.edges import EdgeSlots

_VERSION = Tensor._version.__get__  # type: ignore[attr-defined]


class Parameters:
    """The parameters of a manifold, as the passes use them.

    named  by name; where one is parametrised, its computed value
    edges  those that the strengths of edges depend on: cutoff, edge_weight or None, and the scalars
    own    all are the model's own: torch.func.functional_call has replaced none
    plain  none is parametrised
    """

    __slots__ = "_held", "edges", "named", "own", "plain"

    def __init__(self, model: EdgeSlots, own: Mapping[str, Any]):
        held: dict[str, Any] = model._parameters
        geometry = model._geometry
        names = geometry.parameters
        self.named: dict[str, Tensor] = {
            name: unwrapped(p if (p := held.get(name)) is not None else getattr(model, name)) for name in names
        }
        self.edges = (
            self.named["cutoff"],
            self.named["edge_weight"] if geometry.free else None,
            *(self.named[name] for name in geometry.scalars),
        )
        self.own = all(name not in own or own[name]() is p for name, p in held.items())
        self.plain = all(held.get(name) is not None for name in names)
        self._held = tuple(held.values())

    def are(self, held: Mapping[str, Any]) -> bool:
        """Does the module still hold the same tensors?"""
        return len(held) == len(self._held) and all(map(is_, held.values(), self._held))

    def versions(self) -> list[int] | None:
        """Torch's version counter of each; None in inference mode, where torch does not count."""
        try:
            return list(map(_VERSION, self.named.values()))
        except RuntimeError:
            return None


class OwnParameters:
    """Knows a manifold's own parameters, which torch.func.functional_call replaces by others for a call."""

    def __init__(self, model: EdgeSlots):
        self._known: Parameters | None = None
        self._own = {name: weakref.ref(p) for name, p in model._parameters.items() if p is not None}

    def add(self, name: str, parameter: Parameter) -> None:
        """Add a parameter, or replace the one of this name."""
        self._own[name], self._known = weakref.ref(parameter), None

    def present(self, model: EdgeSlots) -> Parameters:
        """The parameters as they are now."""
        known = self._known
        if known is not None and known.are(model._parameters):
            return known
        found = Parameters(model, self._own)
        self._known = found if found.own and found.plain else None
        return found


@dataclass(eq=False, slots=True)
class Remembered:
    """An evaluation, and the parameters it is of: torch's version counters, and their bits if these were kept; also
    weight and bias of every neuron, once they were needed."""

    found: Evaluation
    versions: list[int] | None
    bits: Memory | None
    scales: Any = None

    def holds(self, engine: Engine, candidates: Candidates, arrays: Mapping[str, Any]) -> bool:
        """Is the evaluation valid for these parameters and candidates?"""
        found, bits = self.found, self.bits
        if bits is None or found.engine is not engine or found.structure.candidates is not candidates:
            return False
        return bits.same(arrays)


def without_transforms(tensor: Tensor) -> Tensor:
    """A tensor without the wrappers of torch.func's transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise RuntimeError(
                "torch.func.vmap over the parameters of a DynamicManifold is not possible: each set of them has a "
                "structure of its own; loop over them, or use vmap over inputs only"
            )
        tensor = functorch.get_unwrapped(tensor)
    return tensor
