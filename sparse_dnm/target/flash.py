"""Bytes of flash of a network as a program in C: its code and its tables, as a target's compiler makes them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from sparse_dnm.lowering.c_int8 import Int8
from sparse_dnm.lowering.c_network import Float32, Network
from sparse_dnm.lowering.int8 import Quantized
from sparse_dnm.lowering.layout import Layout
from sparse_dnm.lowering.network import Folded
from sparse_dnm.target import program
from sparse_dnm.target.launch import Target, TargetError

NAME = "network"


def lowered(folded: Folded, dtype: str, samples: Any = None) -> Network:
    """A network in C, of float32, or of int8 with ranges from ``samples`` (n, n_inputs)."""
    layout = Layout.of(folded, dtype)
    return Network(layout, Float32(folded) if dtype == "float32" else Int8(Quantized(folded, layout, samples)), NAME)


def flash_bytes(network: Network, target: Target) -> int:
    """Bytes of code and constants of a network's file, compiled by the compiler of ``target``.  Raises TargetError."""
    text = program.source(network, NAME)
    with tempfile.TemporaryDirectory(prefix="sparse-dnm-") as folder:
        (Path(folder) / f"{NAME}.c").write_text(text, encoding="ascii")
        target.compiled(f"{NAME}.c", Path(folder))
        return object_bytes(Path(folder) / f"{NAME}.o", target.cc)


def object_bytes(path: Path, cc: str) -> int:
    """Bytes of flash of a compiled file, by the `size` that belongs to a compiler, else by another one that is here.

    Raises TargetError without any.
    """
    compiler = Path(shlex.split(cc)[0]).name
    prefix = compiler[: compiler.rindex("-") + 1] if "-" in compiler else ""
    for tool in dict.fromkeys((f"{prefix}size", "llvm-size", "size")):
        found = shutil.which(tool)
        if found is None:
            continue
        done = subprocess.run([found, path.name], cwd=path.parent, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        if done.returncode == 0 and len(lines) > 1:
            text, data = lines[1].split()[:2]
            return int(text) + int(data)
    raise TargetError(f"cc={cc!r}: no program `size` here reads what it makes; install that of its binutils")
