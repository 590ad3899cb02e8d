"""Options that several commands share, and commands that take their options as a dataclass.

A dataclass declares each option once: its type, help, default and, by the marks below, what its value is for.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from typer.models import ArgumentInfo

if TYPE_CHECKING:
    from sparse_dnm.data.datasets import Dataset
    from sparse_dnm.data.source import DataSource
    from sparse_dnm.presets import Preset

SETTING = "is a field of TrainConfig or ManifoldConfig"  # marks of an option, in its Annotated
RESUMABLE = "may change when a run is resumed"

# The legal values, as in sparse_dnm.config, which --help does not import:
SPEEDS = "none|proxy|time"
CLOCKS = "process_time|perf_counter|thread_time"
TRAIN_CLOCKS = f"{CLOCKS}|target"
MODES = "train|infer"
NEURONS = "memoryless|ctrnn|gru|lstm"
EXECUTORS = "auto|columns|wavefront|blocks|fastest|torch-sparse"
DEVICES = "cpu|cuda|cuda:N"

DATASETS = (
    "toy, digits, mnist; sequences: adding, copy, parity, anbn, anbncn, dyck1, rows-digits, psmnist; or a file: .npz, "
    ".csv, .tsv, .txt (.gz, .zip), .parquet."
)
RUN = typer.Argument(help="Run directory of a training, finished or not.")
PRESET = typer.Option(help="Settings to start from; default: those of the data set.")
SET = typer.Option("--set", metavar="KEY=VALUE", help="Set any field of the configuration; repeatable.")
THREADS = typer.Option(help="Threads of the kernels; 0: as many as are fastest.")
TIMED_EXECUTOR = typer.Option(metavar="columns|wavefront|blocks", help="How the kernels run the network.")

T = TypeVar("T")  # a dataclass of options
_reading = partial(typer.Option, rich_help_panel="Reading data")


@dataclass(frozen=True)
class ReadingOptions:
    """How data are read: the options of every command that takes a data set."""

    target: Annotated[
        list[str] | None, _reading(help="Label column of a table; default: the last. Repeat for several numbers.")
    ] = None
    drop: Annotated[
        list[str] | None, _reading(metavar="COLS", help="Columns to leave out, with commas between them; repeatable.")
    ] = None
    keep: Annotated[
        list[str] | None, _reading(metavar="COLS", help="Columns to keep although they look like an index or an ID.")
    ] = None
    categories: Annotated[
        list[str] | None, _reading(metavar="COLS", help="Columns whose numbers are codes: an input for each.")
    ] = None
    task: Annotated[
        str | None,
        _reading(metavar="classification|regression", help="Default: as the labels are (text, integers, decimals)."),
    ] = None
    header: Annotated[
        str | None, _reading(metavar="none|first", help="none: the first line of a table holds data, not names.")
    ] = None
    test_size: Annotated[
        float | None, _reading(help="Share of the rows to test on, or a number of rows.", show_default="0.2")
    ] = None
    stratify: Annotated[
        bool | None,
        _reading("--stratify/--no-stratify", help="The split keeps the shares of the classes; default: if it can."),
    ] = None
    group: Annotated[
        str | None, _reading(metavar="COL", help="Rows with the same value here stay on one side of the split.")
    ] = None
    channels: Annotated[
        str | None, _reading(metavar="first|last", help="Of images in a .npz; default: as their sizes say.")
    ] = None
    drop_unlabelled: Annotated[bool, _reading("--drop-unlabelled", help="Leave out rows that lack a label.")] = False
    sequence: Annotated[
        str | None, _reading(metavar="COL", help="Rows with the same value here are one sequence, in their order.")
    ] = None
    per_step: Annotated[
        bool, _reading("--per-step", help="Each row of a sequence has a label; default: only its last one.")
    ] = False
    window: Annotated[
        int | None, _reading(help="Each so many rows, in order of time, are a sequence that tells a later label.")
    ] = None
    horizon: Annotated[int | None, _reading(help="How many rows later, after the window's last.", show_default="1")] = (
        None
    )

    def source(self, dataset: str, data_dir: Path | None) -> DataSource:
        """The data that the options name.  Raises ValueError for unfit values."""
        from sparse_dnm.data.options import Reading
        from sparse_dnm.data.source import DataSource

        named: dict[str, Any] = {name: getattr(self, name) for name in ReadingOptions.__dataclass_fields__}
        reading = Reading(**{name: value for name, value in named.items() if name != "target" and value is not None})
        return DataSource(dataset, None if data_dir is None else str(data_dir), self.target, reading)


_in_c = partial(typer.Option, rich_help_panel="A program in C")
CC = _in_c(help="Compiles each with -c, and links the objects with -o and -lm.", show_default="cc -O3 -march=native")
COPY = _in_c(help='Runs first, such as "scp {program} board:".', show_default=False)
RUNS = _in_c(help='Runs a program, such as "ssh board ./{name}" or an emulator.', show_default="{program}")
TIMEOUT = _in_c(help="Seconds that each of these commands may take.", show_default="600")


@dataclass(frozen=True)
class TargetOptions:
    """How programs in C get to a target; None: not given."""

    cc: Annotated[str | None, CC, RESUMABLE] = None
    copy: Annotated[str | None, COPY, RESUMABLE] = None
    run: Annotated[str | None, RUNS, RESUMABLE] = None
    timeout: Annotated[float | None, TIMEOUT, RESUMABLE] = None

    def of_target(self) -> dict[str, Any]:
        """Fields of a TrainConfig."""
        named = {name: getattr(self, name) for name in ("cc", "copy", "run", "timeout")}
        return {f"target_{name}": value for name, value in named.items() if value is not None}


def takes(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Turn a function of one dataclass into a command: Typer sees the fields as parameters."""
    hints = get_type_hints(options, include_extras=True)
    declared = inspect.signature(options)
    parameters = [p.replace(annotation=hints[p.name]) for p in declared.parameters.values()]

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(options(**values))

        run.__signature__ = declared.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = hints
        return run

    return decorate


