"""The pool of buffers."""

import copy
import gc

import numpy as np
import torch

from sparse_dnm import DynamicManifold, ManifoldConfig
from sparse_dnm.buffers import CACHE_LINE, KEPT, BufferPool


def test_a_dropped_lease_is_used_again():
    pool = BufferPool()
    first = pool.lease(np.float32, 100, 100)
    addresses = {a.ctypes.data for a in first.arrays}
    second = pool.lease(np.float32, 100)
    assert second.arrays[0].ctypes.data not in addresses
    del first
    gc.collect()
    third = pool.lease(np.float32, 100)
    assert third.arrays[0].ctypes.data in addresses
    assert pool.lease(np.float64, 100).arrays[0].dtype == np.float64


def test_arrays_start_at_a_cache_line():
    pool = BufferPool()
    leases = [pool.lease(dtype, size) for dtype in (np.float32, np.float64) for size in (1, 7, 1000)]
    assert all(lease.arrays[0].ctypes.data % CACHE_LINE == 0 for lease in leases)
    assert [len(lease.arrays[0]) for lease in leases] == [1, 7, 1000] * 2


def test_a_pool_holds_few_idle_arrays():
    pool = BufferPool()
    for size in range(1, 50):
        pool.lease(np.float32, size)
    assert len(pool._idle) == KEPT
    assert copy.deepcopy(pool)._idle == []


def test_two_graphs_alive_do_not_share():
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    one = torch.autograd.grad(model(a).sum(), model.weight)[0]
    first, second = model(a).sum(), model(b).sum()
    torch.autograd.grad(second, model.weight)
    assert torch.equal(torch.autograd.grad(first, model.weight)[0], one)
