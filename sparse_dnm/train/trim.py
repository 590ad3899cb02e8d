"""The end of a run with a budget: take connections out until the measured time fits, then keep the structure.

Least saliency per saved second goes first.  Saliency is the change of the loss that a connection's removal should make,
|strength * gradient| summed over batches (Molchanov et al. 2017); the saved second is the cost model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.config import INSIDE
from sparse_dnm.engine.candidates import Prices, expected_cost
from sparse_dnm.engine.cpu import Floats
from sparse_dnm.loss.time import MeasuredTime
from sparse_dnm.model.manifold import DynamicManifold

ROUNDS = 60  # cuts at most
STEP = 0.04  # of the edges that are left, in a cut at most


class OverBudget(ValueError):
    """No network that still connects inputs and outputs fits the budget; ``nearest`` is the least time reached, s."""

    def __init__(self, nearest: float):
        super().__init__(f"the least that could be reached is {1e6 * nearest:.4g} µs")
        self.nearest = nearest


def trim(model: DynamicManifold, term: MeasuredTime, target: float, saliency: Callable[[], Floats]) -> float:
    """Take active edges out of ``model`` until a step takes ``target`` seconds at most; returns what it then takes.

    ``saliency`` finds that of the active edges (n_edges,) of the model as it is.  Free edges go one by one, their omega
    becoming 0; where closeness is computed from the rows alone, the cutoff rises instead.
    Raises OverBudget, the model as small as could be, where that is not enough.
    """
    model.find()
    seconds = term.measure(model)
    for _ in range(ROUNDS):
        if seconds <= target:
            return seconds
        before = {name: p.detach().clone() for name, p in model.named_parameters() if name in ("edge_weight", "cutoff")}
        evaluation, _ = model.found
        active = np.abs(evaluation.d) > evaluation.c
        counts = term.counts(model)
        prices = term.refit.model.prices(counts)
        predicted = float(term.refit.model.seconds(counts))
        saved = _saved(model, term, prices) * (seconds / predicted if predicted > 0 else 1.0)
        wanted = seconds - 0.995 * target
        order = np.argsort(saliency() / saved)
        enough = int(np.searchsorted(np.cumsum(saved[order]), wanted)) + 1
        first = order[: max(1, min(enough, math.ceil(STEP * len(order))))]
        if model.config.edges in INSIDE:
            gone = np.flatnonzero(active)[first]
            with torch.no_grad():
                model.edge_weight[torch.from_numpy(gone)] = 0.0
        else:
            _raise_cutoff(model, np.sort(np.abs(evaluation.d[active])), len(first))
        model.find()
        if not model.connected:
            with torch.no_grad():
                for name, value in before.items():
                    if name == "cutoff" or value.shape == model.edge_weight.shape:
                        model.get_parameter(name).copy_(value)
            model.find()
            raise OverBudget(seconds)
        seconds = term.measure(model)
    if seconds <= target:
        return seconds
    raise OverBudget(seconds)


def keep_edges(model: DynamicManifold, count: int) -> int:
    """Move the cutoff so that the ``count`` closest candidates are active; how many are, in the end.

    Raises ValueError, the cutoff moved, where those do not connect inputs and outputs.
    """
    for _ in range(ROUNDS):  # a lower cutoff may let pairs in that were no candidates
        evaluation, plan = model.find()
        n = plan.schedule.topology.n_edges
        if n == count:
            break
        sizes = np.sort(np.abs(evaluation.d))
        _raise_cutoff(model, sizes, max(len(sizes) - count, 1))
    n = model.find()[1].schedule.topology.n_edges
    if not model.connected:
        raise ValueError(f"the {count} closest edges do not connect inputs and outputs")
    return n


def _saved(model: DynamicManifold, term: MeasuredTime, prices: Prices) -> NDArray[np.float64]:
    """Seconds that each active edge's removal is expected to save; a neuron's are shared by the edges that read it."""
    evaluation, plan = model.found
    topology = plan.schedule.topology
    active = np.abs(evaluation.d) > evaluation.c
    found = expected_cost(evaluation, model.config, topology.live, term.settings.tau, prices)
    readers = np.diff(topology.t_indptr)[topology.indices]
    unit = np.where(topology.indices < model.config.n_inputs, prices.input, prices.neuron)
    return np.maximum(found.by_gate[active], prices.edge) + unit / np.maximum(readers, 1) + 1e-15


def _raise_cutoff(model: DynamicManifold, sizes: Floats, count: int) -> None:
    """Put the cutoff above the ``count`` weakest of the active edges, whose closeness is ``sizes``, ascending."""
    least = float(sizes[min(count, len(sizes) - 1)])
    below = float(sizes[min(count, len(sizes) - 1) - 1])
    c = min(max(0.5 * (least + below), below * (1 + 1e-6)), 1 - 1e-6)
    with torch.no_grad():
        model.cutoff.fill_(math.log(c / (1 - c)))


class Frozen:
    """Keeps the structure of a model as it is now, while weights, biases and free edges' omega are trained."""

    TRAINED = ("weight", "bias", "edge_weight")
    MARGIN = 1e-3  # of the cutoff, that an active edge stays above it

    def __init__(self, model: DynamicManifold):
        evaluation, _ = model.find()
        self.model = model
        self._inside = model.config.edges in INSIDE
        if self._inside:
            self._kept = model.edge_weight.detach().clone()
            device = self._kept.device
            self._active = torch.from_numpy(np.abs(evaluation.d) > evaluation.c).to(device)
            # of omega; of rows and cutoff alone, so that a run that goes on holds it at the same bits
            rows = np.repeat(np.arange(model.config.n_rows), np.diff(evaluation.candidates.indptr))
            reach = np.maximum(np.abs(model._windows.reach(evaluation, rows, evaluation.candidates.indices)), 1e-30)
            self._least = torch.from_numpy(evaluation.c * (1 + self.MARGIN) / reach).to(device, self._kept.dtype)

    def still(self) -> None:
        """After a backward: no gradient for what would change the structure."""
        for name, parameter in self.model.named_parameters():
            if name not in self.TRAINED:
                parameter.grad = None

    @torch.no_grad()
    def hold(self) -> None:
        """After an update: no edge has appeared or gone."""
        if self._inside:
            now, kept = self.model.edge_weight, self._kept
            held = torch.where(kept < 0, torch.minimum(now, -self._least), torch.maximum(now, self._least))
            now.copy_(torch.where(self._active, held, kept))
