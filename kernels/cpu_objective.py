"""Objectives of a batch and their gradients on the CPU: what torch computes, without torch's price per call.

``outputs`` (batch, n_outputs); ``weights`` float64 (batch,) of the samples, or (0,): all are 1.  The objective is the
sum of the weighted losses over the number of samples, whatever the sum of their weights.  ``gradient``, of the same
shape as the outputs, is ``scale`` times that of the objective with respect to them.  Sums are float64, in the order of
the arrays.  Returns the objective.
"""

import math

import numpy as np
from sparse_dnm.kernels.jit import kernel


@kernel
def cross_entropy(outputs, labels, weights, scale, gradient):
    """Mean over the batch of the cross entropy of softmax(outputs); ``labels`` int64 (batch,)."""
    rows, classes = outputs.shape
    parts = np.empty(classes)
    total = 0.0
    for r in range(rows):
        highest = outputs[r, 0]
        for k in range(1, classes):
            highest = max(highest, outputs[r, k])
        norm = 0.0
        for k in range(classes):
            parts[k] = math.exp(outputs[r, k] - highest)
            norm += parts[k]
        weight = weights[r] if weights.size else 1.0
        total += weight * (math.log(norm) - (outputs[r, labels[r]] - highest))
        for k in range(classes):
            gradient[r, k] = scale / rows * weight * parts[k] / norm
        gradient[r, labels[r]] -= scale / rows * weight
    return total / rows


@kernel
def squared_error(outputs, targets, weights, scale, gradient):
    """Mean over batch and outputs of the squared error; ``targets`` (batch, n_outputs)."""
    total = 0.0
    for r in range(outputs.shape[0]):
        weight = weights[r] if weights.size else 1.0
        for k in range(outputs.shape[1]):
            error = float(outputs[r, k]) - targets[r, k]
            total += weight * (error * error)
            gradient[r, k] = 2.0 * scale / outputs.size * weight * error
    return total / outputs.size
