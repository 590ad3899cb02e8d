"""Lanes against numpy: whatever the mask, only its lanes are written, and they keep their order."""

import numba
import numpy as np
import pytest
from sparse_dnm.kernels import lanes, machine

N = lanes.COUNT
DTYPES = [np.float32, np.float64, np.int32]
MASKS = [0, 1, 1 << N - 1, (1 << N) - 1, 0x5555 % (1 << N), *np.random.default_rng(0).integers(0, 1 << N, 60).tolist()]


@numba.njit
def move(x, chosen, last, together, apart, stored, packed):
    mask = lanes.load(chosen, 0, lanes.first(x.size), 0) != 0
    value = lanes.load(x, 0, lanes.first(x.size), 0)
    lanes.append(together, 0, last, mask, value)
    found = lanes.count(mask)
    lanes.append(packed, 0, 0, mask, value)
    lanes.store(apart, 0, lanes.first(x.size), lanes.unpack(packed, 0, mask))
    lanes.store(stored, 0, mask, value)
    return found


@numba.njit
def pack(x, chosen, out):
    mask = lanes.load(chosen, 0, lanes.first(x.size), 0) != 0
    lanes.store(out, 0, lanes.first(lanes.count(mask)), lanes.pack(mask, lanes.load(x, 0, lanes.first(x.size), 0)))


@numba.njit
def hold(x, low, high, out):
    mask = lanes.first(x.size)
    lanes.store(out, 0, mask, lanes.hold(lanes.load(x, 0, mask, 0.0), lanes.fill(x, low), lanes.fill(x, high)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_lanes_of_the_mask_move(dtype):
    x = np.arange(1, N + 1).astype(dtype)
    for bits in MASKS:
        chosen = (bits >> np.arange(N) & 1).astype(np.int32)
        wanted = x[chosen == 1]
        for last in (len(wanted), N):
            together, apart, stored, packed = (np.full(N, -7, dtype) for _ in range(4))
            assert move(x, chosen, last, together, apart, stored, packed) == len(wanted)
            np.testing.assert_array_equal(together[: len(wanted)], wanted)
            assert (together[last:] == -7).all()
            np.testing.assert_array_equal(packed, [*wanted, *[-7] * (N - len(wanted))])
            if x.itemsize == 4:
                pack(x, chosen, packed)
                np.testing.assert_array_equal(packed, [*wanted, *[-7] * (N - len(wanted))])
            np.testing.assert_array_equal(apart, np.where(chosen, x, 0))
            np.testing.assert_array_equal(stored, np.where(chosen, x, -7))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_hold_keeps_nan_and_the_ends(dtype):
    x = np.resize(np.array([-np.inf, -2.5, -1.0, 0.0, 0.5, 2.0, np.inf, np.nan], dtype), N)
    out = np.empty_like(x)
    hold(x, dtype(-1.0), dtype(0.5), out)
    np.testing.assert_array_equal(out, np.clip(x, -1.0, 0.5))


def test_lanes_fill_a_register_of_the_machine():
    assert machine.VECTOR_BYTES in (16, 32, 64)
    assert (machine.VECTOR_BYTES == 64) == (N == 16)
    assert machine.REGISTERS == 32 or not machine.MASKS
