"""Edges from afar, a number of edges, recovery: against dense gradients, and by whole trainings."""

import dataclasses
import json
import math
import os
import re
import signal

import naive
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from strategies import candidate_pairs, omega_of, raw_scalars
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, Trainer, data
from sparse_dnm.cli.app import app
from sparse_dnm.config import EDGE_MODES, OMEGA_IN_CLOSENESS
from sparse_dnm.model.growth import MIN_FACTOR, NEW_EDGE_CLOSENESS, grow_edges, reinitialize_rows
from sparse_dnm.presets import PRESETS
from sparse_dnm.train.augment import Augmentation
from sparse_dnm.train.checkpoint import CHECKPOINT
from sparse_dnm.train.schedules import kappa, learning_rate, trimmed_after
from sparse_dnm.train.trainer import Interrupted, TrainingError
from sparse_dnm.train.trim import keep_edges

pytestmark = pytest.mark.slow


def model_of(seed=0, dtype=torch.float64, **changes):
    changes = {"cutoff": -0.6, "weight": (1.0, 0.3), "bias": (0.0, 0.3), "omega": (0.0, 0.6), **changes}
    config = ManifoldConfig.preset("toy", skin=0.02, **changes)
    return DynamicManifold(config, torch.Generator().manual_seed(seed), dtype)


