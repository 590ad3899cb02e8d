"""The command sparse-dnm.  Commands import torch and the engine when they run; --help and --version need neither."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from sparse_dnm.cli import calibrate, export, predict, show, streams, study, train

app = typer.Typer(
    help="Train Dynamic Neural Manifolds: sparse networks whose connections are learned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(train.train, train.evaluate, predict.predict, show.report, show.animate),
    *(study.compare, study.bench, calibrate.calibrate, export.export),
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Entry point of the command sparse-dnm."""
    with streams.guarded():
        try:
            app(prog_name="sparse-dnm")
        except KeyboardInterrupt:  # before a command runs
            streams.echo("aborted", err=True)
            raise SystemExit(128 + signal.SIGINT) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        streams.echo(f"sparse-dnm {version('sparse-dnm')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    pass
