"""Make a checkout of an old commit, and import the packages of a checkout that is not installed: kernels/ lies beside
sparse_dnm/, not in it.

Imports nothing of this project, and may run before anything of it is imported.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

PACKAGE, KERNELS = "sparse_dnm", "sparse_dnm.kernels"


class KernelsOf(MetaPathFinder):
    """Finds sparse_dnm.kernels in the folder kernels/ of a checkout."""

    def __init__(self, root: Path):
        self.folder = root / "kernels"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if fullname != KERNELS:
            return None
        return importlib.util.spec_from_file_location(
            fullname, self.folder / "__init__.py", submodule_search_locations=[str(self.folder)]
        )


def mount(root: Path) -> None:
    """From here on ``sparse_dnm`` is that of the checkout ``root``.

    Raises ValueError where it is no checkout, and RuntimeError where sparse_dnm has been imported already.
    """
    for name in (PACKAGE, "kernels"):
        if not (root / name / "__init__.py").is_file():
            raise ValueError(f"{root} has no {name}/__init__.py; give the folder of a checkout of sparse-dnm")
    if PACKAGE in sys.modules:
        raise RuntimeError(f"{PACKAGE} was imported before: mount a checkout in a new process")
    sys.path.insert(0, str(root))
    sys.meta_path.insert(0, KernelsOf(root))


def of_commit(commit: str, folder: Path) -> Path:
    """``folder`` with the files of a commit of this repository, made where it is missing.

    Raises RuntimeError where git, this repository or the commit is not there.
    """
    if (folder / PACKAGE / "__init__.py").is_file():
        return folder
    root = Path(__file__).resolve().parent.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        archive, files = Path(made) / "files.tar", Path(made) / "files"
        try:
            command = ["git", "-C", str(root), "archive", "-o", str(archive), commit]
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"git: {error}") from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            raise RuntimeError(f"git archive {commit}: {said[-1] if said else error}") from None
        with tarfile.open(archive) as tar:
            tar.extractall(files, filter="data")
        files.rename(folder)
    return folder
