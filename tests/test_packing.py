"""Packing: without its padding, a batch gives what it gives with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from families import FAMILIES, Family
from task_samples import SAMPLES
from tunestack.bases import attention as bases_attention
from tunestack.bases import load_base
from tunestack.bases.attention import LONGEST, short_attention
from tunestack.bases.packing import ALIGN, ARGUMENT, STEP, TOGETHER, Packed
from tunestack.config import BaseConfig
from tunestack.saved import Seat
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload

LENGTHS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=4)


def packed_of(lengths: Sequence[Sequence[int]]) -> tuple[Packed, Tensor]:
    """Texts of these lengths, by owner, and their mask [rows, tokens]."""
    flat = torch.tensor([length for own in lengths for length in own])
    mask = (torch.arange(int(flat.max())) < flat[:, None]).long()
    return Packed(mask, [len(own) for own in lengths]), mask


@given(LENGTHS)
def test_every_token_has_its_place_and_comes_back(lengths: list[list[int]]) -> None:
    packed, mask = packed_of(lengths)
    numbers = torch.arange(1.0, mask.numel() + 1).view(*mask.shape, 1)
    tokens = packed.gather(numbers)
    assert tokens.shape == (packed.starts[-1], 1, 1)
    assert torch.equal(packed.spread(tokens), numbers * mask[:, :, None])
    assert torch.equal(packed.first(tokens), numbers[:, :1])
    row, last = 0, len(lengths) - 1
    for place, own in enumerate(lengths):
        start, end = packed.starts[row], packed.starts[row + len(own)]
        align = TOGETHER if 0 < place == last else ALIGN
        assert end % align == 0
        assert end - start - sum(own) < align
        expected = [numbers[row + at, :length, 0] for at, length in enumerate(own)]
        assert torch.equal(tokens[start : start + sum(own), 0, 0], torch.cat(expected))
        # What fills it up is the owner's own, so what breaks one trial stays with it.
        assert (tokens[start + sum(own) : end] == numbers[row, 0]).all()
        row += len(own)


@pytest.mark.parametrize("compiled", [True, False])
@given(lengths=LENGTHS, heads=st.integers(1, 3), first=st.booleans())
def test_attention_is_the_formula_text_by_text(
    compiled: bool, lengths: list[list[int]], heads: int, first: bool
) -> None:
    """Outputs and gradients, in fp64; spare places get no gradient whatever happens to them.

    first: whether first tokens alone are asked for.
    """
    packed, _ = packed_of(lengths)
    packed = packed.of_first() if first else packed
    generator = torch.Generator().manual_seed(3)
    query, key, value, weights = (
        torch.randn(packed.starts[-1], 1, heads, 4, generator=generator, dtype=torch.float64)
        for _ in range(4)
    )
    ours = [tensor.float().transpose(1, 2).requires_grad_(True) for tensor in (query, key, value)]
    with pytest.MonkeyPatch.context() as patched:
        if not compiled:
            patched.setattr(bases_attention, "has_kernels", lambda *args: False)
        output, _ = short_attention(torch.nn.Module(), *ours, None, scaling=0.7, **{ARGUMENT: packed})
    gradients = torch.autograd.grad(output, ours, weights.float())
    expected = [tensor.transpose(1, 2).clone().requires_grad_(True) for tensor in (query, key, value)]
    flat = [length for own in lengths for length in own]
    pieces, kept = [], []
    for row, length in enumerate(flat):
        own = slice(packed.starts[row], packed.starts[row] + length)
        asked = slice(packed.starts[row], packed.starts[row] + (1 if first else length))
        q, k, v = (tensor[own, :, 0].transpose(0, 1) for tensor in expected)  # [heads, tokens, size]
        mixed = torch.softmax(q @ k.transpose(1, 2) * 0.7, dim=-1) @ v
        pieces.append(mixed.transpose(0, 1)[: asked.stop - asked.start, None])
        kept.append(weights[asked])
        torch.testing.assert_close(output[asked].double(), pieces[-1], rtol=1e-5, atol=1e-5)
    theirs = torch.autograd.grad(torch.cat(pieces), expected, torch.cat(kept))
    for mine, right in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5)
        assert not mine[packed.spare].any()


def opened(folder: Path, kind: str, task: str = "classification", **fields: Any) -> tuple[Stack, list[Slot]]:
    """A stack with a few trials that are at different steps."""
    base = tiny.random_base(folder, kind)
    sample = SAMPLES[task]
    work = Workload(base, sample.make(), sample.splits, "")
    stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
    slots = [stack.open(trial) for trial in tiny.mixed(base, **fields)[:4]]
    for steps, slot in enumerate(slots):
        slot.progress.step = steps
    return stack, slots


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bert", "classification"),
        ("roberta", "classification"),
        ("electra", "classification"),
        ("bert", "token-classification"),  # an answer a token: padding comes back at the end
        ("roberta", "question-answering"),
    ],
)
def test_losses_and_gradients_are_those_with_padding(tmp_path: Path, kind: str, task: str) -> None:
    stack, slots = opened(tmp_path, kind, task, lora_dropout=0.0)
    assert all(slot.packs for slot in slots)
    losses, gradients = stack._backward(slots), [slot.grad.clone() for slot in slots]
    for slot in slots:
        slot.packs = False
    assert losses == pytest.approx(stack._backward(slots), abs=1e-5)
    for slot, gradient in zip(slots, gradients, strict=True):
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(gradient, slot.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.method.stacks], ids=lambda family: family.name
)
def test_so_are_those_of_every_family_and_what_it_answers(tmp_path: Path, family: Family) -> None:
    """Two trials of it, one of whose texts are longer."""
    stack, lora = opened(tmp_path, "bert", lora_dropout=0.0)
    config = family.method.make_config(family.fields, "bert", list(stack.host.head))
    training = lora[0].trial.training
    slots = [stack.open(Trial(f"{n}", family.method, config, training, n)) for n in range(2)]
    slots[1].progress.step = 2
    packs = slots[0].packs
    assert packs is (family.name not in ("prefix", "p-tuning-v2"))
    encoded = stack.work.encoded("validation", 512)
    losses, gradients = stack._backward(slots), [slot.grad.clone() for slot in slots]
    answers = stack.outputs(slots, encoded)
    for slot in slots:
        slot.packs = False
    stack.packs = False
    assert losses == pytest.approx(stack._backward(slots), abs=1e-5)
    torch.testing.assert_close(answers, stack.outputs(slots, encoded), rtol=1e-4, atol=1e-5)
    for slot, gradient in zip(slots, gradients, strict=True):
        assert gradient.abs().max() > 1e-5
        torch.testing.assert_close(gradient, slot.grad, rtol=1e-4, atol=1e-6)


def test_answers_are_packed_whatever_the_company(tmp_path: Path) -> None:
    """Beside a prefix, whose rows keep their padding, and for weights that only predict."""
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
    slots = [stack.open(tiny.trial(base, name, 1, method=name)) for name in ("lora", "prefix", "lora")]
    widths = []
    block = stack.host.modules["bert.encoder.layer.0"]
    block.register_forward_pre_hook(lambda module, given: widths.append(given[0].shape[1]))
    encoded = work.encoded("validation", 512)
    together = stack.outputs(slots, encoded)
    assert 1 in widths  # tokens are rows
    assert max(widths) > 1  # the prefix's are not
    widths.clear()
    for place, slot in enumerate(slots):
        assert torch.equal(stack.outputs([slot], encoded)[0], together[place])
    assert 1 in widths
    widths.clear()
    assert torch.equal(stack.outputs([Seat(slots[0].index)], encoded)[0], together[0])
    assert set(widths) == {1}


def test_no_block_sees_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks get the texts' tokens, filled up trial by trial, and what follows attention in the last one
    gets a token a text.
    """
    stack, slots = opened(tmp_path, "bert")
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in stack.host.modules.items():
        if name.endswith(("attention.self.query", "intermediate.dense")):
            module.register_forward_pre_hook(
                lambda module, given, name=name: seen.update({name: tuple(given[0].shape)})
            )
    stack._backward(slots)
    filled = sum(-(-slot.next_tokens // ALIGN) * ALIGN for slot in slots)
    tokens = -(-filled // TOGETHER) * TOGETHER
    rows = sum(len(slot.next_batch()) for slot in slots)
    hidden = stack.host.model.config.hidden_size
    ends = {name.split(".")[3] + name[-11:]: shape for name, shape in seen.items()}
    assert ends["0.self.query"] == ends["1.self.query"] == (tokens, 1, hidden)
    assert ends["0diate.dense"] == (tokens, 1, hidden)
    assert ends["1diate.dense"] == (rows, 1, hidden)


def test_who_packs_depends_on_the_trial_alone(tmp_path: Path) -> None:
    """Not where a method changes what the model is called with, or the model; nor where texts are long."""
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
    methods = ["lora", "ia3", "series", "parallel", "prefix", "prompt", "p-tuning"]
    packs = {name: stack.open(tiny.trial(base, name, 1, method=name)).packs for name in methods}
    assert [name for name in methods if not packs[name]] == ["prefix"]
    encoded = work.encoded("train", stack.open(tiny.trial(base, "short", 1)).max_length)
    encoded.lengths[0] = LONGEST + 1
    assert not stack.open(tiny.trial(base, "long", 1)).packs


@pytest.mark.parametrize("kind", ["distilbert", "gpt2", "llama", "modernbert", "deberta-v2"])
def test_other_architectures_keep_their_padding(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    assert not base.load_model(work.task.auto_class, work.task.model_config(base)).packs


def test_so_do_bases_with_another_attention(tmp_path: Path) -> None:
    """A config may choose one, and no other knows where texts begin."""
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    loaded = base.load_model(work.task.auto_class, work.task.model_config(base))
    assert loaded.packs
    loaded.model.save_pretrained(tmp_path / "eager")
    base.tokenizer.save_pretrained(tmp_path / "eager")
    config = json.loads((tmp_path / "eager" / "config.json").read_text())
    (tmp_path / "eager" / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager"}))
    eager = load_base(BaseConfig(model=str(tmp_path / "eager"), dtype="float32", device_map="cpu"))
    again = eager.load_model(work.task.auto_class, work.task.model_config(eager))
    assert again.model.config._attn_implementation == "eager"
    assert not again.packs


def test_lengths_in_attention_do_not_depend_on_company() -> None:
    alone, _ = packed_of([[3, 17]])
    together, _ = packed_of([[3, 17], [40, 18, 1]])
    lengths = [group.keys[1] for group in alone.heads(2).groups]
    assert lengths == [STEP, 2 * STEP]
    shapes = [(group.texts, group.keys[1]) for group in together.heads(2).groups]
    assert shapes == [(4, STEP), (4, 2 * STEP), (2, 3 * STEP)]
    assert np.array_equal(together.lengths, [3, 17, 40, 18, 1])


@pytest.mark.parametrize(("texts", "expected"), [(3, [3]), (8, [8]), (21, [16, 5]), (24, [24])])
def test_attention_takes_texts_in_few_numbers(texts: int, expected: list[int]) -> None:
    """oneDNN prepares a product for every number of them that comes, and keeps it."""
    mask = torch.ones(texts, 7, dtype=torch.long)
    layout = Packed(mask, [texts]).heads(2)
    assert [group.texts for group in layout.groups] == [2 * count for count in expected]
