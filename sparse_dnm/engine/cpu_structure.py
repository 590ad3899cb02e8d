"""The structure of a manifold on the CPU: candidates, closeness, active edges, and gradients of the scalars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.checks import CPU, DTYPES, check_parameters
from sparse_dnm.config import GATED, SCALARS, ManifoldConfig
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Engine, Evaluated, Neurons, ParameterGradients, Values
from sparse_dnm.engine.buffers import BIG, BufferPool
from sparse_dnm.engine.candidates import NOT_FINITE, Candidates, Geometry
from sparse_dnm.engine.costs import Cost, Gates, Prices
from sparse_dnm.engine.schedule import Schedule
from sparse_dnm.engine.topology import Topology

KERNELS = backend.kernels(CPU)
IDENTITY = backend.ACTIVATION_CODES["identity"]
FEW = 6_000  # up to so many candidates, waking other threads costs more than it saves
NOTHING = np.zeros(0, np.int64), np.zeros(0, np.int32)  # indptr and sources of no structure
Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class CpuStructure:
    """`base.Structure` in arrays of the CPU: a schedule of a topology."""

    schedule: Schedule
    neurons: Neurons
    candidates: Candidates | None = None

    @property
    def topology(self) -> Topology:
        """The graph."""
        return self.schedule.topology

    @property
    def n_edges(self) -> int:
        """Active edges, those of dead neurons included."""
        return self.schedule.topology.n_edges

    @property
    def depth(self) -> int:
        """The largest level."""
        return self.schedule.topology.depth

    @property
    def connected(self) -> bool:
        """Some input reaches an output."""
        return len(self.schedule.inputs) > 0

    @property
    def outputs(self) -> NDArray[np.int32]:
        """The output neurons."""
        return self.schedule.topology.outputs

    @property
    def host(self) -> CpuStructure:
        """Itself."""
        return self


class Arrays:
    """Tensors as numpy arrays by name, made anew only where one has moved."""

    def __init__(self) -> None:
        self._held: tuple[list[Any] | None, dict[str, Floats]] = None, {}

    def of(self, tensors: Mapping[str, Tensor], config: ManifoldConfig | None = None) -> dict[str, Floats]:
        """Their numbers, by name; what is written to the tensors shows in the arrays, whose dict is the same while none
        has moved.

        Raises ValueError where they are not the parameters of a manifold of this ``config`` as the kernels need them.
        """
        values = tensors.values()
        contiguous = all(map(_IS_CONTIGUOUS, values))
        places = [*map(_DATA_PTR, values), *map(_NUMEL, values), contiguous]
        before, arrays = self._held
        if places != before:
            if config is not None:
                check_parameters(tensors, config)
            arrays = {name: t.detach().contiguous().numpy() for name, t in tensors.items()}
            self._held = (places if contiguous else None), arrays  # a copy of what is not contiguous is made each time
        return arrays


_DATA_PTR, _NUMEL, _IS_CONTIGUOUS = Tensor.data_ptr, Tensor.numel, Tensor.is_contiguous


class Bits:
    """`base.Memory`: a copy of the bits of some arrays, which compiled code compares with what they are now."""

    def __init__(self, arrays: Mapping[str, Floats]):
        self._arrays = arrays
        self._addresses, self._sizes = self._places(arrays)
        self._copy = np.empty(int(self._sizes.sum()), np.uint32)
        self._address = self._copy.ctypes.data
        KERNELS.copy_words(self._addresses, self._sizes, self._copy)

    @staticmethod
    def _places(arrays: Mapping[str, Floats]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Addresses of contiguous arrays, and their numbers of words."""
        values = arrays.values()
        return np.array([a.ctypes.data for a in values]), np.array([a.nbytes // 4 for a in values])

    def same(self, arrays: Mapping[str, Floats]) -> bool:
        """See `base.Memory`."""
        addresses, sizes = self._addresses, self._sizes
        if arrays is not self._arrays:
            addresses, sizes = self._places(arrays)
            if not np.array_equal(sizes, self._sizes):
                return False
        same: bool = KERNELS.same_words(addresses, sizes, self._address)
        return same


class CpuSearch(Engine):
    """The part of the CPU's engine that finds the structure of a manifold."""

    kind, device, fused = "cpu", CPU, True

    def __init__(self, executor: Executor, config: ManifoldConfig | None = None):
        self.executor, self.buffers = executor, BufferPool()
        self._arrays = Arrays()
        if config is not None:
            self.config, self.geometry = config, Geometry(config)
            self._omega_bound = self.geometry.omega_bound(KERNELS.OMEGA_LIMIT)
            self._inputs = np.arange(config.n_inputs, dtype=np.int32)
            self._outputs = np.arange(config.n_sources, config.n_neurons, dtype=np.int32)
            self._neurons: dict[np.dtype[Any], Neurons] = {}

    def serves(self, device: torch.device) -> bool:
        """See `Engine.serves`."""
        return (device == CPU or not backend.on_cuda(device)) and self.executor.name != "torch-sparse"

    def read(self, parameters: Mapping[str, Tensor]) -> dict[str, Floats]:
        """The numbers of every parameter, by name."""
        return self._arrays.of(parameters, self.config)

    def no_candidates(self) -> Candidates:
        """None yet, in a state from which every pair may enter."""
        slots = np.empty(0, np.int64) if self.geometry.free else None
        indptr = np.zeros(self.config.n_rows + 1, np.int64)
        return Candidates.of(indptr, np.empty(0, np.int32), self.geometry.no_reference(), slots)

    def evaluate(
        self,
        parameters: Mapping[str, Floats],
        omega: Floats,
        candidates: Candidates,
        previous: CpuStructure | None,
        check: bool = True,
    ) -> Evaluated:
        """See `Engine.evaluate`; on one thread where the candidates are few."""
        config, geometry, found = self.config, self.geometry, candidates
        size, n_rows = len(found.indices), config.n_rows
        empty = np.empty if 8 * max(size, KERNELS.ROWS * n_rows) < BIG else self.buffers.empty
        c = geometry.cutoff(float(parameters["cutoff"]))
        threshold = geometry.threshold(c)
        threads = self.executor.threads if size > FEW else 1
        before = NOTHING if previous is None else (previous.topology.indptr, previous.topology.indices)
        scalars = [parameters[name] for name in geometry.kernel_scalars]
        rows = empty(KERNELS.ROWS * n_rows, np.float64).reshape(KERNELS.ROWS, n_rows)
        if config.edges == "free":
            rows.fill(0)
        dtype = scalars[0].dtype
        stale, d = np.empty(n_rows, np.bool_), empty(size, dtype)
        row_starts = empty(config.n_neurons + 1, np.int64)
        sources, strengths = empty(size, np.int32), empty(size, dtype)
        with backend.use_threads(threads):
            crossed, near, n_edges, same, imbalance = KERNELS.evaluate(
                *(*scalars, geometry.offsets, config.n_inputs, config.n_sources, config.period, *geometry.flags),
                *(c, threshold, check, self._omega_bound, found.reference, found.indptr, found.indices, omega),
                *(*before, rows, stale, d, row_starts, sources, strengths),
                empty(4 * n_rows, np.float64).reshape(4, n_rows),
            )
        values = Values(
            rows, c, threshold, omega, d, near, strengths[:n_edges], imbalance, (row_starts, sources), threads
        )
        return Evaluated(values, stale if crossed else None, same, row_starts, sources[:n_edges], None)

    def search(
        self,
        old: Candidates,
        found: Evaluated,
        stale: NDArray[np.bool_] | None,
        parameters: Mapping[str, Floats],
        omega: Floats,
    ) -> tuple[Candidates, Floats, NDArray[np.int32]]:
        """See `Engine.search`."""
        config, geometry, values = self.config, self.geometry, found.values
        if not (np.isfinite(values.c) and np.isfinite(values.rows).all()):
            raise ValueError(NOT_FINITE)
        if stale is None:
            stale = np.ones(config.n_rows, np.bool_)
        indptr = np.zeros(config.n_rows + 1, np.int64)
        head = (
            *(values.rows, old.reference, stale, values.threshold, geometry.offsets, config.n_inputs),
            *(config.n_sources, config.period, *geometry.flags, config.seed, *config.omega, old.indptr),
            *(old.indices, omega),
        )
        with backend.use_threads(self.executor.threads):
            KERNELS.scan(*head, False, indptr, old.indices[:0], omega[:0], old.indices[:0])
            np.cumsum(indptr, out=indptr)
            size = indptr[-1]
            check_size(size)
            indices, origin = np.empty(size, np.int32), np.empty(size if geometry.free else 0, np.int32)
            new_omega = np.empty(len(origin), omega.dtype)
            KERNELS.scan(*head, True, indptr, indices, new_omega, origin)
        reference = old.reference.copy()
        reference[stale, :-1], reference[stale, -1] = values.rows[: len(SCALARS), stale].T, values.threshold
        if not geometry.free:
            origin = np.full(size, -1, np.int32)
        return Candidates.of(indptr, indices, reference), new_omega, origin

    def structure(
        self, found: Evaluated, candidates: Candidates, previous: CpuStructure | None, everything: bool
    ) -> CpuStructure:
        """See `Engine.structure`; ``everything`` is not needed here: `forward` completes messages where asked for."""
        neurons = self.neurons_of(found.values.d.dtype)
        if previous is not None and found.same:
            if previous.candidates is candidates and previous.neurons is neurons:
                return previous
            return replace(previous, candidates=candidates, neurons=neurons)
        topology = Topology(found.row_starts, found.sources, self._inputs, self._outputs, self.buffers.empty)
        return CpuStructure(Schedule(topology), neurons, candidates)

    def neurons_of(self, dtype: np.dtype[Any]) -> Neurons:
        """The neurons of the manifold: activations, slopes and which of them have a weight."""
        if dtype not in self._neurons:
            config = self.config
            kind, slope = backend.ACTIVATION_CODES[config.activation]
            n, first_linear = config.n_neurons, config.n_sources
            kinds, slopes = np.full(n, kind, np.int8), np.full(n, slope, dtype)
            if config.neuron in GATED:  # the message of a hidden neuron is its value
                kinds[config.n_inputs : first_linear], slopes[config.n_inputs : first_linear] = IDENTITY
            self._neurons[dtype] = Neurons(kinds, slopes, first_linear, slice(0, config.n_weighted))
        return self._neurons[dtype]

    def edges_backward(
        self,
        structure: CpuStructure,
        values: Values,
        by_strength: Floats | None,
        by_closeness: Floats | None,
        by_imbalance: float,
        by_scalar: Floats | None = None,
    ) -> ParameterGradients:
        """See `Engine.edges_backward`.

        ``by_scalar`` (7, n_rows): where to write the gradients of the scalars; those that the mode lacks stay.
        """
        e, config, geometry, candidates = values, self.config, self.geometry, structure.candidates
        assert candidates is not None
        if by_scalar is None:
            by_scalar = np.empty((len(SCALARS), config.n_rows), e.d.dtype)
        by_omega = self.buffers.empty(len(e.omega), e.d.dtype)
        sums = self.buffers.empty((len(SCALARS) + 1) * config.n_rows, np.float64).reshape(-1, config.n_rows)
        row_starts, sources = e.active
        with backend.use_threads(e.threads):
            by_cutoff = KERNELS.strength_back(
                *(e.rows, geometry.offsets, config.n_inputs, config.n_sources, config.period, *geometry.flags, e.c),
                *(candidates.indptr, candidates.indices, e.omega, e.d, row_starts, sources, e.strengths),
                *(e.d[:0] if by_strength is None else by_strength, e.d[:0] if by_closeness is None else by_closeness),
                *(by_imbalance, sums, by_scalar, by_omega),
            )
        return ParameterGradients(by_scalar, by_cutoff, by_omega)

    def gates(self, values: Values, tau: float) -> Gates:
        """See `Engine.gates`."""
        slopes = np.empty_like(values.d)
        with backend.use_threads(values.threads):
            parts = np.empty((2, -(-len(values.d) // KERNELS.CHUNK)))
            total, by_cutoff = KERNELS.gates(values.d, values.c, tau, values.threshold, parts, slopes)
        return Gates(total, by_cutoff, slopes)

    def expected_cost(self, structure: CpuStructure, values: Values, tau: float, prices: Prices) -> Cost:
        """See `Engine.expected_cost`."""
        config, e, candidates = self.config, values, structure.candidates
        assert candidates is not None
        n_rows, deep = config.n_rows, prices.level > 0.0
        slopes, levels = np.empty_like(e.d), np.empty((2, config.n_neurons if deep else 0))
        picked = np.empty((n_rows if deep else 0, KERNELS.PICKS), np.int64)
        by_gate = np.empty(len(e.d))
        cost, by_cutoff = KERNELS.expected_cost(
            *(config.n_inputs, config.n_sources, structure.topology.live, candidates.indptr, candidates.indices, e.d),
            *(e.c, tau, e.threshold, *prices, np.empty_like(e.d), np.empty(config.n_sources)),
            *(np.empty(config.n_sources, np.int64), levels[0], levels[1], picked, by_gate, slopes),
        )
        return Cost(cost, by_cutoff, slopes, by_gate)

    def gather(self, edge_weight: Floats, slots: NDArray[np.int64]) -> Floats:
        """See `Engine.gather`."""
        omega = self.buffers.empty(len(slots), edge_weight.dtype)
        KERNELS.gather(edge_weight, slots, omega)
        return omega

    def scatter(self, by_omega: Floats, candidates: Candidates, capacity: int) -> Floats:
        """See `Engine.scatter`."""
        out = self.buffers.empty(capacity, by_omega.dtype)
        KERNELS.scatter(by_omega, candidates.slots, out)
        return out

    def remember(self, arrays: Mapping[str, Floats]) -> Bits:
        """See `Engine.remember`."""
        return Bits(arrays)

    def host_values(self, structure: CpuStructure, values: Values) -> Values:
        """As they are."""
        return values

    def array(self, tensor: Tensor) -> Floats:
        """As a contiguous numpy array."""
        array: Floats = (tensor.detach() if tensor.requires_grad else tensor).numpy()
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    def tensor(self, array: Any) -> Tensor:
        """As a tensor of the same memory."""
        return torch.from_numpy(array)

    def number(self, value: Any, like: Tensor) -> Tensor:
        """See `Engine.number`."""
        return torch.from_numpy(np.array(value, DTYPES[like.dtype]))

    def neurons(self, kind: NDArray[np.int8], slope: Floats, first_linear: int, weighted: Any) -> Neurons:
        """As they are."""
        return Neurons(kind, slope, first_linear, weighted)


def check_size(size: int) -> None:
    """Raise ValueError if there are too many candidates for int32."""
    if size >= 2**31:
        raise ValueError(f"{size} candidate edges do not fit the int32 edge lists; narrow sigma or raise cutoff")


__all__ = ["DTYPES", "Arrays", "CpuSearch", "CpuStructure", "check_size"]
