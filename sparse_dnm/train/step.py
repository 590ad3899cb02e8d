"""Loss of a batch and its gradient: by the kernels alone, or by torch's autograd.

Both leave the gradients in the parameters' ``grad``, as ``backward`` does.  A step of training costs little more than
its kernels in the first way; the second is for models with hooks, frozen parameters or a forward of their own,
and for executors without kernels.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules import module

from sparse_dnm.config import SCALARS, TrainConfig
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.recurrence import Network, Way
from sparse_dnm.loss.proxy import flow_loss
from sparse_dnm.loss.term import TimeTerm
from sparse_dnm.loss.time import MeasuredTime
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.train.adam import Adam
from sparse_dnm.train.compact import CompactEdges
from sparse_dnm.train.costs import Costs, Terms, total_of
from sparse_dnm.train.objective import objective
from sparse_dnm.train.trim import Frozen

KERNELS = backend.kernels(torch.device("cpu"))
NO_WEIGHTS = np.empty(0)

HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def step_for(
    model: DynamicManifold, task: str, config: TrainConfig, optimizer: torch.optim.Optimizer,
    costs: Costs | None = None, per_step: bool = False,
) -> KernelStep | AutogradStep:  # fmt: skip
    """The kind of step that fits ``model`` as it is now; ``task`` is that of a Dataset; ``costs=None`` leaves them out;
    ``per_step``: sequences have a target for each time step.

    Raises ValueError where nothing can be trained.
    """
    parameters = list(model.parameters())
    if not any(p.requires_grad for p in parameters):
        raise ValueError("no parameter of the model requires a gradient; thaw one with requires_grad_(True)")
    hooks = [*(getattr(model, f"_{name}") for name in HOOKS), *(getattr(module, f"_global_{name}") for name in HOOKS)]
    hooks += [h for p in parameters for h in (p._backward_hooks, p._post_accumulate_grad_hooks)]
    plain = (
        type(model) is DynamicManifold
        and "forward" not in vars(model)
        and model.engine.fused
        and all(p.requires_grad for p in parameters)
        and not any(hooks)
        and not torch.nn.utils.parametrize.is_parametrized(model)
    )
    if plain and model.recurrent:
        return SequenceStep(model, task, config, costs or Costs(config), optimizer, per_step)
    if plain:
        return KernelStep(model, task, config, costs or Costs(config), optimizer)
    return AutogradStep(model, task, config, costs or Costs(config), per_step)


class KernelStep:
    """Forward, loss and gradient by one kernel after the other, without a graph."""

    def __init__(
        self, model: DynamicManifold, task: str, config: TrainConfig, costs: Costs, optimizer: torch.optim.Optimizer
    ):
        self.model, self.config, self.costs = model, config, costs
        self.objective = "cross_entropy" if task == "classification" else "squared_error"  # name of a kernel
        self.edges = CompactEdges(model, optimizer) if model.config.edges != "closeness" else None
        manifold, dtype = model.config, model.arrays()["alpha"].dtype
        self._n_weighted, self._squared = manifold.n_weighted, manifold.output == "square"
        self._scales = np.ones(manifold.n_neurons, dtype), np.zeros(manifold.n_neurons, dtype)
        self._by_scalar = np.zeros((len(SCALARS), manifold.n_rows), dtype)
        self._by_weight, self._by_bias = np.zeros(manifold.n_neurons, dtype), np.zeros(manifold.n_neurons, dtype)
        self._by_cutoff = np.zeros((), dtype)
        self._timing: MeasuredTime | None = None  # the term of measured time, if it times the present step
        self._evaluation: Any = None
        self.engine: Any = model.engine
        rows = torch.from_numpy(self._by_scalar)
        self._gradients = {name: rows[SCALARS.index(name)] for name in self.engine.geometry.scalars}
        self._gradients["cutoff"] = torch.from_numpy(self._by_cutoff)
        for name, by in (("weight", self._by_weight), ("bias", self._by_bias)):
            self._gradients[name] = torch.from_numpy(by[: self._n_weighted])

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Outputs of the batch x; ``lengths`` are None, as a sequence is a matter of `SequenceStep`."""
        assert lengths is None
        e = self._find(x)
        speed = self.costs.speed
        timed = isinstance(speed, TimeTerm) and self._is_timed(speed)
        self._timing = speed if timed and isinstance(speed, MeasuredTime) else None
        clock = None if self._timing is None else self._timing.clock.read
        self._linear, self._saved = self.engine.forward(e.structure, e.values.strengths, self._x, self._scales, clock)
        self._outputs = self._linear * self._linear if self._squared else self._linear
        return torch.from_numpy(self._outputs)

    def _find(self, x: Tensor) -> Evaluation:
        """The structure of the present parameters and its values; takes the scales of the neurons and the batch x."""
        model, edges = self.model, self.edges
        self.engine = engine = model.engine
        arrays, scales, omega = model.arrays(), self._scales, None
        if edges is not None:
            edges.load()
            omega = edges.omega.numpy()
        self._evaluation = e = model.find(arrays, omega, None if edges is None else edges.store)
        if edges is not None:
            edges.load()  # the candidates may have changed
        scales[0][: self._n_weighted], scales[1][: self._n_weighted] = arrays["weight"], arrays["bias"]
        self._x = engine.array(x)
        return e

    def loss(self, y: Tensor, report: bool, weights: Tensor | None = None) -> Terms:
        """Loss of the last forward, against the targets y; ``weights`` float64 (batch,) of the samples, None: all 1."""
        self._by_output = np.empty_like(self._outputs)
        kernel = getattr(KERNELS, self.objective)
        scale = self.config.objective * (2.0 if self._squared else 1.0)
        of_samples = NO_WEIGHTS if weights is None else weights.numpy()
        value = kernel(self._outputs, y.contiguous().numpy(), of_samples, scale, self._by_output)
        if self._squared:
            self._by_output *= self._linear
        return self._total(value, report)

    def _total(self, value: float, report: bool) -> Terms:
        """The loss whose objective is ``value``."""
        e = self._evaluation
        speed, memory = self._speed(e, report), self.costs.memory
        memory_value = None if memory is None else memory.value(e)
        return total_of(self.config, self.costs, value, e.values.imbalance**2, speed, memory_value)

    def _speed(self, e: Evaluation, report: bool) -> float | None:
        """The term for speed; one that rests is only measured for a report."""
        speed = self.costs.speed
        if not isinstance(speed, TimeTerm):
            return None if speed is None else speed.value(e)
        if self.costs.resting and not report:
            return None
        return speed.value(e, self._timing is not None)

    def _is_timed(self, speed: TimeTerm) -> bool:
        """Whether the present step is to be timed by itself.  A term that rests is asked at single steps only."""
        if self.costs.resting:
            speed.pass_calls(speed.untimed_calls)
        return speed.begin_step()

    def backward(self) -> None:
        """Gradient of that loss."""
        engine, e, by_closeness = self.engine, self._evaluation, None
        strengths, timing = e.values.strengths, self._timing
        clock = None if timing is None else timing.clock.read
        found = engine.backward(e.structure, strengths, self._saved, self._by_output, clock)
        self._by_weight[:], self._by_bias[:] = found.weight, found.bias
        ring = self.model.ring(e)
        if ring is not None:
            by_closeness = engine.ring_gradient(ring, self._saved, found, strengths, self._x)
        self._edges_back(found.strengths, by_closeness)
        if timing is not None:
            timing.end_step(e, self._saved.seconds + found.seconds - 2 * timing.clock.overhead)

    def _edges_back(self, by_strength: Floats, by_closeness: Floats | None) -> None:
        """From gradients of the strengths and of the ring's candidates (None: no ring) to those of the parameters."""
        model, config, e, by_cutoff = self.model, self.config, self._evaluation, 0.0
        for coefficient, term in zip(self.costs.coefficients(), self.costs.terms(), strict=True):
            slope = term.gradient(e) if term is not None and coefficient else None
            if slope is not None:
                scaled = slope.by_closeness * slope.by_closeness.dtype.type(coefficient)
                by_closeness = scaled if by_closeness is None else by_closeness + scaled
                by_cutoff += coefficient * slope.by_cutoff
        by_imbalance = 2.0 * config.flow * e.values.imbalance
        back = self.engine.edges_backward(
            e.structure, e.values, by_strength, by_closeness, by_imbalance, self._by_scalar
        )
        self._by_cutoff[()] = back.cutoff + by_cutoff
        for name, gradient in self._gradients.items():
            getattr(model, name).grad = gradient
        if self.edges is not None:
            self.by_omega = torch.from_numpy(back.omega)

    def update(self, optimizer: Adam, frozen: Frozen | None) -> None:
        """A step of the optimiser; where a structure is frozen, no edge appears or goes."""
        edges, instead = self.edges, dict[Tensor, Any]()
        if edges is not None:
            if self.config.omega_decay:
                self.by_omega.add_(edges.omega, alpha=self.config.omega_decay)
            instead[self.model.edge_weight] = edges.omega, self.by_omega, edges.first, edges.second
        optimizer.update(instead)
        if frozen is not None and edges is not None:
            frozen.hold(edges.omega, edges.slots)

    def passed(self, steps: int) -> None:
        """So many steps were made by `fused.FusedSteps`."""
        speed = self.costs.speed
        if isinstance(speed, TimeTerm):
            speed.pass_calls(steps)

    @property
    def evaluation(self) -> Evaluation:
        """Of the last forward; before the first, of the present parameters."""
        return self.model.find() if self._evaluation is None else self._evaluation

    def finish(self) -> None:
        """Write back what is held beside the model."""
        if self.edges is not None:
            self.edges.store()


