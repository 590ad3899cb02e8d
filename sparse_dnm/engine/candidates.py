"""Candidate edges: the pairs near or above the cutoff, found through windows and kept with a skin (DESIGN, 4.1).

Only |d_ij| > c counts, and |d_ij| is at most |alpha'| max|s - gamma'| g_ij, so each row need look no farther than
a window around mu.  Pairs with |d| > threshold = max(c - skin, c/2) are kept, and found anew only when the scalars
have moved so far that a pair outside could have crossed c, as in the neighbour lists of molecular dynamics (Verlet
1967): the active set is exact at every step, and looking for it is rare.

Free edges carry an omega each.  An edge that falls below the threshold is forgotten at the next rebuild; a pair
enters, with the fresh omega of (seed, i, j), when its closeness with that omega rises through the threshold.  So
every edge is born with strength zero, and one that training has removed does not jump back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.config import INSIDE, ROW_SCALARS, SCALARS, ManifoldConfig
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.buffers import BufferPool

KERNELS = backend.kernels(torch.device("cpu"))
FEW = 6_000  # candidates up to which waking other threads costs more than they save
CROWDED = 64  # candidates from which on a list that is mostly below the threshold is rebuilt
CHANGED = (  # the error of a backward that comes too late
    "the candidate edges have changed since this forward, and edge_weight with them: call backward before parameters "
    "change and the model is called again"
)


@dataclass(frozen=True)
class Candidates:
    """CSR of candidate edges: indptr int64 (n_rows + 1,), indices int32; the state that they were found in.

    reference float64 (n_rows, 8): the scalars of each row when it was last scanned, and the threshold of then.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    reference: NDArray[np.float64]

    @staticmethod
    def none(n_rows: int) -> Candidates:
        """No candidates yet, in a state from which every pair may enter."""
        reference = np.zeros((n_rows, len(SCALARS) + 1))
        reference[:, [SCALARS.index("sigma"), SCALARS.index("theta")]] = 1.0
        reference[:, -1] = np.inf
        return Candidates(np.zeros(n_rows + 1, np.int64), np.empty(0, np.int32), reference)


def check_candidates(
    config: ManifoldConfig, indptr: NDArray[np.integer], indices: NDArray[np.integer], n_omega: int
) -> None:
    """Raise ValueError unless the arrays are a CSR of possible edges with as many omega: kernels do not check."""
    if indptr.shape != (config.n_rows + 1,) or indices.ndim != 1:
        raise ValueError(
            f"candidate_indptr of shape {indptr.shape} does not fit this manifold: it must be ({config.n_rows + 1},)"
        )
    if indptr[0] != 0 or (np.diff(indptr) < 0).any() or indptr[-1] != len(indices):
        raise ValueError(f"candidate_indptr must rise from 0 to {len(indices)}, the number of candidate_indices")
    readers = np.repeat(np.arange(config.n_inputs, config.n_neurons), np.diff(indptr))
    wrong = np.flatnonzero((indices < 0) | (indices >= np.minimum(readers, config.n_sources)))
    if len(wrong):
        raise ValueError(f"candidate edge {indices[wrong[0]]} -> {readers[wrong[0]]} is not possible in this manifold")
    falls = np.flatnonzero((np.diff(indices) <= 0) & (np.diff(readers) == 0))
    if len(falls):
        raise ValueError(f"the candidate sources of neuron {readers[falls[0]]} must ascend")
    if n_omega != len(indices):
        raise ValueError(f"{n_omega} edge_weight for {len(indices)} candidate_indices; they must be as many")


Arrays = Mapping[str, NDArray[np.floating]]  # the parameters of a manifold, by name
Structure = tuple[NDArray[np.int64], NDArray[np.int32]]  # CSR of active edges: indptr and sources
NO_STRUCTURE: Structure = (np.zeros(0, np.int64), np.zeros(0, np.int32))


class Evaluation(NamedTuple):
    """Closeness of every candidate at one set of scalars, and the active ones among them.

    rows        float64 (ROWS, n_rows)  transformed scalars
    stale       bool (n_rows,)   rows to scan where a pair outside may be active, then nothing below holds; else None
    d           (n_candidates,)  closeness, in the model's dtype
    near        candidates above the threshold
    same        the active edges are those of the structure that was given
    row_starts  int64 (n + 1,)   CSR indptr of the active edges over all neurons
    sources     int32 (n_edges,) of each active edge;  strengths in the model's dtype
    imbalance   sum of |strength| over input -> hidden edges less that over hidden -> output edges
    threads     that work on arrays of this size deserves
    """

    candidates: Candidates
    rows: NDArray[np.float64]
    c: float
    threshold: float
    omega: NDArray[np.floating]
    stale: NDArray[np.bool_] | None
    d: NDArray[np.floating]
    near: int
    same: bool
    row_starts: NDArray[np.int64]
    sources: NDArray[np.int32]
    strengths: NDArray[np.floating]
    imbalance: float
    threads: int

    @property
    def crowded(self) -> bool:
        """Most candidates have sunk below the threshold: a rebuild would shorten the list."""
        return len(self.d) > CROWDED and 2 * self.near < len(self.d)


