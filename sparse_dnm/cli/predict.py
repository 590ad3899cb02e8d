"""The command that predicts for new rows."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparse_dnm.cli import options as o
from sparse_dnm.cli.console import errors_reported, progress
from sparse_dnm.cli.streams import echo, harmless

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sparse_dnm.predictor import Predictor
    from sparse_dnm.sequence_predictor import SequencePredictor

FORMATS = (".csv", ".npz", ".parquet")
MANY = 50_000  # rows, for which there is a progress bar
ROWS = 1024  # at a time: what `| head` needs is there soon


def predict(
    run: Annotated[Path, o.RUN],
    new: Annotated[str, typer.Argument(help="New samples: a table, a .npz or .npy, or - for a .csv from stdin.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File of predictions, .csv, .npz or .parquet, replaced if it exists; default (or -): stdout."
        ),
    ] = None,
    proba: Annotated[bool, typer.Option("--proba", help="The probability of each class as well.")] = False,
    header: Annotated[
        str | None,
        typer.Option(metavar="none|first", help="Whether the first line holds names; default: as in the training."),
    ] = None,
    device: Annotated[str, typer.Option(metavar=o.DEVICES, help="Where the network is run.")] = "cpu",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data, needed once for a run of an earlier version.")
    ] = None,
) -> None:
    """Predict for new samples by a trained network; nothing but its run directory is needed."""
    with errors_reported():
        if str(out) == "-":
            out = None
        if out is not None:
            _check_out(out, new)
        from sparse_dnm.data.new_samples import label_names, read_lengths
        from sparse_dnm.data.scores import score_note
        from sparse_dnm.predictor import read
        from sparse_dnm.sequence_predictor import SequencePredictor

        predictor = read(run, data_dir=data_dir, device=device)
        for note in predictor.notes:
            echo(f"note: {note}", err=True)
        if proba:
            predictor.check_has_probabilities()
        predictor.header = header or predictor.header
        samples = _read(predictor, new)
        _say_ignored(predictor, samples)
        _say_positions(predictor, samples)
        where, names, what = "standard input" if new == "-" else new, None, "row"
        if isinstance(predictor, SequencePredictor):
            outputs, names, samples = _of_sequences(predictor, samples, read_lengths(new), where)
            for name in label_names(new):
                echo(f"note: not read, as it is predicted: the array {name!r}", err=True)
            what = "time step" if predictor.steps.per_step else "sequence"
            if out is None:
                _show(_csv(_columns(predictor, outputs, proba, names)))
        else:
            inputs = _with_notes(predictor, samples, where)
            outputs = _print(predictor, inputs, proba) if out is None else _collected(predictor, inputs)
        if out is not None:
            _write(out, predictor, outputs, proba, names)
            echo(f"written to {out}: predictions for {len(outputs):,} {what}s")
        score = score_note(predictor.preprocessing, samples, predictor.preprocessing.predictions(outputs))
        if score:
            echo(f"note: {score}", err=True)


def _check_out(out: Path, new: str) -> None:
    """Raise ValueError if ``out`` cannot be the file of the predictions."""
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {out} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if out.exists() and not out.is_file():
        raise ValueError(f"--out {out} is no file: name one for the predictions")
    if out.exists() and new != "-" and Path(new).exists() and out.samefile(new):
        raise ValueError(f"--out {out} would replace the file that is read: name another one")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist; make it, or choose another --out")


def _read(predictor: Predictor, new: str) -> Any:
    """The samples in the file ``new``, or in standard input."""
    if new != "-":
        return predictor.samples(new)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.csv"
        path.write_bytes(sys.stdin.buffer.read())
        try:
            return predictor.samples(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "standard input")) from None


def _with_notes(predictor: Predictor, samples: Any, where: str) -> Tensor:
    """Inputs of the network for samples, after notes about single columns."""
    inputs, warned = predictor.read(samples, where)
    for text in warned:
        echo(f"note: {text}", err=True)
    return inputs


def _of_sequences(
    predictor: SequencePredictor, samples: Any, lengths: Any, where: str
) -> tuple[Tensor, dict[str, np.ndarray], Any]:
    """Outputs for sequences, the columns that say what each is of, and the rows of a table that have their targets."""
    found = predictor.sequences(samples, lengths, where)
    inputs, warned = predictor.read_sequences(found, where)
    for text in warned:
        echo(f"note: {text}", err=True)
    outputs = predictor.run(found, inputs)
    if predictor.sequence is None or not hasattr(samples, "columns"):
        return outputs, found.names, None
    return outputs, found.names, samples if predictor.steps.per_step else samples.iloc[found.last]


def _say_ignored(predictor: Predictor, samples: Any) -> None:
    """Notes about the columns that are not read."""
    ignored = [name for name in predictor.preprocessing.ignored(samples) if name != predictor.sequence]
    targets = [name for name in ignored if name in predictor.target_names]
    others = [name for name in ignored if name not in predictor.target_names]
    if targets:
        echo(f"note: not read, as it is predicted: {', '.join(map(repr, targets))}", err=True)
    if others:
        listed = ", ".join(map(repr, others[:20])) + ", ..." * (len(others) > 20)
        echo(f"note: not read, as the training did not use {'them' if others[1:] else 'it'}: {listed}", err=True)


def _say_positions(predictor: Predictor, samples: Any) -> None:
    """A note where columns are taken by their place, as one side has no names for them."""
    names, known = predictor.preprocessing.by_position(samples), predictor.feature_names
    if names:
        listed = ", ".join(map(repr, names[:5])) + ", ..." * (len(names) > 5)
        echo(f"note: read by position: the training had no names of columns, and the file has {listed}", err=True)
    elif known and not hasattr(samples, "columns"):
        listed = ", ".join(map(repr, known[:5])) + ", ..." * (len(known) > 5)
        echo(f"note: read by position, as the file has no names of columns: {listed}", err=True)


def _columns(
    predictor: Predictor, outputs: Tensor, proba: bool, names: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The predictions as columns by name, after those that say what they are of."""
    found, targets = predictor.preprocessing.predictions(outputs), predictor.target_names
    if found.ndim == 1:
        columns = {targets[0] if targets else "prediction": found}
    else:
        columns = {targets[k] if targets else f"prediction {k + 1}": found[:, k] for k in range(found.shape[1])}
    if proba:
        assert predictor.classes is not None
        shares = predictor.preprocessing.probabilities(outputs)
        columns |= {f"p({name})": shares[:, k] for k, name in enumerate(predictor.classes.tolist())}
    first = {f"{name} number" if name in columns else name: values for name, values in (names or {}).items()}
    return {**first, **columns}


