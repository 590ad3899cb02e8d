"""Which engine runs on a device: the one place that asks."""

from __future__ import annotations

import torch

from sparse_dnm.config import ManifoldConfig
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.base import Engine
from sparse_dnm.engine.cpu import CpuEngine


def engine_for(executor: Executor, device: torch.device, config: ManifoldConfig | None = None) -> Engine:
    """The engine that runs ``executor`` on a device; with the ``config`` of a manifold it finds structures, too.

    Raises ValueError if the device has no kernels, and MissingPackageError if a package is missing.
    """
    backend.kernels(device)
    if executor.name == "torch-sparse":
        if device.type != "cpu":
            raise ValueError("executor torch-sparse runs on the CPU only; choose auto, or move to 'cpu'")
        from sparse_dnm.engine.torch_sparse import TorchSparseEngine

        return TorchSparseEngine(executor, config)
    if executor.name == "blocks" and backend.on_cuda(device):
        raise ValueError("executor blocks runs on the CPU only; choose auto, columns or wavefront, or move to 'cpu'")
    if backend.on_cuda(device):
        from sparse_dnm.engine.cuda import CudaEngine

        return CudaEngine(executor, device, config)
    return CpuEngine(executor, config)
