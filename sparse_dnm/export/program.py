"""Networks as programs of torch.export, of the operator of this package or of torch's own."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sparse_dnm.checks import CPU
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.export.described import as_type, check_fits, dag_of, description, folded_of
from sparse_dnm.export.products import Product, families, levels_of
from sparse_dnm.lowering.network import LOGISTIC, SILU, TANH, Folded

METADATA = "metadata.json"  # the extra file in a .pt2


def to_program(model: Any, *, plain: bool = False) -> ExportedProgram:
    """A network as a program of torch.export; ``torch.export.save(to_program(model), "net.pt2")`` writes it.

    model  SparseDAG or DynamicManifold, on the CPU
    plain  of torch's own operators: dense and gathered products, as in `to_onnx`.  Otherwise it is one operator of this
           package, which is faster; a process that loads it must ``import sparse_dnm.model.operator`` first.

    The program takes x (batch, n_inputs) of the dtype of the network, for any batch, and gives (batch, n_outputs).
    Raises ValueError for a model that is neither, or on another device.
    """
    dag = dag_of(model)
    if dag.bias.device != CPU:
        raise ValueError(
            f"the network is on {str(dag.bias.device)!r}, and a program stays on its device; export model.to('cpu')"
        )
    module = _Plain(*folded_of(dag)) if plain else dag
    x = torch.zeros(2, dag.n_inputs, dtype=dag.bias.dtype)
    return torch.export.export(module, (x,), dynamic_shapes={"x": {0: Dim("batch")}}, strict=False)


def save_program(
    file: str | os.PathLike[str] | io.BytesIO,
    model: Any,
    preprocessing: Preprocessing | None = None,
    *,
    plain: bool = False,
) -> None:
    """Write `to_program` to a .pt2 file; its extra file "metadata.json" says what inputs and outputs mean.

    Raises ValueError as `to_program`, or if the preprocessing makes other inputs than the network has.
    """
    check_fits(dag_of(model), preprocessing)
    text = json.dumps({**description(preprocessing), "plain": plain}, ensure_ascii=False)
    torch.export.save(to_program(model, plain=plain), file, extra_files={METADATA: text})


class _Plain(nn.Module):
    """A folded network in torch's own operators.  Values are held as (cells, batch)."""

    def __init__(self, folded: Folded, dtype: Any) -> None:
        super().__init__()
        self.dtype, self.squared = dtype, folded.squared
        k = len(folded.columns)
        self.inputs: list[tuple[Any, ...]] = []
        for code, places in families(folded.kind[:k]):
            constants = [self._column(name, getattr(folded, name)[places]) for name in ("scale", "shift", "slope")]
            self.inputs.append((self._held(folded.columns[places]), *constants, code))
        first = np.concatenate([places for _, places in families(folded.kind[:k])]) if k else np.zeros(0, np.int64)
        self.levels: list[tuple[str | None, list[tuple[Any, ...]], bool]] = []
        for level in levels_of(folded, first):
            kept = None if level.kept is None else self._held(level.kept)
            self.levels.append((kept, [self._step(product) for product in level.products], level.last))
        self.order = self._held(np.argsort(np.concatenate([product.cells for product in level.products])))

    def _held(self, values: NDArray[Any]) -> str:
        """The name of a buffer."""
        name = f"c{len(self._buffers)}"
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)))
        return name

    def _column(self, name: str, values: NDArray[np.float64]) -> str:
        return self._held(as_type(name, values, self.dtype)[:, None])

    def _step(self, product: Product) -> tuple[Any, ...]:
        """sources, weights, bias, slope as buffers; is it dense, and the activation."""
        weights = as_type("weights", product.weights, self.dtype)
        sources = None if product.sources is None else self._held(product.sources)
        names = self._held(weights if product.dense else weights[:, None]), self._column("bias", product.bias)
        return sources, *names, self._column("slope", product.slope), product.dense, product.kind

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, n_outputs) of x (batch, n_inputs)."""
        x, get = x.T, self.get_buffer
        parts = [
            _activated(get(scale) * x[get(columns)] + get(shift), get(slope), code)
            for columns, scale, shift, slope, code in self.inputs
        ]
        values = torch.cat(parts) if parts else x[:1]
        for kept, steps, last in self.levels:
            if kept is not None:
                values = values[get(kept)]
            parts = []
            for sources, weights, bias, slope, dense, code in steps:
                read = values if sources is None else values[get(sources)]
                z = get(weights) @ read
                parts.append(_activated((z if dense else z.squeeze(1)) + get(bias), get(slope), code))
            values = torch.cat(parts if last else [values, *parts])
        values = values[get(self.order)].T
        return values * values if self.squared else values


def _activated(z: Tensor, slope: Tensor, kind: int) -> Tensor:
    if kind == LOGISTIC:
        return z.sigmoid()
    if kind == TANH:
        return z.tanh()
    if kind == SILU:
        return z * z.sigmoid()
    return torch.where(z > 0, z, slope * z)
