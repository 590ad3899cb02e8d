"""What genomes and the JSON of neat-python have in common: nodes and connections, and the SparseDAG of them.

A node of neat-python has m = act(bias + response * sum); so has a neuron with ``response`` as its factor.  Its sigmoid
is that of 5 z and its tanh that of 2.5 z: factor and bias are multiplied by it, and divided on the way back.
Results of neat-python are m of the output nodes, those of a SparseDAG are z: an output node that has an activation gets
a reader with the weight 1 and the bias 0, which is the output of the SparseDAG.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparse_dnm.engine.topology import Topology
from sparse_dnm.interop.labels import Labels, numbers_of, refuse_options
from sparse_dnm.model.sparse_dag import SparseDAG

FUNCTIONS = {  # activation of neat-python: ours, and what it multiplies z by
    "sigmoid": ("sigmoid", 5.0),
    "tanh": ("tanh", 2.5),
    "relu": ("relu", 1.0),
    "lelu": ("leaky_relu(0.005)", 1.0),
    "identity": ("identity", 1.0),
}
BACK = {ours: (theirs, scale) for theirs, (ours, scale) in FUNCTIONS.items()}


@dataclass(frozen=True)
class Node:
    """A node of neat-python that is no input."""

    activation: str
    bias: float
    response: float


@dataclass
class Net:
    """Nodes and connections by their keys."""

    inputs: list[int]
    outputs: list[int]
    nodes: dict[int, Node] = field(default_factory=dict)
    links: dict[tuple[int, int], float] = field(default_factory=dict)
    innovations: dict[tuple[int, int], int] = field(default_factory=dict)


def node_of(key: Any, activation: str, aggregation: str, bias: Any, response: Any) -> Node:
    """A node whose functions a SparseDAG has.  Raises ValueError naming another."""
    if aggregation != "sum":
        raise ValueError(
            f"node {key} has the aggregation {aggregation!r}; neurons of a SparseDAG have sums: evolve with "
            "aggregation_options = sum"
        )
    if activation not in FUNCTIONS:
        raise ValueError(
            f"node {key} has the activation {activation!r}, which no kernel has; evolve with activation_options among "
            f"{', '.join(FUNCTIONS)}"
        )
    return Node(activation, float(bias), float(response))


def dag_of(net: Net, options: dict[str, Any]) -> SparseDAG:
    """Inputs, then nodes, then a reader of each output that has an activation."""
    read = {key: ("output", key) for key in net.outputs if key in net.nodes and net.nodes[key].activation != "identity"}
    names: list[Hashable] = [*net.inputs, *net.nodes, *read.values()]
    number = {key: k for k, key in enumerate(names)}
    if len(number) < len(names):
        raise ValueError("an input and another node have the same key; keys of inputs are negative")
    for key in (*net.outputs, *itertools.chain(*net.links)):
        if key not in number:
            raise ValueError(f"node {key} is an output or part of a connection, but it is not among the nodes")
    links: list[tuple[Hashable, Hashable]] = [*net.links, *read.items()]
    edges = np.array([(number[u], number[v]) for u, v in links], np.int64).reshape(-1, 2)
    values = np.array([*net.links.values(), *([1.0] * len(read))])
    try:
        topology = Topology.from_edges(
            edges, len(names), np.arange(len(net.inputs)), [number[read.get(key, key)] for key in net.outputs]
        )
    except ValueError as error:
        if "cycle" not in str(error):
            raise
        raise ValueError(
            f"{error}. Neurons are numbered {', '.join(map(str, names[:20]))}...: evolve with feed_forward = True"
        ) from None
    order = np.lexsort((edges[:, 0], edges[:, 1]))
    scales = [FUNCTIONS[node.activation][1] for node in net.nodes.values()]
    added = [1.0] * len(read)
    responses = [s * node.response for s, node in zip(scales, net.nodes.values(), strict=True)]
    biases = [s * node.bias for s, node in zip(scales, net.nodes.values(), strict=True)]
    activations = [FUNCTIONS[node.activation][0] for node in net.nodes.values()]
    made = SparseDAG(
        topology,
        values[order],
        np.array([*biases, *(0.0 for _ in added)]),
        **{
            "weight": np.array([*responses, *added]),
            "activation": ["identity"] * len(net.inputs) + activations + ["identity"] * len(read),
            **options,
        },
    )
    innovations = {
        k: {"innovation": net.innovations[links[j]]}
        for k, j in enumerate(order.tolist())
        if links[j] in net.innovations
    }
    attributes = tuple({"activation": name} for name in (*["identity"] * len(net.inputs), *activations))
    made.labels = Labels(tuple(names), (*attributes, *({} for _ in read)), innovations)
    return made


# -- the way back --------------------------------------------------------------------------------------------


def _single_source(dag: SparseDAG, numbers: Any, output: int) -> int | None:
    """The neuron whose message an output passes on as it is, if no other reads the output; else None."""
    t = dag.topology
    first, last = t.indptr[output : output + 2]
    if last - first != 1 or numbers.values[first] != 1 or numbers.factor[output] != 1 or numbers.bias[output] != 0:
        return None
    return int(t.indices[first])


def _keys(dag: SparseDAG, taken: Mapping[int, int], n_outputs: int, free: Iterator[int]) -> dict[int, int]:
    """A key for each neuron: ``taken``, else a label that is the key of a hidden node, else the next of ``free``."""
    labels = dag.labels.nodes if dag.labels else ()
    keys, used = dict(taken), {*taken.values(), *range(n_outputs)}
    rest = [k for k in range(dag.topology.n_neurons) if k not in keys]
    for k in rest:
        name = labels[k] if k < len(labels) else None
        if isinstance(name, int) and not isinstance(name, bool) and name >= 0 and name not in used:
            keys[k] = name
            used.add(name)
    for k in rest:
        if k not in keys:
            keys[k] = next(key for key in free if key not in used)
            used.add(keys[k])
    return keys


def net_of(dag: SparseDAG, inputs: list[int], outputs: list[int], free: Iterator[int]) -> Net:
    """Nodes and connections with the outputs of a DAG, for these keys of inputs and outputs."""
    refuse_options(dag, "a genome")
    t, numbers = dag.topology, numbers_of(dag)
    is_input, is_read = np.zeros(t.n_neurons, np.bool_), np.zeros(t.n_neurons, np.bool_)
    is_input[t.inputs], is_read[t.indices] = True, True
    taken = dict(zip(t.inputs.tolist(), inputs, strict=True))
    left_out, twins = set[int](), dict[int, int]()  # an output that only passes on; a second node for z of an output
    is_output = set(t.outputs.tolist())
    for output, key in zip(t.outputs.tolist(), outputs, strict=True):
        source = None if is_read[output] or is_input[output] else _single_source(dag, numbers, output)
        if source is not None and not is_input[source] and source not in taken and source not in is_output:
            taken[source] = key
            left_out.add(output)
            taken[output] = key
        elif is_input[output] or (is_read[output] and numbers.activations[output] != "identity"):
            twins[output] = key
        else:
            taken[output] = key
            numbers.activations[output] = "identity"
    keys = _keys(dag, taken, len(outputs), free)
    net = Net(inputs, outputs)
    names = dag.labels.nodes if dag.labels else ()
    edge_labels = dag.labels.edge_attributes if dag.labels else {}
    node_labels = dag.labels.node_attributes if dag.labels else ()
    for k in range(t.n_neurons):
        if is_input[k] or k in left_out:
            continue
        activation = numbers.activations[k] if is_read[k] else "identity"
        if not is_read[k] and k not in is_output and k < len(node_labels):  # it means nothing, and comes back
            own = node_labels[k].get("activation")
            activation = own if own in BACK else activation
        if activation not in BACK:
            raise ValueError(
                f"neuron {k} has the activation {activation!r}; those of neat-python that a SparseDAG shares are "
                f"{', '.join(BACK)}"
            )
        name, scale = BACK[activation]
        net.nodes[keys[k]] = Node(name, float(numbers.bias[k] / scale), float(numbers.factor[k] / scale))
    for place, (source, reader) in enumerate(t.edges().tolist()):
        if reader in left_out:
            continue
        link = keys[source], keys[reader]
        net.links[link] = float(numbers.values[place])
        if "innovation" in edge_labels.get(place, {}) and link == (names[source], names[reader]):
            net.innovations[link] = edge_labels[place]["innovation"]
        if reader in twins:
            net.links[keys[source], twins[reader]] = float(numbers.values[place])
    for neuron, key in twins.items():
        plain = is_input[neuron]
        net.nodes[key] = Node(
            "identity", *((0.0, 1.0) if plain else map(float, (numbers.bias[neuron], numbers.factor[neuron])))
        )
        if plain:
            net.links[keys[neuron], key] = 1.0
    return net
