"""Growth beyond the candidates: new edges between any two neurons, and new scalars for rows without edges.

`grow_edges` searches the pairs that are no candidates for those whose edges would have the largest gradient (RigL,
Evci et al. 2020).  It scores a block of rows at a time, so that memory stays O(neurons).  New edges start with a
strength just above zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.checks import check_input
from sparse_dnm.config import OMEGA_IN_CLOSENESS
from sparse_dnm.engine.cpu import CpuEngine, Floats
from sparse_dnm.engine.cpu_blocks import LANES
from sparse_dnm.model.init import initial_scalars
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import refuse_recurrent

BLOCK_ROWS = 64  # rows whose pairs are scored together
NEW_EDGE_CLOSENESS = 1.002  # |d| of a new edge, over the cutoff
MIN_FACTOR = 0.05  # smallest closeness without omega of a new edge; below it, omega would be huge
FREE = 0.1  # share of its price that a block costs at least where its edges are there already
LAST_SEARCH = 0.85  # share of the steps before the trim after which searches for edges stop


def grow_edges(
    model: DynamicManifold, x: Tensor, loss: Callable[[Tensor], Tensor], count: int,
    generator: torch.Generator | None = None, prices: tuple[float, float] | None = None,
) -> int:  # fmt: skip
    """Make edges of the ``count`` pairs with the largest gradient of ``loss`` (of the outputs for the batch x).

    With ``prices``, of an edge alone and of a block of LANES neighbouring sources, whole blocks are made instead, about
    ``count`` edges in all: those whose gradients, added up, are largest for what the block costs more than its edges
    cost now, the best one of a row at most.
    With a ``generator``, pairs and signs are drawn from it instead (for comparison: SET, Mocanu et al. 2018).
    Returns the number of new edges.  Raises ValueError if closeness has no factor omega: then no single edge can be
    added.
    """
    if model.config.edges not in OMEGA_IN_CLOSENESS:
        raise ValueError(
            f"growing edges needs edges in {OMEGA_IN_CLOSENESS}: where closeness has no omega, no single edge can be "
            "added"
        )
    if count < 1:
        raise ValueError(f"count={count} must be >= 1 edge")
    refuse_recurrent(model, "a search for edges beyond the candidates")
    check_input(x, model.config.n_inputs, model.alpha.dtype)
    evaluation = model.find()
    structure, e = evaluation.host, evaluation.host_values
    engine = CpuEngine(model.executor, model.config)
    candidates = structure.candidates
    assert candidates is not None
    weight, bias = (engine.array(p.cpu()) for p in (model.weight, model.bias))
    table = x.contiguous().numpy()
    out, saved = engine.forward(structure, e.strengths, table, engine.scales(structure, weight, bias))
    outputs = torch.from_numpy(out).requires_grad_()
    with torch.enable_grad():
        value = loss(outputs * outputs if model.config.output == "square" else outputs)
        if value.shape != () or not value.requires_grad:
            raise ValueError(f"loss gave {tuple(value.shape)}; it must be a scalar that depends on the outputs")
        (gradient,) = torch.autograd.grad(value, outputs)
    found = engine.backward(structure, e.strengths, saved, gradient.numpy())
    engine.complete(structure, e.strengths, saved, table)
    messages, values, by_value = (
        torch.from_numpy(engine.by_neuron(structure, saved, a)) for a in (saved.m, saved.x, found.g)
    )
    linear_messages = values * torch.from_numpy(saved.scales[0])[:, None] + torch.from_numpy(saved.scales[1])[:, None]
    best, all_sources = _Best(count), np.arange(model.config.n_sources)[None, :]
    for first in range(0, model.config.n_rows, BLOCK_ROWS):
        rows = np.arange(first, min(first + BLOCK_ROWS, model.config.n_rows))
        readers = rows + model.config.n_inputs
        factor = engine.geometry.closeness_without_omega(e.rows, rows[:, None], all_sources)
        allowed = np.abs(factor) > MIN_FACTOR
        for k, r in enumerate(rows):
            allowed[k, readers[k] :] = False
            allowed[k, candidates.indices[candidates.indptr[r] : candidates.indptr[r + 1]]] = False
        allowed &= structure.topology.live[readers][:, None]
        if generator is not None:
            scores = torch.rand(allowed.shape, generator=generator) - 0.5
            scores += torch.where(scores < 0, -1.0, 1.0)  # the sign is also drawn
        else:
            linear = torch.from_numpy(readers >= model.config.n_sources)[:, None]
            given = by_value[readers]
            scores = torch.where(linear, given @ linear_messages.T, given @ messages.T)[:, : model.config.n_sources]
        scores = torch.where(torch.from_numpy(allowed), scores, 0.0)
        if prices is not None and model.config.n_sources >= LANES:
            scores = _best_blocks(scores, _active(structure, e, rows, model.config.n_sources), prices)
        best.take(scores, rows, factor)
    rows, sources, slopes, factors = best.found()
    model.add_candidates(rows, sources, -np.sign(slopes) * NEW_EDGE_CLOSENESS * e.c / factors)
    return len(rows)


def _active(structure: Any, e: Any, rows: NDArray[np.intp], n_sources: int) -> Tensor:
    """Which sources each of some rows reads: bool (rows, n_sources)."""
    candidates = structure.candidates
    out = np.zeros((len(rows), n_sources), np.bool_)
    for k, r in enumerate(rows):
        part = slice(candidates.indptr[r], candidates.indptr[r + 1])
        out[k, candidates.indices[part][np.abs(e.d[part]) > e.c]] = True
    return torch.from_numpy(out)


def _best_blocks(scores: Tensor, active: Tensor, prices: tuple[float, float]) -> Tensor:
    """The scores of the pairs in the best block of each row, multiplied so that blocks compare by their sums for what
    they cost; 0 elsewhere."""
    lone, block = prices
    windows = scores.abs().unfold(1, LANES, 1).sum(2)  # (rows, n_sources - LANES + 1)
    reads = active.to(scores.dtype).unfold(1, LANES, 1).sum(2)
    more = (block - torch.clamp(lone * reads, max=block)).clamp(min=FREE * block)
    worth, start = (windows / more).max(1)
    lanes = start[:, None] + torch.arange(LANES)
    found = torch.zeros_like(scores)
    inside = scores.gather(1, lanes)
    found.scatter_(1, lanes, torch.where(inside == 0, 0.0, inside.sign() * worth[:, None] * (1 + 1e-6 * inside.abs())))
    return found


def reinitialize_rows(model: DynamicManifold, generator: torch.Generator) -> int:
    """Draw new scalars for hidden rows without an active edge; their candidates are searched again as at the start.

    Returns the number of such rows.
    """
    evaluation = model.find()
    hidden = np.arange(model.config.n_rows) < model.config.n_hidden
    reads = np.diff(evaluation.topology.indptr)[model.config.graph.n_inputs :]
    dead = np.flatnonzero(hidden & (reads == 0))
    drawn = initial_scalars(model.config, generator, model.alpha.dtype)
    with torch.no_grad():
        for name in evaluation.engine.geometry.scalars:
            model.get_parameter(name)[dead] = drawn[name][dead].to(model.alpha.device)
    model.forget_rows(dead)
    return len(dead)


class _Best:
    """The pairs of the largest |score| so far: rows, sources, scores and factors (closeness without omega), (count,)
    each."""

    def __init__(self, count: int):
        self._count = count
        self._parts: list[NDArray[np.float64]] = []

    def take(self, scores: Tensor, rows: NDArray[np.intp], factor: Floats) -> None:
        """Take the best of a block of scores (rows, sources); 0 means no pair."""
        flat = scores.reshape(-1)
        top = torch.topk(flat.abs(), min(self._count, len(flat)), sorted=True).indices.numpy()
        row, source = np.divmod(top, scores.shape[1])
        part = np.stack([rows[row], source, flat.numpy()[top], factor[row, source]])
        both = np.concatenate([*self._parts, part[:, part[2] != 0]], axis=1)
        order = np.argsort(-np.abs(both[2]), kind="stable")[: self._count]
        self._parts = [both[:, order]]

    def found(self) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats, Floats]:
        """Rows, sources, scores, factors."""
        rows, sources, scores, factors = self._parts[0]
        return rows.astype(np.intp), sources.astype(np.intp), scores, factors


def is_due(every: int, step: int, last: int) -> bool:
    """Is a search for edges due after update ``step`` of the ``last`` ones before the trim?"""
    return bool(every) and step % every == 0 and 0 < step <= math.floor(LAST_SEARCH * last)
