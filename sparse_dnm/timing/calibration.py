"""Calibration: a cost model of this machine, fitted to structures derived from a network, and judged on others."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_dnm.engine.base import Engine, Neurons
from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.device import ACTIVATION_CODES
from sparse_dnm.engine.topology import Topology
from sparse_dnm.io import UNFIT, check_seal, read_json
from sparse_dnm.timing.clock import FINEST, Clock
from sparse_dnm.timing.cost_model import BACKWARD, EARLIER, FEATURES, CostModel, Quality
from sparse_dnm.timing.pace import Pace, Steady, pace_of
from sparse_dnm.timing.probes import (
    ON_TARGET,
    Settings,
    Times,
    edge_values,
    features_of,
    time_steps,
    topology_dtype,
    watch_of,
)
from sparse_dnm.timing.quiet import Quiet
from sparse_dnm.timing.structures import probes
from sparse_dnm.timing.typical import typical
from sparse_dnm.wording import words

CURVED_KINDS = [ACTIVATION_CODES[name][0] for name in ("sigmoid", "tanh", "silu")]
NARROW = 0.03  # of a network's time: the uncertainty (see there) at which a calibration ends
HALVES = 8
ASKED = 4
MAX_NOISE = 0.05  # relative spread of repeats; above it a fit is doubtful
LOOKS = 2  # at each step before its clock is chosen
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
    drift: float  # spread of the reference, see pace.Conditions
    cpu_share: float
    counts: Floats = field(repr=False)  # the fitted structures come first
    seconds: Floats = field(repr=False)  # medians, of the quiet machine
    asked_clock: str = ""  # the clock that was asked for, where it was not fit, and why; else empty
    why_not: str = ""
    raw_seconds: Floats | None = field(default=None, repr=False)  # medians, as the clock showed them
    pace: dict[str, Any] = field(default_factory=dict, repr=False)  # see `_about`; empty in old profiles
    notes: tuple[str, ...] = field(default=(), repr=False)  # about the pace, as lines
    rounds: int = 0  # in which all structures were measured; 0 in old profiles
    uncertainty: float = math.nan  # see there; nan in old profiles

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
        if self.settings.unrolling is None:
            del settings["unrolling"]
        return {
            "format": FORMAT,
            "version": VERSION,
            "seconds_per": dict(zip(names, self.model.coefficients, strict=True)),
            "settings": {name: value for name, value in settings.items() if name not in ("only", "unit", "limit")},
            "held_out": {name: None if math.isnan(value) else value for name, value in asdict(self.held_out).items()},
            "noise": self.noise,
            "rejected": self.rejected,
            "drift": self.drift,
            "cpu_share": self.cpu_share,
            **({"asked_clock": self.asked_clock, "why_not": self.why_not} if self.asked_clock else {}),
            "counts": self.counts.tolist(),
            "seconds": self.seconds.tolist(),
            **({} if self.raw_seconds is None else {"raw_seconds": self.raw_seconds.tolist()}),
            **({"pace": self.pace} if self.pace else {}),
            **({"rounds": self.rounds} if self.rounds else {}),
            **({"uncertainty": self.uncertainty} if math.isfinite(self.uncertainty) else {}),
        }

    @property
    def unit(self) -> Quiet | None:
        """Seconds of the reference that all seconds are relative to; None where there was none."""
        return Quiet(self.pace["quiet_seconds"], self.pace["quiet_date"]) if self.pace else None

    def of_unit(self, unit: Quiet) -> Calibration:
        """With seconds relative to another unit: that of another machine, or a later one of this machine."""
        assert self.unit is not None
        factor = unit.seconds / self.unit.seconds
        model = replace(self.model, coefficients=tuple(factor * c for c in self.model.coefficients))
        pace = {**self.pace, "quiet_seconds": unit.seconds, "quiet_date": unit.date}
        return replace(self, model=model, seconds=factor * self.seconds, pace=pace)


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
        priced = tuple(values["seconds_per"])
        if priced in EARLIER.get(settings.priced, ()):
            raise ValueError(
                f"an earlier version wrote it, which did not price {', '.join(sorted(set(names) - set(priced)))}"
            )
        if priced != names:
            raise ValueError(f"it prices {', '.join(priced)}, not {', '.join(names)}")
        model = CostModel(settings.priced, tuple(map(float, values["seconds_per"].values())))
        counts, seconds = np.array(values["counts"], float), np.array(values["seconds"], float)
        if counts.shape != (len(seconds), len(model.coefficients)) or not (seconds > 0).all():
            raise ValueError(f"counts of shape {counts.shape} do not fit {len(seconds)} times > 0")
        if not (np.isfinite(counts).all() and np.isfinite(seconds).all()):
            raise ValueError("a count or a time is not finite")
        if not all(math.isfinite(c) and c >= 0 for c in model.coefficients):
            raise ValueError("a price is negative or not finite")
        about = {name: values[name] for name in ("noise", "rejected", "drift", "cpu_share")}
        about |= {name: str(values.get(name, "")) for name in ("asked_clock", "why_not")}
        about |= {"rounds": int(values.get("rounds", 0)), "uncertainty": float(values.get("uncertainty", math.nan))}
        if "pace" in values:
            about |= {"pace": checked_pace(values["pace"]), "raw_seconds": np.array(values["raw_seconds"], float)}
        judged: dict[str, Any] = {name: math.nan if v is None else v for name, v in values["held_out"].items()}
        held_out = Quality(**judged)
        check_seal(values)
        return Calibration(model, settings, settings.threads, held_out, **about, counts=counts, seconds=seconds)
    except UNFIT as error:
        raise ValueError(
            f"{path} is a damaged or an old profile: {error}; write it again with sparse-dnm calibrate --out {path}"
        ) from None


def calibrate(
    structure: Any, engine: Engine, x: Any, settings: Settings, on_round: Callable[[], None] = lambda: None
) -> Calibration:
    """Fit a cost model to probes derived from a network's ``structure``, and judge it on half as many others.

    ``engine`` runs them on the batch x.  A clock that is too coarse for the shortest of them, or that does not count
    the time of several threads as it passes, is replaced by FINEST.  Raises ValueError if that is too coarse as well.
    """
    rng = np.random.default_rng(settings.seed)
    n_held = settings.probes // 2
    families = settings.unrolling is None or settings.unrolling.n_memory == 0  # else a memory would have to fit them
    cuts = probes(structure.topology, settings.probes + n_held, rng, settings.executor, families)
    dtype, own = topology_dtype(structure), structure.host.neurons
    neurons = functools.partial(_neurons_like, engine, own)
    structures = [
        engine.given(part, structure.neurons if part.n_neurons == len(own.kind) else neurons(part)) for part in cuts
    ]
    watches = []
    for part, made in zip(cuts, structures, strict=True):
        values = torch.from_numpy(edge_values(part, dtype)).to(engine.device)
        watches.append(watch_of(engine, made, engine.array(values), x, settings.mode == "train", settings.unrolling))
    settings = replace(settings, curved=float(np.isin(own.kind, CURVED_KINDS).mean()))
    asked, why_not = settings.clock, ""
    if settings.device == "cpu":
        settings, why_not = fit_clock(settings, engine.executor.threads)
        settings, coarse = fine_clock(settings, watches)
        why_not = why_not or coarse
    pace = pace_of(engine, settings, dtype)
    counts = np.stack([features_of(engine, made, settings) for made in structures])
    whole = features_of(engine, structure, settings)
    known = functools.partial(_known, settings, counts, whole)
    times = time_steps(watches, settings, on_round, pace, known)
    if settings.device == "cpu":  # the stopwatch of CUDA checks this itself
        together = np.array([watch.steps for watch in watches])
        Clock.of(settings.clock).check(float((np.median(times.raw, axis=1) * together).min()))
    seconds = np.median(times.seconds, axis=1)
    judged = fit(settings, counts[:-n_held], seconds[:-n_held])
    held_out = Quality.of(judged.seconds(counts[-n_held:]), seconds[-n_held:])
    model = fit(settings, counts, seconds)
    low, high = np.quantile(times.seconds, [0.25, 0.75], axis=1)
    noise = statistics.median(((high - low) / 2 / seconds).tolist())
    about = noise, times.rejected, times.conditions.spread, times.conditions.cpu_share
    replaced = (asked, why_not) if why_not else ("", "")
    raw, notes = np.median(times.raw, axis=1), tuple(pace.describe())
    about_pace = _about(pace, times)
    return Calibration(
        *(model, settings, engine.executor.threads, held_out, *about, counts, seconds, *replaced),
        *(raw, about_pace, notes, times.seconds.shape[1], uncertainty(settings, counts, whole, times.seconds)),
    )


def fine_clock(settings: Settings, watches: Sequence[Stopwatch]) -> tuple[Settings, str]:
    """The settings with a clock that is fine enough for the shortest of some measurements; why not that of before, or
    nothing.  Raises ValueError if FINEST is too coarse as well."""
    clock, finest = Clock.of(settings.clock), Clock.of(FINEST)
    shortest = min(watch.warm(finest) * watch.steps for watch in watches for _ in range(LOOKS))
    if clock.fits(shortest):
        return settings, ""
    finest.check(shortest)
    why_not = f"has steps of {1e6 * clock.resolution:.3g} µs, too coarse for {1e6 * shortest:.3g} µs"
    return replace(settings, clock=FINEST), why_not


def _neurons_like(engine: Engine, own: Neurons, graph: Topology) -> Neurons:
    """Neurons for a graph of another size, with the activation that most of a network's ``own`` have."""
    n, kinds = graph.n_neurons, np.unique(own.kind, return_counts=True)
    kind = kinds[0][np.argmax(kinds[1])]
    slope = own.slope[np.argmax(own.kind == kind)]
    linear = n - len(graph.outputs) if own.first_linear < len(own.kind) else n
    return engine.neurons(np.full(n, kind, np.int8), np.full(n, slope, own.slope.dtype), linear, np.arange(n))


