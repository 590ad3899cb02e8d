"""Seconds of networks in new processes: a promised time must not depend on the process that trained the network.

They are run as ``python -c``: a pool of multiprocessing would run the user's script again in every new process, if it
has no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import json
import pickle
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
from sparse_dnm.timing.probes import Settings, time_steps

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


def time_in_subprocess(
    networks: Mapping[str, Network], settings: Settings, processes: int = PROCESSES
) -> dict[str, Any]:
    """Seconds (processes, repeats) of a step of each network, by name: timed in turns, in new processes one after the
    other.

    Raises RuntimeError with the output of a process that fails.
    """
    request, found = pickle.dumps((list(networks.values()), settings)), []
    for _ in range(processes):
        # in a session of its own: Ctrl-C in the terminal is for the process that trains
        done = subprocess.run(
            [sys.executable, "-c", COMMAND], input=request, capture_output=True, check=False, start_new_session=True
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"timing in a new process failed, exit status {done.returncode}: {said[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = np.array(found)
    return {name: seconds[:, k] for k, name in enumerate(networks)}


def main() -> None:
    """Time the networks in standard input, and print their seconds."""
    networks, settings = pickle.load(sys.stdin.buffer)
    settings = replace(settings)  # runs the checks, which unpickling skips
    times = time_steps([network.stopwatch(settings) for network in networks], settings)
    print(json.dumps(times.seconds.tolist()))
