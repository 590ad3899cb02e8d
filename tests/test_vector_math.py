"""exp, log and their like of the kernels against mpmath, in ulp, in both dtypes."""

import math

import mpmath
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparse_dnm.kernels import lanes, vector_math

DTYPES = [np.float32, np.float64]


@numba.njit
def apply(function, x, out):
    for k in range(0, x.size, lanes.COUNT):
        inside = lanes.first(x.size - k)
        lanes.store(out, k, inside, function(lanes.load(x, k, inside, 0.5)))


def evaluate(name, x):
    out = np.empty_like(x)
    apply(getattr(vector_math, name), x, out)
    return out


EXACT = {"exp": mpmath.exp, "log": mpmath.log, "log1p": mpmath.log1p, "sin_pi": mpmath.sinpi, "cos_pi": mpmath.cospi}
EXACT |= {"tanh": mpmath.tanh, "logistic": lambda v: 1 / (1 + mpmath.exp(-v))}
RANGES = {
    "exp": [(-708.0, 709.0), (-3.0, 0.0), (-1e-3, 1e-3)],
    "log": [(1e-300, 1e300), (0.001, 1.001), (0.5, 2.0)],
    "log1p": [(1e-300, 1.0), (0.01, 1.0)],
    "sin_pi": [(-0.5, 0.5), (-1e-3, 1e-3)],
    "cos_pi": [(-0.5, 0.5), (-1e-3, 1e-3)],
    "tanh": [(-20.0, 20.0), (-0.7, 0.7), (1e-30, 1.0)],
    "logistic": [(-80.0, 80.0), (-2.0, 2.0)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "low", "high"), [(name, *ends) for name in RANGES for ends in RANGES[name]])
def test_error_in_ulp(name, low, high, dtype):
    """exp, log, log1p and tanh within 2 ulp of the value, logistic within 3, sin_pi and cos_pi within 2 ulp of 1."""
    if dtype == np.float32:
        low, high = (math.copysign(min(max(abs(v), 1e-37), 87.0 if name == "exp" else 1e38), v) for v in (low, high))
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(math.log(low), math.log(high), 4001)) if low > 0 else rng.uniform(low, high, 4001)
    x = x.astype(dtype)
    with mpmath.workprec(200):
        exact = np.array([float(EXACT[name](mpmath.mpf(v))) for v in x.tolist()])
    unit = np.spacing(dtype(1)) if name.endswith("_pi") else np.spacing(np.abs(exact).astype(dtype))
    error = np.abs(evaluate(name, x) - exact) / unit.astype(np.float64)
    assert error.max() <= (3 if name == "logistic" else 2)


@given(st.floats(-700, 700), st.floats(1e-200, 1e200), st.floats(-0.5, 0.5))
def test_against_libm(x, positive, turn):
    assert evaluate("exp", np.array([x]))[0] == pytest.approx(math.exp(x), rel=1e-15)
    assert evaluate("log", np.array([positive]))[0] == pytest.approx(math.log(positive), rel=1e-15, abs=1e-300)
    assert evaluate("sin_pi", np.array([turn]))[0] == pytest.approx(math.sin(math.pi * turn), abs=1e-15)
    assert evaluate("cos_pi", np.array([turn]))[0] == pytest.approx(math.cos(math.pi * turn), abs=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends(dtype):
    assert evaluate("exp", np.array([0.0, -0.0], dtype)).tolist() == [1.0, 1.0]
    low, high = (-87, 88) if dtype == np.float32 else (-708, 709)
    held = evaluate("exp", np.array([-1e9, 1e9, np.nan], dtype))
    assert held[:2] == pytest.approx([math.exp(low), math.exp(high)], rel=1e-6)
    assert np.isnan(held[2])
    assert evaluate("log", np.array([1.0], dtype)).tolist() == [0.0]
    assert evaluate("log1p", np.array([0.0], dtype)).tolist() == [0.0]
    assert evaluate("sin_pi", np.array([0.0], dtype)).tolist() == [0.0]
    assert evaluate("cos_pi", np.array([0.0], dtype)).tolist() == [1.0]
