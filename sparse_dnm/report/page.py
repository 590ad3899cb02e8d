"""The page of a run: one HTML file that draws with Plotly and fetches nothing."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from sparse_dnm.io import write_atomic
from sparse_dnm.report import style
from sparse_dnm.report.history import History, Panel, settings
from sparse_dnm.report.views import (
    MOST_EDGES,
    MOST_OUTPUTS,
    Fields,
    Grid,
    Image,
    Rows,
    heights,
    mosaic,
    saturation,
    strongest,
    tiles,
)
from sparse_dnm.train.snapshots import Snapshot, spread

MOST_BYTES = 64 << 20  # of the structures in the browser, decompressed
MOST_POINTS = 2_000  # of a curve
MOST_ROWS = 100  # of the table of metrics
FULL = 127  # int8 of the strength at which colours saturate
EXACT = 32767  # int16 of the largest strength of a snapshot
NAMED = 40  # receptive fields listed one by one
TYPES = {
    "u1": "Uint8Array",
    "i1": "Int8Array",
    "i2": "Int16Array",
    "u2": "Uint16Array",
    "u4": "Uint32Array",
    "f4": "Float32Array",
}


def write(history: History, path: Path, on_frame: Callable[[], None] = lambda: None) -> None:
    """Write the page of a run; ``on_frame`` is called for every snapshot in it."""
    write_atomic(path, page(history, on_frame).encode())


def page(history: History, on_frame: Callable[[], None] = lambda: None) -> str:
    """The page as text."""
    fields, along = _fields(history), _along(history)  # first, because an unreadable checkpoint fails here
    grid, height = Grid.of(history.manifold), heights(history.manifold)
    history, notes = _fitted(history, grid)
    limit = saturation(history.last())
    frames: list[dict[str, Any]] = []
    parts: dict[str, list[Any]] = {name: [] for name in ("cells", "levels", "live", "sources", "readers", "strengths")}
    for structure in history.structures():
        frames.append(_frame(structure, history))
        for name, values in _arrays(structure, history, grid, limit).items():
            parts[name].append(values)
        on_frame()
    arrays = {name: np.concatenate([np.ravel(v) for v in values]) for name, values in parts.items()}
    data = {
        "arrays": {name: _packed(values) for name, values in {**arrays, "heights": height}.items()},
        "frames": frames,
        "grid": {"rows": grid.rows, "columns": grid.columns, "step": grid.step},
        "n_neurons": history.manifold.n_neurons,
        "n_inputs": history.manifold.graph.n_inputs,
        "n_sources": history.manifold.n_sources,
        "limit": limit,
        "full": FULL,
        "exact": EXACT,
        "panels": [_panel(history, panel) for panel in history.panels],
        "density": _density(history),
        "fields": fields,
        "along": along,
    }
    n_lines = len(history.metrics["step"])
    columns, rows = _table(history)
    return (
        Environment(autoescape=True)
        .from_string(_text("report.html"))
        .render(
            title=history.title,
            facts=_facts(history, frames[-1]),
            notes=[*history.notes, *notes],
            n_frames=len(frames),
            now=frames[-1]["words"],
            limit=limit,
            cell=grid.step,
            capped=f"{MOST_EDGES:,}" if any(f["edges"] > f["shown"] for f in frames) else "",
            panels=[{"title": panel.title, "summary": _summary(history, panel)} for panel in history.panels],
            time_words=history.describe_time(),
            thinned=f"{MOST_POINTS:,} of {n_lines:,} logged steps" if n_lines > MOST_POINTS else "",
            n_lines=n_lines,
            columns=columns,
            rows=rows,
            fields=fields,
            along=along,
            tables={**settings(history), "Machine and versions": history.about},
            run=history.path.resolve().name,
            css=style.css_variables() + _text("report.css"),
            js=_text("report.js"),
            plotly=_plotly(),
            data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        )
    )


def _fitted(history: History, grid: Grid) -> tuple[History, list[str]]:
    """The run with as many snapshots as fit a browser, and a note on the others."""
    edges = min(MOST_EDGES, history.last().topology.n_edges)
    size = 2 * grid.rows * grid.columns + 5 * history.manifold.n_neurons + 9 * edges
    most = max(2, MOST_BYTES // size)
    shown = spread(history.steps, most)
    if len(shown) == len(history.steps):
        return history, []
    return replace(history, steps=shown), [f"the page holds only {len(shown)} snapshots of so large a network"]


def _frame(structure: Snapshot, history: History) -> dict[str, Any]:
    topology, density = structure.topology, structure.topology.n_edges / history.manifold.possible_edges
    live = int(topology.live.sum())
    return {
        "step": structure.step,
        "edges": topology.n_edges,
        "shown": min(topology.n_edges, MOST_EDGES),
        "density": density,
        "depth": topology.depth,
        "live": live,
        "largest": _largest(structure),
        "words": (
            f"step {structure.step:,}: {topology.n_edges:,} edges ({100 * density:.2f} %), depth {topology.depth:,}, "
            f"{live:,} live neurons"
        ),
    }


def _arrays(structure: Snapshot, history: History, grid: Grid, limit: float) -> dict[str, np.ndarray]:
    """The arrays that the pictures of a structure need, in the smallest types."""
    topology, config = structure.topology, history.manifold
    index = np.uint16 if config.n_neurons <= 1 << 16 else np.uint32
    chosen = strongest(structure, MOST_EDGES)
    return {
        "cells": _small(grid.cells(structure, config), _largest(structure), EXACT).astype(np.int16),
        "levels": topology.levels.astype(index),
        "live": topology.live.astype(np.uint8),
        "sources": topology.indices[chosen].astype(index),
        "readers": topology.readers[chosen].astype(index),
        "strengths": _small(structure.strengths[chosen], limit, FULL).astype(np.int8),
    }


def _largest(structure: Snapshot) -> float:
    return float(np.abs(structure.strengths).max(initial=0.0)) or 1.0


def _small(strengths: np.ndarray, limit: float, full: int) -> np.ndarray:
    """Strengths as integers, ``full`` at ``limit`` and beyond; only 0 becomes 0."""
    sizes = np.clip(np.rint(np.abs(strengths) * (full / limit)), 1, full)
    return np.sign(strengths) * sizes


def _packed(values: np.ndarray) -> dict[str, str]:
    """An array for the page's script: base64 of gzip of little-endian numbers."""
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    content = gzip.compress(plain.tobytes(), compresslevel=6, mtime=0)
    return {"type": TYPES[plain.dtype.str[1:]], "gzip": base64.b64encode(content).decode()}


