"""The recipes for large models: valid settings, planned on the meta device with the bases' real sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from task_samples import write_questions
from tunestack.comparison.plan import MethodCandidate, Plan, make_plan
from tunestack.config import CompareConfig
from tunestack.settings import read_yaml, validated
from tunestack.tasks.reasoning import FOLDERS, SUITES

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
BASES = {
    "yahma/llama-7b-hf": "llama-7b",
    "bigscience/bloom-7b1": "bloom-7b1",
    "EleutherAI/gpt-j-6b": "gpt-j-6b",
}
RECORD = {"instruction": "1 + 2?", "input": "", "output": "It is 3.", "answer": "3"}
METHODS = ["series", "parallel", "lora", "prefix"]


def plan_of(suite: str, folder: Path) -> Plan:
    """The recipe with a few records, and with bases of which the config is all there is."""
    values = read_yaml(RECIPES / f"llm_adapters_{suite}.yaml")
    assert list(values["bases"]) == list(BASES)
    rows = [{**RECORD, "instruction": f"{n} + 2?"} for n in range(200)]
    (folder / "train.json").write_text(json.dumps(rows))
    for name in SUITES[suite]:
        (folder / FOLDERS[name]).mkdir()
        (folder / FOLDERS[name] / "test.json").write_text(json.dumps([RECORD]))
    values["data"] |= {"train": str(folder / "train.json"), "tests_folder": str(folder)}
    values["bases"] = [
        {"model": f"random:{RECIPES / 'configs' / name}.json", "device_map": "cpu"} for name in BASES.values()
    ]
    values["training"]["max_length"] = 1024  # their tokenizer has a token a byte
    return make_plan(validated(CompareConfig, {**values, "output": str(folder / "run")}))


@pytest.fixture(scope="module", params=SUITES)
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Plan]:
    return request.param, plan_of(request.param, tmp_path_factory.mktemp(request.param))


def test_every_base_with_every_method(planned: tuple[str, Plan]) -> None:
    suite, plan = planned
    assert [(candidate.base, candidate.method_name) for candidate in plan.candidates] == [
        (base, method) for method in METHODS for base in plan.bases
    ]
    assert list(plan.data.tests) == list(SUITES[suite])
    assert plan.task.name == "instruction"


def test_the_rate_rises_for_the_published_number_of_steps(planned: tuple[str, Plan]) -> None:
    """100, of as many records as the recipe says that there are."""
    suite, plan = planned
    records = {"math": 9_919, "commonsense": 170_420}[suite]
    rows = math.floor(plan.config.data.train_size * records)  # as `datasets` splits
    for candidate in plan.candidates:
        assert isinstance(candidate, MethodCandidate)
        assert math.ceil(candidate.training.warmup_ratio * candidate.training.steps(rows)) == 100


def test_lora_has_the_published_share_of_parameters(planned: tuple[str, Plan]) -> None:
    """0.83% of LLaMA-7B (as in the first table of DoRA, arXiv:2402.09353)."""
    _, plan = planned
    config: Any = next(
        candidate.config
        for candidate in plan.candidates
        if isinstance(candidate, MethodCandidate) and candidate.method_name == "lora"
    )
    with torch.device("meta"):
        llama = AutoConfig.from_pretrained(RECIPES / "configs" / "llama-7b.json")
        model = get_peft_model(AutoModelForCausalLM.from_config(llama), config)
        trainable, total = model.get_nb_trainable_parameters()
    each = 32 * (3 * (4096 + 4096) + 2 * (4096 + 11008))
    assert trainable == 32 * each == 56_098_816
    assert round(100 * trainable / total, 2) == 0.83


@pytest.mark.parametrize(("name", "kind"), [("squad_lora", "roberta"), ("xquad_minilm", "bert")])
def test_recipes_of_questions(name: str, kind: str, tmp_path: Path) -> None:
    """On questions of which some have no answer, and on a tiny base of the same architecture."""
    values = read_yaml(RECIPES / f"{name}.yaml")
    files = write_questions(tmp_path)["data"]
    values["data"] = {split: files[split] for split in values["data"]}
    values["bases"] = [{"model": str(tiny.save_base(tmp_path, kind)), "device_map": "cpu"}]
    plan = make_plan(validated(CompareConfig, {**values, "output": str(tmp_path / "run")}))
    candidate, *baselines = plan.candidates
    assert [other.name for other in baselines] == [one["method"] for one in values["methods"][1:]]
    assert all(other.max_length in (384, None) for other in baselines)
    assert isinstance(candidate, MethodCandidate)
    assert (plan.task.name, plan.config.metric, candidate.name) == ("question-answering", "f1", "lora")
    assert plan.task.options.null_threshold == "tune"
    assert candidate.training.learning_rate == values["methods"][0]["training"]["learning_rate"]
