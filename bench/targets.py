"""The targets of the sparse step, and whether a run of bench.tables reached them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sparse_dnm.kernels.machine import VECTOR_BYTES

from bench.against import Ratio

IDLE, BUSY = "idle", "a second program on one core"


@dataclass(frozen=True)
class Before:
    """A training of this code against that of an old commit: see bench.before."""

    whole: Ratio  # step here / step there
    kernels: Ratio
    over_kernels: Ratio  # step here / kernels there


@dataclass
class Found:
    """Medians that the targets ask for, in seconds, filled in by the sections of bench.tables."""

    peers: dict[str, float] = field(default_factory=dict)
    floor_share: dict[str, float] = field(default_factory=dict)  # floor / time, batch 64
    floor_s: dict[str, float] = field(default_factory=dict)  # seconds, batch 64
    steps: dict[str, float] = field(default_factory=dict)
    parts_s: float | None = None  # kernels of a step and Adam, each alone, one thread
    threads: dict[str, float] = field(default_factory=dict)  # one thread / two threads
    per_edge: dict[str, tuple[float, float]] = field(default_factory=dict)  # ns per edge and column; DRAM floor / time
    training: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)  # 2 threads, chosen, over 1
    loop: dict[str, float] = field(default_factory=dict)  # loops of one's own
    latency: dict[str, float] = field(default_factory=dict)
    large: dict[str, float] = field(default_factory=dict)
    before: dict[int, Before] = field(default_factory=dict)  # by threads
    whole_runs: list[tuple[float, float]] = field(default_factory=list)  # seconds here and of the commit before
    original_s: list[float] = field(default_factory=list)  # of each run


class Row(NamedTuple):
    """A target: what it is of, the target, what was measured, and whether that reaches it (None: not measured)."""

    what: str
    target: str
    measured: str
    met: bool | None


NOT_MEASURED = "not measured"


def _least(what: str, target: float, slow: float | None, fast: float | None, floor: float | None = None) -> Row:
    """``slow / fast`` must be at least ``target``; where the floor itself forbids that, say so."""
    if not slow or not fast:
        return Row(what, f"≥ {target:g}x", NOT_MEASURED, None)
    said = f"{slow / fast:.2f}x"
    if floor is not None and slow / floor < target:
        said += f"; out of reach: at the floor, {1e6 * floor:.1f} µs, it would be {slow / floor:.1f}x"
    return Row(what, f"≥ {target:g}x", said, slow / fast >= target)


def _most(what: str, target: float, value: float | None, unit: str, note: str = "") -> Row:
    """``value`` must be at most ``target``."""
    if value is None:
        return Row(what, f"≤ {target:g} {unit}", NOT_MEASURED, None)
    return Row(what, f"≤ {target:g} {unit}", f"{value:.3g} {unit}{note}", value <= target)


def _over(slow: float | None, fast: float | None) -> float | None:
    """The ratio of two figures that may be missing."""
    return slow / fast if slow and fast else None


def _kernels(found: Found) -> list[Row]:
    p, both = found.peers, "forward + backward"
    forward = p.get("kernels, 1 threads, forward")
    full = p.get(f"kernels, 1 threads, {both}")
    rows: list[Row] = []
    for name, target in (("forward", 0.75), (both, 0.6)):
        share = found.floor_share.get(name)
        said = NOT_MEASURED if share is None else f"{share:.0%}"
        ok = None if share is None else share >= target
        rows.append(Row(f"{name}, batch 64, 1 thread: floor / time", f"≥ {target:.0%}", said, ok))
    spmm = p.get("torch.sparse CSR, one SpMM, 1 threads")
    floor, avx512 = found.floor_s, VECTOR_BYTES == 64
    wanted = 2.4 if avx512 else 1.7
    rows.append(_least("forward, over one torch.sparse SpMM, 1 thread", wanted, spmm, forward, floor.get("forward")))
    peer = min((p[name] for name in p if name.startswith("torch-sparse") and name.endswith(both)), default=None)
    rows.append(_least(f"{both}, over torch-sparse", 15, peer, full, floor.get(both)))
    rows.append(_least(f"{both}, over connex", 25 if avx512 else 18, p.get(f"connex {both}"), full, floor.get(both)))
    slow = {name: ratio for name, ratio in found.threads.items() if "backward" in name}
    worst = min(slow, key=lambda name: slow[name], default=None)
    said = NOT_MEASURED if worst is None else f"{slow[worst]:.2f}x at worst ({worst})"
    ok = None if worst is None else slow[worst] >= 1.8
    return [*rows, Row("kernels on 2 threads over 1, batch ≥ 128", "≥ 1.8x", said, ok)]


def _steps(found: Found) -> list[Row]:
    s, alone = found.steps, found.steps.get("its forward + backward kernels, 1 threads")
    structure = _over(s.get("structure update (Topology and Schedule)"), found.peers.get("kernels, 1 threads, forward"))
    rows = [_most("structure update after a change", 1, structure, "forwards of batch 64"), *_against(found)]
    around = s.get("kernel evaluate", 0.0) + s.get("kernel strength_back", 0.0)
    rows.append(
        _most("closeness of all candidates and its gradient", 0.6, _over(around, alone), "x forward + backward")
    )
    steps = [s[f"whole step, {n} threads"] for n in (1, 2) if f"whole step, {n} threads" in s]
    dense = [seconds for name, seconds in s.items() if name.startswith("DenseManifold")]
    fastest = min(steps, default=None)
    rows.append(_least("whole training step, over the best DenseManifold", 30, min(dense, default=None), fastest))
    whole, note = fastest and 50_000 * fastest, ", projected from the step (run with --data-dir to measure)"
    if found.original_s:
        whole, note = statistics.median(found.original_s), f", median of {len(found.original_s)}"
        note += f" ({min(found.original_s):.1f} to {max(found.original_s):.1f})"
    return [*rows, _most("original-mnist, 50,000 steps", 30, whole, "s", note)]


def _against(found: Found) -> list[Row]:
    """The rows that compare with the commit before."""
    two = found.before.get(2)
    over, whole = (None, None) if two is None else (two.over_kernels, two.whole)
    s, note = found.steps, ""
    if over is not None:
        note = f" (95 % interval {over.low:.2f} to {over.high:.2f})"
        own = _over(s.get("whole step, 2 threads"), s.get("its forward + backward kernels, 2 threads"))
        note += "" if own is None else f"; over this code's own kernels {own:.2f} x"
        if found.parts_s and (alone := s.get("its forward + backward kernels, 1 threads")):
            note += f"; kernels and Adam, each alone on one thread, add up to {found.parts_s / alone:.1f} x those"
    what = "whole training step, batch 50, 2 threads, over the kernels of 9d64137"
    rows = [_most(what, 2.2, None if over is None else over.ratio, "x", note)]
    pairs = found.whole_runs
    value = None if whole is None else whole.ratio
    if pairs:
        value = statistics.median(here / there for here, there in pairs)
        said = ", ".join(f"{here:.1f} / {there:.1f}" for here, there in pairs)
        note = f", whole runs of 50,000 steps in turns, s: {said}"
    elif whole is not None:
        note = f" (95 % interval {whole.low:.2f} to {whole.high:.2f}), blocks of Trainer.run in turns"
        note += " (run with --data-dir for whole runs)"
    return [*rows, _most("original-mnist training, over that of 9d64137", 0.45, value, "of its time", note)]


def _loops(found: Found) -> list[Row]:
    """Loops of one's own, and batch 1, with what torch alone takes."""
    loop, latency = found.loop, found.latency
    batch, toy = "original-mnist, batch 64", "toy, batch 50"
    kernels, mlp = loop.get(f"{batch}, forward + backward kernels"), loop.get("torch MLP 5-16-4, batch 50")

    def least(part: float | None, whole: float | None) -> str:
        share = _over(part, whole)
        return "" if share is None else f"; empty passes alone {share:.2f}x"

    empty = loop.get(f"{batch}, empty passes")
    learning = _over(loop.get(f"{batch}, and SGD"), kernels)
    note = least(empty, kernels) + ("" if learning is None else f"; with a step of SGD {learning:.2f}x")
    rows = [
        _most("own loop, model(x) and backward, batch 64", 2.5, _over(loop.get(batch), kernels), "x the kernels", note)
    ]
    note = least(loop.get(f"{toy}, empty passes"), mlp)
    rows.append(_most("own loop, toy, batch 50", 1.2, _over(loop.get(toy), mlp), "x a torch MLP 5-16-4", note))
    kernel, module = latency.get("kernel alone"), latency.get("an empty nn.Module")
    rows.append(_most("batch 1, 6,000 edges, kernel", 10, kernel and 1e6 * kernel, "µs"))
    empty_call = _over(module, kernel)
    note = "" if empty_call is None else f"; a call of an empty module {empty_call:.2f}x"
    for name, case in (("model(x)", "model(x)"), ("SparseDAG(x)", "SparseDAG(x), the same graph")):
        ratio = _over(latency.get(case), kernel)
        rows.append(_most(f"batch 1, 6,000 edges, {name} under no_grad", 2.5, ratio, "x the kernel", note))
    return rows


