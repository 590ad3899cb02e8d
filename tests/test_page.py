"""The page of a run, in a real browser: no error, no request, and everything reachable by hand, by key and by ear."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from runs import train
from typer.testing import CliRunner

from sparse_dnm.cli.app import app
from sparse_dnm.data import load
from sparse_dnm.report import page
from sparse_dnm.report.history import History

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIGNS = ("negative", "positive")
N = 150  # neurons: software draws what a graphics card does elsewhere
playwright = pytest.importorskip("playwright.sync_api", reason="playwright (extra test) is not installed")
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH: the page is not opened")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("page") / "run", manifold={"n_neurons": N})


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    """The page, in a folder of its own."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    drawn = []
    page.write(History.read(run, 7), path, lambda: drawn.append(1))
    assert len(drawn) == 7
    return path


@pytest.fixture(scope="module")
def launch():
    with playwright.sync_playwright() as player:
        yield lambda *options: player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *options])


@pytest.fixture(scope="module")
def chromium(launch):
    browser = launch()
    yield browser
    browser.close()


@contextlib.contextmanager
def opened(browser, path, **options):
    """The page, ready; at the end it must not have said or fetched anything."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, **options)
    view, said, fetched = context.new_page(), [], []
    view.on("console", lambda message: said.append((message.type, message.text)))
    view.on("pageerror", lambda error: said.append(("error", str(error))))
    view.on("request", lambda request: fetched.append(request.url))
    view.goto(path.as_uri())
    view.wait_for_selector("html[data-ready]", timeout=120_000)
    yield view
    context.close()
    assert [text for kind, text in said if kind == "error" or "WebGL" not in text] == []  # of its driver's speed
    assert [url for url in fetched if not url.startswith(("blob:", "data:"))] == [path.as_uri()]


def at(view, step):
    """Wait until a snapshot is drawn."""
    view.wait_for_function(f"document.querySelector('#now').textContent.startsWith('step {step}:')", timeout=60_000)
    k = view.get_attribute("#moment", "value") or view.input_value("#moment")
    view.wait_for_function(f"document.documentElement.dataset.shown === '{view.input_value('#moment') or k}'")


def cells(view):
    """What the matrix shows; NaN becomes None."""
    rows = "document.querySelector('#strengths').data[0].z"
    return view.evaluate(f"Array.from({rows}, (row) => Array.from(row, (v) => v === v ? v : null))")


def picture(view, name):
    return view.locator(f"#{name}").screenshot()


@in_browser
def test_the_slider_moves_the_pictures_by_key(chromium, report, run):
    lines = {line["step"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    with opened(chromium, report) as view:
        assert f"{lines[120]['edges']:,} edges" in view.inner_text("#now")
        before = {name: picture(view, name) for name in ("strengths", "network")}
        ends = cells(view)
        view.focus("#moment")
        view.keyboard.press("Home")
        at(view, 0)
        assert f"step 0: {lines[0]['edges']:,} edges" in view.inner_text("#now")
        assert view.get_attribute("#moment", "aria-valuetext") == view.inner_text("#now")
        first = {name: picture(view, name) for name in before}
        assert all(first[name] != before[name] for name in before)
        view.keyboard.press("ArrowRight")
        at(view, 20)
        assert all(picture(view, name) != first[name] for name in before)
        view.keyboard.press("End")
        at(view, 120)
        assert cells(view) == ends


@in_browser
def test_what_is_drawn_is_the_network(chromium, report, run):
    history = History.read(run, 7)
    structure = history.last()
    with opened(chromium, report) as view:
        found = np.array(cells(view), float)
        traces = view.evaluate(
            "document.getElementById('network').data.map((t) => [t.mode, Array.from(t.x), Array.from(t.y), t.name])"
        )
    matrix = structure.topology.to_scipy(structure.strengths).toarray()[64:, : N - 10]
    assert np.array_equal(np.isfinite(found), matrix != 0)
    assert np.abs(np.nan_to_num(found) - matrix).max() <= np.abs(matrix).max() / 32767  # beyond the colours, too
    edges = {sign: sum(len(x) // 3 for mode, x, _, name in traces if (mode, name) == ("lines", sign)) for sign in SIGNS}
    assert edges == {"negative": (structure.strengths < 0).sum(), "positive": (structure.strengths > 0).sum()}
    neurons = {name: len(x) for mode, x, _, name in traces if mode == "markers"}
    live = structure.topology.live
    assert neurons == {
        "idle": (~live).sum(), "input": live[:64].sum(), "hidden neuron": live[64 : N - 10].sum(), "output": 10,
    }  # fmt: skip
    levels = sorted(level for mode, x, _, _ in traces if mode == "markers" for level in x)
    assert levels == sorted(structure.topology.levels)


@in_browser
def test_play_runs_to_the_end_and_pause_stops(chromium, report):
    with opened(chromium, report) as view:
        view.focus("#play")
        view.keyboard.press("Enter")
        assert view.inner_text("#play") == "Pause"
        view.wait_for_function("document.documentElement.dataset.shown === '2'", timeout=60_000)
        view.keyboard.press("Enter")
        assert view.inner_text("#play") == "Play"
        view.wait_for_timeout(1500)
        stopped = view.input_value("#moment")
        view.wait_for_timeout(500)
        assert view.input_value("#moment") == stopped
        view.focus("#moment")
        view.keyboard.press("Home")
        at(view, 0)
        view.evaluate(
            """() => {
              const start = window.setTimeout;
              let waiting = 0;
              window.most = 0;  // runs that wait for their next picture at a time, once under way
              window.setTimeout = (done, ms, ...given) => {
                if (ms !== 100) return start(done, ms, ...given);
                waiting++;
                if (Number(document.getElementById("moment").value) > 2) most = Math.max(most, waiting);
                return start(() => { waiting--; done(); }, ms);
              };
              for (let k = 0; k < 5; k++) document.getElementById("play").click();
            }"""
        )  # of several runs at once each would move the slider
        view.wait_for_function("document.documentElement.dataset.shown === '6'", timeout=60_000)
        assert view.evaluate("most") == 1
        view.wait_for_function("document.getElementById('play').textContent === 'Play'")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(chromium, report, scheme):
    other = {"light": "dark", "dark": "light"}[scheme]
    with opened(chromium, report, color_scheme=scheme) as view:
        ink = {"light": "rgb(27, 27, 27)", "dark": "rgb(236, 236, 236)"}
        body = "getComputedStyle(document.body).color"
        text = "getComputedStyle(document.querySelector('#curve-0 .xtitle')).fill"
        assert [view.evaluate(body), view.evaluate(text)] == [ink[scheme]] * 2
        view.emulate_media(color_scheme=other)
        view.wait_for_function(f"{text} === '{ink[other]}'")
        for _ in range(1 if scheme == "dark" else 2):  # the system's, light, dark
            view.click("#theme")
        name = {"light": "dark", "dark": "light"}[scheme]
        assert view.inner_text("#theme") == f"Colours: {name}"
        view.emulate_media(color_scheme=scheme)
        view.wait_for_timeout(500)
        assert view.evaluate(body) == ink[name]


@in_browser
def test_zoom_and_back(chromium, report):
    with opened(chromium, report) as view:
        ranges = "document.getElementById('network').layout.xaxis.range.map((v) => Math.round(100 * v))"
        whole = view.evaluate(ranges)
        box = view.locator("#network .nsewdrag").first.bounding_box()
        view.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
        view.mouse.down()
        view.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"], steps=4)
        view.mouse.up()
        view.wait_for_function(f"{ranges}[0] > {whole[0]} && {ranges}[1] < {whole[1]}")
        near = view.evaluate(ranges)
        view.focus("#moment")
        view.keyboard.press("Home")  # another depth
        at(view, 0)
        assert view.evaluate(ranges) == near
        view.keyboard.press("End")
        at(view, 120)
        view.click("button[data-plot=network]")
        view.wait_for_function(f"{ranges}[1] > {near[1]}")
        assert view.evaluate(ranges) == whole


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(chromium, report, scheme):
    """axe-core: names, roles, contrast, headings, focus."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe (extra test) is not installed")
    with opened(chromium, report, color_scheme=scheme) as view:
        view.click("summary")
        found = axe.Axe().run(view).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == []


