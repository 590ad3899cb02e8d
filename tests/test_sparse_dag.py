"""SparseDAG as users of torch, scipy and networkx expect it: weights, state, inputs, torch.func, a frozen manifold."""

import copy
import io
import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from cuda_device import DEVICE, kernels_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import sparse
from strategies import dags, manifolds, rng_input
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.nn import functional as F

from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG, Topology
from sparse_dnm.config import ACTIVATIONS, EDGE_MODES
from sparse_dnm.model import operator

DIAMOND = [(0, 2), (1, 2), (2, 3), (0, 3)]
DENSE_ACTIVATIONS = {
    "leaky_relu": lambda v: F.leaky_relu(v, 0.2),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "identity": lambda v: v,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def diamond(**options):
    return SparseDAG(Topology.from_edges(DIAMOND), **{"generator": generator(), "threads": 1, **options})


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def dense_outputs(model, parameters, x):
    """What the docstring of SparseDAG says, neuron by neuron, in torch's own operations on x (batch, n_inputs)."""
    topology, act = model.topology, DENSE_ACTIVATIONS[model.activation]
    edges = topology.edges().tolist()
    inputs, outputs, n = topology.inputs.tolist(), topology.outputs.tolist(), topology.n_neurons
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(range(n))
    plain = (set() if model.input_neurons else set(inputs)) | (set(outputs) if model.linear_outputs else set())
    place = {i: k for k, i in enumerate(i for i in range(n) if i not in plain)}
    z, m = {}, {}
    for i in nx.topological_sort(graph):
        total = x[:, inputs.index(i)] if i in inputs else torch.zeros_like(x[:, 0])
        read = z if model.linear_outputs and i in outputs else m
        for k, (source, reader) in enumerate(edges):
            if reader == i:
                total = total + parameters["edge_weight"][k] * read[source]
        if i in place:
            factor = parameters["weight"][place[i]] if "weight" in parameters else 1
            total = factor * total + parameters["bias"][place[i]]
        z[i] = total
        m[i] = total if i in inputs and not model.input_neurons else act(total)
    out = torch.stack([z[i] for i in outputs], dim=1)
    return out * out if model.output == "square" else out


@st.composite
def networks(draw, max_neurons=10):
    """A SparseDAG in float64 of a random DAG, with any activation, and now and then each of the other options."""
    edges, n = draw(dags(max_neurons=max_neurons))
    options = {"weight": draw(st.sampled_from([None, 1.0])), "input_neurons": draw(st.booleans())}
    topology = Topology.from_edges(edges, n)
    options["linear_outputs"] = draw(st.booleans())
    if options["linear_outputs"]:  # two outputs that read every other neuron
        extra = [(j, n + k) for j in range(n) for k in range(2) if (j + k) % 2]
        topology = Topology.from_edges([*edges.tolist(), *extra], n + 2, topology.inputs, [n, n + 1])
    names = {"activation": draw(st.sampled_from(ACTIVATIONS)), "output": draw(st.sampled_from(["linear", "square"]))}
    model = SparseDAG(topology, dtype=torch.float64, generator=generator(), threads=1, **names, **options)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name != "edge_weight":
                p.uniform_(-1, 1, generator=generator(1))
    return model


def parameters_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# -- weights from elsewhere ----------------------------------------------------------------------------------

FORMATS = ("csr", "csc", "coo", "dia", "lil", "dok", "bsr", "csr unsorted", "csr int64", "coo doubled", "csr_matrix")


def formatted(dense, name, dtype, rng):
    """The matrix in a format, its storage in a random order where the format has one."""
    dense = dense.astype(dtype)
    row, column = np.nonzero(dense)
    order = rng.permutation(len(row))
    row, column = row[order], column[order]
    values = dense[row, column]
    if name == "coo doubled":
        half = (values // 2).astype(dtype) if dtype is not bool else values
        rest = (values - half).astype(dtype) if dtype is not bool else values
        ij = np.concatenate([row, row]), np.concatenate([column, column])
        return sparse.coo_array((np.concatenate([half, rest]), ij), shape=dense.shape)
    if name == "csr unsorted":
        by_row = np.argsort(row, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(dense)))])
        return sparse.csr_array((values[by_row], column[by_row], indptr), shape=dense.shape)
    coo = sparse.coo_array((values, (row, column)), shape=dense.shape)
    if name == "csr int64":
        csr = coo.tocsr()
        csr.indices, csr.indptr = csr.indices.astype(np.int64), csr.indptr.astype(np.int64)
        return csr
    return sparse.csr_matrix(coo) if name == "csr_matrix" else coo.asformat(name, copy=True)


