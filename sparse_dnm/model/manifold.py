"""DynamicManifold: a network whose structure is computed from its parameters; on every engine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_dnm.checks import check_dtype, check_shape
from sparse_dnm.config import ManifoldConfig
from sparse_dnm.engine.autograd import Found, Network, edge_strength, propagate
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Array, Engine, Ring, Update
from sparse_dnm.engine.candidates import Geometry
from sparse_dnm.engine.recurrence import Recurrence
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.edges import EdgeSlots
from sparse_dnm.model.evaluation import Evaluation, Graph
from sparse_dnm.model.init import initial_scalars
from sparse_dnm.model.inputs import refuse_tracing, restored, rows_of
from sparse_dnm.model.parameters import OwnParameters, Parameters, Remembered, without_transforms
from sparse_dnm.model.recurrent import ONE_STEP, Now, gate_parameters
from sparse_dnm.model.recurrent_dag import RecurrentDAG
from sparse_dnm.model.sparse_dag import SparseDAG

TO_DAG = "the structure of a DynamicManifold follows its parameters; trace or export model.to_dag(), which freezes it"


class DynamicManifold(EdgeSlots):
    """A Dynamic Neural Manifold: a DAG of neurons whose edges are computed from a few scalars per neuron.

    model(x): x (..., n_inputs) of the model's dtype -> (..., n_outputs).  Each call finds the structure that belongs to
    the present parameters, exactly, then runs the live part of it.
    A recurrent one, with ``neuron`` or ``n_memory`` in its config, takes sequences: model(x, lengths=None, state=None):
    x (batch, time, n_inputs) -> (batch, time, n_outputs); see `recurrent.SequenceModule` for more, and `step`.

    Only one thread may use a model at a time: a call keeps its evaluation in the model.

    Parameters: alpha, mu, sigma (and beta, gamma, theta, phi, unless ``edges="free"``), each (n_rows,); cutoff ();
    weight, bias (n_sources,); edge_weight (capacity,), unless ``edges="closeness"``.  A candidate edge owns one slot
    of edge_weight while it is one; free slots hold 0 (see `follow` and `grow_capacity`).  Hidden neurons with gates
    have no weight and bias, but gate_weight, gate_recurrent, gate_bias; those of ctrnn also have rate: see
    `recurrent.gate_parameters`.
    ``kappa`` (a plain number, 0 at first) is the coefficient of the gradient that candidates below the cutoff receive,
    as if they were edges: with it a network can grow, without it gradients are exact.

    Initial values are drawn from ``generator``; omega of a new edge from (config.seed, i, j) alone.  ``dtype`` defaults
    to torch's default dtype, ``device`` to torch's default device.
    """

    alpha: Tensor
    cutoff: Tensor
    weight: Tensor
    bias: Tensor
    _remembered: Remembered | None = None

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
        with torch.device("cpu"):
            for name, value in initial_scalars(config, generator, dtype).items():
                self.register_parameter(name, nn.Parameter(value))
            graph = config.graph
            if config.recurrent:
                hidden = np.arange(graph.n_inputs, graph.n_sources, dtype=np.int32)
                cells = hidden[:0] if config.neuron == "memoryless" else hidden
                self._recurrence = Recurrence(config.neuron, cells, config.n_memory)
                for name, value in gate_parameters(config, len(cells), generator, dtype).items():
                    self.register_parameter(name, nn.Parameter(value))
            self._begin(Geometry(graph))
            self._own = OwnParameters(self)
            self._first_structure()
        self.to(where)

    def _first_structure(self) -> None:
        """Find the first candidates, and allocate slots for them and some more."""
        arrays = self.arrays()
        update = self._update(self.engine, arrays, arrays["alpha"][:0], None)
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
            f"{f'neuron={c.neuron!r}, n_memory={c.n_memory}, ' if c.recurrent else ''}"
            f"activation={c.activation!r}, capacity={self.capacity}, executor={self.executor.name!r}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what the next forward computes again."""
        return {**super().__getstate__(), "_found": None, "_remembered": None, "_own": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._own = OwnParameters(self)

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
            self._own.add(name, param)

    def _apply(self, fn: Any, recurse: bool = True) -> DynamicManifold:
        super()._apply(fn, recurse)
        self._own = OwnParameters(self)
        return self

    def _named(self) -> dict[str, Tensor]:
        """The parameters by name; where one is parametrised, its computed value."""
        return self._own.present(self).named

    def arrays(self) -> dict[str, Array]:
        """The numbers of every parameter, by name, in arrays of the engine."""
        return self.engine.read(self._named())

    # -- structure -------------------------------------------------------------------------------------------

    def _update(self, engine: Engine, arrays: dict[str, Array], omega: Any, capacity: int | None) -> Update:
        """The structure of the parameters ``arrays``.

        ``omega`` of the candidates, where the caller has it; ``capacity``: that of the model, or None for a structure
        that the model does not keep.
        """
        candidates, found = self._candidates(), self._found
        if omega is None:
            omega = arrays["alpha"][:0]
            if self._geometry.free:
                slots: Any = self._buffers["candidate_indices"]
                if arrays["edge_weight"].shape != slots.shape:
                    check_shape("edge_weight", self.edge_weight, (self.capacity,))
                omega = engine.gather(arrays["edge_weight"], candidates.slots)
        previous = None if found is None or found.engine is not engine else found.structure
        return engine.update(arrays, omega, candidates, previous, capacity, everything=self._kappa > 0)

    def find(
        self, arrays: dict[str, Array] | None = None, omega: Any = None, on_change: Any = None, training: bool = False
    ) -> Evaluation:
        """Find the structure of the present parameters, without a graph.

        ``arrays``: what `arrays` returns, ``omega``: of the candidates, where the caller has them; ``on_change`` is
        called before the candidates change.
        """
        engine, parameters = self.engine, self._own.present(self)
        if torch._C._are_functorch_transforms_active():
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            named = {name: without_transforms(p) for name, p in parameters.named.items()}
            with temporarily_clear_interpreter_stack():  # numbers are read, not recorded
                return self._find(engine, parameters, engine.read(named), omega, on_change, training)
        arrays = engine.read(parameters.named) if arrays is None else arrays
        return self._find(engine, parameters, arrays, omega, on_change, training)

    def _find(
        self, engine: Engine, parameters: Parameters, arrays: dict[str, Array], omega: Any = None,
        on_change: Any = None, training: bool = False,
    ) -> Evaluation:  # fmt: skip
        """As `find`."""
        state, own = self.__dict__, parameters.own  # nn.Module's way of setting an attribute takes long
        state["_remembered"] = None
        update = self._update(engine, arrays, omega, self.capacity if own else None)
        if own and update.origin is not None:
            if "edge_weight" not in self._parameters and self._geometry.free:
                raise ValueError(
                    "edge_weight is parametrised or pruned, so that new edges cannot be given a slot; remove that, and "
                    "prune an edge by writing 0 to its slot"
                )
            if on_change is not None:
                on_change()
            self._commit(update, training)
        found = Evaluation(self.config, engine, update.structure, update.values, parameters.named["cutoff"])
        if own:
            state["_found"] = found
        return found

    def _forget(self) -> None:
        self.__dict__.update(_found=None, _remembered=None)

    def _with_graph(self, found: Evaluation, parameters: Parameters, copies: bool = False) -> Evaluation:
        """The evaluation with strengths, closeness and flow as tensors, with a graph where gradients are wanted."""
        found = self._without_graph(found, parameters)
        made = edge_strength(Found(found.engine, found.structure, found.values, copies), *parameters.edges)
        found.graph, found.handed_out, found.cutoff = Graph(*made), copies, parameters.named["cutoff"]
        return found

    def _without_graph(self, found: Evaluation, parameters: Parameters) -> Evaluation:
        """The evaluation without its graph: a new object if it has one, since other code may hold the old one."""
        if found.graph is not None:
            found = Evaluation(found.config, found.engine, found.structure, found.values, found.cutoff)
            if parameters.own:
                self.__dict__["_found"] = found
                if self._remembered is not None:
                    self._remembered.found = found
        return found

    def _evaluate(self) -> Evaluation:
        """Find the structure of the present parameters and its values, with a graph where gradients are wanted."""
        parameters = self._own.present(self)
        if torch._C._are_functorch_transforms_active():
            return self._with_graph(self.find(training=torch.is_grad_enabled()), parameters, copies=True)
        engine = self.engine
        return self._with_graph(self._find_anew(engine, parameters, engine.read(parameters.named)), parameters)

    def _find_anew(self, engine: Engine, parameters: Parameters, arrays: dict[str, Array]) -> Evaluation:
        """The evaluation of the present parameters: the last one, if none of their bits has changed since.

        With a graph torch's counts of what it wrote to them are compared first, since a step of training changes all,
        and bits are kept only where the counts have stayed the same.  What was written through ``data`` or an array of
        numpy is not counted: only equal bits are unchanged parameters.
        """
        before, training, again = self._remembered, torch.is_grad_enabled(), False
        if not parameters.own:
            return self._find(engine, parameters, arrays, training=training)
        if before is not None:
            again = not training or before.versions == parameters.versions()
            if again and before.holds(engine, self._candidates(), arrays):
                return before.found
        found = self._find(engine, parameters, arrays, training=training)
        bits = engine.remember(arrays) if again or not training else None
        self.__dict__["_remembered"] = Remembered(found, parameters.versions(), bits)
        return found

    @property
    def evaluation(self) -> Evaluation:
        """What the last forward found (before the first forward: what the present parameters give).

        It is computed again if it was found without a graph and one is needed now.
        """
        self._candidates()  # the buffers may be those of another structure
        found = self._found
        if found is None:
            return self._evaluate()
        graph = found.graph
        if graph is None and not torch.is_grad_enabled():
            return self._with_graph(found, self._own.present(self))
        if torch.is_grad_enabled() and (graph is None or not graph.strengths.requires_grad):
            trained = (name for name, p in self.named_parameters() if p.requires_grad)
            if graph is None or not {"weight", "bias"}.issuperset(trained):
                return self._evaluate()
        return found

    @property
    def structure(self) -> Any:
        """The structure of the last forward; as `evaluation`, but never evaluated again."""
        return self._last.structure

    @property
    def _last(self) -> Evaluation:
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
        return self.evaluation.strengths

    @property
    def closeness(self) -> Tensor:
        """d of the candidates (n_candidates,), with its graph; as `topology`."""
        return self.evaluation.closeness

    def flow(self) -> Tensor:
        """(sum |D| of input -> hidden edges - sum |D| of hidden -> output edges)² of the last forward; scalar."""
        flow = self.evaluation.flow
        return flow if torch.is_grad_enabled() else flow.detach()

    def soft_edges(self, tau: float) -> Tensor:
        """Soft number of edges of the last forward: the sum of the candidates' gates, differentiable."""
        found = self.evaluation
        return found.straight_through(*found.gates(tau))

    def ring(self, found: Evaluation) -> Ring | None:
        """The candidates below the cutoff, with this model's kappa; None where that is 0."""
        return Ring(self._kappa, found.structure, found.values) if self._kappa else None

    @torch.no_grad()
    def to_dag(self) -> Any:
        """The network of the present parameters as a SparseDAG, whose structure stays as it is: the same outputs.

        The strengths of the edges become its edge_weight; weight and bias are copied.  It can be trained, traced and
        exported.  A recurrent manifold becomes a RecurrentDAG with the same states, which can be trained.
        """
        found, named, config = self.find(), self._named(), self.config
        options: dict[str, Any] = {
            "weight": named["weight"], "activation": config.activation, "input_neurons": True, "linear_outputs": True,
            "output": config.output, "dtype": self.alpha.dtype, "device": self.alpha.device,
            "executor": self.executor.name, "threads": self.executor.asked,
        }  # fmt: skip
        topology, strengths = found.topology, found.engine.tensor(found.values.strengths)
        if self._recurrence is None:
            return SparseDAG(topology, strengths, named["bias"], **options)
        options |= {"neuron": config.neuron, "n_memory": config.n_memory}
        dag = RecurrentDAG(topology, strengths, named["bias"], **options)
        for name in self.gate_names():
            getattr(dag, name).copy_(getattr(self, name))
        return dag

    # -- execution -------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, *sequence: Any, **options: Any) -> Any:
        """Outputs (..., n_outputs).  Raises ValueError where x does not fit.

        Of a recurrent network: see `SequenceModule._run_sequences` for all arguments.
        """
        refuse_tracing(TO_DAG)
        if self._recurrence is not None:
            return self._run_sequences(x, *sequence, **options)
        if sequence or options:
            raise ValueError(ONE_STEP)
        parameters, config = self._own.present(self), self.config
        alpha = parameters.named["alpha"]
        rows, leading, precision = rows_of(x, config.n_inputs, alpha.dtype, alpha.device)
        if precision is None:
            out = self._outputs(rows, parameters)
        else:
            with precision:
                out = self._outputs(rows, parameters)
        return out if leading is None else restored(out, leading)

    forward._torchdynamo_disable = True  # type: ignore[attr-defined]  # the structure is data: torch.compile calls it

    @property
    def _like(self) -> Tensor:
        return self.alpha

    def _widths(self) -> tuple[int, bool]:
        return self.config.n_inputs, self.config.output == "square"

    def _now(self) -> Now:
        """See `SequenceModule`."""
        found, named = self._evaluate(), self._own.present(self).named
        graph = found.graph
        assert graph is not None
        parts = found.engine, found.structure, graph.strengths, named["weight"], named["bias"]
        return Now(*parts, self.ring(found), graph.closeness)

    def _outputs(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Outputs (batch, n_outputs)."""
        named, squared = parameters.named, self.config.output == "square"
        if torch._C._are_functorch_transforms_active():
            found = self._evaluate()
            network = Network(found.engine, found.structure, squared, self.ring(found))
        else:
            engine = self._engine_on(named["alpha"].device)
            arrays = engine.read(named)
            found = self._find_anew(engine, parameters, arrays)
            if parameters.own and not torch.is_grad_enabled():
                return self._infer(x, self._without_graph(found, parameters), arrays, squared)
            found = self._with_graph(found, parameters)
            scales = engine.scales(found.structure, arrays["weight"], arrays["bias"])
            network = Network(engine, found.structure, squared, self.ring(found), found.values.strengths, scales)
        graph = found.graph
        assert graph is not None
        closeness = graph.closeness if network.ring else None
        return propagate(network, x, graph.strengths, named["weight"], named["bias"], closeness)

    def _infer(self, x: Tensor, found: Evaluation, arrays: dict[str, Array], squared: bool) -> Tensor:
        """Outputs without a graph."""
        if x.shape[0] == 0:
            return x.new_empty(0, self.config.n_outputs)
        seen = self._remembered
        assert seen is not None
        if seen.scales is None:
            seen.scales = found.engine.scales(found.structure, arrays["weight"], arrays["bias"])
        return found.engine.infer(found.structure, found.values.strengths, x, seen.scales, squared)
