"""Where the CUDA kernels run in tests: on a GPU where there is one (`pytest -m cuda`), else in numba's simulator.

The simulator runs one block at a time, a Python thread per CUDA thread: networks are tiny, and blocks have few warps.
"""

import contextlib
import sys

import pytest
import torch

from sparse_dnm.engine import cuda as cuda_engine
from sparse_dnm.engine import cuda_structure
from sparse_dnm.engine import device as backend

REAL = torch.cuda.is_available()
DEVICE = torch.device("cuda" if REAL else "cpu")


@contextlib.contextmanager
def kernels_of(name):
    """Engines made inside are those of ``name``, cpu or cuda, wherever tensors are; on a GPU, those of their device."""
    with pytest.MonkeyPatch.context() as patch:
        if not REAL:
            assert backend.SIMULATED
            patch.setattr(backend, "on_cuda", lambda device: name == "cuda")
            patch.setattr(cuda_engine, "WARPS", 2)
            patch.setattr(cuda_structure, "FRONT", 2)
            patch.setattr(cuda_structure, "ADDING", 1)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-3)  # the simulator polls its threads
        yield
        sys.setswitchinterval(interval)
