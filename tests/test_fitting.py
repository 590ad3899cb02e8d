"""Fitting to a budget where new processes take other seconds than the one that trains, and the processes themselves."""

import dataclasses
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_budget import CALL, EDGE, UNIT, charged, given, model_of

from sparse_dnm import TrainConfig
from sparse_dnm.engine.schedule import Schedule
from sparse_dnm.engine.topology import Topology
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.quiet import Quiet
from sparse_dnm.timing.subprocess import PATIENCE, Network, Processes
from sparse_dnm.train import fitting
from sparse_dnm.train.fitting import Fitting
from sparse_dnm.train.state import TrainingError
from sparse_dnm.train.trim import Disconnected, cut

pytestmark = pytest.mark.slow


def price(network):
    """Seconds of a `Network` by the price list of `test_budget.Charged`."""
    s = Schedule(Topology(network.indptr, network.indices, network.inputs, network.outputs))
    return CALL + EDGE * len(s.topology.t_edges) + UNIT * len(s.executed)


def fitted(monkeypatch, model, budget, machine, here=None):
    """Fit ``model`` to ``budget`` seconds.  New processes find ``machine(seconds by the price list)``; this process
    finds those by the price list, or ``here(number of timings in new processes)`` times as many.

    Returns what was found, the networks' edges and seconds in the order in which they were timed, and the notes."""
    tried = []

    def timed(self, networks, *rest):
        (network,) = networks.values()
        tried.append((len(network.indices), machine(price(network))))
        return given(networks, tried[-1][1])

    monkeypatch.setattr(Processes, "time", timed)
    merit = np.random.default_rng(0).lognormal(0, 3, (model.config.n_neurons, model.config.n_neurons))
    monkeypatch.setattr(fitting, "saliency", lambda model, *rest: merit[tuple(model.topology.edges().T)])
    run = SimpleNamespace(
        model=model, data=None, step=0, notes=[], with_room=lambda action: action(),
        config=TrainConfig(budget_us=1e6 * budget, clock="perf_counter"),
    )  # fmt: skip
    term = charged(model)
    if here is not None:
        measure = term.measure
        term.measure = lambda *given: here(len(tried)) * measure(*given)
    found = 1e-6 * Fitting(run, term, lambda least: f"give {least:.4g}").fit()
    return found, tried, run.notes


@pytest.mark.parametrize("share", [0.7, 1.2])
@pytest.mark.parametrize("bias", [0.75, 1.0, 1.3])
@pytest.mark.parametrize("edges", ["free", "closeness"])
def test_a_network_takes_98_to_100_percent_of_its_budget_whatever_the_bias_of_new_processes(
    monkeypatch, edges, bias, share
):
    model = model_of(edges=edges)
    before = charged(model).measure(model.find())
    budget = share * before * min(bias, 1.0)
    found, tried, _ = fitted(monkeypatch, model, budget, lambda seconds: bias * seconds)
    assert 0.98 * budget <= found <= budget
    assert found == pytest.approx(bias * charged(model).measure(model.find()))  # this network is left
    assert model.connected
    assert len(tried) <= 8


def test_fits_hold_on_a_machine_whose_seconds_vary(monkeypatch):
    shares = []
    for seed in range(5):
        rng, model = np.random.default_rng(seed), model_of()
        budget = 0.8 * charged(model).measure(model.find())
        fitted(monkeypatch, model, budget, lambda seconds, rng=rng: 1.1 * seconds * rng.normal(1.0, 0.007))
        shares.append(1.1 * charged(model).measure(model.find()) / budget)
    assert 0.98 <= np.median(shares) <= 1.005
    assert max(shares) <= 1.02
    assert min(shares) >= 0.96


@pytest.mark.parametrize("becomes", [0.85, 1.15])
@pytest.mark.parametrize("after", [2, 30, 40, 50, 60])
def test_a_pace_that_changes_in_the_process_that_trains_does_not_matter(monkeypatch, becomes, after):
    model, calls = model_of(), []
    budget = 0.9 * charged(model).measure(model.find())

    def here(confirmations):
        calls.append(1)
        return 1.0 if len(calls) <= after else becomes

    found, _, _ = fitted(monkeypatch, model, budget, lambda seconds: 1.12 * seconds, here)
    assert 0.98 * budget <= found <= budget
    assert found == pytest.approx(1.12 * charged(model).measure(model.find()))


def test_a_network_that_is_too_slow_is_cut_although_this_process_has_become_faster(monkeypatch):
    model, calls = model_of(), []
    budget = 0.9 * charged(model).measure(model.find())

    def here(confirmations):
        calls.extend([1] if confirmations else [])
        return 0.7 if len(calls) > 1 else 1.0  # from the one that the next target is computed from

    found, tried, _ = fitted(monkeypatch, model, budget, lambda seconds: 1.12 * seconds, here)
    edges = [edges for edges, _ in tried]
    assert min(edges[:4]) < edges[0]  # the first is timed up to three times
    assert max(edges) == edges[0]
    assert 0.98 * budget <= found <= budget


def test_where_time_jumps_over_the_budget_the_largest_network_that_fits_is_left(monkeypatch):
    model = model_of()
    before = charged(model).measure(model.find())
    step = 0.7 * before
    budget = 0.75 * before
    # beyond a number of edges everything leaves the caches
    found, tried, notes = fitted(monkeypatch, model, budget, lambda s: s if s <= step else 1.5 * s)
    fits = [edges for edges, seconds in tried if seconds <= budget]
    assert found <= step
    assert model.find().n_edges == max(fits)
    assert found == pytest.approx(max(seconds for _, seconds in tried if seconds <= budget))
    assert found > 0.95 * step
    assert len(notes) > 2


