"""A DAG of neurons on CUDA: kernels on torch's tensors and current stream; a given structure is uploaded once.

Where numba's simulator runs (NUMBA_ENABLE_CUDASIM=1) the same code takes tensors of the CPU: tests need no GPU.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_dnm import backend
from sparse_dnm.plan import Plan
from sparse_dnm.schedule import Schedule

WARPS = 8  # of a block that walks a tile


def _kernels() -> Any:
    return backend.kernels(torch.device("cuda"))


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
        return Structure(*(*tensors, plan.first_linear))  # type: ignore[arg-type]


class _Uploads:
    """The structures that have been uploaded, by schedule and device."""

    def __init__(self) -> None:
        self._found: weakref.WeakKeyDictionary[Schedule, dict[Any, Structure]] = weakref.WeakKeyDictionary()

    def of(self, plan: Plan, device: torch.device) -> Structure:
        """That of a plan, uploaded where it has not been."""
        of_schedule = self._found.setdefault(plan.schedule, {})
        key = device, plan.slope.dtype
        if key not in of_schedule:
            of_schedule[key] = Structure.of(plan, device)
        return of_schedule[key]


_uploads = _Uploads()


def structure_of(plan: Plan, device: torch.device) -> Structure:
    """A plan's structure on ``device``, uploaded once for each schedule."""
    return _uploads.of(plan, device)


class Ring(NamedTuple):
    """Candidates below the cutoff that get a gradient; the twin of `growth.Ring`.

    readers, sources int32 (n_candidates,); scale (n_candidates,): of the gradient that the strength of an edge would
    have, 0 where there is none.
    """

    readers: Tensor
    sources: Tensor
    scale: Tensor


class Propagate(torch.autograd.Function):
    """Outputs of a DAG of neurons on CUDA; the twin of `autograd.Propagate`.

    apply(structure, x, values, weight, bias, ring=None, closeness=None) -> (batch, n_outputs)
    """

    @staticmethod
    def forward(
        ctx: Any, s: Structure, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor,
        ring: Ring | None = None, closeness: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Walk the DAG."""
        kernels, x, values = _kernels(), x.contiguous(), values.contiguous()
        n, batch = len(s.kind), len(x)
        tiles = -(-batch // kernels.WIDTH)
        scales = x.new_ones(n), x.new_zeros(n)
        if weight is not None:
            scales[0][s.weighted] = weight.detach()
        scales[1][s.weighted] = bias.detach()
        x_all, m_all = (x.new_zeros(tiles * n * kernels.WIDTH) for _ in range(2))
        out = x.new_empty(batch, len(s.outputs))
        backend.launch(
            *(kernels.forward, tiles, (kernels.WIDTH, WARPS), s.inputs, s.column, x, s.order, s.waves),
            *(s.indptr, s.indices, values, s.first_linear, *scales, s.kind, s.slope, s.outputs, x_all, m_all, out),
        )
        ctx.structure, ctx.scales, ctx.has_weight, ctx.ring = s, scales, weight is not None, ring
        ctx.n_columns = x.shape[1]
        ctx.save_for_backward(values, x_all, m_all)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Pull gradients back over the transpose, then add up those of edges and neurons."""
        kernels, s, scales = _kernels(), ctx.structure, ctx.scales
        values, x_all, m_all = ctx.saved_tensors
        n = len(s.kind)
        width, tiles = kernels.WIDTH, len(x_all) // (n * kernels.WIDTH)
        g, z_gradient = torch.zeros_like(x_all), torch.zeros_like(x_all)
        backend.launch(
            *(kernels.backward, tiles, (width, WARPS), s.inputs, s.order, s.waves, s.t_indptr, s.t_edges, values),
            *(s.first_linear, *scales, s.kind, s.slope, s.column_of, x_all, gradient.contiguous(), g, z_gradient),
        )

        def by_edge(readers: Tensor, sources: Tensor) -> Tensor:
            """Gradients of the values that edges between these neurons have, or would have."""
            by = values.new_zeros(len(sources))
            if len(sources):
                backend.launch(
                    *(kernels.edge_gradients, -(-len(sources) // (kernels.SUMMING * width)), (width, kernels.SUMMING)),
                    *(readers, sources, s.first_linear, *scales, x_all, m_all, g, n, by),
                )
            return by

        by_value, by_weight, by_bias = by_edge(s.readers, s.indices), values.new_zeros(n), values.new_zeros(n)
        half = kernels.SUMMING // 2
        backend.launch(
            *(kernels.neuron_gradients, -(-n // (half * width)), (width, half)),
            *(x_all, z_gradient, n, by_weight, by_bias),
        )
        by_input = None
        if ctx.needs_input_grad[1]:
            by_input = gradient.new_zeros(len(gradient), ctx.n_columns)
            backend.launch(
                *(kernels.input_gradients, tiles, (width, WARPS), s.inputs, s.column, n, g, by_input),
            )
        weight = by_weight[s.weighted] if ctx.has_weight else None
        ring = ctx.ring
        by_closeness = None if ring is None else by_edge(ring.readers, ring.sources) * ring.scale
        return None, by_input, by_value, weight, by_bias[s.weighted], None, by_closeness


def propagate(
    structure: Structure, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor, ring: Ring | None = None,
    closeness: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Outputs (batch, n_outputs) of x (batch, n_inputs), all on one CUDA device; as `autograd.Propagate`.

    Raises MemoryError where the device has not enough of it.
    """
    try:
        return Propagate.apply(structure, x, values, weight, bias, ring, closeness)
    except torch.OutOfMemoryError as error:
        n, width = len(structure.kind), _kernels().WIDTH
        need = 4 * n * -(-len(x) // width) * width * x.element_size()
        raise MemoryError(
            f"{need / 2**20:,.0f} MiB for {n:,} neurons and a batch of {len(x):,} do not fit "
            f"{str(x.device)!r} ({str(error).partition('.')[0]}); give a smaller batch"
        ) from None
