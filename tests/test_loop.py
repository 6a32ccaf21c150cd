"""The training loop when something goes wrong or ends early: every trial still ends as it should."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch

import tiny
from tunestack.results import CurvePoint
from tunestack.stack import loop
from tunestack.stack.events import Event, Notify
from tunestack.stack.loop import train
from tunestack.stack.room import Room
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.work import NO_ROOM, Workload


class Interrupted:
    """Raises KeyboardInterrupt at the nth event of a kind."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind = kind
        self.left = at

    def __call__(self, event: Event) -> None:
        self.left -= event.kind == self.kind
        if self.left < 0:
            self.left = 10**9
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workload, list[Trial], dict[str, tiny.Ended]]:
    """Three trials, and what they reach in two slots without an interruption."""
    base = tiny.random_base(tmp_path_factory.mktemp("three"), "bert")
    work = tiny.workload(base)
    trials = [
        tiny.trial(base, "a", 1, lr_scheduler_type="cosine", warmup_ratio=0.2, lora_dropout=0.1),
        tiny.trial(base, "b", 2, epochs=1.4, batch_size=4, early_stopping_patience=1, base_dropout=True),
        tiny.trial(base, "c", 3, epochs=2, lr_scheduler_type="linear", class_weights="balanced"),
    ]
    return work, trials, tiny.run(work, trials, slots=2)


