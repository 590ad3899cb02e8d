"""connex (JAX) on a given DAG, run by bench.peers in connex's own virtual environment: prints JSON.

python connex_peer.py GRAPH.npz REPEATS    edges (n_edges, 2) source, reader; inputs; outputs; batch
Imports nothing of this project.
"""

import json
import statistics
import sys
import time
import warnings
from importlib.metadata import version

warnings.filterwarnings("ignore")


def timed(run, repeats):
    """Seconds of each of ``repeats`` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def main():
    """Build the network, compile, measure."""
    import connex
    import equinox as eqx
    import jax
    import networkx as nx
    import numpy as np

    graph = np.load(sys.argv[1])
    repeats = int(sys.argv[2])
    start = time.perf_counter()
    dag = nx.DiGraph()
    dag.add_edges_from(graph["edges"].tolist())
    inputs = [j for j in graph["inputs"].tolist() if j in dag]
    outputs = [i for i in graph["outputs"].tolist() if i in dag]
    network = connex.NeuralNetwork(dag, inputs, outputs, lambda z: jax.nn.leaky_relu(z, 0.2))
    built = time.perf_counter() - start
    key = jax.random.key(0) if hasattr(jax.random, "key") else jax.random.PRNGKey(0)
    x = jax.random.normal(key, (int(graph["batch"]), len(inputs)))
    forward = eqx.filter_jit(lambda model, x: jax.vmap(lambda row: model(row, key=key))(x))
    both = eqx.filter_jit(eqx.filter_value_and_grad(lambda model, x: forward(model, x).sum()))
    runs = {
        "forward": lambda: jax.block_until_ready(forward(network, x)),
        "forward + backward": lambda: jax.block_until_ready(eqx.filter(both(network, x), eqx.is_array)),
    }
    start = time.perf_counter()
    for run in runs.values():
        run()
    compiled = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name] += timed(run, 1)
    result = {
        "seconds": seconds,
        "medians": {name: statistics.median(times) for name, times in seconds.items()},
        "build_s": built,
        "compile_s": compiled,
        "versions": {name: version(name) for name in ("connex", "jax")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
