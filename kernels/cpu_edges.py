"""From raw scalars to the strengths of edges, and back, on the CPU (DESIGN, sections 2 and 4.1).

Row r is neuron i = n_inputs + r.  ``rows`` is float64 (n_rows, 7): the transformed scalars of a row, in the order
of the constants below.  Candidates are CSR: ``indptr`` int64 (n_rows + 1,), ``indices`` int32, ascending in a row.
``omega`` holds one number per candidate where edges are free, and is empty otherwise (``free`` says which).
Arithmetic is in float64 whatever the dtype of the parameters.  Rows are independent and sums run in row order, so
the bits do not depend on the number of threads.
"""

import math

import numba
import numpy as np
from sparse_dnm.kernels import formulas, vector_math
from sparse_dnm.kernels.jit import inner, inner_vector, kernel

ALPHA, BETA, GAMMA, THETA, PHI, SIGMA, MU = range(7)
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
def drift(rows, reference, period, free, omega_bound):
    """Upper bound of how far the closeness of any pair outside the candidates moved since ``reference``.

    Each scalar's part is its change times the largest slope on the way (rows (n_rows, 7) now and then).  NaN where
    a scalar is.
    """
    largest = 0.0
    for r in range(rows.shape[0]):
        now, then = rows[r], reference[r]
        bound = max(_factor_bound(now, free, omega_bound), _factor_bound(then, free, omega_bound))
        amplitude = max(abs(now[ALPHA]), abs(then[ALPHA]))
        narrow, wide = min(now[SIGMA], then[SIGMA]), max(now[SIGMA], then[SIGMA])
        gauss = abs(now[MU] - then[MU]) * math.exp(-0.5) / narrow
        gauss += abs(now[SIGMA] - then[SIGMA]) * 2.0 / (math.e * narrow)
        change = abs(now[ALPHA] - then[ALPHA]) * bound + amplitude * bound * gauss
        if not free:
            farthest = max(abs(now[MU]), abs(then[MU])) + wide * math.exp(-0.5)
            phase = 2.0 * math.pi / period * abs(1.0 / now[THETA] - 1.0 / then[THETA]) * farthest
            phase += abs(now[PHI] - then[PHI])
            factor = max(_rhythm_slope(now[BETA]), _rhythm_slope(then[BETA])) * phase
            factor += max(_rhythm_slope_beta(now[BETA]), _rhythm_slope_beta(then[BETA])) * abs(now[BETA] - then[BETA])
            factor += abs(now[GAMMA] - then[GAMMA])
            change += amplitude * factor
        if change > largest or change != change:  # NaN is kept: it counts as far
            largest = change
    return largest


@inner
def _scan_row(
    r, rows, reference, threshold, reference_threshold, offset, n_inputs, n_sources, period, free, seed, mean, std,
    old_indptr, old_indices, old_omega, write, indices, omega, origin, at,
):  # fmt: skip
    """Walk the window of one row and its old candidates in ascending order of source; return how many stay or enter.

    See `scan` for who does.  Where ``write``, they are written from position ``at`` on.
    """
    i = n_inputs + r
    a, b, g, t, phi, s, mu = _scalars(rows[r])
    a_then, s_then, mu_then = reference[r, ALPHA], reference[r, SIGMA], reference[r, MU]
    limit = min(i, n_sources)
    half = _reach(abs(a) * _factor_bound(rows[r], free, abs(mean) + OMEGA_LIMIT * std), threshold, s)
    first, last = 0, -1
    if half >= 0.0:
        centre = i - offset + mu
        first = int(max(0.0, min(math.floor(centre - half), float(limit))))
        last = int(max(-1.0, min(math.ceil(centre + half), float(limit - 1))))
    k, end = old_indptr[r], old_indptr[r + 1]
    j, count = first, 0
    while j <= last or k < end:
        known = k < end and (j > last or old_indices[k] <= j)
        source = np.int64(old_indices[k]) if known else j
        p = _position(i, source, offset)
        value, source_of_value = 0.0, -1
        if known:
            value, source_of_value = float(old_omega[k]), k
            enters = abs(_free_closeness(a, s, mu, p, value)) > threshold
        elif free:
            value = _fresh_omega(seed, i, source, mean, std)
            enters = abs(_free_closeness(a, s, mu, p, value)) > threshold
            enters = enters and abs(_free_closeness(a_then, s_then, mu_then, p, value)) <= reference_threshold
        else:
            enters = abs(_closeness(a, b, g, t, phi, s, mu, p, period)) > threshold
        if enters:
            if write:
                indices[at + count] = source
                if free:
                    omega[at + count], origin[at + count] = value, source_of_value
            count += 1
        k += known
        j += source == j
    return count


