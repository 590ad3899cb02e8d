"""Command line: train, evaluate, report, animate, compare, bench, calibrate.

Commands import torch and the engine themselves: --help is fast.
"""

from __future__ import annotations

import contextlib
import errno
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sparse_dnm.data.datasets import Dataset
    from sparse_dnm.data.source import DataSource
    from sparse_dnm.model.manifold import DynamicManifold
    from sparse_dnm.presets import Preset
    from sparse_dnm.report.tensorboard import TensorBoardLog
    from sparse_dnm.train.trainer import Record, Trainer

COMPILING = "first step: compiling kernels where the cache is cold (Ctrl-C twice gives up)"
KEEP_QUIET = "measuring; keep the machine quiet (kernels compile first where the cache is cold)"
OTHER_OUT = "or choose another --out"
WAYS_OUT = {  # of an operating system's error
    errno.EACCES: f"get the permission, {OTHER_OUT}",
    errno.EPERM: f"get the permission, {OTHER_OUT}",
    errno.EROFS: "choose another --out",
    errno.ENOTDIR: "a part of this path is a file: choose another --out",
    errno.EEXIST: "a file has this name: choose another --out",
    errno.ENOSPC: f"free some space, {OTHER_OUT}",
    errno.EDQUOT: f"free some space, {OTHER_OUT}",
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f), use fewer neurons, {OTHER_OUT}",
}
FIGURES = ("train_accuracy", "train_mse", "test_accuracy", "test_mse")

