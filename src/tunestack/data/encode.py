"""From texts to token ids, and from token ids to padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunestack.arrays import IntArray

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Tokenised texts of one split.

    input_ids, token_type_ids: one array of token ids an example; `token_type_ids` is None where the model
    knows none or there is one text only. lengths: [examples] tokens. labels: what each is to be answered
    with, as the task has it, or None. truncated: how many texts were longer than max_length.
    """

    input_ids: list[IntArray]
    token_type_ids: list[IntArray] | None
    lengths: IntArray
    labels: Any
    truncated: int

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: Sequence[float] | None,
    max_length: int,
) -> Encoded:
    """Tokenise, cut at max_length tokens; a text without any gets one, for a model must have what to pool."""
    limit = min(max_length, tokenizer.model_max_length)
    whole = tokenizer(
        list(texts), list(pairs) if pairs is not None else None, truncation=True, max_length=limit,
        return_overflowing_tokens=False, return_attention_mask=False, verbose=False,
    )  # fmt: skip
    nothing = [tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
    ids: list[IntArray] = [np.asarray(row or nothing, dtype=np.int64) for row in whole["input_ids"]]
    types: list[IntArray] | None = None
    if pairs is not None and "token_type_ids" in whole:
        types = [np.asarray(row, dtype=np.int64) for row in whole["token_type_ids"]]
    lengths = np.asarray([len(row) for row in ids], dtype=np.int64)
    return Encoded(
        ids,
        types,
        lengths,
        None if labels is None else np.asarray(labels),
        _count_longer(tokenizer, texts, pairs, lengths, limit),
    )


def _count_longer(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    lengths: IntArray,
    limit: int,
) -> int:
    """How many texts lost tokens; only those that fill the limit are tokenised again."""
    full = np.flatnonzero(lengths >= limit).tolist()
    if not full:
        return 0
    again = tokenizer(
        [texts[i] for i in full], None if pairs is None else [pairs[i] for i in full], verbose=False
    )
    return sum(len(row) > limit for row in again["input_ids"])


def pad(
    chosen: Sequence[tuple[Encoded, IntArray]],
    pad_id: int,
    side: str = "right",
    leading: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """One padded batch of the chosen examples of several encoded splits, one after the other.

    leading: for each split, how many places to keep at the beginning of every row, before any padding; they
    hold the example's first token, which is never padding, and whoever asked for them replaces its embedding.
    Returns input_ids and attention_mask, [rows, tokens] int64 (and token_type_ids where they are known),
    as long as the longest row.
    """
    import torch

    rows = [
        (encoded, int(index), extra)
        for (encoded, indices), extra in zip(chosen, leading or [0] * len(chosen), strict=True)
        for index in indices
    ]
    longest = max(int(encoded.lengths[index]) + extra for encoded, index, extra in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    typed = all(encoded.token_type_ids is not None for encoded, _ in chosen)
    types = np.zeros_like(ids) if typed else None
    for row, (encoded, index, extra) in enumerate(rows):
        length = int(encoded.lengths[index])
        start = longest - length if side == "left" else extra
        text = slice(start, start + length)
        ids[row, :extra] = encoded.input_ids[index][0]
        ids[row, text] = encoded.input_ids[index]
        mask[row, :extra] = mask[row, text] = 1
        if types is not None and encoded.token_type_ids is not None:
            types[row, text] = encoded.token_type_ids[index]
    batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if types is not None:
        batch["token_type_ids"] = torch.from_numpy(types)
    return batch


def widened(batch: Mapping[str, torch.Tensor], pad_id: int) -> dict[str, torch.Tensor]:
    """An encoder-decoder's batch with one more padding token on the right of what the encoder reads.

    For batches in which both halves would read equally many: dropout knows them apart by that number.
    """
    import torch

    values = {"input_ids": pad_id, "attention_mask": 0}
    return {
        name: torch.nn.functional.pad(tensor, (0, 1), value=values[name]) if name in values else tensor
        for name, tensor in batch.items()
    }
