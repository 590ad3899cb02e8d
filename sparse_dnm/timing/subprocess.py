"""Seconds of networks in a fresh process: what is promised of a network must not depend on the one that trained it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Stopwatch
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.probes import Settings, time_steps

PROCESSES = 3  # a network lies elsewhere in memory in each


@dataclass(frozen=True)
class Network:
    """What a network does, as arrays: all that its seconds depend on."""

    indptr: Any  # int64 (n + 1,)
    indices: Any  # int32 (n_edges,)
    inputs: Any  # int32
    outputs: Any  # int32
    values: Any  # (n_edges,)
    kind: Any  # int8 (n,)
    slope: Any  # (n,)
    first_linear: Any  # neuron

    @staticmethod
    def of(model: DynamicManifold) -> Network:
        """The network of the model's present parameters."""
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
        neurons = engine.neurons(
            self.kind, self.slope, int(self.first_linear), np.arange(len(self.kind), dtype=np.int32)
        )
        structure = engine.given(Topology(self.indptr, self.indices, self.inputs, self.outputs), neurons)
        shape = (settings.batch, len(self.inputs))
        x = np.random.default_rng(settings.seed).standard_normal(shape).astype(self.slope.dtype)
        values, samples = (engine.array(torch.from_numpy(a).to(device)) for a in (self.values, x))
        return engine.stopwatch(structure, values, samples, settings.mode == "train")


def time_fresh(networks: Mapping[str, Network], settings: Settings, processes: int = PROCESSES) -> dict[str, Any]:
    """Seconds (processes, repeats) of a step of each network, by name: timed in turns, in new processes one after the
    other.

    Raises RuntimeError with what a process said where it fails.
    """
    found: dict[str, list[Any]] = {name: [] for name in networks}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in networks.items():
            np.savez(Path(folder) / f"{name}.npz", **asdict(network))
        about = json.dumps({"names": list(networks), "settings": {**asdict(settings), "only": None}})
        for _ in range(processes):
            command = [sys.executable, "-m", "sparse_dnm.timing.subprocess", folder]
            done = subprocess.run(command, input=about, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"timing in a fresh process failed: {done.stderr.strip()[-2000:]}")
            for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                found[name].append(seconds)
    return {name: np.array(seconds) for name, seconds in found.items()}


def main() -> None:
    """Time the networks of a folder, as standard input says, and print their seconds."""
    about = json.loads(sys.stdin.read())
    settings = Settings(**{name: value for name, value in about["settings"].items() if name != "only"})
    watches = []
    for name in about["names"]:
        with np.load(Path(sys.argv[1]) / f"{name}.npz") as arrays:
            watches.append(Network(**arrays).stopwatch(settings))
    times = time_steps(watches, settings)
    print(json.dumps({name: times.seconds[k].tolist() for k, name in enumerate(about["names"])}))


if __name__ == "__main__":
    main()
