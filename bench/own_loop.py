"""A training loop of one's own: model(x) and backward() from Python, beside what torch itself takes for such a loop:
python -m bench.own_loop [--quick].

``empty passes`` is a custom autograd function with as many parameters of the same shapes whose forward and backward
compute nothing: they make the tensors that they return.  No module that torch differentiates can be faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers import BATCH, BLOCK, Cases, on, propagate_calls, seed_model
from bench.replay import replay
from bench.targets import Found
from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG
from sparse_dnm.study.sweeps import SETTLED
from sparse_dnm.timing.clock import interleave

TOY, ORIGINAL, MLP = "toy, batch 50", f"original-mnist, batch {BATCH}", "torch MLP 5-16-4, batch 50"
KERNELS, EMPTY = "forward + backward kernels", "empty passes"


class _Empty(torch.autograd.Function):
    """Takes and gives tensors of the right shapes, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n_outputs: int, *parameters: Tensor) -> Tensor:
        ctx.shapes = [p.shape for p in parameters]
        return x.new_empty(len(x), n_outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, *(gradients[0].new_empty(shape) for shape in ctx.shapes)


class EmptyModel(nn.Module):
    """A module with copies of the parameters of another one, whose passes compute nothing."""

    def __init__(self, like: nn.Module, n_outputs: int):
        super().__init__()
        self.copies = nn.ParameterList([p.detach().clone() for p in like.parameters()])
        self._given = tuple(self.copies)
        self._n_outputs = n_outputs

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n_inputs) -> (batch, n_outputs), whatever is in that memory."""
        found: Tensor = _Empty.apply(x, self._n_outputs, *self._given)
        return found


def both(module: nn.Module, x: Tensor, learning: bool = False) -> Callable[[], object]:
    """A call and backward; ``learning``: also a step of SGD, after which no parameter is what it was."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-9)

    def run() -> None:
        module.zero_grad()
        module(x).sum().backward()
        if learning:
            optimizer.step()

    return on(1, run)


def cases() -> Cases:
    """The loops, what torch takes for them, and the kernels of the larger one; one thread."""
    generator = torch.Generator().manual_seed(1)
    toy_x, x = torch.randn(50, 5, generator=generator), torch.randn(BATCH, 784, generator=generator)
    toy = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0), threads=1)
    mlp = nn.Sequential(nn.Linear(5, 16), nn.LeakyReLU(), nn.Linear(16, 4))
    original, changing = seed_model(1), seed_model(1)
    dag = SparseDAG(original.topology, original.strengths, executor="columns", threads=1)
    for _ in range(SETTLED):
        toy(toy_x).sum().backward(), original(x).sum().backward(), changing(x).sum().backward()
    return {
        TOY: both(toy, toy_x),
        f"{TOY}, {EMPTY}": both(EmptyModel(toy, 4), toy_x),
        MLP: both(mlp, toy_x),
        ORIGINAL: both(original, x),
        f"{ORIGINAL}, and SGD": both(changing, x, learning=True),
        f"{ORIGINAL}, {EMPTY}": both(EmptyModel(original, 10), x),
        f"{ORIGINAL}, {EMPTY}, and SGD": both(EmptyModel(original, 10), x, learning=True),
        f"{ORIGINAL}, {KERNELS}": replay(propagate_calls(dag, x)["forward + backward"]),
    }


def section(quick: bool, found: Found) -> list[str]:
    """The loops as a table."""
    timings = interleave(cases(), 20 if quick else 200, warmup=5, shortest_s=BLOCK, budget_s=5 if quick else 30)
    found.loop = {name: t.median for name, t in timings.items()}
    out = [
        "zero_grad, model(x).sum(), backward(); one thread.  Without a change of the parameters the closeness is not "
        "computed again; with a step of SGD it is.  Empty passes: the same with a custom autograd function of as many "
        "parameters that computes nothing, what torch itself takes.",
        "",
        "| loop | median, µs | quartiles, µs |",
        "|---|---|---|",
    ]
    for name, t in timings.items():
        out.append(f"| {name} | {1e6 * t.median:,.1f} | {1e6 * t.low:,.1f}–{1e6 * t.high:,.1f} |")
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    print("\n".join(section(parser.parse_args().quick, Found())))


if __name__ == "__main__":
    main()
