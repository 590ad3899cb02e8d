"""Forward and backward of a DAG of neurons over blocks of neighbouring sources, one column at a time (DESIGN, 4.5).

The edges of a row are covered greedily by blocks of LANES sources in a row that start anywhere, as in the format SPC5
(Bramas & Kus 2018), but with a zero in place of a missing edge: a block is one load of strengths, one of the messages
of its sources, and one multiply-add.  The backward pass goes through the same rows from the last to the first: a block
of reader i adds g_i times its strengths to the gradients of its sources, so that no transpose is needed.

A lane without an edge multiplies a message by zero, which is not zero where that message is infinite or NaN.  So
memory that no neuron of this pass has written holds zeros, and every message is looked at once, when it is computed:
a pass that meets one which is not finite says so, and its caller runs it edge by edge instead.

Arrays of a column are padded by LANES: a block near the end reads beyond the last neuron.
"""

import functools

import numpy as np
from sparse_dnm.kernels import formulas, lanes, machine, simd, vector_math
from sparse_dnm.kernels.blocks import block_at, length, pointer
from sparse_dnm.kernels.cpu_propagate import LEAKY, SILU, STRIP, TANH, _curved, _curved_back, _tanh
from sparse_dnm.kernels.jit import compile_formulas, inner, kernel, task

_of_lanes = compile_formulas(formulas, inner, math=vector_math)
_silu, _logistic = _of_lanes.silu, _of_lanes.logistic

# Two registers of AVX-512 hold 16 float64, one 16 float32; blocks of 16 were no faster than blocks of 8 even where runs
# are 32 long, and slower where they are shorter: a load of 64 bytes that starts anywhere always crosses a cache line.
LANES = 4 if machine.VECTOR_BYTES == 16 else 8
SIDE_BY_SIDE = LANES == simd.GROUP  # neurons whose sums are added up together
KINDS = 4  # of activations


# -- the covering of a structure -------------------------------------------------------------------------------


@inner
def _with_room(free, first):
    """The first turn from ``first`` on whose group has room; ``free`` leads from turn to turn, and is shortened."""
    turn = first
    while free[turn] != turn:
        free[turn] = free[free[turn]]
        turn = np.int64(free[turn])
    return turn


@kernel
def arrange(sequence, indptr, indices, kind, first_linear, turns, free, filled, order, groups):
    """The order in which rows are computed, in ``groups``: up to LANES rows of one activation that do not read each
    other are computed side by side.  A row comes in the first turn after those of its sources in which its group has
    room, as in list scheduling (Graham 1969): there are few groups, however many levels there are.

    ``sequence`` int32: the executed neurons that are no inputs, sources before readers.  Neurons from ``first_linear``
    on come last: nobody reads them.
    order   int32, the rows, ascending in a group, and ``groups`` int32 (rows + 1,) where each begins in it
    Scratch: int32 ``turns`` (n,); ``free``, ``filled`` (KINDS, rows + 1).
    Returns the number of groups, and of those before ``first_linear``.
    """
    room, last = LANES if SIDE_BY_SIDE else 1, np.int64(-1)
    turns[:] = -1
    filled[:] = 0
    for k in range(free.shape[1]):
        free[:, k] = k
    for i in sequence:
        if i < first_linear:
            turn = np.int64(0)
            for e in range(indptr[i], indptr[i + 1]):
                turn = max(turn, np.int64(turns[indices[e]]) + 1)
            turn = _with_room(free[kind[i]], turn)
            turns[i] = turn
            filled[kind[i], turn] += 1
            if filled[kind[i], turn] == room:
                free[kind[i], turn] = turn + 1
            last = max(last, turn)
    rows, n_groups = 0, 0
    for turn in range(last + 1):
        for k in range(free.shape[0]):
            free[k, turn] = rows  # where the group begins
            if filled[k, turn]:
                groups[n_groups] = rows
                rows += filled[k, turn]
                n_groups += 1
            filled[k, turn] = 0
    n_read = n_groups
    for i in sequence:
        if i < first_linear:
            begin, at = free[kind[i], turns[i]], free[kind[i], turns[i]] + filled[kind[i], turns[i]]
            filled[kind[i], turns[i]] += 1
            while at > begin and order[at - 1] > i:
                order[at] = order[at - 1]
                at -= 1
            order[at] = i
        else:
            groups[n_groups] = rows + n_groups - n_read
            order[rows + n_groups - n_read] = i
            n_groups += 1
    groups[n_groups] = sequence.size
    return n_groups, n_read


