"""What a step of a recurrent network costs: its seconds and bytes, measured, and their gradients against the oracle."""

import contextlib
import dataclasses
import gc
import tracemalloc

import naive
import numpy as np
import pytest
import torch
from test_measured import QUICK, dense
from test_recurrent_training import CONFIG, first_of, lines, stop_at, trainer

from sparse_dnm import DynamicManifold, ManifoldConfig, MeasuredMemory, MeasuredTime, TimeSettings, Topology, Trainer
from sparse_dnm.engine import cpu_sequences
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Neurons
from sparse_dnm.engine.cpu import KERNELS, CpuEngine
from sparse_dnm.engine.cpu_recurrent import SequencePass, Sums
from sparse_dnm.engine.cpu_skewed import SkewedPass
from sparse_dnm.engine.cpu_stopwatch import CpuStopwatch, SequenceStopwatch
from sparse_dnm.engine.recurrence import Network as Sequence
from sparse_dnm.engine.recurrence import Unrolling
from sparse_dnm.loss.term import Confirmed
from sparse_dnm.timing import clock as timing
from sparse_dnm.timing.calibration import calibrate, describe, read_profile
from sparse_dnm.timing.cost_model import FEATURES, CostModel
from sparse_dnm.timing.probes import Bench, Settings
from sparse_dnm.timing.subprocess import Network, time_in_subprocess
from sparse_dnm.train.trim import saliency
from sparse_dnm.train.validation import Validation

KINDS = [("lstm", 0, 3, 9), ("gru", 2, 3, 9), ("memoryless", 2, 40, 5), ("ctrnn", 0, 40, 5)]


def model_of(neuron="lstm", n_memory=0, n=40, dtype=torch.float32, **changes):
    sizes = {"n_neurons": n + 2 * n_memory, "n_inputs": 4, "n_outputs": 3, "period": 4.0}
    free = {"edges": "free", "omega": (0.0, 0.6), "sigma": (20.0, 1.0), "mu": (0.0, 8.0), "cutoff": -2.0}
    made = ManifoldConfig(**{**sizes, **free, **changes}, neuron=neuron, n_memory=n_memory)
    return DynamicManifold(made, torch.Generator().manual_seed(2), dtype, threads=1)


def parts_of(model):
    """The edges of a model as pairs, and which of its neurons reach an output, by plain loops."""
    topology = model.find().topology
    edges, live = [tuple(map(int, e)) for e in topology.edges()], set(map(int, topology.outputs))
    for _ in range(topology.n_neurons):
        live |= {source for source, reader in edges if reader in live}
    return edges, live


