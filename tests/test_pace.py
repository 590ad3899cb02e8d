"""Pace: a machine that changes its speed must not be seen in seconds; and what is kept of the quiet machine."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from sparse_dnm import DynamicManifold, ManifoldConfig, MeasuredTime, TimeSettings
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.cpu import CpuEngine, CpuStopwatch
from sparse_dnm.timing import clock as timing
from sparse_dnm.timing import pace as pacing
from sparse_dnm.timing import probes as probing
from sparse_dnm.timing import quiet
from sparse_dnm.timing.calibration import adopt, calibrate, read_profile
from sparse_dnm.timing.cost_model import FEATURES
from sparse_dnm.timing.pace import Conditions, NoisyMachine, Pace, Steady, reference_graph, sample
from sparse_dnm.timing.probes import Settings, time_steps
from sparse_dnm.timing.quiet import Quiet

SETTINGS = Settings("columns", "infer", 4, 1, "perf_counter", 20, 5)
COSTS = (2e-6, 2e-8, 3e-8, 6e-8, 3e-9, 2e-9, 3e-8, 1e-8)  # s per feature of columns


class Machine:
    """Charges for what a step executes, at a pace that is drawn anew for every run of some measurements."""

    def __init__(self, seed=0, slowest=1.0, least=6, most=40):
        self.rng, self.slowest, self.length = np.random.default_rng(seed), slowest, (least, most)
        self.left, self.pace, self.calls, self.noise = 0, 1.0, 0, 0.0

    def warm(self, watch, clock):
        if self.left == 0:
            self.left = int(self.rng.integers(*self.length))
            self.pace = float(self.rng.uniform(1.0, self.slowest))
        self.left, self.calls = self.left - 1, self.calls + 1
        return self.pace * self.quiet(watch._structure, watch.engine) * self.rng.lognormal(0, self.noise)

    @staticmethod
    def quiet(structure, engine):
        return float(engine.features(structure, "columns") @ np.array(COSTS))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Such a machine, in whose cache nothing is kept, and which nobody else uses."""
    monkeypatch.setenv("SPARSE_DNM_CACHE", str(tmp_path / "cache"))
    found = Machine()
    monkeypatch.setattr(CpuStopwatch, "warm", lambda self, clock: found.warm(self, clock))
    monkeypatch.setattr(CpuStopwatch, "__call__", lambda self, clock: Machine.quiet(self._structure, self.engine))
    monkeypatch.setattr(timing, "preemptions", lambda: 0)
    monkeypatch.setattr(probing, "stolen", lambda: 0)
    monkeypatch.setattr(pacing.Surroundings, "conditions", conditions)
    return found


def conditions(self, references):
    low, high = np.quantile(references, [0.1, 0.9])
    return Conditions(float(np.median(references)), float(high / low), 1.0, 0.0)


def engine():
    return CpuEngine(Executor("columns", 1))


def model_of(preset="digits"):
    return DynamicManifold(
        ManifoldConfig.preset(preset), torch.Generator().manual_seed(0), executor="columns", threads=1
    )


def calibration(settings=SETTINGS):
    return calibrate(model_of().find().structure, engine(), np.ones((settings.batch, 64), np.float32), settings)


def test_the_reference_is_a_random_graph_of_two_thousand_edges_and_always_the_same():
    graph = reference_graph()
    assert graph.n_neurons == 400
    assert 2_000 < graph.n_edges < 2_500
    assert len(graph.inputs) == 80
    again = reference_graph.__wrapped__()
    np.testing.assert_array_equal(graph.edges(), again.edges())


def test_prices_are_those_of_the_quiet_machine_whatever_the_pace(machine):
    first = calibration()
    np.testing.assert_allclose(first.model.coefficients, COSTS, rtol=1e-6)
    assert first.pace["quiet"]
    machine.slowest = 2.5
    busy = calibration()
    assert not busy.pace["quiet"]
    assert busy.unit == first.unit  # that of the earlier run
    np.testing.assert_allclose(busy.seconds, first.seconds, rtol=0.06)
    assert (busy.raw_seconds > 1.2 * first.raw_seconds).mean() > 0.8
    edge = FEATURES["columns"].index("edge")
    assert busy.model.coefficients[edge] == pytest.approx(COSTS[edge], rel=0.15)
    assert busy.held_out.within_10 == 1.0
    assert any("times the seconds of its quiet reference of " in line for line in busy.notes)


def test_a_slow_machine_is_as_fast_as_a_quick_one_in_seconds_of_the_quiet_one(machine):
    first = calibration()
    machine.warm = lambda watch, clock: 1.7 * Machine.quiet(watch._structure, watch.engine)
    slow = calibration()
    np.testing.assert_allclose(slow.seconds, first.seconds, rtol=1e-9)
    np.testing.assert_allclose(slow.raw_seconds, 1.7 * first.raw_seconds, rtol=1e-9)
    assert "pace: this machine runs at 1.70 times the seconds of its quiet reference of" in slow.notes[0]


