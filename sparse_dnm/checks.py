"""Checks of the inputs and parameters of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from sparse_dnm.config import ManifoldConfig

INSTALL_TORCH_SPARSE = (
    "install it after torch with `pip install --no-build-isolation torch-scatter torch-sparse`, or the extra "
    "`.[torch-sparse]` in the same way (they compile for 15 to 25 minutes), or choose another executor"
)

INSTALL_CUDA = "install numba-cuda (the extra `.[cuda]`), or move the model and its input to 'cpu'"
CPU = torch.device("cpu")
DTYPES: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class MissingPackageError(ModuleNotFoundError, ValueError):
    """An optional package that a setting asks for cannot be imported; the message says how to install it."""


def require_torch_sparse(what: str = "executor='torch-sparse'") -> None:
    """Load torch-sparse's operators.  Raises MissingPackageError if they are missing or do not fit torch.

    ``what`` needs them.
    """
    try:
        import torch_sparse  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{what} needs the package {error.name}; {INSTALL_TORCH_SPARSE}") from None
    except (ImportError, OSError, RuntimeError) as error:  # compiled for another version of torch
        raise MissingPackageError(f"{what} cannot load torch-sparse ({error}); {INSTALL_TORCH_SPARSE}") from None


def check_input(x: object, n_inputs: int, dtype: torch.dtype, device: torch.device = CPU) -> None:
    """Raise ValueError unless ``x`` is a dense floating (..., n_inputs) of the model's dtype and device."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"x is a {type(x).__name__}, not a torch.Tensor; convert it with torch.as_tensor")
    if x.layout != torch.strided:
        raise ValueError(f"x has layout {x.layout}; it must be dense: convert it with x.to_dense()")
    if x.device != device:
        raise ValueError(
            f"x is on device {str(x.device)!r}, not on {str(device)!r}; move it with x.to({str(device)!r})"
        )
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}, which is not floating; convert it with x.to({dtype})")
    if x.ndim == 0 or x.shape[-1] != n_inputs:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (..., n_inputs={n_inputs})")
    if x.dtype != dtype:
        raise ValueError(f"x has dtype {x.dtype} but the model has {dtype}; convert x with x.to({dtype})")


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError unless kernels exist for ``dtype``."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} has no kernels; choose torch.float32 or torch.float64")


def check_shape(name: str, parameter: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the parameter ``name`` has this shape."""
    if parameter.shape != shape:
        raise ValueError(
            f"parameter {name} has shape {tuple(parameter.shape)}, but must be {shape}, which kernels do not check; "
            "change its values, not its size"
        )


def check_alike(name: str, parameter: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raise ValueError unless two parameters are of one dtype and on one device."""
    if parameter.device != other.device:
        raise ValueError(
            f"{name} is on {str(parameter.device)!r} and {other_name} on {str(other.device)!r}; move both to one "
            "device, as model.to(device) does"
        )
    if parameter.dtype != other.dtype:
        raise ValueError(
            f"{name} has dtype {parameter.dtype} and {other_name} {other.dtype}; bring both to one, as "
            "model.to(dtype) does"
        )


def check_parameters(parameters: Mapping[str, torch.Tensor], config: ManifoldConfig) -> None:
    """Raise ValueError if dtype or device have no kernels, devices differ, or a shape is not that of ``config``."""
    device = parameters["alpha"].device
    for name, p in parameters.items():
        check_dtype(p.dtype)
        if p.device != device:
            raise ValueError(
                f"parameter {name} is on {str(p.device)!r} and alpha on {str(device)!r}; move all to one device, as "
                "model.to(device) does"
            )
        if name != "edge_weight":
            size = config.n_weighted if name in ("weight", "bias") else config.n_rows
            check_shape(name, p, () if name == "cutoff" else (size,))
