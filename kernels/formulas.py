"""Every scalar formula of the model, once and undecorated: cpu and gpu compile the same text (DESIGN, section 2).

Row scalars are written as in the formulas: a = alpha', b = beta', g = gamma', t = theta', s = sigma'.
All arguments are floats unless said otherwise.
"""

import math

LOG_LOW, LOG_HIGH = math.log(0.001), math.log(1.001)  # of the ends of a rhythm's base


def softplus(x):
    """log(1 + exp(x)) without overflow."""
    return 0.5 * (x + abs(x)) + math.log1p(math.exp(-abs(x)))


def position(i, j, offset):
    """p_ij of source j seen from neuron i (integers), in positions."""
    return float(j - i) + offset


def gaussian(u):
    """g_ij: 1 at u = (p - mu) / s = 0, falling off over 1."""
    return math.exp(-0.5 * u * u)


def turns(p, t, phi, period):
    """Phase of s_ij in turns, 2 pi rad each, and a quarter."""
    return p / (period * t) + phi / (2.0 * math.pi) + 0.25


def turns_beyond(x, frequency, rest, start):
    """`turns` at x positions from where it is ``start``, less a whole number: within half a turn.

    frequency + rest = 1 / (P t), the first rounded to the dtype of x: the product is exact to twice its digits.
    """
    whole = x * frequency
    left = math.fma(x, frequency, -whole) + math.fma(x, rest, start)
    turn = (whole - math.rint(whole)) + left
    return turn - math.rint(turn)


def rhythm_base(sine):
    """0.501 + 0.5 sin(2 pi p / (P t) + phi), in 0.001 .. 1.001, of sine = sin(pi turns): exact to the digit near 0."""
    return 0.001 + sine * sine


def rhythm_base_slope(sine, cosine):
    """Derivative of the base with respect to phi: 0.5 cos(2 pi p / (P t) + phi)."""
    return sine * cosine


def power_below(b, logarithm):
    """base ** (b - 1) of log(base): s_ij over the base."""
    return math.exp((b - 1.0) * logarithm)


def strength(d, c):
    """D_ij: soft threshold of the closeness d at the cutoff c."""
    return (d - math.copysign(c, d)) * (1.0 / (1.0 - c))


def closeness_of(strength, c):
    """d of the `strength` of an active edge."""
    return strength * (1.0 - c) + math.copysign(c, strength)


def strength_by_cutoff(d, c):
    """Derivative of `strength` with respect to c."""
    return (abs(d) - 1.0) * math.copysign(1.0 / ((1.0 - c) * (1.0 - c)), d)


def reach(amplitude, threshold, s):
    """Half-width of the window, in positions, outside which amplitude * gaussian < threshold; < 0 where empty."""
    if amplitude <= threshold:
        return -1.0
    return s * math.sqrt(2.0 * math.log(amplitude / threshold))


def rhythm_bound(b, g):
    """Largest |s_ij - gamma'| of a row."""
    return max(abs(math.exp(b * LOG_LOW) - g), abs(math.exp(b * LOG_HIGH) - g))


def rhythm_slope(b):
    """Largest derivative of s_ij with respect to its phase."""
    return abs(b) * max(math.exp((b - 0.5) * LOG_LOW), math.exp((b - 0.5) * LOG_HIGH))


def rhythm_slope_beta(b):
    """Bound of the derivative of s_ij with respect to b: 1 / (e b), or the low end's where b is small."""
    return 1.0 / (math.e * max(b, 0.15)) + 0.002 + 6.91 * (math.exp(min(b, 0.15) * LOG_LOW) - 0.3548)


def philox(counter0, counter1, key0, key1):
    """Two of the four words of Philox4x32-10 (Salmon et al. 2011) of the counter (counter0, counter1, 0, 0).

    int64 arguments that hold 32-bit words; returns two such words.
    """
    c0, c1, c2, c3 = counter0, counter1, 0, 0
    k0, k1 = key0, key1
    for _ in range(10):
        product0 = c0 * 0xD2511F53
        product1 = c2 * 0xCD9E8D57
        c0 = ((product1 >> 32) & 0xFFFFFFFF) ^ c1 ^ k0
        c1 = product1 & 0xFFFFFFFF
        c2 = ((product0 >> 32) & 0xFFFFFFFF) ^ c3 ^ k1
        c3 = product0 & 0xFFFFFFFF
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1


def normal(word0, word1, limit):
    """Standard normal number from two 32-bit words (Box & Muller 1958), cut to -limit .. limit."""
    radius = math.sqrt(-2.0 * math.log((word0 + 0.5) / 4294967296.0))
    return min(radius, limit) * math.cos(2.0 * math.pi * (word1 / 4294967296.0))


def leaky_relu(z, slope):
    """z where positive, else slope * z: relu at slope 0, identity at slope 1."""
    return z if z > 0 else slope * z


def leaky_relu_back(z, gradient, slope):
    """Gradient through `leaky_relu`; as torch has it, the slope below counts at 0."""
    return gradient if z > 0 else slope * gradient


def tanh(z):
    """Hyperbolic tangent."""
    return math.tanh(z)


def silu(z):
    """z sigmoid(z)"""
    return z / (1.0 + math.exp(-z))


def logistic(z):
    """1 / (1 + exp(-z))"""
    return 1.0 / (1.0 + math.exp(-z))


def logistic_back(z, gradient):
    """Gradient through `logistic`."""
    y = 1.0 / (1.0 + math.exp(-z))
    return gradient * y * (1.0 - y)


def tanh_back(z, gradient):
    """Gradient through `tanh`."""
    y = math.tanh(z)
    return gradient * (1.0 - y * y)


def silu_back(z, gradient):
    """Gradient through `silu`."""
    y = 1.0 / (1.0 + math.exp(-z))
    return gradient * y * (1.0 + z * (1.0 - y))
