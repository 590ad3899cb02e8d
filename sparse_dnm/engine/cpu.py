"""The engine of the CPU: forward and backward passes over a DAG of neurons, on plain arrays (DESIGN, section 4)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.checks import CPU
from sparse_dnm.config import ManifoldConfig
from sparse_dnm.engine import cpu_costs
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor, fastest_of
from sparse_dnm.engine.base import Clock, Gradients, Neurons, Ring, Saved
from sparse_dnm.engine.buffers import BIG
from sparse_dnm.engine.cpu_blocks import BlockPass, PreparedPass
from sparse_dnm.engine.cpu_blocks import backward as blocks_backward
from sparse_dnm.engine.cpu_sequences import CpuSequences
from sparse_dnm.engine.cpu_stopwatch import CpuStopwatch
from sparse_dnm.engine.cpu_structure import Arrays, CpuStructure
from sparse_dnm.engine.schedule import Schedule, tile_width, tiles_of
from sparse_dnm.engine.topology import Topology

KERNELS = backend.kernels(CPU)
Floats = NDArray[np.floating]


class Prepared(NamedTuple):
    """A forward pass but for its input: the kernel, and its arguments before and after that."""

    structure: CpuStructure
    strengths: Floats
    scales: tuple[Floats, Floats]
    batch: int
    executor: str
    run: Any
    n_outputs: int
    threads: int  # 0: it has no parallel loop
    head: tuple[Any, ...]
    tail: tuple[Any, ...]
    blocks: PreparedPass | None = None  # which is run instead


def _taken(held: list[Any]) -> Any:
    """The last of a list, which no other thread gets then; None where there is none."""
    try:
        return held.pop()
    except IndexError:
        return None


class CpuEngine(CpuSequences):
    """Numba's kernels on the threads of the CPU."""

    def __init__(self, executor: Executor, config: ManifoldConfig | None = None):
        super().__init__(executor, config)
        # Each is taken out by the thread that uses it
        self._ready: list[Prepared] = []
        self._blanks: list[tuple[Neurons, bool, tuple[Floats, Floats]]] = []
        self._given, self._checked = Arrays(), dict[str, Floats]()

    def given(self, topology: Topology, neurons: Neurons) -> CpuStructure:
        """The structure of a graph that is given."""
        return CpuStructure(Schedule(topology), neurons)

    def scales(
        self, structure: CpuStructure, weight: Floats | None, bias: Floats, out: tuple[Floats, Floats] | None = None
    ) -> tuple[Floats, Floats]:
        """Weight and bias of every neuron; ``out``: where to write them, with 1 and 0 where the others are."""
        weighted = structure.neurons.weighted
        if out is None:
            out = self._blank(structure.neurons)
        if weight is not None:
            out[0][weighted] = weight
        out[1][weighted] = bias
        return out

    @staticmethod
    def _blank(neurons: Neurons) -> tuple[Floats, Floats]:
        """1 and 0 for every neuron, new."""
        ones, zeros = neurons.blank
        return ones.copy(), zeros.copy()

    def forward(
        self,
        structure: CpuStructure,
        strengths: Floats,
        x: Floats,
        scales: tuple[Floats, Floats],
        clock: Clock | None = None,
    ) -> tuple[Floats, Saved]:
        """See `Engine.forward`."""
        if self._takes_blocks("train", structure, strengths, x):
            return self._forward_blocks(structure, strengths, x, scales, clock)
        return self._forward_tiles(structure, strengths, x, scales, clock, tile_width(len(x)))

    def _takes_blocks(self, mode: str, structure: CpuStructure, strengths: Floats, x: Floats) -> bool:
        """Whether a pass of ``mode`` runs by blocks; where that is to be measured, it is, first."""
        executor, batch = self.executor, len(x)
        names = executor.to_race(mode, batch, structure)
        if names:
            engines = [CpuEngine(Executor(name, executor.most)) for name in names]
            watches = [CpuStopwatch(engine, structure, strengths, x, mode == "train") for engine in engines]
            executor.settle_race(mode, batch, structure, names[fastest_of(watches)])
        return executor.takes_blocks(mode, batch)

    def _forward_blocks(
        self,
        structure: CpuStructure,
        strengths: Floats,
        x: Floats,
        scales: tuple[Floats, Floats],
        clock: Clock | None,
    ) -> tuple[Floats, Saved]:
        """The same by blocks; edge by edge where a number is not finite."""
        made = BlockPass(self.buffers, structure, strengths, scales, len(x))
        out = np.empty((len(x), made.n_outputs), strengths.dtype)
        start = clock() if clock else 0.0
        finite = made.forward(x, out)
        seconds = clock() - start if clock else float("nan")
        if finite:
            return out, Saved(len(x), scales, made.x, made.m, seconds, 1, made)
        return self._forward_tiles(structure, strengths, x, scales, clock, 1)

    def _forward_tiles(
        self,
        structure: CpuStructure,
        strengths: Floats,
        x: Floats,
        scales: tuple[Floats, Floats],
        clock: Clock | None,
        count: int,
    ) -> tuple[Floats, Saved]:
        """The same by `columns` or `wavefront` in tiles of ``count`` columns."""
        s, neurons, executor, batch = structure.schedule, structure.neurons, self.executor, len(x)
        topology = s.topology
        size = -(-batch // count) * count * topology.n_neurons
        x_all, m_all = (self.buffers.aligned(size, strengths.dtype) for _ in range(2))
        out = np.empty((batch, len(topology.outputs)), strengths.dtype)
        paced = clock is not None or executor.paced
        choice = None if paced else executor.choose_threads("forward", batch)
        name = executor.choose("forward", batch, structure)
        tries = executor.tries("forward", batch)
        read = clock or (time.perf_counter if tries or choice is not None else None)
        run = KERNELS.make(count)[0]
        with executor.threads_of(name, batch):
            start = read() if read else 0.0
            run(
                *(1, executor.parts_for(name), s.inputs, s.column, x, s.sequence_of(name), s.waves),
                *(topology.indptr, topology.indices, strengths),
                *(neurons.first_linear, *scales, neurons.kind, neurons.slope, topology.outputs),
                *(x_all, m_all, out),
            )
            seconds = read() - start if read else float("nan")
        if tries:
            executor.record("forward", batch, name, seconds)
        elif choice is not None:
            choice.record(executor.threads, seconds)
        return out, Saved(batch, scales, x_all, m_all, seconds, count)

    def infer(
        self,
        structure: CpuStructure,
        strengths: Floats,
        x: Tensor,
        scales: tuple[Floats, Floats],
        squared: bool = False,
    ) -> Tensor:
        """See `Engine.infer`.

        What the pass of the last call was given is used again where only the input is another one.
        """
        table = self.array(x)
        batch, ready = len(table), _taken(self._ready)
        if (
            ready is None
            or ready.batch != batch
            or ready.executor != self.executor.name
            or ready.structure is not structure
            or ready.strengths is not strengths
            or ready.scales is not scales
        ):
            ready = self._prepared(structure, strengths, scales, table)
            if ready is None:
                out = self._forward_tiles(structure, strengths, table, scales, None, tile_width(batch))[0]
                return torch.from_numpy(out * out if squared else out)
        out = np.empty((batch, ready.n_outputs), strengths.dtype)
        if ready.blocks is not None:
            ready.blocks.refresh()
            if not ready.blocks.forward(table, out):
                out = self._forward_tiles(structure, strengths, table, scales, None, 1)[0]
        elif ready.threads == 0:
            ready.run(*ready.head, table, *ready.tail, out)
        else:
            choice = self.executor.choose_threads("forward", batch)
            threads, start = self.executor.threads, time.perf_counter()
            with backend.use_threads(min(threads, ready.threads)):
                ready.run(*ready.head, table, *ready.tail, out)
            if choice is not None:
                choice.record(threads, time.perf_counter() - start)
        self._ready.append(ready)
        return torch.from_numpy(out * out if squared else out)

    def _prepared(
        self, structure: CpuStructure, strengths: Floats, scales: tuple[Floats, Floats], table: Floats
    ) -> Prepared | None:
        """What a pass is given but for its input; None where it needs much memory, or how it runs is not chosen yet."""
        batch = len(table)
        if batch and self._takes_blocks("infer", structure, strengths, table):
            made = PreparedPass(self.buffers, structure, strengths, scales, batch)
            head = structure, strengths, scales, batch, self.executor.name, None, made.n_outputs
            return Prepared(*head, 0, (), (), made)
        s, neurons, executor, count = structure.schedule, structure.neurons, self.executor, tile_width(batch)
        topology, tiles = s.topology, tiles_of(batch)
        size = tiles * count * topology.n_neurons
        name = executor.choose("forward", batch, structure)
        if batch == 0 or size * strengths.itemsize > BIG or executor.tries("forward", batch):
            return None
        x_all, m_all = (self.buffers.aligned(size, strengths.dtype) for _ in range(2))
        parts = executor.parts_for(name)
        threads = executor.most if name != "columns" else min(executor.most, tiles)
        return Prepared(
            *(structure, strengths, scales, batch, executor.name, KERNELS.make(count)[0], len(topology.outputs)),
            threads if parts * tiles > 1 else 0,
            (1, parts, s.inputs, s.column),
            (
                *(s.sequence_of(name), s.waves, topology.indptr, topology.indices, strengths, neurons.first_linear),
                *(*scales, neurons.kind, neurons.slope, topology.outputs, x_all, m_all),
            ),
        )

    def passes(
        self, structure: CpuStructure, strengths: Floats, scales: tuple[Floats, Floats], table: Floats, out: Floats
    ) -> Callable[[int], object] | None:
        """What runs the forward pass of ``table`` as often as it is told, in compiled code, and writes ``out`` (batch,
        n_outputs); None where it needs much memory."""
        ready = self._prepared(structure, strengths, scales, table)
        if ready is None:
            return None
        if ready.blocks is not None:
            ready.blocks.refresh()
            ready.blocks.forward(table, out)
            return functools.partial(ready.blocks.forward, table, out)
        name, batch = self.executor.choose("forward", len(table), structure), len(table)

        def run(times: int) -> None:
            with self.executor.threads_of(name, batch):
                ready.run(times, *ready.head[1:], table, *ready.tail, out)

        return run

    def outputs(
        self,
        structure: CpuStructure,
        squared: bool,
        x: Tensor,
        strengths: Tensor,
        weight: Tensor | None,
        bias: Tensor,
        check: Callable[[Tensor, Tensor | None, Tensor], None] | None = None,
    ) -> Tensor:
        """See `Engine.outputs`."""
        named = {"strengths": strengths, "bias": bias}
        if weight is not None:
            named["weight"] = weight
        arrays, blank = self._given.of(named), _taken(self._blanks)
        if check is not None and arrays is not self._checked:
            check(strengths, weight, bias)
            self._checked = arrays
        if blank is None or blank[0] is not structure.neurons or blank[1] is not (weight is None):
            blank = structure.neurons, weight is None, self._blank(structure.neurons)
        scales = self.scales(structure, arrays.get("weight"), arrays["bias"], blank[2])
        out = self.infer(structure, arrays["strengths"], x, scales, squared)
        self._blanks.append(blank)
        return out

    def complete(self, structure: CpuStructure, strengths: Floats, saved: Saved, x: Floats) -> None:
        """Also compute values and messages of the neurons that reach no output, into ``saved``."""
        s, t, neurons = structure.schedule, structure.topology, structure.neurons
        inputs, column, order = s.rest()
        KERNELS.make(saved.width)[0](
            *(1, 1, inputs, column, x, order, s.waves, t.indptr, t.indices, strengths, neurons.first_linear),
            *(*saved.scales, neurons.kind, neurons.slope, t.outputs[:0]),
            *(saved.x, saved.m, np.empty((saved.batch, 0), x.dtype)),
        )

    def backward(
        self, structure: CpuStructure, strengths: Floats, saved: Saved, gradient: Floats, clock: Clock | None = None
    ) -> Gradients:
        """See `Engine.backward`."""
        if saved.blocks is not None:
            found = blocks_backward(self.buffers, saved.blocks, gradient, structure.n_edges, clock)
            if found is not None:
                return found
        s, neurons, executor, batch = structure.schedule, structure.neurons, self.executor, saved.batch
        topology, count = s.topology, saved.width
        tiles = -(-batch // count)
        n, n_edges = topology.n_neurons, topology.n_edges
        buffers, dtype = self.buffers, strengths.dtype
        g, by_strength = buffers.aligned(saved.x.size, dtype), buffers.aligned(tiles * n_edges, dtype)
        by_weight, by_bias = buffers.empty(tiles * n, dtype), buffers.empty(tiles * n, dtype)
        if len(s.executed) < n:
            by_weight.fill(0)
            by_bias.fill(0)
        if len(topology.t_edges) < n_edges:
            by_strength.fill(0)
        name = executor.choose("backward", batch, structure)
        read = clock or (time.perf_counter if executor.tries("backward", batch) else None)
        run = KERNELS.make(count)[1]
        with executor.threads_of(name, batch):
            start = read() if read else 0.0
            run(
                *(executor.parts_for(name), s.inputs, s.sequence_of(name), s.waves),
                *(topology.indptr, topology.t_indptr, topology.t_edges, strengths),
                *(neurons.first_linear, *saved.scales, neurons.kind, neurons.slope, s.column_of),
                *(saved.x, saved.m, gradient, g, by_strength, by_weight, by_bias),
            )
            if tiles > 1:
                KERNELS.add_tiles(tiles, by_strength, by_weight, by_bias)
            seconds = read() - start if read else float("nan")
        if read:
            executor.record("backward", batch, name, seconds)
        return Gradients(by_strength[:n_edges], by_weight[:n], by_bias[:n], g, seconds)

    def input_gradient(self, structure: CpuStructure, saved: Saved, gradients: Gradients, n_columns: int) -> Floats:
        """See `Engine.input_gradient`."""
        s, g = structure.schedule, gradients.g
        out = np.zeros((saved.batch, n_columns), g.dtype)
        KERNELS.input_gradients(s.inputs, s.column, s.topology.n_neurons, saved.width, g, out)
        return out

    def ring_gradient(self, ring: Ring, saved: Saved, gradients: Gradients, strengths: Floats, x: Floats) -> Floats:
        """See `Engine.ring_gradient`.  Readers that reach no output have no gradient."""
        e, structure = ring.values, ring.structure
        topology, candidates = structure.topology, structure.candidates
        n_rows = len(candidates.indptr) - 1
        self.complete(structure, strengths, saved, x)
        by_closeness = np.zeros_like(e.d)
        weighted = self.config.edges == "weighted"  # then strength has the factor omega
        with backend.use_threads(e.threads):
            KERNELS.ring_gradient(
                *(topology.n_neurons - n_rows, structure.neurons.first_linear, saved.width),
                *(candidates.indptr, candidates.indices, e.d, e.c, e.threshold, topology.live),
                *(saved.x, saved.m, *saved.scales, gradients.g, ring.kappa),
                *(e.omega if weighted else e.omega[:0], by_closeness),
            )
        return by_closeness

    def by_neuron(self, structure: CpuStructure, saved: Saved, array: Floats) -> Floats:
        """An array (tiles, n, width) of a pass as (n, batch)."""
        n = structure.topology.n_neurons
        tiles = array.reshape(-1, n, saved.width)
        return tiles.transpose(1, 0, 2).reshape(n, -1)[:, : saved.batch]

    # -- what a step costs -----------------------------------------------------------------------------------

    def stopwatch(self, structure: CpuStructure, strengths: Floats, x: Floats, train: bool) -> CpuStopwatch:
        """See `Engine.stopwatch`."""
        return CpuStopwatch(self, structure, strengths, x, train)

    def features(self, structure: CpuStructure, executor: str) -> Any:
        """See `cpu_costs.features`."""
        return cpu_costs.features(structure, executor, self.executor.parts_for("wavefront"))

    def edge_bytes(self, structure: CpuStructure, batch: int, train: bool) -> float:
        """See `Engine.edge_bytes`; by blocks also what an edge has of these on average."""
        return cpu_costs.edge_bytes(structure, batch, train, self._counts_blocks(batch, train))

    def step_bytes(self, structure: CpuStructure, batch: int, train: bool) -> int:
        """See `Engine.step_bytes`."""
        return cpu_costs.step_bytes(structure, batch, train, self._counts_blocks(batch, train))

    def _counts_blocks(self, batch: int, train: bool) -> bool:
        return self.executor.takes_blocks("train" if train else "infer", batch)
