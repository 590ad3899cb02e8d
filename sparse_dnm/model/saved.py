"""The structure in a state_dict, in each of the forms that versions have written.

With slots; in the order of the candidates (before there were slots); and without a reference (a DenseManifold's).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.config import SCALARS
from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.candidates import Candidates, Geometry, check_candidates, check_slots, digest

DAMAGED = (
    "candidate_indptr, candidate_indices and candidate_slots of this state are not those of one structure; take all "
    "from one state_dict"
)

INTEGERS = {"candidate_indptr": torch.int64, "candidate_indices": torch.int32, "candidate_slots": torch.int64}


class SavedStructure(NamedTuple):
    """Candidates that a state holds, in arrays of the CPU.

    capacity  slots that they need
    slotted   the state has the buffers of EdgeSlots, else edge_weight is in the order of the candidates
    searched  the state holds the scalars at which each row was last searched
    """

    candidates: Candidates
    capacity: int
    slotted: bool
    searched: bool


def names_of(geometry: Geometry, state: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Names of the entries that a state of this form must have."""
    names = ["candidate_indptr", "candidate_indices"] + ["edge_weight"] * geometry.free
    if prefix + "structure_digest" in state and geometry.free:
        names += ["candidate_slots", "slot_births"]
    return names


def saved_structure(geometry: Geometry, state: Mapping[str, Tensor], prefix: str, capacity: int) -> SavedStructure:
    """The structure in ``state``, whose entries all begin with ``prefix``; ``capacity``: the least number of slots
    for a state without slots.

    Raises ValueError if the candidates are not possible edges, or the entries do not fit each other.
    """
    free, config = geometry.free, geometry.config
    held = {name: _typed(name, state[prefix + name].detach().cpu()) for name in names_of(geometry, state, prefix)}
    slotted, searched = prefix + "structure_digest" in state, prefix + "_reference" in state
    indptr, indices = held["candidate_indptr"].numpy().copy(), held["candidate_indices"].numpy().copy()
    slots = np.arange(len(indices)) if free else None
    n_weights = len(held["edge_weight"]) if free else len(indices)
    if slotted:
        if not len(indices) == n_weights == len(held.get("candidate_slots", indices)):
            raise ValueError(
                f"{n_weights} edge_weight for {len(indices)} candidate_indices; they must be as many, those of free "
                "slots included"
            )
        capacity, n_weights = len(indices), int(indptr[-1]) if len(indptr) else 0
        indices = indices[:n_weights]
        if free:
            slots = held["candidate_slots"].numpy()[:n_weights].copy()
    check_candidates(config, indptr, indices, n_weights)
    if slots is not None:
        check_slots(slots, max(capacity, len(indices)))
    if slotted:
        arrays = held["candidate_indptr"], held["candidate_indices"]
        if digest(*arrays, held.get("candidate_slots", arrays[1])) != state[prefix + "structure_digest"].cpu():
            raise ValueError(DAMAGED)
    reference = geometry.no_reference()
    if searched:
        reference = state[f"{prefix}_reference"].detach().cpu().double().numpy().copy()
    capacity = max(capacity, len(indices))
    if not (searched or free):  # with edges="closeness" they are found again
        indptr, indices = np.zeros_like(indptr), indices[:0]
    return SavedStructure(Candidates(indptr, indices, slots, reference), capacity, slotted, searched)


def _typed(name: str, entry: Tensor) -> Tensor:
    """An entry in the type that kernels read.  Raises ValueError if it holds numbers that the type does not."""
    wanted = INTEGERS.get(name, entry.dtype)
    found = entry.to(wanted)
    if not torch.equal(found.to(entry.dtype), entry):
        raise ValueError(f"{name} of type {entry.dtype} holds numbers that are not {wanted}; take it as it was saved")
    return found


def slots_in_order(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries candidate_indices and edge_weight of a state in the order of the candidates, without free slots."""
    indptr, indices = (state.get(prefix + name) for name in ("candidate_indptr", "candidate_indices"))
    if prefix + "structure_digest" not in state or indptr is None or indices is None:
        return {}
    n = int(indptr[-1])
    found = {"candidate_indices": indices[:n]}
    slots, weights = (state.get(prefix + name) for name in ("candidate_slots", "edge_weight"))
    if slots is not None and weights is not None:
        found["edge_weight"] = weights[slots[:n].to(weights.device)]
    return {prefix + name: tensor for name, tensor in found.items()}


def as_searched(engine: Engine, arrays: Mapping[str, Any], held: Candidates) -> Candidates:
    """The candidates ``held``, as if every row had just been searched at the scalars of ``arrays``."""
    now = engine.evaluate(arrays, arrays["edge_weight"][held.slots], held, None, check=False).values
    rows, threshold = torch.as_tensor(now.rows)[: len(SCALARS)], torch.as_tensor(now.threshold)
    reference = torch.cat([rows.T, threshold.double().reshape(1, 1).expand(rows.shape[1], 1)], dim=1)
    return Candidates.of(held.indptr, held.indices, engine.array(reference), held.slots)
