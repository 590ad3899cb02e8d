"""What a step costs, on the CPU: counts of a structure, and the expected cost of candidates whose gates are chances.

Every candidate e of a manifold exists with the chance h_e = sigmoid((|d_e| - c) / tau) (DESIGN, section 3).  A neuron
is read with the chance of the strongest of the edges to its readers: their chances are those of one noise.  So does a
block of neighbouring sources exist with the chance of its strongest edge.
"""

import numpy as np
from sparse_dnm.kernels import lanes
from sparse_dnm.kernels.cpu_blocks import LANES
from sparse_dnm.kernels.cpu_formulas import of_lanes, of_one
from sparse_dnm.kernels.jit import inner, kernel

PICKS = 8  # sources of a row, deepest first, that its level is expected from

_gate, _gate_slope, _cutoff_back = of_lanes.gate, of_lanes.gate_slope, of_one.cutoff_back


@kernel
def far_edges(order, inputs, indptr, live, t_indptr, t_edges, distance, visit):
    """How many edges the backward pass visits more than ``distance`` edges away from the edge before them in the CSR:
    their values and gradients have left the cache.  The first edge of a row counts.

    ``order`` and ``inputs`` int32: the executed neurons that are no inputs, in the order of execution, and those that
    are.  Scratch: int32 ``visit`` (n_edges,).
    """
    at = 0
    for neurons in (inputs, order):
        for q in range(neurons.size):
            j = neurons[q]
            for k in range(t_indptr[j], t_indptr[j + 1]):
                visit[np.int64(t_edges[k]) >> 32] = at
                at += 1
    far = 0
    for i in range(live.size):
        if not live[i]:
            continue
        for e in range(indptr[i], indptr[i + 1]):
            far += e == indptr[i] or abs(visit[e] - visit[e - 1]) > distance
    return far


