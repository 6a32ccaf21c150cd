"""Multi-label classification: data in all its forms, loss, metrics and statistics, what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification

import fresh
import oracle
import tiny
from task_samples import FLAGS
from tunestack.baselines.logistic import LogisticOptions
from tunestack.baselines.majority import Majority, MajorityOptions
from tunestack.baselines.one_vs_rest import fit_one_vs_rest
from tunestack.comparison.statistics import summarize
from tunestack.config import DataConfig
from tunestack.data import TextData
from tunestack.data.flags import load_flags, with_every_label
from tunestack.data.sources import Table, _hub_table
from tunestack.errors import UserError
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.flag_metrics import METRICS, FlagAnswers, flag_metrics
from tunestack.tasks.multi_label import MultiLabel, MultiLabelOptions

LISTS: list[list[str]] = [["a", "b"], ["a"], [], ["b", "c"], ["c"], ["a", "c"], ["b"], ["a", "b", "c"]]


def write(folder: Path, labels: list[Any], name: str = "train.jsonl", **columns: list[Any]) -> Path:
    path = folder / name
    rows = [{"text": f"text number {i}", "label": label} for i, label in enumerate(labels)]
    for column, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[column] = value
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, separator: str | None = None, columns: tuple[str, ...] = (), **fields: Any) -> TextData:
    return load_flags(DataConfig(train=str(path), **fields), separator, columns)


def found(data: TextData) -> dict[int, list[str]]:
    """Every row's labels by name, of all splits."""
    return {
        row: [name for name, flag in zip(data.label_names, flags, strict=True) if flag]
        for split in data.splits().values()
        for row, flags in zip(split["row"], split["label"], strict=True)
    }


def problems(function: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **named)
    return str(error.value)


# Data


def test_lists_text_and_columns_of_flags_mean_the_same(tmp_path: Path) -> None:
    expected = dict(enumerate(LISTS))
    lists = load(write(tmp_path, LISTS))
    assert found(lists) == expected
    assert lists.label_names == ("a", "b", "c")
    assert found(load(write(tmp_path, [" , ".join(row) for row in LISTS], "commas.csv"))) == expected
    piped = write(tmp_path, ["|".join(row) for row in LISTS], "pipes.csv")
    assert found(load(piped, "|")) == expected
    flags = {name: [int(name in row) for row in LISTS] for name in "abc"}
    for kind, values in (("int", flags), ("bool", {n: [bool(x) for x in v] for n, v in flags.items()})):
        path = write(tmp_path, [0] * len(LISTS), f"{kind}.csv", **values)
        assert found(load(path, None, ("a", "b", "c"))) == expected
    named = load(tmp_path / "int.csv", None, ("c", "a", "b"), labels={"a": "A", "b": "B", "c": "C"})
    assert named.label_names == ("C", "A", "B")


def test_ids_get_the_names_that_are_given(tmp_path: Path) -> None:
    ids = write(tmp_path, [["abc".index(name) for name in row] for row in LISTS])
    assert found(load(ids, labels=["a", "b", "c"])) == dict(enumerate(LISTS))
    assert load(ids).label_names == ("0", "1", "2")


def test_a_hub_data_set_names_the_labels_of_its_lists() -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["x", "y"]))})
    table = _hub_table("hub", Dataset.from_dict({"text": ["s", "t"], "label": [[1, 0], []]}, features))
    assert isinstance(table, Table)
    assert table.frame["label"].tolist() == [["y", "x"], []]
    assert table.classes == {"label": ("x", "y")}


def test_what_no_label_can_be_is_told_by_row(tmp_path: Path) -> None:
    mixed = write(tmp_path, [["a", "b"], "['a']", [None], {"a": 1}, ["b"]])
    told = problems(load, mixed)
    assert "lists written as text in 1 of 5 rows: 1 " in told
    assert "what is no label in 2 of 5 rows: 2, 3 " in told
    flags = write(tmp_path, [0] * 4, "flags.jsonl", a=[0, 1, None, 2], b=[0, 1, 1, 0])
    told = problems(load, flags, None, ("a", "b", "k"))
    assert "a column 'k'" in told
    told = problems(load, flags, None, ("a", "b"))
    assert "None and the like in 2 of 4 rows: 2, 3 " in told
    told = problems(load, flags, None, ("a", "b"), label="labels")
    assert "data.label: expected none: label_columns name the labels, found 'labels'" in told


