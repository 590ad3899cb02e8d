"""Networks as C programs: compiled, checked by sanitizers, equal to model(x), of the size that is said."""

import ctypes
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import sparse_dags

from sparse_dnm import DynamicManifold, SparseDAG, Topology, data
from sparse_dnm.export import Folded, code_bytes, to_c
from sparse_dnm.lowering.int8 import Quantized
from sparse_dnm.lowering.layout import Layout
from sparse_dnm.predictor import Predictor
from sparse_dnm.presets import PRESETS as MANIFOLDS

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
COMPILERS = [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"no {name} here"))
    for name in ("gcc", "clang")
]
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
SANITIZED = ("-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")


def need_sanitizers(compiler, folder):
    """Skip where the libraries that sanitized programs need are missing: Debian has those of clang in a package of
    their own."""
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    line = [compiler, *SANITIZED, "-o", folder / "empty", source]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip(f"the sanitizers' libraries of {compiler} are missing here")


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def written(program, folder):
    program.write(folder)
    return folder


def sources(programs, folder):
    """Their folders, one each, and the arguments of a compiler for all of their networks."""
    folders = [written(program, folder / program.name) for program in programs]
    return [each / f"{program.name}.c" for each, program in zip(folders, programs, strict=True)]


def library(compiler, flags, programs, folder):
    out = folder / f"{compiler}.so"
    run(compiler, *WARNINGS, *flags, "-shared", "-fPIC", "-o", out, *sources(programs, folder), "-lm")
    return ctypes.CDLL(str(out))


def call(function, x, n_outputs):
    """y (n, n_outputs) of float32 rows x."""
    y = np.full((len(x), n_outputs), np.nan, np.float32)
    for row, out in zip(np.ascontiguousarray(x, np.float32), y, strict=True):
        function(row.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p))
    return y


def normal(n, columns, seed=0):
    return torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))


def manifold(preset="digits", **changes):
    import dataclasses

    config = dataclasses.replace(MANIFOLDS[preset].manifold, **changes)
    return DynamicManifold(config, torch.Generator().manual_seed(0), threads=1)


def check_all(programs, folder, compiler, *flags):
    """Compile the check programs of all into one and run it."""
    lines, arguments = [], []
    for program, source in zip(programs, sources(programs, folder), strict=True):
        name = program.name
        run(
            compiler,
            *WARNINGS,
            *flags,
            f"-Dmain=check_{name}",
            "-c",
            source.parent / "check.c",
            "-o",
            folder / f"{name}.o",
        )
        lines.append(f"int check_{name}(void); failed += check_{name}();")
        arguments += [source, folder / f"{name}.o"]
    (folder / "all.c").write_text("int main(void) { int failed = 0; " + "\n".join(lines) + " return failed; }\n")
    run(
        compiler,
        *WARNINGS,
        *flags,
        "-Wno-declaration-after-statement",
        "-o",
        folder / "all",
        folder / "all.c",
        *arguments,
        "-lm",
    )
    return run(folder / "all")


@pytest.fixture(scope="module")
def programs():
    """Networks of several kinds and their programs."""
    rng = np.random.default_rng(0)
    edges = [(i, j) for i in range(300) for j in range(300, 340) if rng.random() < 0.1]
    edges += [(i, j) for i in range(300, 340) for j in range(340, 345) if rng.random() < 0.5]
    dag = Topology.from_edges(edges, 345, [*range(300)], [*range(340, 345)])
    models = {
        "closeness": manifold(),
        "squared": manifold("original-mnist", n_neurons=900, output="square"),
        "inputs_in_place": SparseDAG(dag, activation="tanh", generator=torch.Generator().manual_seed(0)),
        "one_edge": SparseDAG(Topology.from_edges([(0, 1)], 2)),
        "constant": SparseDAG(Topology.from_edges([], 2, [0], [1]), bias=3.0),
    }
    return {name: (model, to_c(model, name=name)) for name, model in models.items()}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_programs_give_the_outputs_of_their_networks(programs, compiler, tmp_path):
    loaded = library(compiler, ["-O3"], [program for _, program in programs.values()], tmp_path)
    for name, (model, _) in programs.items():
        dag = model.to_dag() if isinstance(model, DynamicManifold) else model
        x = normal(20, dag.n_inputs)
        with torch.no_grad():
            expected = model(x).numpy()
        found = call(loaded[f"{name}_run"], x.numpy(), dag.n_outputs)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_programs_pass_the_sanitizers(programs, compiler, tmp_path):
    need_sanitizers(compiler, tmp_path)
    flags = ("-g", *SANITIZED)
    said = check_all([program for _, program in programs.values()], tmp_path, compiler, *flags)
    assert said.count("outputs differ by up to") == len(programs)


