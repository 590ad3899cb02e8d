"""The engine's autograd functions: scalars -> strengths of edges, and inputs -> outputs of a DAG."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_dnm import backend
from sparse_dnm.buffers import Lease
from sparse_dnm.candidates import SCALARS, Evaluation, Windows
from sparse_dnm.schedule import Executor, Schedule, tile_width, tiles_of

KERNELS = backend.kernels(torch.device("cpu"))


class EdgeStrength(torch.autograd.Function):
    """Closeness of the candidates, strength of the active edges and the flow loss, with their gradients (DESIGN, 2, 3).

    apply(evaluation, windows, cutoff, omega, *scalars) -> strengths (n_edges,), closeness (n_candidates,), flow ()

    ``scalars`` are those of SCALARS that the edge mode has, each (n_rows,); ``omega`` (n_candidates,) or None.
    """

    @staticmethod
    def forward(
        ctx: Any, evaluation: Evaluation, windows: Windows, cutoff: Tensor, omega: Tensor | None, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hand out what the evaluation holds."""
        ctx.evaluation, ctx.windows = evaluation, windows
        ctx.set_materialize_grads(False)
        if omega is not None:
            ctx.save_for_backward(omega)  # so that torch refuses a backward after it was changed in place
        strengths, closeness = torch.from_numpy(evaluation.strengths), torch.from_numpy(evaluation.d)
        return strengths, closeness, strengths.new_full((), evaluation.imbalance**2)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, strength_gradient: Tensor | None, closeness_gradient: Tensor | None, flow_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the raw scalars."""
        e, windows = ctx.evaluation, ctx.windows
        if windows.free and windows.latest is not e.candidates:
            raise RuntimeError(
                "the candidate edges have changed since this forward, and edge_weight with them: "
                "call backward before parameters change and the model is called again"
            )
        ctx.saved_tensors  # noqa: B018 - raises where omega has changed
        config, dtype = windows.config, e.d.dtype
        by_strength, by_closeness = (
            e.d[:0] if gradient is None else gradient.contiguous().numpy()
            for gradient in (strength_gradient, closeness_gradient)
        )
        by_imbalance = 0.0 if flow_gradient is None else 2.0 * e.imbalance * flow_gradient.item()
        by_scalar, by_omega = np.empty((len(SCALARS), config.n_rows), dtype), np.empty(len(e.omega), dtype)
        with backend.use_threads(e.threads):
            by_cutoff = KERNELS.strength_back(
                *(e.rows, windows.offsets, config.n_inputs, config.n_sources, config.period, windows.free, e.c),
                *(e.candidates.indptr, e.candidates.indices, e.omega, e.d, e.row_starts),
                *(by_strength, by_closeness, by_imbalance),
                *(np.empty((len(SCALARS) + 1, config.n_rows)), by_scalar, by_omega),
            )
        columns = torch.from_numpy(by_scalar).unbind()
        scalars = [columns[k] for k in windows.places]
        omega = torch.from_numpy(by_omega) if windows.free else None
        return None, None, columns[0].new_full((), by_cutoff), omega, *scalars


class GateSum(torch.autograd.Function):
    """Soft number of edges: the sum of sigmoid((|d| - c) / tau) over candidates above the threshold (DESIGN, 3).

    apply(evaluation, tau, value, slope, closeness, cutoff) -> scalar

    Straight-through (Bengio et al. 2013) where a ``value`` is given: that is returned, and the gradient is ``slope``
    times that of the soft number.
    """

    @staticmethod
    def forward(
        ctx: Any, evaluation: Evaluation, tau: float, value: float | None, slope: float, closeness: Tensor,
        cutoff: Tensor,
    ) -> Tensor:  # fmt: skip
        """Sum of the gates, or ``value``."""
        e = evaluation
        d = closeness.detach().numpy()
        slopes = np.empty_like(d)
        with backend.use_threads(e.threads):
            gate_sum, ctx.by_cutoff = KERNELS.gates(
                d, e.c, tau, e.threshold, np.empty((2, -(-len(d) // KERNELS.CHUNK))), slopes
            )
        ctx.slopes, ctx.slope = torch.from_numpy(slopes), slope
        return cutoff.new_full((), gate_sum if value is None else value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of closeness and of the raw cutoff."""
        gradient = gradient * ctx.slope
        return None, None, None, None, gradient * ctx.slopes, gradient * ctx.by_cutoff


