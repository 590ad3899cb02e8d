"""SparseDAG from and to directed graphs of networkx, whose names and attributes are kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparse_dnm.checks import MissingPackageError
from sparse_dnm.engine.topology import Topology
from sparse_dnm.interop.labels import Labels, numbers_of, weighted
from sparse_dnm.model.sparse_dag import SparseDAG

if TYPE_CHECKING:
    import networkx as nx

COLUMNS = ("input_column", "output_column")  # attributes of nodes: the column of x, and that of the result
OPTIONS = {"input_neurons": False, "linear_outputs": False, "output": "linear"}  # attributes of the graph


def from_networkx(
    graph: nx.DiGraph,
    inputs: Iterable[Any] | None = None,
    outputs: Iterable[Any] | None = None,
    weight: str | None = "weight",
    *,
    attributes: bool = True,
    network: type[SparseDAG] = SparseDAG,
    **options: Any,
) -> SparseDAG:
    """The DAG of a directed graph, an arc u -> v meaning that v reads u with the weight that the arc has as an
    attribute of this name; 1 where it has none, as in networkx.

    ``weight=None``: weights are drawn, see SparseDAG.  ``inputs`` and ``outputs`` are nodes; see
    `Topology.from_networkx`.
    ``attributes``: what `to_networkx` writes is read where it is there: of nodes ``bias``, ``factor``, ``activation``,
    ``input_column`` and ``output_column``, of the graph ``input_neurons``, ``linear_outputs`` and ``output``.  What is
    given as an argument goes before; a node without an activation has that of ``options``.
    All names and attributes are kept in ``labels``, for `to_networkx`.
    """
    nodes = list(graph)
    if graph.is_multigraph():
        for u, v, key in graph.edges(keys=True):
            if graph.number_of_edges(u, v) > 1:
                raise ValueError(
                    f"{graph.number_of_edges(u, v)} arcs lead from {u!r} to {v!r} (one has the key {key!r}); join them "
                    "to one, as networkx.DiGraph(graph) does"
                )
    if attributes:
        given = {"inputs": inputs, "outputs": outputs}
        for name, column in zip(given, COLUMNS, strict=True):
            if given[name] is None:
                given[name] = _in_order(graph, column)
        inputs, outputs = given.values()
        options = {**{k: graph.graph[k] for k in OPTIONS if k in graph.graph}, **options}
    topology = Topology.from_networkx(graph, inputs, outputs)
    if weight is not None:
        options["values"] = _weights(graph, nodes, topology, weight)
    if attributes:
        _read_attributes(graph, nodes, topology, options)
    made = network(topology, **options)
    made.labels = _labels(graph, nodes, topology)
    return made


def _in_order(graph: Any, column: str) -> list[Any] | None:
    """The nodes that have this attribute, in its order; None if there are none."""
    found = {node: value for node, value in graph.nodes(data=column) if value is not None}
    for node, value in found.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise ValueError(
                f"node {node!r} has {column}={value!r}, which is no integer; attributes=False reads none of them"
            )
    if sorted(found.values()) != list(range(len(found))):
        raise ValueError(
            f"{column} of the nodes is {sorted(found.values())}; it must number them from 0 on, each once; "
            "attributes=False reads none of them"
        )
    return sorted(found, key=lambda node: found[node]) or None


def _number(what: str, name: str, value: Any) -> float:
    """A number that is an attribute; ``what`` has it."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} has {name}={value!r}, which is no number") from None


def _arc(graph: Any, source: Any, reader: Any) -> dict[str, Any]:
    """The attributes of an arc."""
    found = graph.adj[source][reader]
    return next(iter(found.values())) if graph.is_multigraph() else found


def _weights(graph: Any, nodes: list[Any], topology: Topology, weight: str) -> np.ndarray[Any, Any]:
    """The attribute ``weight`` of the edges, in the order of the topology."""
    if weight != "weight" and not any(weight in found for *_, found in graph.edges(data=True)):
        raise ValueError(f"no arc has the attribute weight={weight!r}; weight=None draws the weights")
    values = np.empty(topology.n_edges)
    for k, (source, reader) in enumerate(topology.edges().tolist()):
        value = _arc(graph, nodes[source], nodes[reader]).get(weight, 1)
        values[k] = _number(f"arc {nodes[source]!r} -> {nodes[reader]!r}", weight, value)
    return values


