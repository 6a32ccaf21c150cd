"""The study: every trial once, whoever is killed; what is suggested depends on settings and results alone."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest

import study_worker
from study_worker import config, metric, take_part
from tunestack.errors import UserError
from tunestack.search.space import Suggestion
from tunestack.search.strategies import make_pruner
from tunestack.search.study import Study

FORKSERVER = multiprocessing.get_context("forkserver")
SAMPLERS = ["tpe", "bayes", "random"]
PRUNERS = ["none", "halving", "hyperband", "median"]
RATES = {"min": 1e-5, "max": 1e-2, "log": True}
TWO = {
    "methods": [
        {
            "method": "lora",
            "search": {"r": [2, 4, 8], "learning_rate": {"min": 1e-5, "max": 1e-2, "log": True}},
        },
        {"method": "ia3", "search": {"learning_rate": {"min": 1e-4, "max": 1e-1, "log": True}}},
    ]
}
FINITE = {"methods": [{"method": "lora", "search": {"r": [2, 4, 8], "lora_alpha": [8, 16]}}]}


@pytest.fixture(scope="module", autouse=True)
def _clean_process() -> None:
    """Start the process that others are forked from, with everything that they import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        FORKSERVER.set_forkserver_preload(["pytest", "study_worker"])
        forkserver.ensure_running()


def given(suggestions: list[Suggestion]) -> list[tuple[int, dict[str, Any]]]:
    """What matters of suggestions."""
    return [(suggestion.number, suggestion.parameters) for suggestion in suggestions]


def key(suggestion: Suggestion) -> str:
    """A point of the space."""
    return json.dumps(suggestion.parameters, sort_keys=True)


def run(folder: Path, **fields: Any) -> list[Suggestion]:
    """A whole sweep in this process."""
    with Study.open(config(**fields), folder) as study:
        return take_part(study)


# One process


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [("bayes", "none"), *((sampler, pruner) for sampler in ["tpe", "random"] for pruner in PRUNERS)],
)
@pytest.mark.parametrize("space", [{}, TWO], ids=["one method", "two"])
def test_the_same_sweep_suggests_the_same(
    tmp_path: Path, sampler: str, pruner: str, space: dict[str, Any]
) -> None:
    fields = {"sampler": sampler, "pruner": pruner, "trials": 14, **space}
    first, second = (run(tmp_path / name, **fields) for name in ("a", "b"))
    assert given(first) == given(second)
    assert [number for number, _ in given(first)] == list(range(14))
    assert len({key(suggestion) for suggestion in first}) == 14


def test_another_seed_suggests_something_else(tmp_path: Path) -> None:
    first, second = (run(tmp_path / str(seed), seed=seed, trials=3) for seed in (0, 1))
    assert key(first[0]) != key(second[0])


@pytest.mark.parametrize("sampler", ["tpe", "bayes"])
def test_who_learns_comes_nearer_to_the_best_than_chance(tmp_path: Path, sampler: str) -> None:
    """With three trials always running. The best rate is 1e-3; what is asked for last counts."""

    def apart(kind: str, seed: int) -> float:
        found = run(tmp_path / f"{kind}-{seed}", sampler=kind, pruner="none", trials=30, seed=seed)
        return sum(abs(math.log10(one.training["learning_rate"]) + 3) for one in found[-10:]) / 10

    learned, chance = (sum(apart(kind, seed) for seed in range(3)) for kind in (sampler, "random"))
    assert learned < 0.6 * chance


