"""Small comparisons to run in tests: tiny texts, a tiny base in a folder, settings that train in a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

import tiny
from tunestack.comparison.folder import RunFolder
from tunestack.comparison.plan import Plan
from tunestack.comparison.run import run_comparison
from tunestack.config import CompareConfig
from tunestack.data import TextData
from tunestack.results import Results, SeedResult
from tunestack.settings import to_yaml, validated
from tunestack.stack.events import Event
from tunestack.tasks.base import Given, Task

ROWS = {"train": 40, "validation": 24, "test": 16}


def write_data(folder: Path, pairs: bool = False) -> dict[str, str]:
    """CSV files of tiny labelled texts, by split."""
    files = {}
    for seed, (split, rows) in enumerate(ROWS.items(), start=1):
        values = tiny.texts(rows, seed)
        frame = pd.DataFrame({"text": values["text"], "label": [tiny.LABELS[i] for i in values["label"]]})
        if pairs:
            frame["second"] = tiny.texts(rows, seed + 10)["text"]
        files[split] = str(folder / f"{split}.csv")
        frame.to_csv(files[split], index=False)
    return files


def settings(folder: Path, **fields: Any) -> dict[str, Any]:
    """Settings of a comparison on the data and the base in a folder, without costs; fields replace some."""
    data = {split: str(folder / f"{split}.csv") for split in ROWS}
    return {
        "data": data,
        "bases": [{"model": str(folder / "saved-bert"), "dtype": "float32", "device_map": "cpu"}],
        "methods": ["majority"],
        "training": {"epochs": 2, "learning_rate": 1e-2},
        "seeds": 2,
        "output": str(folder / "run"),
        "measure_costs": False,
        **fields,
    }


def write_config(path: Path, values: Mapping[str, Any]) -> Path:
    """A YAML configuration."""
    path.write_text(to_yaml(values), encoding="utf-8")
    return path


def compare(values: Mapping[str, Any], notify: Callable[[Event], None] = lambda event: None) -> Results:
    """Run a comparison in this process."""
    return run_comparison(validated(CompareConfig, values), notify)


def scores(results: Results) -> dict[str, Any]:
    """What a comparison measured: metrics, confusions, best epochs and curves of every trial."""
    return {
        f"{candidate.name} {seed.seed}": {
            "validation": seed.validation and seed.validation.model_dump(exclude={"predictions_path"}),
            "test": seed.test and seed.test.model_dump(exclude={"predictions_path"}),
            "best_epoch": seed.best_epoch,
            "steps": [point.step for point in seed.curves],
            "failure": seed.failure,
        }
        for candidate in results.candidates
        for seed in candidate.seeds
    }


def losses(results: Results) -> list[float]:
    """Training and validation losses of all evaluations, in order."""
    points = [point for c in results.candidates for seed in c.seeds for point in seed.curves]
    return [loss for point in points for loss in (point.train_loss, point.validation_loss or 0.0)]


def probabilities(run: Path, predictions: str) -> np.ndarray[Any, Any]:
    """[examples, classes] as a run stored them."""
    frame = pd.read_csv(run / predictions, dtype=str)
    return frame[[f"prob_{name}" for name in tiny.LABELS]].to_numpy().astype(float)


def read_json(path: Path) -> Any:
    """A JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


def through_files(folder: Path, task: Task, columns: Mapping[str, list[Any]], given: Given) -> Given:
    """Answers to a split, as a run folder keeps them and gives them back."""
    split = Dataset.from_dict({**columns, "row": list(range(len(given)))})
    data = TextData(split, split, None, task.label_names, (), "here", "none")
    config = validated(CompareConfig, {"data": {"train": "here"}, "methods": ["majority"]})
    run = RunFolder(folder, Plan(config, data, task, {}, []))
    result = run.finish("candidate", SeedResult(seed=1), {"validation": given}, None)
    return run.answers(result, "validation")
