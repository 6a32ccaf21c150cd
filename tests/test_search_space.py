"""The search space: what is drawn lies within it, a grid is its product, what is wrong with it is told."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runs
import tunestack
from task_samples import SAMPLES
from tunestack.config import CompareConfig, TrainingConfig
from tunestack.data.load import TextData
from tunestack.errors import Problem, UserError
from tunestack.methods.registry import METHODS
from tunestack.search.config import Dimension, SweepConfig
from tunestack.search.plan import SweepPlan, make_plan
from tunestack.search.space import METHOD, Space, distribution
from tunestack.search.strategies import make_sampler
from tunestack.search.wandb_file import is_wandb_file
from tunestack.settings import checked, read_yaml, to_yaml, validated

RECIPES = Path(__file__).parent.parent / "recipes"


def sweep(**fields: Any) -> SweepConfig:
    """A sweep's settings; what no test here reads has some value."""
    methods = [{"method": "lora", "search": {"r": [2, 4]}}]
    return validated(SweepConfig, {"data": {"train": "x"}, "base": "b", "methods": methods, **fields})


def problems_of(caught: pytest.ExceptionInfo[UserError]) -> dict[str, Problem]:
    for problem in caught.value.problems:
        assert problem.expected
        assert problem.found
        assert problem.fix
    return {problem.where: problem for problem in caught.value.problems}


# Dimensions

whole = st.integers(-1000, 1000)
real = st.floats(1e-6, 1e3).map(lambda number: float(f"{number:.6g}"))
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["query", "all", ""])
choices = st.lists(
    scalars | st.lists(scalars, max_size=2), min_size=2, max_size=5, unique_by=lambda value: json.dumps(value)
)


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    """Ranges of every kind, as they stand in a file."""
    kind = draw(st.sampled_from(["int", "float", "log", "int log", "int step", "float step", "log step"]))
    if "int" in kind:
        low, high = sorted(draw(st.lists(whole, min_size=2, max_size=2, unique=True)))
        if "log" in kind:
            low, high = abs(low) + 1, abs(low) + 1 + high - low
        step = draw(st.integers(1, high - low)) if "step" in kind else None
        return {"min": low, "max": high, **({"step": step} if step else {}), **_log(kind)}
    low, high = sorted(draw(st.lists(real, min_size=2, max_size=2, unique=True)))
    if "step" not in kind:
        return {"min": low, "max": high, **_log(kind)}
    step = draw(st.sampled_from([0.05, 0.1, 0.25, 8]))
    first = draw(st.integers(1, 20))
    low = float(f"{first * step:.6g}")
    return {"min": low, "max": float(f"{(first + 3) * step:.6g}"), "step": step, **_log(kind)}


def _log(kind: str) -> dict[str, bool]:
    return {"log": True} if "log" in kind else {}


@given(written=ranges() | choices, seed=st.integers(0, 2**31))
def test_whatever_is_drawn_lies_within_its_dimension(written: Any, seed: int) -> None:
    config = sweep(methods=[{"method": "lora", "search": {"x": written}}])
    space = Space(config)
    study = optuna.create_study(sampler=make_sampler("random", seed, 0, conditional=False))
    trial = study.ask()
    space.draw(trial)
    value = space.suggestion(0, trial.params).parameters["x"]
    if isinstance(written, list):
        assert json.dumps(value) in [json.dumps(choice) for choice in written]
        return
    assert written["min"] <= value <= written["max"]
    integral = all(isinstance(written[name], int) for name in {"min", "max", "step"} & written.keys())
    assert type(value) is (int if integral else float)
    if "step" in written:
        steps = (value - written["min"]) / written["step"]
        assert steps == pytest.approx(round(steps), abs=1e-6)


@given(written=ranges() | choices)
def test_a_finite_dimension_lists_what_can_be_drawn(written: Any) -> None:
    dimension = validated(Dimension, {"values": written} if isinstance(written, list) else written)
    assert (dimension.size is None) == (
        not isinstance(written, list)
        and not isinstance(written["min"] * written["max"], int)
        and "step" not in written
    )
    if dimension.size is None:
        assert isinstance(distribution(dimension), optuna.distributions.FloatDistribution)
        return
    values = [dimension.at(index) for index in range(dimension.size)]
    assert len({json.dumps(value) for value in values}) == len(values)
    if isinstance(written, list):
        assert values == written
        return
    assert values == sorted(values)
    assert values[0] == written["min"]
    step = written.get("step", 1)
    assert values[-1] <= written["max"] < values[-1] + step * (1 + 1e-9)
    assert len(values) == round((values[-1] - values[0]) / step) + 1


