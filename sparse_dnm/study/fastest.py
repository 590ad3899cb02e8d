"""Seconds of networks, each run by the executor that is fastest for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.lowering import Folded
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.target import Target, time_on_target
from sparse_dnm.timing.cost_model import ON_TARGET
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.subprocess import Network, time_in_subprocess

PROGRAMS, REPEATS = 3, 51  # that time networks on a target, and how often each


@dataclass(frozen=True)
class RunBy(Network):
    """A network that one executor runs, whatever the settings say."""

    executor: str

    @staticmethod
    def by(network: Network, executor: str) -> RunBy:
        """``network``, run by ``executor``."""
        return RunBy(**{f.name: getattr(network, f.name) for f in fields(network)}, executor=executor)

    def stopwatch(self, settings: Settings) -> Stopwatch:
        """Of a step of it."""
        return super().stopwatch(replace(settings, executor=self.executor))


@dataclass(frozen=True)
class Fastest:
    """The executor that runs a network fastest, and the median seconds of a step in each process."""

    executor: str
    seconds: NDArray[np.float64]  # (processes,)


def exported(model: DynamicManifold) -> Folded:
    """What is exported of a model."""
    return Folded.of(model.to_dag())


def time_exported(networks: Mapping[str, Folded], target: Target) -> dict[str, Fastest]:
    """Time every network as a program in C, all in turns, in PROGRAMS programs that run on the target."""
    found = [time_on_target(networks, target, REPEATS) for _ in range(PROGRAMS)]
    seconds = {name: np.array([np.median(one.seconds[name] / one.unit.seconds) for one in found]) for name in networks}
    return {name: Fastest(ON_TARGET, found[-1].unit.seconds * ratios) for name, ratios in seconds.items()}


def time_fastest(networks: Mapping[str, Network], settings: Settings, executors: Sequence[str]) -> dict[str, Fastest]:
    """Time every network with every executor, all in turns, in subprocesses; the fastest executor of each counts."""
    cases = {(name, one): RunBy.by(network, one) for name, network in networks.items() for one in executors}
    timed = time_in_subprocess({f"{one}/{name}": case for (name, one), case in cases.items()}, settings)
    found = {}
    for name in networks:
        medians = {one: np.median(timed[f"{one}/{name}"], axis=1) for one in executors}
        best = min(executors, key=lambda one: float(np.median(medians[one])))
        found[name] = Fastest(best, medians[best])
    return found
