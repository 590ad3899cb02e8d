"""Calibration: a cost model of this machine, fitted to structures cut out of a network, and judged on others."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.config import CLOCKS, CUDA_CLOCK, TIME_MODES, check_choice
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.cpu import Floats, Plan
from sparse_dnm.engine.cuda import Structure, structure_of, walk_down, walk_up
from sparse_dnm.engine.schedule import Executor, Schedule
from sparse_dnm.engine.topology import Topology
from sparse_dnm.io import read_json
from sparse_dnm.timing.clock import Clock, Sentinel, rounds, stolen
from sparse_dnm.timing.cost_model import COUNTS, FEATURES, CostModel, Quality, features

CUTS = ("edges", "neurons", "inputs", "paths", "layers", "sources")
RECIPES = (  # cuts in turn: what a probe is made by
    ("edges",),
    ("neurons", "edges"),
    ("paths", "edges"),
    ("inputs", "neurons"),
    ("sources", "edges"),
    ("sources", "neurons", "edges"),
    ("layers", "edges"),
    ("sources", "inputs", "edges"),
    ("layers", "sources"),
    ("neurons", "paths"),
)
FINE = 100  # steps of the clock that a measurement on CUDA lasts at least
TOGETHER = 64  # steps that it times at most
WARM = 3  # unmeasured calls before a measured one
NOISY = 0.05  # relative spread of repeats from which on a fit is doubtful
DRIFTED = 1.25  # pace of the reference work, over the usual one, from which on a round is measured again
APART = 0.9  # CPU seconds over wall seconds below which the process did not have the processor


def cut(topology: Topology, kind: str, keep: float, rng: np.random.Generator) -> Topology:
    """A part of ``topology`` over the same neurons, by one of CUTS.

    edges    each edge is kept with probability ``keep``
    neurons  each neuron that is neither input nor output is kept with that probability, with all its edges
    inputs   so is each input; or the first ones are, that many
    paths    only neurons of the first levels, a share ``keep`` of them, read more than inputs and constants
    layers   neurons that are neither inputs nor outputs, in 1 to 30 layers, read earlier layers only
    sources  every edge gets a random source before its reader (those drawn twice become one): no part, a relative
    """
    check_choice("kind", kind, CUTS)
    edges, n = topology.edges(), topology.n_neurons
    source, reader = edges.T
    if kind == "edges":
        kept = rng.random(len(edges)) < keep
    elif kind in ("neurons", "inputs"):
        alive = rng.random(n) < keep
        if kind == "inputs":
            if rng.random() < 0.5:
                alive[topology.inputs] = np.arange(len(topology.inputs)) < keep * len(topology.inputs)
            chosen = alive[topology.inputs]
            alive[:] = True
            alive[topology.inputs] = chosen
        else:
            alive[topology.inputs] = alive[topology.outputs] = True
        kept = alive[source] & alive[reader]
    elif kind == "paths":
        highest = max(1, round(keep * topology.depth))
        kept = (topology.levels[reader] <= highest) | (topology.levels[source] == 0)
    elif kind == "layers":
        layer, count = np.zeros(n, np.int64), int(rng.integers(1, 31))
        inner = np.setdiff1d(topology.order, np.concatenate([topology.inputs, topology.outputs]), assume_unique=True)
        place = np.empty(n, np.int64)  # in the order of execution
        place[topology.order] = np.arange(n)
        inner = inner[np.argsort(place[inner])]
        layer[inner] = 1 + np.arange(len(inner)) * count // max(len(inner), 1)
        layer[topology.outputs] = count + 1
        kept = layer[source] < layer[reader]
    else:
        return _scatter(topology, rng)
    return Topology.from_edges(edges[kept], n, topology.inputs, topology.outputs)


def _scatter(topology: Topology, rng: np.random.Generator) -> Topology:
    """``topology`` with random sources: any neuron before the reader in the order of execution that is no output."""
    order = topology.order[~np.isin(topology.order, topology.outputs)]
    edges = topology.edges().astype(np.int64)
    place = np.full(topology.n_neurons, len(order))
    place[order] = np.arange(len(order))
    edges[:, 0] = order[(rng.random(len(edges)) * place[edges[:, 1]]).astype(np.int64)]
    return Topology.from_edges(np.unique(edges, axis=0), topology.n_neurons, topology.inputs, topology.outputs)


def probes(topology: Topology, count: int, rng: np.random.Generator) -> list[Topology]:
    """``count`` structures made out of ``topology`` by the RECIPES in turn; each cut keeps from a tenth to all."""
    found = []
    for k in range(count):
        part = topology
        for kind in RECIPES[k % len(RECIPES)]:
            part = cut(part, kind, rng.uniform(0.1, 1.0), rng)
        found.append(part)
    return found


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    executor: str = "columns"  # one of FEATURES
    mode: str = "train"  # one of config.TIME_MODES
    batch: int = 50  # samples
    threads: int = 0  # of the kernels; 0: all
    clock: str = "process_time"  # one of config.CLOCKS
    probes: int = 60  # structures to fit, and half as many to judge
    repeats: int = 25  # rounds over all of them
    seed: int = 0
    only: tuple[str, ...] = COUNTS  # features that may cost anything
    device: str = "cpu"  # or cuda, or cuda:N

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, ("columns", "wavefront"))
        check_choice("mode", self.mode, TIME_MODES)
        check_choice("clock", self.clock, (CUDA_CLOCK,) if self.device != "cpu" else CLOCKS)
        for name, least in (("batch", 1), ("probes", 10), ("repeats", 3), ("seed", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be >= {least}")

    @property
    def priced(self) -> str:
        """The executor by its name in FEATURES."""
        return self.executor if self.device == "cpu" else f"cuda-{self.executor}"


class Step:
    """One step of a plan on the batch ``x``, timed: forward, and backward where the mode is train."""

    def __init__(self, plan: Plan, values: Floats, x: Floats, settings: Settings):
        self.plan, self.values, self.x = plan, values, x
        self._back = settings.mode == "train"
        n, dtype = len(plan.kind), x.dtype
        self._scales = plan.scales(np.ones(n, dtype)[plan.weighted], np.zeros(n, dtype)[plan.weighted])
        if self._back:
            shape = (len(x), len(plan.schedule.topology.outputs))
            self._gradient = np.random.default_rng(0).standard_normal(shape).astype(dtype)

    @property
    def executor(self) -> Executor:
        """Of the plan."""
        return self.plan.executor

    def warm(self, clock: Clock) -> float:
        """Seconds of a call that follows WARM others: caches and branch predictors know it."""
        for _ in range(WARM):
            self(clock)
        return self(clock)

    def __call__(self, clock: Clock) -> float:
        """Seconds of the kernels, by the clock that the executor's timer reads; no compilation after the first call."""
        executor = self.plan.executor
        _, walk = self.plan.forward(self.x, self.values, self._scales)
        seconds = executor.seconds["forward"] - clock.overhead
        if self._back:
            self.plan.backward(walk, self.values, self._gradient)
            seconds += executor.seconds["backward"] - clock.overhead
        return max(seconds, 0.0)


