"""Typical prices of the features of an executor: what holds a calibration where its data do not tell features apart.

Only their ratios count.  In ns, as fitted without them to structures made out of the seed graphs of digits and
original-mnist (probes, and `layered`), on one thread for columns and blocks and two for wavefront, at batches of 1 to
256 (blocks: to 4), on a two-core Intel Xeon (Sapphire Rapids) with AVX-512; with code for AVX2 the ratios of columns
and wavefront differ by less than TRUST.  `python -m bench.time_model --prices` prints such fits.
"""

from __future__ import annotations

import numpy as np

from sparse_dnm.engine.cpu_structure import Floats
from sparse_dnm.engine.schedule import tile_width, tiles_of
from sparse_dnm.timing.cost_model import FEATURES

TYPICAL: dict[tuple[str, str], dict[str, tuple[float, float]]] = {  # ns: of one column, and of every further one
    ("columns", "train"): {
        "call": (11_000, 120), "input": (12, 0.9), "lone input": (6, 0.9), "neuron": (17, 0.45), "edge": (2.7, 0.1),
        "far edge": (1.3, 0.03), "output": (20, 4), "crowded row": (6, 0.4),
    },
    ("columns", "infer"): {
        "call": (5_200, 30), "input": (2, 0.4), "lone input": (6, 0.55), "neuron": (7, 0.18), "edge": (0.9, 0.033),
        "far edge": (0.2, 0.005), "output": (10, 2.5), "crowded row": (0.5, 0.07),
    },
    ("wavefront", "train"): {
        "call": (19_000, 50), "input": (6, 0.5), "lone input": (3, 0.5), "neuron": (15, 0.4), "edge": (2.2, 0.06),
        "far edge": (0.3, 0.06), "output": (20, 3.5), "crowded row": (1, 0.15), "level": (7_800, 10),
        "moved line": (25, 0),
    },
    ("wavefront", "infer"): {
        "call": (9_000, 20), "input": (2, 0.2), "lone input": (3, 0.3), "neuron": (6, 0.15), "edge": (0.8, 0.02),
        "far edge": (0.2, 0.005), "output": (10, 2), "crowded row": (0.3, 0.02), "level": (3_900, 5),
    },
    ("blocks", "train"): {
        "call": (2_600, 100), "input": (1.4, 0.9), "lone input": (8, 15), "neuron": (8, 5.5), "edge": (0.9, 0),
        "level": (2, 0), "block": (4.6, 2), "group": (20, 15), "crowded row": (13, 1), "crowded block": (0.08, 0),
    },
    ("blocks", "infer"): {
        "call": (60, 25), "input": (0.55, 0.45), "lone input": (12, 18), "neuron": (0.5, 0.5), "level": (0.7, 0),
        "block": (0.68, 0.66), "group": (22, 20), "crowded row": (0.1, 0),
    },
}  # fmt: skip

_CURVED_TRAIN: dict[str, tuple[float, float]] = {"input": (45, 17), "neuron": (45, 17), "output": (15, 8)}
_CURVED_INFER: dict[str, tuple[float, float]] = {"input": (18, 8), "neuron": (18, 8), "output": (15, 8)}
CURVED: dict[tuple[str, str], dict[str, tuple[float, float]]] = {  # ns more where the activation needs an exponential
    ("columns", "train"): _CURVED_TRAIN,
    ("columns", "infer"): _CURVED_INFER,
    ("wavefront", "train"): _CURVED_TRAIN,
    ("wavefront", "infer"): _CURVED_INFER,
    ("blocks", "train"): {"input": (22, 22), "neuron": (16, 16), "group": (15, 14)},
    ("blocks", "infer"): {"input": (3, 5), "lone input": (10, 15), "group": (15, 14)},
}


def typical(executor: str, mode: str, batch: int, curved: float = 0.0) -> Floats | None:
    """Prices (n_features,) up to a common factor, in the order of FEATURES; None where none are known.

    ``curved``: share of neurons whose activation needs an exponential.
    """
    known = TYPICAL.get((executor, mode))
    if known is None:
        return None
    columns = batch if executor == "blocks" else tiles_of(batch) * tile_width(batch)
    found = {name: one + more * (columns - 1) for name, (one, more) in known.items()}
    for name, (one, more) in CURVED[executor, mode].items():
        found[name] += curved * (one + more * (columns - 1))
    if tiles_of(batch) > 1:  # then threads may have tiles of their own, and what lines cost is not known
        found.pop("moved line", None)
    return np.array([found.get(name, 0.0) for name in FEATURES[executor]])
