"""Options that several commands share, and commands that take their options as a dataclass.

A dataclass declares each option once: its type, help, default and, by the marks below, what its value is for.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import typer
from typer.models import ArgumentInfo

if TYPE_CHECKING:
    from sparse_dnm.data.datasets import Dataset
    from sparse_dnm.data.source import DataSource
    from sparse_dnm.presets import Preset

SETTING = "is a field of TrainConfig"  # marks of an option, in its Annotated
RESUMABLE = "may change when a run is resumed"

# The legal values, as in sparse_dnm.config, which --help does not import:
SPEEDS = "none|proxy|time"
CLOCKS = "process_time|perf_counter|thread_time"
MODES = "train|infer"
EXECUTORS = "auto|columns|wavefront|blocks|fastest|torch-sparse"
DEVICES = "cpu|cuda|cuda:N"

DATASETS = "toy, digits, mnist, or a .npz or .csv file."
RUN = typer.Argument(help="Run directory of a training, finished or not.")
PRESET = typer.Option(help="Settings to start from; default: those of the data set.")
TARGET = typer.Option(help="Label column of a .csv file; default: the last one.")
SET = typer.Option("--set", metavar="KEY=VALUE", help="Set any field of the configuration; repeatable.")
THREADS = typer.Option(help="Threads of the kernels; 0: as many as are fastest.")
TIMED_EXECUTOR = typer.Option(metavar="columns|wavefront|blocks", help="How the kernels run the network.")

T = TypeVar("T")  # a dataclass of options


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
    return {
        name: value
        for name, value in vars(options).items()
        if name in wanted and value is not None and value is not False and value != []
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
    from sparse_dnm.config import CUDA_CLOCK, check_device

    if check_device(device) == "cpu":
        return clock or default
    if clock is not None:
        raise ValueError(f"--clock {clock} is for the CPU: on {device} CUDA's events are the clock; leave it out")
    return CUDA_CLOCK


def source_of(dataset: str, data_dir: Path | None, target: str | None) -> DataSource:
    """The data that the options name."""
    from sparse_dnm.data.source import DataSource

    return DataSource(dataset, None if data_dir is None else str(data_dir), target)


def preset_of(source: DataSource, data: Dataset, name: str | None) -> Preset:
    """The preset ``name``; by default that of the data set, or for a file settings derived from its size."""
    from sparse_dnm.presets import preset_for

    return preset_for(data, name or (None if source.is_file else source.dataset))
