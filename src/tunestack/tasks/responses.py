"""Prompts with their responses as token ids, for models that go on with a text and for encoder-decoders."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tunestack.arrays import IntArray
from tunestack.data.encode import Encoded, pad, widened
from tunestack.data.tables import listed
from tunestack.errors import Problem, UserError
from tunestack.tasks.base import Decoding, literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunestack.bases import Base

NO_TARGET = -100
"""Where nothing is to be written: no token."""


@dataclass(frozen=True)
class Prompts(Encoded):
    """What is gone on from.

    start: the token that an encoder-decoder's decoder begins with; None for others.
    """

    start: int | None


@dataclass(frozen=True)
class Responses(Prompts):
    """Prompts with what is to be written after each.

    input_ids: what the model reads in training: prompt and response; of an encoder-decoder the prompt.
    labels: the response's token ids by example, the end of text last unless it is cut; None where none is
    known. prompts: the prompts alone. vocabulary: how many tokens there are to choose from.
    """

    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int


def fields_of(template: str) -> set[str]:
    """The names in a template's braces. Raises ValueError for braces that do not match, or hold more."""
    parts = list(string.Formatter().parse(template))
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("names in braces without a format; other braces are written {{ and }}")
    return {name for _, name, _, _ in parts if name is not None}


def encode_responses(
    base: Base, prompts: Sequence[str], outputs: Sequence[str] | None, max_length: int, rows: Sequence[int]
) -> Responses:
    """Tokenise prompts, and responses where they are known.

    Prompt and response are tokenised each for itself, so that what is learnt stands after exactly the tokens
    that generation begins with. Both together have at most max_length tokens (of an encoder-decoder, each);
    longer responses are cut. rows: what errors call the records. Raises UserError for prompts that leave no
    room for a response.
    """
    tokenizer, config = base.tokenizer, base.config.get_text_config()
    end = tokenizer.eos_token_id
    if end is None:
        fix = "Choose another base, or complete its tokenizer's files."
        raise UserError(Problem(base.name, "a tokenizer with a token that ends a text", "none", fix))
    both = bool(base.config.is_encoder_decoder)
    ids = [
        _array(row) if both else _open(row, end)
        for row in tokenizer(list(prompts), verbose=False)["input_ids"]
    ]
    start = int(base.config.decoder_start_token_id) if both else None
    read = Prompts(ids, None, _lengths(ids), None, 0, start)
    vocabulary = int(config.vocab_size)
    if outputs is None:
        return Responses(**_fields(read), prompts=read, tokenizer=tokenizer, vocabulary=vocabulary)
    room = np.full(len(ids), max_length) if both else max_length - read.lengths
    _check_prompts(base.name, read.lengths, max_length if both else max_length - 1, rows)
    whole = tokenizer(list(outputs), add_special_tokens=False, verbose=False)["input_ids"]
    written = [_array([*row, end][:most]) for row, most in zip(whole, room.tolist(), strict=True)]
    cut = sum(len(row) >= most for row, most in zip(whole, room.tolist(), strict=True))
    texts = ids if both else [np.concatenate(pair) for pair in zip(ids, written, strict=True)]
    return Responses(texts, None, _lengths(texts), written, cut, start, read, tokenizer, vocabulary)


def check_places(
    base: Base, encoded: Responses, places: int, max_new_tokens: int, rows: Sequence[int]
) -> None:
    """Refuse prompts after which the model has not places enough for a whole response."""
    config = base.config.get_text_config()
    places = min(places, getattr(config, "max_position_embeddings", None) or places)
    lengths = encoded.prompts.lengths
    needed = np.maximum(lengths, max_new_tokens) if encoded.start is not None else lengths + max_new_tokens
    beyond = np.flatnonzero(needed > places)
    if len(beyond):
        wrong = listed([rows[index] for index in beyond.tolist()], len(lengths))
        found = f"up to {int(needed.max()):,} in {wrong}"
        expected = f"at most {places:,} tokens of prompt and max_new_tokens ({max_new_tokens})"
        fix = "Lower max_new_tokens, leave these records out, or choose a base with a longer context."
        raise UserError(Problem(base.name, expected, found, fix))


def _check_prompts(base: str, lengths: IntArray, most: int, rows: Sequence[int]) -> None:
    beyond = np.flatnonzero(lengths > most)
    if len(beyond):
        wrong = listed([rows[index] for index in beyond.tolist()], len(lengths))
        found = f"up to {int(lengths.max()):,} tokens in {wrong}"
        expected = f"prompts of at most {most:,} tokens, which leave room for a response"
        fix = "Raise max_length where the base allows it, or leave these records out."
        raise UserError(Problem(f"training.max_length on {base}", expected, found, fix))


def _open(ids: Sequence[int], end: int) -> IntArray:
    """A prompt to go on from: without the end of text that some tokenizers put behind every text."""
    return _array(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids)


def _array(ids: Sequence[int]) -> IntArray:
    return np.asarray(ids, dtype=np.int64)


def _lengths(ids: Sequence[IntArray]) -> IntArray:
    return _array([len(row) for row in ids])


def _fields(prompts: Prompts) -> dict[str, Any]:
    return dict(vars(prompts))


