"""Whose turn it is in a sweep: trials that cannot share the base, and those of a process that is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from test_sweep import settings
from tunestack.comparison.folder import RunFolder
from tunestack.search.config import SweepConfig
from tunestack.search.plan import make_plan
from tunestack.search.run import as_comparison, run_sweep
from tunestack.search.study import Study
from tunestack.settings import validated
from tunestack.stack.events import Event

FULL = {"method": "full", "search": {"learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}}}
LORA = {"method": "lora", "search": {"r": [1, 2, 4], "lora_alpha": {"min": 2, "max": 40}}}
ENDS = ("finished", "pruned", "failed")


def asked(output: Path) -> int:
    """How many trials the study has."""
    storage = JournalStorage(JournalFileBackend(str(output / "study.journal")))
    return len(optuna.load_study(study_name="sweep", storage=storage).trials)


def run(values: dict[str, Any]) -> tuple[list[tuple[str, str, int]], dict[str, Any]]:
    """What happened to trials, each with how many there were by then; and the states of all."""
    happened = []

    def notify(event: Event) -> None:
        if event.kind in ("started", *ENDS):
            happened.append((event.kind, event.key, asked(Path(values["output"]))))

    results = run_sweep(validated(SweepConfig, values), notify)
    assert results.search is not None
    return happened, {trial.name: trial.state for trial in results.search.trials}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_of_methods_that_cannot_share_the_base_one_trial_is_asked_for_at_a_time(
    tiny_data: Path, tmp_path: Path, sampler: str
) -> None:
    """So that what is learned of it is of use, and other processes find trials to take."""
    fields = {"methods": [FULL], "search": {}, "trials": 4, "sampler": sampler, "training": {"epochs": 1}}
    happened, states = run(settings(tiny_data, tmp_path / "run", **fields))
    assert [(kind, count) for kind, _, count in happened if kind == "started"] == [
        ("started", number) for number in (1, 2, 3, 4)
    ]
    assert set(states.values()) == {"complete"}
    assert len(states) == 4


def test_those_that_share_the_base_train_together_and_the_others_do_not_wait_for_the_end(
    tiny_data: Path, tmp_path: Path
) -> None:
    fields = {"methods": [LORA, FULL], "search": {}, "trials": 16, "training": {"epochs": 1}, "slots": 3}
    happened, states = run(settings(tiny_data, tmp_path / "run", sampler="random", **fields))
    assert len(states) == 16
    assert set(states.values()) == {"complete"}
    done = 0
    at_once = set()
    running = 0
    for kind, _, count in happened:
        done += kind in ENDS
        running += 1 if kind == "started" else -1
        at_once.add(running)
        assert count - done <= 4  # a quarter of the trials is taken and not ended, at most
    assert max(at_once) > 1


def test_what_a_process_leaves_that_is_killed_late_is_trained_before_the_best_are_confirmed(
    tiny_data: Path, tmp_path: Path
) -> None:
    """The other process has one of the trials when this one has nothing more to ask for, and then dies."""
    fields = {"trials": 3, "pruner": "none", "confirm": 1, "seeds": 2, "measure_costs": False}
    values = settings(tiny_data, tmp_path / "run", training={"epochs": 1}, **fields)
    config = validated(SweepConfig, values)
    plan = make_plan(config)
    folder = RunFolder.open(as_comparison(plan))
    folder.keep_settings(plan.config)
    other = Study.open(plan.config, folder.path)
    assert other.ask() is not None
    ended: list[str] = []

    def notify(event: Event) -> None:
        if event.kind == "finished":
            ended.append(event.key)
            if len(ended) == 2:
                other.close()  # its trial is running, and its lock is gone: as if it had been killed

    results = run_sweep(config, notify)
    assert results.search is not None
    assert {trial.name: trial.state for trial in results.search.trials} == {
        "trial-0": "complete",
        "trial-1": "complete",
        "trial-2": "complete",
    }
    assert results.search.confirmed == "confirmed"


def test_pruners_see_every_evaluation_however_many_an_epoch_has(tiny_data: Path, tmp_path: Path) -> None:
    """A number of evaluations that is made of an epoch with four decimals leaves some out."""
    training = {"epochs": 1, "batch_size": 1, "evaluations_per_epoch": 36}
    values = settings(tiny_data, tmp_path / "run", trials=1, slots=1, training=training)
    lines = (tiny_data / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "train.csv").write_text(
        "".join(lines[:37]), encoding="utf-8"
    )  # 3/36 is 0.0833, times 36 2.9988
    values["data"]["train"] = str(tmp_path / "train.csv")
    results = run_sweep(validated(SweepConfig, values))
    assert results.search is not None
    (trial,) = results.search.trials
    with Study.open(make_plan(validated(SweepConfig, values)).config, tmp_path / "run") as study:
        (point,) = study.trials()
    assert len(trial.curve) == 36
    assert sorted(point.intermediate) == list(range(1, 37))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"slots": 8}, []),
        ({"slots": 30}, ["With 30 slots, tpe knows little"]),
        ({"slots": 30, "sampler": "random"}, ["With 30 slots, the median knows little"]),
        ({"slots": 30, "sampler": "random", "pruner": "none"}, []),
    ],
)
def test_slots_that_leave_nothing_to_learn_from_are_told_of(
    tiny_data: Path, tmp_path: Path, fields: dict[str, Any], expected: list[str]
) -> None:
    values = settings(tiny_data, tmp_path / "run", **{"trials": 30, **fields})
    notes = make_plan(validated(SweepConfig, values)).notes
    assert [note[: len(start)] for note, start in zip(notes, expected, strict=True)] == expected
