"""The training loop: trials take slots, train step by step, are judged, and make room for others."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tunestack.results import CurvePoint
from tunestack.stack.events import Event, Notify, event_of
from tunestack.stack.room import Room, release_memory
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.stack import Stack, out_of_memory
from tunestack.stack.work import NO_ROOM, Outcome, Workload

PLACES = (1 / 3, 2 / 3)
"""Of an epoch: the steps that are looked at to find the number of slots."""

Prune = Callable[[Trial, CurvePoint, int, bool], bool]
"""Told of every evaluation of a trial, how many parts of epochs that end with one are over, and whether the
trial ends anyway; says whether it is to end.
"""


def train(
    work: Workload,
    trials: Iterable[Trial],
    slots: int | None,
    notify: Notify,
    checkpoints: Path | None = None,
    prune: Prune = lambda trial, point, evaluations, ends: False,
    most: int | None = None,
) -> Iterator[Outcome]:
    """Train trials on one base, at most `slots` at a time; a slot that gets free is filled at once.

    slots: None for as many as memory holds and speed gains by, but no more than `most`.
    trials: asked for the next one when there is a slot for it, after every outcome so far was taken. Those
    that cannot share the base train at the end, one by one. checkpoints: a folder that holds the state of
    every unfinished trial after each of its evaluations, and after an interruption; trials found there go on
    where they were. prune: whether a trial is to end with the evaluation that it has just had. Yields each
    trial as it ends.

    Out of memory, fewer slots train at a time, and a trial that was caught by it starts again from its last
    checkpoint; one that does not fit alone fails.
    """
    alone: list[Trial] = []
    sharing = _sharing(trials, alone)
    if (first := next(sharing, None)) is not None:
        together = itertools.chain([first], sharing)
        yield from _train_together(work, together, slots, notify, checkpoints, prune, most)
    for trial in alone:
        release_memory()
        yield from _train_alone(work, trial, notify, checkpoints, prune)


def _sharing(trials: Iterable[Trial], alone: list[Trial]) -> Iterator[Trial]:
    """The trials that can share a base; the others are put aside."""
    for trial in trials:
        if trial.method.stacks:
            yield trial
        else:
            alone.append(trial)


def _train_together(
    work: Workload,
    trials: Iterator[Trial],
    slots: int | None,
    notify: Notify,
    checkpoints: Path | None,
    prune: Prune,
    most: int | None,
) -> Iterator[Outcome]:
    """Trials that share a base, which is in memory no longer than they train."""
    loaded = work.base.load_model(
        work.task.auto_class_for(work.base.config), work.task.model_config(work.base)
    )
    yield from _train_stack(Stack(work, loaded), trials, slots, notify, checkpoints, prune, most)


def _train_alone(
    work: Workload, trial: Trial, notify: Notify, checkpoints: Path | None, prune: Prune
) -> Iterator[Outcome]:
    """A trial that cannot share a base: the same loop, a stack of one on a model of its own."""
    config = work.task.model_config(work.base)
    dtype = trial.method.weights_dtype(work.base.dtype)
    try:
        loaded = work.base.load_model(work.task.auto_class_for(work.base.config), config, dtype)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        yield _no_room(trial, notify)
        return
    stack = Stack(work, loaded, autocast=True)
    yield from _train_stack(stack, iter([trial]), 1, notify, checkpoints, prune)


def _train_stack(
    stack: Stack,
    queue: Iterator[Trial],
    slots: int | None,
    notify: Notify,
    checkpoints: Path | None,
    prune: Prune,
    most: int | None = None,
) -> Iterator[Outcome]:
    active: list[Slot] = []
    again: list[Trial] = []
    room = Room.on(stack.device, slots, stack.lanes.count, most)
    try:
        while True:
            while len(active) < room.slots:
                trial = again.pop() if again else next(queue, None)
                if trial is None:
                    break
                try:
                    active.append(_start(stack, trial, notify, checkpoints, prune))
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    if not active:
                        yield _no_room(trial, notify)
                        continue
                    again.append(trial)
                    _narrow(room, len(active), [trial], notify)
            if not active:
                return
            if not room.decided:
                again += _rehearse(stack, room, active, notify)
                continue
            running = [slot for slot in active if not slot.finished]
            stack.step(running, notify)
            if broken := [slot for slot in running if slot.broken]:
                company = len(active)
                for slot in broken:
                    active.remove(slot)
                    stack.close(slot)
                if company == 1:
                    yield _no_room(broken[0].trial, notify)
                else:
                    again += [slot.trial for slot in reversed(broken)]
                    _narrow(room, len(active) or company // 2, [slot.trial for slot in broken], notify)
            running = [slot for slot in running if not slot.broken]
            for slot in running:
                notify(event_of("step", slot))
            due = [slot for slot in running if slot.failure is None and slot.evaluation_due]
            if due:
                stack.evaluate(due, notify)
                _judge(due, prune)
                _save(due, checkpoints)
            for slot in [slot for slot in active if slot.finished]:
                active.remove(slot)
                notify(event_of(_ending(slot), slot))
                outcome = stack.outcome(slot)
                yield outcome
                outcome.release()
                stack.close(slot)
    except (KeyboardInterrupt, GeneratorExit):
        _save(active, checkpoints)
        raise


def _rehearse(stack: Stack, room: Room, active: list[Slot], notify: Notify) -> list[Trial]:
    """See what a step takes with as many slots as there are, for the room to decide how many there will be.

    Nothing is trained yet: trials that begin together stay in step, and batches of one seed then are equally
    large and share their products. Returns trials that have lost their slots again.
    """
    if len(active) < room.slots:  # there are no more trials
        room.limit(len(active))
        return []
    notify(event_of("measuring", active[0], message=f"Measuring a step with {len(active)} slots"))
    forwards = stack.width, stack.lanes.count
    times = [1.0]
    if before := active[: room.fewer]:  # again in the same moments: a machine is faster now than then
        times = [_time(stack, active, before, place, notify) for place in PLACES]
    else:
        stack.rehearse(active, PLACES[0], notify)
    if forwards != (stack.width, stack.lanes.count):  # memory is full
        room.limit(len(active))
    else:
        room.note(statistics.mean(times))
    surplus = active[room.slots :]
    for slot in surplus:
        active.remove(slot)
        stack.close(slot)
        notify(Event("waits", slot.trial.key))
    return [slot.trial for slot in reversed(surplus)]


def _time(stack: Stack, slots: Sequence[Slot], before: Sequence[Slot], place: float, notify: Notify) -> float:
    """What a slot's step takes of what it takes with the number before: the fastest of two steps each."""
    seconds = {len(some): math.inf for some in (before, slots)}
    for some in (before, slots) * 2:
        started = time.perf_counter()
        stack.rehearse(some, place, notify)
        seconds[len(some)] = min(seconds[len(some)], (time.perf_counter() - started) / len(some))
    return seconds[len(slots)] / seconds[len(before)]


