"""Every scalar formula of the model, once and undecorated: cpu and gpu compile the same text (DESIGN, section 2).

Row scalars are written as in the formulas: a = alpha', b = beta', g = gamma', t = theta', s = sigma'.
All arguments are floats unless said otherwise.
"""

import math


def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def softplus(x):
    """log(1 + exp(x)) without overflow."""
    if x > 0.0:
        return x + math.log1p(math.exp(-x))
    return math.log1p(math.exp(x))


def position(i, j, offset):
    """p_ij of source j seen from neuron i (integers), in positions."""
    return float(j - i) + offset


def gaussian(p, mu, s):
    """g_ij: 1 at p = mu, falling off over s positions."""
    u = (p - mu) / s
    return math.exp(-0.5 * u * u)


def rhythm_base(p, b, t, phi, period):
    """0.501 + 0.5 sin(2 pi p / (P t) + phi), in 0.001 .. 1.001."""
    return 0.501 + 0.5 * math.sin(2.0 * math.pi * p / (period * t) + phi)


def rhythm(base, b):
    """s_ij = base ** b, of a positive base."""
    return math.exp(b * math.log(base))


def rhythm_phase_slope(p, b, t, phi, period, base, s):
    """Derivative of s_ij with respect to phi."""
    return 0.5 * math.cos(2.0 * math.pi * p / (period * t) + phi) * b * s / base


def logarithm(base):
    """log(base): the derivative of s_ij with respect to b, over s_ij."""
    return math.log(base)


def strength(d, c):
    """D_ij: soft threshold of the closeness d at the cutoff c."""
    return (d - c) / (1.0 - c) if d > 0.0 else (d + c) / (1.0 - c)


def strength_by_cutoff(d, c):
    """Derivative of `strength` with respect to c."""
    slope = (abs(d) - 1.0) / ((1.0 - c) * (1.0 - c))
    return slope if d > 0.0 else -slope


def reach(amplitude, threshold, s):
    """Half-width of the window, in positions, outside which amplitude * gaussian < threshold; < 0 where empty."""
    if amplitude <= threshold:
        return -1.0
    return s * math.sqrt(2.0 * math.log(amplitude / threshold))


def rhythm_bound(b, g):
    """Largest |s_ij - gamma'| of a row."""
    first, last = 0.001**b, 1.001**b
    return max(abs(first - g), abs(last - g))


def rhythm_slope(b):
    """Largest derivative of s_ij with respect to its phase."""
    return abs(b) * max(1.001 ** (b - 0.5), 0.001 ** (b - 0.5))


def rhythm_slope_beta(b):
    """Largest derivative of s_ij with respect to b."""
    if b > 0.15:
        return 1.0 / (math.e * b) + 0.002
    return 6.91 * 0.001**b


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
