"""Importing and running in any process, thread and for any user; every case is a process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

PRELUDE = """
import contextlib, hashlib, os, signal, sys, threading, warnings
import numba, numpy as np, torch
from sparse_dnm import DynamicManifold, ManifoldConfig
signal.alarm(240)  # a process that hangs ends

def work(seed=0, threads=2):
    model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(seed), threads=threads)
    y = model(torch.linspace(-1, 1, 64 * 5).reshape(64, 5))
    y.sum().backward()
    found = [y, *(p.grad for p in model.parameters() if p.grad is not None)]
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in found)).hexdigest()

def in_a_fork(function):
    \"\"\"What the function returns, as text, or how the forked process ended.\"\"\"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(200)
        try:
            os.write(write, str(function()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read().decode()
    status = os.waitpid(pid, 0)[1]
    return said or f"ended with status {status}"
"""


def run(code, **environment):
    """Run a script in a process of its own."""
    env = {**os.environ, "NUMBA_NUM_THREADS": "2", **environment}
    env = {name: value for name, value in env.items() if value is not None}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=300)


def words(code, **environment):
    """What a script printed."""
    return run(code, **environment).stdout.split()


def model_words(code, **environment):
    """What a script printed that runs after PRELUDE."""
    return words(PRELUDE + textwrap.dedent(code), **environment)


def test_the_package_imports_neither_torch_nor_numba():
    heavy = "any(name in sys.modules for name in ('torch', 'numba', 'scipy', 'numpy'))"
    code = f"import sys, sparse_dnm, sparse_dnm.kernels, sparse_dnm.cli; print(sparse_dnm.__version__, {heavy})"
    assert words(code)[-1] == "False"


def test_help_and_version_import_neither_torch_nor_numba():
    code = """
    import sys
    from typer.testing import CliRunner
    from sparse_dnm.cli.app import app
    for arguments in (["--help"], ["--version"], ["train", "--help"]):
        said = CliRunner().invoke(app, arguments)
        assert said.exit_code == 0, said.output
        assert said.output
    print(sorted({"torch", "numba", "scipy", "numpy", "sklearn", "matplotlib"} & set(sys.modules)) or "none")
    """
    assert words(code) == ["none"]


def test_every_public_name_is_there_before_and_after_its_first_use():
    code = """
    import sparse_dnm
    assert {*sparse_dnm.__all__, "__version__"} <= {*dir(sparse_dnm)}
    from sparse_dnm import data
    from sparse_dnm import *
    assert all(globals()[name] is getattr(sparse_dnm, name) is vars(sparse_dnm)[name] for name in sparse_dnm.__all__)
    assert data.load and DynamicManifold.__module__ == "sparse_dnm.model.manifold"
    try:
        sparse_dnm.Manifold
    except AttributeError as error:
        print(error)
    """
    assert " ".join(words(code)) == "module 'sparse_dnm' has no attribute 'Manifold'"


def test_importing_starts_no_threads_and_changes_nothing_of_numba():
    code = """
    import itertools, numba, numba.core.bytecode
    import sparse_dnm.cli.app, sparse_dnm.report.page, sparse_dnm.study.compare, sparse_dnm.kernels.cpu
    try:
        numba.threading_layer()
    except ValueError:
        print("none", type(numba.core.bytecode.FunctionIdentity._unique_ids) is itertools.count)
    """
    assert words(code) == ["none", "True"]


def test_the_first_kernel_leaves_torch_its_number_of_threads():
    code = "torch.set_num_threads(3); work(); print(torch.get_num_threads(), numba.threading_layer() != '')"
    assert model_words(code) == ["3", "True"]


# In a process that was forked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("ran", ["torch ran on threads", "kernels ran"])
def test_a_forked_process_gets_the_same_bits_on_one_thread(ran):
    code = f"""
    from sparse_dnm.engine import device
    torch.set_num_threads(2)
    if {ran!r} == "kernels ran":
        work()
    else:
        torch.ones(2_000_000).exp().sum()
    def child():
        found = work()
        torch.ones(2_000_000).exp().sum()
        with device.use_threads(2):
            pass
        return found, torch.get_num_threads(), device.check_threads(0)
    forked = in_a_fork(child)
    torch.set_num_threads(2)
    print(forked == str((work(), 1, 1)), forked)
    """
    assert model_words(code)[0] == "True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_pools_of_forked_workers_give_results():
    code = """
    import concurrent.futures, multiprocessing
    work()
    fork = multiprocessing.get_context("fork")
    with fork.Pool(2) as pool:
        a = pool.map_async(work, range(2)).get(timeout=200)
    with concurrent.futures.ProcessPoolExecutor(2, fork) as pool:
        b = list(pool.map(work, range(2), timeout=200))
    again = in_a_fork(lambda: in_a_fork(work))  # and a worker may fork
    print(a == b == [work(0), work(1)], again == work(0))
    """
    assert model_words(code) == ["True", "True"]


# Threads of Python


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_two_threads_of_python_may_run_a_model_each(layer):
    code = """
    try:
        numba.set_num_threads(2)
    except ValueError as error:
        print("missing")
        raise SystemExit
    want = [work(0), work(1)]
    found = {}
    def run(seed):
        found[seed] = [work(seed) for _ in range(20)]
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(numba.threading_layer(), all(found[seed] == [want[seed]] * 20 for seed in range(2)))
    """
    said = model_words(code, NUMBA_THREADING_LAYER=layer)
    if said == ["missing"]:
        pytest.skip(f"Numba's threading layer {layer} is not installed")
    assert said == [layer, "True"]


# The folder of compiled kernels

KERNEL = """
import numba, numpy as np
from sparse_dnm.kernels import jit
@jit.kernel(parallel=True)
def double(x):
    for i in numba.prange(x.size):
        x[i] *= 2
def use(dtype=np.float32):
    x = np.ones(4, dtype)
    double(x)
    return bool((x == 2).all())
"""


def script(folder, text=KERNEL):
    """A module with a kernel: Numba keeps compiled code of functions in files."""
    path = folder / "doubles.py"
    path.write_text(text)
    return f"import sys, numpy as np; sys.path.insert(0, {str(folder)!r}); import doubles\n"


def stats(name="doubles.double"):
    return f"print(sum({name}.stats.cache_hits.values()), sum({name}.stats.cache_misses.values()))"


def test_compiled_kernels_are_found_again_unless_they_are_damaged_or_of_another_stamp(tmp_path):
    folder = tmp_path / "kept"
    start = script(tmp_path)
    use = "assert doubles.use()\n" + stats()
    other = "from sparse_dnm.kernels import jit; jit.STAMP = 'another' * 8\n"
    assert words(other + start + use, NUMBA_CACHE_DIR=str(folder)) == ["0", "1"]
    (stale,) = folder.rglob("*.kernel")
    assert words(start + use, NUMBA_CACHE_DIR=str(folder)) == ["0", "1"]
    (kept,) = folder.rglob("*.kernel")  # the stale one has gone
    assert kept != stale
    whole = kept.read_bytes()
    assert words(start + use, NUMBA_CACHE_DIR=str(folder)) == ["1", "0"]
    for damaged in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damaged)
        assert words(start + use, NUMBA_CACHE_DIR=str(folder)) == ["0", "1"]


def test_without_a_folder_kernels_run_and_one_warning_names_the_way_out(tmp_path):
    start = script(tmp_path)
    (tmp_path / "__pycache__").touch()  # no folder: nothing can be written there, by root neither
    code = f"{start}assert doubles.use() and doubles.use(np.float64)\n" + stats()
    done = run(code, NUMBA_CACHE_DIR=None, XDG_CACHE_HOME=None, HOME="/dev/null", PYTHONDONTWRITEBYTECODE="1")
    assert done.stdout.split() == ["0", "2"]
    assert done.stderr.count("RuntimeWarning") == 1
    assert "set NUMBA_CACHE_DIR to a folder that this user may write to" in done.stderr


def test_a_folder_that_goes_away_costs_a_warning(tmp_path):
    folder = tmp_path / "kept"
    code = f"""
    {script(tmp_path).strip()}
    import shutil
    assert doubles.use()
    shutil.rmtree({str(folder)!r})
    open({str(folder)!r}, "w").close()
    assert doubles.use(np.float64) and doubles.use(np.int64)
    """
    done = run(code, NUMBA_CACHE_DIR=str(folder))
    assert done.stderr.count("RuntimeWarning") == 1
    assert "NUMBA_CACHE_DIR" in done.stderr


def test_a_full_disk_costs_a_warning_and_leaves_nothing(tmp_path):
    code = f"""
    {script(tmp_path).strip()}
    import pathlib
    write = pathlib.Path.write_bytes
    def full(self, data):
        write(self, data[:100])
        raise OSError(28, "No space left on device")
    pathlib.Path.write_bytes = full
    assert doubles.use()
    """
    done = run(code, NUMBA_CACHE_DIR=str(tmp_path / "kept"))
    assert done.stderr.count("RuntimeWarning") == 1
    assert "No space left on device" in done.stderr
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def test_without_the_compiler_one_line_says_what_to_unset():
    command = [sys.executable, "-m", "sparse_dnm.cli", "train", "toy", "--steps", "1"]
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "NUMBA_DISABLE_JIT is set" in line
    assert "unset it" in line


# Names that the linker tells apart

WIDTHS = """
import sys, numba, numpy as np
from numba.parfors import parfor
if "alike" in sys.argv:  # parallel loops of all processes get one name, as in two forked ones
    parfor.Parfor.__hash__ = lambda self: 7
from sparse_dnm.kernels import jit
def make(count):
    @jit.task
    def part(i, x):
        for k in range(count):
            x[i * 8 + k] += count
    @jit.kernel(parallel=True)
    def add(x):
        for i in numba.prange(x.size // 8):
            part(i, x)
            x[i * 8 + 7] = count
    return add
def use(count):
    x = np.zeros(16)
    make(count)(x)
    return x.tolist() == ([float(count)] * count + [0.0] * (7 - count) + [float(count)]) * 2
"""


@pytest.mark.parametrize("names", ["as they are", "alike"])
def test_kernels_that_differ_in_what_they_capture_work_together_in_a_third_process(tmp_path, names):
    start = script(tmp_path, WIDTHS)
    start = f"import sys; sys.argv.append({names!r}); {start}"
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    for count in (2, 3):
        assert words(f"{start}print(doubles.use({count}))", **env) == ["True"]
    assert words(f"{start}print(doubles.use(2), doubles.use(3))", **env) == ["True", "True"]


def test_a_kernel_with_a_wrong_capture_is_refused(tmp_path):
    code = """
    from sparse_dnm.kernels import jit
    array = [1, 2]
    def make(array):
        def first():
            return array[0]
        return first
    try:
        jit.kernel(make(array))
    except TypeError as error:
        print(error)
    """
    assert "captures [1, 2]; a kernel may capture numbers" in " ".join(words(code))
