"""From raw scalars to the strengths of edges, and back, on the CPU (DESIGN, sections 2 and 4.1).

Row r is neuron i = n_inputs + r.  ``rows`` is float64 (ROWS, n_rows): the transformed scalars of the rows, in the
order of the constants below; ``reference`` float64 (n_rows, 8) the first seven of each row at its last scan, and the
threshold of then.  Candidates are CSR: ``indptr`` int64 (n_rows + 1,), ``indices`` int32, ascending in a row.
``omega`` holds one number per candidate where edges have one, and is empty otherwise.  The mode of edges is three
flags, each True or None, so that what a mode lacks is left out when Numba compiles: ``periodic``, the closeness has the
factor s_ij - gamma'; ``omega_in_closeness`` and ``omega_in_strength``, it or the strength has the factor omega.

What belongs to a row is float64, what belongs to a candidate is computed in the dtype of the model, `lanes.COUNT` at
a time.  A candidate's closeness has the same bits wherever it is computed.  Rows are independent and sums run in row
order, so the bits do not depend on the number of threads.
"""

from typing import NamedTuple

import numba
import numpy as np
from sparse_dnm.kernels import formulas, lanes
from sparse_dnm.kernels.cpu_formulas import of_lanes, of_one
from sparse_dnm.kernels.jit import inner, kernel
from sparse_dnm.kernels.vector_math import copysign

ALPHA, BETA, GAMMA, THETA, PHI, SIGMA, MU, THRESHOLD = range(8)
THETA_SLOPE, SIGMA_SLOPE, ROWS = 7, 8, 9  # derivatives of theta' and sigma' with respect to the raw scalars
CUTOFF = 7  # row of the gradients' sums that belongs to the cutoff
OMEGA_LIMIT = 4.0  # standard deviations at which a fresh omega is cut off
CHUNK = 1024  # candidates or edges that are summed together

# Numba resolves names of modules, not attributes of objects.  Names that begin with _one take a number, not Lanes.
_alpha_of, _beta_of, _gamma_of = of_lanes.alpha_of, of_lanes.beta_of, of_lanes.gamma_of
_theta_of, _theta_slope = of_lanes.theta_of, of_lanes.theta_slope
_sigma_of, _sigma_slope = of_lanes.sigma_of, of_lanes.sigma_slope
_gaussian_moved, _farthest, _rhythm_moved = of_lanes.gaussian_moved, of_lanes.farthest, of_lanes.rhythm_moved
_closeness_moved, _gaussian, _rhythm = of_lanes.closeness_moved, of_lanes.gaussian, of_lanes.rhythm
_phase_beyond, _strength, _closeness_of = of_lanes.phase_beyond, of_lanes.strength, of_lanes.closeness_of
_strength_by_cutoff, _magnitude_back = of_lanes.strength_by_cutoff, of_lanes.magnitude_back
_rhythm_back, _gate, _gate_slope = of_lanes.rhythm_back, of_lanes.gate, of_lanes.gate_slope
_one_position, _one_gaussian, _one_rhythm = of_one.position, of_one.gaussian, of_one.rhythm
_one_phase_at, _one_rhythm_bound, _one_reach = of_one.phase_at, of_one.rhythm_bound, of_one.reach
_one_window, _one_strength_slope, _imbalance_shares = of_one.window, of_one.strength_slope, of_one.imbalance_shares
_alpha_back, _beta_back, _gamma_back = of_one.alpha_back, of_one.beta_back, of_one.gamma_back
_theta_back, _phi_back, _sigma_back = of_one.theta_back, of_one.phi_back, of_one.sigma_back
_mu_back, _cutoff_back = of_one.mu_back, of_one.cutoff_back
_philox, _normal = inner(formulas.philox), inner(formulas.normal)


