"""The engine of CUDA: forward and backward passes by kernels on torch's tensors and current stream.

Where numba's simulator runs (NUMBA_ENABLE_CUDASIM=1) the same code takes tensors of the CPU: tests need no GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.base import Clock, Gradients, Neurons, Ring, Saved
from sparse_dnm.engine.cpu_structure import CpuStructure
from sparse_dnm.engine.cuda_structure import CudaSearch, CudaStructure, on_host
from sparse_dnm.engine.schedule import Schedule
from sparse_dnm.engine.topology import Topology

WARPS = 8 if backend.SIMULATED else 16  # per block, which runs one tile; at most the kernels' MOST_WARPS
FORWARD, BACKWARD = "forward on CUDA", "backward on CUDA"  # phases that an Executor knows
FINE = 100  # a measurement lasts at least this many ticks of the clock
TOGETHER = 64  # it times at most so many steps of a network together
WARM = 3  # unmeasured steps before a measured one


class CudaEngine(CudaSearch):
    """CUDA kernels: ``columns`` is a block per tile of columns, ``wavefront`` a warp per neuron, which waits for its
    sources."""

    def given(self, topology: Topology, neurons: Neurons) -> CudaStructure:
        """The structure of a graph that is given, uploaded."""
        s, t = Schedule(topology), topology
        arrays = (
            *(s.inputs, s.column, s.order, s.waves, t.indptr, t.indices, t.readers, t.t_indptr, t.t_edges, t.outputs),
            *(s.column_of, t.inputs),
        )
        *tensors, all_inputs = (torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in arrays)
        made = CudaStructure(*(*tensors, neurons, len(t.t_edges), len(s.inputs) > 0, all_inputs))  # type: ignore[arg-type]
        return made.uploaded(CpuStructure(s, on_host(neurons)))

    def scales(self, structure: CudaStructure, weight: Tensor | None, bias: Tensor) -> tuple[Tensor, Tensor]:
        """See `Engine.scales`."""
        neurons = structure.neurons
        n = len(neurons.kind)
        scales = bias.new_ones(n), bias.new_zeros(n)
        if weight is not None:
            scales[0][neurons.weighted] = weight
        scales[1][neurons.weighted] = bias
        return scales

    def forward(
        self,
        structure: CudaStructure,
        strengths: Tensor,
        x: Tensor,
        scales: tuple[Tensor, Tensor],
        clock: Clock | None = None,
    ) -> tuple[Tensor, Saved]:
        """See `Engine.forward`.  No clock of the CPU times it: `stopwatch` does.  Raises
        DeviceMemoryError with what did not fit."""
        with self._memory_said(structure, len(x), x):
            return self._forward(structure, strengths, x, scales)

    def _forward(
        self, s: CudaStructure, strengths: Tensor, x: Tensor, scales: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Saved]:
        kernels, n, batch = backend.cuda_kernels(), len(s.neurons.kind), len(x)
        name, tiles, grid, start = self._begin(FORWARD, batch, s)
        x_all, m_all = (x.new_zeros(tiles * n * kernels.WIDTH) for _ in range(2))
        out = x.new_empty(batch, len(s.outputs))
        edges = s.indptr, s.indices, strengths, s.neurons.first_linear, *scales, s.neurons.kind, s.neurons.slope
        if name == "columns":
            backend.launch(
                *(kernels.forward, *grid, s.inputs, s.column, x, s.order, s.waves, *edges),
                *(s.outputs, x_all, m_all, out),
            )
        else:
            done = s.order.new_zeros(tiles * n)
            backend.launch(
                *(kernels.forward_syncfree, *grid, s.inputs, s.column, x, s.order, *edges, s.column_of, x_all, m_all),
                *(done, out),
            )
        self._record(FORWARD, batch, name, start)
        return out, Saved(batch, scales, x_all, m_all, math.nan)

    def backward(
        self, structure: CudaStructure, strengths: Tensor, saved: Saved, gradient: Tensor, clock: Clock | None = None
    ) -> Gradients:
        """See `Engine.backward`."""
        with self._memory_said(structure, saved.batch, gradient):
            return self._backward(structure, strengths, saved, gradient)

    def _backward(self, s: CudaStructure, strengths: Tensor, saved: Saved, gradient: Tensor) -> Gradients:
        kernels, n, batch = backend.cuda_kernels(), len(s.neurons.kind), saved.batch
        name, tiles, grid, start = self._begin(BACKWARD, batch, s)
        g, z_gradient = torch.zeros_like(saved.x), torch.zeros_like(saved.x)
        neurons = s.neurons
        edges = (
            *(s.t_indptr, s.t_edges, strengths, neurons.first_linear, *saved.scales, neurons.kind, neurons.slope),
            s.column_of,
        )
        if name == "columns":
            backend.launch(
                *(kernels.backward, *grid, s.inputs, s.order, s.waves, *edges, saved.x, gradient, g, z_gradient)
            )
        else:
            done = s.order.new_zeros(tiles * n)
            backend.launch(
                *(kernels.backward_syncfree, *grid, s.inputs, s.order, *edges, saved.x, gradient, done, g, z_gradient)
            )
        by_strength = self._edge_gradients(s, saved, g, s.readers, s.indices)
        by_weight, by_bias = strengths.new_zeros(n), strengths.new_zeros(n)
        half = kernels.SUMMING // 2
        backend.launch(
            *(kernels.neuron_gradients, -(-n // (half * kernels.WIDTH)), (kernels.WIDTH, half)),
            *(saved.x, z_gradient, n, by_weight, by_bias),
        )
        self._record(BACKWARD, batch, name, start)
        return Gradients(by_strength, by_weight, by_bias, g, math.nan)

    def _edge_gradients(self, s: CudaStructure, saved: Saved, g: Tensor, readers: Tensor, sources: Tensor) -> Tensor:
        """Gradients of the strengths that edges between these neurons have, or would have."""
        kernels, by = backend.cuda_kernels(), saved.x.new_zeros(len(sources))
        if len(sources):
            blocks = -(-len(sources) // (kernels.SUMMING * kernels.WIDTH))
            backend.launch(
                *(kernels.edge_gradients, blocks, (kernels.WIDTH, kernels.SUMMING), readers, sources),
                *(s.neurons.first_linear, *saved.scales, saved.x, saved.m, g, len(s.neurons.kind), by),
            )
        return by

    def input_gradient(self, structure: CudaStructure, saved: Saved, gradients: Gradients, n_columns: int) -> Tensor:
        """See `Engine.input_gradient`."""
        kernels, out = backend.cuda_kernels(), gradients.g.new_zeros(saved.batch, n_columns)
        block = -(-saved.batch // kernels.WIDTH), (kernels.WIDTH, WARPS)
        n = len(structure.neurons.kind)
        backend.launch(*(kernels.input_gradients, *block, structure.inputs, structure.column, n, gradients.g, out))
        return out

    def ring_gradient(self, ring: Ring, saved: Saved, gradients: Gradients, strengths: Tensor, x: Tensor) -> Tensor:
        """See `Engine.ring_gradient`; needs a structure made with ``everything``, which computes all messages."""
        e, s = ring.values, ring.structure
        size = e.d.abs()
        scale = torch.where((size > e.threshold) & (size <= e.c), ring.kappa / (1.0 - e.c), 0.0).to(e.d.dtype)
        if self._flags[2]:
            scale = scale * e.omega
        readers = s.candidates.row_of + self.config.n_inputs
        return self._edge_gradients(s, saved, gradients.g, readers, s.candidates.indices) * scale

    @contextlib.contextmanager
    def _memory_said(self, s: CudaStructure, batch: int, like_: Tensor) -> Iterator[None]:
        """Raise DeviceMemoryError, which says what did not fit the device and what to do."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            n, width = len(s.neurons.kind), backend.cuda_kernels().WIDTH
            need = 4 * n * -(-batch // width) * width * like_.element_size()
            raise backend.DeviceMemoryError(
                f"{need / 2**20:,.0f} MiB for {n:,} neurons and a batch of {batch:,} do not fit "
                f"{str(like_.device)!r} ({str(error).partition('.')[0]}); give a smaller batch"
            ) from None

    def _begin(self, phase: str, batch: int, s: CudaStructure) -> tuple[str, int, tuple[int, tuple[int, int]], Any]:
        """Before a pass: executor, number of tiles, blocks and threads; and a mark, if a choice depends on its time."""
        width, name = backend.cuda_kernels().WIDTH, self.executor.choose_by_trial(phase, batch, s)
        tiles, start = -(-batch // width), None
        grid = (tiles, (width, WARPS)) if name == "columns" else (backend.resident(self.device), (width, 1))
        if self.executor.tries(phase, batch):
            backend.keep_busy(self.device)
            start = backend.mark(self.device)
        return name, tiles, grid, start

    def _record(self, phase: str, batch: int, name: str, start: Any) -> None:
        """After the pass: record its time; ``start`` is what `_begin` returned."""
        if start is not None:
            self.executor.record(phase, batch, name, backend.between(start, backend.mark(self.device)))

    # -- what a step costs -----------------------------------------------------------------------------------

    def stopwatch(self, structure: CudaStructure, strengths: Tensor, x: Tensor, train: bool) -> CudaStopwatch:
        """See `Engine.stopwatch`."""
        return CudaStopwatch(self, structure, strengths, x, train)

    def features(self, structure: CudaStructure, executor: str) -> Any:
        """1 call; executed inputs; other executed neurons; executed edges; levels: neither inputs nor edges of a tile
        follow each other in memory."""
        s = structure
        return np.array([1, len(s.inputs), len(s.order), s.n_live_edges, len(s.waves) - 1], float)

    def edge_bytes(self, structure: CudaStructure, batch: int, train: bool) -> float:
        """Source, reader, place in the transpose, strength, gradient."""
        return 4 + 4 + 8 + structure.neurons.slope.element_size() * (2 if train else 1)

    def step_bytes(self, structure: CudaStructure, batch: int, train: bool) -> int:
        """See `Engine.step_bytes`; those of `columns`."""
        s = structure
        size, n, n_outputs = s.neurons.slope.element_size(), len(s.neurons.kind), len(s.outputs)
        found = (*vars(s).values(), s.neurons.kind, s.neurons.slope, s.neurons.weighted)
        tensors = {t.data_ptr(): t.nbytes for t in found if isinstance(t, Tensor) and t is not s.all_inputs}
        width = backend.cuda_kernels().WIDTH
        lanes = -(-batch // width) * width * n * size  # a value of every neuron
        total = sum(tensors.values()) + s.n_edges * size + 2 * n * size + 2 * lanes
        total += batch * (len(s.all_inputs) + n_outputs) * size
        if train:
            total += 2 * lanes + s.n_edges * size + 2 * n * size + batch * n_outputs * size
        return total


class CudaStopwatch:
    """Times steps by marks in the device's stream.

    Steps are queued while the device is kept waiting, and then run without gaps: this times the device, not Python.
    Enough steps are timed together for the resolution of the clock.
    """

    def __init__(self, engine: CudaEngine, structure: CudaStructure, strengths: Tensor, x: Tensor, train: bool):
        self.engine, self._structure, self._strengths, self._x = engine, structure, strengths, x
        n = len(structure.neurons.kind)
        self._scales = x.new_ones(n), x.new_zeros(n)
        self._gradient, self._together = None, 1
        if train:
            drawn = np.random.default_rng(0).standard_normal((len(x), len(structure.outputs)))
            self._gradient = torch.from_numpy(drawn).to(x)

    def run(self) -> None:
        """A step."""
        _, saved = self.engine.forward(self._structure, self._strengths, self._x, self._scales)
        if self._gradient is not None:
            self.engine.backward(self._structure, self._strengths, saved, self._gradient)

    @property
    def steps(self) -> int:
        """Steps that are timed together."""
        return self._together

    def warm(self, clock: Any) -> float:
        """Seconds of a step that follows WARM others."""
        for _ in range(WARM):
            self.run()
        return self(clock)

    def __call__(self, clock: Any) -> float:
        """Seconds of a step."""
        device = self._x.device
        while True:
            backend.keep_busy(device, self._together)
            start = backend.mark(device)
            for _ in range(self._together):
                self.run()
            seconds = max(backend.between(start, backend.mark(device)) - clock.overhead, 0.0)
            if seconds >= FINE * clock.resolution or self._together >= TOGETHER:
                return seconds / self._together
            wanted = math.ceil(1.2 * FINE * clock.resolution / max(seconds / self._together, clock.resolution))
            self._together = min(max(wanted, self._together + 1), TOGETHER)
