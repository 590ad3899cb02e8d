"""Activations, their gradients and random numbers, undecorated: CPU and CUDA compile the same text (DESIGN, section 2).

All arguments are floats unless said otherwise.  The formulas of edges are in edge_formulas.py.
"""

import math


def softplus(x):
    """log(1 + exp(x)) without overflow."""
    return 0.5 * (x + abs(x)) + math.log1p(math.exp(-abs(x)))


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
