"""Forward and backward of a DAG of neurons on the CPU, over tiles of batch columns (DESIGN, section 4.4).

Neuron i holds x_i = sum over its edges of value * message, z_i = weight_i x_i + bias_i, m_i = act(z_i).  Neurons
from ``first_linear`` on read z of their sources, the others m.  The value of an output neuron is its z.
Buffers ``x``, ``m``, ``g`` are flat, tile-major ``[tile][neuron][width]``: a tile stays in cache, an edge reads
consecutive numbers.  Columns beyond the batch repeat its last one, with gradient zero.
Every column is computed alone and sums over columns run in tile order, so the bits depend neither on the number of
threads nor on the executor (`columns`: a thread per tile; `wavefront`: all threads on a level).
"""

import functools

import numba
import numpy as np
from sparse_dnm.kernels import formulas, simd
from sparse_dnm.kernels.cpu_graph import READER
from sparse_dnm.kernels.jit import inner, kernel, task

LEAKY, LOGISTIC, TANH, SILU = range(4)
GROUP = simd.GROUP
STRIP = 16  # inputs that are read at a time in a tile of one column
FAR = 100_000  # edges from which on the backward pass prefetches what it needs AHEAD neurons later
AHEAD = 8
LINE = 16  # numbers of float32 in a cache line

_logistic, _logistic_back = inner(formulas.logistic), inner(formulas.logistic_back)
_tanh, _tanh_back = inner(formulas.tanh), inner(formulas.tanh_back)
_silu, _silu_back = inner(formulas.silu), inner(formulas.silu_back)


@task
def _curved(x, m, first, last, weight, bias, kind):
    """m = act(weight * x + bias) from element ``first`` to ``last``, where act is no `leaky`."""
    if kind == LOGISTIC:
        for c in range(first, last):
            m[c] = _logistic(weight * x[c] + bias)
    elif kind == TANH:
        for c in range(first, last):
            m[c] = _tanh(weight * x[c] + bias)
    else:
        for c in range(first, last):
            m[c] = _silu(weight * x[c] + bias)


@task
def _curved_back(x, g, first, last, weight, bias, kind):
    """From the gradient g of m to that of z, in place, as `_curved`."""
    if kind == LOGISTIC:
        for c in range(first, last):
            g[c] = _logistic_back(weight * x[c] + bias, g[c])
    elif kind == TANH:
        for c in range(first, last):
            g[c] = _tanh_back(weight * x[c] + bias, g[c])
    else:
        for c in range(first, last):
            g[c] = _silu_back(weight * x[c] + bias, g[c])


@inner
def _activate(x, m, at, width, weight, bias, kind, slope):
    """m = act(weight * x + bias) for one neuron of one tile, from element ``at`` on; `simd.leaky` is the formula of
    formulas.leaky_relu in registers."""
    if kind == LEAKY:
        z = simd.affine(weight, simd.load(x, at, width), bias)
        simd.store(m, at, simd.leaky(z, z, slope))
    else:
        _curved(x, m, at, at + width.count, weight, bias, kind)


@inner
def _activate_back(x, g, at, gradient, width, weight, bias, kind, slope):
    """From the ``gradient`` of m to that of z, for one neuron of one tile; g, from ``at`` on, is scratch."""
    if kind == LEAKY:
        return simd.leaky(simd.affine(weight, simd.load(x, at, width), bias), gradient, slope)
    simd.store(g, at, gradient)
    _curved_back(x, g, at, at + width.count, weight, bias, kind)
    return simd.load(g, at, width)


@inner
def _read_column(table, rows, n_columns, column, tile, x, at, width):
    """Copy a tile of rows of the table's ``column`` to x from ``at`` on; the last row fills up the width."""
    for c in range(width):
        row = tile * width + c
        x[at + c] = table[(row if row < rows else rows - 1) * n_columns + column]


