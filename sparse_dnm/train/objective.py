"""Objective: the loss of a batch by torch's operations; kernels/cpu_objective.py computes the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def within(lengths: Tensor, time: int) -> Tensor:
    """bool (batch, time): the time steps within the lengths (batch,) of sequences."""
    return torch.arange(time) < lengths[:, None]


def objective(
    outputs: Tensor, y: Tensor, task: str, weights: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Cross entropy or mean squared error of a batch: the sum of weight times loss over the number of samples.

    ``weights`` (batch,), of any float and device; None: all 1.  With weights of mean 1 it is the weighted mean.
    Outputs (batch, time, ..) have targets for each time step, whose mean is a sample's loss.  With ``lengths`` (batch,)
    the steps within them count, each as much as any other.
    """
    count = len(y)
    if outputs.ndim == 3 and lengths is not None:
        counts = within(lengths, outputs.shape[1]).to(outputs.device)
        outputs, y, count = outputs[counts], y[counts], int(counts.sum())
        weights = None if weights is None else weights.to(counts.device)[:, None].expand(counts.shape)[counts]
    if outputs.ndim == 3:
        outputs, y = outputs.flatten(0, 1), y.flatten(0, 1)
    loss = F.cross_entropy if task == "classification" else F.mse_loss
    if weights is None:
        return loss(outputs, y)
    each = loss(outputs, y, reduction="none").reshape(count, -1).mean(1)
    return (each * weights.to(each)).sum() / count
