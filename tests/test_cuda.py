"""The CUDA kernels of a given DAG, on a GPU or in numba's simulator (see cuda_device.py); machine code of all."""

import copy
import importlib
import os
import shutil
import subprocess
import sys
import warnings

import naive
import numpy as np
import pytest
import torch
from cuda_device import DEVICE, REAL, kernels_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_dnm.kernels import cuda_propagate
from strategies import dags, manifolds
from typer.testing import CliRunner

from sparse_dnm import DynamicManifold, ManifoldConfig, SparseDAG, TimeSettings, Topology, TrainConfig
from sparse_dnm.checks import MissingPackageError
from sparse_dnm.cli.app import app
from sparse_dnm.config import ACTIVATIONS
from sparse_dnm.engine import cuda as cuda_engine
from sparse_dnm.engine import device as backend
from sparse_dnm.engine.autograd import Network, propagate
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.cpu import CpuEngine
from sparse_dnm.engine.cuda import CudaEngine
from sparse_dnm.engine.cuda_launch import DeviceMemory

pytestmark = [pytest.mark.cuda, pytest.mark.slow]


@pytest.fixture(autouse=True, scope="module")
def cuda_kernels():
    """Every engine is that of CUDA."""
    with kernels_of("cuda"):
        yield


def model_of(dag, activation, dtype=torch.float64):
    """A SparseDAG on the device, biased."""
    topology, generator = Topology.from_edges(*dag), torch.Generator().manual_seed(0)
    model = SparseDAG(topology, activation=activation, dtype=dtype, generator=generator)
    with torch.no_grad():
        model.bias.uniform_(-1, 1, generator=generator)
    return model.to(DEVICE), generator


@given(dags(max_neurons=12), st.sampled_from([1, 5, 33]), st.sampled_from(ACTIVATIONS))
@settings(max_examples=10)
def test_forward_matches_the_oracle(dag, batch, activation):
    model, generator = model_of(dag, activation)
    topology, n = model.topology, dag[1]
    x = torch.randn(batch, len(topology.inputs), dtype=torch.float64, generator=generator)
    bias = np.zeros(n)
    bias[np.setdiff1d(np.arange(n), topology.inputs)] = model.bias.detach().cpu().numpy()
    weights = topology.to_scipy(model.edge_weight).toarray()
    expected = naive.forward_dag(x.numpy(), weights, bias, topology.inputs, topology.outputs, activation)
    with torch.no_grad():
        found = model(x.to(DEVICE))
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-10, atol=1e-10)


