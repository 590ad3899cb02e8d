"""SparseDAG of torch modules: stacks of nn.Linear, and nn.Sequential of them with activations between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparse_dnm.checks import DTYPES
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.activations import leaky
from sparse_dnm.model.sparse_dag import SparseDAG

ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
}
IGNORED = (nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Flatten)  # in evaluation; inputs of a SparseDAG are flat
KNOWN: tuple[Any, ...] = (nn.Sequential, nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, *ACTIVATION_MODULES, *IGNORED)


class _Stack:
    """Layers of neurons that are added one after the other; layer 0 are the inputs."""

    def __init__(self, n_inputs: int):
        self.first, self.size, self.n_inputs = 0, n_inputs, n_inputs  # of the last layer
        self.open = False  # the last layer has no activation yet
        self.pending: tuple[Tensor, Tensor] | None = None  # factor and summand of what the last layer gives
        self.activations = ["identity"] * n_inputs
        self.edges: list[Tensor] = []
        self.values: list[Tensor] = []
        self.biases: list[Tensor] = []

    def add(self, row: Tensor, column: Tensor, values: Tensor, bias: Tensor) -> None:
        """A layer of len(bias) neurons; ``row`` reads ``column`` of the last layer."""
        values, bias = values.double(), bias.double()
        if self.pending is not None:
            factor, summand = self.pending
            bias = bias.index_add(0, row, values * summand[column])
            values, self.pending = values * factor[column], None
        first = self.first + self.size
        self.edges.append(torch.stack([column + self.first, row + first], dim=1))
        self.values.append(values)
        self.biases.append(bias)
        self.first, self.size, self.open = first, len(bias), True
        self.activations += ["identity"] * self.size

    def one_to_one(self) -> None:
        """A layer that passes on what the last one gives."""
        places = torch.arange(self.size)
        self.add(places, places, torch.ones(self.size), torch.zeros(self.size))

    def activate(self, name: str) -> None:
        """The activation of what the last layer gives."""
        if not self.open:  # it has one, or is the inputs
            self.one_to_one()
        self.activations[self.first :] = [name] * self.size
        self.open = False

    def scale(self, factor: Tensor, summand: Tensor) -> None:
        """Multiply what the last layer gives, and add."""
        if self.open:
            rows = self.edges[-1][:, 1] - self.first
            self.values[-1] = self.values[-1] * factor[rows]
            self.biases[-1] = self.biases[-1] * factor + summand
        elif self.pending is None:
            self.pending = factor, summand
        else:
            self.pending = self.pending[0] * factor, self.pending[1] * factor + summand

    def build(self, network: type[SparseDAG], options: dict[str, Any]) -> SparseDAG:
        """The DAG whose outputs are what the last layer gives."""
        if not self.open:
            self.one_to_one()
        n = self.first + self.size
        topology = Topology.from_edges(
            torch.cat(self.edges).numpy(), n, np.arange(self.n_inputs), np.arange(self.first, n)
        )
        edges = torch.cat(self.edges)  # which the topology has by reader, then source
        order = torch.from_numpy(np.lexsort((edges[:, 0].numpy(), edges[:, 1].numpy())))
        options = {"activation": self.activations, **options}
        return network(topology, torch.cat(self.values)[order], torch.cat(self.biases), **options)


def _parameter(layer: nn.Module, name: str) -> tuple[Tensor | None, Tensor | None]:
    """A parameter of a layer, pruned as its next call would, and the mask of `torch.nn.utils.prune` if there is one."""
    mask = getattr(layer, f"{name}_mask", None)
    if mask is None:
        value = getattr(layer, name)
        return None if value is None else value.detach().cpu(), None
    return (getattr(layer, f"{name}_orig") * mask).detach().cpu(), mask.detach().cpu()


def _linear(stack: _Stack, layer: nn.Linear) -> None:
    """Add a layer with an edge for each weight that is not 0 or, where there is a mask, not masked."""
    weight, mask = _parameter(layer, "weight")
    bias, _ = _parameter(layer, "bias")
    assert weight is not None
    if weight.layout != torch.strided:
        places, values = weight.to_sparse_coo().coalesce().indices(), weight.to_sparse_coo().coalesce().values()
        row, column = places[0], places[1]
    else:
        row, column = (weight if mask is None else mask).nonzero(as_tuple=True)
        values = weight[row, column]
    stack.add(row, column, values, torch.zeros(len(weight)) if bias is None else bias)


def _options_of(layers: list[nn.Linear], options: dict[str, Any]) -> dict[str, Any]:
    """Device, and dtype if kernels exist for it, of the first layer, unless ``options`` name others."""
    weight = getattr(layers[0], "weight_orig", layers[0].weight)  # a pruned weight is made anew by the next call only
    dtype = weight.dtype if weight.dtype in DTYPES else torch.float32
    return {"device": weight.device, "dtype": dtype, **options}


def from_linear(layers: Iterable[nn.Linear], *, network: type[SparseDAG] = SparseDAG, **options: Any) -> SparseDAG:
    """The DAG of a stack of nn.Linear with the activation of ``options`` between them.

    Weights that are 0 make no edge; where a layer is pruned (`torch.nn.utils.prune`), those that are masked.
    dtype and device are those of the layers unless ``options`` name others; half precision becomes float32.
    """
    layers = list(layers)
    if not layers or not all(isinstance(layer, nn.Linear) for layer in layers):
        raise ValueError(f"{[type(layer).__name__ for layer in layers]} must be one nn.Linear or more")
    stack = _Stack(layers[0].in_features)
    for k, layer in enumerate(layers):
        if k and layer.in_features != layers[k - 1].out_features:
            raise ValueError(
                f"layer {k} reads {layer.in_features} features, layer {k - 1} gives {layers[k - 1].out_features}"
            )
        _linear(stack, layer)
    return stack.build(network, {"activation": "leaky_relu", **_options_of(layers, options)})


def from_module(module: nn.Module, *, network: type[SparseDAG] = SparseDAG, **options: Any) -> SparseDAG:
    """The DAG of an nn.Linear, or of an nn.Sequential, however nested, of nn.Linear, activations and nn.BatchNorm1d.

    Outputs are those of the module in evaluation, for flat inputs: nn.Dropout, nn.Identity and nn.Flatten are left
    out, nn.BatchNorm1d becomes part of the weights.  Weights that are 0 make no edge; where a layer is pruned
    (`torch.nn.utils.prune`), those that are masked, so that others may be 0 and are trained.
    Activations: nn.ReLU, LeakyReLU, Tanh, Sigmoid, SiLU.  One that is followed by no nn.Linear, as at the end, gives
    each of its neurons a reader with the weight 1 and the bias 0, which are parameters like the others.
    dtype and device as in `from_linear`.
    Raises ValueError naming the place and the type of a module that has no form here.
    """
    parts = list(_parts(module, ""))
    layers = [part for _, part in parts if isinstance(part, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(module).__name__} holds no nn.Linear; a SparseDAG is made of one or more")
    norms = [path for path, part in parts if part.training and _depends_on_mode(part)]
    if norms:
        raise ValueError(f"module {norms[0]} is in training mode, in which it is random or depends on the batch; call "
                         "module.eval() first")  # fmt: skip
    sized = next(part for _, part in parts if isinstance(part, (nn.Linear, nn.BatchNorm1d)))
    stack = _Stack(sized.in_features if isinstance(sized, nn.Linear) else sized.num_features)
    for path, part in parts:
        reads = {nn.Linear: "in_features", nn.BatchNorm1d: "num_features"}
        size = next((getattr(part, name) for kind, name in reads.items() if isinstance(part, kind)), stack.size)
        if size != stack.size:
            raise ValueError(f"module {path} ({type(part).__name__}) reads {size} features, but is given {stack.size}")
        if isinstance(part, nn.Linear):
            _linear(stack, part)
        elif isinstance(part, nn.BatchNorm1d):
            stack.scale(*_affine(path, part))
        elif isinstance(part, nn.LeakyReLU):
            stack.activate(leaky(part.negative_slope))
        else:
            for kind, activation in ACTIVATION_MODULES.items():
                if isinstance(part, kind):
                    stack.activate(activation)
    return stack.build(network, _options_of(layers, options))


def _depends_on_mode(part: nn.Module) -> bool:
    """In training, the module gives something else than in evaluation."""
    return isinstance(part, nn.BatchNorm1d) or (isinstance(part, (nn.Dropout, nn.AlphaDropout)) and part.p > 0)


def _parts(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are no nn.Sequential, in the order of execution, with their paths."""
    name = f"{path!r}" if path else "(the whole)"
    own: Any = type(module)
    kind = next((k for k in KNOWN if isinstance(module, k) and own.forward is k.forward), None)
    if kind is None or isinstance(module, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(
            f"module {name} is a {type(module).__name__}, which has no form in a SparseDAG; give an nn.Sequential of "
            f"its nn.Linear with {', '.join(k.__name__ for k in KNOWN[2:])} between, or the part of the network before "
            "or after it"
        )
    hooks = [h for h in module._forward_pre_hooks.values() if not isinstance(h, prune.BasePruningMethod)]
    hooks += list(module._forward_hooks.values())
    if hooks:
        raise ValueError(
            f"module {name} ({type(module).__name__}) has a hook, {hooks[0]!r}, that may change its results; remove it "
            "first (of weight_norm and spectral_norm: torch.nn.utils.remove_...)"
        )
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        raise ValueError(
            f"module {name} is an nn.Flatten from {module.start_dim} to {module.end_dim}; only nn.Flatten(1, -1) may "
            "be left out, as inputs of a SparseDAG are flat"
        )
    if isinstance(module, nn.Sequential):
        for key, part in module._modules.items():  # named_children leaves out a module that is there again
            assert part is not None
            yield from _parts(part, f"{path}.{key}" if path else key)
    else:
        yield name, module


def _affine(path: str, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Factor and summand, float64, of a batch norm in evaluation."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f"module {path} (BatchNorm1d) has no running statistics, so that its results depend on the batch; make it "
            "with track_running_stats=True"
        )
    factor = (norm.running_var.detach().cpu().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().cpu().double()
    summand = -norm.running_mean.detach().cpu().double() * factor
    return factor, summand if norm.bias is None else summand + norm.bias.detach().cpu().double()
