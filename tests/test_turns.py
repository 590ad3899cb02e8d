"""Processes that need a kernel at once: one compiles it, and the others wait."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sparse_dnm.kernels import jit, turns
from sparse_dnm.kernels.turns import Turn

from sparse_dnm.engine.device import watching_compilation

HOLD = """
import sys
from pathlib import Path
from sparse_dnm.kernels.turns import Turn
turn = Turn(Path(sys.argv[1]))
print(turn.take(), flush=True)
sys.stdin.read()
"""

SUM = """
import sys, numpy as np
from sparse_dnm.engine.device import watching_compilation
from sparse_dnm.kernels import cpu_loop
told, waited = [], []
sys.stdin.read()
with watching_compilation(told.append, waited.append):
    out = np.zeros(3)
    cpu_loop.gather(np.arange(4.0), np.array([3, 1, 2]), out)
assert out.tolist() == [3.0, 1.0, 2.0]
print(len(told), flush=True)
"""


@pytest.fixture
def held(tmp_path):
    """The path of a turn that another process holds, and that process."""
    if turns.fcntl is None:
        pytest.skip("no POSIX locks here")
    path = tmp_path / "kernel.turn"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    yield path, process
    process.kill()
    process.communicate()


def test_a_turn_that_another_process_holds_is_not_given(held):
    path, _ = held
    assert not Turn(path).take()


def test_a_turn_ends_with_the_process_that_is_killed(held):
    path, process = held
    process.kill()
    process.wait()
    turn = Turn(path)
    turn.wait()
    assert path.exists()
    turn.give_back()
    assert not path.exists()


def test_a_process_that_is_stopped_is_waited_for_with_patience(held, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.1)
    turn = Turn(held[0])
    turn.wait()
    turn.give_back()
    assert held[0].exists()  # it is the other process's still
    assert not turn.take()


def test_a_turn_in_a_folder_that_cannot_be_written_is_given_to_everybody(tmp_path):
    (tmp_path / "file").touch()
    turn = Turn(tmp_path / "file" / "kernel.turn")
    assert turn.take()
    turn.give_back()


def doubled(values):
    """Twice the sum."""
    out = 0.0
    for k in range(values.size):
        out += 2.0 * values[k]
    return out


def test_a_kernel_that_another_process_compiles_is_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(jit._Cache, "cache_path", str(tmp_path))
    made = jit.kernel(doubled)
    told, waited = [], []
    with monkeypatch.context() as patch, watching_compilation(told.append, waited.append):
        patch.setattr(Turn, "take", lambda turn: False)
        patch.setattr(Turn, "wait", lambda turn: None)
        assert made(np.ones(3)) == 6.0
        assert (told, waited) == (["doubled"], ["doubled"])


@pytest.mark.slow
def test_processes_with_one_cold_cache_compile_each_kernel_once(tmp_path):
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", SUM], env=env, **pipes) for _ in range(3)]
    for process in processes:
        process.stdin.close()
    told = [int(process.stdout.read()) for process in processes]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sum(told) == 1
    assert not list(tmp_path.rglob("*.turn"))


INTERRUPTED = """
import signal, threading, time
import numpy as np
from sparse_dnm.engine.device import watching_compilation
from sparse_dnm.kernels import cpu_loop
values, order, out, ended = np.arange(4.0), np.array([3, 1, 2]), np.zeros(3), threading.Event()

def press():
    main = threading.main_thread().ident
    while not ended.wait(0.002):
        signal.pthread_kill(main, signal.SIGINT)

def began(_name):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=press).start()

signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    with watching_compilation(began):
        cpu_loop.gather(values, order, out)
    print("not interrupted")
except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("interrupted")
ended.set()
cpu_loop.gather(values, order, out)
print(out.tolist(), sum(cpu_loop.gather.stats.cache_misses.values()))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals between threads")
def test_ctrl_c_while_a_kernel_is_compiled_is_answered_when_it_is(tmp_path):
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["interrupted", "[3.0, 1.0, 2.0] 1"]
    assert done.stderr == ""