@in_browser
def test_every_control_is_reached_by_tab(chromium, report):
    with opened(chromium, report) as view:
        reached = []
        for _ in range(12):
            view.keyboard.press("Tab")
            reached.append(
                view.evaluate(
                    "document.activeElement.id || document.activeElement.textContent.trim().split(/\\s+/).join(' ')"
                )
            )
    for name in ("Skip to the figures", "theme", "play", "moment", "Whole matrix", "Whole network"):
        assert name in reached


@in_browser
def test_a_regression_without_images(chromium, tmp_path):
    path = tmp_path / "report.html"
    page.write(History.read(train(tmp_path / "run", "toy"), 3), path)
    with opened(chromium, path) as view:
        assert "Receptive fields" not in view.inner_text("main")
        assert view.inner_text("figure:has(#curve-1) h3") == "mean squared error"
        assert "3 of 7 snapshots shown" in view.inner_text("header")


def test_a_network_that_remembers_is_shown_along_a_sequence(chromium, tmp_path):
    manifold = {"n_neurons": 8 + 12 + 10 + 4, "neuron": "lstm", "n_memory": 2}
    history, path = History.read(train(tmp_path / "run", "rows-digits", manifold=manifold), 2), tmp_path / "report.html"
    page.write(history, path)
    with opened(chromium, path) as view:
        titles = view.locator("section[aria-labelledby=h-along] h3").all_inner_texts()
        assert titles == ["inputs", "states of neurons", "memory", "outputs"]
        shown = [view.evaluate(f"document.querySelector('#along-{k}').data[0].z") for k in range(4)]
    x, model = load("rows-digits").x_test[0], history.trained()[0]
    names = dict(history.along[1][1]._asdict())["names"]
    with torch.no_grad():
        for step in range(1, 9):  # the state after each part of the sequence, of the kernels for whole sequences
            outputs, state = model(x[None, :step], return_state=True, last=True)
            columns = [[row[step - 1] for row in rows] for rows in shown]
            states = [state.h[0, int(name.split()[1]) - 10].item() for name in names]  # 8 inputs and the memory's
            for found, expected in zip(columns, (x[step - 1], states, state.memory[0], outputs[0]), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_zeros_left_out_of_a_logarithmic_axis_are_reported(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line["objective"] = 0.0
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page.page(History.read(copy, 2))
    assert "to 0 at step 120" in text
    assert "Zeros, which have no place on a logarithmic axis, are left out." in text


def test_the_header_says_what_the_summary_says(tmp_path):
    run = train(tmp_path / "run", "toy", speed="time", steps=40)
    seconds = json.loads((run / "summary.json").read_text())["measured_seconds"]
    found = re.search(r"<dt>time \(.*?\)</dt><dd>(.*?) µs</dd>", page.page(History.read(run, 2)))
    assert float(found[1].replace(",", "")) == pytest.approx(1e6 * seconds, rel=1e-3)


@in_browser
def test_one_snapshot_leaves_nothing_to_play(chromium, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "snapshots")
    (copy / "metrics.jsonl").write_text("")
    page.write(History.read(copy, 9), tmp_path / "report.html")
    with opened(chromium, tmp_path / "report.html") as view:
        assert view.is_disabled("#play")
        assert view.is_disabled("#moment")
        assert "no snapshots" in view.inner_text("header")


@in_browser
def test_names_are_text_not_markup(chromium, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "<b>run&amp;")
    config = json.loads((copy / "config.json").read_text())
    evil = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    config["data"]["name"] = evil
    config["data"]["classes"][3] = evil
    (copy / "config.json").write_text(json.dumps(config))
    page.write(History.read(copy, 2), tmp_path / "report.html")
    with opened(chromium, tmp_path / "report.html") as view:
        assert view.title() != "owned"
        assert view.locator("img[src=x]").count() == 0
        assert "<b>run&amp;" in view.inner_text("h1")


@in_browser
def test_without_webgl(launch, report):
    browser = launch("--disable-gpu", "--disable-3d-apis")
    with opened(browser, report) as view:
        assert view.evaluate("document.getElementById('network').data[0].type") == "scatter"
        assert view.locator("#network path.js-line").count() > 0
    browser.close()


def test_the_same_run_gives_the_same_page(run, report):
    assert page.page(History.read(run, 7)) == report.read_text()


def test_the_page_names_no_other_place(report):
    """Whatever the browser: no element that would fetch."""
    body = report.read_text().partition("<body>")[2]
    markup = re.sub(r"<script.*?</script>", "", body, flags=re.S)
    assert not re.search(r"(src|href)=\"(?!#)", markup)
    assert "default-src 'none'" in report.read_text()


def test_a_large_network_leaves_fewer_snapshots(run, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 150_000)
    monkeypatch.setattr(page, "MOST_EDGES", 1_000)
    text = page.page(History.read(run, 7))
    assert "the page holds only 4 snapshots of so large a network" in text
    assert "At most the 1,000 strongest" in " ".join(text.split())


def test_report_and_animate_as_commands(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    command = [sys.executable, "-m", "sparse_dnm.cli", "report", str(copy), "--frames", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"written: {copy / 'report.html'}" in done.stdout
    assert {"report.html", "figures"} <= set(os.listdir(copy))
    assert (copy / "figures" / "overview.svg").exists()
    result = invoke("animate", copy, "--out", tmp_path / "films", "--frames", 2)
    assert result.exit_code == 0
    assert (tmp_path / "films" / "animation.gif").stat().st_size > 10_000
    (copy / "snapshots" / "step-000000060.npz").write_bytes(b"PK torn")
    for arguments, what in (
        (("report", tmp_path / "none"), "is no directory; name that of a training"),
        (("report", tmp_path / "films"), "config.json does not exist"),
        (("report", copy, "--frames", 1), "frames=1 must be >= 2"),
        (("animate", copy, "--fps", 0), "fps=0 must be in 1 .. 50"),
        (("report", copy, "--out", copy / "report.html"), "a file has this name"),
        (("report", copy), "step-000000060.npz is damaged"),
        (("animate", copy), "step-000000060.npz is damaged"),
    ):
        result = invoke(*arguments)
        assert (result.exit_code, what in result.stderr) == (2, True), result.stderr


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@in_browser
def test_measured_time_has_a_band_between_its_quartiles(chromium, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"measured_seconds": 2e-5, "measured_low": 1e-5, "measured_high": 4e-5}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = History.read(copy, 2)
    (index,) = (k for k, panel in enumerate(history.panels) if panel.band)
    page.write(history, tmp_path / "report.html")
    with opened(chromium, tmp_path / "report.html") as view:
        traces = view.evaluate(f"document.getElementById('curve-{index}').data.map((t) => [t.y[0], t.fill || ''])")
        assert traces == [[10, ""], [40, "tonexty"], [20, ""]]
        assert view.locator(f"#curve-{index} .js-fill").count() >= 1
