"""Seconds of networks on a target, in turns with a reference network."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.lowering.c_network import Network
from sparse_dnm.lowering.network import Folded
from sparse_dnm.machine import machine
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.model.sparse_dag import SparseDAG
from sparse_dnm.target import program
from sparse_dnm.target.launch import Target
from sparse_dnm.timing import quiet
from sparse_dnm.timing.pace import QUIET_SPREAD, READS, reference_graph
from sparse_dnm.timing.quiet import Quiet

NAME = "sparse_dnm_times"
MOST_BYTES = 1 << 20  # of the tables of a program


@dataclass(frozen=True)
class Measured:
    """Seconds of the quiet target, of networks by name.

    seconds     float64 (rounds,) each: ratios to the reference beside, times its seconds when the target was quiet
    raw         the same, as the clock showed them
    unit        seconds of the reference that ratios are multiplied with
    reference   s of the reference now, median
    spread      its 90th over its 10th percentile
    resolution  s between readings of the clock that differ
    key         whose unit it is
    """

    seconds: dict[str, NDArray[np.float64]]
    raw: dict[str, NDArray[np.float64]]
    unit: Quiet
    reference: float
    spread: float
    resolution: float
    key: dict[str, Any]

    def microseconds(self, name: str) -> float:
        """Median of a network."""
        return 1e6 * float(np.median(self.seconds[name]))


@functools.cache
def reference() -> Network:
    """The network that all times are relative to."""
    graph = reference_graph()
    values = np.full(graph.n_edges, READS**-0.5)
    dag = SparseDAG(graph, values, 0.01, linear_outputs=True, dtype=torch.float64, device="cpu")
    return program.made(Folded.of(dag))


def made(model: Any) -> Network:
    """The C of a network, a `Folded`, SparseDAG or DynamicManifold."""
    if isinstance(model, Network):
        return model
    refuse_recurrent(model, "the clock of programs in C")
    dag = model.to_dag() if isinstance(model, DynamicManifold) else model
    return program.made(Folded.of(dag) if isinstance(dag, SparseDAG) else dag)


def key_of(target: Target) -> dict[str, Any]:
    """What the seconds of the reference depend on."""
    commands = {field: getattr(target, field) for field in ("cc", "copy", "run")}
    return {**(machine() if target.here else {}), **commands, "program": program.FORMAT}


def time_on_target(
    networks: Mapping[str, Any],
    target: Target,
    rounds: int = 25,
    on_compiled: Callable[[int], None] = lambda total: None,
) -> Measured:
    """Time networks (`Folded`, SparseDAG or DynamicManifold) on a target, one sample at a time.

    on_compiled  is called for every file that was compiled, with the number of all
    Raises TargetError where a command fails, and where the target computes other results.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be >= 1")
    programs = [made(model) for model in networks.values()]
    seconds, raw, references = [], [], []
    resolution = 0.0
    parts = _parts(programs)
    total = sum(len(part) + 2 for part in parts)
    for part in parts:
        timed = [*part, reference()]
        text = target.output(NAME, program.sources(timed, rounds), lambda: on_compiled(total))
        found = program.read(text, timed, rounds)
        raw += list(found.seconds)
        seconds += list(found.seconds / ((found.before + found.after) / 2))
        references += [*found.before.ravel(), *found.after.ravel()]
        resolution = max(resolution, found.resolution)
    key, now = key_of(target), statistics.median(references)
    low, high = np.quantile(references, [0.1, 0.9])
    spread = float(high / low)
    unit = _unit(key, now, float(low), spread)
    names = list(networks)
    return Measured(
        {name: unit.seconds * values for name, values in zip(names, seconds, strict=True)},
        dict(zip(names, raw, strict=True)),
        unit, now, spread, resolution, key,
    )  # fmt: skip


def _parts(programs: Sequence[Network]) -> list[list[Network]]:
    """Networks by programs of at most MOST_BYTES of tables."""
    parts: list[list[Network]] = []
    size = MOST_BYTES
    for one in programs:
        size += one.tables.n_bytes
        if size > MOST_BYTES:
            parts.append([])
            size = one.tables.n_bytes
        parts[-1].append(one)
    return parts


def _unit(key: dict[str, Any], now: float, low: float, spread: float) -> Quiet:
    """Seconds of the reference on the quiet target: the best that was kept, or these if they are less."""
    kept, _ = quiet.keep(key, Quiet.today(now if spread <= QUIET_SPREAD else low))
    return kept
