"""Trainer: minimise objective + flow + speed + memory by Adam, with checkpoints to go on from."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_dnm.config import OMEGA_IN_CLOSENESS, TrainConfig
from sparse_dnm.data.datasets import BatchOrder, Dataset
from sparse_dnm.data.source import DataSource, describe
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.io import CheckpointError, append_line, doing, write_json
from sparse_dnm.loss.controller import Controller
from sparse_dnm.loss.memory import MeasuredMemory
from sparse_dnm.loss.proxy import SparsityProxy
from sparse_dnm.loss.time import MeasuredTime, TimeSettings
from sparse_dnm.machine import machine, versions
from sparse_dnm.model.growth import grow_edges, is_due, reinitialize_rows
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.calibration import read_profile
from sparse_dnm.timing.subprocess import Network, time_fresh
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train import snapshots
from sparse_dnm.train.adam import Adam
from sparse_dnm.train.checkpoint import Checkpoint
from sparse_dnm.train.schedules import Variation, kappa, learning_rate, trimmed_after
from sparse_dnm.train.snapshots import Structure
from sparse_dnm.train.step import AutogradStep, Costs, KernelStep, Terms, check_data, step_for
from sparse_dnm.train.trim import Frozen, OverBudget, keep_edges, trim

CLOCK = "perf_counter"  # wall seconds: of a step, and of the training in all
WITHIN = 0.985  # of the budget, that a network is trimmed to: fresh processes differ by some percent
ENOUGH = 25  # timed steps before the model of the time is doubted
SALIENT = 8  # batches that saliency is summed over
APPROACH = 0.7  # share of the steps before the trim in which the time comes down to the budget
RECOVERIES = 5  # times that a network is connected again
DOUBLINGS = 8  # of the number of edges that are tried for it
REVIVED = 20  # edges per output that it then has at least
QUIET = 200  # steps without terms for speed and memory after that
STEER = 10  # steps between looks at the number of edges
FAR = 1.5  # times the number of edges that was asked for, from which on a cut is a jump
NEAR = 0.02  # of the number of edges that was asked for, that it may differ
ATTEMPTS = 4  # times that fresh processes are asked
Record = dict[str, Any]


class TrainingError(ValueError):
    """Training cannot go on; the message says why, what is kept, and what to try."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM stopped the training after a whole step, and its checkpoint is saved."""

    def __init__(self, signum: int, step: int, out: Path) -> None:
        command = f"sparse-dnm train --resume {shlex.quote(str(out))}"
        super().__init__(f"stopped at step {step}; continue with: {command}")
        self.signum = signum


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch's own operations on one thread.

    The engine's kernels own the cores, and the order in which torch adds up a long tensor, hence the last bits,
    would otherwise depend on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class StopSignals:
    """Inside ``with``, SIGINT and SIGTERM only set ``received``; a second SIGINT aborts at once.

    Python delivers signals to the main thread: in any other one nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if signum == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum


def figure(data: Dataset, outputs: Tensor, y: Tensor) -> float:
    """Accuracy of ``outputs``, or for a regression their mean squared error in the data's own units."""
    if data.task == "classification":
        return int((outputs.argmax(1) == y).sum()) / len(y)
    return data.mse(outputs, y)


def evaluate(model: DynamicManifold, data: Dataset, chunk: int = 64) -> dict[str, float]:
    """``test_accuracy`` or ``test_mse`` over the whole test set, at most ``chunk`` samples at a time.

    Raises TrainingError where an output is not finite.
    """
    with torch.no_grad(), one_torch_thread():
        parts = data.x_test.tensor_split(math.ceil(len(data.x_test) / chunk))
        outputs = torch.cat([model(x.to(model.alpha.device)).cpu() for x in parts])
        if not bool(torch.isfinite(outputs).all()):
            raise TrainingError("the outputs of the model on the test set hold NaN or infinity")
        name = "test_accuracy" if data.task == "classification" else "test_mse"
        return {name: figure(data, outputs, data.y_test)}


