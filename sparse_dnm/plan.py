"""Plan: a DAG, how it is run, and its walks forward and backward, on plain arrays."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm import backend
from sparse_dnm.buffers import Lease
from sparse_dnm.schedule import Executor, Schedule, tile_width, tiles_of

KERNELS = backend.kernels(torch.device("cpu"))
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Scales:
    """Weight and bias of every neuron, (n,) each."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class Walk:
    """What a walk forward leaves for the walk back: the scales, and the values and messages of all neurons."""

    batch: int
    scales: Scales
    lease: Lease


@dataclass(frozen=True)
class Plan:
    """Everything about a DAG that is not differentiated.

    ``kind`` int8 (n,) and ``slope`` (n,) code the activation of each neuron; ``weighted`` says where in 0..n-1 the
    given weights and biases belong (others have weight 1, bias 0); neurons from ``first_linear`` on read z, not m.
    """

    schedule: Schedule
    executor: Executor
    kind: NDArray[np.int8]
    slope: Floats
    first_linear: int
    weighted: slice | NDArray[np.int32]

    def scales(self, weight: Floats | None, bias: Floats) -> Scales:
        """Scales of every neuron, of those of the ``weighted`` (weight None: 1)."""
        n, dtype = len(self.kind), self.slope.dtype
        out = Scales(np.ones(n, dtype), np.zeros(n, dtype))
        if weight is not None:
            out.weight[self.weighted] = weight
        out.bias[self.weighted] = bias
        return out

    def forward(self, x: Floats, values: Floats, scales: Scales) -> tuple[Floats, Walk]:
        """Outputs (batch, n_outputs) of x (batch, n_inputs) with ``values`` on the edges, in CSR order."""
        s, batch = self.schedule, len(x)
        topology, count, executor = s.topology, tile_width(batch), self.executor
        size = tiles_of(batch) * count * topology.n_neurons
        lease = executor.buffers.lease(values.dtype, size, size)
        out = np.empty((batch, len(topology.outputs)), values.dtype)
        name = executor.choose("forward", batch, topology)
        run = KERNELS.make(count)[0]
        with backend.use_threads(executor.threads_for(name, batch)):
            start = time.perf_counter()
            run(
                *(executor.parts_for(name), s.inputs, s.column, x, s.walk(name), s.waves),
                *(topology.indptr, topology.indices, values),
                *(self.first_linear, scales.weight, scales.bias, self.kind, self.slope, topology.outputs),
                *(*lease.arrays, out),
            )
            executor.record("forward", batch, name, time.perf_counter() - start)
        return out, Walk(batch, scales, lease)

    def backward(
        self, walk: Walk, values: Floats, gradient: Floats, by_value: Floats, by_weight: Floats, by_bias: Floats
    ) -> Lease:
        """From the ``gradient`` of the outputs to those of the edges and, of every neuron, of weight and bias.

        ``by_value`` (n_edges,), ``by_weight`` and ``by_bias`` (n,) hold zeros before: what is not executed keeps them.
        Returns the lease of the gradients of all neurons' values, for `by_input`.
        """
        s, executor, batch = self.schedule, self.executor, walk.batch
        topology, count, tiles = s.topology, tile_width(batch), tiles_of(batch)
        n, (x, m) = topology.n_neurons, walk.lease.arrays
        totals = by_value, by_weight, by_bias
        if tiles == 1:
            lease, parts = executor.buffers.lease(values.dtype, x.size), totals
        else:
            lease = executor.buffers.lease(values.dtype, x.size, tiles * topology.n_edges, tiles * n, tiles * n)
            _, *rest = lease.arrays
            parts = rest[0], rest[1], rest[2]
            if len(topology.t_edge) < topology.n_edges:
                parts[0].fill(0)  # edges of neurons that are not executed
        name = executor.choose("backward", batch, topology)
        run = KERNELS.make(count)[1]
        with backend.use_threads(executor.threads_for(name, batch)):
            start = time.perf_counter()
            run(
                *(executor.parts_for(name), s.inputs, s.walk(name), s.waves),
                *(topology.t_indptr, topology.t_indices, topology.t_edge, values),
                *(self.first_linear, walk.scales.weight, walk.scales.bias, self.kind, self.slope, s.column_of, x, m),
                *(gradient, lease.arrays[0], *parts),
            )
            if tiles > 1:
                KERNELS.add_tiles(*parts, s.executed, *totals)
            executor.record("backward", batch, name, time.perf_counter() - start)
        return lease

    def by_input(self, batch: int, lease: Lease) -> Floats:
        """Gradient of the input (batch, n_inputs), of what `backward` returned."""
        s, g = self.schedule, lease.arrays[0]
        out = np.zeros((batch, len(s.topology.inputs)), g.dtype)
        KERNELS.input_gradients(s.inputs, s.column, s.topology.n_neurons, tile_width(batch), g, out)
        return out
