"""Weights of samples and of classes in the loss, and trainings on all samples at once."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_sample_weight
from sparse_dnm.kernels import cpu_objective
from test_fused import CASES, CONFIG, MANIFOLD, assert_same_bits, samples, train

from sparse_dnm import DynamicManifold, TrainConfig, Trainer
from sparse_dnm.data.source import describe
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.adam import Adam
from sparse_dnm.train.costs import Costs
from sparse_dnm.train.step import AutogradStep, KernelStep
from sparse_dnm.train.trim import saliency
from sparse_dnm.train.validation import Validation, hold_out
from sparse_dnm.train.weighting import weigh

WHOLE = dataclasses.replace(CONFIG, batch_size=0, steps=40, lr=0.003)  # all samples at once


def some_weights(n, seed=0, whole=False):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 3, n).astype(np.float64) if whole else rng.gamma(1.0, 1.0, n))


def as_double(data):
    """The same samples in float64."""
    y = data.y_train
    double = {name: getattr(data, name).double() for name in ("x_train", "x_test")}
    if y.is_floating_point():
        double |= {"y_train": y.double(), "y_test": data.y_test.double()}
    return dataclasses.replace(data, **double)


def rows_of(data, rows):
    """Those training samples, perhaps several times, without weights."""
    return dataclasses.replace(data, x_train=data.x_train[rows], y_train=data.y_train[rows], weights=None)


def model_of(manifold=MANIFOLD, dtype=torch.float32, threads=1):
    return DynamicManifold(manifold, torch.Generator().manual_seed(1), dtype=dtype, executor="columns", threads=threads)


def weighted_by_torch(outputs, y, weights):
    """The oracle: torch's losses of the samples, by weights over the number of samples."""
    if y.is_floating_point():
        return (((outputs - y) ** 2).mean(1) * weights).sum() / len(y)
    return (-torch.log_softmax(outputs, 1)[torch.arange(len(y)), y] * weights).sum() / len(y)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_objective_and_its_gradient_are_those_of_torch_s_weighted_loss(task, weighted):
    rng = np.random.default_rng(3)
    outputs = torch.from_numpy(rng.standard_normal((20, 3))).requires_grad_()
    y = torch.from_numpy(rng.integers(0, 3, 20) if task == "classification" else rng.standard_normal((20, 3)))
    weights = some_weights(20) if weighted else torch.ones(20, dtype=torch.float64)
    loss = weighted_by_torch(outputs, y, weights)
    (7.0 * loss).backward()
    gradient = np.empty((20, 3))
    kernel = cpu_objective.cross_entropy if task == "classification" else cpu_objective.squared_error
    given = weights.numpy() if weighted else np.empty(0)
    found = kernel(outputs.detach().numpy(), y.numpy(), given, 7.0, gradient)
    assert found == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, outputs.grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("output", ["linear", "square"])
def test_kernels_descend_by_weights_as_autograd_does(task, output):
    data, weights = samples(task), some_weights(20)
    model, config = model_of(dataclasses.replace(MANIFOLD, output=output)), dataclasses.replace(CONFIG, objective=3.0)
    optimizer, found = Adam(list(model.parameters()), 0.01), []
    for step in (
        KernelStep(model, task, config, Costs(config), optimizer),
        AutogradStep(model, task, config, Costs(config)),
    ):
        outputs = step.forward(data.x_train[:20])
        terms = step.loss(data.y_train[:20], True, weights)
        step.backward()
        expected = weighted_by_torch(
            outputs.detach().double(), data.y_train[:20].to(weights if task == "regression" else torch.int64), weights
        )
        assert terms.objective == pytest.approx(expected.item(), rel=1e-5)
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        scale = found[1][name].abs().max()
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize(
    ("task", "case"),
    [("classification", "ring and proxy"), ("regression", "closeness"), ("classification", "search for edges")],
)
def test_many_weighted_steps_at_a_time_have_the_bits_of_single_steps(task, case, monkeypatch):
    manifold, config = (dataclasses.replace(a, **b) for a, b in zip((MANIFOLD, CONFIG), CASES[case], strict=True))
    if task == "classification":
        config = dataclasses.replace(config, class_weight="balanced")
    data = dataclasses.replace(samples(task), weights=some_weights(90))
    one, other = (train(manifold, config, data, monkeypatch, fused) for fused in (True, False))
    assert one[3] > 8
    assert_same_bits(one, other)
    unweighted = train(manifold, config, dataclasses.replace(data, weights=None), monkeypatch, True)
    assert not torch.equal(one[0].alpha, unweighted[0].alpha)


