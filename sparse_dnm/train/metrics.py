"""Figures of a training: the test figure, the lines of metrics.jsonl, and the summary."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.data.datasets import Dataset
from sparse_dnm.io import append_line
from sparse_dnm.loss.term import TimeTerm
from sparse_dnm.machine import machine, versions
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.timing.pace import Steady
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.batches import Batch
from sparse_dnm.train.costs import Terms
from sparse_dnm.train.objective import within
from sparse_dnm.train.schedules import learning_rate
from sparse_dnm.train.state import Record, Run, TrainingError
from sparse_dnm.wording import words

CLOCK = "perf_counter"  # wall seconds: of a step, and of the training in all
MOST_TIMES = 10_000  # latest updates whose seconds are kept
MIN_TIMED_STEPS = 25  # before a warning that the cost model does not fit


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch's own operations on one thread.

    The cores are busy with the engine's kernels; and the order in which torch adds up a long tensor, hence the last
    bits, would depend on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def figure(data: Dataset, outputs: Tensor, y: Tensor, lengths: Tensor | None = None) -> float:
    """Accuracy of ``outputs``, or for a regression their mean squared error in the data's own units.

    Of targets for each time step, those within the ``lengths`` (n,) of the sequences count; None: all.
    """
    if lengths is not None and data.per_step:
        counts = within(lengths, outputs.shape[1])
        outputs, y = outputs[counts], y[counts]
    if data.task == "classification":
        return int((outputs.argmax(-1) == y).sum()) / y.numel()
    return data.mse(outputs, y)


def figure_name(data: Dataset, split: str) -> str:
    """What `figure` is called in lines and summaries."""
    return f"{split}_accuracy" if data.task == "classification" else f"{split}_mse"


def outputs_of(
    model: DynamicManifold, x: Tensor, chunk: int = 64, per_step: bool = False, lengths: Tensor | None = None
) -> Tensor:
    """Outputs (n, n_outputs) for the samples ``x`` on the CPU, without a graph, at most ``chunk`` samples at a time.

    Of sequences those of the last step; ``per_step``: of all, (n, time, n_outputs); ``lengths`` (n,): their time steps.
    """
    options = {"last": not per_step} if model.recurrent else {}
    count, device = max(math.ceil(len(x) / chunk), 1), model.alpha.device
    with torch.no_grad():
        if lengths is None:
            return torch.cat([model(part.to(device), **options).cpu() for part in x.tensor_split(count)])
        pairs = zip(x.tensor_split(count), lengths.tensor_split(count), strict=True)
        return torch.cat([model(part.to(device), steps, **options).cpu() for part, steps in pairs])


def evaluate(model: DynamicManifold, data: Dataset, chunk: int = 64) -> dict[str, float]:
    """``test_accuracy`` or ``test_mse`` over the whole test set, at most ``chunk`` samples at a time; {} without any.

    Raises TrainingError if an output is not finite.
    """
    with one_torch_thread():
        outputs = outputs_of(model, data.x_test, chunk, data.per_step, data.lengths_test)
        if not bool(torch.isfinite(outputs).all()):
            raise TrainingError("the outputs of the model on the test set hold NaN or infinity")
        if not len(outputs):
            return {}
        return {figure_name(data, "test"): figure(data, outputs, data.y_test, data.lengths_test)}


def further_figures(model: DynamicManifold, data: Dataset) -> dict[str, float]:
    """``test_balanced_accuracy`` and ``test_f1_macro``, or ``test_r2``, of scikit-learn, over the whole test set.

    Balanced accuracy is the mean of the recalls of the classes that the test set has; R² the mean over the targets that
    vary there.  What is undefined is left out.  ``test_sequence_accuracy``, of labels for each time step: the share of
    the sequences of which every step is right.
    """
    from sklearn.metrics import f1_score, r2_score, recall_score  # slow to import, and only needed here

    lengths = data.lengths_test
    outputs, y = outputs_of(model, data.x_test, per_step=data.per_step, lengths=lengths), data.y_test.numpy()
    beside: dict[str, float] = {}
    if len(y) == 0:
        return beside
    if data.per_step:
        counts = within(torch.full((len(y),), y.shape[1]) if lengths is None else lengths, y.shape[1])
        if data.task == "classification":
            right = (outputs.argmax(-1) == data.y_test) | ~counts
            beside["test_sequence_accuracy"] = int(right.all(1).sum()) / len(y)
        outputs, y = outputs[counts], y[counts.numpy()]
    if data.task == "classification":
        found = outputs.argmax(1).numpy()
        recall = recall_score(y, found, labels=np.unique(y), average="macro", zero_division=0.0)
        f1 = f1_score(y, found, average="macro", zero_division=0.0)
        return {"test_balanced_accuracy": float(recall), "test_f1_macro": float(f1), **beside}
    varies = (y != y[0]).any(0)
    if not varies.any():
        return {}
    return {"test_r2": float(r2_score(y[:, varies].astype(np.float64), outputs.double().numpy()[:, varies]))}


class Metrics:
    """What a training reports: seconds of its updates, lines of metrics.jsonl, the summary."""

    def __init__(self, run: Run):
        self.run = run
        self.times: deque[float] = deque(maxlen=MOST_TIMES)  # s, of the updates since the last line
        self._earlier: deque[float] = deque(maxlen=MOST_TIMES)  # s, of those of this process before them
        self._seconds_before = 0.0  # s, of earlier processes of this run
        self._step_seconds_before: float | None = None  # s, the median in them
        self._doubted = self._noisy = False  # the warnings about the cost model, and about noise, were given
        self.begin()

    def begin(self) -> None:
        """Start the clock of the training."""
        self._started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds of the training so far, those of earlier processes included."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def median_step(self) -> float | None:
        """Median seconds of the latest updates; that of earlier processes if this one made none."""
        times = [*self._earlier, *self.times]
        return statistics.median(times) if times else self._step_seconds_before

    def state(self) -> Record:
        """What a checkpoint holds."""
        return {"train_seconds": self.elapsed, "step_seconds": self.median_step}

    def restore(self, state: Record) -> None:
        """Continue from what `state` returned."""
        seconds, step = float(state["train_seconds"]), state["step_seconds"]
        self._seconds_before, self._step_seconds_before = seconds, None if step is None else float(step)

    def line(self, outputs: Tensor, batch: Batch, terms: Terms, test: dict[str, float]) -> Record:
        """Write a line of metrics.jsonl: figures of the last batch, structure of the last forward."""
        run = self.run
        late = list(self.times)
        self._earlier += late
        self.times.clear()
        line = {
            "step": run.step,
            "loss": terms.total,
            "objective": terms.objective,
            "flow": terms.flow or 0.0,
            "speed": terms.speed or 0.0,
            **self._measured(terms),
            figure_name(run.data, "train"): figure(run.data, outputs.detach().cpu(), batch.y.cpu(), batch.lengths),
            **self._structure(),
            "lr": learning_rate(run.config, max(run.step - 1, 0)),
            "step_seconds": statistics.median(late) if late else None,
            **test,
        }
        if run.out:
            append_line(run.out / files.METRICS, line)
        return line

    def _measured(self, terms: Terms) -> Record:
        """The measured terms of a line."""
        run, found = self.run, Record()
        if terms.memory is not None:
            found["memory"] = terms.memory
        made = None if run.costs is None else run.costs.steering
        if run.costs is not None and made is not None:
            name = run.costs.steered
            found |= {f"{name}_goal": round(made.goal), f"{name}_multiplier": made.multiplier}
        term = run.time
        if term is not None and not math.isnan(term.seconds):
            error = term.refit.error
            found |= {
                **self._seconds(term),
                "model_error": None if math.isnan(error) else error,
                "time_multiplier": term.multiplier,
            }
            if term.steps.noisy and not self._noisy:
                self._noisy = True
                run.notes.append(
                    f"warning: at step {run.step} most of the latest timed steps were disturbed, or the machine "
                    "changed its speed in them: prices and time stay as they are until that ends; keep it quiet"
                )
            if term.timed >= MIN_TIMED_STEPS and not term.fits and not self._doubted:
                self._doubted = True
                run.notes.append(
                    f"warning: at step {run.step} the model of the time is off by {error:.0%} (median of late "
                    f"timed steps): keep the machine quiet, or choose another {words().name('clock')} or "
                    f"{words().name('speed')}"
                )
        return found

    @staticmethod
    def _seconds(term: TimeTerm) -> Record:
        """Those of the term of speed, their quartiles, and what the clock had shown last."""
        if term.told is None:  # the first step after a resume
            return {"measured_seconds": term.seconds}
        found, raw = term.told
        return {
            "measured_seconds": found.median,
            "measured_low": found.low,
            "measured_high": found.high,
            "measured_raw": raw,
        }

    def _structure(self) -> Record:
        model = self.run.model
        topology = model.topology
        return {
            "edges": topology.n_edges,
            "density": model.density,
            "depth": topology.depth,
            "live": int(topology.live.sum()),
        }

    def measured_summary(self, constraint: Record) -> Record:
        """What was measured last, and how; ``constraint``: its entries for the summary."""
        term = self.run.time
        if term is None:
            return constraint
        settings, found = term.promise(), term.sample(self.run.model.find())
        return {
            "measured_seconds": found.seconds,
            **constraint,
            "measured": {
                **{name: getattr(settings, name) for name in ("mode", "batch", "clock", "executor", "threads")},
                **({} if term.promises else {"predicted": True}),
                "raw_seconds": found.raw,
                "reference_seconds": term.reference,
                **self._pace(term),
                "model_error": None if math.isnan(term.refit.error) else term.refit.error,
                "seconds_per": term.seconds_per(),
            },
        }

    @staticmethod
    def _pace(term: TimeTerm) -> Record:
        """What the machine's seconds are relative to, and how many times those it needed."""
        pace = term.pace
        if pace.unit is None or isinstance(pace, Steady):
            return {}
        return {"pace": {"quiet_seconds": pace.unit.seconds, "quiet_date": pace.unit.date, "factor": pace.factor}}

    def summary(self, test: dict[str, float], measured: Record) -> Record:
        """The summary of the trained model."""
        run, executor, device = self.run, self.run.model.executor, self.run.model.alpha.device
        return {
            **test,
            **self._structure(),
            "steps": run.step,
            "train_seconds": self.elapsed,
            "step_seconds": self.median_step,
            "clock": CLOCK,
            "threads": 1 if executor.name == "torch-sparse" else executor.threads,  # torch's, see one_torch_thread
            "executor": executor.chosen(),
            "device": str(device),
            **measured,
            "versions": versions(),
            "machine": machine(device),
        }