def test_without_a_quiet_reference_seconds_are_those_of_now_and_a_note_says_so(machine):
    machine.slowest = 2.5
    found = calibration()
    assert found.unit == Quiet(found.pace["reference_seconds"])
    assert "not calibrated on a quiet machine" in found.notes[0]
    assert len(found.notes) == 1
    assert not list(quiet.folder().glob("*.json"))


def test_a_pace_that_changes_too_fast_is_refused(machine):
    rng = np.random.default_rng(0)
    machine.warm = lambda watch, clock: 10 ** rng.uniform(0, 6)
    with pytest.raises(NoisyMachine, match=r"in \d+ of 1500 measurements .* over 1\.5 times .* at most 50% may"):
        calibration()


def test_timed_steps_of_a_training_do_not_see_the_pace(machine):
    model = model_of()
    term = MeasuredTime(model, TimeSettings(mode="infer", batch=4, every=1, clock="perf_counter", probes=20, repeats=5))
    evaluation, values, raw = model.find(), [], []
    quiet_seconds = Machine.quiet(evaluation.structure, evaluation.engine)
    machine.slowest = 2.2
    for _ in range(200):
        values.append(term.value(evaluation) * term.reference)
        raw.append(term.steps.raw)
    np.testing.assert_allclose(values[5:], quiet_seconds, rtol=0.1)
    assert np.ptp(raw) > 0.5 * quiet_seconds
    assert term.timing.low <= term.seconds <= term.timing.high
    assert term.measure(evaluation) == pytest.approx(quiet_seconds, rel=0.05)
    assert term.pace.factor > 1.2


def test_one_disturbed_step_does_not_move_the_value(machine):
    model = model_of()
    term = MeasuredTime(model, TimeSettings(mode="infer", batch=4, every=1, clock="perf_counter", probes=20, repeats=5))
    evaluation = model.find()
    for _ in range(5):
        before = term.value(evaluation)
    usual, machine.warm = machine.warm, lambda watch, clock: 20 * Machine.quiet(watch._structure, watch.engine)
    pace, term.pace = term.pace, Steady()
    assert term.value(evaluation) < 1.2 * before
    machine.warm, term.pace = usual, pace


def test_a_measurement_during_which_the_pace_changes_is_torn(machine):
    pace = Pace(engine(), SETTINGS, np.float32, Quiet(1.0))
    paces = iter([1.0, 1.0, 1.0, 1.6])
    machine.warm = lambda watch, clock: next(paces)
    assert sample(pace, lambda: 3.0) == (3.0, 3.0, False)
    found = sample(pace, lambda: 3.0)
    assert found.torn
    assert found.seconds == pytest.approx(3.0 / 1.6**0.5)


def test_a_gpu_has_no_reference():
    pace = pacing.pace_of(None, dataclasses.replace(SETTINGS, device="cuda", clock="cuda_event"), np.float32)
    assert isinstance(pace, Steady)
    assert sample(pace, lambda: 3.0) == (3.0, 3.0, False)


def test_what_other_programs_use_is_counted(monkeypatch):
    ticks, own, wall = iter([1000, 1000 + 300]), iter([5.0, 6.0]), iter([0.0, 2.0])
    monkeypatch.setattr(pacing, "used_ticks", lambda: next(ticks))
    monkeypatch.setattr(pacing.time, "process_time", lambda: next(own))
    monkeypatch.setattr(pacing.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(pacing.os, "sysconf", lambda name: 100)
    found = pacing.Surroundings().conditions([1.0, 1.0, 1.02])
    assert found.cpu_share == 0.5
    assert found.others == pytest.approx((3.0 - pacing.TICKS / 100 - 1.0) / 2)
    assert not found.quiet


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"spread": 1.3}, False),
        ({"cpu_share": 0.8}, False),
        ({"others": 0.5}, False),
        ({"others": None}, True),
    ],
)
def test_a_quiet_machine_is_one_on_which_nothing_else_shows(change, expected):
    assert dataclasses.replace(Conditions(1.0, 1.02, 1.0, 0.01), **change).quiet is expected


# -- what is kept --------------------------------------------------------------------------------------------

KEY = {"machine": "a", "batch": 1}