@inner
def _read_block(table, rows, n_columns, column, tile, x, at, width):
    """As `_read_column` for GROUP columns, whose neurons follow each other in x; width a multiple of GROUP."""
    last = rows - 1
    group = simd.width_of(GROUP)
    for c in range(0, width, GROUP):
        r = tile * width + c
        block = simd.transpose(
            simd.load(table, min(r, last) * n_columns + column, group),
            simd.load(table, min(r + 1, last) * n_columns + column, group),
            simd.load(table, min(r + 2, last) * n_columns + column, group),
            simd.load(table, min(r + 3, last) * n_columns + column, group),
            simd.load(table, min(r + 4, last) * n_columns + column, group),
            simd.load(table, min(r + 5, last) * n_columns + column, group),
            simd.load(table, min(r + 6, last) * n_columns + column, group),
            simd.load(table, min(r + 7, last) * n_columns + column, group),
        )
        simd.store(x, at + c, block[0])
        simd.store(x, at + width + c, block[1])
        simd.store(x, at + 2 * width + c, block[2])
        simd.store(x, at + 3 * width + c, block[3])
        simd.store(x, at + 4 * width + c, block[4])
        simd.store(x, at + 5 * width + c, block[5])
        simd.store(x, at + 6 * width + c, block[6])
        simd.store(x, at + 7 * width + c, block[7])


@inner
def _neighbours(inputs, column, q, count):
    """Do ``count`` inputs from q on, and their columns, follow each other?  Columns ascend, neurons need not."""
    found = column[q + count - 1] - column[q] == count - 1
    for k in range(1, count):
        found &= inputs[q + k] == inputs[q] + k
    return found


@inner
def _read_row(first, last, tile, n, inputs, column, n_columns, table, weight, bias, kind, slope, x, m):
    """As `_read_inputs` in a tile of one column, for the neighbours from ``first`` on; returns where they end.

    Their values lie side by side in the table and in x: they are activated STRIP at a time.
    """
    strip = simd.width_of(STRIP)
    q = first
    while q + STRIP <= last:
        i, j = np.int64(inputs[q]), np.int64(column[q])
        if not _neighbours(inputs, column, q, STRIP) or not simd.all_are(kind, i, strip, LEAKY):
            break
        value = simd.load(table, tile * n_columns + j, strip)
        z = simd.multiply_add(simd.load(weight, i, strip), value, simd.load(bias, i, strip))
        simd.store(x, tile * n + i, value)
        simd.store(m, tile * n + i, simd.leaky_each(z, simd.load(slope, i, strip)))
        q += STRIP
    return q


@task
def _read_inputs(width, first, last, tile, n, inputs, column, rows, n_columns, table, weight, bias, kind, slope, x, m):
    """Values and messages of the executed inputs first .. last, in one tile; neighbours are read together."""
    w = width.count
    q = first
    while q < last:
        if w == 1:
            q = _read_row(q, last, tile, n, inputs, column, n_columns, table, weight, bias, kind, slope, x, m)
            if q == last:
                break
        i = np.int64(inputs[q])
        at = (tile * n + i) * w
        size = 1
        if w % GROUP == 0 and q + GROUP <= last and _neighbours(inputs, column, q, GROUP):
            _read_block(table, rows, n_columns, np.int64(column[q]), tile, x, at, w)
            size = GROUP
        else:
            _read_column(table, rows, n_columns, np.int64(column[q]), tile, x, at, w)
        for k in range(i, i + size):
            _activate(x, m, (tile * n + k) * w, width, weight[k], bias[k], kind[k], slope[k])
        q += size


@inner
def _weighted(total, e, base, indices, values, m, width):
    """total + value * message of edge e"""
    return simd.scaled_add(total, values[e], simd.load(m, base + np.int64(indices[e]) * width.count, width))


@inner
def _sum_messages(width, i, base, indptr, indices, values, first_linear, weight, bias, x, m):
    """The sum of value * message over neuron i's sources in one tile (starting at ``base``)."""
    w = width.count
    total = simd.zeros(x, width)
    e, last = indptr[i], indptr[i + 1]
    if i < first_linear:
        sums = simd.sums(x, width)  # side by side: at every edge, one alone would wait for itself
        if sums == 4:
            a, b, c = total, total, total
            while e + 4 <= last:
                total = _weighted(total, e, base, indices, values, m, width)
                a = _weighted(a, e + 1, base, indices, values, m, width)
                b = _weighted(b, e + 2, base, indices, values, m, width)
                c = _weighted(c, e + 3, base, indices, values, m, width)
                e += 4
            total = simd.add(simd.add(total, a), simd.add(b, c))
        elif sums == 2:
            other = total
            while e + 2 <= last:
                total = _weighted(total, e, base, indices, values, m, width)
                other = _weighted(other, e + 1, base, indices, values, m, width)
                e += 2
            total = simd.add(total, other)
        for rest in range(e, last):
            total = _weighted(total, rest, base, indices, values, m, width)
    else:
        for edge in range(e, last):
            j = np.int64(indices[edge])
            z = simd.affine(weight[j], simd.load(x, base + j * w, width), bias[j])
            total = simd.scaled_add(total, values[edge], z)
    return total


