"""The CPU kernels, by name: what sparse_dnm.backend offers for device "cpu"."""

from sparse_dnm.kernels.cpu_edges import (
    OMEGA_LIMIT,
    closeness,
    compact,
    find_stale,
    flows,
    flows_back,
    gates,
    row_scalars,
    scan,
    select,
    strength_back,
)
from sparse_dnm.kernels.cpu_graph import schedule, survey
from sparse_dnm.kernels.cpu_propagate import add_tiles, input_gradients, make

__all__ = [
    "OMEGA_LIMIT",
    "add_tiles",
    "closeness",
    "compact",
    "find_stale",
    "flows",
    "flows_back",
    "gates",
    "input_gradients",
    "make",
    "row_scalars",
    "scan",
    "schedule",
    "select",
    "strength_back",
    "survey",
]
