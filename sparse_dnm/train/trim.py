"""The trim of a run with a budget: add and remove edges until the measured time fits, then keep the structure.

Where a step takes less than the budget, the closest candidates below the cutoff become edges.  Where it takes more,
edges with the least saliency per saved second go first, with executor `blocks` those of a block together.  Saliency is
the expected change of the loss when an edge is removed, |strength * gradient| summed over batches (Molchanov et al.
2017); the seconds are the cost model's.  An output that inputs reach keeps a path from one of them, and at most half of
its edges go at a time, as the saliency of a network that makes no errors tells little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dnm.config import OMEGA_IN_CLOSENESS
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine.cpu_blocks import Covering
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.topology import Topology
from sparse_dnm.loss.term import TimeTerm
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import GATES
from sparse_dnm.train.objective import objective
from sparse_dnm.train.paths import needed

MAX_CUTS = 60
MAX_FILLS = 12
HIGHEST_CUTOFF = 0.9  # that a number of edges is reached by
SLACK = 0.01  # share of the target that a step may take less
LARGEST_FILL = 0.15  # share of the present edges that are added at a time
NEW_EDGE = 1.002  # |d| of an added edge, over the cutoff
LARGEST_CUT = 0.04  # share of the remaining edges
PROTECTIONS = 5  # rounds in which edges that an output needs are made closer
SALIENCY_BATCHES = 8  # batches over which saliency is summed


class Disconnected(ValueError):
    """Fewer edges would not connect inputs and outputs."""


class OverBudget(ValueError):
    """No network that still connects inputs and outputs fits the budget; ``nearest`` is the least time reached, s."""

    def __init__(self, nearest: float):
        super().__init__(f"the least that could be reached is {1e6 * nearest:.4g} µs")
        self.nearest = nearest


def trim(model: DynamicManifold, term: TimeTerm, target: float, saliency: Callable[[], Floats]) -> float:
    """Remove active edges of ``model`` until a step takes at most ``target`` seconds; returns what it then takes.

    ``saliency`` returns that of the active edges (n_edges,) of the present model.  Free edges are removed one by one:
    their omega becomes 0; if closeness is computed from the rows alone, the cutoff rises instead.
    Raises OverBudget, with the model as small as possible, if that is not enough.
    """
    evaluation = model.find()
    seconds = term.measure(evaluation)
    for _ in range(MAX_CUTS):
        if seconds <= target:
            return seconds
        predicted = float(term.refit.model.seconds(term.counts(evaluation)))
        wanted = seconds - 0.995 * target
        try:
            values = saliency()
            order, saved = _order(evaluation, term, values)
            saved *= seconds / predicted if predicted > 0 else 1.0
            enough = int(np.searchsorted(np.cumsum(saved[order]), wanted)) + 1
            count = max(1, min(enough, _most(order)))
            evaluation = _remove(model, evaluation, _removable(evaluation, order, count, values))
        except Disconnected:
            raise OverBudget(seconds) from None
        seconds = term.measure(evaluation)
    if seconds <= target:
        return seconds
    raise OverBudget(seconds)


def cut(model: DynamicManifold, term: TimeTerm, count: int, saliency: Callable[[], Floats]) -> None:
    """Remove ``count`` active edges of ``model``, those that `trim` would.  Raises Disconnected before the network
    falls apart."""
    evaluation = model.find()
    least = evaluation.n_edges - count
    while evaluation.n_edges > least:
        before = evaluation.n_edges
        values = saliency()
        order, _ = _order(evaluation, term, values)
        most = min(before - least, _most(order))
        evaluation = _remove(model, evaluation, _removable(evaluation, order, most, values))
        if evaluation.n_edges >= before:  # a cutoff cannot rise further
            raise Disconnected


def _most(order: NDArray[np.int64]) -> int:
    """How many edges may go at a time."""
    return math.ceil(LARGEST_CUT * len(order))


def _order(evaluation: Evaluation, term: TimeTerm, values: Floats) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The active edges that may go, those with the least saliency per saved second first, and the seconds that each
    active edge saves.  Raises Disconnected if none may."""
    saved, together = _saved(evaluation, term)
    order = np.argsort(_summed(values, together) / _summed(saved, together), kind="stable")
    if evaluation.config.edges not in OMEGA_IN_CLOSENESS:  # the cutoff takes what is least close
        return order, saved
    order = order[~_halves(evaluation.topology, values)[order]]
    if len(order) == 0:
        raise Disconnected
    return order, saved


