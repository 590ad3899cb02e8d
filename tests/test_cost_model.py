"""The cost model: features, cuts and fits against independent computations; calibrate in a real process."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dags

from sparse_dnm import DynamicManifold, ManifoldConfig, Topology, cost_model
from sparse_dnm.cost_model import CUTS, FEATURES, CostModel, Quality, Settings, calibrate, cut, features, probes
from sparse_dnm.schedule import Executor, Schedule


def graph_of(topology):
    graph = topology.to_networkx()
    reach = set(topology.outputs.tolist()).union(*(nx.ancestors(graph, int(o)) for o in topology.outputs))
    return graph, reach


@given(dags(), st.data())
def test_features_count_what_is_executed(dag, data):
    neurons = st.lists(st.integers(0, dag[1] - 1), min_size=1, max_size=3, unique=True)
    topology = Topology.from_edges(*dag, outputs=data.draw(neurons))  # others that reach none of them are dead
    graph, live = graph_of(topology)
    inputs = set(topology.inputs.tolist())
    found = dict(zip(FEATURES["wavefront"], features(Schedule(topology), "wavefront"), strict=True))
    assert found["call"] == 1
    assert found["input"] == len(inputs & live)
    assert found["neuron"] == len(live - inputs)
    assert found["edge"] == sum(reader in live for _, reader in graph.edges())
    assert found["level"] == nx.dag_longest_path_length(graph) + 1
    assert features(Schedule(topology), "columns").tolist() == [found[name] for name in FEATURES["columns"]]


@given(dags(), st.sampled_from(CUTS), st.floats(0.1, 1.0), st.integers(0, 100))
def test_a_cut_is_a_part_with_the_same_ends(dag, kind, keep, seed):
    topology = Topology.from_edges(*dag)
    part = cut(topology, kind, keep, np.random.default_rng(seed))
    assert set(map(tuple, part.edges().tolist())) <= set(map(tuple, topology.edges().tolist()))
    np.testing.assert_array_equal(part.inputs, topology.inputs)
    np.testing.assert_array_equal(part.outputs, topology.outputs)
    assert part.n_neurons == topology.n_neurons
    if kind == "paths":
        assert part.depth <= max(1, round(keep * topology.depth))
    if keep == 1.0:
        assert part.n_edges == topology.n_edges


def test_probes_differ_in_every_feature():
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0))
    found = probes(model.topology, 30, np.random.default_rng(0))
    counts = np.stack([features(Schedule(part), "wavefront") for part in found])
    assert (counts[:, 1:].max(0) > 1.5 * counts[:, 1:].min(0)).all()
    assert np.linalg.matrix_rank(counts) == counts.shape[1]
    with pytest.raises(ValueError, match="kind='holes' is unknown"):
        cut(model.topology, "holes", 0.5, np.random.default_rng(0))


def test_a_fit_finds_the_costs_behind_noisy_times():
    rng = np.random.default_rng(0)
    counts = np.c_[np.ones(200), rng.uniform([10, 50, 500, 2], [800, 300, 20_000, 90], (200, 4))]
    costs = np.array([5e-6, 30e-9, 70e-9, 5e-9, 3e-6])
    seconds = counts @ costs * rng.lognormal(0, 0.01, 200)
    model = CostModel.fit("wavefront", counts, seconds)
    np.testing.assert_allclose(model.coefficients, costs, rtol=0.1)
    quality = Quality.of(model.seconds(counts), seconds)
    assert quality.r2 > 0.999
    assert quality.mape < 0.015
    assert (quality.within_10, quality.n) == (1.0, 200)
    assert quality.spearman > 0.99


def test_no_cost_is_negative():
    counts = np.array([[1, 0, 0, k] for k in range(1, 9)], float)
    model = CostModel.fit("columns", counts, np.linspace(8.0, 1.0, 8))  # more edges, less time
    assert min(model.coefficients) >= 0.0
    assert model.coefficients[3] == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"executor": "auto"}, "executor='auto' is unknown; choose one of columns, wavefront"),
        ({"mode": "test"}, "mode='test'"),
        ({"clock": "sundial"}, "clock='sundial'"),
        ({"batch": 0}, "batch=0 must be >= 1"),
        ({"probes": 9}, "probes=9 must be >= 10"),
        ({"repeats": 2}, "repeats=2 must be >= 3"),
    ],
)
def test_wrong_settings_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        Settings(**change)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("executor", ["columns", "wavefront"])
def test_calibration_times_the_kernels_of_a_step(executor, mode, monkeypatch):
    """A clock that advances by what is executed: the fit must find exactly that."""
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    _, plan = model.find()
    costs = dict(zip(FEATURES["wavefront"], (1e-3, 2e-4, 3e-4, 5e-5, 7e-4), strict=True))
    if executor == "columns":
        costs["level"] = 0.0
    running = []

    def read():
        """Seconds that half a step of the schedules run so far took; even and odd calls bracket a kernel."""
        read.calls += 1
        if read.calls % 2 == 0:
            read.now += sum(
                costs[n] * c for n, c in zip(FEATURES["wavefront"], features(running[-1], "wavefront"), strict=True)
            )
        return read.now

    read.calls, read.now = 0, 0.0
    fake = cost_model.Clock("process_time", read, 0.0, 1e-9)
    monkeypatch.setattr(cost_model.Clock, "of", staticmethod(lambda name: fake))
    walk = Executor.choose

    def choose(self, phase, batch, topology):
        running.append(Schedule(topology))
        return walk(self, phase, batch, topology)

    monkeypatch.setattr(Executor, "choose", choose)
    settings = Settings(executor, mode, batch=3, threads=1, probes=20, repeats=3)
    rounds = []
    found = calibrate(
        model.topology,
        lambda topology, walker: replace(plan, schedule=Schedule(topology), executor=walker),
        np.ones((3, 5), np.float32),
        settings,
        lambda: rounds.append(1),
    )
    times = 2 if mode == "train" else 1
    np.testing.assert_allclose(found.model.coefficients, [times * costs[n] for n in FEATURES[executor]], rtol=1e-6)
    assert found.held_out.r2 == pytest.approx(1.0)
    assert found.noise == pytest.approx(0.0, abs=1e-9)
    assert len(rounds) == 3


def run(*arguments, cwd):
    command = [sys.executable, "-m", "sparse_dnm.cli", "calibrate", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=os.environ)


def test_calibrate_prints_costs_and_writes_a_profile(tmp_path):
    small = ("--probes", 12, "--repeats", 4, "--threads", 1, "--batch-size", 8)
    done = run("toy", *small, "--executor", "wavefront", "--out", "a/profile.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ns per level" in done.stdout
    assert "on 6 other structures" in done.stdout
    profile = json.loads((tmp_path / "a" / "profile.json").read_text())
    assert list(profile["seconds_per"]) == list(FEATURES["wavefront"])
    assert all(value >= 0 for value in profile["seconds_per"].values())
    assert profile["settings"]["threads"] == 1
    assert profile["machine"]["cores"] >= 1
    assert set(profile["held_out"]) == {"n", "r2", "mape", "within_10", "spearman"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "'nowhere' is neither a preset"),
        (("toy", "--clock", "sundial"), "clock='sundial' is unknown"),
        (("toy", "--executor", "auto"), "choose one of columns, wavefront"),
        (("toy", "--threads", 1000), "threads=1000"),
    ],
)
def test_wrong_requests_end_in_one_line(tmp_path, arguments, words):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
