"""What bench.gpu_check measures in processes of their own: python -m bench.gpu_parts PART --seconds S [--simulate].

Prints Markdown, a block after the other, and stops where the seconds are over.  Exit code 0: all blocks were made;
1: one failed; 3: some were left out for want of time.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bench import cuda
from bench.levelwise import LevelWise
from bench.peers import Cases, passes, torch_csr
from bench.steps import dense_step, make_trainer, random_digits
from sparse_dnm import DenseManifold, DynamicManifold, ManifoldConfig, SparseDAG, TrainConfig
from sparse_dnm.config import CUDA_CLOCK
from sparse_dnm.engine import device as backend
from sparse_dnm.machine import machine, versions
from sparse_dnm.study.sweeps import DenseStack
from sparse_dnm.timing.clock import Clock

CUT = 3  # exit code
ENOUGH = 0.02  # share of the seconds that a block needs at least
Block = tuple[str, Callable[[float], list[str]]]  # title; lines from the seconds that it may take


@dataclass(frozen=True)
class Network:
    """A manifold, how it is trained, and a dense network of as many inputs, hidden neurons and outputs."""

    name: str
    manifold: ManifoldConfig
    train: TrainConfig
    widths: list[int]


@dataclass(frozen=True)
class Sizes:
    """Where, on what and how often things are measured."""

    simulated: bool
    device: torch.device
    networks: list[Network]
    batches: tuple[int, ...]
    repeats: int
    settled: int  # unmeasured training steps

    @staticmethod
    def of(simulate: bool) -> Sizes:
        """Of a GPU, or tiny ones for the simulator, whose device is the CPU."""
        still = {"speed": "proxy", "lr": 1e-12}  # the structure stays as it is
        if simulate:
            tiny = ManifoldConfig(9, 3, 2, 3.0, cutoff=-2.5, alpha=(3.0, 1.0), sigma=(9.0, 1.0))
            networks = [Network("nine neurons", tiny, TrainConfig(**still), [3, 4, 2])]
            return Sizes(True, torch.device("cpu"), networks, (2,), 1, 1)
        found = []
        for name in ("mnist", "digits"):
            manifold = ManifoldConfig.preset(name, activation="leaky_relu")  # which the peers know
            half = (manifold.n_neurons - manifold.n_inputs - manifold.n_outputs) // 2
            widths = [manifold.n_inputs, half, half, manifold.n_outputs]
            found.append(Network(f"{name}-like", manifold, TrainConfig.preset(name, **still), widths))
        return Sizes(False, torch.device("cuda"), found, (64, 256, 1024), 30, 30)

    @contextlib.contextmanager
    def on_cpu(self) -> Iterator[None]:
        """Engines made and run inside are the CPU's."""
        if not self.simulated:
            yield
            return
        with simulator("cpu"):
            yield

    def cpu_case(self, run: Callable[[], object]) -> Callable[[], object]:
        """``run`` on the CPU's kernels."""

        def with_engine() -> object:
            with self.on_cpu():
                return run()

        return with_engine if self.simulated else run