def test_lines_that_are_left_out_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, ["a,b", "a", "b"] * 4, "train.csv")
    path.write_text(path.read_text() + "broken\n")
    assert "line 14" in problems(load, path)
    data = load(path, skip_bad_rows=True)
    assert len(found(data)) == 12
    assert f"{path}: 1 malformed lines are left out, such as line 14." in data.warnings


def test_another_separator_is_asked_for_and_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path, ["a|b", "a", "b|c", "c", "a|b", "b|c", "a", "c"] * 3, "pipes.csv")
    assert "separator: '|'" in problems(load, path)
    data = load(path, ",")
    assert data.label_names == ("a", "a|b", "b|c", "c")
    assert any("No text has more than one label" in warning for warning in data.warnings)


def test_labels_that_training_does_not_show_are_refused(tmp_path: Path) -> None:
    train, validation = write(tmp_path, LISTS), write(tmp_path, [["a", "d"], ["b"]], "other.jsonl")
    assert "no row with 'd'" in problems(load, train, validation=str(validation))
    told = problems(load, train, validation=str(validation), labels=["a", "b", "c"])
    assert "'d' in 1 of 2 rows: 0 " in told
    assert "no row with 'e'" in problems(load, train, labels=["a", "b", "c", "e"])
    fine = load(train, validation=str(write(tmp_path, [["a"], ["b"]], "fine.jsonl")))
    assert "The validation split has no row with 'c': nothing is measured about it there." in fine.warnings
    assert "1 of 8 train rows have no label." in fine.warnings


def test_one_label_alone_and_a_positive_one_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [["a"], [], ["a"]])
    told = problems(load, path, positive_label="a")
    assert "at least two labels, found only 'a'" in told
    told = problems(load, write(tmp_path, LISTS), positive_label="a")
    assert "data.positive_label" in told
    named = DataConfig(train=str(path), columns={"text": "tweet"})
    assert "data.columns: expected none" in problems(load_flags, named, None, ())


