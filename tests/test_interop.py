"""SparseDAG from and to matrices, graphs and stacks of layers: round trips, and outputs of the original library."""

import copy
import itertools
import pickle
import re
from pathlib import Path

import naive
import networkx as nx
import numpy as np
import pytest
import torch
from cuda_device import DEVICE, kernels_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dags
from torch import nn
from torch.nn.utils import prune

from sparse_dnm import SparseDAG, Topology, interop
from sparse_dnm.checks import MissingPackageError
from sparse_dnm.config import ACTIVATIONS
from sparse_dnm.interop.matrices import FORMATS
from sparse_dnm.model.activations import spelled

DIAMOND = [(0, 2), (1, 2), (2, 3), (0, 3)]
MIXED = (*ACTIVATIONS, "leaky_relu(0.01)", "leaky_relu(-0.5)", "leaky_relu(1.5)")
DOUBLE = {"dtype": torch.float64, "threads": 1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def diamond(**options):
    return SparseDAG(Topology.from_edges(DIAMOND), **{"generator": generator(), **DOUBLE, **options})


@st.composite
def networks(draw, max_neurons=10, plain=False):
    """A SparseDAG in float64 of a random DAG: outputs that are read or are inputs, dead and isolated neurons, neurons
    without sources that are no inputs, weights of 0, an activation per neuron, factors, and now and then the other
    options (not if ``plain``)."""
    edges, n = draw(dags(max_neurons=max_neurons))
    outputs = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4, unique=True))
    free = np.setdiff1d(np.arange(n), edges[:, 1]).tolist()
    inputs = draw(st.permutations(free))[: draw(st.integers(1, len(free)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    options = {"activation": draw(st.sampled_from(ACTIVATIONS))}
    if draw(st.booleans()):
        options["activation"] = draw(st.lists(st.sampled_from(MIXED), min_size=n, max_size=n))
    if draw(st.booleans()):
        options["weight"] = 1.0
    if not plain:
        options |= {"input_neurons": draw(st.booleans()), "output": draw(st.sampled_from(["linear", "square"]))}
    model = SparseDAG(Topology.from_edges(edges, n, inputs, outputs), **DOUBLE, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.from_numpy(rng.normal(size=len(p))))
        model.edge_weight[torch.from_numpy(rng.random(len(model.edge_weight)) < 0.1)] = 0
    return model


def act(name, v):
    """An activation of one number."""
    if name.startswith("leaky_relu("):
        return v if v > 0 else float(name[11:-1]) * v
    return naive.ACTIVATIONS[name](v)


def by_hand(model, x, names):
    """Outputs neuron by neuron, in Python's floats; ``names``: the activation of each neuron."""
    t = model.topology
    plain = set() if model.input_neurons else set(t.inputs.tolist())
    place = {i: k for k, i in enumerate(i for i in range(t.n_neurons) if i not in plain)}
    rows = []
    for row in x.tolist():
        z, m = {}, {}
        for i in t.order.tolist():
            total = row[t.inputs.tolist().index(i)] if i in t.inputs else 0.0
            for k in range(t.indptr[i], t.indptr[i + 1]):
                total += model.edge_weight[k].item() * m[int(t.indices[k])]
            if i in place:
                factor = 1.0 if model.weight is None else model.weight[place[i]].item()
                total = factor * total + model.bias[place[i]].item()
            z[i], m[i] = total, total if i in plain else act(names[i], total)
        rows.append([z[i] ** 2 if model.output == "square" else z[i] for i in t.outputs.tolist()])
    return torch.tensor(rows, dtype=torch.float64)


def assert_same_network(one, other):
    """The same graph, options and bits of every parameter."""
    assert str(one.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    for name in ("indptr", "indices", "inputs", "outputs"):
        np.testing.assert_array_equal(getattr(one.topology, name), getattr(other.topology, name))


def assert_same(one, other):
    found, expected = ({k: v.clone() for k, v in dag.state_dict().items()} for dag in (one, other))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert_same_network(one, other)


# -- an activation per neuron --------------------------------------------------------------------------------


@given(networks(), st.sampled_from(["columns", "wavefront", "blocks"]), st.sampled_from([1, 3]))
@settings(max_examples=60)
def test_every_neuron_has_its_own_activation_in_every_executor(model, executor, batch):
    names = interop.labels.names_of(model.activation, model.topology.n_neurons)
    model.executor = type(model.executor)(executor, 1)
    x = normal(batch, model.n_inputs)
    expected = by_hand(model, x, names)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@given(networks())
@settings(max_examples=20)
def test_every_neuron_has_its_own_activation_in_torch_sparse(model):
    pytest.importorskip("torch_sparse")
    names = interop.labels.names_of(model.activation, model.topology.n_neurons)
    model.executor = type(model.executor)("torch-sparse", 1)
    x = normal(2, model.n_inputs)
    torch.testing.assert_close(model(x).detach(), by_hand(model, x, names), rtol=1e-9, atol=1e-9)


@pytest.mark.cuda
def test_every_neuron_has_its_own_activation_on_cuda():
    edges = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 4), (3, 4), (3, 5), (4, 5)]
    names = ["identity", "leaky_relu(0.01)", "tanh", "silu", "sigmoid", "relu"]
    model = SparseDAG(Topology.from_edges(edges), activation=names, generator=generator(), dtype=torch.float64)
    x = normal(3, 1)
    expected = by_hand(model, x, names)
    with kernels_of("cuda"):
        torch.testing.assert_close(copy.deepcopy(model).to(DEVICE)(x.to(DEVICE)).detach().cpu(), expected)


@given(networks(max_neurons=6))
@settings(max_examples=20)
def test_gradients_of_mixed_activations_are_the_differences(model):
    x = normal(2, model.n_inputs)
    names = interop.labels.names_of(model.activation, model.topology.n_neurons)
    model(x).sum().backward()

    def loss(values):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.edge_weight.copy_(torch.from_numpy(values))
        return by_hand(other, x, names).sum().item()

    at = model.edge_weight.detach().numpy().copy()
    found = model.edge_weight.grad.numpy()
    expected, other = naive.gradient(loss, at), naive.gradient(loss, at, 1e-7)
    smooth = np.abs(expected - other) < 1e-5  # no kink of an activation nearby
    np.testing.assert_allclose(found[smooth], expected[smooth], rtol=1e-4, atol=1e-5)


def test_activations_are_told_in_the_shortest_way():
    topology = Topology.from_edges([(0, 1), (1, 2), (2, 3)])
    for given_, text in (
        ("tanh", "tanh"),
        ("leaky_relu(0.2)", "leaky_relu"),
        ("leaky_relu(0)", "relu"),
        ("leaky_relu(1)", "identity"),
        ("leaky_relu(1e-2)", "leaky_relu(0.01)"),
        (["relu", "tanh", "tanh", "silu"], "tanh"),  # inputs and what nobody reads have none
        (["relu", "tanh", "silu", "relu"], "tanh*2 silu*2"),
        ("tanh*2 silu*2", "tanh*2 silu*2"),
        (["relu", "tanh", "leaky_relu(0.01)", "relu"], "tanh*2 leaky_relu(0.01)*2"),
    ):
        model = SparseDAG(topology, activation=given_)
        assert model.activation == text
        assert spelled(text, topology, False) == text
    assert SparseDAG(topology, activation=["relu", "tanh", "tanh", "silu"], input_neurons=True).activation != "tanh"


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        ("gelu", "activation='gelu' is unknown; choose one of leaky_relu, .*leaky_relu.SLOPE."),
        ("leaky_relu(nan)", "is unknown"),
        ("leaky_relu(x)", "is unknown"),
        (["tanh"], "has 1 names; give one for all, or one for each of the 4 neurons"),
        (["tanh", "tanh", "tanh", 3], "activation=3 is unknown"),
        ("tanh*x relu", r"must be NAME\*COUNT"),
    ],
)
def test_activations_that_are_none_are_named(activation, words):
    with pytest.raises(ValueError, match=words):
        diamond(activation=activation)


