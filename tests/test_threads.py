"""The number of threads: what a process may use, and the choice among that by measurement."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_dnm import DynamicManifold, ManifoldConfig
from sparse_dnm.engine import thread_choice
from sparse_dnm.engine.autotune import Executor
from sparse_dnm.engine.thread_choice import EXPLORE_EVERY, ThreadChoice
from sparse_dnm.engine.threads import check_threads, quota


def used(choice, seconds, calls=200):
    """Threads of some calls on a machine where a call takes ``seconds(threads, call)``."""
    found = []
    for call in range(calls):
        threads = choice.next()
        choice.record(threads, seconds(threads, call))
        found.append(threads)
    return found


@pytest.mark.parametrize("most", [2, 3, 6, 8])
def test_the_fastest_number_is_found_and_mostly_used(most):
    for best in {1, 2, most}:
        late = used(ThreadChoice(most), lambda threads, _, best=best: 1.0 + abs(math.log2(threads / best)))[100:]
        assert late.count(best) >= 0.8 * len(late)


def test_threads_that_wait_for_a_busy_core_are_left_and_come_back():
    quiet, busy = {1: 2.0, 2: 1.1}, {1: 2.0, 2: 5.0}
    calls = used(ThreadChoice(2), lambda threads, call: (busy if 200 <= call < 400 else quiet)[threads], 800)
    assert calls[100:200].count(2) > 90
    assert calls[240:400].count(1) > 140
    assert calls[-100:].count(2) > 90


@given(st.lists(st.floats(0.95, 1.05), min_size=300, max_size=300))
def test_noise_does_not_change_the_number(noise):
    calls = used(ThreadChoice(2), lambda threads, call: noise[call], 300)
    assert calls.count(1) <= thread_choice.SAMPLES + 300 // EXPLORE_EVERY


def test_a_single_thread_is_never_left():
    assert set(used(ThreadChoice(1), lambda threads, call: 1.0)) == {1}


def test_a_fixed_number_is_not_chosen():
    assert Executor("columns", 1).choose_threads("forward", 64) is None


def test_outputs_and_gradients_have_the_same_bits_whatever_number_is_chosen(monkeypatch):
    if check_threads(0) == 1:
        pytest.skip("one thread only")
    config = ManifoldConfig(n_neurons=30, n_inputs=5, n_outputs=3, period=5.0, sigma=(8.0, 1.0), cutoff=-2.0)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for threads in (1, 0):
        model = DynamicManifold(config, torch.Generator().manual_seed(0), threads=threads)
        seen = set()
        for _ in range(3 * EXPLORE_EVERY):
            model.zero_grad()
            out = model(x)
            out.square().sum().backward()
            seen.add(model.executor.threads)
        found.append([out.detach(), *(p.grad for p in model.parameters())])
    assert seen == {1, check_threads(0)}
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_quota_of_a_container_is_heard(tmp_path):
    process, root = tmp_path / "cgroup", tmp_path / "fs"
    assert quota(process, root) == math.inf
    process.write_text("0::/pod/one\n")
    assert quota(process, root) == math.inf
    write(root / "pod" / "one", cpu__max="max 100000\n")
    assert quota(process, root) == math.inf
    write(root / "pod", cpu__max="150000 100000\n")  # of the group above
    assert quota(process, root) == 1.5
    write(root / "pod" / "one", cpu__max="50000 100000\n")
    assert quota(process, root) == 0.5


def test_the_quota_of_version_1_is_heard(tmp_path):
    process, root = tmp_path / "cgroup", tmp_path / "fs"
    process.write_text("3:cpuset:/x\n1:cpu,cpuacct:/docker/a\n0::/\n")
    write(root / "cpu,cpuacct" / "docker" / "a", cpu__cfs_quota_us="200000\n", cpu__cfs_period_us="100000\n")
    assert quota(process, root) == 2.0
    write(root / "cpu,cpuacct" / "docker" / "a", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert quota(process, root) == math.inf
