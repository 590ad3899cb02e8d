"""A comparison as Markdown, printed lines and two figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sparse_dnm.io import write_atomic
from sparse_dnm.report import style
from sparse_dnm.study.compare import Comparison, Snapshot
from sparse_dnm.study.verdict import FLAT, Result, Verdict, medians
from sparse_dnm.timing.probes import Settings

UNITS = {"budget": "µs", "edges": "edges"}  # of a term's goals


def write(out: Path, found: Comparison) -> list[Path]:
    """Write compare.md and the figures into ``out``; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    caption, title = describe(found.about, found.timing, found.executors), style.plain(found.title)
    charts = {"pareto": pareto(found.results, found.task, title, caption)}
    if found.snapshots:
        charts["along"] = density_figure(found.snapshots, f"{title}: time of a step along training", caption)
    write_atomic(out / "compare.md", markdown(found).encode())
    return [out / "compare.md", *style.save_all(charts, out)]


def markdown(found: Comparison) -> str:
    """The whole comparison as a page of Markdown."""
    text = [
        f"# {_escaped(found.title)}",
        "",
        f"{describe(found.about, found.timing, found.executors)}.",
        "",
        *table(found.results, found.task),
        "",
    ]
    text += [f"- {line}" for v in found.verdicts for line in sentences(v)]
    text += ["", "![Pareto figure](pareto.svg)", ""]
    if found.snapshots:
        rows = along_table(found.snapshots)
        text += ["## Time against density along training", "", *rows, "", "![along](along.svg)", ""]
    return "\n".join(text)


def _escaped(name: str) -> str:
    """A name as text in Markdown: no HTML, link or emphasis."""
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", " ".join(name.split()))


def lines(found: Comparison) -> list[str]:
    """The lines that the command prints."""
    tables = (*table(found.results, found.task), "", *along_table(found.snapshots), "")
    verdicts = (line for verdict in found.verdicts for line in sentences(verdict))
    return [describe(found.about, found.timing, found.executors), *tables, *verdicts]


def describe(about: dict[str, Any], timing: Settings, executors: Sequence[str] = ()) -> str:
    """The machine and the timing settings, in one line; with several ``executors``, the fastest for each counts."""
    machine = about["machine"]
    what = "forward + backward" if timing.mode == "train" else "forward"
    where = f"{timing.threads or 'all'} threads" if timing.device == "cpu" else f"device {timing.device}"
    by = f"the fastest executor of {', '.join(executors)}" if len(executors) > 1 else f"executor {timing.executor}"
    if len(executors) == 1:
        by = f"executor {executors[0]}"
    how = f"{what}, batch {timing.batch}, {by}, {where}, clock {timing.clock}, float32"
    return f"{machine['processor']}, {machine['cores']} cores; {how}"


