"""Display of a training: live on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from sparse_dnm.cli.streams import OutputClosed, echo

if TYPE_CHECKING:
    from sparse_dnm.report.tensorboard import TensorBoardLog
    from sparse_dnm.train.trainer import Record, Trainer

COMPILING = "first steps: compiling kernels where the cache is cold (Ctrl-C twice gives up)"
COMPILES, WAITS, LATER = "compiling ", "waiting for another process compiling ", "which later runs find on disk"
FIGURES = tuple(f"{split}_{name}" for split in ("train", "validation", "test") for name in ("accuracy", "mse"))


def run(build: Callable[[], Trainer], keep: bool = True, tensorboard: bool = False) -> None:
    """Build a trainer and run it, with a live display on a terminal and plain lines elsewhere.

    A run directory left empty by a failure is removed unless ``keep``.
    """
    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal
    with _building(console) if live else contextlib.nullcontext():
        trainer = build()
    if trainer.finished:
        echo(f"{trainer.out} is finished at step {trainer.step:,}; a larger --steps extends it")
        return
    notes = _Notes(trainer)
    try:
        _announce(trainer)
        with (
            _live_lines(console, trainer) if live else _plain_lines(trainer) as on_log,
            _log(trainer, tensorboard) as log,
        ):

            def show(record: Record) -> None:
                notes.show()
                on_log(record)
                if log is not None:
                    log.on_log(record)

            summary = trainer.run(show, None if log is None else log.on_snapshot)
    except BaseException:
        notes.show()
        if not keep and trainer.out is not None:
            with contextlib.suppress(OSError):  # not empty, or never made
                trainer.out.rmdir()
        raise
    notes.show()
    console.print(_table(summary))
    echo(f"run directory: {trainer.out}")


@contextlib.contextmanager
def _building(console: Console) -> Iterator[None]:
    """A line while data are read and the network is built, with the name of the kernel that is compiled."""
    from sparse_dnm.engine.device import watching_compilation

    spinner = "dots" if console.encoding.startswith("utf") else "line"
    with console.status("reading the data, building the network", spinner=spinner) as status:

        def say(text: str) -> None:
            status.update(f"building the network: {text}, {LATER}")

        with watching_compilation(lambda kernel: say(COMPILES + kernel), lambda kernel: say(WAITS + kernel)):
            yield


def show_notes(notes: Iterable[str]) -> None:
    """Print what was decided when the data were read; warnings in yellow."""
    for line in notes:
        echo(line, fg="yellow" if line.startswith("warning") else None)


class _Notes:
    """Prints the notes of a trainer (of its calibration and its trim), each once."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._shown = trainer, 0

    def show(self) -> None:
        """Print the notes since the last call."""
        show_notes(self._trainer.notes[self._shown :])
        self._shown = len(self._trainer.notes)


@contextlib.contextmanager
def _log(trainer: Trainer, wanted: bool) -> Iterator[TensorBoardLog | None]:
    """Writes TensorBoard's files into the run directory, if asked to."""
    if not wanted:
        yield None
        return
    from sparse_dnm.report.tensorboard import TensorBoardLog

    assert trainer.out is not None
    with TensorBoardLog(trainer.out, trainer.model.config, trainer.step) as log:
        yield log


def _announce(trainer: Trainer) -> None:
    """Say what is trained, and where it is kept."""
    try:
        echo(f"{trainer.data.name}: {_sizes(trainer)}")
        show_notes(trainer.data.notes)
        echo(f"run directory: {trainer.out}")
    except OutputClosed:
        echo("stopped before the first step, as the output was closed; nothing is saved", err=True)
        raise


def _sizes(trainer: Trainer) -> str:
    data, config = trainer.data, trainer.model.config
    return (
        f"{data.task}, {len(data.x_train):,} training and {len(data.x_test):,} test samples; "
        f"{config.n_neurons:,} neurons ({config.n_inputs:,} inputs, {config.n_hidden:,} hidden, "
        f"{config.n_outputs:,} outputs)"
    )


@contextlib.contextmanager
def _plain_lines(trainer: Trainer) -> Iterator[Callable[[Record], None]]:
    """One line of text per line of metrics."""
    steps = trainer.config.steps
    echo(COMPILING)
    yield lambda record: echo(f"step {record['step']:,}/{steps:,}  {_figures(record)}")


