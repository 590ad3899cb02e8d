"""The vectorisable exp, log, sin and cos against libm, in ulp, and against mpmath where libm itself could be off."""

import math

import mpmath
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparse_dnm.kernels import vector_math


@numba.njit
def apply(function, x, out):
    for k in range(x.size):
        out[k] = function(x[k])


def evaluate(name, x):
    x = np.atleast_1d(np.asarray(x, np.float64))
    out = np.empty_like(x)
    apply(getattr(vector_math, name), x, out)
    return out


RANGES = [
    ("exp", -708.0, 709.0),
    ("exp", -3.0, 0.0),
    ("log", 1e-300, 1e300),
    ("log", 0.001, 1.001),
    ("sin", -7.0, 7.0),
    ("sin", -1e6, 1e6),
    ("cos", -7.0, 7.0),
    ("cos", -1e6, 1e6),
]


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_error_in_ulp(name, low, high):
    """exp and log within 2 ulp of the value, sin and cos within 2 ulp of 1."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(math.log(low), math.log(high), 4000)) if low > 0 else rng.uniform(low, high, 4000)
    with mpmath.workprec(200):
        exact = np.array([float(getattr(mpmath, name)(mpmath.mpf(v))) for v in x.tolist()])
    unit = np.spacing(np.abs(exact)) if name in ("exp", "log") else np.spacing(1.0)
    assert (np.abs(evaluate(name, x) - exact) / unit).max() <= 2


@given(st.floats(-700, 700), st.floats(1e-200, 1e200), st.floats(-1e6, 1e6))
def test_against_libm(x, positive, angle):
    assert evaluate("exp", x)[0] == pytest.approx(math.exp(x), rel=1e-15)
    assert evaluate("log", positive)[0] == pytest.approx(math.log(positive), rel=1e-15, abs=1e-300)
    assert evaluate("sin", angle)[0] == pytest.approx(math.sin(angle), abs=1e-15)
    assert evaluate("cos", angle)[0] == pytest.approx(math.cos(angle), abs=1e-15)


def test_the_ends():
    assert evaluate("exp", [0.0, -0.0]).tolist() == [1.0, 1.0]
    assert evaluate("exp", [-1e9, 1e9]) == pytest.approx([math.exp(-708), math.exp(709)])
    assert evaluate("log", 1.0).tolist() == [0.0]
    assert evaluate("sin", 0.0).tolist() == [0.0]
    assert evaluate("cos", 0.0).tolist() == [1.0]
