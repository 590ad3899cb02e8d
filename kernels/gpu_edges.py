"""From raw scalars to the strengths of edges, and back, on CUDA (DESIGN, sections 2 and 4.1).

Twins of `cpu_edges`, whose docstrings say what the arrays are.  Differences: closeness is computed in float64 and
rounded to the dtype of the model when it is kept; c, threshold and other numbers that are found on the device are
arrays of one float64, so that nobody waits for them; the mode of edges are three booleans.  What sums over rows or
candidates, and gives each its place, is left to torch's scans, between two kernels.  Sums of a row are made by the
lanes of a warp, lane by lane: the bits depend on the candidates alone.
"""

import math
import types

from numba import cuda, float64
from sparse_dnm.kernels import formulas
from sparse_dnm.kernels.cpu_edges import (
    ALPHA,
    BETA,
    CUTOFF,
    GAMMA,
    LN2,
    MU,
    OMEGA_LIMIT,
    PHI,
    ROUNDING,
    SIGMA,
    SIGMA_SLOPE,
    THETA,
    THETA_SLOPE,
    THRESHOLD,
)  # fmt: skip
from sparse_dnm.kernels.gpu_propagate import WIDTH

SUMS = 8  # of a row
PARTS = 32  # of a row's window, that are searched at a time
ADDING = 4  # rows of a block that adds up
TERMS = (ADDING, SUMS, WIDTH + 1)

kernel, inner = cuda.jit, cuda.jit(device=True)


@inner
def _larger(x, y):
    return x if x > y else y


@inner
def _smaller(x, y):
    return x if x < y else y


def _bounded(function):
    """As `inner`, with functions of ours for max and min: numba's own do not compile for CUDA."""
    namespace = {**function.__globals__, "max": _larger, "min": _smaller}
    return inner(types.FunctionType(function.__code__, namespace, function.__name__))


_softplus, _logistic, _gaussian = inner(formulas.softplus), inner(formulas.logistic), inner(formulas.gaussian)
_base, _base_slope, _turns = inner(formulas.rhythm_base), inner(formulas.rhythm_base_slope), inner(formulas.turns)
_power_below, _position, _reach = inner(formulas.power_below), inner(formulas.position), inner(formulas.reach)
_strength, _strength_by_cutoff = inner(formulas.strength), inner(formulas.strength_by_cutoff)
_rhythm_bound, _rhythm_slope = _bounded(formulas.rhythm_bound), _bounded(formulas.rhythm_slope)
_rhythm_slope_beta = _bounded(formulas.rhythm_slope_beta)
_philox, _normal = inner(formulas.philox), _bounded(formulas.normal)


@inner
def _turn(p, t, phi, period):
    """Turns of the phase, less a whole number: within half a turn."""
    turn = _turns(p, t, phi, period)
    return turn - math.floor(turn + 0.5)


@inner
def _closeness(p, row, r, period, rhythm):
    """d_ij at position p without the factor omega; ``row`` (scalars, rows), of which row r counts."""
    d = row[ALPHA, r] * _gaussian((p - row[MU, r]) / row[SIGMA, r])
    if rhythm:
        base = _base(math.sin(math.pi * _turn(p, row[THETA, r], row[PHI, r], period)))
        d *= base * _power_below(row[BETA, r], math.log(base)) - row[GAMMA, r]
    return d


@inner
def _fresh_omega(seed, i, j, mean, std):
    """The omega with which edge i <- j is born: a function of (seed, i, j) alone."""
    word0, word1 = _philox(i, j, seed & 0xFFFFFFFF, seed >> 32)
    return mean + std * _normal(float(word0), float(word1), OMEGA_LIMIT)


