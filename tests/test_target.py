"""Targets: programs that time themselves, compiled, copied and run by real commands; prices fitted to them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import sparse_dags
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, ManifoldConfig, data
from sparse_dnm.cli.app import app
from sparse_dnm.target import Measured, Target, TargetError, calibrate_target, prices, program, time_on_target
from sparse_dnm.target.measure import made, reference
from sparse_dnm.timing.calibration import read_profile
from sparse_dnm.timing.cost_model import FEATURES
from sparse_dnm.timing.quiet import Quiet

CC = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
compiled = pytest.mark.skipif(CC is None, reason="no C compiler here")
QUICK = f"{CC} -O1"


@pytest.fixture(autouse=True)
def own_references(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_DNM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def toy():
    return DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0)).to_dag()


def object_file(folder, text):
    """The path of a compiled C file."""
    (folder / "clock.c").write_text(text)
    subprocess.run([CC, "-c", "clock.c", "-o", "clock.o"], cwd=folder, check=True)
    return folder / "clock.o"


# -- programs ------------------------------------------------------------------------------------------------


@compiled
def test_a_program_times_networks_and_has_their_results(toy):
    files = []
    found = time_on_target({"a": toy, "b": toy.double()}, Target(QUICK), rounds=3, on_compiled=files.append)
    assert files == [4] * 4  # main, two networks, the reference
    assert list(found.seconds) == ["a", "b"]
    assert all(values.shape == (3,) and (values > 0).all() for values in (*found.seconds.values(), *found.raw.values()))
    assert found.unit.seconds > 0
    assert found.microseconds("a") == pytest.approx(1e6 * np.median(found.seconds["a"]))


@compiled
def test_seconds_are_ratios_to_the_reference_beside_them(toy, monkeypatch):
    networks = [made(toy), made(toy), reference()]
    text = Target(QUICK).output("p", program.sources(networks, 2))
    printed = program.read(text, networks, 2)
    times = [line.split() for line in text.splitlines()]
    references = [float(words[1]) for words in times if words[0] == "reference"]
    measured = [(int(words[1]), float(words[2])) for words in times if words[0] == "time"]
    assert [k for k, _ in measured] == [0, 1, 1, 0]  # in turns
    for place, (k, seconds) in enumerate(measured):
        assert printed.seconds[k, place // 2] == seconds
        assert printed.before[k, place // 2] == references[place]
        assert printed.after[k, place // 2] == references[place + 1]
    monkeypatch.setattr(Target, "output", lambda *args: text)
    found = time_on_target({"a": toy, "b": toy}, Target(QUICK), rounds=2)
    expected = found.unit.seconds * printed.seconds / ((printed.before + printed.after) / 2)
    np.testing.assert_allclose(np.stack(list(found.seconds.values())), expected)


def test_the_inputs_of_a_program_are_known_here():
    word, expected = 1, []
    for _ in range(5):
        word = (word * 1664525 + 1013904223) % 2**32
        expected.append((word // 256) / 8388608 - 1)
    np.testing.assert_array_equal(program.inputs(5), np.array(expected, np.float32))
    assert np.abs(program.inputs(1000)).max() <= 1


@compiled
def test_a_coarse_clock_is_read_over_more_runs(toy, tmp_path):
    clock = object_file(
        tmp_path,
        "#include <time.h>\ndouble ticks(void) { return (double)(clock() / (CLOCKS_PER_SEC / 250)) / 250; }\n",
    )
    found = time_on_target({"a": toy}, Target(f"{QUICK} -DSPARSE_DNM_NOW=ticks {clock}"), rounds=1)
    assert found.resolution == pytest.approx(0.004)
    usual = time_on_target({"a": toy}, Target(QUICK), rounds=1)
    assert usual.resolution < 0.001


@compiled
@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("double ticks(void) { return 1.0; }\n", "the clock of the target stands still; name a function"),
        (
            "#include <math.h>\ndouble ticks(void) { static double n; return n < 50 ? n += 1 : n; }\n",
            "the clock of the target is too coarse",
        ),
    ],
)
def test_a_clock_that_shows_nothing_is_an_error(toy, tmp_path, monkeypatch, clock, expected):
    monkeypatch.setattr(program, "MOST_RUNS", 1 << 10)
    with pytest.raises(TargetError, match=expected):
        time_on_target({"a": toy}, Target(f"{QUICK} -DSPARSE_DNM_NOW=ticks {object_file(tmp_path, clock)}"))


@compiled
def test_a_clock_that_stands_still_for_a_while_leaves_no_time_of_nothing(toy, tmp_path):
    """As that of a virtual machine does whose host was busy; also while the number of runs is looked for."""
    clock = object_file(
        tmp_path,
        """
