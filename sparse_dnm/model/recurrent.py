"""Sequences and states: what the recurrent networks, DynamicManifold and RecurrentDAG, have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from sparse_dnm.checks import CPU, check_alike, check_input, check_shape
from sparse_dnm.config import ManifoldConfig
from sparse_dnm.engine.base import Engine, Ring
from sparse_dnm.engine.recurrence import ROWS, STATES, Recurrence, Unrolling, Way
from sparse_dnm.engine.sequence_autograd import Sequences, recur
from sparse_dnm.model.inputs import autocast_off

GATES = ("gate_weight", "gate_recurrent", "gate_bias")
ONE_STEP = (
    "this network has no memory: lengths, state, last, return_state, tbptt and recompute_every are for recurrent ones, "
    "with neuron='lstm', 'gru' or 'ctrnn', or n_memory > 0"
)


@dataclass(frozen=True, eq=False)
class RecurrentState:
    """What a recurrent network knows after a time step.

    h       (batch, n_hidden)  values of the neurons with a state; (batch, 0) without such
    c       (batch, n_hidden)  cell states of an lstm; else (batch, 0)
    memory  (batch, n_memory)  outputs that are inputs of the next step
    """

    h: Tensor
    c: Tensor
    memory: Tensor

    def detach(self) -> RecurrentState:
        """The same numbers without their graph: no gradient goes further back."""
        return RecurrentState(*(t.detach() for t in self.parts))

    def reset(self, which: Tensor | Sequence[bool]) -> RecurrentState:
        """Zeros in the samples ``which``, bool (batch,): their next step is the first of a sequence."""
        which = torch.as_tensor(which, device=self.h.device)
        if which.dtype != torch.bool or which.shape != self.h.shape[:1]:
            raise ValueError(f"which is {which.dtype} {tuple(which.shape)}; it must be torch.bool {(len(self.h),)}")
        return RecurrentState(*(t.masked_fill(which[:, None], 0.0) for t in self.parts))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """h, c and memory."""
        return tuple(getattr(self, field.name) for field in fields(self))


def gate_parameters(
    config: ManifoldConfig, n_hidden: int, generator: torch.Generator | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """New parameters of ``n_hidden`` neurons with a state, normal as ``config`` says, in the order in which they are
    drawn: gate_weight, gate_recurrent, gate_bias, (gates, n_hidden) each; of ctrnn rate (n_hidden,).

    gates of lstm: i, f, g, o; of gru: r, z, n, and for biases also that inside r (u_n h + b).  The bias of f has
    ``forget_bias`` added.
    """
    found = {}
    names = ("rate",) if config.neuron == "ctrnn" else GATES
    for name, rows in zip(names, ROWS[config.neuron], strict=False):
        mean, std = getattr(config, name)
        found[name] = mean + std * torch.randn(rows, n_hidden, generator=generator, dtype=dtype)
    if config.neuron == "lstm":
        found["gate_bias"][1] += config.forget_bias
    return {name: value[0] if name == "rate" else value for name, value in found.items()}


class Now(NamedTuple):
    """A recurrent network at present; ``closeness``: of the ``ring``'s candidates, with its graph."""

    engine: Engine
    structure: Any
    strengths: Tensor
    weight: Tensor | None
    bias: Tensor
    ring: Ring | None = None
    closeness: Tensor | None = None