def _read_attributes(graph: Any, nodes: list[Any], topology: Topology, options: dict[str, Any]) -> None:
    """Add bias, factor and activation of the nodes to ``options`` where these don't say another."""
    found = dict(graph.nodes(data=True))
    activations = [found[node].get("activation") for node in nodes]
    if any(name is not None for name in activations):
        default = options.get("activation", "leaky_relu")
        if not isinstance(default, str):
            raise ValueError(
                "nodes have the attribute activation, and it is given for each; attributes=False reads none"
            )
        options["activation"] = [default if name is None else name for name in activations]
    plain = np.zeros(len(nodes), np.bool_)
    if not options.get("input_neurons", False):
        plain[topology.inputs] = True
    if options.get("linear_outputs", False):
        plain[len(nodes) - len(topology.outputs) :] = True
    for name, option, default in (("bias", "bias", 0.0), ("factor", "weight", 1.0)):
        if options.get(option) is not None or not any(name in held for held in found.values()):
            continue
        numbers = [_number(f"node {node!r}", name, found[node].get(name, default)) for node in nodes]
        for k in np.flatnonzero(plain):
            if numbers[k] != default:
                raise ValueError(
                    f"node {nodes[k]!r} has {name}={numbers[k]!r}, but it is an input, or a linear output, which has "
                    "none; input_neurons=True gives inputs one, attributes=False reads none"
                )
        options[option] = np.array(numbers)[~plain]


def _labels(graph: Any, nodes: list[Any], topology: Topology) -> Labels:
    """Names and attributes of a graph, as copies."""
    arcs = {}
    for k, (source, reader) in enumerate(topology.edges().tolist()):
        found = _arc(graph, nodes[source], nodes[reader])
        if found:
            arcs[k] = dict(found)
    return Labels(tuple(nodes), tuple(dict(graph.nodes[node]) for node in nodes), arcs, dict(graph.graph))


def to_networkx(dag: SparseDAG, weight: str = "weight") -> nx.DiGraph:
    """A networkx.DiGraph with an arc source -> reader per edge, which `from_networkx` makes the same DAG of.

    Names and attributes are those of the graph that the DAG was made of; other nodes are numbers.  Written anew are, as
    Python's own numbers and texts: ``weight`` of arcs; of nodes ``bias``, ``factor`` where the DAG has factors,
    ``activation``, ``input_column`` of inputs and ``output_column`` of outputs; of the graph the options that are not
    the default.
    """
    try:
        import networkx as nx
    except ModuleNotFoundError:
        raise MissingPackageError(
            "to_networkx needs the package networkx; pip install networkx, or the extra `.[networkx]`"
        ) from None
    topology, numbers, has_bias = dag.topology, numbers_of(dag), weighted(dag)
    n = topology.n_neurons
    labels = dag.labels or Labels(tuple(range(n)))
    attributes = labels.node_attributes or ({},) * n
    ours = {"bias", "factor", "activation", *COLUMNS}
    graph, is_read = nx.DiGraph(), np.zeros(n, np.bool_)
    is_read[topology.indices] = True
    graph.graph.update({k: v for k, v in labels.graph.items() if k not in OPTIONS})
    graph.graph.update({name: getattr(dag, name) for name, plain in OPTIONS.items() if getattr(dag, name) != plain})
    for k, node in enumerate(labels.nodes):
        graph.add_node(node)
        graph.nodes[node].update({name: v for name, v in attributes[k].items() if name not in ours})
        if has_bias[k]:
            own = None if is_read[k] else attributes[k].get("activation")  # which means nothing where nobody reads
            graph.nodes[node].update(bias=float(numbers.bias[k]), activation=own or numbers.activations[k])
            if dag.weight is not None:
                graph.nodes[node]["factor"] = float(numbers.factor[k])
    for column, neurons in zip(COLUMNS, (topology.inputs, topology.outputs), strict=True):
        for k, neuron in enumerate(neurons.tolist()):
            graph.nodes[labels.nodes[neuron]][column] = k
    values = dag.edge_weight.detach().to("cpu", torch.float64).tolist()
    for k, (source, reader) in enumerate(topology.edges().tolist()):
        arc = labels.nodes[source], labels.nodes[reader]
        graph.add_edge(*arc)
        graph.edges[arc].update({**labels.edge_attributes.get(k, {}), weight: values[k]})
    return graph