def test_mixed_activations_are_part_of_the_state():
    topology = Topology.from_edges([(0, 1), (1, 2), (2, 3)])
    one = SparseDAG(topology, activation="tanh*2 silu*2", generator=generator())
    same = SparseDAG(topology, activation=["relu", "tanh", "silu", "relu"])
    same.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    x = normal(3, 1, dtype=torch.float32)
    assert torch.equal(one(x), same(x))
    assert torch.equal(copy.deepcopy(one)(x), one(x))
    for other in ("tanh*2 relu*2", "tanh"):
        a, b = SparseDAG(topology, activation=other), one
        for here, there in ((a, b), (b, a)):
            with pytest.raises(RuntimeError, match=r"the state is that of another network: .*activation is"):
                here.load_state_dict(there.state_dict())
    program = torch.export.export(one, (x,))
    assert torch.equal(program.module()(x), one(x))


# -- matrices ------------------------------------------------------------------------------------------------


@given(networks(), st.sampled_from(FORMATS), st.sampled_from(["readers", "sources"]))
def test_scipy_matrices_of_every_format_make_the_same_network_again(model, name, rows):
    if (model.edge_weight == 0).any() and name in ("dia", "dok", "lil"):  # some of them store it
        try:
            matrix = interop.to_scipy(model, rows=rows, format=name)
        except ValueError:
            return
    else:
        matrix = interop.to_scipy(model, rows=rows, format=name)
    assert matrix.format == name
    again = interop.from_scipy(matrix, rows=rows, **interop.options_of(model))
    assert_same(again, model)
    again = SparseDAG.from_scipy(matrix, rows=rows, **interop.options_of(model))
    assert_same(again, model)
    if name in ("csr", "csc", "coo", "bsr"):
        matrix.data *= 0  # it is a copy
        assert_same(again, model)


