"""All baselines, by name and by what they learn. A new one is one file and one line here."""

from __future__ import annotations

from tunestack.baselines.base import Baseline
from tunestack.baselines.linear_probe import LinearProbe, LinearProbeOfNumbers
from tunestack.baselines.majority import Majority
from tunestack.baselines.most_frequent_tag import MostFrequentTag
from tunestack.baselines.nearest_sentence import NearestSentence
from tunestack.baselines.span_probe import SpanProbe
from tunestack.baselines.tag_probe import TagProbe
from tunestack.baselines.tfidf import Tfidf, TfidfOfNumbers
from tunestack.errors import Problem, UserError, did_you_mean
from tunestack.tasks.base import Task

BASELINES: dict[str, list[Baseline]] = {}
"""Those of one name learn different things."""
for _baseline in (
    Majority(),
    MostFrequentTag(),
    Tfidf(),
    TfidfOfNumbers(),
    NearestSentence(),
    LinearProbe(),
    LinearProbeOfNumbers(),
    SpanProbe(),
    TagProbe(),
):
    BASELINES.setdefault(_baseline.name, []).append(_baseline)


def find_baseline(name: str, task: Task) -> Baseline:
    """The baseline of that name that does the task.

    Raises UserError with the nearest names for an unknown one, and for a task that it cannot do.
    """
    if name not in BASELINES:
        raise UserError(Problem("method", "a known baseline", repr(name), did_you_mean(name, BASELINES)))
    for baseline in BASELINES[name]:
        if task.target in baseline.targets:
            return baseline
    raise UserError(
        Problem(
            name,
            "a method, or a baseline that can do this task",
            f"the task {task.name}; {name} learns {', '.join(learned(name))}",
            f"Leave it out{_instead(task)}.",
        )
    )


def needs_base(name: str) -> bool:
    """Whether the baselines of that name work on a base's features."""
    return any(baseline.needs_base for baseline in BASELINES[name])


def learned(name: str) -> list[str]:
    """What the baselines of that name can learn."""
    return sorted(target for baseline in BASELINES[name] for target in baseline.targets)


def _instead(task: Task) -> str:
    """The baselines that do a task, as the end of a sentence."""
    able = [name for name in BASELINES if task.target in learned(name)]
    return f", or take {' or '.join(able)}" if able else ""
