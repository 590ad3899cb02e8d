"""Dense networks of the same accuracy, as `bench.ship` compares with them: in onnxruntime and in C by emlearn.

Two layers with ReLU, trained by torch in as many steps, of the same batches and the same moved images as the run:
Adam, a cosine.  Inputs that are constant in the training samples are dropped, and a rival gets the others gathered.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench.ship_c import Source, repeated
from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import BatchOrder, Dataset
from sparse_dnm.data.source import describe
from sparse_dnm.train.augment import Augmentation

GRID = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128)  # hidden neurons
LR = 0.004  # that of the preset mnist; 0.002 and 0.006 give the same accuracy
TOLERANCE = 1e-4  # of the largest output: emlearn writes weights with six decimals
RECIPE = 1  # of `train`: networks that another one has trained are not taken from a cache


@dataclass(frozen=True)
class Rival:
    """A dense network: relu(x[:, columns] @ weights[0] + biases[0]) @ weights[1] + biases[1].

    columns   int64 (k,)  the inputs that vary in the training samples
    weights   float32 (k, hidden), (hidden, n_outputs)
    biases    float32 (hidden,), (n_outputs,)
    accuracy  share of the test samples that it knows
    """

    columns: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    accuracy: float

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Inputs, hidden neurons and outputs."""
        return (*self.weights[0].shape, self.weights[1].shape[1])

    @property
    def constant_bytes(self) -> int:
        """Of weights and biases."""
        return sum(array.nbytes for array in (*self.weights, *self.biases))

    def module(self) -> nn.Sequential:
        """The network in torch, for its inputs (n, k)."""
        layers = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            layer = nn.Linear(*weight.shape)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight.T))
                layer.bias.copy_(torch.from_numpy(bias))
            layers.append(layer)
        return nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def inputs(self, x: Any) -> np.ndarray:
        """Its inputs, gathered, of samples (n, n_inputs)."""
        return np.ascontiguousarray(np.asarray(x, np.float32)[:, self.columns])

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Outputs (n, n_outputs) by torch of its inputs (n, k)."""
        with torch.no_grad():
            return self.module()(torch.from_numpy(x)).numpy()

    def check(self, outputs: Callable[[np.ndarray], np.ndarray], x: np.ndarray, what: str) -> None:
        """Raise RuntimeError unless ``outputs`` gives those of torch for its inputs x (n, k)."""
        expected, found = self.outputs(x), outputs(x)
        off = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not off <= TOLERANCE:
            raise RuntimeError(f"{what}: outputs differ from those of torch by {off:.1e} of the largest")


def train(data: Dataset, hidden: int, config: TrainConfig, seed: int = 0) -> Rival:
    """Train a network; ``config`` gives steps, batch_size and shift.  Its accuracy is that of the last step."""
    varies = (data.x_train != data.x_train[0]).any(0).nonzero().flatten()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(len(varies), hidden), nn.ReLU(), nn.Linear(hidden, len(data.classes)))
    generator = torch.Generator().manual_seed(seed)
    order = BatchOrder(len(data.x_train), config.batch_size, generator)
    augment = Augmentation(TrainConfig(shift=config.shift), data, generator)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        draw = augment.draw(order.next())
        x = augment.apply(data.x_train[draw.rows], draw)[:, varies]
        optimizer.zero_grad()
        F.cross_entropy(net(x), data.y_train[draw.rows]).backward()
        optimizer.step()
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    weights = tuple(np.ascontiguousarray(layer.weight.detach().numpy().T) for layer in layers)
    biases = tuple(layer.bias.detach().numpy().copy() for layer in layers)
    with torch.no_grad():
        accuracy = float((net(data.x_test[:, varies]).argmax(1) == data.y_test).double().mean())
    return Rival(varies.numpy(), weights, biases, accuracy)


def trained(
    data: Dataset, hidden: int, config: TrainConfig, folder: Path | None, say: Callable[[str], object] = print
) -> Rival:
    """The same, kept in ``folder`` for the next time."""
    if folder is None:
        return train(data, hidden, config)
    told = {"recipe": RECIPE, "lr": LR, "data": describe(data)["sha256"], "hidden": hidden}
    told |= {name: getattr(config, name) for name in ("steps", "batch_size", "shift")}
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"mlp-{hidden}-{key}.npz"
    if path.exists():
        kept = np.load(path)
        weights, biases = (tuple(kept[f"{name}{k}"] for k in range(2)) for name in ("weight", "bias"))
        return Rival(kept["columns"], weights, biases, float(kept["accuracy"]))
    start = time.perf_counter()
    made = train(data, hidden, config)
    say(f"a dense network with {hidden} hidden neurons: {made.accuracy:.2%} ({time.perf_counter() - start:.0f} s)")
    arrays: dict[str, Any] = {f"weight{k}": made.weights[k] for k in range(2)}
    arrays |= {f"bias{k}": made.biases[k] for k in range(2)}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, columns=made.columns, accuracy=made.accuracy, **arrays)
    return made


def smallest(rival_of: Callable[[int], Rival], goal: float, grid: Sequence[int] = GRID) -> Rival:
    """The rival of the fewest hidden neurons in ``grid`` that has the accuracy ``goal``, by bisection, which takes
    accuracy to grow with the neurons; the largest one where none has it."""
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if rival_of(grid[middle]).accuracy >= goal else (middle + 1, high)
    return rival_of(grid[low])


def onnx_model(rival: Rival | None, n_outputs: int = 10) -> bytes:
    """The network as an ONNX model for one sample; without one, a model that copies ``n_outputs`` numbers."""
    from onnx import TensorProto, helper, numpy_helper

    if rival is None:
        nodes, arrays, n_inputs = [helper.make_node("Identity", ["x"], ["y"])], {}, n_outputs
    else:
        n_inputs, _, n_outputs = rival.sizes
        arrays = {f"w{k}": rival.weights[k] for k in range(2)} | {f"b{k}": rival.biases[k] for k in range(2)}
        nodes = [
            helper.make_node("Gemm", ["x", "w0", "b0"], ["z"]),
            helper.make_node("Relu", ["z"], ["a"]),
            helper.make_node("Gemm", ["a", "w1", "b1"], ["y"]),
        ]
    sizes = (("x", n_inputs), ("y", n_outputs))
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n])] for name, n in sizes)
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class Session:
    """A model for one sample in onnxruntime, one thread, all optimisations, inputs and outputs bound to memory."""

    def __init__(self, model: bytes, n_inputs: int, n_outputs: int) -> None:
        import onnxruntime as ort  # type: ignore[import-untyped]

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        arrays = (np.zeros((1, n), np.float32) for n in (n_inputs, n_outputs))
        self._x, self._y = (ort.OrtValue.ortvalue_from_numpy(array) for array in arrays)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("x", self._x)
        self._binding.bind_ortvalue_output("y", self._y)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Outputs (n, n_outputs) of samples (n, n_inputs), one after the other."""
        found = []
        for k in range(len(x)):
            self._x.update_inplace(x[k : k + 1])
            self._session.run_with_iobinding(self._binding)
            found.append(self._y.numpy().copy())
        return np.concatenate(found)

    def timer(self, x: np.ndarray) -> Callable[[], float]:
        """A function that returns seconds of a run on the first sample of x."""
        run, binding = self._session.run_with_iobinding, self._binding
        self._x.update_inplace(x[:1])

        def seconds_of(n: int) -> float:
            before = time.perf_counter()
            for _ in range(n):
                run(binding)
            return time.perf_counter() - before

        return repeated(seconds_of)


