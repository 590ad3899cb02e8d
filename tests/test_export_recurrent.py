"""Recurrent networks as C programs: compiled, checked by sanitizers, equal to model.step, of the size that is said."""

import ctypes
import dataclasses
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_export_c import (
    COMPILERS,
    SANITIZED,
    check_all,
    check_lines,
    library,
    need_sanitizers,
    needs_gcc,
    run,
    sizes,
    written,
)
from test_recurrent import manifold, networks
from test_recurrent_training import CONFIG, trainer
from test_sequence_tables import trained, visits
from typer.testing import CliRunner

import sparse_dnm
from sparse_dnm import DynamicManifold, RecurrentDAG, Topology
from sparse_dnm.cli.app import app
from sparse_dnm.config import GATED, NEURONS
from sparse_dnm.export import code_bytes, to_c, to_npz, to_onnx, to_program

F32 = torch.float32


def dag(neuron, n_memory=0, seed=0, **options):
    """Inputs 0 .. 1 and those of the memory, then hidden ones, then outputs; some outputs have readers, some of the
    others none."""
    rng, n = np.random.default_rng(seed), 12 + 2 * n_memory
    first, last = 2 + n_memory, n - 2 - n_memory
    edges = [(j, i) for i in range(first, n) for j in range(i) if rng.random() < 0.4]
    topology = Topology.from_edges(edges, n, [*range(first)], [*range(last, n)])
    made = RecurrentDAG(
        topology, neuron=neuron, n_memory=n_memory, dtype=F32, generator=torch.Generator().manual_seed(seed), **options
    )
    with torch.no_grad():
        made.bias.normal_(0, 0.5, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.fixture(scope="module")
def programs():
    """Networks of several kinds and their programs."""
    models = {
        "lstm": manifold("lstm", 0, F32),
        "gru": manifold("gru", 1, F32, activation="tanh", output="square"),
        "ctrnn": manifold("ctrnn", 2, F32, activation="silu"),
        "memoryless": manifold("memoryless", 2, F32, activation="sigmoid"),
        "read_outputs": dag("gru", 1, activation="relu"),
        "read_ctrnn": dag("ctrnn", 1, weight=1.5, input_neurons=True),
        "plain": dag("memoryless", 2, seed=3),
        "one_cell": RecurrentDAG(Topology.from_edges([(0, 1), (1, 2)], 3), neuron="lstm"),
        "constant": RecurrentDAG(Topology.from_edges([(0, 1)], 3, [0], [2]), bias=3.0, neuron="gru"),
    }
    return {name: (model, to_c(model, name=name)) for name, model in models.items()}


def steps(loaded, program, x, n_outputs):
    """y (time, n_outputs) of a sequence x (time, n_inputs), from the step after a reset on."""
    state = (ctypes.c_char * program.state_bytes)(*b"\xff" * program.state_bytes)
    loaded[f"{program.name}_reset"](state)
    y = np.full((len(x), n_outputs), np.nan, np.float32)
    for row, out in zip(np.ascontiguousarray(x, np.float32), y, strict=True):
        function = loaded[f"{program.name}_step"]
        function(state, row.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p))
    return y


