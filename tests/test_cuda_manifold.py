"""Manifolds on CUDA against the oracle and the CPU's kernels: structure, values, every gradient, steps of training.

On a GPU or in numba's simulator (see cuda_device.py).
"""

import copy
import dataclasses
import io

import naive
import numpy as np
import pytest
import torch
from cuda_device import DEVICE, REAL, kernels_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import MANY, candidate_pairs, dense_omega, free_slots, manifolds, raw_scalars, rng_input

from sparse_dnm import DynamicManifold, ManifoldConfig
from sparse_dnm.config import CUDA_CLOCK, TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.engine import cuda as cuda_engine
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cuda_structure import CudaSearch, CudaStructure
from sparse_dnm.loss import time as measured
from sparse_dnm.loss.memory import MeasuredMemory
from sparse_dnm.loss.proxy import SparsityProxy, flow_loss
from sparse_dnm.report.history import History
from sparse_dnm.timing import calibration
from sparse_dnm.timing.probes import Settings
from sparse_dnm.train.trainer import Trainer

pytestmark = [pytest.mark.cuda, pytest.mark.slow]


def moved(model, name):
    """A copy of ``model`` where the kernels of ``name`` are its own."""
    with kernels_of(name):
        return copy.deepcopy(model).to(DEVICE if name == "cuda" else "cpu")


def small(edges="closeness", dtype=torch.float64, seed=0, **changes):
    """A manifold of 16 neurons with a hundred candidates or so."""
    values = {"n_neurons": 16, "n_inputs": 5, "n_outputs": 3, "period": 3.0, "cutoff": -2.5, "edges": edges, "seed": 3}
    config = ManifoldConfig(**{**values, "alpha": (3.0, 1.0), "sigma": (6.0, 1.0), **MANY[edges], **changes})
    return DynamicManifold(config, torch.Generator().manual_seed(seed), dtype)


def results(model, x, kappa=0.0):
    """Structure, and values and gradients of a loss with every term."""
    model.kappa = kappa
    x = x.detach().to(model.alpha.device).requires_grad_()
    out = model(x)
    factors = torch.arange(1.0, out.numel() + 1).reshape(out.shape).to(out)
    loss = (out * factors).sum() + 0.3 * flow_loss(model) + 5.0 * SparsityProxy(0.3, 2)(model)
    loss = loss + 0.7 * model.soft_edges(0.2) + model.strengths.square().sum() + model.closeness.sum()
    gradients = torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)
    t = model.topology
    c = model.candidates
    slots = [] if c.slots is None else [c.slots]
    structure = [t.indptr, t.indices, t.levels, t.live, c.indptr, c.indices, *slots]
    values = {"out": out, "strengths": model.strengths, "closeness": model.closeness, "flow": model.flow()}
    names = ["loss", "x", *dict(model.named_parameters())]
    values |= {name: g for name, g in zip(names, [loss, *gradients], strict=True) if g is not None}
    return structure, {name: value.detach().cpu() for name, value in values.items()}


def assert_as(found, expected):
    """Two results agree: structure to the bit, numbers to rounding."""
    for a, b in zip(expected[0], found[0], strict=True):
        np.testing.assert_array_equal(np.asarray(b), np.asarray(a))
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        scale = 1e-9 * max([1.0, *value.abs().reshape(-1).tolist()])
        close = torch.allclose(found[1][name], value, rtol=1e-8, atol=scale)
        assert close, f"{name}: {found[1][name]} instead of {value}"


@given(manifolds(), st.sampled_from([1, 34]), st.sampled_from([0.0, 0.5]))
@settings(max_examples=10)
def test_structure_values_and_gradients_are_those_of_the_cpu(model, batch, kappa):
    x, there = rng_input(model, batch), moved(model, "cuda")
    expected = results(model, x, kappa)
    with kernels_of("cuda"):
        assert_as(results(there, x, kappa), expected)


