"""Files of a run directory: atomic writes, what a checkpoint refuses, metrics cut back."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.source import DataSource
from sparse_dnm.io import CheckpointError, append_line, write_atomic
from sparse_dnm.machine import machine, versions
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.presets import PRESETS
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.checkpoint import Checkpoint
from sparse_dnm.train.trainer import Trainer

TENSORS = {
    "model/weight": torch.tensor([1.5, -2.0, 1e-30]),
    "model/cutoff": torch.tensor(-1.0),
    "model/candidate_indices": torch.tensor([3, 1, 2], dtype=torch.int32),
    "order/position": torch.tensor(7),
    "generator": torch.arange(9, dtype=torch.uint8),
    "empty": torch.empty(0, dtype=torch.float64),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / files.CHECKPOINT
    files.save(path, Checkpoint(TENSORS, {"step": 12}))
    return path


def test_round_trip_keeps_every_bit(path):
    loaded = files.load(path)
    assert loaded.header == {"format": files.FORMAT, "version": files.VERSION, "step": 12}
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert loaded.group("model").keys() == {"weight", "cutoff", "candidate_indices"}


def test_same_content_gives_the_same_bytes_and_no_other_file(path):
    before = path.read_bytes()
    files.save(path, Checkpoint(TENSORS, {"step": 12}))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_truncated(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=f"{path.name} is truncated"):
        files.load(path)


def test_no_byte_of_it_can_change_unseen(path):
    good = path.read_bytes()
    for k, byte in enumerate(good):
        path.write_bytes(good[:k] + bytes([byte ^ (1 << k % 8)]) + good[k + 1 :])
        with pytest.raises(CheckpointError, match=files.CHECKPOINT):
            files.load(path)
    for bad in (good + b"\0", good[:-1], good[:100] + good[101:], good + good):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            files.load(path)


def test_a_checkpoint_of_an_earlier_version_has_no_digest_and_is_read(path):
    save_file(TENSORS, path, {"sparse_dnm": json.dumps({"format": files.FORMAT, "version": 1, "step": 12})})
    loaded = files.load(path)
    assert loaded.header["step"] == 12
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_checkpoint_of_this_version_without_a_digest_is_refused(path):
    save_file(TENSORS, path, {"sparse_dnm": json.dumps({"format": files.FORMAT, "version": files.VERSION})})
    with pytest.raises(CheckpointError, match="damaged"):
        files.load(path)


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        files.load(tmp_path / files.CHECKPOINT)


@pytest.mark.parametrize("content", [b"a letter to the editor", b"PK\x03\x04" + bytes(200), bytes(64)])
def test_not_safetensors(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        files.load(path)


def test_of_another_program(path):
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="another program"):
        files.load(path)
    save_file({"w": torch.zeros(2)}, path, {"sparse_dnm": "[]"})
    with pytest.raises(CheckpointError, match="another program"):
        files.load(path)


def test_of_another_version(path):
    save_file({"w": torch.zeros(2)}, path, {"sparse_dnm": json.dumps({"format": files.FORMAT, "version": 99})})
    with pytest.raises(CheckpointError, match=r"version 99; this version of sparse-dnm reads .* version 1"):
        files.load(path)


def test_weights_that_are_not_finite(path):
    before = path.read_bytes()
    bad = {"model/weight": torch.tensor([1.0, float("nan")])}
    with pytest.raises(CheckpointError, match="model/weight holds NaN"):
        files.save(path, Checkpoint(bad, {}))
    assert path.read_bytes() == before
    about = json.dumps({"format": files.FORMAT, "version": 1})
    save_file(bad, path, {"sparse_dnm": about})
    with pytest.raises(CheckpointError, match="model/weight holds NaN"):
        files.load(path)


def test_failed_write_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_failed_write_names_the_file(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"cannot write {path}: No space left") as error:
        write_atomic(path, b"new")
    assert error.value.errno == errno.ENOSPC


def test_sources_of_data_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = DataSource("table.csv", "folder", "kind")
    assert source == DataSource(str(tmp_path / "table.csv"), str(tmp_path / "folder"), "kind")
    moved = source.moved(tmp_path / "new")
    assert moved == DataSource(str(tmp_path / "new" / "table.csv"), str(tmp_path / "new"), "kind")
    assert DataSource("mnist").moved(Path("new")) == DataSource("mnist", str(tmp_path / "new"))
    assert DataSource("toy").dataset == "toy"


def test_metrics_are_cut_back(tmp_path):
    path = tmp_path / files.METRICS
    for step in (0, 10, 20, 30):
        append_line(path, {"step": step})
    with open(path, "ab") as file:
        file.write(b'{"step": 15}')  # whole JSON, but no end of line: a torn write
    files.cut_metrics(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 10, 20]
    files.cut_metrics(tmp_path / "new.jsonl", 20)
    assert (tmp_path / "new.jsonl").read_bytes() == b""


def test_run_directories(tmp_path):
    first = files.fresh_directory(tmp_path / "runs", "toy", 3)
    second = files.fresh_directory(tmp_path / "runs", "toy", 3)
    assert (first.name, second.name) == ("toy-3-1", "toy-3-2")
    files.check_free(first)
    files.check_free(tmp_path / "not there yet")
    (first / files.METRICS).touch()
    with pytest.raises(ValueError, match=r"toy-3-1 already holds a run \(metrics.jsonl\).*another out.*Trainer.resume"):
        files.check_free(first)
    with pytest.raises(ValueError, match="is a file"):
        files.check_free(first / files.METRICS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "an object"),
        ("{}", "does not describe a run"),
        ('{"source": null, "manifold": {"n_neuron": 3}, "train": {}, "data": {}}', "no field n_neuron"),
    ],
)
def test_damaged_config(tmp_path, content, reason):
    (tmp_path / files.CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        files.read_config(tmp_path)


def test_where_the_run_was_made():
    assert set(versions()) == {"python", "sparse_dnm", "torch", "numba", "numpy"}
    assert set(machine()) == {"processor", "cores", "system"}  # and not the name of the host


def test_toy_has_the_same_samples_on_every_processor_and_old_runs_keep_theirs(tmp_path):
    new, old = DataSource("toy").load(), DataSource("toy", version=1).load()
    expected = np.random.default_rng(0).standard_normal((22_000, 5)).astype(np.float32)
    assert np.array_equal(new.x_train.numpy(), expected[:20_000])
    assert new.x_train[0].tolist() == pytest.approx([0.12573022, -0.13210486, 0.64042264, 0.10490011, -0.53566939])
    drawn = torch.randn(22_000, 5, generator=torch.Generator().manual_seed(0))
    assert old.x_test.equal(drawn[20_000:])

    out, config = tmp_path / "run", TrainConfig(steps=0, speed="none")
    model = DynamicManifold(PRESETS["toy"].manifold, torch.Generator().manual_seed(0))
    Trainer(model, old, config, out, DataSource("toy", version=1)).run()
    about = json.loads((out / files.CONFIG).read_text())
    del about["source"]["version"]  # as earlier versions wrote it
    (out / files.CONFIG).write_text(json.dumps(about))
    source = files.read_config(out)[2]
    assert source.version == 1
    assert Trainer.resume(out, source.load()).finished
    with pytest.raises(CheckpointError, match=r"\(contents\).*data.load\('toy', version=1\)"):
        Trainer.resume(out, new)
