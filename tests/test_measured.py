"""Measured terms: their gradients against the oracle, their values against clocks that are known, the controller."""

import dataclasses
import gc
import json
import math
import re
import time
import tracemalloc
from types import SimpleNamespace

import naive
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import MANY, dense_omega, manifolds, rng_input

from sparse_dnm import (
    DynamicManifold,
    ManifoldConfig,
    MeasuredMemory,
    MeasuredTime,
    TimeSettings,
    Topology,
    TrainConfig,
)
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Neurons
from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cpu import KERNELS, CpuEngine, CpuStopwatch
from sparse_dnm.engine.cpu_blocks import LANES, Covering
from sparse_dnm.engine.cpu_stopwatch import LONG
from sparse_dnm.loss.controller import Controller
from sparse_dnm.timing import clock as timing
from sparse_dnm.timing import probes
from sparse_dnm.timing.calibration import calibrate, check_profile, read_profile
from sparse_dnm.timing.pace import Conditions, Steady
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.timed_steps import TimedSteps
from sparse_dnm.train.adam import Adam
from sparse_dnm.train.step import Costs, KernelStep

QUICK = {"probes": 10, "repeats": 3, "clock": "perf_counter"}


def model_of(preset="toy", executor="columns", threads=1, **changes):
    generator = torch.Generator().manual_seed(0)
    return DynamicManifold(ManifoldConfig.preset(preset, **changes), generator, executor=executor, threads=threads)


def charge(structure):
    """What a machine asks for a step that knows edges and executed neurons only, s."""
    return 1e-6 * len(structure.topology.t_edges) + 5e-6 * len(structure.schedule.executed)


@pytest.fixture
def charged(monkeypatch):
    """Such a machine."""
    monkeypatch.setattr(CpuStopwatch, "warm", lambda self, clock: charge(self._structure))
    monkeypatch.setattr(timing, "preemptions", lambda: 0)


def dense(evaluation, values):
    """Numbers of the candidates as a matrix (n, n), 0 elsewhere, and where they are."""
    config, candidates = evaluation.config, evaluation.host.candidates
    n, full = config.n_neurons, np.zeros((config.n_neurons, config.n_neurons))
    rows = np.repeat(np.arange(config.n_inputs, n), np.diff(candidates.indptr))
    full[rows, candidates.indices] = values
    return full, (rows, candidates.indices)


@given(manifolds(n_neurons=22, n_inputs=5, n_outputs=3), st.sampled_from([0.03, 0.3]), st.booleans(), st.integers(0, 2))
@settings(max_examples=35)
def test_the_expected_cost_and_its_gradient_are_the_oracles(model, tau, deep, in_blocks):
    config, evaluation = model.config, model.find()
    e, live = evaluation.host_values, evaluation.topology.live
    prices = Prices(2.0, 5.0, 11.0, 30.0 if deep else 0.0, 7.0 if in_blocks else 0.0, 3.0 * (in_blocks == 2))
    d, places = dense(evaluation, e.d)
    mask = np.zeros(d.shape, bool)
    mask[places] = np.abs(e.d) > e.threshold
    mask &= live[:, None]

    def oracle(values, c=e.c):
        full, _ = dense(evaluation, values)
        return naive.expected_cost(full, c, tau, mask, config.n_inputs, config.n_outputs, prices, KERNELS.PICKS, LANES)

    found = evaluation.expected_cost(tau, prices)
    assert found.value == pytest.approx(oracle(e.d), rel=1e-9, abs=1e-12)
    by_d, finer = (naive.gradient(oracle, e.d.astype(float), eps) for eps in (1e-5, 1e-6))
    assume(np.allclose(by_d, finer, rtol=1e-3, atol=1e-3))  # else a step crosses where another edge is the strongest
    scale = max(1.0, np.abs(by_d).max(initial=0.0))
    np.testing.assert_allclose(found.by_closeness, by_d, rtol=2e-4, atol=2e-4 * scale)
    raw = model.cutoff.item()
    by_raw = naive.gradient(lambda r: oracle(e.d, naive.sigmoid(float(r))), np.array(raw))
    np.testing.assert_allclose(found.by_cutoff, by_raw, rtol=2e-4, atol=2e-4 * scale)


