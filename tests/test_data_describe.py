"""What `describe` counts: scikit-learn, brute force and published numbers are the oracles."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.utils.class_weight import compute_class_weight

from tunestack.config import DataConfig
from tunestack.data import balanced_class_weights, describe, load_text_data, render
from tunestack.data.describe import suggested_max_length
from tunestack.data.split import conflicting_texts, repeated_rows, shared_rows
from tunestack.errors import UserError


def characters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def test_the_disaster_tweets(shared_data: Path) -> None:
    config = DataConfig(
        train=str(shared_data / "disaster_tweets" / "train.csv"), label="target", labels=["no", "yes"]
    )
    found = describe(config, {"letters": characters})
    assert found.files["train"].rows == 7613
    assert found.files["train"].missing == {"id": 0, "keyword": 61, "location": 2533, "text": 0, "target": 0}
    assert found.whole.label_counts == {"no": 4342, "yes": 3271}
    assert found.whole.class_weights == {"yes": 1.1637114032405993, "no": 0.8766697374481806}
    assert (found.whole.repeated_rows, found.whole.conflicting_texts) == (110, 18)
    assert (found.whole.characters.max, found.whole.tokens["letters"].max) == (157, 157)
    plain = found.splits["plain"]
    train = plain.parts["train"]
    assert (train.rows, plain.parts["validation"].rows) == (6090, 1523)
    assert plain.first_training_row["id"] == "5285"
    assert train.class_weights == {"yes": 1.1622137404580153, "no": 0.877521613832853}
    assert (train.characters.max, train.words.max) == (152, 31)
    assert plain.shared_rows == {"validation in train": 37}
    assert found.used == "grouped"
    assert found.splits["grouped"].shared_rows == {"validation in train": 0}
    data = load_text_data(config.model_copy(update={"group_duplicates": False}))
    assert data.train[0]["row"] == plain.first_training_row["row"]
    assert any("37 of 1,523 validation rows" in warning for warning in data.warnings)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60).filter(lambda ids: len(set(ids)) == 4))
@settings(deadline=None)
def test_class_weights_are_those_of_scikit_learn(ids: list[int]) -> None:
    expected = compute_class_weight("balanced", classes=np.arange(4), y=ids)
    assert balanced_class_weights(ids, 4) == expected.tolist()


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)), min_size=1, max_size=30))
@settings(deadline=None)
def test_duplicates_by_brute_force(rows: list[tuple[str, int]]) -> None:
    texts = [text for text, _ in rows]
    frame = pd.DataFrame(rows, columns=["text", "label"])
    conflicting = {text for text in texts if len({label for other, label in rows if other == text}) > 1}
    assert repeated_rows(frame["text"]) == sum(text in texts[:i] for i, text in enumerate(texts))
    assert conflicting_texts(frame["text"], frame["label"]) == (
        len(conflicting),
        sum(count for text, count in Counter(texts).items() if text in conflicting),
    )
    half = len(texts) // 2
    assert shared_rows(texts[half:], texts[:half]) == sum(text in texts[:half] for text in texts[half:])


@given(st.lists(st.integers(1, 900), min_size=1, max_size=300))
@settings(deadline=None)
def test_suggested_max_length_fits(lengths: list[int]) -> None:
    array = np.array(lengths)
    suggested = suggested_max_length(array)
    assert suggested % 8 == 0
    assert (array <= suggested).mean() >= 0.99
    assert suggested - 8 < array.max()
    if array.max() > suggested:
        assert array.max() > 2 * np.percentile(array, 99, method="inverted_cdf")


def test_given_splits_pairs_and_rendering(tmp_path: Path) -> None:
    train = [("a b", "x", 0), ("a b", "y", 1), ("c | d [bold]", "x", 0), ("a b", "x", 1)]
    validation = [("a b", "x", 0), ("new", "x", 1)]
    for name, rows in (("train", train), ("validation", validation)):
        pd.DataFrame(rows, columns=["one", "two", "[label]"]).to_csv(tmp_path / f"{name}.csv", index=False)
    found = describe(
        DataConfig(
            train=str(tmp_path), text="one", text_pair="two", label="[label]", labels=["[no]", "y|es"]
        ),
        {"letters": characters},
    )
    assert list(found.splits) == ["given"]
    assert found.used == "given"
    assert found.splits["given"].shared_rows == {"validation in train": 1}
    assert found.splits["given"].parts["train"].repeated_rows == 1
    assert found.splits["given"].parts["train"].conflicting_texts == 1
    assert found.whole.words.max == 5
    assert found.whole.tokens["letters"].max == len("c | d [bold]x")
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(found))
    shown = console.export_text()
    for text in (shown, found.to_markdown().replace("\\|", "|")):
        assert "weight of [no]" in text
        assert "y|es" in text
        assert "1 validation in train" in text


def test_missing_values_are_counted_and_left_out_of_the_rest(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(40)]
    labels = ["no", "yes"] * 20
    texts[3], texts[8], labels[9], labels[30] = "", "  ", "", ""
    path = tmp_path / "data.csv"
    pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
    with pytest.raises(UserError, match="no label in 2 of 40 rows: 9, 30"):
        load_text_data(DataConfig(train=str(path)))
    found = describe(DataConfig(train=str(path)))
    assert found.files["train"].rows == 40
    assert found.files["train"].missing == {"text": 1, "label": 2}
    assert found.whole.rows == 36
    assert found.whole.label_counts == {"no": 18, "yes": 18}  # without 8 and 30; without 3 and 9
    assert any("in 4 of 40 rows: 3, 8, 9, 30" in warning for warning in found.warnings)
    for split in found.splits.values():
        first = split.first_training_row
        assert first["text"] == f"text {first['row']}"


def test_data_without_any_label_cannot_be_described(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,\nb,\n")
    with pytest.raises(UserError, match="rows with a text and a label, found none"):
        describe(DataConfig(train=str(path)))


def test_a_class_a_row_is_described_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    pd.DataFrame({"text": [f"text {n}" for n in range(30)], "label": range(30)}).to_csv(path, index=False)
    found = describe(DataConfig(train=str(path)))
    assert any("found 30 values in 30 rows, 30 of them once" in warning for warning in found.warnings)


def test_many_labels_stand_below_each_other(tmp_path: Path) -> None:
    names = ["shipping", "validation", "billing", "refund", "other"]
    path = tmp_path / "tickets.csv"
    pd.DataFrame({"text": [f"text {n}" for n in range(50)], "label": names * 10}).to_csv(path, index=False)
    console = Console(width=80, file=io.StringIO())
    console.print(render(describe(DataConfig(train=str(path)))))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for name in names:
        assert f" {name} " in printed, printed
    assert printed.count("weight of") == len(names)
