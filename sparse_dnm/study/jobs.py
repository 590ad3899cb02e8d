"""Trainings of a comparison: one after the other in this process, or several at a time in processes of their own.

A child is run as ``python -c``, gets its training through standard input and says its steps on standard output.  When
this process closes that input, or ends, the child saves a checkpoint and ends.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.source import DataSource
from sparse_dnm.io import CheckpointError, doing, read_json
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.study.plan import has_clock
from sparse_dnm.timing.subprocess import Network
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.trainer import Interrupted, StopSignals, Trainer, TrainingError
from sparse_dnm.wording import speaking, words

COMMAND = "from sparse_dnm.study.jobs import main; main()"
ERRORS: dict[str, type[ValueError]] = {"TrainingError": TrainingError, "CheckpointError": CheckpointError}
OnStep = Callable[[str, int], None]


@dataclass(frozen=True)
class Job:
    """One training of a comparison, in the run directory ``out``."""

    name: str
    manifold: ManifoldConfig
    config: TrainConfig
    source: DataSource | None
    out: Path

    @property
    def started(self) -> bool:
        """There is a run in ``out``."""
        return (self.out / files.CONFIG).exists()

    @property
    def finished(self) -> bool:
        """Its summary is written."""
        return self.started and (self.out / files.SUMMARY).exists()

    def check(self) -> None:
        """Raise CheckpointError if ``out`` holds a run of other settings.

        The number of threads may differ where no clock is part of the loss: the bits are the same.
        """
        if not self.started:
            return
        manifold, config, *_ = files.read_config(self.out)
        if not has_clock(self.config):
            config = replace(config, threads=self.config.threads)
        if (manifold, config) != (self.manifold, self.config):
            raise CheckpointError(
                f"{self.out} holds a run of other settings than this comparison's: choose another --out, or remove it"
            )

    def trainer(self, data: Dataset) -> Trainer:
        """A new trainer, or that of the run in ``out``."""
        self.check()
        if self.started:
            return Trainer.resume(self.out, data, threads=self.config.threads)
        generator = torch.Generator().manual_seed(self.config.seed)
        model = DynamicManifold(self.manifold, generator, executor=self.config.executor, threads=self.config.threads)
        return Trainer(model, data, self.config, self.out, self.source)


def train_one(
    data: Dataset,
    job: Job,
    on_step: OnStep = lambda name, step: None,
    made: Callable[[DynamicManifold], Any] = Network.of,
) -> tuple[dict[str, Any], Any]:
    """Summary and network of the run in ``job.out``, trained, resumed, or read if finished; ``made`` makes the network
    of a model.

    Raises CheckpointError if that is another run, Interrupted after a signal, and what Trainer raises; each names it.
    """
    with naming(job.name):
        trainer = job.trainer(data)
        if trainer.finished:
            summary = read_json(job.out / files.SUMMARY)
        else:
            summary = trainer.run(lambda record: on_step(job.name, record["step"]))
        return summary, made(trainer.model)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Make errors and Interrupted name the run."""
    try:
        yield
    except Interrupted as stop:
        stop.args = (f"stopped in run {name}; the same command again continues from it",)
        raise
    except CheckpointError:  # names a file in the run directory
        raise
    except ValueError as error:
        error.args = (f"run {name}: {error}",)
        raise


