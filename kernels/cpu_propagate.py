"""Forward and backward of a DAG of neurons on the CPU, over tiles of batch columns (DESIGN, section 4.4).

Neuron i holds x_i = sum over its edges of value * message, z_i = weight_i x_i + bias_i, m_i = act(z_i).  Neurons
from ``first_linear`` on read z of their sources, the others m.  The value of an output neuron is its z.
Buffers ``x``, ``m``, ``g`` are flat, tile-major ``[tile][neuron][width]``: a tile stays in cache, an edge reads
consecutive numbers.  Columns beyond the batch repeat its last one, with gradient zero.
Indices in hot loops are unsigned: for signed ones Numba tests at each access whether they count from the end, and the
loop does not vectorise.
Every column is computed alone and sums over columns run in tile order, so the bits depend neither on the number of
threads nor on which of the two walks (`columns`: a thread per tile; `wavefront`: all threads on a level) is taken.
"""

import functools

import numba
import numpy as np
from sparse_dnm.kernels import formulas, simd
from sparse_dnm.kernels.jit import inner, kernel

LEAKY, LOGISTIC, TANH, SILU = range(4)
GROUP = simd.GROUP
NARROW = 16  # columns, up to which a row has several sums at once
BLOCK = 64  # inputs that a thread of `wavefront` reads at a time

_logistic, _logistic_back = inner(formulas.logistic), inner(formulas.logistic_back)
_tanh, _tanh_back = inner(formulas.tanh), inner(formulas.tanh_back)
_silu, _silu_back = inner(formulas.silu), inner(formulas.silu_back)


@inner
def _activate(x, m, at, width, weight, bias, kind, slope):
    """m = act(weight * x + bias) for one neuron of one tile, from element ``at`` on; `simd.leaky` is the formula of
    formulas.leaky_relu in registers."""
    if kind == LEAKY:
        z = simd.affine(weight, simd.load(x, at, width), bias)
        simd.store(m, at, simd.leaky(z, z, slope))
    else:
        first, last = np.uint64(at), np.uint64(at + width.count)
        if kind == LOGISTIC:
            for c in range(first, last):
                m[c] = _logistic(weight * x[c] + bias)
        elif kind == TANH:
            for c in range(first, last):
                m[c] = _tanh(weight * x[c] + bias)
        else:
            for c in range(first, last):
                m[c] = _silu(weight * x[c] + bias)


@inner
def _activate_back(x, g, at, gradient, width, weight, bias, kind, slope):
    """From the ``gradient`` of m to that of z, for one neuron of one tile; g, from ``at`` on, is scratch."""
    if kind == LEAKY:
        return simd.leaky(simd.affine(weight, simd.load(x, at, width), bias), gradient, slope)
    simd.store(g, at, gradient)
    first, last = np.uint64(at), np.uint64(at + width.count)
    if kind == LOGISTIC:
        for c in range(first, last):
            g[c] = _logistic_back(weight * x[c] + bias, g[c])
    elif kind == TANH:
        for c in range(first, last):
            g[c] = _tanh_back(weight * x[c] + bias, g[c])
    else:
        for c in range(first, last):
            g[c] = _silu_back(weight * x[c] + bias, g[c])
    return simd.load(g, at, width)


@inner
def _read_column(flat, n_columns, column, tile, x, at, width):
    """Copy a tile of rows of the table's ``column`` to x from ``at`` on; the last row fills up the width."""
    first, last = tile * width, flat.size // n_columns - 1
    for c in range(width):
        x[at + c] = flat[min(first + c, last) * n_columns + column]


