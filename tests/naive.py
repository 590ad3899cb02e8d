"""The oracle: every formula as plain loops over dense float64 matrices.  Imports nothing of sparse_dnm.

Matrices are (n, n) over all neurons, inputs first, then hidden, then outputs; row i reads column j.
Raw scalars are given per row: row r is neuron n_inputs + r.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def sigmoid(v):
    """1 / (1 + exp(-v)) of a float, without overflow."""
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def softplus(v):
    """log(1 + exp(v)) of a float, without overflow."""
    return max(v, 0.0) + math.log1p(math.exp(-abs(v)))


ACTIVATIONS = {
    "leaky_relu": lambda v: v if v > 0 else 0.2 * v,
    "relu": lambda v: max(v, 0.0),
    "sigmoid": sigmoid,
    "tanh": math.tanh,
    "silu": lambda v: v * sigmoid(v),
    "identity": lambda v: v,
}


def possible(n, n_inputs, n_outputs):
    """bool (n, n): which neuron may read which."""
    mask = np.zeros((n, n), dtype=bool)
    for i in range(n_inputs, n):
        for j in range(min(i, n - n_outputs)):
            mask[i, j] = True
    return mask


def position(n, n_inputs, n_outputs):
    """p (n, n) of source j seen from row i; nan where no edge is possible."""
    line = np.linspace(n_inputs, n_outputs, n - n_inputs)
    p = np.full((n, n), np.nan)
    for i in range(n_inputs, n):
        for j in range(min(i, n - n_outputs)):
            p[i, j] = (j - i) + line[i - n_inputs]
    return p


def closeness(n, n_inputs, n_outputs, period, raw):
    """d (n, n), nan where impossible; ``raw``: alpha beta gamma theta phi sigma mu, each (n_rows,)."""
    d = position(n, n_inputs, n_outputs)
    for i in range(n_inputs, n):
        alpha, beta, gamma, theta, phi, sigma, mu = (
            float(raw[name][i - n_inputs]) for name in ("alpha", "beta", "gamma", "theta", "phi", "sigma", "mu")
        )
        for j in range(min(i, n - n_outputs)):
            p = d[i, j]
            g = math.exp(-((p - mu) ** 2) / (2 * softplus(sigma) ** 2))
            wave = math.sin(2 * math.pi * p / (period * softplus(theta) / math.log(2)) + phi)
            s = (0.501 + 0.5 * wave) ** (1 + beta)
            d[i, j] = (2 * sigmoid(alpha) - 1) * g * (s - sigmoid(gamma))
    return d


def closeness_free(n, n_inputs, n_outputs, raw, omega):
    """d (n, n) of free edges, nan where impossible; ``raw``: alpha sigma mu, each (n_rows,); omega (n, n)."""
    d = position(n, n_inputs, n_outputs)
    for i in range(n_inputs, n):
        alpha, sigma, mu = (float(raw[name][i - n_inputs]) for name in ("alpha", "sigma", "mu"))
        for j in range(min(i, n - n_outputs)):
            g = math.exp(-((d[i, j] - mu) ** 2) / (2 * softplus(sigma) ** 2))
            d[i, j] = (2 * sigmoid(alpha) - 1) * g * omega[i, j]
    return d


def closeness_of(edges, n, n_inputs, n_outputs, period, raw, omega):
    """d (n, n) in the mode ``edges``, nan where impossible; omega (n, n)."""
    if edges == "free":
        return closeness_free(n, n_inputs, n_outputs, raw, omega)
    d = closeness(n, n_inputs, n_outputs, period, raw)
    return d * omega if edges == "free-closeness" else d


def strength_of(edges, d, cutoff_raw, omega):
    """Values of edges in the mode ``edges``: `strength`, times omega where edges are weighted."""
    D = strength(d, cutoff_raw)
    return D * omega if edges == "weighted" else D


def strength(d, cutoff_raw):
    """D (n, n): closeness behind the soft threshold; 0 where inactive or impossible."""
    c = sigmoid(float(cutoff_raw))
    D = np.zeros(d.shape)
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            if abs(d[i, j]) > c:  # false for nan
                D[i, j] = math.copysign(abs(d[i, j]) - c, d[i, j]) / (1 - c)
    return D


def forward_manifold(x, D, weight, bias, n_inputs, n_outputs, activation="leaky_relu", output="linear"):
    """Outputs (batch, n_outputs) of x (batch, n_inputs) through D (n, n); weight, bias (n_sources,)."""
    n, batch = D.shape[0], x.shape[0]
    y = np.zeros((batch, n_outputs))
    for b in range(batch):
        value = np.zeros(n)
        value[:n_inputs] = x[b]
        z, m = np.zeros(n), np.zeros(n)
        for i in range(n):
            outgoing = z if i >= n - n_outputs else m
            if i >= n_inputs:
                for j in range(min(i, n - n_outputs)):
                    value[i] += D[i, j] * outgoing[j]
            if i < n - n_outputs:
                z[i] = weight[i] * value[i] + bias[i]
                m[i] = ACTIVATIONS[activation](z[i])
        y[b] = value[n - n_outputs :]
    return y**2 if output == "square" else y


def cell(neuron, gates, a, h, c):
    """h and c of one neuron after a time step; ``gates``: its parameters, in the order of torch's scalar cell."""
    if neuron == "lstm":
        i, f, o = (sigmoid(gates[k] * a + gates[4 + k] * h + gates[8 + k]) for k in (0, 1, 3))
        c = f * c + i * math.tanh(gates[2] * a + gates[6] * h + gates[10])
        return o * math.tanh(c), c
    if neuron == "gru":
        r, z = (sigmoid(gates[k] * a + gates[3 + k] * h + gates[6 + k]) for k in (0, 1))
        n = math.tanh(gates[2] * a + gates[8] + r * (gates[5] * h + gates[9]))
        return (1 - z) * n + z * h, c
    return h + sigmoid(gates[0]) * (a - h), c  # ctrnn


