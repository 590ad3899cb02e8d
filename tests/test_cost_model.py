"""The cost model: features, cuts and fits against independent computations; calibrate in a real process."""

import json
import math
import re
import warnings
from dataclasses import replace

import naive
import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dags
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, ManifoldConfig, Topology
from sparse_dnm.cli.app import app
from sparse_dnm.engine import cpu_costs
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.cpu import KERNELS, CpuEngine
from sparse_dnm.engine.cpu_costs import FAR
from sparse_dnm.io import write_json
from sparse_dnm.timing import calibration
from sparse_dnm.timing import clock as timing
from sparse_dnm.timing import probes as probing
from sparse_dnm.timing.calibration import calibrate
from sparse_dnm.timing.cost_model import BEFORE, EARLIER, FEATURES, CostModel, Quality, Refit
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.structures import CUTS, cut, probes
from sparse_dnm.timing.typical import typical

ENGINE = CpuEngine(Executor("columns", 1))
NEURONS = ENGINE.neurons(np.zeros(0, np.int8), np.zeros(0, np.float32), 0, slice(0))  # features ask for the graph only


def features(topology, executor):
    return ENGINE.features(ENGINE.given(topology, NEURONS), executor)


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
    found = dict(zip(FEATURES["wavefront"], features(topology, "wavefront"), strict=True))
    schedule = ENGINE.given(topology, NEURONS).schedule
    edges = [tuple(pair) for pair in topology.edges().tolist()]
    walk = schedule.executed.tolist()
    assert found["far edge"] == naive.far_edges(edges, walk, live, FAR)
    distance = data.draw(st.integers(0, 20))
    t, visit = topology, np.empty(topology.n_edges, np.int32)
    arrays = (schedule.order, schedule.inputs, t.indptr, t.live, t.t_indptr, t.t_edges, distance, visit)
    assert KERNELS.far_edges(*arrays) == naive.far_edges(edges, walk, live, distance)
    assert found["call"] == 1
    assert found["input"] == len(inputs & live)
    outputs = set(topology.outputs.tolist())
    assert found["neuron"] == len(live - inputs - outputs)
    assert found["output"] == len(outputs - inputs)
    assert found["crowded row"] == pytest.approx(len(live - inputs) ** 2 / 1000)
    assert found["edge"] == sum(reader in live for _, reader in graph.edges())
    assert found["level"] == nx.dag_longest_path_length(graph) + 1
    assert features(topology, "columns").tolist() == [found[name] for name in FEATURES["columns"]]
    assert found["moved line"] == 0  # on one thread


