"""SparseDAG from and to genomes of neat-python and their JSON, beside neat.nn.FeedForwardNetwork."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dags
from test_interop import DOUBLE, networks, normal

from sparse_dnm import SparseDAG, Topology, interop
from sparse_dnm.interop.neat_network import FUNCTIONS

neat = pytest.importorskip("neat")
export = pytest.importorskip("neat.export")

SETTINGS = """
[NEAT]
fitness_criterion = max
fitness_threshold = 100
pop_size = 10
reset_on_extinction = False
no_fitness_termination = False
[DefaultGenome]
num_inputs = 2
num_outputs = 2
num_hidden = 1
feed_forward = True
initial_connection = full_direct
compatibility_disjoint_coefficient = 1.0
compatibility_weight_coefficient = 0.5
conn_add_prob = 0.5
conn_delete_prob = 0.1
node_add_prob = 0.5
node_delete_prob = 0.1
single_structural_mutation = False
structural_mutation_surer = default
bias_init_mean = 0.0
bias_init_stdev = 1.0
bias_init_type = gaussian
bias_max_value = 30.0
bias_min_value = -30.0
bias_mutate_power = 0.5
bias_mutate_rate = 0.7
bias_replace_rate = 0.1
response_init_mean = 1.0
response_init_stdev = 0.5
response_init_type = gaussian
response_max_value = 30.0
response_min_value = -30.0
response_mutate_power = 0.5
response_mutate_rate = 0.7
response_replace_rate = 0.1
time_constant_init_mean = 1.0
time_constant_init_stdev = 0.0
time_constant_init_type = gaussian
time_constant_max_value = 10.0
time_constant_min_value = 0.01
time_constant_mutate_power = 0.0
time_constant_mutate_rate = 0.0
time_constant_replace_rate = 0.0
activation_default = random
activation_mutate_rate = 0.3
activation_options = sigmoid tanh relu lelu identity
aggregation_default = sum
aggregation_mutate_rate = 0.0
aggregation_options = sum
enabled_default = True
enabled_mutate_rate = 0.2
enabled_rate_to_true_add = 0.0
enabled_rate_to_false_add = 0.0
weight_init_mean = 0.0
weight_init_stdev = 1.0
weight_init_type = gaussian
weight_max_value = 30
weight_min_value = -30
weight_mutate_power = 0.5
weight_mutate_rate = 0.8
weight_replace_rate = 0.1
[DefaultSpeciesSet]
compatibility_threshold = 3.0
[DefaultStagnation]
species_fitness_func = max
max_stagnation = 20
species_elitism = 2
[DefaultReproduction]
elitism = 2
survival_threshold = 0.2
min_species_size = 2
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A neat.Config of two inputs and outputs."""
    path = tmp_path_factory.mktemp("neat") / "config"
    path.write_text(SETTINGS)
    kinds = neat.DefaultGenome, neat.DefaultReproduction, neat.DefaultSpeciesSet, neat.DefaultStagnation
    return neat.Config(*kinds, str(path))


def config_of(made, n_inputs, n_outputs):
    """A copy of the config for these sizes."""
    config = copy.deepcopy(made)
    own = config.genome_config
    own.num_inputs, own.num_outputs = n_inputs, n_outputs
    own.input_keys, own.output_keys = [-k - 1 for k in range(n_inputs)], list(range(n_outputs))
    return config


@st.composite
def genomes(draw):
    """(genome, number of inputs, of outputs): a random DAG of nodes with any functions, disabled connections, nodes
    without sources, and outputs that are read."""
    edges, n = draw(dags(max_neurons=9))
    free = np.setdiff1d(np.arange(n), edges[:, 1])
    n_inputs = draw(st.integers(1, len(free)))
    rest = [k for k in range(n) if k not in free[:n_inputs]]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    keys = {int(k): -1 - i for i, k in enumerate(free[:n_inputs])}
    n_outputs = draw(st.integers(0, len(rest))) if rest else 0
    keys |= {k: i for i, k in enumerate(rng.permutation(rest).tolist())}
    genome = neat.DefaultGenome(1)
    for key in (*sorted(k for k in keys.values() if k >= 0), *range(len(rest), max(n_outputs, 1))):
        genome.nodes[key] = gene = neat.genes.DefaultNodeGene(key)
        gene.bias, gene.response = rng.normal(size=2)
        gene.activation, gene.aggregation, gene.time_constant = str(rng.choice(list(FUNCTIONS))), "sum", 1.0
    for number, (u, v) in enumerate(edges.tolist()):
        genome.connections[keys[u], keys[v]] = gene = neat.genes.DefaultConnectionGene((keys[u], keys[v]), number + 5)
        gene.weight, gene.enabled = rng.normal(), bool(rng.random() < 0.8)
    return genome, n_inputs, max(n_outputs, 1)


def activate(network, x):
    """Outputs of a network of neat-python, row by row."""
    return torch.tensor([network.activate(row) for row in x.tolist()], dtype=torch.float64)


def genes_of(genome):
    """What decides a genome's outputs, and its innovation numbers."""
    nodes = {k: (g.activation, g.aggregation, g.bias, g.response) for k, g in genome.nodes.items()}
    return nodes, {k: (g.weight, g.innovation) for k, g in genome.connections.items() if g.enabled}


