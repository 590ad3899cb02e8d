"""Standard output and error: any encoding, and readers that go away.

Signs that an encoding lacks are written in ASCII.  When the reader of standard output is gone (a closed pipe or
terminal), a training stops as after a signal; a standard error that is gone changes nothing.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import sys
import threading
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO, cast

import typer

from sparse_dnm.train.signals import PIPE, StopSignals

PLAIN = "sparse-dnm-plain"  # name of the error handler
SIGNS = {  # what Unicode's decompositions do not give
    "µ": "u", "μ": "u", "–": "-", "—": "-", "−": "-", "·": "*", "•": "*", "×": "x", "→": "->", "←": "<-",
    "≤": "<=", "≥": ">=", "≈": "~", "±": "+-", "‘": "'", "’": "'", "“": '"', "”": '"', "━": "-", "╸": "-", "╺": "-",
    "£": "GBP", "€": "EUR", "¥": "YEN",
}  # fmt: skip
BOXES, BLOCKS, BRAILLE = range(0x2500, 0x2580), range(0x2580, 0x25A0), range(0x2800, 0x2900)
ESCAPED = range(0xDC80, 0xDD00)  # bytes of a file name that are no text, as Python keeps them
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # lines and tabs stay
GONE = {errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF, errno.ECONNRESET, errno.ESHUTDOWN}
if sys.platform == "win32":
    GONE.add(errno.EINVAL)  # a closed pipe, there


class OutputClosed(BaseException):
    """The reader of standard output is gone, and nothing runs that could be stopped and saved."""

    signum = PIPE


def echo(text: str = "", err: bool = False, fg: str | None = None) -> None:
    """Print a line; in colour on a terminal.  Names in it, of columns or files, cannot control the terminal."""
    stream = sys.stderr if err else sys.stdout  # given, for typer would write UTF-8 where the stream is ASCII
    if stream is not None:
        typer.secho(harmless(text), file=stream, fg=fg)


def harmless(text: str) -> str:
    """``text`` with control characters as escapes, such as \\x1b, and with those that turn the direction of text."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def plain(char: str) -> str:
    """``char`` in ASCII: a sign like it, letters without their accents, else an escape such as \\u4e2d."""
    code = ord(char)
    if char in SIGNS:
        return SIGNS[char]
    if code in BOXES:
        return "-" if code in (0x2500, 0x2501) else "|" if code in (0x2502, 0x2503) else "+"
    if code in BLOCKS or code in BRAILLE:
        return "#" if code in BLOCKS else "*"
    parts = unicodedata.normalize("NFKD", char)
    kept = "".join(SIGNS.get(c, c) for c in parts if not unicodedata.combining(c))
    if kept and kept.isascii():
        return kept
    return ascii(char)[1:-1]


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    held = ord(char)
    return bytes([held - 0xDC00]) if held in ESCAPED else plain(char), error.start + 1


codecs.register_error(PLAIN, _replace)


class Guarded:
    """A text stream that takes everything, also when its reader is gone; then ``closed_early`` is true.

    Where the reader of an ``output`` goes, the training that runs is stopped as by the signal PIPE; if none runs, the
    main thread raises OutputClosed at its next write.
    """

    def __init__(self, stream: TextIO, output: bool) -> None:
        self._stream, self._output = stream, output
        self._told = not output
        self.closed_early = False
        with contextlib.suppress(AttributeError, OSError):  # not a text file; its reader is gone already
            stream.reconfigure(errors=PLAIN)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        self._try("write", text)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        """Write all ``lines``."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush, if there is somebody to read it."""
        self._try("flush")

    def _try(self, method: str, *arguments: str) -> None:
        if not self.closed_early:
            try:
                getattr(self._stream, method)(*arguments)
            except OSError as error:
                if self._output and error.errno not in GONE:
                    raise
                self._close()
        if self.closed_early and not self._told:
            self._tell()

    def _close(self) -> None:
        """Send what is still buffered, and all that follows, to the null device: it would fail again at exit."""
        self.closed_early = True
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def _tell(self) -> None:
        if StopSignals.request(PIPE):
            self._told = True
        elif threading.current_thread() is threading.main_thread():
            self._told = True
            raise OutputClosed


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Inside ``with``, standard output and error are Guarded; OutputClosed ends the process with exit code 141, as
    SIGPIPE does."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None:
        sys.stdout = cast(TextIO, Guarded(sys.stdout, output=True))
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, Guarded(sys.stderr, output=False))
    try:
        yield
    except OutputClosed:
        raise SystemExit(128 + PIPE) from None
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OutputClosed):
                if stream is not None:
                    stream.flush()
        sys.stdout, sys.stderr = before
