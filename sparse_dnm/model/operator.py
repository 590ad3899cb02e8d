"""The operator sparse_dnm::propagate: what torch.compile, torch.export and torch.jit.trace record of a SparseDAG.

Importing this module registers it; a program that loads an exported or traced SparseDAG must do so first.  The topology
is passed as its tensors.  The backward pass runs the forward pass again: nothing is saved in between.
Executor torch-sparse, whose gradients need torch's own graph, runs as ``auto``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from sparse_dnm.checks import check_alike, check_dtype, check_input, check_shape
from sparse_dnm.engine.autograd import NO_SECOND, Network, _looped, _run, _run_back
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.sparse_dag import ALL_THREADS, structure_of

N_TENSORS = 4  # x, edge_weight, weight and bias come first, then what has no gradient
N_ARRAYS = 4  # indptr, indices, inputs and outputs come next, then the settings

_made: dict[tuple[Any, ...], tuple[list[StorageWeakRef], Engine, Any]] = {}


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 if torch does not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _made_of(arrays: tuple[Tensor, ...], bias: Tensor, settings: tuple[Any, ...]) -> tuple[Engine, Any]:
    """The engine and the structure of a topology's tensors, cached while their memory is the same.

    A weak reference to a storage keeps its address from being reused.
    """
    places = ((t.untyped_storage()._cdata, t.data_ptr(), tuple(t.shape), t.dtype, _version(t)) for t in arrays)
    key = (*places, bias.device, bias.dtype, settings)
    found = _made.get(key)
    if found is None or any(reference.expired() for reference in found[0]):
        for old in [k for k, made in list(_made.items()) if any(reference.expired() for reference in made[0])]:
            _made.pop(old, None)
        *functions, executor, threads = settings
        topology = Topology.from_csr(*(t.detach().cpu().numpy().copy() for t in arrays))
        name = "auto" if executor == "torch-sparse" else executor
        engine = engine_for(Executor(name, min(threads, ALL_THREADS)), bias.device)
        references = [StorageWeakRef(t.untyped_storage()) for t in arrays]
        found = _made[key] = references, engine, structure_of(engine, topology, bias.dtype, *functions)
    return found[1], found[2]


def _structure(
    x: Tensor, edge_weight: Tensor, weight: Tensor | None, bias: Tensor, *topology_and_settings: Any
) -> tuple[Engine, Any]:
    """The engine and the structure.  Raises ValueError if a tensor does not fit them: kernels do not check."""
    arrays, settings = topology_and_settings[:N_ARRAYS], topology_and_settings[N_ARRAYS:]
    check_dtype(bias.dtype)
    engine, structure = _made_of(arrays, bias, settings)
    check_input(x, len(arrays[2]), bias.dtype, bias.device)
    check_shape("x", x, (len(x), len(arrays[2])))
    size = len(structure.neurons.kind[structure.neurons.weighted])
    for name, tensor, n in (
        ("edge_weight", edge_weight, len(arrays[1])),
        ("weight", weight, size),
        ("bias", bias, size),
    ):
        if tensor is not None:
            check_shape(name, tensor, (n,))
            check_alike(name, tensor, "bias", bias)
    return engine, structure


NETWORK = (
    "Tensor x, Tensor edge_weight, Tensor? weight, Tensor bias, Tensor indptr, Tensor indices, Tensor inputs, "
    "Tensor outputs, str activation, bool input_neurons, bool linear_outputs, str executor, SymInt threads"
)


@torch.library.custom_op("sparse_dnm::propagate", mutates_args=(), schema=f"({NETWORK}) -> Tensor")
def propagate(*network: Any) -> Tensor:
    """Outputs (batch, n_outputs) of a SparseDAG."""
    engine, structure = _structure(*network)
    return _run(Network(engine, structure), *network[:N_TENSORS])[0]


@propagate.register_fake
def _(x: Tensor, edge_weight: Any, weight: Any, bias: Any, indptr: Any, indices: Any, inputs: Any, outputs: Tensor,
      *rest: Any) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], outputs.shape[0])


@torch.library.custom_op(
    "sparse_dnm::propagate_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, {NETWORK}, bool by_input) -> (Tensor, Tensor, Tensor, Tensor)",
)
def propagate_backward(gradient: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, edge_weight, weight and bias; an empty tensor for one that is missing."""
    *network, by_input = rest
    engine, structure = _structure(*network)
    tensors = network[:N_TENSORS]
    both = Network(engine, structure)
    _, saved = _run(both, *tensors)
    found = _run_back(both, saved, by_input, gradient, *tensors)
    by_x, by_edge, by_weight, by_bias = (network[3].new_empty(0) if t is None else t for t in found[:N_TENSORS])
    return by_x, by_edge, by_weight, by_bias


@propagate_backward.register_fake
def _(gradient: Tensor, x: Tensor, edge_weight: Tensor, weight: Tensor | None, bias: Tensor, *rest: Any) -> Any:
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format) if rest[-1] else bias.new_empty(0)
    return by_x, edge_weight.new_empty(edge_weight.shape), bias.new_empty(0 if weight is None else bias.shape[0]), \
        bias.new_empty(bias.shape)  # fmt: skip


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the tensors: the backward pass runs the forward pass again."""
    ctx.has_weight = inputs[2] is not None
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.rest = [a for a in inputs if not isinstance(a, Tensor) and a is not None]


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients, one for each argument."""
    tensors = list(ctx.saved_tensors)
    if not ctx.has_weight:
        tensors.insert(2, None)
    by_input = bool(ctx.needs_input_grad[0])
    by_x, by_edge, by_weight, by_bias = propagate_backward(gradient, *tensors, *ctx.rest, by_input)
    found = by_x if by_input else None, by_edge, by_weight if ctx.has_weight else None, by_bias
    return *found, *([None] * (len(tensors) + len(ctx.rest) - N_TENSORS))


def _refuse(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError(NO_SECOND)


propagate.register_autograd(_back, setup_context=_keep)
propagate_backward.register_autograd(_refuse)


@propagate.register_vmap
def _(info: Any, in_dims: Any, x: Tensor, *rest: Any) -> Any:
    """A batched input becomes a larger batch; if other tensors are batched, one call after the other."""
    if any(dim is not None for dim in in_dims[1:]):
        out, dims = _looped(lambda *a: (propagate(*a),), info.batch_size, in_dims, (x, *rest))
        return out[0], dims[0]
    x = x.movedim(in_dims[0], 0)
    out = propagate(x.reshape(-1, x.shape[-1]), *rest)
    return out.reshape(info.batch_size, -1, out.shape[-1]), 0


@propagate_backward.register_vmap
def _(info: Any, in_dims: Any, *args: Any) -> Any:
    """One after the other."""
    return _looped(propagate_backward, info.batch_size, in_dims, args)