app = typer.Typer(
    help="Train Dynamic Neural Manifolds: sparse networks whose connections are learned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the command sparse-dnm."""
    try:
        app(prog_name="sparse-dnm")
    except KeyboardInterrupt:  # before a command has begun
        typer.echo("aborted", err=True)
        raise SystemExit(128 + signal.SIGINT) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sparse-dnm {version('sparse-dnm')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    dataset: Annotated[
        str | None, typer.Argument(help="toy, digits, mnist, or a .npz or .csv file.", show_default="digits")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates; with --resume the new total.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's step size at the start.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial values, data order and omega.")] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            metavar="none|proxy|time",
            help="Speed term of the loss: a count of edges, or seconds measured on this machine.",
        ),
    ] = None,
    clock: Annotated[
        str | None,
        typer.Option(metavar="process_time|perf_counter|thread_time", help="What --speed time reads on the CPU."),
    ] = None,
    edges: Annotated[
        int | None, typer.Option(help="Edges to end with; the recipe is then one that grows edges, too, and is longer.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="The same, as a share of the possible edges, in 0 .. 1.")
    ] = None,
    budget_us: Annotated[
        float | None, typer.Option(help="µs that a step of the trained network may take, at most.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Train for the machine that this profile (of calibrate) comes from.")
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="auto|columns|wavefront|torch-sparse",
            help="How the kernels walk the network; torch-sparse: without them, through that package.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the kernels; 0: all cores.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda|cuda:N", help="Where the network is trained; default: cpu.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of MNIST's IDX files; default $SPARSE_DNM_DATA. With --resume: of the data, where moved."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory to create; default runs/DATASET-SEED-<n>.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue this run to the same bits as an uninterrupted one. A larger --steps extends it "
            "(a cosine schedule is then stretched to the new total)."
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Settings to start from; default: those of the data set.")] = None,
    target: Annotated[str | None, typer.Option(help="Label column of a .csv file; default: the last one.")] = None,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Steps between snapshots of the structure; default: a hundredth of all steps.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's files, too, into the run directory.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any field of the configuration; repeatable."),
    ] = None,
) -> None:
    """Train a network and write a run directory."""
    fixed = {
        "DATASET": dataset,
        "--batch-size": batch_size,
        "--lr": lr,
        "--seed": seed,
        "--speed": speed,
        "--clock": clock,
        "--edges": edges,
        "--density": density,
        "--budget-us": budget_us,
        "--profile": profile,
        "--out": out,
        "--preset": preset,
        "--target": target,
        "--set": set_ or None,
    }
    named = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "speed": speed}
    named.update({"executor": executor, "threads": threads, "clock": clock, "budget_us": budget_us})
    named.update({"snapshot_every": snapshot_every, "device": device})
    named["profile"] = None if profile is None else str(profile.resolve())
    settings = [*(set_ or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]
    with _errors_reported():
        if budget_us is not None and not budget_us > 0:
            raise ValueError(f"--budget-us {budget_us:g} must be > 0 µs; leave it out for no budget")
        if snapshot_every is not None and snapshot_every < 1:
            raise ValueError(
                f"--snapshot-every {snapshot_every} must be >= 1; more than --steps keeps the first and the last only"
            )
        if device is not None:
            _clock_of(clock, device, "")
        if edges is not None and edges < 1:
            raise ValueError(f"--edges {edges} must be >= 1")
        goals = {"--edges": edges, "--density": density, "--budget-us": budget_us}
        chosen = [name for name, value in goals.items() if value is not None]
        chosen += [f"--set {text}" for text in set_ or [] if text.startswith("target_edges")]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} say what the network is to end with: give one of them")
        if density is not None and not 0 < density <= 1:
            raise ValueError(f"--density {density:g} must be a share > 0 and <= 1")
        if resume is None:
            from sparse_dnm.data.source import DataSource

            source = DataSource(dataset or "digits", None if data_dir is None else str(data_dir), target)
            _train(
                lambda: _new_trainer(source, preset, settings, out, edges, density),
                keep=out is not None and out.exists(),
                tensorboard=tensorboard,
            )
            return
        given = [name for name, value in fixed.items() if value is not None]
        if given:
            raise ValueError(
                f"--resume continues {resume} as it was begun: leave out {', '.join(given)}; "
                "only --steps, --executor, --threads, --device, --data-dir, --snapshot-every and --tensorboard may go "
                "with it"
            )
        _train(
            lambda: _resumed_trainer(resume, data_dir, steps, executor, threads, snapshot_every, device),
            tensorboard=tensorboard,
        )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory of a training.")],
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data, where it has moved.")] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda|cuda:N", help="Where the network is run.")] = "cpu",
) -> None:
    """Evaluate a run's checkpoint on its test set and compare with its summary."""
    with _errors_reported():
        from sparse_dnm.io import read_json
        from sparse_dnm.train.checkpoint import SUMMARY
        from sparse_dnm.train.trainer import evaluate as test

        trainer = _resumed_trainer(run, data_dir, None, None, 0, None, device)  # all threads of this machine
        ((name, value),) = test(trainer.model, trainer.data).items()
        typer.echo(f"{name} {value:.6g} at step {trainer.step} of {run}")
        if not (run / SUMMARY).exists():
            typer.echo(f"{run} has no {SUMMARY}: its training is not finished, nothing to compare with")
            return
        summary = read_json(run / SUMMARY)
        promised, there = summary.get(name), summary.get("device", "cpu")
        tolerance = 1e-6 if there == str(trainer.model.alpha.device) else 1e-3  # bits differ there
        if isinstance(promised, float) and math.isclose(value, promised, rel_tol=tolerance):
            typer.echo(f"reproduced: {SUMMARY} says {promised:.6g}")
            return
        typer.echo(f"differs: {SUMMARY} says {promised!r}", err=True)
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run directory of a training, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page and the figures; default: the run directory.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Snapshots that the page holds at most.")] = 120,
) -> None:
    """Show a training: one HTML page that works from disk, and its figures as PNG and SVG."""
    with _errors_reported():
        from sparse_dnm.report import figures, page
        from sparse_dnm.report.history import History

        history = History.read(run, frames)
        folder = _folder(out or run)
        with _progress("snapshots", max(len(history.steps), 1)) as advance:
            page.write(history, folder / "report.html", lambda: advance("snapshots"))
        with _progress("figures", 6 if history.image else 5) as advance:
            written = figures.write(history, folder / "figures", advance)
        for note in history.notes:
            typer.echo(f"note: {note}")
        typer.echo(f"written: {folder / 'report.html'} (open it in a browser)")
        typer.echo(f"written to {folder / 'figures'}: {', '.join(path.name for path in written)}")