def test_the_parameter_that_matters_is_the_most_important(tmp_path: Path) -> None:
    fields = {"sampler": "random", "pruner": "none", "trials": 40, "search": {}, "training": {"epochs": 2}}
    with Study.open(config(**fields), tmp_path) as study:
        take_part(study)
        importances = study.importances()
    assert next(iter(importances)) == "lora.learning_rate"
    assert set(importances) == {"lora.r", "lora.lora_dropout", "lora.learning_rate"}
    assert sum(importances.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", optuna.pruners.NopPruner),
        ("halving", optuna.pruners.SuccessiveHalvingPruner),
        ("hyperband", optuna.pruners.HyperbandPruner),
        ("median", optuna.pruners.MedianPruner),
    ],
)
def test_pruners_are_those_that_their_names_say(kind: str, expected: type) -> None:
    assert type(make_pruner(kind, 9)) is expected


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
def test_stopped_and_resumed_a_sweep_goes_on_as_it_would_have(tmp_path: Path, sampler: str) -> None:
    fields = {"sampler": sampler, "trials": 12, **(FINITE if sampler == "grid" else {})}
    whole = run(tmp_path / "whole", **fields)
    resumed = []
    for _ in range(20):  # each process runs one trial
        with Study.open(config(**fields), tmp_path / "parts") as study:
            suggestion = study.ask()
            if suggestion is None:
                break
            resumed.append(suggestion)
            study.tell(suggestion.number, metric(suggestion, 1), "complete")
    alone = []
    with Study.open(config(**fields), tmp_path / "alone") as study:
        while (suggestion := study.ask()) is not None:
            alone.append(suggestion)
            study.tell(suggestion.number, metric(suggestion, 1), "complete")
    assert given(resumed) == given(alone)
    assert given(resumed)[0] == given(whole)[0]
    assert len(resumed) == len(whole)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
def test_a_finite_space_ends_when_every_point_was_tried_once(tmp_path: Path, sampler: str) -> None:
    fields = {**FINITE, "search": {"epochs": [1, 2, 3, 4]}, "sampler": sampler}
    assert len({key(suggestion) for suggestion in run(tmp_path / "all", trials=40, **fields)}) == 24
    assert len(run(tmp_path / "all", trials=40, **fields)) == 0
    assert len(run(tmp_path / "exact", trials=24, **fields)) == 24
    assert len(run(tmp_path / "some", trials=7, **fields)) == 7


def test_raising_the_number_of_trials_goes_on(tmp_path: Path) -> None:
    fields = {**FINITE, "search": {"epochs": [1, 2]}, "sampler": "grid"}
    first, second = run(tmp_path, trials=5, **fields), run(tmp_path, trials=50, **fields)
    assert [suggestion.number for suggestion in [*first, *second]] == list(range(12))
    assert len({key(suggestion) for suggestion in [*first, *second]}) == 12


def test_values_that_lists_and_mappings_are_come_back_as_they_were(tmp_path: Path) -> None:
    values = [["query"], ["query", "value"], {"a": 1}, None, "all"]
    methods = [{"method": "lora", "search": {"target_modules": values}}]
    found = run(tmp_path, methods=methods, search={}, sampler="grid", training={"epochs": 1})
    assert sorted(map(json.dumps, values)) == sorted(
        json.dumps(one.fields["target_modules"]) for one in found
    )


def test_a_study_of_another_sweep_is_refused_and_the_differences_named(tmp_path: Path) -> None:
    assert len(run(tmp_path, trials=2)) == 2
    before = sorted(tmp_path.rglob("*"))
    changed = {"sampler": "random", "seed": 3, "search": {"epochs": {"min": 1, "max": 5}}, "trials": 2}
    with pytest.raises(UserError) as caught:
        Study.open(config(**changed), tmp_path)
    (problem,) = caught.value.problems
    for difference in (
        'sampler: "tpe" there, "random" here',
        "seed: 0 there, 3 here",
        "search.epochs.max: 4 there, 5 here",
    ):
        assert difference in problem.found
    assert "trials" not in problem.found
    with pytest.raises(
        UserError, match=r"search.epochs.min: 1 there, 1.0 here"
    ):  # of another kind of numbers
        Study.open(config(search={"epochs": {"min": 1.0, "max": 4.0}}), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert run(tmp_path, trials=2, slots=7, output="elsewhere", seeds=2) == []


def test_a_damaged_journal_is_told_and_a_line_cut_short_is_no_damage(tmp_path: Path) -> None:
    run(tmp_path / "cut", trials=2)
    journal = tmp_path / "cut" / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:40])
    assert len(run(tmp_path / "cut", trials=5)) == 3
    assert journal.read_bytes().startswith(whole)
    journal.write_bytes(b"\x00nonsense\n" + whole)
    with pytest.raises(UserError, match="the journal of a study"):
        Study.open(config(), tmp_path / "cut")


