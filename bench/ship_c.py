"""C programs as libraries of this process: compiled, run on samples, timed in turns, and weighed."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparse_dnm.export import CProgram
from sparse_dnm.timing.clock import preemptions, rounds

K = TypeVar("K", bound=Hashable)
LEAST = 3e-4  # seconds of a measurement
WARMUP = 5  # unmeasured rounds
TRIES = 3  # of a measurement
RUN = """#include <stdint.h>
#include "{unit}"
__attribute__((visibility("default")))
void run_all(const {cell} *x, long x_step, {output} *y, long y_step, long n)
{{
    for (; n; n--, x += x_step, y += y_step) {{
        {call}
    }}
}}
"""
TYPES = {np.dtype(np.float32): "float", np.dtype(np.int8): "int8_t", np.dtype(np.int32): "int32_t"}


@dataclass(frozen=True)
class Source:
    """A network in C.

    files    text by file name; ``unit`` is the one that is compiled and weighed, the others are included
    call     C that computes y from x, pointers to a sample and to its outputs
    cell     dtype of x
    output   dtype of y
    include  folder of more headers, or ""
    """

    files: Mapping[str, str]
    unit: str
    call: str
    n_inputs: int
    n_outputs: int
    cell: Any = np.float32
    output: Any = np.float32
    include: str = ""

    @classmethod
    def of(cls, program: CProgram, n_outputs: int, dtype: str) -> Source:
        """Of an exported network without preprocessing."""
        types = (np.int8, np.int32) if dtype == "int8" else (np.float32, np.float32)
        call = f"{program.name}_run(x, y);"
        return cls(program.files, f"{program.name}.c", call, program.n_inputs, n_outputs, *types)

    def write(self, folder: Path) -> None:
        """Write the files, and run.c with the function ``run_all``."""
        types = {"cell": TYPES[np.dtype(self.cell)], "output": TYPES[np.dtype(self.output)]}
        for name, text in (*self.files.items(), ("run.c", RUN.format(unit=self.unit, call=self.call, **types))):
            (folder / name).write_text(text)

    @property
    def flags(self) -> list[str]:
        """Where the compiler finds more headers."""
        return ["-I", self.include] if self.include else []

    def flash_bytes(self, cc: str) -> int:
        """Bytes of code and constants of the object file that ``cc`` makes, by the program `size`."""
        with tempfile.TemporaryDirectory() as name:
            self.write(Path(name))
            command = [*shlex.split(cc), *self.flags, "-c", self.unit, "-o", "unit.o"]
            subprocess.run(command, cwd=name, check=True)
            said = subprocess.run(["size", "unit.o"], cwd=name, check=True, capture_output=True, text=True).stdout
        text, data = map(int, said.splitlines()[1].split()[:2])
        return text + data


class Library:
    """A network in C, compiled as a library.  Nothing but ``run_all`` can be seen from outside, so that the compiler
    may inline as it would in a program."""

    def __init__(self, source: Source, cc: str) -> None:
        self.source = source
        with tempfile.TemporaryDirectory() as name:
            source.write(Path(name))
            command = [*shlex.split(cc), *source.flags, "-shared", "-fPIC", "-fvisibility=hidden"]
            subprocess.run([*command, "run.c", "-o", "run.so", "-lm"], cwd=name, check=True)
            self._run = ctypes.CDLL(str(Path(name) / "run.so")).run_all
        pointer, count = ctypes.c_void_p, ctypes.c_long
        self._run.argtypes, self._run.restype = [pointer, count, pointer, count, count], None

    def _rows(self, x: Any) -> np.ndarray:
        rows = np.ascontiguousarray(x, self.source.cell)
        if rows.ndim != 2 or rows.shape[1] != self.source.n_inputs:
            raise ValueError(f"x has shape {rows.shape}; it must be (n, {self.source.n_inputs})")
        return rows

    def outputs(self, x: Any) -> np.ndarray:
        """Outputs (n, n_outputs) of samples (n, n_inputs), one after the other."""
        rows = self._rows(x)
        y = np.zeros((len(rows), self.source.n_outputs), self.source.output)
        self._run(rows.ctypes.data, rows.shape[1], y.ctypes.data, y.shape[1], len(rows))
        return y

    def timer(self, x: Any) -> Callable[[], float]:
        """A function that returns seconds of a run, on the samples of x (n, n_inputs) one after the other."""
        rows, y = self._rows(x), np.zeros(self.source.n_outputs, self.source.output)

        def seconds_of(n: int) -> float:
            before = time.perf_counter()
            for _ in range(n):
                self._run(rows.ctypes.data, rows.shape[1], y.ctypes.data, 0, len(rows))
            return (time.perf_counter() - before) / len(rows)

        return repeated(seconds_of)


def repeated(seconds_of: Callable[[int], float]) -> Callable[[], float]:
    """Seconds of a call, of as many as last LEAST together; ``seconds_of(n)`` are those of n calls."""

    def lasts(n: int) -> float:
        start = time.perf_counter()
        seconds_of(n)
        return time.perf_counter() - start

    n = 1
    while min(lasts(n) for _ in range(5)) < LEAST:  # the least: other programs interrupt some of them
        n *= 2
    return lambda: seconds_of(n) / n


def in_turns(cases: Mapping[K, Callable[[], float]], repeats: int) -> dict[K, np.ndarray]:
    """Seconds (repeats,) by name: every case once a round, each round starting with the next one.

    A measurement during which the process was preempted is made again, up to TRIES in all.
    """
    found: dict[K, list[float]] = {name: [] for name in cases}
    for order in rounds(list(cases), repeats + WARMUP):
        for name in order:
            for _ in range(TRIES):
                before, seconds = preemptions(), cases[name]()
                if preemptions() == before:
                    break
            found[name].append(seconds)
    return {name: np.array(seconds[WARMUP:]) for name, seconds in found.items()}


def spread(values: np.ndarray, form: str = ".2f") -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"
