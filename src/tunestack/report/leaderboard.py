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
from tunestack.report.standings import Entry, has_test, level, side_metrics, standings
from tunestack.results import Results

_MARKDOWN_SPECIAL = str.maketrans(
    {char: f"\\{char}" for char in "\\|*_`[]~"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " "}
)
_COLOURS = {"ship": "bold green", "best": "bold blue", "tied": "blue", "failed": "red"}


def write_leaderboard(results: Results, path: Path) -> None:
    """Write the verdict and the leaderboard as Markdown (a table as GitHub renders it), atomically."""
    table = markdown_table(results)
    write_text(path, "\n\n".join([_markdown_verdict(results), *([table] if table else [])]) + "\n")


def markdown_table(results: Results) -> str:
    """The leaderboard alone, with its notes; empty where there is no candidate."""
    return "\n\n".join(_markdown_table(results, standings(results)))


def escaped(text: str) -> str:
    """Any text as Markdown that shows it as it is, on one line."""
    return text.translate(_MARKDOWN_SPECIAL)


def verdict_sentence(results: Results) -> str:
    """What to ship, for people; says so where nothing can be shipped."""
    if results.verdict:
        return results.verdict.sentence
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
    heads += ["training", "peak memory", "on disk", "texts / s", "trainable"]
    left = {1, 2}
    lines = [heads, ["---" if column in left else "--:" for column in range(len(heads))]]
    for entry in entries:
        candidate, costs = entry.candidate, entry.candidate.costs
        cells = [str(entry.rank or formatting.MISSING), entry.name, candidate.base or formatting.MISSING]
        cells += [_score_cell(entry), _difference_cell(entry)]
        cells += [
            formatting.score(candidate.validation[side].mean if side in candidate.validation else None)
            for side in sides
        ]
        cells += [_test_cell(entry)] * test
        cells += [
            formatting.duration(costs.train_seconds),
            formatting.size(costs.peak_memory_bytes),
            formatting.size(costs.adapter_bytes),
            formatting.rate(costs.inference_examples_per_second).removesuffix(" / s"),
            formatting.quantity(costs.trainable_parameters),
        ]
        lines.append([escaped(cell) for cell in cells])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    note = (
        f"Scores: mean ± standard deviation over seeds, [{level(entries)} interval]. Differences: candidate "
        "minus best, paired on the same validation examples, p corrected for their number (Holm). "
        "Costs: one run of that candidate alone."
    )
    return [table, escaped(note), *_failure_notes(entries)]


def _failure_notes(entries: list[Entry]) -> list[str]:
    lines = [f"- {entry.name}, {failure}" for entry in entries for failure in entry.failures]
    if not lines:
        return []
    return ["Did not finish:", "\n".join(f"- {escaped(line[2:])}" for line in lines)]


def _score_cell(entry: Entry) -> str:
    if entry.score is None:
        return "failed"
    score = entry.score
    spread = f"{formatting.score(score.mean)} ± {formatting.score(score.std)}"
    return f"{spread} {formatting.interval(score.interval)}"


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


def render_terminal(results: Results) -> RenderableType:
    """The leaderboard and the verdict for a terminal of 80 columns and more: print it with rich."""
    entries = standings(results)
    parts: list[RenderableType] = [_TerminalTable(results, entries)] if entries else []
    for entry in entries:
        parts += [Text(f"{entry.name}, {failure}", style="red") for failure in entry.failures]
    parts += [Text(f"Note: {warning}", style="yellow") for warning in results.data.warnings]
    title = (
        Text(f"Ship {results.verdict.ship}", style="bold green")
        if results.verdict
        else Text("No verdict", style="bold")
    )
    sentence = Text(verdict_sentence(results))
    parts.append(Padding(Panel(sentence, title=title, title_align="left", padding=(0, 1)), (1, 0, 0, 0)))
    return Group(*parts)


class _TerminalTable:
    """The table itself; columns move together where the terminal is narrow, so that none is cut off."""

    def __init__(self, results: Results, entries: list[Entry]) -> None:
        self.metric = formatting.metric_name(results.metric)
        self.test = has_test(results)
        self.entries = entries

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        gap = 1 if options.max_width >= 110 else 0
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap), header_style="bold")
        table.add_column("candidate", overflow="fold", min_width=10)
        heads = [self.metric, level(self.entries), "to best", *["test"] * self.test]
        for head in [*heads, "training", "memory", "on disk"]:
            table.add_column(head, justify="right", no_wrap=True)
        for entry in self.entries:
            table.add_row(*_terminal_cells(entry, self.test))
        yield table


def _terminal_cells(entry: Entry, test: bool) -> list[Text]:
    name = Text(entry.name, style=_COLOURS.get(entry.standing, ""))
    costs = entry.candidate.costs
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
    scores += [
        formatting.duration(costs.train_seconds),
        formatting.size(costs.peak_memory_bytes),
        formatting.size(costs.adapter_bytes),
    ]
    return [name, *(Text(cell) for cell in scores)]
