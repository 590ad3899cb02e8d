"""RecurrentDAG: a recurrent network whose structure is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sparse_dnm.checks import CPU, DTYPES, check_alike, check_dtype, check_shape
from sparse_dnm.config import ACTIVATIONS, GATED, NEURONS, OUTPUTS, ManifoldConfig, check_choice
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.recurrence import Recurrence
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.inputs import refuse_tracing
from sparse_dnm.model.recurrent import Now, SequenceModule, gate_parameters
from sparse_dnm.model.sparse_dag import ARRAYS, _neurons, vector

NO_TRACE = "a RecurrentDAG cannot be traced, exported or compiled yet; call it as it is"


class RecurrentDAG(SequenceModule):
    """Any directed acyclic graph of neurons with a state, as a torch module, with a weight per edge.

    model(x, lengths=None, state=None, ...): (batch, time, n_inputs) -> (batch, time, n_outputs); column k of x goes to
    ``topology.inputs[k]``, column k of the result is z of ``topology.outputs[k]``.  At each time step all neurons run
    once, sources before readers.  The last ``n_memory`` outputs are the last ``n_memory`` inputs of the next step; they
    are no columns of x and of the result.

    Inputs pass their value on.  Outputs have z_i = sum over sources j of weight_ij m_j + bias_i, and m_i = act(z_i) for
    their readers.  The others, the hidden neurons, are of the kind ``neuron``:
      lstm, gru   m_i = h_i of a scalar torch.nn.LSTM or GRU cell whose input is a_i = sum of weight_ij m_j
      ctrnn       x_i += sigmoid(rate_i) (a_i - x_i), m_i = act(x_i + bias_i)
      memoryless  as outputs
    ``weight``, ``input_neurons``, ``linear_outputs`` and ``output`` are as in `SparseDAG`: a factor beside every bias,
    z_i = factor_i * (...) + bias_i; inputs with an activation, also those of the memory; outputs that are sums of z;
    results that are squared, but not what the memory keeps.
    Parameters: edge_weight (n_edges,) in the order of ``topology.edges()``; bias, and weight if there is one, of the
    neurons that have one, ascending; gate_weight, gate_recurrent, gate_bias (gates, n_hidden) or rate (n_hidden,) of
    the hidden neurons, ascending: see `recurrent.gate_parameters`.  Weights of edges are normal with variance
    1 / sources.  The state_dict also holds the topology; it must be loaded into a network of the same one.
    """

    indptr: Tensor
    indices: Tensor
    inputs: Tensor
    outputs: Tensor
    weight: nn.Parameter | None

    @torch.inference_mode(False)  # or what is made here could not be trained
    def __init__(
        self,
        topology: Topology,
        values: ArrayLike | Tensor | None = None,
        bias: ArrayLike | Tensor | None = None,
        *,
        neuron: str = "lstm",
        n_memory: int = 0,
        weight: ArrayLike | Tensor | None = None,
        activation: str = "leaky_relu",
        input_neurons: bool = False,
        linear_outputs: bool = False,
        output: str = "linear",
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        executor: str = "auto",
        threads: int = 0,
    ):
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        check_dtype(dtype)
        check_choice("neuron", neuron, NEURONS)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("output", output, OUTPUTS)
        n_inputs, n_outputs, hidden = len(topology.inputs), len(topology.outputs), _hidden(topology)
        if not 0 <= n_memory < min(n_inputs, n_outputs):
            raise ValueError(
                f"n_memory={n_memory} of the {n_inputs} inputs and {n_outputs} outputs of the topology must leave one "
                "of each"
            )
        if (neuron == "memoryless" or len(hidden) == 0) and n_memory == 0:
            raise ValueError(
                f"neuron={neuron!r} with {len(hidden)} hidden neurons and n_memory=0 has no memory; use SparseDAG"
            )
        self.topology, self.neuron, self.n_memory, self.activation = topology, neuron, n_memory, activation
        self.input_neurons, self.linear_outputs, self.output = bool(input_neurons), bool(linear_outputs), output
        self.n_inputs, self.n_outputs = n_inputs - n_memory, n_outputs - n_memory
        self.executor = Executor(executor, threads)
        cells = hidden[:0] if neuron == "memoryless" else hidden
        self._recurrence = Recurrence(neuron, cells, n_memory)
        self._structures: dict[torch.dtype, Any] = {}
        self._engine: Any = None
        self._biased = functions_of(self)[3]
        with torch.device(CPU):
            if values is None:
                counts = np.diff(topology.indptr)
                sources = torch.from_numpy(counts.repeat(counts)).to(dtype)
                values = torch.randn(topology.n_edges, generator=generator, dtype=dtype) / sources.sqrt()
            self.edge_weight = nn.Parameter(vector("values", values, topology.n_edges, dtype))
            self.bias = nn.Parameter(vector("bias", 0.0 if bias is None else bias, len(self._biased), dtype))
            scaled = None if weight is None else nn.Parameter(vector("weight", weight, len(self._biased), dtype))
            self.register_parameter("weight", scaled)
            drawn = ManifoldConfig(3, 1, 1, 1.0, neuron=neuron)  # type: ignore[arg-type]  # the usual distributions
            for name, value in gate_parameters(drawn, len(cells), generator, dtype).items():
                self.register_parameter(name, nn.Parameter(value))
            for name in ARRAYS:
                self.register_buffer(name, torch.from_numpy(np.array(getattr(topology, name))))
        self.to(torch.get_default_device() if device is None else torch.device(device))

    def extra_repr(self) -> str:
        """Sizes and kinds."""
        t = self.topology
        options = {"input_neurons": self.input_neurons, "linear_outputs": self.linear_outputs, "output": self.output}
        changed = "".join(f", {name}={v!r}" for name, v in options.items() if v not in (False, "linear"))
        return (
            f"{self.n_inputs} inputs, {self.n_outputs} outputs, n_memory={self.n_memory}, {t.n_neurons} neurons, "
            f"{t.n_edges} edges, depth {t.depth}, neuron={self.neuron!r}, activation={self.activation!r}{changed}, "
            f"executor={self.executor.name!r}"
        )

    def forward(
        self, x: Tensor, lengths: Any = None, state: Any = None, *, return_state: bool = False, last: bool = False,
        tbptt: int = 0, recompute_every: int = 0,
    ) -> Any:  # fmt: skip
        """Outputs of sequences: see `SequenceModule._run_sequences`."""
        refuse_tracing(NO_TRACE)
        return self._run_sequences(
            x, lengths, state, return_state=return_state, last=last, tbptt=tbptt, recompute_every=recompute_every
        )

    @property
    def _like(self) -> Tensor:
        return self.bias

    def _widths(self) -> tuple[int, bool]:
        return self.n_inputs, self.output == "square"

    def _now(self) -> Now:
        """See `SequenceModule`."""
        dtype, device = self.bias.dtype, self.bias.device
        check_dtype(dtype)
        check_alike("edge_weight", self.edge_weight, "bias", self.bias)
        check_shape("edge_weight", self.edge_weight, (self.topology.n_edges,))
        check_shape("bias", self.bias, (len(self._biased),))
        if self.weight is not None:
            check_alike("weight", self.weight, "bias", self.bias)
            check_shape("weight", self.weight, (len(self._biased),))
        engine = self._engine
        if engine is None or not engine.serves(device):
            self._engine, self._structures = engine_for(self.executor, device), {}
        found = self._structures.get(dtype)
        if found is None:
            found = self._structures[dtype] = self._structure(DTYPES[dtype])
        return Now(self._engine, found, self.edge_weight, self.weight, self.bias)

    def _structure(self, dtype: Any) -> Any:
        kind, slope, first_linear, biased = functions_of(self)
        return self._engine.given(self.topology, self._engine.neurons(kind, slope.astype(dtype), first_linear, biased))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """As torch's, but refuse the state of another topology."""
        for name in ARRAYS:
            given = state.get(prefix + name)
            held = torch.from_numpy(np.array(getattr(self.topology, name)))
            if given is not None and not torch.equal(held, given.to(CPU)):
                args[-1].append(
                    f"{prefix}{name} of the state is that of another topology; build the RecurrentDAG of that one, "
                    "Topology.from_csr(*(state[k] for k in ('indptr', 'indices', 'inputs', 'outputs')))"
                )
        super()._load_from_state_dict(state, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the engine and its structures, which the next call makes again."""
        return {**self.__dict__, "_engine": None, "_structures": {}}


def functions_of(dag: RecurrentDAG) -> tuple[Any, Any, int, NDArray[np.int32]]:
    """kind and slope of every neuron, first_linear, and the neurons that have a bias: see `engine.base.Neurons`.

    Cells with gates have no bias, and pass on their value.
    """
    topology = dag.topology
    kinds, slopes, first_linear, places = _neurons(topology, dag.activation, dag.input_neurons, dag.linear_outputs)
    biased = np.zeros(topology.n_neurons, np.bool_)
    biased[places] = True
    if dag.neuron in GATED:
        cells = _hidden(topology)
        kinds[cells], slopes[cells] = backend.ACTIVATION_CODES["identity"]
        biased[cells] = False
    return kinds, slopes, first_linear, np.flatnonzero(biased).astype(np.int32)


def _hidden(topology: Topology) -> NDArray[np.int32]:
    """Neurons that are neither inputs nor outputs, ascending."""
    hidden = np.ones(topology.n_neurons, np.bool_)
    hidden[topology.inputs] = hidden[topology.outputs] = False
    return np.flatnonzero(hidden).astype(np.int32)