def batch_of(
    chosen: Sequence[tuple[Encoded, IntArray]], pad_id: int, leading: Sequence[int]
) -> dict[str, Tensor]:
    """A batch to learn from, padded on the right.

    For an encoder-decoder with `decoder_input_ids`; for others with `places`, [rows, longest response]: after
    which tokens of the batch each token of the response is to be written.
    """
    batch = pad(chosen, pad_id, leading=leading)
    parts: list[Any] = [encoded for encoded, _ in chosen]
    rows = [
        (encoded, int(index), extra)
        for encoded, (_, indices), extra in zip(parts, chosen, leading, strict=True)
        for index in indices
    ]
    longest = max(len(encoded.labels[index]) for encoded, index, _ in rows)
    table = np.full((len(rows), longest), pad_id, dtype=np.int64)
    for row, (encoded, index, extra) in enumerate(rows):
        count = len(encoded.labels[index])
        if encoded.start is None:
            first = extra + len(encoded.prompts.input_ids[index]) - 1
            table[row] = np.minimum(first + np.arange(longest), first + count - 1)
        else:
            table[row, 0] = encoded.start
            table[row, 1:count] = encoded.labels[index][:-1]
    if parts[0].start is None:
        return {**batch, "places": torch.from_numpy(table)}
    if longest == batch["input_ids"].shape[1]:
        batch = widened(batch, pad_id)
    return {**batch, "decoder_input_ids": torch.from_numpy(table)}


def prompt_batch_of(
    chosen: Sequence[tuple[Encoded, IntArray]], pad_id: int, leading: Sequence[int]
) -> dict[str, Tensor]:
    """A batch to go on from, padded on the left; of an encoder-decoder on the right, with its start."""
    first: Any = chosen[0][0]
    if first.start is None:
        return pad(chosen, pad_id, side="left", leading=leading)
    batch = pad(chosen, pad_id, leading=leading)
    return {**batch, "decoder_input_ids": torch.full((len(batch["input_ids"]), 1), first.start)}


def targets_of(encoded: Encoded, indices: IntArray) -> Tensor:
    """[rows, longest response] token ids, `NO_TARGET` behind each."""
    if encoded.labels is None:
        raise ValueError("this split has no responses")
    own = [encoded.labels[index] for index in indices]
    table = np.full((len(own), max(map(len, own))), NO_TARGET, dtype=np.int64)
    for line, ids in zip(table, own, strict=True):
        line[: len(ids)] = ids
    return torch.from_numpy(table)


def take(logits: Tensor, places: Tensor) -> Tensor:
    """logits [rows, tokens, vocabulary] at each row's own places [rows, n]."""
    return logits[torch.arange(len(logits), device=logits.device)[:, None], places]


def as_numbers(texts: Sequence[str], ended: Sequence[bool]) -> IntArray:
    """Texts as one array, [texts, 1 + longest]: whether each ended by itself, its characters, then -1."""
    table = np.full((len(texts), 1 + max(map(len, texts), default=0)), -1, dtype=np.int64)
    table[:, 0] = ended
    for line, text in zip(table, texts, strict=True):
        line[1 : 1 + len(text)] = [ord(character) for character in text]
    return table


def as_texts(given: IntArray) -> list[str]:
    """The texts of `as_numbers`."""
    return ["".join(map(chr, line[line >= 0].tolist())) for line in np.asarray(given)[:, 1:]]


def response_snippet(
    record: Mapping[str, str], template: str, template_with_input: str, decoding: Decoding, both: bool
) -> str:
    """Python that prints the response of `model` to a record; both: whether it is an encoder-decoder.

    Of the base's own settings for generating, only the tokens that end a text are kept: a penalty among them,
    say, is for other uses, and nothing was validated with it.
    """
    lines = [
        "from transformers import GenerationConfig",
        "",
        f"record = {literal(record)}  # the input may be empty",
        f"template = {literal(template)}",
        f"template_with_input = {literal(template_with_input)}",
        'prompt = (template_with_input if record["input"] else template).format(**record)',
        'ids = tokenizer(prompt, return_tensors="pt").input_ids',
    ]
    if not both:
        lines += [
            "if ids[0, -1] == tokenizer.eos_token_id:  # some tokenizers end every text; this one goes on",
            "    ids = ids[:, :-1]",
        ]
    options = {"do_sample": False, **vars(decoding)}
    if decoding.num_beams == 1:
        del options["length_penalty"]  # there is nothing to rank
    lines += [
        "ends = model.generation_config.eos_token_id",
        "ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}",
        "settings = GenerationConfig(",
        "    eos_token_id=sorted(ends),",
        "    pad_token_id=tokenizer.pad_token_id,",
        *["    decoder_start_token_id=model.config.decoder_start_token_id,"] * both,
        *(f"    {name}={value}," for name, value in options.items()),
        ")",
        "vars(model.generation_config).update(vars(settings))  # none of the base's own, such as penalties",
        "written = model.generate(input_ids=ids, attention_mask=ids.new_ones(ids.shape))"
        f"[0{'' if both else ', ids.shape[1] :'}]",
        "written = [token for token in written.tolist() if token not in ends]",
        "print(tokenizer.decode(written, skip_special_tokens=True).strip())",
    ]
    return "\n".join(lines)


def fill(template: str, template_with_input: str, record: Mapping[str, str]) -> str:
    """The prompt of a record; one without input gets the first template."""
    chosen = template_with_input if record.get("input") else template
    return chosen.format(**record)
