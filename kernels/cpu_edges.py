"""From raw scalars to the strengths of edges, and back, on the CPU (DESIGN, sections 2 and 4.1).

Row r is neuron i = n_inputs + r.  ``rows`` is float64 (ROWS, n_rows): the transformed scalars of the rows, in the
order of the constants below; ``reference`` float64 (n_rows, 8) the first seven of each row at its last scan, and the
threshold of then.  Candidates are CSR: ``indptr`` int64 (n_rows + 1,), ``indices`` int32, ascending in a row.
``omega`` holds one number per candidate where edges have one, and is empty otherwise.  The mode of edges is three
flags, each True or None, so that what a mode lacks is left out when Numba compiles: ``rhythm``, the closeness has the
factor s_ij - gamma'; ``inside``, it has the factor omega; ``outside``, the strength has.

What belongs to a row is float64, what belongs to a candidate is computed in the dtype of the model, `lanes.COUNT` at
a time.  A candidate's closeness has the same bits wherever it is computed.  Rows are independent and sums run in row
order, so the bits do not depend on the number of threads.
"""

import math

import numba
import numpy as np
from sparse_dnm.kernels import formulas, lanes, vector_math
from sparse_dnm.kernels.jit import inner, inner_vector, kernel

ALPHA, BETA, GAMMA, THETA, PHI, SIGMA, MU, THRESHOLD = range(8)
THETA_SLOPE, SIGMA_SLOPE, ROWS = 7, 8, 9  # derivatives of theta' and sigma' with respect to the raw scalars
CUTOFF = 7  # row of the gradients' sums that belongs to the cutoff
OMEGA_LIMIT = 4.0  # standard deviations at which a fresh omega is cut off
ROUNDING = 128.0  # ulp by which the closeness of two computations in the model's dtype may differ
CHUNK = 1024  # candidates or edges that are summed together
LN2 = math.log(2.0)

_softplus, _logistic = inner_vector(formulas.softplus, vector_math), inner_vector(formulas.logistic, vector_math)
_gaussian = inner_vector(formulas.gaussian, vector_math)
_base, _base_slope = inner(formulas.rhythm_base), inner(formulas.rhythm_base_slope)
_turns, _turns_beyond = inner(formulas.turns), inner_vector(formulas.turns_beyond, vector_math)
_power_below = inner_vector(formulas.power_below, vector_math)
_strength = inner_vector(formulas.strength, vector_math)
_closeness_of = inner_vector(formulas.closeness_of, vector_math)
_strength_by_cutoff = inner_vector(formulas.strength_by_cutoff, vector_math)
_rhythm_bound = inner_vector(formulas.rhythm_bound, vector_math)
_rhythm_slope = inner_vector(formulas.rhythm_slope, vector_math)
_rhythm_slope_beta = inner_vector(formulas.rhythm_slope_beta, vector_math)
_position, _reach, _one_gaussian = inner(formulas.position), inner(formulas.reach), inner(formulas.gaussian)
_one_power_below = inner(formulas.power_below)
_philox, _normal = inner(formulas.philox), inner(formulas.normal)


@inner
def _transform(alpha, beta, gamma, theta, phi, sigma, mu, rhythm, rows):
    """Write the transformed scalars of every row."""
    for r in range(0, alpha.size, lanes.COUNT):
        inside = lanes.first(alpha.size - r)
        a, s = _raw(alpha, r, inside, rows), _raw(sigma, r, inside, rows)
        lanes.store(rows[ALPHA], r, inside, 2.0 * _logistic(a) - 1.0)
        lanes.store(rows[SIGMA], r, inside, _softplus(s))
        lanes.store(rows[SIGMA_SLOPE], r, inside, _logistic(s))
        lanes.store(rows[MU], r, inside, _raw(mu, r, inside, rows))
        if rhythm is not None:
            t = _raw(theta, r, inside, rows)
            lanes.store(rows[BETA], r, inside, 1.0 + _raw(beta, r, inside, rows))
            lanes.store(rows[GAMMA], r, inside, _logistic(_raw(gamma, r, inside, rows)))
            lanes.store(rows[THETA], r, inside, _softplus(t) * (1.0 / LN2))
            lanes.store(rows[THETA_SLOPE], r, inside, _logistic(t) * (1.0 / LN2))
            lanes.store(rows[PHI], r, inside, _raw(phi, r, inside, rows))


