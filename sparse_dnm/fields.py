"""Types of the fields of settings, and errors about them in one line.

A bound's error reads "must be NOUN >= BOUND"; the noun is the field's description.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import os
import re
from numbers import Real
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationError
from pydantic_core import PydanticCustomError


def check_device(name: str) -> str:
    """``name`` if kernels exist for such a device, whether or not it is present.  Raises ValueError otherwise."""
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ValueError(f"device={name!r} has no kernels; choose cpu, cuda or cuda:N")
    return name


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

TYPE_RULES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
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


def one_line_errors(cls: type[Any]) -> type[Any]:
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