class SequenceStep(KernelStep):
    """The same through the time steps of sequences, whose targets are one each, or with ``per_step`` one for each."""

    def __init__(
        self, model: DynamicManifold, task: str, config: TrainConfig, costs: Costs, optimizer: torch.optim.Optimizer,
        per_step: bool,
    ):  # fmt: skip
        super().__init__(model, task, config, costs, optimizer)
        self.engine.check_sequences()
        self._per_step, self._recurrence = per_step, model.known_recurrence()
        names = model.gate_names()
        rows = [getattr(model, name).reshape(-1, len(self._recurrence.cells)).shape[0] for name in names]
        self._by_gates = np.zeros((sum(rows), len(self._recurrence.cells)), self._by_weight.dtype)
        parts = np.split(self._by_gates, np.cumsum(rows)[:-1]) if rows else []
        for name, part in zip(names, parts, strict=True):
            self._gradients[name] = torch.from_numpy(part).view_as(getattr(model, name))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Outputs of sequences x; ``lengths`` (batch,): their time steps, None: all.  Those of the last step, or of
        each."""
        e, model, config = self._find(x), self.model, self.config
        gates = [getattr(model, name).detach().numpy() for name in model.gate_names()]
        shape = self._by_gates.shape
        network = Network(
            e.structure, self._recurrence, e.values.strengths, self._scales,
            np.concatenate([each.reshape(-1, shape[1]) for each in gates]) if gates else np.empty(shape, self._x.dtype),
        )  # fmt: skip
        steps = None if lengths is None else lengths.numpy()
        way = Way(steps, config.tbptt, config.recompute_every, model.ring(e))
        self._state = np.zeros((len(self._x), self._recurrence.n_state), self._x.dtype)
        out, _, self._saved = self.engine.forward_sequence(network, self._x, self._state, way, True)
        self._of_steps = out * out if self._squared else out
        self._linear, self._lengths = out, steps
        self._last = np.arange(len(out)), np.full(len(out), out.shape[1] - 1) if steps is None else steps - 1
        return torch.from_numpy(self._of_steps if self._per_step else self._of_steps[self._last])

    def loss(self, y: Tensor, report: bool, weights: Tensor | None = None) -> Terms:
        """See `KernelStep.loss`.  Of targets per time step each counts as much."""
        chosen: Any = self._last
        targets, of_rows = y.contiguous().numpy(), NO_WEIGHTS if weights is None else weights.numpy()
        if self._per_step:
            batch, time = self._of_steps.shape[:2]
            inside = np.full(batch, time) if self._lengths is None else self._lengths
            chosen = np.arange(time) < inside[:, None]
            targets = targets[chosen]
            if weights is not None:
                of_rows = np.repeat(of_rows, inside)
        outputs = self._of_steps[chosen]
        scale, by_output = self.config.objective * (2.0 if self._squared else 1.0), np.empty_like(outputs)
        value = getattr(KERNELS, self.objective)(outputs, targets, of_rows, scale, by_output)
        self._by_output = np.zeros_like(self._of_steps)
        self._by_output[chosen] = by_output
        if self._squared:
            self._by_output *= self._linear
        return self._total(value, report)

    def backward(self) -> None:
        """Gradient of that loss."""
        found = self.engine.backward_sequence(self._saved, self._by_output, np.zeros_like(self._state), False)
        self._by_weight[:], self._by_bias[:], self._by_gates[:] = found.weight, found.bias, found.gates
        self._edges_back(found.strengths, found.closeness)


class AutogradStep:
    """Forward, loss and gradient through torch's graph."""

    def __init__(
        self, model: DynamicManifold, task: str, config: TrainConfig, costs: Costs, per_step: bool = False
    ) -> None:
        self.model, self.config, self.costs = model, config, costs
        self._evaluation: Any = None
        self._task = task
        self._lengths: Tensor | None = None
        self._options: dict[str, Any] = {}  # of sequences
        if model.recurrent:
            self._options = {
                "last": not per_step, "tbptt": config.tbptt, "recompute_every": config.recompute_every
            }  # fmt: skip

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Outputs of the batch x; ``lengths`` (batch,) of its sequences, None: all time steps."""
        self._lengths = lengths
        self._outputs: Tensor = self.model(x, **({} if lengths is None else {"lengths": lengths}), **self._options)
        self._evaluation = self.model.evaluation
        return self._outputs

    def loss(self, y: Tensor, report: bool, weights: Tensor | None = None) -> Terms:
        """Loss of the last forward, against the targets y; ``weights`` (batch,) of the samples, None: all 1; a term of
        coefficient 0 only for a ``report``."""
        config = self.config
        self._terms: list[Tensor | None] = [objective(self._outputs, y, self._task, weights, self._lengths)]
        self._coefficients = [config.objective, config.flow, *self.costs.coefficients()]
        for coefficient, term in zip(self._coefficients[1:], (flow_loss, *self.costs.terms()), strict=True):
            value = None
            if term is not None and (coefficient or report):
                if self.costs.resting and isinstance(term, TimeTerm):
                    term.pass_calls(term.untimed_calls)  # the next call is a timed one
                with contextlib.nullcontext() if coefficient else torch.no_grad():
                    value = term(self.model)
            self._terms.append(value)
        first, *others = (None if term is None else term.item() for term in self._terms)
        assert first is not None
        return total_of(config, self.costs, first, *others)

    def backward(self) -> None:
        """Gradient of that loss; its terms are the roots, so that adding them up makes no graph."""
        for parameter in self.model.parameters():
            parameter.grad = None
        pairs = zip(self._terms, self._coefficients, strict=True)
        roots = [(term, term.new_full((), c)) for term, c in pairs if term is not None and term.requires_grad]
        torch.autograd.backward([term for term, _ in roots], [coefficient for _, coefficient in roots])

    def update(self, optimizer: Adam, frozen: Frozen | None) -> None:
        """A step of the optimiser; where a structure is frozen, no edge appears or goes."""
        omega, decay = getattr(self.model, "edge_weight", None), self.config.omega_decay
        if decay and omega is not None and omega.grad is not None:
            omega.grad.add_(omega.detach(), alpha=decay)
        optimizer.update({})
        if frozen is not None and omega is not None:
            frozen.hold(omega)

    @property
    def evaluation(self) -> Evaluation:
        """Of the last forward; before the first, of the present parameters."""
        return self.model.find() if self._evaluation is None else self._evaluation

    def finish(self) -> None:
        """Nothing is held beside the model."""
