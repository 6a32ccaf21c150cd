"""`tunestack compare --suite`: several tasks, one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunestack.cli.terminal import console, errors, say

if TYPE_CHECKING:
    from tunestack.stack.events import Notify

SuiteName = Annotated[
    str | None,
    typer.Option("--suite", help="Several tasks in place of DATA, one table: glue.", show_default=False),
]
SuiteData = Annotated[
    str | None,
    typer.Option("--data", help="The folder with the suite's files. [default: the Hub]", show_default=False),
]
SuiteTasks = Annotated[
    list[str] | None,
    typer.Option("--tasks", help="Which of its tasks, with commas; repeat.", show_default=False),
]


def with_suite(
    values: Mapping[str, Any], name: str | None, data: str | None, tasks: list[str] | None
) -> dict[str, Any]:
    """Settings with what these options say of `suite`."""
    from tunestack.suites.base import with_choice

    several = [one.strip() for given in tasks or [] for one in given.split(",")]
    return with_choice(values, {"name": name, "data": data, "tasks": several or None})


def compare_suite(values: Mapping[str, Any]) -> bool:
    """Run a suite and print its table. Returns whether any candidate has an average."""
    from tunestack.progress import Display
    from tunestack.report.suite import render_suite
    from tunestack.suites.run import plan_suite, run_suite

    plan = plan_suite(values)

    @contextmanager
    def watch(title: str, metric: str) -> Iterator[Notify]:
        say(errors, f"{plan.suite.title}: {title}")
        with Display(errors, metric) as display:
            yield display.notify

    try:
        results = run_suite(plan, watch)
    except KeyboardInterrupt:
        say(errors, f"\nStopped. What was trained is in {plan.output}; the same command goes on from there.")
        raise
    console.print(render_suite(results))
    say(console, f"\nReport: {plan.output / 'suite.html'}")
    return any(row.average is not None for row in results.rows)
