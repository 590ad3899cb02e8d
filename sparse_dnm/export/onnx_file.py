"""Networks as ONNX models: dense and gathered products, activations as ONNX operators, no sparse initializers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparse_dnm.checks import MissingPackageError
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.engine.device import ACTIVATION_CODES
from sparse_dnm.export.described import as_type, check_fits, dag_of, description, folded_of
from sparse_dnm.export.products import Level, Product, families, levels_of
from sparse_dnm.export.raw_inputs import RawInputs
from sparse_dnm.lowering.network import LEAKY, LOGISTIC, SILU, TANH, Folded

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 17, 8  # of onnx 1.12, 2022: what is written is old enough for programs in use
LARGEST = 2**31 - 2**20  # bytes of a file: protobuf has signed sizes
RELU = ACTIVATION_CODES["relu"][1]


def to_onnx(model: Any, preprocessing: Preprocessing | None = None, *, raw: bool = False) -> onnx.ModelProto:
    """A network as an ONNX model; ``onnx.save(to_onnx(model), "net.onnx")`` writes it.

    model          SparseDAG or DynamicManifold, on any device
    preprocessing  that of a `sparse_dnm.Predictor`: names, classes and itself become ``metadata_props``, as JSON
    raw            samples in, predictions out: the model standardises and decides, too

    Input ``x`` (batch, n_inputs) and output ``outputs`` (batch, n_outputs) have the dtype of the network, and ``batch``
    is any number.  With ``raw``, ``x`` is float64 (batch, columns): the columns of the table, or the pixels of an
    image, as they are, as `RawInputs` says.  There are more outputs then: of a classification ``label`` (batch,) of
    the classes, as int64, bool, float64 or text, and ``probability`` (batch, n_outputs); of a regression
    ``prediction`` (batch, n_outputs), float64, in the units of the target.

    Raises MissingPackageError without the package onnx; ValueError for a model that is neither, for ``raw`` without a
    preprocessing, and for more than 2 GB of weights.
    """
    dag = dag_of(model)
    check_fits(dag, preprocessing)
    if raw and preprocessing is None:
        raise ValueError("raw=True needs the preprocessing, as in to_onnx(predictor.model, predictor.preprocessing)")
    folded, dtype = folded_of(dag)
    _require_onnx()
    return _Model(folded, dtype, preprocessing, raw).built()


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"ONNX files are written by the package onnx, which cannot be imported ({error}); pip install onnx, or the "
            "extra `sparse-dnm[onnx]`"
        ) from None


class _Graph:
    """Nodes and constants of a graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.bytes = 0

    def constant(self, values: NDArray[Any]) -> str:
        """The name of a constant tensor."""
        from onnx import numpy_helper

        self.bytes += values.nbytes
        if self.bytes > LARGEST:
            raise ValueError(
                f"the network has more than {LARGEST:,} bytes of constants, the most that an ONNX file holds; export "
                "it as npz"
            )
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The name of the result of an operator."""
        from onnx import helper

        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name


class _Model:
    """An ONNX model of a folded network.  Values are held as (cells, batch): rows are what is gathered."""

    def __init__(self, folded: Folded, dtype: Any, preprocessing: Preprocessing | None, raw: bool) -> None:
        self.folded, self.dtype, self.preprocessing = folded, dtype, preprocessing
        self.raw = RawInputs.of(preprocessing) if raw and preprocessing is not None else None
        self.graph = _Graph()

    def built(self) -> onnx.ModelProto:
        """The model."""
        from onnx import helper

        values, first = self._inputs()
        for level in levels_of(self.folded, first):
            values = self._level(values, level)
        outputs = self._outputs(values, level)
        x = self._info("x", self.dtype, ["batch", self.folded.n_inputs])
        if self.raw is not None:
            x = self._info("x", np.dtype(np.float64), ["batch", self.raw.n_columns])
        graph = helper.make_graph(
            self.graph.nodes,
            "sparse_dnm",
            [x],
            outputs,
            self.graph.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        self._describe(model)
        return model

    def _describe(self, model: onnx.ModelProto) -> None:
        from onnx import helper

        found = description(self.preprocessing)
        model.producer_name, model.producer_version = found.pop("producer"), found.pop("version")
        helper.set_model_props(
            model, {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in found.items()}
        )

    def _info(self, name: str, dtype: Any, shape: list[Any]) -> Any:
        from onnx import helper

        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)

    def _column(self, name: str, values: NDArray[np.float64]) -> str:
        """A constant with a number for each cell."""
        return self.graph.constant(as_type(name, values, self.dtype)[:, None])

    # -- inputs ----------------------------------------------------------------------------------------------

    def _inputs(self) -> tuple[str, NDArray[np.int64]]:
        """The values of the input cells, and these in their order.  A network without has one that nothing reads."""
        f, add = self.folded, self.graph.add
        x = add("Transpose", "x", perm=[1, 0])
        k = len(f.columns)
        if k == 0:
            return self._chosen(x, np.zeros(1, np.int32)), np.zeros(0, np.int64)
        parts, cells = [], []
        for code, places in families(f.kind[:k]):
            part = self._chosen(x, f.columns[places])
            if (f.scale[places] != 1).any():
                part = add("Mul", part, self._column("scale", f.scale[places]))
            if (f.shift[places] != 0).any():
                part = add("Add", part, self._column("shift", f.shift[places]))
            parts.append(self._activated(part, code, f.slope[places]))
            cells.append(places)
        return self._together(parts), np.concatenate(cells)

    def _chosen(self, x: str, columns: NDArray[np.int32]) -> str:
        """Inputs of the network (cells, batch), of x (columns, batch)."""
        if self.raw is None:
            return self._gather(x, columns)
        rule = self.raw.chosen(columns).named()
        add, constant = self.graph.add, lambda values: self.graph.constant(np.asarray(values)[:, None])
        x = part = self._gather(x, rule.column)
        levels = np.isfinite(rule.high)
        if levels.any():
            inside = add("And", add("GreaterOrEqual", x, constant(rule.low)), add("Less", x, constant(rule.high)))
            part = add("Where", constant(levels), self._cast(inside, np.float64), part)
        part = add("Mul", add("Sub", part, constant(rule.mean)), constant(rule.factor))
        if self.raw.may_miss:
            part = add("Where", add("IsNaN", x), constant(rule.missing), part)
        return self._cast(part, self.dtype)

    def _cast(self, name: str, dtype: Any) -> str:
        from onnx import helper

        return self.graph.add("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _gather(self, values: str, places: Any) -> str:
        return self.graph.add("Gather", values, self.graph.constant(places.astype(np.int32)), axis=0)

    def _together(self, parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else self.graph.add("Concat", *parts, axis=0)

    # -- levels ----------------------------------------------------------------------------------------------

    def _level(self, values: str, level: Level) -> str:
        """What is held after a level; after the last one its cells alone."""
        if level.kept is not None:
            values = self._gather(values, level.kept)
        parts = [self._product(values, product) for product in level.products]
        return self._together(parts if level.last else [values, *parts])

    def _product(self, values: str, product: Product) -> str:
        add = self.graph.add
        weights, bias = as_type("weights", product.weights, self.dtype), self._column("bias", product.bias)
        sources = values if product.sources is None else self._gather(values, product.sources)
        if product.dense:
            z = add("Gemm", self.graph.constant(weights), sources, bias)
        else:  # (r, 1, p) times (r, p, batch)
            z = add("MatMul", self.graph.constant(weights[:, None]), sources)
            z = add("Add", add("Squeeze", z, self.graph.constant(np.array([1]))), bias)
        return self._activated(z, product.kind, product.slope)

    def _activated(self, z: str, kind: int, slope: NDArray[np.float64]) -> str:
        add = self.graph.add
        if kind == LOGISTIC:
            return add("Sigmoid", z)
        if kind == TANH:
            return add("Tanh", z)
        if kind == SILU:
            return add("Mul", z, add("Sigmoid", z))
        assert kind == LEAKY
        if (slope == 1).all():
            return z
        if (slope == RELU).all():
            return add("Relu", z)
        if self.dtype == np.float64:  # onnxruntime has no LeakyRelu and PRelu of float64
            zero = self.graph.constant(np.zeros(1))
            return add("Where", add("Greater", z, zero), z, add("Mul", z, self._column("slope", slope)))
        if (slope == slope[0]).all():
            return add("LeakyRelu", z, alpha=float(slope[0]))
        return add("PRelu", z, self._column("slope", slope))

    # -- outputs ---------------------------------------------------------------------------------------------

    def _outputs(self, values: str, last: Level) -> list[Any]:
        """What the outputs of the model are; ``values`` are those of the cells of the last level."""
        add, n = self.graph.add, self.folded.n_outputs
        order = np.argsort(np.concatenate([product.cells for product in last.products]))
        if (order != np.arange(n)).any():
            values = self._gather(values, order.astype(np.int32))
        if self.folded.squared:
            values = add("Mul", values, values)
        outputs = add("Transpose", values, perm=[1, 0], output="outputs")
        found = [self._info(outputs, self.dtype, ["batch", n])]
        if self.raw is None:
            return found
        assert self.preprocessing is not None
        target, classes = self.preprocessing.target, self.preprocessing.classes
        if classes is None:
            assert target.mean is not None
            assert target.std is not None
            mean, std = self.graph.constant(target.mean), self.graph.constant(target.std)
            add("Add", add("Mul", self._cast(outputs, np.float64), std), mean, output="prediction")
            return [*found, self._info("prediction", np.dtype(np.float64), ["batch", n])]
        classes = _labels(classes)
        best = add("ArgMax", outputs, axis=1, keepdims=0)
        add("Gather", self.graph.constant(classes), best, axis=0, output="label")
        add("Softmax", outputs, axis=1, output="probability")
        kind = np.dtype(object) if classes.dtype == object else classes.dtype
        return [*found, self._info("label", kind, ["batch"]), self._info("probability", self.dtype, ["batch", n])]


def _labels(classes: NDArray[Any]) -> NDArray[Any]:
    """Classes as int64, bool, float64, or objects that are text."""
    kinds = {"i": np.int64, "u": np.int64, "b": np.bool_, "f": np.float64}
    return classes.astype(kinds.get(classes.dtype.kind, object))
