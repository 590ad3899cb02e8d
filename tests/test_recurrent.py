"""Recurrent networks: the kernels against plain loops and torch's own cells, gradients through time, states."""

import copy
import pickle

import naive
import numpy as np
import pytest
import strategies
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dnm import DynamicManifold, ManifoldConfig, RecurrentDAG, RecurrentState, SparseDAG, Topology
from sparse_dnm.config import GATED, NEURONS
from sparse_dnm.engine.autograd import NO_SECOND

F64 = torch.float64
SMALL = {"n_neurons": 14, "n_inputs": 2, "n_outputs": 2, "period": 4.0, "cutoff": -2.5, "sigma": (4.0, 1.0)}


def manifold(neuron="lstm", n_memory=0, dtype=F64, seed=0, **changes):
    """A small recurrent manifold; n_neurons without those of the memory."""
    config = {**SMALL, **changes}
    config["n_neurons"] += 2 * n_memory
    made = ManifoldConfig(**config, neuron=neuron, n_memory=n_memory)
    return DynamicManifold(made, torch.Generator().manual_seed(seed), dtype, threads=1)


@st.composite
def networks(draw):
    """A RecurrentDAG or a recurrent manifold of any kind."""
    neuron, seed = draw(st.sampled_from(NEURONS)), draw(st.integers(0, 2**31))
    n_memory = draw(st.integers(0 if neuron != "memoryless" else 1, 2))
    if draw(st.booleans()):
        edges = draw(st.sampled_from(["closeness", "free", "weighted"]))
        activation, output = draw(st.sampled_from(["leaky_relu", "tanh"])), draw(st.sampled_from(["linear", "square"]))
        omega = (0.0, 1.0)
        made = manifold(neuron, n_memory, seed=seed, edges=edges, activation=activation, output=output, omega=omega)
        return made.to_dag() if draw(st.booleans()) else made
    edges, n = draw(strategies.dags(12))
    some = np.random.default_rng(seed)
    extra = [(n + k, j) for k in range(n_memory + 1) for j in range(n) if some.random() < 0.3 and j in edges[:, 1]]
    extra += [(j, n + n_memory + 1 + k) for k in range(n_memory + 1) for j in range(n) if some.random() < 0.4]
    n += 2 * n_memory + 2
    sources = set(np.unique(edges[:, 1]).tolist()) | {reader for _, reader in extra}
    free = [i for i in range(n) if i not in sources]
    outputs = [*some.permutation(free[:0]), *range(n - n_memory - 1, n)]
    topology = Topology.from_edges([*edges.tolist(), *extra], n, free_inputs(free, n, n_memory), outputs)
    hidden = n - len(topology.inputs) - len(topology.outputs)
    if hidden == 0 and n_memory == 0:
        return manifold(neuron if neuron != "memoryless" else "gru", seed=seed)
    made = RecurrentDAG(
        topology, neuron=neuron, n_memory=n_memory, activation=draw(st.sampled_from(["relu", "silu"])), dtype=F64,
        generator=torch.Generator().manual_seed(seed), threads=1,
    )  # fmt: skip
    with torch.no_grad():
        made.bias.normal_(0, 0.5, generator=torch.Generator().manual_seed(seed))
    return made


def free_inputs(free, n, n_memory):
    """Neurons without sources that are no outputs; the memory's last."""
    first_output = n - n_memory - 1
    memory = list(range(first_output - n_memory, first_output)) if n_memory else []
    return [i for i in free if i < first_output and i not in memory] + memory


