"""Snapshots: what is written is read again, damage is reported, and a training is not changed by them."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import manifolds
from test_training import CONFIG, assert_same_bits, dataset, trainer
from typer.testing import CliRunner

from sparse_dnm.cli.app import app
from sparse_dnm.config import ManifoldConfig
from sparse_dnm.io import CheckpointError
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.report import page
from sparse_dnm.report.history import History
from sparse_dnm.train import snapshots
from sparse_dnm.train.snapshots import Snapshot
from sparse_dnm.train.trainer import Trainer


def structure_of(model, step=0):
    return Snapshot(step, model.topology, model.strengths.detach().numpy().astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(manifolds(dtype=torch.float32), st.integers(0, 10**7), st.sampled_from([1.0, 1e-6, 1e6]))
def test_what_is_written_is_read_again(model, step, size):
    written = structure_of(model, step)
    written = dataclasses.replace(written, strengths=written.strengths * np.float32(size))
    with tempfile.TemporaryDirectory() as folder:
        snapshots.save(Path(folder), written)
        assert snapshots.steps(Path(folder)) == [step]
        read = snapshots.load(Path(folder), step, model.config)
    for name in ("indptr", "indices", "inputs", "outputs", "levels", "live"):
        assert np.array_equal(getattr(read.topology, name), getattr(written.topology, name)), name
    largest = np.abs(written.strengths).max(initial=0)
    allowed = np.abs(written.strengths) * 2.0**-10.9 + largest * 2.0**-24  # float16: 11 bits, and its subnormals
    assert (np.abs(read.strengths - written.strengths) <= allowed).all()


@pytest.fixture(scope="module")
def snapshot_bytes(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    config = ManifoldConfig.preset("toy")
    snapshots.save(out, structure_of(DynamicManifold(config, torch.Generator().manual_seed(0))))
    return config, snapshots.path_of(out, 0).read_bytes()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_a_dag(snapshot_bytes, data):
    config, good = snapshot_bytes
    bad = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if bad:
            bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = snapshots.path_of(Path(folder), 0)
        path.parent.mkdir()
        path.write_bytes(bytes(bad))
        found = told = None
        try:
            found = snapshots.load(Path(folder), 0, config)
        except CheckpointError as error:
            told = str(error)
    if found is None:
        assert str(path) in told
    else:  # what was hit does not matter: a date, a name
        assert found.topology.n_neurons == config.n_neurons


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("counts", lambda a: a[:-1], "rows"),
        ("counts", lambda a: np.concatenate([[1], a[1:]]).astype(a.dtype), "rows"),
        ("gaps", lambda a: np.zeros_like(a), "twice"),
        ("gaps", lambda a: a + np.uint8(20), "twice, or its source does not come before"),
        ("gaps", lambda a: a.astype(np.float32), "float32"),
        ("strengths", lambda a: a * np.float16(np.nan), "NaN"),
        ("scale", lambda a: np.float32(np.inf), "NaN or infinite"),
        ("scale", lambda a: None, "scale"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(snapshot_bytes, tmp_path, name, change, what):
    config, good = snapshot_bytes
    (tmp_path / "good.npz").write_bytes(good)
    with np.load(tmp_path / "good.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays[name] = change(arrays[name])
    path = snapshots.path_of(tmp_path, 7)
    path.parent.mkdir()
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(CheckpointError, match=what):
        snapshots.load(tmp_path, 7, config)


def test_another_network_is_refused(snapshot_bytes, tmp_path):
    path = snapshots.path_of(tmp_path, 0)
    path.parent.mkdir()
    path.write_bytes(snapshot_bytes[1])
    with pytest.raises(CheckpointError, match="300 neurons"):
        snapshots.load(tmp_path, 0, ManifoldConfig.preset("digits"))


def test_along_a_training(tmp_path):
    seen = []
    run = trainer(tmp_path / "run", dataclasses.replace(CONFIG, snapshot_every=25))
    run.run(on_snapshot=seen.append)
    assert snapshots.steps(tmp_path / "run") == [0, 25, 50, 60] == [s.step for s in seen]
    last = snapshots.load(tmp_path / "run", 60, run.model.config)
    assert np.array_equal(last.topology.indices, run.model.topology.indices)  # that of the trained network
    assert np.array_equal(last.topology.indptr, run.model.topology.indptr)
    first = snapshots.load(tmp_path / "run", 0, run.model.config)
    assert np.array_equal(first.topology.indices, trainer().model.topology.indices)
    assert not np.array_equal(first.topology.indices, last.topology.indices)


def test_without_a_run_directory_structures_go_to_the_caller():
    seen = []
    trainer(config=dataclasses.replace(CONFIG, steps=5)).run(on_snapshot=seen.append)
    assert [s.step for s in seen] == [0, 1, 2, 3, 4, 5]


def test_snapshots_change_no_bit(tmp_path):
    for every in (1, 1000):
        trainer(tmp_path / str(every), dataclasses.replace(CONFIG, snapshot_every=every)).run()
    assert_same_bits(tmp_path / "1", tmp_path / "1000")


def test_a_run_taken_up_again_has_the_snapshots_of_a_whole_one(tmp_path):
    config = dataclasses.replace(CONFIG, snapshot_every=7)
    trainer(tmp_path / "whole", config).run()
    torn = trainer(tmp_path / "torn", config)
    draw, drawn = torn._order.next, iter(range(47))

    def tear():
        next(drawn)  # StopIteration in step 48, eight after the checkpoint
        return draw()

    torn._order.next = tear
    with pytest.raises(StopIteration):
        torn.run()
    assert snapshots.steps(tmp_path / "torn")[-1] == 42  # a snapshot that the checkpoint knows nothing of
    Trainer.resume(tmp_path / "torn", dataset("classification")).run()
    names = snapshots.steps(tmp_path / "whole")
    assert snapshots.steps(tmp_path / "torn") == names
    for step in names:
        first, second = (snapshots.path_of(tmp_path / run, step).read_bytes() for run in ("whole", "torn"))
        assert first == second, step


def test_snapshots_of_lost_steps_are_removed(tmp_path):
    run = trainer(tmp_path / "run", dataclasses.replace(CONFIG, steps=40, snapshot_every=20))
    run.run()
    late = structure_of(run.model, 55)
    snapshots.save(tmp_path / "run", late)  # of steps that no checkpoint knows
    Trainer.resume(tmp_path / "run", dataset("classification"), steps=60).run()
    assert snapshots.steps(tmp_path / "run") == [0, 20, 40, 60]


def test_kill_leaves_no_torn_snapshot(tmp_path):
    command = [sys.executable, "-m", "sparse_dnm.cli", "train", "toy", "--steps", "100000", "--speed", "proxy"]
    options = ["--snapshot-every", "1", "--threads", "1", "--out", str(tmp_path / "run")]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(snapshots.steps(tmp_path / "run")) < 20 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    known = snapshots.steps(tmp_path / "run")
    assert len(known) >= 20
    for step in known:
        assert snapshots.load(tmp_path / "run", step, ManifoldConfig.preset("toy")).step == step


def test_a_full_disk_is_an_error_that_names_the_snapshot(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, f"cannot write {path}: No space left on device")

    monkeypatch.setattr(snapshots, "write_atomic", full)
    with pytest.raises(OSError, match="step-000000000"):
        trainer(tmp_path / "run").run()
    assert os.listdir(tmp_path / "run" / snapshots.FOLDER) == []


def test_five_hundred_of_the_original_fit_thirty_megabytes(tmp_path):
    """Its network is largest at the start."""
    model = DynamicManifold(ManifoldConfig.preset("original-mnist"), torch.Generator().manual_seed(0))
    snapshots.save(tmp_path, structure_of(model))
    assert 500 * snapshots.path_of(tmp_path, 0).stat().st_size < 30e6


@pytest.mark.parametrize(("known", "most", "expected"), [(7, 9, range(7)), (101, 3, [0, 50, 100]), (10, 2, [0, 9])])
def test_spread_keeps_both_ends(known, most, expected):
    assert snapshots.spread(range(known), most) == list(expected)


def test_a_resumed_run_may_take_them_at_other_steps(tmp_path):
    out = tmp_path / "run"
    options = ["--steps", "40", "--speed", "none", "--threads", "1", "--snapshot-every", "20", "--out", str(out)]
    assert CliRunner().invoke(app, ["train", "toy", *options]).exit_code == 0
    result = CliRunner().invoke(app, ["train", "--resume", str(out), "--steps", "60", "--snapshot-every", "5"])
    assert result.exit_code == 0, result.output
    assert snapshots.steps(out) == [0, 20, 40, 45, 50, 55, 60]
    assert "must be >= 1" in CliRunner().invoke(app, ["train", "toy", "--snapshot-every", "0"]).stderr


def test_images_of_colours_say_how_many_channels_they_have(tmp_path):
    x = np.random.default_rng(0).random((60, 4, 5, 3))
    np.savez(tmp_path / "colours.npz", x=x, y=(x[:, 0, 0, 0] > 0.5).astype(int))
    out = tmp_path / "run"
    options = ["--steps", "3", "--speed", "none", "--threads", "1", "--out", str(out)]
    assert CliRunner().invoke(app, ["train", str(tmp_path / "colours.npz"), *options]).exit_code == 0
    history = History.read(out, 9)
    assert history.image == (4, 5, 3)
    assert "fields of 4 × 5 pixels, 3 channels summed" in page.page(history)
