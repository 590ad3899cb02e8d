"""Many steps of training by one call of compiled code (DESIGN, section 4.7).

A step takes its batch, evaluates the structure, runs it forward, computes the loss, runs it backward, finds the
gradients of the parameters and moves them by Adam.  The parts are the kernels that a single step calls one by one from
Python, called by their addresses, in the same order and with the same bits.
"""

import math

import numba
import numpy as np
from numba.core import types
from sparse_dnm.kernels import lanes
from sparse_dnm.kernels.blocks import at_address, call, head, item, length, put, row, rows_of
from sparse_dnm.kernels.cpu_growth import shift_image
from sparse_dnm.kernels.cpu_search import keep, search
from sparse_dnm.kernels.jit import inner, kernel
from sparse_dnm.kernels.vector_math import fma

# what numba.set_num_threads calls, which could not be kept on disk
_set_threads = types.ExternalFunction("set_num_threads", types.void(types.int32))
_get_threads = types.ExternalFunction("get_num_threads", types.int32())


# -- parts that a single step leaves to numpy and torch ------------------------------------------------------------


@kernel(parallel=True)
def take_batch(samples, targets, weights, rows, step, width, shifts, kept, x, y, w):
    """The samples of a step and their targets, augmented: x (batch, n_inputs), y (batch, numbers of a target), and
    their weights, w (batch,), where there are ``weights`` (n,) of all.

    rows int64 (steps, batch); shifts int64 (steps, 2 batch): by how many lines of ``width``, and by how many columns,
    each image moves, where width is not 0; kept bool (steps, batch n_inputs): inputs that are not set to 0, or (0, 0).
    """
    batch, n = x.shape
    for place in numba.prange(batch):
        r = np.int64(place)  # numba types the index of a parallel loop twice, and would compile what it calls twice
        sample = rows[step, r]
        for c in range(y.shape[1]):
            y[r, c] = targets[sample, c]
        if weights.size:
            w[r] = weights[sample]
        if width == 0:
            for c in range(n):
                x[r, c] = samples[sample, c]
        else:
            shift_image(samples, sample, width, shifts[step, r], shifts[step, batch + r], x, r)
        if kept.size:
            for c in range(n):
                x[r, c] *= 1.0 if kept[step, r * n + c] else 0.0


@kernel
def rest_of(live, inputs, order, rest_inputs, rest_order):
    """What is not executed: the inputs, and the others in the order of ``order``; returns how many of each."""
    n_inputs, n_others = 0, 0
    for k in range(inputs.size):
        if not live[inputs[k]]:
            rest_inputs[n_inputs] = inputs[k]
            n_inputs += 1
    for q in range(order.size):
        if order[q] >= inputs.size and not live[order[q]]:  # inputs are the first neurons
            rest_order[n_others] = order[q]
            n_others += 1
    return n_inputs, n_others


@kernel
def multiply(a, b, out):
    """out = a b, element by element."""
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = a[r, c] * b[r, c]


@kernel
def fill(array, value):
    """The same number everywhere."""
    for k in range(array.size):
        array[k] = value


@kernel
def add_slopes(slopes, factor, coefficient, out):
    """Add the gradient of a term to ``out``."""
    one = out.dtype.type
    for e in range(out.size):
        out[e] += slopes[e] * one(factor) * one(coefficient)


@kernel
def add_decay(omega, decay, gradient):
    """Add ``decay`` times omega to its gradient."""
    for e in range(0, omega.size, lanes.COUNT):
        mask = lanes.first(omega.size - e)
        g = lanes.load(gradient, e, mask, 0.0)
        lanes.store(gradient, e, mask, fma(lanes.load(omega, e, mask, 0.0), decay, g))


@kernel
def hold(omega, kept, least, active):
    """Let no edge appear or go: active ones stay ``least`` away from 0, with the sign of ``kept``, and the others are
    as they were."""
    for e in range(omega.size):
        if not active[e]:
            omega[e] = kept[e]
        elif kept[e] < 0:
            omega[e] = min(omega[e], -least[e])
        else:
            omega[e] = max(omega[e], least[e])


# -- steps ---------------------------------------------------------------------------------------------------


@inner
def _use(threads, several):
    """Let the next kernels run on so many threads; only one is ever used where not ``several``."""
    if several:
        _set_threads(types.int32(threads))


