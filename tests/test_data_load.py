"""From files to labelled splits, and clear errors for what cannot work."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

import fresh
from tunestack.config import DataConfig
from tunestack.data import TextData, load_text_data
from tunestack.data.sources import PACKAGED, _read_hub, read_source
from tunestack.errors import UserError

ROWS = 40


def write(path: Path, **columns: list[Any]) -> str:
    """A CSV file of texts and labels, unless other columns are given."""
    frame = pd.DataFrame(columns or {"text": [f"text {i}" for i in range(ROWS)], "label": ["no", "yes"] * 20})
    frame.to_csv(path, index=False)
    return str(path)


def texts(rows: int = ROWS, prefix: str = "text") -> list[str]:
    return [f"{prefix} {i}" for i in range(rows)]


def load(source: str | Path, **settings: Any) -> TextData:
    return load_text_data(DataConfig(train=str(source), **settings))


def problems_of(source: str | Path, **settings: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(source, **settings)
    return [str(problem) for problem in caught.value.problems]


def label_of_rows(data: TextData) -> dict[int, str]:
    """The label name of every row of the split file."""
    return {
        row: data.label_names[label]
        for part in (data.train, data.validation)
        for row, label in zip(part["row"], part["label"], strict=True)
    }


def test_rows_texts_and_labels_belong_together(tmp_path: Path) -> None:
    data = load(write(tmp_path / "data.csv"))
    assert data.label_names == ("no", "yes")
    for part in data.splits().values():
        assert part.column_names == ["text", "label", "row"]
        assert all(row["text"] == f"text {row['row']}" and row["label"] == row["row"] % 2 for row in part)
    assert data.test is None
    assert len(data.train) == 32


def test_given_splits_are_kept_in_order(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.csv", text=texts(4, name), label=[0, 1, 0, 1])
    data = load(tmp_path)
    assert {name: part["text"][0] for name, part in data.splits().items()} == {
        "train": "train 0",
        "validation": "dev 0",
        "test": "test 0",
    }
    assert data.train["row"] == [0, 1, 2, 3]
    other = write(tmp_path / "other.csv", text=texts(4, "other"), label=[1, 0, 1, 0])
    overridden = load(tmp_path, validation=other)
    assert overridden.validation["text"] == texts(4, "other")
    assert overridden.fingerprint != data.fingerprint


def test_a_test_file_that_came_without_labels_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    unlabelled = write(tmp_path / "test.csv", text=texts(4, "test"))
    data = load(tmp_path)
    assert data.test is None
    assert any("test.csv has no labels" in warning for warning in data.warnings)
    assert "a column 'label'" in problems_of(tmp_path, test=unlabelled)[0]


@pytest.mark.parametrize(
    ("values", "settings", "names", "first"),
    [
        ([0, 1], {}, ("0", "1"), "0"),
        ([10, 9], {}, ("9", "10"), "10"),
        (["ham", "Eggs"], {}, ("Eggs", "ham"), "ham"),
        ([" ham", "spam"], {}, ("ham", "spam"), "ham"),
        ([0, 1], {"labels": ["no", "yes"]}, ("no", "yes"), "no"),
        (["no", "yes"], {"labels": ["yes", "no"]}, ("yes", "no"), "no"),
        ([4, 2], {"labels": {"2": "low", "4": "high"}}, ("low", "high"), "high"),
        ([0, 1], {"positive_label": "0"}, ("1", "0"), "0"),
        ([0, 1], {"labels": ["bad", "good"], "positive_label": "bad"}, ("good", "bad"), "bad"),
        ([True, False], {"labels": {"true": "yes", "false": "no"}}, ("yes", "no"), "yes"),
    ],
)
def test_labels(
    tmp_path: Path, values: list[Any], settings: dict[str, Any], names: tuple[str, ...], first: str
) -> None:
    records = [{"text": f"text {i}", "label": values[i % 2]} for i in range(ROWS)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    data = load(path, **settings)
    assert data.label_names == names
    other = next(name for name in names if name != first)
    assert label_of_rows(data) == {row: other if row % 2 else first for row in range(ROWS)}


def test_several_values_may_share_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "stars.csv", text=texts(), label=[1, 2, 3, 4] * 10)
    data = load(path, labels={"1": "bad", "2": "bad", "3": "good", "4": "good"})
    assert data.label_names == ("bad", "good")
    assert label_of_rows(data)[1] == "bad"


def test_labels_from_yaml_may_be_numbers_and_truth_values() -> None:
    config = DataConfig(
        **yaml.safe_load("{train: a.csv, labels: {0: no disaster, true: disaster}, positive_label: 1}")
    )
    assert config.labels == {"0": "no disaster", "true": "disaster"}
    assert config.positive_label == "1"


def test_sentence_pairs(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", premise=texts(), hypothesis=texts(prefix="other"), label=[0, 1] * 20)
    data = load(tmp_path / "p.csv", text="premise", text_pair="hypothesis")
    assert all(row["text_pair"] == f"other {row['row']}" for row in data.train)


def test_texts_that_pandas_takes_for_missing_stay_text(tmp_path: Path) -> None:
    words = ["NA", "null", "None", "nan", "N/A", "NULL", "-", "NaN"]
    path = write(tmp_path / "data.csv", text=words * 5, label=[0, 1] * 20)
    data = load(path, group_duplicates=False)
    assert set(data.train["text"]) | set(data.validation["text"]) == set(words)


def test_warnings_name_overlap_conflicts_imbalance_and_unused_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.csv",
        text=["same"] * 4 + texts(56),
        label=[0, 0, 0, 1] + [0] * 52 + [1] * 4,
        user=["somebody"] * 60,
    )
    plain = load(path, group_duplicates=False, seed=3)
    shared = sum(text == "same" for text in plain.validation["text"])
    assert shared, "the seed must leave a repeated text in validation"
    found = " ".join(plain.warnings)
    assert f"{shared} of 12 validation rows have a text that is also in train" in found
    assert "3 of 60 rows repeat" in found
    assert "1 texts carry different labels in different rows (4 rows)" in found
    assert "imbalanced" in found
    assert "not used: user" in found
    assert "also in train" not in " ".join(load(path, seed=3).warnings)
    test = write(tmp_path / "t.csv", text=["text 1", "new", "text 2"], label=[0, 1, 0])
    assert any("2 of 3 test rows" in warning for warning in load(path, seed=3, test=test).warnings)


def test_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv")
    same = write(tmp_path / "copy.csv")
    fingerprint = load(path).fingerprint
    assert load(same).fingerprint == fingerprint
    assert load(path, seed=1).fingerprint != fingerprint
    assert load(path, positive_label="no").fingerprint != fingerprint
    frame = pd.read_csv(path)
    frame.loc[7, "text"] += "."
    frame.to_csv(path, index=False)
    assert load(path).fingerprint != fingerprint


def test_hub_columns_and_class_names(tmp_path: Path) -> None:
    """The Hub's own loader on a local folder: declared class names are used, -1 means no label."""
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["world", "sports"]), "tags": [Value("string")]}
    )
    for split, labels in (("train", [0, 1, 0]), ("test", [-1, -1, -1])):
        columns = {"text": texts(3, split), "label": labels, "tags": [["a"]] * 3}
        Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{split}.parquet")
    tables = _read_hub(str(tmp_path), None)
    assert tables["train"].classes == {"label": ("world", "sports")}
    assert tables["train"].frame.to_dict("list") == {
        "text": texts(3, "train"),
        "label": ["world", "sports", "world"],
        "tags": [["a"]] * 3,
    }
    assert tables["test"].frame["label"].tolist() == [None] * 3