def assert_same_genes(one, other):
    (nodes, links), (other_nodes, other_links) = genes_of(one), genes_of(other)
    assert links == other_links
    assert nodes.keys() == other_nodes.keys()
    for key, gene in nodes.items():
        assert gene[:2] == other_nodes[key][:2]
        assert gene[2:] == pytest.approx(other_nodes[key][2:], rel=1e-14, abs=0)


@given(genomes(), st.sampled_from([1, 3]))
def test_genomes_make_a_network_of_the_same_outputs_and_come_back(made, drawn, batch):
    genome, n_inputs, n_outputs = drawn
    config, x = config_of(made, n_inputs, n_outputs), 3 * normal(batch, n_inputs)
    network = neat.nn.FeedForwardNetwork.create(genome, config)
    expected = activate(network, x)
    text = export.export_network_json(network)
    model = interop.from_neat(genome, config, **DOUBLE)
    for each in (
        model,
        interop.from_neat(network, **DOUBLE),
        interop.from_neat_json(text, **DOUBLE),
        interop.from_neat_json(json.loads(text), **DOUBLE),
        interop.from_neat_json(interop.to_neat_json(model), **DOUBLE),
    ):
        torch.testing.assert_close(each(x).detach(), expected, rtol=1e-9, atol=1e-12)
    back = interop.to_neat(model, config, 7)
    assert back.key == 7
    assert_same_genes(back, genome)
    torch.testing.assert_close(activate(neat.nn.FeedForwardNetwork.create(back, config), x), expected)


@given(networks(plain=True))
@settings(max_examples=80)
def test_networks_make_genomes_of_the_same_outputs(made, model):
    numbers = interop.labels.numbers_of(model)
    config, x = config_of(made, model.n_inputs, model.n_outputs), normal(2, model.n_inputs)
    is_read = np.isin(np.arange(model.topology.n_neurons), model.topology.indices)
    known = {ours for ours, _ in FUNCTIONS.values()}
    strange = [k for k in np.flatnonzero(is_read) if numbers.activations[k] not in known]
    if strange:
        with pytest.raises(ValueError, match=r"neuron \d+ has the activation .*; those of neat-python"):
            interop.to_neat(model, config)
        return
    expected = model(x).detach()
    genome = interop.to_neat(model, config)
    torch.testing.assert_close(activate(neat.nn.FeedForwardNetwork.create(genome, config), x), expected)
    for again in (
        interop.from_neat(genome, config, **DOUBLE),
        interop.from_neat_json(interop.to_neat_json(model), **DOUBLE),
    ):
        torch.testing.assert_close(again(x).detach(), expected, rtol=1e-9, atol=1e-9)
    assert len({g.innovation for g in genome.connections.values()}) == len(genome.connections)


def test_a_genome_that_comes_back_goes_on_evolving(made, tmp_path):
    config = copy.deepcopy(made)
    population = neat.Population(config)

    def fitness(pairs, config):
        for _, genome in pairs:
            genome.fitness = -activate(neat.nn.FeedForwardNetwork.create(genome, config), torch.ones(1, 2)).sum().item()

    winner = population.run(fitness, 4)
    model = interop.from_neat(winner, config, **DOUBLE)
    optimizer, x = torch.optim.SGD(model.parameters(), 1e-3), normal(8, 2)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    back = interop.to_neat(model, config, 99)
    known = {gene.innovation: key for key, gene in winner.connections.items()}
    assert all(known.get(gene.innovation, key) == key for key, gene in back.connections.items())
    expected = model(x).detach()
    torch.testing.assert_close(activate(neat.nn.FeedForwardNetwork.create(back, config), x), expected)
    for _ in range(20):
        back.mutate(config.genome_config)
    (tmp_path / "net.json").write_text(interop.to_neat_json(model, {"fitness": 1.5}))
    found = interop.from_neat_json(tmp_path / "net.json", **DOUBLE)
    torch.testing.assert_close(found(x).detach(), expected)
    held = json.loads((tmp_path / "net.json").read_text())
    assert export.validate_json(held)
    assert held["metadata"]["fitness"] == 1.5