def test_a_gate_costs_what_its_edge_would():
    """With sure gates, the derivative by each is what taking that edge out saves, at most."""
    evaluation = model_of("digits").find()
    e, prices = evaluation.values, Prices(1.0, 0.0, 0.0, 100.0)
    sure = evaluation.expected_cost(1e-5, prices)
    active = np.flatnonzero(np.abs(e.d) > e.c * 1.01)
    deepest = active[np.argsort(-sure.by_gate[active])[:5]]
    for k in (*deepest, *active[:5]):
        d = e.d.copy()
        d[k] = 0.0
        without = dataclasses.replace(evaluation, values=e._replace(d=d)).expected_cost(1e-5, prices)
        saved = sure.value - without.value  # less where another path is nearly as long
        assert 1.0 - 1e-3 <= saved <= sure.by_gate[k] + 1e-3
        if sure.by_gate[k] < 2.0:
            assert saved == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("edges", ["closeness", "free", "free-closeness", "weighted"])
def test_the_term_is_the_value_with_the_gradient_of_the_expected_cost(charged, edges):
    model = model_of(edges=edges, **MANY[edges])
    term = MeasuredTime(model, TimeSettings(batch=8, every=10**6, **QUICK))
    model(torch.randn(8, 5))
    found = term(model)
    assert found.item() == pytest.approx(term.seconds / term.reference, rel=1e-6)
    found.backward()
    gradient = term.gradient(model.evaluation)
    model.zero_grad()
    model(torch.randn(8, 5))
    (model.closeness @ torch.from_numpy(gradient.by_closeness)).backward()
    expected = model.mu.grad.clone()
    model.zero_grad()
    model(torch.randn(8, 5))
    term(model).backward()
    torch.testing.assert_close(model.mu.grad, expected)
    assert float(model.mu.grad.abs().max()) > 0


def test_a_training_of_ones_own_brings_down_what_the_clock_charges(charged):
    model = model_of("digits")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.follow(optimizer)
    term = MeasuredTime(model, TimeSettings(batch=8, mode="infer", every=5, **QUICK))
    before, start = model.topology.n_edges, charge(model.find().host)
    assert term.reference == start
    for _ in range(60):
        optimizer.zero_grad()
        (0.0 * model(torch.randn(8, 64)).sum() + term(model)).backward()
        optimizer.step()
    model(torch.randn(8, 64))
    assert model.topology.n_edges < 0.5 * before
    assert term.timed == 12
    assert term.value(model.evaluation) == pytest.approx(charge(model.evaluation.host) / start)
    assert term.value(model.evaluation) < 0.9


def bits_of(model):
    """All that a model is, in bytes by name."""
    named = [*model.named_parameters(), *model.named_buffers(), *model.state_dict().items()]
    return [(name, tensor.detach().numpy().tobytes()) for name, tensor in named]


@pytest.mark.parametrize("executor", ["columns", "auto"])
def test_a_measured_term_leaves_the_model_as_it_is(executor):
    model = model_of("digits", executor=executor, threads=2)
    model(rng_input(model, 4))
    before, chosen, known = bits_of(model), model.executor, vars(model.executor).copy()
    versions, structure = [p._version for p in model.parameters()], model.structure
    term = MeasuredTime(model, TimeSettings(batch=1, mode="infer", every=1, **QUICK))
    evaluation = model.evaluation
    for _ in range(3):
        term.value(evaluation)
        term.gradient(evaluation)
        term.measure(evaluation, 3)
    term(model)
    assert bits_of(model) == before
    assert [p._version for p in model.parameters()] == versions
    assert all(p.grad is None for p in model.parameters())
    assert model.executor is chosen
    assert vars(chosen) == known
    assert model.structure is structure
    assert model.kappa == 0.0


