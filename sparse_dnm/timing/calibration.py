"""Calibration: a cost model of this machine, fitted to structures derived from a network, and judged on others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.io import read_json
from sparse_dnm.timing.clock import FINEST, Clock
from sparse_dnm.timing.cost_model import FEATURES, CostModel, Quality
from sparse_dnm.timing.probes import Settings, edge_values, probes, time_steps, topology_dtype

MAX_NOISE = 0.05  # relative spread of repeats; above it a fit is doubtful
MIN_CPU_SHARE = 0.9  # CPU over wall seconds; below it the process was often preempted


@dataclass(frozen=True)
class Calibration:
    """A cost model of this machine, and its quality."""

    model: CostModel
    settings: Settings
    threads: int
    held_out: Quality
    noise: float  # median over structures of half the interquartile range of their repeats, relative
    rejected: int  # measurements made again
    drift: float  # see Times
    cpu_share: float
    counts: Floats = field(repr=False)  # the fitted structures come first
    seconds: Floats = field(repr=False)  # medians
    asked_clock: str = ""  # the clock that was asked for, where it was not fit, and why; else empty
    why_not: str = ""

    @property
    def n_fitted(self) -> int:
        """Structures that the model was fitted to."""
        return len(self.seconds) - self.held_out.n

    def as_dict(self) -> dict[str, Any]:
        """The contents of a profile as JSON values: seconds per feature, the data of the fit, and its quality."""
        names = FEATURES[self.settings.priced]
        settings = {**asdict(self.settings), "threads": self.threads}
        if self.settings.device == "cpu":
            del settings["device"]  # as in profiles from before this setting existed
        return {
            "format": FORMAT,
            "version": VERSION,
            "seconds_per": dict(zip(names, self.model.coefficients, strict=True)),
            "settings": {name: value for name, value in settings.items() if name != "only"},
            "held_out": {name: None if math.isnan(value) else value for name, value in asdict(self.held_out).items()},
            "noise": self.noise,
            "rejected": self.rejected,
            "drift": self.drift,
            "cpu_share": self.cpu_share,
            **({"asked_clock": self.asked_clock, "why_not": self.why_not} if self.asked_clock else {}),
            "counts": self.counts.tolist(),
            "seconds": self.seconds.tolist(),
        }


FORMAT = "sparse-dnm profile"
VERSION = 1


def read_profile(path: Path) -> Calibration:
    """The calibration in a file that `sparse-dnm calibrate` wrote.

    Raises ValueError naming the file and what is wrong: not a profile, another version, or damaged.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"profile {path} is no file; give one that sparse-dnm calibrate wrote")
    if not path.exists():
        raise ValueError(f"profile {path} does not exist; write one with: sparse-dnm calibrate --out {path}")
    values = read_json(path)
    found = values.get("format"), values.get("version")
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{path} is of format {found[0]!r} version {found[1]}, not {FORMAT!r} version {VERSION}; write one with "
            "sparse-dnm calibrate"
        )
    try:
        settings = Settings(**values["settings"])
        names = FEATURES[settings.priced]
        if list(values["seconds_per"]) != list(names):
            raise ValueError(f"it prices {', '.join(values['seconds_per'])}, not {', '.join(names)}")
        model = CostModel(settings.priced, tuple(map(float, values["seconds_per"].values())))
        counts, seconds = np.array(values["counts"], float), np.array(values["seconds"], float)
        if counts.shape != (len(seconds), len(model.coefficients)) or not (seconds > 0).all():
            raise ValueError(f"counts of shape {counts.shape} do not fit {len(seconds)} times > 0")
        if not all(math.isfinite(c) and c >= 0 for c in model.coefficients):
            raise ValueError("a price is negative or not finite")
        about = {name: values[name] for name in ("noise", "rejected", "drift", "cpu_share")}
        about |= {name: str(values.get(name, "")) for name in ("asked_clock", "why_not")}
        judged: dict[str, Any] = {name: math.nan if v is None else v for name, v in values["held_out"].items()}
        held_out = Quality(**judged)
        return Calibration(model, settings, settings.threads, held_out, **about, counts=counts, seconds=seconds)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged profile: {error}; write it again with sparse-dnm calibrate") from None


