"""Settings that follow from the sizes of a table."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, Trainer, sizes
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.noise import neighbour_noise
from sparse_dnm.presets import preset_for

COLUMNS, OUTPUTS = st.integers(1, 5_000), st.integers(1, 1_000)


def expected_edges(config):
    """Of the first network, where closeness without omega is 1 everywhere."""
    c = 1 / (1 + math.exp(-config.cutoff))
    return config.possible_edges * math.erfc(c / config.omega[1] / math.sqrt(2))


@given(COLUMNS, OUTPUTS)
@settings(deadline=None)
def test_every_table_has_a_valid_network_of_bounded_edges(n_inputs, n_outputs):
    config = ManifoldConfig.for_data(n_inputs, n_outputs)
    assert (config.n_inputs, config.n_outputs) == (n_inputs, n_outputs)
    assert sizes.HIDDEN <= config.n_hidden <= sizes.MOST_HIDDEN
    assert 100 < expected_edges(config) < 1.01 * sizes.MOST_EDGES


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(0, 1_000))
def test_more_samples_mean_more_steps_and_a_weaker_decay(a, b, classes):
    few, many = (TrainConfig(**sizes.training(n, 10, classes)) for n in sorted((a, b)))
    assert few.steps <= many.steps <= sizes.MOST_STEPS
    assert few.omega_decay >= many.omega_decay > 0
    assert few.batch_size <= many.batch_size <= sizes.BATCH


def test_more_classes_mean_more_neurons_and_a_weaker_decay():
    hidden = [ManifoldConfig.for_data(10, k).n_hidden for k in (1, 2, 3, 10, 26, 500)]
    assert hidden == sorted(hidden)
    decay = [sizes.training(1_000, 10, k)["omega_decay"] for k in (0, 2, 3, 10, 26, 500)]
    assert decay == sorted(decay, reverse=True)
    assert decay[0] == decay[1] == 5 / 1_000  # a regression is like two classes


def test_less_noise_means_a_weaker_decay():
    decay = [sizes.training(1_000, 10, 2, noise)["omega_decay"] for noise in (0.0, 0.01, 0.1, 0.3, 0.6, 1.0)]
    assert decay == sorted(decay)
    assert decay[2] == pytest.approx(1.2 / 1_000)


def test_what_samples_count_as_may_be_given():
    x, y = torch.zeros(10, 3), torch.zeros(10).long()
    data = Dataset("table", "classification", x, y, x, y, 3.0, ("a", "b"))
    assert preset_for(data).train == TrainConfig(kappa=1.0, **sizes.training(10, 3, 2))
    assert preset_for(data, n_samples=35.5).train == TrainConfig(kappa=1.0, **sizes.training(35.5, 3, 2))


def noise_by_loops(x, y, weights):
    """Of few samples, from the definition."""
    rows = [k for k in range(len(x)) if weights[k] > 0]

    def differ(a, b):
        return float(y[a] != y[b]) if y.ndim == 1 else float(np.sum((y[a] - y[b]) ** 2))

    def among(first, second):
        pairs = [(weights[a] * weights[b], differ(a, b)) for a in first for b in second]
        return sum(w * d for w, d in pairs) / sum(w for w, _ in pairs)

    found = []
    for a in rows:
        others = [(float(np.sum((x[a] - x[b]) ** 2)), tuple(x[b])) for b in rows if (x[a] != x[b]).any()]
        nearest = min(others)[1]
        same = [b for b in rows if (x[b] == x[a]).all()]
        found.append((weights[a], among(same, [b for b in rows if tuple(x[b]) == nearest])))
    return sum(w * d for w, d in found) / sum(w for w, _ in found) / among(rows, rows)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_what_neighbours_differ_by(kind, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 2)).astype(np.float32)[rng.integers(0, 30, 60)]  # some samples have the same inputs
    y = rng.integers(0, 3, 60) if kind == "classes" else rng.normal(size=(60, 2)) + 3 * x
    weights = rng.integers(0, 3, 60).astype(np.float64)
    found = neighbour_noise(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(weights))
    assert found == pytest.approx(min(1.0, noise_by_loops(x, y, weights)))
    again = np.repeat(np.arange(60), weights.astype(int))
    assert found == pytest.approx(neighbour_noise(torch.from_numpy(x[again]), torch.from_numpy(y[again])))


def test_noise_of_a_smooth_target_is_its_share_of_the_variance():
    x = torch.randn(5_000, 2, generator=torch.Generator().manual_seed(0))
    for share in (0.05, 0.5):
        error = torch.randn(5_000, generator=torch.Generator().manual_seed(1)) * (2 * share / (1 - share)) ** 0.5
        assert neighbour_noise(x, (x.sum(1) + error)[:, None]) == pytest.approx(share, abs=0.05)


def test_noise_of_tables_without_neighbours_or_without_a_target_is_1():
    x = torch.ones(3, 2)
    assert neighbour_noise(x, torch.arange(3)) == 1.0
    assert neighbour_noise(torch.randn(3, 2), torch.zeros(3).long()) == 1.0
    assert neighbour_noise(torch.randn(3, 2), torch.arange(3), torch.zeros(3)) == 1.0


@pytest.mark.parametrize(
    ("n_samples", "n_inputs", "n_classes"), [(5, 2_000, 2), (500, 10, 500), (60, 1, 0), (2, 20_000, 3)]
)
def test_tables_of_extreme_sizes_start_with_few_edges_and_can_be_trained(n_samples, n_inputs, n_classes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_samples, n_inputs, generator=generator)
    if n_classes:
        y, classes = torch.arange(n_samples) % n_classes, tuple(str(k) for k in range(n_classes))
        data = Dataset("table", "classification", x, y, x, y, float(n_inputs), classes)
    else:
        y = torch.randn(n_samples, 1, generator=generator)
        data = Dataset("table", "regression", x, y, x, y, float(n_inputs))
    preset = preset_for(data)
    model = DynamicManifold(preset.manifold, generator, executor="columns", threads=1)
    assert model.n_edges < 1.05 * sizes.MOST_EDGES
    assert len(model.candidates.indices) < 4 * sizes.MOST_EDGES
    assert model.connected
    with torch.no_grad():
        spread = model(x).std().item()
    assert 0 < spread < 2
    config = TrainConfig(**{**sizes.training(n_samples, n_inputs, n_classes), "steps": 3}, speed="none", threads=1)
    Trainer(model, data, config).run()
    assert all(p.isfinite().all() for p in model.parameters())
