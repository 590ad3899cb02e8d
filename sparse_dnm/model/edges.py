"""The candidate edges of a manifold as buffers of fixed length, and the slots of edge_weight (DESIGN, 4.1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sparse_dnm.checks import CPU
from sparse_dnm.config import OMEGA_IN_CLOSENESS, ManifoldConfig
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Engine, Update
from sparse_dnm.engine.candidates import Candidates, Geometry, check_candidates, check_slots, digest, with_new_pairs
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.model.averaging import SlotBirths
from sparse_dnm.model.followed import Followed
from sparse_dnm.model.recurrent import SequenceModule
from sparse_dnm.model.saved import as_searched, names_of, saved_structure

STRUCTURE = ("candidate_indptr", "candidate_indices", "candidate_slots", "structure_digest", "_reference")
WATCHED = ("structure_digest", "candidate_indices")  # every write to the buffers includes these
NOT_FOLLOWED = (
    "a slot of edge_weight was given to a new edge, and no optimiser is known to start its moments at zero; call "
    "model.follow(optimizer) once after creating it, or ignore this if the optimiser keeps no moments"
)
MIXED = (
    "the buffers of this manifold's structure do not belong together; were they averaged? Make "
    "AveragedModel(model, use_buffers=False), or load them from one state_dict"
)


class EdgeSlots(SequenceModule):
    """Holds candidates, and the slot that each owns in the parameter edge_weight (capacity,).

    Buffers, all of fixed length, so that whatever holds, copies or averages them keeps fitting:
    candidate_indptr   int64 (n_rows + 1,)  CSR of the candidates
    candidate_indices  int32 (capacity,)    their sources; -1 beyond the last
    candidate_slots    int64 (capacity,)    their slots; -1 beyond the last; not where edges have no omega
    slot_births        int64 (capacity,)    how often each slot was filled; as candidate_slots
    structure_digest   int64 ()             of the three arrays above, to notice where they were mixed up
    _reference         float64 (n_rows, 8)  where each row was last searched
    """

    config: ManifoldConfig
    executor: Executor
    alpha: Tensor
    edge_weight: nn.Parameter
    candidate_indptr: Tensor
    candidate_indices: Tensor
    candidate_slots: Tensor
    slot_births: Tensor
    structure_digest: Tensor
    _reference: Tensor
    _seen: list[tuple[str, Tensor, int]]
    _held_candidates: Candidates | None  # what the buffers hold, in arrays of the engine

    def _begin(self, geometry: Geometry) -> None:
        """Register empty buffers, and an edge_weight without edges."""
        self._geometry = geometry
        self._followed = Followed()
        self._warned = False
        self._engine: Engine | None = None
        if geometry.free:
            self.register_parameter("edge_weight", nn.Parameter(torch.empty(0, dtype=self.alpha.dtype)))
        self._hold(self._nothing(), 0)

    @property
    def capacity(self) -> int:
        """Number of slots for candidates."""
        return len(self.candidate_indices)

    @property
    def engine(self) -> Engine:
        """The engine of the device that holds the parameters."""
        return self._engine_on(self._parameters_device())

    def _engine_on(self, device: torch.device) -> Engine:
        engine = self.__dict__["_engine"]
        if engine is None or engine.executor is not self.executor or not engine.serves(device):
            engine = engine_for(self.executor, device, self.config.graph)
            self.__dict__["_engine"] = engine  # nn.Module.__setattr__ is slow
        return engine

    def _parameters_device(self) -> torch.device:
        found = self._parameters.get("alpha")
        return (self.alpha if found is None else found).device

    # -- candidates ------------------------------------------------------------------------------------------

    def _nothing(self) -> Candidates:
        """No candidates, in arrays of the CPU."""
        return engine_for(self.executor, CPU, self.config.graph).no_candidates()

    def _hold(self, candidates: Candidates, capacity: int) -> None:
        """Register new buffers of this capacity that hold the candidates."""
        device = self._parameters_device()
        n_rows = self.config.n_rows
        made = {
            "candidate_indptr": torch.zeros(n_rows + 1, dtype=torch.int64),
            "candidate_indices": torch.full((capacity,), -1, dtype=torch.int32),
            "structure_digest": torch.zeros((), dtype=torch.int64),
            "_reference": torch.zeros(n_rows, candidates.reference.shape[1], dtype=torch.float64),
        }
        if self._geometry.free:
            births = self._buffers.get("slot_births")
            counts = torch.zeros(capacity, dtype=torch.int64)
            if births is not None:
                kept = min(capacity, len(births))
                counts[:kept] = births.as_subclass(Tensor)[:kept].cpu()
            made |= {"candidate_slots": torch.full((capacity,), -1, dtype=torch.int64), "slot_births": counts}
        for name, tensor in made.items():
            self.register_buffer(name, tensor.to(device))
        self._own_births()
        self._write(candidates)

    def _own_births(self) -> None:
        """Tell slot_births which module it belongs to."""
        births = self._buffers.get("slot_births")
        if births is not None:
            self._buffers["slot_births"] = SlotBirths.of(births.as_subclass(Tensor), self)

    @torch.no_grad()
    def _write(self, candidates: Candidates) -> None:
        """Write the candidates to the buffers, in place."""
        n, buffers = len(candidates.indices), self._buffers
        for name, array in (("candidate_indices", candidates.indices), ("candidate_slots", candidates.slots)):
            if array is not None:
                buffers[name][:n] = torch.as_tensor(array)  # type: ignore[index]
                buffers[name][n:] = -1  # type: ignore[index]
        self.candidate_indptr.copy_(torch.as_tensor(candidates.indptr))
        self._reference.copy_(torch.as_tensor(candidates.reference))
        self.structure_digest.copy_(self._digest())
        self._held_candidates = candidates
        self._watch()

    def _digest(self) -> Tensor:
        slots = self._buffers.get("candidate_slots")
        return digest(self.candidate_indptr, self.candidate_indices, self.candidate_indices if slots is None else slots)

    def _watch(self) -> None:
        """From here on, notice when other code writes to the buffers or replaces them."""
        buffers = [(name, b) for name in WATCHED if (b := self._buffers[name]) is not None and not b.is_inference()]
        self._seen = [(name, buffer, buffer._version) for name, buffer in buffers]

    @property
    def _touched(self) -> bool:
        """Other code has written to the buffers since."""
        buffers: dict[str, Any] = self._buffers
        for name, buffer, version in self._seen:  # noqa: SIM110 - any() takes twice as long
            if buffers[name] is not buffer or buffer._version != version:
                return True
        return False

    def _candidates(self) -> Candidates:
        """The candidates that the buffers hold, in arrays of the engine.

        Raises ValueError where the buffers are not those of a structure.
        """
        if self._held_candidates is None or self._touched:
            self._adopt()
        assert self._held_candidates is not None
        return self._held_candidates

    def _adopt(self) -> None:
        """Take over what other code has written to the buffers (loaded, copied or received)."""
        if not torch.equal(self._digest(), self.structure_digest):
            raise ValueError(MIXED)
        n = int(self.candidate_indptr[-1])
        slots, engine = self._buffers.get("candidate_slots"), self.engine
        parts = self.candidate_indptr, self.candidate_indices[:n], self._reference, None if slots is None else slots[:n]
        held = Candidates.of(*(None if t is None else engine.array(t.clone()) for t in parts))
        host = held.host
        check_candidates(self.config.graph, host.indptr, host.indices, n)
        if host.slots is not None:
            check_slots(host.slots, self.capacity)
        if self._held_candidates is None or not self._held_candidates.same(held):
            self._held_candidates = held
            self._forget()
        self._watch()

    def _forget(self) -> None:
        """Drop the last evaluation, which is of another structure; to be overridden."""

    @property
    def candidates(self) -> Candidates:
        """The candidates of the last forward, in arrays of the CPU: indptr, indices, slots, reference."""
        return self._candidates().host

    # -- slots -----------------------------------------------------------------------------------------------

    @torch.inference_mode(False)  # tensors made in inference mode cannot be trained
    @torch.no_grad()
    def _commit(self, update: Update, training: bool = False) -> None:
        """Store the candidates of an update; slots of new edges get their initial omega, free slots get 0.

        ``training``: a graph is wanted, so an optimiser may be in use.
        """
        if update.origin is None:
            return
        candidates = update.structure.candidates
        self._write(candidates)
        if candidates.slots is None:
            return
        slots, new = torch.as_tensor(candidates.slots), torch.as_tensor(update.origin) < 0
        reused = self._fill(slots, slots[new], torch.as_tensor(update.values.omega)[new])
        if reused and training and not self._followed and not self._warned:
            self._warned = True
            warnings.warn(NOT_FOLLOWED, stacklevel=3)

    def _fill(self, slots: Tensor, filled: Tensor, omega: Tensor) -> bool:
        """Write omega to the ``filled`` slots and 0 to all that are not among ``slots``; moments of both become 0.

        Returns whether one of the filled slots held another edge before.
        """
        free = torch.ones(self.capacity, dtype=torch.bool, device=slots.device)
        free[slots] = False
        changed = free.clone()
        changed[filled] = True
        self.edge_weight[free] = 0.0
        self.edge_weight[filled] = omega.to(self.edge_weight)
        if self.edge_weight.grad is not None:
            self.edge_weight.grad[changed] = 0.0
        births = self.slot_births.as_subclass(Tensor)
        births[filled] += 1
        self._followed.forget(self.edge_weight, changed)
        return bool((births[filled] > 1).any())

    @torch.no_grad()
    def take_candidates(self, candidates: Candidates, births: NDArray[np.int64] | None) -> None:
        """Store candidates that other code has found, in arrays of the engine; it writes their omega to their slots,
        free slots get 0.  births (capacity,): how often each slot was given to a new one."""
        self._write(candidates)
        self._forget()
        if candidates.slots is not None and births is not None:
            slots = torch.as_tensor(candidates.slots)
            self._fill(slots, slots[:0], self.edge_weight[:0])
            self.slot_births.as_subclass(Tensor).add_(torch.from_numpy(births))

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Start the moments of a new edge at zero: those that ``optimizer`` keeps for its slot of edge_weight.

        Moments follow their edges by themselves, since an edge keeps its slot.  Raises ValueError for LBFGS, which
        keeps no moments per parameter.
        """
        self._followed.add(optimizer)

    @torch.no_grad()
    def grow_capacity(self, capacity: int) -> None:
        """Make room for ``capacity`` candidates: edge_weight, the buffers and the moments of followed optimisers
        become longer, in place.  Averages, DDP and optimisers that are not followed must be created again.

        Raises ValueError unless that is more than now.
        """
        if not self.capacity < capacity:
            raise ValueError(f"capacity={capacity} must be more than the present {self.capacity}")
        more, candidates = min(capacity, self.config.possible_edges) - self.capacity, self._candidates()
        self._forget()
        if self._geometry.free:
            self._change_length(lambda values: torch.cat([values, values.new_zeros(more)]))
        self._hold(candidates, self.capacity + more)

    @torch.no_grad()
    def add_candidates(self, rows: ArrayLike, sources: ArrayLike, omega: ArrayLike) -> None:
        """Make pairs candidates, each with its omega, (n,) each; only where closeness has the factor omega.

        ``rows`` count from the first neuron that is no input.
        Raises ValueError if a pair is impossible or already a candidate, and OverCapacity if there is no room.
        """
        if not self._geometry.omega_in_closeness:
            raise ValueError(f"candidates can be added in edges {OMEGA_IN_CLOSENESS} only, not {self.config.edges!r}")
        found, filled, values = with_new_pairs(self.config.graph, self.candidates, rows, sources, omega, self.capacity)
        self._write(self._on_engine(found))
        device = self._parameters_device()
        self._fill(*(torch.from_numpy(a).to(device) for a in (found.slots, filled, values)))

    def forget_rows(self, rows: NDArray[np.integer]) -> None:
        """Forget when ``rows`` were searched, so that the next search admits pairs as at the start."""
        held = self._candidates()
        reference = torch.as_tensor(held.reference).clone()
        start = torch.from_numpy(self._geometry.no_reference()).to(reference.device)
        reference[torch.from_numpy(rows)] = start[torch.from_numpy(rows)]
        self._write(Candidates.of(held.indptr, held.indices, self.engine.array(reference), held.slots))

    # -- moving, copying, loading ----------------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As torch's, which moves the model; the candidates keep every bit."""
        before, device = self._buffers["_reference"], self._parameters_device()
        assert before is not None
        held = self._held_candidates if before.is_meta else self._candidates()
        super()._apply(fn, recurse)
        held = self._nothing() if held is None else held
        if before.is_meta:  # and a meta tensor holds nothing
            self._hold(held.host, self.capacity)
        else:
            self._buffers["_reference"] = before.to(self._parameters_device())
            self._own_births()
            self._watch()
        if self._parameters_device() != device and not self._reference.is_meta:
            self._forget()
            self._engine = None
            self._held_candidates = self._on_engine(held.host)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the followed optimisers, and what is computed again when needed."""
        buffers = {k: b.plain if isinstance(b, SlotBirths) else b for k, b in self._buffers.items()}
        dropped: dict[str, Any] = {"_followed": None, "_engine": None, "_held_candidates": None, "_seen": []}
        return {**self.__dict__, "_buffers": buffers, **dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_followed": Followed()})
        self._own_births()
        self._watch()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """As torch's; births as an ordinary tensor."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        key = prefix + "slot_births"
        if key in destination:
            destination[key] = destination[key].as_subclass(Tensor)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over the saved candidates, whatever their number and the capacity.

        A state from before there were slots, or that of a DenseManifold, has omega in the order of the candidates; the
        latter has no reference: then edges="closeness" searches all rows again, and free edges keep the saved
        candidates, as if every row had been searched at the saved scalars.
        Raises ValueError, with nothing changed, if a candidate is not a possible edge: kernels do not check.
        """
        free, names = self._geometry.free, names_of(self._geometry, state_dict, prefix)
        if any(prefix + name not in state_dict for name in names):
            own = {*STRUCTURE, "slot_births", "edge_weight"}
            rest = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in own}
            super()._load_from_state_dict(rest, prefix, *args)  # it names what is missing
            return
        state = dict(state_dict)
        saved = saved_structure(self._geometry, state, prefix, self.capacity)
        n = len(state[f"{prefix}candidate_indices"])
        self._resize(saved.capacity)
        self._write(self._on_engine(saved.candidates))
        if free and not saved.slotted:
            weights = state[f"{prefix}edge_weight"].detach()
            state[f"{prefix}edge_weight"] = torch.cat([weights, weights.new_zeros(saved.capacity - n)])
            self.slot_births.as_subclass(Tensor)[:n] += 1
        if not (saved.slotted and saved.searched):
            state.update({f"{prefix}{name}": buffer for name, buffer in self.named_buffers(recurse=False)})
        super()._load_from_state_dict(state, prefix, *args)
        self._own_births()
        self._watch()
        self._forget()
        if free and not saved.searched:
            arrays = self.engine.read({name: getattr(self, name) for name in self._geometry.parameters})
            self._write(as_searched(self.engine, arrays, self._candidates()))

    def _on_engine(self, candidates: Candidates) -> Candidates:
        """CPU candidates as arrays of the engine."""
        device, engine = self._parameters_device(), self.engine
        parts = candidates.indptr, candidates.indices, candidates.reference, candidates.slots
        return Candidates.of(*(None if a is None else engine.array(torch.from_numpy(a).to(device)) for a in parts))

    def _resize(self, capacity: int) -> None:
        """Give edge_weight and the buffers this length, if theirs differs; the weights are lost, and moments of
        followed optimisers start at zero."""
        if self._geometry.free and len(self.edge_weight) != capacity:
            self._change_length(lambda values: values.new_zeros(capacity))
            self.edge_weight.grad = None
        if self.capacity != capacity:
            self._hold(self._nothing(), capacity)

    def _change_length(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put changed numbers into edge_weight, its gradient and the moments of followed optimisers."""
        gradient, self.edge_weight.grad = self.edge_weight.grad, None
        before, changed = self.edge_weight.shape, change(self.edge_weight.data)
        # The graph of an earlier call keeps a gradient accumulator of the old length alive; torch drops it only when
        # the type of the data changes.
        self.edge_weight.data = torch.empty(0, dtype=torch.float16, device=changed.device)
        self.edge_weight.data = changed
        if gradient is not None:
            self.edge_weight.grad = change(gradient)
        self._followed.change(self.edge_weight, before, change)
