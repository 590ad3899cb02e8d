"""Constant tables of a C program: one struct, the widest numbers first, so that its size is the sum of theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sparse_dnm.lowering.layout import unsigned_bytes

WIDTH = 110  # of a line


def real(value: float) -> str:
    """The shortest text that C reads as this float32."""
    return f"{np.float32(value)!s}f"


class Tables:
    """Tables by name, in the order in which they were added."""

    def __init__(self) -> None:
        self.fields: dict[str, tuple[str, int, Any]] = {}

    def reals(self, name: str, values: Any) -> str:
        """Add numbers of float32; returns the C type."""
        return self._add(name, "float", 4, np.asarray(values, np.float32))

    def signed(self, name: str, values: Any, n_bytes: int) -> str:
        """Add integers of a width; returns the C type."""
        return self._add(name, f"int{8 * n_bytes}_t", n_bytes, np.asarray(values, np.int64))

    def narrowest(self, name: str, values: Any) -> str:
        """Add integers in the smallest signed type that holds them; returns the C type."""
        values = np.asarray(values, np.int64)
        most = max(int(values.max(initial=0)), -int(values.min(initial=0)) - 1)
        return self.signed(name, values, 1 if most < 1 << 7 else 2 if most < 1 << 15 else 4)

    def unsigned(self, name: str, values: Any) -> str:
        """Add integers in the smallest type that holds them; returns the C type."""
        values = np.asarray(values, np.int64)
        n_bytes = unsigned_bytes(int(values.max(initial=0)))
        return self._add(name, f"uint{8 * n_bytes}_t", n_bytes, values)

    def _add(self, name: str, ctype: str, n_bytes: int, values: Any) -> str:
        assert name not in self.fields
        assert values.size
        self.fields[name] = ctype, n_bytes, values
        return ctype

    def _sorted(self) -> list[tuple[str, tuple[str, int, Any]]]:
        return sorted(self.fields.items(), key=lambda item: -item[1][1])

    @property
    def n_bytes(self) -> int:
        """Bytes of the struct, with what it is filled up with at its end."""
        widest = max((width for _, width, _ in self.fields.values()), default=1)
        total = sum(width * values.size for _, width, values in self.fields.values())
        return -(-total // widest) * widest

    def text(self) -> Iterable[str]:
        """Lines of the definition of ``tables``."""
        yield "static const struct {"
        for name, (ctype, _, values) in self._sorted():
            yield f"    {ctype} {name}{''.join(f'[{n}]' for n in values.shape)};"
        yield "} tables = {"
        for name, (ctype, _, values) in self._sorted():
            yield f"    /* {name} */"
            yield from _braced(values, real if ctype == "float" else str)
        yield "};"


def _braced(values: Any, spelled: Any) -> Iterable[str]:
    if values.ndim == 2:
        yield "    {"
        for row in values:
            yield f"        {{{', '.join(spelled(v) for v in row.tolist())}}},"
        yield "    },"
        return
    line = "    {"
    for value in values.tolist():
        word = f"{spelled(value)}, "
        if len(line) + len(word) > WIDTH:
            yield line.rstrip()
            line = "     "
        line += word
    yield f"{line.rstrip(', ')}}},"


def string(text: str) -> str:
    """A text as a C string in UTF-8; signs outside ASCII are octal escapes."""
    out = "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{out}"'
