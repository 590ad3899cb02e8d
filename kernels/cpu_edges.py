"""From raw scalars to the strengths of edges, and back, on the CPU (DESIGN, sections 2 and 4.1).

Row r is neuron i = n_inputs + r.  ``rows`` is float64 (n_rows, 7): the transformed scalars of a row, in the order
of the constants below; ``reference`` (n_rows, 8) those at the row's last scan, and the threshold of then.
Candidates are CSR: ``indptr`` int64 (n_rows + 1,), ``indices`` int32, ascending in a row.  ``omega`` holds one number
per candidate where edges are free, and is empty otherwise (``free`` says which).  Arithmetic is in float64 whatever
the dtype of the parameters.  Rows are independent and sums run in row order, so the bits do not depend on the number
of threads.
"""

import math

import numba
import numpy as np
from sparse_dnm.kernels import formulas, vector_math
from sparse_dnm.kernels.jit import inner, inner_vector, kernel

ALPHA, BETA, GAMMA, THETA, PHI, SIGMA, MU, THRESHOLD = range(8)
OMEGA_LIMIT = 4.0  # standard deviations at which a fresh omega is cut off

_sigmoid, _softplus = inner(formulas.sigmoid), inner(formulas.softplus)
_position, _logarithm = inner(formulas.position), inner_vector(formulas.logarithm, vector_math)
_gaussian, _rhythm = inner_vector(formulas.gaussian, vector_math), inner_vector(formulas.rhythm, vector_math)
_rhythm_base, _gate = inner_vector(formulas.rhythm_base, vector_math), inner_vector(formulas.logistic, vector_math)
_rhythm_phase_slope = inner_vector(formulas.rhythm_phase_slope, vector_math)
_strength, _strength_by_cutoff = inner(formulas.strength), inner(formulas.strength_by_cutoff)
_reach, _rhythm_bound = inner(formulas.reach), inner(formulas.rhythm_bound)
_rhythm_slope, _rhythm_slope_beta = inner(formulas.rhythm_slope), inner(formulas.rhythm_slope_beta)
_philox, _normal = inner(formulas.philox), inner(formulas.normal)


@kernel
def row_scalars(alpha, beta, gamma, theta, phi, sigma, mu, free, rows):
    """Transform the raw scalars of every row."""
    for r in range(alpha.size):
        rows[r, ALPHA] = 2.0 * _sigmoid(float(alpha[r])) - 1.0
        rows[r, SIGMA] = _softplus(float(sigma[r]))
        rows[r, MU] = mu[r]
        if not free:
            rows[r, BETA] = 1.0 + beta[r]
            rows[r, GAMMA] = _sigmoid(float(gamma[r]))
            rows[r, THETA] = _softplus(float(theta[r])) / math.log(2.0)
            rows[r, PHI] = phi[r]


@inner
def _factor_bound(row, free, omega_bound):
    """Largest |s - gamma'|, or |omega| of a fresh edge, that a row can have."""
    return omega_bound if free else _rhythm_bound(row[BETA], row[GAMMA])


@inner
def _closeness(a, b, g, t, phi, s, mu, p, period):
    """d_ij = alpha' g_ij (s_ij - gamma')"""
    return a * _gaussian(p, mu, s) * (_rhythm(_rhythm_base(p, b, t, phi, period), b) - g)


@inner
def _free_closeness(a, s, mu, p, omega):
    """d_ij = alpha' g_ij omega_ij"""
    return a * _gaussian(p, mu, s) * omega


@inner
def _scalars(row):
    """The seven scalars of a row: loops over edges vectorise only with them in local variables."""
    return row[ALPHA], row[BETA], row[GAMMA], row[THETA], row[PHI], row[SIGMA], row[MU]


@inner
def _fresh_omega(seed, i, j, mean, std):
    """The omega with which edge i <- j is born: a function of (seed, i, j) alone."""
    word0, word1 = _philox(np.int64(i), np.int64(j), seed & 0xFFFFFFFF, seed >> 32)
    return mean + std * _normal(float(word0), float(word1), OMEGA_LIMIT)


