"""Tracking a comparison or a sweep with every tracker that was asked for."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tunestack.files import write_json
from tunestack.results import Record, SeedResult
from tunestack.settings import read_json
from tunestack.stack.events import Event, Notify
from tunestack.trackers.base import PATIENCE, Conclusion, TrackedRun, TrackedTrial, one_process
from tunestack.trackers.isolated import Isolated

IDENTITY = "tracking.json"
"""The file in a run folder that holds the id under which trackers know the run."""

HURRY = 10.0
"""Seconds that a tracker has after an interruption."""


_down: ContextVar[set[str] | None] = ContextVar("_down", default=None)
"""Trackers that were given up in what several runs are a part of; None outside of such."""


class _Identity(Record):
    id: str


@contextlib.contextmanager
def giving_up_once() -> Iterator[None]:
    """Runs inside (the tasks of a suite, a sweep and its confirmation) leave a tracker alone that one of them
    gave up, without another warning.
    """
    token = _down.set(set())
    try:
        yield
    finally:
        _down.reset(token)


class Tracking:
    """Tells trackers what happens; without any it does nothing. A context manager.

    Two calls are for whoever trains: `notify`, which takes the place of the one given, and `finished`. What
    a trial did before an interruption is not told again: only trials that start in this process are tracked,
    each as one, however often it starts again for want of memory.

    name: of the run. trials: by key; may grow until they start. notify: is told of every event.
    """

    def __init__(
        self,
        trackers: Sequence[str],
        kind: Literal["comparison", "sweep"],
        name: str,
        folder: Path,
        config: Mapping[str, Any],
        trials: Mapping[str, TrackedTrial],
        notify: Notify,
    ) -> None:
        self._names = trackers
        self._name = name
        self._folder = folder.resolve()
        self._kind: Literal["comparison", "sweep"] = kind
        self._config = config
        self._trials = trials
        self._notify = notify
        self._trackers: list[Isolated] = []
        self._open: set[str] = set()
        self._conclusion: Conclusion | None = None

    def __enter__(self) -> Tracking:
        down = _down.get()
        down = set() if down is None else down
        names = [name for name in self._names if name not in down]
        if names:
            about = TrackedRun(_identity(self._folder), self._name, self._kind, self._folder, self._config)
            self._trackers = [Isolated(name, down) for name in names]
            self._tell("start", about)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell("finish", self._conclusion)
        for tracker in self._trackers:
            tracker.close(HURRY if kind else PATIENCE)

    def notify(self, event: Event) -> None:
        """An event: what belongs there to the trackers, then to whoever watches, who may stop the run."""
        if event.kind == "started":
            self._begin(event.key)
        elif event.kind == "evaluated":
            self._tell("evaluated", event.key, event.point)
        self._notify(event)

    def finished(self, key: str, result: SeedResult) -> None:
        """A trial has its result, which is saved; it may have failed before it could start."""
        self._begin(key)
        self._open.discard(key)
        adapter = None if result.adapter_path is None else self._folder / result.adapter_path
        self._tell("trial_finished", key, result, adapter)

    def _begin(self, key: str) -> None:
        if self._trackers and key not in self._open:
            self._open.add(key)
            self._tell("trial_started", self._trials[key])

    def conclude(self, conclusion: Conclusion) -> None:
        """What came out; told at the end."""
        self._conclusion = conclusion

    def _tell(self, method: str, *arguments: Any) -> None:
        for tracker in self._trackers:
            tracker.call(method, *arguments)


def _identity(folder: Path) -> str:
    """The id of the run in a folder, made when it is first tracked."""
    path = folder / IDENTITY
    with one_process(folder, "tracking"):
        if not path.exists():
            write_json(path, {"id": secrets.token_hex(6)})
    return read_json(_Identity, path).id
