"""Inference of the smallest network of the Sparse DNN Graph Challenge: python -m bench.spdnn [--quick].

See bench.radixnet.  1,024 neurons a layer, 120 layers, 3,932,160 edges; the challenge's unit is edges per second,
inputs x edges / seconds.  Three things differ from the challenge.  Our ReLU, and that of the peers here, has no clip at
32: messages of images that survive double from layer to layer (up to about 2^120, which float32 holds) instead of
staying at 32; the work is the same.  Inputs are ellipses of 0 and 1, not thresholded MNIST.  And images that have died
are computed like the others, where many entries drop them.  Every case computes all columns in float32, from a table of
images to a table of outputs.  The challenge's answer, which images have an output above 0 with the clip, is compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from bench.peers import check, on, torch_csr
from bench.radixnet import CLIP, SMALLEST, Challenge, blots, layer, topology
from sparse_dnm import SparseDAG
from sparse_dnm.timing.clock import interleave

CHUNK = 128  # images of a call of ours: two tiles of 64 columns; memory is edges + neurons x CHUNK
IMAGES = 512
Images = NDArray[np.float32]
Run = Callable[[Images], Images]


def ours(network: Challenge, threads: int) -> Run:
    """SparseDAG on so many threads, CHUNK images at a time."""
    graph = topology(network)
    n = graph.n_neurons - network.width
    values, bias = torch.full((graph.n_edges,), 1 / 16), torch.full((n,), network.bias)
    dag = SparseDAG(graph, values, bias, activation="relu", executor="columns", threads=threads)

    @torch.no_grad()
    def run(images: Images) -> Images:
        parts = torch.from_numpy(images).split(CHUNK)
        return np.concatenate([dag(part).relu_().numpy() for part in parts])

    return run


def by_scipy(network: Challenge, threads: int, clip: float | None = None) -> Run:
    """scipy.sparse layer by layer, as many columns to each thread."""
    matrices = [layer(network, k) for k in range(len(network.radices))]
    bias, pool = np.float32(network.bias), ThreadPoolExecutor(threads)

    def part(images: Images) -> Images:
        y = np.ascontiguousarray(images.T)
        for k in range(network.layers):
            y = matrices[k % len(matrices)] @ y
            y += bias
            np.clip(y, 0, clip, out=y)
        return np.ascontiguousarray(y.T)

    return lambda images: np.concatenate(list(pool.map(part, np.array_split(images, threads))))


def by_torch(network: Challenge, threads: int) -> Run:
    """torch.sparse CSR layer by layer."""

    def matrix(m: sp.csr_array) -> torch.Tensor:
        indptr, indices = (torch.from_numpy(a.astype(np.int64)) for a in (m.indptr, m.indices))
        return torch_csr(indptr, indices, torch.from_numpy(m.data), m.shape)

    matrices = [matrix(layer(network, k)) for k in range(len(network.radices))]

    @torch.no_grad()
    def run(images: Images) -> Images:
        torch.set_num_threads(threads)
        y = torch.from_numpy(images).t().contiguous()
        for k in range(network.layers):
            y = (matrices[k % len(matrices)] @ y).add_(network.bias).relu_()
        return y.t().contiguous().numpy()

    return run


def agreement(name: str, found: Images, expected: Images) -> str:
    """How far outputs agree, by name.  Raises AssertionError where they differ."""
    check(name, torch.from_numpy(found), torch.from_numpy(expected))
    if np.array_equal(found, expected):
        return f"{name}: the same bits"
    worst = np.abs(found - expected).max() / expected.max()
    same = f"{np.mean(found == expected):.1%} of the numbers have the same bits"
    return f"{name}: {same}, the worst differs by {worst:.1e} of the largest"


def section(quick: bool) -> list[str]:
    """Edges per second of ours and of the peers, one and two threads, and how far outputs agree."""
    network = SMALLEST
    images = blots(CHUNK if quick else IMAGES, 32, np.random.default_rng(0))
    runs: dict[str, Run] = {}
    for threads in (1, 2):
        runs[f"SparseDAG, {threads} threads"] = ours(network, threads)
        runs[f"torch.sparse CSR layer by layer, {threads} threads"] = by_torch(network, threads)
        runs[f"scipy.sparse CSR layer by layer, {threads} threads"] = by_scipy(network, threads)
    first, *others = runs
    out = runs[first](images)
    said = [agreement(name, runs[name](images), out) for name in others]
    alive, clipped = ((y > 0).sum(axis=1) > 0 for y in (out, by_scipy(network, 2, CLIP)(images)))
    cases = {name: on(1, lambda run=run: run(images)) for name, run in runs.items()}  # type: ignore[misc]
    timings = interleave(cases, 3 if quick else 15, warmup=1, shortest_s=0, budget_s=10 if quick else 60)
    lines = [
        f"RadiX-Net of {network.width:,} neurons a layer, {network.layers} layers, {network.edges:,} edges of 1/16, "
        f"bias {network.bias}; {len(images)} images of 0 and 1, {images.mean():.1%} of the pixels are 1.  ReLU without "
        f"the challenge's clip at {CLIP:g}, in all cases alike.",
        "",
        "| case | median, ms | quartiles, ms | edges per second |",
        "|---|---|---|---|",
    ]
    for name, t in timings.items():
        rate = len(images) * network.edges / t.median
        spread = f"{1e3 * t.low:,.1f}–{1e3 * t.high:,.1f}"
        lines.append(f"| {name} | {1e3 * t.median:,.1f} | {spread} | {rate:.3g} |")
    same = "the same images" if np.array_equal(alive, clipped) else f"{np.sum(alive != clipped)} images otherwise"
    lines += ["", f"Outputs against {first}:", "", *(f"- {line}" for line in said)]
    lines += [f"- {alive.sum()} of {len(alive)} images have an output above 0; with the clip at {CLIP:g}: {same}"]
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and repeats")
    print("\n".join(section(parser.parse_args().quick)))


if __name__ == "__main__":
    main()
