"""A comparison as trackers are told of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunestack.comparison.checks import IDENTITY
from tunestack.comparison.plan import BASELINE_SEED, BaselineCandidate, MethodCandidate, Plan
from tunestack.files import slug
from tunestack.results import Candidate, Results
from tunestack.stack.events import Notify
from tunestack.trackers.base import Conclusion, TrackedTrial
from tunestack.trackers.tracking import Tracking

REPORT = ("report.html", "leaderboard.md", "results.json")


def track(plan: Plan, notify: Notify) -> Tracking:
    """The trackers that the settings ask for, and every trial that they may be told of."""
    trials = {trial.key: trial for candidate in plan.candidates for trial in _trials(candidate, plan)}
    config, folder = plan.config, Path(plan.config.output)
    settings = config.model_dump(mode="json")
    return Tracking(config.track, "comparison", run_name(folder), folder, settings, trials, notify)


def run_name(folder: Path) -> str:
    """What trackers call a run: by its folder, with that of the sweep or the suite that it is a part of."""
    whole = folder.resolve()
    return f"{whole.parent.name}/{whole.name}" if (whole.parent / IDENTITY).exists() else whole.name


def conclusion(results: Results, folder: Path) -> Conclusion:
    """The verdict, what each candidate reached and costs, and the report in the run folder."""
    return Conclusion(
        sentence=results.verdict.sentence if results.verdict else "No candidate finished.",
        values={candidate.name: _values(candidate) for candidate in results.candidates},
        files=[folder / name for name in REPORT],
    )


def _trials(candidate: MethodCandidate | BaselineCandidate, plan: Plan) -> Iterator[TrackedTrial]:
    own = {"method": candidate.method_name, "base": candidate.base or "", **candidate.hyperparameters}
    if isinstance(candidate, BaselineCandidate):
        yield TrackedTrial(slug(candidate.name), candidate.name, {**own, "seed": BASELINE_SEED})
        return
    for seed in plan.config.seeds:
        yield TrackedTrial(candidate.trial(seed).key, candidate.name, {**own, "seed": seed})


def _values(candidate: Candidate) -> dict[str, float]:
    """Means over seeds and the costs that were measured."""
    means = {
        f"{split}/{name}": summary.mean
        for split, summaries in candidate.summaries.items()
        for name, summary in summaries.items()
    }
    return means | {f"costs/{name}": value for name, value in candidate.costs if value is not None}
