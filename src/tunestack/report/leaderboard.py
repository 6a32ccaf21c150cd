"""The leaderboard as Markdown and in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tunestack.files import write_text
from tunestack.report import formatting
from tunestack.report.sets import SetRow, set_table
from tunestack.report.standings import (
    Entry,
    cost_columns,
    has_test,
    level,
    several_seeds,
    side_metrics,
    standings,
)
from tunestack.report.trials import TrialRow, caution, state_counts, trial_rows
from tunestack.results import Results, SearchSummary

_MARKDOWN_SPECIAL = str.maketrans(
    {char: f"\\{char}" for char in "\\|*_`[]~"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " "}
)
_COLOURS = {
    "ship": "bold green",
    "best": "bold blue",
    "tied": "blue",
    "failed": "red",
    "pruned": "dim",
    "running": "dim",
}
_TERMINAL_COSTS = ("Training", "Memory", "On disk")
TERMINAL_TRIALS = 10
TERMINAL_FAILURES = 3
"""So many trials of a sweep, and so many reasons why trials failed, the terminal shows."""


def write_leaderboard(results: Results, path: Path) -> None:
    """Write the verdict and the leaderboard as Markdown (a table as GitHub renders it), atomically."""
    table = markdown_table(results)
    write_text(path, "\n\n".join([_markdown_verdict(results), *([table] if table else [])]) + "\n")


def markdown_table(results: Results) -> str:
    """The leaderboard alone, with its notes; empty where there is no candidate, in a sweep no trial."""
    if results.search:
        return "\n\n".join(_markdown_trials(results, results.search))
    return "\n\n".join(_markdown_table(results, standings(results)))


def escaped(text: str) -> str:
    """Any text as Markdown that shows it as it is, on one line."""
    return text.translate(_MARKDOWN_SPECIAL)


def verdict_sentence(results: Results) -> str:
    """What to ship, for people; says so where nothing can be shipped."""
    if results.verdict:
        return results.verdict.sentence
    if results.search:
        return "No trial is complete."
    finished = any(results.metric in candidate.validation for candidate in results.candidates)
    return "The candidates were not compared." if finished else "No candidate finished."


def _markdown_verdict(results: Results) -> str:
    sentence = escaped(verdict_sentence(results))
    ship = f"**Ship {escaped(results.verdict.ship)}.** " if results.verdict else ""
    return f"# Leaderboard\n\n{ship}{sentence}"


def _markdown_table(results: Results, entries: list[Entry]) -> list[str]:
    if not entries:
        return []
    metric = formatting.metric_name(results.metric)
    sides = side_metrics(results)
    test = has_test(results)
    heads = ["#", "candidate", "base", f"{metric}, validation", "difference to the best"]
    heads += [formatting.metric_name(side) for side in sides]
    heads += [f"{metric}, test"] * test
    costs = cost_columns(results)
    heads += [column.title for column in costs]
    lines = [heads, _rule(heads, left=("candidate", "base"))]
    for entry in entries:
        candidate = entry.candidate
        cells = [str(entry.rank or formatting.MISSING), entry.name, candidate.base or formatting.MISSING]
        cells += [_score_cell(entry), _difference_cell(entry)]
        cells += [
            formatting.score(candidate.validation[side].mean if side in candidate.validation else None)
            for side in sides
        ]
        cells += [_test_cell(entry)] * test
        cells += [column.text(column.value(candidate.costs)) for column in costs]
        lines.append([escaped(cell) for cell in cells])
    over_seeds = "mean ± standard deviation over seeds, " if several_seeds(entries) else ""
    note = (
        f"Scores: {over_seeds}[{level(entries)} interval]. Differences: candidate minus best, paired on the "
        "same validation examples, p corrected for their number (Holm)."
    )
    if costs:
        note += " Costs: one run of that candidate alone; speed in texts answered."
    failures = [f"{entry.name}, {failure}" for entry in entries for failure in entry.failures]
    return [_table(lines), escaped(note), *_markdown_sets(results, entries), *_failure_notes(failures)]


def _markdown_sets(results: Results, entries: list[Entry]) -> list[str]:
    """The further test sets, where there are some."""
    sets = set_table(results, entries)
    if sets is None:
        return []
    heads = ["candidate", "base", *map(escaped, sets.names), "average"]
    lines = [heads, _rule(heads, left=("candidate", "base"))]
    for row in sets.rows:
        cells = [row.entry.name, row.entry.candidate.base or formatting.MISSING, *_set_cells(row)]
        lines.append([escaped(cell) for cell in cells])
    mean = ", mean over seeds" if several_seeds(entries) else ""
    note = (
        f"Test sets: {formatting.metric_name(results.metric)}{mean}; the average counts every set alike. "
        "Intervals stand in report.html. They decided nothing."
    )
    return ["## Test sets", _table(lines), escaped(note)]


def _set_cells(row: SetRow) -> list[str]:
    means = [None if score is None else score.mean for score in row.scores]
    return [formatting.score(mean) for mean in [*means, row.average]]


def _markdown_trials(results: Results, search: SearchSummary) -> list[str]:
    rows = trial_rows(results)
    if not rows:
        return []
    metric = formatting.metric_name(results.metric)
    heads = ["#", "trial", "method", "state", f"{metric}, validation", "epochs", "parameters"]
    lines = [heads, _rule(heads, left=("trial", "method", "state", "parameters"))]
    for row in rows:
        cells = [
            str(row.rank or formatting.MISSING),
            row.name,
            row.method,
            row.trial.state,
            formatting.score(row.value),
            formatting.MISSING if row.epochs is None else f"{row.epochs:g}",
            formatting.parameters(row.settings),
        ]
        lines.append([escaped(cell) for cell in cells])
    note = (
        f"{state_counts(search)}. Of a trial that was stopped, the last value that it had. {caution(search)}"
    )
    confirmed = f"The best were trained again with several seeds: {search.confirmed}/leaderboard.md."
    failures = [f"{row.name}: {row.trial.failure}" for row in rows if row.trial.failure]
    notes = [escaped(note.strip()), *([escaped(confirmed)] if search.confirmed else [])]
    return [_table(lines), *notes, *_failure_notes(failures)]


def _rule(heads: list[str], left: tuple[str, ...]) -> list[str]:
    return ["---" if head in left else "--:" for head in heads]


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _failure_notes(failures: list[str]) -> list[str]:
    if not failures:
        return []
    return ["Did not finish:", "\n".join(f"- {escaped(failure)}" for failure in failures)]


def _score_cell(entry: Entry) -> str:
    if entry.score is None:
        return "failed"
    score = entry.score
    mean = f"{formatting.score(score.mean)}{formatting.spread(score.std)}"
    return f"{mean} {formatting.interval(score.interval)}"


def _test_cell(entry: Entry) -> str:
    if entry.test is None:
        return formatting.MISSING
    return f"{formatting.score(entry.test.mean)} {formatting.interval(entry.test.interval)}"


def _difference_cell(entry: Entry) -> str:
    comparison = entry.candidate.comparison
    if entry.difference is None or comparison is None:
        return "best" if entry.best else formatting.MISSING
    bounds = formatting.interval(entry.difference_interval, sign=True)
    return (
        f"{formatting.signed(entry.difference)} {bounds} {formatting.p_value(comparison.p_value_corrected)}"
    )


def render_terminal(results: Results, confirmed: Results | None = None) -> RenderableType:
    """The leaderboard and the verdict for a terminal of 80 columns and more: print it with rich.

    confirmed: of a sweep, the comparison of its best with several seeds.
    """
    parts = _terminal_trials(results, results.search) if results.search else _terminal_candidates(results)
    if confirmed is not None:
        seeds = formatting.count(len(confirmed.candidates[0].seeds), "seed")
        parts += [Text(f"\nThe best again, {seeds} each:"), *_terminal_candidates(confirmed)]
    parts += [Text(f"Note: {warning}", style="yellow") for warning in results.data.warnings]
    title = (
        Text(f"Ship {results.verdict.ship}", style="bold green")
        if results.verdict
        else Text("No verdict", style="bold")
    )
    sentence = Text(verdict_sentence(results))
    parts.append(Padding(Panel(sentence, title=title, title_align="left", padding=(0, 1)), (1, 0, 0, 0)))
    return Group(*parts)


def _terminal_candidates(results: Results) -> list[RenderableType]:
    entries = standings(results)
    parts: list[RenderableType] = [_TerminalTable(results, entries)] if entries else []
    parts += _terminal_sets(results, entries)
    for entry in entries:
        parts += [Text(f"{entry.name}, {failure}", style="red") for failure in entry.failures]
    return parts


def _terminal_sets(results: Results, entries: list[Entry]) -> list[RenderableType]:
    sets = set_table(results, entries)
    if sets is None:
        return []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title="Test sets")
    table.add_column("candidate", overflow="fold", min_width=10)
    for name in [*sets.names, "average"]:
        table.add_column(name, justify="right", overflow="fold", min_width=5)
    for row in sets.rows:
        candidate = Text(row.entry.name, style=_COLOURS.get(row.entry.standing, ""))
        table.add_row(candidate, *map(Text, _set_cells(row)))
    return [table]


def _terminal_trials(results: Results, search: SearchSummary) -> list[RenderableType]:
    rows = trial_rows(results)
    if not rows:
        return []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("trial", overflow="fold", min_width=8)
    table.add_column("state", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    table.add_column(formatting.metric_name(results.metric), justify="right", no_wrap=True)
    several = len({row.method for row in rows}) > 1
    for row in rows[:TERMINAL_TRIALS]:
        table.add_row(*_trial_cells(row, several))
    more = len(rows) - TERMINAL_TRIALS
    hint = f"{state_counts(search)}" + (f"; {more} more in leaderboard.md" if more > 0 else "")
    failures = [f"{row.name}: {row.trial.failure}" for row in rows if row.trial.failure][:TERMINAL_FAILURES]
    return [table, Text(hint, style="dim"), *(Text(failure, style="red") for failure in failures)]


def _trial_cells(row: TrialRow, several: bool) -> list[Text]:
    """several: whether the sweep has more than one method."""
    settings = formatting.parameters(row.settings)
    style = _COLOURS.get(row.standing, "")
    return [
        Text(row.name, style=style),
        Text(row.trial.state, style=style),
        Text(f"{row.method}: {settings}" if several else settings),
        Text(formatting.score(row.value), style=style),
    ]


class _TerminalTable:
    """The table itself; columns move together where the terminal is narrow, so that none is cut off."""

    def __init__(self, results: Results, entries: list[Entry]) -> None:
        self.metric = formatting.metric_name(results.metric)
        self.test = has_test(results)
        self.entries = entries
        # Speed and parameters would not fit a terminal.
        self.costs = [column for column in cost_columns(results) if column.short in _TERMINAL_COSTS]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        gap = 1 if options.max_width >= 110 else 0
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap), header_style="bold")
        table.add_column("candidate", overflow="fold", min_width=10)
        heads = [self.metric, level(self.entries), "to best", *["test"] * self.test]
        for head in [*heads, *(column.short.lower() for column in self.costs)]:
            table.add_column(head, justify="right", no_wrap=True)
        for entry in self.entries:
            costs = [column.text(column.value(entry.candidate.costs)) for column in self.costs]
            table.add_row(*_terminal_cells(entry, self.test), *map(Text, costs))
        yield table


def _terminal_cells(entry: Entry, test: bool) -> list[Text]:
    name = Text(entry.name, style=_COLOURS.get(entry.standing, ""))
    if entry.score is None:
        scores = ["failed", "", ""]
    else:
        bounds = entry.score.interval
        difference = "best" if entry.best else formatting.MISSING
        if entry.difference is not None:
            difference = ("≈ " if entry.near else "") + formatting.signed(entry.difference)
        span = f"{formatting.score(bounds.low)}–{formatting.score(bounds.high)}"
        scores = [formatting.score(entry.score.mean), span, difference]
    scores += [formatting.score(entry.test.mean if entry.test else None)] * test
    return [name, *(Text(cell) for cell in scores)]