@inner
def _forward_neuron(width, i, base, indptr, indices, values, first_linear, weight, bias, kind, slope, x, m):
    """Sum the messages of neuron i's sources in one tile (starting at ``base``), and activate."""
    at = base + i * width.count
    simd.store(x, at, _sum_messages(width, i, base, indptr, indices, values, first_linear, weight, bias, x, m))
    _activate(x, m, at, width, weight[i], bias[i], kind[i], slope[i])


@inner
def _edge_back(width, total, message, k, base, t_edges, values, g):
    """total + value * g of transposed edge k, and the lanes of <g, message>."""
    edge = t_edges[k]
    g_k = simd.load(g, base + (edge & READER) * width.count, width)
    return simd.scaled_add(total, values[edge >> 32], g_k), simd.products(message, g_k)


@inner
def _edges_back(width, total, message, k, last, base, t_edges, values, g, edge_at, edge_gradient):
    """Add value * g over transposed edges k .. last to ``total``, and write <g, message> of each edge."""
    while k + GROUP <= last:
        total, p0 = _edge_back(width, total, message, k, base, t_edges, values, g)
        total, p1 = _edge_back(width, total, message, k + 1, base, t_edges, values, g)
        total, p2 = _edge_back(width, total, message, k + 2, base, t_edges, values, g)
        total, p3 = _edge_back(width, total, message, k + 3, base, t_edges, values, g)
        total, p4 = _edge_back(width, total, message, k + 4, base, t_edges, values, g)
        total, p5 = _edge_back(width, total, message, k + 5, base, t_edges, values, g)
        total, p6 = _edge_back(width, total, message, k + 6, base, t_edges, values, g)
        total, p7 = _edge_back(width, total, message, k + 7, base, t_edges, values, g)
        simd.scatter(edge_gradient, edge_at, t_edges, k, simd.lane_sums(p0, p1, p2, p3, p4, p5, p6, p7))
        k += GROUP
    while k < last:
        edge = t_edges[k]
        g_k = simd.load(g, base + (edge & READER) * width.count, width)
        total = simd.scaled_add(total, values[edge >> 32], g_k)
        edge_gradient[edge_at + (edge >> 32)] = simd.dot(message, g_k)
        k += 1
    return total