@inner
def _raw(scalar, r, inside, rows):
    """Raw scalars of the rows from r on, in float64."""
    return lanes.convert(lanes.load(scalar, r, inside, 0.0), rows)


@inner
def _find_stale(rows, reference, c, threshold, period, rhythm, omega_bound, ulp, stale):
    """Has the closeness of a pair outside the candidates possibly crossed the cutoff c?

    A row's pairs outside lay at or below its reference threshold when it was last scanned, and have moved since by
    at most the sum over its scalars of change times largest slope on the way.  Where that may reach c in any row,
    returns True; ``stale`` bool (n_rows,) are the rows to scan: those that have come more than half the way from
    ``threshold`` to c, so that rows do not ask for a scan one by one.  ``ulp``: that of 1 in the model's dtype.
    """
    crossed = 0
    for r in range(0, stale.size, lanes.COUNT):
        inside = lanes.first(stale.size - r)
        alpha, alpha_then = lanes.load(rows[ALPHA], r, inside, 0.0), lanes.column(reference, r, ALPHA, inside)
        sigma, sigma_then = lanes.load(rows[SIGMA], r, inside, 0.0), lanes.column(reference, r, SIGMA, inside)
        mu, mu_then = lanes.load(rows[MU], r, inside, 0.0), lanes.column(reference, r, MU, inside)
        amplitude = max(abs(alpha), abs(alpha_then))
        narrow, wide = min(sigma, sigma_then), max(sigma, sigma_then)
        gauss = abs(mu - mu_then) * math.exp(-0.5) / narrow + abs(sigma - sigma_then) * (2.0 / math.e) / narrow
        bound, slope, factor = lanes.fill(rows, 1.0), lanes.fill(rows, 0.0), lanes.fill(rows, 0.0)
        if rhythm is not None:
            beta, beta_then = lanes.load(rows[BETA], r, inside, 0.0), lanes.column(reference, r, BETA, inside)
            gamma, gamma_then = lanes.load(rows[GAMMA], r, inside, 0.0), lanes.column(reference, r, GAMMA, inside)
            theta, theta_then = lanes.load(rows[THETA], r, inside, 0.0), lanes.column(reference, r, THETA, inside)
            phi, phi_then = lanes.load(rows[PHI], r, inside, 0.0), lanes.column(reference, r, PHI, inside)
            bound = max(_rhythm_bound(beta, gamma), _rhythm_bound(beta_then, gamma_then))
            slope = max(_rhythm_slope(beta), _rhythm_slope(beta_then))
            farthest = max(abs(mu), abs(mu_then)) + wide * math.exp(-0.5)
            phase = 2.0 * math.pi / period * abs(1.0 / theta - 1.0 / theta_then) * farthest + abs(phi - phi_then)
            factor = slope * phase + abs(gamma - gamma_then)
            factor += max(_rhythm_slope_beta(beta), _rhythm_slope_beta(beta_then)) * abs(beta - beta_then)
        moved = omega_bound * (abs(alpha - alpha_then) * bound + amplitude * (bound * gauss + factor))
        # Rounding may differ where anything has moved.
        moved += lanes.select(moved == 0.0, 0.0, ROUNDING * ulp * amplitude * omega_bound * (bound + slope))
        highest = lanes.column(reference, r, THRESHOLD, inside) + moved
        lanes.store(stale, r, inside, ~(highest <= 0.5 * (threshold + c)))  # NaN counts as far
        crossed += lanes.count(inside) - lanes.count(inside & (highest <= c))
    return crossed > 0


