"""Forward and backward of a DAG of neurons on CUDA, over tiles of batch columns (DESIGN, section 4.4).

Twins of `cpu_propagate`: the same formulas over the same buffers ``x``, ``m``, ``g``, flat and tile-major
``[tile][neuron][WIDTH]``; columns beyond the batch repeat its last one, with gradient zero.  A block owns a tile, a
lane one column of it, and the block runs the whole DAG: its warps share the neurons of a level and wait for each other
between levels only; in a narrow level they share the edges of its neurons, too.  So a pass is one launch, whatever the
structure.  The edges of a neuron are summed in pieces, which are added in their order: who sums them does not matter.
Gradients of edges, weights and biases are sums over columns; other kernels compute them, a warp for WIDTH sums at a
time, in the order of lanes and then of tiles: the bits depend on the batch alone.

The caller has filled ``x``, ``m``, the gradients and sums with zeros: neurons that are not executed are not written,
and sums start from the array's zero, which has their dtype.
"""

from numba import config, cuda
from sparse_dnm.kernels import formulas
from sparse_dnm.kernels.cpu_propagate import LEAKY, LOGISTIC, TANH

WIDTH = 32  # columns of a tile: the lanes of a warp
SUMMING = 4  # warps of a block that sums: its tiles of WIDTH x (WIDTH + 1) float64 fill 33 of 48 KiB
MOST_WARPS = 16  # of a block that runs a tile
PIECE = 64  # edges of a neuron that one warp sums
TOGETHER = 8  # edges of a neuron whose loads do not wait for each other
READER = 0xFFFFFFFF
EDGE_TERMS = (SUMMING, WIDTH, WIDTH + 1)  # a column more: then the lanes of a warp read different banks
NEURON_TERMS = (SUMMING // 2, WIDTH, WIDTH + 1)
SHARED = (MOST_WARPS, WIDTH)  # sums of pieces: a row for each warp

kernel, inner = cuda.jit, cuda.jit(device=True)
# so that MOST_WARPS have their registers; the simulator knows no limit
whole_block = cuda.jit(**({} if config.ENABLE_CUDASIM else {"max_registers": 128}))
_leaky, _leaky_back = inner(formulas.leaky_relu), inner(formulas.leaky_relu_back)
_logistic, _logistic_back = inner(formulas.logistic), inner(formulas.logistic_back)
_tanh, _tanh_back = inner(formulas.tanh), inner(formulas.tanh_back)
_silu, _silu_back = inner(formulas.silu), inner(formulas.silu_back)


@inner
def _activate(z, kind, slope, m, at):
    """m = act(z) at ``at``."""
    if kind == LEAKY:
        m[at] = _leaky(z, slope)
    elif kind == LOGISTIC:
        m[at] = _logistic(z)
    elif kind == TANH:
        m[at] = _tanh(z)
    else:
        m[at] = _silu(z)


@inner
def _activate_back(z, gradient, kind, slope, g, at):
    """g at ``at`` = gradient of z, from the ``gradient`` of act(z)."""
    if kind == LEAKY:
        g[at] = _leaky_back(z, gradient, slope)
    elif kind == LOGISTIC:
        g[at] = _logistic_back(z, gradient)
    elif kind == TANH:
        g[at] = _tanh_back(z, gradient)
    else:
        g[at] = _silu_back(z, gradient)


@inner
def _sum(first, last, base, lane, indices, values, m, zero):
    """Sum over the edges first .. last of a neuron of value times message.

    Eight sums, whose loads do not wait for each other: a load takes hundreds of cycles, and a block has few warps.
    """
    a, b, c, d, p, q, r, s = zero, zero, zero, zero, zero, zero, zero, zero
    whole = first + (last - first) // TOGETHER * TOGETHER
    for e in range(first, whole, TOGETHER):
        a += values[e] * m[(base + indices[e]) * WIDTH + lane]
        b += values[e + 1] * m[(base + indices[e + 1]) * WIDTH + lane]
        c += values[e + 2] * m[(base + indices[e + 2]) * WIDTH + lane]
        d += values[e + 3] * m[(base + indices[e + 3]) * WIDTH + lane]
        p += values[e + 4] * m[(base + indices[e + 4]) * WIDTH + lane]
        q += values[e + 5] * m[(base + indices[e + 5]) * WIDTH + lane]
        r += values[e + 6] * m[(base + indices[e + 6]) * WIDTH + lane]
        s += values[e + 7] * m[(base + indices[e + 7]) * WIDTH + lane]
    for e in range(whole, last):
        a += values[e] * m[(base + indices[e]) * WIDTH + lane]
    return ((a + b) + (c + d)) + ((p + q) + (r + s))


@inner
def _piece(i, piece, base, lane, indptr, indices, values, first_linear, weight, bias, x, m, zero):
    """Sum over a piece of the edges of neuron i; ``base`` is where the neurons of the tile begin."""
    first = indptr[i] + piece * PIECE
    last = indptr[i + 1] if indptr[i + 1] < first + PIECE else first + PIECE
    if i < first_linear:
        return _sum(first, last, base, lane, indices, values, m, zero)
    total = zero
    for e in range(first, last):
        j = indices[e]
        total += values[e] * (weight[j] * x[(base + j) * WIDTH + lane] + bias[j])
    return total


@inner
def _pieces(i, indptr):
    """Number of pieces of the edges of neuron i."""
    return (indptr[i + 1] - indptr[i] + PIECE - 1) // PIECE


@inner
def _rounds(first, last, share, order, indptr):
    """How often ``share`` warps for each of the neurons first .. last of ``order`` sum a piece."""
    most = 0
    for q in range(first, last):
        pieces = _pieces(order[q], indptr)
        most = pieces if pieces > most else most
    return (most + share - 1) // share


@inner
def _finish(i, total, at, weight, bias, kind, slope, x, m):
    """x and m of neuron i, no input."""
    x[at] = total
    _activate(weight[i] * total + bias[i], kind[i], slope[i], m, at)


@inner
def _read(i, base, lane, indptr, indices, values, first_linear, weight, bias, kind, slope, x, m):
    """x and m of neuron i, no input, in the column of ``lane``."""
    at = (base + i) * WIDTH + lane
    zero = x[at]  # of the buffers' dtype
    total = zero
    for piece in range(_pieces(i, indptr)):
        total += _piece(i, piece, base, lane, indptr, indices, values, first_linear, weight, bias, x, m, zero)
    _finish(i, total, at, weight, bias, kind, slope, x, m)


@inner
def _read_together(
    first, last, share, sums, base, lane, warp, order, indptr, indices, values, first_linear, weight, bias, kind,
    slope, x, m,
):  # fmt: skip
    """As `_read`, the neurons first .. last of ``order``, ``share`` warps each; all warps of the block call it."""
    group, part = warp // share, warp % share
    own = first + group < last
    i = order[first + group] if own else order[first]
    at = (base + i) * WIDTH + lane
    zero = x[at]
    pieces = _pieces(i, indptr) if own else 0
    total = zero
    for r in range(_rounds(first, last, share, order, indptr)):
        piece = r * share + part
        if piece < pieces:
            sums[warp, lane] = _piece(
                i, piece, base, lane, indptr, indices, values, first_linear, weight, bias, x, m, zero
            )
        cuda.syncthreads()
        if part == 0:
            for k in range(share):
                if piece + k < pieces:
                    total += sums[warp + k, lane]
        cuda.syncthreads()
    if own and part == 0:
        _finish(i, total, at, weight, bias, kind, slope, x, m)


@inner
def _feed(i, value, base, lane, weight, bias, kind, slope, x, m):
    """x and m of input neuron i."""
    at = (base + i) * WIDTH + lane
    x[at] = value
    _activate(weight[i] * x[at] + bias[i], kind[i], slope[i], m, at)


@inner
def _returned(edge, base, lane, values, g):
    """What comes back over an edge, of the transpose."""
    return values[edge >> 32] * g[(base + (edge & READER)) * WIDTH + lane]


@inner
def _returned_singly(first, last, base, lane, t_edges, values, first_linear, g, by_message, by_value):
    """What comes back over the edges first .. last of the transpose, one after the other, added to both sums."""
    for k in range(first, last):
        edge = t_edges[k]
        part = _returned(edge, base, lane, values, g)
        if (edge & READER) < first_linear:
            by_message += part
        else:
            by_value += part
    return by_message, by_value


@inner
def _returned_sums(first, last, base, lane, t_edges, values, first_linear, g, zero):
    """Sums of what comes back to a neuron: to its message, and to its value.  Eight at a time, as in `_sum`."""
    a, b, c, d, p, q, r, s = zero, zero, zero, zero, zero, zero, zero, zero
    by_value = zero
    whole = first + (last - first) // TOGETHER * TOGETHER
    for k in range(first, whole, TOGETHER):
        e0, e1, e2, e3 = t_edges[k], t_edges[k + 1], t_edges[k + 2], t_edges[k + 3]
        e4, e5, e6, e7 = t_edges[k + 4], t_edges[k + 5], t_edges[k + 6], t_edges[k + 7]
        g0, g1 = _returned(e0, base, lane, values, g), _returned(e1, base, lane, values, g)
        g2, g3 = _returned(e2, base, lane, values, g), _returned(e3, base, lane, values, g)
        g4, g5 = _returned(e4, base, lane, values, g), _returned(e5, base, lane, values, g)
        g6, g7 = _returned(e6, base, lane, values, g), _returned(e7, base, lane, values, g)
        if (e7 & READER) < first_linear:  # the readers of a neuron ascend
            a, b, c, d, p, q, r, s = a + g0, b + g1, c + g2, d + g3, p + g4, q + g5, r + g6, s + g7
        elif (e0 & READER) >= first_linear:
            by_value += ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))
        else:
            a, by_value = _returned_singly(k, k + TOGETHER, base, lane, t_edges, values, first_linear, g, a, by_value)
    a, by_value = _returned_singly(whole, last, base, lane, t_edges, values, first_linear, g, a, by_value)
    return ((a + b) + (c + d)) + ((p + q) + (r + s)), by_value


