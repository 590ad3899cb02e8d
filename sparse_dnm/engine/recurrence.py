"""What makes a network recurrent: neurons with a state, outputs that are inputs of the next time step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.config import check_choice

if TYPE_CHECKING:
    from sparse_dnm.engine.base import Ring

STATES = {"memoryless": 0, "ctrnn": 1, "gru": 1, "lstm": 2}  # numbers of a neuron's state
ROWS = {"memoryless": (), "ctrnn": (1,), "gru": (3, 3, 4), "lstm": (4, 4, 4)}  # of weights, recurrent weights, biases


@dataclass(frozen=True, eq=False)
class Recurrence:
    """The neurons with a state, and the memory.

    neuron    kind of those neurons: one of config.NEURONS
    cells     int32 (n_hidden,)  which neurons they are, ascending
    n_memory  so many of the last outputs are the last inputs of the next time step
    """

    neuron: str
    cells: NDArray[np.int32]
    n_memory: int

    @property
    def n_state(self) -> int:
        """Numbers of a sample's state: h of all cells, then c of all cells of an lstm, then the memory."""
        return STATES[self.neuron] * len(self.cells) + self.n_memory

    @property
    def n_gates(self) -> int:
        """Numbers that a cell has instead of a weight and a bias, or beside them."""
        return sum(ROWS[self.neuron])


class Way(NamedTuple):
    """How a sequence is run.

    lengths   int64 (batch,)  time steps of each sequence; None: all
    truncate  time steps after which no gradient goes back; 0: it goes through all
    every     time steps between the states that are kept for the way back, between which all else is computed again;
              0: all is kept
    ring      candidates below the cutoff that are to have a gradient: messages of all neurons are needed; None: none
    """

    lengths: NDArray[np.int64] | None
    truncate: int = 0
    every: int = 0
    ring: Ring | None = None


@dataclass(frozen=True)
class Unrolling:
    """How a recurrent network is unrolled through time, where its steps are timed and their bytes counted.

    neuron, n_memory  as of a `Recurrence`
    steps             time steps of a sequence
    truncate, every   as of a `Way`
    """

    neuron: str
    n_memory: int
    steps: int
    truncate: int = 0
    every: int = 0

    def __post_init__(self) -> None:
        check_choice("neuron", self.neuron, tuple(STATES))
        for name, least in (("steps", 1), ("n_memory", 0), ("truncate", 0), ("every", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r} of sequences must be an integer >= {least}")

    @property
    def way(self) -> Way:
        """How such sequences are run, all of the same length."""
        return Way(None, self.truncate, self.every)

    @property
    def n_gates(self) -> int:
        """As of a `Recurrence`."""
        return sum(ROWS[self.neuron])

    def recurrence(self, structure: Any) -> Recurrence:
        """Of a structure: its neurons that are neither inputs nor outputs are the cells, if there are such.  The one
        that it was run with last is taken again, where it is the same: what was made for it is kept."""
        topology, plans = structure.topology, structure.schedule.plans
        for plan in (plans or {}).values():
            if (plan.recurrence.neuron, plan.recurrence.n_memory) == (self.neuron, self.n_memory):
                known: Recurrence = plan.recurrence
                return known
        inner = np.ones(topology.n_neurons, np.bool_)
        inner[topology.inputs] = inner[topology.outputs] = False
        cells = np.flatnonzero(inner).astype(np.int32)
        return Recurrence(self.neuron, cells[:0] if self.neuron == "memoryless" else cells, self.n_memory)

    def __str__(self) -> str:
        parts = [f"{self.steps} time steps of {self.neuron} neurons"]
        parts += [f"{self.n_memory} outputs as memory"] if self.n_memory else []
        parts += [f"no gradient beyond {self.truncate} steps"] if self.truncate else []
        parts += [f"states kept every {self.every} steps"] if self.every else []
        return ", ".join(parts)


class Network(NamedTuple):
    """A recurrent network as arrays of its engine.

    strengths  (n_edges,) in CSR order
    scales     weight and bias of every neuron
    gates      (rows, n_hidden) of the cells
    """

    structure: Any
    recurrence: Recurrence
    strengths: Any
    scales: tuple[Any, Any]
    gates: Any


class SequenceGradients(NamedTuple):
    """Gradients of the strengths (n_edges,), of every neuron's weight and bias (n,), of the gates (rows, n_hidden), of
    the first state (batch, n_state), of x (None: not wanted) and of the ring's candidates (None: no ring).

    seconds  of the kernels of both passes, where the forward pass was given a clock; else 0
    """

    strengths: Any
    weight: Any
    bias: Any
    gates: Any
    state: Any
    x: Any
    closeness: Any
    seconds: float = 0.0
