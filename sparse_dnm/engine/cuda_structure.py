"""The structure of a manifold on CUDA: what `candidates`, `topology` and `schedule` find, found on the device.

No array of it crosses the bus: per call five counts do, in one transfer, five more where the structure has changed, and
two where candidates are looked for anew.
Where numba's simulator runs the same code takes tensors of the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.candidates import CHANGED, CROWDED, SCALARS, Candidates, Evaluation, Windows
from sparse_dnm.engine.cuda import Ring, Structure
from sparse_dnm.engine.topology import Topology

THREADS = 128  # of a block whose threads do not meet
FRONT = 32  # warps of the block that walks the whole DAG
ADDING = 4  # warps of a block that adds up rows


def _launch(kernel: Any, count: int, *arguments: Any) -> None:
    """A thread for each of ``count`` things."""
    if count:
        backend.launch(kernel, -(-count // THREADS), THREADS, *arguments)


@dataclass(frozen=True)
class DeviceCandidates:
    """`Candidates` on the device, and the row int32 (n_candidates,) of each."""

    indptr: Tensor
    indices: Tensor
    reference: Tensor
    row_of: Tensor

    @staticmethod
    def of(indptr: Tensor, indices: Tensor, reference: Tensor) -> DeviceCandidates:
        """With the rows."""
        rows = torch.arange(len(indptr) - 1, dtype=torch.int32, device=indptr.device)
        row_of = torch.repeat_interleave(rows, indptr.diff(), output_size=len(indices))
        return DeviceCandidates(indptr, indices, reference, row_of)

    @functools.cached_property
    def host(self) -> Candidates:
        """The same as arrays, brought over once."""
        return Candidates(*(t.cpu().numpy() for t in (self.indptr, self.indices, self.reference)))


class Found(NamedTuple):
    """`Evaluation` on the device; c, threshold and imbalance are float64 (1,), ``places`` int32 (n_candidates,) counts
    the active ones up to each, ``readers`` int32 (n_edges,) are those of the active edges."""

    candidates: DeviceCandidates
    rows: Tensor
    c: Tensor
    threshold: Tensor
    omega: Tensor
    stale: Tensor | None
    d: Tensor
    near: int
    same: bool
    row_starts: Tensor
    sources: Tensor
    readers: Tensor
    strengths: Tensor
    imbalance: Tensor
    places: Tensor

    @property
    def crowded(self) -> bool:
        """As `Evaluation.crowded`."""
        return len(self.d) > CROWDED and 2 * self.near < len(self.d)

    def host(self, threads: int, known: Topology | None = None) -> Evaluation:
        """The same as arrays; of a structure that is ``known`` only its values are brought over."""

        def array(tensor: Tensor) -> Any:
            return tensor.detach().cpu().numpy()

        return Evaluation(
            candidates=self.candidates.host,
            rows=array(self.rows),
            c=self.c.item(),
            threshold=self.threshold.item(),
            omega=array(self.omega),
            stale=None,
            d=array(self.d),
            near=self.near,
            same=self.same,
            row_starts=array(self.row_starts) if known is None else known.indptr,
            sources=array(self.sources) if known is None else known.indices,
            strengths=array(self.strengths),
            imbalance=self.imbalance.item(),
            threads=threads,
        )


class DeviceWindows:
    """The twin of `Windows`, whose geometry it takes, on one device."""

    def __init__(self, windows: Windows, device: torch.device):
        self.windows, self.config, self.device = windows, windows.config, device
        self.flags = tuple(flag is not None for flag in windows.flags)
        self.offsets = torch.from_numpy(windows.offsets).to(device)
        config = windows.config
        self.inputs = torch.arange(config.n_inputs, dtype=torch.int32, device=device)
        self.outputs = torch.arange(config.n_sources, config.n_neurons, dtype=torch.int32, device=device)
        column_of = torch.full((config.n_neurons,), -1, dtype=torch.int32, device=device)
        column_of[config.n_sources :] = torch.arange(config.n_outputs, dtype=torch.int32, device=device)
        self.column_of = column_of
        self._codes: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        nothing = torch.empty(0, dtype=torch.int32, device=device)
        self.latest = DeviceCandidates(nothing, nothing, nothing, nothing)  # those that the model holds

    def take(self, indptr: Tensor, indices: Tensor, reference: Tensor) -> None:
        """Take over the model's candidates, where they are others."""
        if self.latest.indices is not indices or self.latest.reference is not reference:
            self.latest = DeviceCandidates.of(indptr, indices, reference)

    def codes(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Kind int8 and slope (n,) of the activation of every neuron."""
        if dtype not in self._codes:
            code, slope = backend.ACTIVATION_CODES[self.config.activation]
            kinds = torch.full((self.config.n_neurons,), code, dtype=torch.int8, device=self.device)
            self._codes[dtype] = kinds, torch.full_like(kinds, slope, dtype=dtype)
        return self._codes[dtype]

    def omega(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """omega of the candidates, or an empty tensor of the model's dtype."""
        return parameters["edge_weight" if self.windows.free else "alpha"].detach()[: None if self.windows.free else 0]

    def evaluate(
        self, parameters: Mapping[str, Tensor], before: tuple[Tensor, Tensor] | None, check: bool = True
    ) -> Found:
        """As `Windows.evaluate`, at the raw ``parameters``; ``before`` are row_starts and sources of a structure."""
        candidates = self.latest
        config, size, kernels = self.config, len(candidates.indices), backend.cuda_kernels()
        n_rows, omega = config.n_rows, self.omega(parameters)
        rhythm, inside, outside = self.flags
        c = torch.sigmoid(parameters["cutoff"].detach().double()).reshape(1)
        threshold = torch.maximum(c - config.skin, c / 2)

        def new(count: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(count, dtype=dtype, device=self.device)

        scalars = [parameters[name].detach().contiguous() for name in self.windows.kernel_scalars]
        rows = torch.zeros(kernels.ROWS, n_rows, dtype=torch.float64, device=self.device)
        stale, crossed = new(n_rows, torch.bool), new(n_rows, torch.int32)
        _launch(
            *(kernels.transform, n_rows, *scalars, config.period, rhythm, c, threshold, self.windows.omega_bound),
            *(torch.finfo(omega.dtype).eps, candidates.reference, rows, stale, crossed),
        )
        d, active = new(size, omega.dtype), new(size, torch.int32)
        _launch(
            *(kernels.closeness, size, rows, self.offsets, config.n_inputs, config.period, rhythm, inside, c),
            *(candidates.row_of, candidates.indices, omega, d, active),
        )
        places = torch.cumsum(active, 0, dtype=torch.int32)
        counted = torch.cat([places.new_zeros(1), places])
        row_starts = torch.zeros(config.n_neurons + 1, dtype=torch.int64, device=self.device)
        row_starts[config.n_inputs :] = counted[candidates.indptr]
        sources, readers, differs = (new(size, torch.int32) for _ in range(3))
        strengths, parts = new(size, omega.dtype), new(size, torch.float64)
        _launch(
            *(kernels.compact, size, c, config.n_inputs, config.n_sources, outside, candidates.row_of),
            *(candidates.indices, d, omega, places, before[1] if before else sources[:0], sources, readers, strengths),
            *(parts, differs),
        )
        counts = [crossed.sum(), (d.abs() > threshold).sum(), counted[-1], differs.sum()]
        if before:
            counts.append((row_starts != before[0]).sum())
        crossings, near, n_edges, *differences = torch.stack([count.long() for count in counts]).tolist()
        return Found(
            *(candidates, rows, c, threshold, omega, stale if check and crossings else None, d, near),
            *(before is not None and not any(differences), row_starts, sources[:n_edges], readers[:n_edges]),
            *(strengths[:n_edges], parts.sum().reshape(1), places),
        )

    def pull_back(
        self, e: Found, by_strength: Tensor | None, by_closeness: Tensor | None, by_imbalance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Windows.pull_back`: gradients of the raw row scalars (7, n_rows), of the raw cutoff () and of omega."""
        config, kernels = self.config, backend.cuda_kernels()
        by_scalar = e.d.new_zeros(len(SCALARS), config.n_rows)
        by_cutoff, by_omega = e.rows.new_zeros(config.n_rows), torch.empty_like(e.omega)
        backend.launch(
            *(kernels.strength_back, -(-config.n_rows // ADDING), (kernels.WIDTH, ADDING)),
            *(e.rows, self.offsets, config.n_inputs, config.n_sources, config.period, *self.flags, e.c),
            *(e.candidates.indptr, e.candidates.indices, e.omega, e.d, e.places),
            *(e.d[:0] if by_strength is None else by_strength, e.d[:0] if by_closeness is None else by_closeness),
            *(by_imbalance, by_scalar, by_cutoff, by_omega),
        )
        return by_scalar, by_cutoff.sum().to(e.d.dtype), by_omega

    def search(
        self, old: DeviceCandidates, stale: Tensor, e: Found
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """As `Windows.search`: indptr, indices and reference of the candidates after a scan of the ``stale`` rows; free
        edges: their omega, and the place int64 of each among the old ones (-1: new)."""
        if not bool(torch.isfinite(e.rows).all() & torch.isfinite(e.c).all()):
            raise ValueError("a scalar of the manifold is NaN or infinite; go back to a checkpoint and lower lr")
        config, kernels = self.config, backend.cuda_kernels()
        parts = config.n_rows * kernels.PARTS
        starts = torch.zeros(parts + 1, dtype=torch.int64, device=self.device)
        head = (
            *(e.rows, old.reference.T.contiguous(), stale, e.threshold, self.offsets, config.n_inputs),
            *(config.n_sources, config.period, *self.flags, config.seed, *map(float, config.omega), old.indptr),
            *(old.indices, e.omega),
        )
        none = old.indices[:0]
        _launch(kernels.scan, parts, *head, False, starts, none, e.omega[:0], none)
        starts = starts.cumsum(0)
        size = int(starts[-1])
        if size >= 2**31:
            raise ValueError(f"{size} candidate edges do not fit the int32 edge lists; narrow sigma or raise cutoff")
        indices = torch.empty(size, dtype=torch.int32, device=self.device)
        origin = torch.empty(size if self.windows.free else 0, dtype=torch.int32, device=self.device)
        omega = e.omega.new_empty(len(origin))
        _launch(kernels.scan, parts, *head, True, starts, indices, omega, origin)
        now = torch.cat([e.rows[: len(SCALARS)].T, e.threshold.expand(config.n_rows, 1)], dim=1)
        reference = torch.where(stale[:, None], now, old.reference)
        return (starts[:: kernels.PARTS].contiguous(), indices, reference), omega, origin.long()

    def structure(self, e: Found, everything: bool) -> tuple[Structure, bool]:
        """The active edges as they are run, and whether some input reaches an output.

        With ``everything``, neurons that reach no output run, too.
        """
        config, kernels = self.config, backend.cuda_kernels()
        n, n_inputs = config.n_neurons, config.n_inputs
        numbers = torch.arange(n + 1, dtype=torch.int32, device=self.device)
        scratch, levels = numbers.new_empty(2, n), numbers.new_full((n,), n)
        live = numbers.new_zeros(n)
        block = 1, (kernels.WIDTH, FRONT)
        backend.launch(kernels.mark_live, *block, e.row_starts, e.sources, self.outputs, live, scratch[0])
        reached = live[:n_inputs].sum()
        if everything:
            live.fill_(1)
        by_source, edge = torch.sort(torch.where(live[e.readers] > 0, e.sources, n), stable=True)
        t_indptr, t_edges = torch.searchsorted(by_source, numbers), edge << 32 | e.readers[edge]
        backend.launch(
            kernels.find_levels, *block, e.row_starts, t_indptr, t_edges, live, *scratch[:1], levels, scratch[1]
        )
        runs = live > 0
        levels[:n_inputs] = n
        by_level, order = torch.sort(levels, stable=True)
        column = torch.argsort((~runs[:n_inputs]).int(), stable=True).int()
        counts = [reached, runs[:n_inputs].sum(), runs[n_inputs:].sum(), torch.where(by_level < n, by_level, -1).max()]
        counts.append(t_indptr[-1])
        reaching, live_inputs, executed, depth, live_edges = torch.stack([count.long() for count in counts]).tolist()
        waves = torch.searchsorted(by_level, numbers[: depth + 2])
        column = column[:live_inputs]
        structure = Structure(
            *(column, column, order[:executed].int(), waves, e.row_starts, e.sources, e.readers, t_indptr, t_edges),
            *(self.outputs, self.column_of, *self.codes(e.d.dtype), slice(0, config.n_sources), config.n_sources),
            live_edges,
        )
        return structure, reaching > 0

    def ring(self, e: Found, kappa: float) -> Ring:
        """As `growth.Ring`: the candidates below the cutoff, with the coefficient kappa."""
        size = e.d.abs()
        scale = torch.where((size > e.threshold) & (size <= e.c), kappa / (1.0 - e.c), 0.0).to(e.d.dtype)
        if self.flags[2]:
            scale = scale * e.omega
        return Ring(e.candidates.row_of + self.config.n_inputs, e.candidates.indices, scale)


def gate_sum(e: Found, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `candidates.gate_sum`."""
    size = e.d.abs().double()
    gates = torch.where(size > e.threshold, torch.sigmoid((size - e.c) / tau), 0.0)
    slopes = gates * (1.0 - gates) / tau
    c = e.c[0]
    return gates.sum(), -slopes.sum() * c * (1.0 - c), (slopes * e.d.sign()).to(e.d.dtype)


class EdgeStrength(torch.autograd.Function):
    """The twin of `autograd.EdgeStrength`.

    apply(found, windows, cutoff, omega, *scalars) -> strengths (n_edges,), closeness (n_candidates,), flow ()
    """

    @staticmethod
    def forward(
        ctx: Any, found: Found, windows: DeviceWindows, cutoff: Tensor, omega: Tensor | None, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hand out what was found."""
        ctx.found, ctx.windows = found, windows
        ctx.set_materialize_grads(False)
        if omega is not None:
            ctx.save_for_backward(omega)  # so that torch refuses a backward after it was changed in place
        return found.strengths.clone(), found.d.clone(), found.imbalance.square().reshape(()).to(found.d.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, strength_gradient: Tensor | None, closeness_gradient: Tensor | None, flow_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the raw scalars."""
        e, windows = ctx.found, ctx.windows
        if windows.windows.free and windows.latest is not e.candidates:
            raise RuntimeError(CHANGED)
        ctx.saved_tensors  # noqa: B018 - raises where omega has changed
        by_imbalance = torch.zeros_like(e.imbalance)
        if flow_gradient is not None:
            by_imbalance = 2.0 * e.imbalance * flow_gradient.double()
        by_scalar, by_cutoff, by_omega = windows.pull_back(
            e, *(None if g is None else g.contiguous() for g in (strength_gradient, closeness_gradient)), by_imbalance
        )
        omega = by_omega if windows.windows.free else None
        return None, None, by_cutoff, omega, *(by_scalar[k] for k in windows.windows.places)
