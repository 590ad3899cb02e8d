"""Snapshots of the structure along a training: one small .npz file each, in the run directory."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.config import ManifoldConfig
from sparse_dnm.engine.topology import Topology
from sparse_dnm.io import CheckpointError, make_directory, remove, write_atomic

Array = NDArray[Any]
T = TypeVar("T")

FOLDER = "snapshots"
_NAME = re.compile(r"step-(\d{9,})\.npz")
_ARRAYS = {"counts": "u", "gaps": "u", "strengths": "f", "scale": "f"}  # of a file, with their kinds
_BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError, MemoryError)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The active edges after a number of steps.

    strengths  float32 (n_edges,), in the order of the topology's CSR
    """

    step: int
    topology: Topology
    strengths: NDArray[np.float32]


def path_of(out: Path, step: int) -> Path:
    """The file of the snapshot of ``step`` in run directory ``out``."""
    return out / FOLDER / f"step-{step:09}.npz"


def save(out: Path, snapshot: Snapshot) -> None:
    """Write a snapshot, atomically; strengths are kept as float16 shares of the largest.

    counts     unsigned (n,)         edges of each row
    gaps       unsigned (n_edges,)   source of each edge, less that of the previous edge in the row (0 for the first)
    strengths  float16 (n_edges,)    over ``scale``, float32 (): relative error at most 2**-11
    """
    topology, strengths = snapshot.topology, np.asarray(snapshot.strengths, np.float32)
    counts = np.diff(topology.indptr)
    gaps = np.diff(topology.indices, prepend=np.int32(0))
    firsts = topology.indptr[:-1][counts > 0]
    gaps[firsts] = topology.indices[firsts]
    scale = np.float32(np.abs(strengths).max(initial=0.0) or 1.0)
    content = io.BytesIO()
    np.savez_compressed(
        content,
        allow_pickle=False,
        counts=_narrow(counts),
        gaps=_narrow(gaps),
        strengths=(strengths / scale).astype(np.float16),
        scale=scale,
    )
    path = path_of(out, snapshot.step)
    make_directory(path.parent)
    write_atomic(path, content.getvalue())


def _narrow(values: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
    """``values``, none negative, in the smallest unsigned integers that hold them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def steps(out: Path) -> list[int]:
    """The steps of which run directory ``out`` has snapshots, ascending."""
    folder = out / FOLDER
    found = (_NAME.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ()) if path.is_file())
    return sorted({int(match[1]) for match in found if match and match[0] == path_of(out, int(match[1])).name})


def cut(out: Path, step: int) -> None:
    """Remove the snapshots of later steps than ``step``: they are of lost updates."""
    for later in steps(out):
        if later > step:
            remove(path_of(out, later))


def load(out: Path, step: int, config: ManifoldConfig) -> Snapshot:
    """Read a snapshot.  Raises CheckpointError naming the file and what is wrong with it."""
    path = path_of(out, step)
    try:
        with zipfile.ZipFile(path):  # np.load would treat any other file as a pickle
            pass
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS}
        for name, kind in _ARRAYS.items():
            if arrays[name].dtype.kind != kind:
                raise ValueError(f"{name} are {arrays[name].dtype}")
        return _snapshot(step, config, *(arrays[name] for name in _ARRAYS))
    except _BROKEN as error:
        raise CheckpointError(
            f"snapshot {path} is damaged, or of another run ({error}); remove it to go on without"
        ) from None


def _snapshot(
    step: int, config: ManifoldConfig, counts: Array, gaps: Array, strengths: Array, scale: Array
) -> Snapshot:
    """The snapshot that the arrays of a file hold.  Raises ValueError if they do not fit ``config``."""
    config = config.graph  # of one time step
    n, n_edges = config.n_neurons, int(counts.sum(dtype=np.int64))
    if counts.shape != (n,) or gaps.shape != (n_edges,) or strengths.shape != (n_edges,) or scale.shape != ():
        raise ValueError(f"{counts.shape} rows, {gaps.shape} sources and {strengths.shape} strengths, for {n} neurons")
    if not (np.isfinite(strengths).all() and np.isfinite(scale)):
        raise ValueError("a strength is NaN or infinite")
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(counts, out=indptr[1:], dtype=np.int64)
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(gaps, dtype=np.int64)])
    rows = np.repeat(np.arange(n), counts)
    sources = sums[1:] - sums[indptr[:-1]][rows]
    same = rows[1:] == rows[:-1]
    if (sources >= np.minimum(rows, config.n_sources)).any() or (gaps[1:][same] == 0).any():
        raise ValueError("an edge is listed twice, or its source does not come before its reader")
    if counts[: config.n_inputs].any():
        raise ValueError("an input reads another neuron")
    inputs, outputs = np.arange(config.n_inputs, dtype=np.int32), np.arange(config.n_sources, n, dtype=np.int32)
    topology = Topology(indptr, sources.astype(np.int32), inputs, outputs)
    return Snapshot(step, topology, strengths.astype(np.float32) * np.float32(scale))


def spread(found: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of ``found``, evenly, the first and the last among them."""
    if len(found) <= most:
        return list(found)
    return [found[round(k)] for k in np.linspace(0, len(found) - 1, most)]
