"""Signals: SIGINT, SIGTERM and SIGHUP stop a training after a whole step, and so does a reader that is gone."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from sparse_dnm.wording import words

PIPE = int(getattr(signal, "SIGPIPE", 13))  # Windows has neither of these
ALWAYS = (signal.SIGINT, signal.SIGTERM)
STOPPING = (*ALWAYS, signal.SIGHUP) if hasattr(signal, "SIGHUP") else ALWAYS


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training after a whole step, and its checkpoint is saved."""

    def __init__(self, signum: int, step: int, out: Path) -> None:
        super().__init__(f"stopped at step {step}; {words().stopped(out)}")
        self.signum = signum


class StopSignals:
    """Inside ``with``, SIGINT, SIGTERM and SIGHUP only set ``received``; a second SIGINT aborts at once.

    A SIGHUP that is ignored, as nohup does it, stays ignored.  Python delivers signals to the main thread only: in
    other threads only `request` sets ``received``.
    """

    _active: ClassVar[list[StopSignals]] = []

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                if signum in ALWAYS or signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    self._previous[signum] = signal.signal(signum, self._note)
        self._active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._active.remove(self)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @classmethod
    def request(cls, signum: int) -> bool:
        """Stop what runs as if the process had received ``signum``; False if nothing runs that could be stopped."""
        for waiting in cls._active[-1:]:
            if waiting.received is None:
                waiting.received = signum
            return True
        return False

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if signum == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
