"""Tables of one's own: separators, kinds of columns, missing cells, splits, and what looks like a mistake."""

import collections
import dataclasses
import gzip
import io
import json
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sparse_dnm.data import DataError, Preprocessing, from_arrays, from_frame, load, read_table
from sparse_dnm.data.source import DataSource, describe


def written(folder, text, name="table.csv"):
    """Path of a file with this text."""
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


def numbered(n, seed=0):
    """A DataFrame of n rows: two numbers, a word, and a label that depends on them."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.normal(size=n).round(3), "b": rng.normal(1000, 300, n).round(1)})
    frame["colour"] = rng.choice(["red", "green", "blue"], n)
    frame["kind"] = np.where(frame.a + rng.normal(size=n) > 0, "up", "down")
    return frame


def column(made, name):
    """The fitted column ``name``."""
    return next(column for column in made.preprocessing.features.columns if column.name == name)


def same(one, other):
    """Two data sets hold the same samples."""
    return all(getattr(one, f).equal(getattr(other, f)) for f in ("x_train", "y_train", "x_test", "y_test"))


def about(made, name):
    """The line of the notes about a column."""
    return next(line for line in made.notes if line.strip().startswith(name + " "))


# Files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("separator", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ","), ("|", ".")]
)
def test_separators_and_decimal_signs_are_recognised(tmp_path, separator, decimal, mark, end):
    frame = numbered(30)
    expected = from_frame(frame)
    text = frame.to_csv(index=False, sep=separator, decimal=decimal, lineterminator=end, quoting=0)
    found = load(written(tmp_path, mark + text, "table.txt"))
    assert same(found, expected)
    assert found.preprocessing.to_json()["target"] == expected.preprocessing.to_json()["target"]


@pytest.mark.parametrize("name", ["table.csv.gz", "table.csv.zip", "table.tsv.gz", "table.csv", "TABLE.TXT.GZ"])
@pytest.mark.parametrize("packing", ["gzip", "zip"])
def test_packed_tables_are_recognised_by_their_first_bytes(tmp_path, name, packing):
    frame = numbered(30)
    text = frame.to_csv(index=False).encode()
    if packing == "gzip":
        (tmp_path / name).write_bytes(gzip.compress(text))
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("inside.csv", text)
            archive.writestr("__MACOSX/inside.csv", b"x")
    assert same(load(tmp_path / name), from_frame(frame))


def test_packed_tables_that_are_cut_or_hold_two_files_are_refused(tmp_path):
    packed = gzip.compress(numbered(500).to_csv(index=False).encode())
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"cut\.csv\.gz cannot be read.*copy it again"):
        load(tmp_path / "cut.csv.gz")
    with zipfile.ZipFile(tmp_path / "two.csv.zip", "w") as archive:
        archive.writestr("a.csv", "a,b\n1,2\n")
        archive.writestr("b.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"two\.csv\.zip holds 2 files \(a\.csv, b\.csv\)"):
        load(tmp_path / "two.csv.zip")


def test_parquet_is_read_as_the_same_table(tmp_path):
    pytest.importorskip("pyarrow")
    frame = numbered(30)
    frame["when"] = pd.to_datetime("2020-01-01") + pd.to_timedelta(np.arange(30) * 7 % 11, "D")
    frame["yes"] = frame.a > 0
    frame = frame[["when", "yes", "a", "b", "colour", "kind"]]
    frame.to_parquet(tmp_path / "table.parquet", index=False)
    frame.to_csv(tmp_path / "table.csv", index=False)
    assert same(load(tmp_path / "table.parquet"), load(tmp_path / "table.csv"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"bad\.parquet is no parquet file"):
        load(tmp_path / "bad.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "fastparquet", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"pyarrow, which is missing.*sparse-dnm\[parquet\]"):
        load(tmp_path / "table.parquet")


def test_quoted_names_and_cells_may_hold_separators_and_lines(tmp_path):
    text = 'size;"name; of\nit";kind\n' + "".join(f'{k % 7}.5;"x;{k % 3}";"k\n{k % 2}"\n' for k in range(30))
    made = load(written(tmp_path, text))
    assert made.preprocessing.feature_names == ("size", "name; of\nit")
    assert made.classes == ("k\n0", "k\n1")
    assert set(column(made, "name; of\nit").levels) == {"x;0", "x;1", "x;2"}


def test_columns_may_be_parted_by_spaces(tmp_path):
    frame = numbered(30)
    lines = ["a b colour kind", *(f" {a:>9}  {b:>9} {c:<8}{k}" for a, b, c, k in frame.to_numpy())]
    assert same(load(written(tmp_path, "\n".join(lines))), from_frame(frame))
    names = written(
        tmp_path, "my first name,age,kind\n" + "".join(f"Jo An {k % 3},{k % 5},{k % 2}\n" for k in range(30))
    )
    assert load(names).preprocessing.feature_names == ("my first name", "age")


def test_lines_may_end_with_separators(tmp_path):
    frame = numbered(30)
    text = frame.to_csv(index=False).replace("\n", ",,\n")
    assert same(load(written(tmp_path, text)), from_frame(frame))


def test_rows_with_names_that_have_no_name_say_so(tmp_path):
    with pytest.raises(DataError, match=r"row 1 \(line 2\) has 4 cells under a header of 3.*as R writes them"):
        load(written(tmp_path, "a,b,kind\n" + "".join(f"r{k},1.5,2,{k % 2}\n" for k in range(9))))


def test_numbers_with_signs_are_hinted_at():
    frame = numbered(60)
    frame.insert(0, "share", [f"{k}.5%" for k in range(60)])
    with pytest.raises(DataError, match="numbers are written without signs such as %"):
        from_frame(frame)


def test_a_table_is_read_as_texts(tmp_path):
    frame = read_table(written(tmp_path, "a;b\n1,5; x \n;007\n"))
    assert frame.columns.tolist() == ["a", "b"]
    assert frame.to_numpy().tolist() == [["1,5", "x "], ["", "007"]]
    assert read_table(written(tmp_path, "a\n1\n2\n")).to_numpy().tolist() == [["1"], ["2"]]  # new rows of one feature
    frame = read_table(written(tmp_path, "5,x\n6,y\n"), header="none")
    assert (frame.columns.tolist(), len(frame)) == (["column 1", "column 2"], 2)


# Kinds of columns ----------------------------------------------------------------------------------

CELLS = {
    "number": st.floats(-1e6, 1e6).map(lambda v: f"{v:.4f}"),
    "integer": st.integers(-5, 5).map(str),
    "word": st.sampled_from(["red", "green", "a, b", 'say "x"', "ü"]),
    "truth": st.sampled_from(["True", "False"]),
}


@st.composite
def tables(draw):
    """Texts of a table: columns of some kind with gaps, a number that names the row, and a label."""
    n = draw(st.integers(12, 40))
    made = {"row": [f"{k}.5" for k in range(n)]}
    for k in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(sorted(CELLS)))
        cell = CELLS[kind] if draw(st.booleans()) else st.one_of(CELLS[kind], st.sampled_from(["", "NA", "nan", "?"]))
        made[f"{kind} {k}"] = draw(st.lists(cell, min_size=n, max_size=n))
    made["label"] = [("x", "y")[k % 2] for k in range(n)]
    return pd.DataFrame(made)


def expected_inputs(texts, kind, train, every):
    """Inputs of a column by scikit-learn, fitted on the rows ``train``; those of 0 and 1 in any order."""
    gaps = texts.isin(["", "NA", "nan", "?"]).to_numpy()
    flag = gaps[every, None].astype(float)[:, : int(gaps[train].any())]
    if kind != "word":
        values = texts.map(lambda t: {"True": 1.0, "False": 0.0}.get(t) if t in ("True", "False") else t)
        numbers = np.array([np.nan if gap else float(v) for v, gap in zip(values, gaps, strict=True)])[:, None]
        fill = SimpleImputer(keep_empty_features=True).fit(numbers[train])
        scale = StandardScaler().fit(fill.transform(numbers[train]))
        return np.hstack([scale.transform(fill.transform(numbers[every])), flag])
    words = texts.to_numpy()[:, None]
    seen = train[~gaps[train]]
    out = np.zeros((len(every), 0))
    if len(seen):
        code = OneHotEncoder(min_frequency=2, handle_unknown="infrequent_if_exist", sparse_output=False).fit(
            words[seen]
        )
        out = code.transform(words[every])
        if code.infrequent_categories_[0] is None or flag.size:
            out[gaps[every]] = 0
    return np.hstack([out, flag])


@settings(max_examples=60, deadline=None)
@given(frame=tables(), separator=st.sampled_from(",;\t"), quoting=st.sampled_from([0, 1]))
def test_inputs_are_those_of_scikit_learn(tmp_path_factory, frame, separator, quoting):
    path = tmp_path_factory.mktemp("random") / "table.csv"
    frame.to_csv(path, index=False, sep=separator, quoting=quoting)
    made = load(path)
    names = made.preprocessing.feature_names
    inputs = torch.cat([made.x_train, made.x_test]).double().numpy()
    rows = (inputs[:, 0] * float(made.feature_std[0]) + float(made.feature_mean[0])).round(1) - 0.5
    every = rows.round().astype(int)
    assert sorted(every) == list(range(len(frame)))
    first = 0
    for name in frame.columns[:-1]:
        texts = frame[name]
        if texts.isin(["", "NA", "nan", "?"]).all():
            assert name not in names
            continue
        last = first + column(made, name).n_inputs
        found, expected = (
            inputs[:, first:last],
            expected_inputs(texts, name.split()[0], every[: len(made.x_train)], every),
        )
        assert found.shape == expected.shape
        trained = expected[: len(made.x_train)]
        constant = (trained == trained[0]).all(0)  # such inputs stay as they were
        expected[:, constant] = trained[0, constant]
        if name.startswith("word"):  # levels may come in another order
            found, expected = (part[:, np.lexsort(part)] for part in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
        first = last
    labels = np.concatenate([made.y_train, made.y_test])
    assert [made.classes[k] for k in labels] == frame.label[every].tolist()


@settings(max_examples=40, deadline=None)
@given(frame=tables())
def test_new_rows_become_the_same_inputs_as_text_and_as_pandas_reads_them(tmp_path_factory, frame):
    path = tmp_path_factory.mktemp("new") / "table.csv"
    frame.to_csv(path, index=False)
    made = load(path)
    again = Preprocessing.from_json(json.loads(json.dumps(made.preprocessing.to_json(), allow_nan=False)))
    texts = made.preprocessing.inputs(read_table(path))
    assert again.inputs(read_table(path)).equal(texts)
    typed = again.inputs(pd.read_csv(path, na_values="?").iloc[:, ::-1])
    torch.testing.assert_close(typed, texts, rtol=1e-6, atol=1e-6)
    every = torch.cat([made.x_train, made.x_test])
    assert texts[texts[:, 0].argsort()].equal(every[every[:, 0].argsort()])
    assert again.ignored(frame) == [name for name in frame if name not in again.feature_names]


def test_thousands_have_separators(tmp_path):
    rows = "".join(f'"{1000 + 37 * (k % 9):,}.50",{k % 4},{k % 2}\n' for k in range(30))
    made = load(written(tmp_path, "price,rooms,kind\n" + rows))
    assert column(made, "price").mean == pytest.approx(1000.5 + 37 * 4, abs=60)
    assert any("'price': the comma separates thousands, as in '1,000.50'" in note for note in made.notes)
    rows = "".join(f"{1000 + 37 * (k % 9):,}.50;{k % 4};{k % 2}\n" for k in range(30))
    european = rows.translate(str.maketrans(",.", ".,"))
    other = load(written(tmp_path, "price;rooms;kind\n" + european))
    assert other.x_train.equal(made.x_train)
    assert any("'price': the point separates thousands, as in '1.000,50'" in note for note in other.notes)


@pytest.mark.parametrize(
    ("texts", "days"),
    [
        (["2020-01-01", "2020-03-01"], [18262, 18322]),
        (["2020-01-01T12:00", "2020-03-01T00:00:00Z"], [18262.5, 18322]),
        (["2020-01-01 06:00:00", "2020-03-01 18:00:00"], [18262.25, 18322.75]),
        (["01.03.2020", "31.12.2020"], [18322, 18627]),
        (["13/02/2020", "01/03/2020"], [18305, 18322]),
        (["02/13/2020", "03/01/2020 12:00"], None),
        (["02/13/2020 12:00", "03/01/2020 00:00"], [18305.5, 18322]),
        (["1 Mar 2020", "31 Dec 2020"], [18322, 18627]),
        (["2020-01-01", "2020-13-45"], None),
    ],
)
def test_dates_become_days(texts, days):
    frame = numbered(40)
    frame.insert(0, "when", [texts[k % 2] for k in range(40)])
    made = from_frame(frame)
    found = column(made, "when")
    if days is None:
        assert found.kind == "category"
        return
    assert (found.kind, found.mean) == ("date", pytest.approx(np.mean(days), abs=40))
    inputs = made.preprocessing.inputs(frame)[:, 0].double() * found.std + found.mean
    np.testing.assert_allclose(inputs, [days[k % 2] for k in range(40)], atol=2e-3)
    frame["when"] = pd.to_datetime("1970-01-01") + pd.to_timedelta([days[k % 2] for k in range(40)], "D")
    torch.testing.assert_close(made.preprocessing.inputs(frame), made.preprocessing.inputs(frame.astype({"when": str})))


def test_the_order_of_day_and_month_is_said_where_both_are_possible():
    frame = numbered(40)
    frame.insert(0, "when", [f"0{1 + k % 3}/0{1 + k % 5}/2020" for k in range(40)])
    assert any("'when' are read with the month first" in note for note in from_frame(frame).notes)
    frame.loc[0, "when"] = "25/01/2020"
    made = from_frame(frame)
    assert column(made, "when").form == "%d/%m/%Y"
    assert not any("month first" in note for note in made.notes)


@pytest.mark.parametrize("words", [("no", "yes"), ("False", "True"), ("N", "Y"), ("f", "t"), ("off", "ON")])
def test_words_for_no_and_yes_are_0_and_1(words):
    frame = numbered(40)
    frame.insert(0, "flag", [words[k % 3 == 0] for k in range(40)])
    made = from_frame(frame)
    found = column(made, "flag")
    assert found.kind == "boolean"
    restored = (made.preprocessing.inputs(frame)[:, 0] * found.std + found.mean).round().int()
    assert restored.tolist() == [int(k % 3 == 0) for k in range(40)]
    for same_cells in (frame.flag.map({words[0]: False, words[1]: True}), frame.flag.map({words[0]: 0, words[1]: 1})):
        assert made.preprocessing.inputs(frame.assign(flag=same_cells)).equal(made.preprocessing.inputs(frame))


def test_rare_levels_share_an_input_which_unknown_ones_go_to():
    frame = numbered(400)
    frame.insert(0, "city", [f"city {k % 50:02}" if k % 4 else "capital" for k in range(400)])
    made = from_frame(frame, test=frame[:5])
    city = column(made, "city")
    counts = collections.Counter(frame.city)
    assert city.levels == tuple(sorted(counts, key=lambda name: (-counts[name], name))[:32])
    assert city.others
    assert "32 levels: capital, city 01, city 03" in about(made, "city")
    assert about(made, "city").endswith("...; all others in one input")
    inputs = made.preprocessing.inputs(frame.iloc[:3].assign(city=["capital", "city 48", "unheard of"]))[:, :33]
    assert inputs.sum(1).tolist() == [1, 1, 1]
    assert inputs[0, 0] == 1
    assert inputs[1:, 32].tolist() == [1, 1]
    frame.loc[7, "colour"] = "mauve"  # once in training
    made = from_frame(frame, test=frame[:5])
    assert set(column(made, "colour").levels) == {"red", "green", "blue"}
    assert made.x_train[7, -1] == 1
    unknown = from_frame(numbered(100)).preprocessing.inputs(numbered(2).assign(colour="mauve"))
    assert unknown[:, 2:].tolist() == [[0, 0, 0]] * 2


def test_missing_cells_have_the_mean_and_an_input_of_their_own():
    frame = numbered(60)
    frame.loc[::5, "a"] = np.nan
    frame.loc[::6, "colour"] = None
    made = from_frame(frame, test=frame)
    assert made.n_inputs == 2 + 1 + 4
    assert column(made, "a").mean == pytest.approx(frame.a.mean())
    assert made.x_train[:, 1].tolist() == [float(k % 5 == 0) for k in range(60)]
    assert not made.x_train[::5, 0].any()
    assert made.x_train[:, -1].tolist() == [float(k % 6 == 0) for k in range(60)]
    assert "20.0% missing: filled by the mean" in about(made, "a")
    assert "16.7% missing: an input of their own" in about(made, "colour")
    whole = from_frame(numbered(60))
    gap = whole.preprocessing.inputs(numbered(1).assign(a=np.nan, colour=None))
    assert gap[0, 0] == 0
    assert not gap[0, 2:].any()


def test_statistics_are_those_of_the_training_rows():
    frame = numbered(40)
    far = frame.assign(a=1e6, colour="mauve")
    made = from_frame(frame, test=far)
    assert made.feature_mean[0] == pytest.approx(frame.a.mean())
    assert made.feature_std[0] == pytest.approx(frame.a.std(ddof=0))
    assert set(column(made, "colour").levels) == {"red", "green", "blue"}
    assert made.x_test[0, 0] > 1e5
    assert not made.x_test[:, 2:].any()


def test_numbers_that_are_codes_can_be_categories():
    frame = numbered(60)
    frame.insert(0, "zip", np.random.default_rng(1).choice([10115, 20095, 80331], 60))
    made = from_frame(frame, categories="zip")
    assert set(column(made, "zip").levels) == {"10115", "20095", "80331"}
    by_dtype = from_frame(frame.astype({"zip": "category"}))
    assert same(made, by_dtype)
    as_float = made.preprocessing.inputs(frame.astype({"zip": float}))
    assert as_float.equal(made.preprocessing.inputs(frame))


def test_empty_and_constant_columns_are_said():
    frame = numbered(40).assign(empty=None, always=3)[["empty", "always", "a", "b", "kind"]]
    made = from_frame(frame)
    assert made.preprocessing.feature_names == ("always", "a", "b")
    assert "left out: empty" in about(made, "empty")
    assert "the same in all training rows" in about(made, "always")
    assert made.x_train[:, 0].tolist() == [0] * len(made.x_train)


def test_objects_that_are_no_cells_are_named():
    frame = numbered(20)
    frame.insert(0, "parts", [[1, 2]] * 20)
    with pytest.raises(DataError, match="column 'parts' holds a list"):
        from_frame(frame)
    frame["parts"] = frame.a + 1j
    with pytest.raises(DataError, match="column 'parts' has dtype complex128"):
        from_frame(frame)


def test_a_column_of_numbers_with_a_word_names_the_cell_and_the_ways_out(tmp_path):
    frame = numbered(30).astype(object)
    frame.loc[[4, 9], "b"] = ["n.a.", "-"]
    frame.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(
        DataError, match=r"row 5 \(line 6\), column 'b': 'n\.a\.' is not a number.*1 others.*'-'"
    ) as caught:
        load(tmp_path / "table.csv")
    for way_out in ("write a missing one as NA", "categories='b'", "drop='b'"):
        assert way_out in str(caught.value)
    assert load(tmp_path / "table.csv", drop="b").n_inputs == 1 + 3


# Labels and splits ---------------------------------------------------------------------------------


def test_labels_keep_their_dtype():
    frame = numbered(40)
    for labels, kind in (
        (np.arange(40) % 3, "i"), (np.arange(40) % 2 == 0, "b"), ([f"k{k % 2}" for k in range(40)], "U"),
        (pd.Categorical([f"k{k % 2}" for k in range(40)]), "U"), (pd.array([k % 2 for k in range(40)], "Int64"), "i"),
    ):  # fmt: skip
        made = from_frame(frame.assign(kind=labels))
        assert made.preprocessing.classes.dtype.kind == kind
        outputs = torch.nn.functional.one_hot(made.y_test, made.n_outputs).float()
        assert set(made.preprocessing.predictions(outputs).tolist()) <= set(np.asarray(labels).tolist())


def test_the_task_can_be_chosen(tmp_path):
    frame = numbered(60).assign(kind=np.arange(60) % 6 + 3)
    assert from_frame(frame).task == "classification"
    assert "--task regression takes them as numbers" in about(from_frame(frame), "kind")
    made = from_frame(frame, task="regression")
    assert (made.task, made.n_outputs) == ("regression", 1)
    halves = frame.assign(kind=frame.kind / 2)
    assert from_frame(halves).task == "regression"
    made = from_frame(halves, task="classification")
    assert made.preprocessing.classes.tolist() == [1.5, 2, 2.5, 3, 3.5, 4]
    whole = from_frame(frame.assign(kind=frame.kind.astype(float)))
    assert "6 different whole numbers are taken as numbers; --task classification" in about(whole, "kind")
    with pytest.raises(DataError, match=r"holds text such as .*task='regression' needs numbers"):
        from_frame(numbered(60), task="regression")
    with pytest.raises(DataError, match="task='both' is unknown; choose one of classification, regression"):
        from_frame(frame, task="both")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((400, 8, 8)), y=np.repeat(np.arange(40), 10))
    assert load(tmp_path / "x.npz", task="classification").n_outputs == 40


def test_several_targets_are_a_regression_of_all():
    frame = numbered(60)
    frame["u"], frame["v"] = frame.a * 2 + 1, frame.b - frame.a
    made = from_frame(frame, ["u", "v"])
    assert (made.task, made.n_outputs, made.preprocessing.target_names) == ("regression", 2, ("u", "v"))
    every = made.preprocessing.predictions(torch.cat([made.y_train, made.y_test]))
    expected = frame[["u", "v"]].to_numpy()
    np.testing.assert_allclose(every[every[:, 0].argsort()], expected[expected[:, 0].argsort()], atol=1e-3)
    with pytest.raises(DataError, match="'kind' is one of 2 label columns"):
        from_frame(frame, ["u", "kind"])


def test_missing_labels_are_named_and_can_be_left_out(tmp_path):
    frame = numbered(40)
    frame.loc[[3, 8], "kind"] = "NA"
    frame.loc[20, "kind"] = ""
    frame.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "table.csv")
    for words in ("row 4 (line 5), column 'kind'", "written 'NA'", "3 values are missing (rows 4, 9, 21)",
                  "--drop-unlabelled", "if 'NA' is the name of a class"):  # fmt: skip
        assert words in str(caught.value)
    made = load(tmp_path / "table.csv", drop_unlabelled=True)
    assert len(made.x_train) + len(made.x_test) == 37
    assert made.classes == ("down", "up")
    assert any(note.startswith("3 rows without a label") for note in made.notes)
    kept = frame[~frame.kind.isin(["NA", ""])]
    assert same(made, from_frame(kept))


def test_integers_stay_classes_where_pandas_made_floats_of_them_for_a_gap():
    frame = numbered(40).assign(kind=[None if k % 9 == 0 else k % 3 for k in range(40)])
    assert frame.kind.dtype == float
    made = from_frame(frame, drop_unlabelled=True)
    assert made.preprocessing.classes.tolist() == [0, 1, 2]
    assert made.preprocessing.classes.dtype == np.int64


@pytest.mark.parametrize(("size", "n_test"), [(None, 8), (0.25, 10), (0.5, 20), (7, 7), (1, 1)])
def test_the_test_split_has_the_size_asked_for(size, n_test):
    made = from_frame(numbered(40), test_size=size)
    assert (len(made.x_train), len(made.x_test)) == (40 - n_test, n_test)


def test_a_split_is_stratified_unless_told_otherwise():
    frame = numbered(200).assign(kind=np.repeat(["a", "b"], [180, 20]))
    assert from_frame(frame).y_test.sum() == 4
    assert from_frame(frame, stratify=True).y_test.sum() == 4
    assert len({int(from_frame(frame, stratify=False, seed=k).y_test.sum()) for k in range(5)}) > 1
    with pytest.raises(DataError, match="class c has 1 sample, and 40 test rows"):
        from_frame(frame.assign(kind=["c", *frame.kind[1:]]), stratify=True)
    with pytest.raises(DataError, match="this is a regression"):
        from_frame(frame.drop(columns="kind"), target="a", stratify=True)


def test_rows_of_a_group_stay_on_one_side():
    frame = numbered(100)
    frame.insert(0, "person", [f"p{k % 17}" for k in range(100)])
    frame["a"] = frame.person.str[1:].astype(float) + 0.25  # tells the group of a sample
    made = from_frame(frame, group="person")
    assert "person" not in made.preprocessing.feature_names
    sides = [
        set((part[:, 0] * made.feature_std[0] + made.feature_mean[0]).round(decimals=2).tolist())
        for part in (made.x_train, made.x_test)
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 17
    assert same(made, from_frame(frame, group="person"))
    with pytest.raises(DataError, match="two rules for one split"):
        from_frame(frame, group="person", stratify=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop": "a, colur"}, ["drop='colur'", "names 0 columns", "do you mean 'colour'"]),
        ({"keep": "z"}, ["keep='z'", "choose one of a, b, colour, kind"]),
        ({"drop": "kind", "target": "kind"}, ["drop='kind'", "one use"]),
        ({"group": "kind", "target": "kind"}, ["group='kind'", "one use"]),
        ({"drop": "a,b,colour"}, ["no column of features left"]),
        ({"test_size": 0}, ["test_size=0", "share in 0 .. 1"]),
        ({"test_size": 1.5}, ["test_size=1.5"]),
        ({"test_size": 40}, ["leaves 0 of 40 rows"]),
        ({"header": "second"}, ["header='second' is unknown"]),
        ({"channels": "first"}, ["channels='first' is for images", "leave it out"]),
    ],
)
def test_unfit_options_are_named(tmp_path, options, words):
    numbered(40).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "table.csv", **options)
    assert not [word for word in words if word not in str(caught.value)], caught.value


@pytest.mark.parametrize("option", [{"drop": "a"}, {"task": "regression"}, {"test_size": 0.5}, {"channels": "last"}])
def test_data_sets_with_a_name_take_no_options_of_reading(option):
    with pytest.raises(DataError, match=rf"{next(iter(option))}=.*digits is none; leave it out"):
        load("digits", **option)


def test_names_with_commas_can_be_dropped():
    frame = numbered(40).rename(columns={"a": "size, m"})
    assert from_frame(frame, drop="size, m").preprocessing.feature_names == ("b", "colour")
    assert from_frame(frame, drop=["size, m", "b"]).preprocessing.feature_names == ("colour",)
    assert from_frame(frame, drop="b,colour").preprocessing.feature_names == ("size, m",)


# What looks like a mistake -------------------------------------------------------------------------

N = 60
RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("n", np.arange(N), "counts the rows"),
        ("n", np.arange(N, 0, -1), "counts the rows"),
        ("n", np.arange(N) * 1.0, "counts the rows"),
        ("n", np.cumsum(RNG.integers(1, 50, N)), "tells the order of the rows"),
        ("n", RNG.permutation(N) + 1000, "numbers the rows"),
        ("customer_id", RNG.choice(10**8, N, replace=False), "is an ID by its name"),
        ("PassengerId", RNG.choice(10**8, N, replace=False), "is an ID by its name"),
        ("name", [f"Mr. {k}" for k in range(N)], "has a text of its own in all rows"),
        ("ticket", [f"A/5 {k % 45}" for k in range(N)], "has 45 different texts in 60 rows"),
    ],
)
def test_columns_that_tell_the_row_are_refused_unless_kept(name, values, reason):
    frame = numbered(N)
    frame.insert(1, name, values)
    with pytest.raises(DataError, match=rf"column '{name}' {reason}.*--drop '{name}'.*--keep '{name}'"):
        from_frame(frame)
    assert name not in from_frame(frame, drop=name).preprocessing.feature_names
    assert name in from_frame(frame, keep=name).preprocessing.feature_names


def test_all_of_them_are_named_at_once():
    frame = numbered(N)
    frame.insert(0, "PassengerId", np.arange(N) + 1)
    frame.insert(1, "Name", [f"Mr. {k}" for k in range(N)])
    with pytest.raises(DataError, match="leave them out with --drop 'PassengerId,Name'"):
        from_frame(frame)
    assert from_frame(frame, drop="PassengerId,Name").n_inputs == 5


def test_a_column_of_codes_some_of_them_numbers_is_text():
    frame = numbered(200)
    frame.insert(0, "ticket", [f"A/5 {k % 150}" if k % 4 == 0 else str(1000 + k % 150) for k in range(200)])
    frame.insert(0, "name", [f"Mr. {k}" for k in range(200)])
    with pytest.raises(DataError, match=r"column 'ticket' has 175 different texts.*--drop 'name,ticket'"):
        from_frame(frame)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("x", np.sort(RNG.normal(size=N))),
        ("x", np.linspace(0, 1, N)),
        ("x", RNG.normal(size=N)),
        ("age", np.sort(RNG.integers(18, 60, N))),
        ("year", 1990 + np.arange(N) // 4),
        ("grade", [f"g{k % 20}" for k in range(N)]),
    ],
)
def test_numbers_that_measure_something_are_no_index(name, values):
    frame = numbered(N)
    frame.insert(0, name, values)
    made = from_frame(frame)
    assert name in made.preprocessing.feature_names
    assert not [note for note in made.notes if note.startswith("warning")]


def test_weak_signs_are_warnings():
    frame = numbered(N)
    frame.insert(0, "population", RNG.choice(10**8, N, replace=False))
    assert any(
        n.startswith("warning: column 'population' has a whole number of its own") for n in from_frame(frame).notes
    )
    frame["population"] = pd.date_range("2020-01-01", periods=N)
    assert any("dates in the order of the rows" in note for note in from_frame(frame).notes)
    only = pd.DataFrame({"x": np.arange(N), "y": np.sin(np.arange(N))})
    assert any("warning: column 'x' counts the rows" in note for note in from_frame(only).notes)


def test_an_index_written_by_pandas_is_left_out(tmp_path):
    frame = numbered(N)
    frame.to_csv(tmp_path / "table.csv")
    made = load(tmp_path / "table.csv")
    assert same(made, from_frame(frame))
    assert any(note.startswith("warning: the first column has no name") for note in made.notes)
    assert load(tmp_path / "table.csv", keep="Unnamed: 0").n_inputs == made.n_inputs + 1
    assert made.preprocessing.ignored(pd.read_csv(tmp_path / "table.csv")) == ["Unnamed: 0", "kind"]
    frame.index = [f"car {k}" for k in range(N)]
    frame.to_csv(tmp_path / "table.csv")
    assert same(load(tmp_path / "table.csv"), made)


IRIS = "".join(f"{5 + k % 9 / 10},{3 + k % 4 / 10},{'setosa' if k % 2 else 'virginica'}\n" for k in range(30))


@pytest.mark.parametrize(
    "text",
    [IRIS, "".join(f"{'pxs'[k % 3]},{'xy'[k % 2]},{'pe'[k % 2]}\n" for k in range(30)), "1.5,2\n" * 8, "1,2,3\n" * 8],
)
def test_a_first_line_of_data_is_refused_or_read_on_request(tmp_path, text):
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=r"the first line .*--header none"):
        load(path)
    names = read_table(path, header="none").columns
    assert names[0] == "column 1"
    assert len(read_table(path, header="none")) == text.count("\n")
    assert len(read_table(path, header="first")) == text.count("\n") - 1


def test_a_table_without_names_is_trained_on(tmp_path):
    made = load(written(tmp_path, IRIS), header="none")
    assert len(made.x_train) + len(made.x_test) == 30
    assert made.preprocessing.feature_names == ("column 1", "column 2")
    assert load(written(tmp_path, IRIS), header="none", target="column 1").task == "regression"


@pytest.mark.parametrize("header", ["country,2019,2020,kind", "0,1,2,3", "a,b,c,d", "x,1,2,y"])
def test_names_that_are_years_or_counts_are_names(tmp_path, header):
    rows = "".join(f"{('de', 'fr', 'it')[k % 3]},{k / 7:.2f},{k / 3:.2f},{k % 2}\n" for k in range(30))
    made = load(written(tmp_path, header + "\n" + rows))
    assert made.preprocessing.feature_names == tuple(header.split(","))[:-1]


def test_duplicated_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="'a' twice, as columns 1, 3"):
        load(written(tmp_path, "a,b,a,kind\n" + "1.5,2,3,x\n" * 9))
    with pytest.raises(DataError, match="columns 2, 3 have no name"):
        load(written(tmp_path, "a,,,kind\n" + "1.5,2,3,x\n" * 9))


def test_a_feature_that_gives_the_label_away_is_said():
    frame = numbered(200)
    word = frame.assign(outcome=frame.kind.map({"up": "won", "down": "lost"}))[["a", "outcome", "kind"]]
    number = frame.assign(score=np.where(frame.kind == "up", 1, -1) * (1 + RNG.random(200)))[["a", "score", "kind"]]
    for table, name in ((word, "outcome"), (number, "score")):
        assert [n for n in from_frame(table).notes if f"warning: column {name!r} alone tells the label" in n]
    line = frame.assign(cents=frame.b * 100)[["a", "cents", "b"]]
    assert [n for n in from_frame(line).notes if "warning: column 'cents' alone tells the label" in n]
    for table in (
        frame,
        word[:20],
        number.assign(score=number.score + RNG.normal(0, 3, 200)),
        line.assign(cents=line.cents + 1e3 * RNG.random(200)),
    ):
        assert not [n for n in from_frame(table).notes if "alone tells" in n]


def test_classes_with_one_sample_are_said():
    frame = numbered(40)
    frame.loc[0, "kind"] = "odd"
    assert any("class odd has one sample" in note for note in from_frame(frame).notes)
    frame.loc[1, "kind"] = "even"
    assert any("classes even, odd have one sample each" in note for note in from_frame(frame).notes)


# Frames, arrays, and runs --------------------------------------------------------------------------


def test_frames_and_arrays_with_names_are_read_alike():
    frame = numbered(40)
    one = from_frame(frame)
    assert same(one, from_arrays(frame.drop(columns="kind"), frame.kind))
    assert from_arrays(frame.drop(columns="kind"), frame.kind).preprocessing.target_names == ("kind",)
    assert from_arrays(frame[["a", "b"]], frame.b.to_numpy() * 2).preprocessing.target_names == ("target",)
    assert from_arrays(frame[["a"]], frame[["b", "a"]].set_axis(["u", "v"], axis=1)).n_outputs == 2
    split = from_arrays(frame[["a", "b"]], frame.kind, frame[["a", "b"]][:7], frame.kind[:7])
    assert (len(split.x_train), len(split.x_test)) == (40, 7)
    with pytest.raises(DataError, match="x has 40 samples but y 39"):
        from_arrays(frame[["a"]], frame.b[1:])
    with pytest.raises(DataError, match="both or neither"):
        from_arrays(frame[["a"]], frame.b, frame[["a"]])
    with pytest.raises(DataError, match="from_frame needs a pandas DataFrame"):
        from_frame(frame.to_numpy())
    with pytest.raises(DataError, match="the test rows have the columns"):
        from_frame(frame, test=frame[["a"]])


def test_bad_new_rows_are_named():
    made = from_frame(numbered(40)).preprocessing
    good = numbered(3)
    for change, words in (
        ({"a": ["1", "x", "2"]}, "row 1 .*column 'a': 'x' is no number"),
        ({"b": [1, np.inf, 2]}, "row 1 .*column 'b': inf is not finite"),
        ({"b": [1, 1e60, 2]}, "row 1 .*column 'b'.*not finite"),
    ):
        with pytest.raises(DataError, match=words):
            made.inputs(good.assign(**change))
    with pytest.raises(DataError, match="lacks the columns 'a', 'colour'"):
        made.inputs(good[["b"]])
    with pytest.raises(DataError, match=r"shape \(3, 2\); it must be \(n, 3\).*a, b, colour"):
        made.inputs(good[["a", "b"]].to_numpy())
    assert made.inputs(good[["a", "b", "colour"]].to_numpy()).equal(made.inputs(good))


def test_a_source_keeps_the_options_of_reading(tmp_path):
    path = tmp_path / "table.csv"
    frame = numbered(40)
    frame.insert(0, "id", np.arange(40))
    frame.to_csv(path, index=False)
    made = load(path, drop="id", test_size=0.5, target="a")
    source = DataSource(str(path), target="a", reading={"drop": "id", "test_size": 0.5})
    again = DataSource(**json.loads(json.dumps(dataclasses.asdict(source))))
    assert again == source
    assert describe(again.load()) == describe(made)
    assert DataSource("table.csv", None, "kind").target == "kind"  # as runs of earlier versions have it
    several = DataSource(str(path), target=["a", "b"], reading={"drop": "id"})
    assert DataSource(**json.loads(json.dumps(dataclasses.asdict(several)))) == several
    assert several.load().n_outputs == 2


def test_a_big_table_is_read_in_blocks(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(9000, 2)), columns=["a", "b"]).assign(kind=rng.choice(["x", "y"], 9000))
    text = io.StringIO()
    frame.to_csv(text, index=False)
    lines = text.getvalue().splitlines()
    path = written(tmp_path, "\n".join(lines))
    assert same(load(path), from_frame(frame))
    lines[8500] = "1,2"
    with pytest.raises(DataError, match=r"row 8500 \(line 8501\) has 2 cells under a header of 3"):
        load(written(tmp_path, "\n".join(lines)))


def test_numbers_of_any_size_are_features():
    frame = numbered(60)
    plain, other = from_frame(frame), from_frame(frame.assign(a=frame.a * 2.0**1000, b=frame.b * 2.0**-900))
    assert other.x_train.equal(plain.x_train)
    assert other.x_test.equal(plain.x_test)
    gaps = frame.assign(a=np.where(frame.index % 5 == 0, np.nan, frame.a))
    plain, other = from_frame(gaps), from_frame(gaps.assign(a=gaps.a * 2.0**1020))
    assert other.x_train.equal(plain.x_train)


def test_a_target_whose_squared_error_is_no_number_is_refused():
    frame = numbered(60).drop(columns="kind").assign(price=np.arange(60.0) ** 1.5)
    for unit in (1e200, 1e-200):
        with pytest.raises(
            DataError, match=r"column 'price' has the standard deviation .*1e-150 .. 1e\+150.*divided by"
        ):
            from_frame(frame.assign(price=frame.price * unit))
    assert from_frame(frame.assign(price=frame.price * 1e140)).y_train.isfinite().all()


def test_a_number_beside_which_all_others_are_equal_is_said():
    frame = numbered(60)
    frame.loc[7, "b"] = 1e99
    said = [from_frame(frame, seed=seed).notes for seed in range(3)]
    assert any(
        "column 'b': beside 1e+99 in row 8 all other numbers are the same" in note for notes in said for note in notes
    )
    frame.loc[7, "b"] = 3000
    assert not any("beside" in note for note in from_frame(frame).notes)


def test_huge_whole_numbers_beside_gaps_are_numbers():
    frame = numbered(60).drop(columns="kind").assign(price=np.where(np.arange(60) % 9, np.arange(60) * 1e30, np.nan))
    found = from_frame(frame, drop_unlabelled=True)
    assert found.task == "regression"
    assert found.preprocessing.target.mean > 1e30


def test_dates_before_1677_and_after_2262_are_days_as_others_are(tmp_path):
    days = ["1500-01-01", "1969-12-31", "1970-01-02", "3024-02-01", "9999-12-31"]
    rows = [f"{days[k % 5]},{'ab'[k % 2]}" for k in range(40)]
    (tmp_path / "old.csv").write_text("\n".join(["day,label", *rows]))
    found = load(tmp_path / "old.csv")
    inputs = found.preprocessing.inputs(read_table(tmp_path / "old.csv"))[:5, 0].double()
    expected = torch.tensor([-171664, -1, 1, 384996, 2932896], dtype=torch.float64)  # days since 1970
    slope = (inputs[4] - inputs[0]) / (expected[4] - expected[0])
    torch.testing.assert_close(inputs - inputs[0], slope * (expected - expected[0]), rtol=1e-5, atol=1e-6)


def test_labels_with_decimal_points_and_commas_are_refused(tmp_path):
    rows = [f"{k};{('1.5', '2,5', '7')[k % 3]}" for k in range(12)]
    (tmp_path / "mixed.csv").write_text("\n".join(["a;y", *rows]))
    with pytest.raises(
        DataError, match=r"row 2 \(line 3\), column 'y': '2,5' has a decimal comma, and '1.5' in row 1 a"
    ):
        load(tmp_path / "mixed.csv")
