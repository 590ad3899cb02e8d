"""Structure of a DAG on the CPU: transpose, levels, live neurons, order of execution.  O(neurons + edges), one thread.

Readers are the neurons that read a neuron: row j of the transpose lists them.  ``t_edges`` int64 holds for each the
reader in its low 32 bits and the place of the edge in the CSR above: one number to write, at a place of its own.
"""

import numpy as np
from sparse_dnm.kernels.jit import inner, kernel

READER = np.int64(0xFFFFFFFF)


@inner
def _transpose(indptr, indices, place, levels, t_indptr, t_edges):
    """Transpose, and levels in the same sweep; returns False where those need another: a source follows its reader.

    Unsigned indices: for signed ones Numba tests at each access whether they count from the end.
    """
    n = indptr.size - 1
    place[:] = 0
    ordered = True
    for i in range(n):
        first, last = indptr[i], indptr[i + 1]
        ordered &= first == last or indices[last - 1] < i
        level = np.int32(-1)
        for e in range(first, last):
            j = np.uint32(indices[e])
            level = max(level, levels[j])
            place[j] += np.int32(1)
        levels[i] = level + np.int32(1)
    total = np.int32(0)
    for j in range(n):
        t_indptr[j] = total
        total += place[j]
        place[j] = t_indptr[j]
    t_indptr[n] = total
    for i in range(n):
        for e in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            j = np.uint32(indices[e])
            at = np.uint32(place[j])
            t_edges[at] = (np.int64(e) << 32) | i
            place[j] = np.int32(at + np.uint32(1))
    return ordered


@inner
def _level_any_order(indptr, t_indptr, t_edges, waiting, queue, levels):
    """Levels of any graph, by removing neurons whose sources are all removed (Kahn 1962); returns how many are."""
    tail = 0
    for i in range(levels.size):
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
            i = t_edges[k] & READER
            levels[i] = max(levels[i], levels[j] + np.int32(1))
            waiting[i] -= 1
            if waiting[i] == 0:
                queue[tail] = i
                tail += 1
    return tail


@inner
def _sort_by_level(levels, starts, order):
    """Order neurons by (level, index); starts[l] is where level l begins in order.  Returns the largest level."""
    depth = np.int32(0)
    starts[:] = 0
    for i in range(levels.size):
        starts[levels[i] + 1] += 1
        depth = max(depth, levels[i])
    for level in range(1, depth + 2):
        starts[level] += starts[level - 1]
    for i in range(levels.size):
        order[starts[levels[i]]] = i
        starts[levels[i]] += 1
    for level in range(depth + 1, 0, -1):
        starts[level] = starts[level - 1]
    starts[0] = 0
    return depth


@inner
def _mark_live(indptr, order, outputs, t_indptr, t_edges, live):
    """Which neurons reach an output.  Returns True where all do that read another."""
    live[:] = False
    for q in range(outputs.size):
        live[outputs[q]] = True
    complete = True
    for q in range(order.size - 1, -1, -1):
        j = order[q]
        k, last = t_indptr[j], t_indptr[j + 1]
        while not live[j] and k < last:
            live[j] = live[t_edges[k] & READER]
            k += 1
        complete &= live[j] or indptr[j] == indptr[j + 1]
    return complete


@inner
def _drop_dead(live, t_indptr, t_edges):
    """Take the readers that are not live out of the transpose."""
    at, first = np.int64(0), np.int64(0)
    for j in range(live.size):
        last = t_indptr[j + 1]
        for k in range(first, last):
            if live[t_edges[k] & READER]:
                t_edges[at] = t_edges[k]
                at += 1
        first = last
        t_indptr[j + 1] = at


@kernel
def analyze(indptr, indices, outputs, waiting, levels, starts, order, live, t_indptr, t_edges):
    """Analyze a CSR whose rows ascend: levels, order, live neurons, and the transpose among those.

    levels     int32 (n,)      0 without sources, else 1 + max over the sources
    starts     int64 (n + 2,)  where each level begins in ``order`` int32 (n,), the neurons by (level, index)
    live       bool (n,)       the neuron reaches one of ``outputs``
    t_indptr   int64 (n + 1,)  where the live readers of each neuron, ascending, begin in ``t_edges``; from place
                               t_indptr[n] on that holds nothing of use
    Returns the largest level, and whether every source comes before its readers.  The level is -1 where a cycle is:
    then ``waiting`` int32 (n,) is > 0 for the neurons on a cycle and those behind it.
    """
    levels[:] = 0
    ordered = _transpose(indptr, indices, waiting, levels, t_indptr, t_edges)
    if not ordered and _level_any_order(indptr, t_indptr, t_edges, waiting, order, levels) < levels.size:
        return -1, ordered
    depth = _sort_by_level(levels, starts, order)
    if not _mark_live(indptr, order, outputs, t_indptr, t_edges, live):
        _drop_dead(live, t_indptr, t_edges)
    return depth, ordered


@kernel
def schedule(inputs, outputs, levels, order, live, executed, column, waves, column_of, sequence):
    """What runs, in which order: ``executed`` int32, the live inputs and then the other live neurons by level.

    column     int32             position among ``inputs`` of each of the first
    waves      int64 (depth+2,)  where each level begins among the others
    column_of  int32 (n,)        position of a neuron among ``outputs``, or -1
    sequence   int32             those others by index; empty where that is not wanted
    Returns how many inputs and how many neurons are executed.
    """
    column_of[:] = 0
    n_inputs = 0
    for k in range(inputs.size):
        i = inputs[k]
        column_of[i] = 1
        if live[i]:
            executed[n_inputs], column[n_inputs] = i, k
            n_inputs += 1
    count, level = n_inputs, 0
    waves[0] = 0
    for q in range(order.size):
        i = order[q]
        while level < levels[i]:
            level += 1
            waves[level] = count - n_inputs
        if live[i] and column_of[i] == 0:
            executed[count] = i
            count += 1
    while level < waves.size - 1:
        level += 1
        waves[level] = count - n_inputs
    at = 0
    for i in range(levels.size if sequence.size else 0):
        if live[i] and column_of[i] == 0:
            sequence[at] = i
            at += 1
    column_of[:] = -1
    for k in range(outputs.size):
        column_of[outputs[k]] = k
    return n_inputs, count


@kernel
def digest(array, k):
    """A sum over a 1-D array of int64 or int32 that depends on the places of its numbers and on ``k``; it wraps around
    at 2**63."""
    total = np.int64(0)
    for i in range(array.size):
        total += (np.int64(array[i]) + 1) * (np.int64(i + 1) * np.int64(2654435761) + k)
    return total