def forward_recurrent(
    x, lengths, W, weight, bias, gates, neuron, inputs, hidden, outputs, n_memory, linear, activations, state=None
):
    """Outputs (batch, time, outputs - n_memory) of sequences x (batch, time, inputs - n_memory); and h, c (batch,
    hidden), memory (batch, n_memory) after them.

    W (n, n): row i reads column j; ``linear`` (n,): reader i takes z of its sources, others m; weight, bias (n,) of
    z = weight x + bias; gates (rows, hidden); ``inputs``, ``hidden``, ``outputs``: neurons, the memory's last;
    activations: a name for each neuron.
    """
    batch, time = x.shape[:2]
    n, n_out = len(W), len(outputs) - n_memory
    y, order = np.zeros((batch, time, n_out)), execution_order(W != 0)
    hs, cs, memories = np.zeros((batch, len(hidden))), np.zeros((batch, len(hidden))), np.zeros((batch, n_memory))
    if state is not None:
        hs, cs, memories = (part.copy() for part in state)
    for b in range(batch):
        for t in range(lengths[b]):
            value, z, m = np.zeros(n), np.zeros(n), np.zeros(n)
            given = [*x[b, t], *memories[b]]
            for i in order:
                if i in inputs:
                    value[i] = given[list(inputs).index(i)]
                for j in range(n):
                    value[i] += W[i, j] * (z[j] if linear[i] else m[j])
                if i in hidden and neuron != "memoryless":
                    k = list(hidden).index(i)
                    hs[b, k], cs[b, k] = cell(neuron, gates[:, k], value[i], hs[b, k], cs[b, k])
                    value[i] = hs[b, k]
                z[i] = weight[i] * value[i] + bias[i]
                m[i] = ACTIVATIONS[activations[i]](z[i])
            result = [z[i] for i in outputs]
            y[b, t], memories[b] = result[:n_out], result[n_out:]
    return y, (hs, cs, memories)


