"""Recovery: reconnect inputs and outputs after an update has disconnected them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from sparse_dnm.model.growth import reinitialize_rows
from sparse_dnm.train.state import Run
from sparse_dnm.train.trim import Frozen, keep_edges
from sparse_dnm.wording import words

MAX_RECOVERIES = 5
DOUBLINGS = 8  # of the number of edges, tried one after the other
EDGES_PER_OUTPUT = 20  # least number of edges after a recovery
QUIET_STEPS = 200  # without terms for speed and memory after a recovery


class Recovery:
    """Reconnects by a lower cutoff and, if that is not enough, by rows with newly drawn scalars.

    The terms that ask for a smaller network are then left out for some steps.

    count        how often the network was reconnected
    quiet_until  step up to which those terms are left out
    cut_at       the last step that had cut it; the next one is not quiet yet, whoever noticed
    """

    def __init__(self, run: Run):
        self.run = run
        self.count = self.quiet_until = 0
        self.cut_at = -1

    def state(self) -> list[int]:
        """What a checkpoint holds: also the numbers of edges that the run knows."""
        return [self.count, self.quiet_until, self.cut_at, self.run.edges, self.run.n_edges]

    def restore(self, saved: Sequence[int] | None) -> None:
        """Go on from what `state` returned, or from what earlier versions saved."""
        if saved is None:
            return
        if len(saved) == 3:  # of earlier versions
            self.count, self.quiet_until, self.run.edges = saved
        else:
            self.count, self.quiet_until, self.cut_at, self.run.edges, self.run.seen = saved

    @property
    def quiet(self) -> bool:
        """The terms that ask for a smaller network are left out now."""
        return self.cut_at < self.run.step < self.quiet_until

    def reconnect(self, frozen: Frozen | None) -> bool:
        """Reconnect the network where an update has cut it in two and it is not ``frozen``; returns whether it did."""
        run = self.run
        if run.step == 0 or run.model.connected or frozen is not None:
            return False
        if self.count >= MAX_RECOVERIES:
            return False
        run.settle()
        run.check_parameters()
        self.count += 1
        for redraw in (False, True):
            if redraw:
                # a generator of its own: that of the run may have drawn batches ahead
                reinitialize_rows(run.model, torch.Generator().manual_seed(run.config.seed * 1_000_003 + run.step))
            count = max(2 * run.edges, EDGES_PER_OUTPUT * run.data.n_outputs)
            for _ in range(DOUBLINGS):
                with contextlib.suppress(ValueError):
                    self._rest(self._lower_cutoff(count), redraw)
                    return True
                count *= 2
        return False

    def _lower_cutoff(self, count: int) -> int:
        """Lower the cutoff to so many edges, or to all candidates; returns how many there are then."""
        model = self.run.model
        return self.run.with_room(lambda: keep_edges(model, min(count, len(model.candidates.indices))))

    def _rest(self, found: int, redrawn: bool) -> None:
        """Pause the terms, and reset the moments that would keep shrinking the network."""
        run = self.run
        self.quiet_until, self.cut_at = run.step + QUIET_STEPS, run.step
        for state in run.optimizer.state.values():
            state["exp_avg"].zero_()
        rows = "scalars of some rows were drawn again, " if redrawn else ""
        run.notes.append(
            f"step {run.step} had cut the network in two: {rows}the cutoff was "
            f"lowered to {found:,} edges, and terms for speed and memory rest for {QUIET_STEPS} steps"
        )

    def describe(self) -> list[str]:
        """Warnings for the end of the training."""
        config = self.run.config
        if not self.count:
            return []
        terms = {config.coefficient_field: config.speed_coefficient, "omega_decay": config.omega_decay}
        lower = [words().now(name, value) for name, value in terms.items() if value]
        times = "once" if self.count == 1 else f"{self.count} times"
        way_out = f"a lower {' or '.join(lower)}" if lower else f"a lower {words().now('lr', config.lr)}"
        return [f"warning: the network had to be connected again {times}: {way_out} would keep it whole"]
