"""Generated inputs of every kind that the product reads: only a ValueError that says something may come of them.

Each function of CASES takes hypothesis' ``draw`` and tries one case: settings, topologies, tables, arrays, checkpoints
(with the other files of a run) and profiles.  What is read must be what was written: `Misread` otherwise.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import networkx as nx
import numpy as np
import torch
from hypothesis import strategies as st
from scipy import sparse

from bench.damage import JUNK, WORDS, Draw, Misread, bad, damaged, place
from bench.run_files import checkpoints, profiles
from sparse_dnm import data
from sparse_dnm.config import ManifoldConfig, TrainConfig, apply_settings, from_dict
from sparse_dnm.data.table_files import read_table
from sparse_dnm.engine.topology import Topology

LONGEST = 20  # CPU seconds for a case; longer is a hang
# -- settings -----------------------------------------------------------------------------------------------------

LIKELY = {
    int: st.integers(0, 300), float: st.floats(0, 2, allow_nan=False), bool: st.booleans(), str: st.sampled_from(WORDS),
}  # fmt: skip


def settings(draw: Draw) -> None:
    """Fields of the configs, as JSON and as texts KEY=VALUE."""
    cls = draw(st.sampled_from([ManifoldConfig, TrainConfig]))
    base = dataclasses.asdict(ManifoldConfig.preset("toy")) if cls is ManifoldConfig else {}
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    if draw(st.booleans()):
        texts = draw(st.lists(st.tuples(st.sampled_from([*fields, "nothing"]), st.one_of(JUNK, st.integers(0, 99)))))
        given = [f"{name}{draw(st.sampled_from(['=', ' = ', '']))}{value}" for name, value in texts]
        try:
            apply_settings(ManifoldConfig.preset("toy"), TrainConfig(), given)
        except ValueError as error:
            bad(error)
        return
    values = dict(base)
    for name in draw(st.lists(st.sampled_from([*fields, "nothing"]), max_size=5)):
        likely = LIKELY.get(type(fields.get(name)), JUNK)
        values[name] = draw(st.one_of(likely, JUNK))
    try:
        made = from_dict(cls, values)
    except ValueError as error:
        bad(error, *values)
        return
    for name, value in values.items():
        held = getattr(made, name)
        if isinstance(held, bool) and str(value).lower() in ("0", "1", "true", "false"):
            value = str(value).lower() in ("1", "true")
        if held != (tuple(value) if isinstance(held, tuple) else value):
            raise Misread(f"{name}={value!r} became {held!r}")
    if from_dict(cls, json.loads(json.dumps(dataclasses.asdict(made)))) != made:
        raise Misread(f"{made} is not what its JSON says")


# -- topologies ---------------------------------------------------------------------------------------------------


def topologies(draw: Draw) -> None:
    """Edges, CSR arrays, sparse matrices and graphs."""
    n = draw(st.integers(0, 8))
    number = st.integers(-1, n) if draw(st.integers(0, 3)) == 0 else st.integers(0, max(n - 1, 0))
    pairs = draw(st.lists(st.tuples(number, number), max_size=10, unique=draw(st.booleans())))
    if draw(st.booleans()):  # mostly acyclic
        pairs = [(min(u, v), max(u, v)) for u, v in pairs if u != v]
    ends = st.none() | st.lists(st.integers(-1, n), max_size=3) | JUNK
    inputs, outputs = (None, None) if draw(st.booleans()) else (draw(ends), draw(ends))
    made_by = draw(st.sampled_from([_by_edges, _by_csr, _by_matrix, _by_graph, _by_junk]))
    try:
        made, expected = made_by(draw, pairs, n, inputs, outputs)
    except ValueError as error:
        bad(error)
        if made_by is _by_edges and inputs is None and outputs is None and _is_good(pairs, n):
            raise Misread(f"{pairs} of {n} was refused: {error}") from None
        return
    if made is not None and set(map(tuple, made.edges().tolist())) != expected:
        raise Misread(f"{expected} became {made.edges().tolist()}")
    if made is not None and not _is_good(list(expected), made.n_neurons):
        raise Misread(f"{expected} was accepted")


def _by_edges(draw: Draw, pairs: list, n: int, inputs: Any, outputs: Any) -> tuple[Topology, set]:
    given: Any = pairs
    if draw(st.booleans()):
        given = np.array(pairs, draw(st.sampled_from(["i4", "i8", "i2"]))).reshape(-1, 2)
    return Topology.from_edges(given, n, inputs, outputs), set(pairs)


def _by_csr(draw: Draw, pairs: list, n: int, inputs: Any, outputs: Any) -> tuple[Topology, set]:
    indptr = draw(st.lists(st.integers(-1, 6), max_size=9).map(lambda x: sorted(x) if len(x) % 4 else x))
    indices = [u for u, _ in pairs]
    made = Topology.from_csr(indptr, indices, inputs, outputs)
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return made, set(zip(indices, rows.tolist(), strict=True))


def _by_matrix(draw: Draw, pairs: list, n: int, inputs: Any, outputs: Any) -> tuple[Topology, set]:
    inside = [(u, v) for u, v in pairs if 0 <= u < n and 0 <= v < n]
    rows, columns = [v for _, v in inside], [u for u, _ in inside]
    shape = (n, draw(st.sampled_from([n, n, n, n + 1])))
    matrix = sparse.coo_array((np.ones(len(inside)), (rows, columns)), shape=shape)
    form = draw(st.sampled_from(["coo", "csr", "csc", "dense"]))
    given = matrix.toarray() if form == "dense" else matrix.asformat(form)
    return Topology.from_scipy(given, inputs, outputs, rows=draw(st.sampled_from(["readers", "readers", "rows"]))), set(
        inside
    )


def _by_graph(draw: Draw, pairs: list, n: int, inputs: Any, outputs: Any) -> tuple[Topology, set]:
    graph: Any = draw(st.sampled_from([nx.DiGraph, nx.DiGraph, nx.Graph, nx.MultiDiGraph]))()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(pairs)
    number = {node: k for k, node in enumerate(graph)}
    return Topology.from_networkx(graph, inputs, outputs), {(number[u], number[v]) for u, v in pairs}


def _by_junk(draw: Draw, pairs: list, n: int, inputs: Any, outputs: Any) -> tuple[None, set]:
    small = st.one_of(st.none(), st.sampled_from(WORDS), st.sampled_from([0, 1, 2, -1, 0.5, math.nan, 10**400, 1e308]))
    given = draw(st.one_of(st.lists(small, max_size=4), st.lists(st.lists(small, max_size=3), max_size=4)))
    size = draw(st.one_of(st.none(), st.integers(-1, 9), st.sampled_from(["3", 2.0, 10**400])))
    Topology.from_edges(given, size, inputs, outputs)
    return None, set()


def _is_good(pairs: list[tuple[int, int]], n: int) -> bool:
    """By plain loops: neurons in range, no edge twice, no cycle, an input and an output."""
    if n < 1 or len(set(pairs)) < len(pairs) or any(not (0 <= u < n and 0 <= v < n) for u, v in pairs):
        return False
    left, waiting = set(range(n)), set(pairs)
    while left:
        free = left - {v for _, v in waiting}
        if not free:
            return False
        left -= free
        waiting = {(u, v) for u, v in waiting if u not in free}
    return True


# -- tables and arrays --------------------------------------------------------------------------------------------


def tables(draw: Draw) -> None:
    """Text files of tables: as they should be, and damaged."""
    n, path = draw(st.integers(4, 14)), place("table.csv")
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    kinds = draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=4))
    columns = [_column(draw, kind, n) for kind in kinds]
    names = [f"f{k}" for k in range(len(kinds))]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    good = text.getvalue().encode()
    hit = draw(st.booleans())
    path.write_bytes(damaged(draw, good) if hit else good)
    try:
        if not hit and len(names) > 1:
            frame = read_table(path)
            for name, column in zip(names, columns, strict=True):
                if list(frame[name]) != [cell.strip() if "f" in name else cell for cell in column]:
                    raise Misread(f"{column} became {list(frame[name])}")
        _check_data(data.load(path), n if not hit else None)
    except ValueError as error:
        bad(error, path.name, "column", "label", "class", *names)


SEEDS = st.integers(0, 10**6)
CELLS = {
    "number": st.floats(-1e6, 1e6).map(lambda x: f"{x:.4g}"),
    "whole": st.integers(-50, 2000).map(str),
    "word": st.sampled_from(["red", "green", "blue"]),
    "text": st.text(alphabet="ab ,;\"'\tß<&\u202e$", min_size=1, max_size=6).map(str.strip).map(lambda x: x or "x"),
    "hole": st.sampled_from(["1.5", "2", "", "NA", "nan"]),
    "day": st.integers(1, 28).map(lambda day: f"2024-02-{day:02}"),
    "odd": st.sampled_from(["1e400", "-inf", "0x10", "1_000", "1,5", "1.234.567", "007", "٣", "½", "true", "None"]),
}


def _column(draw: Draw, kind: str, n: int) -> list[str]:
    """Cells, some of them equal: few are drawn one by one."""
    some = draw(st.lists(CELLS[kind], min_size=1, max_size=4))
    if kind not in ("number", "whole", "day"):
        return [some[k] for k in np.random.default_rng(n).integers(0, len(some), n)]
    rng = np.random.default_rng(draw(SEEDS))
    form = {"number": lambda: f"{rng.normal(0, 1e3):.4g}", "whole": lambda: str(rng.integers(-50, 2000))}
    return some + [form.get(kind, lambda: f"2024-02-{rng.integers(1, 29):02}")() for _ in range(n - len(some))]


def _check_data(found: Any, n: int | None) -> None:
    """A data set that can be trained on: finite, and of no more samples than there were."""
    for x in (found.x_train, found.x_test):
        if not bool(torch.isfinite(x).all()):
            raise Misread("inputs that are not finite")
    if n is not None and len(found.x_train) + len(found.x_test) > n:
        raise Misread(f"{len(found.x_train)} + {len(found.x_test)} samples of {n}")


def arrays(draw: Draw) -> None:
    """Archives of arrays: names, shapes and types of all kinds, pickles among them, and damaged ones."""
    path, content = place("arrays.npz"), io.BytesIO()
    n = draw(st.integers(0, 9))
    held = {}
    for name in draw(
        st.lists(st.sampled_from(["x", "y", "X_train", "labels", "x_test", "y_test", "z", "a/b", "../up"]))
    ):
        shape = draw(st.sampled_from([(n,), (n, 3), (n, 2, 2), (n, 2, 2, 3), (), (n + 1, 3), (n, 0)]))
        kind = draw(st.sampled_from(["f4", "f8", "i8", "u1", "?", "U3", "c8", "M8[s]", "O", "f2", "S2"]))
        held[name] = _array(draw, shape, kind)
    np.savez(content, **held)
    good = content.getvalue()
    path.write_bytes(damaged(draw, good) if draw(st.booleans()) else good)
    try:
        _check_data(data.load(path), None)
    except ValueError as error:
        bad(error, path.name, "label", "class", "sample", "array")


class Bomb:
    """What unpickling it does is to leave a file."""

    def __reduce__(self) -> tuple:
        return Path.touch, (place("bomb"),)


def _array(draw: Draw, shape: tuple[int, ...], kind: str) -> np.ndarray:
    size = math.prod(shape)
    if kind == "O":
        return np.array([Bomb()] * size, object).reshape(shape)
    numbers = np.random.default_rng(draw(st.integers(0, 99))).normal(0, 3, size).reshape(shape)
    if draw(st.integers(0, 9)) == 0 and size:
        numbers.flat[0] = draw(st.sampled_from([math.nan, math.inf, 1e300]))
    with np.errstate(all="ignore"), suppress(ValueError, TypeError):
        return numbers.astype("i8").astype(kind) if kind[0] in "iuM?US" else numbers.astype(kind)
    return numbers


CASES = {one.__name__: one for one in (settings, topologies, tables, arrays, checkpoints, profiles)}


@contextmanager
def in_time() -> Iterator[Callable[[], None]]:
    """Yields what is called when a case begins; one that takes longer than LONGEST is an error."""

    def late(*_: object) -> None:
        raise Misread(f"a case took longer than {LONGEST} s")

    before = signal.signal(signal.SIGPROF, late)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_PROF, LONGEST) and None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(name: str, wanted: int, seed: int = 0) -> int:
    """Try so many cases of a kind, or as many as there are; how many.  Raises what a case raises, with an example."""
    tried = 0

    @st.composite
    def one_case(draw: Draw) -> None:
        begin()
        CASES[name](draw)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=wanted, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    @hypothesis.given(one_case())
    def all_of_them(_: None) -> None:
        nonlocal tried
        tried += 1

    with warnings.catch_warnings(), in_time() as begin:
        warnings.simplefilter("ignore")
        all_of_them()
    if place("bomb").exists():
        raise Misread("something that was loaded was executed")
    return tried


__all__ = ["CASES", "Misread", "run"]
