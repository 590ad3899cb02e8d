"""Many steps of training by one call of compiled code (DESIGN, 4.7).

`FusedSteps.run` makes the steps that need no Python code, with the same bits as `step.KernelStep` one by one.  Before
other code reads the results of a step, that step is made alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine.cpu_steps import CpuSteps, StepSettings, Term
from sparse_dnm.engine.cpu_structure import CpuStructure
from sparse_dnm.loss.proxy import SparsityProxy
from sparse_dnm.loss.term import TimeTerm
from sparse_dnm.train.adam import Adam, factors_of
from sparse_dnm.train.augment import Draw
from sparse_dnm.train.step import NO_WEIGHTS, KernelStep
from sparse_dnm.train.trim import Frozen


class Made(NamedTuple):
    """The result of some steps: their number; edges and loss of the last one."""

    steps: int
    n_edges: int
    loss: float


class FusedSteps:
    """Steps of the training of ``making.model`` on ``data``, batches of ``config.batch_size``."""

    def __init__(self, making: KernelStep, data: Dataset, optimizer: Adam):
        self.making, self._model, self._optimizer = making, making.model, optimizer
        config, speed = making.config, making.costs.speed
        settings = StepSettings(
            batch=config.batch_size,
            image=int(data.period) if config.shift else 0,
            objective=making.objective,
            coefficients=(config.objective, config.flow),
            omega_decay=config.omega_decay,
            gates=isinstance(speed, SparsityProxy) and not speed.flat,
            cost=isinstance(speed, TimeTerm),
            ring=config.kappa > 0 and config.prunes,
            holds=config.fine_tune > 0,
        )
        tensors = data.x_train, data.y_train
        self._copied = [(t, t._version) for t in tensors if not t.is_contiguous()]
        x, y = (t.contiguous().numpy() for t in tensors)
        weights = NO_WEIGHTS if data.weights is None else data.weights.numpy()
        self._steps = CpuSteps(making.engine, settings, x, y, weights)
        self._all = dict(making.model.named_parameters())
        self._names = [name for name in self._all if name != "edge_weight"]
        self._names += ["edge_weight"] if making.edges is not None else []
        self._places: tuple[int, ...] = ()  # in memory, of the parameters and their moments
        self._structure: CpuStructure | None = None  # after the last call, where that has changed the candidates
        self._kept: tuple[Any, Any] = None, None  # what is frozen, and the arrays that hold it

    def ready(self) -> bool:
        """Whether steps can be made now: the kernel knows the terms of the loss, no executor is on trial, and Adam has
        its moments."""
        making, model = self.making, self._model
        batch, executor = making.config.batch_size, model.executor
        structure = self._find_structure()
        if structure is None or making.engine is not self._steps.engine:
            return False  # candidates were added since, or the executor is another
        if any(t._version != version for t, version in self._copied):
            return False  # the copies are of other data
        if executor.takes_blocks("train", batch):
            return False  # which the kernel does not know; larger batches run as columns
        for phase in ("forward", "backward"):
            executor.choose(phase, batch, structure)
            if executor.tries(phase, batch):
                return False
        state = self._optimizer.state
        usable = all(p.is_contiguous() and (p.grad is None or p in state) for p in self._all.values())
        return usable and self._term() is not None

    def most(self) -> int | None:
        """The number of steps until one is timed; None: no limit."""
        costs = self.making.costs
        return costs.speed.untimed_calls if isinstance(costs.speed, TimeTerm) and not costs.resting else None

    def run(self, draws: list[Draw], kappas: list[float], rates: list[float], frozen: Frozen | None) -> Made:
        """Make a step for each of the ``draws``, with these ``kappas`` and learning ``rates``; stops before a step
        that needs more than the kernel can do."""
        making, structure, term = self.making, self._find_structure(), self._term()
        assert structure is not None
        assert term is not None
        capacity = self._model.capacity
        if structure.candidates is not self._steps.candidates or capacity != self._steps.capacity:
            self._steps.begin(structure, capacity)
            self._kept, self._places = (None, None), ()
        self._find_parameters()
        counts = list[torch.Tensor]()
        rows = [self._row_of(name, frozen, counts) for name in self._names]
        batches = {**_stacked(draws), "kappas": np.array(kappas, np.float64), **self._factors(counts, rates)}
        made, n_edges, loss, changed = self._steps.run(structure, rows, batches, term, self._held(frozen))
        for count in counts:
            count.numpy()[()] += made
        making.passed(made)
        if changed:
            candidates, births = self._steps.searched()
            self._model.take_candidates(candidates, births)
            self._structure = replace(structure, candidates=candidates)
            if making.edges is not None:
                making.edges.hold(candidates, *self._steps.edges())
        if term.coefficient:
            loss += term.coefficient * self._value(n_edges)
        return Made(made, n_edges, loss)

    # -- arguments -------------------------------------------------------------------------------------------

    def _find_structure(self) -> CpuStructure | None:
        """The structure with which steps begin; None if it is not of the model's candidates."""
        candidates = self._model.candidates
        for found in (self.making.evaluation.structure, self._structure):
            if found is not None and found.candidates is candidates:
                return found
        return None

    def _term(self) -> Term | None:
        """The term of the loss that asks for a smaller network; None if the kernel does not know it."""
        costs = self.making.costs
        speed, coefficient = costs.speed, costs.coefficients()[0]
        if costs.memory is not None:
            return None
        if speed is None:
            return Term(0.0)
        if isinstance(speed, SparsityProxy):
            return Term(0.0 if speed.flat else coefficient, speed.tau, speed.power)
        prices = speed.known_prices()
        return None if prices is None else Term(coefficient, speed.settings.tau, prices=prices)

    def _value(self, n_edges: int) -> float:
        """The value of that term, which the kernel leaves out of the loss."""
        speed = self.making.costs.speed
        if isinstance(speed, SparsityProxy):
            return float((n_edges / self._model.config.possible_edges) ** speed.power)
        return 0.0 if speed is None else speed.seconds / speed.reference

    def _find_parameters(self) -> None:
        """Give the parameters to the kernel again if the memory of one, or of a moment, has moved."""
        edges, state = self.making.edges, self._optimizer.state
        if edges is not None:
            edges.load()
            own = self._steps.edges()
            if edges.omega.data_ptr() != own[0].ctypes.data:
                for array, tensor in zip(own, (edges.omega, edges.first, edges.second), strict=True):
                    array[:] = tensor.numpy()
                edges.hold(self._model.candidates, *own)
        tensors = {name: self._all[name] for name in self._names if name != "edge_weight"}  # which moves within a call
        moments = {
            name: [state.get(p, {}).get(key, p) for key in ("exp_avg", "exp_avg_sq")] for name, p in tensors.items()
        }
        places = tuple(t.data_ptr() for name, p in tensors.items() for t in (p, *moments[name]))
        if places != self._places:
            self._places = places
            (group,) = self._optimizer.param_groups
            self._steps.set_parameters(
                {name: _flat(t) for name, t in tensors.items()},
                {name: (_flat(first), _flat(second)) for name, (first, second) in moments.items()},
                group["betas"],
                group["eps"],
            )

    def _row_of(self, name: str, frozen: Frozen | None, counts: list[torch.Tensor]) -> int:
        """The index of a parameter's count of updates in ``counts``, to which it is appended; -1: not trained."""
        if frozen is not None and name not in Frozen.TRAINED:
            return -1
        count = self._optimizer.state[self._all[name]]["step"]
        for place, known in enumerate(counts):
            if known is count:
                return place
        counts.append(count)
        return len(counts) - 1

    def _factors(self, counts: list[torch.Tensor], rates: list[float]) -> dict[str, NDArray[np.float64]]:
        """lr / (1 - beta1**t) and sqrt(1 - beta2**t) for each count and step."""
        (group,) = self._optimizer.param_groups
        betas = group["betas"]
        pairs = [[factors_of(n + i, rate, *betas) for i, rate in enumerate(rates, 1)] for n in map(int, counts)]
        found = np.array(pairs).reshape(len(counts), len(rates), 2)
        return {"step_sizes": found[:, :, 0].copy(), "roots": found[:, :, 1].copy()}

    def _held(self, frozen: Frozen | None) -> Any:
        """The bounds that keep a frozen structure, in the order of the candidates; None if none is frozen."""
        if frozen is None:
            return None
        if self._kept[0] is not frozen:
            slots = self._model.candidates.slots
            tensors = None if slots is None else frozen.of_slots(torch.from_numpy(slots))
            self._kept = frozen, None if tensors is None else tuple(t.numpy() for t in tensors)
        return self._kept[1]


def _flat(tensor: torch.Tensor) -> NDArray[Any]:
    """The numbers of a contiguous tensor."""
    return tensor.detach().numpy().reshape(-1)


def _stacked(draws: list[Draw]) -> dict[str, NDArray[Any]]:
    """The draws of some steps, stacked into arrays."""
    n = len(draws)
    shifts = [d.shifts for d in draws if d.shifts is not None]
    kept = [d.kept for d in draws if d.kept is not None]
    return {
        "rows": torch.stack([d.rows for d in draws]).numpy(),
        "shifts": torch.stack(shifts).numpy().reshape(n, -1) if shifts else np.zeros((0, 0), np.int64),
        "kept": torch.stack(kept).numpy().reshape(n, -1) if kept else np.zeros((0, 0), np.bool_),
    }
