"""This checkout against another one: python -m bench.against OTHER_CHECKOUT [--pairs N] [--data-dir DATA_DIR].

Two processes, one for each checkout, take turns in short blocks of calls, in the order a b, b a, a b, ...; while one
works the other sleeps.  A case's figure is the median over the pairs of blocks of seconds here / seconds there, with
its 95 % bootstrap interval: below 1 this checkout is faster.  CPU seconds (process_time), which other programs change
little; with more than one thread, where CPU seconds count waiting, wall seconds (perf_counter).  Both processes compute
the same: same seeds, same inputs, public names only, so that the other checkout may be an old one.

    step NAME       a whole training step of the Trainer: batch, structure, loss with the proxy, backward, Adam
    kernels NAME    the forward + backward kernels alone, on the structure that this training has then
    model(x) NAME   a call with a graph, in a loop of one's own; a call and backward; these and a step of torch's SGD,
                    after which no parameter is what it was
    latency         batch 1 under no_grad, a network of about 6,000 edges; and the same as a SparseDAG

Ends with exit code 1 where the upper end of an interval is above --limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from bench.checkout import mount

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 0.02  # seconds of a block of calls, at least
STEPS = 100  # training steps of a block, after which a training writes its line, as by default
EDGES = 6_000  # of the network whose latency is measured
ORIGINAL = "original-mnist"
TRAINING = f"training, {ORIGINAL}"
LIMIT = 1.05  # times as slow as the other checkout, from which on it is said
Run = Callable[[int], float]  # seconds of as many calls


def _clock(threads: int) -> Callable[[], float]:
    """What seconds are read from."""
    return time.process_time if threads == 1 else time.perf_counter


def _calls(call: Callable[[], object], threads: int) -> Run:
    """Seconds of a loop of calls."""
    read = _clock(threads)

    def run(count: int) -> float:
        start = read()
        for _ in range(count):
            call()
        return read() - start

    return run


def _samples(name: str, data_dir: Path | None) -> Any:
    """The data set of a preset; of original-mnist without ``data_dir`` as many random numbers as images have."""
    import torch

    from sparse_dnm import data

    if name == ORIGINAL and data_dir is None:
        generator, digits = torch.Generator().manual_seed(0), data.load("digits")
        x, y = torch.rand(5000, 784, generator=generator), torch.randint(10, (5000,), generator=generator)
        return dataclasses.replace(digits, x_train=x, y_train=y, x_test=x[:10], y_test=y[:10], period=28.0)
    samples = data.load("mnist" if name == ORIGINAL else name, data_dir)
    return dataclasses.replace(samples, x_test=samples.x_test[:10], y_test=samples.y_test[:10])


class _Training:
    """A training that goes on by STEPS steps at a time, from one line of its log to the next, and waits in between.

    It runs in a thread of its own, while the caller waits.
    """

    def __init__(self, name: str, data_dir: Path | None, threads: int):
        import torch

        from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, Trainer

        samples = _samples(name, data_dir)
        train = TrainConfig.preset(name, speed="proxy", log_every=STEPS, checkpoint_every=10**9, threads=threads)
        model = DynamicManifold(ManifoldConfig.preset(name), torch.Generator().manual_seed(0), threads=threads)
        self._trainer, self.model = Trainer(model, samples, train), model
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._failed: BaseException | None = None
        self._read = _clock(threads)
        threading.Thread(target=self._run, daemon=True).start()
        self._wait()

    def _run(self) -> None:
        try:
            self._trainer.run(self._on_log)
            self._failed = RuntimeError("the training has come to its end; give fewer --pairs")
        except BaseException as error:
            self._failed = error
        self._done.release()

    def _on_log(self, _: object) -> None:
        self._done.release()
        self._go.acquire()

    def _wait(self) -> None:
        self._done.acquire()
        if self._failed is not None:
            raise self._failed

    def __call__(self, _: int) -> float:
        """Seconds of the next STEPS steps."""
        start = self._read()
        self._go.release()
        self._wait()
        return self._read() - start


def _kernels(training: _Training, threads: int, root: Path) -> Run:
    """Forward + backward kernels alone, recorded by the checkout's own bench.replay, on the structure of now."""
    import torch

    from sparse_dnm import SparseDAG

    spec = importlib.util.spec_from_file_location("replay_of_checkout", root / "bench" / "replay.py")
    assert spec is not None
    assert spec.loader is not None
    replay = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(replay)
    model = training.model
    x = torch.rand(50, model.config.n_inputs, generator=torch.Generator().manual_seed(1))

    def run(count: int) -> float:
        topology = model.topology
        dag = SparseDAG(topology, torch.full((topology.n_edges,), 0.05), executor="columns", threads=threads)
        for _ in range(2):
            dag(x).sum().backward()
        with replay.recording() as calls:
            dag(x).sum().backward()
        again = replay.replay([c for c in calls if c.name.startswith(("forward", "backward", "add_tiles"))])
        again()
        return _calls(again, threads)(count)

    return run


