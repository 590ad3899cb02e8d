"""How modules take their inputs: any leading dimensions, autocast, tracing."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from sparse_dnm.checks import check_input
from sparse_dnm.engine.autograd import unwrapped


def refuse_tracing(way_out: str) -> None:
    """Raise RuntimeError if torch is recording: the recorded program would contain the structure of the example."""
    if torch._C._is_tracing() or torch.compiler.is_compiling():
        raise RuntimeError(way_out)


def is_recorded() -> bool:
    """Does torch record or intercept calls (compile, export, trace, make_fx), so that they must be torch operators?"""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def _autocast(device: str) -> bool:
    """Is torch.autocast on for this type of device?"""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast_off(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating x in ``dtype`` where torch.autocast is on, else as it is."""
    if torch._C._is_any_autocast_enabled() and isinstance(x, Tensor) and _autocast(x.device.type):
        return x.to(dtype) if x.is_floating_point() else x
    return x


def rows_of(
    x: Tensor, n_inputs: int, dtype: torch.dtype, device: torch.device, recorded: bool = False
) -> tuple[Tensor, torch.Size | None, contextlib.AbstractContextManager[object] | None]:
    """An input (..., n_inputs) as rows (batch, n_inputs); its leading dimensions where they are not one; and in which
    context it is computed where torch.autocast is on: in ``dtype``, as torch.amp.custom_fwd(cast_inputs=...) does.
    ``recorded``: what `is_recorded` says.

    Raises ValueError if x does not fit.
    """
    if not recorded and type(x) is Tensor:  # what nearly every call gives, at a tenth of the time of what follows
        x = unwrapped(x)
        fits = x.ndim == 2 and x.shape[1] == n_inputs and x.dtype is dtype and x.device == device
        if fits and x.layout is torch.strided and not torch._C._is_any_autocast_enabled():
            return x, None, None
    precision = None
    if torch._C._is_any_autocast_enabled() and isinstance(x, Tensor) and _autocast(x.device.type):
        precision = torch.autocast(x.device.type, enabled=False)
        if x.is_floating_point():
            x = x.to(dtype)
    if not torch.jit.is_tracing():  # tracing would warn about the comparisons; the recorded operator checks instead
        check_input(x, n_inputs, dtype, device)
    if x.ndim == 2:
        return x, None, precision
    return x.reshape(-1, n_inputs), x.shape[:-1], precision


def restored(out: Tensor, leading: torch.Size | None) -> Tensor:
    """Outputs (batch, n_outputs) with the leading dimensions of the input."""
    return out if leading is None else out.reshape(*leading, out.shape[1])
