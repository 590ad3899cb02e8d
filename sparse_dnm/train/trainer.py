"""Trainer: minimise objective + flow + speed + memory by Adam, with checkpoints from which a run resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.implied import implied
from sparse_dnm.data.source import DataSource, describe
from sparse_dnm.engine import device as backend
from sparse_dnm.io import UNFIT, CheckpointError, remove, sync, write_json
from sparse_dnm.loss.time import MeasuredTime
from sparse_dnm.machine import versions
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.growth import is_due
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.target import TargetError
from sparse_dnm.timing.pace import NoisyMachine
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train import example, packing, snapshots
from sparse_dnm.train.adam import Adam
from sparse_dnm.train.ahead import Ahead
from sparse_dnm.train.batches import Batch, Batches
from sparse_dnm.train.checkpoint import Checkpoint
from sparse_dnm.train.checks import check_data, check_fit, check_known
from sparse_dnm.train.costs import Terms, make_costs
from sparse_dnm.train.early_stopping import EarlyStopping
from sparse_dnm.train.goals import constraint_of
from sparse_dnm.train.lock import alone
from sparse_dnm.train.metrics import Metrics, evaluate, further_figures, one_torch_thread
from sparse_dnm.train.recovery import Recovery
from sparse_dnm.train.schedules import fine_tuning, kappa, learning_rate, trimmed_after
from sparse_dnm.train.search import search
from sparse_dnm.train.signals import Interrupted, StopSignals
from sparse_dnm.train.snapshots import Snapshot
from sparse_dnm.train.state import Record, Run, TrainingError
from sparse_dnm.train.step import step_for
from sparse_dnm.train.validation import hold_out
from sparse_dnm.train.weighting import weigh

__all__ = ["Interrupted", "Record", "StopSignals", "Trainer", "TrainingError", "evaluate", "one_torch_thread"]
SAVED_COSTS = ("time", "memory_reference", "edges", "guard")  # entries of a checkpoint for measured terms and recovery


class Trainer:
    """Trains ``model`` on ``data`` as ``config`` says, and keeps a run directory in ``out`` if one is given.

    The model is moved to the device of ``config``; batches are made on the CPU, the same for every device.
    ``source`` lets the command line reload the data of that run.  ``notes`` are for the reader, a line each.
    Raises ValueError where model and data do not fit.
    """

    def __init__(
        self,
        model: DynamicManifold,
        data: Dataset,
        config: TrainConfig,
        out: Path | None = None,
        source: DataSource | None = None,
    ) -> None:
        check_fit(model, data, config)
        check_data(data, model)
        self.description = describe(data)
        data, validation = weigh(*hold_out(data, config), config)
        self._device = backend.device_of(config.device)
        model.to(self._device)
        self.model, self.data, self.config, self.source = model, data, config, source
        self._generator = torch.Generator().manual_seed(config.seed)
        self._optimizer = Adam(list(model.parameters()), config.lr)
        model.follow(self._optimizer)
        self._batches = Batches(data, config, self._generator, self._device)
        self._order, self._draws = self._batches.order, self._batches.draws
        config = dataclasses.replace(config, batch_size=config.batch_size or len(data.x_train))
        making = step_for(model, data.task, config, self._optimizer, per_step=data.per_step)
        parts = self._generator, self._optimizer, making, self._save, self._fine_tune
        self._run = Run(model, data, config, out and Path(out), *parts)
        self.notes = self._run.notes
        self._constraint, self._recovery = constraint_of(self._run, validation), Recovery(self._run)
        self._early = EarlyStopping(self._run, validation if config.early_stopping else None, self._constraint)
        self._metrics = Metrics(self._run)
        together = self._constraint, self._recovery, self._early
        self._ahead = Ahead(self._run, self._draws, *together, self._metrics.times)
        self._saved_costs: Record = {}  # SAVED_COSTS of a checkpoint
        self._signals = StopSignals()
        self._on_snapshot: Callable[[Snapshot], None] | None = None

    @property
    def step(self) -> int:
        """Updates made."""
        return self._run.step

    @property
    def model_step(self) -> int:
        """The update that `model` is of: an earlier one than `step` where it holds the best of an early stopping."""
        return self._early.step

    @property
    def out(self) -> Path | None:
        """The run directory."""
        return self._run.out

    @out.setter
    def out(self, out: Path | None) -> None:
        self._run.out = out

    @property
    def finished(self) -> bool:
        """Nothing is left to do: all steps are made, or it was stopped early, and the summary is written."""
        return self._ended and self.out is not None and (self.out / files.SUMMARY).exists()

    @property
    def _ended(self) -> bool:
        return self.step >= self.config.steps or self._early.stopped_at is not None

    def optimizer_state(self) -> dict[str, Tensor]:
        """The moments of the optimiser, and its numbers of updates, for `continue_from`."""
        self._run.settle()
        return {name: tensor.clone() for name, tensor in packing.pack_optimizer(self.model, self._optimizer).items()}

    def continue_from(self, state: dict[str, Tensor]) -> None:
        """Begin with the moments that another training of this model has ended with; steps are counted from 0."""
        packing.unpack_optimizer(Checkpoint(state, {}), self.model, self._optimizer)
        self._optimizer.restored()

    # -- a run -----------------------------------------------------------------------------------------------

    def run(
        self,
        on_log: Callable[[Record], None] = lambda record: None,
        on_snapshot: Callable[[Snapshot], None] | None = None,
    ) -> Record:
        """Train up to ``config.steps`` and return the summary.

        ``on_log`` gets every line of metrics.jsonl, ``on_snapshot`` the structure at every snapshot: of the last
        forward, and at the end that of the trained network.
        torch runs on one thread meanwhile.  With a run directory, SIGINT and SIGTERM raise Interrupted
        after the current update, its checkpoint saved.  Raises TrainingError where training cannot go on.
        """
        self._metrics.begin()
        self._on_snapshot = on_snapshot
        signals = self._signals = StopSignals()
        kernel_threads = backend.use_threads(self.model.executor.threads)  # once: in every kernel it would cost
        with one_torch_thread(), kernel_threads, contextlib.ExitStack() as stack:
            stack.callback(self._ahead.end)
            stack.callback(self._run.settle)
            if not self._ended:
                self._early.go_on()
            self._prepare()  # a bad profile or clock, or a signal, ends it before a run directory exists
            if self.out:
                stack.enter_context(signals)
                self._run.check_connected()
                stack.enter_context(alone(self.out, self._run.saved))
                self._begin(self.out)
            self._choose_step()
            if self.step == 0:
                first = self._first_line()
                self._snapshot(self._run.making.evaluation)
                on_log(first)
                self._choose_step()  # hooks may have been added, or parameters frozen
            while not self._ended:
                if signals.received is not None and self.out and not self._draws:
                    self._run.seen = self._run.n_edges  # a run that is not stopped makes no test here
                    self._test()
                    self._save()
                    raise Interrupted(signals.received, self.step, self.out)
                line = self._advance_or_say_why(signals.received is not None)
                if line is not None:
                    on_log(line)
                if line is not None or (on_snapshot and self.step % self.config.steps_per_snapshot == 0):
                    self._choose_step()
            return self._finish()

    def _prepare(self) -> None:
        """Make the terms for speed and memory, and calibrate what is measured, before the first step."""
        run = self._run
        if run.costs is not None:
            return
        if self.config.speed == "time":
            run.check_connected()
        time_steps = self.data.x_train.shape[1] if self.model.recurrent else 0
        costs, notes = make_costs(run.config, self.model, self._saved_costs, time_steps)
        self.notes.extend(notes)
        if isinstance(costs.speed, MeasuredTime) and self.config.time_mode == "train":
            self.model.executor = costs.speed.executor  # what is timed is what trains
        run.costs = costs
        try:
            self._constraint.start(self._saved_costs)
        except TrainingError:
            run.costs = None
            raise

    def _begin(self, out: Path) -> None:
        """Begin in the run directory, or continue in it: what was written after the checkpoint is removed."""
        if self._run.saved is None:
            self._save()
        about = self.source, self.description, self._device, self.data.preprocessing or implied(self.data)
        files.write_config(out, self.model.config, self.config, *about)
        if self.model.recurrent:
            example.keep(out, self.data)
        files.cut_metrics(out / files.METRICS, self.step or -1)
        snapshots.cut(out, self.step or -1)
        remove(out / files.SUMMARY)

    def _choose_step(self) -> None:
        """Choose the kind of step that fits the model as it is now; keep the previous one if it still fits."""
        run = self._run
        check_known(self.model, self._optimizer)
        made = step_for(self.model, self.data.task, run.config, self._optimizer, run.costs, self.data.per_step)
        if type(made) is not type(run.making) or run.making.costs is not made.costs:
            run.settle()
            run.making = made
        self._ahead.choose()

    def _advance_or_say_why(self, stopping: bool) -> Record | None:
        """Updates ahead, or else one; a ValueError is due to the last update, and becomes a TrainingError."""
        try:
            return None if self._ahead.advance(stopping, self._keeps_snapshots) else self._advance()
        except TrainingError:
            raise
        except NoisyMachine as error:
            raise TrainingError(f"{error}. {self._run.kept()}") from error
        except TargetError as error:
            raise self._run.lost_target(error) from error
        except ValueError as error:
            raise self._run.diverged(str(error)) from error

    def _advance(self) -> Record | None:
        """One update; where they are due, the validation and test figures, a checkpoint, and the line returned."""
        config, run, constraint, number = self.config, self._run, self._constraint, self.step + 1
        saving = number == config.steps or number % config.checkpoint_every == 0
        logging = saving or number % config.log_every == 0
        self._ahead.before_step()
        self.model.kappa = kappa(config, self.step)
        start = time.perf_counter()
        batch = self._batches.next()
        outputs, terms = self._loss(batch, logging)
        run.making.backward()
        constraint.after_backward()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        run.making.update(self._optimizer, constraint.frozen)
        constraint.after_step(number)
        if is_due(config.scan_every, number, trimmed_after(config)):
            search(run, batch, self._generator)
        self._metrics.times.append(time.perf_counter() - start)
        run.step = number
        if number % config.steps_per_snapshot == 0 and number < config.steps:  # the last comes when all is done
            self._snapshot(run.making.evaluation)
        if self._early.look():
            saving = logging = True
        if not logging:
            return None
        run.settle()
        run.check_parameters()
        figures = self._early.figures | (self._test() if saving else {})
        line = self._metrics.line(outputs, batch, terms, figures)
        if saving:
            self._save()
        return line

    def _loss(self, batch: Batch, report: bool) -> tuple[Tensor, Terms]:
        """Outputs and loss of a batch; a term of coefficient 0 for a ``report`` at least."""
        run = self._run
        outputs = run.with_room(lambda: run.making.forward(batch.x, batch.lengths))
        if self._recovery.reconnect(self._constraint.frozen):
            outputs = run.with_room(lambda: run.making.forward(batch.x, batch.lengths))
        run.check_connected()
        run.edges, run.fused, run.seen = self.model.n_edges, False, None
        terms = run.making.loss(batch.y, report, batch.weights)
        if not math.isfinite(terms.total):
            raise run.diverged(f"the loss became {terms.total} in step {self.step + 1}")
        run.last_loss = terms.total
        return outputs, terms

    # -- figures and files ----------------------------------------------------------------------------------------

    def _first_line(self) -> Record:
        """The untrained model, on the first rows of the training set."""
        self._constraint.pace()
        with torch.no_grad():
            batch = self._batches.first()
            outputs, terms = self._loss(batch, True)
        return self._metrics.line(outputs, batch, terms, self._test())

    def _test(self) -> dict[str, float]:
        """The test figure of a model that is fit to be saved: connected, and finite."""
        run = self._run
        run.settle()
        try:
            test = run.with_room(lambda: evaluate(self.model, self.data))
            if self._recovery.reconnect(self._constraint.frozen):
                test = run.with_room(lambda: evaluate(self.model, self.data))
        except TrainingError as error:
            raise run.diverged(str(error)) from None
        run.check_connected()
        return test

    @property
    def _keeps_snapshots(self) -> bool:
        return self.out is not None or self._on_snapshot is not None

    def _snapshot(self, found: Evaluation) -> None:
        """Write a snapshot of a structure: of the last forward, or at the end of the trained network."""
        if not self._keeps_snapshots:
            return
        snapshot = Snapshot(self.step, found.topology, found.host_values.strengths.astype(np.float32))
        if self.out is not None:
            snapshots.save(self.out, snapshot)
        if self._on_snapshot is not None:
            self._run.settle()
            self._on_snapshot(snapshot)

    def _finish(self) -> Record:
        """The summary of the trained model, written to the run directory."""
        self.model.kappa = 0.0
        self._early.hand_over()
        self.notes += self._recovery.describe()
        try:
            measured = self._metrics.measured_summary(self._constraint.finish())
        except TargetError as error:
            raise self._run.lost_target(error) from error
        test = self._test() | further_figures(self.model, self.data)
        self._snapshot(self.model.find())
        summary = self._metrics.summary(test, self._early.summary() | measured)
        if self.out:
            write_json(self.out / files.SUMMARY, summary)
        return summary

    def _fine_tune(self, model: DynamicManifold) -> None:
        """Train ``model``, a copy of this one at an earlier step, as after a trim: its structure stays."""

        def check(record: Record) -> None:
            if self._signals.received is not None and self.out is not None:
                raise Interrupted(self._signals.received, self.step, self.out)

        Trainer(model, self.data, fine_tuning(self.config)).run(check)

    # -- checkpoints -----------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write the checkpoint: all that the next update depends on."""
        run = self._run
        if self.out is None:
            return
        run.settle()
        run.check_parameters()
        tensors = self._early.pack(packing.pack(self.model, self._optimizer, self._order, self._generator))
        header = {
            "step": self.step,
            **self._metrics.state(),
            "manifold": dataclasses.asdict(self.model.config),
            "train": dataclasses.asdict(self.config),
            "data": self.description,
            "versions": versions(),
            "early_stopping": self._early.state(),
            **(self._saved_costs if run.costs is None else run.costs.state()),
            **({} if run.costs is None else {"edges": self._constraint.state(), "guard": self._recovery.state()}),
        }
        sync(self.out / files.METRICS)  # a checkpoint never has lines that are lost
        files.save(self.out / files.CHECKPOINT, Checkpoint(tensors, header))
        run.saved = self.step

    @classmethod
    def resume(
        cls,
        out: Path,
        data: Dataset,
        steps: int | None = None,
        executor: str | None = None,
        threads: int | None = None,
        snapshot_every: int | None = None,
        device: str | None = None,
    ) -> Trainer:
        """The trainer of run ``out`` as its checkpoint left it; ``steps`` is a new total, if given.

        The schedule depends on the step and the total alone: a new total stretches a cosine from here on.  With early
        stopping the model has the best parameters so far, and `run` goes on from the latest; where the run had been
        stopped, only if the new total is larger.
        Raises CheckpointError naming the file and what does not fit.
        """
        out = Path(out)
        changes = dict(steps=steps, executor=executor, threads=threads, snapshot_every=snapshot_every, device=device)
        manifold, config, source, saved, notes = files.load_run(out, data, changes)
        model = DynamicManifold(manifold, executor=config.executor, threads=config.threads)
        try:
            model.load_state_dict(saved.group("model"))
            trainer = cls(model, data, config, out, source)
            trainer.notes += notes
            trainer._restore(saved)
        except UNFIT as error:
            raise CheckpointError(f"{out / files.CHECKPOINT} does not fit its run: {error}") from None
        if config.steps < trainer.step:
            raise ValueError(f"steps={config.steps} lies before step {trainer.step}, which {out} has reached")
        return trainer

    def _restore(self, saved: Checkpoint) -> None:
        """Restore the rest of a checkpoint whose model has been loaded."""
        run, header = self._run, saved.header
        self._saved_costs = found = {name: header.get(name) for name in SAVED_COSTS}
        self._recovery.restore(found["guard"])
        packing.unpack(saved, self.model, self._optimizer, self._order, self._generator)
        self._optimizer.restored()
        run.step = run.saved = header["step"]
        self._metrics.restore(header)
        self._early.restore(saved)