class _Child:
    """A process that trains one job; what it says goes to ``said`` as (name, record), and at its end (name, None)."""

    def __init__(self, job: Job, data: Path, errors: Path, said: queue.Queue[tuple[str, Any]]):
        self.job, self._errors = job, errors
        self.last: dict[str, Any] = {}  # said
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors.open("wb"), start_new_session=True,
        )  # fmt: skip
        # in a session of its own: Ctrl-C in the terminal is for the process that compares
        with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
            assert self.process.stdin is not None
            pickle.dump((str(data), job, words()), self.process.stdin)
            self.process.stdin.flush()
        self._reader = threading.Thread(target=self._listen, args=(said,), daemon=True)
        self._reader.start()

    def _listen(self, said: queue.Queue[tuple[str, Any]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                said.put((self.job.name, json.loads(line)))
        self.process.wait()
        said.put((self.job.name, None))

    def stop(self) -> None:
        """Ask it to save a checkpoint and to end."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def end(self) -> None:
        """End it at once, if it still runs."""
        self.process.kill()
        self.process.wait()

    def failure(self) -> Exception | None:
        """Why it failed, if it did; the message names the run."""
        name, last = self.job.name, self.last
        if "done" in last or "stopped" in last:
            return None
        if last.get("error") in ("OSError", "MemoryError"):
            return OSError(f"run {name}: {last['message']}")
        if "error" in last:
            return ERRORS.get(last["error"], ValueError)(last["message"])
        said = self._errors.read_text(errors="replace").strip()
        return RuntimeError(f"run {name} ended with exit status {self.process.returncode}: {said[-2000:]}")


def train_in_parallel(
    data: Dataset, jobs: Sequence[Job], at_once: int, on_start: Callable[[str], None] = lambda name: None,
    on_step: OnStep = lambda name, step: None,
) -> None:  # fmt: skip
    """Train or resume the ``jobs`` that are not finished, ``at_once`` at a time, each in a process of its own.

    ``on_step`` is called with the name of a run and its steps so far, and -1 when it has ended.
    After an error in one run the others save a checkpoint and end, and the error, which names the run, is raised.  So
    it is after SIGINT or SIGTERM, with Interrupted; a second SIGINT ends all runs at once.
    """
    waiting = [job for job in jobs if not job.finished]
    running: dict[str, _Child] = {}
    said: queue.Queue[tuple[str, Any]] = queue.Queue()
    signals, failure, stopped, stopping = StopSignals(), None, [], False
    with tempfile.TemporaryDirectory() as folder, signals:
        shared = Path(folder) / "data.pickle"
        if waiting:
            with doing("write", shared):
                shared.write_bytes(pickle.dumps(data, protocol=5))
        try:
            while running or (waiting and not stopping):
                while waiting and len(running) < at_once and not stopping:
                    job = waiting.pop(0)
                    on_start(job.name)
                    running[job.name] = _Child(job, shared, Path(folder) / f"{job.name}.txt", said)
                stopping = stopping or signals.received is not None
                if stopping:
                    for child in running.values():
                        child.stop()
                try:
                    name, record = said.get(timeout=0.5)  # a signal is seen at the next turn
                except queue.Empty:
                    continue
                if record is not None:
                    running[name].last = record
                    on_step(name, record.get("step", 0))
                    continue
                child = running.pop(name)
                child.stop()
                on_step(name, -1)
                if "stopped" in child.last:
                    stopped.append(name)
                failure = failure or child.failure()
                stopping = stopping or failure is not None
        finally:  # nothing is left running, whatever happened here
            for child in running.values():
                child.end()
    if failure is not None:
        raise failure
    if signals.received is not None:
        stop = Interrupted(signals.received, 0, jobs[0].out.parent)
        names = f"in {', '.join(stopped)}" if stopped else "between runs"
        stop.args = (f"stopped {names}; the same command again continues from what is finished or saved",)
        raise stop


def main() -> None:
    """Train the job in standard input, and stop when standard input is closed; says what happens as lines of JSON."""
    shared, job, said = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    try:
        data = pickle.loads(Path(shared).read_bytes())
        with speaking(said):
            train_one(data, job, lambda name, step: _say({"step": step}))
        _say({"done": True})
    except KeyboardInterrupt as stop:
        _say({"stopped": str(stop)})
    except (ValueError, OSError, MemoryError) as error:
        traceback.print_exc()
        kinds = [kind.__name__ for kind in type(error).__mro__]
        known = next(kind for kind in kinds if kind in (*ERRORS, "ValueError", "OSError", "MemoryError"))
        _say({"error": known, "message": str(error)})


def _say(record: dict[str, Any]) -> None:
    """A line for the other process.  Where that is gone, the end of standard input stops the training."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), (json.dumps(record) + "\n").encode())


def _stop_at_end_of_input() -> None:
    """Wait until the other process closes the pipe or ends, then act as on Ctrl-C."""
    while os.read(sys.stdin.fileno(), 1):  # not the buffer: Python would wait for its lock when it ends
        pass
    _thread.interrupt_main(signal.SIGINT)