@given(written=ranges() | choices)
def test_a_dimension_is_written_as_it_was_read(written: Any) -> None:
    config = sweep(search={"x": written})
    again = json.loads(json.dumps(config.model_dump(mode="json")))
    assert again["search"]["x"] == written
    assert validated(SweepConfig, again) == config


def test_steps_are_decimal() -> None:
    dimension = validated(Dimension, {"min": 0.0, "max": 0.3, "step": 0.1})
    assert [dimension.at(index) for index in range(4)] == [0.0, 0.1, 0.2, 0.3]


def test_a_logarithmic_range_is_drawn_evenly_by_its_logarithm() -> None:
    space = Space(
        sweep(methods=[{"method": "lora", "search": {"x": {"min": 8, "max": 512, "step": 8, "log": True}}}])
    )
    study = optuna.create_study(sampler=make_sampler("random", 1, 0, conditional=False))
    values = []
    for _ in range(400):
        trial = study.ask()
        space.draw(trial)
        values.append(space.suggestion(0, trial.params).parameters["x"])
    # Of integers k from 1 to 64, even in log over [0.5, 64.5]: below 8.5 lies log(17) / log(129).
    share = sum(value <= 64 for value in values) / len(values)
    assert share == pytest.approx(math.log(17) / math.log(129), abs=0.08)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (8, "a list of values, or {min: ..., max: ...}"),
        ("abc", "a list of values, or"),
        ({}, "a list of values, or"),
        ({"min": 1}, "a list of values, or"),
        ([], "at least two values"),
        ([8], "at least two values"),
        ([8, 4, 8], "every value once"),
        ([{1, 2}, 3], "numbers, texts, lists"),
        ({"min": 3, "max": 3}, "at least two values"),
        ({"min": 0.5, "max": 0.5}, "at least two values"),
        ({"min": 1, "max": 3, "step": 4}, "at least two values"),
        ({"min": 3, "max": 1}, "min below max"),
        ({"min": 0, "max": 1.0, "log": True}, "min above 0"),
        ({"min": -1.0, "max": 1.0, "log": True}, "min above 0"),
        ({"min": 5, "max": 64, "step": 8, "log": True}, "a multiple of step"),
        ({"values": [1, 2], "min": 1}, "either a list of values, or min and max"),
        ({"min": True, "max": 3}, "a number"),
        ({"min": 1, "max": 3, "step": 0}, "step above 0"),
        ({"min": 1.5, "max": math.inf}, "a number"),
        ({"min": 1, "max": 3, "stp": 1}, "a known setting"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(written: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        sweep(methods=[{"method": "lora", "search": {"r": written}}])
    ((where, problem),) = list(problems_of(caught).items())
    assert where.startswith("methods.0.search.r")
    assert expected in problem.expected


def test_more_are_not_confirmed_than_there_are_trials(values: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        planned({**values, "confirm": 31})
    assert "at most 30" in problems_of(caught)["confirm"].expected


@pytest.mark.parametrize("shared", [True, False])
def test_the_only_range_is_told_of_once_where_it_makes_no_sense(tiny_data: Path, shared: bool) -> None:
    """And not that nothing is searched, which is so for want of it alone."""
    ranges = {"search": {"r": {"min": 3, "max": 1}}}
    values = {
        "data": {"train": str(tiny_data / "train.csv")},
        "base": str(tiny_data / "saved-bert"),
        "methods": [{"method": "lora", **({} if shared else ranges)}],
        **(ranges if shared else {}),
    }
    with pytest.raises(UserError) as caught:
        checked(SweepConfig, values, make_plan)
    assert list(problems_of(caught)) == ["search.r" if shared else "methods.0.search.r"]


# Spaces

TWO = [
    {
        "method": "lora",
        "bias": "none",
        "search": {"r": [2, 4, 8], "target_modules": [["query"], ["query", "value"]]},
    },
    {"method": "ia3", "training": {"batch_size": 4}},
    {"method": "lora", "name": "dora", "use_dora": True, "search": {"weight_decay": {"min": 1, "max": 2}}},
]


def test_a_grid_is_the_product_exactly_once() -> None:
    space = Space(sweep(methods=TWO, search={"epochs": [1, 2]}, sampler="grid", trials=100))
    points = [space.suggestion(0, params) for params in space.points()]
    lora = itertools.product(["lora"], [2, 4, 8], [["query"], ["query", "value"]], [1, 2])
    expected = [
        *(dict(zip([METHOD, "r", "target_modules", "epochs"], values, strict=True)) for values in lora),
        *({METHOD: "ia3", "epochs": epochs} for epochs in [1, 2]),
        *({METHOD: "dora", "weight_decay": w, "epochs": e} for w in [1, 2] for e in [1, 2]),
    ]
    assert len(points) == space.size == 18
    assert sorted(json.dumps(point.parameters, sort_keys=True) for point in points) == sorted(
        json.dumps(point, sort_keys=True) for point in expected
    )


def test_a_point_says_what_to_train() -> None:
    space = Space(
        sweep(methods=TWO, search={"epochs": [1, 2]}, training={"learning_rate": 0.5}, sampler="grid")
    )
    points = [space.suggestion(7, params) for params in space.points()]
    by_title = {point.parameters[METHOD]: point for point in points if point.training["epochs"] == 2}
    assert by_title["lora"].number == 7
    assert by_title["lora"].fields.keys() == {"bias", "r", "target_modules"}
    assert by_title["dora"].method == "lora"
    assert by_title["dora"].fields == {"use_dora": True}
    assert by_title["dora"].training["weight_decay"] in (1, 2)
    assert by_title["ia3"].fields == {}
    assert by_title["ia3"].training["batch_size"] == 4
    assert {point.training["learning_rate"] for point in points} == {0.5}


def test_a_grid_too_large_for_memory_is_drawn_from() -> None:
    space = Space(sweep(search={"epochs": {"min": 1, "max": 10**12}}, sampler="grid", trials=5))
    assert space.size == 2 * 10**12
    assert len({json.dumps(point) for point in space.points()}) == 5


def test_the_longest_trial_has_the_most_evaluations() -> None:
    own = [{"method": "lora", "search": {"epochs": {"min": 1.0, "max": 2.5}}}, "ia3"]
    assert (
        Space(sweep(methods=own, training={"epochs": 2, "evaluations_per_epoch": 4})).most_evaluations == 10
    )
    assert Space(sweep(methods=own, training={"epochs": 3})).most_evaluations == 3
    assert Space(sweep(search={"epochs": [1, 4]})).most_evaluations == 4
    texts = [
        {"method": "lora", "training": {"epochs": "12"}},
        {"method": "ia3", "search": {"epochs": ["9", 10]}},
    ]
    assert Space(sweep(methods=texts)).most_evaluations == 12
    assert Space(sweep(methods=texts[1:])).most_evaluations == 10


# What is checked before anything trains


@pytest.fixture
def values(tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    comparison = runs.settings(tiny_data, output=str(tmp_path / "run"))
    return {
        "data": comparison["data"],
        "base": comparison["bases"][0],
        "methods": [{"method": "lora", "lora_alpha": 8, "search": {"r": [2, 4]}}],
        "search": {"learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}},
        "output": comparison["output"],
    }


def planned(values: dict[str, Any]) -> SweepPlan:
    return make_plan(validated(SweepConfig, values))


def test_everything_that_is_wrong_is_told_at_once(values: dict[str, Any], tmp_path: Path) -> None:
    wrong = {
        **values,
        "methods": [
            {
                "method": "lora",
                "lora_alpha": 8,
                "search": {
                    "r": [2, 4000],
                    "lora_alpha": [8, 16],
                    "lora_dropout": {"min": 0, "max": 1},
                    "target_modules": [["query"], ["q_proj"]],
                    "batch_size": {"min": 2.0, "max": 8.0},
                },
            },
            {"method": "ia3", "search": {"lerning_rate": [1, 2]}},
            {"method": "ia3", "grid": {"x": [1]}},
            "lorra",
            "tfidf",
            {"method": "bitfit", "search": {"class_weights": ["balanced", [1.0, 2.0, 3.0]]}},
            {"method": "layernorm", "epochs": 3, "training": {"evaluations_per_epoch": 2}},
        ],
        "search": {"learning_rate": {"min": 1e-4, "max": 1.0}, "r": [1, 2], "max_length": [8, 16]},
        "training": {"max_length": 12},
        "metric": "f11",
        "confirm": 31,  # of how many trials is not known
        "sampler": "grid",
        "trials": 0,
        "slots": 0,
    }
    with pytest.raises(UserError) as caught:
        checked(SweepConfig, wrong, make_plan)
    problems = problems_of(caught)
    expected = {
        "trials": "greater than or equal to 1",
        "slots": "greater than or equal to 1",
        "metric": "a metric of this task",
        "methods": "methods that can be told apart",
        "methods.0.search.lora_alpha": "either searched or fixed",
        "methods.1.search.lerning_rate": "a field of ia3 or of training",
        "methods.2.grid": "`search`, in a sweep",
        "methods.3": "a known method",
        "methods.4": "a method that trains",
        "methods.6.epochs": "a field of layernorm",
        "methods.6.training.evaluations_per_epoch": "one number for all trials",
        "methods.5: class_weights": "2 weights above 0",
        "search.learning_rate": "values that can be counted",
        "search.r": "a field of training, or of lora, ia3, bitfit, layernorm",
        "search.max_length": "either searched or fixed",
    }
    for where, text in expected.items():
        assert text in problems[where].expected, where
    assert "'learning_rate'" in problems["methods.1.search.lerning_rate"].fix
    assert not Path(values["output"]).exists()


@pytest.mark.parametrize(
    ("field", "methods", "fix"),
    [
        ("rank", ["lora"], "It is called 'r' here."),
        ("lr", ["lora"], "It is called 'learning_rate' here."),
        ("alpha", ["lora"], "It is called 'lora_alpha' here."),
        ("num_epochs", ["lora", "ia3"], "It is called 'epochs' here."),
        ("lora_alhpa", ["lora"], "Did you mean 'lora_alpha'"),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_a_field_that_is_called_otherwise_elsewhere_is_named(
    values: dict[str, Any], field: str, methods: list[str], fix: str, shared: bool
) -> None:
    values["methods"] = [{"method": name, "search": {} if shared else {field: [1, 2]}} for name in methods]
    values["search"] = {field: [1, 2]} if shared else {}
    with pytest.raises(UserError) as caught:
        planned(values)
    problem = problems_of(caught)[f"search.{field}" if shared else f"methods.0.search.{field}"]
    assert problem.fix.startswith(fix)


def test_what_only_some_methods_have_is_told_where_it_belongs(values: dict[str, Any]) -> None:
    values |= {"methods": ["lora", "ia3"], "search": {"dropout": [0.0, 0.1], "r": [2, 4]}}
    with pytest.raises(UserError) as caught:
        planned(values)
    problems = problems_of(caught)
    assert problems["search.r"].fix.startswith("Of lora it is `r`: write that under `search` of lora alone")
    assert problems["search.dropout"].fix.startswith("Of lora it is `lora_dropout`")
    values |= {"methods": ["lora", "vera"], "search": {"dropout": [0.0, 0.1]}}
    with pytest.raises(UserError) as caught:
        planned(values)
    assert "Of vera it is `vera_dropout`" in problems_of(caught)["search.dropout"].fix


@pytest.mark.parametrize(
    ("word", "fix"),
    [("trails", "'trials'"), ("method", "'methods'"), ("lable", "'label'"), ("tset", "'test'")],
)
def test_words_that_python_does_not_know_are_told_with_the_nearest(word: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        tunestack.sweep("tweets.csv", base="packaged:minilm-l6", **{word: 2})
    (problem,) = caught.value.problems
    assert problem.where == word
    assert f"Did you mean {fix}" in problem.fix


def test_a_method_where_methods_belong_makes_no_file_of_others(values: dict[str, Any]) -> None:
    wrong = {**values, "method": "lora", "triels": 3}
    del wrong["methods"]
    assert not is_wandb_file(wrong)
    with pytest.raises(UserError) as caught:
        validated(SweepConfig, wrong)
    problems = problems_of(caught)
    assert "Did you mean 'methods'" in problems["method"].fix
    assert "Did you mean 'trials'" in problems["triels"].fix


def test_a_name_that_is_a_pattern_is_told_how_to_be_a_name(values: dict[str, Any]) -> None:
    values["methods"] = [{"method": "lora", "search": {"target_modules": ["query", "value"]}}]
    with pytest.raises(UserError) as caught:
        planned(values)
    assert {problem.fix for problem in caught.value.problems} == {
        f"A text is a pattern for whole names; for one module's name write a list: [{name}]."
        for name in ("query", "value")
    }


def test_corners_that_a_method_refuses_are_told(values: dict[str, Any]) -> None:
    values["methods"] = [
        {
            "method": "lora",
            "search": {
                "r": [2, 4000],
                "lora_dropout": {"min": 0, "max": 1},
                "target_modules": [["query"], ["q_proj"]],
                "batch_size": {"min": 2.0, "max": 8.0},
                "bias": {"min": 1, "max": 3},
            },
        }
    ]
    values["search"] = {"learning_rate": {"min": -1.0, "max": 1.0}}
    with pytest.raises(UserError) as caught:
        planned(values)
    problems = list(caught.value.problems)
    assert len(set(problems)) == len(problems)
    told = {(problem.where.partition(" at ")[0], problem.found) for problem in problems}
    assert ("search.learning_rate", "-1.0") in told
    assert any(where == "methods.0.search.batch_size" and found.startswith("3.9") for where, found in told)
    assert any(where == "methods.0: lora.bias" for where, _ in told)
    values["methods"][0]["search"].pop("bias")
    with pytest.raises(UserError) as caught:
        planned(values)
    told = {(problem.where.partition(" at ")[0], problem.found) for problem in caught.value.problems}
    assert ("methods.0: lora.r", "4000") in told
    assert ("methods.0: lora.lora_dropout", "1.0") in told or ("methods.0: lora.lora_dropout", "1") in told
    assert any("'q_proj'" in found for _, found in told)


def test_every_length_that_is_searched_is_checked_against_the_base(
    values: dict[str, Any], tmp_path: Path
) -> None:
    written = SAMPLES["question-answering"].write(tmp_path)
    task = {"name": "question-answering", **written["task"]}
    values |= {"data": written["data"], "task": task, "search": {"max_length": [48, 5]}}

    def told() -> str:
        with pytest.raises(UserError) as caught:
            planned(values)
        return str(caught.value)

    assert "a question that leaves room for its context in 5 tokens" in told()
    values["search"] = {}
    values["methods"][0]["training"] = {"max_length": 5}
    assert "a question that leaves room for its context in 5 tokens" in told()
    values["methods"][0]["training"] = {"max_length": 48}
    values["training"] = {"max_length": 5}  # of no method
    assert planned(values).space.size == 2


def test_a_sweep_needs_something_to_search(values: dict[str, Any]) -> None:
    values |= {"methods": ["lora"], "search": {}}
    with pytest.raises(UserError) as caught:
        planned(values)
    assert problems_of(caught)["search"].expected == "at least one field to search"
    assert planned({**values, "methods": ["lora", "ia3"]}).space.size == 2


def test_a_field_is_searched_in_one_place(values: dict[str, Any]) -> None:
    values["methods"][0]["search"]["learning_rate"] = [1e-3, 1e-2]
    with pytest.raises(UserError) as caught:
        planned(values)
    assert "in one place" in problems_of(caught)["methods.0.search.learning_rate"].expected


def test_what_is_planned_can_be_written_and_planned_again(values: dict[str, Any], tmp_path: Path) -> None:
    values["methods"] = [*values["methods"], "ia3", {"method": "bitfit", "search": {"epochs": [1, 2]}}]
    plan = planned(values)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(plan.config.model_dump(mode="json")), encoding="utf-8")
    assert planned(read_yaml(file)).config.model_dump() == plan.config.model_dump()


def test_methods_train_with_their_own_defaults_where_nothing_is_given_or_searched(
    values: dict[str, Any],
) -> None:
    values |= {"methods": [{"method": "ia3"}], "search": {"epochs": [1, 2]}}
    params = {"epochs": "2"}
    own = METHODS["ia3"].training_defaults["learning_rate"]
    assert (
        planned(values).space.suggestion(0, params).training["learning_rate"]
        == own
        != TrainingConfig().learning_rate
    )
    values["training"] = {"learning_rate": 0.5}
    assert planned(values).space.suggestion(0, params).training["learning_rate"] == 0.5


def test_a_suggestion_becomes_a_candidate(values: dict[str, Any]) -> None:
    plan = planned(values)
    suggestion = plan.space.suggestion(3, {"lora.r": "4", "learning_rate": 2e-3})
    candidate = plan.candidate(suggestion, "trial 3")
    assert candidate.trial(0).key == "trial-3.seed-0"
    shown = {name: candidate.hyperparameters[name] for name in ("r", "lora_alpha", "learning_rate")}
    assert shown == {"r": 4, "lora_alpha": 8, "learning_rate": 2e-3}


def test_numbers_may_be_written_as_texts_as_in_training(values: dict[str, Any]) -> None:
    values |= {"search": {"epochs": ["3", "5"]}}
    plan = planned(values)
    suggestion = plan.space.suggestion(0, {"lora.r": "4", "epochs": '"3"'})
    assert plan.space.evaluations(suggestion.training) == 3
    assert plan.candidate(suggestion, "trial-0").training.epochs == 3


@pytest.mark.parametrize(("searched", "told"), [([1, 2], r"\[1, 2\]"), ({"min": 1, "max": 4}, "1 to 4")])
def test_what_may_not_be_searched_is_told_as_it_was_written(
    values: dict[str, Any], searched: Any, told: str
) -> None:
    values |= {"search": {"evaluations_per_epoch": searched}}
    with pytest.raises(UserError, match=rf"found {told}\. Write"):
        planned(values)


def test_a_sweep_that_does_less_than_its_settings_say_tells_so(values: dict[str, Any]) -> None:
    values |= {"search": {}, "training": {"epochs": 1}}
    assert [note.split(":")[0] for note in planned(values).notes] == [
        "The space has 2 points",
        "Trials are evaluated once, at their end",
    ]
    values |= {"search": {"epochs": {"min": 1, "max": 20}}, "training": {}, "sampler": "grid"}
    assert planned(values).notes == ("30 of the 40 points of the grid are tried, chosen at random.",)


def test_the_recipe_is_the_published_search() -> None:
    config = validated(SweepConfig, read_yaml(RECIPES / "disaster_tweets_sweep.yaml"))
    (method,) = config.methods
    assert method.model_dump(exclude={"name", "training"}) == {
        "method": "lora",
        "config": {"bias": "none", "target_modules": ["query", "value"]},
        "search": {
            "r": [4, 8, 16, 32],
            "lora_alpha": [16, 32, 64],
            "lora_dropout": {"min": 0.0, "max": 0.1},
            "learning_rate": {"min": 1e-5, "max": 2e-4, "log": True},
        },
    }
    compared = validated(CompareConfig, read_yaml(RECIPES / "disaster_tweets.yaml"))
    assert config.data == compared.data
    assert (config.trials, config.sampler, config.metric) == (30, "bayes", "f1")
    assert (config.training.epochs, config.training.batch_size, config.training.max_length) == (5, 8, 512)


def test_the_recipe_can_be_planned(tmp_path: Path) -> None:
    lines = [f"{word} {place},{place % 2}" for place in range(20) for word in ("fire", "picnic")]
    (tmp_path / "train.csv").write_text("\n".join(["text,target", *lines]))
    values = read_yaml(RECIPES / "disaster_tweets_sweep.yaml")
    values["data"]["train"], values["output"] = str(tmp_path / "train.csv"), str(tmp_path / "run")
    plan = planned(values)
    assert plan.config.metric == "f1"
    assert isinstance(plan.data, TextData)
    assert plan.data.label_names == ("not a disaster", "disaster")
    assert plan.notes == ()