@kernel
def cover(order, live, indptr, indices, row_blocks, starts, place):
    """Cover the ``live`` rows of ``order`` by blocks; returns how many there are.

    row_blocks  int32 (rows + 1,)   where the blocks of each row begin, in the order of ``order``
    starts      int32 (n_edges,)    the first source of each block
    place       int (n_edges,)      block * LANES + lane of each edge; -1 for those of other rows
    """
    place[:] = -1
    count = np.int64(0)
    for q in range(order.size):
        row_blocks[q] = count
        i, start, end = np.uint32(order[q]), np.int64(0), np.int64(-1)
        if not live[i]:
            continue
        for e in range(np.uint64(indptr[i]), np.uint64(indptr[i + np.uint32(1)])):
            j = np.int64(indices[e])
            if j >= end:
                starts[count] = j
                start, end = j, j + LANES
                count += 1
            place[e] = (count - 1) * LANES + j - start
    row_blocks[order.size] = count
    return count


@kernel
def cover_inputs(inputs, column, all_inputs, kind, column_of, strips, strip_columns, lone, lone_columns):
    """The executed ``inputs`` as strips of STRIP inputs, whose columns and numbers follow each other and whose
    activation is the same, and the others as lone ones; returns how many there are of each.

    A strip may hold inputs that are not executed: they are computed as well.  Strips do not overlap.
    Scratch: int32 ``column_of`` (n,).
    """
    column_of[:] = -1
    for k in range(all_inputs.size):
        column_of[all_inputs[k]] = k
    n_strips, n_lone, run, ends = 0, 0, 0, -1
    for q in range(inputs.size):
        i, k = np.int64(inputs[q]), np.int64(column[q])
        if n_strips and strips[n_strips - 1] <= i < strips[n_strips - 1] + STRIP:
            continue
        if not run <= i < ends:  # the run of inputs around this one
            run, ends = i, i + 1
            while (
                run > 0 and column_of[run - 1] == column_of[run] - 1 and column_of[run] > 0 and kind[run - 1] == kind[i]
            ):
                run -= 1
            while ends < column_of.size and column_of[ends] == column_of[ends - 1] + 1 and kind[ends] == kind[i]:
                ends += 1
        start = run + (i - run) // STRIP * STRIP
        if start + STRIP <= ends:
            strips[n_strips], strip_columns[n_strips] = start, k - (i - start)
            n_strips += 1
        else:
            lone[n_lone], lone_columns[n_lone] = i, k
            n_lone += 1
    return n_strips, n_lone


@task
def _pack(n_rows, order, indptr, strengths, place, size, values, weight, bias, row_weight, row_bias):
    """Strengths of the edges, in CSR order, to ``values``, zero where a block has no edge; weights and biases in the
    order of rows."""
    for k in range(size):
        values[k] = 0
    for q in range(n_rows, n_rows + LANES):
        row_weight[q], row_bias[q] = 0, 0
    for q in range(n_rows):
        i = np.int64(order[q])
        row_weight[q], row_bias[q] = weight[i], bias[i]
        first, last = indptr[i], indptr[i + 1]
        if first < last and place[first] >= 0:  # else it reaches no output
            for e in range(first, last):
                values[place[e]] = strengths[e]


@task
def _pick(n_rows, order, indptr, by_values, place, by_strength):
    """Gradients in the order of blocks to that of the CSR."""
    for q in range(n_rows):
        i = np.int64(order[q])
        first, last = indptr[i], indptr[i + 1]
        if first < last and place[first] >= 0:  # else it reaches no output
            for e in range(first, last):
                by_strength[e] = by_values[place[e]]


@task
def _clear(size, array):
    """Zeros."""
    for k in range(size):
        array[k] = 0


# -- forward ---------------------------------------------------------------------------------------------------


@inner
def _block(total, b, starts, values, messages):
    """total + strengths * messages of block b."""
    width = simd.width_of(LANES)
    return simd.multiply_add(
        simd.load(values, b * LANES, width), simd.load(messages, np.int64(starts[b]), width), total
    )


@inner
def _row_sum(first, last, starts, values, messages):
    """Lanes of the sum over blocks first .. last of a row; two of them side by side: one would wait for itself."""
    total = simd.zeros(values, simd.width_of(LANES))
    other = total
    b = first
    while b + 2 <= last:
        total = _block(total, b, starts, values, messages)
        other = _block(other, b + 1, starts, values, messages)
        b += 2
    if b < last:
        total = _block(total, b, starts, values, messages)
    return simd.add(total, other)


