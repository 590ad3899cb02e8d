"""Settings that follow from the data: the first network of a table, and how it is trained.

The constants were chosen on 20 public tables; `python -m bench.own_tables` reports others.  A decay of omega keeps a
network from fitting noise: it weighs as much as a few samples and removes the edges that explain less than that, so
that a small or noisy table ends with some hundred edges.  Samples held out for early stopping would be missed in a
small table: it was worse there.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

HIDDEN, HIDDEN_PER_OUTPUT, MOST_HIDDEN = 100, 4, 256  # neurons
MOST_EDGES = 60_000  # expected at the start; fewer where all pairs of neurons are fewer
LEAST_CUT = 0.6  # cutoff of closeness at the start, in standard deviations of omega
GAIN = 0.6  # standard deviation of a neuron's sum over n strengths whose sources have deviation 1
HIGHEST_CUTOFF = 0.5  # closeness
SKIN = 0.25  # below the cutoff, over the cutoff, in which pairs are candidates where MOST_EDGES is a bound
WIDE = 3.0  # sigma of a window, over the number of neurons: closeness of all pairs is about alpha'
DECAY = 5.0  # samples that the decay of omega weighs as much as, for two classes and much noise
DECAY_PER_NOISE = 12.0  # the same, for targets of which a share is noise
LEAST_NOISE = 0.02  # that is assumed
STEPS_PER_SAMPLE, FEWEST_STEPS, MOST_STEPS = 2, 1_000, 20_000
BATCH, RATE = 128, 0.01
DROPOUT, MANY_COLUMNS = 0.1, 30  # share of the inputs of a classifier hidden at random, from so many columns on

NORMAL = NormalDist()


def first_network(n_inputs: int, n_outputs: int, period: float | None = None) -> dict[str, Any]:
    """Fields of the ManifoldConfig of a table: free edges in windows over all neurons.

    The deviation of omega follows from the number of neurons, so that sums do not grow from neuron to neuron.  The
    cutoff follows from it and from MOST_EDGES: the number of edges stays bounded for any number of columns.
    """
    hidden = min(MOST_HIDDEN, HIDDEN + HIDDEN_PER_OUTPUT * (n_outputs - 1))
    n = n_inputs + hidden + n_outputs
    possible = (n * n - n_inputs**2 - n_outputs**2 - hidden) // 2
    share = min(1.0, MOST_EDGES / possible)
    cut = LEAST_CUT if share == 1 else max(LEAST_CUT, -NORMAL.inv_cdf(share / 2))
    above = 2 * ((1 + cut * cut) * NORMAL.cdf(-cut) - cut * NORMAL.pdf(cut))  # mean square of a strength, omega = 1
    omega = GAIN / math.sqrt(n * above)
    c = min(cut * omega, HIGHEST_CUTOFF)
    return {
        "n_neurons": n,
        "n_inputs": n_inputs,
        "n_outputs": n_outputs,
        "period": period or float(n_inputs),
        "edges": "free",
        "alpha": (5.0, 0.0),
        "sigma": (WIDE * n, 0.0),
        "mu": (0.0, 0.0),
        "weight": (1.0, 0.0),
        "bias": (0.0, 0.0),
        "omega": (0.0, min(omega, HIGHEST_CUTOFF / cut)),
        "cutoff": math.log(c / (1 - c)),
        **({"skin": SKIN * c} if cut > LEAST_CUT else {}),
    }


def training(n_samples: float, n_inputs: int, n_classes: int, noise: float = 1.0) -> dict[str, Any]:
    """Fields of the TrainConfig of a table.

    n_samples  number of the training samples, or the sum of their weights
    n_classes  0 for a regression
    noise      share of the variance of the targets that is noise (`sparse_dnm.noise`)
    """
    n = max(1.0, n_samples)
    weighs = min(DECAY / max(n_classes - 1, 1), DECAY_PER_NOISE * max(noise, LEAST_NOISE))
    return {
        "steps": int(min(max(STEPS_PER_SAMPLE * n, FEWEST_STEPS), MOST_STEPS)),
        "batch_size": int(min(BATCH, n)),
        "lr": RATE,
        "input_dropout": DROPOUT if n_classes and n_inputs >= MANY_COLUMNS else 0.0,
        "omega_decay": min(1.0, weighs / n),
    }
