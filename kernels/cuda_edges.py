"""From raw scalars to the strengths of edges, and back, on CUDA (DESIGN, sections 2 and 4.1).

Twins of `cpu_edges`, whose docstrings describe the arrays.  Differences: closeness is computed in float64 and rounded
to the dtype of the model when it is stored; c, threshold and other numbers that are computed on the device are arrays
of one float64, so that the host does not wait for them; the mode of edges is three booleans.  Sums over rows or
candidates, and the place of each, are torch's scans between two kernels.  A warp sums a row, lane by lane: the bits
depend on the candidates alone.
"""

import math

from numba import cuda, float64
from sparse_dnm.kernels import edge_formulas, formulas
from sparse_dnm.kernels.cpu_edges import (
    ALPHA,
    BETA,
    CUTOFF,
    GAMMA,
    MU,
    OMEGA_LIMIT,
    PHI,
    SIGMA,
    SIGMA_SLOPE,
    THETA,
    THETA_SLOPE,
    THRESHOLD,
)  # fmt: skip
from sparse_dnm.kernels.cuda_propagate import WIDTH
from sparse_dnm.kernels.jit import compile_formulas

SUMS = 8  # of a row
PARTS = 32  # that a row's window is cut into, a thread each
ADDING = 4  # rows that a block sums
TERMS = (ADDING, SUMS, WIDTH + 1)

kernel, inner = cuda.jit, cuda.jit(device=True)


@inner
def _larger(x, y):
    return x if x > y else y


@inner
def _smaller(x, y):
    return x if x < y else y


# numba's own max and min do not compile for CUDA
_edge = compile_formulas(edge_formulas, inner, max=_larger, min=_smaller)
_random = compile_formulas(formulas, inner, max=_larger, min=_smaller)
_alpha_of, _beta_of, _gamma_of, _theta_of = _edge.alpha_of, _edge.beta_of, _edge.gamma_of, _edge.theta_of
_theta_slope, _sigma_of, _sigma_slope = _edge.theta_slope, _edge.sigma_of, _edge.sigma_slope
_gaussian_moved, _farthest, _rhythm_moved = _edge.gaussian_moved, _edge.farthest, _edge.rhythm_moved
_closeness_moved, _position, _gaussian, _rhythm = _edge.closeness_moved, _edge.position, _edge.gaussian, _edge.rhythm
_phase_at, _strength, _strength_slope = _edge.phase_at, _edge.strength, _edge.strength_slope
_strength_by_cutoff, _rhythm_bound, _reach = _edge.strength_by_cutoff, _edge.rhythm_bound, _edge.reach
_window, _imbalance_shares, _magnitude_back = _edge.window, _edge.imbalance_shares, _edge.magnitude_back
_rhythm_back, _alpha_back, _beta_back = _edge.rhythm_back, _edge.alpha_back, _edge.beta_back
_gamma_back, _theta_back, _phi_back = _edge.gamma_back, _edge.theta_back, _edge.phi_back
_sigma_back, _mu_back, _cutoff_back = _edge.sigma_back, _edge.mu_back, _edge.cutoff_back
_philox, _normal = _random.philox, _random.normal


@inner
def _phase(p, t, phi, period):
    """Phase at position p in turns, less a whole number: within half a turn."""
    phase = _phase_at(p, t, phi, period)
    return phase - math.floor(phase + 0.5)


@inner
def _closeness(p, row, r, period, periodic):
    """d_ij at position p without the factor omega; ``row`` (scalars, rows), of which row r counts."""
    d = row[ALPHA, r] * _gaussian((p - row[MU, r]) / row[SIGMA, r])
    if periodic:
        d *= _rhythm(row[BETA, r], _phase(p, row[THETA, r], row[PHI, r], period)) - row[GAMMA, r]
    return d


@inner
def _fresh_omega(seed, i, j, mean, std):
    """The omega with which edge i <- j is born: a function of (seed, i, j) alone."""
    word0, word1 = _philox(i, j, seed & 0xFFFFFFFF, seed >> 32)
    return mean + std * _normal(float(word0), float(word1), OMEGA_LIMIT)