def pairs_of(model):
    """The candidates as a list of (reader, source)."""
    return list(zip(*(array.tolist() for array in candidate_pairs(model)), strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("output", ["linear", "square"])
@pytest.mark.parametrize("edges", OMEGA_IN_CLOSENESS)
def test_a_search_finds_the_largest_gradients_outside_the_candidates(seed, output, edges):
    model = model_of(seed, output=output, edges=edges)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    topology, n = model.find().topology, 25
    dense = topology.to_scipy(model.strengths).toarray()
    weight, bias = (model.get_parameter(name).detach().numpy() for name in ("weight", "bias"))
    reach = naive.closeness_of(edges, n, 5, 4, 5.0, raw_scalars(model), np.ones((n, n)))
    known = set(pairs_of(model))

    def loss(strengths):
        out = naive.forward_manifold(x.numpy(), strengths, weight, bias, 5, 4, "leaky_relu", output)
        return ((out - y.numpy()) ** 2).mean()

    slopes = {}
    for i in range(5, n):
        for j in range(min(i, n - 4)):
            if (i, j) not in known and topology.live[i] and abs(reach[i, j]) > MIN_FACTOR:
                high, low = dense.copy(), dense.copy()
                high[i, j] += 1e-6
                low[i, j] -= 1e-6
                slopes[i, j] = (loss(high) - loss(low)) / 2e-6
    count = 5
    grown = grow_edges(model, x, lambda out: (out - y).square().mean(), count)
    assert grown == count
    after = model.find().values
    places = {pair: k for k, pair in enumerate(pairs_of(model))}
    added = set(places) - known
    expected = sorted(slopes, key=lambda pair: -abs(slopes[pair]))[:count]
    assert added == set(expected)
    for pair in expected:
        d = after.d[places[pair]]
        assert abs(d) == pytest.approx(NEW_EDGE_CLOSENESS * after.c)
        assert np.sign(d) == -np.sign(slopes[pair])  # it grows in the direction that lowers the loss
    for pair in known:
        assert pair in places


def test_random_regrowth_is_of_its_generator_and_of_either_sign():
    found = []
    for seed in (1, 1, 2):
        model = model_of(3)
        before = len(model.closeness)
        grow_edges(
            model, torch.ones(2, 5, dtype=torch.float64), lambda out: out.sum(), 20, torch.Generator().manual_seed(seed)
        )
        assert len(model.candidates.indices) == before + 20
        found.append(model.candidates.indices.tobytes())
    assert found[0] == found[1] != found[2]
    with pytest.raises(ValueError, match="growing edges needs edges in"):
        grow_edges(model_of(edges="closeness"), torch.ones(2, 5, dtype=torch.float64), lambda out: out.sum(), 3)


def test_moments_stay_with_their_edges_over_a_thousand_steps_of_churn():
    """One edge is followed by its number (i, j): its moments are those of an Adam that only knows that edge."""
    config = ManifoldConfig.preset("digits")
    model = DynamicManifold(config, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    model.follow(optimizer)
    generator, x, y = (
        torch.Generator().manual_seed(5),
        *torch.rand(2, 20, 64, generator=torch.Generator().manual_seed(1)),
    )
    labels = y[:, 0].mul(10).long().clamp(0, 9)
    strongest = int(np.abs(model.find().values.d).argmax())
    edge, slot = pairs_of(model)[strongest], int(model.candidates.slots[strongest])
    first = second = 0.0
    value = model.edge_weight[slot].item()
    churn = 0
    for step in range(1, 1001):
        model.kappa = 1.0
        loss = torch.nn.functional.cross_entropy(model(x), labels) + 1e-6 * model.soft_edges(0.3)
        optimizer.zero_grad()
        loss.backward()
        readers, sources = candidate_pairs(model)
        (place,) = np.flatnonzero((readers == edge[0]) & (sources == edge[1]))
        assert model.candidates.slots[place] == slot
        assert model.edge_weight[slot].item() == pytest.approx(value, rel=1e-5, abs=1e-7)
        g = model.edge_weight.grad[slot].item()
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        optimizer.step()
        state = optimizer.state[model.edge_weight]
        assert state["exp_avg"][slot].item() == pytest.approx(first, rel=1e-3, abs=1e-9)
        assert state["exp_avg_sq"][slot].item() == pytest.approx(second, rel=1e-3, abs=1e-12)
        value = model.edge_weight[slot].item()
        if step % 50 == 0:
            before = len(model.candidates.indices)
            grow_edges(model, x, lambda out: torch.nn.functional.cross_entropy(out, labels), 40, generator)
            churn += len(model.candidates.indices) - before
            assert state["exp_avg"][slot].item() == pytest.approx(first, rel=1e-3, abs=1e-9)
    assert churn > 100


@pytest.mark.parametrize("edges", EDGE_MODES)
@pytest.mark.parametrize("share", [0.3, 0.9, 1.15])
def test_the_cutoff_gives_a_number_of_edges(edges, share):
    model = DynamicManifold(ManifoldConfig.preset("digits", edges=edges), torch.Generator().manual_seed(0))
    wanted = round(share * model.topology.n_edges)
    assert keep_edges(model, wanted) == pytest.approx(wanted, rel=0.01)
    assert model.topology.n_edges == pytest.approx(wanted, rel=0.01)
    with pytest.raises(ValueError, match="the 1 closest edges do not connect"):
        keep_edges(model, 1)


@pytest.mark.parametrize("edges", ["free", "free-closeness"])
def test_edges_that_no_cutoff_separates_lose_their_omega(edges):
    config = ManifoldConfig.preset("digits", edges=edges, omega=(0.0, 3.0))
    model = DynamicManifold(config, torch.Generator().manual_seed(0))
    cutoff, evaluation = model.cutoff.item(), model.find()
    values = np.abs(evaluation.host_values.d)
    assert np.sort(values)[-800] > 1  # more edges lie above every cutoff
    closest = set(np.argsort(values, kind="stable")[-800:].tolist())
    candidates, slots = evaluation.host.candidates, evaluation.host.candidates.slots.copy()
    assert keep_edges(model, 800) == 800
    assert model.cutoff.item() == cutoff
    kept = np.flatnonzero(model.edge_weight.detach().numpy()[slots] != 0)
    above = set(np.flatnonzero(values > evaluation.host_values.c).tolist())
    assert len(above & set(kept.tolist())) == 800
    assert len(closest - set(kept.tolist())) <= 5  # of which some made room for the path to an output
    assert len(candidates.indices) > 800


def test_rows_without_edges_get_new_scalars():
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0))
    dead = [3, 7, 100]
    with torch.no_grad():
        model.alpha[dead] = 0.0
    model.find()
    reads = np.diff(model.topology.indptr)[64:]
    assert (reads[dead] == 0).all()
    assert reinitialize_rows(model, torch.Generator().manual_seed(1)) == int((reads[:226] == 0).sum())
    model.find()
    assert (np.diff(model.topology.indptr)[64:][dead] > 0).all()
    assert (model.alpha[dead] > 0).all()


def test_what_happens_when():
    config = TrainConfig.preset("digits", steps=1000, speed="proxy", target_edges=100, kappa=2.0, grow_every=5, lr=0.1)
    assert trimmed_after(config) == 700
    assert [kappa(config, k) for k in (0, 1, 4, 5, 350)] == [10.0, 0.0, 0.0, 10.0, 10.0]
    assert kappa(config, 525) == pytest.approx(5.0)
    assert kappa(config, 700) == 0.0
    assert learning_rate(config, 0) == 0.1
    assert learning_rate(config, 699) == pytest.approx(0.01)
    assert learning_rate(config, 700) == 0.05
    assert learning_rate(config, 999) < 1e-4
    assert PRESETS["mnist"].growing(77).target_edges == 77


def test_inputs_are_varied_by_the_generator_alone():
    digits = data.load("digits")
    x = digits.x_train[:50]
    config = TrainConfig(shift=2, input_dropout=0.25)

    def varied(config, x):
        augment = Augmentation(config, digits, torch.Generator().manual_seed(3))
        return augment.apply(x, augment.draw(torch.arange(len(x))))

    one, two = (varied(config, x) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, x)
    assert varied(TrainConfig(), x) is x
    dropped = varied(TrainConfig(input_dropout=0.25), torch.ones(500, 64))
    assert dropped.mean().item() == pytest.approx(0.75, abs=0.02)
    with pytest.raises(ValueError, match="shift=1 moves images, but toy has 5 inputs and period 5"):
        Augmentation(TrainConfig(shift=1), data.load("toy"), torch.Generator())
    with pytest.raises(ValueError, match="out of sight"):
        Augmentation(TrainConfig(shift=8), digits, torch.Generator())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_edges": 50, "speed": "time"}, "target_edges=50 is reached by the proxy"),
        ({"target_edges": 50, "proxy_coefficient": 0.0}, "proxy_coefficient > 0"),
        ({"kappa": -1.0}, "kappa=-1.0 must be a finite number >= 0"),
        ({"kappa": 1.0, "executor": "torch-sparse"}, "with executor='torch-sparse' set kappa=0"),
        ({"input_dropout": 1.0}, "input_dropout=1.0 must be a share"),
        ({"regrowth": "magic"}, "regrowth='magic'"),
        ({"grow_every": 0}, "grow_every=0 must be an integer >= 1"),
    ],
)
def test_bad_settings_of_growth(change, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**{"speed": "proxy", **change})


