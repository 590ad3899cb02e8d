"""DynamicManifold: a network whose structure is computed; on the engine, on CPU and CUDA."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sparse_dnm.checks import DTYPES, check_dtype, check_input, check_shape
from sparse_dnm.config import INSIDE, ManifoldConfig
from sparse_dnm.engine import cuda as cuda_executor
from sparse_dnm.engine import cuda_structure as cuda_manifold
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autograd import EdgeStrength, StraightThrough
from sparse_dnm.engine.candidates import FEW, NO_STRUCTURE, Candidates, Evaluation, Windows, check_candidates, gate_sum
from sparse_dnm.engine.cpu import Floats, Plan, Scales
from sparse_dnm.engine.execution import propagate
from sparse_dnm.engine.ring import Ring
from sparse_dnm.engine.schedule import Executor, Schedule
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.init import initial_scalars

CANDIDATES = ("candidate_indptr", "candidate_indices", "_reference")  # the buffers that hold them


def _check_parameters(parameters: dict[str, Any], config: ManifoldConfig) -> None:
    """Raise ValueError where dtype or device have no kernels, devices differ, or a shape is not that of ``config``."""
    device = parameters["alpha"].device
    for name, p in parameters.items():
        check_dtype(p.dtype)
        if p.device != device:
            raise ValueError(
                f"parameter {name} is on {str(p.device)!r} and alpha on {str(device)!r}; move all to one device, as "
                "model.to(device) does"
            )
        if name != "edge_weight":
            size = config.n_sources if name in ("weight", "bias") else config.n_rows
            check_shape(name, p, () if name == "cutoff" else (size,))
    backend.kernels(device)


class _Arrays:
    """The parameters of a model as numpy arrays by name, made anew only where one has moved."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int, bool]] = []
        self._arrays: dict[str, Floats] = {}

    def of(self, parameters: dict[str, Any], config: ManifoldConfig) -> dict[str, Floats]:
        """Their numbers, by name; what is written to parameters of the CPU shows in the arrays.

        Raises ValueError where the parameters are not as the kernels need them (see `_check_parameters`).
        """
        places = [(p.data_ptr(), p.numel(), p.is_contiguous()) for p in parameters.values()]
        if places != self._places:
            _check_parameters(parameters, config)
            self._arrays = {name: p.detach().contiguous().cpu().numpy() for name, p in parameters.items()}
            # A copy of what is not contiguous, or not on the CPU, is made each time
            there = all(contiguous for _, _, contiguous in places) and parameters["alpha"].device.type == "cpu"
            self._places = places if there else []
        return self._arrays


@dataclass
class _Found:
    """What the last forward found: the structure, how it is run, and its values with their graph.

    ``bits``: those of the parameters that it was found from, where no graph was wanted: while they stay, so does it
    and so do ``scales``.  ``there``, ``structure``: the same on CUDA, where ``evaluation``, ``schedule`` and ``plan``
    are made only when somebody asks for arrays.
    """

    there: cuda_manifold.Found | None = None
    structure: cuda_executor.Structure | None = None
    bits: list[bytes] | None = None
    schedule: Schedule | None = None
    plan: Plan | None = None
    everything: bool = False  # neurons that reach no output run, too
    connected: bool = False
    scales: Scales | None = None
    evaluation: Evaluation | None = None
    closeness: Tensor | None = None
    strengths: Tensor | None = None
    flow: Tensor | None = None


