"""Buffers that are used again: big arrays fresh from the system cost a page fault for every 4 KiB written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CACHE_LINE = 64  # bytes; a vector that straddles two lines is loaded twice
KEPT = 8  # arrays that a pool holds while nobody uses them


class BufferPool:
    """Uninitialised 1-D arrays that start at a cache line, handed out through leases and taken back when those go.

    At most KEPT idle arrays are held, the latest; so a pool never holds much more than was in use at once.
    """

    def __init__(self) -> None:
        self._idle: list[NDArray[Any]] = []

    def lease(self, dtype: DTypeLike, *sizes: int) -> Lease:
        """Arrays of the given sizes, as long as the lease lives."""
        return Lease(self, [self._take(np.dtype(dtype), size) for size in sizes])

    def _take(self, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
        for k, array in enumerate(self._idle):
            if array.size == size and array.dtype == dtype:
                return self._idle.pop(k)
        spare = CACHE_LINE // dtype.itemsize
        memory = np.empty(size + spare, dtype)
        first = -memory.ctypes.data % CACHE_LINE // dtype.itemsize
        return memory[first : first + size]

    def give_back(self, arrays: list[NDArray[Any]]) -> None:
        """Hold ``arrays`` for the next lease; the oldest ones go."""
        self._idle = (self._idle + arrays)[-KEPT:]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return BufferPool, ()  # a copy starts empty


class Lease:
    """Arrays on loan from a pool; they go back when the last reference to the lease does."""

    def __init__(self, pool: BufferPool, arrays: list[NDArray[Any]]) -> None:
        self.pool, self.arrays = pool, arrays

    def __del__(self) -> None:
        self.pool.give_back(self.arrays)
