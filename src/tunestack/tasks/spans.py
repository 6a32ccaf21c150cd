"""Long contexts as windows of tokens, and the best spans of characters from a model's logits on them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunestack.arrays import FloatArray, IntArray
from tunestack.data.encode import Encoded
from tunestack.errors import Problem, UserError

_ENCODED_AT_ONCE = 1000
_SCORES_AT_ONCE = 2**22
_MOST_PROBLEMS = 5

Span = tuple[int, int]
"""Where a text begins and ends within another, in characters."""


@dataclass(frozen=True)
class Windows(Encoded):
    """Questions, each with a part of its context; `labels` are the first and last token of the answer, or 0.

    example: which example a row is of. first: the place of the row's first token of the context. skipped: how
    many tokens of the context stand before it. counts: tokens of the context in the row; all [rows]. offsets:
    of each example [tokens of the context, 2], the characters where each begins and ends, spaces left out.
    """

    example: IntArray
    first: IntArray
    skipped: IntArray
    counts: IntArray
    offsets: list[IntArray]

    @functools.cached_property
    def alike(self) -> int:
        """How many pairs of tokens at most are about the same characters: tokens may be parts of one."""
        runs = [_longest_run(offsets[:, side]) for offsets in self.offsets for side in (0, 1)]
        return max(runs, default=1) ** 2

    def holds_text(self, rows: slice, tokens: int) -> NDArray[np.bool_]:
        """Whether an answer may begin or end at a token, [rows, tokens]: those of the context with text."""
        held = np.zeros((len(self.example[rows]), tokens), dtype=bool)
        for row, (example, first, skipped, count) in enumerate(
            zip(self.example[rows], self.first[rows], self.skipped[rows], self.counts[rows])
        ):
            own = self.offsets[example][skipped : skipped + count]
            held[row, first : first + count] = own[:, 0] < own[:, 1]
        return held


def encode_windows(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Span | None] | None,
    max_length: int,
    stride: int,
    names: Sequence[str],
) -> Windows:
    """Questions with their contexts, cut into windows of at most max_length tokens.

    answers: where the answer stands in the context, None where there is none. stride: tokens that a window
    shares with the one before, at most half of what it holds of the context. names: what errors call the
    examples. Raises UserError for questions that leave no room, contexts without text, and tokenizers that do
    not tell where a token comes from.
    """
    _check_fast(tokenizer)
    limit = min(max_length, tokenizer.model_max_length)
    problems: list[Problem] = []
    rows: list[_Row] = []
    offsets: list[IntArray] = []
    typed = False
    for index, whole in enumerate(_tokenized(tokenizer, questions, contexts)):
        typed = typed or whole.types is not None
        room = limit - len(whole.ids) + whole.end - whole.begin
        own = _without_spaces(whole.offsets, contexts[index])
        same = offsets and contexts[index] == contexts[index - 1] and np.array_equal(own, offsets[-1])
        offsets.append(offsets[-1] if same else own)
        if not (own[:, 0] < own[:, 1]).any():
            found, fix = f"{contexts[index][:60]!r}", "Leave this question out, or give it a context."
            problems.append(Problem(names[index], "a context with text", found, fix))
        elif room < 1:
            problems.append(_too_long(names[index], questions[index], limit - room, limit))
        else:
            answer = None if answers is None else answers[index]
            tokens = None if answer is None else _tokens_of(answer, own, contexts[index])
            rows += whole.windows(index, room, min(stride, room // 2), tokens)
    _raise_first(problems)
    return Windows(
        input_ids=[row.ids for row in rows],
        token_type_ids=[row.types for row in rows if row.types is not None] if typed else None,
        lengths=np.asarray([len(row.ids) for row in rows], dtype=np.int64),
        labels=None if answers is None else np.asarray([row.label for row in rows], dtype=np.int64),
        truncated=0,
        example=np.asarray([row.example for row in rows], dtype=np.int64),
        first=np.asarray([row.first for row in rows], dtype=np.int64),
        skipped=np.asarray([row.skipped for row in rows], dtype=np.int64),
        counts=np.asarray([row.tokens for row in rows], dtype=np.int64),
        offsets=offsets,
    )


def check_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_length: int, names: Sequence[str]
) -> None:
    """Raise UserError for questions that leave no room for a context, and tokenizers as above."""
    _check_fast(tokenizer)
    limit = min(max_length, tokenizer.model_max_length)
    others = tokenizer.num_special_tokens_to_add(pair=True)
    found = tokenizer(list(questions), add_special_tokens=False, return_attention_mask=False, verbose=False)
    taken = [len(ids) + others for ids in found["input_ids"]]
    _raise_first(
        [
            _too_long(name, question, count, limit)
            for name, question, count in zip(names, questions, taken, strict=True)
            if count >= limit
        ]
    )


def _check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        found = f"{type(tokenizer).__name__}, which does not"
        fix = "Choose a base with a fast tokenizer (a tokenizer.json)."
        raise UserError(Problem("the base's tokenizer", "one that tells characters by tokens", found, fix))


def _too_long(name: str, question: str, taken: int, limit: int) -> Problem:
    return Problem(
        name,
        f"a question that leaves room for its context in {limit} tokens",
        f"one that takes {taken} with special tokens: {question[:60]!r}",
        "Raise max_length, or shorten the question.",
    )


def _raise_first(problems: Sequence[Problem]) -> None:
    """Raise UserError with the first few problems, and how many more there are."""
    more = len(problems) - _MOST_PROBLEMS
    if more > 0:
        found = f"{more:,} more questions like these"
        rest = Problem("questions and contexts", "what fits the model", found, "Mend them likewise.")
        raise UserError(*problems[:_MOST_PROBLEMS], rest)
    if problems:
        raise UserError(*problems)


class _Row(NamedTuple):
    """One window."""

    ids: IntArray
    types: IntArray | None
    example: int
    first: int
    skipped: int
    tokens: int
    label: tuple[int, int]


class _Whole(NamedTuple):
    """A question and its whole context as tokens; those of the context are [begin, end)."""

    ids: IntArray
    types: IntArray | None
    begin: int
    end: int
    offsets: IntArray

    def windows(self, example: int, room: int, shared: int, answer: tuple[int, int] | None) -> Iterator[_Row]:
        """Windows of `room` tokens of the context, the last may be shorter. answer: its tokens there."""
        for start in range(0, max(1, self.end - self.begin - shared), room - shared):
            stop = min(start + room, self.end - self.begin)
            inside = answer is not None and start <= answer[0] and answer[1] < stop
            shift = self.begin - start
            label = (answer[0] + shift, answer[1] + shift) if answer is not None and inside else (0, 0)
            types = None if self.types is None else self._cut(self.types, start, stop)
            ids = self._cut(self.ids, start, stop)
            yield _Row(ids, types, example, self.begin, start, stop - start, label)

    def _cut(self, values: IntArray, start: int, stop: int) -> IntArray:
        """Everything around the context, and a part of it."""
        part = values[self.begin + start : self.begin + stop]
        return np.concatenate([values[: self.begin], part, values[self.end :]])


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], contexts: Sequence[str]
) -> Iterator[_Whole]:
    """A part at a time: offsets of many contexts take much memory as Python's numbers."""
    for start in range(0, len(questions), _ENCODED_AT_ONCE):
        part = slice(start, start + _ENCODED_AT_ONCE)
        found = tokenizer(
            list(questions[part]), list(contexts[part]), truncation=False, return_offsets_mapping=True,
            return_attention_mask=False, verbose=False,
        )  # fmt: skip
        for index, ids in enumerate(found["input_ids"]):
            of_context = [place for place, text in enumerate(found.sequence_ids(index)) if text == 1]
            begin, end = (of_context[0], of_context[-1] + 1) if of_context else (len(ids), len(ids))
            types = found["token_type_ids"][index] if "token_type_ids" in found else None
            yield _Whole(
                np.asarray(ids, dtype=np.int64),
                None if types is None else np.asarray(types, dtype=np.int64),
                begin,
                end,
                np.asarray(found["offset_mapping"][index][begin:end], dtype=np.int32).reshape(-1, 2),
            )