@contextlib.contextmanager
def _bar(n: int) -> Iterator[Callable[[], None]]:
    """A function that advances a progress bar by a chunk; there is one only for many rows."""
    if n < MANY:
        yield lambda: None
        return
    with progress("predicting", -(-n // ROWS)) as advance:
        yield lambda: advance("predicting")


def _print(predictor: Predictor, inputs: Tensor, proba: bool) -> Tensor:
    """The predictions as .csv on standard output, which is read while it is written.  Returns outputs."""
    import torch

    parts = []
    with _bar(0 if sys.stdout is None or sys.stdout.isatty() else len(inputs)) as advance:
        for k, outputs in enumerate(predictor.chunks(inputs, ROWS)):
            _show(_csv(_columns(predictor, outputs, proba), header=k == 0))
            parts.append(outputs)
            advance()
    return torch.cat(parts)


def _show(text: str) -> None:
    """A text on standard output: UTF-8 in a pipe or file, whatever the locale is."""
    if sys.stdout is None:
        raise ValueError("standard output is closed: name a file with --out")
    with contextlib.suppress(AttributeError, OSError):
        if not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _collected(predictor: Predictor, inputs: Tensor) -> Tensor:
    """All outputs."""
    import torch

    parts = []
    with _bar(len(inputs)) as advance:
        for outputs in predictor.chunks(inputs, ROWS):
            parts.append(outputs)
            advance()
    return torch.cat(parts)


def _csv(columns: dict[str, np.ndarray], header: bool = True) -> str:
    """Lines of text; numbers are written so that they are read with the same bits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    return text.getvalue()


def _write(out: Path, predictor: Predictor, outputs: Tensor, proba: bool, names: dict[str, np.ndarray] | None) -> None:
    """Write the file ``out``, as its name ends."""
    from sparse_dnm.io import write_atomic

    content, suffix = io.BytesIO(), out.suffix.lower()
    if suffix == ".npz":
        _save_arrays(content, predictor, outputs, proba, names)
    elif suffix == ".parquet":
        _save_parquet(content, _columns(predictor, outputs, proba, names))
    else:
        content.write(_csv(_columns(predictor, outputs, proba, names)).encode())
    write_atomic(out, content.getvalue())


def _save_arrays(
    content: io.BytesIO, predictor: Predictor, outputs: Tensor, proba: bool, names: dict[str, np.ndarray] | None
) -> None:
    """prediction (n,) or (n, targets), where asked for probability (n, classes) and classes, and of which sequence
    (n,) or row (n,) each is, under the name of its column."""
    import numpy as np

    arrays: dict[str, Any] = {"prediction": predictor.preprocessing.predictions(outputs)}
    if proba:
        arrays |= {"probability": predictor.preprocessing.probabilities(outputs), "classes": predictor.classes}
    texts = {name: values.astype(str) if values.dtype.kind == "O" else values for name, values in (names or {}).items()}
    arrays |= {name: values for name, values in texts.items() if name not in arrays}
    np.savez(content, **arrays)


def _save_parquet(content: io.BytesIO, columns: dict[str, np.ndarray]) -> None:
    import pandas as pd

    try:
        pd.DataFrame(columns).to_parquet(content, index=False)
    except ImportError:
        raise ValueError(
            "parquet files are written by the package pyarrow, which is missing here; install it (the extra "
            "`sparse-dnm[parquet]`), or name a .csv"
        ) from None
