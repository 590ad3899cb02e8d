"""What is shipped: the network of a model, and what its columns and outputs mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm import __version__
from sparse_dnm.checks import DTYPES
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.lowering.network import Folded
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.recurrent import refuse_recurrent
from sparse_dnm.model.sparse_dag import SparseDAG

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def dag_of(model: Any) -> SparseDAG:
    """The SparseDAG of a SparseDAG or a DynamicManifold.

    Raises ValueError for anything else, and for networks whose forward is not that of their structure and parameters.
    """
    refuse_recurrent(model, "this format", "; a program in C does: format c, in float32")
    if not isinstance(model, (SparseDAG, DynamicManifold)):
        raise ValueError(
            f"a {type(model).__name__} cannot be exported; give a SparseDAG or a DynamicManifold, such as the model of "
            "sparse_dnm.load(RUN)"
        )
    own = DynamicManifold if isinstance(model, DynamicManifold) else SparseDAG
    if type(model).forward is not own.forward:
        raise ValueError(
            f"{type(model).__name__} has a forward of its own, which no format holds; export {own.__name__}"
        )
    if any(getattr(model, name) for name in HOOKS):
        raise ValueError("the network has forward hooks, which no format holds; remove them before the export")
    return model.to_dag() if isinstance(model, DynamicManifold) else model


def folded_of(dag: SparseDAG) -> tuple[Folded, np.dtype[Any]]:
    """The network in its normal form, and the dtype of its parameters.

    Raises ValueError where a product of parameters is beyond that dtype.
    """
    folded, dtype = Folded.of(dag), DTYPES[dag.bias.dtype]
    for name in ("weights", "bias", "scale", "shift"):
        as_type(name, getattr(folded, name), dtype)
    return folded, dtype


def as_type(name: str, values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers in the dtype of the network.  Raises ValueError where they are beyond it."""
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise ValueError(
            f"{name}: {values.flat[bad[0]]:.3g}, a product of parameters, is beyond {dtype}; export model.double()"
        )
    return found


def check_fits(dag: SparseDAG, preprocessing: Preprocessing | None) -> None:
    """Raise ValueError if a preprocessing makes other inputs than the network has."""
    if preprocessing is not None and preprocessing.n_inputs != dag.n_inputs:
        raise ValueError(
            f"the network has {dag.n_inputs} inputs and the preprocessing makes {preprocessing.n_inputs}; they must be "
            "of one run"
        )


def description(preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Version of this package and, where there is a preprocessing, what inputs and outputs mean, as JSON values."""
    found: dict[str, Any] = {"producer": "sparse-dnm", "version": __version__}
    if preprocessing is None:
        return found
    classes = preprocessing.classes
    return {
        **found,
        "task": "regression" if classes is None else "classification",
        "feature_names": list(preprocessing.feature_names),
        "target_names": list(preprocessing.target_names),
        "classes": None if classes is None else classes.tolist(),
        "preprocessing": preprocessing.to_json(),
    }
