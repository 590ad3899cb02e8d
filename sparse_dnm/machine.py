"""Descriptions of this machine and of the installed versions."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from sparse_dnm.checks import CPU


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the numerical packages."""
    packages = {"sparse_dnm": "sparse-dnm", "torch": "torch", "numba": "numba", "numpy": "numpy"}
    return {"python": platform.python_version(), **{k: version(name) for k, name in packages.items()}}


def machine(device: torch.device = CPU) -> dict[str, str | int | None]:
    """Processor, cores and system, and the GPU if ``device`` is one; not the host name."""
    processor = platform.processor()
    with contextlib.suppress(OSError):  # Linux: platform.processor() gives the architecture only
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    found = {"processor": processor, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device != CPU else {})