def sklearn_model(rival: Rival) -> Any:
    """The network as a scikit-learn MLPClassifier, without the softmax, which changes no class."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import LabelBinarizer

    model = MLPClassifier(hidden_layer_sizes=(rival.sizes[1],), activation="relu")
    model.coefs_, model.intercepts_ = list(rival.weights), list(rival.biases)
    model.n_layers_, model.n_outputs_, model.out_activation_ = 3, rival.sizes[2], "identity"
    model._label_binarizer = LabelBinarizer().fit(np.arange(rival.sizes[2]))
    model.classes_, model.n_features_in_ = np.arange(rival.sizes[2]), rival.sizes[0]
    return model


def missing(error: ModuleNotFoundError) -> str:
    """What to install where a rival's package cannot be imported."""
    name = str(error.name).partition(".")[0]
    package = {"distutils": "setuptools"}.get(name, name)  # which emlearn needs, and does not name
    return f"{package} is not installed: pip install {package}"


def emlearn_sources(rival: Rival) -> dict[str, Source]:
    """The network in C by emlearn, by its two methods."""
    with np.errstate():  # which it changes for the whole process
        import emlearn  # type: ignore[import-untyped]
        from emlearn import cgen, common

    plain = cgen.constant

    def constant(value: Any, dtype: str = "float") -> str:
        """emlearn 0.23.2 takes the name of an activation for a number, and so makes no C by the method inline."""
        return value if isinstance(value, str) else str(plain(value, dtype))

    k, _, n_outputs = rival.sizes
    buffers = "mlp_activations1, mlp_activations2"
    calls = {
        "inline": f"mlp_infer(x, {k}, {buffers}, mlp_activations_length); "
        f"for (int i = 0; i < {n_outputs}; i++) y[i] = mlp_activations2[i];",
        "loadable": f"mlp_regress(x, {k}, y, {n_outputs});",
    }
    found = {}
    for method, call in calls.items():
        # a CompiledClassifier is a program to be called from Python, which emlearn compiles in a folder tmp right here
        with patch.object(cgen, "constant", constant), patch.object(common, "CompiledClassifier", Mock()):
            made = emlearn.convert(sklearn_model(rival), method=method, dtype="float")
            text = made.save(name="mlp", inference=[method])
        found[method] = Source({"mlp.c": text}, "mlp.c", call, k, n_outputs, include=common.get_include_dir())
    return found
