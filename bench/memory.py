"""Memory and seconds of building and training a large manifold: python -m bench.memory --neurons 200000."""

import argparse
import resource
import statistics
import time

import torch

from sparse_dnm import DynamicManifold, ManifoldConfig

SETTLED = 7  # steps: the first two take new memory from the system


def main() -> None:
    """Print neurons, edges, seconds and peak resident memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sigma", type=float, default=18.0, help="width of a row's window, positions")
    parser.add_argument("--edges", choices=("closeness", "free"), default="closeness")
    options = parser.parse_args()
    config = ManifoldConfig(
        options.neurons,
        784,
        10,
        period=28,
        edges=options.edges,
        sigma=(options.sigma, 1.0),
        mu=(0.0, 3.0),
        weight=(0.0, 0.1),
    )
    start = time.perf_counter()
    model = DynamicManifold(config, torch.Generator().manual_seed(0), executor="columns")
    edges = model.topology.n_edges
    built = time.perf_counter() - start
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model.follow(optimizer)
    x = torch.randn(options.batch, config.n_inputs)
    seconds = []
    for _ in range(2 + SETTLED):
        start = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    settled = seconds[2:]
    print(
        f"wall seconds (perf_counter): first step, JIT included, {seconds[0]:.2f}; second {seconds[1]:.2f}; "
        f"median of {SETTLED} more {statistics.median(settled):.2f} ({min(settled):.2f} to {max(settled):.2f})"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.neurons:,} neurons, {edges:,} edges ({edges / options.neurons:.1f} each), "
        f"depth {model.topology.depth:,}"
    )
    print(f"batch {options.batch}, built in {built:.2f} s, peak resident memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
