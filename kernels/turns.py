"""Who compiles a kernel: one process; the others wait for it."""

import contextlib
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: every process compiles
    fcntl = None

PAUSE = 0.02  # s between two looks
PATIENCE = 300.0  # s until a process compiles what another one, which may be stopped, says to be compiling


class Turn:
    """The right to compile one kernel, held by one process at a time; it ends with the process, whatever ends that.

    It is a lock of POSIX on a file beside the kernel's, which a forked process does not inherit.  Where the file system
    has no such locks, every process compiles.
    """

    def __init__(self, path: Path):
        self._path, self._file = path, None

    def take(self) -> bool:
        """Take it; False where another process has it."""
        if fcntl is None:
            return True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            return not isinstance(error, (BlockingIOError, PermissionError))
        self._file = file
        return True

    def wait(self) -> None:
        """Take it as soon as the other process gives it back or ends; do without it after PATIENCE."""
        end = time.monotonic() + PATIENCE
        while not self.take() and time.monotonic() < end:
            time.sleep(PAUSE)

    def give_back(self) -> None:
        """Let another process have it."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                self._path.unlink()  # who waits on the file gets it nevertheless, and finds the kernel
            os.close(file)