@inner
def _factor_bound(rows, r, rhythm, omega_bound):
    """Largest product of |s - gamma'| and |omega| of a fresh edge, those that count, that a row can have."""
    bound = omega_bound
    if rhythm is not None:
        b, g = rows[BETA, r], rows[GAMMA, r]
        bound *= max(abs(0.001**b - g), abs(1.001**b - g))
    return bound


@inner
def _line(rows, r, i, n_sources, offset, period, rhythm, array):
    """What `_gauss` and `_wave` need of a row.

    The position of a source is taken from the source that is nearest to mu, to which it is a small whole number; the
    position and the phase of that one are float64.  ``array`` tells the dtype that the products are exact for.
    """
    s, mu = rows[SIGMA, r], rows[MU, r]
    centre = max(0.0, min(np.rint(i - offset + mu), float(n_sources)))
    p = centre - i + offset
    frequency, rest, start = 0.0, 0.0, 0.0
    if rhythm is not None:
        exact = 1.0 / (period * rows[THETA, r])
        frequency = float(array.dtype.type(exact))
        rest = exact - frequency
        start = _turns(p, rows[THETA, r], rows[PHI, r], period)
        start -= np.rint(start)
    return np.int32(centre), p, p - mu, 1.0 / s, frequency, rest, start


@inner
def _steps(sources, line, array):
    """How far sources lie from the centre of the row."""
    return lanes.convert(sources - line[0], array)


@inner
def _deviation(x, line):
    """u = (p - mu) / sigma'"""
    return (x + line[2]) * line[3]


@inner
def _turn(x, line):
    """Turns of the phase."""
    return _turns_beyond(x, line[4], line[5], line[6])


@inner
def _closeness(x, a, b, g, line):
    """d_ij = alpha' g_ij (s_ij - gamma') of sources x positions from the centre."""
    base = _base(vector_math.sin_pi(_turn(x, line)))
    return a * _gaussian(_deviation(x, line)) * (base * _power_below(b, vector_math.log(base)) - g)


@inner
def _fresh_closeness(p, row, period, rhythm, omega):
    """d_ij at position p, in float64, with the factor ``omega``; ``row`` are the transformed scalars."""
    d = row[ALPHA] * _one_gaussian((p - row[MU]) / row[SIGMA])
    if rhythm is not None:
        sine = math.sin(math.pi * _turns(p, row[THETA], row[PHI], period))
        base = _base(sine)
        d *= base * _one_power_below(row[BETA], math.log(base)) - row[GAMMA]
    return d * omega


@inner
def _fresh_omega(seed, i, j, mean, std):
    """The omega with which edge i <- j is born: a function of (seed, i, j) alone."""
    word0, word1 = _philox(np.int64(i), np.int64(j), seed & 0xFFFFFFFF, seed >> 32)
    return mean + std * _normal(float(word0), float(word1), OMEGA_LIMIT)


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
def _scan_closeness(i, first, last, rows, r, line, threshold, omega, write, indices, at):
    """Pairs of a window with |d| > threshold; ``omega`` tells the dtype."""
    a, b, g, count = rows[ALPHA, r], rows[BETA, r], rows[GAMMA, r], 0
    for j in range(first, last + 1, lanes.COUNT):
        inside, sources = lanes.first(last + 1 - j), lanes.ramp(j)
        near = inside & (abs(_closeness(_steps(sources, line, omega), a, b, g, line)) > threshold)
        if write:
            lanes.pack(indices, at + count, near, sources)
        count += lanes.count(near)
    return count