# Reports and results


def test_what_was_told_is_kept(tmp_path: Path) -> None:
    with Study.open(config(pruner="none"), tmp_path) as study:
        asked = [study.ask() for _ in range(5)]
        numbers = [suggestion.number for suggestion in asked if suggestion is not None]
        assert numbers == [0, 1, 2, 3, 4]
        study.report(1, 1, 0.25)
        study.report(1, 2, 0.5)
        study.tell(0, 0.75, "complete")
        study.tell(1, None, "pruned")
        study.tell(2, None, "failed")
        study.tell(3, float("nan"), "complete")
        study.tell(0, 0.1, "complete")  # finished already
        study.tell(2, 0.9, "complete")
        with pytest.raises(ValueError, match="has a value"):
            study.tell(4, None, "complete")
    with Study.open(config(pruner="none"), tmp_path) as study:
        found = study.trials()
        assert [(trial.state, trial.value) for trial in found] == [
            ("complete", 0.75),
            ("pruned", 0.5),
            ("failed", None),
            ("failed", None),
            ("running", None),
        ]
        assert found[1].intermediate == {1: 0.25, 2: 0.5}
        assert [trial.parameters for trial in found] == [one.parameters for one in asked if one is not None]
        assert study.best() == found[0]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_the_worst_trials_are_stopped_and_never_after_their_last_evaluation(
    tmp_path: Path, pruner: str
) -> None:
    with Study.open(config(pruner=pruner, trials=40, sampler="random"), tmp_path) as study:
        take_part(study)
        found = study.trials()
        lasts = {t.number: study.space.evaluations({"epochs": t.parameters["epochs"]}) for t in found}
    stopped = [trial for trial in found if trial.state == "pruned"]
    complete = [trial for trial in found if trial.state == "complete"]
    assert len(stopped) + len(complete) == 40
    assert all(len(trial.intermediate) < lasts[trial.number] for trial in stopped)
    assert all(len(trial.intermediate) == lasts[trial.number] for trial in complete)
    if pruner == "none":
        assert not stopped
        return
    assert len(stopped) >= 5

    def quality(trial: Any) -> float:
        return trial.intermediate[1]

    mean_stopped = sum(map(quality, stopped)) / len(stopped)
    assert mean_stopped < sum(map(quality, complete)) / len(complete)


@pytest.mark.parametrize(("evaluations", "rungs"), [(5, [1, 3]), (20, [3, 9]), (1, [])])
def test_successive_halving_decides_at_a_ninth_and_a_third(
    tmp_path: Path, evaluations: int, rungs: list[int]
) -> None:
    fields = {"search": {}, "training": {"epochs": evaluations}, "pruner": "halving", "trials": 60}
    with Study.open(config(**fields), tmp_path) as study:
        best = study.ask()
        assert best is not None
        for step in range(1, evaluations + 1):
            assert not study.report(best.number, step, 1.0)
        stopped = set()
        for value in (0.5, 0.9):
            suggestion = study.ask()
            assert suggestion is not None
            step = next(
                (s for s in range(1, evaluations + 1) if study.report(suggestion.number, s, value)), None
            )
            stopped.add(step)
    assert stopped == ({rungs[0]} if rungs else {None})
    assert all(rung < evaluations for rung in rungs)


def test_a_decision_to_stop_outlives_its_process(tmp_path: Path) -> None:
    fields = {"pruner": "halving", "search": {}, "training": {"epochs": 5}}
    study = Study.open(config(**fields), tmp_path)
    good, bad = study.ask(), study.ask()
    assert good is not None
    assert bad is not None
    assert not study.report(good.number, 1, 0.9)
    assert study.report(bad.number, 1, 0.1)
    assert study.report(bad.number, 1, 0.1)
    study.close()  # before anything was told
    with Study.open(config(**fields), tmp_path) as again:
        adopted = again.ask()
        assert adopted is not None
        assert given([adopted]) == given([good])
        assert [trial.state for trial in again.trials()] == ["running", "running"]
        new = again.ask()
        assert new is not None
        assert new.number == 2
        assert [trial.state for trial in again.trials()] == ["running", "pruned", "running"]


# Several processes


