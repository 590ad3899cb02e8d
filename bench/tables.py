"""Measure everything and write bench/RESULTS.md: python -m bench.tables [--quick] [--data-dir DATA_DIR].

With --device cuda the CUDA kernels are measured instead, see bench.cuda, and printed; bench.gpu_check writes
bench/RESULTS-cuda.md.

Limits of the machine, peers, the training step, threads, scaling, latency, and the targets with what was reached.
With --data-dir (MNIST's IDX files) the original's whole run is made too: 50,000 steps.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import limits, peers, scaling, steps, targets
from sparse_dnm.engine.device import device_of
from sparse_dnm.io import read_json
from sparse_dnm.machine import machine, versions
from sparse_dnm.timing.clock import load

OTHERS = "# Measured time"  # printed by bench.time_model and bench.speed
CUDA_RESULTS = "RESULTS-cuda.md"
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


def original_run(data_dir: Path) -> float:
    """Wall seconds of training of `train mnist --preset original-mnist --steps 50000`, JIT and tests included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "sparse_dnm.cli", "train", "mnist", "--preset", "original-mnist"]
        command += ["--steps", "50000", "--data-dir", str(data_dir), "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = read_json(out / "summary.json")["train_seconds"]
        assert isinstance(seconds, float)
        return seconds


def kept(path: Path) -> list[str]:
    """The part of the file that other commands have printed, after our own."""
    before = path.read_text() if path.exists() else ""
    _, mark, rest = before.partition(f"\n{OTHERS}\n")
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
    found = targets.Found()
    text += ["", "## Limits of one core", "", *limits.lines()]
    sections = (
        ("Peers", lambda: peers.section(options.quick, found)),
        ("Kernels against their floors", lambda: steps.floor_section(options.quick, found)),
        ("Training step, original-mnist, batch 50", lambda: steps.step_section(options.quick, found)),
        ("Two threads over one", lambda: scaling.thread_section(options.quick, found)),
        ("Cost per edge and column", lambda: scaling.edge_section(options.quick, found)),
        ("Latency, batch 1", lambda: scaling.latency_section(options.quick, found)),
    )
    for title, section in sections:
        print(title, file=sys.stderr, flush=True)
        text += ["", f"## {title}", "", *section()]
    found.large = large(100_000 if options.quick else 1_000_000)
    if options.data_dir:
        found.original_s = [original_run(options.data_dir) for _ in range(1 if options.quick else 3)]
    text += ["", "## Targets", "", *targets.lines(found)]
    text += ["", "## CUDA", "", f"Nothing has been measured on a GPU, unless {CUDA_RESULTS} is there."]
    options.out.write_text("\n".join([*text, *kept(options.out)]) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
