"""Shared by the figures of all reports: colours, line styles, sheets with a caption, bars of a timing, files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from sparse_dnm.io import write_atomic
from sparse_dnm.timing.clock import Timing

# Okabe & Ito (2008): distinguishable with any colour vision; dashes and markers make the same distinctions.
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT_GREY = "#BBBBBB", "#CCCCCC"
PALETTE = {  # for the page; see `css_variables`
    "orange": ORANGE,
    "sky-blue": SKY_BLUE,
    "green": GREEN,
    "blue": BLUE,
    "vermilion": VERMILION,
    "purple": PURPLE,
}

NEGATIVE, POSITIVE = BLUE, VERMILION  # strengths
STRENGTHS = LinearSegmentedColormap.from_list("strengths", [NEGATIVE, "#FFFFFF", POSITIVE])
MISSING = LIGHT_GREY
KINDS = {"inputs": SKY_BLUE, "hidden": BLACK, "outputs": PURPLE, "idle": GREY}  # of neurons
CURVES = ((BLUE, "-"), (VERMILION, "--"), (GREEN, ":"), (PURPLE, "-."), (ORANGE, "-"))
MERIT = ((BLUE, "-"), (VERMILION, "o--"))  # training, test
TERMS = {
    "none": (BLACK, "X"),
    "proxy-flat": (ORANGE, "^"),
    "proxy": (VERMILION, "s"),
    "time": (BLUE, "o"),
    "budget": (GREEN, "D"),
    "edges": (PURPLE, "v"),
}
ENGINES = {"sparse": (BLUE, "o"), "dense": (VERMILION, "v")}
SERIES = {
    "sparse forward": (BLUE, "o", "-"),
    "sparse forward + backward": (GREEN, "s", "-"),
    "dense forward": (ORANGE, "^", "--"),
    "dense forward + backward": (VERMILION, "v", "--"),
}

TITLE_SIZE = 9  # points
LEGEND_SIZE = 8
CAPTION_SIZE = 7
GRID_ALPHA = 0.3
BAND_ALPHA = 0.25  # between quartiles
DPI = 150
FORMATS = ("png", "svg")


def css_variables() -> str:
    """The palette as custom properties of CSS, --NAME, for the page."""
    return f":root {{ {' '.join(f'--{name}: {colour};' for name, colour in PALETTE.items())} }}\n"


def sheet(width: float, height: float, caption: str) -> Figure:
    """An empty figure, inches, with the caption below."""
    chart = Figure(figsize=(width, height), layout="constrained")
    chart.supxlabel(caption, fontsize=CAPTION_SIZE)
    return chart


def draw_timings(axis: Axes, x: Sequence[float], timings: Sequence[Timing], **style: Any) -> None:
    """Draw medians in µs against ``x``, with bars from the first to the third quartile."""
    middle = [1e6 * t.median for t in timings]
    spread = [
        [m - 1e6 * t.low for m, t in zip(middle, timings, strict=True)],
        [1e6 * t.high - m for m, t in zip(middle, timings, strict=True)],
    ]
    axis.errorbar(x, middle, yerr=spread, capsize=3, **style)


def plain(words: str) -> str:
    """``words`` escaped for matplotlib, which would read text between two dollars as TeX."""
    return words.replace("$", r"\$")


def save(chart: Figure, path: Path) -> None:
    """Write a figure; the same figure always gives the same bytes."""
    content = io.BytesIO()
    kind = path.suffix[1:]
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        chart.savefig(content, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    write_atomic(path, content.getvalue())


def save_all(charts: Mapping[str, Figure], out: Path) -> list[Path]:
    """Write figures by their names, as PNG and as SVG, into the directory ``out``; returns their paths."""
    written = []
    for name, chart in charts.items():
        for suffix in FORMATS:
            written.append(out / f"{name}.{suffix}")
            save(chart, written[-1])
    return written