class Parts:
    """What plain loops need of a recurrent network: its graph as lists, its numbers as tensors with their graph."""

    def __init__(self, model):
        if isinstance(model, RecurrentDAG):
            t, self.neuron, self.n_memory = model.topology, model.neuron, model.n_memory
            self.squared = model.output == "square"
            n = t.n_neurons
            self.inputs, self.outputs = t.inputs.tolist(), t.outputs.tolist()
            self.hidden = [i for i in range(n) if i not in self.inputs and i not in self.outputs]
            self.linear = [i in self.outputs and model.linear_outputs for i in range(n)]
            self.strengths = model.edge_weight
            self.weight, self.bias = torch.ones(n, dtype=F64), torch.zeros(n, dtype=F64)
            gated = self.hidden if self.neuron in GATED else []
            plain = [*(self.inputs if not model.input_neurons else []), *gated]
            biased = torch.tensor([i for i in range(n) if i not in plain and not self.linear[i]])
            self.bias = self.bias.index_put((biased,), model.bias)
            if model.weight is not None:
                self.weight = self.weight.index_put((biased,), model.weight)
            self.activations = [model.activation] * n
        else:
            c, t = model.config, model.topology
            self.neuron, self.n_memory, self.squared = c.neuron, c.n_memory, c.output == "square"
            g, n = c.graph, c.n_neurons
            self.inputs, self.hidden = list(range(g.n_inputs)), list(range(g.n_inputs, g.n_sources))
            self.outputs, self.linear = list(range(g.n_sources, n)), [i >= g.n_sources for i in range(n)]
            self.strengths, rest = model._evaluate().strengths, n - c.n_weighted
            self.weight = torch.cat([model.weight, torch.ones(rest, dtype=F64)])
            self.bias = torch.cat([model.bias, torch.zeros(rest, dtype=F64)])
            self.activations = [c.activation] * n
            plain = self.hidden if c.neuron in GATED else []
        for i in plain:
            self.activations[i] = "identity"
        self.gates = model._gates()
        self.edges, self.n = t.edges(), n

    def naive(self, x, lengths, state=None):
        """Outputs and state by loops in numpy."""
        W = np.zeros((self.n, self.n))
        W[self.edges[:, 1], self.edges[:, 0]] = self.strengths.detach().numpy()
        W[self.edges[:, 1], self.edges[:, 0]] += (W[self.edges[:, 1], self.edges[:, 0]] == 0) * 1e-300
        numbers = (v.detach().numpy() for v in (self.weight, self.bias, self.gates))
        out, state = naive.forward_recurrent(
            x.numpy(), lengths, W, *numbers, self.neuron, self.inputs, self.hidden, self.outputs, self.n_memory,
            self.linear, self.activations, state,
        )  # fmt: skip
        return out**2 if self.squared else out, state

    def loop(self, x, lengths, tbptt=0):
        """Outputs by torch's operations, one neuron and step after the other."""
        batch, time = x.shape[:2]
        zeros = torch.zeros(batch, dtype=F64)
        h, c = [zeros] * len(self.hidden), [zeros] * len(self.hidden)
        memory, result = [zeros] * self.n_memory, []
        order = naive.execution_order(self._reads())
        act = {
            "leaky_relu": lambda z: torch.nn.functional.leaky_relu(z, 0.2), "relu": torch.relu, "tanh": torch.tanh,
            "silu": torch.nn.functional.silu, "identity": lambda z: z,
        }  # fmt: skip
        for t in range(time):
            if tbptt and t and t % tbptt == 0:
                h, c, memory = ([v.detach() for v in part] for part in (h, c, memory))
            alive = torch.tensor([t < length for length in lengths])
            given, value, z, m = [*x[:, t].unbind(1), *memory], {}, {}, {}
            for i in order:
                total = given[self.inputs.index(i)] if i in self.inputs else zeros
                for e, (j, reader) in enumerate(self.edges.tolist()):
                    if reader == i:
                        total = total + self.strengths[e] * (z[j] if self.linear[i] else m[j])
                if i in self.hidden and self.neuron != "memoryless":
                    k = self.hidden.index(i)
                    new = cell(self.neuron, self.gates[:, k], total, h[k], c[k])
                    h[k], c[k] = (torch.where(alive, a, b) for a, b in zip(new, (h[k], c[k]), strict=True))
                    total = h[k]
                value[i] = total
                z[i] = self.weight[i] * total + self.bias[i]
                m[i] = act[self.activations[i]](z[i])
            outs = [torch.where(alive, z[i], zeros) for i in self.outputs]
            first = len(outs) - self.n_memory
            memory = [torch.where(alive, a, b) for a, b in zip(outs[first:], memory, strict=True)]
            result.append(torch.stack(outs[:first], 1))
        out = torch.stack(result, 1)
        return out * out if self.squared else out

    def _reads(self):
        reads = np.zeros((self.n, self.n), bool)
        reads[self.edges[:, 1], self.edges[:, 0]] = True
        return reads


