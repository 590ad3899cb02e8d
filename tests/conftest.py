"""What every test needs: the modules of this tree, and hypothesis without limits of time (kernels compile at first)."""

import os
from pathlib import Path

import hypothesis
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")  # before numba is there

import sparse_dnm.kernels

import sparse_dnm

ROOT = Path(__file__).resolve().parent.parent
for module, folder in ((sparse_dnm, "sparse_dnm"), (sparse_dnm.kernels, "kernels")):
    assert module.__file__ is not None
    found = Path(module.__file__).resolve().parent
    if found != ROOT / folder:
        raise RuntimeError(f"{module.__name__} comes from {found}, not from {ROOT / folder}: pip install -e . here")

hypothesis.settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    print_blob=True,
)
hypothesis.settings.load_profile("default")
torch.set_num_threads(1)