@inner
def _scan_fresh(
    i, first, last, offset, period, rhythm, now, then, threshold, seed, mean, std, k, end, old_indices, old_omega,
    write, indices, omega, origin, at,
):  # fmt: skip
    """Old candidates k .. end that stay and fresh ones that enter, in ascending order of source.

    ``now`` are the row's transformed scalars, ``then`` those of its last scan, and the threshold of then.
    """
    j, count = first, 0
    while j <= last or k < end:
        known = k < end and (j > last or old_indices[k] <= j)
        source = np.int64(old_indices[k]) if known else j
        p = _position(i, source, offset)
        value = float(old_omega[k]) if known else _fresh_omega(seed, i, source, mean, std)
        enters = abs(_fresh_closeness(p, now, period, rhythm, value)) > threshold
        if enters and not known:
            enters = abs(_fresh_closeness(p, then, period, rhythm, value)) <= then[THRESHOLD]
        if enters:
            if write:
                indices[at + count], omega[at + count], origin[at + count] = source, value, k if known else -1
            count += 1
        k += known
        j += source == j
    return count


@inner
def _carry(i, at, count, seed, mean, std, k, end, old_indices, old_omega, indices, omega, origin):
    """omega of the ``count`` candidates from ``at`` on: that of the same one among the old k .. end, or a fresh one."""
    for e in range(at, at + count):
        while k < end and old_indices[k] < indices[e]:
            k += 1
        known = k < end and old_indices[k] == indices[e]
        omega[e] = old_omega[k] if known else _fresh_omega(seed, i, np.int64(indices[e]), mean, std)
        origin[e] = k if known else -1


@kernel(parallel=True)
def scan(
    rows, reference, stale, threshold, offsets, n_inputs, n_sources, period, rhythm, inside, outside, seed, mean, std,
    old_indptr, old_indices, old_omega, write, indptr, indices, omega, origin,
):  # fmt: skip
    """Find the candidates: first with ``write`` False to count them into indptr[1:], then with True to write them.

    Rows that are not ``stale`` keep theirs.  In the others, where omega is not inside, every pair with |d| > threshold
    is one.  Where it is, an old candidate stays while |d| > threshold; a new one enters, with its fresh omega, when |d|
    of that omega has risen above the threshold since ``reference`` (alpha 0 at the start, so that all enter).
    ``origin`` int32: position among the old candidates, -1 for a new one; empty where edges have no omega.
    """
    for row in numba.prange(rows.shape[1]):
        r = np.int64(row)  # numba types the index of a parallel loop twice, and would compile what it calls twice
        i, at = n_inputs + r, indptr[r] if write else 0
        k, end = old_indptr[r], old_indptr[r + 1]
        count = end - k
        if stale[r]:
            omega_bound = 1.0
            if inside is not None:
                omega_bound = abs(mean) + OMEGA_LIMIT * std
            bound = abs(rows[ALPHA, r]) * _factor_bound(rows, r, rhythm, omega_bound)
            half = _reach(bound, threshold, rows[SIGMA, r])
            first, last = _window(r, n_inputs, n_sources, offsets[r], half, rows[MU, r])
            if inside is not None:
                count = _scan_fresh(
                    i, first, last, offsets[r], period, rhythm, rows[:, r], reference[r], threshold, seed, mean, std, k,
                    end, old_indices, old_omega, write, indices, omega, origin, at,
                )  # fmt: skip
            else:
                line = _line(rows, r, i, n_sources, offsets[r], period, rhythm, omega)
                count = _scan_closeness(i, first, last, rows, r, line, threshold, omega, write, indices, at)
                if outside is not None and write:
                    _carry(i, at, count, seed, mean, std, k, end, old_indices, old_omega, indices, omega, origin)
        elif write:
            for e in range(k, end):
                indices[at + e - k] = old_indices[e]
                if origin.size:
                    omega[at + e - k], origin[at + e - k] = old_omega[e], e
        if not write:
            indptr[r + 1] = count