@contextlib.contextmanager
def _live_lines(console: Console, trainer: Trainer) -> Iterator[Callable[[Record], None]]:
    """A bar, and the last line of metrics below it."""
    from sparse_dnm.engine.device import watching_compilation

    start, steps = trainer.step, trainer.config.steps
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("training", total=steps, completed=start)
    with Live(Group(bar, COMPILING), console=console) as live:
        lines: list[str] = []

        def show(record: Record) -> None:
            bar.update(task, completed=record["step"])
            lines[:] = [_figures(record)]
            live.update(Group(bar, *lines, *([] if record["step"] > start else [COMPILING])))

        def say(text: str) -> None:
            live.update(Group(bar, *lines, f"{text}, {LATER} (Ctrl-C twice gives up)"))

        with watching_compilation(lambda kernel: say(COMPILES + kernel), lambda kernel: say(WAITS + kernel)):
            yield show


def _figures(record: Record) -> str:
    """A line of metrics as text; terms of the loss are without their coefficients."""
    terms = [f"{name} {record[name]:.4g}" for name in ("loss", "objective", "flow", "speed")]
    if "measured_seconds" in record:
        quartiles = [f"{1e6 * record[name]:.4g}" for name in ("measured_low", "measured_high") if name in record]
        spread = f", {'–'.join(quartiles)}" if quartiles else ""
        terms[-1] += f" ({1e6 * record['measured_seconds']:.4g}{spread} µs)"
    parts = [*terms, *(_figure(name, record[name]) for name in FIGURES if name in record)]
    parts += [f"edges {record['edges']:,}", f"density {record['density']:.2%}", f"depth {record['depth']}"]
    if record["step_seconds"] is not None:
        parts.append(f"{1e3 * record['step_seconds']:.3f} ms/step")
    return "  ".join(parts)


def _figure(name: str, value: float) -> str:
    return f"{name.replace('_', ' ')} {value:{'.2%' if name.endswith('accuracy') else '.4g'}}"


def _table(summary: Record) -> Table:
    """The summary of a run as a table of two columns."""
    table = Table(title="summary", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    accuracies = ("test_accuracy", "test_sequence_accuracy", "test_balanced_accuracy", "test_f1_macro")
    for name in (*accuracies, "test_mse", "test_r2"):
        if name in summary:
            table.add_row(name, f"{summary[name]:.6g}")
    table.add_row("edges", f"{summary['edges']:,} (density {summary['density']:.2%})")
    table.add_row("depth", f"{summary['depth']}")
    table.add_row("live neurons", f"{summary['live']:,}")
    table.add_row("steps", f"{summary['steps']:,}")
    table.add_row("training", f"{summary['train_seconds']:.1f} s ({summary['clock']})")
    if summary["step_seconds"] is not None:
        table.add_row("step", f"{1e3 * summary['step_seconds']:.3f} ms ({summary['clock']}, median)")
    if "measured" in summary:
        how = summary["measured"]
        what = "forward + backward" if how["mode"] == "train" else "forward"
        about = f"{what}, batch {how['batch']}, {how['executor']}, {how['threads']} threads, {how['clock']}"
        if how["clock"] == "target":
            about = f"in C, a sample, {'predicted by the profile' if how.get('predicted') else 'on the target'}"
        table.add_row("measured", f"{1e6 * summary['measured_seconds']:.4g} µs ({about})")
    if "fresh_seconds" in summary:
        seconds = summary["fresh_seconds"]
        where = "on the target" if summary["measured"]["clock"] == "target" else "timed in subprocesses"
        table.add_row("budget", f"{1e6 * seconds:.4g} of {summary['budget_us']:g} µs, {where}")
    if "flash_bytes" in summary:
        table.add_row("flash", f"{summary['flash_bytes']:,} of {summary['budget_bytes']:,} bytes as a program in C")
    if "validation_before" in summary:
        before, after = (summary[f"validation_{when}"] for when in ("before", "after"))
        table.add_row("validation", f"{before:.2%} before the cut to the budget, {after:.2%} at the end")
    if "best_step" in summary:
        (figure,) = (
            _figure(name, summary[name]) for name in FIGURES if name.startswith("validation") and name in summary
        )
        ended = "" if summary["stopped_at"] is None else f", stopped at {summary['stopped_at']:,}"
        loss, n = summary["validation_loss"], summary["n_validation"]
        table.add_row(
            "early stopping", f"best at step {summary['best_step']:,}{ended}: {figure}, loss {loss:.4g} ({n:,} samples)"
        )
    where = f"{summary['threads']} threads" if summary["device"] == "cpu" else summary["device"]
    what = "" if summary.get("measured", summary)["executor"] in summary["executor"] else " (of the training steps)"
    table.add_row("executor", f"{summary['executor']}; {where}{what}")
    gpu = f", {summary['machine']['gpu']}" if "gpu" in summary["machine"] else ""
    table.add_row("machine", f"{summary['machine']['processor']}, {summary['machine']['cores']} cores{gpu}")
    return table