@app.command()
def animate(
    run: Annotated[Path, typer.Argument(help="Run directory of a training, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the files; default: the run directory.")] = None,
    frames: Annotated[int, typer.Option(help="Pictures at most, one per snapshot.")] = 60,
    fps: Annotated[int, typer.Option(help="Pictures a second.")] = 10,
) -> None:
    """Make a GIF of a training, and an MP4 where ffmpeg is installed."""
    with _errors_reported():
        from functools import partial

        from sparse_dnm.report import animation
        from sparse_dnm.report.history import History

        animation.check_fps(fps)
        history = History.read(run, frames)
        folder = _folder(out or run)
        for suffix in animation.formats():
            path = folder / f"animation{suffix}"
            with _progress(path.name, max(len(history.steps), 1)) as advance:
                animation.write(history, path, fps, partial(advance, path.name))
            typer.echo(f"written: {path}")
        for note in history.notes:
            typer.echo(f"note: {note}")
        if 100 % fps:
            typer.echo(f"note: a GIF knows hundredths of a second: it shows {100 / (100 // fps):.3g} pictures in one")
        if len(animation.formats()) < len(animation.FORMATS):
            typer.echo("note: no MP4, the program ffmpeg is not on the PATH")


@app.command()
def compare(
    dataset: Annotated[str, typer.Argument(help="toy, digits, mnist, or a .npz or .csv file.")] = "digits",
    terms: Annotated[
        str, typer.Option(help="Speed terms, of none, proxy-flat, proxy, time.")
    ] = "none,proxy-flat,proxy,time",
    factors: Annotated[str, typer.Option(help="Coefficients, as multiples of the recipe's.")] = "0.3,1,3",
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 5,
    steps: Annotated[int | None, typer.Option(help="Updates of each training.")] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="train|infer", help="What is timed: forward + backward of a training batch, or a forward."
        ),
    ] = "infer",
    batch_size: Annotated[int, typer.Option(help="Samples of the forward in mode infer.")] = 1,
    executor: Annotated[str, typer.Option(metavar="columns|wavefront", help="How networks are walked.")] = "columns",
    threads: Annotated[int, typer.Option(help="Threads of the kernels; 0: all cores.")] = 0,
    clock: Annotated[
        str | None,
        typer.Option(
            metavar="process_time|perf_counter|thread_time",
            help="What is read on the CPU.",
            show_default="perf_counter",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="cpu|cuda|cuda:N", help="Where networks are trained and timed.")
    ] = "cpu",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of MNIST's IDX files; default $SPARSE_DNM_DATA.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of runs and results; default runs/compare-DATASET. Finished runs in it are used again."
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Settings to start from; default: those of the data set.")] = None,
    target: Annotated[str | None, typer.Option(help="Label column of a .csv file; default: the last one.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any field of the configuration; repeatable."),
    ] = None,
) -> None:
    """Compare simulated with measured speed: train with each term, time the networks, say which is better."""
    with _errors_reported():
        from dataclasses import replace

        from rich.console import Console
        from rich.progress import Progress

        from sparse_dnm.config import apply_settings
        from sparse_dnm.data.source import DataSource
        from sparse_dnm.engine import device as backend
        from sparse_dnm.machine import machine, versions
        from sparse_dnm.report import comparison as compare_report
        from sparse_dnm.study import compare as comparison
        from sparse_dnm.timing.calibration import Settings

        source = DataSource(dataset, None if data_dir is None else str(data_dir), target)
        out = out or Path("runs") / f"compare-{Path(dataset).stem}"
        read, there = _clock_of(clock, device, "perf_counter"), backend.device_of(device)
        named = {"time_mode": mode, "executor": executor, "threads": threads, "device": device}
        if there.type == "cpu":
            named["clock"] = read
        if mode == "infer":
            named["time_batch"] = batch_size
        if steps is not None:
            named["steps"] = steps
        try:
            chosen = tuple(float(factor) for factor in factors.split(","))
        except ValueError:
            raise ValueError(f"--factors {factors!r} must be numbers with commas between them") from None
        taken = {"seed": "--seeds", "speed": "--terms", **{name: f"--{name.removeprefix('time_')}" for name in named}}
        for text in set_ or []:
            name = text.partition("=")[0].strip().replace("-", "_")
            if name in taken:
                raise ValueError(f"--set {text}: compare itself sets {name}; use {taken[name]}")
        data = source.load()
        recipe = _preset(data, preset or (dataset if not source.is_file else None))
        manifold, config = apply_settings(
            recipe.manifold, recipe.train, [*(set_ or []), *(f"{k}={v}" for k, v in named.items())]
        )
        batch = config.batch_size if mode == "train" else batch_size
        timing = Settings(
            *(executor, mode, batch, threads, read),
            repeats=101,
            device="cpu" if there.type == "cpu" else device,
        )
        plan = comparison.Plan(tuple(terms.split(",")), chosen, seeds, timing)
        typer.echo(f"{len(plan.runs())} trainings of {config.steps:,} steps in {out}; {KEEP_QUIET}")
        about = {
            "machine": machine(there),
            "versions": versions(),
            "config": {"steps": config.steps, "dataset": data.name},
        }
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=len(plan.runs()) + 1)
            done = iter(range(len(plan.runs()) + 1))
            results = comparison.compare(
                data, manifold, config, plan, out, source,
                lambda name: bar.update(task, completed=next(done), description=name),
            )  # fmt: skip
            bar.update(task, completed=len(plan.runs()) + 1, description="time against density")
            snapshots = comparison.along(data, manifold, replace(config, budget_us=0.0, profile=""))
        pairs = [
            (a, b) for a, b in (("time", "proxy"), ("time", "none"), ("proxy", "none")) if {a, b} <= set(plan.terms)
        ]
        verdicts = [comparison.judge(results, data.task, a, b) for a, b in pairs]
        title = f"Simulated against measured speed: {Path(dataset).stem}"
        written = compare_report.write(out, title, data.task, about, timing, results, verdicts, snapshots)
        typer.echo(compare_report.describe(about, timing))
        for line in (*compare_report.table(results, data.task), "", *compare_report.along_table(snapshots), ""):
            typer.echo(line)
        for verdict in verdicts:
            for line in compare_report.sentences(verdict):
                typer.echo(line)
        typer.echo(f"written to {out}: {', '.join(path.name for path in written)}")


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Folder of the results; files of an earlier run are replaced.")] = Path(
        "runs/bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points: about 20 s instead of about 2 min.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of the kernels and of torch; 0: all cores.")] = 0,
) -> None:
    """Measure on this machine how time depends on density, edges, depth, batch and threads."""
    with _errors_reported():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from sparse_dnm.engine import device as backend
        from sparse_dnm.report import sweeps as benchmark_report
        from sparse_dnm.study import sweeps as benchmark

        settings = benchmark.Settings.quick(threads) if quick else benchmark.Settings(threads=threads)
        total = benchmark.count_points(settings, backend.check_threads(threads))
        out.mkdir(parents=True, exist_ok=True)
        typer.echo(KEEP_QUIET)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("density", total=total)
            results = benchmark.run(settings, lambda name: bar.update(task, advance=1, description=name))
        written = benchmark_report.write(out, results)
        typer.echo(benchmark_report.caption(results))
        for line in benchmark_report.warnings(results):
            typer.secho(line, fg="yellow", err=True)
        for line in benchmark_report.crossover_lines(results["crossover"]):
            typer.echo(line)
        typer.echo(f"written to {out}: {', '.join(path.name for path in written)}")


