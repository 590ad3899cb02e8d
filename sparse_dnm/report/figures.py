"""Figures of a run, by matplotlib: curves, time against density, strengths, the DAG, receptive fields, an overview."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from sparse_dnm.report import style
from sparse_dnm.report.history import History, Panel
from sparse_dnm.report.style import GRID_ALPHA, KINDS, LEGEND_SIZE, NEGATIVE, POSITIVE, STRENGTHS, TITLE_SIZE
from sparse_dnm.report.views import (
    MOST_EDGES,
    MOST_OUTPUTS,
    Fields,
    Grid,
    Rows,
    heights,
    mosaic,
    saturation,
    strongest,
    tiles,
)
from sparse_dnm.train.snapshots import Snapshot

FEW_EDGES = 2_500  # in each network of the overview
CLASSES = 6  # of strength
TURNS = 8  # in which the two signs alternate, per class
FEW = 800  # up to so many edges, lines are opaque
FEW_ROWS = 20  # that have their names beside them
VECTORS = 5_000  # beyond so many edges, an SVG holds them as pixels


def edges_of(axis: Axes, structure: Snapshot, height: np.ndarray, limit: float, most: int) -> None:
    """Draw edges from level to level, colour by sign, opacity and width by strength; the strongest on top.

    One path per sign and class of strength: an SVG is then a fifth as large as with one per edge.
    """
    topology = structure.topology
    chosen = strongest(structure, most)
    readers = topology.readers[chosen]
    sources, strengths = topology.indices[chosen], structure.strengths[chosen]
    share = np.clip(np.abs(strengths) / limit, 0.0, 1.0)
    classes = np.minimum((share * CLASSES).astype(int), CLASSES - 1)
    gap = np.full(len(chosen), np.nan)
    x = np.stack([topology.levels[sources], topology.levels[readers], gap], axis=1)
    y = np.stack([height[sources], height[readers], gap], axis=1)
    turn = np.arange(len(chosen)) % TURNS  # signs alternate: of two paths the second would hide the first
    faint = min(1.0, (FEW / max(len(chosen), 1)) ** 0.5)
    for k, t in itertools.product(range(CLASSES), range(TURNS)):
        for colour, sign in ((NEGATIVE, strengths < 0), (POSITIVE, strengths > 0)):
            here = sign & (classes == k) & (turn == t)
            if here.any():
                middle = (k + 0.5) / CLASSES
                axis.plot(
                    x[here].ravel(), y[here].ravel(), color=colour, alpha=faint * (0.06 + 0.7 * middle),
                    linewidth=faint * (0.2 + 0.9 * middle), rasterized=len(chosen) > VECTORS, zorder=1,
                    solid_capstyle="butt",
                )  # fmt: skip


def neurons_of(axis: Axes, structure: Snapshot, history: History, height: np.ndarray, legend: bool) -> None:
    """Draw neurons by kind; those without a path to an output are idle, and small."""
    config, topology = history.manifold, structure.topology
    n = np.arange(config.n_neurons)
    kinds = {
        "inputs": n < config.graph.n_inputs,
        "hidden": (n >= config.graph.n_inputs) & (n < config.n_sources),
        "outputs": n >= config.n_sources,
    }
    size = float(np.clip(6_000 / len(n), 1.5, 14))
    axis.scatter(
        topology.levels[~topology.live], height[~topology.live], s=0.5 * size, c=KINDS["idle"], linewidths=0, zorder=2,
        label="idle",
    )  # fmt: skip
    for name, here in kinds.items():
        here = here & topology.live
        marker = {"inputs": "s", "hidden": "o", "outputs": "D"}[name]
        scale = 3.0 if name == "outputs" else 1.0
        axis.scatter(
            topology.levels[here], height[here], s=scale * size, c=KINDS[name], marker=marker, linewidths=0, zorder=3,
            label=name,
        )  # fmt: skip
    if legend:
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=LEGEND_SIZE, markerscale=2, frameon=False
        )


def draw_network(
    axis: Axes, history: History, structure: Snapshot, limit: float, legend: bool = True, most: int = MOST_EDGES
) -> None:
    """The DAG by levels, with at most ``most`` edges."""
    height = heights(history.manifold)
    edges_of(axis, structure, height, limit, most)
    neurons_of(axis, structure, history, height, legend)
    depth = max(structure.topology.depth, 1)
    axis.set(xlim=(-0.02 * depth - 0.1, 1.02 * depth + 0.1), ylim=(1.02, -0.02), xlabel="level", yticks=[])


def draw_strengths(axis: Axes, history: History, structure: Snapshot, limit: float) -> None:
    """The matrix of strengths: sources across, readers down."""
    config = history.manifold
    grid, first = Grid.of(config), config.graph.n_inputs
    axis.imshow(
        grid.cells(structure, config), cmap=STRENGTHS, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto",
        extent=(0, grid.columns * grid.step, first + grid.rows * grid.step, first),
    )  # fmt: skip
    axis.set(xlabel="source neuron", ylabel="reading neuron")


def caption(history: History) -> str:
    """Settings and machine, in one line."""
    manifold, train = history.manifold, history.train
    goal = f", {train.target_edges:,} edges asked for" if train.target_edges else ""
    parts = [f"{manifold.n_neurons:,} neurons, edges {manifold.edges}, speed {train.speed}{goal}, seed {train.seed}"]
    return style.plain("; ".join([*parts, *([history.about["machine"]] if "machine" in history.about else [])]))


def headline(structure: Snapshot, history: History) -> str:
    """Step, edges and depth of a structure."""
    topology = structure.topology
    density = topology.n_edges / history.manifold.possible_edges
    return f"step {structure.step:,}: {topology.n_edges:,} edges ({density:.1%}), depth {topology.depth:,}"


def title(history: History) -> str:
    """The run's title, shortened and with TeX disabled."""
    words = history.title
    return style.plain(textwrap.shorten(words, 60, placeholder=" …") if " " in words else words[:60])


