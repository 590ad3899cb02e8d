"""Settings of all tests: modules of this tree, two processes, and no time limit for hypothesis (kernels compile)."""

import atexit
import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait slow the other process down

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")  # before numba is there

import sparse_dnm.kernels

import sparse_dnm

# Tests and the machine's own quiet references do not see each other; every process of pytest has a folder for its own
_cache = tempfile.mkdtemp(prefix="sparse-dnm-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["SPARSE_DNM_CACHE"] = _cache

ROOT = Path(__file__).resolve().parent.parent
for module, folder in ((sparse_dnm, "sparse_dnm"), (sparse_dnm.kernels, "kernels")):
    assert module.__file__ is not None
    found = Path(module.__file__).resolve().parent
    if found != ROOT / folder:
        raise RuntimeError(f"{module.__name__} comes from {found}, not from {ROOT / folder}: pip install -e . here")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run all tests in two processes if pytest-xdist is installed; named files run in one, as does --pdb; -n overrides.

    Each process takes half of the tests in their order, then some of those that the other has left.
    """
    option, worker = config.option, "PYTEST_XDIST_WORKER" in os.environ
    if worker or not config.pluginmanager.has_plugin("xdist") or option.numprocesses is not None:
        return
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not (option.collectonly or option.usepdb):
        option.numprocesses, option.dist = 2, "worksteal"


hypothesis.settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    print_blob=True,
)
hypothesis.settings.load_profile("default")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a job in the background: children would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _alone(request, tmp_path_factory):
    """While a test marked ``alone`` runs, the other process runs none: what is decided by measured time needs quiet.

    Every test holds a lock, a shared one if it is not marked.  The gate is passed one by one, so that a marked test
    that waits there is not overtaken for ever.
    """
    if fcntl is None or "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    shared = tmp_path_factory.getbasetemp().parent
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(open(shared / "tests.lock", "a"))
        with open(shared / "gate.lock", "a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield
