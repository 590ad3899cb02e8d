"""Plan: a DAG, how it is run, and its walks forward and backward, on plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.schedule import Executor, Schedule, tile_width, tiles_of

KERNELS = backend.kernels(torch.device("cpu"))
Floats = NDArray[np.floating]


class Scales(NamedTuple):
    """Weight and bias of every neuron, (n,) each."""

    weight: Floats
    bias: Floats


class Walk(NamedTuple):
    """What a walk forward leaves for the walk back: the scales, and the values x and messages m of all neurons."""

    batch: int
    scales: Scales
    x: Floats
    m: Floats


class Gradients(NamedTuple):
    """Gradients of the edges' values (n_edges,), of every neuron's weight and bias (n,), and g of all neurons' values.

    The first three begin arrays that hold as much for every tile: copies are smaller.
    """

    value: Floats
    weight: Floats
    bias: Floats
    g: Floats


@dataclass(slots=True)
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
        x_all, m_all = (executor.buffers.aligned(size, values.dtype) for _ in range(2))
        out = np.empty((batch, len(topology.outputs)), values.dtype)
        name = executor.choose("forward", batch, topology)
        run = KERNELS.make(count)[0]
        with executor.threads_of(name, batch):
            start = executor.timer()
            run(
                *(executor.parts_for(name), s.inputs, s.column, x, s.walk(name), s.waves),
                *(topology.indptr, topology.indices, values),
                *(self.first_linear, scales.weight, scales.bias, self.kind, self.slope, topology.outputs),
                *(x_all, m_all, out),
            )
            executor.record("forward", batch, name, executor.timer() - start)
        return out, Walk(batch, scales, x_all, m_all)

    def complete(self, walk: Walk, x: Floats, values: Floats) -> None:
        """Write values and messages of the neurons that nobody reads on the way to an output, too, into ``walk``."""
        s, t = self.schedule, self.schedule.topology
        inputs, column, order = s.rest()
        KERNELS.make(tile_width(walk.batch))[0](
            *(1, inputs, column, x, order, s.waves, t.indptr, t.indices, values, self.first_linear),
            *(walk.scales.weight, walk.scales.bias, self.kind, self.slope, t.outputs[:0]),
            *(walk.x, walk.m, np.empty((walk.batch, 0), x.dtype)),
        )

    def backward(self, walk: Walk, values: Floats, gradient: Floats) -> Gradients:
        """From the ``gradient`` of the outputs to those of the edges and of every neuron's weight, bias and value."""
        s, executor, batch = self.schedule, self.executor, walk.batch
        topology, count, tiles = s.topology, tile_width(batch), tiles_of(batch)
        n, n_edges = topology.n_neurons, topology.n_edges
        buffers, dtype = executor.buffers, values.dtype
        g, by_value = buffers.aligned(walk.x.size, dtype), buffers.aligned(tiles * n_edges, dtype)
        by_weight, by_bias = buffers.empty(tiles * n, dtype), buffers.empty(tiles * n, dtype)
        if len(s.executed) < n:
            by_weight.fill(0)
            by_bias.fill(0)
        if len(topology.t_edges) < n_edges:
            by_value.fill(0)
        name = executor.choose("backward", batch, topology)
        run = KERNELS.make(count)[1]
        with executor.threads_of(name, batch):
            start = executor.timer()
            run(
                *(executor.parts_for(name), s.inputs, s.walk(name), s.waves),
                *(topology.indptr, topology.t_indptr, topology.t_edges, values),
                *(self.first_linear, walk.scales.weight, walk.scales.bias, self.kind, self.slope, s.column_of),
                *(walk.x, walk.m, gradient, g, by_value, by_weight, by_bias),
            )
            if tiles > 1:
                KERNELS.add_tiles(tiles, by_value, by_weight, by_bias)
            executor.record("backward", batch, name, executor.timer() - start)
        return Gradients(by_value[:n_edges], by_weight[:n], by_bias[:n], g)

    def by_input(self, batch: int, gradients: Gradients) -> Floats:
        """Gradient of the input (batch, n_inputs), of what `backward` returned."""
        s, g = self.schedule, gradients.g
        out = np.zeros((batch, len(s.topology.inputs)), g.dtype)
        KERNELS.input_gradients(s.inputs, s.column, s.topology.n_neurons, tile_width(batch), g, out)
        return out
