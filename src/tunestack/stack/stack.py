"""A stack: one forward and one backward a step for all trials that share a model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tunestack.arrays import IntArray
from tunestack.bases import Base
from tunestack.bases.attention import LONGEST
from tunestack.bases.base import LoadedModel, keep_first_token
from tunestack.bases.packing import ARGUMENT, Packed
from tunestack.data.batches import evaluation_batches
from tunestack.data.encode import Encoded
from tunestack.errors import Problem, UserError
from tunestack.kernels.library import has_kernels
from tunestack.methods.base import with_head
from tunestack.methods.sites import Dropout, Host, SharedInputError, Span
from tunestack.methods.whole_blocks import open_whole
from tunestack.stack.events import Event, Notify, event_of
from tunestack.stack.generation import generate
from tunestack.stack.lanes import Lanes
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.work import NO_ROOM, Outcome, Workload
from tunestack.tasks.base import Decoding, Evaluation, Given

T = TypeVar("T")
End = Callable[[Slot, float], None]
"""What becomes of a slot whose gradients are there, and of its loss."""

EVALUATION_TOKENS = 8192
"""Padded tokens of one evaluation batch, all slots together."""

_NO_MASK = torch.zeros(1, 1, 1, 1)
"""What transformers takes for a mask that is made already, where nobody asks for one."""


class Occupant(Protocol):
    """Whoever has rows in a batch."""

    @property
    def index(self) -> int:
        """Under which its parts are placed in the model."""

    def span(self, start: int, stop: int, training: bool) -> Span:
        """The rows [start, stop) as this one's."""


