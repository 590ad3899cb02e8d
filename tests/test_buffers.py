"""The pool of buffers."""

import copy
import gc
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

from sparse_dnm import DynamicManifold, ManifoldConfig
from sparse_dnm.engine.buffers import BIG, CACHE_LINE, KEPT, BufferPool


def test_memory_is_used_again_once_nobody_has_it():
    pool = BufferPool()
    first = pool.aligned(3000, np.float32)
    address = first.ctypes.data
    second = pool.aligned(3000, np.float32)
    assert second.ctypes.data != address
    del first
    third = pool.aligned(2900, np.float32)
    assert third.ctypes.data == address
    assert pool.aligned(3000, np.float64).dtype == np.float64


@pytest.mark.parametrize("view", [lambda a: a[3:], lambda a: a[3:][4:].reshape(2, -1), torch.from_numpy, memoryview])
def test_a_view_keeps_the_memory(view):
    pool = BufferPool()
    kept = view(pool.aligned(3001, np.float32))
    gc.collect()
    assert len(pool._idle) == 0
    del kept
    assert len(pool._idle) == 1


def test_arrays_start_at_a_cache_line():
    pool = BufferPool()
    arrays = [pool.aligned(size, dtype) for dtype in (np.float32, np.float64) for size in (3000, 4001)]
    assert all(array.ctypes.data % CACHE_LINE == 0 for array in arrays)
    assert [len(array) for array in arrays] == [3000, 4001] * 2
    assert [len(pool.aligned(size, np.float32)) for size in (0, 1, 7)] == [0, 1, 7]


def test_big_arrays_come_from_the_pool():
    pool = BufferPool()
    pool.empty(BIG, np.uint8), pool.empty(BIG // 8 - 1, np.int64)
    assert [memory.nbytes >= BIG for memory in pool._idle.values()] == [True]


def test_a_pool_holds_few_idle_pieces_and_dies_before_its_arrays():
    pool = BufferPool()
    arrays = [pool.aligned(size, np.float32) for size in range(3000, 3050)]
    last = arrays[-1]
    del arrays
    assert len(pool._idle) == KEPT
    assert copy.deepcopy(pool)._idle == {}
    alive = weakref.ref(pool)
    del pool
    assert alive() is None
    last[:] = 1


def test_two_graphs_alive_do_not_share():
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    one = torch.autograd.grad(model(a).sum(), model.weight)[0]
    first, second = model(a).sum(), model(b).sum()
    torch.autograd.grad(second, model.weight)
    assert torch.equal(torch.autograd.grad(first, model.weight)[0], one)


def test_threads_may_share_a_pool():
    pool, errors = BufferPool(), []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(3000):
                arrays = [pool.aligned(int(size), np.float32) for size in rng.integers(3000, 9000, 4)]
                for array in arrays:
                    array[:] = seed
                assert all((array == seed).all() for array in arrays)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors
