"""Settings: frozen dataclasses, the presets, and their text form (JSON, ``key=value``)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, TypeVar

ACTIVATIONS = ("leaky_relu", "relu", "sigmoid", "tanh", "silu", "identity")
EDGE_MODES = ("closeness", "free", "free-closeness", "weighted")
INSIDE = ("free", "free-closeness")  # of them, those whose closeness has the factor omega
OUTPUTS = ("linear", "square")
SPEEDS = ("none", "proxy", "time")
TIME_MODES = ("train", "infer")  # forward + backward, or forward alone
CLOCKS = ("process_time", "perf_counter", "thread_time")
CUDA_CLOCK = "cuda_event"  # on CUDA there is no other
ESTIMATORS = ("cost-model", "spsa")
REGROWTHS = ("gradient", "random")
ABLATIONS = ("none", "no-refit", "edges-only", "shuffled")
PROXY_GRADIENTS = ("straight-through", "none")
SCHEDULES = ("constant", "cosine")
EXECUTORS = ("auto", "columns", "wavefront", "torch-sparse")

SCALARS = ("alpha", "beta", "gamma", "theta", "phi", "sigma", "mu")  # raw scalars of a row, in the kernels' order
ROW_SCALARS = {  # those that each edge mode has
    "closeness": SCALARS,
    "free": ("alpha", "sigma", "mu"),
    "free-closeness": SCALARS,
    "weighted": SCALARS,
}

Normal = tuple[float, float]  # mean and standard deviation of a normal distribution
C = TypeVar("C", "ManifoldConfig", "TrainConfig")


def check_device(name: str) -> str:
    """``name`` if it is that of a device with kernels, there or not.  Raises ValueError otherwise."""
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ValueError(f"device={name!r} is none that there are kernels for; choose cpu, cuda or cuda:N")
    return name


def check_choice(name: str, value: object, legal: tuple[str, ...]) -> None:
    """Raise ValueError listing the legal values unless ``value`` is one of them."""
    if value not in legal:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(legal)}")


def _number(rule: str, name: str, value: object, part: object) -> float:
    """``part`` of ``value`` as a float."""
    if isinstance(part, Real) and not isinstance(part, bool):
        with contextlib.suppress(OverflowError):
            return float(part)
    raise ValueError(f"{name}={value!r} must be {rule}")


def convert_fields(config: ManifoldConfig | TrainConfig) -> None:
    """Make every field an int, a float or a pair of floats, as declared; numpy's numbers will do.

    Raises ValueError naming the field, its value and the rule.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type == "int":
            try:
                if isinstance(value, bool):
                    raise TypeError
                value = operator.index(value)
            except TypeError:
                raise ValueError(f"{f.name}={value!r} must be an integer") from None
        elif f.type == "float":
            value = _number("a number", f.name, value, value)
        elif f.type == "Normal":
            rule = "a pair of numbers: mean, standard deviation"
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise ValueError(f"{f.name}={value!r} must be {rule}")
            value = tuple(_number(rule, f.name, value, part) for part in value)
        object.__setattr__(config, f.name, value)