class Passes:
    """Stands in for a clock and for the forward passes that it times: each takes ``seconds``, a call of them 7 more,
    and the ``disturbed`` calls, by their number, another 1000."""

    def __init__(self, monkeypatch, seconds, disturbed=()):
        self.now, self.seconds, self.disturbed, self.calls = 0.0, seconds, disturbed, 0
        monkeypatch.setattr(CpuEngine, "passes", lambda engine, *about: self.run)

    def run(self, times):
        """Run some passes."""
        self.now += times * self.seconds + 7.0 + 1000.0 * (self.calls in self.disturbed)
        self.calls += 1

    def read(self):
        """The time."""
        return self.now


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_the_value_is_the_time_that_the_clock_measured_around_the_kernels(monkeypatch, mode):
    model = model_of()
    term = MeasuredTime(model, TimeSettings(mode=mode, batch=8, every=1, **QUICK))
    monkeypatch.setattr(timing, "preemptions", lambda: 0)
    term.pace = Steady()
    config = TrainConfig(batch_size=8)
    step = KernelStep(model, "regression", config, Costs(config, term), Adam(list(model.parameters()), 0.01))
    evaluation = model.find()
    for seconds in (3.0, 5.0):
        readings = iter(np.arange(10**4) * seconds)
        term.clock = dataclasses.replace(term.clock, read=lambda readings=readings: next(readings), overhead=0.5)
        expected = 2 * (seconds - 0.5)
        if mode == "infer":
            term.clock = dataclasses.replace(term.clock, read=Passes(monkeypatch, seconds).read)
            expected = seconds
        term.steps = TimedSteps()
        assert term.value(evaluation) * term.reference == pytest.approx(expected)  # a step of its own
        for _ in range(2):  # the model's own steps, which are timed up to the end of their backward pass
            term.steps, term.timing, term.seconds = TimedSteps(), None, 0.0
            step.forward(torch.randn(8, 5))
            found = step.loss(torch.randn(8, 4), True).speed
            assert found == (0.0 if mode == "train" else term.seconds / term.reference)
            step.backward()
            assert term.seconds == pytest.approx(expected)


def test_a_stopwatch_returns_its_seconds(monkeypatch):
    evaluation = model_of().find()
    x = evaluation.batch(np.ones((4, 5)))
    readings = iter(np.arange(100) * 2.0)
    clock = timing.Clock("perf_counter", lambda: next(readings), 0.25, 1e-9)
    watch = evaluation.engine.stopwatch(evaluation.structure, evaluation.values.strengths, x, True)
    assert watch(clock) == watch.warm(clock) == 3.5
    assert watch.steps == 1
    for seconds, together in ((2.0, 1), (2.0**-18, 3), (2.0**-30, 64)):
        passes = Passes(monkeypatch, seconds)
        watch = evaluation.engine.stopwatch(evaluation.structure, evaluation.values.strengths, x, False)
        clock = timing.Clock("perf_counter", passes.read, 0.25, 1e-9)
        assert watch(clock) == pytest.approx(seconds, abs=1e-15)
        assert watch.warm(clock) == pytest.approx(seconds, abs=1e-15)
        assert watch.steps == together


@pytest.mark.parametrize("many", [1, 3, 4, 7])
@pytest.mark.parametrize("seconds", [2.0**-18, 2.0**-22])
def test_a_disturbance_leaves_neither_nothing_nor_too_few_passes(monkeypatch, seconds, many):
    """Of the call alone it leaves nothing of the passes; of the passes, too few of them would be chosen."""
    evaluation = model_of().find()
    x = evaluation.batch(np.ones((4, 5)))
    for first in range(20):
        passes = Passes(monkeypatch, seconds, range(first, first + many))
        clock = timing.Clock("perf_counter", passes.read, 0.25, 1e-9)
        watch = evaluation.engine.stopwatch(evaluation.structure, evaluation.values.strengths, x, False)
        found = [watch.warm(clock) for _ in range(5)]
        assert min(found) >= 0.999 * seconds  # what disturbs passes only adds
        assert found[-1] == pytest.approx(seconds, abs=1e-12)
        assert watch.steps * seconds >= LONG / 2


@pytest.mark.parametrize("executor", ["columns", "wavefront", "blocks"])
@pytest.mark.parametrize("batch", [1, 40])
def test_passes_that_are_timed_together_leave_the_outputs_of_one(executor, batch):
    model = model_of("digits", executor=executor, threads=2)
    evaluation = model.find()
    engine, structure, strengths = evaluation.engine, evaluation.structure, evaluation.values.strengths
    x = evaluation.batch(np.random.default_rng(0).standard_normal((batch, 64)))
    n = len(structure.neurons.kind)
    scales, found = (np.ones(n, np.float32), np.full(n, 0.5, np.float32)), []
    for times in (1, 5):
        out = np.empty((batch, 10), np.float32)
        engine.passes(structure, strengths, scales, x, out)(times)
        found.append(out)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], engine.infer(structure, strengths, torch.from_numpy(x), scales).numpy())