@inner
def _piece_back(j, piece, base, lane, t_indptr, t_edges, values, first_linear, g, zero):
    """Sums of what comes back over a piece of the edges of neuron j: to its message, and to its value."""
    first = t_indptr[j] + piece * PIECE
    last = t_indptr[j + 1] if t_indptr[j + 1] < first + PIECE else first + PIECE
    return _returned_sums(first, last, base, lane, t_edges, values, first_linear, g, zero)


@inner
def _finish_back(
    j, by_message, by_value, at, row, weight, bias, kind, slope, column_of, x, out_gradient, g, z_gradient
):
    """g and z_gradient of neuron j, whose sample is ``row``."""
    _activate_back(weight[j] * x[at] + bias[j], by_message, kind[j], slope[j], z_gradient, at)
    total = z_gradient[at] + by_value
    if column_of[j] >= 0 and row < out_gradient.shape[0]:
        total += out_gradient[row, column_of[j]]
    z_gradient[at] = total
    g[at] = weight[j] * total


@inner
def _pull(
    j, base, lane, row, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope, column_of, x, out_gradient,
    g, z_gradient,
):  # fmt: skip
    """g and z_gradient of neuron j, in the column of ``lane``, whose sample is ``row``."""
    at = (base + j) * WIDTH + lane
    zero = g[at]  # of the buffers' dtype
    by_message, by_value = zero, zero
    for piece in range(_pieces(j, t_indptr)):
        message, value = _piece_back(j, piece, base, lane, t_indptr, t_edges, values, first_linear, g, zero)
        by_message += message
        by_value += value
    _finish_back(j, by_message, by_value, at, row, weight, bias, kind, slope, column_of, x, out_gradient, g, z_gradient)


