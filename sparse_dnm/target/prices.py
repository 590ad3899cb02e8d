"""The prices of a target: a cost model fitted to probes that run there."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sparse_dnm.config import TARGET_CLOCK
from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.topology import Topology
from sparse_dnm.lowering.c_network import Network
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.model.sparse_dag import SparseDAG
from sparse_dnm.target.launch import Target
from sparse_dnm.target.measure import Measured, made, time_on_target
from sparse_dnm.timing.calibration import Calibration, fit, uncertainty
from sparse_dnm.timing.cost_model import FEATURES, ON_TARGET, Quality
from sparse_dnm.timing.probes import Settings, edge_values
from sparse_dnm.timing.structures import probes

OWN = "network"  # the name of the network among its probes


def counts(network: Network) -> Floats:
    """Features (n_features,) of a network in C, in the order of FEATURES["c"]."""
    layout = network.layout
    parts = [(len(stage.rows), part) for stage in layout.stages for part in stage.parts]
    rows, outputs = layout.hidden, layout.folded.n_outputs
    edges = sum(len(part.edge_at) for _, part in parts)
    blocks = sum(len(part.block_at) for _, part in parts)
    loops = sum(n * (bool(len(part.block_at)) + bool(len(part.edge_at))) for n, part in parts)
    found = {
        "call": 1.0, "input": layout.n_computed, "neuron": rows, "edge": edges, "output": outputs, "block": blocks,
        "level": len(layout.folded.levels), "loop": loops, "crowded loop": loops**2 / 1000,
        "crowded edge": edges**2 / 1000, "crowded block": blocks**2 / 1000,
    }  # fmt: skip
    return np.array([float(found[name]) for name in FEATURES[ON_TARGET]])


def probe(topology: Topology, like: SparseDAG) -> Network:
    """A network of another structure with the functions of neurons of ``like``, and factors other than 1."""
    activation = "leaky_relu" if set(" *") & set(like.activation) else like.activation
    options: dict[str, Any] = {
        "activation": activation, "input_neurons": like.input_neurons, "linear_outputs": like.linear_outputs,
        "output": like.output, "dtype": torch.float64, "device": "cpu",
    }  # fmt: skip
    values = edge_values(topology, np.float64)
    dag = SparseDAG(topology, values, 0.01, **options)
    if like.weight is not None:
        factors = np.random.default_rng(topology.n_edges).uniform(0.5, 1.0, len(dag.bias))
        dag = SparseDAG(topology, values, 0.01, weight=factors, **options)
    return made(dag)


def calibrate_target(
    model: DynamicManifold | SparseDAG,
    target: Target,
    n_probes: int = 60,
    rounds: int = 25,
    seed: int = 0,
    on_probe: Callable[[], None] = lambda: None,
    on_compiled: Callable[[int], None] = lambda total: None,
) -> tuple[Calibration, Measured, Floats]:
    """Fit prices to probes derived from a network, and judge them on half as many others.

    on_probe, on_compiled  are called for every probe that is laid out, and for every file that is compiled, with
                           the number of all
    Returns the calibration, the times of the probes by number and of the network as "network", and its features.
    Raises TargetError where the target fails.
    """
    refuse_recurrent(model, "the clock of programs in C")
    settings = Settings(ON_TARGET, "infer", 1, 1, TARGET_CLOCK, n_probes, rounds, seed)
    dag = model.to_dag() if isinstance(model, DynamicManifold) else model
    n_held = n_probes // 2
    cuts = probes(dag.topology, n_probes + n_held, np.random.default_rng(seed), "blocks")
    networks: dict[str, Network] = {}
    for k, topology in enumerate(cuts):
        networks[str(k)] = probe(topology, dag)
        on_probe()
    whole = made(dag)
    found = time_on_target({**networks, OWN: whole}, target, rounds, on_compiled)
    features = np.stack([counts(one) for one in networks.values()])
    ratios = np.stack([found.seconds[name] for name in networks])
    raw = np.stack([found.raw[name] for name in networks])
    seconds = np.median(ratios, axis=1)
    judged = fit(settings, features[:-n_held], seconds[:-n_held])
    held_out = Quality.of(judged.seconds(features[-n_held:]), seconds[-n_held:])
    low, high = np.quantile(ratios, [0.25, 0.75], axis=1)
    noise = statistics.median(((high - low) / 2 / seconds).tolist())
    own = counts(whole)
    calibration = Calibration(
        fit(settings, features, seconds), settings, 1, held_out, noise, 0, found.spread, 1.0,
        counts=features, seconds=seconds, raw_seconds=np.median(raw, axis=1), pace=_pace(found), rounds=rounds,
        uncertainty=uncertainty(settings, features, own, ratios),
    )  # fmt: skip
    return calibration, found, own


def _pace(found: Measured) -> dict[str, Any]:
    """As in profiles of this machine."""
    return {
        "quiet_seconds": found.unit.seconds,
        "quiet_date": found.unit.date,
        "reference_seconds": found.reference,
        "quiet": bool(found.unit.date),
        "others": None,
        "key": found.key,
    }
