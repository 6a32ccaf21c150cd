"""Checks of a comparison's settings that need more than one of them, or the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tunestack.config import TrainingConfig
from tunestack.data.load import TextData
from tunestack.errors import Problems, did_you_mean
from tunestack.files import slug, why_not_writable
from tunestack.tasks.base import Task

IDENTITY = "run.json"
"""The file by which a run folder is known."""


def check_output(folder: Path, problems: Problems) -> None:
    """Note a problem where the run folder cannot be written, or holds what is not ours."""
    reason = why_not_writable(folder)
    if reason is not None:
        problems.add(
            "output",
            expected="a folder that can be written",
            found=f"{folder}: {reason}",
            fix="Choose another folder with --output.",
        )
    elif folder.is_dir() and not (folder / IDENTITY).exists():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others:
            problems.add(
                "output",
                expected="a new or empty folder, or that of an earlier run",
                found=f"{folder} with {', '.join(others[:3])}" + (", ..." if len(others) > 3 else ""),
                fix="Choose another folder with --output: files in this one could be overwritten.",
            )


def check_names(names: Sequence[str], problems: Problems) -> None:
    """Note candidates without a name, or a folder, of their own; some file systems know no upper case."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(slug(name).casefold(), []).append(name)
    for folder, same in by_folder.items():
        if not folder:
            problems.add(
                "methods",
                expected="names with letters or digits",
                found=", ".join(map(repr, same)),
                fix="The name becomes a folder's name: choose another `name`.",
            )
        elif len(same) > 1:
            once = len(set(same)) == 1
            beyond = "" if once else ", not only in upper case or punctuation"
            problems.add(
                "methods",
                expected=f"candidates that differ{beyond}",
                found=f"{same[0]!r} {len(same)} times" if once else ", ".join(map(repr, same)),
                fix="Change a field, or give each its own `name`.",
            )


def check_metric(metric: str, task: Task, data: TextData | None, problems: Problems) -> None:
    """Note a metric that this task does not have, or not on these data."""
    known = task.metrics if data else task.possible_metrics()
    if metric not in known:
        fix = f"{did_you_mean(metric, known)} Others are of another `task`."
        problems.add("metric", expected="a metric of this task", found=repr(metric), fix=fix)
        return
    for name, split in data.splits().items() if data else ():
        if name != "train" and metric not in (defined := task.defined(split)):
            expected = f"a metric of what is in the {name} split: {', '.join(defined)}"
            fix = "Choose one of these, or split the data so that each part has all kinds of examples."
            problems.add("metric", expected=expected, found=repr(metric), fix=fix)


def check_class_weights(
    shared: TrainingConfig, own: Mapping[str, TrainingConfig], task: Task, problems: Problems
) -> None:
    """Note class weights that the task cannot use.

    own: what candidates train with, by their names.
    """
    for name, training in {"": shared, **own}.items():
        weights = training.class_weights
        if not name or weights != shared.class_weights:
            task.check_training(weights, name, problems)
