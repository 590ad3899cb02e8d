"""Search: pairs outside the candidates become edges, those that would lower the loss of a batch most.

Where the speed term has a price for blocks of neighbouring sources, whole blocks do, for what they cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dnm.model.growth import grow_edges
from sparse_dnm.train.batches import Batch
from sparse_dnm.train.objective import objective
from sparse_dnm.train.state import Run


def search(run: Run, batch: Batch, generator: torch.Generator) -> None:
    """Add ``config.scan_edges`` edges to the model of ``run``; drawn from ``generator`` if pairs are to be random."""
    config, task = run.config, run.data.task
    run.settle()
    drawn = generator if config.regrowth == "random" else None
    x, y, weights = batch.x.cpu(), batch.y.cpu(), batch.weights

    def loss(outputs: Tensor) -> Tensor:
        return objective(outputs, y, task, weights)

    known = None if run.time is None or drawn is not None else run.time.known_prices()
    prices = (known.lone or known.block, known.block) if known is not None and known.block > 0.0 else None
    run.with_room(lambda: grow_edges(run.model, x, loss, config.scan_edges, drawn, prices))
