"""Structure of a DAG on the CPU: levels, live neurons, transpose.  O(neurons + edges) each, one thread."""

import numpy as np
from sparse_dnm.kernels.jit import kernel


@kernel
def levels_in_order(indptr, indices, levels):
    """level[i] = 1 + max(level[j]) over the sources j of i, 0 without sources, in one sweep over i.

    Returns False, with levels unfinished, where a source does not precede its reader: see `levels_any_order`.
    """
    for i in range(indptr.size - 1):
        level = np.int32(0)
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            if j >= i:
                return False
            level = max(level, levels[j] + np.int32(1))
        levels[i] = level
    return True


@kernel
def levels_any_order(indptr, indices, t_indptr, t_indices, waiting, queue, levels):
    """Levels of any graph, by removing neurons whose sources are all removed (Kahn 1962).

    waiting, queue int32 (n,) are scratch.  Returns how many neurons have a level: fewer than n where a cycle is, and
    then ``waiting`` is > 0 for the neurons on a cycle and those behind it.
    """
    n = indptr.size - 1
    tail = 0
    for i in range(n):
        waiting[i] = indptr[i + 1] - indptr[i]
        levels[i] = 0
        if waiting[i] == 0:
            queue[tail] = i
            tail += 1
    head = 0
    while head < tail:
        j = queue[head]
        head += 1
        for k in range(t_indptr[j], t_indptr[j + 1]):
            i = t_indices[k]
            levels[i] = max(levels[i], levels[j] + np.int32(1))
            waiting[i] -= 1
            if waiting[i] == 0:
                queue[tail] = i
                tail += 1
    return tail


@kernel
def sort_by_level(levels, starts, order):
    """Order neurons by (level, index): starts int64 (depth + 2,) where each level begins in order int32 (n,)."""
    starts[:] = 0
    for i in range(levels.size):
        starts[levels[i] + 1] += 1
    for level in range(1, starts.size):
        starts[level] += starts[level - 1]
    for i in range(levels.size):
        order[starts[levels[i]]] = i
        starts[levels[i]] += 1
    for level in range(starts.size - 1, 0, -1):
        starts[level] = starts[level - 1]
    starts[0] = 0


@kernel
def mark_live(indptr, indices, order, live):
    """Spread ``live`` (True for the outputs at the start) to every neuron that reaches a live one."""
    for q in range(order.size - 1, -1, -1):
        i = order[q]
        if live[i]:
            for e in range(indptr[i], indptr[i + 1]):
                live[indices[e]] = True


@kernel
def transpose(indptr, indices, keep, t_indptr, t_indices, t_edge):
    """Readers of each neuron, among the rows to ``keep``: t_indices int32 ascending, t_edge int32 the edge's place.

    Returns the number of edges kept, which are the first ones of t_indices and t_edge.
    """
    n = indptr.size - 1
    t_indptr[:] = 0
    for i in range(n):
        if keep[i]:
            for e in range(indptr[i], indptr[i + 1]):
                t_indptr[indices[e] + 1] += 1
    for j in range(n):
        t_indptr[j + 1] += t_indptr[j]
    for i in range(n):
        if keep[i]:
            for e in range(indptr[i], indptr[i + 1]):
                at = t_indptr[indices[e]]
                t_indices[at], t_edge[at] = i, e
                t_indptr[indices[e]] = at + 1
    for j in range(n, 0, -1):
        t_indptr[j] = t_indptr[j - 1]
    t_indptr[0] = 0
    return t_indptr[n]
