"""All trackers, by name. A new one is one file and one line here; only those asked for are imported."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence

from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.trackers.base import Tracker

TRACKERS = {
    "mlflow": "tunestack.trackers.mlflow:MLflow",
    "tensorboard": "tunestack.trackers.tensorboard:TensorBoard",
    "wandb": "tunestack.trackers.wandb:WandB",
}


def find_tracker(name: str) -> type[Tracker]:
    """The tracker of that name. Raises UserError for an unknown one and for one whose package is missing."""
    if name not in TRACKERS:
        raise UserError(Problem("track", "a known tracker", repr(name), did_you_mean(name, TRACKERS)))
    try:
        tracker: type[Tracker] = pkgutil.resolve_name(TRACKERS[name])
    except Exception as error:  # a package that is there may be broken, in any way
        found = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        fix = "Install what trackers need: pip install 'tunestack[track]'."
        raise UserError(Problem("track", f"the packages of {name}", found, fix)) from error
    return tracker


def check_trackers(names: Sequence[str], problems: Problems) -> None:
    """Note trackers that are unknown, not installed, not set up, or named twice."""
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.add(
                "track",
                expected="each tracker once",
                found=f"{name!r} {names.count(name)} times",
                fix="Remove one.",
            )
        try:
            find_tracker(name).check()
        except UserError as error:
            problems.extend(error)
