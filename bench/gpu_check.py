"""Everything that needs a GPU, in one command: python -m bench.gpu_check [--minutes 8] [--wheels DIR] [--out FILE].

For a machine with one GPU and nothing else: no package index, this checkout not installed.  Installs the checkout
(without what it needs, which must be there or among the wheels), runs the CUDA tests, times kernels, passes and
training steps against torch.sparse, dense networks and the CPU's engine, and writes bench/RESULTS-cuda.md after each
part.  Every part has its share of the minutes, what one does not use goes to the next, and what does not fit is left
out with a note.  Exit code 0: the tests passed and every part was made whole.

--simulate runs all of it on nine neurons in numba's simulator, collects the tests without running them, and writes to
a temporary file: it shows that the check works, its times mean nothing.
"""

from __future__ import annotations

import argparse
import configparser
import datetime
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "RESULTS-cuda.md"
IMPORTED = {
    "scikit-learn": "sklearn",
    "numba-cuda": r"numba(?:\.| import )cuda",
}  # modules, where not called as packages
SHARES = {"device": 2.0, "tests": 6.0, "kernels": 2.0, "passes": 4.0, "steps": 3.0}
TITLES = {
    "device": "Machine",
    "tests": "Tests",
    "kernels": "Kernels against their floors, by CUDA events",
    "passes": "Forward and backward, against peers",
    "steps": "Training steps",
}
GRACE = 15  # seconds from the request to end to the end
TESTING = 8  # processes that share the GPU for the tests
OUTCOME = r"^(?:tests/.* {word}\b|\[gw\d+\] \[ *\d+%\] {word} tests/)"  # of a test, in one process or in several
CUT = 3  # exit code of a part that had not enough time
SITE = """import sys
from pathlib import Path
from bench.checkout import KernelsOf
sys.meta_path.insert(0, KernelsOf(Path({root!r})))
"""


