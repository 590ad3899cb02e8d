"""The command that measures what parts of a network cost: with the kernels here, or as a program in C on a target."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparse_dnm.cli import options as o
from sparse_dnm.cli.console import KEEP_QUIET, errors_reported, progress
from sparse_dnm.cli.streams import echo

if TYPE_CHECKING:
    from sparse_dnm.engine.recurrence import Unrolling
    from sparse_dnm.model.manifold import DynamicManifold
    from sparse_dnm.timing.probes import Settings

_target = partial(typer.Option, rich_help_panel="A program in C")


@dataclass(frozen=True)
class CalibrateOptions:
    """The options of calibrate."""

    network: Annotated[str, typer.Argument(help="A preset, or the run directory of a training.")] = "digits"
    executor: Annotated[str, o.TIMED_EXECUTOR] = "columns"
    mode: Annotated[str, typer.Option(metavar=o.MODES, help="Forward + backward, or forward alone.")] = "train"
    batch_size: Annotated[int, typer.Option(help="Samples of a step.")] = 50
    time_steps: Annotated[
        int, typer.Option(help="Of the sequences of a recurrent network.", show_default="as in its data")
    ] = 0
    threads: Annotated[int, o.THREADS] = 0
    clock: Annotated[
        str | None,
        typer.Option(metavar=o.CLOCKS, help="CPU seconds, wall, or of one thread.", show_default="process_time"),
    ] = None
    probes: Annotated[int, typer.Option(help="Structures to fit; half as many more to judge the fit.")] = 60
    repeats: Annotated[int, typer.Option(help="Measurements of each.")] = 25
    seed: Annotated[int, typer.Option(help="Of the structures.")] = 0
    device: Annotated[
        str,
        typer.Option(metavar=o.DEVICES, help="Where the network is run; on CUDA, its events are the clock."),
    ] = "cpu"
    target: Annotated[
        str | None, _target(metavar="c", help="Measure programs in C instead, one sample at a time, forward.")
    ] = None
    cc: Annotated[str, o.CC] = "cc -O3 -march=native"
    copy: Annotated[str, o.COPY] = ""
    run: Annotated[str, o.RUNS] = "{program}"
    timeout: Annotated[float, o.TIMEOUT] = 600.0
    out: Annotated[Path, typer.Option(help="The profile, JSON; an existing file is replaced.")] = Path(
        "runs/profile.json"
    )


@o.takes(CalibrateOptions)
def calibrate(options: CalibrateOptions) -> None:
    """Measure what an edge, a neuron and a level cost on this machine."""
    with errors_reported():
        from sparse_dnm.engine import device as backend
        from sparse_dnm.timing.probes import Settings

        if options.target is not None:
            _calibrate_target(options)
            return
        _refuse(options, TARGET_ALONE, "is about programs in C: add --target c, or leave it out")
        clock = o.clock_of(options.clock, options.device, "process_time")
        out, target = options.out, backend.device_of(options.device)
        settings = Settings(
            *(options.executor, options.mode, options.batch_size, options.threads),
            clock,
            *(options.probes, options.repeats, options.seed),
            device=target.type,
        )
        backend.check_threads(options.threads)
        model = _to_calibrate(options)
        settings = dataclasses.replace(settings, unrolling=_unrolling(options, model))
        echo(f"{options.network}: {model.topology}; {KEEP_QUIET}")
        found = _calibration(model, settings, options.device)
        _write_profile(out, found, _about(options.network, model, options.device))


def _unrolling(options: CalibrateOptions, model: DynamicManifold) -> Unrolling | None:
    """Through how many time steps a recurrent network is run: those of its data, unless an option says so."""
    from sparse_dnm import data
    from sparse_dnm.data.sequences import TASKS
    from sparse_dnm.model.recurrent import unrolling_of
    from sparse_dnm.presets import PRESETS
    from sparse_dnm.train import checkpoint as files

    steps, network = options.time_steps, options.network
    if not model.recurrent:
        return unrolling_of(model.config, steps)
    if network in PRESETS:
        train, source = PRESETS[network].train, None
    else:
        _, train, source, *_ = files.read_config(Path(network))
    if steps == 0 and source is None and network not in TASKS:
        raise ValueError(f"{network} does not name its data: give the time steps of its sequences by --time-steps")
    if steps == 0:
        steps = (data.load(network) if source is None else source.load()).x_train.shape[1]
    return unrolling_of(model.config, steps, train.tbptt, train.recompute_every)


def _to_calibrate(options: CalibrateOptions) -> DynamicManifold:
    """The network, when the profile can be written."""
    out = options.out
    if out.exists() and not out.is_file():
        raise ValueError(f"--out {out} is no file: name one for the profile")
    model = _network(options.network)
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the measuring if it cannot be written
    return model


def _write_profile(out: Path, found: Any, about: dict[str, Any]) -> None:
    from sparse_dnm.io import sealed, write_json
    from sparse_dnm.timing import calibration

    write_json(out, sealed({**found.as_dict(), **about}))
    for line in calibration.describe(found):
        echo(line, fg="yellow", err=True) if line.startswith("warning") else echo(line)
    echo(f"written to {out}")


TARGET_ALONE = ("cc", "copy", "run", "timeout")  # options of calibrate that need --target
HERE_ALONE = ("executor", "mode", "batch_size", "time_steps", "threads", "clock", "device")  # and those that it refuses


def _refuse(options: CalibrateOptions, names: tuple[str, ...], why: str) -> None:
    """Raise ValueError if one of these options was given, that is, differs from its default."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in names and value != field.default:
            raise ValueError(f"{o.spelled(CalibrateOptions, field.name)}={value} {why}")