def gate_sum(e: Evaluation, tau: float) -> tuple[float, float, NDArray[np.floating]]:
    """Soft number of edges: the sum of sigmoid((|d| - c) / tau) over candidates above the threshold (DESIGN, 3).

    Returns it, its derivative by the raw cutoff, and those by the candidates' closeness (n_candidates,).
    """
    slopes = np.empty_like(e.d)
    with backend.use_threads(e.threads):
        parts = np.empty((2, -(-len(e.d) // KERNELS.CHUNK)))
        total, by_cutoff = KERNELS.gates(e.d, e.c, tau, e.threshold, parts, slopes)
    return total, by_cutoff, slopes


class Prices(NamedTuple):
    """What one more of each costs: an edge, an input or another neuron that somebody reads, a level."""

    edge: float
    input: float
    neuron: float
    level: float


class Cost(NamedTuple):
    """Expected cost of a structure, and its derivatives: by the raw cutoff, by the candidates' closeness, and by the
    chance that each exists, (n_candidates,) both."""

    value: float
    by_cutoff: float
    by_closeness: NDArray[np.floating]
    by_gate: NDArray[np.float64]


def expected_cost(e: Evaluation, config: ManifoldConfig, live: NDArray[np.bool_], tau: float, prices: Prices) -> Cost:
    """Cost of the structure where candidates of ``live`` readers exist with the chance sigmoid((|d| - c) / tau).

    That of outputs and of a call is left out.
    """
    n_rows, size = config.n_rows, len(e.d)
    deep = prices.level > 0.0
    slopes, levels = np.empty_like(e.d), np.empty((2, config.n_neurons if deep else 0))
    picked = np.empty((n_rows if deep else 0, KERNELS.PICKS), np.int64)
    by_gate = np.empty(size)
    cost, by_cutoff = KERNELS.expected_cost(
        *(config.n_inputs, config.n_sources, live, e.candidates.indptr, e.candidates.indices, e.d, e.c, tau),
        *(e.threshold, *prices, np.empty_like(e.d), np.empty(config.n_sources)),
        *(np.empty(config.n_sources, np.int64), levels[0], levels[1], picked, by_gate, slopes),
    )
    return Cost(cost, by_cutoff, slopes, by_gate)


class Windows:
    """The geometry of a manifold's rows, and the search for candidates in their windows."""

    def __init__(self, config: ManifoldConfig):
        self.config = config
        self.free = config.edges != "closeness"  # candidates have an omega each
        self.inside = config.edges in INSIDE
        rhythm, outside = config.edges != "free", config.edges == "weighted"
        self.flags = rhythm or None, self.inside or None, outside or None  # of the kernels
        self.scalars = ROW_SCALARS[config.edges]
        # the four that free edges do not have are not read
        self.kernel_scalars = [name if name in self.scalars else "alpha" for name in SCALARS]
        self.places = [SCALARS.index(name) for name in self.scalars]  # in the kernels' rows
        self.buffers = BufferPool()
        self.latest = Candidates.none(config.n_rows)  # those that the model holds
        self.offsets = np.linspace(config.n_inputs, config.n_outputs, config.n_rows)
        mean, std = config.omega
        self.omega_bound = abs(mean) + KERNELS.OMEGA_LIMIT * std if self.inside else 1.0

    def threshold(self, c: float) -> float:
        """Closeness above which pairs are kept."""
        return max(c - self.config.skin, c / 2)

    def cutoff(self, arrays: Arrays) -> float:
        """c = sigmoid(cutoff)"""
        return 1.0 / (1.0 + math.exp(min(-float(arrays["cutoff"]), 700.0)))

    def omega(self, arrays: Arrays) -> NDArray[np.floating]:
        """omega of the candidates, or an empty array of the model's dtype."""
        return arrays["edge_weight"] if self.free else arrays["alpha"][:0]

    def evaluate(self, arrays: Arrays, threads: int, before: Structure, check: bool = True) -> Evaluation:
        """Evaluate the latest candidates at the parameters; on one thread where they are few.

        With ``check``, only the rows to scan are found where a pair outside may have crossed the cutoff.
        """
        config, found, size, empty = self.config, self.latest, len(self.latest.indices), self.buffers.empty
        n_rows, c, omega = config.n_rows, self.cutoff(arrays), self.omega(arrays)
        threads = threads if size > FEW else 1
        scalars = [arrays[name] for name in self.kernel_scalars]
        rows = empty(KERNELS.ROWS * n_rows, np.float64).reshape(KERNELS.ROWS, n_rows)
        if config.edges == "free":
            rows.fill(0)
        stale, d, threshold = np.empty(n_rows, np.bool_), empty(size, omega.dtype), self.threshold(c)
        row_starts = empty(config.n_neurons + 1, np.int64)
        sources, strengths = empty(size, np.int32), empty(size, omega.dtype)
        with backend.use_threads(threads):
            crossed, near, n_edges, same, imbalance = KERNELS.evaluate(
                *(*scalars, self.offsets, config.n_inputs, config.n_sources, config.period, *self.flags),
                *(c, threshold, check, self.omega_bound, found.reference, found.indptr, found.indices, omega),
                *(*before, rows, stale, d, row_starts, sources, strengths),
                empty(4 * n_rows, np.float64).reshape(4, n_rows),
            )
        return Evaluation(
            *(found, rows, c, threshold, omega, stale if crossed else None, d, near, same, row_starts),
            *(sources[:n_edges], strengths[:n_edges], imbalance, threads),
        )

    def pull_back(
        self,
        e: Evaluation,
        by_strength: NDArray[np.floating] | None,
        by_closeness: NDArray[np.floating] | None,
        by_imbalance: float,
        by_scalar: NDArray[np.floating],
    ) -> tuple[float, NDArray[np.floating]]:
        """Gradients from those of the strengths, of the candidates' closeness (None: none) and of the imbalance.

        Writes those of the raw row scalars to ``by_scalar`` (7, n_rows), in the order of SCALARS; those that the edge
        mode lacks stay as they are.  Returns those of the raw cutoff and of omega.
        """
        config, by_omega = self.config, self.buffers.empty(len(e.omega), e.d.dtype)
        sums = self.buffers.empty((len(SCALARS) + 1) * config.n_rows, np.float64).reshape(-1, config.n_rows)
        with backend.use_threads(e.threads):
            by_cutoff = KERNELS.strength_back(
                *(e.rows, self.offsets, config.n_inputs, config.n_sources, config.period, *self.flags, e.c),
                *(e.candidates.indptr, e.candidates.indices, e.omega, e.d, e.row_starts),
                *(e.sources, e.strengths),
                *(e.d[:0] if by_strength is None else by_strength, e.d[:0] if by_closeness is None else by_closeness),
                *(by_imbalance, sums, by_scalar, by_omega),
            )
        return by_cutoff, by_omega

    def reach(self, e: Evaluation, rows: NDArray[np.integer], sources: NDArray[np.integer]) -> NDArray[np.float64]:
        """Closeness of pairs (that broadcast) without the factor omega, float64."""
        alpha, beta, gamma, theta, phi, sigma, mu = e.rows[: len(SCALARS), rows]
        p = sources - (rows + self.config.n_inputs) + self.offsets[rows]
        d = alpha * np.exp(-0.5 * ((p - mu) / sigma) ** 2)
        if self.flags[0]:
            d = d * ((0.501 + 0.5 * np.sin(2 * np.pi * p / (self.config.period * theta) + phi)) ** beta - gamma)
        return np.asarray(d)

    def search(
        self, old: Candidates, stale: NDArray[np.bool_], rows: NDArray[np.float64], arrays: Arrays
    ) -> tuple[Candidates, NDArray[np.floating], NDArray[np.int32]]:
        """Candidates after a scan of the ``stale`` rows; free edges: their omega, and the place of each among the old
        ones (-1: new).  Raises ValueError where a scalar is NaN or infinite."""
        c, omega = self.cutoff(arrays), self.omega(arrays)
        if not (np.isfinite(c) and np.isfinite(rows).all()):
            raise ValueError("a scalar of the manifold is NaN or infinite; go back to a checkpoint and lower lr")
        config, threshold = self.config, self.threshold(c)
        indptr = np.zeros(config.n_rows + 1, np.int64)
        head = (
            *(rows, old.reference, stale, threshold, self.offsets, config.n_inputs, config.n_sources),
            *(config.period, *self.flags, config.seed, *config.omega, old.indptr, old.indices, omega),
        )
        KERNELS.scan(*head, False, indptr, old.indices[:0], omega[:0], old.indices[:0])
        np.cumsum(indptr, out=indptr)
        size = indptr[-1]
        if size >= 2**31:
            raise ValueError(f"{size} candidate edges do not fit the int32 edge lists; narrow sigma or raise cutoff")
        indices, origin = np.empty(size, np.int32), np.empty(size if self.free else 0, np.int32)
        new_omega = np.empty(len(origin), omega.dtype)
        KERNELS.scan(*head, True, indptr, indices, new_omega, origin)
        reference = old.reference.copy()
        reference[stale, :-1], reference[stale, -1] = rows[: len(SCALARS), stale].T, threshold
        return Candidates(indptr, indices, reference), new_omega, origin