class SequenceModule(nn.Module):
    """A module that may be recurrent; then `_recurrence` is set."""

    rate: Tensor
    _recurrence: Recurrence | None = None

    @property
    def recurrent(self) -> bool:
        """Its input is a sequence."""
        return self._recurrence is not None

    def known_recurrence(self) -> Recurrence:
        """Its neurons with a state and its memory.  Raises ValueError if it has neither."""
        if self._recurrence is None:
            raise ValueError(ONE_STEP)
        return self._recurrence

    def gate_names(self) -> tuple[str, ...]:
        """Names of the parameters of neurons with a state, in the order in which engines take their rows."""
        return {"memoryless": (), "ctrnn": ("rate",)}.get(self.known_recurrence().neuron, GATES)

    def _now(self) -> Now:
        """The network that the present parameters describe; to be overridden."""
        raise NotImplementedError

    def _widths(self) -> tuple[int, bool]:
        """Columns of x, and whether outputs are squared; to be overridden."""
        raise NotImplementedError

    def initial_state(self, batch: int) -> RecurrentState:
        """Zeros, from which a sequence begins where no state is given."""
        recurrence = self.known_recurrence()
        shape = (batch, recurrence.n_state)
        return self._parts(self._like.new_zeros(shape, requires_grad=False))

    def step(self, x: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        """One time step: outputs (batch, n_outputs) of x (batch, n_inputs), and the state after it.

        ``state``: that of the step before; None: x is the first of a sequence.
        """
        self.known_recurrence()
        if not isinstance(x, Tensor) or x.ndim != 2:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x of a step has shape {shape}; it must be (batch, n_inputs={self._widths()[0]})")
        out, after = self._run_sequences(x[:, None], state=state, return_state=True)
        return out[:, 0], after

    @property
    def _like(self) -> Tensor:
        """A parameter of the dtype and on the device of all; to be overridden."""
        raise NotImplementedError

    def _gates(self) -> Tensor:
        """Parameters of the neurons with a state, (rows, n_hidden)."""
        recurrence, like = self.known_recurrence(), self._like
        if recurrence.neuron == "memoryless":
            return like.new_empty(0, 0)
        n = len(recurrence.cells)
        if recurrence.neuron == "ctrnn":
            check_shape("rate", self.rate, (n,))
            return self.rate[None]
        parts = [getattr(self, name) for name in GATES]
        for name, part, rows in zip(GATES, parts, ROWS[recurrence.neuron], strict=True):
            check_shape(name, part, (rows, n))
            check_alike(name, part, "the other parameters", like)
        return torch.cat(parts)

    def _parts(self, state: Tensor) -> RecurrentState:
        """A state (batch, n_state) in its parts."""
        recurrence = self.known_recurrence()
        n, count = len(recurrence.cells), STATES[recurrence.neuron]
        sizes = [n if count > 0 else 0, n if count > 1 else 0, recurrence.n_memory]
        return RecurrentState(*state.split(sizes, 1))

    def _run_sequences(
        self, x: Any, lengths: Any = None, state: RecurrentState | None = None, *, return_state: bool = False,
        last: bool = False, tbptt: int = 0, recompute_every: int = 0,
    ) -> Any:  # fmt: skip
        """Outputs (batch, time, n_outputs) of sequences x (batch, time, n_inputs).

        lengths          int (batch,): time steps of each sequence, 1 .. time; None: all.  After its last step the state
                         of a sequence stays and its outputs are 0.  x may be a PackedSequence: then outputs are one
        state            a RecurrentState from which to go on; None: zeros
        return_state     return (outputs, state after the last step of each sequence)
        last             outputs (batch, n_outputs) of the last step of each sequence only
        tbptt            no gradient goes from a time step that is a multiple of it to the one before; 0: through all
        recompute_every  keep only the state every so many time steps for the gradient, and compute the rest again:
                         less memory for a second forward pass; 0: keep all
        Raises ValueError where an argument does not fit.
        """
        recurrence = self.known_recurrence()
        n_inputs, squared = self._widths()
        packed = isinstance(x, PackedSequence)
        if packed:
            if lengths is not None:
                raise ValueError("a PackedSequence has its lengths; leave out lengths")
            x, lengths = pad_packed_sequence(x, batch_first=True)
        like = self._like
        x = autocast_off(x, like.dtype)
        check_input(x, n_inputs, like.dtype, like.device)
        if x.ndim != 3 or x.shape[1] == 0:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; a recurrent network takes (batch, time >= 1, n_inputs={n_inputs})"
            )
        batch, time = x.shape[:2]
        for name, value in (("tbptt", tbptt), ("recompute_every", recompute_every)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name}={value!r} must be an integer >= 0 of time steps; 0: none")
        whole = None if lengths is None else _lengths(lengths, batch, time)
        begin = like.new_zeros(batch, recurrence.n_state) if state is None else self._state_tensor(state, batch)
        now = self._now()
        now.engine.check_sequences()
        gates = self._gates()
        way = Way(whole, tbptt, recompute_every, now.ring if torch.is_grad_enabled() else None)
        net = Sequences(now.engine, now.structure, recurrence, way, squared)
        if batch == 0:
            out, after = x.new_empty(0, time, len(now.structure.outputs) - recurrence.n_memory), begin
        else:
            out, after = recur(
                net, x, begin, now.strengths, now.weight, now.bias, gates, now.closeness if way.ring else None
            )
        if last:
            out = out[:, -1] if whole is None else out[torch.arange(batch), torch.from_numpy(whole) - 1]
        elif packed and whole is not None:
            out = pack_padded_sequence(out, torch.from_numpy(whole), batch_first=True, enforce_sorted=False)
        return (out, self._parts(after)) if return_state else out

    def _state_tensor(self, state: RecurrentState, batch: int) -> Tensor:
        """A state as (batch, n_state)."""
        expected = self.initial_state(batch)
        if not isinstance(state, RecurrentState):
            raise ValueError(f"state is a {type(state).__name__}; give a RecurrentState, or None for zeros")
        for field, given, zeros in zip(fields(state), state.parts, expected.parts, strict=True):
            if given.shape != zeros.shape or given.dtype != zeros.dtype or given.device != zeros.device:
                raise ValueError(
                    f"state.{field.name} is {given.dtype} {tuple(given.shape)} on {str(given.device)!r}; for this "
                    f"batch it must be {zeros.dtype} {tuple(zeros.shape)} on {str(zeros.device)!r}"
                )
        return torch.cat(state.parts, 1)


