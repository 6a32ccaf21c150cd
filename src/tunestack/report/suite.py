"""A suite's table: as Markdown, in the terminal, and as a page that links to each task's report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunestack.files import write_text
from tunestack.report import formatting
from tunestack.report.leaderboard import escaped
from tunestack.results import Summary
from tunestack.suites.results import SuiteCell, SuiteColumn, SuiteResults, SuiteRow


def write_suite_report(results: SuiteResults, folder: Path) -> None:
    """Write `suite.md` and `suite.html`, atomically."""
    write_text(folder / "suite.md", suite_markdown(results) + "\n")
    write_text(folder / "suite.html", suite_html(results))


@dataclass(frozen=True)
class Shown:
    """A cell as it is shown. best: whether no other row is higher in this column."""

    text: str
    bounds: str
    spread: str
    best: bool


def heading(column: SuiteColumn) -> str:
    """The task and its scores: ``MRPC accuracy / F1``."""
    return f"{column.title} {' / '.join(score.title for score in column.scores)}"


def shown(results: SuiteResults, row: SuiteRow, column: SuiteColumn) -> Shown:
    """A candidate's cell of one task."""
    cell = row.cells.get(column.key)
    if cell is None:
        return Shown(formatting.MISSING, "", "", False)
    return _shown(_scores(cell), cell.mean, _is_best(results, cell.mean.mean, column))


def shown_average(results: SuiteResults, row: SuiteRow) -> Shown:
    """A candidate's average."""
    if row.average is None:
        return Shown(formatting.MISSING, "", "", False)
    highest = max(other.average.mean for other in results.rows if other.average)
    return _shown(formatting.score(row.average.mean), row.average, row.average.mean == highest)


def note(results: SuiteResults) -> str:
    """What the table's numbers are."""
    parts = [
        "Scores on validation, mean over seeds; in brackets the 95% interval, where a task has two scores of "
        "their mean, which is also what counts in the average. The average's interval adds up those of the "
        "tasks as of independent ones."
    ]
    if len(results.columns) < len(results.planned):
        parts.append(f"{len(results.columns)} of {len(results.planned)} tasks are done.")
    return " ".join(parts)


def suite_markdown(results: SuiteResults) -> str:
    """Title, table and note."""
    heads = ["candidate", *map(heading, results.columns), "average"]
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)]]
    for row in results.rows:
        cells = [shown(results, row, column) for column in results.columns]
        lines.append([escaped(row.name), *map(_markdown_cell, [*cells, shown_average(results, row)])])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    links = ", ".join(f"[{column.title}]({column.folder}/leaderboard.md)" for column in results.columns)
    return f"# {results.title}\n\n{table}\n\n{note(results)}\n\nEach task by itself: {links}."


def suite_html(results: SuiteResults) -> str:
    """The page; it opens offline, asks nothing of the network and runs no script."""
    environment = Environment(
        loader=PackageLoader("tunestack.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    board = [
        (row, [shown(results, row, column) for column in results.columns], shown_average(results, row))
        for row in results.rows
    ]
    return environment.get_template("suite.html.j2").render(
        fmt=formatting,
        style=(Path(__file__).parent / "style.css").read_text(encoding="utf-8"),
        results=results,
        board=board,
        note=note(results),
    )


def render_suite(results: SuiteResults) -> RenderableType:
    """The table for a terminal: tasks down where there are more of them than candidates."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("task", overflow="fold", min_width=8)
    for row in results.rows:
        table.add_column(row.name, justify="right", overflow="fold")
    for column in results.columns:
        cells = [shown(results, row, column) for row in results.rows]
        table.add_row(Text(heading(column)), *map(_terminal_cell, cells))
    averages = [shown_average(results, row) for row in results.rows]
    table.add_section()
    table.add_row(Text("average", style="bold"), *map(_terminal_cell, averages))
    table.add_row(Text(""), *(Text(one.bounds, style="dim") for one in averages))
    return Group(table, Text(note(results), style="dim"))


def _shown(text: str, mean: Summary, best: bool) -> Shown:
    return Shown(text, formatting.interval(mean.interval), formatting.spread(mean.std).strip(), best)


def _scores(cell: SuiteCell) -> str:
    return " / ".join(formatting.score(one.mean) for one in cell.scores)


def _is_best(results: SuiteResults, value: float, column: SuiteColumn) -> bool:
    others = [row.cells[column.key].mean.mean for row in results.rows if column.key in row.cells]
    return value == max(others)


def _markdown_cell(cell: Shown) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return " ".join(part for part in (text, cell.spread, escaped(cell.bounds)) if part)


def _terminal_cell(cell: Shown) -> Text:
    return Text(cell.text, style="bold green" if cell.best else "")
