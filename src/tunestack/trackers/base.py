"""The seam of a tracker, and what it is told. A new one is one file and one line in the registry."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from tunestack.results import CurvePoint, SeedResult

PROJECT = "tunestack"
"""Where runs go (W&B's project, MLflow's experiment) unless the tracker's own settings name a place."""

PATIENCE = 120.0
"""Seconds that one call to a tracker may still take when everything else is done."""

ANSWER_SECONDS = 10.0
"""Seconds that a server has to answer at all."""


@dataclass(frozen=True)
class TrackedRun:
    """A comparison or a sweep.

    id: the same whenever the run in this folder is taken up again, and no other run's. name: what trials are
    grouped under. folder: the run folder. config: the settings, as plain values.
    """

    id: str
    name: str
    kind: Literal["comparison", "sweep"]
    folder: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class TrackedTrial:
    """One candidate with one seed.

    key: unique in the run. group: the candidate, which trials with other seeds share.
    parameters: by the names that users know, as plain values.
    """

    key: str
    group: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Conclusion:
    """What came out in the end.

    sentence: the verdict. values: metrics and costs, by candidate. files: the report and what goes with it.
    """

    sentence: str
    values: Mapping[str, Mapping[str, float]]
    files: Sequence[Path]


class Tracker(ABC):
    """Where a run is tracked. May raise anything and take any time: it works in a thread of its own.

    Calls come one at a time in the order of the methods below. A trial that was started but not finished
    when `finish` comes was interrupted.
    """

    @classmethod
    def check(cls) -> None:
        """Raise UserError for what would keep this tracker from working; before anything is trained."""
        return

    @abstractmethod
    def start(self, run: TrackedRun) -> None:
        """A comparison or a sweep begins, or goes on."""

    @abstractmethod
    def trial_started(self, trial: TrackedTrial) -> None:
        """A trial begins, or goes on where an interrupted run left it."""

    @abstractmethod
    def evaluated(self, key: str, point: CurvePoint) -> None:
        """A trial was validated."""

    @abstractmethod
    def trial_finished(self, key: str, result: SeedResult, adapter: Path | None) -> None:
        """A trial has its result. adapter: the folder of what it trained; None if it failed."""

    @abstractmethod
    def finish(self, conclusion: Conclusion | None) -> None:
        """The run is over. conclusion: None where it was interrupted."""


def one_process(folder: Path, name: str) -> FileLock:
    """A lock, for a `with` block that only one process is in at a time, of those that share a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def check_server(url: str) -> None:
    """Raise OSError where nobody answers at a URL; the trackers themselves would go on trying for minutes.

    Any answer will do, a refusal or a wrong certificate too: whom to trust is a matter of their settings.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise ConnectionError(f"{url} does not answer: {error.reason}") from error
    except TimeoutError as error:
        raise ConnectionError(f"{url} does not answer within {ANSWER_SECONDS:g} seconds") from error


def curve_values(point: CurvePoint) -> dict[str, float]:
    """A point of a trial's curves by the names under which every tracker shows it."""
    values = {"epoch": point.epoch, "train/loss": point.train_loss}
    if point.validation_loss is not None:
        values["validation/loss"] = point.validation_loss
    return values | {f"validation/{name}": value for name, value in point.metrics.items()}


def final_values(result: SeedResult) -> dict[str, float]:
    """What a trial reached with the weights that were kept, by the names that every tracker shows."""
    metrics = {
        f"final/{split}/{name}": value
        for split, scores in result.scores.items()
        for name, value in scores.metrics.items()
    }
    others = {"final/best_epoch": result.best_epoch, "final/stacked_seconds": result.stacked_seconds}
    return metrics | {name: value for name, value in others.items() if value is not None}
