"""exp, log and their like of `Lanes`: straight lines of multiply-adds, in the dtype of their argument.

`compile_formulas` in jit.py compiles formulas with this module in the place of ``math``.  Errors, tested: exp, log,
log1p and tanh <= 2 ulp, logistic <= 3 ulp, sin_pi and cos_pi <= 2 ulp of 1.  Polynomials go through the function at
Chebyshev nodes, which puts them within 0.15 ulp; coefficients stand highest power first.
"""

import math

from numba.core import types
from numba.extending import intrinsic
from sparse_dnm.kernels import lanes
from sparse_dnm.kernels.jit import inner

e, pi = math.e, math.pi
fma, rint, copysign = lanes.lanewise("fma", 3), lanes.lanewise("rint", 1), lanes.lanewise("copysign", 2)

LOG2_E = 1.0 / math.log(2.0)
MANTISSA = {types.float32: 23, types.float64: 52}  # bits
SQRT_HALF = {types.float32: 0x3F3504F3, types.float64: 0x3FE6A09E667F3BCD}  # bits of sqrt(1/2)


def _of_dtype(single, double):
    """A constant for either dtype."""

    load = lanes.stored((single,), (double,))

    @intrinsic
    def value(typingctx, x):
        return x(x), lambda context, builder, signature, args: next(load(builder, x.dtype))

    return value


def _polynomial(single, double):
    """A polynomial for either dtype, by Horner's rule."""

    load = lanes.stored(single, double)

    @intrinsic
    def value(typingctx, x):
        def codegen(context, builder, signature, args):
            numbers = load(builder, x.dtype)
            out = next(numbers)
            for number in numbers:
                out = lanes.math(builder, "fma", x.dtype, out, args[0], number)
            return out

        return x(x), codegen

    return value


_one, _log2_e = _of_dtype(1.0, 1.0), _of_dtype(LOG2_E, LOG2_E)
# A constant and what is missing from it after rounding
_ln2_high, _ln2_low = _of_dtype(0.6931471824645996, 0.6931471805599453), _of_dtype(-1.9046543e-09, 2.3190468138463e-17)
_pi_high, _pi_low = _of_dtype(3.1415927410125732, 3.141592653589793), _of_dtype(-8.742278e-08, 1.2246467991473532e-16)
_lowest, _highest = _of_dtype(-87.0, -708.0), _of_dtype(88.0, 709.0)  # exponents that fit

# (exp(r) - 1 - r) / r², |r| <= ln(2) / 2
_exp = _polynomial(
    (1.392625083e-03, 8.363232884e-03, 4.166655421e-02, 1.666657667e-01, 5.000000000e-01),
    (
        *(2.09147553258932e-09, 2.5105312729622103e-08, 2.755727347871858e-07, 2.755725517000089e-06),
        *(2.480158732567746e-05, 0.0001984126987500228, 0.0013888888888883711, 0.008333333333326084),
        *(0.04166666666666667, 0.1666666666666667, 0.5),
    ),
)
# (log((1 + s) / (1 - s)) / 2s - 1) / z of z = s², (1 + s) / (1 - s) in sqrt(1/2) .. sqrt(2)
_log = _polynomial(
    (1.478997470e-01, 1.999439028e-01, 3.333334252e-01),
    (
        *(0.06543313073920051, 0.06634386569328443, 0.07693119851407329, 0.09090897820066453),
        *(0.11111111195856958, 0.14285714285401807, 0.2000000000000044, 0.3333333333333333),
    ),
)
# (sin(pi t) / t - pi) / z and (cos(pi t) - 1) / z of z = t², |t| <= 1/2
_sine = _polynomial(
    (-7.084488779e-03, 8.208371776e-02, -5.992589937e-01, 2.550163867e00, -5.167712779e00),
    (
        *(7.725743030789876e-07, -2.1906201655131958e-05, 0.00046630087411496363, -0.007370430719634586),
        *(0.08214588659675232, -0.599264529320343, 2.55016403987734, -5.16771278004997),
    ),
)
_cosine = _polynomial(
    (-2.462711160e-02, 2.350743683e-01, -1.335239961e00, 4.058711415e00, -4.934802197e00),
    (
        *(-1.3479054836358117e-07, 4.301203720851614e-06, -0.00010463763434072599, 0.0019295742401671152),
        *(-0.025806891384027284, 0.23533063035860233, -1.3352627688545824, 4.0587121264167685, -4.934802200544679),
    ),
)


