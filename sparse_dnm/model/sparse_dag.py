"""SparseDAG: a network whose structure is given; on the engine, on CPU and CUDA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sparse_dnm.checks import CPU, DTYPES, check_alike, check_dtype, check_shape
from sparse_dnm.config import ACTIVATIONS, OUTPUTS, check_choice
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autograd import Network, propagate, unwrapped
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.activations import as_bytes, codes_of, of_bytes, spelled
from sparse_dnm.model.inputs import is_recorded, restored, rows_of

if TYPE_CHECKING:
    import networkx as nx

    from sparse_dnm.interop.labels import Labels

ARRAYS = ("indptr", "indices", "inputs", "outputs")  # these define a topology
NAMES = {"edge_weight", "bias", "weight"}
ALL_THREADS = backend.check_threads(0)
FUNCTIONS: dict[str, tuple[Any, ...]] = {  # the buffer ``functions`` holds an index into each of these, in this order
    "activation": ACTIVATIONS,
    "input_neurons": (False, True),
    "linear_outputs": (False, True),
    "output": OUTPUTS,
}


class SparseDAG(nn.Module):
    """Any directed acyclic graph of neurons as a torch module, with a weight per edge.

    A neuron i that is no input has z_i = sum over its sources j of weight_ij m_j + bias_i and m_i = act(z_i); inputs
    pass their value on.  model(x): (..., n_inputs) -> (..., n_outputs), column k of x going to
    ``topology.inputs[k]``, column k of the result being z of ``topology.outputs[k]``.

    Parameters: edge_weight (n_edges,) in the order of ``topology.edges()``, bias (n_neurons - n_inputs,) of the
    neurons that are no inputs, ascending.  Without ``values``, weights are normal with variance 2 / sources.
    ``activation``: a name for all neurons, or a sequence of one for each.  ``leaky_relu(0.01)`` has that slope below
    zero.
    ``weight``: also a factor per neuron: z_i = factor_i * (sum ...) + bias_i; a parameter as long as bias.
    ``input_neurons``: inputs have the activation, a bias and the factor, too, applied to their column of x.
    ``linear_outputs``: outputs are sums of z, y_i = sum weight_ij z_j, without factor, bias and activation.  They must
    be the last neurons, and no neuron may read them.
    ``output="square"``: results are squared.

    ``dtype`` defaults to torch's default dtype, ``device`` to torch's default device.  The state_dict holds the
    topology (indptr, indices, inputs, outputs) and the functions of the neurons; the state_dict of another network is
    refused.
    """

    indptr: Tensor
    indices: Tensor
    inputs: Tensor
    outputs: Tensor
    edge_weight: nn.Parameter
    bias: nn.Parameter
    weight: nn.Parameter | None
    labels: Labels | None = None  # names and attributes of a graph that it was made of

    @torch.inference_mode(False)  # or what is made here could not be trained
    def __init__(
        self,
        topology: Topology,
        values: ArrayLike | Tensor | None = None,
        bias: ArrayLike | Tensor | None = None,
        *,
        weight: ArrayLike | Tensor | None = None,
        activation: str | Sequence[str] = "leaky_relu",
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
        check_choice("output", output, OUTPUTS)
        where = torch.get_default_device() if device is None else torch.device(device)
        self.topology, self.output = topology, output
        self.input_neurons, self.linear_outputs = bool(input_neurons), bool(linear_outputs)
        self.activation = spelled(activation, topology, self.input_neurons)
        self.executor = Executor(executor, threads)
        n_edges, n_biased = (
            topology.n_edges,
            _weighted(topology, self.activation, self.input_neurons, self.linear_outputs),
        )
        self.n_inputs, self.n_outputs = len(topology.inputs), len(topology.outputs)
        self._shapes = {"edge_weight": (n_edges,), "bias": (n_biased,), "weight": (n_biased,)}
        with torch.device(CPU):
            if values is None:
                readers = torch.from_numpy(np.diff(topology.indptr).repeat(np.diff(topology.indptr)))
                values = torch.randn(n_edges, generator=generator, dtype=dtype) * (2 / readers.to(dtype)).sqrt()
            self.edge_weight = nn.Parameter(vector("values", values, n_edges, dtype))
            self.bias = nn.Parameter(vector("bias", 0.0 if bias is None else bias, n_biased, dtype))
            scaled = None if weight is None else nn.Parameter(vector("weight", weight, n_biased, dtype))
            self.register_parameter("weight", scaled)
            self._hold(CPU)
        self._engine: Engine | None = None
        self._structures: dict[torch.dtype, Any] = {}
        self.to(where)

    @classmethod
    def from_linear(cls, layers: Iterable[nn.Linear], **options: Any) -> SparseDAG:
        """The DAG of a stack of nn.Linear: see `sparse_dnm.interop.from_linear`."""
        from sparse_dnm import interop

        return interop.from_linear(layers, network=cls, **options)

    @classmethod
    def from_scipy(
        cls,
        matrix: Any,
        inputs: ArrayLike | None = None,
        outputs: ArrayLike | None = None,
        *,
        rows: str = "readers",
        **options: Any,
    ) -> SparseDAG:
        """The DAG of a square scipy sparse matrix: see `sparse_dnm.interop.from_scipy`."""
        from sparse_dnm import interop

        return interop.from_scipy(matrix, inputs, outputs, rows=rows, network=cls, **options)

    @classmethod
    def from_networkx(
        cls,
        graph: nx.DiGraph,
        inputs: Iterable[Any] | None = None,
        outputs: Iterable[Any] | None = None,
        weight: str | None = "weight",
        **options: Any,
    ) -> SparseDAG:
        """The DAG of a directed graph: see `sparse_dnm.interop.from_networkx`."""
        from sparse_dnm import interop

        return interop.from_networkx(graph, inputs, outputs, weight, network=cls, **options)

    def extra_repr(self) -> str:
        """Sizes and functions."""
        t = self.topology
        options = {"input_neurons": self.input_neurons, "linear_outputs": self.linear_outputs, "output": self.output}
        changed = "".join(f", {name}={v!r}" for name, v in options.items() if v not in (False, "linear"))
        return (
            f"{self.n_inputs} inputs, {self.n_outputs} outputs, {t.n_neurons} neurons, {t.n_edges} edges, "
            f"depth {t.depth}, activation={self.activation!r}{changed}, executor={self.executor.name!r}"
        )

    # -- state -----------------------------------------------------------------------------------------------

    def _held(self) -> dict[str, Tensor]:
        """The topology and the functions of the neurons as new tensors, by the names of the buffers."""
        chosen = [(getattr(self, name), legal) for name, legal in FUNCTIONS.items()]
        places = [legal.index(value) if value in legal else len(legal) for value, legal in chosen]
        held = {name: torch.from_numpy(np.array(getattr(self.topology, name))) for name in ARRAYS}
        if self.activation not in ACTIVATIONS:
            held["activations"] = as_bytes(self.activation)
        return {**held, "functions": torch.tensor(places, device=CPU)}

    def _hold(self, device: torch.device) -> None:
        for name, tensor in self._held().items():
            self.register_buffer(name, tensor.to(device))

    def _apply(self, fn: Any, recurse: bool = True) -> SparseDAG:
        before = self.indptr
        super()._apply(fn, recurse)
        self._engine = None  # which knows parameters by their places in memory: those of no numbers have none
        if self.indptr is not before:  # moved; or emptied, by to_empty
            self._hold(self.indptr.device)
        return self

    def _load_from_state_dict(
        self,
        state: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        unexpected: Any,
        errors: Any,
    ) -> None:
        """As torch's, but refuse the state of another network with one error; old states have no topology."""
        held = self._held()
        differs = _differences(held, {name: state[prefix + name] for name in held if prefix + name in state})
        if differs:
            errors.append(
                f"{prefix}the state is that of another network: {'; '.join(differs)}. Build the SparseDAG of that "
                "topology, Topology.from_csr(*(state[k] for k in ('indptr', 'indices', 'inputs', 'outputs'))), and "
                "with the same functions"
            )
            return
        for name, tensor in held.items():
            state[prefix + name] = tensor.to(state.get(prefix + name, self.indptr).device)
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the engine and its structure, which the next call makes again."""
        return {**self.__dict__, "_engine": None, "_structures": {}}

    # -- execution -------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., n_outputs).  Raises ValueError where x does not fit."""
        recorded = is_recorded()
        parameters = (self.edge_weight, self.weight, self.bias) if recorded else self._present()
        bias = parameters[2]
        check_dtype(bias.dtype)
        rows, leading, precision = rows_of(x, self.n_inputs, bias.dtype, bias.device, recorded)
        run = self._run_recorded if recorded else self._run
        if precision is None:
            out = run(rows, *parameters)
        else:
            with precision:
                out = run(rows, *parameters)
        return restored(out, leading)

    def _present(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """edge_weight, weight and bias, or what parametrisations make of them."""
        held: Any = self._parameters
        if held.keys() != NAMES:
            return self.edge_weight, self.weight, self.bias
        weight = held["weight"]
        return unwrapped(held["edge_weight"]), None if weight is None else unwrapped(weight), unwrapped(held["bias"])

    def _check_parameters(self, edge_weight: Tensor, weight: Tensor | None, bias: Tensor) -> None:
        dtype, device = bias.dtype, bias.device
        for name, p in (("edge_weight", edge_weight), ("bias", bias), ("weight", weight)):
            shape = self._shapes[name]
            if p is not None and not (p.shape == shape and p.dtype == dtype and p.device == device):
                check_alike(name, p, "bias", bias)
                check_shape(name, p, shape)

    def _run(self, x: Tensor, edge_weight: Tensor, weight: Tensor | None, bias: Tensor) -> Tensor:
        engine, squared = self._engine, self.output == "square"
        if engine is None or not self._is_served_by(engine, bias.device):
            self._check_parameters(edge_weight, weight, bias)
            engine = self.engine
        structure = self._structure(engine, bias.dtype)
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or x.shape[0] == 0:
            self._check_parameters(edge_weight, weight, bias)
            return propagate(Network(engine, structure, squared), x, edge_weight, weight, bias)
        return engine.outputs(structure, squared, x, edge_weight, weight, bias, self._check_parameters)

    def _run_recorded(self, x: Tensor, edge_weight: Tensor, weight: Tensor | None, bias: Tensor) -> Tensor:
        """Outputs by one registered operator of torch."""
        from sparse_dnm.model import operator

        if not torch.jit.is_tracing():  # as in rows_of
            self._check_parameters(edge_weight, weight, bias)
        out: Tensor = operator.propagate(
            *(x, edge_weight, weight, bias, self.indptr, self.indices, self.inputs, self.outputs),
            *(self.activation, self.input_neurons, self.linear_outputs, self.executor.name, self.executor.asked),
        )
        return out * out if self.output == "square" else out

    @property
    def engine(self) -> Engine:
        """The engine of the device that holds the parameters."""
        engine, device = self._engine, self.bias.device
        if engine is None or not self._is_served_by(engine, device):
            self._engine = engine = engine_for(self.executor, device)
            self._structures = {}
        return engine

    def _is_served_by(self, engine: Engine, device: torch.device) -> bool:
        return engine.executor is self.executor and engine.serves(device)

    def _structure(self, engine: Engine, dtype: torch.dtype) -> Any:
        """How the engine runs the topology in the dtype of the parameters."""
        found = self._structures.get(dtype)
        if found is None:
            functions = self.activation, self.input_neurons, self.linear_outputs
            found = self._structures[dtype] = structure_of(engine, self.topology, dtype, *functions)
        return found


def structure_of(engine: Engine, topology: Topology, dtype: torch.dtype, *functions: Any) -> Any:
    """How an engine runs a topology with these functions: activation, input_neurons, linear_outputs."""
    kind, slope, first_linear, biased = _neurons(topology, *functions)
    return engine.given(topology, engine.neurons(kind, slope.astype(DTYPES[dtype]), first_linear, biased))


def _neurons(topology: Topology, activation: str, input_neurons: bool, linear_outputs: bool) -> tuple[Any, ...]:
    """kind and slope of every neuron, first_linear, and the neurons that have a bias: see `engine.base.Neurons`."""
    n, n_outputs = topology.n_neurons, len(topology.outputs)
    (kinds, slopes), biased = codes_of(activation, n), np.ones(n, np.bool_)
    if not input_neurons:
        kinds[topology.inputs], slopes[topology.inputs] = backend.ACTIVATION_CODES["identity"]
        biased[topology.inputs] = False
    first_linear = n - n_outputs if linear_outputs else n
    if linear_outputs:
        alone = np.ones(n, np.bool_)
        alone[topology.indices] = False
        alone[topology.inputs] = False
        if topology.outputs.min() < first_linear or not alone[first_linear:].all():
            raise ValueError(
                f"linear_outputs=True needs outputs that are neurons {first_linear} .. {n - 1}, the last, that nobody "
                f"reads and that are no inputs; here they are {topology.outputs.tolist()}: number the neurons so"
            )
        biased[first_linear:] = False
    places = np.flatnonzero(biased).astype(np.int32)
    if len(places) and places[-1] - places[0] == len(places) - 1:  # a slice is read and written faster
        return kinds, slopes, first_linear, slice(int(places[0]), int(places[-1]) + 1)
    return kinds, slopes, first_linear, places


def _weighted(topology: Topology, *functions: Any) -> int:
    """Number of neurons that have a bias."""
    kinds, *_, places = _neurons(topology, *functions)
    return len(kinds[places])


def _differences(held: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """How a state's topology and functions differ from this network's, in words."""
    found = []
    for name, given in state.items():
        if name == "activations" and not torch.equal(held[name], given.to(CPU)):
            found.append(f"activation is {of_bytes(given)!r}, here {of_bytes(held[name])!r}")
            continue
        here, there = held[name].tolist(), given.tolist()
        if len(here) != len(there):
            found.append(f"{name} holds {len(there)} numbers, here {len(here)}")
        elif here != there:
            k = next(k for k, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
            if name != "functions":
                found.append(f"{name}[{k}] is {there[k]}, here {here[k]}")
                continue
            option, legal = list(FUNCTIONS.items())[k]
            one, other = (repr(legal[c[k]]) if 0 <= c[k] < len(legal) else "another" for c in (there, here))
            found.append(f"{option} is {one}, here {other}")
    return found


def vector(name: str, values: Any, size: int, dtype: torch.dtype) -> Tensor:
    """``values`` as a new vector of ``size`` numbers on the CPU; a scalar is repeated."""
    vector = torch.as_tensor(values).detach().to(CPU, dtype)
    if vector.ndim == 0:
        vector = vector.expand(size)
    if vector.shape != (size,):
        raise ValueError(f"{name} of shape {tuple(vector.shape)} must be ({size},)")
    bad = ~torch.isfinite(vector)
    if bool(bad.any()):
        place = int(bad.nonzero()[0])
        raise ValueError(f"{name}[{place}] is {vector[place].item()} in {dtype}; give finite numbers")
    return vector.clone()