class DeviceStep:
    """The same on CUDA, where ``values`` and ``x`` are, by marks in its stream.

    Steps are launched while the device waits, and then run one after the other: the device is timed, and not Python.
    So many of them are timed together that the clock is fine enough.
    """

    def __init__(self, structure: Structure, executor: Executor, values: Tensor, x: Tensor, settings: Settings):
        self.structure, self.executor, self._values, self._x = structure, executor, values, x
        self._scales = x.new_ones(len(structure.kind)), x.new_zeros(len(structure.kind))
        self._gradient, self._together = None, 1
        if settings.mode == "train":
            drawn = np.random.default_rng(0).standard_normal((len(x), len(structure.outputs)))
            self._gradient = torch.from_numpy(drawn).to(x)

    def run(self) -> None:
        """A step."""
        _, walk = walk_up(self.structure, self.executor, self._x, self._values, self._scales)
        if self._gradient is not None:
            walk_down(self.structure, self.executor, walk, self._values, self._gradient)

    def warm(self, clock: Clock) -> float:
        """Seconds of a call that follows WARM others."""
        for _ in range(WARM):
            self.run()
        return self(clock)

    def __call__(self, clock: Clock) -> float:
        """Seconds of a step."""
        while True:
            backend.keep_busy(self._x.device, self._together)
            start = backend.mark(self._x.device)
            for _ in range(self._together):
                self.run()
            seconds = max(backend.between(start, backend.mark(self._x.device)) - clock.overhead, 0.0)
            enough = seconds >= FINE * clock.resolution or self._together >= TOGETHER
            if enough:
                return seconds / self._together
            wanted = math.ceil(1.2 * FINE * clock.resolution / max(seconds / self._together, clock.resolution))
            self._together = min(max(wanted, self._together + 1), TOGETHER)