def execution_order(reads):
    """Neurons of the DAG ``reads`` (row i reads the j with a true cell), sources first, by recursion."""
    order, state = [], {}

    def visit(i):
        if state.get(i) == "open":
            raise ValueError(f"neuron {i} is on a cycle")
        if i in state:
            return
        state[i] = "open"
        for j in range(len(reads)):
            if reads[i][j]:
                visit(j)
        state[i] = "done"
        order.append(i)

    for i in range(len(reads)):
        visit(i)
    return order


def forward_dag(x, dense_weights, bias, inputs, outputs, activation="leaky_relu"):
    """Values z (batch, len(outputs)) of a DAG's outputs: z_i = sum_j W_ij m_j + bias_i, m_i = act(z_i).

    x (batch, len(inputs)); dense_weights (n, n), row i reads column j, an edge where it is not 0; bias (n,).
    inputs, outputs: neurons.  An input passes x on unchanged (m = z = x), whatever edges lead to it.
    """
    n = len(bias)
    y = np.zeros((x.shape[0], len(outputs)))
    order = execution_order(dense_weights != 0)
    for b in range(x.shape[0]):
        z, m = np.zeros(n), np.zeros(n)
        for i in order:
            if i in inputs:
                z[i] = m[i] = x[b, list(inputs).index(i)]
                continue
            z[i] = bias[i]
            for j in range(n):
                z[i] += dense_weights[i, j] * m[j]
            m[i] = ACTIVATIONS[activation](z[i])
        y[b] = [z[i] for i in outputs]
    return y


def levels(edges, n):
    """Longest path (in edges) that ends in each neuron, a list of n; ``edges``: pairs (i, j), i reads j."""
    level = [0] * n
    for _ in range(n + 1):
        before = list(level)
        for i, j in edges:
            level[i] = max(level[i], level[j] + 1)
        if level == before:
            return level
    raise ValueError("the edges hold a cycle")


def live(edges, n, outputs):
    """Set of the neurons that reach an output, outputs included; ``edges``: pairs (i, j), i reads j."""
    reached = set(outputs)
    for _ in range(n):
        reached |= {j for i, j in edges if i in reached}
    return reached


def edges_of(D):
    """The pairs (i, j) with D[i, j] != 0, row by row."""
    return [(i, j) for i in range(D.shape[0]) for j in range(D.shape[1]) if D[i, j] != 0]


def flow(D, n_inputs, n_outputs):
    """(sum |D| of input -> hidden edges - sum |D| of hidden -> output edges) squared."""
    n = D.shape[0]
    into = out = 0.0
    for i, j in edges_of(D):
        if j < n_inputs and i < n - n_outputs:
            into += abs(D[i, j])
        if j >= n_inputs and i >= n - n_outputs:
            out += abs(D[i, j])
    return (into - out) ** 2


def sparsity(D, possible):
    """Active edges / ``possible`` (an integer)."""
    return len(edges_of(D)) / possible


def soft_edges(d, cutoff_raw, tau, mask):
    """Sum of the gates sigmoid((|d| - c) / tau) over the cells of ``mask`` (bool, shape of d)."""
    c = sigmoid(float(cutoff_raw))
    total = 0.0
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            if mask[i, j]:
                total += sigmoid((abs(d[i, j]) - c) / tau)
    return total


def expected_levels(h, n_inputs, picks):
    """Expected level (n,) of neurons whose edges exist with chances h (n, n), source by source from the deepest down.

    Of a row with as many possible sources as ``picks`` or more, only the deepest are looked at; if none of those is
    there, the last of them is taken to be.
    """
    n = len(h)
    level = np.zeros(n)
    for i in range(n_inputs, n):
        sources = sorted((j for j in range(n) if h[i, j] > 0), key=lambda j: (-level[j], -j))[:picks]
        value = level[sources[-1]] + 1 if len(sources) == picks else 0.0
        for j in reversed(sources):
            value = h[i, j] * (level[j] + 1) + (1 - h[i, j]) * value
        level[i] = value
    return level


