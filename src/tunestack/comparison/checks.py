"""Checks of a comparison's settings that need more than one of them, or the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tunestack.config import TrainingConfig
from tunestack.errors import Problems, did_you_mean
from tunestack.files import slug, why_not_writable
from tunestack.tasks.metrics import METRICS, known_metrics

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


def check_metric(metric: str, classes: int | None, problems: Problems) -> None:
    """Note a metric that this task does not have. classes: None where the data could not be read."""
    known = known_metrics(classes) if classes else list(METRICS)
    if metric not in known:
        problems.add(
            "metric", expected="a metric of this task", found=repr(metric), fix=did_you_mean(metric, known)
        )


def check_class_weights(
    shared: TrainingConfig, own: Mapping[str, TrainingConfig], label_names: Sequence[str], problems: Problems
) -> None:
    """Note class weights that are not one a class and above 0: a batch of a class of weight 0 has no loss.

    own: what candidates train with, by their names.
    """
    for name, training in {"": shared, **own}.items():
        weights = training.class_weights
        if not isinstance(weights, list) or (name and weights == shared.class_weights):
            continue
        if len(weights) != len(label_names) or min(weights) <= 0:
            problems.add(
                f"{name}: class_weights" if name else "training.class_weights",
                expected=f"{len(label_names)} weights above 0, for {', '.join(label_names)}",
                found=str(weights),
                fix="Give one a class, or `balanced`.",
            )
