"""The command sparse-dnm.  Commands import torch and the engine when they run; --help and --version need neither."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from sparse_dnm.cli import show, study, train

app = typer.Typer(
    help="Train Dynamic Neural Manifolds: sparse networks whose connections are learned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train.train, train.evaluate, show.report, show.animate, study.compare, study.bench, study.calibrate):
    app.command()(command)


def main() -> None:
    """Entry point of the command sparse-dnm."""
    try:
        app(prog_name="sparse-dnm")
    except KeyboardInterrupt:  # before a command runs
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
