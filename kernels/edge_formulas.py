"""The formulas of edges, undecorated: CPU and CUDA compile the same text (DESIGN, sections 2 and 4.1).

From the raw scalars of a row to the closeness and the strength of an edge, the bound that says when candidates are out
of date, and the chain rule back.  Transformed scalars are written as in the formulas: a = alpha', b = beta',
g = gamma', t = theta', s = sigma'; phi and mu are not transformed.  All arguments are floats unless said otherwise.

`compile_formulas` in jit.py compiles all of this module at once, for one number or for `Lanes` of them, and puts
functions of the target in the place of ``math``, ``select``, ``sin_pi``, ``cos_pi``, ``max`` and ``min``.
"""

import math

from sparse_dnm.kernels.formulas import logistic, softplus

LN2 = math.log(2.0)
LOG_LOW, LOG_HIGH = math.log(0.001), math.log(1.001)  # of the least and the largest base of s_ij
STEEPEST = math.exp(-0.5)  # largest slope of a Gaussian of width 1
ROUNDING = 128.0  # ulp by which the closeness of two computations in the model's dtype may differ


def select(mask, a, b):
    """a where the mask is set, else b; both are computed."""
    return a if mask else b


def sin_pi(t):
    """sin(pi t)"""
    return math.sin(math.pi * t)


def cos_pi(t):
    """cos(pi t)"""
    return math.cos(math.pi * t)


# Raw scalars -> transformed ones


def alpha_of(raw):
    """alpha', in -1 .. 1."""
    return 2.0 * logistic(raw) - 1.0


def beta_of(raw):
    """beta'"""
    return 1.0 + raw


def gamma_of(raw):
    """gamma', in 0 .. 1."""
    return logistic(raw)


def theta_of(raw):
    """theta' > 0, 1 of raw 0."""
    return softplus(raw) * (1.0 / LN2)


def theta_slope(raw):
    """Derivative of `theta_of`."""
    return logistic(raw) * (1.0 / LN2)


def sigma_of(raw):
    """sigma' > 0"""
    return softplus(raw)


def sigma_slope(raw):
    """Derivative of `sigma_of`."""
    return logistic(raw)


# Closeness and strength


def position(i, j, offset):
    """p_ij of source j seen from neuron i (integers), in positions."""
    return float(j - i) + offset


def gaussian(u):
    """g_ij: 1 at u = (p - mu) / s = 0, falling off over 1."""
    return math.exp(-0.5 * u * u)


def phase_at(p, t, phi, period):
    """Phase of s_ij at position p, in turns of 2 pi rad, plus a quarter of one."""
    return p / (period * t) + phi / (2.0 * math.pi) + 0.25


def phase_beyond(x, frequency, rest, start):
    """`phase_at` x positions from where it is ``start``, less a whole number: within half a turn.

    frequency + rest = 1 / (P t), the first rounded to the dtype of x: the product is exact to twice its digits.
    """
    whole = x * frequency
    left = math.fma(x, frequency, -whole) + math.fma(x, rest, start)
    phase = (whole - math.rint(whole)) + left
    return phase - math.rint(phase)


def rhythm_base(sine):
    """0.501 + 0.5 sin(2 pi p / (P t) + phi), in 0.001 .. 1.001, of sine = sin(pi phase): exact to the digit near 0."""
    return 0.001 + sine * sine


def rhythm_base_slope(sine, cosine):
    """Derivative of the base with respect to phi: 0.5 cos(2 pi p / (P t) + phi)."""
    return sine * cosine


def power_below(b, logarithm):
    """base ** (b - 1) of log(base): s_ij over the base."""
    return math.exp((b - 1.0) * logarithm)


def rhythm(b, phase):
    """s_ij at a ``phase`` in turns, within half a turn."""
    base = rhythm_base(sin_pi(phase))
    return base * power_below(b, math.log(base))


def strength(d, c):
    """D_ij: soft threshold of the closeness d at the cutoff c."""
    return (d - math.copysign(c, d)) * strength_slope(c)


def strength_slope(c):
    """Derivative of `strength` with respect to d."""
    return 1.0 / (1.0 - c)


def strength_by_cutoff(d, c):
    """Derivative of `strength` with respect to c."""
    return (abs(d) - 1.0) * math.copysign(1.0 / ((1.0 - c) * (1.0 - c)), d)


def closeness_of(strength, c):
    """d of the `strength` of an active edge."""
    return strength * (1.0 - c) + math.copysign(c, strength)


def gate(size, c, tau):
    """h: the chance that a candidate of closeness |d| = ``size`` exists."""
    return logistic((size - c) * (1.0 / tau))


def gate_slope(h, tau):
    """Derivative of `gate` with respect to ``size``, of its value h."""
    return h * (1.0 - h) * (1.0 / tau)


# Windows: where a row may have candidates


def rhythm_bound(b, g):
    """Largest |s_ij - gamma'| of a row."""
    return max(abs(math.exp(b * LOG_LOW) - g), abs(math.exp(b * LOG_HIGH) - g))


def reach(amplitude, threshold, s):
    """Half-width of the window, in positions, outside which amplitude * gaussian < threshold; < 0 where empty."""
    if amplitude <= threshold:
        return -1.0
    return s * math.sqrt(2.0 * math.log(amplitude / threshold))


