"""Many test sets in one table: a row a candidate, a column a set, and the average, as papers have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunestack.report.standings import Entry
from tunestack.results import Results, Summary


@dataclass(frozen=True)
class SetRow:
    """One candidate on every set; None where it was not scored. average: of all sets, each counting alike."""

    entry: Entry
    scores: list[Summary | None]
    average: float | None


@dataclass(frozen=True)
class SetTable:
    """names: of the sets, in the order of the configuration. sizes: how many examples each has."""

    names: list[str]
    sizes: list[int | None]
    rows: list[SetRow]


def set_table(results: Results, entries: Sequence[Entry]) -> SetTable | None:
    """The candidates on the further test sets, in order of the leaderboard; None where there are none."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.candidate.tests))
    if not names:
        return None
    return SetTable(
        names,
        [results.data.rows.get(name) for name in names],
        [_row(entry, names, results.metric) for entry in entries if entry.candidate.tests],
    )


def _row(entry: Entry, names: list[str], metric: str) -> SetRow:
    scores = [entry.candidate.tests.get(name, {}).get(metric) for name in names]
    means = [score.mean for score in scores if score is not None]
    return SetRow(entry, scores, sum(means) / len(means) if len(means) == len(names) else None)
