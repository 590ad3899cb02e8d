"""Outputs of a DAG whose plan is known, by the executor that the plan names and on the device where its values are."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dnm.engine import cuda as cuda_executor
from sparse_dnm.engine import device as backend
from sparse_dnm.engine import torch_sparse as torch_sparse_executor
from sparse_dnm.engine.autograd import Propagate, arrays_of, scales_of
from sparse_dnm.engine.cpu import Plan
from sparse_dnm.engine.ring import Ring


def propagate(
    plan: Plan, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor, ring: Ring | None = None,
    closeness: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Outputs of a DAG by the plan's executor."""
    if plan.executor.name == "torch-sparse":
        return torch_sparse_executor.propagate(plan, x, values, weight, bias)
    if backend.on_cuda(x):
        structure = cuda_executor.structure_of(plan, x.device)
        return cuda_executor.Propagate.apply(structure, plan.executor, x, values, weight, bias)
    if torch.is_grad_enabled():
        return Propagate.apply(plan, x, values, weight, bias, ring, closeness)
    return torch.from_numpy(plan.forward(*arrays_of(x, values), scales_of(plan, weight, bias))[0])
