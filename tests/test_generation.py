"""Generation for several trials at once, against transformers' own and against forwards without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import tiny
from families import FAMILIES, Family
from tunestack.bases import Base
from tunestack.data.encode import Encoded, pad
from tunestack.methods.base import with_head
from tunestack.methods.sites import Span
from tunestack.stack.generation import _Forwards, generate
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.base import Decoding
from tunestack.tasks.classification import SequenceClassification

DECODERS = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "phi3",
    "bloom",
    "gptj",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "opt",
]
SEQ2SEQ = ["t5", "mt5"]
TEXTS = ["abc", "the quick brown fox", "z", "to be or not to be", "12 + 30"]


class Writing(SequenceClassification):
    """A task whose model writes; nothing else of it is used here."""

    auto_class = AutoModelForCausalLM
    reads_first_token = False


class Answering(Writing):
    """The same for encoder-decoders."""

    auto_class = AutoModelForSeq2SeqLM

    def prompt_batch(self, chosen: Any, pad_id: int, leading: Any) -> dict[str, Tensor]:
        batch = pad(chosen, pad_id, leading=leading)
        return {**batch, "decoder_input_ids": torch.zeros(len(batch["input_ids"]), 1, dtype=torch.long)}


def open_stack(folder: Path, kind: str) -> Stack:
    base = tiny.random_base(folder, kind)
    task = (Answering if kind in SEQ2SEQ else Writing)(tiny.LABELS)
    loaded = base.load_model(task.auto_class, task.model_config(base))
    torch.manual_seed(5)
    with torch.no_grad():  # livelier than fresh weights, which repeat one token for ever
        for name, parameter in loaded.model.named_parameters():
            if parameter.ndim > 1:
                parameter.add_(
                    torch.randn_like(parameter) * (0.3 if "emb" in name or "wte" in name else 0.15)
                )
    return Stack(Workload(base, task, {}, "accuracy"), loaded)


def encoded(base: Base) -> Encoded:
    ids = [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) % 90 + 5 for text in TEXTS]
    return Encoded(ids, None, np.array([len(row) for row in ids]), None, 0)


class Place:
    """A slot without weights of its own."""

    def __init__(self, index: int = 0, leading: int = 0) -> None:
        self.index, self.leading = index, leading

    def span(self, start: int, stop: int, training: bool) -> Span:
        return Span(self.index, start, stop, leading=self.leading)


def by_transformers(stack: Stack, ends: list[int], **options: Any) -> list[list[int]]:
    """Every text by itself, with the model's own `generate`."""
    found = []
    for row in encoded(stack.work.base).input_ids:
        ids = torch.from_numpy(row)[None]
        written = stack.host.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
            use_cache=True,
            decoder_start_token_id=0,
            **options,
        )[0].tolist()
        new = written[1:] if stack.host.model.config.is_encoder_decoder else written[len(row) :]
        stops = [place for place, token in enumerate(new) if token in ends]
        found.append(new[: stops[0]] if stops else new)
    return found


def some_ends(stack: Stack) -> list[int]:
    """Tokens that the model writes after a few others, so that texts end at different times."""
    free = by_transformers(stack, [95], max_new_tokens=12)
    return sorted({text[place] for text, place in zip(free, (3, 7, 5, 9, 6), strict=True)})