@kernel
def find_stale(rows, reference, c, threshold, period, free, omega_bound, stale):
    """Has the closeness of a pair outside the candidates possibly crossed the cutoff c?

    A row's pairs outside lay at or below its reference threshold when it was last scanned, and have moved since by
    at most the sum over its scalars of change times largest slope on the way.  Where that may reach c in any row,
    returns True; ``stale`` bool (n_rows,) are the rows to scan: those that have come more than half the way from
    ``threshold`` to c, so that rows do not ask for a scan one by one.
    """
    crossed = False
    for r in range(rows.shape[0]):
        now, then = rows[r], reference[r]
        bound = max(_factor_bound(now, free, omega_bound), _factor_bound(then, free, omega_bound))
        amplitude = max(abs(now[ALPHA]), abs(then[ALPHA]))
        narrow, wide = min(now[SIGMA], then[SIGMA]), max(now[SIGMA], then[SIGMA])
        gauss = abs(now[MU] - then[MU]) * math.exp(-0.5) / narrow
        gauss += abs(now[SIGMA] - then[SIGMA]) * 2.0 / (math.e * narrow)
        moved = abs(now[ALPHA] - then[ALPHA]) * bound + amplitude * bound * gauss
        if not free:
            farthest = max(abs(now[MU]), abs(then[MU])) + wide * math.exp(-0.5)
            phase = 2.0 * math.pi / period * abs(1.0 / now[THETA] - 1.0 / then[THETA]) * farthest
            phase += abs(now[PHI] - then[PHI])
            factor = max(_rhythm_slope(now[BETA]), _rhythm_slope(then[BETA])) * phase
            factor += max(_rhythm_slope_beta(now[BETA]), _rhythm_slope_beta(then[BETA])) * abs(now[BETA] - then[BETA])
            factor += abs(now[GAMMA] - then[GAMMA])
            moved += amplitude * factor
        highest = then[THRESHOLD] + moved
        stale[r] = not highest <= 0.5 * (threshold + c)  # NaN counts as far
        crossed |= not highest <= c
    return crossed


@inner
def _window(r, n_inputs, n_sources, offset, half, mu):
    """First and last source within ``half`` positions of mu, as seen from row r; an empty range where half < 0."""
    limit = min(n_inputs + r, n_sources)
    if not half >= 0.0:
        return 0, -1
    centre = n_inputs + r - offset + mu
    first = max(0.0, min(np.floor(centre - half), float(limit)))
    last = max(-1.0, min(np.ceil(centre + half), float(limit - 1)))
    return int(first), int(last)


@inner
def _scan_closeness(i, first, last, offset, row, period, threshold, write, indices, at):
    """Pairs of a window with |d| > threshold."""
    a, b, g, t, phi, s, mu = _scalars(row)
    size, count = max(last - first + 1, 0), 0
    d = np.empty(size)
    for q in range(size):
        d[q] = _closeness(a, b, g, t, phi, s, mu, _position(i, first + q, offset), period)
    for q in range(size):
        if abs(d[q]) > threshold:
            if write:
                indices[at + count] = first + q
            count += 1
    return count


@inner
def _scan_free(
    i, first, last, offset, row, then, threshold, seed, mean, std, k, end, old_indices, old_omega, write, indices,
    omega, origin, at,
):  # fmt: skip
    """Old candidates k .. end that stay and fresh ones that enter, in ascending order of source."""
    a, s, mu = row[ALPHA], row[SIGMA], row[MU]
    j, count = first, 0
    while j <= last or k < end:
        known = k < end and (j > last or old_indices[k] <= j)
        source = np.int64(old_indices[k]) if known else j
        p = _position(i, source, offset)
        value = float(old_omega[k]) if known else _fresh_omega(seed, i, source, mean, std)
        enters = abs(_free_closeness(a, s, mu, p, value)) > threshold
        if enters and not known:
            before = _free_closeness(then[ALPHA], then[SIGMA], then[MU], p, value)
            enters = abs(before) <= then[THRESHOLD]
        if enters:
            if write:
                indices[at + count], omega[at + count], origin[at + count] = source, value, k if known else -1
            count += 1
        k += known
        j += source == j
    return count


