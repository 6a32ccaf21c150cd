"""From the results of a suite's tasks to its table: candidates down, tasks across, and the average.

**Intervals.** The scores of one task rest on the same trained models, so the interval of their mean reaches
from the mean of their lower ends to that of the upper ones: never too narrow, however they depend on each
other. Tasks have examples and training runs of their own, so the ends of the average lie
``sqrt(sum (mean_t - low_t)^2) / T`` and ``sqrt(sum (high_t - mean_t)^2) / T`` from it, for T tasks (Zou and
Donner 2008, "Construction of confidence limits about effect measures: a general approach": the variances are
recovered from the limits, each side from its own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tunestack.results import Candidate, Interval, Results, Summary
from tunestack.suites.base import Member, Score
from tunestack.suites.results import SuiteCell, SuiteColumn, SuiteRow, SuiteScore


def column(member: Member, results: Results) -> SuiteColumn:
    """One task's column."""
    scores = [
        SuiteScore(metric=one.metric, title=one.title, split=one.split, rows=results.data.rows[one.split])
        for one in member.scores
    ]
    return SuiteColumn(key=member.key, title=member.title, folder=member.key, scores=scores)


def rows(members: Sequence[Member], found: Mapping[str, Results]) -> list[SuiteRow]:
    """A row for every candidate of any task, the highest average first; those without one at the end."""
    names = dict.fromkeys(one.name for results in found.values() for one in results.candidates)
    every = [_row(name, members, found) for name in names]
    return sorted(every, key=lambda row: -np.inf if row.average is None else row.average.mean, reverse=True)


def average(cells: Sequence[Summary]) -> Summary:
    """The mean over tasks."""
    means = np.asarray([cell.mean for cell in cells])
    lows = np.asarray([cell.interval.low for cell in cells])
    highs = np.asarray([cell.interval.high for cell in cells])
    mean, tasks = float(means.mean()), len(cells)
    below, above = (float(np.linalg.norm(reach)) / tasks for reach in (means - lows, highs - means))
    interval = Interval(low=mean - below, high=mean + above, level=cells[0].interval.level)
    # Tasks train with seeds of their own: spreads add up like those of independent runs.
    spread = float(np.linalg.norm([cell.std for cell in cells])) / tasks
    return Summary(mean=mean, std=spread, interval=interval)


def _row(name: str, members: Sequence[Member], found: Mapping[str, Results]) -> SuiteRow:
    candidates = {
        key: one for key, results in found.items() for one in results.candidates if one.name == name
    }
    any_one = next(iter(candidates.values()))
    cells: dict[str, SuiteCell] = {}
    for member in members:
        cell = _cell(candidates[member.key], member.scores) if member.key in candidates else None
        if cell is not None:
            cells[member.key] = cell
    whole = len(cells) == len(members)
    seconds = [one.costs.train_seconds for one in candidates.values()]
    return SuiteRow(
        name=name,
        base=any_one.base,
        method=any_one.method,
        kind=any_one.kind,
        cells=cells,
        average=average([cell.mean for cell in cells.values()]) if whole else None,
        train_seconds=sum(s for s in seconds if s is not None) if None not in seconds else None,
    )


def _cell(candidate: Candidate, scores: Sequence[Score]) -> SuiteCell | None:
    """None where a score is missing."""
    splits = {"validation": candidate.validation, "test": candidate.test, **candidate.tests}
    summaries = [splits.get(one.split, {}).get(one.metric) for one in scores]
    known = [summary for summary in summaries if summary is not None]
    if len(known) < len(summaries):
        return None
    values = _seed_values(candidate, scores)
    interval = Interval(
        low=float(np.mean([one.interval.low for one in known])),
        high=float(np.mean([one.interval.high for one in known])),
        level=known[0].interval.level,
    )
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    mean = Summary(mean=float(np.mean([one.mean for one in known])), std=spread, interval=interval)
    return SuiteCell(scores=known, mean=mean)


def _seed_values(candidate: Candidate, scores: Sequence[Score]) -> list[float]:
    """The mean of a task's scores, for every seed that finished."""
    values = []
    for seed in candidate.seeds:
        reached = [(seed.scores.get(one.split), one.metric) for one in scores]
        known = [split.metrics[metric] for split, metric in reached if split is not None]
        if len(known) == len(scores):
            values.append(float(np.mean(known)))
    return values
