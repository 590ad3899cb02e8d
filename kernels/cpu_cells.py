"""Neurons with a state on the CPU: from the sum of messages to the neuron's value, step by step, and back.

A cell works on one neuron of one tile, for ``steps`` time steps of ``columns`` columns each, which lie one after the
other in memory.  Its parameters stand in ``gates`` (rows, n_cells), one row after the other:
  lstm   w, u and b of the gates i, f, g, o (Hochreiter & Schmidhuber 1997; Gers et al. 2000), as torch.nn.LSTM
  gru    w and u of r, z, n, then b of r, z, n, and that beside u_n h (Cho et al. 2014), as torch.nn.GRU
  ctrnn  the raw rate: x' = x + sigmoid(rate) (a - x), a leaky integrator (Funahashi & Nakamura 1993)
A column takes part up to its length; afterwards its state stays as it is.
``saved`` keeps SAVED[cell] numbers per step and column for the way back, the sum of messages first.
"""

from sparse_dnm.kernels import lanes
from sparse_dnm.kernels.jit import inner, task
from sparse_dnm.kernels.lanes import COUNT
from sparse_dnm.kernels.vector_math import fma, logistic, tanh

MEMORYLESS, LSTM, GRU, CTRNN = range(4)
SAVED = (0, 6, 5, 1)  # numbers kept per step: sum a; lstm i, f, g, o, c; gru r, z, n, u_n h + b
STATES = (0, 2, 1, 1)  # numbers of a state
ROWS = (0, 12, 10, 1)  # of gates


@inner
def _gate(gates, row, n_cells, cell, wide):
    """A parameter, in every lane or of each lane: see `lanes.spread`."""
    return lanes.spread(gates, row * n_cells + cell, wide)


@inner
def _add(sums, row, value):
    """Add Lanes to those of a gate's row."""
    every = lanes.first(COUNT)
    lanes.store(sums, row * COUNT, every, lanes.load(sums, row * COUNT, every, 0.0) + value)


@task
def lstm(wide, steps, columns, first, cell, n_cells, gates, lengths, state, c_state, x, saved, width):
    """From the sums of messages in x to the values h, in place; ``first``: number of the first step.

    state, c_state (columns,): h and c before, and then after the steps.  ``wide``: a `simd.Width`, 1 where all columns
    are of one neuron, COUNT where each lane is of a neuron of its own.
    """
    w_i, w_f, w_g, w_o = (
        _gate(gates, 0, n_cells, cell, wide),
        _gate(gates, 1, n_cells, cell, wide),
        _gate(gates, 2, n_cells, cell, wide),
        _gate(gates, 3, n_cells, cell, wide),
    )
    u_i, u_f = _gate(gates, 4, n_cells, cell, wide), _gate(gates, 5, n_cells, cell, wide)
    u_g, u_o = _gate(gates, 6, n_cells, cell, wide), _gate(gates, 7, n_cells, cell, wide)
    b_i, b_f = _gate(gates, 8, n_cells, cell, wide), _gate(gates, 9, n_cells, cell, wide)
    b_g, b_o = _gate(gates, 10, n_cells, cell, wide), _gate(gates, 11, n_cells, cell, wide)
    for at in range(0, columns, COUNT):
        inside = lanes.first(columns - at)
        length = lanes.load(lengths, at, inside, 0)
        h = lanes.load(state, at, inside, 0.0)
        c = lanes.load(c_state, at, inside, 0.0)
        for s in range(steps):
            place = s * columns + at
            a = lanes.load(x, place, inside, 0.0)
            i = logistic(fma(h, u_i, fma(a, w_i, b_i)))
            f = logistic(fma(h, u_f, fma(a, w_f, b_f)))
            g = tanh(fma(h, u_g, fma(a, w_g, b_g)))
            o = logistic(fma(h, u_o, fma(a, w_o, b_o)))
            alive = length > first + s
            c = lanes.select(alive, fma(f, c, i * g), c)
            h = lanes.select(alive, o * tanh(c), h)
            lanes.store(saved, place, inside, a)
            lanes.store(saved, width + place, inside, i)
            lanes.store(saved, 2 * width + place, inside, f)
            lanes.store(saved, 3 * width + place, inside, g)
            lanes.store(saved, 4 * width + place, inside, o)
            lanes.store(saved, 5 * width + place, inside, c)
            lanes.store(x, place, inside, h)
        lanes.store(state, at, inside, h)
        lanes.store(c_state, at, inside, c)