# What is compiled depends on arguments that are None, not on attributes that are.


@inner
def _outputs_back(squared, entries, s, w):
    """The objective of w.out, and its gradient."""
    if squared is None:
        return call(entries.objective, (w.out, w.y, w.sample_weights, s.objective, w.by_output))
    call(entries.multiply, (w.out, w.out, w.squares))
    objective = call(entries.objective, (w.squares, w.y, w.sample_weights, 2.0 * s.objective, w.by_output))
    call(entries.multiply, (w.by_output, w.out, w.by_output))
    return objective


@inner
def _ring(
    ring_gradient, entries, s, w, kappa, c, threshold, candidates, omega, d, by_closeness, starts, sources, live, waves,
    everywhere,
):  # fmt: skip
    """Add the gradient of the closeness of candidates below the cutoff to ``by_closeness``."""
    if ring_gradient is not None:
        n_inputs, n_others = call(entries.rest_of, (live, s.inputs, everywhere, w.waiting, w.levels))
        inputs, others = head(w.waiting, n_inputs), head(w.levels, n_others)
        strengths = head(w.strengths, length(sources))
        call(
            entries.forward,
            (1, 1, inputs, inputs, w.x_batch, others, waves, starts, sources, strengths, s.n_sources, w.weight)
            + (w.bias, s.kind, s.slope, w.no_outputs, w.x, w.m, w.no_out),
        )
        call(
            ring_gradient,
            (s.n_inputs, s.n_sources, s.width)
            + candidates
            + (d, c, threshold, live, w.x, w.m, w.weight, w.bias, w.g, kappa)
            + (head(omega, s.weighted * length(omega)), by_closeness),
        )


@inner
def _by_gates(gates, s, w, term, c, threshold, n_edges, d, slopes):
    """The ``slopes`` of the soft number of edges; their factor, and the derivative by the cutoff."""
    factor, by_cutoff = 1.0, 0.0
    if gates is not None:
        _, by_cutoff = call(gates, (d, c, term.tau, threshold, w.gate_parts, slopes))
        density = n_edges / s.possible_edges
        factor = term.power * density ** (term.power - 1) / s.possible_edges
        by_cutoff *= factor
    return factor, by_cutoff


@inner
def _by_cost(expected_cost, s, w, term, c, threshold, live, candidates, d, slopes):
    """The ``slopes`` of the expected cost; its derivative by the cutoff."""
    by_cutoff = 0.0
    if expected_cost is not None:
        _, by_cutoff = call(
            expected_cost,
            (s.n_inputs, s.n_sources, live)
            + candidates
            + (d, c, term.tau, threshold, term.per_edge)
            + (term.per_input, term.per_neuron, term.per_level, term.per_block, term.per_lone, w.gates, w.best)
            + (w.strongest, w.depths, w.depths_back, w.picked, w.by_gate, slopes),
        )
    return by_cutoff


@inner
def _decay(add_decay, s, omega, by_omega):
    if add_decay is not None:
        call(add_decay, (omega, s.omega_decay, by_omega))


@inner
def _hold(hold, omega, kept):
    if hold is not None and length(kept.active) > 0:
        call(hold, (omega, kept.omega, kept.least, kept.active))


@inner
def _find_edges(s, p, w, which, n):
    """Tell Adam where omega of the ``n`` candidates and its moments are."""
    if s.free:
        last = length(p.counts) - 1
        put(p.sizes, last, n)
        put(p.places, 4 * last, item(w.at_omega, which))
        put(p.places, 4 * last + 2, item(w.at_first, which))
        put(p.places, 4 * last + 3, item(w.at_second, which))


@inner
def _update(entries, p, w, step_sizes, roots, k):
    """Adam, of every parameter that is trained."""
    for j in range(length(p.counts)):
        count = item(p.counts, j)
        if count >= 0:
            size = item(p.sizes, j)
            at = 4 * j
            call(
                entries.adam,
                (
                    at_address(w.weight, item(p.places, at), size),
                    at_address(w.weight, item(p.places, at + 1), size),
                    at_address(w.weight, item(p.places, at + 2), size),
                    at_address(w.weight, item(p.places, at + 3), size),
                    item(row(step_sizes, count), k),
                    p.beta1,
                    p.beta2,
                    item(row(roots, count), k),
                    p.eps,
                ),
            )