def test_the_lowest_is_kept_by_key_and_small_gains_do_not_change_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_DNM_CACHE", str(tmp_path))
    assert quiet.read(KEY) == (None, "")
    assert quiet.keep(KEY, Quiet(2.0, "2026-01-02")) == (Quiet(2.0, "2026-01-02"), "")
    assert quiet.keep(KEY, Quiet(1.97, "2026-01-03"))[0].seconds == 2.0
    assert quiet.keep(KEY, Quiet(3.0, "2026-01-03"))[0].seconds == 2.0
    assert quiet.read(KEY) == (Quiet(2.0, "2026-01-02"), "")
    assert quiet.keep(KEY, Quiet(1.5, "2026-01-04"))[0].seconds == 1.5
    assert quiet.read({**KEY, "batch": 2}) == (None, "")
    assert quiet.read(KEY) == (Quiet(1.5, "2026-01-04"), "")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": "other"}', '{"format": "sparse-dnm quiet reference", "key": {}}']
)
def test_a_damaged_file_is_a_note_and_replaced(tmp_path, monkeypatch, content):
    monkeypatch.setenv("SPARSE_DNM_CACHE", str(tmp_path))
    quiet.keep(KEY, Quiet(1.0, "2026-01-02"))
    quiet.path_of(KEY).write_text(content)
    found, note = quiet.read(KEY)
    assert found is None
    assert str(quiet.path_of(KEY)) in note
    quiet.keep(KEY, Quiet(3.0, "2026-01-02"))
    assert quiet.read(KEY)[0].seconds == 3.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), "many", None])
def test_seconds_that_cannot_be_are_not_used(tmp_path, monkeypatch, seconds):
    monkeypatch.setenv("SPARSE_DNM_CACHE", str(tmp_path))
    quiet.keep(KEY, Quiet(1.0, "2026-01-02"))
    values = json.loads(quiet.path_of(KEY).read_text())
    quiet.path_of(KEY).write_text(json.dumps({**values, "seconds": seconds}))
    assert quiet.read(KEY)[0] is None


def test_a_folder_that_cannot_be_written_is_one_note_and_no_error(machine, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSE_DNM_CACHE", str(tmp_path / "file"))
    found = calibration()
    assert found.unit.date  # of this run
    assert sum("set SPARSE_DNM_CACHE" in line for line in found.notes) == 1
    assert len(found.notes) == 2


def test_the_folder_is_the_named_one_else_that_of_the_kernels_else_the_users(monkeypatch):
    monkeypatch.setenv("SPARSE_DNM_CACHE", "/a")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/b")
    assert quiet.folder().as_posix() == "/a/quiet"
    monkeypatch.delenv("SPARSE_DNM_CACHE")
    assert quiet.folder().as_posix() == "/b/quiet"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert "sparse_dnm" in quiet.folder().as_posix()


WRITER = """
import sys
from sparse_dnm.timing import quiet
first = int(sys.argv[1])
for k in range(20):
    quiet.keep({"own": first}, quiet.Quiet(10.0 * 0.9**k, "2026-01-02"))
    quiet.keep({"shared": 1}, quiet.Quiet(10.0 * 0.8**(k + first), "2026-01-02"))
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_DNM_CACHE", str(tmp_path))
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(k)], env=os.environ) for k in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    for k in range(3):
        assert quiet.read({"own": k})[0].seconds == pytest.approx(10.0 * 0.9**19)
    assert quiet.read({"shared": 1})[0].seconds == pytest.approx(10.0 * 0.8**21)


# -- profiles ------------------------------------------------------------------------------------------------


def test_a_profile_keeps_raw_seconds_and_its_unit(machine, tmp_path):
    made = calibration()
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(made.as_dict()))
    found = read_profile(path)
    assert found.unit == made.unit
    np.testing.assert_array_equal(found.raw_seconds, made.raw_seconds)
    values = made.as_dict()
    for change in ({"quiet_seconds": -1.0}, {"quiet_date": 3}, {"key": "a"}, {"reference_seconds": None}):
        path.write_text(json.dumps({**values, "pace": {**values["pace"], **change}}))
        with pytest.raises(ValueError, match="damaged or an old profile"):
            read_profile(path)
    del values["pace"], values["raw_seconds"]
    path.write_text(json.dumps(values))
    assert read_profile(path).unit is None  # as earlier versions wrote them


def test_a_profile_of_another_machine_is_put_in_seconds_of_this_one(machine):
    made = calibration()
    here = Pace(engine(), SETTINGS, np.float32)
    assert adopt(made, here) == (made, ())
    other = {**made.pace, "quiet_seconds": 0.5 * made.pace["quiet_seconds"], "quiet_date": "2025-05-05"}
    other["key"] = {**made.pace["key"], "processor": "Another"}
    theirs = dataclasses.replace(made, pace=other, seconds=0.5 * made.seconds)
    found, notes = adopt(theirs, Pace(engine(), SETTINGS, np.float32))
    np.testing.assert_allclose(found.seconds, made.seconds)
    (note,) = notes
    assert "of another machine or version (Another): its quiet reference takes" in note
    assert "multiplied by 2" in note


def test_times_without_a_pace_are_those_of_the_clock(machine):
    own, structure = engine(), model_of().find().structure
    watch = own.stopwatch(structure, np.ones(structure.n_edges, np.float32), np.ones((4, 64), np.float32), False)
    found = time_steps([watch], SETTINGS)
    np.testing.assert_array_equal(found.seconds, found.raw)
    np.testing.assert_allclose(found.raw, Machine.quiet(structure, own))
