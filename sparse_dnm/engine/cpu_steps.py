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
from sparse_dnm.engine.cpu_structure import FEW, CpuStructure
from sparse_dnm.engine.schedule import tile_width, tiles_of
from sparse_dnm.kernels import cpu_step, jit
from sparse_dnm.kernels.blocks import Block, Entry

KERNELS = backend.kernels(CPU)
OF_CANDIDATES = ("d", "strengths", "by_closeness", "slopes", "gates")  # numbers of each candidate, in the model's dtype


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
    """Memory, kernels and arguments of the steps of one model on samples x (n, n_inputs) with targets y (n, ..)."""

    def __init__(self, engine: CpuEngine, settings: StepSettings, x: NDArray[Any], y: NDArray[Any]):
        self.engine, self.config, self.settings = engine, engine.config, settings
        self._x, self._y, self._y_rows = x, y, y.reshape(len(y), -1)
        self.candidates: Candidates | None = None  # that the following belong to
        self._shape: dict[str, Any] = {}
        self._choice: tuple[Any, Any] = None, None  # of executors, and the block of it
        self._work: Any = None
        self._fixed: dict[str, Any] = {}  # memory that candidates have no part in
        self._memory: dict[str, Any] = {}  # memory for ``_room`` candidates
        self._room = 0
        self._parameters: Any = None
        self._entries: Any = None
        self._mode = jit.mode()

    def begin(self, structure: CpuStructure) -> None:
        """Make ready for the candidates of a structure."""
        candidates = structure.candidates
        assert candidates is not None
        self.candidates, self._shape, self._choice = candidates, self._make_shape(structure), (None, None)
        self._work = self._make_work(len(candidates.indices))

    def set_parameters(
        self,
        numbers: dict[str, Floats],
        moments: dict[str, tuple[Floats, Floats]],
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Arrays of one dimension by name: the parameters, edge_weight that of the candidates, and Adam's moments (any
        for a parameter that is not trained)."""
        work, geometry, n_sources = self._work.values, self.engine.geometry, self.config.n_sources
        gradients = {name: work["by_scalar"][SCALARS.index(name)] for name in geometry.scalars}
        gradients |= {name: work[f"by_{name}"][:n_sources] for name in ("weight", "bias")}
        gradients |= {"cutoff": work["by_cutoff"], "edge_weight": work["by_omega"]}
        rows = [(array, gradients[name], *moments[name]) for name, array in numbers.items()]
        omega = numbers.get("edge_weight", work["nothing"])
        self._parameters = Block(
            **{scalar: numbers[name] for scalar, name in zip(SCALARS, geometry.kernel_scalars, strict=True)},
            **{name: numbers[name] for name in ("cutoff", "weight", "bias")},
            omega=omega,
            weighted_omega=omega if geometry.flags[2] else work["nothing"],
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
    ) -> tuple[int, int, float]:
        """Make steps; how many, and of the last of them the number of edges and the loss.

        counts   of each parameter, in the order of `set_parameters`: the row of Adam's factors; -1: it is not trained
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
        prices = zip(("per_edge", "per_input", "per_neuron", "per_level"), term.prices, strict=True)
        found: tuple[int, int, float] = cpu_step.steps(
            Block(
                entries=self._entries,
                shape=self._chosen(structure),
                parameters=self._parameters,
                graph=graph,
                work=self._work,
                batches=Block(x=self._x, y=self._y_rows, width=self.settings.image, **batches),
                term=Block(
                    coefficient=float(term.coefficient),
                    tau=float(term.tau),
                    power=int(term.power),
                    **{name: float(price) for name, price in prices},
                ),
                kept=Block(**dict(zip(("omega", "least", "active"), held, strict=True))),
            )
        )
        return found

    # -- arguments -------------------------------------------------------------------------------------------

    def _make_shape(self, structure: CpuStructure) -> dict[str, Any]:
        """What stays the same while the network trains."""
        settings, manifold, neurons = self.settings, self.config, structure.neurons
        geometry = self.engine.geometry
        flags = zip(("periodic", "omega_in_closeness", "omega_in_strength"), geometry.flags, strict=True)
        return dict(
            n_inputs=manifold.n_inputs,
            n_sources=manifold.n_sources,
            n_neurons=manifold.n_neurons,
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

    @staticmethod
    def _graph(structure: CpuStructure) -> Block:
        """The candidates, and what is known of the structure."""
        s, t, candidates = structure.schedule, structure.topology, structure.candidates
        assert candidates is not None
        return Block(
            reference=candidates.reference,
            indptr=candidates.indptr,
            indices=candidates.indices,
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
        )

    def _make_work(self, size: int) -> Block:
        """Memory for ``size`` candidates."""
        if not self._fixed:
            self._fixed = self._fixed_work()
        dtype, tiles = self._shape["slope"].dtype, self._shape["tiles"]
        if size > self._room:
            self._room = size + size // 4
            memory = self.engine.buffers.aligned
            self._memory = {
                "sources": np.empty(2 * self._room, np.int32),
                "t_edges": np.empty(self._room, np.int64),
                "by_strength": memory(tiles * self._room, dtype),
                "by_gate": memory(self._room, np.float64),
                "by_omega": np.zeros(self._room, dtype),
                **{name: memory(self._room, dtype) for name in OF_CANDIDATES},
            }
        longer = {"sources": 2, "by_strength": tiles, "by_omega": self.engine.geometry.free}
        values = {name: array[: longer.get(name, 1) * size] for name, array in self._memory.items()}
        values["sources"] = values["sources"].reshape(2, size)  # of this structure and of the next one
        return Block(**self._fixed, **values, gate_parts=np.empty((2, -(-size // KERNELS.CHUNK))))

    def _fixed_work(self) -> dict[str, Any]:
        """Memory whose size depends on the network and the batch."""
        config, batch, dtype = self.config, self.settings.batch, self._shape["slope"].dtype
        n, n_rows, n_outputs = config.n_neurons, config.n_rows, config.n_outputs
        lanes, memory = tiles_of(batch) * tile_width(batch) * n, self.engine.buffers.aligned
        y_rows, executed = np.zeros((batch, self._y_rows.shape[1]), self._y.dtype), np.zeros(n, np.int32)

        def floats(*shape: int) -> NDArray[Any]:
            return np.zeros(shape, dtype)

        return {
            "starts": np.zeros((2, n + 1), np.int64),  # of this structure and of the next one
            "live": np.zeros(n, np.bool_),
            "t_indptr": np.zeros(n + 1, np.int64),
            "executed": executed,
            "executed_at": executed.ctypes.data,
            "column": np.zeros(config.n_inputs, np.int32),
            "waves": np.zeros(n + 2, np.int64),
            "level_starts": np.zeros(n + 2, np.int64),
            **{name: np.zeros(n, np.int32) for name in ("sequence", "column_of", "waiting", "levels", "order")},
            "rows": np.zeros((KERNELS.ROWS, n_rows)),
            "stale": np.zeros(n_rows, np.bool_),
            "parts": np.zeros((4, n_rows)),
            "weight": np.ones(n, dtype),
            "bias": floats(n),
            "x_batch": floats(batch, config.n_inputs),
            "y": y_rows.reshape(batch, *self._y.shape[1:]),
            "y_rows": y_rows,
            **{name: memory(lanes, dtype) for name in ("x", "m", "g")},
            **{name: floats(batch, n_outputs) for name in ("out", "squares", "by_output")},
            **{name: floats(tiles_of(batch) * n) for name in ("by_weight", "by_bias")},
            "best": np.zeros(config.n_sources),
            "strongest": np.zeros(config.n_sources, np.int64),
            **{name: np.zeros(n) for name in ("depths", "depths_back")},
            "picked": np.zeros((n_rows, KERNELS.PICKS), np.int64),
            "sums": np.zeros((len(SCALARS) + 1, n_rows)),
            "by_scalar": floats(len(SCALARS), n_rows),
            "by_cutoff": floats(1),
            "nothing": floats(0),
            "no_outputs": np.zeros(0, np.int32),
            "no_out": floats(batch, 0),
        }

    def _make_entries(self, p: Any, f: Any) -> Block:
        """The kernels that such a training calls, compiled for such arguments."""
        s, w, p, f = (SimpleNamespace(**values) for values in (self._shape, self._work.values, p, f))
        forward, backward = KERNELS.make(s.width)
        scalars, flags = [getattr(p, name) for name in SCALARS], (s.periodic, s.omega_in_closeness, s.omega_in_strength)
        head, graph = (s.n_inputs, s.n_sources, s.period, *flags), (f.indptr, f.indices)
        network = (s.n_sources, w.weight, w.bias, s.kind, s.slope)
        longs, bools = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.bool_)
        made = dict(
            evaluate=Entry(
                KERNELS.evaluate,
                *(*scalars, s.offsets, *head, 0.5, 0.5, True, 1.0, f.reference, *graph, p.omega),
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
                cpu_step.take_batch, self._x, self._y_rows, longs, 1, 1, longs, bools, w.x_batch, w.y_rows
            ),
            spread=Entry(cpu_step.spread, w.weight, w.weight),
            forward=Entry(
                forward,
                *(1, f.inputs, f.column, w.x_batch, f.order, f.waves, f.starts, f.sources, w.strengths, *network),
                *(s.outputs, w.x, w.m, w.out),
            ),
            objective=Entry(getattr(KERNELS, self.settings.objective), w.out, w.y, 1.0, w.by_output),
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
                *(w.rows, s.offsets, *head, 0.5, *graph, p.omega, w.d, f.starts, f.sources, w.strengths),
                *(w.by_strength, w.by_closeness, 0.0, w.sums, w.by_scalar, w.by_omega),
            ),
            adam=Entry(KERNELS.adam, *(w.weight,) * 4, 1.0, 0.9, 0.999, 1.0, 1e-8),
        )
        return Block(**made, **self._optional_entries(s, w, p, f))

    def _optional_entries(self, s: Any, w: Any, p: Any, f: Any) -> dict[str, Entry | None]:
        """Kernels that are compiled only where such a training calls them."""
        settings, free, graph = self.settings, self.engine.geometry.free, (f.indptr, f.indices)
        ring = rest = gates = cost = decay = hold = multiply = None
        if s.squared:
            multiply = Entry(cpu_step.multiply, w.out, w.out, w.out)
        if settings.gates:
            gates = Entry(KERNELS.gates, w.d, 0.5, 1.0, 0.5, w.gate_parts, w.slopes)
        if settings.cost:
            cost = Entry(
                KERNELS.expected_cost,
                *(s.n_inputs, s.n_sources, f.live, *graph, w.d, 0.5, 1.0, 0.5, *(0.0,) * 4, w.gates, w.best),
                *(w.strongest, w.depths, w.depths_back, w.picked, w.by_gate, w.slopes),
            )
        if settings.ring:
            rest = Entry(cpu_step.rest_of, w.live, s.inputs, w.order, w.waiting, w.levels)
            ring = Entry(
                KERNELS.ring_gradient,
                *(s.n_inputs, s.n_sources, s.width, *graph, w.d, 0.5, 0.5, f.live, w.x, w.m, w.weight, w.bias),
                *(w.g, 1.0, w.nothing, w.by_closeness),
            )
        if settings.omega_decay and free:
            decay = Entry(cpu_step.add_decay, p.omega, 0.1, w.by_omega)
        if settings.holds and free:
            hold = Entry(cpu_step.hold, p.omega, w.weight, w.weight, w.live)
        found = {"multiply": multiply, "gates": gates, "expected_cost": cost, "rest_of": rest, "ring_gradient": ring}
        return {**found, "add_decay": decay, "hold": hold}
