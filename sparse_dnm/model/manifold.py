"""DynamicManifold: a network whose structure is computed from its parameters; on every engine."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_dnm.checks import check_dtype
from sparse_dnm.config import ManifoldConfig
from sparse_dnm.engine.autograd import edge_strength, propagate
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Array, Ring, Update
from sparse_dnm.engine.candidates import Geometry
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.edges import EdgeSlots
from sparse_dnm.model.evaluation import Evaluation
from sparse_dnm.model.init import initial_scalars
from sparse_dnm.model.inputs import refuse_tracing, restored, rows_of
from sparse_dnm.model.sparse_dag import SparseDAG

TO_DAG = "the structure of a DynamicManifold follows its parameters; trace or export model.to_dag(), which freezes it"


class DynamicManifold(EdgeSlots):
    """A Dynamic Neural Manifold: a DAG of neurons whose edges are computed from a few scalars per neuron.

    model(x): x (..., n_inputs) of the model's dtype -> (..., n_outputs).  Each call finds the structure that belongs to
    the present parameters, exactly, then runs the live part of it.

    Only one thread may use a model at a time: a call keeps its evaluation in the model.

    Parameters: alpha, mu, sigma (and beta, gamma, theta, phi, unless ``edges="free"``), each (n_rows,); cutoff ();
    weight, bias (n_sources,); edge_weight (capacity,), unless ``edges="closeness"``.  A candidate edge owns one slot
    of edge_weight while it is one; free slots hold 0 (see `follow` and `grow_capacity`).
    ``kappa`` (a plain number, 0 at first) is the coefficient of the gradient that candidates below the cutoff receive,
    as if they were edges: with it a network can grow, without it gradients are exact.

    Initial values are drawn from ``generator``; omega of a new edge from (config.seed, i, j) alone.  ``dtype`` defaults
    to torch's default dtype, ``device`` to torch's default device.
    """

    alpha: Tensor
    cutoff: Tensor
    weight: Tensor
    bias: Tensor

    @torch.inference_mode(False)  # or what is made here could not be trained
    def __init__(
        self,
        config: ManifoldConfig,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        executor: str = "auto",
        threads: int = 0,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        check_dtype(dtype)
        where = torch.get_default_device() if device is None else torch.device(device)
        self.config = config
        self.executor = Executor(executor, threads)
        self._kappa = 0.0
        self._found: Evaluation | None = None
        self._bits: list[bytes] | None = None
        self._scales: Any = None
        with torch.device("cpu"):
            for name, value in initial_scalars(config, generator, dtype).items():
                self.register_parameter(name, nn.Parameter(value))
            self._begin(Geometry(config))
            self._own_parameters()
            self._first_structure()
        self.to(where)

    def _first_structure(self) -> None:
        """Find the first candidates, and allocate slots for them and some more."""
        update = self._update(torch.empty(0, dtype=self.alpha.dtype), capacity=None)
        candidates, n = update.structure.candidates, len(update.structure.candidates.indices)
        capacity = self._geometry.capacity(n)
        if self._geometry.free:
            self.edge_weight = nn.Parameter(torch.zeros(capacity, dtype=self.alpha.dtype))
            candidates = replace(candidates, slots=self.engine.array(torch.arange(n)), fleeting=False)
        self._hold(self._candidates(), capacity)
        self._commit(update._replace(structure=replace(update.structure, candidates=candidates)))

    def extra_repr(self) -> str:
        """The sizes that print(model) shows."""
        c = self.config
        return (
            f"{c.n_inputs} inputs, {c.n_hidden} hidden, {c.n_outputs} outputs, edges={c.edges!r}, "
            f"activation={c.activation!r}, capacity={self.capacity}, executor={self.executor.name!r}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what the next forward computes again."""
        return {**super().__getstate__(), "_found": None, "_bits": None, "_scales": None, "_own": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._own_parameters()

    @property
    def kappa(self) -> float:
        """Coefficient of the ring's gradient."""
        return self._kappa

    @kappa.setter
    def kappa(self, value: float) -> None:
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise ValueError(f"kappa={value!r} must be a finite number >= 0; 0: gradients are exact")
        self._kappa = float(value)

    # -- parameters ------------------------------------------------------------------------------------------

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch's; the parameter counts as the model's own."""
        super().register_parameter(name, param)
        if param is not None and "_own" in self.__dict__:
            self._own[name] = weakref.ref(param)

    def _own_parameters(self) -> None:
        """Remember which parameters are the model's own: torch.func.functional_call puts others in their place."""
        self._own = {name: weakref.ref(p) for name, p in self._parameters.items() if p is not None}

    def _apply(self, fn: Any, recurse: bool = True) -> DynamicManifold:
        super()._apply(fn, recurse)
        self._own_parameters()
        return self

    @property
    def _is_own(self) -> bool:
        """All parameters are the model's own: torch.func.functional_call has replaced none."""
        own = self._own
        return all(name not in own or own[name]() is p for name, p in self._parameters.items())

    def _named(self) -> dict[str, Tensor]:
        """The parameters by name; where one is parametrised, its computed value."""
        parameters = self._parameters
        return {n: p if (p := parameters.get(n)) is not None else getattr(self, n) for n in self._geometry.parameters}

    def arrays(self) -> dict[str, Array]:
        """The numbers of every parameter, by name, in arrays of the engine."""
        return self.engine.read(self._named())

    # -- structure -------------------------------------------------------------------------------------------

    def _update(self, omega: Any = None, arrays: dict[str, Array] | None = None, capacity: int | None = -1) -> Update:
        """The structure of the present parameters.

        ``omega`` of the candidates, where the caller has it; ``capacity``: that of the model, or None for a structure
        that the model does not keep.
        """
        engine, candidates = self.engine, self._candidates()
        if arrays is None:
            arrays = self.arrays()
        if omega is None:
            omega = arrays["alpha"][:0]
            if self._geometry.free:
                self._check_room()
                omega = engine.gather(arrays["edge_weight"], candidates.slots)
        elif isinstance(omega, Tensor):
            omega = engine.array(omega)
        previous = None if self._found is None or self._found.engine is not engine else self._found.structure
        room = self.capacity if capacity == -1 else capacity
        return engine.update(arrays, omega, candidates, previous, room, everything=self._kappa > 0)

    def find(
        self, arrays: dict[str, Array] | None = None, omega: Any = None, on_change: Any = None, training: bool = False
    ) -> Evaluation:
        """Find the structure of the present parameters, without a graph.

        ``arrays``: what `arrays` returns, ``omega``: of the candidates, where the caller has them; ``on_change`` is
        called before the candidates change.
        """
        state = self.__dict__  # nn.Module's way of setting an attribute takes long
        state["_bits"] = None
        own = self._is_own
        if torch._C._are_functorch_transforms_active():
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            named = {name: _unwrapped(p) for name, p in self._named().items()}
            with temporarily_clear_interpreter_stack():  # numbers are read, not recorded
                update = self._update(omega, self.engine.read(named), -1 if own else None)
        else:
            update = self._update(omega, arrays, -1 if own else None)
        if own and update.origin is not None:
            if "edge_weight" not in self._parameters and self._geometry.free:
                raise ValueError(
                    "edge_weight is parametrised or pruned, so that new edges cannot be given a slot; remove that, and "
                    "prune an edge by writing 0 to its slot"
                )
            if on_change is not None:
                on_change()
            self._commit(update, training)
        cutoff = self._parameters.get("cutoff")
        raw = self.cutoff if cutoff is None else cutoff
        found = Evaluation(self.config, self.engine, update.structure, update.values, raw)
        if own:
            state["_found"] = found
        return found

    def _forget(self) -> None:
        self.__dict__.update(_found=None, _bits=None, _scales=None)

    def _with_tensors(self, found: Evaluation, named: dict[str, Tensor]) -> Evaluation:
        """The evaluation with strengths, closeness and flow as tensors, with a graph where gradients are wanted."""
        omega = named["edge_weight"] if self._geometry.free else None
        scalars = (named[name] for name in self._geometry.scalars)
        engine, structure, values = found.engine, found.structure, found.values
        made = edge_strength(engine, structure, values, named["cutoff"], omega, *scalars)
        found.strengths, found.closeness, found.flow = made
        return found

    def _evaluate(self) -> Evaluation:
        """Find the structure of the present parameters and its values, with a graph where gradients are wanted."""
        training, arrays = torch.is_grad_enabled(), None
        named = self._named()
        if not torch._C._are_functorch_transforms_active():
            arrays = self.engine.read(named)
        return self._with_tensors(self.find(arrays, training=training), named)

    @property
    def evaluation(self) -> Evaluation:
        """What the last forward found (before the first forward: what the present parameters give).

        It is computed again if it was found without a graph and one is needed now.
        """
        found = self._found
        if self._touched:
            self._candidates()
            found = self._found
        if found is None:
            return self._evaluate()
        if found.strengths is None and not torch.is_grad_enabled():
            return self._with_tensors(found, self._named())
        if torch.is_grad_enabled() and (found.strengths is None or not found.strengths.requires_grad):
            trained = (name for name, p in self.named_parameters() if p.requires_grad)
            if found.strengths is None or not {"weight", "bias"}.issuperset(trained):
                return self._evaluate()
        return found

    @property
    def structure(self) -> Any:
        """The structure of the last forward; as `evaluation`, but never evaluated again."""
        return self._last.structure

    @property
    def _last(self) -> Evaluation:
        if self._touched:
            self._candidates()
        return self.find() if self._found is None else self._found

    @property
    def topology(self) -> Topology:
        """Active edges of the last forward (before the first forward: of the present parameters)."""
        return self._last.topology

    @property
    def connected(self) -> bool:
        """Some input reaches an output in the last forward; as `topology`."""
        return self._last.connected

    @property
    def n_edges(self) -> int:
        """Number of active edges; as `topology`."""
        return self._last.n_edges

    @property
    def density(self) -> float:
        """Active over possible edges; as `topology`."""
        return self._last.density

    @property
    def strengths(self) -> Tensor:
        """D of the active edges (n_edges,) in the order of the topology's CSR, with its graph; as `topology`."""
        found = self.evaluation.strengths
        assert found is not None
        return found

    @property
    def closeness(self) -> Tensor:
        """d of the candidates (n_candidates,), with its graph; as `topology`."""
        found = self.evaluation.closeness
        assert found is not None
        return found

    def flow(self) -> Tensor:
        """(sum |D| of input -> hidden edges - sum |D| of hidden -> output edges)² of the last forward; scalar."""
        flow = self.evaluation.flow
        assert flow is not None
        return flow if torch.is_grad_enabled() else flow.detach()

    def soft_edges(self, tau: float) -> Tensor:
        """Soft number of edges of the last forward: the sum of the candidates' gates, differentiable."""
        found = self.evaluation
        return found.straight_through(*found.gates(tau))

    def ring(self, found: Evaluation) -> Ring | None:
        """The candidates below the cutoff, with this model's kappa; None where that is 0."""
        return Ring(self._kappa, found.structure, found.values) if self._kappa else None

    @torch.no_grad()
    def to_dag(self) -> SparseDAG:
        """The network of the present parameters as a SparseDAG, whose structure stays as it is: the same outputs.

        The strengths of the edges become its edge_weight; weight and bias are copied.  It can be trained, traced and
        exported.
        """
        found, named, config = self.find(), self._named(), self.config
        return SparseDAG(
            found.topology,
            found.engine.tensor(found.values.strengths),
            named["bias"],
            weight=named["weight"],
            activation=config.activation,
            input_neurons=True,
            linear_outputs=True,
            output=config.output,
            dtype=self.alpha.dtype,
            device=self.alpha.device,
            executor=self.executor.name,
            threads=self.executor.threads,
        )

    # -- execution -------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., n_outputs).  Raises ValueError where x does not fit."""
        refuse_tracing(TO_DAG)
        alpha = self.alpha
        rows, leading, precision = rows_of(x, self.config.n_inputs, alpha.dtype, alpha.device)
        if precision is None:
            out = self._outputs(rows)
        else:
            with precision:
                out = self._outputs(rows)
        return restored(out * out if self.config.output == "square" else out, leading)

    forward._torchdynamo_disable = True  # type: ignore[attr-defined]  # the structure is data: torch.compile calls it

    def _outputs(self, x: Tensor) -> Tensor:
        """Outputs (batch, n_outputs) before they are squared."""
        if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            out = self._infer(x)
            if out is not None:
                return out
        found = self._evaluate()
        assert found.strengths is not None
        ring = self.ring(found)
        closeness = found.closeness if ring else None
        weight, bias = self.weight, self.bias
        return propagate(found.engine, found.structure, x, found.strengths, weight, bias, ring, closeness)

    def _infer(self, x: Tensor) -> Tensor | None:
        """Outputs without a graph; structure is found again only where a bit of a parameter has changed.

        None if one has changed and torch.func.functional_call has replaced the model's own parameters.
        """
        engine = self.engine
        arrays = engine.read(self._named())
        if self._touched:
            self._candidates()
        bits, found = engine.bits(arrays), self._found
        if found is None or bits is None or self._bits != bits or found.engine is not engine:
            if not self._is_own:
                return None
            found = self.find(arrays)
            arrays = self.arrays()
            bits = engine.bits(arrays)
            self.__dict__.update(_bits=bits, _scales=engine.scales(found.structure, arrays["weight"], arrays["bias"]))
        if len(x) == 0:
            return x.new_empty(0, self.config.n_outputs)
        return engine.tensor(engine.forward(found.structure, found.values.strengths, engine.array(x), self._scales)[0])


def _unwrapped(tensor: Tensor) -> Tensor:
    """A tensor without the wrappers of torch.func's transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise RuntimeError(
                "torch.func.vmap over the parameters of a DynamicManifold is not possible: each set of them has a "
                "structure of its own; loop over them, or use vmap over inputs only"
            )
        tensor = functorch.get_unwrapped(tensor)
    return tensor
