"""Figures and animations: files that other programs read, the same bytes every time, no parts left behind."""

import itertools
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import train

from sparse_dnm.io import CheckpointError
from sparse_dnm.report import animation, figures, style
from sparse_dnm.report.history import History
from sparse_dnm.report.views import heights, saturation
from sparse_dnm.timing.clock import Timing
from sparse_dnm.train.example import SEQUENCE

pytestmark = pytest.mark.slow

NAMES = ["curves", "density", "strengths", "network", "overview"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return History.read(train(tmp_path_factory.mktemp("figures") / "digits", manifold={"n_neurons": 150}), 4)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return History.read(train(tmp_path_factory.mktemp("figures") / "toy", "toy"), 4)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    return History.read(
        train(tmp_path_factory.mktemp("figures") / "rows", "rows-digits", manifold={"n_neurons": 40}), 2
    )


@pytest.mark.parametrize(
    ("run", "names"), [("digits", [*NAMES, "fields"]), ("toy", NAMES), ("sequences", [*NAMES, "along"])]
)
def test_every_figure_as_png_and_svg(run, names, request, tmp_path):
    seen = []
    history = request.getfixturevalue(run)
    written = figures.write(history, tmp_path / "out", seen.append)
    assert seen == names
    assert written == [tmp_path / "out" / f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in written}
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.size[0] > 800
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    figures.write(history, tmp_path / "again")
    for path in written:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_damaged_sequence_is_named_and_one_that_is_missing_is_left_out(sequences, tmp_path):
    copy = shutil.copytree(sequences.path, tmp_path / "run")
    (copy / SEQUENCE).write_bytes(b"no sequence")
    with pytest.raises(CheckpointError, match=SEQUENCE):
        _ = History.read(copy, 2).along
    (copy / SEQUENCE).unlink()
    assert History.read(copy, 2).along is None


def test_a_figure_of_few_edges_is_vectors(toy, tmp_path):
    (path,) = [p for p in figures.write(toy, tmp_path) if p.name == "network.svg"]
    text = path.read_text()
    assert "<image" not in text
    assert len(re.findall(r"\bL ", text)) > toy.last().topology.n_edges


def test_edges_go_to_deeper_levels_coloured_by_sign_and_stronger_by_strength(toy):
    structure, limit = toy.last(), saturation(toy.last())
    axis = figures.network_figure(toy, structure, limit).axes[0]
    levels, height = structure.topology.levels, heights(toy.manifold)
    expected = {}
    for (j, i), strength in zip(structure.topology.edges().tolist(), structure.strengths, strict=True):
        expected[levels[j], height[j], levels[i], height[i]] = strength
    found = {}
    for line in axis.lines:
        x, y = (np.asarray(values, np.float32).reshape(-1, 3) for values in line.get_data())
        assert np.isnan(x[:, 2]).all()
        assert (x[:, 0] < x[:, 1]).all()
        for row in np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1):
            found[tuple(row)] = line
    assert found.keys() == expected.keys()
    for place, line in found.items():
        assert line.get_color() == (figures.NEGATIVE if expected[place] < 0 else figures.POSITIVE)
    order = sorted(found, key=lambda place: abs(expected[place]))
    widths = [found[place].get_linewidth() for place in order]
    assert widths == sorted(widths)
    assert len(set(widths)) > 1


