"""What a SparseDAG has beside a matrix of weights: options, and the names and attributes of a graph."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.model.activations import names_of
from sparse_dnm.model.sparse_dag import SparseDAG, _neurons


@dataclass(frozen=True, eq=False)
class Labels:
    """Names and attributes of a graph that a SparseDAG was made of; ``SparseDAG.labels`` holds them.

    nodes            name of each neuron
    node_attributes  of each neuron
    edge_attributes  of each edge that has some, by its place in ``topology.edges()``
    graph            of the whole

    They are no part of the state_dict; copies and pickles of the module have them.
    """

    nodes: tuple[Hashable, ...]
    node_attributes: tuple[Mapping[str, Any], ...] = ()
    edge_attributes: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    graph: Mapping[str, Any] = field(default_factory=dict)


def options_of(dag: SparseDAG) -> dict[str, Any]:
    """The keyword arguments that, beside its matrix, make the same SparseDAG again.

    ``from_scipy(to_scipy(dag), **options_of(dag))``; so with the other matrices.
    """
    topology = dag.topology
    return {
        "inputs": np.array(topology.inputs),
        "outputs": np.array(topology.outputs),
        "bias": dag.bias.detach().clone(),
        "weight": None if dag.weight is None else dag.weight.detach().clone(),
        "activation": dag.activation,
        "input_neurons": dag.input_neurons,
        "linear_outputs": dag.linear_outputs,
        "output": dag.output,
        "dtype": dag.bias.dtype,
        "device": dag.bias.device,
        "executor": dag.executor.name,
        "threads": dag.executor.asked,
    }


def weighted(dag: SparseDAG) -> NDArray[np.bool_]:
    """bool (n,): the neurons that have a bias, and a factor where there is one."""
    found = np.zeros(dag.topology.n_neurons, np.bool_)
    found[_neurons(dag.topology, dag.activation, dag.input_neurons, dag.linear_outputs)[-1]] = True
    return found


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of a SparseDAG for each neuron, float64: z_i = factor_i * sum of values * m + bias_i."""

    values: NDArray[np.float64]  # of the edges
    bias: NDArray[np.float64]
    factor: NDArray[np.float64]
    activations: list[str]


def numbers_of(dag: SparseDAG) -> Numbers:
    """The numbers of every neuron: bias 0 and factor 1 where it has none, activation identity at inputs."""
    places, n = weighted(dag), dag.topology.n_neurons
    bias, factor = np.zeros(n), np.ones(n)
    bias[places] = dag.bias.detach().cpu().double().numpy()
    if dag.weight is not None:
        factor[places] = dag.weight.detach().cpu().double().numpy()
    names = names_of(dag.activation, n)
    if not dag.input_neurons:
        for k in dag.topology.inputs:
            names[k] = "identity"
    return Numbers(dag.edge_weight.detach().cpu().double().numpy(), bias, factor, names)


def refuse_options(dag: SparseDAG, target: str) -> None:
    """Raise ValueError if ``target`` has no place for an option of a SparseDAG."""
    for name, plain in (("input_neurons", False), ("linear_outputs", False), ("output", "linear")):
        value = getattr(dag, name)
        if value != plain:
            raise ValueError(
                f"a SparseDAG with {name}={value!r} has no form as {target}; to_scipy, to_torch and to_networkx keep "
                "every option"
            )
