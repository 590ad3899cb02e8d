"""Probes: structures derived from a network, and how they are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.config import CLOCKS, CUDA_CLOCK, TARGET_CLOCK, TIME_MODES, check_choice
from sparse_dnm.engine.autotune import MOST_BLOCK_COLUMNS, Executor
from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.costs import Stopwatch
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.schedule import tiles_of
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.timing.clock import FINEST, Clock, rounds, stolen
from sparse_dnm.timing.cost_model import COUNTS, ON_TARGET
from sparse_dnm.timing.pace import QUIET_OTHERS, Conditions, Pace, Steady, Surroundings, check_noise, differ
from sparse_dnm.timing.quiet import Quiet

CUTS = ("edges", "neurons", "inputs", "paths", "layers", "sources", "runs")
PROBE_CUTS = (  # the cuts that make each kind of probe, used in turn
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
LOOK = 0.2  # s in which programs that use a core are seen
LIMIT = 1.5  # CPU seconds a thread, of the calibration before a training
BLOCK_CUTS = (  # those for an executor whose time depends on how many sources of a row follow each other
    *PROBE_CUTS,
    ("runs",),
    ("runs", "edges"),
    ("runs", "neurons"),
    ("runs", "inputs"),
    ("runs", "paths"),
    ("runs", "layers"),
    ("neurons", "runs"),
    ("edges", "runs"),
)
THIN = 0.1  # share of the edges, at which executors are compared for few samples
WORTH = 1.5  # times as fast that more threads must be
MOST = 10  # times the asked rounds that are measured, if a calibration asks for more
TRIES = 5  # of a measurement that is disturbed


def cut(topology: Topology, kind: str, keep: float, rng: np.random.Generator) -> Topology:
    """A part of ``topology`` over the same neurons, by one of CUTS.

    edges    each edge is kept with probability ``keep``
    neurons  each neuron that is neither input nor output is kept with that probability, with all its edges
    inputs   each input is kept with that probability; or, in half of the calls, the first ones, a share ``keep``
    paths    only neurons in the first levels (a share ``keep`` of them) read more than inputs and constants
    layers   neurons that are neither inputs nor outputs, in 1 to 30 layers, read earlier layers only
    sources  every edge gets a random source before its reader (duplicates become one): not a part of ``topology``
    runs     the same for runs of 1 to 64 edges, whose sources follow each other
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
        return _scatter(topology, 1 if kind == "sources" else 2 ** int(rng.integers(0, 7)), rng)
    return Topology.from_edges(edges[kept], n, topology.inputs, topology.outputs)


def _scatter(topology: Topology, run: int, rng: np.random.Generator) -> Topology:
    """``topology`` with random sources, each the first of a ``run``: any neuron before the reader in the order of
    execution, except outputs."""
    order = topology.order[~np.isin(topology.order, topology.outputs)]
    edges, n = topology.edges().astype(np.int64), topology.n_neurons
    place = np.full(n, len(order))
    place[order] = np.arange(len(order))
    if run == 1:
        edges[:, 0] = order[(rng.random(len(edges)) * place[edges[:, 1]]).astype(np.int64)]
    else:
        within = np.arange(len(edges)) - topology.indptr[edges[:, 1]]  # the edges of a reader follow each other
        first = np.arange(len(edges)) - within % run
        start = order[(rng.random(len(edges)) * place[edges[:, 1]]).astype(np.int64)][first]
        edges[:, 0] = start + within % run
        edges = edges[edges[:, 0] < n]
        edges = edges[place[edges[:, 0]] < place[edges[:, 1]]]
    return Topology.from_edges(np.unique(edges, axis=0), n, topology.inputs, topology.outputs)