@given(dags(), st.integers(1, 4), st.integers(0, 4), st.data())
def test_lines_of_gradients_move_between_threads_as_in_a_plain_count(dag, parts, bits, data):
    outputs = data.draw(st.lists(st.integers(0, dag[1] - 1), min_size=1, max_size=3, unique=True))
    topology = Topology.from_edges(*dag, outputs=outputs)
    _, live = graph_of(topology)
    s, t = ENGINE.given(topology, NEURONS).schedule, topology
    writer = np.empty(-(-t.n_edges // 2**bits), np.int32)
    found = KERNELS.moved_lines(s.order, s.waves, s.inputs, t.t_indptr, t.t_edges, parts, bits, writer)
    edges = [tuple(pair) for pair in topology.edges().tolist()]
    assert found == naive.moved_lines(edges, set(topology.inputs.tolist()), live, parts, 2**bits)


def test_lines_of_gradients_move_in_a_graph_counted_by_hand():
    """Two inputs, read by 2 and 3: their rows share a line of 16; on two threads each input writes to it twice."""
    topology = Topology.from_edges(np.array([[0, 2], [1, 2], [0, 3], [1, 3]]), 4, np.arange(2), np.array([2, 3]))
    counted = dict(
        zip(FEATURES["wavefront"], cpu_costs.features(ENGINE.given(topology, NEURONS), "wavefront", 2), strict=True)
    )
    assert counted["moved line"] == 1  # the second input's writes follow those of the first
    assert counted["level"] == 2
    assert counted["crowded row"] == 0.004


@given(dags(), st.sampled_from(CUTS), st.floats(0.1, 1.0), st.integers(0, 100))
def test_a_cut_is_a_part_with_the_same_ends(dag, kind, keep, seed):
    topology = Topology.from_edges(*dag)
    part = cut(topology, kind, keep, np.random.default_rng(seed))
    if kind in ("sources", "runs"):  # no part: as many edges at most, into the same readers
        assert part.n_edges <= topology.n_edges
        readers = set(part.edges()[:, 1])
        assert readers <= set(topology.edges()[:, 1])
        assert kind == "runs" or readers == set(topology.edges()[:, 1])
        return
    assert set(map(tuple, part.edges().tolist())) <= set(map(tuple, topology.edges().tolist()))
    np.testing.assert_array_equal(part.inputs, topology.inputs)
    np.testing.assert_array_equal(part.outputs, topology.outputs)
    assert part.n_neurons == topology.n_neurons
    if kind == "paths":
        assert part.depth <= max(1, round(keep * topology.depth))
    if keep == 1.0 and kind != "layers":
        assert part.n_edges == topology.n_edges


@pytest.mark.parametrize(
    ("inputs", "columns", "lone"),
    [
        (range(8), range(8), 0),
        (range(7), range(7), 7),
        (range(17), range(17), 1),
        ([0, *range(2, 11)], [0, *range(2, 11)], 2),
        (range(8), [0, 1, 2, 3, 4, 5, 6, 9], 8),
    ],
)
def test_inputs_that_follow_each_other_are_read_together(inputs, columns, lone):
    inputs, columns = (np.array(list(a), np.int32) for a in (inputs, columns))
    assert KERNELS.lone_inputs(inputs, columns, 8) == lone


def test_probes_differ_in_every_feature():
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0))
    found = probes(model.topology, 30, np.random.default_rng(0))
    counts = np.stack([cpu_costs.features(ENGINE.given(part, NEURONS), "wavefront", 2) for part in found])
    assert (counts[:, 1:].max(0) > 1.5 * counts[:, 1:].min(0)).all()
    assert {part.n_neurons == model.topology.n_neurons for part in found} == {True, False}
    assert np.linalg.matrix_rank(counts) == counts.shape[1]
    with pytest.raises(ValueError, match="kind='holes' is unknown"):
        cut(model.topology, "holes", 0.5, np.random.default_rng(0))


def test_a_fit_finds_the_costs_behind_noisy_times():
    rng = np.random.default_rng(0)
    highest = [800, 300, 300, 20_000, 9_000, 200, 900, 90, 9_000]
    counts = np.c_[np.ones(200), rng.uniform([10, 5, 50, 500, 10, 1, 5, 2, 10], highest, (200, 9))]
    costs = np.array([5e-6, 30e-9, 20e-9, 70e-9, 5e-9, 4e-9, 50e-9, 20e-9, 3e-6, 15e-9])
    seconds = counts @ costs * rng.lognormal(0, 0.004, 200)
    model = CostModel.fit("wavefront", counts, seconds)
    np.testing.assert_allclose(model.coefficients, costs, rtol=0.2)
    quality = Quality.of(model.seconds(counts), seconds)
    assert quality.r2 > 0.999
    assert quality.mape < 0.015
    assert (quality.within_10, quality.n) == (1.0, 200)
    assert quality.spearman > 0.99


def test_no_cost_is_negative():
    counts = np.array([[1, 0, 0, 0, k, 0, 0, 0] for k in range(1, 9)], float)
    model = CostModel.fit("columns", counts, np.linspace(8.0, 1.0, 8))  # more edges, less time
    assert min(model.coefficients) >= 0.0
    assert model.coefficients[4] == 0.0


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
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0))
    evaluation = model.find()
    costs = dict(zip(FEATURES["wavefront"], (1e-3, 2e-4, 4e-4, 3e-4, 5e-5, 6e-5, 2e-4, 3e-4, 7e-4, 1e-4), strict=True))
    running = []

    def cost(structure):
        """Seconds of a pass."""
        return sum(costs[n] * c for n, c in zip(FEATURES[executor], ENGINE.features(structure, executor), strict=True))

    def read():
        """Seconds that half a step of the schedules run so far took; even and odd calls bracket a kernel."""
        read.calls += 1
        if mode == "train" and read.calls % 2 == 0:
            read.now += cost(running[-1])
        return read.now

    def passes(self, structure, strengths, scales, table, out):
        """Forward passes, and half a second for the call."""

        def run(times):
            read.now += times * cost(structure) + 0.5

        return run

    read.calls, read.now = 0, 0.0
    fake = timing.Clock("process_time", read, 0.0, 1e-9)
    monkeypatch.setattr(timing.Clock, "of", staticmethod(lambda name: fake))
    chosen = Executor.choose

    def choose(self, phase, batch, structure):
        running.append(structure)
        return chosen(self, phase, batch, structure)

    monkeypatch.setattr(Executor, "choose", choose)
    monkeypatch.setattr(CpuEngine, "passes", passes)
    settings = Settings(executor, mode, batch=3, threads=1, probes=20, repeats=3)
    monkeypatch.setattr(probing, "stolen", lambda: 0)
    monkeypatch.setattr(timing, "preemptions", lambda: 0)
    rounds = []
    engine = CpuEngine(Executor(executor, 1))
    x = np.ones((3, 64), np.float32)
    found = calibrate(evaluation.structure, engine, x, settings, lambda: rounds.append(1))
    times = 2 if mode == "train" else 1
    costs["moved line"] = 0.0  # on one thread there are none, and no price
    np.testing.assert_allclose(found.model.coefficients, [times * costs[n] for n in FEATURES[executor]], rtol=1e-6)
    assert found.held_out.r2 == pytest.approx(1.0)
    assert found.noise == pytest.approx(0.0, abs=1e-9)
    assert len(rounds) == 3


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_calibrate_prints_costs_and_writes_a_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--probes", 12, "--repeats", 4, "--threads", 1, "--batch-size", 8)
    done = run("toy", *small, "--executor", "wavefront", "--out", "a/profile.json")
    assert done.exit_code == 0, done.output
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
def test_wrong_requests_end_in_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# -- refit ---------------------------------------------------------------------------------------------------


