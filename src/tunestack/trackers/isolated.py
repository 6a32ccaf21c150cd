"""A tracker kept apart from training: whatever it does, training goes on at its own pace."""

from __future__ import annotations

import logging
import threading
import time
from queue import SimpleQueue
from typing import Any

from tunestack.trackers.registry import find_tracker

logger = logging.getLogger(__name__)


class Isolated:
    """Calls a tracker in a thread of its own. At the first error it warns, once, and leaves it alone.

    down: takes the tracker's name then.
    """

    def __init__(self, name: str, down: set[str]) -> None:
        self.name = name
        self._down = down
        self._calls: SimpleQueue[tuple[str, tuple[Any, ...]] | None] = SimpleQueue()
        self._busy_since: float | None = None
        self._given_up = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of the tracker, some time soon. Returns at once."""
        if not self._given_up:
            self._calls.put((method, arguments))

    def close(self, patience: float) -> None:
        """Wait for the calls that are left, while none takes longer than `patience` seconds."""
        self._calls.put(None)
        while self._thread.is_alive() and not self._given_up:
            self._thread.join(0.05)
            since = self._busy_since
            if since is not None and time.monotonic() - since > patience:
                self._give_up(f"no answer within {patience:g} seconds")

    def _work(self) -> None:
        try:
            tracker = find_tracker(self.name)()
            while (call := self._calls.get()) is not None and not self._given_up:
                method, arguments = call
                self._busy_since = time.monotonic()
                getattr(tracker, method)(*arguments)
                self._busy_since = None
        except BaseException as error:  # some libraries even exit
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _give_up(self, reason: str) -> None:
        with self._lock:
            already, self._given_up = self._given_up, True
        self._down.add(self.name)
        if not already:
            logger.warning("Tracking with %s stops here, training goes on: %s", self.name, reason)
