"""Running a comparison: baselines, stacks, costs, statistics, verdict, report. What is done is not redone."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from tunestack.comparison.costs import measure_alone
from tunestack.comparison.folder import FREE, RunFolder
from tunestack.comparison.plan import (
    BASELINE_SEED,
    BaselineCandidate,
    MethodCandidate,
    Plan,
    make_plan,
)
from tunestack.comparison.statistics import compare_to_best, summarize
from tunestack.comparison.track import conclusion, track
from tunestack.comparison.verdict import decide
from tunestack.config import CompareConfig
from tunestack.environment import environment
from tunestack.errors import UserError
from tunestack.executors.local import LocalExecutor
from tunestack.files import slug
from tunestack.report.html import write_report
from tunestack.report.leaderboard import write_leaderboard
from tunestack.results import PRUNED, Candidate, Costs, DataSummary, HardExample, Results, SeedResult
from tunestack.stack.events import Event, Notify
from tunestack.stack.room import release_memory
from tunestack.stack.work import Outcome, Workload
from tunestack.tasks.answers import Answers
from tunestack.trackers.tracking import Tracking

MOST_OTHERS = 0.15
"""Share of the processors' time that other programs may take before a reader is told."""


def run_comparison(
    config: CompareConfig, notify: Notify = lambda event: None, free: Collection[str] = FREE
) -> Results:
    """Train every candidate, measure it alone, compare, decide, and write the run folder.

    notify: is told of everything that happens. free: settings in which an earlier run in the same folder may
    differ. Raises UserError before training if the settings cannot work. Interrupted, it leaves a folder that
    the same call resumes.
    """
    return run_plan(make_plan(config), notify, free)


def run_plan(plan: Plan, notify: Notify = lambda event: None, free: Collection[str] = FREE) -> Results:
    """The same, of a comparison that is planned already."""
    config, folder = plan.config, RunFolder.open(plan, free)
    with folder.alone(), track(plan, notify) as tracking:
        folder.keep_settings(config)
        seeds = {"method": len(config.seeds), "baseline": 1}
        tracking.notify(Event("counted", "", steps=sum(seeds[each.kind] for each in plan.candidates)))
        for candidate in plan.candidates:
            if isinstance(candidate, BaselineCandidate):
                _run_baseline(candidate, plan, folder, tracking)
        for base in plan.bases:
            _run_stack(base, plan, folder, tracking)
        unmeasured = _unmeasured(plan, folder) if config.measure_costs else []
        for place, candidate in enumerate(unmeasured, 1):
            about = f"({place} of {len(unmeasured)}; --no-costs leaves this out)"
            _measure(candidate, plan, folder, about, notify)
        notify(Event("measuring", "", message="Writing the results and the report"))
        results = collect(plan, folder)
        results.save(folder.path / "results.json")
        write_leaderboard(results, folder.path / "leaderboard.md")
        write_report(results, folder.path)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # all trials are done
        tracking.conclude(conclusion(results, folder.path))
    return results


def _run_baseline(candidate: BaselineCandidate, plan: Plan, folder: RunFolder, tracking: Tracking) -> None:
    key, notify = slug(candidate.name), tracking.notify
    if folder.finished(candidate.name, BASELINE_SEED) is not None:
        notify(Event("finished", key))
        return
    notify(Event("started", key))
    base = plan.bases[candidate.base] if candidate.base else None
    task, splits = plan.task, plan.data.splits()
    try:
        fitted = candidate.baseline.fit(task, splits["train"], candidate.options, base)
        given = {name: fitted.answers(task, split) for name, split in splits.items() if name != "train"}
    except UserError as error:  # data or base do not suit this one: the others go on
        result = SeedResult(seed=BASELINE_SEED, failure=str(error))
        tracking.finished(key, folder.finish(candidate.name, result, {}, checkpoint=None))
        notify(Event("failed", key, message=str(error)))
        return
    decided = task.decide(splits["validation"], given["validation"], plan.config.metric)
    answers = {name: task.decided(own, decided) for name, own in given.items()}
    path = folder.adapter_folder(candidate.name, BASELINE_SEED)
    fitted.save(path)
    folder.describe(path, candidate, decided)
    result = SeedResult(seed=BASELINE_SEED, adapter_path=folder.relative(path))
    tracking.finished(key, folder.finish(candidate.name, result, answers, checkpoint=None))
    notify(Event("finished", key))