def steps(rng, costs, count, noise=0.02):
    """Counts and seconds of structures that shrink, as in a training: features fall together."""
    whole = np.array([1, 300, 20, 220, 14_000, 4_000, 10, 100], float)
    for k in range(count):
        counts = whole * (1 - 0.8 * k / count * rng.uniform(0.9, 1.1, 8))
        counts[0] = 1
        yield counts, counts @ costs * rng.lognormal(0, noise)


COSTS = np.array([5e-6, 10e-9, 5e-9, 40e-9, 2e-9, 1e-9, 50e-9, 5e-9])


def fresh_refit(rng, costs=COSTS):
    counts = np.c_[np.ones(60), rng.uniform(0.1, 1, (60, 7)) * [300, 20, 220, 14_000, 4_000, 10, 100]]
    seconds = counts @ costs * rng.lognormal(0, 0.01, 60)
    return Refit(CostModel.fit("columns", counts, seconds), counts, seconds)


def test_a_refit_follows_a_machine_that_became_slower():
    rng = np.random.default_rng(0)
    refit = fresh_refit(rng)
    before = refit.model
    for counts, seconds in steps(rng, 1.5 * COSTS, 200):
        refit.add(counts, seconds)
    np.testing.assert_allclose(refit.model.seconds(counts), 1.5 * counts @ COSTS, rtol=0.03)
    assert refit.error < 0.05
    assert before.seconds(counts) < 0.75 * seconds
    assert refit.calibrated == before
    assert min(refit.model.coefficients) >= 0.0


def test_a_refit_learns_that_edges_alone_became_dearer():
    rng = np.random.default_rng(1)
    refit, dearer = fresh_refit(rng), COSTS * [1, 1, 1, 1, 3, 1, 1, 1]
    for counts, seconds in steps(rng, dearer, 400):
        refit.add(counts, seconds)
    edge = refit.model.prices(counts).edge
    true = dearer[4] + dearer[5] * counts[5] / counts[4]
    assert edge == pytest.approx(true, rel=0.25)
    assert refit.calibrated.prices(counts).edge < 0.6 * true


def test_outliers_hardly_move_a_refit_and_memory_is_bounded():
    rng = np.random.default_rng(2)
    clean, hit = fresh_refit(np.random.default_rng(3)), fresh_refit(np.random.default_rng(3))
    for k, (counts, seconds) in enumerate(steps(rng, COSTS, 300)):
        clean.add(counts, seconds)
        hit.add(counts, seconds * {9: 0.2, 19: 50.0}.get(k % 20, 1.0))
    assert hit.model.seconds(counts) == pytest.approx(clean.model.seconds(counts), rel=0.05)
    assert len(hit.errors) == len(hit.pace) == Refit.RECENT
    assert hit.normal.shape == (8, 8)


def test_a_refit_survives_json():
    rng = np.random.default_rng(4)
    refit = fresh_refit(rng)
    data = list(steps(rng, 1.2 * COSTS, 40))
    for counts, seconds in data[:20]:
        refit.add(counts, seconds)
    again = Refit.from_state(json.loads(json.dumps(refit.state())))
    for counts, seconds in data[20:]:
        refit.add(counts, seconds)
        again.add(counts, seconds)
    assert again.model == refit.model