class Line(NamedTuple):
    """A row as its edges see it.

    The position of a source is taken from the source that is nearest to mu, to which it is a small whole number; the
    position and the phase of that one are float64.
    """

    centre: int  # that source, int32
    position: float  # p of it
    deviation: float  # p - mu of it
    per_sigma: float  # 1 / sigma'
    frequency: float  # 1 / (P theta'), rounded to the dtype of the model
    rest: float  # what is missing from it
    phase: float  # at the centre, in turns
    a: float  # alpha', beta', gamma'
    b: float
    g: float


@inner
def _transform(alpha, beta, gamma, theta, phi, sigma, mu, periodic, rows):
    """Write the transformed scalars of every row."""
    for r in range(0, alpha.size, lanes.COUNT):
        mask = lanes.first(alpha.size - r)
        s = _raw(sigma, r, mask, rows)
        lanes.store(rows[ALPHA], r, mask, _alpha_of(_raw(alpha, r, mask, rows)))
        lanes.store(rows[SIGMA], r, mask, _sigma_of(s))
        lanes.store(rows[SIGMA_SLOPE], r, mask, _sigma_slope(s))
        lanes.store(rows[MU], r, mask, _raw(mu, r, mask, rows))
        if periodic is not None:
            t = _raw(theta, r, mask, rows)
            lanes.store(rows[BETA], r, mask, _beta_of(_raw(beta, r, mask, rows)))
            lanes.store(rows[GAMMA], r, mask, _gamma_of(_raw(gamma, r, mask, rows)))
            lanes.store(rows[THETA], r, mask, _theta_of(t))
            lanes.store(rows[THETA_SLOPE], r, mask, _theta_slope(t))
            lanes.store(rows[PHI], r, mask, _raw(phi, r, mask, rows))


@inner
def _raw(scalar, r, mask, rows):
    """Raw scalars of the rows from r on, in float64."""
    return lanes.convert(lanes.load(scalar, r, mask, 0.0), rows)


@inner
def _now_and_then(scalar, r, mask, rows, reference):
    """A transformed scalar of the rows from r on, and that of their last scan."""
    return lanes.load(rows[scalar], r, mask, 0.0), lanes.column(reference, r, scalar, mask)


@inner
def _find_stale(rows, reference, c, threshold, period, periodic, omega_bound, ulp, stale):
    """Has the closeness of a pair outside the candidates possibly crossed the cutoff c?

    A row's pairs outside lay at or below its reference threshold when it was last scanned, and have moved since by
    at most the sum over its scalars of change times largest slope on the way.  Where that may reach c in any row,
    returns True; ``stale`` bool (n_rows,) are the rows to scan: those that have come more than half the way from
    ``threshold`` to c, so that rows do not ask for a scan one by one.  ``ulp``: that of 1 in the model's dtype.
    """
    crossed = 0
    for r in range(0, stale.size, lanes.COUNT):
        mask = lanes.first(stale.size - r)
        a, a_then = _now_and_then(ALPHA, r, mask, rows, reference)
        s, s_then = _now_and_then(SIGMA, r, mask, rows, reference)
        mu, mu_then = _now_and_then(MU, r, mask, rows, reference)
        gauss = _gaussian_moved(s, s_then, mu, mu_then)
        factor, bound, slope = lanes.fill(rows, 0.0), lanes.fill(rows, 1.0), lanes.fill(rows, 0.0)
        if periodic is not None:
            b, b_then = _now_and_then(BETA, r, mask, rows, reference)
            g, g_then = _now_and_then(GAMMA, r, mask, rows, reference)
            t, t_then = _now_and_then(THETA, r, mask, rows, reference)
            phi, phi_then = _now_and_then(PHI, r, mask, rows, reference)
            far = _farthest(s, s_then, mu, mu_then)
            factor, bound, slope = _rhythm_moved(b, b_then, g, g_then, t, t_then, phi, phi_then, far, period)
        moved = _closeness_moved(a, a_then, gauss, factor, bound, slope, omega_bound, ulp)
        highest = lanes.column(reference, r, THRESHOLD, mask) + moved
        lanes.store(stale, r, mask, ~(highest <= 0.5 * (threshold + c)))  # NaN counts as far
        crossed += lanes.count(mask) - lanes.count(mask & (highest <= c))
    return crossed > 0