@given(dags(max_neurons=6), st.sampled_from(ACTIVATIONS))
@settings(max_examples=2)
def test_gradcheck(dag, activation):
    model, generator = model_of(dag, activation)
    x = torch.randn(2, len(model.topology.inputs), dtype=torch.float64, generator=generator).to(DEVICE)
    names, values = zip(*model.named_parameters(), strict=True)

    def outputs(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    free = [v.detach().clone().requires_grad_() for v in (x, *values)]
    assert torch.autograd.gradcheck(outputs, free, fast_mode=True)


@given(manifolds(), st.sampled_from([1, 34]))
@settings(max_examples=3)
def test_every_gradient_is_that_of_the_cpu(model, batch):
    """Structures of manifolds: neurons weighted, outputs linear, some never read, dead or without sources."""
    compare_with_cpu(model, batch)


@pytest.mark.parametrize("n_outputs", [2, 11])
def test_many_sources_and_readers_are_summed_as_on_the_cpu(n_outputs):
    """More than are summed at a time; readers that read messages, linear ones that read values, and both in a group."""
    config = ManifoldConfig(14 + n_outputs, 4, n_outputs, 3.0, cutoff=-6.0, alpha=(3.0, 0.1), sigma=(50.0, 1.0))
    with kernels_of("cpu"), torch.no_grad():
        model = DynamicManifold(config, torch.Generator().manual_seed(0), dtype=torch.float64)
        model(torch.zeros(1, 4, dtype=torch.float64))
        assert np.diff(model.topology.t_indptr).max() > cuda_propagate.TOGETHER + n_outputs
    compare_with_cpu(model, 2)


def compare_with_cpu(model, batch):
    """Outputs and all gradients of a manifold's graph, by both executors of CUDA."""
    with kernels_of("cpu"):
        found = copy.deepcopy(model).find()
    generator, head = torch.Generator().manual_seed(3), found.host.neurons
    x = torch.randn(batch, model.config.n_inputs, dtype=torch.float64, generator=generator)
    leaves = [x, torch.tensor(found.values.strengths), model.weight.detach(), model.bias.detach()]
    engines = [CpuEngine(Executor("columns")), *(CudaEngine(Executor(k), DEVICE) for k in ("columns", "wavefront"))]
    results = []
    for engine in engines:
        neurons = engine.neurons(head.kind, head.slope, head.first_linear, head.weighted)
        structure = engine.given(found.topology, neurons)
        given = [leaf.detach().to(engine.device).clone().requires_grad_() for leaf in leaves]
        out = propagate(Network(engine, structure), *given)
        gradients = torch.autograd.grad(
            (out * torch.arange(1.0, out.numel() + 1).reshape(out.shape).to(out)).sum(), given
        )
        results.append([t.detach().cpu() for t in (out, *gradients)])
    for expected, *others in zip(*results, strict=True):
        for there in others:
            torch.testing.assert_close(there, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_whatever_the_warps(dtype, monkeypatch):
    """Neuron 83 has 81 sources, more than the PIECE that a warp sums at once; its level is narrow for 8 warps."""
    edges = [(0, 3), (1, 3), (1, 4), (2, 5), (3, 5), (3, 6), (4, 6), (5, 82), (6, 82), (0, 82), (82, 83), (82, 84)]
    dag = edges + [(1, k) for k in range(7, 82)] + [(k, 83) for k in range(2, 82)] + [(0, 84), (83, 84)], 85
    found = []
    for warps in (1, 3, 8):
        monkeypatch.setattr(cuda_engine, "WARPS", warps)
        model, generator = model_of(dag, "silu", dtype)
        out = model(torch.randn(35, 3, dtype=dtype, generator=generator).to(DEVICE))
        assert out.dtype == dtype
        out.square().mean().backward()
        found.append([t.cpu().numpy().tobytes() for t in (out.detach(), model.edge_weight.grad, model.bias.grad)])
    assert found[0] == found[1] == found[2]


def test_it_trains():
    """A few steps of torch's optimiser, against the same on the CPU's kernels."""
    dag = [(0, 2), (1, 2), (0, 3), (2, 4), (3, 4), (1, 4)], 5
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses = {}
    for name in ("cuda", "cpu"):
        with kernels_of(name):
            model, _ = model_of(dag, "tanh")
            device = "cpu" if name == "cpu" else DEVICE
            model, inputs = model.to(device), x.to(device)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            losses[name] = []
            for _ in range(4):
                optimizer.zero_grad()
                loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
                loss.backward()
                optimizer.step()
                losses[name].append(loss.item())
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-10)
    assert losses["cuda"][-1] < losses["cuda"][0]


def test_without_numbas_cuda_target_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delattr("sparse_dnm.kernels.cuda", raising=False)
    monkeypatch.setitem(sys.modules, "sparse_dnm.kernels.cuda", None)
    with pytest.raises(MissingPackageError, match="install numba-cuda"):
        backend.kernels(torch.device("cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8, torch.int32, torch.int64, torch.bool])
def test_memory_of_a_device_is_described_as_by_torch_and_numpy(dtype):
    """Numpy's twin of the interface reads the same numbers at the same place."""
    tensor = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    about = DeviceMemory(tensor.data_ptr(), tensor.shape, dtype).__cuda_array_interface__
    twin = type("Twin", (), {"__array_interface__": {**about, "version": 3}})()
    found = np.asarray(twin)
    assert found.dtype == tensor.numpy().dtype
    np.testing.assert_array_equal(found, tensor.numpy())
    with pytest.raises(ValueError, match=r"shape \(3, 2\) that is not contiguous"):
        backend.launch(None, 1, 1, tensor.T)


def test_numba_without_driver_or_compiler_is_reported(monkeypatch):
    monkeypatch.setattr(backend, "_cuda_usable", lambda: False)
    with pytest.raises(MissingPackageError, match="numba did not find both; install numba-cuda"):
        backend.kernels(torch.device("cuda"))


def test_a_numpy_too_new_for_numbas_cuda_target_is_named(monkeypatch):
    def broken():
        raise AttributeError("module 'numpy' has no attribute 'row_stack'")

    monkeypatch.setattr(backend, "_cuda_usable", broken)
    with pytest.raises(MissingPackageError, match=r"not work with numpy .*row_stack.*install the versions of constrai"):
        backend.kernels(torch.device("cuda"))


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:-1", ""])
def test_a_device_without_kernels_is_refused(name):
    with pytest.raises(ValueError, match="has no kernels; choose cpu, cuda or cuda:N"):
        backend.device_of(name)


def test_the_clock_is_for_the_cpu():
    for command in (["train", "toy"], ["compare", "toy"], ["calibrate", "toy"]):
        done = CliRunner().invoke(app, [*command, "--device", "cuda", "--clock", "perf_counter"])
        assert done.exit_code == 2
        assert done.stderr.startswith("error: --clock perf_counter is for the CPU: on cuda CUDA's events are the clock")
    with pytest.raises(ValueError, match="clock='cuda_event' is unknown; choose one of process_time"):
        TimeSettings(clock="cuda_event")


@pytest.mark.parametrize("device", [None, "tpu", "cuda:x", 0])
def test_a_setting_for_an_unknown_device_is_refused(device):
    with pytest.raises(ValueError, match="has no kernels"):
        TrainConfig(device=device)
    assert TrainConfig(device=torch.device("cuda", 1)).device == "cuda:1"


@pytest.mark.skipif(REAL, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"'cuda:1' was asked for, but torch .*; choose device cpu, or install"):
        backend.device_of("cuda:1")
    done = CliRunner().invoke(app, ["train", "toy", "--device", "cuda", "--steps", "1"])
    assert done.exit_code == 2
    assert "device='cuda' was asked for" in done.output


def test_too_little_memory_is_an_error_that_names_the_way_out(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    model, _ = model_of(([(0, 1)], 2), "relu")
    out = model(torch.zeros(3, 1, dtype=torch.float64).to(DEVICE))
    monkeypatch.setattr(CudaEngine, "_backward", full)
    with pytest.raises(MemoryError, match=r"2 neurons and a batch of 3 do not fit .*give a smaller batch"):
        out.sum().backward()
    monkeypatch.setattr(CudaEngine, "_forward", full)
    with pytest.raises(MemoryError, match=r"2 neurons and a batch of 3 do not fit .*give a smaller batch"):
        model(torch.zeros(3, 1, dtype=torch.float64).to(DEVICE))


def test_tensors_on_two_devices_are_refused():
    model = SparseDAG(Topology.from_edges([(0, 1)]))
    model.bias = torch.nn.Parameter(torch.zeros(1, device="meta"))
    with pytest.raises(ValueError, match="x is on device 'cpu', not on 'meta'"):
        model(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="edge_weight is on 'cpu' and bias on 'meta'"):
        model(torch.zeros(1, 1, device="meta"))


def test_the_tables_are_made(monkeypatch):
    """Every case of `bench.tables --device cuda` runs and computes the same; in the simulator on nine neurons."""
    import bench.cuda

    monkeypatch.setattr(bench.cuda, "CALLS", 1)
    monkeypatch.setattr(cuda_engine, "WARPS", 1)
    config = ManifoldConfig(9, 3, 2, 3.0, cutoff=-2.5, alpha=(3.0, 1.0), sigma=(9.0, 1.0))
    text = bench.cuda.lines(True, DEVICE, config, batches=(2,), widths=[3, 4, 2], repeats=1)
    rows = {line.split(" | ")[0].strip("| ") for line in text if line.startswith("| ")}
    assert {"columns, forward, batch 2", "wavefront, forward + backward, batch 2"} <= rows
    assert {"torch.sparse CSR level by level, forward", "DenseManifold levels, forward + backward"} <= rows
    graphs = {row for row in rows if "as a CUDA graph" in row}
    assert len({row for row in graphs if row.startswith("SparseDAG")}) == (4 if REAL else 0)
    assert len(rows - graphs) == 4 + 11 + 6 + 1


def test_numba_does_not_complain_of_few_blocks():
    """A block per tile is intended; numba colours its message."""
    import sparse_dnm.kernels.cuda

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        importlib.reload(sparse_dnm.kernels.cuda)
        warnings.warn(
            "\x1b[1mGrid size 2 will likely result in GPU under-utilization due to low occupancy.\x1b[0m", stacklevel=1
        )
        warnings.warn("something else", stacklevel=1)
    assert [str(one.message) for one in said] == ["something else"]


def test_every_kernel_becomes_machine_code_without_spills():
    """In a process without the simulator; registers where ptxas is there."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    command = [sys.executable, "-m", "bench.registers", "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 2 * 14
    if shutil.which("ptxas"):
        assert all(row[-1] == "0 |" for row in rows)
    else:
        assert all("no ptxas" in row for row in rows)