def step_of(plan: Plan, values: Floats, x: Floats | Tensor, settings: Settings) -> Step | DeviceStep:
    """A step where ``x`` is."""
    if isinstance(x, Tensor):
        return DeviceStep(structure_of(plan, x.device), plan.executor, torch.from_numpy(values).to(x), x, settings)
    return Step(plan, values, x, settings)


@dataclass
class Times:
    """What `time_steps` measured, and under which conditions."""

    seconds: NDArray[np.float64]  # (structures, repeats)
    rejected: int  # measurements made again
    drift: float  # largest over smallest pace of the reference work in the rounds that counted
    cpu_share: float  # CPU seconds of the process over wall seconds


def time_steps(
    steps: Sequence[Step | DeviceStep], settings: Settings, on_round: Callable[[], None] = lambda: None
) -> Times:
    """Time every step ``settings.repeats`` times, in turns: each is run WARM times, then measured.

    A measurement during which the system took the processor away is made again, and so is a round in which a fixed
    piece of work takes DRIFTED times as long as usual, or in which the host of a virtual machine took time; as often
    again as asked for, at most.
    """
    clock = Clock.of(settings.clock)
    for executor in {id(step.executor): step.executor for step in steps}.values():
        executor.timer = clock.read
    for step in steps:
        step(clock)
    sentinel = Sentinel()
    found = np.empty((len(steps), settings.repeats))
    rejected, spare = 0, settings.repeats
    names = [str(k) for k in range(len(steps))]
    wall, cpu = time.perf_counter(), time.process_time()
    turn = 0
    orders = list(rounds(names, settings.repeats))
    while turn < settings.repeats:
        pace, taken = sentinel.pace(), stolen()
        for name in orders[turn]:
            step = steps[int(name)]
            for _ in range(5):
                before = clock.disturbances()
                found[int(name), turn] = step.warm(clock)
                if clock.disturbances() == before:
                    break
                rejected += 1
        if spare and (max(pace, sentinel.pace()) > DRIFTED or stolen() > taken):
            spare, rejected = spare - 1, rejected + len(steps)
            continue
        sentinel.keep()
        turn += 1
        on_round()
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return Times(found, rejected, sentinel.drift, share)


@dataclass(frozen=True)
class Calibration:
    """A cost model of this machine, and how far to trust it."""

    model: CostModel
    settings: Settings
    threads: int
    held_out: Quality
    noise: float  # median over structures of half the interquartile range of their repeats, relative
    rejected: int  # measurements made again
    drift: float  # see Times
    cpu_share: float
    counts: Floats = field(repr=False)  # structures to fit first
    seconds: Floats = field(repr=False)  # medians

    @property
    def n_fitted(self) -> int:
        """Structures that the model was fitted to."""
        return len(self.seconds) - self.held_out.n

    def as_dict(self) -> dict[str, Any]:
        """What a profile holds, as JSON values: seconds per feature, what they were fitted to, and the quality."""
        names = FEATURES[self.settings.priced]
        settings = {**asdict(self.settings), "threads": self.threads}
        if self.settings.device == "cpu":
            del settings["device"]  # as profiles were before there was a choice
        return {
            "format": FORMAT,
            "version": VERSION,
            "seconds_per": dict(zip(names, self.model.coefficients, strict=True)),
            "settings": {name: value for name, value in settings.items() if name != "only"},
            "held_out": asdict(self.held_out),
            "noise": self.noise,
            "rejected": self.rejected,
            "drift": self.drift,
            "cpu_share": self.cpu_share,
            "counts": self.counts.tolist(),
            "seconds": self.seconds.tolist(),
        }


FORMAT = "sparse-dnm profile"
VERSION = 1