@inner
def _line(rows, r, i, n_sources, offset, period, periodic, array):
    """The Line of row r; ``array`` has the dtype that products with its frequency are exact for."""
    mu = rows[MU, r]
    centre = max(0.0, min(np.rint(i - offset + mu), float(n_sources)))
    p = centre - i + offset
    frequency, rest, phase = 0.0, 0.0, 0.0
    if periodic is not None:
        exact = 1.0 / (period * rows[THETA, r])
        frequency = float(array.dtype.type(exact))
        rest = exact - frequency
        phase = _one_phase_at(p, rows[THETA, r], rows[PHI, r], period)
        phase -= np.rint(phase)
    scales = rows[ALPHA, r], rows[BETA, r], rows[GAMMA, r]
    return Line(np.int32(centre), p, p - mu, 1.0 / rows[SIGMA, r], frequency, rest, phase, *scales)


@inner
def _steps(sources, line, array):
    """How far sources lie from the centre of the row."""
    return lanes.convert(sources - line.centre, array)


@inner
def _deviation(x, line):
    """u = (p - mu) / sigma' of sources x positions from the centre."""
    return (x + line.deviation) * line.per_sigma


@inner
def _phase(x, line):
    """Their phase in turns, within half a turn."""
    return _phase_beyond(x, line.frequency, line.rest, line.phase)


@inner
def _closeness(x, line, periodic):
    """Their closeness, without the factor omega."""
    d = line.a * _gaussian(_deviation(x, line))
    if periodic is not None:
        d *= _rhythm(line.b, _phase(x, line)) - line.g
    return d


@inner
def _fresh_closeness(p, row, period, periodic, omega):
    """d_ij at position p, in float64, with the factor ``omega``; ``row`` are the transformed scalars."""
    d = row[ALPHA] * _one_gaussian((p - row[MU]) / row[SIGMA])
    if periodic is not None:
        d *= _one_rhythm(row[BETA], _one_phase_at(p, row[THETA], row[PHI], period)) - row[GAMMA]
    return d * omega


@inner
def _fresh_omega(seed, i, j, mean, std):
    """The omega with which edge i <- j is born: a function of (seed, i, j) alone."""
    word0, word1 = _philox(np.int64(i), np.int64(j), seed & 0xFFFFFFFF, seed >> 32)
    return mean + std * _normal(float(word0), float(word1), OMEGA_LIMIT)


@inner
def _scan_closeness(i, first, last, line, periodic, threshold, omega, write, indices, at, end):
    """Pairs of a window with |d| > threshold, to the places from ``at`` to ``end``; ``omega`` has the model's dtype."""
    count = 0
    for j in range(first, last + 1, lanes.COUNT):
        mask, sources = lanes.first(last + 1 - j), lanes.ramp(j)
        near = mask & (abs(_closeness(_steps(sources, line, omega), line, periodic)) > threshold)
        if write:
            lanes.append(indices, at + count, end, near, sources)
        count += lanes.count(near)
    return count


@inner
def _scan_fresh(
    i, first, last, offset, period, periodic, now, then, threshold, seed, mean, std, k, end, old_indices, old_omega,
    write, indices, omega, origin, at,
):  # fmt: skip
    """Old candidates k .. end that stay and fresh ones that enter, in ascending order of source.

    ``now`` are the row's transformed scalars, ``then`` those of its last scan, and the threshold of then.
    """
    j, count = first, 0
    while j <= last or k < end:
        known = k < end and (j > last or old_indices[k] <= j)
        source = np.int64(old_indices[k]) if known else j
        p = _one_position(i, source, offset)
        value = float(old_omega[k]) if known else _fresh_omega(seed, i, source, mean, std)
        enters = abs(_fresh_closeness(p, now, period, periodic, value)) > threshold
        if enters and not known:
            enters = abs(_fresh_closeness(p, then, period, periodic, value)) <= then[THRESHOLD]
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