def test_trials_of_a_living_process_are_left_to_it_and_those_of_a_dead_one_are_not(tmp_path: Path) -> None:
    first = Study.open(config(trials=4), tmp_path)
    mine = [first.ask(), first.ask()]
    with Study.open(config(trials=4), tmp_path) as second:
        theirs = [second.ask(), second.ask()]
        assert [one.number for one in theirs if one is not None] == [2, 3]
        assert first.ask() is None
        assert second.ask() is None
        first.close()
        adopted = [second.ask(), second.ask()]
        assert [one and (one.number, one.parameters) for one in adopted] == [
            one and (one.number, one.parameters) for one in mine
        ]
        assert second.ask() is None
    assert list((tmp_path / "workers").iterdir()) == []


def _start(folder: Path, log: Path, company: int = 1, **fields: Any) -> BaseProcess:
    """A process of its own that takes part; forked from a clean one, it begins within milliseconds.

    company: how many processes it waits for before it asks for trials, itself counted.
    """
    arguments = (str(folder), str(log), json.dumps(fields), company)
    process = FORKSERVER.Process(target=study_worker.main, args=arguments)
    process.start()
    return process


def _finish(process: BaseProcess) -> None:
    process.join(60)
    assert process.exitcode == 0


def _log(log: Path) -> list[tuple[str, str, int]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(process, what, int(number)) for process, what, number in map(str.split, lines)]


def _check_whole(folder: Path, log: Path, trials: int, **fields: Any) -> None:
    """Every number is there once, finished, was asked for, and was told once at most."""
    with Study.open(config(trials=trials, **fields), folder) as study:
        found = study.trials()
        assert study.ask() is None
    assert [trial.number for trial in found] == list(range(trials))
    assert {trial.state for trial in found} <= {"complete", "pruned"}
    for trial in found:
        steps = sorted(trial.intermediate)
        assert steps == list(range(1, len(steps) + 1))
        assert steps
    told = Counter(number for _, what, number in _log(log) if what == "told")
    assert max(told.values()) == 1
    assert {number for _, what, number in _log(log) if what == "asked"} == set(range(trials))


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_killed_at_random_points_a_sweep_loses_nothing(tmp_path: Path, sampler: str) -> None:
    finite = {**FINITE, "search": {"epochs": [1, 2, 3, 4]}}
    fields = {"trials": 24, "sampler": sampler, **(finite if sampler == "grid" else {})}
    folder, log = tmp_path / "run", tmp_path / "log"
    chance = random.Random(5)
    adopted = 0
    for _ in range(20):
        before = _log(log)
        process = _start(folder, log, **fields)
        lines = len(before) + chance.randint(1, 5)
        while len(_log(log)) < lines and process.is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        earlier = {number for _, what, number in before if what == "asked"}
        adopted += any(number in earlier for _, what, number in _log(log)[len(before) :] if what == "asked")
    assert adopted >= 5  # the kills did hit trials that were running
    assert any(what == "told" for _, what, _ in _log(log))
    _finish(_start(folder, log, **fields))
    _check_whole(folder, log, **fields)
    if sampler == "grid":
        with Study.open(config(**fields), folder) as study:
            assert len({json.dumps(trial.parameters) for trial in study.trials()}) == 24


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    processes = [_start(folder, log, company=2, trials=40) for _ in range(2)]
    for process in processes:
        _finish(process)
    asked = [(process, number) for process, what, number in _log(log) if what == "asked"]
    assert sorted(number for _, number in asked) == list(range(40))
    assert len({process for process, _ in asked}) == 2
    _check_whole(folder, log, 40)


def test_a_process_takes_over_from_one_that_is_killed_beside_it(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    processes = [_start(folder, log, trials=30, sampler="random") for _ in range(3)]
    while sum(what == "told" for _, what, _ in _log(log)) < 4:
        time.sleep(0.001)
    processes[0].kill()
    for process in processes[1:]:
        _finish(process)
    with Study.open(config(trials=30, sampler="random"), folder) as study:
        take_part(study)  # what was left where the others had nothing more to ask for
        assert Counter(trial.state for trial in study.trials())["running"] == 0
        assert len(study.trials()) == 30