def _calibrate_target(options: CalibrateOptions) -> None:
    from sparse_dnm.config import check_choice
    from sparse_dnm.target import Target, calibrate_target
    from sparse_dnm.timing.probes import ON_TARGET

    check_choice("--target", str(options.target), (ON_TARGET,))
    _refuse(options, HERE_ALONE, "does not go with --target c, whose programs run one sample, forward: leave it out")
    target = Target(options.cc, options.copy, options.run, options.timeout)
    model = _to_calibrate(options)
    where = "this machine" if target.here else f"{options.run}"
    echo(f"{options.network}: {model.topology}; in C, compiled by {options.cc}, on {where}")
    made = options.probes + options.probes // 2
    with contextlib.ExitStack() as bars:
        lay_out = bars.enter_context(progress("laying out", made))
        compiling: list[Any] = []

        def compiled(total: int) -> None:
            if not compiling:
                compiling.append(bars.enter_context(progress("compiling", total)))
            compiling[0]("compiling")

        found, measured, own = calibrate_target(
            model, target, options.probes, options.repeats, options.seed, lambda: lay_out("laying out"), compiled
        )
    about = _about(options.network, model, "cpu")
    commands = {name: getattr(options, name) for name in TARGET_ALONE}
    _write_profile(options.out, found, {**about, "target": commands})
    seconds, expected = measured.microseconds("network"), 1e6 * float(found.model.seconds(own))
    echo(f"{options.network} in C: {seconds:.4g} µs a sample, by the prices {expected:.4g} µs")


def _calibration(model: DynamicManifold, settings: Settings, device: str) -> Any:
    """Calibrate on probes derived from ``model``, with a progress bar."""
    from sparse_dnm.engine import device as backend
    from sparse_dnm.engine.autotune import Executor
    from sparse_dnm.timing.calibration import calibrate
    from sparse_dnm.timing.probes import Bench

    evaluation = model.to(backend.device_of(device)).find()
    bench = Bench(evaluation, settings.mode, settings.batch, settings.clock, settings.seed, settings.unrolling)
    engine = bench.engine(Executor(settings.executor, settings.threads))
    with progress("measuring", settings.repeats) as advance:
        return calibrate(evaluation.structure, engine, bench.x, settings, lambda: advance("measuring"))


def _about(network: str, model: DynamicManifold, device: str) -> dict[str, Any]:
    from dataclasses import asdict

    from sparse_dnm.engine import device as backend
    from sparse_dnm.machine import machine, versions

    about = {"network": network, "manifold": asdict(model.config)}
    return {**about, "machine": machine(backend.device_of(device)), "versions": versions()}


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
