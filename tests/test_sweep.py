"""Sweeps end to end: what they train, write and survive."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import safetensors.torch
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import fresh
import runs
import tunestack
from test_loop import Crowded
from tunestack.choice import choose
from tunestack.comparison import run
from tunestack.comparison.folder import RunFolder
from tunestack.comparison.plan import with_metric
from tunestack.errors import UserError
from tunestack.results import CurvePoint, Results, SeedResult
from tunestack.search.config import SweepConfig
from tunestack.search.plan import make_plan, with_method_defaults
from tunestack.search.run import as_comparison, ranked, run_sweep
from tunestack.search.study import Study
from tunestack.settings import validated
from tunestack.stack import loop
from tunestack.stack.events import Event

SEARCH = {
    "r": [1, 2, 4],
    "lora_alpha": [2, 8],
    "learning_rate": {"min": 1e-3, "max": 3e-2, "log": True},
}


def settings(folder: Path, output: Path, **fields: Any) -> dict[str, Any]:
    """A sweep on the data and the base in a folder; fields replace some settings."""
    data = {split: str(folder / f"{split}.csv") for split in runs.ROWS}
    return {
        "data": data,
        "base": {"model": str(folder / "saved-bert"), "dtype": "float32", "device_map": "cpu"},
        "methods": [{"method": "lora", "search": SEARCH}],
        "training": {"epochs": 3},
        "metric": "accuracy",
        "trials": 6,
        "slots": 3,
        "output": str(output),
        **fields,
    }


def sweep(values: Mapping[str, Any], events: list[Event] | None = None) -> Results:
    """Run a sweep in this process."""
    notify = (lambda event: None) if events is None else events.append
    return run_sweep(validated(SweepConfig, values), notify)


def counted(events: Sequence[Event]) -> list[tuple[int, int, str]]:
    """How far the sweep said that it was: trials done, of how many, and the rest."""
    return [(event.step, event.steps, event.message) for event in events if event.kind == "counted"]


def weights(output: Path, name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a trial saved."""
    folder = output / "candidates" / name / f"seed-{seed}" / "adapter"
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")