@app.command()
def calibrate(
    network: Annotated[str, typer.Argument(help="A preset, or the run directory of a training.")] = "digits",
    executor: Annotated[str, typer.Option(metavar="columns|wavefront", help="How the network is walked.")] = "columns",
    mode: Annotated[str, typer.Option(metavar="train|infer", help="Forward + backward, or forward alone.")] = "train",
    batch_size: Annotated[int, typer.Option(help="Samples of a step.")] = 50,
    threads: Annotated[int, typer.Option(help="Threads of the kernels; 0: all cores.")] = 0,
    clock: Annotated[
        str | None,
        typer.Option(
            metavar="process_time|perf_counter|thread_time",
            help="CPU seconds, wall, or of one thread.",
            show_default="process_time",
        ),
    ] = None,
    probes: Annotated[int, typer.Option(help="Structures to fit; half as many more to judge the fit.")] = 60,
    repeats: Annotated[int, typer.Option(help="Measurements of each.")] = 25,
    seed: Annotated[int, typer.Option(help="Of the structures.")] = 0,
    device: Annotated[
        str,
        typer.Option(metavar="cpu|cuda|cuda:N", help="Where the network is run; on CUDA, its events are the clock."),
    ] = "cpu",
    out: Annotated[Path, typer.Option(help="The profile, JSON; replaced where it is there.")] = Path(
        "runs/profile.json"
    ),
) -> None:
    """Measure what an edge, a neuron and a level cost on this machine."""
    with _errors_reported():
        from dataclasses import asdict

        import numpy as np
        import torch
        from rich.console import Console
        from rich.progress import Progress

        from sparse_dnm.engine import device as backend
        from sparse_dnm.io import write_json
        from sparse_dnm.machine import machine, versions
        from sparse_dnm.timing import calibration

        read, there = _clock_of(clock, device, "process_time"), backend.device_of(device)
        settings = calibration.Settings(
            *(executor, mode, batch_size, threads, read, probes, repeats, seed),
            device=there.type,
        )
        if out.exists() and not out.is_file():
            raise ValueError(f"--out {out} is no file: name one for the profile")
        backend.check_threads(threads)
        model = _network(network)
        out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before the measuring
        _, plan = model.find()
        x = np.random.default_rng(seed).standard_normal((batch_size, model.config.n_inputs)).astype(plan.slope.dtype)
        batch = x if there.type == "cpu" else torch.from_numpy(x).to(there)
        typer.echo(
            f"{network}: {model.topology}; keep the machine quiet (kernels compile first where the cache is cold)"
        )
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("measuring", total=repeats)
            found = calibration.calibrate(
                model.topology, calibration.plans_like(plan), batch, settings, lambda: bar.update(task, advance=1)
            )
        for line in calibration.describe(found):
            typer.secho(line, fg="yellow", err=True) if line.startswith("warning") else typer.echo(line)
        about = {
            "network": network,
            "manifold": asdict(model.config),
            "machine": machine(there),
            "versions": versions(),
        }
        write_json(out, {**found.as_dict(), **about})
        typer.echo(f"written to {out}")