def fit(settings: Settings, counts: Floats, seconds: Floats) -> CostModel:
    """The cost model of these measurements, held by what is typical of the executor."""
    guess = typical(settings.priced, settings.mode, settings.batch, settings.curved)
    return CostModel.fit(settings.priced, counts, seconds, priced(settings), guess)


def priced(settings: Settings) -> tuple[str, ...]:
    """The features that the steps of some settings pay for."""
    return tuple(name for name in settings.only if settings.mode == "train" or name not in BACKWARD)


def uncertainty(settings: Settings, counts: Floats, whole: Floats, seconds: Floats) -> float:
    """How far what a whole network costs, by feature, may be off: the largest 95 % half-width, as a share of its time.

    ``seconds`` (structures, rounds), in any unit.  Fits to two halves of the rounds, drawn HALVES times, differ twice
    as much from each other as one to all of them from the truth.
    """
    rng, count = np.random.default_rng(0), seconds.shape[1]
    if count < 4:
        return 0.0 if np.ptp(seconds, axis=1).max(initial=0.0) <= 1e-9 * seconds.max() else math.inf
    found = []
    for _ in range(HALVES):
        order = rng.permutation(count)
        parts = order[: count // 2], order[count // 2 : 2 * (count // 2)]
        a, b = (np.array(fit(settings, counts, np.median(seconds[:, k], axis=1)).coefficients) * whole for k in parts)
        found.append(2 * np.abs(a - b) / (a.sum() + b.sum()))
    return float(1.96 * np.sqrt(np.mean(np.square(found), axis=0)).max() / 2)


def _known(settings: Settings, counts: Floats, whole: Floats, seconds: Floats) -> bool:
    """The prices are known well enough; asked at every ASKED-th round, since it takes as long as a round."""
    rounds = seconds.shape[1]
    if rounds % ASKED and rounds > settings.repeats:
        return False
    return uncertainty(settings, counts, whole, seconds) <= NARROW


def _about(pace: Pace | Steady, times: Times) -> dict[str, Any]:
    """The pace of a calibration as JSON values: the unit of its seconds, the conditions, and whose it is."""
    if isinstance(pace, Steady):
        return {}
    assert pace.unit is not None
    found = times.conditions
    return {
        "quiet_seconds": pace.unit.seconds,
        "quiet_date": pace.unit.date,
        "reference_seconds": found.reference,
        "quiet": found.quiet,
        "others": found.others,
        "key": pace.key,
    }


def checked_pace(values: dict[str, Any]) -> dict[str, Any]:
    """The pace in a profile.  Raises ValueError, KeyError or TypeError where it is damaged."""
    for name in ("quiet_seconds", "reference_seconds"):
        if not (math.isfinite(values[name]) and values[name] > 0):
            raise ValueError(f"{name}={values[name]!r} must be a finite number > 0")
    if not (isinstance(values["quiet_date"], str) and isinstance(values["key"], dict)):
        raise ValueError("its pace has no date or no machine")
    return values


def adopt(profile: Calibration, pace: Pace) -> tuple[Calibration, tuple[str, ...]]:
    """The profile in seconds of this machine's unit, which ``pace`` gets; and how the paces differ, as lines.

    Without a quiet reference the unit is that of a profile of this machine, else some references now.
    """
    theirs = profile.unit
    if theirs is None:
        pace.settle_now()
        return profile, ()
    same, known = profile.pace["key"] == pace.key, pace.known()
    if same and (known is None or known.seconds == theirs.seconds):
        pace.unit = theirs
        return profile, ()
    ours = pace.settle_now()
    if same:
        return profile.of_unit(ours), ()
    what = "quiet reference" if theirs.date else "reference, on a machine that was not quiet,"
    here = f"that of this one {1e6 * ours.seconds:.4g}" + (f" ({ours.date})" if ours.date else ", as it is now")
    return profile.of_unit(ours), (
        f"pace: the profile is of another machine or version ({profile.pace['key'].get('processor')}): its {what} "
        f"takes {1e6 * theirs.seconds:.4g} µs, {here}: its seconds are multiplied by "
        f"{ours.seconds / theirs.seconds:.3g}",
    )


def check_profile(profile: Calibration, wanted: Settings) -> None:
    """Raise ValueError unless ``profile`` was measured with these settings."""
    asked_as_well = profile.asked_clock and wanted.clock == profile.asked_clock
    clock = wanted.clock if asked_as_well else profile.settings.clock
    had = replace(profile.settings, threads=profile.threads, clock=clock)
    names = ("executor", "mode", "batch", "threads", "clock", "device", "unrolling")
    differ = [f"{'sequence' if name == 'unrolling' else name} is {getattr(had, name)} in it, {getattr(wanted, name)} "
              "here" for name in names if getattr(had, name) != getattr(wanted, name)]  # fmt: skip
    if differ:
        raise ValueError(
            f"the profile is of something else ({'; '.join(differ)}); write one with sparse-dnm calibrate and the "
            "same executor, mode, batch size, threads, clock, device and time steps"
        )


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
        f"{what}, batch {s.batch}, executor {s.executor}, {where}, clock {s.clock}, median of {c.rounds or s.repeats}",
        *([] if s.unrolling is None else [f"of sequences: {s.unrolling}"]),
        *(f"  {1e9 * value:10.3f} ns per {name}" for name, value in costs),
        f"on {q.n} other structures, {1e6 * c.seconds.min():.1f} to {1e6 * c.seconds.max():.1f} µs: R² {q.r2:.4f}, "
        f"mean error {q.mape:.1%}, {q.within_10:.0%} within 10 %, rank correlation {q.spearman:.3f}",
        f"noise: {c.noise:.1%} of a repeat, corrected by the reference; {c.rejected} repeats measured again; the "
        f"machine's pace changed by {c.drift - 1:.0%}"
        + ("" if s.executor == ON_TARGET else f"; {c.cpu_share:.2f} CPU seconds a wall second"),
        *([] if math.isnan(c.uncertainty) else [f"prices are known to {c.uncertainty:.1%} of the network's time"]),
        *c.notes,
        *doubts(calibration),
    ]


def doubts(calibration: Calibration) -> list[str]:
    """Warnings, as lines: noise, clocks that differ, a model that does not fit."""
    c, s, q = calibration, calibration.settings, calibration.held_out
    lines = []
    if c.noise > MAX_NOISE:
        lines.append(
            f"warning: repeats spread by {c.noise:.1%}, more than {MAX_NOISE:.0%}: keep the machine quiet, or take "
            f"more {words().name('repeats')} or another {words().name('clock')}"
        )
    if c.uncertainty > NARROW and s.executor == ON_TARGET:
        lines.append(
            f"warning: prices are known to {c.uncertainty:.1%} of the network's time only, not to {NARROW:.0%}, after "
            f"{c.rounds} rounds: keep the target quiet, or take more {words().name('repeats')}"
        )
    elif c.uncertainty > NARROW:
        lines.append(
            f"warning: prices are known to {c.uncertainty:.1%} of the network's time only, not to {NARROW:.0%}, after "
            f"{c.rounds} rounds in {s.limit:g} CPU seconds at most: keep the machine quiet, or give a "
            f"{words().name('profile')} of sparse-dnm calibrate, which takes longer"
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
