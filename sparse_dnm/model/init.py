"""Initial values of a manifold's scalars."""

from __future__ import annotations

import torch

from sparse_dnm.config import ROW_SCALARS, ManifoldConfig


def initial_scalars(
    config: ManifoldConfig, generator: torch.Generator | None, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Draw the raw scalars of ``config`` on the CPU, all normal, in the order of the dict that is returned.

    alpha, beta, gamma, theta, phi, sigma, mu   (n_rows,)      those that the edge mode has
    weight, bias                                (n_weighted,)
    cutoff                                      ()             config.cutoff, not drawn
    Each is mean + std * torch.randn(size, generator=generator, dtype=dtype), so the same seed gives different values
    in another dtype.  ``generator=None`` draws from torch's global generator.
    """
    names = (*ROW_SCALARS[config.edges], "weight", "bias")
    scalars = {}
    for name in names:
        mean, std = getattr(config, name)
        size = config.n_weighted if name in ("weight", "bias") else config.n_rows
        scalars[name] = mean + std * torch.randn(size, generator=generator, dtype=dtype)
    scalars["cutoff"] = torch.tensor(config.cutoff, dtype=dtype)
    return scalars
