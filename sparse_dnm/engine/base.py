"""The contract of the engines: an immutable structure, the values of a step, and the operations on them.

Arrays are numpy's on the CPU and torch's on CUDA; `Engine.array` and `Engine.tensor` convert from torch's tensors and
back.  No code outside this package asks which kind they are.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparse_dnm.engine.candidates import CROWDED, Candidates, Geometry, OverCapacity, assign_slots, compose
from sparse_dnm.engine.costs import Cost, Gates, Prices, Stopwatch

if TYPE_CHECKING:
    from sparse_dnm.engine import recurrence
    from sparse_dnm.engine.autotune import Executor
    from sparse_dnm.engine.cpu import CpuStructure
    from sparse_dnm.engine.topology import Topology

Array = Any  # numpy.ndarray on the CPU, torch.Tensor on CUDA
Clock = Callable[[], float]  # seconds


@dataclass(frozen=True, eq=False)
class Neurons:
    """Activations of the neurons of a network, and which have a weight and a bias; arrays of the engine's device.

    kind          int8 (n,)  activation, coded as in ACTIVATION_CODES, and its slope below zero:
    slope         (n,)       in the dtype of the network
    first_linear  int        neurons from this one on read z of their sources, the others m = act(z)
    weighted      slice or int array: where in 0..n-1 the network's weights and biases belong; others have 1 and 0
    """

    kind: Array
    slope: Array
    first_linear: int
    weighted: Any

    @functools.cached_property
    def blank(self) -> tuple[Array, Array]:
        """1 and 0 for every neuron: their weights and biases but for the weighted."""
        return self.slope * 0 + 1, self.slope * 0


class Structure(Protocol):
    """A graph and how it is run, on one device.  Immutable; a new one is made when an edge appears or disappears."""

    neurons: Neurons
    candidates: Candidates | None  # of a manifold; None where the graph is given

    @property
    def n_edges(self) -> int:
        """Active edges, those of dead neurons included."""

    @property
    def depth(self) -> int:
        """The largest level that is executed."""

    @property
    def connected(self) -> bool:
        """Some input reaches an output."""

    @property
    def outputs(self) -> Array:
        """int32: the output neurons."""

    @property
    def topology(self) -> Topology:
        """The graph as arrays of the CPU, copied there at the first call."""

    @property
    def host(self) -> CpuStructure:
        """The same structure for the CPU."""


class Values(NamedTuple):
    """What changes at every step: closeness of the candidates, strengths of the active edges.

    rows        float64 (ROWS, n_rows)  transformed scalars
    c           the cutoff, and ``threshold``, above which candidates are kept
    omega       (n_candidates,) of the candidates, in their order; empty where edges have none
    d           (n_candidates,) closeness, in the model's dtype
    near        how many candidates lie above the threshold
    strengths   (n_edges,) of the active edges, in CSR order
    imbalance   sum of |strength| over input -> hidden edges less that over hidden -> output edges
    active      how the engine finds the active edges among the candidates in its backward pass
    threads     to use for arrays of this size
    """

    rows: Array
    c: Any
    threshold: Any
    omega: Array
    d: Array
    near: int
    strengths: Array
    imbalance: Any
    active: Any
    threads: int


class Evaluated(NamedTuple):
    """What one evaluation of the candidates finds.

    stale       bool (n_rows,): the rows to search where a pair outside the candidates may be active, else None
    same        the active edges are those of the previous structure
    row_starts  int64 (n + 1,) CSR indptr of the active edges; ``sources`` and ``readers`` int32 (n_edges,) of them
    """

    values: Values
    stale: Array | None
    same: bool
    row_starts: Array
    sources: Array
    readers: Array | None


class Update(NamedTuple):
    """The structure of some parameters and its values.

    origin   place of each candidate among those before, -1 where it is new; None where the candidates are the same
    """

    structure: Any
    values: Values
    origin: Array | None


@dataclass(eq=False, slots=True)
class Saved:
    """What a forward pass leaves for the backward pass: weight and bias of every neuron, values x and messages m.

    seconds   of the kernel, where a clock was given; else nan
    width     columns of a tile on the CPU
    blocks    what executor `blocks` left for its backward pass
    """

    batch: int
    scales: tuple[Array, Array]
    x: Array
    m: Array
    seconds: float
    width: int = 0
    blocks: Any = None


class Gradients(NamedTuple):
    """Gradients of the strengths (n_edges,), of every neuron's weight and bias (n,), and g of all neurons' values.

    On the CPU the first three are views of larger arrays, which hold as much for every tile: copy them to keep them.
    """

    strengths: Array
    weight: Array
    bias: Array
    g: Array
    seconds: float


class ParameterGradients(NamedTuple):
    """Gradients of the raw row scalars (7, n_rows) in the order of SCALARS, of the raw cutoff, and of omega of the
    candidates, in their order."""

    scalars: Array
    cutoff: Any
    omega: Array


class Ring(NamedTuple):
    """The candidates below the cutoff get a gradient, times ``kappa``: that of the strength that an edge in their place
    would have (RigL, Evci et al. 2020)."""

    kappa: float
    structure: Any
    values: Values


class Memory(Protocol):
    """The bits that some arrays had."""

    def same(self, arrays: Mapping[str, Array]) -> bool:
        """Arrays of the same names have them still."""


class Engine(ABC):
    """Runs DAGs of neurons on one kind of device; with the geometry of a manifold, it also finds structures."""

    kind: str  # cpu or cuda
    fused = False  # training may call the passes directly, without autograd
    device: torch.device
    executor: Executor
    geometry: Geometry  # of the manifold, where there is one

    @abstractmethod
    def serves(self, device: torch.device) -> bool:
        """Is this still the engine of its executor on a device?"""

    # -- structure of a manifold -----------------------------------------------------------------------------

    def update(
        self,
        parameters: Mapping[str, Array],
        omega: Array,
        candidates: Candidates,
        previous: Structure | None,
        capacity: int | None,
        everything: bool = False,
    ) -> Update:
        """The structure of the present ``parameters``, exactly, and its values.

        The candidates are evaluated, and rows searched again if a pair outside may have become an edge, or if most
        candidates have sunk below the threshold.  At most ``capacity`` are kept: the least close are dropped, active
        edges never (None: all are kept, and new ones get no slot).  ``everything``: also run neurons that reach no
        output, because the ring needs their messages.
        Raises ValueError where a scalar is not finite, and OverCapacity where more edges are active than there is
        room for.
        """
        first, origin = candidates, None
        found = self.evaluate(parameters, omega, candidates, previous)
        if found.stale is not None:
            candidates, omega, origin = self.search(candidates, found, found.stale, parameters, omega)
            found = self.evaluate(parameters, omega, candidates, previous, check=False)
        if len(found.values.d) > CROWDED and 2 * found.values.near < len(found.values.d):
            candidates, omega, again = self.search(candidates, found, None, parameters, omega)
            origin = compose(origin, again)
            found = self.evaluate(parameters, omega, candidates, previous, check=False)
        if origin is not None:
            if capacity is not None and len(candidates.indices) > capacity:
                candidates, omega, again = self.search(candidates, found, None, parameters, omega)
                found = self.evaluate(parameters, omega, candidates, previous, check=False)
                candidates, omega, kept = self.fit_capacity(candidates, found, omega, capacity)
                origin = compose(compose(origin, again), kept)
                found = self.evaluate(parameters, omega, candidates, previous, check=False)
            candidates = assign_slots(candidates, first, origin, capacity)
        return Update(self.structure(found, candidates, previous, everything), found.values, origin)

    @abstractmethod
    def no_candidates(self) -> Candidates:
        """An empty list of candidates, which every pair may enter at the first search."""

    @abstractmethod
    def evaluate(
        self, parameters: Mapping[str, Array], omega: Array, candidates: Candidates, previous: Any, check: bool = True
    ) -> Evaluated:
        """Closeness of the candidates, and the active among them.

        With ``check``, if a pair outside them may have crossed the cutoff, only the rows to search are found.
        """

    @abstractmethod
    def search(
        self, old: Candidates, found: Evaluated, stale: Array | None, parameters: Mapping[str, Array], omega: Array
    ) -> tuple[Candidates, Array, Array]:
        """Candidates after a search of the ``stale`` rows (None: all), without slots; the omega of each, and its
        place among the old ones (-1: new).  Raises ValueError if a scalar is NaN or infinite."""

    def fit_capacity(
        self, candidates: Candidates, found: Evaluated, omega: Array, capacity: int
    ) -> tuple[Candidates, Array, Array]:
        """Keep the ``capacity`` closest candidates, active edges in any case; also returns their old places."""
        size, n_edges = abs(self.tensor(found.values.d)), len(found.sources)
        if n_edges > capacity:
            raise OverCapacity(n_edges, capacity)
        kept = torch.topk(size, min(capacity, len(size))).indices.sort().values
        smaller, places = candidates.only(kept, size), self.array(kept)
        return smaller, omega[places] if len(omega) else omega, places

    @abstractmethod
    def structure(self, found: Evaluated, candidates: Candidates, previous: Any, everything: bool) -> Any:
        """The structure of the active edges; parts of ``previous`` that are the same are reused."""

    @abstractmethod
    def edges_backward(
        self, structure: Any, values: Values, by_strength: Array | None, by_closeness: Array | None, by_imbalance: Any
    ) -> ParameterGradients:
        """From gradients of the strengths, of the candidates' closeness (None: none) and of the imbalance to those of
        the parameters."""

    @abstractmethod
    def gates(self, values: Values, tau: float) -> Gates:
        """Sum of the gates sigmoid((|d| - c) / tau) of the candidates above the threshold (DESIGN, 3)."""

    @abstractmethod
    def expected_cost(self, structure: Any, values: Values, tau: float, prices: Prices) -> Cost:
        """Expected cost if each candidate of a live reader exists with probability sigmoid((|d| - c) / tau).

        The costs of outputs and of a call are left out.
        """

    # -- passes over a DAG -----------------------------------------------------------------------------------

    @abstractmethod
    def given(self, topology: Topology, neurons: Neurons) -> Any:
        """The structure of a graph that is given."""

    @abstractmethod
    def neurons(self, kind: Any, slope: Any, first_linear: int, weighted: Any) -> Neurons:
        """Neurons on this device, from arrays of the CPU."""

    @abstractmethod
    def scales(self, structure: Any, weight: Array | None, bias: Array) -> tuple[Array, Array]:
        """Weight and bias of every neuron, from those of the weighted neurons (weight None: 1)."""

    @abstractmethod
    def forward(
        self, structure: Any, strengths: Array, x: Array, scales: tuple[Array, Array], clock: Clock | None = None
    ) -> tuple[Array, Saved]:
        """Outputs (batch, n_outputs) of x (batch, n_inputs) with ``strengths`` on the edges, in CSR order."""

    def infer(
        self, structure: Any, strengths: Array, x: Tensor, scales: tuple[Array, Array], squared: bool = False
    ) -> Tensor:
        """The outputs of `forward` alone, or their squares."""
        out = self.tensor(self.forward(structure, strengths, self.array(x), scales)[0])
        return out * out if squared else out

    def outputs(
        self, structure: Any, squared: bool, x: Tensor, strengths: Tensor, weight: Tensor | None, bias: Tensor,
        check: Any = None,
    ) -> Tensor:  # fmt: skip
        """Outputs of a network of these tensors, of which nothing is kept for a backward pass.  ``check(strengths,
        weight, bias)`` is called first, unless they are where they were when it was called last."""
        if check is not None:
            check(strengths, weight, bias)
        scales = self.scales(structure, None if weight is None else self.array(weight), self.array(bias))
        return self.infer(structure, self.array(strengths), x, scales, squared)

    @abstractmethod
    def backward(
        self, structure: Any, strengths: Array, saved: Saved, gradient: Array, clock: Clock | None = None
    ) -> Gradients:
        """Gradients of the edges and of every neuron's weight, bias and value, from the ``gradient`` of the outputs."""

    @abstractmethod
    def input_gradient(self, structure: Any, saved: Saved, gradients: Gradients, n_columns: int) -> Array:
        """Gradient of the input (batch, n_columns), from what `backward` returned."""

    @abstractmethod
    def ring_gradient(self, ring: Ring, saved: Saved, gradients: Gradients, strengths: Array, x: Array) -> Array:
        """kappa times the sum over the batch of (dL/dx_i) m_j / (1 - c) of the ring's candidates, (n_candidates,)."""

    def forward_sequence(
        self, network: recurrence.Network, x: Array, state: Array, way: recurrence.Way, train: bool, clock: Any = None
    ) -> tuple[Array, Array, Any]:
        """Outputs (batch, steps, n_outputs) of sequences x (batch, steps, n_inputs), from the first ``state`` (batch,
        n_state); the last state; and where the network is to ``train``, what `backward_sequence` needs.  A ``clock``,
        as of `stopwatch`, is read around the kernels of both passes."""
        raise NotImplementedError(f"{type(self).__name__} runs no sequences")

    def check_sequences(self) -> None:
        """Raise ValueError unless this engine runs recurrent networks."""
        raise ValueError(
            f"recurrent networks run by the kernels of the CPU only, not on {str(self.device)!r} with executor "
            f"{self.executor.name!r}: move the model and its input to 'cpu', and choose executor auto or columns"
        )

    def backward_sequence(
        self, saved: Any, by_out: Array, by_state: Array, by_input: bool
    ) -> recurrence.SequenceGradients:
        """Gradients from those of the outputs and of the last state."""
        raise NotImplementedError(f"{type(self).__name__} runs no sequences")

    # -- what a step costs -----------------------------------------------------------------------------------

    @abstractmethod
    def stopwatch(self, structure: Any, strengths: Array, x: Array, train: bool) -> Stopwatch:
        """Times steps of the structure on the batch x."""

    @abstractmethod
    def features(self, structure: Any, executor: str) -> Any:
        """Counts of what costs time in a step of ``executor``: float64, in the order of timing.cost_model.FEATURES."""

    @abstractmethod
    def step_bytes(self, structure: Any, batch: int, train: bool) -> int:
        """Bytes of the arrays of a step: CSR, transpose, order, strengths, values and messages, and with ``train`` all
        gradients."""

    @abstractmethod
    def edge_bytes(self, structure: Any, batch: int, train: bool) -> float:
        """Bytes that one more edge adds to `step_bytes`."""

    def sequence_stopwatch(
        self, structure: Any, strengths: Array, x: Array, train: bool, unrolling: recurrence.Unrolling
    ) -> Stopwatch:
        """As `stopwatch`, of sequences x (batch, steps, columns), of which the first columns are inputs."""
        self.check_sequences()
        raise NotImplementedError(f"{type(self).__name__} runs no sequences")

    def sequence_features(self, structure: Any, batch: int, unrolling: recurrence.Unrolling) -> Any:
        """As `features`, of a batch of sequences."""
        raise NotImplementedError(f"{type(self).__name__} runs no sequences")

    def sequence_bytes(self, structure: Any, batch: int, train: bool, unrolling: recurrence.Unrolling) -> int:
        """As `step_bytes`, of a batch of sequences; values and messages are those of executed neurons."""
        raise NotImplementedError(f"{type(self).__name__} runs no sequences")

    def sequence_byte_prices(
        self, structure: Any, batch: int, train: bool, unrolling: recurrence.Unrolling
    ) -> tuple[float, Prices]:
        """Bytes of `sequence_bytes` that an edge has; and those that are added by one that is executed, an executed
        input, another executed neuron, a level."""
        raise NotImplementedError(f"{type(self).__name__} runs no sequences")

    # -- arrays ----------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, parameters: Mapping[str, Tensor]) -> dict[str, Array]:
        """The numbers of a manifold's parameters, by name.

        Raises ValueError if they are not as the kernels need them.
        """

    @abstractmethod
    def gather(self, edge_weight: Array, slots: Array) -> Array:
        """omega of the candidates from their slots."""

    @abstractmethod
    def scatter(self, by_omega: Array, candidates: Candidates, capacity: int) -> Array:
        """Numbers of the candidates at their slots of ``capacity``, 0 elsewhere; those without a slot are left out."""

    @abstractmethod
    def remember(self, arrays: Mapping[str, Array]) -> Memory | None:
        """The bits of arrays, to see whether one has changed; None if that would need a transfer."""

    @abstractmethod
    def host_values(self, structure: Any, values: Values) -> Values:
        """The values of a structure in arrays of the CPU."""

    @abstractmethod
    def array(self, tensor: Tensor) -> Array:
        """A tensor as the kernels want it: contiguous, without a graph."""

    @abstractmethod
    def tensor(self, array: Array) -> Tensor:
        """An array as a tensor, without a copy."""

    @abstractmethod
    def number(self, value: Any, like: Tensor) -> Tensor:
        """A number as a new tensor () of the dtype of another."""
