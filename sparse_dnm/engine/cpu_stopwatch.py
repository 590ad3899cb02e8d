"""Times the kernels of a step on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_dnm.engine.cpu_blocks import PreparedPass
from sparse_dnm.engine.cpu_structure import CpuStructure, Floats

if TYPE_CHECKING:
    from sparse_dnm.engine.cpu import CpuEngine

WARM = 2  # unmeasured steps before measured ones


class CpuStopwatch:
    """Times the kernels of a step by a clock that is read around them alone.

    For `blocks` in mode infer the strengths are packed before, as they are prepared for every executor.
    """

    def __init__(self, engine: CpuEngine, structure: CpuStructure, strengths: Floats, x: Floats, train: bool):
        self.engine, self._structure, self._strengths, self._x = engine, structure, strengths, x
        n, dtype = len(structure.neurons.kind), x.dtype
        # A bias: along a deep path values and gradients would become denormal numbers, which are many times slower
        self._scales = np.ones(n, dtype), np.full(n, 0.5, dtype)
        self._gradient: Floats | None = None
        self._prepared: PreparedPass | None = None
        if not train and engine.executor.takes_blocks("infer", len(x)):
            self._prepared = PreparedPass(engine.buffers, structure, strengths, self._scales, len(x))
            self._prepared.refresh()
            self._out = np.empty((len(x), self._prepared.n_outputs), dtype)
        if train:
            shape = (len(x), len(structure.topology.outputs))
            self._gradient = np.random.default_rng(0).standard_normal(shape).astype(dtype)

    def warm(self, clock: Any) -> float:
        """Seconds of a step that follows others: the lower of two, since what disturbs one only adds to it."""
        for _ in range(WARM):
            self(clock)
        return min(self(clock), self(clock))

    def __call__(self, clock: Any) -> float:
        """Seconds of a step; no compilation after the first call."""
        if self._prepared is not None:
            start = clock.read()
            self._prepared.forward(self._x, self._out)
            return max(clock.read() - start - clock.overhead, 0.0)
        _, saved = self.engine.forward(self._structure, self._strengths, self._x, self._scales, clock.read)
        seconds = saved.seconds - clock.overhead
        if self._gradient is not None:
            found = self.engine.backward(self._structure, self._strengths, saved, self._gradient, clock.read)
            seconds += found.seconds - clock.overhead
        return max(seconds, 0.0)