def calibrate(
    structure: Any, engine: Engine, x: Any, settings: Settings, on_round: Callable[[], None] = lambda: None
) -> Calibration:
    """Fit a cost model to probes derived from a network's ``structure``, and judge it on half as many others.

    ``engine`` runs them on the batch x.  A clock that is too coarse for the shortest of them, or that does not count
    the time of several threads as it passes, is replaced by FINEST.  Raises ValueError if that is too coarse as well.
    """
    rng = np.random.default_rng(settings.seed)
    n_held = settings.probes // 2
    cuts = probes(structure.topology, settings.probes + n_held, rng, settings.executor)
    dtype = topology_dtype(structure)
    structures = [engine.given(part, structure.neurons) for part in cuts]
    watches = []
    for part, made in zip(cuts, structures, strict=True):
        values = torch.from_numpy(edge_values(part, dtype)).to(engine.device)
        watches.append(engine.stopwatch(made, engine.array(values), x, settings.mode == "train"))
    asked, why_not = settings.clock, ""
    if settings.device == "cpu":
        settings, why_not = fit_clock(settings, engine.executor.threads)
    times = time_steps(watches, settings, on_round)
    seconds = np.median(times.seconds, axis=1)
    if settings.device == "cpu":  # the stopwatch of CUDA checks this itself
        clock, shortest = Clock.of(settings.clock), float(seconds.min())
        if settings.clock != FINEST and not clock.fits(shortest):
            settings = replace(settings, clock=FINEST)
            times = time_steps(watches, settings, on_round)
            seconds = np.median(times.seconds, axis=1)
            shortest = float(seconds.min())
            why_not = f"has steps of {1e6 * clock.resolution:.3g} µs, too coarse for {1e6 * shortest:.3g} µs"
        Clock.of(settings.clock).check(shortest)
    counts = np.stack([engine.features(made, settings.executor) for made in structures])
    model = CostModel.fit(settings.priced, counts[:-n_held], seconds[:-n_held], settings.only)
    held_out = Quality.of(model.seconds(counts[-n_held:]), seconds[-n_held:])
    low, high = np.quantile(times.seconds, [0.25, 0.75], axis=1)
    noise = statistics.median(((high - low) / 2 / seconds).tolist())
    about = noise, times.rejected, times.drift, times.cpu_share
    replaced = (asked, why_not) if why_not else ("", "")
    return Calibration(model, settings, engine.executor.threads, held_out, *about, counts, seconds, *replaced)


def fit_clock(settings: Settings, threads: int) -> tuple[Settings, str]:
    """The settings with a clock that measures what passes while ``threads`` run; why not that of before, or nothing."""
    counts = {"process_time": f"adds up the seconds of all {threads} threads, also while they wait for each other",
              "thread_time": f"counts one of the {threads} threads"}  # fmt: skip
    if threads == 1 or settings.clock not in counts:
        return settings, ""
    return replace(settings, clock=FINEST), counts[settings.clock]


def describe(calibration: Calibration) -> list[str]:
    """The calibration in words, as lines; warnings come last."""
    c, s, q = calibration, calibration.settings, calibration.held_out
    what = "forward + backward" if s.mode == "train" else "forward"
    where = f"{c.threads} threads" if s.device == "cpu" else f"device {s.device}"
    costs = zip(FEATURES[s.priced], c.model.coefficients, strict=True)
    lines = [f"clock {c.asked_clock} {c.why_not}: {s.clock} is used instead"] if c.asked_clock else []
    return [
        *lines,
        f"{what}, batch {s.batch}, executor {s.executor}, {where}, clock {s.clock}, median of {s.repeats}",
        *(f"  {1e9 * value:10.3f} ns per {name}" for name, value in costs),
        f"on {q.n} other structures, {1e6 * c.seconds.min():.1f} to {1e6 * c.seconds.max():.1f} µs: R² {q.r2:.4f}, "
        f"mean error {q.mape:.1%}, {q.within_10:.0%} within 10 %, rank correlation {q.spearman:.3f}",
        f"noise: {c.noise:.1%} of a repeat; {c.rejected} repeats measured again; the machine's pace changed by "
        f"{c.drift - 1:.0%}; {c.cpu_share:.2f} CPU seconds a wall second",
        *doubts(calibration),
    ]


def doubts(calibration: Calibration) -> list[str]:
    """Warnings, as lines: noise, clocks that differ, a model that does not fit."""
    c, s, q = calibration, calibration.settings, calibration.held_out
    lines = []
    if c.noise > MAX_NOISE:
        lines.append(
            f"warning: repeats spread by {c.noise:.1%}, more than {MAX_NOISE:.0%}: keep the machine quiet, or take "
            "more --repeats or another --clock"
        )
    if s.device != "cpu":
        pass  # clocks of the CPU are not used
    elif c.cpu_share < MIN_CPU_SHARE:
        lines.append(
            f"warning: the process had the processor for {c.cpu_share:.0%} of the wall time: process_time and "
            "perf_counter differ; keep the machine quiet"
        )
    if math.isnan(q.r2) or q.r2 < 0.9:
        lines.append(f"warning: the model does not fit (R² {q.r2:.3f}): do not steer training by it")
    return lines