def check_steps(loaded, model, program, time=12):
    """The program's outputs of two sequences are those of model.step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        x, state, expected = torch.randn(time, program.n_inputs, generator=generator), None, []
        with torch.no_grad():
            for row in x:
                out, state = model.step(row[None].to(model._like.dtype), state)
                expected.append(out[0].numpy())
        found = steps(loaded, program, x.numpy(), len(expected[0]))
        size = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * size, err_msg=program.name)
        np.testing.assert_allclose(program.outputs(x[None])[0], expected, rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_programs_give_the_outputs_of_their_steps(programs, compiler, tmp_path):
    loaded = library(compiler, ["-O3"], [program for _, program in programs.values()], tmp_path)
    for model, program in programs.values():
        check_steps(loaded, model, program)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_programs_pass_the_sanitizers(programs, compiler, tmp_path):
    need_sanitizers(compiler, tmp_path)
    said = check_all([program for _, program in programs.values()], tmp_path, compiler, "-g", *SANITIZED)
    assert said.count("outputs differ by up to") == len(programs)


@needs_gcc
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
@given(models=st.lists(networks(), min_size=8, max_size=12))
def test_a_program_of_any_recurrent_network_gives_its_outputs(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dags")
    made = [to_c(model, name=f"net{k}") for k, model in enumerate(models)]
    loaded = library("gcc", ["-O1"], made, folder)
    for model, program in zip(models, made, strict=True):
        check_steps(loaded, model, program, 4)


def test_a_step_that_differs_is_found(programs, tmp_path):
    _, program = programs["gru"]
    wrong = program.files["gru.c"].replace("keep * (h - new)", "keep * (h + new)")
    assert wrong != program.files["gru.c"]
    written(dataclasses.replace(program, files={**program.files, "gru.c": wrong}), tmp_path)
    run("gcc", "-std=c99", "-o", tmp_path / "check", tmp_path / "check.c", tmp_path / "gru.c", "-lm")
    assert subprocess.run([tmp_path / "check"], capture_output=True).returncode == 1


@needs_gcc
def test_flash_and_ram_are_the_sizes_of_the_object_file(programs, tmp_path):
    for model, program in programs.values():
        found, flash = sizes(program, tmp_path / program.name, f"-D{program.name.upper()}_STATIC")
        small = program.constant_bytes < 100  # numbers that the compiler puts into the code
        assert found.get(".rodata", 0) == (0 if small else program.constant_bytes)
        assert found.get(".bss", 0) == program.ram_bytes
        command = f"gcc -std=c99 -Os -D{program.name.upper()}_STATIC"
        assert code_bytes(program, command) == (command, flash - program.constant_bytes)
        exact = f"sizeof({program.name}_state) == {program.state_bytes}"
        text = f'#include "{program.name}.h"\ntypedef char exact[{exact} ? 1 : -1];\n'
        (tmp_path / program.name / "size.c").write_text(text)
        run("gcc", "-std=c99", "-c", "-o", tmp_path / "size.o", tmp_path / program.name / "size.c")
        header = program.files[f"{program.name}.h"]
        assert f"State: {program.state_bytes} bytes of RAM for each {program.name}_state" in header
        assert f"RAM: {program.ram_bytes} bytes of the caller's stack" in header
        dag_of = model.to_dag() if isinstance(model, DynamicManifold) else model
        live = int(dag_of.topology.live[dag_of._recurrence.cells].sum())
        per_cell = {"lstm": 2, "memoryless": 0}.get(dag_of.neuron, 1)
        assert program.state_bytes == 4 * max(live * per_cell + dag_of.n_memory, 1)


def test_programs_allocate_nothing_and_need_no_header_of_mathematics(programs):
    for name, (model, program) in programs.items():
        assert "math.h" not in program.files[f"{name}.c"]
        assert "malloc" not in program.files[f"{name}.c"]
        assert to_c(model, name=name).files == program.files


@needs_gcc
@pytest.mark.parametrize("names", [False, True])
def test_main_runs_a_row_per_time_step_and_an_empty_line_begins_a_sequence(programs, names, tmp_path):
    model, program = programs["read_outputs"]
    written(program, tmp_path)
    sources = (tmp_path / "main.c", tmp_path / f"{program.name}.c")
    run("gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-o", tmp_path / "main", *sources, "-lm")
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    lines = ["\n".join(",".join(f"{v:.9g}" for v in row) for row in each.tolist()) for each in x]
    said = run(tmp_path / "main", input="first,second\n" * names + "\n\n".join(lines))
    found = np.array([[float(v) for v in line.split(",")] for line in said.splitlines()])
    with torch.no_grad():
        expected = model(x).flatten(0, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    wrong = subprocess.run([tmp_path / "main"], input="1,2\n3\n", capture_output=True, text=True)
    assert "line 2 has 1 columns; it must have 2" in wrong.stderr
    check_lines(
        tmp_path / "main",
        {"first,second\n1,2\n3,4\n": "1,2\n3,4\n"},
        {
            "0.5;1\n3,4\n": "line 1, column 1: 0.5;1 is no number",
            "1,2x\n3,4\n": "line 1, column 2: 2x is no number",
            "1,2\nnan,4\n5,6\n": "line 2, column 1: nan is not finite",
            "1,2\n\ninf,4\n": "line 3, column 1: inf is not finite",
        },
    )


@needs_gcc
def test_a_run_is_exported_on_the_command_line(tmp_path):
    trainer(tmp_path / "run", dataclasses.replace(CONFIG, steps=1)).run()
    out, invoke = str(tmp_path / "c"), CliRunner().invoke
    result = invoke(app, ["export", str(tmp_path / "run"), "--out", out])
    assert result.exit_code == 0, result.output
    assert "bytes of RAM for each sequence that runs" in result.output
    assert "outputs differ by up to" in run("make", "-s", "-C", out, "check")
    for options, message in (
        (("--dtype", "int8"), "dtype='int8' does not support recurrent networks yet; float32 does"),
        *((("--format", form), "a program in C does") for form in ("onnx", "npz", "torch", "torch-plain")),
    ):
        result = invoke(app, ["export", str(tmp_path / "run"), "--out", out, *options])
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


@needs_gcc
@pytest.mark.parametrize("label", ["state", "score"])
def test_a_program_with_preprocessing_gives_the_predictions_of_a_run(label, tmp_path):
    """Rows of a table with words and missing cells, the rows of each sequence after an empty line."""
    frame = visits()
    trained(frame, tmp_path / "run", label, sequence="patient", per_step=True)
    predictor = sparse_dnm.load(tmp_path / "run", threads=1)
    program = to_c(predictor, name="visits", preprocessing=True)
    assert program.stack_bytes == 4 * predictor.model.n_inputs
    need_sanitizers("gcc", tmp_path)
    assert "outputs differ by up to" in check_all([program], tmp_path, "gcc", *SANITIZED)
    folder = tmp_path / "visits"
    sources = (folder / "main.c", folder / "visits.c")
    run("gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-o", folder / "main", *sources, "-lm")
    columns = [*predictor.feature_names]
    parts = [rows for _, rows in frame.groupby("patient", sort=False)]
    text = "\n".join(rows[columns].to_csv(index=False, header=False) for rows in parts)
    said = run(folder / "main", input=",".join(columns) + "\n" + text).split()
    expected = predictor.predict(frame)[pd.concat(parts).index]
    check_lines(
        folder / "main",
        {text: ",".join(columns) + "\n" + text},
        {",".join(columns[::-1]) + "\n" + text: f"line 1: column 1 is '{columns[-1]}', where '{columns[0]}' belongs"},
    )
    if label == "state":
        assert said == expected.tolist()
        assert len({*said}) == 2
    else:
        np.testing.assert_allclose([float(v) for v in said], expected, rtol=1e-4, atol=1e-4)
    found, flash = sizes(program, tmp_path / "again")
    assert abs(found[".rodata"] - program.constant_bytes) < 64  # what lies between tables; small ones are in the code
    _, code = code_bytes(program, "gcc -std=c99 -Os")
    assert code + program.constant_bytes == flash


def test_what_cannot_be_exported_is_refused():
    model = manifold("lstm", 0, F32)
    for export in (to_npz, to_onnx, to_program):
        with pytest.raises(ValueError, match=r"does not support recurrent networks .* yet; a program in C does"):
            export(model)
    with pytest.raises(ValueError, match=r"samples of shape \(4, 2\) must be finite numbers \(n, time, 2\)"):
        to_c(model, samples=np.zeros((4, 2)))
    wide = manifold("lstm")
    with torch.no_grad():
        wide.gate_bias[0] = 1e60
    with pytest.raises(ValueError, match=r"a number of the network \(gates\) is 1e\+60, which float32 cannot hold"):
        to_c(wide)


def test_every_kind_of_neuron_is_covered(programs):
    found = {getattr(model, "neuron", None) or model.config.neuron for model, _ in programs.values()}
    assert found == set(NEURONS) >= set(GATED)
