"""sparse-dnm: a truly sparse execution engine for Dynamic Neural Manifolds."""

from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.engine.schedule import Schedule
from sparse_dnm.engine.topology import Topology
from sparse_dnm.loss.memory import MeasuredMemory
from sparse_dnm.loss.proxy import SparsityProxy, flow_loss
from sparse_dnm.loss.time import MeasuredTime, TimeSettings
from sparse_dnm.model.dense import DenseManifold
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.model.sparse_dag import SparseDAG
from sparse_dnm.train.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "DenseManifold",
    "DynamicManifold",
    "ManifoldConfig",
    "MeasuredMemory",
    "MeasuredTime",
    "Schedule",
    "SparseDAG",
    "SparsityProxy",
    "TimeSettings",
    "Topology",
    "TrainConfig",
    "Trainer",
    "flow_loss",
]
