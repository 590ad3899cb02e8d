"""A training as an animation: the matrix of strengths, the DAG and the figure of merit at every snapshot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_dnm.io import doing
from sparse_dnm.report import style
from sparse_dnm.report.figures import caption, draw_network, draw_strengths, headline, title
from sparse_dnm.report.history import History
from sparse_dnm.report.views import saturation
from sparse_dnm.train.snapshots import Snapshot

FORMATS = (".gif", ".mp4")
DPI = {".gif": 80, ".mp4": 120}
LINGER = 1.5  # s for which the last picture is shown


def formats() -> tuple[str, ...]:
    """The formats that can be written: an MP4 needs ffmpeg."""
    return FORMATS if FFMpegWriter.isAvailable() else FORMATS[:1]


def check_fps(fps: int) -> None:
    """Raise ValueError unless ``fps`` is in 1 .. 50."""
    if not 1 <= fps <= 50:
        raise ValueError(f"fps={fps} must be in 1 .. 50 pictures a second")


def write(history: History, path: Path, fps: int, on_frame: Callable[[], None] = lambda: None) -> None:
    """Write the snapshots of a run as ``path``, .gif or .mp4, ``fps`` a second; never leaves a partial file.

    Raises ValueError for another format, fps not in 1 .. 50, or an MP4 if ffmpeg is missing.
    """
    check_fps(fps)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} must end in {' or '.join(FORMATS)}")
    if path.suffix not in formats():
        raise ValueError(f"{path} needs the program ffmpeg, which is not on the PATH; install it, or write a .gif")
    chart = Figure(figsize=(11, 5.6), layout="constrained")
    panels = chart.subplot_mosaic([["strengths", "network"], ["merit", "network"]], width_ratios=(1, 1.4))
    limit = saturation(history.last())
    temporary = path.with_name(f".part.{path.name}")
    writer: AbstractMovieWriter = (
        PillowWriter(fps) if path.suffix == ".gif" else FFMpegWriter(fps, extra_args=["-pix_fmt", "yuv420p"])
    )
    structures = history.structures()
    try:
        with doing("write", path):
            temporary.touch()  # fails before the drawing if it cannot be written
        _draw(
            chart, panels, history, next(structures), limit
        )  # without a picture, Pillow would hide an error of the drawing
        with doing("write", path), writer.saving(chart, str(temporary), DPI[path.suffix]):
            writer.grab_frame()
            chart.set_layout_engine("none")  # fixed places halve the time per picture
            on_frame()
            for structure in structures:
                _draw(chart, panels, history, structure, limit)
                writer.grab_frame()
                on_frame()
            for _ in range(round(LINGER * fps)):
                writer.grab_frame()
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _draw(chart: Figure, panels: dict[str, Axes], history: History, structure: Snapshot, limit: float) -> None:
    for axis in panels.values():
        axis.clear()
    draw_strengths(panels["strengths"], history, structure, limit)
    draw_network(panels["network"], history, structure, limit)
    panels["network"].set_title("blue: negative, orange: positive strength", fontsize=style.TITLE_SIZE)
    _merit(panels["merit"], history, structure.step)
    chart.suptitle(f"{title(history)}, {headline(structure, history)}")
    chart.supxlabel(caption(history), fontsize=style.CAPTION_SIZE)


def _merit(axis: Axes, history: History, step: int) -> None:
    """The figure of merit during training; the curve is solid up to ``step``."""
    positive = False
    for name, (colour, line) in zip(history.figure_names, style.MERIT, strict=True):
        steps, values = (np.array(column) for column in history.column(name))
        axis.plot(steps, values, line, color=colour, alpha=0.2)
        axis.plot(steps[steps <= step], values[steps <= step], line, color=colour, label=name.replace("_", " "))
        positive = positive or bool((values > 0).any())
    axis.axvline(step, color="0.5", linewidth=0.8)
    if history.task != "classification" and positive:
        axis.set_yscale("log")
    axis.set(xlabel="step")
    axis.legend(fontsize=style.LEGEND_SIZE, loc="center right")
    axis.grid(True, alpha=style.GRID_ALPHA)