@pytest.mark.parametrize(("batch", "share"), [(1, 0.12), (50, 1.0)])
def test_executors_for_few_samples_are_compared_on_a_thin_network(monkeypatch, batch, share):
    """Where training ends, not where it starts; larger batches know no blocks."""
    evaluation = model_of("digits").find()
    bench, seen = probes.Bench(evaluation, "infer", batch, "process_time", 0), []
    monkeypatch.setattr(probes, "busy", lambda watch: False)

    def watch(self, engine, topology):
        seen.append(topology.n_edges / evaluation.n_edges)
        return engine.executor.name

    def times(watches, timing):
        return SimpleNamespace(seconds=np.array([[3.0 if name == "columns" else 1.0] for name in watches]))

    monkeypatch.setattr(probes.Bench, "stopwatch", watch)
    monkeypatch.setattr(probes, "time_steps", times)
    assert bench.settle("auto", [1, 2]).name == ("blocks" if batch == 1 else "columns")
    assert max(seen[-2:]) <= share


def test_a_step_that_was_interrupted_does_not_count(monkeypatch):
    model = model_of()
    term = MeasuredTime(model, TimeSettings(mode="infer", batch=8, every=1, **QUICK))
    evaluation = model.find()
    term.value(evaluation)
    before, count = term.seconds, term.timed
    counter = iter(range(100))
    monkeypatch.setattr(timing, "preemptions", lambda: next(counter))
    term.value(evaluation)
    assert (term.seconds, term.timed) == (before, count)


def test_ablations_change_what_they_say(monkeypatch, charged):
    noise = np.random.default_rng(0)
    monkeypatch.setattr(CpuStopwatch, "warm", lambda self, clock: charge(self._structure) * noise.lognormal(0, 0.05))
    found = {}
    evaluation = model_of("digits").find()
    for ablation in ("none", "no-refit", "edges-only", "shuffled"):
        model = model_of("digits")
        term = MeasuredTime(model, TimeSettings(mode="infer", batch=1, every=1, ablation=ablation, **QUICK))
        before = term.refit.model
        for _ in range(12):
            term.value(evaluation)
        found[ablation] = term, before
    assert found["no-refit"][0].refit.model == found["no-refit"][1]
    assert found["none"][0].refit.model != found["none"][1]
    per = found["edges-only"][0].seconds_per()
    assert {name for name, value in per.items() if value > 0} <= {"call", "edge"}
    assert per["edge"] > 0
    counts = found["none"][0].counts(evaluation)
    honest, placebo = (found[name][1].prices(counts) for name in ("none", "shuffled"))
    assert placebo.edge != honest.edge


def test_the_independent_estimate_points_the_same_way(charged):
    """SPSA, on a clock that charges by the structure: its mean is the gradient of the expected charge."""
    model = model_of("toy", skin=0.05)
    term = MeasuredTime(model, TimeSettings(mode="infer", batch=1, estimator="spsa", tau=0.05, **QUICK))
    evaluation = model.find()
    e, candidates, topology = evaluation.values, evaluation.host.candidates, evaluation.topology
    mean, again = np.zeros(len(e.d)), np.zeros(len(e.d))
    for k in range(400):
        term.calls = k
        mean += term.gradient(evaluation).by_closeness
    size, c = np.abs(e.d), e.c
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(5, 25), np.diff(candidates.indptr))

    def charge_of(kept):
        edges = np.stack([candidates.indices[kept], rows[kept]], axis=1)
        part = Topology.from_edges(edges, 25, topology.inputs, topology.outputs)
        return charge(evaluation.engine.given(part, evaluation.structure.neurons))

    for _ in range(2000):  # what each candidate's crossing is worth where the others are moved at random
        signs = rng.choice([-1.0, 1.0], len(size))
        for k in np.flatnonzero(np.abs(size - c) < 0.05)[:3]:
            up, down = signs.copy(), signs.copy()
            up[k], down[k] = 1.0, -1.0
            again[k] += charge_of(size + 0.05 * up > c) - charge_of(size + 0.05 * down > c)
    chosen = np.flatnonzero(np.abs(size - c) < 0.05)[:3]
    expected = again[chosen] / 2000 / 0.1 * np.sign(e.d[chosen]) / term.reference
    np.testing.assert_allclose(mean[chosen] / 400, expected, rtol=0.5, atol=0.2 * np.abs(expected).max())
    beyond = np.abs(size - c) > 0.05
    assert np.abs(mean[beyond]).mean() < np.abs(mean[~beyond]).mean()


# -- controller ----------------------------------------------------------------------------------------------