@given(networks(plain=True), st.sampled_from([1, 3]))
def test_products_of_the_scipy_matrix_level_by_level_are_the_outputs(model, batch):
    x = normal(batch, model.n_inputs)
    t, numbers, matrix = model.topology, interop.labels.numbers_of(model), interop.to_scipy(model)
    z, m = np.zeros((t.n_neurons, batch)), np.zeros((t.n_neurons, batch))
    z[t.inputs] = m[t.inputs] = x.numpy().T
    for level in range(t.depth + 1):
        for i in np.flatnonzero(t.levels == level):
            if i not in t.inputs:
                z[i] = numbers.factor[i] * (matrix[[i]] @ m)[0] + numbers.bias[i]
                m[i] = [act(numbers.activations[i], v) for v in z[i]]
    np.testing.assert_allclose(model(x).detach().numpy(), z[t.outputs].T, rtol=1e-9, atol=1e-9)


@given(networks(), st.sampled_from([torch.sparse_csr, torch.sparse_csc, torch.sparse_coo]), st.booleans())
def test_torch_tensors_make_the_same_network_again_and_keep_the_graph(model, layout, by_source):
    rows = "sources" if by_source else "readers"
    tensor = interop.to_torch(model, layout, rows=rows)
    assert tensor.layout == layout
    assert tensor.dtype == torch.float64
    dense = interop.to_scipy(model, rows=rows).toarray()
    np.testing.assert_array_equal(tensor.detach().to_dense().numpy(), dense)
    again = interop.from_torch(tensor, rows=rows, **interop.options_of(model))
    assert_same(again, model)
    assert again.edge_weight.is_leaf
    v = normal(model.topology.n_neurons, 1)
    (tensor @ v).square().sum().backward()
    expected = 2 * torch.from_numpy(dense) @ v @ v.T
    sources, readers = torch.from_numpy(model.topology.edges().astype(np.int64)).T
    wanted = expected[sources, readers] if by_source else expected[readers, sources]
    torch.testing.assert_close(model.edge_weight.grad, wanted)
    with torch.no_grad():
        assert not interop.to_torch(model, layout).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.float64])
