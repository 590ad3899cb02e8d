"""connex (JAX) on a given DAG, run by bench.peers in connex's own virtual environment: prints JSON.

python connex_peer.py GRAPH.npz REPEATS [LAYOUT ...]

GRAPH.npz holds edges (n_edges, 2) source, reader; values (n_edges,); inputs; outputs; x (batch, n_inputs); our
outputs and our gradient of their sum by the values.  Imports nothing of this project.  float32, jit-compiled, XLA's own
threads.  LAYOUT names how connex keeps weights (``matmul``, ``hybrid``, ``sparse``, ``padded``): of several the one
with the fastest forward + backward counts.  Biases, which our graph has not, are 0; connex trains them all the same.
"""

import json
import statistics
import sys
import time
import warnings
from importlib.metadata import version

warnings.filterwarnings("ignore")


def timed(run):
    """Seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def worst(found, expected):
    """Largest difference, relative to the largest expected number."""
    import numpy as np

    return float(np.abs(found - expected).max() / np.abs(expected).max())


def places(topology, layout):
    """Where the affine operation of ``layout`` keeps the weight of an edge: (source, reader) -> batch, index."""
    unique = [{node: k for k, node in enumerate(batch.unique_input_ids)} for batch in topology.batches]

    def place(edge):
        source = topology.node_id(edge[0])
        at, row, column = topology.edge_position[edge]
        return {
            "matmul": (at, (row, unique[at][source])),
            "padded": (at, (row, column)),
            "sparse": topology.edge_linear_position[edge],
        }[layout]

    return place


def layout_of(affine, k, layout):
    """The layout of a batch of ``hybrid``; the same for all batches of the others."""
    if layout != "hybrid":
        return layout
    return "sparse" if affine.sparse_batches[k] else "matmul" if affine.matmul_batches[k] else "padded"


def network(graph, layout):
    """The network with the given weights, and for each edge the number of its batch and its place in there."""
    import connex
    import equinox as eqx
    import jax
    import networkx as nx
    import numpy as np

    edges = [tuple(edge) for edge in graph["edges"].tolist()]
    dag = nx.DiGraph()
    dag.add_edges_from(edges)
    inputs = [j for j in graph["inputs"].tolist() if j in dag]
    outputs = [i for i in graph["outputs"].tolist() if i in dag]
    steps = connex.ops.default_ops(affine=layout, activation=lambda z: jax.nn.leaky_relu(z, 0.2))
    made = connex.NeuralDAG(connex.GraphSpec(dag, inputs, outputs), ops=steps)
    affine = made.ops[0]
    finders = {name: places(made.topology, name) for name in ("matmul", "padded", "sparse")}
    at = [finders[layout_of(affine, made.topology.edge_position[edge][0], layout)](edge) for edge in edges]
    weights = [np.zeros(w.shape, np.float32) for w in affine.weights]
    for (k, index), value in zip(at, graph["values"].tolist(), strict=True):
        weights[k][index] = value
    biases = [jax.numpy.zeros_like(b) for b in affine.biases]
    new = tuple(map(jax.numpy.asarray, weights)), tuple(biases)
    return eqx.tree_at(lambda m: (m.ops[0].weights, m.ops[0].biases), made, new), at, inputs, outputs


def measure(graph, repeats, layout):
    """Build the network, compile, check, measure: what is printed."""
    import equinox as eqx
    import jax
    import numpy as np

    start = time.perf_counter()
    model, at, inputs, outputs = network(graph, layout)
    built = time.perf_counter() - start
    x = jax.numpy.asarray(graph["x"][:, np.isin(graph["inputs"], inputs)])
    forward = eqx.filter_jit(lambda model, x: model.batched(x))
    both = eqx.filter_jit(eqx.filter_value_and_grad(lambda model, x: model.batched(x).sum()))
    runs = {
        "forward": lambda: jax.block_until_ready(forward(model, x)),
        "forward + backward": lambda: jax.block_until_ready(eqx.filter(both(model, x), eqx.is_array)),
    }
    start = time.perf_counter()
    y, (_, gradients) = runs["forward"](), runs["forward + backward"]()
    compiled = time.perf_counter() - start
    weights = [np.asarray(w) for w in gradients.ops[0].weights]
    by_values = np.array([weights[k][index] for k, index in at])
    expected = graph["y"][:, np.isin(graph["outputs"], outputs)]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return {
        "layout": layout,
        "seconds": seconds,
        "differs": {"outputs": worst(np.asarray(y), expected), "gradient": worst(by_values, graph["gradient"])},
        "build_s": built,
        "compile_s": compiled,
        "versions": {name: version(name) for name in ("connex", "jax")},
    }


def main():
    """Measure the layouts and print the fastest."""
    import numpy as np

    with np.load(sys.argv[1]) as file:
        graph = dict(file)
    found = [measure(graph, int(sys.argv[2]), layout) for layout in sys.argv[3:] or ["matmul"]]
    for one in found:
        middle = {name: round(1e6 * statistics.median(times)) for name, times in one["seconds"].items()}
        print(one["layout"], middle, one["differs"], file=sys.stderr)
    print(json.dumps(min(found, key=lambda one: statistics.median(one["seconds"]["forward + backward"]))))


if __name__ == "__main__":
    main()
