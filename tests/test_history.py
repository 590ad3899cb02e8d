"""What a run directory tells, whole or not."""

import json
import shutil

import pytest
from runs import train

from sparse_dnm.io import CheckpointError
from sparse_dnm.report import figures, page
from sparse_dnm.report.history import History, settings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("history") / "run")


@pytest.fixture
def run(whole, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(whole, tmp_path / "run")


def test_a_whole_run(whole):
    history = History.read(whole, 100)
    assert history.notes == []
    assert history.steps == [0, 20, 40, 60, 80, 100, 120]
    assert [s.step for s in history.structures()] == history.steps
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert set(history.metrics) == set().union(*lines)
    for name, column in history.metrics.items():
        assert column == [line.get(name) for line in lines]
    assert history.column("test_accuracy") == ([0, 120], [lines[0]["test_accuracy"], lines[-1]["test_accuracy"]])
    for structure, line in zip(history.structures(), lines, strict=True):
        if line["step"] in (0, 120):  # elsewhere a line tells of another forward if a test came between
            assert structure.topology.n_edges == line["edges"]
            assert structure.topology.depth == line["depth"]
    assert history.last().topology.n_edges == json.loads((whole / "summary.json").read_text())["edges"]
    assert history.title == "digits: run"
    assert history.about["torch"]
    assert "cores" in history.about["machine"]
    assert history.time_name == "step_seconds"


def test_panels_are_those_with_figures(whole):
    history = History.read(whole, 5)
    curves = {panel.title: history.curves(panel) for panel in history.panels}
    assert next(iter(curves)) == "loss and its terms, before coefficients"
    assert set(curves["accuracy"]) == {"train accuracy", "test accuracy"}
    assert set(curves["depth and live neurons"]) == {"depth", "live"}
    steps, seconds = curves["time: a whole update, wall (perf_counter), medians"]["time"]
    assert steps == [20, 40, 60, 80, 100, 120]
    assert seconds[0] == pytest.approx(1e6 * history.metrics["step_seconds"][1])
    assert all(all(v > 0 for v in values) for _, values in curves["edges"].values())


def test_measured_time_is_shown_where_it_was_measured(tmp_path):
    history = History.read(train(tmp_path / "run", speed="time", steps=40, time_every=2), 9)
    assert history.time_name == "measured_seconds"
    assert history.describe_time() == "kernels' forward + backward, batch 50, process_time"
    assert len(history.time_against_density[0]) >= 2


def measured(run, quartiles=True):
    """``run`` as if its loss had a clock: 10, 20, .. µs, with quartiles 10 % below and 20 % above."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for k, line in enumerate(lines, 1):
        line |= {"measured_seconds": 1e-5 * k}
        if quartiles and k > 1:
            line |= {"measured_low": 0.9e-5 * k, "measured_high": 1.2e-5 * k}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return History.read(run, 3)


def test_measured_time_has_a_band_between_its_quartiles(run):
    history = measured(run)
    (panel,) = (panel for panel in history.panels if panel.names == ("measured_seconds",))
    assert panel.title.endswith("process_time, median and quartiles")
    steps, low, high = history.band(panel)
    assert steps == [20, 40, 60, 80, 100, 120]
    assert low == pytest.approx([18, 27, 36, 45, 54, 63])
    assert high == pytest.approx([24, 36, 48, 60, 72, 84])
    assert history.curves(panel)["time"][1] == pytest.approx([10, 20, 30, 40, 50, 60, 70])
    (axis,) = (axis for axis in figures.curves(history).axes if "quartiles" in axis.get_title())
    (band,) = axis.collections
    assert band.get_datalim(axis.transData).y0 == pytest.approx(18)
    assert band.get_datalim(axis.transData).y1 == pytest.approx(84)
    data = page.page(history).partition('<script id="data" type="application/json">')[2].partition("</script>")[0]
    (shown,) = (p["band"] for p in json.loads(data)["panels"] if "band" in p)
    assert (shown["x"], shown["high"]) == (steps, high)
    assert "between the quartiles of the latest timed steps, at the end 63 to 84 µs" in page.page(history)


def test_measured_time_of_an_older_version_is_shown_without_a_band(run):
    history = measured(run, quartiles=False)
    (panel,) = (panel for panel in history.panels if panel.names == ("measured_seconds",))
    assert history.band(panel) is None
    assert "quartiles" not in panel.title
    assert "quartiles" not in page.page(history).partition('id="h-settings"')[0]
    assert not [axis for axis in figures.curves(history).axes if axis.collections]


def test_the_cut_to_a_budget_is_said_where_the_summary_has_it(run):
    summary = json.loads((run / "summary.json").read_text())
    assert History.read(run, 3).cut is None
    summary |= {"validation_before": 0.9751, "validation_after": 0.97}
    (run / "summary.json").write_text(json.dumps(summary))
    history = History.read(run, 3)
    assert history.cut == "accuracy 97.51% → 97.00%"
    assert "<dt>validation before and after the cut to the budget</dt><dd>accuracy 97.51% → 97.00%</dd>" in page.page(
        history
    )


def test_few_snapshots(whole):
    history = History.read(whole, 3)
    assert history.steps == [0, 60, 120]
    assert history.notes == ["3 of 7 snapshots shown, evenly spread"]
    with pytest.raises(ValueError, match="frames=1 must be >= 2"):
        History.read(whole, 1)


def test_an_unfinished_run(run):
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:4]) + b"\xff torn")
    history = History.read(run, 9)
    assert history.notes == [
        "1 damaged line of metrics.jsonl left out",
        "the training is not finished: step 60 of 120",
    ]
    assert "cores" in history.about["machine"]  # of the config


def test_figures_that_are_none_are_left_out(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"loss": ', '"loss": NaN, "was": ').replace('"depth": ', '"depth": "deep", "was": ')
    lines[3] = "[1]"
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    history = History.read(run, 9)
    assert history.notes == ["1 damaged line of metrics.jsonl left out"]
    assert history.column("loss")[0] == [0, 20, 80, 100, 120] == history.column("depth")[0]
    data = page.page(history).partition('<script id="data" type="application/json">')[2].partition("</script>")[0]
    json.loads(data, parse_constant=pytest.fail)  # browsers know no NaN


def test_a_run_without_snapshots_shows_the_checkpoint(run):
    shutil.rmtree(run / "snapshots")
    history = History.read(run, 9)
    (structure,) = history.structures()
    assert structure.step == 120 == history.last().step
    assert history.notes == ["no snapshots: the structure is that of the checkpoint"]


def test_a_run_of_an_older_version(run):
    (run / "summary.json").unlink()
    config = json.loads((run / "config.json").read_text())
    for name in ("versions", "machine"):
        del config[name]
    del config["train"]["snapshot_every"]
    (run / "config.json").write_text(json.dumps(config))
    assert History.read(run, 9).about == {}


def test_settings_are_all_there(whole):
    history = History.read(whole, 9)
    tables = settings(history)
    assert tables["Network"]["sigma"] == "300, 0"
    assert tables["Training"]["steps"] == "120"
    assert tables["Data"]["n_train"] == "1437"
    assert "sha256" not in tables["Data"]


def change(run, **data):
    config = json.loads((run / "config.json").read_text())
    config["data"].update(data)
    (run / "config.json").write_text(json.dumps(config))


def test_what_else_is_odd_is_left_out(run):
    config = json.loads((run / "config.json").read_text())
    config.update(machine="fast", versions=[1])
    (run / "config.json").write_text(json.dumps(config))
    (run / "summary.json").write_text('{"test_accuracy": null, "train_seconds": "long"}')
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines += ['{"step": true}', '{"step": -5}', '{"step": 130, "loss": 1%s}' % (400 * "0")]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    history = History.read(run, 9)
    assert history.notes == ["2 damaged lines of metrics.jsonl left out"]
    assert history.metrics["loss"][-1] is None
    assert history.about == {}
    assert "test accuracy" in page.page(history)


def test_other_names_are_no_snapshots(run):
    shutil.copy(run / "snapshots" / "step-000000020.npz", run / "snapshots" / "step-0000000007.npz")
    (run / "snapshots" / "step-000000007.npz").mkdir()
    assert History.read(run, 9).steps == [0, 20, 40, 60, 80, 100, 120]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda run: shutil.rmtree(run), "is no directory"),
        (lambda run: (run / "config.json").unlink(), "config.json does not exist; is .* the directory of a run"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl does not exist"),
        (lambda run: (run / "config.json").write_text("{}"), "does not describe a run"),
        (lambda run: (run / "summary.json").write_text("["), "cannot be read as JSON"),
        (lambda run: change(run, name=None), "name=None does not describe the run's data"),
        (lambda run: change(run, task=5), "task=5"),
        (lambda run: change(run, classes=["a"]), "classes="),
    ],
)
def test_what_is_missing_is_named(run, spoil, what):
    spoil(run)
    with pytest.raises(CheckpointError, match=what):
        History.read(run, 9)


def test_a_checkpoint_of_another_network_is_refused(run, tmp_path):
    shutil.copy(train(tmp_path / "other", "toy") / "checkpoint.safetensors", run)
    with pytest.raises(CheckpointError, match="does not fit its run"):
        History.read(run, 9).trained()