def simulator(name: str) -> contextlib.AbstractContextManager[None]:
    """Engines made inside are those of ``name``, cpu or cuda: as the tests have it."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    try:
        from cuda_device import kernels_of
    finally:
        del sys.path[0]
    found: contextlib.AbstractContextManager[None] = kernels_of(name)
    return found


# -- what the machine is ---------------------------------------------------------------------------------------


def about(sizes: Sizes, _: float) -> list[str]:
    """Machine, driver and versions."""
    found = machine(sizes.device)
    packages = ", ".join(f"{package} {version}" for package, version in versions().items())
    where = found.get("gpu", "numba's simulator")
    lines = [f"{where}, {found['processor']}, {found['cores']} cores, {found['system']}; {packages}; float32."]
    if not sizes.simulated:
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
            lines.append(f"\nnvidia-smi: {said}; torch is built for CUDA {torch.version.cuda}.")
    return lines


def target(sizes: Sizes, _: float) -> list[str]:
    """A kernel of numba's CUDA target runs and reads what torch has written; how fast it reads."""
    backend.kernels(torch.device("cuda"))
    clock = Clock.of(CUDA_CLOCK)
    rows = {
        mib: cuda.bandwidth(mib * 2**20, sizes.device, clock) for mib in ((1,) if sizes.simulated else (1, 16, 512))
    }
    lines = ["| buffer, MiB | read bandwidth, GB/s |", "|---|---|"]
    lines += [f"| {mib} | {rate / 1e9:,.1f} |" for mib, rate in rows.items()]
    buffer, out = torch.ones(64, device=sizes.device), torch.zeros(8, device=sizes.device)
    backend.launch(cuda.read, 1, 8, buffer, 1, out)
    if float(out.sum()) != 64.0:
        raise AssertionError(f"a kernel that sums 64 ones found {float(out.sum())}")
    return lines


# -- timings ---------------------------------------------------------------------------------------------------


def model_of(network: Network) -> DynamicManifold:
    """The untrained model of seed 0, on the CPU."""
    return DynamicManifold(network.manifold, torch.Generator().manual_seed(0), executor="columns")


def kernels(sizes: Sizes, network: Network, batch: int, seconds: float) -> list[str]:
    """Forward and backward kernels against their floors."""
    model = model_of(network)
    rows = cuda.kernel_section(model, (batch,), sizes.repeats, sizes.device, seconds)
    return [f"{model.topology}", "", *rows]


def cpu_threads() -> dict[str, int]:
    """By how many threads the CPU's engine runs."""
    most = backend.check_threads(0)
    return {f"CPU, {n} {'thread' if n == 1 else 'threads'}": n for n in sorted({1, most})}


def passes_of(sizes: Sizes, network: Network, batch: int, seconds: float) -> list[str]:
    """Forward, and forward + backward: ours on CUDA and on the CPU, torch.sparse, dense."""
    model, device = model_of(network), sizes.device
    with torch.no_grad():
        model(torch.zeros(1, network.manifold.n_inputs))
    x = torch.randn(batch, network.manifold.n_inputs, generator=torch.Generator().manual_seed(1))
    cases, absent = cuda.peer_cases(model, x.to(device), device)
    topology, values = model.topology, model.strengths.detach().cpu()
    with sizes.on_cpu():
        for name, threads in cpu_threads().items():
            dag = SparseDAG(topology, values, threads=threads)
            made = passes(f"SparseDAG, {name},", dag, x, 1)
            cases |= {case: sizes.cpu_case(run) for case, run in made.items()}
    rows = cuda.table(cases, sizes.repeats, device, f"SparseDAG, {cuda.EXECUTORS[0]},", 0.7 * seconds)
    mlp = cuda.mlp_cases(topology.n_edges, network.widths, x.to(device), device)
    dense = cuda.table(mlp, sizes.repeats, device, "MLP, SparseDAG.from_linear,", 0.3 * seconds)
    title = f"An MLP {'-'.join(map(str, network.widths))} with as many edges:"
    return [f"{topology}", "", *rows, *notes(absent), "", title, "", *dense]


def notes(absent: dict[str, str]) -> list[str]:
    """Who is absent, and why."""
    return ["", *(f"- {name}: {why}" for name, why in absent.items())] if absent else []


