"""The targets of the sparse step, and whether a run of bench.tables reached them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from bench.against import Ratio
from sparse_dnm.kernels.machine import VECTOR_BYTES


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
    profile: dict[int, dict[str, float]] = field(default_factory=dict)  # seconds of the parts of a step, by threads
    threads: dict[str, float] = field(default_factory=dict)  # one thread / two threads
    per_edge: dict[str, tuple[float, float]] = field(default_factory=dict)  # ns per edge and column; DRAM floor / time
    training: dict[tuple[str, int], float] = field(default_factory=dict)  # one thread / two, by machine and batch
    loop: dict[str, float] = field(default_factory=dict)  # loops of one's own
    latency: dict[str, float] = field(default_factory=dict)
    large: dict[str, float] = field(default_factory=dict)
    before: dict[int, Before] = field(default_factory=dict)  # by threads
    original_s: list[float] = field(default_factory=list)  # of each run


Row = tuple[str, str, str, bool | None]


def _ratio(what: str, target: float, slow: float | None, fast: float | None, floor: float | None = None) -> Row:
    """``slow / fast`` must be at least ``target``; where the floor itself forbids that, say so."""
    if slow is None or fast is None:
        return what, f"≥ {target:g}x", "not measured", None
    said = f"{slow / fast:.1f}x"
    if floor is not None and slow / floor < target:
        said += f"; out of reach: at the floor, {1e6 * floor:.1f} µs, it would be {slow / floor:.1f}x"
    return what, f"≥ {target:g}x", said, slow / fast >= target


def _most(what: str, target: float, value: float | None, unit: str, note: str = "") -> Row:
    """``value`` must be at most ``target``."""
    if value is None:
        return what, f"≤ {target:g} {unit}", "not measured", None
    return what, f"≤ {target:g} {unit}", f"{value:.3g} {unit}{note}", value <= target


def _kernels(found: Found) -> list[Row]:
    p, both = found.peers, "forward + backward"
    forward = p.get("kernels, 1 threads, forward")
    full = p.get(f"kernels, 1 threads, {both}")
    rows: list[Row] = []
    for name, target in (("forward", 0.75), (both, 0.6)):
        share = found.floor_share.get(name)
        said = "not measured" if share is None else f"{share:.0%}"
        ok = None if share is None else share >= target
        rows.append((f"{name}, batch 64, 1 thread: floor / time", f"≥ {target:.0%}", said, ok))
    spmm = p.get("torch.sparse CSR, one SpMM, 1 threads")
    floor, avx512 = found.floor_s, VECTOR_BYTES == 64
    wanted = 2.4 if avx512 else 1.7
    rows.append(_ratio("forward, over one torch.sparse SpMM, 1 thread", wanted, spmm, forward, floor.get("forward")))
    peer = min((p[name] for name in p if name.startswith("torch-sparse") and name.endswith(both)), default=None)
    rows.append(_ratio(f"{both}, over torch-sparse", 15, peer, full, floor.get(both)))
    rows.append(_ratio(f"{both}, over connex", 25 if avx512 else 18, p.get(f"connex {both}"), full, floor.get(both)))
    own = p.get(f"model, 1 threads, {both}")
    rows.append(_most("own loop, model(x) and backward, batch 64", 2.5, own and full and own / full, "x the kernels"))
    slow = {name: ratio for name, ratio in found.threads.items() if "backward" in name}
    worst = min(slow, key=lambda name: slow[name], default=None)
    said = "not measured" if worst is None else f"{slow[worst]:.2f}x at worst ({worst})"
    rows.append(("2 threads over 1, batch ≥ 128", "≥ 1.8x", said, None if worst is None else slow[worst] >= 1.8))
    return rows


def _steps(found: Found) -> list[Row]:
    s = found.steps
    structure = s.get("structure update (Topology and Schedule)")
    forward = found.peers.get("kernels, 1 threads, forward")
    share = structure / forward if structure and forward else None
    rows = [_most("structure update after a change", 1, share, "forwards of batch 64")]
    steps = {n: s[f"whole step, {n} threads"] for n in (1, 2) if f"whole step, {n} threads" in s}
    best = min(steps, key=lambda n: steps[n], default=None)
    if best is None:
        return rows
    kernels = s[f"its forward + backward kernels, {best} threads"]
    note = f", {best} threads"
    alone = s.get("its forward + backward kernels, 1 threads")
    if found.parts_s and alone:
        note += f"; its kernels and Adam, each alone on one thread, add up to {found.parts_s / alone:.1f}x"
    rows.append(_most("whole training step, batch 50", 2.2, steps[best] / kernels, "x its kernels", note))
    around = s.get("kernel evaluate", 0.0) + s.get("kernel strength_back", 0.0)
    rows.append(_most("closeness of all candidates and its gradient", 0.6, alone and around / alone, "x the kernels"))
    toy, mlp = s.get("own loop, toy, model(x) and backward"), s.get("own loop, torch MLP 5-16-4")
    rows.append(_most("own loop, toy, batch 50", 1.2, toy and mlp and toy / mlp, "x a torch MLP 5-16-4"))
    dense = [seconds for name, seconds in s.items() if name.startswith("DenseManifold")]
    rows.append(_ratio("whole training step, over the best DenseManifold", 30, min(dense, default=None), steps[best]))
    whole, note = 50_000 * steps[best], ", projected from the step (run with --data-dir to measure)"
    if found.original_s:
        whole, note = statistics.median(found.original_s), f", median of {len(found.original_s)}"
        note += f" ({min(found.original_s):.1f} to {max(found.original_s):.1f})"
    rows.append(_most("original-mnist, 50,000 steps", 30, whole, "s", note))
    return rows


def _sizes(found: Found) -> list[Row]:
    kernel, call, dag = (
        found.latency.get(name) for name in ("kernel alone", "model(x)", "SparseDAG(x), the same graph")
    )
    rows = [
        _most("batch 1, 6,000 edges, kernel", 10, kernel and 1e6 * kernel, "µs"),
        _most("batch 1, 6,000 edges, model(x)", 2.5, kernel and call and call / kernel, "x the kernel"),
        _most("batch 1, 6,000 edges, SparseDAG(x)", 2.5, kernel and dag and dag / kernel, "x the kernel"),
    ]
    for name in ("forward", "forward + backward"):
        costs = {size.split()[0]: pair for size, pair in found.per_edge.items() if size.partition(" ")[2] == name}
        least = min((cost for cost, _ in costs.values()), default=0.0)
        ok = all(cost <= 2 * least or share >= 0.5 for cost, share in costs.values()) if costs else None
        said = ", ".join(f"{size}: {cost:.3f} ns" for size, (cost, _) in costs.items()) or "not measured"
        rows.append((f"cost per edge and column, {name}", "within 2x, or 2x of the DRAM floor", said, ok))
    big = found.large
    note = f", {big['edges']:,.0f} edges, batch 16, step {big['seconds']:.2f} s" if big else ""
    rows.append(_most("memory of a large manifold's training step", 8, big.get("gib"), "GiB", note))
    return rows


def lines(found: Found) -> list[str]:
    """All targets as a Markdown table."""
    out = ["| | target | measured | |", "|---|---|---|---|"]
    for what, target, said, ok in [*_kernels(found), *_steps(found), *_sizes(found)]:
        out.append(f"| {what} | {target} | {said} | {'—' if ok is None else 'met' if ok else '**missed**'} |")
    return out