def _sheet(history: History, width: float, height: float) -> Figure:
    """An empty figure, inches, with the caption below."""
    return style.sheet(width, height, caption(history))


def curves(history: History) -> Figure:
    """Loss, figure of merit, edges, density, depth and live neurons, time: against steps."""
    panels = history.panels
    chart = _sheet(history, 11, 6.2)
    for axis, panel in zip(chart.subplots(2, 3).flat, panels, strict=False):
        _curve(axis, history, panel)
    for axis in chart.axes[len(panels) :]:
        axis.remove()
    chart.suptitle(title(history))
    return chart


def _curve(axis: Axes, history: History, panel: Panel) -> None:
    for (label, (steps, values)), (colour, line) in zip(history.curves(panel).items(), style.CURVES, strict=False):
        marker = "o" if len(steps) < 12 else ""
        axis.plot(steps, values, color=colour, linestyle=line, label=label, marker=marker, markersize=4)
    band = history.band(panel)
    if band is not None:
        axis.fill_between(*band, color=style.CURVES[0][0], alpha=style.BAND_ALPHA, linewidth=0)
    if panel.logarithmic:
        axis.set_yscale("log")
        if "loss" not in panel.names:
            values = [v for _, values in history.curves(panel).values() for v in values]
            _plain(axis.yaxis, [*values, *(band[1] + band[2] if band else ())])
    axis.set_title(textwrap.fill(panel.title, 46), fontsize=TITLE_SIZE)
    axis.set(xlabel="step", ylabel=panel.unit)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(axis.lines) > 1:
        axis.legend(fontsize=7)
    axis.grid(True, alpha=GRID_ALPHA)


