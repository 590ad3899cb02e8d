"""The benchmark of what ships: dense rivals compute what torch computes, prices are found again, the command runs."""

import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench import ship, ship_prices, ship_rivals
from bench.ship_c import Library, Source
from sparse_dnm import data, interop
from sparse_dnm.cli.app import app
from sparse_dnm.config import TrainConfig
from sparse_dnm.export import to_c

CC = "gcc -std=c99 -O1"
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
needs_emlearn = pytest.mark.skipif(find_spec("emlearn") is None, reason="the package emlearn is not installed")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def rival(digits):
    return ship_rivals.train(digits, 6, TrainConfig(steps=400, batch_size=20, shift=1))


@pytest.fixture(scope="module")
def x(digits, rival):
    return rival.inputs(digits.x_test[:50])


def is_that_of_torch(found, rival, x):
    expected = rival.outputs(x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_rival_drops_what_is_constant_in_training_and_learns(digits, rival, x):
    varies = np.flatnonzero(digits.x_train.numpy().std(axis=0) > 0)
    assert len(varies) < digits.n_inputs
    np.testing.assert_array_equal(rival.columns, varies)
    assert rival.sizes == (len(varies), 6, 10)
    assert rival.constant_bytes == 4 * (len(varies) * 6 + 6 + 6 * 10 + 10)
    y = rival.outputs(rival.inputs(digits.x_test))
    assert rival.accuracy == pytest.approx((y.argmax(1) == digits.y_test.numpy()).mean())
    assert rival.accuracy > 0.3


def test_onnxruntime_gives_the_outputs_of_torch(rival, x):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    session = ship_rivals.Session(ship_rivals.onnx_model(rival), rival.sizes[0], 10)
    is_that_of_torch(session.outputs(x), rival, x)
    empty = ship_rivals.Session(ship_rivals.onnx_model(None, 10), 10, 10)
    np.testing.assert_array_equal(empty.outputs(x[:, :10]), x[:, :10])


def test_scikit_learn_decides_as_torch(rival, x):
    np.testing.assert_array_equal(ship_rivals.sklearn_model(rival).predict(x), rival.outputs(x).argmax(1))


@needs_emlearn
def test_the_c_of_emlearn_gives_the_outputs_of_torch(rival, x):
    sources = ship_rivals.emlearn_sources(rival)
    assert list(sources) == ["inline", "loadable"]
    for source in sources.values():
        for flags in ("", ship.REORDERED):
            is_that_of_torch(Library(source, f"{CC} {flags}").outputs(x), rival, x)
        assert rival.constant_bytes < source.flash_bytes(CC) < rival.constant_bytes + 5000


def test_our_export_of_the_dense_network_gives_the_outputs_of_torch(rival, x):
    program = to_c(interop.from_module(rival.module(), threads=1))
    source = Source.of(program, 10, "float32")
    is_that_of_torch(Library(source, CC).outputs(x), rival, x)
    assert program.constant_bytes < source.flash_bytes(CC)


def test_a_rival_that_computes_something_else_is_refused(rival, x):
    with pytest.raises(RuntimeError, match="emlearn: outputs differ from those of torch by"):
        rival.check(lambda given: rival.outputs(given) * 1.001, x, "emlearn")


def test_a_trained_rival_is_kept_and_trained_again_for_other_settings(digits, tmp_path):
    said = []
    config = TrainConfig(steps=5, batch_size=20)
    made = [ship_rivals.trained(digits, 4, config, tmp_path, said.append) for _ in range(2)]
    assert len(said) == 1
    for name in ("weights", "biases"):
        for a, b in zip(getattr(made[0], name), getattr(made[1], name), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(made[0].columns, made[1].columns)
    assert made[0].accuracy == made[1].accuracy
    ship_rivals.trained(digits, 4, TrainConfig(steps=6, batch_size=20), tmp_path, said.append)
    assert len(said) == len(list(tmp_path.iterdir())) == 2


def test_a_package_that_is_missing_is_named(monkeypatch, rival):
    monkeypatch.setitem(sys.modules, "emlearn", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        ship_rivals.emlearn_sources(rival)
    assert ship_rivals.missing(caught.value) == "emlearn is not installed: pip install emlearn"


def test_the_smallest_rival_of_an_accuracy_is_found():
    def of(hidden):
        return ship_rivals.Rival(np.arange(1), (np.zeros((1, hidden)),), (), hidden / 100)

    for goal, expected in ((0.0, 8), (0.08, 8), (0.09, 12), (0.47, 48), (0.48, 48), (0.481, 64), (0.9, 64)):
        assert ship_rivals.smallest(of, goal, (8, 12, 16, 20, 24, 32, 48, 64)).weights[0].shape[1] == expected


def test_prices_are_found_again_in_times_that_are_made_of_them():
    networks = [ship_prices.random_network(h, *each, np.random.default_rng(h)) for h in (20, 60) for each in
                ((3, 0), (0, 1), (4, 1), (9, 3))]  # fmt: skip
    features = np.stack([ship_prices.counts(network) for network in networks])
    for network, counted in zip(networks, features, strict=True):
        lanes = sum((part.block_edge >= 0).sum() for stage in network.layout.stages for part in stage.parts)
        steps = sum((part.edge < 0).sum() for stage in network.layout.stages for part in stage.parts)
        assert counted[2] - steps + lanes == network.layout.folded.n_edges
    ns = np.array([20.0, 1.5, 0.4, 0.7])
    prices = ship_prices.fit(features, 1e-9 * features @ ns)
    np.testing.assert_allclose(prices.ns, ns, rtol=1e-6)
    np.testing.assert_allclose(prices.off, 0, atol=1e-9)
    assert (prices.low <= prices.ns * (1 + 1e-6)).all()
    assert (prices.high >= prices.ns * (1 - 1e-6)).all()


def test_the_networks_of_prices_compute_what_they_are(x):
    network = ship_prices.random_network(20, 3, 1, np.random.default_rng(0))
    given = np.random.default_rng(1).standard_normal((5, ship_prices.N_INPUTS)).astype(np.float32)
    expected = network.layout.folded.outputs(given)
    found = ship_prices.library(network, CC).outputs(given)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@needs_emlearn
def test_the_quick_form_prints_all_tables_of_a_run(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((90, 4))
    table = tmp_path / "table.csv"
    pd.DataFrame(
        {**dict(zip("abcd", columns.T, strict=True)), "kind": np.where(columns[:, 0] > 0, "yes", "no")}
    ).to_csv(table, index=False)
    run = tmp_path / "small"
    done = CliRunner().invoke(
        app, ["train", str(table), "--edges", "60", "--steps", "40", "--threads", "1", "--out", str(run)]
    )
    assert done.exit_code == 0, done.output
    monkeypatch.setattr(ship_rivals, "GRID", (2, 3))
    monkeypatch.setattr(ship_prices, "HIDDEN", (20,))
    monkeypatch.setattr(ship_prices, "PER_ROW", ((3, 0), (0, 1), (4, 1), (9, 3)))
    monkeypatch.setattr(ship, "AVX2", "-std=c99 -O1")
    arguments = [run, "--quick", "--data-dir", tmp_path, "--cache", tmp_path / "rivals", "--cc", CC]
    monkeypatch.setattr(sys, "argv", ["bench.ship", *map(str, arguments)])
    ship.main()
    said = capsys.readouterr().out
    assert str(tmp_path) not in said
    titles = [line for line in said.splitlines() if line.startswith("#")]
    assert titles[0].endswith(" edges of small")
    assert titles[1:] == ["## Prices"]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in said.splitlines() if line.startswith("| ")]
    for name in ("C, int8", "model(x)", "onnxruntime, less an empty model", "emlearn, inline",
                 "emlearn, loadable, sums reordered", "the dense network by our export", f"`{CC}`"):  # fmt: skip
        assert name in rows
    assert said.count("aim ≥ 3: ") == 3
    assert any((tmp_path / "rivals").iterdir())
