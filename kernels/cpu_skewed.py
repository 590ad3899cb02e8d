"""Recurrent networks on the CPU for a few columns: neurons of all levels side by side (DESIGN, 4.13).

With one column a step of a cell waits for the step before, and lanes are empty.  Here level l runs a block of steps
later than level l - 1, so that at each stage neurons of all levels are independent: as many as fill the lanes form a
group and are computed together.
Arrays are as in `cpu_recurrent` with one tile, but for what belongs to groups: their neurons, ascending by level, have
a lane for each column; ``gates`` (groups, rows * COUNT), ``state`` (groups, states * COUNT); ``saved`` has a row for
each stage in which a neuron of the group runs, [number][step][lane], the values of the neurons as the last number.
A lane whose neuron does not run in a stage counts as beyond the end of its sequence.
"""

import functools

import numpy as np
from sparse_dnm.kernels import cpu_cells, simd
from sparse_dnm.kernels.cpu_cells import COUNT, CTRNN, GRU, LSTM
from sparse_dnm.kernels.cpu_propagate import _activate, _sum_messages
from sparse_dnm.kernels.cpu_recurrent import input_back, neuron_backs, outputs_back, read_inputs, write_outputs
from sparse_dnm.kernels.jit import kernel, task


@task
def _pack(width, columns, blocks, stage, n, members, level, lengths, x, packed, lane_lengths):
    """The numbers of a group's neurons in x as [step][lane], 0 where a neuron does not run; and how many steps each
    lane takes part in."""
    in_block = width.count // columns
    for slot in range(COUNT // columns):
        i = np.int64(members[slot])
        block = stage - level[max(i, 0)]
        runs = i >= 0 and 0 <= block < blocks
        at = (block * n + i) * width.count
        for c in range(columns):
            lane = slot * columns + c
            lane_lengths[lane] = lengths[c] - block * in_block if runs else 0
            for s in range(in_block):
                packed[s * COUNT + lane] = x[at + s * columns + c] if runs else 0.0


@task
def _unpack(width, columns, blocks, stage, n, slot, members, level, packed, x):
    """The reverse for one neuron of the group; returns where its numbers begin in x, or -1 if it does not run."""
    i = np.int64(members[slot])
    block = stage - level[max(i, 0)]
    if i < 0 or block < 0 or block >= blocks:
        return np.int64(-1)
    at = (block * n + i) * width.count
    for c in range(columns):
        for s in range(width.count // columns):
            x[at + s * columns + c] = packed[s * COUNT + slot * columns + c]
    return at


@functools.cache
def make(count):
    """Kernels for blocks of ``count`` numbers of a neuron: (forward, backward).

    members   int32 (groups * lanes,): neurons of the groups, -1 where there are no more
    level     int64 (n,); lowest, highest int64 (groups,): levels of the groups; depth: the highest of all
    rows      int64 (groups,): where those of a group begin in ``saved``
    scratch   (steps of a block * COUNT,); lane_lengths int32 (COUNT,)
    """

    @kernel
    def forward(
        cell, columns, inputs, column, table, lengths, order, indptr, indices, values, first_linear, weight, bias, kind,
        slope, cell_of, members, level, lowest, highest, rows, depth, numbers, gates, outputs, state, x, m, saved,
        lane_lengths, out,
    ):  # fmt: skip
        """Values, messages, states and outputs."""
        width, each, zero = simd.width_of(count), simd.width_of(COUNT), np.int64(0)
        n, steps, n_columns, in_block = indptr.size - 1, table.shape[1], table.shape[2], count // columns
        blocks, slots, n_groups, gate_size, n_state = (
            -(-steps // in_block),
            COUNT // columns,
            lowest.size,
            gates.shape[1],
            state.shape[1],
        )
        n_inputs, n_order, n_outputs, size = inputs.size, order.size, outputs.size, in_block * COUNT
        (
            inputs, column, table, lengths, order, indptr, indices, values, weight, bias, kind, slope, cell_of, members,
            level, lowest, highest, rows, gates, outputs, state, x, m, saved, lane_lengths, out,
        ) = simd.pointers(
            inputs, column, table, lengths, order, indptr, indices, values, weight, bias, kind, slope, cell_of, members,
            level, lowest, highest, rows, gates, outputs, state, x, m, saved, lane_lengths, out,
        )  # fmt: skip
        for stage in range(depth + blocks):
            if stage < blocks:
                read_inputs(
                    width, columns, steps, zero, stage, stage * n * count, inputs, n_inputs, column, n_columns, table,
                    lengths, x, weight, bias, kind, slope, x, m,
                )  # fmt: skip
            for q in range(n_order):
                i = np.int64(order[q])
                block = stage - level[i]
                if 0 <= block < blocks:
                    base = block * n * count
                    at = base + i * count
                    simd.store(
                        x, at, _sum_messages(width, i, base, indptr, indices, values, first_linear, weight, bias, x, m)
                    )
                    if cell_of[i] < 0:
                        _activate(x, m, at, width, weight[i], bias[i], kind[i], slope[i])
            for g in range(n_groups):
                if lowest[g] <= stage < highest[g] + blocks:
                    kept = simd.at(saved, (rows[g] + stage - lowest[g]) * numbers * size)
                    packed, group = simd.at(kept, (numbers - 1) * size), simd.at(members, g * slots)
                    own, h, c = (
                        simd.at(gates, g * gate_size),
                        simd.at(state, g * n_state),
                        simd.at(state, g * n_state + COUNT),
                    )
                    _pack(width, columns, blocks, stage, n, group, level, lengths, x, packed, lane_lengths)
                    if cell == LSTM:
                        cpu_cells.lstm(
                            each, in_block, COUNT, zero, zero, COUNT, own, lane_lengths, h, c, packed, kept, size
                        )
                    elif cell == GRU:
                        cpu_cells.gru(
                            each, in_block, COUNT, zero, zero, COUNT, own, lane_lengths, h, packed, kept, size
                        )
                    elif cell == CTRNN:
                        cpu_cells.ctrnn(each, in_block, COUNT, zero, zero, own, lane_lengths, h, packed, kept)
                    for slot in range(slots):
                        at = _unpack(width, columns, blocks, stage, n, slot, group, level, packed, x)
                        if at >= 0:
                            i = np.int64(group[slot])
                            _activate(x, m, at, width, weight[i], bias[i], kind[i], slope[i])
            block = stage - depth
            if block >= 0:
                write_outputs(
                    width, columns, steps, zero, block, block * n * count, outputs, n_outputs, n_outputs, lengths,
                    weight, bias, x, x, out,
                )  # fmt: skip

    neuron_back = neuron_backs(count)

    @kernel
    def backward(
        cell, columns, inputs, column, table, lengths, order, t_indptr, readers, values, first_linear, weight, bias,
        kind, slope, members, level, lowest, highest, rows, depth, numbers, gates, column_of, state, x, m, saved,
        lane_lengths, by_out, g, scratch, carry, edge_sums, by_weight, by_bias, gate_sums, by_x,
    ):  # fmt: skip
        """Gradients, from those of outputs and state."""
        width, each, zero = simd.width_of(count), simd.width_of(COUNT), np.int64(0)
        n, steps, n_columns, in_block = t_indptr.size - 1, table.shape[1], table.shape[2], count // columns
        blocks, slots, n_groups, gate_size, n_state = (
            -(-steps // in_block),
            COUNT // columns,
            lowest.size,
            gates.shape[1],
            state.shape[1],
        )
        n_inputs, n_order, n_outputs, size = inputs.size, order.size, by_out.shape[2], in_block * COUNT
        wanted = by_x.size > 0
        (
            inputs, column, lengths, order, t_indptr, readers, values, weight, bias, kind, slope, members, level,
            lowest, highest, rows, gates, column_of, state, x, m, saved, lane_lengths, by_out, g, scratch, carry,
            edge_sums, by_weight, by_bias, gate_sums, by_x,
        ) = simd.pointers(
            inputs, column, lengths, order, t_indptr, readers, values, weight, bias, kind, slope, members, level,
            lowest, highest, rows, gates, column_of, state, x, m, saved, lane_lengths, by_out, g, scratch, carry,
            edge_sums, by_weight, by_bias, gate_sums, by_x,
        )  # fmt: skip
        for back in range(depth + blocks):
            stage = depth + blocks - 1 - back
            for q in range(n_order + n_inputs):
                is_input = q >= n_order
                k = n_inputs - 1 - (q - n_order)
                j = np.int64(inputs[k] if is_input else order[n_order - 1 - q])
                block = stage - level[j]
                if 0 <= block < blocks:
                    base = block * n * count
                    at = base + j * count
                    total = neuron_back(
                        j, base, base, t_indptr, readers, values, first_linear, weight, bias, kind, slope, x, m, g,
                        edge_sums,
                    )  # fmt: skip
                    if column_of[j] >= 0:
                        simd.store(g, at, total)
                        outputs_back(
                            width, columns, steps, zero, block, at, np.int64(column_of[j]), n_outputs, lengths, by_out,
                            g, g,
                        )  # fmt: skip
                        total = simd.load(g, at, width)
                    by_w, by_b = simd.dot_and_sum(total, simd.load(x, at, width))
                    by_weight[j] += by_w
                    by_bias[j] += by_b
                    simd.store(g, at, simd.affine(weight[j], total, weight[j] * 0))
                    if is_input:
                        input_back(
                            width, columns, steps, zero, block, at, np.int64(column[k]), n_columns, lengths, g, g,
                            wanted, by_x,
                        )  # fmt: skip
            for group in range(n_groups):
                if lowest[group] <= stage < highest[group] + blocks:
                    kept = simd.at(saved, (rows[group] + stage - lowest[group]) * numbers * size)
                    packed, them = simd.at(kept, (numbers - 1) * size), simd.at(members, group * slots)
                    own, sums = simd.at(gates, group * gate_size), simd.at(gate_sums, group * gate_size)
                    h, c = simd.at(state, group * n_state), simd.at(state, group * n_state + COUNT)
                    by_h, by_c = simd.at(carry, group * n_state), simd.at(carry, group * n_state + COUNT)
                    if stage > lowest[group]:
                        h, c = (
                            simd.at(packed, -numbers * size + size - COUNT),
                            simd.at(kept, (6 - numbers) * size - COUNT),
                        )
                    _pack(width, columns, blocks, stage, n, them, level, lengths, g, scratch, lane_lengths)
                    if cell == LSTM:
                        cpu_cells.lstm_back(
                            each, in_block, COUNT, zero, zero, zero, zero, COUNT, own, lane_lengths, h, c, packed, kept,
                            by_h, by_c, scratch, sums, size,
                        )  # fmt: skip
                    elif cell == GRU:
                        cpu_cells.gru_back(
                            each, in_block, COUNT, zero, zero, zero, zero, COUNT, own, lane_lengths, h, packed, kept,
                            by_h, scratch, sums, size,
                        )  # fmt: skip
                    elif cell == CTRNN:
                        cpu_cells.ctrnn_back(
                            each, in_block, COUNT, zero, zero, zero, zero, own, lane_lengths, h, packed, kept, by_h,
                            scratch, sums,
                        )  # fmt: skip
                    for slot in range(slots):
                        _unpack(width, columns, blocks, stage, n, slot, them, level, scratch, g)

    return forward, backward