def _plain(axis: Axis, values: Iterable[float]) -> None:
    """On a logarithmic axis: plain numbers, not powers of ten, and ticks at or beyond both ends of ``values``."""
    ticks = [k * 10.0**power for power in range(-12, 13) for k in (1, 2, 3, 5, 7)]
    low = max((t for t in ticks if t <= min(values)), default=ticks[0])
    high = min((t for t in ticks if t >= max(values)), default=ticks[-1])
    shown = [t for t in ticks if low <= t <= high]
    if len(shown) > 9:
        shown = [t for t in shown if f"{t:e}"[0] in ("1" if len(shown) > 24 else "125")]
    margin = (high / low) ** 0.03 if high > low else 1.2
    axis.set_view_interval(low / margin, high * margin, ignore=True)
    axis.set_major_locator(FixedLocator(shown))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_locator(NullLocator())


def _density(axis: Axes, history: History) -> None:
    """Measured time against density, a mark per line of metrics, from dark to light during training."""
    steps, density, seconds = history.time_against_density
    marks = axis.scatter(density, [1e6 * s for s in seconds], c=steps, cmap="viridis", s=14)
    if steps:
        bar = axis.figure.colorbar(marks, ax=axis)
        bar.set_label("step", fontsize=LEGEND_SIZE)
        axis.set(xscale="log", yscale="log")
        _plain(axis.xaxis, density)
        _plain(axis.yaxis, [1e6 * s for s in seconds])
    axis.set_title("time against density", fontsize=TITLE_SIZE)
    axis.set(xlabel="density (active / possible edges)", ylabel="µs")
    axis.grid(True, which="both", alpha=GRID_ALPHA)


def density_figure(history: History) -> Figure:
    """Measured time against density, alone."""
    chart = _sheet(history, 6.4, 4.8)
    _density(chart.subplots(), history)
    chart.suptitle(f"{title(history)}: {history.describe_time()}", fontsize=TITLE_SIZE)
    return chart


def network_figure(history: History, structure: Snapshot, limit: float) -> Figure:
    """The DAG by levels, alone."""
    chart = _sheet(history, 10, 6)
    axis = chart.subplots()
    draw_network(axis, history, structure, limit)
    shown = min(structure.topology.n_edges, MOST_EDGES)
    some = "" if shown == structure.topology.n_edges else f", the strongest {shown:,} drawn"
    axis.set_title(
        f"{title(history)}: {headline(structure, history)}{some}\nblue negative, orange positive", fontsize=TITLE_SIZE
    )
    return chart


def strengths_figure(history: History, structure: Snapshot, limit: float) -> Figure:
    """The matrix of strengths, alone."""
    chart = _sheet(history, 9, 4.6)
    axis = chart.subplots()
    draw_strengths(axis, history, structure, limit)
    chart.colorbar(axis.images[0], ax=axis, label="strength D", extend="both")
    axis.set_title(f"{title(history)}: {headline(structure, history)}", fontsize=TITLE_SIZE)
    return chart


def fields_figure(history: History, step: int, hidden: Fields, outputs: Fields) -> Figure:
    """Receptive fields of outputs and hidden neurons in the checkpoint of ``step``."""
    shape = history.image
    assert shape is not None
    parts = [(name, *mosaic(fields, shape, tiles(name, len(fields.neurons)))) for name, fields in
             (("outputs", outputs), ("hidden neurons", hidden))]  # fmt: skip
    ratios = [picture.shape[0] / picture.shape[1] for _, picture, _ in parts]
    chart = _sheet(history, 9, 1.5 + 8 * sum(ratios))
    axes = chart.subplots(2, 1, height_ratios=ratios)
    for axis, (name, picture, _) in zip(axes, parts, strict=True):
        axis.imshow(picture, cmap=STRENGTHS.with_extremes(bad=style.MISSING), vmin=-1, vmax=1, interpolation="nearest")
        some = f", the first {MOST_OUTPUTS}" if name == "outputs" and history.manifold.n_outputs > MOST_OUTPUTS else ""
        axis.set_title(name + some, fontsize=TITLE_SIZE)
        axis.set_axis_off()
    summed = ", summed over channels" if shape.channels > 1 else ""
    chart.suptitle(
        f"{title(history)}, step {step:,}: receptive fields\nsums over all paths of strengths times weights{summed}, "
        "each over its largest", fontsize=TITLE_SIZE,
    )  # fmt: skip
    return chart