@pytest.mark.parametrize(
    ("rows", "sources", "omega", "said"),
    [
        ([0], [0], [1.0, 2.0], "must be (n,) each"),
        ([-1], [0], [1.0], "row -1 (of 20) cannot read neuron 0"),
        ([20], [0], [1.0], "row 20 (of 20) cannot read"),
        ([3], [8], [1.0], "row 3 (of 20) cannot read neuron 8"),
        ([3, 3], [1, 1], [1.0, 1.0], "row 3 has neuron 1 as a candidate already"),
        ([3], [1], [math.nan], "omega must be finite"),
    ],
)
def test_bad_candidates(rows, sources, omega, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        model_of().add_candidates(rows, sources, omega)


def test_bad_use_of_growth():
    model, x = model_of(), torch.ones(2, 5, dtype=torch.float64)
    for value in (-1, math.nan, "a", None):
        with pytest.raises(ValueError, match="must be a finite number >= 0"):
            model.kappa = value
    with pytest.raises(ValueError, match="count=0 must be >= 1"):
        grow_edges(model, x, lambda out: out.sum(), 0)
    with pytest.raises(ValueError, match="it must be a scalar"):
        grow_edges(model, x, lambda out: out, 3)
    with pytest.raises(ValueError, match="5"):
        grow_edges(model, x[:, :4], lambda out: out.sum(), 3)


def training(tmp_path=None, steps=600, manifold=(), **changes):
    preset = PRESETS["digits"]
    config = dataclasses.replace(
        preset.growing(700), steps=steps, log_every=50, checkpoint_every=100, lr=0.01, threads=1
    )
    config = dataclasses.replace(config, **changes)
    shape = dataclasses.replace(preset.manifold, **dict(manifold))
    model = DynamicManifold(shape, torch.Generator().manual_seed(0), threads=1)
    return Trainer(model, data.load("digits"), config, tmp_path)


@pytest.mark.parametrize("edges", EDGE_MODES)
def test_a_run_ends_with_its_number_of_edges(edges):
    found = training(manifold={"edges": edges}, scan_every=100 if edges in OMEGA_IN_CLOSENESS else 0).run()
    assert found["edges"] == pytest.approx(700, rel=0.02)
    assert edges not in OMEGA_IN_CLOSENESS or found["test_accuracy"] > 0.8


@pytest.mark.parametrize("at", [250, 450, 550, 205])  # before the structure stays, as it does, after; between two looks
def test_a_torn_run_with_growth_ends_in_the_same_bits(tmp_path, at):
    whole = training(tmp_path / "whole", scan_every=60, regrowth="random", shift=1).run()

    class TornError(Exception):
        pass

    def tear(record):
        if record["step"] == at:
            raise TornError
        if at == 205 and record["step"] == 200:  # as if by Ctrl-C
            advance, torn._advance = torn._advance, lambda: os.kill(os.getpid(), signal.SIGINT) or advance()

    torn = training(tmp_path / "torn", scan_every=60, regrowth="random", shift=1)
    with pytest.raises((TornError, Interrupted)):
        torn.run(tear)
    again = Trainer.resume(tmp_path / "torn", data.load("digits")).run()
    for name in ("test_accuracy", "edges", "depth", "live"):
        assert whole[name] == again[name]
    ends = [load_file(tmp_path / k / CHECKPOINT) for k in ("whole", "torn")]
    for name, array in ends[0].items():
        assert array.tobytes() == ends[1][name].tobytes(), name
    logs = [(tmp_path / k / "metrics.jsonl").read_text().splitlines() for k in ("whole", "torn")]
    for a, b in zip(*logs, strict=True):
        assert {**json.loads(a), "step_seconds": 0} == {**json.loads(b), "step_seconds": 0}


def test_omega_decays():
    """With a coefficient that outweighs all else, Adam takes every omega towards 0 by about lr a step."""
    sizes = []
    for decay in (0.0, 1e3):
        run = training(steps=20, omega_decay=decay, kappa=0.0, target_edges=0, speed="none", lr=0.001)
        run.run()
        sizes.append(omega_of(run.model).abs().mean().item())
    assert sizes[0] - sizes[1] == pytest.approx(20 * 0.001 / 2, rel=0.5)  # the cosine halves the way


def test_a_network_that_cut_itself_in_two_is_connected_again():
    run = training(steps=300, target_edges=0, fine_tune=0.0, proxy_coefficient=3e4, kappa=0.0, lr=0.02)
    found = run.run()
    assert [note for note in run.notes if "had cut the network in two" in note]
    assert math.isfinite(found["test_accuracy"])
    assert found["edges"] > 0


def test_a_network_that_needs_many_recoveries_is_reported(monkeypatch):
    monkeypatch.setattr("sparse_dnm.train.recovery.MAX_RECOVERIES", 0)
    run = training(steps=300, target_edges=0, fine_tune=0.0, proxy_coefficient=3e4, kappa=0.0, lr=0.02)
    with pytest.raises(TrainingError, match="the network has cut itself in two"):
        run.run()


def test_the_command_takes_edges_or_density(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*arguments, code=0):
        done = CliRunner().invoke(app, ["train", "toy", "--threads", "1", *map(str, arguments)])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    command("--edges", 40, "--steps", 800, "--out", "a")
    assert json.loads((tmp_path / "a/summary.json").read_text())["edges"] == 40
    command("--density", 0.15, "--steps", 800, "--out", "b")
    possible = ManifoldConfig.preset("toy").possible_edges
    assert json.loads((tmp_path / "b/summary.json").read_text())["edges"] == round(0.15 * possible)
    assert "--edges and --density say what" in command("--edges", 40, "--density", 0.1, code=2)
    assert "give one of them" in command("--edges", 40, "--set", "target_edges=3", code=2)
    assert "torch-sparse" in command("--edges", 40, "--executor", "torch-sparse", code=2)
    command("--edges", 40, "--steps", 3, "--out", "c")
    assert json.loads((tmp_path / "c/summary.json").read_text())["edges"] == 40
    assert "--density 2 must be a share" in command("--density", 2, code=2)
    assert "more than the" in command("--edges", 10_000, code=2)
    assert "--edges and --budget-us say what" in command("--edges", 40, "--budget-us", 100, code=2)