@given(dags(), st.sampled_from(FORMATS), st.sampled_from([np.float64, np.float32, np.int64, np.uint8, bool]), st.data())
def test_weights_come_along_from_any_scipy_matrix(dag, name, dtype, data):
    edges, n = dag
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dense = np.zeros((n, n))
    dense[edges[:, 1], edges[:, 0]] = rng.integers(1, 100, len(edges))
    if name == "bsr":  # blocks of one number: larger ones store the zeros in them
        matrix = sparse.csr_array(dense.astype(dtype)).tobsr((1, 1))
    else:
        matrix = formatted(dense, name, dtype, rng)
    before = copy.deepcopy(matrix)
    expected = dense.astype(dtype).astype(float)
    for rows, given_ in (("readers", matrix), ("sources", matrix.T)):
        model = SparseDAG.from_scipy(given_, rows=rows, dtype=torch.float64)
        assert np.array_equal(model.topology.to_scipy(model.edge_weight).toarray(), expected)
        assert np.array_equal(model.topology.edges(), Topology.from_scipy(given_, rows=rows).edges())
        assert model.topology.n_edges == len(edges)
        turned = model.topology.to_scipy(model.edge_weight, rows=rows).toarray()
        assert np.array_equal(turned, expected if rows == "readers" else expected.T)
    assert np.array_equal(matrix.toarray(), before.toarray())
    if name in ("csr unsorted", "coo doubled"):
        assert np.array_equal(matrix.data, before.data)


def test_a_stored_zero_is_an_edge_of_weight_zero():
    matrix = sparse.csr_array((np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 0, 1, 2])), shape=(3, 3))
    for given_ in (matrix, matrix.tocoo(), matrix.tocsc()):
        model = SparseDAG.from_scipy(given_, dtype=torch.float64, bias=[3.0, 4.0])
        assert model.topology.edges().tolist() == [[0, 1], [1, 2]]
        assert model.edge_weight.tolist() == [0, 2]
        assert model.bias.tolist() == [3, 4]
    cancelled = sparse.coo_array((np.array([1.0, -1.0]), ([1, 1], [0, 0])), shape=(2, 2))
    assert SparseDAG.from_scipy(cancelled).edge_weight.tolist() == [0]


def test_matrices_that_are_none_are_named():
    with pytest.raises(ValueError, match=r"ndarray of shape .* must be a square scipy sparse matrix"):
        SparseDAG.from_scipy(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="complex128 must hold real numbers"):
        SparseDAG.from_scipy(sparse.csr_array(np.array([[0, 0], [1j, 0]])))
    with pytest.raises(ValueError, match="rows='columns' is unknown; choose one of readers, sources"):
        SparseDAG.from_scipy(sparse.csr_array((2, 2)), rows="columns")
    with pytest.raises(ValueError, match="closes a cycle"):
        SparseDAG.from_scipy(sparse.csr_array(np.ones((2, 2))))