@task
def _prefetch(j, base, w, indptr, t_indptr, t_edges, values, x, m, g, edge_at, edge_gradient):
    """Prefetch what neuron j needs, and the edges of its own row, whose sources come next: processors foresee ascending
    addresses, not the descending ones of the backward pass."""
    for e in range(indptr[j], indptr[j + 1], LINE):
        simd.prefetch(values, e)
        simd.prefetch(edge_gradient, edge_at + e)
    for k in range(t_indptr[j], t_indptr[j + 1], LINE // 2):
        simd.prefetch(t_edges, k)
    for at in range(base + j * w, base + (j + 1) * w, LINE):
        simd.prefetch(x, at)
        simd.prefetch(m, at)
        simd.prefetch(g, at)


@inner
def _backward_neuron(
    width, j, tile, n, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope, column_of,
    x, m, rows, n_outputs, out_gradient, g, n_edges, indptr, edge_gradient, weight_gradient, bias_gradient,
):  # fmt: skip
    """Gradients of neuron j in one tile: g_j = dL/dx_j, those of its edges to readers, of its weight and bias."""
    w = width.count
    base = tile * n * w
    at = base + j * w
    edge_at = tile * n_edges
    first, last = t_indptr[j], t_indptr[j + 1]
    middle = last
    while middle > first and t_edges[middle - 1] & READER >= first_linear:
        middle -= 1
    if n_edges > FAR and j >= AHEAD:
        _prefetch(j - AHEAD, base, w, indptr, t_indptr, t_edges, values, x, m, g, edge_at, edge_gradient)
    total = simd.zeros(x, width)
    if middle > first:
        total = _edges_back(
            width, total, simd.load(m, at, width), first, middle, base, t_edges, values, g, edge_at,
            edge_gradient,
        )  # fmt: skip
        total = _activate_back(x, g, at, total, width, weight[j], bias[j], kind[j], slope[j])
    if middle < last:
        z = simd.affine(weight[j], simd.load(x, at, width), bias[j])
        total = _edges_back(
            width, total, z, middle, last, base, t_edges, values, g, edge_at, edge_gradient
        )  # fmt: skip
    if column_of[j] >= 0:
        simd.store(g, at, total)
        for c in range(min(w, rows - tile * w)):
            g[at + c] += out_gradient[(tile * w + c) * n_outputs + column_of[j]]
        total = simd.load(g, at, width)
    weight_gradient[tile * n + j], bias_gradient[tile * n + j] = simd.dot_and_sum(total, simd.load(x, at, width))
    simd.store(g, at, simd.affine(weight[j], total, weight[j] * 0))


@inner
def _part(first, last, part, parts):
    """Where the ``part``-th of so many parts of first .. last begins and ends."""
    size = last - first
    return first + size * part // parts, first + size * (part + 1) // parts


def _make_forward(count):
    """Kernel `forward` of `make`."""

    @task
    def forward_outputs(tile, rows, weight, bias, outputs, n, x, out):
        """z of the outputs, for the rows of one tile."""
        for c in range(min(count, rows - tile * count)):
            for q in range(outputs.size):
                i = np.int64(outputs[q])
                out[tile * count + c, q] = weight[i] * x[(tile * n + i) * count + c] + bias[i]

    @task
    def forward_stage(
        stage, parts, k, inputs, column, table, order, waves, indptr, indices, values, first_linear, weight, bias, kind,
        slope, outputs, x, m, out,
    ):  # fmt: skip
        """One share of a stage: all of a tile, or a part of its inputs or of a level."""
        tile, part, n = k // parts, k % parts, indptr.size - 1
        rows, n_columns = table.shape
        first_input, last_input, first, last = 0, inputs.size, 0, order.size
        if parts > 1:
            first_input, last_input = _part(0, inputs.size if stage == 0 else 0, part, parts)
            first, last = _part(waves[stage - 1], waves[stage], part, parts) if stage > 0 else (0, 0)
        scales, all_x = (weight, bias), x
        inputs, column, table, order, indptr, indices, values, weight, bias, kind, slope, x, m = simd.pointers(
            inputs, column, table, order, indptr, indices, values, weight, bias, kind, slope, x, m
        )
        _read_inputs(
            simd.width_of(count), first_input, last_input, tile, n, inputs, column, rows, n_columns, table, weight,
            bias, kind, slope, x, m,
        )  # fmt: skip
        for q in range(first, last):
            _forward_neuron(
                simd.width_of(count), np.int64(order[q]), tile * n * count, indptr, indices, values, first_linear,
                weight, bias, kind, slope, x, m,
            )  # fmt: skip
        if parts == 1:
            forward_outputs(tile, rows, *scales, outputs, n, all_x, out)

    @kernel(parallel=True)
    def forward(
        times, parts, inputs, column, table, order, waves, indptr, indices, values, first_linear, weight, bias, kind,
        slope, outputs, x, m, out,
    ):  # fmt: skip
        """Values, messages and outputs of all tiles; see `make`."""
        n, zero = indptr.size - 1, np.int64(0)  # no literals, for which Numba would compile what it calls twice
        shares = x.size // (n * count) * parts
        for _ in range(times):
            if shares == 1:  # waking threads costs as much as a pass over one column
                forward_stage(
                    zero, parts, zero, inputs, column, table, order, waves, indptr, indices, values, first_linear,
                    weight, bias, kind, slope, outputs, x, m, out,
                )  # fmt: skip
            else:
                for stage in range(waves.size if parts > 1 else 1):
                    for k in numba.prange(shares):
                        forward_stage(
                            stage, parts, np.int64(k), inputs, column, table, order, waves, indptr, indices, values,
                            first_linear, weight, bias, kind, slope, outputs, x, m, out,
                        )  # fmt: skip
                for tile in range(shares // parts if parts > 1 else 0):
                    forward_outputs(tile, table.shape[0], weight, bias, outputs, n, x, out)

    return forward


def _make_backward(count):
    """Kernel `backward` of `make`."""

    @task
    def backward_stage(
        stage, parts, k, inputs, order, waves, indptr, t_indptr, t_edges, values, first_linear, weight, bias,
        kind, slope, column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias,
    ):  # fmt: skip
        """As `forward_stage`, from the last neuron to the first."""
        tile, part, n, n_edges = k // parts, k % parts, t_indptr.size - 1, values.size
        rows, n_outputs = out_gradient.shape
        first_input, last_input, first, last = 0, inputs.size, 0, order.size
        if parts > 1:
            first_input, last_input = _part(0, inputs.size if stage == 0 else 0, part, parts)
            first, last = _part(waves[stage - 1], waves[stage], part, parts) if stage > 0 else (0, 0)
        (
            inputs, order, indptr, t_indptr, t_edges, values, weight, bias, kind, slope, column_of, x, m, out_gradient,
            g, partial_edges, partial_weight, partial_bias,
        ) = simd.pointers(
            inputs, order, indptr, t_indptr, t_edges, values, weight, bias, kind, slope, column_of, x, m, out_gradient,
            g, partial_edges, partial_weight, partial_bias,
        )  # fmt: skip
        for q in range(last - first + last_input - first_input):
            j = np.int64(order[last - 1 - q] if q < last - first else inputs[last_input - 1 - (q - (last - first))])
            _backward_neuron(
                simd.width_of(count), j, tile, n, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope,
                column_of, x, m, rows, n_outputs, out_gradient, g, n_edges, indptr, partial_edges, partial_weight,
                partial_bias,
            )  # fmt: skip

    @kernel(parallel=True)
    def backward(
        parts, inputs, order, waves, indptr, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope,
        column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias,
    ):  # fmt: skip
        """Gradients of all tiles, from those of the outputs; see `make`."""
        zero = np.int64(0)
        shares = x.size // ((t_indptr.size - 1) * count) * parts
        if shares == 1:
            backward_stage(
                zero, parts, zero, inputs, order, waves, indptr, t_indptr, t_edges, values, first_linear, weight, bias,
                kind, slope, column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias,
            )  # fmt: skip
        else:
            stages = waves.size if parts > 1 else 1
            for back in range(stages):
                stage = stages - 1 - back
                for k in numba.prange(shares):
                    backward_stage(
                        stage, parts, np.int64(k), inputs, order, waves, indptr, t_indptr, t_edges, values,
                        first_linear, weight, bias, kind, slope, column_of, x, m, out_gradient, g, partial_edges,
                        partial_weight, partial_bias,
                    )  # fmt: skip

    return backward


@functools.cache
def make(count):
    """Compile-on-first-call kernels for tiles of ``count`` columns: (forward, backward).

    ``times`` is 1 but where the kernel is timed: then it does the same as often.
    ``parts`` is 1 for `columns`, and for `wavefront` the number of parts, one a thread, that each level is cut into:
    then a stage is the inputs or a level, otherwise all of a tile.
    ``inputs`` are the executed input neurons and ``column`` their columns in ``table``; ``order`` the other executed
    neurons, for `wavefront` by level, ``waves`` where each level starts in it; ``column_of`` the output column of a
    neuron, or -1.

    forward(times, parts, inputs, column, table, order, waves, indptr, indices, values, first_linear, weight, bias,
            kind, slope, outputs, x, m, out)
    backward(parts, inputs, order, waves, indptr, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope,
             column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias)
    with table (batch, inputs), out (batch, outputs), x, m, g flat (tiles * n * count,), partial_edges flat
    (tiles * n_edges,) in the order of the CSR, the other parts (tiles * n,).  What is not executed is not written: the
    caller has put zeros there.
    """
    return _make_forward(count), _make_backward(count)


@kernel
def add_tiles(tiles, partial_edges, partial_weight, partial_bias):
    """Add the partial gradients of the other tiles to those of the first, in their order."""
    for partial in (partial_edges, partial_weight, partial_bias):
        size = partial.size // tiles
        sums = partial[:size]
        for tile in range(1, tiles):
            other = partial[tile * size : (tile + 1) * size]
            for k in range(size):
                sums[k] += other[k]


@kernel
def input_gradients(inputs, column, n, count, g, out):
    """Scatter the gradient of executed inputs into ``out`` (batch, inputs), which holds zeros."""
    for r in range(out.shape[0]):
        base = (r // count) * n
        for q in range(inputs.size):
            i = np.int64(inputs[q])
            out[r, column[q]] = g[(base + i) * count + r % count]
