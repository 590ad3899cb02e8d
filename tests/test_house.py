"""The order of the house: imports go one way, kernels stand alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "checks",
    "config",
    "initial",
    "backend",
    "buffers",
    "topology",
    "schedule",
    "candidates",
    "plan",
    "growth",
    "autograd",
    "torch_sparse_executor",
    "cuda_executor",
    "execution",
    "sparse_dag",
    "cuda_manifold",
    "network",
    "regrow",
    "dense",
    "losses",
    "files",
    "data",
    "recipe",
    "checkpoint",
    "snapshots",
    "timing",
    "cost_model",
    "calibration",
    "measured",
    "fresh",
    "trim",
    "descent",
    "benchmark",
    "benchmark_report",
    "training",
    "compare",
    "compare_report",
    "views",
    "history",
    "figures",
    "animation",
    "page",
    "tensorboard_log",
    "cli",
]


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


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_one_way(name):
    for module in imports_of(ROOT / "sparse_dnm" / f"{name}.py"):
        parts = module.split(".")
        if parts[1] == "kernels":
            assert name == "backend", f"{name} imports {module}; only backend may"
        elif parts[1] in ORDER:
            assert ORDER.index(parts[1]) < ORDER.index(name), f"{name} imports {module}"


def test_every_module_has_its_place():
    assert {p.stem for p in (ROOT / "sparse_dnm").glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda p: p.stem)
def test_kernels_import_nothing_else_of_ours(path):
    assert all(module.startswith("sparse_dnm.kernels") for module in imports_of(path))


def test_kernels_refuse_to_be_a_second_module():
    run = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert "sparse_dnm.kernels" in run.stderr


def test_every_function_of_the_public_surface_has_a_docstring():
    missing = [
        f"{path.stem}.{node.name}"
        for path in (ROOT / "sparse_dnm").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
        and node.end_lineno - node.lineno > 8
    ]
    assert not missing
