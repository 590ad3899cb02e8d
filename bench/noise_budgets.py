"""Budgets of bench.noise: how they hold, and their accuracy beside numbers of edges at equal measured time."""

from __future__ import annotations

import concurrent.futures
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.competitors import CONDITIONS, IDLE
from bench.noise_runs import Bench, Record, network, spread
from sparse_dnm.study.fastest import time_fastest
from sparse_dnm.study.plan import executors
from sparse_dnm.study.verdict import Result, judge_at_equal_time
from sparse_dnm.timing.probes import Settings
from sparse_dnm.timing.subprocess import time_in_subprocess

N_BUDGETS = 3  # inside the times of the reference networks
WITHIN = 0.03  # by which a network may exceed its budget, measured later
RUINED = 0.02  # of accuracy below a network of --edges that is as fast


def references(bench: Bench, dataset: str) -> list[Result]:
    """Networks trained to numbers of edges, several at a time, and timed when nothing trains."""
    wanted = [(level, seed) for seed in range(bench.seeds) for level in bench.levels(dataset)]

    def one(what: tuple[int, int]) -> Record:
        level, seed = what
        name = f"edges-{dataset}-{level}-{seed}"
        return bench.train(name, IDLE, dataset, seed, "--edges", str(level))

    with concurrent.futures.ThreadPoolExecutor(bench.jobs) as pool:
        found = list(pool.map(one, wanted))
    failed = [r for r in found if r["rc"]]
    if failed:
        raise RuntimeError(f"{' '.join(failed[0]['command'])} ended with {failed[0]['rc']}: {failed[0]['said']}")
    return timed(bench, f"references-{dataset}-{bench.seeds}", dataset, [
        ("edges", float(level), seed, f"edges-{dataset}-{level}-{seed}") for level, seed in wanted
    ])  # fmt: skip


def timed(bench: Bench, name: str, dataset: str, wanted: Sequence[tuple[str, float, int, str]]) -> list[Result]:
    """Results of runs (term, level, seed, name), timed by the fastest executor of each; kept."""

    def make() -> Record:
        networks = {run: network(bench.out / "runs" / run) for *_, run in wanted}
        settings = bench.settings(dataset)
        fastest = time_fastest(networks, settings, executors(batch=settings.batch))
        return {
            run: {"executor": f.executor, "seconds": f.seconds.tolist(), "edges": len(networks[run].indices)}
            for run, f in fastest.items()
        }

    kept = bench.kept(f"times/{name}", make)
    results = []
    for term, level, seed, run in wanted:
        summary, t = bench.kept(f"train/{run}", dict)["summary"], kept[run]
        middle, low, high = (float(f(t["seconds"])) for f in (np.median, np.min, np.max))
        size = summary["edges"], summary["depth"], summary["live"]
        results.append(Result(term, level, seed, summary["test_accuracy"], *size, middle, low, high, t["executor"]))
    return results


def curve(found: Sequence[Result]) -> tuple[list[float], list[float]]:
    """Seconds (geometric means over the seeds), ascending, and mean accuracy, by level."""
    points = []
    for level in dict.fromkeys(r.factor for r in found):
        chosen = [r for r in found if r.factor == level]
        seconds = math.exp(statistics.mean([math.log(r.seconds) for r in chosen]))
        points.append((seconds, statistics.mean([r.figure for r in chosen])))
    points.sort()
    return [t for t, _ in points], [a for _, a in points]


def accuracy_at(found: Sequence[Result], seconds: float) -> float:
    """Accuracy of the reference networks that take ``seconds``: interpolated on log time, constant outside."""
    times, accuracy = curve(found)
    return float(np.interp(math.log(seconds), np.log(times), accuracy))


def budgets_of(found: Sequence[Result], count: int) -> list[float]:
    """``count`` budgets, µs, evenly spread on log time inside the times of the reference networks."""
    times, _ = curve(found)
    at = np.exp(np.linspace(math.log(times[0]), math.log(times[-1]), count + 2)[1:-1])
    return [float(f"{1e6 * t:.3g}") for t in at]


@dataclass(frozen=True)
class Ended:
    """How a run with a budget ended."""

    dataset: str
    beside: str
    rc: int
    budget_us: float
    seconds: float  # of its network, later on the quiet machine; nan if it failed
    accuracy: float
    promised: float  # accuracy of --edges at those seconds

    @property
    def over(self) -> float:
        """Share of the budget by which it is exceeded."""
        return 1e6 * self.seconds / self.budget_us - 1

    @property
    def ruined(self) -> bool:
        """It was handed over as good, and is not."""
        return self.rc == 0 and self.accuracy <= self.promised - RUINED