@given(dags(), st.randoms(use_true_random=False))
def test_a_graph_of_networkx_is_its_own_matrix_with_sources_as_rows(dag, random):
    edges, n = dag
    graph, names = nx.DiGraph(), [f"n{k}" for k in range(n)]
    random.shuffle(names)
    graph.add_nodes_from(names)
    for u, v in edges.tolist():
        if random.random() < 0.3:
            graph.add_edge(names[u], names[v])
        else:
            graph.add_edge(names[u], names[v], weight=random.choice([0, 1.5, -2]))
    matrix = nx.to_scipy_sparse_array(graph)
    one = SparseDAG.from_networkx(graph, dtype=torch.float64)
    other = SparseDAG.from_scipy(matrix, rows="sources", dtype=torch.float64)
    for model in (one, other):
        assert np.array_equal(model.topology.to_scipy(model.edge_weight, rows="sources").toarray(), matrix.toarray())
    assert torch.equal(one.edge_weight, other.edge_weight)
    topologies = Topology.from_networkx(graph), Topology.from_scipy(matrix, rows="sources"), other.topology
    for topology in topologies:
        for name in ("indptr", "indices", "inputs", "outputs"):
            np.testing.assert_array_equal(getattr(one.topology, name), getattr(topology, name))


def test_weights_of_arcs_are_their_attributes():
    graph = nx.DiGraph()
    graph.add_edge("a", "c", w=2)
    graph.add_edge("b", "c", w=np.float32(0.5))
    model = SparseDAG.from_networkx(graph, inputs=["b", "a"], outputs=["c"], weight="w", dtype=torch.float64)
    assert model(torch.tensor([[10.0, 1.0]], dtype=torch.float64)).tolist() == [[7.0]]
    drawn = SparseDAG.from_networkx(graph, weight=None, generator=generator())
    assert torch.equal(drawn.edge_weight, SparseDAG(drawn.topology, generator=generator()).edge_weight)
    with pytest.raises(ValueError, match="no arc has the attribute weight='wieght'; weight=None draws"):
        SparseDAG.from_networkx(graph, weight="wieght")
    graph.add_edge("a", "b", w="heavy")
    with pytest.raises(ValueError, match="arc 'a' -> 'b' has w='heavy', which is no number"):
        SparseDAG.from_networkx(graph, weight="w")


@given(dags())
def test_csr_arrays_make_the_topology_that_holds_them(dag):
    topology = Topology.from_edges(*dag)
    arrays = [getattr(topology, name) for name in ("indptr", "indices", "inputs", "outputs")]
    other = Topology.from_csr(*(torch.from_numpy(a) for a in arrays))
    for name in ("indptr", "indices", "inputs", "outputs", "levels", "t_edges"):
        np.testing.assert_array_equal(getattr(topology, name), getattr(other, name))


@pytest.mark.parametrize(
    ("indptr", "indices", "words"),
    [
        ([0, 0, 2], [0], "ascend from 0 to the number of indices, here 1"),
        ([0, 1, 0, 1], [0], "ascend"),
        ([1, 1], [], "ascend"),
        ([0], [], "one more than there are neurons"),
        ([0.0, 1.0], [0], "must be integers"),
        ([0, 0, 0, 2], [1, 0], "indices must ascend in each row"),
        ([0, 0, 2], [0, 0], "there twice"),
        ([0, 0, 1], [7], "out of range"),
        ([0, 1, 2], [1, 0], "closes a cycle"),
    ],
)
def test_arrays_that_are_no_csr_are_refused(indptr, indices, words):
    with pytest.raises(ValueError, match=words):
        Topology.from_csr(indptr, indices)