def read_profile(path: Path) -> Calibration:
    """The calibration in a file that `sparse-dnm calibrate` wrote.

    Raises ValueError naming the file and what is wrong: no profile, of another version, or damaged.
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
        held_out = Quality(**values["held_out"])
        return Calibration(model, settings, settings.threads, held_out, **about, counts=counts, seconds=seconds)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged profile: {error}; write it anew with sparse-dnm calibrate") from None


def calibrate(
    topology: Topology, plan_of: Callable[[Topology, Executor], Plan], x: Floats | Tensor, settings: Settings,
    on_round: Callable[[], None] = lambda: None,
) -> Calibration:  # fmt: skip
    """Fit a cost model on probes cut out of ``topology``, and judge it on half as many others.

    ``plan_of`` makes the plan of a structure, ``x`` is where it is timed.  Raises ValueError where the
    clock is too coarse for the shortest step.
    """
    executor = Executor(settings.executor, settings.threads)
    rng = np.random.default_rng(settings.seed)
    n_held = settings.probes // 2
    cuts = probes(topology, settings.probes + n_held, rng)
    plans = [plan_of(part, executor) for part in cuts]
    steps = [step_of(plan, edge_values(plan.schedule.topology, plan.slope.dtype), x, settings) for plan in plans]
    times = time_steps(steps, settings, on_round)
    seconds = np.median(times.seconds, axis=1)
    if settings.device == "cpu":  # a DeviceStep sees to it
        Clock.of(settings.clock).check(float(seconds.min()))
    counts = np.stack([features(plan.schedule, settings.priced) for plan in plans])
    model = CostModel.fit(settings.priced, counts[:-n_held], seconds[:-n_held], settings.only)
    held_out = Quality.of(model.seconds(counts[-n_held:]), seconds[-n_held:])
    low, high = np.quantile(times.seconds, [0.25, 0.75], axis=1)
    noise = statistics.median(((high - low) / 2 / seconds).tolist())
    about = noise, times.rejected, times.drift, times.cpu_share
    return Calibration(model, settings, executor.threads, held_out, *about, counts, seconds)


def plans_like(plan: Plan) -> Callable[[Topology, Executor], Plan]:
    """Makes plans of structures over the neurons of ``plan``."""
    return lambda topology, executor: replace(plan, schedule=Schedule(topology), executor=executor)


def edge_values(topology: Topology, dtype: Any) -> Floats:
    """Values of the edges that keep sums near 1: no denormals, which slow arithmetic."""
    reads = np.diff(topology.indptr)
    return (1.0 / np.sqrt(np.maximum(reads, 1))).repeat(reads).astype(dtype)


def describe(calibration: Calibration) -> list[str]:
    """The calibration in words, a line each; what to doubt last."""
    c, s, q = calibration, calibration.settings, calibration.held_out
    what = "forward + backward" if s.mode == "train" else "forward"
    where = f"{c.threads} threads" if s.device == "cpu" else f"device {s.device}"
    costs = zip(FEATURES[s.priced], c.model.coefficients, strict=True)
    return [
        f"{what}, batch {s.batch}, executor {s.executor}, {where}, clock {s.clock}, median of {s.repeats}",
        *(f"  {1e9 * value:10.3f} ns per {name}" for name, value in costs),
        f"on {q.n} other structures, {1e6 * c.seconds.min():.1f} to {1e6 * c.seconds.max():.1f} µs: R² {q.r2:.4f}, "
        f"mean error {q.mape:.1%}, {q.within_10:.0%} within 10 %, rank correlation {q.spearman:.3f}",
        f"noise: {c.noise:.1%} of a repeat; {c.rejected} repeats measured again; the machine's pace changed by "
        f"{c.drift - 1:.0%}; {c.cpu_share:.2f} CPU seconds a wall second",
        *doubts(calibration),
    ]


def doubts(calibration: Calibration) -> list[str]:
    """Warnings, a line each: noise, clocks that tell different things, a model that does not fit."""
    c, s, q = calibration, calibration.settings, calibration.held_out
    lines = []
    if c.noise > NOISY:
        lines.append(
            f"warning: repeats spread by {c.noise:.1%}, more than {NOISY:.0%}: keep the machine quiet, or take more "
            "--repeats or another --clock"
        )
    if s.device != "cpu":
        pass  # nobody reads clocks of the CPU
    elif c.cpu_share < APART:
        lines.append(
            f"warning: the process had the processor for {c.cpu_share:.0%} of the wall time: process_time and "
            "perf_counter differ; keep the machine quiet"
        )
    elif s.clock == "process_time" and c.cpu_share > 1.0 / APART:
        lines.append(
            f"warning: {s.clock} adds up the seconds of all threads, {c.cpu_share:.2f} a wall second, also while they "
            "wait for each other: choose --clock perf_counter for wall time"
        )
    elif s.clock == "thread_time" and c.threads > 1:
        lines.append("warning: thread_time counts one of the threads: choose process_time or perf_counter")
    if math.isnan(q.r2) or q.r2 < 0.9:
        lines.append(f"warning: the model does not fit (R² {q.r2:.3f}): do not steer training by it")
    return lines