def cell(neuron, gates, a, h, c):
    """As naive.cell, in torch."""
    if neuron == "ctrnn":
        return h + torch.sigmoid(gates[0]) * (a - h), c
    if neuron == "gru":
        r, z = (torch.sigmoid(gates[k] * a + gates[3 + k] * h + gates[6 + k]) for k in (0, 1))
        n = torch.tanh(gates[2] * a + gates[8] + r * (gates[5] * h + gates[9]))
        return (1 - z) * n + z * h, c
    i, f, o = (torch.sigmoid(gates[k] * a + gates[4 + k] * h + gates[8 + k]) for k in (0, 1, 3))
    c = f * c + i * torch.tanh(gates[2] * a + gates[6] * h + gates[10])
    return o * torch.tanh(c), c


def width(model):
    return model._widths()[0]


def sequences(model, batch, time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, width(model), generator=generator, dtype=F64)
    return x, torch.randint(1, time + 1, (batch,), generator=generator).tolist()


def gradients(model, outputs, x):
    """Gradients of a sum of outputs by x and by all parameters that have one."""
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).reshape(outputs.shape)
    named = {"x": x, **dict(model.named_parameters())}
    found = torch.autograd.grad((weights * outputs).sum(), list(named.values()), allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(named.items(), found, strict=True)}


@given(networks(), st.sampled_from([(1, 1), (1, 19), (3, 3), (3, 9), (40, 2)]))
@settings(max_examples=60)
def test_outputs_and_states_are_those_of_plain_loops(model, shape):
    x, lengths = sequences(model, *shape)
    with torch.no_grad():
        out, state = model(x, lengths, return_state=True)
    expected, (h, c, memory) = Parts(model).naive(x, lengths)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-10, atol=1e-12)
    for name, found, exact in (("h", state.h, h), ("c", state.c, c), ("memory", state.memory, memory)):
        live = computed(model, name)
        if found.shape[1]:
            np.testing.assert_allclose(found.numpy()[:, live], exact[:, live], rtol=1e-10, atol=1e-12)


def computed(model, name):
    """Which numbers of a state are computed: those of neurons that reach an output."""
    parts, t = Parts(model), model.topology
    return slice(None) if name == "memory" else t.live[np.array(parts.hidden, int)]


@given(networks(), st.sampled_from([(1, 18, 0), (3, 4, 0), (4, 9, 0), (2, 7, 3), (40, 3, 2)]))
@settings(max_examples=40)
def test_gradients_are_those_of_a_loop_in_torch_also_where_they_are_cut(model, shape):
    batch, time, tbptt = shape
    x, lengths = sequences(model, batch, time)
    x.requires_grad_()
    found = gradients(model, model(x, lengths, tbptt=tbptt), x)
    expected = gradients(model, Parts(model).loop(x, lengths, tbptt), x)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("n_memory", [0, 1])
def test_gradcheck_of_inputs_state_and_parameters(neuron, n_memory):
    if neuron == "memoryless" and not n_memory:
        n_memory = 2
    model = manifold(neuron, n_memory, activation="tanh", n_neurons=9, cutoff=-1.5)
    assert model.connected
    x, lengths = sequences(model, 2, 4)
    state = RecurrentState(*(torch.randn_like(t) for t in model.initial_state(2).parts))
    names, values = zip(*model.named_parameters(), strict=True)
    leaves = [t.detach().requires_grad_() for t in (x, *state.parts)]

    def run(x, h, c, memory, *parameters):
        call = torch.func.functional_call
        named = dict(zip(names, parameters, strict=True))
        out, after = call(model, named, (x, lengths, RecurrentState(h, c, memory)), {"return_state": True})
        return out, *(part for part in after.parts if part.numel())

    assert torch.autograd.gradcheck(run, (*leaves, *values), atol=1e-6)