def _judge(slots: Sequence[Slot], prune: Prune) -> None:
    """Mark those that end here and would not have anyway."""
    for slot in slots:
        if slot.failure is None:
            ends, point = slot.finished, slot.progress.curve[-1]
            slot.pruned = prune(slot.trial, point, slot.evaluations, ends) and not ends


def _narrow(room: Room, slots: int, trials: Sequence[Trial], notify: Notify) -> None:
    """Go on with fewer slots; these trials take their turns again when some are free."""
    room.limit(slots)
    at_once = f"{room.slots} slots at once" if room.slots > 1 else "one slot at a time"
    notify(Event("narrowed", trials[0].key, message=f"out of memory: {at_once}"))
    for trial in trials:
        notify(Event("waits", trial.key))


def _no_room(trial: Trial, notify: Notify) -> Outcome:
    """The outcome of a trial for which memory does not suffice although nothing else trains."""
    notify(Event("failed", trial.key, message=NO_ROOM))
    return Outcome.of_no_room(trial)


def _ending(slot: Slot) -> Literal["finished", "failed", "pruned"]:
    if slot.failure is not None:
        return "failed"
    return "pruned" if slot.pruned else "finished"


def _start(stack: Stack, trial: Trial, notify: Notify, checkpoints: Path | None, prune: Prune) -> Slot:
    slot = stack.open(trial)
    try:
        if checkpoints is not None and (path := _checkpoint(checkpoints, slot)).exists():
            slot.load(path)
        notify(replace(event_of("started", slot), curve=tuple(slot.progress.curve)))
        if slot.evaluation_due:  # interrupted between its last step and the evaluation
            stack.evaluate([slot], notify)
            _judge([slot], prune)
    except BaseException:
        stack.close(slot)
        raise
    return slot


def _save(slots: Sequence[Slot], checkpoints: Path | None) -> None:
    """Write checkpoints; a trial that failed or is caught in the middle of a change keeps its last one."""
    for slot in slots:
        resumable = slot.adapter.on_step is None and slot.consistent
        if checkpoints is not None and slot.failure is None and resumable:
            slot.save(_checkpoint(checkpoints, slot))


def _checkpoint(folder: Path, slot: Slot) -> Path:
    return folder / f"{slot.trial.key}.safetensors"