def blocks(active, others, lanes):
    """The blocks of a row as lists of sources: those of the active edges, each from the first that is in no block on,
    with the other candidates in them; then those of the candidates that are in none."""
    found, left = [], set(others)
    todo = sorted(active)
    while todo:
        inside = range(todo[0], todo[0] + lanes)
        found.append([j for j in inside if j in todo or j in left])
        todo, left = [j for j in todo if j not in inside], left - set(inside)
    todo = sorted(left)
    while todo:
        inside = range(todo[0], todo[0] + lanes)
        found.append([j for j in todo if j in inside])
        todo = [j for j in todo if j not in inside]
    return found


def expected_cost(d, c, tau, mask, n_inputs, n_outputs, prices, picks, lanes=8):
    """Expected cost; ``mask`` (n, n): candidates of live readers; prices of an edge, input, neuron, level,
    block, and of an edge alone where that is less than its block."""
    n = len(d)
    h = np.array([[sigmoid((abs(d[i, j]) - c) / tau) if mask[i, j] else 0.0 for j in range(n)] for i in range(n)])
    cost = prices[0] * h.sum()
    for j in range(n - n_outputs):
        cost += prices[1 if j < n_inputs else 2] * h[:, j].max()
    for i in range(n):
        sources = [j for j in range(n) if mask[i, j]]
        active = [j for j in sources if abs(d[i, j]) > c]
        for block in blocks(active, set(sources) - set(active), lanes):
            together, alone = prices[4] * max(h[i, j] for j in block), prices[5] * sum(h[i, j] for j in block)
            cost += alone if 0 < alone < prices[4] else together
    return cost + prices[3] * expected_levels(h, n_inputs, picks)[n - n_outputs :].max()


def far_edges(edges, walk, live, distance):
    """Edges (source, reader) of live readers that lie more than ``distance`` from the one before them in their row.

    Rows are sorted by source; distance is that in the walk: over its neurons, and of each over its readers, ascending.
    """
    order = [(j, i) for j in walk for i in sorted(r for s, r in edges if s == j) if i in live]
    place = {edge: k for k, edge in enumerate(order)}
    far = 0
    for i in live:
        row = sorted(j for j, r in edges if r == i)
        for k, j in enumerate(row):
            far += k == 0 or abs(place[j, i] - place[row[k - 1], i]) > distance
    return far


def moved_lines(edges, inputs, live, parts, per_line):
    """Writes of gradients of edges (source, reader), in the backward pass of `wavefront`, to a line that another part
    has written last.  Gradients lie in the order of readers, then sources, ``per_line`` of them in a line."""
    line = {edge: k // per_line for k, edge in enumerate(sorted(edges, key=lambda edge: edge[::-1]))}
    sources = {i: {j for j, reader in edges if reader == i} for i in live}
    level, rest = dict.fromkeys(inputs & live, 0), live - inputs
    while rest:
        ready = {i for i in rest if not sources[i] & rest}
        level |= {i: 1 + max((level[j] for j in sources[i]), default=0) for i in ready}
        rest -= ready
    last_writer, moved = {}, 0
    for stage in range(max(level.values(), default=0), -1, -1):
        neurons = sorted(i for i in level if level[i] == stage)
        bounds = [len(neurons) * part // parts for part in range(parts + 1)]
        shares = [neurons[a:b][::-1] for a, b in itertools.pairwise(bounds)]
        for turn in range(len(neurons)):
            for part, share in enumerate(shares):
                for edge in sorted((j, i) for j, i in edges if share[turn : turn + 1] == [j] and i in live):
                    moved += last_writer.get(line[edge], part) != part
                    last_writer[line[edge]] = part
    return moved


def gradient(f, x, eps=1e-6):
    """Central finite differences of the scalar f at the array x (any shape, also ()); f takes an array."""
    x = np.array(x, dtype=np.float64)
    out = np.zeros(x.shape)
    for cell in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[cell] += eps
        low[cell] -= eps
        out[cell] = (f(high) - f(low)) / (2 * eps)
    return out