def test_tensors_of_any_real_dtype_are_read_and_elements_stored_twice_are_summed(dtype):
    places = torch.tensor([[2, 1, 1, 2], [1, 0, 0, 0]])
    tensor = torch.sparse_coo_tensor(places, torch.tensor([2, 1, 1, 1]).to(dtype), (4, 4))
    model = interop.from_torch(tensor, inputs=[0, 3], outputs=[2])
    assert model.edge_weight.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert model.topology.edges().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert model.edge_weight.tolist() == ([2, 1, 1] if dtype == torch.bool else [2, 1, 2])
    assert tensor._nnz() == 4


def test_values_with_a_graph_run_through_a_network_of_a_tensor():
    model = diamond()
    values = model.edge_weight.detach().clone().requires_grad_()
    x = normal(3, 2)
    torch.func.functional_call(model, {"edge_weight": values}, (x,)).sum().backward()
    model(x).sum().backward()
    assert torch.equal(values.grad, model.edge_weight.grad)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(2), "tensor of layout torch.strided must be a torch.sparse tensor"),
        (np.eye(2), "a ndarray must be"),
        (torch.eye(2).to_sparse_bsr((1, 1)), "blocks, tensor.to_sparse_coo"),
        (torch.ones(2, 3).to_sparse_csr(), r"shape \(2, 3\) must be square"),
        (torch.ones(2, 2, 2).to_sparse(2), "must be square, without dense"),
        (torch.zeros(2, 2, dtype=torch.complex64).to_sparse(), "complex64 must hold real numbers"),
        (torch.eye(2).to_sparse(), "edge 0 -> 0 closes a cycle"),
        (torch.sparse_coo_tensor(size=(0, 0)), "1 .. 2"),
    ],
)
def test_tensors_that_are_no_network_are_named(tensor, words):
    with pytest.raises(ValueError, match=words):
        interop.from_torch(tensor)


def test_formats_that_lose_an_edge_are_refused():
    model = SparseDAG(Topology.from_edges([(0, 1)]), [0.0])
    with pytest.raises(ValueError, match="'dia' does not store the 1 edges of weight 0; choose one of csr"):
        interop.to_scipy(model, format="dia")
    with pytest.raises(ValueError, match="format='sky' is unknown"):
        interop.to_scipy(model, format="sky")
    with pytest.raises(ValueError, match=r"layout=torch.strided is unknown; choose one of torch.sparse_csr"):
        interop.to_torch(model, torch.strided)


@given(networks(), st.booleans())
@settings(max_examples=40)
def test_sparse_tensors_make_the_same_network_again_and_keep_the_graph(model, by_source):
    pytest.importorskip("torch_sparse")
    rows = "sources" if by_source else "readers"
    matrix = interop.to_sparse_tensor(model, rows=rows)
    np.testing.assert_array_equal(matrix.detach().to_dense().numpy(), interop.to_scipy(model, rows=rows).toarray())
    assert_same(interop.from_sparse_tensor(matrix, rows=rows, **interop.options_of(model)), model)
    assert matrix.requires_grad() or not model.topology.n_edges


def test_sparse_tensors_without_values_have_ones_and_others_are_refused():
    torch_sparse = pytest.importorskip("torch_sparse")
    row, col = torch.tensor([1, 2]), torch.tensor([0, 1])
    matrix = torch_sparse.SparseTensor(row=row, col=col, sparse_sizes=(3, 3))
    assert interop.from_sparse_tensor(matrix).edge_weight.tolist() == [1, 1]
    half = torch_sparse.SparseTensor(row=row, col=col, value=torch.ones(2).bfloat16(), sparse_sizes=(3, 3))
    assert interop.from_sparse_tensor(half).edge_weight.dtype == torch.float32
    with pytest.raises(ValueError, match=r"shape \(3, 4\) must be square"):
        interop.from_sparse_tensor(torch_sparse.SparseTensor(row=row, col=col, sparse_sizes=(3, 4)))
    with pytest.raises(ValueError, match=r"Tensor must be a torch_sparse.SparseTensor"):
        interop.from_sparse_tensor(torch.eye(3))


