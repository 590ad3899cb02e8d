"""Commands that show a training: report (a page and figures) and animate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sparse_dnm.cli.console import errors_reported, folder, progress
from sparse_dnm.cli.options import RUN
from sparse_dnm.cli.streams import echo


def report(
    run: Annotated[Path, RUN],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page and the figures; default: the run directory.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Snapshots that the page holds at most.")] = 120,
) -> None:
    """Show a training: one HTML page that works from disk, and its figures as PNG and SVG."""
    with errors_reported():
        from sparse_dnm.report import figures, page
        from sparse_dnm.report.history import History

        history = History.read(run, frames)
        target = folder(out or run)
        with progress("snapshots", max(len(history.steps), 1)) as advance:
            page.write(history, target / "report.html", lambda: advance("snapshots"))
        with progress("figures", 6 if history.image else 5) as advance:
            written = figures.write(history, target / "figures", advance)
        for note in history.notes:
            echo(f"note: {note}")
        echo(f"written: {target / 'report.html'} (open it in a browser)")
        echo(f"written to {target / 'figures'}: {', '.join(path.name for path in written)}")


def animate(
    run: Annotated[Path, RUN],
    out: Annotated[Path | None, typer.Option(help="Folder of the files; default: the run directory.")] = None,
    frames: Annotated[int, typer.Option(help="Pictures at most, one per snapshot.")] = 60,
    fps: Annotated[int, typer.Option(help="Pictures a second.")] = 10,
) -> None:
    """Make a GIF of a training, and an MP4 if ffmpeg is installed."""
    with errors_reported():
        from sparse_dnm.report import animation
        from sparse_dnm.report.history import History

        animation.check_fps(fps)
        history = History.read(run, frames)
        target = folder(out or run)
        for suffix in animation.formats():
            path = target / f"animation{suffix}"
            with progress(path.name, max(len(history.steps), 1)) as advance:
                animation.write(history, path, fps, partial(advance, path.name))
            echo(f"written: {path}")
        for note in history.notes:
            echo(f"note: {note}")
        if 100 % fps:
            echo(f"note: a GIF's unit of time is 0.01 s: this one shows {100 / (100 // fps):.3g} pictures a second")
        if len(animation.formats()) < len(animation.FORMATS):
            echo("note: no MP4, the program ffmpeg is not on the PATH")
