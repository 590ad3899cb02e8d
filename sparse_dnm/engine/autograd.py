"""The engine's autograd functions: scalars -> strengths of edges, and inputs -> outputs of a DAG; on every device.

Both work under torch.func: outputs and gradients of a batched argument are found one after the other, those of a
batched input alone in one pass.  There are no second derivatives: asked for, they raise an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_dnm.engine.base import Engine, Ring, Saved, Values

NO_SECOND = (
    "second derivatives are not available: the gradients of the engine, and of executor='torch-sparse', cannot be "
    "differentiated again. Leave out create_graph=True; for a Hessian, or a loss that contains gradients, build the "
    "network of plain torch operations (of a DynamicManifold: DenseManifold), or take differences of first gradients"
)
MANY = 128  # columns from which on the gradients begin arrays of several times their size: copies are kept instead


def _direct() -> bool:
    """Is this a plain backward pass, without create_graph and without a transform of torch.func around it?"""
    return not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()


def plain(function: Any) -> Any:
    """``function`` applied directly, without torch.func.

    For a function with a setup_context, torch binds the signature at every call, and checks for arguments of transforms
    that have ended; that takes longer than the kernels of a small network.  Callers make sure that there are none of
    those (`unwrapped`).
    """

    def forward(ctx: Any, *args: Any) -> Any:
        out = function.forward(*args)
        function.setup_context(ctx, args, out)
        return out

    methods = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    made: Any = type(function.__name__, (torch.autograd.Function,), methods)
    bare = super(torch.autograd.Function, made).apply  # Function.apply, without what it does before

    def apply(*args: Any) -> Any:
        return (function.apply if torch._C._are_functorch_transforms_active() else bare)(*args)

    return apply


unwrapped = torch._C._functorch.unwrap_if_dead  # a tensor, without what a transform that has ended left around it


def _looped(function: Callable[..., Any], size: int, in_dims: Any, args: Any) -> tuple[Any, Any]:
    """Results of ``function`` for every index of the batched arguments, stacked: the rule of torch.func.vmap."""
    results = []
    for k in range(size):
        slices = (
            a.select(dim, k) if isinstance(dim, int) and isinstance(a, Tensor) else a
            for a, dim in zip(args, in_dims, strict=True)
        )
        results.append(function(*slices))
    columns = [list(column) for column in zip(*results, strict=True)]
    stacked = tuple(torch.stack(c) if isinstance(c[0], Tensor) else None for c in columns)
    return stacked, tuple(None if c is None else 0 for c in stacked)


class _Once(torch.autograd.Function):
    """A backward pass as a function of its own, which has no derivative."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Refuse."""
        raise RuntimeError(NO_SECOND)


# -- strengths of edges --------------------------------------------------------------------------------------


