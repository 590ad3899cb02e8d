"""Measured terms: their gradients against the oracle, their values against clocks that are known, the controller."""

import dataclasses
import gc
import json
import math
import tracemalloc

import naive
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import dense_omega, manifolds, rng_input

from sparse_dnm import DynamicManifold, ManifoldConfig, MeasuredMemory, MeasuredTime, TimeSettings
from sparse_dnm.engine.candidates import KERNELS, Prices, expected_cost
from sparse_dnm.engine.schedule import Executor
from sparse_dnm.loss import time as measured
from sparse_dnm.loss.time import Controller, check_profile, edge_bytes, step_bytes
from sparse_dnm.model.manifold import _Found
from sparse_dnm.timing import clock as timing
from sparse_dnm.timing.calibration import Settings, Step, calibrate, plans_like

QUICK = {"probes": 10, "repeats": 3, "clock": "perf_counter"}


def model_of(preset="toy", executor="columns", threads=1, **changes):
    generator = torch.Generator().manual_seed(0)
    return DynamicManifold(ManifoldConfig.preset(preset, **changes), generator, executor=executor, threads=threads)


def dense(config, e, values):
    """Numbers of the candidates as a matrix (n, n), 0 elsewhere, and where they are."""
    n, full = config.n_neurons, np.zeros((config.n_neurons, config.n_neurons))
    rows = np.repeat(np.arange(config.n_inputs, n), np.diff(e.candidates.indptr))
    full[rows, e.candidates.indices] = values
    return full, (rows, e.candidates.indices)


@given(manifolds(n_neurons=22, n_inputs=5, n_outputs=3), st.sampled_from([0.03, 0.3]), st.booleans())
@settings(max_examples=40)
def test_the_expected_cost_and_its_gradient_are_the_oracles(model, tau, deep):
    config, (e, plan) = model.config, model.find()
    live = plan.schedule.topology.live
    prices = Prices(2.0, 5.0, 11.0, 30.0 if deep else 0.0)
    d, places = dense(config, e, e.d)
    mask = np.zeros(d.shape, bool)
    mask[places] = np.abs(e.d) > e.threshold
    mask &= live[:, None]

    def oracle(values, c=e.c):
        full, _ = dense(config, e, values)
        return naive.expected_cost(full, c, tau, mask, config.n_inputs, config.n_outputs, prices, KERNELS.PICKS)

    found = expected_cost(e, config, live, tau, prices)
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
    model = model_of("digits")
    e, plan = model.find()
    live, c = plan.schedule.topology.live, e.c
    prices = Prices(1.0, 0.0, 0.0, 100.0)
    sure = expected_cost(e, model.config, live, 1e-5, prices)
    active = np.flatnonzero(np.abs(e.d) > c * 1.01)
    deepest = active[np.argsort(-sure.by_gate[active])[:5]]
    for k in (*deepest, *active[:5]):
        d = e.d.copy()
        d[k] = 0.0
        without = expected_cost(e._replace(d=d), model.config, live, 1e-5, prices)
        saved = sure.value - without.value  # less where another path is nearly as long
        assert 1.0 - 1e-3 <= saved <= sure.by_gate[k] + 1e-3
        if sure.by_gate[k] < 2.0:
            assert saved == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("edges", ["closeness", "free", "free-closeness", "weighted"])
def test_the_term_is_the_value_with_the_gradient_of_the_expected_cost(edges):
    model = model_of(edges=edges)
    term = MeasuredTime(model, TimeSettings(batch=8, every=10**6, **QUICK))
    model(torch.randn(8, 5))
    found = term(model)
    assert found.item() == pytest.approx(term.seconds / term.reference, rel=1e-6)
    found.backward()
    gradient = term.gradient(model)
    model.zero_grad()
    model(torch.randn(8, 5))
    (model.closeness @ torch.from_numpy(gradient.by_closeness)).backward()
    expected = model.mu.grad.clone()
    model.zero_grad()
    model(torch.randn(8, 5))
    term(model).backward()
    torch.testing.assert_close(model.mu.grad, expected)
    assert float(model.mu.grad.abs().max()) > 0


def test_a_training_of_ones_own_gets_faster():
    model = model_of("digits")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    term = MeasuredTime(model, TimeSettings(batch=8, mode="infer", every=5, **QUICK))
    before = model.topology.n_edges
    for _ in range(60):
        optimizer.zero_grad()
        (0.0 * model(torch.randn(8, 64)).sum() + term(model)).backward()
        optimizer.step()
    model(torch.randn(8, 64))
    assert model.topology.n_edges < 0.5 * before
    assert term.timed == 12
    assert term.value(model) < 0.9


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_the_value_is_what_the_clock_said_of_the_kernels(monkeypatch, mode):
    model = model_of()
    term = MeasuredTime(model, TimeSettings(mode=mode, batch=8, every=1, **QUICK))
    monkeypatch.setattr(timing, "preemptions", lambda: 0)
    term.value(model)  # the first one is a step of its own
    for seconds in (3.0, 5.0):
        readings = iter(np.arange(1000) * seconds)
        fake = dataclasses.replace(term._clock, read=lambda readings=readings: next(readings), overhead=0.0)
        monkeypatch.setattr(term, "_clock", fake)
        model.executor.timer = fake.read
        model(torch.randn(8, 5)).sum().backward()
        assert term.value(model) * term.reference == pytest.approx(2 * seconds if mode == "train" else seconds)