@inner
def _row_closeness(rows, r, line, rhythm, inside, c, threshold, indptr, indices, omega, d):
    """Write d of a row's candidates; how many of them are active, and how many above ``threshold``."""
    a, b, g, active, near = rows[ALPHA, r], rows[BETA, r], rows[GAMMA, r], 0, 0
    for e in range(indptr[r], indptr[r + 1], lanes.COUNT):
        there = lanes.first(indptr[r + 1] - e)
        x = _steps(lanes.load(indices, e, there, line[0]), line, d)
        value = _closeness(x, a, b, g, line) if rhythm is not None else a * _gaussian(_deviation(x, line))
        if inside is not None:
            value *= lanes.load(omega, e, there, 0.0)
        lanes.store(d, e, there, value)
        active += lanes.count(there & (abs(value) > c))
        near += lanes.count(there & (abs(value) > threshold))
    return active, near


@inner
def _compact(r, c, n_inputs, outside, indptr, indices, d, omega, before, at, sources, strengths):
    """Write a row's active candidates from place ``at`` on.

    Returns the sums of |strength| of inputs' and of other sources, and how many sources differ from ``before``, which
    is empty where that is known.
    """
    low, high, other = lanes.fill(d, 0.0), lanes.fill(d, 0.0), 0
    for e in range(indptr[r], indptr[r + 1], lanes.COUNT):
        inside = lanes.first(indptr[r + 1] - e)
        value, source = lanes.load(d, e, inside, 0.0), lanes.load(indices, e, inside, 0)
        active, strength = abs(value) > c, _strength(value, c)
        if outside is not None:
            strength *= lanes.load(omega, e, inside, 0.0)
        lanes.pack(sources, at, active, source)
        lanes.pack(strengths, at, active, strength)
        if before.size:
            other += lanes.count(active & (lanes.unpack(before, at, active) != source))
        size, is_input = lanes.select(active, abs(strength), 0.0), source < n_inputs
        low += lanes.select(is_input, size, 0.0)
        high += lanes.select(is_input, 0.0, size)
        at += lanes.count(active)
    return lanes.total(low), lanes.total(high), other


@kernel(parallel=True)
def evaluate(
    alpha, beta, gamma, theta, phi, sigma, mu, offsets, n_inputs, n_sources, period, rhythm, inside, outside, c,
    threshold, check, omega_bound, reference, indptr, indices, omega, before_starts, before, rows, stale, d, row_starts,
    sources, strengths, parts,
):  # fmt: skip
    """Closeness of the candidates at the raw scalars alpha .. mu, and the active among them.

    With ``check``, first asks whether a pair outside has possibly crossed the cutoff (see `_find_stale`); where so,
    only ``rows`` and ``stale`` are written.  d (n_candidates,); row_starts int64 (n_neurons + 1,) is the CSR indptr
    of the active |d| > c, ``sources`` int32 and ``strengths`` (n_candidates,) hold theirs, as many as there are.

    Returns whether rows must be scanned; how many candidates lie above ``threshold``; how many are active; whether
    they are those of ``before_starts`` and ``before``; the sum of |strength| over input -> hidden edges less that over
    hidden -> output edges.  Scratch: float64 parts (4, n_rows).
    """
    n_rows = indptr.size - 1
    _transform(alpha, beta, gamma, theta, phi, sigma, mu, rhythm, rows)
    ulp = 2.0**-23 if d.itemsize == 4 else 2.0**-52
    if check and _find_stale(rows, reference, c, threshold, period, rhythm, omega_bound, ulp, stale):
        return True, 0, 0, False, 0.0
    for row in numba.prange(n_rows):
        r = np.int64(row)
        line = _line(rows, r, n_inputs + r, n_sources, offsets[r], period, rhythm, d)
        row_starts[n_inputs + r + 1], parts[2, r] = _row_closeness(
            rows, r, line, rhythm, inside, c, threshold, indptr, indices, omega, d
        )
    same = before_starts.size == row_starts.size
    for i in range(n_inputs + n_rows + 1):
        row_starts[i] = 0 if i <= n_inputs else row_starts[i] + row_starts[i - 1]
        same = same and before_starts[i] == row_starts[i]
    n_edges = row_starts[n_inputs + n_rows]
    known = before if same else before[:0]
    for row in numba.prange(n_rows):
        r = np.int64(row)
        at, hidden = row_starts[n_inputs + r], n_inputs + r < n_sources
        low, high, parts[3, r] = _compact(
            r, c, n_inputs, outside, indptr, indices, d, omega, known, at, sources, strengths
        )
        parts[0, r], parts[1, r] = low if hidden else 0.0, 0.0 if hidden else high
    same = same and _total(parts[3]) == 0.0
    return False, int(_total(parts[2])), n_edges, same, _total(parts[0]) - _total(parts[1])


