"""A recurrent network as a C program: the files and their sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dnm.export import c_main
from sparse_dnm.export.c_features import Features
from sparse_dnm.export.c_text import MARK, Text, joined
from sparse_dnm.lowering.c_cells import RecurrentNetwork
from sparse_dnm.lowering.c_network import Float32
from sparse_dnm.model.recurrent_dag import RecurrentDAG

SEQUENCES, STEPS = 4, 8  # in test_vectors.h: so many sequences, of so many time steps at most


class RecurrentText(Text):
    """The text of a program of a recurrent network, and the tables that it defines."""

    run, state = "step", True

    @property
    def state_bytes(self) -> int:
        """Bytes of a state."""
        return 4 * sum(self.network.state.values())

    def _about(self) -> str:
        return (
            f"   A recurrent network of {self.network.n_edges} edges, in {self.arithmetic.name}.\n"
            f"   State: {self.state_bytes} bytes of RAM for each {self.name}_state."
        )

    def _state_docs(self) -> Iterable[str]:
        """Lines that declare the state."""
        yield "/* What the network knows of a sequence after a time step. */"
        yield "typedef struct {"
        yield from (f"    float {array}[{size}];" for array, size in self.network.state.items())
        yield from (f"}} {self.name}_state;", "", "/* Before the first time step of a sequence. */")
        yield from (f"void {self.name}_reset({self.name}_state *state);", "")


def check_recurrent(dtype: str) -> None:
    """Raise ValueError for what a program of a recurrent network cannot be yet."""
    if dtype != "float32":
        raise ValueError(f"dtype={dtype!r} does not support recurrent networks yet; float32 does: leave it out")


def made_of(
    dag: RecurrentDAG, name: str, features: Features | None, samples: Any
) -> tuple[dict[str, str], tuple[int, int, int, int], Callable[[Any], NDArray[np.float64]]]:
    """Files of the program; bytes of constants, RAM, stack and state; and outputs for sequences (n, time, n_inputs).

    See `to_c`.
    """
    network, exact = RecurrentNetwork(dag, name), copy.deepcopy(dag).cpu().double()
    text = RecurrentText(name, dag, network, Float32, features, False)

    def outputs(x: Any) -> NDArray[np.float64]:
        with torch.no_grad():
            return np.asarray(exact(torch.from_numpy(np.asarray(x, np.float64))).numpy())

    rows, expected, steps = _vectors(dag, outputs, features, samples)
    vectors = (*c_main.vectors(MARK, rows, expected), "", f"#define N_STEPS {steps}")
    files = {
        f"{name}.h": text.header(),
        f"{name}.c": text.source(),
        "test_vectors.h": vectors,
        "check.c": c_main.check(MARK, name, bool(text.classes), features is not None, False, recurrent=True),
        "main.c": c_main.main(MARK, name, features, False, recurrent=True),
        "Makefile": c_main.makefile(MARK, name),
    }
    sizes = text.constant_bytes, network.ram_bytes, text.stack_bytes, text.state_bytes
    return {file: joined(lines) for file, lines in files.items()}, sizes, outputs


def _vectors(dag: RecurrentDAG, outputs: Any, features: Features | None, samples: Any) -> tuple[Any, Any, int]:
    """Time steps of sequences of one length, one sequence after the other, what the program gives for each, and that
    length."""
    if features is not None:
        x = features.examples(SEQUENCES * STEPS)
        y = outputs(features.inputs(x.astype(np.float64)).reshape(SEQUENCES, STEPS, -1)).reshape(len(x), -1)
        target: Any = features.preprocessing.target
        return x, y if features.classes else y * target.std + target.mean, STEPS
    if samples is None:
        samples = np.random.default_rng(0).standard_normal((SEQUENCES, STEPS, dag.n_inputs))
    samples = np.asarray(samples, np.float32)[:SEQUENCES, :STEPS]
    if samples.ndim != 3 or not samples.size or samples.shape[2] != dag.n_inputs or not np.isfinite(samples).all():
        raise ValueError(
            f"samples of shape {samples.shape} must be finite numbers (n, time, {dag.n_inputs}), a sequence for each"
        )
    rows, expected = (each.reshape(-1, each.shape[2]) for each in (samples, outputs(samples)))
    return rows, expected, samples.shape[1]
