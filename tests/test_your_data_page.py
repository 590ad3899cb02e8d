"""The page about your own data: its code runs, its commands work, and what it shows is what is printed."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparse_dnm.cli.app import app

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "your-data.md").read_text(encoding="utf-8")


def blocks(kind):
    """The blocks of code of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the first block of Python has written its files."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(blocks("python")[0], {})
    return folder


@pytest.fixture(scope="module")
def printed(folder):
    """What each command of the page prints, by its name."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in blocks("sh")[0].splitlines():
            program, name, *arguments = shlex.split(line)
            assert program == "sparse-dnm"
            result = CliRunner().invoke(app, [name, *arguments])
            assert result.exit_code == 0, result.output
            found[name] = result.output
    return found


def test_the_commands_of_the_page_print_what_it_shows(printed):
    first, label = blocks("text")[0].splitlines()
    shown = first.removesuffix("...").rstrip(", ")
    assert shown in printed["train"]
    assert label in printed["train"]
    assert "reproduced" in printed["evaluate"]


def test_new_wines_are_predicted(printed):
    assert len(re.findall(r"class_[012]", printed["predict"])) >= 5


def test_the_python_of_the_page_prints_what_it_shows(capsys):
    exec(blocks("python")[1], {})
    assert capsys.readouterr().out == blocks("text")[1]
