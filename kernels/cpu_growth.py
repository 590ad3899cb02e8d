"""Growth on the CPU: gradients of edges that do not exist yet (DESIGN, section 3), and shifted images."""

import numba
import numpy as np
from sparse_dnm.kernels.jit import inner, kernel


@kernel(parallel=True, fastmath={"reassoc"})
def ring_gradient(
    n_inputs,
    first_linear,
    count,
    indptr,
    indices,
    d,
    c,
    threshold,
    live,
    x,
    m,
    weight,
    bias,
    g,
    scale,
    omega,
    by_closeness,
):
    """Add ``scale`` * g_ij / (1 - c) to ``by_closeness`` of the candidates threshold < |d| <= c of live readers.

    g_ij = sum over the batch of dL/dx_i times the message of j: the gradient that the strength of an edge would have.
    ``omega`` (n_candidates,): a factor of that strength; empty: none.
    x, m, g are those of `cpu_propagate`, in tiles of ``count`` columns, x and m of all neurons, g of the live ones.
    """
    n = live.size
    for row in numba.prange(indptr.size - 1):
        r = np.int64(row)
        i = n_inputs + r
        if live[i]:
            for e in range(indptr[r], indptr[r + 1]):
                if threshold < abs(d[e]) <= c:
                    j = np.int64(indices[e])
                    by_message, by_value, by_one = d.dtype.type(0), d.dtype.type(0), d.dtype.type(0)
                    for base in range(0, x.size // count, n):
                        to, of = (base + i) * count, (base + j) * count
                        if i < first_linear:
                            for k in range(count):
                                by_message += g[to + k] * m[of + k]
                        else:
                            for k in range(count):
                                by_value += g[to + k] * x[of + k]
                                by_one += g[to + k]
                    product = by_message + weight[j] * by_value + bias[j] * by_one
                    if omega.size:
                        product *= omega[e]
                    by_closeness[e] += product * (scale / (1.0 - c))


@inner
def shift_image(images, k, width, down, right, out, r):
    """Write row k of ``images``, lines of ``width`` pixels, to row r of ``out``, moved; pixels that come in are 0."""
    height = images.shape[1] // width
    for y in range(height):
        for x in range(width):
            from_y, from_x = y - down, x - right
            in_image = 0 <= from_y < height and 0 <= from_x < width
            out[r, y * width + x] = images[k, from_y * width + from_x] if in_image else 0.0


@kernel
def shifted(images, width, down, right, out):
    """Each image moved by its own number of lines and of columns: see `shift_image`."""
    for k in range(images.shape[0]):
        shift_image(images, k, width, down[k], right[k], out, k)
