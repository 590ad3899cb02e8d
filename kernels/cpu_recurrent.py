"""Forward and backward of a recurrent network through a sequence on the CPU (DESIGN, 4.13).

A tile is some columns of the batch, through all time steps, on one thread.  Its time is cut into blocks of
``count // columns`` steps; all neurons run through a block before the next one begins, so that an edge reads and adds
``count`` consecutive numbers, also of a small batch.  Where outputs are inputs of the next step (memory), a block is
one step.
Arrays x, m are flat, ``[tile][block][neuron][step][column]``: as in `cpu_propagate`, for tiles * blocks tiles of
``count`` columns.  A column beyond the batch, and a time step beyond the last, count as beyond a sequence's length:
inputs are 0 there, states stay, outputs are 0, and gradients are 0.
Sums over blocks run from the last to the first, and those over tiles in their order, so that the bits do not depend on
the number of threads.
"""

import functools

import numba
import numpy as np
from sparse_dnm.kernels import cpu_cells, simd
from sparse_dnm.kernels.cpu_cells import CTRNN, GRU, LSTM
from sparse_dnm.kernels.cpu_propagate import _activate, _activate_back, _sum_messages
from sparse_dnm.kernels.jit import inner, kernel, task

GROUP = simd.GROUP


@task
def read_inputs(
    width, columns, steps, tile, block, base, inputs, n_inputs, column, n_columns, table, lengths, memory, weight, bias,
    kind, slope, x, m,
):  # fmt: skip
    """Values and messages of the executed inputs in one block; columns from ``n_columns`` on are those of ``memory``
    (memory neurons, columns)."""
    in_block = width.count // columns
    for q in range(n_inputs):
        i, k = np.int64(inputs[q]), np.int64(column[q])
        at = base + i * width.count
        simd.store(x, at, simd.zeros(x, width))
        for c in range(columns):
            row = tile * columns + c
            if k >= n_columns:
                x[at + c] = memory[(k - n_columns) * columns + c]
            else:
                for s in range(min(in_block, lengths[row] - block * in_block)):
                    x[at + s * columns + c] = table[(row * steps + block * in_block + s) * n_columns + k]
        _activate(x, m, at, width, weight[i], bias[i], kind[i], slope[i])


@task
def write_outputs(
    width, columns, steps, tile, block, base, outputs, n_outputs, n_all, lengths, weight, bias, x, memory, out
):
    """z of the outputs in one block; what follows ``n_outputs`` of them goes to ``memory``."""
    in_block = width.count // columns
    for q in range(n_all):
        i = np.int64(outputs[q])
        at = base + i * width.count
        for c in range(columns):
            row = tile * columns + c
            for s in range(min(in_block, lengths[row] - block * in_block)):
                z = weight[i] * x[at + s * columns + c] + bias[i]
                if q < n_outputs:
                    out[(row * steps + block * in_block + s) * n_outputs + q] = z
                else:
                    memory[(q - n_outputs) * columns + c] = z


