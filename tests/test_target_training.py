"""Trainings that a target steers: its features and prices, its clock, budgets of time and of flash."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import manifolds
from test_target import CC, QUICK, compiled
from test_training import assert_same_bits, dataset
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, Trainer
from sparse_dnm.cli.app import app
from sparse_dnm.engine.costs import Prices
from sparse_dnm.export import to_c
from sparse_dnm.export.c_program import CProgram
from sparse_dnm.loss import target_time
from sparse_dnm.loss.target_time import TargetTime
from sparse_dnm.loss.term import TimeSettings
from sparse_dnm.lowering.int8 import calibration
from sparse_dnm.target import Target, TargetError, launch, prices, program
from sparse_dnm.target.flash import object_bytes
from sparse_dnm.target.measure import Measured, key_of, made, reference
from sparse_dnm.timing.calibration import Calibration, fit
from sparse_dnm.timing.cost_model import FEATURES, CostModel, Quality
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.quiet import Quiet
from sparse_dnm.train import trim
from sparse_dnm.train.state import TrainingError

CHARGES = {
    "call": 2e-8, "input": 1e-9, "neuron": 5e-9, "edge": 3e-10, "output": 1e-9, "level": 3e-9, "block": 8e-10,
    "loop": 1e-9, "crowded edge": 2e-11,
}  # fmt: skip
CHARGED = np.array([CHARGES.get(name, 0.0) for name in FEATURES["c"]])  # s of each feature
TRAINING = TrainConfig(steps=300, batch_size=20, lr=0.01, kappa=1.0, log_every=100, checkpoint_every=100, threads=1)
SMALL_CODE = f"{CC} -Os"


@pytest.fixture(autouse=True)
def own_references(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_DNM_CACHE", str(tmp_path / "cache"))


def trainer(out=None, **changes):
    data = dataset("classification")
    config = dataclasses.replace(TRAINING, **changes)
    manifold = ManifoldConfig.for_data(data.n_inputs, data.n_outputs, n_neurons=60)
    generator = torch.Generator().manual_seed(1)
    return Trainer(DynamicManifold(manifold, generator, threads=1), data, config, out)


def profile_of(counts):
    """A calibration by structures of these features, exact."""
    seconds, asked = counts @ CHARGED, Settings("c", "infer", 1, 1, "target")
    pace = {
        "quiet_seconds": 1e-6,
        "quiet_date": "2026-01-01",
        "reference_seconds": 1e-6,
        "quiet": True,
        "others": None,
        "key": {},
    }
    quality = Quality(4, 1.0, 0.0, 1.0, 1.0)
    return Calibration(
        fit(asked, counts, seconds), asked, 1, quality, 0.0, 0, 1.0, 1.0, counts=counts, seconds=seconds,
        raw_seconds=seconds, pace=pace, rounds=3, uncertainty=0.0,
    )  # fmt: skip


@pytest.fixture
def charging(monkeypatch):
    """A target that charges CHARGES, exactly, whatever it is to run."""
    runs = []

    def timed(networks, target, rounds=25, on_compiled=None):
        runs.append(len(networks))
        seconds = {name: np.full(rounds, prices.counts(made(one)) @ CHARGED) for name, one in networks.items()}
        return Measured(seconds, seconds, Quiet(1e-6, "2026-01-01"), 1e-6, 1.0, 1e-9, {})

    monkeypatch.setattr(target_time, "time_on_target", timed)
    monkeypatch.setattr(prices, "time_on_target", timed)
    return runs


# -- features and prices ---------------------------------------------------------------------------------------


@given(manifolds(n_neurons=24, n_inputs=5, n_outputs=3))
@settings(max_examples=25)
def test_the_features_of_a_structure_are_those_of_what_is_exported(model):
    evaluation, dag = model.find(), model.to_dag()
    if not evaluation.connected:
        return
    expected = prices.counts(made(dag))
    found = prices.counts(prices.probe(evaluation.topology, dag))
    assert found.tolist() == expected.tolist()


def test_prices_are_what_one_more_costs():
    names = FEATURES["c"]
    counts = {"call": 1, "input": 20, "neuron": 90, "edge": 700, "output": 10, "level": 9, "block": 40, "loop": 130}
    counts["crowded edge"] = counts["edge"] ** 2 / 1000
    vector = np.array([float(counts.get(name, 0)) for name in names])
    model = CostModel("c", tuple(CHARGED))
    found = model.prices(vector)

    def seconds(**changes):
        now = {**counts, **{name: counts[name] + more for name, more in changes.items()}}
        now["crowded edge"] = now["edge"] ** 2 / 1000
        return float(np.array([float(now.get(name, 0)) for name in names]) @ CHARGED)

    assert found.lone == pytest.approx(seconds(edge=1) - seconds(), rel=1e-3)
    assert found.block == pytest.approx(seconds(block=1) - seconds())
    assert found.input == pytest.approx(seconds(input=1) - seconds())
    assert found.level == pytest.approx(seconds(level=1) - seconds())
    assert found.neuron == pytest.approx(5e-9 + 1.3 * 1e-9)  # with the loops that a row has
    assert found.edge == 0.0
    assert model.least(10) == pytest.approx(CHARGES["call"] + 1e-9 + 3e-9 + 10 * (1e-9 + 1e-9 + 3e-10))


def test_a_block_never_costs_less_than_an_edge():
    model = CostModel("c", tuple(0.0 if name == "block" else 1.0 for name in FEATURES["c"]))
    found = model.prices(np.ones(len(FEATURES["c"])))
    assert found.block == found.lone > 0


def test_the_trim_removes_lone_edges_one_by_one():
    model = DynamicManifold(ManifoldConfig.preset("digits"), torch.Generator().manual_seed(0), threads=1)
    evaluation = model.find()
    cost = Prices(0.0, 0.0, 0.0, 0.0, 7.0, 2.0)
    term = SimpleNamespace(prices=lambda evaluation: cost, settings=SimpleNamespace(tau=0.1))
    saved, together = trim._saved(evaluation, term)
    sizes = np.bincount(together)
    alone = sizes[together] == 1
    live = saved > 1e-9
    assert set(np.round(saved[live & alone], 6)) <= {2.0}
    assert sizes[together[~alone]].min() == 4  # three edges by themselves cost less than a block
    for block in np.unique(together[~alone])[:50]:
        assert saved[together == block].sum() == pytest.approx(7.0)


# -- the clock of a target ---------------------------------------------------------------------------------------


@compiled
def test_a_training_is_steered_by_programs_that_run(tmp_path, monkeypatch):
    monkeypatch.setattr(target_time, "PROBES", 10)
    monkeypatch.setattr(target_time, "ROUNDS", 3)
    monkeypatch.setattr(target_time, "LIVE", 1.0)
    run = trainer(tmp_path / "r", clock="target", target_cc=QUICK)
    lines = []
    summary = run.run(lines.append)
    assert summary["measured"]["executor"] == "c"
    assert summary["measured"]["clock"] == "target"
    assert "predicted" not in summary["measured"]
    assert summary["measured_seconds"] > 0
    assert summary["edges"] < lines[0]["edges"]
    assert run._run.time.timed > 2  # programs of the network on its way
    assert all(line["measured_seconds"] > 0 for line in lines)
    assert any("ns per block" in note for note in run.notes)

    monkeypatch.setattr(target_time, "calibrate_target", lambda *args: pytest.fail("calibrated again"))
    resumed = Trainer.resume(tmp_path / "r", dataset("classification"), steps=320)
    assert resumed.run()["measured"]["executor"] == "c"
    assert resumed._run.time.pace.unit == run._run.time.pace.unit


def test_seconds_follow_the_structure_by_the_prices_between_two_runs(charging):
    run = trainer(steps=200, clock="target", time_every=10)
    lines = []
    run.run(lines.append)
    term = run._run.time
    assert charging[0] > 1  # probes
    for line in lines[1:]:
        assert line["model_error"] == pytest.approx(0.0, abs=1e-6)
    assert term.seconds == pytest.approx(float(term.counts(run.model.find()) @ CHARGED), rel=1e-6)


def test_a_profile_alone_predicts(tmp_path, charging):
    data = dataset("classification")
    first = trainer()
    profile = profile_of(np.stack([prices.counts(prices.probe(part, first.model.to_dag())) for part in parts(first)]))
    path = tmp_path / "target.json"
    path.write_text(json.dumps(profile.as_dict()))
    run = trainer(tmp_path / "r", profile=path, steps=200)
    summary = run.run()
    assert summary["measured"]["predicted"] is True
    assert charging == []  # nothing ran
    expected = float(prices.counts(made(run.model.to_dag())) @ np.array(profile.model.coefficients))
    assert summary["measured_seconds"] == pytest.approx(expected)
    again = Trainer.resume(tmp_path / "r", data, steps=220)
    assert again.run()["measured"]["predicted"] is True
    with pytest.raises(TrainingError, match=r"budget_us=2.* is kept on the target.*give clock='target' as well"):
        trainer(profile=path, budget_us=2.0).run()


def parts(run):
    """Structures derived from the network of a trainer."""
    from sparse_dnm.timing.structures import probes

    return probes(run.model.to_dag().topology, 30, np.random.default_rng(0), "blocks")


def test_a_profile_of_this_machine_is_refused_for_a_target(charging):
    run = trainer()
    asked = Settings("columns", "infer", 1, 1)
    counts = np.ones((3, len(FEATURES["columns"])))
    wrong = Calibration(
        CostModel("columns", tuple(counts[0])),
        asked,
        1,
        Quality(1, 1, 0, 1, 1),
        0,
        0,
        1,
        1,
        counts=counts,
        seconds=counts[:, 0],
    )
    with pytest.raises(ValueError, match="of executor columns on a machine that trains, not of a target"):
        TargetTime(run.model, TimeSettings("infer", 1), Target(), wrong)


def test_a_target_that_fails_ends_the_training_and_names_the_checkpoint(tmp_path, charging, monkeypatch):
    run = trainer(tmp_path / "r", clock="target")
    monkeypatch.setattr(target_time, "LIVE", 1.0)
    monkeypatch.setattr(target_time, "LOOKS", math.inf)  # as soon as time_every allows, however slow the machine is

    def fail(line):
        if line["step"] == 100:
            monkeypatch.setattr(target_time, "time_on_target", broken)

    def broken(*args):
        raise TargetError("run: ssh board ./it failed (255)")

    with pytest.raises(
        TrainingError,
        match=r"ssh board ./it failed \(255\). The last good checkpoint, of step 100.*continue that run with Trainer",
    ):
        run.run(fail)


@compiled
def test_what_was_compiled_just_before_is_not_compiled_again(monkeypatch):
    commands = []
    run = Target._run
    monkeypatch.setattr(launch, "_OBJECTS", {})
    monkeypatch.setattr(Target, "_run", lambda self, *args: commands.append(args[1]) or run(self, *args))
    target = Target(QUICK)
    toy = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0)).to_dag()
    for dag in (toy, DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(1)).to_dag()):
        networks = [made(dag), reference()]
        program.read(target.output("p", program.sources(networks, 2)), networks, 2)
    files = [command[command.index("-c") + 1] for command in commands if "-c" in command]
    assert sorted(files) == ["main.c", "n0.c", "n0.c", "n1.c"]


# -- budgets ---------------------------------------------------------------------------------------------------


def test_a_budget_is_kept_on_the_target(tmp_path, charging):
    least = float(prices.counts(made(trainer().model.to_dag())) @ CHARGED)
    budget = 0.35e6 * least
    run = trainer(tmp_path / "r", clock="target", budget_us=budget, steps=600, max_loss=100.0, time_every=10)
    summary = run.run()
    exported = 1e6 * float(prices.counts(made(run.model.to_dag())) @ CHARGED)
    assert 0.95 * budget <= exported <= budget
    assert summary["fresh_seconds"] == pytest.approx(1e-6 * exported)
    assert any("µs on the target" in note or "trimmed to" in note for note in run.notes)


def test_a_budget_below_the_smallest_network_is_refused(charging):
    with pytest.raises(
        TrainingError, match=r"the smallest network .* takes about 0.0\d+ µs on the target; give budget_us="
    ):
        trainer(clock="target", budget_us=0.01).run()


@compiled
@pytest.mark.parametrize(("dtype", "budget"), [("float32", 3000), ("int8", 2200)])
def test_a_budget_of_flash_is_kept_by_what_the_compiler_makes(tmp_path, monkeypatch, dtype, budget):
    monkeypatch.setattr("sparse_dnm.lowering.int8.CALIBRATION", 50)  # of 128 samples
    run = trainer(tmp_path / "r", speed="proxy", proxy_coefficient=0.5, budget_bytes=budget, budget_dtype=dtype,
                  target_cc=SMALL_CODE)  # fmt: skip
    lines = []
    summary = run.run(lines.append)
    assert 0.9 * budget <= summary["flash_bytes"] <= budget
    assert summary["budget_bytes"] == budget
    assert [line["bytes_goal"] for line in lines][-1] == budget
    assert lines[0]["bytes_goal"] > budget
    exported = to_c(run.model, name="network", dtype=dtype, samples=calibration(run.data.x_train))
    assert size_of(exported, tmp_path) == summary["flash_bytes"]  # what the command writes, to the byte


def size_of(exported: CProgram, folder: Path) -> int:
    """Bytes of NAME.c of an export, by the same compiler."""
    exported.write(folder / "c")
    Target(SMALL_CODE)._run("cc", [*SMALL_CODE.split(), "-c", "network.c", "-o", "network.o"], folder / "c")
    return object_bytes(folder / "c" / "network.o", SMALL_CODE)


@compiled
def test_budgets_of_flash_that_cannot_be_kept_say_what_can():
    proxy = {"speed": "proxy", "proxy_coefficient": 0.5, "target_cc": SMALL_CODE}
    with pytest.raises(TrainingError, match=r"budget_bytes=100 cannot be met: the code alone takes [\d,]+ bytes by"):
        trainer(budget_bytes=100, **proxy).run()
    data = dataset("classification")
    manifold = ManifoldConfig.for_data(data.n_inputs, data.n_outputs, n_neurons=60, edges="closeness")
    config = dataclasses.replace(TRAINING, budget_bytes=3000, **proxy)
    with pytest.raises(TrainingError, match="edges='closeness' has no weights to train then: give edges='free'"):
        Trainer(DynamicManifold(manifold, torch.Generator().manual_seed(1)), data, config).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_bytes": 3000, "speed": "none"}, "budget_bytes=3000 steers the coefficient of a speed term"),
        (
            {"budget_bytes": 3000, "budget_us": 2.0},
            "budget_us=2.0 and budget_bytes=3000 say what the network is to end",
        ),
        ({"budget_dtype": "int8"}, "budget_dtype='int8' is about a budget of bytes: give budget_bytes as well"),
        ({"target_cc": "gcc"}, "target_cc='gcc' is about programs in C: it needs clock='target' or a budget_bytes"),
        ({"clock": "target", "time_estimator": "spsa"}, "clock='target' needs time_estimator='cost-model', not 'spsa'"),
        ({"clock": "target", "time_ablation": "no-refit"}, "clock='target' needs time_ablation='none'"),
        ({"clock": "target", "speed": "proxy"}, "clock='target' needs speed='time', not 'proxy'"),
        ({"clock": "board"}, "clock='board' is unknown; choose one of process_time, perf_counter, thread_time, target"),
    ],
)
def test_settings_about_targets_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


# -- the command line ------------------------------------------------------------------------------------------


@compiled
@pytest.mark.slow
def test_train_and_compare_on_a_target(tmp_path, monkeypatch):
    monkeypatch.setattr(target_time, "PROBES", 10)
    monkeypatch.setattr(target_time, "ROUNDS", 3)
    out = tmp_path / "r"
    done = CliRunner().invoke(app, [
        "train", "toy", "--speed", "time", "--clock", "target", "--cc", QUICK, "--steps", "200", "--out", str(out)
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "in C, a sample, on the target" in " ".join(done.output.split())
    config = json.loads((out / "config.json").read_text())["train"]
    assert (config["clock"], config["target_cc"], config["target_run"]) == ("target", QUICK, "{program}")
    found = CliRunner().invoke(app, [
        "compare", "toy", "--clock", "target", "--cc", QUICK, "--terms", "proxy,time", "--factors", "1", "--seeds", "1",
        "--steps", "100", "--out", str(tmp_path / "c"),
    ])  # fmt: skip
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "c" / "compare.json").read_text())["results"]
    assert [r["executor"] for r in results] == ["c", "c"]
    assert all(r["seconds"] > 0 for r in results)
    proxy = json.loads((tmp_path / "c" / "runs" / "proxy-1-0" / "config.json").read_text())["train"]
    assert proxy["clock"] == "process_time"  # no target in its loss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "train"], "--mode train --batch-size 1 does not go with --clock target"),
        (["--batch-size", "8"], "--mode infer --batch-size 8 does not go with --clock target"),
        (["--timed-with", "columns"], "--timed-with columns does not go with --clock target: leave it out"),
    ],
)
def test_compare_on_a_target_refuses_what_is_about_kernels(arguments, message):
    found = CliRunner().invoke(app, ["compare", "toy", "--clock", "target", *arguments])
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


def test_a_missing_compiler_is_named_before_anything_is_trained(tmp_path):
    out = tmp_path / "r"
    done = CliRunner().invoke(
        app, ["train", "toy", "--speed", "time", "--clock", "target", "--cc", "no-such-cc", "--out", str(out)]
    )
    assert done.exit_code == 2
    assert "there is no program 'no-such-cc'; install the compiler, or name another" in " ".join(done.output.split())
    assert not out.exists()


def test_a_profile_of_another_network_is_reported(charging):
    run = trainer()
    counts = np.stack([prices.counts(prices.probe(part, run.model.to_dag())) for part in parts(run)])
    wrong = dataclasses.replace(profile_of(counts), seconds=3 * (counts @ CHARGED))
    term = TargetTime(run.model, TimeSettings("infer", 1), Target(), wrong)
    assert term.describe()[-1].startswith("warning: the network takes ")
    right = TargetTime(run.model, TimeSettings("infer", 1), Target(), profile_of(counts))
    assert not [line for line in right.describe() if line.startswith("warning: the network")]


def test_a_profile_of_another_target_is_refused(charging):
    run = trainer()
    counts = np.stack([prices.counts(prices.probe(part, run.model.to_dag())) for part in parts(run)])
    here = Target(QUICK)
    profile = profile_of(counts)
    of = dataclasses.replace(profile, pace={**profile.pace, "key": key_of(here)})
    TargetTime(run.model, TimeSettings("infer", 1), here, of)
    with pytest.raises(ValueError, match=r"of another target \(cc is .* in it, 'aarch64-gcc' here; run is .*qemu"):
        TargetTime(run.model, TimeSettings("infer", 1), Target("aarch64-gcc", run="qemu {program}"), of)


def test_a_profile_of_a_target_and_a_clock_of_kernels_do_not_go_together(tmp_path, charging):
    first = trainer()
    path = tmp_path / "target.json"
    counts = np.stack([prices.counts(prices.probe(part, first.model.to_dag())) for part in parts(first)])
    path.write_text(json.dumps(profile_of(counts).as_dict()))
    with pytest.raises(ValueError, match="clock='perf_counter' reads the time of kernels here"):
        trainer(profile=path, clock="perf_counter").run()


@compiled
def test_a_budget_of_flash_gives_the_same_bits_again_and_after_a_resume(tmp_path):
    options = {
        "speed": "proxy",
        "proxy_coefficient": 0.5,
        "budget_bytes": 2000,
        "budget_dtype": "int8",
        "target_cc": SMALL_CODE,
    }
    summaries = [trainer(tmp_path / name, **options).run() for name in ("a", "b")]
    torn = trainer(tmp_path / "c", **options)
    with pytest.raises(KeyboardInterrupt):
        torn.run(lambda line: (_ for _ in ()).throw(KeyboardInterrupt()) if line["step"] == 100 else None)
    summaries.append(Trainer.resume(tmp_path / "c", dataset("classification")).run())
    assert len({(s["flash_bytes"], s["test_accuracy"], s["edges"]) for s in summaries}) == 1
    for other in ("b", "c"):
        assert_same_bits(tmp_path / "a", tmp_path / other)


@compiled
@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
def test_tables_that_become_wider_while_they_are_trained_do_not_break_a_budget(activation):
    data = dataset("regression")
    manifold = ManifoldConfig.for_data(data.n_inputs, data.n_outputs, n_neurons=60, activation=activation)
    config = dataclasses.replace(
        TRAINING, speed="proxy", proxy_coefficient=0.5, budget_bytes=3000, budget_dtype="int8", target_cc=SMALL_CODE
    )
    run = Trainer(DynamicManifold(manifold, torch.Generator().manual_seed(1), threads=1), data, config)
    assert 2700 <= run.run()["flash_bytes"] <= 3000