@given(st.integers(0, 2**32), st.integers(4, 30), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_every_label_that_can_be_is_in_training(seed: int, rows: int, labels: int) -> None:
    random = np.random.default_rng(seed)
    flags = (random.random((rows, labels)) < 0.15).astype(int)
    groups = random.integers(0, rows, rows).tolist()
    side = np.isin(groups, random.permutation(rows)[: rows // 2])  # groups are on one side
    train, validation = np.flatnonzero(side), np.flatnonzero(~side)
    if not len(train) or not len(validation):
        return
    ours, rest = with_every_label(train, validation, flags, groups)
    assert sorted([*ours, *rest]) == list(range(rows))
    assert len(rest)
    assert not {groups[row] for row in ours} & {groups[row] for row in rest}
    one_text = len({groups[row] for row in rest}) == 1
    assert one_text or (flags[ours].any(axis=0) == flags.any(axis=0)).all()


def test_our_split_keeps_equal_texts_together(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"text": f"text {i // 3}", "label": LISTS[i % 8]} for i in range(48)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load(path)
    assert not set(data.train["text"]) & set(data.validation["text"])
    assert any("carry different labels" in warning for warning in data.warnings)
    plain = load(path, group_duplicates=False)
    assert set(plain.train["text"]) & set(plain.validation["text"])


# Loss


def test_the_loss_is_transformers_own(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    task = MultiLabel(tiny.FLAG_NAMES)
    encoded = task.encode(base, FLAGS["train"], 64)
    loaded = base.load_model(task.auto_class, task.model_config(base))
    rows = np.arange(6)
    targets = task.targets(encoded, rows)
    output = loaded.model(**task.batch([(encoded, rows)], 0, [0]), labels=targets.float())
    torch.testing.assert_close(task.loss(output.logits, targets, None), output.loss)


def test_balanced_weights_are_negatives_by_positives(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    task = MultiLabel(tiny.FLAG_NAMES)
    encoded = task.encode(
        base, {"text": ["x"] * 4, "label": [[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]]}, 64
    )
    weights = task.class_weights("balanced", encoded, torch.device("cpu"))
    assert weights is not None
    assert weights.tolist() == pytest.approx([3.0, 3.0, 0.25])
    given = task.class_weights([1.0, 2.0, 3.0], encoded, torch.device("cpu"))
    assert given is not None
    assert given.tolist() == [1.0, 2.0, 3.0]
    logits, targets = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[1, 0, 1]])
    p = torch.sigmoid(logits)
    by_hand = -(3 * p[0, 0].log() + (1 - p[0, 1]).log() + 0.25 * p[0, 2].log()) / 3
    torch.testing.assert_close(task.loss(logits, targets, weights), by_hand)


# Metrics


def answers(seed: int, n: int, labels: int, seeds: int = 1) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    flags = (random.random((n, labels)) < 0.3).astype(np.int64)
    noise = random.random((seeds, n, labels))
    return flags, np.round(0.3 * flags + 0.7 * noise, 2)


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 6), st.sampled_from([0.5, 0.3, 0.9]))
@settings(max_examples=80, deadline=None)
def test_metrics_are_scikit_learns_and_those_of_the_sums(
    seed: int, n: int, labels: int, threshold: float
) -> None:
    flags, probabilities = answers(seed, n, labels)
    given = flag_metrics(flags, probabilities[0], threshold)
    table = FlagAnswers.of(flags, probabilities, threshold)
    rows, statistics = table.statistics()
    sums = table.counts(np.einsum("g,gsk->sk", rows, statistics.astype(float)))
    for name, metric in METRICS.items():
        if metric.from_counts is not None:
            assert float(metric.from_counts(sums)[0]) == pytest.approx(given[name], abs=1e-6), name
    predicted = probabilities[0] >= threshold
    assert given["accuracy"] == (predicted == flags).all(axis=1).mean()
    assert table.right[0].mean() == given["accuracy"]
    if "roc_auc_macro" in given:
        estimate = table.estimate("roc_auc_macro", 0, 0)
        assert estimate is not None
        assert estimate[0][0] == pytest.approx(given["roc_auc_macro"])


def test_intervals_are_those_of_resampling_texts_one_by_one() -> None:
    flags, probabilities = answers(5, 150, 3)
    summaries = summarize(FlagAnswers.of(flags, probabilities, 0.5))
    whole = flag_metrics(flags, probabilities[0], 0.5)
    assert set(summaries) == set(whole) == set(METRICS)
    random = np.random.default_rng(0)
    drawn = [
        flag_metrics(flags[rows], probabilities[0][rows], 0.5)
        for rows in random.integers(150, size=(400, 150))
    ]
    for metric, summary in summaries.items():
        width = summary.interval.high - summary.interval.low
        error = float(np.std([one[metric] for one in drawn]))
        assert summary.mean == pytest.approx(whole[metric], abs=1e-6)
        assert width == pytest.approx(2 * 1.976 * error, rel=0.15), metric


def test_the_threshold_says_what_is_predicted() -> None:
    given = np.asarray([[0.5, 0.49, 0.9], [0.1, 0.2, 0.3]])
    split = {"text": ["s", "t"], "label": [[1, 0, 1], [0, 0, 0]]}
    plain = MultiLabel(tiny.FLAG_NAMES)
    assert plain.told(split, given)["prediction"] == ["a,e", ""]
    low = MultiLabel(tiny.FLAG_NAMES, MultiLabelOptions(separator="|", threshold=0.3))
    assert low.told(split, given)["prediction"] == ["a|b|e", "e"]
    assert low.truth(split) == {"label": ["a|e", ""]}
    assert plain.scores(split, given)["accuracy"] == 1.0
    assert low.scores(split, given)["accuracy"] == 0.0
    assert plain.label_counts(split) == [1, 0, 1]
    assert sk.hamming_loss(split["label"], given >= 0.3) == pytest.approx(
        1 - low.scores(split, given)["hamming_accuracy"]
    )


# Baselines


@pytest.mark.parametrize("weights", [None, "balanced", [0.5, 2.0, 3.0]])
def test_one_regression_a_label_is_scikit_learns(weights: Any) -> None:
    random = np.random.default_rng(3)
    features, (flags, _) = random.normal(size=(60, 5)), answers(2, 60, 3)
    fitted = fit_one_vs_rest(features, flags, LogisticOptions(class_weight=weights))
    for label, own in enumerate(flags.T):
        theirs = {0: 1.0, 1: weights[label]} if isinstance(weights, list) else weights
        model = LogisticRegression(class_weight=theirs, max_iter=1000).fit(features, own)
        np.testing.assert_allclose(fitted.answers(features)[:, label], model.predict_proba(features)[:, 1])
    always = np.column_stack([flags[:, 0], np.ones(60, dtype=int), np.zeros(60, dtype=int)])
    constant = fit_one_vs_rest(features, always, LogisticOptions()).answers(features)
    np.testing.assert_allclose(constant[:, 1], 60.5 / 61)
    np.testing.assert_allclose(constant[:, 2], 0.5 / 61)


def test_the_majority_of_flags_is_the_share_of_each() -> None:
    flags = np.asarray([[1, 0, 1], [1, 0, 0]])
    task = MultiLabel(tiny.FLAG_NAMES)
    fitted = Majority().fit(task, {"text": ["a", "b"], "label": flags}, MajorityOptions(), None)
    assert fitted.answers(task, {"text": ["c"]}).tolist() == [[1.0, 0.0, 0.5]]


# What is saved


LOAD = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
place = json.load(open(sys.argv[1]))
model = AutoModelForSequenceClassification.from_pretrained(place["base"], num_labels=3, dtype="float32")
model = PeftModel.from_pretrained(model, place["adapter"]).eval()
with torch.no_grad():
    print(json.dumps(model(**{k: torch.tensor(v) for k, v in place["batch"].items()}).logits.tolist()))
assert "tunestack" not in sys.modules
"""


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_the_saved_adapter_loads_in_plain_peft(method: str, tmp_path: Path) -> None:
    saved = tiny.save_base(tmp_path, "bert")
    base = tiny.open_base(str(saved))
    task = MultiLabel(tiny.FLAG_NAMES)
    loaded = base.load_model(task.auto_class, task.model_config(base))
    stack = Stack(Workload(base, task, FLAGS, "f1_micro"), loaded)
    fields = {"num_virtual_tokens": 3} if method == "prompt" else {}
    slot = stack.open(tiny.trial(base, "one", 1, method, **fields))
    oracle.disturb(slot)
    oracle.save(tmp_path / "adapter", stack, slot)
    encoded = task.encode(base, FLAGS["test"], 64)
    expected = stack.answers([slot], encoded)[0].given
    place = {
        "base": str(saved),
        "adapter": str(tmp_path / "adapter"),
        "batch": {k: v.tolist() for k, v in task.batch([(encoded, np.arange(9))], 0, [0]).items()},
    }
    (tmp_path / "asked.json").write_text(json.dumps(place))
    done = fresh.python(LOAD, tmp_path / "asked.json")
    assert done.code == 0, done.err
    logits = torch.tensor(json.loads(done.out.splitlines()[-1]))
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), expected, atol=1e-5)


def test_a_whole_model_says_which_loss_it_has(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    task = MultiLabel(tiny.FLAG_NAMES)
    loaded = base.load_model(task.auto_class, task.model_config(base))
    loaded.model.save_pretrained(tmp_path / "whole")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert again.config.problem_type == "multi_label_classification"
    assert again.config.id2label == {0: "a", 1: "b", 2: "e"}