def given(options: Any, *marks: str) -> dict[str, Any]:
    """The options that were given, by field name; only those with all the ``marks``."""
    wanted = with_marks(type(options), *marks)
    flags = [field.name for field in dataclasses.fields(options) if field.default is False]  # those without a --no-
    return {
        name: value
        for name, value in vars(options).items()
        if name in wanted and value is not None and value != [] and not (value is False and name in flags)
    }


def with_marks(options: type, *marks: str) -> list[str]:
    """Names of the fields that have all the ``marks``."""
    hints = get_type_hints(options, include_extras=True)
    return [name for name, hint in hints.items() if set(marks) <= {m for m in hint.__metadata__ if isinstance(m, str)}]


def spelled(options: type, name: str) -> str:
    """The field ``name`` as it is written on the command line: --name, or NAME for an argument."""
    info = get_type_hints(options, include_extras=True)[name].__metadata__[0]
    words = name.strip("_").replace("_", "-")
    return words.upper() if isinstance(info, ArgumentInfo) else f"--{words}"


def clock_of(clock: str | None, device: str, default: str) -> str:
    """The clock of a device: CUDA events on CUDA, the given one on the CPU.

    Raises ValueError if the device is unknown, or if a clock was given for CUDA.
    """
    from sparse_dnm.config import CUDA_CLOCK
    from sparse_dnm.fields import check_device

    if check_device(device) == "cpu":
        return clock or default
    if clock is not None:
        raise ValueError(f"--clock {clock} is for the CPU: on {device} CUDA's events are the clock; leave it out")
    return CUDA_CLOCK


def preset_of(source: DataSource, data: Dataset, name: str | None) -> Preset:
    """The preset ``name``; by default that of the data set, or for a file settings derived from its size."""
    from sparse_dnm.presets import preset_for

    return preset_for(data, name or (None if source.is_file else source.dataset))
