"""Commands of the product on a disk that fails: each must end with a clear error, and lose nothing.

`tries` prepares a command in a folder; `fail_everywhere` runs it once for each operation of the disk, which fails, and
once more without a fault.  A `Problem` says what was found.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from matplotlib.figure import Figure
from safetensors.torch import load as from_safetensors
from typer.testing import CliRunner

from bench.faults import Disk, contents_of, writing_to
from sparse_dnm.cli.app import app
from sparse_dnm.study import compare as study
from sparse_dnm.study.fastest import Fastest
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train import snapshots

FULL = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
SETTINGS = (
    *("--steps", "12", "--speed", "proxy", "--threads", "1", "--executor", "columns", "--batch-size", "16"),
    *("--snapshot-every", "4", "--set", "checkpoint_every=4", "--set", "log_every=2", "--set", "flow=1e-4"),
)
MODE = 0o640  # of files that are there before


class Problem(AssertionError):
    """A fault that was not survived."""


@dataclass(frozen=True)
class Trial:
    """A command, the folder that it writes to, and what is done before it and to see that nothing was lost."""

    name: str
    arguments: Callable[[Path], list[str]]  # of the folder that is written to
    before: dict[str, bytes]  # the files in it
    again: Callable[[Path], list[str]]  # the command that goes on after a fault
    whole: dict[str, bytes]  # what is there in the end


def invoke(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command in this process."""
    found = CliRunner().invoke(app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise Problem(f"{' '.join(arguments)}: {found.exception!r}") from found.exception
    return found.exit_code, found.stdout, found.stderr


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Inside ``with`` figures are not drawn and networks are not timed: it is their writing that is tried."""

    def savefig(self: Figure, file, **_: object) -> None:
        file.write(b"a picture")

    def timed(networks, settings, executors):
        return {name: Fastest(executors[0], np.array([1e-5])) for name in networks}

    with (
        mock.patch.object(Figure, "savefig", savefig),
        mock.patch.object(study, "time_fastest", timed),
        mock.patch.object(study, "along", return_value=[]),
    ):
        yield


def data_file(folder: Path) -> Path:
    """A small classification: which of three features is the largest."""
    x = np.random.default_rng(5).standard_normal((120, 6)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=x[:, :3].argmax(1))
    return folder / "data.npz"


def trials(folder: Path, names: Sequence[str] = ()) -> list[Trial]:
    """The commands that are tried, those ``names`` or all."""
    data = str(data_file(folder))
    run = folder / "run"

    def train(out: Path) -> list[str]:
        return ["train", data, *SETTINGS, "--out", str(out)]

    def resume(out: Path) -> list[str]:
        return ["train", "--resume", str(out), "--threads", "1"] if (out / files.CONFIG).exists() else train(out)

    def longer(out: Path) -> list[str]:
        return ["train", "--resume", str(out), "--steps", "20", "--threads", "1"]

    def compare(out: Path) -> list[str]:
        settings = [*SETTINGS[:2], "--threads", "1", "--set", "checkpoint_every=6", "--set", "log_every=3"]
        return [
            "compare",
            data,
            *settings,
            "--terms",
            "none,proxy",
            "--seeds",
            "1",
            "--factors",
            "1",
            "--out",
            str(out),
        ]

    def export(form: str) -> Callable[[Path], list[str]]:
        return lambda out: ["export", str(run), "--format", form, "--out", str(out)]

    def report(out: Path) -> list[str]:
        return ["report", str(run), "--out", str(out)]

    with quick():
        must(train(run))
        begun = contents_of(run)
        made = []
        commands = {
            "train": (train, {}, resume),
            "train --resume": (longer, begun, longer),
            "report": (report, {}, report),
            "compare": (compare, {}, compare),
            **{f"export {form}": (export(form), {}, export(form)) for form in ("c", "npz", "onnx")},
        }
        for name, (command, before, again) in commands.items():
            if not names or name in names:
                out = folder / "whole"
                lay_out(before, out)
                must(command(out))
                must(command(out)) if not before and name.split()[0] in ("report", "export") else None
                made.append(Trial(name, command, before or _left(name, out), again, contents_of(out)))
    return made


def _left(name: str, out: Path) -> dict[str, bytes]:
    """What a command that replaces its files finds: those of an earlier call, of which it must keep the modes."""
    return contents_of(out) if name.split()[0] in ("report", "export") else {}


def must(arguments: Sequence[str]) -> None:
    code, out, err = invoke(arguments)
    if code:
        raise Problem(f"{' '.join(arguments)}: exit code {code}: {out}{err}")


def lay_out(contents: dict[str, bytes], folder: Path) -> None:
    """Write a folder anew; its files have MODE."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(MODE)


def fail_everywhere(trial: Trial, out: Path, error: int, for_good: bool, every: int = 1, first: int = 0) -> int:
    """Run a command with a fault at every ``every``-th operation of the disk, from the ``first`` on; how many.

    Raises Problem where it does not end with one line that names the fault, where a temporary file or a damaged
    checkpoint is left or a mode is lost, and where the same run cannot be had afterwards.
    """
    n, tried = first, 0
    while True:
        lay_out(trial.before, out)
        with quick(), writing_to(Disk(out, n, error, for_good)) as disk:
            code, _, said = invoke(trial.arguments(out))
        if not disk.failed:
            if code:
                raise Problem(f"{trial.name} without a fault: {said}")
            return tried
        where = f"{trial.name}, {disk.failed[0]} (operation {n}): {os.strerror(error)}"
        _check_said(where, code, said, error)
        _check_left(where, trial, out)
        with quick():
            must(trial.again(out))
        check_whole(where, trial, out)
        n, tried = n + every, tried + 1


def _check_said(where: str, code: int, said: str, error: int) -> None:
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if code != 2 or not last.startswith("error: cannot ") or os.strerror(error) not in last or "Traceback" in said:
        raise Problem(f"{where}: exit code {code}, said {said!r}")


def _check_left(where: str, trial: Trial, out: Path) -> None:
    for path in out.rglob("*"):
        if path.name.endswith(".tmp") or path.name == ".lock":
            raise Problem(f"{where}: {path} is left")
        name = str(path.relative_to(out))
        if name in trial.before and path.name != files.SUMMARY and stat.S_IMODE(path.stat().st_mode) != MODE:
            raise Problem(f"{where}: {name} has lost its mode")
        if path.name == files.CHECKPOINT:
            files.load(path)
        if path.suffix == ".npz" and path.parent.name == snapshots.FOLDER:
            config = files.read_config(path.parent.parent)[0]
            snapshots.load(path.parent.parent, int(path.stem.partition("-")[2]), config)


def check_whole(where: str, trial: Trial, out: Path) -> None:
    found = contents_of(out)
    if found.keys() != trial.whole.keys():
        raise Problem(f"{where}: afterwards there are {sorted(found)}, not {sorted(trial.whole)}")
    for name, data in trial.whole.items():
        if _told(name, data) != _told(name, found[name]):
            raise Problem(f"{where}: afterwards {name} is another one")


def _told(name: str, data: bytes) -> Any:
    """What a file says, without the seconds in it."""
    if name.endswith(files.CHECKPOINT):
        return {key: (t.dtype, t.numpy().tobytes()) for key, t in from_safetensors(data).items()}
    if name.endswith(files.METRICS):
        return [{**json.loads(line), "step_seconds": None} for line in data.splitlines()]
    if name.endswith((files.CONFIG, files.SUMMARY)):
        return sorted(json.loads(data))
    return None if name.endswith(("report.html", "compare.json", "compare.md")) else data


def same_run(first: Path, second: Path) -> bool:
    """Two run directories hold the same training: files, bits and lines, seconds apart."""
    one, other = contents_of(first), contents_of(second)
    return one.keys() == other.keys() and all(
        _told(name, data) == _told(name, other[name]) for name, data in one.items()
    )


__all__ = ["FULL", "Problem", "Trial", "fail_everywhere", "same_run", "trials"]
