"""Settings: frozen dataclasses whose fields carry their own bounds, and their text form (JSON, ``key=value``)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import Field, model_validator

from sparse_dnm.fields import (
    TYPE_RULES,
    Coefficient,
    Count,
    Device,
    Integer,
    Normal,
    Number,
    Path,
    Positive,
    Share,
    WholeShare,
    one_line_errors,
)
from sparse_dnm.sizes import first_network

if TYPE_CHECKING:
    from dataclasses import dataclass  # for mypy: dataclasses.replace and fields accept pydantic's dataclasses
else:
    from pydantic.dataclasses import dataclass

Activation = Literal["leaky_relu", "relu", "sigmoid", "tanh", "silu", "identity"]
EdgeMode = Literal["closeness", "free", "free-closeness", "weighted"]
Output = Literal["linear", "square"]
NeuronKind = Literal["memoryless", "ctrnn", "gru", "lstm"]
Speed = Literal["none", "proxy", "time"]
TimeMode = Literal["train", "infer"]  # forward + backward, or forward alone
ClockName = Literal["process_time", "perf_counter", "thread_time"]
TrainClock = Literal["process_time", "perf_counter", "thread_time", "target"]
ExportDtype = Literal["float32", "int8"]  # of programs in C
Estimator = Literal["cost-model", "spsa"]
Regrowth = Literal["gradient", "random"]
Ablation = Literal["none", "no-refit", "edges-only", "shuffled"]
ProxyGradient = Literal["straight-through", "none"]
ScheduleName = Literal["constant", "cosine"]
ClassWeight = Literal["none", "balanced"]
ExecutorName = Literal["auto", "columns", "wavefront", "blocks", "fastest", "torch-sparse"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
EDGE_MODES: tuple[str, ...] = get_args(EdgeMode)
OMEGA_IN_CLOSENESS = ("free", "free-closeness")  # edge modes whose closeness has the factor omega
OUTPUTS: tuple[str, ...] = get_args(Output)
NEURONS: tuple[str, ...] = get_args(NeuronKind)
GATED = ("gru", "lstm")  # neurons whose value is made by gates, without activation, weight and bias
SPEEDS: tuple[str, ...] = get_args(Speed)
TIME_MODES: tuple[str, ...] = get_args(TimeMode)
CLOCKS: tuple[str, ...] = get_args(ClockName)
CUDA_CLOCK = "cuda_event"  # the only clock on CUDA
TARGET_CLOCK = "target"  # that of programs in C
TARGET_FIELDS = ("target_cc", "target_copy", "target_run", "target_timeout")
CC, RUN = "cc -O3 -march=native", "{program}"  # how they are compiled and run, if nothing else is said
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
REGROWTHS: tuple[str, ...] = get_args(Regrowth)
ABLATIONS: tuple[str, ...] = get_args(Ablation)
PROXY_GRADIENTS: tuple[str, ...] = get_args(ProxyGradient)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
EXECUTORS: tuple[str, ...] = get_args(ExecutorName)

SCALARS = ("alpha", "beta", "gamma", "theta", "phi", "sigma", "mu")  # raw scalars of a row, in the kernels' order
ROW_SCALARS = {  # those that each edge mode has
    "closeness": SCALARS,
    "free": ("alpha", "sigma", "mu"),
    "free-closeness": SCALARS,
    "weighted": SCALARS,
}

C = TypeVar("C", "ManifoldConfig", "TrainConfig")


def check_choice(name: str, value: object, legal: tuple[str, ...]) -> None:
    """Raise ValueError listing the legal values unless ``value`` is one of them."""
    if value not in legal:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(legal)}")


@one_line_errors
@dataclass(frozen=True)
class ManifoldConfig:
    """Shape and initial distribution of a Dynamic Neural Manifold.

    Neurons are numbered inputs first, then hidden, then outputs.  Initial values of the raw scalars are normal
    with the (mean, standard deviation) given here.  In ``edges="free"`` beta, gamma, theta and phi do not exist, in
    ``edges="closeness"`` omega does not.  With ``neuron`` or ``n_memory`` the network is recurrent: its input is a
    sequence (DESIGN, 2).  The memory's inputs come after the other inputs, its outputs after the other outputs.
    Raises ValueError naming the field, its value and the rule.
    """

    n_neurons: Annotated[Integer, Field(ge=1, lt=2**31, description="an int32 number of neurons")]  # neurons in all
    n_inputs: Positive  # neurons
    n_outputs: Positive  # neurons
    period: Annotated[Number, Field(gt=0)]  # of the data, in positions (image width for images)
    activation: Activation = "leaky_relu"
    edges: EdgeMode = "closeness"
    output: Output = "linear"
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
    cutoff: Number = -1.0  # raw; c = sigmoid(cutoff)
    skin: Coefficient = 0.1  # candidates are kept down to so much closeness below the cutoff; 0: active edges only
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 0  # key of the counter-based generator of omega
    capacity: Count = 0  # slots for candidate edges; 0: a quarter more than the first structure has, at least 4,096
    neuron: NeuronKind = "memoryless"  # of the hidden neurons; others have a state that time steps hand on
    n_memory: Count = 0  # further outputs, which are further inputs of the next time step; n_neurons counts both
    gate_weight: Normal = (0.0, 1.0)  # of gates, for the sum of messages
    gate_recurrent: Normal = (0.0, 1.0)  # of gates, for the neuron's own last value
    gate_bias: Normal = (0.0, 1.0)  # of gates
    forget_bias: Number = 1.0  # lstm: what the bias of forget gates has more (Jozefowicz et al. 2015)
    rate: Normal = (-1.0, 1.0)  # raw; ctrnn: sigmoid(rate) is a time step over the neuron's time constant

    @model_validator(mode="after")
    def _leaves_hidden_neurons(self) -> ManifoldConfig:
        if self.n_hidden < 1:
            memory = f" + 2 n_memory = {self.n_inputs} + {self.n_outputs} + {2 * self.n_memory}"
            shape = memory if self.n_memory else f" = {self.n_inputs} + {self.n_outputs}"
            raise ValueError(
                f"n_inputs + n_outputs{shape} leaves no hidden neuron in "
                f"n_neurons={self.n_neurons}; give n_neurons >= {self.n_neurons - self.n_hidden + 1}"
            )
        return self

    @property
    def recurrent(self) -> bool:
        """The input is a sequence: neurons have a state, or outputs are inputs of the next time step."""
        return self.neuron != "memoryless" or self.n_memory > 0

    @functools.cached_property
    def graph(self) -> ManifoldConfig:
        """The same with the memory's inputs among the inputs and its outputs among the outputs: the graph of a step."""
        if self.n_memory == 0:
            return self
        n_inputs, n_outputs = self.n_inputs + self.n_memory, self.n_outputs + self.n_memory
        return dataclasses.replace(self, n_inputs=n_inputs, n_outputs=n_outputs, n_memory=0)

    @property
    def n_rows(self) -> int:
        """Neurons that may read others: all but the inputs."""
        return self.n_neurons - self.n_inputs - self.n_memory

    @property
    def n_sources(self) -> int:
        """Neurons that others may read: all but the outputs."""
        return self.n_neurons - self.n_outputs - self.n_memory

    @property
    def n_weighted(self) -> int:
        """Neurons with a weight and a bias, the first ones: the sources, without those that have gates instead."""
        return self.n_inputs + self.n_memory if self.neuron in GATED else self.n_sources

    @property
    def n_hidden(self) -> int:
        """Computational neurons: neither inputs nor outputs."""
        return self.n_neurons - self.n_inputs - self.n_outputs - 2 * self.n_memory

    @property
    def possible_edges(self) -> int:
        """(n² - n_inputs² - n_outputs² - n_hidden) / 2: pairs (i, j) with j < min(i, n - n_outputs); the memory's
        neurons count as inputs and outputs."""
        n, a, b = self.n_neurons, self.n_inputs + self.n_memory, self.n_outputs + self.n_memory
        return (n * n - a * a - b * b - self.n_hidden) // 2

    @staticmethod
    def preset(name: str, **changes: Any) -> ManifoldConfig:
        """The preset ``name`` (see `sparse_dnm.presets`), with fields replaced by ``changes``."""
        from sparse_dnm.presets import preset

        return dataclasses.replace(preset(name).manifold, **changes)

    @staticmethod
    def for_data(n_inputs: int, n_outputs: int, period: float | None = None, **changes: Any) -> ManifoldConfig:
        """Free edges sized for a table of so many columns (`sparse_dnm.sizes`); fields replaced by ``changes``."""
        return ManifoldConfig(**{**first_network(n_inputs, n_outputs, period), **changes})


