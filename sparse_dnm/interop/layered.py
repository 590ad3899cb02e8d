"""Stacks of nn.Linear from a SparseDAG whose neurons lie in layers: dense, each of the sizes of two layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import prune

from sparse_dnm.config import check_choice
from sparse_dnm.interop.labels import Numbers, numbers_of, refuse_options
from sparse_dnm.model.activations import code_of
from sparse_dnm.model.sparse_dag import SparseDAG

WAY_OUT = "; to_scipy, to_torch and to_networkx take any DAG"
ZEROS = ("plain", "masked")
MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "identity": nn.Identity,
}  # fmt: skip


def layers_of(dag: SparseDAG) -> list[NDArray[np.int64]]:
    """The neurons of each layer, inputs first, outputs last, each in the order of their columns; hidden ones ascend.

    A neuron belongs to the layer before that of its readers.  Those that reach no output are left out, but for inputs.
    Raises ValueError naming an edge that passes over a layer, or an output that is read.
    """
    t = dag.topology
    readers, sources = t.readers, t.indices
    both = np.intersect1d(t.inputs, t.outputs)
    if len(both):
        raise ValueError(f"output {both[0]} is an input, which no nn.Linear gives{WAY_OUT}")
    read = t.outputs[np.isin(t.outputs, sources[t.live[readers]])]
    if len(read):
        raise ValueError(f"output {read[0]} is read by others, so the outputs are not a last layer{WAY_OUT}")
    distance = np.full(t.n_neurons, -1, np.int64)  # edges to the outputs
    distance[t.outputs] = 0
    by_level = np.argsort(t.levels[readers], kind="stable")[::-1]
    by_level = by_level[t.live[readers[by_level]]]
    bounds = np.flatnonzero(np.diff(t.levels[readers[by_level]])) + 1
    for edges in np.split(by_level, bounds):
        distance[sources[edges]] = distance[readers[edges]] + 1  # of several, any: they must be the same
    wrong = by_level[distance[sources[by_level]] != distance[readers[by_level]] + 1]
    if len(wrong):
        u, v = sources[wrong[0]], readers[wrong[0]]
        raise ValueError(
            f"edge {u} -> {v} does not lead from one layer to the next: neuron {u} is {distance[u]} edges from the "
            f"outputs by another way, neuron {v} is {distance[v]}{WAY_OUT}"
        )
    is_input = np.zeros(t.n_neurons, np.bool_)
    is_input[t.inputs] = True
    used = np.flatnonzero(is_input & (distance >= 0))
    depth = int(distance[used].max()) if len(used) else int(distance.max()) + 1
    near = used[distance[used] != depth]
    if len(near):
        raise ValueError(
            f"input {near[0]} is {distance[near[0]]} edges from the outputs and another {depth}: the inputs are not a "
            f"first layer{WAY_OUT}"
        )
    early = np.flatnonzero(~is_input & (distance >= depth))
    if len(early):
        raise ValueError(f"neuron {early[0]} reads nothing and lies before the layer that reads the inputs{WAY_OUT}")
    hidden = [np.flatnonzero(distance == k) for k in range(depth - 1, 0, -1)]
    return [t.inputs.astype(np.int64), *hidden, t.outputs.astype(np.int64)]


def _linear_of(dag: SparseDAG, numbers: Numbers, before: Any, layer: Any, place: Any, edges: Any) -> nn.Linear:
    """The nn.Linear between two layers, with its mask as the attribute ``mask``."""
    dtype, device = dag.edge_weight.dtype, dag.edge_weight.device
    made = nn.Linear(len(before), len(layer), dtype=dtype, device="cpu")
    rows, columns = (torch.from_numpy(place[a[edges]]) for a in (dag.topology.readers, dag.topology.indices))
    values = numbers.values[edges] * numbers.factor[dag.topology.readers[edges]]
    with torch.no_grad():
        made.weight.zero_()
        made.weight[rows, columns] = torch.from_numpy(values).to(dtype)
        made.bias.copy_(torch.from_numpy(numbers.bias[layer]))
    return made.to(device)


def _built(dag: SparseDAG) -> tuple[list[nn.Linear], list[str], list[torch.Tensor]]:
    """The layers, the activations between them, and the masks of the weights (True: an edge)."""
    refuse_options(dag, "layers of nn.Linear")
    layers, numbers = layers_of(dag), numbers_of(dag)
    place, number = np.zeros(dag.topology.n_neurons, np.int64), np.full(dag.topology.n_neurons, -1)
    for k, layer in enumerate(layers):
        place[layer], number[layer] = np.arange(len(layer)), k
    readers = number[dag.topology.readers]
    linear: list[nn.Linear] = []
    names: list[str] = []
    masks: list[torch.Tensor] = []
    for k in range(1, len(layers)):
        edges = np.flatnonzero(readers == k)
        linear.append(_linear_of(dag, numbers, layers[k - 1], layers[k], place, edges))
        mask = torch.zeros(len(layers[k]), len(layers[k - 1]), dtype=torch.bool)
        rows, columns = (torch.from_numpy(place[a[edges]]) for a in (dag.topology.readers, dag.topology.indices))
        mask[rows, columns] = True
        masks.append(mask.to(dag.edge_weight.device))
        if k < len(layers) - 1:
            found = {numbers.activations[i] for i in layers[k].tolist()}
            if len(found) > 1:
                raise ValueError(f"neurons of layer {k} have the activations {', '.join(sorted(found))}; those of an "
                                 f"nn.Sequential have one in a layer{WAY_OUT}")  # fmt: skip
            names += found
    return linear, names, masks


def to_linear(dag: SparseDAG) -> list[nn.Linear]:
    """The layers of a DAG in which every edge leads from one layer to the next; `from_linear` makes it again.

    Factors of neurons become part of the weights.  The activation between is ``dag.activation``.  Parameters are
    copies.  Memory: n x m numbers for layers of n and m neurons.  Neurons that reach no output are left out.
    Raises ValueError naming what is not layered, and where neurons have different activations.
    """
    linear, names, _ = _built(dag)
    if len(set(names)) > 1:
        raise ValueError(f"the layers have the activations {', '.join(names)}; use to_module, which puts them between")
    return linear


def to_module(dag: SparseDAG, zeros: str = "plain") -> nn.Sequential:
    """The nn.Sequential of `to_linear` with the activations between; `from_module` makes the DAG again.

    ``zeros="masked"``: weights without an edge are pruned (`torch.nn.utils.prune.custom_from_mask`), so that they stay
    0 in training, and edges of weight 0 stay edges.  A layer that passes everything on as it is becomes none.
    """
    check_choice("zeros", zeros, ZEROS)
    linear, names, masks = _built(dag)
    parts: list[nn.Module] = []
    for k, (layer, mask) in enumerate(zip(linear, masks, strict=True)):
        if k and _passes_on(layer) and mask.sum() == len(mask):
            parts += _activation(names[k]) if k < len(names) else []
            continue
        if zeros == "masked":
            prune.custom_from_mask(layer, "weight", mask)
        parts += [layer, *(_activation(names[k]) if k < len(names) else [])]
    return nn.Sequential(*parts)


def _passes_on(layer: nn.Linear) -> bool:
    """The layer gives what it reads."""
    weight = layer.weight.detach()
    if weight.shape[0] != weight.shape[1] or layer.bias.count_nonzero() or weight.count_nonzero() != len(weight):
        return False
    return bool((weight.diagonal() == 1).all())


def _activation(name: str) -> list[nn.Module]:
    """The module of an activation; none for identity."""
    if name in MODULES:
        return [] if name == "identity" else [MODULES[name]()]
    return [nn.LeakyReLU(code_of(name)[1])]
