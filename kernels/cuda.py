"""The CUDA kernels, by name: twins of those in cpu.py, as far as torch's operations do not serve."""

import warnings

from sparse_dnm.kernels.cpu_edges import OMEGA_LIMIT, ROWS
from sparse_dnm.kernels.cuda_edges import (
    PARTS,
    closeness,
    compact,
    scan,
    strength_back,
    transform,
)
from sparse_dnm.kernels.cuda_graph import find_levels, mark_live
from sparse_dnm.kernels.cuda_propagate import (
    SUMMING,
    WIDTH,
    backward,
    backward_syncfree,
    edge_gradients,
    forward,
    forward_syncfree,
    input_gradients,
    neuron_gradients,
)

# one block per tile, or for all of a small DAG, is intended; numba's message may begin with a colour
warnings.filterwarnings("ignore", message=".*Grid size .* will likely result in GPU under-utilization")

__all__ = [
    "OMEGA_LIMIT",
    "PARTS",
    "ROWS",
    "SUMMING",
    "WIDTH",
    "backward",
    "backward_syncfree",
    "closeness",
    "compact",
    "edge_gradients",
    "find_levels",
    "forward",
    "forward_syncfree",
    "input_gradients",
    "mark_live",
    "neuron_gradients",
    "scan",
    "strength_back",
    "transform",
]
