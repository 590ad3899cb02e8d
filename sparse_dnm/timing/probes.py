"""How structures are timed: settings, stopwatches in turns, and the bench of a network."""

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
from sparse_dnm.engine.cpu_skewed import may_skew
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.recurrence import STATES, Unrolling
from sparse_dnm.engine.schedule import tiles_of
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.timing.clock import FINEST, Clock, rounds, stolen
from sparse_dnm.timing.cost_model import COUNTS, IN_TILES, ON_TARGET, SKEWED
from sparse_dnm.timing.pace import QUIET_OTHERS, Conditions, Pace, Steady, Surroundings, check_noise, differ
from sparse_dnm.timing.quiet import Quiet
from sparse_dnm.timing.structures import cut

LOOK = 0.2  # s in which programs that use a core are seen
LIMIT = 1.5  # CPU seconds a thread, of the calibration before a training
THIN = 0.1  # share of the edges, at which executors are compared for few samples
WORTH = 1.5  # times as fast that more threads must be
MOST = 10  # times the asked rounds that are measured, if a calibration asks for more
TRIES = 5  # of a measurement that is disturbed


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
    unrolling: Unrolling | None = None  # of a recurrent network; None: it has no memory

    def __post_init__(self) -> None:
        if isinstance(self.unrolling, dict):  # in a profile
            object.__setattr__(self, "unrolling", Unrolling(**self.unrolling))
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
        u = self.unrolling
        if u is not None:
            skewed = may_skew(self.batch, u.steps, u.n_memory, u.truncate) and STATES[u.neuron] > 0
            return SKEWED if skewed else IN_TILES
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


def watch_of(
    engine: Engine, structure: Any, strengths: Any, x: Any, train: bool, unrolling: Unrolling | None
) -> Stopwatch:
    """The stopwatch of a step: of samples x or, with an ``unrolling``, of sequences."""
    if unrolling is None:
        return engine.stopwatch(structure, strengths, x, train)
    return engine.sequence_stopwatch(structure, strengths, x, train, unrolling)


def features_of(engine: Engine, structure: Any, settings: Settings) -> Any:
    """Counts of what costs time in a step, in the order of FEATURES."""
    if settings.unrolling is None:
        return engine.features(structure, settings.executor)
    return engine.sequence_features(structure, settings.batch, settings.unrolling)


class Bench:
    """Times steps of structures over the neurons of a network, on its device, with a batch of samples, or of sequences
    where a recurrent network is unrolled."""

    def __init__(
        self, evaluation: Evaluation, mode: str, batch: int, clock: str, seed: int, unrolling: Unrolling | None = None
    ):
        if unrolling is not None:
            evaluation.engine.check_sequences()
        self._unrolling = unrolling
        self._neurons, self._device = evaluation.structure.neurons, evaluation.engine.device
        self._topology = evaluation.topology
        self._like = evaluation.engine
        self._name, self._mode, self._batch, self._seed = evaluation.engine.kind, mode, batch, seed
        self._clock = CUDA_CLOCK if self._name == "cuda" else Clock.of(clock).name
        steps = () if unrolling is None else (unrolling.steps,)
        samples = np.random.default_rng(seed).standard_normal((batch, *steps, evaluation.config.n_inputs))
        self.x = evaluation.batch(samples)

    def settings(
        self, executor: Executor, probes: int = 20, repeats: int = 5, only: tuple[str, ...] = COUNTS
    ) -> Settings:
        """The settings for timing ``executor``."""
        head = executor.name, self._mode, self._batch, executor.threads, self._clock
        about = probes, repeats, self._seed, only, self._name
        return Settings(*head, *about, limit=LIMIT, unrolling=self._unrolling)

    def engine(self, executor: Executor) -> Engine:
        """The engine that runs the steps."""
        return engine_for(executor, self._device)

    def stopwatch(self, engine: Engine, topology: Topology) -> Stopwatch:
        """The stopwatch of a step of any structure over the neurons of the network."""
        structure = engine.given(topology, self._neurons)
        values = np.full(topology.n_edges, 0.1, topology_dtype(structure))  # sums stay small
        strengths = self._array(engine, values)
        return watch_of(engine, structure, strengths, self.x, self._mode == "train", self._unrolling)

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
        if any_of and self._unrolling is not None:  # sequences know no other
            names = ("columns",)
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
