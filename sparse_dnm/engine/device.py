"""Which kernels run, and on how many threads.  The only importer of sparse_dnm.kernels."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from sparse_dnm.checks import INSTALL_CUDA, MissingPackageError
from sparse_dnm.engine.cuda_launch import Launcher
from sparse_dnm.engine.threads import check_threads, threads_here, use_threads
from sparse_dnm.fields import check_device
from sparse_dnm.kernels import cpu, jit
from sparse_dnm.kernels.cpu_propagate import LEAKY, LOGISTIC, SILU, TANH
from sparse_dnm.kernels.interrupts import Uninterrupted

__all__ = ["Uninterrupted", "check_threads", "threads_here", "use_threads"]  # passed on

# activation -> kind and slope below zero, as the kernels code them
ACTIVATION_CODES = {
    "leaky_relu": (LEAKY, 0.2),
    "relu": (LEAKY, 0.0),
    "identity": (LEAKY, 1.0),
    "sigmoid": (LOGISTIC, 0.0),
    "tanh": (TANH, 0.0),
    "silu": (SILU, 0.0),
}


SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"  # CUDA kernels run in Python, on tensors of the CPU


def kernels(device: torch.device) -> Any:
    """The kernels of a device.  Raises ValueError if it has none."""
    if device.type == "cpu":
        return cpu
    if device.type != "cuda":
        raise ValueError(f"device {str(device)!r} has no kernels; move the model and its input to 'cpu' or 'cuda'")
    try:
        from sparse_dnm.kernels import cuda

        usable = _cuda_usable()
    except ImportError as error:
        raise MissingPackageError(
            f"device {str(device)!r} needs numba's CUDA target ({error}); {INSTALL_CUDA}"
        ) from None
    except AttributeError as error:  # it uses what newer releases of others no longer have
        raise MissingPackageError(
            f"numba's CUDA target does not work with numpy {np.__version__} ({error}); install the versions of "
            "constraints.txt, or move the model and its input to 'cpu'"
        ) from None
    if not usable:
        raise MissingPackageError(
            f"device {str(device)!r} needs NVIDIA's driver and compiler (NVVM), and numba did not find both; "
            f"{INSTALL_CUDA}"
        )
    return cuda


def cuda_kernels() -> Any:
    """The CUDA kernels."""
    return kernels(torch.device("cuda"))


@functools.cache
def _cuda_usable() -> bool:
    """Numba can compile for CUDA and run what it compiled."""
    from numba import cuda

    if not SIMULATED and cuda.is_available():
        cuda.compile_ptx(_nothing, ())  # loads all of it: until then it may be broken
    return SIMULATED or bool(cuda.is_available())


def _nothing() -> None:
    """What is compiled to see whether the compiler works."""


def on_cuda(device: torch.device) -> bool:
    """This device runs the CUDA kernels."""
    return device.type == "cuda"


def device_of(name: str) -> torch.device:
    """The device of this name: cpu, cuda or cuda:N.

    Raises ValueError if it does not exist, and MissingPackageError if numba's CUDA target is missing.
    """
    device = torch.device(check_device(name))
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        why = "finds no GPU" if torch.backends.cuda.is_built() else "is built for the CPU only"
        raise ValueError(
            f"device={name!r} was asked for, but torch {torch.__version__} {why}; choose device cpu, or install a "
            "build of torch for CUDA and NVIDIA's driver"
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ValueError(f"device={name!r} was asked for, but there are only cuda:0 to cuda:{count - 1}")
    kernels(device)
    return torch.device("cuda", device.index or 0)


def launch(kernel: Any, blocks: int, threads: int | tuple[int, int], *arguments: Any) -> None:
    """Start a CUDA kernel on contiguous tensors, without copies, on torch's current stream of their device."""
    for a in arguments:
        if isinstance(a, torch.Tensor) and not a.is_contiguous():
            raise ValueError(f"a kernel was given a tensor of shape {tuple(a.shape)} that is not contiguous")
    if SIMULATED:
        kernel[blocks, threads](*(a.detach().numpy() if isinstance(a, torch.Tensor) else a for a in arguments))
        return
    _launcher().launch(kernel, blocks, threads, arguments)


@functools.cache
def _launcher() -> Launcher:
    return Launcher()


def mark(device: torch.device) -> Any:
    """An event in torch's current stream on a CUDA device, for `between`."""
    if SIMULATED:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def between(start: Any, end: Any) -> float:
    """Seconds of the device between two marks; waits until it has reached the second."""
    if SIMULATED:
        return float(end - start)
    end.synchronize()
    return float(1e-3 * start.elapsed_time(end))


LAUNCHES = 10_000_000  # cycles, some 5 ms: the launches of a step from Python take less


def keep_busy(device: torch.device, steps: int = 1) -> None:
    """Keep a CUDA device waiting while so many steps are launched, so that marks time the device, not the launches."""
    if not SIMULATED:
        with torch.cuda.device(device):
            torch.cuda._sleep(LAUNCHES * steps)


def resident(device: torch.device) -> int:
    """Blocks of one warp that a CUDA device certainly runs at once: 8 per multiprocessor, a quarter of its limit."""
    return 1 if SIMULATED else 8 * torch.cuda.get_device_properties(device).multi_processor_count


class DeviceMemoryError(torch.OutOfMemoryError, MemoryError):
    """Something did not fit a device's memory; the message says what, and what to do."""


@contextlib.contextmanager
def watching_compilation(tell: Callable[[str], None], waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Inside ``with``, ``tell`` is called with the name of every kernel of the CPU that is about to be compiled, and
    ``waiting`` with that of one which another process compiles, before it is waited for."""
    waiting = waiting or (lambda kernel: None)
    jit.when_compiling.append(tell)
    jit.when_waiting.append(waiting)
    try:
        yield
    finally:
        jit.when_compiling.remove(tell)
        jit.when_waiting.remove(waiting)


def count_up(number: torch.Tensor) -> None:
    """Add 1 to a number, in place."""
    if number.is_cuda:
        number.add_(1)
    else:
        number.numpy()[()] += 1  # ten times as fast as add_


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