@kernel(parallel=True)
def scan(
    rows, reference, stale, threshold, offsets, n_inputs, n_sources, period, free, seed, mean, std, old_indptr,
    old_indices, old_omega, write, indptr, indices, omega, origin,
):  # fmt: skip
    """Find the candidates: first with ``write`` False to count them into indptr[1:], then with True to write them.

    Rows that are not ``stale`` keep theirs.  In the others, closeness mode takes every pair with |d| > threshold.
    Free edges: an old candidate stays while |d| > threshold; a new one enters, with its fresh omega, when |d| of
    that omega has risen above the threshold since ``reference`` (alpha 0 at the start, so that all enter).
    ``origin`` int32: position among the old candidates, -1 for a new one.
    """
    for r in numba.prange(rows.shape[0]):
        i, row, at = n_inputs + r, rows[r], indptr[r] if write else 0
        k, end = old_indptr[r], old_indptr[r + 1]
        count = end - k
        if stale[r]:
            bound = abs(row[ALPHA]) * _factor_bound(row, free, abs(mean) + OMEGA_LIMIT * std)
            half = _reach(bound, threshold, row[SIGMA])
            first, last = _window(r, n_inputs, n_sources, offsets[r], half, row[MU])
            if free:
                count = _scan_free(
                    i, first, last, offsets[r], row, reference[r], threshold, seed, mean, std, k, end, old_indices,
                    old_omega, write, indices, omega, origin, at,
                )  # fmt: skip
            else:
                count = _scan_closeness(i, first, last, offsets[r], row, period, threshold, write, indices, at)
        elif write:
            for e in range(k, end):
                indices[at + e - k] = old_indices[e]
                if free:
                    omega[at + e - k], origin[at + e - k] = old_omega[e], e
        if not write:
            indptr[r + 1] = count


@kernel(parallel=True)
def closeness(rows, offsets, n_inputs, period, free, indptr, indices, omega, d):
    """d_ij of every candidate."""
    for r in numba.prange(rows.shape[0]):
        a, b, g, t, phi, s, mu = _scalars(rows[r])
        i, offset = n_inputs + r, offsets[r]
        if free:
            for e in range(indptr[r], indptr[r + 1]):
                d[e] = _free_closeness(a, s, mu, _position(i, np.int64(indices[e]), offset), omega[e])
        else:
            for e in range(indptr[r], indptr[r + 1]):
                d[e] = _closeness(a, b, g, t, phi, s, mu, _position(i, np.int64(indices[e]), offset), period)


@kernel
def select(d, c, threshold, n_inputs, indptr, row_starts):
    """Count the active candidates |d| > c: row_starts int64 (n_neurons + 1,) becomes the CSR indptr of the active.

    Returns how many candidates lie above ``threshold``.
    """
    near, total = 0, 0
    row_starts[: n_inputs + 1] = 0
    for r in range(indptr.size - 1):
        for e in range(indptr[r], indptr[r + 1]):
            size = abs(float(d[e]))
            total += size > c
            near += size > threshold
        row_starts[n_inputs + r + 1] = total
    row_starts[n_inputs + indptr.size :] = total
    return near


@kernel(parallel=True)
def compact(d, c, n_inputs, indptr, indices, row_starts, active, sources, values):
    """Write the active candidates: ``active`` int32 their position, ``sources`` int32, ``values`` their strength."""
    for r in numba.prange(indptr.size - 1):
        at = row_starts[n_inputs + r]
        for e in range(indptr[r], indptr[r + 1]):
            if abs(float(d[e])) > c:
                active[at], sources[at], values[at] = e, indices[e], _strength(float(d[e]), c)
                at += 1


@inner
def _total(values):
    """Sum of float64 numbers, in order."""
    out = 0.0
    for k in range(values.size):
        out += values[k]
    return out


@inner
def _gather_gradient(r, n_inputs, c, indptr, d, row_starts, active, value_gradient, d_gradient, out):
    """out = dL/dd of a row's candidates, from both gradients; returns the row's part of dL/dc."""
    by_cutoff = 0.0
    for e in range(indptr[r], indptr[r + 1]):
        out[e] = d_gradient[e]
    for k in range(row_starts[n_inputs + r], row_starts[n_inputs + r + 1]):
        e = active[k]
        out[e] += value_gradient[k] / (1.0 - c)
        by_cutoff += value_gradient[k] * _strength_by_cutoff(float(d[e]), c)
    return by_cutoff