@given(manifolds())
@settings(max_examples=5)
def test_strengths_and_outputs_match_the_oracle(model):
    x, config = rng_input(model, 3), model.config
    there = moved(model, "cuda")
    with kernels_of("cuda"), torch.no_grad():
        out = there(x.to(DEVICE))
        strengths = there.topology.to_scipy(there.strengths).toarray()
    there = moved(there, "cpu")
    head = config.n_neurons, config.n_inputs, config.n_outputs
    d = naive.closeness_of(config.edges, *head, config.period, raw_scalars(there), dense_omega(there))
    D = naive.strength_of(config.edges, d, there.cutoff.item(), dense_omega(there))
    np.testing.assert_allclose(strengths, D, rtol=1e-9, atol=1e-9)
    numbers = (v.detach().numpy() for v in (x, there.weight, there.bias))
    x, weight, bias = numbers
    expected = naive.forward_manifold(x, D, weight, bias, *head[1:], config.activation, config.output)
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("edges", ["weighted", "free-closeness"])  # with all factors, between them
def test_training_is_that_of_the_cpu(edges):
    """Edges come and go, candidates are searched again, moments follow; and no array of it leaves the device."""
    start, x, ran = small(edges), torch.randn(7, 5, dtype=torch.float64), {}
    for name in ("cpu", "cuda"):
        model = moved(start, name)
        optimizer, structures, scans = torch.optim.Adam(model.parameters(), lr=0.15), [], 0
        with kernels_of(name):
            for step in range(5):
                model.kappa = 0.3 if step < 3 else 0.0
                before = model._held_candidates
                optimizer.zero_grad()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(CudaStructure, "host", None)
                    loss = model(x.to(model.alpha.device)).square().mean() + 0.01 * SparsityProxy()(model)
                    (loss + 0.1 * flow_loss(model)).backward()
                    optimizer.step()
                scans += step > 0 and model._held_candidates is not before
                structures.append(model.topology.edges())
        ran[name] = structures, scans, {n: p.detach().cpu() for n, p in model.named_parameters()}
    (expected, scans, parameters), (found, found_scans, found_parameters) = ran["cpu"], ran["cuda"]
    assert scans == found_scans > 0
    assert any(len(a) != len(expected[0]) for a in expected)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(b, a)
    for name, value in parameters.items():
        torch.testing.assert_close(found_parameters[name], value, rtol=1e-6, atol=1e-9)


def test_float32_stays_float32():
    model = small("weighted", torch.float32)
    there = moved(model, "cuda")
    x = torch.randn(3, 5)
    expected = model(x)
    expected.square().sum().backward()
    with kernels_of("cuda"):
        found = there(x.to(DEVICE))
        found.square().sum().backward()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    for name, p in model.named_parameters():
        found = there.get_parameter(name).grad
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.cpu(), p.grad, rtol=1e-3, atol=1e-4 * max(1.0, float(p.grad.abs().max())))


def assert_same_candidates(a, b):
    for name in ("indptr", "indices", "slots"):
        np.testing.assert_array_equal(getattr(a.candidates, name), getattr(b.candidates, name))


@pytest.mark.parametrize("edges", ["closeness", "free"])
def test_what_was_found_on_cuda_goes_on_elsewhere(edges):
    """By to(), by a state_dict, and as arrays: same candidates, same omega."""
    x, there = torch.randn(4, 5, dtype=torch.float64), moved(small(edges), "cuda")
    with kernels_of("cuda"), torch.no_grad():
        expected = there(x.to(DEVICE)).cpu()
        there.alpha.add_(0.3)
        changed = there(x.to(DEVICE)).cpu()
        assert there.n_edges == there.topology.n_edges == len(there.evaluation.values.strengths)
        assert there.connected
        state = there.state_dict()
    fresh = small(edges, seed=9)
    fresh.load_state_dict(state)
    here = moved(there, "cpu")
    with kernels_of("cpu"), torch.no_grad():
        for model in (fresh, here):
            torch.testing.assert_close(model(x), changed, rtol=1e-9, atol=1e-9)
            assert_same_candidates(model, there)
    back = moved(small(edges), "cuda")
    with kernels_of("cuda"), torch.no_grad():
        back.load_state_dict(fresh.state_dict())
        torch.testing.assert_close(back(x.to(DEVICE)).cpu(), changed, rtol=1e-9, atol=1e-9)
    assert not torch.equal(expected, changed)


