"""Settings: frozen dataclasses whose fields carry their own bounds, and their text form (JSON, ``key=value``)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import operator
import os
import re
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from dataclasses import dataclass  # for mypy: dataclasses.replace and fields accept pydantic's dataclasses
else:
    from pydantic.dataclasses import dataclass

Activation = Literal["leaky_relu", "relu", "sigmoid", "tanh", "silu", "identity"]
EdgeMode = Literal["closeness", "free", "free-closeness", "weighted"]
Output = Literal["linear", "square"]
Speed = Literal["none", "proxy", "time"]
TimeMode = Literal["train", "infer"]  # forward + backward, or forward alone
ClockName = Literal["process_time", "perf_counter", "thread_time"]
Estimator = Literal["cost-model", "spsa"]
Regrowth = Literal["gradient", "random"]
Ablation = Literal["none", "no-refit", "edges-only", "shuffled"]
ProxyGradient = Literal["straight-through", "none"]
ScheduleName = Literal["constant", "cosine"]
ExecutorName = Literal["auto", "columns", "wavefront", "blocks", "fastest", "torch-sparse"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
EDGE_MODES: tuple[str, ...] = get_args(EdgeMode)
OMEGA_IN_CLOSENESS = ("free", "free-closeness")  # edge modes whose closeness has the factor omega
OUTPUTS: tuple[str, ...] = get_args(Output)
SPEEDS: tuple[str, ...] = get_args(Speed)
TIME_MODES: tuple[str, ...] = get_args(TimeMode)
CLOCKS: tuple[str, ...] = get_args(ClockName)
CUDA_CLOCK = "cuda_event"  # the only clock on CUDA
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


def check_device(name: str) -> str:
    """``name`` if kernels exist for such a device, whether or not it is present.  Raises ValueError otherwise."""
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ValueError(f"device={name!r} has no kernels; choose cpu, cuda or cuda:N")
    return name


def check_choice(name: str, value: object, legal: tuple[str, ...]) -> None:
    """Raise ValueError listing the legal values unless ``value`` is one of them."""
    if value not in legal:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(legal)}")


# -- types of fields: a bound's error reads "must be NOUN >= BOUND", the noun is the field's description -------------


def _plain(value: Any) -> object:
    """A number of numpy or another library as Python's int or float; a boolean is refused."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
        if isinstance(value, Real):
            with contextlib.suppress(OverflowError):
                return float(value)
    raise PydanticCustomError("not_a_number", "not a number")


def _path(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Integer = Annotated[int, BeforeValidator(_plain), Strict()]
Number = Annotated[float, BeforeValidator(_plain), Strict(), Field(allow_inf_nan=False)]
Positive = Annotated[Integer, Field(ge=1)]
Count = Annotated[Integer, Field(ge=0)]
Coefficient = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, lt=1, description="a share")]
WholeShare = Annotated[Number, Field(ge=0, le=1, description="a share")]
Normal = tuple[Number, Coefficient]  # mean and standard deviation of a normal distribution
Device = Annotated[str, BeforeValidator(str), AfterValidator(check_device)]
Path = Annotated[str, BeforeValidator(_path)]

TYPE_RULES = {int: "an integer", float: "a number", str: "a string"}
PAIR_RULE = "a pair of numbers: mean, standard deviation"
NORMAL_RULE = "finite with a standard deviation >= 0"
BOUNDS = {"ge": ">=", "gt": ">", "lt": "<", "le": "<="}
BOUND_ERRORS = ("finite_number", "greater_than_equal", "greater_than", "less_than", "less_than_equal")


def _line(cls: Any, values: dict[str, Any], error: ValidationError) -> str:
    """The first error of a config as one line: the field, its value and the rule."""
    first = error.errors(include_url=False)[0]
    kind, place = first["type"], first["loc"]
    if kind == "value_error":  # raised by this module
        return str(first["ctx"]["error"])
    name = str(place[0])
    field, annotation = cls.__pydantic_fields__[name], get_type_hints(cls)[name]
    start = f"{name}={values[name]!r}"
    if kind == "literal_error":
        return f"{start} is unknown; choose one of {', '.join(get_args(annotation))}"
    if annotation not in TYPE_RULES:
        return f"{start} must be {NORMAL_RULE if kind in BOUND_ERRORS else PAIR_RULE}"
    if kind not in BOUND_ERRORS:
        return f"{start} must be {TYPE_RULES[annotation]}"
    bounds = [f"{BOUNDS[key]} {getattr(m, key)}" for m in field.metadata for key in BOUNDS if hasattr(m, key)]
    noun = field.description or ("an integer" if annotation is int else "a finite number")
    return f"{start} must be {' '.join([noun, ' and '.join(bounds)]).strip()}"


def _one_line_errors(cls: type[Any]) -> type[Any]:
    """Make a pydantic dataclass raise ValueError with one line (see `_line`) instead of ValidationError."""
    init, signature = cls.__init__, inspect.signature(cls)

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        values = signature.bind(*args, **kwargs).arguments  # a missing or unknown name is a TypeError, as in Python
        try:
            init(self, **values)
        except ValidationError as error:
            raise ValueError(_line(cls, values, error)) from None

    cls.__init__ = checked
    return cls


@_one_line_errors
@dataclass(frozen=True)
class ManifoldConfig:
    """Shape and initial distribution of a Dynamic Neural Manifold.

    Neurons are numbered inputs first, then hidden, then outputs.  Initial values of the raw scalars are normal
    with the (mean, standard deviation) given here.  In ``edges="free"`` beta, gamma, theta and phi do not exist, in
    ``edges="closeness"`` omega does not.
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

    @model_validator(mode="after")
    def _leaves_hidden_neurons(self) -> ManifoldConfig:
        if self.n_inputs + self.n_outputs >= self.n_neurons:
            raise ValueError(
                f"n_inputs + n_outputs = {self.n_inputs} + {self.n_outputs} leaves no hidden neuron in "
                f"n_neurons={self.n_neurons}; give n_neurons >= {self.n_inputs + self.n_outputs + 1}"
            )
        return self

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
        """The preset ``name`` (see `sparse_dnm.presets`), with fields replaced by ``changes``."""
        from sparse_dnm.presets import preset

        return dataclasses.replace(preset(name).manifold, **changes)

    @staticmethod
    def for_data(n_inputs: int, n_outputs: int, period: float | None = None, **changes: Any) -> ManifoldConfig:
        """Free edges sized for a table of ``n_inputs`` columns, with windows in which a row reaches all sources."""
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


@_one_line_errors
@dataclass(frozen=True)
class TrainConfig:
    """How to train: loss = objective·L + flow·flow_loss + speed_coefficient·speed, minimised by Adam."""

    steps: Count = 5000  # optimiser steps
    batch_size: Positive = 50  # samples
    lr: Annotated[Number, Field(gt=0)] = 0.002  # Adam's step size at the start
    schedule: ScheduleName = "cosine"
    shift: Count = 0  # largest random shift of images in each direction, pixels
    input_dropout: Share = 0.0  # share of the inputs set to 0 at random
    omega_decay: Coefficient = 0.0  # coefficient of half the sum of squares of omega, if edges have omega
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
    clock: ClockName = "process_time"  # on CUDA, CUDA_CLOCK is used
    budget_us: Coefficient = 0.0  # most µs that a step may take; 0: no budget
    validation: Share = 0.1  # share of the training samples, 2,000 at most, held out to judge the cut to a budget
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
        name = "budget_us" if self.budget_us else "target_edges"
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