def test_hub_out_of_reach_names_local_alternatives() -> None:
    """In a process of its own: offline mode is read when the library is imported."""
    code = "from tunestack.config import DataConfig; from tunestack.data import load_text_data\n"
    code += "load_text_data(DataConfig(train='someone/some-dataset'))"
    last = fresh.python(code).err.strip().splitlines()[-1]
    assert last.startswith("tunestack.errors.UserError: data.train 'someone/some-dataset'")
    assert "a local file (.csv" in last
    assert "packaged:emergencies" in last


def test_packaged_names_are_checked_and_the_corpus_loads() -> None:
    assert "Did you mean 'packaged:emergencies'?" in problems_of("packaged:emergency")[0]
    if not (PACKAGED["packaged:emergencies"] / "train.csv").exists():
        pytest.skip("the packaged corpus is not there")
    assert set(read_source(DataConfig(train="packaged:emergencies"))) == {"train", "validation", "test"}
    assert load("packaged:emergencies").test is not None


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"text": texts(4), "label": [1] * 4}, {}, "at least two classes, found only '1'"),
        ({"texts": texts(4), "label": [0, 1] * 2}, {}, "Did you mean 'texts'?"),
        ({"text": [1.5, 2, 3, 4], "label": [0, 1] * 2}, {}, "numbers only, such as 1.5"),
        ({"text": ["a", "", None, " "], "label": [0, 1] * 2}, {}, "no value in 3 of 4 rows: 1, 2, 3"),
        ({"text": texts(4), "label": [0, 1, None, 0]}, {}, "no label in 1 of 4 rows: 2"),
        ({"text": texts(4), "label": ["a", "b", "c", "b"]}, {"labels": ["a", "b"]}, "'c' in 1 of 4 rows: 2"),
        ({"text": texts(4), "label": [0, 1, 2, 1]}, {"labels": ["a", "b"]}, "'2' in 1 of 4 rows: 2"),
        ({"text": texts(4), "label": [0, 1, 0, 1]}, {"labels": ["1", "2"]}, "'0' in 2 of 4 rows: 0, 2"),
        (
            {"text": texts(4), "label": ["ham", "spam"] * 2},
            {"positive_label": "spma"},
            "Did you mean 'spam'?",
        ),
        (
            {"text": texts(6), "label": [0, 1, 2] * 2},
            {"positive_label": "1"},
            "expected two classes, found 3",
        ),
        ({"text": texts(6), "label": [0, 0, 0, 0, 0, 1]}, {}, "the validation split"),
        ({"text": texts(4), "label": [0, 1] * 2}, {"label": "text"}, "a column for each"),
        ({"text": texts(4), "label": [0, 1] * 2}, {"subset": "en"}, "data.subset"),
        (
            {"text": texts(4), "tweet": texts(4), "label": [0, 1] * 2},
            {"columns": {"text": "tweet"}},
            "data.columns: expected none: data.text, data.text_pair and data.label name what is read",
        ),
        ({"text": ["same"] * 4, "label": [0, 1] * 2}, {}, "1 distinct texts"),
        ({"text": texts(4), "label": [0, 1] * 2}, {"train_size": 0.1}, "data.train_size"),
        (
            {"text": texts(9), "label": [*range(8), 0]},
            {},
            "found 8 values in 9 rows, 7 of them once. Is 'label'",
        ),
        ({"text": texts(4), "user": [*"abcd"]}, {"label": "user"}, "The columns are text, user."),
    ],
)
def test_bad_input(tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], expected: str) -> None:
    path = write(tmp_path / "data.csv", **columns)
    assert any(expected in problem for problem in problems_of(path, **settings))


