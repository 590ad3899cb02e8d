"""The autograd function of recurrent networks: sequences and a state -> outputs and a state (DESIGN, 4.13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_dnm.engine.autograd import NO_SECOND, _direct, plain
from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.recurrence import Network, Recurrence, Way


@dataclass(eq=False, slots=True)
class Sequences:
    """A recurrent network on an engine, and how sequences are run; ``squared``: as `autograd.Network`."""

    engine: Engine
    structure: Any
    recurrence: Recurrence
    way: Way
    squared: bool = False
    train: bool = True


@dataclass(eq=False, slots=True)
class Kept:
    """What a forward pass saved, and its outputs before they were squared, where they were."""

    saved: Any
    linear: Any


def _run(
    net: Sequences, x: Tensor, state: Tensor, strengths: Tensor, weight: Tensor | None, bias: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor, Kept]:
    """Outputs, the last state, and what the backward pass needs."""
    engine, structure = net.engine, net.structure
    scales = engine.scales(structure, None if weight is None else engine.array(weight), engine.array(bias))
    network = Network(structure, net.recurrence, engine.array(strengths), scales, engine.array(gates))
    out, last, saved = engine.forward_sequence(network, engine.array(x), engine.array(state), net.way, net.train)
    if net.squared:
        return engine.tensor(out * out), engine.tensor(last), Kept(saved, out)
    return engine.tensor(out), engine.tensor(last), Kept(saved, None)


def _run_back(
    net: Sequences, kept: Kept, by_input: bool, by_out: Tensor, by_state: Tensor, *tensors: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of x (where ``by_input``), state, strengths, weight, bias, gates, which are the ``tensors``, and of the
    closeness of the ring."""
    has_weight = tensors[3] is not None
    engine, weighted, gradient = net.engine, net.structure.neurons.weighted, net.engine.array(by_out)
    if kept.linear is not None:
        gradient = gradient * kept.linear
        gradient += gradient
    found = engine.backward_sequence(kept.saved, gradient, engine.array(by_state), by_input)
    x, weight = found.x, found.weight[weighted] if has_weight else None
    arrays = x, found.state, found.strengths, weight, found.bias[weighted], found.gates, found.closeness
    return tuple(None if a is None else engine.tensor(a) for a in arrays)


class _RunBack(torch.autograd.Function):
    """The backward pass as a function of its own, which has no derivative."""

    @staticmethod
    def forward(*args: Any) -> Any:
        """See `_run_back`."""
        return _run_back(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Refuse."""
        raise RuntimeError(NO_SECOND)


class Recur(torch.autograd.Function):
    """Outputs and the last state of a recurrent network.

    apply(net, x, state, strengths, weight, bias, gates, closeness)[:2] -> (batch, steps, n_outputs), (batch, n_state)

    x (batch, steps, n_inputs); state (batch, n_state); strengths (n_edges,) in CSR order; weight (n_weighted,) or None;
    bias (n_weighted,); gates (rows, n_hidden).  With a ring, the ``closeness`` of its candidates has a gradient.
    """

    @staticmethod
    def forward(net: Sequences, x: Tensor, state: Tensor, *network: Any) -> tuple[Tensor, Tensor, Kept]:
        """A forward pass, and what it saved."""
        return _run(net, x, state, *network[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what was saved; the tensors, so that torch refuses a backward pass after an in-place change of them."""
        ctx.net, *tensors, _ = inputs
        ctx.kept = output[2]
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, by_out: Tensor, by_state: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Back through time."""
        tensors = ctx.saved_tensors  # raises where one has changed
        function = _run_back if _direct() else _RunBack.apply
        return None, *function(ctx.net, ctx.kept, ctx.needs_input_grad[1], by_out, by_state, *tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """Refuse."""
        raise RuntimeError("torch.func.vmap of a recurrent network is not possible; put the sequences into one batch")


_recur = plain(Recur)


def recur(
    net: Sequences, x: Tensor, state: Tensor, strengths: Tensor, weight: Tensor | None, bias: Tensor, gates: Tensor,
    closeness: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs and the last state, with a graph where gradients are wanted."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        out, last, _ = _recur(net, x, state, strengths, weight, bias, gates, closeness)
        return out, last
    net.train = False
    out, last, _ = _run(net, x, state, strengths, weight, bias, gates)
    return out, last
