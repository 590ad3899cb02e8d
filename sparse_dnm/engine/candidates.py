"""Candidate edges: the pairs near or above the cutoff, and the slot that each of them owns (DESIGN, 4.1).

Only |d_ij| > c counts, and |d_ij| is at most |alpha'| max|s - gamma'| g_ij, so a row's edges lie in a window around
mu.  Pairs with |d| > threshold = max(c - skin, c/2) are kept, and a row is searched again only when its scalars have
moved so far that a pair outside could have crossed c, as in the neighbour lists of molecular dynamics (Verlet
1967): the active set is exact at every step, and the search is rare.

Each free edge has an omega.  A pair that falls below the threshold is forgotten at the next search.  A pair enters,
with an initial omega drawn from (seed, i, j), when its closeness with that omega rises through the threshold.  So every
edge starts with strength zero, and one that training has removed does not come back at once.  omega is stored in a
parameter of fixed length: a candidate owns one slot of it, and no other slot changes when pairs enter and leave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sparse_dnm.checks import CPU
from sparse_dnm.config import OMEGA_IN_CLOSENESS, ROW_SCALARS, SCALARS, ManifoldConfig
from sparse_dnm.engine import device as backend

KERNELS = backend.kernels(CPU)
CROWDED = 64  # a list longer than this is searched again when most of it is below the threshold
SPARE = 1.25  # slots for every candidate of the first structure
LEAST_SLOTS = 4096  # or all possible edges, where they are fewer
NOT_FINITE = "a scalar of the manifold is NaN or infinite; go back to a checkpoint and lower lr"


class OverCapacity(ValueError):
    """More edges are active, or to be candidates, than a manifold has room for."""

    def __init__(self, n_edges: int, capacity: int, what: str = "edges are active"):
        super().__init__(
            f"{n_edges:,} {what}, more than the {capacity:,} that there is room for; call "
            f"model.grow_capacity({n_edges + n_edges // 4}) (and create optimisers again that it does not follow), or "
            "raise cutoff"
        )
        self.n_edges = n_edges


@dataclass(frozen=True, eq=False)
class Candidates:
    """CSR of candidate edges, in arrays of an engine, and the scalars at which they were found.

    indptr     int64 (n_rows + 1,)
    indices    int32 (n_candidates,)  sources, ascending in a row
    slots      int64 (n_candidates,)  place of the omega of each in edge_weight; None if edges have none
    reference  float64 (n_rows, 8)    the scalars of each row when it was last searched, and the threshold at that time
    row_of     int32 (n_candidates,)  the row of each, on CUDA
    fleeting   some have no slot (-1): they were found for parameters that are not the model's own
    """

    indptr: Any
    indices: Any
    slots: Any
    reference: Any
    row_of: Any = None
    fleeting: bool = False

    @property
    def host(self) -> Candidates:
        """The same in arrays of the CPU."""
        if isinstance(self.indptr, np.ndarray):
            return self
        slots = None if self.slots is None else self.slots.cpu().numpy()
        indptr, indices, reference = (t.cpu().numpy() for t in (self.indptr, self.indices, self.reference))
        return Candidates(indptr, indices, slots, reference)

    def same(self, other: Candidates) -> bool:
        """The other has the same arrays, of the same kind."""
        if type(self.indptr) is not type(other.indptr):
            return False
        names = ("indptr", "indices", "reference", "slots")
        pairs = ((getattr(self, name), getattr(other, name)) for name in names)
        return all(a is None or (a.shape == b.shape and bool((a == b).all())) for a, b in pairs)

    def only(self, kept: Tensor, size: Tensor) -> Candidates:
        """The candidates at the places ``kept``, ascending; all rows were just searched; ``size`` is their |d|.

        A row that loses pairs stores the largest |d| among them, so that it is searched again before one of them can
        have risen above the cutoff.
        """
        indptr, indices, reference = (torch.as_tensor(a) for a in (self.indptr, self.indices, self.reference))
        rows = torch.repeat_interleave(torch.arange(len(indptr) - 1, device=indptr.device), indptr.diff())
        gone = torch.ones_like(rows, dtype=torch.bool)
        gone[kept] = False
        highest = reference[:, -1].scatter_reduce(0, rows[gone], size[gone].double(), "amax")
        counts = torch.bincount(rows[kept], minlength=len(indptr) - 1)
        starts = torch.cat([indptr[:1], counts.cumsum(0)])
        changed = torch.cat([reference[:, :-1], highest[:, None]], dim=1)
        arrays = (like(self.indptr, t) for t in (starts, indices[kept], changed))
        return self.of(*arrays)

    @staticmethod
    def of(indptr: Any, indices: Any, reference: Any, slots: Any = None) -> Candidates:
        """Candidates from arrays of an engine; on CUDA with the row of each."""
        row_of = None
        if isinstance(indptr, Tensor):
            rows = torch.arange(len(indptr) - 1, dtype=torch.int32, device=indptr.device)
            row_of = torch.repeat_interleave(rows, indptr.diff(), output_size=len(indices))
        return Candidates(indptr, indices, slots, reference, row_of)


def like(array: Any, tensor: Tensor) -> Any:
    """A tensor as an array of the kind that ``array`` is."""
    return tensor.numpy() if isinstance(array, np.ndarray) else tensor


def compose(first: Any, second: Any) -> Any:
    """Places before two changes, -1 for new candidates, from the places before each change (None: no change)."""
    if first is None:
        return second
    a, b = torch.as_tensor(first), torch.as_tensor(second).long()
    if len(a) == 0:
        return like(second, torch.full_like(b, -1))
    return like(second, torch.where(b >= 0, a.long()[b.clamp(min=0)], -1))


def assign_slots(candidates: Candidates, before: Candidates, origin: Any, capacity: int | None) -> Candidates:
    """``candidates`` with a slot each: those that were candidates ``before`` keep theirs, new ones take the lowest free
    ones, or none (-1) if ``capacity`` is None."""
    if before.slots is None:
        return candidates
    places, slots = torch.as_tensor(origin).long(), torch.as_tensor(before.slots)
    known = places >= 0
    kept = slots[places[known]]
    if capacity is None:
        out = torch.full_like(places, -1)
        out[known] = kept
        return replace(candidates, slots=like(before.slots, out), fleeting=True)
    free = torch.ones(capacity, dtype=torch.bool, device=slots.device)
    free[kept] = False
    out = torch.empty_like(places)
    out[known] = kept
    out[~known] = free.nonzero().squeeze(1)[: len(places) - len(kept)]
    return replace(candidates, slots=like(before.slots, out))


def digest(indptr: Tensor, indices: Tensor, slots: Tensor) -> Tensor:
    """int64 (): a checksum that differs for arrays that were averaged or do not belong together."""
    total = indptr.new_zeros(())
    for k, array in enumerate((indptr, indices, slots)):
        if array.device.type == "cpu":
            total += KERNELS.digest(array.contiguous().numpy(), k)
        else:
            numbers = torch.arange(1, len(array) + 1, device=array.device)
            total += ((array.long() + 1) * (numbers * 2654435761 + k)).sum()
    return total


def check_candidates(config: ManifoldConfig, indptr: NDArray[Any], indices: NDArray[Any], n_omega: int) -> None:
    """Raise ValueError unless the arrays are a CSR of possible edges and omega has one number each: kernels do not
    check."""
    if indptr.shape != (config.n_rows + 1,) or indices.ndim != 1:
        raise ValueError(
            f"candidate_indptr of shape {indptr.shape} does not fit this manifold: it must be ({config.n_rows + 1},)"
        )
    if indptr[0] != 0 or (np.diff(indptr) < 0).any() or indptr[-1] != len(indices):
        raise ValueError(f"candidate_indptr must rise from 0 to {len(indices)}, the number of candidate_indices")
    readers = np.repeat(np.arange(config.n_inputs, config.n_neurons), np.diff(indptr))
    wrong = np.flatnonzero((indices < 0) | (indices >= np.minimum(readers, config.n_sources)))
    if len(wrong):
        raise ValueError(f"candidate edge {indices[wrong[0]]} -> {readers[wrong[0]]} is not possible in this manifold")
    falls = np.flatnonzero((np.diff(indices) <= 0) & (np.diff(readers) == 0))
    if len(falls):
        raise ValueError(f"the candidate sources of neuron {readers[falls[0]]} must ascend")
    if n_omega != len(indices):
        raise ValueError(f"{n_omega} edge_weight for {len(indices)} candidate_indices; they must be as many")


def check_slots(slots: NDArray[Any], capacity: int) -> None:
    """Raise ValueError unless the slots are distinct and in 0 .. capacity - 1."""
    if len(slots) and not (slots.min() >= 0 and slots.max() < capacity):
        raise ValueError(f"candidate_slots must lie in 0 .. {capacity - 1}, not {slots.min()} .. {slots.max()}")
    if len(np.unique(slots)) < len(slots):
        raise ValueError("candidate_slots names a slot twice; each candidate owns one of its own")


class Geometry:
    """What follows from a manifold's shape and edge mode, the same on every device."""

    def __init__(self, config: ManifoldConfig):
        self.config = config
        self.free = config.edges != "closeness"  # each candidate has an omega
        self.omega_in_closeness = config.edges in OMEGA_IN_CLOSENESS
        periodic, scales_strength = config.edges != "free", config.edges == "weighted"
        self.flags = periodic or None, self.omega_in_closeness or None, scales_strength or None  # of the kernels
        self.scalars = ROW_SCALARS[config.edges]
        self.parameters = (*self.scalars, "weight", "bias", "cutoff", *(["edge_weight"] if self.free else []))
        # the four that free edges do not have are not read
        self.kernel_scalars = [name if name in self.scalars else "alpha" for name in SCALARS]
        self.places = [SCALARS.index(name) for name in self.scalars]  # in the kernels' rows
        self.offsets = np.linspace(config.n_inputs, config.n_outputs, config.n_rows)

    def threshold(self, c: float) -> float:
        """Closeness above which pairs are kept."""
        return max(c - self.config.skin, c / 2)

    def cutoff(self, raw: float) -> float:
        """c = sigmoid(cutoff)"""
        return 1.0 / (1.0 + math.exp(min(-raw, 700.0)))

    def omega_bound(self, limit: float) -> float:
        """Bound of the initial |omega| as a factor of closeness; ``limit``: standard deviations."""
        mean, std = self.config.omega
        return abs(mean) + limit * std if self.omega_in_closeness else 1.0

    def no_reference(self) -> NDArray[np.float64]:
        """The reference of rows that were never searched: every pair may enter."""
        reference = np.zeros((self.config.n_rows, len(SCALARS) + 1))
        reference[:, [SCALARS.index("sigma"), SCALARS.index("theta")]] = 1.0
        reference[:, -1] = np.inf
        return reference

    def capacity(self, n_candidates: int) -> int:
        """Slots for a first structure of so many candidates."""
        wanted = self.config.capacity or max(math.ceil(SPARE * n_candidates), LEAST_SLOTS)
        return min(max(wanted, n_candidates), self.config.possible_edges)

    def closeness_without_omega(
        self, rows: NDArray[np.float64], row: NDArray[np.integer], sources: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Closeness of pairs (that broadcast) without the factor omega, float64; ``rows`` as in `Values`."""
        alpha, beta, gamma, theta, phi, sigma, mu = rows[: len(SCALARS), row]
        p = sources - (row + self.config.n_inputs) + self.offsets[row]
        d = alpha * np.exp(-0.5 * ((p - mu) / sigma) ** 2)
        if self.flags[0]:
            d = d * ((0.501 + 0.5 * np.sin(2 * np.pi * p / (self.config.period * theta) + phi)) ** beta - gamma)
        return np.asarray(d)


def with_new_pairs(
    config: ManifoldConfig, old: Candidates, rows: ArrayLike, sources: ArrayLike, omega: ArrayLike, capacity: int
) -> tuple[Candidates, NDArray[np.int64], NDArray[np.floating]]:
    """The ``old`` candidates, of the CPU, with new pairs among them; also the slots of the new pairs and their omega.

    ``rows`` count from the first neuron that is no input.  The new pairs take the lowest free slots, in their order.
    Raises ValueError if a pair is impossible or already a candidate, and OverCapacity if there is no room.
    """
    new_rows, new_sources, values = np.asarray(rows), np.asarray(sources), np.asarray(omega)
    if not new_rows.shape == new_sources.shape == values.shape == (len(new_rows),):
        raise ValueError(
            f"rows {new_rows.shape}, sources {new_sources.shape} and omega {values.shape} must be (n,) each"
        )
    if not np.isfinite(values).all():
        raise ValueError("omega must be finite")
    n_rows, top = config.n_rows, np.minimum(new_rows + config.n_inputs, config.n_sources)
    wrong = (new_rows < 0) | (new_rows >= n_rows) | (new_sources < 0) | (new_sources >= top)
    if wrong.any():
        k = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"row {new_rows[k]} (of {n_rows}) cannot read neuron {new_sources[k]}: edges lead from lower to higher"
        )
    all_rows = np.concatenate([np.repeat(np.arange(n_rows), np.diff(old.indptr)), new_rows.astype(np.int64)])
    indices = np.concatenate([old.indices, new_sources.astype(np.int32)])
    order = np.lexsort((indices, all_rows))
    twice = (np.diff(all_rows[order]) == 0) & (np.diff(indices[order]) == 0)
    if twice.any():
        k = order[np.flatnonzero(twice)[0]]
        raise ValueError(f"row {all_rows[k]} has neuron {indices[k]} as a candidate already; give each pair once")
    if len(indices) > capacity:
        raise OverCapacity(len(indices), capacity, "candidates are there with the new ones")
    indptr = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(all_rows, minlength=n_rows), out=indptr[1:])
    filled = np.setdiff1d(np.arange(capacity), old.slots, assume_unique=True)[: len(values)]
    slots = np.concatenate([old.slots, filled])[order]
    return Candidates(indptr, np.ascontiguousarray(indices[order]), slots, old.reference), filled, values
