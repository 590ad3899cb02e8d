"""A disk that is full or broken, processes that are killed, stopped or starved: a clear error, and nothing is lost.

These are short forms of what `python -m bench.reliability` does for every operation of every command.
"""

import errno
import random

import pytest

from bench import hardships, trials
from bench.faults import Disk, writing_to
from bench.hardships import Training
from bench.reliability import long_training
from bench.trials import FULL, fail_everywhere

fork_needed = pytest.mark.skipif(not hasattr(hardships.os, "fork"), reason="processes cannot be forked here")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The commands, by name."""
    return {trial.name: trial for trial in trials.trials(tmp_path_factory.mktemp("trials"), ["train", "export npz"])}


def test_each_operation_of_an_export_may_fail(commands, tmp_path):
    assert fail_everywhere(commands["export npz"], tmp_path / "out", errno.ENOSPC, for_good=False) == 5


@pytest.mark.parametrize(("error", "first"), [*zip(FULL, (3, 17, 31), strict=True)])
def test_operations_of_a_training_may_fail(commands, tmp_path, error, first):
    assert fail_everywhere(commands["train"], tmp_path / "out", error, first == 17, every=43, first=first) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every"),
    [("train", 13), ("train --resume", 17), ("report", 23), ("compare", 67), ("export c", 11), ("export onnx", 4)],
)
def test_operations_of_all_commands_may_fail(tmp_path, name, every):
    (trial,) = trials.trials(tmp_path, [name])
    for k, error in enumerate(FULL):
        assert fail_everywhere(trial, tmp_path / "out", error, k == 1, every, first=k) >= 1


def test_a_write_may_take_many_calls(commands, tmp_path):
    trial = commands["export npz"]
    with writing_to(Disk(tmp_path, most=700)) as disk, trials.quick():
        assert trials.invoke(trial.arguments(tmp_path))[0] == 0
    assert sum(one.kind == "write" for one in disk.done) > 3
    assert (tmp_path / "model.npz").read_bytes() == trial.whole["model.npz"]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return Training(tmp_path_factory.mktemp("training"), steps=600)


@fork_needed
@pytest.mark.slow
def test_a_training_that_is_killed_at_random_moments_ends_in_the_same_bits(training):
    assert hardships.kills(training, 4, random.Random(0)) >= 1


@fork_needed
@pytest.mark.slow
def test_a_training_that_is_stopped_and_continued_ends_in_the_same_bits(training):
    assert hardships.stops(training, 1, random.Random(0)) > 1


@fork_needed
@pytest.mark.slow
def test_clocks_that_jump_change_no_bit(training):
    hardships.clocks(training, 1)


@fork_needed
@pytest.mark.slow
def test_a_training_whose_memory_is_taken_away_can_be_resumed(training):
    assert sum(hardships.starvation(training, 2, random.Random(1)).values()) == 2


@fork_needed
@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_named_and_the_run_goes_on_without_it(training):
    assert hardships.small_files(training, [500, 20_000]) == 2


@pytest.mark.slow
def test_the_memory_and_the_files_of_a_long_training_stay_as_they_are(tmp_path):
    """Its structure changes all the time."""
    found = long_training(tmp_path, seconds=300.0, steps=5000)
    assert found.structures > 30
    assert found.files[1] == found.files[0]
    assert found.memory[1] - found.memory[0] < 8 << 20


@fork_needed
@pytest.mark.slow
def test_a_training_on_a_full_disk_goes_on_when_there_is_room(training):
    ended = hardships.full_disk(training, [20_000, 100_000])
    if ended is None:
        pytest.skip("no file system can be mounted here")
    assert ended == 2
