"""Commands that measure: compare speed terms, sweep sizes, calibrate a machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_dnm.cli import options as o
from sparse_dnm.cli.console import KEEP_QUIET, errors_reported, progress, runs_progress
from sparse_dnm.cli.streams import echo

if TYPE_CHECKING:
    from sparse_dnm.study.plan import Plan
    from sparse_dnm.timing.probes import Settings


@dataclass(frozen=True)
class CompareOptions(o.TargetOptions, o.ReadingOptions):
    """The options of compare."""

    dataset: Annotated[str, typer.Argument(help=o.DATASETS)] = "digits"
    terms: Annotated[
        str | None,
        typer.Option(
            help="Speed terms, of none, proxy-flat, proxy, time, budget, edges; default: the first four, or with "
            "--budgets or --edges those.",
            show_default="none,proxy-flat,proxy,time",
        ),
    ] = None
    factors: Annotated[str, typer.Option(help="Coefficients, as multiples of the preset's.")] = "0.3,1,3"
    budgets: Annotated[
        str | None, typer.Option(help="Budgets of the term budget, µs, as in 40,60,90: see train --budget-us.")
    ] = None
    edges: Annotated[
        str | None, typer.Option(help="Numbers of edges of the term edges, as in 300,600,1200: see train --edges.")
    ] = None
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 5
    jobs: Annotated[
        int,
        typer.Option(
            help="Trainings at a time, on one thread each, if no clock is part of their loss; the others (time, "
            "budget) follow as --clock-jobs says. Networks are timed when nothing trains."
        ),
    ] = 1
    clock_jobs: Annotated[
        int,
        typer.Option(
            help="The same for trainings with a clock: more than one at a time disturb each other's measurements."
        ),
    ] = 1
    steps: Annotated[int | None, typer.Option(help="Updates of each training."), o.SETTING] = None
    mode: Annotated[
        str,
        typer.Option(metavar=o.MODES, help="What is timed: forward + backward of a training batch, or a forward."),
    ] = "infer"
    batch_size: Annotated[int, typer.Option(help="Samples of the forward in mode infer.")] = 1
    executor: Annotated[
        str,
        typer.Option(metavar="auto|columns|wavefront|blocks", help="How the kernels run networks while they train."),
        o.SETTING,
    ] = "auto"
    timed_with: Annotated[
        str | None,
        typer.Option(
            help="Executors that final networks are timed with, as in columns,wavefront; the fastest for each counts.",
            show_default="all of the device",
        ),
    ] = None
    threads: Annotated[int, o.THREADS, o.SETTING] = 0
    clock: Annotated[
        str | None,
        typer.Option(
            metavar=o.TRAIN_CLOCKS,
            help="What is read on the CPU; target: networks are timed, and the term time trained, as programs in C.",
            show_default="perf_counter",
        ),
    ] = None
    device: Annotated[str, typer.Option(metavar=o.DEVICES, help="Where networks are trained and timed."), o.SETTING] = (
        "cpu"
    )
    data_dir: Annotated[Path | None, typer.Option(help="Folder of MNIST's IDX files; default $SPARSE_DNM_DATA.")] = None
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of runs and results; default runs/compare-DATASET. Finished runs in it are used again."
        ),
    ] = None
    preset: Annotated[str | None, o.PRESET] = None
    set_: Annotated[list[str] | None, o.SET] = None

    def timing(self) -> Settings:
        """How networks are timed, except the batch of a training step.  Raises ValueError for unfit values."""
        from sparse_dnm.config import TARGET_CLOCK
        from sparse_dnm.engine import device as backend
        from sparse_dnm.study.fastest import REPEATS
        from sparse_dnm.timing.cost_model import ON_TARGET
        from sparse_dnm.timing.probes import Settings

        clock, target = o.clock_of(self.clock, self.device, "perf_counter"), backend.device_of(self.device)
        if clock == TARGET_CLOCK:
            if self.mode != "infer" or self.batch_size != 1:
                raise ValueError(
                    f"--mode {self.mode} --batch-size {self.batch_size} does not go with --clock target, whose "
                    "programs run one sample, forward: leave them out"
                )
            if self.timed_with is not None:
                raise ValueError(f"--timed-with {self.timed_with} does not go with --clock target: leave it out")
            return Settings(ON_TARGET, "infer", 1, 1, clock, repeats=REPEATS)
        device = "cpu" if target.type == "cpu" else self.device
        executor = "columns" if self.executor == "auto" else self.executor  # where --timed-with names none
        return Settings(executor, self.mode, 1, self.threads, clock, repeats=101, device=device)

    def plan(self, timing: Settings) -> Plan:
        """The plan of the comparison.  Raises ValueError for unfit values."""
        from sparse_dnm.study.plan import Plan, executors
        from sparse_dnm.timing.cost_model import ON_TARGET

        budgets, edges = _numbers("--budgets", self.budgets), _numbers("--edges", self.edges)
        terms: tuple[str, ...] = ("none", "proxy-flat", "proxy", "time")
        if self.terms is not None:
            terms = tuple(self.terms.split(","))
        elif budgets or edges:
            terms = ("budget",) * bool(budgets) + ("edges",) * bool(edges)
        if not all(number.is_integer() for number in edges):
            raise ValueError(f"--edges {self.edges!r} must be whole numbers with commas between them")
        timed = executors(timing.device) if self.timed_with is None else tuple(self.timed_with.split(","))
        timed = () if timing.executor == ON_TARGET else timed
        counts, factors = tuple(map(int, edges)), _numbers("--factors", self.factors)
        return Plan(terms, factors, self.seeds, timing, budgets, counts, timed)

    def settings(self, clock: str) -> list[str]:
        """Fields of the configs as KEY=VALUE.  Raises ValueError if --set gives a field that compare itself sets."""
        from sparse_dnm.config import TARGET_CLOCK

        named = {"time_mode": self.mode, **o.given(self, o.SETTING), **self.of_target()}
        if self.device == "cpu":
            named["clock"] = clock
        if clock == TARGET_CLOCK:
            named["speed"] = "time"  # of the terms that have a clock; the others leave the target out
        if self.mode == "infer":
            named["time_batch"] = self.batch_size
        own = {"seed": "--seeds", "speed": "--terms", **{name: f"--{name}" for name in named}}
        own |= {"time_mode": "--mode", "time_batch": "--batch-size"}
        for text in self.set_ or []:
            name = text.partition("=")[0].strip().replace("-", "_")
            if name in own:
                raise ValueError(f"--set {text}: compare itself sets {name}; use {own[name]}")
        return [*(self.set_ or []), *(f"{name}={value}" for name, value in named.items())]


@o.takes(CompareOptions)
def compare(options: CompareOptions) -> None:
    """Compare simulated with measured speed: train with each term, time the networks, say which is better."""
    with errors_reported():
        from dataclasses import replace

        from sparse_dnm.cli.display import show_notes
        from sparse_dnm.config import apply_settings
        from sparse_dnm.model.recurrent import refuse_recurrent
        from sparse_dnm.presets import PRESETS, searching
        from sparse_dnm.report import comparison as report
        from sparse_dnm.study import compare as study
        from sparse_dnm.train.costs import target_of

        known = PRESETS.get(options.preset or options.dataset)
        if known is not None:
            refuse_recurrent(known.manifold, "compare")  # before any data are made
        source = options.source(options.dataset, options.data_dir)
        out = options.out or Path("runs") / f"compare-{Path(options.dataset).stem}"
        timing, at_once = options.timing(), study.Jobs(options.jobs, options.clock_jobs)
        plan, settings = options.plan(timing), options.settings(timing.clock)
        data = source.load()
        preset = o.preset_of(source, data, options.preset)
        manifold, config = apply_settings(preset.manifold, preset.train, settings)
        config = searching(manifold, config, settings)
        batch = config.batch_size or len(data.x_train)
        batch = batch if options.mode == "train" else options.batch_size
        plan = replace(
            plan, timing=replace(timing, batch=batch), target=target_of(config) if config.on_target else None
        )
        show_notes(data.notes)
        echo(f"{len(plan.runs())} trainings of {config.steps:,} steps in {out}; measuring; {KEEP_QUIET}")
        with runs_progress(study.count_parts(plan), config.steps) as (advance, on_step):
            found = study.study(data, manifold, config, plan, out, source, advance, at_once, on_step)
        written = [out / study.RESULTS, *report.write(out, found)]
        for line in report.lines(found):
            echo(line)
        echo(f"written to {out}: {', '.join(path.name for path in written)}")


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(",")) if text is not None else ()
    except ValueError:
        raise ValueError(f"{option} {text!r} must be numbers with commas between them") from None


def bench(
    out: Annotated[Path, typer.Option(help="Folder of the results; files of an earlier run are replaced.")] = Path(
        "runs/bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points: about 20 s instead of about 2 min.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of the kernels and of torch; 0: all cores.")] = 0,
) -> None:
    """Measure on this machine how time depends on density, edges, depth, batch and threads."""
    with errors_reported():
        from sparse_dnm.engine import device as backend
        from sparse_dnm.report import sweeps as report
        from sparse_dnm.study import sweeps as study

        settings = study.Settings.quick(threads) if quick else study.Settings(threads=threads)
        total = study.count_points(settings, backend.check_threads(threads))
        out.mkdir(parents=True, exist_ok=True)
        echo(f"measuring; {KEEP_QUIET}")
        with progress("density", total) as advance:
            results = study.run(settings, advance)
        written = report.write(out, results)
        echo(report.caption(results))
        for line in report.warnings(results):
            echo(line, fg="yellow", err=True)
        for line in report.crossover_lines(results["crossover"]):
            echo(line)
        echo(f"written to {out}: {', '.join(path.name for path in written)}")
