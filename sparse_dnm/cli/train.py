"""Commands that train a network and evaluate it."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparse_dnm.cli import options as o
from sparse_dnm.cli.console import errors_reported
from sparse_dnm.cli.streams import echo

if TYPE_CHECKING:
    from sparse_dnm.train.trainer import Trainer


@dataclass(frozen=True)
class TrainOptions(o.TargetOptions, o.ReadingOptions):
    """The options of train; None means not given."""

    dataset: Annotated[str | None, typer.Argument(help=o.DATASETS, show_default="digits")] = None
    steps: Annotated[int | None, typer.Option(help="Updates; with --resume the new total."), o.SETTING, o.RESUMABLE] = (
        None
    )
    batch_size: Annotated[
        int | None, typer.Option(help="Samples of a batch; 0: all of them, in their order."), o.SETTING
    ] = None
    class_weight: Annotated[
        str | None,
        typer.Option(metavar="none|balanced", help="balanced: each class weighs as much, however few its samples."),
        o.SETTING,
    ] = None
    neuron: Annotated[
        str | None,
        typer.Option(metavar=o.NEURONS, help="Of the hidden neurons, for sequences: whether they have a state, which."),
        o.SETTING,
    ] = None
    n_memory: Annotated[
        int | None,
        typer.Option(help="For sequences: outputs that are inputs of the next time step; --set n_neurons counts both."),
        o.SETTING,
    ] = None
    tbptt: Annotated[
        int | None,
        typer.Option(
            help="Of sequences: no gradient goes back over a time step that is a multiple of it; 0: through all."
        ),
        o.SETTING,
    ] = None
    lr: Annotated[float | None, typer.Option(help="Adam's step size at the start."), o.SETTING] = None
    seed: Annotated[int | None, typer.Option(help="Of initial values, data order and omega."), o.SETTING] = None
    speed: Annotated[
        str | None,
        typer.Option(
            metavar=o.SPEEDS, help="Speed term of the loss: a count of edges, or seconds measured on this machine."
        ),
        o.SETTING,
    ] = None
    clock: Annotated[
        str | None,
        typer.Option(
            metavar=o.TRAIN_CLOCKS,
            help="What --speed time reads on the CPU; target: the clock of a machine that runs programs in C.",
        ),
        o.SETTING,
    ] = None
    edges: Annotated[
        int | None, typer.Option(help="Edges to end with; edges then grow as well, and training takes more steps.")
    ] = None
    density: Annotated[float | None, typer.Option(help="The same, as a share of the possible edges, in 0 .. 1.")] = None
    budget_us: Annotated[
        float | None, typer.Option(help="µs that a step of the trained network may take, at most."), o.SETTING
    ] = None
    budget_bytes: Annotated[
        int | None,
        typer.Option(help="Bytes of flash that the network may take as a program in C, at most; see --cc."),
        o.SETTING,
    ] = None
    dtype: Annotated[
        str | None, typer.Option(metavar="float32|int8", help="Of the program that --budget-bytes is about.")
    ] = None
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Points of validation accuracy (or R²) that the cut to --budget-us may cost, else exit 3; default 2."
        ),
        o.SETTING,
    ] = None
    early_stopping: Annotated[
        bool | None,
        typer.Option(
            "--early-stopping/--no-early-stopping",
            help="Hold out samples, keep the best parameters on them, and end when they get no better.",
        ),
        o.SETTING,
    ] = None
    patience: Annotated[
        int | None, typer.Option(help="Evaluations without improvement before an early stop; default 10."), o.SETTING
    ] = None
    validation: Annotated[
        float | None,
        typer.Option(help="Share of the training samples held out for --early-stopping and --budget-us; default 0.1."),
        o.SETTING,
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option(help="Train for the machine, or the target, that this profile (of calibrate) comes from."),
    ] = None
    executor: Annotated[
        str | None,
        typer.Option(
            metavar=o.EXECUTORS,
            help="How the kernels run the network; torch-sparse: that package runs it, without these kernels.",
        ),
        o.SETTING,
        o.RESUMABLE,
    ] = None
    threads: Annotated[int | None, o.THREADS, o.SETTING, o.RESUMABLE] = None
    device: Annotated[
        str | None,
        typer.Option(metavar=o.DEVICES, help="Where the network is trained; default: cpu."),
        o.SETTING,
        o.RESUMABLE,
    ] = None
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of MNIST's IDX files; default $SPARSE_DNM_DATA. With --resume: of the data, where moved."
        ),
        o.RESUMABLE,
    ] = None
    out: Annotated[Path | None, typer.Option(help="Run directory to create; default runs/DATASET-SEED-<n>.")] = None
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue this run to the same bits as an uninterrupted one. A larger --steps extends it "
            "(a cosine schedule is then stretched to the new total)."
        ),
    ] = None
    preset: Annotated[str | None, o.PRESET] = None
    snapshot_every: Annotated[
        int | None,
        typer.Option(help="Steps between snapshots of the structure; default: a hundredth of all steps."),
        o.SETTING,
        o.RESUMABLE,
    ] = None
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write TensorBoard's files, too, into the run directory."),
        o.RESUMABLE,
    ] = False
    set_: Annotated[list[str] | None, o.SET] = None

    def settings(self) -> list[str]:
        """Fields of the configs as KEY=VALUE; options come after --set and override it."""
        named = o.given(self, o.SETTING) | self.of_target()
        if self.dtype is not None:
            named["budget_dtype"] = self.dtype
        if self.profile is not None:
            named["profile"] = self.profile.resolve()
        if (self.budget_us is not None or self.clock == "target") and self.speed is None:
            named = {"speed": "time", **named}  # presets of sequences have another
        own = self.set_ or []
        if any(text.partition("=")[0].strip() == "speed" for text in own) and self.speed is None:
            named.pop("speed", None)
        return [*own, *(f"{name}={value}" for name, value in named.items())]


@o.takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train a network and write a run directory."""
    with errors_reported():
        from sparse_dnm.cli.display import run

        _check_values(options)
        _check_goal(options)
        if options.resume is None:
            found = options.out is not None and options.out.exists()
            run(partial(_new_trainer, options), keep=found, tensorboard=options.tensorboard)
            return
        _check_resume(options)
        _check_data_there(options.resume, options.data_dir)
        changes = o.given(options, o.SETTING, o.RESUMABLE) | options.of_target()
        run(partial(_resumed_trainer, options.resume, options.data_dir, **changes), tensorboard=options.tensorboard)


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory of a training.")],
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data where moved, or the file.")] = None,
    device: Annotated[str, typer.Option(metavar=o.DEVICES, help="Where the network is run.")] = "cpu",
) -> None:
    """Evaluate a run's checkpoint on its test set and compare with its summary."""
    with errors_reported():
        from sparse_dnm.io import read_json
        from sparse_dnm.train import trainer as training
        from sparse_dnm.train.checkpoint import SUMMARY

        _check_data_there(run, data_dir, f"; sparse-dnm predict {shlex.quote(str(run))} NEW needs no data")
        trainer = _resumed_trainer(run, data_dir, threads=0, device=device)  # all threads of this machine
        ((name, value),) = training.evaluate(trainer.model, trainer.data).items()
        echo(f"{name} {value:.6g} at step {trainer.model_step} of {run}")
        if not (run / SUMMARY).exists():
            echo(f"{run} has no {SUMMARY}: its training is not finished, nothing to compare with")
            return
        summary = read_json(run / SUMMARY)
        promised, trained_on = summary.get(name), summary.get("device", "cpu")
        tolerance = 1e-6 if trained_on == str(trainer.model.alpha.device) else 1e-3  # bits differ between devices
        if isinstance(promised, float) and math.isclose(value, promised, rel_tol=tolerance):
            echo(f"reproduced: {SUMMARY} says {promised:.6g}")
            return
        echo(f"differs: {SUMMARY} says {promised!r}", err=True)
        raise typer.Exit(1)