def test_equal_weights_have_the_bits_of_none_and_their_unit_does_not_matter(monkeypatch):
    data = samples()
    plain, equal = (
        train(MANIFOLD, CONFIG, d, monkeypatch, True)
        for d in (data, dataclasses.replace(data, weights=torch.full((90,), 3.0)))
    )
    assert_same_bits(plain, equal)
    weights = some_weights(90)
    one, other = (
        train(MANIFOLD, CONFIG, dataclasses.replace(data, weights=k * weights), monkeypatch, True) for k in (1, 4)
    )
    assert_same_bits(one, other)


@pytest.mark.parametrize(
    ("task", "edges", "class_weight"),
    [("classification", "free", "balanced"), ("classification", "closeness", "none"), ("regression", "free", "none")],
)
def test_in_float64_a_weight_of_0_is_absence_and_a_weight_of_2_repetition(task, edges, class_weight, monkeypatch):
    manifold = dataclasses.replace(MANIFOLD, edges=edges)
    config = dataclasses.replace(WHOLE, class_weight=class_weight)
    data, weights = as_double(samples(task, n=30)), some_weights(30, whole=True)
    rows = torch.arange(30).repeat_interleave(weights.long())
    assert 17 <= len(rows) <= 32
    assert {0, 1, 2} <= set(weights.int().tolist())
    ends = []
    for given in (dataclasses.replace(data, weights=weights), rows_of(data, rows)):
        model = model_of(manifold, torch.float64)
        lines = []
        Trainer(model, given, config).run(lines.append)
        ends.append((model, lines[-1]["loss"]))
    (one, loss), (other, loss_of_repeated) = ends
    assert loss == pytest.approx(loss_of_repeated, rel=1e-9)
    assert one.n_edges == other.n_edges
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert p.dtype == torch.float64
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9, msg=name)


def test_float64_steps_on_all_samples_have_the_bits_of_single_steps_on_any_number_of_threads(monkeypatch):
    data, found = as_double(samples(n=90)), []
    for fused, threads in ((True, 1), (False, 1), (True, 2)):
        from sparse_dnm.train.fused import FusedSteps

        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr(FusedSteps, "ready", lambda self: False)
            model = model_of(dtype=torch.float64, threads=threads)
            trainer = Trainer(model, data, WHOLE)
            before = trainer._generator.get_state()
            trainer.run()
            assert torch.equal(trainer._generator.get_state(), before)  # nothing was drawn
            found.append(model.state_dict())
    for state in found[1:]:
        for name, tensor in found[0].items():
            assert torch.equal(tensor, state[name]), name


def test_on_all_samples_each_step_takes_them_in_their_order(monkeypatch):
    data = samples(n=30)
    trainer = Trainer(model_of(), data, WHOLE)
    for _ in range(2):
        batch = trainer._batches.next()
        assert torch.equal(batch.x, data.x_train)
        assert torch.equal(batch.y, data.y_train)
    assert trainer.config.batch_size == 0