def plant(multiplier, seconds):
    """A network that shrinks by what the term asks, and grows a little by itself."""
    return seconds * (1 - 0.02 * min(multiplier, 10.0) + 0.005)


def test_the_controller_brings_the_time_to_the_budget_without_falling_below():
    control, seconds, lowest = Controller(10.0, 100.0), 100.0, math.inf
    for k in range(600):
        control.progress = k / 400
        seconds = plant(control.update(seconds, 10), seconds)
        lowest = min(lowest, seconds)
    assert seconds == pytest.approx(10.0, rel=0.05)
    assert lowest > 9.0


def test_the_integral_does_not_wind_up():
    control = Controller(1.0, 1.0)
    for _ in range(1000):
        control.update(1e6, 10)
    assert control.multiplier == pytest.approx(100.0)
    assert control.integral <= Controller.HIGH
    for _ in range(40):
        control.update(0.7, 10)
    assert control.multiplier < 1.0
    for _ in range(1000):
        control.update(1e-6, 10)
    assert control.multiplier == pytest.approx(1e-3)
    for _ in range(40):
        control.update(1.5, 10)
    assert control.multiplier > 0.1


def test_the_goal_falls_from_the_start_to_the_budget():
    control = Controller(10.0, 1000.0)
    for progress, goal in ((0.0, 1000.0), (0.5, 100.0), (1.0, 10.0), (2.0, 10.0)):
        control.progress = progress
        assert control.goal == pytest.approx(goal)
    assert Controller(10.0, 5.0).goal == 10.0


# -- state, refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 3e-6])
def test_state_survives_json(budget):
    model = model_of()
    chosen = TimeSettings(mode="infer", batch=4, every=3, budget=budget, **QUICK)
    term, evaluation = MeasuredTime(model, chosen), model.find()
    for _ in range(20):
        term.value(evaluation)
    again = MeasuredTime(model, chosen, state=json.loads(json.dumps(term.state())))
    assert again.state() == term.state()
    assert again.refit.model == term.refit.model
    assert again.value(evaluation) > 0
    if budget:
        assert again.reference == budget
        assert again.controller.integral == term.controller.integral
    again.gradient(evaluation)
    fresh = MeasuredTime(model, chosen, state=term.state())
    assert np.isfinite(fresh.gradient(evaluation).by_closeness).all()  # before any timed step


def test_executor_auto_is_settled_and_the_model_keeps_its_own():
    model = model_of("digits", executor="auto", threads=2)
    term = MeasuredTime(model, TimeSettings(batch=50, **QUICK))  # two tiles, two threads
    assert (term.executor.name, model.executor.name) == ("columns", "auto")
    term = MeasuredTime(model, TimeSettings(batch=1, mode="infer", **QUICK))
    assert term.executor.name in ("columns", "wavefront", "blocks")
    assert model.executor.name == "auto"


def test_an_open_number_of_threads_is_settled_and_kept_by_a_checkpoint():
    model = model_of("digits", executor="columns", threads=0)
    term = MeasuredTime(model, TimeSettings(batch=50, **QUICK))
    assert term.executor.threads in (1, model.executor.most)
    assert model.executor.asked == 0
    other = {**term.state(), "threads": 1}
    assert MeasuredTime(model, TimeSettings(batch=50, **QUICK), state=other).executor.threads == 1


@pytest.mark.parametrize(("two", "others", "chosen"), [(0.7, 0.0, 1), (0.6, 0.0, 2), (0.6, 0.5, 1), (0.6, None, 2)])
def test_two_threads_must_be_much_faster_than_one_and_have_the_machine_alone(monkeypatch, two, others, chosen):
    seconds = np.array([[1.0], [two]])
    times = probes.Times(seconds, seconds, 0, Conditions(1.0, 1.0, 1.0, others))
    monkeypatch.setattr(probes, "time_steps", lambda watches, settings: times)
    monkeypatch.setattr(probes.Surroundings, "conditions", lambda self, references: times.conditions)
    bench = probes.Bench(model_of("digits").find(), "train", 50, "perf_counter", 0)
    assert bench.settle("columns", [1, 2]).asked == chosen