def test_a_step_that_was_interrupted_does_not_count(monkeypatch):
    model = model_of()
    term = MeasuredTime(model, TimeSettings(mode="infer", batch=8, every=1, **QUICK))
    term.value(model)
    before, count = term.seconds, term.timed
    counter = iter(range(100))
    monkeypatch.setattr(timing, "preemptions", lambda: next(counter))
    term.value(model)
    assert (term.seconds, term.timed) == (before, count)


def test_ablations_change_what_they_say():
    found = {}
    for ablation in ("none", "no-refit", "edges-only", "shuffled"):
        model = model_of("digits")
        term = MeasuredTime(model, TimeSettings(mode="infer", batch=1, every=1, ablation=ablation, **QUICK))
        before = term.refit.model
        for _ in range(12):
            term.value(model)
        found[ablation] = term, before
    assert found["no-refit"][0].refit.model == found["no-refit"][1]
    assert found["none"][0].refit.model != found["none"][1]
    per = found["edges-only"][0].seconds_per()
    assert {name for name, value in per.items() if value > 0} <= {"call", "edge"}
    assert per["edge"] > 0
    counts = found["none"][0].counts(model)
    honest, placebo = (found[name][1].prices(counts) for name in ("none", "shuffled"))
    assert placebo.edge != honest.edge


def test_the_independent_estimate_points_the_same_way(monkeypatch):
    """SPSA, on a clock that charges by the structure: its mean is the gradient of the expected charge."""
    model = model_of("toy", skin=0.05)
    term = MeasuredTime(model, TimeSettings(mode="infer", batch=1, estimator="spsa", tau=0.05, **QUICK))

    def charged(step, clock):
        t = step.plan.schedule.topology
        return 1e-6 * len(t.t_edges) + 5e-6 * len(step.plan.schedule.executed)

    monkeypatch.setattr(Step, "warm", charged)
    model.find()
    e, _ = model.found
    mean, again = np.zeros(len(e.d)), np.zeros(len(e.d))
    for k in range(400):
        term._calls = k
        mean += term.gradient(model).by_closeness
    size, c = np.abs(e.d), e.c
    rng = np.random.default_rng(0)
    rows, base = np.repeat(np.arange(5, 25), np.diff(e.candidates.indptr)), plans_like(model.found[1])

    def charge(kept):
        edges = np.stack([e.candidates.indices[kept], rows[kept]], axis=1)
        t = model.topology
        part = type(t).from_edges(edges, 25, t.inputs, t.outputs)
        return charged(Step(base(part, Executor("columns", 1)), np.ones(part.n_edges, np.float32),
                            np.ones((1, 5), np.float32), Settings(mode="infer", batch=1)), None)  # fmt: skip

    for _ in range(2000):  # what each candidate's crossing is worth where the others are moved at random
        signs = rng.choice([-1.0, 1.0], len(size))
        for k in np.flatnonzero(np.abs(size - c) < 0.05)[:3]:
            up, down = signs.copy(), signs.copy()
            up[k], down[k] = 1.0, -1.0
            again[k] += charge(size + 0.05 * up > c) - charge(size + 0.05 * down > c)
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
        seconds = plant(control.update(seconds), seconds)
        lowest = min(lowest, seconds)
    assert seconds == pytest.approx(10.0, rel=0.05)
    assert lowest > 9.0


def test_the_integral_does_not_wind_up():
    control = Controller(1.0, 1.0)
    for _ in range(1000):
        control.update(1e6)
    assert control.multiplier == pytest.approx(100.0)
    assert control.integral <= Controller.HIGH
    for _ in range(40):
        control.update(0.7)
    assert control.multiplier < 1.0
    for _ in range(1000):
        control.update(1e-6)
    assert control.multiplier == pytest.approx(1e-3)
    for _ in range(40):
        control.update(1.5)
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
    chosen = TimeSettings(mode="infer", batch=2, every=3, budget=budget, **QUICK)
    term = MeasuredTime(model, chosen)
    for _ in range(20):
        term.value(model)
    again = MeasuredTime.resumed(model, chosen, json.loads(json.dumps(term.state())))
    assert again.state() == term.state()
    assert again.refit.model == term.refit.model
    assert again.value(model) > 0
    if budget:
        assert again.reference == budget
        assert again.controller.integral == term.controller.integral
    again.gradient(model)
    fresh = MeasuredTime.resumed(model, chosen, term.state())
    assert np.isfinite(fresh.gradient(model).by_closeness).all()  # before any timed step