def test_a_rehearsal_compares_what_a_slot_s_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fastest steps with either number, by turns."""
    now, took = 0.0, iter([2.0, 9.0, 7.0, 4.0])  # with two slots, with eight, and again

    class Clock:
        def rehearse(self, slots: Sequence[Slot], place: float, notify: Notify) -> None:
            nonlocal now
            now += next(took)

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    eight: Any = list(range(8))
    stack: Any = Clock()
    assert loop._time(stack, eight, eight[:2], 0.0, lambda event: None) == pytest.approx((4 / 8) / (2 / 2))


@pytest.mark.parametrize("time", [0.5, 1.5])  # of a step beside three others, of that beside one
@pytest.mark.parametrize("lanes", [1, 2])
def test_finding_out_how_many_slots_pay_leaves_no_trace(
    three: tuple[Workload, list[Trial], dict[str, tiny.Ended]], time: float, lanes: int
) -> None:
    """No step of a rehearsal counts, and a trial that loses its slot again has another one later."""
    work, trials, whole = three
    trials = [*trials, replace(trials[0], key="d")]
    told = iter([1.0, time])
    note = Room.note
    events: list[Event] = []
    noting = patch.object(Room, "note", lambda room, measured: note(room, next(told)))
    with noting, patch("tunestack.stack.room.GROWTH", 2):
        ended = tiny.run(work, trials, None, events.append, lanes=lanes)
    for key, expected in {**whole, "d": whole["a"]}.items():
        tiny.assert_same(ended[key], expected)  # beside "b" blocks run module by module, so rounding differs
    steps = Counter(event.key for event in events if event.kind == "step")
    assert steps == {key: one.steps for key, one in ended.items()}
    started = Counter(event.key for event in events if event.kind == "started")
    again = time > 1
    assert started == {"a": 1, "b": 1, "c": 1 + again, "d": 1 + again}
    assert [event.message for event in events if event.kind == "measuring"] == [
        f"Measuring a step with {count} slots" for count in (2, 4)
    ]
    first_step = [event.kind for event in events].index("step")
    assert sum(event.kind == "started" for event in events[:first_step]) == 4  # they begin together


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        *(("step", at) for at in (0, 1, 9, 13, 14, 22, 24)),
        *(("evaluated", 0), ("evaluated", 2), ("started", 2), ("finished", 0), ("finished", 1)),
    ],
)
def test_interrupted_and_resumed_is_as_if_nothing_had_happened(
    three: tuple[Workload, list[Trial], dict[str, tiny.Ended]], tmp_path: Path, kind: str, at: int
) -> None:
    work, trials, whole = three
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        tiny.run(work, trials, slots=2, notify=Interrupted(kind, at), checkpoints=checkpoints)
    events: list[Event] = []
    resumed = tiny.run(work, trials, slots=2, notify=events.append, checkpoints=checkpoints)
    for key, ended in whole.items():
        tiny.assert_same(resumed[key], ended)  # beside "b" blocks run module by module, so rounding differs
    steps = sum(event.kind == "step" for event in events)
    total = sum(ended.steps for ended in whole.values())
    if kind == "step":  # both slots have done theirs before the first is told
        assert total - at - 2 <= steps <= total - at - 1, "what was trained is not trained again"


def test_every_possible_interruption(tmp_path: Path) -> None:
    """At each step of a short run in turn, one resuming the other."""
    base = tiny.random_base(tmp_path, "gpt2")
    work = tiny.workload(base, rows=12)
    trials = [tiny.trial(base, "a", 1, batch_size=5), tiny.trial(base, "b", 2, epochs=1.5)]
    whole = tiny.run(work, trials)
    checkpoints = tmp_path / "checkpoints"
    interruptions = 0
    while True:
        try:
            resumed = tiny.run(work, trials, notify=Interrupted("step", 0), checkpoints=checkpoints)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 6
    for key, ended in whole.items():
        tiny.assert_same(resumed[key], ended, atol=1e-6)


def test_interrupted_in_the_middle_of_an_update(tmp_path: Path) -> None:
    """A state that is neither before nor after a step is not kept: the last checkpoint holds."""
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    trials = [tiny.trial(base, "a", 1), tiny.trial(base, "b", 2)]
    whole = tiny.run(work, trials)

    class Torn(tiny.Watched):
        def open(self, trial: Trial) -> Slot:
            slot = super().open(trial)
            step = slot.optimizer.step

            def torn() -> None:
                step()
                if trial.key == "a" and slot.progress.step == 7:
                    raise KeyboardInterrupt

            slot.optimizer.step = torn  # type: ignore[method-assign]
            return slot

    with pytest.raises(KeyboardInterrupt):
        tiny.run(work, trials, checkpoints=tmp_path, stack=Torn)
    resumed = tiny.run(work, trials, checkpoints=tmp_path)
    for key, ended in whole.items():
        tiny.assert_same(resumed[key], ended, atol=1e-6)


def test_the_best_epoch_is_restored(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    for seed in range(1, 9):
        one = tiny.trial(base, "one", seed, epochs=4, learning_rate=3e-2)
        ended = tiny.run(work, [one])["one"]
        values = [point.metrics["accuracy"] for point in ended.curve]
        assert len(values) == 4
        best = int(np.argmax(values))
        assert ended.best_epoch == ended.curve[best].epoch == best + 1
        if best < 3:
            break
    else:
        pytest.fail("no seed has its best epoch before the last")
    shorter = tiny.trial(base, "one", seed, epochs=best + 1, learning_rate=3e-2)
    tiny.assert_close(ended.best, tiny.run(work, [shorter])["one"].final, 1e-6)
    assert any(not torch.equal(ended.best[name], ended.final[name]) for name in ended.best)
    accuracy = np.mean(ended.answers["validation"].argmax(1) == work.splits["validation"]["label"])
    assert accuracy == pytest.approx(values[best])


def test_early_stopping_counts_evaluations_without_gain(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    for patience in (1, 2):
        one = tiny.trial(base, "one", 3, epochs=9, learning_rate=3e-2, early_stopping_patience=patience)
        ended = tiny.run(work, [one])["one"]
        values = [point.metrics["accuracy"] for point in ended.curve]
        assert len(values) < 9
        assert ended.curve[-1].epoch == ended.best_epoch + patience
        assert max(values[-patience:]) <= max(values[:-patience])


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_trial_that_fails_fails_alone(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    good = tiny.mixed(base)[:3]
    bad = [
        tiny.trial(base, "explodes", 5, learning_rate=1e30),
        tiny.trial(base, "overflows", 6, class_weights=[3e38, 3e38]),
        tiny.trial(base, "explodes in its only step", 7, learning_rate=1e30, batch_size=64, epochs=1),
    ]
    solo = tiny.alone(work, good)
    events: list[Event] = []
    checkpoints = tmp_path / "checkpoints"
    for _ in range(2):
        ended = tiny.run(
            work, [bad[0], good[0], bad[1], *good[1:], bad[2]], 4, events.append, checkpoints=checkpoints
        )
        for key, expected in solo.items():
            tiny.assert_same(ended[key], expected)
        for trial in bad:
            assert ended[trial.key].failure
            assert not ended[trial.key].answers
    failed = {event.key: event.message for event in events if event.kind == "failed"}
    assert set(failed) == {trial.key for trial in bad}
    assert "loss became nan at step 0" in failed["overflows"]


class Small(tiny.Watched):
    """A stack on a machine that holds the activations of two slots."""

    holds = 2

    def _backward(self, slots: Any) -> list[float]:
        losses = super()._backward(slots)
        if len(slots) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses


class OneAtATime(tiny.Watched):
    """A stack on a machine that holds the activations of one slot, whichever lane it is in."""

    running: ClassVar[threading.Semaphore] = threading.Semaphore(1)

    def _backward(self, slots: Any) -> list[float]:
        if not self.running.acquire(blocking=False):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        try:
            time.sleep(0.01)  # until the other lane is there
            if len(slots) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super()._backward(slots)
        finally:
            self.running.release()


def test_out_of_memory_ends_lanes_before_a_trial_fails(tmp_path: Path) -> None:
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = tiny.mixed(work.base)[:4]
    events: list[Event] = []
    narrow = tiny.run(work, trials, notify=events.append, stack=OneAtATime, lanes=2)
    for key, ended in tiny.run(work, trials).items():
        tiny.assert_same(narrow[key], ended)
    messages = [event.message for event in events if event.kind == "narrowed"]
    assert messages[-1] == "out of memory: one slot at a time"


class Tiny(Small):
    """A stack on a machine that holds nothing."""

    holds = 0


def test_out_of_memory_halves_the_slots_and_changes_no_result(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    trials = tiny.mixed(base)
    events: list[Event] = []
    narrow = tiny.run(work, trials, notify=events.append, stack=Small)
    wide = tiny.run(work, trials)
    for key, ended in wide.items():
        tiny.assert_same(narrow[key], ended)
    narrowed = [event.message for event in events if event.kind == "narrowed"]
    assert narrowed == ["out of memory: 2 slots at once"]
    in_lanes = tiny.run(work, trials, stack=Small, lanes=2)
    for key, ended in wide.items():
        tiny.assert_same(in_lanes[key], ended)
    alone = tiny.run(work, trials[:1], stack=Tiny)
    assert "out of memory with this trial alone" in (alone[trials[0].key].failure or "")


def test_a_trial_without_room_for_a_row_of_validation_fails_alone(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    trials = tiny.mixed(base)
    wide = next(trial for trial in trials if trial.key == "wide")

    class NoRoomToAnswer(tiny.Watched):
        """A stack on a machine that holds no forward in which this trial answers."""

        def _forward(self, chosen: Any, spans: Any, training: bool = False, packed: bool = False) -> Any:
            if not training and any(span.slot == trials.index(wide) for span in spans):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super()._forward(chosen, spans, training, packed)

    narrow, all_ended = tiny.run(work, trials, stack=NoRoomToAnswer), tiny.run(work, trials)
    assert "out of memory with this trial alone" in (narrow.pop("wide").failure or "")
    for key, ended in narrow.items():
        tiny.assert_same(ended, all_ended[key])


class Crowded(tiny.Watched):
    """A stack on a machine that holds the adapters of so many trials, or of so many in training."""

    opened, trained = 8, 8

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.live: list[Slot] = []

    def open(self, trial: Trial) -> Slot:
        if len(self.live) >= self.opened:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        slot = super().open(trial)
        self.live.append(slot)
        own = slot.optimizer.step

        def step() -> None:
            if len(self.live) > self.trained:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            own()

        vars(slot.optimizer)["step"] = step
        return slot

    def close(self, slot: Slot) -> None:
        self.live.remove(slot)
        super().close(slot)


@pytest.mark.parametrize("limits", [{"opened": 3}, {"trained": 2}, {"opened": 3, "trained": 1}])
def test_adapters_out_of_memory_wait_for_their_turn(tmp_path: Path, limits: dict[str, int]) -> None:
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = tiny.mixed(work.base)
    events: list[Event] = []
    stack = type("Limited", (Crowded,), limits)
    narrow = tiny.run(work, trials, notify=events.append, stack=stack, checkpoints=tmp_path)
    for key, ended in tiny.run(work, trials).items():
        tiny.assert_same(narrow[key], ended)
    narrowed = [event.message for event in events if event.kind == "narrowed"]
    least = min(limits.values())
    told = f"{least} slots at once" if least > 1 else "one slot at a time"
    assert narrowed[-1] == f"out of memory: {told}"


def test_after_out_of_memory_a_trial_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Memory gets tight when all have been evaluated once, as where another program takes it."""
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = [tiny.trial(work.base, key, seed, epochs=2) for seed, key in enumerate("abc", 1)]
    events: list[Event] = []
    tight = type("Tight", (Crowded,), {})

    def note(event: Event) -> None:
        events.append(event)
        if sum(one.kind == "evaluated" for one in events) == len(trials):
            tight.trained = 1

    narrow = tiny.run(work, trials, notify=note, stack=tight, checkpoints=tmp_path)
    for key, ended in tiny.run(work, trials).items():
        tiny.assert_same(narrow[key], ended)
    evaluated = {event.key: event.step for event in reversed(events) if event.kind == "evaluated"}
    begun = [(event.key, event.step) for event in events if event.kind == "started"]
    again = begun[len(trials) :]
    assert again
    assert all(step == evaluated[key] > 0 for key, step in again)


