"""The schema of `suite.json`: the table of a suite, and where each task's own results lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tunestack.files import write_text
from tunestack.results import Record, Summary

SCHEMA_VERSION = 1


class SuiteScore(Record):
    """A number of a column: a metric on a split, and how many examples that has."""

    metric: str
    title: str
    split: str
    rows: int


class SuiteColumn(Record):
    """One task. folder: its run folder, relative to the suite's."""

    key: str
    title: str
    folder: str
    scores: list[SuiteScore]


class SuiteCell(Record):
    """What a candidate reached in one task: each score, and their mean, which counts in the average."""

    scores: list[Summary]
    mean: Summary


class SuiteRow(Record):
    """One candidate. cells: by the column's key; those that failed are missing.

    average: over all tasks; None where a cell is missing. train_seconds: of one run of every task alone.
    """

    name: str
    base: str | None
    method: str
    kind: Literal["method", "baseline"]
    cells: dict[str, SuiteCell]
    average: Summary | None
    train_seconds: float | None = None


class SuiteResults(Record):
    """A whole suite. planned: the tasks that were asked for; columns: those that are done."""

    schema_version: int = SCHEMA_VERSION
    created: str
    suite: str
    title: str
    planned: list[str]
    columns: list[SuiteColumn]
    rows: list[SuiteRow]
    environment: dict[str, str]
    config: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write atomically as JSON."""
        write_text(path, self.model_dump_json(indent=2))

    @classmethod
    def load(cls, path: Path) -> SuiteResults:
        """Read `suite.json`. Raises pydantic's ValidationError if it is of another schema."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