def test_a_budget_that_no_try_met_is_an_error_with_the_least_time(monkeypatch):
    model = model_of()
    budget = 0.8 * charged(model).measure(model.find())
    times = iter(np.linspace(1.4, 1.2, 24) * budget)
    with pytest.raises(
        TrainingError, match=r"was not met after \d trims: keep the machine quiet\. give|cannot be made"
    ):
        fitted(monkeypatch, model, budget, lambda seconds: next(times))


@pytest.mark.parametrize("edges", ["free", "closeness"])
def test_a_cut_removes_so_many_edges_and_never_disconnects(edges):
    model = model_of(edges=edges)
    term, before = charged(model), model.find().n_edges
    cut(model, term, 7, lambda: np.ones(model.topology.n_edges))
    assert model.find().n_edges == before - 7
    with pytest.raises(Disconnected):
        cut(model, term, before - 7, lambda: np.ones(model.topology.n_edges))
    assert model.find().connected
    assert torch.isfinite(model.cutoff)


class Answers:
    """Stands for the processes: each answers with the next reference, s, and with a ratio of 10 x that many."""

    def __init__(self, monkeypatch, references):
        self.left, self.pauses = list(references), 0
        monkeypatch.setattr(Processes, "_ask", self.ask)
        monkeypatch.setattr("sparse_dnm.timing.subprocess.time.sleep", self.sleep)

    def ask(self, request, again):
        reference = self.left.pop(0)
        return {"reference": reference, "ratios": [[10 * reference]], "raw": [[reference]], "kept": None, "date": None}

    def sleep(self, seconds):
        self.pauses += 1


def timed(threads=1, unit=1.0):
    with Processes() as processes:
        return processes.time({"it": None}, Settings(threads=threads, unit=unit and Quiet(unit)))


def test_forks_are_made_until_some_ran_on_a_calm_machine_and_these_count(monkeypatch):
    answers = Answers(monkeypatch, [1.8, 1.0, 1.7, 1.9, 1.1, 1.2, 9.0])
    found = timed()
    assert sorted(found.seconds["it"].ravel()) == [10, 11, 12]
    assert sorted(found.raw["it"].ravel()) == [1.0, 1.1, 1.2]
    assert found.factor == pytest.approx(1.1)
    assert (answers.left, answers.pauses) == ([9.0], 3)


def test_without_a_unit_the_fastest_fork_says_what_is_calm(monkeypatch):
    Answers(monkeypatch, [1.8, 1.0, 1.7, 1.2, 1.1, 9.0])
    found = timed(unit=None)
    assert found.unit.seconds == pytest.approx(1.1)
    assert sorted(found.raw["it"].ravel()) == [1.0, 1.1, 1.2]


def test_a_machine_that_stays_busy_is_not_waited_for_twice(monkeypatch):
    answers = Answers(monkeypatch, [1.8] * 100)
    with Processes() as processes:
        for _ in range(2):
            found = processes.time({"it": None}, Settings(threads=1, unit=Quiet(1.0)))
    assert found.factor == pytest.approx(1.8)
    assert answers.pauses == PATIENCE
    assert len(answers.left) == 100 - PATIENCE - 2 * 3


def test_where_a_timing_starts_python_anew_nothing_is_waited_for(monkeypatch):
    answers = Answers(monkeypatch, [1.8, 1.0, 1.7, 9.0])
    assert timed(threads=2).factor == pytest.approx(1.7)
    assert (answers.left, answers.pauses) == ([9.0], 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_one_process_imports_and_every_timing_is_a_fork_of_it_until_one_fails():
    network = Network.of(model_of("toy"))
    settings = Settings(batch=20, threads=1, repeats=3, unit=Quiet(1.0))
    with Processes() as processes:
        assert processes.time({"it": network}, settings, 1).seconds["it"].shape == (1, 3)
        first = processes._parent
        assert first.poll() is None
        processes.time({"it": network}, settings, 1)
        assert processes._parent is first
        broken = dataclasses.replace(network, values=None)
        with pytest.raises(RuntimeError, match=r"(?s)timing in a new process failed, exit status 1: .*Error"):
            processes.time({"it": broken}, settings, 1)
        assert first.poll() == 1
        processes.time({"it": network}, settings, 1)  # another process is started
        second = processes._parent
    assert second.poll() == 0


def test_a_timing_beside_a_faster_one_of_a_calm_machine_does_not_count(monkeypatch):
    """A busy machine slows the reference down more than the network: its lower time is no proof."""
    model = model_of("toy")
    run = SimpleNamespace(model=model, notes=[], config=TrainConfig(budget_us=100.0))
    answers = iter([(1.0, 120e-6), (1.8, 90e-6), (1.1, 110e-6)])
    monkeypatch.setattr(Processes, "time", lambda self, networks, *rest: given(networks, *next(answers)[::-1]))
    with charged(model).confirming() as confirm:
        assert fitting.confirmed(run, confirm) == pytest.approx(110)
    assert run.notes == []
    answers = iter([(1.8, 90e-6)])
    with charged(model).confirming() as confirm:
        assert fitting.confirmed(run, confirm) == pytest.approx(90)
    assert run.notes[0].startswith("warning: the reference took 1.80 times its seconds on the quiet machine")
