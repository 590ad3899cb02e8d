"""AVX-512 and AVX2 on one machine: python -m bench.instructions [--quick].

What depends on the instruction set is measured in this process, as the machine is, and again in a child process that
compiles for AVX2.  ``AVX2`` holds the child's environment: Numba compiles for a processor without AVX-512 and asks for
none of this one's own features; torch, oneDNN, MKL and XLA, whose kernels would keep AVX-512, are told AVX2, so that
peers have equal conditions.  Compiled kernels are kept per processor, so that both share a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sparse_dnm.kernels.machine import VECTOR_BYTES

from bench import before, own_loop, peers, scaling, steps, targets

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 1800  # seconds that the child may take, compilation included
AVX2 = {
    "NUMBA_CPU_NAME": "znver3",
    "NUMBA_CPU_FEATURES": "",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
}
Section = tuple[str, Callable[[], list[str]]]


def sections(quick: bool, found: targets.Found) -> list[Section]:
    """What depends on the instruction set; the parts fill in ``found``."""
    return [
        ("Kernels, one product, connex", lambda: peers.few_section(quick, found)),
        ("Kernels against their floors", lambda: steps.floor_section(quick, found)),
        ("Training step", lambda: steps.step_section(quick, found, dense_too=False)),
        ("Against commit " + before.COMMIT, lambda: before.section(quick, found, threads=(2,))),
        ("Loops of one's own", lambda: own_loop.section(quick, found)),
        ("Latency, batch 1", lambda: scaling.latency_section(quick, found)),
    ]


def has_both() -> bool:
    """Whether this process runs on AVX-512, so that a child can run without it."""
    return VECTOR_BYTES == 64


def child(quick: bool) -> tuple[list[targets.Row], list[str]]:
    """The targets, and the tables of the sections, of a process that compiles for AVX2.

    Raises RuntimeError where it fails.
    """
    command = [sys.executable, "-m", "bench.instructions", "--child", *(["--quick"] if quick else [])]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **AVX2}, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S
    )
    if done.returncode:
        raise RuntimeError(f"the process on AVX2 has ended with code {done.returncode}; see its errors")
    said = json.loads(done.stdout.splitlines()[-1])
    if said["vector_bytes"] != 32:
        raise RuntimeError(f"the process on AVX2 compiled for vectors of {said['vector_bytes']} bytes, not 32")
    return [targets.Row(*row) for row in said["rows"]], said["text"]


def note() -> str:
    """What the child's environment was."""
    set_to = " ".join(f"{name}={value}" for name, value in AVX2.items())
    return f"The columns AVX2 are of a child process with the environment `{set_to}`."


def run(quick: bool, found: targets.Found) -> list[str]:
    """Measure all sections of this process; progress to standard error."""
    text: list[str] = []
    for title, section in sections(quick, found):
        print(f"  {title}", file=sys.stderr, flush=True)
        text += ["", f"### {title}", "", *section()]
    return text


def main() -> None:
    """Print the targets of both instruction sets, or in the child JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    found = targets.Found()
    text = run(options.quick, found)
    if options.child:
        print(json.dumps({"vector_bytes": VECTOR_BYTES, "rows": targets.rows(found), "text": text}))
        return
    rows, more = child(options.quick) if has_both() else (None, [])
    print("\n".join(text))
    if rows is not None:
        print("\n".join(["", "## AVX2", *more]))
    print("\n".join(["", "## Targets", "", *targets.lines(found, rows), "", note() if rows else ""]))


if __name__ == "__main__":
    main()
