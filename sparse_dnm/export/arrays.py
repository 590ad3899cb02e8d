"""Networks as plain arrays, for programs that know numpy's files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.export.described import as_type, check_fits, dag_of, description, folded_of
from sparse_dnm.lowering.network import LEAKY, LOGISTIC, SILU, TANH

assert (LEAKY, LOGISTIC, TANH, SILU) == (0, 1, 2, 3), "files hold these numbers"


def to_npz(model: Any, preprocessing: Preprocessing | None = None) -> dict[str, NDArray[Any]]:
    """A network as arrays by name; ``numpy.savez("net.npz", **to_npz(model))`` writes them, without pickle.

    model          SparseDAG or DynamicManifold, on any device
    preprocessing  that of a `sparse_dnm.Predictor`: adds ``mean`` and ``std``, and names, classes and itself to the
                   metadata

    Cells are what edges lead from and to: k inputs, then a row for each of the others, sources before readers; the last
    are the outputs.  float is the dtype of the network.

    columns       int32 (k,)         column of x that input cell c reads
    scale, shift  float (k,)         input cell = act(scale * x[column] + shift)
    indptr        int64 (rows + 1,)  row r, of cell k + r, has the edges indptr[r] .. indptr[r + 1] - 1
    indices       int32 (edges,)     source cell of each edge
    weights       float (edges,)
    bias          float (rows,)      cell k + r = act(sum of weights * sources + bias)
    kind          int8 (cells,)      activation: 0 leaky_relu, 1 sigmoid, 2 tanh, 3 silu
    slope         float (cells,)     of leaky_relu below zero: 1 is the identity, 0 the ReLU
    level_starts  int64 (levels + 1,)  cells level_starts[l] .. level_starts[l + 1] - 1 do not read each other
    mean, std     float64 (n_inputs,)  x = (raw - mean) / std, where raw samples are numbers
    metadata      text ()            JSON: producer, version, n_inputs, n_outputs, squared (results are squared); of a
                                     preprocessing also task, feature_names, target_names, classes, preprocessing

    Raises ValueError for a model that is neither, or whose parameters are not finite.
    """
    dag = dag_of(model)
    check_fits(dag, preprocessing)
    folded, dtype = folded_of(dag)
    numbers = {
        name: as_type(name, getattr(folded, name), dtype) for name in ("scale", "shift", "weights", "bias", "slope")
    }
    metadata = {
        **description(preprocessing),
        "n_inputs": folded.n_inputs,
        "n_outputs": folded.n_outputs,
        "squared": folded.squared,
    }
    moments = {} if preprocessing is None else dict(zip(("mean", "std"), preprocessing.features.moments(), strict=True))
    return {
        "columns": folded.columns,
        **numbers,
        "kind": folded.kind,
        "indptr": folded.indptr,
        "indices": folded.indices,
        "level_starts": folded.level_starts,
        **moments,
        "metadata": np.array(json.dumps(metadata, ensure_ascii=False)),
    }