@dataclass
class Report:
    """What has been found so far; written as a whole whenever something is added."""

    out: Path
    head: list[str]
    sections: dict[str, list[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, title: str, lines: list[str]) -> None:
        """Put a section at the end, and write the file."""
        self.sections[title] = lines
        state = [f"- **{failure}**" for failure in self.failures] or ["Nothing has failed."]
        text = [*self.head, "", *state]
        for name, body in self.sections.items():
            text += ["", f"## {name}", "", *body]
        self.out.write_text("\n".join(text).rstrip() + "\n")

    def fail(self, what: str) -> None:
        """Something did not work, or was not made."""
        self.failures.append(what)


# -- the environment -------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> dict[str, SpecifierSet]:
    """Packages that setup.cfg asks for, with the extras for CUDA and for tests, and their versions."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    texts = [parser["options"]["install_requires"]]
    texts += [parser["options.extras_require"][extra] for extra in ("cuda", "test")]
    found: dict[str, SpecifierSet] = {}
    for line in filter(None, "\n".join(texts).splitlines()):
        asked = Requirement(line)
        found[normal(asked.name)] = found.get(normal(asked.name), SpecifierSet()) & asked.specifier
    return found


def there() -> dict[str, str]:
    """Versions of the packages of this environment, and of the folders on PYTHONPATH."""
    folders = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    found: dict[str, str] = {}
    for one in importlib.metadata.distributions(path=folders):
        if one.metadata["Name"]:
            found.setdefault(normal(one.metadata["Name"]), one.version)
    return found


def lacks() -> list[str]:
    """What this environment lacks, a line each."""
    present, lines = there(), []
    for package, versions in wanted().items():
        if package not in present:
            lines.append(f"- {package} is missing; imported by {', '.join(users(package)) or 'nothing directly'}.")
        elif not versions.contains(present[package], prereleases=True):
            lines.append(f"- {package} {present[package]} is there; setup.cfg asks for {versions}.")
    return lines


def users(package: str) -> list[str]:
    """Files of the engine and of the tests that import a package."""
    module = IMPORTED.get(package, package.replace("-", "_"))
    pattern = re.compile(rf"^\s*(?:import|from) {module}\b|importorskip\(\W*{module}\b", re.MULTILINE)
    files = [*sorted((ROOT / "sparse_dnm").rglob("*.py")), *sorted((ROOT / "tests").glob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in files if pattern.search(path.read_text())]


def take_wheels(folder: Path, site: Path) -> list[str]:
    """Install those of the wheels in a folder that are not there in this version, into ``site``; returns their names.

    Raises subprocess.CalledProcessError where pip refuses them.
    """
    present = there()
    named = {path: path.name.split("-") for path in sorted(folder.glob("*.whl"))}
    missing = [path for path, (name, version, *_) in named.items() if present.get(normal(name)) != version]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site)]
        subprocess.run([*command, *map(str, missing)], check=True, capture_output=True, text=True, timeout=120)
    return [path.name for path in missing]


def imported() -> str:
    """Why sparse_dnm and its kernels are not those of this checkout in a new process; empty where they are."""
    code = "import sparse_dnm, sparse_dnm.kernels as k; print(sparse_dnm.__file__); print(k.__file__)"
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    found = [Path(line).resolve().parent for line in done.stdout.split("\n") if line]
    return "" if found == [ROOT / "sparse_dnm", ROOT / "kernels"] else f"they come from {found[0]} and {found[1]}"


def install(site: Path) -> str:
    """Make the checkout importable, and say how.  Raises RuntimeError where it cannot be imported."""
    if not imported():
        return "The checkout was installed already."
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-e", str(ROOT)], capture_output=True, text=True, check=False)
    if not done.returncode and not imported():
        return "The checkout was installed by pip, without dependencies and without build isolation."
    (site / "sitecustomize.py").write_text(SITE.format(root=str(ROOT)))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    why = imported()
    if why:
        raise RuntimeError(f"the checkout cannot be imported: {why}")
    said = (done.stderr.strip().splitlines() or ["it installed another one"])[-1]
    return f"pip did not install the checkout ({said}); it is on the path instead."


def prepare(wheels: Path | None, site: Path, report: Report) -> bool:
    """Packages and the checkout; False where nothing can run."""
    lines, here = [], os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), here]))
    try:
        if wheels is not None:
            taken = take_wheels(wheels, site)
            lines.append(f"- Wheels taken: {', '.join(taken) or 'none, all were there'}.")
        lines += lacks()
        lines.append(f"- {install(site)}")
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        report.fail(f"environment: {said.strip().splitlines()[-1]}")
    report.add("Environment", lines)
    print("\n".join(lines), flush=True)
    return not report.failures


# -- parts -----------------------------------------------------------------------------------------------------


def run(command: list[str], seconds: float, log: Path) -> tuple[int | None, str]:
    """Exit code and standard output of a command; None where it had to be ended, first politely.

    ``log`` gets its errors, and the output as well.
    """
    said = log.with_suffix(".out")
    with open(said, "w") as out, open(log, "w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors, start_new_session=True)
        code: int | None = None
        for end, patience in ((None, seconds), (signal.SIGINT, GRACE), (signal.SIGKILL, None)):
            if end is not None:
                os.killpg(process.pid, end)
            try:
                code = process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        ended = end is not None
    return None if ended else code, said.read_text()


def test(seconds: float, simulate: bool, logs: Path, report: Report) -> None:
    """The tests that are marked cuda; in the simulator they are collected only."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.cuda" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "--tb=short", "--color=no"]
    command += ["--collect-only", "-q"] if simulate else ["-v", "--durations=10"]
    if not simulate and "pytest-xdist" in there():
        command += ["-n", str(min(TESTING, os.cpu_count() or 1))]
    code, said = run([*command, *map(str, files)], seconds, logs / "tests.log")
    found = {word: len(re.findall(OUTCOME.format(word=word), said, re.MULTILINE)) for word in ("PASSED", "SKIPPED")}
    broken = re.findall(r"^(?:FAILED|ERROR) (tests/.*)$", said, re.MULTILINE)
    lines = [f"`pytest -m cuda`: {found['PASSED']} passed, {found['SKIPPED']} skipped, {len(broken)} failed."]
    if simulate:
        lines = ["Collected only: " + (said.strip().splitlines() or ["nothing"])[-1].strip("= ") + "."]
    lines += ["", *(f"- {line}" for line in broken)] if broken else []
    if code is None:
        lines += ["", f"Cut after {seconds:.0f} s; tests that had not begun are not counted."]
        report.fail(f"tests: cut after {seconds:.0f} s")
    elif code:
        report.fail(f"tests: {len(broken)} failed, exit code {code}")
        print(said[-6000:], (logs / "tests.log").read_text()[-3000:], flush=True)
    report.add(TITLES["tests"], lines)


