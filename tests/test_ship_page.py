"""The page about shipping: its commands work, from training to the answers of a C program."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import sparse_dnm
from sparse_dnm import data
from sparse_dnm.cli.app import app
from sparse_dnm.data.source import DataSource

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "ship.md").read_text(encoding="utf-8")
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("make") is None, reason="no C compiler and make here"
)
CROSS = {
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "arm": ("arm-linux-gnueabihf-gcc", "qemu-arm"),
}


def blocks(kind):
    """The blocks of code of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def command(line):
    """What a line of the page prints, which is one of ours or the system's."""
    program, *arguments = shlex.split(line)
    if program == "sparse-dnm":
        return invoke(*arguments)
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run of the page."""
    folder = tmp_path_factory.mktemp("ship")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command(blocks("sh")[0].splitlines()[0])
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


@needs_compiler
def test_the_page_leads_from_training_to_the_answers_of_a_c_program(capsys):
    _, *rest = blocks("sh")[0].splitlines()
    said = [command(line) for line in rest]
    assert re.search(r"constants: [\d,]+ bytes of flash; cells: [\d,]+ bytes of RAM code: [\d,]+ bytes", said[0])
    exec(blocks("python")[0], {})
    labels = capsys.readouterr().out.split()
    answers = command(blocks("sh")[1].strip()).split()
    images = np.loadtxt("new.csv", delimiter=",")
    assert answers == sparse_dnm.load("digits").predict(images).astype(str).tolist()
    assert sum(a == b for a, b in zip(answers, labels, strict=True)) >= 4
    exec(blocks("python")[1], {})
    assert (Path("from-python") / "digits.c").exists()


def test_the_loss_of_int8_is_measured_and_small():
    said = invoke(*shlex.split(blocks("sh")[2])[1:])
    pattern = r"test accuracy: ([\d.]+)% in int8, ([\d.]+)% before: ([\d.]+) points (lost|gained)"
    inside, before, lost, way = re.search(pattern, said).groups()
    assert float(lost) * (1 if way == "lost" else -1) == pytest.approx(float(before) - float(inside), abs=0.011)
    assert float(inside) >= float(before) - 1.0
    assert Path("digits-int8", "model.c").exists()


def test_int8_takes_a_file_of_samples_and_says_its_loss_unless_the_data_are_gone(monkeypatch):
    x = data.load("digits").x_train.numpy()[:50] * 16
    np.save("some.npy", x)
    command = "export", "digits", "--dtype", "int8", "--samples", "some.npy", "--out", "by-file"
    assert "test accuracy" in invoke(*command)

    def gone(source):
        raise FileNotFoundError("no such folder")

    monkeypatch.setattr(DataSource, "load", gone)
    said = invoke(*command)
    assert "test accuracy" not in said
    assert "what int8 loses is not measured: no such folder; where the data have moved" in said
    assert "or give a file of samples with --samples" in invoke(*command[:4], code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["digits", "--format", "pascal"], "format='pascal'"),
        (["digits", "--dtype", "int4"], "dtype='int4'"),
        (["digits", "--name", "my-model"], "no C identifier"),
        (["digits", "--out", "digits/config.json"], "config.json"),
    ],
)
def test_errors_name_the_value_and_the_way_out(arguments, message):
    assert message in invoke("export", *arguments, code=2)


@pytest.mark.parametrize("target", CROSS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_program_runs_on_another_machine(target, dtype):
    compiler, emulator = CROSS[target]
    missing = [program for program in (compiler, emulator) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} here")
    invoke("export", "digits", "--dtype", dtype, "--out", f"{target}-{dtype}")
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-static"]
    sources = [f"{target}-{dtype}/check.c", f"{target}-{dtype}/model.c"]
    subprocess.run([compiler, *flags, "-o", f"{target}-{dtype}/check", *sources, "-lm"], check=True)
    done = subprocess.run([emulator, f"{target}-{dtype}/check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc here")
def test_the_program_in_int8_fits_a_microcontroller():
    invoke("export", "digits", "--dtype", "int8", "--out", "m4")
    flags = ["-std=c99", "-Os", "-mcpu=cortex-m4", "-mthumb", "-ffreestanding", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["arm-none-eabi-gcc", *flags, "-c", "-o", "m4/model.o", "m4/model.c"], check=True)
    sizes = subprocess.run(["arm-none-eabi-size", "m4/model.o"], capture_output=True, text=True, check=True)
    text, data_bytes, bss = map(int, sizes.stdout.splitlines()[1].split()[:3])
    constants = int(re.search(r"Constants: (\d+) bytes", Path("m4/model.h").read_text())[1])
    assert constants < text < constants + 2000
    assert (data_bytes, bss) == (0, 0)
    needed = subprocess.run(["arm-none-eabi-nm", "-u", "m4/model.o"], capture_output=True, text=True, check=True)
    helpers = set(needed.stdout.split()) - {"U"}
    assert not {name for name in helpers if not name.startswith("__aeabi_")}, os.fspath("m4")
