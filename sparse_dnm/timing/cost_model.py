"""Seconds of the sparse step as a non-negative linear function of its structure (DESIGN, 3).

The features depend on the executor: ``columns`` has no cost per level, ``wavefront`` has one, ``blocks`` pays for
blocks of neighbouring sources.  `CostModel.fit` fits
their costs to measurements, `Refit` keeps them up to date.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from sparse_dnm.engine.costs import Prices
from sparse_dnm.engine.cpu_blocks import ROOM
from sparse_dnm.engine.cpu_structure import Floats

COUNTS = (
    "call", "input", "lone input", "neuron", "edge", "far edge", "output", "crowded row", "level", "moved line",
    "block", "group", "crowded block", "loop", "crowded edge", "crowded loop",
)  # fmt: skip
CROWDS = ("crowded row", "crowded block")
IN_C = (
    "call",
    "input",
    "neuron",
    "edge",
    "output",
    "level",
    "block",
    "loop",
    "crowded edge",
    "crowded block",
    "crowded loop",
)
ON_CUDA = ("call", "input", "neuron", "edge", "level")
ON_TARGET = "c"  # the executor of programs in C
IN_TILES, SKEWED = "sequences", "skewed sequences"  # how recurrent networks run: by tiles, or levels behind each other
OF_SEQUENCES = (IN_TILES, SKEWED)
FEATURES = {  # of an executor's time
    "columns": COUNTS[:8],
    "wavefront": COUNTS[:10],
    "blocks": ("call", "input", "lone input", "neuron", "edge", "level", "block", "group", *CROWDS),
    IN_TILES: ("call", "input", "neuron", "edge", "output", "crowded row"),
    SKEWED: ("call", "input", "neuron", "edge", "output", "level", "group"),
    "cuda-columns": ON_CUDA,
    "cuda-wavefront": ON_CUDA,
    ON_TARGET: IN_C,
}
BACKWARD = ("moved line",)  # what forward passes do not pay for
BEFORE = {  # the features of an executor's time before all others: those in checkpoints that do not name theirs
    "columns": ("call", "input", "lone input", "neuron", "edge", "far edge"),
    "wavefront": ("call", "input", "lone input", "neuron", "edge", "far edge", "level"),
}
EARLIER = {  # sets of features that an earlier version wrote
    "columns": (BEFORE["columns"], (*BEFORE["columns"], "output", "crowded neuron")),
    "wavefront": (BEFORE["wavefront"], (*BEFORE["columns"], "output", "crowded neuron", "level")),
    "blocks": (("call", "input", "lone input", "neuron", "lone neuron", "edge", "level", "block"),),
}


TRUST = 0.5  # relative error of typical coefficients


@dataclass(frozen=True)
class Quality:
    """How predictions compare with measurements; errors are relative, |predicted / measured - 1|."""

    n: int  # structures
    r2: float  # share of the variance that is explained
    mape: float  # mean error
    within_10: float  # share of structures with an error of 10 % at most
    spearman: float  # rank correlation

    @staticmethod
    def of(predicted: Floats, measured: Floats) -> Quality:
        """The quality of predictions of as many measurements, of which at least three differ."""
        from scipy.stats import spearmanr  # slow to import, and only needed here
        from sklearn.metrics import mean_absolute_percentage_error, r2_score

        differ = np.ptp(predicted) > 0.0 and np.ptp(measured) > 0.0
        return Quality(
            n=len(measured),
            r2=float(r2_score(measured, predicted)),
            mape=float(mean_absolute_percentage_error(measured, predicted)),
            within_10=float((np.abs(predicted / measured - 1) <= 0.1).mean()),
            spearman=float(spearmanr(predicted, measured).statistic) if differ else math.nan,
        )


@dataclass(frozen=True)
class CostModel:
    """Seconds of a step: the sum of coefficient times count over the features of an executor."""

    executor: str
    coefficients: tuple[float, ...]  # s each, >= 0, in the order of FEATURES[executor]

    def seconds(self, counts: Floats) -> Any:
        """Seconds of one structure (n_features,), or of several (n, n_features)."""
        return counts @ np.array(self.coefficients)

    def least(self, n_outputs: int) -> float:
        """Seconds, about, of the smallest network that connects inputs and outputs."""
        cost = dict.fromkeys(COUNTS, 0.0) | dict(zip(FEATURES[self.executor], self.coefficients, strict=True))
        each = ("output", "loop", "edge") if self.executor == ON_TARGET else ("neuron", "edge", "block")
        found = cost["call"] + cost["input"] + cost["level"] + cost["group"]
        return found + n_outputs * sum(cost[name] for name in each)

    def prices(self, counts: Floats) -> Prices:
        """Seconds near the structure with these ``counts``: the shares of far edges, moved lines and lone inputs stay
        the same, and crowds grow with the square of what they consist of.  Of the groups that neurons are computed in
        a neuron pays its share of a full one, a level what its groups are more than that; of those of a recurrent
        network it pays its share.  On a target a neuron pays for as many loops as one has on average."""
        cost = dict.fromkeys(COUNTS, 0.0) | dict(zip(FEATURES[self.executor], self.coefficients, strict=True))
        number = dict.fromkeys(COUNTS, 0.0) | dict(zip(FEATURES[self.executor], counts.tolist(), strict=True))

        def share(part: str, whole: float, power: int = 1) -> float:
            return power * cost[part] * number[part] / whole if whole else 0.0

        edges, blocks, rows = number["edge"], number["block"], number["neuron"] + number["output"]
        if self.executor == ON_TARGET:  # an edge is alone or in a block, and rows have loops over either
            edge = cost["edge"] + share("crowded edge", edges, power=2)
            block = cost["block"] + share("crowded block", blocks, power=2)
            loops = share("loop", rows) + share("crowded loop", rows, power=2)
            return Prices(0.0, cost["input"], cost["neuron"] + loops, cost["level"], max(block, edge), edge)
        if self.executor == SKEWED:
            neuron = cost["neuron"] + share("group", number["neuron"])
            return Prices(cost["edge"], cost["input"], neuron, cost["level"])
        full, levels = number["neuron"] / ROOM, number["level"]
        apart = max(number["group"] - full, 0.0) / levels if levels else 0.0
        return Prices(
            cost["edge"] + share("far edge", edges) + share("moved line", edges),
            cost["input"] + share("lone input", number["input"]),
            cost["neuron"] + cost["group"] / ROOM + share("crowded row", rows, power=2),
            cost["level"] + cost["group"] * apart,
            cost["block"] + share("crowded block", blocks, power=2),
        )

    @staticmethod
    def fit(
        executor: str, counts: Floats, seconds: Floats, only: Sequence[str] = COUNTS, typical: Floats | None = None
    ) -> CostModel:
        """Fit (n, n_features) counts to (n,) seconds: least squares of the relative errors, no coefficient below 0
        (Lawson & Hanson 1974), and 0 for features that are not in ``only`` or that no structure has.

        ``typical`` (n_features,): coefficients up to a common factor, that hold what the seconds do not tell apart.
        Their weight is that of a guess which is off by TRUST against errors as large as those of a fit without them.
        """
        used = np.array([name in only for name in FEATURES[executor]]) & counts.any(axis=0)
        rows, ones = counts / seconds[:, None] * used, np.ones(len(seconds))
        solution, error = nnls(rows, ones)
        if typical is not None:
            variance = error**2 / max(len(seconds) - int(np.count_nonzero(solution)), 1)
            guess = _scaled(rows, typical * used)
            known = guess > 0
            ridge = (np.sqrt(variance) / TRUST / np.where(known, guess, 1.0) * np.eye(len(guess)))[known]
            solution, _ = nnls(np.vstack([rows, ridge]), np.concatenate([ones, ridge @ guess]))
        return CostModel(executor, tuple(float(x) for x in solution * used))


def _scaled(rows: Floats, typical: Floats) -> Floats:
    """``typical`` times the factor that fits the ``rows``, which ask for 1, best."""
    found = rows @ typical
    scaled: Floats = typical * (found.sum() / max(float(found @ found), 1e-300))
    return scaled


class Refit:
    """A cost model kept up to date: recursive, non-negative least squares of relative errors, in information form.

    Its state is a matrix (n_features, n_features), the calibration as a prior (scaled to the recent pace), and the
    errors of the last ``RECENT`` steps: an error of more than three times their usual spread is clipped to that.
    """

    FORGET = 0.99  # factor of a timed step's weight at every later one
    WEIGHT = 20.0  # the calibration counts for as many timed steps
    RIDGE = 0.01  # and holds every coefficient by as much more: what the calibration did not tell apart, noise must not
    RECENT = 50
    LEAST = 8  # timed steps before the first change, and before errors are clipped

    def __init__(self, model: CostModel, counts: Floats, seconds: Floats):
        rows = counts / seconds[:, None]
        self.calibrated = self.model = model
        held = [self.RIDGE / c**2 if c > 0 else 0.0 for c in model.coefficients]
        self.prior = self.WEIGHT * (rows.T @ rows / len(rows) + np.diag(held))
        self.normal, self.right = np.zeros_like(self.prior), np.zeros(len(self.prior))
        self.pace: deque[float] = deque(maxlen=self.RECENT)  # log of measured over predicted by the calibration
        self.errors: deque[float] = deque(maxlen=self.RECENT)  # the same for the present model

    def add(self, counts: Floats, seconds: float) -> None:
        """Update with a timed step."""
        off = math.log(seconds / float(self.model.seconds(counts)))
        usual = statistics.median(self.errors) if self.errors else 0.0
        if len(self.errors) >= self.LEAST:
            spread = 3 * 1.4826 * statistics.median(abs(error - usual) for error in self.errors)
            seconds *= math.exp(min(max(off, usual - spread), usual + spread) - off)
        self.errors.append(off)
        self.pace.append(math.log(seconds / float(self.calibrated.seconds(counts))))
        row = counts / seconds
        self.normal = self.FORGET * self.normal + np.outer(row, row)
        self.right = self.FORGET * self.right + row
        if len(self.pace) >= self.LEAST:
            self.model = self._solve()

    def _solve(self) -> CostModel:
        """Coefficients >= 0 of least squares over the steps and, at the recent pace, the calibration."""
        pace = math.exp(statistics.median(self.pace))
        prior = np.array(self.calibrated.coefficients)
        known = prior > 0.0  # features of cost 0 in the calibration stay at 0
        matrix = (self.normal + self.prior / pace**2)[np.ix_(known, known)]
        right = (self.right + self.prior @ prior / pace)[known]
        scale = np.sqrt(np.diag(matrix))
        factor = np.linalg.cholesky(matrix / np.outer(scale, scale) + 1e-9 * np.eye(len(scale)))
        found = np.zeros(len(prior))
        found[known] = nnls(factor.T, np.linalg.solve(factor, right / scale))[0] / scale
        return replace(self.model, coefficients=tuple(float(x) for x in found))

    @property
    def error(self) -> float:
        """Median relative error of the predictions for the last timed steps; nan before the first."""
        return statistics.median(abs(math.expm1(-error)) for error in self.errors) if self.errors else math.nan

    def state(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {
            "executor": self.model.executor,
            "features": list(FEATURES[self.model.executor]),
            "calibrated": list(self.calibrated.coefficients),
            "coefficients": list(self.model.coefficients),
            **{name: getattr(self, name).tolist() for name in ("prior", "normal", "right")},
            **{name: list(getattr(self, name)) for name in ("pace", "errors")},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Refit:
        """The object whose `state` this is."""
        made = cls.__new__(cls)
        executor = state["executor"]
        names = state.get("features") or BEFORE.get(executor, FEATURES[executor])
        kept = [k for k, name in enumerate(names) if name in FEATURES[executor]]  # the others have no counts any more
        at = [FEATURES[executor].index(names[k]) for k in kept]  # features that it does not know cost 0
        vector, matrix = np.zeros(len(FEATURES[executor])), np.zeros([len(FEATURES[executor])] * 2)

        def placed(values: Any, into: Floats) -> Any:
            found = into.copy()
            found[np.ix_(*[at] * into.ndim)] = np.array(values)[np.ix_(*[kept] * into.ndim)]
            return found

        made.calibrated, made.model = (
            CostModel(executor, tuple(placed(state[name], vector).tolist())) for name in ("calibrated", "coefficients")
        )
        made.prior, made.normal = (placed(state[name], matrix) for name in ("prior", "normal"))
        made.right = placed(state["right"], vector)
        made.pace, made.errors = (deque(state[name], maxlen=cls.RECENT) for name in ("pace", "errors"))
        return made
