"""Growth: edges that do not exist yet learn whether they should (DESIGN, section 3).

An edge at or below the cutoff carries nothing, so its gradient is zero and a network can only prune.  Candidates just
below the cutoff, the ring, therefore receive the gradient that the strength of an edge in their place would have, as
RigL (Evci et al. 2020) looks at it to choose which edges grow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.candidates import Evaluation
from sparse_dnm.engine.cpu import Floats, Gradients, Plan, Walk
from sparse_dnm.engine.schedule import tile_width

KERNELS = backend.kernels(torch.device("cpu"))


class Ring(NamedTuple):
    """The candidates of an evaluation below its cutoff, and kappa, the coefficient of their gradient.

    ``weighted``: the strength of an edge has the factor omega.
    """

    kappa: float
    evaluation: Evaluation
    weighted: bool

    def add_gradient(
        self, plan: Plan, walk: Walk, found: Gradients, x: Floats, values: Floats, by_closeness: Floats
    ) -> None:
        """Add kappa * sum over the batch of (dL/dx_i) m_j / (1 - c) to ``by_closeness`` (n_candidates,) of the ring.

        ``walk`` and ``found`` are of a step on the batch ``x`` with ``values`` on the edges.  Readers that reach no
        output have no gradient.
        """
        e, topology = self.evaluation, plan.schedule.topology
        n_rows = len(e.candidates.indptr) - 1
        plan.complete(walk, x, values)
        with backend.use_threads(e.threads):
            KERNELS.ring_gradient(
                *(topology.n_neurons - n_rows, plan.first_linear, tile_width(walk.batch)),
                *(e.candidates.indptr, e.candidates.indices, e.d, e.c, e.threshold, topology.live),
                *(walk.x, walk.m, walk.scales.weight, walk.scales.bias, found.g, self.kappa),
                *(e.omega if self.weighted else e.omega[:0], by_closeness),
            )
