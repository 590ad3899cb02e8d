"""TensorBoard's files, read by TensorBoard's own reader."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from runs import train
from typer.testing import CliRunner

from sparse_dnm import data
from sparse_dnm.cli.app import app
from sparse_dnm.config import ManifoldConfig
from sparse_dnm.report.history import History
from sparse_dnm.report.tensorboard import FOLDER, TensorBoardLog
from sparse_dnm.train.trainer import Trainer

accumulators = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard (extra tensorboard) is not installed"
)


def read(out):
    found = accumulators.EventAccumulator(str(out / FOLDER), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    return found.Reload()


def test_everything_is_there(tmp_path):
    out = tmp_path / "run"
    with TensorBoardLog(out, ManifoldConfig.preset("digits")) as log:
        train(out, "digits", log.on_log, log.on_snapshot)
    found, history = read(out), History.read(out, 100)
    tags = found.Tags()
    for name in ("merit/test_accuracy", "loss/objective", "structure/edges", "time/step_seconds", "training/lr"):
        column = history.column(name.partition("/")[2])
        events = found.Scalars(name)
        assert [e.step for e in events] == column[0], name
        np.testing.assert_allclose([e.value for e in events], column[1], rtol=1e-6)
    assert len(tags["scalars"]) == len(history.metrics) - 1
    images, histograms = found.Images("strengths"), found.Histograms("strengths")
    assert [e.step for e in images] == [e.step for e in histograms] == history.steps
    structure = history.last()
    counts = histograms[-1].histogram_value
    assert counts.num == structure.topology.n_edges
    assert counts.min == pytest.approx(structure.strengths.min(), rel=1e-3)
    with Image.open(io.BytesIO(images[-1].encoded_image_string)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (history.manifold.n_rows, history.manifold.n_sources, 3)
    readers = np.repeat(np.arange(300), np.diff(structure.topology.indptr)) - 64
    large = np.abs(structure.strengths) > 0.1
    shown = pixels[readers[large], structure.topology.indices[large]]
    assert ((shown[:, 0] > shown[:, 2]) == (structure.strengths[large] > 0)).all()  # orange or blue
    assert (pixels == 255).all(axis=2).sum() >= pixels[..., 0].size - structure.topology.n_edges


def test_measured_time_has_a_chart_with_its_quartiles(tmp_path):
    line = {"step": 1, "measured_seconds": 2e-5, "measured_low": 1e-5, "measured_high": 3e-5, "measured_raw": 4e-5}
    with TensorBoardLog(tmp_path, ManifoldConfig.preset("digits")) as log:
        log.on_log({"step": 0, "loss": 1.0})
        log.on_log(line)
        log.on_log({**line, "step": 2})
    tags = read(tmp_path).Tags()
    assert set(tags["scalars"]) == {"loss/loss", *(f"time/{name}" for name in line if name != "step")}
    assert tags["tensors"] == ["custom_scalars__config__"]


def test_a_resumed_run_replaces_what_was_lost(tmp_path):
    out, config = tmp_path / "run", ManifoldConfig.preset("toy")

    class Torn(Exception):
        pass

    def tear(record):
        log.on_log(record)
        if record["step"] == 80:
            raise Torn

    with pytest.raises(Torn), TensorBoardLog(out, config) as log:
        train(out, "toy", tear, log.on_snapshot, checkpoint_every=50)
    trainer = Trainer.resume(out, data.load("toy"))
    assert trainer.step == 50
    with TensorBoardLog(out, config, trainer.step) as log:
        trainer.run(log.on_log, log.on_snapshot)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    events = read(out).Scalars("loss/loss")
    assert [e.step for e in events] == [line["step"] for line in lines]
    np.testing.assert_allclose([e.value for e in events], [line["loss"] for line in lines], rtol=1e-6)
    assert [e.step for e in read(out).Images("strengths")] == [0, 20, 40, 60, 80, 100, 120]


def test_from_the_command_line(tmp_path):
    out = tmp_path / "run"
    options = ["--steps", "20", "--speed", "none", "--threads", "1", "--set", "log_every=10", "--out", str(out)]
    result = CliRunner().invoke(app, ["train", "toy", "--tensorboard", "--snapshot-every", "10", *options])
    assert result.exit_code == 0, result.output
    assert [e.step for e in read(out).Scalars("merit/test_mse")] == [0, 20]
    result = CliRunner().invoke(app, ["train", "--resume", str(out), "--steps", "40", "--tensorboard"])
    assert result.exit_code == 0, result.output
    assert [e.step for e in read(out).Scalars("merit/test_mse")] == [0, 20, 40]


def test_without_tensorboard_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", "toy", "--tensorboard", "--out", str(out)])
    assert result.exit_code == 2
    assert "pip install tensorboard" in result.stderr
    assert not out.exists()