@pytest.mark.parametrize("kind", [*DECODERS, *SEQ2SEQ])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "length_penalty": 0.3}])
def test_it_is_what_transformers_generates(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    stack = open_stack(tmp_path, kind)
    ends = some_ends(stack)
    expected = by_transformers(stack, ends, max_new_tokens=12, **options)
    stack.work.base.ends = lambda model: ends  # type: ignore[method-assign]
    found = stack.generate([Place(0), Place(1)], encoded(stack.work.base), Decoding(12, **options))
    assert found[0] == expected
    assert found[1] == expected
    assert len({len(text) for text in expected}) > 1


def without_cache(stack: Stack, place: Any, row: np.ndarray, new_tokens: int, ends: list[int]) -> list[int]:
    """Greedy, the whole text through the model again for each token."""
    written: list[int] = []
    for _ in range(new_tokens):
        ids = np.concatenate([row, np.array(written, dtype=np.int64)])
        whole = Encoded([ids], None, np.array([len(ids)]), None, 0)
        chosen = [(whole, np.arange(1))]
        with torch.inference_mode():
            logits = stack._forward(chosen, [place.span(0, 1, False)], training=False)
        token = int(logits[0, -1].argmax())
        if token in ends:
            break
        written.append(token)
    return written


def decoder_without_cache(stack: Stack, place: Any, row: np.ndarray, new_tokens: int) -> list[int]:
    """The same for an encoder-decoder: all that is written so far through the decoder again."""
    written: list[int] = []
    whole = Encoded([row], None, np.array([len(row)]), None, 0)
    for _ in range(new_tokens):
        batch = stack.work.task.prompt_batch([(whole, np.arange(1))], 0, [place.leading])
        stack.host.rows.set([place.span(0, 1, False)], batch["input_ids"].shape[1])
        batch["decoder_input_ids"] = torch.tensor([[0, *written]])
        with torch.inference_mode():
            logits = stack.host.model(**stack.host.arguments(batch)).logits
        written.append(int(logits[0, -1].argmax()))
    return written


def place_families(stack: Stack, kind: str, families: list[Family]) -> list[Place]:
    """One slot a family, its weights moved."""
    places = []
    for index, family in enumerate(families):
        config = family.method.make_config(family.fields, kind, [])
        adapter = family.method.attach(with_head(config, []), stack.host, index, seed=index)
        with torch.no_grad():
            for parameter in adapter.parameters.values():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        places.append(Place(index, adapter.virtual_tokens))
    return places


def test_every_family_generates_as_without_a_cache(tmp_path: Path) -> None:
    """All families beside each other, each with texts of its own length of beginning."""
    ends = [90]
    for kind in ("llama", "gpt2", "bloom", "opt", "t5", "mt5"):
        stack = open_stack(tmp_path, kind)
        without_biases = {"bitfit"} if kind in ("llama", *SEQ2SEQ) else set()
        families = [one for one in FAMILIES if one.method.stacks and one.name not in without_biases]
        places = place_families(stack, kind, families)
        if kind in SEQ2SEQ:
            ends = []
        stack.work.base.ends = lambda model, ends=ends: ends  # type: ignore[method-assign,misc]
        whole = encoded(stack.work.base)
        found = stack.generate(places, whole, Decoding(6))
        differing = 0
        for place, texts in zip(places, found, strict=True):
            if kind in SEQ2SEQ:
                expected = [decoder_without_cache(stack, place, row, 6) for row in whole.input_ids]
            else:
                expected = [without_cache(stack, place, row, 6, ends) for row in whole.input_ids]
            assert texts == expected, (kind, families[place.index].name)
            differing += texts != found[0]
        assert differing > 3  # the adapters do something


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_trials_whose_texts_have_all_ended_leave_the_others_going(kind: str, tmp_path: Path) -> None:
    """Two trials of every family, then one text of one trial alone."""
    stack = open_stack(tmp_path, kind)
    families = [one for one in FAMILIES if one.method.stacks and one.name != "bitfit"]  # neither has biases
    places = place_families(stack, kind, [one for one in families for _ in range(2)])
    whole = encoded(stack.work.base)

    def after_one_token(chosen: list[Place], kept: list[int]) -> Tensor:
        spans = [place.span(row, row + 1, False) for row, place in enumerate(chosen)]
        rows = [(whole, np.array([1]))] * len(chosen)
        batch = stack.work.task.prompt_batch(rows, 0, [place.leading for place in chosen])
        forwards = _Forwards(stack.host, spans)
        forwards.first(batch)
        forwards.keep(torch.tensor(kept))
        return forwards.next(torch.full((len(kept),), 7))

    with torch.inference_mode():
        for index, place in enumerate(places):
            expected = after_one_token([place], [0])
            assert torch.allclose(after_one_token(places, [index]), expected, atol=1e-4)


def test_a_text_that_never_ends_is_cut(tmp_path: Path) -> None:
    stack = open_stack(tmp_path, "llama")
    stack.work.base.ends = lambda model: []  # type: ignore[method-assign]
    for beams in (1, 2):
        found = stack.generate([Place()], encoded(stack.work.base), Decoding(7, num_beams=beams))
        assert [len(text) for text in found[0]] == [7] * len(TEXTS)


def test_a_text_may_end_at_once(tmp_path: Path) -> None:
    stack = open_stack(tmp_path, "llama")
    everything = list(range(stack.host.model.config.vocab_size))
    batch = pad([(encoded(stack.work.base), np.arange(2))], 0, "left", [0])
    assert generate(stack.host, batch, [Span(0, 0, 2)], everything, Decoding(5)) == [[], []]