@inner
def _row_window(rows, r, n_inputs, n_sources, offset, periodic, threshold, omega_bound):
    """First and last source that row r may be close to, an omega of at most ``omega_bound`` included."""
    bound = omega_bound
    if periodic is not None:
        bound *= _one_rhythm_bound(rows[BETA, r], rows[GAMMA, r])
    half = _one_reach(abs(rows[ALPHA, r]) * bound, threshold, rows[SIGMA, r])
    return _one_window(n_inputs + r, n_sources, offset, half, rows[MU, r])


@inner
def _copy(k, end, old_indices, old_omega, indices, omega, origin, at):
    """The old candidates k .. end of a row that is not scanned, to the places from ``at`` on."""
    for e in range(k, end):
        indices[at + e - k] = old_indices[e]
        if origin.size:
            omega[at + e - k], origin[at + e - k] = old_omega[e], e


@kernel(parallel=True)
def scan(
    rows, reference, stale, threshold, offsets, n_inputs, n_sources, period, periodic, omega_in_closeness,
    omega_in_strength, seed, mean, std, old_indptr, old_indices, old_omega, write, indptr, indices, omega, origin,
):  # fmt: skip
    """Find the candidates: first with ``write`` False to count them into indptr[1:], then with True to write them.

    Rows that are not ``stale`` keep theirs.  In the others every pair with |d| > threshold is one, where omega is not
    in d.  Where it is, an old candidate stays while |d| > threshold; a new one enters, with its fresh omega, when |d|
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
            if omega_in_closeness is not None:
                omega_bound = abs(mean) + OMEGA_LIMIT * std
            first, last = _row_window(rows, r, n_inputs, n_sources, offsets[r], periodic, threshold, omega_bound)
            if omega_in_closeness is not None:
                count = _scan_fresh(
                    i, first, last, offsets[r], period, periodic, rows[:, r], reference[r], threshold, seed, mean, std,
                    k, end, old_indices, old_omega, write, indices, omega, origin, at,
                )  # fmt: skip
            else:
                line = _line(rows, r, i, n_sources, offsets[r], period, periodic, omega)
                to = indptr[r + 1] if write else 0
                count = _scan_closeness(i, first, last, line, periodic, threshold, omega, write, indices, at, to)
                if omega_in_strength is not None and write:
                    _carry(i, at, count, seed, mean, std, k, end, old_indices, old_omega, indices, omega, origin)
        elif write:
            _copy(k, end, old_indices, old_omega, indices, omega, origin, at)
        if not write:
            indptr[r + 1] = count


@inner
def _row_closeness(r, line, periodic, omega_in_closeness, c, threshold, indptr, indices, omega, d):
    """Write d of a row's candidates; how many of them are active, and how many above ``threshold``."""
    active, near = 0, 0
    for e in range(indptr[r], indptr[r + 1], lanes.COUNT):
        mask = lanes.first(indptr[r + 1] - e)
        value = _closeness(_steps(lanes.load(indices, e, mask, line.centre), line, d), line, periodic)
        if omega_in_closeness is not None:
            value *= lanes.load(omega, e, mask, 0.0)
        lanes.store(d, e, mask, value)
        active += lanes.count(mask & (abs(value) > c))
        near += lanes.count(mask & (abs(value) > threshold))
    return active, near


