"""Presets: settings of networks and trainings by name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparse_dnm.config import ManifoldConfig, TrainConfig, check_choice


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


def preset(name: str) -> Preset:
    """The preset ``name``.  Raises ValueError that lists the names if it does not exist."""
    check_choice("preset", name, tuple(PRESETS))
    return PRESETS[name]


def preset_for(data: Table, name: str | None = None) -> Preset:
    """The preset ``name`` if it fits ``data``; without a name, settings derived from the size of ``data``.

    Raises ValueError naming both sizes if they differ.
    """
    if name is None:
        return Preset(ManifoldConfig.for_data(data.n_inputs, data.n_outputs, data.period))
    chosen = preset(name)
    made_for = chosen.manifold.n_inputs, chosen.manifold.n_outputs
    if made_for != (data.n_inputs, data.n_outputs):
        raise ValueError(
            f"preset {name} is made for {made_for[0]} inputs and {made_for[1]} outputs, but {data.name} has "
            f"{data.n_inputs} and {data.n_outputs}; choose another preset, or none"
        )
    return chosen
