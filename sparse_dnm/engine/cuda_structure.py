"""The structure of a manifold on CUDA, found on the device: its arrays are not copied to the host.

Each call transfers five counts at once, five more if the structure has changed, and two if rows are searched again.
Where numba's simulator runs (NUMBA_ENABLE_CUDASIM=1) the same code takes tensors of the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.checks import CPU, check_parameters
from sparse_dnm.config import SCALARS, ManifoldConfig
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Engine, Evaluated, Neurons, ParameterGradients, Update, Values
from sparse_dnm.engine.candidates import NOT_FINITE, Candidates, Geometry
from sparse_dnm.engine.costs import Cost, Gates, Prices
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.engine.cpu_structure import CpuStructure, check_size
from sparse_dnm.engine.schedule import Schedule
from sparse_dnm.engine.topology import Topology

THREADS = 128  # of a block without synchronisation
FRONT = 32  # warps of the block that goes over the whole DAG
ADDING = 4  # warps of a block that adds up rows


def _launch(kernel: Any, count: int, *arguments: Any) -> None:
    """Launch one thread for each of ``count`` items."""
    if count:
        backend.launch(kernel, -(-count // THREADS), THREADS, *arguments)


@dataclass(frozen=True, eq=False)
class CudaStructure:
    """`base.Structure` in tensors of a device: a `Topology` and a `Schedule`, as the kernels need them."""

    inputs: Tensor
    column: Tensor
    order: Tensor
    waves: Tensor
    indptr: Tensor
    indices: Tensor
    readers: Tensor  # int32 (n_edges,): of every edge
    t_indptr: Tensor
    t_edges: Tensor
    outputs: Tensor
    column_of: Tensor
    neurons: Neurons
    n_live_edges: int  # edges to executed neurons
    connected: bool
    all_inputs: Tensor  # int32: of the graph, whether executed or not
    candidates: Candidates | None = None
    everything: bool = False  # also runs neurons that reach no output

    @property
    def n_edges(self) -> int:
        """Active edges, those of dead neurons included."""
        return len(self.indices)

    @property
    def depth(self) -> int:
        """The largest level that is executed."""
        return len(self.waves) - 2

    @functools.cached_property
    def host(self) -> CpuStructure:
        """The same for the CPU; its arrays are copied once."""

        def array(tensor: Tensor) -> Any:
            return tensor.cpu().numpy()

        topology = Topology(*(array(t) for t in (self.indptr, self.indices, self.all_inputs, self.outputs)))
        candidates = None if self.candidates is None else self.candidates.host
        return CpuStructure(Schedule(topology), on_host(self.neurons), candidates)

    @property
    def topology(self) -> Topology:
        """The graph as arrays of the CPU."""
        return self.host.topology

    def uploaded(self, host: CpuStructure) -> CudaStructure:
        """The same, with its CPU form given."""
        self.__dict__["host"] = host
        return self


def on_host(neurons: Neurons) -> Neurons:
    """Neurons in arrays of the CPU."""
    weighted = neurons.weighted
    weighted = weighted if isinstance(weighted, slice) else weighted.cpu().numpy()
    return Neurons(neurons.kind.cpu().numpy(), neurons.slope.cpu().numpy(), neurons.first_linear, weighted)


class CudaSearch(Engine):
    """The part of CUDA's engine that finds the structure of a manifold."""

    kind = "cuda"

    def __init__(self, executor: Executor, device: torch.device, config: ManifoldConfig | None = None):
        self.executor, self.device = executor, device
        if config is not None:
            self.config, self.geometry = config, Geometry(config)
            self._flags = tuple(flag is not None for flag in self.geometry.flags)
            self._offsets = torch.from_numpy(self.geometry.offsets).to(device)
            self._inputs = torch.arange(config.n_inputs, dtype=torch.int32, device=device)
            self._outputs = torch.arange(config.n_sources, config.n_neurons, dtype=torch.int32, device=device)
            column_of = torch.full((config.n_neurons,), -1, dtype=torch.int32, device=device)
            column_of[config.n_sources :] = torch.arange(config.n_outputs, dtype=torch.int32, device=device)
            self._column_of = column_of
            self._neurons: dict[torch.dtype, Neurons] = {}

    def serves(self, device: torch.device) -> bool:
        """See `Engine.serves`."""
        return backend.on_cuda(device) and device == self.device and self.executor.name != "torch-sparse"

    def read(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The numbers of every parameter, by name."""
        check_parameters(parameters, self.config)
        return {name: p.detach().contiguous() for name, p in parameters.items()}

    def no_candidates(self) -> Candidates:
        """See `Engine.no_candidates`."""
        indptr = torch.zeros(self.config.n_rows + 1, dtype=torch.int64, device=self.device)
        nothing = torch.empty(0, dtype=torch.int32, device=self.device)
        reference = torch.from_numpy(self.geometry.no_reference()).to(self.device)
        return Candidates.of(indptr, nothing, reference, nothing.long() if self.geometry.free else None)

    def neurons_of(self, dtype: torch.dtype) -> Neurons:
        """The neurons of the manifold: activations, slopes and which of them have a weight."""
        if dtype not in self._neurons:
            config = self.config
            code, slope = backend.ACTIVATION_CODES[config.activation]
            kinds = torch.full((config.n_neurons,), code, dtype=torch.int8, device=self.device)
            slopes = torch.full_like(kinds, slope, dtype=dtype)
            self._neurons[dtype] = Neurons(kinds, slopes, config.n_sources, slice(0, config.n_sources))
        return self._neurons[dtype]

    def update(
        self,
        parameters: Mapping[str, Tensor],
        omega: Tensor,
        candidates: Candidates,
        previous: Any,
        capacity: int | None,
        everything: bool = False,
    ) -> Update:
        """See `Engine.update`.  Raises DeviceMemoryError with what did not fit."""
        try:
            return super().update(parameters, omega, candidates, previous, capacity, everything)
        except torch.OutOfMemoryError as error:
            raise backend.DeviceMemoryError(
                f"the search for edges among {self.config.n_neurons:,} neurons does not fit {str(self.device)!r} "
                f"({str(error).partition('.')[0]}); narrow sigma, raise cutoff, or take a device with more memory"
            ) from None

    def evaluate(
        self,
        parameters: Mapping[str, Tensor],
        omega: Tensor,
        candidates: Candidates,
        previous: CudaStructure | None,
        check: bool = True,
    ) -> Evaluated:
        """See `Engine.evaluate`; c, threshold and imbalance are float64 (1,), ``active`` int32 (n_candidates,) counts
        the active candidates up to each."""
        config, size, kernels = self.config, len(candidates.indices), backend.cuda_kernels()
        n_rows, dtype = config.n_rows, parameters["alpha"].dtype
        periodic, in_closeness, scales_strength = self._flags
        c = torch.sigmoid(parameters["cutoff"].double()).reshape(1)
        threshold = torch.maximum(c - config.skin, c / 2)

        def new(count: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(count, dtype=dtype, device=self.device)

        scalars = [parameters[name] for name in self.geometry.kernel_scalars]
        rows = torch.zeros(kernels.ROWS, n_rows, dtype=torch.float64, device=self.device)
        stale, crossed = new(n_rows, torch.bool), new(n_rows, torch.int32)
        bound = self.geometry.omega_bound(backend.kernels(CPU).OMEGA_LIMIT)
        _launch(
            *(kernels.transform, n_rows, *scalars, config.period, periodic, c, threshold, bound),
            *(torch.finfo(dtype).eps, candidates.reference, rows, stale, crossed),
        )
        d, active = new(size, dtype), new(size, torch.int32)
        _launch(
            *(kernels.closeness, size, rows, self._offsets, config.n_inputs, config.period, periodic, in_closeness, c),
            *(candidates.row_of, candidates.indices, omega, d, active),
        )
        places = torch.cumsum(active, 0, dtype=torch.int32)
        counted = torch.cat([places.new_zeros(1), places])
        row_starts = torch.zeros(config.n_neurons + 1, dtype=torch.int64, device=self.device)
        row_starts[config.n_inputs :] = counted[candidates.indptr]
        sources, readers, differs = (new(size, torch.int32) for _ in range(3))
        strengths, parts = new(size, dtype), new(size, torch.float64)
        before = sources[:0] if previous is None else previous.indices
        _launch(
            *(kernels.compact, size, c, config.n_inputs, config.n_sources, scales_strength, candidates.row_of),
            *(candidates.indices, d, omega, places, before, sources, readers, strengths, parts, differs),
        )
        counts = [crossed.sum(), (d.abs() > threshold).sum(), counted[-1], differs.sum()]
        if previous is not None:
            counts.append((row_starts != previous.indptr).sum())
        crossings, near, n_edges, *differences = torch.stack([count.long() for count in counts]).tolist()
        same = previous is not None and not any(differences)
        imbalance = parts.sum().reshape(1)
        values = Values(rows, c, threshold, omega, d, near, strengths[:n_edges], imbalance, places, 1)
        return Evaluated(
            values, stale if check and crossings else None, same, row_starts, sources[:n_edges], readers[:n_edges]
        )

    def edges_backward(
        self,
        structure: CudaStructure,
        values: Values,
        by_strength: Tensor | None,
        by_closeness: Tensor | None,
        by_imbalance: Any,
    ) -> ParameterGradients:
        """See `Engine.edges_backward`."""
        e, config, kernels, candidates = values, self.config, backend.cuda_kernels(), structure.candidates
        assert candidates is not None
        by_scalar = e.d.new_zeros(len(SCALARS), config.n_rows)
        by_cutoff, by_omega = e.rows.new_zeros(config.n_rows), torch.empty_like(e.omega)
        imbalance = self.number(by_imbalance, e.rows).reshape(1)
        backend.launch(
            *(kernels.strength_back, -(-config.n_rows // ADDING), (kernels.WIDTH, ADDING)),
            *(e.rows, self._offsets, config.n_inputs, config.n_sources, config.period, *self._flags, e.c),
            *(candidates.indptr, candidates.indices, e.omega, e.d, e.active),
            *(e.d[:0] if by_strength is None else by_strength, e.d[:0] if by_closeness is None else by_closeness),
            *(imbalance, by_scalar, by_cutoff, by_omega),
        )
        return ParameterGradients(by_scalar, by_cutoff.sum().to(e.d.dtype), by_omega)

    def search(
        self,
        old: Candidates,
        found: Evaluated,
        stale: Tensor | None,
        parameters: Mapping[str, Tensor],
        omega: Tensor,
    ) -> tuple[Candidates, Tensor, Tensor]:
        """See `Engine.search`."""
        e, config, kernels, free = found.values, self.config, backend.cuda_kernels(), self.geometry.free
        if not bool(torch.isfinite(e.rows).all() & torch.isfinite(e.c).all()):
            raise ValueError(NOT_FINITE)
        if stale is None:
            stale = torch.ones(config.n_rows, dtype=torch.bool, device=self.device)
        parts = config.n_rows * kernels.PARTS
        starts = torch.zeros(parts + 1, dtype=torch.int64, device=self.device)
        head = (
            *(e.rows, old.reference.T.contiguous(), stale, e.threshold, self._offsets, config.n_inputs),
            *(config.n_sources, config.period, *self._flags, config.seed, *map(float, config.omega), old.indptr),
            *(old.indices, omega),
        )
        none = old.indices[:0]
        _launch(kernels.scan, parts, *head, False, starts, none, omega[:0], none)
        starts = starts.cumsum(0)
        size = int(starts[-1])
        check_size(size)
        indices = torch.empty(size, dtype=torch.int32, device=self.device)
        origin = torch.empty(size if free else 0, dtype=torch.int32, device=self.device)
        new_omega = omega.new_empty(len(origin))
        _launch(kernels.scan, parts, *head, True, starts, indices, new_omega, origin)
        now = torch.cat([e.rows[: len(SCALARS)].T, e.threshold.expand(config.n_rows, 1)], dim=1)
        reference = torch.where(stale[:, None], now, old.reference)
        if not free:
            origin = torch.full_like(indices, -1)
        return Candidates.of(starts[:: kernels.PARTS].contiguous(), indices, reference), new_omega, origin

    def structure(
        self, found: Evaluated, candidates: Candidates, previous: CudaStructure | None, everything: bool
    ) -> CudaStructure:
        """See `Engine.structure`."""
        neurons = self.neurons_of(found.values.d.dtype)
        if previous is not None and found.same and previous.everything == everything:
            if previous.candidates is candidates and previous.neurons is neurons:
                return previous
            return replace(previous, candidates=candidates, neurons=neurons)
        return self._structure(found, candidates, neurons, everything)

    def _structure(self, found: Evaluated, candidates: Candidates, neurons: Neurons, everything: bool) -> CudaStructure:
        """Transpose, levels and order of the active edges."""
        config, kernels = self.config, backend.cuda_kernels()
        n, n_inputs = config.n_neurons, config.n_inputs
        row_starts, sources, readers = found.row_starts, found.sources, found.readers
        assert readers is not None
        numbers = torch.arange(n + 1, dtype=torch.int32, device=self.device)
        scratch, levels = numbers.new_empty(2, n), numbers.new_full((n,), n)
        live = numbers.new_zeros(n)
        block = 1, (kernels.WIDTH, FRONT)
        backend.launch(kernels.mark_live, *block, row_starts, sources, self._outputs, live, scratch[0])
        reached = live[:n_inputs].sum()
        if everything:
            live.fill_(1)
        by_source, edge = torch.sort(torch.where(live[readers] > 0, sources, n), stable=True)
        t_indptr, t_edges = torch.searchsorted(by_source, numbers), edge << 32 | readers[edge]
        backend.launch(
            kernels.find_levels, *block, row_starts, t_indptr, t_edges, live, *scratch[:1], levels, scratch[1]
        )
        runs = live > 0
        levels[:n_inputs] = n
        by_level, order = torch.sort(levels, stable=True)
        column = torch.argsort((~runs[:n_inputs]).int(), stable=True).int()
        counts = [reached, runs[:n_inputs].sum(), runs[n_inputs:].sum(), torch.where(by_level < n, by_level, -1).max()]
        counts.append(t_indptr[-1])
        reaching, live_inputs, executed, depth, live_edges = torch.stack([count.long() for count in counts]).tolist()
        waves = torch.searchsorted(by_level, numbers[: depth + 2])
        column = column[:live_inputs]
        return CudaStructure(
            *(column, column, order[:executed].int(), waves, row_starts, sources, readers, t_indptr, t_edges),
            *(self._outputs, self._column_of, neurons, live_edges, reaching > 0, self._inputs, candidates, everything),
        )

    def gates(self, values: Values, tau: float) -> Gates:
        """See `Engine.gates`; tensors."""
        e = values
        size = e.d.abs().double()
        gates = torch.where(size > e.threshold, torch.sigmoid((size - e.c) / tau), 0.0)
        slopes = gates * (1.0 - gates) / tau
        c = e.c[0]
        return Gates(gates.sum(), -slopes.sum() * c * (1.0 - c), (slopes * e.d.sign()).to(e.d.dtype))

    def expected_cost(self, structure: CudaStructure, values: Values, tau: float, prices: Prices) -> Cost:
        """See `Engine.expected_cost`; on the CPU, which computes the expected levels neuron by neuron."""
        return self._on_host.expected_cost(structure.host, self.host_values(structure, values), tau, prices)

    @functools.cached_property
    def _on_host(self) -> CpuEngine:
        return CpuEngine(self.executor, self.config)

    def gather(self, edge_weight: Tensor, slots: Tensor) -> Tensor:
        """See `Engine.gather`."""
        return edge_weight[slots]

    def scatter(self, by_omega: Tensor, candidates: Candidates, capacity: int) -> Tensor:
        """See `Engine.scatter`."""
        slots = candidates.slots
        if candidates.fleeting:
            by_omega, slots = by_omega[slots >= 0], slots[slots >= 0]
        return by_omega.new_zeros(capacity).scatter_(0, slots, by_omega)

    def remember(self, arrays: Mapping[str, Tensor]) -> None:
        """See `Engine.remember`."""

    def host_values(self, structure: CudaStructure, values: Values) -> Values:
        """The values of a structure in arrays of the CPU."""

        def array(tensor: Tensor) -> Any:
            return tensor.detach().cpu().numpy()

        e, topology = values, structure.topology
        return Values(
            *(array(e.rows), e.c.item(), e.threshold.item(), array(e.omega), array(e.d), e.near, array(e.strengths)),
            *(e.imbalance.item(), (topology.indptr, topology.indices), self.executor.threads),
        )

    def array(self, tensor: Tensor) -> Tensor:
        """Contiguous, without a graph."""
        return tensor.detach().contiguous()

    def tensor(self, array: Any) -> Tensor:
        """As it is."""
        out: Tensor = array
        return out

    def number(self, value: Any, like: Tensor) -> Tensor:
        """See `Engine.number`."""
        if isinstance(value, Tensor):
            return value.to(like.device, like.dtype).reshape(())
        return like.new_full((), value)  # no copy from the host

    def neurons(self, kind: Any, slope: Any, first_linear: int, weighted: Any) -> Neurons:
        """Uploaded."""
        where = np.arange(len(kind))[weighted]
        tensors = (torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in (kind, slope, where))
        kinds, slopes, places = tensors
        return Neurons(kinds, slopes, first_linear, places)