@functools.lru_cache(maxsize=64)
def _text_at(context: str) -> tuple[IntArray, IntArray]:
    """For every place in a context: where text goes on from there, and where text before it ended."""
    places = np.arange(len(context) + 1)
    is_space = np.asarray([character.isspace() for character in context] + [False])
    after = np.minimum.accumulate(np.where(is_space, len(context), places)[::-1])[::-1]
    before = np.maximum.accumulate(np.where(np.append(False, ~is_space[:-1]), places, 0))
    return after, before


def _without_spaces(offsets: IntArray, context: str) -> IntArray:
    """Offsets of tokens that may hold spaces around their text, as byte-level BPE's do, without these."""
    after, before = _text_at(context)
    starts = after[offsets[:, 0]]
    ends = before[offsets[:, 1]]
    # A token of spaces alone holds no text; its end stays where it was, so that ends never fall.
    holds_text = starts < ends
    starts, ends = (np.where(holds_text, places, offsets[:, 1]) for places in (starts, ends))
    return np.stack([starts, ends], axis=1).astype(np.int32)


def _tokens_of(answer: Span, offsets: IntArray, context: str) -> tuple[int, int] | None:
    """The first and the last token that hold a part of the answer; None where the tokenizer dropped it."""
    after, before = _text_at(context)
    start, end = after[answer[0]], before[answer[1]]
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None