@inner
def _activate(i, value, weight, bias, kind, slope, x, m, z):
    """Write value, z and message of neuron i; returns the last two."""
    x[i] = value
    total = simd.fma(weight[i], value, bias[i])
    z[i] = total
    if kind[i] == LEAKY:
        message = simd.leaky_one(total, total, slope[i])
        m[i] = message
    else:
        _curved(x, m, i, i + 1, weight[i], bias[i], kind[i])
        message = m[i]
    return total, message


@task
def _curve_neighbours(z, m, first, last, kind):
    """m = act(z) of the neurons first .. last, whose activation is no `leaky`; by the polynomials of vector_math, which
    compute many at once."""
    if kind == TANH:
        for i in range(first, last):
            m[i] = _tanh(z[i])
    else:
        for i in range(first, last, lanes.COUNT):
            mask = lanes.first(last - i)
            value = lanes.load(z, i, mask, 0.0)
            if kind == SILU:
                lanes.store(m, i, mask, _silu(value))
            else:
                lanes.store(m, i, mask, _logistic(value))


@task
def _forward_inputs(n_strips, strips, strip_columns, n_lone, lone, lone_columns, table, weight, bias, kind, slope, x, m,
                    z):  # fmt: skip
    """Values, z and messages of the inputs from a row of the table; 0 if all are finite, else NaN."""
    strip = simd.width_of(STRIP)
    check = simd.zeros(x, strip)
    zeros = check
    for k in range(n_strips):
        i = np.int64(strips[k])
        value = simd.load(table, np.int64(strip_columns[k]), strip)
        total = simd.multiply_add(simd.load(weight, i, strip), value, simd.load(bias, i, strip))
        simd.store(x, i, value)
        simd.store(z, i, total)
        if kind[i] == LEAKY:
            simd.store(m, i, simd.leaky_each(total, simd.load(slope, i, strip)))
        else:
            _curve_neighbours(z, m, i, i + STRIP, kind[i])
        message = simd.load(m, i, strip)
        check = simd.multiply_add(message, zeros, simd.multiply_add(total, zeros, check))
    found = simd.lane_total(check)
    for k in range(n_lone):
        i = np.int64(lone[k])
        total, message = _activate(i, table[np.int64(lone_columns[k])], weight, bias, kind, slope, x, m, z)
        found = simd.fma(message, message * 0, simd.fma(total, total * 0, found))
    return found


@inner
def _act(total, kind, slopes):
    """The messages of GROUP neurons of one activation, which is not tanh, from their z."""
    if kind == LEAKY:
        message = simd.leaky_each(total, slopes)
    elif kind == SILU:
        message = simd.first_of(_silu(simd.lanes_of(total)))
    else:
        message = simd.first_of(_logistic(simd.lanes_of(total)))
    return message


@inner
def _sums(q, last, row_blocks, starts, values, m):
    """Sums of the rows q .. last, LANES at most; zeros behind them."""
    b = np.int64(row_blocks[q])
    b1, b2 = np.int64(row_blocks[min(q + 1, last)]), np.int64(row_blocks[min(q + 2, last)])
    b3, b4 = np.int64(row_blocks[min(q + 3, last)]), np.int64(row_blocks[min(q + 4, last)])
    b5, b6 = np.int64(row_blocks[min(q + 5, last)]), np.int64(row_blocks[min(q + 6, last)])
    b7, b8 = np.int64(row_blocks[min(q + 7, last)]), np.int64(row_blocks[last])
    return simd.lane_sums(
        _row_sum(b, b1, starts, values, m),
        _row_sum(b1, b2, starts, values, m),
        _row_sum(b2, b3, starts, values, m),
        _row_sum(b3, b4, starts, values, m),
        _row_sum(b4, b5, starts, values, m),
        _row_sum(b5, b6, starts, values, m),
        _row_sum(b6, b7, starts, values, m),
        _row_sum(b7, b8, starts, values, m),
    )


