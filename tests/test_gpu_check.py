"""bench.gpu_check: its dry run in numba's simulator, and what it says where something is missing, fails or is cut."""

import os
import subprocess
import sys

import pytest

from bench import gpu_check

pytestmark = pytest.mark.slow


@pytest.fixture
def report(tmp_path):
    """An empty report."""
    return gpu_check.Report(tmp_path / "report.md", ["# Title"])


def dry_run(tmp_path, *arguments):
    """The check in a process of its own, in the simulator; its exit code, output and report."""
    out = tmp_path / "report.md"
    command = [sys.executable, "-m", "bench.gpu_check", "--simulate", "--out", str(out), "--logs", str(tmp_path)]
    done = subprocess.run([*command, *arguments], cwd=gpu_check.ROOT, capture_output=True, text=True, timeout=500)
    return done.returncode, done.stdout + done.stderr, out.read_text()


def test_a_dry_run_of_the_kernels_writes_a_report_that_says_it_is_simulated(tmp_path):
    code, said, text = dry_run(tmp_path, "--only", "kernels", "--minutes", "5")
    assert code == 0, said
    assert text.startswith("# In numba's simulator: no figure here means anything")
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")]
    kinds = ("forward", "forward + backward")
    assert rows[1:] == [f"{name}, {kind}, batch 2" for name in ("columns", "wavefront") for kind in kinds]
    assert "Nothing has failed." in text


def test_a_dry_run_makes_every_part(tmp_path):
    code, said, text = dry_run(tmp_path, "--minutes", "8")
    assert code == 0, said
    for title in gpu_check.TITLES.values():
        assert f"\n## {title}\n" in text
    for case in ("SparseDAG, CPU, 1 thread, forward", "DenseManifold levels, forward", "Trainer, CUDA, wavefront"):
        assert f"| {case} |" in text
    assert "Collected only: " in text
    assert not list(gpu_check.ROOT.glob("bench/RESULTS-cuda.md")) or "simulator" not in gpu_check.RESULTS.read_text()


def test_a_part_that_takes_too_long_is_cut_and_keeps_what_it_printed(tmp_path, report, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 1)
    command = [sys.executable, "-c", "import time; print('a row', flush=True); time.sleep(100)"]
    assert gpu_check.run(command, 3.0, tmp_path / "a.log") == (None, "a row\n")
    monkeypatch.setattr(gpu_check, "run", lambda *_: (None, "a row\n"))
    gpu_check.measure("steps", 3.0, True, tmp_path, report)
    assert report.failures == ["steps: not all of it fitted into 3 s"]
    assert report.out.read_text().endswith("## Training steps\n\na row\n\nCut after 3 s.\n")


def test_a_part_that_fails_is_named_with_its_error(tmp_path, report, monkeypatch):
    (tmp_path / "steps.log").write_text("Traceback\nValueError: the reason\n")
    monkeypatch.setattr(gpu_check, "run", lambda *_: (1, "a row\n"))
    gpu_check.measure("steps", 3.0, True, tmp_path, report)
    assert report.failures == ["steps: exit code 1: ValueError: the reason"]
    assert gpu_check.finish(report, tmp_path) == 1


def test_failed_tests_are_listed_and_counted(tmp_path, report, monkeypatch):
    said = (
        "tests/test_cuda.py::test_a PASSED [ 33%]\ntests/test_cuda.py::test_b FAILED [ 66%]\n"
        "tests/test_cuda.py::test_c SKIPPED (why) [100%]\nFAILED tests/test_cuda.py::test_b - ValueError: x\n"
    )
    (tmp_path / "tests.log").write_text("")
    monkeypatch.setattr(gpu_check, "run", lambda *_: (1, said))
    gpu_check.test(3.0, False, tmp_path, report)
    assert report.failures == ["tests: 1 failed, exit code 1"]
    text = report.out.read_text()
    assert "1 passed, 1 skipped, 1 failed" in text
    assert "- tests/test_cuda.py::test_b - ValueError: x" in text


def test_outcomes_are_counted_where_several_processes_test(tmp_path, report, monkeypatch):
    said = (
        "[gw0] [  2%] PASSED tests/test_cuda.py::test_a \n[gw3] [ 50%] SKIPPED tests/test_cuda.py::test_b \n"
        "tests/test_cuda.py::test_c \n[gw11] [100%] PASSED tests/test_cuda_manifold.py::test_c \n"
    )
    monkeypatch.setattr(gpu_check, "run", lambda *_: (0, said))
    gpu_check.test(3.0, False, tmp_path, report)
    assert "2 passed, 1 skipped, 0 failed" in report.out.read_text()


def test_what_is_missing_too_old_or_too_new_is_named_with_the_files_that_import_it(monkeypatch):
    present = {name: "999.0" for name in gpu_check.wanted()} | {"numpy": "2.4.6"}
    monkeypatch.setattr(gpu_check, "there", lambda: present)
    assert gpu_check.lacks() == []
    del present["networkx"]
    present["torch"] = "2.1.0+cpu"
    present["numpy"] = "2.5.2"
    old, new, missing = gpu_check.lacks()
    assert old.startswith("- torch 2.1.0+cpu is there; setup.cfg asks for >=2.")
    assert new == "- numpy 2.5.2 is there; setup.cfg asks for <2.5,>=2.0."
    assert missing.startswith("- networkx is missing; imported by ")
    assert "tests/test_topology.py" in missing


def test_a_checkout_that_pip_cannot_install_is_put_on_the_path(tmp_path, monkeypatch):
    """In a process that sees no other one: the environment's own finder is left out."""
    monkeypatch.setenv("PYTHONPATH", str(gpu_check.ROOT))
    (tmp_path / "sitecustomize.py").write_text(gpu_check.SITE.format(root=str(gpu_check.ROOT)))
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import sparse_dnm.kernels.formulas as f, sparse_dnm; print(f.__file__); print(sparse_dnm.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(gpu_check.ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found = [str(gpu_check.ROOT / part) for part in ("kernels/formulas.py", "sparse_dnm/__init__.py")]
    assert done.stdout.split() == found
