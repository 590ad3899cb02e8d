"""Seconds of networks, each run by the executor that is fastest for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.subprocess import Network, time_in_subprocess


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