class DynamicManifold(nn.Module):
    """A Dynamic Neural Manifold: a DAG of neurons whose edges are computed from a few scalars per neuron.

    model(x): x (batch, n_inputs) of the model's dtype -> (batch, n_outputs).  Each call finds the structure that
    belongs to the present parameters, exactly, then runs the live part of it.

    One thread may use a model at a time: a call leaves what it found in it.

    Parameters: alpha, mu, sigma (and beta, gamma, theta, phi, not where ``edges="free"``), each (n_rows,); cutoff ();
    weight, bias (n_sources,); edge_weight (n_candidates,), not where ``edges="closeness"``.  edge_weight changes its
    length when the structure does; the moments of torch's optimisers that hold it move with their edges (see `follow`).
    ``kappa`` (a plain number, 0 at first) is the coefficient of the gradient that candidates below the cutoff receive,
    as if they were edges: with it a network grows, without it gradients are exact.

    Initial values are drawn from ``generator``; omega of a new edge from (config.seed, i, j) alone.
    """

    alpha: Tensor
    cutoff: Tensor
    weight: Tensor
    bias: Tensor
    edge_weight: nn.Parameter
    candidate_indptr: Tensor
    candidate_indices: Tensor
    _reference: Tensor

    def __init__(
        self,
        config: ManifoldConfig,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        executor: str = "auto",
        threads: int = 0,
    ):
        super().__init__()
        check_dtype(dtype)
        self.config = config
        self.executor = Executor(executor, threads)
        self._kappa = 0.0
        self._windows = Windows(config)
        for name, value in initial_scalars(config, generator, dtype).items():
            self.register_parameter(name, nn.Parameter(value))
        if self._windows.free:
            self.edge_weight = nn.Parameter(torch.empty(0, dtype=dtype))
            _FREE_MODELS.add(self)
        self._device: cuda_manifold.DeviceWindows | None = None
        self._set_candidates(Candidates.none(config.n_rows))
        self._inputs = np.arange(config.n_inputs, dtype=np.int32)
        self._outputs = np.arange(config.n_sources, config.n_neurons, dtype=np.int32)
        self._optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._found = _Found()
        self._arrays = _Arrays()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without what is found anew, and without the optimisers that follow this model."""
        return {**self.__dict__, "_found": _Found(), "_arrays": _Arrays(), "_optimizers": None, "_device": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_optimizers": weakref.WeakSet()})
        self._adopt()
        if self._windows.free:
            _FREE_MODELS.add(self)

    @property
    def kappa(self) -> float:
        """Coefficient of the ring's gradient."""
        return self._kappa

    @kappa.setter
    def kappa(self, value: float) -> None:
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise ValueError(f"kappa={value!r} must be a finite number >= 0; 0: gradients are exact")
        self._kappa = float(value)

    # -- structure -------------------------------------------------------------------------------------------

    def _set_candidates(self, candidates: Candidates) -> None:
        """Hold the candidates, as buffers too, so that a state_dict has them."""
        self._windows.latest = candidates
        arrays = candidates.indptr, candidates.indices, candidates.reference
        self._set_buffers(*(torch.from_numpy(array) for array in arrays))

    def _set_buffers(self, indptr: Tensor, indices: Tensor, reference: Tensor) -> None:
        """Hold the candidates where the parameters are."""
        for name, tensor in zip(CANDIDATES, (indptr, indices, reference), strict=True):
            if name in self._buffers:
                self._buffers[name] = tensor.to(self.alpha.device)  # as register_buffer does, without its checks
            else:
                self.register_buffer(name, tensor)
        if self._device is not None and self._device.device == self.alpha.device:
            self._there()  # a backward of before must see that they are others

    def _apply(self, fn: Any, recurse: bool = True) -> DynamicManifold:
        """As torch's, which moves the model; the candidates stay what they are, to the last bit."""
        before, device = self._buffers["_reference"], self.alpha.device
        super()._apply(fn, recurse)
        assert before is not None
        if before.is_meta:  # and a meta tensor holds nothing
            self._set_candidates(self._windows.latest)
            return self
        self._buffers["_reference"] = before.to(self.alpha.device)
        if self.alpha.device != device:
            self._found = _Found()
            self._adopt()
        return self

    def _adopt(self) -> None:
        """Take the candidates of the buffers for those of the CPU, where they have come there."""
        if self.alpha.device.type == "cpu":
            self._windows.latest = Candidates(*(self._buffers[name].numpy() for name in CANDIDATES))  # type: ignore[union-attr]

    def _there(self) -> cuda_manifold.DeviceWindows:
        """The search for structure on the CUDA device of the parameters, with the candidates of the moment."""
        windows, device = self._device, self.alpha.device
        if windows is None or windows.device != device:
            self._device = windows = cuda_manifold.DeviceWindows(self._windows, device)
        windows.take(*(self._buffers[name] for name in CANDIDATES))  # type: ignore[arg-type]
        return windows

    def _candidates(self) -> Candidates:
        """The candidates as arrays."""
        return self._there().latest.host if backend.on_cuda(self.alpha) else self._windows.latest

    def _scalars(self) -> list[Tensor]:
        """The row scalars that the edge mode has."""
        return [self._parameters[name] for name in self._windows.scalars]  # type: ignore[misc]

    def arrays(self) -> dict[str, Floats]:
        """The numbers of every parameter, by name."""
        return self._arrays.of(self._parameters, self.config)

    @torch.inference_mode(False)  # or what is made here could not be trained
    @torch.no_grad()
    def _rebuild(self, stale: Any, rows: Any) -> None:
        """Scan the ``stale`` rows for candidates; omega, its gradient and its optimiser moments go with their edges."""
        windows = self._windows
        with backend.use_threads(self.executor.threads):
            candidates, omega, origin = windows.search(windows.latest, stale, rows, self.arrays())
        self._set_candidates(candidates)
        if windows.free:
            self._replace_omega(torch.from_numpy(omega), torch.from_numpy(origin.astype(np.int64)))

    def _replace_omega(self, omega: Tensor, places: Tensor) -> None:
        """Give edge_weight new values; its gradient and moments are taken from ``places`` of the old, 0 where -1."""
        old, n_old = self.edge_weight, len(self.edge_weight)
        gradient, old.grad = old.grad, None
        # A graph of an earlier call keeps a gradient accumulator of the old length alive; torch lets go of it only
        # where the type of the data changes.
        old.data = torch.empty(0, dtype=torch.float16, device=old.device)
        old.data = omega.to(old.device)
        if gradient is not None:
            old.grad = _follow(gradient, places)
        for optimizer in self._optimizers:
            state = optimizer.state.get(old, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == (n_old,):
                    state[key] = _follow(value, places)

    @torch.no_grad()
    def add_candidates(self, rows: ArrayLike, sources: ArrayLike, omega: ArrayLike) -> None:
        """Make pairs candidates, each with its omega, (n,) each; where closeness has it as a factor only.

        ``rows`` count from the first neuron that is no input.  The gradient and moments of the others stay theirs.
        Raises ValueError where a pair is not possible or is one already.
        """
        if not self._windows.inside:
            raise ValueError(f"candidates can be added in edges {INSIDE} only, not {self.config.edges!r}")
        old, n_rows, limit = self._candidates(), self.config.n_rows, self.config.n_sources
        new, told, values_of = np.asarray(rows), np.asarray(sources), np.asarray(omega)
        if not new.shape == told.shape == values_of.shape == (len(new),):
            raise ValueError(f"rows {new.shape}, sources {told.shape} and omega {values_of.shape} must be (n,) each")
        if not np.isfinite(values_of).all():
            raise ValueError("omega must be finite")
        wrong = (new < 0) | (new >= n_rows) | (told < 0) | (told >= np.minimum(new + self.config.n_inputs, limit))
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"row {new[k]} (of {n_rows}) cannot read neuron {told[k]}: edges lead from lower to higher"
            )
        before = np.repeat(np.arange(n_rows), np.diff(old.indptr))
        all_rows = np.concatenate([before, new.astype(np.int64)])
        indices = np.concatenate([old.indices, told.astype(np.int32)])
        places = np.concatenate([np.arange(len(before)), np.full(len(indices) - len(before), -1)])
        held = self.arrays()["edge_weight"]
        values = np.concatenate([held, values_of.astype(held.dtype)])
        order = np.lexsort((indices, all_rows))
        twice = (np.diff(all_rows[order]) == 0) & (np.diff(indices[order]) == 0)
        if twice.any():
            k = order[np.flatnonzero(twice)[0]]
            raise ValueError(f"row {all_rows[k]} has neuron {indices[k]} as a candidate already; give each pair once")
        indptr = np.zeros(n_rows + 1, np.int64)
        np.cumsum(np.bincount(all_rows, minlength=n_rows), out=indptr[1:])
        self._set_candidates(Candidates(indptr, np.ascontiguousarray(indices[order]), old.reference))
        self._replace_omega(*(torch.from_numpy(a[order]).to(self.edge_weight.device) for a in (values, places)))

    def forget_rows(self, rows: NDArray[np.integer]) -> None:
        """Let pairs enter ``rows`` as at the start, when they are looked for next."""
        latest = self._candidates()
        reference = latest.reference.copy()
        reference[rows] = Candidates.none(self.config.n_rows).reference[rows]
        self._set_candidates(replace(latest, reference=reference))

    def _find_structure(self, arrays: dict[str, Floats]) -> Evaluation:
        """Evaluate the closeness of all candidates, after rebuilding them where that is needed."""
        schedule = self._found.schedule
        if self._windows.free:
            check_shape("edge_weight", self.edge_weight, self._windows.latest.indices.shape)
        before = (schedule.topology.indptr, schedule.topology.indices) if schedule else NO_STRUCTURE

        def rebuilt(stale: Any, rows: Any) -> Evaluation:
            self._rebuild(stale, rows)
            return self._windows.evaluate(self.arrays(), self.executor.threads, before, check=False)

        found = self._windows.evaluate(arrays, self.executor.threads, before)
        if found.stale is not None:
            found = rebuilt(found.stale, found.rows)
        if found.crowded:
            found = rebuilt(np.ones(self.config.n_rows, np.bool_), found.rows)
        if not found.same:
            self._found.schedule = self._schedule_of(found.row_starts, found.sources)
        return found

    def _schedule_of(self, row_starts: NDArray[np.int64], sources: NDArray[np.int32]) -> Schedule:
        """That of active edges."""
        return Schedule(Topology(row_starts, sources, self._inputs, self._outputs, self._windows.buffers.empty))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _find_there(self) -> cuda_manifold.Found:
        """`_find_structure` on CUDA, and how it is run."""
        _check_parameters(self._parameters, self.config)
        try:
            return self._search_there()
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"the search for edges among {len(self.candidate_indices):,} candidates does not fit "
                f"{str(self.alpha.device)!r} ({str(error).partition('.')[0]}); narrow sigma, raise cutoff, or move the "
                "model to 'cpu'"
            ) from None

    def _search_there(self) -> cuda_manifold.Found:
        windows, held = self._there(), self._found
        if self._windows.free:
            check_shape("edge_weight", self.edge_weight, tuple(windows.latest.indices.shape))
        structure, everything = held.structure, self.kappa > 0  # then the ring reads all messages
        before = None if structure is None else (structure.indptr, structure.indices)

        def rebuilt(stale: Tensor, found: cuda_manifold.Found) -> cuda_manifold.Found:
            candidates, omega, origin = windows.search(windows.latest, stale, found)
            self._set_buffers(*candidates)
            if self._windows.free:
                self._replace_omega(omega, origin)
            self._there()
            return windows.evaluate(self._parameters, before, check=False)  # type: ignore[arg-type]

        found = windows.evaluate(self._parameters, before)  # type: ignore[arg-type]
        if found.stale is not None:
            found = rebuilt(found.stale, found)
        if found.crowded:
            found = rebuilt(torch.ones_like(found.rows[0], dtype=torch.bool), found)
        held.there, held.evaluation = found, None
        if (
            not found.same
            or held.everything != everything
            or structure is None
            or structure.slope.dtype != found.d.dtype
        ):
            held.structure, held.connected = windows.structure(found, everything)
            held.everything = everything
            held.schedule = held.plan = None
        return found

    def find(self, arrays: dict[str, Floats] | None = None) -> tuple[Evaluation, Plan]:
        """Find the structure of the present parameters, without a graph: its strengths, and the plan to run it.

        ``arrays``: what `arrays` returns, where the caller has it.
        """
        held = self._found
        held.bits = held.strengths = held.closeness = held.flow = None
        if backend.on_cuda(self._parameters["alpha"]):  # type: ignore[arg-type]
            self._find_there()
            return self._as_arrays()
        held.there = held.structure = None
        held.evaluation = self._find_structure(self.arrays() if arrays is None else arrays)
        if held.plan is not None and held.plan.slope.dtype != held.evaluation.d.dtype:
            held.plan = None
        return held.evaluation, self._make_plan()

    def _as_arrays(self) -> tuple[Evaluation, Plan]:
        """What was found last, on whatever device, for those who want arrays of the CPU."""
        held = self._found
        if held.evaluation is None and held.there is None:
            self._evaluate()
        if held.evaluation is None:
            assert held.there is not None
            many = len(held.there.d) > FEW
            known = held.schedule.topology if held.schedule else None
            held.evaluation = e = held.there.host(self.executor.threads if many else 1, known)
            held.schedule = held.schedule or self._schedule_of(e.row_starts, e.sources)
        return held.evaluation, self._make_plan()

    def _evaluate(self) -> None:
        """Find the structure of the present parameters and its values, with a graph where gradients are wanted."""
        if backend.on_cuda(self.alpha):
            self._find_there()
            self._make_values()
            return
        _, plan = self.find()
        self._make_values()
        if not torch.is_grad_enabled():
            arrays = self.arrays()
            self._found.scales = plan.scales(arrays["weight"], arrays["bias"])
            self._found.bits = self._bits()

    def _make_values(self) -> None:
        """Strengths, closeness and flow of what was found at the present parameters, as tensors."""
        held, omega = self._found, self.edge_weight if self._windows.free else None
        parameters = self.cutoff, omega, *self._scalars()
        if held.there is not None:
            made = cuda_manifold.EdgeStrength.apply(held.there, self._there(), *parameters)
        else:
            made = EdgeStrength.apply(held.evaluation, self._windows, *parameters)
        held.strengths, held.closeness, held.flow = made

    def _bits(self) -> list[bytes]:
        """The bits of all parameters."""
        return [array.tobytes() for array in self.arrays().values()]

    def _current(self) -> None:
        """Hold the last forward's; evaluated again where it was made without a graph and one is wanted now."""
        held = self._found
        if held.evaluation is None and held.there is None:
            self._evaluate()
        elif not torch.is_grad_enabled():
            if held.strengths is None:
                self._make_values()
        elif held.strengths is None or not held.strengths.requires_grad:
            trained = (name for name, p in self.named_parameters() if p.requires_grad)
            if held.strengths is None or not {"weight", "bias"}.issuperset(trained):
                self._evaluate()

    def _last_schedule(self) -> Schedule:
        held = self._found
        if held.evaluation is None or held.schedule is None:
            self._as_arrays()
        assert held.schedule is not None
        return held.schedule

    @property
    def topology(self) -> Topology:
        """Active edges of the last forward (of the present parameters where none was made)."""
        return self._last_schedule().topology

    @property
    def connected(self) -> bool:
        """Some input reaches an output in the last forward; as `topology`."""
        held = self._found
        return held.connected if held.there is not None else len(self._last_schedule().inputs) > 0

    @property
    def strengths(self) -> Tensor:
        """D of the active edges (n_edges,) in the order of the topology's CSR, with its graph; as `topology`."""
        self._current()
        assert self._found.strengths is not None
        return self._found.strengths

    @property
    def closeness(self) -> Tensor:
        """d of the candidates (n_candidates,), with its graph; as `topology`."""
        self._current()
        assert self._found.closeness is not None
        return self._found.closeness

    @property
    def density(self) -> float:
        """Active over possible edges; as `topology`."""
        return self.n_edges / self.config.possible_edges

    @property
    def n_edges(self) -> int:
        """Number of active edges; as `topology`."""
        there = self._found.there
        return len(there.sources) if there is not None else self._last_schedule().topology.n_edges

    @property
    def found(self) -> tuple[Evaluation, Plan]:
        """What the last forward found: closeness of the candidates, and the plan of the active ones; as `topology`."""
        return self._as_arrays()

    @property
    def running(self) -> tuple[cuda_executor.Structure, Tensor] | None:
        """What the last forward ran on CUDA, and the strengths of its edges; as `topology`.  None on the CPU."""
        held = self._found
        if not backend.on_cuda(self.alpha):
            return None
        if held.there is None:
            self._evaluate()
        assert held.there is not None
        assert held.structure is not None
        return held.structure, held.there.strengths

    def ring(self, evaluation: Evaluation) -> Ring:
        """The candidates below the cutoff, with this model's kappa."""
        return Ring(self.kappa, evaluation, self.config.edges == "weighted")

    def gates(self, tau: float) -> tuple[Any, Any, Any]:
        """Soft number of edges of the last forward, its derivative by the raw cutoff, and those by the closeness of the
        candidates (n_candidates,); tensors on CUDA."""
        there = self._found.there
        return gate_sum(self._as_arrays()[0], tau) if there is None else cuda_manifold.gate_sum(there, tau)

    def straight_through(self, value: Any, by_cutoff: Any, by_closeness: Any) -> Tensor:
        """``value`` as a scalar whose gradient was found otherwise: ``by_cutoff`` is that by the raw cutoff, and
        ``by_closeness`` (n_candidates,) that by the closeness of the last forward's candidates."""
        self._current()
        return StraightThrough.apply(value, by_cutoff, by_closeness, self.closeness, self.cutoff)

    def soft_edges(self, tau: float) -> Tensor:
        """Soft number of edges of the last forward: the sum of the candidates' gates, differentiable."""
        self._current()
        return self.straight_through(*self.gates(tau))

    def flow(self) -> Tensor:
        """(sum |D| of input -> hidden edges - sum |D| of hidden -> output edges)² of the last forward; scalar."""
        self._current()
        flow = self._found.flow
        assert flow is not None
        return flow if torch.is_grad_enabled() else flow.detach()

    # -- execution -------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, n_outputs).  Raises ValueError where x does not fit."""
        check_input(x, self.config.n_inputs, self.alpha.dtype, self.alpha.device)
        if backend.on_cuda(self.alpha):
            out = self._forward_there(x)
        elif torch.is_grad_enabled() or self.executor.name == "torch-sparse":
            self._evaluate()
            held = self._found
            assert held.plan is not None
            assert held.strengths is not None
            ring = (self.ring(held.evaluation), held.closeness) if self.kappa and held.evaluation else ()
            out = propagate(held.plan, x, held.strengths, self.weight, self.bias, *ring)
        else:
            out = self._infer(x)
        return out * out if self.config.output == "square" else out

    def _forward_there(self, x: Tensor) -> Tensor:
        """Outputs before they are squared, on CUDA."""
        if self.executor.name == "torch-sparse":
            raise ValueError("executor torch-sparse runs manifolds on the CPU only; choose auto, or move to 'cpu'")
        self._evaluate()
        held = self._found
        assert held.there is not None
        assert held.structure is not None
        assert held.strengths is not None
        ring = closeness = None
        if self.kappa and torch.is_grad_enabled():
            ring, closeness = self._there().ring(held.there, self.kappa), held.closeness
        return cuda_executor.Propagate.apply(
            held.structure, self.executor, x, held.strengths, self.weight, self.bias, ring, closeness
        )

    def _infer(self, x: Tensor) -> Tensor:
        """Outputs before they are squared, without a graph; structure is found again only where a bit has changed."""
        held = self._found
        if held.bits is None or held.bits != self._bits():
            self._evaluate()
        assert held.evaluation is not None
        assert held.scales is not None
        return torch.from_numpy(
            self._make_plan().forward(x.detach().contiguous().numpy(), held.evaluation.strengths, held.scales)[0]
        )

    def _make_plan(self) -> Plan:
        """The plan of the current structure."""
        schedule, plan = self._found.schedule, self._found.plan
        assert schedule is not None
        if plan is not None and plan.schedule is schedule and plan.executor is self.executor:
            return plan
        kinds, slopes = self._codes() if plan is None else (plan.kind, plan.slope)
        first_linear = self.config.n_sources
        self._found.plan = plan = Plan(schedule, self.executor, kinds, slopes, first_linear, slice(0, first_linear))
        return plan

    def _codes(self) -> tuple[NDArray[np.int8], Floats]:
        """Kind and slope (n,) of the activation of every neuron."""
        code, slope = backend.ACTIVATION_CODES[self.config.activation]
        n = self.config.n_neurons
        return np.full(n, code, np.int8), np.full(n, slope, DTYPES[self.alpha.dtype])

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimiser's moments of edge_weight follow their edges; those of a new edge start at zero.

        Every torch.optim optimiser that holds edge_weight is followed from its first step on; a call is needed only
        for one whose state was loaded and is to live through a forward before that step.
        """
        self._optimizers.add(optimizer)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over the saved candidates, whatever their number.

        A DenseManifold's state has no reference: then closeness finds its candidates anew, and free edges keep those
        that are saved, as if every row had been scanned at the saved scalars.  Moments of edge_weight start at zero.
        Raises ValueError, nothing changed, where the candidates are not possible edges: kernels do not check.
        """
        names = ["candidate_indptr", "candidate_indices"] + ["edge_weight"] * self._windows.free
        if any(prefix + name not in state_dict for name in names):
            rest = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in names}
            super()._load_from_state_dict(rest, prefix, *args)  # which names what is missing
            return
        saved = [state_dict[prefix + name] for name in names]
        indptr, indices = (value.detach().cpu().numpy().copy() for value in saved[:2])
        check_candidates(self.config, indptr, indices, len(saved[2]) if self._windows.free else len(indices))
        found = Candidates.none(self.config.n_rows)
        complete = f"{prefix}_reference" in state_dict
        if complete or self._windows.free:
            found = replace(found, indptr=indptr, indices=indices)
        if self._windows.free:
            places = torch.full((len(indices),), -1, device=self.edge_weight.device)
            self._replace_omega(self.edge_weight.new_zeros(len(indices)), places)
            self.edge_weight.grad = None
        self._set_candidates(found)
        state = dict(state_dict)
        if not complete:
            state.update({f"{prefix}{name}": buffer for name, buffer in self.named_buffers(recurse=False)})
        super()._load_from_state_dict(state, prefix, *args)
        if self._windows.free and not complete:
            now = self._windows.evaluate(self.arrays(), self.executor.threads, NO_STRUCTURE, check=False)
            scalars = now.rows[: found.reference.shape[1] - 1].T
            found = replace(found, reference=np.c_[scalars, np.full(len(scalars), now.threshold)])
            self._set_candidates(found)
        self._found = _Found()


def _follow_from_first_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Before every step of any optimiser: let the manifold whose edge_weight it holds know it."""
    for model in _FREE_MODELS:
        if optimizer not in model._optimizers and any(
            p is model.edge_weight for group in optimizer.param_groups for p in group["params"]
        ):
            model.follow(optimizer)


_FREE_MODELS: weakref.WeakSet[DynamicManifold] = weakref.WeakSet()
register_optimizer_step_pre_hook(_follow_from_first_step)


def _follow(values: Tensor, places: Tensor) -> Tensor:
    """values[places], with 0 where a place is -1."""
    if len(values) == 0:
        return values.new_zeros(len(places))
    return torch.where(places >= 0, values[places.clamp(min=0)], values.new_zeros(()))