@inner
def _pull_together(
    first, last, share, messages, by_values, base, lane, warp, row, order, t_indptr, t_edges, values, first_linear,
    weight, bias, kind, slope, column_of, x, out_gradient, g, z_gradient,
):  # fmt: skip
    """As `_pull`, the neurons first .. last of ``order``, ``share`` warps each; all warps of the block call it."""
    group, part = warp // share, warp % share
    own = first + group < last
    j = order[first + group] if own else order[first]
    at = (base + j) * WIDTH + lane
    zero = g[at]
    pieces = _pieces(j, t_indptr) if own else 0
    by_message, by_value = zero, zero
    for r in range(_rounds(first, last, share, order, t_indptr)):
        piece = r * share + part
        if piece < pieces:
            messages[warp, lane], by_values[warp, lane] = _piece_back(
                j, piece, base, lane, t_indptr, t_edges, values, first_linear, g, zero
            )
        cuda.syncthreads()
        if part == 0:
            for k in range(share):
                if piece + k < pieces:
                    by_message += messages[warp + k, lane]
                    by_value += by_values[warp + k, lane]
        cuda.syncthreads()
    if own and part == 0:
        _finish_back(
            j, by_message, by_value, at, row, weight, bias, kind, slope, column_of, x, out_gradient, g, z_gradient
        )


