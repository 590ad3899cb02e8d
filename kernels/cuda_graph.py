"""Structure of an ascending DAG on CUDA: live neurons and levels, by one block.  O(neurons + edges).

The transpose, and neurons by level, are torch's stable sorts.  Both kernels search breadth-first: the warps share the
neurons of a front, the lanes of a warp share the edges of a neuron, and all wait for each other between fronts only.
The order of the neurons in a front differs from run to run; the results do not.
"""

from numba import cuda, int32
from sparse_dnm.kernels.cuda_propagate import READER, WIDTH

kernel = cuda.jit


@kernel
def mark_live(indptr, indices, outputs, live, queue):
    """``live`` int32 (n,), zeros before: 1 where a neuron reaches one of ``outputs``.  Scratch: int32 queue (n,).

    Launch: a block of (WIDTH, warps) threads.
    """
    lane, warp, warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    tail = cuda.shared.array(1, int32)
    if lane == 0 and warp == 0:
        tail[0] = outputs.size
    for q in range(warp * WIDTH + lane, outputs.size, warps * WIDTH):
        live[outputs[q]] = 1
        queue[q] = outputs[q]
    cuda.syncthreads()
    first, last = 0, tail[0]
    while first < last:
        cuda.syncthreads()  # all have read the tail before it grows
        for q in range(first + warp, last, warps):
            i = queue[q]
            for e in range(indptr[i] + lane, indptr[i + 1], WIDTH):
                j = indices[e]
                if cuda.atomic.exch(live, j, 1) == 0:
                    queue[cuda.atomic.add(tail, 0, 1)] = j
        cuda.syncthreads()
        first, last = last, tail[0]


@kernel
def find_levels(indptr, t_indptr, t_edges, live, waiting, levels, queue):
    """``levels`` int32 (n,) of the live neurons (others stay): 0 without sources, else 1 + max over the sources.

    t_indptr, t_edges as in `Topology`, of edges to live neurons.  Scratch: int32 waiting, queue (n,).  Launch as
    `mark_live`.
    """
    lane, warp, warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    tail = cuda.shared.array(1, int32)
    if lane == 0 and warp == 0:
        tail[0] = 0
    cuda.syncthreads()
    for i in range(warp * WIDTH + lane, live.size, warps * WIDTH):
        if live[i]:
            waiting[i] = indptr[i + 1] - indptr[i]
            if waiting[i] == 0:
                levels[i] = 0
                queue[cuda.atomic.add(tail, 0, 1)] = i
    cuda.syncthreads()
    first, last, level = 0, tail[0], 0
    while first < last:
        cuda.syncthreads()
        level += 1
        for q in range(first + warp, last, warps):
            j = queue[q]
            for k in range(t_indptr[j] + lane, t_indptr[j + 1], WIDTH):
                i = t_edges[k] & READER
                if cuda.atomic.sub(waiting, i, 1) == 1:
                    levels[i] = level
                    queue[cuda.atomic.add(tail, 0, 1)] = i
        cuda.syncthreads()
        first, last = last, tail[0]