@pytest.mark.parametrize(
    ("package", "call", "words"),
    [
        ("torch_sparse", lambda: interop.to_sparse_tensor(diamond()), r"a SparseTensor needs .*\.\[torch-sparse\]"),
        ("torch_sparse", lambda: interop.from_sparse_tensor(None), r"a SparseTensor needs .*\.\[torch-sparse\]"),
        ("networkx", lambda: interop.to_networkx(diamond()), r"needs the package networkx.*\.\[networkx\]"),
        ("neat", lambda: interop.from_neat(None), r"neat-python.*\.\[neat\]"),
        ("neat", lambda: interop.to_neat(diamond(), None), r"neat-python.*\.\[neat\]"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(package, call, words, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingPackageError, match=words):
        call()


# -- networkx ------------------------------------------------------------------------------------------------


@given(networks(), st.data())
def test_graphs_of_networkx_make_the_same_network_again(model, data):
    graph = interop.to_networkx(model)
    order = data.draw(st.permutations(list(graph)))
    if model.input_neurons or model.n_inputs < model.topology.n_neurons:  # else no node has an activation
        assert_same(interop.from_networkx(graph, **DOUBLE), model)
    other = nx.DiGraph()  # neurons numbered otherwise, and the graph written and read as JSON
    other.add_nodes_from((k, graph.nodes[k]) for k in order)
    other.add_edges_from(graph.edges(data=True))
    other.graph.update(graph.graph)
    other = nx.node_link_graph(nx.node_link_data(other))
    shuffled = interop.from_networkx(other, **DOUBLE)
    x = normal(2, model.n_inputs)
    torch.testing.assert_close(shuffled(x), model(x), rtol=1e-9, atol=1e-9)
    again = interop.to_networkx(shuffled)
    assert dict(again.edges) == dict(graph.edges)
    for node in graph:
        found, expected = dict(again.nodes[node]), dict(graph.nodes[node])
        if graph.out_degree(node) == 0:  # nobody reads its activation
            found.pop("activation", None), expected.pop("activation", None)
        assert found == expected
    assert again.graph == graph.graph


def test_names_and_attributes_of_a_graph_are_kept():
    graph = nx.DiGraph(name="eye", made=2026)
    graph.add_node("in", colour="red")
    graph.add_node(("mid", 1), bias=0.5, activation="tanh", layer=2)
    graph.add_node("out", activation="sigmoid")
    graph.add_edge("in", ("mid", 1), weight=2.0, delay=3)
    graph.add_edge(("mid", 1), "out", delay=4)
    before = copy.deepcopy(graph)
    model = SparseDAG.from_networkx(graph, **DOUBLE)
    assert model.activation == "tanh"
    assert model(torch.tensor([1.0]).double()).item() == pytest.approx(np.tanh(2.5))
    back = interop.to_networkx(pickle.loads(pickle.dumps(model)))
    assert list(back) == list(graph)
    assert back.graph == graph.graph
    assert back.nodes["in"] == {"colour": "red", "input_column": 0}
    assert back.nodes["mid", 1] == {"bias": 0.5, "activation": "tanh", "layer": 2}
    assert back.nodes["out"] == {"bias": 0.0, "activation": "sigmoid", "output_column": 0}
    assert back.edges["in", ("mid", 1)] == {"weight": 2.0, "delay": 3}
    assert back.edges[("mid", 1), "out"] == {"weight": 1.0, "delay": 4}
    assert nx.utils.graphs_equal(before, graph)
    with torch.no_grad():
        model.edge_weight.mul_(3)
    assert interop.to_networkx(model).edges["in", ("mid", 1)]["weight"] == 6
    given_ = interop.from_networkx(graph, bias=[0.25, 0.0], activation="relu", attributes=False, **DOUBLE)
    assert given_.activation == "relu"
    assert given_(torch.tensor([1.0]).double()).item() == 2.25


def attributed(node=None, graph=None, **attributes):
    """A chain a -> b -> c with attributes of a node."""
    made = nx.DiGraph([("a", "b"), ("b", "c")], **(graph or {}))
    if node:
        made.nodes[node].update(attributes)
    return made


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (attributed("b", bias="large"), "node 'b' has bias='large', which is no number"),
        (attributed("a", bias=1.0), "node 'a' has bias=1.0, but it is an input.*input_neurons=True"),
        (attributed("b", activation="gelu"), "activation='gelu' is unknown"),
        (attributed("b", input_column="x"), "node 'b' has input_column='x', which is no integer; attributes=False"),
        (attributed("c", output_column=3), r"output_column of the nodes is \[3\]; it must number them from 0 on"),
        (nx.MultiDiGraph([("a", "b"), ("a", "b")]), "2 arcs lead from 'a' to 'b'.*join them"),
        (nx.Graph([("a", "b")]), "an undirected graph has no order"),
        (nx.DiGraph([("a", "a")]), "edge 0 -> 0 closes a cycle"),
        (nx.DiGraph([("a", "b"), ("b", "a")]), "closes a cycle"),
        (nx.DiGraph(), "n_neurons=0"),
        (attributed(graph={"output": "cube"}), "output='cube' is unknown"),
    ],
)
def test_graphs_that_are_no_network_are_named(graph, words):
    with pytest.raises(ValueError, match=words):
        interop.from_networkx(graph)
    if "attributes=False" in words:
        assert interop.from_networkx(graph, attributes=False).n_inputs == 1


def test_arcs_of_a_multigraph_that_are_alone_are_read():
    model = interop.from_networkx(nx.MultiDiGraph([("a", "b", {"weight": 2.0, "kind": "x"}), ("b", "c")]))
    assert model.edge_weight.tolist() == [2, 1]
    assert interop.to_networkx(model).edges["a", "b"]["kind"] == "x"


# -- stacks of layers ----------------------------------------------------------------------------------------


def sparse_linear(n, m, seed, density=0.6, **options):
    layer = nn.Linear(n, m, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight.copy_(normal(m, n, seed=seed) * (torch.rand(m, n, generator=generator(seed)) < density))
    return layer


def trained_norm(n, seed):
    norm = nn.BatchNorm1d(n, dtype=torch.float64)
    norm.running_mean, norm.running_var = normal(n, seed=seed), normal(n, seed=seed).abs() + 0.1
    with torch.no_grad():
        norm.weight.copy_(normal(n, seed=seed + 1))
        norm.bias.copy_(normal(n, seed=seed + 2))
    return norm


@st.composite
def modules(draw):
    """A nested nn.Sequential of layers of every kind, with pruned ones, in evaluation."""
    sizes, parts = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)), []
    others = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.LeakyReLU, lambda: nn.LeakyReLU(0.3), nn.Identity, nn.Dropout]

    def between(n):
        for kind in draw(st.lists(st.sampled_from([*others, nn.Flatten, "norm"]), max_size=3)):
            parts.append(trained_norm(n, len(parts)) if kind == "norm" else kind())

    between(sizes[0])
    for n, m in itertools.pairwise(sizes):
        layer = sparse_linear(n, m, len(parts), draw(st.sampled_from([0.0, 0.5, 1.0])), bias=draw(st.booleans()))
        if draw(st.booleans()):
            prune.random_unstructured(layer, "weight", 0.4)
        parts.append(layer)
        between(m)
    cut = draw(st.integers(0, len(parts)))
    return nn.Sequential(nn.Sequential(*parts[:cut]), nn.Sequential(nn.Sequential(*parts[cut:]))).eval(), sizes


