"""What a stack works on, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunestack.bases import Base
from tunestack.data.encode import Encoded
from tunestack.methods.sites import Host
from tunestack.results import CurvePoint
from tunestack.stack.slot import Slot, Trial
from tunestack.tasks.base import Given, Task

NO_ROOM = "out of memory with this trial alone: use smaller batches or max_length"
"""Why a trial failed for which memory does not suffice."""


@dataclass
class Workload:
    """What a stack works on: a base, a task, its splits (encoded once for each max_length) and the metric.

    splits: with the columns that the task reads; train and validation at least.
    """

    base: Base
    task: Task
    splits: Mapping[str, Any]
    metric: str
    _encoded: dict[tuple[str, int], Encoded] = field(default_factory=dict)

    def encoded(self, split: str, max_length: int) -> Encoded:
        """A split as token ids."""
        key = (split, max_length)
        if key not in self._encoded:
            self._encoded[key] = self.task.encode(self.base, self.splits[split], max_length)
        return self._encoded[key]


@dataclass
class Outcome:
    """A trial that has ended. Its slot still holds the best weights until the next outcome is asked for; one
    that memory did not suffice to open never had a slot.

    decided: settings of the task that validation decided for it.
    """

    trial: Trial
    answers: Mapping[str, Given]
    seconds: float
    failure: str | None
    pruned: bool = False
    decided: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[CurvePoint] = ()
    held: tuple[Slot, Host] | None = None

    @classmethod
    def of_no_room(cls, trial: Trial) -> Outcome:
        """Of a trial that does not fit into memory."""
        return cls(trial, {}, 0.0, NO_ROOM)

    @property
    def slot(self) -> Slot:
        """The trial's own weights and state. Raises RuntimeError when they are gone."""
        return self._held()[0]

    @property
    def host(self) -> Host:
        """The model that they are for. Raises RuntimeError when it is gone."""
        return self._held()[1]

    def release(self) -> None:
        """Let go of weights and model, whoever may still hold the outcome."""
        self.held = None

    def _held(self) -> tuple[Slot, Host]:
        if self.held is None:
            raise RuntimeError(f"the slot of {self.trial.key} is closed")
        return self.held
