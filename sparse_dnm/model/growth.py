"""Edges from afar, and rows that begin anew: what the ring of candidates below the cutoff cannot reach.

`scan` finds the pairs outside the candidates whose edges would have the largest gradient (RigL, Evci et al. 2020),
block of rows by block of rows, so that memory stays O(neurons).  They are born with a strength just above zero and
compete.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.checks import check_input
from sparse_dnm.config import INSIDE
from sparse_dnm.engine.cpu import Floats
from sparse_dnm.engine.schedule import tile_width
from sparse_dnm.model.init import initial_scalars
from sparse_dnm.model.manifold import DynamicManifold

BLOCK = 64  # rows whose pairs are looked at together
NEWBORN = 1.002  # |d| of a new edge, over the cutoff
FAINT = 0.05  # least closeness without omega of a pair whose edge may be born: else omega would have to be huge
ALLOWED = 0.85  # share of the steps before the trim after which no edge is sought any more


def scan(
    model: DynamicManifold, x: Tensor, loss: Callable[[Tensor], Tensor], count: int,
    generator: torch.Generator | None = None,
) -> int:  # fmt: skip
    """Let the ``count`` pairs with the largest gradient of ``loss`` (of the outputs for the batch x) become edges.

    With a ``generator``, as many pairs drawn from it instead, of either sign (to compare: SET, Mocanu et al. 2018).
    Returns how many edges were born.  Only free edges have an omega of their own to be born with.
    """
    if model.config.edges not in INSIDE:
        raise ValueError(f"scans need edges in {INSIDE}: where closeness has no omega, no single edge can be born")
    if count < 1:
        raise ValueError(f"count={count} must be >= 1 edge")
    check_input(x, model.config.n_inputs, model.alpha.dtype)
    e, plan = model.find()
    arrays = model.arrays()
    table = x.contiguous().numpy()
    out, walk = plan.forward(table, e.strengths, plan.scales(arrays["weight"], arrays["bias"]))
    outputs = torch.from_numpy(out).requires_grad_()
    with torch.enable_grad():
        value = loss(outputs * outputs if model.config.output == "square" else outputs)
        if value.shape != () or not value.requires_grad:
            raise ValueError(f"loss gave {tuple(value.shape)}; it must be a scalar that depends on the outputs")
        (gradient,) = torch.autograd.grad(value, outputs)
    found = plan.backward(walk, e.strengths, gradient.numpy())
    plan.complete(walk, table, e.strengths)
    messages, values, by_value = (_by_neuron(a, len(table), model.config.n_neurons) for a in (walk.m, walk.x, found.g))
    told = values * torch.from_numpy(walk.scales.weight)[:, None] + torch.from_numpy(walk.scales.bias)[:, None]
    best = _Best(count)
    for first in range(0, model.config.n_rows, BLOCK):
        rows = np.arange(first, min(first + BLOCK, model.config.n_rows))
        readers = rows + model.config.n_inputs
        reach = model._windows.reach(e, rows[:, None], np.arange(model.config.n_sources)[None, :])
        allowed = np.abs(reach) > FAINT
        for k, r in enumerate(rows):
            allowed[k, readers[k] :] = False
            allowed[k, e.candidates.indices[e.candidates.indptr[r] : e.candidates.indptr[r + 1]]] = False
        allowed &= plan.schedule.topology.live[readers][:, None]
        if generator is not None:
            scores = torch.rand(allowed.shape, generator=generator) - 0.5
            scores += torch.where(scores < 0, -1.0, 1.0)  # the sign is drawn, too
        else:
            linear = torch.from_numpy(readers >= model.config.n_sources)[:, None]
            given = by_value[readers]
            scores = torch.where(linear, given @ told.T, given @ messages.T)[:, : model.config.n_sources]
        best.take(torch.where(torch.from_numpy(allowed), scores, 0.0), rows, reach)
    born, sources, slopes, reached = best.found()
    model.add_candidates(born, sources, -np.sign(slopes) * NEWBORN * e.c / reached)
    return len(born)


def reseed(model: DynamicManifold, generator: torch.Generator) -> int:
    """Draw the scalars of hidden rows without an active edge anew; candidates enter them as at the start.

    Returns how many rows there were.
    """
    e, _ = model.find()
    hidden = np.arange(model.config.n_rows) < model.config.n_hidden
    reads = np.diff(e.row_starts)[model.config.n_inputs :]
    dead = np.flatnonzero(hidden & (reads == 0))
    fresh = initial_scalars(model.config, generator, model.alpha.dtype)
    with torch.no_grad():
        for name in model._windows.scalars:
            model.get_parameter(name)[dead] = fresh[name][dead].to(model.alpha.device)
    model.forget_rows(dead)
    return len(dead)


def _by_neuron(array: Floats, batch: int, n: int) -> Tensor:
    """A buffer of a walk (tiles, n, width) as (n, batch)."""
    tiles = torch.from_numpy(array).reshape(-1, n, tile_width(batch))
    return tiles.transpose(0, 1).reshape(n, -1)[:, :batch]


class _Best:
    """The pairs of the largest |score| so far: rows, sources, scores and reach, (count,) each."""

    def __init__(self, count: int):
        self._count = count
        self._parts: list[NDArray[np.float64]] = []

    def take(self, scores: Tensor, rows: NDArray[np.intp], reach: Floats) -> None:
        """Look at a block of scores (rows, sources); 0 stands for none."""
        flat = scores.reshape(-1)
        top = torch.topk(flat.abs(), min(self._count, len(flat)), sorted=True).indices.numpy()
        row, source = np.divmod(top, scores.shape[1])
        part = np.stack([rows[row], source, flat.numpy()[top], reach[row, source]])
        both = np.concatenate([*self._parts, part[:, part[2] != 0]], axis=1)
        order = np.argsort(-np.abs(both[2]), kind="stable")[: self._count]
        self._parts = [both[:, order]]

    def found(self) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats, Floats]:
        """Rows, sources, scores, reach."""
        rows, sources, scores, reach = self._parts[0]
        return rows.astype(np.intp), sources.astype(np.intp), scores, reach


def due(every: int, step: int, last: int) -> bool:
    """Is a scan due after update ``step`` of those before the trim, ``last``?"""
    return bool(every) and step % every == 0 and 0 < step <= math.floor(ALLOWED * last)