def test_prices_share_out_what_belongs_to_edges_and_inputs():
    model = CostModel("columns", (1.0, 10.0, 4.0, 20.0, 2.0, 1.0, 7.0, 0.0))
    prices = model.prices(np.array([1, 50, 25, 10, 400, 100, 3, 4], float))
    assert prices == (2.25, 12.0, 20.0, 0.0, 0.0, 0.0)
    assert model.prices(np.array([1.0, 0, 0, 0, 0, 0, 0, 0])) == (2.0, 10.0, 20.0, 0.0, 0.0, 0.0)


def test_the_price_of_a_neuron_is_what_one_more_would_cost():
    model = CostModel("wavefront", (1.0, 10.0, 0.0, 20.0, 2.0, 0.0, 7.0, 3.0, 11.0, 4.0))

    def counts(inputs, neurons, edges, levels):
        return np.array([1, inputs, 0, neurons, edges, 0, 5, (neurons + 5) ** 2 / 1000, levels, edges / 4], float)

    here = counts(50, 40, 400, 6)
    prices = model.prices(here)
    for price, more in zip(
        prices[:4], ((50, 40, 401, 6), (51, 40, 400, 6), (50, 41, 400, 6), (50, 40, 400, 7)), strict=True
    ):
        assert model.seconds(counts(*more)) - model.seconds(here) == pytest.approx(price, abs=3.5e-3)
    assert prices.edge == 3.0  # with a quarter of a moved line
    assert prices.neuron == pytest.approx(20.0 + 3.0 * 2 * 45 / 1000)
    assert prices.input == 10.0


def test_prices_of_blocks_hold_those_of_groups():
    """Nine groups of 16 neurons, which would fill two: seven are those of the seven levels."""
    model = CostModel("blocks", (1.0, 10.0, 4.0, 20.0, 2.0, 5.0, 3.0, 8.0, 1.0, 0.5))
    prices = model.prices(np.array([1, 50, 25, 16, 400, 7, 100, 9, 16**2 / 1000, 100**2 / 1000], float))
    neuron = 20.0 + 8.0 / 8 + 2 * 16 / 1000
    assert prices == pytest.approx((2.0, 12.0, neuron, 5.0 + 8.0, 3.0 + 0.5 * 2 * 100 / 1000, 0.0))


@pytest.mark.parametrize(("mode", "priced"), [("train", True), ("infer", False)])
def test_only_backward_passes_pay_for_moved_lines(mode, priced):
    rng, place = np.random.default_rng(0), FEATURES["wavefront"].index("moved line")
    counts = rng.uniform(1, 9, (40, len(FEATURES["wavefront"])))
    model = calibration.fit(Settings("wavefront", mode), counts, counts[:, place])
    assert (model.coefficients[place] > 0.5) == priced
    assert priced or model.coefficients[place] == 0.0


def test_a_profile_is_read_back_and_a_bad_one_named(tmp_path):
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    settings = Settings(batch=4, threads=1, probes=12, repeats=3)
    made = calibrate(model.find().structure, ENGINE, np.ones((4, 5), np.float32), settings)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(made.as_dict()))
    found = calibration.read_profile(path)
    assert found.model == made.model
    np.testing.assert_array_equal(found.counts, made.counts)
    assert found.n_fitted == made.n_fitted == 12
    for change, words in (
        ({"version": 9}, "version 9, not 'sparse-dnm profile' version 1"),
        ({"format": None}, "of format None"),
        ({"seconds_per": {"call": 1.0}}, "it prices call, not call, input"),
        ({"seconds": [1.0]}, "do not fit 1 times"),
        (
            {"seconds_per": dict.fromkeys(BEFORE["columns"], 1.0)},
            "an earlier version .* did not price crowded row, out",
        ),
        (
            {"seconds_per": dict.fromkeys(EARLIER["columns"][1], 1.0)},
            "an earlier version .* did not price crowded row; ",
        ),
        ({"settings": {"executor": "sail"}}, "executor='sail' is unknown"),
        ({"seconds_per": dict.fromkeys(made.as_dict()["seconds_per"], -1.0)}, "negative"),
    ):
        path.write_text(json.dumps({**made.as_dict(), **change}))
        with pytest.raises(ValueError, match=words):
            calibration.read_profile(path)
    with pytest.raises(ValueError, match="does not exist; write one with: sparse-dnm calibrate"):
        calibration.read_profile(tmp_path / "none.json")