def _lengths(lengths: Any, batch: int, time: int) -> NDArray[np.int64]:
    """Checked lengths."""
    given = lengths.to(CPU).numpy() if isinstance(lengths, Tensor) else np.asarray(lengths)
    if given.dtype.kind not in "iu" or given.shape != (batch,):
        raise ValueError(
            f"lengths is {given.dtype} {given.shape}; it must be integers ({batch},): time steps of each sequence"
        )
    wrong = np.flatnonzero((given < 1) | (given > time))
    if len(wrong):
        raise ValueError(f"lengths[{wrong[0]}]={given[wrong[0]]} must be in 1 .. {time}, the time steps of x")
    return given.astype(np.int64)


def unrolling_of(config: ManifoldConfig, time_steps: int, tbptt: int = 0, recompute_every: int = 0) -> Unrolling | None:
    """How a network is unrolled where its time or memory is measured: through so many ``time_steps`` of a sequence;
    None: it has no memory.

    Raises ValueError where a recurrent network has none of them, or another one has some.
    """
    if config.recurrent and time_steps < 1:
        raise ValueError(
            f"time_steps={time_steps} must be >= 1 for a recurrent network: what a step of it costs is that of "
            "sequences of so many time steps"
        )
    if config.recurrent:
        return Unrolling(config.neuron, config.n_memory, time_steps, tbptt, recompute_every)
    if time_steps or tbptt or recompute_every:
        given = f"time_steps={time_steps}, tbptt={tbptt}, recompute_every={recompute_every}"
        raise ValueError(f"{given} must be 0 for a network without memory, which takes single samples")
    return None


def refuse_recurrent(model: Any, what: str, instead: str = "") -> None:
    """Raise ValueError where ``what`` is asked for and the model, or its config, is recurrent.

    instead  what does support it, in words
    """
    if getattr(model, "recurrent", False):
        raise ValueError(
            f"{what} does not support recurrent networks (neuron='lstm', 'gru' or 'ctrnn', or n_memory > 0) "
            f"yet{instead}"
        )