#include <time.h>
double ticks(void)
{
    static double last, jump;
    static int n;
    n++;
    if (n % 7 == 3)
        return last;
    if (n % 50 == 1)
        jump += 0.01;
    return last = (double)clock() / CLOCKS_PER_SEC + jump;
}
""",
    )
    found = time_on_target({"a": toy}, Target(f"{QUICK} -DSPARSE_DNM_NOW=ticks {clock}"), rounds=30)
    assert (found.raw["a"] > 0).all()
    assert (found.seconds["a"] > 0).all()


# -- commands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cc": " "}, "cc is empty; give a command"),
        ({"run": ""}, "run is empty; give a command"),
        ({"copy": "scp 'a"}, 'copy="scp \'a" cannot be split into words: No closing quotation; close each quote'),
        ({"timeout": 0.0}, "timeout=0.0 must be a number of seconds > 0"),
    ],
)
def test_commands_that_mean_nothing_are_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        Target(**changes)


@compiled
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cc": "no-such-cc -O3"}, "there is no program 'no-such-cc'; install the compiler, or name another"),
        ({"cc": f"{CC} --no-such-option"}, r"cc: .*--no-such-option .* failed \(1\):\n  .*no-such-option"),
        ({"copy": "no-such-copy {program}"}, "copy: there is no program 'no-such-copy'"),
        ({"copy": "false {program}"}, r"copy: false \S*/sparse_dnm_times failed \(1\)$"),
        ({"run": "sh -c 'echo no board >&2; exit 3'"}, r"run: .* failed \(3\):\n  no board"),
        ({"run": "sh -c 'kill -9 $$'"}, "run: .* was ended by signal 9"),
        ({"run": "echo {name} is there"}, "run: the program printed no times, but 'sparse_dnm_times is there'"),
        ({"run": "true"}, "run: the program printed no times, but nothing; its standard output must arrive here"),
        ({"run": "sleep 5", "timeout": 0.5}, r"run: sleep 5 did not end within timeout=0.5 s"),
        ({"run": "/"}, "run: / cannot be run here"),
        ({"run": "sh -c '{program} | head -3'"}, "run: the program ended before its time, after 'outputs 0"),
        ({"run": "sh -c '{program} | grep -v ^time'"}, r"run: 0 of 6 times arrived; nothing else may print into them"),
    ],
)
def test_a_target_that_fails_is_told_with_what_it_said(toy, changes, expected):
    with pytest.raises(TargetError, match=expected):
        time_on_target({"a": toy, "b": toy}, Target(**{"cc": QUICK, **changes}), rounds=3)


@compiled
def test_other_results_than_ours_are_an_error(toy):
    wrong = Target(f"{CC} -O1 -Dn0_run=other -x c", run="{program}")
    text = Target(QUICK).output("p", program.sources([made(toy), reference()], 1))
    lines = [
        " ".join([*line.split()[:2], *["0.5"] * (len(line.split()) - 2)]) if line.startswith("outputs 0") else line
        for line in text.splitlines()
    ]
    with pytest.raises(TargetError, match=r"the results of the target differ: outputs \[0.5"):
        program.read("\n".join(lines), [made(toy), reference()], 1)
    with pytest.raises(TargetError, match="cc: "):  # a network is missing
        time_on_target({"a": toy}, wrong)


@compiled
def test_a_launcher_gets_the_program_that_was_copied(toy, tmp_path):
    board = tmp_path / "a board"
    board.mkdir()
    target = Target(QUICK, f"cp {{program}} '{board}'", f"env -C '{board}' ./{{name}}")
    assert not target.here
    found = time_on_target({"a": toy}, target, rounds=1)
    assert (board / "sparse_dnm_times").exists()
    assert found.key["copy"].startswith("cp ")
    assert "processor" not in found.key  # it is not this machine's


@pytest.mark.parametrize(
    ("prefix", "emulator"), [("aarch64-linux-gnu", "qemu-aarch64"), ("arm-linux-gnueabihf", "qemu-arm")]
)
def test_another_machine_runs_under_its_emulator(toy, prefix, emulator):
    if not (shutil.which(f"{prefix}-gcc") and shutil.which(emulator)):
        pytest.skip(f"no {prefix}-gcc or no {emulator} here")
    found = time_on_target({"a": toy}, Target(f"{prefix}-gcc -O2 -static", run=f"{emulator} {{program}}"), rounds=1)
    assert (found.seconds["a"] > 0).all()


# -- prices --------------------------------------------------------------------------------------------------


@given(sparse_dags())
@settings(max_examples=30)
def test_features_count_what_the_tables_hold(dag):
    network = made(dag)
    found = dict(zip(FEATURES["c"], prices.counts(network), strict=True))
    tables = {name: values for name, (_, _, values) in network.tables.fields.items()}
    blocks = [v for name, v in tables.items() if name.startswith("block_") and v.ndim == 2]
    lone = [v for name, v in tables.items() if name.startswith("edge_")]
    folded, merged = network.layout.folded, len(network.layout.folded.bias) - len(network.layout.row)
    assert found["block"] == sum(len(v) for v in blocks)
    assert found["edge"] == sum(len(v) for v in lone)
    assert sum(int((v != 0).sum()) for v in (*blocks, *lone)) == folded.n_edges - merged
    assert found["neuron"] + found["output"] == len(tables["bias"])
    assert found["input"] == len(tables.get("shift", ()))
    assert found["call"] == 1


def test_prices_that_a_target_charges_are_found(monkeypatch, toy):
    charged = np.array([20e-9, 2e-9, 3e-9, 1e-9, 4e-9, 6e-9, 1.5e-9, 2e-9, 0, 0, 0])

    def time(networks, target, rounds, on_compiled):
        seconds = {name: np.full(rounds, float(prices.counts(one) @ charged)) for name, one in networks.items()}
        return Measured(seconds, seconds, Quiet(1e-6), 1e-6, 1.0, 1e-9, {})

    monkeypatch.setattr(prices, "time_on_target", time)
    laid = []
    calibration, measured, own = calibrate_target(toy, Target(), 20, 5, on_probe=lambda: laid.append(1))
    assert len(laid) == 30
    assert calibration.held_out.within_10 == 1
    assert calibration.held_out.r2 == pytest.approx(1)
    np.testing.assert_allclose(own @ np.array(calibration.model.coefficients), own @ charged, rtol=1e-6)
    assert measured.microseconds("network") == pytest.approx(1e6 * own @ charged)


def test_neurons_of_several_kinds_are_probed(monkeypatch):
    digits = data.load("digits")
    config = ManifoldConfig.for_data(digits.n_inputs, digits.n_outputs, activation="tanh")
    dag = DynamicManifold(config, torch.Generator().manual_seed(0)).to_dag()
    part = prices.probe(dag.topology, dag)
    assert any("tangent" in line for line in part.helper_lines)
    assert prices.counts(part)[FEATURES["c"].index("input")] > 0  # factors other than 1, as in a trained network


# -- the command ---------------------------------------------------------------------------------------------


def calibrate(*arguments):
    return CliRunner().invoke(app, ["calibrate", "toy", *map(str, arguments)])


@compiled
def test_calibrate_writes_a_profile_of_a_target(tmp_path):
    out = tmp_path / "target.json"
    done = calibrate("--target", "c", "--cc", QUICK, "--probes", 10, "--repeats", 3, "--out", out)
    assert done.exit_code == 0, done.output
    assert "ns per block" in done.output
    assert "toy in C: " in done.output
    profile = read_profile(out)
    assert profile.settings.executor == "c"
    assert (profile.settings.mode, profile.settings.batch, profile.settings.clock) == ("infer", 1, "target")
    assert json.loads(out.read_text())["target"] == {"cc": QUICK, "copy": "", "run": "{program}", "timeout": 600.0}
    used = CliRunner().invoke(
        app, ["train", "toy", "--steps", "50", "--speed", "time", "--profile", str(out), "--out", str(tmp_path / "r")]
    )
    assert used.exit_code == 0, used.output
    assert "predicted by the profile" in used.output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--target", "java"], "--target='java' is unknown; choose one of c"),
        (["--cc", "gcc"], "--cc=gcc is about programs in C: add --target c, or leave it out"),
        (["--target", "c", "--threads", 2], "--threads=2 does not go with --target c"),
        (["--target", "c", "--cc", "no-such-cc"], "there is no program 'no-such-cc'"),
        (["--target", "c", "--probes", 3], "probes=3 must be >= 10"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, expected):
    done = calibrate("--out", tmp_path / "p.json", *options)
    assert done.exit_code == 2, done.output
    assert expected in done.output.replace("\n", " ")
    assert not (tmp_path / "p.json").exists()


@compiled
def test_a_run_of_a_training_is_measured(tmp_path):
    command = [sys.executable, "-m", "sparse_dnm"]
    train = ["train", "toy", "--steps", "40", "--speed", "none", "--threads", "1", "--out", "run"]
    subprocess.run([*command, *train], cwd=tmp_path, check=True, capture_output=True)
    asked = ["calibrate", "run", "--target", "c", "--cc", QUICK, "--probes", "10", "--repeats", "3", "--out", "p.json"]
    done = subprocess.run([*command, *asked], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "run in C: " in done.stdout


@compiled
def test_the_example_of_the_documentation_runs(capsys):
    text = (Path(__file__).resolve().parent.parent / "docs" / "ship-target.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(example, {})
    assert re.search(r"^toy: \S+ µs a sample\ndigits: \S+ µs a sample$", capsys.readouterr().out, re.MULTILINE)
