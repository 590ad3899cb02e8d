"""The contract of the engines: each finds the structures, values and gradients of tests/naive.py.

Gradients are compared with finite differences of the oracle.  CUDA's engine runs in numba's simulator where there is no
GPU (see cuda_device.py), and on tiny networks.
"""

import contextlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np
import pytest
import torch
from cuda_device import DEVICE, kernels_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import MANY, manifold_configs

from sparse_dnm.config import EDGE_MODES, SCALARS, ManifoldConfig
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Ring
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.engine.cuda import CudaEngine
from sparse_dnm.engine.torch_sparse import TorchSparseEngine
from sparse_dnm.model.init import initial_scalars

pytestmark = pytest.mark.slow

SPARSE = importlib.util.find_spec("torch_sparse") is not None
MAKE = {
    "columns": lambda config: CpuEngine(Executor("columns", 1), config),
    "wavefront": lambda config: CpuEngine(Executor("wavefront", 2), config),
    "blocks": lambda config: CpuEngine(Executor("blocks", 1), config),
    "cuda-columns": lambda config: CudaEngine(Executor("columns"), DEVICE, config),
    "cuda-wavefront": lambda config: CudaEngine(Executor("wavefront"), DEVICE, config),
    "torch-sparse": lambda config: TorchSparseEngine(Executor("torch-sparse"), config),
}
KINDS = [
    "columns",
    "wavefront",
    "blocks",
    *(pytest.param(name, marks=pytest.mark.cuda) for name in ("cuda-columns", "cuda-wavefront")),
    pytest.param("torch-sparse", marks=pytest.mark.skipif(not SPARSE, reason="no torch-sparse")),
]
TINY = {"n_neurons": 11, "n_inputs": 3, "n_outputs": 2}


@dataclass
class Case:
    """A manifold as an engine finds it, and the same in dense matrices of the oracle."""

    engine: Any
    config: ManifoldConfig
    parameters: dict[str, torch.Tensor]
    update: Any

    def numbers(self, array):
        """An array of the engine as one of the CPU."""
        return self.engine.tensor(array).detach().cpu().numpy().copy()

    def array(self, numbers):
        """The other way."""
        return self.engine.array(torch.as_tensor(numbers).to(self.engine.device))

    @property
    def raw(self):
        """Raw scalars by name, and the cutoff."""
        return {name: p.numpy() for name, p in self.parameters.items()}

    @property
    def pairs(self):
        """Readers and sources of the candidates."""
        candidates = self.update.structure.candidates.host
        readers = np.arange(self.config.n_inputs, self.config.n_neurons)
        return np.repeat(readers, np.diff(candidates.indptr)), candidates.indices

    @property
    def edges(self):
        """Readers and sources of the active edges."""
        sources, readers = self.update.structure.topology.edges().T
        return readers, sources

    @property
    def omega(self):
        return self.numbers(self.update.values.omega)

    def matrices(self, raw, omega):
        """Closeness d and strengths D (n, n)."""
        c = self.config
        dense = np.zeros((c.n_neurons, c.n_neurons))
        if c.edges != "closeness":
            dense[self.pairs] = omega
        d = naive.closeness_of(c.edges, c.n_neurons, c.n_inputs, c.n_outputs, c.period, raw, dense)
        return d, naive.strength_of(c.edges, d, raw["cutoff"], dense)

    def outputs(self, x, D, weight, bias):
        """Of the oracle, before they are squared."""
        c = self.config
        return naive.forward_manifold(x, D, weight, bias, c.n_inputs, c.n_outputs, c.activation)


def case_of(kind, config, seed):
    """The first structure of a manifold."""
    engine = MAKE[kind](config)
    drawn = initial_scalars(config, torch.Generator().manual_seed(seed), torch.float64)
    read = engine.read({name: p.to(engine.device) for name, p in drawn.items()})
    update = engine.update(read, read["alpha"][:0], engine.no_candidates(), None, None, everything=True)
    return Case(engine, config, drawn, update)


@contextlib.contextmanager
def running(kind):
    """In the simulator, blocks of CUDA have few warps."""
    with kernels_of("cuda") if kind.startswith("cuda") else contextlib.nullcontext():
        yield


def close(found, expected, tolerance=1e-9):
    expected = np.asarray(expected)
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


def drawn():
    """Configs and seeds."""
    return manifold_configs(**TINY, skin=0.1, cutoff=-2.0, omega=(0.0, 0.8)), st.integers(0, 2**20)


def test_cases_have_edges_candidates_below_the_cutoff_and_dead_neurons():
    """What the tests below look at is there."""
    below = dead = edges = 0
    for seed, mode in enumerate(EDGE_MODES):
        config = ManifoldConfig(**TINY, period=3.0, edges=mode, skin=0.1, alpha=(3.0, 1.0), sigma=(5.0, 1.0),
                                cutoff=-2.0, **MANY[mode])  # fmt: skip
        case = case_of("columns", config, seed)
        values = case.update.values
        edges += case.update.structure.n_edges
        below += int(((np.abs(values.d) > values.threshold) & (np.abs(values.d) <= values.c)).sum())
        dead += int((~case.update.structure.topology.live).sum())
    assert min(edges, below, dead) > 0


