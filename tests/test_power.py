"""Power cuts and kills: what is on the disk afterwards is the old checkpoint or the new one, and training goes on."""

import contextlib
import dataclasses
import os
import random

import pytest
import torch
from test_training import CONFIG, assert_same_bits, dataset, lines, trainer

from bench.faults import Disk, Killed, contents_of, lay_out, power_cuts, writing_to
from sparse_dnm.io import CheckpointError
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train import snapshots
from sparse_dnm.train.checkpoint import Checkpoint
from sparse_dnm.train.trainer import Trainer

SHORT = dataclasses.replace(CONFIG, steps=12, log_every=2, checkpoint_every=4, snapshot_every=3)


def a_checkpoint(step):
    generator = torch.Generator().manual_seed(step)
    return Checkpoint({"model/w": torch.randn(300, generator=generator)}, {"step": step})


def test_after_a_power_cut_in_a_save_the_checkpoint_is_the_old_one_or_the_new_one(tmp_path):
    path, tried = tmp_path / "run" / files.CHECKPOINT, set()
    path.parent.mkdir()
    files.save(path, a_checkpoint(1))
    before = contents_of(path.parent)
    with writing_to(Disk(path.parent)) as disk:
        files.save(path, a_checkpoint(2))
    kinds = [one.kind for one in disk.done]
    assert kinds == ["create", "truncate", "write", "fsync", "rename", "sync folder"]
    for n in range(len(disk.done) + 1):
        for found in power_cuts(disk.done[:n], before, random.Random(n)):
            lay_out(found, path.parent)
            step = files.load(path).header["step"]
            tried.add((n, step))
            assert step in ((1, 2) if n < len(disk.done) else (2,))
            files.save(path, a_checkpoint(3))  # what lies about does not hinder the next one
            assert os.listdir(path.parent) == [path.name]
    assert {(5, 1), (5, 2), (6, 2)} <= tried


def test_a_save_that_does_not_sync_would_be_found_out(tmp_path):
    """The model of the disk is one in which the order of the operations matters."""
    path = tmp_path / "run" / files.CHECKPOINT
    path.parent.mkdir()
    files.save(path, a_checkpoint(1))
    before = contents_of(path.parent)
    with writing_to(Disk(path.parent)) as disk:
        files.save(path, a_checkpoint(2))
    careless = [one for one in disk.done if one.kind != "fsync"]
    broken = 0
    for found in power_cuts(careless, before, random.Random(0)):
        lay_out(found, path.parent)
        with contextlib.suppress(CheckpointError):
            files.load(path)
            continue
        broken += 1
    assert broken


def recorded(out):
    """A whole training and the operations of the disk in it."""
    with writing_to(Disk(out)) as disk:
        trainer(out, SHORT).run()
    return disk.done


def again(out):
    """Go on with what is left of a training in ``out``, or begin it again."""
    if (out / files.CONFIG).exists():
        Trainer.resume(out, dataset("classification")).run()
    else:
        trainer(out, SHORT).run()


def assert_the_same_run(first, second):
    assert_same_bits(first, second)
    assert lines(first) == lines(second)
    assert snapshots.steps(first) == snapshots.steps(second)
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    for step in snapshots.steps(first):
        assert snapshots.path_of(first, step).read_bytes() == snapshots.path_of(second, step).read_bytes()


def test_a_training_goes_on_to_the_same_bits_after_a_power_cut(tmp_path):
    done, out, rng = recorded(tmp_path / "whole"), tmp_path / "cut", random.Random(1)
    for n in sorted(rng.sample(range(len(done)), 7)):
        for found in power_cuts(done[:n], {}, rng, most=1 + n % 2):
            again(lay_out(found, out))
            assert_the_same_run(tmp_path / "whole", out)


def test_a_training_goes_on_to_the_same_bits_after_a_kill(tmp_path):
    done, out = recorded(tmp_path / "whole"), tmp_path / "killed"
    for n in random.Random(2).sample(range(len(done) // 2), 5):
        with pytest.raises(Killed), writing_to(Disk(out, fail_at=n, error=None)):
            trainer(out, SHORT).run()
        again(out)
        assert_the_same_run(tmp_path / "whole", out)
        lay_out({}, out)
