"""Sparse training of a dense multilayer perceptron under masks, in plain torch: what `bench.accuracy` compares with.

784-300-100-10 with ReLU, Adam with a cosine, the same batches, the same shifted images, and as many seconds.
RigL (Evci et al. 2020): masks of the Erdős–Rényi densities, every 100 steps a share of the smallest weights (0.3,
falling by a cosine to 0 at three quarters of the steps) is replaced by the edges of the largest gradient.
Pruning (Zhu & Gupta 2017): dense at first, from a tenth of the steps on the smallest weights of all layers go, by
their cubic schedule, down to the number of edges at six tenths.
"""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import BatchOrder, Dataset
from sparse_dnm.train.augment import Augmentation

SIZES = (784, 300, 100, 10)
EVERY, SHARE, LAST = 100, 0.3, 0.75
FIRST_CUT, LAST_CUT = 0.1, 0.6
TRIAL = 300  # steps that the number of steps for the seconds is found from


def densities(edges: int) -> list[int]:
    """Edges of every layer by Erdős–Rényi: density in proportion to (a + b) / (a b), none above 1."""
    shapes = list(itertools.pairwise(SIZES))
    full = [a * b for a, b in shapes]
    low, high = 0.0, float(max(full))
    for _ in range(200):
        scale = 0.5 * (low + high)
        counts = [min(n, scale * (a + b)) for n, (a, b) in zip(full, shapes, strict=True)]
        low, high = (scale, high) if sum(counts) < edges else (low, scale)
    found = [round(c) for c in counts]
    found[0] += edges - sum(found)
    return found


class Masked:
    """Weights, masks and Adam's moments of every layer."""

    def __init__(self, counts: list[int] | None, generator: torch.Generator):
        self.weights, self.biases, self.masks = [], [], []
        for k, (a, b) in enumerate(itertools.pairwise(SIZES)):
            mask = torch.ones(b, a)
            if counts is not None:
                mask = torch.zeros(b * a)
                mask[torch.randperm(a * b, generator=generator)[: counts[k]]] = 1.0
                mask = mask.reshape(b, a)
            reads = mask.sum(1, keepdim=True).clamp(min=1.0)
            weight = torch.randn(b, a, generator=generator) * (2.0 / reads).sqrt() * mask
            self.weights.append(weight.requires_grad_())
            self.biases.append(torch.zeros(b, requires_grad=True))
            self.masks.append(mask)
        self.optimizer = torch.optim.Adam([*self.weights, *self.biases], lr=0.002, fused=True)

    def __call__(self, x: Tensor) -> Tensor:
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(x if k == 0 else F.relu(x), weight, bias)
        return x

    @torch.no_grad()
    def hold(self) -> None:
        """Masked weights are 0."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask)

    @torch.no_grad()
    def rewire(self, share: float) -> None:
        """RigL: drop the smallest weights of every layer, grow where the gradient is largest."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            assert weight.grad is not None
            n = int(share * int(mask.sum()))
            active = mask.flatten().nonzero().flatten()
            gone = active[weight.flatten()[active].abs().argsort()[:n]]
            flat = mask.view(-1)
            slopes = weight.grad.flatten().abs() * (1 - flat)  # 0 for edges that exist already
            flat[gone] = 0.0
            grown = slopes.topk(n).indices
            flat[grown] = 1.0
            weight.view(-1)[grown] = 0.0
            state = self.optimizer.state[weight]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].view(-1)[grown] = 0.0

    @torch.no_grad()
    def prune(self, count: int) -> None:
        """Keep the ``count`` largest weights of all layers."""
        sizes = torch.cat([(w.abs() * m).flatten() for w, m in zip(self.weights, self.masks, strict=True)])
        least = sizes.kthvalue(len(sizes) - count).values
        for weight, mask in zip(self.weights, self.masks, strict=True):
            mask.copy_((weight.abs() * mask > least).to(mask.dtype))


def train(data: Dataset, edges: int, seconds: float, seed: int, method: str) -> dict[str, float]:
    """Test accuracy, edges, steps and seconds of ``method`` "rigl" or "pruning" after about ``seconds``."""
    generator = torch.Generator().manual_seed(seed)
    net = Masked(densities(edges) if method == "rigl" else None, generator)
    order = BatchOrder(len(data.x_train), 100, generator)
    augment = Augmentation(TrainConfig(shift=1), data, generator)
    total = sum(int(m.sum()) for m in net.masks)
    start = time.perf_counter()
    steps, step = TRIAL * 10, 0
    while step < steps:
        for group in net.optimizer.param_groups:
            group["lr"] = 0.002 * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = order.next()
        loss = F.cross_entropy(net(augment(data.x_train[rows])), data.y_train[rows])
        net.optimizer.zero_grad()
        loss.backward()
        done = step / steps
        if method == "rigl" and step and step % EVERY == 0 and done < LAST:
            net.rewire(SHARE * 0.5 * (1 + math.cos(math.pi * done / LAST)))
        else:
            for weight, mask in zip(net.weights, net.masks, strict=True):
                assert weight.grad is not None
                weight.grad.mul_(mask)
            net.optimizer.step()
            if method == "pruning" and step % EVERY == 0 and done >= FIRST_CUT:
                part = min((done - FIRST_CUT) / (LAST_CUT - FIRST_CUT), 1.0)
                net.prune(round(edges + (total - edges) * (1 - part) ** 3))
            net.hold()
        step += 1
        if step == TRIAL:
            steps = max(TRIAL + 1, round(TRIAL * seconds / (time.perf_counter() - start)))
    took = time.perf_counter() - start
    with torch.no_grad():
        accuracy = float((net(data.x_test).argmax(1) == data.y_test).float().mean())
    found = sum(int(np.count_nonzero(w.detach().numpy())) for w in net.weights)
    return {"test_accuracy": accuracy, "edges": found, "steps": steps, "train_seconds": took}
