"""Seconds of networks in new processes: a promised time must not depend on the process that trained the network.

They are run as ``python -c``: a pool of multiprocessing would run the user's script again in every new process, if it
has no ``if __name__ == "__main__"``.  Importing torch and Numba takes a process much longer than the timing.  So where
kernels run on one thread of the CPU, which a fork does not disturb, one process imports them and a fork of it times the
networks, each time a new one, with its memory in another place.  Threads do not survive a fork and Windows has none:
there every timing starts Python anew.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
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
from sparse_dnm.timing.probes import Settings, time_steps, watch_of
from sparse_dnm.timing.quiet import Quiet

PROCESSES = 3  # in each, the network has another place in memory
COMMAND = "from sparse_dnm.timing.subprocess import main; main()"
MOST_SHIFT = 1 << 26  # bytes by which the memory of a fork is moved, at most
CALM = 1.3  # times the seconds of the quiet reference, up to which a process counts as timed on a quiet machine
PATIENCE, PAUSE = 40, 0.5  # forks, and seconds before each, that wait in all for the machine to become so


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
    recurrent: bool

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
            model.recurrent,
        )

    def stopwatch(self, settings: Settings) -> Stopwatch:
        """Of a step of it: of sequences, where it is recurrent.  Raises ValueError unless the settings say of which."""
        if self.recurrent != (settings.unrolling is not None):
            kind = "recurrent" if self.recurrent else "not recurrent"
            raise ValueError(
                f"unrolling={settings.unrolling} does not fit a network that is {kind}: sequences of a recurrent one "
                "are timed, and single samples of another"
            )
        device = backend.device_of(settings.device)
        engine = engine_for(Executor(settings.executor, settings.threads), device)
        neurons = engine.neurons(self.kind, self.slope, self.first_linear, np.arange(len(self.kind), dtype=np.int32))
        structure = engine.given(Topology(self.indptr, self.indices, self.inputs, self.outputs), neurons)
        unrolling = settings.unrolling
        sizes = (len(self.inputs),) if unrolling is None else (unrolling.steps, len(self.inputs) - unrolling.n_memory)
        shape = (settings.batch, *sizes)
        x = np.random.default_rng(settings.seed).standard_normal(shape).astype(self.slope.dtype)
        values, samples = (engine.array(torch.from_numpy(a).to(device)) for a in (self.values, x))
        return watch_of(engine, structure, values, samples, settings.mode == "train", unrolling)


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
    with Processes() as new:
        return new.time(networks, settings, processes)


class Processes:
    """New processes to time networks in; as a context, it keeps the one that has imported what they need."""

    def __init__(self) -> None:
        self._parent: subprocess.Popen[bytes] | None = None
        self._patience = PATIENCE
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__); a pipe would fill up

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._said.close()

    def time(self, networks: Mapping[str, Network], settings: Settings, processes: int = PROCESSES) -> Fresh:
        """As `time_fresh`.

        Beside other programs a network does not slow down as the reference does: their ratio differs by a tenth and
        more.  So where a fork is cheap, more of them are made while the machine is busy, and the calmest count.
        """
        request, again = pickle.dumps((list(networks.values()), replace(settings, unit=None))), forks(settings)
        found = [self._ask(request, again) for _ in range(processes)]
        while again and self._patience > 0 and _busy(found, settings.unit, processes):
            self._patience -= 1
            time.sleep(PAUSE)
            found.append(self._ask(request, again))
        unit = settings.unit or _kept(found)
        found = sorted(found, key=lambda one: float(one["reference"]))[:processes]
        reference = statistics.median(one["reference"] for one in found)
        unit = unit or Quiet(reference)
        ratios, raw = (np.array([one[name] for one in found]) for name in ("ratios", "raw"))
        return Fresh(
            {name: unit.seconds * ratios[:, k] for k, name in enumerate(networks)},
            {name: raw[:, k] for k, name in enumerate(networks)},
            unit,
            reference / unit.seconds,
        )

    def _ask(self, request: bytes, again: bool) -> dict[str, Any]:
        """What a new process answers; ``again``: it is a fork of one that stays."""
        if self._parent is None:
            # in a session of its own: Ctrl-C in the terminal is for the process that trains
            self._parent = subprocess.Popen(
                [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
                start_new_session=True,
            )  # fmt: skip
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer is empty
            self._parent.stdin.write(request)
            self._parent.stdin.flush()
        answer = self._parent.stdout.readline()
        status = None if again and answer.strip() else self._end()
        if not answer.strip() or status:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip()
            raise RuntimeError(f"timing in a new process failed, exit status {status}: {said[-2000:]}")
        found: dict[str, Any] = json.loads(answer)
        if "noisy" in found:
            raise NoisyMachine(found["noisy"])
        return found

    def _end(self) -> int:
        """End the process that stays, if there is one; its exit status."""
        if self._parent is None:
            return 0
        parent, self._parent = self._parent, None
        parent.communicate()
        return parent.returncode


def _kept(found: list[dict[str, Any]]) -> Quiet | None:
    """The quiet reference that is kept on disk, as the last process saw it."""
    return Quiet(found[-1]["kept"], found[-1]["date"]) if found[-1]["kept"] else None


def _busy(found: list[dict[str, Any]], unit: Quiet | None, processes: int) -> bool:
    """Fewer than ``processes`` of these ran at about the pace of the quiet machine, or of the fastest of them."""
    references = sorted(float(one["reference"]) for one in found)
    quiet = unit or _kept(found)
    return references[processes - 1] > CALM * (quiet.seconds if quiet else references[0])


def forks(settings: Settings) -> bool:
    """Whether a process can be forked to time this way."""
    return hasattr(os, "fork") and settings.threads == 1 and settings.device == "cpu"


def main() -> None:
    """Answer every request in standard input, by a fork where that is possible; ends with the first that fails."""
    while True:
        try:
            networks, settings = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if not forks(settings):
            answer(networks, settings)
            continue
        child = os.fork()
        if child == 0:
            os._exit(_forked(networks, settings))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            sys.exit(status)


def _forked(networks: list[Network], settings: Settings) -> int:
    """Answer in a fork, with arrays in another place than in the forks before; the exit status."""
    try:
        place = random.SystemRandom()
        held = mmap.mmap(-1, place.randrange(1, MOST_SHIFT)), bytearray(place.randrange(1, mmap.PAGESIZE))
        answer([pickle.loads(pickle.dumps(network)) for network in networks], settings)
        del held
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def answer(networks: list[Network], settings: Settings) -> None:
    """Time the networks; print what was found, as a line of JSON."""
    settings = replace(settings)  # runs the checks, which unpickling skips
    engine = engine_for(Executor(settings.executor, settings.threads), backend.device_of(settings.device))
    pace = pace_of(engine, settings, networks[0].slope.dtype, Quiet(1.0))
    watches = [network.stopwatch(settings) for network in networks]
    try:
        times = time_steps(watches, settings, pace=pace)
    except NoisyMachine as error:
        print(json.dumps({"noisy": str(error)}), flush=True)
        return
    kept = pace.known()
    found = {
        "ratios": times.seconds.tolist(),
        "raw": times.raw.tolist(),
        "reference": times.conditions.reference,
        "kept": kept and kept.seconds,
        "date": kept and kept.date,
    }
    print(json.dumps(found), flush=True)