def _threads(found: Found) -> list[Row]:
    """Training on two threads."""
    rows = []
    busy = {batch: ratio for (machine, batch), ratio in found.training.items() if machine == BUSY}
    said = ", ".join(f"batch {batch}: {chosen:.2f}x (always 2: {two:.2f}x)" for batch, (two, chosen) in busy.items())
    ok = min(chosen for _, chosen in busy.values()) >= 0.95 if busy else None
    what = "training on the number of threads that is chosen, the default, over 1, a second program on one core"
    rows.append(Row(what, "≥ 0.95x", said or NOT_MEASURED, ok))
    idle, _ = found.training.get((IDLE, 256), (None, None))
    rows.append(_least("training on 2 threads over 1, idle machine, batch 256", 1.5, idle, idle and 1.0))
    return rows


def _sizes(found: Found) -> list[Row]:
    rows = []
    for name in ("forward", "forward + backward"):
        costs = {size.split()[0]: pair for size, pair in found.per_edge.items() if size.partition(" ")[2] == name}
        least = min((cost for cost, _ in costs.values()), default=0.0)
        ok = all(cost <= 2 * least or share >= 0.5 for cost, share in costs.values()) if costs else None
        said = ", ".join(f"{size}: {cost:.3f} ns" for size, (cost, _) in costs.items()) or NOT_MEASURED
        rows.append(Row(f"cost per edge and column, {name}", "within 2x, or 2x of the DRAM floor", said, ok))
    big = found.large
    note = f", {big['edges']:,.0f} edges, batch 16, step {big['seconds']:.2f} s" if big else ""
    rows.append(_most("memory of a large manifold's training step", 8, big.get("gib"), "GiB", note))
    return rows


def rows(found: Found) -> list[Row]:
    """All targets."""
    return [*_kernels(found), *_steps(found), *_loops(found), *_threads(found), *_sizes(found)]


def _said(met: bool | None) -> str:
    return "—" if met is None else "met" if met else "**missed**"


def lines(found: Found, avx2: Sequence[Row] | None = None) -> list[str]:
    """All targets as a Markdown table; ``avx2``: those of a process that compiles for AVX2, in columns of their own."""
    if avx2 is None:
        out = ["| | target | measured | |", "|---|---|---|---|"]
        return out + [f"| {what} | {target} | {said} | {_said(ok)} |" for what, target, said, ok in rows(found)]
    out = ["| | target | AVX-512 | | target | AVX2 | |", "|---|---|---|---|---|---|---|"]
    for row, other in zip(rows(found), avx2, strict=True):
        cells = [row.what, row.target, row.measured, _said(row.met)]
        cells += ["", "", ""] if other.met is None else [other.target, other.measured, _said(other.met)]
        out.append(f"| {' | '.join(cells)} |")
    return out
