"""What the benchmarks decide by: the table of targets, checkouts of old commits, and a module that computes nothing."""

import sys

import numpy as np
import pytest
import torch

from bench import recurrent, targets
from bench.against import Ratio
from bench.checkout import of_commit
from bench.own_loop import EmptyModel


def ratio(value):
    return Ratio("x", value, 1.0, value, 0.9 * value, 1.1 * value, 5)


def found():
    return targets.Found(
        latency={"kernel alone": 4e-6, "model(x)": 8e-6, "an empty nn.Module": 1e-6},
        training={
            (targets.BUSY, 50): (0.4, 0.99),
            (targets.BUSY, 256): (0.98, 0.90),
            (targets.IDLE, 256): (1.6, 1.6),
        },
        before={2: targets.Before(ratio(0.4), ratio(1.0), ratio(2.5))},
    )


def test_without_figures_no_target_is_met_or_missed():
    assert {row.met for row in targets.rows(targets.Found())} == {None}


def test_targets_are_judged_by_the_worst_figure():
    met = {row.what: row.met for row in targets.rows(found()) if row.met is not None}
    assert met == {
        "whole training step, batch 50, 2 threads, over the kernels of 9d64137": False,
        "original-mnist training, over that of 9d64137": True,
        "batch 1, 6,000 edges, kernel": True,
        "batch 1, 6,000 edges, model(x) under no_grad": True,
        "training on the number of threads that is chosen, the default, over 1, a second program on one core": False,
        "training on 2 threads over 1, idle machine, batch 256": True,
    }


def test_whole_runs_count_before_blocks_of_steps():
    some = found()
    some.whole_runs = [(50.0, 100.0), (60.0, 100.0), (90.0, 100.0)]
    (row,) = (row for row in targets.rows(some) if row.what == "original-mnist training, over that of 9d64137")
    assert not row.met
    assert row.measured.startswith("0.6 of its time, whole runs of 50,000 steps")


def test_the_second_instruction_set_has_columns_of_its_own_only_where_it_was_measured():
    lines = targets.lines(found(), targets.rows(targets.Found(latency={"kernel alone": 20e-6})))
    assert {line.count(" | ") for line in lines[2:]} == {6}
    (kernel,) = (line for line in lines if "edges, kernel |" in line)
    assert kernel == "| batch 1, 6,000 edges, kernel | ≤ 10 µs | 4 µs | met | ≤ 10 µs | 20 µs | **missed** |"
    assert lines[-1].endswith("|  |  |  |")


def test_an_unknown_commit_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="no-such-commit"):
        of_commit("no-such-commit", tmp_path / "files")
    assert not any(tmp_path.iterdir())


def test_a_model_that_computes_nothing_gives_each_parameter_a_gradient():
    like = torch.nn.Linear(3, 5)
    model = EmptyModel(like, 4)
    out = model(torch.zeros(7, 3))
    assert out.shape == (7, 4)
    out.sum().backward()
    assert [p.grad.shape for p in model.parameters()] == [p.shape for p in like.parameters()]


def test_the_liquid_neurons_beside_ours_have_the_same_synapses():
    pytest.importorskip("ncps", reason="ncps, of the extra bench, is not installed")
    graph = recurrent.topology(6, 3)
    peer = recurrent.ltc(graph)
    wiring = peer.cells._wiring
    found = {(int(j), recurrent.N_INPUTS + int(i)) for j, i in np.argwhere(wiring.sensory_adjacency_matrix)}
    found |= {
        (recurrent.N_INPUTS + int(j), recurrent.N_INPUTS + int(i)) for j, i in np.argwhere(wiring.adjacency_matrix)
    }
    n = recurrent.N_INPUTS + 6
    assert found == {(int(j), int(i)) for j, i in graph.edges() if i < n}
    peer(torch.rand(2, 3, recurrent.N_INPUTS)).sum().backward()
    assert not peer.cells.rnn_cell._params["w"].grad[wiring.adjacency_matrix == 0].any()


def test_who_lacks_ncps_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ncps.torch", None)
    with pytest.raises(SystemExit, match="pip install ncps, or the extra bench"):
        recurrent.ltc(recurrent.topology(6, 3))
