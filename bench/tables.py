"""Measure everything and write bench/RESULTS.md: python -m bench.tables [--quick] [--data-dir DATA_DIR].

With --device cuda the CUDA kernels are measured instead, see bench.cuda, and printed; bench.gpu_check writes
bench/RESULTS-cuda.md.

Limits of the machine, peers, the training step and its parts, threads, scaling, latency, and the targets with what was
reached; where the machine has AVX-512, also without it (bench.instructions).  With --data-dir (MNIST's IDX files) the
original's whole run is made too, 50,000 steps, in turns with that of commit 9d64137.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench import (
    before,
    instructions,
    limits,
    own_loop,
    peers,
    scaling,
    spdnn,
    step_profile,
    steps,
    targets,
    training_threads,
)
from sparse_dnm.engine.device import device_of
from sparse_dnm.io import read_json
from sparse_dnm.machine import machine, versions
from sparse_dnm.timing.clock import load

T = TypeVar("T")
HOW = (
    "All sections up to the targets are of one run of that command, planned for at most 15 minutes on two quiet cores "
    "with kernels compiled before; `--quick` tries all, `--data-dir` adds whole trainings, in turns with commit "
    "9d64137, some minutes each.  Alone: `python -m bench.limits`, `bench.peers`, `bench.spdnn`, `bench.step_profile`, "
    "`bench.before`, `bench.own_loop`, `bench.training_threads`; `bench.instructions` makes what depends on the "
    "instruction set, for AVX-512 and AVX2; all but the first know `--quick`.  A machine without AVX-512 has one "
    "column of targets.",
)
OTHERS = "# Measured time"  # printed by bench.time_model and bench.speed
CUDA_RESULTS = "RESULTS-cuda.md"
ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("RESULTS.md")


def large(neurons: int) -> dict[str, float]:
    """Training steps of a large manifold in a process of its own: edges, seconds, GiB."""
    command = [sys.executable, "-m", "bench.memory", "--neurons", str(neurons), "--batch", "16"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULTS.parent.parent).stdout

    def number(pattern: str) -> float:
        match = re.search(pattern, said)
        if match is None:
            raise ValueError(f"bench.memory printed no {pattern!r}:\n{said}")
        return float(match[1].replace(",", ""))

    return {
        "edges": number(r"([\d,]+) edges"),
        "seconds": number(r"more ([\d.]+) \("),
        "gib": number(r"memory ([\d.]+) GiB"),
    }


def original_run(data_dir: Path, root: Path = ROOT) -> float:
    """Wall seconds of training of `train mnist --preset original-mnist --steps 50000` of a checkout, JIT and tests
    included."""
    start = "import sys; from bench.checkout import mount; from pathlib import Path; mount(Path(sys.argv.pop(1))); "
    start += "from sparse_dnm.cli import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-c", start, str(root), "train", "mnist", "--preset", "original-mnist"]
        command += ["--steps", "50000", "--data-dir", str(data_dir.resolve()), "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds = read_json(out / "summary.json")["train_seconds"]
        assert isinstance(seconds, float)
        return seconds


def whole_runs(found: targets.Found, data_dir: Path, pairs: int) -> None:
    """Whole trainings of original-mnist, in turns with those of the commit before where that can be had."""
    try:
        root = before.checkout()
    except RuntimeError:
        root = None
    for k in range(pairs):
        print(f"original-mnist, 50,000 steps, {k + 1} of {pairs}", file=sys.stderr, flush=True)
        found.original_s.append(original_run(data_dir))
        if root is not None:
            found.whole_runs.append((found.original_s[-1], original_run(data_dir, root)))


def sections(quick: bool, found: targets.Found, data_dir: Path | None) -> list[tuple[str, Callable[[], list[str]]]]:
    """Title and measurement of all sections but the first and the last."""
    return [
        ("Peers", lambda: peers.section(quick, found)),
        ("Sparse DNN Graph Challenge, 1,024 neurons, 120 layers", lambda: spdnn.section(quick)),
        ("Kernels against their floors", lambda: steps.floor_section(quick, found)),
        ("Training step, original-mnist, batch 50", lambda: steps.step_section(quick, found)),
        ("Training step by part", lambda: step_profile.section(quick)),
        (f"Training against commit {before.COMMIT}", lambda: before.section(quick, found, data_dir)),
        ("Loops of one's own", lambda: own_loop.section(quick, found)),
        ("Two threads over one", lambda: scaling.thread_section(quick, found)),
        ("Training on two threads over one", lambda: training_threads.section(quick, found)),
        ("Cost per edge and column", lambda: scaling.edge_section(quick, found)),
        ("Latency, batch 1", lambda: scaling.latency_section(quick, found)),
    ]


def timed(title: str, run: Callable[[], T]) -> T:
    """What ``run`` returns; says to standard error what runs, and how long it took."""
    print(title, end=" ", file=sys.stderr, flush=True)
    start = time.perf_counter()
    result = run()
    print(f"({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    return result


def kept(path: Path) -> list[str]:
    """The part of the file that other commands have printed, after our own."""
    text = path.read_text() if path.exists() else ""
    _, mark, rest = text.partition(f"\n{OTHERS}\n")
    return ["", OTHERS, rest.rstrip()] if mark else []


def on_cuda(name: str, quick: bool, out: Path | None) -> None:
    """Measure on a GPU and print; write to ``out`` if one is given.  Ends with an error where there is none."""
    try:
        device = device_of(name)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    from bench import cuda  # numba's CUDA target

    about = machine(device)
    packages = ", ".join(f"{package} {version}" for package, version in versions().items())
    text = ["# On a GPU", "", f"Written by `python -m bench.tables --device {name}{' --quick' * quick}`.", ""]
    text += [
        f"{about['gpu']}, {about['processor']}, {about['cores']} cores, {about['system']}; {packages}; float32.",
        "",
    ]
    text += cuda.lines(quick, device)
    if out is not None:
        out.write_text("\n".join(text) + "\n")
    print("\n".join(text))


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller sizes")
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("--device", default="cpu", help="cuda: the CUDA kernels instead, see bench.cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device != "cpu":
        on_cuda(options.device, options.quick, options.out)
        return
    options.out = options.out or RESULTS
    about = machine()
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = ["# Results", "", "Written by `python -m bench.tables" + (" --quick" if options.quick else "") + "`.", ""]
    text += [f"{about['processor']}, {about['cores']} cores, {about['system']}; {packages}; float32.", ""]
    busy = load()
    text += [f"Load per core before the start: {'unknown' if busy is None else f'{busy:.2f}'}.", ""]
    text += ["Wall seconds (perf_counter), median and quartiles of interleaved rounds.  Threads are named in each row."]
    text += ["", *HOW]
    found = targets.Found()
    text += ["", "## Limits of one core", "", *limits.lines()]
    for title, section in sections(options.quick, found, options.data_dir):
        text += ["", f"## {title}", "", *timed(title, section)]
    found.large = timed("A large manifold", lambda: large(100_000 if options.quick else 1_000_000))
    if options.data_dir:
        whole_runs(found, options.data_dir, 1 if options.quick else 3)
    rows = None
    if instructions.has_both():
        text += ["", "## AVX2", "", instructions.note()]
        try:
            rows, more = timed("AVX2, in a process of its own:", lambda: instructions.child(options.quick))
            text += more
        except (RuntimeError, subprocess.TimeoutExpired) as error:  # the rest of this run is of use without
            text += ["", f"Absent: {error}."]
    text += ["", "## Targets", "", *targets.lines(found, rows)]
    text += ["", "## CUDA", "", f"Nothing has been measured on a GPU, unless {CUDA_RESULTS} is there."]
    options.out.write_text("\n".join([*text, *kept(options.out)]) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
