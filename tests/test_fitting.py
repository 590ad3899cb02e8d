"""Fitting to a budget: machines whose new processes take other seconds than the process that trains."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_budget import CALL, EDGE, UNIT, charged, given, model_of

from sparse_dnm import TrainConfig
from sparse_dnm.engine.schedule import Schedule
from sparse_dnm.engine.topology import Topology
from sparse_dnm.timing.subprocess import Processes
from sparse_dnm.train import fitting
from sparse_dnm.train.fitting import Fitting
from sparse_dnm.train.state import TrainingError
from sparse_dnm.train.trim import Disconnected, cut

pytestmark = pytest.mark.slow


def price(network):
    """Seconds of a `Network` by the price list of `test_budget.Charged`."""
    s = Schedule(Topology(network.indptr, network.indices, network.inputs, network.outputs))
    return CALL + EDGE * len(s.topology.t_edges) + UNIT * len(s.executed)


def fitted(monkeypatch, model, budget, machine):
    """Fit ``model`` to ``budget`` seconds where new processes find ``machine(seconds by the price list)``; returns
    what was found, the networks' edges and seconds in the order in which they were timed, and the notes."""
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