def test_copies_and_pickles_go_on_elsewhere():
    """What belongs to a device stays behind; candidates come along."""
    there = moved(small("free"), "cuda")
    x = torch.ones(2, 5, dtype=torch.float64)
    with kernels_of("cuda"), torch.no_grad():
        there.alpha.add_(0.2)
        expected = there(x.to(DEVICE)).cpu()
        file = io.BytesIO()
        torch.save(there, file)
        assert torch.equal(copy.deepcopy(there)(x.to(DEVICE)).cpu(), expected)
    file.seek(0)
    here = torch.load(file, map_location="cpu", weights_only=False)
    with kernels_of("cpu"), torch.no_grad():
        torch.testing.assert_close(here(x), expected, rtol=1e-9, atol=1e-9)
        assert_same_candidates(here, there)


def test_edges_can_be_added_on_cuda():
    model = small("free")
    readers, sources = candidate_pairs(model)
    taken = set(zip((readers - 5).tolist(), sources.tolist(), strict=True))
    row, source = next((r, j) for r in range(11) for j in range(min(r + 5, 13)) if (r, j) not in taken)
    there = moved(model, "cuda")
    with kernels_of("cuda"):
        optimizer = torch.optim.Adam(there.parameters())
        there.follow(optimizer)
        there(torch.zeros(1, 5, dtype=torch.float64).to(DEVICE)).sum().backward()
        optimizer.step()
        moments = optimizer.state[there.edge_weight]["exp_avg"]
        moments.fill_(1.0)
        there.add_candidates([row], [source], [5.0])
        there(torch.zeros(1, 5, dtype=torch.float64).to(DEVICE))
        readers, sources = candidate_pairs(there)
        (at,) = np.flatnonzero((readers == row + 5) & (sources == source))
        slot = there.candidates.slots[at]
        assert there.edge_weight[slot] == 5.0
        expected = free_slots(there)
        expected[slot] = True
        assert torch.equal(moments.cpu() == 0.0, expected)
        assert abs(there.closeness[at]) > 0


