"""Sweep files of Weights & Biases mean the same here.

The examples are those of its documentation (define-sweep-configuration).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from test_search_space import RECIPES, problems_of
from tunestack.errors import UserError
from tunestack.search.config import Dimension, SweepConfig
from tunestack.search.wandb_file import is_wandb_file, read_wandb_file
from tunestack.settings import read_yaml, validated

GIVEN = {"data": {"train": "x"}, "base": "b", "methods": ["lora"]}

FIRST = """
program: train.py
name: sweepdemo
method: bayes
metric:
  goal: minimize
  name: validation_loss
parameters:
  learning_rate:
    min: 0.0001
    max: 0.1
  batch_size:
    values: [16, 32, 64]
  epochs:
    values: [5, 10, 15]
  optimizer:
    values: ["adam", "sgd"]
"""
QUANTIZED = """
program: train.py
method: random
metric:
  goal: maximize
  name: eval/f1
parameters:
  batch_size:
    distribution: q_log_uniform_values
    max: 256
    min: 32
    q: 8
  dropout:
    values: [0.3, 0.4, 0.5]
  epochs:
    value: 1
  learning_rate:
    distribution: uniform
    max: 0.1
    min: 0
"""
HYPERBAND = """
program: train.py
method: bayes
metric:
  goal: maximize
  name: val_accuracy
parameters:
  dropout:
    values: [0.15, 0.2, 0.25, 0.3, 0.4]
  learn_rate:
    values: [0.001, 0.01, 0.003]
  weight_decay:
    values: [1e-5, !!float 1e-6, 1e-7]
  epochs:
    value: 27
early_terminate:
  type: hyperband
  s: 2
  eta: 3
  max_iter: 27
"""
COMMAND = """
program: run.py
method: random
metric:
  name: validation_loss
parameters:
  learning_rate:
    min: 0.0001
    max: 0.1
command:
  - ${env}
  - ${interpreter}
  - ${program}
  - "--batch_size=${batch_size}"