def _edges_back(
    engine: Engine,
    structure: Any,
    values: Values,
    like: Tensor,
    by_strength: Tensor | None,
    by_closeness: Tensor | None,
    by_flow: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of cutoff (), edge_weight (like ``like``, None where edges have none) and the scalars (7, n_rows)."""
    by_imbalance: Any = 0.0
    if by_flow is not None:
        by_imbalance = 2.0 * values.imbalance * (by_flow.item() if by_flow.device.type == "cpu" else by_flow.double())
    strength = None if by_strength is None else engine.array(by_strength)
    closeness = None if by_closeness is None else engine.array(by_closeness)
    found = engine.edges_backward(structure, values, strength, closeness, by_imbalance)
    by_omega = None
    if structure.candidates.slots is not None:
        by_omega = engine.tensor(engine.scatter(found.omega, structure.candidates, len(like)))
    scalars = engine.tensor(found.scalars)
    return engine.number(found.cutoff, scalars), by_omega, scalars


class _EdgesBack(_Once):
    @staticmethod
    def forward(*args: Any) -> Any:
        """See `_edges_back`."""
        return _edges_back(*args)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """One after the other."""
        return _looped(_EdgesBack.apply, info.batch_size, in_dims, args)


@dataclass(eq=False, slots=True)
class Found:
    """A structure and its values, on the engine that found them.

    copies  what is handed out may be written to; else it is in the memory of the values
    """

    engine: Engine
    structure: Any
    values: Values
    copies: bool


class EdgeStrength(torch.autograd.Function):
    """Strengths of the active edges, closeness of the candidates and the flow loss, with gradients (DESIGN, 2, 3).

    apply(found, cutoff, edge_weight, *scalars) -> strengths (n_edges,), closeness (n_candidates,), flow ()

    ``scalars`` are those of SCALARS that the edge mode has, each (n_rows,); ``edge_weight`` (capacity,) or None.
    """

    @staticmethod
    def forward(
        found: Found, cutoff: Tensor, edge_weight: Tensor | None, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what was found."""
        engine, values = found.engine, found.values
        strengths, closeness = engine.tensor(values.strengths), engine.tensor(values.d)
        if found.copies:
            strengths, closeness = strengths.clone(), closeness.clone()
        return strengths, closeness, engine.number(values.imbalance**2, closeness)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save the structure; and omega, so that torch refuses a backward pass after an in-place change of it."""
        ctx.found, cutoff, edge_weight, *_ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cutoff if edge_weight is None else edge_weight)

    @staticmethod
    def backward(
        ctx: Any, by_strength: Tensor | None, by_closeness: Tensor | None, by_flow: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the raw scalars."""
        (like,) = ctx.saved_tensors  # raises where omega has changed
        function = _edges_back if _direct() else _EdgesBack.apply
        found = ctx.found
        by_cutoff, by_omega, scalars = function(
            found.engine, found.structure, found.values, like, by_strength, by_closeness, by_flow
        )
        columns = scalars.unbind(0)
        return None, by_cutoff, by_omega, *[columns[k] for k in found.engine.geometry.places]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """Refuse: every set of parameters has a structure of its own."""
        raise RuntimeError(
            "torch.func.vmap over the parameters of a DynamicManifold is not possible: each set of them has another "
            "structure; loop over them, or use vmap over inputs only"
        )


class StraightThrough(torch.autograd.Function):
    """A value whose gradient was computed in another way (Bengio et al. 2013).

    apply(value, by_cutoff, by_closeness, closeness, cutoff) -> scalar
    """

    @staticmethod
    def forward(value: Any, by_cutoff: Any, by_closeness: Any, closeness: Tensor, cutoff: Tensor) -> Tensor:
        """The value."""
        if isinstance(value, Tensor):
            return value.to(cutoff.device, cutoff.dtype, copy=True)
        return cutoff.new_full((), value)  # no copy from the host

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save the derivatives."""
        _, ctx.by_cutoff, by_closeness, _, cutoff = inputs
        ctx.by_closeness = torch.as_tensor(by_closeness, device=cutoff.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of closeness and of the raw cutoff."""
        return None, None, None, gradient * ctx.by_closeness, (gradient * ctx.by_cutoff).to(gradient.dtype)


# -- outputs of a DAG ----------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Network:
    """A structure on an engine; whether outputs are ``squared``; its ring, if that gets a gradient; and, if the caller
    has them, strengths and scales (weight and bias of every neuron) as arrays of the engine."""

    engine: Engine
    structure: Any
    squared: bool = False
    ring: Ring | None = None
    strengths: Any = None
    scales: Any = None


@dataclass(eq=False, slots=True)
class Kept:
    """What a forward pass saved, and its outputs before they were squared, where they were."""

    saved: Saved
    linear: Any


def _run(
    network: Network, x: Tensor, strengths: Tensor, weight: Tensor | None, bias: Tensor
) -> tuple[Tensor, Kept | None]:
    """Outputs, and what the backward pass needs."""
    engine, structure, values, scales = network.engine, network.structure, network.strengths, network.scales
    if x.shape[0] == 0:
        return x.new_empty(0, len(structure.outputs)), None
    if scales is None:
        scales = engine.scales(structure, None if weight is None else engine.array(weight), engine.array(bias))
    out, saved = engine.forward(
        structure, engine.array(strengths) if values is None else values, engine.array(x), scales
    )
    if network.squared:
        return engine.tensor(out * out), Kept(saved, out)
    return engine.tensor(out), Kept(saved, None)


def _run_back(
    network: Network,
    kept: Kept | None,
    by_input: bool,
    gradient: Tensor,
    x: Tensor,
    strengths: Tensor,
    weight: Tensor | None,
    bias: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x (where ``by_input``), strengths, weight, bias and of the closeness of the ring."""
    engine, structure, ring, values = network.engine, network.structure, network.ring, network.strengths
    if kept is None:
        zeros = (None if t is None else torch.zeros_like(t) for t in (x if by_input else None, strengths, weight, bias))
        closeness = None if ring is None else torch.zeros_like(engine.tensor(ring.values.d))
        return *zeros, closeness
    if values is None:
        values = engine.array(strengths)
    saved, linear = kept.saved, kept.linear
    by_output = engine.array(gradient)
    if linear is not None:
        by_output = by_output * linear
        by_output += by_output
    found = engine.backward(structure, values, saved, by_output)
    weighted, by_closeness, by_x = structure.neurons.weighted, None, None
    if ring is not None:
        by_closeness = engine.tensor(engine.ring_gradient(ring, saved, found, values, engine.array(x)))
    if by_input:
        by_x = engine.tensor(engine.input_gradient(structure, saved, found, x.shape[1]))
    by_strength, by_bias = engine.tensor(found.strengths), engine.tensor(found.bias[weighted])
    by_weight = None if weight is None else engine.tensor(found.weight[weighted])
    if saved.batch > MANY:
        by_strength, by_bias = by_strength.clone(), by_bias.clone()
        by_weight = None if by_weight is None else by_weight.clone()
    return by_x, by_strength, by_weight, by_bias, by_closeness


class _RunBack(_Once):
    @staticmethod
    def forward(*args: Any) -> Any:
        """See `_run_back`."""
        return _run_back(*args)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """One after the other; the saved tensors are used again if only the gradient is batched."""

        def run(*slices: Any) -> tuple[Tensor | None, ...]:
            network, kept, by_input, gradient, *rest = slices
            if any(isinstance(dim, int) for dim in in_dims[4:]):
                _, kept = Propagate.apply(network, *rest, None)
            found: tuple[Tensor | None, ...] = _RunBack.apply(network, kept, by_input, gradient, *rest)
            return found

        return _looped(run, info.batch_size, in_dims, args)


class Propagate(torch.autograd.Function):
    """Outputs of a DAG of neurons (DESIGN, sections 2 and 4).

    apply(network, x, strengths, weight, bias, closeness)[0] -> (batch, n_outputs)

    x (batch, n_inputs); strengths (n_edges,) in CSR order; weight (n_weighted,) or None; bias (n_weighted,).
    With a ring, the ``closeness`` (n_candidates,) of its candidates below the cutoff gets a gradient.
    """

    @staticmethod
    def forward(
        network: Network, x: Tensor, strengths: Tensor, weight: Tensor | None, bias: Tensor, closeness: Tensor | None
    ) -> tuple[Tensor, Kept | None]:
        """A forward pass, and what it saved."""
        return _run(network, x, strengths, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what was saved."""
        ctx.network, *tensors, _ = inputs
        ctx.kept = output[1]
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """A backward pass over the transpose."""
        x, strengths, weight, bias = ctx.saved_tensors
        function = _run_back if _direct() else _RunBack.apply
        found = function(ctx.network, ctx.kept, ctx.needs_input_grad[1], gradient, x, strengths, weight, bias)
        return None, *found

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """A batched input becomes a larger batch; if other tensors are batched, one call after the other."""
        network, x, *rest = args
        if isinstance(in_dims[1], int) and not any(isinstance(dim, int) for dim in in_dims[2:]):
            x = x.movedim(in_dims[1], 0)
            out, kept = Propagate.apply(network, x.reshape(-1, x.shape[-1]), *rest)
            return (out.reshape(info.batch_size, -1, out.shape[-1]), kept), (0, None)
        (out, _), _ = _looped(Propagate.apply, info.batch_size, in_dims, args)
        return (out, None), (0, None)


edge_strength, straight_through, _propagate = plain(EdgeStrength), plain(StraightThrough), plain(Propagate)


def propagate(
    network: Network,
    x: Tensor,
    strengths: Tensor,
    weight: Tensor | None,
    bias: Tensor,
    closeness: Tensor | None = None,
) -> Tensor:
    """Outputs (batch, n_outputs), with a graph where gradients are wanted."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        out: Tensor = _propagate(network, x, strengths, weight, bias, closeness)[0]
        return out
    if x.shape[0] == 0:
        return x.new_empty(0, len(network.structure.outputs))
    return network.engine.outputs(network.structure, network.squared, x, strengths, weight, bias)
