"""Activations in C, float32: without math.h and without jumps, so that compilers compute many side by side."""

from __future__ import annotations

from collections.abc import Iterable

from sparse_dnm.lowering.network import LEAKY, LOGISTIC, SILU, TANH
from sparse_dnm.lowering.rows import Function
from sparse_dnm.lowering.tables import real

# Both by polynomials of the Cephes library (Moshier 1992).
EXPONENTIAL = """\
/* e to the z as 2 to a whole number n times a polynomial: n is what is left of a sum with 1.5 * 2 to the 23. */
static float exponential(float z)
{
    union {
        float value;
        uint32_t bits;
    } power;
    float n, p;
    z = z < -87.0f ? -87.0f : z;
    z = z > 88.0f ? 88.0f : z;
    power.value = 1.44269504f * z + 12582912.0f;
    n = power.value - 12582912.0f;
    z = z - n * 0.693359375f + n * 2.12194440e-4f;
    p = ((1.9875691500e-4f * z + 1.3981999507e-3f) * z + 8.3334519073e-3f) * z + 4.1665795894e-2f;
    p = ((p * z + 1.6666665459e-1f) * z + 5.0000001201e-1f) * z * z + z + 1.0f;
    power.bits = (power.bits << 23) + 0x3f800000u;
    return p * power.value;
}
"""
TANGENT = """\
static float tangent(float z)
{
    const float size = z < 0.0f ? -z : z, square = z * z;
    const float t = exponential(-2.0f * size), large = (1.0f - t) / (1.0f + t);
    float p = (-5.70498872745e-3f * square + 2.06390887954e-2f) * square - 5.37397155531e-2f;
    p = ((p * square + 1.33314422036e-1f) * square - 3.33332819422e-1f) * square * z + z;
    return size < 0.625f ? p : z < 0.0f ? -large : large;
}
"""


def activation(function: Function) -> str:
    """act(z) as an expression.

    A leaky ReLU is a maximum where its slope allows that: the same bits, and no compiler makes a jump of it, which
    processors would guess wrongly for every other neuron.
    """
    kind, slope = function
    if kind == LEAKY:
        if 0 < slope < 1:
            return f"z > {real(slope)} * z ? z : {real(slope)} * z"
        return "z" if slope == 1 else f"z > 0.0f ? z : {'0.0f' if slope == 0 else f'{real(slope)} * z'}"
    return {
        LOGISTIC: "1.0f / (1.0f + exponential(-z))", TANH: "tangent(z)", SILU: "z / (1.0f + exponential(-z))",
    }[kind]  # fmt: skip


def functions(kinds: Iterable[int]) -> str:
    """The functions that activations of these kinds call."""
    found = set(kinds)
    text = EXPONENTIAL if found & {LOGISTIC, TANH, SILU} else ""
    return text + "\n" * bool(text) + (TANGENT + "\n" if TANH in found else "")
