"""Physical limits of one core: read bandwidth of a buffer, multiply-add peak, and the floors of our kernels.

    forward    bytes = 4 · edges · batch            each edge reads one float32 message row of each tile
               flops = 2 · edges · batch            one multiply-add per edge and column
    backward   bytes = 4 · edges · batch            each edge reads one gradient row of each tile
               flops = 4 · edges · batch            accumulate value · g, and the dot product <g, message>
    floor      max(bytes / bandwidth(footprint), flops / peak)
    footprint  4 · n · width bytes                  the message (or gradient) rows of a tile of ``width`` columns

Bandwidth is that of reading a warm buffer of the tile's footprint front to back, which prefetching favours over
the order in which a kernel reads it: the floor is a strict one.  Indices, values and what is written count nothing.
``python -m bench.limits`` prints the limits.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import numba
import numpy as np
from sparse_dnm.kernels import simd

LINE = 16  # float32 of a cache line, and of a vector part
LINES = 16  # cache lines per turn of the reading loop
CHAINS = 12  # independent multiply-adds in flight
ATTEMPTS = 15  # measurements of which the best counts: a limit is what the machine can do


@numba.njit(error_model="numpy")
def _read(buffer, passes, out):
    """Sum a buffer of whole turns of LINES cache lines, ``passes`` times over, in eight vectors of a line each."""
    width = simd.width_of(16)
    a = simd.zeros(buffer, width)
    b, c, d, e, f, g, h = a, a, a, a, a, a, a
    for _ in range(passes):
        for at in range(0, buffer.size, 256):
            a = simd.add(a, simd.load(buffer, at, width))
            b = simd.add(b, simd.load(buffer, at + 16, width))
            c = simd.add(c, simd.load(buffer, at + 32, width))
            d = simd.add(d, simd.load(buffer, at + 48, width))
            e = simd.add(e, simd.load(buffer, at + 64, width))
            f = simd.add(f, simd.load(buffer, at + 80, width))
            g = simd.add(g, simd.load(buffer, at + 96, width))
            h = simd.add(h, simd.load(buffer, at + 112, width))
            a = simd.add(a, simd.load(buffer, at + 128, width))
            b = simd.add(b, simd.load(buffer, at + 144, width))
            c = simd.add(c, simd.load(buffer, at + 160, width))
            d = simd.add(d, simd.load(buffer, at + 176, width))
            e = simd.add(e, simd.load(buffer, at + 192, width))
            f = simd.add(f, simd.load(buffer, at + 208, width))
            g = simd.add(g, simd.load(buffer, at + 224, width))
            h = simd.add(h, simd.load(buffer, at + 240, width))
    a = simd.add(simd.add(simd.add(a, b), simd.add(c, d)), simd.add(simd.add(e, f), simd.add(g, h)))
    simd.store(out, 0, a)


@numba.njit(error_model="numpy")
def _multiply_add(turns, scale, out):
    """CHAINS independent chains of vector multiply-adds, one of each per turn, all in registers."""
    width = simd.width_of(16)
    one = simd.load(out, 0, width)
    a = simd.zeros(out, width)
    b, c, d, e, f, g, h, i, j, k, l = a, a, a, a, a, a, a, a, a, a, a
    for _ in range(turns):
        a, b, c = simd.scaled_add(one, scale, a), simd.scaled_add(one, scale, b), simd.scaled_add(one, scale, c)
        d, e, f = simd.scaled_add(one, scale, d), simd.scaled_add(one, scale, e), simd.scaled_add(one, scale, f)
        g, h, i = simd.scaled_add(one, scale, g), simd.scaled_add(one, scale, h), simd.scaled_add(one, scale, i)
        j, k, l = simd.scaled_add(one, scale, j), simd.scaled_add(one, scale, k), simd.scaled_add(one, scale, l)
    simd.store(out, 0, a)
    for at, v in ((16, b), (32, c), (48, d), (64, e), (80, f), (96, g), (112, h), (128, i), (144, j), (160, k)):
        simd.store(out, at, v)
    simd.store(out, 176, l)


def _best(run) -> float:
    """Smallest wall seconds of ATTEMPTS calls, after one that compiles."""
    run()
    times = []
    for _ in range(ATTEMPTS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@functools.cache
def _bandwidth(turns: int) -> float:
    buffer = np.ones(turns * LINE * LINES, np.float32)
    passes = max(1, round(16e6 / buffer.nbytes))  # about 0.2 ms
    return passes * buffer.nbytes / _best(lambda: _read(buffer, passes, np.zeros(LINE, np.float32)))


def bandwidth(footprint: float) -> float:
    """Bytes per second that one thread reads from a warm buffer of ``footprint`` bytes (whole KiB)."""
    return _bandwidth(max(1, round(footprint / (4 * LINE * LINES))))


@functools.cache
def peak() -> float:
    """float32 operations per second of one thread in registers; a multiply-add is two."""
    turns = 20_000
    out = np.zeros(CHAINS * LINE, np.float32)
    return 2 * LINE * CHAINS * turns / _best(lambda: _multiply_add(turns, np.float32(0.5), out))


@dataclass(frozen=True)
class Floor:
    """Least seconds of a pass on one core: by what it must read, and by what it must compute."""

    memory: float  # s
    arithmetic: float  # s

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.memory, self.arithmetic)

    @property
    def kind(self) -> str:
        """Which of the two is the larger."""
        return "memory" if self.memory >= self.arithmetic else "arithmetic"


def floors(edges: int, neurons: int, batch: int, width: int) -> dict[str, Floor]:
    """Floors of forward, backward, and both, for one thread and float32 (formulas: see the module)."""
    read = 4 * edges * batch / bandwidth(4 * neurons * width)
    compute = 2 * edges * batch / peak()
    forward, backward = Floor(read, compute), Floor(read, 2 * compute)
    both = Floor(forward.seconds + backward.seconds, 0.0)
    return {"forward": forward, "backward": backward, "forward + backward": both}


def lines() -> list[str]:
    """The limits as a Markdown table."""
    rows = ["| buffer, KiB | read bandwidth, GB/s |", "|---|---|"]
    rows += [f"| {kib:,} | {bandwidth(1024 * kib) / 1e9:.1f} |" for kib in (16, 250, 1024, 4096, 65536)]
    return [*rows, "", f"Multiply-add peak in registers: {peak() / 1e9:.1f} GFLOP/s (float32, one core)."]


if __name__ == "__main__":
    print("\n".join(lines()))