@whole_block
def forward(
    inputs, column, table, order, waves, indptr, indices, values, first_linear, weight, bias, kind, slope, outputs, x,
    m, out,
):  # fmt: skip
    """Forward pass: table (batch, inputs) -> out (batch, outputs).  Launch: a block of (WIDTH, warps) threads a tile,
    at most MOST_WARPS.

    Arguments as those of `cpu_propagate.make`, ``order`` by level.
    """
    lane, warp, warps, n = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y, indptr.size - 1
    base, row, rows = cuda.blockIdx.x * n, cuda.blockIdx.x * WIDTH + lane, table.shape[0]
    sums = cuda.shared.array(SHARED, x.dtype)
    for q in range(warp, inputs.size, warps):
        value = table[row if row < rows else rows - 1, column[q]]
        _feed(inputs[q], value, base, lane, weight, bias, kind, slope, x, m)
    cuda.syncthreads()
    for level in range(waves.size - 1):
        first, last = waves[level], waves[level + 1]
        share = warps // (last - first) if last > first else 1
        if share > 1:
            _read_together(
                first, last, share, sums, base, lane, warp, order, indptr, indices, values, first_linear, weight, bias,
                kind, slope, x, m,
            )  # fmt: skip
        else:
            for q in range(first + warp, last, warps):
                _read(order[q], base, lane, indptr, indices, values, first_linear, weight, bias, kind, slope, x, m)
        cuda.syncthreads()
    if row < rows:
        for q in range(warp, outputs.size, warps):
            i = outputs[q]
            out[row, q] = weight[i] * x[(base + i) * WIDTH + lane] + bias[i]


@whole_block
def backward(
    inputs, order, waves, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope, column_of, x,
    out_gradient, g, z_gradient,
):  # fmt: skip
    """Backward pass: from the gradient of the outputs to g = dL/dx and ``z_gradient`` = dL/dz of every executed neuron.

    Launch as `forward`.
    """
    lane, warp, warps, n = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y, t_indptr.size - 1
    base, row = cuda.blockIdx.x * n, cuda.blockIdx.x * WIDTH + lane
    messages = cuda.shared.array(SHARED, x.dtype)  # the simulator has one array for each line
    by_values = cuda.shared.array(SHARED, x.dtype)
    for step in range(waves.size - 1):
        level = waves.size - 2 - step
        first, last = waves[level], waves[level + 1]
        share = warps // (last - first) if last > first else 1
        if share > 1:
            _pull_together(
                first, last, share, messages, by_values, base, lane, warp, row, order, t_indptr, t_edges, values,
                first_linear, weight, bias, kind, slope, column_of, x, out_gradient, g, z_gradient,
            )  # fmt: skip
        else:
            for q in range(first + warp, last, warps):
                _pull(
                    order[q], base, lane, row, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope,
                    column_of, x, out_gradient, g, z_gradient,
                )  # fmt: skip
        cuda.syncthreads()
    for q in range(warp, inputs.size, warps):
        _pull(
            inputs[q], base, lane, row, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope, column_of,
            x, out_gradient, g, z_gradient,
        )  # fmt: skip


@inner
def _publish(done, at):
    """Let all warps read what this one has written for the neuron at ``at`` of ``done``."""
    cuda.threadfence()
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        cuda.atomic.add(done, at, 1)


@inner
def _wait(done, at):
    """Wait until `_publish` was called for ``at``."""
    while cuda.atomic.add(done, at, 0) == 0:
        pass


@kernel
def forward_syncfree(
    inputs, column, table, order, indptr, indices, values, first_linear, weight, bias, kind, slope, column_of, x, m,
    done, out,
):  # fmt: skip
    """As `forward`, for wide levels and small batches: each neuron of each tile has a warp to itself, which waits for
    its sources only, on ``done`` int32 (tiles * n,), zeros before (Liu et al. 2016, of triangular systems).

    Launch: blocks of WIDTH threads, no more than run at once: a warp never waits for one that has not begun.
    """
    lane, n, rows = cuda.threadIdx.x, indptr.size - 1, table.shape[0]
    tiles = done.size // n
    for item in range(cuda.blockIdx.x, (inputs.size + order.size) * tiles, cuda.gridDim.x):
        q, tile = item // tiles, item % tiles
        base, row = tile * n, tile * WIDTH + lane
        i = inputs[q] if q < inputs.size else order[q - inputs.size]
        if q < inputs.size:
            value = table[row if row < rows else rows - 1, column[q]]
            _feed(i, value, base, lane, weight, bias, kind, slope, x, m)
        else:
            for e in range(indptr[i] + lane, indptr[i + 1], WIDTH):
                _wait(done, base + indices[e])
            cuda.threadfence()
            cuda.syncthreads()
            _read(i, base, lane, indptr, indices, values, first_linear, weight, bias, kind, slope, x, m)
        if column_of[i] >= 0 and row < rows:
            out[row, column_of[i]] = weight[i] * x[(base + i) * WIDTH + lane] + bias[i]
        _publish(done, base + i)


