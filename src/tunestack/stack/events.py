"""What happens in a stack, for whoever shows or tracks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tunestack.results import CurvePoint

if TYPE_CHECKING:
    from tunestack.stack.slot import Slot


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial, for whoever shows progress.

    kind: "waits" is of one that has lost its slot and will be started again. steps: of how many. point: the
    evaluation, with kind "evaluated". curve: the earlier evaluations of one that has "started". message: with
    kinds "failed", "narrowed", "measuring" and "note"; with "started", what sets the trial apart; with
    "counted", which is about all trials, what is known of them beyond that `step` of `steps` are done.
    """

    kind: Literal[
        "started",
        "waits",
        "step",
        "evaluating",
        "evaluated",
        "finished",
        "failed",
        "pruned",
        "narrowed",
        "measuring",
        "note",
        "counted",
    ]
    key: str
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    point: CurvePoint | None = None
    message: str = ""
    curve: tuple[CurvePoint, ...] = ()


Notify = Callable[[Event], None]


def event_of(
    kind: Literal["started", "step", "evaluating", "evaluated", "finished", "failed", "pruned", "measuring"],
    slot: Slot,
    point: CurvePoint | None = None,
    message: str = "",
) -> Event:
    """What has just happened to a trial, with where it is."""
    progress = slot.progress
    loss = progress.loss_sum / progress.loss_steps if progress.loss_steps else None
    message = slot.failure or message
    return Event(kind, slot.trial.key, progress.step, slot.total_steps, slot.epoch, loss, point, message)
