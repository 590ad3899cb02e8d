"""Arrays for pictures of a network: the matrix of strengths in cells, the DAG in the plane, receptive fields, states.

Other modules draw them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve_triangular

from sparse_dnm.config import ManifoldConfig
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.train.snapshots import Snapshot

MOST_STATES = 100  # neurons with a state that are shown
MOST_OUTPUTS = 100  # outputs whose receptive fields are shown
MOST_EDGES = 20_000  # the strongest edges of a DAG, which are drawn
GOLDEN = (5**0.5 - 1) / 2
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Cells over the matrix of strengths: non-inputs down, sources across; ``step`` neurons each, both ways."""

    rows: int
    columns: int
    step: int

    @staticmethod
    def of(config: ManifoldConfig, side: int = 512) -> Grid:
        """The finest grid of at most ``side`` cells a side: one per pair of neurons, if possible."""
        step = -(-max(config.n_rows, config.n_sources) // side)
        return Grid(-(-config.n_rows // step), -(-config.n_sources // step), step)

    def cells(self, structure: Snapshot, config: ManifoldConfig) -> Floats:
        """The strongest edge of every cell, float32 (rows, columns); 0 in empty cells."""
        topology, strengths = structure.topology, structure.strengths
        readers = topology.readers - config.graph.n_inputs
        order = np.argsort(np.abs(strengths), kind="stable")  # the strongest of a cell is written last
        image = np.zeros((self.rows, self.columns), np.float32)
        image[readers[order] // self.step, topology.indices[order] // self.step] = strengths[order]
        return image


def heights(config: ManifoldConfig) -> Floats:
    """A height in 0 .. 1 for every neuron, float32 (n,), the same in every picture whatever its level: inputs and
    outputs in order, hidden ones by the golden ratio, which separates neighbours."""
    even = [(np.arange(k) + 0.5) / k for k in (config.graph.n_inputs, config.graph.n_outputs)]
    hidden = (np.arange(config.n_hidden) + 0.5) * GOLDEN % 1
    return np.concatenate([even[0], hidden, even[1]]).astype(np.float32)


def strongest(structure: Snapshot, most: int) -> NDArray[np.intp]:
    """The places in the CSR of at most ``most`` edges, the strongest, ascending."""
    strengths = structure.strengths
    if len(strengths) <= most:
        return np.arange(len(strengths))
    return np.sort(np.argpartition(-np.abs(strengths), most - 1)[:most])


def saturation(structure: Snapshot) -> float:
    """The strength at which colours saturate: the 95th percentile of the absolute strengths; 1 without edges."""
    strengths = np.abs(structure.strengths)
    return float(np.quantile(strengths, 0.95)) or 1.0 if len(strengths) else 1.0


class Image(NamedTuple):
    """The shape of data that are images: pixels and channels."""

    height: int
    width: int
    channels: int


def image_shape(config: ManifoldConfig, channels: int = 1) -> Image | None:
    """The shape of the data as images of so many channels, by their period; None if they are not images."""
    line = round(config.period)  # width x channels
    if config.recurrent:  # a sample is a sequence
        return None
    if line != config.period or line < 2 * channels or line % channels or config.n_inputs % line:
        return None
    found = Image(config.n_inputs // line, line // channels, channels)
    return found if found.height > 1 else None


@dataclass(frozen=True)
class Fields:
    """Receptive fields: float32 (neurons, n_inputs)."""

    neurons: NDArray[np.int64]
    values: Floats


def receptive_fields(model: DynamicManifold, most: int = 40) -> tuple[Fields, Fields]:
    """Response of the sums of hidden neurons and outputs to the inputs, if all neurons were linear.

    The field of neuron i is, for every input, the sum over all paths from it of the products of strengths D and
    weights w.  Includes at most ``most`` hidden neurons that reach an output, those with the largest sum of |D w| over
    their readers, and the first MOST_OUTPUTS outputs.
    """
    config, topology = model.config, model.topology
    weight = model.weight.detach().cpu().double().numpy()
    strengths = model.find().host_values.strengths.astype(np.float64)
    across = topology.to_scipy(strengths * weight[topology.indices])
    importance = np.asarray(abs(across).sum(axis=0)).ravel()
    hidden = np.arange(config.n_inputs, config.n_sources)
    hidden = hidden[topology.live[hidden] & (topology.levels[hidden] > 0)]
    chosen = np.sort(hidden[np.argsort(-importance[hidden], kind="stable")[:most]])
    outputs = np.arange(config.n_sources, config.n_neurons)[:MOST_OUTPUTS]
    neurons = np.concatenate([chosen, outputs])
    seeds = np.zeros((config.n_neurons, len(neurons)))
    seeds[neurons, np.arange(len(neurons))] = 1.0
    upper = (sparse.eye_array(config.n_neurons) - across).T.tocsr()
    with np.errstate(over="ignore", invalid="ignore"):
        solved = spsolve_triangular(upper, seeds, lower=False, unit_diagonal=True)
        found = solved[: config.n_inputs].T.astype(np.float32)
    return Fields(chosen, found[: len(chosen)]), Fields(outputs, found[len(chosen) :])


def tiles(name: str, count: int) -> int:
    """Receptive fields in a row of the picture of the ``count`` "outputs" or "hidden neurons"."""
    return 8 if name != "outputs" else 5 if count <= 10 else 10 if count <= 40 else 20


def mosaic(fields: Fields, shape: Image, columns: int) -> tuple[Floats, NDArray[np.int64]]:
    """Fields side by side, ``columns`` in a row, summed over channels, each scaled by its largest value; NaN between.

    Returns the picture and the neuron of every tile (-1: none), row by row.
    """
    height, width, _ = shape
    rows = max(1, -(-len(fields.neurons) // columns))
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan, np.float32)
    places = np.full((rows, columns), -1, np.int64)
    for k, (neuron, values) in enumerate(zip(fields.neurons, fields.values, strict=True)):
        i, j = divmod(k, columns)
        top, left = i * (height + 1), j * (width + 1)
        pixels = values.reshape(shape).sum(axis=2)
        largest = float(np.abs(pixels).max(initial=0.0)) or 1.0
        if np.isfinite(largest):  # products along many paths may overflow; such a tile stays empty
            picture[top : top + height, left : left + width] = pixels / largest
        places[i, j] = neuron
    return picture, places


class Rows(NamedTuple):
    """Numbers along a sequence, float32 (rows, time), and the names of the rows."""

    title: str
    names: list[str]
    values: Floats


def along(model: DynamicManifold, x: torch.Tensor, classes: list[str], most: int = MOST_STATES) -> list[Rows]:
    """What a recurrent network computes along a sequence ``x`` (time, n_inputs): its inputs, the states h of its
    neurons, its memory and its outputs.

    Of the neurons with a state those that reach an output, at most ``most``, whose states vary most, by level.
    """
    config, topology = model.config, model.find().topology
    parts: dict[str, list[torch.Tensor]] = {"states": [], "memory": [], "outputs": []}
    state = None
    with torch.no_grad():
        for now in x.to(model.alpha.dtype).split(1):
            outputs, state = model.step(now, state)
            for name, values in (("states", state.h), ("memory", state.memory), ("outputs", outputs)):
                parts[name].append(values[0])
    found = {name: torch.stack(values, 1).float().numpy() for name, values in parts.items()}
    graph = config.graph
    cells = np.arange(graph.n_inputs, graph.n_inputs + len(found["states"]))
    shown = cells[topology.live[cells]]
    vary = found["states"][shown - graph.n_inputs].std(1)
    shown = np.sort(shown[np.argsort(-vary, kind="stable")[:most]])
    shown = shown[np.argsort(topology.levels[shown], kind="stable")]
    n = len(found["outputs"])
    names = classes or [f"output {k}" for k in range(n)]
    rows = [
        Rows("inputs", [f"input {k}" for k in range(x.shape[1])], x.float().numpy().T),
        Rows("states of neurons", [f"neuron {k}" for k in shown], found["states"][shown - graph.n_inputs]),
        Rows("memory", [f"memory {k}" for k in range(len(found["memory"]))], found["memory"]),
        Rows("outputs", names[:MOST_OUTPUTS], found["outputs"][:MOST_OUTPUTS]),
    ]
    return [part for part in rows if len(part.values)]