def test_errors_name_the_way_out(monkeypatch):
    there = moved(small("free"), "cuda")
    x = torch.zeros(1, 5, dtype=torch.float64).to(DEVICE)
    with kernels_of("cuda"):
        loss = there(x).square().sum() + there.closeness.sum()
        with torch.no_grad():
            there.alpha.add_(1.0)
        there(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        loss = there(x).square().sum() + there.closeness.sum()
        there.add_candidates([], [], [])  # writes 0 to the free slots
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        there.alpha.data[2] = float("nan")
        with pytest.raises(ValueError, match="NaN or infinite; go back to a checkpoint"):
            there(x)
        there.bias = torch.nn.Parameter(there.bias.detach().to("meta"))
        with pytest.raises(ValueError, match=r"parameter bias is on 'meta' and alpha on .*move all to one device"):
            there(x)

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    there = moved(small("free"), "cuda")
    monkeypatch.setattr(CudaSearch, "evaluate", full)
    with kernels_of("cuda"), pytest.raises(MemoryError, match=r"search for edges among .* does not fit .*narrow sigma"):
        there(x)
    if REAL:  # in the simulator there is one device only
        with pytest.raises(ValueError, match="x is on device 'cpu', not on 'cuda"):
            moved(small(), "cuda")(torch.zeros(1, 5, dtype=torch.float64))
    assert backend.kernels(torch.device("cuda"))


def test_a_training_is_that_of_the_cpu(tmp_path):
    """The Trainer, from start to summary: growth, an edge scan, the cut to a number of edges, snapshots; resumed."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(24, 5, generator=generator)
    y = torch.randint(0, 3, (24,), generator=generator)
    data = Dataset("made", "classification", x, y, x[:6], y[:6], 5.0, ("a", "b", "c"))
    config = TrainConfig(
        steps=4, batch_size=8, lr=0.05, speed="proxy", kappa=0.5, target_edges=20, proxy_gradient="straight-through",
        log_every=1, checkpoint_every=2, device=DEVICE.type, scan_every=1, scan_edges=2,
    )  # fmt: skip
    lines = {}
    for name in ("cpu", "cuda"):
        with kernels_of(name):
            given = dataclasses.replace(config, device=DEVICE.type if name == "cuda" else "cpu")
            lines[name] = []
            Trainer(small("free", torch.float32), data, given, tmp_path / name).run(lines[name].append)
    for expected, found in zip(lines["cpu"], lines["cuda"], strict=True):
        for name in ("edges", "depth", "live"):
            assert found[name] == expected[name]
        for name in ("loss", "objective", "flow", "speed"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6)
    with kernels_of("cuda"):
        summary = Trainer.resume(tmp_path / "cuda", data, steps=5).run()
    assert summary["steps"] == 5
    assert summary["device"] == str(torch.device("cuda", 0) if REAL else "cpu")
    assert History.read(tmp_path / "cuda", 10).steps[0] == 0


def test_weights_and_early_stopping_are_those_of_the_cpu(tmp_path):
    generator = torch.Generator().manual_seed(5)
    x, y = torch.rand(24, 5, generator=generator), torch.arange(24) % 3
    weights = torch.rand(24, generator=generator) + 0.5
    data = Dataset("made", "classification", x, y, x[:6], y[:6], 5.0, ("a", "b", "c"), weights=weights)
    config = TrainConfig(
        steps=6, batch_size=0, class_weight="balanced", lr=0.05, speed="none", log_every=2, checkpoint_every=4,
        early_stopping=True, validation=0.3, validate_every=2, scan_every=3, scan_edges=2,
    )  # fmt: skip
    found = {}
    for name in ("cpu", "cuda"):
        with kernels_of(name):
            given = dataclasses.replace(config, device=DEVICE.type if name == "cuda" else "cpu")
            lines = []
            summary = Trainer(small("free", torch.float32), data, given, tmp_path / name).run(lines.append)
            found[name] = summary, lines
    (expected, lines), (summary, others) = found["cpu"], found["cuda"]
    assert summary["best_step"] == expected["best_step"]
    for one, other in zip(lines[1:], others[1:], strict=True):
        for figure in ("loss", "validation_loss", "edges"):
            assert other[figure] == pytest.approx(one[figure], rel=1e-3)
    with kernels_of("cuda"):
        resumed = Trainer.resume(tmp_path / "cuda", data, steps=8)
        assert resumed.model_step == summary["best_step"]
        assert resumed.run()["steps"] == 8


def test_the_time_of_a_step_is_measured_priced_and_differentiated(monkeypatch):
    """Calibration, value and gradient of the term; in the simulator its time is that of the simulator."""
    monkeypatch.setattr(cuda_engine, "WARM", 0)
    monkeypatch.setattr(cuda_engine, "TOGETHER", 1)
    monkeypatch.setattr(measured, "MAX_START_MEASUREMENTS", 1)
    monkeypatch.setattr(measured.MeasuredTime, "measure", lambda self, evaluation: self.sample(evaluation, 1).seconds)
    config = ManifoldConfig(9, 3, 2, 3.0, cutoff=-2.5, alpha=(3.0, 1.0), sigma=(9.0, 1.0))
    there = moved(DynamicManifold(config, torch.Generator().manual_seed(1), executor="columns"), "cuda")
    x = torch.randn(4, 3).to(DEVICE)
    with kernels_of("cuda"):
        monkeypatch.setattr(cuda_engine, "WARPS", 1)
        structure = there.find().structure
        how = Settings("columns", "infer", 4, there.executor.threads, CUDA_CLOCK, 10, 3, device="cuda", limit=0.0)
        profile = calibration.calibrate(structure, there.engine, x, how)
        assert profile.model.executor == "cuda-columns"
        assert "device cuda, clock cuda_event" in calibration.describe(profile)[0]
        settings_ = measured.TimeSettings("infer", 4, every=2)
        term = measured.MeasuredTime(there, settings_, profile)
        seconds = []
        for _ in range(3):
            there.zero_grad()
            there(x)
            value = term(there)
            value.backward()
            seconds.append(term.seconds)
            assert value.item() == pytest.approx(term.seconds / term.start)
        assert seconds[0] == seconds[1]  # every second call is a timed step
        assert term.timed == 2
        evaluation = there.evaluation
        there(x)
        again = there.evaluation  # the same structure: nothing of it is brought over
        assert again.structure is evaluation.structure
        assert again is not evaluation
        prices = Prices(*(price / term.start for price in term._prices))
        expected = evaluation.expected_cost(settings_.tau, prices)
        by_closeness = evaluation.engine.array(torch.from_numpy(expected.by_closeness).to(DEVICE))
        found = evaluation.engine.edges_backward(evaluation.structure, evaluation.values, None, by_closeness, 0.0)
        assert there.cutoff.grad.item() == pytest.approx(float(found.cutoff) + expected.by_cutoff, rel=1e-4)
        by_mu = found.scalars[6].cpu()
        np.testing.assert_allclose(there.mu.grad.cpu(), by_mu, rtol=1e-3, atol=1e-6 * float(by_mu.abs().max()))
        resumed = measured.MeasuredTime(there, settings_, state=term.state())
        assert resumed.seconds == term.seconds
        assert list(resumed.refit.model.coefficients) == list(term.refit.model.coefficients)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_bytes_are_those_of_the_tensors_of_a_step(mode, monkeypatch):
    there, seen = moved(small("free", torch.float32), "cuda"), {}
    launch = backend.launch

    def counted(kernel, blocks, threads, *arguments):
        for tensor in arguments:
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                seen[tensor.data_ptr()] = tensor  # kept, so that nobody else comes to lie there
        launch(kernel, blocks, threads, *arguments)

    with kernels_of("cuda"):
        there.executor = Executor("columns")
        term = MeasuredMemory(there, mode, batch=40)
        found, s = there.evaluation, there.evaluation.structure
        x = torch.randn(40, 5).to(DEVICE)
        monkeypatch.setattr(backend, "launch", counted)
        found.engine.stopwatch(s, found.values.strengths, x, mode == "train").run()
        total = sum(tensor.nbytes for tensor in seen.values())
        held = s.column_of, s.t_indptr, s.t_edges, s.readers  # for the backward pass
        total += sum(tensor.nbytes for tensor in held) if mode == "infer" else 0
        assert term.bytes(there.evaluation) == total
        assert term(there).item() == 1.0


@pytest.mark.parametrize("edges", ["closeness", "weighted"])
def test_the_ring_gets_the_gradient_that_it_gets_on_the_cpu(edges):
    """Candidates below the cutoff, of which there are some."""
    model, x = small(edges, skin=0.2), torch.randn(3, 5, dtype=torch.float64)
    there = moved(model, "cuda")
    expected, without = results(model, x, 0.7), results(copy.deepcopy(model), x, 0.0)
    assert not torch.equal(expected[1]["mu"], without[1]["mu"])
    with kernels_of("cuda"):
        assert_as(results(there, x, 0.7), expected)
