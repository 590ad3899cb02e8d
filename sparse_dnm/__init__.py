"""sparse-dnm: a truly sparse execution engine for Dynamic Neural Manifolds.

The public names are imported at their first use (PEP 562): `import sparse_dnm` itself imports neither torch nor Numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_dnm.config import ManifoldConfig, TrainConfig
    from sparse_dnm.engine.schedule import Schedule
    from sparse_dnm.engine.topology import Topology
    from sparse_dnm.loss.memory import MeasuredMemory
    from sparse_dnm.loss.proxy import SparsityProxy, flow_loss
    from sparse_dnm.loss.time import MeasuredTime, TimeSettings
    from sparse_dnm.model.dense import DenseManifold
    from sparse_dnm.model.manifold import DynamicManifold
    from sparse_dnm.model.recurrent import RecurrentState
    from sparse_dnm.model.recurrent_dag import RecurrentDAG
    from sparse_dnm.model.sparse_dag import SparseDAG
    from sparse_dnm.predictor import Predictor, SequencePredictor, load
    from sparse_dnm.train.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "DenseManifold",
    "DynamicManifold",
    "ManifoldConfig",
    "MeasuredMemory",
    "MeasuredTime",
    "Predictor",
    "RecurrentDAG",
    "RecurrentState",
    "Schedule",
    "SequencePredictor",
    "SparseDAG",
    "SparsityProxy",
    "TimeSettings",
    "Topology",
    "TrainConfig",
    "Trainer",
    "flow_loss",
    "load",
]

_MODULES = {  # the module of each public name
    "DenseManifold": "model.dense",
    "DynamicManifold": "model.manifold",
    "ManifoldConfig": "config",
    "MeasuredMemory": "loss.memory",
    "MeasuredTime": "loss.time",
    "Predictor": "predictor",
    "RecurrentDAG": "model.recurrent_dag",
    "RecurrentState": "model.recurrent",
    "Schedule": "engine.schedule",
    "SequencePredictor": "predictor",
    "SparseDAG": "model.sparse_dag",
    "SparsityProxy": "loss.proxy",
    "TimeSettings": "loss.time",
    "Topology": "engine.topology",
    "TrainConfig": "config",
    "Trainer": "train.trainer",
    "flow_loss": "loss.proxy",
    "load": "predictor",
}


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # later uses find it directly
    return value


def __dir__() -> list[str]:
    """All names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
