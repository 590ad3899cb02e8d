"""Micro-benchmarks of the engine's parts: pytest bench (needs the extra [bench]); wall clock.

Save and compare with pytest-benchmark's own --benchmark-autosave and --benchmark-compare.
"""

import dataclasses

import numpy as np
import pytest
import torch

from bench.replay import recording, replay
from sparse_dnm import DynamicManifold, ManifoldConfig, Schedule, SparseDAG, SparsityProxy, Topology, flow_loss
from sparse_dnm.study.sweeps import SETTLED, random_dag

CUTOFFS = {"10 %": -1.0, "3 %": 1.0, "0.5 %": 3.0}  # density of original-mnist at the start: raw cutoff, about


def manifold(cutoff=-1.0, edges="closeness", threads=1):
    """The seed model of original-mnist."""
    config = ManifoldConfig.preset("original-mnist", cutoff=cutoff, edges=edges)
    return DynamicManifold(config, torch.Generator().manual_seed(0), executor="columns", threads=threads)


def dag_of(neurons=2000, depth=16, edges=20_000, threads=1):
    """A random DAG with weights."""
    topology = random_dag(neurons, depth, edges, np.random.default_rng(0))
    return SparseDAG(topology, generator=torch.Generator().manual_seed(0), executor="columns", threads=threads)


def calls_of(run, *names):
    """Kernel calls whose names begin with one of ``names``, of a warmed ``run``."""
    run()
    with recording() as calls:
        run()
    chosen = [call for call in calls if call.name.startswith(names)]
    assert chosen, f"no kernel {names} among {sorted({call.name for call in calls})}"
    return replay(chosen)


def propagate(benchmark, dag, batch, names):
    """Time Propagate's kernels of a DAG."""
    x = torch.randn(batch, len(dag.topology.inputs))
    run = calls_of(lambda: dag(x).sum().backward(), *names)
    benchmark.extra_info.update(edges=dag.topology.n_edges, depth=dag.topology.depth, batch=batch)
    benchmark(run)


@pytest.mark.parametrize("density", CUTOFFS)
@pytest.mark.parametrize("mode", ["closeness", "free"])
def test_closeness(benchmark, density, mode):
    model = manifold(CUTOFFS[density], mode)
    x = torch.randn(1, 784)
    benchmark.extra_info["candidates"] = len(model.candidates.indices)
    benchmark(calls_of(lambda: model(x), "evaluate"))


@pytest.mark.parametrize("mode", ["closeness", "free"])
def test_closeness_backward(benchmark, mode):
    model = manifold(edges=mode)
    x = torch.randn(1, 784)
    benchmark(calls_of(lambda: model(x).sum().backward(), "strength_back"))


@pytest.mark.parametrize("mode", ["closeness", "free"])
def test_candidates_search(benchmark, mode):
    benchmark(lambda: manifold(edges=mode).topology)


@pytest.mark.parametrize("edges", [10_000, 100_000, 1_000_000])
def test_topology_and_schedule(benchmark, edges):
    t = random_dag(max(2000, edges // 50), 16, edges, np.random.default_rng(0))
    benchmark(lambda: Schedule(Topology(t.indptr, t.indices, t.inputs, t.outputs)))


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("batch", [1, 8, 50, 64, 65, 256])
def test_pass_by_batch(benchmark, way, batch):
    propagate(benchmark, dag_of(), batch, (way,))


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("depth", [2, 32, 512])
def test_pass_by_depth(benchmark, way, depth):
    propagate(benchmark, dag_of(depth=depth), 64, (way,))


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("edges", [2_000, 20_000, 200_000])
def test_pass_by_density(benchmark, way, edges):
    propagate(benchmark, dag_of(edges=edges), 64, (way,))


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("neurons", [200, 2_000, 20_000, 200_000])
def test_pass_by_size(benchmark, way, neurons):
    propagate(benchmark, dag_of(neurons=neurons, edges=20 * neurons), 64, (way,))


@pytest.mark.parametrize("batch", [50, 256])
@pytest.mark.parametrize("preset", ["original-mnist", "mnist", "digits"])
def test_step(benchmark, preset, batch):
    """Forward, losses, backward and Adam at a step size of (almost) zero: the structure stays."""
    config = dataclasses.replace(ManifoldConfig.preset(preset))
    model = DynamicManifold(config, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-12, fused=True)
    model.follow(optimizer)
    proxy = SparsityProxy()
    x, y = torch.rand(batch, config.n_inputs), torch.randint(config.n_outputs, (batch,))

    def step():
        optimizer.zero_grad(set_to_none=True)
        objective = torch.nn.functional.cross_entropy(model(x), y)
        (objective + 1e-4 * flow_loss(model) + 0.1 * proxy(model)).backward()
        optimizer.step()

    for _ in range(SETTLED):
        step()
    benchmark(step)
