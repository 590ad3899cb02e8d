"""A training step of a recurrent network beside torch.nn.LSTM and ncps: python -m bench.recurrent [--quick].

The network is a RecurrentDAG of LSTM neurons, in a random topology that ascends, with so many sources a neuron.  Its
peers are a linear layer on torch.nn.LSTM,
  equal   of as many trainable scalars,
  masked  of as many hidden units, whose weights are multiplied by masks that leave as many of them,
or on liquid time-constant neurons (Hasani et al. 2021) of the package ncps (extra bench),
  ltc     of as many hidden units and the same synapses between inputs and hidden neurons, with ncps' defaults.
A step is zero_grad, forward, the sum of the last outputs, and backward.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparse_dnm import RecurrentDAG, Topology
from sparse_dnm.timing.clock import compare, interleave

N_INPUTS, N_OUTPUTS, STEPS, SOURCES = 8, 4, 50, 12
HIDDEN, BATCHES = (32, 64, 128), (1, 50)
PEERS = ("equal", "masked", "ltc")


def topology(hidden: int, sources: int, seed: int = 0) -> Topology:
    """Inputs, hidden neurons that read ``sources`` earlier ones each, and outputs that read as many hidden ones."""
    some, edges, first = np.random.default_rng(seed), [], N_INPUTS
    for reader in range(first, first + hidden + N_OUTPUTS):
        among = np.arange(min(reader, first + hidden)) if reader < first + hidden else first + np.arange(hidden)
        edges += [(int(j), reader) for j in some.choice(among, min(sources, len(among)), replace=False)]
    n = first + hidden + N_OUTPUTS
    return Topology.from_edges(edges, n, list(range(first)), list(range(n - N_OUTPUTS, n)))


def scalars(module: nn.Module) -> int:
    """Trainable scalars."""
    return sum(p.numel() for p in module.parameters())


class Peer(nn.Module):
    """Neurons with a state, by default torch's LSTM, and a linear layer on their last values."""

    def __init__(self, hidden: int, cells: nn.Module | None = None):
        super().__init__()
        self.cells = nn.LSTM(N_INPUTS, hidden, batch_first=True) if cells is None else cells
        self.readout = nn.Linear(hidden, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, n_inputs) -> (batch, n_outputs)."""
        return self.readout(self.cells(x)[0][:, -1])


class Mask(nn.Module):
    """A weight times a fixed mask that leaves a share of it."""

    def __init__(self, like: Tensor, share: float):
        super().__init__()
        self.register_buffer("mask", (torch.rand_like(like) < share).to(like.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        return weight * self.mask


def equal(count: int) -> Peer:
    """The torch LSTM of the number of scalars nearest to ``count``."""
    sizes = range(1, 4 * math.isqrt(count))
    return Peer(min(sizes, key=lambda h: abs(4 * h * (N_INPUTS + h + 2) + N_OUTPUTS * (h + 1) - count)))


def masked(hidden: int, count: int) -> Peer:
    """A torch LSTM of which masks leave ``count`` weights."""
    peer = Peer(hidden)
    weights = {"weight_ih_l0", "weight_hh_l0"}
    whole = sum(getattr(peer.cells, name).numel() for name in weights)
    for name in weights:
        weight = getattr(peer.cells, name)
        parametrize.register_parametrization(peer.cells, name, Mask(weight, min(count / whole, 1.0)))
    return peer


def ltc(graph: Topology) -> Peer:
    """ncps' liquid time-constant neurons with the synapses of ``graph``, one in three of them inhibiting as in ncps.

    Raises SystemExit where ncps is not installed.
    """
    try:
        from ncps.torch import LTC
        from ncps.wirings import Wiring
    except ImportError as error:
        raise SystemExit(f"{error}: pip install ncps, or the extra bench") from None
    hidden, some = graph.n_neurons - N_INPUTS - N_OUTPUTS, np.random.default_rng(0)
    wiring = Wiring(hidden)
    wiring.build(N_INPUTS)
    wiring.set_output_dim(hidden)
    for source, reader in graph.edges().tolist():
        unit, polarity = reader - N_INPUTS, int(some.choice([-1, 1, 1]))
        if source < N_INPUTS:
            wiring.add_sensory_synapse(source, unit, polarity)
        elif unit < hidden:
            wiring.add_synapse(source - N_INPUTS, unit, polarity)
    return Peer(hidden, LTC(N_INPUTS, wiring))


def step(module: nn.Module, x: Tensor, **options: Any) -> Callable[[], object]:
    """A training step without the optimiser."""

    def run() -> None:
        module.zero_grad()
        module(x, **options).sum().backward()

    return run


def rows(quick: bool, threads: int, clock: str, sources: int, names: Sequence[str] = PEERS) -> Iterator[str]:
    """The lines of the table, each when it is known; pairs with the slow ltc are few."""
    yield from (
        f"{STEPS} time steps, {sources} sources a neuron, float32, {threads} thread(s), {clock}.  Ratios: the peer's "
        "time over ours, medians of interleaved pairs with 95 % intervals.",
        "",
        f"| hidden | batch | scalars | ours, ms | {' | '.join(f'{name}: ratio' for name in names)} |",
        "|---|---|---|---" + "|---" * len(names) + "|",
    )
    for hidden in HIDDEN[:2] if quick else HIDDEN:
        graph = topology(hidden, sources)
        ours = RecurrentDAG(graph, threads=threads, generator=torch.Generator().manual_seed(0))
        count = scalars(ours)
        makers = {
            "equal": functools.partial(equal, count),
            "masked": functools.partial(masked, hidden, count),
            "ltc": functools.partial(ltc, graph),
        }
        peers = {name: makers[name]() for name in names}
        for batch in BATCHES:
            x = torch.randn(batch, STEPS, N_INPUTS, generator=torch.Generator().manual_seed(1))
            cells = []
            for name, peer in peers.items():
                f = compare(step(peer, x), step(ours, x, last=True), 5 if quick or name == "ltc" else 15, clock)
                size = f"{peer.readout.in_features} hidden, " if name == "equal" else ""
                cells.append(f"{size}{f.ratio:.2f} ({f.low:.2f}–{f.high:.2f})")
            alone = interleave({"ours": step(ours, x, last=True)}, 5 if quick else 25, clock)["ours"].median
            yield f"| {hidden} | {batch} | {count:,} | {1e3 * alone:.2f} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of the kernels")
    parser.add_argument("--sources", type=int, default=SOURCES, help="that a neuron reads, at most")
    parser.add_argument("--clock", default="perf_counter", help="process_time beside other programs, on one thread")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="ltc takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for line in rows(options.quick, options.threads, options.clock, options.sources, options.peers):
        print(line, flush=True)


if __name__ == "__main__":
    main()
