"""Seconds of networks in new processes: a promised time must not depend on the process that trained the network.

They are run as ``python -c``: a pool of multiprocessing would run the user's script again in every new process, if it
has no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import json
import pickle
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.pace import NoisyMachine, pace_of
from sparse_dnm.timing.probes import Settings, time_steps
from sparse_dnm.timing.quiet import Quiet

PROCESSES = 3  # in each, the network has another place in memory
COMMAND = "from sparse_dnm.timing.subprocess import main; main()"


@dataclass(frozen=True)
class Network:
    """A network as arrays: all that its seconds depend on."""

    indptr: Any  # int64 (n + 1,)
    indices: Any  # int32 (n_edges,)
    inputs: Any  # int32
    outputs: Any  # int32
    values: Any  # (n_edges,)
    kind: Any  # int8 (n,)
    slope: Any  # (n,)
    first_linear: int  # neuron

    @staticmethod
    def of(model: DynamicManifold) -> Network:
        """The network of a model's present parameters."""
        evaluation = model.find()
        topology, neurons = evaluation.topology, evaluation.host.neurons
        return Network(
            *(topology.indptr.copy(), topology.indices.copy(), topology.inputs, topology.outputs),
            evaluation.host_values.strengths.copy(),
            neurons.kind,
            neurons.slope,
            neurons.first_linear,
        )

    def stopwatch(self, settings: Settings) -> Stopwatch:
        """Of a step of it."""
        device = backend.device_of(settings.device)
        engine = engine_for(Executor(settings.executor, settings.threads), device)
        neurons = engine.neurons(self.kind, self.slope, self.first_linear, np.arange(len(self.kind), dtype=np.int32))
        structure = engine.given(Topology(self.indptr, self.indices, self.inputs, self.outputs), neurons)
        shape = (settings.batch, len(self.inputs))
        x = np.random.default_rng(settings.seed).standard_normal(shape).astype(self.slope.dtype)
        values, samples = (engine.array(torch.from_numpy(a).to(device)) for a in (self.values, x))
        return engine.stopwatch(structure, values, samples, settings.mode == "train")


@dataclass(frozen=True)
class Fresh:
    """Seconds (processes, repeats) of a step of each network, by name, of the quiet machine and as the clock showed
    them; ``unit``: the reference that the former are relative to; ``factor``: how many times its seconds the machine
    needed."""

    seconds: dict[str, Any]
    raw: dict[str, Any]
    unit: Quiet
    factor: float


def time_in_subprocess(
    networks: Mapping[str, Network], settings: Settings, processes: int = PROCESSES
) -> dict[str, Any]:
    """Seconds (processes, repeats) of a step of each network, by name: those of `time_fresh`."""
    return time_fresh(networks, settings, processes).seconds


def time_fresh(networks: Mapping[str, Network], settings: Settings, processes: int = PROCESSES) -> Fresh:
    """Time a step of each network, in turns with a reference, in new processes one after the other.

    Raises RuntimeError with the output of a process that fails, and NoisyMachine where the pace changes too often.
    """
    request = pickle.dumps((list(networks.values()), replace(settings, unit=None)))
    found: list[dict[str, Any]] = []
    for _ in range(processes):
        # in a session of its own: Ctrl-C in the terminal is for the process that trains
        done = subprocess.run(
            [sys.executable, "-c", COMMAND], input=request, capture_output=True, check=False, start_new_session=True
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"timing in a new process failed, exit status {done.returncode}: {said[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
        if "noisy" in found[-1]:
            raise NoisyMachine(found[-1]["noisy"])
    reference = statistics.median(one["reference"] for one in found)
    kept = Quiet(found[-1]["kept"], found[-1]["date"]) if found[-1]["kept"] else Quiet(reference)
    unit = settings.unit or kept
    ratios, raw = (np.array([one[name] for one in found]) for name in ("ratios", "raw"))
    return Fresh(
        {name: unit.seconds * ratios[:, k] for k, name in enumerate(networks)},
        {name: raw[:, k] for k, name in enumerate(networks)},
        unit,
        reference / unit.seconds,
    )


def main() -> None:
    """Time the networks in standard input; print what was found, as JSON."""
    networks, settings = pickle.load(sys.stdin.buffer)
    settings = replace(settings)  # runs the checks, which unpickling skips
    engine = engine_for(Executor(settings.executor, settings.threads), backend.device_of(settings.device))
    pace = pace_of(engine, settings, networks[0].slope.dtype, Quiet(1.0))
    watches = [network.stopwatch(settings) for network in networks]
    try:
        times = time_steps(watches, settings, pace=pace)
    except NoisyMachine as error:
        print(json.dumps({"noisy": str(error)}))
        return
    kept = pace.known()
    print(
        json.dumps(
            {
                "ratios": times.seconds.tolist(),
                "raw": times.raw.tolist(),
                "reference": times.conditions.reference,
                "kept": kept and kept.seconds,
                "date": kept and kept.date,
            }
        )
    )