def test_a_profile_whose_predictions_are_all_the_same_is_kept(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quality = Quality.of(np.ones(5), np.arange(1.0, 6.0))
    assert math.isnan(quality.spearman)
    made = calibration.Calibration(
        CostModel("columns", (1.0,) * 8), Settings(), 1, quality, 0.01, 0, 1.0, 1.0, np.ones((15, 8)), np.ones(15)
    )
    write_json(tmp_path / "profile.json", made.as_dict())
    assert math.isnan(calibration.read_profile(tmp_path / "profile.json").held_out.spearman)


def test_doubts_are_reported():
    quality = Quality(10, 0.999, 0.01, 1.0, 0.99)
    made = calibration.Calibration(
        CostModel("columns", (1.0,) * 8), Settings(), 2, quality, 0.01, 0, 1.0, 1.0, np.ones((3, 8)), np.ones(3)
    )
    assert calibration.doubts(made) == []
    for change, words in (
        ({"uncertainty": 0.08, "rounds": 7}, "known to 8.0% .* only, not to 3%, after 7 rounds"),
        ({"noise": 0.2}, "spread by 20.0%, more than 5%"),
        ({"cpu_share": 0.5}, "had the processor for 50% of the wall time"),
        ({"held_out": replace(quality, r2=0.5)}, r"does not fit \(R² 0.500\)"),
    ):
        (line,) = calibration.doubts(replace(made, **change))
        assert re.search(words, line)


# -- prices that stay the same -------------------------------------------------------------------------------


def collinear(rng, costs, noise):
    """Counts of structures in which features go together, and their seconds."""
    share = rng.uniform(0.1, 1, 30)
    whole = np.array([1, 300, 20, 220, 14_000, 4_000, 10, 100], float)
    counts = whole * share[:, None] * rng.uniform(0.97, 1.03, (30, 8))
    counts[:, [0, 6]] = [1, 10]
    return counts, counts @ costs * rng.lognormal(0, noise, 30)


def test_typical_prices_hold_what_the_data_do_not_tell_apart():
    guess = typical("columns", "infer", 1)
    costs = 1.3 * guess * [1.1, 1, 1, 0.9, 1.2, 1, 1, 1]
    free, held = [], []
    for seed in range(20):
        counts, seconds = collinear(np.random.default_rng(seed), costs, 0.03)
        free.append(CostModel.fit("columns", counts, seconds).coefficients[4])
        held.append(CostModel.fit("columns", counts, seconds, typical=guess).coefficients[4])
    assert np.std(free) / costs[4] > 0.3
    assert np.std(held) / costs[4] < 0.15
    assert np.mean(held) == pytest.approx(costs[4], rel=0.3)


def test_typical_prices_do_not_matter_where_the_data_are_exact():
    rng = np.random.default_rng(0)
    counts = np.c_[np.ones(40), rng.uniform(0.1, 1, (40, 7)) * [300, 20, 220, 14_000, 4_000, 10, 100]]
    odd = typical("columns", "train", 50) * rng.uniform(0.1, 10, 8)
    found = CostModel.fit("columns", counts, counts @ odd, typical=typical("columns", "train", 50))
    np.testing.assert_allclose(found.coefficients, odd, rtol=1e-6)


def test_typical_prices_know_every_feature_of_a_cpu_and_none_of_a_gpu():
    free = {("wavefront", "infer"): {"moved line"}, ("blocks", "infer"): {"edge", "crowded block"}}
    for executor, most in (("columns", 64), ("wavefront", 32), ("blocks", 4)):
        for mode in ("train", "infer"):
            one, many = typical(executor, mode, 1), typical(executor, mode, most)
            assert (many >= one).all()
            unknown = {name for name, price in zip(FEATURES[executor], one, strict=True) if price == 0}
            assert unknown == free.get((executor, mode), set())
            curved = typical(executor, mode, 50, 1.0) > typical(executor, mode, 50)
            assert curved[FEATURES[executor].index("input")]
            assert curved[FEATURES[executor].index("group" if executor == "blocks" else "neuron")]
    place = FEATURES["wavefront"].index("moved line")
    assert [typical("wavefront", "train", batch)[place] for batch in (1, 32, 50)] == [25, 25, 0]
    assert typical("cuda-columns", "train", 50) is None


class Noisy:
    """A stopwatch whose seconds are known but for noise."""

    steps = 1

    def __init__(self, seconds, noise, rng):
        self.seconds, self.noise, self.rng, self.calls = seconds, noise, rng, 0

    def __call__(self, clock):
        return self.seconds

    def warm(self, clock):
        self.calls += 1
        return self.seconds * self.rng.lognormal(0, self.noise)


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 5, 5), (0.01, 5, 16), (1.0, 50, 50)])
def test_sampling_goes_on_until_prices_are_known(noise, least, most):
    rng = np.random.default_rng(0)
    settings = Settings("columns", "infer", 1, 1, "perf_counter", 20, 5)
    costs = typical("columns", "infer", 1) * 1e-9
    counts = np.c_[np.ones(30), rng.uniform(0.1, 1, (30, 7)) * [300, 20, 220, 14_000, 4_000, 10, 100]]
    watches = [Noisy(seconds, noise, rng) for seconds in counts @ costs]
    whole = counts.max(axis=0)

    def enough(seconds):
        return calibration.uncertainty(settings, counts, whole, seconds) <= calibration.NARROW

    found = probing.time_steps(watches, settings, enough=enough)
    assert least <= found.seconds.shape[1] <= most
    assert found.raw.shape == found.seconds.shape
    if noise < 1.0:
        model = calibration.fit(settings, counts, np.median(found.seconds, axis=1))
        off = np.abs(np.array(model.coefficients) - costs) * whole / (whole @ costs)
        assert off.max() < 2 * calibration.NARROW


