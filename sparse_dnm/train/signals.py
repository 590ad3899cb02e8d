"""Signals: SIGINT and SIGTERM stop a training after a whole step."""

from __future__ import annotations

import shlex
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM stopped the training after a whole step, and its checkpoint is saved."""

    def __init__(self, signum: int, step: int, out: Path) -> None:
        command = f"sparse-dnm train --resume {shlex.quote(str(out))}"
        super().__init__(f"stopped at step {step}; continue with: {command}")
        self.signum = signum


class Uninterrupted:
    """Inside ``with``, Ctrl-C waits for the end, where Python would raise KeyboardInterrupt at once: what compiled code
    has changed must be recorded, too.  Another handler of SIGINT stays in force."""

    def __enter__(self) -> None:
        self._received = False
        on_main = threading.current_thread() is threading.main_thread()
        self._holds = on_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._holds:
            signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        if self._holds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._received:
            raise KeyboardInterrupt

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self._received = True


class StopSignals:
    """Inside ``with``, SIGINT and SIGTERM only set ``received``; a second SIGINT aborts at once.

    Python delivers signals to the main thread only: in other threads this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if signum == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
