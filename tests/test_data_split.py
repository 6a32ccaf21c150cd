"""Splits: `datasets` is the oracle, and identical texts stay on one side."""

from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tunestack.data import split_train_validation
from tunestack.data.split import normal_form
from tunestack.errors import UserError

sizes = st.floats(0.2, 0.9)
seeds = st.integers(0, 2**32 - 1)


def numbered(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts, "row": list(range(len(texts)))})


@given(rows=st.integers(10, 60), train_size=sizes, seed=seeds)
@settings(deadline=None, max_examples=40)
def test_plain_split_is_that_of_datasets(rows: int, train_size: float, seed: int) -> None:
    dataset = numbered([f"text {i}" for i in range(rows)])
    expected = dataset.train_test_split(train_size=train_size, seed=seed)
    for group_by in (None, "text"):  # without duplicates grouping changes nothing
        train, validation = split_train_validation(dataset, train_size, seed, group_by)
        assert train["row"] == expected["train"]["row"]
        assert validation["row"] == expected["test"]["row"]


@given(
    texts=st.lists(st.integers(0, 30).map("text {}".format), min_size=20, max_size=80).filter(
        lambda texts: len(set(texts)) > 3
    ),
    train_size=st.floats(0.3, 0.8),
    seed=seeds,
)
@settings(deadline=None, max_examples=60)
def test_grouped_split_keeps_texts_together(texts: list[str], train_size: float, seed: int) -> None:
    dataset = numbered([text.replace(" ", "  " * (i % 2 + 1)) for i, text in enumerate(texts)])
    try:
        train, validation = split_train_validation(dataset, train_size, seed, "text")
    except UserError:  # one text may fill nearly all rows
        assert max(Counter(texts).values()) > 0.2 * len(texts)
        return
    assert sorted([*train["row"], *validation["row"]]) == list(range(len(texts)))
    assert not set(map(normal_form, train["text"])) & set(map(normal_form, validation["text"]))
    plain = dataset.train_test_split(train_size=train_size, seed=seed)["train"].num_rows
    assert abs(train.num_rows - plain) <= max(Counter(texts).values())
    again = split_train_validation(dataset, train_size, seed, "text")[0]
    assert again["row"] == train["row"]


def test_many_small_groups_meet_the_planned_size() -> None:
    dataset = numbered([f"text {i // 3}" for i in range(3000)])
    train, _ = split_train_validation(dataset, 0.8, 1, "text")
    assert abs(train.num_rows - 2400) <= 1


def test_a_groups_chance_of_training_is_its_share() -> None:
    """Duplicated texts land in training as often as others do."""
    shares = []
    for seed in range(20):
        dataset = numbered([f"text {i // 2}" for i in range(200)] + [f"single {i}" for i in range(200)])
        train, _ = split_train_validation(dataset, 0.75, seed, "text")
        shares.append(sum(row < 200 for row in train["row"]) / 200)
    assert sum(shares) / len(shares) == pytest.approx(0.75, abs=0.02)


def test_pairs_are_grouped_by_both_texts() -> None:
    dataset = Dataset.from_dict({"text": ["same"] * 40, "text_pair": [f"other {i // 2}" for i in range(40)]})
    train, validation = split_train_validation(dataset, 0.5, 0, ["text", "text_pair"])
    assert abs(train.num_rows - validation.num_rows) <= 2
    assert not set(train["text_pair"]) & set(validation["text_pair"])


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(UserError, match="1 distinct texts"):
        split_train_validation(numbered(["same"] * 10), 0.8, 0, "text")
    with pytest.raises(UserError, match="rows on both sides"):
        split_train_validation(numbered(["one", "two"]), 0.2, 0, None)