@task
def lstm_back(
    wide, steps, columns, first, offset, truncate, cell, n_cells, gates, lengths, before, c_before, x, saved, carry,
    c_carry, g, sums, width,
):  # fmt: skip
    """From the gradient g of the values to that of the sums of messages, in place, and ``sums`` (rows, COUNT) of the
    gates' gradients; carry, c_carry (columns,): gradient of h and c, after the steps and then before them.

    before, c_before (columns,): h and c before the first step.  ``truncate``: no gradient goes from a step
    ``offset + t`` that is a multiple of it to the one before; 0: from all.
    """
    w_i, w_f, w_g, w_o = (
        _gate(gates, 0, n_cells, cell, wide),
        _gate(gates, 1, n_cells, cell, wide),
        _gate(gates, 2, n_cells, cell, wide),
        _gate(gates, 3, n_cells, cell, wide),
    )
    u_i, u_f = _gate(gates, 4, n_cells, cell, wide), _gate(gates, 5, n_cells, cell, wide)
    u_g, u_o = _gate(gates, 6, n_cells, cell, wide), _gate(gates, 7, n_cells, cell, wide)
    zero = lanes.fill(x, 0.0)
    sw_i, sw_f, sw_g, sw_o = zero, zero, zero, zero
    su_i, su_f, su_g, su_o = zero, zero, zero, zero
    sb_i, sb_f, sb_g, sb_o = zero, zero, zero, zero
    for at in range(0, columns, COUNT):
        inside = lanes.first(columns - at)
        length = lanes.load(lengths, at, inside, 0)
        by_h = lanes.load(carry, at, inside, 0.0)
        by_c = lanes.load(c_carry, at, inside, 0.0)
        for back in range(steps):
            s = steps - 1 - back
            place = s * columns + at
            h = lanes.load(before, at, inside, 0.0)
            c_last = lanes.load(c_before, at, inside, 0.0)
            if s > 0:
                h = lanes.load(x, place - columns, inside, 0.0)
                c_last = lanes.load(saved, 5 * width + place - columns, inside, 0.0)
            alive = length > first + s
            a = lanes.load(saved, place, inside, 0.0)
            i = lanes.load(saved, width + place, inside, 0.0)
            f = lanes.load(saved, 2 * width + place, inside, 0.0)
            g_gate = lanes.load(saved, 3 * width + place, inside, 0.0)
            o = lanes.load(saved, 4 * width + place, inside, 0.0)
            squashed = tanh(lanes.load(saved, 5 * width + place, inside, 0.0))
            total = lanes.load(g, place, inside, 0.0) + by_h
            d_c = lanes.select(alive, fma(total * o, 1.0 - squashed * squashed, by_c), zero)
            d_o = lanes.select(alive, total * squashed * o * (1.0 - o), zero)
            d_i = d_c * g_gate * i * (1.0 - i)
            d_f = d_c * c_last * f * (1.0 - f)
            d_g = d_c * i * (1.0 - g_gate * g_gate)
            lanes.store(g, place, inside, fma(d_i, w_i, fma(d_f, w_f, fma(d_g, w_g, d_o * w_o))))
            by_h = lanes.select(alive, fma(d_i, u_i, fma(d_f, u_f, fma(d_g, u_g, d_o * u_o))), total)
            by_c = lanes.select(alive, d_c * f, by_c)
            sw_i, sw_f, sw_g, sw_o = fma(d_i, a, sw_i), fma(d_f, a, sw_f), fma(d_g, a, sw_g), fma(d_o, a, sw_o)
            su_i, su_f, su_g, su_o = fma(d_i, h, su_i), fma(d_f, h, su_f), fma(d_g, h, su_g), fma(d_o, h, su_o)
            sb_i, sb_f, sb_g, sb_o = sb_i + d_i, sb_f + d_f, sb_g + d_g, sb_o + d_o
            if is_cut(offset + first + s, truncate):
                by_h, by_c = zero, zero
        lanes.store(carry, at, inside, by_h)
        lanes.store(c_carry, at, inside, by_c)
    _add(sums, 0, sw_i)
    _add(sums, 1, sw_f)
    _add(sums, 2, sw_g)
    _add(sums, 3, sw_o)
    _add(sums, 4, su_i)
    _add(sums, 5, su_f)
    _add(sums, 6, su_g)
    _add(sums, 7, su_o)
    _add(sums, 8, sb_i)
    _add(sums, 9, sb_f)
    _add(sums, 10, sb_g)
    _add(sums, 11, sb_o)


