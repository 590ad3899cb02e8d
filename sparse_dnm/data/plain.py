"""Arrays of numpy from what holds samples: tensors, sparse matrices, lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dnm.data.errors import DataError


def plain(where: str, values: Any) -> np.ndarray:
    """The values as an array of numpy.  Raises DataError for rows of different lengths."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.to_dense() if values.layout != torch.strided else values
        if values.is_floating_point() and values.dtype not in (torch.float16, torch.float32, torch.float64):
            values = values.float()  # numpy has no bfloat16
        return values.resolve_conj().resolve_neg().numpy()
    if hasattr(values, "toarray"):  # scipy.sparse
        return values.toarray()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        lengths = (
            {len(row) for row in values if hasattr(row, "__len__")} if isinstance(values, (list, tuple)) else set()
        )
        what = f"has rows of {' and '.join(map(str, sorted(lengths)[:5]))} values" if len(lengths) > 1 else str(error)
        raise DataError(f"{where} {what}; all samples must have the same shape: complete or remove some") from None