def simple(made, **changes):
    """A genome of one connection, with attributes of its first output changed."""
    config, genome = config_of(made, 1, 1), neat.DefaultGenome(0)
    genome.nodes[0] = node = neat.genes.DefaultNodeGene(0)
    own = {"bias": 0.0, "response": 1.0, "activation": "tanh", "aggregation": "sum", "time_constant": 1.0, **changes}
    for name, value in own.items():
        setattr(node, name, value)
    connect(genome, -1, 0)
    return genome, config


def connect(genome, u, v):
    genome.connections[u, v] = gene = neat.genes.DefaultConnectionGene((u, v), len(genome.connections) + 1)
    gene.weight, gene.enabled = 1.0, True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregation": "product"}, r"node 0 has the aggregation 'product'; neurons of a SparseDAG have sums"),
        ({"activation": "gauss"}, r"node 0 has the activation 'gauss', which no kernel has; evolve with"),
    ],
)
def test_functions_that_no_kernel_has_are_named(made, changes, words):
    genome, config = simple(made, **changes)
    network = neat.nn.FeedForwardNetwork.create(genome, config)
    for call in (lambda: interop.from_neat(genome, config), lambda: interop.from_neat(network)):
        with pytest.raises(ValueError, match=words):
            call()


def test_functions_of_ones_own_are_named(made):
    genome, config = simple(made)
    config.genome_config.activation_defs.add("tanh", lambda z: z)
    network = neat.nn.FeedForwardNetwork.create(genome, config)
    for call in (lambda: interop.from_neat(genome, config), lambda: interop.from_neat(network)):
        with pytest.raises(ValueError, match=r"node 0 has .* a function that is not neat-python's own"):
            call()


def test_genomes_that_are_no_network_are_named(made):
    genome, config = simple(made)
    with pytest.raises(ValueError, match=r"a DefaultGenome without a neat.Config; give from_neat\(genome, config\)"):
        interop.from_neat(genome)
    connect(genome, 0, 0)
    with pytest.raises(ValueError, match=r"edge 1 -> 1 closes a cycle.*feed_forward = True"):
        interop.from_neat(genome, config)
    genome, config = simple(made)
    connect(genome, 5, 0)
    with pytest.raises(ValueError, match="node 5 is an output or part of a connection"):
        interop.from_neat(genome, config)
    genome, config = simple(made)
    connect(genome, 0, -1)
    genome.connections.pop((-1, 0))
    with pytest.raises(ValueError, match="input neuron 0 reads neuron 1"):
        interop.from_neat(genome, config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network_type": "recurrent"}, "network_type='recurrent' has a state, or cycles"),
        ({"format_version": "2.0"}, r"format_version='2.0' is not known; this reads 1.0"),
        ({"nodes": None}, "no export of neat-python: 'nodes' is missing"),
    ],
)
def test_exports_that_are_no_network_are_named(change, words):
    held = json.loads(interop.to_neat_json(SparseDAG(Topology.from_edges([(0, 1)]), activation="tanh"))) | change
    with pytest.raises(ValueError, match=words):
        interop.from_neat_json({k: v for k, v in held.items() if v is not None})


def test_networks_that_are_no_genome_are_named(made):
    topology = Topology.from_edges([(0, 1), (1, 2)])
    with pytest.raises(ValueError, match="the DAG has 1 inputs, the config num_inputs = 2; they must be the same"):
        interop.to_neat(SparseDAG(topology), config_of(made, 2, 1))
    with pytest.raises(ValueError, match="output='square' has no form as a genome"):
        interop.to_neat_json(SparseDAG(topology, output="square"))
    with pytest.raises(ValueError, match="neuron 1 has the activation 'silu'"):
        interop.to_neat_json(SparseDAG(topology, activation="silu"))
