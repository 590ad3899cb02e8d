"""Peers that are not dependencies of ours: found where installed, set up under a cache folder, or named absent."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sparse_dnm import Topology
from sparse_dnm.timing.clock import Timing

INSTALL_S = 900  # seconds that an installation may take
RUN_S = 600  # seconds that connex may take to build, compile and run


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


def _connex_python() -> Path:
    """The interpreter of a virtual environment with connex, made where it is missing."""
    folder = cache() / "connex"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if not ready.exists():
        _command("venv", [sys.executable, "-m", "venv", "--clear", str(folder)], INSTALL_S)
        _command("pip install connex", [str(python), "-m", "pip", "install", "-q", "connex"], INSTALL_S)
        ready.touch()
    return python


def connex(topology: Topology, batch: int, repeats: int) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Timings of connex on this DAG in a process of its own, and what it says about itself.  Raises AbsentError."""
    python = _connex_python()
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.npz"
        np.savez(graph, edges=topology.edges(), inputs=topology.inputs, outputs=topology.outputs, batch=batch)
        script = Path(__file__).with_name("connex_peer.py")
        said = _command("connex", [str(python), str(script), str(graph), str(repeats)], RUN_S)
    result = json.loads(said.splitlines()[-1])
    timings = {f"connex {name}": Timing.of(seconds) for name, seconds in result.pop("seconds").items()}
    return timings, result