@inner
def _compact(
    r, c, n_inputs, hidden, omega_in_strength, indptr, indices, d, omega, before, at, last, sources, strengths
):  # fmt: skip
    """Write a row's active candidates to the places from ``at`` to ``last``.

    Returns the sum of |strength| of inputs where the row is ``hidden``, else of other sources, and how many sources
    differ from ``before``, which is empty where that is known.
    """
    sizes, other = lanes.fill(d, 0.0), 0
    for e in range(indptr[r], indptr[r + 1], lanes.COUNT):
        mask = lanes.first(indptr[r + 1] - e)
        value, source = lanes.load(d, e, mask, 0.0), lanes.load(indices, e, mask, 0)
        active, strength = abs(value) > c, _strength(value, c)
        if omega_in_strength is not None:
            strength *= lanes.load(omega, e, mask, 0.0)
        found = lanes.count(active)
        lanes.append(sources, at, last, active, source)
        lanes.append(strengths, at, last, active, strength)
        if before.size:
            kept = lanes.first(found)
            other += lanes.count(kept & (lanes.load(before, at, kept, 0) != lanes.pack(active, source)))
        counted = active & (source < n_inputs) if hidden else active & (source >= n_inputs)
        sizes += lanes.select(counted, abs(strength), 0.0)
        at += found
    return lanes.total(sizes), other


