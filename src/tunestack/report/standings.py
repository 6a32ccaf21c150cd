"""Who stands where: the candidates in rank order, with what every table and chart says about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tunestack.report import formatting
from tunestack.results import Candidate, Costs, Interval, Results, Summary

Standing = Literal["ship", "best", "tied", "behind", "unjudged", "failed"]
"""ship: the verdict's choice; best: highest, but not the choice; tied: not distinguishable from the best;
behind: significantly worse; unjudged: scored but never compared; failed: without a score."""

STANDING_WORDS: dict[Standing, str] = {
    "ship": "ship this",
    "best": "highest score",
    "tied": "not distinguishable from the best",
    "behind": "worse than the best",
    "unjudged": "not compared",
    "failed": "failed",
}

_SIDE_METRICS = ("f1", "exact_match", "f1_macro", "accuracy", "mcc", "roc_auc", "spearman", "pearson")


@dataclass(frozen=True)
class CostColumn:
    """A cost as tables show it. title, short: its heading, in sentences and where space is short; lower:
    whether less is better."""

    title: str
    short: str
    lower: bool
    value: Callable[[Costs], float | None]
    text: Callable[[float | None], str]


COST_COLUMNS = (
    CostColumn("training", "Training", True, lambda c: c.train_seconds, formatting.duration),
    CostColumn("peak memory", "Memory", True, lambda c: c.peak_memory_bytes, formatting.size),
    CostColumn("on disk", "On disk", True, lambda c: c.adapter_bytes, formatting.size),
    CostColumn("speed", "Speed", False, lambda c: c.inference_examples_per_second, formatting.rate),
    CostColumn("trainable", "Trainable", True, lambda c: c.trainable_parameters, formatting.quantity),
)


@dataclass(frozen=True)
class Entry:
    """A candidate in the leaderboard. index: its place, from 0; rank: from 1, None if it has no score;
    best: whether the others are compared with this one."""

    index: int
    rank: int | None
    candidate: Candidate
    standing: Standing
    score: Summary | None
    test: Summary | None
    best: bool

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.candidate.name

    @property
    def failures(self) -> list[str]:
        """Why seeds did not finish: ``seed 2: out of memory``."""
        return [f"seed {seed.seed}: {seed.failure}" for seed in self.candidate.seeds if seed.failure]

    @property
    def finished(self) -> int:
        """How many seeds have a validation score."""
        return sum(seed.validation is not None for seed in self.candidate.seeds)

    @property
    def near(self) -> bool:
        """Whether it is the best one or not distinguishable from it."""
        comparison = self.candidate.comparison
        return self.best or (comparison is not None and not comparison.significant)

    @property
    def difference(self) -> float | None:
        """This candidate minus the best one (negative: worse), in the comparison's metric."""
        comparison = self.candidate.comparison
        return None if comparison is None else -comparison.difference

    @property
    def difference_interval(self) -> Interval | None:
        """The interval of `difference`."""
        comparison = self.candidate.comparison
        if comparison is None:
            return None
        bounds = comparison.interval
        return Interval(low=-bounds.high, high=-bounds.low, level=bounds.level)


def standings(results: Results) -> list[Entry]:
    """Rank the candidates by mean validation score; those without one come last, in their own order."""
    metric = results.metric
    scored = [candidate for candidate in results.candidates if metric in candidate.validation]
    failed = [candidate for candidate in results.candidates if metric not in candidate.validation]
    scored.sort(key=lambda candidate: -candidate.validation[metric].mean)
    best = results.verdict.best if results.verdict else scored[0].name if scored else None
    return [
        Entry(
            index=index,
            rank=index + 1 if index < len(scored) else None,
            candidate=candidate,
            standing=_standing(results, candidate),
            score=candidate.validation.get(metric),
            test=candidate.test.get(metric),
            best=candidate.name == best,
        )
        for index, candidate in enumerate(scored + failed)
    ]


def entry_named(entries: Sequence[Entry], name: str | None) -> Entry | None:
    """The entry of that name, if there is one."""
    return next((entry for entry in entries if entry.name == name), None)


def side_metrics(results: Results) -> list[str]:
    """Up to two well-known metrics beside the one that decides, of those that were computed."""
    known = {metric for candidate in results.candidates for metric in candidate.validation}
    return [metric for metric in _SIDE_METRICS if metric in known and metric != results.metric][:2]


def cost_columns(results: Results) -> list[CostColumn]:
    """The costs that were measured of at least one candidate."""
    costs = [candidate.costs for candidate in results.candidates]
    return [column for column in COST_COLUMNS if any(column.value(cost) is not None for cost in costs)]


def several_seeds(entries: Sequence[Entry]) -> bool:
    """Whether any candidate was trained with more than one seed: else there is nothing to speak of seeds."""
    return any(len(entry.candidate.seeds) > 1 for entry in entries)


def has_test(results: Results) -> bool:
    """Whether any candidate was scored on a test split."""
    return any(results.metric in candidate.test for candidate in results.candidates)


def level(entries: list[Entry]) -> str:
    """The coverage of the scores' intervals, for headings; 95% if there is none."""
    levels = [entry.score.interval.level for entry in entries if entry.score]
    return f"{100 * (levels[0] if levels else 0.95):g}%"


def _standing(results: Results, candidate: Candidate) -> Standing:
    if results.metric not in candidate.validation:
        return "failed"
    if results.verdict and candidate.name == results.verdict.ship:
        return "ship"
    if results.verdict and candidate.name == results.verdict.best:
        return "best"
    if candidate.comparison is None:
        return "unjudged"
    return "behind" if candidate.comparison.significant else "tied"