def _clock_of(clock: str | None, device: str, default: str) -> str:
    """The clock of a device: on CUDA its events, on the CPU the one that was asked for."""
    from sparse_dnm.config import CUDA_CLOCK, check_device

    if check_device(device) == "cpu":
        return clock or default
    if clock is not None:
        raise ValueError(f"--clock {clock} is for the CPU: on {device} CUDA's events are the clock; leave it out")
    return CUDA_CLOCK


def _folder(path: Path) -> Path:
    """``path`` as a folder that exists."""
    from sparse_dnm.io import doing

    with doing("create the directory", path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr; what is yielded moves it by one and names what it is at."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda name: bar.update(task, advance=1, description=name)


def _network(name: str) -> DynamicManifold:
    """The network of a run directory, or the untrained one of a preset, seed 0."""
    import torch

    from sparse_dnm.model.manifold import DynamicManifold
    from sparse_dnm.presets import PRESETS

    if name in PRESETS:
        return DynamicManifold(PRESETS[name].manifold, torch.Generator().manual_seed(0))
    if not Path(name).is_dir():
        raise ValueError(f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor the run directory of a training")
    from sparse_dnm.train import checkpoint as files

    manifold, *_ = files.read_config(Path(name))
    model = DynamicManifold(manifold)
    model.load_state_dict(files.load(Path(name) / files.CHECKPOINT).group("model"))
    return model


@contextlib.contextmanager
def _errors_reported() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and an exit code, without a traceback."""
    try:
        yield
    except KeyboardInterrupt as stop:  # training.Interrupted, if a checkpoint was saved
        typer.echo(str(stop) or "aborted", err=True)
        raise typer.Exit(128 + getattr(stop, "signum", signal.SIGINT)) from None
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's MemoryError
            raise
        typer.secho(f"error: {_explain(error)}", fg="red", err=True)
        raise typer.Exit(2) from None


def _explain(error: Exception) -> str:
    """One line: what failed, why, and the way out."""
    if isinstance(error, (MemoryError, RuntimeError)):
        what = str(error).partition("\n")[0] or "the system refused it"
        return f"not enough memory: {what}; use fewer neurons, a smaller batch"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        way_out = WAYS_OUT.get(error.errno, f"correct it, {OTHER_OUT}")
        return f"{where}{error.strerror}; {way_out}"
    return str(error)


def _new_trainer(
    source: DataSource, preset: str | None, settings: list[str], out: Path | None, edges: int | None = None,
    density: float | None = None,
) -> Trainer:  # fmt: skip
    """A trainer for a new run, its configs a preset or derived from the data, with ``settings``."""
    import torch

    from sparse_dnm.config import apply_settings
    from sparse_dnm.data.datasets import NAMES
    from sparse_dnm.model.manifold import DynamicManifold
    from sparse_dnm.timing.calibration import read_profile
    from sparse_dnm.train.checkpoint import check_free, fresh_directory
    from sparse_dnm.train.trainer import Trainer

    if out is not None:
        check_free(out)
    data = source.load()
    chosen = _preset(data, preset or (source.dataset if source.dataset in NAMES else None))
    if density is not None:
        manifold, _ = apply_settings(chosen.manifold, chosen.growing(1), settings)
        edges = max(1, round(density * manifold.possible_edges))
    recipe = chosen.train if edges is None else chosen.growing(edges)
    manifold, config = apply_settings(chosen.manifold, recipe, settings)
    if config.profile:
        read_profile(Path(config.profile))  # a bad one ends here, before there is a run directory
    generator = torch.Generator().manual_seed(config.seed)
    model = DynamicManifold(manifold, generator, executor=config.executor, threads=config.threads)
    trainer = Trainer(model, data, config, source=source)
    trainer.out = out or fresh_directory(Path("runs"), Path(source.dataset).stem, config.seed)
    return trainer


def _preset(data: Dataset, preset: str | None) -> Preset:
    from sparse_dnm.config import ManifoldConfig, check_choice
    from sparse_dnm.presets import PRESETS, Preset

    if preset is None:
        return Preset(ManifoldConfig.for_data(data.n_inputs, data.n_outputs, data.period))
    check_choice("preset", preset, tuple(PRESETS))
    chosen = PRESETS[preset]
    made_for = chosen.manifold.n_inputs, chosen.manifold.n_outputs
    if made_for != (data.n_inputs, data.n_outputs):
        raise ValueError(
            f"preset {preset} is made for {made_for[0]} inputs and {made_for[1]} outputs, but {data.name} has "
            f"{data.n_inputs} and {data.n_outputs}; choose another preset, or none"
        )
    return chosen


def _resumed_trainer(run: Path, data_dir: Path | None, *changes: Any) -> Trainer:
    from sparse_dnm.train.checkpoint import read_config
    from sparse_dnm.train.trainer import Trainer

    source = read_config(run)[2]
    if source is None:
        raise ValueError(f"{run} was trained from Python and does not name its data; use Trainer.resume there")
    if data_dir is not None:
        source = source.moved(data_dir)
    elif source.is_file and not Path(source.dataset).is_file():
        raise ValueError(f"the data {source.dataset} are not there any more; name their folder with --data-dir")
    trainer = Trainer.resume(run, source.load(), *changes)
    trainer.source = source
    return trainer


def _train(build: Callable[[], Trainer], keep: bool = True, tensorboard: bool = False) -> None:
    """Build a trainer and run it, with a live display on a terminal and plain lines elsewhere.

    A run directory left empty by a failure is removed unless ``keep``.
    """
    from rich.console import Console

    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal
    with console.status("reading the data, building the network") if live else contextlib.nullcontext():
        trainer = build()
    if trainer.finished:
        typer.echo(f"{trainer.out} is finished at step {trainer.step:,}; a larger --steps extends it")
        return
    typer.echo(f"{trainer.data.name}: {_sizes(trainer)}")
    typer.echo(f"run directory: {trainer.out}")
    shown = 0

    def notes() -> None:
        """What the calibration and the trim said since the last time."""
        nonlocal shown
        for line in trainer.notes[shown:]:
            typer.secho(line, fg="yellow" if line.startswith("warning") else None)
        shown = len(trainer.notes)

    try:
        with (
            _live_lines(console, trainer) if live else _plain_lines(trainer) as on_log,
            _log(trainer, tensorboard) as log,
        ):

            def tell(record: Record) -> None:
                notes()
                on_log(record)
                if log is not None:
                    log.on_log(record)

            summary = trainer.run(tell, None if log is None else log.on_snapshot)
    except BaseException:
        if not keep and trainer.out is not None:
            with contextlib.suppress(OSError):  # it holds a checkpoint, or was never made
                trainer.out.rmdir()
        raise
    notes()
    console.print(_table(summary))
    typer.echo(f"run directory: {trainer.out}")


@contextlib.contextmanager
def _log(trainer: Trainer, wanted: bool) -> Iterator[TensorBoardLog | None]:
    """TensorBoard's files in the run directory, if they are wanted."""
    if not wanted:
        yield None
        return
    from sparse_dnm.report.tensorboard import TensorBoardLog

    assert trainer.out is not None
    with TensorBoardLog(trainer.out, trainer.model.config, trainer.step) as log:
        yield log


def _sizes(trainer: Trainer) -> str:
    data, config = trainer.data, trainer.model.config
    return (
        f"{data.task}, {len(data.x_train):,} training and {len(data.x_test):,} test samples; "
        f"{config.n_neurons:,} neurons ({config.n_inputs:,} inputs, {config.n_hidden:,} hidden, "
        f"{config.n_outputs:,} outputs)"
    )


@contextlib.contextmanager
def _plain_lines(trainer: Trainer) -> Iterator[Callable[[Record], None]]:
    """One line of text per line of metrics."""
    steps = trainer.config.steps
    typer.echo(COMPILING)
    yield lambda record: print(f"step {record['step']:,}/{steps:,}  {_figures(record)}", flush=True)


@contextlib.contextmanager
def _live_lines(console: Console, trainer: Trainer) -> Iterator[Callable[[Record], None]]:
    """A bar, and the last line of metrics below it."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    start, steps = trainer.step, trainer.config.steps
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("training", total=steps, completed=start)
    with Live(Group(bar, COMPILING), console=console) as live:

        def show(record: Record) -> None:
            bar.update(task, completed=record["step"])
            lines = [_figures(record)] if record["step"] > start else [_figures(record), COMPILING]
            live.update(Group(bar, *lines))

        yield show


def _figures(record: Record) -> str:
    """A line of metrics as text; the terms of the loss are those before their coefficients."""
    terms = [f"{name} {record[name]:.4g}" for name in ("loss", "objective", "flow", "speed")]
    if "measured_seconds" in record:
        terms[-1] += f" ({1e6 * record['measured_seconds']:.4g} µs)"
    parts = [*terms, *(_figure(name, record[name]) for name in FIGURES if name in record)]
    parts += [f"edges {record['edges']:,}", f"density {record['density']:.2%}", f"depth {record['depth']}"]
    if record["step_seconds"] is not None:
        parts.append(f"{1e3 * record['step_seconds']:.3f} ms/step")
    return "  ".join(parts)


def _figure(name: str, value: float) -> str:
    return f"{name.replace('_', ' ')} {value:{'.2%' if name.endswith('accuracy') else '.4g'}}"


def _table(summary: Record) -> Table:
    from rich.table import Table

    table = Table(title="summary", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in ("test_accuracy", "test_mse"):
        if name in summary:
            table.add_row(name, f"{summary[name]:.6g}")
    table.add_row("edges", f"{summary['edges']:,} (density {summary['density']:.2%})")
    table.add_row("depth", f"{summary['depth']}")
    table.add_row("live neurons", f"{summary['live']:,}")
    table.add_row("steps", f"{summary['steps']:,}")
    table.add_row("training", f"{summary['train_seconds']:.1f} s ({summary['clock']})")
    if summary["step_seconds"] is not None:
        table.add_row("step", f"{1e3 * summary['step_seconds']:.3f} ms ({summary['clock']}, median)")
    if "measured" in summary:
        how = summary["measured"]
        what = "forward + backward" if how["mode"] == "train" else "forward"
        about = f"{what}, batch {how['batch']}, {how['executor']}, {how['threads']} threads, {how['clock']}"
        table.add_row("measured", f"{1e6 * summary['measured_seconds']:.4g} µs ({about})")
    if "fresh_seconds" in summary:
        table.add_row(
            "budget", f"{1e6 * summary['fresh_seconds']:.4g} of {summary['budget_us']:g} µs, in fresh processes"
        )
    where = f"{summary['threads']} threads" if summary["device"] == "cpu" else summary["device"]
    table.add_row("executor", f"{summary['executor']}; {where}")
    gpu = f", {summary['machine']['gpu']}" if "gpu" in summary["machine"] else ""
    table.add_row("machine", f"{summary['machine']['processor']}, {summary['machine']['cores']} cores{gpu}")
    return table


if __name__ == "__main__":
    main()
