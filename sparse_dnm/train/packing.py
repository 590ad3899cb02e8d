"""The tensors of a checkpoint: those that the next update depends on."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from sparse_dnm.data.datasets import BatchOrder
from sparse_dnm.train.batches import AllRows
from sparse_dnm.train.checkpoint import Checkpoint


def pack(
    model: nn.Module, optimizer: Optimizer, order: BatchOrder | AllRows, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Every tensor that the next update depends on; those of the optimiser are named after their parameter."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors.update(pack_optimizer(model, optimizer))
    tensors.update({f"order/{name}": value for name, value in order.state().items()})
    tensors["generator"] = generator.get_state()
    return tensors


def pack_optimizer(model: nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of the optimiser's state, ``optimizer/PARAMETER/KEY``."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = (
                value.clone() if key == "step" else value
            )  # parameters may share one step
    return tensors


def unpack(
    saved: Checkpoint, model: nn.Module, optimizer: Optimizer, order: BatchOrder | AllRows, generator: torch.Generator
) -> None:
    """Restore the tensors of :func:`pack`, except the model's, which must be loaded already."""
    unpack_optimizer(saved, model, optimizer)
    order.load_state(saved.group("order"))
    generator.set_state(saved.tensors["generator"])


def unpack_optimizer(saved: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
    """Restore the tensors of :func:`pack_optimizer`.  Raises ValueError where they are not those of the model."""
    for name, parameter in model.named_parameters():
        state = saved.group(f"optimizer/{name}")
        if state and state.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"the optimiser's state of {name} is {', '.join(state)}, not that of Adam")
        if name == "edge_weight" and "model/structure_digest" not in saved.tensors:
            state = {key: _in_slots(value, len(parameter)) for key, value in state.items()}
        for key, value in state.items():
            if value.shape not in (parameter.shape, ()):
                shapes = f"{tuple(value.shape)}, not {tuple(parameter.shape)}"
                raise ValueError(f"the optimiser's {key} of {name} has shape {shapes}")
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def _in_slots(moment: torch.Tensor, capacity: int) -> torch.Tensor:
    """A moment of a file from before there were slots, one number per candidate: candidate k goes to slot k."""
    if moment.ndim == 0 or len(moment) > capacity:
        return moment
    return torch.cat([moment, moment.new_zeros(capacity - len(moment))])
