"""Messages name a setting as its reader would write it: a field, an option, a parameter of an estimator."""

import re
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from typer.testing import CliRunner

import sparse_dnm
from sparse_dnm import DynamicManifold, ManifoldConfig, TrainConfig, Trainer, data
from sparse_dnm.cli.app import app
from sparse_dnm.cli.wording import CommandLine
from sparse_dnm.sklearn import ManifoldClassifier, ManifoldRegressor
from sparse_dnm.sklearn.wording import Parameters
from sparse_dnm.train.trainer import Interrupted, StopSignals, TrainingError
from sparse_dnm.wording import Words, speaking, words

X, Y = load_iris(return_X_y=True)
PACKAGE = Path(sparse_dnm.__file__).parent
WORDS = {
    Words: [
        "lr (now 0.01)", "steps (now 600)", "kappa (now 1)", "cutoff (now -1)", "threads=1", "device='cpu'",
        "budget_us=12.6", "capacity=5000", "omega=(0, std)", "target_edges", "drop", "categories='b'",
    ],
    CommandLine: [
        "--lr (now 0.01)", "--steps (now 600)", "--set kappa= (now 1)", "--set cutoff= (now -1)", "--threads 1",
        "--device cpu", "--budget-us 12.6", "--set capacity=5000", "--set omega=0,std", "--edges", "--drop",
        "--categories b",
    ],
    Parameters: [
        "learning_rate_init (now 0.01)", "max_iter (now 600)", 'train_params["kappa"] (now 1)',
        'manifold_params["cutoff"] (now -1)', "n_jobs=1", 'train_params={"device": \'cpu\'}', "budget_us=12.6",
        'manifold_params={"capacity": 5000}', 'manifold_params={"omega": (0, std)}', "edges", "X.drop(columns=...)",
        "X['b'].astype('category')",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", WORDS)
def test_each_front_end_has_its_words(kind):
    say = kind()
    assert [
        say.now("lr", 0.01), say.now("steps", 600), say.now("kappa", 1.0), say.now("cutoff", -1.0),
        say.give("threads", 1), say.give("device", "cpu"), say.give("budget_us", 12.6), say.give("capacity", 5000),
        say.give("omega", (0, "std")), say.name("target_edges"), say.name("drop"), say.give("categories", "b"),
    ] == WORDS[kind]  # fmt: skip


def test_parameters_count_passes_and_dicts_come_first():
    say = Parameters(own={"lr", "validation"}, per_pass=8)
    assert say.now("steps", 400) == "max_iter (now 50)"
    assert say.now("lr", 0.01) == 'train_params["lr"] (now 0.01)'
    assert say.stated("target_edges", 60) == "edges=60"
    assert say.stated("validation", 0.1) == "validation=0.1"
    assert say.name("repeats") == "repeats of sparse-dnm calibrate"


def test_words_are_those_of_a_thread_and_end_with_it():
    found = []
    with speaking(CommandLine()):
        assert isinstance(words(), CommandLine)
        other = threading.Thread(target=lambda: found.append(type(words())))
        other.start()
        other.join()
    assert found == [Words]
    assert type(words()) is Words


def test_no_message_outside_the_command_line_spells_an_option():
    parts = ("train", "model", "loss", "timing", "engine", "sklearn")
    sources = [PACKAGE / name for name in ("config.py", "presets.py", "sizes.py", "noise.py", "data/cells.py")]
    sources += [path for part in parts for path in (PACKAGE / part).rglob("*.py")]
    said = [
        f"{path.name}: {line.strip()}"
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(?<![\w-])--[a-z]", line) and "sparse-dnm " not in line and "python -m" not in line
    ]
    assert said == []


# -- the same mistake in all three ---------------------------------------------------------------------------

MISTAKE = {"lr": 1e30, "steps": 20, "speed": "none", "threads": 1}


def test_a_training_that_diverges_is_told_in_the_words_of_its_front_end(tmp_path):
    made = data.load("toy")
    config = ManifoldConfig.preset("toy")
    model = DynamicManifold(config, torch.Generator().manual_seed(0), executor="columns", threads=1)
    with pytest.raises(TrainingError, match=r"a lower lr \(now 1e\+30\), a larger batch_size \(now 50\).*Nothing was"):
        Trainer(model, made, TrainConfig(**MISTAKE)).run()
    options = [each for name, value in MISTAKE.items() for each in (f"--{name}", str(value))]
    done = CliRunner().invoke(app, ["train", "toy", *options, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "Start a new run, with another --out or the default, and a lower --lr (now 1e+30)" in done.stderr
    assert "a larger --batch-size (now 50)" in done.stderr
    assert type(words()) is Words
    estimator = ManifoldRegressor(max_iter=20, learning_rate_init=1e30, batch_size=50, random_state=0)
    with pytest.raises(TrainingError) as error:
        estimator.fit(X, Y)
    said = str(error.value)
    assert "Fit again, with a lower learning_rate_init (now 1e+30), a larger batch_size" in said
    assert said.endswith("The estimator is as it was before")
    assert "--" not in said


@pytest.mark.parametrize("kind", ["digits", "rows.csv", "sequences.npz"])
def test_single_samples_and_neurons_that_remember_are_told_how_sequences_are_given(tmp_path, kind):
    rng = np.random.default_rng(0)
    pd.DataFrame({"a": rng.normal(size=40), "y": np.arange(40) % 2}).to_csv(tmp_path / "rows.csv", index=False)
    np.savez(tmp_path / "sequences.npz", x=rng.normal(size=(40, 8, 2)), y=np.arange(40) % 2)
    what = kind if kind == "digits" else str(tmp_path / kind)
    done = CliRunner().invoke(app, ["train", what, "--neuron", "gru", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "a recurrent network needs sequences, (n, time >= 1, features)" in done.stderr
    assert "rows of a table become sequences by --sequence or --window" in done.stderr
    assert "sequences in an array are trained on from Python, by Trainer" in done.stderr
    assert not (tmp_path / "run").exists()


def test_settings_at_odds_are_told_by_their_parameters():
    with pytest.raises(ValueError, match=r"^edges=1000000 are more than the"):
        ManifoldClassifier(edges=10**6).fit(X, Y)
    few = np.r_[0, 1, 50, 51]
    with pytest.raises(ValueError, match=r"^validation_fraction=0.5 holds out .* give another validation_fraction$"):
        ManifoldClassifier(early_stopping=True, validation_fraction=0.5).fit(X[few][:3], [0, 1, 2])
    frame = pd.DataFrame({"a": range(30), "b": [*["n.a."], *map(str, range(29))]})
    with pytest.raises(ValueError, match=r"with X\['b'\].astype\('category'\), or none with X.drop\(columns='b'\)$"):
        ManifoldClassifier().fit(frame, np.arange(30) % 2)
    model = ManifoldClassifier(max_iter=1).fit(X, Y)
    with pytest.raises(ValueError, match=r"save needs a directory"):
        model.save(__file__)


# -- a cut to a number of edges ------------------------------------------------------------------------------


def said_by(estimator):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(X, Y)
    return [str(each.message) for each in caught if each.category is ConvergenceWarning]


def test_a_jump_to_a_number_of_edges_is_a_warning_only_where_it_cost_something():
    unhurt = ManifoldClassifier(edges=40, random_state=0)
    assert said_by(unhurt) == []
    (line,) = (line["edges"] for line in unhurt._trained.lines if line["step"] == 780)  # the trim is after step 840
    assert line > 1.5 * 40  # else this tests nothing
    assert unhurt.score(X, Y) > 0.97
    hurt = ManifoldClassifier(edges=60, max_iter=60, random_state=0)
    (said,) = said_by(hurt)
    expected = (
        r"the cut from ([\d,]+) edges to 60 has cost ([\d.]+) points of accuracy on training samples, ([\d.]+) to "
        r"([\d.]+) %: the proxy had not brought the edges near 60 by step 42; give more edges, more max_iter \(now "
        r'60\) or a larger train_params\["proxy_coefficient"\] \(now 0\.1\)'
    )
    edges, cost, before, after = (float(each.replace(",", "")) for each in re.fullmatch(expected, said).groups())
    assert edges > 1.5 * 60
    assert cost == pytest.approx(before - after, abs=0.011)
    assert after == pytest.approx(100 * hurt.score(X, Y), abs=0.01)
    hurt.set_params(train_params={"max_loss": 99.0})
    assert said_by(hurt) == []


def test_a_run_that_was_stopped_after_the_jump_tells_it_at_its_end(tmp_path):
    made = data.load("toy")
    config = TrainConfig(
        steps=30, speed="proxy", target_edges=12, lr=0.01, kappa=1.0, threads=1, log_every=5, fine_tune=0.5,
        max_loss=0.0, executor="columns",
    )  # fmt: skip

    def trainer(out=None):
        model = DynamicManifold(ManifoldConfig.preset("toy"), torch.Generator().manual_seed(0), threads=1)
        return Trainer(model, made, config, out)

    def stop(record):
        if record["step"] == 20:
            assert StopSignals.request(signal.SIGTERM)

    whole, out = trainer(), tmp_path / "run"
    whole.run()
    with pytest.raises(Interrupted, match=r"stopped at step 20; continue with: Trainer\.resume\('.*run', data\)$"):
        trainer(out).run(stop)
    again = Trainer.resume(out, made)
    again.run()
    (said,) = (note for note in again.notes if "has cost" in note)
    assert said in whole.notes
    assert "give more target_edges, more steps (now 30) or a larger proxy_coefficient (now 0.1)" in said


@pytest.mark.parametrize(
    ("changes", "count", "expected"),
    [
        ({"speed": "proxy", "omega_decay": 0.0}, 1, "once: a lower proxy_coefficient (now 0.5)"),
        ({"speed": "proxy", "omega_decay": 0.25}, 2,
         "2 times: a lower proxy_coefficient (now 0.5) or omega_decay (now 0.25)"),
        ({"speed": "none", "omega_decay": 0.25}, 1, "once: a lower omega_decay (now 0.25)"),
        ({"speed": "none", "omega_decay": 0.0}, 3, "3 times: a lower lr (now 0.01)"),
    ],
)  # fmt: skip
def test_a_reconnected_network_is_told_with_the_terms_that_are_in_use(changes, count, expected):
    config = TrainConfig(steps=4, lr=0.01, proxy_coefficient=0.5, **changes)
    iris = data.from_arrays(X, Y)
    manifold = ManifoldConfig.for_data(iris.n_inputs, iris.n_outputs, edges="free")
    run = Trainer(DynamicManifold(manifold, torch.Generator().manual_seed(0)), iris, config)
    run._recovery.count = count
    assert run._recovery.describe() == [
        f"warning: the network had to be connected again {expected} would keep it whole"
    ]
