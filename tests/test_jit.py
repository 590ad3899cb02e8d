"""Compiled kernels outlive the process: a second one loads every kernel from the cache."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import numba, torch
import sparse_dnm
from sparse_dnm.kernels import cpu, cpu_propagate
topology = sparse_dnm.Topology.from_edges([(0, 2), (1, 2), (2, 3), (0, 3)])
from sparse_dnm.engine.device import watching_compilation
told = []
with watching_compilation(told.append):
    model = sparse_dnm.DynamicManifold(sparse_dnm.ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0))
    for count in (1, 3):
        model(torch.ones(count, 5)).sum().backward()
kernels = [k for count in (1, 4) for k in cpu_propagate.make(count)]
kernels += [k for k in vars(cpu).values() if hasattr(k, "stats")]
print(sum(sum(k.stats.cache_misses.values()) for k in kernels), sum(sum(k.stats.cache_hits.values()) for k in kernels))
print(len(told), told.count("forward"))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
        runs.append([int(word) for word in done.stdout.split()])
    (compiled, found, *told), (compiled_again, found_again, *told_again) = runs
    assert compiled > 4
    assert (found, compiled_again, found_again) == (0, 0, compiled)
    assert told[0] > 4
    assert told[1] == 2  # of two widths
    assert told_again == [0, 0]


WIDTHS = """
import hashlib, sys, torch
from sparse_dnm import SparseDAG, Topology
topology = Topology.from_edges([(j, i) for i in range(5, 30) for j in range(i) if (i * j) % 3])
dag = SparseDAG(topology, generator=torch.Generator().manual_seed(0), threads=1)
for batch in map(int, sys.argv[1:]):
    with torch.no_grad():
        y = dag(torch.linspace(-1, 1, batch * len(topology.inputs)).reshape(batch, -1))
    print(batch, hashlib.sha256(y.numpy().tobytes()).hexdigest())
"""


def test_kernels_that_two_processes_compiled_work_together_in_a_third(tmp_path):
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def bits(*batches):
        command = [sys.executable, "-c", WIDTHS, *batches]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    bits("1")  # what all widths share is compiled: the next two number their own functions alike
    each = bits("2") + bits("4")
    assert bits("2", "4") == each


def test_training_starts_without_the_compiler_of_torch(tmp_path):
    script = (
        "import sys; from sparse_dnm.cli.app import app\n"
        f"app(['train', 'toy', '--steps', '2', '--out', {str(tmp_path / 'run')!r}], standalone_mode=False)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
