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
from sparse_dnm.kernels.cpu_graph import levels_any_order, levels_in_order, mark_live, sort_by_level, transpose
from sparse_dnm.kernels.cpu_propagate import gather_gradients, input_gradients, make

__all__ = [
    "OMEGA_LIMIT",
    "closeness",
    "compact",
    "find_stale",
    "flows",
    "flows_back",
    "gates",
    "gather_gradients",
    "input_gradients",
    "levels_any_order",
    "levels_in_order",
    "make",
    "mark_live",
    "row_scalars",
    "scan",
    "select",
    "sort_by_level",
    "strength_back",
    "transpose",
]