def budgets(bench: Bench) -> list[str]:
    """Trainings with budgets, half of them beside a competitor, and their networks measured afterwards."""
    rivals = {dataset: references(bench, dataset) for dataset in bench.datasets}
    found: list[Record] = []
    beside = [name for name in bench.conditions if name != IDLE.name] or [IDLE.name]
    for k in range(bench.runs):
        dataset = bench.datasets[k % len(bench.datasets)]
        turn = k // len(bench.datasets)  # of this data set; every second one is beside a competitor
        condition = CONDITIONS[beside[turn // 2 % len(beside)] if turn % 2 else IDLE.name]
        budget = budgets_of(rivals[dataset], N_BUDGETS)[turn % N_BUDGETS]
        name = f"budget-{k}-{dataset}-{budget:g}-{condition}"
        record = bench.budget(name, condition, dataset, 100 + k, budget)
        found.append({**record, "name": name, "dataset": dataset, "beside": condition.name, "budget_us": budget})
    later = bench.kept(f"times/budgets-{bench.runs}", lambda: measured_later(bench, found))
    return budgets_table([ended(r, later, rivals[r["dataset"]]) for r in found])


def measured_later(bench: Bench, found: Sequence[Record]) -> Record:
    """Median seconds of each network that was handed over, timed as its budget was, when nothing trains."""
    medians: Record = {}
    for r in found:
        if r["rc"] == 0:
            how = r["summary"]["measured"]
            head = how["executor"], how["mode"], how["batch"], how["threads"], how["clock"]
            settings = Settings(*head, repeats=bench.settings(r["dataset"]).repeats)
            seconds = time_in_subprocess({"it": network(bench.out / "runs" / r["name"])}, settings)["it"]
            medians[r["name"]] = float(np.median(seconds))
    return medians


def ended(record: Record, later: Record, rivals: Sequence[Result]) -> Ended:
    """How a run ended, by its record and the times that were measured later."""
    seconds = later.get(record["name"], math.nan)
    good = record["rc"] == 0
    return Ended(
        *(record["dataset"], record["beside"], record["rc"], record["budget_us"], seconds),
        record["summary"]["test_accuracy"] if good else math.nan,
        accuracy_at(rivals, seconds) if good else math.nan,
    )


def budgets_table(found: Sequence[Ended]) -> list[str]:
    """The table of budgets, and a line for every run that failed or is not as it should be."""
    lines = [
        f"Within: at most {WITHIN:.0%} over the budget, measured later when nothing trains.  Ruined: exit status 0 and "
        f"{100 * RUINED:.0f} points or more below `--edges` at the same measured time; outside the times of those "
        "networks the nearest counts.",
        "",
        "| | runs | exit 0, 3, 2 | within | median budget error, % | over the budget, % | points above --edges | "
        "ruined |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = {"all": list(found)}
    groups |= {name: [e for e in found if e.dataset == name] for name in dict.fromkeys(e.dataset for e in found)}
    groups |= {"idle": [e for e in found if e.beside == IDLE.name], "busy": [e for e in found if e.beside != IDLE.name]}
    for name, group in groups.items():
        good = [e for e in group if e.rc == 0]
        exits = ", ".join(str(sum(e.rc == rc for e in group)) for rc in (0, 3, 2))
        error = f"{statistics.median([100 * abs(e.over) for e in good]):.1f}" if good else ""
        cells = [str(len(group)), exits, f"{sum(e.over <= WITHIN for e in good)} of {len(good)}", error]
        cells += [spread([100 * e.over for e in good], "+.1f")]
        cells += [spread([100 * (e.accuracy - e.promised) for e in good], "+.2f"), str(sum(e.ruined for e in good))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    notes = [
        f"- {e.dataset}, {e.budget_us:g} µs, beside {e.beside}: exit status {e.rc}"
        + (f", {e.over:+.1%} of the budget, accuracy {e.accuracy:.4f} ({e.promised:.4f} by --edges)" * (e.rc == 0))
        for e in found
        if e.rc or e.ruined or e.over > WITHIN
    ]
    return [*lines, *([""] if notes else []), *notes]


def accuracy(bench: Bench) -> list[str]:
    """Budgets against numbers of edges, over seeds, on a quiet machine, by data set."""
    lines = [
        f"Difference at equal measured time, the mean over the budgets; {bench.mode}, one thread, each network by its "
        "fastest executor; budgets with --max-loss 100, so that a deep cut counts.",
        "",
        "| data | budgets, µs | seeds | points of accuracy, --budget-us less --edges | 95 % interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for dataset in bench.datasets:
        rivals = references(bench, dataset)
        wanted = []
        levels = budgets_of(rivals, 1 if bench.quick else N_BUDGETS)
        failed = []
        for seed in range(bench.seeds):
            for budget in levels:
                name = f"equal-{dataset}-{budget:g}-{seed}"
                record = bench.budget(name, IDLE, dataset, seed, budget, "--max-loss", "100")
                if record["rc"]:
                    said = " ".join(record["said"].split())
                    failed.append(f"{budget:g} µs, seed {seed}: exit status {record['rc']}, {said}")
                else:
                    wanted.append(("budget", budget, seed, name))
        whole = [s for s in range(bench.seeds) if sum(w[2] == s for w in wanted) == len(levels)]
        chosen = [w for w in wanted if w[2] in whole]
        lines.append(accuracy_row(bench, dataset, levels, chosen, [r for r in rivals if r.seed in whole]))
        notes += [f"- {dataset}, {line}; its seed is left out" for line in failed]
    return [*lines, *([""] if notes else []), *notes]


def accuracy_row(
    bench: Bench, dataset: str, levels: Sequence[float], wanted: Sequence[tuple[str, float, int, str]],
    rivals: Sequence[Result],
) -> str:  # fmt: skip
    """A row of the table of `accuracy`."""
    head = f"| {dataset} | {', '.join(f'{b:g}' for b in levels)} | {len({w[2] for w in wanted})}"
    if not wanted:
        return f"{head} | | | no seed in which all runs ended well |"
    seeds = "-".join(str(seed) for seed in dict.fromkeys(w[2] for w in wanted))
    found = timed(bench, f"equal-{dataset}-{seeds}", dataset, wanted)
    verdict = judge_at_equal_time([*found, *rivals], "classification")
    if verdict.gain is None:
        return f"{head} | | | {verdict.words} |"
    gain = verdict.gain
    span = f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
    return f"{head} | {100 * gain.value:+.2f} | {span} | {verdict.words.partition(':')[0]} |"