@kernel
def moved_lines(order, waves, inputs, t_indptr, t_edges, parts, bits, writer):
    """How often the backward pass of `wavefront` writes the gradient of an edge to a cache line that another thread has
    written last: the line has to be fetched from that thread's cache.

    ``order``, ``waves``, ``inputs``, ``parts`` as `kernels.cpu_propagate.make` is given them: each level, and at the
    end the inputs, is cut into parts, one a thread, which go from their last neuron to their first at the same time.
    A cache line holds 2 ** ``bits`` gradients.  Scratch: int32 ``writer``, as long as there are lines.
    """
    writer[:] = -1
    moved, to_line = 0, 32 + bits
    for back in range(waves.size):
        stage = waves.size - 1 - back
        neurons = inputs if stage == 0 else order[waves[stage - 1] : waves[stage]]
        size = neurons.size
        for turn in range(-(-size // parts)):
            for part in range(parts):
                q = size * (part + 1) // parts - 1 - turn
                if q < size * part // parts:
                    continue
                for k in range(t_indptr[neurons[q]], t_indptr[neurons[q] + 1]):
                    line = np.uint64(t_edges[k] >> to_line)
                    before = writer[line]
                    moved += (before != part) & (before >= 0)
                    writer[line] = part
    return moved


@kernel
def lone_inputs(inputs, column, group):
    """How many executed inputs are not read together with group - 1 others that follow each other."""
    q, lone = 0, 0
    while q < inputs.size:
        last = q + group - 1
        if last < inputs.size and column[last] - column[q] == group - 1 and inputs[last] - inputs[q] == group - 1:
            q += group
        else:
            q, lone = q + 1, lone + 1
    return lone


@inner
def _row_gates(first, last, d, c, tau, threshold, price, by_gate, gates, slopes):
    """Gates of a row's candidates, 0 at or below ``threshold``, and their derivative by |d|; returns their sums."""
    gate_sum, slope_sum = lanes.fill(d, 0.0), lanes.fill(d, 0.0)
    for e in range(first, last, lanes.COUNT):
        mask = lanes.first(last - e)
        size = abs(lanes.load(d, e, mask, 0.0))
        h = lanes.select(size > threshold, _gate(size, c, tau), 0.0)
        slope = _gate_slope(h, tau)
        gate_sum += h
        slope_sum += slope
        lanes.store(gates, e, mask, h)
        lanes.store(slopes, e, mask, slope)
        lanes.store(by_gate, e, mask, lanes.fill(by_gate, price))
    return lanes.total(gate_sum), lanes.total(slope_sum)


@inner
def _strongest(first, last, indices, gates, best, strongest):
    """Note for every source the candidate with the largest gate so far."""
    for e in range(first, last):
        j, h = np.uint32(indices[e]), gates[e]
        if h > best[j]:
            best[j], strongest[j] = h, e


@inner
def _row_blocks(first, last, indices, d, c, price, lone, gates, slopes, by_gate):
    """Add the cost of a row's blocks to ``by_gate``; returns that cost, and its derivative by all |d| together.

    The blocks are those of the active edges, by the covering of `cpu_blocks.cover`; candidates in them belong to them,
    and the others form further blocks in the same way.  A block exists with the chance of its strongest edge.  Where
    its edges one by one, ``lone`` each, are expected to cost less, they cost that; 0: an edge is never alone.
    """
    cost, by_size = 0.0, 0.0
    e = first
    while e < last:
        if gates[e] == 0.0:
            e += 1
            continue
        active, end = abs(d[e]) > c, np.int64(indices[e]) + LANES
        behind = e + 1
        while behind < last and indices[behind] < end and (active or not abs(d[behind]) > c):
            behind += 1
        strongest, chance, slope = e, 0.0, 0.0
        for k in range(e, behind):
            chance += gates[k]
            slope += slopes[k]
            if gates[k] > gates[strongest]:
                strongest = k
        if 0.0 < lone * chance < price:
            cost += lone * chance
            by_size += lone * slope
            for k in range(e, behind):
                by_gate[k] += lone if gates[k] > 0.0 else 0.0
        else:
            cost += price * gates[strongest]
            by_gate[strongest] += price
            by_size += price * slopes[strongest]
        e = behind
    return cost, by_size


@inner
def _row_level(r, first, last, indices, gates, level, picked):
    """Expected level of a row: 1 + that of the deepest source that exists; 0 without any.

    Notes the PICKS deepest sources that may exist, deepest first; one of them is taken to exist where there are more.
    """
    count = 0
    for back in range(last - first):
        e = np.uint64(last - 1 - back)  # sources ascend, and levels mostly with them
        if gates[e] == 0.0:
            continue
        deep = level[np.uint32(indices[e])]
        if count == PICKS and deep <= level[np.uint32(indices[np.uint64(picked[r, PICKS - 1])])]:
            continue
        at = min(count, PICKS - 1)
        while at > 0 and level[np.uint32(indices[np.uint64(picked[r, at - 1])])] < deep:
            picked[r, at] = picked[r, at - 1]
            at -= 1
        picked[r, at] = e
        count = min(count + 1, PICKS)
    if count < PICKS:
        picked[r, count] = -1
    expected = level[indices[picked[r, PICKS - 1]]] + 1.0 if count == PICKS else 0.0
    for pick in range(count - 1, -1, -1):
        e = picked[r, pick]
        expected += gates[e] * (level[indices[e]] + 1.0 - expected)
    return expected


@inner
def _levels_back(n_inputs, indices, gates, level, by_level, picked, by_gate):
    """Add the derivative of the expected depth by each gate, and on the way to ``by_level`` that by each level."""
    otherwise = np.empty(PICKS + 1)  # expected level where none of the sources before a pick exists
    for back in range(picked.shape[0]):
        r = picked.shape[0] - 1 - back
        share = by_level[n_inputs + r]
        if share == 0.0:
            continue
        count = 0
        while count < PICKS and picked[r, count] >= 0:
            count += 1
        otherwise[count] = level[indices[picked[r, PICKS - 1]]] + 1.0 if count == PICKS else 0.0
        for pick in range(count - 1, -1, -1):
            e = picked[r, pick]
            otherwise[pick] = otherwise[pick + 1] + gates[e] * (level[indices[e]] + 1.0 - otherwise[pick + 1])
        for pick in range(count):
            e = picked[r, pick]
            by_gate[e] += share * (level[indices[e]] + 1.0 - otherwise[pick + 1])
            by_level[indices[e]] += share * gates[e]
            share *= 1.0 - gates[e]
        if count == PICKS:
            by_level[indices[picked[r, PICKS - 1]]] += share


@kernel
def expected_cost(
    n_inputs, n_sources, live, indptr, indices, d, c, tau, threshold, per_edge, per_input, per_neuron, per_level,
    per_block, per_lone, gates, best, strongest, level, by_level, picked, by_gate, slopes,
):  # fmt: skip
    """Cost of the structure in expectation: candidates of ``live`` readers exist with chance h each.

    ``per_*``: cost of an edge, of an input or another neuron that has a reader, of a level, of a block (0: not
    computed), and of an edge where that is less than its block (0: every edge is in a block).
    ``by_gate`` float64 (n_candidates,) is the derivative by h, ``slopes`` (n_candidates,) that by d.  Returns the
    expected cost, that of calls and outputs left out, and its derivative by the raw cutoff.

    Scratch: ``gates`` (n_candidates,) in the dtype of d; float64 ``best`` and int64 ``strongest`` (n_sources,); float64
    ``level`` and ``by_level`` (n,); int64 ``picked`` (n_rows, PICKS).
    """
    edges, blocks, by_size = 0.0, 0.0, 0.0
    best[:] = 0.0
    for r in range(indptr.size - 1):
        first, last = indptr[r], indptr[r + 1]
        price, above = (per_edge, threshold) if live[n_inputs + r] else (0.0, np.inf)
        found = _row_gates(first, last, d, c, tau, above, price, by_gate, gates, slopes)
        edges += found[0]
        by_size += price * found[1]
        _strongest(first, last, indices, gates, best, strongest)
        if per_block > 0.0:
            found = _row_blocks(first, last, indices, d, c, per_block, per_lone, gates, slopes, by_gate)
            blocks += found[0]
            by_size += found[1]
    cost = per_edge * edges + blocks
    for j in range(n_sources):
        if best[j] > 0.0:
            unit = per_input if j < n_inputs else per_neuron
            cost += unit * best[j]
            by_gate[strongest[j]] += unit
            by_size += unit * slopes[strongest[j]]
    if per_level > 0.0:
        level[:n_inputs] = 0.0
        by_level[:] = 0.0
        for r in range(indptr.size - 1):
            level[n_inputs + r] = _row_level(r, indptr[r], indptr[r + 1], indices, gates, level, picked)
        deepest = n_sources
        for i in range(n_sources, level.size):
            if level[i] > level[deepest]:
                deepest = i
        by_level[deepest] = per_level
        cost += per_level * level[deepest]
        _levels_back(n_inputs, indices, gates, level, by_level, picked, by_gate)
        by_size = 0.0
        for e in range(d.size):
            by_size += by_gate[e] * slopes[e]
    for e in range(d.size):
        slopes[e] *= by_gate[e] if d[e] > 0.0 else -by_gate[e]
    return cost, _cutoff_back(-by_size, c)
