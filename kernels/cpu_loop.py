"""What a loop of one's own needs between the passes: whether numbers have changed, numbers from and to slots.

A call into torch or numpy for each of them costs more than the passes over a small network.
"""

import numpy as np
from numba import types
from numba.extending import intrinsic
from sparse_dnm.kernels.jit import inner, kernel

BLOCK = 512  # words that are compared before one looks at the result


@intrinsic
def _words_at(typingctx, address):
    """The uint32 numbers in memory from an address on."""
    pointer = types.CPointer(types.uint32)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64), codegen


@inner
def _differs(words, copy, at, size):
    """Does one of ``size`` words differ from those of the copy from ``at`` on?"""
    first = np.int64(0)
    while first < size:
        last, found = min(first + BLOCK, size), np.uint32(0)
        for k in range(first, last):
            found |= words[k] ^ copy[at + k]
        if found != 0:
            return True
        first = last
    return False


@kernel
def same_words(addresses, sizes, copy):
    """Do the words at the ``addresses`` int64 (n,), ``sizes`` of them each, equal those of ``copy``, at an address?"""
    words, at = _words_at(copy), np.int64(0)
    for k in range(addresses.size):
        if _differs(_words_at(addresses[k]), words, at, sizes[k]):
            return False
        at += sizes[k]
    return True


@kernel
def copy_words(addresses, sizes, copy):
    """Write those words into ``copy``."""
    at = 0
    for k in range(addresses.size):
        words = _words_at(addresses[k])
        for i in range(sizes[k]):
            copy[at + i] = words[i]
        at += sizes[k]


@kernel
def gather(numbers, slots, out):
    """out[k] = numbers[slots[k]]"""
    for k in range(slots.size):
        out[k] = numbers[slots[k]]


@kernel
def scatter(numbers, slots, out):
    """out[slots[k]] = numbers[k], and 0 elsewhere; a slot below 0 is none."""
    out[:] = 0
    for k in range(slots.size):
        if slots[k] >= 0:
            out[slots[k]] = numbers[k]


__all__ = ["copy_words", "gather", "same_words", "scatter"]