def _panel(history: History, panel: Panel) -> dict[str, Any]:
    series = [
        {"name": label, "x": spread(steps, MOST_POINTS), "y": spread(values, MOST_POINTS)}
        for label, (steps, values) in history.curves(panel).items()
    ]
    found = {"title": panel.title, "unit": panel.unit, "logarithmic": panel.logarithmic, "series": series}
    band = history.band(panel)
    if band is None:
        return found
    steps, low, high = (spread(column, MOST_POINTS) for column in band)
    return {**found, "band": {"x": steps, "low": low, "high": high}}


def _summary(history: History, panel: Panel) -> str:
    """The first and last values of a panel's columns, in words."""
    unit, parts, zeros = " µs" if panel.scale != 1 else "", [], False
    for name in panel.names:
        steps, values = history.column(name)
        if any(values):
            ends = [f"{_number(panel.scale * values[k])}{unit} at step {steps[k]:,.0f}" for k in (0, -1)]
            parts.append(f"{panel.label(name)} from {' to '.join(ends)}")
            zeros = zeros or (panel.logarithmic and min(values) <= 0)
    band = history.band(panel)
    if band is not None and band[0]:
        low, high = (_number(values[-1]) for values in band[1:])
        parts.append(
            f"the band is that between the quartiles of the latest timed steps, at the end {low} to {high}{unit}"
        )
    text = "; ".join(parts)
    left_out = " Zeros, which have no place on a logarithmic axis, are left out." if zeros else ""
    return f"{text[:1].upper()}{text[1:]}.{left_out}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _density(history: History) -> dict[str, list[float]]:
    steps, density, seconds = (spread(column, MOST_POINTS) for column in history.time_against_density)
    return {"steps": steps, "x": density, "y": [1e6 * s for s in seconds]}