def _make_forward(count):
    """Kernel `forward` of `make`."""

    @task
    def forward_tile(
        tile, cell, columns, inputs, column, table, lengths, order, indptr, indices, values, first_linear, weight,
        bias, kind, slope, cell_of, saved_at, n_saved, numbers, gates, outputs, n_memory, state, x, m, saved, out,
    ):  # fmt: skip
        """All of one tile."""
        width, one = simd.width_of(count), simd.width_of(1)
        n, n_inputs, n_order = indptr.size - 1, inputs.size, order.size
        steps, n_columns, n_cells, n_state = table.shape[1], table.shape[2], gates.shape[1], state.shape[1]
        n_all = outputs.size
        n_outputs, in_block = n_all - n_memory, count // columns
        blocks = -(-steps // in_block)
        (
            inputs, column, table, lengths, order, indptr, indices, values, weight, bias, kind, slope, cell_of,
            saved_at, gates, outputs, state, x, m, saved, out,
        ) = simd.pointers(
            inputs, column, table, lengths, order, indptr, indices, values, weight, bias, kind, slope, cell_of,
            saved_at, gates, outputs, state, x, m, saved, out,
        )  # fmt: skip
        state = simd.at(state, tile * n_state)
        memory = simd.at(state, n_state - n_memory * columns)
        tile_lengths = simd.at(lengths, tile * columns)
        for block in range(blocks):
            base = (tile * blocks + block) * n * count
            read_inputs(
                width, columns, steps, tile, block, base, inputs, n_inputs, column, n_columns, table, lengths, memory,
                weight, bias, kind, slope, x, m,
            )  # fmt: skip
            for q in range(n_order):
                i = np.int64(order[q])
                at = base + i * count
                simd.store(
                    x, at, _sum_messages(width, i, base, indptr, indices, values, first_linear, weight, bias, x, m)
                )
                k = np.int64(cell_of[i])
                if k >= 0:
                    here = simd.at(x, at)
                    kept = ((tile * blocks + block) * n_saved + np.int64(saved_at[i])) * numbers * count
                    kept = simd.at(saved, kept)
                    first = block * in_block
                    ran = min(in_block, steps - first)
                    own, c_own = simd.at(state, k * columns), simd.at(state, (n_cells + k) * columns)
                    if cell == LSTM:
                        cpu_cells.lstm(
                            one, ran, columns, first, k, n_cells, gates, tile_lengths, own, c_own, here, kept, count
                        )
                    elif cell == GRU:
                        cpu_cells.gru(one, ran, columns, first, k, n_cells, gates, tile_lengths, own, here, kept, count)
                    elif cell == CTRNN:
                        cpu_cells.ctrnn(one, ran, columns, first, k, gates, tile_lengths, own, here, kept)
                _activate(x, m, at, width, weight[i], bias[i], kind[i], slope[i])
            write_outputs(
                width, columns, steps, tile, block, base, outputs, n_outputs, n_all, lengths, weight, bias, x,
                memory, out,
            )  # fmt: skip

    @kernel(parallel=True)
    def forward(
        cell, columns, inputs, column, table, lengths, order, indptr, indices, values, first_linear, weight, bias, kind,
        slope, cell_of, saved_at, n_saved, numbers, gates, outputs, n_memory, state, x, m, saved, out,
    ):  # fmt: skip
        """Values, messages, states and outputs of all tiles; see `make`."""
        tiles, zero = lengths.size // columns, np.int64(0)  # no literal: Numba would compile what it calls twice
        if tiles == 1:
            forward_tile(
                zero, cell, columns, inputs, column, table, lengths, order, indptr, indices, values, first_linear,
                weight, bias, kind, slope, cell_of, saved_at, n_saved, numbers, gates, outputs, n_memory, state, x,
                m, saved, out,
            )  # fmt: skip
        else:
            for tile in numba.prange(tiles):
                forward_tile(
                    np.int64(tile), cell, columns, inputs, column, table, lengths, order, indptr, indices, values,
                    first_linear, weight, bias, kind, slope, cell_of, saved_at, n_saved, numbers, gates, outputs,
                    n_memory, state, x, m, saved, out,
                )  # fmt: skip

    return forward


@inner
def _edge_back(width, total, message, k, base, readers, values, g):
    """total + value * g of transposed edge k, and the lanes of <g, message>."""
    g_k = simd.load(g, base + np.int64(readers[k]) * width.count, width)
    return simd.scaled_add(total, values[k], g_k), simd.products(message, g_k)


@inner
def _edges_back(width, total, message, k, last, base, readers, values, g, sums):
    """Add value * g over transposed edges k .. last to ``total``, and <g, message> of each edge to its sum."""
    group = simd.width_of(GROUP)
    while k + GROUP <= last:
        total, p0 = _edge_back(width, total, message, k, base, readers, values, g)
        total, p1 = _edge_back(width, total, message, k + 1, base, readers, values, g)
        total, p2 = _edge_back(width, total, message, k + 2, base, readers, values, g)
        total, p3 = _edge_back(width, total, message, k + 3, base, readers, values, g)
        total, p4 = _edge_back(width, total, message, k + 4, base, readers, values, g)
        total, p5 = _edge_back(width, total, message, k + 5, base, readers, values, g)
        total, p6 = _edge_back(width, total, message, k + 6, base, readers, values, g)
        total, p7 = _edge_back(width, total, message, k + 7, base, readers, values, g)
        found = simd.lane_sums(p0, p1, p2, p3, p4, p5, p6, p7)
        simd.store(sums, k, simd.add(simd.load(sums, k, group), found))
        k += GROUP
    while k < last:
        g_k = simd.load(g, base + np.int64(readers[k]) * width.count, width)
        total = simd.scaled_add(total, values[k], g_k)
        sums[k] += simd.dot(message, g_k)
        k += 1
    return total


@task
def outputs_back(width, columns, steps, tile, block, at, q, n_outputs, lengths, by_out, by_memory, g):
    """Add the gradient of output q to that of its neuron; that of a memory goes from the next step to this one."""
    in_block = width.count // columns
    for c in range(columns):
        row = tile * columns + c
        for s in range(min(in_block, lengths[row] - block * in_block)):
            if q < n_outputs:
                g[at + s * columns + c] += by_out[(row * steps + block * in_block + s) * n_outputs + q]
            else:
                place = (q - n_outputs) * columns + c
                g[at + s * columns + c] += by_memory[place]
                by_memory[place] = 0.0


@task
def input_back(width, columns, steps, tile, block, at, k, n_columns, lengths, g, by_memory, wanted, by_x):
    """Hand on the gradient of the input of column k."""
    in_block = width.count // columns
    if k >= n_columns or wanted:
        for c in range(columns):
            row = tile * columns + c
            for s in range(min(in_block, lengths[row] - block * in_block)):
                if k >= n_columns:
                    by_memory[(k - n_columns) * columns + c] += g[at + s * columns + c]
                else:
                    by_x[(row * steps + block * in_block + s) * n_columns + k] = g[at + s * columns + c]


def neuron_backs(count):
    """The function `neuron_back` for blocks of ``count`` numbers."""

    @inner
    def neuron_back(
        j, base, g_base, t_indptr, readers, values, first_linear, weight, bias, kind, slope, x, m, g, edge_sums
    ):
        """The gradient of neuron j's z from its readers, and those of its edges to them."""
        width = simd.width_of(count)
        at = base + j * count
        first, last = t_indptr[j], t_indptr[j + 1]
        middle = last
        while middle > first and readers[middle - 1] >= first_linear:
            middle -= 1
        total = simd.zeros(x, width)
        if middle > first:
            total = _edges_back(
                width, total, simd.load(m, at, width), first, middle, g_base, readers, values, g, edge_sums
            )
            here = simd.at(g, g_base + j * count)
            total = _activate_back(
                simd.at(x, at), here, np.int64(0), total, width, weight[j], bias[j], kind[j], slope[j]
            )
        if middle < last:
            z = simd.affine(weight[j], simd.load(x, at, width), bias[j])
            total = _edges_back(width, total, z, middle, last, g_base, readers, values, g, edge_sums)
        return total

    return neuron_back


def _make_backward(count):
    """Kernel `backward` of `make`."""
    neuron_back = neuron_backs(count)

    @task
    def backward_tile(
        tile, cell, offset, truncate, columns, inputs, column, table, lengths, order, t_indptr, readers, values,
        first_linear, weight, bias, kind, slope, cell_of, saved_at, n_saved, numbers, gates, column_of, n_memory,
        state, x, m, saved, by_out, g, carry, edge_sums, by_weight, by_bias, gate_sums, by_x,
    ):  # fmt: skip
        """All of one tile, from the last block to the first."""
        width, one = simd.width_of(count), simd.width_of(1)
        n, n_inputs, n_order, n_edges = t_indptr.size - 1, inputs.size, order.size, readers.size
        steps, n_columns, n_cells, n_state = table.shape[1], table.shape[2], gates.shape[1], state.shape[1]
        n_outputs, in_block, wanted = by_out.shape[2], count // columns, by_x.size > 0
        blocks, every_g = -(-steps // in_block), g.size == x.size
        gate_size = gate_sums.shape[1]
        (
            inputs, column, lengths, order, t_indptr, readers, values, weight, bias, kind, slope, cell_of, saved_at,
            gates, column_of, state, x, m, saved, by_out, g, carry, edge_sums, by_weight, by_bias, gate_sums, by_x,
        ) = simd.pointers(
            inputs, column, lengths, order, t_indptr, readers, values, weight, bias, kind, slope, cell_of, saved_at,
            gates, column_of, state, x, m, saved, by_out, g, carry, edge_sums, by_weight, by_bias, gate_sums, by_x,
        )  # fmt: skip
        state, carry = simd.at(state, tile * n_state), simd.at(carry, tile * n_state)
        by_memory, edge_sums = simd.at(carry, n_state - n_memory * columns), simd.at(edge_sums, tile * n_edges)
        tile_lengths = simd.at(lengths, tile * columns)
        for back in range(blocks):
            block = blocks - 1 - back
            base = (tile * blocks + block) * n * count
            g_base = base if every_g else tile * n * count
            for q in range(n_order + n_inputs):
                is_input = q >= n_order
                j = np.int64(inputs[n_inputs - 1 - (q - n_order)] if is_input else order[n_order - 1 - q])
                at = g_base + j * count
                total = neuron_back(
                    j, base, g_base, t_indptr, readers, values, first_linear, weight, bias, kind, slope, x, m, g,
                    edge_sums,
                )  # fmt: skip
                if column_of[j] >= 0:
                    simd.store(g, at, total)
                    outputs_back(
                        width, columns, steps, tile, block, at, np.int64(column_of[j]), n_outputs, lengths,
                        by_out, by_memory, g,
                    )  # fmt: skip
                    total = simd.load(g, at, width)
                by_w, by_b = simd.dot_and_sum(total, simd.load(x, base + j * count, width))
                by_weight[tile * n + j] += by_w
                by_bias[tile * n + j] += by_b
                simd.store(g, at, simd.affine(weight[j], total, weight[j] * 0))
                k = np.int64(cell_of[j])
                if k >= 0:
                    rank = np.int64(saved_at[j])
                    here, by_value = simd.at(x, base + j * count), simd.at(g, at)
                    kept = simd.at(saved, ((tile * blocks + block) * n_saved + rank) * numbers * count)
                    sums = simd.at(gate_sums, (tile * n_saved + rank) * gate_size)
                    before, c_before = simd.at(state, k * columns), simd.at(state, (n_cells + k) * columns)
                    if block > 0:
                        late = (in_block - 1) * columns
                        before = simd.at(here, late - n * count)
                        c_before = simd.at(kept, late + (5 - n_saved * numbers) * count)
                    first = block * in_block
                    ran = min(in_block, steps - first)
                    own, c_own = simd.at(carry, k * columns), simd.at(carry, (n_cells + k) * columns)
                    if cell == LSTM:
                        cpu_cells.lstm_back(
                            one, ran, columns, first, offset, truncate, k, n_cells, gates, tile_lengths, before,
                            c_before, here, kept, own, c_own, by_value, sums, count,
                        )  # fmt: skip
                    elif cell == GRU:
                        cpu_cells.gru_back(
                            one, ran, columns, first, offset, truncate, k, n_cells, gates, tile_lengths, before, here,
                            kept, own, by_value, sums, count,
                        )  # fmt: skip
                    elif cell == CTRNN:
                        cpu_cells.ctrnn_back(
                            one, ran, columns, first, offset, truncate, k, gates, tile_lengths, before, here, kept, own,
                            by_value, sums,
                        )  # fmt: skip
                if is_input:
                    input_back(
                        width, columns, steps, tile, block, at, np.int64(column[n_inputs - 1 - (q - n_order)]),
                        n_columns, lengths, g, by_memory, wanted, by_x,
                    )  # fmt: skip
            if n_memory > 0 and cpu_cells.is_cut(offset + block, truncate):
                for k in range(n_memory * columns):
                    by_memory[k] = 0.0

    @kernel(parallel=True)
    def backward(
        cell, offset, truncate, columns, inputs, column, table, lengths, order, t_indptr, readers, values, first_linear,
        weight, bias, kind, slope, cell_of, saved_at, n_saved, numbers, gates, column_of, n_memory, state, x, m,
        saved, by_out, g, carry, edge_sums, by_weight, by_bias, gate_sums, by_x,
    ):  # fmt: skip
        """Gradients of all tiles, from those of outputs and state; see `make`."""
        tiles, zero = lengths.size // columns, np.int64(0)
        if tiles == 1:
            backward_tile(
                zero, cell, offset, truncate, columns, inputs, column, table, lengths, order, t_indptr, readers, values,
                first_linear, weight, bias, kind, slope, cell_of, saved_at, n_saved, numbers, gates, column_of,
                n_memory, state, x, m, saved, by_out, g, carry, edge_sums, by_weight, by_bias, gate_sums, by_x,
            )  # fmt: skip
        else:
            for tile in numba.prange(tiles):
                backward_tile(
                    np.int64(tile), cell, offset, truncate, columns, inputs, column, table, lengths, order, t_indptr,
                    readers, values, first_linear, weight, bias, kind, slope, cell_of, saved_at, n_saved, numbers,
                    gates, column_of, n_memory, state, x, m, saved, by_out, g, carry, edge_sums, by_weight, by_bias,
                    gate_sums, by_x,
                )  # fmt: skip

    return backward


@functools.cache
def make(count):
    """Compile-on-first-call kernels for blocks of ``count`` numbers of a neuron: (forward, backward).

    cell      code of the neurons with a state (`cpu_cells`); ``columns`` of the batch in a tile, a divisor of count
    inputs    executed input neurons; ``column`` of each in the table, those of the memory after the others
    table     (batch, steps, columns); ``lengths`` int32 (tiles * columns,), 0 beyond the batch
    order     the other executed neurons, sources before readers
    cell_of   int32 (n,): column of ``gates`` (rows, n_cells), or -1; ``saved_at`` int32 (n,): place among the executed
    outputs   neurons, the last ``n_memory`` of them inputs of the next step; ``column_of`` int32 (n,): place, or -1
    state     (tiles, n_state * columns): of `forward`, before and then after the sequence; of `backward`, before it
    x, m      flat, as above; ``saved`` ``[tile][block][cell][number][step][column]``, ``numbers`` numbers
    out       (batch, steps, n_outputs), which holds zeros
    readers   int32 (n_edges,): row j of the transpose lists those of neuron j, linear ones last; so are ``values``
    offset    number of the first step; ``truncate``: see `cpu_cells.lstm_back`
    by_out    gradient of out; ``carry`` as state: gradient of the last state, and then of the first
    g         as x, or for a block only, (tiles * n * count,): gradient of the sums of messages, scratch
    edge_sums (tiles, n_edges), by_weight, by_bias (tiles, n), gate_sums (tiles * n_saved, rows * COUNT): hold zeros
    by_x      as table, zeros, or empty: not wanted
    """
    return _make_forward(count), _make_backward(count)


@kernel
def add_up(tiles, edges, places, weight, bias, kept, gates, cells, by_edge, by_weight, by_bias, by_gate):
    """Sums over tiles, in their order, and over lanes, of what `backward` returned.

    ``places`` of the edges, ``kept`` neurons and ``cells`` say where in the results, which hold zeros, the sums of
    ``edges``, of ``weight`` and ``bias``, and of ``gates`` belong.
    """
    for tile in range(tiles):
        for k in range(places.size):
            by_edge[places[k]] += edges[tile, k]
        for k in range(kept.size):
            by_weight[kept[k]] += weight[tile, k]
            by_bias[kept[k]] += bias[tile, k]
        for k in range(cells.size):
            for row in range(by_gate.shape[0]):
                for lane in range(cpu_cells.COUNT):
                    by_gate[row, cells[k]] += gates[tile * cells.size + k, row * cpu_cells.COUNT + lane]
