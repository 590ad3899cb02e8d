"""Options of reading on the command line: train, evaluate, resume and compare with the same choice of columns."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sparse_dnm.cli.app import app
from sparse_dnm.data import load
from sparse_dnm.data.source import describe
from sparse_dnm.train.checkpoint import read_preprocessing

QUICK = ("--steps", 4, "--batch-size", 8, "--speed", "none", "--threads", 1, "--executor", "columns")


def invoke(*arguments, code=0):
    """Output of a command in this process, and what it says on the error stream."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A table with an ID, gaps, words, a group, and two labels."""
    rng, n = np.random.default_rng(0), 80
    frame = pd.DataFrame({"id": np.arange(n), "age": rng.integers(18, 80, n).astype(float)})
    frame.loc[::9, "age"] = np.nan
    frame["city"] = rng.choice(["Rome", "Oslo"], n)
    frame["family"] = np.arange(n) // 4
    frame["income"] = (frame.age.fillna(40) * 100 + rng.normal(0, 50, n)).round(2)
    frame["happy"] = rng.choice(["yes", "no"], n)
    frame.loc[5, "happy"] = ""
    path = tmp_path_factory.mktemp("people") / "people.csv"
    frame.to_csv(path, index=False, sep=";")
    return path


OPTIONS = ("--drop", "id,income", "--group", "family", "--drop-unlabelled", "--test-size", "0.25")


@pytest.fixture(scope="module")
def run(people):
    """A run directory, and what its training printed."""
    out = people.parent / "run"
    return out, invoke("train", people, *OPTIONS, *QUICK, "--out", out)


def test_decisions_are_printed_once_and_kept(run, people):
    out, printed = run
    for words in (
        "columns: 2 of features, 4 inputs",
        "  age     number; ",
        "% missing: filled by the mean",
        "  city    2 levels: ",
        "  id      left out (--drop)",
        "  family  rows of one group stay together",
        "  happy   label: 2 classes: no, yes",
        "1 row without a label is left out",
    ):
        assert printed.count(words) == 1, words
    made = read_preprocessing(out)
    assert made.feature_names == ("age", "city")
    data = load(people, drop="id,income", group="family", drop_unlabelled=True, test_size=0.25)
    assert json.loads((out / "config.json").read_text())["data"] == describe(data)
    new = pd.read_csv(people, sep=";")
    assert made.inputs(new).equal(data.preprocessing.inputs(new))
    assert made.predictions(torch.tensor([[0.0, 1.0]])).tolist() == ["yes"]


def test_a_run_is_evaluated_and_resumed_with_the_same_columns(run):
    out, _ = run
    assert "reproduced" in invoke("evaluate", out)
    assert "is finished at step 4" in invoke("train", "--resume", out)
    refused = invoke("train", "--resume", out, "--drop", "age", code=2)
    assert "leave out --drop; only --cc, --copy, --run, --timeout, --steps" in refused
    assert "columns: 2 of features" in invoke("train", "--resume", out, "--steps", 6)


def test_several_numbers_are_predicted_at_once(people, tmp_path):
    chosen = ("--target", "income", "--target", "age", "--drop", "id,happy,family", "--drop-unlabelled")
    printed = invoke("train", people, *chosen, *QUICK, "--out", tmp_path / "run")
    assert printed.count("label: a number") == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["source"]["target"] == ["income", "age"]
    assert "reproduced" in invoke("evaluate", tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "row 6 (line 7), column 'happy': the label is missing; --drop-unlabelled"),
        (("--drop-unlabelled",), "column 'id' tells the order of the rows; --keep 'id'"),
        (("--drop-unlabelled", "--drop", "id", "--stratify", "--group", "family"), "two rules for one split"),
        (("--target", "hapy"), "do you mean 'happy'?"),
        (("--task", "clustering"), "choose one of classification, regression"),
    ],
)
def test_mistakes_end_with_one_line_and_no_run_directory(people, tmp_path, arguments, words):
    error = invoke("train", people, *arguments, *QUICK, "--out", tmp_path / "run", code=2)
    assert all(part in error for part in words.split("; ")), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_runs_of_earlier_versions_are_read_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"n": np.arange(40), "a": rng.normal(size=40), "kind": rng.choice(["x", "y"], 40)})
    frame.to_csv(tmp_path / "table.csv")  # its first column had no name, and was a feature as the second
    np.savez(tmp_path / "one_hot.npz", x=rng.random((40, 3, 8, 8)), y=np.eye(2)[rng.integers(0, 2, 40)])
    for name, options in (
        ("table.csv", {"keep": ["Unnamed: 0", "n"]}),
        ("one_hot.npz", {"task": "regression", "channels": "last"}),
    ):
        out = tmp_path / f"run of {name}"
        chosen = [
            word for key, value in options.items() for word in (f"--{key}", ",".join(value) if key == "keep" else value)
        ]
        invoke("train", tmp_path / name, *chosen, *QUICK, "--out", out)
        config = json.loads((out / "config.json").read_text())
        del config["source"]["reading"], config["preprocessing"]
        (out / "config.json").write_text(json.dumps(config))
        assert "reproduced" in invoke("evaluate", out)
        invoke("train", "--resume", out, "--steps", 6)


@pytest.mark.slow
def test_compare_takes_the_same_options(people, tmp_path):
    quick = ("--terms", "none", "--seeds", 1, "--steps", 2, "--threads", 1, "--timed-with", "columns")
    printed = invoke("compare", people, *OPTIONS, *quick, "--out", tmp_path / "compare")
    assert printed.count("columns: 2 of features, 4 inputs") == 1
    configs = list((tmp_path / "compare").rglob("config.json"))
    assert configs
    assert all(json.loads(path.read_text())["source"]["reading"]["group"] == "family" for path in configs)


def test_options_of_reading_have_a_part_of_the_help_of_their_own():
    for command in ("train", "compare"):
        text = invoke(command, "--help")
        assert "Reading data" in text
        options = "target drop keep categories task header test-size stratify group channels drop-unlabelled "
        options += "sequence per-step window horizon"
        for option in options.split():
            assert f"--{option}" in text