@dataclass(frozen=True)
class Plan:
    """Everything about a DAG that `Propagate` does not differentiate.

    ``kind`` int8 (n,) and ``slope`` (n,) code the activation of each neuron; ``weighted`` says where in 0..n-1 the
    given weights and biases belong (others have weight 1, bias 0); neurons from ``first_linear`` on read z, not m.
    """

    schedule: Schedule
    executor: Executor
    kind: NDArray[np.int8]
    slope: NDArray[np.floating]
    first_linear: int
    weighted: slice | NDArray[np.int32]

    def spread(self, values: Tensor | None, fill: float) -> NDArray[np.floating]:
        """One value per neuron, ``fill`` where none is given."""
        out = np.empty(len(self.kind), self.slope.dtype)
        out.fill(fill)
        if values is not None:
            out[self.weighted] = values.detach().numpy()
        return out

    def run_forward(
        self, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor
    ) -> tuple[Tensor, NDArray[np.floating], NDArray[np.floating], Lease]:
        """Walk the DAG.  Outputs; weight and bias of every neuron; the lease of the values and messages of all."""
        s, batch = self.schedule, len(x)
        topology, count = s.topology, tile_width(batch)
        w, b = self.spread(weight, 1.0), self.spread(bias, 0.0)
        size = tiles_of(batch) * count * topology.n_neurons
        lease = self.executor.buffers.lease(w.dtype, size, size)
        out = x.new_empty(batch, len(topology.outputs))
        name = self.executor.choose("forward", batch, topology)
        run = KERNELS.make(count)[0]
        with backend.use_threads(self.executor.threads_for(name, batch)):
            start = time.perf_counter()
            run(
                *(self.executor.parts_for(name), s.inputs, s.column, x.detach().contiguous().numpy(), s.order, s.waves),
                *(topology.indptr, topology.indices, values.detach().numpy()),
                *(self.first_linear, w, b, self.kind, self.slope, topology.outputs, *lease.arrays, out.numpy()),
            )
            self.executor.record("forward", batch, name, time.perf_counter() - start)
        return out, w, b, lease


class Propagate(torch.autograd.Function):
    """Outputs of a DAG of neurons (DESIGN, sections 2 and 4).

    apply(plan, x, values, weight, bias) -> (batch, n_outputs)

    x (batch, n_inputs); values (n_edges,) in CSR order; weight (n_weighted,) or None; bias (n_weighted,).
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor) -> Tensor:
        """Walk the DAG."""
        out, w, b, ctx.lease = plan.run_forward(x, values, weight, bias)
        ctx.plan, ctx.count, ctx.batch, ctx.has_weight = plan, tile_width(len(x)), len(x), weight is not None
        ctx.scales = w, b
        ctx.save_for_backward(values)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Pull gradients back over the transpose."""
        (values,) = ctx.saved_tensors
        plan, count, batch = ctx.plan, ctx.count, ctx.batch
        s, topology = plan.schedule, plan.schedule.topology
        (w, b), (x, m) = ctx.scales, ctx.lease.arrays
        n, tiles = topology.n_neurons, tiles_of(batch)
        by_value, by_weight, by_bias = np.zeros(topology.n_edges, w.dtype), np.zeros(n, w.dtype), np.zeros(n, w.dtype)
        totals = by_value, by_weight, by_bias
        if tiles == 1:
            lease, parts = plan.executor.buffers.lease(w.dtype, x.size), totals
        else:
            lease = plan.executor.buffers.lease(w.dtype, x.size, tiles * topology.n_edges, tiles * n, tiles * n)
            parts = lease.arrays[1:]
            if len(topology.t_edge) < topology.n_edges:
                parts[0].fill(0)  # edges of neurons that are not executed
        g = lease.arrays[0]
        name = plan.executor.choose("backward", batch, topology)
        run = KERNELS.make(count)[1]
        with backend.use_threads(plan.executor.threads_for(name, batch)):
            start = time.perf_counter()
            run(
                *(plan.executor.parts_for(name), s.inputs, s.order, s.waves),
                *(topology.t_indptr, topology.t_indices, topology.t_edge, values.detach().numpy()),
                *(plan.first_linear, w, b, plan.kind, plan.slope, s.column_of, x, m),
                *(gradient.contiguous().numpy(), g, *parts),
            )
            if tiles > 1:
                KERNELS.add_tiles(*parts, s.executed, *totals)
            plan.executor.record("backward", batch, name, time.perf_counter() - start)
        by_x = None
        if ctx.needs_input_grad[1]:
            by_x = gradient.new_zeros(batch, len(topology.inputs))
            KERNELS.input_gradients(s.inputs, s.column, n, count, g, by_x.numpy())
        return (
            None,
            by_x,
            torch.from_numpy(by_value),
            torch.from_numpy(by_weight[plan.weighted]) if ctx.has_weight else None,
            torch.from_numpy(by_bias[plan.weighted]),
        )