def test_the_examples_of_the_documentation_run(capsys):
    text = (Path(__file__).resolve().parent.parent / "docs" / "python.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "torch.Size([8, 4])" in printed
    assert torch.equal(names["same"](torch.ones(3, 2)), names["dag"](torch.ones(3, 2)))


# -- options -------------------------------------------------------------------------------------------------


@given(networks(), st.sampled_from([1, 3]))
@settings(max_examples=60)
def test_every_option_gives_the_outputs_and_gradients_of_the_dense_loop(model, batch):
    x = normal(batch, model.n_inputs, seed=2)
    weights = torch.linspace(-1, 1, batch * model.n_outputs, dtype=x.dtype).reshape(batch, -1)
    found = {}
    for name in ("model", "dense"):
        leaves = {"x": x.clone(), **parameters_of(model)}
        leaves = {key: value.requires_grad_() for key, value in leaves.items()}
        own = {key: value for key, value in leaves.items() if key != "x"}
        run = functional_call if name == "model" else dense_outputs
        out = run(model, own, leaves["x"])
        assert out.shape == (batch, model.n_outputs)
        gradients = torch.autograd.grad((out * weights).sum(), list(leaves.values()), materialize_grads=True)
        found[name] = [out.detach(), *gradients]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.cuda
def test_every_option_runs_on_the_kernels_of_cuda():
    topology = Topology.from_edges([(0, 2), (1, 2), (2, 3), (0, 3), (2, 4), (1, 4)], outputs=[4, 3])
    options = {"weight": [1.5, -1.0, 0.5], "bias": [0.1, 0.2, 0.3], "input_neurons": True, "linear_outputs": True}
    model = SparseDAG(
        topology, activation="tanh", output="square", dtype=torch.float64, generator=generator(), **options
    )
    x = normal(3, 2)
    expected = model(x).detach()
    torch.testing.assert_close(expected, dense_outputs(model, parameters_of(model), x))
    with kernels_of("cuda"):
        other = copy.deepcopy(model).to(DEVICE)
        torch.testing.assert_close(other(x.to(DEVICE)).detach().cpu(), expected, rtol=1e-12, atol=1e-12)
        found = operator.propagate(x.to(DEVICE), *arguments_of(other)).square().detach().cpu()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def arguments_of(model):
    """Those of the operator but for x."""
    arrays = model.indptr, model.indices, model.inputs, model.outputs
    functions = model.activation, model.input_neurons, model.linear_outputs
    return model.edge_weight, model.weight, model.bias, *arrays, *functions, "auto", 1


def test_outputs_that_are_linear_are_the_last_neurons_and_read_by_nobody():
    for edges, options in (
        (DIAMOND, {"outputs": [2]}),
        (DIAMOND, {"outputs": [2, 3]}),
        ([(0, 1)], {"n_neurons": 3, "outputs": [1, 2]}),
    ):
        with pytest.raises(ValueError, match=r"linear_outputs=True needs outputs that are neurons . \.\. ., the last"):
            SparseDAG(Topology.from_edges(edges, **options), linear_outputs=True)


def test_settings_are_named_and_given_by_keyword():
    topology = Topology.from_edges(DIAMOND)
    with pytest.raises(TypeError):
        SparseDAG(topology, None, None, "tanh")
    with pytest.raises(ValueError, match=r"weight of shape \(3,\) must be \(2,\)"):
        SparseDAG(topology, weight=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="output='cube' is unknown; choose one of linear, square"):
        SparseDAG(topology, output="cube")
    model = SparseDAG(topology, activation="tanh", weight=1.0, output="square", executor="columns")
    assert "2 inputs, 1 outputs, 4 neurons, 4 edges, depth 2, activation='tanh', output='square'" in repr(model)
    assert [name for name, _ in model.named_parameters()] == ["edge_weight", "bias", "weight"]
    assert [name for name, _ in SparseDAG(topology).named_parameters()] == ["edge_weight", "bias"]


def test_dtype_and_device_are_those_of_torch_where_none_is_given(monkeypatch):
    topology = Topology.from_edges(DIAMOND)
    assert diamond().edge_weight.dtype == torch.float32
    try:
        torch.set_default_dtype(torch.float64)
        assert diamond().bias.dtype == torch.float64
        torch.set_default_dtype(torch.bfloat16)
        with pytest.raises(ValueError, match=r"dtype=torch.bfloat16 has no kernels; choose torch.float32"):
            SparseDAG(topology)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        model = diamond()
        assert {t.device.type for t in model.state_dict().values()} == {"meta"}
        assert {t.device.type for t in diamond(device="cpu").state_dict().values()} == {"cpu"}
    assert {t.device.type for t in diamond(device="meta").state_dict().values()} == {"meta"}
    made = model.to_empty(device="cpu")
    assert made.indices.tolist() == topology.indices.tolist()
    made.load_state_dict(diamond().state_dict())
    x = normal(3, 2, dtype=torch.float32)
    assert torch.equal(made(x), diamond()(x))
    assigned = diamond(device="meta")
    assigned.load_state_dict(diamond().state_dict(), assign=True)
    assert torch.equal(assigned(x), diamond()(x))


def test_layers_keep_their_dtype():
    layers = [torch.nn.Linear(2, 3, dtype=torch.float64), torch.nn.Linear(3, 1, dtype=torch.float64)]
    x = normal(3, 2)
    model = SparseDAG.from_linear(layers, activation="tanh", threads=1)
    torch.testing.assert_close(model(x), layers[1](torch.tanh(layers[0](x))), rtol=1e-12, atol=1e-12)
    assert SparseDAG.from_linear(layers, dtype=torch.float32).bias.dtype == torch.float32


# -- state ---------------------------------------------------------------------------------------------------


def test_the_state_of_another_network_is_refused_with_one_error():
    a, b = ([(0, 3), (1, 3), (3, 4), (2, 4)], [(0, 3), (2, 3), (3, 4), (1, 4)])
    one, other = (SparseDAG(Topology.from_edges(e, inputs=[0, 1, 2]), threads=1) for e in (a, b))
    before = other.edge_weight.detach().clone()
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"indices\[1\] is 1, here 2\. Build .*from_csr") as error:
            other.load_state_dict(one.state_dict(), strict=strict)
    assert str(error.value).count("\n") == 1
    assert torch.equal(other.edge_weight, before)
    with pytest.raises(RuntimeError, match=r"indices holds 4 numbers, here 1"):
        SparseDAG(Topology.from_edges([(0, 1)])).load_state_dict(one.state_dict())
    with pytest.raises(RuntimeError, match=r"outputs\[0\] is 4, here 3"):
        SparseDAG(Topology.from_edges(a, inputs=[0, 1, 2], outputs=[3])).load_state_dict(one.state_dict())
    for options, words in (({"activation": "silu"}, "activation is 'leaky_relu', here 'silu'"),
                           ({"output": "square"}, "output is 'linear', here 'square'"),
                           ({"input_neurons": True}, "input_neurons is False, here True")):  # fmt: skip
        with pytest.raises(RuntimeError, match=words):
            SparseDAG(one.topology, **options).load_state_dict(one.state_dict())