def _check_values(options: TrainOptions) -> None:
    """Raise ValueError for a value that no training accepts, in the spelling of the command line."""
    from sparse_dnm.target import Target

    named = {name: getattr(options, name) for name in ("cc", "copy", "run", "timeout")}
    Target(**{name: value for name, value in named.items() if value is not None})
    if options.budget_bytes is not None and options.budget_bytes < 1:
        raise ValueError(f"--budget-bytes {options.budget_bytes} must be >= 1; leave it out for no budget")
    budget, every, edges, density = options.budget_us, options.snapshot_every, options.edges, options.density
    if budget is not None and not budget > 0:
        raise ValueError(f"--budget-us {budget:g} must be > 0 µs; leave it out for no budget")
    if options.max_loss is not None and budget is None:
        raise ValueError(f"--max-loss {options.max_loss:g} is about the cut to a budget: give --budget-us as well")
    if options.max_loss is not None and not 0 <= options.max_loss <= 100:
        raise ValueError(f"--max-loss {options.max_loss:g} must be in 0 .. 100 points")
    if every is not None and every < 1:
        raise ValueError(f"--snapshot-every {every} must be >= 1; more than --steps keeps the first and the last only")
    if options.device is not None:
        o.clock_of(options.clock, options.device, "")
    if edges is not None and edges < 1:
        raise ValueError(f"--edges {edges} must be >= 1")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"--density {density:g} must be a share > 0 and <= 1")


