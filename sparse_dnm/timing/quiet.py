"""Seconds of the reference step on the quiet machine, kept on disk from run to run.

They lie in the folder that SPARSE_DNM_CACHE names, else in that of NUMBA_CACHE_DIR, which holds the compiled kernels as
well, else in the user's cache: a JSON file for each machine and way to measure.  So processes that measure something
else never write to one file; those that measure the same take turns.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
from numba.misc.appdirs import user_cache_dir

from sparse_dnm.engine import device as backend
from sparse_dnm.io import UNFIT, write_json
from sparse_dnm.machine import machine, version

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "sparse-dnm quiet reference"
GAIN = 0.97  # of the kept seconds, that others must stay below to take their place: then seconds keep their meaning


@dataclass(frozen=True)
class Quiet:
    """Seconds of a reference step on the quiet machine, and the day they were measured; "": it was not quiet."""

    seconds: float
    date: str = ""

    @staticmethod
    def today(seconds: float) -> Quiet:
        """Measured now."""
        return Quiet(seconds, datetime.date.today().isoformat())


def key_of(settings: Any, threads: int, dtype: Any) -> dict[str, Any]:
    """What the seconds of a reference step depend on: the machine, how it is measured, and the code that runs."""
    return {
        **machine(),
        "cpu_target": os.environ.get("NUMBA_CPU_NAME", "host"),
        **{name: getattr(settings, name) for name in ("executor", "mode", "batch", "clock")},
        "threads": threads,
        "dtype": str(dtype),
        "numba": numba.__version__,
        "sparse_dnm": version("sparse-dnm"),
        "kernels": backend.jit.STAMP[:16],
    }


def folder() -> Path:
    """Where the files lie."""
    named = os.environ.get("SPARSE_DNM_CACHE") or os.environ.get("NUMBA_CACHE_DIR")
    return Path(named) / "quiet" if named else Path(user_cache_dir("sparse_dnm", appauthor=False)) / "quiet"


def path_of(key: Mapping[str, Any]) -> Path:
    """The file of a key."""
    return folder() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.json"


def read(key: Mapping[str, Any]) -> tuple[Quiet | None, str]:
    """What is kept for a key, None where nothing is; and a note about a file that cannot be used, else empty."""
    path = path_of(key)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT or values["key"] != dict(key):
            raise ValueError("it is of something else")
        found = Quiet(float(values["seconds"]), str(datetime.date.fromisoformat(values["date"])))
        if not (math.isfinite(found.seconds) and found.seconds > 0):
            raise ValueError(f"seconds={found.seconds} must be a finite number > 0")
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except (OSError, *UNFIT) as error:
        return None, f"the quiet reference in {path} cannot be used ({error!r}); the next one replaces it"
    return found, ""


def keep(key: Mapping[str, Any], made: Quiet) -> tuple[Quiet, str]:
    """Keep the lower of what is kept and ``made``; returns it, and a note where it cannot be written, else empty.

    What is kept stays unless it is undercut by GAIN.
    """
    path = path_of(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path):
            known, _ = read(key)
            if known is not None and made.seconds > GAIN * known.seconds:
                return known, ""
            write_json(path, {"format": FORMAT, "key": dict(key), **asdict(made)})
    except OSError as error:
        return made, (
            f"the quiet reference cannot be kept for later runs ({error}); set SPARSE_DNM_CACHE to a folder that this "
            "user may write to"
        )
    return made, ""


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the lock of a file, where the system has such locks; it ends with its process."""
    with open(path.with_suffix(".lock"), "a", encoding="ascii") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