@dataclass(frozen=True)
class ManifoldConfig:
    """Shape and initial distribution of a Dynamic Neural Manifold.

    Neurons are numbered inputs first, then hidden, then outputs.  Initial values of the raw scalars are normal
    with the (mean, standard deviation) given here.  In ``edges="free"`` beta, gamma, theta and phi do not exist, in
    ``edges="closeness"`` omega does not.
    Raises ValueError naming the field, its value and the rule.
    """

    n_neurons: int  # neurons in all
    n_inputs: int  # neurons
    n_outputs: int  # neurons
    period: float  # period of the data, in positions (image width for images)
    activation: str = "leaky_relu"  # one of ACTIVATIONS
    edges: str = "closeness"  # one of EDGE_MODES
    output: str = "linear"  # one of OUTPUTS
    alpha: Normal = (5.0, 1.0)  # raw
    beta: Normal = (0.0, 0.01)  # raw
    gamma: Normal = (0.0, 1.0)  # raw
    theta: Normal = (0.0, 1.0)  # raw
    phi: Normal = (math.pi / 2, 0.01 * math.pi)  # rad
    sigma: Normal = (10.0, 1.0)  # raw; positions once through softplus
    mu: Normal = (0.0, 14.0)  # positions
    weight: Normal = (0.0, 1.0)  # dimensionless
    bias: Normal = (0.0, 1.0)  # dimensionless
    omega: Normal = (0.0, 0.3)  # dimensionless
    cutoff: float = -1.0  # raw; c = sigmoid(cutoff)
    skin: float = 0.1  # closeness below the cutoff down to which candidates are kept
    seed: int = 0  # key of the counter-based generator of omega
    capacity: int = 0  # slots for candidate edges; 0: a quarter more than the first structure has, 4,096 at least

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in ("n_neurons", "n_inputs", "n_outputs"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value!r} must be a positive integer")
        if self.n_inputs + self.n_outputs >= self.n_neurons:
            raise ValueError(
                f"n_inputs + n_outputs = {self.n_inputs} + {self.n_outputs} leaves no hidden neuron in "
                f"n_neurons={self.n_neurons}; give n_neurons >= {self.n_inputs + self.n_outputs + 1}"
            )
        if self.n_neurons >= 2**31:
            raise ValueError(f"n_neurons={self.n_neurons} does not fit the int32 edge lists; use fewer than 2**31")
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("edges", self.edges, EDGE_MODES)
        check_choice("output", self.output, OUTPUTS)
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "Normal" and (not all(map(math.isfinite, value)) or value[1] < 0):
                raise ValueError(f"{f.name}={value!r} must be finite with a standard deviation >= 0")
            if f.type == "float" and not math.isfinite(value):
                raise ValueError(f"{f.name}={value!r} must be a finite number")
        if self.period <= 0:
            raise ValueError(f"period={self.period!r} must be > 0 positions")
        if self.skin < 0:
            raise ValueError(f"skin={self.skin!r} must be >= 0; 0 keeps active edges only")
        if self.capacity < 0:
            raise ValueError(f"capacity={self.capacity!r} must be >= 0 slots; 0: chosen from the first structure")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r} must be in 0 .. 2**63 - 1")

    @property
    def n_rows(self) -> int:
        """Neurons that may read others: all but the inputs."""
        return self.n_neurons - self.n_inputs

    @property
    def n_sources(self) -> int:
        """Neurons that others may read: all but the outputs."""
        return self.n_neurons - self.n_outputs

    @property
    def n_hidden(self) -> int:
        """Computational neurons: neither inputs nor outputs."""
        return self.n_neurons - self.n_inputs - self.n_outputs

    @property
    def possible_edges(self) -> int:
        """(n² - n_inputs² - n_outputs² - n_hidden) / 2: pairs (i, j) with j < min(i, n - n_outputs)."""
        n, a, b = self.n_neurons, self.n_inputs, self.n_outputs
        return (n * n - a * a - b * b - self.n_hidden) // 2

    @staticmethod
    def preset(name: str, **changes: Any) -> ManifoldConfig:
        """The preset ``name`` (one of PRESETS), with fields replaced by ``changes``."""
        check_choice("preset", name, tuple(PRESETS))
        return dataclasses.replace(PRESETS[name].manifold, **changes)

    @staticmethod
    def for_data(n_inputs: int, n_outputs: int, period: float | None = None, **changes: Any) -> ManifoldConfig:
        """Free edges sized for a table of ``n_inputs`` columns; windows wide enough for a row to see all sources."""
        n_hidden = max(16, min(256, 2 * (n_inputs + n_outputs)))
        n = n_inputs + n_hidden + n_outputs
        values: dict[str, Any] = {
            "n_neurons": n,
            "n_inputs": n_inputs,
            "n_outputs": n_outputs,
            "period": period or float(n_inputs),
            "edges": "free",
            "sigma": (0.6 * n, 0.0),
            "mu": (0.0, 0.1 * n),
            "weight": (1.0, 0.0),
            "bias": (0.0, 0.0),
            "cutoff": -2.0,
        }
        return ManifoldConfig(**{**values, **changes})