def test_the_state_of_the_same_network_loads_wherever_it_is_nested():
    one, other = (torch.nn.Sequential(torch.nn.Linear(2, 2), diamond(generator=generator(s))) for s in (0, 1))
    x = normal(3, 2, dtype=torch.float32)
    assert other.load_state_dict(one.state_dict()).missing_keys == []
    assert torch.equal(one(x), other(x))
    assert set(one[1].state_dict()) == {"edge_weight", "bias", "indptr", "indices", "inputs", "outputs", "functions"}
    assert not any(t.is_floating_point() for t in one[1].buffers())


def test_a_state_of_weights_alone_still_loads():
    one, other = diamond(), diamond(generator=generator(1))
    state = {"edge_weight": one.edge_weight.detach(), "bias": one.bias.detach() + 1}
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert set(state) == {"edge_weight", "bias"}
    assert torch.equal(other.bias, one.bias + 1)
    with pytest.raises(RuntimeError, match="size mismatch for edge_weight"):
        SparseDAG(Topology.from_edges([(0, 1)])).load_state_dict(state)


def test_copies_pickles_and_files_compute_the_same(tmp_path):
    model, x = diamond(weight=1.5, executor="columns"), normal(3, 2, dtype=torch.float32)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), expected)
        assert other.executor.name == "columns"
    torch.save(model.state_dict(), tmp_path / "state.pt")
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    for state in (torch.load(tmp_path / "state.pt", weights_only=True), load_file(tmp_path / "state.safetensors")):
        arrays = (state[name] for name in ("indptr", "indices", "inputs", "outputs"))
        other = SparseDAG(Topology.from_csr(*arrays), weight=1.0, generator=generator(1))
        other.load_state_dict(state)
        assert torch.equal(other(x), expected)


