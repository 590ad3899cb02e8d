"""Networks as products of matrices, as arrays of numpy and as programs of torch.export: the outputs are the same."""

import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import sparse_dags
from torch import nn
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, ManifoldConfig, Predictor, SparseDAG, Topology, data
from sparse_dnm.cli.app import app
from sparse_dnm.cli.export import FORMATS
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing, Target
from sparse_dnm.export import Folded, products, save_program, to_npz, to_onnx, to_program
from sparse_dnm.export.files import WRITERS, write_file

DOC = (Path(__file__).parent.parent / "docs" / "ship-formats.md").read_text()
DIAMOND = [(0, 2), (1, 2), (2, 3), (0, 3)]


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def diamond(**options):
    """A network of 2 inputs and an output."""
    given = {"values": [1.0, 2.0, 3.0, 4.0], "activation": "tanh", "threads": 1, "dtype": torch.float64, **options}
    return SparseDAG(Topology.from_edges(DIAMOND), **given)


def outputs_of(model, x):
    with torch.no_grad():
        return model(x).numpy()


def assert_near(found, expected, tolerance=1e-5):
    """Equal within ``tolerance`` of the largest output of a sample, or of 1."""
    size = np.maximum(np.abs(expected).max(1, keepdims=True), 1)
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= tolerance * size).all()


def layered(widths, edges, dtype=torch.float32):
    """Layers in which each neuron reads ``edges`` of the last layer; of the first layer the first neuron reads all."""
    rng, arcs, first = np.random.default_rng(0), [], 0
    for a, b in itertools.pairwise(widths):
        for i in range(b):
            sources = rng.choice(a, a if i == 0 else min(a, edges), replace=False)
            arcs += [(first + j, first + a + i) for j in sources]
        first += a
    n = sum(widths)
    topology = Topology.from_edges(arcs, n, np.arange(widths[0]), np.arange(n - widths[-1], n))
    return SparseDAG(topology, generator=torch.Generator().manual_seed(0), dtype=dtype, threads=1)


def network_for(preprocessing, n_outputs, dtype=torch.float32):
    n = preprocessing.n_inputs
    edges = [(i, n + k) for i in range(n) for k in range(n_outputs)]
    topology = Topology.from_edges(edges, n + n_outputs)
    return SparseDAG(topology, generator=torch.Generator().manual_seed(0), dtype=dtype, threads=1)


# -- products --------------------------------------------------------------------------------------------------


@given(model=sparse_dags(), dense=st.sampled_from([0, 2, 8, products.DENSE]))
def test_products_hold_every_edge_once_and_no_more_elements_than_the_rule_says(model, dense):
    folded = Folded.of(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "DENSE", dense)
        levels = list(products.levels_of(folded, np.arange(len(folded.columns))))
    cells = np.concatenate([product.cells for level in levels for product in level.products])
    assert sorted(cells.tolist()) == list(range(len(folded.columns), folded.n_cells))
    assert sum(np.count_nonzero(product.weights) for level in levels for product in level.products) == folded.n_edges
    for level in levels:
        for product in level.products:
            rows = product.cells - len(folded.columns)
            edges = np.maximum(np.diff(folded.indptr)[rows], 1).sum()
            assert product.weights.size <= (dense if product.dense else 2) * edges


# -- npz -----------------------------------------------------------------------------------------------------