@kernel(parallel=True)
def evaluate(
    alpha, beta, gamma, theta, phi, sigma, mu, offsets, n_inputs, n_sources, period, periodic, omega_in_closeness,
    omega_in_strength, c, threshold, check, omega_bound, reference, indptr, indices, omega, before_starts, before, rows,
    stale, d, row_starts, sources, strengths, parts,
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
    _transform(alpha, beta, gamma, theta, phi, sigma, mu, periodic, rows)
    ulp = 2.0**-23 if d.itemsize == 4 else 2.0**-52
    if check and _find_stale(rows, reference, c, threshold, period, periodic, omega_bound, ulp, stale):
        return True, 0, 0, False, 0.0
    for row in numba.prange(n_rows):
        r = np.int64(row)
        line = _line(rows, r, n_inputs + r, n_sources, offsets[r], period, periodic, d)
        row_starts[n_inputs + r + 1], parts[2, r] = _row_closeness(
            r, line, periodic, omega_in_closeness, c, threshold, indptr, indices, omega, d
        )
    same = before_starts.size == row_starts.size
    for i in range(n_inputs + n_rows + 1):
        row_starts[i] = 0 if i <= n_inputs else row_starts[i] + row_starts[i - 1]
        same = same and before_starts[i] == row_starts[i]
    n_edges = row_starts[n_inputs + n_rows]
    known = before if same else before[:0]
    for row in numba.prange(n_rows):
        r = np.int64(row)
        at, last, hidden = row_starts[n_inputs + r], row_starts[n_inputs + r + 1], n_inputs + r < n_sources
        size, parts[3, r] = _compact(
            r, c, n_inputs, hidden, omega_in_strength, indptr, indices, d, omega, known, at, last, sources, strengths
        )
        parts[0, r], parts[1, r] = size if hidden else 0.0, 0.0 if hidden else size
    same = same and _total(parts[3]) == 0.0
    return False, int(_total(parts[2])), n_edges, same, _total(parts[0]) - _total(parts[1])


@inner
def _total(values):
    """Sum of float64 numbers, in order."""
    out = 0.0
    for k in range(values.size):
        out += values[k]
    return out


@inner
def _through_strength(
    e, mask, source, value, active, by_strength, shares, c, n_inputs, omega_in_strength, omega, omega_gradient
):
    """From the gradient of strength to those of closeness (``value``) and of c; writes that of omega where it is a
    factor of the strength.  ``shares``: of |strength|, from inputs and from other sources."""
    by_size = lanes.select(source < n_inputs, lanes.fill(value, shares[0]), shares[1])
    by_size = lanes.select(active, by_size, 0.0)
    if omega_in_strength is not None:
        weight = lanes.load(omega, e, mask, 0.0)
        by_strength += _magnitude_back(value * weight, by_size)
        lanes.store(omega_gradient, e, mask, lanes.select(active, by_strength * _strength(value, c), 0.0))
        by_strength *= weight
    else:
        by_strength += _magnitude_back(value, by_size)
    return by_strength * _one_strength_slope(c), by_strength * _strength_by_cutoff(value, c)


@inner
def _through_closeness(e, mask, x, part, line, periodic, omega_in_closeness, omega, omega_gradient):
    """From the gradient ``part`` of closeness to the terms of the sums of alpha', mu, sigma', gamma', beta' and phi;
    writes the gradient of omega where it is a factor of the closeness."""
    u = _deviation(x, line)
    part = lanes.select(mask, part * _gaussian(u), 0.0)
    factor, by_rhythm, by_beta, by_phi = lanes.fill(part, 1.0), part, part, part
    if omega_in_closeness is not None:
        factor = lanes.load(omega, e, mask, 0.0)
    if periodic is not None:
        by_rhythm = factor * part
        power, by_beta, by_phi = _rhythm_back(line.b, _phase(x, line), by_rhythm)
        part *= power - line.g
    if omega_in_closeness is not None:
        lanes.store(omega_gradient, e, mask, part * line.a)
    part *= factor
    return part, part * u, part * u * u, by_rhythm, by_beta, by_phi


@inner
def _row_back(
    r, line, packed, shares, n_inputs, periodic, omega_in_closeness, omega_in_strength, c, first, last, at, indices,
    omega, d, sources, strengths, strength_gradient, d_gradient, sums, omega_gradient,
):  # fmt: skip
    """Sums over a row's edges ``first`` .. ``last``: active edges where ``packed``, else candidates, whose active ones
    begin at ``at``."""
    zero = lanes.fill(d, 0.0)
    by_alpha, by_sigma, by_mu, by_cutoff = zero, zero, zero, zero
    by_beta, by_gamma, by_phi, by_step = zero, zero, zero, zero
    some = lanes.first(lanes.COUNT if strength_gradient.size else 0)
    d_last = min(d_gradient.size, last)
    for e in range(first, last, lanes.COUNT):
        mask = lanes.first(last - e)
        if packed:
            source, active = lanes.load(sources, e, mask, line.centre), mask
            value = _closeness_of(lanes.load(strengths, e, mask, 0.0), c)
            by_strength = lanes.load(strength_gradient, e, active & some, 0.0)
        else:
            source, value = lanes.load(indices, e, mask, line.centre), lanes.load(d, e, mask, 0.0)
            active = abs(value) > c
            by_strength = lanes.unpack(strength_gradient, at, active & some)
            at += lanes.count(active)
        x = _steps(source, line, d)
        by_closeness, by_c = _through_strength(
            e, mask, source, value, active, by_strength, shares, c, n_inputs, omega_in_strength, omega, omega_gradient
        )
        by_closeness += lanes.load(d_gradient, e, lanes.first(d_last - e), 0.0)
        part, deviation, square, rhythm, exponent, phase = _through_closeness(
            e, mask, x, by_closeness, line, periodic, omega_in_closeness, omega, omega_gradient
        )
        by_cutoff += by_c
        by_alpha += part
        by_mu += deviation
        by_sigma += square
        if periodic is not None:
            by_beta += exponent
            by_gamma += rhythm
            by_phi += phase
            by_step += phase * x
    sums[ALPHA, r], sums[SIGMA, r], sums[MU, r] = lanes.total(by_alpha), lanes.total(by_sigma), lanes.total(by_mu)
    sums[CUTOFF, r] = lanes.total(by_cutoff)
    if periodic is not None:
        sums[BETA, r], sums[GAMMA, r], sums[PHI, r] = lanes.total(by_beta), lanes.total(by_gamma), lanes.total(by_phi)
        sums[THETA, r] = lanes.total(by_step) + line.position * sums[PHI, r]


@inner
def _raw_back(rows, r, period, periodic, sums, row_gradient):
    """From a row's sums to the gradients of its raw scalars."""
    a, s = rows[ALPHA, r], rows[SIGMA, r]
    row_gradient[ALPHA, r] = _alpha_back(sums[ALPHA, r], a)
    row_gradient[SIGMA, r] = _sigma_back(sums[SIGMA, r], a, s, rows[SIGMA_SLOPE, r])
    row_gradient[MU, r] = _mu_back(sums[MU, r], a, s)
    if periodic is not None:
        b, t = rows[BETA, r], rows[THETA, r]
        row_gradient[BETA, r] = _beta_back(sums[BETA, r], a)
        row_gradient[GAMMA, r] = _gamma_back(sums[GAMMA, r], a, rows[GAMMA, r])
        row_gradient[PHI, r] = _phi_back(sums[PHI, r], a, b)
        row_gradient[THETA, r] = _theta_back(sums[THETA, r], a, b, t, rows[THETA_SLOPE, r], period)


@kernel(parallel=True)
def strength_back(
    rows, offsets, n_inputs, n_sources, period, periodic, omega_in_closeness, omega_in_strength, c, indptr, indices,
    omega, d, row_starts, sources, strengths, strength_gradient, d_gradient, by_imbalance, sums, row_gradient,
    omega_gradient,
):  # fmt: skip
    """Gradients of raw scalars from those of the active strengths, of every candidate's closeness (either may be empty:
    none), and of the sum of |strength| over input -> hidden edges less that over hidden -> output edges.

    Candidates that are not active matter where omega or closeness has a gradient: otherwise only the active edges are
    read.
    row_gradient (7, n_rows): with respect to the *raw* scalars, those that the edge mode has.  Returns the gradient
    of the raw cutoff.  omega_gradient (n_candidates,) where edges have one.  Scratch: float64 sums (8, n_rows).
    """
    packed = omega_in_closeness is None and omega_in_strength is None and d_gradient.size == 0
    for row in numba.prange(indptr.size - 1):
        r = np.int64(row)
        i = n_inputs + r
        line = _line(rows, r, i, n_sources, offsets[r], period, periodic, d)
        shares = _imbalance_shares(by_imbalance, i < n_sources)
        first, last = (row_starts[i], row_starts[i + 1]) if packed else (indptr[r], indptr[r + 1])
        _row_back(
            r, line, packed, shares, n_inputs, periodic, omega_in_closeness, omega_in_strength, c, first, last,
            row_starts[i], indices, omega, d, sources, strengths, strength_gradient, d_gradient, sums, omega_gradient,
        )  # fmt: skip
    for r in range(indptr.size - 1):
        _raw_back(rows, r, period, periodic, sums, row_gradient)
    return _cutoff_back(_total(sums[CUTOFF]), c)


@kernel(parallel=True)
def gates(d, c, tau, threshold, parts, slopes):
    """Gates h = sigmoid((|d| - c) / tau) of the candidates above ``threshold``: ``slopes`` (n_candidates,) is dh/dd.

    Returns the sum of the gates and its derivative with respect to the raw cutoff.  Scratch: float64 parts
    (2, ceil(n_candidates / CHUNK)).
    """
    for k in numba.prange(parts.shape[1]):
        gate_sum, slope_sum = lanes.fill(d, 0.0), lanes.fill(d, 0.0)
        for e in range(k * CHUNK, min(k * CHUNK + CHUNK, d.size), lanes.COUNT):
            mask = lanes.first(d.size - e)
            signed = lanes.load(d, e, mask, 0.0)
            h = lanes.select(abs(signed) > threshold, _gate(abs(signed), c, tau), 0.0)
            slope = _gate_slope(h, tau)
            gate_sum += h
            slope_sum += slope
            lanes.store(slopes, e, mask, copysign(slope, signed))
        parts[0, k], parts[1, k] = lanes.total(gate_sum), lanes.total(slope_sum)
    return _total(parts[0]), _cutoff_back(-_total(parts[1]), c)