def along_figure(history: History, words: str, parts: list[Rows]) -> Figure:
    """What a recurrent network computes along a sequence."""
    sizes = [min(max(len(part.names), 3), 30) for part in parts]
    height = 1.6 + 0.5 * len(parts) + 0.12 * sum(sizes)  # inches
    chart = _sheet(history, 9, height)
    chart.set_layout_engine("none")  # that of other figures gives other last digits with many axes
    places = {"left": 0.12, "right": 0.98, "bottom": 0.9 / height, "top": 1 - 0.9 / height, "hspace": 0.35}
    grid = {**places, "height_ratios": sizes}
    axes = np.atleast_1d(chart.subplots(len(parts), 1, sharex=True, gridspec_kw=grid))
    for axis, part in zip(axes, parts, strict=True):
        limit = float(np.abs(part.values).max(initial=0.0)) or 1.0
        axis.imshow(part.values, cmap=STRENGTHS, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axis.set_title(f"{part.title}, colours to ±{limit:.3g}", fontsize=TITLE_SIZE)
        names = [style.plain(name) for name in part.names] if len(part.names) <= FEW_ROWS else []
        axis.set_yticks(range(len(names)), names, fontsize=LEGEND_SIZE)
    axes[-1].set_xlabel("time step")
    chart.suptitle(f"{title(history)}, {words}\nblue negative, orange positive", fontsize=TITLE_SIZE)
    return chart


def overview(history: History, first: Snapshot, last: Snapshot, limit: float) -> Figure:
    """The DAG before and after training, and the curves in between."""
    chart = _sheet(history, 11, 6.2)
    axes = chart.subplots(2, 2, height_ratios=(1.7, 1))
    for axis, structure in zip(axes[0], (first, last), strict=True):
        draw_network(axis, history, structure, limit, legend=False, most=FEW_EDGES)
        some = f"; the strongest {FEW_EDGES:,} drawn" if structure.topology.n_edges > FEW_EDGES else ""
        axis.set_title(headline(structure, history) + some, fontsize=TITLE_SIZE)
    wanted = [panel for panel in history.panels if panel.names in (("edges", "edges_goal"), history.figure_names)]
    for axis, panel in zip(axes[1], wanted[::-1], strict=False):
        _curve(axis, history, panel)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    signs = [Line2D([], [], color=NEGATIVE), Line2D([], [], color=POSITIVE)]
    chart.legend(
        [*handles, *signs], [*labels, "negative", "positive"], loc="outside upper right", ncols=6, fontsize=LEGEND_SIZE,
        frameon=False,
    )  # fmt: skip
    name = history.figure_names[1]
    figure = history.promised(name)
    merit = "" if figure is None else f", {name.replace('_', ' ')} {figure:.4g}"
    chart.suptitle(f"{title(history)}{merit}", fontsize=11, x=0.02, ha="left")
    return chart


def write(history: History, out: Path, on_figure: Callable[[str], None] = lambda name: None) -> list[Path]:
    """Write every figure of a run into ``out`` as PNG and SVG; returns their paths."""
    first, last = next(history.structures()), history.last()
    limit = saturation(last)
    charts: dict[str, Callable[[], Figure]] = {
        "curves": lambda: curves(history),
        "density": lambda: density_figure(history),
        "strengths": lambda: strengths_figure(history, last, limit),
        "network": lambda: network_figure(history, last, limit),
        "overview": lambda: overview(history, first, last, limit),
    }
    found = history.fields
    if found is not None:
        charts["fields"] = lambda: fields_figure(history, *found)
    along = history.along
    if along is not None:
        charts["along"] = lambda: along_figure(history, *along)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in charts.items():
        on_figure(name)
        written += style.save_all({name: make()}, out)
    return written
