"""DenseManifold: the original's dense computation in plain torch; an oracle and the baseline of benchmarks.

The formulas are written out here a second time on purpose: a check that shares the kernels would check nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dnm.checks import check_input
from sparse_dnm.config import OMEGA_IN_CLOSENESS, ManifoldConfig, check_choice
from sparse_dnm.model.init import initial_scalars
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.model.saved import slots_in_order

METHODS = ("levels", "neurons")
ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "identity": lambda z: z,
}


class DenseManifold(nn.Module):
    """A Dynamic Neural Manifold that computes every possible connection, active or not: memory O(n²).

    Same parameters as DynamicManifold, whose state_dict it loads, same outputs and gradients; edge_weight
    (n_candidates,) has no free slots and is in the order of the candidates.
    method   "levels": one matrix product per group of neurons that read only earlier groups, dead neurons
             skipped; "neurons": the original's loop, one neuron at a time over its row of the matrix
    state    a state_dict to start from instead of a random draw (see initial_scalars)
    If edges have an omega, the candidate edges are part of the state, and a dense model cannot search for them: build
    it with ``from_manifold``, or give ``state``; otherwise ValueError.
    """

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    theta: Tensor
    phi: Tensor
    sigma: Tensor
    mu: Tensor
    weight: Tensor
    bias: Tensor
    cutoff: Tensor
    edge_weight: Tensor
    candidate_indptr: Tensor
    candidate_indices: Tensor

    def __init__(
        self,
        config: ManifoldConfig,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        method: str = "levels",
        *,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_choice("method", method, METHODS)
        refuse_recurrent(config, "DenseManifold")
        if config.edges != "closeness" and state is None:
            raise ValueError(
                f'edges="{config.edges}" needs candidate edges, which DenseManifold does not search for; '
                "build a DynamicManifold and use DenseManifold.from_manifold(model)"
            )
        self.config = config
        self.method = method
        if state is not None:
            generator = torch.Generator()  # the draw is overwritten, so do not advance the caller's generators
        for name, value in initial_scalars(config, generator, dtype).items():
            self.register_parameter(name, nn.Parameter(value))
        if config.edges != "closeness":
            self.edge_weight = nn.Parameter(torch.empty(0, dtype=dtype))
        self.register_buffer("candidate_indptr", torch.zeros(config.n_rows + 1, dtype=torch.int64))
        self.register_buffer("candidate_indices", torch.empty(0, dtype=torch.int32))
        if state is not None:
            self.load_state_dict(state)

    @classmethod
    def from_manifold(cls, model: Any, method: str = "levels") -> DenseManifold:
        """A dense copy of a DynamicManifold: its config, dtype, device and values as they are now."""
        _ = model.topology  # finds the candidates of the present parameters
        dense = cls(model.config, None, model.cutoff.dtype, method, state=model.state_dict())
        return dense.to(model.cutoff.device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_inputs) -> (..., n_outputs).  Raises ValueError as check_input does."""
        check_input(x, self.config.n_inputs, self.cutoff.dtype, self.cutoff.device)
        run = self._by_levels if self.method == "levels" else self._by_neurons
        y = run(x.reshape(-1, self.config.n_inputs).t(), self.strengths_matrix()).t()
        y = y.reshape(*x.shape[:-1], self.config.n_outputs)
        return y.square() if self.config.output == "square" else y

    def strengths_matrix(self) -> Tensor:
        """D (n_rows, n_sources): row r is neuron n_inputs + r, column j its source; 0 where there is no edge."""
        d = self._closeness().tril(self.config.n_inputs - 1)  # keeps j < i
        c = torch.sigmoid(self.cutoff)
        strengths = F.relu(d.abs() - c) * (1 / (1 - c)) * d.detach().sign()
        return strengths * self._omega() if self.config.edges == "weighted" else strengths

    @property
    def density(self) -> float:
        """Active edges / possible edges, of the current values."""
        with torch.no_grad():
            return int(self.strengths_matrix().count_nonzero()) / self.config.possible_edges

    def _closeness(self) -> Tensor:
        """d (n_rows, n_sources), including the impossible cells j >= i."""
        c, like = self.config, self.cutoff
        shift = torch.linspace(c.n_inputs, c.n_outputs, c.n_rows, dtype=torch.float64)
        shift -= torch.arange(c.n_inputs, c.n_neurons)
        p = torch.arange(c.n_sources).to(like) + shift.to(like)[:, None]  # position of j seen from i
        width = math.sqrt(0.5) / F.softplus(self.sigma)
        g = torch.exp(-((p - self.mu[:, None]) * width[:, None]).square())
        scale = (2 * torch.sigmoid(self.alpha) - 1)[:, None]
        if c.edges == "free":
            return scale * g * self._omega()
        frequency = 2 * math.pi * math.log(2) / (c.period * F.softplus(self.theta))
        wave = 0.501 + 0.5 * torch.sin(torch.addcmul(self.phi[:, None], p, frequency[:, None]))
        s = torch.exp((1 + self.beta)[:, None] * wave.log())  # cheaper than pow, backward above all
        d = scale * g * (s - torch.sigmoid(self.gamma)[:, None])
        return d * self._omega() if c.edges in OMEGA_IN_CLOSENESS else d

    def _omega(self) -> Tensor:
        """omega (n_rows, n_sources): edge_weight on the candidates, 0 elsewhere."""
        n_rows, n_sources = self.config.n_rows, self.config.n_sources
        rows = torch.arange(n_rows, device=self.cutoff.device)
        rows = rows.repeat_interleave(self.candidate_indptr.diff(), output_size=len(self.candidate_indices))
        cells = torch.add(self.candidate_indices, rows, alpha=n_sources)
        empty = self.edge_weight.new_zeros(n_rows * n_sources)
        return empty.index_copy(0, cells, self.edge_weight).view(n_rows, n_sources)

    def _by_neurons(self, x: Tensor, d: Tensor) -> Tensor:
        """x (n_inputs, batch), d (n_rows, n_sources) -> y (n_outputs, batch)."""
        c, act = self.config, ACTIVATION_FUNCTIONS[self.config.activation]
        rows, weight, bias = d.unbind(), self.weight.unbind(), self.bias.unbind()
        z = [self.weight[: c.n_inputs, None] * x + self.bias[: c.n_inputs, None]]  # linear messages
        m = act(z[0])
        for i in range(c.n_inputs, c.n_sources):
            total = rows[i - c.n_inputs][:i] @ m
            z.append((weight[i] * total + bias[i])[None])
            m = torch.cat([m, act(z[-1])])
        linear = torch.cat(z)
        return torch.stack([row @ linear for row in rows[c.n_hidden :]])

    def _by_levels(self, x: Tensor, d: Tensor) -> Tensor:
        """x (n_inputs, batch), d (n_rows, n_sources) -> y (n_outputs, batch).

        Inputs reach all hidden neurons in one product; then each wave adds its messages to all later ones.
        (split, because its backward is one concatenation, where slices would each fill a whole matrix.)
        """
        c, act = self.config, ACTIVATION_FUNCTIONS[self.config.activation]
        from_inputs, from_hidden = d.split([c.n_inputs, c.n_hidden], dim=1)
        weight, bias = (v[:, None].split([c.n_inputs, c.n_hidden]) for v in (self.weight, self.bias))
        z_inputs = torch.addcmul(bias[0], weight[0], x)
        outputs = from_inputs[c.n_hidden :] @ z_inputs
        waves = wavefronts((from_hidden.detach() != 0).cpu().numpy())
        if not waves:
            return outputs
        sizes = [len(wave) for wave in waves]
        order = torch.from_numpy(np.concatenate(waves)).to(x.device)
        later = from_hidden[: c.n_hidden].index_select(0, order).index_select(1, order).t().split(sizes)
        weights, biases = (v[1].index_select(0, order).split(sizes) for v in (weight, bias))
        waiting = (from_inputs[: c.n_hidden] @ act(z_inputs)).index_select(0, order)
        z, done = [], 0
        for k, size in enumerate(sizes):
            total, waiting = waiting.split([size, len(waiting) - size])
            done += size
            z.append(torch.addcmul(biases[k], weights[k], total))
            if len(waiting):
                waiting = torch.addmm(waiting, later[k][:, done:].t(), act(z[k]))
        return torch.addmm(outputs, from_hidden[c.n_hidden :].index_select(1, order), torch.cat(z))

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        """Candidates may be of any number, their omega in order or in slots; entries that only DynamicManifold has
        are ignored."""
        state_dict = {**state_dict, **slots_in_order(state_dict, prefix)}
        for name in ("candidate_indices", "edge_weight"):
            new, old = state_dict.get(prefix + name), getattr(self, name, None)
            if new is not None and old is not None and new.ndim == 1 and new.shape != old.shape:
                old.data = old.new_empty(new.shape)
                old.grad = None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        passed_over = {prefix + name for name in ("reference", "candidate_slots", "slot_births", "structure_digest")}
        unexpected_keys[:] = [
            key for key in unexpected_keys if not (key.startswith(prefix + "_") or key in passed_over)
        ]
        if self.config.edges != "closeness":
            edges, weights = len(self.candidate_indices), len(self.edge_weight)
            end = int(self.candidate_indptr[-1])
            if not edges == weights == end:
                error_msgs.append(
                    f"candidate_indices has {edges} edges, edge_weight {weights}, candidate_indptr ends at "
                    f"{end}; the three must agree, so load them from one state_dict"
                )


def wavefronts(reads: np.ndarray) -> list[np.ndarray]:
    """Group the live hidden neurons: each group reads inputs and earlier groups only, and groups are few.

    reads   bool (n_hidden + n_outputs, n_hidden)   hidden neuron or output i reads hidden neuron j
    Returns int64 arrays of hidden neurons, ascending: group k holds those whose longest path from any other
    hidden neuron has k edges.  Neurons that reach no output are in no group.
    """
    n_hidden = reads.shape[1]
    frontier = live = reads[n_hidden:].any(0)
    while frontier.any():
        frontier = reads[:n_hidden][frontier].any(0) & ~live
        live = live | frontier
    among = np.flatnonzero(live)
    readers = reads[among][:, among].T.astype(np.int32)  # row j: who reads j
    missing = readers.sum(0)  # sources not yet in a group
    waves = []
    while (ready := np.flatnonzero(missing == 0)).size:
        waves.append(among[ready])
        missing -= readers[ready].sum(0)
        missing[ready] = -1
    return waves