@pytest.mark.parametrize("limits", [{"opened": 0}, {"trained": 0}])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_trial_that_memory_does_not_hold_alone_fails_alone(
    tmp_path: Path, limits: dict[str, int], method: str
) -> None:
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = [tiny.trial(work.base, key, method=method) for key in "ab"]
    events: list[Event] = []
    stack = type("Limited", (Crowded,), limits)
    with patch.object(loop, "Stack", stack):
        outcomes = list(train(work, trials, 1, events.append, tmp_path))
    assert [outcome.failure for outcome in outcomes] == [NO_ROOM] * 2
    assert [event.key for event in events if event.kind == "failed"] == ["a", "b"]
    with pytest.raises(RuntimeError, match="the slot of a is closed"):
        _ = outcomes[0].slot


def test_models_go_with_the_trials_that_trained_on_them(tmp_path: Path) -> None:
    """Whoever still holds the outcomes, at most one model is there."""
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = [tiny.trial(work.base, key, method=method) for key, method in zip("abcd", ["full", "lora"] * 2)]
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Counted(loop.Stack):
        """A stack whose model is known."""

        def __init__(self, work: Any, loaded: Any, autocast: bool = False) -> None:
            models.append(weakref.ref(loaded.model))
            alive.append(sum(model() is not None for model in models))
            super().__init__(work, loaded, autocast)

    with patch.object(loop, "Stack", Counted):
        outcomes = list(train(work, trials, 2, lambda event: None, tmp_path))
    assert sorted(outcome.trial.key for outcome in outcomes) == list("abcd")
    assert alive == [1, 1, 1]


