"""SparseDAG: a network whose structure is given; on the engine, on CPU and CUDA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sparse_dnm.checks import DTYPES, check_dtype, check_shape
from sparse_dnm.config import ACTIVATIONS, check_choice
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autograd import propagate
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.choose import engine_for
from sparse_dnm.engine.topology import Topology
from sparse_dnm.model.inputs import Batched


class SparseDAG(nn.Module):
    """Any directed acyclic graph of neurons as a torch module, with a weight per edge.

    A neuron i that is no input has z_i = sum over its sources j of weight_ij m_j + bias_i and m_i = act(z_i); inputs
    hand on their value.  model(x): (batch, n_inputs) -> (batch, n_outputs), column k of x going to
    ``topology.inputs[k]``, column k of the result being z of ``topology.outputs[k]``.

    Parameters: edge_weight (n_edges,) in the order of ``topology.edges()``, bias (n_neurons - n_inputs,) of the
    neurons that are no inputs, ascending.  Without ``values``, weights are normal with variance 2 / sources.
    """

    def __init__(
        self,
        topology: Topology,
        values: ArrayLike | Tensor | None = None,
        bias: ArrayLike | Tensor | None = None,
        activation: str = "leaky_relu",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        executor: str = "auto",
        threads: int = 0,
    ):
        super().__init__()
        check_dtype(dtype)
        check_choice("activation", activation, ACTIVATIONS)
        self.topology, self.activation = topology, activation
        self.executor = Executor(executor, threads)
        n = topology.n_neurons
        is_input = np.zeros(n, np.bool_)
        is_input[topology.inputs] = True
        self._biased = np.flatnonzero(~is_input).astype(np.int32)
        if values is None:
            readers = torch.from_numpy(np.diff(topology.indptr).repeat(np.diff(topology.indptr)))
            values = torch.randn(topology.n_edges, generator=generator, dtype=dtype) * (2 / readers.to(dtype)).sqrt()
        self.edge_weight = nn.Parameter(_vector("values", values, topology.n_edges, dtype))
        self.bias = nn.Parameter(_vector("bias", 0.0 if bias is None else bias, len(self._biased), dtype))
        kind, slope = backend.ACTIVATION_CODES[activation]
        identity_kind, identity_slope = backend.ACTIVATION_CODES["identity"]
        self._kind = np.where(is_input, identity_kind, kind).astype(np.int8)
        self._slope = np.where(is_input, identity_slope, slope).astype(DTYPES[dtype])
        self._engine: Engine | None = None
        self._structures: dict[torch.dtype, Any] = {}

    @classmethod
    def from_linear(cls, layers: Iterable[nn.Linear], **options: Any) -> SparseDAG:
        """The DAG of a stack of nn.Linear with the activation between them; weights that are 0 make no edge."""
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
            weight = layer.weight.detach()
            row, column = weight.nonzero(as_tuple=True)
            sources.append(column + first)
            first += layer.in_features
            readers.append(row + first)
            values.append(weight[row, column])
            biases.append(weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach())
        n, n_out = first + layers[-1].out_features, layers[-1].out_features
        edges = torch.stack([torch.cat(sources), torch.cat(readers)], dim=1).numpy()
        topology = Topology.from_edges(edges, n, np.arange(layers[0].in_features), np.arange(n - n_out, n))
        return cls(topology, torch.cat(values), torch.cat(biases), **options)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, n_outputs).  Raises ValueError where x does not fit."""
        batch = Batched(x, len(self.topology.inputs), self.bias.dtype, self.bias.device)
        if self.edge_weight.device != self.bias.device:
            raise ValueError(
                f"edge_weight is on {str(self.edge_weight.device)!r} and bias on {str(self.bias.device)!r}; move "
                "both to one device, as model.to(device) does"
            )
        check_shape("edge_weight", self.edge_weight, (self.topology.n_edges,))
        check_shape("bias", self.bias, self._biased.shape)
        check_dtype(self.bias.dtype)
        engine = self.engine
        with batch.precision:
            out = propagate(engine, self._structure(engine), batch.rows, self.edge_weight, None, self.bias)
            return batch.restore(out)

    @property
    def engine(self) -> Engine:
        """What runs this network, where its parameters are."""
        engine, device = self._engine, self.bias.device
        if engine is None or engine.executor is not self.executor or not engine.serves(device):
            self._engine = engine = engine_for(self.executor, device)
            self._structures = {}
        return engine

    def _structure(self, engine: Engine) -> Any:
        """How the engine runs the topology in the dtype of the parameters."""
        dtype = self.bias.dtype
        if dtype not in self._structures:
            slope = self._slope.astype(DTYPES[dtype], copy=False)
            neurons = engine.neurons(self._kind, slope, self.topology.n_neurons, self._biased)
            self._structures[dtype] = engine.given(self.topology, neurons)
        return self._structures[dtype]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without what is made anew."""
        return {**self.__dict__, "_engine": None, "_structures": {}}


def _vector(name: str, values: Any, size: int, dtype: torch.dtype) -> Tensor:
    """``values`` as a new vector of ``size`` numbers; a scalar is repeated."""
    vector = torch.as_tensor(values).detach().to(dtype)
    if vector.ndim == 0:
        vector = vector.expand(size)
    if vector.shape != (size,):
        raise ValueError(f"{name} of shape {tuple(vector.shape)} must be ({size},)")
    return vector.clone()
