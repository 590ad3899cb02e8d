"""SparseDAG: a network whose structure is given; on the engine, on CPU and CUDA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from sparse_dnm.engine.topology import Topology, canonical_csr
from sparse_dnm.model.inputs import is_recorded, restored, rows_of

if TYPE_CHECKING:
    import networkx as nx

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

    @torch.inference_mode(False)  # or what is made here could not be trained
    def __init__(
        self,
        topology: Topology,
        values: ArrayLike | Tensor | None = None,
        bias: ArrayLike | Tensor | None = None,
        *,
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
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("output", output, OUTPUTS)
        where = torch.get_default_device() if device is None else torch.device(device)
        self.topology, self.activation, self.output = topology, activation, output
        self.input_neurons, self.linear_outputs = bool(input_neurons), bool(linear_outputs)
        self.executor = Executor(executor, threads)
        n_edges, n_biased = (
            topology.n_edges,
            _weighted(topology, activation, self.input_neurons, self.linear_outputs),
        )
        self.n_inputs, self.n_outputs = len(topology.inputs), len(topology.outputs)
        self._shapes = {"edge_weight": (n_edges,), "bias": (n_biased,), "weight": (n_biased,)}
        with torch.device(CPU):
            if values is None:
                readers = torch.from_numpy(np.diff(topology.indptr).repeat(np.diff(topology.indptr)))
                values = torch.randn(n_edges, generator=generator, dtype=dtype) * (2 / readers.to(dtype)).sqrt()
            self.edge_weight = nn.Parameter(_vector("values", values, n_edges, dtype))
            self.bias = nn.Parameter(_vector("bias", 0.0 if bias is None else bias, n_biased, dtype))
            scaled = None if weight is None else nn.Parameter(_vector("weight", weight, n_biased, dtype))
            self.register_parameter("weight", scaled)
            self._hold(CPU)
        self._engine: Engine | None = None
        self._structures: dict[torch.dtype, Any] = {}
        self.to(where)

    @classmethod
    def from_linear(cls, layers: Iterable[nn.Linear], **options: Any) -> SparseDAG:
        """The DAG of a stack of nn.Linear with the activation between them; weights that are 0 make no edge.

        dtype and device are those of the layers unless ``options`` name others.
        """
        layers = list(layers)
        if not layers or not all(isinstance(layer, nn.Linear) for layer in layers):
            raise ValueError(f"{[type(layer).__name__ for layer in layers]} must be one nn.Linear or more")
        sources, readers, values, biases = [], [], [], []
        first = 0
        for k, layer in enumerate(layers):
            if k and layer.in_features != layers[k - 1].out_features:
                raise ValueError(
                    f"layer {k} reads {layer.in_features} features, layer {k - 1} gives {layers[k - 1].out_features}"
                )
            weight = layer.weight.detach().cpu()
            row, column = weight.nonzero(as_tuple=True)
            sources.append(column + first)
            first += layer.in_features
            readers.append(row + first)
            values.append(weight[row, column])
            biases.append(weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().cpu())
        n, n_out = first + layers[-1].out_features, layers[-1].out_features
        edges = torch.stack([torch.cat(sources), torch.cat(readers)], dim=1).numpy()
        topology = Topology.from_edges(edges, n, np.arange(layers[0].in_features), np.arange(n - n_out, n))
        options = {"dtype": layers[0].weight.dtype, "device": layers[0].weight.device, **options}
        return cls(topology, torch.cat(values), torch.cat(biases), **options)

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
        """The DAG of a square scipy sparse matrix of any format, its elements being the weights of the edges.

        ``rows="readers"``: [i, j] is the weight with which neuron i reads neuron j; ``rows="sources"``: that with which
        neuron j reads neuron i, as in the adjacency matrices of networkx.  A zero that is stored is an edge of weight
        0; elements stored twice are summed.  ``inputs`` and ``outputs`` as in `Topology.from_edges`; ``options`` are
        those of SparseDAG.
        """
        csr = canonical_csr(matrix, rows)
        if csr.dtype.kind not in "biuf":
            raise ValueError(f"matrix of dtype {csr.dtype} must hold real numbers")
        return cls(Topology.from_scipy(csr, inputs, outputs), csr.data.astype(np.float64), **options)

    @classmethod
    def from_networkx(
        cls,
        graph: nx.DiGraph,
        inputs: Iterable[Any] | None = None,
        outputs: Iterable[Any] | None = None,
        weight: str | None = "weight",
        **options: Any,
    ) -> SparseDAG:
        """The DAG of a directed graph, an arc u -> v meaning that v reads u with the weight that the arc has as an
        attribute of this name; 1 where it has none, as in networkx.

        ``weight=None``: weights are drawn, see SparseDAG.  ``inputs`` and ``outputs`` are nodes; see
        `Topology.from_networkx`.
        """
        topology = Topology.from_networkx(graph, inputs, outputs)
        if weight is None:
            return cls(topology, **options)
        if weight != "weight" and not any(weight in found for *_, found in graph.edges(data=True)):
            raise ValueError(f"no arc has the attribute weight={weight!r}; weight=None draws the weights")
        nodes, values = list(graph), []
        for source, reader in topology.edges().tolist():
            value = graph.edges[nodes[source], nodes[reader]].get(weight, 1)
            try:
                values.append(float(value))
            except (TypeError, ValueError):
                raise ValueError(
                    f"arc {nodes[source]!r} -> {nodes[reader]!r} has {weight}={value!r}, which is no number"
                ) from None
        return cls(topology, np.array(values, np.float64), **options)

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
        places = [options.index(getattr(self, name)) for name, options in FUNCTIONS.items()]
        held = {name: torch.from_numpy(np.array(getattr(self.topology, name))) for name in ARRAYS}
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
    kind, slope = backend.ACTIVATION_CODES[activation]
    kinds, slopes, biased = np.full(n, kind, np.int8), np.full(n, slope), np.ones(n, np.bool_)
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
        here, there = held[name].tolist(), given.tolist()
        if len(here) != len(there):
            found.append(f"{name} holds {len(there)} numbers, here {len(here)}")
        elif here != there:
            k = next(k for k, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
            if name != "functions":
                found.append(f"{name}[{k}] is {there[k]}, here {here[k]}")
                continue
            option, legal = list(FUNCTIONS.items())[k]
            value = legal[there[k]] if 0 <= there[k] < len(legal) else there[k]
            found.append(f"{option} is {value!r}, here {legal[here[k]]!r}")
    return found


def _vector(name: str, values: Any, size: int, dtype: torch.dtype) -> Tensor:
    """``values`` as a new vector of ``size`` numbers on the CPU; a scalar is repeated."""
    vector = torch.as_tensor(values).detach().to(CPU, dtype)
    if vector.ndim == 0:
        vector = vector.expand(size)
    if vector.shape != (size,):
        raise ValueError(f"{name} of shape {tuple(vector.shape)} must be ({size},)")
    return vector.clone()