class Trainer:
    """Trains ``model`` on ``data`` as ``config`` says, and keeps a run directory in ``out`` if one is given.

    The model is moved to the device of ``config``; batches are made on the CPU, the same for every device.
    ``source`` lets the command line reload the data of that run.
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
        for name in ("n_inputs", "n_outputs"):
            have, need = getattr(model.config, name), getattr(data, name)
            if have != need:
                raise ValueError(f"the model has {name}={have} but data {data.name} need {name}={need}")
        self._device = backend.device_of(config.device)
        model.to(self._device)
        self.model, self.data, self.config, self.source = model, data, config, source
        self.out = None if out is None else Path(out)
        self.step = 0  # updates made
        self._generator = torch.Generator().manual_seed(config.seed)
        self._order = BatchOrder(len(data.x_train), config.batch_size, self._generator)
        self._optimizer = Adam(list(model.parameters()), config.lr)
        model.follow(self._optimizer)
        self._vary = Variation(config, data, self._generator)
        if config.target_edges > model.config.possible_edges:
            raise ValueError(
                f"target_edges={config.target_edges} are more than the {model.config.possible_edges} possible ones"
            )
        check_data(data, model)
        if config.scan_every and model.config.edges not in OMEGA_IN_CLOSENESS:
            raise ValueError(
                f"scan_every={config.scan_every} needs edges in {OMEGA_IN_CLOSENESS}, not {model.config.edges!r}"
            )
        self._costs: Costs | None = None  # made, and what is measured calibrated, at the start of the first run
        self._step: KernelStep | AutogradStep = step_for(model, data.task, config, self._optimizer)
        self._frozen: Frozen | None = None  # the structure, once it is trimmed to its budget
        self._saved_costs: Record = {}  # what a checkpoint says of them
        self._edges = 0  # of the last forward
        self._recovered = 0  # times that the network was connected again
        self._quiet_until = 0  # step up to which speed and memory do not count
        self._doubted = False  # the model of the time was said not to fit
        self.notes: list[str] = []  # what the calibration found, a line each
        self._description = describe(data)
        self._saved: int | None = None  # step of the checkpoint in out
        self._last_loss = math.nan
        self._on_snapshot: Callable[[Structure], None] | None = None
        self._times: list[float] = []  # s, of the updates made by this process
        self._logged = 0  # of them at the last line of metrics.jsonl
        self._seconds_before = 0.0  # s, of earlier processes of this run
        self._step_seconds_before: float | None = None  # s, the median in them
        self._started = time.perf_counter()

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

        The schedule depends on the step and the total alone: a new total stretches a cosine from here on.
        Raises CheckpointError naming the file and what does not fit.
        """
        out = Path(out)
        manifold, config, source, saved = files.load_run(out, data)
        given: dict[str, Any] = {"steps": steps, "executor": executor, "threads": threads}
        given.update({"snapshot_every": snapshot_every, "device": device})
        config = dataclasses.replace(config, **{k: v for k, v in given.items() if v is not None})
        try:
            backend.device_of(config.device)
        except ValueError as error:
            if device is None:
                raise ValueError(
                    f"{out} was trained on {config.device}; give --device cpu to go on here: {error}"
                ) from None
            raise
        model = DynamicManifold(manifold, executor=config.executor, threads=config.threads)
        try:
            model.load_state_dict(saved.group("model"))
            trainer = cls(model, data, config, out, source)
            trainer._restore(saved)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{out / files.CHECKPOINT} does not fit its run: {error}") from None
        if config.steps < trainer.step:
            raise ValueError(f"steps={config.steps} lies before step {trainer.step}, which {out} has reached")
        return trainer

    @property
    def finished(self) -> bool:
        """Nothing is left to do: all steps are made and the summary is written."""
        return self.step == self.config.steps and self.out is not None and (self.out / files.SUMMARY).exists()

    def run(
        self,
        on_log: Callable[[Record], None] = lambda record: None,
        on_snapshot: Callable[[Structure], None] | None = None,
    ) -> Record:
        """Train up to ``config.steps`` and return the summary.

        ``on_log`` gets every line of metrics.jsonl, ``on_snapshot`` the structure at every snapshot: of the last
        forward, and at the end that of the trained network.
        torch runs on one thread meanwhile.  With a run directory, SIGINT and SIGTERM raise Interrupted
        after the current update, its checkpoint saved.  Raises TrainingError where training cannot go on.
        """
        self._started, self._on_snapshot = time.perf_counter(), on_snapshot
        signals = StopSignals()
        kernel_threads = backend.use_threads(self.model.executor.threads)  # set once: in every kernel it would cost
        with one_torch_thread(), kernel_threads, contextlib.ExitStack() as stack:
            stack.callback(lambda: self._step.finish())
            if self._costs is None:
                self._costs = self._make_costs()  # a bad profile or clock, or a signal, ends before there is a run
            if self.out:
                stack.enter_context(signals)
            self._begin()
            self._choose_step()
            if self.step == 0:
                first = self._first_line()
                self._snapshot()
                on_log(first)
            while self.step < self.config.steps:
                if signals.received is not None and self.out:
                    self._test()
                    self._save()
                    raise Interrupted(signals.received, self.step, self.out)
                try:
                    line = self._advance()
                except TrainingError:
                    raise
                except ValueError as error:  # the engine refuses what the last update made
                    raise self._diverged(str(error)) from error
                if line is not None:
                    on_log(line)
                    self._choose_step()  # hooks may have come, parameters been frozen
            return self._finish()

    def _choose_step(self) -> None:
        """The way of making a step that fits the model as it is now; the one of before where that is the same."""
        made = step_for(self.model, self.data.task, self.config, self._optimizer, self._costs)
        if type(made) is not type(self._step) or self._step.costs is not made.costs:
            self._step.finish()
            self._step = made

    def _make_costs(self) -> Costs:
        """Speed and memory as the configuration wants them, calibrated or as the checkpoint has them."""
        config, model, saved = self.config, self.model, self._saved_costs
        speed: SparsityProxy | MeasuredTime | None = None
        if config.speed == "proxy":
            speed = SparsityProxy(config.tau, config.speed_power, config.proxy_gradient)
        elif config.speed == "time":
            self._check_connected()
            settings = TimeSettings(
                mode=config.time_mode,
                batch=config.batch_size if config.time_mode == "train" else config.time_batch,
                clock=config.clock,
                every=config.time_every,
                tau=config.tau,
                budget=1e-6 * config.budget_us or None,
                estimator=config.time_estimator,
                ablation=config.time_ablation,
                seed=config.seed,
            )
            before, now = saved.get("time"), model.executor
            if before and (
                now.name in ("auto", before["executor"])
                and now.threads == before["threads"]
                and before.get("device", "cpu") == self._device.type
            ):
                speed = MeasuredTime(model, settings, state=before)
            else:
                speed = MeasuredTime(model, settings, read_profile(Path(config.profile)) if config.profile else None)
                self.notes += speed.describe()
            if config.time_mode == "train":
                model.executor = speed.executor  # what is timed is what trains
            self._check_budget(speed)
        memory = None
        if config.memory_coefficient:
            memory = MeasuredMemory(model, "train", config.batch_size, config.tau)
            memory.reference = saved.get("memory_reference") or memory.reference
        edges = None
        if config.target_edges:
            before = saved.get("edges") or {"start": model.topology.n_edges, "integral": Controller.FIRST}
            edges = Controller(config.target_edges, before["start"], before["integral"])
            edges.multiplier = before.get("multiplier", edges.multiplier)
        return Costs(config, speed, memory, edges)

    def _check_budget(self, term: MeasuredTime) -> None:
        """Refuse a budget below the price of a network with nothing but its outputs."""
        prices = term.seconds_per()
        least = prices["call"] + self.data.n_outputs * (prices["neuron"] + prices["edge"]) + prices.get("level", 0.0)
        if 0 < self.config.budget_us < 1e6 * least:
            raise TrainingError(
                f"budget_us={self.config.budget_us:g} cannot be met: the smallest network that connects inputs and "
                f"outputs takes about {1e6 * least:.4g} µs here; give --budget-us {math.ceil(1.1e6 * least)} or more. "
                f"{self._kept()}"
            )

    @property
    def _time(self) -> MeasuredTime | None:
        speed = self._costs and self._costs.speed
        return speed if isinstance(speed, MeasuredTime) else None

    def _begin(self) -> None:
        """Claim the run directory, or take it up again: what was written after the checkpoint is cut off."""
        if self.out is None:
            return
        self._check_connected()
        if self._saved is None:
            with doing("create the directory", self.out):
                files.check_free(self.out)
                self.out.mkdir(parents=True, exist_ok=True)
            self._save()
        about = {
            "manifold": dataclasses.asdict(self.model.config),
            "train": dataclasses.asdict(self.config),
            "data": self._description,
            "source": self.source and dataclasses.asdict(self.source),
            "versions": versions(),
            "machine": machine(self._device),
        }
        write_json(self.out / files.CONFIG, about)
        files.cut_metrics(self.out / files.METRICS, self.step or -1)
        snapshots.cut(self.out, self.step or -1)
        (self.out / files.SUMMARY).unlink(missing_ok=True)

    def _advance(self) -> Record | None:
        """One update; where they are due, the test figure, a checkpoint, and the line of metrics returned."""
        config, number = self.config, self.step + 1
        saving = number == config.steps or number % config.checkpoint_every == 0
        logging = saving or number % config.log_every == 0
        if self.step == trimmed_after(config) or (self.step > trimmed_after(config) and self._frozen is None):
            self._trim()
        self._steer()
        if self._costs is not None:
            self._costs.paused = self.step < self._quiet_until
        self.model.kappa = kappa(config, self.step)
        start = time.perf_counter()
        rows = self._order.next()
        x, y = self._vary(self.data.x_train.index_select(0, rows)), self.data.y_train.index_select(0, rows)
        if self._device.type != "cpu":
            x, y = x.to(self._device), y.to(self._device)
        outputs, terms = self._loss(x, y, logging)
        self._step.backward()
        if self._frozen is not None:
            self._frozen.still()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        self._step.update(self._optimizer, self._frozen)
        if self._holds_edges and self.step >= trimmed_after(config) and (number % STEER == 0 or number == config.steps):
            self._step.finish()
            keep_edges(self.model, config.target_edges)
        if is_due(config.scan_every, number, trimmed_after(config)):
            self._scan(x, y)
        self._times.append(time.perf_counter() - start)
        self.step = number
        if number % config.steps_per_snapshot == 0 and number < config.steps:  # that of the end is of what it leaves
            self._snapshot()
        if not logging:
            return None
        self._step.finish()
        self._check_parameters()
        line = self._line(outputs, y, terms, self._test() if saving else {})
        if saving:
            self._save()
        return line

    def _snapshot(self) -> None:
        """Keep the structure of the last forward."""
        if self.out is None and self._on_snapshot is None:
            return
        found = self._step.evaluation
        strengths = found.host_values.strengths.astype(np.float32)
        structure = Structure(self.step, found.topology, strengths)
        if self.out is not None:
            snapshots.save(self.out, structure)
        if self._on_snapshot is not None:
            self._step.finish()
            self._on_snapshot(structure)

    def _steer(self) -> None:
        """Move the goal of time or edges, and with it the multiplier of the speed term."""
        edges = self._pace()
        if edges is not None and self.step % STEER == 0:
            edges.update(self.model.n_edges)

    def _pace(self) -> Controller | None:
        """Tell the controllers how far the training is; returns that of the number of edges."""
        edges = None if self._costs is None else self._costs.edges
        controller = self._time.controller if self._time is not None else edges
        if controller is not None:
            controller.progress = self.step / (APPROACH * max(trimmed_after(self.config), 1))
        return edges

    @property
    def _holds_edges(self) -> bool:
        """Closeness has no weight of an edge's own to fine-tune: rows go on learning, the cutoff holds the number."""
        return bool(self.config.target_edges) and self.model.config.edges == "closeness"

    def _scan(self, x: Tensor, y: Tensor) -> None:
        """Let edges be born that are no candidates."""
        self._step.finish()
        objective = F.cross_entropy if self.data.task == "classification" else F.mse_loss
        drawn = self._generator if self.config.regrowth == "random" else None
        target = y.cpu()
        grow_edges(self.model, x.cpu(), lambda outputs: objective(outputs, target), self.config.scan_edges, drawn)

    def _trim(self) -> None:
        """Make the network fit its budget or its number of edges, and keep its structure from here on."""
        assert self._costs is not None
        self._step.finish()
        if self.step == trimmed_after(self.config):  # else a checkpoint of after that was resumed
            if self.config.target_edges:
                self._keep_edges()
            else:
                self._fit(WITHIN * self.config.budget_us)
        if self._holds_edges:
            self._costs.rest()
            return
        self._frozen = Frozen(self.model)
        self._costs.rest()

    def _keep_edges(self) -> None:
        """Give the network its number of edges."""
        wanted, before = self.config.target_edges, self.model.topology.n_edges
        self._save()  # of a network that a cut may take apart
        try:
            found = keep_edges(self.model, wanted)
        except ValueError as error:
            raise TrainingError(
                f"target_edges={wanted} was not reached: {error}. Start a new run, with another --out or the default, "
                f"and more --edges or --steps. {self._kept()}"
            ) from None
        self.notes.append(f"the cutoff was moved to {found:,} edges, from {before:,}, at step {self.step}")
        if before > FAR * wanted:
            self.notes.append(
                f"warning: that is a jump: the proxy had not brought the edges near {wanted:,} by then, and what they "
                f"had learned is lost; give more --steps (now {self.config.steps}) or a larger --set "
                f"proxy_coefficient= (now {self.config.proxy_coefficient:g})"
            )
        if found < (1 - NEAR) * wanted:
            self.notes.append(
                f"warning: {found:,} edges instead of {wanted:,}: no more candidates; give a larger --set skin= (now "
                f"{self.model.config.skin:g}) or --set kappa= (now {self.config.kappa:g})"
            )
        elif found > (1 + NEAR) * wanted:
            self.notes.append(f"warning: {found:,} edges instead of {wanted:,}: many lie at the cutoff; lower --lr")

    def _fit(self, target_us: float) -> None:
        """Trim the network to ``target_us``; raise TrainingError with the nearest that could be reached."""
        term, budget = self._time, self.config.budget_us
        assert term is not None
        try:
            found = trim(self.model, term, 1e-6 * target_us, self._saliency)
        except OverBudget as error:
            raise TrainingError(
                f"a step cannot be made to fit budget_us={budget:g}: {error}. Start a new run, with another --out or "
                f"the default, and --budget-us {math.ceil(1.1e6 * error.nearest)} or more, a smaller network "
                f"(--set n_neurons=, now {self.model.config.n_neurons}), another --executor or --set time_batch=. "
                f"{self._kept()}"
            ) from None
        self.notes.append(
            f"trimmed to {1e6 * found:.4g} µs, {self.model.topology.n_edges:,} edges, at step {self.step}"
        )

    def _saliency(self) -> Floats:
        """|strength * gradient of the objective| of the active edges, summed over SALIENT batches of training data."""
        objective = F.cross_entropy if self.data.task == "classification" else F.mse_loss
        total = np.zeros(self.model.topology.n_edges)
        size = self.config.batch_size
        for k in range(min(SALIENT, -(-len(self.data.x_train) // size))):
            rows = slice(k * size, (k + 1) * size)
            with torch.enable_grad():
                x, y = (t[rows].to(self._device) for t in (self.data.x_train, self.data.y_train))
                loss = objective(self.model(x), y)
                strengths = self.model.strengths
                (gradient,) = torch.autograd.grad(loss, strengths)
            total += (strengths.detach() * gradient).abs().cpu().numpy()
        return total

    def _keep_budget(self) -> float:
        """Seconds of a step in fresh processes, within the budget: where they are not, the network is trimmed further.

        Raises TrainingError with the nearest where that does not help.
        """
        term, budget = self._time, self.config.budget_us
        assert term is not None
        factor, nearest = WITHIN, math.inf
        for _ in range(ATTEMPTS):
            seconds = time_fresh({"network": Network.of(self.model)}, term.promise())["network"]
            found = 1e6 * float(np.median(seconds))
            if found <= budget:
                return 1e-6 * found
            nearest = min(nearest, found)
            self.notes.append(f"{found:.4g} µs in fresh processes, over the budget: trimming further")
            factor *= WITHIN * budget / found
            self._fit(factor * budget)
            self._frozen = Frozen(self.model)
        raise TrainingError(
            f"a step takes {nearest:.4g} µs in fresh processes, and budget_us={budget:g} was not met after {ATTEMPTS} "
            f"trims: keep the machine quiet, or give a larger --budget-us. {self._kept()}"
        )

    def _loss(self, x: Tensor, y: Tensor, report: bool) -> tuple[Tensor, Terms]:
        """Outputs and loss of a batch; a term of coefficient 0 for a ``report`` at least."""
        outputs = self._step.forward(x)
        if self.step and not self.model.connected and self._recover():
            outputs = self._step.forward(x)
        self._check_connected()
        self._edges = self.model.n_edges
        terms = self._step.loss(y, report)
        if not math.isfinite(terms.total):
            raise self._diverged(f"the loss became {terms.total} in step {self.step + 1}")
        self._last_loss = terms.total
        return outputs, terms

    def _first_line(self) -> Record:
        """The untrained model, on the first rows of the training set."""
        self._pace()
        with torch.no_grad():
            x, y = (t[: self.config.batch_size].to(self._device) for t in (self.data.x_train, self.data.y_train))
            outputs, terms = self._loss(x, y, True)
        return self._line(outputs, y, terms, self._test())

    def _line(self, outputs: Tensor, y: Tensor, terms: Terms, test: dict[str, float]) -> Record:
        """Write a line of metrics.jsonl: figures of the last batch, structure of the last forward."""
        fresh = self._times[self._logged :]
        self._logged = len(self._times)
        line = {
            "step": self.step,
            "loss": terms.total,
            "objective": terms.objective,
            "flow": terms.flow or 0.0,
            "speed": terms.speed or 0.0,
            **self._measured_now(terms),
            self._figure_name("train"): figure(self.data, outputs.detach().cpu(), y.cpu()),
            **self._structure(),
            "lr": learning_rate(self.config, max(self.step - 1, 0)),
            "step_seconds": statistics.median(fresh) if fresh else None,
            **test,
        }
        if self.out:
            append_line(self.out / files.METRICS, line)
        return line

    def _measured_now(self, terms: Terms) -> Record:
        """What a line says of measured terms."""
        found: Record = {}
        if terms.memory is not None:
            found["memory"] = terms.memory
        edges = None if self._costs is None else self._costs.edges
        if edges is not None:
            found |= {"edges_goal": round(edges.goal), "edges_multiplier": edges.multiplier}
        term = self._time
        if term is not None and not math.isnan(term.seconds):
            error = term.refit.error
            found |= {
                "measured_seconds": term.seconds,
                "model_error": None if math.isnan(error) else error,
                "time_multiplier": term.multiplier,
            }
            if term.timed >= ENOUGH and not term.fits and not self._doubted:
                self._doubted = True
                self.notes.append(
                    f"warning: at step {self.step} the model of the time is off by {error:.0%} (median of late "
                    "timed steps): keep the machine quiet, or choose another --clock or --speed"
                )
        return found

    def _figure_name(self, split: str) -> str:
        return f"{split}_accuracy" if self.data.task == "classification" else f"{split}_mse"

    def _structure(self) -> Record:
        topology = self.model.topology
        return {
            "edges": topology.n_edges,
            "density": self.model.density,
            "depth": topology.depth,
            "live": int(topology.live.sum()),
        }

    def _test(self) -> dict[str, float]:
        """The test figure of a model that is fit to be saved: connected, and finite."""
        self._step.finish()
        try:
            test = evaluate(self.model, self.data)
        except TrainingError as error:
            raise self._diverged(str(error)) from None
        self._check_connected()
        return test

    def _recover(self) -> bool:
        """Connect inputs and outputs again, where the last update has cut them apart: by a lower cutoff and, where that
        is not enough, rows that begin anew.  The terms that ask for a smaller network then rest for a while."""
        if self.config.budget_us or self._frozen is not None or self._recovered >= RECOVERIES:
            return False
        self._step.finish()
        self._check_parameters()
        self._recovered += 1
        for anew in (False, True):
            if anew:
                reinitialize_rows(self.model, self._generator)
            count = max(2 * self._edges, REVIVED * self.data.n_outputs)
            for _ in range(DOUBLINGS):
                with contextlib.suppress(ValueError):
                    found = keep_edges(self.model, min(count, len(self.model.candidate_indices)))
                    self._quiet_until = self.step + QUIET
                    for state in self._optimizer.state.values():
                        state["exp_avg"].zero_()  # which would go on shrinking
                    self.notes.append(
                        f"step {self.step} had cut the network in two: {'some rows begin anew, ' if anew else ''}the "
                        f"cutoff was lowered to {found:,} edges, and terms for speed and memory rest for {QUIET} steps"
                    )
                    return True
                count *= 2
        return False

    def _check_connected(self) -> None:
        if self.model.connected:
            return
        self._check_parameters()
        config, manifold = self.config, self.model.config
        if self.step == 0:
            omega = (
                f", or a larger --set omega=0,std (now {manifold.omega[1]:g})"
                if manifold.edges in OMEGA_IN_CLOSENESS
                else ""
            )
            raise TrainingError(
                f"no input reaches any output at the start. Try a lower --set cutoff= (now {manifold.cutoff:g}), a "
                f"wider --set sigma=mean,std (now {manifold.sigma[0]:g},{manifold.sigma[1]:g}){omega}. {self._kept()}"
            )
        term = self._time
        if config.budget_us and term is not None:
            raise TrainingError(
                f"budget_us={config.budget_us:g} was not reached: the network cut itself in two after step "
                f"{self.step}, the last time before was {1e6 * term.seconds:.4g} µs. Start a new run with a larger "
                f"--budget-us, more steps or a lower --lr (now {config.lr:g}). {self._kept()}"
            )
        raise TrainingError(
            f"the network has cut itself in two after step {self.step}: no input reaches any output. "
            "Start a new run, with another --out or the default, and "
            f"a lower --set {config.coefficient_field}= (now {config.speed_coefficient:g}), "
            f"a higher --set flow= (now {config.flow:g}), a lower --set cutoff= (now "
            f"{manifold.cutoff:g}), or a lower --lr (now {config.lr:g}). {self._kept()}"
        )

    def _check_parameters(self) -> None:
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"parameter {name} holds NaN or infinity after step {self.step}")

    def _diverged(self, what: str) -> TrainingError:
        last = "" if math.isnan(self._last_loss) else f"; the last finite loss was {self._last_loss:.6g}"
        return TrainingError(
            f"training diverged: {what}{last}. Start a new run, with another --out or the default, and a lower "
            f"--lr (now {self.config.lr:g}), a larger --batch-size (now {self.config.batch_size}), or lower "
            f"coefficients of the loss. {self._kept()}"
        )

    def _kept(self) -> str:
        if self._saved is None:
            return "Nothing was saved"
        return f"The last good checkpoint, of step {self._saved}, is kept in {self.out} (for evaluate)"

    def _elapsed(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def _save(self) -> None:
        """Write the checkpoint: all that the next update depends on."""
        if self.out is None:
            return
        self._step.finish()
        self._check_parameters()
        tensors = files.pack(self.model, self._optimizer, self._order, self._generator)
        header = {
            "step": self.step,
            "train_seconds": self._elapsed(),
            "step_seconds": self._median_step(),
            "manifold": dataclasses.asdict(self.model.config),
            "train": dataclasses.asdict(self.config),
            "data": self._description,
            "versions": versions(),
            **self._costs_state(),
        }
        files.save(self.out / files.CHECKPOINT, Checkpoint(tensors, header))
        self._saved = self.step

    def _costs_state(self) -> Record:
        """What a checkpoint says of measured terms."""
        if self._costs is None:
            return self._saved_costs
        time_state = None if self._time is None else self._time.state()
        memory = self._costs.memory
        edges = self._costs.edges
        return {
            "time": time_state,
            "memory_reference": None if memory is None else memory.reference,
            "edges": edges and {name: getattr(edges, name) for name in ("start", "integral", "multiplier")},
            "guard": [self._recovered, self._quiet_until, self._edges],
        }

    def _restore(self, saved: Checkpoint) -> None:
        self._saved_costs = {name: saved.header.get(name) for name in ("time", "memory_reference", "edges", "guard")}
        self._recovered, self._quiet_until, self._edges = self._saved_costs["guard"] or (0, 0, 0)
        files.unpack(saved, self.model, self._optimizer, self._order, self._generator)
        shared: dict[float, Tensor] = {}
        for state in self._optimizer.state.values():
            state["step"] = shared.setdefault(state["step"].item(), state["step"])  # see Adam._moments
        self._optimizer.forget()
        self.step = self._saved = saved.header["step"]
        self._seconds_before = saved.header["train_seconds"]
        self._step_seconds_before = saved.header["step_seconds"]

    def _median_step(self) -> float | None:
        return statistics.median(self._times) if self._times else self._step_seconds_before

    def _finish(self) -> Record:
        """The summary of the trained model, written to the run directory."""
        self.model.kappa = 0.0
        if self._recovered:
            self.notes.append(
                f"warning: the network had to be connected again {self._recovered} times: a lower --set "
                f"{self.config.coefficient_field}= (now {self.config.speed_coefficient:g}) would keep it whole"
            )
        measured = self._measured_summary()
        test, executor = self._test(), self.model.executor
        self._snapshot()
        summary = {
            **test,
            **self._structure(),
            "steps": self.step,
            "train_seconds": self._elapsed(),
            "step_seconds": self._median_step(),
            "clock": CLOCK,
            "threads": 1 if executor.name == "torch-sparse" else executor.threads,  # torch's, see one_torch_thread
            "executor": executor.chosen(),
            "device": str(self._device),
            **measured,
            "versions": versions(),
            "machine": machine(self._device),
        }
        if self.out:
            write_json(self.out / files.SUMMARY, summary)
        return summary

    def _measured_summary(self) -> Record:
        """What was measured last, how, and with a budget what fresh processes say."""
        term = self._time
        if term is None:
            return {}
        settings, found = term.promise(), {}
        if self.config.budget_us:
            if self.config.steps and self._frozen is None:
                self._trim()
            found = {"budget_us": self.config.budget_us, "fresh_seconds": self._keep_budget()}
            self._save()
        return {
            "measured_seconds": term.measure(self.model.find()),
            **found,
            "measured": {
                **{name: getattr(settings, name) for name in ("mode", "batch", "clock", "executor", "threads")},
                "reference_seconds": term.reference,
                "model_error": None if math.isnan(term.refit.error) else term.refit.error,
                "seconds_per": term.seconds_per(),
            },
        }
