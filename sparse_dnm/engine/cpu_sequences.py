"""The part of the CPU's engine that runs recurrent networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_dnm.engine import cpu_sequence_costs
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.base import Ring
from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cpu_recurrent import KERNELS, Part, SequencePass, Sums
from sparse_dnm.engine.cpu_sequence_costs import PART
from sparse_dnm.engine.cpu_skewed import SkewedPass, is_skewed
from sparse_dnm.engine.cpu_stopwatch import SequenceStopwatch
from sparse_dnm.engine.cpu_structure import CpuSearch, CpuStructure, Floats
from sparse_dnm.engine.recurrence import Network, SequenceGradients, Unrolling, Way

EXECUTORS = ("auto", "columns", "fastest")  # the others run single steps


class CpuSequences(CpuSearch):
    """The part of the CPU's engine that runs recurrent networks."""

    def check_sequences(self) -> None:
        """See `Engine.check_sequences`."""
        if self.executor.name not in EXECUTORS:
            super().check_sequences()

    def forward_sequence(
        self, network: Network, x: Floats, state: Floats, way: Way, train: bool, clock: Any = None
    ) -> tuple[Floats, Floats, SequencePass]:
        """See `Engine.forward_sequence`."""
        kind = SkewedPass if is_skewed(network, way, *x.shape[:2]) else SequencePass
        made = kind(self.buffers, self.executor.most, network, x, way, clock)
        size = (way.every or made.steps) if train else PART
        tiled, outs = made.tiled(state), []
        for first in range(0, made.steps, size):
            part = made.part(first, size, tiled)
            outs.append(made.forward(part, tiled))
            if train:
                made.parts.append(part)
                if way.every:
                    part.x = part.m = part.saved = None
        return outs[0] if len(outs) == 1 else np.concatenate(outs, 1), made.flat(tiled), made

    def backward_sequence(
        self, saved: SequencePass, by_out: Floats, by_state: Floats, by_input: bool
    ) -> SequenceGradients:
        """See `Engine.backward_sequence`."""
        made, sums, carry, ring = saved, Sums(saved, by_input), saved.tiled(by_state), saved.way.ring
        closeness = None if ring is None else np.zeros_like(ring.values.d)
        for part in reversed(made.parts):
            if made.way.every:
                made.forward(part, part.state.copy())
            here = np.ascontiguousarray(by_out[:, part.first : part.first + part.table.shape[1]])
            g = made.backward(part, here, carry, sums)
            if ring is not None:
                self._ring_in_part(made, ring, part, g, closeness)
            if made.way.every:
                part.x = part.m = part.saved = None
        x = sums.x if by_input else None
        strengths, weight, bias, gates = sums.of_all(made)
        return SequenceGradients(strengths, weight, bias, gates, made.flat(carry), x, closeness, made.seconds)

    # -- what a step costs -----------------------------------------------------------------------------------

    def sequence_stopwatch(
        self, structure: CpuStructure, strengths: Floats, x: Floats, train: bool, unrolling: Unrolling
    ) -> SequenceStopwatch:
        """See `Engine.sequence_stopwatch`."""
        self.check_sequences()
        return SequenceStopwatch(self, structure, strengths, x, train, unrolling)

    def sequence_features(self, structure: CpuStructure, batch: int, unrolling: Unrolling) -> Floats:
        """See `cpu_sequence_costs.features`."""
        return cpu_sequence_costs.features(structure, batch, unrolling)

    def sequence_bytes(self, structure: CpuStructure, batch: int, train: bool, unrolling: Unrolling) -> int:
        """See `Engine.sequence_bytes`."""
        return cpu_sequence_costs.step_bytes(structure, batch, train, unrolling)

    def sequence_byte_prices(
        self, structure: CpuStructure, batch: int, train: bool, unrolling: Unrolling
    ) -> tuple[float, Prices]:
        """See `Engine.sequence_byte_prices`."""
        return cpu_sequence_costs.byte_prices(structure, batch, train, unrolling)

    def _ring_in_part(self, made: SequencePass, ring: Ring, part: Part, g: Floats, closeness: Any) -> None:
        """Add the gradient of the ring's candidates in one part: see `Engine.ring_gradient`."""
        e, structure, plan = ring.values, ring.structure, made.plan
        candidates, topology = structure.candidates, structure.topology
        weighted = self.config.edges == "weighted"  # then strength has the factor omega
        with backend.use_threads(e.threads):
            KERNELS.ring_gradient(
                *(len(topology.inputs), plan.first_linear, made.count, candidates.indptr, candidates.indices),
                *(e.d, e.c, e.threshold, topology.live, part.x, part.m, made.weight, made.bias, g, ring.kappa),
                *(e.omega if weighted else e.omega[:0], closeness),
            )
