"""Launches of numba's CUDA kernels on torch's tensors and current stream, without numba's work at every call.

numba examines every argument and makes seven or more objects of each array at each launch: some 0.5 ms for twenty
arrays.  The first launch with new types of arguments goes through numba, which compiles; later ones write the same
parameters into a buffer and call the driver's cuLaunchKernel.  Where numba or the driver is not as expected, all
launches go through numba.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
import threading
from typing import Any

import numpy as np
import torch

FORMATS = {bool: "?7x", int: "q", float: "d"}  # of scalars in eight bytes, as numba passes them
WRONG_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: this thread has not used the device yet


class DeviceMemory:
    """Contiguous memory of a device by the CUDA array interface (version 2); it keeps no tensor alive."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: torch.dtype):
        name = str(dtype).removeprefix("torch.")
        about = {"shape": tuple(shape), "typestr": np.dtype(name).str, "data": (pointer, False), "version": 2}
        self.__cuda_array_interface__ = about


@functools.lru_cache(maxsize=4096)
def _array_at(device: int, pointer: int, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Numba's array of that memory; cached, because making one is slow and torch reuses the same addresses."""
    from numba import cuda

    return cuda.as_cuda_array(DeviceMemory(pointer, shape, dtype), sync=False)


class _Prepared:
    """A compiled kernel for one list of types: its handle, and a buffer for its parameters.

    An array is passed as seven or more numbers: two empty references, elements, bytes of an element, address, shape
    and strides.
    """

    def __init__(self, handle: int, keys: tuple[Any, ...], driver: ctypes.CDLL):
        self._handle, self._driver = ctypes.c_void_p(handle), driver
        layout = "".join(FORMATS[key] if isinstance(key, type) else "q" * (5 + 2 * key[1]) for key in keys)
        self._struct = struct.Struct("=" + layout)
        count = self._struct.size // 8
        self._buffer = ctypes.create_string_buffer(self._struct.size)
        first = ctypes.addressof(self._buffer)
        self._lock = threading.Lock()  # the buffer is one launch's until the driver has read it
        self._places = (ctypes.c_void_p * count)(*(first + 8 * k for k in range(count)))

    def launch(self, grid: int, block: tuple[int, int], stream: int, arguments: tuple[Any, ...]) -> int:
        """Launch it; the driver copies the parameters before it returns.  Returns the driver's error, 0: none."""
        values: list[Any] = []
        for a in arguments:
            if isinstance(a, torch.Tensor):
                size = a.element_size()
                values += (0, 0, a.numel(), size, a.data_ptr())
                if a.ndim == 1:
                    values += (a.numel(), size)
                else:
                    values += a.shape
                    values += (size * s for s in a.stride())
            else:
                values.append(a)
        with self._lock:
            self._struct.pack_into(self._buffer, 0, *values)
            found: int = self._driver.cuLaunchKernel(
                self._handle, grid, 1, 1, block[0], block[1], 1, 0, stream, self._places, None
            )
        return found


class Launcher:
    """Launches kernels on contiguous tensors of CUDA devices."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[Any, ...], _Prepared | None] = {}  # None: numba launches it
        self._streams: dict[tuple[int, int], Any] = {}  # torch's streams as numba's objects

    def launch(self, kernel: Any, blocks: int, threads: int | tuple[int, int], arguments: tuple[Any, ...]) -> None:
        """Start ``kernel`` on torch's current stream of the device of its arguments."""
        device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
        number, stream = device.index or 0, torch.cuda.current_stream(device).cuda_stream
        keys = tuple([(a.dtype, a.ndim) if isinstance(a, torch.Tensor) else type(a) for a in arguments])
        known = (kernel, number, keys)
        prepared = self._prepared.get(known)
        if prepared is not None:
            block = threads if isinstance(threads, tuple) else (threads, 1)
            if torch.cuda.current_device() == number:
                error = prepared.launch(blocks, block, stream, arguments)
            else:
                with torch.cuda.device(number):
                    error = prepared.launch(blocks, block, stream, arguments)
            if error == 0:
                return
            if error != WRONG_CONTEXT:
                raise RuntimeError(f"the driver's cuLaunchKernel failed with error {error} for kernel {kernel}")
        self._by_numba(kernel, blocks, threads, number, stream, arguments)
        if known not in self._prepared:
            self._prepared[known] = self._prepare(kernel, number, keys, arguments)

    def _by_numba(
        self, kernel: Any, blocks: int, threads: int | tuple[int, int], number: int, stream: int, arguments: Any
    ) -> None:
        from numba import cuda

        with cuda.gpus[number]:
            place = number, stream
            if place not in self._streams:
                self._streams[place] = cuda.external_stream(stream)
            stream_of_numba = self._streams[place]  # numba tracks launches by this object
            kernel[blocks, threads, stream_of_numba](*_arrays(number, arguments))

    @staticmethod
    def _prepare(kernel: Any, number: int, keys: tuple[Any, ...], arguments: tuple[Any, ...]) -> _Prepared | None:
        """The kernel that numba has just compiled and launched; None where it cannot be launched without numba."""
        from numba import cuda

        driver = _driver()
        if driver is None or not all(isinstance(key, tuple) or key in FORMATS for key in keys):
            return None
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError), cuda.gpus[number]:
            types = tuple(kernel.typeof_pyval(a) for a in _arrays(number, arguments))
            handle = kernel.overloads[types]._codelibrary.get_cufunc().handle
            return _Prepared(int(getattr(handle, "value", handle)), keys, driver)
        return None


def _arrays(number: int, arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments as numba takes them."""
    return [_array_at(number, a.data_ptr(), a.shape, a.dtype) if isinstance(a, torch.Tensor) else a for a in arguments]


@functools.cache
def _driver() -> ctypes.CDLL | None:
    """NVIDIA's driver; None where it is not found under its usual names."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError):
            driver = ctypes.CDLL(name)
            numbers = [ctypes.c_uint] * 7
            pointers = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p
            driver.cuLaunchKernel.argtypes = [ctypes.c_void_p, *numbers, *pointers]
            return driver
    return None
