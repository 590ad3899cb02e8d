"""Kernel calls of the engine, recorded and run again: what the kernels alone cost, whatever their arguments are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numba
import numpy as np
import torch

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.buffers import CACHE_LINE
from sparse_dnm.engine.device import use_threads


def _callers() -> list[Any]:
    """The modules that call the CPU's kernels by the name KERNELS."""
    kernels = backend.kernels(torch.device("cpu"))
    loaded = [module for name, module in sys.modules.items() if name.startswith("sparse_dnm.")]
    return [module for module in loaded if getattr(module, "KERNELS", None) is kernels]


@dataclass(frozen=True)
class Call:
    """One call of a kernel, with the threads that it ran on.

    Its arrays are copies, taken before the call: the engine's own change during training, and kernels do not
    check their arguments: they would write beyond their outputs.
    """

    name: str
    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]
    threads: int

    def __call__(self) -> object:
        """Run it again on the same arrays."""
        with use_threads(self.threads):
            return self.kernel(*self.arguments)


def _copy(argument: Any) -> Any:
    """A copy of an array, or of all in a tuple, that starts at a cache line, as the engine's buffers do."""
    if isinstance(argument, tuple):
        copies = map(_copy, argument)
        return type(argument)(*copies) if hasattr(argument, "_fields") else tuple(copies)
    if not isinstance(argument, np.ndarray):
        return argument
    array = argument
    memory = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE
    out = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


class _Recorder:
    """Stands in for a module of kernels and notes every call; ``make`` hands out recording kernels."""

    def __init__(self, kernels: ModuleType, calls: list[Call]):
        self._kernels, self._calls = kernels, calls

    def _wrap(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            self._calls.append(Call(name, kernel, _copy(arguments), numba.get_num_threads()))
            return kernel(*arguments)

        return recorded

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        if name == "make":
            return lambda count: tuple(map(self._wrap, ("forward", "backward"), found(count)))
        return self._wrap(name, found) if callable(found) else found


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """Note the kernel calls made in the block, in their order."""
    calls: list[Call] = []
    modules = _callers()
    kernels = backend.kernels(torch.device("cpu"))
    for module in modules:
        module.KERNELS = _Recorder(kernels, calls)
    try:
        yield calls
    finally:
        for module in modules:
            module.KERNELS = kernels


def replay(calls: list[Call]) -> Callable[[], None]:
    """A function that runs ``calls`` again, in their order."""

    def run() -> None:
        for call in calls:
            call()

    return run
