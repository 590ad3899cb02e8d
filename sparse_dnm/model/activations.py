"""Activations of the neurons of a SparseDAG as text: one name for all, or runs of names, ``"tanh*3 leaky_relu(0.01)"``.

Text, because operators of torch take it as an argument and a state_dict holds it as bytes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.config import ACTIVATIONS
from sparse_dnm.engine.device import ACTIVATION_CODES
from sparse_dnm.engine.topology import Topology

SLOPED = re.compile(r"leaky_relu\(([^()]+)\)")
NAMES = {code: name for name, code in ACTIVATION_CODES.items()}


def code_of(name: str) -> tuple[int, float]:
    """Kind and slope below zero of an activation, as the kernels code them.  Raises ValueError if it is unknown."""
    found = ACTIVATION_CODES.get(name) if isinstance(name, str) else None
    sloped = SLOPED.fullmatch(name) if isinstance(name, str) else None
    if found is None and sloped:
        try:
            slope = float(sloped[1])
        except ValueError:
            slope = math.nan
        found = (ACTIVATION_CODES["leaky_relu"][0], slope) if math.isfinite(slope) else None
    if found is None:
        raise ValueError(
            f"activation={name!r} is unknown; choose one of {', '.join(ACTIVATIONS)}, or leaky_relu(SLOPE) with the "
            "slope below zero"
        )
    return found


def leaky(slope: float) -> str:
    """The name of a leaky ReLU with this slope below zero."""
    code = ACTIVATION_CODES["leaky_relu"][0], float(slope)
    return NAMES.get(code, f"leaky_relu({float(slope)!r})")


def _canonical(name: str) -> str:
    """The shortest name of an activation."""
    code = code_of(name)
    return NAMES.get(code) or leaky(code[1])


def _runs(text: str) -> list[tuple[str, int]]:
    """Names and how many neurons each is for, of a text of runs."""
    found = []
    for run in text.split():
        name, _, count = run.partition("*")
        if count and not count.isdecimal():
            raise ValueError(f"activation={text!r}: {run!r} must be NAME*COUNT")
        found.append((name, int(count or 1)))
    return found


def spelled(activation: str | Sequence[str], topology: Topology, input_neurons: bool) -> str:
    """The text of the activations of a topology's neurons, the shortest of those that mean the same.

    ``activation`` is one name for all, a name for each of the neurons, or such a text.  Names of neurons whose
    activation nobody reads, and of inputs that pass their value on, mean nothing.
    Raises ValueError if a name is unknown, or if they are not as many as the neurons.
    """
    if isinstance(activation, str):
        if "*" not in activation and " " not in activation.strip():
            return _canonical(activation)
        names = [name for name, count in _runs(activation) for _ in range(count)]
    else:
        names = list(activation)
    n = topology.n_neurons
    if len(names) != n:
        raise ValueError(f"activation has {len(names)} names; give one for all, or one for each of the {n} neurons")
    short: dict[str, str] = {}
    names = [short[name] if name in short else short.setdefault(name, _canonical(name)) for name in names]
    counts = np.zeros(n, np.bool_)
    counts[topology.indices] = True
    if not input_neurons:
        counts[topology.inputs] = False
    places = np.flatnonzero(counts)
    if len(places) == 0:
        own = np.setdiff1d(np.arange(n), [] if input_neurons else topology.inputs)
        return names[own[0]] if len(own) else names[0]
    if len({names[k] for k in places}) == 1:
        return names[places[0]]
    before = np.maximum.accumulate(np.where(counts, np.arange(n), -1))  # the last neuron that counts
    before[before < 0] = places[0]
    runs = [(name, len(list(group))) for name, group in itertools.groupby(names[k] for k in before.tolist())]
    return " ".join(name if count == 1 else f"{name}*{count}" for name, count in runs)


def names_of(text: str, n: int) -> list[str]:
    """The activation of each of the n neurons of a text that `spelled` made."""
    if text in ACTIVATIONS or SLOPED.fullmatch(text):
        return [text] * n
    return [name for name, count in _runs(text) for _ in range(count)]


def codes_of(text: str, n: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Kind and slope of each of the n neurons of a text that `spelled` made."""
    runs = [(text, n)] if text in ACTIVATIONS or SLOPED.fullmatch(text) else _runs(text)
    counts = [count for _, count in runs]
    kinds, slopes = zip(*(code_of(name) for name, _ in runs), strict=True)
    return np.repeat(np.array(kinds, np.int8), counts), np.repeat(np.array(slopes, np.float64), counts)


def as_bytes(text: str) -> torch.Tensor:
    """A text as a tensor, for a state_dict."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")


def of_bytes(tensor: Any) -> str:
    """The text of such a tensor."""
    return bytes(tensor.tolist()).decode(errors="replace")