@kernel(calls_loops=True)
def steps(given):
    """Make a step for each of ``given.batches.kappas``; stop before one that needs more.

    ``given`` is a Block of Blocks: ``entries`` the kernels; ``shape`` what stays the same while a network trains;
    ``parameters`` with gradients and moments; ``graph`` the last structure; ``work`` memory, in which the candidates
    are; ``batches`` what was drawn for the steps, with kappa and Adam's factors; ``term`` the one that asks for a
    smaller network; ``kept`` what a structure that stays is held by.  What needs more is a search for candidates that
    finds too many or is made while a structure is kept, a network that is cut in two, a loss that is not finite.

    Returns how many steps were made, of the last of them the number of edges and the loss, and whether the candidates
    have changed.
    """
    entries, s, p, f, w = given.entries, given.shape, given.parameters, given.graph, given.work
    batches, term, kept = given.batches, given.term, given.kept
    n = s.n_neurons
    starts, sources, live = f.starts, f.sources, f.live
    t_indptr, t_edges, inputs, column = f.t_indptr, f.t_edges, f.inputs, f.column
    order, sequence, waves, column_of, everywhere = f.order, f.sequence, f.waves, f.column_of, f.everywhere
    other, made, last_edges, last_loss, changed = 1, 0, item(starts, n), math.nan, False
    which = item(w.which, 0)
    n_candidates = item(row(w.indptr, which), s.n_rows)
    for_tiles = min(s.threads, s.tiles)
    before = _get_threads()
    several = s.threads > 1 or before > 1
    for k in range(length(batches.kappas)):
        kappa = item(batches.kappas, k)
        # structure
        c = 1.0 / (1.0 + math.exp(min(-float(item(p.cutoff, 0)), 700.0)))
        threshold = max(c - s.skin, c / 2)
        new_starts, new_sources = row(w.starts, other), row(w.sources, other)
        at, searched, needs_more = which, 0, False
        while True:
            some = s.threads if n_candidates > s.few else 1
            _use(some, several)
            candidates = row(w.indptr, at), head(row(w.indices, at), n_candidates)
            omega, d = head(row(w.omega, at), n_candidates * s.free), head(w.d, n_candidates)
            crossed, near, n_edges, same, imbalance = call(
                entries.evaluate,
                (p.alpha, p.beta, p.gamma, p.theta, p.phi, p.sigma, p.mu, s.offsets, s.n_inputs, s.n_sources, s.period)
                + (s.periodic, s.omega_in_closeness, s.omega_in_strength, c, threshold, searched == 0, s.omega_bound)
                + (rows_of(w.reference, at * s.n_rows, s.n_rows),)
                + candidates
                + (omega, starts, sources, w.rows, w.stale, d, new_starts, new_sources, w.strengths, w.parts),
            )
            crowded = searched < 2 and n_candidates > s.crowded and 2 * near < n_candidates
            if not (crossed or crowded):
                break
            to = (at + 1) % 3
            found = -1
            if length(kept.active) == 0:
                found = search(entries, s, w, at, to, n_candidates, w.stale if crossed else w.all_rows, c, threshold)
            if found < 0:
                needs_more = True
                break
            if searched and s.free:
                call(entries.compose, (row(w.origin, at), head(row(w.origin, to), found)))
            at, n_candidates, searched = to, found, 1 if crossed else 2
        if needs_more:
            break
        if searched:
            keep(entries.move, entries, w, which, at, n_candidates)
            which, changed = at, True
        if not same:
            other = 1 - other
            starts, sources = new_starts, head(new_sources, n_edges)
            live, t_indptr, column_of, everywhere = w.live, w.t_indptr, w.column_of, w.order
            depth, _ = call(
                entries.analyze,
                (starts, sources, s.outputs, w.waiting, w.levels, w.level_starts, everywhere, live, t_indptr)
                + (w.t_edges,),
            )
            t_edges, waves = head(w.t_edges, item(t_indptr, n)), head(w.waves, depth + 2)
            n_live, n_executed = call(
                entries.schedule,
                (s.inputs, s.outputs, w.levels, everywhere, live, w.executed, w.column, waves, column_of, w.sequence),
            )
            n_others = n_executed - n_live
            inputs, column, sequence = head(w.executed, n_live), head(w.column, n_live), head(w.sequence, n_others)
            order = at_address(w.executed, w.executed_at + 4 * n_live, n_others)
        if length(inputs) == 0:
            break
        strengths = head(w.strengths, n_edges)
        # forward
        if s.tiles > 1:
            _use(for_tiles, several)
        call(
            entries.take_batch,
            (batches.x, batches.y, batches.weights, batches.rows, k, batches.width, batches.shifts, batches.kept)
            + (w.x_batch, w.y_rows, w.sample_weights),
        )
        call(entries.spread, (p.weight, w.weight))
        call(entries.spread, (p.bias, w.bias))
        if s.parts > 1 or s.tiles > 1:
            _use(for_tiles if s.parts == 1 else s.threads, several)
        call(
            entries.forward,
            (1, s.parts, inputs, column, w.x_batch, sequence if s.parts == 1 else order, waves, starts, sources)
            + (strengths, s.n_sources, w.weight, w.bias, s.kind, s.slope, s.outputs, w.x, w.m, w.out),
        )
        objective = _outputs_back(s.squared, entries, s, w)
        loss = s.objective * objective + s.flow * imbalance * imbalance
        if not math.isfinite(loss):
            break
        # backward
        by_strength = head(w.by_strength, s.tiles * n_edges)
        if length(inputs) + length(order) < n:
            call(entries.fill, (w.by_weight, 0.0))
            call(entries.fill, (w.by_bias, 0.0))
        if length(t_edges) < n_edges:
            call(entries.fill, (by_strength, 0.0))
        if s.parts_back > 1 or s.tiles > 1:
            _use(for_tiles if s.parts_back == 1 else s.threads, several)
        call(
            entries.backward,
            (s.parts_back, inputs, sequence if s.parts_back == 1 else order, waves, starts, t_indptr, t_edges)
            + (strengths, s.n_sources, w.weight, w.bias, s.kind, s.slope, column_of, w.x, w.m, w.by_output, w.g)
            + (by_strength, w.by_weight, w.by_bias),
        )
        if s.tiles > 1:
            call(entries.add_tiles, (s.tiles, by_strength, w.by_weight, w.by_bias))
        # terms by closeness
        _use(some, several)
        by_closeness, by_cutoff = head(w.by_closeness, 0), 0.0
        if kappa > 0.0 or term.coefficient != 0.0:
            by_closeness = head(w.by_closeness, n_candidates)
            call(entries.fill, (by_closeness, 0.0))
        if kappa > 0.0:
            _ring(
                entries.ring_gradient, entries, s, w, kappa, c, threshold, candidates, omega, d, by_closeness, starts,
                sources, live, waves, everywhere,
            )  # fmt: skip
        if term.coefficient != 0.0:
            slopes = head(w.slopes, n_candidates)
            factor, by_cutoff = _by_gates(entries.gates, s, w, term, c, threshold, n_edges, d, slopes)
            by_cutoff += _by_cost(entries.expected_cost, s, w, term, c, threshold, live, candidates, d, slopes)
            by_cutoff *= term.coefficient
            call(entries.add_slopes, (slopes, factor, term.coefficient, by_closeness))
        # parameters
        by_omega = head(w.by_omega, n_candidates * s.free)
        by_cutoff += call(
            entries.edges_backward,
            (w.rows, s.offsets, s.n_inputs, s.n_sources, s.period, s.periodic, s.omega_in_closeness)
            + (s.omega_in_strength, c)
            + candidates
            + (omega, d, starts, sources, strengths)
            + (head(w.by_strength, n_edges), by_closeness, 2.0 * s.flow * imbalance, w.sums, w.by_scalar, by_omega),
        )
        put(w.by_cutoff, 0, by_cutoff)
        _decay(entries.add_decay, s, omega, by_omega)
        _find_edges(s, p, w, which, n_candidates)
        _update(entries, p, w, batches.step_sizes, batches.roots, k)
        _hold(entries.hold, omega, kept)
        made, last_edges, last_loss = made + 1, n_edges, loss
    put(w.which, 0, which)
    _use(before, several)
    return made, last_edges, last_loss, changed


@kernel
def spread(values, out):
    """Write ``values`` to the first places of ``out``."""
    for k in range(values.size):
        out[k] = values[k]