def _integer(dtype):
    return types.int32 if dtype == types.float32 else types.int64


@intrinsic
def _power_of_two(typingctx, k):
    """2**k of whole numbers."""
    dtype, integer = k.dtype, _integer(k.dtype)

    def codegen(context, builder, signature, args):
        bits = MANTISSA[dtype]
        whole = builder.fptosi(args[0], lanes.vector(integer))
        one = lanes.constant((1 << (integer.bitwidth - bits - 2)) - 1 << bits, integer)
        shifted = builder.shl(whole, lanes.constant(bits, integer))
        return builder.bitcast(builder.add(shifted, one), lanes.vector(dtype))

    return k(k), codegen


@intrinsic
def _split(typingctx, x):
    """k and m with x = 2**k m, m in sqrt(1/2) .. sqrt(2)."""
    dtype, integer = x.dtype, _integer(x.dtype)

    def codegen(context, builder, signature, args):
        low, bits = lanes.constant(SQRT_HALF[dtype], integer), MANTISSA[dtype]
        above = builder.sub(builder.bitcast(args[0], lanes.vector(integer)), low)
        k = builder.sitofp(builder.ashr(above, lanes.constant(bits, integer)), lanes.vector(dtype))
        m = builder.add(builder.and_(above, lanes.constant((1 << bits) - 1, integer)), low)
        return context.make_tuple(builder, signature.return_type, (k, builder.bitcast(m, lanes.vector(dtype))))

    return types.UniTuple(x, 2)(x), codegen


@inner
def exp(x):
    """e**x; held at the ends of -87 .. 88 (float32) or -708 .. 709 outside them."""
    x = lanes.hold(x, _lowest(x), _highest(x))
    k = rint(x * _log2_e(x))
    r = fma(k, -_ln2_low(x), fma(k, -_ln2_high(x), x))
    return (_one(x) + fma(r * r, _exp(r), r)) * _power_of_two(k)


@inner
def log(x):
    """Natural logarithm of normal positive numbers."""
    k, m = _split(x)
    f = m - _one(x)
    s = f / (2.0 + f)
    z = s * s
    half = 0.5 * f * f
    return fma(k, _ln2_high(x), f - (half - fma(s, half + 2.0 * z * _log(z), k * _ln2_low(x))))


@inner
def log1p(x):
    """log(1 + x), x >= 0."""
    y = 1.0 + x
    return log(y) - ((y - 1.0) - x) / y


@inner
def sin_pi(t):
    """sin(pi t), |t| <= 1/2"""
    z = t * t
    return fma(t, _pi_high(t), t * (_pi_low(t) + z * _sine(z)))


@inner
def cos_pi(t):
    """cos(pi t), |t| <= 1/2"""
    z = t * t
    return fma(z, _cosine(z), _one(t))


# (tanh(x) / x - 1) / z of z = x², |x| < 5/8: a polynomial in float32, of float64 a quotient (Moshier, Cephes)
_tanh_single = (-5.70498872745e-03, 2.06390887954e-02, -5.37397155531e-02, 1.33314422036e-01, -3.33332819422e-01)
_tanh_above = _polynomial(
    _tanh_single, (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
)
_tanh_below = _polynomial((1.0,), (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3))


@inner
def tanh(x):
    """Hyperbolic tangent."""
    z, size = x * x, abs(x)
    near = fma(x * z, _tanh_above(z) / _tanh_below(z), x)
    far = copysign(1.0 - 2.0 / (1.0 + exp(size + size)), x)
    return lanes.select(size < 0.625, near, far)


@inner
def logistic(x):
    """1 / (1 + exp(-x))"""
    return 1.0 / (1.0 + exp(-x))
