"""Running a sweep: the study suggests, the stack trains; what is done is not redone."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from tunestack.comparison.folder import FREE, RunFolder
from tunestack.comparison.plan import MethodCandidate, Plan, base_name
from tunestack.comparison.run import collect, disturbed, run_comparison, save_outcome
from tunestack.comparison.track import conclusion, run_name
from tunestack.config import CompareConfig
from tunestack.errors import UserError
from tunestack.files import write_text
from tunestack.report import formatting
from tunestack.report.html import write_report
from tunestack.report.leaderboard import write_leaderboard
from tunestack.results import CurvePoint, Results, SearchSummary, SearchTrial, SeedResult, Verdict
from tunestack.search.config import SweepConfig
from tunestack.search.plan import SweepPlan, make_plan
from tunestack.search.space import Suggestion
from tunestack.search.study import Study
from tunestack.search.timeline import Timeline, read_spans
from tunestack.settings import to_yaml, validated
from tunestack.stack.events import Event, Notify
from tunestack.stack.loop import train
from tunestack.stack.slot import Trial
from tunestack.stack.work import Outcome, Workload
from tunestack.trackers.base import TrackedTrial
from tunestack.trackers.tracking import Tracking, giving_up_once

RECORD = "search.json"
"""What is kept of a trial beside its results."""
CONFIRMED = "confirmed"
"""The run folder, inside the sweep's, of the comparison that trains the best again."""
NAME = "trial-"


def run_sweep(config: SweepConfig, notify: Notify = lambda event: None) -> Results:
    """Search, train the best again where that is wanted, and write the run folder.

    notify: is told of everything that happens. Raises UserError before training if the settings cannot
    work. Interrupted or killed, it leaves a folder that the same call resumes; several processes may run the
    same call, and share the trials: what they write at their ends is whole once the last one is done.
    """
    plan = make_plan(config)
    for note in plan.notes:
        notify(Event("note", "", message=note))
    folder = RunFolder.open(as_comparison(plan))
    with Study.open(plan.config, folder.path) as study:
        folder.keep_settings(plan.config)
        sweep = _Sweep(plan, folder, study)
        settings, name = plan.config.model_dump(mode="json"), run_name(folder.path)
        tracking = Tracking(plan.config.track, "sweep", name, folder.path, settings, sweep.tracked, notify)
        with giving_up_once(), tracking as sweep.tracking:
            sweep.train()
            with _alone(folder, notify):
                results = _conclude(sweep, notify)
            sweep.tracking.conclude(conclusion(results, folder.path))
    return results


def _conclude(sweep: _Sweep, notify: Notify) -> Results:
    """Write what came out; confirm the best where that is wanted, and write it again."""
    plan, folder, study = sweep.plan, sweep.folder, sweep.study
    records = sweep.records()
    running = sum(record.state == "running" for record in records)  # by other processes
    best = ranked(records)[: plan.config.confirm]
    writing = Event("measuring", "", message="Writing the results and the report")
    notify(writing)
    results = _write(plan, folder, study, records, None)
    if running and plan.config.confirm:
        message = f"Not confirmed yet: others still train {running} of the trials. The last to end confirms."
        notify(Event("note", "", message=message))
    elif best:
        chosen = [study.suggestion(trial.number) for trial in best]
        again = f"training the best {len(chosen)} again"
        each = f"with {len(plan.config.seeds)} seeds each"
        notify(Event("note", "", message=f"The search is over: {again}, {each}."))
        notify(Event("measuring", "", message="Reading data and base again"))
        # Trials keep their numbers and settings: what is there of others, or of fewer seeds, stays of use.
        confirmed = run_comparison(_confirmation(plan, chosen), notify, (*FREE, "methods", "seeds"))
        notify(writing)
        records = sweep.records()  # others may have gone on meanwhile, with more trials
        results = _write(plan, folder, study, records, confirmed)
    if all(record.state != "running" for record in sweep.records()):
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return results


