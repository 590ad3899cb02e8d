"""A DAG of neurons on CUDA: kernels on torch's tensors and current stream; a given structure is uploaded once.

Where numba's simulator runs (NUMBA_ENABLE_CUDASIM=1) the same code takes tensors of the CPU: tests need no GPU.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.cpu import Plan
from sparse_dnm.engine.schedule import Executor, Schedule

WARPS = 8  # of a block that walks a tile
FORWARD, BACKWARD = "forward on CUDA", "backward on CUDA"  # phases of an executor


@dataclass(frozen=True)
class Structure:
    """What a `Plan` and its schedule hold, on one device, as the kernels want it."""

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
    kind: Tensor
    slope: Tensor
    weighted: slice | Tensor  # int64: where the given weights and biases belong
    first_linear: int  # neuron
    n_live_edges: int  # edges to executed neurons

    @property
    def n_edges(self) -> int:
        """Edges, those of dead neurons included."""
        return len(self.indices)

    @property
    def depth(self) -> int:
        """The largest level that is executed."""
        return len(self.waves) - 2

    @staticmethod
    def of(plan: Plan, device: torch.device) -> Structure:
        """Upload a plan's arrays."""
        s, t = plan.schedule, plan.schedule.topology
        weighted = np.arange(t.n_neurons)[plan.weighted]
        arrays = (
            *(s.inputs, s.column, s.order, s.waves, t.indptr, t.indices, t.readers, t.t_indptr, t.t_edges, t.outputs),
            *(s.column_of, plan.kind, plan.slope, weighted),
        )
        tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
        return Structure(*(*tensors, plan.first_linear, len(t.t_edges)))  # type: ignore[arg-type]


_uploads: weakref.WeakKeyDictionary[Schedule, dict[Any, Structure]] = weakref.WeakKeyDictionary()


def structure_of(plan: Plan, device: torch.device) -> Structure:
    """A plan's structure on ``device``, uploaded once for each schedule."""
    of_schedule, key = _uploads.setdefault(plan.schedule, {}), (device, plan.slope.dtype)
    if key not in of_schedule:
        of_schedule[key] = Structure.of(plan, device)
    return of_schedule[key]


class Ring(NamedTuple):
    """Candidates below the cutoff that get a gradient; the twin of `growth.Ring`.

    readers, sources int32 (n_candidates,); scale (n_candidates,): of the gradient that the strength of an edge would
    have, 0 where there is none.
    """

    readers: Tensor
    sources: Tensor
    scale: Tensor


class Walk(NamedTuple):
    """What a walk forward leaves for the walk back; the twin of `plan.Walk`."""

    batch: int
    scales: tuple[Tensor, Tensor]  # weight and bias of every neuron
    x: Tensor
    m: Tensor


class Gradients(NamedTuple):
    """Of the edges' values (n_edges,), of every neuron's weight and bias (n,), and g of all neurons' values."""

    value: Tensor
    weight: Tensor
    bias: Tensor
    g: Tensor