def one_neuron(kind, gates):
    """A network input -> neuron -> output whose outputs are the neuron's values."""
    topology = Topology.from_edges([(0, 1), (1, 2)], 3)
    model = RecurrentDAG(topology, [1.0, 1.0], neuron=kind, dtype=F64)
    rows = [gates["weight_ih_l0"], gates["weight_hh_l0"]]
    with torch.no_grad():
        for parameter, value in zip((model.gate_weight, model.gate_recurrent), rows, strict=True):
            parameter.copy_(value)
        b, b_h = gates["bias_ih_l0"], gates["bias_hh_l0"]
        biases = b + b_h if kind == "lstm" else torch.cat([b[:2] + b_h[:2], b[2:], b_h[2:]])
        model.gate_bias.copy_(biases[:, None])
    return model


@pytest.mark.parametrize(("kind", "peer"), [("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)])
def test_one_neuron_is_torchs_cell_of_one_unit(kind, peer):
    torch.manual_seed(0)
    reference = peer(1, 1, batch_first=True, dtype=F64)
    model = one_neuron(kind, dict(reference.named_parameters()))
    x, x2 = (torch.randn(3, 5, 1, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    (expected, hidden), (out, state) = reference(x), model(x2, return_state=True)
    torch.testing.assert_close(out, expected)
    h = hidden[0] if kind == "lstm" else hidden
    torch.testing.assert_close(state.h, h[0])
    if kind == "lstm":
        torch.testing.assert_close(state.c, hidden[1][0])
    expected.square().sum().backward()
    out.square().sum().backward()
    torch.testing.assert_close(x2.grad, x.grad)
    torch.testing.assert_close(model.gate_weight.grad, reference.weight_ih_l0.grad)
    torch.testing.assert_close(model.gate_recurrent.grad, reference.weight_hh_l0.grad)
    last = reference.bias_hh_l0.grad[2:] if kind == "gru" else reference.bias_hh_l0.grad[:0]
    torch.testing.assert_close(model.gate_bias.grad[:, 0], torch.cat([reference.bias_ih_l0.grad, last]))


def test_a_manifold_of_one_lstm_neuron_is_torchs_lstm():
    sizes = {"n_neurons": 3, "n_inputs": 1, "n_outputs": 1, "activation": "identity", "cutoff": -5.0, "mu": (0.0, 0.0)}
    model = manifold("lstm", edges="free", omega=(1.0, 0.3), **sizes)
    assert model.n_edges == 3
    x, _ = sequences(model, 2, 6)
    reference = torch.nn.LSTM(1, 1, batch_first=True, dtype=F64)
    strengths = dict(zip(map(tuple, model.topology.edges().tolist()), model.strengths.tolist(), strict=True))
    with torch.no_grad():
        reference.weight_ih_l0.copy_(model.gate_weight * strengths[0, 1])
        reference.weight_hh_l0.copy_(model.gate_recurrent)
        reference.bias_ih_l0.copy_(model.gate_bias[:, 0])
        reference.bias_hh_l0.zero_()
        z = model.weight * x + model.bias
        torch.testing.assert_close(model(x), strengths[1, 2] * reference(z)[0] + strengths[0, 2] * z)


@pytest.mark.parametrize(("neuron", "n_memory"), [("lstm", 0), ("lstm", 2), ("ctrnn", 0), ("memoryless", 1)])
def test_steps_one_by_one_give_the_outputs_of_the_whole_sequence(neuron, n_memory):
    model = manifold(neuron, n_memory)
    x, _ = sequences(model, 2, 6)
    whole, last_state = model(x, return_state=True)
    state, outs = None, []
    for t in range(6):
        out, state = model.step(x[:, t], state)
        outs.append(out)
        state = state.detach()
    torch.testing.assert_close(torch.stack(outs, 1), whole)
    first, middle = model(x[:, :2], return_state=True)
    torch.testing.assert_close(torch.cat([first, model(x[:, 2:], state=middle)], 1), whole)
    for part, expected in zip(state.parts, last_state.parts, strict=True):
        torch.testing.assert_close(part, expected)


def test_a_state_is_reset_for_some_samples_only():
    model = manifold("gru", 1)
    x, _ = sequences(model, 3, 2)
    _, state = model(x, return_state=True)
    after = state.reset(torch.tensor([True, False, True]))
    assert (after.h[[0, 2]] == 0).all()
    assert (after.memory[[0, 2]] == 0).all()
    assert torch.equal(after.h[1], state.h[1])
    fresh, _ = model.step(x[:, 0])
    again, _ = model.step(x[:, 0], after)
    assert torch.equal(again[[0, 2]], fresh[[0, 2]])
    with pytest.raises(ValueError, match=r"which is torch.float64 \(3,\); it must be torch.bool"):
        state.reset(torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("n_memory", [0, 1])
def test_after_its_length_a_sequence_has_outputs_of_zero_and_keeps_its_state(n_memory):
    model = manifold("lstm", n_memory)
    x, _ = sequences(model, 3, 5)
    lengths = [5, 2, 3]
    padded = x.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = float("nan")  # what is behind the end is not read
    out, state = model(padded.requires_grad_(), torch.tensor(lengths), return_state=True)
    last = model(padded, lengths, last=True)
    for row, length in enumerate(lengths):
        alone, end = model(x[row : row + 1, :length], return_state=True)
        torch.testing.assert_close(out[row, :length], alone[0])
        assert (out[row, length:] == 0).all()
        torch.testing.assert_close(last[row], alone[0, -1])
        torch.testing.assert_close(state.h[row], end.h[0])
    (out.sum() + state.c.sum()).backward()
    assert torch.isfinite(padded.grad).all()
    assert (padded.grad[1, 2:] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_packed_sequence_gives_a_packed_sequence():
    from torch.nn.utils.rnn import pack_padded_sequence

    model, lengths = manifold("gru"), torch.tensor([2, 4, 3])
    x, _ = sequences(model, 3, 4)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected = pack_padded_sequence(model(x, lengths), lengths, batch_first=True, enforce_sorted=False)
    found = model(packed)
    assert torch.equal(found.data, expected.data)
    assert torch.equal(found.batch_sizes, expected.batch_sizes)
    with pytest.raises(ValueError, match="has its lengths"):
        model(packed, lengths)


@pytest.mark.parametrize("neuron", ["lstm", "gru", "ctrnn"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_few_long_sequences_give_the_numbers_that_they_give_among_others(neuron, batch):
    """A few run level by level beside each other, many one neuron after the other: also states, both ways."""
    model = manifold(neuron, n_neurons=30)
    x, _ = sequences(model, 5, 21)
    found = []
    for samples in (slice(0, batch), slice(0, 5)):
        given = x[samples].clone().requires_grad_()
        state = RecurrentState(
            *(torch.full_like(t, 0.3).requires_grad_() for t in model.initial_state(len(given)).parts)
        )
        out, after = model(given, [21, 9, 1, 16, 3][samples], state, return_state=True)
        loss = out[:batch].square().sum() + sum(part[:batch].sin().sum() for part in after.parts)
        tensors = [given, *(t for t in state.parts if t.numel()), *model.parameters()]
        slopes = torch.autograd.grad(loss, tensors)
        rows = len(tensors) - len(list(model.parameters()))
        found.append([out[:batch], *(t[:batch] for t in slopes[:rows]), *slopes[rows:]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("neuron", "n_memory"), [("lstm", 0), ("gru", 1)])
def test_recomputed_parts_give_the_same_outputs_and_gradients(neuron, n_memory):
    model = manifold(neuron, n_memory)
    for batch, time, tbptt in ((3, 7, 5), (2, 40, 0)):
        x, lengths = sequences(model, batch, time)
        x.requires_grad_()
        expected = gradients(model, model(x, lengths, tbptt=tbptt), x)
        for every in (1, 2, 4, 9):  # of which some cut what is one block otherwise
            found = gradients(model, model(x, lengths, tbptt=tbptt, recompute_every=every), x)
            for name in found:
                torch.testing.assert_close(found[name], expected[name])


def test_recomputed_parts_keep_less():
    """What the graph keeps is O(time / every), where all is kept O(time)."""
    model = manifold("lstm")
    x, _ = sequences(model, 5, 64)

    def kept(every):
        parts = model(x, recompute_every=every).grad_fn.kept.saved.parts
        return sum(0 if a is None else a.nbytes for p in parts for a in (p.x, p.m, p.saved, p.state))

    assert kept(16) < kept(0) / 10


def test_memory_outputs_learn_although_no_objective_names_them():
    model = manifold("memoryless", 2, n_neurons=12, seed=1)
    x, _ = sequences(model, 4, 5)
    found = gradients(model, model(x.requires_grad_(), last=True), x)
    assert found["x"][:, 0].abs().sum() > 0  # through the memory: there is no other way from the first step
    rows = model.config.graph.n_hidden + model.config.n_outputs
    assert found["alpha"][rows:].abs().sum() > 0


@pytest.mark.parametrize(("neuron", "n_memory"), [("lstm", 0), ("ctrnn", 2)])
def test_the_bits_do_not_depend_on_the_number_of_threads(neuron, n_memory):
    config = {**SMALL, "n_neurons": 40 + 2 * n_memory}
    made = ManifoldConfig(**config, neuron=neuron, n_memory=n_memory)
    found = []
    for threads in (1, 2):
        model = DynamicManifold(made, torch.Generator().manual_seed(0), F64, threads=threads)
        x, lengths = sequences(model, 50, 4)
        x.requires_grad_()
        out = model(x, lengths)
        found.append([out.detach(), *gradients(model, out, x).values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_float32_is_near_float64_in_tiles_of_both_widths():
    wide, narrow = manifold("lstm", 0, F64, n_neurons=30), manifold("lstm", 0, torch.float32, n_neurons=30)
    with torch.no_grad():
        for p, q in zip(narrow.parameters(), wide.parameters(), strict=True):
            p.copy_(q)
    for batch in (3, 40):
        x, lengths = sequences(wide, batch, 6)
        a, b = wide(x, lengths), narrow(x.float(), lengths)
        torch.testing.assert_close(b.double(), a, rtol=1e-4, atol=1e-4)
        (ga,), (gb,) = (torch.autograd.grad(y.sum(), [m.gate_weight]) for y, m in ((a, wide), (b, narrow)))
        torch.testing.assert_close(gb.double(), ga, rtol=1e-3, atol=1e-3)


def test_candidates_below_the_cutoff_have_the_gradient_of_an_edge_summed_over_time():
    """kappa times dL/dD_ij of an edge in their place: found by differences of the network with that edge."""
    model = manifold("lstm", 1, edges="free", omega=(0.0, 0.6), n_neurons=10, cutoff=-1.0, seed=2)
    x, lengths = sequences(model, 3, 4)
    model.kappa = 1.0
    out = model(x, lengths)
    closeness = model.evaluation.graph.closeness
    (found,) = torch.autograd.grad(out.sum(), [closeness])
    model.kappa = 0.0
    (exact,) = torch.autograd.grad(model(x, lengths).sum(), [model.evaluation.graph.closeness], allow_unused=True)
    ring = found if exact is None else found - exact
    parts, c = Parts(model), torch.sigmoid(model.cutoff).item()
    candidates, first = model.candidates, model.config.graph.n_inputs
    readers, sources = first + np.repeat(np.arange(model.config.n_rows), np.diff(candidates.indptr)), candidates.indices
    d = model.evaluation.values.d
    checked = 0
    for k, (i, j) in enumerate(zip(readers.tolist(), sources.tolist(), strict=True)):
        if abs(d[k]) > c or not model.topology.live[i]:
            continue
        plain = Parts(model)
        plain.edges = np.concatenate([parts.edges, [[j, i]]])
        extra = torch.zeros(1, dtype=F64, requires_grad=True)
        plain.strengths = torch.cat([parts.strengths.detach(), extra])
        (slope,) = torch.autograd.grad(plain.loop(x, lengths).sum(), [extra])
        assert ring[k].item() == pytest.approx(slope.item() / (1 - c), rel=1e-7, abs=1e-9)
        checked += 1
    assert checked > 3


# -- a manifold as a RecurrentDAG ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("output", ["linear", "square"])
def test_a_manifold_as_a_recurrent_dag_has_its_outputs_and_states(dtype, neuron, output):
    n_memory = 2 if neuron == "memoryless" else 1
    model = manifold(neuron, n_memory, dtype, output=output, activation="tanh", seed=3)
    dag = model.to_dag()
    assert (dag.neuron, dag.n_memory, dag.activation, dag.output) == (neuron, n_memory, "tanh", output)
    assert dag.topology.n_edges == model.n_edges
    x, lengths = sequences(model, 5, 7)
    x, limit = x.to(dtype), {"rtol": 1e-12, "atol": 1e-12} if dtype == F64 else {"rtol": 1e-6, "atol": 1e-6}
    state = RecurrentState(*(torch.full_like(part, 0.3) for part in model.initial_state(5).parts))
    for options in ({}, {"lengths": lengths}, {"lengths": lengths, "state": state, "last": True}):
        (out, after), (expected, end) = (each(x, **options, return_state=True) for each in (dag, model))
        torch.testing.assert_close(out, expected, **limit)
        for part, exact in zip(after.parts, end.parts, strict=True):
            torch.testing.assert_close(part, exact, **limit)
    (out, after), (expected, end) = (each.step(x[:, 0], state) for each in (dag, model))
    torch.testing.assert_close(out, expected, **limit)
    torch.testing.assert_close(after.h, end.h, **limit)
    weights = dict(model.named_parameters())
    assert all(p.equal(weights[name]) for name, p in dag.named_parameters() if name != "edge_weight")
    assert all(p is not weights.get(name) for name, p in dag.named_parameters())
    again = copy.deepcopy(dag)
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    again.load_state_dict(dag.state_dict())
    assert torch.equal(again(x), dag(x))


def test_a_recurrent_dag_of_a_manifold_can_be_trained():
    dag = manifold("gru", 1).to_dag()
    x, lengths = sequences(dag, 4, 5)
    before, optimizer = dag(x, lengths).square().sum(), torch.optim.SGD(dag.parameters(), 1e-3)
    before.backward()
    assert all(p.grad is not None for p in dag.parameters())
    optimizer.step()
    assert dag(x, lengths).square().sum() < before


# -- modules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [manifold, lambda: one_neuron("lstm", dict(torch.nn.LSTM(1, 1).named_parameters()))])
def test_copies_pickles_and_state_dicts_give_the_same_outputs(make):
    model = make()
    x, _ = sequences(model, 2, 3)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
    other = make()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected)


def test_the_state_of_another_topology_is_refused():
    one = RecurrentDAG(Topology.from_edges([(0, 1), (1, 2)], 3))
    two = RecurrentDAG(Topology.from_edges([(0, 1), (0, 2)], 4, [0, 3], [2]))
    with pytest.raises(RuntimeError, match="indptr of the state is that of another topology"):
        one.load_state_dict(two.state_dict())


def test_second_derivatives_are_refused():
    model = manifold()
    x, _ = sequences(model, 1, 2)
    x.requires_grad_()
    (first,) = torch.autograd.grad(model(x).sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match=NO_SECOND[:40]):
        first.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (torch.zeros(2, 2, dtype=F64),),
            {},
            r"x has shape \(2, 2\); a recurrent network takes \(batch, time >= 1, n_inp",
        ),
        ((torch.zeros(2, 0, 2, dtype=F64),), {}, r"x has shape \(2, 0, 2\)"),
        ((torch.zeros(2, 3, 4, dtype=F64),), {}, r"it must be \(..., n_inputs=2\)"),
        ((torch.zeros(2, 3, 2),), {}, "x has dtype torch.float32 but the model has torch.float64"),
        ((torch.zeros(2, 3, 2, dtype=F64), [3]), {}, r"lengths is int64 \(1,\); it must be integers \(2,\)"),
        ((torch.zeros(2, 3, 2, dtype=F64), [3, 0]), {}, r"lengths\[1\]=0 must be in 1 .. 3"),
        ((torch.zeros(2, 3, 2, dtype=F64), torch.tensor([4, 3])), {}, r"lengths\[0\]=4 must be in 1 .. 3"),
        ((torch.zeros(2, 3, 2, dtype=F64), [1.0, 2.0]), {}, "lengths is float64"),
        ((torch.zeros(2, 3, 2, dtype=F64),), {"tbptt": -1}, "tbptt=-1 must be an integer >= 0"),
        ((torch.zeros(2, 3, 2, dtype=F64),), {"recompute_every": 1.5}, "recompute_every=1.5 must be an integer"),
        ((torch.zeros(2, 3, 2, dtype=F64),), {"state": torch.zeros(2, 10)}, "state is a Tensor; give a RecurrentState"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        manifold()(*arguments, **options)


def test_a_state_of_another_batch_and_a_step_without_batch_are_named():
    model = manifold()
    with pytest.raises(ValueError, match=r"state.h is torch.float64 \(3, 10\) on 'cpu'; for this batch it must be"):
        model(torch.zeros(2, 1, 2, dtype=F64), state=model.initial_state(3))
    with pytest.raises(ValueError, match=r"x of a step has shape \(2,\); it must be \(batch, n_inputs=2\)"):
        model.step(torch.zeros(2, dtype=F64))


def test_no_sequences_give_no_outputs():
    out, state = manifold("gru", 1)(torch.zeros(0, 3, 2, dtype=F64), return_state=True)
    assert out.shape == (0, 3, 2)
    assert state.h.shape == (0, 10)
    assert state.memory.shape == (0, 1)


def test_a_network_without_memory_knows_no_sequences():
    model = DynamicManifold(ManifoldConfig(**SMALL))
    assert not model.recurrent
    for call in (lambda: model(torch.zeros(2, 2), [1, 1]), lambda: model.step(torch.zeros(2, 2))):
        with pytest.raises(ValueError, match="this network has no memory"):
            call()
    topology = Topology.from_edges([(0, 1), (1, 2)], 3)
    with pytest.raises(ValueError, match="neuron='memoryless' with 1 hidden neurons and n_memory=0 has no memory; use"):
        RecurrentDAG(topology, neuron="memoryless")
    with pytest.raises(ValueError, match="n_memory=1 of the 1 inputs and 1 outputs of the topology must leave one"):
        RecurrentDAG(topology, n_memory=1)
    with pytest.raises(ValueError, match="neuron='rnn' is unknown; choose one of memoryless, ctrnn, gru, lstm"):
        RecurrentDAG(topology, neuron="rnn")


@pytest.mark.parametrize("executor", ["wavefront", "blocks"])
def test_executors_that_run_single_steps_are_refused(executor):
    model = DynamicManifold(ManifoldConfig(**SMALL, neuron="lstm"), executor=executor, threads=1)
    with pytest.raises(
        ValueError, match=f"with executor '{executor}': move the model .* choose executor auto or columns"
    ):
        model(torch.zeros(1, 1, 2))


def test_cuda_is_refused_by_name():
    from sparse_dnm.engine.autotune import Executor
    from sparse_dnm.engine.cuda import CudaEngine

    engine = CudaEngine.__new__(CudaEngine)  # without a device
    engine.executor, engine.device = Executor("auto", 1), torch.device("cuda")
    with pytest.raises(
        ValueError, match=r"the kernels of the CPU only, not on 'cuda' with executor 'auto': move the model"
    ):
        engine.check_sequences()


def test_a_memoryless_manifold_with_sequences_of_one_step_is_the_manifold():
    """The same numbers, but for the order of sums."""
    plain = DynamicManifold(ManifoldConfig(**SMALL), torch.Generator().manual_seed(3), F64)
    model = manifold("ctrnn", seed=3)
    state = {k: v for k, v in plain.state_dict().items()}
    model.load_state_dict({**model.state_dict(), **state})
    with torch.no_grad():
        model.rate.fill_(50.0)  # sigmoid is 1: the value is the sum
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.step(x)[0], plain(x))
    assert isinstance(plain.to_dag(), SparseDAG)