def _run_stack(base: str, plan: Plan, folder: RunFolder, tracking: Tracking) -> None:
    """Train all trials on one base that have no result yet."""
    owners = {
        candidate.trial(seed).key: (candidate, seed)
        for candidate in plan.candidates
        if isinstance(candidate, MethodCandidate) and candidate.base == base
        for seed in plan.config.seeds
    }
    trials = []
    for key, (candidate, seed) in owners.items():
        if folder.finished(candidate.name, seed) is None:
            trials.append(candidate.trial(seed))
        else:
            tracking.notify(Event("finished", key))
    if not trials:
        return

    def finish(outcome: Outcome) -> SeedResult:
        candidate, seed = owners[outcome.trial.key]
        result = save_outcome(outcome, candidate, seed, folder)
        tracking.finished(outcome.trial.key, result)
        return result

    work = Workload(plan.bases[base], plan.task, plan.data.splits(), plan.config.metric)
    LocalExecutor().run(work, trials, plan.config.slots, folder.checkpoints, finish, tracking.notify)


def save_outcome(outcome: Outcome, candidate: MethodCandidate, seed: int, folder: RunFolder) -> SeedResult:
    """Write a trial's weights, predictions and scores; of one that failed or was pruned the reason."""
    result = SeedResult(
        seed=seed,
        curves=list(outcome.curve),
        stacked_seconds=outcome.seconds,
        failure=outcome.failure or (PRUNED if outcome.pruned else None),
    )
    if result.failure is not None:
        return folder.finish(candidate.name, result, {}, outcome.trial.key)
    slot, path = outcome.slot, folder.adapter_folder(candidate.name, seed)
    base = folder.plan.bases[candidate.base]
    candidate.method.save(path, slot.config, slot.adapter, outcome.host, base.name)
    base.tokenizer.save_pretrained(str(path))
    folder.describe(path, candidate, outcome.decided)
    update = {"best_epoch": slot.progress.best_epoch, "adapter_path": folder.relative(path)}
    result = result.model_copy(update=update)
    return folder.finish(candidate.name, result, dict(outcome.answers), outcome.trial.key)


def _unmeasured(plan: Plan, folder: RunFolder) -> list[MethodCandidate | BaselineCandidate]:
    """The candidates that trained, and whose costs are not known yet."""
    return [
        candidate
        for candidate in plan.candidates
        if folder.costs(candidate.name) is None and _trained(candidate, plan, folder)
    ]


def _trained(
    candidate: MethodCandidate | BaselineCandidate, plan: Plan, folder: RunFolder
) -> list[SeedResult]:
    return [result for _, result in _seeds(candidate, plan, folder) if result.adapter_path is not None]


def _measure(
    candidate: MethodCandidate | BaselineCandidate, plan: Plan, folder: RunFolder, about: str, notify: Notify
) -> None:
    """Costs of a candidate that trained, measured in a process of its own."""
    key, done = slug(candidate.name), _trained(candidate, plan, folder)
    notify(Event("measuring", key, message=f"Measuring what {key} costs alone {about}"))
    release_memory()
    try:
        costs = measure_alone(folder.path, candidate.name)
    except RuntimeError as error:  # tried again when the command is
        notify(Event("failed", key, message=str(error)))
        return
    stored = folder.path / str(done[0].adapter_path)
    size = sum(file.stat().st_size for file in stored.iterdir() if not file.name.startswith("tokenizer"))
    folder.save_costs(candidate.name, costs.model_copy(update={"adapter_bytes": size}))


def _seeds(
    candidate: MethodCandidate | BaselineCandidate, plan: Plan, folder: RunFolder
) -> list[tuple[int, SeedResult]]:
    wanted = [BASELINE_SEED] if isinstance(candidate, BaselineCandidate) else plan.config.seeds
    found = [(seed, folder.finished(candidate.name, seed)) for seed in wanted]
    return [(seed, result) for seed, result in found if result is not None]