@pytest.mark.parametrize("rows", [8, 1])
def test_evaluation_out_of_memory_takes_smaller_batches(tmp_path: Path, rows: int) -> None:
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = tiny.mixed(work.base)[:2]

    class Cramped(tiny.Watched):
        """A stack on a machine that evaluates so many rows at a time."""

        def _forward(
            self, chosen: Any, spans: Any, training: bool = False, packed: bool = False
        ) -> torch.Tensor:
            if torch.is_inference_mode_enabled() and sum(len(own) for _, own in chosen) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super()._forward(chosen, spans, training, packed)

    wide = tiny.run(work, trials)
    for key, ended in tiny.run(work, trials, stack=Cramped).items():
        tiny.assert_same(ended, wide[key])


def test_texts_have_the_room_that_a_prompt_leaves(tmp_path: Path) -> None:
    """A prompt takes places of the base's table, not of what the tokenizer allows."""
    base = tiny.random_base(tmp_path, "bert", max_position_embeddings=96)
    assert base.room_for_text(512) == 96
    assert base.room_for_text(512, 20) == 76
    assert base.room_for_text(40, 20) == 40
    base.tokenizer.model_max_length = 32
    assert base.room_for_text(512, 20) == 32
    assert base.room_for_text(512, 80) == 16


def test_a_pruned_trial_ends_where_it_is_and_leaves_no_trace(tmp_path: Path) -> None:
    """Its slot goes to the next trial, which is asked for only then; the neighbours do not notice."""
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = [tiny.trial(work.base, key, seed, epochs=3) for seed, key in enumerate("abcd", 1)]
    solo = tiny.alone(work, trials)
    events: list[Event] = []
    asked: list[tuple[str, list[str]]] = []

    def source() -> Iterator[Trial]:
        for trial in trials:
            asked.append((trial.key, [event.key for event in events if event.kind in ("finished", "pruned")]))
            yield trial

    def prune(trial: Trial, point: CurvePoint, evaluations: int, ends: bool) -> bool:
        assert ends == (point.epoch == 3)
        assert evaluations == point.epoch
        return ends or (trial.key == "b" and point.epoch >= 1)

    outcomes = {}
    for outcome in train(work, source(), 2, events.append, tmp_path, prune):
        outcomes[outcome.trial.key] = (outcome.pruned, outcome.slot.progress.step)
        if not outcome.pruned:
            tiny.assert_close(outcome.slot.adapter.tensors(), solo[outcome.trial.key].best, tiny.TOLERANCE)
    steps = solo["a"].steps
    assert outcomes == {
        "a": (False, steps),
        "b": (True, steps // 3),
        "c": (False, steps),
        "d": (False, steps),
    }
    assert asked == [("a", []), ("b", []), ("c", ["b"]), ("d", ["b", "a"])]
    assert [event.kind for event in events if event.key == "b"][-1] == "pruned"


@pytest.mark.parametrize(("rows", "batch_size", "each"), [(26, 4, 3), (8, 4, 5), (25, 4, 2), (4, 4, 4)])
def test_an_epoch_is_evaluated_in_equal_parts(tmp_path: Path, rows: int, batch_size: int, each: int) -> None:
    work = tiny.workload(tiny.random_base(tmp_path, "bert"), rows=rows)
    fields = {"epochs": 2, "batch_size": batch_size}
    parts = tiny.run(work, [tiny.trial(work.base, "a", evaluations_per_epoch=each, **fields)])["a"]
    whole = tiny.run(work, [tiny.trial(work.base, "a", **fields)])["a"]
    tiny.assert_close(parts.final, whole.final, 1e-7)
    count = math.ceil(rows / batch_size)
    wanted = sorted(
        {epoch * count + math.ceil(part * count / each) for epoch in range(2) for part in range(1, each + 1)}
    )
    assert [point.step for point in parts.curve] == wanted
    assert [point.step for point in whole.curve] == [count, 2 * count]