def layered(topology: Topology, rng: np.random.Generator) -> Topology:
    """A random DAG that has little to do with ``topology``: a quarter to twice its neurons, a tenth to all of its
    edges, inputs and outputs of any number, levels of equal width.

    A neuron reads one of the level before it, and others of any before.
    """
    n = max(8, round(topology.n_neurons * rng.uniform(0.25, 2.0)))
    depth = int(rng.integers(1, max(2, min(n // 4, 64))))
    inner = n - min(len(topology.inputs), n // 4)
    first = np.concatenate([[0], np.linspace(n - inner, n, depth + 1).astype(np.int64)])  # of each level, inputs below
    level = np.repeat(np.arange(depth + 1), np.diff(first))
    readers = np.arange(first[1], n)
    before = level[readers] - 1
    spine = first[before] + (rng.random(len(readers)) * (first[before + 1] - first[before])).astype(np.int64)
    count = round(topology.n_edges * np.exp(rng.uniform(np.log(0.1), 0.0)))
    more = rng.choice(readers, max(count - len(readers), 0))
    sources = (rng.random(len(more)) * first[level[more]]).astype(np.int64)
    edges = np.stack([np.concatenate([spine, sources]), np.concatenate([readers, more])], axis=1)
    return Topology.from_edges(np.unique(edges, axis=0), n, np.arange(first[1]), np.arange(first[-2], n))


def probes(topology: Topology, count: int, rng: np.random.Generator, executor: str = "columns") -> list[Topology]:
    """``count`` structures: two of three are derived from ``topology`` by PROBE_CUTS (for ``blocks`` by BLOCK_CUTS) in
    turn, where each cut keeps from a tenth to all; every third is `layered`, so that prices hold for graphs of other
    families, too."""
    found, cuts = [], BLOCK_CUTS if executor == "blocks" else PROBE_CUTS
    for k in range(count):
        if k % 3 == 2:
            found.append(layered(topology, rng))
            continue
        part = topology
        for kind in cuts[(2 * (k // 3) + k % 3) % len(cuts)]:
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
    repeats: int = 25  # rounds over all structures
    seed: int = 0
    only: tuple[str, ...] = COUNTS  # features whose cost may be above 0
    device: str = "cpu"  # or cuda, or cuda:N
    unit: Quiet | None = None  # what seconds are relative to; None: to be found
    curved: float = 0.0  # share of neurons whose activation needs an exponential: only a calibration asks
    limit: float = 20.0  # CPU seconds a thread, after which a calibration ends although its prices are not known well

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, ("columns", "wavefront", "blocks", ON_TARGET))
        check_choice("mode", self.mode, TIME_MODES)
        clocks = (TARGET_CLOCK,) if self.executor == ON_TARGET else (CUDA_CLOCK,) if self.device != "cpu" else CLOCKS
        check_choice("clock", self.clock, clocks)
        for name, least in (("batch", 1), ("probes", 10), ("repeats", 3), ("seed", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be >= {least}")

    @property
    def priced(self) -> str:
        """The executor by its name in FEATURES."""
        return self.executor if self.device == "cpu" else f"cuda-{self.executor}"


@dataclass
class Times:
    """The measurements of `time_steps`, and their conditions."""

    seconds: NDArray[np.float64]  # (structures, repeats), of the quiet machine
    raw: NDArray[np.float64]  # the same, as the clock showed them
    rejected: int  # measurements made again
    conditions: Conditions


def time_steps(
    watches: Sequence[Stopwatch],
    settings: Settings,
    on_round: Callable[[], None] = lambda: None,
    pace: Pace | Steady | None = None,
    enough: Callable[[NDArray[np.float64]], bool] = lambda ratios: True,
) -> Times:
    """Time every stopwatch ``settings.repeats`` times, in turns: each is run some times, then measured.  While that is
    not ``enough``, by the ratios (structures, rounds) so far, up to MOST times as often, within ``settings.limit``.

    A reference step of ``pace`` runs between all measurements; each becomes a ratio to the middle of the two before
    and the two after it, times the pace's unit, which is settled at the end if it is open.  Without a pace seconds are
    those of the clock.  A measurement is made again, up to TRIES times (in all, half as often as there are
    measurements), if the process was preempted, the host gave time to other virtual machines, or the references around
    it differ; raises NoisyMachine if that does not help in most of them.
    """
    pace, clock, around = pace or Steady(), Clock.of(settings.clock), Surroundings()
    for watch in watches:
        watch(clock)
    most = MOST * settings.repeats
    raw, ratios = (np.empty((len(watches), most)) for _ in range(2))
    references: list[float] = []
    rejected = torn = turn = 0
    spare = len(watches) * settings.repeats // 2  # on a busy machine nearly all would be made again
    end = time.process_time() + settings.limit * max(settings.threads, 1)  # a busy machine gives less of it
    for turn, order in enumerate(rounds(range(len(watches)), most)):
        paces, places = [pace.now()], []
        for k in order:
            for attempt in range(TRIES):
                before, taken = clock.disturbances(), stolen()
                raw[k, turn] = watches[k].warm(clock)
                paces.append(pace.now())
                changed = differ(*paces[-2:])
                if not changed and clock.disturbances() == before and stolen() == taken:
                    break
                if attempt + 1 == TRIES or rejected >= spare:
                    break
                rejected += 1
            torn += changed
            places.append(len(paces) - 2)
        for k, at in zip(order, places, strict=True):
            ratios[k, turn] = raw[k, turn] / statistics.median(paces[max(at - 1, 0) : at + 3])
        references += paces
        on_round()
        if turn + 1 >= settings.repeats and (time.process_time() > end or enough(ratios[:, : turn + 1])):
            break
    raw, ratios = raw[:, : turn + 1], ratios[:, : turn + 1]
    check_noise(torn, raw.size, settings.clock)
    conditions = around.conditions(references)
    return Times(ratios * pace.settle(conditions).seconds, raw, rejected, conditions)


def edge_values(topology: Topology, dtype: Any) -> Floats:
    """Values of the edges that keep sums near 1: denormal numbers would slow arithmetic."""
    reads = np.diff(topology.indptr)
    return (1.0 / np.sqrt(np.maximum(reads, 1))).repeat(reads).astype(dtype)


class Bench:
    """Times steps of structures over the neurons of a network, on its device, with a batch of samples."""

    def __init__(self, evaluation: Evaluation, mode: str, batch: int, clock: str, seed: int):
        refuse_recurrent(evaluation.config, "the measurement of time")
        self._neurons, self._device = evaluation.structure.neurons, evaluation.engine.device
        self._topology = evaluation.topology
        self._like = evaluation.engine
        self._name, self._mode, self._batch, self._seed = evaluation.engine.kind, mode, batch, seed
        self._clock = CUDA_CLOCK if self._name == "cuda" else Clock.of(clock).name
        samples = np.random.default_rng(seed).standard_normal((batch, evaluation.config.n_inputs))
        self.x = evaluation.batch(samples)

    def settings(
        self, executor: Executor, probes: int = 20, repeats: int = 5, only: tuple[str, ...] = COUNTS
    ) -> Settings:
        """The settings for timing ``executor``."""
        head = executor.name, self._mode, self._batch, executor.threads, self._clock
        return Settings(*head, probes, repeats, self._seed, only, self._name, limit=LIMIT)

    def engine(self, executor: Executor) -> Engine:
        """The engine that runs the steps."""
        return engine_for(executor, self._device)

    def stopwatch(self, engine: Engine, topology: Topology) -> Stopwatch:
        """The stopwatch of a step of any structure over the neurons of the network."""
        structure = engine.given(topology, self._neurons)
        values = np.full(topology.n_edges, 0.1, topology_dtype(structure))  # sums stay small
        return engine.stopwatch(structure, self._array(engine, values), self.x, self._mode == "train")

    def _array(self, engine: Engine, values: Floats) -> Any:
        return engine.array(torch.from_numpy(values).to(engine.device))

    def settle(self, name: str, threads: Sequence[int]) -> Executor:
        """The executor to time: ``name`` ("auto", "fastest": any that is for the batch) on one of these numbers of
        threads, the fastest by wall seconds.

        More threads than the fewest must be WORTH times as fast, and are not taken where other programs run: the choice
        holds for a whole training, and threads that wait for each other are many times slower than one as soon as
        another program needs a core.  Where `blocks` is among them they run a network of a share THIN of the edges:
        that is more like what a training leaves than the network at its start.
        """
        cpu, tiles, any_of = self._name == "cpu", tiles_of(self._batch), name in ("auto", "fastest")
        names = ("columns", "wavefront", "blocks") if any_of else (name,)
        made = [
            Executor(one, n)
            for n in threads
            for one in names
            if not (cpu and any_of and one == "wavefront" and n <= tiles)  # `columns` needs no barrier
            and not (any_of and one == "blocks" and not (cpu and self._batch <= MOST_BLOCK_COLUMNS and n == threads[0]))
        ]
        fewest = [one for one in made if one.threads == min(threads)]
        if len(made) > len(fewest) and busy(self.stopwatch(self.engine(fewest[0]), self._topology)):
            made = fewest
        if len(made) == 1:
            return made[0]
        timing = replace(self.settings(made[0]), repeats=9)
        if cpu:
            timing = replace(timing, clock="perf_counter")
        topology = self._topology
        if any(one.name == "blocks" for one in made):
            topology = cut(topology, "edges", THIN, np.random.default_rng(self._seed))
        watches = [self.stopwatch(self.engine(one), topology) for one in made]
        seconds = np.median(time_steps(watches, timing).seconds, axis=1)
        price = [WORTH if one.threads > min(threads) else 1.0 for one in made]
        return made[int(np.argmin(seconds * price))]


def busy(watch: Stopwatch) -> bool:
    """Do other programs use this machine?  Steps run meanwhile, for LOOK seconds."""
    around, clock = Surroundings(), Clock.of(FINEST)
    watch(clock)
    end = time.perf_counter() + LOOK
    while time.perf_counter() < end:
        watch(clock)
    return (around.conditions([1.0]).others or 0.0) > QUIET_OTHERS


def topology_dtype(structure: Any) -> np.dtype[Any]:
    """The dtype of a structure's network."""
    dtype: np.dtype[Any] = structure.host.neurons.slope.dtype
    return dtype
