"""Random manifolds and DAGs for the property tests."""

import numpy as np
import torch
from hypothesis import strategies as st

from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG, Topology
from sparse_dnm.config import ACTIVATIONS, EDGE_MODES

MANY = {mode: {"omega": (0.0, 1.0)} if mode == "free-closeness" else {} for mode in EDGE_MODES}
"""Changes with which a preset has as many edges in every mode: two factors below 1 leave few."""


@st.composite
def manifold_configs(draw, **fixed):
    """Small configs of every mode, wide and narrow windows, with dead neurons and empty rows among them."""
    n_inputs, n_hidden, n_outputs = draw(st.integers(1, 9)), draw(st.integers(1, 14)), draw(st.integers(1, 5))
    values = {
        "n_neurons": n_inputs + n_hidden + n_outputs,
        "n_inputs": n_inputs,
        "n_outputs": n_outputs,
        "period": draw(st.sampled_from([1.0, 3.0, 7.5])),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "edges": draw(st.sampled_from(EDGE_MODES)),
        "output": draw(st.sampled_from(["linear", "square"])),
        "alpha": (draw(st.sampled_from([5.0, 1.0, 0.0])), 1.0),
        "beta": (0.0, 0.3),
        "sigma": (draw(st.sampled_from([1.0, 5.0, 30.0])), 1.0),
        "mu": (0.0, draw(st.sampled_from([1.0, 6.0]))),
        "omega": (0.0, draw(st.sampled_from([0.3, 0.8]))),
        "weight": (1.0, 0.5),
        "bias": (0.0, 0.5),
        "cutoff": draw(st.sampled_from([-1.0, -2.5])),
        "skin": draw(st.sampled_from([0.0, 0.1])),
        "seed": draw(st.integers(0, 2**40)),
    }
    return ManifoldConfig(**{**values, **fixed})


@st.composite
def manifolds(draw, dtype=torch.float64, **fixed):
    """A DynamicManifold of a random config."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return DynamicManifold(draw(manifold_configs(**fixed)), generator, dtype)


@st.composite
def dags(draw, max_neurons=24):
    """A random DAG: (edges as (source, reader) pairs, n), numbered in any order, with isolated neurons and chains."""
    n = draw(st.integers(2, max_neurons))
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 0.9]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lower = np.tril(rng.random((n, n)) < density, -1)
    if draw(st.booleans()):
        lower |= np.eye(n, k=-1, dtype=bool)
    number = rng.permutation(n) if draw(st.booleans()) else np.arange(n)
    readers, sources = np.nonzero(lower)
    return np.stack([number[sources], number[readers]], axis=1), n


@st.composite
def sparse_dags(draw, max_neurons=14, dtype=torch.float64):
    """A SparseDAG of a random DAG with all its options: activations of its own for each neuron, outputs that are read
    or are inputs, linear outputs, factors, zeros among weights, factors and biases."""
    edges, n = draw(dags(max_neurons))
    topology, some = Topology.from_edges(edges, n), np.random.default_rng(draw(st.integers(0, 2**32)))
    options = {
        "weight": draw(st.sampled_from([None, 1.0])),
        "input_neurons": draw(st.booleans()),
        "linear_outputs": draw(st.booleans()),
        "output": draw(st.sampled_from(["linear", "square"])),
    }
    if options["linear_outputs"]:
        extra = [(j, n + k) for j in range(n) for k in range(2) if some.random() < 0.5]
        n, outputs = n + 2, [n, n + 1]
        topology = Topology.from_edges([*edges.tolist(), *extra], n, topology.inputs, outputs)
    elif draw(st.booleans()):  # any neurons, in any order
        outputs = some.permutation(n)[: draw(st.integers(1, n))]
        topology = Topology.from_edges(edges, n, topology.inputs, outputs)
    names = [*ACTIVATIONS, "leaky_relu(-0.5)", "leaky_relu(1.0)"]
    names = names if draw(st.booleans()) else [draw(st.sampled_from(names))]
    options["activation"] = [names[k] for k in some.integers(0, len(names), n)]
    model = SparseDAG(topology, dtype=dtype, threads=1, **options)
    zeros = draw(st.sampled_from([0.0, 0.3]))
    with torch.no_grad():
        for p in model.parameters():
            values = some.normal(0, 0.7, p.shape) * (some.random(p.shape) >= zeros)
            p.copy_(torch.from_numpy(values))
    return model


def rng_input(model, batch, seed=0):
    """Normal input (batch, n_inputs) of the model's dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.config.n_inputs, generator=generator, dtype=model.alpha.dtype)


def candidate_pairs(model):
    """Readers and sources (n_candidates,) of the candidates, in their order."""
    config, candidates = model.config, model.candidates
    return np.repeat(np.arange(config.n_inputs, config.n_neurons), np.diff(candidates.indptr)), candidates.indices


def omega_of(model):
    """omega of the candidates, in their order; empty where edges have none."""
    if model.config.edges == "closeness":
        return torch.empty(0, dtype=model.alpha.dtype)
    return model.edge_weight.detach().cpu()[torch.from_numpy(model.candidates.slots)]


def dense_omega(model):
    """omega as a dense float64 (n, n) numpy array, 0 where no candidate is."""
    n = model.config.n_neurons
    omega = np.zeros((n, n))
    if model.config.edges != "closeness":
        omega[candidate_pairs(model)] = omega_of(model).double().numpy()
    return omega


def free_slots(model):
    """bool (capacity,): slots of edge_weight that no candidate owns."""
    free = np.ones(model.capacity, np.bool_)
    free[model.candidates.slots] = False
    return torch.from_numpy(free)


def raw_scalars(model):
    """The row scalars as float64 numpy arrays, by name."""
    names = ("alpha", "beta", "gamma", "theta", "phi", "sigma", "mu")
    return {name: getattr(model, name).detach().cpu().double().numpy() for name in names if hasattr(model, name)}