@kernel(parallel=True)
def scan(
    rows, reference, threshold, reference_threshold, offsets, n_inputs, n_sources, period, free, seed, mean, std,
    old_indptr, old_indices, old_omega, write, indptr, indices, omega, origin,
):  # fmt: skip
    """Find the candidates: first with ``write`` False to count them into indptr[1:], then with True to write them.

    Closeness mode: every pair with |d| > threshold (the old candidates must be given as none).
    Free edges: an old candidate stays while |d| > threshold; a new one enters, with its fresh omega, when |d| of
    that omega has risen above the threshold since ``reference`` (all zeros at the start, so that all enter).
    ``origin`` int32: position among the old candidates, -1 for a new one.
    """
    for r in numba.prange(rows.shape[0]):
        count = _scan_row(
            r, rows, reference, threshold, reference_threshold, offsets[r], n_inputs, n_sources, period, free, seed,
            mean, std, old_indptr, old_indices, old_omega, write, indices, omega, origin, indptr[r] if write else 0,
        )  # fmt: skip
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
    d_gradient, scratch, row_gradient, cutoff_gradient, omega_gradient,
):  # fmt: skip
    """Gradients of raw scalars from those of the active strengths and of every candidate's closeness.

    row_gradient float64 (n_rows, 7), cutoff_gradient float64 (n_rows,): parts of each row, with respect to the
    *raw* scalars and to c; omega_gradient (n_candidates,) where edges are free; scratch float64 (n_candidates,).
    """
    for r in numba.prange(rows.shape[0]):
        a, b, g, t, phi, s, mu = _scalars(rows[r])
        out, i, offset = row_gradient[r], n_inputs + r, offsets[r]
        cutoff_gradient[r] = _gather_gradient(
            r, n_inputs, c, indptr, d, row_starts, active, value_gradient, d_gradient, scratch
        )
        by_alpha, by_beta, by_gamma, by_theta, by_phi, by_sigma, by_mu = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        if free:
            for e in range(indptr[r], indptr[r + 1]):
                p = _position(i, np.int64(indices[e]), offset)
                u = (p - mu) / s
                scaled = scratch[e] * _gaussian(p, mu, s)
                omega_gradient[e] = scaled * a
                part = scaled * omega[e]
                by_alpha += part
                by_mu += part * u
                by_sigma += part * u * u
        else:
            for e in range(indptr[r], indptr[r + 1]):
                p = _position(i, np.int64(indices[e]), offset)
                u = (p - mu) / s
                scaled = scratch[e] * _gaussian(p, mu, s)
                base = _rhythm_base(p, b, t, phi, period)
                power = _rhythm(base, b)
                by_phase = scaled * _rhythm_phase_slope(p, b, t, phi, period, base, power)
                part = scaled * (power - g)
                by_alpha += part
                by_mu += part * u
                by_sigma += part * u * u
                by_beta += scaled * power * _logarithm(base)
                by_gamma += scaled
                by_phi += by_phase
                by_theta += by_phase * p
            out[BETA] = a * by_beta
            out[GAMMA] = -a * by_gamma * g * (1.0 - g)
            out[THETA] = (
                a * by_theta * -2.0 * math.pi / (period * t * t) * -math.expm1(-t * math.log(2.0)) / math.log(2.0)
            )
            out[PHI] = a * by_phi
        out[ALPHA] = by_alpha * 0.5 * (1.0 - a * a)
        out[SIGMA] = a * by_sigma / s * -math.expm1(-s)
        out[MU] = a * by_mu / s


@kernel(parallel=True, fastmath={"reassoc"})
def gates(d, indptr, c, tau, threshold, row_sums, slopes):
    """Sum of the gates sigmoid((|d| - c) / tau) of a row's candidates above ``threshold``, and each one's dh/dd."""
    for r in numba.prange(indptr.size - 1):
        total = 0.0
        for e in range(indptr[r], indptr[r + 1]):
            signed = float(d[e])
            h = _gate((abs(signed) - c) / tau) if abs(signed) > threshold else 0.0
            total += h
            slopes[e] = math.copysign(h * (1.0 - h) / tau, signed)
        row_sums[r] = total


@kernel
def total(values):
    """Sum of float64 numbers, in order."""
    out = 0.0
    for value in values:
        out += value
    return out


@kernel(parallel=True)
def flows(values, indptr, sources, n_inputs, n_sources, into_hidden, into_outputs):
    """Per neuron, sums of |value| over input -> hidden and over hidden -> output edges."""
    for i in numba.prange(indptr.size - 1):
        first, second = 0.0, 0.0
        for e in range(indptr[i], indptr[i + 1]):
            if i < n_sources and sources[e] < n_inputs:
                first += abs(float(values[e]))
            elif i >= n_sources and sources[e] >= n_inputs:
                second += abs(float(values[e]))
        into_hidden[i], into_outputs[i] = first, second


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
