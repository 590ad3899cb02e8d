"""Buffers that are reused: writing to new memory from the system costs a page fault for every 4 KiB."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CACHE_LINE = 64  # bytes; a vector that straddles two lines is loaded twice
SMALL = 2**13  # bytes; for less, looking for memory takes longer than it saves
KEPT = 16  # unused pieces of memory that a pool keeps
BIG = 2**20  # bytes; pieces of this size the C library gives back to the system


class _Loan(weakref.ref[Any]):
    """Notices when an array and all its views are gone."""

    memory: memoryview


def _aligned_memory(size: int) -> memoryview:
    """At least ``size`` bytes that start at a cache line."""
    memory = np.empty(size + CACHE_LINE, np.uint8)
    return memory[-memory.ctypes.data % CACHE_LINE :].data


def footprint(size: int, aligned: bool = False) -> int:
    """Bytes that a new array of ``size`` bytes takes from `BufferPool.aligned`, or else from `BufferPool.empty`."""
    return size if size <= (SMALL if aligned else BIG - 1) else size + size // 8 + CACHE_LINE


class BufferPool:
    """Uninitialised 1-D arrays whose memory is reused once an array and all its views are gone.

    Unused memory is given to arrays of at least half its size.  At most KEPT unused pieces are kept, the latest, so
    that a pool never holds much more than was in use at once.
    """

    def __init__(self) -> None:
        self._idle: dict[int, memoryview] = {}
        self._loans: dict[int, _Loan] = {}
        this = weakref.ref(self)

        def back(loan: _Loan) -> None:
            pool = this()
            if pool is not None:
                pool._loans.pop(id(loan), None)
                pool._idle[id(loan.memory)] = loan.memory
                for key in [*pool._idle.copy()][:-KEPT]:
                    pool._idle.pop(key, None)

        self._back = back

    def empty(self, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array of ``size`` numbers; small ones are not pooled."""
        dtype = np.dtype(dtype)
        return self.aligned(size, dtype) if size * dtype.itemsize >= BIG else np.empty(size, dtype)

    def aligned(self, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array of ``size`` numbers that starts at a cache line; one of a few lines may start anywhere."""
        dtype = np.dtype(dtype)
        need = size * dtype.itemsize
        if need <= SMALL:
            return np.empty(size, dtype)
        # Garbage collection or another thread may change the dict at any time: search a copy, and skip what another
        # thread has taken meanwhile.
        idle = self._idle.copy()
        fits = [(memory.nbytes, key) for key, memory in idle.items() if need <= memory.nbytes <= 2 * need]
        memory = self._idle.pop(min(fits)[1], None) if fits else None
        if memory is None:
            memory = _aligned_memory(need + need // 8)
        # The base of a view is the array that it was taken of, unless that is itself based on an array.
        array = np.frombuffer(memory, dtype, size)
        loan = _Loan(array, self._back)
        loan.memory = memory
        self._loans[id(loan)] = loan
        return array

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return BufferPool, ()  # a copy starts empty