@pytest.mark.parametrize("kind", KINDS)
@given(*drawn())
@settings(max_examples=8)
def test_structure_and_values_are_those_of_the_oracle(kind, config, seed):
    with running(kind):
        case = case_of(kind, config, seed)
        values, structure = case.update.values, case.update.structure
        d, D = case.matrices(case.raw, case.omega)
        close(case.numbers(values.d), d[case.pairs])
        assert list(zip(*(a.tolist() for a in case.edges), strict=True)) == naive.edges_of(D)
        close(case.numbers(values.strengths), D[case.edges])
        assert structure.n_edges == len(naive.edges_of(D))
        host = case.engine.host_values(structure, values)
        assert host.imbalance**2 == pytest.approx(naive.flow(D, config.n_inputs, config.n_outputs), abs=1e-9)
        above = np.abs(host.d) > host.threshold
        mask = np.zeros_like(D, dtype=bool)
        mask[tuple(index[above] for index in case.pairs)] = True
        found, tau = case.engine.gates(values, 0.2), 0.2
        assert float(found.total) == pytest.approx(naive.soft_edges(d, case.raw["cutoff"], tau, mask))
        slope = naive.gradient(lambda cutoff: naive.soft_edges(d, cutoff, tau, mask), case.raw["cutoff"])
        assert float(found.by_cutoff) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)
        h = np.array([naive.sigmoid((abs(v) - host.c) / tau) if a else 0.0 for v, a in zip(host.d, above, strict=True)])
        close(case.numbers(found.by_closeness), h * (1 - h) / tau * np.sign(host.d))


@pytest.mark.parametrize("kind", KINDS)
@given(*drawn())
@settings(max_examples=5)
def test_outputs_and_gradients_of_a_pass_are_those_of_the_oracle(kind, config, seed):
    """By strengths, weights, biases, inputs, and by the strengths that candidates of the ring would have."""
    rng = np.random.default_rng(seed)
    x, pull = rng.standard_normal((3, config.n_inputs)), rng.standard_normal((3, config.n_outputs))
    with running(kind):
        case = case_of(kind, config, seed)
        engine, values, structure = case.engine, case.update.values, case.update.structure
        raw, (_, D) = case.raw, case.matrices(case.raw, case.omega)
        scales = engine.scales(structure, case.array(raw["weight"]), case.array(raw["bias"]))
        out, saved = engine.forward(structure, values.strengths, case.array(x), scales)
        close(case.numbers(out), case.outputs(x, D, raw["weight"], raw["bias"]))
        found = engine.backward(structure, values.strengths, saved, case.array(pull))
        by_input = case.numbers(engine.input_gradient(structure, saved, found, config.n_inputs))
        by_strength, by_weight, by_bias = (case.numbers(a) for a in found[:3])
        ring = Ring(0.5, structure, values)
        if kind == "torch-sparse":
            with pytest.raises(ValueError, match="set kappa=0"):
                engine.ring_gradient(ring, saved, found, values.strengths, case.array(x))
            by_ring = None
        else:
            by_ring = case.numbers(engine.ring_gradient(ring, saved, found, values.strengths, case.array(x)))
        host, live = engine.host_values(structure, values), structure.topology.live

    def loss(x=x, weight=raw["weight"], bias=raw["bias"], D=D):
        return (case.outputs(x, D, weight, bias) * pull).sum()

    def at(pairs):
        """The loss as a function of the strengths at some pairs."""

        def value(strengths):
            changed = D.copy()
            changed[pairs] = strengths
            return loss(D=changed)

        return value

    n = config.n_sources
    close(by_input, naive.gradient(lambda v: loss(x=v), x), 1e-6)
    close(by_weight[:n], naive.gradient(lambda v: loss(weight=v), raw["weight"]), 1e-6)
    close(by_bias[:n], naive.gradient(lambda v: loss(bias=v), raw["bias"]), 1e-6)
    close(by_strength, naive.gradient(at(case.edges), D[case.edges]), 1e-6)
    if by_ring is not None:
        readers, sources = case.pairs
        below = (np.abs(host.d) > host.threshold) & (np.abs(host.d) <= host.c) & live[readers]
        pairs = readers[below], sources[below]
        expected = naive.gradient(at(pairs), D[pairs]) * 0.5 / (1 - host.c)
        close(by_ring[below], expected * (host.omega[below] if config.edges == "weighted" else 1.0), 1e-6)
        assert not by_ring[~below].any()


@pytest.mark.parametrize("kind", KINDS)
@given(*drawn())
@settings(max_examples=5)
def test_gradients_of_the_parameters_are_those_of_the_oracle(kind, config, seed):
    """Of a sum over strengths, closeness and the imbalance, by raw scalars, cutoff and omega."""
    with running(kind):
        case = case_of(kind, config, seed)
        values, structure = case.update.values, case.update.structure
        rng = np.random.default_rng(seed)
        a, b, k = rng.standard_normal(structure.n_edges), rng.standard_normal(len(values.d)), rng.standard_normal()
        found = case.engine.edges_backward(structure, values, case.array(a), case.array(b), k)
        scalars, cutoff, omega = case.numbers(found.scalars), float(found.cutoff), case.numbers(found.omega)
        raw, edges, pairs, given = case.raw, case.edges, case.pairs, case.omega
        size = np.abs(case.numbers(values.d))
    assume(not (np.abs(size - naive.sigmoid(raw["cutoff"].item())) < 1e-5).any())  # the kink at the cutoff

    def value(omega=given, **changes):
        d, D = case.matrices({**raw, **changes}, omega)
        total = (D[edges] * a).sum() + (d[pairs] * b).sum()
        for i, j in zip(*edges, strict=True):
            into, out = j < config.n_inputs, i >= config.n_sources
            total += k * abs(D[i, j]) * (float(into and not out) - float(out and not into))
        return total

    for row, name in enumerate(SCALARS):
        if name in case.engine.geometry.scalars:
            close(scalars[row], naive.gradient(lambda v, name=name: value(**{name: v}), raw[name]), 1e-6)
    close(cutoff, naive.gradient(lambda v: value(cutoff=v), raw["cutoff"]), 1e-6)
    if config.edges != "closeness":
        close(omega, naive.gradient(lambda v: value(omega=v), given), 1e-6)