@dataclass(frozen=True)
class TrainConfig:
    """How to train: loss = objective·L + flow·flow_loss + speed_coefficient·speed, minimised by Adam."""

    steps: int = 5000  # optimiser steps
    batch_size: int = 50  # samples
    lr: float = 0.002  # Adam's step size at the start
    schedule: str = "cosine"  # one of SCHEDULES
    shift: int = 0  # pixels by which images are moved at most, at random, in every direction
    input_dropout: float = 0.0  # share of the inputs that are set to 0 at random
    omega_decay: float = 0.0  # coefficient of half the sum of the squares of omega, where edges have one
    kappa: float = 0.0  # coefficient of the gradient of candidates below the cutoff; 0: training only prunes
    grow_every: int = 4  # steps between those with that gradient, which is as many times as large
    scan_every: int = 0  # steps between searches for edges outside the candidates; 0: none
    scan_edges: int = 300  # edges that such a search lets be born
    regrowth: str = "gradient"  # one of REGROWTHS: which edges those are
    target_edges: int = 0  # edges to end with, by steering the proxy's coefficient; 0: as many as that leaves
    objective: float = 1.0  # coefficient of the task's loss
    flow: float = 0.0  # coefficient of flow_loss
    speed: str = "time"  # one of SPEEDS
    time_coefficient: float = 0.1  # coefficient of the measured time, over that at the start or the budget
    time_mode: str = "train"  # one of TIME_MODES
    time_batch: int = 1  # samples of a forward in time_mode "infer"
    time_every: int = 10  # steps between timed ones
    clock: str = "process_time"  # one of CLOCKS; on CUDA, CUDA_CLOCK is used
    budget_us: float = 0.0  # µs that a step may take; 0: no budget
    trim_steps: int = 500  # steps of the fine-tune after the network was trimmed to its budget
    time_estimator: str = "cost-model"  # one of ESTIMATORS: where the gradient of the measured time comes from
    time_ablation: str = "none"  # one of ABLATIONS
    profile: str = ""  # path of a profile to use in the place of a calibration at the start
    memory_coefficient: float = 0.0  # coefficient of the bytes of a step, over those at the start
    proxy_coefficient: float = 0.1  # coefficient of the proxy
    speed_power: int = 1  # the proxy is (active / possible)**speed_power
    proxy_gradient: str = "straight-through"  # one of PROXY_GRADIENTS
    tau: float = 0.3  # width of a gate, in closeness
    seed: int = 0  # of initial values, data order and omega
    log_every: int = 100  # steps between lines of metrics.jsonl
    checkpoint_every: int = 1000  # steps between checkpoints
    snapshot_every: int = 0  # steps between snapshots of the structure; 0: a hundredth of all steps
    executor: str = "auto"  # one of EXECUTORS
    threads: int = 0  # threads of the engine; 0: all cores
    device: str = "cpu"  # cpu, cuda or cuda:N

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", check_device(str(self.device)))
        convert_fields(self)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("speed", self.speed, SPEEDS)
        check_choice("proxy_gradient", self.proxy_gradient, PROXY_GRADIENTS)
        check_choice("executor", self.executor, EXECUTORS)
        check_choice("time_mode", self.time_mode, TIME_MODES)
        check_choice("clock", self.clock, CLOCKS)
        check_choice("time_estimator", self.time_estimator, ESTIMATORS)
        check_choice("regrowth", self.regrowth, REGROWTHS)
        check_choice("time_ablation", self.time_ablation, ABLATIONS)
        for name, least in (
            ("time_batch", 1),
            ("time_every", 1),
            ("trim_steps", 0),
            ("shift", 0),
            ("grow_every", 1),
            ("target_edges", 0),
            ("scan_every", 0),
            ("scan_edges", 1),
            ("steps", 0),
            ("batch_size", 1),
            ("speed_power", 1),
            ("seed", 0),
            ("log_every", 1),
            ("checkpoint_every", 1),
            ("snapshot_every", 0),
            ("threads", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name}={value!r} must be an integer >= {least}")
        for name in (
            *(
                "objective",
                "flow",
                "time_coefficient",
                "proxy_coefficient",
                "memory_coefficient",
                "budget_us",
                "kappa",
                "omega_decay",
            ),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r} must be a finite number >= 0")
        for name in ("lr", "tau"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value!r} must be a finite number > 0")
        if not 0 <= self.input_dropout < 1:
            raise ValueError(f"input_dropout={self.input_dropout!r} must be a share >= 0 and < 1")
        if self.target_edges and (self.speed != "proxy" or self.proxy_gradient == "none" or not self.proxy_coefficient):
            raise ValueError(
                f"target_edges={self.target_edges} is reached by the proxy: it needs speed='proxy', "
                f"proxy_gradient='straight-through' and a proxy_coefficient > 0, not speed={self.speed!r}, "
                f"proxy_gradient={self.proxy_gradient!r}, proxy_coefficient={self.proxy_coefficient!r}"
            )
        if self.kappa and self.executor == "torch-sparse":
            raise ValueError(f"kappa={self.kappa!r} is for the kernels; with executor='torch-sparse' set kappa=0")
        if self.speed != "time" and (self.budget_us or self.profile):
            given = "budget_us" if self.budget_us else "profile"
            raise ValueError(f"{given}={getattr(self, given)!r} needs speed='time', not speed={self.speed!r}")
        if self.time_estimator == "spsa" and self.time_ablation != "none":
            raise ValueError(
                f"time_ablation={self.time_ablation!r} changes the cost model, which time_estimator='spsa' does not "
                "use: choose one of them"
            )
        if self.speed == "time" and self.executor == "torch-sparse":
            raise ValueError(
                "executor='torch-sparse' does not run the kernels that speed='time' measures; choose "
                "speed=proxy or none"
            )

    @property
    def steps_per_snapshot(self) -> int:
        """Steps between snapshots of the structure."""
        return self.snapshot_every or max(1, self.steps // 100)

    @property
    def speed_coefficient(self) -> float:
        """The coefficient of the speed term that ``speed`` names."""
        return {"none": 0.0, "proxy": self.proxy_coefficient, "time": self.time_coefficient}[self.speed]

    @property
    def coefficient_field(self) -> str:
        """The name of the field that `speed_coefficient` comes from."""
        return "proxy_coefficient" if self.speed == "proxy" else "time_coefficient"

    @staticmethod
    def preset(name: str, **changes: Any) -> TrainConfig:
        """The training recipe of preset ``name`` (one of PRESETS), with fields replaced by ``changes``."""
        check_choice("preset", name, tuple(PRESETS))
        return dataclasses.replace(PRESETS[name].train, **changes)


def parse_setting(cls: type, text: str) -> tuple[str, Any]:
    """Read ``key=value`` for a field of the dataclass ``cls``; a pair (mean, std) is written ``key=5,0.1``.

    Raises KeyError where ``cls`` has no such field and ValueError where the value is not of its type.
    """
    key, sep, raw = text.partition("=")
    key, raw = key.strip().replace("-", "_"), raw.strip()
    if not sep or not raw:
        raise ValueError(f"setting {text!r} must be written key=value")
    kinds = {f.name: str(f.type) for f in fields(cls)}
    if key not in kinds:
        raise KeyError(key)
    kind = kinds[key]
    try:
        if kind == "int":
            return key, int(raw)
        if kind == "float":
            return key, float(raw)
        if kind == "Normal":
            mean, std = raw.split(",")
            return key, (float(mean), float(std))
    except ValueError:
        expected = {"int": "an integer", "float": "a number", "Normal": "two numbers: mean,std"}[kind]
        raise ValueError(f"{key}={raw!r} must be {expected}") from None
    return key, raw


def apply_settings(
    manifold: ManifoldConfig, train: TrainConfig, settings: list[str]
) -> tuple[ManifoldConfig, TrainConfig]:
    """Apply ``key=value`` texts to whichever of the two configs has the field (``seed``: both)."""
    changes: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for text in settings:
        known = False
        for cls, found in zip((ManifoldConfig, TrainConfig), changes, strict=True):
            try:
                key, value = parse_setting(cls, text)
            except KeyError:
                continue
            found[key] = value
            known = True
        if not known:
            legal = sorted({f.name for f in fields(ManifoldConfig)} | {f.name for f in fields(TrainConfig)})
            raise ValueError(f"setting {text!r} names no field; choose one of {', '.join(legal)}")
    return dataclasses.replace(manifold, **changes[0]), dataclasses.replace(train, **changes[1])


def from_dict(cls: type[C], values: dict[str, Any]) -> C:
    """Build ``cls`` from parsed JSON.  Raises ValueError naming unknown or missing fields."""
    legal = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - legal)
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(legal))}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from None


@dataclass(frozen=True)
class Preset:
    """A manifold together with its training recipe, and that for a number of edges (see `growing`)."""

    manifold: ManifoldConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    growth: Mapping[str, Any] = field(default_factory=dict)  # what else changes where a number of edges is asked for

    def growing(self, target_edges: int) -> TrainConfig:
        """The recipe to end with ``target_edges``: the proxy prunes down to them, the ring lets edges grow."""
        changes = {"speed": "proxy", "proxy_gradient": "straight-through", "target_edges": target_edges, "kappa": 1.0}
        return dataclasses.replace(self.train, **{**changes, **self.growth})


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
        TrainConfig(steps=5_000, lr=0.01, time_coefficient=0.1, proxy_coefficient=0.1),
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
        TrainConfig(steps=3_000, lr=0.002, time_coefficient=2.0, proxy_coefficient=8.0),
        {"input_dropout": 0.1, "steps": 20_000, "lr": 0.004, "omega_decay": 0.001},
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
        TrainConfig(steps=10_000, batch_size=100, lr=0.004, time_coefficient=2.0, proxy_coefficient=8.0),
        {"shift": 1, "steps": 60_000},
    ),
}