def _halves(topology: Topology, values: Floats) -> NDArray[np.bool_]:
    """Of the edges of each output the half with the largest ``values``, bool (n_edges,)."""
    kept = np.zeros(topology.n_edges, np.bool_)
    for output in topology.outputs.tolist():
        first, last = topology.indptr[output : output + 2].tolist()
        largest = np.argsort(-values[first:last], kind="stable")[: (last - first + 1) // 2]
        kept[first + largest] = True
    return kept


def _removable(evaluation: Evaluation, order: NDArray[np.int64], count: int, values: Floats) -> NDArray[np.int64]:
    """The first ``count`` edges of ``order``, or fewer, without which all outputs are reached that were; where the
    cutoff removes as many, the least close ones, so many of them.  Raises Disconnected if there are none."""
    topology = evaluation.topology
    if evaluation.config.edges not in OMEGA_IN_CLOSENESS:
        d = np.abs(evaluation.host_values.d)
        d = d[d > evaluation.host_values.c]
        gone = np.argsort(d, kind="stable")[:count]
        stays = np.isin(gone, needed(topology, gone, d))
        left = order[: int(stays.argmax()) if stays.any() else count]
    else:
        looked, left = count, order[:0]
        while len(left) == 0 and looked < 2 * len(order):
            first = order[:looked]
            left = first[~np.isin(first, needed(topology, first, values))][:count]
            looked *= 2
    if len(left) == 0:
        raise Disconnected
    return left


def _remove(model: DynamicManifold, evaluation: Evaluation, first: NDArray[np.int64]) -> Evaluation:
    """Remove these active edges; raise Disconnected, with the model as before, if that cuts the network in two."""
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in ("edge_weight", "cutoff")}
    values = evaluation.host_values
    active = np.abs(values.d) > values.c
    if model.config.edges in OMEGA_IN_CLOSENESS:
        gone = model.candidates.slots[np.flatnonzero(active)[first]]
        with torch.no_grad():
            model.edge_weight[torch.from_numpy(gone)] = 0.0
    else:
        _set_cutoff(model, np.sort(np.abs(values.d[active])), len(first))
    after = model.find()
    if not after.connected:
        with torch.no_grad():
            for name, value in before.items():
                model.get_parameter(name).copy_(value)
        model.find()
        raise Disconnected
    return after


def drop_weakest(model: DynamicManifold, count: int) -> None:
    """Set omega of ``count`` free edges to 0, those of the least strength, but for those that an output needs."""
    evaluation = model.find()
    active = np.flatnonzero(np.abs(evaluation.host_values.d) > evaluation.host_values.c)
    strengths = np.abs(evaluation.host_values.strengths)
    weakest = np.argsort(strengths, kind="stable")[:count]
    weakest = np.setdiff1d(weakest, needed(evaluation.topology, weakest, strengths))
    with torch.no_grad():
        model.edge_weight[torch.from_numpy(model.candidates.slots[active[weakest]])] = 0.0


def fill(model: DynamicManifold, term: TimeTerm, target: float) -> float:
    """Add edges to ``model`` until a step takes about ``target`` seconds, SLACK less or somewhat more; returns what it
    then takes.

    The closest candidates below the cutoff come first.  Free edges are added one by one: their omega grows until they
    are just above the cutoff; if closeness is computed from the rows alone, the cutoff falls instead.  Ends early where
    no candidates are left.
    """
    evaluation = model.find()
    seconds = term.measure(evaluation)
    for _ in range(MAX_FILLS):
        missing = (1.0 - SLACK) * target - seconds
        if missing <= 0.0:
            break
        values, candidates = evaluation.host_values, evaluation.host.candidates
        assert candidates is not None
        size = np.abs(values.d)
        readers = np.repeat(np.arange(model.config.n_rows), np.diff(candidates.indptr)) + model.config.graph.n_inputs
        near = (size <= values.c) & (size > values.threshold)  # of others omega would have to become huge
        usable = np.flatnonzero(near & evaluation.topology.live[readers])
        prices = term.prices(evaluation)
        edge = max(prices.edge, prices.lone, 1e-3 * seconds / max(evaluation.n_edges, 1))
        count = math.ceil(min(missing / edge, LARGEST_FILL * evaluation.n_edges))
        added = usable[np.argsort(-size[usable], kind="stable")[:count]]
        if len(added) == 0:
            break
        if model.config.edges in OMEGA_IN_CLOSENESS:
            slots = torch.from_numpy(candidates.slots[added])
            factor = torch.from_numpy(NEW_EDGE * values.c / size[added])
            with torch.no_grad():
                model.edge_weight[slots] *= factor.to(model.edge_weight)
        else:
            _set_cutoff(model, np.sort(size), len(size) - evaluation.n_edges - len(added))
        evaluation = model.find()
        seconds = term.measure(evaluation)
    return seconds