def _original(data_dir: Path | None, threads: int, root: Path) -> dict[str, Run]:
    """The training of original-mnist, and its forward + backward kernels."""
    training = _Training(ORIGINAL, data_dir, threads)
    return {f"step, {ORIGINAL}": training, f"kernels, {ORIGINAL}": _kernels(training, threads, root)}


def _loops(name: str, batch: int, threads: int) -> dict[str, Run]:
    """A call with a graph, and a call with backward."""
    import torch

    from sparse_dnm import DynamicManifold, ManifoldConfig

    config = ManifoldConfig.preset(name)
    model = DynamicManifold(config, torch.Generator().manual_seed(0), threads=threads)
    x = torch.randn(batch, config.n_inputs, generator=torch.Generator().manual_seed(1))

    def both() -> None:
        model.zero_grad(set_to_none=True)
        model(x).sum().backward()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        both()
        optimizer.step()

    what = f"model(x), {name}, batch {batch}"
    calls = {"": lambda: model(x), ", and backward": both, ", backward and SGD": step}
    return {f"{what}{rest}": _calls(call, threads) for rest, call in calls.items()}


def _latency(threads: int) -> dict[str, Run]:
    """A call of one sample, without a graph, of the original's network with fewer edges; and of the same as a DAG."""
    import torch

    from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG

    low, high = -1.0, 6.0
    for _ in range(12):
        middle = (low + high) / 2
        config = ManifoldConfig.preset("original-mnist", cutoff=middle)
        model = DynamicManifold(config, torch.Generator().manual_seed(0), threads=threads)
        low, high = (middle, high) if model.topology.n_edges > EDGES else (low, middle)
    x = torch.rand(1, config.n_inputs, generator=torch.Generator().manual_seed(1))

    dag = SparseDAG(model.topology, model.strengths, threads=threads)

    def run(module: Callable[[Any], object]) -> Run:
        def call() -> None:
            with torch.no_grad():
                module(x)

        return _calls(call, threads)

    return {f"{name}(x), batch 1, no_grad, {EDGES:,} edges": run(m) for name, m in (("model", model), ("DAG", dag))}


def cases(data_dir: Path | None, threads: int, root: Path = ROOT) -> dict[str, Callable[[], dict[str, Run]]]:
    """What is compared, by name; each is made when it is asked for."""
    data_sets = ("toy", "digits", *(["mnist"] if data_dir else []))
    steps = {f"step, {n}": lambda n=n: {f"step, {n}": _Training(n, data_dir, threads)} for n in data_sets}
    return {
        **steps,
        TRAINING: lambda: _original(data_dir, threads, root),
        "toy": lambda: _loops("toy", 50, threads),
        "original-mnist": lambda: _loops("original-mnist", 64, threads),
        "latency": lambda: _latency(threads),
    }