class Stack:
    """Trials in training on one model.

    width: how many slots take part in one forward; halved when memory does not suffice. lanes: how many
    forwards run side by side. packs: whether the model takes batches without padding. autocast: for a model
    whose own weights train, and which its trial may have changed in other ways, too.
    """

    def __init__(self, work: Workload, loaded: LoadedModel, autocast: bool = False) -> None:
        self.work = work
        if loaded.fresh and not work.task.has_head:
            raise _lacks(work.base, sorted(loaded.fresh))
        if work.task.reads_first_token:
            keep_first_token(loaded.model)
        self.host = Host(loaded.model, loaded.head, loaded.fresh, work.base.tokenizer)
        self.device = work.base.device
        has_kernels(work.base.dtype, self.device)  # compiled now, not in a step that is timed
        self.packs = loaded.packs and not autocast
        if self.packs:
            open_whole(loaded.model, self.host, work.task.reads_first_token)
        self.width: int | None = None
        self.lanes = Lanes(self.device)
        self._autocast = autocast and work.base.dtype != torch.float32
        self._evaluation_tokens = EVALUATION_TOKENS
        self._next_index = 0

    def open(self, trial: Trial) -> Slot:
        """Give a trial a slot. Where that fails nothing is left of it."""
        index, self._next_index = self._next_index, self._next_index + 1
        try:
            return self._open(trial, index)
        except BaseException:
            self.host.remove(index)
            raise

    def _open(self, trial: Trial, index: int) -> Slot:
        config = with_head(trial.config, self.host.head)
        adapter = trial.method.attach(config, self.host, index, trial.seed)
        if trial.training.base_dropout:
            for name, module in self.host.modules.items():
                if isinstance(module, nn.Dropout) and module.p > 0:
                    self.host.place(name, index, Dropout(module.p))
        max_length = self.work.base.room_for_text(trial.training.max_length, adapter.positions)
        train = self.work.encoded("train", max_length)
        weights = self.work.task.class_weights(trial.training.class_weights, train, self.device)
        packs = self._packs(index, train)
        return Slot(index, trial, config, adapter, max_length, train.lengths, weights, packs)

    def _packs(self, index: int, encoded: Encoded) -> bool:
        """Whether a slot's rows of a split pass through the model without padding: a matter of the two alone,
        whatever company they have. A padded batch that a slot changes stays padded.
        """
        shortish = int(encoded.lengths.max(initial=0)) <= LONGEST
        return self.packs and index not in self.host.entrance and shortish

    def close(self, slot: Slot) -> None:
        """Take a trial out; its neighbours do not notice."""
        self.host.remove(slot.index)

    def step(self, slots: Sequence[Slot], notify: Notify) -> None:
        """One optimisation step of every slot given, in as few forwards as lanes and memory allow."""
        self._pass(slots, notify, _update)

    def rehearse(self, slots: Sequence[Slot], place: float, notify: Notify) -> None:
        """All of a step but its end: to see what it takes. No slot is another one afterwards.

        place: of the step in the first epoch, from 0 to less than 1.
        """
        steps = [slot.progress.step for slot in slots]
        try:
            for slot in slots:
                slot.progress.step = int(place * slot.steps_per_epoch)
            self._pass(slots, notify, lambda slot, loss: None)
        finally:
            for slot, step in zip(slots, steps, strict=True):
                slot.progress.step = step

    def _pass(self, slots: Sequence[Slot], notify: Notify, end: End) -> None:
        for packs in (True, False):  # a forward has padding or has none
            todo = [slot for slot in slots if slot.packs is packs]
            if not packs:  # it pads all of its rows to the longest one: like goes to like
                todo.sort(key=lambda slot: slot.next_length)
            while todo:
                todo = self._pass_some(todo, notify, end)

    def _pass_some(self, slots: Sequence[Slot], notify: Notify, end: End) -> list[Slot]:
        """As many as there is room for; returns those whose turn is still to come."""
        groups = self._groups(slots, self._shares)
        again: list[Slot] = []
        turn = functools.partial(self._turn, end=end)
        for group, done in zip(groups, self.lanes.run(turn, groups), strict=True):
            if (error := done.exception()) is not None:
                again += self._narrow(group, error, len(groups), notify)
        return [*again, *slots[sum(map(len, groups)) :]]

    def _shares(self, slots: Sequence[Slot]) -> list[Sequence[Slot]]:
        """The slots of one kind in lanes with about as much work each."""
        if slots[0].packs:
            return self.lanes.share(slots, [slot.next_tokens for slot in slots])
        return self.lanes.divide(slots, [slot.next_length for slot in slots])

    def _groups(
        self, slots: Sequence[T], shares: Callable[[Sequence[T]], list[Sequence[T]]] | None = None
    ) -> list[Sequence[T]]:
        """The next slots in line, one group a lane, none wider than memory allows. shares: how all of them
        are divided where memory allows any width; None for evenly.
        """
        if self.width is None:
            return (shares or self.lanes.divide)(slots)
        return self.lanes.divide(slots[: self.width * self.lanes.count])

    def _narrow(
        self, group: Sequence[Slot], error: BaseException, lanes: int, notify: Notify
    ) -> Sequence[Slot]:
        """Let fewer slots share a forward after an error that this helps with; returns who is to try again.

        lanes: how many forwards ran beside each other, this one included. Raises the error where it does not
        help. A trial that alone does not fit into memory fails.
        """
        if isinstance(error, SharedInputError):
            self.width = 1
            return group
        if not out_of_memory(error):
            raise error
        self.host.forget()
        if len(group) > 1:
            self.width = min(len(group) // 2, self.width or len(group))
            message = f"out of memory: {self.width} slots at once"
        elif lanes > 1:
            self.lanes.count = 1
            message = "out of memory: one slot at a time"
        else:
            group[0].failure = NO_ROOM
            return []
        notify(Event("narrowed", group[0].trial.key, message=message))
        return group

    def _turn(self, slots: Sequence[Slot], end: End) -> None:
        """One lane's part of a step."""
        for slot, loss in zip(slots, self._backward(slots), strict=True):
            end(slot, loss)

    def _backward(self, slots: Sequence[Slot]) -> list[float]:
        """Forward and backward of one batch of each slot; gradients lie in the slots' vectors."""
        for slot in slots:
            slot.grad.zero_()
        chosen = [(self.work.encoded("train", slot.max_length), slot.next_batch()) for slot in slots]
        spans = _spans(slots, chosen, training=True)
        try:
            return self._gradients(slots, chosen, spans)
        finally:
            self.host.rows.set(())  # rows of a batch that is over belong to nobody

    def _gradients(
        self, slots: Sequence[Slot], chosen: Sequence[tuple[Encoded, IntArray]], spans: Sequence[Span]
    ) -> list[float]:
        logits = self._forward(chosen, spans, training=True, packed=all(slot.packs for slot in slots))
        losses = []
        for slot, span, (encoded, indices) in zip(slots, spans, chosen, strict=True):
            targets = self.work.task.targets(encoded, indices).to(self.device)
            losses.append(self.work.task.loss(self._own(logits, span), targets, slot.class_weights))
        total = torch.stack(losses)
        penalties = [slot.adapter.penalty() for slot in slots if slot.adapter.penalty is not None]
        sum(penalties, total.sum()).backward()
        return [float(loss) for loss in total.detach().cpu()]

    def _forward(
        self,
        chosen: Sequence[tuple[Encoded, IntArray]],
        spans: Sequence[Span],
        training: bool = False,
        packed: bool = False,
    ) -> Tensor:
        leading = [span.leading for span in spans]
        batch = self.work.task.batch(chosen, self.work.base.tokenizer.pad_token_id, leading)
        owned = [
            replace(span, lengths=self._lengths(batch, span, *part))
            for span, part in zip(spans, chosen, strict=True)
        ]
        there: dict[str, Any] = {name: tensor.to(self.device) for name, tensor in batch.items()}
        starts = None
        if packed:
            owners = [span.stop - span.start for span in spans]
            there[ARGUMENT] = places = Packed(batch["attention_mask"], owners)
            there["attention_mask"] = _NO_MASK
            starts = places.starts
        self.host.rows.set(owned, batch["input_ids"].shape[1], starts)
        with self._precision():
            return self.work.task.forward(self.host.model, self.host.arguments(there), training)

    def _lengths(
        self, batch: Mapping[str, Tensor], span: Span, encoded: Encoded, indices: IntArray
    ) -> dict[int, int]:
        """A slot's own numbers of tokens, by those of the batch."""
        own = self.work.task.longest(encoded, indices)
        own["input_ids"] += span.leading
        return {batch[name].shape[1]: length for name, length in own.items()}

    def _own(self, logits: Tensor, span: Span) -> Tensor:
        """The logits of a slot's rows; of each row those of the text's own tokens."""
        own = logits[span.start : span.stop]
        return own[:, span.leading :] if self.work.task.per_token and span.leading else own

    def _precision(self) -> AbstractContextManager[object]:
        """Mixed precision for models whose own weights train, in fp32; a frozen base has its own dtype."""
        if self._autocast:
            return torch.autocast(self.device.type, dtype=self.work.base.dtype)
        return nullcontext()

    def outputs(self, slots: Sequence[Occupant], encoded: Encoded) -> Tensor:
        """What the task keeps of every slot's logits on every row: [slots, rows, ...] fp32, on the processor.

        Out of memory, batches are halved, down to single rows.
        """
        kinds = [self._packs(slot.index, encoded) for slot in slots]
        found: dict[int, Tensor] = {}
        for packed in (True, False):
            run = functools.partial(self._outputs, encoded=encoded, packed=packed)
            places = [place for place, kind in enumerate(kinds) if kind is packed]
            found.update(zip(places, self._evaluated([slots[place] for place in places], run), strict=True))
        return torch.stack([found[place] for place in range(len(slots))])

    def generate(
        self, slots: Sequence[Occupant], encoded: Encoded, decoding: Decoding
    ) -> list[list[list[int]]]:
        """What every slot writes after every row, as token ids without the last one, by slot and row."""
        return self._evaluated(slots, functools.partial(self._generate, encoded=encoded, decoding=decoding))

    def _evaluated(self, slots: Sequence[Occupant], run: Callable[..., Iterable[T]]) -> list[T]:
        """What `run` gives for every slot, in groups side by side, each within its share of the tokens."""
        outputs: list[T] = []
        left = slots
        try:
            while left:
                groups = self._groups(left)
                left = left[sum(map(len, groups)) :]
                part = functools.partial(run, tokens=self._evaluation_tokens // len(groups))
                for done in self.lanes.run(part, groups):
                    outputs += done.result()
            return outputs
        except SharedInputError:
            self.width = 1
        except RuntimeError as error:
            together = min(len(slots), self.width or len(slots))
            if not out_of_memory(error):
                raise
            if self._evaluation_tokens > together:
                self._evaluation_tokens //= 2
            elif together > 1:  # a batch has at least a row of each
                self.width = together // 2
            else:
                raise
        return self._evaluated(slots, run)

    @torch.inference_mode()
    def _outputs(self, slots: Sequence[Occupant], encoded: Encoded, packed: bool, tokens: int) -> Tensor:
        results: Tensor | None = None
        sizes = self.work.task.evaluation_sizes(encoded)
        for indices in evaluation_batches(sizes, max(1, tokens // len(slots))):
            chosen = [(encoded, indices)] * len(slots)
            spans = _spans(slots, chosen, training=False)
            try:
                logits = self._forward(chosen, spans, packed=packed)
            finally:
                self.host.rows.set(())
            kept = [self.work.task.collect(self._own(logits, span), encoded, indices).cpu() for span in spans]
            if results is None:
                results = torch.zeros(len(slots), len(encoded), *kept[0].shape[1:])
            results[:, torch.from_numpy(indices.copy())] = torch.stack(kept)
        if results is None:
            raise ValueError("an empty split cannot be evaluated")
        return results

    def _generate(
        self, slots: Sequence[Occupant], encoded: Encoded, decoding: Decoding, tokens: int
    ) -> list[list[list[int]]]:
        beams, room = decoding.num_beams, max(1, tokens // len(slots))
        written: list[list[list[int]]] = [[[]] * len(encoded) for _ in slots]
        ends = self.work.base.ends(self.host.model)
        for indices in evaluation_batches(encoded.lengths + decoding.max_new_tokens, max(1, room // beams)):
            chosen = [(encoded, indices)] * len(slots)
            spans = _spans(slots, chosen, training=False)
            batch = self.work.task.prompt_batch(
                chosen, self.work.base.tokenizer.pad_token_id, [span.leading for span in spans]
            )
            there = {name: tensor.to(self.device) for name, tensor in batch.items()}
            with self._precision():
                texts = generate(self.host, there, spans, ends, decoding)
            for slot, own in enumerate(np.array_split(np.arange(len(texts)), len(slots))):
                for index, place in zip(indices, own, strict=True):
                    written[slot][index] = texts[place]
        return written

    def evaluate(self, slots: Sequence[Slot], notify: Notify) -> None:
        """Validate the slots given, in shared forwards, and record what they reached."""
        by_length: dict[int, list[Slot]] = {}
        for slot in slots:
            notify(event_of("evaluating", slot))
            by_length.setdefault(slot.max_length, []).append(slot)
        for max_length, group in by_length.items():
            encoded = self.work.encoded("validation", max_length)
            for slot, found in zip(group, self._own_answers(group, encoded), strict=True):
                if found is None:
                    slot.failure = NO_ROOM
                    continue
                if not found.finite:
                    slot.failure = f"the validation outputs are not finite after step {slot.progress.step}"
                    continue
                decided = self._decided(found.given)
                given = self.work.task.decided(found.given, decided)
                metrics = self.work.task.scores(self.work.splits["validation"], given)
                point = slot.record(self.work.metric, metrics, found.loss, found.given)
                notify(event_of("evaluated", slot, point=point))

    def _own_answers(self, slots: Sequence[Slot], encoded: Encoded) -> list[Evaluation | None]:
        """What every slot answers; None for one that alone has no room for a single row."""
        try:
            return list(self.answers(slots, encoded))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(slots) == 1:
                return [None]
            return [found for slot in slots for found in self._own_answers([slot], encoded)]

    def answers(self, slots: Sequence[Occupant], encoded: Encoded) -> list[Evaluation]:
        """What every slot answers, in shared forwards."""
        weights = [slot.class_weights if isinstance(slot, Slot) else None for slot in slots]
        return self.work.task.evaluate(self, slots, encoded, weights)

    def outcome(self, slot: Slot) -> Outcome:
        """What a finished trial reached: best weights restored, answers on every split but train."""
        answers: dict[str, Given] = {}
        decided: dict[str, Any] = {}
        if slot.failure is None and slot.best_answers is not None:
            slot.restore_best()
            answers["validation"] = slot.best_answers
            for split in [name for name in self.work.splits if name not in ("train", "validation")]:
                answers[split] = self.answers([slot], self.work.encoded(split, slot.max_length))[0].given
            decided = self._decided(slot.best_answers)
            answers = {split: self.work.task.decided(given, decided) for split, given in answers.items()}
        return Outcome(
            slot.trial,
            answers,
            slot.seconds(),
            slot.failure,
            slot.pruned,
            decided,
            slot.progress.curve,
            held=(slot, self.host),
        )

    def _decided(self, given: Given) -> dict[str, Any]:
        """What answers to validation decide."""
        return self.work.task.decide(self.work.splits["validation"], given, self.work.metric)


def _spans(
    slots: Sequence[Occupant], chosen: Sequence[tuple[Encoded, IntArray]], training: bool
) -> list[Span]:
    rows = [len(indices) for _, indices in chosen]
    ends = np.cumsum(rows).tolist()
    return [
        slot.span(stop - count, stop, training) for slot, stop, count in zip(slots, ends, rows, strict=True)
    ]


def _lacks(base: Base, modules: Sequence[str]) -> UserError:
    """The error for a base of which more is missing than a head."""
    found = f"none for {len(modules)} modules, such as {modules[0]}"
    return UserError(Problem(base.name, "weights of the whole model", found, "Choose another base."))


def _update(slot: Slot, loss: float) -> None:
    """A step of the optimiser, whose state is made by its first one; out of memory, the slot is `broken`."""
    try:
        slot.update(loss)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        slot.broken = True


def out_of_memory(error: BaseException) -> bool:
    """Whether less work at once would have helped."""
    words = ("can't allocate memory", "out of memory")
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return told or isinstance(error, torch.OutOfMemoryError)
