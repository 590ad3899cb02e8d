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
        if not isinstance(dtype, np.dtype):
            dtype = np.dtype(dtype)
        need = size * dtype.itemsize
        if need <= SMALL:
            return np.empty(size, dtype)
        new = need + need // 8
        # Garbage collection, or another thread, may change the dict at any time: a copy is looked through, and what
        # somebody else has taken meanwhile is not there any more.
        best, found = 2 * need + 1, None
        for key, piece in self._idle.copy().items():
            if need <= piece.nbytes < best:
                best, found = piece.nbytes, key
                if best == new:  # what was made for an array of this size
                    break
        memory = None if found is None else self._idle.pop(found, None)
        if memory is None:
            memory = _aligned_memory(new)
        # The base of a view is the array that it was first taken of, unless that stands on an array in its turn.
        array = np.frombuffer(memory, dtype, size)
        loan = _Loan(array, self._back)
        loan.memory = memory
        self._loans[id(loan)] = loan
        return array

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return BufferPool, ()  # a copy starts empty
