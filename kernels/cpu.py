"""The CPU kernels, by name."""

from sparse_dnm.kernels import cpu_blocks as blocks
from sparse_dnm.kernels import cpu_cells as cells
from sparse_dnm.kernels import cpu_recurrent as recurrent
from sparse_dnm.kernels import cpu_skewed as skewed
from sparse_dnm.kernels.cpu_adam import adam
from sparse_dnm.kernels.cpu_cost import PICKS, expected_cost, far_edges, lone_inputs, moved_lines
from sparse_dnm.kernels.cpu_edges import (
    CHUNK,
    OMEGA_LIMIT,
    ROWS,
    evaluate,
    gates,
    scan,
    strength_back,
)
from sparse_dnm.kernels.cpu_graph import analyze, digest, schedule
from sparse_dnm.kernels.cpu_growth import ring_gradient, shifted
from sparse_dnm.kernels.cpu_loop import copy_words, gather, same_words, scatter
from sparse_dnm.kernels.cpu_objective import cross_entropy, squared_error
from sparse_dnm.kernels.cpu_propagate import add_tiles, input_gradients, make

__all__ = [
    "CHUNK",
    "OMEGA_LIMIT",
    "PICKS",
    "ROWS",
    "adam",
    "add_tiles",
    "analyze",
    "blocks",
    "cells",
    "copy_words",
    "cross_entropy",
    "digest",
    "evaluate",
    "expected_cost",
    "far_edges",
    "gates",
    "gather",
    "input_gradients",
    "lone_inputs",
    "make",
    "moved_lines",
    "recurrent",
    "ring_gradient",
    "same_words",
    "scan",
    "scatter",
    "schedule",
    "shifted",
    "skewed",
    "squared_error",
    "strength_back",
]