@inner
def is_cut(step, truncate):
    """No gradient goes from this step to the one before."""
    return truncate > 0 and step > 0 and step % truncate == 0


@task
def gru(wide, steps, columns, first, cell, n_cells, gates, lengths, state, x, saved, width):
    """As `lstm`."""
    w_r, w_z, w_n = (
        _gate(gates, 0, n_cells, cell, wide),
        _gate(gates, 1, n_cells, cell, wide),
        _gate(gates, 2, n_cells, cell, wide),
    )
    u_r, u_z, u_n = (
        _gate(gates, 3, n_cells, cell, wide),
        _gate(gates, 4, n_cells, cell, wide),
        _gate(gates, 5, n_cells, cell, wide),
    )
    b_r, b_z = _gate(gates, 6, n_cells, cell, wide), _gate(gates, 7, n_cells, cell, wide)
    b_n, b_h = _gate(gates, 8, n_cells, cell, wide), _gate(gates, 9, n_cells, cell, wide)
    for at in range(0, columns, COUNT):
        inside = lanes.first(columns - at)
        length = lanes.load(lengths, at, inside, 0)
        h = lanes.load(state, at, inside, 0.0)
        for s in range(steps):
            place = s * columns + at
            a = lanes.load(x, place, inside, 0.0)
            r = logistic(fma(h, u_r, fma(a, w_r, b_r)))
            z = logistic(fma(h, u_z, fma(a, w_z, b_z)))
            inner_sum = fma(h, u_n, b_h)
            n = tanh(fma(r, inner_sum, fma(a, w_n, b_n)))
            h = lanes.select(length > first + s, fma(z, h - n, n), h)
            lanes.store(saved, place, inside, a)
            lanes.store(saved, width + place, inside, r)
            lanes.store(saved, 2 * width + place, inside, z)
            lanes.store(saved, 3 * width + place, inside, n)
            lanes.store(saved, 4 * width + place, inside, inner_sum)
            lanes.store(x, place, inside, h)
        lanes.store(state, at, inside, h)


