"""Peers that are not dependencies of ours: found where installed, set up under a cache folder, or named absent."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm import SparseDAG
from sparse_dnm.timing.clock import Timing

INSTALL_S = 900  # seconds that an installation may take
RUN_S = 600  # seconds that connex may take to build, compile and run
CONNEX = ("connex==0.4.0", "jax==0.10.2")
CONNEX_NEEDS = (3, 12)  # the least Python
LAYOUTS = (
    "matmul",
)  # by trial the fastest of connex's four on the seed graph; its default, "hybrid", takes 10 times as long
TOLERANCE = 1e-4  # of a peer's outputs and gradients, relative to the largest


class AbsentError(Exception):
    """A peer cannot be had here; the message says why."""


def cache() -> Path:
    """Folder of what is installed here: $SPARSE_DNM_BENCH_CACHE, or sparse-dnm-bench in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SPARSE_DNM_BENCH_CACHE") or Path(base) / "sparse-dnm-bench")


def _command(what: str, command: list[str], seconds: float) -> str:
    """Output of a command.  Raises AbsentError with the last line of its errors."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"{what}: {error}") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise AbsentError(f"{what}: {said[-1].strip() if said else f'exit code {done.returncode}'}")
    return done.stdout


def installed(name: str) -> ModuleType:
    """The module ``name`` of this environment.  Raises AbsentError."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise AbsentError(f"import {name}: {error}") from None


def borrowed(name: str) -> ModuleType:
    """The module ``name``, from this environment or else pip-installed, without what it needs, into the cache."""
    try:
        return installed(name)
    except AbsentError:
        folder = cache() / name
        if not (folder / name).exists():
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), name]
            _command(f"pip install {name}", command, INSTALL_S)
        sys.path.append(str(folder))
        return installed(name)


def _is_new_enough(python: str) -> bool:
    """Whether this command starts a Python that connex runs on."""
    code = f"import sys; sys.exit(sys.version_info < {CONNEX_NEEDS})"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _new_python() -> str:
    """A Python that connex runs on: $SPARSE_DNM_BENCH_PYTHON, this one, or one of the system's or pyenv's."""
    named = [os.environ.get("SPARSE_DNM_BENCH_PYTHON"), sys.executable]
    named += [shutil.which(f"python3.{minor}") for minor in (14, 13, 12)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    named += [str(path) for path in sorted(pyenv.glob("versions/*/bin/python"), reverse=True)]
    for python in filter(None, named):
        if _is_new_enough(python):
            return python
    wanted = ".".join(map(str, CONNEX_NEEDS))
    raise AbsentError(f"{CONNEX[0]} needs Python {wanted} and none was found; SPARSE_DNM_BENCH_PYTHON names one")


def _connex_python() -> Path:
    """The interpreter of a virtual environment with connex, made where it is missing."""
    folder = cache() / "-".join(CONNEX).replace("==", "-")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if not ready.exists():
        _command("venv", [_new_python(), "-m", "venv", "--clear", str(folder)], INSTALL_S)
        _command(f"pip install {' '.join(CONNEX)}", [str(python), "-m", "pip", "install", "-q", *CONNEX], INSTALL_S)
        ready.touch()
    return python


def connex(dag: SparseDAG, x: Tensor, repeats: int) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Timings of connex on this DAG in a process of its own, and what it says about itself.

    Raises AbsentError, and AssertionError where its outputs or its gradient are not ours.
    """
    python = _connex_python()
    topology, y = dag.topology, dag(x)
    (gradient,) = torch.autograd.grad(y.sum(), dag.edge_weight)
    arrays = {"x": x, "y": y.detach(), "values": dag.edge_weight.detach(), "gradient": gradient}
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.npz"
        np.savez(
            graph,
            edges=topology.edges(),
            inputs=topology.inputs,
            outputs=topology.outputs,
            **{name: tensor.numpy() for name, tensor in arrays.items()},
        )
        script = Path(__file__).with_name("connex_peer.py")
        said = _command("connex", [str(python), str(script), str(graph), str(repeats), *LAYOUTS], RUN_S)
    result = json.loads(said.splitlines()[-1])
    for what, differs in result["differs"].items():
        if not differs <= TOLERANCE:
            raise AssertionError(f"connex: {what} differ from ours by {differs:.3g} of the largest")
    timings = {f"connex {name}": Timing.of(seconds) for name, seconds in result.pop("seconds").items()}
    return timings, result