@one_line_errors
@dataclass(frozen=True)
class TrainConfig:
    """How to train: loss = objective·L + flow·flow_loss + speed_coefficient·speed, minimised by Adam."""

    steps: Count = 5000  # optimiser steps
    batch_size: Count = 50  # samples of a step; 0: all of them, in their order, and no order is drawn
    class_weight: ClassWeight = "none"  # balanced: the samples of every class weigh as much in the loss
    lr: Annotated[Number, Field(gt=0)] = 0.002  # Adam's step size at the start
    schedule: ScheduleName = "cosine"
    shift: Count = 0  # largest random shift of images in each direction, pixels
    input_dropout: Share = 0.0  # share of the inputs set to 0 at random
    omega_decay: Coefficient = 0.0  # coefficient of half the sum of squares of omega, if edges have omega
    tbptt: Count = (
        0  # of sequences: no gradient goes from a time step that is a multiple of it to the one before; 0: all
    )
    recompute_every: Count = 0  # of sequences: time steps between the states kept for the gradient; 0: all is kept
    fine_tune: WholeShare = 0.3  # share of the steps, the last ones, in which the structure stays
    kappa: Coefficient = 0.0  # coefficient of the gradient of candidates below the cutoff; 0: training only prunes
    grow_every: Positive = 4  # steps between those with that gradient, which is multiplied by this number
    scan_every: Count = 0  # steps between searches for edges outside the candidates; 0: no search
    scan_edges: Positive = 300  # edges that a search adds
    regrowth: Regrowth = "gradient"  # how those edges are chosen
    target_edges: Count = 0  # edges to end with, reached by steering the proxy's coefficient; 0: any number
    objective: Coefficient = 1.0  # of the task's loss
    flow: Coefficient = 0.0  # of flow_loss
    speed: Speed = "time"
    time_coefficient: Coefficient = 0.1  # of the measured time, relative to the time at the start or to the budget
    time_mode: TimeMode = "train"
    time_batch: Positive = 1  # samples of a forward in time_mode "infer"
    time_every: Positive = 50  # steps between timed ones
    clock: TrainClock = "process_time"  # on CUDA, CUDA_CLOCK is used; target: that of programs in C, one sample each
    target_cc: str = CC  # of the programs: compiles and links them; split as a shell would, and run without one
    target_copy: str = ""  # runs before the next, where it is given
    target_run: str = RUN  # runs a program, whose output must arrive here
    target_timeout: Annotated[Number, Field(gt=0)] = 600.0  # s that each of these may take
    budget_us: Coefficient = 0.0  # most µs that a step may take; 0: no budget
    budget_bytes: Count = 0  # most bytes of flash of the network as a program in C; 0: no budget
    budget_dtype: ExportDtype = "float32"  # of that program
    validation: Share = 0.1  # share of the training samples, 2,000 at most, held out for budgets and early stopping
    early_stopping: bool = False  # keep the best parameters on those samples, hand them over, end without better ones
    patience: Positive = 10  # evaluations on them without improvement after which training ends
    validate_every: Count = (
        0  # steps between these evaluations; 0: an epoch, or a hundredth of the steps if that is more
    )
    max_loss: Coefficient = 2.0  # most points of validation accuracy, or of R2, that the cut to a budget may cost
    time_estimator: Estimator = "cost-model"  # source of the gradient of the measured time
    time_ablation: Ablation = "none"
    profile: Path = ""  # path of a profile to use instead of a calibration at the start
    memory_coefficient: Coefficient = 0.0  # of the bytes of a step, relative to those at the start
    proxy_coefficient: Coefficient = 0.1  # of the proxy
    speed_power: Positive = 1  # the proxy is (active / possible)**speed_power
    proxy_gradient: ProxyGradient = "straight-through"
    tau: Annotated[Number, Field(gt=0)] = 0.3  # width of a gate, in closeness
    seed: Count = 0  # of initial values, data order and omega
    log_every: Positive = 100  # steps between lines of metrics.jsonl
    checkpoint_every: Positive = 1000  # steps between checkpoints
    snapshot_every: Count = 0  # steps between snapshots of the structure; 0: a hundredth of all steps
    executor: ExecutorName = "auto"
    threads: Count = 0  # threads of the engine; 0: chosen by measurement, again and again
    device: Device = "cpu"  # cpu, cuda or cuda:N

    @model_validator(mode="after")
    def _target_edges_needs_the_proxy(self) -> TrainConfig:
        if self.target_edges and (self.speed != "proxy" or self.proxy_gradient == "none" or not self.proxy_coefficient):
            raise ValueError(
                f"target_edges={self.target_edges} is reached by the proxy: it needs speed='proxy', "
                f"proxy_gradient='straight-through' and a proxy_coefficient > 0, not speed={self.speed!r}, "
                f"proxy_gradient={self.proxy_gradient!r}, proxy_coefficient={self.proxy_coefficient!r}"
            )
        return self

    @model_validator(mode="after")
    def _a_cut_is_followed_by_training(self) -> TrainConfig:
        goals = ("budget_us", "budget_bytes", "target_edges")
        name, *others = [name for name in goals if getattr(self, name)] or goals
        if getattr(self, name) and others:
            given = " and ".join(f"{goal}={getattr(self, goal)!r}" for goal in (name, *others))
            raise ValueError(f"{given} say what the network is to end with: give one of them")
        if getattr(self, name) and not self.fine_tune:
            raise ValueError(
                f"{name}={getattr(self, name)!r} cuts the network, and fine_tune=0 leaves no steps to train what is "
                "left; give a share such as fine_tune=0.3"
            )
        return self

    @model_validator(mode="after")
    def _budget_and_profile_need_measured_time(self) -> TrainConfig:
        if self.speed != "time" and (self.budget_us or self.profile):
            given = "budget_us" if self.budget_us else "profile"
            raise ValueError(f"{given}={getattr(self, given)!r} needs speed='time', not speed={self.speed!r}")
        return self

    @model_validator(mode="after")
    def _ablation_needs_the_cost_model(self) -> TrainConfig:
        if self.time_estimator == "spsa" and self.time_ablation != "none":
            raise ValueError(
                f"time_ablation={self.time_ablation!r} changes the cost model, which time_estimator='spsa' does not "
                "use: choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _bytes_are_steered_by_a_term(self) -> TrainConfig:
        if self.budget_bytes and not self.prunes:
            raise ValueError(
                f"budget_bytes={self.budget_bytes} steers the coefficient of a speed term: give speed='proxy' or "
                "'time', with a coefficient > 0"
            )
        if self.budget_dtype != "float32" and not self.budget_bytes:
            raise ValueError(
                f"budget_dtype={self.budget_dtype!r} is about a budget of bytes: give budget_bytes as well"
            )
        return self

    @model_validator(mode="after")
    def _a_target_has_one_way_to_measure(self) -> TrainConfig:
        for name in TARGET_FIELDS:
            value = getattr(self, name)
            if value != getattr(TrainConfig, name) and not (self.on_target or self.budget_bytes):
                raise ValueError(f"{name}={value!r} is about programs in C: it needs clock='target' or a budget_bytes")
        for name, needed in (("speed", "time"), ("time_estimator", "cost-model"), ("time_ablation", "none")):
            if self.on_target and getattr(self, name) != needed:
                raise ValueError(f"clock='target' needs {name}={needed!r}, not {getattr(self, name)!r}")
        return self

    @model_validator(mode="after")
    def _measured_time_needs_the_kernels(self) -> TrainConfig:
        if self.speed == "time" and self.executor == "torch-sparse":
            raise ValueError(
                "executor='torch-sparse' does not run the kernels that speed='time' measures; choose "
                "speed=proxy or none"
            )
        return self

    @model_validator(mode="after")
    def _kappa_needs_the_kernels(self) -> TrainConfig:
        if self.kappa and self.executor == "torch-sparse":
            raise ValueError(f"kappa={self.kappa!r} is for the kernels; with executor='torch-sparse' set kappa=0")
        return self

    @property
    def on_target(self) -> bool:
        """Whether networks are timed as programs in C, on a target."""
        return self.clock == TARGET_CLOCK

    @property
    def steps_per_snapshot(self) -> int:
        """Steps between snapshots of the structure."""
        return self.snapshot_every or max(1, self.steps // 100)

    @property
    def prunes(self) -> bool:
        """Whether a term of the loss asks for fewer edges by its gradient."""
        return bool(self.speed_coefficient) and (self.speed == "time" or self.proxy_gradient != "none")

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
        """The training settings of preset ``name`` (see `sparse_dnm.presets`), with fields replaced by ``changes``."""
        from sparse_dnm.presets import preset

        return dataclasses.replace(preset(name).train, **changes)


def parse_setting(cls: type, text: str) -> tuple[str, Any]:
    """Read ``key=value`` for a field of the dataclass ``cls``; a pair (mean, std) is written ``key=5,0.1``.

    Raises KeyError if ``cls`` has no such field, and ValueError if the value is not of its type.
    """
    key, sep, raw = text.partition("=")
    key, raw = key.strip().replace("-", "_"), raw.strip()
    if not sep or not raw:
        raise ValueError(f"setting {text!r} must be written key=value")
    kinds = get_type_hints(cls)
    if key not in kinds:
        raise KeyError(key)
    kind = kinds[key]
    try:
        if kind is int or kind is float:
            return key, kind(raw)
        if kind == tuple[float, float]:
            mean, std = raw.split(",")
            return key, (float(mean), float(std))
    except ValueError:
        expected = TYPE_RULES.get(kind, "two numbers: mean,std")
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
            legal = sorted({f.name for cls in (ManifoldConfig, TrainConfig) for f in dataclasses.fields(cls)})
            raise ValueError(f"setting {text!r} names no field; choose one of {', '.join(legal)}")
    return dataclasses.replace(manifold, **changes[0]), dataclasses.replace(train, **changes[1])


def from_dict(cls: type[C], values: dict[str, Any]) -> C:
    """Build ``cls`` from parsed JSON.  Raises ValueError naming unknown or missing fields."""
    legal = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - legal)
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(legal))}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from None