def test_a_weighted_run_on_all_samples_resumes_with_the_same_bits(tmp_path):
    data = dataclasses.replace(samples(n=30), weights=some_weights(30))
    config = dataclasses.replace(WHOLE, checkpoint_every=10)
    Trainer(model_of(), data, config, tmp_path / "whole").run()

    def stop(record):
        if record["step"] == 20:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        Trainer(model_of(), data, config, tmp_path / "torn").run(stop)
    resumed = Trainer.resume(tmp_path / "torn", data)
    assert 0 < resumed.step < 40
    resumed.run()
    one, other = (files.load(tmp_path / run / files.CHECKPOINT).tensors for run in ("whole", "torn"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(files.CheckpointError, match="have changed"):
        Trainer.resume(tmp_path / "torn", dataclasses.replace(data, weights=2 * data.weights))


def test_the_description_of_data_without_weights_is_that_of_earlier_versions():
    import hashlib

    data = samples()
    digest = hashlib.sha256()
    for tensor in (data.x_train, data.y_train, data.x_test, data.y_test):
        digest.update(tensor.numpy().tobytes())
    assert describe(data)["sha256"] == digest.hexdigest()
    assert describe(dataclasses.replace(data, weights=torch.ones(90)))["sha256"] != digest.hexdigest()


def test_balanced_classes_weigh_as_scikit_learn_s():
    data = samples(n=90)
    config = TrainConfig(class_weight="balanced")
    found, _ = weigh(data, None, config)
    expected = compute_sample_weight("balanced", data.y_train.numpy())
    np.testing.assert_allclose(found.weights.numpy(), expected, rtol=1e-14)
    weights = some_weights(90)
    held = Validation(data.x_train[:9], data.y_train[:9], data.task, weights[:9])
    found, judged = weigh(dataclasses.replace(data, weights=weights), held, config)
    sums = np.bincount(data.y_train.numpy(), found.weights.numpy())
    np.testing.assert_allclose(sums, 30.0, rtol=1e-12)
    ratio = judged.weights / found.weights[:9]
    torch.testing.assert_close(ratio, ratio[:1].expand(9))
    assert weigh(data, None, TrainConfig()) == (data, None)


def test_samples_that_are_held_out_keep_their_weights():
    data = dataclasses.replace(samples(n=90), weights=torch.arange(90.0))
    left, held = hold_out(data, TrainConfig(budget_us=50.0, batch_size=20))
    assert torch.equal(data.x_train[left.weights.long()], left.x_train)
    assert torch.equal(data.x_train[held.weights.long()], held.x)


def test_saliency_is_that_of_the_weighted_loss():
    data, model = samples(n=20), model_of()
    weights = torch.zeros(20, dtype=torch.float64)
    weights[4] = 20.0
    one = rows_of(data, torch.tensor([4]))
    found = saliency(model, dataclasses.replace(data, weights=weights), 20)
    np.testing.assert_allclose(found, saliency(model, one, 1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": torch.ones(89)}, r"weights is torch.float32 \(89,\); it must be float \(90,\)"),
        ({"weights": torch.ones(90, dtype=torch.int64)}, r"weights is torch.int64"),
        ({"weights": torch.arange(90.0) - 1}, r"weights holds -1 to 88; each must be >= 0"),
        ({"weights": torch.full((90,), float("nan"))}, r"weights holds nan"),
        ({"weights": torch.zeros(90)}, r"weights are all 0"),
        ({"x_val": torch.zeros(3, 12)}, r"give both, or none"),
        ({"x_val": torch.zeros(3, 12), "y_val": torch.tensor([0, 1, 3])}, r"y_val holds labels 0 to 3"),
    ],
)
def test_weights_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Trainer(model_of(), dataclasses.replace(samples(), **changes), CONFIG)


def test_classes_of_a_regression_cannot_be_balanced():
    with pytest.raises(ValueError, match=r"class_weight='balanced' weighs classes, and random is a regression"):
        Trainer(model_of(), samples("regression"), dataclasses.replace(CONFIG, class_weight="balanced"))


def test_without_weights_the_squared_error_of_float32_is_added_up_as_before():
    rng = np.random.default_rng(4)
    outputs, targets = (rng.standard_normal((20, 3)).astype(np.float32) for _ in range(2))
    errors = (outputs - targets).reshape(-1)
    total = 0.0
    for square in errors * errors:  # float32, each
        total += float(square)
    gradient = np.empty_like(outputs)
    assert cpu_objective.squared_error(outputs, targets, np.empty(0), 1.0, gradient) == total / 60