"""


def _file(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    values = read_yaml(path)
    assert is_wandb_file(values)
    return values


def _read(values: dict[str, Any], **fields: Any) -> tuple[SweepConfig, tuple[str, ...]]:
    settings, notes = read_wandb_file(values, {**GIVEN, **fields})
    return validated(SweepConfig, settings), notes


def test_our_own_files_are_not_taken_for_theirs() -> None:
    assert not is_wandb_file(read_yaml(RECIPES / "disaster_tweets_sweep.yaml"))
    assert not is_wandb_file(read_yaml(RECIPES / "demo.yaml"))


def test_the_documented_search_over_batch_sizes(tmp_path: Path) -> None:
    config, notes = _read(_file(tmp_path, QUANTIZED))
    assert config.model_dump()["search"] == {
        "batch_size": {"min": 32, "max": 256, "log": True, "step": 8},
        "lora_dropout": [0.3, 0.4, 0.5],
        "learning_rate": {"min": 0.0, "max": 0.1},
    }
    assert (config.training.epochs, config.sampler, config.pruner, config.metric) == (
        1,
        "random",
        "none",
        "f1",
    )
    assert notes == ("Of the sweep file, this has no effect here: program.",)


def test_the_documented_search_that_stops_trials(tmp_path: Path) -> None:
    config, notes = _read(_file(tmp_path, HYPERBAND))
    assert config.model_dump()["search"] == {
        "lora_dropout": [0.15, 0.2, 0.25, 0.3, 0.4],
        "learning_rate": [0.001, 0.01, 0.003],
        "weight_decay": [1e-5, 1e-6, 1e-7],
    }
    assert (config.sampler, config.pruner, config.metric) == ("bayes", "hyperband", "accuracy")
    for ignored in ("program", "early_terminate.s", "early_terminate.eta", "early_terminate.max_iter"):
        assert ignored in notes[0]


def test_a_loss_is_not_minimised_here_and_another_metric_may_be_given(tmp_path: Path) -> None:
    for text in (FIRST, COMMAND):
        values = _file(tmp_path, text)
        with pytest.raises(UserError) as caught:
            _read(values)
        problem = problems_of(caught)["metric"]
        assert problem.found.startswith("validation_loss to be minimised")
        assert "--metric f1" in problem.fix
        config, notes = _read(values, metric="f1")
        assert config.search["learning_rate"] == validated(Dimension, {"min": 0.0001, "max": 0.1})
        assert config.metric == "f1"
        assert "metric" in notes[0]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"min": 1, "max": 5}, {"min": 1, "max": 5}),
        ({"min": 1, "max": 5.0}, {"min": 1.0, "max": 5.0}),
        ({"distribution": "uniform", "min": 0, "max": 1}, {"min": 0.0, "max": 1.0}),
        ({"distribution": "int_uniform", "min": 0, "max": 9}, {"min": 0, "max": 9}),
        ({"distribution": "q_uniform", "min": 5, "max": 33, "q": 8}, {"min": 8, "max": 32, "step": 8}),
        ({"distribution": "q_uniform", "min": 1, "max": 4}, {"min": 1, "max": 4, "step": 1}),
        (
            {"distribution": "q_uniform", "min": 0.1, "max": 0.3, "q": 0.1},
            {"min": 0.1, "max": 0.3, "step": 0.1},
        ),
        (
            {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
            {"min": 1e-5, "max": 1e-3, "log": True},
        ),
        (
            {"distribution": "inv_log_uniform_values", "min": 1e-5, "max": 1e-3},
            {"min": 1e-5, "max": 1e-3, "log": True},
        ),
        (
            {"distribution": "log_uniform", "min": math.log(1e-5), "max": math.log(1e-3)},
            {"min": 1e-5, "max": 1e-3, "log": True},
        ),
        (
            {"distribution": "inv_log_uniform", "min": math.log(1e3), "max": math.log(1e5)},
            {"min": 1e-5, "max": 1e-3, "log": True},
        ),
        (
            {"distribution": "q_log_uniform", "min": math.log(32), "max": math.log(256), "q": 8},
            {"min": 32, "max": 256, "log": True, "step": 8},
        ),
        ({"values": [1, 2]}, [1, 2]),
        ({"distribution": "categorical", "values": [1, 2]}, [1, 2]),
        (
            {"values": [1, 2], "probabilities": [0.5, 0.5], "distribution": "categorical_w_probabilities"},
            [1, 2],
        ),
    ],
)
def test_distributions(written: dict[str, Any], expected: Any) -> None:
    config, _ = _read({"method": "random", "parameters": {"r": written}})
    assert config.model_dump()["search"]["r"] == expected


@pytest.mark.parametrize("written", [{"value": 8}, {"values": [8]}, {"distribution": "constant", "value": 8}])
def test_single_values_are_fixed_in_method_and_training(written: dict[str, Any]) -> None:
    parameters = {
        "lora_r": written,
        "train_batch_size": written,
        "seed": written,
        "alpha": {"values": [1, 2]},
    }
    config, _ = _read(
        {"method": "random", "parameters": parameters}, methods=["lora", {"method": "lora", "r": 4}]
    )
    assert [entry.config for entry in config.methods] == [{"r": 8}, {"r": 4}]
    assert config.training.batch_size == 8
    assert config.seed == 8
    assert list(config.search) == ["lora_alpha"]


@pytest.mark.parametrize(
    ("methods", "written", "expected"),
    [
        (["lora"], "alpha", "lora_alpha"),
        (["lora"], "dropout", "lora_dropout"),
        (["lora"], "lora_rank", "r"),
        (["loha"], "alpha", "alpha"),
        (["gralora"], "alpha", "alpha"),
        (["loha", "lokr"], "rank", "r"),
        ([{"method": "series"}], "dropout", "adapter_dropout"),
        (["series"], "rank", "rank"),
        (["lokr"], "dropout", "dropout"),
        (["lora", "loha"], "alpha", "alpha"),
        (["lora", "ia3"], "alpha", "alpha"),
        (["ia3"], "lr", "learning_rate"),
    ],
)
def test_a_field_is_renamed_to_what_the_methods_have(methods: list[Any], written: str, expected: str) -> None:
    config, _ = _read({"method": "random", "parameters": {written: {"values": [1, 2]}}}, methods=methods)
    assert list(config.search) == [expected]


@pytest.mark.parametrize(
    ("written", "expected", "fix"),
    [
        ({"distribution": "normal", "mu": 0, "sigma": 1}, "a range or a list", "min and max"),
        ({"distribution": "q_beta"}, "a range or a list", "min and max"),
        ({"distribution": "log_normal"}, "a range or a list", "min and max"),
        ({"distribution": "log_uniform", "min": 1e-5, "max": 1e-3}, "exponents of e", "log_uniform_values"),
        ({"distribution": "log_uniform", "min": 1, "max": 1000}, "exponents of e", "log_uniform_values"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min above 0", "`min` and `max`"),
        ({"min": 3, "max": 1}, "min below max", "`min` and `max`"),
        ({"min": "1e-5", "max": 1}, "numbers as min and max", "plain numbers"),
        ({"distribution": "q_uniform", "min": 1, "max": 2, "q": 0}, "q above 0", "plain numbers"),
        ({"min": 1}, "a range or a list", "min and max"),
        ({"values": [1, 2], "probabilities": [0.9, 0.1]}, "equally probable", "Leave out"),
        ({"values": [1, 2], "probabilities": 0.5}, "equally probable", "Leave out"),
        ({"values": [4, 8], "vals": [1]}, "nothing but distribution, values, prob", "values"),
        ({"values": [4, 8], "min": 0, "max": 9}, "in categorical, which this is without", "Known: "),
        ({"value": 4, "values": [4, 8]}, "nothing but distribution, value in constant", "value"),
        ({"distribution": "uniform", "min": 0, "max": 9, "q": 2}, "min, max in uniform", "Known: "),
        ({"min": 0, "max": 9, "q": 2}, "in int_uniform, which this is without", "Known: "),
        ({"parameters": {"x": {"value": 1}}}, "fields side by side", "move them up"),
        (8, "a mapping with value", "{value: ...}"),
    ],
)
def test_distributions_without_a_meaning_here_are_refused(written: Any, expected: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        _read({"method": "random", "parameters": {"r": written}})
    problem = problems_of(caught)["parameters.r"]
    assert expected in problem.expected
    assert fix in problem.fix


def test_everything_wrong_in_a_sweep_file_is_told_at_once() -> None:
    values = {
        "method": "custom",
        "metrics": [],
        "parameter": {},
        "parameters": {"lr": {"value": 1}, "learning_rate": {"value": 2}, "seed": {"values": [1, 2]}},
        "early_terminate": {"type": "envelope"},
        "metric": "f1",
    }
    with pytest.raises(UserError) as caught:
        _read(values)
    problems = problems_of(caught)
    assert problems.keys() == {
        "method",
        "metrics",
        "parameter",
        "parameters.learning_rate",
        "parameters.seed",
        "early_terminate.type",
        "metric",
    }
    assert "'parameters'" in problems["parameter"].fix


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eval/f1", "f1"),
        ("eval_f1", "f1"),
        ("val/f1-score", "f1"),
        ("f1_macro", "f1_macro"),
        ("Acc", "accuracy"),
    ],
)
def test_names_of_metrics(name: str, expected: str) -> None:
    values = {"method": "bayes", "metric": {"name": name, "goal": "maximize", "target": 0.9}}
    config, notes = _read({**values, "parameters": {"lr": {"values": [1, 2]}}})
    assert config.metric == expected
    assert "metric.target" in notes[0]


def test_a_grid_is_tried_whole_and_a_cap_is_a_number_of_trials() -> None:
    values = {"method": "grid", "parameters": {"lr": {"values": [1, 2]}, "r": {"min": 1, "max": 30}}}
    assert _read(values)[0].trials == 60
    assert _read({**values, "run_cap": 7})[0].trials == 7
    assert _read({**values, "run_cap": 7}, trials=9)[0].trials == 9
    assert _read({**values, "method": "random"})[0].trials == 30