def scales_of(s: Structure, weight: Tensor | None, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of every neuron, of those of the ``weighted`` (weight None: 1)."""
    n = len(s.kind)
    scales = bias.new_ones(n), bias.new_zeros(n)
    if weight is not None:
        scales[0][s.weighted] = weight.detach()
    scales[1][s.weighted] = bias.detach()
    return scales


def walk_up(
    s: Structure, executor: Executor, x: Tensor, values: Tensor, scales: tuple[Tensor, Tensor]
) -> tuple[Tensor, Walk]:
    """Outputs (batch, n_outputs) of x (batch, n_inputs); the twin of `Plan.forward`."""
    kernels, n, batch = backend.cuda_kernels(), len(s.kind), len(x)
    tiles = -(-batch // kernels.WIDTH)
    name = executor.choose_there(FORWARD, batch, s)
    start = executor.start_there(FORWARD, batch, x.device)
    x_all, m_all = (x.new_zeros(tiles * n * kernels.WIDTH) for _ in range(2))
    out = x.new_empty(batch, len(s.outputs))
    edges = s.indptr, s.indices, values, s.first_linear, *scales, s.kind, s.slope
    if name == "columns":
        block = tiles, (kernels.WIDTH, WARPS)
        backend.launch(
            *(kernels.forward, *block, s.inputs, s.column, x, s.order, s.waves, *edges, s.outputs, x_all, m_all, out)
        )
    else:
        done = s.order.new_zeros(tiles * n)
        block = backend.resident(x.device), (kernels.WIDTH, 1)
        backend.launch(
            *(kernels.forward_syncfree, *block, s.inputs, s.column, x, s.order, *edges, s.column_of, x_all, m_all),
            *(done, out),
        )
    executor.record_there(FORWARD, batch, name, start, x.device)
    return out, Walk(batch, scales, x_all, m_all)


def walk_down(s: Structure, executor: Executor, walk: Walk, values: Tensor, gradient: Tensor) -> Gradients:
    """From the ``gradient`` of the outputs to the others; the twin of `Plan.backward`."""
    kernels, n, batch = backend.cuda_kernels(), len(s.kind), walk.batch
    tiles = -(-batch // kernels.WIDTH)
    name = executor.choose_there(BACKWARD, batch, s)
    start = executor.start_there(BACKWARD, batch, gradient.device)
    g, z_gradient = torch.zeros_like(walk.x), torch.zeros_like(walk.x)
    edges = s.t_indptr, s.t_edges, values, s.first_linear, *walk.scales, s.kind, s.slope, s.column_of
    if name == "columns":
        block = tiles, (kernels.WIDTH, WARPS)
        backend.launch(*(kernels.backward, *block, s.inputs, s.order, s.waves, *edges, walk.x, gradient, g, z_gradient))
    else:
        done = s.order.new_zeros(tiles * n)
        block = backend.resident(gradient.device), (kernels.WIDTH, 1)
        backend.launch(
            *(kernels.backward_syncfree, *block, s.inputs, s.order, *edges, walk.x, gradient, done, g, z_gradient)
        )
    by_value = by_edge(s, walk, g, s.readers, s.indices)
    by_weight, by_bias = values.new_zeros(n), values.new_zeros(n)
    half = kernels.SUMMING // 2
    backend.launch(
        *(kernels.neuron_gradients, -(-n // (half * kernels.WIDTH)), (kernels.WIDTH, half)),
        *(walk.x, z_gradient, n, by_weight, by_bias),
    )
    executor.record_there(BACKWARD, batch, name, start, gradient.device)
    return Gradients(by_value, by_weight, by_bias, g)


def by_edge(s: Structure, walk: Walk, g: Tensor, readers: Tensor, sources: Tensor) -> Tensor:
    """Gradients of the values that edges between these neurons have, or would have."""
    kernels, by = backend.cuda_kernels(), walk.x.new_zeros(len(sources))
    if len(sources):
        blocks = -(-len(sources) // (kernels.SUMMING * kernels.WIDTH))
        backend.launch(
            *(kernels.edge_gradients, blocks, (kernels.WIDTH, kernels.SUMMING), readers, sources, s.first_linear),
            *(*walk.scales, walk.x, walk.m, g, len(s.kind), by),
        )
    return by


@contextlib.contextmanager
def _memory_told(s: Structure, batch: int, like: Tensor) -> Iterator[None]:
    """Say what did not fit the device, and what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        n, width = len(s.kind), backend.cuda_kernels().WIDTH
        need = 4 * n * -(-batch // width) * width * like.element_size()
        raise MemoryError(
            f"{need / 2**20:,.0f} MiB for {n:,} neurons and a batch of {batch:,} do not fit "
            f"{str(like.device)!r} ({str(error).partition('.')[0]}); give a smaller batch"
        ) from None


class Propagate(torch.autograd.Function):
    """Outputs of a DAG of neurons on CUDA; the twin of `autograd.Propagate`.

    apply(structure, executor, x, values, weight, bias, ring=None, closeness=None) -> (batch, n_outputs), all on one
    device.  Raises MemoryError, backward too, where that has not enough of it.
    """

    @staticmethod
    def forward(
        ctx: Any, s: Structure, executor: Executor, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor,
        ring: Ring | None = None, closeness: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Walk the DAG."""
        values = values.contiguous()
        with _memory_told(s, len(x), x):
            out, ctx.walk = walk_up(s, executor, x.contiguous(), values, scales_of(s, weight, bias))
        ctx.structure, ctx.executor, ctx.has_weight, ctx.ring = s, executor, weight is not None, ring
        ctx.n_columns = x.shape[1]
        ctx.save_for_backward(values)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Pull gradients back over the transpose, then add up those of edges and neurons."""
        s, walk, ring = ctx.structure, ctx.walk, ctx.ring
        (values,) = ctx.saved_tensors
        with _memory_told(s, walk.batch, gradient):
            found = walk_down(s, ctx.executor, walk, values, gradient.contiguous())
        by_input, by_closeness = None, None
        if ctx.needs_input_grad[2]:
            kernels, by_input = backend.cuda_kernels(), gradient.new_zeros(len(gradient), ctx.n_columns)
            block = -(-len(gradient) // kernels.WIDTH), (kernels.WIDTH, WARPS)
            backend.launch(*(kernels.input_gradients, *block, s.inputs, s.column, len(s.kind), found.g, by_input))
        if ring is not None:
            by_closeness = by_edge(s, walk, found.g, ring.readers, ring.sources) * ring.scale
        weight = found.weight[s.weighted] if ctx.has_weight else None
        return None, None, by_input, found.value, weight, found.bias[s.weighted], None, by_closeness
