"""Settings: what YAML means, what is refused and how it is told, and the way there and back."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunestack.config import CompareConfig, DataConfig, MethodConfig, TrainingConfig
from tunestack.differences import differences, same
from tunestack.errors import Problem, UserError
from tunestack.search.config import SweepConfig
from tunestack.settings import checked, overlay, read_settings, read_yaml, to_yaml, validated


def _read(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def _problems(caught: pytest.ExceptionInfo[UserError]) -> dict[str, Problem]:
    return {problem.where: problem for problem in caught.value.problems}


NUMBERS = [("1e-4", 1e-4), ("5E-05", 5e-5), ("+2e3", 2e3), ("0.1", 0.1), (".5", 0.5), ("3", 3), ("-7", -7)]
TEXTS = ["no", "yes", "on", "off", "12:30", "007", "2024-01-01", "1_000", "0x1F", "1e", "e5", "=", "1.2.3"]


@pytest.mark.parametrize(("text", "value"), [*NUMBERS, ("true", True), ("null", None), ("~", None)])
def test_numbers_and_truth_values(tmp_path: Path, text: str, value: object) -> None:
    found = _read(tmp_path, f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", TEXTS)
def test_labels_that_other_readers_take_for_numbers_or_dates_are_text(tmp_path: Path, text: str) -> None:
    assert _read(tmp_path, f"labels: [{text}, {text}x]") == {"labels": [text, f"{text}x"]}


def test_labels_of_yaml_are_the_texts_of_data_files() -> None:
    config = DataConfig(train="x.csv", labels={0: "no", 1: "yes", "true": True})
    assert config.labels == {"0": "no", "1": "yes", "true": "true"}


def test_anchors_work_and_python_objects_do_not(tmp_path: Path) -> None:
    assert _read(tmp_path, "a: &x {r: 8}\nb:\n  <<: *x\n  q: 1")["b"] == {"r": 8, "q": 1}
    with pytest.raises(UserError, match="could not determine a constructor"):
        _read(tmp_path, "a: !!python/object/apply:os.getcwd []")


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("data: [1\nmethods: x", "c.yaml line 2", "expected ',' or ']'"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "c.yaml line 4", "'c' is there more than once"),
        ("? [a, b]\n: 1", "c.yaml line 1", "unhashable key"),
        ("a: 1\n\tb: 2", "c.yaml line 2", "cannot start any token"),
        ("", "c.yaml", "nothing in it"),
        ("- a\n- b", "c.yaml", "a list"),
        ("just text", "c.yaml", "a str"),
    ],
)
def test_what_is_no_mapping_or_no_yaml_is_told_with_its_line(
    tmp_path: Path, text: str, where: str, found: str
) -> None:
    with pytest.raises(UserError) as caught:
        _read(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.where.endswith(where)
    assert found in problem.found


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "tweets.yaml").touch()
    with pytest.raises(UserError, match=r"Did you mean 'tweets\.yaml'"):
        read_yaml(tmp_path / "twets.yaml")
    with pytest.raises(UserError, match=re.escape(f"There is no YAML file in {tmp_path / 'nowhere'}.")):
        read_yaml(tmp_path / "nowhere" / "twets.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfea")
    with pytest.raises(UserError, match=r"b.yaml: expected a YAML file, found .*utf-8"):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        read_yaml(tmp_path)


def test_methods_by_bare_name_and_with_their_own_fields_beside() -> None:
    assert MethodConfig.model_validate("tfidf") == MethodConfig(method="tfidf")
    beside = MethodConfig.model_validate({"method": "lora", "r": 8, "training": {"epochs": 1}, "name": "x"})
    inside = MethodConfig(method="lora", name="x", config={"r": 8}, training={"epochs": 1})
    assert beside == inside
    assert MethodConfig.model_validate({"method": "lora", "config": {"r": 4}, "bias": "all"}).config == {
        "r": 4,
        "bias": "all",
    }


@pytest.mark.parametrize(("given", "seeds"), [(1, [1]), (3, [1, 2, 3]), ([5, 0], [5, 0])])
def test_seeds_are_a_number_or_a_list(given: object, seeds: list[int]) -> None:
    values = {"data": {"train": "x"}, "methods": ["majority"], "seeds": given}
    assert validated(CompareConfig, values).seeds == seeds


GOOD = {"data": {"train": "x.csv"}, "methods": ["majority"]}
WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    ({"seeds": 0}, "seeds", "at least 1", "0"),
    ({"seeds": -2}, "seeds", "at least 1", "-2"),
    ({"seeds": []}, "seeds", "at least 1", "[]"),
    ({"seeds": [3, 3]}, "seeds", "different numbers", "[3, 3]"),
    ({"seeds": [-1]}, "seeds", "0 or more", "[-1]"),
    ({"slots": 0}, "slots", "greater than or equal to 1", "0"),
    ({"methods": []}, "methods", "at least 1 item", "[]"),
    ({"methods": "lora"}, "methods", "a valid list", "'lora'"),
    ({"methods": [3]}, "methods.0", "a mapping", "3"),
    ({"methods": [{"r": 8}]}, "methods.0.method", "a value", "none"),
    ({"methods": [{"method": "lora", "grid": {"r": 8}}]}, "methods.0.grid.r", "a valid list", "8"),
    ({"methods": [{"method": "lora", "grid": {"r": []}}]}, "methods.0.grid.r", "at least 1 item", "[]"),
    ({"methods": [{"method": "lora", "config": 8, "r": 2}]}, "methods.0.config", "a mapping", "8"),
    ({"bases": "bert"}, "bases", "a valid list", "'bert'"),
    ({"bases": [{"model": "b", "dtype": "int3"}]}, "bases.0.dtype", "'auto', 'float32'", "'int3'"),
    ({"output": ""}, "output", "at least 1 character", "''"),
    ({"training": None}, "training", "a mapping", "None"),
    ({"data": "x.csv"}, "data", "a mapping", "'x.csv'"),
    ({"data": {}}, "data.train", "a value", "none"),
    ({"data": {"train": "x", "train_size": 1}}, "data.train_size", "less than 1", "1"),
    ({"data": {"train": "x", "labels": 3}}, "data.labels", "a mapping or a valid list", "3"),
    ({"training": {"batch_size": 0}}, "training.batch_size", "greater than or equal to 1", "0"),
    ({"training": {"batch_size": 2.5}}, "training.batch_size", "a valid integer", "2.5"),
    ({"training": {"epochs": 0}}, "training.epochs", "greater than 0", "0"),
    ({"training": {"epochs": math.inf}}, "training.epochs", "a finite number", "inf"),
    ({"training": {"learning_rate": -1}}, "training.learning_rate", "greater than 0", "-1"),
    ({"training": {"learning_rate": "fast"}}, "training.learning_rate", "a valid number", "'fast'"),
    ({"training": {"class_weights": "balance"}}, "training.class_weights", "'balanced' or a valid", "'bal"),
    ({"training": {"lr_scheduler_type": "cosin"}}, "training.lr_scheduler_type", "'cosine'", "'cosin'"),
    ({"metrics": "f1"}, "metrics", "a known setting", "'metrics'"),
]


@pytest.mark.parametrize(("change", "where", "expected", "found"), WRONG)
def test_what_is_wrong_is_told_once_where_it_is(
    change: dict[str, Any], where: str, expected: str, found: str
) -> None:
    with pytest.raises(UserError) as caught:
        validated(CompareConfig, {**GOOD, **change})
    (problem,) = caught.value.problems
    assert problem.where == where
    assert expected in problem.expected
    assert problem.found.startswith(found)
    assert problem.fix


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"slots": 0}, "Give 1 or more."),
        ({"slots": "x"}, "Write a whole number, without quotes: 8."),
        (
            {"seeds": 0},
            "Seeds of every candidate that has any randomness: a list, or how many. Default: [1, 2, 3].",
        ),
        ({"methods": []}, "`methods: [lora, tfidf]`"),
        ({"methods": "lora"}, "Write a list: [lora]."),
        ({"bases": {"model": "x"}}, "Write a list: [a, b]."),
        ({"methods": [{"r": 8}]}, "Give `method`. The registered name: `tunestack methods` lists them."),
        ({"methods": [{"method": "lora", "grid": {"r": []}}]}, "Leave `r` out, or give at least 1 item."),
        (
            {"bases": [{"model": "b", "dtype": "flot32"}]},
            "Did you mean 'float32'? Choose 'auto', ",
        ),
        ({"bases": [{"model": "b", "gradient_checkpointing": "x"}]}, "Write true or false."),
        ({"data": {"train": "x", "train_size": 1}}, "Give a number below 1."),
        ({"data": {"train": "x", "train_size": 0}}, "Give a number above 0."),
        ({"data": {"train": "x", "text": 3}}, "Write text, in quotes where it looks like a number"),
        ({"data": {"train": "x", "labels": 3}}, "Label names in id order, or a mapping from the values"),
        ({"training": {"learning_rate": "fast"}}, "Write a number, without quotes: 0.001."),
        ({"training": {"epochs": math.inf}}, "Write a number that is neither infinite nor nan."),
        ({"training": {"class_weights": "balance"}}, "Default: balanced."),
    ],
)
def test_the_fix_says_what_to_write(change: dict[str, Any], fix: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(CompareConfig, {**GOOD, **change})
    (problem,) = caught.value.problems
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("values", "where", "fix"),
    [
        ({"metrik": "f1"}, "metrik", "'metric'"),
        ({"training": {"learning_rte": 1}}, "training.learning_rte", "'learning_rate'"),
        ({"data": {"train": "x", "txt": "t"}}, "data.txt", "'text'"),
        ({"bases": [{"model": "b", "trust_remote": 1}]}, "bases.0.trust_remote", "'trust_remote_code'"),
    ],
)
def test_unknown_settings_come_with_the_nearest_known_one(
    values: dict[str, Any], where: str, fix: str
) -> None:
    with pytest.raises(UserError) as caught:
        validated(CompareConfig, {**GOOD, **values})
    assert f"Did you mean {fix}" in _problems(caught)[where].fix


def _refuse(*wheres: str) -> Any:
    def check(config: CompareConfig) -> None:
        raise UserError(*(Problem(where, "e", repr(config.training.epochs), "f") for where in wheres))

    return check


def test_the_settings_that_are_right_are_checked_all_the_same() -> None:
    values = {**GOOD, "training": {"epochs": 0, "batch_size": 4}, "metrik": 1, "seeds": [1, "x"]}
    with pytest.raises(UserError) as caught:
        checked(CompareConfig, values, _refuse("data.txt", "training.epochs"))
    problems = _problems(caught)
    assert list(problems) == ["training.epochs", "seeds.1", "metrik", "data.txt"]
    assert problems["data.txt"].found == "5"  # the default stood in for what was wrong
    assert problems["training.epochs"].expected == "greater than 0"  # and nothing is said twice of it
    assert values["training"] == {"epochs": 0, "batch_size": 4}


@pytest.mark.parametrize("change", [{"methods": [3]}, {"data": {"tran": "x"}}, {"data": None}])
def test_without_what_is_needed_nothing_more_can_be_checked(change: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        checked(CompareConfig, {**GOOD, **change}, _refuse("more"))
    assert "more" not in _problems(caught)


@pytest.mark.parametrize(
    ("wrong", "problem", "told"),
    [
        ({"data": {"train": "x", "labels": 5}}, "data.text", True),  # of no kind that it may be: two errors
        ({"training": {"class_weights": "balnced"}}, "training.epochs", True),
        ({"bases": [{"model": "x", "dtype": "half"}]}, "methods.0", True),
        ({"training": {"epochs": 0}}, "training.epochs.more", False),
        ({"data": {"train": "x", "header": "a,b"}}, "data.csv", False),
        ({"task": {"name": 5}}, "data.label", False),
        ({"bases": [{"model": "x", "dtype": "half"}]}, "bases.0.dtype.more", False),
    ],
)
def test_of_what_is_left_out_alone_nothing_more_is_told(
    wrong: dict[str, Any], problem: str, told: bool
) -> None:
    with pytest.raises(UserError) as caught:
        checked(CompareConfig, {**GOOD, **wrong}, _refuse(problem))
    assert (problem in _problems(caught)) is told


def test_what_is_wrong_without_what_was_wrong_is_left_out_as_well() -> None:
    """A range without the end that is no number is none; what else there is can still be checked."""
    values = {
        "data": {"train": "x"},
        "base": "b",
        "methods": [{"method": "lora", "search": {"r": {"min": "a", "max": 3}}}],
        "trials": "fifty",
    }

    def check(config: SweepConfig) -> None:
        assert config.trials == 30
        assert config.methods[0].search == {}
        raise UserError(
            Problem("search", "at least one field to search", "none", "Name some."),
            Problem("methods.0.search", "some", "none", "f"),
            Problem("confirm", "at most 30, as many as there are trials", "40", "Raise `trials`."),
            Problem("metric", "a metric", "f11", "f"),
        )

    with pytest.raises(UserError) as caught:
        checked(SweepConfig, values, check)
    assert list(_problems(caught)) == ["methods.0.search.r.min", "trials", "metric"]


def test_right_settings_are_left_to_whoever_runs_them() -> None:
    assert checked(CompareConfig, GOOD, _refuse("more")) == validated(CompareConfig, GOOD)


def test_of_two_configurations_the_first_differences_are_told() -> None:
    there = validated(CompareConfig, GOOD).model_dump(mode="json")
    training = {"epochs": 2, "batch_size": 4, "max_length": 64, "learning_rate": 0.1, "warmup_ratio": 0.3}
    here = validated(CompareConfig, {**GOOD, "training": training}).model_dump(mode="json")
    told = differences(there, here).split("; ")
    assert len(told) == 5
    assert "training.epochs: 5.0 there, 2.0 here" in told
    there["training"] |= {"weight_decay": 0.3, "lr_scheduler_type": "x"}
    *first, rest = differences(there, here).split("; ")
    assert len(first) == 5
    assert rest == "and 2 more"
    assert differences(here, here) == ""


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        ({"r": [4, 8]}, {"r": [4, 8, 16]}, "r: [4, 8] there, [4, 8, 16] here"),
        ({"r": list(range(40))}, {"r": list(range(41))}, "r.40: nothing there, 40 here"),
        ({"m": {"config": {}}}, {"m": {"config": {"r": 8}}}, "m.config.r: nothing there, 8 here"),
        ({"m": [{"a": 1}]}, {"m": [{"a": 1}, {"b": [2]}]}, 'm.1: nothing there, {"b": [2]} here'),
        ({"a": None}, {}, "a: null there, nothing here"),
        ({"a": {"min": 1}}, {"a": {"min": 1.0}}, "a.min: 1 there, 1.0 here"),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, ""),
    ],
)
def test_a_difference_is_told_where_it_is(there: dict[str, Any], here: dict[str, Any], told: str) -> None:
    assert differences(there, here) == told
    assert same(there, here) is (told == "")


def test_what_is_given_lies_on_top(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {train: a, text: t}\nmethods: [lora]\ntraining:\n")
    given = {"data": {"text": "u", "label": None}, "training": {"epochs": 2}, "seeds": None, "methods": ["x"]}
    assert read_settings(str(tmp_path / "c.yaml"), given) == {
        "data": {"train": "a", "text": "u"},
        "training": {"epochs": 2},
        "methods": ["x"],
    }
    assert read_settings("tweets.csv", {"data": {"text": None}}) == {"data": {"train": "tweets.csv"}}
    with pytest.raises(UserError, match=r"data given once, found tweets\.csv and more\.csv"):
        read_settings("tweets.csv", {"data": {"train": "more.csv"}})
    assert overlay({"data": "tweets.csv"}, {"data": {"text": "t"}}) == {"data": "tweets.csv"}


SQUAD = {"name": "question-answering", "stride": 64}


@pytest.mark.parametrize(
    ("below", "given", "task"),
    [
        (SQUAD, "question-answering", SQUAD),
        (SQUAD, {"n_best": 3}, {**SQUAD, "n_best": 3}),
        (SQUAD, None, SQUAD),
        ("regression", "classification", {"name": "classification"}),
        ("instruction", {"num_beams": 4}, {"name": "instruction", "num_beams": 4}),
        ({"name": "regression", "options": {}}, "classification", {"name": "classification", "options": {}}),
        ({"threshold": 0.3}, "multi-label", {"name": "multi-label", "threshold": 0.3}),
        (None, "regression", {"name": "regression"}),
    ],
)
def test_a_task_by_its_name_keeps_the_settings_below(below: Any, given: Any, task: dict[str, Any]) -> None:
    assert overlay({"task": below}, {"task": given}) == {"task": task}


@pytest.mark.parametrize("below", [SQUAD, {"name": "question-answering", "options": {"stride": 64}}])
@pytest.mark.parametrize("given", ["regression", {"name": "regression"}])
def test_another_task_than_that_of_the_settings_is_refused(below: Any, given: Any) -> None:
    with pytest.raises(UserError) as caught:
        overlay({"task": below}, {"task": given})
    (problem,) = caught.value.problems
    assert (problem.where, problem.found) == ("task", "'regression'")
    assert problem.expected.startswith("question-answering, of which there are settings")


# The way there and back

text = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")) | st.sampled_from("\n\t"), max_size=12)
words = text.filter(bool) | st.sampled_from([*TEXTS, *(number for number, _ in NUMBERS)])
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    text,
    words,
)
documents = st.dictionaries(
    words,
    st.recursive(
        values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
    ),
)


@given(documents)
def test_what_is_written_is_read_as_the_same(tmp_path_factory: Any, document: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(to_yaml(document), encoding="utf-8")
    assert read_yaml(path) == document


training = st.builds(
    TrainingConfig,
    learning_rate=st.floats(1e-12, 1e6),
    epochs=st.floats(0.01, 100),
    batch_size=st.integers(1, 512),
    class_weights=st.one_of(st.none(), st.just("balanced"), st.lists(st.floats(0.1, 10), max_size=3)),
    lr_scheduler_type=st.sampled_from(["constant", "linear", "cosine"]),
)
methods = st.builds(
    MethodConfig,
    method=words,
    name=st.none() | words,
    config=st.dictionaries(words, values, max_size=3),
    grid=st.dictionaries(words, st.lists(values, min_size=1, max_size=2), max_size=2),
)
configs = st.builds(
    CompareConfig,
    data=st.builds(
        DataConfig,
        train=words,
        text=words,
        labels=st.none() | st.dictionaries(words, words) | st.lists(words),
    ),
    bases=st.lists(words, max_size=2),
    methods=st.lists(methods, min_size=1, max_size=2),
    training=training,
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
)


@settings(deadline=None)
@given(configs)
def test_a_configuration_survives_the_run_folder(tmp_path_factory: Any, config: CompareConfig) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(to_yaml(config.model_dump(mode="json")), encoding="utf-8")
    assert validated(CompareConfig, read_yaml(path)) == config
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["training"]["epochs"] == config.training.epochs
