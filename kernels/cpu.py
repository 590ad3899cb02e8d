"""The CPU kernels, by name: what sparse_dnm.backend offers for device "cpu"."""

from sparse_dnm.kernels.cpu_edges import (
    CHUNK,
    OMEGA_LIMIT,
    ROWS,
    evaluate,
    gates,
    scan,
    strength_back,
)
from sparse_dnm.kernels.cpu_graph import schedule, survey
from sparse_dnm.kernels.cpu_objective import cross_entropy, squared_error
from sparse_dnm.kernels.cpu_propagate import add_tiles, input_gradients, make

__all__ = [
    "CHUNK",
    "OMEGA_LIMIT",
    "ROWS",
    "add_tiles",
    "cross_entropy",
    "evaluate",
    "gates",
    "input_gradients",
    "make",
    "scan",
    "schedule",
    "squared_error",
    "strength_back",
    "survey",
]
