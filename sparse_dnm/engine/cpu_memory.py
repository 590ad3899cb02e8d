"""Memory of fused steps on the CPU, which `kernels.cpu_step` works in (DESIGN, 4.7)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.checks import CPU
from sparse_dnm.config import SCALARS
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.buffers import CACHE_LINE
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.engine.schedule import tile_width, tiles_of
from sparse_dnm.kernels.blocks import Block

KERNELS = backend.kernels(CPU)
PLACES = 3  # for candidates: of before, after one search, after a second one
MOVED = ("omega", "first", "second")  # numbers of a candidate that stay with it, in the model's dtype
OF_CANDIDATES = ("d", "strengths", "by_closeness", "slopes", "gates")  # numbers of each candidate, in the model's dtype


def make_work(engine: CpuEngine, dtype: np.dtype[Any], batch: int, y: NDArray[Any], room: int, weighted: bool) -> Block:
    """Memory for steps of ``batch`` samples with targets like ``y``, and weights of their own if ``weighted``, and for
    up to ``room`` candidates; of the model's ``dtype``."""
    tiles, n_rows = tiles_of(batch), engine.config.n_rows
    memory, free = engine.buffers.aligned, engine.geometry.free
    width = -(-room // CACHE_LINE) * CACHE_LINE  # so that each place begins at a cache line
    moved = {name: memory(PLACES * width * free, dtype).reshape(PLACES, -1) for name in MOVED}
    return Block(
        **_of_neurons(engine, dtype, batch, y),
        sources=memory(2 * width, np.int32).reshape(2, -1),  # of this structure and of the next one
        t_edges=np.empty(room, np.int64),
        sample_weights=np.ones(batch * weighted),
        by_strength=memory(tiles * room, dtype),
        by_gate=memory(room, np.float64),
        by_omega=np.zeros(room * free, dtype),
        gate_parts=np.zeros((2, -(-room // KERNELS.CHUNK))),
        which=np.zeros(1, np.int64),  # of the following places
        indptr=np.zeros((PLACES, n_rows + 1), np.int64),
        indices=memory(PLACES * width, np.int32).reshape(PLACES, -1),
        reference=np.zeros((PLACES * n_rows, len(SCALARS) + 1)),
        origin=np.empty((PLACES, room * free), np.int32),
        slots=np.empty((PLACES, room * free), np.int64),
        taken=np.zeros(room * free, np.bool_),
        births=np.zeros(room * free, np.int64),
        all_rows=np.ones(n_rows, np.bool_),
        **moved,
        **{f"at_{name}": np.array([place.ctypes.data for place in array]) for name, array in moved.items()},
        **{name: memory(room, dtype) for name in OF_CANDIDATES},
    )


def _of_neurons(engine: CpuEngine, dtype: np.dtype[Any], batch: int, y: NDArray[Any]) -> dict[str, Any]:
    """Memory whose size depends on the network and the batch."""
    config = engine.config
    n, n_rows, n_outputs = config.n_neurons, config.n_rows, config.n_outputs
    lanes, memory = tiles_of(batch) * tile_width(batch) * n, engine.buffers.aligned
    y_rows, executed = np.zeros((batch, y[:1].size), y.dtype), np.zeros(n, np.int32)

    def floats(*shape: int) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    return {
        "starts": np.zeros((2, n + 1), np.int64),  # of this structure and of the next one
        "live": np.zeros(n, np.bool_),
        "t_indptr": np.zeros(n + 1, np.int64),
        "executed": executed,
        "executed_at": executed.ctypes.data,
        "column": np.zeros(config.n_inputs, np.int32),
        "waves": np.zeros(n + 2, np.int64),
        "level_starts": np.zeros(n + 2, np.int64),
        **{name: np.zeros(n, np.int32) for name in ("sequence", "column_of", "waiting", "levels", "order")},
        "rows": np.zeros((KERNELS.ROWS, n_rows)),
        "stale": np.zeros(n_rows, np.bool_),
        "parts": np.zeros((4, n_rows)),
        "weight": np.ones(n, dtype),
        "bias": floats(n),
        "x_batch": floats(batch, config.n_inputs),
        "y": y_rows.reshape(batch, *y.shape[1:]),
        "y_rows": y_rows,
        **{name: memory(lanes, dtype) for name in ("x", "m", "g")},
        **{name: floats(batch, n_outputs) for name in ("out", "squares", "by_output")},
        **{name: floats(tiles_of(batch) * n) for name in ("by_weight", "by_bias")},
        "best": np.zeros(config.n_sources),
        "strongest": np.zeros(config.n_sources, np.int64),
        **{name: np.zeros(n) for name in ("depths", "depths_back")},
        "picked": np.zeros((n_rows, KERNELS.PICKS), np.int64),
        "sums": np.zeros((len(SCALARS) + 1, n_rows)),
        "by_scalar": floats(len(SCALARS), n_rows),
        "by_cutoff": floats(1),
        "nothing": floats(0),
        "no_outputs": np.zeros(0, np.int32),
        "no_out": floats(batch, 0),
    }