def work(root: Path, data_dir: Path | None, threads: int) -> None:
    """Serve a checkout: a line of JSON on standard input is a case and a number of calls, the answer is its seconds."""
    mount(root)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    torch.set_num_threads(1)
    made = cases(data_dir, threads, root)
    held: dict[str, Run] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "make" in asked:
            held = made[asked["make"]]()
            answer: Any = list(held)
        else:
            answer = held[asked["run"]](asked["calls"])
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A process that runs the cases of a checkout on command."""

    def __init__(self, root: Path, data_dir: Path | None, threads: int):
        self.root = root
        command = [sys.executable, "-m", "bench.against", str(root), "--work", "--threads", str(threads)]
        command += ["--data-dir", str(data_dir)] if data_dir else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def ask(self, **command: object) -> Any:
        """The answer to a command.  Raises RuntimeError where the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.root} has ended with code {self.process.wait()}; see its errors")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Seconds here over seconds there: median of the pairs and its 95 % interval; and microseconds of a call."""

    name: str
    here_us: float
    there_us: float
    ratio: float
    low: float
    high: float
    pairs: int

    @staticmethod
    def of(name: str, here: list[float], there: list[float], calls: int) -> Ratio:
        """Of the seconds of paired blocks of ``calls`` calls."""
        ratios = np.array(here) / np.array(there)
        low, high = ratios.min(), ratios.max()
        if low < high:
            found = bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0))
            low, high = found.confidence_interval
        here_us, there_us = (1e6 * statistics.median(seconds) / calls for seconds in (here, there))
        return Ratio(name, here_us, there_us, float(np.median(ratios)), float(low), float(high), len(ratios))

    def line(self, limit: float) -> str:
        """A row of the table."""
        said = f"**above {limit:g}**" if self.high > limit else ""
        return (
            f"| {self.name} | {self.here_us:,.1f} | {self.there_us:,.1f} | {self.ratio:.3f} | "
            f"{self.low:.3f}–{self.high:.3f} | {self.pairs} | {said} |"
        )


def compare(here: Worker, there: Worker, name: str, pairs: int) -> Ratio:
    """Time a case of both in turns."""
    calls = STEPS if name.startswith("step") else 1
    for worker in (here, there, here, there):
        worker.ask(run=name, calls=calls)  # compiles; "auto" chooses
    while not name.startswith("step") and calls < 100_000 and here.ask(run=name, calls=calls) < BLOCK:
        calls *= 2
    seconds: dict[Worker, list[float]] = {here: [], there: []}
    for k in range(pairs):
        for worker in (here, there) if k % 2 else (there, here):
            seconds[worker].append(worker.ask(run=name, calls=calls))
    return Ratio.of(name, seconds[here], seconds[there], calls)


def ratios(
    other: Path, pairs: int, data_dir: Path | None, threads: int, only: str, this: Path = ROOT
) -> Iterator[Ratio]:
    """All cases whose name contains ``only``."""
    here, there = Worker(this, data_dir, threads), Worker(other, data_dir, threads)
    try:
        for case in cases(data_dir, threads):
            if only and only not in case:
                continue
            names = here.ask(make=case)
            there.ask(make=case)
            for name in names:
                yield compare(here, there, name, pairs)
    finally:
        here.close()
        there.close()


def main() -> int:
    """Print the table; 1 where something is slower than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of blocks of a case")
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's IDX files; without it mnist is left out")
    parser.add_argument("--threads", type=int, default=1, help="of the engine; 0: all cores")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--limit", type=float, default=LIMIT, help="upper end of an interval that is still let pass")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data_dir = options.data_dir and options.data_dir.resolve()
    if options.work:
        work(options.other, data_dir, options.threads)
        return 0
    if options.pairs < 2:
        parser.error(f"--pairs {options.pairs} must be >= 2: an interval needs some")
    other = options.other.resolve()
    for name in ("sparse_dnm", "kernels"):
        if not (other / name / "__init__.py").is_file():
            parser.error(f"{other} has no {name}/__init__.py; give the folder of a checkout of sparse-dnm")
    print("| case | here, µs | there, µs | here / there | 95 % interval | pairs | |\n|---|---|---|---|---|---|---|")
    slower = 0
    for found in ratios(other, options.pairs, data_dir, options.threads, options.only):
        slower += found.high > options.limit
        print(found.line(options.limit), flush=True)
    return int(slower > 0)


if __name__ == "__main__":
    sys.exit(main())