@contextlib.contextmanager
def _alone(folder: RunFolder, notify: Notify) -> Iterator[None]:
    """One process at a time concludes; who comes later finds what is there already."""
    lock = FileLock(folder.path / "workers" / "conclusion.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        notify(Event("note", "", message="Another process is writing the results: waiting for it."))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(
    plan: SweepPlan,
    folder: RunFolder,
    study: Study,
    records: Sequence[SearchTrial],
    confirmed: Results | None,
) -> Results:
    """Write the sweep's results, its best trial and its report."""
    results = _results(plan, folder, study, records, confirmed)
    is_decided = confirmed is not None or not plan.config.confirm
    if not is_decided:
        (folder.path / "best.yaml").unlink(missing_ok=True)  # of an earlier call with fewer trials
    elif results.verdict is not None:
        number = int(results.verdict.ship.removeprefix(NAME))
        winner = comparison_of(plan, [study.suggestion(number)], f"{plan.config.output}-best")
        write_text(folder.path / "best.yaml", to_yaml(winner))
    results.save(folder.path / "results.json")
    write_leaderboard(results, folder.path / "leaderboard.md")
    write_report(results, folder.path)
    return results


def ranked(records: Sequence[SearchTrial]) -> list[SearchTrial]:
    """The complete trials, the best first and the earliest of equals."""
    complete = [record for record in records if record.state == "complete" and record.value is not None]
    return sorted(complete, key=lambda record: (-(record.value or 0.0), record.number))


def comparison_of(plan: SweepPlan, chosen: Sequence[Suggestion], output: str) -> dict[str, Any]:
    """The settings of a comparison between trials of a sweep, as `tunestack compare` reads them."""
    config = plan.config
    return {
        "data": config.data.model_dump(mode="json", exclude_defaults=True),
        "task": config.task.model_dump(mode="json"),
        "bases": [config.base.model_dump(mode="json", exclude_defaults=True)],
        "methods": [
            {
                "method": suggestion.method,
                "name": name_of(suggestion.number),
                "config": suggestion.fields,
                "training": suggestion.training,
            }
            for suggestion in chosen
        ],
        "seeds": config.seeds,
        "metric": config.metric,
        "output": output,
    }


def _confirmation(plan: SweepPlan, chosen: Sequence[Suggestion]) -> CompareConfig:
    folder = str(Path(plan.config.output) / CONFIRMED)
    values = comparison_of(plan, chosen, folder) | {
        "slots": plan.config.slots,
        "measure_costs": plan.config.measure_costs,
        "track": plan.config.track,
    }
    return validated(CompareConfig, values)


def _results(
    plan: SweepPlan,
    folder: RunFolder,
    study: Study,
    records: Sequence[SearchTrial],
    confirmed: Results | None,
) -> Results:
    """What `results.json` holds: the complete trials as candidates, the search, and which one to ship."""
    candidates = [
        plan.candidate(study.suggestion(trial.number), trial.name)
        for trial in records
        if trial.state == "complete"
    ]
    search = SearchSummary(
        sampler=plan.config.sampler,
        pruner=plan.config.pruner,
        trials=list(records),
        importances=study.importances(),
        confirmed=CONFIRMED if confirmed is not None and confirmed.verdict is not None else None,
    )
    results = collect(replace(folder.plan, candidates=list(candidates)), folder)
    on_costs = disturbed(confirmed.candidates, folder.path / CONFIRMED) if confirmed else []
    update = {
        "search": search,
        "data": results.data.model_copy(update={"warnings": [*results.data.warnings, *on_costs]}),
        "verdict": _verdict(records, plan.config, confirmed),
        "config": plan.config.model_dump(mode="json"),
    }
    return results.model_copy(update=update)