def assert_same(ours: Sequence[CurvePoint], theirs: Sequence[CurvePoint]) -> None:
    """The same training: evaluations at the same steps, losses alike."""
    assert [point.step for point in ours] == [point.step for point in theirs]
    losses = [[point.train_loss for point in curve] for curve in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_sweep_trains_what_it_says_and_feeds_a_comparison(tiny_data: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    results = sweep(settings(tiny_data, tmp_path / "run", pruner="none"), events)
    search = results.search
    assert search is not None
    assert [trial.number for trial in search.trials] == list(range(6))
    assert {trial.state for trial in search.trials} == {"complete"}
    for trial in search.trials:
        assert set(trial.parameters) == set(SEARCH)
        assert trial.value == max(point.metrics["accuracy"] for point in trial.curve)
        assert len(trial.curve) == 3
        (span,) = trial.spans
        assert span.slot in (0, 1, 2)
        assert span.began < span.ended
        saved = json.loads(
            (tmp_path / f"run/candidates/{trial.name}/seed-0/adapter/adapter_config.json").read_text()
        )
        assert saved["r"] == trial.parameters["r"]
    running = Counter[str]()
    for event in events:
        running["now"] += (event.kind == "started") - (event.kind == "finished")
        assert running["now"] <= 3
    best = ranked(search.trials)[0]
    assert best.value == max(trial.value or 0 for trial in search.trials)
    assert results.verdict is not None
    assert results.verdict.ship == best.name
    # Chosen on validation alone: the test data was not touched.
    assert all(candidate.test == {} for candidate in results.candidates)
    assert not list((tmp_path / "run").rglob("predictions-test*"))

    compared = yaml.safe_load((tmp_path / "run/best.yaml").read_text())
    assert compared["methods"][0]["config"]["r"] == best.parameters["r"]
    again = {**compared, "seeds": [0], "measure_costs": False, "output": str(tmp_path / "compared")}
    other = runs.compare(again)
    assert_same(other.candidates[0].seeds[0].curves, best.curve)  # the very same training, without company
    assert len(tunestack.load(tmp_path / "run").predict(["abc abc", "fg fg"])) == 2


def test_a_resumed_sweep_has_no_more_trials_and_another_space_is_refused(
    tiny_data: Path, tmp_path: Path
) -> None:
    values = settings(tiny_data, tmp_path / "run", trials=3)
    first = sweep(values)
    assert first.search is not None
    before = {trial.name: weights(tmp_path / "run", trial.name) for trial in ranked(first.search.trials)}
    events: list[Event] = []
    second = sweep({**values, "trials": 5, "slots": 1}, events)
    assert second.search is not None
    assert [trial.number for trial in second.search.trials] == [0, 1, 2, 3, 4]
    assert {event.key for event in events if event.kind == "started"} == {
        "trial-3.seed-0",
        "trial-4.seed-0",
    }
    assert [(done, of) for done, of, _ in counted(events)] == [(3, 5), (4, 5), (5, 5)]
    assert second.search.trials[:3] == first.search.trials
    for name, tensors in before.items():
        kept = weights(tmp_path / "run", name)
        assert all(torch.equal(kept[key], tensor) for key, tensor in tensors.items())
    other = {**values, "methods": [{"method": "lora", "search": {**SEARCH, "r": [1, 2]}}]}
    kept_settings = (tmp_path / "run/config.yaml").read_bytes()
    with pytest.raises(UserError, match="search"):
        sweep(other)
    assert (tmp_path / "run/config.yaml").read_bytes() == kept_settings
    with pytest.raises(UserError, match="another"):
        sweep({**values, "metric": "f1"})


def test_what_was_trained_before_an_interruption_is_kept_with_its_times(
    tiny_data: Path, tmp_path: Path
) -> None:
    values = settings(tiny_data, tmp_path / "run", trials=3, pruner="none")
    at_step = 0.0

    def interrupt(event: Event) -> None:
        nonlocal at_step
        if event.kind == "step" and event.key == "trial-2.seed-0" and event.epoch > 1.5:
            at_step = time.time()  # some steps after the last evaluation
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(validated(SweepConfig, values), interrupt)
    stopped = time.time()
    search = sweep({**values, "slots": 1}).search
    assert search is not None
    for trial in search.trials:
        before, after = trial.spans
        assert before.began < at_step <= before.ended <= stopped < after.began < after.ended
        assert before.slot == trial.number  # side by side
        assert after.slot == 0  # and then one after the other


def test_a_trial_that_waits_for_a_slot_has_no_time_meanwhile(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_time", lambda stack, slots, *rest: 1.5 if len(slots) > 2 else 1.0)
    values = settings(tiny_data, tmp_path / "run", trials=12, slots=None, pruner="none", sampler="random")
    waiting: set[str] = set()

    def interrupt(event: Event) -> None:
        if event.kind == "waits":
            waiting.add(event.key.partition(".")[0])
        if event.kind == "step" and event.epoch > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(validated(SweepConfig, values), interrupt)
    assert waiting == {f"trial-{number}" for number in range(2, 8)}  # eight were tried, two fit
    search = sweep({**values, "slots": 2}).search
    assert search is not None
    spans = {trial.name: len(trial.spans) for trial in search.trials}
    assert spans == {f"trial-{number}": 2 if number < 2 else 1 for number in range(12)}
    assert {span.slot for trial in search.trials for span in trial.spans} == {0, 1}


def test_what_an_earlier_version_wrote_is_read(tiny_data: Path, tmp_path: Path) -> None:
    """It kept one span of every trial, as fields of the trial."""
    values = settings(tiny_data, tmp_path / "run", trials=2)
    sweep(values)
    for path in (tmp_path / "run/candidates").glob("*/search.json"):
        record = json.loads(path.read_text())
        record |= {"began": 10.0, "ended": 20.0, "slot": 1}
        path.write_text(json.dumps(record))
        path.with_name("spans.json").unlink()
    search = sweep({**values, "trials": 3}).search
    assert search is not None
    assert [trial.state for trial in search.trials] == ["complete"] * 3
    old = [span for trial in search.trials[:2] for span in trial.spans]
    assert [(span.slot, span.began, span.ended) for span in old] == [(1, 10.0, 20.0)] * 2


@pytest.mark.parametrize("rungs", [1, 2])
def test_pruned_trials_end_early_and_their_slots_are_filled(
    tiny_data: Path, tmp_path: Path, rungs: int
) -> None:
    """At the ends of epochs, and within them."""
    events: list[Event] = []
    training = {"epochs": 4 // rungs, "evaluations_per_epoch": rungs}
    fields = {"pruner": "median", "trials": 12, "sampler": "random", "training": training}
    results = sweep(settings(tiny_data, tmp_path / "run", **fields), events)
    assert results.search is not None
    states = Counter(trial.state for trial in results.search.trials)
    assert states["pruned"] > 0
    assert states["pruned"] + states["complete"] == 12
    ends = {trial.curve[-1].epoch for trial in results.search.trials if trial.state == "pruned"}
    assert any(end % 1 for end in ends) == (rungs > 1)
    for trial in results.search.trials:
        assert (len(trial.curve) < 4) == (trial.state == "pruned")
        folder = tmp_path / "run/candidates" / trial.name / "seed-0"
        assert (folder / "adapter").exists() == (trial.state == "complete")
    assert {candidate.name for candidate in results.candidates} == {
        trial.name for trial in results.search.trials if trial.state == "complete"
    }
    config = validated(SweepConfig, settings(tiny_data, tmp_path / "run", **fields))
    with Study.open(with_method_defaults(with_metric(config)), tmp_path / "run") as study:
        reported = {trial.number: list(trial.intermediate.values()) for trial in study.trials()}
    for trial in results.search.trials:  # the last evaluation, too: others are compared with it
        assert reported[trial.number] == [point.metrics["accuracy"] for point in trial.curve]
    kinds = [event.kind for event in events if event.kind != "counted"]
    ended = kinds.index("pruned")
    assert "started" in kinds[ended + 1 : ended + 4]


def test_the_family_itself_is_searched_and_one_failing_trial_fails_alone(
    tiny_data: Path, tmp_path: Path
) -> None:
    methods = [
        {"method": "lora", "search": {"r": [1, 2]}, "training": {"learning_rate": 1e-2}},
        {"method": "ia3"},
        {"method": "full", "training": {"learning_rate": 1e-3}},
        {"method": "series", "training": {"learning_rate": 1e30, "max_grad_norm": 0}},
    ]
    values = settings(tiny_data, tmp_path / "run", methods=methods, trials=6, sampler="grid")
    events: list[Event] = []
    results = sweep(values, events)
    notes = [event.message for event in events if event.kind == "note"]
    assert notes == ["The space has 5 points: the sweep ends when each was tried, after 5 trials."]
    assert counted(events)[-1][:2] == (5, 5)
    assert counted(events)[-1][2].startswith("1 failed · best accuracy ")
    assert results.search is not None
    tried = {(trial.method, trial.parameters.get("r")): trial for trial in results.search.trials}
    assert set(tried) == {("lora", 1), ("lora", 2), ("ia3", None), ("full", None), ("series", None)}
    assert tried["series", None].state == "failed"
    assert "lower the learning rate" in (tried["series", None].failure or "")
    assert [trial.state for trial in tried.values()].count("complete") == 4


def test_values_that_do_not_go_together_fail_their_trial_alone(tiny_data: Path, tmp_path: Path) -> None:
    search = {"epochs": [2, 1], "tfinal": [1, 6]}  # five steps an epoch
    methods = [{"method": "adalora", "init_r": 4, "target_r": 2, "search": search}]
    results = sweep(settings(tiny_data, tmp_path / "run", methods=methods, training={}, sampler="grid"))
    assert results.search is not None
    states = {
        (trial.parameters["epochs"], trial.parameters["tfinal"]): trial.state
        for trial in results.search.trials
    }
    assert states == {(2, 1): "complete", (2, 6): "complete", (1, 1): "complete", (1, 6): "failed"}
    (failed,) = [trial for trial in results.search.trials if trial.state == "failed"]
    assert "tinit + tfinal below the 5 training steps" in (failed.failure or "")


def test_the_best_are_confirmed_with_several_seeds_and_only_then_tested(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MOST_OTHERS", -1.0)  # the processors are never one's own: always warned of
    values = settings(
        tiny_data, tmp_path / "run", trials=4, confirm=2, seeds=[3, 4], pruner="none", measure_costs=False
    )
    events: list[Event] = []
    seen: list[tuple[str, bool]] = []

    def watch(event: Event) -> None:
        events.append(event)
        if event.kind == "started" and event.key.endswith("seed-3"):
            report = (tmp_path / "run/leaderboard.md").read_text()
            seen.append((report, (tmp_path / "run/best.yaml").exists()))

    results = run_sweep(validated(SweepConfig, values), watch)
    report, decided = seen[0]  # as it is while they are trained again
    assert "the best 2 are trained again with several seeds, and their comparison decides" in report
    assert not decided
    assert results.search is not None
    assert results.search.confirmed == "confirmed"
    assert [(done, of) for done, of, _ in counted(events)] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (0, 4)]
    confirming = max(place for place, event in enumerate(events) if event.kind == "counted")
    assert [event.kind for event in events[confirming:]].count("finished") == 4
    confirmed = Results.load(tmp_path / "run/confirmed/results.json")
    of_costs = [warning for warning in confirmed.data.warnings if "of the processors" in warning]
    assert len(of_costs) == 1
    assert set(of_costs) < set(results.data.warnings)
    best = [trial.name for trial in ranked(results.search.trials)[:2]]
    assert sorted(candidate.name for candidate in confirmed.candidates) == sorted(best)
    assert all([seed.seed for seed in one.seeds] == [3, 4] for one in confirmed.candidates)
    assert all(one.test for one in confirmed.candidates)
    assert results.verdict == confirmed.verdict
    assert confirmed.verdict is not None
    chosen = yaml.safe_load((tmp_path / "run/best.yaml").read_text())["methods"]
    assert [entry["name"] for entry in chosen] == [confirmed.verdict.ship]

    # What is predicted with, exported and described is what the verdict rests on.
    used = choose(tmp_path / "run")
    assert used.folder.is_relative_to(tmp_path / "run/confirmed")
    assert used.candidate is not None
    assert used.seed is not None
    assert used.candidate.name == confirmed.verdict.ship
    assert used.seed.test is not None
    assert choose(tmp_path / "run", best[1]).folder.is_relative_to(tmp_path / "run/confirmed")
    searched = choose(tmp_path / "run", best[1], 0)
    assert searched.folder == tmp_path / "run/candidates" / best[1] / "seed-0/adapter"
    page = (tmp_path / "run/report.html").read_text()
    assert "tunestack predict confirmed new.csv" in page
    again = next(one for one in confirmed.candidates if one.name == confirmed.verdict.ship)
    for split, scores in (("validation", again.validation), ("test", again.test)):
        tile = f"<dt>Accuracy, {split}, 2 seeds</dt><dd>{scores['accuracy'].mean:.3f}"
        assert tile in page

    events: list[Event] = []
    more = sweep({**values, "trials": 7, "confirm": 3, "seeds": [4, 5]}, events)
    assert more.search is not None
    confirmed = Results.load(tmp_path / "run/confirmed/results.json")
    chosen_now = [trial.name for trial in ranked(more.search.trials)[:3]]
    assert sorted(candidate.name for candidate in confirmed.candidates) == sorted(chosen_now)
    assert all([seed.seed for seed in one.seeds] == [4, 5] for one in confirmed.candidates)
    assert more.verdict == confirmed.verdict
    trained = {event.key for event in events if event.kind == "started"}
    known = {f"{name}.seed-4" for name in best}  # of the first time
    fresh = {f"{name}.seed-{seed}" for name in chosen_now for seed in (4, 5)} - known
    assert trained == {f"trial-{number}.seed-0" for number in (4, 5, 6)} | fresh


def test_the_last_process_confirms(tiny_data: Path, tmp_path: Path) -> None:
    """While another one is at work the best are not known yet."""
    values = settings(tiny_data, tmp_path / "run", trials=3, confirm=1, seeds=[3], measure_costs=False)
    config = with_method_defaults(with_metric(validated(SweepConfig, values)))
    (tmp_path / "run").mkdir()
    RunFolder.open(as_comparison(make_plan(config)))
    events: list[Event] = []
    with Study.open(config, tmp_path / "run") as other:
        assert other.ask() is not None
        results = sweep(values, events)
    assert results.search is not None
    assert results.search.confirmed is None
    assert [trial.state for trial in results.search.trials] == ["running", "complete", "complete"]
    assert any("others still train 1 of the trials" in event.message for event in events)
    assert not (tmp_path / "run/best.yaml").exists()
    results = sweep(values)
    assert (tmp_path / "run/best.yaml").exists()
    assert results.search is not None
    assert results.search.confirmed == "confirmed"


def test_where_nothing_could_be_confirmed_the_best_of_the_sweep_is_used(
    tiny_data: Path, tmp_path: Path
) -> None:
    fields = {"confirm": 1, "seeds": [3], "measure_costs": False, "training": {"epochs": 1}, "trials": 2}
    values = settings(tiny_data, tmp_path / "run", **fields)
    sweep(values)
    (ended,) = (tmp_path / "run/confirmed/candidates").glob("*/seed-3/trial.json")
    ended.write_text(SeedResult(seed=3, failure="out of memory").model_dump_json())
    results = sweep(values)
    assert Results.load(tmp_path / "run/confirmed/results.json").verdict is None
    assert results.search is not None
    assert results.verdict is not None
    assert results.verdict.ship == ranked(results.search.trials)[0].name
    assert "confirmed/report.html says why" in results.verdict.sentence
    own = tmp_path / "run/candidates" / results.verdict.ship / "seed-0/adapter"
    page = (tmp_path / "run/report.html").read_text()
    assert f"tunestack predict {own.relative_to(tmp_path / 'run')} new.csv" in page
    assert choose(tmp_path / "run").folder == own
    # Also where an earlier version wrote the name of that folder.
    search = results.search.model_copy(update={"confirmed": "confirmed"})
    results.model_copy(update={"search": search}).save(tmp_path / "run/results.json")
    assert choose(tmp_path / "run").folder == own
    assert choose(tmp_path / "run", results.verdict.ship).folder == own


SHARES = """
import json, sys
from tunestack.search.config import SweepConfig
from tunestack.search.run import run_sweep
from tunestack.settings import validated
run_sweep(validated(SweepConfig, json.loads(sys.argv[1])))
"""


@pytest.mark.timeout(280)
def test_two_processes_share_a_sweep(tiny_data: Path, tmp_path: Path) -> None:
    fields = {"trials": 12, "slots": 2, "sampler": "random", "pruner": "none", "training": {"epochs": 20}}
    values = settings(tiny_data, tmp_path / "run", **fields)
    command = [sys.executable, "-c", SHARES, json.dumps(values)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        _, error = process.communicate(timeout=250)
        assert process.returncode == 0, error[-3000:]
    search = Results.load(tmp_path / "run/results.json").search
    assert search is not None
    assert [(trial.number, trial.state) for trial in search.trials] == [(n, "complete") for n in range(12)]
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "run/study.journal")))
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    assert len(list((tmp_path / "run/candidates").glob("*/seed-0/trial.json"))) == 12


@pytest.mark.parametrize("limits", [{"opened": 2}, {"trained": 1}])
def test_a_sweep_that_runs_out_of_memory_goes_on_with_fewer_slots(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    values = settings(
        tiny_data, tmp_path / "wide", trials=4, sampler="random", pruner="none", training={"epochs": 2}
    )
    wide = sweep(values)
    monkeypatch.setattr(loop, "Stack", type("Limited", (Crowded,), limits))
    events: list[Event] = []
    narrow = sweep({**values, "output": str(tmp_path / "narrow")}, events)
    assert any(event.kind == "narrowed" for event in events)
    assert narrow.search is not None
    assert wide.search is not None
    assert [trial.state for trial in narrow.search.trials] == ["complete"] * 4
    for ours, theirs in zip(narrow.search.trials, wide.search.trials, strict=True):
        assert ours.parameters == theirs.parameters
        assert_same(ours.curve, theirs.curve)


@pytest.mark.timeout(280)
def test_a_sweep_killed_twenty_times_has_every_trial_once(tiny_data: Path, tmp_path: Path) -> None:
    values = settings(
        tiny_data, tmp_path / "run", trials=14, training={"epochs": 8}, sampler="random", pruner="none"
    )
    worker = Path(__file__).with_name("sweep_worker.py").read_text(encoding="utf-8")
    done = fresh.python(worker, json.dumps(values), 20)
    assert done.code == 0, done.err[-3000:]
    hits = json.loads(done.out.splitlines()[-1])
    assert len(hits) == 20
    assert sum(evaluations > 0 for _, evaluations in hits) >= 5  # in the middle of trials
    assert sum(0 < over < 14 for over, _ in hits) >= 5  # and when some were over
    assert [over for over, _ in hits] == sorted(over for over, _ in hits)  # what is over stays so
    search = Results.load(tmp_path / "run/results.json").search
    assert search is not None
    assert [trial.number for trial in search.trials] == list(range(14))
    assert {trial.state for trial in search.trials} <= {"complete", "pruned"}
    unhurt = sweep({**values, "output": str(tmp_path / "unhurt"), "trials": 2})
    assert unhurt.search is not None
    for ours, theirs in zip(search.trials[:2], unhurt.search.trials, strict=True):
        assert ours.parameters == theirs.parameters
        assert_same(ours.curve, theirs.curve)
    # What a killed process trained up to its last evaluation is kept with its times.
    assert sum(len(trial.spans) > 1 for trial in search.trials) >= 2
    for trial in search.trials:
        assert all(span.began < span.ended for span in trial.spans)
        assert all(first.ended < second.began for first, second in itertools.pairwise(trial.spans))


def test_trackers_are_told_of_every_trial_and_of_the_result(tiny_data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fields = {"track": ["tensorboard"], "trials": 4, "pruner": "none"}
    results = sweep(settings(tiny_data, tmp_path / "run", **fields))
    assert results.search is not None
    for trial in results.search.trials:
        logged = EventAccumulator(str(tmp_path / "run/tensorboard" / f"{trial.name}.seed-0"))
        logged.Reload()
        values = [event.value for event in logged.Scalars("validation/accuracy")]
        assert values == pytest.approx([point.metrics["accuracy"] for point in trial.curve])


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, 8),
        ({"sampler": "random"}, 8),  # the median is that of trials that have ended
        ({"sampler": "random", "pruner": "halving"}, None),
        ({"sampler": "bayes", "pruner": "none"}, 8),
        ({"sampler": "random", "pruner": "none"}, None),
        (
            {
                "sampler": "grid",
                "pruner": "none",
                "search": {"lora_alpha": list(range(1, 41))},
                "methods": ["lora"],
            },
            None,
        ),
        ({"sampler": "random", "training": {"epochs": 1}}, None),  # evaluated once, at the end
        ({"pruner": "none", "search": {"r": [1, 2, 4]}, "methods": ["lora"]}, None),  # all points are tried
        ({"search": {"r": list(range(1, 13))}, "methods": ["lora"]}, 3),  # twelve trials, and a pruner
        ({"trials": 3}, 2),
    ],
)
def test_how_many_trials_may_train_at_once(
    tiny_data: Path, tmp_path: Path, fields: dict[str, Any], most: int | None
) -> None:
    values = settings(tiny_data, tmp_path / "run", **{"trials": 30, "slots": None, **fields})
    assert make_plan(validated(SweepConfig, values)).most_slots == most


def test_a_search_that_learns_does_not_train_all_trials_at_once(tiny_data: Path, tmp_path: Path) -> None:
    """Though more slots pay: with all at once, the first one would end with all others in training."""
    events: list[Event] = []
    fields: dict[str, Any] = {"trials": 8, "slots": None, "sampler": "random", "training": {"epochs": 2}}
    results = sweep(settings(tiny_data, tmp_path / "run", **fields), events)
    assert results.search is not None
    assert len(results.search.trials) == 8
    kinds = [event.kind for event in events if event.key]
    at_once = [
        kinds[:place].count("started") - sum(kinds[:place].count(end) for end in ("finished", "pruned"))
        for place in range(len(kinds))
    ]
    assert max(at_once) == 2