@given(modules())
@settings(max_examples=80)
def test_modules_make_a_network_of_the_same_outputs_and_back(made):
    module, sizes = made
    x = normal(3, sizes[0])
    leaf = x.clone().requires_grad_()
    expected = module(leaf)
    (by_x,) = torch.autograd.grad(expected.sum(), leaf, materialize_grads=True, allow_unused=True)
    model = interop.from_module(module, threads=1)
    assert model.edge_weight.dtype == torch.float64
    found_leaf = x.clone().requires_grad_()
    found = model(found_leaf)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), found_leaf)[0], by_x, rtol=1e-9, atol=1e-9)
    for zeros in ("plain", "masked"):
        again = interop.to_module(model, zeros)
        torch.testing.assert_close(again(x), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(interop.from_module(again, threads=1)(x), expected, rtol=1e-9, atol=1e-9)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.sampled_from(ACTIVATIONS), st.integers(0, 99))
def test_stacks_of_linear_layers_come_back(sizes, activation, seed):
    layers = [sparse_linear(n, m, seed + n) for n, m in itertools.pairwise(sizes)]
    model = interop.from_linear(layers, activation=activation, threads=1)
    back = interop.to_linear(model)
    x = normal(3, sizes[0])
    torch.testing.assert_close(interop.from_linear(back, activation=activation, threads=1)(x), model(x))
    assert (back[0].in_features, back[-1].out_features) == (sizes[0], sizes[-1])
    torch.testing.assert_close(interop.to_module(model)(x), model(x), rtol=1e-9, atol=1e-9)
    dense = [sparse_linear(n, m, seed + n, 2.0) for n, m in itertools.pairwise(sizes)]
    again = interop.to_linear(SparseDAG.from_linear(dense))
    for one, other in zip(dense, again, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)