def table(results: Sequence[Result], task: str) -> list[str]:
    """Table of every term and factor: median (smallest to largest over the seeds)."""
    name = "test accuracy" if task == "classification" else "test MSE"
    lines = [
        f"| speed term | coefficient, x the preset's, or goal | seeds | {name} | edges | depth | live neurons | "
        "step, µs | executor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in medians(results):
        cells = [row["term"], _level(row["term"], row["factor"]), str(row["seeds"])]
        cells.append(_span(row["figure"], "{:.4f}" if task == "classification" else "{:.2e}"))
        cells += [_span(row[key], "{:,.0f}") for key in ("edges", "depth", "live")]
        cells.append(_span(tuple(1e6 * t for t in row["seconds"]), "{:.4g}"))
        cells.append(_executors([r.executor for r in results if (r.term, r.factor) == (row["term"], row["factor"])]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _level(term: str, level: float) -> str:
    """A coefficient, or a goal with its unit."""
    if term in UNITS:
        return f"{level:,.12g} {UNITS[term]}"
    return "" if term in FLAT else f"{level:g}"


def _executors(names: Sequence[str]) -> str:
    """The executors that networks were timed with; of several, how many networks each."""
    counts = {name: names.count(name) for name in dict.fromkeys(names) if name}
    return ", ".join(counts) if len(counts) < 2 else ", ".join(f"{name} {n}" for name, n in counts.items())


def _span(values: tuple[float, ...], form: str) -> str:
    middle, low, high = (form.format(v) for v in values)
    return middle if low == high else f"{middle} ({low} to {high})"


def sentences(verdict: Verdict) -> list[str]:
    """The verdict in words, and the ratio of hypervolumes."""
    lines = [verdict.words]
    if verdict.hypervolume is not None:
        v = verdict.hypervolume
        lines.append(
            f"hypervolume of {verdict.term} over {verdict.rival}: {v.value:.3f} (95 % interval {v.low:.3f} to "
            f"{v.high:.3f})"
        )
    return lines


def along_table(snapshots: Sequence[Snapshot]) -> list[str]:
    """Table of microseconds of the sparse and the dense step at every density."""
    lines = ["| step | edges | density | sparse, µs | dense, µs | dense / sparse |", "|---|---|---|---|---|---|"]
    for s in snapshots:
        times = [f"{1e6 * t.median:,.4g} ({1e6 * t.low:,.4g} to {1e6 * t.high:,.4g})" for t in (s.sparse, s.dense)]
        ratio = s.dense.median / s.sparse.median
        lines.append(f"| {s.step:,} | {s.edges:,} | {s.density:.2%} | {times[0]} | {times[1]} | {ratio:.1f} |")
    return lines


def pareto(results: Sequence[Result], task: str, title: str, caption: str) -> Figure:
    """Figure of merit against measured time: a mark per network, a line through each term's medians."""
    chart = style.sheet(7.2, 4.8, caption)
    axis = chart.subplots()
    for term in dict.fromkeys(r.term for r in results):
        colour, marker = style.TERMS[term]
        chosen = [r for r in results if r.term == term]
        axis.scatter(
            [1e6 * r.seconds for r in chosen], [r.figure for r in chosen], color=colour, marker=marker, s=18, alpha=0.4,
            linewidths=0,
        )  # fmt: skip
        rows = [row for row in medians(results) if row["term"] == term]
        if term in UNITS:  # a curve, whatever the order of the goals
            rows.sort(key=lambda row: row["seconds"][0])
        axis.plot(
            [1e6 * row["seconds"][0] for row in rows], [row["figure"][0] for row in rows], color=colour,
            marker=marker, markersize=7, label=term,
        )  # fmt: skip
    axis.set(xscale="log", xlabel="measured time of a step (µs)", title=title)
    axis.set_ylabel("test accuracy" if task == "classification" else "test MSE")
    if task != "classification":
        axis.set_yscale("log")
        axis.invert_yaxis()
    axis.grid(True, which="both", alpha=style.GRID_ALPHA)
    axis.legend(
        title="speed term; large: medians over seeds", fontsize=style.LEGEND_SIZE, title_fontsize=style.LEGEND_SIZE
    )
    return chart


def density_figure(snapshots: Sequence[Snapshot], title: str, caption: str) -> Figure:
    """Time of a training step against density, sparse and dense, as in the paper of 2018."""
    chart = style.sheet(7.2, 4.8, caption)
    axis = chart.subplots()
    for name, label in (("sparse", "DynamicManifold"), ("dense", "DenseManifold")):
        colour, marker = style.ENGINES[name]
        density, times = [s.density for s in snapshots], [getattr(s, name) for s in snapshots]
        style.draw_timings(axis, density, times, color=colour, marker=marker, linestyle="", label=label)
    axis.set(xscale="log", yscale="log", xlabel="density (active / possible edges)", title=title)
    axis.set_ylabel("forward + backward of a batch (µs, wall), median and quartiles")
    axis.grid(True, which="both", alpha=style.GRID_ALPHA)
    axis.legend()
    return chart
