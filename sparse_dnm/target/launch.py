"""How programs get to the target: compiled here, copied, and run by a launcher, without a shell."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sparse_dnm.config import CC, RUN

KEPT = 8  # compiled files that this process keeps: those of the reference, and of the program around networks
LINES = 8  # of what a compiler or launcher said, in an error


class TargetError(ValueError):
    """A program could not be compiled, copied or run, or said something else than expected."""


@dataclass(frozen=True)
class Target:
    """A machine that runs C programs: commands in the syntax of a shell, split by shlex and run without one.

    cc       compiles and links; gets the sources, -o and -lm
    copy     runs before ``run``, if it is given; {program} is the path of the program here, {name} its name
    run      runs the program; what it prints must reach standard output
    timeout  s for a command
    """

    cc: str = CC
    copy: str = ""
    run: str = RUN
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for field in ("cc", "run"):
            if not self._words(field):
                raise ValueError(f"{field} is empty; give a command, such as {field}={CC if field == 'cc' else RUN!r}")
        self._words("copy")
        if not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout!r} must be a number of seconds > 0")

    def _words(self, field: str) -> list[str]:
        text = getattr(self, field)
        try:
            return shlex.split(text)
        except ValueError as error:
            raise ValueError(f"{field}={text!r} cannot be split into words: {error}; close each quote") from None

    @property
    def here(self) -> bool:
        """Programs run on this machine, as they are."""
        return not self.copy and self.run == RUN

    def output(self, name: str, sources: Mapping[str, str], on_compiled: Callable[[], None] = lambda: None) -> str:
        """What the program of these C sources (text by file name) prints.  Raises TargetError."""
        with tempfile.TemporaryDirectory(prefix="sparse-dnm-") as folder:
            program = self._linked(Path(folder), name, sources, on_compiled)
            places = {"program": str(program), "name": name}
            if self.copy:
                self._run("copy", _filled(self._words("copy"), places, "copy"), None)
            return self._run("run", _filled(self._words("run"), places, "run"), folder)

    def compiled(self, file: str, folder: Path) -> str:
        """Compile a file in ``folder``, unless this process has just done so; returns the name of its object."""
        cc, text = self._words("cc"), (folder / file).read_text(encoding="ascii")
        if shutil.which(cc[0]) is None:
            raise TargetError(f"cc={self.cc!r}: there is no program {cc[0]!r}; install the compiler, or name another")
        made, key = f"{file.removesuffix('.c')}.o", (self.cc, text)
        known = _OBJECTS.get(key)
        if known is None:
            self._run("cc", [*cc, "-c", file, "-o", made], folder)
        else:
            (folder / made).write_bytes(known)
        with contextlib.suppress(OSError):  # a compiler that names its objects otherwise fails when it links
            _keep(key, (folder / made).read_bytes())
        return made

    def _linked(self, folder: Path, name: str, sources: Mapping[str, str], on_compiled: Callable[[], None]) -> Path:
        """Compile every source by itself, as many at once as there are processors, and link."""
        for file, text in sources.items():
            (folder / file).write_text(text, encoding="ascii")

        def compiled(file: str) -> str:
            made = self.compiled(file, folder)
            on_compiled()
            return made

        files = [file for file in sources if file.endswith(".c")]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            waiting = [pool.submit(compiled, file) for file in files]
            try:
                objects = [one.result() for one in waiting]
            except BaseException:
                for one in waiting:
                    one.cancel()
                raise
        self._run("cc", [*self._words("cc"), *objects, "-o", name, "-lm"], folder)
        return folder / name

    def _run(self, field: str, command: list[str], folder: Path | str | None) -> str:
        """Standard output of a command."""
        told = shlex.join(command)
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=self.timeout,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            filled = "; {program} and {name} are filled in, nothing else" if "{" in command[0] else ""
            raise TargetError(
                f"{field}: there is no program {command[0]!r}; install it, or name another{filled}"
            ) from None
        except OSError as error:
            raise TargetError(
                f"{field}: {told} cannot be run here ({error.strerror}); give a launcher, such as "
                "run='ssh board ./{name}' or an emulator"
            ) from None
        except subprocess.TimeoutExpired:
            raise TargetError(
                f"{field}: {told} did not end within timeout={self.timeout:g} s; give it more, or fewer probes"
            ) from None
        if done.returncode:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][:LINES]
            ended = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"failed ({done.returncode})"
            raise TargetError("\n  ".join([f"{field}: {told} {ended}" + ":" * bool(said), *said]))
        return done.stdout


_OBJECTS: dict[tuple[str, str], bytes] = {}  # by command and source, the last used last
_LOCK = threading.Lock()


def _keep(key: tuple[str, str], compiled: bytes) -> None:
    with _LOCK:
        _OBJECTS.pop(key, None)
        _OBJECTS[key] = compiled
        while len(_OBJECTS) > KEPT:
            del _OBJECTS[next(iter(_OBJECTS))]


def _filled(words: list[str], places: Mapping[str, str], field: str) -> list[str]:
    """Words with {program} and {name} filled in; other braces stay."""
    for key, value in places.items():
        words = [word.replace("{" + key + "}", value) for word in words]
    return words