@needs_gcc
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
@given(models=st.lists(sparse_dags(max_neurons=40, dtype=torch.float32), min_size=6, max_size=10))
def test_a_program_of_any_dag_gives_its_outputs(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dags")
    made = [to_c(model, name=f"net{k}") for k, model in enumerate(models)]
    loaded = library("gcc", ["-O1"], made, folder)
    for model, program in zip(models, made, strict=True):
        folded, x = Folded.of(model), normal(4, model.n_inputs)
        expected = folded.outputs(x.numpy())
        size = np.abs(folded.cells(x.double().numpy())).max(initial=1.0)
        found = call(loaded[f"{program.name}_run"], x.numpy(), model.n_outputs)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * size ** (1 + folded.squared))


def sizes(program, folder, *flags):
    """Bytes by section of the object file of a program, and those of text and data, as `size` says them."""
    written(program, folder)
    run("gcc", "-std=c99", "-Os", *flags, "-c", "-o", folder / "net.o", folder / f"{program.name}.c")
    lines = [line.split() for line in run("size", "-A", folder / "net.o").splitlines() if line.startswith(".")]
    text, data_bytes = map(int, run("size", folder / "net.o").splitlines()[1].split()[:2])
    return {line[0]: int(line[1]) for line in lines}, text + data_bytes


@needs_gcc
def test_flash_and_ram_are_the_sizes_of_the_object_file(programs, tmp_path):
    made = [program for _, program in programs.values()]
    for name, (model, program) in programs.items():
        samples = normal(50, program.n_inputs).numpy()
        made.append(to_c(model, name=f"{name}8", dtype="int8", samples=samples))
    for program in made:
        found, flash = sizes(program, tmp_path / program.name, f"-D{program.name.upper()}_STATIC")
        small = program.constant_bytes < 100  # numbers that the compiler puts into the code
        assert found.get(".rodata", 0) == (0 if small else program.constant_bytes)
        assert found.get(".bss", 0) == program.ram_bytes
        command = f"gcc -std=c99 -Os -D{program.name.upper()}_STATIC"
        assert code_bytes(program, command) == (command, flash - program.constant_bytes)


@needs_gcc
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_flash_with_preprocessing_is_the_size_of_the_object_file(predictors, dtype, tmp_path):
    predictor, _ = predictors["words"]
    samples = normal(50, predictor.model.n_inputs).numpy()
    program = to_c(predictor, name="words", dtype=dtype, preprocessing=True, samples=samples)
    found, flash = sizes(program, tmp_path)
    assert program.constant_bytes <= found[".rodata"] < program.constant_bytes + 64  # what lies between three tables
    _, code = code_bytes(program, "gcc -std=c99 -Os")
    assert code + program.constant_bytes == flash


def test_a_compiler_that_is_missing_or_fails_is_named(programs):
    _, program = programs["one_edge"]
    with pytest.raises(ValueError, match="cc='no-such-gcc -Os': no-such-gcc or size is not on the PATH"):
        code_bytes(program, "no-such-gcc -Os")
    if shutil.which("gcc"):
        with pytest.raises(ValueError, match=r"does not compile one_edge\.c: .*-fno-such-option"):
            code_bytes(program, "gcc -fno-such-option")


def test_the_same_network_is_the_same_program_to_the_byte(programs):
    model, program = programs["closeness"]
    assert to_c(model, name="closeness").files == program.files


def test_activations_without_curves_need_no_header_of_mathematics(programs):
    assert all("math.h" not in program.files[f"{name}.c"] for name, (_, program, *_) in programs.items())
    assert all("malloc" not in program.files[f"{name}.c"] for name, (_, program) in programs.items())


