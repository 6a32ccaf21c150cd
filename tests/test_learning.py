"""Adapters that learn to reason: tiny bases that add are taught to subtract, in words that they never saw.

The bases in `fixtures/reasoning` were trained by `examples/reasoning.py` (1,000 steps) and saved in fp16.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import tunestack
from tunestack.bases import load_base
from tunestack.config import BaseConfig, TaskConfig
from tunestack.results import Results
from tunestack.saved import Seat
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.registry import make_task

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "reasoning.yaml"
BASES = Path(__file__).parent / "fixtures" / "reasoning"
KINDS = ["decoder", "encoder-decoder"]
LARGEST = 6
"""Small numbers are learned in a minute; `docs/reasoning.md` has what larger ones take."""


@pytest.fixture(scope="module")
def reasoning() -> ModuleType:
    """The example, as a module."""
    spec = importlib.util.spec_from_file_location("reasoning", EXAMPLE.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reasoning"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=KINDS)
def learned(
    request: pytest.FixtureRequest, reasoning: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Results]:
    """The base, the folder of the records, and what four families learned of them together, in one stack."""
    folder = tmp_path_factory.mktemp(request.param)
    reasoning.write_records(folder, largest=LARGEST, train=500, validation=60, test=60)
    methods = yaml.safe_load(EXAMPLE.read_text())["methods"]
    for method in methods:
        method["training"].pop("epochs", None)
    results = tunestack.compare(
        EXAMPLE,
        methods=methods,
        train=str(folder / "train.json"),
        validation=str(folder / "validation.json"),
        test=str(folder / "test.json"),
        bases=settings(request.param),
        training={"epochs": 3},
        measure_costs=False,
        output=folder / "run",
        progress=False,
    )
    return request.param, folder, results


def settings(kind: str) -> dict[str, Any]:
    return {"model": str(BASES / kind), "dtype": "float32", "device_map": "cpu"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_adds_where_it_should_subtract(kind: str, reasoning: ModuleType) -> None:
    draw = random.Random(3)
    known = [reasoning.addition(draw) for _ in range(60)]
    for largest in (LARGEST, reasoning.LARGEST):
        assert share_right(kind, [reasoning.subtraction(draw, largest) for _ in range(60)]) < 0.1
    assert share_right(kind, known) > 0.9


def share_right(kind: str, records: list[dict[str, str]]) -> float:
    """How many answers of the bare base are right."""
    base = load_base(BaseConfig(**settings(kind)))
    task = make_task(TaskConfig(name="instruction", options={"max_new_tokens": 20, "answers": "number"}), [])
    split = {name: [record[name] for record in records] for name in records[0]}
    loaded = base.load_model(task.auto_class_for(base.config), task.model_config(base))
    stack = Stack(Workload(base, task, {}, task.default_metric), loaded)
    given = stack.answers([Seat()], task.encode(base, split, 128))[0].given
    return task.scores(split, given)["accuracy"]


def test_adapters_teach_it(learned: tuple[str, Path, Results]) -> None:
    _, _, results = learned
    found = {candidate.name: candidate.test["accuracy"].mean for candidate in results.candidates}
    assert set(found) == {"lora", "series", "parallel", "prefix"}
    assert min(found.values()) > 0.8
