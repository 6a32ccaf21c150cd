"""Running a suite: every task is a comparison in a folder of its own; all are checked before one trains."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunestack.choice import SUITE
from tunestack.comparison.checks import IDENTITY, check_output
from tunestack.comparison.folder import RunFolder
from tunestack.comparison.plan import Plan, make_plan
from tunestack.comparison.run import run_plan
from tunestack.config import CompareConfig
from tunestack.environment import environment
from tunestack.errors import Problems, did_you_mean
from tunestack.files import write_json
from tunestack.report.suite import write_suite_report
from tunestack.results import Results
from tunestack.settings import merged, validated
from tunestack.stack.events import Notify
from tunestack.suites import table
from tunestack.suites.base import Member, Suite, SuiteChoice
from tunestack.suites.registry import find_suite
from tunestack.suites.results import SuiteResults
from tunestack.trackers.tracking import giving_up_once

BROUGHT = ("data", "task", "metric")
"""What a suite brings for every task; `suite.overrides` changes it."""

Watch = Callable[[str, str], AbstractContextManager[Notify]]
"""From a task's title and metric to whoever is told of what happens in it."""


@dataclass(frozen=True)
class SuitePlan:
    """A suite, checked. values: the settings as given. plans: of each task's comparison, by its key."""

    suite: Suite
    values: dict[str, Any]
    output: Path
    members: list[Member]
    plans: dict[str, Plan]


def plan_suite(values: Mapping[str, Any]) -> SuitePlan:
    """Check everything: the suite, its data, every task's comparison and its folder.

    values: `suite` (a name, or fields of `SuiteChoice`) and settings of a comparison for all tasks. Raises
    one UserError for all that is wrong.
    """
    choice = _choice(values.get("suite"))
    suite = find_suite(choice.name)
    output = Path(str(values.get("output") or f"runs/{suite.name}"))
    problems = Problems()
    check_output(output, problems)
    _check_identity(output, suite, problems)
    members = _members(suite, choice, problems)
    rest = {name: value for name, value in values.items() if name not in ("suite", "output")}
    for name in BROUGHT:
        if rest.pop(name, None):
            fix = "Leave it out; for one task, give it under suite.overrides."
            if name == "data":
                fix += " Where the suite's files lie, --data says (suite.data)."
            problems.add(name, expected="none: the suite brings it", found="one", fix=fix)
    if isinstance(training := rest.get("training") or {}, Mapping):  # else the validation refuses it
        rest["training"] = {**suite.training, **training}
    own_data = {key for key, fields in choice.overrides.items() if "train" in (fields.get("data") or {})}
    data = suite.data([one for one in members if one.key not in own_data], choice.data, problems)
    plans: dict[str, Plan] = {}
    for member in members:
        if member.key not in data and member.key not in own_data:
            continue  # its problem is noted
        brought = {
            "data": data.get(member.key, {}),
            "task": member.task,
            "metric": member.scores[0].metric,
            "output": str(output / member.key),
        }
        own = choice.overrides.get(member.key, {})
        if "output" in own:
            fix = "Leave it out: each task has a folder inside the suite's."
            problems.add(f"suite.overrides.{member.key}.output", expected="none", found="one", fix=fix)
        with problems.collecting(f"{suite.title}, {member.title}"):
            plans[member.key] = make_plan(validated(CompareConfig, merged({**rest, **brought}, own)))
    problems.raise_if_any()
    return SuitePlan(suite, dict(values), output, members, plans)


def run_suite(plan: SuitePlan, watch: Watch = lambda title, metric: nullcontext(_unheard)) -> SuiteResults:
    """Run every task's comparison and write the table; after each task anew, so that it grows.

    Interrupted, it leaves folders that the same call resumes. Raises UserError before training where a task's
    folder holds another comparison.
    """
    problems = Problems()
    for key, one in plan.plans.items():
        with problems.collecting(key):
            RunFolder.open(one)
    problems.raise_if_any()
    write_json(plan.output / IDENTITY, {"suite": plan.suite.name})
    found: dict[str, Results] = {}
    with giving_up_once():
        for member in plan.members:
            with watch(member.title, member.scores[0].metric) as notify:
                found[member.key] = run_plan(plan.plans[member.key], notify)
            results = _results(plan, found)
            results.save(plan.output / SUITE)
            write_suite_report(results, plan.output)
    return results


def _results(plan: SuitePlan, found: Mapping[str, Results]) -> SuiteResults:
    done = [member for member in plan.members if member.key in found]
    return SuiteResults(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        suite=plan.suite.name,
        title=plan.suite.title,
        planned=[member.title for member in plan.members],
        columns=[table.column(member, found[member.key]) for member in done],
        rows=table.rows(done, found),
        environment=environment(),
        config=plan.values,
    )


def _check_identity(output: Path, suite: Suite, problems: Problems) -> None:
    """Note a folder that holds something else that tunestack ran."""
    known = output / IDENTITY
    if known.exists() and json.loads(known.read_text(encoding="utf-8")).get("suite") != suite.name:
        fix = "Choose another folder with --output."
        expected = f"a new folder, or that of an earlier run of {suite.title}"
        problems.add("output", expected=expected, found=f"{output} with another run in it", fix=fix)


def _choice(given: object) -> SuiteChoice:
    return validated(SuiteChoice, {"name": given} if isinstance(given, str) else given, "suite")  # type: ignore[arg-type]


def _members(suite: Suite, choice: SuiteChoice, problems: Problems) -> list[Member]:
    """The tasks that are asked for, in the suite's order."""
    wanted = choice.tasks if choice.tasks is not None else list(suite.members)
    for place, names in (("suite.tasks", wanted), ("suite.overrides", choice.overrides)):
        for name in names:
            if name not in suite.members:
                expected = f"a task of {suite.title}"
                problems.add(
                    place, expected=expected, found=repr(name), fix=did_you_mean(name, suite.members)
                )
    chosen = [member for key, member in suite.members.items() if key in wanted]
    if not wanted:
        problems.add("suite.tasks", expected="a task or more", found="none", fix="Leave it out, or name one.")
    return chosen


def _unheard(event: object) -> None:
    """Nobody listens."""
