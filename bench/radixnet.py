"""The networks of the Sparse DNN Graph Challenge, generated: RadiX-Nets of equal layers.

Robinett and Kepner 2019 (arXiv:1905.00416): with radices N_1 .. N_k and N' = N_1 * .. * N_k, layer i of a mixed-radix
topology joins neuron a to the N_i neurons a + j * N_1 * .. * N_(i-1) modulo N', j = 0 .. N_i - 1; the Kronecker product
with a block of ones of size b makes b neurons of each.  Kepner et al. 2019 (arXiv:1909.05631): all weights 1/16, ReLU
clipped at 32, a bias by width; the network of 1,024 neurons has 32 edges a neuron, which six radices 2 and blocks of
16 give; here its 120 layers are those six twenty times over.  Nothing is read from the challenge's files, which may
order radices and neurons otherwise: the number of edges and the work are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sparse_dnm import Topology

WEIGHT, CLIP = 1 / 16, 32.0


@dataclass(frozen=True)
class Challenge:
    """One of the challenge's networks."""

    radices: tuple[int, ...]
    block: int
    layers: int
    bias: float

    @property
    def width(self) -> int:
        """Neurons of a layer."""
        return math.prod(self.radices) * self.block

    @property
    def edges(self) -> int:
        """Of all layers."""
        return sum(self.width * self.block * self.radices[k % len(self.radices)] for k in range(self.layers))


SMALLEST = Challenge((2,) * 6, 16, 120, -0.3)  # 1,024 neurons, 120 layers


def sources(network: Challenge, k: int) -> NDArray[np.int64]:
    """The neurons that each neuron of layer ``k`` reads, (width, edges a neuron), ascending."""
    n, at = math.prod(network.radices), k % len(network.radices)
    step = math.prod(network.radices[:at])
    groups = (np.arange(n)[:, None] - step * np.arange(network.radices[at])) % n
    read = (groups[:, :, None] * network.block + np.arange(network.block)).reshape(n, -1)
    return np.sort(np.repeat(read, network.block, axis=0), axis=1)


def layer(network: Challenge, k: int) -> sp.csr_array:
    """The weights of layer ``k``, [reader, source], float32."""
    read = sources(network, k)
    indptr = np.arange(0, read.size + 1, read.shape[1])
    values = np.full(read.size, WEIGHT, np.float32)
    return sp.csr_array((values, read.ravel().astype(np.int32), indptr.astype(np.int32)), (network.width,) * 2)


def topology(network: Challenge) -> Topology:
    """All layers as one DAG; its neurons are numbered layer by layer, the inputs first."""
    n, period = network.width, len(network.radices)
    reads = [sources(network, k) for k in range(period)]
    rows = np.concatenate([np.full(n, read.shape[1]) for read in reads])
    counts = np.concatenate([np.zeros(n, np.int64), np.resize(rows, n * network.layers)])
    indices = np.empty(network.edges, np.int32)
    at = 0
    for k in range(network.layers):
        read = reads[k % period]
        indices[at : at + read.size] = read.ravel() + k * n
        at += read.size
    indptr = np.concatenate([[0], np.cumsum(counts)])
    ends = np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32) + np.int32(n * network.layers)
    return Topology(indptr, indices, *ends)


def blots(n: int, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """``n`` images of 0 and 1, (n, side * side), each with a filled ellipse: connected like a digit, about a tenth of
    the pixels on average.  Points alone at random would die out in the first layers."""
    line, column = np.mgrid[:side, :side]
    middle = rng.uniform(0.3, 0.7, (2, n, 1, 1)) * side
    axes = rng.uniform(0.06, 0.3, (2, n, 1, 1)) * side
    inside = ((line - middle[0]) / axes[0]) ** 2 + ((column - middle[1]) / axes[1]) ** 2 <= 1
    return inside.reshape(n, -1).astype(np.float32)
