"""Console output of all commands: errors as one line with an exit code, progress bars; and output folders."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from sparse_dnm.cli.streams import echo
from sparse_dnm.wording import speaking

KEEP_QUIET = "keep the machine quiet (kernels compile first where the cache is cold)"
OTHER_OUT = "or choose another --out"
WAYS_OUT = {  # for errors of the operating system
    errno.EACCES: f"get the permission, {OTHER_OUT}",
    errno.EPERM: f"get the permission, {OTHER_OUT}",
    errno.EROFS: "choose another --out",
    errno.ENOTDIR: "a part of this path is a file: choose another --out",
    errno.EEXIST: "a file has this name: choose another --out",
    errno.ENOSPC: f"free some space, {OTHER_OUT}",
    errno.EDQUOT: f"free some space, {OTHER_OUT}",
    errno.EIO: f"check the disk, {OTHER_OUT}",
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f), use fewer neurons, {OTHER_OUT}",
}


@contextlib.contextmanager
def errors_reported() -> Iterator[None]:
    """Report an error that a user can cause as one line on stderr and an exit code, without a traceback.

    Exit codes: 2 after an error, 3 where a training has lost more in the cut to its budget than it may, 128 + the
    signal's number after a signal; 141, as after SIGPIPE, where the reader of the output is gone.
    """
    from sparse_dnm.cli.wording import CommandLine

    try:
        with speaking(CommandLine()):
            yield
    except KeyboardInterrupt as stop:  # a train.trainer.Interrupted, if a checkpoint was saved
        echo(str(stop) or "aborted", err=True)
        raise typer.Exit(128 + getattr(stop, "signum", signal.SIGINT)) from None
    except (ValueError, OSError, MemoryError, RuntimeError, ImportError) as error:
        if not (isinstance(error, (ValueError, OSError, MemoryError)) or _lacks_memory(error)):
            raise
        echo(f"error: {_explain(error)}", fg="red", err=True)
        raise typer.Exit(getattr(error, "exit_code", 2)) from None


def _lacks_memory(error: Exception) -> bool:
    """Not only a MemoryError says so: torch has a RuntimeError, the loader of libraries an ImportError."""
    said = ("can't allocate memory", "failed to map segment", "annot allocate memory")
    lacking = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return lacking or isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _explain(error: Exception) -> str:
    """One line: what failed, why, and the way out."""
    if _lacks_memory(error):
        what = str(error).partition("\n")[0] or "the system refused it"
        return f"not enough memory: {what}; use fewer neurons, a smaller batch"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        way_out = WAYS_OUT.get(error.errno, f"correct it, {OTHER_OUT}")
        return f"{where}{error.strerror}; {way_out}"
    return str(error)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr.  Yields a function that advances it by one and shows the given name."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda name: bar.update(task, advance=1, description=name)


@contextlib.contextmanager
def runs_progress(total: int, steps: int) -> Iterator[tuple[Callable[[str], None], Callable[[str, int], None]]]:
    """Progress bars on stderr: one of all ``total`` parts, and one of every run that is training, in steps.

    Yields a function that advances the first by one and shows the given name, and one that takes a run's name and its
    steps so far, -1 at its end.  Where stderr is no terminal, each beginning is a line.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        whole, runs = bar.add_task("", total=total), dict[str, TaskID]()

        def advance(name: str) -> None:
            bar.update(whole, advance=1, description=name)
            if not console.is_terminal:
                echo(name, err=True)

        def on_step(name: str, step: int) -> None:
            if step < 0:
                if name in runs:
                    bar.remove_task(runs.pop(name))
                return
            if name not in runs:
                runs[name] = bar.add_task(f"  {name}", total=steps)
            bar.update(runs[name], completed=step)

        yield advance, on_step


def folder(path: Path) -> Path:
    """``path``, created as a directory if it does not exist."""
    from sparse_dnm.io import doing

    with doing("create the directory", path):
        path.mkdir(parents=True, exist_ok=True)
    return path