@kernel
def backward_syncfree(
    inputs, order, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope, column_of, x, out_gradient, done,
    g, z_gradient,
):  # fmt: skip
    """As `backward`, each neuron of each tile by a warp of its own; see `forward_syncfree`."""
    lane, n = cuda.threadIdx.x, t_indptr.size - 1
    tiles = done.size // n
    for item in range(cuda.blockIdx.x, (inputs.size + order.size) * tiles, cuda.gridDim.x):
        q, tile = item // tiles, item % tiles
        base, row = tile * n, tile * WIDTH + lane
        j = order[order.size - 1 - q] if q < order.size else inputs[q - order.size]
        for k in range(t_indptr[j] + lane, t_indptr[j + 1], WIDTH):
            _wait(done, base + (t_edges[k] & READER))
        cuda.threadfence()
        cuda.syncthreads()
        _pull(
            j, base, lane, row, t_indptr, t_edges, values, first_linear, weight, bias, kind, slope, column_of, x,
            out_gradient, g, z_gradient,
        )  # fmt: skip
        _publish(done, base + j)


@kernel
def edge_gradients(readers, indices, first_linear, weight, bias, x, m, g, n, by_value):
    """``by_value`` (n_edges,): sum over the columns of g of the reader times what it reads of the source.

    readers, indices int32 (n_edges,).  Launch: blocks of (WIDTH, SUMMING) threads, a warp for WIDTH edges.
    """
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    terms = cuda.shared.array(EDGE_TERMS, by_value.dtype)
    first = (cuda.blockIdx.x * SUMMING + warp) * WIDTH
    mine = first + lane if first + lane < indices.size else 0
    total = by_value[mine]  # 0
    for tile in range(x.size // (n * WIDTH)):
        for k in range(WIDTH):
            e = first + k
            if e < indices.size:
                i, j = readers[e], indices[e]
                of = (tile * n + j) * WIDTH + lane
                message = m[of] if i < first_linear else weight[j] * x[of] + bias[j]
                terms[warp, k, lane] = g[(tile * n + i) * WIDTH + lane] * message
        cuda.syncthreads()
        if first + lane < indices.size:
            for k in range(WIDTH):
                total += terms[warp, lane, k]
        cuda.syncthreads()
    if first + lane < indices.size:
        by_value[first + lane] = total


@kernel
def neuron_gradients(x, z_gradient, n, by_weight, by_bias):
    """``by_weight``, ``by_bias`` (n,): sums over the columns of z_gradient x, and of z_gradient.  Launch as
    `edge_gradients`, a warp for WIDTH neurons."""
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    products = cuda.shared.array(NEURON_TERMS, by_bias.dtype)
    plain = cuda.shared.array(NEURON_TERMS, by_bias.dtype)
    first = (cuda.blockIdx.x * (SUMMING // 2) + warp) * WIDTH
    mine = first + lane if first + lane < n else 0
    weight_total, bias_total = by_weight[mine], by_bias[mine]  # 0
    for tile in range(x.size // (n * WIDTH)):
        for k in range(WIDTH):
            if first + k < n:
                at = (tile * n + first + k) * WIDTH + lane
                products[warp, k, lane] = z_gradient[at] * x[at]
                plain[warp, k, lane] = z_gradient[at]
        cuda.syncthreads()
        if first + lane < n:
            for k in range(WIDTH):
                weight_total += products[warp, lane, k]
                bias_total += plain[warp, lane, k]
        cuda.syncthreads()
    if first + lane < n:
        by_weight[first + lane], by_bias[first + lane] = weight_total, bias_total


@kernel
def input_gradients(inputs, column, n, g, out):
    """Scatter the gradient of executed inputs into ``out`` (batch, inputs), which holds zeros.  Launch as `forward`."""
    lane, warp, warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    row = cuda.blockIdx.x * WIDTH + lane
    if row < out.shape[0]:
        for q in range(warp, inputs.size, warps):
            out[row, column[q]] = g[(cuda.blockIdx.x * n + inputs[q]) * WIDTH + lane]
