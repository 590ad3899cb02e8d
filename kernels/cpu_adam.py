"""Adam (Kingma & Ba 2015) on the CPU, with the bits of torch's fused kernel as torch's x86 packages build it.

That works on vectors of 256 bits, and the last numbers of an array, which fill no vector, round their second moment
otherwise.  Elsewhere the two agree to rounding.
"""

from sparse_dnm.kernels import lanes
from sparse_dnm.kernels.jit import inner, kernel
from sparse_dnm.kernels.lanes import lanewise
from sparse_dnm.kernels.vector_math import fma

VECTOR_BYTES = 32
_sqrt = lanewise("sqrt", 1)


@inner
def update(numbers, gradient, first, second, step_size, beta1, beta2, root, eps):
    """One step of ``numbers``, and of their two moments.

    ``step_size``: lr / (1 - beta1**t), and ``root``: sqrt(1 - beta2**t), of step t = 1, 2, ..
    """
    size = numbers.size
    vectors = size - size % (VECTOR_BYTES // numbers.itemsize)
    for e in range(0, size, lanes.COUNT):
        mask = lanes.first(size - e)
        g, m = lanes.load(gradient, e, mask, 0.0), lanes.load(first, e, mask, 0.0)
        m = fma(1.0 - beta1, g - m, m)
        before = lanes.load(second, e, mask, 0.0)
        scaled = g * (1.0 - beta2)
        v = lanes.select(lanes.first(vectors - e), fma(scaled, g, before * beta2), fma(before, beta2, scaled * g))
        lanes.store(first, e, mask, m)
        lanes.store(second, e, mask, v)
        x = lanes.load(numbers, e, mask, 0.0)
        lanes.store(numbers, e, mask, x - m * step_size / (_sqrt(v) / root + eps))


@kernel
def adam(numbers, gradient, first, second, step_size, beta1, beta2, root, eps):
    """See `update`; 1-D arrays of one dtype."""
    update(numbers, gradient, first, second, step_size, beta1, beta2, root, eps)
