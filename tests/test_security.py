"""Nothing that is loaded is executed, names in data stay text, and no command goes through a shell."""

import ast
import contextlib
import csv
import os
import pickle
import re
import shutil
import stat
from html.parser import HTMLParser
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner

import sparse_dnm
from sparse_dnm import SparseDAG, Topology, data
from sparse_dnm.cli.app import app
from sparse_dnm.cli.streams import harmless
from sparse_dnm.io import CheckpointError
from sparse_dnm.report import comparison
from sparse_dnm.study.compare import Comparison
from sparse_dnm.target.launch import Target, TargetError
from sparse_dnm.timing.calibration import read_profile
from sparse_dnm.timing.probes import Settings
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train import snapshots

SOURCES = [*Path(sparse_dnm.__file__).parent.rglob("*.py")]
# Own pickles: through pipes and a private folder to processes that this one has started.
PICKLES = {"study/jobs.py": 2, "timing/subprocess.py": 2}
EVIL = (
    "<script>alert(1)</script>",
    'x"); system("touch owned"); ("',
    "\x1b]0;title\x07\x1b[2J",
    "*/ int y; /* ??/ $\\frac$ [/red]",
    "<a href=javascript:alert(1)>",
)


def calls(tree):
    """Names of what is called, with their keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            names, part = [], node.func
            while isinstance(part, ast.Attribute):
                names, part = [part.attr, *names], part.value
            first = [part.id] if isinstance(part, ast.Name) else []
            yield ".".join(first + names), {k.arg: getattr(k.value, "value", None) for k in node.keywords}


def test_no_source_evaluates_texts_or_unpickles_what_a_user_gives():
    found = {"/".join(path.parts[-2:]): pickles_read(path) for path in SOURCES}
    assert {name: n for name, n in found.items() if n} == PICKLES


def pickles_read(path):
    """How many pickles a source reads; it must do nothing worse."""
    loads = 0
    for name, options in calls(ast.parse(path.read_text())):
        assert name not in ("eval", "exec", "os.system", "os.popen", "torch.load", "joblib.load", "pd.read_pickle"), (
            name
        )
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") is False
        assert "shell" not in options, name
        loads += name in ("pickle.load", "pickle.loads")
    return loads


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_unpickled_wherever_it_is_given(tmp_path):
    owned, bomb = tmp_path / "owned", pickle.dumps(Bomb(tmp_path / "owned"))
    objects = np.array([Bomb(owned)] * 12, object)
    np.savez(tmp_path / "x.npz", x=objects, y=np.arange(12))
    np.save(tmp_path / "x.npy", objects)
    run = tmp_path / "run"
    (run / snapshots.FOLDER).mkdir(parents=True)
    for path in (
        run / files.CHECKPOINT,
        run / files.CONFIG,
        tmp_path / "p.json",
        tmp_path / "t.npz",
        tmp_path / "t.csv",
    ):
        path.write_bytes(bomb)
    config = sparse_dnm.ManifoldConfig.preset("toy")
    shutil.copy(tmp_path / "x.npz", snapshots.path_of(run, 0))
    attempts = (
        *(lambda name=name: data.load(tmp_path / name) for name in ("x.npz", "x.npy", "t.npz", "t.csv")),
        lambda: files.load(run / files.CHECKPOINT),
        lambda: files.read_config(run),
        lambda: sparse_dnm.load(run),
        lambda: read_profile(tmp_path / "p.json"),
        lambda: snapshots.load(run, 0, config),
    )
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"\w"):
            attempt()
    assert not owned.exists()


def test_a_graph_is_read_without_calling_its_nodes_or_attributes():
    class Node:
        def __call__(self):  # pragma: no cover
            raise AssertionError("called")

    graph = nx.DiGraph([(Node(), end := Node())], weight="__import__('os').abort()")
    graph.nodes[end]["activation"] = "__import__('os').abort()"
    assert Topology.from_networkx(graph).n_edges == 1


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory):
    """A training on a table whose file, columns and classes are called as nobody should call them."""
    folder = tmp_path_factory.mktemp("evil")
    table, rng = folder / "<script>$\\x$.csv", np.random.default_rng(0)
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["<img src=x onerror=alert(1)>", "b\x1b[2J", "la<b>bel"])
        for k in range(100):
            writer.writerow([f"{rng.normal() + k % 5:.3f}", f"{rng.normal():.3f}", EVIL[k % 5]])
    said = invoke("train", table, "--steps", 20, "--speed", "none", "--threads", 1, "--out", folder / "<b>run")
    return folder / "<b>run", table, said


def invoke(*arguments):
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == 0, found.output
    return found.stdout + found.stderr


class Elements(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_names_are_text_in_the_page(evil_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(b"x"))
    invoke("report", evil_run[0], "--out", tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Elements()
    page.feed(text)
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == 3  # Plotly, the data, the page's own
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    assert not any("javascript:" in str(value) for _, attributes in page.found for value in attributes.values())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_names_are_text_in_the_figures_and_the_page_of_a_comparison(tmp_path):
    title = "Simulated against measured speed: <script>alert(1)</script> $\\frac$ [x](javascript:y) | a"
    about = {"machine": {"processor": "x", "cores": 2}, "versions": {}, "config": {}}
    result = comparison.Result("none", 1.0, 0, 0.9, 10, 3, 4, 1e-5, 1e-5, 1e-5, "columns")
    found = Comparison(title, "classification", about, Settings(), ("columns",), [result], [], [])
    comparison.write(tmp_path, found)
    head = (tmp_path / "compare.md").read_text().splitlines()[0]
    assert re.sub(r"\\.", "", head).count("<") == 0
    assert "](" not in re.sub(r"\\.", "", head)
    assert (tmp_path / "pareto.svg").stat().st_size > 1000


def test_names_do_not_control_the_terminal(evil_run):
    run, _, said = evil_run
    assert "\x1b" not in said + invoke("evaluate", run)
    assert "\\x1b[2J" in said
    assert harmless("a\x1b[31m\u202eb\x07\tc\n") == "a\\x1b[31m\\u202eb\\x07\tc\n"


@pytest.mark.parametrize("form", ["c", "npz", "onnx"])
def test_names_are_data_in_exported_files(evil_run, tmp_path, form):
    extra = ["--preprocessing"] if form != "npz" else []
    invoke("export", evil_run[0], "--format", form, "--out", tmp_path, *extra)
    if form == "c":
        text = (tmp_path / "model.c").read_text()
        assert "system(\\042touch" in text
        assert not re.search(r'[^\\]"\); system', text)
        assert text.count("*/ int y") == 1  # in a string
        assert text.isascii()


def test_commands_of_a_target_get_their_words_without_a_shell(tmp_path):
    owned, sources = tmp_path / "owned", {"main.c": '#include <stdio.h>\nint main(void) { puts("ran"); return 0; }\n'}
    for line in ("{program}; touch %s", "{program} && touch %s", "$(touch %s) {program}", "{program} | touch %s"):
        target = Target(run=line % owned)
        with contextlib.suppress(TargetError):
            target.output("one", sources)
        assert not owned.exists()
    with pytest.raises(TargetError):
        Target(cc=f"cc -O1 ; touch {owned}").output("one", sources)
    assert not owned.exists()


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", ""])
def test_names_of_exported_files_stay_in_their_folder(evil_run, tmp_path, name):
    for form in ("c", "npz"):
        found = CliRunner().invoke(
            app, ["export", str(evil_run[0]), "--format", form, "--name", name, "--out", str(tmp_path / "f")]
        )
        assert found.exit_code == 2
    assert os.listdir(tmp_path) == []


def test_paths_in_the_files_of_a_run_are_not_written_to(evil_run, tmp_path):
    """Names of arrays in archives, steps and levels in headers: none becomes a path."""
    run = shutil.copytree(evil_run[0], tmp_path / "run")
    saved = files.load(run / files.CHECKPOINT)
    files.save(run / files.CHECKPOINT, files.Checkpoint(saved.tensors, {**saved.header, "step": "../../x"}))
    with pytest.raises(CheckpointError, match=r"step='../../x' must be an integer"):
        sparse_dnm.load(run)
    np.savez(tmp_path / "a.npz", **{"x": np.eye(10, 2), "y": np.arange(10) % 2, "../../b": np.zeros(3)})
    data.load(tmp_path / "a.npz")
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "run"]


def test_a_network_is_saved_without_pickles_and_for_the_owner_alone_if_he_wants(tmp_path):
    before = os.umask(0o077)
    try:
        path = tmp_path / "run" / files.CHECKPOINT
        path.parent.mkdir()
        dag = SparseDAG(Topology.from_edges([(0, 1)]), threads=1)
        tensors = {f"model/{k}": v for k, v in dag.state_dict().items() if isinstance(v, torch.Tensor)}
        files.save(path, files.Checkpoint(tensors, {"step": 0}))
    finally:
        os.umask(before)
    assert b"\x80\x04\x95" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
