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
from sparse_dnm.candidates import SCALARS, Evaluation, Windows
from sparse_dnm.schedule import Executor, Schedule, tile_width

KERNELS = backend.kernels(torch.device("cpu"))


class EdgeStrength(torch.autograd.Function):
    """Closeness of the candidates and strength of the active edges, with their gradients (DESIGN, section 2).

    apply(evaluation, windows, cutoff, omega, *scalars) -> strengths (n_edges,), closeness (n_candidates,)

    ``scalars`` are those of SCALARS that the edge mode has, each (n_rows,); ``omega`` (n_candidates,) or None.
    """

    @staticmethod
    def forward(
        ctx: Any, evaluation: Evaluation, windows: Windows, cutoff: Tensor, omega: Tensor | None, *scalars: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hand out what the evaluation holds."""
        ctx.evaluation, ctx.windows = evaluation, windows
        ctx.like, ctx.has_omega, ctx.n_scalars = cutoff.detach(), omega is not None, len(scalars)
        return torch.from_numpy(evaluation.strengths), torch.from_numpy(evaluation.d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, strength_gradient: Tensor, closeness_gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the raw scalars."""
        e, windows = ctx.evaluation, ctx.windows
        config = windows.config
        by_row, by_cutoff = np.empty_like(e.rows), np.empty(config.n_rows)
        by_omega = np.empty(len(e.omega), e.d.dtype)
        with backend.use_threads(e.threads):
            KERNELS.strength_back(
                *(e.rows, windows.offsets, config.n_inputs, config.period, windows.free, e.c),
                *(e.candidates.indptr, e.candidates.indices, e.omega, e.d, e.row_starts, e.active),
                *(strength_gradient.contiguous().numpy(), closeness_gradient.contiguous().numpy()),
                *(np.empty(len(e.d)), by_row, by_cutoff, by_omega),
            )
        like = ctx.like
        cutoff = torch.as_tensor(KERNELS.total(by_cutoff) * e.c * (1 - e.c), dtype=like.dtype)
        columns = torch.from_numpy(np.ascontiguousarray(by_row.T)).to(like.dtype)
        if ctx.n_scalars < len(SCALARS):
            columns = columns[[SCALARS.index(name) for name in ("alpha", "sigma", "mu")]]
        return None, None, cutoff, torch.from_numpy(by_omega) if ctx.has_omega else None, *columns


class GateSum(torch.autograd.Function):
    """Soft number of edges: the sum of sigmoid((|d| - c) / tau) over candidates above the threshold (DESIGN, 3).

    apply(evaluation, tau, closeness, cutoff) -> scalar
    """

    @staticmethod
    def forward(ctx: Any, evaluation: Evaluation, tau: float, closeness: Tensor, cutoff: Tensor) -> Tensor:
        """Sum of the gates."""
        e = evaluation
        row_sums, slopes = np.empty(len(e.rows)), np.empty(len(e.d))
        with backend.use_threads(e.threads):
            KERNELS.gates(closeness.detach().numpy(), e.candidates.indptr, e.c, tau, e.threshold, row_sums, slopes)
        ctx.c, ctx.slopes = e.c, slopes
        ctx.save_for_backward(closeness)
        return closeness.new_tensor(KERNELS.total(row_sums))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of closeness and of the raw cutoff."""
        (closeness,) = ctx.saved_tensors
        by_cutoff = -KERNELS.total(np.abs(ctx.slopes)) * ctx.c * (1 - ctx.c)
        slopes = torch.from_numpy(ctx.slopes).to(closeness.dtype)
        return None, None, gradient * slopes, gradient * closeness.new_tensor(by_cutoff)


class FlowSums(torch.autograd.Function):
    """Sums of |D| over input -> hidden and over hidden -> output edges (DESIGN, section 3).

    apply(evaluation, windows, strengths) -> (2,)
    """

    @staticmethod
    def forward(ctx: Any, evaluation: Evaluation, windows: Windows, strengths: Tensor) -> Tensor:
        """The two sums."""
        config = windows.config
        ctx.threads = evaluation.threads
        ctx.edges = (evaluation.row_starts, evaluation.sources, config.n_inputs, config.n_sources)
        ctx.save_for_backward(strengths)
        into_hidden, into_outputs = np.empty(config.n_neurons), np.empty(config.n_neurons)
        with backend.use_threads(evaluation.threads):
            KERNELS.flows(strengths.detach().numpy(), *ctx.edges, into_hidden, into_outputs)
        return strengths.new_tensor([KERNELS.total(into_hidden), KERNELS.total(into_outputs)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the strengths."""
        (strengths,) = ctx.saved_tensors
        out = torch.empty_like(strengths)
        by_hidden, by_outputs = gradient.tolist()
        with backend.use_threads(ctx.threads):
            KERNELS.flows_back(strengths.detach().numpy(), *ctx.edges, by_hidden, by_outputs, out.numpy())
        return None, None, out


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
        out = np.full(len(self.kind), fill, self.slope.dtype)
        if values is not None:
            out[self.weighted] = values.detach().numpy()
        return out


class Propagate(torch.autograd.Function):
    """Outputs of a DAG of neurons (DESIGN, sections 2 and 4).

    apply(plan, x, values, weight, bias) -> (batch, n_outputs)

    x (batch, n_inputs); values (n_edges,) in CSR order; weight (n_weighted,) or None; bias (n_weighted,).
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor) -> Tensor:
        """Walk the DAG."""
        s, batch = plan.schedule, len(x)
        topology, count = s.topology, tile_width(batch)
        w, b = plan.spread(weight, 1.0), plan.spread(bias, 0.0)
        size = -(-batch // count) * count * topology.n_neurons
        buffers = np.empty(size, w.dtype), np.empty(size, w.dtype)
        out = x.new_empty(batch, len(topology.outputs))
        name = plan.executor.choose("forward", batch, topology)
        run = KERNELS.make(count)[name][0]
        with backend.use_threads(plan.executor.threads_for(name, batch)):
            start = time.perf_counter()
            run(
                *(s.inputs, s.column, x.detach().contiguous().numpy(), s.order, s.waves),
                *(topology.indptr, topology.indices, values.detach().numpy()),
                *(plan.first_linear, w, b, plan.kind, plan.slope, topology.outputs, *buffers, out.numpy()),
            )
            plan.executor.record("forward", batch, name, time.perf_counter() - start)
        ctx.plan, ctx.count, ctx.batch, ctx.buffers, ctx.has_weight = (
            plan,
            count,
            batch,
            (w, b, *buffers),
            weight is not None,
        )
        ctx.save_for_backward(values)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Pull gradients back over the transpose."""
        (values,) = ctx.saved_tensors
        plan, count, batch = ctx.plan, ctx.count, ctx.batch
        s, topology = plan.schedule, plan.schedule.topology
        w, b, x, m = ctx.buffers
        n, tiles = topology.n_neurons, -(-batch // count)
        g = np.empty_like(x)
        edges, weights, biases = (
            np.empty(tiles * len(s.t_edge), w.dtype),
            np.empty((tiles, n), w.dtype),
            np.empty((tiles, n), w.dtype),
        )
        by_value, by_weight, by_bias = np.zeros(topology.n_edges, w.dtype), np.zeros(n, w.dtype), np.zeros(n, w.dtype)
        name = plan.executor.choose("backward", batch, topology)
        run = KERNELS.make(count)[name][1]
        with backend.use_threads(plan.executor.threads_for(name, batch)):
            start = time.perf_counter()
            run(
                *(s.inputs, s.order, s.waves, s.t_indptr, s.t_indices, s.t_edge, values.detach().numpy()),
                *(plan.first_linear, w, b, plan.kind, plan.slope, s.column_of, x, m),
                *(gradient.contiguous().numpy(), g, edges, weights, biases),
            )
            KERNELS.gather_gradients(s.t_edge, edges, weights, biases, s.executed, by_value, by_weight, by_bias)
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