def test_a_class_that_a_given_split_lacks(tmp_path: Path) -> None:
    validation = write(tmp_path / "v.csv", text=texts(3), label=["yes"] * 3)
    (problem,) = problems_of(write(tmp_path / "t.csv"), validation=validation)
    assert "the validation split: expected rows of every class, found none of 'no'" in problem


def test_non_text_values(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"text": 1, "label": 0}\n{"text": ["a"], "label": {"x": 1}}\n{"text": "a", "label": 1}\n'
    )
    found = " ".join(problems_of(path))
    assert "int values in 1 of 3 rows: 0" in found
    assert "list values in 1 of 3 rows: 1" in found
    assert "lists or objects in 1 of 3 rows: 1" in found


def test_all_problems_of_all_files_are_collected(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", text=["a", None], label=[0, 1])
    validation = tmp_path / "validation.csv"
    validation.write_text("text,label\nshort\n")
    found = problems_of(
        train, validation=str(validation), test=str(tmp_path / "tests.csv"), positive_label="x"
    )
    assert len(found) == 4
    for expected in (
        "no value in 1 of 2 rows",
        "validation.csv line 2",
        "nothing of this name",
        "positive_label",
    ):
        assert any(expected in problem for problem in found)


def test_folders_without_or_with_two_train_files(tmp_path: Path) -> None:
    write(tmp_path / "tweets.csv")
    assert "found tweets.csv" in problems_of(tmp_path)[0]
    write(tmp_path / "train.csv")
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0\n")
    assert "one file for train, found train.csv, train.tsv" in problems_of(tmp_path)[0]


def test_glue_files(shared_data: Path) -> None:
    """Row counts as GLUE publishes them; literal quotes must not swallow rows."""
    sst2 = load(shared_data / "glue" / "SST-2", text="sentence")
    assert (len(sst2.train), len(sst2.validation)) == (67_349, 872)
    rte = load(shared_data / "glue" / "RTE", text="sentence1", text_pair="sentence2")
    assert (len(rte.train), len(rte.validation)) == (2_490, 277)
    assert rte.label_names == ("entailment", "not_entailment")