def test_a_model_without_edges_and_biases_changes_its_dtype():
    model, x = SparseDAG(Topology.from_edges([], 3, [0, 1, 2], [0, 2])), torch.rand(2, 3)
    with torch.no_grad():
        assert torch.equal(model(x), x[:, [0, 2]])
        assert torch.equal(model.double()(x.double()), x.double()[:, [0, 2]])


def test_a_model_changes_its_dtype_but_not_to_half():
    model, x = diamond(), normal(3, 2, dtype=torch.float32)
    expected = model(x)
    torch.testing.assert_close(model.double()(x.double()), expected.double())
    assert torch.equal(model.float()(x), expected)
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(model).to(dtype)
        with pytest.raises(ValueError, match=rf"dtype={dtype} has no kernels; choose torch.float32 or torch.float64"):
            half(x.to(dtype))
    model.edge_weight.data = model.edge_weight.data.double()
    with pytest.raises(ValueError, match=r"edge_weight has dtype torch.float64 and bias torch.float32"):
        model(x)


# -- inputs --------------------------------------------------------------------------------------------------


def test_inputs_have_any_leading_dimensions():
    model, x = diamond(dtype=torch.float64), normal(2, 3, 2)
    rows = model(x.reshape(6, 2))
    assert torch.equal(model(x), rows.reshape(2, 3, 1))
    torch.testing.assert_close(model(x[0, 1]), rows[1], rtol=1e-12, atol=1e-12)
    assert model(x[:0]).shape == (0, 3, 1)
    for wrong in (x[..., :1], torch.ones((), dtype=x.dtype)):
        with pytest.raises(ValueError, match=r"it must be \(\.\.\., n_inputs=2\)"):
            model(wrong)


