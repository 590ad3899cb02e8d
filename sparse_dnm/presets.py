"""Presets: settings of networks and trainings by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sparse_dnm import sizes
from sparse_dnm.config import OMEGA_IN_CLOSENESS, ManifoldConfig, TrainConfig, check_choice
from sparse_dnm.noise import neighbour_noise

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Preset:
    """Settings of a network and of its training, the same whatever says how small it becomes."""

    manifold: ManifoldConfig
    train: TrainConfig = field(default_factory=lambda: TrainConfig(kappa=1.0))

    def growing(self, target_edges: int) -> TrainConfig:
        """Training settings that end with ``target_edges`` edges, by the proxy."""
        changes: dict[str, Any] = {"target_edges": target_edges}
        if self.train.kappa == 0.0:  # the original's: it never optimised its proxy, and never grew an edge
            changes |= {"kappa": 1.0, "fine_tune": TrainConfig().fine_tune}
        return dataclasses.replace(self.train, speed="proxy", proxy_gradient="straight-through", **changes)


SEQUENCE_PROXY, SEQUENCE_TIME = 0.01, 0.003  # coefficients of proxy and measured time where networks remember
SEARCH: dict[str, Any] = {"scan_every": 50, "scan_edges": 200}


def searching(manifold: ManifoldConfig, config: TrainConfig, settings: Iterable[str] = ()) -> TrainConfig:
    """A training for a target also searches for edges, in whole blocks where these have a price, unless ``settings``
    (KEY=VALUE) say how it does; so far no other training does by default."""
    said = any(text.partition("=")[0].strip().replace("-", "_") in SEARCH for text in settings)
    if said or not config.on_target or manifold.edges not in OMEGA_IN_CLOSENESS:
        return config
    return dataclasses.replace(config, **SEARCH)


COUNTING: dict[str, Any] = {"forget_bias": 16.0, "gate_recurrent": (0.0, 0.1)}  # of neurons that keep exact sums


def _recurrent(
    n_inputs: int, hidden: int, n_outputs: int, period: float, gates: dict[str, Any] | None = None, **train: Any
) -> Preset:
    """Neurons with a state, LSTM unless ``gates`` says otherwise, with free edges in windows over all neurons, trained
    by the proxy.  ``gates``: fields of the manifold."""
    n = n_inputs + hidden + n_outputs
    manifold = ManifoldConfig(
        n_neurons=n,
        n_inputs=n_inputs,
        n_outputs=n_outputs,
        period=period,
        edges="free",
        sigma=(float(n), 0.0),
        mu=(0.0, 0.0),
        omega=(0.0, 0.5),
        cutoff=-2.0,
        **{"neuron": "lstm", **(gates or {})},
    )
    settings: dict[str, Any] = {
        "lr": 0.01,
        "kappa": 1.0,
        "speed": "proxy",
        "proxy_coefficient": SEQUENCE_PROXY,
        "time_coefficient": SEQUENCE_TIME,
        **train,
    }
    return Preset(manifold, TrainConfig(**settings))


PRESETS: dict[str, Preset] = {
    "original-toy": Preset(
        ManifoldConfig(
            n_neurons=25,
            n_inputs=5,
            n_outputs=4,
            period=5.0,
            output="square",
            alpha=(5.0, 0.1),
            gamma=(0.0, 0.1),
            theta=(0.0, 0.1),
            phi=(math.pi / 2, 0.001 * math.pi),
            sigma=(5**0.75, 25**0.133),
            mu=(0.0, 2.0),
        ),
        TrainConfig(
            steps=5_000,
            lr=0.001,
            schedule="constant",
            objective=1e4,
            flow=1.0,
            fine_tune=0.0,
            speed="proxy",
            proxy_coefficient=0.1,
            speed_power=2,
            proxy_gradient="none",
        ),
    ),
    "original-mnist": Preset(
        ManifoldConfig(
            n_neurons=1000,
            n_inputs=784,
            n_outputs=10,
            period=28.0,
            output="square",
            sigma=(784**0.66, 1000**0.33),
        ),
        TrainConfig(
            steps=50_000,
            lr=0.002,
            schedule="constant",
            objective=1e3,
            flow=1e-4,
            fine_tune=0.0,
            speed="proxy",
            proxy_coefficient=0.1,
            speed_power=2,
            proxy_gradient="none",
        ),
    ),
    "toy": Preset(
        ManifoldConfig(
            n_neurons=25,
            n_inputs=5,
            n_outputs=4,
            period=5.0,
            edges="free",
            sigma=(25.0, 0.0),
            mu=(0.0, 2.0),
            weight=(1.0, 0.0),
            bias=(0.0, 0.0),
            cutoff=-2.0,
        ),
        TrainConfig(steps=5_000, lr=0.01, kappa=1.0, time_coefficient=0.1, proxy_coefficient=0.1),
    ),
    "digits": Preset(
        ManifoldConfig(
            n_neurons=300,
            n_inputs=64,
            n_outputs=10,
            period=8.0,
            activation="silu",
            edges="free",
            sigma=(300.0, 0.0),
            mu=(0.0, 15.0),
            weight=(1.0, 0.0),
            bias=(0.0, 0.0),
        ),
        TrainConfig(
            steps=20_000,
            lr=0.004,
            input_dropout=0.1,
            omega_decay=0.001,
            kappa=1.0,
            time_coefficient=2.0,
            proxy_coefficient=8.0,
        ),
    ),
    "mnist": Preset(
        ManifoldConfig(
            n_neurons=1000,
            n_inputs=784,
            n_outputs=10,
            period=28.0,
            edges="free",
            sigma=(400.0, 0.0),
            mu=(0.0, 100.0),
            weight=(1.0, 0.0),
            bias=(0.0, 0.0),
        ),
        TrainConfig(
            steps=60_000,
            batch_size=100,
            lr=0.004,
            shift=1,
            kappa=1.0,
            time_coefficient=2.0,
            proxy_coefficient=8.0,
        ),
    ),
    "adding": _recurrent(
        2, 24, 1, 50.0, {**COUNTING, "forget_bias": 4.0}, steps=10_000, lr=0.02, proxy_coefficient=0.003
    ),
    "copy": _recurrent(10, 48, 9, 30.0, steps=10_000, lr=0.02, proxy_coefficient=0.001),
    "parity": _recurrent(1, 16, 2, 12.0, {"gate_recurrent": (0.0, 3.0)}, steps=4_000, lr=0.02, proxy_coefficient=0.001),
    "anbn": _recurrent(3, 12, 4, 30.0, COUNTING, steps=3_000, batch_size=30, lr=0.02, proxy_coefficient=0.1),
    "anbncn": _recurrent(
        4, 16, 5, 30.0, COUNTING, steps=6_000, batch_size=30, lr=0.02, proxy_coefficient=0.03, omega_decay=0.001
    ),
    "dyck1": _recurrent(2, 12, 2, 30.0, COUNTING, steps=5_000, lr=0.02, proxy_coefficient=0.03, omega_decay=0.0003),
    "rows-digits": _recurrent(8, 48, 10, 8.0, steps=6_000, proxy_coefficient=0.1, omega_decay=0.001, input_dropout=0.1),
    "psmnist": _recurrent(1, 100, 10, 784.0, steps=20_000),
}


class Table(Protocol):
    """The properties of a data set that `preset_for` uses."""

    @property
    def name(self) -> str: ...
    @property
    def n_inputs(self) -> int: ...
    @property
    def n_outputs(self) -> int: ...
    @property
    def period(self) -> float: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def x_train(self) -> Tensor: ...
    @property
    def y_train(self) -> Tensor: ...
    @property
    def weights(self) -> Tensor | None: ...


def preset(name: str) -> Preset:
    """The preset ``name``.  Raises ValueError that lists the names if it does not exist."""
    check_choice("preset", name, tuple(PRESETS))
    return PRESETS[name]


def preset_for(data: Table, name: str | None = None, n_samples: float | None = None) -> Preset:
    """The preset ``name`` if it fits ``data``; without a name, settings derived from ``data``: its sizes and its noise.

    ``n_samples``: what the training samples count as, their number unless given (the sum of their weights, perhaps).
    Raises ValueError naming both sizes if they differ.
    """
    if name is None:
        n = len(data.x_train) if n_samples is None else n_samples
        manifold = ManifoldConfig.for_data(data.n_inputs, data.n_outputs, data.period)
        if data.x_train.ndim == 3:  # sequences
            of_table = {**sizes.training(n, data.n_inputs, len(data.classes)), "omega_decay": 0.0}
            of_table |= {"proxy_coefficient": SEQUENCE_PROXY, "time_coefficient": SEQUENCE_TIME}
            train = TrainConfig(kappa=1.0, speed="proxy", **of_table)
            return Preset(dataclasses.replace(manifold, neuron="lstm"), train)
        noise = neighbour_noise(data.x_train, data.y_train, data.weights)
        return Preset(manifold, TrainConfig(kappa=1.0, **sizes.training(n, data.n_inputs, len(data.classes), noise)))
    chosen = preset(name)
    made_for = chosen.manifold.n_inputs, chosen.manifold.n_outputs
    if made_for != (data.n_inputs, data.n_outputs):
        raise ValueError(
            f"preset {name} is made for {made_for[0]} inputs and {made_for[1]} outputs, but {data.name} has "
            f"{data.n_inputs} and {data.n_outputs}; choose another preset, or none"
        )
    return chosen
