"""Many steps by one call of compiled code: the bits of single steps, and Adam."""

import dataclasses
import os
import signal
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_dnm.kernels.blocks import Block

from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, Trainer
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.candidates import digest
from sparse_dnm.engine.cpu_steps import CpuSteps
from sparse_dnm.train import trainer as module
from sparse_dnm.train.adam import factors_of
from sparse_dnm.train.fused import FusedSteps
from sparse_dnm.train.signals import Interrupted

KERNELS = backend.kernels(torch.device("cpu"))
STEPS = 60


def samples(task="classification", n_inputs=12, n_outputs=3, n=90, seed=0):
    """Random data that can be learned; 12 inputs are images of 3 lines."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, n_inputs)).astype(np.float32)
    scores = x @ rng.standard_normal((n_inputs, n_outputs)).astype(np.float32)
    y = torch.from_numpy(scores.argmax(1) if task == "classification" else np.tanh(scores))
    classes = tuple("abc") if task == "classification" else ()
    return Dataset("random", task, torch.from_numpy(x), y, torch.from_numpy(x[:20]), y[:20], 4.0, classes)


def train(manifold, config, data, monkeypatch, fused):
    """A trained model, its optimiser, lines of metrics, and how many steps were made many at a time."""
    made = []
    with monkeypatch.context() as patch:
        if fused:
            run = FusedSteps.run

            def counted(self, *arguments):
                found = run(self, *arguments)
                made.append(found.steps)
                return found

            patch.setattr(FusedSteps, "run", counted)
        else:
            patch.setattr(FusedSteps, "ready", lambda self: False)
        model = DynamicManifold(
            manifold, torch.Generator().manual_seed(1), executor=config.executor, threads=config.threads
        )
        lines = []
        trainer = Trainer(model, data, config)
        trainer.run(lines.append)
    for line in lines:
        line.pop("step_seconds")
    return model, trainer, lines, sum(made)


def assert_same_bits(one, other):
    """Models, optimisers and lines agree."""
    (model, trainer, lines, _), (twin, trainer_of_twin, lines_of_twin, _) = one, other
    assert lines == lines_of_twin
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name
    states = (t._optimizer.state_dict()["state"] for t in (trainer, trainer_of_twin))
    for p, q in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(p[name], q[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


MANIFOLD = ManifoldConfig(n_neurons=40, n_inputs=12, n_outputs=3, period=4.0, sigma=(8.0, 1.0), cutoff=-1.0)
CONFIG = TrainConfig(steps=STEPS, batch_size=20, lr=0.001, speed="none", log_every=20, threads=1, executor="columns")
CASES = {
    "closeness": ({}, {}),
    "squared outputs, a loss that pulls hard": ({"output": "square"}, {"objective": 100.0, "flow": 0.1}),
    "proxy": ({"edges": "free"}, {"speed": "proxy", "proxy_coefficient": 2.0, "speed_power": 2}),
    "ring and proxy": ({"edges": "weighted"}, {"speed": "proxy", "kappa": 1.0, "grow_every": 3}),
    "a number of edges": (
        {"edges": "free"},
        {"speed": "proxy", "target_edges": 60, "kappa": 1.0, "omega_decay": 0.01, "shift": 1, "input_dropout": 0.2},
    ),
    "a number of edges of rows": ({}, {"speed": "proxy", "target_edges": 60}),
    "free closeness": ({"edges": "free-closeness", "omega": (0.0, 1.0), "cutoff": -2.0}, {}),
    "wavefront on two threads": ({"edges": "weighted"}, {"executor": "wavefront", "threads": 2}),
    "tiles on two threads": ({"edges": "free", "activation": "silu"}, {"batch_size": 40, "threads": 2}),
    "few slots": ({"edges": "free-closeness", "omega": (0.0, 1.0), "cutoff": -2.0, "capacity": 240}, {}),
    "search for edges": ({"edges": "free"}, {"scan_every": 10, "scan_edges": 3, "kappa": 0.5}),
}


@pytest.mark.parametrize("name", CASES)
def test_many_steps_at_a_time_have_the_bits_of_single_steps(name, monkeypatch):
    manifold, config = (dataclasses.replace(a, **b) for a, b in zip((MANIFOLD, CONFIG), CASES[name], strict=True))
    data = samples()
    one, other = (train(manifold, config, data, monkeypatch, fused) for fused in (True, False))
    assert one[3] >= 8
    assert_same_bits(one, other)


@pytest.mark.parametrize("name", ["closeness", "ring and proxy", "free closeness"])
def test_rows_are_searched_many_steps_at_a_time(name, monkeypatch):
    manifold, config = (dataclasses.replace(a, **b) for a, b in zip((MANIFOLD, CONFIG), CASES[name], strict=True))
    taken, searched = [], DynamicManifold.take_candidates

    def counted(self, candidates, births):
        taken.append(candidates)
        searched(self, candidates, births)

    monkeypatch.setattr(DynamicManifold, "take_candidates", counted)
    one = train(manifold, config, samples(), monkeypatch, fused=True)
    assert len(taken) >= 3
    assert one[3] >= STEPS - 8  # a search ends no call
    assert one[0].candidates.same(one[0]._candidates().host)
    digest_now = digest(*(one[0].state_dict()[f"candidate_{part}"] for part in ("indptr", "indices", "indices")))
    assert manifold.edges != "closeness" or torch.equal(digest_now, one[0].structure_digest)


def test_a_regression_has_the_bits_of_single_steps(monkeypatch):
    data = samples("regression")
    one, other = (train(MANIFOLD, CONFIG, data, monkeypatch, fused) for fused in (True, False))
    assert one[3] > STEPS / 3
    assert_same_bits(one, other)


def test_data_that_are_not_contiguous_may_change_during_a_run(monkeypatch):
    found = []
    for fused in (True, False):
        data = samples()
        data = dataclasses.replace(data, x_train=data.x_train.t().contiguous().t())
        model = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(1), executor="columns", threads=1)
        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr(FusedSteps, "ready", lambda self: False)
            Trainer(model, data, CONFIG).run(lambda line, x=data.x_train: x.mul_(1.5) if line["step"] == 20 else None)
        found.append([p.detach().clone() for p in model.parameters()])
    for p, q in zip(*found, strict=True):
        assert torch.equal(p, q)


def test_a_loss_that_is_not_finite_says_so(monkeypatch):
    config = dataclasses.replace(CONFIG, lr=1e30)
    texts = []
    for fused in (True, False):
        with pytest.raises(module.TrainingError, match="training diverged") as error:
            train(MANIFOLD, config, samples(), monkeypatch, fused)
        texts.append(str(error.value))
    assert texts[0] == texts[1]


def test_a_signal_between_two_calls_loses_no_batch(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, log_every=10**6, checkpoint_every=10**6, input_dropout=0.2, steps=400)
    whole = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(1), executor="columns", threads=1)
    Trainer(whole, samples(), config).run()
    run, calls = FusedSteps.run, []

    def interrupted(self, *arguments):
        calls.append(run(self, *arguments))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return calls[-1]

    model = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(1), executor="columns", threads=1)
    assert threading.current_thread() is threading.main_thread()
    with monkeypatch.context() as patch:
        patch.setattr(FusedSteps, "run", interrupted)
        with pytest.raises(Interrupted):
            Trainer(model, samples(), config, tmp_path / "run").run()
    resumed = Trainer.resume(tmp_path / "run", samples())
    assert 0 < resumed.step < 400
    resumed.run()
    for p, q in zip(whole.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_ctrl_c_without_a_run_directory_counts_every_step_that_was_made(monkeypatch):
    config = dataclasses.replace(CONFIG, log_every=10**6, checkpoint_every=10**6, steps=200)
    whole, model = (DynamicManifold(MANIFOLD, torch.Generator().manual_seed(1), threads=1) for _ in range(2))
    Trainer(whole, samples(), config).run()
    run, calls = CpuSteps.run, []

    def interrupted(self, *arguments):
        found = run(self, *arguments)
        if found[0] > 4 and not calls:
            calls.append(found)
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(CpuSteps, "run", interrupted)
    trainer = Trainer(model, samples(), config)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert 0 < trainer.step < 200
    trainer.run()
    for p, q in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_hooks_and_frozen_parameters_make_single_steps(monkeypatch):
    model = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(1))
    model.bias.requires_grad_(False)
    monkeypatch.setattr(FusedSteps, "run", lambda *arguments: pytest.fail("bias would be trained"))
    trainer = Trainer(model, samples(), dataclasses.replace(CONFIG, steps=5))
    before = model.bias.clone()
    trainer.run()
    assert trainer.step == 5
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize("where", ["first line", "snapshot"])
def test_a_parameter_frozen_by_a_callback_stays_from_then_on(where):
    model = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(1), executor="columns", threads=1)
    kept = []

    def freeze(record):
        if not kept and (where == "first line" or record.step == 5):
            model.bias.requires_grad_(False)
            kept.append(model.bias.detach().clone())

    trainer = Trainer(model, samples(), dataclasses.replace(CONFIG, snapshot_every=5))
    trainer.run(freeze) if where == "first line" else trainer.run(on_snapshot=freeze)
    assert torch.equal(model.bias, kept[0])


def test_capacity_grows_while_a_parameter_is_frozen():
    manifold, config = dataclasses.replace(MANIFOLD, edges="free", capacity=300), dataclasses.replace(CONFIG, steps=40)
    trained = []
    for grow in (False, True):
        model = DynamicManifold(manifold, torch.Generator().manual_seed(1), executor="columns", threads=1)
        model.bias.requires_grad_(False)

        def look(line, model=model, grow=grow):
            if grow and line["step"] == 20:
                model.grow_capacity(model.config.possible_edges)

        Trainer(model, samples(), config).run(look)
        trained.append(model)
    assert trained[1].capacity > trained[0].capacity
    assert torch.equal(*(m.edge_weight[torch.from_numpy(m.candidates.slots)] for m in trained))
    assert torch.equal(*(m.alpha for m in trained))


def test_capacity_grows_between_searches_of_rows(monkeypatch):
    manifold = dataclasses.replace(MANIFOLD, **CASES["free closeness"][0], capacity=300)
    trained = []
    for fused in (True, False):
        model = DynamicManifold(manifold, torch.Generator().manual_seed(1), executor="columns", threads=1)

        def look(line, model=model):
            model.grow_capacity(model.capacity + 10)

        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr(FusedSteps, "ready", lambda self: False)
            Trainer(model, samples(), dataclasses.replace(CONFIG, log_every=6)).run(look)
        trained.append(model)
    assert trained[0].capacity == 410
    for name, tensor in trained[0].state_dict().items():
        assert torch.equal(tensor, trained[1].state_dict()[name]), name


def test_a_replaced_parameter_is_an_error():
    model = DynamicManifold(MANIFOLD, torch.Generator().manual_seed(1), executor="columns", threads=1)

    def replace(line):
        model.alpha = torch.nn.Parameter(model.alpha.detach() * 0.99)

    with pytest.raises(ValueError, match="does not train parameter alpha, which was added or replaced"):
        Trainer(model, samples(), CONFIG).run(replace)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 70),
    seed=st.integers(0, 10**6),
    t=st.integers(1, 2000),
    lr=st.floats(1e-5, 1.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_adam_is_that_of_torch(n, seed, t, lr, dtype):
    generator = torch.Generator().manual_seed(seed)
    numbers, gradient, first, second = (torch.randn(n, generator=generator, dtype=dtype) for _ in range(4))
    second = second.square()
    twin = torch.nn.Parameter(numbers.clone())
    twin.grad = gradient.clone()
    optimizer = torch.optim.Adam([twin], lr=lr, foreach=False)
    optimizer.state[twin] = {
        "step": torch.tensor(float(t - 1)),
        "exp_avg": first.clone(),
        "exp_avg_sq": second.clone(),
    }
    optimizer.step()
    size, root = factors_of(t, lr, 0.9, 0.999)
    KERNELS.adam(*(a.numpy() for a in (numbers, gradient, first, second)), size, 0.9, 0.999, root, 1e-8)
    state = optimizer.state[twin]
    torch.testing.assert_close(first, state["exp_avg"])
    torch.testing.assert_close(second, state["exp_avg_sq"])
    torch.testing.assert_close(numbers, twin.detach())


def test_a_block_takes_what_a_kernel_could_read_only():
    with pytest.raises(TypeError, match=r"shape \(3, 2\) must be C-contiguous"):
        Block(a=np.zeros((2, 3)).T)
    assert Block(a=np.zeros(3), b=1).kind == Block(a=np.ones(5), b=2).kind != Block(a=np.zeros(3), b=1.0).kind


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 40), seed=st.integers(0, 10**6))
def test_the_digest_of_a_structure_is_that_of_torch_s_arithmetic(n, seed):
    generator = torch.Generator().manual_seed(seed)
    indptr, slots = (torch.randint(0, 2**62, (n + k,), generator=generator) for k in (1, 0))
    indices = torch.randint(-1, 2**31 - 1, (n,), generator=generator, dtype=torch.int32)
    expected = sum(
        ((array.long() + 1) * (torch.arange(1, len(array) + 1) * 2654435761 + k)).sum()
        for k, array in enumerate((indptr, indices, slots))
    )
    assert digest(indptr, indices, slots) == expected


@pytest.mark.parametrize("stop", [10, 20, 40])
def test_a_run_stopped_where_edges_are_counted_goes_on_with_the_same_bits(stop, tmp_path):
    manifold, config = (dataclasses.replace(a, **b) for a, b in zip((MANIFOLD, CONFIG), CASES["proxy"], strict=True))
    config = dataclasses.replace(config, target_edges=60, kappa=1.0, lr=0.02, log_every=10, checkpoint_every=10**6)
    trained = []
    for number in (None, stop):
        model = DynamicManifold(manifold, torch.Generator().manual_seed(1), executor="columns", threads=1)
        run = Trainer(model, samples(), config, tmp_path / str(number))

        def look(line, number=number):
            if line["step"] == number:
                os.kill(os.getpid(), signal.SIGTERM)

        if number is None:
            run.run(look)
        else:
            with pytest.raises(Interrupted):
                run.run(look)
            run = Trainer.resume(tmp_path / str(number), samples())
            assert run.step == stop
            run.run()
        trained.append(run.model.state_dict())
    for name, tensor in trained[0].items():
        assert torch.equal(tensor, trained[1][name]), name


def test_a_network_that_is_cut_in_two_is_connected_again_whoever_looks_first(tmp_path):
    manifold = ManifoldConfig(
        n_neurons=68, n_inputs=6, n_outputs=2, period=3.0, activation="sigmoid", sigma=(8.0, 0.0), mu=(0.0, 2.0),
        weight=(1.0, 0.0), bias=(0.0, 0.5), skin=0.02, seed=25,
    )  # fmt: skip
    config = TrainConfig(
        steps=90, batch_size=50, lr=0.2, fine_tune=0.0, objective=100.0, flow=0.1, speed="none", log_every=1000,
        snapshot_every=16, executor="columns", threads=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6)).astype("f")
    y = torch.from_numpy((x @ rng.standard_normal((6, 2)).astype("f")).argmax(1))
    data = Dataset(
        "random", "classification", torch.from_numpy(x), y, torch.from_numpy(x[:20]), y[:20], 3.0, ("a", "b")
    )
    trained = []
    for how in ("nobody", "checkpoint", "signal"):
        changed = dataclasses.replace(config, checkpoint_every=16 if how == "checkpoint" else 10**6)
        model = DynamicManifold(manifold, torch.Generator().manual_seed(1), executor="columns", threads=1)
        run = Trainer(model, data, changed, tmp_path / how)

        def look(snapshot, how=how):
            if how == "signal" and snapshot.step == 16:
                os.kill(os.getpid(), signal.SIGTERM)

        if how == "signal":
            with pytest.raises(Interrupted):
                run.run(on_snapshot=look)
            notes = [*run.notes]
            run = Trainer.resume(tmp_path / how, data)
            assert run.step == 16
        run.run(on_snapshot=look)
        assert any("step 16 had cut the network in two" in line for line in (notes if how == "signal" else run.notes))
        trained.append(run.model.state_dict())
    for other in trained[1:]:
        for name, tensor in trained[0].items():
            assert torch.equal(tensor, other[name]), name
