"""SparseDAG from and to the JSON that neat-python exports; neat-python itself is not needed."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from sparse_dnm.interop.neat_network import Net, dag_of, net_of, node_of
from sparse_dnm.model.sparse_dag import SparseDAG

FORMAT = "1.0"  # of the JSON that is written
PARTS = ("format_version", "network_type", "topology", "nodes", "connections")


def from_neat_json(source: str | PathLike[str] | Mapping[str, Any], **options: Any) -> SparseDAG:
    """The DAG of the JSON that `neat.export.export_network_json` writes: its text, its file, or what json.load made.

    neat-python itself is not needed.  See `from_neat`.
    """
    if isinstance(source, Mapping):
        found = source
    else:
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
        found = json.loads(text)
    missing = [name for name in PARTS if name not in found]
    if missing:
        raise ValueError(f"no export of neat-python: {missing[0]!r} is missing")
    if str(found["format_version"]).split(".")[0] != FORMAT.split(".")[0]:
        raise ValueError(f"format_version={found['format_version']!r} is not known; this reads {FORMAT}")
    if found["network_type"] != "feedforward":
        raise ValueError(
            f"network_type={found['network_type']!r} has a state, or cycles, which a SparseDAG has not; export a "
            "neat.nn.FeedForwardNetwork"
        )
    net = Net(list(found["topology"]["input_keys"]), list(found["topology"]["output_keys"]))
    for node in found["nodes"]:
        if node["type"] == "input":
            continue
        for function in (node["activation"], node["aggregation"]):
            if function.get("custom", False):
                raise ValueError(
                    f"node {node['id']} has {function['name']!r}, a function that is not neat-python's own"
                )
        names = node["activation"]["name"], node["aggregation"]["name"]
        net.nodes[node["id"]] = node_of(node["id"], *names, node["bias"], node["response"])
    for link in found["connections"]:
        if link["enabled"]:
            key = link["from"], link["to"]
            if key in net.links:
                raise ValueError(f"connection {key[0]} -> {key[1]} is there twice")
            net.links[key] = float(link["weight"])
    return dag_of(net, options)


def to_neat_json(dag: SparseDAG, metadata: Mapping[str, Any] | None = None) -> str:
    """A DAG in the format of `neat.export.export_network_json`, as text; see `to_neat`.

    Inputs have the keys -1, -2, ..., outputs 0, 1, ...; neat-python itself is not needed.
    """
    inputs, outputs = [-k - 1 for k in range(dag.n_inputs)], list(range(dag.n_outputs))
    net = net_of(dag, inputs, outputs, itertools.count(dag.n_outputs))

    def node(key: int, kind: str, functions: tuple[str, str], bias: float, response: float) -> dict[str, Any]:
        """As the export writes it."""
        activation, aggregation = ({"name": name, "custom": False} for name in functions)
        return {
            "id": key,
            "type": kind,
            "activation": activation,
            "aggregation": aggregation,
            "bias": bias,
            "response": response,
        }

    shown = set(outputs)
    nodes = [
        node(key, "output" if key in shown else "hidden", (n.activation, "sum"), n.bias, n.response)
        for key, n in net.nodes.items()
    ]
    nodes += [node(key, "input", ("identity", "none"), 0.0, 1.0) for key in inputs]
    now = datetime.datetime.now(datetime.timezone.utc)
    found = {
        "format_version": FORMAT,
        "network_type": "feedforward",
        "metadata": {"created_timestamp": now.isoformat(), "created_by": "sparse-dnm", **(metadata or {})},
        "topology": {
            "num_inputs": len(inputs),
            "num_outputs": len(outputs),
            "input_keys": inputs,
            "output_keys": outputs,
        },
        "nodes": nodes,
        "connections": [
            {"from": u, "to": v, "weight": weight, "enabled": True} for (u, v), weight in net.links.items()
        ],
    }
    return json.dumps(found, indent=2)
