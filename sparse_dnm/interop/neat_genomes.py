"""SparseDAG from and to feed-forward genomes of neat-python."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparse_dnm.checks import MissingPackageError
from sparse_dnm.interop.neat_json import from_neat_json
from sparse_dnm.interop.neat_network import Net, dag_of, net_of, node_of
from sparse_dnm.model.sparse_dag import SparseDAG

if TYPE_CHECKING:
    import neat


def _neat() -> Any:
    """The package neat-python."""
    try:
        import neat
        import neat.nn
    except ModuleNotFoundError:
        raise MissingPackageError(
            "this needs the package neat-python; pip install neat-python, or the extra `.[neat]`"
        ) from None
    return neat


def from_neat(genome: Any, config: neat.Config | None = None, **options: Any) -> SparseDAG:
    """The DAG of a feed-forward genome and its neat.Config, or of a neat.nn.FeedForwardNetwork.

    Nodes have each their own activation: sigmoid, tanh, relu, lelu or identity.  The aggregation must be sum.
    Disabled connections make no edge; nodes that reach no output are kept.  Keys of the nodes are ``labels.nodes``.
    ``options`` are those of SparseDAG; neat-python computes in float64, which ``dtype=torch.float64`` does, too.
    Raises ValueError naming a function that a SparseDAG has not, or a connection that closes a cycle.
    """
    neat = _neat()
    if isinstance(genome, neat.nn.FeedForwardNetwork):
        from neat.export import export_network_json

        return from_neat_json(export_network_json(genome), **options)
    if config is None or not hasattr(genome, "connections"):
        raise ValueError(
            f"a {type(genome).__name__} without a neat.Config; give from_neat(genome, config) or a "
            "neat.nn.FeedForwardNetwork"
        )
    settings = config.genome_config
    net = Net(list(settings.input_keys), list(settings.output_keys))
    for key, gene in genome.nodes.items():
        for name, functions in (
            (gene.activation, settings.activation_defs),
            (gene.aggregation, settings.aggregation_function_defs),
        ):
            if not functions.get(name).__module__.startswith("neat."):
                raise ValueError(f"node {key} has {name!r}, a function that is not neat-python's own")
        net.nodes[key] = node_of(key, gene.activation, gene.aggregation, gene.bias, gene.response)
    for key, gene in genome.connections.items():
        if gene.enabled:
            net.links[key] = float(gene.weight)
            if hasattr(gene, "innovation"):
                net.innovations[key] = gene.innovation
    return dag_of(net, options)


def to_neat(dag: SparseDAG, config: neat.Config, key: int = 0) -> Any:
    """A genome of ``config.genome_type`` whose neat.nn.FeedForwardNetwork has the outputs of a DAG.

    Keys of nodes and innovation numbers are those of the genome that it was made of; new ones come from the config.
    The genome holds what the DAG holds: limits of the config, such as weight_max_value, apply when it is mutated.
    An output of a DAG has no activation, so its node is ``identity``, unless it only passes on what a neuron with one
    gives.  Raises ValueError if the numbers of inputs or outputs differ, or if neat-python has not the activation.
    """
    _neat()
    settings = config.genome_config
    for name, here, there in (
        ("inputs", dag.n_inputs, settings.num_inputs),
        ("outputs", dag.n_outputs, settings.num_outputs),
    ):
        if here != there:
            raise ValueError(f"the DAG has {here} {name}, the config num_{name} = {there}; they must be the same")
    if settings.node_indexer is None:
        highest = max((k for k in (dag.labels.nodes if dag.labels else ()) if isinstance(k, int)), default=0)
        settings.node_indexer = itertools.count(max(highest + 1, settings.num_outputs))
    net = net_of(dag, list(settings.input_keys), list(settings.output_keys), settings.node_indexer)
    genome = config.genome_type(key)
    for node_key, node in net.nodes.items():
        own = {
            "bias": node.bias,
            "response": node.response,
            "activation": node.activation,
            "aggregation": "sum",
            "time_constant": 1.0,
        }
        genome.nodes[node_key] = _gene(settings, settings.node_gene_type, (node_key,), own)
    numbers = _innovations(dag, net, settings)
    takes_number = "innovation" in inspect.signature(settings.connection_gene_type.__init__).parameters
    for link, weight in net.links.items():
        arguments = (link, numbers[link]) if takes_number else (link,)
        genome.connections[link] = _gene(
            settings, settings.connection_gene_type, arguments, {"weight": weight, "enabled": True}
        )
    return genome


def _gene(settings: Any, kind: Any, arguments: tuple[Any, ...], own: Mapping[str, Any]) -> Any:
    """A gene with these attributes; others of a class of one's own are drawn as its config says."""
    gene = kind(*arguments)
    for attribute in kind._gene_attributes:
        value = own[attribute.name] if attribute.name in own else attribute.init_value(settings)
        setattr(gene, attribute.name, value)
    return gene


def _innovations(dag: SparseDAG, net: Net, settings: Any) -> dict[tuple[int, int], int]:
    """The innovation number of each connection: its own, or one of the config's tracker, or the next that is free."""
    numbers = dict(net.innovations)
    tracker = getattr(settings, "innovation_tracker", None)
    held = dag.labels.edge_attributes.values() if dag.labels else ()
    free = itertools.count(max((edge.get("innovation", 0) for edge in held), default=0) + 1)
    for link in net.links:
        if link not in numbers:
            numbers[link] = (
                next(free) if tracker is None else tracker.get_innovation_number(*link, "initial_connection")
            )
    return numbers
