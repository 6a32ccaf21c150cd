"""Interrupted comparisons: the same call goes on where it stopped, and refuses a folder of another one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import runs
from tunestack.comparison.checks import IDENTITY
from tunestack.errors import UserError
from tunestack.results import Results
from tunestack.stack.events import Event

METHODS = [
    {"method": "tfidf", "min_df": 1},
    {"method": "lora", "grid": {"r": [2, 3]}, "lora_dropout": 0.1},
    {"method": "full", "training": {"learning_rate": 1e-3}},
]


@pytest.fixture(scope="module")
def uninterrupted(tiny_data: Path) -> Results:
    output = tiny_data / "uninterrupted"
    return runs.compare(runs.settings(tiny_data, methods=METHODS, slots=3, output=str(output)))


def _stop_at(number: int, kind: str) -> Callable[[Event], None]:
    """Whoever watches presses Ctrl-C at the n-th event of a kind."""
    left = number

    def notify(event: Event) -> None:
        nonlocal left
        left -= event.kind == kind
        if left == 0 and event.kind == kind:
            raise KeyboardInterrupt

    return notify


STOPS = {"started": (1, 3), "step": (2, 15, 35), "evaluated": (2, 5), "finished": (2, 3, 5)}


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind in STOPS for number in STOPS[kind]])
def test_stopped_anywhere_the_same_call_gives_the_same(
    tiny_data: Path, tmp_path: Path, uninterrupted: Results, kind: str, number: int
) -> None:
    values = runs.settings(tiny_data, methods=METHODS, slots=3, output=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        runs.compare(values, _stop_at(number, kind))
    assert not (tmp_path / "run" / "results.json").exists()
    resumed = runs.compare(values)
    assert runs.scores(resumed) == runs.scores(uninterrupted)
    np.testing.assert_allclose(runs.losses(resumed), runs.losses(uninterrupted), rtol=1e-4, atol=1e-5)
    assert resumed.verdict == uninterrupted.verdict
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_no_step_is_lost_to_ctrl_c(tiny_data: Path, tmp_path: Path) -> None:
    values = runs.settings(tiny_data, methods=["lora"], output=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        runs.compare(values, _stop_at(6, "step"))  # two trials, in the middle of the first epoch
    events: list[Event] = []
    runs.compare(values, events.append)
    assert [event.step for event in events if event.kind == "started"] == [3, 3]
    assert sum(event.kind == "step" for event in events) == 2 * (2 * 5 - 3)


def test_without_costs_the_verdict_says_that_none_were_there_to_choose_by(uninterrupted: Results) -> None:
    assert all(candidate.costs.train_seconds is None for candidate in uninterrupted.candidates)
    assert uninterrupted.verdict is not None
    assert "with no costs to choose by" in uninterrupted.verdict.sentence or uninterrupted.verdict.clear


def test_another_configuration_in_the_folder_is_refused_and_named(tiny_data: Path, tmp_path: Path) -> None:
    values = runs.settings(tiny_data, output=str(tmp_path / "run"), methods=["majority", "tfidf"])
    runs.compare(values)
    kept = (tmp_path / "run" / "results.json").read_bytes()
    other = {**values, "seeds": 3, "training": {"epochs": 2, "learning_rate": 5e-4}, "methods": ["majority"]}
    with pytest.raises(UserError) as caught:
        runs.compare(other)
    (problem,) = caught.value.problems
    assert "training.learning_rate: 0.01 there, 0.0005 here" in problem.found
    assert "seeds: [1, 2] there, [1, 2, 3] here" in problem.found
    assert re.search(r'methods\.1: {"method": "tfidf".* there, nothing here', problem.found)
    assert "epochs" not in problem.found
    assert "--output" in problem.fix
    assert (tmp_path / "run" / "results.json").read_bytes() == kept


def test_a_second_process_in_the_folder_is_refused_and_the_first_goes_on(
    tiny_data: Path, tmp_path: Path
) -> None:
    values = runs.settings(tiny_data, output=str(tmp_path / "run"), methods=["lora", "majority"])
    refused = []

    def start_a_second(event: Event) -> None:
        if event.kind == "evaluated" and not refused:
            with pytest.raises(UserError, match="another process at work") as caught:
                runs.compare(values)
            refused.append(caught.value)

    assert runs.compare(values, start_a_second).verdict is not None
    assert refused
    assert runs.compare(values).verdict is not None


def test_a_run_of_an_earlier_version_goes_on_with_what_has_come_since_at_its_default(
    tiny_data: Path, tmp_path: Path
) -> None:
    values = runs.settings(tiny_data, output=str(tmp_path / "run"), methods=["majority", "lora"])
    first = runs.compare(values)
    known = tmp_path / "run" / IDENTITY
    stored = json.loads(known.read_text(encoding="utf-8"))
    del stored["config"]["training"]["loraplus_lr_ratio"]
    known.write_text(json.dumps(stored), encoding="utf-8")
    assert runs.scores(runs.compare(values)) == runs.scores(first)


def test_changed_data_in_the_folder_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    files = runs.write_data(tmp_path)
    values = runs.settings(tiny_data, output=str(tmp_path / "run"), data=files)
    runs.compare(values)
    frame = pd.read_csv(files["train"])
    frame.loc[0, "text"] += " changed"
    frame.to_csv(files["train"], index=False)
    with pytest.raises(UserError, match="the data changed since"):
        runs.compare(values)