def window(i, n_sources, offset, half, mu):
    """First and last source (integers) within ``half`` positions of mu, as seen from neuron i, where there are any;
    an empty range where half < 0."""
    limit = min(i, n_sources)
    if not half >= 0.0:
        return 0, -1
    centre = i - offset + mu
    first = math.floor(max(0.0, min(centre - half, float(limit))))
    last = math.ceil(max(-1.0, min(centre + half, float(limit - 1))))
    return int(first), int(last)


# How far closeness may have moved since a row was scanned: change times largest slope on the way, of each scalar


def rhythm_slope(b):
    """Largest derivative of s_ij with respect to its phase."""
    return abs(b) * max(math.exp((b - 0.5) * LOG_LOW), math.exp((b - 0.5) * LOG_HIGH))


def rhythm_slope_beta(b):
    """Bound of the derivative of s_ij with respect to b: 1 / (e b), or the low end's where b is small."""
    return 1.0 / (math.e * max(b, 0.15)) + 0.002 + 6.91 * (math.exp(min(b, 0.15) * LOG_LOW) - 0.3548)


def gaussian_moved(s, s_then, mu, mu_then):
    """Bound of the change of g_ij."""
    narrow = min(s, s_then)
    return abs(mu - mu_then) * STEEPEST / narrow + abs(s - s_then) * (2.0 / math.e) / narrow


def farthest(s, s_then, mu, mu_then):
    """Position at which a change of the phase's frequency counts most, given the Gaussian's decline."""
    return max(abs(mu), abs(mu_then)) + max(s, s_then) * STEEPEST


def rhythm_moved(b, b_then, g, g_then, t, t_then, phi, phi_then, far, period):
    """Bound of the change of s_ij - gamma' at positions up to ``far``; bounds of its size and of its slope by phi."""
    bound = max(rhythm_bound(b, g), rhythm_bound(b_then, g_then))
    slope = max(rhythm_slope(b), rhythm_slope(b_then))
    phase = 2.0 * math.pi / period * abs(1.0 / t - 1.0 / t_then) * far + abs(phi - phi_then)
    moved = slope * phase + abs(g - g_then)
    moved += max(rhythm_slope_beta(b), rhythm_slope_beta(b_then)) * abs(b - b_then)
    return moved, bound, slope


def closeness_moved(a, a_then, gauss, factor, bound, slope, omega_bound, ulp):
    """Bound of the change of d_ij, of those of g_ij and of the ``factor`` s_ij - gamma', whose size is at most
    ``bound``.  ``ulp``: that of 1 in the model's dtype; rounding may differ where anything has moved."""
    amplitude = max(abs(a), abs(a_then))
    moved = omega_bound * (abs(a - a_then) * bound + amplitude * (bound * gauss + factor))
    return moved + select(moved == 0.0, 0.0, ROUNDING * ulp * amplitude * omega_bound * (bound + slope))


# The chain rule, from the gradients of strength and closeness to sums over a row's edges


def imbalance_shares(by_imbalance, reader_is_hidden):
    """Gradients of |strength| of an edge from an input, and of one from another source."""
    return select(reader_is_hidden, by_imbalance, 0.0), select(reader_is_hidden, 0.0, -by_imbalance)


def magnitude_back(signed, by_size):
    """Gradient of ``signed`` from that of its absolute value."""
    return select(signed > 0.0, by_size, -by_size)


def rhythm_back(b, phase, by_rhythm):
    """s_ij, and the gradients of beta' and of phi, the latter over beta', from the gradient ``by_rhythm`` of s_ij."""
    sine = sin_pi(phase)
    base = rhythm_base(sine)
    logarithm = math.log(base)
    below = power_below(b, logarithm)
    power = base * below
    return power, by_rhythm * power * logarithm, by_rhythm * below * rhythm_base_slope(sine, cos_pi(phase))


# and from those sums, all without the factor alpha', to the gradients of the raw scalars


def alpha_back(total, a):
    """Gradient of raw alpha, from the sum of that of alpha'."""
    return total * 0.5 * (1.0 - a * a)


def beta_back(total, a):
    """Gradient of raw beta."""
    return a * total


def gamma_back(total, a, g):
    """Gradient of raw gamma; ``total`` is the sum of that of s_ij - gamma'."""
    return -a * total * g * (1.0 - g)


def theta_back(total, a, b, t, slope, period):
    """Gradient of raw theta; ``total`` is the sum of that of phi over beta' times the position, in positions."""
    return a * b * total * -2.0 * math.pi / (period * t * t) * slope


def phi_back(total, a, b):
    """Gradient of phi; ``total`` is the sum of that over beta'."""
    return a * b * total


def sigma_back(total, a, s, slope):
    """Gradient of raw sigma; ``total`` is the sum of the gradient of alpha' times u²."""
    return a * total / s * slope


def mu_back(total, a, s):
    """Gradient of mu; ``total`` is the sum of the gradient of alpha' times u."""
    return a * total / s


def cutoff_back(total, c):
    """Gradient of the raw cutoff, from that of c."""
    return total * c * (1.0 - c)