def test_sampling_ends_at_its_limit_of_time():
    watches = [Noisy(1e-5, 0.1, np.random.default_rng(0))]
    settings = Settings("columns", "infer", 1, 1, "perf_counter", 20, 5, limit=0.0)
    assert probing.time_steps(watches, settings, enough=lambda seconds: False).seconds.shape == (1, 5)


def test_the_uncertainty_is_about_the_error_that_a_fit_has():
    rng = np.random.default_rng(1)
    settings = Settings("columns", "infer", 1, 1, "perf_counter", 20, 5)
    costs = typical("columns", "infer", 1) * 1e-9
    counts = np.c_[np.ones(30), rng.uniform(0.1, 1, (30, 7)) * [300, 20, 220, 14_000, 4_000, 10, 100]]
    whole, told, errors = counts.max(axis=0), [], []
    for _ in range(20):
        seconds = (counts @ costs)[:, None] * rng.lognormal(0, 0.1, (30, 12))
        told.append(calibration.uncertainty(settings, counts, whole, seconds))
        found = np.array(calibration.fit(settings, counts, np.median(seconds, axis=1)).coefficients)
        errors.append(np.abs(found - costs).max() and (np.abs(found - costs) * whole).max() / (whole @ costs))
    assert 0.5 * np.median(errors) < np.median(told) < 6 * np.median(errors)


def test_a_refit_does_not_drift_by_noise():
    rng = np.random.default_rng(5)
    counts, seconds = collinear(rng, COSTS, 0.01)
    refit = Refit(CostModel.fit("columns", counts, seconds, typical=COSTS), counts, seconds)
    before = refit.model.prices(counts[0])
    for row, taken in steps(rng, COSTS, 300, 0.1):
        refit.add(row, taken)
    after = refit.model.prices(counts[0])
    assert after.edge == pytest.approx(before.edge, rel=0.15)
    assert after.neuron == pytest.approx(before.neuron, rel=0.15)


@pytest.mark.parametrize(("executor", "version"), [("columns", 0), ("wavefront", 0), ("wavefront", 1), ("blocks", 0)])
def test_a_refit_of_an_earlier_version_goes_on(executor, version):
    names, rng = EARLIER[executor][version], np.random.default_rng(0)
    n = len(names)
    named = {} if names == BEFORE.get(executor) else {"features": list(names)}
    old = {"executor": executor, **named, "calibrated": [1.0] * n, "coefficients": [2.0] * n,
           "prior": np.eye(n).tolist(), "normal": np.zeros((n, n)).tolist(), "right": [0.0] * n, "pace": [],
           "errors": []}  # fmt: skip
    refit = Refit.from_state(json.loads(json.dumps(old)))
    known = dict(zip(FEATURES[executor], refit.model.coefficients, strict=True))
    assert known == {name: 2.0 if name in names else 0.0 for name in FEATURES[executor]}
    for _ in range(12):
        refit.add(rng.uniform(1, 9, len(FEATURES[executor])), 3.0)
    assert refit.model.coefficients[FEATURES[executor].index("crowded row")] == 0.0
