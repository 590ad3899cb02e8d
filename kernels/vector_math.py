"""exp, log, sin and cos that LLVM can vectorise: straight lines of float64 arithmetic without a branch or a call.

Numba compiles math.exp and its like to scalar calls of libm, 10-20 ns each.  `inner_vector` in jit.py compiles a
formula of formulas.py with this module in the place of ``math``.  Errors, tested: exp and log <= 2 ulp on the ranges
given; sin and cos <= 2 ulp of 1 for |x| <= 1e6.  Coefficients: truncated Taylor series of the reduced argument,
whose remainder is below 1e-17.
"""

import math

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from sparse_dnm.kernels.jit import inner

pi = math.pi
e = math.e

LOG2_E = 1.0 / math.log(2.0)
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # fdlibm: 33 bits, and the rest
HALF_PI_1, HALF_PI_2, HALF_PI_3 = 1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21
EXPONENT_ONE = 0x3FF0000000000000  # bits of 1.0
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD


@intrinsic
def _bits(typingctx, x):
    """The int64 with the bits of a float64."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def _float(typingctx, bits):
    """The float64 with the bits of an int64."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@inner
def exp(x):
    """e**x for x in -708 .. 709; held at the ends of that range outside it."""
    x = min(max(x, -708.0), 709.0)
    k = np.rint(x * LOG2_E)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    tail = 1.0 / 6227020800.0
    tail = tail * r + 1.0 / 479001600.0
    tail = tail * r + 1.0 / 39916800.0
    tail = tail * r + 1.0 / 3628800.0
    tail = tail * r + 1.0 / 362880.0
    tail = tail * r + 1.0 / 40320.0
    tail = tail * r + 1.0 / 5040.0
    tail = tail * r + 1.0 / 720.0
    tail = tail * r + 1.0 / 120.0
    tail = tail * r + 1.0 / 24.0
    tail = tail * r + 1.0 / 6.0
    tail = tail * r + 0.5
    scale = _float((np.int64(k) << 52) + EXPONENT_ONE)
    return (1.0 + (r + r * r * tail)) * scale


@inner
def log(x):
    """Natural logarithm of a normal positive float64."""
    bits = _bits(x) - SQRT_HALF_BITS
    k = bits >> 52
    f = _float((bits & 0x000FFFFFFFFFFFFF) + SQRT_HALF_BITS) - 1.0  # in sqrt(1/2) - 1 .. sqrt(2) - 1
    s = f / (2.0 + f)
    z = s * s
    tail = 1.0 / 21.0
    tail = tail * z + 1.0 / 19.0
    tail = tail * z + 1.0 / 17.0
    tail = tail * z + 1.0 / 15.0
    tail = tail * z + 1.0 / 13.0
    tail = tail * z + 1.0 / 11.0
    tail = tail * z + 1.0 / 9.0
    tail = tail * z + 1.0 / 7.0
    tail = tail * z + 1.0 / 5.0
    tail = tail * z + 1.0 / 3.0
    half = 0.5 * f * f
    scaled = float(k)
    return scaled * LN2_HIGH - ((half - (s * (half + 2.0 * z * tail) + scaled * LN2_LOW)) - f)


@inner
def _sine(x, quarter):
    """sin(x + quarter * pi / 2)."""
    k = np.rint(x * (2.0 / math.pi))
    r = ((x - k * HALF_PI_1) - k * HALF_PI_2) - k * HALF_PI_3
    z = r * r
    odd = -1.0 / 1307674368000.0
    odd = odd * z + 1.0 / 6227020800.0
    odd = odd * z - 1.0 / 39916800.0
    odd = odd * z + 1.0 / 362880.0
    odd = odd * z - 1.0 / 5040.0
    odd = odd * z + 1.0 / 120.0
    odd = odd * z - 1.0 / 6.0
    even = 1.0 / 20922789888000.0
    even = even * z - 1.0 / 87178291200.0
    even = even * z + 1.0 / 479001600.0
    even = even * z - 1.0 / 3628800.0
    even = even * z + 1.0 / 40320.0
    even = even * z - 1.0 / 720.0
    even = even * z + 1.0 / 24.0
    sine = r + r * z * odd
    cosine = 1.0 - (0.5 * z - z * z * even)
    turn = np.int64(k) + quarter
    value = cosine if turn & 1 else sine
    return -value if turn & 2 else value


@inner
def sin(x):
    """Sine of x (rad)."""
    return _sine(x, 0)


@inner
def cos(x):
    """Cosine of x (rad)."""
    return _sine(x, 1)