def _verdict(
    records: Sequence[SearchTrial], config: SweepConfig, confirmed: Results | None
) -> Verdict | None:
    """The best trial; of those trained again with several seeds, what their comparison says."""
    best = ranked(records)
    if not best:
        return None
    if confirmed is not None and confirmed.verdict is not None:
        return confirmed.verdict
    first = best[0]
    if confirmed is not None:
        again = f"none of those trained again with several seeds finished ({CONFIRMED}/report.html says why)."
    elif config.confirm:
        count = min(config.confirm, len(best))
        again = f"the best {count} are trained again with several seeds, and their comparison decides."
    else:
        again = "--confirm 3 trains the best three again with several seeds."
    sentence = (
        f"{first.name} has the highest {config.metric} on validation, {first.value:.3f}, of {len(best)} "
        f"complete trials of {len(records)}. The best of many with one seed may be a lucky draw: {again}"
    )
    return Verdict(sentence=sentence, best=first.name, ship=first.name, clear=False)


def as_comparison(plan: SweepPlan) -> Plan:
    """The comparison whose run folder holds a sweep: a candidate a trial."""
    config = plan.config
    settings = CompareConfig(
        data=config.data,
        task=config.task,
        bases=[config.base],
        methods=[{"method": entry.method, "name": entry.title} for entry in config.methods],
        training=config.training,
        seeds=[config.seed],
        metric=config.metric,
        measure_costs=False,
        output=config.output,
    )
    return Plan(settings, plan.data, plan.task, {base_name(config.base): plan.base}, [])


def name_of(number: int) -> str:
    """What a trial is called."""
    return f"{NAME}{number}"