@kernel
def transform(
    alpha, beta, gamma, theta, phi, sigma, mu, period, periodic, c, threshold, omega_bound, ulp, reference, rows, stale,
    crossed,
):  # fmt: skip
    """The transformed scalars ``rows`` of the raw ones, and whether a pair outside the candidates may be active.

    ``stale`` (n_rows,) of the model's bools: rows to scan; ``crossed`` int32 (n_rows,) is 1 where a pair outside has
    possibly crossed the cutoff (see `cpu_edges._find_stale`).  Launch: a thread per row.
    """
    r = cuda.grid(1)
    if r >= stale.size:
        return
    a, s, m = _alpha_of(float64(alpha[r])), _sigma_of(float64(sigma[r])), float64(mu[r])
    rows[ALPHA, r], rows[SIGMA, r], rows[SIGMA_SLOPE, r], rows[MU, r] = a, s, _sigma_slope(float64(sigma[r])), m
    a_then, s_then, m_then = reference[r, ALPHA], reference[r, SIGMA], reference[r, MU]
    factor, bound, slope = 0.0, 1.0, 0.0
    if periodic:
        b, g, f = _beta_of(float64(beta[r])), _gamma_of(float64(gamma[r])), float64(phi[r])
        t = _theta_of(float64(theta[r]))
        rows[BETA, r], rows[GAMMA, r], rows[THETA, r], rows[PHI, r] = b, g, t, f
        rows[THETA_SLOPE, r] = _theta_slope(float64(theta[r]))
        b_then, g_then, t_then, f_then = reference[r, BETA], reference[r, GAMMA], reference[r, THETA], reference[r, PHI]
        far = _farthest(s, s_then, m, m_then)
        factor, bound, slope = _rhythm_moved(b, b_then, g, g_then, t, t_then, f, f_then, far, period)
    gauss = _gaussian_moved(s, s_then, m, m_then)
    highest = reference[r, THRESHOLD] + _closeness_moved(a, a_then, gauss, factor, bound, slope, omega_bound, ulp)
    stale[r] = not highest <= 0.5 * (threshold[0] + c[0])  # NaN counts as far
    crossed[r] = 0 if highest <= c[0] else 1


@kernel
def closeness(rows, offsets, n_inputs, period, periodic, omega_in_closeness, c, row_of, indices, omega, d, active):
    """d of the candidates of ``row_of`` int32 (n_candidates,); ``active`` int32: 1 where |d| > c.  A thread each."""
    e = cuda.grid(1)
    if e < indices.size:
        r = row_of[e]
        value = _closeness(_position(n_inputs + r, indices[e], offsets[r]), rows, r, period, periodic)
        if omega_in_closeness:
            value *= omega[e]
        d[e] = value
        active[e] = 1 if abs(d[e]) > c[0] else 0


@kernel
def compact(
    c, n_inputs, n_sources, omega_in_strength, row_of, indices, d, omega, places, before, sources, readers, strengths,
    parts, differs,
):  # fmt: skip
    """Write the active candidates to ``sources``, ``readers`` int32 and ``strengths``: e to place places[e] - 1.

    ``parts`` float64 (n_candidates,): their |strength| where they count in the imbalance, signed; ``differs`` int32: 1
    where the source is not that of ``before`` int32.  A thread per candidate.
    """
    e = cuda.grid(1)
    if e >= indices.size:
        return
    parts[e], differs[e] = 0.0, 0
    if abs(d[e]) > c[0]:
        at, i, j = places[e] - 1, n_inputs + row_of[e], indices[e]
        value = _strength(float64(d[e]), c[0])
        if omega_in_strength:
            value *= omega[e]
        sources[at], readers[at], strengths[at] = j, i, value
        if at < before.size and before[at] != j:
            differs[e] = 1
        if j < n_inputs and i < n_sources:
            parts[e] = abs(value)
        elif j >= n_inputs and i >= n_sources:
            parts[e] = -abs(value)


@inner
def _through_strength(e, value, by_strength, by_size, cut, omega_in_strength, omega, omega_gradient):
    """From the gradients of an active edge's strength and of its size to those of closeness (``value``) and of c;
    writes that of omega where it is a factor of the strength."""
    factor = 1.0
    if omega_in_strength:
        factor = float64(omega[e])
    by_strength += _magnitude_back(value * factor, by_size)
    if omega_in_strength:
        omega_gradient[e] = by_strength * _strength(value, cut)
    by_strength *= factor
    return by_strength * _strength_slope(cut), by_strength * _strength_by_cutoff(value, cut)