@task
def gru_back(
    wide,
    steps,
    columns,
    first,
    offset,
    truncate,
    cell,
    n_cells,
    gates,
    lengths,
    before,
    x,
    saved,
    carry,
    g,
    sums,
    width,
):
    """As `lstm_back`."""
    w_r, w_z, w_n = (
        _gate(gates, 0, n_cells, cell, wide),
        _gate(gates, 1, n_cells, cell, wide),
        _gate(gates, 2, n_cells, cell, wide),
    )
    u_r, u_z, u_n = (
        _gate(gates, 3, n_cells, cell, wide),
        _gate(gates, 4, n_cells, cell, wide),
        _gate(gates, 5, n_cells, cell, wide),
    )
    zero = lanes.fill(x, 0.0)
    sw_r, sw_z, sw_n, su_r, su_z, su_n = zero, zero, zero, zero, zero, zero
    sb_r, sb_z, sb_n, sb_h = zero, zero, zero, zero
    for at in range(0, columns, COUNT):
        inside = lanes.first(columns - at)
        length = lanes.load(lengths, at, inside, 0)
        by_h = lanes.load(carry, at, inside, 0.0)
        for back in range(steps):
            s = steps - 1 - back
            place = s * columns + at
            h = lanes.load(before, at, inside, 0.0)
            if s > 0:
                h = lanes.load(x, place - columns, inside, 0.0)
            alive = length > first + s
            a = lanes.load(saved, place, inside, 0.0)
            r = lanes.load(saved, width + place, inside, 0.0)
            z = lanes.load(saved, 2 * width + place, inside, 0.0)
            n = lanes.load(saved, 3 * width + place, inside, 0.0)
            total = lanes.load(g, place, inside, 0.0) + by_h
            d_value = lanes.select(alive, total, zero)
            d_n = d_value * (1.0 - z) * (1.0 - n * n)
            d_z = d_value * (h - n) * z * (1.0 - z)
            d_r = d_n * lanes.load(saved, 4 * width + place, inside, 0.0) * r * (1.0 - r)
            d_h = d_n * r
            lanes.store(g, place, inside, fma(d_r, w_r, fma(d_z, w_z, d_n * w_n)))
            by_h = lanes.select(alive, fma(d_r, u_r, fma(d_z, u_z, fma(d_h, u_n, d_value * z))), total)
            sw_r, sw_z, sw_n = fma(d_r, a, sw_r), fma(d_z, a, sw_z), fma(d_n, a, sw_n)
            su_r, su_z, su_n = fma(d_r, h, su_r), fma(d_z, h, su_z), fma(d_h, h, su_n)
            sb_r, sb_z, sb_n, sb_h = sb_r + d_r, sb_z + d_z, sb_n + d_n, sb_h + d_h
            if is_cut(offset + first + s, truncate):
                by_h = zero
        lanes.store(carry, at, inside, by_h)
    _add(sums, 0, sw_r)
    _add(sums, 1, sw_z)
    _add(sums, 2, sw_n)
    _add(sums, 3, su_r)
    _add(sums, 4, su_z)
    _add(sums, 5, su_n)
    _add(sums, 6, sb_r)
    _add(sums, 7, sb_z)
    _add(sums, 8, sb_n)
    _add(sums, 9, sb_h)


@task
def ctrnn(wide, steps, columns, first, cell, gates, lengths, state, x, saved):
    """As `lstm`."""
    share = logistic(lanes.spread(gates, cell, wide))
    for at in range(0, columns, COUNT):
        inside = lanes.first(columns - at)
        length = lanes.load(lengths, at, inside, 0)
        value = lanes.load(state, at, inside, 0.0)
        for s in range(steps):
            place = s * columns + at
            a = lanes.load(x, place, inside, 0.0)
            value = lanes.select(length > first + s, fma(share, a - value, value), value)
            lanes.store(saved, place, inside, a)
            lanes.store(x, place, inside, value)
        lanes.store(state, at, inside, value)


@task
def ctrnn_back(wide, steps, columns, first, offset, truncate, cell, gates, lengths, before, x, saved, carry, g, sums):
    """As `lstm_back`."""
    share, zero = logistic(lanes.spread(gates, cell, wide)), lanes.fill(x, 0.0)
    total_rate = zero
    for at in range(0, columns, COUNT):
        inside = lanes.first(columns - at)
        length = lanes.load(lengths, at, inside, 0)
        by_value = lanes.load(carry, at, inside, 0.0)
        for back in range(steps):
            s = steps - 1 - back
            place = s * columns + at
            value = lanes.load(before, at, inside, 0.0)
            if s > 0:
                value = lanes.load(x, place - columns, inside, 0.0)
            alive = length > first + s
            total = lanes.load(g, place, inside, 0.0) + by_value
            d_value = lanes.select(alive, total * share, zero)
            lanes.store(g, place, inside, d_value)
            by_value = total - d_value
            total_rate = fma(d_value, lanes.load(saved, place, inside, 0.0) - value, total_rate)
            if is_cut(offset + first + s, truncate):
                by_value = zero
        lanes.store(carry, at, inside, by_value)
    _add(sums, 0, total_rate * (1.0 - share))