@inner
def _side_by_side(q, last, keeps, order, row_blocks, starts, values, row_weight, row_bias, row_slope, kind, x, m, z):
    """Values, z and messages of the neurons at the places q .. last, LANES at most, wherever they are; values only
    where they are kept.  Returns zeros if all are finite, else NaN."""
    width, i0, end = simd.width_of(LANES), np.int64(order[q]), last - 1
    value = _sums(q, last, row_blocks, starts, values, m)
    total = simd.multiply_add(simd.load(row_weight, q, width), value, simd.load(row_bias, q, width))
    message = total
    if kind[i0] != TANH:
        message = _act(total, kind[i0], simd.load(row_slope, q, width))
    if last - q == LANES and order[end] - i0 == LANES - 1:  # neighbours
        if keeps:
            simd.store(x, i0, value)
        simd.store(z, i0, total)
        simd.store(m, i0, message)
    else:
        i1, i2 = np.int64(order[min(q + 1, end)]), np.int64(order[min(q + 2, end)])
        i3, i4 = np.int64(order[min(q + 3, end)]), np.int64(order[min(q + 4, end)])
        i5, i6 = np.int64(order[min(q + 5, end)]), np.int64(order[min(q + 6, end)])
        i7 = np.int64(order[min(q + 7, end)])
        if keeps:
            simd.put(x, value, i0, i1, i2, i3, i4, i5, i6, i7)
        simd.put(z, total, i0, i1, i2, i3, i4, i5, i6, i7)
        simd.put(m, message, i0, i1, i2, i3, i4, i5, i6, i7)
    if kind[i0] == TANH:  # is finite where z is
        for k in range(q, last):
            m[order[k]] = _tanh(z[order[k]])
    return simd.multiply_add(message, simd.zeros(x, width), simd.multiply_add(total, simd.zeros(x, width), value))


@task
def _forward_rows(
    n_groups, n_read, groups, keeps, order, row_blocks, starts, values, weight, bias, kind, slope, row_weight, row_bias,
    row_slope, x, m, z,
):  # fmt: skip
    """The same of the other neurons, from their sources; of ``n_groups`` the first ``n_read`` read messages."""
    width = simd.width_of(LANES)
    found, check = weight[0] * 0, simd.zeros(x, width)
    zeros, other, last = check, found, np.int64(0)
    for g in range(n_read):
        first = last
        last = np.int64(groups[g + 1])
        if SIDE_BY_SIDE and last - first > 1:
            seen = _side_by_side(
                first, last, keeps, order, row_blocks, starts, values, row_weight, row_bias, row_slope, kind, x, m, z
            )
            check = simd.multiply_add(zeros, seen, check)
        else:
            for q in range(first, last):
                lanes_of = _row_sum(np.int64(row_blocks[q]), np.int64(row_blocks[q + 1]), starts, values, m)
                total, message = _activate(
                    np.int64(order[q]), simd.lane_total(lanes_of), weight, bias, kind, slope, x, m, z
                )
                found = simd.fma(total, total * 0, found)
                other = simd.fma(message, message * 0, other)
    for q in range(last, last + n_groups - n_read):
        lanes_of = _row_sum(np.int64(row_blocks[q]), np.int64(row_blocks[q + 1]), starts, values, z)
        total, message = _activate(np.int64(order[q]), simd.lane_total(lanes_of), weight, bias, kind, slope, x, m, z)
        found = simd.fma(total, total * 0, found)
    return found + other + simd.lane_total(check)


# -- backward --------------------------------------------------------------------------------------------------


@inner
def _back_through(i, x, g, by_z, weight, bias, kind, slope):
    """Gradient of z of neuron i: from that of its message, in g, and from what reads its z."""
    if kind[i] == LEAKY:
        z = simd.fma(weight[i], x[i], bias[i])
        gradient = simd.leaky_one(z, g[i], slope[i])
    else:
        _curved_back(x, g, i, i + 1, weight[i], bias[i], kind[i])
        gradient = g[i]
    return gradient + by_z[i]


@inner
def _neuron_back(i, x, g, by_z, weight, bias, kind, slope, by_weight, by_bias):
    """Gradient of neuron i's value, written to g; adds those of its weight and bias."""
    gradient = _back_through(i, x, g, by_z, weight, bias, kind, slope)
    by_weight[i] += gradient * x[i]
    by_bias[i] += gradient
    g[i] = weight[i] * gradient
    return g[i]


@inner
def _row_back(first, last, begins, gradient, starts, values, messages, g, by_values):
    """Gradients of a row's strengths, and of its sources.  ``begins``: these are the first of the strengths."""
    width = simd.width_of(LANES)
    zero = gradient * 0
    for b in range(first, last):
        at, j = b * LANES, np.int64(starts[b])
        message = simd.load(messages, j, width)
        if begins:
            simd.store(by_values, at, simd.affine(gradient, message, zero))
        else:
            simd.store(by_values, at, simd.scaled_add(simd.load(by_values, at, width), gradient, message))
        simd.store(g, j, simd.scaled_add(simd.load(g, j, width), gradient, simd.load(values, at, width)))