@dataclass
class _Sweep:
    """One process at work on a sweep.

    running: what this process trains, by the trials' keys; timeline: since when and where. tracking: who is
    told of it. tracked: what of.
    """

    plan: SweepPlan
    folder: RunFolder
    study: Study
    tracking: Tracking = field(init=False)
    tracked: dict[str, TrackedTrial] = field(default_factory=dict)
    running: dict[str, tuple[Suggestion, MethodCandidate]] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)

    def train(self) -> None:
        """Train until the study has no more trials, nor those of processes that were killed meanwhile."""
        self._count()
        data = self.plan.data
        splits = {"train": data.train, "validation": data.validation}
        work = Workload(self.plan.base, self.plan.task, splits, self.plan.config.metric)
        try:
            while self._round(work):
                pass
        finally:
            self.timeline.stop()

    def _round(self, work: Workload) -> bool:
        """Train what there is, until what was put aside has had its turn; whether there was anything."""
        outcomes = train(
            work,
            self.trials(),
            self.plan.config.slots,
            self.told,
            self.folder.checkpoints,
            self.prune,
            self.plan.most_slots,
        )
        worked = False
        for outcome in outcomes:
            self.finish(outcome)
            worked = True
        return worked

    def _waits(self) -> bool:
        """Whether trials that cannot share the base come first now: nothing else trains, or they have waited
        long enough. What is asked for before they end knows nothing of them, and nobody else can train them.
        """
        alone = sum(not candidate.method.stacks for _, candidate in self.running.values())
        return alone > 0 and (alone == len(self.running) or len(self.running) >= self.plan.most_in_hand)

    def trials(self) -> Iterator[Trial]:
        """What the study suggests, as long as it does and nothing has to be trained before."""
        while not self._waits() and (suggestion := self.study.ask()) is not None:
            name = name_of(suggestion.number)
            known = self.folder.finished(name, self.plan.config.seed)
            if known is not None:  # killed between writing and telling
                self._tell(suggestion.number, known)
                continue
            try:
                candidate = self.plan.candidate(suggestion, name)
            except UserError as error:
                result = SeedResult(seed=self.plan.config.seed, failure=str(error))
                self._record(suggestion, "failed", [], result.failure, name)
                self.folder.finish(name, result, {}, checkpoint=None)
                self._tell(suggestion.number, result)
                self.tracking.notify(Event("failed", name, message=str(error)))
                continue
            trial = candidate.trial(self.plan.config.seed)
            self.running[trial.key] = suggestion, candidate
            own = {"method": suggestion.method, "seed": trial.seed, **candidate.hyperparameters}
            self.tracked[trial.key] = TrackedTrial(trial.key, name, own)
            yield trial

    def told(self, event: Event) -> None:
        """Keep account of who trains when, and pass the event on."""
        if event.kind == "started":
            suggestion, _ = self.running[event.key]
            event = replace(event, message=formatting.parameters(suggestion.parameters))
            self.timeline.begin(event.key, self._folder(suggestion.number))
        elif event.kind == "waits":
            self.timeline.lose(event.key)
        elif event.kind == "evaluated":
            self.timeline.reach(event.key)
        self.tracking.notify(event)

    def prune(self, trial: Trial, point: CurvePoint, evaluations: int, ends: bool) -> bool:
        """Whether the study stops a trial with this evaluation. ends: it does so anyway."""
        suggestion, _ = self.running[trial.key]
        value = point.metrics[self.plan.config.metric]
        return evaluations > 0 and self.study.report(suggestion.number, evaluations, value, ends)

    def finish(self, outcome: Outcome) -> None:
        """Write what a trial reached, then tell the study: killed in between, the next process tells it."""
        key = outcome.trial.key
        suggestion, candidate = self.running.pop(key)
        state: Literal["complete", "pruned", "failed"] = "complete"
        if outcome.failure is not None:
            state = "failed"
        elif outcome.pruned:
            state = "pruned"
        self._record(suggestion, state, outcome.curve, outcome.failure, key)
        result = save_outcome(outcome, candidate, self.plan.config.seed, self.folder)
        self._tell(suggestion.number, result)
        self.tracking.finished(key, result)

    def records(self) -> list[SearchTrial]:
        """Every trial of the study, those of other processes too."""
        found = []
        for point in self.study.trials():
            path = self._folder(point.number) / RECORD
            if point.state != "running" and path.exists():  # written before the study is told
                record = SearchTrial.model_validate_json(path.read_text(encoding="utf-8"))
            else:
                record = SearchTrial(
                    number=point.number,
                    name=name_of(point.number),
                    method=point.method,
                    parameters=point.parameters,
                    state=point.state,
                    value=point.value,
                )
            found.append(record.model_copy(update={"spans": read_spans(path.parent) or record.spans}))
        return found

    def _record(
        self,
        suggestion: Suggestion,
        state: Literal["complete", "pruned", "failed"],
        curve: Sequence[CurvePoint],
        failure: str | None,
        key: str,
    ) -> None:
        self.timeline.end(key)
        values = [point.metrics[self.plan.config.metric] for point in curve]
        record = SearchTrial(
            number=suggestion.number,
            name=name_of(suggestion.number),
            method=suggestion.method,
            parameters=suggestion.parameters,
            state=state,
            value=max(values, default=None),
            curve=list(curve),
            failure=failure,
        )
        own = record.model_dump_json(indent=2, exclude={"spans"})
        write_text(self._folder(suggestion.number) / RECORD, own)

    def _tell(self, number: int, result: SeedResult) -> None:
        if result.validation is not None:
            self.study.tell(number, result.validation.metrics[self.plan.config.metric], "complete")
        else:
            self.study.tell(number, None, "failed" if result.failed else "pruned")
        self._count()

    def _count(self) -> None:
        """Say how far the study is, with what was done in earlier calls and by other processes."""
        trials, wanted = self.study.trials(), self.plan.config.trials
        states = Counter[str](trial.state for trial in trials)
        about = [f"{states[state]} {state}" for state in ("pruned", "failed") if states[state]]
        if (best := self.study.best()) is not None:
            about.append(f"best {self.plan.config.metric} {best.value:.3f} ({name_of(best.number)})")
        total = max(len(trials), min(wanted, self.plan.space.size or wanted))
        done = len(trials) - states["running"]
        self.tracking.notify(Event("counted", "", done, total, message=" · ".join(about)))

    def _folder(self, number: int) -> Path:
        return self.folder.path / "candidates" / name_of(number)
