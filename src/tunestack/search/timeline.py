"""When each trial of a sweep trained and in which slot: kept beside it, as it may outlive its process."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from tunestack.files import write_text
from tunestack.results import Span

SPANS = "spans.json"
"""In the folder of a trial: the spans that it has trained for."""

_KIND = TypeAdapter(list[Span])


@dataclass
class Timeline:
    """The trials that this process trains: their slots, and their spans, those of earlier processes first."""

    _folders: dict[str, Path] = field(default_factory=dict)
    _spans: dict[str, list[Span]] = field(default_factory=dict)
    _slots: dict[str, int] = field(default_factory=dict)

    def begin(self, key: str, folder: Path) -> None:
        """A trial trains from now on, in the first free slot; again, if it lost one."""
        if key not in self._spans:
            self._folders[key], self._spans[key] = folder, read_spans(folder)
        taken = set(self._slots.values())
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        now = time.time()
        self._spans[key].append(Span(slot=slot, began=now, ended=now))
        self._slots[key] = slot

    def lose(self, key: str) -> None:
        """A trial has lost its slot; what it trained since its last evaluation is lost."""
        self._slots.pop(key, None)

    def reach(self, key: str) -> None:
        """A trial has come to an evaluation: so far its time is not lost, whatever becomes of the process."""
        self._spans[key][-1].ended = time.time()
        write_text(self._folders[key] / SPANS, _KIND.dump_json(self._spans[key], indent=2).decode())

    def end(self, key: str) -> None:
        """A trial has ended; one that never had a slot, or waits for another, has no more time."""
        if key in self._slots:
            self.reach(key)
        for known in (self._slots, self._spans, self._folders):
            known.pop(key, None)

    def stop(self) -> None:
        """This process stops: what trains still has trained until now."""
        for key in list(self._slots):
            self.reach(key)


def read_spans(folder: Path) -> list[Span]:
    """When a trial trained, as far as is kept in its folder; a span that came to nothing is left out."""
    path = folder / SPANS
    spans = _KIND.validate_json(path.read_text(encoding="utf-8")) if path.exists() else []
    return [span for span in spans if span.ended > span.began]