def test_executor_auto_is_settled():
    model = model_of("digits", executor="auto", threads=2)
    MeasuredTime(model, TimeSettings(batch=50, **QUICK))  # two tiles, two threads
    assert model.executor.name == "columns"
    model = model_of("digits", executor="auto", threads=2)
    term = MeasuredTime(model, TimeSettings(batch=1, mode="infer", **QUICK))
    assert term.executor.name in ("columns", "wavefront")
    assert model.executor.name == "auto"


def test_a_profile_takes_the_place_of_the_calibration():
    model = model_of()
    wanted = Settings("columns", "infer", 4, 1, "perf_counter", 10, 3)
    x = np.ones((4, 5), np.float32)
    profile = calibrate(model.topology, plans_like(model.find()[1]), x, wanted)
    slow = dataclasses.replace(profile, seconds=3 * profile.seconds)
    chosen = TimeSettings(mode="infer", batch=4, **QUICK)
    found = MeasuredTime(model, chosen, slow)
    np.testing.assert_allclose(found.refit.model.coefficients, 3 * np.array(profile.model.coefficients), rtol=1e-6)
    foretold = [line for line in found.describe() if "the calibration foretells" in line]
    assert len(foretold) == 1
    assert foretold[0].startswith("warning: a step of this network takes")
    for change, words in (
        ({"batch": 5}, "batch is 4 there, 5 here"),
        ({"clock": "process_time"}, "clock is perf_counter there, process_time here"),
        ({"mode": "train"}, "mode is infer there, train here"),
    ):
        with pytest.raises(ValueError, match=words):
            MeasuredTime(model, dataclasses.replace(chosen, **change), profile)
    with pytest.raises(ValueError, match="threads is 1 there, 2 here"):
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


def test_a_clock_too_coarse_is_refused(monkeypatch):
    coarse = dataclasses.replace(measured.Clock.of("perf_counter"), resolution=1e-3)
    monkeypatch.setattr(measured.Clock, "of", staticmethod(lambda name: coarse))
    with pytest.raises(ValueError, match=r"too coarse for .*choose another clock"):
        MeasuredTime(model_of(), TimeSettings(**QUICK))


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("batch", [1, 50, 130])
def test_bytes_are_those_of_the_allocator(mode, batch):
    model = model_of("digits")
    model.find()
    _, plan = model.found
    t = plan.schedule.topology
    x = np.ones((batch, 64), np.float32)
    make = plans_like(plan)

    def step():
        """A step with everything of its own: structure, schedule, buffers."""
        arrays = [a.copy() for a in (t.indptr, t.indices, t.inputs, t.outputs)]
        own = make(type(t)(*arrays), Executor("columns", 1))
        own = dataclasses.replace(own, kind=plan.kind.copy(), slope=plan.slope.copy())
        values, scales = np.ones(t.n_edges, np.float32), own.scales(np.ones(290, np.float32), np.ones(290, np.float32))
        held = [x.copy(), arrays, own, values, scales]
        out, walk = own.forward(x, values, scales)
        held += [out, walk]
        if mode == "train":
            held += [np.ones_like(out), own.backward(walk, values, np.ones_like(out))]
        return held

    step()  # compiled
    gc.collect()
    tracemalloc.start()
    try:
        held = step()
        gc.collect()
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(held) > 5
    assert step_bytes(plan, batch, mode == "train") == pytest.approx(allocated, rel=0.03, abs=20_000)


def test_the_memory_term_counts_edges():
    model = model_of("digits")
    term = MeasuredMemory(model, batch=50)
    before, edges = term.bytes(model), model.topology.n_edges
    assert term.value(model) == 1.0
    with torch.no_grad():
        model.cutoff += 1.0
    model(torch.randn(2, 64))
    fewer = edges - model.topology.n_edges
    per_edge = edge_bytes(model.found[1], 50, True)
    assert per_edge == pytest.approx(4 + 4 + 8 + 2 * 4 * 9 / 8, rel=0.01)
    structure = 8 * 200  # levels make the waves shorter
    assert before - term.bytes(model) == pytest.approx(fewer * per_edge, abs=structure)
    (term(model) * 1e3).backward()
    model(torch.randn(2, 64))
    soft = model.soft_edges(term.tau)
    expected = torch.autograd.grad(soft * (1e3 * per_edge / before), model.mu)[0]
    torch.testing.assert_close(model.mu.grad, expected, rtol=1e-4, atol=1e-6)


def test_found_is_made_where_no_forward_was():
    model = model_of()
    model._found = _Found()
    evaluation, plan = model.found
    assert plan.schedule.topology.n_edges == len(evaluation.strengths)
    assert model(rng_input(model, 2)).shape == (2, 4)
    assert dense_omega(model).shape == (25, 25)
