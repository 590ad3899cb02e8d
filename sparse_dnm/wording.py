"""How messages name a setting: as a field, as an option of the command line, or as a parameter of an estimator.

A message asks `words()`; a front end says which these are, by `speaking`.  Without one they are those of Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any


class Words:
    """Those of the Python API: settings are fields of `ManifoldConfig` and `TrainConfig`, or arguments."""

    begin = "Start a new run"
    again = "Start a new run, with another out or none, and"  # what is to change follows
    elsewhere = ""  # data that have moved
    other_out = "give another out"
    no_directory = "out must name a directory"

    def name(self, field: str) -> str:
        """A setting without its value."""
        return field

    def give(self, field: str, value: Any) -> str:
        """What the reader would write to set it."""
        return f"{field}={self.text(value)}"

    def stated(self, field: str, value: Any) -> str:
        """What it was set to."""
        return f"{field}={value:g}" if isinstance(value, float) else f"{field}={value!r}"

    def now(self, field: str, value: Any) -> str:
        """It, and what it is at present."""
        return f"{self.name(field)} (now {self.text(value)})"

    def text(self, value: Any) -> str:
        """A value; the parts of a tuple may be words."""
        if isinstance(value, tuple):
            return f"({', '.join(part if isinstance(part, str) else self.text(part) for part in value)})"
        return f"{value:g}" if isinstance(value, float) else repr(value)

    def kept(self, step: int | None, out: Path | None) -> str:
        """What is left of a training that has failed, whose last checkpoint is of ``step``."""
        if step is None:
            return "Nothing was saved"
        return f"The last good checkpoint, of step {step}, is kept in {out} (for evaluate)"

    def resume(self, out: Path) -> str:
        """How the run in ``out`` goes on."""
        return f"continue that run with Trainer.resume({str(out)!r}, data)"

    def stopped(self, out: Path) -> str:
        """The same, after a signal."""
        return f"continue with: Trainer.resume({str(out)!r}, data)"


PYTHON = Words()
_words: ContextVar[Words] = ContextVar("words", default=PYTHON)


def words() -> Words:
    """Those of the front end that called."""
    return _words.get()


@contextlib.contextmanager
def speaking(chosen: Words) -> Iterator[None]:
    """Inside ``with``, messages of this thread have these words."""
    token = _words.set(chosen)
    try:
        yield
    finally:
        _words.reset(token)
