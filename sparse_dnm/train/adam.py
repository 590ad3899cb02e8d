"""Adam by one kernel, also for numbers that a step holds outside the parameters; on CUDA by torch's fused kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparse_dnm.engine import device as backend
from sparse_dnm.engine.device import count_up

KERNELS = backend.kernels(torch.device("cpu"))


def factors_of(t: int, lr: float, beta1: float, beta2: float) -> tuple[float, float]:
    """Of update t = 1, 2, ..: lr / (1 - beta1**t) and sqrt(1 - beta2**t)."""
    return lr / (1 - beta1**t), math.sqrt(1 - beta2**t)


class Adam(torch.optim.Adam):
    """torch's Adam without the decorator that imports torch's compiler, more than a second at every start."""

    add_param_group = getattr(torch.optim.Adam.add_param_group, "__wrapped__", torch.optim.Adam.add_param_group)

    def __init__(self, parameters: list[Tensor], lr: float):
        super().__init__(parameters, lr=lr, fused=True)
        self._parameters = parameters
        self._listed: tuple[list[int], list[dict[str, Tensor]]] = [], []

    @torch.no_grad()
    def update(self, instead: dict[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        """A step without the Python of torch's around it, which costs more than forward and backward of the DAG.

        ``instead``: for a parameter that is held elsewhere, its numbers, gradient and two moments there.
        """
        (group,) = self.param_groups
        parameters = [p for p in self._parameters if p.grad is not None or p in instead]
        names = [id(p) for p in parameters]
        if self._listed[0] != names:
            self._listed = names, self._states(parameters)
        # looked up each time: other code may have replaced a moment, by a longer one when the capacity grows
        first, second, steps = ([each[key] for each in self._listed[1]] for key in ("exp_avg", "exp_avg_sq", "step"))
        gradients: list[Any] = [p.grad for p in parameters]
        for k, p in enumerate(parameters):
            if p in instead:
                parameters[k], gradients[k], first[k], second[k] = instead[p]
        for step in {id(step): step for step in steps}.values():
            count_up(step)
        if parameters and parameters[0].device.type == "cpu":
            return self._update_on_cpu(zip(parameters, gradients, first, second, steps, strict=True))
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            *(parameters, gradients, first, second, [], steps),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
        )

    def _update_on_cpu(self, arguments: Iterable[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]) -> None:
        """By the kernel that `fused.FusedSteps` uses, too."""
        (group,) = self.param_groups
        beta1, beta2 = group["betas"]
        factors: dict[int, tuple[float, float]] = {}
        for *tensors, step in arguments:
            if id(step) not in factors:
                factors[id(step)] = factors_of(int(step), group["lr"], beta1, beta2)
            size, root = factors[id(step)]
            arrays = [t.detach().view(-1).numpy() for t in tensors]
            KERNELS.adam(*arrays, size, beta1, beta2, root, group["eps"])

    def restored(self) -> None:
        """The state was replaced: look it up again; parameters with equal numbers of updates share one."""
        shared: dict[float, Tensor] = {}
        for state in self.state.values():
            state["step"] = shared.setdefault(state["step"].item(), state["step"])
        self._listed = [], []

    def _states(self, parameters: list[Tensor]) -> list[dict[str, Tensor]]:
        """The state of each parameter: its two moments and its number of updates; zeros at first, one tensor of
        numbers for all."""
        state = self.state
        missing = [p for p in parameters if p not in state]
        if len(parameters) < len(state):  # some are frozen: their count stands still
            resting = {id(s["step"]) for p, s in state.items() if p not in set(parameters)}
            for p in parameters:
                if p in state and id(state[p]["step"]) in resting:
                    state[p]["step"] = state[p]["step"].clone()
        if missing:
            step = torch.zeros((), dtype=torch.float32, device=parameters[0].device)
            for p in missing:
                state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return [state[p] for p in parameters]
