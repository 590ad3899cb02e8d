"""One rule for every way in: codes, numbers with signs, dates and booleans from files, DataFrames and dicts."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dnm.data import DataError, Preprocessing, from_arrays, from_frame, load, read_table
from sparse_dnm.data.new_samples import as_rows, read_samples
from sparse_dnm.data.source import DataSource
from sparse_dnm.sklearn.samples import table_inputs


def written(folder, text, name="table.csv"):
    """Path of a file with this text."""
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


def with_code(codes, n=60):
    """A DataFrame of n rows with a column of codes, a number, and a label."""
    k = np.arange(n)
    return pd.DataFrame({"code": [codes[i % len(codes)] for i in k], "b": k * 0.37 % 1, "y": k // 2 % 2})


def column(made, name):
    """The fitted column ``name``."""
    return next(column for column in made.preprocessing.features.columns if column.name == name)


# Codes ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    codes=st.lists(st.integers(-300, 300) | st.integers(-900, 900).map(lambda k: k / 4), min_size=2, max_size=5),
    gap=st.booleans(),
)
def test_a_code_is_one_level_however_it_is_written(tmp_path_factory, codes, gap):
    frame = with_code([float(code) for code in codes])
    if gap:
        frame.loc[[5, 9], "code"] = np.nan
    path = tmp_path_factory.mktemp("codes") / "table.csv"
    frame.to_csv(path, index=False)
    made = [load(path, target="y", categories="code"), from_frame(frame, "y", categories="code")]
    assert made[0].x_train.equal(made[1].x_train)
    new = frame.dropna()
    expected = made[0].preprocessing.inputs(new)
    assert expected[:, :-1].sum(1).eq(1).all()
    ways = [new.astype({"code": str}), new.astype({"code": object}), new.astype({"code": "float32"})]
    if all(code == int(code) for code in codes):
        ways += [new.astype({"code": kind}) for kind in ("int64", "Int64")]
        ways.append(new.assign(code=new.code.astype(int).astype(str)))
    for each in made:
        for way in ways:
            assert each.preprocessing.inputs(way).equal(expected)


def test_zeros_before_a_code_and_words_beside_it_are_kept(tmp_path):
    path = written(tmp_path, with_code(["01005", "1005", "20095"]).to_csv(index=False))
    assert set(column(load(path, target="y", categories="code"), "code").levels) == {"01005", "1005", "20095"}
    for texts in (["1.1", "1.10", "2.0"], ["5.0", "5", "5a"]):
        path = written(tmp_path, with_code(texts).to_csv(index=False))
        assert set(column(load(path, target="y", categories="code"), "code").levels) == set(texts)


def test_dates_that_are_categories_are_one_level_as_text_and_as_dates(tmp_path):
    frame = with_code(["2020-01-31", "2020-02-01", "2020-02-01 06:30:00"])
    made = load(written(tmp_path, frame.to_csv(index=False)), target="y", categories="code").preprocessing
    dates = frame.assign(code=pd.to_datetime(frame.code, format="ISO8601"))
    assert made.inputs(dates).equal(made.inputs(frame))


def test_levels_unseen_in_training_are_said(tmp_path):
    path = written(tmp_path, with_code(["01005", "01010", "20095"]).to_csv(index=False))
    made = load(path, target="y", categories="code").preprocessing
    warned = []
    made.inputs(pd.read_csv(path).query("code < 2000").head(4), warned=warned)
    assert len(warned) == 1
    assert "column 'code': 4 of 4 cells" in warned[0]
    assert "such as '1005' in row 0" in warned[0]
    assert "training had '01005', '01010', '20095'" in warned[0]
    assert "zeros before numbers seem lost" in warned[0]
    made.inputs(pd.read_csv(path, dtype=str), warned=warned)
    made.inputs(pd.DataFrame({"code": [None, "01005", "x"], "b": 0.5}), warned=warned)
    assert len(warned) == 1


def test_levels_that_share_an_input_are_expected_to_come_up():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"code": rng.integers(0, 90, 600).astype(str), "b": rng.random(600), "y": rng.integers(0, 2, 600)}
    )
    made = from_frame(frame, "y", categories="code").preprocessing
    warned = []
    made.inputs(frame[~frame.code.isin(made.features.columns[0].levels)].head(1), warned=warned)
    assert not warned
    made.inputs(frame.assign(code="x"), warned=warned)
    assert len(warned) == 1


# Signs in numbers ----------------------------------------------------------------------------------


def numbers(decimals=3):
    """A DataFrame whose numbers have three decimals, so that a comma in them could separate thousands."""
    k = np.arange(60)
    a, b = (1 + k * 37 % 50 + (k * 997 % 900 + 100) / 1000).round(decimals), (k * 0.37 % 1).round(decimals)
    return pd.DataFrame({"a": a, "b": b + 0.001, "y": k // 2 % 2})


@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", ","), ("|", ",")])
@pytest.mark.parametrize("trained", ["points", "commas"])
@pytest.mark.parametrize("n", [1, 60])
def test_new_files_are_read_by_the_rule_for_files_whatever_the_training_had(tmp_path, separator, decimal, trained, n):
    frame = numbers()
    own = {"points": (",", "."), "commas": (";", ",")}[trained]
    path = written(tmp_path, frame.to_csv(index=False, sep=own[0], decimal=own[1]))
    made = load(path, target="y").preprocessing
    expected = made.inputs(frame.head(n))
    new = written(tmp_path, frame.head(n).to_csv(index=False, sep=separator, decimal=decimal), "new.csv")
    assert made.inputs(read_samples(new)).equal(expected)
    assert made.inputs(read_table(new)).equal(expected)
    if n > 1:
        assert from_frame(read_table(new), "y").x_train.equal(load(path, target="y").x_train)


def test_texts_that_can_be_two_numbers_are_refused_unless_the_training_had_such(tmp_path):
    by_points = from_frame(numbers(), "y").preprocessing
    texts = pd.DataFrame({"a": ["101,037", "5.5"], "b": ["0.5", "0.5"]})
    with pytest.raises(DataError, match=r"row 0 .*column 'a': '101,037' can be 101037 or 101\.037.*write decimal"):
        by_points.inputs(texts)
    mixed = written(tmp_path, 'a,b\n"101,037",0.5\n')
    with pytest.raises(DataError, match="'101,037' can be"):
        by_points.inputs(read_samples(mixed))
    earlier = by_points.to_json()
    for each in earlier["inputs"]["columns"]:  # as runs of earlier versions have it
        del each["grouped"], each["rare"]
    assert Preprocessing.from_json(earlier).inputs(texts).shape == (2, 2)

    rows = "".join(f'"{1000 + 37 * (k % 9):,}.50",{k % 4 + 0.5},{k // 2 % 2}\n' for k in range(60))
    thousands = load(written(tmp_path, "a,b,y\n" + rows)).preprocessing
    thousands = Preprocessing.from_json(json.loads(json.dumps(thousands.to_json())))
    assert thousands.inputs(texts).equal(thousands.inputs(pd.DataFrame({"a": [101037, 5.5], "b": 0.5})))
    commas = load(written(tmp_path, numbers().to_csv(index=False, sep=";", decimal=",")), target="y").preprocessing
    assert commas.inputs(texts.assign(a="38,097", b="0,5")).equal(commas.inputs(texts.assign(a=38.097, b=0.5)))
    with pytest.raises(DataError, match=r"'38\.097' can be"):
        commas.inputs(texts.assign(a="38.097", b="0,5"))


@pytest.mark.parametrize("target", ["a", "y"])
def test_training_warns_where_a_comma_may_be_a_decimal_sign(tmp_path, target):
    frame = numbers().assign(c=[f"{k % 7}.5" for k in range(60)])[["a", "c", "y"]]
    frame["a"] = frame.a.map("{:.3f}".format).str.replace(".", ",")
    path = written(tmp_path, frame.to_csv(index=False, sep=";"))
    notes = load(path, target=target).notes
    found = [note for note in notes if note.startswith("warning: column 'a': the comma separates thousands")]
    assert len(found) == 1
    assert "it can be 1100 or 1.1, and other columns have decimal points" in found[0]


def test_commas_in_words_do_not_make_decimal_commas(tmp_path):
    frame = numbers().assign(city=["Rome, Italy", "Oslo"] * 30)[["city", "a", "y"]]
    frame["a"] = frame.a.map("{:.3f}".format)
    found = load(written(tmp_path, frame.to_csv(index=False, sep=";")), target="y")
    assert column(found, "a").mean < 60


# Kinds of new cells --------------------------------------------------------------------------------


def test_new_cells_of_another_kind_are_refused_as_those_of_a_file():
    frame = numbers().assign(
        when=[f"2020-{1 + k % 12:02}-15" for k in range(60)], flag=["yes" if k % 3 else "no" for k in range(60)]
    )
    made = from_frame(frame, "y").preprocessing
    for cells in ([20200101] * 60, [43831.5] * 60, ["20200101"] * 60, [True] * 60):
        with pytest.raises(
            DataError, match=r"row 0 .*column 'when': '.*' is no date of the format .*, as the column was in training"
        ):
            made.inputs(frame.assign(when=cells))
    with pytest.raises(DataError, match="column 'a': '2020-01-01' is no number"):
        made.inputs(frame.assign(a=pd.Timestamp("2020-01-01")))
    for cells in (7, "7"):
        with pytest.raises(DataError, match="column 'flag': '7' is no boolean"):
            made.inputs(frame.assign(flag=cells))
    for column_ in ("when", "flag", "a"):
        for gap in (None, np.nan, pd.NaT):
            assert made.inputs(frame.assign(**{column_: gap})).shape == (60, 4)


@pytest.mark.parametrize("values", [[True, 0, 1, None], [1, True, "x", 0.0], [False, True, 1, "1"]])
def test_booleans_beside_numbers_are_levels_of_their_own_in_any_batch(values):
    frame = with_code(["u"]).assign(code=pd.Series([values[k % 4] for k in range(60)], dtype=object))
    made = from_frame(frame, "y", categories="code").preprocessing
    expected = made.inputs(frame)
    for order in (np.arange(60)[::-1], np.random.default_rng(0).permutation(60)):
        assert made.inputs(frame.iloc[order]).equal(expected[order.copy()])
    assert torch.cat([made.inputs(frame.iloc[[k]]) for k in range(60)]).equal(expected)
    assert set(made.features.columns[0].levels) <= {"True", "False", "0", "1", "x"}


def test_labels_that_mix_booleans_and_numbers_are_told_apart():
    frame = with_code(["u"])[["b", "y"]]
    frame["y"] = pd.Series([[True, 0, 1, False][k % 4] for k in range(60)], dtype=object)
    assert from_frame(frame).classes == ("0", "1", "False", "True")


@pytest.mark.parametrize("values", [[2**53, 2**53 + 1, 5], [2**62, 2**62 + 1, 7], [2**63, 2**63 + 1, 2**64 - 1]])
def test_large_integers_are_exact(tmp_path, values):
    frame = with_code(["u"])[["b"]].assign(y=[values[k % 3] for k in range(60)])
    for made in (from_frame(frame), load(written(tmp_path, frame.to_csv(index=False)))):
        assert made.classes == tuple(map(str, sorted(values)))
        assert made.preprocessing.classes.tolist() == sorted(values)
        again = Preprocessing.from_json(json.loads(json.dumps(made.preprocessing.to_json())))
        assert again.classes.tolist() == sorted(values)
    frame = with_code(values)
    for made in (
        from_frame(frame, "y", categories="code"),
        load(written(tmp_path, frame.to_csv(index=False)), target="y", categories="code"),
    ):
        assert set(column(made, "code").levels) == set(map(str, values))
        assert made.preprocessing.inputs(frame.head(3))[:, :3].sum(0).tolist() == [1, 1, 1]
    gaps = frame.astype({"code": "UInt64" if max(values) >= 2**63 else "Int64"})
    gaps.loc[4, "code"] = pd.NA
    assert set(column(from_frame(gaps, "y", categories="code"), "code").levels) == set(map(str, values))


def test_integers_beyond_64_bits_are_no_classes_that_float64_merges(tmp_path):
    frame = with_code(["u"])[["b"]].assign(y=[str(10**19 * 2 + k % 2) for k in range(60)])
    with pytest.raises(DataError, match=r"beyond 64 bits.*write classes as words"):
        load(written(tmp_path, frame.to_csv(index=False)))


# Ways in -------------------------------------------------------------------------------------------


def test_a_dict_is_a_row_and_a_list_of_dicts_are_rows():
    frame = numbers().assign(code=["u", "v"] * 30)
    made = from_frame(frame, "y").preprocessing
    expected = made.inputs(frame)
    assert made.inputs(as_rows(frame.iloc[3].to_dict())).equal(expected[[3]])
    assert made.inputs(as_rows(frame.iloc[3])).equal(expected[[3]])
    assert made.inputs(as_rows(frame.to_dict("records"))).equal(expected)
    assert made.inputs(as_rows(frame.to_dict("list"))).equal(expected)
    assert as_rows(np.zeros((2, 2))) is None
    assert as_rows([[1, 2]]) is None
    with pytest.raises(DataError, match="give a DataFrame, or a dict per row"):
        as_rows({"a": [1, 2], "b": [1]})
    with pytest.raises(DataError, match="lacks the column 'b'"):
        made.inputs(as_rows({"a": 1, "code": "u"}))


def test_names_may_be_the_integers_of_pandas():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 4)))
    made = from_frame(frame, target=2, drop=0)
    assert made.preprocessing.feature_names == ("1", "3")
    assert from_frame(frame, target=np.int64(2), drop=[0]).x_train.equal(made.x_train)
    assert from_frame(frame.assign(g=np.arange(60) // 5).set_axis(range(5), axis=1), target=[2], group=4).n_inputs == 3


@pytest.mark.parametrize("size", [True, "many", [0.3], {}])
def test_sizes_that_are_no_numbers_are_refused(size):
    with pytest.raises(DataError, match=r"test_size=.* must be a share"):
        from_frame(numbers(), "y", test_size=size)
    assert len(from_frame(numbers(), "y", test_size="0.3").x_test) == 18


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="x has rows of 1 and 2 values; all samples must have the same shape"):
        from_arrays([[1, 2], [3]] * 30, [0, 1] * 30)
    made = from_frame(numbers(), "y").preprocessing
    with pytest.raises(DataError, match="rows of 1 and 2 values"):
        made.inputs([[1, 2], [3]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_of_16_bits_are_taken(dtype):
    x, y = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(60) % 2
    made = from_arrays(x, y)
    assert made.x_train.equal(from_arrays(x.float(), y).x_train)
    assert made.preprocessing.inputs(x).equal(made.preprocessing.inputs(x.float()))


# What is said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["05/01/19", "13/02/19", "20/12/19"], "they look like dates; dates are read in one format per column"),
        (["2019-01-05", "13/02/2019", "1 Feb 2019"], "they look like dates"),
        (["5 January 2020", "Feb 3, 20"], "they look like dates"),
        (["2'468", "124", "1'234.5"], "they look like numbers, which are written without signs or spaces"),
        (["2 468", "1 234"], "they look like numbers"),
        (["2\u202f468", "1\u00a0234,5"], "they look like numbers"),
        (["5.5%", "7%"], "numbers are written without signs such as % and \\$"),
        (["$5.5", "$1,000"], "numbers are written without signs"),
    ],
)
def test_texts_that_are_meant_as_numbers_or_dates_are_said(texts, words):
    frame = with_code(texts)
    found = [note for note in from_frame(frame, "y").notes if note.startswith("warning: column 'code'")]
    assert len(found) == 1
    assert "is taken as words" in found[0]
    assert words.replace("\\", "") in found[0]
    assert not any("taken as words" in note for note in from_frame(frame, "y", keep="code").notes)
    many = with_code([texts[k % len(texts)] for k in range(60)])
    assert not any("taken as words" in note for note in from_frame(many, "y", categories="code").notes)


def test_dates_of_which_each_is_another_say_which_formats_are_read():
    frame = with_code([f"{1 + k % 28:02}/{1 + k // 28:02}/19" for k in range(60)])
    with pytest.raises(DataError, match=r"text of its own .*look like dates.*2020-01-31.*--drop 'code'"):
        from_frame(frame, "y")
    frame = with_code([f"{k + 1}'{k * 7 % 1000:03}" for k in range(60)])
    with pytest.raises(DataError, match="look like numbers, which are written without signs or spaces"):
        from_frame(frame, "y")


@pytest.mark.parametrize(
    "texts", [["A-1", "B-2"], ["1.2.3", "10.20.300"], ["5A", "7B"], ["12-34-56", "40-50-60"], ["mayor", "marshal 20"]]
)
def test_words_with_digits_are_no_mistakes(texts):
    assert not any("warning" in note for note in from_frame(with_code([*texts, "x y"]), "y").notes)
    if texts[0] != "1.2.3":
        assert not any("look like" in note for note in from_frame(with_code(texts), "y").notes)


@pytest.mark.parametrize("form", ["%Y-%m-%d %I:%M %p", "%m/%d/%Y %I:%M:%S %p", "%d.%m.%Y %I:%M %p"])
def test_times_of_twelve_hours_are_read(form):
    times = pd.date_range("2020-01-15 09:30", periods=60, freq="7h30min")[np.random.default_rng(0).permutation(60)]
    frame = with_code(["u"])
    made = from_frame(frame.assign(code=times), "y")
    assert from_frame(frame.assign(code=times.strftime(form)), "y").x_train.equal(made.x_train)


def test_a_constant_target_is_refused():
    frame = numbers().assign(c=1.5)
    with pytest.raises(DataError, match=r"column 'c' holds the one number 1\.5 in all rows; a regression needs"):
        from_frame(frame, "c")
    with pytest.raises(DataError, match=r"column 'c' holds the one number"):
        from_frame(frame, ["a", "c"])
    with pytest.raises(DataError, match=r"arrays: y holds the one number 0\.5"):
        from_arrays(frame[["a", "b"]].to_numpy(), np.full(60, 0.5))


def test_rows_without_a_group_are_groups_of_their_own(tmp_path):
    frame = numbers().assign(g=[None if k % 10 else k for k in range(60)])
    for made in (
        from_frame(frame, "y", group="g"),
        load(written(tmp_path, frame.to_csv(index=False)), target="y", group="g"),
    ):
        assert len(made.x_test) == 12
        assert "warning: column 'g': 54 rows without a group, each taken as one of its own" in made.notes


def test_a_test_far_from_its_size_is_said():
    frame = numbers().assign(g=[max(0, k - 50) for k in range(60)])
    found = [note for note in from_frame(frame, "y", group="g").notes if "as the rows of a group" in note]
    assert len(found) == 1
    assert "instead of 20%" in found[0]
    even = from_frame(frame.assign(g=np.arange(60) // 3), "y", group="g")
    assert not any("of a group" in note for note in even.notes)
    with pytest.raises(DataError, match=r"of 2 groups leaves none to train on; give less"):
        from_frame(frame.assign(g=np.arange(60) // 30), "y", group="g", test_size=0.9)


@pytest.mark.parametrize("line", ["sep=;\n", "sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_a_first_line_that_names_the_separator_is_honoured(tmp_path, line):
    text = numbers().to_csv(index=False, sep=";", decimal=",")
    made = load(written(tmp_path, line + text), target="y")
    assert made.x_train.equal(load(written(tmp_path, text, "plain.csv"), target="y").x_train)
    with pytest.raises(DataError, match=r"row 61 \(line 63\) has 1 cell under a header of 3"):
        load(written(tmp_path, line + text + "x\n"), target="y")


def test_long_cells_are_cut_in_messages():
    long = "word " * 100
    with pytest.raises(DataError) as caught:
        from_frame(with_code([f"{long}{k}" for k in range(60)]), "y")
    assert len(str(caught.value)) < 400
    with pytest.raises(DataError) as caught:
        from_frame(with_code([*map(str, range(59)), long]), "y")
    assert len(str(caught.value)) < 400
    assert all(len(note) < 500 for note in from_frame(with_code([f"{long}{k}" for k in range(5)]), "y").notes)


def test_an_empty_file_says_so(tmp_path):
    for text in ("", "\n\n", "\ufeff"):
        with pytest.raises(DataError, match=r"table\.csv is empty; it needs a line of names"):
            load(written(tmp_path, text))


def test_one_sample_is_no_plural():
    with pytest.raises(DataError, match="has 1 sample; a split"):
        from_arrays([[1.0, 2.0]], [1.5])


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["01005", "1005", "00007"], "category"),
        (["007", "012", "099"], "category"),
        (["0", "10", "20"], "number"),
        (["0.5", "00.5", "7"], "number"),
        (["-01", "5", "7"], "number"),
        (["00:00", "05:30", "12:00"], "category"),
    ],
)
def test_numbers_with_zeros_before_them_are_codes(tmp_path, texts, kind):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"z": [texts[k % 3] for k in range(60)], "a": rng.normal(size=60), "kind": ["p", "q"] * 30})
    made = from_frame(frame)
    assert column(made, "z").kind == kind
    said = [note for note in made.notes if "zeros before" in note]
    assert len(said) == (kind == "category" and ":" not in texts[0])
    if said:
        assert set(column(made, "z").levels) == set(texts)
        assert "warning: column 'z' is taken as categories" in said[0]
        chosen = from_frame(frame, categories="z")
        assert chosen.x_train.equal(made.x_train)
        assert not [note for note in chosen.notes if "zeros before" in note]
        warned = []
        assert table_inputs(frame[["z", "a"]], warned=warned).columns[0].kind == "category"
        assert warned[0].startswith("column 'z' is taken as categories")
    frame.to_csv(tmp_path / "table.csv", index=False)
    before = DataSource(str(tmp_path / "table.csv"), reading={"rules": 1}).load()  # as runs of earlier versions read it
    assert column(before, "z").kind == ("number" if said else kind)


def test_durations_are_read_from_a_file_as_they_were_in_training(tmp_path):
    frame = pd.DataFrame({"t": pd.to_timedelta(np.arange(40) * 1.25, unit="D"), "a": range(40)})
    frame.loc[3, "t"] = pd.NaT
    made = table_inputs(frame)
    made = type(made).from_json(json.loads(json.dumps(made.to_json())))
    frame.to_csv(tmp_path / "new.csv", index=False)
    assert made.transform(read_table(tmp_path / "new.csv")).equal(made.transform(frame))
    days = frame.assign(t=frame.t / pd.Timedelta(1, "D"))
    assert made.transform(days.astype(str)).equal(made.transform(frame))
    with pytest.raises(DataError, match=r"row 0 .*column 't': 'soon' is no duration, such as '61 days', as the column"):
        made.transform(frame.assign(t="soon"))