def collect(plan: Plan, folder: RunFolder) -> Results:
    """Statistics, verdict and everything else that `results.json` holds, from what the folder holds."""
    candidates: list[Candidate] = []
    validation: dict[str, Answers] = {}
    for planned in plan.candidates:
        seeds = [result for _, result in _seeds(planned, plan, folder)]
        candidate = Candidate(
            name=planned.name,
            base=planned.base,
            method=planned.method_name,
            kind=planned.kind,
            reads_text=planned.reads_text,
            hyperparameters=planned.hyperparameters,
            seeds=seeds,
            costs=folder.costs(planned.name) or Costs(),
        )
        trained = [seed for seed in seeds if seed.validation is not None]
        if trained:
            validation[planned.name] = _answers(plan, folder, trained, "validation")
            candidate.validation = summarize(validation[planned.name])
            if all(seed.test is not None for seed in trained):
                candidate.test = summarize(_answers(plan, folder, trained, "test"))
            candidate.tests = {
                name: summarize(_answers(plan, folder, trained, name))
                for name in plan.data.tests
                if all(name in seed.scores for seed in trained)
            }
        candidates.append(candidate)
    compared = compare_to_best(validation, plan.config.metric) if len(validation) > 1 else {}
    for candidate in candidates:
        candidate.comparison = compared.get(candidate.name)
    return Results(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        metric=plan.config.metric,
        task=plan.task.name,
        data=_data_summary(
            plan, [*_cut_texts(plan), *_remarks(plan, candidates), *disturbed(candidates, folder.path)]
        ),
        candidates=candidates,
        verdict=decide(candidates, plan.task.metrics[plan.config.metric], plan.task.constant),
        hard_examples=_hard_examples(plan, folder, candidates),
        hard_how=plan.task.misses,
        environment=environment(),
        config=plan.config.model_dump(mode="json"),
    )


def _answers(plan: Plan, folder: RunFolder, seeds: list[SeedResult], split: str) -> Answers:
    given = plan.task.several([folder.answers(seed, split) for seed in seeds])
    return plan.task.answers(plan.data.splits()[split], given)


def _data_summary(plan: Plan, warnings: list[str]) -> DataSummary:
    data, splits = plan.data, plan.data.splits()
    return DataSummary(
        source=data.source,
        rows={name: len(split) for name, split in splits.items()},
        label_names=list(data.label_names),
        label_counts={name: plan.task.label_counts(split) for name, split in splits.items()},
        counted=plan.task.counted,
        warnings=[*data.warnings, *warnings],
    )


def _remarks(plan: Plan, candidates: Sequence[Candidate]) -> list[str]:
    """What the task has to say of each candidate's metrics."""
    sentences = []
    for candidate in candidates:
        means = {
            split: {name: summary.mean for name, summary in summaries.items()}
            for split, summaries in candidate.summaries.items()
        }
        sentences += [f"{candidate.name}: {sentence}" for sentence in plan.task.remarks(means)]
    return sentences


def disturbed(candidates: Sequence[Candidate], folder: Path) -> list[str]:
    """A sentence on costs that were measured while other programs had the processors; none if they were not.

    folder: the comparison's.
    """
    shares = {c.name: c.costs.others_share or 0.0 for c in candidates}
    names = [name for name, share in shares.items() if share > MOST_OTHERS]
    if not names:
        return []
    files = folder / "candidates" / "*" / "costs.json"
    return [
        f"While costs were measured ({', '.join(names)}), other programs took up to "
        f"{max(shares.values()):.0%} of the processors: seconds are too many, throughput is too low. To "
        f"measure again when they rest, delete {files} and run the same command."
    ]


def _cut_texts(plan: Plan) -> list[str]:
    """Sentences on texts that are longer than candidates read them."""
    limits: dict[tuple[str, int], list[str]] = {}
    for candidate in plan.candidates:
        if candidate.base is not None and candidate.max_length is not None:
            limit = plan.bases[candidate.base].room_for_text(candidate.max_length, candidate.positions)
            limits.setdefault((candidate.base, limit), []).append(candidate.name)
    sentences = []
    for (name, limit), names in limits.items():
        base = plan.bases[name]
        splits = plan.data.splits().values()
        cut = sum(plan.task.encode(base, split, limit).truncated for split in splits)
        if cut:
            sentences.append(
                f"{cut:,} texts are {plan.task.long_texts} {limit} tokens of {name} for {', '.join(names)}."
            )
    return sentences


def _hard_examples(plan: Plan, folder: RunFolder, candidates: Sequence[Candidate]) -> list[HardExample]:
    """Validation examples that every candidate gets wrong with every seed; majority does not count."""
    reading = [candidate for candidate in candidates if candidate.reads_text]
    judged = [seed for candidate in reading for seed in candidate.seeds if seed.validation is not None]
    if not judged:
        return []
    split, task = plan.data.validation, plan.task
    given = [folder.answers(seed, "validation") for seed in judged]
    wrong = np.flatnonzero(~task.answers(split, task.several(given)).right.any(axis=0))
    told = [task.told(split, own)["prediction"] for own in given]
    truth = next(iter(task.truth(split).values()))
    return [
        HardExample(
            row=int(split["row"][int(index)]),
            text=task.shown(split, int(index)),
            label=str(truth[index]),
            predicted=task.typical([own[index] for own in told]),
        )
        for index in wrong
    ]
