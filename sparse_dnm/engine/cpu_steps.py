"""Many steps of training by one call of compiled code: the arguments of `kernels.cpu_step` (DESIGN, 4.7)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.checks import CPU
from sparse_dnm.config import SCALARS
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.candidates import CROWDED, Candidates
from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cpu import CpuEngine, Floats
from sparse_dnm.engine.cpu_memory import MOVED, make_work
from sparse_dnm.engine.cpu_structure import FEW, CpuStructure
from sparse_dnm.engine.schedule import tile_width, tiles_of
from sparse_dnm.kernels import cpu_search, cpu_step, jit
from sparse_dnm.kernels.blocks import Block, Entry

KERNELS = backend.kernels(CPU)


class StepSettings(NamedTuple):
    """Settings that all steps of a training share.

    batch        samples of a step
    image        width of the images that are shifted; 0: none are shifted
    objective    name of its kernel
    coefficients of the objective and of the flow in the loss
    omega_decay  times omega is added to the gradient of omega
    gates        a term has the gradient of a soft number of edges; ``cost``: of an expected cost
    ring         candidates below the cutoff have a gradient in some steps
    holds        the structure may be frozen in some steps
    """

    batch: int
    image: int
    objective: str
    coefficients: tuple[float, float]
    omega_decay: float
    gates: bool
    cost: bool
    ring: bool
    holds: bool


class Term(NamedTuple):
    """The term of the loss that asks for a smaller network; a ``coefficient`` of 0: no term."""

    coefficient: float
    tau: float = 1.0
    power: int = 1
    prices: Prices = Prices(0.0, 0.0, 0.0, 0.0)


class CpuSteps:
    """Memory, kernels and arguments of the steps of one model on samples x (n, n_inputs) with targets y (n, ..), and
    weights float64 (n,) or (0,): all are 1."""

    def __init__(
        self, engine: CpuEngine, settings: StepSettings, x: NDArray[Any], y: NDArray[Any], weights: NDArray[np.float64]
    ):
        self.engine, self.config, self.settings = engine, engine.config, settings
        self._x, self._y, self._y_rows, self._weights = x, y, y.reshape(len(y), -1), weights
        self.candidates: Candidates | None = None  # that the following belong to
        self._shape: dict[str, Any] = {}
        self._choice: tuple[Any, Any] = None, None  # of executors, and the block of it
        self._known: tuple[Any, Any] = None, None  # a schedule, and the block of its structure
        self._work: Any = None
        self.capacity = -1  # candidates that the memory is for
        self._parameters: Any = None
        self._entries: Any = None
        self._mode = jit.mode()

    def begin(self, structure: CpuStructure, capacity: int) -> None:
        """Make ready for the candidates of a structure, of which there are never more than ``capacity``."""
        candidates = structure.candidates
        assert candidates is not None
        self.candidates, n = candidates, len(candidates.indices)
        if capacity != self.capacity:
            self._shape, self._choice = self._make_shape(structure, capacity), (None, None)
            dtype = self._shape["slope"].dtype
            batch, weighted = self.settings.batch, self._weights.size > 0
            self._work = make_work(self.engine, dtype, batch, self._y, capacity, weighted)
            self.capacity = capacity
        work = self._work.values
        work["which"][0] = 0
        work["indptr"][0], work["indices"][0, :n] = candidates.indptr, candidates.indices
        work["reference"][: self.config.n_rows] = candidates.reference
        if candidates.slots is not None:
            work["slots"][0, :n] = candidates.slots

    def edges(self) -> tuple[Floats, ...]:
        """omega of the candidates and its two moments, in the memory of the steps."""
        work, n = self._work.values, self._n_candidates
        return tuple(work[name][work["which"][0], :n] for name in MOVED)

    @property
    def _n_candidates(self) -> int:
        work = self._work.values
        return int(work["indptr"][work["which"][0], -1])

    def searched(self) -> tuple[Candidates, NDArray[np.int64]]:
        """The candidates after steps that have changed them, and how often each slot was given to a new one."""
        work, n, n_rows = self._work.values, self._n_candidates, self.config.n_rows
        which = work["which"][0]
        slots = work["slots"][which, :n].copy() if self.engine.geometry.free else None
        reference = work["reference"][which * n_rows : (which + 1) * n_rows].copy()
        self.candidates = Candidates.of(
            work["indptr"][which].copy(), work["indices"][which, :n].copy(), reference, slots
        )
        births = work["births"].copy()
        work["births"].fill(0)
        return self.candidates, births

    def set_parameters(
        self,
        numbers: dict[str, Floats],
        moments: dict[str, tuple[Floats, Floats]],
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Arrays of one dimension by name: the parameters but edge_weight, and Adam's moments (any for a parameter that
        is not trained).  edge_weight comes after them."""
        work, geometry, n_sources = self._work.values, self.engine.geometry, self.config.n_sources
        gradients = {name: work["by_scalar"][SCALARS.index(name)] for name in geometry.scalars}
        gradients |= {name: work[f"by_{name}"][:n_sources] for name in ("weight", "bias")}
        gradients["cutoff"] = work["by_cutoff"]
        rows = [(array, gradients[name], *moments[name]) for name, array in numbers.items()]
        if geometry.free:  # the kernel writes where the numbers of the candidates are
            rows.append((work["omega"][0], work["by_omega"], work["first"][0], work["second"][0]))
        self._parameters = Block(
            **{scalar: numbers[name] for scalar, name in zip(SCALARS, geometry.kernel_scalars, strict=True)},
            **{name: numbers[name] for name in ("cutoff", "weight", "bias")},
            places=np.array([array.ctypes.data for row in rows for array in row]),
            sizes=np.array([len(row[0]) for row in rows]),
            counts=np.zeros(len(rows), np.int64),
            **dict(zip(("beta1", "beta2"), betas, strict=True)),
            eps=eps,
        )

    def run(
        self,
        structure: CpuStructure,
        counts: list[int],
        batches: dict[str, Any],
        term: Term,
        kept: tuple[Any, ...] | None,
    ) -> tuple[int, int, float, bool]:
        """Make steps; how many, of the last of them the number of edges and the loss, and whether the candidates have
        changed: call `searched` then.

        counts   of each parameter, in the order of `set_parameters`, edge_weight last: the row of Adam's factors; -1:
                 it is not trained
        batches  rows int64 (steps, batch), shifts int64 (steps, 2 batch) or (0, 0), kept bool (steps, batch n_inputs)
                 or (0, 0), kappas (steps,), step_sizes and roots (rows, steps) of `kernels.cpu_adam`
        kept     of each candidate, for a structure that stays, the omega of then, its least size, and whether it is
                 active
        """
        self._parameters.values["counts"][:] = counts
        graph, work = self._graph(structure), self._work.values
        if self._entries is None or self._mode != jit.mode():
            self._mode = jit.mode()
            self._entries = self._make_entries(self._parameters.values, graph.values)
        held = kept or (work["nothing"], work["nothing"], work["live"][:0])
        prices = {f"per_{name}": float(price) for name, price in term.prices._asdict().items()}
        found: tuple[int, int, float, bool] = cpu_step.steps(
            Block(
                entries=self._entries,
                shape=self._chosen(structure),
                parameters=self._parameters,
                graph=graph,
                work=self._work,
                batches=Block(x=self._x, y=self._y_rows, weights=self._weights, width=self.settings.image, **batches),
                term=Block(
                    coefficient=float(term.coefficient),
                    tau=float(term.tau),
                    power=int(term.power),
                    **prices,
                ),
                kept=Block(**dict(zip(("omega", "least", "active"), held, strict=True))),
            )
        )
        return found

    # -- arguments -------------------------------------------------------------------------------------------

    def _make_shape(self, structure: CpuStructure, capacity: int) -> dict[str, Any]:
        """What stays the same while the network trains."""
        settings, manifold, neurons = self.settings, self.config, structure.neurons
        geometry = self.engine.geometry
        flags = zip(("periodic", "omega_in_closeness", "omega_in_strength"), geometry.flags, strict=True)
        return dict(
            n_inputs=manifold.n_inputs,
            n_sources=manifold.n_sources,
            n_neurons=manifold.n_neurons,
            n_rows=manifold.n_rows,
            capacity=capacity,
            free=geometry.free,
            weighted=bool(geometry.flags[2]),
            seed=manifold.seed,
            **dict(zip(("mean", "std"), map(float, manifold.omega), strict=True)),
            period=float(manifold.period),
            omega_bound=float(geometry.omega_bound(KERNELS.OMEGA_LIMIT)),
            skin=float(manifold.skin),
            crowded=CROWDED,
            few=FEW,
            possible_edges=manifold.possible_edges,
            squared=manifold.output == "square" or None,
            width=tile_width(settings.batch),
            tiles=tiles_of(settings.batch),
            omega_decay=float(settings.omega_decay),
            objective=float(settings.coefficients[0]),
            flow=float(settings.coefficients[1]),
            inputs=structure.topology.inputs,
            outputs=structure.topology.outputs,
            offsets=geometry.offsets,
            kind=neurons.kind,
            slope=neurons.slope,
            **dict(flags),
        )

    def _chosen(self, structure: CpuStructure) -> Block:
        """The shape, and the executors that are chosen at present."""
        executor, batch = self.engine.executor, self.settings.batch
        parts, back = (executor.parts_for(executor.choose(p, batch, structure)) for p in ("forward", "backward"))
        chosen = parts, back, executor.threads
        if chosen != self._choice[0]:
            self._choice = chosen, Block(parts=parts, parts_back=back, threads=executor.threads, **self._shape)
        return self._choice[1]

    def _graph(self, structure: CpuStructure) -> Block:
        """What is known of the structure."""
        s, t = structure.schedule, structure.topology
        if self._known[0] is not s:
            self._known = (
                s,
                Block(
                    starts=t.indptr,
                    sources=t.indices,
                    live=t.live,
                    t_indptr=t.t_indptr,
                    t_edges=t.t_edges,
                    inputs=s.inputs,
                    column=s.column,
                    order=s.order,
                    sequence=s.sequence,
                    waves=s.waves,
                    column_of=s.column_of,
                    everywhere=t.order,
                ),
            )
        return self._known[1]

    def _make_entries(self, p: Any, f: Any) -> Block:
        """The kernels that such a training calls, compiled for such arguments."""
        s, w, p, f = (SimpleNamespace(**values) for values in (self._shape, self._work.values, p, f))
        forward, backward = KERNELS.make(s.width)
        scalars, flags = [getattr(p, name) for name in SCALARS], (s.periodic, s.omega_in_closeness, s.omega_in_strength)
        head, graph, omega = (s.n_inputs, s.n_sources, s.period, *flags), (w.indptr[0], w.indices[0]), w.omega[0]
        network = (s.n_sources, w.weight, w.bias, s.kind, s.slope)
        longs, bools = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.bool_)
        made = dict(
            evaluate=Entry(
                KERNELS.evaluate,
                *(*scalars, s.offsets, *head, 0.5, 0.5, True, 1.0, w.reference, *graph, omega),
                *(f.starts, f.sources, w.rows, w.stale, w.d, f.starts, f.sources, w.strengths, w.parts),
            ),
            analyze=Entry(
                KERNELS.analyze,
                *(f.starts, f.sources, s.outputs, w.waiting, w.levels, w.level_starts, w.order, w.live),
                *(w.t_indptr, w.t_edges),
            ),
            schedule=Entry(
                KERNELS.schedule,
                *(s.inputs, s.outputs, w.levels, w.order, w.live, w.executed, w.column, w.waves, w.column_of),
                w.sequence,
            ),
            take_batch=Entry(
                cpu_step.take_batch,
                *(self._x, self._y_rows, self._weights, longs, 1, 1, longs, bools, w.x_batch, w.y_rows),
                w.sample_weights,
            ),
            spread=Entry(cpu_step.spread, w.weight, w.weight),
            forward=Entry(
                forward,
                *(1, 1, f.inputs, f.column, w.x_batch, f.order, f.waves, f.starts, f.sources, w.strengths, *network),
                *(s.outputs, w.x, w.m, w.out),
            ),
            objective=Entry(getattr(KERNELS, self.settings.objective), w.out, w.y, w.sample_weights, 1.0, w.by_output),
            backward=Entry(
                backward,
                *(1, f.inputs, f.order, f.waves, f.starts, f.t_indptr, f.t_edges, w.strengths, *network),
                *(f.column_of, w.x, w.m, w.by_output, w.g, w.by_strength, w.by_weight, w.by_bias),
            ),
            fill=Entry(cpu_step.fill, w.weight, 0.0),
            add_tiles=Entry(KERNELS.add_tiles, 1, w.by_strength, w.by_weight, w.by_bias),
            add_slopes=Entry(cpu_step.add_slopes, w.slopes, 1.0, 1.0, w.by_closeness),
            edges_backward=Entry(
                KERNELS.strength_back,
                *(w.rows, s.offsets, *head, 0.5, *graph, omega, w.d, f.starts, f.sources, w.strengths),
                *(w.by_strength, w.by_closeness, 0.0, w.sums, w.by_scalar, w.by_omega),
            ),
            adam=Entry(KERNELS.adam, *(w.weight,) * 4, 1.0, 0.9, 0.999, 1.0, 1e-8),
        )
        return Block(**made, **self._search_entries(s, w, head), **self._optional_entries(s, w, f))

    @staticmethod
    def _search_entries(s: Any, w: Any, head: tuple[Any, ...]) -> dict[str, Entry | None]:
        """Kernels that search for candidates."""
        graph, origin, move, give_slots = (w.indptr[0], w.indices[0], w.omega[0]), w.origin[0], None, None
        if s.free:
            move = Entry(cpu_search.move, origin, w.first[0], w.first[0])
            give_slots = Entry(cpu_search.give_slots, origin, w.slots[0], w.slots[0], w.taken, w.births)
        return {
            "scan": Entry(
                KERNELS.scan,
                *(w.rows, w.reference, w.stale, 0.5, s.offsets, *head, s.seed, s.mean, s.std, *graph, True, *graph),
                origin,
            ),
            "all_finite": Entry(cpu_search.all_finite, w.rows, 0.5),
            "sum_up": Entry(cpu_search.sum_up, w.indptr[0]),
            "refer": Entry(cpu_search.refer, w.rows, w.stale, 0.5, w.reference, w.reference),
            "compose": Entry(cpu_search.compose, origin, origin),
            "move": move,
            "give_slots": give_slots,
        }

    def _optional_entries(self, s: Any, w: Any, f: Any) -> dict[str, Entry | None]:
        """Kernels that are compiled only where such a training calls them."""
        settings, omega, graph = self.settings, w.omega[0], (w.indptr[0], w.indices[0])
        ring = rest = gates = cost = decay = hold = multiply = None
        if s.squared:
            multiply = Entry(cpu_step.multiply, w.out, w.out, w.out)
        if settings.gates:
            gates = Entry(KERNELS.gates, w.d, 0.5, 1.0, 0.5, w.gate_parts, w.slopes)
        if settings.cost:
            cost = Entry(
                KERNELS.expected_cost,
                *(s.n_inputs, s.n_sources, f.live, *graph, w.d, 0.5, 1.0, 0.5, *(0.0,) * 6, w.gates, w.best),
                *(w.strongest, w.depths, w.depths_back, w.picked, w.by_gate, w.slopes),
            )
        if settings.ring:
            rest = Entry(cpu_step.rest_of, w.live, s.inputs, w.order, w.waiting, w.levels)
            ring = Entry(
                KERNELS.ring_gradient,
                *(s.n_inputs, s.n_sources, s.width, *graph, w.d, 0.5, 0.5, f.live, w.x, w.m, w.weight, w.bias),
                *(w.g, 1.0, w.nothing, w.by_closeness),
            )
        if settings.omega_decay and s.free:
            decay = Entry(cpu_step.add_decay, omega, 0.1, w.by_omega)
        if settings.holds and s.free:
            hold = Entry(cpu_step.hold, omega, w.weight, w.weight, w.live)
        found = {"multiply": multiply, "gates": gates, "expected_cost": cost, "rest_of": rest, "ring_gradient": ring}
        return {**found, "add_decay": decay, "hold": hold}
