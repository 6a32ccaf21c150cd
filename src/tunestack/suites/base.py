"""The seam of the suites: which tasks, on which data, which scores stand in the table. One file, one line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from tunestack.config import Settings
from tunestack.errors import Problem, Problems, UserError


class SuiteChoice(Settings):
    """Which suite, and what of it: the setting `suite`. A bare name will do."""

    name: str
    """The registered name: glue."""
    data: str | None = None
    """A folder with the suite's files. Without one, they come from the Hub."""
    tasks: list[str] | None = None
    """Which of its tasks; default: all."""
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of a comparison that differ for one task: {rte: {training: {epochs: 20}}}."""


@dataclass(frozen=True)
class Score:
    """A number of the table: a metric on a split. title: what tells it from others of the same member."""

    metric: str
    title: str
    split: str = "validation"


@dataclass(frozen=True)
class Member:
    """One task of a suite: a comparison of its own, a column of the table.

    key: how users name it, and its folder. task: the registered name. scores: what the table shows; the mean
    of them counts in the average, and candidates are chosen by the first.
    """

    key: str
    title: str
    task: str
    scores: tuple[Score, ...]


class Suite(ABC):
    """Several tasks.

    name: what users type. title: as people write it. summary: a few words. training: the defaults here, where
    published results have others than a comparison.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    members: ClassVar[Mapping[str, Member]]
    training: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def data(self, wanted: Sequence[Member], source: str | None, problems: Problems) -> dict[str, Any]:
        """The `data` settings of each member's comparison, by its key.

        source: a folder, or None for the Hub. Notes what is not there; such a member is left out.
        """


def with_choice(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with these fields of `suite` on top; None gives nothing."""
    given = {name: value for name, value in fields.items() if value is not None}
    below = values.get("suite", {})
    below = {"name": below} if isinstance(below, str) else below
    if not given or not isinstance(below, Mapping):
        return dict(values)  # what is no mapping is refused later
    return {**values, "suite": {**below, **given}}


def refuse_suite(values: Mapping[str, Any]) -> None:
    """Raise a UserError where settings of a suite are given to what runs a single comparison."""
    if "suite" in values:
        found = f"the suite {values['suite']!r}"
        fix = "Call `tunestack.compare_suite`; on the command line `tunestack compare` runs both."
        raise UserError(Problem("suite", "a single comparison", found, fix))