def measure(part: str, seconds: float, simulate: bool, logs: Path, report: Report) -> None:
    """A part of bench.gpu_parts, in a process of its own: it may crash, and it may be cut."""
    command = [sys.executable, "-m", "bench.gpu_parts", part, "--seconds", f"{0.8 * seconds:.1f}"]
    code, said = run([*command, *(["--simulate"] if simulate else [])], seconds, logs / f"{part}.log")
    lines = said.strip().splitlines()
    if code == CUT or code is None:
        report.fail(f"{part}: not all of it fitted into {seconds:.0f} s")
        lines += ["", f"Cut after {seconds:.0f} s."] if code is None else []
    elif code:
        error = (logs / f"{part}.log").read_text().strip()
        report.fail(f"{part}: exit code {code}: {(error.splitlines() or ['no message'])[-1]}")
        print(error[-3000:], flush=True)
    report.add(TITLES[part], lines)


def make(part: str, seconds: float, simulate: bool, logs: Path, report: Report) -> None:
    """Make a part in as many seconds."""
    if part == "tests":
        test(seconds, simulate, logs, report)
    else:
        measure(part, seconds, simulate, logs, report)


def header(options: argparse.Namespace) -> list[str]:
    """Title, date, command."""
    title = "# In numba's simulator: no figure here means anything" if options.simulate else "# On a GPU"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    of = f" of commit {commit.stdout.strip()}" if not commit.returncode else ""
    command = f"python -m bench.gpu_check --minutes {options.minutes:g}{' --simulate' * options.simulate}"
    how = (
        "Wall seconds of calls and a wait for the device, where a table says nothing else; medians of rounds in turns."
    )
    return [title, "", f"Written by `{command}`{of}, {datetime.date.today().isoformat()}.  {how}"]


def finish(report: Report, logs: Path) -> int:
    """Print the report, and last what failed; the exit code."""
    report.add("End", [f"{len(report.failures)} parts failed or were cut."])
    print(report.out.read_text())
    print(f"Written to {report.out}; logs in {logs}.")
    print("\n".join(["FAILED:", *report.failures]) if report.failures else "Everything was made, and the tests passed.")
    return int(bool(report.failures))


def main() -> int:
    """All parts; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of packages that may be missing")
    parser.add_argument("--out", type=Path, help="default bench/RESULTS-cuda.md, simulated a temporary file")
    parser.add_argument("--logs", type=Path, help="folder for what tests and parts print; default a temporary one")
    parser.add_argument("--only", choices=tuple(SHARES), action="append", help="this part alone; may be given again")
    parser.add_argument("--simulate", action="store_true", help="a dry run without a GPU")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    folder = Path(tempfile.mkdtemp(prefix="gpu_check"))
    site, logs = folder / "site", options.logs or folder
    for path in (site, logs):
        path.mkdir(parents=True, exist_ok=True)
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1" if options.simulate else "0"
    out = options.out or (folder / RESULTS.name if options.simulate else RESULTS)
    report = Report(out, header(options))
    parts = options.only or list(SHARES)
    if prepare(options.wheels, site, report):
        for k, part in enumerate(parts):
            left = deadline - time.monotonic() - GRACE
            seconds = left * SHARES[part] / sum(SHARES[name] for name in parts[k:])
            if seconds < 1:
                report.fail(f"{part}: no time was left")
                continue
            print(f"{TITLES[part]}: {seconds:.0f} s at most", flush=True)
            make(part, seconds, options.simulate, logs, report)
    return finish(report, logs)


if __name__ == "__main__":
    sys.exit(main())