@inner
def _read_block(flat, n_columns, column, tile, x, at, width):
    """As `_read_column` for GROUP columns, whose neurons follow each other in x; width a multiple of GROUP."""
    first, last = tile * width, flat.size // n_columns - 1
    group = simd.width_of(GROUP)
    for c in range(0, width, GROUP):
        r = first + c
        block = simd.transpose(
            simd.load(flat, min(r, last) * n_columns + column, group),
            simd.load(flat, min(r + 1, last) * n_columns + column, group),
            simd.load(flat, min(r + 2, last) * n_columns + column, group),
            simd.load(flat, min(r + 3, last) * n_columns + column, group),
            simd.load(flat, min(r + 4, last) * n_columns + column, group),
            simd.load(flat, min(r + 5, last) * n_columns + column, group),
            simd.load(flat, min(r + 6, last) * n_columns + column, group),
            simd.load(flat, min(r + 7, last) * n_columns + column, group),
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
def _read_inputs(width, first, last, tile, n, inputs, column, table, weight, bias, kind, slope, x, m):
    """Values and messages of the executed inputs first .. last, in one tile; neighbours are read together."""
    w, n_columns = width.count, table.shape[1]
    flat = table.reshape(table.size)
    q = first
    while q < last:
        i, end = np.int64(inputs[q]), q + GROUP - 1
        at = (tile * n + i) * w
        size = 1
        if w % GROUP == 0 and end < last and inputs[end] - i == column[end] - column[q] == GROUP - 1:
            _read_block(flat, n_columns, np.int64(column[q]), tile, x, at, w)
            size = GROUP
        else:
            _read_column(flat, n_columns, np.int64(column[q]), tile, x, at, w)
        for k in range(i, i + size):
            _activate(x, m, (tile * n + k) * w, width, weight[k], bias[k], kind[k], slope[k])
        q += size


@inner
def _forward_neuron(width, i, base, indptr, indices, values, first_linear, weight, bias, kind, slope, x, m):
    """Sum the messages of neuron i's sources in one tile (starting at ``base``), and activate."""
    w = width.count
    total = simd.zeros(x, width)
    at = base + np.int64(i) * w
    if i < first_linear:
        e, end = np.uint64(indptr[i]), np.uint64(indptr[i + 1])
        if w <= NARROW:  # few columns: four sums side by side, since one waits for itself at every edge
            one, a, b, c = np.uint64(1), total, total, total
            while e + np.uint64(4) <= end:
                total = simd.scaled_add(total, values[e], simd.load(m, base + np.int64(indices[e]) * w, width))
                e += one
                a = simd.scaled_add(a, values[e], simd.load(m, base + np.int64(indices[e]) * w, width))
                e += one
                b = simd.scaled_add(b, values[e], simd.load(m, base + np.int64(indices[e]) * w, width))
                e += one
                c = simd.scaled_add(c, values[e], simd.load(m, base + np.int64(indices[e]) * w, width))
                e += one
            total = simd.add(simd.add(total, a), simd.add(b, c))
        for rest in range(e, end):
            total = simd.scaled_add(total, values[rest], simd.load(m, base + np.int64(indices[rest]) * w, width))
    else:
        for e in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            j = np.int64(indices[e])
            z = simd.affine(weight[j], simd.load(x, base + j * w, width), bias[j])
            total = simd.scaled_add(total, values[e], z)
    simd.store(x, at, total)
    _activate(x, m, at, width, weight[i], bias[i], kind[i], slope[i])


@inner
def _edges_back(width, total, message, first, last, base, t_indices, t_edge, values, g, edge_at, edge_gradient):
    """Add value * g over transposed edges first .. last to ``total``, and write <g, message> of each edge."""
    w = width.count
    k, end = np.uint64(first), np.uint64(last)
    one = np.uint64(1)
    while k + np.uint64(GROUP) <= end:
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        p0 = simd.products(message, g_k)
        k += one
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        p1 = simd.products(message, g_k)
        k += one
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        p2 = simd.products(message, g_k)
        k += one
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        p3 = simd.products(message, g_k)
        k += one
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        p4 = simd.products(message, g_k)
        k += one
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        p5 = simd.products(message, g_k)
        k += one
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        p6 = simd.products(message, g_k)
        k += one
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        p7 = simd.products(message, g_k)
        k += one
        sums = simd.lane_sums(p0, p1, p2, p3, p4, p5, p6, p7)
        simd.scatter(edge_gradient, edge_at, t_edge, np.int64(k) - GROUP, sums)
    while k < end:
        g_k = simd.load(g, base + np.int64(t_indices[k]) * w, width)
        total = simd.scaled_add(total, values[np.uint32(t_edge[k])], g_k)
        edge_gradient[np.uint64(edge_at) + np.uint32(t_edge[k])] = simd.dot(message, g_k)
        k += one
    return total


@inner
def _backward_neuron(
    width, j, tile, n, t_indptr, t_indices, t_edge, values, first_linear, weight, bias, kind, slope, column_of,
    x, m, out_gradient, g, edge_gradient, weight_gradient, bias_gradient,
):  # fmt: skip
    """Gradients of neuron j in one tile: g_j = dL/dx_j, those of its edges to readers, of its weight and bias."""
    w = width.count
    base = tile * n * w
    at = base + np.int64(j) * w
    edge_at = tile * values.size
    first, last = t_indptr[j], t_indptr[j + 1]
    middle = last
    while middle > first and t_indices[middle - 1] >= first_linear:
        middle -= 1
    total = simd.zeros(x, width)
    if middle > first:
        total = _edges_back(
            width, total, simd.load(m, at, width), first, middle, base, t_indices, t_edge, values, g, edge_at,
            edge_gradient,
        )  # fmt: skip
        total = _activate_back(x, g, at, total, width, weight[j], bias[j], kind[j], slope[j])
    if middle < last:
        z = simd.affine(weight[j], simd.load(x, at, width), bias[j])
        total = _edges_back(
            width, total, z, middle, last, base, t_indices, t_edge, values, g, edge_at, edge_gradient
        )  # fmt: skip
    if column_of[j] >= 0:
        simd.store(g, at, total)
        for c in range(min(w, out_gradient.shape[0] - tile * w)):
            g[at + c] += out_gradient[tile * w + c, column_of[j]]
        total = simd.load(g, at, width)
    weight_gradient[tile * n + j], bias_gradient[tile * n + j] = simd.dot_and_sum(total, simd.load(x, at, width))
    simd.store(g, at, simd.affine(weight[j], total, weight[j] * 0))


@functools.cache
def make(count):
    """Compile-on-first-call kernels for tiles of ``count`` columns: (forward, backward) by executor.

    ``inputs`` are the executed input neurons and ``column`` their columns in ``table``; ``order`` the other executed
    neurons by level, ``waves`` where each level starts in it; ``column_of`` the output column of a neuron, or -1.

    forward(inputs, column, table, order, waves, indptr, indices, values, first_linear, weight, bias, kind, slope,
            outputs, x, m, out)
    backward(inputs, order, waves, t_indptr, t_indices, t_edge, values, first_linear, weight, bias, kind, slope,
             outputs, column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias)
    with table (batch, inputs), out (batch, outputs), x, m, g flat (tiles * n * count,), partial_edges flat
    (tiles * n_edges,) in the order of the CSR, the other parts (tiles * n,); of one tile they are the gradients.
    """

    @kernel(parallel=True)
    def forward_columns(
        inputs, column, table, order, waves, indptr, indices, values, first_linear, weight, bias, kind, slope, outputs,
        x, m, out,
    ):  # fmt: skip
        n = indptr.size - 1
        for tile in numba.prange(x.size // (n * count)):
            width = simd.width_of(count)
            base = tile * n * count
            _read_inputs(width, 0, inputs.size, tile, n, inputs, column, table, weight, bias, kind, slope, x, m)
            for q in range(order.size):
                _forward_neuron(
                    width, order[q], base, indptr, indices, values, first_linear, weight, bias, kind, slope, x, m
                )
            for c in range(min(count, table.shape[0] - tile * count)):
                for q in range(outputs.size):
                    i = np.int64(outputs[q])
                    out[tile * count + c, q] = weight[i] * x[base + i * count + c] + bias[i]

    @kernel(parallel=True)
    def forward_wavefront(
        inputs, column, table, order, waves, indptr, indices, values, first_linear, weight, bias, kind, slope, outputs,
        x, m, out,
    ):  # fmt: skip
        n = indptr.size - 1
        tiles = x.size // (n * count)
        for block in numba.prange(-(-inputs.size // BLOCK)):
            width = simd.width_of(count)
            first = block * BLOCK
            for tile in range(tiles):
                _read_inputs(
                    width, first, min(first + BLOCK, inputs.size), tile, n, inputs, column, table, weight, bias, kind,
                    slope, x, m,
                )  # fmt: skip
        for level in range(waves.size - 1):
            for q in numba.prange(waves[level], waves[level + 1]):
                width = simd.width_of(count)
                for tile in range(tiles):
                    _forward_neuron(
                        width, order[q], tile * n * count, indptr, indices, values, first_linear, weight, bias,
                        kind, slope, x, m,
                    )  # fmt: skip
        for r in range(table.shape[0]):
            for q in range(outputs.size):
                i = np.int64(outputs[q])
                out[r, q] = weight[i] * x[((r // count) * n + i) * count + r % count] + bias[i]

    @kernel(parallel=True)
    def backward_columns(
        inputs, order, waves, t_indptr, t_indices, t_edge, values, first_linear, weight, bias, kind, slope,
        column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias,
    ):  # fmt: skip
        n = t_indptr.size - 1
        for tile in numba.prange(x.size // (n * count)):
            width = simd.width_of(count)
            for q in range(order.size + inputs.size):
                j = order[order.size - 1 - q] if q < order.size else inputs[q - order.size]
                _backward_neuron(
                    width, j, tile, n, t_indptr, t_indices, t_edge, values, first_linear, weight, bias, kind, slope,
                    column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias,
                )  # fmt: skip

    @kernel(parallel=True)
    def backward_wavefront(
        inputs, order, waves, t_indptr, t_indices, t_edge, values, first_linear, weight, bias, kind, slope,
        column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias,
    ):  # fmt: skip
        n = t_indptr.size - 1
        tiles = x.size // (n * count)
        for wave in range(waves.size):
            level = waves.size - 2 - wave
            first = waves[level] if level >= 0 else 0
            last = waves[level + 1] if level >= 0 else inputs.size
            for q in numba.prange(first, last):
                width = simd.width_of(count)
                j = order[q] if level >= 0 else inputs[q]
                for tile in range(tiles):
                    _backward_neuron(
                        width, j, tile, n, t_indptr, t_indices, t_edge, values, first_linear, weight, bias, kind,
                        slope, column_of, x, m, out_gradient, g, partial_edges, partial_weight, partial_bias,
                    )  # fmt: skip

    return {"columns": (forward_columns, backward_columns), "wavefront": (forward_wavefront, backward_wavefront)}


@kernel
def add_tiles(partial_edges, partial_weight, partial_bias, neurons, values, weight, bias):
    """Sum the tiles' partial gradients, in tile order, of the edges and of the executed neurons."""
    n_edges, n = values.size, weight.size
    tiles = partial_weight.size // n
    values[:] = partial_edges[:n_edges]
    for tile in range(1, tiles):
        values += partial_edges[tile * n_edges : (tile + 1) * n_edges]
    for q in range(neurons.size):
        j = np.int64(neurons[q])
        for tile in range(tiles):
            weight[j] += partial_weight[tile * n + j]
            bias[j] += partial_bias[tile * n + j]


@kernel
def input_gradients(inputs, column, n, count, g, out):
    """Scatter the gradient of executed inputs into ``out`` (batch, inputs), which holds zeros."""
    for r in range(out.shape[0]):
        base = (r // count) * n
        for q in range(inputs.size):
            i = np.int64(inputs[q])
            out[r, column[q]] = g[(base + i) * count + r % count]
