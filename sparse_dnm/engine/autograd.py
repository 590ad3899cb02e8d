"""The engine's autograd functions: scalars -> strengths of edges, and inputs -> outputs of a DAG."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_dnm.engine.candidates import CHANGED, SCALARS, Evaluation, Windows
from sparse_dnm.engine.cpu import Floats, Plan, Scales
from sparse_dnm.engine.ring import Ring


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
        strengths, closeness = torch.tensor(evaluation.strengths), torch.tensor(evaluation.d)  # copies, to write to
        return strengths, closeness, strengths.new_full((), evaluation.imbalance**2)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, strength_gradient: Tensor | None, closeness_gradient: Tensor | None, flow_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the raw scalars."""
        e, windows = ctx.evaluation, ctx.windows
        if windows.free and windows.latest is not e.candidates:
            raise RuntimeError(CHANGED)
        ctx.saved_tensors  # noqa: B018 - raises where omega has changed
        by_scalar = np.empty((len(SCALARS), windows.config.n_rows), e.d.dtype)
        by_cutoff, by_omega = windows.pull_back(
            e,
            *(None if g is None else g.contiguous().numpy() for g in (strength_gradient, closeness_gradient)),
            0.0 if flow_gradient is None else 2.0 * e.imbalance * flow_gradient.item(),
            by_scalar,
        )
        columns = torch.from_numpy(by_scalar).unbind()
        omega = torch.from_numpy(by_omega) if windows.free else None
        return None, None, columns[0].new_full((), by_cutoff), omega, *(columns[k] for k in windows.places)


class StraightThrough(torch.autograd.Function):
    """A value with a gradient that was found otherwise (Bengio et al. 2013).

    apply(value, by_cutoff, by_closeness, closeness, cutoff) -> scalar
    """

    @staticmethod
    def forward(ctx: Any, value: Any, by_cutoff: Any, by_closeness: Any, closeness: Tensor, cutoff: Tensor) -> Tensor:
        """The value."""
        ctx.by_cutoff, ctx.by_closeness = by_cutoff, torch.as_tensor(by_closeness, device=cutoff.device)
        return torch.as_tensor(value, dtype=cutoff.dtype, device=cutoff.device).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of closeness and of the raw cutoff."""
        return None, None, None, gradient * ctx.by_closeness, (gradient * ctx.by_cutoff).to(gradient.dtype)


def arrays_of(x: Tensor, values: Tensor) -> tuple[Floats, Floats]:
    """Inputs and edge values as the kernels want them."""
    return x.detach().contiguous().numpy(), values.detach().contiguous().numpy()


def scales_of(plan: Plan, weight: Tensor | None, bias: Tensor) -> Scales:
    """Weight and bias of every neuron."""
    return plan.scales(None if weight is None else weight.detach().numpy(), bias.detach().numpy())


class Propagate(torch.autograd.Function):
    """Outputs of a DAG of neurons (DESIGN, sections 2 and 4).

    apply(plan, x, values, weight, bias, ring=None, closeness=None) -> (batch, n_outputs)

    x (batch, n_inputs); values (n_edges,) in CSR order; weight (n_weighted,) or None; bias (n_weighted,).
    With a ``ring``, the ``closeness`` (n_candidates,) of its candidates below the cutoff gets a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor, ring: Ring | None = None,
        closeness: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Walk the DAG."""
        out, ctx.walk = plan.forward(*arrays_of(x, values), scales_of(plan, weight, bias))
        ctx.plan, ctx.has_weight, ctx.ring = plan, weight is not None, ring
        ctx.save_for_backward(values, x if ring else None)
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Pull gradients back over the transpose."""
        values, x = ctx.saved_tensors
        plan, by_closeness = ctx.plan, None
        found = plan.backward(ctx.walk, values.detach().contiguous().numpy(), gradient.contiguous().numpy())
        if ctx.ring:
            by_closeness = torch.zeros(len(ctx.ring.evaluation.d), dtype=values.dtype)
            ctx.ring.add_gradient(plan, ctx.walk, found, *arrays_of(x, values), by_closeness.numpy())
        weight, bias = (torch.tensor(by[plan.weighted]) for by in (found.weight, found.bias))
        return (
            None,
            torch.from_numpy(plan.by_input(ctx.walk.batch, found)) if ctx.needs_input_grad[1] else None,
            torch.tensor(found.value),
            weight if ctx.has_weight else None,
            bias,
            None,
            by_closeness,
        )
