"""What generated inputs are made of: values of all kinds, and damage to bytes and to JSON."""

from __future__ import annotations

import atexit
import copy
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    10**4,
    2**31 - 1,
    2**31,
    2**63,
    -(2**63),
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e308,
    math.inf,
    math.nan,
)
WORDS = (
    "",
    " ",
    "0",
    "1e5",
    "nan",
    "toy",
    "cpu",
    "a,b",
    "ß",
    "\0",
    "\ud800",
    "__class__",
    "../../etc",
    "5,0.1",
    "true",
)
JUNK = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=6),
    st.lists(st.sampled_from(NUMBERS[:12]), max_size=4), st.just({}), st.just({"step": 1}), st.just([[[]]]),
)  # fmt: skip
Draw = Callable[[Any], Any]


class Misread(AssertionError):
    """Something was read that was not written, or a good input was refused."""


def bad(error: ValueError, *words: str) -> None:
    """A refusal: its message must say something, and name one of ``words``."""
    said = str(error)
    if len(said) < 15 or (words and not any(word in said for word in words)):
        raise Misread(f"{type(error).__name__} says only {said!r}, and none of {words}")


@functools.lru_cache(1)
def folder() -> Path:
    """Where the files of this process's cases lie."""
    made = Path(tempfile.mkdtemp(prefix="cases-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def place(name: str) -> Path:
    """The path of a file there."""
    return folder() / name


def damaged(draw: Draw, good: bytes, most: int = 3) -> bytes:
    """Bytes cut off, changed, set to zero, put in or left out."""
    found = bytearray(good)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del found[at:]
        elif kind == 1:
            found[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 2:
            found[at : at + 512] = bytes(len(found[at : at + 512]))
        elif kind == 3:
            found[at:at] = draw(st.binary(max_size=8))
        elif kind == 4:
            del found[at : at + draw(st.integers(1, 8))]
        elif found:
            found[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(found)


def changed(draw: Draw, values: Any) -> Any:
    """JSON values with another one somewhere, or without one."""
    made = copy.deepcopy(values)
    spots = list(_spots(made))
    if not spots:
        return draw(JUNK)
    holder, key = spots[draw(st.integers(0, len(spots) - 1))]
    if draw(st.integers(0, 4)) == 0:
        del holder[key]
    else:
        holder[key] = draw(JUNK)
    return json.loads(json.dumps(made))


def _spots(values: Any, most: int = 3) -> Iterator[tuple[Any, Any]]:
    """Containers and their keys; of long lists the first few."""
    keys = list(values)[:200] if isinstance(values, dict) else range(min(len(values), most))
    for key in keys:
        yield values, key
        if isinstance(values[key], (dict, list)) and values[key]:
            yield from _spots(values[key])