def test_an_empty_batch_has_zero_gradients():
    model, x = diamond(weight=1.0), torch.zeros(0, 2, requires_grad=True)
    out = model(x)
    assert out.shape == (0, 1)
    out.sum().backward()
    assert x.grad.shape == (0, 2)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    with torch.no_grad():
        assert model(x).shape == (0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_autocast_around_it_leaves_float32(dtype, mode):
    model, x = diamond(), normal(3, 2, dtype=torch.float32)
    with mode(), torch.autocast("cpu", dtype=dtype):
        low = torch.nn.functional.linear(x, torch.eye(2))
        assert low.dtype == dtype
        out = model(low)
    assert out.dtype == torch.float32
    assert torch.equal(out.clone(), model(low.float()))
    if mode is torch.enable_grad:
        leaf = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            model(leaf).sum().backward()
        assert leaf.grad.dtype == dtype
        assert leaf.grad.abs().sum() > 0


def test_a_model_made_in_inference_mode_trains():
    with torch.inference_mode():
        model = diamond()
        model(torch.ones(3, 2))
    model(torch.ones(3, 2)).sum().backward()
    assert model.bias.grad is not None


# -- torch.func ----------------------------------------------------------------------------------------------


def tree_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


@given(networks(max_neurons=7))
@settings(max_examples=20)
def test_transforms_of_torch_give_those_of_the_dense_loop(model):
    own, x = parameters_of(model), normal(3, model.n_inputs, seed=2)

    def ours(p, x):
        return functional_call(model, p, (x,))

    def dense(p, x):
        return dense_outputs(model, p, x.reshape(-1, model.n_inputs)).reshape(*x.shape[:-1], model.n_outputs)

    def loss_of(run):
        return lambda p, x: run(p, x).square().sum()

    expected = dense(own, x)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            torch.testing.assert_close(vmap(ours, (None, 0))(own, x), expected)
            torch.testing.assert_close(vmap(ours, (None, 1), 1)(own, x.t()), expected.t())
    both = {name: torch.stack([p, 2 * p]) for name, p in own.items()}
    torch.testing.assert_close(vmap(ours, (0, None))(both, x), torch.stack([ours(own, x), dense(pick(both, 1), x)]))
    pairs = torch.stack([x, x + 1])
    torch.testing.assert_close(vmap(ours)(both, pairs)[1], dense(pick(both, 1), x + 1))
    tree_close(grad(loss_of(ours))(own, x), grad(loss_of(dense))(own, x))
    samples = [grad(loss_of(dense))(own, row) for row in x]
    tree_close(vmap(grad(loss_of(ours)), (None, 0))(own, x), {n: torch.stack([s[n] for s in samples]) for n in own})
    ensemble = vmap(grad(loss_of(ours)), (0, None))(both, x)
    tree_close(pick(ensemble, 1), grad(loss_of(dense))(pick(both, 1), x))
    torch.testing.assert_close(jacrev(ours, 1)(own, x), jacrev(dense, 1)(own, x))
    tree_close(jacrev(ours)(own, x), jacrev(dense)(own, x))
    (by_p, by_x), (dense_p, dense_x) = (vjp(run, own, x)[1](torch.ones_like(expected)) for run in (ours, dense))
    tree_close(by_p, dense_p)
    torch.testing.assert_close(by_x, dense_x)
    assert {name: p.grad for name, p in model.named_parameters()} == dict.fromkeys(own)


def pick(tree, k):
    return {name: value[k] for name, value in tree.items()}


def test_second_derivatives_and_forward_mode_are_refused():
    model, x = diamond(dtype=torch.float64), normal(3, 2).requires_grad_()
    (by_x,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivatives are not available.*take differences of first"):
        by_x.square().sum().backward()

    def total(x):
        return model(x).square().sum()

    for twice in (jacrev(jacrev(total)), grad(lambda x: grad(total)(x).sum())):
        with pytest.raises(RuntimeError, match="second derivatives are not available"):
            twice(x.detach())
    for forward in (hessian(total), lambda x: jvp(total, (x,), (x,))):
        with pytest.raises(NotImplementedError, match="forward mode AD"):
            forward(x.detach())


# -- a frozen manifold ---------------------------------------------------------------------------------------


@given(manifolds(), st.sampled_from([1, 3]))
@settings(max_examples=60)
def test_a_manifold_freezes_into_a_dag_with_the_same_outputs_and_gradients(model, batch):
    dag, x = model.to_dag(), rng_input(model, batch)
    found = []
    for each in (model, dag):
        leaf = x.clone().requires_grad_()
        out = each(leaf)
        out.square().sum().backward()
        found.append((out.detach(), leaf.grad, each.weight.grad, each.bias.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1][0], dense_outputs(dag, parameters_of(dag), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("edges", EDGE_MODES)
@pytest.mark.parametrize("output", ["linear", "square"])
def test_a_frozen_manifold_is_that_of_the_present_parameters_and_trains_alone(edges, output):
    config = ManifoldConfig.preset("toy", edges=edges, output=output, weight=(1, 0.3), bias=(0, 0.3))
    model = DynamicManifold(config, generator(), executor="columns", threads=1)
    x = normal(3, 5, dtype=torch.float32)
    model(x)
    with torch.no_grad():
        model.mu.add_(1.0)
    dag = model.to_dag()
    assert (dag.executor.name, dag.executor.threads) == ("columns", 1)
    expected = model(x)
    torch.testing.assert_close(dag(x), expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(dag.topology.edges(), model.topology.edges())
    optimizer = torch.optim.SGD(dag.parameters(), 1e-3)
    before = dag(x).square().mean()
    for _ in range(5):
        optimizer.zero_grad()
        dag(x).square().mean().backward()
        optimizer.step()
    assert dag(x).square().mean() < before
    assert torch.equal(model(x), expected)
    other = model.to_dag()
    other.load_state_dict(dag.state_dict())
    assert torch.equal(other(x), dag(x))
