"""What a C compiler of this machine makes of a program."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from sparse_dnm.export.c_program import CProgram
from sparse_dnm.target import TargetError
from sparse_dnm.target.flash import object_bytes

COMPILER = ("cc", "gcc", "clang")
FLAGS = ("-std=c99", "-Os")


def code_bytes(program: CProgram, cc: str | None = None) -> tuple[str, int] | None:
    """The command and the bytes of code that a compiler makes, constants left out; None without a compiler.

    cc  the compiler and its options; default: the first of cc, gcc and clang that is there, with FLAGS
    Code and constants together are what `size` says: its text and data.  Of a compiler for another machine, such as
    arm-none-eabi-gcc, its own `size` is asked.  Raises ValueError if a given one is missing or fails.
    """
    compiler, *options = shlex.split(cc) if cc else (next(filter(shutil.which, COMPILER), COMPILER[0]), *FLAGS)
    if shutil.which(compiler) is None:
        if cc:
            raise ValueError(f"cc={cc!r}: {compiler} or size is not on the PATH; install it, or name another one")
        return None
    command = [compiler, *options]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in program.files.items():
            (Path(folder) / name).write_text(text)
        source = f"{program.name}.c"
        made = subprocess.run([*command, "-c", source], cwd=folder, capture_output=True, text=True)
        if made.returncode:
            if cc:
                raise ValueError(f"cc={cc!r} does not compile {source}: {made.stderr.strip()[-500:]}")
            return None
        try:
            total = object_bytes(Path(folder) / f"{program.name}.o", compiler)
        except TargetError:  # no program `size`
            if cc:
                raise
            return None
    return shlex.join(command), total - program.constant_bytes