def steps(sizes: Sizes, network: Network, batch: int, seconds: float) -> list[str]:
    """Whole training steps: the Trainer's on CUDA and on the CPU, dense ones and torch.sparse with Adam."""
    cases: Cases = {}
    device, train = sizes.device, replace(network.train, batch_size=batch)
    for name in cuda.EXECUTORS:
        trainer = make_trainer(
            network.manifold, replace(train, device=str(device), executor=name), settled=sizes.settled
        )
        cases[f"Trainer, CUDA, {name}"] = trainer._advance
    n_edges = trainer.model.n_edges
    with sizes.on_cpu():
        for name, threads in cpu_threads().items():
            on_cpu = make_trainer(network.manifold, replace(train, threads=threads), settled=sizes.settled)
            cases[f"Trainer, {name}"] = sizes.cpu_case(partial(advance, on_cpu, threads))
    x, y = (t.to(device) for t in random_digits(batch, network.manifold))
    model = model_of(network)
    cases["DenseManifold levels, CUDA"] = dense_step(DenseManifold.from_manifold(model, "levels").to(device), x, y)
    layers = [nn.Linear(a, b) for a, b in zip(network.widths, network.widths[1:], strict=False)]
    widths = "-".join(map(str, network.widths))
    cases[f"dense nn.Linear, all weights, {widths}, CUDA"] = dense_step(DenseStack(layers).to(device), x, y)
    absent: dict[str, str] = {}
    try:
        cases["torch.sparse CSR level by level, and Adam (structure fixed)"] = sparse_step(model, x)
    except RuntimeError as error:
        absent["torch.sparse CSR level by level"] = str(error).splitlines()[0]
    rows = cuda.table(cases, sizes.repeats, device, f"Trainer, CUDA, {cuda.EXECUTORS[0]}", seconds)
    return [f"{n_edges:,} edges; step size {train.lr:g}, so that they stay.", "", *rows, *notes(absent)]


def advance(trainer: object, threads: int) -> None:
    """A step of a trainer on the CPU, its threads set as `Trainer.run` does."""
    with backend.use_threads(threads):
        trainer._advance()  # type: ignore[attr-defined]


def sparse_step(model: DynamicManifold, x: torch.Tensor) -> Callable[[], object]:
    """Forward and backward by torch.sparse, and Adam of the edges; nothing finds their structure."""
    columns, values = x.t().contiguous(), model.strengths.detach().to(x.device)
    levels = LevelWise(model.topology, values, torch_csr, torch.mm)
    levels.both(columns)
    optimizer = torch.optim.Adam([levels.values], lr=1e-12, fused=True)

    def step() -> None:
        levels.both(columns)
        optimizer.step()

    return step


# -- parts -----------------------------------------------------------------------------------------------------

TIMED = {"kernels": kernels, "passes": passes_of, "steps": steps}


def blocks_of(part: str, sizes: Sizes) -> list[Block]:
    """What a part consists of."""
    if part == "device":
        return [("", partial(about, sizes)), ("numba's CUDA target", partial(target, sizes))]
    pairs = [(network, batch) for network in sizes.networks for batch in sizes.batches]
    return [(f"{n.name}, batch {batch}", partial(TIMED[part], sizes, n, batch)) for n, batch in pairs]


def run(part: str, sizes: Sizes, seconds: float) -> int:
    """Print the blocks of a part; see the module."""
    start, code, left_out = time.perf_counter(), 0, []
    found = blocks_of(part, sizes)
    for k, (title, make) in enumerate(found):
        left = seconds - (time.perf_counter() - start)
        if left < ENOUGH * seconds:
            left_out.append(title)
            continue
        if title:
            print(f"### {title}\n")
        try:
            print("\n".join([*make(0.4 * left / (len(found) - k)), ""]), flush=True)
        except Exception as error:
            traceback.print_exc()
            print(
                f"**Failed**: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n", flush=True
            )
            code = 1
    if left_out:
        print(f"Left out for want of time: {'; '.join(left_out)}.\n", flush=True)
    return code or (CUT if left_out else 0)


def main() -> int:
    """Make a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("device", *TIMED))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--simulate", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.simulate and not backend.SIMULATED:
        parser.error("--simulate needs numba's simulator: set NUMBA_ENABLE_CUDASIM=1")
    sizes = Sizes.of(options.simulate)
    if not options.simulate:
        return run(options.part, sizes, options.seconds)
    cuda.CALLS = 1
    with simulator("cuda"):
        return run(options.part, sizes, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
