"""Random manifolds and DAGs for the property tests."""

import numpy as np
import torch
from hypothesis import strategies as st

from sparse_dnm import DynamicManifold, ManifoldConfig
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


def rng_input(model, batch, seed=0):
    """Normal input (batch, n_inputs) of the model's dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.config.n_inputs, generator=generator, dtype=model.alpha.dtype)


def dense_omega(model):
    """omega as a dense float64 (n, n) numpy array, 0 where no candidate is."""
    n, n_inputs = model.config.n_neurons, model.config.n_inputs
    omega = np.zeros((n, n))
    if model.config.edges != "closeness":
        candidates = model.candidates
        rows = np.repeat(np.arange(n_inputs, n), np.diff(candidates.indptr))
        omega[rows, candidates.indices] = model.edge_weight.detach().double().numpy()[candidates.slots]
    return omega


def raw_scalars(model):
    """The row scalars as float64 numpy arrays, by name."""
    names = ("alpha", "beta", "gamma", "theta", "phi", "sigma", "mu")
    return {name: getattr(model, name).detach().double().numpy() for name in names if hasattr(model, name)}