def _fields(history: History) -> list[dict[str, Any]]:
    """Receptive fields as pictures, if the data are images."""
    shape, found = history.image, history.fields
    if shape is None or found is None:
        return []
    step, hidden, outputs = found
    classes, first = list(history.data.get("classes") or []), history.manifold.n_sources

    def name(neuron: int) -> str:
        return f"output {classes[neuron - first]}" if neuron >= first and classes else f"neuron {neuron}"

    n_outputs = history.manifold.n_outputs
    some = f"the first {MOST_OUTPUTS} of {n_outputs:,}; " if n_outputs > MOST_OUTPUTS else ""
    parts = (("outputs", outputs, some), ("hidden neurons", hidden, ""))
    return [_field(title, fields, shape, name, f"step {step:,}; {text}") for title, fields, text in parts]


def _field(title: str, fields: Fields, shape: Image, name: Callable[[int], str], text: str) -> dict[str, Any]:
    picture, places = mosaic(fields, shape, tiles(title, len(fields.neurons)))
    shown = [name(int(neuron)) for neuron in fields.neurons]
    listed = shown if len(shown) <= NAMED else [shown[0], "…", shown[-1]]
    channels = f", {shape.channels} channels summed" if shape.channels > 1 else ""
    cells = [[None if np.isnan(v) else round(float(v), 3) for v in row] for row in picture]
    return {
        "title": title,
        "summary": (
            f"{text}{len(shown)} fields of {shape.height} × {shape.width} pixels{channels}, row by row: "
            f"{', '.join(listed)}."
        ),
        "picture": cells,
        "tiles": [[name(int(neuron)) if neuron >= 0 else "" for neuron in row] for row in places],
        "height": shape.height,
        "width": shape.width,
        "aspect": f"{picture.shape[1]} / {picture.shape[0]}",
    }


def _along(history: History) -> list[dict[str, Any]]:
    """What a recurrent network computes along a sequence, as pictures."""
    if history.along is None:
        return []
    words, parts = history.along
    return [_rows(part, words) for part in parts]


def _rows(part: Rows, words: str) -> dict[str, Any]:
    values = part.values.astype(np.float64)
    size = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    return {
        "title": part.title,
        "names": part.names,
        "values": [[float(f"{v:.4g}") if np.isfinite(v) else None for v in row] for row in values.tolist()],
        "limit": size or 1.0,
        "height": f"{min(36, 7 + 1.2 * len(part.names)):g}rem",
        "summary": f"{words}; {len(part.names)} rows, the largest size is {size:.4g}.",
    }


def _facts(history: History, frame: dict[str, Any]) -> list[tuple[str, str]]:
    """The main figures, for the top of the page."""
    facts, merit = [], history.figure_names[1]
    value, seconds = history.promised(merit), history.promised(history.time_name)
    if value is not None:
        text = f"{value:.2%}" if history.task == "classification" else f"{value:.4g}"
        facts.append((merit.replace("_", " "), text))
    facts += [
        ("edges", f"{frame['edges']:,}"),
        ("density", f"{frame['density']:.2%}"),
        ("depth", f"{frame['depth']:,}"),
        ("live neurons", f"{frame['live']:,} of {history.manifold.n_neurons:,}"),
        ("steps", f"{frame['step']:,}"),
    ]
    if seconds is not None:
        facts.append((f"time ({history.describe_time()})", f"{_number(1e6 * seconds)} µs"))
    if history.cut is not None:
        facts.append(("validation before and after the cut to the budget", history.cut))
    training = history.promised("train_seconds")
    if training is not None:
        facts.append(("training, wall", f"{training:.1f} s"))
    return facts


def _table(history: History) -> tuple[list[str], list[list[str]]]:
    """Names and rows of the metrics, at most MOST_ROWS of them."""
    names = list(history.metrics)
    lines = spread(list(zip(*history.metrics.values(), strict=True)), MOST_ROWS)
    rows = [["" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.5g}" for v in line] for line in lines]
    return [name.replace("_", " ") for name in names], rows


def _text(name: str) -> str:
    return (resources.files("sparse_dnm") / "report" / "assets" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
