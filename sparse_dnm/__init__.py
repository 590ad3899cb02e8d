"""sparse-dnm: a truly sparse execution engine for Dynamic Neural Manifolds."""

from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.dense import DenseManifold
from sparse_dnm.losses import SparsityProxy, flow_loss
from sparse_dnm.measured import MeasuredMemory, MeasuredTime, TimeSettings
from sparse_dnm.network import DynamicManifold
from sparse_dnm.schedule import Schedule
from sparse_dnm.sparse_dag import SparseDAG
from sparse_dnm.topology import Topology
from sparse_dnm.training import Trainer

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
