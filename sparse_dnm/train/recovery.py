"""Recovery: connect inputs and outputs again where an update has cut them apart."""

from __future__ import annotations

import contextlib

import torch

from sparse_dnm.model.growth import reinitialize_rows
from sparse_dnm.train.state import Run
from sparse_dnm.train.trim import keep_edges

MAX_RECOVERIES = 5
DOUBLINGS = 8  # of the number of edges that are tried
EDGES_PER_OUTPUT = 20  # that the network then has at least
QUIET_STEPS = 200  # without terms for speed and memory after that


class Recovery:
    """By a lower cutoff and, where that is not enough, by rows that begin anew.

    The terms that ask for a smaller network then rest for some steps.

    count        times that the network was connected again
    quiet_until  step up to which those terms do not count
    """

    def __init__(self, run: Run):
        self.run = run
        self.count = self.quiet_until = 0

    @property
    def quiet(self) -> bool:
        """The terms that ask for a smaller network rest."""
        return self.run.step < self.quiet_until

    def reconnect(self) -> bool:
        """Whether the network could be connected again."""
        run = self.run
        if run.config.budget_us or self.count >= MAX_RECOVERIES:
            return False
        run.settle()
        run.check_parameters()
        self.count += 1
        for anew in (False, True):
            if anew:
                # a generator of its own: that of the run may have drawn batches ahead
                reinitialize_rows(run.model, torch.Generator().manual_seed(run.config.seed * 1_000_003 + run.step))
            count = max(2 * run.edges, EDGES_PER_OUTPUT * run.data.n_outputs)
            for _ in range(DOUBLINGS):
                with contextlib.suppress(ValueError):
                    self._rest(self._lower_cutoff(count), anew)
                    return True
                count *= 2
        return False

    def _lower_cutoff(self, count: int) -> int:
        """Lower the cutoff to so many edges, or all candidates; how many there are then."""
        model = self.run.model
        return self.run.with_room(lambda: keep_edges(model, min(count, len(model.candidates.indices))))

    def _rest(self, found: int, anew: bool) -> None:
        """Let the terms rest, and what would go on shrinking the network."""
        run = self.run
        self.quiet_until = run.step + QUIET_STEPS
        for state in run.optimizer.state.values():
            state["exp_avg"].zero_()
        run.notes.append(
            f"step {run.step} had cut the network in two: {'some rows begin anew, ' if anew else ''}the cutoff was "
            f"lowered to {found:,} edges, and terms for speed and memory rest for {QUIET_STEPS} steps"
        )

    def describe(self) -> list[str]:
        """What to say at the end."""
        config = self.run.config
        if not self.count:
            return []
        return [
            f"warning: the network had to be connected again {self.count} times: a lower --set "
            f"{config.coefficient_field}= (now {config.speed_coefficient:g}) would keep it whole"
        ]