@given(networks(plain=True))
def test_what_is_layered_becomes_layers_and_what_is_not_is_named(model):
    x = normal(2, model.n_inputs)
    module, refused = None, ""
    try:
        module = interop.to_module(model)
    except ValueError as error:
        refused = str(error)
    if module is None:
        assert re.search(r"; to_scipy, to_torch and to_networkx take any DAG$", refused)
        return
    torch.testing.assert_close(module(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("edges", "options", "words"),
    [
        (DIAMOND, {}, "edge 0 -> . does not lead from one layer to the next: neuron 0 is . edges"),
        ([(0, 1), (1, 2)], {"outputs": [1, 2]}, "output 1 is read by others"),
        ([(0, 1)], {"outputs": [0, 1]}, "output 0 is an input"),
        ([(0, 2), (2, 3), (1, 3)], {}, "input . is . edges from the outputs and another"),
        ([(0, 2), (1, 2), (2, 3), (4, 1)], {"inputs": [0]}, "neuron . reads nothing and lies before"),
    ],
)
def test_networks_without_layers_are_named(edges, options, words):
    with pytest.raises(ValueError, match=words):
        interop.to_linear(SparseDAG(Topology.from_edges(edges, **options)))


def test_options_and_activations_without_a_layer_are_named():
    chain = Topology.from_edges([(0, 1), (0, 2), (1, 3), (2, 3)])
    with pytest.raises(ValueError, match=r"input_neurons=True has no form as layers of nn.Linear"):
        interop.to_linear(SparseDAG(chain, input_neurons=True))
    mixed = SparseDAG(chain, activation=["relu", "tanh", "relu", "relu"])
    with pytest.raises(ValueError, match="neurons of layer 1 have the activations relu, tanh"):
        interop.to_module(mixed)
    deep = interop.from_module(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="the layers have the activations relu, tanh; use to_module"):
        interop.to_linear(deep)


def test_a_masked_layer_keeps_edges_of_weight_zero_and_stays_masked_in_training():
    layer = sparse_linear(3, 2, 0, 2.0)
    prune.custom_from_mask(layer, "weight", torch.tensor([[1, 0, 1], [0, 1, 1]]))
    with torch.no_grad():
        layer.weight_orig[0, 0] = 0.0
        layer.weight_orig[1, 1] = 7.0  # layer.weight is that of the last call
    model = interop.from_module(layer)
    assert model.topology.edges().tolist() == [[0, 3], [2, 3], [1, 4], [2, 4]]
    assert model.edge_weight[0] == 0
    assert model.edge_weight[2] == 7
    back = interop.to_module(model, "masked")
    assert torch.equal(back[0].weight_mask, layer.weight_mask.double())
    optimizer = torch.optim.SGD(back.parameters(), 0.1)
    back(normal(4, 3)).square().sum().backward()
    optimizer.step()
    assert np.array_equal(interop.from_module(back).topology.edges(), model.topology.edges())


def test_a_layer_of_half_precision_becomes_float32():
    for dtype in (torch.float16, torch.bfloat16):
        layer = nn.Linear(3, 2).to(dtype)
        model = interop.from_module(layer)
        assert model.edge_weight.dtype == torch.float32
        torch.testing.assert_close(model(torch.ones(1, 3)), layer.float()(torch.ones(1, 3)))


def test_a_module_that_is_there_twice_counts_twice():
    act, layer = nn.Tanh(), sparse_linear(2, 2, 0)
    module = nn.Sequential(layer, act, layer, act, nn.Flatten())
    x = normal(2, 2)
    torch.testing.assert_close(interop.from_module(module)(x), module(x), rtol=1e-9, atol=1e-9)


class Own(nn.Module):
    """A module with a forward of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)

    def forward(self, x):
        return self.body(x) + x


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.GELU())),
            "module '1.1' is a GELU, which has",
        ),
        (nn.Sequential(Own()), "module '0' is a Own.*give an nn.Sequential of its nn.Linear"),
        (Own(), r"module \(the whole\) is a Own"),
        (nn.Sequential(nn.Conv1d(1, 1, 1)), "module '0' is a Conv1d"),
        (nn.Sequential(nn.LazyLinear(2)), "is a LazyLinear"),
        (nn.ModuleList([nn.Linear(2, 2)]), "is a ModuleList"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2)), "module '1' .Linear. reads 2 features, but is given 3"),
        (nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)), "module '1' is in training mode.*module.eval"),
        (nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)), "module '0' is in training mode"),
        (nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 3)).eval(), "no running statistics"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(2, 3)), "nn.Flatten from 0 to -1"),
        (nn.Sequential(nn.ReLU()), "holds no nn.Linear"),
        (nn.Sequential(), "holds no nn.Linear"),
        (nn.Sequential(hooked()), "module '0' .Linear. has a hook"),
    ],
)
def test_modules_that_have_no_form_are_named(module, words):
    with pytest.raises(ValueError, match=words):
        interop.from_module(module)


def test_dropout_that_drops_nothing_is_left_out_in_training():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout(0.0))
    x = torch.rand(3, 2, 2)
    torch.testing.assert_close(interop.from_module(module)(x.flatten(1)), module(x))


def test_parametrized_layers_are_read_as_they_compute():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    x = torch.rand(2, 3)
    torch.testing.assert_close(interop.from_module(nn.Sequential(layer, nn.ReLU()))(x), layer(x).relu())


def test_the_examples_of_the_documentation_run(capsys):
    text = (Path(__file__).resolve().parent.parent / "docs" / "interop.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "tensor([[-1.7500]]" in printed
    assert "tensor([1., 1.])" in printed
    assert "{'layer': 1, 'bias': 0.5, 'activation': 'tanh'} {'weight': 2.0, 'delay': 3}" in printed
    assert "Linear(in_features=8, out_features=16, bias=True)" in printed
    assert printed.count("True\n") == 4
    assert "False" not in printed


def test_a_module_that_is_pruned_and_then_made_float64_is_one_in_float64():
    """The next call of the module would make its weight anew; until then the old one is float32."""
    module = nn.Sequential(nn.Linear(3, 2))
    prune.l1_unstructured(module[0], "weight", 0.5)
    dag = interop.from_module(module.double(), threads=1)
    x = normal(4, 3)
    assert dag.edge_weight.dtype == torch.float64
    torch.testing.assert_close(dag(x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_weight_that_is_not_finite_is_refused(value):
    graph = nx.DiGraph()
    graph.add_edge("a", "b", weight=value)
    with pytest.raises(ValueError, match=r"values\[0\] is (nan|inf) in torch.float32; give finite numbers"):
        interop.from_networkx(graph)
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(layer.weight, value)
    with pytest.raises(ValueError, match="give finite numbers"):
        interop.from_module(layer, dtype=torch.float32)
