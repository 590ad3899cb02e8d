"""Kernel calls of the engine, recorded and run again: what the kernels alone cost, whatever their arguments are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numba
import numpy as np

from sparse_dnm.engine import candidates, schedule, topology
from sparse_dnm.engine import cpu as plan
from sparse_dnm.engine.buffers import CACHE_LINE
from sparse_dnm.engine.device import use_threads
from sparse_dnm.train import step as descent

MODULES = (candidates, topology, schedule, plan, descent)


@dataclass(frozen=True)
class Call:
    """One call of a kernel, with the threads that it ran on.

    Its arrays are copies, taken before the call: the engine's own change as training goes on, and kernels that trust
    their arguments would then write more than their outputs hold.
    """

    name: str
    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]
    threads: int

    def __call__(self) -> object:
        """Run it again on the same arrays."""
        with use_threads(self.threads):
            return self.kernel(*self.arguments)


def _copy(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a cache line, as the engine's buffers do."""
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
            copies = tuple(_copy(a) if isinstance(a, np.ndarray) else a for a in arguments)
            self._calls.append(Call(name, kernel, copies, numba.get_num_threads()))
            return kernel(*arguments)

        return recorded

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        if name == "make":
            return lambda count: tuple(map(self._wrap, ("forward", "backward"), found(count)))
        return self._wrap(name, found) if callable(found) else found


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """Note the kernel calls made inside, in their order."""
    calls: list[Call] = []
    before = {module: module.KERNELS for module in MODULES}
    for module, kernels in before.items():
        module.KERNELS = _Recorder(kernels, calls)  # type: ignore[attr-defined]
    try:
        yield calls
    finally:
        for module, kernels in before.items():
            module.KERNELS = kernels  # type: ignore[attr-defined]


def replay(calls: list[Call]) -> Callable[[], None]:
    """A function that runs ``calls`` again, in their order."""

    def run() -> None:
        for call in calls:
            call()

    return run
