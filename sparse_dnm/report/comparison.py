"""What `sparse-dnm compare` writes: compare.json, compare.md and two figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sparse_dnm.io import write_atomic, write_json
from sparse_dnm.study.compare import FLAT, Result, Snapshot, Verdict, medians
from sparse_dnm.timing.calibration import Settings

# Okabe & Ito (2008): told apart with any colour vision; markers tell the same again.
STYLES = {"none": ("#000000", "X"), "proxy-flat": ("#E69F00", "^"), "proxy": ("#D55E00", "s"), "time": ("#0072B2", "o")}
SPARSE, DENSE = ("#0072B2", "o"), ("#D55E00", "v")


def write(
    out: Path, title: str, task: str, about: dict[str, Any], timing: Settings, results: Sequence[Result],
    verdicts: Sequence[Verdict], snapshots: Sequence[Snapshot],
) -> list[Path]:  # fmt: skip
    """Write all files into ``out``; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    caption = describe(about, timing)
    charts = {"pareto": pareto(results, task, title, caption)}
    if snapshots:
        charts["along"] = density_figure(snapshots, f"{title}: time of a step along training", caption)
    values = {
        "title": title,
        "task": task,
        **about,
        "timing": {name: value for name, value in asdict(timing).items() if name != "only"},
        "results": [asdict(r) for r in results],
        "verdicts": [asdict(v) for v in verdicts],
        "along": [asdict(s) for s in snapshots],
    }
    lines = [f"# {title}", "", f"{caption}.", "", *table(results, task), ""]
    lines += [f"- {line}" for v in verdicts for line in sentences(v)]
    lines += ["", "![Pareto figure](pareto.svg)", ""]
    if snapshots:
        lines += ["## Time against density along training", "", *along_table(snapshots), "", "![along](along.svg)", ""]
    written = [out / "compare.json", out / "compare.md"]
    write_json(written[0], values)
    write_atomic(written[1], "\n".join(lines).encode())
    for name, chart in charts.items():
        for suffix in ("png", "svg"):
            written.append(out / f"{name}.{suffix}")
            with matplotlib.rc_context({"svg.hashsalt": name}):
                chart.savefig(written[-1], dpi=150)
    return written


def describe(about: dict[str, Any], timing: Settings) -> str:
    """Machine, and how the networks were timed, in one line."""
    machine = about["machine"]
    what = "forward + backward" if timing.mode == "train" else "forward"
    where = f"{timing.threads or 'all'} threads" if timing.device == "cpu" else f"device {timing.device}"
    return (
        f"{machine['processor']}, {machine['cores']} cores; {what}, batch {timing.batch}, executor {timing.executor}, "
        f"{where}, clock {timing.clock}, float32"
    )


def table(results: Sequence[Result], task: str) -> list[str]:
    """Median (smallest to largest over the seeds) of every term and factor."""
    name = "test accuracy" if task == "classification" else "test MSE"
    lines = [
        f"| speed term | coefficient, x the recipe's | seeds | {name} | edges | depth | live neurons | step, µs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in medians(results):
        cells = [row["term"], "" if row["term"] in FLAT else f"{row['factor']:g}", str(row["seeds"])]
        cells.append(_span(row["figure"], "{:.4f}" if task == "classification" else "{:.2e}"))
        cells += [_span(row[key], "{:,.0f}") for key in ("edges", "depth", "live")]
        cells.append(_span(tuple(1e6 * t for t in row["seconds"]), "{:.4g}"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


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
    """Microseconds of both engines at every density."""
    lines = ["| step | edges | density | sparse, µs | dense, µs | dense / sparse |", "|---|---|---|---|---|---|"]
    for s in snapshots:
        times = [f"{1e6 * t.median:,.4g} ({1e6 * t.low:,.4g} to {1e6 * t.high:,.4g})" for t in (s.sparse, s.dense)]
        ratio = s.dense.median / s.sparse.median
        lines.append(f"| {s.step:,} | {s.edges:,} | {s.density:.2%} | {times[0]} | {times[1]} | {ratio:.1f} |")
    return lines


def pareto(results: Sequence[Result], task: str, title: str, caption: str) -> Figure:
    """Figure of merit against measured time: a mark per network, a line through each term's medians."""
    chart = Figure(figsize=(7.2, 4.8), layout="constrained")
    axis = chart.subplots()
    for term in dict.fromkeys(r.term for r in results):
        colour, marker = STYLES[term]
        chosen = [r for r in results if r.term == term]
        axis.scatter(
            [1e6 * r.seconds for r in chosen], [r.figure for r in chosen], color=colour, marker=marker, s=18, alpha=0.4,
            linewidths=0,
        )  # fmt: skip
        rows = [row for row in medians(results) if row["term"] == term]
        axis.plot(
            [1e6 * row["seconds"][0] for row in rows], [row["figure"][0] for row in rows], color=colour,
            marker=marker, markersize=7, label=term,
        )  # fmt: skip
    axis.set(xscale="log", xlabel="measured time of a step (µs)", title=title)
    axis.set_ylabel("test accuracy" if task == "classification" else "test MSE")
    if task != "classification":
        axis.set_yscale("log")
        axis.invert_yaxis()
    axis.grid(True, which="both", alpha=0.3)
    axis.legend(title="speed term; large: medians over seeds", fontsize=8, title_fontsize=8)
    chart.supxlabel(caption, fontsize=7)
    return chart


def density_figure(snapshots: Sequence[Snapshot], title: str, caption: str) -> Figure:
    """Time of a training step against density, sparse and dense: the original's own figure."""
    chart = Figure(figsize=(7.2, 4.8), layout="constrained")
    axis = chart.subplots()
    for name, (colour, marker) in (("sparse", SPARSE), ("dense", DENSE)):
        times = [getattr(s, name) for s in snapshots]
        middle = [1e6 * t.median for t in times]
        spread = [
            [m - 1e6 * t.low for m, t in zip(middle, times, strict=True)],
            [1e6 * t.high - m for m, t in zip(middle, times, strict=True)],
        ]
        label = {"sparse": "DynamicManifold", "dense": "DenseManifold"}[name]
        axis.errorbar(
            [s.density for s in snapshots], middle, yerr=spread, color=colour, marker=marker, linestyle="", capsize=3,
            label=label,
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="density (active / possible edges)", title=title)
    axis.set_ylabel("forward + backward of a batch (µs, wall), median and quartiles")
    axis.grid(True, which="both", alpha=0.3)
    axis.legend()
    chart.supxlabel(caption, fontsize=7)
    return chart