@inner
def _total(values):
    """Sum of float64 numbers, in order."""
    out = 0.0
    for k in range(values.size):
        out += values[k]
    return out


@kernel(parallel=True)
def strength_back(
    rows, offsets, n_inputs, n_sources, period, rhythm, inside, outside, c, indptr, indices, omega, d, row_starts,
    sources, strengths, strength_gradient, d_gradient, by_imbalance, sums, row_gradient, omega_gradient,
):  # fmt: skip
    """Gradients of raw scalars from those of the active strengths, of every candidate's closeness (either may be empty:
    none), and of the sum of |strength| over input -> hidden edges less that over hidden -> output edges.

    Candidates that are not active matter where omega or closeness has a gradient: otherwise only the active edges are
    walked.
    row_gradient (7, n_rows): with respect to the *raw* scalars, those that the edge mode has.  Returns the gradient
    of the raw cutoff.  omega_gradient (n_candidates,) where edges have one.  Scratch: float64 sums (8, n_rows).
    """
    packed = inside is None and outside is None and d_gradient.size == 0
    for row in numba.prange(indptr.size - 1):
        r = np.int64(row)
        i, at = n_inputs + r, row_starts[n_inputs + r]
        a, b, g = rows[ALPHA, r], rows[BETA, r], rows[GAMMA, r]
        line = _line(rows, r, i, n_sources, offsets[r], period, rhythm, d)
        zero = lanes.fill(d, 0.0)
        by_alpha, by_sigma, by_mu, by_cutoff = zero, zero, zero, zero
        by_beta, by_gamma, by_phi, by_step = zero, zero, zero, zero
        some = lanes.first(lanes.COUNT if strength_gradient.size else 0)
        by_low, by_high = (by_imbalance, 0.0) if i < n_sources else (0.0, -by_imbalance)
        first, last = (row_starts[i], row_starts[i + 1]) if packed else (indptr[r], indptr[r + 1])
        for e in range(first, last, lanes.COUNT):
            there = lanes.first(last - e)
            if packed:
                source, active = lanes.load(sources, e, there, line[0]), there
                value = _closeness_of(lanes.load(strengths, e, there, 0.0), c)
                by_strength = lanes.load(strength_gradient, e, active & some, 0.0)
            else:
                source, value = lanes.load(indices, e, there, line[0]), lanes.load(d, e, there, 0.0)
                active = abs(value) > c
                by_strength = lanes.unpack(strength_gradient, at, active & some)
                at += lanes.count(active)
            x = _steps(source, line, d)
            by_size = lanes.select(active, lanes.select(source < n_inputs, lanes.fill(d, by_low), by_high), 0.0)
            signed = value
            if outside is not None:
                weight = lanes.load(omega, e, there, 0.0)
                signed = value * weight
            by_strength += lanes.select(signed > 0.0, by_size, -by_size)
            if outside is not None:
                lanes.store(omega_gradient, e, there, lanes.select(active, by_strength * _strength(value, c), 0.0))
                by_strength *= weight
            by_cutoff += by_strength * _strength_by_cutoff(value, c)
            u = _deviation(x, line)
            part = lanes.load(d_gradient, e, lanes.first(min(d_gradient.size, indptr[r + 1]) - e), 0.0)
            part += by_strength * (1.0 / (1.0 - c))
            part = lanes.select(there, part * _gaussian(u), 0.0)
            factor = lanes.fill(d, 1.0)
            if inside is not None:
                factor = lanes.load(omega, e, there, 0.0)
            if rhythm is not None:
                turn = _turn(x, line)
                sine = vector_math.sin_pi(turn)
                base = _base(sine)
                logarithm = vector_math.log(base)
                below = _power_below(b, logarithm)
                power = base * below
                by_phase = factor * part * below * _base_slope(sine, vector_math.cos_pi(turn))
                by_beta += factor * part * power * logarithm
                by_gamma += factor * part
                by_phi += by_phase
                by_step += by_phase * x
                part *= power - g
            if inside is not None:
                lanes.store(omega_gradient, e, there, part * a)
            part *= factor
            by_alpha += part
            by_mu += part * u
            by_sigma += part * u * u
        sums[ALPHA, r], sums[SIGMA, r], sums[MU, r] = lanes.total(by_alpha), lanes.total(by_sigma), lanes.total(by_mu)
        sums[CUTOFF, r] = lanes.total(by_cutoff)
        if rhythm is not None:
            sums[BETA, r], sums[GAMMA, r] = lanes.total(by_beta), lanes.total(by_gamma)
            sums[PHI, r] = lanes.total(by_phi)
            sums[THETA, r] = lanes.total(by_step) + line[1] * sums[PHI, r]
    for r in range(indptr.size - 1):
        a, s = rows[ALPHA, r], rows[SIGMA, r]
        row_gradient[ALPHA, r] = sums[ALPHA, r] * 0.5 * (1.0 - a * a)
        row_gradient[SIGMA, r] = a * sums[SIGMA, r] / s * rows[SIGMA_SLOPE, r]
        row_gradient[MU, r] = a * sums[MU, r] / s
        if rhythm is not None:
            b, g, t = rows[BETA, r], rows[GAMMA, r], rows[THETA, r]
            row_gradient[BETA, r] = a * sums[BETA, r]
            row_gradient[GAMMA, r] = -a * sums[GAMMA, r] * g * (1.0 - g)
            row_gradient[PHI, r] = a * b * sums[PHI, r]
            row_gradient[THETA, r] = a * b * sums[THETA, r] * -2.0 * math.pi / (period * t * t) * rows[THETA_SLOPE, r]
    return _total(sums[CUTOFF]) * c * (1.0 - c)


@kernel(parallel=True)
def gates(d, c, tau, threshold, parts, slopes):
    """Gates h = sigmoid((|d| - c) / tau) of the candidates above ``threshold``: ``slopes`` (n_candidates,) is dh/dd.

    Returns the sum of the gates and its derivative with respect to the raw cutoff.  Scratch: float64 parts
    (2, ceil(n_candidates / CHUNK)).
    """
    for k in numba.prange(parts.shape[1]):
        gate_sum, slope_sum = lanes.fill(d, 0.0), lanes.fill(d, 0.0)
        for e in range(k * CHUNK, min(k * CHUNK + CHUNK, d.size), lanes.COUNT):
            inside = lanes.first(d.size - e)
            signed = lanes.load(d, e, inside, 0.0)
            h = lanes.select(abs(signed) > threshold, _logistic((abs(signed) - c) * (1.0 / tau)), 0.0)
            slope = h * (1.0 - h) * (1.0 / tau)
            gate_sum += h
            slope_sum += slope
            lanes.store(slopes, e, inside, vector_math.copysign(slope, signed))
        parts[0, k], parts[1, k] = lanes.total(gate_sum), lanes.total(slope_sum)
    return _total(parts[0]), -_total(parts[1]) * c * (1.0 - c)