# -- features ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("neuron", "n_memory", "batch", "steps"), KINDS)
def test_features_are_those_of_plain_loops(neuron, n_memory, batch, steps):
    model = model_of(neuron, n_memory)
    evaluation, (edges, live), graph = model.find(), parts_of(model), model.config.graph
    found = evaluation.engine.sequence_features(evaluation.structure, batch, Unrolling(neuron, n_memory, steps))
    skewed = batch <= 4 and not n_memory and neuron != "memoryless"
    names = FEATURES["skewed sequences" if skewed else "sequences"]
    counts = dict(zip(names, found, strict=True))
    inputs, sources = set(range(graph.n_inputs)), graph.n_neurons - graph.n_outputs
    assert counts["input"] == len(live & inputs)
    assert counts["neuron"] == len([i for i in live - inputs if i < sources])
    assert counts["edge"] == len([pair for pair in edges if pair[1] in live])
    assert (counts["call"], counts["output"]) == (1, graph.n_outputs)
    if not skewed:
        assert counts["crowded row"] == pytest.approx(len(live - inputs) ** 2 / 1000)
        return
    level = {i: 0 for i in range(graph.n_neurons)}
    for source, reader in sorted(edges, key=lambda pair: pair[1]):
        level[reader] = max(level[reader], level[source] + 1)
    cells = sorted(level[i] for i in live - inputs if i < sources)
    slots = KERNELS.cells.COUNT // 4  # three columns take the room of four
    groups = [cells[k : k + slots] for k in range(0, len(cells), slots)]
    blocks = -(-steps // 2)
    assert counts["group"] == pytest.approx(sum(max(g) - min(g) + blocks for g in groups) / blocks)
    assert counts["level"] == max(level.values())


def test_prices_of_levels_that_run_behind_each_other():
    """A neuron pays its share of the groups; nothing else does."""
    names = FEATURES["skewed sequences"]
    cost = CostModel("skewed sequences", tuple(float(10**k) for k in range(len(names))))
    prices = cost.prices(np.array([1, 2, 6, 20, 1, 5, 3], float))
    assert (prices.input, prices.edge, prices.level, prices.block) == (10.0, 1e3, 1e5, 0.0)
    assert prices.neuron == 100.0 + 1e6 * 3 / 6


# -- time ----------------------------------------------------------------------------------------------------


def watch_of(model, unrolling, batch, train):
    evaluation = model.find()
    x = np.random.default_rng(0).standard_normal((batch, unrolling.steps, 4)).astype(np.float32)
    given = evaluation.structure, evaluation.values.strengths, x, train, unrolling
    return evaluation.engine.sequence_stopwatch(*given)


@pytest.mark.parametrize(("neuron", "n_memory", "batch", "steps"), KINDS)
def test_a_stopwatch_reads_the_clock_around_the_kernels_alone(neuron, n_memory, batch, steps):
    """Each kernel takes 3 s of a clock that moves when it is read, and reading it 0.5."""
    readings = iter(np.arange(10**4) * 3.0)
    clock = timing.Clock("perf_counter", lambda: next(readings), 0.5, 1e-9)
    for train, every, kernels in ((False, 0, 1), (True, 0, 3), (True, 2, 3 * -(-steps // 2) + 1)):
        watch = watch_of(model_of(neuron, n_memory), Unrolling(neuron, n_memory, steps, 0, every), batch, train)
        assert watch(clock) == watch.warm(clock) == 2.5 * kernels
        assert watch.steps == 1


def test_a_stopwatch_runs_what_a_training_runs(monkeypatch):
    """Few long sequences with levels behind each other, others by tiles; so many steps and columns."""
    ran = []
    for kind in (SequencePass, SkewedPass):
        forward = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda self, *a, f=forward: ran.append((type(self), self.x.shape)) or f(self, *a)
        )
    for batch, kind in ((2, SkewedPass), (40, SequencePass)):
        ran.clear()
        watch_of(model_of(), Unrolling("lstm", 0, 9), batch, True)(timing.Clock.of("perf_counter"))
        assert ran == [(kind, (batch, 9, 4))]


def charge(structure):
    """What a machine asks for a sequence that knows edges and executed neurons only, s."""
    return 1e-5 * len(structure.topology.t_edges) + 5e-5 * len(structure.schedule.executed)


@pytest.fixture
def charged(monkeypatch):
    """Such a machine."""
    for kind in (SequenceStopwatch, CpuStopwatch):  # the latter times the reference
        monkeypatch.setattr(kind, "warm", lambda self, clock: charge(self._structure))
    monkeypatch.setattr(timing, "preemptions", lambda: 0)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize(("neuron", "n_memory", "batch", "steps"), KINDS)
def test_the_gradient_of_the_time_is_that_of_the_oracles_expected_cost(charged, neuron, n_memory, batch, steps, mode):
    model = model_of(neuron, n_memory, n=24, dtype=torch.float64)
    chosen = TimeSettings(mode=mode, batch=batch, time_steps=steps, **QUICK)
    term = MeasuredTime(model, chosen)
    evaluation, graph = model.find(), model.config.graph
    assert term.value(evaluation) == pytest.approx(1.0, rel=1e-6)
    assert term.start == pytest.approx(charge(evaluation.host), rel=1e-6)
    prices = term.prices(evaluation)
    assert prices.neuron > 0
    assert prices.block == prices.lone == 0.0
    prices = prices._replace(**{name: value / term.reference for name, value in prices._asdict().items()})
    e, c = evaluation.host_values, evaluation.host_values.c
    _, places = dense(dataclasses.replace(evaluation, config=graph), e.d)
    mask = np.zeros((graph.n_neurons,) * 2, bool)
    mask[places] = np.abs(e.d) > e.threshold
    mask &= evaluation.topology.live[:, None]

    def oracle(values):
        full = np.zeros(mask.shape)
        full[places] = values
        sizes = graph.n_inputs, graph.n_outputs
        return naive.expected_cost(full, c, term.settings.tau, mask, *sizes, prices, KERNELS.PICKS)

    found = term.gradient(evaluation)
    by_d = naive.gradient(oracle, e.d.astype(float), 1e-6)
    scale = max(1.0, np.abs(by_d).max())
    np.testing.assert_allclose(found.by_closeness, by_d, rtol=2e-4, atol=2e-4 * scale)


def test_a_training_by_measured_time_brings_down_what_the_clock_charges_and_resumes(charged, tmp_path):
    config = dataclasses.replace(
        CONFIG, steps=60, speed="time", time_coefficient=0.05, time_every=5, clock="perf_counter", checkpoint_every=30
    )
    whole = trainer(tmp_path / "whole", config)
    before = charge(whole.model.find().host)
    whole.run()
    term = whole._run.time
    assert charge(whole.model.find().host) < 0.9 * before
    assert term.settings.time_steps == 5
    assert term.timed >= 12
    assert term.refit.model.executor == "sequences"
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", config).run(on_log=stop_at(30))
    saved = files_time(tmp_path / "parts")
    resumed = Trainer.resume(tmp_path / "parts", first_of())
    assert resumed.step == 30
    seen = []
    resumed.run(on_log=lambda record: seen.append(resumed._run.time.state()["timed"]))
    assert saved["calls"] == 31  # one before the first step
    assert resumed._run.time.calls == term.calls
    assert resumed._run.time.timed == term.timed
    assert seen[0] > saved["timed"]
    assert [r["step"] for r in lines(tmp_path / "parts")] == [r["step"] for r in lines(tmp_path / "whole")]


def files_time(out):
    """The measured time in a checkpoint."""
    from sparse_dnm.train import checkpoint as files

    return files.load(out / files.CHECKPOINT).header["time"]


def test_executors_of_single_steps_are_neither_chosen_nor_timed(monkeypatch):
    model = model_of()
    bench = Bench(model.find(), "infer", 1, "perf_counter", 0, Unrolling("lstm", 0, 6))
    assert bench.settle("auto", [1]).name == "columns"
    assert bench.settle("fastest", [1]).name == "columns"
    model.executor = Executor("wavefront", 1)
    with pytest.raises(ValueError, match=r"recurrent networks run .* choose executor auto or columns"):
        MeasuredTime(model, TimeSettings(time_steps=5, **QUICK))


@pytest.mark.parametrize("kind", [MeasuredMemory, MeasuredTime])
def test_a_recurrent_network_needs_time_steps_and_another_has_none(kind):
    def term(model, **sizes):
        return kind(model, TimeSettings(**sizes)) if kind is MeasuredTime else kind(model, **sizes)

    with pytest.raises(ValueError, match="time_steps=0 must be >= 1 for a recurrent network"):
        term(model_of())
    plain = DynamicManifold(ManifoldConfig.preset("toy"))
    for name in ("time_steps", "tbptt", "recompute_every"):
        with pytest.raises(ValueError, match=f"{name}=3.* must be 0 for a network without memory"):
            term(plain, **{name: 3})
    with pytest.raises(ValueError, match="truncate=-1 of sequences must be an integer >= 0"):
        term(model_of(), time_steps=3, tbptt=-1)


def test_a_profile_says_of_which_sequences_it_is(charged, tmp_path):
    from sparse_dnm.io import sealed, write_json

    model, unrolling = model_of(), Unrolling("lstm", 0, 6, 0, 3)
    evaluation = model.find()
    wanted = Settings("columns", "train", 8, 1, "perf_counter", 12, 3, unrolling=unrolling)
    bench = Bench(evaluation, "train", 8, "perf_counter", 0, unrolling)
    profile = calibrate(evaluation.structure, bench.engine(Executor("columns", 1)), bench.x, wanted)
    assert "of sequences: 6 time steps of lstm neurons, states kept every 3 steps" in describe(profile)
    write_json(tmp_path / "profile.json", sealed(profile.as_dict()))
    again = read_profile(tmp_path / "profile.json")
    assert again.settings.unrolling == unrolling
    assert again.model == profile.model
    chosen = TimeSettings(batch=8, time_steps=6, recompute_every=3, **QUICK)
    found = MeasuredTime(model, chosen, again)
    np.testing.assert_allclose(found.refit.model.coefficients, profile.model.coefficients, rtol=1e-6)
    for change in ({"time_steps": 7}, {"recompute_every": 0}):
        with pytest.raises(ValueError, match=r"sequence is 6 time steps of lstm neurons.* in it"):
            MeasuredTime(model, dataclasses.replace(chosen, **change), again)


@pytest.mark.slow
@pytest.mark.parametrize(("neuron", "n_memory"), [("lstm", 0), ("memoryless", 2)])
def test_new_processes_time_sequences(neuron, n_memory):
    model, unrolling = model_of(neuron, n_memory), Unrolling(neuron, n_memory, 6)
    settings = Settings("columns", "train", 2, 1, "perf_counter", repeats=3, unrolling=unrolling)
    found = time_in_subprocess({"it": Network.of(model)}, settings, 1)["it"]
    assert found.shape == (1, 3)
    assert (found > 0).all()
    with pytest.raises(ValueError, match="unrolling=None does not fit a network that is recurrent"):
        Network.of(model).stopwatch(dataclasses.replace(settings, unrolling=None))


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize(
    ("neuron", "n_memory", "batch", "unrolled"),
    [
        *[("lstm", 0, 50, (30,)), ("lstm", 0, 1, (50,)), ("lstm", 0, 1, (50, 10)), ("gru", 0, 3, (40,))],
        *[("gru", 3, 50, (30,)), ("memoryless", 3, 4, (30,)), ("ctrnn", 0, 4, (64,))],
        *[("ctrnn", 0, 20, (30, 0, 6)), ("gru", 0, 130, (100, 0, 20)), ("lstm", 0, 1, (50, 0, 10))],
    ],
)
def test_bytes_are_those_of_the_allocator(monkeypatch, neuron, n_memory, batch, unrolled, mode):
    evaluation = model_of(neuron, n_memory, n=120, cutoff=-3.0).find()
    topology, neurons = evaluation.topology, evaluation.structure.neurons
    unrolling, train, held = Unrolling(neuron, n_memory, *unrolled), mode == "train", []

    class Recorded(Sums):
        """Sums that outlive the pass."""

        def __init__(self, *about):
            super().__init__(*about)
            held.append(self)

    def timed(self, kernel, *arguments, run=SequencePass.timed):
        if not unrolling.every:  # else a part's memory is taken for the next one
            held.append(arguments)
        run(self, kernel, *arguments)

    monkeypatch.setattr(cpu_sequences, "Sums", Recorded)
    monkeypatch.setattr(SequencePass, "timed", timed)

    def step():
        """A step with everything of its own: structure, schedule, buffers."""
        engine, n = CpuEngine(Executor("columns", 1)), topology.n_neurons
        arrays = [a.copy() for a in (topology.indptr, topology.indices, topology.inputs, topology.outputs)]
        own = Neurons(neurons.kind.copy(), neurons.slope.copy(), neurons.first_linear, neurons.weighted)
        structure = engine.given(Topology(*arrays), own)
        recurrence = unrolling.recurrence(structure)
        scales, gates = (np.ones(n, np.float32),) * 2, np.ones((recurrence.n_gates, len(recurrence.cells)), np.float32)
        network = Sequence(structure, recurrence, np.full(topology.n_edges, 0.1, np.float32), scales, gates)
        x = np.ones((batch, unrolling.steps, 4), np.float32)
        state = np.zeros((batch, recurrence.n_state), np.float32)
        out, last, made = engine.forward_sequence(network, x, state, unrolling.way, train)
        held.extend([arrays, structure, network, x, state, out, last, made])
        if train:
            by_out = np.ones_like(out)
            held.extend([by_out, engine.backward_sequence(made, by_out, state, False)])
        return engine, structure

    step()  # compiled
    held.clear()
    gc.collect()
    tracemalloc.start()
    try:
        engine, structure = step()
        gc.collect()
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        allocated = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)
    finally:
        tracemalloc.stop()
    pooled = sum(p.nbytes for p in engine.buffers._idle.values())
    pooled += sum(loan.memory.nbytes for loan in engine.buffers._loans.values())
    counted = engine.sequence_bytes(structure, batch, train, unrolling)
    assert pooled < counted < allocated * 1.06
    assert counted == pytest.approx(allocated, rel=0.03 if not unrolling.every else 0.06, abs=8_000)


@pytest.mark.parametrize(("neuron", "n_memory", "batch", "steps"), KINDS)
@pytest.mark.parametrize("train", [True, False])
def test_bytes_grow_as_their_prices_say(neuron, n_memory, batch, steps, train):
    """Of a network without its first hidden neurons, that has fewer edges and executed neurons."""
    evaluation = model_of(neuron, n_memory, n=120, cutoff=-3.0).find()
    engine, topology, unrolling = evaluation.engine, evaluation.topology, Unrolling(neuron, n_memory, steps)
    about = batch, train, unrolling
    edge, prices = engine.sequence_byte_prices(evaluation.structure, *about)
    first, gone = len(topology.inputs), 30
    kept = np.array([e for e in topology.edges() if not (set(map(int, e)) & set(range(first, first + gone)))])
    part = engine.given(
        Topology.from_edges(kept, topology.n_neurons, topology.inputs, topology.outputs), evaluation.structure.neurons
    )
    fewer = [
        len(getattr(evaluation.host.topology, name)) - len(getattr(part.topology, name))
        for name in ("indices", "t_edges")
    ]
    inputs = len(evaluation.host.schedule.inputs) - len(part.schedule.inputs)
    neurons = len(evaluation.host.schedule.order) - len(part.schedule.order)
    levels = evaluation.topology.depth - part.topology.depth
    assert neurons >= gone
    expected = edge * fewer[0] + prices.edge * fewer[1] + prices.input * inputs
    expected += prices.neuron * neurons + prices.level * levels
    saved = engine.sequence_bytes(evaluation.structure, *about) - engine.sequence_bytes(part, *about)
    assert saved == pytest.approx(expected, rel=0.1)
    assert prices.neuron > 10 * edge


@pytest.mark.parametrize(("neuron", "n_memory", "batch", "steps"), KINDS)
def test_the_gradient_of_the_memory_is_the_oracles(neuron, n_memory, batch, steps):
    model = model_of(neuron, n_memory, n=24, dtype=torch.float64)
    term = MeasuredMemory(model, batch=batch, time_steps=steps)
    evaluation, graph = model.find(), model.config.graph
    edge, prices = evaluation.engine.sequence_byte_prices(
        evaluation.structure, batch, True, Unrolling(neuron, n_memory, steps)
    )
    e, tau = evaluation.host_values, term.tau
    _, places = dense(dataclasses.replace(evaluation, config=graph), e.d)
    near = np.abs(e.d) > e.threshold
    mask = np.zeros((graph.n_neurons,) * 2, bool)
    mask[places] = near
    mask &= evaluation.topology.live[:, None]

    def oracle(values, c=e.c):
        full = np.zeros(mask.shape)
        full[places] = values
        sizes = graph.n_inputs, graph.n_outputs
        soft = edge * sum(naive.sigmoid((abs(v) - c) / tau) for v in values[near])
        return (soft + naive.expected_cost(full, c, tau, mask, *sizes, prices, KERNELS.PICKS)) / term.reference

    found = term.gradient(evaluation)
    by_d = naive.gradient(oracle, e.d.astype(float), 1e-6)
    scale = np.abs(by_d).max()
    np.testing.assert_allclose(found.by_closeness, by_d, rtol=2e-4, atol=2e-4 * scale)
    raw = np.array(model.cutoff.item())
    by_raw = naive.gradient(lambda r: oracle(e.d, naive.sigmoid(float(r))), raw)
    np.testing.assert_allclose(found.by_cutoff, by_raw, rtol=2e-4)
    model(torch.zeros(2, steps, 4, dtype=torch.float64))
    assert term(model).item() == 1.0
    assert term.reference == evaluation.engine.sequence_bytes(
        evaluation.structure, batch, True, Unrolling(neuron, n_memory, steps)
    )


def test_a_training_by_memory_takes_fewer_neurons():
    plain = trainer(config=dataclasses.replace(CONFIG, steps=100, speed="none"))
    costly = trainer(config=dataclasses.replace(CONFIG, steps=100, speed="none", memory_coefficient=1.0))
    start = len(costly.model.find().host.schedule.executed)
    plain.run()
    summary = costly.run()
    after = len(costly.model.find().host.schedule.executed)
    assert after < min(start, len(plain.model.find().host.schedule.executed))
    assert summary["edges"] > 0


# -- budgets -------------------------------------------------------------------------------------------------


def with_lengths(task="classification", per_step=True):
    """Sequences of different lengths."""
    data = first_of(per_step=per_step, task=task)
    lengths = torch.randint(1, 6, (len(data.x_train),), generator=torch.Generator().manual_seed(8))
    return dataclasses.replace(data, lengths_train=lengths, lengths_test=lengths[: len(data.x_test)])


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_saliency_and_validation_know_the_steps_within_sequences(task, per_step):
    data = with_lengths(task, per_step)
    model, lengths = trainer(data=data).model, data.lengths_train.tolist()
    found = saliency(model, data, 64)
    expected, right = np.zeros(model.n_edges), []
    for first in (0, 64):
        gradient, count = 0.0, 0
        for k in range(first, first + 64):
            loss = torch.zeros(())
            outputs, y = model(data.x_train[k : k + 1, : lengths[k]])[0], data.y_train[k]
            pairs = list(zip(outputs, y, strict=False)) if per_step else [(outputs[-1], y)]
            for output, target in pairs:
                if task == "classification":
                    loss = loss - torch.log_softmax(output, 0)[target]
                    right.append(int(output.argmax()) == int(target))
                else:
                    loss = loss + ((output - target) ** 2).mean()
                    right.append((output[0].item(), target[0].item()))
            count += len(pairs)
            gradient = gradient + torch.autograd.grad(loss, model.strengths)[0]
        expected += (model.strengths * gradient / count).abs().detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    validation = Validation(data.x_train, data.y_train, task, lengths=data.lengths_train)
    if task == "classification":
        assert validation.points(model) == pytest.approx(100 * np.mean(right))
    else:
        outputs, targets = np.array(right).T
        assert validation.points(model) == pytest.approx(
            100 * (1 - ((outputs - targets) ** 2).sum() / ((targets - targets.mean()) ** 2).sum()), rel=1e-3
        )


@pytest.mark.parametrize(("neuron", "n_memory"), [("gru", 2), ("lstm", 0)])
def test_a_budget_is_kept_by_sequences(charged, monkeypatch, neuron, n_memory):
    @contextlib.contextmanager
    def confirming(self):
        yield lambda model: Confirmed(np.full(3, charge(model.find().host)), 1.0)

    monkeypatch.setattr(MeasuredTime, "confirming", confirming)
    data = with_lengths()
    before = charge(trainer(neuron=neuron, n_memory=n_memory, data=data).model.find().host)
    config = dataclasses.replace(
        CONFIG, steps=60, speed="time", time_coefficient=0.02, time_every=5, clock="perf_counter", fine_tune=0.3,
        budget_us=0.7e6 * before, max_loss=100.0,
    )  # fmt: skip
    training = trainer(config=config, neuron=neuron, n_memory=n_memory, data=data)
    summary = training.run()
    after = charge(training.model.find().host)
    assert 0.9 * 0.7 * before < after <= 0.7 * before
    assert summary["fresh_seconds"] == pytest.approx(after)
    assert 0 < summary["validation_after"] <= 1