def test_a_profile_takes_the_place_of_the_calibration():
    model = model_of()
    evaluation = model.find()
    wanted = Settings("columns", "infer", 4, 1, "perf_counter", 10, 3)
    profile = calibrate(evaluation.structure, evaluation.engine, np.ones((4, 5), np.float32), wanted)
    slow = dataclasses.replace(profile, seconds=3 * profile.seconds)
    chosen = TimeSettings(mode="infer", batch=4, **QUICK)
    found = MeasuredTime(model, chosen, slow)
    np.testing.assert_allclose(found.refit.model.coefficients, 3 * np.array(profile.model.coefficients), rtol=1e-6)
    predicted = [line for line in found.describe() if "the calibration predicts" in line]
    assert len(predicted) == 1
    assert predicted[0].startswith("warning: a step of this network takes")
    for change, words in (
        ({"batch": 5}, "batch is 4 in it, 5 here"),
        ({"clock": "process_time"}, "clock is perf_counter in it, process_time here"),
        ({"mode": "train"}, "mode is infer in it, train here"),
    ):
        with pytest.raises(ValueError, match=words):
            MeasuredTime(model, dataclasses.replace(chosen, **change), profile)
    with pytest.raises(ValueError, match="threads is 1 in it, 2 here"):
        check_profile(profile, dataclasses.replace(wanted, threads=2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clock": "sundial"}, "clock='sundial'"),
        ({"mode": "fly"}, "mode='fly'"),
        ({"estimator": "guess"}, "estimator='guess' is unknown; choose one of cost-model, spsa"),
        ({"ablation": "all"}, "ablation='all'"),
        ({"tau": 0.0}, "tau=0.0 must be"),
        ({"every": 0}, "every=0 must be >= 1"),
        ({"batch": 0}, "batch=0 must be >= 1"),
        ({"budget": 0.0}, "budget=0.0 must be a finite number of seconds > 0"),
        ({"budget": -1e-6}, "budget=-1e-06"),
        ({"budget": math.nan}, "budget=nan"),
    ],
)
def test_wrong_settings_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        MeasuredTime(model_of(), TimeSettings(**{**QUICK, **change}))


@pytest.fixture
def coarse(monkeypatch):
    """process_time ticks every 15.625 ms, as on some systems."""
    tick = 15_625_000
    monkeypatch.setitem(timing.READ, "process_time", lambda: time.process_time_ns() // tick * tick / 1e9)
    timing.Clock.of.cache_clear()
    yield
    timing.Clock.of.cache_clear()


def test_a_clock_too_coarse_is_replaced_by_a_finer_one(coarse, tmp_path):
    chosen = TimeSettings(mode="infer", batch=4, **{**QUICK, "clock": "process_time", "repeats": 5})
    model = model_of()
    term = MeasuredTime(model, chosen)
    assert term.clock.name == term.promise().clock == "perf_counter"
    assert 0 < term.start < 0.1
    assert re.fullmatch(
        r"clock process_time has steps of 1\.56e\+04 µs, too coarse for .* µs: perf_counter is used instead",
        term.describe()[0],
    )
    again = MeasuredTime(model, chosen, state=json.loads(json.dumps(term.state())))
    assert again.clock.name == "perf_counter"
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(term.calibration.as_dict()))
    for clock in ("process_time", "perf_counter"):
        known = MeasuredTime(model, dataclasses.replace(chosen, clock=clock), profile=read_profile(path))
        assert known.clock.name == "perf_counter"
    with pytest.raises(ValueError, match="clock is perf_counter in it, thread_time here"):
        MeasuredTime(model, dataclasses.replace(chosen, clock="thread_time"), profile=read_profile(path))


@pytest.mark.parametrize(
    ("clock", "words"), [("process_time", "adds up the seconds of all 2"), ("thread_time", "counts one of the 2")]
)
def test_a_clock_that_counts_waiting_threads_is_replaced(clock, words):
    term = MeasuredTime(model_of(threads=2), TimeSettings(batch=64, **{**QUICK, "clock": clock}))
    assert term.clock.name == "perf_counter"
    assert words in term.describe()[0]
    assert sum("is used instead" in line for line in term.describe()) == 1
    own = dataclasses.replace(term.calibration, asked_clock="", why_not="")  # as if perf_counter had been asked for
    assert MeasuredTime(model_of(threads=2), term.settings, profile=own).clock.name == "perf_counter"