def keep_edges(model: DynamicManifold, count: int) -> int:
    """Move the cutoff so that the ``count`` closest candidates are active; returns how many are, in the end.

    A cutoff near 1 would make strengths huge, and none above 1 exists: before that, the omega of the other free edges
    becomes 0 instead.  Where inputs would no longer reach an output, free edges of a path to it come closer and stay
    instead of others.  Raises ValueError, with the network changed, if the edges do not connect inputs and outputs.
    """
    if model.config.edges in OMEGA_IN_CLOSENESS:
        _protect(model, count)
    for _ in range(MAX_CUTS):  # a lower cutoff may admit pairs that were not candidates
        evaluation = model.find()
        if evaluation.n_edges == count:
            break
        d = np.abs(evaluation.host_values.d)
        sizes = np.sort(d)
        if (
            model.config.edges in OMEGA_IN_CLOSENESS
            and evaluation.n_edges > count
            and sizes[-count] > max(HIGHEST_CUTOFF, evaluation.host_values.c)
        ):
            others = np.argsort(d, kind="stable")[len(d) - evaluation.n_edges : len(d) - count]
            with torch.no_grad():
                model.edge_weight[torch.from_numpy(model.candidates.slots[others])] = 0.0
            continue
        _set_cutoff(model, sizes, len(sizes) - count)
    evaluation = model.find()
    if not evaluation.connected:
        raise ValueError(f"the {count} closest edges do not connect inputs and outputs")
    return evaluation.n_edges


def _protect(model: DynamicManifold, count: int) -> None:
    """Raise omega of those active edges that the ``count`` closest do without, and some output cannot; fewer edges than
    outputs are not worth it."""
    for _ in range(PROTECTIONS):  # others take their place among the least close
        evaluation = model.find()
        active = np.flatnonzero(np.abs(evaluation.host_values.d) > evaluation.host_values.c)
        size = np.abs(evaluation.host_values.d[active])
        if not model.config.graph.n_outputs <= count < len(active):
            break
        order = np.argsort(size, kind="stable")
        stays = needed(evaluation.topology, order[: len(active) - count], size)
        if len(stays) == 0:
            break
        factor = torch.from_numpy(NEW_EDGE * size[order[-count]] / size[stays])
        with torch.no_grad():
            model.edge_weight[torch.from_numpy(model.candidates.slots[active[stays]])] *= factor.to(model.edge_weight)