@inner
def _through_closeness(e, p, part, rows, r, period, periodic, omega_in_closeness, omega, omega_gradient):
    """From the gradient ``part`` of closeness to the terms of the sums of alpha', mu, sigma', gamma', beta' and phi;
    writes the gradient of omega where it is a factor of the closeness."""
    u = (p - rows[MU, r]) / rows[SIGMA, r]
    part *= _gaussian(u)
    factor, by_rhythm, by_beta, by_phi = 1.0, 0.0, 0.0, 0.0
    if omega_in_closeness:
        factor = float64(omega[e])
    if periodic:
        by_rhythm = factor * part
        phase = _phase(p, rows[THETA, r], rows[PHI, r], period)
        power, by_beta, by_phi = _rhythm_back(rows[BETA, r], phase, by_rhythm)
        part *= power - rows[GAMMA, r]
    if omega_in_closeness:
        omega_gradient[e] = part * rows[ALPHA, r]
    part *= factor
    return part, part * u, part * u * u, by_rhythm, by_beta, by_phi


@inner
def _raw_back(scalar, total, rows, r, period, periodic, row_gradient):
    """From a row's sum of a scalar to the gradient of the raw one."""
    a, s = rows[ALPHA, r], rows[SIGMA, r]
    if scalar == ALPHA:
        row_gradient[ALPHA, r] = _alpha_back(total, a)
    elif scalar == SIGMA:
        row_gradient[SIGMA, r] = _sigma_back(total, a, s, rows[SIGMA_SLOPE, r])
    elif scalar == MU:
        row_gradient[MU, r] = _mu_back(total, a, s)
    elif periodic:
        b, t = rows[BETA, r], rows[THETA, r]
        if scalar == BETA:
            row_gradient[BETA, r] = _beta_back(total, a)
        elif scalar == GAMMA:
            row_gradient[GAMMA, r] = _gamma_back(total, a, rows[GAMMA, r])
        elif scalar == PHI:
            row_gradient[PHI, r] = _phi_back(total, a, b)
        else:
            row_gradient[THETA, r] = _theta_back(total, a, b, t, rows[THETA_SLOPE, r], period)


@kernel
def strength_back(
    rows, offsets, n_inputs, n_sources, period, periodic, omega_in_closeness, omega_in_strength, c, indptr, indices,
    omega, d, places, strength_gradient, d_gradient, by_imbalance, row_gradient, by_cutoff, omega_gradient,
):  # fmt: skip
    """Gradients of raw scalars from those of the active strengths, of every candidate's closeness (either may be empty:
    none), and of the imbalance (see `cpu_edges.strength_back`).

    row_gradient (7, n_rows) of the *raw* scalars; by_cutoff float64 (n_rows,), whose sum is that of the raw cutoff;
    omega_gradient (n_candidates,) where edges have one.  Launch: blocks of (WIDTH, up to ADDING) threads, a warp per
    row.
    """
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    terms = cuda.shared.array(TERMS, float64)
    r = cuda.blockIdx.x * cuda.blockDim.y + warp
    by_alpha, by_beta, by_gamma, by_step, by_phi, by_sigma, by_mu, by_c = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    cut = c[0]
    if r < indptr.size - 1:
        i = n_inputs + r
        by_input, by_hidden = _imbalance_shares(by_imbalance[0], i < n_sources)
        for e in range(indptr[r] + lane, indptr[r + 1], WIDTH):
            j, value, part = indices[e], float64(d[e]), 0.0
            p = _position(i, j, offsets[r])
            if d_gradient.size:
                part = float64(d_gradient[e])
            if abs(value) > cut:
                by_strength = 0.0
                if strength_gradient.size:
                    by_strength = float64(strength_gradient[places[e] - 1])
                by_size = by_input if j < n_inputs else by_hidden
                through, cutoff = _through_strength(
                    e, value, by_strength, by_size, cut, omega_in_strength, omega, omega_gradient
                )
                part += through
                by_c += cutoff
            elif omega_in_strength:
                omega_gradient[e] = 0.0
            part, deviation, square, rhythm, exponent, phase = _through_closeness(
                e, p, part, rows, r, period, periodic, omega_in_closeness, omega, omega_gradient
            )
            by_alpha += part
            by_mu += deviation
            by_sigma += square
            by_beta += exponent
            by_gamma += rhythm
            by_phi += phase
            by_step += phase * p
    terms[warp, ALPHA, lane], terms[warp, BETA, lane], terms[warp, GAMMA, lane] = by_alpha, by_beta, by_gamma
    terms[warp, THETA, lane], terms[warp, PHI, lane], terms[warp, SIGMA, lane] = by_step, by_phi, by_sigma
    terms[warp, MU, lane], terms[warp, CUTOFF, lane] = by_mu, by_c
    cuda.syncthreads()
    if r < indptr.size - 1 and lane < SUMS:
        total = 0.0
        for k in range(WIDTH):
            total += terms[warp, lane, k]
        if lane == CUTOFF:
            by_cutoff[r] = _cutoff_back(total, cut)
        else:
            _raw_back(lane, total, rows, r, period, periodic, row_gradient)


