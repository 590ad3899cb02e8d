"""Ctrl-C while something runs that has to end first."""

import signal
import threading


class Uninterrupted:
    """Inside ``with``, Ctrl-C waits for the end, where Python would raise KeyboardInterrupt at once: what compiled code
    has changed must be recorded, too.  Another handler of SIGINT stays in force."""

    def __enter__(self):
        self._received = False
        on_main = threading.current_thread() is threading.main_thread()
        self._holds = on_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._holds:
            signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_):
        if self._holds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._received:
            raise KeyboardInterrupt

    def _note(self, _signum, _frame):
        self._received = True