@kernel(parallel=True, fastmath={"reassoc"})
def strength_back(
    rows, offsets, n_inputs, period, free, c, indptr, indices, omega, d, row_starts, active, value_gradient,
    d_gradient, scratch, cutoff_parts, row_gradient, omega_gradient,
):  # fmt: skip
    """Gradients of raw scalars from those of the active strengths and of every candidate's closeness.

    row_gradient (7, n_rows): with respect to the *raw* scalars, those that the edge mode has.  Returns the gradient
    of the raw cutoff.  omega_gradient (n_candidates,) where edges are free.  Scratch: float64 scratch (n_candidates,)
    and cutoff_parts (n_rows,).

    Loops that sum write nothing: LLVM guards a loop that does both by comparing addresses, and the sum's last bits
    would depend on where the arrays happen to lie.
    """
    for r in numba.prange(rows.shape[0]):
        a, b, g, t, phi, s, mu = _scalars(rows[r])
        i, offset = n_inputs + r, offsets[r]
        cutoff_parts[r] = _gather_gradient(
            r, n_inputs, c, indptr, d, row_starts, active, value_gradient, d_gradient, scratch
        )
        by_alpha, by_beta, by_gamma, by_theta, by_phi, by_sigma, by_mu = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for e in range(indptr[r], indptr[r + 1]):
            scratch[e] *= _gaussian(_position(i, np.int64(indices[e]), offset), mu, s)
        if free:
            for e in range(indptr[r], indptr[r + 1]):
                omega_gradient[e] = scratch[e] * a
            for e in range(indptr[r], indptr[r + 1]):
                u = (_position(i, np.int64(indices[e]), offset) - mu) / s
                part = scratch[e] * omega[e]
                by_alpha += part
                by_mu += part * u
                by_sigma += part * u * u
        else:
            for e in range(indptr[r], indptr[r + 1]):
                p = _position(i, np.int64(indices[e]), offset)
                u = (p - mu) / s
                base = _rhythm_base(p, b, t, phi, period)
                power = _rhythm(base, b)
                by_phase = scratch[e] * _rhythm_phase_slope(p, b, t, phi, period, base, power)
                part = scratch[e] * (power - g)
                by_alpha += part
                by_mu += part * u
                by_sigma += part * u * u
                by_beta += scratch[e] * power * _logarithm(base)
                by_gamma += scratch[e]
                by_phi += by_phase
                by_theta += by_phase * p
            row_gradient[BETA, r] = a * by_beta
            row_gradient[GAMMA, r] = -a * by_gamma * g * (1.0 - g)
            row_gradient[THETA, r] = (
                a * by_theta * -2.0 * math.pi / (period * t * t) * -math.expm1(-t * math.log(2.0)) / math.log(2.0)
            )
            row_gradient[PHI, r] = a * by_phi
        row_gradient[ALPHA, r] = by_alpha * 0.5 * (1.0 - a * a)
        row_gradient[SIGMA, r] = a * by_sigma / s * -math.expm1(-s)
        row_gradient[MU, r] = a * by_mu / s
    return _total(cutoff_parts) * c * (1.0 - c)


@kernel(parallel=True, fastmath={"reassoc"})
def gates(d, indptr, c, tau, threshold, opened, parts, slopes):
    """Gates h = sigmoid((|d| - c) / tau) of the candidates above ``threshold``: ``slopes`` (n_candidates,) is dh/dd.

    Returns the sum of the gates and its derivative with respect to the raw cutoff.  Scratch: float64 opened
    (n_candidates,) and parts (2, n_rows).
    """
    for r in numba.prange(indptr.size - 1):
        for e in range(indptr[r], indptr[r + 1]):
            signed = float(d[e])
            h = _gate((abs(signed) - c) / tau) if abs(signed) > threshold else 0.0
            opened[e] = h
            slopes[e] = math.copysign(h * (1.0 - h) / tau, signed)
        gate_sum, slope_sum = 0.0, 0.0  # in a loop of their own: see strength_back
        for e in range(indptr[r], indptr[r + 1]):
            gate_sum += opened[e]
            slope_sum += opened[e] * (1.0 - opened[e]) / tau
        parts[0, r], parts[1, r] = gate_sum, slope_sum
    return _total(parts[0]), -_total(parts[1]) * c * (1.0 - c)


@kernel(parallel=True)
def flows(values, indptr, sources, n_inputs, n_sources, parts):
    """Sums of |value| over input -> hidden and over hidden -> output edges.  parts float64 (2, n): scratch."""
    for i in numba.prange(indptr.size - 1):
        first, second = 0.0, 0.0
        for e in range(indptr[i], indptr[i + 1]):
            if i < n_sources and sources[e] < n_inputs:
                first += abs(float(values[e]))
            elif i >= n_sources and sources[e] >= n_inputs:
                second += abs(float(values[e]))
        parts[0, i], parts[1, i] = first, second
    return _total(parts[0]), _total(parts[1])


@kernel(parallel=True)
def flows_back(values, indptr, sources, n_inputs, n_sources, by_hidden, by_outputs, value_gradient):
    """Gradient of the two sums of `flows`, given dL of each."""
    for i in numba.prange(indptr.size - 1):
        for e in range(indptr[i], indptr[i + 1]):
            part = 0.0
            if i < n_sources and sources[e] < n_inputs:
                part = by_hidden
            elif i >= n_sources and sources[e] >= n_inputs:
                part = by_outputs
            value_gradient[e] = part if values[e] > 0 else -part