def evaluation_in_the_docs():
    """The function `outputs(net, x)` that docs/ship-formats.md gives."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL) if "def act" in code)
    assert len(code.splitlines()) <= 20
    assert "torch" not in code
    assert "sparse_dnm" not in code
    names = {}
    exec(code, names)
    return names["outputs"]


def through_a_file(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


@given(model=sparse_dags())
def test_the_arrays_and_the_lines_of_numpy_in_the_docs_give_the_outputs(model):
    x = normal(4, model.n_inputs)
    net = through_a_file(to_npz(model))
    assert_near(evaluation_in_the_docs()(net, x.numpy()), outputs_of(model, x), 1e-9)


def test_arrays_have_the_names_dtypes_and_metadata_that_the_docs_list():
    made = Preprocessing(ArrayInputs((4,), np.zeros(4), np.ones(4)), Target((), np.array(["a", "b"])))
    net = through_a_file(to_npz(network_for(made, 2), made))
    listed = {
        name
        for names in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", DOC, re.MULTILINE)
        for name in re.findall(r"\w+", names)
    }
    assert set(net) == listed
    assert net["weights"].dtype == np.float32
    assert set(through_a_file(to_npz(diamond()))) == listed - {"mean", "std"}
    metadata = json.loads(str(net["metadata"]))
    assert metadata["classes"] == ["a", "b"]
    assert (metadata["n_inputs"], metadata["n_outputs"], metadata["squared"]) == (4, 2, False)
    assert Preprocessing.from_json(metadata["preprocessing"]).to_json() == made.to_json()


# -- programs of torch.export --------------------------------------------------------------------------------


@given(model=sparse_dags(), gathered=st.booleans())
@settings(max_examples=6)
def test_a_plain_program_gives_the_outputs_of_any_dag(model, gathered):
    with pytest.MonkeyPatch.context() as patch:
        if gathered:
            patch.setattr(products, "DENSE", 2)
        program = to_program(model, plain=True)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("sparse_dnm" in name for name in names)
    for batch in (1, 5):
        x = normal(batch, model.n_inputs)
        assert_near(program.module()(x).numpy(), outputs_of(model, x), 1e-9)


ELSEWHERE = """
import sys, torch
{imports}
files = {{"metadata.json": ""}}
program = torch.export.load(sys.argv[1], extra_files=files)
assert ("sparse_dnm" in sys.modules) is {imported}
torch.save([program.module()(x).detach() for x in torch.load(sys.argv[2])] + [files["metadata.json"]], sys.argv[3])
"""


@pytest.mark.parametrize("plain", [False, True])
def test_a_saved_program_runs_in_another_process_with_its_metadata(plain, tmp_path):
    model = DynamicManifold(ManifoldConfig.preset("toy", output="square"), torch.Generator().manual_seed(0), threads=1)
    made = data.load("toy").preprocessing
    files = [tmp_path / name for name in ("net.pt2", "x.pt", "out.pt")]
    save_program(files[0], model, made, plain=plain)
    x = [normal(batch, model.config.n_inputs, dtype=torch.float32) for batch in (1, 4)]
    torch.save(x, files[1])
    imports = "" if plain else "import sparse_dnm.model.operator"
    code = ELSEWHERE.format(imports=imports, imported=not plain)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *found, metadata = torch.load(files[2], weights_only=True)
    for given_x, out in zip(x, found, strict=True):
        assert_near(out.numpy(), outputs_of(model, given_x))
    assert json.loads(metadata)["preprocessing"] == made.to_json()


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [f for f in WRITERS if f != "onnx"])
def test_a_format_is_a_file_in_a_folder_that_is_made(form, tmp_path):
    made = Preprocessing(ArrayInputs((4,), np.zeros(4), np.ones(4)), Target((), np.array(["a", "b"])))
    predictor = Predictor(network_for(made, 2), made)
    path = write_file(tmp_path / "new" / "folder", "model", predictor, form)
    x = normal(3, 4, dtype=torch.float32)
    if form == "npz":
        found = evaluation_in_the_docs()(dict(np.load(path, allow_pickle=False)), x.numpy())
    else:
        found = torch.export.load(path).module()(x).detach().numpy()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert_near(found, outputs_of(predictor.model, x))
    with pytest.raises(ValueError, match="as metadata and does not compute it"):
        write_file(tmp_path, "model", predictor, form, preprocessing=True)


@pytest.fixture
def of_a_run(monkeypatch):
    """The predictor that the command reads, whatever the run directory is."""
    made = Preprocessing(ArrayInputs((4,), np.zeros(4), np.ones(4)), Target((), np.array(["a", "b"])))
    predictor = Predictor(network_for(made, 2), made, notes=("not finished",))
    monkeypatch.setattr("sparse_dnm.predictor.read", lambda run, **_: predictor)
    return predictor


def export_by_command(*options):
    return CliRunner().invoke(app, ["export", *map(str, options)])


def test_the_command_writes_a_file_into_the_run_directory_and_says_its_size(of_a_run, tmp_path):
    done = export_by_command(tmp_path, "--format", "npz", "--name", "net")
    path = tmp_path / "export-npz" / "net.npz"
    assert done.exit_code == 0, done.output
    assert f"{path.stat().st_size:,} bytes" in done.stdout
    assert "note: not finished" in done.stderr
    assert set(np.load(path)) == set(to_npz(of_a_run.model, of_a_run.preprocessing))


def test_the_command_knows_every_format_that_is_written():
    assert ("c", *WRITERS) == FORMATS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "hdf5"], "format="),
        (["--format", "npz", "--dtype", "int8"], "--dtype int8 is for --format c"),
        (["--format", "torch", "--preprocessing"], "leave the option out, or choose onnx"),
        (["--format", "npz", "--name", "../net"], "without folders"),
    ],
)
def test_options_of_another_format_are_refused(options, message, of_a_run, tmp_path):
    done = export_by_command(tmp_path, *options)
    assert done.exit_code != 0
    assert message in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())


# -- what is refused -----------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Stands for any module that is no SparseDAG."""


class OfItsOwn(SparseDAG):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("write", [to_onnx, to_npz, to_program])
def test_networks_that_a_format_does_not_hold_are_refused_by_name(write):
    with pytest.raises(ValueError, match="a Recurrent cannot be exported"):
        write(Recurrent())
    own = OfItsOwn(Topology.from_edges(DIAMOND), threads=1)
    with pytest.raises(ValueError, match="OfItsOwn has a forward of its own"):
        write(own)
    hooked = diamond()
    hooked.register_forward_hook(lambda *a: None)
    with pytest.raises(ValueError, match="forward hooks"):
        write(hooked)


def test_a_program_of_a_network_on_another_device_is_refused_by_its_name():
    with pytest.raises(ValueError, match="the network is on 'meta'"):
        to_program(diamond().to("meta"))


@pytest.mark.parametrize("write", [to_onnx, to_npz])
def test_products_of_parameters_beyond_the_dtype_are_refused(write):
    model = diamond(values=3e38, weight=10.0, dtype=torch.float32)
    with pytest.raises(ValueError, match="beyond float32"):
        write(model)


@pytest.mark.parametrize("write", [to_onnx, to_npz, lambda model, made: save_program("never.pt2", model, made)])
def test_a_preprocessing_of_another_run_is_refused(write):
    made = Preprocessing(ArrayInputs((4,), np.zeros(4), np.ones(4)), Target((), np.array(["a", "b"])))
    with pytest.raises(ValueError, match="2 inputs and the preprocessing makes 4"):
        write(diamond(), made)