def saliency(model: DynamicManifold, data: Dataset, batch_size: int) -> Floats:
    """|strength * gradient of the objective| of the active edges (n_edges,), summed over SALIENCY_BATCHES batches of
    training data."""
    total = np.zeros(model.topology.n_edges)
    for k in range(min(SALIENCY_BATCHES, -(-len(data.x_train) // batch_size))):
        rows = slice(k * batch_size, (k + 1) * batch_size)
        with torch.enable_grad():
            x, y = (t[rows].to(model.alpha.device) for t in (data.x_train, data.y_train))
            weights, lengths = (None if t is None else t[rows] for t in (data.weights, data.lengths_train))
            options = {"lengths": lengths, "last": not data.per_step} if model.recurrent else {}
            loss = objective(model(x, **options), y, data.task, weights, lengths)
            strengths = model.strengths
            (gradient,) = torch.autograd.grad(loss, strengths)
        total += (strengths.detach() * gradient).abs().cpu().numpy()
    return total


def _saved(evaluation: Evaluation, term: TimeTerm) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Seconds that removing each active edge should save, and the block of each: edges save a block together.

    Those of a neuron are shared by the edges that read it, those of a block by its edges.  Where blocks cost nothing,
    or its edges one by one cost less than a block, every edge stands for itself.
    """
    values, topology, prices = evaluation.host_values, evaluation.topology, term.prices(evaluation)
    active = np.abs(values.d) > values.c
    found = evaluation.expected_cost(term.settings.tau, prices._replace(block=0.0, lone=0.0))
    readers = np.diff(topology.t_indptr)[topology.indices]
    unit = np.where(topology.indices < evaluation.config.graph.n_inputs, prices.input, prices.neuron)
    saved: Any = np.maximum(found.by_gate[active], prices.edge) + unit / np.maximum(readers, 1) + 1e-15
    together = np.arange(len(saved))
    if prices.block > 0.0:
        blocks = Covering.of(evaluation.host).blocks
        alone = blocks < 0  # an edge of a neuron that reaches no output is in no block
        together = np.where(alone, blocks.max(initial=-1) + 1 + together, blocks)
        size = np.bincount(together)[together]
        shares = np.where(alone, 0.0, prices.block) / size
        if prices.lone > 0.0:
            single = prices.lone * size < prices.block
            shares = np.where(single & ~alone, prices.lone, shares)
            together = np.where(single, together.max(initial=-1) + 1 + np.arange(len(saved)), together)
        saved = saved + shares
    return saved, together


def _summed(numbers: Floats, together: NDArray[np.int64]) -> Any:
    """For each edge the sum over those of its block."""
    return np.bincount(together, weights=numbers)[together]


def _set_cutoff(model: DynamicManifold, sizes: Floats, count: int) -> None:
    """Move the cutoff above the ``count`` weakest of some candidates; ``sizes`` is their closeness, ascending."""
    count = max(count, 1)
    least = float(sizes[min(count, len(sizes) - 1)])
    below = float(sizes[min(count, len(sizes) - 1) - 1])
    c = min(max(0.5 * (least + below), below * (1 + 1e-6)), 1 - 1e-6)
    with torch.no_grad():
        model.cutoff.fill_(math.log(c / (1 - c)))


class Frozen:
    """Keeps the structure of a model as it is now, while weights, biases and free edges' omega are trained."""

    TRAINED = ("weight", "bias", "edge_weight", *GATES, "rate")
    MARGIN = 1e-3  # share of the cutoff by which an active edge stays above it

    def __init__(self, model: DynamicManifold):
        evaluation = model.find()
        self.model = model
        self._omega_in_closeness = model.config.edges in OMEGA_IN_CLOSENESS
        if self._omega_in_closeness:
            values, candidates, capacity = evaluation.host_values, model.candidates, model.capacity
            self._kept = model.edge_weight.detach().clone()
            active, least = np.zeros(capacity, np.bool_), np.zeros(capacity)
            active[candidates.slots] = np.abs(values.d) > values.c
            # bounds of omega; from rows and cutoff alone, so that a resumed run has the same bits
            rows = np.repeat(np.arange(model.config.n_rows), np.diff(candidates.indptr))
            geometry = evaluation.engine.geometry
            reach = np.abs(geometry.closeness_without_omega(values.rows, rows, candidates.indices))
            least[candidates.slots] = values.c * (1 + self.MARGIN) / np.maximum(reach, 1e-30)
            self._active = torch.from_numpy(active).to(self._kept.device)
            self._least = torch.from_numpy(least).to(self._kept)

    def clear_gradients(self) -> None:
        """After a backward pass: remove the gradients of what would change the structure."""
        for name, parameter in self.model.named_parameters():
            if name not in self.TRAINED:
                parameter.grad = None

    def of_slots(self, slots: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of all slots or of these: omega of then, the least |omega| of an active edge, and which are active; None
        where edges have none that their structure depends on."""
        if not self._omega_in_closeness:
            return None
        arrays = self._kept, self._least, self._active
        return arrays if slots is None else (arrays[0][slots], arrays[1][slots], arrays[2][slots])

    @torch.no_grad()
    def hold(self, omega: Tensor, slots: Tensor | None = None) -> None:
        """After an update of ``omega`` (of all slots, or of these): keep every edge on its side of the cutoff."""
        arrays = self.of_slots(slots)
        if arrays is None:
            return
        kept, least, active = arrays
        held = torch.where(kept < 0, torch.minimum(omega, -least), torch.maximum(omega, least))
        omega.copy_(torch.where(active, held, kept))