def _check_goal(options: TrainOptions) -> None:
    """Raise ValueError if more than one option says what the network must end with."""
    goals = {"--edges": options.edges, "--density": options.density, "--budget-us": options.budget_us}
    goals["--budget-bytes"] = options.budget_bytes
    chosen = [name for name, value in goals.items() if value is not None]
    chosen += [f"--set {text}" for text in options.set_ or [] if text.startswith("target_edges")]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} say what the network is to end with: give one of them")


def _check_resume(options: TrainOptions) -> None:
    """Raise ValueError naming the options that cannot be used with --resume, and those that can."""
    free = o.with_marks(TrainOptions, o.RESUMABLE)
    fixed = [o.spelled(TrainOptions, name) for name in o.given(options) if name not in (*free, "resume")]
    if fixed:
        *names, last = (o.spelled(TrainOptions, name) for name in free)
        raise ValueError(
            f"--resume continues {options.resume} as it was begun: leave out {', '.join(fixed)}; "
            f"only {', '.join(names)} and {last} may go with it"
        )


def _new_trainer(options: TrainOptions) -> Trainer:
    """A trainer for a new run; its configs are a preset or derived from the data, changed by the options."""
    import torch

    from sparse_dnm.config import apply_settings
    from sparse_dnm.model.manifold import DynamicManifold
    from sparse_dnm.presets import searching
    from sparse_dnm.timing.calibration import read_profile
    from sparse_dnm.train.checkpoint import check_free, fresh_directory
    from sparse_dnm.train.trainer import Trainer

    source = options.source(options.dataset or "digits", options.data_dir)
    if options.out is not None:
        check_free(options.out)
    data = source.load()
    preset, settings, edges = o.preset_of(source, data, options.preset), options.settings(), options.edges
    if options.density is not None:
        manifold, _ = apply_settings(preset.manifold, preset.growing(1), settings)
        edges = max(1, round(options.density * manifold.possible_edges))
    chosen = preset.train if edges is None else preset.growing(edges)
    if options.budget_bytes is not None:
        chosen = replace(preset.growing(1), target_edges=0)
    manifold, config = apply_settings(preset.manifold, chosen, settings)
    config = searching(manifold, config, settings)
    if config.profile:
        read_profile(Path(config.profile))  # a bad one must fail before the run directory is made
    generator = torch.Generator().manual_seed(config.seed)
    model = DynamicManifold(manifold, generator, executor=config.executor, threads=config.threads)
    trainer = Trainer(model, data, config, source=source)
    trainer.out = options.out or fresh_directory(Path("runs"), Path(source.dataset).stem, config.seed)
    return trainer


def _check_data_there(run: Path, data_dir: Path | None, hint: str = "") -> None:
    """Raise ValueError if the data of a run are not where they were, and no ``data_dir`` says where they are now."""
    from sparse_dnm.train.checkpoint import read_config

    source = read_config(run)[2]
    if source is None:
        raise ValueError(
            f"{run} was trained from Python and does not name its data; use Trainer.resume from Python{hint}"
        )
    if data_dir is not None:
        return
    if source.is_file and not Path(source.dataset).is_file():
        raise ValueError(
            f"the data {source.dataset} do not exist any more; name their folder with --data-dir, or the file where it "
            f"has another name{hint}"
        )
    if source.data_dir is not None and not source.is_file and not Path(source.data_dir).is_dir():
        raise ValueError(
            f"the folder {source.data_dir} of the data {source.dataset} does not exist any more; name the new one with "
            f"--data-dir{hint}"
        )


def _resumed_trainer(run: Path, data_dir: Path | None, **changes: Any) -> Trainer:
    """The trainer of run ``run``, with changed fields of its config, and its data in ``data_dir`` if given."""
    from sparse_dnm.train.checkpoint import read_config
    from sparse_dnm.train.trainer import Trainer

    source = read_config(run)[2]
    assert source is not None  # it was checked
    if data_dir is not None:
        source = source.moved(data_dir)
    trainer = Trainer.resume(run, source.load(), **changes)
    trainer.source = source
    return trainer