class Spans(NamedTuple):
    """Spans of characters, all [spans], the best of each example first: what they are of and how they score.

    A score is the sum of the logits of the first and the last token.
    """

    example: IntArray
    start: IntArray
    end: IntArray
    score: FloatArray


def best_spans(windows: Windows, logits: Tensor, longest: int, count: int) -> Spans:
    """The `count` best spans of each example that there are, of at most `longest` tokens.

    logits: [rows, tokens, 2], of beginnings and ends. Every pair of tokens of one window is looked at.
    """
    found = [_of_rows(windows, logits, rows, longest, count) for rows in _parts(logits, longest)]
    spans = Spans(*(np.concatenate(column) for column in zip(*found, strict=True)))
    # The same characters, in two windows that overlap or by tokens of one character: the higher score counts.
    order = np.lexsort((-spans.score, spans.end, spans.start, spans.example))
    places = np.stack([spans.example, spans.start, spans.end])[:, order]
    order = order[np.append(True, (places[:, 1:] != places[:, :-1]).any(axis=0))]
    order = order[np.lexsort((-spans.score[order], spans.example[order]))]
    examples = spans.example[order]
    rank = np.arange(len(order)) - np.searchsorted(examples, examples)
    return Spans(*(column[order[rank < count]] for column in spans))


def _longest_run(values: IntArray) -> int:
    """How many equal values stand beside each other at most; at least 1."""
    changes = np.flatnonzero(np.diff(values))
    return int(np.diff([-1, *changes, len(values) - 1]).max()) if len(values) else 1


def null_scores(windows: Windows, logits: Tensor) -> FloatArray:
    """The score of no answer, [examples]: that of the first token, in the window where it is lowest."""
    of_rows = logits[:, 0].double().sum(dim=-1).numpy()
    lowest = np.full(len(windows.offsets), np.inf)
    np.minimum.at(lowest, windows.example, of_rows)
    return lowest


def _parts(logits: Tensor, longest: int) -> Iterator[slice]:
    size = max(1, _SCORES_AT_ONCE // (logits.shape[1] * longest))
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def _of_rows(windows: Windows, logits: Tensor, rows: slice, longest: int, count: int) -> Spans:
    """The best spans of each of some windows."""
    tokens = logits.shape[1]
    held = torch.from_numpy(windows.holds_text(rows, tokens))
    starts, ends = logits[rows].masked_fill(~held[..., None], -torch.inf).unbind(dim=-1)
    later = torch.nn.functional.pad(ends, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
    pairs = (starts[:, :, None] + later).flatten(1)
    scores, places = pairs.topk(min(count * windows.alike, pairs.shape[1]))
    row, rank = np.nonzero((scores > -torch.inf).numpy())
    place = places.numpy()[row, rank]
    first = place // longest
    last = first + place % longest
    own = np.arange(len(windows.example))[rows][row]
    example, shift = windows.example[own], windows.skipped[own] - windows.first[own]
    begins = [windows.offsets[one][token, 0] for one, token in zip(example, first + shift)]
    stops = [windows.offsets[one][token, 1] for one, token in zip(example, last + shift)]
    exact = logits[rows].double().numpy()  # sums of two numbers of fp32 are exact in fp64
    score = exact[row, first, 0] + exact[row, last, 1]
    return Spans(example, np.asarray(begins, dtype=np.int64), np.asarray(stops, dtype=np.int64), score)
