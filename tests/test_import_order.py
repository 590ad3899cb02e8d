"""The order of imports: packages import in one direction, kernels import nothing of the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sparse_dnm"
ORDER = [  # packages and modules of sparse_dnm: each may import itself and those before it
    "wording",
    "sizes",
    "noise",
    "fields",
    "config",
    "checks",
    "presets",
    "checks",
    "io",
    "machine",
    "engine",
    "model",
    "interop",
    "data",
    "lowering",
    "timing",
    "target",
    "loss",
    "train",
    "sample_predictor",
    "sequence_predictor",
    "predictor",
    "export",
    "sklearn",
    "study",
    "report",
    "cli",
    "__main__",
]
LATE = {  # imported when a function is called
    ("config", "presets"),  # ManifoldConfig.preset looks its name up
    ("model", "interop"),  # SparseDAG.from_linear, from_scipy and from_networkx are doors to it
}


def imports_of(path):
    """Names of the modules that a file imports from this project."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = "sparse_dnm" + ("." + node.module if node.module else "") if node.level else node.module or ""
            if module == "sparse_dnm":
                yield from (f"sparse_dnm.{alias.name}" for alias in node.names)
            elif module.startswith("sparse_dnm"):
                yield module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sparse_dnm"))


MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent.name != "kernels" and path != PACKAGE / "__init__.py"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_comes_before_it(path):
    place = path.relative_to(PACKAGE).with_suffix("").parts
    for module in imports_of(path):
        first = module.split(".")[1]
        if first == "kernels":
            assert place[0] == "engine", f"{place} imports {module}; only the engine may"
        elif module != "sparse_dnm.__version__" and (place[0], first) not in LATE:
            assert ORDER.index(first) <= ORDER.index(place[0]), f"{place} imports {module}"


def test_every_package_is_in_the_order():
    found = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"kernels"} == {*ORDER, "__init__"}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda p: p.stem)
def test_kernels_import_only_kernels(path):
    assert all(module.startswith("sparse_dnm.kernels") for module in imports_of(path))


def test_importing_the_folder_of_kernels_as_a_module_is_refused():
    run = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert "sparse_dnm.kernels" in run.stderr


def test_every_function_of_the_public_surface_has_a_docstring():
    missing = [
        f"{path.stem}.{node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
        and node.end_lineno - node.lineno > 8
    ]
    assert not missing