@task
def _backward_rows(
    n_rows, begins, order, row_blocks, starts, values, first_linear, weight, bias, kind, slope, x, m, z, g, by_z,
    by_values, by_weight, by_bias,
):  # fmt: skip
    """From the last row to the first; 0 if all gradients are finite, else NaN."""
    found = weight[0] * 0
    first = np.int64(row_blocks[n_rows])
    for back in range(n_rows):
        q = n_rows - 1 - back
        last = first
        first = np.int64(row_blocks[q])
        i = np.int64(order[q])
        gradient = _neuron_back(i, x, g, by_z, weight, bias, kind, slope, by_weight, by_bias)
        if i < first_linear:
            _row_back(first, last, begins, gradient, starts, values, m, g, by_values)
        else:
            _row_back(first, last, begins, gradient, starts, values, z, by_z, by_values)
        found = simd.fma(gradient, gradient * 0, found)
    return found


@task
def _backward_inputs(n_strips, strips, n_lone, lone, weight, bias, kind, slope, x, g, by_z, by_weight, by_bias):
    """Gradients of the inputs and of their weights and biases."""
    strip = simd.width_of(STRIP)
    for k in range(n_strips):
        i = np.int64(strips[k])
        if kind[i] != LEAKY:
            for j in range(i, i + STRIP):
                _neuron_back(j, x, g, by_z, weight, bias, kind, slope, by_weight, by_bias)
            continue
        value, scale = simd.load(x, i, strip), simd.load(weight, i, strip)
        z = simd.multiply_add(scale, value, simd.load(bias, i, strip))
        gradient = simd.leaky_pick(z, simd.load(g, i, strip), simd.load(slope, i, strip))
        gradient = simd.add(gradient, simd.load(by_z, i, strip))
        simd.store(by_weight, i, simd.multiply_add(gradient, value, simd.load(by_weight, i, strip)))
        simd.store(by_bias, i, simd.add(simd.load(by_bias, i, strip), gradient))
        simd.store(g, i, simd.multiply_add(scale, gradient, simd.zeros(x, strip)))
    for k in range(n_lone):
        _neuron_back(np.int64(lone[k]), x, g, by_z, weight, bias, kind, slope, by_weight, by_bias)


# -- entry points ------------------------------------------------------------------------------------------------


def _make_forward(graph_kind, data_kind):
    """Kernel `forward` of `make`."""

    @kernel
    def forward(times, graph_at, data_at, table, out):
        """Outputs of a table; see `make`."""
        graph, data = block_at(graph_at, graph_kind), block_at(data_at, data_kind)
        n, batch, n_columns = graph.n, table.shape[0], table.shape[1]
        n_outputs = length(graph.outputs)
        strips, strip_columns, lone, lone_columns = (
            pointer(graph.strips), pointer(graph.strip_columns), pointer(graph.lone), pointer(graph.lone_columns)
        )  # fmt: skip
        order, row_blocks, starts = pointer(graph.order), pointer(graph.row_blocks), pointer(graph.starts)
        kind, slope, outputs = pointer(graph.kind), pointer(graph.slope), pointer(graph.outputs)
        groups, row_slope = pointer(graph.groups), pointer(graph.row_slope)
        values, weight, bias = pointer(data.values), pointer(data.weight), pointer(data.bias)
        row_weight, row_bias = pointer(data.row_weight), pointer(data.row_bias)
        x, m, z = pointer(data.x), pointer(data.m), pointer(data.z)
        rows, results = simd.pointers(table, out)
        if length(data.strengths) > 0:
            _pack(
                length(graph.order), order, pointer(graph.indptr), pointer(data.strengths), pointer(graph.place),
                length(data.values), values, weight, bias, row_weight, row_bias,
            )  # fmt: skip
            _clear(length(data.m), m)
            _clear(length(data.z), z)
        check = weight[0] * 0
        for _ in range(times):
            for tile in range(batch):
                at = np.int64(tile) * n
                x_tile, m_tile, z_tile = simd.at(x, at), simd.at(m, at), simd.at(z, at)
                check += _forward_inputs(
                    length(graph.strips), strips, strip_columns, length(graph.lone), lone, lone_columns,
                    simd.at(rows, tile * n_columns), weight, bias, kind, slope, x_tile, m_tile, z_tile,
                )  # fmt: skip
                check += _forward_rows(
                    length(graph.groups) - 1, graph.n_read, groups, length(data.strengths) > 0, order, row_blocks,
                    starts, values, weight, bias, kind, slope, row_weight, row_bias, row_slope, x_tile, m_tile, z_tile,
                )  # fmt: skip
                for k in range(n_outputs):
                    results[tile * n_outputs + k] = z_tile[np.int64(outputs[k])]
        return check == 0

    return forward


