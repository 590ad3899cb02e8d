"""The files of `sparse-dnm bench`: bench.json, bench.md and one figure per sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from sparse_dnm.io import write_atomic, write_json
from sparse_dnm.report import style
from sparse_dnm.study.sweeps import Sweep

BUSY = 0.3  # load per core; above it figures are doubtful


def write(out: Path, results: dict[str, Any]) -> list[Path]:
    """Write all files into ``out``, which is created if missing; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "bench.json", as_json(results))
    write_atomic(out / "bench.md", markdown(results).encode())
    charts = {name: figure(sweep, caption(results)) for name, sweep in results["sweeps"].items()}
    return [out / "bench.json", out / "bench.md", *style.save_all(charts, out)]


def as_json(results: dict[str, Any]) -> dict[str, Any]:
    """Results as JSON values, times in seconds."""
    sweeps = {
        name: [
            {
                "x": point.x,
                "panel": point.panel,
                **point.about,
                "seconds": {series: timing.as_dict() for series, timing in point.timings.items()},
            }
            for point in sweep.points
        ]
        for name, sweep in results["sweeps"].items()
    }
    return {**results, "sweeps": sweeps}


def caption(results: dict[str, Any]) -> str:
    """Machine, threads and clock in one line."""
    about = results["machine"]
    return (
        f"{about['processor']}, {about['cores']} cores; {results['threads']} threads; float32; "
        f"clock {results['clock']} (wall)"
    )


def warnings(results: dict[str, Any]) -> list[str]:
    """Warnings: the machine was busy when the measurement began."""
    busy = results["load_before"]
    if busy is None or busy < BUSY:
        return []
    return [
        f"warning: other processes were running ({busy:.0%} load per core before the start): times are too long, those "
        "on several threads above all, and the crossover is unreliable; repeat this on a quiet machine"
    ]


def microseconds(timing: Any) -> str:
    """Median (quartiles) in microseconds."""
    return " ".join(f"{1e6 * timing.median:,.4g} ({1e6 * timing.low:,.4g}–{1e6 * timing.high:,.4g})".split())


def markdown(results: dict[str, Any]) -> str:
    """All sweeps as tables, with the crossovers."""
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = ["# sparse-dnm bench", "", f"{caption(results)}.", "", f"{packages}.", ""]
    lines += [line for warning in warnings(results) for line in (f"**{warning}**", "")]
    lines += ["Microseconds: median (first to third quartile) of interleaved calls.", ""]
    for name, sweep in results["sweeps"].items():
        series = list(sweep.points[0].timings)
        lines += [f"## {sweep.title}", "", f"![{sweep.title}]({name}.svg)", ""]
        lines += [f"| | {sweep.x_label} | edges | {' | '.join(series)} |", "|" + "---|" * (len(series) + 3)]
        for point in sweep.points:
            cells = [point.panel, f"{point.x:,g}" if name != "density" else f"{point.x:.3g}"]
            cells += [f"{point.about['edges']:,}", *(microseconds(point.timings[s]) for s in series)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        if name == "density":
            lines += [*crossover_lines(results["crossover"]), ""]
    return "\n".join(lines)


def crossover_lines(crossover: dict[str, dict[str, float | None]]) -> list[str]:
    """One sentence per size and pass: the density below which the sparse network is faster."""
    lines = []
    for panel, steps in crossover.items():
        for step, density in steps.items():
            what = "sparse is faster at every density measured" if density is None else ""
            if density is not None:
                what = f"sparse is faster below {density:.2%} density" if density else "dense is faster throughout"
            lines.append(f"- {panel}, {step}: {what}")
    return lines


def figure(sweep: Sweep, text: str) -> Figure:
    """Time against the swept quantity, logarithmic axes, a panel per size; bars from first to third quartile."""
    panels = list(dict.fromkeys(point.panel for point in sweep.points))
    chart = style.sheet(4.2 * len(panels) + 1.2, 4.4, text)
    axes = chart.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        points = sorted((p for p in sweep.points if p.panel == panel), key=lambda p: p.x)
        for series in points[0].timings:
            colour, marker, line = style.SERIES[series]
            style.draw_timings(
                axis, [p.x for p in points], [p.timings[series] for p in points], label=series, color=colour,
                marker=marker, linestyle=line, markersize=5,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel=sweep.x_label, title=panel)
        if sweep.name in ("threads", "batch"):
            axis.set_xticks([p.x for p in points], [f"{p.x:g}" for p in points])
            axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(True, which="major", alpha=style.GRID_ALPHA)
    axes[0].set_ylabel("time per call (µs), median and quartiles")
    axes[0].legend(fontsize=style.LEGEND_SIZE)
    chart.suptitle(sweep.title)
    return chart
