"""Many steps of training by one call of compiled code (DESIGN, 4.7).

`FusedSteps.run` makes the steps that need nothing of Python, with the bits that `step.KernelStep` would give them one
by one.  Whoever looks at the model next makes a step by itself first.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.config import SCALARS
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.candidates import CROWDED, Candidates
from sparse_dnm.engine.cpu_structure import FEW, CpuStructure
from sparse_dnm.engine.schedule import tile_width, tiles_of
from sparse_dnm.kernels import cpu_step, jit
from sparse_dnm.kernels.blocks import Block, Entry
from sparse_dnm.loss.proxy import SparsityProxy
from sparse_dnm.loss.time import MeasuredTime
from sparse_dnm.train.adam import Adam, factors_of
from sparse_dnm.train.augment import Draw
from sparse_dnm.train.step import KernelStep
from sparse_dnm.train.trim import Frozen

KERNELS = backend.kernels(torch.device("cpu"))
OF_CANDIDATES = ("d", "strengths", "by_closeness", "slopes", "gates")  # numbers of each candidate, in the model's dtype


class Made(NamedTuple):
    """What some steps have come to: how many they are; edges and loss of the last of them."""

    steps: int
    n_edges: int
    loss: float


class FusedSteps:
    """Steps of the training of ``making.model`` on ``data``, batches of ``config.batch_size``."""

    def __init__(self, making: KernelStep, data: Dataset, optimizer: Adam):
        self.making, self._model, self._optimizer = making, making.model, optimizer
        self._x, self._y = (t.contiguous().numpy() for t in (data.x_train, data.y_train))
        self._y_rows = self._y.reshape(len(self._y), -1)
        self._all = dict(making.model.named_parameters())
        self._image = int(data.period) if making.config.shift else 0
        self._candidates: Candidates | None = None  # that the following belong to
        self._shape: dict[str, Any] = {}
        self._choice: tuple[Any, Any] = None, None  # of executors, and the block of it
        self._work: Any = None
        self._fixed: dict[str, Any] = {}  # memory that candidates have no part in
        self._memory: dict[str, Any] = {}  # memory for ``_room`` candidates
        self._room = 0
        self._parameters: Any = None
        self._places: tuple[int, ...] = ()  # in memory, of the parameters and their moments
        self._names: list[str] = []  # of the parameters
        self._entries: Any = None
        self._kept: tuple[Frozen | None, Any] = None, None
        self._mode = jit.mode()

    def ready(self) -> bool:
        """Steps can be made so now: the terms of the loss are known to the kernel, nothing is tried out, and Adam has
        its moments."""
        making, model = self.making, self._model
        batch, executor = making.config.batch_size, model.executor
        structure = model.structure
        tried = any(
            executor.choose(phase, batch, structure) == "torch-sparse" or executor.tries(phase, batch)
            for phase in ("forward", "backward")
        )
        state = self._optimizer.state
        if structure.candidates is not model.candidates:  # others were added since
            return False
        usable = all(p.is_contiguous() and (p.grad is None or p in state) for p in self._all.values())
        return usable and not tried and self._term() is not None

    def most(self) -> int | None:
        """Steps that can be made before one is timed; None: any number."""
        speed = self.making.costs.speed
        return speed.untimed_calls if isinstance(speed, MeasuredTime) else None

    def run(self, draws: list[Draw], kappas: list[float], rates: list[float], frozen: Frozen | None) -> Made:
        """Make a step for each of the ``draws``, by these ``kappas`` and learning ``rates``, or fewer where one needs
        more than the kernel can do."""
        making, model = self.making, self._model
        structure, term = model.structure, self._term()
        assert term is not None
        if making.edges is not None:
            making.edges.load()
        if structure.candidates is not self._candidates:
            self._candidates, self._kept, self._places = structure.candidates, (None, None), ()
            self._shape, self._choice = self._make_shape(structure), (None, None)
            self._work = self._make_work(len(structure.candidates.indices))
        self._find_parameters()
        graph, counts = self._graph(structure), list[torch.Tensor]()
        if self._entries is None or self._mode != jit.mode():
            self._mode = jit.mode()
            self._entries = self._make_entries(self._parameters.values, graph.values)
        parameters = self._trained(frozen, counts)
        batches = self._batches(draws, kappas, self._factors(counts, rates))
        given = dict(shape=self._chosen(structure), parameters=parameters, graph=graph, work=self._work)
        made, n_edges, loss = cpu_step.steps(
            Block(entries=self._entries, **given, batches=batches, term=term, kept=self._held(frozen))
        )
        for count in counts:
            count.numpy()[()] += made
        making.passed(made)
        return Made(made, n_edges, loss)

    # -- arguments of the kernel -----------------------------------------------------------------------------

    def _term(self) -> Block | None:
        """The term of the loss that asks for a smaller network; None where the kernel does not know it."""
        costs = self.making.costs
        speed, coefficient = costs.speed, costs.coefficients()[0]
        prices, tau, power = (0.0, 0.0, 0.0, 0.0), 1.0, 1
        if costs.memory is not None:
            return None
        if isinstance(speed, SparsityProxy):
            tau, power = speed.tau, speed.power
            coefficient = 0.0 if speed.flat else coefficient
        elif speed is not None:
            known = speed.known_prices()
            if known is None:
                return None
            prices, tau = known, speed.settings.tau
        names = ("per_edge", "per_input", "per_neuron", "per_level")
        of_prices = {name: float(price) for name, price in zip(names, prices, strict=True)}
        return Block(coefficient=float(coefficient), tau=float(tau), power=int(power), **of_prices)

    def _make_shape(self, structure: CpuStructure) -> dict[str, Any]:
        """What stays the same while the network trains."""
        config, manifold, neurons = self.making.config, self._model.config, structure.neurons
        geometry = self.making.engine.geometry
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
            width=tile_width(config.batch_size),
            tiles=tiles_of(config.batch_size),
            omega_decay=float(config.omega_decay),
            objective=float(config.objective),
            flow=float(config.flow),
            inputs=structure.topology.inputs,
            outputs=structure.topology.outputs,
            offsets=geometry.offsets,
            kind=neurons.kind,
            slope=neurons.slope,
            **dict(flags),
        )

    def _chosen(self, structure: CpuStructure) -> Block:
        """The shape, and the executors that are chosen at present."""
        executor, batch = self._model.executor, self.making.config.batch_size
        parts, back = (executor.parts_for(executor.choose(p, batch, structure)) for p in ("forward", "backward"))
        chosen = parts, back, executor.threads
        if chosen != self._choice[0]:
            self._choice = chosen, Block(parts=parts, parts_back=back, threads=executor.threads, **self._shape)
        return self._choice[1]

    def _find_parameters(self) -> None:
        """Make the block of parameters anew where one of them, or a moment, lies somewhere else now."""
        edges, state = self.making.edges, self._optimizer.state
        tensors = [t for p in self._all.values() for t in (p, state.get(p, {}).get("exp_avg", p))]
        tensors += [] if edges is None else [edges.omega, edges.first, edges.second]
        places = tuple(t.data_ptr() for t in tensors)
        if places != self._places:
            self._places, self._parameters = places, self._make_parameters(self._work.values)

    def _make_parameters(self, work: dict[str, Any]) -> Block:
        """The raw scalars as `evaluate` takes them; addresses of all parameters, their gradients and moments."""
        making, geometry, n_sources = self.making, self.making.engine.geometry, self._model.config.n_sources
        gradients = {name: work["by_scalar"][SCALARS.index(name)] for name in geometry.scalars}
        gradients |= {name: work[f"by_{name}"][:n_sources] for name in ("weight", "bias")}
        gradients["cutoff"] = work["by_cutoff"]
        arrays = {name: self._all[name].detach().numpy().reshape(-1) for name in gradients}
        self._names, omega = list(gradients), work["by_omega"]
        rows = []
        for name in self._names:
            state = self._optimizer.state.get(self._all[name], {})
            moments = (state[key].numpy() if key in state else arrays[name] for key in ("exp_avg", "exp_avg_sq"))
            rows.append((arrays[name], gradients[name], *moments))
        if making.edges is not None:
            edges, omega = making.edges, making.edges.omega.numpy()
            self._names.append("edge_weight")
            rows.append((omega, work["by_omega"], edges.first.numpy(), edges.second.numpy()))
        (group,) = self._optimizer.param_groups
        weighted = omega if geometry.flags[2] else work["nothing"]
        return Block(
            **{scalar: arrays[name] for scalar, name in zip(SCALARS, geometry.kernel_scalars, strict=True)},
            **{name: arrays[name] for name in ("cutoff", "weight", "bias")},
            omega=omega,
            weighted_omega=weighted,
            places=np.array([array.ctypes.data for row in rows for array in row]),
            sizes=np.array([len(row[0].reshape(-1)) for row in rows]),
            counts=np.zeros(len(rows), np.int64),
            **dict(zip(("beta1", "beta2"), group["betas"], strict=True)),
            eps=group["eps"],
        )

    def _trained(self, frozen: Frozen | None, counts: list[torch.Tensor]) -> Block:
        """The parameters, each with the place of its count of updates among ``counts``, which are appended; -1: it is
        not trained now."""
        for k, name in enumerate(self._names):
            place = -1
            if frozen is None or name in Frozen.TRAINED:
                count = self._optimizer.state[self._all[name]]["step"]
                place = next((at for at, known in enumerate(counts) if known is count), len(counts))
                if place == len(counts):
                    counts.append(count)
            self._parameters.values["counts"][k] = place
        return self._parameters

    def _factors(self, counts: list[torch.Tensor], rates: list[float]) -> dict[str, NDArray[np.float64]]:
        """Of each count and step: lr / (1 - beta1**t) and sqrt(1 - beta2**t)."""
        (group,) = self._optimizer.param_groups
        found = np.empty((2, len(counts), len(rates)))
        for k, count in enumerate(counts):
            for i, rate in enumerate(rates):
                found[:, k, i] = factors_of(int(count) + i + 1, rate, *group["betas"])
        return {"step_sizes": found[0], "roots": found[1]}

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

    def _batches(self, draws: list[Draw], kappas: list[float], factors: dict[str, NDArray[np.float64]]) -> Block:
        """What was drawn for the steps."""
        first, n = draws[0], len(draws)
        shifts, kept = np.zeros((0, 0), np.int64), np.zeros((0, 0), np.bool_)
        if first.shifts is not None:
            shifts = np.stack([d.shifts.numpy() for d in draws if d.shifts is not None]).reshape(n, -1)
        if first.kept is not None:
            kept = np.stack([d.kept.numpy() for d in draws if d.kept is not None]).reshape(n, -1)
        return Block(
            x=self._x,
            y=self._y_rows,
            rows=np.stack([d.rows.numpy() for d in draws]),
            width=self._image,
            shifts=shifts,
            kept=kept,
            kappas=np.array(kappas, np.float64),
            **factors,
        )

    def _make_work(self, size: int) -> Block:
        """Memory for ``size`` candidates."""
        if not self._fixed:
            self._fixed = self._fixed_work()
        dtype, tiles = self._shape["slope"].dtype, self._shape["tiles"]
        if size > self._room:
            self._room = size + size // 4
            memory = self.making.engine.buffers.aligned
            self._memory = {
                "sources": np.empty(2 * self._room, np.int32),
                "t_edges": np.empty(self._room, np.int64),
                "by_strength": memory(tiles * self._room, dtype),
                "by_gate": memory(self._room, np.float64),
                "by_omega": np.zeros(self._room, dtype),
                **{name: memory(self._room, dtype) for name in OF_CANDIDATES},
            }
        longer = {"sources": 2, "by_strength": tiles, "by_omega": self.making.edges is not None}
        values = {name: array[: longer.get(name, 1) * size] for name, array in self._memory.items()}
        values["sources"] = values["sources"].reshape(2, size)  # of this structure and of the next one
        return Block(**self._fixed, **values, gate_parts=np.empty((2, -(-size // KERNELS.CHUNK))))

    def _fixed_work(self) -> dict[str, Any]:
        """Memory whose size depends on the network and the batch."""
        config, batch, dtype = self._model.config, self.making.config.batch_size, self._shape["slope"].dtype
        n, n_rows, n_outputs = config.n_neurons, config.n_rows, config.n_outputs
        lanes, memory = tiles_of(batch) * tile_width(batch) * n, self.making.engine.buffers.aligned
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
        config, speed = self.making.config, self.making.costs.speed
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
            objective=Entry(getattr(KERNELS, self.making.objective), w.out, w.y, 1.0, w.by_output),
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
        # What follows is compiled only where it is called.
        ring = rest = gates = cost = decay = hold = multiply = None
        if s.squared:
            multiply = Entry(cpu_step.multiply, w.out, w.out, w.out)
        if isinstance(speed, SparsityProxy) and not speed.flat:
            gates = Entry(KERNELS.gates, w.d, 0.5, 1.0, 0.5, w.gate_parts, w.slopes)
        if isinstance(speed, MeasuredTime):
            cost = Entry(
                KERNELS.expected_cost,
                *(s.n_inputs, s.n_sources, f.live, *graph, w.d, 0.5, 1.0, 0.5, *(0.0,) * 4, w.gates, w.best),
                *(w.strongest, w.depths, w.depths_back, w.picked, w.by_gate, w.slopes),
            )
        if config.kappa:
            rest = Entry(cpu_step.rest_of, w.live, s.inputs, w.order, w.waiting, w.levels)
            ring = Entry(
                KERNELS.ring_gradient,
                *(s.n_inputs, s.n_sources, s.width, *graph, w.d, 0.5, 0.5, f.live, w.x, w.m, w.weight, w.bias),
                *(w.g, 1.0, w.nothing, w.by_closeness),
            )
        if config.omega_decay and self.making.edges is not None:
            decay = Entry(cpu_step.add_decay, p.omega, 0.1, w.by_omega)
        if (config.target_edges or config.budget_us) and self.making.edges is not None:
            hold = Entry(cpu_step.hold, p.omega, w.weight, w.weight, w.live)
        made |= dict(multiply=multiply, gates=gates, expected_cost=cost, rest_of=rest, ring_gradient=ring)
        return Block(**made, add_decay=decay, hold=hold)

    def _held(self, frozen: Frozen | None) -> Block:
        """What a structure that stays is held by, in the order of the candidates."""
        if self._kept[0] is not frozen or self._kept[1] is None:
            slots, work = self._model.candidates.slots, self._work.values
            tensors = None if frozen is None or slots is None else frozen.of_slots(torch.from_numpy(slots))
            arrays: tuple[Any, ...] = work["nothing"], work["nothing"], work["live"][:0]
            if tensors is not None:
                arrays = tuple(t.numpy() for t in tensors)
            self._kept = frozen, Block(**dict(zip(("omega", "least", "active"), arrays, strict=True)))
        return self._kept[1]