@kernel
def transform(
    alpha, beta, gamma, theta, phi, sigma, mu, period, rhythm, c, threshold, omega_bound, ulp, reference, rows, stale,
    crossed,
):  # fmt: skip
    """The transformed scalars ``rows`` of the raw ones, and whether a pair outside the candidates may be active.

    ``stale`` (n_rows,) of the model's bools: rows to scan; ``crossed`` int32 (n_rows,) is 1 where a pair outside has
    possibly crossed the cutoff (see `cpu_edges._find_stale`).  Launch: a thread per row.
    """
    r = cuda.grid(1)
    if r >= stale.size:
        return
    a, s, m = 2.0 * _logistic(float64(alpha[r])) - 1.0, _softplus(float64(sigma[r])), float64(mu[r])
    rows[ALPHA, r], rows[SIGMA, r], rows[SIGMA_SLOPE, r], rows[MU, r] = a, s, _logistic(float64(sigma[r])), m
    a_then, s_then, m_then = reference[r, ALPHA], reference[r, SIGMA], reference[r, MU]
    narrow, wide = _smaller(s, s_then), _larger(s, s_then)
    gauss = abs(m - m_then) * math.exp(-0.5) / narrow + abs(s - s_then) * (2.0 / math.e) / narrow
    bound, slope, factor = 1.0, 0.0, 0.0
    if rhythm:
        b, g, f = 1.0 + float64(beta[r]), _logistic(float64(gamma[r])), float64(phi[r])
        t = _softplus(float64(theta[r])) / LN2
        rows[BETA, r], rows[GAMMA, r], rows[THETA, r], rows[PHI, r] = b, g, t, f
        rows[THETA_SLOPE, r] = _logistic(float64(theta[r])) / LN2
        b_then, g_then, t_then, f_then = reference[r, BETA], reference[r, GAMMA], reference[r, THETA], reference[r, PHI]
        bound = _larger(_rhythm_bound(b, g), _rhythm_bound(b_then, g_then))
        slope = _larger(_rhythm_slope(b), _rhythm_slope(b_then))
        farthest = _larger(abs(m), abs(m_then)) + wide * math.exp(-0.5)
        phase = 2.0 * math.pi / period * abs(1.0 / t - 1.0 / t_then) * farthest + abs(f - f_then)
        factor = slope * phase + abs(g - g_then)
        factor += _larger(_rhythm_slope_beta(b), _rhythm_slope_beta(b_then)) * abs(b - b_then)
    amplitude = _larger(abs(a), abs(a_then))
    moved = omega_bound * (abs(a - a_then) * bound + amplitude * (bound * gauss + factor))
    if moved != 0.0:  # rounding may differ where anything has moved
        moved += ROUNDING * ulp * amplitude * omega_bound * (bound + slope)
    highest = reference[r, THRESHOLD] + moved
    stale[r] = not highest <= 0.5 * (threshold[0] + c[0])  # NaN counts as far
    crossed[r] = 0 if highest <= c[0] else 1


@kernel
def closeness(rows, offsets, n_inputs, period, rhythm, inside, c, row_of, indices, omega, d, active):
    """d of the candidates of ``row_of`` int32 (n_candidates,); ``active`` int32: 1 where |d| > c.  A thread each."""
    e = cuda.grid(1)
    if e < indices.size:
        r = row_of[e]
        value = _closeness(_position(n_inputs + r, indices[e], offsets[r]), rows, r, period, rhythm)
        if inside:
            value *= omega[e]
        d[e] = value
        active[e] = 1 if abs(d[e]) > c[0] else 0


