"""Compile the CUDA kernels without a GPU, and print what they take: python -m bench.registers [--quick].

PTX for compute capability 8.0 and 9.0 by numba; where NVIDIA's assembler ``ptxas`` is on the PATH (package
nvidia-cuda-nvcc has it), registers, shared memory and spills of the machine code.  Ends with an error where a kernel
does not compile or spills.  With --quick: float32 for the first capability, float64 for the second.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numba import config, cuda, types
from numba.cuda import dispatcher

CAPABILITIES = ((8, 0), (9, 0))
KERNELS = (
    *(
        "forward",
        "backward",
        "forward_syncfree",
        "backward_syncfree",
        "edge_gradients",
        "neuron_gradients",
        "input_gradients",
    ),
    *("transform", "closeness", "compact", "strength_back", "scan", "mark_live", "find_levels"),
)
INT32 = (
    *("inputs", "column", "order", "indices", "outputs", "column_of", "readers", "row_of", "active", "places"),
    *("before", "sources", "differs", "crossed", "old_indices", "origin", "live", "queue", "waiting", "levels", "done"),
)
INT64 = ("waves", "indptr", "t_indptr", "t_edges", "old_indptr", "starts")
FLOAT64 = ("c", "threshold", "offsets", "parts", "by_imbalance", "by_cutoff")
TABLES64 = ("reference", "rows")
SCALARS = ("first_linear", "n", "n_inputs", "n_sources", "seed")
FLOATS = ("period", "omega_bound", "ulp", "mean", "std")
FLAGS = ("periodic", "omega_in_closeness", "omega_in_strength", "write")
TABLES = ("table", "out", "out_gradient", "row_gradient")


def signature(function: Any, real: Any) -> Any:
    """The types that the executor calls a kernel with, by the names of its arguments."""
    scalars = {types.int64: SCALARS, types.float64: FLOATS, types.boolean: FLAGS}
    arrays = {
        types.int32: INT32,
        types.int64: INT64,
        types.float64: FLOAT64,
        types.int8: ("kind",),
        types.boolean: ("stale",),
    }

    def of(name: str) -> Any:
        for dtype, names in scalars.items():
            if name in names:
                return dtype
        if name in TABLES or name in TABLES64:
            return (real if name in TABLES else types.float64)[:, ::1]
        return next((dtype for dtype, names in arrays.items() if name in names), real)[::1]

    return types.void(*map(of, inspect.signature(function).parameters))


def assemble(ptx: str, capability: tuple[int, int]) -> dict[str, int] | None:
    """Registers, bytes of shared memory and bytes of spills by ptxas; None where it is not on the PATH."""
    if shutil.which("ptxas") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = ["ptxas", "-v", f"-arch=sm_{capability[0]}{capability[1]}", "-o", str(path.with_suffix(".cubin"))]
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[0]
        raise SystemExit(f"ptxas refuses the PTX ({said}); give one as new as the compiler that numba uses")
    text = done.stdout + done.stderr

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, text)))

    return {
        "registers": number(r"Used (\d+) registers"),
        "shared": number(r"(\d+) bytes smem"),
        "spills": number(r"(\d+) bytes spill"),
    }


def main() -> int:
    """Print the table; 1 where a kernel spills."""
    quick = "--quick" in sys.argv[1:]
    if config.ENABLE_CUDASIM:
        raise SystemExit("the simulator compiles nothing: unset NUMBA_ENABLE_CUDASIM")
    from sparse_dnm.kernels import cuda as kernels

    spilled = 0
    print("| kernel | dtype | compute capability | PTX lines | registers | shared memory, bytes | spills, bytes |")
    print("|---|---|---|---|---|---|---|")
    for capability in CAPABILITIES:
        device = SimpleNamespace(compute_capability=capability)
        dispatcher.get_current_device = lambda device=device: device  # else numba asks a driver for it
        for name in KERNELS:
            function = getattr(kernels, name).py_func
            kinds = (types.float32, types.float64)
            if len({signature(function, real) for real in kinds}) == 1:
                kinds = kinds[:1]
            elif quick:
                kinds = kinds[:1] if capability == CAPABILITIES[0] else kinds[1:]
            for real in kinds:
                ptx, _ = cuda.compile_ptx(function, signature(function, real), cc=capability)
                found = assemble(ptx, capability)
                cells = ["no ptxas"] * 3 if found is None else [f"{value:,}" for value in found.values()]
                spilled += 0 if found is None else found["spills"]
                number = f"{capability[0]}.{capability[1]}"
                print(f"| {name} | {real} | {number} | {ptx.count(chr(10)):,} | {' | '.join(cells)} |")
    return int(spilled > 0)


if __name__ == "__main__":
    sys.exit(main())
