"""What the page of a sweep shows, gathered from its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunestack.report import formatting
from tunestack.report.occupancy import Occupancy, occupancy
from tunestack.report.search_plots import (
    Curves,
    History,
    Parallel,
    ScoreAxis,
    Slice,
    history,
    parallel,
    slices,
    trial_curves,
)
from tunestack.report.trials import (
    METHOD,
    TrialRow,
    caution,
    importances,
    log_searched,
    parameter_names,
    state_counts,
    trial_rows,
)
from tunestack.results import Results, SearchSummary

FIRST_ROWS = 10
"""So many trials the table shows before the reader asks for all."""


@dataclass(frozen=True)
class Column:
    """A parameter's column in the table of trials; numeric: whether it sorts as numbers."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class SweepView:
    """All that the sweep's part of the page says and draws.

    chosen: what was searched, of the trial to ship. states: how many trials of each state. near: how many
    complete ones cannot be told apart from the best.
    off: how many marks lie below the axis. progress, saved: findings, in words.
    """

    rows: list[TrialRow]
    first_rows: int
    columns: list[Column]
    chosen: Mapping[str, Any]
    states: Mapping[str, int]
    counts: str
    near: int
    caution: str
    progress: str
    saved: str
    off: int
    history: History | None
    importances: list[tuple[str, float]]
    parallel: Parallel | None
    slices: list[Slice]
    curves: Curves | None
    occupancy: Occupancy | None


def sweep_view(results: Results) -> SweepView | None:
    """The sweep's part of the page; None for a comparison."""
    search = results.search
    if search is None:
        return None
    rows = trial_rows(results)
    searched = log_searched(results)
    log = {name: searched.get(name) for name in parameter_names(search)}
    axis = ScoreAxis.of(rows)
    metric = formatting.metric_name(results.metric)
    drawn = history(rows, axis) if axis else None
    return SweepView(
        rows=rows,
        first_rows=FIRST_ROWS,
        columns=[Column(name, _numeric(rows, name)) for name in log if name != METHOD],
        chosen=_chosen(rows),
        states=Counter(trial.state for trial in search.trials),
        counts=state_counts(search),
        near=sum(c.comparison is not None and not c.comparison.significant for c in results.candidates),
        caution=caution(search),
        progress=_progress(rows, metric),
        saved=_saved(search),
        off=sum(mark.shape == "off" for mark in drawn.marks) if drawn else 0,
        history=drawn,
        importances=importances(search),
        parallel=parallel(rows, log, metric),
        slices=slices(rows, log, axis) if axis else [],
        curves=trial_curves(rows, results.metric),
        occupancy=occupancy(rows),
    )


def _chosen(rows: Sequence[TrialRow]) -> dict[str, Any]:
    """What was searched, of the trial to ship; with its method, where there are several."""
    several = len({row.trial.method for row in rows}) > 1
    for row in rows:
        if row.standing == "ship":
            return {**({METHOD: row.trial.method} if several else {}), **row.settings}
    return {}


def _numeric(rows: Sequence[TrialRow], name: str) -> bool:
    values = [row.settings[name] for row in rows if name in row.settings]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _progress(rows: Sequence[TrialRow], metric: str) -> str:
    """When the best value came, and how many trials since did not improve on it."""
    best = next((row for row in rows if row.rank == 1), None)
    if best is None:
        return "No trial is complete."
    since = sum(row.complete and row.trial.number > best.trial.number for row in rows)
    found = f"The highest {metric}, {formatting.score(best.value)}, came with {best.name}"
    if not since:
        return f"{found}, the last complete trial."
    return f"{found}; {formatting.count(since, 'complete trial')} after it did not beat it."


def _saved(search: SearchSummary) -> str:
    """How much training pruning saved, as far as the longest trial tells."""
    epochs = [trial.curve[-1].epoch for trial in search.trials if trial.curve]
    pruned = [trial.curve[-1].epoch for trial in search.trials if trial.state == "pruned" and trial.curve]
    if not pruned:
        return "No trial was pruned."
    average = f"{sum(pruned) / len(pruned):.2g}"
    stopped = formatting.count(len(pruned), "trial")
    return (
        f"{stopped} {'was' if len(pruned) == 1 else 'were'} pruned, after {average} "
        f"epoch{'' if average == '1' else 's'} on average; "
        f"the longest trained for {max(epochs):g}."
    )
