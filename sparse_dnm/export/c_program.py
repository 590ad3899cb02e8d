"""A network as a C program: the files, their sizes, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.config import check_choice
from sparse_dnm.export import c_main
from sparse_dnm.export.c_features import Features
from sparse_dnm.export.c_recurrent import check_recurrent, made_of
from sparse_dnm.export.c_text import MARK, Text, joined
from sparse_dnm.io import write_atomic
from sparse_dnm.lowering.c_int8 import Int8
from sparse_dnm.lowering.c_network import Float32, Network
from sparse_dnm.lowering.int8 import Quantized
from sparse_dnm.lowering.layout import Layout
from sparse_dnm.lowering.network import LEAKY, Folded
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent_dag import RecurrentDAG
from sparse_dnm.model.sparse_dag import SparseDAG
from sparse_dnm.predictor import Predictor

DTYPES_C = ("float32", "int8")
VECTORS = 16  # samples in test_vectors.h
RESERVED = frozenset(("main", "check", "test_vectors"))  # names of the files beside NAME.c and NAME.h


@dataclass(frozen=True, eq=False)
class CProgram:
    """Files of a C program.  Samples of a recurrent network are sequences, (n, time, n_inputs).

    files            text by file name
    n_inputs         of the network
    constant_bytes   of the tables and names, which lie in flash
    ram_bytes        of the cells, which lie on the caller's stack, or in static memory with -DNAME_STATIC
    stack_bytes      of the inputs that preprocessing makes, also on the stack
    state_bytes      of a recurrent network's state, of which the caller has one for each sequence that runs
    outputs          outputs of the network (n, n_outputs), as the program computes them, for inputs (n, n_inputs)
    """

    name: str
    files: dict[str, str]
    n_inputs: int
    constant_bytes: int
    ram_bytes: int
    stack_bytes: int
    outputs: Callable[[Any], NDArray[np.float64]]
    state_bytes: int = 0

    def write(self, folder: str | Path) -> list[Path]:
        """Write the files into a folder, which is made if it is missing.

        Raises ValueError naming a file that is there and was not written by an export.
        """
        folder = Path(folder)
        paths = [folder / name for name in self.files]
        for path in paths:
            if path.exists() and not _is_ours(path):
                raise ValueError(
                    f"{path} exists and was not written by sparse-dnm export: move it, or choose another folder"
                )
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, self.files.values(), strict=True):
            write_atomic(path, text.encode("ascii"))
        return paths


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.readline(200)


def to_c(
    model: SparseDAG | RecurrentDAG | DynamicManifold | Predictor, *, name: str = "model", dtype: str = "float32",
    preprocessing: bool = False, samples: Any = None,
) -> CProgram:  # fmt: skip
    """A network as a C99 program that allocates nothing and needs no library.

    model          a network, or a run as `sparse_dnm.load` returns it
    name           of NAME.c, NAME.h and what they define: a C identifier
    dtype          float32, or int8: weights and cells of a byte, sums in int32
    preprocessing  the program takes raw features and gives a class or numbers in the target's own units; needs a run
    samples        (n, n_inputs) inputs of the network: int8 takes the ranges of its numbers from them, and
                   test_vectors.h the first ones; without them test_vectors.h has random ones, and int8 is refused;
                   of a recurrent network (n, time, n_inputs)
    Raises ValueError for a name that is no identifier, and what cannot be exported.
    """
    check_choice("dtype", dtype, DTYPES_C)
    check_name(name)
    features = None
    dag = model.model if isinstance(model, Predictor) else model
    dag = dag.to_dag() if isinstance(dag, DynamicManifold) else dag
    if isinstance(dag, RecurrentDAG):
        check_recurrent(dtype)
    if preprocessing:
        if not isinstance(model, Predictor):
            raise ValueError(
                f"preprocessing=True needs a run, as sparse_dnm.load(RUN) returns it; a {type(model).__name__} has none"
            )
        features = Features(model.preprocessing)
    if isinstance(dag, RecurrentDAG):
        files, sizes, outputs = made_of(dag, name, features, samples)
        return CProgram(name, files, dag.n_inputs, *sizes[:3], outputs, sizes[3])
    if not isinstance(dag, SparseDAG):
        raise ValueError(
            f"model is a {type(dag).__name__}; give a SparseDAG, a RecurrentDAG, a DynamicManifold or a Predictor"
        )
    return _made(Folded.of(dag), features, name, dtype, samples)


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` can begin the names of a C program."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name):
        raise ValueError(
            f"name={name!r} is no C identifier: give ASCII letters, digits and underscores, a letter first, 63 at most"
        )
    if name.lower() in RESERVED:
        raise ValueError(f"name={name!r} is the name of another file of the program; choose another, such as 'model'")


def rescaled(folded: Folded, mean: NDArray[np.float64], std: NDArray[np.float64]) -> Folded:
    """The network of features f whose inputs are x = (f - mean) / std."""
    k, columns = len(folded.columns), folded.columns
    passed = (folded.kind[:k] == LEAKY) & (folded.slope[:k] == 1)
    factor, offset = 1 / std[columns], -mean[columns] / std[columns]
    scale = np.where(passed, 1.0, folded.scale * factor)
    shift = np.where(passed, 0.0, folded.shift + folded.scale * offset)
    edge_factor, edge_offset = np.ones(folded.n_cells), np.zeros(folded.n_cells)
    edge_factor[:k], edge_offset[:k] = np.where(passed, factor, 1.0), np.where(passed, offset, 0.0)
    added = np.zeros(len(folded.bias))
    np.add.at(
        added, np.repeat(np.arange(len(added)), np.diff(folded.indptr)), folded.weights * edge_offset[folded.indices]
    )
    weights = folded.weights * edge_factor[folded.indices]
    return replace(folded, scale=scale, shift=shift, weights=weights, bias=folded.bias + added)


def _made(folded: Folded, features: Features | None, name: str, dtype: str, samples: Any) -> CProgram:
    if samples is not None:
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 2 or samples.shape[1] != folded.n_inputs or not len(samples):
            raise ValueError(f"samples of shape {samples.shape} must be (n, {folded.n_inputs}), a row for each")
        if not np.isfinite(samples).all():
            raise ValueError("samples must be finite numbers")
    affine = features.affine if features and dtype == "float32" else None
    if dtype == "float32":
        of_features = rescaled(folded, *affine) if affine else folded
        layout = Layout.of(of_features, dtype)
        arithmetic: Any = Float32(of_features)
        text = Text(name, of_features, Network(layout, arithmetic, name), arithmetic, features, affine is not None)
        vectors = _vectors(folded.outputs, np.float64, features, samples, folded.n_inputs)
        outputs: Any = folded.outputs
    else:
        if samples is None:
            raise ValueError("dtype='int8' takes the ranges of its numbers from samples; give samples=, a few hundred")
        layout = Layout.of(folded, dtype)
        quantized = Quantized(folded, layout, samples.astype(np.float64))
        arithmetic = Int8(quantized)
        text = Text(name, folded, Network(layout, arithmetic, name), arithmetic, features, False)
        vectors = _coded_vectors(quantized, features, samples)

        def outputs(x: Any) -> NDArray[np.float64]:
            return quantized.outputs(quantized.codes(x)).astype(np.float64) * quantized.unit

    made = CProgram(name, {}, folded.n_inputs, text.constant_bytes, text.network.ram_bytes, text.stack_bytes, outputs)
    made.files[f"{name}.h"] = joined(text.header())
    made.files[f"{name}.c"] = joined(text.source())
    made.files["test_vectors.h"] = joined(c_main.vectors(MARK, *vectors))
    exact = vectors[1].dtype.kind == "i"
    made.files["check.c"] = joined(c_main.check(MARK, name, bool(text.classes), features is not None, exact))
    made.files["main.c"] = joined(c_main.main(MARK, name, features, text.coded))
    made.files["Makefile"] = joined(c_main.makefile(MARK, name))
    return made


def _vectors(run: Any, dtype: Any, features: Features | None, samples: Any, n_inputs: int) -> tuple[Any, Any]:
    """Samples of test_vectors.h and what a program in float32 gives for them, in float64."""
    if features is None:
        drawn = np.random.default_rng(0).standard_normal((VECTORS, n_inputs)).astype(np.float32)
        x = drawn if samples is None else samples[:VECTORS]
        return x, run(x.astype(dtype))
    x = features.examples(VECTORS)
    y = run(features.inputs(x.astype(dtype)))
    target: Any = features.preprocessing.target
    return x, y if features.classes else y * target.std + target.mean


def _coded_vectors(quantized: Quantized, features: Features | None, samples: Any) -> tuple[Any, Any]:
    """The same for a program in int8: integers but for predictions in the units of a target."""
    if features is None:
        codes = quantized.codes(samples[:VECTORS])
        return codes.astype(np.int8), quantized.outputs(codes)
    x = features.examples(VECTORS)
    y = quantized.outputs(quantized.codes(features.inputs(x, np.float32)))
    target: Any = features.preprocessing.target
    return x, y if features.classes else y * quantized.unit * target.std + target.mean