@inner
def _at_least(indices, first, last, source):
    """Place of the first of the ascending indices first .. last that is not below ``source``; last where none is."""
    while first < last:
        middle = (first + last) // 2
        if indices[middle] < source:
            first = middle + 1
        else:
            last = middle
    return first


@inner
def _keep(part, k, end, old_indices, old_omega, write, indices, omega, origin, at):
    """One of PARTS of the old candidates k .. end of a row that is not scanned, to the places from ``at`` on, with
    ``write``; how many they are."""
    share = (end - k + PARTS - 1) // PARTS
    first = k + part * share
    last = _smaller(first + share, end)
    for e in range(first, last):
        if write:
            indices[at + e - first] = old_indices[e]
            if origin.size:
                omega[at + e - first], origin[at + e - first] = old_omega[e], e
    return _larger(last - first, 0)


@inner
def _row_window(rows, r, n_inputs, n_sources, offset, periodic, threshold, omega_bound):
    """First and last source that row r may be close to, an omega of at most ``omega_bound`` included."""
    bound = omega_bound
    if periodic:
        bound *= _rhythm_bound(rows[BETA, r], rows[GAMMA, r])
    half = _reach(abs(rows[ALPHA, r]) * bound, threshold, rows[SIGMA, r])
    return _window(n_inputs + r, n_sources, offset, half, rows[MU, r])


@kernel
def scan(
    rows, reference, stale, threshold, offsets, n_inputs, n_sources, period, periodic, omega_in_closeness,
    omega_in_strength, seed, mean, std, old_indptr, old_indices, old_omega, write, starts, indices, omega, origin,
):  # fmt: skip
    """Find the candidates: first with ``write`` False to count them into starts[1:], then with True to write them.

    `cpu_edges.scan` says which they are.  A row's window is cut into PARTS; the candidates of each begin at ``starts``
    int64 (n_rows * PARTS + 1,); ``reference`` (8, n_rows) is transposed.  Launch: a thread per part.
    """
    where = cuda.grid(1)
    if where >= starts.size - 1:
        return
    r, part = where // PARTS, where % PARTS
    i, at, count = n_inputs + r, starts[where], 0
    k, end = old_indptr[r], old_indptr[r + 1]
    if not stale[r]:
        count = _keep(part, k, end, old_indices, old_omega, write, indices, omega, origin, at)
        if not write:
            starts[where + 1] = count
        return
    omega_bound = abs(mean) + OMEGA_LIMIT * std if omega_in_closeness else 1.0
    j, last = _row_window(rows, r, n_inputs, n_sources, offsets[r], periodic, threshold[0], omega_bound)
    share = (last - j + PARTS) // PARTS
    if part > 0:
        k = _at_least(old_indices, k, end, j + part * share)
    if part < PARTS - 1:
        end = _at_least(old_indices, k, end, j + (part + 1) * share)
        behind = j + (part + 1) * share - 1
        last = behind if behind < last else last
    j += part * share
    while j <= last or k < end:
        known = k < end and (j > last or old_indices[k] <= j)
        source = old_indices[k] if known else j
        p = _position(i, source, offsets[r])
        value = 1.0
        if omega_in_closeness or omega_in_strength:
            value = float64(old_omega[k]) if known else _fresh_omega(seed, i, source, mean, std)
        factor = value if omega_in_closeness else 1.0
        enters = abs(_closeness(p, rows, r, period, periodic) * factor) > threshold[0]
        if omega_in_closeness and enters and not known:
            enters = abs(_closeness(p, reference, r, period, periodic) * factor) <= reference[THRESHOLD, r]
        if enters:
            if write:
                indices[at + count] = source
                if origin.size:
                    omega[at + count], origin[at + count] = value, k if known else -1
            count += 1
        if source == j:
            j += 1
        if known:
            k += 1
    if not write:
        starts[where + 1] = count
