"""Times the kernels of a step on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_dnm.engine.cpu_structure import CpuStructure, Floats
from sparse_dnm.engine.recurrence import Network, Unrolling

if TYPE_CHECKING:
    from sparse_dnm.engine.cpu import CpuEngine
    from sparse_dnm.engine.cpu_sequences import CpuSequences

WARM = 2  # unmeasured steps before measured ones
LONG = 1e-5  # seconds that a measurement of forward passes lasts at least
MOST = 64  # passes in one
AGAIN = 10  # measurements at most until one lasts long enough


class CpuStopwatch:
    """Times the kernels of a step by a clock that is read around them alone.

    In mode infer the kernel runs a pass as often as takes LONG, and what Python takes to call it is taken off: half a
    microsecond for `blocks`, some three for the others, as much as the pass of a small network.  For `blocks` the
    strengths are packed before, as they are prepared for every executor.
    """

    def __init__(self, engine: CpuEngine, structure: CpuStructure, strengths: Floats, x: Floats, train: bool):
        self.engine, self._structure, self._strengths, self._x = engine, structure, strengths, x
        n, dtype = len(structure.neurons.kind), x.dtype
        # A bias: along a deep path values and gradients would become denormal numbers, which are many times slower
        self._scales = np.ones(n, dtype), np.full(n, 0.5, dtype)
        self._gradient: Floats | None = None
        self._passes: Callable[[int], object] | None = None  # runs the forward pass so many times
        self._times = 0  # passes in a measurement
        shape = len(x), len(structure.topology.outputs)
        if train:
            self._gradient = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        else:
            self._passes = engine.passes(structure, strengths, self._scales, x, np.empty(shape, dtype))

    @property
    def steps(self) -> int:
        """Steps that are timed together."""
        return max(self._times, 1)

    def warm(self, clock: Any) -> float:
        """Seconds of a step that follows others: the lower of two, since what disturbs one only adds to it."""
        if self._passes is not None:
            return self._pass(clock, self._passes, 2)
        for _ in range(WARM):
            self(clock)
        return min(self(clock), self(clock))

    def __call__(self, clock: Any) -> float:
        """Seconds of a step; no compilation after the first call."""
        if self._passes is not None:
            return self._pass(clock, self._passes, 1)
        _, saved = self.engine.forward(self._structure, self._strengths, self._x, self._scales, clock.read)
        seconds = saved.seconds - clock.overhead
        if self._gradient is not None:
            found = self.engine.backward(self._structure, self._strengths, saved, self._gradient, clock.read)
            seconds += found.seconds - clock.overhead
        return max(seconds, 0.0)

    def _pass(self, clock: Any, passes: Callable[[int], object], tries: int) -> float:
        """Seconds of a forward pass without those of the call: the lowest of some tries, of each.

        A disturbance makes passes look long, and then too few of them are chosen, or the call alone, and then nothing
        is left of the passes: what lasts less than half of LONG is measured again, with twice as many passes.
        """
        if self._times == 0:  # the first call compiles
            passes(1)
            once = _lowest(clock, passes, 1, 3) - _lowest(clock, passes, 0, 3)
            self._times = min(max(math.ceil(LONG / max(once, LONG / MOST)), 1), MOST)
        for _ in range(AGAIN):
            passes(WARM)
            times = self._times
            seconds = _lowest(clock, passes, times, tries) - _lowest(clock, passes, 0, 2 * tries)
            if seconds >= LONG / 2 or (times == MOST and seconds > 0.0):
                return seconds / times
            self._times = min(2 * times, MOST)
        return max(seconds, 0.0) / times


class SequenceStopwatch:
    """Times the kernels of a pass through sequences: forward, and for training backward, through all time steps.

    In mode infer what Python takes to call a kernel is part of it: a pass of many steps is long beside that.
    """

    steps = 1

    def __init__(
        self, engine: CpuSequences, structure: CpuStructure, strengths: Floats, x: Floats, train: bool,
        unrolling: Unrolling,
    ):  # fmt: skip
        self.engine, self._structure, self._train, self._way = engine, structure, train, unrolling.way
        recurrence, outputs = unrolling.recurrence(structure), structure.topology.outputs
        n, dtype = len(structure.neurons.kind), x.dtype
        # Biases as of `CpuStopwatch`; half-open gates keep states and their gradients alive
        scales = np.ones(n, dtype), np.full(n, 0.5, dtype)
        gates = np.full((recurrence.n_gates, len(recurrence.cells)), 0.5, dtype)
        self._network = Network(structure, recurrence, strengths, scales, gates)
        self._x = np.ascontiguousarray(x[:, :, : len(structure.topology.inputs) - unrolling.n_memory])
        self._state = np.zeros((len(x), recurrence.n_state), dtype)
        shape = len(x), x.shape[1], len(outputs) - unrolling.n_memory
        self._gradient = np.random.default_rng(0).standard_normal(shape).astype(dtype)

    def warm(self, clock: Any) -> float:
        """Seconds of a step that follows others: the lower of two, since what disturbs one only adds to it."""
        for _ in range(WARM):
            self(clock)
        return min(self(clock), self(clock))

    def __call__(self, clock: Any) -> float:
        """Seconds of a step; no compilation after the first call."""
        _, _, made = self.engine.forward_sequence(self._network, self._x, self._state, self._way, self._train, clock)
        if self._train:
            self.engine.backward_sequence(made, self._gradient, self._state, False)
        seconds: float = made.seconds
        return max(seconds, 0.0)


def _lowest(clock: Any, passes: Callable[[int], object], times: int, tries: int) -> float:
    """Lowest seconds of some calls of ``passes``, those of reading the clock included."""
    found = []
    for _ in range(tries):
        start = clock.read()
        passes(times)
        found.append(clock.read() - start)
    return min(found)
