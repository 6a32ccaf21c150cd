"""From words to token ids: every word is read, in several rows where a sentence is longer than a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunestack.arrays import IntArray
from tunestack.data.encode import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedWords(Encoded):
    """Tokenised sentences; a row is a sentence or a part of one.

    labels: the tag ids of each row's words, or None. firsts: a row's places of the first token of each of its
    words. widest: how many words a row has at most. sentence, begin: [rows], which sentence a row is of, and
    its first word there. words: [sentences]. truncated: how many sentences have several rows.
    """

    firsts: list[IntArray]
    widest: int
    sentence: IntArray
    begin: IntArray
    words: IntArray


def words_of(value: Any) -> list[str]:
    """The words of a sentence: given as a list, or as text with spaces between them."""
    return value.split() if isinstance(value, str) else list(value)


def encode_words(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    tags: Sequence[Sequence[int]] | None,
    max_length: int,
) -> EncodedWords:
    """Tokenise sentences; what does not fit into max_length tokens goes into further rows.

    A row ends with a whole word, but for tokens of the next one that fill it. Of a word that is longer than a
    row only what fits is read. Words for which the tokenizer has nothing are read as an unknown one.
    """
    limit = min(max_length, tokenizer.model_max_length)
    left = [list(words) for words in sentences]
    todo = [(index, 0) for index in range(len(left))]
    rows: list[tuple[int, int, IntArray, IntArray]] = []
    while todo:
        parts = [left[index][begin : begin + limit] for index, begin in todo]
        again = []
        for (index, begin), row in zip(todo, _read(tokenizer, parts, limit), strict=True):
            taken = max(row.whole, min(1, len(row.firsts)))
            if (empty := np.flatnonzero(row.firsts[:taken] < 0)).size:
                for word in empty:
                    left[index][begin + int(word)] = _unknown(tokenizer)
                again.append((index, begin))
                continue
            rows.append((index, begin, row.ids, row.firsts[:taken]))
            if begin + taken < len(left[index]):
                again.append((index, begin + taken))
        todo = again
    rows.sort(key=lambda row: row[:2])
    labels = None
    if tags is not None:
        labels = [np.asarray(tags[i][begin : begin + len(f)], dtype=np.int64) for i, begin, _, f in rows]
    sentence = np.asarray([row[0] for row in rows], dtype=np.int64)
    return EncodedWords(
        input_ids=[row[2] for row in rows],
        token_type_ids=None,
        lengths=np.asarray([len(row[2]) for row in rows], dtype=np.int64),
        labels=labels,
        truncated=int((np.bincount(sentence, minlength=1) > 1).sum()),
        firsts=[row[3] for row in rows],
        widest=max((len(row[3]) for row in rows), default=0),
        sentence=sentence,
        begin=np.asarray([row[1] for row in rows], dtype=np.int64),
        words=np.asarray([len(words) for words in sentences], dtype=np.int64),
    )


@dataclass(frozen=True)
class _Row:
    """Token ids, the place of each word's first token (-1: it has none), how many words are read whole."""

    ids: IntArray
    firsts: IntArray
    whole: int


def _read(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sequence[str]], limit: int) -> list[_Row]:
    """Rows of at most `limit` tokens.

    Words are found again by their places in the text: so a tokenizer that marks words by the space before
    them sees what it saw in pretraining.
    """
    batch = tokenizer(
        [" ".join(words) for words in sentences],
        truncation=True, max_length=limit, return_offsets_mapping=True, verbose=False,
    )  # fmt: skip
    nothing = [tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
    rows = []
    for index, words in enumerate(sentences):
        ids = np.asarray(batch["input_ids"][index] or nothing, dtype=np.int64)
        own = np.asarray([one is not None for one in batch.sequence_ids(index)], dtype=bool)
        spans = np.asarray(batch["offset_mapping"][index], dtype=np.int64).reshape(-1, 2)[own]
        lengths = np.asarray([len(word) for word in words], dtype=np.int64)
        stops = np.cumsum(lengths + 1) - 1
        firsts = np.full(len(words), -1, dtype=np.int64)
        # A token's word is the first one that ends behind the token's beginning: a space opens the next.
        word = np.searchsorted(stops, spans[:, 0], side="right")
        found, first = np.unique(word[word < len(words)], return_index=True)
        firsts[found] = np.flatnonzero(own)[first]
        end = spans[-1, 1] if len(spans) else 0
        rows.append(_Row(ids, firsts, len(words) if len(ids) < limit else int((stops <= end).sum())))
    return rows


def _unknown(tokenizer: PreTrainedTokenizerBase) -> str:
    """A word that the tokenizer has a token for."""
    known = [token for token in (tokenizer.unk_token, tokenizer.eos_token) if token]
    return str(
        next((token for token in known if tokenizer(token, add_special_tokens=False)["input_ids"]), "0")
    )