@kernel
def compact(
    c, n_inputs, n_sources, outside, row_of, indices, d, omega, places, before, sources, readers, strengths, parts,
    differs,
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
        if outside:
            value *= omega[e]
        sources[at], readers[at], strengths[at] = j, i, value
        if at < before.size and before[at] != j:
            differs[e] = 1
        if j < n_inputs and i < n_sources:
            parts[e] = abs(value)
        elif j >= n_inputs and i >= n_sources:
            parts[e] = -abs(value)


@kernel
def strength_back(
    rows, offsets, n_inputs, n_sources, period, rhythm, inside, outside, c, indptr, indices, omega, d, places,
    strength_gradient, d_gradient, by_imbalance, row_gradient, by_cutoff, omega_gradient,
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
        a, b, g, t = rows[ALPHA, r], rows[BETA, r], rows[GAMMA, r], rows[THETA, r]
        for e in range(indptr[r] + lane, indptr[r + 1], WIDTH):
            j, value = indices[e], float64(d[e])
            p = _position(i, j, offsets[r])
            part = 0.0
            if d_gradient.size:
                part = float64(d_gradient[e])
            by_omega = 0.0
            if abs(value) > cut:
                by_strength = 0.0
                if strength_gradient.size:
                    by_strength = float64(strength_gradient[places[e] - 1])
                signed = value
                if outside:
                    signed *= omega[e]
                by_size = 0.0
                if j < n_inputs and i < n_sources:
                    by_size = by_imbalance[0]
                elif j >= n_inputs and i >= n_sources:
                    by_size = -by_imbalance[0]
                by_strength += by_size if signed > 0.0 else -by_size
                if outside:
                    by_omega = by_strength * _strength(value, cut)
                    by_strength *= omega[e]
                by_c += by_strength * _strength_by_cutoff(value, cut)
                part += by_strength / (1.0 - cut)
            u = (p - rows[MU, r]) / rows[SIGMA, r]
            part *= _gaussian(u)
            factor = 1.0
            if inside:
                factor = float64(omega[e])
            if rhythm:
                turn = math.pi * _turn(p, t, rows[PHI, r], period)
                base = _base(math.sin(turn))
                logarithm = math.log(base)
                below = _power_below(b, logarithm)
                by_phase = factor * part * below * _base_slope(math.sin(turn), math.cos(turn))
                by_beta += factor * part * base * below * logarithm
                by_gamma += factor * part
                by_phi += by_phase
                by_step += by_phase * p
                part *= base * below - g
            if inside:
                by_omega = part * a
            if inside or outside:
                omega_gradient[e] = by_omega
            part *= factor
            by_alpha += part
            by_mu += part * u
            by_sigma += part * u * u
    terms[warp, ALPHA, lane], terms[warp, BETA, lane], terms[warp, GAMMA, lane] = by_alpha, by_beta, by_gamma
    terms[warp, THETA, lane], terms[warp, PHI, lane], terms[warp, SIGMA, lane] = by_step, by_phi, by_sigma
    terms[warp, MU, lane], terms[warp, CUTOFF, lane] = by_mu, by_c
    cuda.syncthreads()
    if r < indptr.size - 1 and lane < SUMS:
        total = 0.0
        for k in range(WIDTH):
            total += terms[warp, lane, k]
        a, s = rows[ALPHA, r], rows[SIGMA, r]
        if lane == CUTOFF:
            by_cutoff[r] = total * cut * (1.0 - cut)
        elif lane == ALPHA:
            row_gradient[ALPHA, r] = total * 0.5 * (1.0 - a * a)
        elif lane == SIGMA:
            row_gradient[SIGMA, r] = a * total / s * rows[SIGMA_SLOPE, r]
        elif lane == MU:
            row_gradient[MU, r] = a * total / s
        elif rhythm:
            b, g, t = rows[BETA, r], rows[GAMMA, r], rows[THETA, r]
            if lane == BETA:
                row_gradient[BETA, r] = a * total
            elif lane == GAMMA:
                row_gradient[GAMMA, r] = -a * total * g * (1.0 - g)
            elif lane == PHI:
                row_gradient[PHI, r] = a * b * total
            else:
                turned = -2.0 * math.pi / (period * t * t) * rows[THETA_SLOPE, r]
                row_gradient[THETA, r] = a * b * total * turned


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


@kernel
def scan(
    rows, reference, stale, threshold, offsets, n_inputs, n_sources, period, rhythm, inside, outside, seed, mean, std,
    old_indptr, old_indices, old_omega, write, starts, indices, omega, origin,
):  # fmt: skip
    """Find the candidates: first with ``write`` False to count them into starts[1:], then with True to write them.

    Which they are says `cpu_edges.scan`.  A row's window is cut into PARTS; ``starts`` int64 (n_rows * PARTS + 1,)
    tells where the candidates of each begin, ``reference`` (8, n_rows) is transposed.  Launch: a thread per part.
    """
    where = cuda.grid(1)
    if where >= starts.size - 1:
        return
    r, part = where // PARTS, where % PARTS
    i, at, count = n_inputs + r, starts[where], 0
    k, end = old_indptr[r], old_indptr[r + 1]
    if not stale[r]:
        share = (end - k + PARTS - 1) // PARTS
        first = k + part * share
        for e in range(first, first + share):
            if e < end:
                if write:
                    indices[at + count] = old_indices[e]
                    if origin.size:
                        omega[at + count], origin[at + count] = old_omega[e], e
                count += 1
        if not write:
            starts[where + 1] = count
        return
    bound, mu, top = abs(rows[ALPHA, r]), rows[MU, r], i if i < n_sources else n_sources
    if inside:
        bound *= abs(mean) + OMEGA_LIMIT * std
    if rhythm:
        bound *= _rhythm_bound(rows[BETA, r], rows[GAMMA, r])
    half = _reach(bound, threshold[0], rows[SIGMA, r])
    j, last = 0, -1
    if half >= 0.0:
        centre = i - offsets[r] + mu
        j = int(_larger(0.0, _smaller(math.floor(centre - half), float(top))))
        last = int(_larger(-1.0, _smaller(math.ceil(centre + half), float(top - 1))))
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
        if inside or outside:
            value = float64(old_omega[k]) if known else _fresh_omega(seed, i, source, mean, std)
        factor = value if inside else 1.0
        enters = abs(_closeness(p, rows, r, period, rhythm) * factor) > threshold[0]
        if inside and enters and not known:
            enters = abs(_closeness(p, reference, r, period, rhythm) * factor) <= reference[THRESHOLD, r]
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