def test_gif(digits, tmp_path):
    drawn = []
    animation.write(digits, tmp_path / "a.gif", 5, lambda: drawn.append(1))
    assert len(drawn) == len(digits.steps) == 4
    with Image.open(tmp_path / "a.gif") as picture:
        frames, durations = [], []
        for k in range(picture.n_frames):
            picture.seek(k)
            frames.append(np.asarray(picture.convert("RGB")))
            durations.append(picture.info["duration"])
    assert sum(durations) == pytest.approx(1000 * (4 + round(animation.LINGER * 5)) / 5, rel=0.02)
    assert all((a != b).any() for a, b in itertools.pairwise(frames[:4]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed: no MP4 can be written")
def test_mp4(digits, tmp_path):
    path = tmp_path / "a.mp4"
    animation.write(digits, path, 10)
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    (stream,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"]
    assert stream["codec_name"] == "h264"
    assert stream["pix_fmt"] == "yuv420p"  # what browsers and phones play
    assert int(stream["nb_read_frames"]) == 4 + round(animation.LINGER * 10)


@pytest.mark.parametrize("suffix", animation.formats())
def test_stopped_in_the_middle_nothing_stays(digits, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"the old one")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animation.write(digits, path, 10, stop)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "fps", "what"), [("a.gif", 0, "fps=0"), ("a.gif", 51, "1 .. 50"), ("a.avi", 5, "must end in .gif or .mp4")]
)
def test_bad_requests(digits, tmp_path, name, fps, what):
    with pytest.raises(ValueError, match=what):
        animation.write(digits, tmp_path / name, fps)


def test_without_ffmpeg_a_gif_is_the_way_out(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert animation.formats() == (".gif",)
    with pytest.raises(ValueError, match="ffmpeg, which is not on the PATH"):
        animation.write(digits, tmp_path / "a.mp4", 5)


def test_dollars_are_no_formulas(toy, tmp_path):
    copy = shutil.copytree(toy.path, tmp_path / r"cost $x\frac$ y")
    history = History.read(copy, 2)
    figures.write(history, tmp_path / "out")
    assert r"cost $x\frac$ y" in (tmp_path / "out" / "curves.svg").read_text()
    animation.write(history, tmp_path / "a.gif", 5)


def test_a_damaged_first_snapshot_is_named(toy, tmp_path):
    copy = shutil.copytree(toy.path, tmp_path / "run")
    (copy / "snapshots" / "step-000000000.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-000000000"):
        animation.write(History.read(copy, 2), tmp_path / "a.gif", 5)
    assert not (tmp_path / "a.gif").exists()


def test_a_run_without_a_line_of_metrics(toy, tmp_path):
    copy = shutil.copytree(toy.path, tmp_path / "run")
    (copy / "metrics.jsonl").write_text("")
    history = History.read(copy, 2)
    assert all(path.stat().st_size > 1_000 for path in figures.write(history, tmp_path / "out"))
    animation.write(history, tmp_path / "a.gif", 5)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames >= 2


def test_ticks_enclose_the_data(digits):
    for axis in figures.curves(digits).axes:
        if axis.get_yscale() == "log" and "loss" not in axis.get_title():
            values = np.concatenate([line.get_ydata() for line in axis.lines])
            assert axis.get_yticks()[0] <= values.min() <= values.max() <= axis.get_yticks()[-1], axis.get_title()


def test_colours_of_the_palette_are_written_in_one_place():
    folder = Path(style.__file__).parent
    files = [p for p in folder.rglob("*") if p.suffix in (".py", ".css", ".js", ".html") and p.name != "style.py"]
    assert len(files) > 8
    for path in files:
        text = path.read_text(encoding="utf-8").upper()
        assert not [colour for colour in style.PALETTE.values() if colour in text], path


def test_the_page_has_every_colour_that_its_script_and_style_sheet_name():
    folder = Path(style.__file__).parent / "assets"
    css, js = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    defined = set(re.findall(r"--([\w-]+):", style.css_variables() + css))
    used = set(re.findall(r"var\(--([\w-]+)\)", css)) | set(re.findall(r'colour\("([\w-]+)"\)', js))
    assert {"green", "purple", "sky-blue", "blue", "vermilion"} <= used <= defined


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    def written(folder):
        chart = style.sheet(3, 2, "caption")
        style.draw_timings(chart.subplots(), [1.0, 2.0], [Timing.of([1e-6, 2e-6, 4e-6])] * 2, label="a")
        folder.mkdir()
        return [path.read_bytes() for path in style.save_all({"chart": chart}, folder)]

    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_bars_of_a_timing_reach_from_quartile_to_quartile():
    axis = style.sheet(3, 2, "").subplots()
    style.draw_timings(axis, [1.0], [Timing(3e-6, 2e-6, 5e-6, 9, "perf_counter")])
    (bar,) = axis.collections[0].get_segments()
    np.testing.assert_allclose(bar, [[1, 2], [1, 5]])