def test_a_clock_too_coarse_is_refused_where_there_is_no_finer_one(monkeypatch):
    coarse = dataclasses.replace(timing.Clock.of("perf_counter"), resolution=1e-3)
    monkeypatch.setattr(timing.Clock, "of", staticmethod(lambda name: coarse))
    with pytest.raises(ValueError, match=r"too coarse for .*choose another clock"):
        MeasuredTime(model_of(), TimeSettings(**QUICK))


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize(
    ("executor", "batch"), [("columns", 1), ("columns", 50), ("columns", 130), ("blocks", 1), ("blocks", 4)]
)
def test_bytes_are_those_of_the_allocator(executor, mode, batch):
    evaluation = model_of("digits").find()
    t, neurons = evaluation.topology, evaluation.structure.neurons
    x = np.ones((batch, 64), np.float32)
    values = np.full(t.n_edges, 0.1, np.float32)

    def step():
        """A step with everything of its own: structure, schedule, buffers."""
        engine = CpuEngine(Executor(executor, 1))
        arrays = [a.copy() for a in (t.indptr, t.indices, t.inputs, t.outputs)]
        own = Neurons(neurons.kind.copy(), neurons.slope.copy(), neurons.first_linear, neurons.weighted)
        structure, strengths, batch_of = engine.given(Topology(*arrays), own), values.copy(), torch.from_numpy(x.copy())
        scales = engine.scales(structure, np.ones(290, np.float32), np.ones(290, np.float32))
        held = [engine, arrays, strengths, scales, batch_of]
        if executor == "blocks" and mode == "infer":
            return [*held, structure, engine.infer(structure, strengths, batch_of, scales)]
        out, saved = engine.forward(structure, strengths, batch_of.numpy(), scales)
        assert (saved.blocks is not None) == (executor == "blocks")
        held += [structure, out, saved]
        if mode == "train":
            held += [np.ones_like(out), engine.backward(structure, strengths, saved, np.ones_like(out))]
        return held

    step()  # compiled
    gc.collect()
    tracemalloc.start()
    try:
        held = step()
        gc.collect()
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        allocated = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)
    finally:
        tracemalloc.stop()
    counted = held[0].step_bytes(held[5], batch, mode == "train")
    assert counted == pytest.approx(allocated, rel=0.01, abs=6_000)  # blanks of weights and biases


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_the_bytes_of_an_edge_hold_those_of_blocks_on_average(mode):
    structure, engine = model_of("digits").find().structure, CpuEngine(Executor("blocks", 1))
    train, covering = mode == "train", Covering.of(structure)
    lanes = 4 * LANES * 9 / 8 * (2 if train else 1)  # strengths and, in mode train, their gradients; pooled
    own = 4 + 4 + 8 + covering.place.itemsize + (4 * 9 / 8 if train else 4)  # a gradient, or a copy of the strength
    expected = own + (lanes + 4) * covering.n_blocks / structure.n_edges
    assert engine.edge_bytes(structure, 1, train) == pytest.approx(expected, rel=0.01)
    assert engine.step_bytes(structure, 1, train) > structure.n_edges * expected
    assert engine.edge_bytes(structure, 5, train) == pytest.approx(
        16 + (4 * 9 / 8 if train else 0), rel=0.01
    )  # columns


def test_the_memory_term_counts_edges():
    model = model_of("digits")
    term = MeasuredMemory(model, batch=50)
    evaluation = model.find()
    before, edges = term.bytes(evaluation), evaluation.n_edges
    assert term.value(evaluation) == 1.0
    with torch.no_grad():
        model.cutoff += 1.0
    model(torch.randn(4, 64))
    evaluation = model.evaluation
    fewer = edges - evaluation.n_edges
    per_edge = evaluation.engine.edge_bytes(evaluation.structure, 50, True)
    assert per_edge == pytest.approx(4 + 4 + 8 + 2 * 4 * 9 / 8, rel=0.01)
    structure = 8 * 200  # levels make the waves shorter
    assert before - term.bytes(evaluation) == pytest.approx(fewer * per_edge, abs=structure)
    (term(model) * 1e3).backward()
    model(torch.randn(4, 64))
    soft = model.soft_edges(term.tau)
    expected = torch.autograd.grad(soft * (1e3 * per_edge / before), model.mu)[0]
    torch.testing.assert_close(model.mu.grad, expected, rtol=1e-4, atol=1e-6)


def test_terms_evaluate_a_model_that_was_never_run():
    config, generator = ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0)
    term = MeasuredMemory(DynamicManifold(config, generator))
    model = model_of()
    assert term(model).item() == 1.0
    assert model.evaluation.n_edges == len(model.strengths)
    assert model(rng_input(model, 3)).shape == (3, 4)
    assert dense_omega(model).shape == (25, 25)