def test_an_input_that_is_passed_on_is_not_copied(programs):
    model, program = programs["inputs_in_place"]
    assert program.ram_bytes == 4 * sum(map(len, Folded.of(model).levels[:-1]))
    assert " x[" in program.files["inputs_in_place.c"]


# -- int8 ---------------------------------------------------------------------------------------------------


def integers(program, loaded, codes, n_outputs):
    """y (n, n_outputs) of codes (n, n_inputs)."""
    y = np.full((len(codes), n_outputs), -1, np.int32)
    for row, out in zip(np.ascontiguousarray(codes, np.int8), y, strict=True):
        loaded[f"{program.name}_run"](row.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p))
    return y


def quantized(model, samples):
    """The integers of the program that `to_c` makes."""
    folded = Folded.of(model)
    return Quantized(folded, Layout.of(folded, "int8"), samples.astype(np.float64))


@needs_gcc
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
@given(models=st.lists(sparse_dags(max_neurons=40, dtype=torch.float32), min_size=6, max_size=10))
def test_a_program_in_int8_gives_the_bits_of_its_reference(models, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("dags"), np.random.default_rng(0)
    samples = [normal(30, model.n_inputs).numpy() for model in models]
    made = [to_c(m, name=f"net{k}", dtype="int8", samples=samples[k]) for k, m in enumerate(models)]
    flags = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
    loaded = library("gcc", flags, made, folder)
    for model, program, x in zip(models, made, samples, strict=True):
        reference = quantized(model, x)
        codes = np.concatenate([reference.codes(x), rng.integers(-128, 128, (20, model.n_inputs))])  # out of range, too
        np.testing.assert_array_equal(integers(program, loaded, codes, model.n_outputs), reference.outputs(codes))


def test_outputs_in_int8_are_near_those_of_the_network(programs):
    for name, (model, _) in programs.items():
        dag = model.to_dag() if isinstance(model, DynamicManifold) else model
        x = normal(200, dag.n_inputs).numpy()
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        found = to_c(model, name=name, dtype="int8", samples=x).outputs(x)
        error = np.sqrt(np.square(found - expected).mean())
        assert error <= 0.05 * max(expected.std(), np.abs(expected).max() / 10), name


@pytest.mark.parametrize("compiler", COMPILERS)
def test_programs_in_int8_pass_the_sanitizers(programs, predictors, compiler, tmp_path):
    need_sanitizers(compiler, tmp_path)
    made = [
        to_c(model, name=f"{name}8", dtype="int8", samples=normal(50, program.n_inputs).numpy())
        for name, (model, program) in programs.items()
    ]
    for name, (predictor, _) in predictors.items():
        samples = normal(50, predictor.model.n_inputs).numpy()
        made.append(to_c(predictor, name=f"{name}8", dtype="int8", preprocessing=True, samples=samples))
    said = check_all(made, tmp_path, compiler, *SANITIZED)
    assert said.count("by up to 0 of the largest") >= len(made) - 1  # a regression is in float32 at its end


def test_int8_needs_samples():
    with pytest.raises(ValueError, match="give samples="):
        to_c(SparseDAG(Topology.from_edges([(0, 1)], 2)), dtype="int8")


def test_int8_refuses_what_its_integers_cannot_hold():
    steep = SparseDAG(Topology.from_edges([(0, 1), (1, 2)], 3), activation="leaky_relu(-9)")
    with pytest.raises(ValueError, match="slope -9 below zero"):
        to_c(steep, dtype="int8", samples=np.ones((1, 1)))


# -- preprocessing ------------------------------------------------------------------------------------------


def predictor_of(dataset, **changes):
    """An untrained network on the inputs of a data set: outputs are as good as any."""
    sizes = {"n_inputs": dataset.n_inputs, "n_outputs": dataset.n_outputs}
    model = manifold("digits", n_neurons=sum(sizes.values()) + 30, **sizes, **changes)
    return Predictor(model.to_dag(), dataset.preprocessing)


def table():
    rng, n = np.random.default_rng(0), 200
    frame = pd.DataFrame(
        {
            "size": np.where(rng.random(n) < 0.1, np.nan, rng.normal(1900, 3, n).round(2)),
            'colour, "kind"': rng.choice(["red", "light blue", "grün?"], n),
            "sold": rng.choice(["yes", "no"], n),
            "since": [f"2024-0{k}-1{k}" for k in rng.integers(1, 9, n)],
            "class": rng.choice(["good", "*/bad\\"], n),
        }
    )
    return frame, data.from_frame(frame, "class")


@pytest.fixture(scope="module")
def predictors():
    frame, dataset = table()
    numbers = pd.DataFrame(np.random.default_rng(1).normal([5, 500, 0], [1, 2, 9], (90, 3)), columns=["a", "b", "c"])
    return {
        "words": (predictor_of(dataset), frame),
        "digits": (predictor_of(data.load("digits")), None),
        "numbers": (predictor_of(data.from_frame(numbers, "c")), numbers),
    }


@needs_gcc
def test_a_program_with_preprocessing_reads_a_table_and_prints_predictions(predictors, tmp_path):
    for name, (predictor, frame) in predictors.items():
        folder = written(to_c(predictor, name=name, preprocessing=True), tmp_path / name)
        run("make", "-s", "CC=gcc", f"CFLAGS={' '.join(WARNINGS)} -O1 -fsanitize=undefined,address", name, cwd=folder)
        if frame is None:
            samples = (normal(20, 64).abs() * 5).round().numpy()
            text = "\n".join(",".join(map(str, row)) for row in samples.tolist())
        else:
            samples = frame[list(predictor.feature_names)]
            text = samples.to_csv(index=False, na_rep="NA")
        said = run(folder / name, input=text).splitlines()
        expected = predictor.predict(samples)
        if predictor.classes is None:
            scale = np.abs(np.asarray(expected)).max()
            np.testing.assert_allclose(np.array(said, float), np.asarray(expected), atol=1e-5 * scale)
        else:
            assert said == [str(each) for each in np.asarray(expected).tolist()]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_programs_with_preprocessing_pass_the_sanitizers(predictors, compiler, tmp_path):
    need_sanitizers(compiler, tmp_path)
    made = [to_c(predictor, name=name, preprocessing=True) for name, (predictor, _) in predictors.items()]
    check_all(made, tmp_path, compiler, *SANITIZED)


def built(program, folder):
    """main.c, compiled by gcc and, where it is here, by clang: the same warnings for both."""
    written(program, folder)
    for compiler in filter(shutil.which, ("clang", "gcc")):
        run(compiler, *WARNINGS, "-o", folder / "main", folder / "main.c", folder / f"{program.name}.c", "-lm")
    return folder / "main"


def check_lines(main, good, bad):
    """``good``: texts that are read, and those that mean the same; ``bad``: texts, and what is said of them."""
    for text, same in good.items():
        assert run(main, input=text) == run(main, input=same) != ""
    for text, message in bad.items():
        done = subprocess.run([main], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, message in done.stderr) == (1, True), (text, done.stdout, done.stderr)


@needs_gcc
def test_names_of_columns_are_compared_and_what_cannot_be_read_is_named(predictors, tmp_path):
    wrong = "line 1: column {} is {}, where {} belongs; the columns must be 'a', 'b'"
    check_lines(
        built(to_c(predictors["numbers"][0], name="numbers", preprocessing=True), tmp_path),
        {
            "a,b\n1,2\n": "1,2\n",
            '\ufeffa, "b"\r\n1,2\r\n': "1,2\n",
            "1,nan\nNULL,2\n": "1,\n?,2\n",
        },
        {
            "b,a\n1,2\n": wrong.format(1, "'b'", "'a'"),
            "a,typo\n1,2\n": wrong.format(2, "'typo'", "'b'"),
            "a\n1\n": wrong.format(2, "missing", "'b'"),
            "a,b,c\n1,2,3\n": wrong.format(3, "'c'", "none"),
            "foo,bar\n1,2\n": "line 1, column 1: foo is no number",
            "1,x\n1,2\n": "line 1, column 2: x is no number",
            "1,b\n1,2\n": "line 1, column 2: b is no number",
            "0.5;1\n": "line 1, column 1: 0.5;1 is no number",
            "1,2\n3,x\n": "line 2, column 2: x is no number",
            "1,2\n3,inf\n": "line 2, column 2: inf is not finite",
            "1,2\n3,1e39\n": "line 2, column 2: 1e39 is not finite",
            "1\n": "line 1 has 1 columns",
        },
    )


@needs_gcc
def test_names_of_columns_with_words_are_told_from_unseen_words(predictors, tmp_path):
    """A category may have any text: one that is the name of a column is a name only where no number is in the line."""
    predictor, _ = predictors["words"]
    main = built(to_c(predictor, name="words", preprocessing=True), tmp_path)
    names = 'size,"colour, ""kind""",sold,since'
    row, unseen = "1900,{},yes,2024-01-11\n", "1900,violet,yes,2024-01-11\n"
    check_lines(
        main,
        {
            f"{names}\n{row.format('red')}": row.format("red"),
            row.format("sold"): unseen,
            unseen + row.format("n/a").replace("1900", "<NA>"): unseen + row.format("").replace("1900", ""),
        },
        {
            f"sold,size,since,kind\n{unseen}": "line 1: column 1 is 'sold', where 'size' belongs",
            row.format("red").replace("yes", "maybe") + unseen: "line 1, column 3: maybe is no number",
            row.format("red").replace("1900", "-inf"): "line 1, column 1: -inf is not finite",
        },
    )


@needs_gcc
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_inputs_without_names_must_be_finite_and_names_have_no_number_among_them(dtype, tmp_path):
    model = manifold(n_neurons=30, n_inputs=2, n_outputs=2)
    samples = normal(50, 2) if dtype == "int8" else None
    check_lines(
        built(to_c(model, name="raw", dtype=dtype, samples=samples), tmp_path),
        {"first,second\n1,2\n": "1,2\n"},
        {
            "0.5;1\n": "line 1, column 1: 0.5;1 is no number",
            "1,x\n1,2\n": "line 1, column 2: x is no number",
            "x,1\n1,2\n": "line 1, column 1: x is no number",
            "nan,nan\n1,2\n": "line 1, column 1: nan is not finite",
            "NA,NA\n1,2\n": "line 1, column 1: NA is not finite",
            "Infinity,-inf\n1,2\n": "line 1, column 1: Infinity is not finite",
            "first\n1,2\n": "line 1 has 1 columns; it must have 2",
            "1,2\nnan,2\n": "line 2, column 1: nan is not finite",
            "1,2\n1,-inf\n": "line 2, column 2: -inf is not finite",
            "1,2\n,2\n": "line 2, column 1: a missing cell is not finite",
            "1,2\nfirst,second\n": "line 2, column 1: first is no number",
        },
    )


# -- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "1st", "my-model", "größe", "_x", "main", "a b"])
def test_names_that_are_no_identifiers_are_refused(name):
    with pytest.raises(ValueError, match="name="):
        to_c(SparseDAG(Topology.from_edges([(0, 1)], 2)), name=name)


def test_preprocessing_needs_a_run():
    with pytest.raises(ValueError, match="needs a run"):
        to_c(SparseDAG(Topology.from_edges([(0, 1)], 2)), preprocessing=True)


def test_only_files_of_an_export_are_replaced(programs, tmp_path):
    _, program = programs["one_edge"]
    program.write(tmp_path)
    program.write(tmp_path)
    (tmp_path / "main.c").write_text("int mine;\n")
    (tmp_path / "one_edge.c").unlink()
    with pytest.raises(ValueError, match=r"main\.c exists and was not written by sparse-dnm export"):
        program.write(tmp_path)
    assert not (tmp_path / "one_edge.c").exists()


def test_samples_must_fit():
    with pytest.raises(ValueError, match=r"samples of shape \(3, 2\) must be \(n, 1\)"):
        to_c(SparseDAG(Topology.from_edges([(0, 1)], 2)), samples=np.zeros((3, 2)))


def test_weights_that_float32_cannot_hold_are_refused():
    model = SparseDAG(Topology.from_edges([(0, 1)], 2), np.array([1e300]), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"1e\+300, which float32 cannot hold"):
        to_c(model)
