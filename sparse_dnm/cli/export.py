"""The command that writes a trained network in a form that runs without Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparse_dnm.cli import options as o
from sparse_dnm.cli.console import errors_reported
from sparse_dnm.cli.streams import echo

if TYPE_CHECKING:
    from sparse_dnm.data.datasets import Dataset
    from sparse_dnm.export import CProgram
    from sparse_dnm.predictor import Predictor

FORMATS = ("c", "onnx", "npz", "torch", "torch-plain")
MEANINGS = (
    "c: a C99 program; onnx: an ONNX model; npz: arrays of numpy; torch: a torch.export program with an operator of "
    "this package; torch-plain: of torch's own operators."
)


def export(
    run: Annotated[Path, o.RUN],
    format: Annotated[str, typer.Option("--format", metavar="|".join(FORMATS), help=MEANINGS)] = "c",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the files; default: the folder export-FORMAT in the run directory.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the files; of NAME.c and NAME.h also of what they define.")] = "model",
    dtype: Annotated[
        str, typer.Option(metavar="float32|int8", help="Numbers that the program computes with.")
    ] = "float32",
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--preprocessing/--raw",
            help="Whether it takes raw features and gives a class or numbers in the target's own units.",
        ),
    ] = False,
    samples: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Samples that int8 takes ranges from; default: the run's training data."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the run's data, where they have moved.")] = None,
) -> None:
    """Write a trained network as a program that needs no Python; see docs/ship.md."""
    with errors_reported():
        from sparse_dnm.config import check_choice
        from sparse_dnm.export.c_recurrent import check_recurrent
        from sparse_dnm.lowering.int8 import calibration
        from sparse_dnm.predictor import SequencePredictor, read

        check_choice("format", format, FORMATS)
        predictor = read(run, data_dir=data_dir)
        for note in predictor.notes:
            echo(f"note: {note}", err=True)
        folder = out or run / f"export-{format}"
        if format == "c" and isinstance(predictor, SequencePredictor):
            check_recurrent(dtype)
        if format != "c":
            if samples is not None:
                raise ValueError(f"--samples is for --format c --dtype int8, and this is {format}: leave it out")
            _write_file(predictor, folder, name, format, dtype, preprocessing)
            return
        inputs = None if samples is None else predictor.inputs(samples).numpy()
        data = _data_of(run, data_dir, needed=inputs is None) if dtype == "int8" else None
        if data is not None and inputs is None:
            inputs = calibration(data.x_train)
        program = _write_c(predictor, folder, name, dtype, preprocessing, inputs, _compiler(run))
        if data is not None:
            echo(_loss(program, predictor, data))


def _compiler(run: Path) -> str | None:
    """The compiler of the target that a run was trained for, if it is here."""
    import shlex
    import shutil

    from sparse_dnm.train.checkpoint import read_config

    train = read_config(run)[1]
    if not (train.on_target or train.budget_bytes) or shutil.which(shlex.split(train.target_cc)[0]) is None:
        return None
    return train.target_cc


def _write_c(
    predictor: Predictor, folder: Path, name: str, dtype: str, preprocessing: bool, inputs: Any, cc: str | None
) -> CProgram:
    from sparse_dnm.export import code_bytes, to_c

    program = to_c(predictor, name=name, dtype=dtype, preprocessing=preprocessing, samples=inputs)
    written = program.write(folder)
    echo(f"written to {written[0].parent}: {', '.join(path.name for path in written)}")
    ram = program.ram_bytes + program.stack_bytes
    echo(f"constants: {program.constant_bytes:,} bytes of flash; cells: {ram:,} bytes of RAM")
    if program.state_bytes:
        echo(f"state: {program.state_bytes:,} bytes of RAM for each sequence that runs")
    compiled = code_bytes(program, cc)
    if compiled is not None:
        command, n_bytes = compiled
        echo(f"code: {n_bytes:,} bytes of flash by `{command}` on this machine")
    return program


def _write_file(predictor: Predictor, folder: Path, name: str, form: str, dtype: str, preprocessing: bool) -> None:
    from sparse_dnm.export.files import write_file

    if dtype != "float32":
        raise ValueError(
            f"--dtype {dtype} is for --format c; the numbers of {form} are those of the network: leave it out"
        )
    path = write_file(folder, name, predictor, form, preprocessing)
    echo(f"written to {path}: {path.stat().st_size:,} bytes")


def _data_of(run: Path, data_dir: Path | None, needed: bool) -> Dataset | None:
    """The data of a run.  Raises ValueError if they are not there, and ``needed`` or named; else None, after a note."""
    from sparse_dnm.train import checkpoint

    _, _, source, description = checkpoint.read_config(run)
    try:
        if source is None:
            raise ValueError("the run was trained from Python")
        data = (source if data_dir is None else source.moved(data_dir)).load()
        checkpoint.check_same_data(run, description, data)
    except (ValueError, OSError) as error:
        moved = "" if source is None else "; where the data have moved, name their folder (or the file) with --data-dir"
        if needed or data_dir is not None:
            raise ValueError(
                f"--dtype int8 takes the ranges of its numbers from samples: {error}{moved}, or give a file of samples "
                "with --samples"
            ) from None
        echo(f"note: what int8 loses is not measured: {error}{moved}", err=True)
        return None
    return data


def _loss(program: CProgram, predictor: Predictor, data: Dataset) -> str:
    """What int8 costs on the test samples, in words."""
    import torch

    y = torch.from_numpy(program.outputs(data.x_test.numpy()))
    reference = torch.cat(list(predictor.chunks(data.x_test.to(predictor.model.bias.dtype))))
    if predictor.classes is not None:
        shares = [100 * float((out.argmax(1) == data.y_test).double().mean()) for out in (y, reference)]
        lost = shares[1] - shares[0]
        said = f"{abs(lost):.2f} points {'lost' if lost >= 0 else 'gained'}"
        return f"test accuracy: {shares[0]:.2f}% in int8, {shares[1]:.2f}% before: {said}"
    target = data.y_test.double().reshape(len(y), -1)
    errors = [float((out.double() - target).square().mean().sqrt()) for out in (y, reference)]
    return f"test error (RMS, in deviations of the target): {errors[0]:.4g} in int8, {errors[1]:.4g} before"