def _make_backward(graph_kind, data_kind):
    """Kernel `backward` of `make`."""

    @kernel
    def backward(graph_at, data_at, out_gradient, g, by_z, by_values, by_weight, by_bias, by_strength):
        """Gradients, after `forward`; see `make`."""
        graph, data = block_at(graph_at, graph_kind), block_at(data_at, data_kind)
        n, n_outputs, padded = graph.n, length(graph.outputs), g.size
        strips, lone, order = pointer(graph.strips), pointer(graph.lone), pointer(graph.order)
        row_blocks, starts, outputs = pointer(graph.row_blocks), pointer(graph.starts), pointer(graph.outputs)
        kind, slope = pointer(graph.kind), pointer(graph.slope)
        values, weight, bias = pointer(data.values), pointer(data.weight), pointer(data.bias)
        x, m, z = pointer(data.x), pointer(data.m), pointer(data.z)
        batch = out_gradient.shape[0]
        g, by_z, by_values, by_weight, by_bias, by_strength, by_out = simd.pointers(
            g, by_z, by_values, by_weight, by_bias, by_strength, out_gradient
        )
        _clear(padded, g)
        _clear(padded, by_z)
        _clear(n, by_weight)
        _clear(n, by_bias)
        check = weight[0] * 0
        for tile in range(batch):
            at = np.int64(tile) * n
            x_tile, m_tile, z_tile, g_tile = simd.at(x, at), simd.at(m, at), simd.at(z, at), simd.at(g, at)
            by_z_tile = simd.at(by_z, at)
            for k in range(n_outputs):
                by_z_tile[np.int64(outputs[k])] += by_out[tile * n_outputs + k]
            check += _backward_rows(
                length(graph.order), tile == 0, order, row_blocks, starts, values, graph.first_linear, weight, bias,
                kind, slope, x_tile, m_tile, z_tile, g_tile, by_z_tile, by_values, by_weight, by_bias,
            )  # fmt: skip
            _backward_inputs(
                length(graph.strips), strips, length(graph.lone), lone, weight, bias, kind, slope, x_tile, g_tile,
                by_z_tile, by_weight, by_bias,
            )  # fmt: skip
        _pick(length(graph.order), order, pointer(graph.indptr), by_values, pointer(graph.place), by_strength)
        return check == 0

    return backward


@functools.cache
def make(graph_kind, data_kind):
    """Compile-on-first-call kernels for Blocks (`blocks.Block`) of these kinds: (forward, backward).

    forward(times, graph, data, table, out) -> bool
        Outputs ``out`` (batch, n_outputs) of ``table`` (batch, inputs).  ``times`` is 1 but where the kernel is timed.
    backward(graph, data, out_gradient, g, by_z, by_values, by_weight, by_bias, by_strength) -> bool
        From the gradient of the outputs (batch, n_outputs), after `forward`: of values g (batch * n + LANES,), of
        weights and biases (n,), of strengths (n_edges,) in CSR order, those of executed neurons alone.  Scratch: by_z
        like g, by_values like values.
    Both return whether all numbers were finite: else what they computed is of no use.

    graph   address of a Block: n, first_linear, strips, strip_columns, lone, lone_columns (`cover_inputs`), order,
            groups, of which the first n_read read messages and the others z (`arrange`), indptr, row_blocks, starts,
            place (`cover`), kind, slope, row_slope (rows + LANES,) in the order of rows, outputs
    data    address of a Block: strengths (n_edges,) of the edges in CSR order, values (n_blocks * LANES,), weight and
            bias (n,), row_weight and row_bias (rows + LANES,), and x, m, z (batch * n + LANES,), which `forward`
            writes.  Strengths of length 0: ``values``, row_weight and row_bias hold them already, m and z hold finite
            numbers, and x of neurons is not written
    """
    return _make_forward(graph_kind, data_kind), _make_backward(graph_kind, data_kind)
